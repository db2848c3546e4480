//! Vendors with separate worlds inside and outside China: a key of one is unknown in the other.

use serde_json::Value;

use super::{
    At, Attempt, CHAT_PROOFS, Control, DIALECT, KeyReport, Plan, SK_KEY, Spec, has_data, number, shaped,
    with_balance,
};
use crate::ProviderType as P;

pub(super) fn spec(kind: P) -> Spec {
    let base = Spec { fake_key: SK_KEY, ..DIALECT };
    match kind {
        P::Moonshot => Spec {
            hosts: &["api.moonshot.ai", "api.moonshot.cn"],
            regions: &["https://api.moonshot.ai/v1", "https://api.moonshot.cn/v1"],
            ..base
        },
        P::Zhipu => Spec {
            hosts: &["open.bigmodel.cn", "api.z.ai"],
            suffixes: &["/api/coding/paas/v4", "/api/paas/v4"],
            regions: &["https://open.bigmodel.cn/api/paas/v4", "https://api.z.ai/api/paas/v4"],
            fake_key: "00000000000000000000000000000000.providerd0000000",
            ..base
        },
        P::Qwen => Spec {
            hosts: &["dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"],
            suffixes: &["/compatible-mode/v1"],
            regions: &[
                "https://dashscope.aliyuncs.com/compatible-mode/v1",
                "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
                "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
            ],
            ..base
        },
        _ => Spec {
            hosts: &["api.minimax.io", "api.minimaxi.com"],
            suffixes: &["/anthropic/v1", "/anthropic", "/v1"],
            regions: &["https://api.minimax.io/v1", "https://api.minimaxi.com/v1"],
            fake_key: "sk-api-providerd0negative0control0not0a0key000000000",
            ..base
        },
    }
}

pub(super) fn plan(kind: P, key: &str) -> Plan {
    const MODELS: &[Attempt] = &[shaped(At::Base("/models"), Control::Always, has_data)];
    match kind {
        P::Moonshot => {
            Plan::Try(const { &[shaped(At::Base("/users/me/balance"), Control::Foreign, balance)] })
        }
        P::Zhipu => Plan::Try(MODELS),
        // Its answers to a plan's keys on the ordinary hosts are refusals that say nothing.
        P::Qwen if key.starts_with("sk-sp-") => {
            Plan::Untestable("a Token Plan key is known only to its own host; no free request there is known")
        }
        P::Qwen => Plan::Try(CHAT_PROOFS),
        _ if key.starts_with("sk-cp-") => {
            Plan::Try(const { &[shaped(At::Root("/v1/token_plan/remains"), Control::Always, base_ok)] })
        }
        _ => Plan::Try(MODELS),
    }
}

fn balance(json: &Value) -> Option<KeyReport> {
    let data = json.get("data").filter(|data| data.is_object())?;
    if json.get("code").and_then(number).is_some_and(|code| code != 0.0) {
        return None;
    }
    Some(with_balance(Some(data.get("available_balance").and_then(number)?), None, "balance"))
}

/// Native MiniMax endpoints say in the body whether it went well.
fn base_ok(json: &Value) -> Option<KeyReport> {
    let code = json.get("base_resp")?.get("status_code").and_then(number)?;
    (code == 0.0).then(super::valid)
}
