//! Server-sent events, byte by byte: LF, CRLF or lone CR, a BOM, comments, `data` over several lines.
//!
//! Not its job: reconnecting (`id`, `retry` are skipped). Invariant: no byte is decoded before its line is whole,
//! so a character that is cut between two reads survives.

use std::borrow::Cow;

use super::FrameError;

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The value of `event:`; empty where there was none.
    pub name: &'a str,
    /// The lines of `data:`, joined with LF.
    pub data: &'a str,
}

/// Reads events from bytes that are cut anywhere.
#[derive(Debug)]
pub struct SseReader {
    /// The start of a line whose end has not come.
    line: Vec<u8>,
    data: Vec<u8>,
    name: Vec<u8>,
    has_data: bool,
    begun: bool,
    after_cr: bool,
    limit: usize,
}

impl Default for SseReader {
    fn default() -> Self {
        Self::new(super::EVENT_LIMIT)
    }
}

impl SseReader {
    /// A reader that fails on an event longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            line: Vec::new(),
            data: Vec::new(),
            name: Vec::new(),
            has_data: false,
            begun: false,
            after_cr: false,
            limit,
        }
    }

    /// Takes more bytes and hands out each event that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut dyn FnMut(SseEvent<'_>)) -> Result<(), FrameError> {
        if self.after_cr && !bytes.is_empty() {
            self.after_cr = false;
            bytes = bytes.strip_prefix(b"\n").unwrap_or(bytes);
        }
        while let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) {
            let (line, rest) = bytes.split_at(end);
            let cr = rest.first() == Some(&b'\r');
            bytes = rest.get(1..).unwrap_or_default();
            if cr {
                match bytes.strip_prefix(b"\n") {
                    Some(after) => bytes = after,
                    None => self.after_cr = bytes.is_empty(),
                }
            }
            // Also of a line that came at once: what is too long does not depend on how the bytes were cut.
            self.room(line.len())?;
            if self.line.is_empty() {
                self.whole_line(line, out)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.whole_line(&whole, out)?;
                whole.clear();
                self.line = whole;
            }
        }
        self.room(bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// The bytes are over: hands out what a server that forgot the last empty line left behind.
    pub fn finish(&mut self, out: &mut dyn FnMut(SseEvent<'_>)) -> Result<(), FrameError> {
        let rest = std::mem::take(&mut self.line);
        if !rest.is_empty() {
            self.whole_line(&rest, out)?;
        }
        self.dispatch(out);
        Ok(())
    }

    fn room(&self, more: usize) -> Result<(), FrameError> {
        if self.line.len() + self.data.len() + more > self.limit {
            return Err(FrameError::TooLong(self.limit));
        }
        Ok(())
    }

    fn whole_line(&mut self, mut line: &[u8], out: &mut dyn FnMut(SseEvent<'_>)) -> Result<(), FrameError> {
        if !self.begun {
            self.begun = true;
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            self.dispatch(out);
            return Ok(());
        }
        let (field, value) = match memchr::memchr(b':', line) {
            Some(0) => return Ok(()),
            Some(colon) => {
                let (field, rest) = line.split_at(colon);
                let value = rest.get(1..).unwrap_or_default();
                (field, value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &[][..]),
        };
        match field {
            b"data" => {
                self.room(value.len() + 1)?;
                if self.has_data {
                    self.data.push(b'\n');
                }
                self.has_data = true;
                self.data.extend_from_slice(value);
            }
            b"event" => {
                self.room(value.len())?;
                self.name.clear();
                self.name.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self, out: &mut dyn FnMut(SseEvent<'_>)) {
        if self.has_data {
            let name: Cow<'_, str> = String::from_utf8_lossy(&self.name);
            let data: Cow<'_, str> = String::from_utf8_lossy(&self.data);
            out(SseEvent { name: &name, data: &data });
        }
        self.name.clear();
        self.data.clear();
        self.has_data = false;
    }
}
