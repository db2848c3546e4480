//! Servers that people run themselves: Ollama, vLLM, llama.cpp.

use serde_json::Value;

use super::{At, Control, DIALECT, KeyReport, Plan, Spec, get, has_data, shaped, valid};
use crate::ProviderType as P;

pub(super) fn spec(kind: P) -> Spec {
    let base = Spec { health: get(At::Root("/health")), ..DIALECT };
    match kind {
        P::Ollama => Spec {
            // A key is sent all the same: a reverse proxy in front may want it.
            health: get(At::Root("/api/version")),
            list: const { &[get(At::Root("/api/tags")), get(At::Root("/v1/models"))] },
            suffixes: &["/v1", "/api"],
            ..base
        },
        P::LlamaCpp => Spec { list: const { &[get(At::Root("/v1/models"))] }, ..base },
        _ => base,
    }
}

pub(super) fn plan(kind: P) -> Plan {
    match kind {
        // Ollama itself ignores keys; only a proxy that refuses a fake one gives the real one a meaning.
        P::Ollama => Plan::Try(const { &[shaped(At::Root("/api/tags"), Control::Always, tags)] }),
        // Its model lists are public even with --api-key.
        P::LlamaCpp => Plan::Try(const { &[shaped(At::Root("/props"), Control::Always, object)] }),
        _ => Plan::Try(const { &[shaped(At::Base("/models"), Control::Always, has_data)] }),
    }
}

fn tags(json: &Value) -> Option<KeyReport> {
    json.get("models").is_some_and(Value::is_array).then(valid)
}

fn object(json: &Value) -> Option<KeyReport> {
    json.is_object().then(valid)
}
