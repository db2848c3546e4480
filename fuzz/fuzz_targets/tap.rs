//! Fuzzes the look at answers: wherever the bytes are cut, the same is seen and passed on.
#![no_main]

use bytes::Bytes;
use gateway::tap::{Tap, TapShape, TapSums};

fn fed(mut tap: Tap, pieces: &[&[u8]]) -> (Vec<u8>, TapSums) {
    let mut out = Vec::new();
    for piece in pieces {
        tap.feed(&Bytes::copy_from_slice(piece), |part| out.extend_from_slice(&part));
    }
    tap.end(|part| out.extend_from_slice(&part));
    (out, tap.sums().clone())
}

libfuzzer_sys::fuzz_target!(|input: (u8, u16, u16, &[u8])| {
    let (kind, first, second, bytes) = input;
    let shape = [TapShape::Chat, TapShape::Responses, TapShape::Messages][usize::from(kind) % 3];
    let (a, b) = bytes.split_at(usize::from(first) % (bytes.len() + 1));
    let (b, c) = b.split_at(usize::from(second) % (b.len() + 1));
    for make in [|shape| Tap::body(shape), |shape| Tap::stream(shape, false), |shape| Tap::stream(shape, true)] {
        assert_eq!(fed(make(shape), &[a, b, c]), fed(make(shape), &[bytes]));
    }
    assert_eq!(fed(Tap::stream(shape, false), &[a, b, c]).0, bytes);
});
