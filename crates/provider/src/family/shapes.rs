//! What families share: the plain speaker of the OpenAI dialect, endpoints, and shapes of answers.
//!
//! Not its job: what only one type does. Invariant: a request named here is free of charge and changes nothing.

use serde_json::{Map, Value};

use super::facts::{
    At, Auth, ChatServing, CompletionsRoot, Control, ErrorHabits, Family, HealthProbe, KeyHeader, KeyPlan,
    ListedPrices, Listing, ModelIds, ProofAttempt, ProofRequest, Proofs, Reads,
};
use crate::{Facts, KeyReport, KeyVerdict, Quota, dialect::UpstreamDialect, wire::Method};

pub(super) const fn get(at: At) -> ProofRequest {
    ProofRequest { method: Method::Get, at, body: None }
}

pub(super) const fn post(at: At, body: &'static str) -> ProofRequest {
    ProofRequest { method: Method::Post, at, body: Some(body) }
}

/// The list where most vendors have it.
pub(super) const MODELS: ProofRequest = get(At::Base("/models"));

/// Where most vendors converse.
pub(super) const CHAT: At = At::Base("/chat/completions");

/// Malformed on purpose: no model, no messages.
pub(super) const EMPTY: &str = "{}";
/// Malformed twice: a model that cannot exist, and no message at all.
pub(super) const IMPOSSIBLE: &str =
    r#"{"model":"providerd-proof/no-such-model","max_tokens":1,"messages":[]}"#;

/// Shaped like OpenAI's older keys, which many vendors imitate.
pub(super) const SK_KEY: &str = "sk-providerd0negative0control0not0a0key000000000";

/// A success with this shape proves the key.
pub(super) const fn shaped(at: At, control: Control, shape: fn(&Value) -> Option<KeyReport>) -> ProofAttempt {
    ProofAttempt { ask: get(at), control, reads: Reads::Shape(shape) }
}

/// Asked malformed.
pub(super) const fn differential(at: At, body: &'static str) -> ProofAttempt {
    ProofAttempt { ask: post(at, body), control: Control::Always, reads: Reads::Differential }
}

/// What every speaker of the OpenAI dialect can be asked, cheapest guess first.
pub(crate) const CHAT_PROOFS: &[ProofAttempt] = &[differential(CHAT, EMPTY), differential(CHAT, IMPOSSIBLE)];

/// The list of models, where the vendor is known to keep it from strangers.
pub(super) const BY_LIST: Proofs =
    proofs(KeyPlan::Try(&[shaped(At::Base("/models"), Control::Foreign, has_data)]));

/// The list of models, once it was seen to refuse a fake key.
pub(super) const BY_GUARDED_LIST: Proofs =
    proofs(KeyPlan::Try(&[shaped(At::Base("/models"), Control::Always, has_data)]));

/// One plan for every key.
pub(super) const fn proofs(usual: KeyPlan) -> Proofs {
    Proofs { usual, special: &[], chat_elsewhere: true }
}

/// A probe without peculiarities.
pub(super) const fn probe(ask: ProofRequest) -> HealthProbe {
    HealthProbe { ask, keyless: None, json: true, tolerated: None }
}

/// A list without peculiarities.
pub(super) const fn list(asks: &'static [ProofRequest]) -> Listing {
    Listing {
        asks,
        joined: false,
        unsupported: None,
        offers: |_| true,
        ids: ModelIds::AsListed,
        prices: ListedPrices::Guessed,
    }
}

/// Errors that mean what they mean elsewhere.
pub(super) const PLAIN_ERRORS: ErrorHabits =
    ErrorHabits { reads: |_| None, own_billing: true, forbidden_is_invalid: false };

/// Errors of servers that may be quoting another vendor's billing.
pub(super) const FOREIGN_ERRORS: ErrorHabits = ErrorHabits { own_billing: false, ..PLAIN_ERRORS };

/// Chat completions, and the two older APIs beside them.
pub(super) const SERVES_CHAT: ChatServing = ChatServing {
    dialects: &[("", UpstreamDialect::Chat)],
    apis: &["chat", "completions", "embeddings"],
    root: CompletionsRoot::Base,
    takes: |_, _| {},
};

/// Completions in a protocol of its own, which is translated.
pub(super) const fn serves_own(dialects: &'static [(&'static str, UpstreamDialect)]) -> ChatServing {
    ChatServing { dialects, apis: &[], ..SERVES_CHAT }
}

/// A vendor that speaks OpenAI's dialect and has nothing of its own; what differs is said in the type's file.
pub(super) const OPENAI_SHAPED: Family = Family {
    name: "",
    base_url: None,
    hosts: &[],
    suffixes: &["/v1"],
    regions: &[],
    auth: Auth::by(KeyHeader::Bearer),
    fake_key: "providerd-negative-control-not-a-key",
    probe: probe(MODELS),
    list: list(&[MODELS]),
    proofs: BY_GUARDED_LIST,
    errors: PLAIN_ERRORS,
    serving: SERVES_CHAT,
    retired: None,
};

pub(super) fn valid() -> KeyReport {
    KeyVerdict::Valid.into()
}

/// The key is real and manages things; completions are refused to it.
pub(super) fn cannot_serve(mut report: KeyReport) -> KeyReport {
    report.facts.can_serve = Some(false);
    report
}

/// `{"data":[…]}`, or a bare array, as some imitators answer.
pub(super) fn has_data(json: &Value) -> Option<KeyReport> {
    (json.is_array() || json.get("data").is_some_and(Value::is_array)).then(valid)
}

/// The list of an endpoint for those who manage.
pub(super) fn manages(json: &Value) -> Option<KeyReport> {
    has_data(json).map(cannot_serve)
}

/// A number, or a text that holds one.
pub(crate) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.filter(|number| number.is_finite())
}

/// Valid with a balance; nothing left means that it cannot serve.
pub(super) fn with_balance(remaining: Option<f64>, limit: Option<f64>, unit: &str) -> KeyReport {
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

/// Whether an item's list of this name holds the word; `None` where it has no such list.
pub(super) fn lists(item: &Map<String, Value>, name: &str, word: &str) -> Option<bool> {
    let items = item.get(name)?.as_array()?;
    Some(items.iter().any(|item| item.as_str() == Some(word)))
}
