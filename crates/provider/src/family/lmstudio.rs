//! LM Studio's server on a desktop or a host of one's own.
//!
//! Sources: lmstudio.ai/docs/developer (`openai-compat`, `anthropic-compat`, `core/authentication`).

use super::facts::{ChatServing, Family, Proofs};
use super::shapes::{BY_GUARDED_LIST, FOREIGN_ERRORS, OPENAI_SHAPED, SERVES_CHAT};

pub(super) const FAMILY: Family = Family {
    name: "LM Studio",
    base_url: Some("http://127.0.0.1:1234/v1"),
    fake_key: "sk-lm-prvdrd00:providerd0not0a0key0",
    // The probe is the list of models: an endpoint that it does not know is answered with 200 and an error. Tokens are
    // asked for only where that was switched on; whether a malformed completion is free is not documented, as it may
    // load a model, so no chat endpoint is asked.
    proofs: Proofs { chat_elsewhere: false, ..BY_GUARDED_LIST },
    errors: FOREIGN_ERRORS,
    serving: ChatServing {
        apis: &["chat", "completions", "embeddings", "responses", "messages"],
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};
