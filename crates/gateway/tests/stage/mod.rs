//! A gateway on a real socket between scripted providers and raw callers.

#![allow(dead_code, reason = "each binary of tests uses its own part")]

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use gateway::accept::{PlainDoor, accept};
use gateway::account::{LedgerEntry, UsageLedger};
use gateway::limit::LeaseWish;
use gateway::meter::Meters;
use gateway::picture::{
    Api, ApiSet, ClocksInput, ConsumerInput, KeyHashInput, OfferInput, Picture, PictureInput, PriceInput,
    UpstreamInput,
};
use gateway::serve::{Gateway, GatewayHooks, GatewaySettings};
use gateway::spool::{SpoolError, UsageAttempt, UsageIntent, UsageRow};
use net::pool::{ByteStream, ConnectError, ConnectPhase, ConnectResult, Connector, PoolOrigin};
use uuid::Uuid;
use zeroize::Zeroizing;

/// The caller's key.
pub const CALLER: &str = "pd_caller_canary_5a1f7c90";

/// The key of a provider.
pub fn key_of(name: &str) -> String {
    format!("canary-key-of-provider-{name}-77c1d2")
}

/// Waits for what must come; the deadline is for a broken program only.
pub async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never: {what}");
}

/// One step of a provider's answer.
#[derive(Clone)]
pub enum Act {
    Say(String),
    Wait(Duration),
    /// Again and again until the other side closes.
    Repeat(String),
    /// Until the test says so.
    Until(watch::Receiver<bool>),
    /// Nothing more, and open.
    Hang,
    Close,
}

pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

#[derive(Default)]
struct Heard {
    requests: Mutex<Vec<String>>,
    closed: AtomicUsize,
}

/// A provider that answers each request by the same script.
pub struct Liar {
    port: u16,
    heard: Arc<Heard>,
    _tasks: JoinSet<()>,
}

