//! Azure OpenAI: one host per resource; the list names base models, not deployments.

use super::facts::{At, Auth, ChatServing, Control, ErrorHabits, Family, KeyHeader, KeyPlan, Proofs};
use super::shapes::{OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, get, has_data, list, probe, proofs, shaped};
use crate::{KeyVerdict, dialect::UpstreamDialect};

const MODELS: At = At::Root("/openai/models?api-version=2024-10-21");

pub(super) const FAMILY: Family = Family {
    name: "Azure OpenAI",
    hosts: &["*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com"],
    suffixes: &["/openai/v1", "/openai"],
    // A token of Entra ID is a JWT; everything else is a resource key.
    auth: Auth { tokens: Some(("eyJ", &[])), ..Auth::by(KeyHeader::Named("api-key")) },
    fake_key: "00000000000000000000000000000000",
    probe: probe(get(MODELS)),
    list: list(&[get(MODELS)]),
    proofs: Proofs {
        chat_elsewhere: false,
        ..proofs(KeyPlan::Try(&[shaped(MODELS, Control::Foreign, has_data)]))
    },
    errors: ErrorHabits {
        reads: |said| match said.status {
            404 if said.has("deploymentnotfound") => said.valid(),
            401 => Some(KeyVerdict::Invalid {
                reason: format!("{} (or base_url names another resource than the key's)", said.reason()),
            }),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing { dialects: &[("", UpstreamDialect::Azure)], ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
