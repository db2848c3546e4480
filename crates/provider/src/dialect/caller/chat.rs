//! OpenAI's chat completions as callers speak them (gateway-protocols §3, §7).
//!
//! Not its job: what an upstream takes. Invariants: a stream's chunks share id, time and model; a failed stream has
//! no `[DONE]` and no finish; calls are numbered from 0, blocks are not.

use serde_json::Value;

use super::{
    super::{
        inner::{
            AnswerForm, BlockKind, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest,
            InnerResponse, ReasoningWish, Side, TokenParts, ToolDecl, ToolRule,
        },
        json::{JsonLook, Obj, object_text, text_object},
        signature::{Maker, Signature, id_with, split_id},
        target::{TranslateError, TranslateOptions, TranslateSession},
    },
    cache_mark, media, openai_error, optional_count, optional_number, picture, push_json, push_sse,
    stop_words, unknown_fields,
};

/// Top-level fields that are read; anything else is a hint and dropped by name.
const KNOWN: &[&str] = &[
    "model",
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "stop",
    "n",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "top_logprobs",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
    "reasoning",
    "thinking",
    "user",
    "safety_identifier",
    "service_tier",
    "modalities",
    "audio",
    "functions",
    "function_call",
    "metadata",
    "verbosity",
    "prompt_cache_key",
    "web_search_options",
];

pub(crate) fn read(json: &Value, options: &TranslateOptions) -> Result<InnerRequest, TranslateError> {
    let mut request = InnerRequest { model: json.text("model").to_owned(), ..InnerRequest::default() };
    unknown_fields(json, KNOWN, &mut request.dropped);
    refuse(json)?;
    for (index, message) in json.items("messages").iter().enumerate() {
        read_message(message, &format!("messages[{index}]"), &mut request)?;
    }
    if !json.at("messages").is_array() {
        return Err(TranslateError::invalid("messages", "it must be a list"));
    }
    request.max_tokens =
        optional_count(json, "max_completion_tokens")?.or(optional_count(json, "max_tokens")?);
    request.temperature = optional_number(json, "temperature")?;
    request.top_p = optional_number(json, "top_p")?;
    request.top_k = optional_count(json, "top_k")?;
    request.seed = json.at("seed").as_i64();
    request.presence_penalty = optional_number(json, "presence_penalty")?;
    request.frequency_penalty = optional_number(json, "frequency_penalty")?;
    request.stop = stop_words(json, "stop")?;
    request.stream = json.flag("stream").unwrap_or_default();
    request.include_usage = json.at("stream_options").flag("include_usage").unwrap_or_default();
    request.parallel_tools = json.flag("parallel_tool_calls");
    request.user = json.word("safety_identifier").or(json.word("user")).map(str::to_owned);
    request.service_tier = json.word("service_tier").map(str::to_owned);
    request.verbosity = json.word("verbosity").map(str::to_owned);
    request.cache_key = json.word("prompt_cache_key").map(str::to_owned);
    if let Some(labels) = json.at("metadata").as_object() {
        let label = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        request.metadata = labels.iter().filter_map(label).collect();
    }
    for (index, tool) in json.items("tools").iter().enumerate() {
        if let Some(tool) = read_tool(tool, &format!("tools[{index}]"), options, &mut request.dropped)? {
            request.tools.push(tool);
        }
    }
    read_choice(json.at("tool_choice"), &mut request)?;
    request.form = read_form(json.at("response_format"))?;
    request.reasoning = read_reasoning(json)?;
    Ok(request)
}

