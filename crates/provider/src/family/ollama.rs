//! Ollama on a host of one's own.

use serde_json::Value;

use super::facts::{At, ChatServing, CompletionsRoot, Control, Family, KeyPlan, Proofs};
use super::shapes::{FOREIGN_ERRORS, OPENAI_SHAPED, SERVES_CHAT, get, list, probe, proofs, shaped, valid};
use crate::KeyReport;

pub(super) const FAMILY: Family = Family {
    name: "Ollama",
    base_url: Some("http://127.0.0.1:11434"),
    suffixes: &["/v1", "/api"],
    // A key is sent all the same: a reverse proxy in front may want it.
    probe: probe(get(At::Root("/api/version"))),
    list: list(&[get(At::Root("/api/tags")), get(At::Root("/v1/models"))]),
    proofs: Proofs {
        chat_elsewhere: false,
        // Ollama itself ignores keys; only a proxy that refuses a fake one gives the real one a meaning.
        ..proofs(KeyPlan::Try(&[shaped(At::Root("/api/tags"), Control::Always, tags)]))
    },
    errors: FOREIGN_ERRORS,
    serving: ChatServing {
        root: CompletionsRoot::Below("/v1"),
        takes: |caps, _| {
            caps.tool_choice = false;
            caps.forced_tools = false;
            caps.image_urls = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};

fn tags(json: &Value) -> Option<KeyReport> {
    json.get("models").is_some_and(Value::is_array).then(valid)
}
