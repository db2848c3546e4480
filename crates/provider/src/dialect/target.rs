//! The dialects on both sides, the options of one translation, and what it gives.
//!
//! Not its job: translating. Invariant: everything that a translation depends on is in these values.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::{capability::ModelCapabilities, signature::Maker};
use crate::{ProviderType, family::family};

/// What a caller speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CallerDialect {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's Responses, without stored state.
    Responses,
    /// Anthropic's Messages.
    Messages,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpstreamDialect {
    /// Chat completions of OpenAI and of every server that is shaped alike.
    Chat,
    /// OpenAI's Responses.
    Responses,
    /// Chat completions of a deployment on Azure.
    Azure,
    /// Anthropic's Messages.
    Anthropic,
    /// Gemini at AI Studio, its own API.
    Google,
    /// Gemini on Vertex.
    Vertex,
    /// Claude on Vertex.
    VertexClaude,
    /// Bedrock's Converse.
    Bedrock,
    /// Cohere's second version.
    Cohere,
    /// Ollama's own `/api/chat`.
    Ollama,
}

impl UpstreamDialect {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Chat,
        Self::Responses,
        Self::Azure,
        Self::Anthropic,
        Self::Google,
        Self::Vertex,
        Self::VertexClaude,
        Self::Bedrock,
        Self::Cohere,
        Self::Ollama,
    ];

    /// The word in docs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Azure => "azure",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
            Self::Vertex => "vertex",
            Self::VertexClaude => "vertex-claude",
            Self::Bedrock => "bedrock",
            Self::Cohere => "cohere",
            Self::Ollama => "ollama",
        }
    }

    /// The dialect of a provider's type for this model; words that are no type speak chat. `None`: it has no
    /// chat protocol at all.
    pub fn of_provider(provider: &str, model: &str) -> Option<Self> {
        let Some(kind) = ProviderType::parse(provider) else { return Some(Self::Chat) };
        let dialects = family(kind).serving.dialects;
        dialects.iter().find(|(word, _)| model.contains(word)).map(|(_, dialect)| *dialect)
    }

    /// Whose proofs of reasoning this upstream makes and takes.
    pub(crate) fn maker(self, model: &str) -> Option<Maker> {
        Some(match self {
            Self::Anthropic | Self::VertexClaude => Maker::Anthropic,
            Self::Google => Maker::Google,
            Self::Vertex => Maker::Vertex,
            Self::Bedrock if model.contains("claude") => Maker::Anthropic,
            Self::Bedrock => Maker::Bedrock,
            Self::Responses => Maker::OpenAi,
            Self::Azure => Maker::Azure,
            Self::Chat | Self::Cohere | Self::Ollama => return None,
        })
    }
}

impl CallerDialect {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Chat, Self::Responses, Self::Messages];

    /// The word in docs.
    pub fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Responses => "responses",
            Self::Messages => "messages",
        }
    }

    /// The upstream that speaks the same.
    pub fn is_native(self, upstream: UpstreamDialect) -> bool {
        matches!(
            (self, upstream),
            (Self::Chat, UpstreamDialect::Chat | UpstreamDialect::Azure)
                | (Self::Responses, UpstreamDialect::Responses)
                | (Self::Messages, UpstreamDialect::Anthropic)
        )
    }
}

/// What a translation needs to know beside the body.
#[derive(Clone, Debug, Default)]
pub struct TranslateOptions {
    /// The model's or deployment's name at the provider.
    pub model: String,
    /// The name that answers give the model: what the caller asked for.
    pub shown_model: String,
    /// What the model takes.
    pub capabilities: ModelCapabilities,
    /// An id of this request in letters, digits, `-` and `_`: ids that an upstream leaves out are made from it.
    pub id: String,
    /// Seconds since 1970, for dialects that want a time.
    pub now: u64,
    /// Azure's `api-version`; without one the path of version 1 is used.
    pub api_version: Option<String>,
    /// Vertex: the project.
    pub project: Option<String>,
    /// Vertex: the location.
    pub location: Option<String>,
    /// Tools that only the caller's own provider can run are dropped instead of refused.
    pub drop_hosted_tools: bool,
    /// A forced tool that the model cannot be held to becomes `auto` instead of a refusal.
    pub relax_tool_choice: bool,
    /// Ollama: the context window (`num_ctx`).
    pub window: Option<u64>,
}

