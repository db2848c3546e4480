//! Azure OpenAI: one host per resource; the list names base models, not deployments.

use super::{At, Attempt, Auth, Control, Spec, get, has_data, shaped};

const MODELS: At = At::Root("/openai/models?api-version=2024-10-21");

pub(super) const SPEC: Spec = Spec {
    auth: Auth::Azure,
    hosts: &["*.openai.azure.com", "*.cognitiveservices.azure.com", "*.services.ai.azure.com"],
    suffixes: &["/openai/v1", "/openai"],
    health: get(MODELS),
    list: const { &[get(MODELS)] },
    regions: &[],
    fake_key: "00000000000000000000000000000000",
};

pub(super) const PROOF: &[Attempt] = &[shaped(MODELS, Control::Foreign, has_data)];
