//! Anthropic's Messages as an upstream, at its own API and on Vertex (gateway-protocols §3).
//!
//! Not its job: model names. Invariants: results of one turn are in one message, before its text; at most four cache
//! marks; a stream is whole only after `message_stop`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    super::{
        caller::cache_control,
        capability::ReasoningForm,
        failure::{FailureClass, UpstreamFailure},
        fit::{begin_with_user, instruct_json, reasons},
        inner::{
            AnswerForm, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest, InnerResponse,
            MediaSource, Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text, text_object},
        schema,
        sequence::Sequencer,
        signature::{Maker, Signature, split_id},
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession, UpstreamDialect},
        usage::AnthropicTally,
    },
    Written,
    chat::encode,
    id_base,
};

/// Output tokens where neither caller nor capabilities name a limit: all models allow it (agentgateway's figure).
const MAX_TOKENS: u64 = 4096;

/// The least budget for thinking.
const LEAST_BUDGET: u64 = 1024;

/// Most cache marks in one request.
const MARKS: usize = 4;

pub(crate) fn write(
    request: &mut InnerRequest,
    upstream: UpstreamDialect,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    let caps = &options.capabilities;
    instruct_json(request);
    begin_with_user(request);
    // Thinking counts as output: where the caller names no limit, it comes on top.
    let thought =
        request.reasoning.filter(|_| reasons(request)).map_or(0, |wish| wish.tokens().max(LEAST_BUDGET));
    let max_tokens =
        request.max_tokens.or(caps.output_cap).unwrap_or(MAX_TOKENS.saturating_add(thought)).max(1);
    let (thinking, effort) = thinking(request, caps.reasoning, max_tokens);
    let mut marks = MARKS;
    let mut body = Obj::new().with("max_tokens", max_tokens);
    let tools: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| {
            Obj::new()
                .with("name", tool.name.as_str())
                .maybe("description", tool.description.clone())
                .with("input_schema", object_schema(&tool.schema))
                .maybe("strict", tool.strict.filter(|strict| *strict))
                .maybe("cache_control", cache_control(tool.cache).filter(|_| take(&mut marks)))
                .into()
        })
        .collect();
    if !tools.is_empty() {
        body.set("tools", tools);
        let choice = choice(request);
        if let Some(choice) = choice {
            body.set("tool_choice", choice);
        }
    }
    if !request.system.is_empty() {
        let system = blocks(&request.system, &mut marks)?;
        body.set("system", system);
    }
    let mut messages = Vec::with_capacity(request.turns.len());
    for turn in &request.turns {
        let role = if turn.side == Side::User { "user" } else { "assistant" };
        messages.push(Value::from(
            Obj::new().with("role", role).with("content", blocks(&turn.blocks, &mut marks)?),
        ));
    }
    body.set("messages", messages);
    let mut body = body
        .maybe("temperature", request.temperature.map(number))
        .maybe("top_p", request.top_p.map(number))
        .maybe("top_k", request.top_k)
        .maybe("thinking", thinking);
    if !request.stop.is_empty() {
        body.set("stop_sequences", request.stop.clone());
    }
    let format = match &request.form {
        Some(AnswerForm::Schema { schema, .. }) => {
            Some(Obj::new().with("type", "json_schema").with("schema", schema::for_anthropic(schema)))
        }
        _ => None,
    };
    if let Some(config) = Obj::new().maybe("effort", effort).maybe("format", format).filled() {
        body.set("output_config", config);
    }
    if let Some(user) = request.user.take() {
        body.set("metadata", Obj::new().with("user_id", user));
    }
    match request.service_tier.take().as_deref() {
        Some("auto") => body.set("service_tier", "auto"),
        Some("default") => body.set("service_tier", "standard_only"),
        Some(_) => request.dropped.push("service_tier".to_owned()),
        None => {}
    }
    drop_rest(request);
    if upstream == UpstreamDialect::VertexClaude {
        if body.inner().remove("service_tier").is_some() {
            request.dropped.push("service_tier".to_owned());
        }
        body.set("anthropic_version", "vertex-2023-10-16");
        let verb = if request.stream { "streamRawPredict" } else { "rawPredict" };
        if request.stream {
            body.set("stream", true);
        }
        let place = super::google::vertex_place(options);
        let path = format!("{place}/publishers/anthropic/models/{}:{verb}", encode(&options.model));
        return Ok(Written::new(PathRoot::Origin, path, body));
    }
    body.set("model", options.model.as_str());
    if request.stream {
        body.set("stream", true);
    }
    let mut written = Written::new(PathRoot::Base, "/messages", body);
    written.headers.push(("anthropic-version", "2023-06-01".to_owned()));
    Ok(written)
}