fn refuse(json: &Value) -> Result<(), TranslateError> {
    let no = |param: &str, why: &str| Err(TranslateError::unsupported(param, "translation", why));
    if json.count("n").is_some_and(|n| n > 1) {
        return no("n", "one answer per request; send the request again for more");
    }
    if json.items("modalities").iter().any(|kind| kind.as_str() != Some("text")) || json.given("audio") {
        return no("modalities", "answers are text");
    }
    for key in ["logprobs", "top_logprobs"] {
        if json.flag(key) == Some(true) || json.count(key).is_some_and(|count| count > 0) {
            return no(key, "log probabilities cannot be translated");
        }
    }
    if !json.items("functions").is_empty() || json.given("function_call") {
        return no("functions", "use `tools`");
    }
    if json.given("web_search_options") {
        return no("web_search_options", "the provider's own search is not available in another dialect");
    }
    Ok(())
}

fn read_message(message: &Value, param: &str, request: &mut InnerRequest) -> Result<(), TranslateError> {
    let content = message.at("content");
    match message.text("role") {
        "system" | "developer" => {
            let blocks = read_content(content, &format!("{param}.content"))?;
            if blocks.iter().any(|block| !matches!(block, ContentBlock::Text { .. })) {
                return Err(TranslateError::invalid(format!("{param}.content"), "instructions must be text"));
            }
            request.system.extend(blocks);
        }
        "user" => {
            let blocks = read_content(content, &format!("{param}.content"))?;
            request.push(Side::User, blocks);
        }
        "assistant" => read_assistant(message, param, request)?,
        "tool" => {
            let (id, _) = split_id(message.text("tool_call_id"));
            if id.is_empty() {
                return Err(TranslateError::invalid(format!("{param}.tool_call_id"), "it is missing"));
            }
            let content = read_content(content, &format!("{param}.content"))?;
            let cache = cache_mark(message);
            request.push(Side::User, vec![ContentBlock::ToolResult { id, content, is_error: false, cache }]);
        }
        "function" => {
            return Err(TranslateError::unsupported(
                format!("{param}.role"),
                "translation",
                "use the role `tool`",
            ));
        }
        _ => {
            let roles = "it must be system, developer, user, assistant or tool";
            return Err(TranslateError::invalid(format!("{param}.role"), roles));
        }
    }
    Ok(())
}

fn read_assistant(message: &Value, param: &str, request: &mut InnerRequest) -> Result<(), TranslateError> {
    let mut blocks = Vec::new();
    for block in message.items("thinking_blocks") {
        match block.text("type") {
            "redacted_thinking" => {
                blocks.push(ContentBlock::Redacted(Signature::read(block.text("data"), Maker::Anthropic)));
            }
            _ => blocks.push(ContentBlock::Thinking {
                text: block.text("thinking").to_owned(),
                signature: block.word("signature").map(|field| Signature::read(field, Maker::Anthropic)),
            }),
        }
    }
    if blocks.is_empty()
        && let Some(text) = message.word("reasoning_content").or(message.word("reasoning"))
    {
        blocks.push(ContentBlock::Thinking { text: text.to_owned(), signature: None });
    }
    blocks.extend(read_content(message.at("content"), &format!("{param}.content"))?);
    if let Some(refusal) = message.word("refusal") {
        blocks.push(ContentBlock::Refusal(refusal.to_owned()));
    }
    for (index, call) in message.items("tool_calls").iter().enumerate() {
        let param = format!("{param}.tool_calls[{index}]");
        if call.word("type").is_some_and(|kind| kind != "function") {
            return Err(TranslateError::unsupported(format!("{param}.type"), "translation", "use functions"));
        }
        let function = call.at("function");
        let (id, carried) = split_id(call.text("id"));
        let google = call.at("extra_content").at("google").word("thought_signature");
        let signature = carried.or_else(|| google.map(|field| Signature::read(field, Maker::Google)));
        if id.is_empty() || function.word("name").is_none() {
            return Err(TranslateError::invalid(param, "it needs an id and a function's name"));
        }
        let input = match function.at("arguments") {
            Value::String(text) => {
                text_object(text).map(|_| if text.trim().is_empty() { "{}" } else { text }.to_owned())
            }
            value @ (Value::Object(_) | Value::Null) => Some(object_text(value)),
            _ => None,
        };
        let input = input.ok_or_else(|| {
            TranslateError::invalid(
                format!("{param}.function.arguments"),
                "they must be the text of a JSON object",
            )
        })?;
        let name = function.text("name").to_owned();
        blocks.push(ContentBlock::ToolUse { id, name, input, signature, cache: cache_mark(call) });
    }
    request.push(Side::Assistant, blocks);
    Ok(())
}

