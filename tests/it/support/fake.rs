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
        });
        let fake = Self { address: listener.local_addr().unwrap(), inner: inner.clone() };
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let inner = inner.clone();
                tokio::spawn(async move {
                    let mut head = [0; 8192];
                    let count = stream.read(&mut head).await.unwrap_or(0);
                    let (status, body) = inner.answer(&String::from_utf8_lossy(&head[..count]));
                    if status == 0 {
                        return std::future::pending().await;
                    }
                    let length = body.len();
                    let text = format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
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
        let models: Vec<_> =
            self.models.lock().unwrap().iter().map(|id| serde_json::json!({ "id": id })).collect();
        (200, serde_json::json!({ "object": "list", "data": models }).to_string())
    }
}
