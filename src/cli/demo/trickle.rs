//! A trickle of requests through the gateway of a demo, one after the other, each printed with who answered it.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use net::{
    NetConfig, PhaseLimits,
    egress::EgressPolicy,
    probe::{ProbeReply, Prober},
};
use provider::{Header, Method, Request, Value};
use serde_json::json;
use tokio::time::sleep;
use url::Url;

use super::DemoScene;
use crate::cli::output;

/// Between two requests: enough to read, and to fill a graph.
const PAUSE: Duration = Duration::from_millis(700);
/// Bytes of an answer that are read.
const MAX_BODY: usize = 64 * 1024;
/// An answer takes a second or two.
const PATIENCE: PhaseLimits = PhaseLimits {
    dns: Duration::from_secs(1),
    connect: Duration::from_secs(2),
    total: Duration::from_secs(30),
};

/// What the trickle asks for, again and again: model, user, tier, streaming, whether the batch consumer asks.
const ASKS: [(&str, &str, &str, bool, bool); 8] = [
    ("eco", "ada", "free", false, false),
    ("balanced", "ben", "pro", false, false),
    ("fast", "ada", "free", true, false),
    ("precision", "cleo", "pro", false, false),
    ("balanced", "ada", "free", true, false),
    ("demo-fast/swift-8b", "ben", "pro", false, false),
    ("eco", "night-job", "free", false, true),
    ("precision", "ben", "pro", true, false),
];

const QUESTIONS: [&str; 4] = [
    "What is a reconcile loop?",
    "Summarize the minutes of the last meeting in three sentences, and list who promised what by when.",
    "Translate `good morning` into Latin.",
    "Why is the sky blue? Explain it to a child of eight, then to a physicist, and compare both explanations.",
];

/// Asks.
pub struct RequestTrickle {
    client: Prober,
    ready: Url,
    models: Url,
    chat: Url,
    app_key: String,
    batch_key: String,
}

impl RequestTrickle {
    pub fn new(scene: &DemoScene) -> anyhow::Result<Self> {
        let egress = EgressPolicy { allow_private: true, allow_loopback: true };
        let url = |address, path: &str| {
            Url::parse(&format!("http://{address}{path}")).context("the demo's own address is not valid")
        };
        Ok(Self {
            client: Prober::new(NetConfig { egress, ..NetConfig::default() })?,
            ready: url(scene.dashboard, "/readyz")?,
            models: url(scene.gateway, "/v1/models")?,
            chat: url(scene.gateway, "/v1/chat/completions")?,
            app_key: format!("Bearer {}", scene.app_key.expose()),
            batch_key: format!("Bearer {}", scene.batch_key.expose()),
        })
    }

    /// Whether the daemon is ready, and the gateway knows the demo's consumer.
    pub async fn is_ready(&self) -> bool {
        let authorization = ("authorization", Value::Secret(self.app_key.clone().into()));
        for (url, headers) in [(&self.ready, Vec::new()), (&self.models, vec![authorization])] {
            let request =
                Request { method: Method::Get, url: url.clone(), headers, body: None, max_body: MAX_BODY };
            match self.client.send(&request, PATIENCE).await {
                Ok(answer) if answer.status == 200 => {}
                _ => return false,
            }
        }
        true
    }

    /// Asks until it is dropped.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub async fn run(&self, quiet: bool) -> anyhow::Result<()> {
        for (at, (ask, question)) in ASKS.iter().cycle().zip(QUESTIONS.iter().cycle()).enumerate() {
            let (model, user, tier, stream, batch) = *ask;
            let began = Instant::now();
            let answer = self.ask(model, question, user, tier, stream, batch).await;
            if !quiet {
                let took = began.elapsed().as_millis();
                let who = if batch { "demo-batch" } else { "demo-app" };
                let kind = if stream { "stream" } else { "plain" };
                let end = match &answer {
                    Ok(answer) => answered_by(answer),
                    Err(error) => error.to_string(),
                };
                output::line(&format!(
                    "{:>4}  {who:<10}  {model:<18}  {kind:<6}  {took:>5} ms  {end}",
                    at + 1
                ))?;
            }
            sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn ask(
        &self,
        model: &str,
        question: &str,
        user: &str,
        tier: &str,
        stream: bool,
        batch: bool,
    ) -> Result<ProbeReply, net::ProbeError> {
        let body = json!({ "model": model, "stream": stream, "max_tokens": 100,
            "messages": [{ "role": "user", "content": question }] });
        let key = if batch { &self.batch_key } else { &self.app_key };
        let mut headers: Vec<Header> = vec![
            ("content-type", Value::Plain("application/json".into())),
            ("authorization", Value::Secret(key.clone().into())),
        ];
        // Only a trusted consumer may say whose request it is.
        if !batch {
            headers.push(("x-user-id", Value::Plain(user.into())));
            headers.push(("x-user-tier", Value::Plain(tier.into())));
        }
        let request = Request {
            method: Method::Post,
            url: self.chat.clone(),
            headers,
            body: Some(body.to_string()),
            max_body: MAX_BODY,
        };
        self.client.send(&request, PATIENCE).await
    }
}

/// Who answered, and after how many attempts.
fn answered_by(answer: &ProbeReply) -> String {
    let header = |name: &str| {
        answer.headers.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str())
    };
    if answer.status != 200 {
        return format!("{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    let model = header("x-providerd-model");
    match header("x-providerd-attempts").parse::<u32>() {
        Ok(attempts @ 2..) => format!("{model}, by fallback after {} failed", attempts - 1),
        _ => model.to_owned(),
    }
}
