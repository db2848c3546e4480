//! The types of providers, by the words that manifests and the database use.

use crate::words;

words! {
    /// Which protocol a provider speaks: authentication, endpoints and error shapes.
    ProviderType {
        OpenAi = "openai",
        Anthropic = "anthropic",
        Google = "google",
        AzureOpenAi = "azure-openai",
        OpenRouter = "openrouter",
        OllamaCloud = "ollama-cloud",
        Ollama = "ollama",
        Vllm = "vllm",
        LlamaCpp = "llama.cpp",
        Groq = "groq",
        Together = "together",
        Mistral = "mistral",
        Cohere = "cohere",
        DeepSeek = "deepseek",
        Xai = "xai",
        Fireworks = "fireworks",
        Perplexity = "perplexity",
        Cerebras = "cerebras",
        SambaNova = "sambanova",
        NvidiaNim = "nvidia-nim",
        HuggingFace = "huggingface",
        Replicate = "replicate",
        DeepInfra = "deepinfra",
        Moonshot = "moonshot",
        Zhipu = "zhipu",
        Qwen = "qwen",
        MiniMax = "minimax",
        /// Retired by its operator on 2026-07-30; kept so that old manifests get a clear warning.
        GithubModels = "github-models",
        Bedrock = "bedrock",
        Vertex = "vertex",
        OpenAiCompatible = "openai-compatible",
        Custom = "custom",
    }
}

impl ProviderType {
    /// The base URL used when a manifest names none; `None` where only the operator can know it.
    pub const fn default_base_url(self) -> Option<&'static str> {
        Some(match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com/v1",
            Self::Google => "https://generativelanguage.googleapis.com/v1beta",
            Self::OpenRouter => "https://openrouter.ai/api/v1",
            Self::OllamaCloud => "https://ollama.com/v1",
            Self::Ollama => "http://127.0.0.1:11434",
            Self::Vllm => "http://127.0.0.1:8000/v1",
            Self::LlamaCpp => "http://127.0.0.1:8080",
            Self::Groq => "https://api.groq.com/openai/v1",
            Self::Together => "https://api.together.xyz/v1",
            Self::Mistral => "https://api.mistral.ai/v1",
            Self::Cohere => "https://api.cohere.com",
            Self::DeepSeek => "https://api.deepseek.com",
            Self::Xai => "https://api.x.ai/v1",
            Self::Fireworks => "https://api.fireworks.ai/inference/v1",
            Self::Perplexity => "https://api.perplexity.ai",
            Self::Cerebras => "https://api.cerebras.ai/v1",
            Self::SambaNova => "https://api.sambanova.ai/v1",
            Self::NvidiaNim => "https://integrate.api.nvidia.com/v1",
            Self::HuggingFace => "https://router.huggingface.co/v1",
            Self::Replicate => "https://api.replicate.com/v1",
            Self::DeepInfra => "https://api.deepinfra.com/v1/openai",
            Self::Moonshot => "https://api.moonshot.ai/v1",
            Self::Zhipu => "https://open.bigmodel.cn/api/paas/v4",
            Self::Qwen => "https://dashscope.aliyuncs.com/compatible-mode/v1",
            Self::MiniMax => "https://api.minimax.io/v1",
            Self::GithubModels => "https://models.github.ai/inference",
            Self::AzureOpenAi | Self::Bedrock | Self::Vertex | Self::OpenAiCompatible | Self::Custom => {
                return None;
            }
        })
    }
}
