//! Providers on real sockets, whose behaviour a test turns at will.
#![allow(clippy::disallowed_methods, reason = "a fake provider serves in tasks of its own")]

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// Clearly no real keys.
pub const KEY: &str = "sk-fake-key-for-tests-0123456789abcdef";
pub const OTHER_KEY: &str = "sk-fake-key-for-tests-fedcba9876543210";

/// Speaks the OpenAI protocol: a guarded list of models.
#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    /// 200 answers properly, 0 hangs, anything else is the status of every answer.
    status: AtomicU16,
    keys: Mutex<HashSet<String>>,
    models: Mutex<Vec<String>>,
    seen: AtomicUsize,
    /// Requests for completions, whole.
    asked: Mutex<Vec<String>>,
    /// What completions are refused with, by turns; none: they are answered.
    refusals: Mutex<Vec<(u16, &'static str)>>,
}

/// A request with as much of its body as its head says.
async fn whole_request(stream: &mut tokio::net::TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let count = stream.read(&mut chunk).await.unwrap_or(0);
        bytes.extend_from_slice(&chunk[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = text.split_once("\r\n\r\n").is_none_or(|(head, body)| {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
            });
            body.len() >= length.unwrap_or(0)
        });
        if count == 0 || (whole && text.contains("\r\n\r\n")) {
            return text;
        }
    }
}

/// "Hello", of 5 tokens of input and 2 of output, plain or as a stream.
fn completion(asked: &serde_json::Value) -> String {
    let model = &asked["model"];
    let usage = serde_json::json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7 });
    if asked["stream"] != true {
        let choice = serde_json::json!({
            "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "Hello" },
        });
        return serde_json::json!({ "id": "c1", "object": "chat.completion", "model": model, "choices": [choice],
            "usage": usage })
        .to_string();
    }
    let chunk = |delta: serde_json::Value, finish: Option<&str>| {
        let choice = serde_json::json!({ "index": 0, "delta": delta, "finish_reason": finish });
        let chunk = serde_json::json!({ "id": "c1", "object": "chat.completion.chunk", "model": model,
            "choices": [choice] });
        format!("data: {chunk}\n\n")
    };
    let mut text = chunk(serde_json::json!({ "role": "assistant", "content": "" }), None);
    text += &chunk(serde_json::json!({ "content": "Hel" }), None);
    text += &chunk(serde_json::json!({ "content": "lo" }), None);
    text += &chunk(serde_json::json!({}), Some("stop"));
    if asked["stream_options"]["include_usage"] == true {
        let last = serde_json::json!({ "id": "c1", "object": "chat.completion.chunk", "model": model, "choices": [],
            "usage": usage });
        text += &format!("data: {last}\n\n");
    }
    text + "data: [DONE]\n\n"
}

impl Fake {
    /// A provider that works and knows [`KEY`].
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inner = Arc::new(Inner {
            status: AtomicU16::new(200),
            keys: Mutex::new(HashSet::from([KEY.to_owned()])),
            models: Mutex::new(vec!["model-a".to_owned(), "model-b".to_owned()]),
            seen: AtomicUsize::new(0),
            asked: Mutex::default(),
            refusals: Mutex::default(),
        });
        let fake = Self { address: listener.local_addr().unwrap(), inner: inner.clone() };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let inner = inner.clone();
                tokio::spawn(async move {
                    let request = whole_request(&mut stream).await;
                    let (status, body) = inner.answer(&request);
                    if status == 0 {
                        return std::future::pending().await;
                    }
                    let length = body.len();
                    let kind =
                        if body.starts_with("data: ") { "text/event-stream" } else { "application/json" };
                    let text = format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\
                         Connection: close\r\n\r\n{body}"
                    );
                    let _ = stream.write_all(text.as_bytes()).await;
                });
            }
        });
        fake
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub fn set_status(&self, status: u16) {
        self.inner.status.store(status, Ordering::Relaxed);
    }

    /// The provider forgets all keys but these.
    pub fn set_keys(&self, keys: &[&str]) {
        *self.inner.keys.lock().unwrap() = keys.iter().map(ToString::to_string).collect();
    }

    /// Completions alone are refused with these, by turns.
    pub fn refuse_completions(&self, refusals: &[(u16, &'static str)]) {
        *self.inner.refusals.lock().unwrap() = refusals.to_vec();
    }

    /// Requests for completions so far, whole.
    pub fn asked(&self) -> Vec<String> {
        self.inner.asked.lock().unwrap().clone()
    }

    /// Requests so far.
    pub fn seen(&self) -> usize {
        self.inner.seen.load(Ordering::Relaxed)
    }

    /// A manifest of one provider of type `openai` that is this one.
    pub fn manifest(&self, name: &str, key: &str, more: &str) -> String {
        format!(
            "[providers.{name}]\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = {key}\n{more}\n\
             [[providers.{name}.models]]\nname = \"model-a\"\n",
            self.base_url()
        )
    }
}

impl Inner {
    fn answer(&self, request: &str) -> (u16, String) {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let status = self.status.load(Ordering::Relaxed);
        if status != 200 {
            return (status, r#"{"error":{"message":"something is wrong here"}}"#.to_owned());
        }
        let key = request
            .lines()
            .find_map(|line| line.to_ascii_lowercase().starts_with("authorization:").then(|| line.trim()))
            .and_then(|line| line.rsplit_once(' '))
            .map(|(_, key)| key.to_owned());
        let known = key.is_some_and(|key| self.keys.lock().unwrap().contains(&key));
        if !known {
            return (
                401,
                r#"{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}"#.to_owned(),
            );
        }
        if request.starts_with("POST ") && request.contains("/chat/completions ") {
            let (_, body) = request.split_once("\r\n\r\n").unwrap();
            let asked: serde_json::Value = serde_json::from_str(body).unwrap();
            let count = {
                let mut asked = self.asked.lock().unwrap();
                asked.push(request.to_owned());
                asked.len()
            };
            let refusals = self.refusals.lock().unwrap();
            if let Some((status, body)) = refusals.get(count % refusals.len().max(1)) {
                return (*status, (*body).to_owned());
            }
            return (200, completion(&asked));
        }
        let models: Vec<_> =
            self.models.lock().unwrap().iter().map(|id| serde_json::json!({ "id": id })).collect();
        (200, serde_json::json!({ "object": "list", "data": models }).to_string())
    }
}
