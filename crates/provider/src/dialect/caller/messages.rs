//! Anthropic's Messages as callers speak them (gateway-protocols §7).
//!
//! Not its job: what an upstream takes. Invariants: every event has its name; blocks are numbered from 0 without a
//! gap, at most one is open; a failed stream has no `message_stop`.

use serde_json::Value;

use super::{
    super::{
        failure::UpstreamFailure,
        inner::{
            AnswerForm, BlockKind, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest,
            InnerResponse, MediaSource, Side, TokenParts, TokenSource, ToolDecl, ToolRule,
        },
        json::{JsonLook, Obj, object_text, text_object},
        signature::{Maker, Signature, id_with, split_id},
        target::{TranslateError, TranslateOptions, TranslateSession},
    },
    cache_mark,
    chat::{schema_or_empty, thinking_wish},
    optional_count, optional_number, push_json, push_sse, stop_words, unknown_fields,
};

const KNOWN: &[&str] = &[
    "model",
    "messages",
    "system",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "stream",
    "tools",
    "tool_choice",
    "thinking",
    "output_config",
    "output_format",
    "metadata",
    "service_tier",
];

pub(crate) fn read(json: &Value, options: &TranslateOptions) -> Result<InnerRequest, TranslateError> {
    let mut request = InnerRequest {
        model: json.text("model").to_owned(),
        // Messages always show usage.
        include_usage: true,
        ..InnerRequest::default()
    };
    unknown_fields(json, KNOWN, &mut request.dropped);
    request.system = read_system(json.at("system"), "system")?;
    if !json.at("messages").is_array() {
        return Err(TranslateError::invalid("messages", "it must be a list"));
    }
    for (index, message) in json.items("messages").iter().enumerate() {
        let param = format!("messages[{index}]");
        let side = match message.text("role") {
            "user" => Side::User,
            "assistant" => Side::Assistant,
            "system" => {
                let more = read_system(message.at("content"), &format!("{param}.content"))?;
                request.system.extend(more);
                continue;
            }
            _ => {
                return Err(TranslateError::invalid(format!("{param}.role"), "it must be user or assistant"));
            }
        };
        let blocks = read_blocks(message.at("content"), &format!("{param}.content"), &mut request.dropped)?;
        request.push(side, blocks);
    }
    request.max_tokens = optional_count(json, "max_tokens")?;
    request.temperature = optional_number(json, "temperature")?;
    request.top_p = optional_number(json, "top_p")?;
    request.top_k = optional_count(json, "top_k")?;
    request.stop = stop_words(json, "stop_sequences")?;
    request.stream = json.flag("stream").unwrap_or_default();
    request.user = json.at("metadata").word("user_id").map(str::to_owned);
    request.service_tier = match json.text("service_tier") {
        "standard_only" => Some("default".to_owned()),
        "auto" => Some("auto".to_owned()),
        _ => None,
    };
    for (index, tool) in json.items("tools").iter().enumerate() {
        read_tool(tool, &format!("tools[{index}]"), options, &mut request)?;
    }
    read_choice(json.at("tool_choice"), &mut request)?;
    let config = json.at("output_config");
    let format = if config.given("format") { config.at("format") } else { json.at("output_format") };
    request.form = read_form(format)?;
    request.reasoning = thinking_wish(json.at("thinking"));
    if let Some(word) = config.word("effort") {
        let effort = EffortLevel::read(word).ok_or_else(|| {
            TranslateError::invalid("output_config.effort", "it must be low, medium, high, xhigh or max")
        })?;
        match &mut request.reasoning {
            Some(wish) if !wish.is_off() => wish.effort = Some(effort),
            Some(_) => {}
            // Effort alone does not switch thinking on.
            None => request.dropped.push("output_config.effort".to_owned()),
        }
    }
    Ok(request)
}

fn read_system(system: &Value, param: &str) -> Result<Vec<ContentBlock>, TranslateError> {
    match system {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![ContentBlock::text(text.as_str())]),
        Value::Array(blocks) => blocks
            .iter()
            .filter(|block| block.text("type") != "text" || !block.text("text").is_empty())
            .map(|block| match block.text("type") {
                "text" => {
                    Ok(ContentBlock::Text { text: block.text("text").to_owned(), cache: cache_mark(block) })
                }
                _ => Err(TranslateError::invalid(param, "instructions must be text")),
            })
            .collect(),
        _ => Err(TranslateError::invalid(param, "it must be a string or a list of text blocks")),
    }
}

fn read_blocks(
    content: &Value,
    param: &str,
    dropped: &mut Vec<String>,
) -> Result<Vec<ContentBlock>, TranslateError> {
    match content {
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![ContentBlock::text(text.as_str())]),
        Value::Array(list) => {
            let mut blocks = Vec::with_capacity(list.len());
            for (index, block) in list.iter().enumerate() {
                blocks.extend(read_block(block, &format!("{param}[{index}]"), dropped)?);
            }
            Ok(blocks)
        }
        Value::Null => Ok(Vec::new()),
        _ => Err(TranslateError::invalid(param, "it must be a string or a list of blocks")),
    }
}

