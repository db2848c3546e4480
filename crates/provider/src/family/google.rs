//! Google's Generative Language API. Keys begin with `AIza`, `AQ.` or something newer: no prefix is required.

use serde_json::Value;

use super::{At, Attempt, Auth, Control, KeyReport, Spec, get, shaped, valid};

pub(super) const SPEC: Spec = Spec {
    auth: Auth::Google,
    hosts: &["generativelanguage.googleapis.com"],
    suffixes: &["/v1beta/openai", "/v1beta", "/v1"],
    health: get(At::Base("/models?pageSize=1")),
    list: const { &[get(At::Base("/models?pageSize=1000"))] },
    regions: &[],
    fake_key: "AQ.providerd-negative-control-not-a-key",
};

pub(super) const PROOF: &[Attempt] = &[shaped(At::Base("/models?pageSize=1"), Control::Foreign, models)];

fn models(json: &Value) -> Option<KeyReport> {
    // The compatible surface answers with `data`.
    ["models", "data"].iter().any(|name| json.get(name).is_some_and(Value::is_array)).then(valid)
}
