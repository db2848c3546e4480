//! Chat completions as upstreams speak them: OpenAI, Azure and all that are shaped alike (gateway-protocols §7, §9).
//!
//! Not its job: which server takes what (the capabilities say). Invariant: a stream is whole only after a finish
//! reason or `[DONE]`; calls are kept apart even where a server numbers them wrongly.

use std::{borrow::Cow, collections::BTreeMap};

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{
    super::{
        caller::cache_control,
        capability::{InstructionRole, ModelCapabilities, ReasoningForm, ReasoningReplay},
        failure::{FailureClass, UpstreamFailure, read_failure_json},
        fit::reasons,
        inner::{
            AnswerForm, ContentBlock, FinishReason, InnerEvent, InnerRequest, InnerResponse, MediaSource,
            Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text},
        sequence::Sequencer,
        signature::{Maker, Signature, split_id},
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession, UpstreamDialect},
        usage::read_chat,
    },
    Written, id_base,
};

pub(crate) fn write(
    request: &mut InnerRequest,
    upstream: UpstreamDialect,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    let caps = &options.capabilities;
    let mut body = Obj::new().with("model", options.model.as_str());
    body.set("messages", messages(request, caps)?);
    if request.stream {
        body.set("stream", true);
        if caps.stream_usage {
            body.set("stream_options", Obj::new().with("include_usage", true));
        }
    }
    if let Some(limit) = request.max_tokens {
        body.set(if caps.max_completion_tokens { "max_completion_tokens" } else { "max_tokens" }, limit);
    }
    for (key, value) in [
        ("temperature", request.temperature),
        ("top_p", request.top_p),
        ("presence_penalty", request.presence_penalty),
        ("frequency_penalty", request.frequency_penalty),
    ] {
        if let Some(value) = value {
            body.set(key, number(value));
        }
    }
    let mut body = body.maybe("top_k", request.top_k).maybe("seed", request.seed);
    if !request.stop.is_empty() {
        body.set("stop", request.stop.clone());
    }
    tools(request, caps, &mut body);
    match &request.form {
        None => {}
        Some(AnswerForm::Json) => body.set("response_format", Obj::new().with("type", "json_object")),
        Some(AnswerForm::Schema { name, description, schema, strict }) => {
            let schema = Obj::new()
                .with("name", name.as_str())
                .maybe("description", description.clone())
                .with("schema", schema.clone())
                .maybe("strict", *strict);
            body.set("response_format", Obj::new().with("type", "json_schema").with("json_schema", schema));
        }
    }
    reasoning(request, caps, &mut body);
    extras(request, caps, &mut body);
    for (from, to) in &caps.renames {
        if let Some(value) = body.inner().remove(from) {
            body.inner().insert(to.clone(), value);
        }
    }
    let (root, path) = place(upstream, options);
    Ok(Written::new(root, path, body))
}

/// Where chat completions are.
pub(crate) fn place(upstream: UpstreamDialect, options: &TranslateOptions) -> (PathRoot, String) {
    match (upstream, &options.api_version) {
        (UpstreamDialect::Azure, Some(version)) => {
            let (model, version) = (encode(&options.model), encode(version));
            let path = format!("/openai/deployments/{model}/chat/completions?api-version={version}");
            (PathRoot::Origin, path)
        }
        (UpstreamDialect::Azure, None) => (PathRoot::Origin, "/openai/v1/chat/completions".to_owned()),
        _ => (PathRoot::Base, "/chat/completions".to_owned()),
    }
}

/// Percent-encodes one segment of a path: everything but unreserved characters.
pub(crate) fn encode(segment: &str) -> String {
    let mut out = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn tools(request: &mut InnerRequest, caps: &ModelCapabilities, body: &mut Obj) {
    if request.tool_rule == Some(ToolRule::Never) && !caps.tool_choice {
        // The only way to say `none` to a server without `tool_choice`.
        request.tools.clear();
    }
    if request.tools.is_empty() {
        return;
    }
    let list: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| {
            let function = Obj::new()
                .with("name", tool.name.as_str())
                .maybe("description", tool.description.clone())
                .with("parameters", tool.schema.clone())
                .maybe("strict", tool.strict);
            Obj::new()
                .with("type", "function")
                .with("function", function)
                .maybe("cache_control", cache_control(tool.cache))
                .into()
        })
        .collect();
    body.set("tools", list);
    if caps.tool_choice {
        match &request.tool_rule {
            None => {}
            Some(ToolRule::Auto) => body.set("tool_choice", "auto"),
            Some(ToolRule::Never) => body.set("tool_choice", "none"),
            Some(ToolRule::Any) => body.set("tool_choice", "required"),
            Some(ToolRule::Named(name)) => body.set(
                "tool_choice",
                Obj::new().with("type", "function").with("function", Obj::new().with("name", name.as_str())),
            ),
        }
    }
    if let Some(parallel) = request.parallel_tools {
        body.set("parallel_tool_calls", parallel);
    }
}