fn read_block(
    block: &Value,
    param: &str,
    dropped: &mut Vec<String>,
) -> Result<Option<ContentBlock>, TranslateError> {
    let cache = cache_mark(block);
    Ok(Some(match block.text("type") {
        "text" if block.text("text").is_empty() => return Ok(None),
        "text" => ContentBlock::Text { text: block.text("text").to_owned(), cache },
        "image" => {
            ContentBlock::Image { source: read_source(block.at("source"), param)?, detail: None, cache }
        }
        "document" => {
            let name = block.word("title").map(str::to_owned);
            let source = block.at("source");
            match source.text("type") {
                "text" => ContentBlock::Text { text: source.text("data").to_owned(), cache },
                "content" => {
                    let text = match source.at("content") {
                        Value::String(text) => text.clone(),
                        _ => source.items("content").iter().map(|part| part.text("text")).collect(),
                    };
                    ContentBlock::Text { text, cache }
                }
                _ => ContentBlock::Document { source: read_source(source, param)?, name, cache },
            }
        }
        "search_result" => {
            let texts: Vec<&str> = block.items("content").iter().map(|part| part.text("text")).collect();
            let text = format!("{} ({})\n{}", block.text("title"), block.text("source"), texts.join("\n"));
            ContentBlock::Text { text, cache }
        }
        "tool_use" => {
            let (id, signature) = split_id(block.text("id"));
            let input = block.at("input");
            if id.is_empty() || block.word("name").is_none() || !(input.is_object() || input.is_null()) {
                return Err(TranslateError::invalid(param, "it needs an id, a name and an object as input"));
            }
            let name = block.text("name").to_owned();
            ContentBlock::ToolUse { id, name, input: object_text(input), signature, cache }
        }
        "tool_result" => {
            let (id, _) = split_id(block.text("tool_use_id"));
            let content = read_blocks(block.at("content"), &format!("{param}.content"), dropped)?;
            let is_error = block.flag("is_error").unwrap_or_default();
            ContentBlock::ToolResult { id, content, is_error, cache }
        }
        "thinking" => ContentBlock::Thinking {
            text: block.text("thinking").to_owned(),
            signature: block.word("signature").map(|field| Signature::read(field, Maker::Anthropic)),
        },
        "redacted_thinking" => ContentBlock::Redacted(Signature::read(block.text("data"), Maker::Anthropic)),
        // What the caller's own provider ran by itself: another provider has no place for it.
        other if other == "server_tool_use" || other.ends_with("_tool_result") => {
            dropped.push(param.to_owned());
            return Ok(None);
        }
        other => {
            let why = format!("blocks of the type `{other}` are not known");
            return Err(TranslateError::invalid(format!("{param}.type"), why));
        }
    }))
}

fn read_source(source: &Value, param: &str) -> Result<MediaSource, TranslateError> {
    match source.text("type") {
        "base64" => Ok(MediaSource::Inline {
            media_type: source.text("media_type").to_ascii_lowercase(),
            data: source.text("data").to_owned(),
        }),
        "url" if source.word("url").is_some() => Ok(MediaSource::Url(source.text("url").to_owned())),
        "file" => Err(TranslateError::unsupported(
            format!("{param}.source.file_id"),
            "translation",
            "files stored at a provider are not known to another; send the bytes",
        )),
        _ => Err(TranslateError::invalid(format!("{param}.source"), "it must be base64 or url")),
    }
}

fn read_tool(
    tool: &Value,
    param: &str,
    options: &TranslateOptions,
    request: &mut InnerRequest,
) -> Result<(), TranslateError> {
    if tool.word("type").is_some_and(|kind| kind != "custom") {
        if options.drop_hosted_tools {
            request.dropped.push(param.to_owned());
            return Ok(());
        }
        let why = "tools that a provider runs itself are not available in another dialect";
        return Err(TranslateError::unsupported(format!("{param}.type"), "translation", why));
    }
    let name =
        tool.word("name").ok_or_else(|| TranslateError::invalid(format!("{param}.name"), "it is missing"))?;
    request.tools.push(ToolDecl {
        name: name.to_owned(),
        description: tool.word("description").map(str::to_owned),
        schema: schema_or_empty(tool.at("input_schema")),
        strict: tool.flag("strict"),
        cache: cache_mark(tool),
        free_text: false,
    });
    Ok(())
}

