//! How each type serves completions: where its OpenAI-shaped or own API stands, which dialects it speaks itself, and
//! in which header its key travels.
//!
//! Not its job: translating (`dialect`), and who is asked. Sources: each family's own API reference, see
//! docs/GATEWAY.md. Invariant: what is not known for certain is not served.

use url::Url;

use crate::ProviderType;

/// In which header a key travels with a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer …`
    Bearer,
    /// Alone, in the header of this name.
    Named(&'static str),
}

/// The dialects that a type speaks itself, by the words of a manifest's `apis`.
pub const fn native_apis(kind: ProviderType) -> &'static [&'static str] {
    use ProviderType as P;
    match kind {
        P::OpenAi => &["chat", "completions", "embeddings", "responses"],
        P::Anthropic => &["messages"],
        // Their completions have protocols of their own; the dialects translate.
        P::Google | P::Vertex | P::Bedrock | P::Replicate => &[],
        P::Perplexity | P::GithubModels => &["chat"],
        _ => &["chat", "completions", "embeddings"],
    }
}

/// The header of a type's key.
pub const fn key_header(kind: ProviderType) -> KeyHeader {
    use ProviderType as P;
    match kind {
        P::Anthropic => KeyHeader::Named("x-api-key"),
        P::Google => KeyHeader::Named("x-goog-api-key"),
        P::AzureOpenAi => KeyHeader::Named("api-key"),
        _ => KeyHeader::Bearer,
    }
}

/// The URL that `/chat/completions` and its kin are appended to. Servers whose base URL is their root have their
/// OpenAI-shaped API below `/v1`, Cohere below `/compatibility/v1`.
pub fn serving_base(kind: ProviderType, base: &Url) -> Url {
    use ProviderType as P;
    let mut url = base.clone();
    let path = base.path().trim_end_matches('/').to_owned();
    let below = match kind {
        P::Ollama | P::LlamaCpp if !path.ends_with("/v1") => "/v1",
        P::Cohere if path.is_empty() => "/compatibility/v1",
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
            assert!(native.is_empty() || native.contains(&"chat") || native.contains(&"messages"), "{kind}");
        }
    }
}