impl Liar {
    pub async fn start(script: Vec<Act>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let heard = Arc::new(Heard::default());
        let mut tasks = JoinSet::new();
        let shared = Arc::clone(&heard);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (script, heard) = (script.clone(), Arc::clone(&shared));
                connections.spawn(async move {
                    if talk(socket, &script, &heard).await.is_none() {
                        heard.closed.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Self { port, heard, _tasks: tasks }
    }

    /// Heads and bodies of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.heard.requests.lock().expect("no panic").clone()
    }

    /// Connections that the gateway closed.
    pub fn closed(&self) -> usize {
        self.heard.closed.load(Ordering::SeqCst)
    }
}

/// `None`: the other side closed.
async fn talk(mut socket: TcpStream, script: &[Act], heard: &Heard) -> Option<()> {
    socket.set_nodelay(true).ok()?;
    let mut bytes = Vec::new();
    loop {
        let request = loop {
            if let Some(end) = memchr::memmem::find(&bytes, b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
                let whole = end + 4 + length.parse::<usize>().expect("a number");
                if bytes.len() >= whole {
                    break bytes.drain(..whole).collect::<Vec<u8>>();
                }
            }
            let mut buffer = vec![0; 64 * 1024];
            let n = socket.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
            bytes.extend_from_slice(&buffer[..n]);
        };
        heard.requests.lock().expect("no panic").push(String::from_utf8_lossy(&request).into_owned());
        for act in script {
            match act {
                Act::Say(text) => socket.write_all(text.as_bytes()).await.ok()?,
                Act::Wait(time) => tokio::time::sleep(*time).await,
                Act::Until(said) => {
                    said.clone().wait_for(|said| *said).await.ok()?;
                }
                Act::Repeat(text) => loop {
                    socket.write_all(text.as_bytes()).await.ok()?;
                    tokio::time::sleep(Duration::from_millis(2)).await;
                },
                Act::Hang => {
                    let n = socket.read(&mut [0; 64]).await.ok()?;
                    assert_eq!(n, 0, "nothing is sent within a request");
                    return None;
                }
                Act::Close => return Some(()),
            }
        }
    }
}

/// What a row said.
#[derive(Debug, Clone)]
pub struct Row {
    pub status: u16,
    pub attempts: u8,
    pub error: String,
    pub source: &'static str,
    pub fallback: bool,
    pub model: String,
    pub input: u64,
    pub output: u64,
    pub whole: String,
}

#[derive(Default, Clone)]
struct Rows(Arc<Mutex<Vec<Row>>>);

struct OpenRow(Rows);

impl UsageLedger for Rows {
    fn intent(&self, _: &UsageIntent<'_>) -> Result<Box<dyn LedgerEntry>, SpoolError> {
        Ok(Box::new(OpenRow(self.clone())))
    }
}

impl LedgerEntry for OpenRow {
    fn settled(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        None
    }

    fn attempt(&mut self, _: &UsageAttempt<'_>) -> Result<(), SpoolError> {
        Ok(())
    }

    fn outcome(self: Box<Self>, row: &UsageRow<'_>) -> Result<(), SpoolError> {
        self.0.0.lock().expect("no panic").push(Row {
            status: row.status_code.unwrap_or(0),
            attempts: row.attempts,
            error: row.error.as_str().to_owned(),
            source: row.source.as_str(),
            fallback: row.was_fallback,
            model: row.facts.model.as_str().to_owned(),
            input: row.tokens.input_total(),
            output: row.tokens.output,
            whole: format!("{row:?}"),
        });
        Ok(())
    }
}

struct Dial;

impl Connector for Dial {
    fn connect<'a>(&'a self, origin: &'a PoolOrigin) -> ConnectResult<'a> {
        Box::pin(async move {
            let socket = TcpStream::connect((&*origin.host, origin.port))
                .await
                .map_err(|error| ConnectError { phase: ConnectPhase::Tcp, text: error.to_string() })?;
            let _ = socket.set_nodelay(true);
            Ok(Box::new(socket) as Box<dyn ByteStream>)
        })
    }
}

struct Silent;

impl GatewayHooks for Silent {
    fn look_again(&self, _: Uuid) {}
    fn wish(&self, _: Vec<LeaseWish>) {}
}

/// The gateway under test.
pub struct Stage {
    port: u16,
    gateway: Arc<Gateway>,
    input: PictureInput,
    rows: Rows,
    registry: prometheus::Registry,
    _tasks: JoinSet<()>,
}

impl Stage {
    /// Between these providers, the first preferred, each with a model `m`; short clocks.
    pub async fn start(providers: &[(&str, &Liar)]) -> Self {
        Self::with(providers, |_| {}, |_| {}).await
    }

    pub async fn start_with(providers: &[(&str, &Liar)], edit: impl FnOnce(&mut PictureInput)) -> Self {
        Self::with(providers, edit, |_| {}).await
    }

    pub async fn start_settings(
        providers: &[(&str, &Liar)],
        edit: impl FnOnce(&mut GatewaySettings),
    ) -> Self {
        Self::with(providers, |_| {}, edit).await
    }

    async fn with(
        providers: &[(&str, &Liar)],
        edit: impl FnOnce(&mut PictureInput),
        settle: impl FnOnce(&mut GatewaySettings),
    ) -> Self {
        let clocks = ClocksInput {
            connect: Some(2_000),
            first_token: Some(250),
            idle: Some(200),
            total: Some(3_000),
            total_streaming: Some(1_000),
        };
        let provider = |(at, (name, liar)): (usize, &(&str, &Liar))| UpstreamInput {
            id: Uuid::from_u128(at as u128 + 1),
            name: (*name).into(),
            kind: "openai-compatible".into(),
            base_url: format!("http://127.0.0.1:{}/v1", liar.port),
            key_token: Some((*name).into()),
            apis: [Api::Chat, Api::Embeddings, Api::Responses]
                .into_iter()
                .fold(ApiSet::default(), ApiSet::with),
            clocks,
            priority: 100 - at as i32,
            models: vec![OfferInput {
                id: Uuid::from_u128(at as u128 + 101),
                name: "m".into(),
                prices: PriceInput {
                    input: Some(1_000_000_000),
                    output: Some(2_000_000_000),
                    ..PriceInput::default()
                },
                ..OfferInput::default()
            }],
            ..UpstreamInput::default()
        };
        let hash = Sha256::digest(CALLER).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut input = PictureInput {
            consumers: vec![ConsumerInput {
                name: "web".into(),
                keys: vec![KeyHashInput { sha256: hash, expires: None }],
                ..ConsumerInput::default()
            }],
            providers: providers.iter().enumerate().map(provider).collect(),
            ..PictureInput::default()
        };
        edit(&mut input);
        let mut settings = GatewaySettings::default();
        settle(&mut settings);
        let rows = Rows::default();
        let registry = prometheus::Registry::new();
        let meters = Arc::new(Meters::register(&registry).expect("an empty registry"));
        let gateway = Arc::new(Gateway::new(
            settings,
            Arc::new(Dial),
            Arc::new(rows.clone()),
            Arc::new(Silent),
            meters,
        ));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let mut tasks = JoinSet::new();
        let stop = gateway.stop_signals();
        tasks.spawn(accept(listener, Arc::new(PlainDoor), Arc::clone(&gateway), stop));
        let stage = Self { port, gateway, input, rows, registry, _tasks: tasks };
        stage.reload();
        stage
    }

    pub fn reload(&self) {
        self.publish(&self.input);
    }

    pub fn reload_with(&self, edit: impl FnOnce(&mut PictureInput)) {
        let mut input = self.input.clone();
        edit(&mut input);
        self.publish(&input);
    }

    fn publish(&self, input: &PictureInput) {
        let (picture, problems) =
            Picture::build(input, |name| Some(Zeroizing::new(key_of(name).into_bytes())));
        assert!(problems.is_empty(), "{problems:?}");
        self.gateway.publish(picture);
    }

    pub fn stop(&self) {
        self.gateway.drain();
    }

    /// All metrics as text.
    pub fn metrics(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).expect("text")
    }

    pub fn rows(&self) -> Vec<Row> {
        self.rows.0.lock().expect("no panic").clone()
    }

    pub async fn only_row(&self) -> Row {
        eventually("one row", || !self.rows().is_empty()).await;
        let rows = self.rows();
        assert_eq!(rows.len(), 1, "{rows:?}");
        rows.into_iter().next().expect("one")
    }

    pub async fn send(&self, request: &str) -> Caller {
        let mut socket = TcpStream::connect(("127.0.0.1", self.port)).await.expect("the gateway listens");
        // A body that is refused unread may break the connection while it is sent.
        let _ = socket.write_all(request.as_bytes()).await;
        Caller { socket, bytes: Vec::new() }
    }

    pub async fn ask(&self, request: &str) -> Seen {
        self.send(request).await.answer().await
    }
}

pub fn request(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {CALLER}\r\ncookie: secret-cookie\r\ntraceparent: 00-abc\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nx-api-key: {CALLER}\r\nconnection: close\r\n\r\n")
}

pub fn plain(model: &str) -> String {
    request(
        "/v1/chat/completions",
        &format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]}}"#),
    )
}

