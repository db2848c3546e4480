//! llama.cpp's server.

use serde_json::Value;

use super::facts::{At, ChatServing, CompletionsRoot, Control, Family, KeyPlan};
use super::shapes::{FOREIGN_ERRORS, OPENAI_SHAPED, SERVES_CHAT, get, list, probe, proofs, shaped, valid};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "llama.cpp",
    base_url: Some("http://127.0.0.1:8080"),
    probe: probe(get(At::Root("/health"))),
    list: list(&[get(At::Root("/v1/models"))]),
    // Its model lists are public even with --api-key.
    proofs: proofs(KeyPlan::Try(&[shaped(At::Root("/props"), Control::Always, properties)])),
    errors: FOREIGN_ERRORS,
    serving: ChatServing {
        root: CompletionsRoot::Below("/v1"),
        takes: |caps, _| caps.top_k = true,
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn properties(json: &Value) -> Option<KeyReport> {
    json.is_object().then(valid)
}
