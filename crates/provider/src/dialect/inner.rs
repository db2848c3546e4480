//! The one form that every dialect is read into and written from: requests, whole responses, streams of events.
//!
//! Not its job: any wire. Invariants: a turn's blocks keep their order; tool results come first in their turn and
//! follow the turn that called; a stream has at most one open block, so its deltas need no index.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{failure::UpstreamFailure, signature::Signature};

/// Who a turn belongs to. Instructions stand apart, in [`InnerRequest::system`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The caller, tool results included.
    User,
    /// The model.
    Assistant,
}

/// A caller's wish that everything up to a block be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheMark {
    /// Five minutes, or the provider's default.
    Short,
    /// One hour.
    Long,
}

/// Where the bytes of an image or a document are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MediaSource {
    /// In the request, as base64 text.
    Inline {
        /// MIME type, e.g. `image/png`.
        media_type: String,
        /// The bytes as base64.
        data: String,
    },
    /// Behind an address that the provider fetches.
    Url(String),
}

/// One part of a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContentBlock {
    /// Plain text.
    Text {
        /// The text.
        text: String,
        /// Cache up to here.
        cache: Option<CacheMark>,
    },
    /// The model's own words for not answering.
    Refusal(String),
    /// An image.
    Image {
        /// Where it is.
        source: MediaSource,
        /// `low`, `high`, `auto` of the chat dialect.
        detail: Option<String>,
        /// Cache up to here.
        cache: Option<CacheMark>,
    },
    /// A document, mostly PDF.
    Document {
        /// Where it is.
        source: MediaSource,
        /// Its file name or title.
        name: Option<String>,
        /// Cache up to here.
        cache: Option<CacheMark>,
    },
    /// Sound.
    Audio {
        /// `wav`, `mp3`, …
        format: String,
        /// The bytes as base64.
        data: String,
    },
    /// A call of a tool by the model.
    ToolUse {
        /// The call's id; the result names it.
        id: String,
        /// The tool's name as the caller declared it.
        name: String,
        /// The arguments: the text of a JSON object.
        input: String,
        /// A signature that some makers put on calls.
        signature: Option<Signature>,
        /// Cache up to here.
        cache: Option<CacheMark>,
    },
    /// What a tool answered.
    ToolResult {
        /// The id of the call.
        id: String,
        /// Text, images, documents.
        content: Vec<ContentBlock>,
        /// The tool failed.
        is_error: bool,
        /// Cache up to here.
        cache: Option<CacheMark>,
    },
    /// The model's reasoning.
    Thinking {
        /// Its text, or a summary.
        text: String,
        /// Proof for its maker that the text is its own.
        signature: Option<Signature>,
    },
    /// Reasoning that its maker hides: opaque.
    Redacted(Signature),
}

impl ContentBlock {
    /// Text without a cache mark.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into(), cache: None }
    }
}

/// Neighbouring blocks of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialogTurn {
    /// Whose.
    pub side: Side,
    /// In order.
    pub blocks: Vec<ContentBlock>,
}

/// A tool that the caller offers.
#[derive(Clone, Debug, PartialEq)]
pub struct ToolDecl {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of the arguments, an object.
    pub schema: Value,
    /// The caller wants arguments that follow the schema.
    pub strict: Option<bool>,
    /// Cache up to here.
    pub cache: Option<CacheMark>,
    /// It takes one free text, not JSON (`custom` in Responses); offered elsewhere with one argument `input`.
    pub free_text: bool,
}

/// Whether and which tool must be called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolRule {
    /// The model decides.
    Auto,
    /// None may be called.
    Never,
    /// One must be called.
    Any,
    /// This one must be called.
    Named(String),
}

/// The form that the answer must have.
#[derive(Clone, Debug, PartialEq)]
pub enum AnswerForm {
    /// Any JSON object.
    Json,
    /// JSON that follows a schema.
    Schema {
        /// Its name on wires that want one.
        name: String,
        /// What it is for.
        description: Option<String>,
        /// JSON Schema.
        schema: Value,
        /// Follow it strictly.
        strict: Option<bool>,
    },
}

/// How hard to think, in words that all wires share.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum EffortLevel {
    /// Not at all.
    None,
    /// As little as possible.
    Minimal,
    /// Little.
    Low,
    /// As usual.
    Medium,
    /// Much.
    High,
    /// More.
    Xhigh,
    /// As much as possible.
    Max,
}