pub fn chat(model: &str) -> String {
    let body =
        format!(r#"{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"hi"}}]}}"#);
    request("/v1/chat/completions", &body)
}

/// A caller that has asked.
pub struct Caller {
    socket: TcpStream,
    bytes: Vec<u8>,
}

/// What a caller saw.
#[derive(Debug)]
pub struct Seen {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// The body ended as HTTP says.
    pub whole: bool,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| line.split_once(": ").is_some_and(|(found, _)| found == name);
        self.head.lines().find(|it| line(it)).and_then(|line| line.split_once(": ")).map(|(_, value)| value)
    }
}

impl Caller {
    /// Reads until a text has come.
    pub async fn until(&mut self, text: &str) {
        let mut buffer = vec![0; 64 * 1024];
        while memchr::memmem::find(&self.bytes, text.as_bytes()).is_none() {
            let n = self.socket.read(&mut buffer).await.expect("open");
            assert!(n > 0, "closed before {text}");
            self.bytes.extend_from_slice(&buffer[..n]);
        }
    }

    /// Reads all.
    pub async fn answer(mut self) -> Seen {
        let _ = tokio::time::timeout(Duration::from_secs(20), self.socket.read_to_end(&mut self.bytes))
            .await
            .expect("every answer ends");
        let end = memchr::memmem::find(&self.bytes, b"\r\n\r\n")
            .unwrap_or_else(|| panic!("no head: {}", String::from_utf8_lossy(&self.bytes)));
        let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        let rest = &self.bytes[end + 4..];
        let (body, whole) = if head.contains("transfer-encoding: chunked") {
            dechunked(rest)
        } else {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "))
                .and_then(|n| n.parse().ok());
            (rest.to_vec(), length == Some(rest.len()))
        };
        Seen { status, head, body: String::from_utf8_lossy(&body).into_owned(), whole }
    }
}

fn dechunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(end) = memchr::memmem::find(rest, b"\r\n") else { return (body, false) };
        let length =
            std::str::from_utf8(&rest[..end]).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let Some(length) = length else { return (body, false) };
        if length == 0 {
            return (body, &rest[end..] == b"\r\n\r\n");
        }
        let Some(data) = rest.get(end + 2..end + 2 + length) else { return (body, false) };
        body.extend_from_slice(data);
        rest = &rest[(end + 4 + length).min(rest.len())..];
    }
}
