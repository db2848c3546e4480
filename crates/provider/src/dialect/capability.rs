//! What a model takes and what it refuses, as data: defaults by family and by name, overridable in manifests.
//!
//! Not its job: looking anything up. Invariant: adapters ask this table and no model's name; what a family's wire
//! cannot carry at all is the adapter's own knowledge.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{inner::EffortLevel, target::UpstreamDialect};
use crate::{ProviderType, family::family};

/// How a model wants to be asked for reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReasoningForm {
    /// It has none, or no switch: wishes are dropped.
    #[default]
    None,
    /// A word: `reasoning_effort`, `reasoning.effort`, Ollama's `think`.
    Effort,
    /// Anthropic's `thinking` with a budget of tokens; Cohere's `thinking`; Gemini 2.5's `thinkingBudget`.
    Budget,
    /// Anthropic's `thinking: adaptive` beside `output_config.effort`.
    Adaptive,
    /// Gemini 3's `thinkingLevel`.
    Level,
    /// `thinking: {type}` of DeepSeek, Z.ai and Moonshot: on or off.
    Switch,
    /// OpenRouter's object `reasoning`.
    Object,
    /// `enable_thinking` of Qwen.
    Flag,
}

/// Structured output that a model can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StructuredForm {
    /// None: refused.
    None,
    /// Any JSON; a schema is given as an instruction beside it.
    Json,
    /// A schema.
    #[default]
    Schema,
}

/// The role of instructions on chat wires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum InstructionRole {
    /// `system`.
    #[default]
    System,
    /// `developer`.
    Developer,
}

/// Which earlier reasoning a model wants back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ReasoningReplay {
    /// None.
    #[default]
    Never,
    /// Its own, with its proof.
    Signed,
    /// The text, as `reasoning_content`; a placeholder where it was lost.
    Text,
}

/// What one model takes. A manifest overrides single fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelCapabilities {
    /// `temperature` is taken.
    pub temperature: bool,
    /// Its largest value; more is cut to it.
    pub temperature_max: f64,
    /// `top_p` is taken.
    pub top_p: bool,
    /// `top_k` is taken.
    pub top_k: bool,
    /// `seed` is taken.
    pub seed: bool,
    /// Presence and frequency penalties are taken.
    pub penalties: bool,
    /// Stop sequences are taken, at most so many; 0 is none.
    pub stop: usize,
    /// Sampling parameters are refused while the model reasons.
    pub sampling_without_reasoning: bool,
    /// Tools are taken.
    pub tools: bool,
    /// A call can be forced (`required`, one tool by name).
    pub forced_tools: bool,
    /// A call can be forced while the model reasons.
    pub forced_tools_with_reasoning: bool,
    /// `tool_choice` can be given at all; without, only `auto` and `none` can be honoured.
    pub tool_choice: bool,
    /// `parallel_tool_calls` is taken.
    pub parallel_tools: bool,
    /// `strict` in a tool is taken.
    pub strict_tools: bool,
    /// Structured output.
    pub structured: StructuredForm,
    /// A schema and a stream can be asked for together.
    pub structured_streams: bool,
    /// How reasoning is asked for.
    pub reasoning: ReasoningForm,
    /// Words of effort that are taken; the nearest is used.
    pub efforts: Vec<EffortLevel>,
    /// Which earlier reasoning goes back.
    pub replay: ReasoningReplay,
    /// The role of instructions.
    pub instructions: InstructionRole,
    /// Images are taken.
    pub images: bool,
    /// Images may be addresses.
    pub image_urls: bool,
    /// Documents are taken.
    pub documents: bool,
    /// Sound is taken.
    pub audio: bool,
    /// Content must be a string, not a list of parts.
    pub plain_content: bool,
    /// The limit is called `max_completion_tokens`.
    pub max_completion_tokens: bool,
    /// The most output tokens that may be asked for.
    pub output_cap: Option<u64>,
    /// Marks for the prompt cache are taken.
    pub cache_marks: bool,
    /// `stream_options.include_usage` is taken.
    pub stream_usage: bool,
    /// Requests with tools go to `/responses` instead of chat (gpt-5.4 and later, gateway-protocols §9.2).
    pub tools_need_responses: bool,
    /// The chat wire takes `user`, `service_tier`, `verbosity`, `prompt_cache_key`.
    pub openai_extras: bool,
    /// Top-level fields of the chat wire under another name, e.g. Mistral's `random_seed`.
    pub renames: std::collections::BTreeMap<String, String>,
}