fn reasoning(request: &InnerRequest, caps: &ModelCapabilities, body: &mut Obj) {
    let Some(wish) = request.reasoning else { return };
    let on = reasons(request);
    match caps.reasoning {
        ReasoningForm::None => {}
        ReasoningForm::Effort | ReasoningForm::Adaptive | ReasoningForm::Level => {
            body.set("reasoning_effort", wish.level().word());
        }
        ReasoningForm::Budget => {
            let thinking = Obj::new()
                .with("type", if on { "enabled" } else { "disabled" })
                .maybe("budget_tokens", on.then(|| wish.tokens()));
            body.set("thinking", thinking);
        }
        ReasoningForm::Switch => {
            body.set("thinking", Obj::new().with("type", if on { "enabled" } else { "disabled" }));
        }
        ReasoningForm::Flag => body.set("enable_thinking", on),
        ReasoningForm::Object => {
            let object = match (on, wish.budget, wish.effort) {
                (false, ..) => Obj::new().with("enabled", false),
                (true, Some(budget), None) => Obj::new().with("max_tokens", budget),
                // OpenRouter knows no `max`.
                _ if wish.level().word() == "max" => Obj::new().with("effort", "xhigh"),
                _ => Obj::new().with("effort", wish.level().word()),
            };
            body.set("reasoning", object);
        }
    }
}

/// Longest `user` that OpenAI takes; Claude Code's is longer.
const USER: usize = 64;

fn extras(request: &mut InnerRequest, caps: &ModelCapabilities, body: &mut Obj) {
    let given = [
        ("user", request.user.take()),
        ("service_tier", request.service_tier.take()),
        ("verbosity", request.verbosity.take()),
        ("prompt_cache_key", request.cache_key.take()),
    ];
    for (key, value) in given {
        let Some(mut value) = value else { continue };
        if !caps.openai_extras {
            request.dropped.push(key.to_owned());
            continue;
        }
        if key == "user" && value.len() > USER {
            value = format!("user-{:016x}", super::super::fit::short_hash(&value));
        }
        body.set(key, value);
    }
    if !request.metadata.is_empty() {
        // It is refused unless the answer is stored.
        request.dropped.push("metadata".to_owned());
    }
}

fn messages(request: &InnerRequest, caps: &ModelCapabilities) -> Result<Vec<Value>, TranslateError> {
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        let role = match caps.instructions {
            InstructionRole::System => "system",
            InstructionRole::Developer => "developer",
        };
        messages.push(message(role, content(&request.system, caps)?));
    }
    for turn in &request.turns {
        match turn.side {
            Side::User => user(&turn.blocks, caps, &mut messages)?,
            Side::Assistant => messages.push(assistant(&turn.blocks, caps)),
        }
    }
    Ok(messages)
}

fn message(role: &str, content: Value) -> Value {
    Obj::new().with("role", role).with("content", content).into()
}

fn user(
    blocks: &[ContentBlock],
    caps: &ModelCapabilities,
    messages: &mut Vec<Value>,
) -> Result<(), TranslateError> {
    let mut rest: Vec<ContentBlock> = Vec::new();
    for block in blocks {
        let ContentBlock::ToolResult { id, content: result, is_error, .. } = block else { continue };
        let mut text = result_text(result);
        if *is_error {
            text.insert_str(0, "Error: ");
        }
        messages.push(
            Obj::new().with("role", "tool").with("tool_call_id", id.as_str()).with("content", text).into(),
        );
        // A tool message holds text only: what else a result has follows in a message of the user.
        rest.extend(result.iter().filter(|block| !matches!(block, ContentBlock::Text { .. })).cloned());
    }
    rest.extend(blocks.iter().filter(|block| !matches!(block, ContentBlock::ToolResult { .. })).cloned());
    if !rest.is_empty() {
        messages.push(message("user", content(&rest, caps)?));
    }
    Ok(())
}

