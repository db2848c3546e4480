//! Server-sent events, line by line, from bytes cut anywhere.
//!
//! Lines end with LF, CRLF or a lone CR; a CR at the end of the bytes may be half a CRLF. One space after the colon is
//! no part of the value, a byte order mark at the very start no part of a name (WHATWG's HTML, "Server-sent events").

/// What the next bytes are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SseLine<'a> {
    /// Data of the event, some or all of a line.
    Data(&'a [u8]),
    /// Another line of data begins: an LF between them.
    NextData,
    /// Some or all of the event's name.
    Name(&'a [u8]),
    /// Comments, other fields, ends of lines.
    Other,
    /// The empty line after an event, or one after nothing.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum At {
    /// Before the first byte of a line.
    #[default]
    Start,
    /// In a field's name, the first bytes of which are kept.
    Field,
    /// After the colon.
    Colon,
    Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    Data,
    Event,
    #[default]
    Other,
}

#[derive(Debug, Default)]
pub(super) struct Sse {
    at: At,
    kind: Kind,
    /// The field's name so far; longer ones are of no interest.
    field: [u8; 8],
    length: u8,
    /// The last byte was a CR.
    after_cr: bool,
    /// The present event has a line of data.
    data: bool,
    /// The present event has a line.
    lines: bool,
    /// Past the first bytes, where a byte order mark may stand.
    begun: bool,
}

impl Sse {
    pub(super) fn mid_event(&self) -> bool {
        self.lines || self.at != At::Start
    }

    /// Takes some of the bytes, which are not empty, and says what they are and how many.
    pub(super) fn next<'a>(&mut self, bytes: &'a [u8]) -> (SseLine<'a>, usize) {
        let Some(first) = bytes.first() else { return (SseLine::Other, 0) };
        if std::mem::take(&mut self.after_cr) && *first == b'\n' {
            return (SseLine::Other, 1);
        }
        match self.at {
            At::Start => match first {
                b'\r' | b'\n' => {
                    self.after_cr = *first == b'\r';
                    self.lines = false;
                    self.data = false;
                    (SseLine::End, 1)
                }
                _ => {
                    self.lines = true;
                    self.at = At::Field;
                    self.length = 0;
                    self.field_bytes(bytes)
                }
            },
            At::Field => self.field_bytes(bytes),
            At::Colon => {
                self.at = At::Value;
                if *first == b' ' { (SseLine::Other, 1) } else { self.value(bytes) }
            }
            At::Value => self.value(bytes),
        }
    }

    fn field_bytes<'a>(&mut self, bytes: &'a [u8]) -> (SseLine<'a>, usize) {
        let end = bytes.iter().position(|byte| matches!(byte, b':' | b'\r' | b'\n'));
        for byte in bytes.iter().take(end.unwrap_or(bytes.len())) {
            if let Some(slot) = self.field.get_mut(usize::from(self.length)) {
                *slot = *byte;
            }
            self.length = self.length.saturating_add(1);
        }
        let Some(end) = end else { return (SseLine::Other, bytes.len()) };
        let name = self.field.get(..usize::from(self.length)).unwrap_or_default();
        let name = if self.begun { name } else { name.strip_prefix(b"\xef\xbb\xbf").unwrap_or(name) };
        self.begun = true;
        self.kind = match name {
            b"data" => Kind::Data,
            b"event" => Kind::Event,
            _ => Kind::Other,
        };
        let another = self.kind == Kind::Data && std::mem::replace(&mut self.data, true);
        if let Some(b':') = bytes.get(end) {
            self.at = At::Colon;
            return (if another { SseLine::NextData } else { SseLine::Other }, end + 1);
        }
        // A field without a colon has an empty value.
        self.after_cr = bytes.get(end) == Some(&b'\r');
        self.at = At::Start;
        (if another { SseLine::NextData } else { SseLine::Other }, end + 1)
    }

    fn value<'a>(&mut self, bytes: &'a [u8]) -> (SseLine<'a>, usize) {
        match memchr::memchr2(b'\n', b'\r', bytes) {
            Some(0) => {
                self.after_cr = bytes.first() == Some(&b'\r');
                self.at = At::Start;
                (SseLine::Other, 1)
            }
            end => {
                let value = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
                let line = match self.kind {
                    Kind::Data => SseLine::Data(value),
                    Kind::Event => SseLine::Name(value),
                    Kind::Other => SseLine::Other,
                };
                (line, value.len())
            }
        }
    }
}
