//! A provider over a real socket whose list of models a test sets, and that remembers what it was asked.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// What stands at a path (with its query).
#[derive(Debug, Clone)]
pub struct Page {
    pub status: u16,
    /// Complete header lines.
    pub headers: String,
    pub body: Vec<u8>,
}

/// A list that can be changed while it is served.
#[derive(Clone)]
pub struct Offering {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    pages: BTreeMap<String, Page>,
    /// Answer for paths that have none.
    fallback: Option<Page>,
    heard: Vec<String>,
    connections: usize,
}

impl Offering {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let offering = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        let state = offering.state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                state.lock().unwrap().connections += 1;
                tokio::spawn(serve(stream, state.clone()));
            }
        });
        offering
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Serves `body` at one path.
    pub fn page(&self, path: &str, status: u16, body: impl Into<Vec<u8>>) {
        let page = Page { status, headers: String::new(), body: body.into() };
        self.state.lock().unwrap().pages.insert(path.to_owned(), page);
    }

    /// Serves `page` wherever nothing else stands.
    pub fn anywhere(&self, status: u16, headers: &str, body: impl Into<Vec<u8>>) {
        let page = Page { status, headers: headers.to_owned(), body: body.into() };
        self.state.lock().unwrap().fallback = Some(page);
    }

    /// An OpenAI-style list of these names, wherever it is looked for.
    pub fn offers<T: AsRef<str>>(&self, names: &[T]) {
        let data: Vec<_> = names.iter().map(|name| serde_json::json!({ "id": name.as_ref() })).collect();
        self.anywhere(200, "", serde_json::json!({ "object": "list", "data": data }).to_string());
    }

    /// The heads of all requests so far.
    pub fn heard(&self) -> Vec<String> {
        self.state.lock().unwrap().heard.clone()
    }

    pub fn connections(&self) -> usize {
        self.state.lock().unwrap().connections
    }
}

/// Any number of requests of one connection.
async fn serve(mut stream: TcpStream, state: Arc<Mutex<State>>) {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    loop {
        let end = loop {
            if let Some(end) = said.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(count) => said.extend_from_slice(&part[..count]),
            }
        };
        let head = String::from_utf8_lossy(&said[..end]).into_owned();
        said.drain(..end);
        let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
        let page = {
            let mut state = state.lock().unwrap();
            state.heard.push(head);
            state.pages.get(&path).or(state.fallback.as_ref()).cloned()
        };
        let page = page.unwrap_or(Page {
            status: 404,
            headers: String::new(),
            body: br#"{"error":{"message":"not found"}}"#.to_vec(),
        });
        let head = format!(
            "HTTP/1.1 {} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n",
            page.status,
            page.body.len(),
            page.headers
        );
        if stream.write_all(head.as_bytes()).await.is_err() || stream.write_all(&page.body).await.is_err() {
            return;
        }
    }
}