impl Default for ModelCapabilities {
    /// An OpenAI-shaped server of which nothing is known: it takes what all of them take.
    fn default() -> Self {
        Self {
            temperature: true,
            temperature_max: 2.0,
            top_p: true,
            top_k: false,
            seed: true,
            penalties: true,
            stop: 4,
            sampling_without_reasoning: false,
            tools: true,
            forced_tools: true,
            forced_tools_with_reasoning: true,
            tool_choice: true,
            parallel_tools: true,
            strict_tools: true,
            structured: StructuredForm::Schema,
            structured_streams: true,
            reasoning: ReasoningForm::Effort,
            efforts: vec![EffortLevel::Low, EffortLevel::Medium, EffortLevel::High],
            replay: ReasoningReplay::Never,
            instructions: InstructionRole::System,
            images: true,
            image_urls: true,
            documents: true,
            audio: false,
            plain_content: false,
            max_completion_tokens: false,
            output_cap: None,
            cache_marks: false,
            stream_usage: true,
            tools_need_responses: false,
            openai_extras: false,
            renames: std::collections::BTreeMap::new(),
        }
    }
}

/// Whether `name` has `word`, at its start or after a separator: `us.anthropic.claude-…`, `openai/gpt-5`.
fn named(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(at, _)| {
        name.get(..at)
            .and_then(|before| before.chars().next_back())
            .is_none_or(|c| !c.is_ascii_alphanumeric())
    })
}

/// The version after `word`, as (major, minor): `gpt-5.4-mini` after `gpt-` is (5, 4), `claude-opus-4-7-2026…` after
/// `opus-` is (4, 7). A date is no minor version.
fn version(name: &str, word: &str) -> Option<(u32, u32)> {
    let at = name.match_indices(word).find(|(at, _)| {
        name.get(..*at)
            .and_then(|before| before.chars().next_back())
            .is_none_or(|c| !c.is_ascii_alphanumeric())
    })?;
    let rest = name.get(at.0 + word.len()..)?;
    let mut parts = rest.split(['.', '-', '_', ':', '@', 'v']);
    let number = |text: &str| text.parse::<u32>().ok().filter(|n| *n < 100);
    let major = number(parts.next()?)?;
    Some((major, parts.next().and_then(number).unwrap_or(0)))
}

fn is_openai_reasoning(name: &str) -> bool {
    ["o1", "o3", "o4"].iter().any(|word| named(name, word))
        || version(name, "gpt-").is_some_and(|v| v >= (5, 0)) && !name.contains("chat")
}

