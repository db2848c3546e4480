//! OpenRouter: a key describes itself.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, Family, HealthProbe, KeyPlan, ListedPrices, Listing};
use super::shapes::{
    MODELS, OPENAI_SHAPED, SERVES_CHAT, cannot_serve, get, list, number, probe, proofs, shaped, with_balance,
};
use crate::KeyReport;
use crate::dialect::{EffortLevel, ReasoningForm};

pub(super) const FAMILY: Family = Family {
    name: "OpenRouter",
    base_url: Some("https://openrouter.ai/api/v1"),
    hosts: &["openrouter.ai"],
    suffixes: &["/api/v1", "/v1"],
    fake_key: "sk-or-v1-0000000000000000000000000000000000000000000000000000000000000000",
    // The list is public, and larger than what a check reads; without a key only the list answers.
    probe: HealthProbe { keyless: Some(MODELS), ..probe(get(At::Base("/key"))) },
    list: Listing { prices: ListedPrices::PerToken, ..list(&[MODELS]) },
    proofs: proofs(KeyPlan::Try(&[shaped(At::Base("/key"), Control::Foreign, key)])),
    serving: ChatServing {
        takes: |caps, _| {
            caps.reasoning = ReasoningForm::Object;
            caps.efforts = EffortLevel::ALL.to_vec();
            caps.cache_marks = true;
            caps.top_k = true;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn key(json: &Value) -> Option<KeyReport> {
    let data = json.get("data").filter(|data| data.is_object())?;
    if !["label", "usage", "limit", "is_free_tier"].iter().any(|name| data.get(name).is_some()) {
        return None;
    }
    let report =
        with_balance(data.get("limit_remaining").and_then(number), data.get("limit").and_then(number), "USD");
    let manages = ["is_management_key", "is_provisioning_key"]
        .iter()
        .any(|name| data.get(name).and_then(Value::as_bool) == Some(true));
    Some(if manages { cannot_serve(report) } else { report })
}