fn read_content(content: &Value, param: &str) -> Result<Vec<ContentBlock>, TranslateError> {
    match content {
        Value::Null => Ok(Vec::new()),
        Value::String(text) if text.is_empty() => Ok(Vec::new()),
        Value::String(text) => Ok(vec![ContentBlock::text(text.as_str())]),
        Value::Array(parts) => {
            let mut blocks = Vec::with_capacity(parts.len());
            for (index, part) in parts.iter().enumerate() {
                blocks.extend(read_part(part, &format!("{param}[{index}]"))?);
            }
            Ok(blocks)
        }
        _ => Err(TranslateError::invalid(param, "it must be a string or a list of parts")),
    }
}

fn read_part(part: &Value, param: &str) -> Result<Option<ContentBlock>, TranslateError> {
    let cache = cache_mark(part);
    Ok(Some(match part.text("type") {
        "text" if part.text("text").is_empty() => return Ok(None),
        "text" => ContentBlock::Text { text: part.text("text").to_owned(), cache },
        "refusal" => ContentBlock::Refusal(part.text("refusal").to_owned()),
        "image_url" => {
            let image = part.at("image_url");
            let url = image.as_str().unwrap_or_else(|| image.text("url"));
            let detail = image.word("detail").map(str::to_owned);
            picture(media(url, &format!("{param}.image_url"))?, detail, cache)
        }
        "file" => {
            let file = part.at("file");
            if file.given("file_id") {
                let why = "files stored at a provider are not known to another; send `file_data`";
                return Err(TranslateError::unsupported(format!("{param}.file.file_id"), "translation", why));
            }
            let source = media(file.text("file_data"), &format!("{param}.file.file_data"))?;
            ContentBlock::Document { source, name: file.word("filename").map(str::to_owned), cache }
        }
        "input_audio" => {
            let audio = part.at("input_audio");
            ContentBlock::Audio {
                format: audio.text("format").to_owned(),
                data: audio.text("data").to_owned(),
            }
        }
        other => {
            let why = format!("parts of the type `{other}` are not known");
            return Err(TranslateError::invalid(format!("{param}.type"), why));
        }
    }))
}

fn read_tool(
    tool: &Value,
    param: &str,
    options: &TranslateOptions,
    dropped: &mut Vec<String>,
) -> Result<Option<ToolDecl>, TranslateError> {
    if tool.text("type") != "function" {
        if options.drop_hosted_tools {
            dropped.push(param.to_owned());
            return Ok(None);
        }
        return Err(TranslateError::unsupported(
            format!("{param}.type"),
            "translation",
            "only functions can be offered",
        ));
    }
    let function = tool.at("function");
    let name = function
        .word("name")
        .ok_or_else(|| TranslateError::invalid(format!("{param}.function.name"), "it is missing"))?;
    Ok(Some(ToolDecl {
        name: name.to_owned(),
        description: function.word("description").map(str::to_owned),
        schema: schema_or_empty(function.at("parameters")),
        strict: function.flag("strict"),
        cache: cache_mark(tool).or_else(|| cache_mark(function)),
        free_text: false,
    }))
}

/// The schema of a tool that takes nothing is that of an empty object.
pub(crate) fn schema_or_empty(schema: &Value) -> Value {
    match schema.as_object() {
        Some(object) if !object.is_empty() => schema.clone(),
        _ => Obj::new().with("type", "object").with("properties", Obj::new()).into(),
    }
}

