//! Anthropic: `x-api-key` with a dated version header.

use serde_json::Value;

use super::{At, Auth, Control, KeyReport, Plan, Spec, get, has_data, openai::cannot_serve, shaped};

pub(super) const SPEC: Spec = Spec {
    auth: Auth::Anthropic,
    hosts: &["api.anthropic.com"],
    suffixes: &["/v1"],
    health: get(At::Base("/models?limit=1")),
    list: const { &[get(At::Base("/models?limit=1000"))] },
    regions: &[],
    fake_key: "sk-ant-api03-providerd-negative-control-not-a-key-000000000000000000000000000000000000000000000000000AA",
};

pub(super) fn plan(key: &str) -> Plan {
    if key.starts_with("sk-ant-admin") {
        Plan::Try(
            const { &[shaped(At::Root("/v1/organizations/api_keys?limit=1"), Control::Foreign, admin)] },
        )
    } else {
        // Not `GET /messages`: it answers 405 to any key.
        Plan::Try(const { &[shaped(At::Base("/models?limit=1"), Control::Foreign, has_data)] })
    }
}

fn admin(json: &Value) -> Option<KeyReport> {
    has_data(json).map(cannot_serve)
}
