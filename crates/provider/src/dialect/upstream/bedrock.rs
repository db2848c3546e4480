//! Bedrock's Converse and ConverseStream (gateway-protocols §5).
//!
//! Not its job: signing requests. Invariants: turns begin with the user and alternate; no text is blank; where the
//! conversation has calls, there is a list of tools; an exception is never read as an end.

use serde_json::Value;

use super::{
    super::{
        capability::ReasoningForm,
        failure::{FailureClass, UpstreamFailure, read_failure_json},
        fit::{begin_with_user, instruct_json, reasons},
        inner::{
            AnswerForm, CacheMark, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest,
            InnerResponse, MediaSource, Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text, text_object},
        schema,
        sequence::Sequencer,
        signature::{Maker, Signature},
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession},
        usage::read_bedrock,
    },
    Written,
    anthropic::lacks_reasoning,
    chat::encode,
    id_base,
};

/// Most cache points in one request.
const MARKS: usize = 4;

/// What stands where a block of text must be and there is none.
const FILLER: &str = ".";

pub(crate) fn write(
    request: &mut InnerRequest,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    if options.capabilities.structured == super::super::capability::StructuredForm::Json {
        instruct_json(request);
    }
    if request.form == Some(AnswerForm::Json) {
        instruct_json(request);
    }
    begin_with_user(request);
    let mut marks = MARKS;
    let tools = tools(request, &mut marks);
    let mut system = Vec::new();
    for block in &request.system {
        if let ContentBlock::Text { text, cache } = block {
            system.push(Value::from(Obj::new().with("text", text.as_str())));
            system.extend(cache_point(*cache, &mut marks));
        }
    }
    let mut messages = Vec::with_capacity(request.turns.len());
    for turn in &request.turns {
        let role = if turn.side == Side::User { "user" } else { "assistant" };
        let content = content(&turn.blocks, &mut marks)?;
        messages.push(Value::from(Obj::new().with("role", role).with("content", content)));
    }
    let mut body = Obj::new().with("messages", messages).maybe("toolConfig", tools);
    if !system.is_empty() {
        body.set("system", system);
    }
    let mut inference = Obj::new()
        .maybe("maxTokens", request.max_tokens.map(|limit| limit.max(1)))
        .maybe("temperature", request.temperature.map(number))
        .maybe("topP", request.top_p.map(number));
    if !request.stop.is_empty() {
        inference.set("stopSequences", request.stop.clone());
    }
    if let Some(inference) = inference.filled() {
        body.set("inferenceConfig", inference);
    }
    let (thinking, effort) = thinking(request, options.capabilities.reasoning);
    let more = Obj::new().maybe("top_k", request.top_k).maybe("thinking", thinking);
    if let Some(more) = more.filled() {
        body.set("additionalModelRequestFields", more);
    }
    let format = match &request.form {
        Some(AnswerForm::Schema { name, description, schema, .. }) => {
            let schema = Obj::new()
                .with("schema", schema::for_anthropic(schema).to_string())
                .with("name", name.as_str())
                .maybe("description", description.clone());
            let structure = Obj::new().with("jsonSchema", schema);
            Some(Obj::new().with("type", "json_schema").with("structure", structure))
        }
        _ => None,
    };
    if let Some(output) = Obj::new().maybe("effort", effort).maybe("textFormat", format).filled() {
        body.set("outputConfig", output);
    }
    rest(request, &mut body);
    let verb = if request.stream { "converse-stream" } else { "converse" };
    Ok(Written::new(PathRoot::Origin, format!("/model/{}/{verb}", encode(&options.model)), body))
}

fn rest(request: &mut InnerRequest, body: &mut Obj) {
    match request.service_tier.take().as_deref() {
        Some(tier @ ("priority" | "default" | "flex" | "reserved")) => {
            body.set("serviceTier", Obj::new().with("type", tier));
        }
        None | Some("auto") => {}
        Some(_) => request.dropped.push("service_tier".to_owned()),
    }
    for (given, name) in [
        (request.user.take().is_some(), "user"),
        (request.verbosity.take().is_some(), "verbosity"),
        (request.cache_key.take().is_some(), "prompt_cache_key"),
        (!std::mem::take(&mut request.metadata).is_empty(), "metadata"),
    ] {
        if given {
            request.dropped.push(name.to_owned());
        }
    }
}

