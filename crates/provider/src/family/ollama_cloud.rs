//! Ollama's hosted service.

use super::facts::{At, ChatServing, ErrorHabits, Family, KeyPlan};
use super::shapes::{CHAT, EMPTY, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, differential, proofs};

pub(super) const FAMILY: Family = Family {
    name: "Ollama Cloud",
    base_url: Some("https://ollama.com/v1"),
    hosts: &["ollama.com"],
    fake_key: "00000000000000000000000000000000.providerd0not0a0key0000",
    // The list is public: the search endpoint refuses an empty query, but only after the key.
    proofs: proofs(KeyPlan::Try(&[
        differential(CHAT, EMPTY),
        differential(At::Root("/api/web_search"), r#"{"query":""}"#),
    ])),
    errors: ErrorHabits {
        reads: |said| match said.status {
            403 if said.has("subscription") => said.restricted(true),
            _ => None,
        },
        forbidden_is_invalid: true,
        ..PLAIN_ERRORS
    },
    serving: ChatServing {
        takes: |caps, _| {
            caps.tool_choice = false;
            caps.forced_tools = false;
            caps.image_urls = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};