/// The texts of a tool's result, joined.
pub(crate) fn result_text(content: &[ContentBlock]) -> String {
    let texts: Vec<&str> = content
        .iter()
        .filter_map(|block| match block {
            ContentBlock::Text { text, .. } | ContentBlock::Refusal(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    texts.join("\n")
}

fn assistant(blocks: &[ContentBlock], caps: &ModelCapabilities) -> Value {
    let (mut text, mut reasoning) = (String::new(), String::new());
    let mut calls = Vec::new();
    for block in blocks {
        match block {
            ContentBlock::Text { text: more, .. } | ContentBlock::Refusal(more) => text.push_str(more),
            ContentBlock::Thinking { text: more, .. } => reasoning.push_str(more),
            ContentBlock::ToolUse { id, name, input, .. } => {
                let function = Obj::new().with("name", name.as_str()).with("arguments", input.as_str());
                let call =
                    Obj::new().with("id", id.as_str()).with("type", "function").with("function", function);
                calls.push(Value::from(call));
            }
            _ => {}
        }
    }
    let content = if text.is_empty() && !calls.is_empty() { Value::Null } else { Value::from(text) };
    let mut message = Obj::new().with("role", "assistant").with("content", content);
    if caps.replay == ReasoningReplay::Text && (!reasoning.is_empty() || !calls.is_empty()) {
        // DeepSeek and Moonshot refuse a call without the reasoning before it; where it was lost, one space passes.
        message.set("reasoning_content", if reasoning.is_empty() { " ".to_owned() } else { reasoning });
    }
    if !calls.is_empty() {
        message.set("tool_calls", calls);
    }
    message.into()
}

fn content(blocks: &[ContentBlock], caps: &ModelCapabilities) -> Result<Value, TranslateError> {
    let plain = blocks.iter().all(|block| matches!(block, ContentBlock::Text { cache: None, .. }));
    if caps.plain_content || plain {
        return Ok(Value::from(result_text(blocks)));
    }
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        let part = match block {
            ContentBlock::Text { text, cache } => Obj::new()
                .with("type", "text")
                .with("text", text.as_str())
                .maybe("cache_control", cache_control(*cache)),
            ContentBlock::Image { source, detail, .. } => {
                let image = Obj::new().with("url", address(source)).maybe("detail", detail.clone());
                Obj::new().with("type", "image_url").with("image_url", image)
            }
            ContentBlock::Document { source: source @ MediaSource::Inline { .. }, name, .. } => {
                let name = name.clone().unwrap_or_else(|| "document.pdf".to_owned());
                let file = Obj::new().with("filename", name).with("file_data", address(source));
                Obj::new().with("type", "file").with("file", file)
            }
            ContentBlock::Document { .. } => {
                let why = "documents cannot be addresses; send the bytes as base64";
                return Err(TranslateError::unsupported("messages.document", "chat", why));
            }
            ContentBlock::Audio { format, data } => {
                let audio = Obj::new().with("data", data.as_str()).with("format", format.as_str());
                Obj::new().with("type", "input_audio").with("input_audio", audio)
            }
            _ => continue,
        };
        parts.push(Value::from(part));
    }
    Ok(Value::from(parts))
}

/// A source as one address.
pub(crate) fn address(source: &MediaSource) -> String {
    match source {
        MediaSource::Inline { media_type, data } => format!("data:{media_type};base64,{data}"),
        MediaSource::Url(url) => url.clone(),
    }
}

/// Why an answer ended. Servers have words of their own beside OpenAI's.
fn finish(word: &str) -> Result<FinishReason, UpstreamFailure> {
    match word {
        "length" | "max_tokens" | "model_length" => Ok(FinishReason::Length),
        "tool_calls" | "function_call" | "tool_use" => Ok(FinishReason::ToolUse),
        "content_filter" | "sensitive" => Ok(FinishReason::Filtered),
        "error" | "network_error" => {
            Err(UpstreamFailure::new(FailureClass::Server, "the upstream failed while it answered"))
        }
        "insufficient_system_resource" => {
            Err(UpstreamFailure::new(FailureClass::Overloaded, "the upstream has no capacity left"))
        }
        _ => Ok(FinishReason::Stop),
    }
}

/// Reasoning under any of its names, Mistral's parts included.
fn reasoning_text(message: &Value) -> &str {
    message.word("reasoning_content").or_else(|| message.word("reasoning")).unwrap_or_default()
}

/// Text and reasoning of a content that is a string or Mistral's list of parts.
fn each_part(content: &Value, part: &mut dyn FnMut(bool, &str)) {
    match content {
        Value::String(text) => part(false, text),
        Value::Array(parts) => {
            for item in parts {
                if item.text("type") == "thinking" {
                    part(true, item.text("thinking"));
                    item.items("thinking").iter().for_each(|inner| part(true, inner.text("text")));
                } else {
                    part(false, item.text("text"));
                }
            }
        }
        _ => {}
    }
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    let choice = json
        .items("choices")
        .first()
        .ok_or_else(|| UpstreamFailure::malformed("the answer has no choice"))?;
    let message = choice.at("message");
    let mut blocks = Vec::new();
    for block in message.items("thinking_blocks") {
        blocks.push(match block.text("type") {
            "redacted_thinking" => {
                ContentBlock::Redacted(Signature::read(block.text("data"), Maker::Anthropic))
            }
            _ => ContentBlock::Thinking {
                text: block.text("thinking").to_owned(),
                signature: block.word("signature").map(|field| Signature::read(field, Maker::Anthropic)),
            },
        });
    }
    let spoken = blocks.iter().any(|block| matches!(block, ContentBlock::Thinking { .. }));
    if !spoken && !reasoning_text(message).is_empty() {
        blocks.push(ContentBlock::Thinking { text: reasoning_text(message).to_owned(), signature: None });
    }
    each_part(message.at("content"), &mut |thinking, text| {
        if !text.is_empty() {
            blocks.push(if thinking {
                ContentBlock::Thinking { text: text.to_owned(), signature: None }
            } else {
                ContentBlock::text(text)
            });
        }
    });
    if let Some(refusal) = message.word("refusal") {
        blocks.push(ContentBlock::Refusal(refusal.to_owned()));
    }
    let mut called = false;
    for (index, call) in message.items("tool_calls").iter().enumerate() {
        let function = call.at("function");
        let (mut id, signature) = call_id(call);
        if id.is_empty() {
            id = format!("call_{}_{index}", id_base(session));
        }
        let name = function
            .word("name")
            .ok_or_else(|| UpstreamFailure::malformed("it calls a tool without naming it"))?;
        called = true;
        let input = object_text(function.at("arguments"));
        blocks.push(ContentBlock::ToolUse { id, name: name.to_owned(), input, signature, cache: None });
    }
    let finish = match finish(choice.text("finish_reason"))? {
        FinishReason::Stop if called => FinishReason::ToolUse,
        reason => reason,
    };
    Ok(InnerResponse {
        id: json.text("id").to_owned(),
        model: json.text("model").to_owned(),
        blocks,
        finish,
        stop_sequence: None,
        usage: read_chat(json.at("usage"))
            .or_else(|| read_chat(json.at("x_groq").at("usage")))
            .unwrap_or_default(),
    })
}

/// The id of a call and the signature that came with it, in either carrier.
fn call_id(call: &Value) -> (String, Option<Signature>) {
    let (id, carried) = split_id(call.text("id"));
    let google = call.at("extra_content").at("google").word("thought_signature");
    (id, carried.or_else(|| google.map(|field| Signature::read(field, Maker::Google))))
}

/// A chunk that holds one piece of text and nothing else: nearly all of a stream. Any other shape fails to read and
/// goes the long way.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "members that are named may be there, but are not looked at")]
struct PlainChunk<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    model: Cow<'a, str>,
    #[serde(borrow)]
    choices: [PlainChoice<'a>; 1],
    object: Option<IgnoredAny>,
    created: Option<IgnoredAny>,
    system_fingerprint: Option<IgnoredAny>,
    service_tier: Option<IgnoredAny>,
    obfuscation: Option<IgnoredAny>,
    usage: Option<Nothing>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "members that are named may be there, but are not looked at")]
struct PlainChoice<'a> {
    index: u64,
    #[serde(borrow)]
    delta: PlainDelta<'a>,
    logprobs: Option<Nothing>,
    finish_reason: Option<Nothing>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "members that are named may be there, but are not looked at")]