/// The defaults for a model of this family's wire. `provider` is the provider's type in the manifest (`mistral`,
/// `deepseek`, …): compatible servers differ by it.
pub fn defaults(upstream: UpstreamDialect, provider: &str, model: &str) -> ModelCapabilities {
    use EffortLevel as E;
    let name = model.to_ascii_lowercase();
    let mut caps = ModelCapabilities::default();
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Responses | UpstreamDialect::Azure => {
            chat(&mut caps, upstream, provider, &name)
        }
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => claude(&mut caps, &name),
        UpstreamDialect::Google | UpstreamDialect::Vertex => {
            caps.top_k = true;
            caps.stop = 5;
            // Many models answer 400 "Penalty is not enabled" (BerriAI/litellm#26108).
            caps.penalties = false;
            caps.audio = true;
            caps.parallel_tools = false;
            caps.strict_tools = false;
            caps.replay = ReasoningReplay::Signed;
            match version(&name, "gemini-") {
                Some(v) if v >= (3, 0) => {
                    caps.reasoning = ReasoningForm::Level;
                    caps.efforts = vec![E::Low, E::High];
                    if name.contains("flash") {
                        caps.efforts = vec![E::Minimal, E::Low, E::Medium, E::High];
                    }
                }
                Some((2, 5)) => {
                    caps.reasoning = ReasoningForm::Budget;
                    caps.efforts = vec![E::Low, E::Medium, E::High, E::Xhigh, E::Max];
                    if name.contains("flash") {
                        caps.efforts.insert(0, E::None);
                    }
                }
                Some(_) => {
                    caps.reasoning = ReasoningForm::None;
                    caps.efforts.clear();
                }
                None => {}
            }
            if upstream == UpstreamDialect::Google {
                // Which addresses AI Studio fetches is not documented.
                caps.image_urls = false;
            }
        }
        UpstreamDialect::Bedrock => {
            caps.image_urls = false;
            caps.seed = false;
            caps.penalties = false;
            caps.parallel_tools = false;
            caps.reasoning = ReasoningForm::None;
            caps.temperature_max = 1.0;
            caps.strict_tools = false;
            if named(&name, "claude") {
                let keep = caps.clone();
                claude(&mut caps, &name);
                caps.image_urls = keep.image_urls;
                caps.parallel_tools = false;
                caps.strict_tools = false;
            } else {
                caps.top_k = false;
                caps.structured = StructuredForm::Json;
                caps.cache_marks = named(&name, "nova");
                caps.forced_tools = named(&name, "nova") || named(&name, "mistral");
            }
        }
        UpstreamDialect::Cohere => {
            caps.top_k = true;
            caps.stop = 5;
            caps.parallel_tools = false;
            caps.image_urls = true;
            caps.images = name.contains("vision") || name.contains("command-a-plus");
            caps.documents = false;
            caps.efforts.insert(0, E::None);
            caps.reasoning =
                if name.contains("reasoning") { ReasoningForm::Budget } else { ReasoningForm::None };
        }
        UpstreamDialect::Ollama => {
            caps.top_k = true;
            caps.tool_choice = false;
            caps.forced_tools = false;
            caps.parallel_tools = false;
            caps.strict_tools = false;
            caps.image_urls = false;
            caps.documents = false;
            caps.efforts = vec![E::None, E::Low, E::Medium, E::High, E::Max];
        }
    }
    caps
}

/// Claude, wherever it runs.
fn claude(caps: &mut ModelCapabilities, name: &str) {
    use EffortLevel as E;
    caps.temperature_max = 1.0;
    caps.top_k = true;
    caps.seed = false;
    caps.penalties = false;
    // The API documents no bound; this one only keeps a mistake from travelling.
    caps.stop = 8191;
    caps.cache_marks = true;
    caps.sampling_without_reasoning = true;
    caps.forced_tools_with_reasoning = false;
    caps.parallel_tools = true;
    caps.replay = ReasoningReplay::Signed;
    let versioned = ["opus-", "sonnet-", "haiku-", "fable-", "mythos-"]
        .iter()
        .find_map(|word| version(name, word))
        .or_else(|| version(name, "claude-"));
    let new_line = ["fable", "mythos"].iter().any(|word| name.contains(word));
    let at_least = |v: (u32, u32)| versioned.is_some_and(|own| own >= v) || new_line;
    // Opus 4.7, Sonnet 5 and all of the newest lines refuse every sampling parameter (theopenco/llmgateway#3108).
    if at_least((4, 7)) {
        caps.temperature = false;
        caps.top_p = false;
        caps.top_k = false;
    }
    if at_least((4, 6)) {
        caps.reasoning = ReasoningForm::Adaptive;
        caps.efforts = vec![E::None, E::Low, E::Medium, E::High, E::Xhigh, E::Max];
    } else if at_least((3, 7)) {
        caps.reasoning = ReasoningForm::Budget;
        caps.efforts = vec![E::None, E::Low, E::Medium, E::High, E::Xhigh, E::Max];
    } else {
        caps.reasoning = ReasoningForm::None;
        caps.efforts.clear();
    }
    if new_line {
        caps.forced_tools = false;
    }
    caps.structured = if at_least((4, 1)) { StructuredForm::Schema } else { StructuredForm::Json };
    caps.output_cap = match versioned {
        Some(v) if v < (3, 5) => Some(4096),
        Some(v) if v < (3, 7) => Some(8192),
        _ => None,
    };
}