/// Hints of other dialects that this family has no place for.
pub(crate) fn drop_rest(request: &mut InnerRequest) {
    for (given, name) in [
        (request.verbosity.take().is_some(), "verbosity"),
        (request.cache_key.take().is_some(), "prompt_cache_key"),
        (!std::mem::take(&mut request.metadata).is_empty(), "metadata"),
    ] {
        if given {
            request.dropped.push(name.to_owned());
        }
    }
}

fn take(marks: &mut usize) -> bool {
    let left = *marks > 0;
    *marks = marks.saturating_sub(1);
    left
}

/// Schemas of tools must be of objects at their root.
fn object_schema(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(object) = schema.as_object_mut()
        && !object.contains_key("type")
    {
        object.insert("type".to_owned(), Value::from("object"));
    }
    schema
}

/// The fields `thinking` and `output_config.effort`.
fn thinking(
    request: &mut InnerRequest,
    form: ReasoningForm,
    max_tokens: u64,
) -> (Option<Value>, Option<&'static str>) {
    let Some(wish) = request.reasoning else { return (None, None) };
    if !reasons(request) {
        return (Some(Obj::new().with("type", "disabled").into()), None);
    }
    if form == ReasoningForm::Adaptive {
        // Without `display` the newest models return no text of it.
        let thinking = Obj::new().with("type", "adaptive").with("display", "summarized");
        let effort = match wish.level() {
            EffortLevel::Minimal => EffortLevel::Low.word(),
            level => level.word(),
        };
        return (Some(thinking.into()), Some(effort));
    }
    let budget = wish.tokens().max(LEAST_BUDGET);
    // The last step of a chain of calls must begin with its own reasoning; after a change of provider it is gone.
    if budget >= max_tokens || lacks_reasoning(request) {
        request.dropped.push("reasoning".to_owned());
        request.reasoning = None;
        return (None, None);
    }
    (Some(Obj::new().with("type", "enabled").with("budget_tokens", budget).into()), None)
}

/// Whether the conversation ends in results of calls whose turn has no reasoning of its maker.
pub(crate) fn lacks_reasoning(request: &InnerRequest) -> bool {
    let mut turns = request.turns.iter().rev();
    let (Some(last), Some(before)) = (turns.next(), turns.next()) else { return false };
    last.blocks.iter().any(|block| matches!(block, ContentBlock::ToolResult { .. }))
        && !before
            .blocks
            .iter()
            .any(|block| matches!(block, ContentBlock::Thinking { .. } | ContentBlock::Redacted(_)))
}

fn choice(request: &InnerRequest) -> Option<Value> {
    let single = request.parallel_tools == Some(false);
    let choice = match &request.tool_rule {
        None if !single => return None,
        // The flag needs a choice to stand in.
        None | Some(ToolRule::Auto) => Obj::new().with("type", "auto"),
        Some(ToolRule::Never) => return Some(Obj::new().with("type", "none").into()),
        Some(ToolRule::Any) => Obj::new().with("type", "any"),
        Some(ToolRule::Named(name)) => Obj::new().with("type", "tool").with("name", name.as_str()),
    };
    Some(choice.maybe("disable_parallel_tool_use", single.then_some(true)).into())
}

fn blocks(list: &[ContentBlock], marks: &mut usize) -> Result<Vec<Value>, TranslateError> {
    // Reasoning comes first in its message.
    let (first, rest): (Vec<_>, Vec<_>) = list
        .iter()
        .partition(|block| matches!(block, ContentBlock::Thinking { .. } | ContentBlock::Redacted(_)));
    let mut values = Vec::with_capacity(list.len());
    for block in first.into_iter().chain(rest) {
        values.push(write_block(block, marks)?);
    }
    Ok(values)
}

