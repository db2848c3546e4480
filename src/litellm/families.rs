//! How LiteLLM calls each type of provider.
//!
//! PURE. Facts from LiteLLM's documentation of its providers (`docs/my-website/docs/providers`) and of its proxy.

use provider::ProviderType;

/// Where the base URL of a type ends for LiteLLM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BaseForm {
    /// As ours, with the API's own path; given where a manifest names one.
    Same,
    /// As ours, with the API's own path; always given, as LiteLLM knows no default or another one.
    Always,
    /// Without `/v1`, which it appends itself; given where a manifest names one.
    WithoutV1,
    /// Without any path; always given.
    Root,
    /// It takes none: only the vendor's own host.
    Vendor,
    /// It takes none but a region, which is part of the host.
    Region,
}

/// One provider of LiteLLM.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiteLlmFamily {
    pub kind: ProviderType,
    /// What stands before the model's name.
    pub prefix: &'static str,
    /// Other words for it that are read.
    pub also: &'static [&'static str],
    pub base: BaseForm,
    /// The variable that LiteLLM reads where a configuration names no key; empty: none is needed.
    pub variable: &'static str,
}

const fn family(
    kind: ProviderType,
    prefix: &'static str,
    also: &'static [&'static str],
    base: BaseForm,
    variable: &'static str,
) -> LiteLlmFamily {
    LiteLlmFamily { kind, prefix, also, base, variable }
}

/// Types that LiteLLM has a word of its own for.
pub(super) const FAMILIES: &[LiteLlmFamily] = {
    use BaseForm::{Always, Region, Root, Same, Vendor, WithoutV1};
    use ProviderType as T;
    &[
        family(T::OpenAi, "openai", &["text-completion-openai"], Same, "OPENAI_API_KEY"),
        family(T::Anthropic, "anthropic", &["anthropic_text"], WithoutV1, "ANTHROPIC_API_KEY"),
        family(T::Google, "gemini", &[], Vendor, "GEMINI_API_KEY"),
        family(T::AzureOpenAi, "azure", &["azure_text"], Root, "AZURE_API_KEY"),
        family(T::OpenRouter, "openrouter", &[], Same, "OPENROUTER_API_KEY"),
        family(T::Groq, "groq", &[], Same, "GROQ_API_KEY"),
        family(T::Together, "together_ai", &[], Same, "TOGETHERAI_API_KEY"),
        family(T::Mistral, "mistral", &[], Same, "MISTRAL_API_KEY"),
        family(T::Cohere, "cohere_chat", &["cohere"], Vendor, "COHERE_API_KEY"),
        family(T::DeepSeek, "deepseek", &[], Same, "DEEPSEEK_API_KEY"),
        family(T::Xai, "xai", &[], Same, "XAI_API_KEY"),
        family(T::Fireworks, "fireworks_ai", &[], Same, "FIREWORKS_API_KEY"),
        family(T::Perplexity, "perplexity", &[], Same, "PERPLEXITYAI_API_KEY"),
        family(T::Cerebras, "cerebras", &[], Same, "CEREBRAS_API_KEY"),
        family(T::SambaNova, "sambanova", &[], Same, "SAMBANOVA_API_KEY"),
        family(T::NvidiaNim, "nvidia_nim", &[], Same, "NVIDIA_NIM_API_KEY"),
        family(T::DeepInfra, "deepinfra", &[], Same, "DEEPINFRA_API_KEY"),
        family(T::Moonshot, "moonshot", &[], Same, "MOONSHOT_API_KEY"),
        family(T::Qwen, "dashscope", &[], Same, "DASHSCOPE_API_KEY"),
        family(T::Replicate, "replicate", &[], Vendor, "REPLICATE_API_KEY"),
        family(T::Bedrock, "bedrock", &["bedrock_converse"], Region, "AWS_BEARER_TOKEN_BEDROCK"),
        family(T::Ollama, "ollama_chat", &["ollama"], Root, ""),
        family(T::Vllm, "hosted_vllm", &["vllm"], Always, ""),
        family(T::LmStudio, "lm_studio", &[], Always, ""),
        family(T::LiteLlm, "litellm_proxy", &[], Always, ""),
        // No word of their own: the dialect of OpenAI at a URL. The first of a prefix is what is read.
        family(T::OpenAiCompatible, "openai", &["custom_openai"], Always, ""),
        family(T::OpenAiUnderscored, "openai", &[], Always, ""),
        family(T::Custom, "openai", &[], Always, ""),
        family(T::Local, "openai", &[], Always, ""),
        family(T::UnicornCommander, "openai", &[], Always, ""),
        family(T::OllamaCloud, "openai", &[], Always, ""),
        family(T::LlamaCpp, "openai", &[], Always, ""),
        family(T::HuggingFace, "openai", &[], Always, ""),
        family(T::Zhipu, "openai", &[], Always, ""),
        family(T::MiniMax, "openai", &[], Always, ""),
    ]
};

/// How LiteLLM calls this type; `None`: it cannot be asked as a manifest declares it.
pub(super) fn of_type(kind: ProviderType) -> Option<&'static LiteLlmFamily> {
    FAMILIES.iter().find(|family| family.kind == kind)
}

/// The type that LiteLLM calls so.
pub(super) fn of_prefix(word: &str) -> Option<&'static LiteLlmFamily> {
    FAMILIES.iter().find(|family| family.prefix == word || family.also.contains(&word))
}

/// What speaks OpenAI's dialect at a URL.
pub(super) fn compatible() -> Option<&'static LiteLlmFamily> {
    of_type(ProviderType::OpenAiCompatible)
}

impl LiteLlmFamily {
    /// Its type at a host that is not the vendor's: OpenAI's dialect elsewhere has checks and key tests of its own.
    pub fn kind_elsewhere(&self) -> ProviderType {
        if self.kind == ProviderType::OpenAi { ProviderType::OpenAiCompatible } else { self.kind }
    }
}

/// Whose models are called so, where a name alone is known to LiteLLM.
pub(super) fn of_model(model: &str) -> Option<&'static LiteLlmFamily> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| model.starts_with(prefix));
    let kind = if begins(&["gpt-", "chatgpt-", "o1", "o3", "o4", "text-embedding-", "davinci", "babbage"]) {
        ProviderType::OpenAi
    } else if begins(&["claude-"]) {
        ProviderType::Anthropic
    } else if begins(&["gemini-"]) {
        ProviderType::Google
    } else if begins(&["command-", "embed-"]) {
        ProviderType::Cohere
    } else {
        return None;
    };
    of_type(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_carried_or_known_not_to_be() {
        let left: Vec<&str> = ProviderType::ALL
            .iter()
            .filter(|kind| of_type(**kind).is_none())
            .map(|kind| kind.as_str())
            .collect();
        assert_eq!(left, ["github-models", "vertex"]);
    }

    #[test]
    fn words_lead_to_one_type() {
        let check = |word: &str, kind: ProviderType| {
            assert_eq!(of_prefix(word).map(|it| it.kind), Some(kind), "{word}")
        };
        check("openai", ProviderType::OpenAi);
        check("ollama", ProviderType::Ollama);
        check("cohere", ProviderType::Cohere);
        check("custom_openai", ProviderType::OpenAiCompatible);
        assert!(of_prefix("sagemaker").is_none());
    }
}