impl EffortLevel {
    /// All, from the least to the most.
    pub const ALL: [Self; 7] =
        [Self::None, Self::Minimal, Self::Low, Self::Medium, Self::High, Self::Xhigh, Self::Max];

    /// The word on the wire.
    pub fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Xhigh => "xhigh",
            Self::Max => "max",
        }
    }

    /// Reads the word on the wire.
    pub fn read(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|level| level.word() == word)
    }

    /// Tokens for wires that want a budget. Figures of agentgateway and LiteLLM (gateway-protocols §3.1).
    pub fn budget(self) -> u64 {
        match self {
            Self::None => 0,
            Self::Minimal | Self::Low => 1024,
            Self::Medium => 2048,
            Self::High => 4096,
            Self::Xhigh => 8192,
            Self::Max => 16384,
        }
    }

    /// The word for a budget: the inverse of [`Self::budget`] as far as words go (§7.1).
    pub fn of_budget(tokens: u64) -> Self {
        match tokens {
            0 => Self::None,
            1..=1024 => Self::Low,
            1025..=2048 => Self::Medium,
            _ => Self::High,
        }
    }
}

/// What the caller asked of the model's reasoning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReasoningWish {
    /// In words.
    pub effort: Option<EffortLevel>,
    /// In tokens.
    pub budget: Option<u64>,
    /// The model decides how much (`adaptive`).
    pub adaptive: bool,
    /// The caller wants to read a summary of it.
    pub summary: bool,
}

impl ReasoningWish {
    /// Switched off by name.
    pub fn is_off(self) -> bool {
        self.effort == Some(EffortLevel::None) || (self.effort.is_none() && self.budget == Some(0))
    }

    /// In words, whatever it was given in; adaptive without a word is high (agentgateway's reading).
    pub fn level(self) -> EffortLevel {
        match (self.effort, self.budget) {
            (Some(effort), _) => effort,
            (None, Some(tokens)) => EffortLevel::of_budget(tokens),
            (None, None) => EffortLevel::High,
        }
    }

    /// In tokens, whatever it was given in.
    pub fn tokens(self) -> u64 {
        self.budget.unwrap_or_else(|| self.level().budget())
    }
}

/// A request of any dialect.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InnerRequest {
    /// The model as the caller named it.
    pub model: String,
    /// Instructions, in order: text blocks only.
    pub system: Vec<ContentBlock>,
    /// The conversation.
    pub turns: Vec<DialogTurn>,
    /// Tools on offer.
    pub tools: Vec<ToolDecl>,
    /// Which must be called.
    pub tool_rule: Option<ToolRule>,
    /// More than one call at once is allowed.
    pub parallel_tools: Option<bool>,
    /// Structured output.
    pub form: Option<AnswerForm>,
    /// Most tokens of the answer.
    pub max_tokens: Option<u64>,
    /// Sampling.
    pub temperature: Option<f64>,
    /// Sampling.
    pub top_p: Option<f64>,
    /// Sampling.
    pub top_k: Option<u64>,
    /// Sampling.
    pub seed: Option<i64>,
    /// −2 to 2.
    pub presence_penalty: Option<f64>,
    /// −2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Sequences that end the answer.
    pub stop: Vec<String>,
    /// How much to think.
    pub reasoning: Option<ReasoningWish>,
    /// How wordy to be (`low`, `medium`, `high`).
    pub verbosity: Option<String>,
    /// Answer as a stream.
    pub stream: bool,
    /// Show usage at the end of a chat stream.
    pub include_usage: bool,
    /// Opaque id of the end user.
    pub user: Option<String>,
    /// `auto`, `default`, `priority`, `flex`.
    pub service_tier: Option<String>,
    /// The caller's labels.
    pub metadata: BTreeMap<String, String>,
    /// The session for the provider's prompt cache.
    pub cache_key: Option<String>,
    /// Hints of the caller's dialect that have no place here, by name.
    pub dropped: Vec<String>,
    /// The caller's own fields that its response repeats (Responses).
    pub echo: Value,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinishReason {
    /// The model was done.
    #[default]
    Stop,
    /// A stop sequence was met.
    StopSequence,
    /// The limit of tokens, or of the window.
    Length,
    /// The model waits for results of tools.
    ToolUse,
    /// The provider or the model withheld the answer.
    Filtered,
}

