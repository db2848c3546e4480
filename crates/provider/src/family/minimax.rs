//! MiniMax: separate worlds inside and outside China; native endpoints say in the body whether it went well.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, KeyPlan, Proofs};
use super::shapes::{BY_GUARDED_LIST, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, number, shaped, valid};
use crate::{KeyReport, KeyVerdict, read::Complaint};

pub(super) const FAMILY: Family = Family {
    name: "MiniMax",
    base_url: Some("https://api.minimax.io/v1"),
    hosts: &["api.minimax.io", "api.minimaxi.com"],
    suffixes: &["/anthropic/v1", "/anthropic", "/v1"],
    regions: &["https://api.minimax.io/v1", "https://api.minimaxi.com/v1"],
    fake_key: "sk-api-providerd0negative0control0not0a0key000000000",
    proofs: Proofs {
        // Keys of a plan.
        special: &[(
            &["sk-cp-"],
            KeyPlan::Try(&[shaped(At::Root("/v1/token_plan/remains"), Control::Always, base_ok)]),
        )],
        ..BY_GUARDED_LIST
    },
    errors: ErrorHabits { reads: errors, ..PLAIN_ERRORS },
    serving: ChatServing { takes: |caps, _| caps.cache_marks = true, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};

fn base_ok(json: &Value) -> Option<KeyReport> {
    let code = json.get("base_resp")?.get("status_code").and_then(number)?;
    (code == 0.0).then(valid)
}

/// The number stands in `base_resp`, or in brackets at the end of a compatible surface's message.
fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    let code = |code: &str| said.has_code(&[code]) || said.has(&format!("({code})"));
    if code("1008") {
        said.quota(true)
    } else if code("1004") || code("2049") || said.has_code(&["authorized_error"]) {
        said.invalid()
    } else if code("1002") {
        said.rate(false)
    } else {
        None
    }
}