struct PlainDelta<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
    role: Option<IgnoredAny>,
}

/// Never read from anything but `null`, which `Option` takes.
#[derive(serde::Deserialize)]
enum Nothing {}

/// Reads a stream of chunks.
#[derive(Debug)]
pub(crate) struct ChatReader {
    pub(crate) sequence: Sequencer,
    /// The server's number of a call → ours.
    numbers: BTreeMap<u64, u64>,
    /// Ids of calls by our number.
    ids: BTreeMap<u64, String>,
    last: Option<u64>,
    next: u64,
    any: bool,
}

impl ChatReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self {
            sequence: Sequencer::new(&id_base(session)),
            numbers: BTreeMap::new(),
            ids: BTreeMap::new(),
            last: None,
            next: 0,
            any: false,
        }
    }

    /// Takes a chunk of the plainest shape; says whether it was one.
    pub(crate) fn plain(&mut self, data: &str, out: &mut Vec<InnerEvent>) -> bool {
        let Ok(PlainChunk { id, model, choices: [choice], .. }) = serde_json::from_str(data) else {
            return false;
        };
        if choice.index != 0 || self.sequence.is_over() {
            return false;
        }
        self.any = true;
        self.sequence.start(&id, &model, out);
        self.sequence.text(&choice.delta.content, out);
        true
    }

    pub(crate) fn event(&mut self, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        // Only the first of several answers: more are never asked for.
        if let Some(choice) =
            json.items("choices").iter().find(|choice| choice.count("index").unwrap_or(0) == 0)
        {
            self.any = true;
            self.sequence.start(json.text("id"), json.text("model"), out);
            let delta = if choice.given("delta") { choice.at("delta") } else { choice.at("message") };
            self.delta(delta, out);
            if let Some(word) = choice.word("finish_reason") {
                match finish(word) {
                    Ok(reason) => self.sequence.finish(reason, None),
                    Err(failure) if choice.given("error") => {
                        let said = read_failure_json(200, "", choice);
                        self.sequence.fail(UpstreamFailure { class: failure.class, ..said }, out);
                    }
                    Err(failure) => self.sequence.fail(failure, out),
                }
            }
        }
        let usage = read_chat(json.at("usage")).or_else(|| read_chat(json.at("x_groq").at("usage")));
        out.extend(usage.map(InnerEvent::Usage));
    }

    fn delta(&mut self, delta: &Value, out: &mut Vec<InnerEvent>) {
        let sequence = &mut self.sequence;
        sequence.thinking(reasoning_text(delta), out);
        for block in delta.items("thinking_blocks") {
            if block.text("type") == "redacted_thinking" {
                sequence.redacted(Signature::read(block.text("data"), Maker::Anthropic), out);
            } else if let Some(field) = block.word("signature") {
                sequence.sign(Signature::read(field, Maker::Anthropic), out);
            }
        }
        each_part(delta.at("content"), &mut |thinking, text| {
            if thinking { sequence.thinking(text, out) } else { sequence.text(text, out) }
        });
        sequence.refusal(delta.text("refusal"), out);
        for call in delta.items("tool_calls") {
            let (id, signature) = call_id(call);
            let function = call.at("function");
            let key = self.key(call.count("index"), &id, function.text("name"));
            if let Some(signature) = signature {
                self.sequence.sign_tool(key, signature);
            }
            let arguments = match function.at("arguments") {
                Value::String(text) => text.clone(),
                value @ Value::Object(_) => value.to_string(),
                _ => String::new(),
            };
            self.sequence.tool(key, &id, function.text("name"), &arguments, out);
        }
    }

    /// Our number of a call. Servers leave the index out, say −1, or give several calls the same one.
    fn key(&mut self, index: Option<u64>, id: &str, name: &str) -> u64 {
        let known = match index {
            Some(index) => self.numbers.get(&index).copied(),
            None if !id.is_empty() => self.ids.iter().find(|(_, known)| *known == id).map(|(key, _)| *key),
            None if name.is_empty() => self.last,
            None => None,
        };
        let reused = |key: &u64| {
            !name.is_empty()
                && !id.is_empty()
                && self.ids.get(key).is_some_and(|own| !own.is_empty() && own != id)
        };
        let key = match known.filter(|key| !reused(key)) {
            Some(key) => key,
            None => {
                self.next += 1;
                self.next - 1
            }
        };
        if let Some(index) = index {
            self.numbers.insert(index, key);
        }
        let own = self.ids.entry(key).or_default();
        if own.is_empty() {
            own.push_str(id);
        }
        self.last = Some(key);
        key
    }

    /// `[DONE]`, or the bytes are over. OpenAI-shaped servers may leave out the one or the other, not both.
    pub(crate) fn done(&mut self, marked: bool, out: &mut Vec<InnerEvent>) {
        if marked && self.any && !self.sequence.is_finished() {
            self.sequence.finish(FinishReason::Stop, None);
        }
        self.sequence.end(out);
    }
}
