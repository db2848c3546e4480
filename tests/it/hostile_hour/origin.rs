//! Origins that know one key each, and look in every request for a key of another.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::support::http::sha256;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// All keys, by the name of the origin that each belongs to, and where one was seen that does not.
#[derive(Clone, Default)]
pub struct Canaries {
    keys: Arc<Mutex<Vec<(String, String)>>>,
    strays: Arc<Mutex<Vec<String>>>,
}

impl Canaries {
    /// The keys that a text contains, plain or in base64, of others than `own`.
    fn strangers(&self, text: &str, own: &str) -> Vec<String> {
        let keys = self.keys.lock().unwrap();
        let others = keys.iter().filter(|(name, _)| name != own);
        others
            .filter(|(_, key)| text.contains(key.as_str()) || text.contains(&STANDARD.encode(key)))
            .map(|(name, _)| name.clone())
            .collect()
    }

    fn look(&self, text: &str, own: &str) {
        for name in self.strangers(text, own) {
            let line = text.lines().next().unwrap_or_default();
            self.strays.lock().unwrap().push(format!("the key of {name} reached {own}: {line}"));
        }
    }

    /// No key was seen where it does not belong, nor stands any in these texts.
    #[track_caller]
    pub fn held(&self, texts: &[&str]) {
        let strays = self.strays.lock().unwrap();
        assert!(strays.is_empty(), "{} strays: {:#?}", strays.len(), &strays[..strays.len().min(5)]);
        for text in texts {
            assert_eq!(self.strangers(text, ""), Vec::<String>::new(), "a text holds keys");
        }
    }
}

/// A provider on a socket of its own, which speaks OpenAI's protocol.
pub struct Origin {
    pub name: String,
    /// How a manifest names its key.
    pub reference: String,
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
}

impl Origin {
    pub async fn start(canaries: &Canaries, name: &str, dir: &Path) -> Self {
        // Not made of the name: a list of models that repeats the key is cut.
        let key = format!("sk-fake-canary-{}", &sha256(name)[..24]);
        canaries.keys.lock().unwrap().push((name.to_owned(), key.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let origin = Self {
            name: name.to_owned(),
            reference: super::key_file(dir, name, &key),
            address: listener.local_addr().unwrap(),
            asked: asked.clone(),
        };
        let (canaries, name) = (canaries.clone(), name.to_owned());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let (canaries, name, key, asked) =
                    (canaries.clone(), name.clone(), key.clone(), asked.clone());
                tokio::spawn(async move { serve(stream, &canaries, &name, &key, &asked).await });
            }
        });
        origin
    }

    pub fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Requests so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// One request, in whole. `None`: the other side hung up, or sends more than any of ours would.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut block = [0; 8192];
    loop {
        let read = stream.read(&mut block).await.ok()?;
        bytes.extend_from_slice(&block[..read]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(": ")?;
                name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
            });
            if body.len() >= length.unwrap_or(0) {
                return Some(text);
            }
        }
        if read == 0 || bytes.len() > 1 << 20 {
            return (!bytes.is_empty()).then_some(text);
        }
    }
}

async fn serve(mut stream: TcpStream, canaries: &Canaries, name: &str, key: &str, asked: &AtomicUsize) {
    let Some(text) = request(&mut stream).await else { return };
    asked.fetch_add(1, Ordering::SeqCst);
    canaries.look(&text, name);
    let (status, body) = if !text.contains(key) {
        (401, json!({ "error": { "message": "Incorrect API key provided", "code": "invalid_api_key" } }))
    } else if text.starts_with("POST ") {
        let choice = json!({ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "Hello" } });
        let usage = json!({ "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7 });
        (
            200,
            json!({ "id": "c1", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage }),
        )
    } else {
        let models = [json!({ "id": format!("{name}-model") }), json!({ "id": format!("{name}-found") })];
        (200, json!({ "object": "list", "data": models }))
    };
    let body = body.to_string();
    let text = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let _ = stream.write_all(text.as_bytes()).await;
}
