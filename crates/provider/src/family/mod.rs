//! One table per protocol family: authentication, endpoints, and which answer proves a key.
//!
//! Invariant: a request listed here is free of charge and changes nothing at the provider.

mod accounts;
mod anthropic;
mod azure;
mod cloud;
mod google;
mod local;
mod openai;
mod regional;

use serde_json::Value;

use super::{Facts, KeyReport, KeyVerdict, Quota, wire::Method};
use crate::ProviderType;

/// How a key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Auth {
    None,
    Bearer,
    /// `x-api-key`, or Bearer for OAuth tokens.
    Anthropic,
    /// `x-goog-api-key`; never the query, which ends up in logs.
    Google,
    /// `api-key`, or Bearer for Entra tokens.
    Azure,
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Below the base URL as declared.
    Base(&'static str),
    /// Below what remains of the base URL without the API's own path.
    Root(&'static str),
    /// On another host of the vendor (host, path); with a foreign base, below that base's root.
    Far(&'static str, &'static str),
    /// On the control plane that belongs to a runtime host.
    Control(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub method: Method,
    pub at: At,
    pub body: Option<&'static str>,
}

pub(super) const fn get(at: At) -> Ask {
    Ask { method: Method::Get, at, body: None }
}

pub(super) const fn post(at: At, body: &'static str) -> Ask {
    Ask { method: Method::Post, at, body: Some(body) }
}

/// When an endpoint must first refuse a fake key before a real one's success counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Control {
    /// Only where the base URL is not the vendor's own: a proxy may answer anybody.
    Foreign,
    /// Everywhere: the vendor's own behaviour is not known for certain.
    Always,
}

/// How the real key's answer is read once it is not a plain refusal.
#[derive(Clone, Copy)]
pub(super) enum Reads {
    /// A success with this shape proves the key; `None` means "not the expected shape".
    Shape(fn(&Value) -> Option<KeyReport>),
    /// The request is malformed on purpose: an answer about the request, where a fake key is refused, proves it.
    Differential,
}

/// One way to prove a key.
#[derive(Clone, Copy)]
pub(super) struct Attempt {
    pub ask: Ask,
    pub control: Control,
    pub reads: Reads,
}

pub(super) enum Plan {
    Try(&'static [Attempt]),
    Untestable(&'static str),
}

/// A provider type's facts.
pub(super) struct Spec {
    pub auth: Auth,
    /// The vendor's own hosts; `*.x` matches every name below `x`.
    pub hosts: &'static [&'static str],
    /// Endings of a base path that belong to the API, longest first.
    pub suffixes: &'static [&'static str],
    /// Is the provider there? Free, quick and small.
    pub health: Ask,
    /// Its model list; a later one is asked where an earlier one does not exist.
    pub list: &'static [Ask],
    /// Base URLs of the same vendor among which keys do not travel.
    pub regions: &'static [&'static str],
    /// Shaped like a key, so that it is refused for what it is and not for its looks.
    pub fake_key: &'static str,
}

/// The list where most vendors have it.
const MODELS: Ask = get(At::Base("/models"));

/// Shaped like OpenAI's older keys, which many vendors imitate.
const SK_KEY: &str = "sk-providerd0negative0control0not0a0key000000000";

/// OpenAI's dialect on nobody's host: what a vendor has of its own is said where it differs.
const DIALECT: Spec = Spec {
    auth: Auth::Bearer,
    hosts: &[],
    suffixes: &["/v1"],
    health: MODELS,
    list: &[MODELS],
    regions: &[],
    fake_key: "providerd-negative-control-not-a-key",
};