fn thinking(request: &mut InnerRequest, form: ReasoningForm) -> (Option<Value>, Option<&'static str>) {
    let Some(wish) = request.reasoning else { return (None, None) };
    if !reasons(request) {
        return (Some(Obj::new().with("type", "disabled").into()), None);
    }
    if form == ReasoningForm::Adaptive {
        let effort = match wish.level() {
            EffortLevel::Minimal => EffortLevel::Low,
            level => level,
        };
        let thinking = Obj::new().with("type", "adaptive").with("display", "summarized");
        return (Some(thinking.into()), Some(effort.word()));
    }
    let budget = wish.tokens().max(1024);
    if request.max_tokens.is_some_and(|limit| budget >= limit) || lacks_reasoning(request) {
        request.dropped.push("reasoning".to_owned());
        return (None, None);
    }
    (Some(Obj::new().with("type", "enabled").with("budget_tokens", budget).into()), None)
}

fn tools(request: &InnerRequest, marks: &mut usize) -> Option<Value> {
    let spec = |name: &str, description: &str, schema: Value| {
        let spec = Obj::new()
            .with("name", name)
            .with("description", description)
            .with("inputSchema", Obj::new().with("json", schema));
        Value::from(Obj::new().with("toolSpec", spec))
    };
    // There is no `none`: the tools are left out, but a conversation with calls must have one.
    if request.tools.is_empty() || request.tool_rule == Some(ToolRule::Never) {
        return request.has_tool_history().then(|| {
            let schema = Obj::new().with("type", "object").with("properties", Obj::new()).into();
            let tool = spec("unavailable", "No tool can be called now.", schema);
            Obj::new().with("tools", vec![tool]).into()
        });
    }
    let mut list = Vec::with_capacity(request.tools.len());
    for tool in &request.tools {
        // A description must not be empty.
        let description =
            tool.description.as_deref().filter(|text| !text.trim().is_empty()).unwrap_or(&tool.name);
        list.push(spec(&tool.name, description, tool.schema.clone()));
        list.extend(cache_point(tool.cache, marks));
    }
    let choice = match &request.tool_rule {
        Some(ToolRule::Auto) => Some(Obj::new().with("auto", Obj::new())),
        Some(ToolRule::Any) => Some(Obj::new().with("any", Obj::new())),
        Some(ToolRule::Named(name)) => Some(Obj::new().with("tool", Obj::new().with("name", name.as_str()))),
        None | Some(ToolRule::Never) => None,
    };
    Some(Obj::new().with("tools", list).maybe("toolChoice", choice).into())
}

fn cache_point(mark: Option<CacheMark>, marks: &mut usize) -> Option<Value> {
    let mark = mark.filter(|_| *marks > 0)?;
    *marks -= 1;
    let ttl = (mark == CacheMark::Long).then_some("1h");
    let point = Obj::new().with("type", "default").maybe("ttl", ttl);
    Some(Obj::new().with("cachePoint", point).into())
}

fn text(text: &str) -> Value {
    Obj::new().with("text", text).into()
}

fn content(blocks: &[ContentBlock], marks: &mut usize) -> Result<Vec<Value>, TranslateError> {
    let is_reasoning =
        |block: &&ContentBlock| matches!(block, ContentBlock::Thinking { .. } | ContentBlock::Redacted(_));
    let mut values = Vec::with_capacity(blocks.len());
    let (first, rest): (Vec<_>, Vec<_>) = blocks.iter().partition(is_reasoning);
    for block in first.into_iter().chain(rest) {
        values.push(write_block(block)?);
        values.extend(cache_point(mark_of(block), marks));
    }
    let has = |key: &str| values.iter().any(|value| value.given(key));
    if has("document") && !has("text") {
        values.push(text(FILLER));
    }
    Ok(values)
}

fn mark_of(block: &ContentBlock) -> Option<CacheMark> {
    match block {
        ContentBlock::Text { cache, .. }
        | ContentBlock::Image { cache, .. }
        | ContentBlock::Document { cache, .. }
        | ContentBlock::ToolUse { cache, .. }
        | ContentBlock::ToolResult { cache, .. } => *cache,
        _ => None,
    }
}

