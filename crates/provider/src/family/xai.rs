//! xAI: a key describes itself.

use serde_json::Value;

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, KeyPlan, ListedPrices, Listing};
use super::shapes::{MODELS, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, get, list, proofs, shaped, valid};
use crate::{KeyReport, KeyVerdict};

pub(super) const FAMILY: Family = Family {
    name: "xAI",
    base_url: Some("https://api.x.ai/v1"),
    hosts: &["api.x.ai"],
    fake_key: "xai-providerd0negative0control0not0a0key00000000000000000000000000000000000000000000",
    list: Listing {
        // Ten-thousandths of a dollar per million tokens.
        prices: ListedPrices::Fields {
            input: "prompt_text_token_price",
            output: "completion_text_token_price",
            parts: 10_000.0,
        },
        ..list(&[get(At::Base("/language-models")), MODELS])
    },
    proofs: proofs(KeyPlan::Try(&[shaped(At::Base("/api-key"), Control::Foreign, key)])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            403 if said.has("credits or licenses") => said.quota(true),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing {
        takes: |caps, name| {
            caps.strict_tools = false;
            if ["grok-3-mini", "grok-4"].iter().any(|word| name.contains(word)) {
                caps.stop = 0;
                caps.penalties = false;
            }
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn key(json: &Value) -> Option<KeyReport> {
    let flag = |name: &str| json.get(name).map(|value| value.as_bool().unwrap_or(true));
    let (blocked, disabled, team) = (flag("api_key_blocked"), flag("api_key_disabled"), flag("team_blocked"));
    if blocked.is_none() && disabled.is_none() && team.is_none() {
        return None;
    }
    Some(if blocked == Some(true) {
        KeyVerdict::Invalid { reason: "the key is blocked (api_key_blocked)".into() }.into()
    } else if disabled == Some(true) {
        KeyVerdict::Invalid { reason: "the key is disabled (api_key_disabled)".into() }.into()
    } else if team == Some(true) {
        KeyVerdict::Restricted { reason: "the key's team is blocked (team_blocked)".into(), proven: true }
            .into()
    } else {
        valid()
    })
}
