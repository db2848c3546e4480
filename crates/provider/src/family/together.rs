//! Together.

use super::facts::{ChatServing, ErrorHabits, Family, ListedPrices, Listing};
use super::shapes::{BY_LIST, MODELS, OPENAI_SHAPED, PLAIN_ERRORS, SERVES_CHAT, list};

pub(super) const FAMILY: Family = Family {
    name: "Together AI",
    base_url: Some("https://api.together.xyz/v1"),
    hosts: &["api.together.xyz", "api.together.ai"],
    fake_key: "tgp_v1_providerd0negative0control0not0a0key0000000",
    list: Listing { prices: ListedPrices::PerMillion, ..list(&[MODELS]) },
    proofs: BY_LIST,
    errors: ErrorHabits {
        reads: |said| match said.status {
            403 => said.unclear(),
            400 if said.has("model_not_available") || said.has("unable to access model") => said.valid(),
            _ => None,
        },
        ..PLAIN_ERRORS
    },
    serving: ChatServing { takes: |caps, _| caps.top_k = true, ..SERVES_CHAT },
    ..OPENAI_SHAPED
};
