//! Rows on their way into a table, by COPY.
//!
//! As text into the shared tables, because an existing installation's columns may be of other types than ours, and the
//! server casts; as binary, which the server reads in half the time, into our own. Each block is encoded while the
//! server still takes the one before, so that encoding costs no time of its own.
//! Invariant: what stands in memory is one block, however many rows are written.

use serde::Serialize;
use uuid::Uuid;

use super::{Result, StoreError, Tx, link::Copying};

/// Bytes handed to the connection at a time: well below what a socket holds, so that the server finds the next block
/// there when it has taken one, and starts on the first of them at once.
const BLOCK: usize = 64 * 1024;

/// How a binary COPY begins: its signature, no flags, no extension.
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// How a binary COPY ends.
const TRAILER: i16 = -1;

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CopyFormat {
    Text,
    /// With the number of columns. The columns are of exactly the types that are written.
    Binary(i16),
}

/// Values of rows, in the order of the columns.
pub(super) struct Rows {
    format: CopyFormat,
    buffer: Vec<u8>,
    /// Where JSON is written before it is escaped or measured.
    scratch: Vec<u8>,
}

impl Rows {
    fn new(format: CopyFormat) -> Self {
        let mut buffer = Vec::with_capacity(BLOCK + BLOCK / 8);
        if matches!(format, CopyFormat::Binary(_)) {
            buffer.extend_from_slice(SIGNATURE);
        }
        Self { format, buffer, scratch: Vec::new() }
    }

    pub(super) fn text(&mut self, value: &str) {
        match self.format {
            CopyFormat::Text => field(&mut self.buffer, value.as_bytes()),
            CopyFormat::Binary(_) => binary(&mut self.buffer, value.as_bytes()),
        }
    }

    pub(super) fn null(&mut self) {
        match self.format {
            CopyFormat::Text => self.buffer.extend_from_slice(b"\\N\t"),
            CopyFormat::Binary(_) => self.buffer.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }

    pub(super) fn option(&mut self, value: Option<&str>) {
        match value {
            Some(value) => self.text(value),
            None => self.null(),
        }
    }

    pub(super) fn uuid(&mut self, value: Uuid) {
        match self.format {
            CopyFormat::Text => {
                let mut text = Uuid::encode_buffer();
                self.text(value.hyphenated().encode_lower(&mut text));
            }
            CopyFormat::Binary(_) => binary(&mut self.buffer, value.as_bytes()),
        }
    }

    pub(super) fn integer(&mut self, value: i32) {
        match self.format {
            CopyFormat::Text => self.text(&value.to_string()),
            CopyFormat::Binary(_) => binary(&mut self.buffer, &value.to_be_bytes()),
        }
    }

    pub(super) fn bytes(&mut self, value: &[u8]) {
        match self.format {
            CopyFormat::Text => {
                let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
                self.text(&format!("\\x{digits}"));
            }
            CopyFormat::Binary(_) => binary(&mut self.buffer, value),
        }
    }

    /// A value as JSON text.
    pub(super) fn json(&mut self, value: &impl Serialize) {
        self.scratch.clear();
        // Writing plain values into memory cannot fail.
        let _ = serde_json::to_writer(&mut self.scratch, value);
        match self.format {
            CopyFormat::Text => field(&mut self.buffer, &self.scratch),
            CopyFormat::Binary(_) => binary(&mut self.buffer, &self.scratch),
        }
    }

    fn begin_row(&mut self) {
        if let CopyFormat::Binary(columns) = self.format {
            self.buffer.extend_from_slice(&columns.to_be_bytes());
        }
    }

    fn end_row(&mut self) {
        if let (CopyFormat::Text, Some(last)) = (self.format, self.buffer.last_mut()) {
            *last = b'\n';
        }
    }

    fn end(&mut self) {
        if matches!(self.format, CopyFormat::Binary(_)) {
            self.buffer.extend_from_slice(&TRAILER.to_be_bytes());
        }
    }
}

/// Appends a value with its length. One that is too long for that could not have been read into memory.
fn binary(to: &mut Vec<u8>, value: &[u8]) {
    to.extend_from_slice(&i32::try_from(value.len()).unwrap_or(i32::MAX).to_be_bytes());
    to.extend_from_slice(value);
}

/// Appends a value as text, with what means something to COPY said otherwise.
fn field(to: &mut Vec<u8>, value: &[u8]) {
    let mut rest = value;
    while let Some(at) = rest.iter().position(|byte| matches!(byte, b'\\' | b'\n' | b'\r' | b'\t')) {
        let (plain, from) = rest.split_at(at);
        to.extend_from_slice(plain);
        to.extend_from_slice(match from.first() {
            Some(b'\n') => b"\\n",
            Some(b'\r') => b"\\r",
            Some(b'\t') => b"\\t",
            _ => b"\\\\",
        });
        rest = from.get(1..).unwrap_or_default();
    }
    to.extend_from_slice(rest);
    to.push(b'\t');
}

/// A COPY that is under way.
pub(super) struct Copy<'t> {
    server: Copying<'t>,
    rows: Rows,
}

