//! Vendors with a free endpoint that tells about the account or the key itself.

use serde_json::Value;

use super::{
    At, Attempt, CHAT, Control, DIALECT, EMPTY, KeyReport, KeyVerdict, MODELS, Plan, Reads, SK_KEY, Spec,
    get, number, openai::cannot_serve, post, shaped, valid, with_balance,
};
use crate::ProviderType as P;

pub(super) fn spec(kind: P) -> Spec {
    let base = Spec { fake_key: SK_KEY, ..DIALECT };
    match kind {
        P::OpenRouter => Spec {
            hosts: &["openrouter.ai"],
            suffixes: &["/api/v1", "/v1"],
            // The list is public, and larger than what a check reads.
            health: get(At::Base("/key")),
            fake_key: "sk-or-v1-0000000000000000000000000000000000000000000000000000000000000000",
            ..base
        },
        P::Cohere => Spec {
            hosts: &["api.cohere.com", "api.cohere.ai"],
            suffixes: &["/compatibility/v1", "/v1", "/v2"],
            health: get(At::Root("/v1/models?page_size=1")),
            list: const { &[get(At::Root("/v1/models?endpoint=chat&page_size=1000"))] },
            fake_key: "providerd0negative0control0not0a0key0000",
            ..base
        },
        P::DeepSeek => Spec { hosts: &["api.deepseek.com"], suffixes: &["/v1", "/beta"], ..base },
        P::Xai => Spec {
            hosts: &["api.x.ai"],
            list: const { &[get(At::Base("/language-models")), MODELS] },
            fake_key: "xai-providerd0negative0control0not0a0key00000000000000000000000000000000000000000000",
            ..base
        },
        P::Fireworks => Spec {
            hosts: &["api.fireworks.ai"],
            suffixes: &["/inference/v1", "/v1"],
            fake_key: "fw_providerd0not0a0key00000",
            ..base
        },
        P::HuggingFace => Spec {
            hosts: &["router.huggingface.co"],
            fake_key: "hf_providerd0negative0control0not0a0k",
            // The router's list is large, and the account endpoint stands on another host.
            health: post(CHAT, EMPTY),
            ..base
        },
        P::Replicate => Spec {
            hosts: &["api.replicate.com"],
            health: get(At::Base("/account")),
            fake_key: "r8_providerd0negative0control0not0a0key0",
            ..base
        },
        _ => Spec { hosts: &["api.deepinfra.com"], suffixes: &["/v1/openai", "/v1"], ..base },
    }
}

pub(super) fn plan(kind: P) -> Plan {
    const OPENROUTER: &[Attempt] = &[shaped(At::Base("/key"), Control::Foreign, openrouter)];
    const COHERE: &[Attempt] = &[Attempt {
        ask: post(At::Root("/v1/check-api-key"), ""),
        control: Control::Foreign,
        reads: Reads::Shape(cohere),
    }];
    const DEEPSEEK: &[Attempt] = &[shaped(At::Root("/user/balance"), Control::Foreign, deepseek)];
    const XAI: &[Attempt] = &[shaped(At::Base("/api-key"), Control::Foreign, xai)];
    const FIREWORKS: &[Attempt] = &[shaped(At::Root("/v1/accounts"), Control::Foreign, fireworks)];
    const HUGGINGFACE: &[Attempt] =
        &[shaped(At::Far("huggingface.co", "/api/whoami-v2"), Control::Foreign, huggingface)];
    const REPLICATE: &[Attempt] = &[shaped(At::Base("/account"), Control::Foreign, replicate)];
    // A 403 proves the key here, so that it must be known that a fake key gets something else.
    const DEEPINFRA: &[Attempt] =
        &[shaped(At::Root("/payment/checklist?compute_owed=true"), Control::Always, deepinfra)];
    Plan::Try(match kind {
        P::OpenRouter => OPENROUTER,
        P::Cohere => COHERE,
        P::DeepSeek => DEEPSEEK,
        P::Xai => XAI,
        P::Fireworks => FIREWORKS,
        P::HuggingFace => HUGGINGFACE,
        P::Replicate => REPLICATE,
        _ => DEEPINFRA,
    })
}