fn write_block(block: &ContentBlock) -> Result<Value, TranslateError> {
    let bytes = |data: &str| Obj::new().with("bytes", data);
    let stored = || {
        Err(TranslateError::unsupported("messages.url", "bedrock", "it fetches no addresses; send the bytes"))
    };
    Ok(match block {
        ContentBlock::Text { text: words, .. } | ContentBlock::Refusal(words) => text(words),
        ContentBlock::Image { source: MediaSource::Inline { media_type, data }, .. } => {
            let format = media_type.strip_prefix("image/").unwrap_or_default();
            if !matches!(format, "png" | "jpeg" | "gif" | "webp") {
                let why = format!("`{media_type}` is not taken; send JPEG, PNG, GIF or WebP");
                return Err(TranslateError::unsupported("messages.image", "bedrock", why));
            }
            let image = Obj::new().with("format", format).with("source", bytes(data));
            Obj::new().with("image", image).into()
        }
        ContentBlock::Document { source: MediaSource::Inline { media_type, data }, .. } => {
            let format = document_format(media_type).ok_or_else(|| {
                let why = format!("documents of the type `{media_type}` are not taken");
                TranslateError::unsupported("messages.document", "bedrock", why)
            })?;
            // A neutral name: the model reads it, and names of files may hold instructions.
            let document =
                Obj::new().with("format", format).with("name", "document").with("source", bytes(data));
            Obj::new().with("document", document).into()
        }
        ContentBlock::Image { .. } | ContentBlock::Document { .. } => return stored(),
        ContentBlock::Audio { format, data } => {
            let audio = Obj::new().with("format", format.as_str()).with("source", bytes(data));
            Obj::new().with("audio", audio).into()
        }
        ContentBlock::ToolUse { id, name, input, .. } => {
            let call = Obj::new()
                .with("toolUseId", id.as_str())
                .with("name", name.as_str())
                .with("input", text_object(input).unwrap_or_else(|| Obj::new().into()));
            Obj::new().with("toolUse", call).into()
        }
        ContentBlock::ToolResult { id, content, is_error, .. } => {
            let mut list = content.iter().map(write_block).collect::<Result<Vec<_>, _>>()?;
            if list.is_empty() {
                list.push(text(FILLER));
            }
            let result = Obj::new()
                .with("toolUseId", id.as_str())
                .with("content", list)
                .maybe("status", is_error.then_some("error"));
            Obj::new().with("toolResult", result).into()
        }
        ContentBlock::Thinking { text, signature } => {
            let signature = signature.as_ref().map(|own| own.data.clone());
            let inner = Obj::new().with("text", text.as_str()).maybe("signature", signature);
            Obj::new().with("reasoningContent", Obj::new().with("reasoningText", inner)).into()
        }
        ContentBlock::Redacted(signature) => {
            let inner = Obj::new().with("redactedContent", signature.data.as_str());
            Obj::new().with("reasoningContent", inner).into()
        }
    })
}

fn document_format(media_type: &str) -> Option<&'static str> {
    Some(match media_type {
        "application/pdf" => "pdf",
        "text/csv" => "csv",
        "text/html" => "html",
        "text/plain" => "txt",
        "text/markdown" => "md",
        "application/msword" => "doc",
        "application/vnd.openxmlformats-officedocument.wordprocessingml.document" => "docx",
        "application/vnd.ms-excel" => "xls",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet" => "xlsx",
        _ => return None,
    })
}

