//! OpenAI's dialect and those who speak it with nothing better than the model list or the chat endpoint.

use serde_json::Value;

use super::{
    Ask, At, Attempt, CHAT, CHAT_PROOFS, Control, DIALECT, EMPTY, IMPOSSIBLE, KeyReport, MODELS, Plan, Reads,
    SK_KEY, Spec, differential, get, has_data, post, shaped,
};
use crate::{ProviderType as P, wire::Method};

pub(super) fn spec(kind: P) -> Spec {
    match kind {
        P::OpenAi => Spec { hosts: &["api.openai.com"], fake_key: SK_KEY, ..DIALECT },
        P::OllamaCloud => Spec {
            hosts: &["ollama.com"],
            fake_key: "00000000000000000000000000000000.providerd0not0a0key0000",
            ..DIALECT
        },
        P::Groq => Spec {
            hosts: &["api.groq.com"],
            suffixes: &["/openai/v1", "/v1"],
            fake_key: "gsk_providerd0negative0control0not0a0key00000000000000000",
            ..DIALECT
        },
        P::Together => Spec {
            hosts: &["api.together.xyz", "api.together.ai"],
            fake_key: "tgp_v1_providerd0negative0control0not0a0key0000000",
            ..DIALECT
        },
        P::Mistral => {
            Spec { hosts: &["api.mistral.ai"], fake_key: "providerd0not0a0key0000000000000", ..DIALECT }
        }
        P::Perplexity => Spec {
            hosts: &["api.perplexity.ai"],
            // The unversioned list is gone; the chat endpoint has no version.
            health: get(At::Root("/v1/models")),
            list: const { &[get(At::Root("/v1/models"))] },
            fake_key: "pplx-providerd0negative0control0not0a0key0000000000000",
            ..DIALECT
        },
        P::Cerebras => Spec {
            hosts: &["api.cerebras.ai"],
            list: const { &[get(At::Base("/models?format=openrouter")), MODELS] },
            fake_key: "csk-providerd0negative0control0not0a0key000000000000",
            ..DIALECT
        },
        P::SambaNova => Spec { hosts: &["api.sambanova.ai"], ..DIALECT },
        P::NvidiaNim => Spec {
            hosts: &["integrate.api.nvidia.com"],
            // Its model list can take more than 10 s; the gateway answers a malformed request at once.
            health: post(CHAT, EMPTY),
            fake_key: "nvapi-providerd0negative0control0not0a0key000000000000000000000000",
            ..DIALECT
        },
        P::GithubModels => Spec { hosts: &["models.github.ai"], suffixes: &["/inference"], ..DIALECT },
        _ => DIALECT,
    }
}

pub(super) fn plan(kind: P, key: &str) -> Plan {
    match kind {
        P::OpenAi if key.starts_with("sk-admin-") => Plan::Try(&[Attempt {
            ask: Ask { method: Method::Get, at: At::Root("/v1/organization/admin_api_keys"), body: None },
            control: Control::Foreign,
            reads: Reads::Shape(admin),
        }]),
        P::OpenAi | P::Groq | P::Together | P::Mistral => {
            Plan::Try(const { &[shaped(At::Base("/models"), Control::Foreign, has_data)] })
        }
        // Nobody has shown that its list refuses strangers.
        P::Cerebras => Plan::Try(const { &[shaped(At::Base("/models"), Control::Always, has_data)] }),
        P::Perplexity => Plan::Try(
            const {
                &[
                    shaped(At::Root("/v1/models"), Control::Always, has_data),
                    differential(CHAT, IMPOSSIBLE),
                    differential(CHAT, EMPTY),
                ]
            },
        ),
        // The list is public: the search endpoint refuses an empty query, but only after the key.
        P::OllamaCloud => Plan::Try(
            const { &[differential(CHAT, EMPTY), differential(At::Root("/api/web_search"), r#"{"query":""}"#)] },
        ),
        P::SambaNova => Plan::Try(CHAT_PROOFS),
        P::NvidiaNim => Plan::Try(
            const {
                &[
                    differential(CHAT, EMPTY),
                    differential(CHAT, IMPOSSIBLE),
                    shaped(At::Far("api.nvcf.nvidia.com", "/v2/nvcf/functions"), Control::Always, functions),
                ]
            },
        ),
        P::GithubModels => {
            Plan::Untestable("GitHub Models was retired on 2026-07-30: no key works there any more")
        }
        _ => Plan::Try(
            const {
                &[
                    shaped(At::Base("/models"), Control::Always, has_data),
                    differential(CHAT, EMPTY),
                    differential(CHAT, IMPOSSIBLE),
                ]
            },
        ),
    }
}

/// An admin key manages the organization and cannot ask a model.
fn admin(json: &Value) -> Option<KeyReport> {
    has_data(json).map(cannot_serve)
}

pub(super) fn cannot_serve(mut report: KeyReport) -> KeyReport {
    report.facts.can_serve = Some(false);
    report
}

fn functions(json: &Value) -> Option<KeyReport> {
    json.get("functions").is_some_and(Value::is_array).then(super::valid)
}