fn openrouter(json: &Value) -> Option<KeyReport> {
    let data = json.get("data").filter(|data| data.is_object())?;
    if !["label", "usage", "limit", "is_free_tier"].iter().any(|name| data.get(name).is_some()) {
        return None;
    }
    let report =
        with_balance(data.get("limit_remaining").and_then(number), data.get("limit").and_then(number), "USD");
    let manages = ["is_management_key", "is_provisioning_key"]
        .iter()
        .any(|name| data.get(name).and_then(Value::as_bool) == Some(true));
    Some(if manages { cannot_serve(report) } else { report })
}

fn cohere(json: &Value) -> Option<KeyReport> {
    Some(match json.get("valid")?.as_bool()? {
        true => valid(),
        false => KeyVerdict::Invalid { reason: "the key check answered valid = false".into() }.into(),
    })
}

fn deepseek(json: &Value) -> Option<KeyReport> {
    let available = json.get("is_available")?.as_bool()?;
    let info = json.get("balance_infos").and_then(|infos| infos.get(0));
    let total = info.and_then(|info| info.get("total_balance")).and_then(number);
    let unit = info.and_then(|info| info.get("currency")).and_then(Value::as_str).unwrap_or("balance");
    if !available {
        let mut report = KeyReport::new(KeyVerdict::Quota {
            reason: "the balance does not suffice for calls".into(),
            proven: true,
        });
        report.facts.quota = with_balance(total, None, unit).facts.quota;
        return Some(report);
    }
    // `is_available` decides: a balance can read 0 while granted credit still serves.
    let mut report = valid();
    report.facts.quota = with_balance(total, None, unit).facts.quota;
    Some(report)
}

fn xai(json: &Value) -> Option<KeyReport> {
    let flag = |name: &str| json.get(name).map(|value| value.as_bool().unwrap_or(true));
    let (blocked, disabled, team) = (flag("api_key_blocked"), flag("api_key_disabled"), flag("team_blocked"));
    if blocked.is_none() && disabled.is_none() && team.is_none() {
        return None;
    }
    Some(if blocked == Some(true) {
        KeyVerdict::Invalid { reason: "the key is blocked (api_key_blocked)".into() }.into()
    } else if disabled == Some(true) {
        KeyVerdict::Invalid { reason: "the key is disabled (api_key_disabled)".into() }.into()
    } else if team == Some(true) {
        KeyVerdict::Restricted { reason: "the key's team is blocked (team_blocked)".into(), proven: true }
            .into()
    } else {
        valid()
    })
}

fn fireworks(json: &Value) -> Option<KeyReport> {
    json.get("accounts").is_some_and(Value::is_array).then(valid)
}

fn huggingface(json: &Value) -> Option<KeyReport> {
    json.get("name").or_else(|| json.get("auth")).or_else(|| json.get("id"))?;
    let token = json.get("auth").and_then(|auth| auth.get("accessToken"));
    let fine = token.and_then(|token| token.get("fineGrained"));
    let lacks_inference = token.and_then(|token| token.get("role")).and_then(Value::as_str)
        == Some("fineGrained")
        && fine.is_some_and(|fine| !mentions(fine, "inference.serverless.write", 0));
    Some(if lacks_inference { cannot_serve(valid()) } else { valid() })
}

/// Whether a text stands anywhere in a value; bounded, since the value comes from outside.
fn mentions(value: &Value, text: &str, depth: u8) -> bool {
    match value {
        Value::String(found) => found == text,
        Value::Array(items) if depth < 8 => items.iter().any(|item| mentions(item, text, depth + 1)),
        Value::Object(fields) if depth < 8 => fields.values().any(|item| mentions(item, text, depth + 1)),
        _ => false,
    }
}

fn replicate(json: &Value) -> Option<KeyReport> {
    json.get("username").is_some_and(Value::is_string).then(valid)
}

fn deepinfra(json: &Value) -> Option<KeyReport> {
    if !json.is_object() {
        return None;
    }
    if json.get("suspended").and_then(Value::as_bool) == Some(true) {
        let why = json.get("suspend_reason").and_then(Value::as_str).unwrap_or("no reason given");
        return Some(
            KeyVerdict::Quota { reason: format!("the account is suspended: {why}"), proven: true }.into(),
        );
    }
    // A negative Stripe balance is prepaid credit; 0 may be an account that pays afterwards, so it says nothing.
    let credit = json.get("stripe_balance").and_then(number).map(|balance| -balance);
    Some(match credit {
        Some(credit) if credit > 0.0 => with_balance(Some(credit), None, "USD"),
        _ => valid(),
    })
}
