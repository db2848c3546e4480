//! Fireworks: accounts are listed by the key that they own.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, HealthProbe, KeyPlan};
use super::shapes::{MODELS, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, probe, proofs, shaped, valid};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "Fireworks AI",
    base_url: Some("https://api.fireworks.ai/inference/v1"),
    hosts: &["api.fireworks.ai"],
    suffixes: &["/inference/v1", "/v1"],
    fake_key: "fw_providerd0not0a0key00000",
    // With valid accounts that have no deployment, its list fails like this.
    probe: HealthProbe { tolerated: Some((500, "error listing deployed models")), ..probe(MODELS) },
    proofs: proofs(KeyPlan::Try(&[shaped(At::Root("/v1/accounts"), Control::Foreign, accounts)])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            _ if said.has("fire pass api keys") => said.valid(),
            412 => said.quota(true),
            _ => None,
        },
        forbidden_is_invalid: true,
        ..PLAIN_ERRORS
    },
    serving: ChatServing { takes: |caps, _| caps.top_k = true, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};

fn accounts(json: &Value) -> Option<KeyReport> {
    json.get("accounts").is_some_and(Value::is_array).then(valid)
}
