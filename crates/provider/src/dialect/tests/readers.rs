//! The framings: every form of an end of line, every cut, every kind of rubbish.

use proptest::prelude::*;

use super::super::frames::*;

fn sse(chunks: &[&[u8]], limit: usize) -> Result<Vec<(String, String)>, FrameError> {
    let mut events = Vec::new();
    let mut reader = SseReader::new(limit);
    let mut take = |event: SseEvent<'_>| events.push((event.name.to_owned(), event.data.to_owned()));
    for chunk in chunks {
        reader.feed(chunk, &mut take)?;
    }
    reader.finish(&mut take)?;
    Ok(events)
}

#[test]
fn sse_reads_every_form() {
    type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)]);
    let cases: &[Case] = &[
        ("LF", "data: a\n\ndata: b\n\n", &[("", "a"), ("", "b")]),
        ("CRLF", "event: e\r\ndata: a\r\n\r\ndata: b\r\n\r\n", &[("e", "a"), ("", "b")]),
        ("CR", "event: e\rdata: a\r\rdata: b\r\r", &[("e", "a"), ("", "b")]),
        ("mixed ends", "data: a\r\n\ndata: b\r\r\n", &[("", "a"), ("", "b")]),
        ("BOM", "\u{feff}data: a\n\n", &[("", "a")]),
        ("comment", ": PROCESSING\n\n:\ndata: a\n: x\n\n", &[("", "a")]),
        ("no space", "data:a\n\n", &[("", "a")]),
        ("one space only", "data:  a\n\n", &[("", " a")]),
        ("several lines", "data: a\ndata: b\ndata\n\n", &[("", "a\nb\n")]),
        ("colon in value", "data: {\"a\":1}\n\n", &[("", "{\"a\":1}")]),
        ("no end", "data: a\n\ndata: b", &[("", "a"), ("", "b")]),
        ("name without data", "event: e\n\ndata: a\n\n", &[("", "a")]),
        ("other fields", "id: 1\nretry: 5\nfoo\ndata: a\n\n", &[("", "a")]),
        ("nothing", "\n\n\n", &[]),
    ];
    for (name, text, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        assert_eq!(sse(&[text.as_bytes()], 100).unwrap(), expected, "{name}");
        for cut in 0..=text.len() {
            let (head, tail) = text.as_bytes().split_at(cut);
            assert_eq!(sse(&[head, tail], 100).unwrap(), expected, "{name} cut at {cut}");
        }
        let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
        assert_eq!(sse(&bytes, 100).unwrap(), expected, "{name} byte by byte");
    }
}

#[test]
fn characters_survive_a_cut() {
    let text = "data: 日本語 🦀\n\n";
    for cut in 0..=text.len() {
        let (head, tail) = text.as_bytes().split_at(cut);
        assert_eq!(sse(&[head, tail], 100).unwrap(), [(String::new(), "日本語 🦀".to_owned())]);
    }
}

#[test]
fn readers_are_bounded() {
    let long = vec![b'a'; 200];
    assert_eq!(sse(&[b"data: ", &long], 100), Err(FrameError::TooLong(100)));
    let lines = b"data: aaaaaaaaaaaaaaaaaaaa\n".repeat(20);
    assert_eq!(sse(&[&lines], 100), Err(FrameError::TooLong(100)));
    assert_eq!(LineReader::new(100).feed(&long, &mut |_| {}), Err(FrameError::TooLong(100)));
    let frame = write_frame(&[], &long);
    assert_eq!(AwsReader::new(100).feed(&frame, &mut |_| {}), Err(FrameError::TooLong(100)));
}

#[test]
fn what_is_too_long_does_not_depend_on_the_cut() {
    // A comment is no data, and is held while it comes.
    let text = [b": ".as_slice(), &[b'a'; 97], b"\n\n"].concat();
    for (limit, fits) in [(100, true), (98, false)] {
        for cut in 0..=text.len() {
            let (head, tail) = text.split_at(cut);
            assert_eq!(sse(&[head, tail], limit).is_ok(), fits, "{limit}, cut at {cut}");
        }
    }
}

