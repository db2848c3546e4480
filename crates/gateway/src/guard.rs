//! A provider's key in its own answer: overwritten before the caller sees it.
//!
//! Its job: the key as it stands, in a body or a stream, across frames. Not its job: refusals, whose texts are judged
//! word by word (`provider::redact`); a provider that disguises its key. Invariants: no byte of a key that stands in
//! an answer leaves, but for a beginning that other text would share; what holds no key leaves untouched and without a
//! copy; lengths stay, so that declared ones hold.

use bytes::{Bytes, BytesMut};

use crate::picture::UpstreamKey;

/// What stands in the place of each byte of a key: valid inside JSON's strings.
const OVER: u8 = b'*';

/// Shorter keys are words (`ollama`, `none`) that answers may hold.
const KEY_MIN: usize = 12;

/// Watches the answers of one upstream; cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct KeyGuard {
    key: Option<UpstreamKey>,
    /// Which byte of the key is looked for: the one that texts hold least.
    anchor: usize,
    /// So many bytes of a key's beginning came last and were not shown.
    held: usize,
    found: u32,
}

impl KeyGuard {
    /// For answers of who is asked with this key.
    pub(crate) fn new(key: Option<&UpstreamKey>) -> Self {
        let key = key.filter(|key| key.expose().len() >= KEY_MIN);
        let bytes = key.map_or(&[][..], UpstreamKey::expose);
        let anchor = (0..bytes.len()).min_by_key(|at| bytes.get(*at).map_or(u8::MAX, |byte| usual(*byte)));
        Self { key: key.cloned(), anchor: anchor.unwrap_or(0), held: 0, found: 0 }
    }

    /// Keys that were overwritten so far.
    pub(crate) const fn found(&self) -> u32 {
        self.found
    }

    /// Whether a short text, such as a header, holds the key.
    pub(crate) fn is_in(&self, text: &[u8]) -> bool {
        self.key.as_ref().is_some_and(|key| self.find(key.expose(), text).is_some())
    }

    /// The next bytes of a stream, as they may be shown. What may be the beginning of a key waits for what follows.
    pub(crate) fn pass(&mut self, frame: &Bytes) -> Bytes {
        let Some(key) = &self.key else { return frame.clone() };
        let key = key.expose();
        if self.held == 0 && self.find(key, frame).is_none() {
            let begun = begun(key, frame);
            self.held = begun;
            return frame.slice(..frame.len() - begun);
        }
        let mut bytes = BytesMut::with_capacity(self.held + frame.len());
        bytes.extend_from_slice(key.get(..self.held).unwrap_or_default());
        bytes.extend_from_slice(frame);
        let mut from = 0;
        while let Some(at) = bytes.get(from..).and_then(|rest| self.find(key, rest)) {
            let place = from + at..from + at + key.len();
            from = place.end;
            if let Some(place) = bytes.get_mut(place) {
                place.fill(OVER);
            }
            self.found = self.found.saturating_add(1);
        }
        // A beginning cannot lie in what was overwritten: that is no part of a key.
        let begun = begun(key, &bytes);
        self.held = begun;
        bytes.truncate(bytes.len() - begun);
        bytes.freeze()
    }

    /// What waited at the end: it was no key.
    pub(crate) fn rest(&mut self) -> Bytes {
        let held = std::mem::take(&mut self.held);
        let key = self.key.as_ref().map_or(&[][..], UpstreamKey::expose);
        Bytes::copy_from_slice(key.get(..held).unwrap_or_default())
    }

    /// A body, whole.
    pub(crate) fn whole(&mut self, body: Bytes) -> Bytes {
        let shown = self.pass(&body);
        match self.held {
            0 => shown,
            // Its end only looks like the beginning of a key.
            _ if self.found == 0 => {
                self.held = 0;
                body
            }
            _ => [shown, self.rest()].concat().into(),
        }
    }

    /// Where the key begins in a text.
    fn find(&self, key: &[u8], text: &[u8]) -> Option<usize> {
        let looked_for = *key.get(self.anchor)?;
        let within = text.get(self.anchor..)?;
        memchr::memchr_iter(looked_for, within)
            .find(|at| text.get(*at..).is_some_and(|rest| rest.starts_with(key)))
    }
}

