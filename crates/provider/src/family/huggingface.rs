//! Hugging Face's router to inference providers: the account endpoint stands on another host.

use serde_json::Value;

use super::facts::{At, Control, Family, KeyPlan, ListedPrices, Listing};
use super::shapes::{
    CHAT, EMPTY, MODELS, OPENAI_SHAPED, cannot_serve, list, post, probe, proofs, shaped, valid,
};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "Hugging Face",
    base_url: Some("https://router.huggingface.co/v1"),
    hosts: &["router.huggingface.co"],
    fake_key: "hf_providerd0negative0control0not0a0k",
    // The router's list is large, and the account endpoint stands on another host.
    probe: probe(post(CHAT, EMPTY)),
    list: Listing { prices: ListedPrices::PerMillion, ..list(&[MODELS]) },
    proofs: proofs(KeyPlan::Try(&[shaped(
        At::Far("huggingface.co", "/api/whoami-v2"),
        Control::Foreign,
        account,
    )])),
    ..OPENAI_SHAPED
};

fn account(json: &Value) -> Option<KeyReport> {
    json.get("name").or_else(|| json.get("auth")).or_else(|| json.get("id"))?;
    let token = json.get("auth").and_then(|auth| auth.get("accessToken"));
    let fine = token.and_then(|token| token.get("fineGrained"));
    let lacks_inference = token.and_then(|token| token.get("role")).and_then(Value::as_str)
        == Some("fineGrained")
        && fine.is_some_and(|fine| !mentions(fine, "inference.serverless.write", 0));
    Some(if lacks_inference { cannot_serve(valid()) } else { valid() })
}

/// Whether a text stands anywhere in a value; bounded, since the value comes from outside.
fn mentions(value: &Value, text: &str, depth: u8) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(items) if depth < 8 => items.iter().any(|item| mentions(item, text, depth + 1)),
        Value::Object(fields) if depth < 8 => fields.values().any(|item| mentions(item, text, depth + 1)),
        _ => false,
    }
}