fn write_block(block: &ContentBlock, marks: &mut usize) -> Result<Value, TranslateError> {
    let (value, cache) = match block {
        ContentBlock::Text { text, cache } => {
            (Obj::new().with("type", "text").with("text", text.as_str()), *cache)
        }
        ContentBlock::Refusal(text) => (Obj::new().with("type", "text").with("text", text.as_str()), None),
        ContentBlock::Image { source, cache, .. } => {
            if let MediaSource::Inline { media_type, .. } = source
                && !matches!(media_type.as_str(), "image/jpeg" | "image/png" | "image/gif" | "image/webp")
            {
                let why = format!("`{media_type}` is not taken; send JPEG, PNG, GIF or WebP");
                return Err(TranslateError::unsupported("messages.image", "anthropic", why));
            }
            (Obj::new().with("type", "image").with("source", write_source(source)), *cache)
        }
        ContentBlock::Document { source, name, cache } => {
            let source = match source {
                MediaSource::Inline { media_type, data } if media_type == "text/plain" => Obj::new()
                    .with("type", "base64")
                    .with("media_type", "text/plain")
                    .with("data", data.as_str())
                    .into(),
                MediaSource::Inline { media_type, .. } if media_type != "application/pdf" => {
                    let why = format!("documents of the type `{media_type}` are not taken; send PDF or text");
                    return Err(TranslateError::unsupported("messages.document", "anthropic", why));
                }
                source => write_source(source),
            };
            let value =
                Obj::new().with("type", "document").with("source", source).maybe("title", name.clone());
            (value, *cache)
        }
        ContentBlock::Audio { .. } => {
            return Err(TranslateError::unsupported("messages.audio", "anthropic", "it takes no sound"));
        }
        ContentBlock::ToolUse { id, name, input, cache, .. } => {
            let input = text_object(input).unwrap_or_else(|| Obj::new().into());
            let value = Obj::new()
                .with("type", "tool_use")
                .with("id", id.as_str())
                .with("name", name.as_str())
                .with("input", input);
            (value, *cache)
        }
        ContentBlock::ToolResult { id, content, is_error, cache } => {
            let mut value = Obj::new().with("type", "tool_result").with("tool_use_id", id.as_str());
            if !content.is_empty() {
                let content =
                    content.iter().map(|block| write_block(block, marks)).collect::<Result<Vec<_>, _>>()?;
                value.set("content", content);
            }
            (value.maybe("is_error", is_error.then_some(true)), *cache)
        }
        ContentBlock::Thinking { text, signature } => {
            let signature = signature.as_ref().map(|own| own.data.as_str()).unwrap_or_default();
            let value = Obj::new()
                .with("type", "thinking")
                .with("thinking", text.as_str())
                .with("signature", signature);
            return Ok(value.into());
        }
        ContentBlock::Redacted(signature) => {
            return Ok(Obj::new()
                .with("type", "redacted_thinking")
                .with("data", signature.data.as_str())
                .into());
        }
    };
    Ok(value.maybe("cache_control", cache_control(cache).filter(|_| take(marks))).into())
}

fn write_source(source: &MediaSource) -> Value {
    match source {
        MediaSource::Inline { media_type, data } => Obj::new()
            .with("type", "base64")
            .with("media_type", media_type.as_str())
            .with("data", data.as_str())
            .into(),
        MediaSource::Url(url) => Obj::new().with("type", "url").with("url", url.as_str()).into(),
    }
}

fn finish(word: &str) -> FinishReason {
    match word {
        "stop_sequence" => FinishReason::StopSequence,
        // After a pause more would come: the answer is not whole.
        "max_tokens" | "model_context_window_exceeded" | "pause_turn" | "compaction" => FinishReason::Length,
        "tool_use" => FinishReason::ToolUse,
        "refusal" => FinishReason::Filtered,
        _ => FinishReason::Stop,
    }
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    if !json.at("content").is_array() {
        return Err(UpstreamFailure::malformed("the message has no content"));
    }
    let maker = session.maker().unwrap_or(Maker::Anthropic);
    let blocks = json
        .items("content")
        .iter()
        .filter_map(|block| match block.text("type") {
            "text" => Some(ContentBlock::text(block.text("text"))),
            "thinking" => Some(ContentBlock::Thinking {
                text: block.text("thinking").to_owned(),
                signature: block.word("signature").map(|field| Signature::read(field, maker)),
            }),
            "redacted_thinking" => Some(ContentBlock::Redacted(Signature::read(block.text("data"), maker))),
            "tool_use" => {
                let (id, signature) = split_id(block.text("id"));
                let name = block.text("name").to_owned();
                Some(ContentBlock::ToolUse {
                    id,
                    name,
                    input: object_text(block.at("input")),
                    signature,
                    cache: None,
                })
            }
            // What the provider ran itself is not the caller's to run.
            _ => None,
        })
        .collect();
    let mut tally = AnthropicTally::default();
    tally.replace(json.at("usage"));
    Ok(InnerResponse {
        id: json.text("id").to_owned(),
        model: json.text("model").to_owned(),
        blocks,
        finish: finish(json.text("stop_reason")),
        stop_sequence: json.word("stop_sequence").map(str::to_owned),
        usage: tally.parts().unwrap_or_default(),
    })
}

