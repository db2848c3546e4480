//! OpenAI: the dialect that most others speak.

use super::facts::{At, ChatServing, Control, ErrorHabits, Family, KeyPlan, Proofs};
use super::shapes::{BY_LIST, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, SK_KEY, manages, shaped};

pub(super) const FAMILY: Family = Family {
    name: "OpenAI",
    base_url: Some("https://api.openai.com/v1"),
    hosts: &["api.openai.com"],
    fake_key: SK_KEY,
    proofs: Proofs {
        // An admin key manages the organization and cannot ask a model.
        special: &[(
            &["sk-admin-"],
            KeyPlan::Try(&[shaped(At::Root("/v1/organization/admin_api_keys"), Control::Foreign, manages)]),
        )],
        ..BY_LIST
    },
    errors: ErrorHabits {
        // Said to mean billing, but not seen: no proof of the key.
        reads: |said| if said.has("billing_not_active") { said.quota(false) } else { None },
        ..PLAIN_ERRORS
    },
    serving: ChatServing { apis: &["chat", "completions", "embeddings", "responses"], ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
