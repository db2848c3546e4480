//! Moonshot: separate worlds inside and outside China; a key of one is unknown in the other.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, KeyPlan};
use super::shapes::{OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, SK_KEY, number, proofs, shaped, with_balance};
use crate::KeyReport;
use crate::dialect::{ReasoningForm, ReasoningReplay};

pub(super) const FAMILY: Family = Family {
    name: "Moonshot",
    base_url: Some("https://api.moonshot.ai/v1"),
    hosts: &["api.moonshot.ai", "api.moonshot.cn"],
    regions: &["https://api.moonshot.ai/v1", "https://api.moonshot.cn/v1"],
    fake_key: SK_KEY,
    proofs: proofs(KeyPlan::Try(&[shaped(At::Base("/users/me/balance"), Control::Foreign, balance)])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            // Said to mean billing, but not seen: no proof of the key.
            _ if said.has("exceeded_current_quota_error") => said.quota(false),
            404 if said.has("resource_not_found_error") || said.has("not found the model") => said.valid(),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing {
        takes: |caps, _| {
            caps.reasoning = ReasoningForm::Switch;
            caps.replay = ReasoningReplay::Text;
            caps.temperature_max = 1.0;
            caps.forced_tools = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn balance(json: &Value) -> Option<KeyReport> {
    let data = json.get("data").filter(|data| data.is_object())?;
    if json.get("code").and_then(number).is_some_and(|code| code != 0.0) {
        return None;
    }
    Some(with_balance(Some(data.get("available_balance").and_then(number)?), None, "balance"))
}
