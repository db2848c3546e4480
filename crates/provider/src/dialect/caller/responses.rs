//! OpenAI's Responses as callers speak them, without stored state (gateway-protocols §8).
//!
//! Not its job: what an upstream takes. Invariants: every event has `type` and a growing `sequence_number`; each item
//! has its own `output_index`; the last event is `response.completed`, `.incomplete` or `.failed` and holds all output.

use serde_json::Value;

use super::{
    super::{
        failure::UpstreamFailure,
        inner::{
            AnswerForm, BlockKind, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest,
            InnerResponse, ReasoningWish, Side, TokenParts, ToolDecl, ToolRule,
        },
        json::{JsonLook, Obj, object_text, text_object},
        signature::{Maker, Signature, id_with, split_id},
        target::{TranslateError, TranslateOptions, TranslateSession},
    },
    cache_mark,
    chat::{rule, schema_or_empty},
    media, optional_count, optional_number, picture, push_json, push_sse, unknown_fields,
};

const KNOWN: &[&str] = &[
    "model",
    "input",
    "instructions",
    "max_output_tokens",
    "temperature",
    "top_p",
    "top_logprobs",
    "stream",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "text",
    "reasoning",
    "user",
    "safety_identifier",
    "service_tier",
    "metadata",
    "prompt_cache_key",
    "store",
    "include",
    "previous_response_id",
    "conversation",
    "background",
    "prompt",
];

/// Members of a request that its answer repeats.
const ECHO: &[&str] = &[
    "instructions",
    "max_output_tokens",
    "metadata",
    "parallel_tool_calls",
    "reasoning",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_p",
    "truncation",
    "user",
];

/// Marks hidden reasoning, as opposed to signed text, inside `encrypted_content`.
const HIDDEN: &str = "hidden:";

/// The one argument under which free-text tools are offered to models that know only JSON.
const INPUT: &str = "input";

pub(crate) fn read(json: &Value, options: &TranslateOptions) -> Result<InnerRequest, TranslateError> {
    // Messages and Responses always show usage.
    let mut request =
        InnerRequest { model: json.text("model").to_owned(), include_usage: true, ..InnerRequest::default() };
    unknown_fields(json, KNOWN, &mut request.dropped);
    for key in ["previous_response_id", "conversation", "prompt"] {
        if json.given(key) {
            let why = "nothing is stored here; send the whole conversation as `input`";
            return Err(TranslateError::unsupported(key, "the gateway", why));
        }
    }
    if json.flag("background") == Some(true) {
        return Err(TranslateError::unsupported("background", "the gateway", "answers are not stored"));
    }
    let wants = |word: &str| json.items("include").iter().any(|item| item.as_str() == Some(word));
    if json.count("top_logprobs").is_some_and(|count| count > 0) || wants("message.output_text.logprobs") {
        let why = "log probabilities cannot be translated";
        return Err(TranslateError::unsupported("top_logprobs", "translation", why));
    }
    if let Some(text) = json.word("instructions") {
        request.system.push(ContentBlock::text(text));
    }
    match json.at("input") {
        Value::String(text) if !text.is_empty() => {
            request.push(Side::User, vec![ContentBlock::text(text.as_str())])
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                read_item(item, &format!("input[{index}]"), &mut request)?;
            }
        }
        _ => return Err(TranslateError::invalid("input", "it must be a string or a list of items")),
    }
    request.max_tokens = optional_count(json, "max_output_tokens")?;
    request.temperature = optional_number(json, "temperature")?;
    request.top_p = optional_number(json, "top_p")?;
    request.stream = json.flag("stream").unwrap_or_default();
    request.parallel_tools = json.flag("parallel_tool_calls");
    request.user = json.word("safety_identifier").or(json.word("user")).map(str::to_owned);
    request.service_tier = json.word("service_tier").map(str::to_owned);
    request.cache_key = json.word("prompt_cache_key").map(str::to_owned);
    request.verbosity = json.at("text").word("verbosity").map(str::to_owned);
    if let Some(labels) = json.at("metadata").as_object() {
        let label = |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
        request.metadata = labels.iter().filter_map(label).collect();
    }
    for (index, tool) in json.items("tools").iter().enumerate() {
        read_tool(tool, &format!("tools[{index}]"), options, &mut request)?;
    }
    read_choice(json.at("tool_choice"), &mut request)?;
    request.form = read_form(json.at("text").at("format"))?;
    request.reasoning = read_reasoning(json.at("reasoning"))?;
    let mut echo = Obj::new();
    for key in ECHO {
        if json.given(key) {
            echo.set(key, json.at(key).clone());
        }
    }
    request.echo = echo.into();
    Ok(request)
}

