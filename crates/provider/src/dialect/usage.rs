//! Reads the figures of every family into the five parts (gateway-protocols §10).
//!
//! Not its job: prices, and finding figures in a stream. Invariants: figures replace, they never add; cached and
//! written are inside the input's total, reasoning is inside the output.

use serde_json::Value;

use super::{
    inner::{TokenParts, TokenSource},
    json::JsonLook,
};

fn parts(total_input: u64, read: u64, write: u64, output: u64, reasoning: u64) -> TokenParts {
    let read = read.min(total_input);
    let write = write.min(total_input - read);
    TokenParts {
        input: total_input - read - write,
        output,
        cache_read: read,
        cache_write: write,
        reasoning: reasoning.min(output),
        source: TokenSource::Reported,
        ..TokenParts::default()
    }
}

/// A cost in USD as 1e-10 USD.
fn money(value: &Value) -> Option<u64> {
    let usd = value.as_f64().or_else(|| value.as_str()?.parse().ok())?;
    (usd.is_finite() && (0.0..1e8).contains(&usd)).then(|| (usd * 1e10).round() as u64)
}

/// `usage` of chat completions, of whichever server. Nothing where it holds no figure.
pub fn read_chat(usage: &Value) -> Option<TokenParts> {
    let prompt = usage.count("prompt_tokens");
    let completion = usage.count("completion_tokens");
    if prompt.is_none() && completion.is_none() {
        return None;
    }
    let (prompt, completion) = (prompt.unwrap_or_default(), completion.unwrap_or_default());
    let inside = usage.at("prompt_tokens_details");
    // DeepSeek and Moonshot have their own words for what was cached.
    let read = inside
        .count("cached_tokens")
        .or_else(|| usage.count("prompt_cache_hit_tokens"))
        .or_else(|| usage.count("cached_tokens"))
        .or_else(|| usage.count("cache_read_input_tokens"));
    let write = inside.count("cache_write_tokens").or_else(|| usage.count("cache_creation_input_tokens"));
    let reasoning = usage
        .at("completion_tokens_details")
        .count("reasoning_tokens")
        .or_else(|| usage.count("reasoning_tokens"))
        .unwrap_or_default();
    // xAI leaves reasoning out of the completion and in the total.
    let apart = reasoning > 0
        && usage.count("total_tokens") == Some(prompt.saturating_add(completion).saturating_add(reasoning));
    let output = if apart { completion.saturating_add(reasoning) } else { completion.max(reasoning) };
    let mut parts = parts(prompt, read.unwrap_or_default(), write.unwrap_or_default(), output, reasoning);
    let cost = usage.at("cost");
    parts.reported_cost = money(cost)
        .or_else(|| money(cost.at("total_cost")))
        // 1e-10 USD each: `cost_in_usd_ticks` counts the same unit.
        .or_else(|| usage.count("cost_in_usd_ticks"));
    Some(parts)
}

/// `usage` of a Responses object.
pub fn read_responses(usage: &Value) -> Option<TokenParts> {
    let input = usage.count("input_tokens")?;
    let inside = usage.at("input_tokens_details");
    let write = inside.count("cache_write_tokens").unwrap_or_default();
    let read = inside.count("cached_tokens").unwrap_or_default();
    let output = usage.count("output_tokens").unwrap_or_default();
    let reasoning = usage.at("output_tokens_details").count("reasoning_tokens").unwrap_or_default();
    Some(parts(input, read, write, output, reasoning))
}

/// Figures of a Messages stream, which come in pieces: each piece replaces the fields that it has.
#[derive(Clone, Copy, Debug, Default)]
pub struct AnthropicTally {
    input: Option<u64>,
    output: Option<u64>,
    read: Option<u64>,
    write: Option<u64>,
    write_long: Option<u64>,
    reasoning: Option<u64>,
}

