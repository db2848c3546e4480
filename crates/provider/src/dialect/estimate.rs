//! An estimate of a request's input tokens from its bytes, for providers that cannot count.
//!
//! Not its job: any vocabulary. Invariant: instructions and tools are counted (without them nine tenths are missing,
//! router-for-me/CLIProxyAPI#679), and the estimate errs upwards.

use super::inner::{ContentBlock, InnerRequest, MediaSource};

/// Bytes of UTF-8 per token, low on purpose: English prose has 4 and more, code and most other scripts near 3.
const BYTES: u64 = 3;
/// Tokens around each message (OpenAI's figure is 3 to 4).
const MESSAGE: u64 = 4;
/// Tokens of an image: what the families bill for one megapixel.
const IMAGE: u64 = 1600;
/// Base64 characters of a PDF per token: dense pages have about 3 KiB a thousand tokens.
const DOCUMENT: u64 = 40;

fn text(text: &str) -> u64 {
    (text.len() as u64).div_ceil(BYTES)
}

fn media(source: &MediaSource) -> u64 {
    match source {
        MediaSource::Inline { data, .. } => IMAGE.max(data.len() as u64 / DOCUMENT),
        MediaSource::Url(_) => IMAGE,
    }
}

fn block(value: &ContentBlock) -> u64 {
    match value {
        ContentBlock::Text { text: words, .. }
        | ContentBlock::Refusal(words)
        | ContentBlock::Thinking { text: words, .. } => text(words),
        ContentBlock::Image { .. } => IMAGE,
        ContentBlock::Document { source, .. } => media(source),
        ContentBlock::Audio { data, .. } => data.len() as u64 / DOCUMENT,
        ContentBlock::ToolUse { name, input, .. } => text(name) + text(input) + MESSAGE,
        ContentBlock::ToolResult { content, .. } => content.iter().map(block).sum::<u64>() + MESSAGE,
        ContentBlock::Redacted(proof) => text(&proof.data),
    }
}

/// Input tokens of a request, rounded up.
pub(crate) fn estimate(request: &InnerRequest) -> u64 {
    let system: u64 = request.system.iter().map(|part| block(part) + MESSAGE).sum();
    let turns: u64 =
        request.turns.iter().map(|turn| turn.blocks.iter().map(block).sum::<u64>() + MESSAGE).sum();
    let tools: u64 = request
        .tools
        .iter()
        .map(|tool| {
            let words = tool.description.as_deref().map(text).unwrap_or_default();
            text(&tool.name) + words + text(&tool.schema.to_string()) + MESSAGE
        })
        .sum();
    (system + turns + tools).max(1)
}