/// How many of a text's last bytes are a key's first ones, but not all of them.
fn begun(key: &[u8], text: &[u8]) -> usize {
    let Some(first) = key.first() else { return 0 };
    let from = text.len().saturating_sub(key.len() - 1);
    let tail = text.get(from..).unwrap_or_default();
    let mut starts = memchr::memchr_iter(*first, tail);
    starts.find_map(|at| tail.get(at..).filter(|end| key.starts_with(end))).map_or(0, <[u8]>::len)
}

/// How often a byte stands in JSON that models write, roughly: the less the better to look for.
const fn usual(byte: u8) -> u8 {
    match byte {
        b'Q' | b'X' | b'Z' | b'J' | b'K' | b'V' | b'Y' => 0,
        b'A'..=b'Z' => 1,
        b'j' | b'q' | b'x' | b'z' => 2,
        b'0'..=b'9' => 3,
        b'b' | b'f' | b'g' | b'k' | b'v' | b'w' | b'y' => 4,
        b'a'..=b'z' => 6,
        _ => 5,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    const KEY: &str = "sk-canary-abcabd-0X7";

    fn guard(key: &str) -> KeyGuard {
        KeyGuard::new(Some(&UpstreamKey::new(Zeroizing::new(key.as_bytes().to_vec()))))
    }

    fn streamed(guard: &mut KeyGuard, frames: &[&[u8]]) -> Vec<u8> {
        let mut shown: Vec<u8> =
            frames.iter().flat_map(|frame| guard.pass(&Bytes::copy_from_slice(frame))).collect();
        shown.extend_from_slice(&guard.rest());
        shown
    }

    #[test]
    fn a_key_is_overwritten_wherever_it_is_cut() {
        let text = format!("{{\"a\":\"{KEY}\",\"b\":\"sk-canary-abc {KEY}{KEY} sk-can");
        let stars = "*".repeat(KEY.len());
        let expected = text.replace(KEY, &stars);
        for size in 1..text.len() {
            let mut guard = guard(KEY);
            let frames: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(String::from_utf8(streamed(&mut guard, &frames)).unwrap(), expected, "{size}");
            assert_eq!(guard.found(), 3);
        }
        let mut guard = guard(KEY);
        assert_eq!(guard.whole(Bytes::from(text.clone())), expected.as_bytes());
        assert!(guard.is_in(text.as_bytes()) && !guard.is_in(&text.as_bytes()[..20]));
    }

    #[test]
    fn what_holds_no_key_is_not_copied() {
        let mut guard = guard(KEY);
        let frame = Bytes::from(format!("data: {}\n\n", &KEY[1..]));
        let shown = guard.pass(&frame);
        assert_eq!((shown.as_ptr(), shown.len()), (frame.as_ptr(), frame.len()));
        let ends_alike = Bytes::from_static(b"... sk-can");
        assert_eq!(guard.whole(ends_alike.clone()).as_ptr(), ends_alike.as_ptr());
        assert_eq!(guard.found(), 0);
    }

    #[test]
    fn words_and_absent_keys_are_let_pass() {
        for mut guard in [guard("ollama"), KeyGuard::new(None)] {
            assert_eq!(guard.whole(Bytes::from_static(b"I am ollama")), "I am ollama");
        }
    }

    proptest! {
        /// Keys of few letters, so that beginnings and whole keys overlap.
        #[test]
        fn as_one_replacement_of_the_whole(
            key in "[ab]{12,14}",
            parts in prop::collection::vec("[ab]{0,20}", 1..6),
            at in any::<prop::sample::Index>(),
        ) {
            let mut parts = parts;
            let place = at.index(parts.len());
            parts[place].push_str(&key);
            let mut guard = guard(&key);
            let frames: Vec<&[u8]> = parts.iter().map(|part| part.as_bytes()).collect();
            let shown = String::from_utf8(streamed(&mut guard, &frames)).unwrap();
            let whole = parts.concat();
            prop_assert_eq!(shown.len(), whole.len());
            prop_assert!(!shown.contains(&key), "{}", shown);
            prop_assert!(guard.found() > 0);
        }
    }
}
