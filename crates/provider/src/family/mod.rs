//! The types of providers: one line and one file each.
//!
//! Adding a type takes a line in the table below and a file of that name with its [`Family`]: `pub(super) const FAMILY:
//! Family = Family { …, ..OPENAI_SHAPED }`, each fact with its source where it surprises. A second word on a line is
//! another name for the same protocol; it is kept as written wherever it is stored. `docs/TYPES.md` is made from the
//! table. Not its job: what is done with the facts.
//! Invariant: no other module asks which type it has before it; it asks for the fact that it needs.

mod describe;
mod facts;
mod shapes;

pub use describe::TypeDescription;
pub use facts::KeyHeader;
pub(crate) use facts::{
    At, CompletionsRoot, Control, ErrorHabits, Family, KeyPlan, ListedPrices, ModelIds, ProofAttempt, Reads,
    SentKeys,
};
pub(crate) use shapes::{CHAT_PROOFS, number};

use crate::words;

macro_rules! families {
    ($($(#[$meta:meta])* $module:ident: $($variant:ident = $word:literal),+;)+) => {
        $(mod $module;)+

        words! {
            /// Which protocol a provider speaks: authentication, endpoints and error shapes.
            ProviderType { $($(#[$meta])* $($variant = $word),+),+ }
        }

        /// What a type speaks.
        pub(crate) const fn family(kind: ProviderType) -> &'static Family {
            match kind { $($(ProviderType::$variant)|+ => &$module::FAMILY,)+ }
        }
    };
}

families! {
    openai: OpenAi = "openai";
    anthropic: Anthropic = "anthropic";
    google: Google = "google";
    azure_openai: AzureOpenAi = "azure-openai";
    openrouter: OpenRouter = "openrouter";
    ollama_cloud: OllamaCloud = "ollama-cloud";
    ollama: Ollama = "ollama";
    vllm: Vllm = "vllm";
    llama_cpp: LlamaCpp = "llama.cpp";
    groq: Groq = "groq";
    together: Together = "together";
    mistral: Mistral = "mistral";
    cohere: Cohere = "cohere";
    deepseek: DeepSeek = "deepseek";
    xai: Xai = "xai";
    fireworks: Fireworks = "fireworks";
    perplexity: Perplexity = "perplexity";
    cerebras: Cerebras = "cerebras";
    sambanova: SambaNova = "sambanova";
    nvidia_nim: NvidiaNim = "nvidia-nim";
    huggingface: HuggingFace = "huggingface";
    replicate: Replicate = "replicate";
    deepinfra: DeepInfra = "deepinfra";
    moonshot: Moonshot = "moonshot";
    zhipu: Zhipu = "zhipu";
    qwen: Qwen = "qwen";
    minimax: MiniMax = "minimax";
    /// Retired by its operator on 2026-07-30; kept so that old manifests get a clear warning.
    github_models: GithubModels = "github-models";
    bedrock: Bedrock = "bedrock";
    vertex: Vertex = "vertex";
    litellm: LiteLlm = "litellm";
    lmstudio: LmStudio = "lmstudio";
    // The later words are what Ops-Center writes.
    openai_compatible: OpenAiCompatible = "openai-compatible", Custom = "custom",
        OpenAiUnderscored = "openai_compatible", Local = "local", UnicornCommander = "unicorn-commander";
}

impl ProviderType {
    /// The base URL used when a manifest names none; `None` where only the operator can know it.
    pub const fn default_base_url(self) -> Option<&'static str> {
        family(self).base_url
    }

    /// A sentence without its full stop, if the operator has ended the service: every call fails, whatever the key.
    pub const fn retired(self) -> Option<&'static str> {
        family(self).retired
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;
    use crate::wire::is_own_host;

    #[test]
    fn facts_of_a_family_agree_with_each_other() {
        for kind in ProviderType::ALL {
            let family = family(*kind);
            if let Some(base) = family.base_url {
                let base = Url::parse(base).unwrap();
                let ours = matches!(base.host_str(), Some("127.0.0.1"));
                assert!(ours || is_own_host(family, &base), "{kind}: {base}");
                assert_eq!(ours, family.hosts.is_empty(), "{kind}");
            }
            for region in family.regions {
                assert!(is_own_host(family, &Url::parse(region).unwrap()), "{kind}: {region}");
            }
            assert!(family.regions.first().is_none_or(|region| Some(*region) == family.base_url), "{kind}");
            let longest_first = |pair: &[&str]| !pair[1].ends_with(pair[0]);
            assert!(family.suffixes.windows(2).all(longest_first), "{kind}");
            assert!(family.suffixes.iter().all(|it| it.starts_with('/') && !it.ends_with('/')), "{kind}");
            assert!(!family.list.asks.is_empty() || family.list.unsupported.is_some(), "{kind}");
            assert!(family.serving.dialects.last().is_none_or(|(word, _)| word.is_empty()), "{kind}");
            assert!(family.serving.apis.is_empty() || !family.serving.dialects.is_empty(), "{kind}");
        }
    }

    #[test]
    fn a_word_is_kept_as_written() {
        for kind in ProviderType::ALL {
            assert_eq!(ProviderType::parse(kind.as_str()), Some(*kind));
            let json = serde_json::to_string(kind).unwrap();
            assert_eq!(json, format!("\"{kind}\""));
            assert_eq!(serde_json::from_str::<ProviderType>(&json).unwrap(), *kind);
        }
    }
}
