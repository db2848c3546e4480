//! A small HTTP client over plain sockets: it sends what a test says and shows what came back, byte for byte.

use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::lab::{Daemon, Lab, PATIENCE};

/// Clearly no real token.
pub const TOKEN: &str = "fake-admin-token-for-tests-0001";

pub fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where a daemon serves.
#[derive(Debug, Clone)]
pub struct Api {
    pub address: String,
    pub token: Option<String>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Everything as it was on the wire.
    pub raw: Vec<u8>,
}

impl Answer {
    pub fn parse(raw: Vec<u8>) -> Option<Self> {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(raw[..end].to_vec()).ok()?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
        let body = raw[end + 4..].to_vec();
        Some(Self { status, headers, body, raw })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in:\n{}", String::from_utf8_lossy(&self.raw)))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.raw));
        self
    }

    /// The word of a failure.
    #[track_caller]
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().expect("a code").to_owned()
    }
}

impl Api {
    /// A daemon that accepts [`TOKEN`], started and ready.
    pub async fn start(lab: &Lab) -> (Daemon, Self) {
        Self::start_with(lab, |_| {}).await
    }

    pub async fn start_with(lab: &Lab, adjust: impl FnOnce(&mut std::process::Command)) -> (Daemon, Self) {
        let mut daemon = lab.daemon_with(|command| {
            command.env("PROVIDERD_SERVER__TOKEN_SHA256", sha256(TOKEN));
            // What checks find depends on the machine; tests about them turn them on again.
            command.env("PROVIDERD_HEALTH__ENABLED", "false");
            adjust(command);
        });
        daemon.wait_ready().await;
        let api = Self { address: address(&daemon), token: Some(TOKEN.to_owned()) };
        (daemon, api)
    }

    pub fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }

    /// The text of a request.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            text += &format!("Host: {}\r\n", self.address);
        }
        if let Some(token) = &self.token {
            text += &format!("Authorization: Bearer {token}\r\n");
        }
        if !body.is_empty() || method == "POST" {
            text += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("connection")) {
            text += "Connection: close\r\n";
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }

    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        exchange(self.connect().await, &self.request(method, path, headers, body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        let text = body.to_string();
        self.send("POST", path, &[("Content-Type", "application/json")], text.as_bytes()).await
    }

    /// Asks until the answer is as wanted.
    pub async fn wait_for(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let answer = self.get(path).await;
            if answer.status == 200 {
                let json = answer.json();
                if wanted(&json) {
                    return json;
                }
            }
            assert!(started.elapsed() < PATIENCE, "{path}: {}", String::from_utf8_lossy(&answer.raw));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Where a daemon says it listens.
pub fn address(daemon: &Daemon) -> String {
    let log = daemon.log();
    let started = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut listens = started.filter_map(|line| {
        let place = line.get("listen").or_else(|| line.get("fields")?.get("listen"))?;
        Some(place.as_str()?.to_owned())
    });
    listens.next().unwrap_or_else(|| panic!("no address in:\n{log}"))
}

/// Sends one request and reads to the end of the connection.
pub async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &[u8]) -> Answer {
    // A server that answers before it has read everything may close first.
    let _ = stream.write_all(request).await;
    let mut raw = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut raw)).await.expect("an answer in time");
    match Answer::parse(raw) {
        Some(answer) => answer,
        None => panic!("no answer to {}: {read:?}", String::from_utf8_lossy(request)),
    }
}