pub(super) fn spec(kind: ProviderType) -> Spec {
    use ProviderType as P;
    match kind {
        P::Anthropic => anthropic::SPEC,
        P::Google => google::SPEC,
        P::AzureOpenAi => azure::SPEC,
        P::Ollama | P::Vllm | P::LlamaCpp => local::spec(kind),
        P::OpenRouter
        | P::Cohere
        | P::DeepSeek
        | P::Xai
        | P::Fireworks
        | P::HuggingFace
        | P::Replicate
        | P::DeepInfra => accounts::spec(kind),
        P::Moonshot | P::Zhipu | P::Qwen | P::MiniMax => regional::spec(kind),
        P::Bedrock | P::Vertex => cloud::spec(kind),
        P::OpenAi
        | P::OllamaCloud
        | P::Groq
        | P::Together
        | P::Mistral
        | P::Perplexity
        | P::Cerebras
        | P::SambaNova
        | P::NvidiaNim
        | P::GithubModels
        | P::OpenAiCompatible
        | P::Custom => openai::spec(kind),
    }
}

/// The ways to prove this key, in order.
pub(super) fn plan(kind: ProviderType, key: &str) -> Plan {
    use ProviderType as P;
    match kind {
        P::Anthropic => anthropic::plan(key),
        P::Google => Plan::Try(google::PROOF),
        P::AzureOpenAi => Plan::Try(azure::PROOF),
        P::Ollama | P::Vllm | P::LlamaCpp => local::plan(kind),
        P::OpenRouter
        | P::Cohere
        | P::DeepSeek
        | P::Xai
        | P::Fireworks
        | P::HuggingFace
        | P::Replicate
        | P::DeepInfra => accounts::plan(kind),
        P::Moonshot | P::Zhipu | P::Qwen | P::MiniMax => regional::plan(kind, key),
        P::Bedrock | P::Vertex => cloud::plan(kind, key),
        _ => openai::plan(kind, key),
    }
}

/// Whether the base URL may be a gateway that speaks the OpenAI dialect for many vendors.
pub(super) const fn speaks_openai(kind: ProviderType) -> bool {
    use ProviderType as P;
    !matches!(
        kind,
        P::Anthropic
            | P::Google
            | P::AzureOpenAi
            | P::Ollama
            | P::Cohere
            | P::Replicate
            | P::Bedrock
            | P::Vertex
            | P::GithubModels
    )
}

// ---------------------------------------------------------------- shapes shared by families

/// Malformed on purpose: no model, no messages.
pub(super) const EMPTY: &str = "{}";
/// Malformed twice: a model that cannot exist, and no message at all.
pub(super) const IMPOSSIBLE: &str =
    r#"{"model":"providerd-proof/no-such-model","max_tokens":1,"messages":[]}"#;

pub(super) const CHAT: At = At::Base("/chat/completions");

pub(super) const fn differential(at: At, body: &'static str) -> Attempt {
    Attempt { ask: post(at, body), control: Control::Always, reads: Reads::Differential }
}

/// What every speaker of the OpenAI dialect can be asked, cheapest guess first.
pub(super) const CHAT_PROOFS: &[Attempt] = &[differential(CHAT, EMPTY), differential(CHAT, IMPOSSIBLE)];

pub(super) const fn shaped(at: At, control: Control, shape: fn(&Value) -> Option<KeyReport>) -> Attempt {
    Attempt { ask: get(at), control, reads: Reads::Shape(shape) }
}

fn valid() -> KeyReport {
    KeyVerdict::Valid.into()
}

/// `{"data":[…]}`, or a bare array, as some imitators answer.
pub(super) fn has_data(json: &Value) -> Option<KeyReport> {
    (json.is_array() || json.get("data").is_some_and(Value::is_array)).then(valid)
}

/// A number, or a text that holds one.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// Valid with a balance; nothing left means that it cannot serve.
fn with_balance(remaining: Option<f64>, limit: Option<f64>, unit: &str) -> KeyReport {
    let quota = Some(Quota { remaining, limit, unit: unit.chars().take(16).collect() });
    match remaining {
        Some(left) if left <= 0.0 => {
            let mut report =
                KeyReport::new(KeyVerdict::Quota { reason: "no credit is left".into(), proven: true });
            report.facts.quota = quota;
            report
        }
        _ => KeyReport { verdict: KeyVerdict::Valid, facts: Facts { quota, ..Facts::default() } },
    }
}
