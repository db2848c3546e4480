//! The made-up providers: servers on loopback that speak the OpenAI dialect.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::{net::TcpListener, time::sleep};

use crate::process::lifecycle::Supervisor;

/// What one of them is like.
#[derive(Debug)]
pub struct FakeFacts {
    pub name: &'static str,
    pub description: &'static str,
    pub model: &'static str,
    pub shown: &'static str,
    /// The variable with its key, and the key that the daemon is given. It opens nothing.
    pub variable: &'static str,
    key: &'static str,
    /// Whether it accepts that key.
    accepts: bool,
    /// Before each answer.
    delay: Duration,
    /// Every so many requests for an answer are refused for overload; 0: none.
    overloaded_every: u64,
    /// USD for 1M tokens.
    pub input_price: &'static str,
    pub output_price: &'static str,
}

const FACTS: [FakeFacts; 3] = [
    FakeFacts {
        name: "demo-fast",
        description: "Answers at once",
        model: "swift-8b",
        shown: "Swift 8B",
        variable: "DEMO_FAST_KEY",
        key: "demo-key-fast",
        accepts: true,
        delay: Duration::from_millis(40),
        overloaded_every: 0,
        input_price: "20.0",
        output_price: "60.0",
    },
    FakeFacts {
        name: "demo-slow",
        description: "Takes a second, and is overloaded at times",
        model: "sage-70b",
        shown: "Sage 70B",
        variable: "DEMO_SLOW_KEY",
        key: "demo-key-slow",
        accepts: true,
        delay: Duration::from_millis(1100),
        overloaded_every: 4,
        input_price: "100.0",
        output_price: "400.0",
    },
    FakeFacts {
        name: "demo-locked",
        description: "Refuses its key",
        model: "vault-30b",
        shown: "Vault 30B",
        variable: "DEMO_LOCKED_KEY",
        key: "demo-key-locked",
        accepts: false,
        delay: Duration::from_millis(30),
        overloaded_every: 0,
        input_price: "50.0",
        output_price: "150.0",
    },
];

/// What it says, word by word.
const WORDS: [&str; 12] =
    ["This", " answer", " is", " made", " up", ":", " no", " model", " was", " asked", " for", " it."];
/// Between two words of a stream.
const WORD_EVERY: Duration = Duration::from_millis(15);

/// One that serves.
pub struct FakeServer {
    pub facts: &'static FakeFacts,
    pub address: SocketAddr,
}

/// All of them.
pub struct FakeProviders(Vec<FakeServer>);

#[derive(Clone)]
struct FakeState {
    facts: &'static FakeFacts,
    asked: Arc<AtomicU64>,
}

impl FakeProviders {
    /// Serves until the supervisor stops.
    ///
    /// # Errors
    /// No port is free on loopback.
    pub async fn start(supervisor: &Supervisor) -> anyhow::Result<Self> {
        let mut all = Vec::new();
        for facts in &FACTS {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            let address = listener.local_addr()?;
            let state = FakeState { facts, asked: Arc::default() };
            let router = Router::new()
                .route("/v1/models", get(models))
                .route("/v1/chat/completions", post(chat))
                .with_state(state);
            let stop = supervisor.token();
            supervisor.spawn(facts.name, async move {
                // Requests under way end with the demo.
                let served = stop.run_until_cancelled(axum::serve(listener, router).into_future()).await;
                served.unwrap_or(Ok(()))
            });
            all.push(FakeServer { facts, address });
        }
        Ok(Self(all))
    }

    pub fn all(&self) -> &[FakeServer] {
        &self.0
    }

    /// Variables with keys, as the daemon gets them.
    pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
        FACTS.iter().map(|facts| (facts.variable, facts.key))
    }
}

impl FakeState {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        self.facts.accepts && given.and_then(|it| it.strip_prefix("Bearer ")) == Some(self.facts.key)
    }
}

fn refuse(status: StatusCode, code: &str, message: &str) -> Response {
    let error = json!({ "error": { "message": message, "type": "invalid_request_error", "param": null, "code": code } });
    (status, Json(error)).into_response()
}

async fn models(State(state): State<FakeState>, headers: HeaderMap) -> Response {
    sleep(state.facts.delay).await;
    if !state.admits(&headers) {
        return refuse(StatusCode::UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided");
    }
    let model =
        json!({ "id": state.facts.model, "object": "model", "created": 1_700_000_000, "owned_by": "demo" });
    Json(json!({ "object": "list", "data": [model] })).into_response()
}

async fn chat(State(state): State<FakeState>, headers: HeaderMap, Json(asked): Json<Value>) -> Response {
    if !state.admits(&headers) {
        sleep(state.facts.delay).await;
        return refuse(StatusCode::UNAUTHORIZED, "invalid_api_key", "Incorrect API key provided");
    }
    let number = state.asked.fetch_add(1, Ordering::Relaxed) + 1;
    if state.facts.overloaded_every > 0 && number.is_multiple_of(state.facts.overloaded_every) {
        return refuse(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "The model is overloaded");
    }
    sleep(state.facts.delay).await;
    let id = format!("chatcmpl-demo-{number}");
    // About a token for four bytes of what was asked.
    let prompt = asked["messages"].to_string().len() / 4 + 1;
    let usage = json!({ "prompt_tokens": prompt, "completion_tokens": WORDS.len(),
        "total_tokens": prompt + WORDS.len() });
    if asked["stream"] != true {
        let choice = json!({ "index": 0, "finish_reason": "stop",
            "message": { "role": "assistant", "content": WORDS.concat() } });
        return Json(json!({ "id": id, "object": "chat.completion", "created": 1_700_000_000,
            "model": state.facts.model, "choices": [choice], "usage": usage }))
        .into_response();
    }
    let chunk = |choices: Value, usage: Option<&Value>| {
        let mut chunk = json!({ "id": id, "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": state.facts.model, "choices": choices });
        if let Some(usage) = usage {
            chunk["usage"] = usage.clone();
        }
        format!("data: {chunk}\n\n")
    };
    let delta =
        |delta: Value, finish: Value| json!([{ "index": 0, "delta": delta, "finish_reason": finish }]);
    let mut events = vec![chunk(delta(json!({ "role": "assistant", "content": "" }), Value::Null), None)];
    events.extend(WORDS.iter().map(|word| chunk(delta(json!({ "content": word }), Value::Null), None)));
    events.push(chunk(delta(json!({}), "stop".into()), None));
    if asked["stream_options"]["include_usage"] == true {
        events.push(chunk(json!([]), Some(&usage)));
    }
    events.push("data: [DONE]\n\n".to_owned());
    let body = stream::unfold(events.into_iter(), |mut rest| async move {
        let event = rest.next()?;
        sleep(WORD_EVERY).await;
        Some((Ok::<_, Infallible>(Bytes::from(event)), rest))
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(body)).into_response()
}
