//! One JSON text per line, as Ollama's own API streams.
//!
//! Not its job: JSON. Invariant: blank lines are no events; the last line may lack its end.

use super::FrameError;

/// Reads lines from bytes that are cut anywhere.
#[derive(Debug)]
pub struct LineReader {
    line: Vec<u8>,
    limit: usize,
}

impl Default for LineReader {
    fn default() -> Self {
        Self::new(super::EVENT_LIMIT)
    }
}

impl LineReader {
    /// A reader that fails on a line longer than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { line: Vec::new(), limit }
    }

    /// Takes more bytes and hands out each line that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], out: &mut dyn FnMut(&[u8])) -> Result<(), FrameError> {
        while let Some(end) = memchr::memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = rest.get(1..).unwrap_or_default();
            self.room(line.len())?;
            if self.line.is_empty() {
                hand_out(line, out);
            } else {
                self.line.extend_from_slice(line);
                hand_out(&self.line, out);
                self.line.clear();
            }
        }
        self.room(bytes.len())?;
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    /// The bytes are over: hands out a last line without its end.
    pub fn finish(&mut self, out: &mut dyn FnMut(&[u8])) {
        hand_out(&std::mem::take(&mut self.line), out);
    }

    fn room(&self, more: usize) -> Result<(), FrameError> {
        if self.line.len() + more > self.limit {
            return Err(FrameError::TooLong(self.limit));
        }
        Ok(())
    }
}

fn hand_out(line: &[u8], out: &mut dyn FnMut(&[u8])) {
    let line = line.trim_ascii();
    if !line.is_empty() {
        out(line);
    }
}