/// Reads a stream of events.
#[derive(Debug)]
pub(crate) struct AnthropicReader {
    pub(crate) sequence: Sequencer,
    tally: AnthropicTally,
    maker: Maker,
    /// The type of the block that the provider has open; blocks that it runs itself are skipped.
    skip: bool,
    /// The provider's index of a call → ours: compatible servers use an index again.
    calls: BTreeMap<u64, u64>,
    next: u64,
}

impl AnthropicReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self {
            sequence: Sequencer::new(&id_base(session)),
            tally: AnthropicTally::default(),
            maker: session.maker().unwrap_or(Maker::Anthropic),
            skip: false,
            calls: BTreeMap::new(),
            next: 0,
        }
    }

    fn count(&mut self, usage: &Value, out: &mut Vec<InnerEvent>) {
        if usage.is_object() {
            self.tally.replace(usage);
            out.extend(self.tally.parts().map(InnerEvent::Usage));
        }
    }

    pub(crate) fn event(&mut self, name: &str, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        let index = json.count("index").unwrap_or_default();
        match json.word("type").unwrap_or(name) {
            "message_start" => {
                let message = json.at("message");
                self.count(message.at("usage"), out);
                self.sequence.start(message.text("id"), message.text("model"), out);
            }
            "content_block_start" => self.open(index, json.at("content_block"), out),
            "content_block_delta" if !self.skip => self.delta(index, json.at("delta"), out),
            "content_block_stop" if self.skip => self.skip = false,
            "content_block_stop" => {
                self.sequence.close_plain(out);
                if let Some(key) = self.calls.remove(&index) {
                    self.sequence.close_tool(key, out);
                }
            }
            "message_delta" => {
                let delta = json.at("delta");
                if let Some(word) = delta.word("stop_reason") {
                    self.sequence.finish(finish(word), delta.word("stop_sequence").map(str::to_owned));
                }
                self.count(json.at("usage"), out);
            }
            "message_stop" => self.sequence.end(out),
            "error" => {
                let failure = UpstreamFailure::new(FailureClass::Server, json.at("error").text("message"));
                self.sequence.fail(failure, out);
            }
            _ => {}
        }
    }

    fn open(&mut self, index: u64, block: &Value, out: &mut Vec<InnerEvent>) {
        self.skip = false;
        match block.text("type") {
            "text" => self.sequence.text(block.text("text"), out),
            "thinking" => self.sequence.thinking(block.text("thinking"), out),
            "redacted_thinking" => {
                self.sequence.redacted(Signature::read(block.text("data"), self.maker), out);
            }
            "tool_use" => {
                let (id, signature) = split_id(block.text("id"));
                let key = self.next;
                self.next += 1;
                self.calls.insert(index, key);
                if let Some(signature) = signature {
                    self.sequence.sign_tool(key, signature);
                }
                // Some compatible servers send the whole input here and no delta.
                let input = block.at("input").as_object().filter(|input| !input.is_empty());
                let input = input.map(|_| block.at("input").to_string()).unwrap_or_default();
                self.sequence.tool(key, &id, block.text("name"), &input, out);
            }
            _ => self.skip = true,
        }
    }

    fn delta(&mut self, index: u64, delta: &Value, out: &mut Vec<InnerEvent>) {
        match delta.text("type") {
            "text_delta" => self.sequence.text(delta.text("text"), out),
            "thinking_delta" => self.sequence.thinking(delta.text("thinking"), out),
            "signature_delta" => {
                if let Some(field) = delta.word("signature") {
                    self.sequence.sign(Signature::read(field, self.maker), out);
                }
            }
            "input_json_delta" => {
                if let Some(key) = self.calls.get(&index) {
                    self.sequence.tool(*key, "", "", delta.text("partial_json"), out);
                }
            }
            _ => {}
        }
    }
}