/// Where figures of usage come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenSource {
    /// Nothing is known.
    #[default]
    None,
    /// The provider reported them.
    Reported,
    /// They were estimated from bytes.
    Estimated,
    /// Some were reported and the answer broke off.
    Partial,
}

/// Tokens in five parts, the same for all wires (gateway-protocols §10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenParts {
    /// Input that was neither read from nor written to a cache.
    pub input: u64,
    /// All output, reasoning included.
    pub output: u64,
    /// Input read from a cache.
    pub cache_read: u64,
    /// Input written to a cache, of any lifetime.
    pub cache_write: u64,
    /// The share of `output` that is reasoning.
    pub reasoning: u64,
    /// The share of `cache_write` that lives an hour: it has a price of its own.
    pub cache_write_long: u64,
    /// The cost that the provider reported, in 1e-10 USD.
    pub reported_cost: Option<u64>,
    /// Whose figures.
    pub source: TokenSource,
}

impl TokenParts {
    /// All input: cached, written and neither.
    pub fn input_total(&self) -> u64 {
        self.input.saturating_add(self.cache_read).saturating_add(self.cache_write)
    }

    /// All tokens.
    pub fn total(&self) -> u64 {
        self.input_total().saturating_add(self.output)
    }
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InnerResponse {
    /// The provider's id; may be empty.
    pub id: String,
    /// The provider's word for the model; may be empty.
    pub model: String,
    /// Reasoning, text, calls, in order.
    pub blocks: Vec<ContentBlock>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Which stop sequence was met.
    pub stop_sequence: Option<String>,
    /// Tokens.
    pub usage: TokenParts,
}

/// What kind of block a stream opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Text.
    Text,
    /// The model's words for not answering.
    Refusal,
    /// Reasoning.
    Thinking,
    /// A call; its deltas are the text of a JSON object.
    Tool {
        /// The call's id.
        id: String,
        /// The tool.
        name: String,
        /// The maker's signature of the call.
        signature: Option<Signature>,
    },
}

/// One step of a streamed answer. Order: `Start`, blocks (each `Open`, `Delta`s, perhaps `Sign`, `Close`, or one
/// `Redacted`), `Finish`, `End`; `Usage` anywhere, the last one counts; `Failed` ends it at any place.
#[derive(Clone, Debug, PartialEq)]
pub enum InnerEvent {
    /// The answer begins.
    Start {
        /// The provider's id; may be empty.
        id: String,
        /// The provider's word for the model; may be empty.
        model: String,
    },
    /// A block begins.
    Open(BlockKind),
    /// More of the open block.
    Delta(String),
    /// The open block of reasoning is signed.
    Sign(Signature),
    /// A whole block of hidden reasoning.
    Redacted(Signature),
    /// The open block ends.
    Close,
    /// All figures known so far; replaces earlier ones, never adds.
    Usage(TokenParts),
    /// Why the answer ended.
    Finish {
        /// Why.
        reason: FinishReason,
        /// Which stop sequence was met.
        stop_sequence: Option<String>,
    },
    /// The answer is whole.
    End,
    /// The answer broke off, or never began.
    Failed(UpstreamFailure),
}

/// Adds the events of one answer up to the whole of it.
#[derive(Debug, Default)]
pub struct AnswerBuilder {
    response: InnerResponse,
    open: Option<ContentBlock>,
    failed: Option<UpstreamFailure>,
    ended: bool,
}