fn read_choice(choice: &Value, request: &mut InnerRequest) -> Result<(), TranslateError> {
    request.tool_rule = match choice {
        Value::Null => None,
        Value::String(word) => Some(rule(word)?),
        Value::Object(_) if choice.text("type") == "allowed_tools" => {
            let allowed = if choice.given("allowed_tools") { choice.at("allowed_tools") } else { choice };
            let names: Vec<&str> = allowed
                .items("tools")
                .iter()
                .map(|tool| tool.word("name").unwrap_or_else(|| tool.at("function").text("name")))
                .collect();
            request.tools.retain(|tool| names.contains(&tool.name.as_str()));
            Some(rule(allowed.word("mode").unwrap_or("auto"))?)
        }
        _ => {
            let name = choice.at("function").word("name").or(choice.word("name"));
            let name = name.ok_or_else(|| TranslateError::invalid("tool_choice", "it names no function"))?;
            if !request.tools.iter().any(|tool| tool.name == name) {
                return Err(TranslateError::invalid("tool_choice", format!("there is no tool `{name}`")));
            }
            Some(ToolRule::Named(name.to_owned()))
        }
    };
    Ok(())
}

/// One of the words of `tool_choice`.
pub(crate) fn rule(word: &str) -> Result<ToolRule, TranslateError> {
    match word {
        "auto" => Ok(ToolRule::Auto),
        "none" => Ok(ToolRule::Never),
        "required" | "any" => Ok(ToolRule::Any),
        _ => Err(TranslateError::invalid("tool_choice", "it must be auto, none, required or a tool")),
    }
}

fn read_form(format: &Value) -> Result<Option<AnswerForm>, TranslateError> {
    match format.text("type") {
        "" | "text" => Ok(None),
        "json_object" => Ok(Some(AnswerForm::Json)),
        "json_schema" => {
            let schema = format.at("json_schema");
            if !schema.at("schema").is_object() {
                return Err(TranslateError::invalid(
                    "response_format.json_schema.schema",
                    "it must be an object",
                ));
            }
            Ok(Some(AnswerForm::Schema {
                name: schema.word("name").unwrap_or("answer").to_owned(),
                description: schema.word("description").map(str::to_owned),
                schema: schema.at("schema").clone(),
                strict: schema.flag("strict"),
            }))
        }
        _ => Err(TranslateError::invalid(
            "response_format.type",
            "it must be text, json_object or json_schema",
        )),
    }
}

fn read_reasoning(json: &Value) -> Result<Option<ReasoningWish>, TranslateError> {
    let level = |param: &str, word: &str| {
        EffortLevel::read(word).ok_or_else(|| {
            TranslateError::invalid(param, "it must be none, minimal, low, medium, high, xhigh or max")
        })
    };
    if let Some(word) = json.word("reasoning_effort") {
        let effort = Some(level("reasoning_effort", word)?);
        return Ok(Some(ReasoningWish { effort, ..ReasoningWish::default() }));
    }
    let object = json.at("reasoning");
    if object.is_object() {
        let effort = object.word("effort").map(|word| level("reasoning.effort", word)).transpose()?;
        let effort = if object.flag("enabled") == Some(false) { Some(EffortLevel::None) } else { effort };
        return Ok(Some(ReasoningWish {
            effort,
            budget: object.count("max_tokens"),
            ..ReasoningWish::default()
        }));
    }
    Ok(thinking_wish(json.at("thinking")))
}

/// Anthropic's `thinking`, which some chat clients send too.
pub(crate) fn thinking_wish(thinking: &Value) -> Option<ReasoningWish> {
    let summary = thinking.text("display") != "omitted";
    match thinking.text("type") {
        "enabled" => Some(ReasoningWish {
            budget: thinking.count("budget_tokens"),
            summary,
            ..ReasoningWish::default()
        }),
        "adaptive" => Some(ReasoningWish { adaptive: true, summary, ..ReasoningWish::default() }),
        "disabled" => Some(ReasoningWish { effort: Some(EffortLevel::None), ..ReasoningWish::default() }),
        _ => None,
    }
}

