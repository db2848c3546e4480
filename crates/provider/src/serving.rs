//! How each type serves completions: where its OpenAI-shaped or own API stands, which dialects it speaks itself, and
//! in which header its key travels.
//!
//! Not its job: translating (`dialect`), who is asked, and the facts themselves (`family`).
//! Invariant: what is not known for certain is not served.

use url::Url;

use crate::{
    KeyHeader, ProviderType,
    family::{CompletionsRoot, family},
};

/// The dialects that a type speaks itself, by the words of a manifest's `apis`.
pub const fn native_apis(kind: ProviderType) -> &'static [&'static str] {
    family(kind).serving.apis
}

/// The header in which a type's key travels with a completion.
pub const fn key_header(kind: ProviderType) -> KeyHeader {
    family(kind).auth.header
}

/// The URL that `/chat/completions` and its kin are appended to.
pub fn serving_base(kind: ProviderType, base: &Url) -> Url {
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/').to_owned();
    let below = match family(kind).serving.root {
        CompletionsRoot::Below(below) if !path.ends_with(below) => below,
        CompletionsRoot::BelowHost(below) if path.is_empty() => below,
        _ => "",
    };
    url.set_path(&format!("{path}{below}"));
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_stand_where_each_server_has_them() {
        let check = |kind: ProviderType, base: &str, expected: &str| {
            let url = serving_base(kind, &Url::parse(base).unwrap());
            assert_eq!(url.as_str(), expected, "{kind}");
        };
        check(ProviderType::OpenAi, "https://api.openai.com/v1/", "https://api.openai.com/v1");
        check(ProviderType::Ollama, "http://127.0.0.1:11434", "http://127.0.0.1:11434/v1");
        check(ProviderType::Ollama, "http://127.0.0.1:11434/v1", "http://127.0.0.1:11434/v1");
        check(ProviderType::Cohere, "https://api.cohere.com", "https://api.cohere.com/compatibility/v1");
        check(ProviderType::DeepSeek, "https://api.deepseek.com", "https://api.deepseek.com/");
    }

    #[test]
    fn every_type_without_a_dialect_of_its_own_is_openai_shaped_or_not_served() {
        for kind in ProviderType::ALL {
            let native = native_apis(*kind);
            let known = ["chat", "messages", "embeddings"];
            assert!(native.is_empty() || native.iter().any(|word| known.contains(word)), "{kind}");
        }
    }
}
