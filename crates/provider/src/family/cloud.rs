//! The clouds' own model services. Requests that need a signature or a minted token are not made.

use serde_json::Value;

use super::{At, Auth, Control, KeyReport, Plan, Spec, get, shaped, valid};
use crate::{ProviderType as P, wire::is_bedrock_key};

pub(super) fn spec(kind: P) -> Spec {
    match kind {
        P::Bedrock => Spec {
            auth: Auth::Bearer,
            hosts: &["*.amazonaws.com"],
            suffixes: &["/openai/v1", "/v1"],
            health: get(At::Control("/foundation-models")),
            list: const { &[get(At::Control("/foundation-models"))] },
            regions: &[],
            fake_key: "ABSKcHJvdmlkZXJkIG5lZ2F0aXZlIGNvbnRyb2wgbm90IGEga2V5",
        },
        _ => Spec {
            // A service account's JSON must be exchanged for a token; the key is never sent as it is.
            auth: Auth::None,
            hosts: &["*-aiplatform.googleapis.com", "aiplatform.googleapis.com"],
            suffixes: &["/v1", "/v1beta1"],
            health: get(At::Root("/v1/publishers/google/models?pageSize=1")),
            list: const { &[get(At::Root("/v1/publishers/google/models"))] },
            regions: &[],
            fake_key: "providerd-negative-control-not-a-key",
        },
    }
}

pub(super) fn plan(kind: P, key: &str) -> Plan {
    match kind {
        P::Bedrock if is_bedrock_key(key) => {
            Plan::Try(const { &[shaped(At::Control("/foundation-models"), Control::Foreign, summaries)] })
        }
        P::Bedrock => Plan::Untestable(
            "access keys need signed requests, which are not made; use a Bedrock API key (ABSK…) to have it tested",
        ),
        _ => Plan::Untestable("a service account is proven by exchanging it for a token, which is not done"),
    }
}

fn summaries(json: &Value) -> Option<KeyReport> {
    json.get("modelSummaries").is_some_and(Value::is_array).then(valid)
}
