//! DeepSeek: the balance stands behind the key.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, Family, KeyPlan};
use super::shapes::{OPENAI_SHAPED, SERVES_CHAT, SK_KEY, number, proofs, shaped, valid, with_balance};
use crate::dialect::{ReasoningForm, ReasoningReplay, StructuredForm};
use crate::{KeyReport, KeyVerdict};

pub(super) const FAMILY: Family = Family {
    name: "DeepSeek",
    base_url: Some("https://api.deepseek.com"),
    hosts: &["api.deepseek.com"],
    suffixes: &["/v1", "/beta"],
    fake_key: SK_KEY,
    proofs: proofs(KeyPlan::Try(&[shaped(At::Root("/user/balance"), Control::Foreign, balance)])),
    serving: ChatServing {
        takes: |caps, _| {
            caps.reasoning = ReasoningForm::Switch;
            caps.replay = ReasoningReplay::Text;
            caps.plain_content = true;
            caps.images = false;
            caps.documents = false;
            caps.structured = StructuredForm::Json;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn balance(json: &Value) -> Option<KeyReport> {
    let available = json.get("is_available")?.as_bool()?;
    let info = json.get("balance_infos").and_then(|infos| infos.get(0));
    let total = info.and_then(|info| info.get("total_balance")).and_then(number);
    let unit = info.and_then(|info| info.get("currency")).and_then(Value::as_str).unwrap_or("balance");
    if !available {
        let mut report = KeyReport::new(KeyVerdict::Quota {
            reason: "the balance does not suffice for calls".into(),
            proven: true,
        });
        report.facts.quota = with_balance(total, None, unit).facts.quota;
        return Some(report);
    }
    // `is_available` decides: a balance can read 0 while granted credit still serves.
    let mut report = valid();
    report.facts.quota = with_balance(total, None, unit).facts.quota;
    Some(report)
}
