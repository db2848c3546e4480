//! Amazon's event streams: length-prefixed frames with two checksums and typed headers (gateway-protocols §2.4).
//!
//! Not its job: what a frame's payload means. Invariant: no length is trusted before its checksum was right, and no
//! frame is handed out before it is whole.

use super::FrameError;

/// Bytes before the headers: two lengths and their checksum.
const PRELUDE: usize = 12;
/// Bytes of a frame that are neither headers nor payload: the prelude and the last checksum.
const AROUND: usize = 16;

/// One frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AwsFrame<'a> {
    /// `event`, `exception` or `error`.
    pub message_type: &'a str,
    /// `:event-type`, `:exception-type` or `:error-code`.
    pub name: &'a str,
    /// `:error-message`.
    pub message: &'a str,
    /// JSON.
    pub payload: &'a [u8],
}

/// Reads frames from bytes that are cut anywhere.
#[derive(Debug)]
pub struct AwsReader {
    buffer: Vec<u8>,
    limit: usize,
}

impl Default for AwsReader {
    fn default() -> Self {
        Self::new(super::EVENT_LIMIT)
    }
}

impl AwsReader {
    /// A reader that fails on a frame longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), limit }
    }

    /// Takes more bytes and hands out each frame that they complete.
    pub fn feed(&mut self, bytes: &[u8], out: &mut dyn FnMut(AwsFrame<'_>)) -> Result<(), FrameError> {
        self.buffer.extend_from_slice(bytes);
        let mut from = 0;
        let result = loop {
            let rest = self.buffer.get(from..).unwrap_or_default();
            match read_frame(rest, self.limit) {
                Ok(Some((frame, length))) => {
                    out(frame);
                    from += length;
                }
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.buffer.drain(..from);
        result
    }

    /// The bytes are over: whether they ended between two frames.
    pub fn is_whole(&self) -> bool {
        self.buffer.is_empty()
    }
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn read_frame(bytes: &[u8], limit: usize) -> Result<Option<(AwsFrame<'_>, usize)>, FrameError> {
    let (Some(total), Some(headers), Some(sum)) = (be32(bytes, 0), be32(bytes, 4), be32(bytes, 8)) else {
        return Ok(None);
    };
    if crc32(bytes.get(..8).unwrap_or_default()) != sum {
        return Err(FrameError::Checksum);
    }
    let (total, headers) = (total as usize, headers as usize);
    if total > limit {
        return Err(FrameError::TooLong(limit));
    }
    if total < AROUND || headers > total - AROUND {
        return Err(FrameError::Lengths);
    }
    let Some(frame) = bytes.get(..total) else { return Ok(None) };
    let (body, last) = frame.split_at(total - 4);
    if be32(last, 0) != Some(crc32(body)) {
        return Err(FrameError::Checksum);
    }
    let (head, payload) = body.get(PRELUDE..).unwrap_or_default().split_at(headers);
    let mut frame = AwsFrame { payload, ..AwsFrame::default() };
    read_headers(head, &mut frame).ok_or(FrameError::Headers)?;
    Ok(Some((frame, total)))
}

fn read_headers<'a>(mut bytes: &'a [u8], frame: &mut AwsFrame<'a>) -> Option<()> {
    while let Some((&length, rest)) = bytes.split_first() {
        let name = rest.get(..usize::from(length))?;
        let rest = rest.get(usize::from(length)..)?;
        let (&kind, rest) = rest.split_first()?;
        // The sizes of the fixed types: booleans, 8 to 64 bits, a time, a UUID; 6 and 7 bring their length.
        let (value, after) = match kind {
            0 | 1 => rest.split_at_checked(0)?,
            2 => rest.split_at_checked(1)?,
            3 => rest.split_at_checked(2)?,
            4 => rest.split_at_checked(4)?,
            5 | 8 => rest.split_at_checked(8)?,
            9 => rest.split_at_checked(16)?,
            6 | 7 => {
                let (size, rest) = rest.split_at_checked(2)?;
                let size = u16::from_be_bytes(size.try_into().ok()?);
                rest.split_at_checked(usize::from(size))?
            }
            _ => return None,
        };
        bytes = after;
        if kind != 7 {
            continue;
        }
        let value = std::str::from_utf8(value).ok()?;
        match name {
            b":message-type" => frame.message_type = value,
            b":event-type" | b":exception-type" | b":error-code" => frame.name = value,
            b":error-message" => frame.message = value,
            _ => {}
        }
    }
    Some(())
}

/// Writes one frame with string headers: for tests and for mocks of providers.
pub fn write_frame(headers: &[(&str, &str)], payload: &[u8]) -> Vec<u8> {
    let mut head = Vec::new();
    for (name, value) in headers {
        head.push(name.len() as u8);
        head.extend_from_slice(name.as_bytes());
        head.push(7);
        head.extend_from_slice(&(value.len() as u16).to_be_bytes());
        head.extend_from_slice(value.as_bytes());
    }
    let total = (head.len() + payload.len() + AROUND) as u32;
    let mut frame = total.to_be_bytes().to_vec();
    frame.extend_from_slice(&(head.len() as u32).to_be_bytes());
    frame.extend_from_slice(&crc32(&frame).to_be_bytes());
    frame.extend_from_slice(&head);
    frame.extend_from_slice(payload);
    let sum = crc32(&frame);
    frame.extend_from_slice(&sum.to_be_bytes());
    frame
}

/// CRC-32 (IEEE) of the bytes.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