pub(crate) fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::StopSequence => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolUse => "tool_calls",
        FinishReason::Filtered => "content_filter",
    }
}

pub(crate) fn usage(usage: &TokenParts) -> Value {
    let input = usage.input_total();
    let details =
        Obj::new().with("cached_tokens", usage.cache_read).with("cache_write_tokens", usage.cache_write);
    Obj::new()
        .with("prompt_tokens", input)
        .with("completion_tokens", usage.output)
        .with("total_tokens", usage.total())
        .with("prompt_tokens_details", details)
        .with("completion_tokens_details", Obj::new().with("reasoning_tokens", usage.reasoning))
        .into()
}

fn thinking_block(text: &str, signature: &Signature) -> Value {
    let field = signature.field(Maker::Anthropic);
    Obj::new().with("type", "thinking").with("thinking", text).with("signature", field).into()
}

fn redacted_block(signature: &Signature) -> Value {
    Obj::new().with("type", "redacted_thinking").with("data", signature.field(Maker::Anthropic)).into()
}

fn answer_id(session: &TranslateSession, id: &str) -> String {
    if id.is_empty() { format!("chatcmpl-{}", session.id) } else { id.to_owned() }
}

pub(crate) fn write(session: &TranslateSession, response: &InnerResponse) -> Value {
    let (mut text, mut reasoning, mut refusal) = (String::new(), String::new(), String::new());
    let (mut calls, mut thinking) = (Vec::new(), Vec::new());
    let mut any_text = false;
    for block in &response.blocks {
        match block {
            ContentBlock::Text { text: more, .. } => {
                any_text = true;
                text.push_str(more);
            }
            ContentBlock::Refusal(more) => refusal.push_str(more),
            ContentBlock::Thinking { text: more, signature } => {
                reasoning.push_str(more);
                thinking.extend(signature.as_ref().map(|signature| thinking_block(more, signature)));
            }
            ContentBlock::Redacted(signature) => thinking.push(redacted_block(signature)),
            ContentBlock::ToolUse { id, name, input, signature, .. } => {
                let function =
                    Obj::new().with("name", session.tool_name(name)).with("arguments", input.as_str());
                calls.push(Value::from(
                    Obj::new()
                        .with("id", id_with(id, signature.as_ref()))
                        .with("type", "function")
                        .with("function", function),
                ));
            }
            _ => {}
        }
    }
    let content =
        if any_text || (calls.is_empty() && refusal.is_empty()) { Value::from(text) } else { Value::Null };
    let message = Obj::new()
        .with("role", "assistant")
        .with("content", content)
        .with("refusal", (!refusal.is_empty()).then_some(refusal))
        .maybe("reasoning_content", (!reasoning.is_empty()).then_some(reasoning))
        .maybe("thinking_blocks", (!thinking.is_empty()).then_some(thinking))
        .maybe("tool_calls", (!calls.is_empty()).then_some(calls));
    let choice = Obj::new()
        .with("index", 0)
        .with("message", message)
        .with("logprobs", Value::Null)
        .with("finish_reason", finish_word(response.finish));
    Obj::new()
        .with("id", answer_id(session, &response.id))
        .with("object", "chat.completion")
        .with("created", session.now)
        .with("model", session.shown_model.as_str())
        .with("choices", vec![Value::from(choice)])
        .with("usage", usage(&response.usage))
        .into()
}

/// Most bytes of one block of reasoning that are kept to be shown again beside its proof.
const REASONING: usize = 4 << 20;

/// Writes a stream of chunks.
#[derive(Debug)]
pub(crate) struct ChatWriter {
    /// `data: {"id":…,"object":…,"created":…,"model":…` of every chunk.
    head: Vec<u8>,
    calls: u64,
    kind: Option<BlockKind>,
    /// The reasoning of the open block.
    reasoning: String,
    usage: TokenParts,
}