#[test]
fn lines_are_read_at_every_cut() {
    let text = b"{\"a\":1}\r\n\n{\"b\":2}\n{\"done\":true}";
    for cut in 0..=text.len() {
        let mut lines = Vec::new();
        let mut reader = LineReader::default();
        let mut take = |line: &[u8]| lines.push(String::from_utf8(line.to_vec()).unwrap());
        reader.feed(&text[..cut], &mut take).unwrap();
        reader.feed(&text[cut..], &mut take).unwrap();
        reader.finish(&mut take);
        assert_eq!(lines, ["{\"a\":1}", "{\"b\":2}", "{\"done\":true}"], "cut at {cut}");
    }
}

fn aws(chunks: &[&[u8]]) -> Result<Vec<(String, Vec<u8>)>, FrameError> {
    let mut frames = Vec::new();
    let mut reader = AwsReader::default();
    for chunk in chunks {
        reader.feed(chunk, &mut |frame| frames.push((frame.name.to_owned(), frame.payload.to_vec())))?;
    }
    Ok(frames)
}

#[test]
fn frames_are_read_at_every_cut() {
    let mut bytes = write_frame(&[(":message-type", "event"), (":event-type", "one")], b"{}");
    bytes.extend(write_frame(&[(":event-type", "two"), ("x", "")], b"{\"p\":\"abc\"}"));
    let expected = [("one".to_owned(), b"{}".to_vec()), ("two".to_owned(), b"{\"p\":\"abc\"}".to_vec())];
    for cut in 0..=bytes.len() {
        let (head, tail) = bytes.split_at(cut);
        assert_eq!(aws(&[head, tail]).unwrap(), expected, "cut at {cut}");
    }
    // One wrong bit anywhere is seen, or the frame waits for bytes that never come.
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        assert!(aws(&[&wrong]).map_or(true, |frames| frames.len() < 2), "bit at {at}");
    }
}

#[test]
fn crc_is_the_standard_one() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
}

#[test]
fn frames_skip_headers_of_every_type() {
    let mut head = Vec::new();
    for (kind, size) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 4), (5, 8), (8, 8), (9, 16)] {
        head.extend_from_slice(&[1, b'h', kind]);
        head.resize(head.len() + size, 0xff);
    }
    head.extend_from_slice(&[1, b'b', 6, 0, 2, 1, 2]);
    head.extend_from_slice(&[11]);
    head.extend_from_slice(b":event-type");
    head.extend_from_slice(&[7, 0, 1, b'e']);
    let mut frame = (head.len() as u32 + 18).to_be_bytes().to_vec();
    frame.extend_from_slice(&(head.len() as u32).to_be_bytes());
    frame.extend_from_slice(&crc32(&frame).to_be_bytes());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(b"{}");
    let sum = crc32(&frame);
    frame.extend_from_slice(&sum.to_be_bytes());
    assert_eq!(aws(&[&frame]).unwrap(), [("e".to_owned(), b"{}".to_vec())]);
}

proptest! {
    #[test]
    fn rubbish_never_panics_and_cuts_change_nothing(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b'\r'), Just(b':')], 0..300),
        cut in 0_usize..300,
    ) {
        let (head, tail) = bytes.split_at(cut.min(bytes.len()));
        prop_assert_eq!(sse(&[&bytes], 1000), sse(&[head, tail], 1000));
        prop_assert_eq!(aws(&[&bytes]), aws(&[head, tail]));
    }

    #[test]
    fn frames_with_rubbish_inside_never_panic(
        head in proptest::collection::vec(any::<u8>(), 0..60),
        payload in proptest::collection::vec(any::<u8>(), 0..60),
    ) {
        // Right checksums around wrong headers.
        let mut frame = ((head.len() + payload.len() + 16) as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&(head.len() as u32).to_be_bytes());
        frame.extend_from_slice(&crc32(&frame).to_be_bytes());
        frame.extend_from_slice(&head);
        frame.extend_from_slice(&payload);
        let sum = crc32(&frame);
        frame.extend_from_slice(&sum.to_be_bytes());
        let _ = aws(&[&frame]);
    }
}
