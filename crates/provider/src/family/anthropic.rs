//! Anthropic: `x-api-key` with a dated version header.

use super::facts::{At, Auth, ChatServing, Control, Family, KeyHeader, KeyPlan, Proofs};
use super::shapes::{OPENAI_SHAPED, get, has_data, list, manages, probe, serves_own, shaped};
use crate::dialect::UpstreamDialect;

pub(super) const FAMILY: Family = Family {
    name: "Anthropic",
    base_url: Some("https://api.anthropic.com/v1"),
    hosts: &["api.anthropic.com"],
    auth: Auth {
        always: &[("anthropic-version", "2023-06-01")],
        // OAuth.
        tokens: Some(("sk-ant-oat", &[("anthropic-beta", "oauth-2025-04-20")])),
        ..Auth::by(KeyHeader::Named("x-api-key"))
    },
    fake_key: "sk-ant-api03-providerd-negative-control-not-a-key-000000000000000000000000000000000000000000000000000AA",
    probe: probe(get(At::Base("/models?limit=1"))),
    list: list(&[get(At::Base("/models?limit=1000"))]),
    proofs: Proofs {
        // Not `GET /messages`: it answers 405 to any key.
        usual: KeyPlan::Try(&[shaped(At::Base("/models?limit=1"), Control::Foreign, has_data)]),
        special: &[(
            &["sk-ant-admin"],
            KeyPlan::Try(&[shaped(
                At::Root("/v1/organizations/api_keys?limit=1"),
                Control::Foreign,
                manages,
            )]),
        )],
        chat_elsewhere: false,
    },
    serving: ChatServing { apis: &["messages"], ..serves_own(&[("", UpstreamDialect::Anthropic)]) },
    ..OPENAI_SHAPED
};