impl ChatWriter {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        let mut writer = Self {
            head: Vec::new(),
            calls: 0,
            kind: None,
            reasoning: String::new(),
            usage: TokenParts::default(),
        };
        writer.set_head(session, "");
        writer
    }

    fn set_head(&mut self, session: &TranslateSession, id: &str) {
        self.head.clear();
        self.head.extend_from_slice(b"data: {\"id\":");
        push_json(&answer_id(session, id), &mut self.head);
        self.head.extend_from_slice(b",\"object\":\"chat.completion.chunk\",\"created\":");
        push_json(&session.now, &mut self.head);
        self.head.extend_from_slice(b",\"model\":");
        push_json(&session.shown_model, &mut self.head);
    }

    /// A chunk whose delta has one member.
    fn delta(&self, key: &str, value: &impl serde::Serialize, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head);
        out.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{\"");
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        push_json(value, out);
        out.extend_from_slice(b"},\"finish_reason\":null}]}\n\n");
    }

    pub(crate) fn event(&mut self, session: &TranslateSession, event: &InnerEvent, out: &mut Vec<u8>) {
        match event {
            InnerEvent::Start { id, .. } => {
                self.set_head(session, id);
                out.extend_from_slice(&self.head);
                out.extend_from_slice(
                    b",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
                );
            }
            InnerEvent::Open(kind) => {
                self.kind = Some(kind.clone());
                self.reasoning.clear();
                if let BlockKind::Tool { id, name, signature } = kind {
                    let function = Obj::new().with("name", session.tool_name(name)).with("arguments", "");
                    let call = Obj::new()
                        .with("index", self.calls)
                        .with("id", id_with(id, signature.as_ref()))
                        .with("type", "function")
                        .with("function", function);
                    self.calls += 1;
                    self.delta("tool_calls", &[Value::from(call)], out);
                }
            }
            InnerEvent::Delta(text) => match &self.kind {
                Some(BlockKind::Text) => self.delta("content", text, out),
                Some(BlockKind::Refusal) => self.delta("refusal", text, out),
                Some(BlockKind::Thinking) => {
                    if self.reasoning.len() + text.len() <= REASONING {
                        self.reasoning.push_str(text);
                    }
                    self.delta("reasoning_content", text, out);
                }
                Some(BlockKind::Tool { .. }) => {
                    out.extend_from_slice(&self.head);
                    out.extend_from_slice(
                        b",\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":",
                    );
                    push_json(&(self.calls.saturating_sub(1)), out);
                    out.extend_from_slice(b",\"function\":{\"arguments\":");
                    push_json(text, out);
                    out.extend_from_slice(b"}}]},\"finish_reason\":null}]}\n\n");
                }
                None => {}
            },
            InnerEvent::Sign(signature) => {
                self.delta("thinking_blocks", &[thinking_block(&self.reasoning, signature)], out);
            }
            InnerEvent::Redacted(signature) => {
                self.delta("thinking_blocks", &[redacted_block(signature)], out)
            }
            InnerEvent::Close => self.kind = None,
            InnerEvent::Usage(usage) => self.usage = *usage,
            InnerEvent::Finish { reason, .. } => {
                out.extend_from_slice(&self.head);
                out.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"");
                out.extend_from_slice(finish_word(*reason).as_bytes());
                out.extend_from_slice(b"\"}]}\n\n");
            }
            InnerEvent::End => {
                if session.include_usage {
                    out.extend_from_slice(&self.head);
                    out.extend_from_slice(b",\"choices\":[],\"usage\":");
                    push_json(&usage(&self.usage), out);
                    out.extend_from_slice(b"}\n\n");
                }
                out.extend_from_slice(b"data: [DONE]\n\n");
            }
            InnerEvent::Failed(failure) => push_sse(None, &openai_error(failure), out),
        }
    }
}
