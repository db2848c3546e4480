//! As much of PostgreSQL's protocol as it takes to ask a server which cluster it serves.
//!
//! Its job: one question over a Unix socket, without a pool or a runtime, while a server starts. Everything
//! else that speaks to PostgreSQL lives elsewhere.

use std::{
    ffi::OsString,
    io::{self, Read as _, Write as _},
    os::unix::{ffi::OsStringExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

/// Role and database of the embedded cluster.
pub const ROLE: &str = "providerd";
/// The port that names the socket file; nothing listens on a network.
pub const PORT: u16 = 5432;

/// Protocol version 3.0.
const PROTOCOL: i32 = 196_608;
/// A local server answers within microseconds; one that is overloaded gets this long.
const TIMEOUT: Duration = Duration::from_secs(5);
/// No message of this dialogue comes near it.
const MAX_MESSAGE: usize = 64 * 1024;

/// Why a server did not name its data directory.
#[derive(Debug)]
pub enum Silence {
    /// Nothing listens.
    NoServer(io::Error),
    /// It is starting up or shutting down.
    NotNow(String),
    /// It answers and will not have us, or does not speak the protocol.
    Refused(String),
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoServer(error) => write!(f, "its socket: {error}"),
            Self::NotNow(text) | Self::Refused(text) => f.write_str(text),
        }
    }
}

/// The data directory of the server whose socket lies in `dir`, as it says itself.
pub fn data_directory(dir: &Path) -> Result<PathBuf, Silence> {
    let socket = dir.join(format!(".s.PGSQL.{PORT}"));
    let mut stream = UnixStream::connect(socket).map_err(Silence::NoServer)?;
    let broken = |error: io::Error| Silence::NotNow(format!("the connection broke: {error}"));
    stream.set_read_timeout(Some(TIMEOUT)).map_err(broken)?;
    stream.set_write_timeout(Some(TIMEOUT)).map_err(broken)?;
    stream.write_all(&startup()).map_err(broken)?;

    let mut answer = None;
    let mut asked = false;
    loop {
        let (kind, body) = message(&mut stream).map_err(broken)?;
        match kind {
            b'E' => return Err(refusal(&body)),
            b'R' if body != [0; 4] => {
                return Err(Silence::Refused("it asks for a password".to_owned()));
            }
            b'D' => answer = first_column(&body),
            b'Z' if asked => break,
            b'Z' => {
                stream.write_all(&framed(Some(b'Q'), b"SHOW data_directory\0")).map_err(broken)?;
                asked = true;
            }
            _ => {}
        }
    }
    // Politeness: without it the server logs a lost connection.
    let _ = stream.write_all(&framed(Some(b'X'), b""));
    answer.ok_or_else(|| Silence::Refused("it does not know its data directory".to_owned()))
}

fn startup() -> Vec<u8> {
    let mut body = PROTOCOL.to_be_bytes().to_vec();
    for text in ["user", ROLE, "database", ROLE, "application_name", "providerd start"] {
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    framed(None, &body)
}

/// A message: its kind (the first message has none), its length with the length itself, its body.
fn framed(kind: Option<u8>, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    let mut bytes: Vec<u8> = kind.into_iter().collect();
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn message(stream: &mut UnixStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX).wrapping_sub(4);
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not PostgreSQL's protocol"));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((kind, body))
}

/// An error message: fields of a kind byte and a text, each ended by NUL.
fn refusal(body: &[u8]) -> Silence {
    let field = |kind: u8| {
        let field = body.split(|byte| *byte == 0).find(|field| field.first() == Some(&kind))?;
        Some(String::from_utf8_lossy(field.get(1..)?).into_owned())
    };
    let text = field(b'M').unwrap_or_else(|| "it refuses without a reason".to_owned());
    // 57P03: cannot_connect_now; 57P01, 57P02: it is going down; 53300: too many connections.
    match field(b'C').as_deref() {
        Some("57P01" | "57P02" | "57P03" | "53300") => Silence::NotNow(text),
        _ => Silence::Refused(text),
    }
}

/// A row: the number of columns, then length and bytes of each.
fn first_column(body: &[u8]) -> Option<PathBuf> {
    let length = i32::from_be_bytes(body.get(2..6)?.try_into().ok()?);
    let end = 6usize.checked_add(usize::try_from(length).ok()?)?;
    let bytes = body.get(6..end)?;
    Some(OsString::from_vec(bytes.to_vec()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_errors_are_read() {
        assert_eq!(first_column(b"\0\x01\0\0\0\x02/d"), Some(PathBuf::from("/d")));
        for bad in [&b""[..], b"\0\x01\0\0\0\x09/d", b"\0\x01\xff\xff\xff\xff"] {
            assert_eq!(first_column(bad), None);
        }
        let text = |body: &[u8]| match refusal(body) {
            Silence::NotNow(text) => format!("later: {text}"),
            other => other.to_string(),
        };
        assert_eq!(text(b"SFATAL\0C57P03\0Mstarting up\0\0"), "later: starting up");
        assert_eq!(text(b"SFATAL\0C28000\0MPeer authentication failed\0\0"), "Peer authentication failed");
        assert_eq!(text(b""), "it refuses without a reason");
    }
}