impl AnthropicTally {
    /// Takes `usage` of `message_start`, `message_delta` or a whole message.
    pub fn replace(&mut self, usage: &Value) {
        let take = |field: &mut Option<u64>, value: Option<u64>| *field = value.or(*field);
        take(&mut self.input, usage.count("input_tokens"));
        take(&mut self.output, usage.count("output_tokens"));
        take(&mut self.read, usage.count("cache_read_input_tokens"));
        take(&mut self.write, usage.count("cache_creation_input_tokens"));
        take(&mut self.write_long, usage.at("cache_creation").count("ephemeral_1h_input_tokens"));
        let details = usage.at("output_tokens_details");
        take(
            &mut self.reasoning,
            details.count("thinking_tokens").or_else(|| details.count("reasoning_tokens")),
        );
    }

    /// The five parts; nothing before any figure came.
    pub fn parts(&self) -> Option<TokenParts> {
        if self.input.is_none() && self.output.is_none() {
            return None;
        }
        let output = self.output.unwrap_or_default();
        let cache_write = self.write.unwrap_or_default();
        Some(TokenParts {
            input: self.input.unwrap_or_default(),
            output,
            cache_read: self.read.unwrap_or_default(),
            cache_write,
            cache_write_long: self.write_long.unwrap_or_default().min(cache_write),
            reasoning: self.reasoning.unwrap_or_default().min(output),
            reported_cost: None,
            source: TokenSource::Reported,
        })
    }
}

/// `usageMetadata` of Gemini; some chunks hold only the kind of traffic.
pub fn read_google(usage: &Value) -> Option<TokenParts> {
    let prompt = usage.count("promptTokenCount")?;
    let tools = usage.count("toolUsePromptTokenCount").unwrap_or_default();
    let candidates = usage.count("candidatesTokenCount").unwrap_or_default();
    let thoughts = usage.count("thoughtsTokenCount").unwrap_or_default();
    let input = prompt.saturating_add(tools);
    // Thoughts stand apart unless the total says that the candidates hold them.
    let inside =
        usage.count("totalTokenCount") == Some(input.saturating_add(candidates)) && thoughts <= candidates;
    let output = if inside { candidates } else { candidates.saturating_add(thoughts) };
    Some(parts(input, usage.count("cachedContentTokenCount").unwrap_or_default(), 0, output, thoughts))
}

/// `usage` of Converse: the input excludes both sides of the cache.
pub fn read_bedrock(usage: &Value) -> Option<TokenParts> {
    let input = usage.count("inputTokens")?;
    let count = |key: &str, old: &str| usage.count(key).or_else(|| usage.count(old)).unwrap_or_default();
    let cache_write = count("cacheWriteInputTokens", "cacheWriteInputTokenCount");
    let long = usage
        .items("cacheDetails")
        .iter()
        .filter(|detail| detail.text("ttl") == "1h")
        .filter_map(|detail| detail.count("inputTokens"))
        .fold(0, u64::saturating_add);
    Some(TokenParts {
        input,
        output: usage.count("outputTokens").unwrap_or_default(),
        cache_read: count("cacheReadInputTokens", "cacheReadInputTokenCount"),
        cache_write,
        cache_write_long: long.min(cache_write),
        source: TokenSource::Reported,
        ..TokenParts::default()
    })
}

/// `usage` of Cohere: `tokens` is what was read and written, `billed_units` is only its price basis.
pub fn read_cohere(usage: &Value) -> Option<TokenParts> {
    let tokens = if usage.given("tokens") { usage.at("tokens") } else { usage.at("billed_units") };
    let input = tokens.count("input_tokens")?;
    let read = usage.count("cached_tokens").unwrap_or_default();
    Some(parts(input, read, 0, tokens.count("output_tokens").unwrap_or_default(), 0))
}

/// The last object of Ollama's own stream.
pub fn read_ollama(last: &Value) -> Option<TokenParts> {
    let (input, output) = (last.count("prompt_eval_count"), last.count("eval_count"));
    if input.is_none() && output.is_none() {
        return None;
    }
    Some(parts(input.unwrap_or_default(), 0, 0, output.unwrap_or_default(), 0))
}
