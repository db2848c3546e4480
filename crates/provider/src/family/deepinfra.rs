//! DeepInfra: the checklist of payment stands behind the key.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, Family, KeyPlan, ProofAttempt, Reads};
use super::shapes::{OPENAI_SHAPED, SERVES_CHAT, SK_KEY, get, number, proofs, valid, with_balance};
use crate::{KeyReport, KeyVerdict};

pub(super) const FAMILY: Family = Family {
    name: "DeepInfra",
    base_url: Some("https://api.deepinfra.com/v1/openai"),
    hosts: &["api.deepinfra.com"],
    suffixes: &["/v1/openai", "/v1"],
    fake_key: SK_KEY,
    // A 403 proves the key here, so that it must be known that a fake key gets something else.
    proofs: proofs(KeyPlan::Try(&[ProofAttempt {
        ask: get(At::Root("/payment/checklist?compute_owed=true")),
        control: Control::Always,
        reads: Reads::ShapeOrScope(checklist),
    }])),
    serving: ChatServing { takes: |caps, _| caps.forced_tools = false, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};

fn checklist(json: &Value) -> Option<KeyReport> {
    if !json.is_object() {
        return None;
    }
    if json.get("suspended").and_then(Value::as_bool) == Some(true) {
        let why = json.get("suspend_reason").and_then(Value::as_str).unwrap_or("no reason given");
        return Some(
            KeyVerdict::Quota { reason: format!("the account is suspended: {why}"), proven: true }.into(),
        );
    }
    // A negative Stripe balance is prepaid credit; 0 may be an account that pays afterwards, so it says nothing.
    let credit = json.get("stripe_balance").and_then(number).map(|balance| -balance);
    Some(match credit {
        Some(credit) if credit > 0.0 => with_balance(Some(credit), None, "USD"),
        _ => valid(),
    })
}
