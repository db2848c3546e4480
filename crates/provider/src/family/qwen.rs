//! Qwen at Alibaba's Model Studio: a world per region; a key of one is unknown in the others.

use super::facts::{ChatServing, ErrorHabits, Family, KeyPlan, Proofs};
use super::shapes::{CHAT_PROOFS, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, SK_KEY, proofs};
use crate::dialect::ReasoningForm;
use crate::{KeyVerdict, read::Complaint};

pub(super) const FAMILY: Family = Family {
    name: "Qwen",
    base_url: Some("https://dashscope.aliyuncs.com/compatible-mode/v1"),
    hosts: &["dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com", "dashscope-us.aliyuncs.com"],
    suffixes: &["/compatible-mode/v1"],
    regions: &[
        "https://dashscope.aliyuncs.com/compatible-mode/v1",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        "https://dashscope-us.aliyuncs.com/compatible-mode/v1",
    ],
    fake_key: SK_KEY,
    proofs: Proofs {
        // Its answers to a plan's keys on the ordinary hosts are refusals that say nothing.
        special: &[(
            &["sk-sp-"],
            KeyPlan::Untestable(
                "a Token Plan key is known only to its own host; no free request there is known",
            ),
        )],
        ..proofs(KeyPlan::Try(CHAT_PROOFS))
    },
    errors: ErrorHabits { reads: errors, ..PLAIN_ERRORS },
    serving: ChatServing { takes: |caps, _| caps.reasoning = ReasoningForm::Flag, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};

/// One code for two things under 429: a limit per minute, or an exhausted quota. The message decides.
fn errors(said: &Complaint<'_>) -> Option<KeyVerdict> {
    let ambiguous =
        said.has("throttling.allocationquota") || (said.status == 429 && said.has("insufficient_quota"));
    if ambiguous
        && !said.has("freetieronly")
        && !(said.has("free") && (said.has("exhausted") || said.has("expired") || said.has("used up")))
    {
        return said.rate(false);
    }
    None
}
