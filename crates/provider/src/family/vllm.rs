//! vLLM's server.

use super::facts::{At, ChatServing, Family, HealthProbe};
use super::shapes::{FOREIGN_ERRORS, OPENAI_SHAPED, SERVES_CHAT, get, probe};

pub(super) const FAMILY: Family = Family {
    name: "vLLM",
    base_url: Some("http://127.0.0.1:8000/v1"),
    // It answers with an empty body.
    probe: HealthProbe { json: false, ..probe(get(At::Root("/health"))) },
    errors: FOREIGN_ERRORS,
    serving: ChatServing { takes: |caps, _| caps.top_k = true, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