fn read_choice(choice: &Value, request: &mut InnerRequest) -> Result<(), TranslateError> {
    request.tool_rule = match choice.text("type") {
        "" => None,
        "auto" => Some(ToolRule::Auto),
        "any" => Some(ToolRule::Any),
        "none" => Some(ToolRule::Never),
        "tool" => {
            let name = choice.text("name");
            if !request.tools.iter().any(|tool| tool.name == name) {
                return Err(TranslateError::invalid("tool_choice", format!("there is no tool `{name}`")));
            }
            Some(ToolRule::Named(name.to_owned()))
        }
        _ => return Err(TranslateError::invalid("tool_choice.type", "it must be auto, any, tool or none")),
    };
    request.parallel_tools = choice.flag("disable_parallel_tool_use").map(|disabled| !disabled);
    Ok(())
}

fn read_form(format: &Value) -> Result<Option<AnswerForm>, TranslateError> {
    match format.text("type") {
        "" => Ok(None),
        "json_schema" if format.at("schema").is_object() => Ok(Some(AnswerForm::Schema {
            name: "structured_output".to_owned(),
            description: None,
            schema: format.at("schema").clone(),
            strict: None,
        })),
        _ => Err(TranslateError::invalid("output_config.format", "it must be a json_schema with a schema")),
    }
}

pub(crate) fn error(failure: &UpstreamFailure) -> Value {
    let class = failure.class;
    let mut message = failure.public_message().to_owned();
    // What clients look for when they shorten a conversation.
    if class == super::super::failure::FailureClass::ContextOverflow
        && !message.contains("prompt is too long")
    {
        message = format!("prompt is too long: {message}");
    }
    let error = Obj::new().with("type", class.anthropic()).with("message", message);
    Obj::new().with("type", "error").with("error", error).into()
}

fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "end_turn",
        FinishReason::StopSequence => "stop_sequence",
        FinishReason::Length => "max_tokens",
        FinishReason::ToolUse => "tool_use",
        FinishReason::Filtered => "refusal",
    }
}

fn usage(usage: &TokenParts) -> Value {
    let written = Obj::new()
        .with("ephemeral_5m_input_tokens", usage.cache_write.saturating_sub(usage.cache_write_long))
        .with("ephemeral_1h_input_tokens", usage.cache_write_long);
    Obj::new()
        .with("input_tokens", usage.input)
        .with("cache_creation_input_tokens", usage.cache_write)
        .with("cache_read_input_tokens", usage.cache_read)
        .maybe("cache_creation", (usage.cache_write > 0).then_some(Value::from(written)))
        .with("output_tokens", usage.output)
        .maybe(
            "output_tokens_details",
            (usage.reasoning > 0).then(|| Obj::new().with("thinking_tokens", usage.reasoning)),
        )
        .into()
}

fn answer_id(session: &TranslateSession, id: &str) -> String {
    if id.is_empty() { format!("msg_{}", session.id) } else { id.to_owned() }
}

fn thinking(text: &str, signature: Option<&Signature>) -> Value {
    let field = signature.map(|signature| signature.field(Maker::Anthropic)).unwrap_or_default();
    Obj::new().with("type", "thinking").with("thinking", text).with("signature", field).into()
}

fn redacted(signature: &Signature) -> Value {
    Obj::new().with("type", "redacted_thinking").with("data", signature.field(Maker::Anthropic)).into()
}

fn text(text: &str) -> Value {
    Obj::new().with("type", "text").with("text", text).into()
}

pub(crate) fn write(session: &TranslateSession, response: &InnerResponse) -> Value {
    let mut content: Vec<Value> = Vec::new();
    for block in &response.blocks {
        match block {
            ContentBlock::Text { text: words, .. } | ContentBlock::Refusal(words) => {
                content.push(text(words))
            }
            ContentBlock::Thinking { text, signature } => content.push(thinking(text, signature.as_ref())),
            ContentBlock::Redacted(signature) => content.push(redacted(signature)),
            ContentBlock::ToolUse { id, name, input, signature, .. } => {
                // An upstream may cut a call off or write no JSON at all: the block's type wants an object.
                let input =
                    text_object(input).unwrap_or_else(|| Value::from(Obj::new().with("raw", input.as_str())));
                content.push(
                    Obj::new()
                        .with("type", "tool_use")
                        .with("id", id_with(id, signature.as_ref()))
                        .with("name", session.tool_name(name))
                        .with("input", input)
                        .into(),
                );
            }
            _ => {}
        }
    }
    if content.is_empty() {
        content.push(text(""));
    }
    Obj::new()
        .with("id", answer_id(session, &response.id))
        .with("type", "message")
        .with("role", "assistant")
        .with("model", session.shown_model.as_str())
        .with("content", content)
        .with("stop_reason", finish_word(response.finish))
        .with("stop_sequence", response.stop_sequence.clone())
        .with("usage", usage(&response.usage))
        .into()
}