impl AnswerBuilder {
    /// Takes the next event.
    pub fn push(&mut self, event: InnerEvent) {
        match event {
            InnerEvent::Start { id, model } => {
                self.response.id = id;
                self.response.model = model;
            }
            InnerEvent::Open(kind) => {
                self.close();
                self.open = Some(match kind {
                    BlockKind::Text => ContentBlock::text(""),
                    BlockKind::Refusal => ContentBlock::Refusal(String::new()),
                    BlockKind::Thinking => ContentBlock::Thinking { text: String::new(), signature: None },
                    BlockKind::Tool { id, name, signature } => {
                        ContentBlock::ToolUse { id, name, input: String::new(), signature, cache: None }
                    }
                });
            }
            InnerEvent::Delta(more) => {
                if let Some(
                    ContentBlock::Text { text, .. }
                    | ContentBlock::Refusal(text)
                    | ContentBlock::Thinking { text, .. }
                    | ContentBlock::ToolUse { input: text, .. },
                ) = &mut self.open
                {
                    text.push_str(&more);
                }
            }
            InnerEvent::Sign(mark) => {
                if let Some(ContentBlock::Thinking { signature, .. }) = &mut self.open {
                    *signature = Some(mark);
                }
            }
            InnerEvent::Redacted(mark) => {
                self.close();
                self.response.blocks.push(ContentBlock::Redacted(mark));
            }
            InnerEvent::Close => self.close(),
            InnerEvent::Usage(usage) => self.response.usage = usage,
            InnerEvent::Finish { reason, stop_sequence } => {
                self.close();
                self.response.finish = reason;
                self.response.stop_sequence = stop_sequence;
            }
            InnerEvent::End => self.ended = true,
            InnerEvent::Failed(failure) => self.failed = Some(failure),
        }
    }

    fn close(&mut self) {
        self.response.blocks.extend(self.open.take());
    }

    /// The whole answer, or why there is none.
    pub fn finish(mut self) -> Result<InnerResponse, UpstreamFailure> {
        self.close();
        match self.failed {
            Some(failure) => Err(failure),
            None if self.ended => Ok(self.response),
            None => Err(UpstreamFailure::truncated()),
        }
    }
}

impl InnerResponse {
    /// The same answer as a stream.
    pub fn events(self) -> Vec<InnerEvent> {
        let mut events = vec![InnerEvent::Start { id: self.id, model: self.model }];
        for block in self.blocks {
            let (kind, text, signature) = match block {
                ContentBlock::Text { text, .. } => (BlockKind::Text, text, None),
                ContentBlock::Refusal(text) => (BlockKind::Refusal, text, None),
                ContentBlock::Thinking { text, signature } => (BlockKind::Thinking, text, signature),
                ContentBlock::ToolUse { id, name, input, signature, .. } => {
                    (BlockKind::Tool { id, name, signature }, input, None)
                }
                ContentBlock::Redacted(mark) => {
                    events.push(InnerEvent::Redacted(mark));
                    continue;
                }
                // A model answers with none of these.
                ContentBlock::Image { .. }
                | ContentBlock::Document { .. }
                | ContentBlock::Audio { .. }
                | ContentBlock::ToolResult { .. } => continue,
            };
            events.push(InnerEvent::Open(kind));
            if !text.is_empty() {
                events.push(InnerEvent::Delta(text));
            }
            events.extend(signature.map(InnerEvent::Sign));
            events.push(InnerEvent::Close);
        }
        events.push(InnerEvent::Usage(self.usage));
        events.push(InnerEvent::Finish { reason: self.finish, stop_sequence: self.stop_sequence });
        events.push(InnerEvent::End);
        events
    }
}

impl InnerRequest {
    /// Adds blocks to the last turn of this side, or opens one.
    pub fn push(&mut self, side: Side, blocks: Vec<ContentBlock>) {
        if blocks.is_empty() {
            return;
        }
        match self.turns.last_mut() {
            Some(turn) if turn.side == side => turn.blocks.extend(blocks),
            _ => self.turns.push(DialogTurn { side, blocks }),
        }
    }

    /// Puts the results of tools first in their turns (a stable order otherwise).
    pub fn results_first(&mut self) {
        for turn in self.turns.iter_mut().filter(|turn| turn.side == Side::User) {
            turn.blocks.sort_by_key(|block| !matches!(block, ContentBlock::ToolResult { .. }));
        }
    }

    /// The name of the tool of each call in the conversation, by id.
    pub fn call_names(&self) -> BTreeMap<&str, &str> {
        self.turns
            .iter()
            .flat_map(|turn| &turn.blocks)
            .filter_map(|block| match block {
                ContentBlock::ToolUse { id, name, .. } => Some((id.as_str(), name.as_str())),
                _ => None,
            })
            .collect()
    }

    /// Whether the conversation has calls or results of tools.
    pub fn has_tool_history(&self) -> bool {
        self.turns
            .iter()
            .flat_map(|turn| &turn.blocks)
            .any(|block| matches!(block, ContentBlock::ToolUse { .. } | ContentBlock::ToolResult { .. }))
    }
}