/// OpenAI and the servers that speak like it.
fn chat(caps: &mut ModelCapabilities, upstream: UpstreamDialect, provider: &str, name: &str) {
    use EffortLevel as E;
    let openai =
        provider == "openai" || upstream == UpstreamDialect::Azure || upstream == UpstreamDialect::Responses;
    caps.openai_extras = openai;
    if openai {
        caps.max_completion_tokens = true;
        caps.instructions = InstructionRole::Developer;
        caps.audio = name.contains("audio");
        if is_openai_reasoning(name) {
            caps.sampling_without_reasoning = true;
            caps.temperature = false;
            caps.top_p = false;
            caps.penalties = false;
            caps.stop = 0;
            caps.efforts = vec![E::Low, E::Medium, E::High];
            match version(name, "gpt-") {
                Some((5, 0)) => caps.efforts.insert(0, E::Minimal),
                Some(v) if v >= (5, 1) => {
                    caps.efforts.insert(0, E::None);
                    if v >= (5, 2) {
                        caps.efforts.push(E::Xhigh);
                    }
                }
                _ => {}
            }
            caps.tools_need_responses =
                upstream == UpstreamDialect::Chat && version(name, "gpt-").is_some_and(|v| v >= (5, 4));
            caps.replay = if upstream == UpstreamDialect::Responses || caps.tools_need_responses {
                ReasoningReplay::Signed
            } else {
                ReasoningReplay::Never
            };
        } else {
            caps.reasoning = ReasoningForm::None;
            caps.efforts.clear();
            caps.instructions = InstructionRole::System;
        }
    }
    if upstream == UpstreamDialect::Responses {
        caps.stop = 0;
        caps.seed = false;
        caps.penalties = false;
        return;
    }
    if let Some(kind) = ProviderType::parse(provider) {
        (family(kind).serving.takes)(caps, name);
    }
}

impl ModelCapabilities {
    /// The fields, as a manifest names them.
    pub const FIELDS: &[&str] = &[
        "temperature",
        "temperature_max",
        "top_p",
        "top_k",
        "seed",
        "penalties",
        "stop",
        "sampling_without_reasoning",
        "tools",
        "forced_tools",
        "forced_tools_with_reasoning",
        "tool_choice",
        "parallel_tools",
        "strict_tools",
        "structured",
        "structured_streams",
        "reasoning",
        "efforts",
        "replay",
        "instructions",
        "images",
        "image_urls",
        "documents",
        "audio",
        "plain_content",
        "max_completion_tokens",
        "output_cap",
        "cache_marks",
        "stream_usage",
        "tools_need_responses",
        "openai_extras",
        "renames",
    ];

    /// Whether a field may have this value.
    ///
    /// # Errors
    /// What it must be, in words.
    pub fn check(field: &str, value: &Value) -> Result<(), String> {
        let one: Map<String, Value> = [(field.to_owned(), value.clone())].into_iter().collect();
        serde_json::from_value::<Self>(one.into()).map(drop).map_err(|error| error.to_string())
    }

    /// The same with the fields that a manifest overrides. What [`Self::check`] refuses changes nothing.
    #[must_use]
    pub fn with(self, fields: &Map<String, Value>) -> Self {
        let Ok(Value::Object(mut whole)) = serde_json::to_value(&self) else { return self };
        whole.extend(fields.iter().map(|(field, value)| (field.clone(), value.clone())));
        serde_json::from_value(whole.into()).unwrap_or(self)
    }

    /// The nearest word of effort that the model takes; below its least it is the least, and `none` is never made of
    /// another word.
    pub fn effort(&self, wish: EffortLevel) -> Option<EffortLevel> {
        if wish == EffortLevel::None {
            return self.efforts.contains(&wish).then_some(wish);
        }
        let mut able = self.efforts.iter().copied().filter(|level| *level != EffortLevel::None);
        let first = able.next()?;
        Some(able.fold(first, |best, level| {
            let far = |level: EffortLevel| (level as i32 - wish as i32).abs();
            if far(level) < far(best) || far(level) == far(best) && level > best { level } else { best }
        }))
    }
}
