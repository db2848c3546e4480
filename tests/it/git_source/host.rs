//! A Git host over HTTP on loopback: `git http-backend` behind a token, which can go down, stall or redirect.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// How the host behaves from the next request on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serve,
    /// Closes every connection at once.
    Down,
    /// Sends half of the pack, then nothing.
    Stall,
    /// Sends half of the pack, then closes.
    Break,
    /// Sends everybody elsewhere.
    Redirect,
}

pub struct Host {
    pub port: u16,
    mode: Arc<Mutex<Mode>>,
    /// Requests for a pack that have begun to be answered.
    pub packs: Arc<AtomicUsize>,
}

impl Host {
    /// Serves the repositories below `root` to who knows the token.
    pub fn start(root: &Path, token: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(Mutex::new(Mode::Serve));
        let packs = Arc::new(AtomicUsize::new(0));
        let (root, shared, counted) = (root.to_owned(), mode.clone(), packs.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, mode, packs) = (root.clone(), shared.clone(), counted.clone());
                std::thread::spawn(move || {
                    let mode = *mode.lock().unwrap();
                    let _ = serve(stream, &root, token, mode, &packs);
                });
            }
        });
        Self { port, mode, packs }
    }

    pub fn set(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/bare.git", self.port)
    }

    pub fn packs(&self) -> usize {
        self.packs.load(Ordering::SeqCst)
    }
}

fn serve(
    mut stream: TcpStream,
    root: &PathBuf,
    token: &str,
    mode: Mode,
    packs: &AtomicUsize,
) -> std::io::Result<()> {
    if mode == Mode::Down {
        return stream.shutdown(Shutdown::Both);
    }
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let header = |name: &str| headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str());
    if mode == Mode::Redirect {
        return stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    }
    let expected = format!("Basic {}", base64(&format!("git:{token}")));
    if header("authorization") != Some(&expected) {
        // A host that repeats what it was sent.
        let said = format!("you sent {}\n", header("authorization").unwrap_or("nothing"));
        let head = format!(
            "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=\"git\"\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{said}",
            said.len()
        );
        return stream.write_all(head.as_bytes());
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut body = vec![0; header("content-length").and_then(|it| it.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("REQUEST_METHOD", &method)
        .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding").unwrap_or_default())
        .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    child.stdin.take().unwrap().write_all(&body)?;
    let mut answer = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut answer)?;
    child.wait()?;
    let text = String::from_utf8_lossy(&answer);
    let status =
        text.lines().next().and_then(|it| it.strip_prefix("Status: ")).unwrap_or("200 OK").to_owned();
    let is_pack = answer.windows(4).any(|part| part == b"PACK");
    let sent = match mode {
        Mode::Stall | Mode::Break if is_pack => answer.len() * 3 / 4,
        _ => answer.len(),
    };
    stream.write_all(format!("HTTP/1.1 {status}\r\nConnection: close\r\n").as_bytes())?;
    stream.write_all(&answer[..sent])?;
    stream.flush()?;
    if is_pack {
        packs.fetch_add(1, Ordering::SeqCst);
    }
    if mode == Mode::Stall && is_pack {
        // Until the other side goes.
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let _ = stream.read(&mut [0]);
    }
    stream.shutdown(Shutdown::Both)
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}