fn read_item(item: &Value, param: &str, request: &mut InnerRequest) -> Result<(), TranslateError> {
    let kind = item.word("type").unwrap_or("message");
    match kind {
        "message" => {
            let blocks = read_content(item.at("content"), &format!("{param}.content"))?;
            match item.text("role") {
                "user" => request.push(Side::User, blocks),
                "assistant" => request.push(Side::Assistant, blocks),
                "system" | "developer" => request.system.extend(blocks),
                _ => {
                    let roles = "it must be user, assistant, system or developer";
                    return Err(TranslateError::invalid(format!("{param}.role"), roles));
                }
            }
        }
        "function_call" | "custom_tool_call" => {
            let (id, signature) = split_id(item.text("call_id"));
            if id.is_empty() || item.word("name").is_none() {
                return Err(TranslateError::invalid(param, "it needs a call_id and a name"));
            }
            let input = if kind == "custom_tool_call" {
                Value::from(Obj::new().with(INPUT, item.text("input"))).to_string()
            } else {
                let text = item.text("arguments");
                let param = format!("{param}.arguments");
                text_object(text)
                    .ok_or_else(|| TranslateError::invalid(param, "it must be the text of a JSON object"))?;
                if text.trim().is_empty() { "{}" } else { text }.to_owned()
            };
            let name = item.text("name").to_owned();
            request.push(
                Side::Assistant,
                vec![ContentBlock::ToolUse { id, name, input, signature, cache: None }],
            );
        }
        "function_call_output" | "custom_tool_call_output" => {
            let (id, _) = split_id(item.text("call_id"));
            let content = read_content(item.at("output"), &format!("{param}.output"))?;
            let again = request.turns.last().is_some_and(|turn| {
                turn.blocks
                    .iter()
                    .any(|block| matches!(block, ContentBlock::ToolResult { id: old, .. } if *old == id))
            });
            // Some clients repeat an output; the first one counts.
            if !again {
                let block = ContentBlock::ToolResult { id, content, is_error: false, cache: None };
                request.push(Side::User, vec![block]);
            }
        }
        "reasoning" => {
            let blocks = read_reasoning_item(item);
            request.push(Side::Assistant, blocks);
        }
        "item_reference" => {
            let why = "nothing is stored here; send the item itself";
            return Err(TranslateError::unsupported(param, "the gateway", why));
        }
        other => {
            let why = format!("items of the type `{other}` belong to tools that a provider runs itself");
            return Err(TranslateError::unsupported(format!("{param}.type"), "translation", why));
        }
    }
    Ok(())
}