/// What a path is put behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathRoot {
    /// The provider's base URL.
    Base,
    /// Scheme, host and port of it.
    Origin,
}

/// How the upstream frames its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFraming {
    /// Server-sent events.
    Sse,
    /// One JSON text per line.
    Lines,
    /// Amazon's event stream.
    Aws,
}

/// A request in the upstream's dialect.
#[derive(Clone, Debug)]
pub struct TranslatedRequest {
    /// Always `POST` today.
    pub method: &'static str,
    /// What `path` is put behind.
    pub root: PathRoot,
    /// The path with its query, percent-encoded.
    pub path: String,
    /// Headers beside authentication, names in lower case.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Vec<u8>,
    /// A stream will come.
    pub stream: bool,
    /// Hints that were dropped, by the caller's names for them.
    pub dropped: Vec<String>,
    /// An estimate of the input's tokens, for budgets and for dialects that show usage first.
    pub estimate: u64,
    /// What the answer's translation needs.
    pub session: TranslateSession,
}

/// What connects a request and its answer.
#[derive(Clone, Debug)]
pub struct TranslateSession {
    pub(crate) caller: CallerDialect,
    pub(crate) upstream: UpstreamDialect,
    pub(crate) model: String,
    pub(crate) shown_model: String,
    pub(crate) id: String,
    pub(crate) now: u64,
    pub(crate) include_usage: bool,
    pub(crate) estimate: u64,
    /// Tool names as sent → as the caller declared them, where they differ.
    pub(crate) names: BTreeMap<String, String>,
    /// Tools that take free text, by the caller's name.
    pub(crate) free_text: Vec<String>,
    /// Fields of the request that a Responses object repeats.
    pub(crate) echo: serde_json::Value,
}

impl TranslateSession {
    /// The dialect that the upstream was asked in: not always the one that was named, see
    /// [`ModelCapabilities::tools_need_responses`].
    pub fn upstream(&self) -> UpstreamDialect {
        self.upstream
    }

    /// The caller's dialect.
    pub fn caller(&self) -> CallerDialect {
        self.caller
    }

    pub(crate) fn maker(&self) -> Option<Maker> {
        self.upstream.maker(&self.model)
    }

    /// The caller's name for a tool.
    pub(crate) fn tool_name<'a>(&'a self, sent: &'a str) -> &'a str {
        self.names.get(sent).map_or(sent, String::as_str)
    }
}

/// Why a request cannot be given to this upstream: 400 in the caller's dialect, or another candidate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// The body is not what the caller's dialect says.
    #[error("{param}: {message}")]
    Invalid {
        /// The path of the field.
        param: String,
        /// What is wrong with it.
        message: String,
    },
    /// The upstream has no such thing: `unsupported_parameter`.
    #[error("{param} is not supported by {by}: {why}")]
    Unsupported {
        /// The caller's name of the field.
        param: String,
        /// Who cannot: a dialect's word or a model.
        by: String,
        /// Why, and what to do.
        why: String,
    },
}

impl TranslateError {
    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    pub(crate) fn unsupported(
        param: impl Into<String>,
        by: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::Unsupported { param: param.into(), by: by.into(), why: why.into() }
    }

    /// The field to blame.
    pub fn param(&self) -> &str {
        match self {
            Self::Invalid { param, .. } | Self::Unsupported { param, .. } => param,
        }
    }

    /// The code of the error object: `unsupported_parameter` or `invalid_request`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Invalid { .. } => "invalid_request",
            Self::Unsupported { .. } => "unsupported_parameter",
        }
    }
}