impl<'t> Copy<'t> {
    /// `target`: a table with its columns.
    pub(super) async fn begin(tx: &'t mut Tx, target: &str, format: CopyFormat) -> Result<Self> {
        let how = match format {
            CopyFormat::Text => "",
            CopyFormat::Binary(_) => " (FORMAT binary)",
        };
        let server = tx.copy(&format!("COPY {target} FROM STDIN{how}")).await?;
        Ok(Self { server, rows: Rows::new(format) })
    }

    /// Adds one row, whose values `write` writes in the order of the columns.
    pub(super) async fn row(&mut self, write: impl FnOnce(&mut Rows)) -> Result<()> {
        self.rows.begin_row();
        write(&mut self.rows);
        self.rows.end_row();
        if self.rows.buffer.len() >= BLOCK { self.send().await } else { Ok(()) }
    }

    async fn send(&mut self) -> Result<()> {
        self.server.send(self.rows.buffer.as_slice()).await.map_err(copy_error)?;
        self.rows.buffer.clear();
        Ok(())
    }

    /// Waits until the server has taken and checked all rows.
    pub(super) async fn finish(mut self) -> Result<()> {
        self.rows.end();
        self.send().await?;
        self.server.finish().await.map_err(copy_error)
    }
}

/// Keeps the context line, which names the row of a COPY but, unlike DETAIL, also the refused value: only the part up
/// to the line number is kept.
fn copy_error(error: sqlx::Error) -> StoreError {
    let place = error
        .as_database_error()
        .and_then(|error| error.try_downcast_ref::<sqlx::postgres::PgDatabaseError>())
        .and_then(|error| error.r#where())
        .and_then(|place| place.split(['\n', ':']).next())
        .map(|place| {
            let mut parts = place.splitn(3, ", ");
            format!("{}, {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
        });
    match (error.into(), place) {
        (StoreError::Data { provider, message }, Some(place)) => {
            StoreError::Data { provider, message: format!("{message}, {place}") }
        }
        (error, _) => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(format: CopyFormat, write: impl FnOnce(&mut Rows)) -> Vec<u8> {
        let mut rows = Rows::new(format);
        rows.begin_row();
        write(&mut rows);
        rows.end_row();
        rows.end();
        rows.buffer
    }

    #[test]
    fn a_value_stays_one_value() {
        let check = |value: &str, expected: &str| {
            let found = rows(CopyFormat::Text, |row| {
                row.text(value);
                row.null();
            });
            assert_eq!(String::from_utf8(found).expect("UTF-8"), format!("{expected}\t\\N\n"));
        };
        check("", "");
        check("plain", "plain");
        check("a\tb\nc\rd\\e", "a\\tb\\nc\\rd\\\\e");
        check("\\N", "\\\\N");
        check("\\.", "\\\\.");
        check("größer × 2\n", "größer × 2\\n");
    }

    #[test]
    fn json_is_escaped_once_more() {
        let found = rows(CopyFormat::Text, |row| row.json(&serde_json::json!({ "a": "x\ny" })));
        assert_eq!(String::from_utf8(found).expect("UTF-8"), "{\"a\":\"x\\\\ny\"}\n");
    }

    #[test]
    fn binary_values_bring_their_length() {
        let found = rows(CopyFormat::Binary(4), |row| {
            row.text("a\tb");
            row.null();
            row.integer(-2);
            row.bytes(&[7]);
        });
        let expected: &[&[u8]] = &[
            SIGNATURE,
            b"\0\x04",
            b"\0\0\0\x03a\tb",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x04\xff\xff\xff\xfe",
            b"\0\0\0\x01\x07",
            b"\xff\xff",
        ];
        assert_eq!(found, expected.concat());
    }
}
