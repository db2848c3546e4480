//! SambaNova: the list is public.

use super::facts::{ChatServing, Family, KeyPlan, ListedPrices, Listing};
use super::shapes::{CHAT_PROOFS, MODELS, OPENAI_SHAPED, SERVES_CHAT, list, proofs};

pub(super) const FAMILY: Family = Family {
    name: "SambaNova",
    base_url: Some("https://api.sambanova.ai/v1"),
    hosts: &["api.sambanova.ai"],
    list: Listing { prices: ListedPrices::PerToken, ..list(&[MODELS]) },
    proofs: proofs(KeyPlan::Try(CHAT_PROOFS)),
    serving: ChatServing {
        takes: |caps, _| {
            caps.plain_content = true;
            caps.images = false;
            caps.documents = false;
        },
        ..SERVES_CHAT
    },
    ..OPENAI_SHAPED
};
