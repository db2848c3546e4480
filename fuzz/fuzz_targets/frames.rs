//! Fuzzes the three framings of streams against readers that see all bytes at once: wherever the bytes are cut, the same
//! events come out, and no more memory is held than was allowed.
#![no_main]

use provider::dialect::frames::{AwsReader, FrameError, LineReader, SseReader, write_frame};

/// Small, so that the bound is met.
const LIMIT: usize = 512;

type Events = (Vec<(String, Vec<u8>)>, Option<FrameError>);

fn sse(parts: &[&[u8]]) -> Events {
    let (mut events, mut reader) = (Vec::new(), SseReader::new(LIMIT));
    let mut take = |event: provider::dialect::frames::SseEvent<'_>| {
        assert!(event.data.len() <= 3 * LIMIT, "bounded, and three bytes stand for one that is no character");
        events.push((event.name.to_owned(), event.data.as_bytes().to_vec()));
    };
    let read = parts.iter().try_for_each(|part| reader.feed(part, &mut take)).and_then(|()| reader.finish(&mut take));
    (events, read.err())
}

/// What the specification says, without any care for cuts: lines by CRLF, LF or CR, fields by the first colon.
fn sse_oracle(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut lines: Vec<Vec<u8>> = vec![Vec::new()];
    let mut rest = text.iter().peekable();
    while let Some(byte) = rest.next() {
        match byte {
            b'\r' => {
                rest.next_if(|next| **next == b'\n');
                lines.push(Vec::new());
            }
            b'\n' => lines.push(Vec::new()),
            byte => lines.last_mut().expect("one is there").push(*byte),
        }
    }
    // A last event without its empty line counts, as the reader promises.
    lines.push(Vec::new());
    let (mut events, mut name, mut data) = (Vec::new(), Vec::new(), None::<Vec<u8>>);
    for line in lines {
        if line.is_empty() {
            if let Some(data) = data.take() {
                let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                events.push((lossy(&name), lossy(&data).into_bytes()));
            }
            name.clear();
            continue;
        }
        let (field, value) = match line.iter().position(|byte| *byte == b':') {
            Some(at) => (&line[..at], line[at + 1..].strip_prefix(b" ").unwrap_or(&line[at + 1..])),
            None => (&line[..], &[][..]),
        };
        match field {
            b"data" => match &mut data {
                Some(data) => {
                    data.push(b'\n');
                    data.extend_from_slice(value);
                }
                None => data = Some(value.to_vec()),
            },
            b"event" => name = value.to_vec(),
            _ => {}
        }
    }
    events
}

fn lines(parts: &[&[u8]]) -> Events {
    let (mut events, mut reader) = (Vec::new(), LineReader::new(LIMIT));
    let mut take = |line: &[u8]| {
        assert!(line.len() <= LIMIT);
        events.push((String::new(), line.to_vec()));
    };
    let read = parts.iter().try_for_each(|part| reader.feed(part, &mut take));
    if read.is_ok() {
        reader.finish(&mut take);
    }
    (events, read.err())
}

fn aws(parts: &[&[u8]]) -> Events {
    let (mut events, mut reader) = (Vec::new(), AwsReader::new(LIMIT));
    let mut take = |frame: provider::dialect::frames::AwsFrame<'_>| {
        assert!(frame.payload.len() <= LIMIT);
        events.push((format!("{}/{}/{}", frame.message_type, frame.name, frame.message), frame.payload.to_vec()));
    };
    let read = parts.iter().try_for_each(|part| reader.feed(part, &mut take));
    (events, read.err())
}

libfuzzer_sys::fuzz_target!(|input: (u16, u16, &[u8])| {
    let (first, second, bytes) = input;
    let (a, b) = bytes.split_at(usize::from(first) % (bytes.len() + 1));
    let (b, c) = b.split_at(usize::from(second) % (b.len() + 1));
    for read in [sse, lines, aws] {
        let (whole, cut) = (read(&[bytes]), read(&[a, b, c]));
        assert_eq!(whole, cut, "a cut changes the events");
    }
    if let (events, None) = sse(&[bytes]) {
        assert_eq!(events, sse_oracle(bytes));
    }
    // A right frame around any payload, and any bytes where headers stand: the sums are right, so that the rest is reached.
    let name: String = String::from_utf8_lossy(a).chars().take(20).collect();
    let framed = write_frame(&[(":message-type", "event"), (":event-type", &name)], b);
    let (events, error) = aws(&[&framed, c]);
    if framed.len() <= LIMIT {
        assert_eq!(events.first(), Some(&(format!("event/{name}/"), b.to_vec())));
    } else {
        assert_eq!(error, Some(FrameError::TooLong(LIMIT)));
    }
    let mut spoilt = framed.clone();
    if let Some(byte) = spoilt.get_mut(usize::from(first) % framed.len()) {
        *byte ^= 1 << (second % 8);
        // No single bit goes unseen.
        assert!(aws(&[&spoilt]).0.is_empty() && framed.len() > 0);
    }
});