fn read_reasoning_item(item: &Value) -> Vec<ContentBlock> {
    let text: String = item
        .items("summary")
        .iter()
        .chain(item.items("content"))
        .map(|part| part.text("text"))
        .collect::<Vec<_>>()
        .join("\n\n");
    match item.word("encrypted_content") {
        None if text.is_empty() => Vec::new(),
        None => vec![ContentBlock::Thinking { text, signature: None }],
        Some(field) => match field.strip_prefix(HIDDEN) {
            Some(field) => vec![ContentBlock::Redacted(Signature::read(field, Maker::OpenAi))],
            None => {
                vec![ContentBlock::Thinking { text, signature: Some(Signature::read(field, Maker::OpenAi)) }]
            }
        },
    }
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
    let stored = || {
        let why = "files stored at a provider are not known to another; send the bytes";
        Err(TranslateError::unsupported(format!("{param}.file_id"), "translation", why))
    };
    Ok(Some(match part.text("type") {
        "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text"
            if part.text("text").is_empty() =>
        {
            return Ok(None);
        }
        "input_text" | "output_text" | "text" | "summary_text" | "reasoning_text" => {
            ContentBlock::Text { text: part.text("text").to_owned(), cache }
        }
        "refusal" => ContentBlock::Refusal(part.text("refusal").to_owned()),
        "input_image" if part.given("file_id") => return stored(),
        "input_image" => {
            let detail = part.word("detail").map(str::to_owned);
            picture(media(part.text("image_url"), &format!("{param}.image_url"))?, detail, cache)
        }
        "input_file" if part.given("file_id") => return stored(),
        "input_file" => {
            let url = part.word("file_data").unwrap_or_else(|| part.text("file_url"));
            let source = media(url, &format!("{param}.file_data"))?;
            ContentBlock::Document { source, name: part.word("filename").map(str::to_owned), cache }
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
    request: &mut InnerRequest,
) -> Result<(), TranslateError> {
    let kind = tool.text("type");
    let free_text = kind == "custom";
    if kind != "function" && !free_text {
        if options.drop_hosted_tools {
            request.dropped.push(param.to_owned());
            return Ok(());
        }
        let why = format!("`{kind}` is run by a provider itself and not available in another dialect");
        return Err(TranslateError::unsupported(format!("{param}.type"), "translation", why));
    }
    let name =
        tool.word("name").ok_or_else(|| TranslateError::invalid(format!("{param}.name"), "it is missing"))?;
    let mut description = tool.word("description").map(str::to_owned);
    let schema = if free_text {
        let grammar = tool.at("format").word("definition");
        if let Some(grammar) = grammar {
            let text = description.get_or_insert_default();
            text.push_str("\nThe input follows this grammar:\n");
            text.push_str(grammar);
        }
        Obj::new()
            .with("type", "object")
            .with("properties", Obj::new().with(INPUT, Obj::new().with("type", "string")))
            .with("required", vec![INPUT])
            .into()
    } else {
        schema_or_empty(tool.at("parameters"))
    };
    let strict = if free_text { None } else { tool.flag("strict") };
    request.tools.push(ToolDecl {
        name: name.to_owned(),
        description,
        schema,
        strict,
        cache: cache_mark(tool),
        free_text,
    });
    Ok(())
}

fn read_choice(choice: &Value, request: &mut InnerRequest) -> Result<(), TranslateError> {
    request.tool_rule = match choice {
        Value::Null => None,
        Value::String(word) => Some(rule(word)?),
        _ if choice.text("type") == "allowed_tools" => {
            let names: Vec<&str> = choice.items("tools").iter().map(|tool| tool.text("name")).collect();
            request.tools.retain(|tool| names.contains(&tool.name.as_str()));
            Some(rule(choice.word("mode").unwrap_or("auto"))?)
        }
        _ => {
            let name = choice.word("name").ok_or_else(|| {
                TranslateError::unsupported(
                    "tool_choice",
                    "translation",
                    "only functions can be chosen by name",
                )
            })?;
            if !request.tools.iter().any(|tool| tool.name == name) {
                return Err(TranslateError::invalid("tool_choice", format!("there is no tool `{name}`")));
            }
            Some(ToolRule::Named(name.to_owned()))
        }
    };
    Ok(())
}

fn read_form(format: &Value) -> Result<Option<AnswerForm>, TranslateError> {
    match format.text("type") {
        "" | "text" => Ok(None),
        "json_object" => Ok(Some(AnswerForm::Json)),
        "json_schema" if format.at("schema").is_object() => Ok(Some(AnswerForm::Schema {
            name: format.word("name").unwrap_or("answer").to_owned(),
            description: format.word("description").map(str::to_owned),
            schema: format.at("schema").clone(),
            strict: format.flag("strict"),
        })),
        _ => Err(TranslateError::invalid(
            "text.format",
            "it must be text, json_object or a json_schema with a schema",
        )),
    }
}

fn read_reasoning(reasoning: &Value) -> Result<Option<ReasoningWish>, TranslateError> {
    let summary = reasoning.given("summary") || reasoning.given("generate_summary");
    let Some(word) = reasoning.word("effort") else {
        // A wish for a summary alone asks for no more reasoning than there is.
        return Ok(None);
    };
    let effort = EffortLevel::read(word).ok_or_else(|| {
        TranslateError::invalid(
            "reasoning.effort",
            "it must be none, minimal, low, medium, high, xhigh or max",
        )
    })?;
    Ok(Some(ReasoningWish { effort: Some(effort), summary, ..ReasoningWish::default() }))
}

pub(crate) fn usage(usage: &TokenParts) -> Value {
    let input =
        Obj::new().with("cached_tokens", usage.cache_read).with("cache_write_tokens", usage.cache_write);
    Obj::new()
        .with("input_tokens", usage.input_total())
        .with("input_tokens_details", input)
        .with("output_tokens", usage.output)
        .with("output_tokens_details", Obj::new().with("reasoning_tokens", usage.reasoning))
        .with("total_tokens", usage.total())
        .into()
}

fn status(reason: FinishReason) -> (&'static str, Value) {
    let why = match reason {
        FinishReason::Length => "max_output_tokens",
        FinishReason::Filtered => "content_filter",
        _ => return ("completed", Value::Null),
    };
    ("incomplete", Obj::new().with("reason", why).into())
}

/// An item's id: of this answer, with the prefix of its kind.
fn item_id(session: &TranslateSession, prefix: &str, index: usize) -> String {
    format!("{prefix}_{}_{index}", session.id)
}

/// The encrypted member that carries a proof through this dialect.
fn encrypted(signature: &Signature, hidden: bool) -> String {
    let field = signature.field(Maker::OpenAi);
    if hidden { format!("{HIDDEN}{field}") } else { field }
}

fn summary_part(text: &str) -> Value {
    Obj::new().with("type", "summary_text").with("text", text).into()
}

fn reasoning_item(id: &str, text: &str, proof: Option<String>) -> Value {
    let summary = if text.is_empty() { Vec::new() } else { vec![summary_part(text)] };
    Obj::new()
        .with("type", "reasoning")
        .with("id", id)
        .with("summary", summary)
        .maybe("encrypted_content", proof)
        .into()
}

fn text_part(text: &str) -> Value {
    Obj::new()
        .with("type", "output_text")
        .with("text", text)
        .with("annotations", Vec::<Value>::new())
        .with("logprobs", Vec::<Value>::new())
        .into()
}

fn refusal_part(text: &str) -> Value {
    Obj::new().with("type", "refusal").with("refusal", text).into()
}

fn message_item(id: &str, status: &str, content: Vec<Value>) -> Value {
    Obj::new()
        .with("type", "message")
        .with("id", id)
        .with("role", "assistant")
        .with("status", status)
        .with("content", content)
        .into()
}

fn call_item(session: &TranslateSession, id: &str, call: &ToolCall<'_>, status: &str) -> Value {
    let name = session.tool_name(call.name);
    let call_id = id_with(call.id, call.signature);
    let item = Obj::new().with("id", id).with("call_id", call_id).with("name", name).with("status", status);
    if is_free_text(session, call.name) {
        let input = free_input(call.input);
        return item.with("type", "custom_tool_call").with("input", input).into();
    }
    item.with("type", "function_call").with("arguments", call.input).into()
}

/// A call of an answer.
struct ToolCall<'a> {
    id: &'a str,
    name: &'a str,
    input: &'a str,
    signature: Option<&'a Signature>,
}

fn is_free_text(session: &TranslateSession, name: &str) -> bool {
    let name = session.tool_name(name);
    session.free_text.iter().any(|own| own == name)
}

/// The free text of a call that was made as JSON.
fn free_input(arguments: &str) -> String {
    match serde_json::from_str::<Value>(arguments) {
        Ok(json) if json.get(INPUT).is_some_and(Value::is_string) => json.text(INPUT).to_owned(),
        _ => arguments.to_owned(),
    }
}

/// The object around all items.
fn object(session: &TranslateSession, id: &str, status: &str, output: Vec<Value>) -> Obj {
    let echo = &session.echo;
    let or = |key: &str, default: Value| if echo.given(key) { echo.at(key).clone() } else { default };
    let id = if id.is_empty() { format!("resp_{}", session.id) } else { id.to_owned() };
    Obj::new()
        .with("id", id)
        .with("object", "response")
        .with("created_at", session.now)
        .with("status", status)
        .with("error", Value::Null)
        .with("incomplete_details", Value::Null)
        .with("instructions", or("instructions", Value::Null))
        .with("max_output_tokens", or("max_output_tokens", Value::Null))
        .with("metadata", or("metadata", Obj::new().into()))
        .with("model", session.shown_model.as_str())
        .with("output", output)
        .with("parallel_tool_calls", or("parallel_tool_calls", Value::Bool(true)))
        .with("previous_response_id", Value::Null)
        .with(
            "reasoning",
            or("reasoning", Obj::new().with("effort", Value::Null).with("summary", Value::Null).into()),
        )
        .with("service_tier", "default")
        .with("store", false)
        .with("temperature", or("temperature", Value::from(1.0)))
        .with("text", or("text", Obj::new().with("format", Obj::new().with("type", "text")).into()))
        .with("tool_choice", or("tool_choice", Value::from("auto")))
        .with("tools", or("tools", Value::Array(Vec::new())))
        .with("top_p", or("top_p", Value::from(1.0)))
        .with("truncation", or("truncation", Value::from("disabled")))
        .with("usage", Value::Null)
        .with("user", or("user", Value::Null))
}

fn ended(
    session: &TranslateSession,
    id: &str,
    output: Vec<Value>,
    reason: FinishReason,
    tokens: &TokenParts,
) -> (&'static str, Value) {
    let (status, details) = status(reason);
    let mut object = object(session, id, status, output);
    object.set("incomplete_details", details);
    object.set("usage", usage(tokens));
    if status == "completed" {
        object.set("completed_at", session.now);
    }
    (status, object.into())
}

pub(crate) fn write(session: &TranslateSession, response: &InnerResponse) -> Value {
    let (item_status, _) = status(response.finish);
    let mut output = Vec::with_capacity(response.blocks.len());
    for (index, block) in response.blocks.iter().enumerate() {
        let item = match block {
            ContentBlock::Text { text, .. } => {
                message_item(&item_id(session, "msg", index), item_status, vec![text_part(text)])
            }
            ContentBlock::Refusal(text) => {
                message_item(&item_id(session, "msg", index), item_status, vec![refusal_part(text)])
            }
            ContentBlock::Thinking { text, signature } => {
                let proof = signature.as_ref().map(|signature| encrypted(signature, false));
                reasoning_item(&item_id(session, "rs", index), text, proof)
            }
            ContentBlock::Redacted(signature) => {
                reasoning_item(&item_id(session, "rs", index), "", Some(encrypted(signature, true)))
            }
            ContentBlock::ToolUse { id, name, input, signature, .. } => {
                let call = ToolCall { id, name, input, signature: signature.as_ref() };
                call_item(session, &item_id(session, "fc", index), &call, item_status)
            }
            _ => continue,
        };
        output.push(item);
    }
    ended(session, &response.id, output, response.finish, &response.usage).1
}

/// Writes a stream of numbered events.
#[derive(Debug)]
pub(crate) struct ResponsesWriter {
    id: String,
    number: u64,
    output: Vec<Value>,
    open: Option<OpenItem>,
    usage: TokenParts,
    finish: FinishReason,
    started: bool,
}

#[derive(Debug)]
struct OpenItem {
    kind: BlockKind,
    id: String,
    text: String,
    signature: Option<Signature>,
    /// A free-text call: its JSON is unwrapped when it is whole.
    free_text: bool,
    /// The part of a reasoning summary was announced.
    part: bool,
}

impl ResponsesWriter {
    pub(crate) fn new(_: &TranslateSession) -> Self {
        Self {
            id: String::new(),
            number: 0,
            output: Vec::new(),
            open: None,
            usage: TokenParts::default(),
            finish: FinishReason::Stop,
            started: false,
        }
    }

    fn send(&mut self, name: &str, event: Obj, out: &mut Vec<u8>) {
        let event = event.with("type", name).with("sequence_number", self.number);
        self.number += 1;
        push_sse(Some(name), &event.into(), out);
    }

    fn begin(&mut self, session: &TranslateSession, id: &str, out: &mut Vec<u8>) {
        self.started = true;
        self.id = id.to_owned();
        for name in ["response.created", "response.in_progress"] {
            let response = object(session, &self.id, "in_progress", Vec::new());
            self.send(name, Obj::new().with("response", response), out);
        }
    }

    /// An event of the item that is open.
    fn item_event(&self, item: &OpenItem) -> Obj {
        Obj::new().with("item_id", item.id.as_str()).with("output_index", self.output.len())
    }

    fn added(&mut self, item: Value, out: &mut Vec<u8>) {
        let event = Obj::new().with("output_index", self.output.len()).with("item", item);
        self.send("response.output_item.added", event, out);
    }

    fn done(&mut self, item: Value, out: &mut Vec<u8>) {
        let event = Obj::new().with("output_index", self.output.len()).with("item", item.clone());
        self.send("response.output_item.done", event, out);
        self.output.push(item);
    }

    pub(crate) fn event(&mut self, session: &TranslateSession, event: &InnerEvent, out: &mut Vec<u8>) {
        match event {
            InnerEvent::Usage(usage) => {
                self.usage = *usage;
                return;
            }
            InnerEvent::Start { id, .. } => {
                self.begin(session, id, out);
                return;
            }
            _ if !self.started => self.begin(session, "", out),
            _ => {}
        }
        match event {
            InnerEvent::Open(kind) => self.open(session, kind, out),
            InnerEvent::Delta(text) => self.delta(text, out),
            InnerEvent::Sign(signature) => {
                if let Some(item) = &mut self.open {
                    item.signature = Some(signature.clone());
                }
            }
            InnerEvent::Redacted(signature) => {
                let id = item_id(session, "rs", self.output.len());
                let item = reasoning_item(&id, "", Some(encrypted(signature, true)));
                self.added(item.clone(), out);
                self.done(item, out);
            }
            InnerEvent::Close => self.close(session, "completed", out),
            InnerEvent::Finish { reason, .. } => self.finish = *reason,
            InnerEvent::End => {
                let output = std::mem::take(&mut self.output);
                let (status, response) = ended(session, &self.id, output, self.finish, &self.usage);
                let name = format!("response.{status}");
                self.send(&name, Obj::new().with("response", response), out);
            }
            InnerEvent::Failed(failure) => self.fail(session, failure, out),
            InnerEvent::Start { .. } | InnerEvent::Usage(_) => {}
        }
    }

    fn fail(&mut self, session: &TranslateSession, failure: &UpstreamFailure, out: &mut Vec<u8>) {
        let output = std::mem::take(&mut self.output);
        let (kind, code) = failure.class.openai();
        let error = Obj::new().with("code", code.unwrap_or(kind)).with("message", failure.public_message());
        let response = object(session, &self.id, "failed", output).with("error", error);
        self.send("response.failed", Obj::new().with("response", response), out);
    }

    fn open(&mut self, session: &TranslateSession, kind: &BlockKind, out: &mut Vec<u8>) {
        let index = self.output.len();
        let (prefix, free_text) = match kind {
            BlockKind::Text | BlockKind::Refusal => ("msg", false),
            BlockKind::Thinking => ("rs", false),
            BlockKind::Tool { name, .. } => ("fc", is_free_text(session, name)),
        };
        let id = item_id(session, prefix, index);
        let item = match kind {
            BlockKind::Text | BlockKind::Refusal => message_item(&id, "in_progress", Vec::new()),
            BlockKind::Thinking => reasoning_item(&id, "", None),
            BlockKind::Tool { id: call, name, signature } => {
                let call = ToolCall { id: call, name, input: "", signature: signature.as_ref() };
                call_item(session, &id, &call, "in_progress")
            }
        };
        self.added(item, out);
        let item =
            OpenItem { kind: kind.clone(), id, text: String::new(), signature: None, free_text, part: false };
        let part = match kind {
            BlockKind::Text => Some(text_part("")),
            BlockKind::Refusal => Some(refusal_part("")),
            _ => None,
        };
        if let Some(part) = part {
            let event = self.item_event(&item).with("content_index", 0).with("part", part);
            self.send("response.content_part.added", event, out);
        }
        self.open = Some(item);
    }

    fn delta(&mut self, text: &str, out: &mut Vec<u8>) {
        let Some(mut item) = self.open.take() else { return };
        item.text.push_str(text);
        if item.kind == BlockKind::Thinking && !item.part {
            item.part = true;
            let part = self.item_event(&item).with("summary_index", 0).with("part", summary_part(""));
            self.send("response.reasoning_summary_part.added", part, out);
        }
        // Most events of a stream: written without a tree of values.
        let (name, rest) = match item.kind {
            BlockKind::Text => ("response.output_text.delta", ",\"content_index\":0,\"logprobs\":[]"),
            BlockKind::Refusal => ("response.refusal.delta", ",\"content_index\":0"),
            BlockKind::Thinking => ("response.reasoning_summary_text.delta", ",\"summary_index\":0"),
            BlockKind::Tool { .. } => ("response.function_call_arguments.delta", ""),
        };
        if !item.free_text {
            out.extend_from_slice(b"event: ");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\ndata: {\"type\":\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\",\"sequence_number\":");
            push_json(&self.number, out);
            out.extend_from_slice(b",\"item_id\":");
            push_json(&item.id, out);
            out.extend_from_slice(b",\"output_index\":");
            push_json(&self.output.len(), out);
            out.extend_from_slice(rest.as_bytes());
            out.extend_from_slice(b",\"delta\":");
            push_json(text, out);
            out.extend_from_slice(b"}\n\n");
            self.number += 1;
        }
        self.open = Some(item);
    }

    fn close(&mut self, session: &TranslateSession, status: &str, out: &mut Vec<u8>) {
        let Some(item) = self.open.take() else { return };
        let event = self.item_event(&item);
        let text = item.text.as_str();
        let whole = match &item.kind {
            BlockKind::Text | BlockKind::Refusal => {
                let (part, name, key) = if item.kind == BlockKind::Text {
                    (text_part(text), "response.output_text.done", "text")
                } else {
                    (refusal_part(text), "response.refusal.done", "refusal")
                };
                let mut done = event.with("content_index", 0).with(key, text);
                if item.kind == BlockKind::Text {
                    done.set("logprobs", Vec::<Value>::new());
                }
                self.send(name, done, out);
                let done = self.item_event(&item).with("content_index", 0).with("part", part.clone());
                self.send("response.content_part.done", done, out);
                message_item(&item.id, status, vec![part])
            }
            BlockKind::Thinking => {
                if item.part {
                    let done = event.with("summary_index", 0).with("text", text);
                    self.send("response.reasoning_summary_text.done", done, out);
                    let done =
                        self.item_event(&item).with("summary_index", 0).with("part", summary_part(text));
                    self.send("response.reasoning_summary_part.done", done, out);
                }
                reasoning_item(&item.id, text, item.signature.as_ref().map(|own| encrypted(own, false)))
            }
            BlockKind::Tool { id, name, signature } => {
                if item.free_text {
                    let input = free_input(text);
                    let more = self.item_event(&item).with("delta", input.as_str());
                    self.send("response.custom_tool_call_input.delta", more, out);
                    self.send("response.custom_tool_call_input.done", event.with("input", input), out);
                } else {
                    let done = event.with("name", session.tool_name(name)).with("arguments", text);
                    self.send("response.function_call_arguments.done", done, out);
                }
                let call = ToolCall { id, name, input: text, signature: signature.as_ref() };
                call_item(session, &item.id, &call, status)
            }
        };
        self.done(whole, out);
    }
}

/// The arguments of a call as this dialect's callers send them back; used by the upstream side.
pub(crate) fn arguments(value: &Value) -> String {
    object_text(value)
}

/// Whether a proof in `encrypted_content` stands for hidden reasoning, and the proof.
pub(crate) fn read_encrypted(field: &str, maker: Maker) -> (bool, Signature) {
    match field.strip_prefix(HIDDEN) {
        Some(rest) => (true, Signature::read(rest, maker)),
        None => (false, Signature::read(field, maker)),
    }
}
