//! The words of answers that matter, and the places where they matter: one table for all dialects, whose words do not
//! collide.

use super::json::TapShape;

/// Where in an answer something stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Place {
    Root,
    Choices,
    Choice,
    /// `delta` or `message` of a choice.
    Delta,
    /// Inside what a model says: content, tool calls, reasoning.
    Part,
    Usage,
    InputDetails,
    OutputDetails,
    CacheCreation,
    Cost,
    /// `response` of an event (Responses).
    Response,
    /// `message` of an event (Messages).
    Message,
    /// `delta` of an event (Messages).
    BlockDelta,
    /// `content_block` of an event (Messages).
    Block,
    #[default]
    Other,
}

/// The words that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Key {
    Element,
    Choices,
    Delta,
    Message,
    Usage,
    Response,
    ContentBlock,
    Error,
    Type,
    Id,
    Index,
    Role,
    Status,
    Sequence,
    Finish,
    Text,
    Content,
    /// Reasoning, refusals, tools, arguments: what a model says in other words.
    Said,
    Output,
    Input,
    OutputCount,
    Total,
    InputDetails,
    OutputDetails,
    Cached,
    CacheWrite,
    CacheCreation,
    Write5m,
    Write1h,
    Reasoning,
    Cost,
    CostTicks,
    TotalCost,
    #[default]
    Other,
}

impl Key {
    /// By length first: most words of an answer are settled by it.
    pub(super) fn of(word: &[u8]) -> Self {
        match word.len() {
            2 if word == b"id" => Self::Id,
            4 => match word {
                b"type" => Self::Type,
                b"role" => Self::Role,
                b"text" => Self::Text,
                b"cost" => Self::Cost,
                _ => Self::Other,
            },
            5 => match word {
                b"delta" => Self::Delta,
                b"usage" => Self::Usage,
                b"error" => Self::Error,
                b"index" => Self::Index,
                b"audio" => Self::Said,
                _ => Self::Other,
            },
            6 => match word {
                b"status" => Self::Status,
                b"output" => Self::Output,
                b"images" => Self::Said,
                _ => Self::Other,
            },
            7 => match word {
                b"choices" => Self::Choices,
                b"message" => Self::Message,
                b"content" => Self::Content,
                b"refusal" => Self::Said,
                _ => Self::Other,
            },
            8 => match word {
                b"response" => Self::Response,
                b"thinking" | b"citation" => Self::Said,
                _ => Self::Other,
            },
            9 => match word {
                b"reasoning" | b"signature" => Self::Said,
                _ => Self::Other,
            },
            10 => match word {
                b"tool_calls" => Self::Said,
                b"total_cost" => Self::TotalCost,
                _ => Self::Other,
            },
            11 => match word {
                b"stop_reason" => Self::Finish,
                _ => Self::Other,
            },
            12 => match word {
                b"partial_json" => Self::Said,
                b"total_tokens" => Self::Total,
                b"input_tokens" => Self::Input,
                _ => Self::Other,
            },
            13 => match word {
                b"content_block" => Self::ContentBlock,
                b"finish_reason" => Self::Finish,
                b"function_call" => Self::Said,
                b"prompt_tokens" => Self::Input,
                b"output_tokens" => Self::OutputCount,
                b"cached_tokens" => Self::Cached,
                _ => Self::Other,
            },
            14 if word == b"cache_creation" => Self::CacheCreation,
            15 => match word {
                b"sequence_number" => Self::Sequence,
                // Anthropic's word for the share of reasoning.
                b"thinking_tokens" => Self::Reasoning,
                _ => Self::Other,
            },
            16 if word == b"reasoning_tokens" => Self::Reasoning,
            17 => match word {
                b"reasoning_content" | b"reasoning_details" => Self::Said,
                b"completion_tokens" => Self::OutputCount,
                b"cost_in_usd_ticks" => Self::CostTicks,
                _ => Self::Other,
            },
            18 if word == b"cache_write_tokens" => Self::CacheWrite,
            20 if word == b"input_tokens_details" => Self::InputDetails,
            21 => match word {
                b"prompt_tokens_details" => Self::InputDetails,
                b"output_tokens_details" => Self::OutputDetails,
                _ => Self::Other,
            },
            23 => match word {
                b"cache_read_input_tokens" | b"prompt_cache_hit_tokens" => Self::Cached,
                _ => Self::Other,
            },
            25 => match word {
                b"completion_tokens_details" => Self::OutputDetails,
                b"ephemeral_5m_input_tokens" => Self::Write5m,
                b"ephemeral_1h_input_tokens" => Self::Write1h,
                _ => Self::Other,
            },
            27 if word == b"cache_creation_input_tokens" => Self::CacheWrite,
            _ => Self::Other,
        }
    }
}

/// What the value under `key` in `place` is, if it is an object or an array.
pub(super) fn inside(shape: TapShape, place: Place, key: Key) -> Place {
    use {Key as K, Place as P};
    match (place, key) {
        // An array at the top: Google's compatible endpoint wraps errors so.
        (P::Root, K::Element) => P::Root,
        (P::Root, K::Choices) => P::Choices,
        (P::Choices, K::Element) => P::Choice,
        (P::Choice, K::Delta | K::Message) => P::Delta,
        (P::Part, _) | (P::Delta, K::Content | K::Text | K::Said) => P::Part,
        (P::Root | P::Response | P::Message, K::Usage) => P::Usage,
        (P::Usage, K::InputDetails) => P::InputDetails,
        (P::Usage, K::OutputDetails) => P::OutputDetails,
        (P::Usage, K::CacheCreation) => P::CacheCreation,
        (P::Usage, K::Cost) => P::Cost,
        (P::Root, K::Response) if shape == TapShape::Responses => P::Response,
        (P::Root, K::Output) if shape == TapShape::Responses => P::Part,
        (P::Root, K::Message) if shape == TapShape::Messages => P::Message,
        (P::Root, K::Delta) if shape == TapShape::Messages => P::BlockDelta,
        (P::Root, K::ContentBlock) if shape == TapShape::Messages => P::Block,
        (P::Root, K::Content) if shape == TapShape::Messages => P::Part,
        (P::BlockDelta, K::Said) => P::Part,
        _ => P::Other,
    }
}