/// Writes a stream of named events.
#[derive(Debug)]
pub(crate) struct MessagesWriter {
    index: u64,
    kind: Option<BlockKind>,
    started: bool,
    usage: TokenParts,
    finish: Option<(FinishReason, Option<String>)>,
}

impl MessagesWriter {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        // Claude Code takes the first figures for its costs: an estimate is better than 0 (vercel/ai#17326).
        let usage =
            TokenParts { input: session.estimate, source: TokenSource::Estimated, ..TokenParts::default() };
        Self { index: 0, kind: None, started: false, usage, finish: None }
    }

    fn begin(&mut self, session: &TranslateSession, id: &str, out: &mut Vec<u8>) {
        self.started = true;
        let message = Obj::new()
            .with("id", answer_id(session, id))
            .with("type", "message")
            .with("role", "assistant")
            .with("model", session.shown_model.as_str())
            .with("content", Vec::<Value>::new())
            .with("stop_reason", Value::Null)
            .with("stop_sequence", Value::Null)
            .with("usage", usage(&self.usage));
        let event = Obj::new().with("type", "message_start").with("message", message);
        push_sse(Some("message_start"), &event.into(), out);
    }

    fn open(&self, block: Value, out: &mut Vec<u8>) {
        let event = Obj::new()
            .with("type", "content_block_start")
            .with("index", self.index)
            .with("content_block", block);
        push_sse(Some("content_block_start"), &event.into(), out);
    }

    fn delta(&self, kind: &str, key: &str, text: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":",
        );
        push_json(&self.index, out);
        out.extend_from_slice(b",\"delta\":{\"type\":\"");
        out.extend_from_slice(kind.as_bytes());
        out.extend_from_slice(b"\",\"");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        push_json(text, out);
        out.extend_from_slice(b"}}\n\n");
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(
            b"event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":",
        );
        push_json(&self.index, out);
        out.extend_from_slice(b"}\n\n");
        self.index += 1;
        self.kind = None;
    }

    pub(crate) fn event(&mut self, session: &TranslateSession, event: &InnerEvent, out: &mut Vec<u8>) {
        match event {
            InnerEvent::Start { id, .. } => {
                self.begin(session, id, out);
                return;
            }
            InnerEvent::Usage(usage) => {
                self.usage = *usage;
                return;
            }
            InnerEvent::Failed(failure) => {
                push_sse(Some("error"), &error(failure), out);
                return;
            }
            _ if !self.started => self.begin(session, "", out),
            _ => {}
        }
        match event {
            InnerEvent::Open(kind) => {
                self.kind = Some(kind.clone());
                self.open(
                    match kind {
                        BlockKind::Text | BlockKind::Refusal => text(""),
                        BlockKind::Thinking => thinking("", None),
                        BlockKind::Tool { id, name, signature } => Obj::new()
                            .with("type", "tool_use")
                            .with("id", id_with(id, signature.as_ref()))
                            .with("name", session.tool_name(name))
                            .with("input", Obj::new())
                            .into(),
                    },
                    out,
                );
            }
            InnerEvent::Delta(words) => match self.kind {
                Some(BlockKind::Text | BlockKind::Refusal) => self.delta("text_delta", "text", words, out),
                Some(BlockKind::Thinking) => self.delta("thinking_delta", "thinking", words, out),
                Some(BlockKind::Tool { .. }) => self.delta("input_json_delta", "partial_json", words, out),
                None => {}
            },
            InnerEvent::Sign(signature) => {
                self.delta("signature_delta", "signature", &signature.field(Maker::Anthropic), out);
            }
            InnerEvent::Redacted(signature) => {
                self.open(redacted(signature), out);
                self.close(out);
            }
            InnerEvent::Close => self.close(out),
            InnerEvent::Finish { reason, stop_sequence } => {
                self.finish = Some((*reason, stop_sequence.clone()))
            }
            InnerEvent::End => {
                let (reason, stop_sequence) = self.finish.take().unwrap_or_default();
                if self.index == 0 {
                    self.open(text(""), out);
                    self.close(out);
                }
                let delta =
                    Obj::new().with("stop_reason", finish_word(reason)).with("stop_sequence", stop_sequence);
                let event = Obj::new()
                    .with("type", "message_delta")
                    .with("delta", delta)
                    .with("usage", usage(&self.usage));
                push_sse(Some("message_delta"), &event.into(), out);
                push_sse(Some("message_stop"), &Obj::new().with("type", "message_stop").into(), out);
            }
            InnerEvent::Start { .. } | InnerEvent::Usage(_) | InnerEvent::Failed(_) => {}
        }
    }
}

/// The answer of `count_tokens`.
pub(crate) fn count(tokens: u64) -> Vec<u8> {
    Value::from(Obj::new().with("input_tokens", tokens)).to_string().into_bytes()
}
