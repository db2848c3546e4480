//! Cohere: a list and a key check of its own, and a compatible surface below a path.

use serde_json::Value;

use super::facts::{
    At, ChatServing, CompletionsRoot, Control, ErrorHabits, Family, KeyPlan, Listing, ProofAttempt, Proofs,
    Reads,
};
use super::shapes::{OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, get, list, lists, post, probe, proofs, valid};
use crate::{KeyReport, KeyVerdict, dialect::UpstreamDialect};

pub(super) const FAMILY: Family = Family {
    name: "Cohere",
    base_url: Some("https://api.cohere.com"),
    hosts: &["api.cohere.com", "api.cohere.ai"],
    suffixes: &["/compatibility/v1", "/v1", "/v2"],
    fake_key: "providerd0negative0control0not0a0key0000",
    probe: probe(get(At::Root("/v1/models?page_size=1"))),
    list: Listing {
        offers: |item| {
            item.get("is_deprecated").and_then(Value::as_bool) != Some(true)
                && lists(item, "endpoints", "chat") != Some(false)
        },
        ..list(&[get(At::Root("/v1/models?endpoint=chat&page_size=1000"))])
    },
    proofs: Proofs {
        chat_elsewhere: false,
        ..proofs(KeyPlan::Try(&[ProofAttempt {
            ask: post(At::Root("/v1/check-api-key"), ""),
            control: Control::Foreign,
            reads: Reads::Shape(check),
        }]))
    },
    errors: ErrorHabits {
        reads: |said| match said.status {
            429 if said.has("month") => said.quota(true),
            498 => said.unclear(),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing {
        dialects: &[("", UpstreamDialect::Cohere)],
        // Its compatible chat leaves out the tool plan, blocks of reasoning and cached tokens: `/v2/chat` says more.
        apis: &["embeddings"],
        root: CompletionsRoot::BelowHost("/compatibility/v1"),
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn check(json: &Value) -> Option<KeyReport> {
    Some(match json.get("valid")?.as_bool()? {
        true => valid(),
        false => KeyVerdict::Invalid { reason: "the key check answered valid = false".into() }.into(),
    })
}