fn finish(word: &str) -> FinishReason {
    match word {
        "stop_sequence" => FinishReason::StopSequence,
        "max_tokens" | "model_context_window_exceeded" => FinishReason::Length,
        "tool_use" => FinishReason::ToolUse,
        "guardrail_intervened" | "content_filtered" => FinishReason::Filtered,
        _ => FinishReason::Stop,
    }
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    let message = json.at("output").at("message");
    if !message.is_object() {
        let said = json.word("message").unwrap_or("the answer has no output");
        return Err(UpstreamFailure::new(FailureClass::Malformed, said));
    }
    let maker = session.maker().unwrap_or(Maker::Bedrock);
    let mut blocks = Vec::new();
    for block in message.items("content") {
        if block.given("text") {
            blocks.push(ContentBlock::text(block.text("text")));
        } else if block.given("toolUse") {
            let call = block.at("toolUse");
            blocks.push(ContentBlock::ToolUse {
                id: call.text("toolUseId").to_owned(),
                name: call.text("name").to_owned(),
                input: object_text(call.at("input")),
                signature: None,
                cache: None,
            });
        } else if block.given("reasoningContent") {
            let reasoning = block.at("reasoningContent");
            let inner = reasoning.at("reasoningText");
            blocks.push(match reasoning.word("redactedContent") {
                Some(data) => ContentBlock::Redacted(Signature::new(maker, data)),
                None => ContentBlock::Thinking {
                    text: inner.text("text").to_owned(),
                    signature: inner.word("signature").map(|data| Signature::new(maker, data)),
                },
            });
        }
    }
    let called = blocks.iter().any(|block| matches!(block, ContentBlock::ToolUse { .. }));
    let reason = finish(json.text("stopReason"));
    Ok(InnerResponse {
        id: String::new(),
        model: String::new(),
        blocks,
        finish: if called && reason == FinishReason::Stop { FinishReason::ToolUse } else { reason },
        stop_sequence: None,
        usage: read_bedrock(json.at("usage")).unwrap_or_default(),
    })
}

/// An exception in a stream, by its name, with the status that it has outside of streams.
pub(crate) fn exception(name: &str, json: &Value) -> UpstreamFailure {
    let lower = name.to_ascii_lowercase();
    let status = [
        ("throttling", 429),
        ("modelnotready", 429),
        ("validation", 400),
        ("servicequota", 400),
        ("accessdenied", 403),
        ("resourcenotfound", 404),
        ("timeout", 408),
        ("modelstreamerror", 424),
        ("modelerror", 424),
        ("unavailable", 503),
    ]
    .into_iter()
    .find_map(|(word, status)| lower.contains(word).then_some(status))
    .unwrap_or(500);
    let mut failure = read_failure_json(status, name, json);
    if failure.message.is_empty() {
        failure.message = name.to_owned();
    }
    failure
}

/// Reads a stream of frames.
#[derive(Debug)]
pub(crate) struct BedrockReader {
    pub(crate) sequence: Sequencer,
    maker: Maker,
}

impl BedrockReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self { sequence: Sequencer::new(&id_base(session)), maker: session.maker().unwrap_or(Maker::Bedrock) }
    }

    pub(crate) fn event(&mut self, name: &str, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        let key = json.count("contentBlockIndex").unwrap_or_default();
        match name {
            "messageStart" => self.sequence.start("", "", out),
            "contentBlockStart" => {
                let call = json.at("start").at("toolUse");
                if call.is_object() {
                    self.sequence.tool(key, call.text("toolUseId"), call.text("name"), "", out);
                }
            }
            "contentBlockDelta" => {
                let delta = json.at("delta");
                self.sequence.text(delta.text("text"), out);
                if delta.given("toolUse") {
                    self.sequence.tool(key, "", "", delta.at("toolUse").text("input"), out);
                }
                let reasoning = delta.at("reasoningContent");
                self.sequence.thinking(reasoning.text("text"), out);
                if let Some(data) = reasoning.word("redactedContent") {
                    self.sequence.redacted(Signature::new(self.maker, data), out);
                }
                if let Some(data) = reasoning.word("signature") {
                    self.sequence.sign(Signature::new(self.maker, data), out);
                }
            }
            "contentBlockStop" => {
                self.sequence.close_plain(out);
                self.sequence.close_tool(key, out);
            }
            "messageStop" => self.sequence.finish(finish(json.text("stopReason")), None),
            // It comes after the end of the message and is the last event.
            "metadata" => {
                out.extend(read_bedrock(json.at("usage")).map(InnerEvent::Usage));
                if self.sequence.is_finished() {
                    self.sequence.end(out);
                }
            }
            _ => {}
        }
    }

    /// The bytes are over; the figures may be missing.
    pub(crate) fn eof(&mut self, out: &mut Vec<InnerEvent>) {
        self.sequence.end(out);
    }
}
