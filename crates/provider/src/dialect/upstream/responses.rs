//! OpenAI's Responses as an upstream: models that take tools nowhere else (gateway-protocols §8.4, §9.2).
//!
//! Not its job: stored state; nothing is stored. Invariant: a failed or incomplete response is never read as a whole
//! one.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    super::{
        caller::responses::{arguments, read_encrypted},
        failure::{FailureClass, UpstreamFailure, read_failure_json},
        inner::{
            AnswerForm, ContentBlock, FinishReason, InnerEvent, InnerRequest, InnerResponse, MediaSource,
            Side, ToolRule,
        },
        json::{JsonLook, Obj, number},
        sequence::Sequencer,
        signature::{Maker, split_id},
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession},
        usage::read_responses,
    },
    Written,
    chat::{address, result_text},
    id_base,
};

/// The least `max_output_tokens` that is taken.
const LEAST_OUTPUT: u64 = 16;

pub(crate) fn write(
    request: &mut InnerRequest,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    let mut input = Vec::new();
    for turn in &request.turns {
        match turn.side {
            Side::User => user(&turn.blocks, &mut input)?,
            Side::Assistant => assistant(&turn.blocks, &mut input),
        }
    }
    let mut body = Obj::new()
        .with("model", options.model.as_str())
        .with("input", input)
        .with("store", false)
        // The proof of reasoning comes back only if it is asked for.
        .with("include", vec!["reasoning.encrypted_content"]);
    if !request.system.is_empty() {
        body.set("instructions", result_text(&request.system));
    }
    if request.stream {
        body.set("stream", true);
    }
    let mut body = body
        .maybe("max_output_tokens", request.max_tokens.map(|limit| limit.max(LEAST_OUTPUT)))
        .maybe("temperature", request.temperature.map(number))
        .maybe("top_p", request.top_p.map(number))
        .maybe("user", request.user.take().filter(|user| user.len() <= 64))
        .maybe("service_tier", request.service_tier.take())
        .maybe("prompt_cache_key", request.cache_key.take());
    tools(request, &mut body);
    let format = match &request.form {
        None => None,
        Some(AnswerForm::Json) => Some(Obj::new().with("type", "json_object")),
        Some(AnswerForm::Schema { name, description, schema, strict }) => Some(
            Obj::new()
                .with("type", "json_schema")
                .with("name", name.as_str())
                .maybe("description", description.clone())
                .with("schema", schema.clone())
                .maybe("strict", *strict),
        ),
    };
    if let Some(text) =
        Obj::new().maybe("format", format).maybe("verbosity", request.verbosity.take()).filled()
    {
        body.set("text", text);
    }
    if let Some(wish) = request.reasoning {
        let mut reasoning = Obj::new().with("effort", wish.level().word());
        if !wish.is_off() {
            reasoning.set("summary", "auto");
        }
        body.set("reasoning", reasoning);
    }
    if !request.metadata.is_empty() {
        let labels: Value =
            request.metadata.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
        body.set("metadata", labels);
    }
    Ok(Written::new(PathRoot::Base, "/responses", body))
}

fn tools(request: &InnerRequest, body: &mut Obj) {
    if request.tools.is_empty() {
        return;
    }
    let list: Vec<Value> = request
        .tools
        .iter()
        .map(|tool| {
            Obj::new()
                .with("type", "function")
                .with("name", tool.name.as_str())
                .maybe("description", tool.description.clone())
                .with("parameters", tool.schema.clone())
                // Without a word, this dialect takes schemas strictly, and few schemas are strict.
                .with("strict", tool.strict.unwrap_or_default())
                .into()
        })
        .collect();
    body.set("tools", list);
    match &request.tool_rule {
        None => {}
        Some(ToolRule::Auto) => body.set("tool_choice", "auto"),
        Some(ToolRule::Never) => body.set("tool_choice", "none"),
        Some(ToolRule::Any) => body.set("tool_choice", "required"),
        Some(ToolRule::Named(name)) => {
            body.set("tool_choice", Obj::new().with("type", "function").with("name", name.as_str()));
        }
    }
    if let Some(parallel) = request.parallel_tools {
        body.set("parallel_tool_calls", parallel);
    }
}

fn part(block: &ContentBlock) -> Option<Value> {
    Some(match block {
        ContentBlock::Text { text, .. } => {
            Obj::new().with("type", "input_text").with("text", text.as_str()).into()
        }
        ContentBlock::Image { source, detail, .. } => Obj::new()
            .with("type", "input_image")
            .with("image_url", address(source))
            .with("detail", detail.clone().unwrap_or_else(|| "auto".to_owned()))
            .into(),
        ContentBlock::Document { source, name, .. } => {
            let file = Obj::new().with("type", "input_file");
            match source {
                MediaSource::Inline { .. } => file
                    .with("filename", name.clone().unwrap_or_else(|| "document.pdf".to_owned()))
                    .with("file_data", address(source))
                    .into(),
                MediaSource::Url(url) => file.with("file_url", url.as_str()).into(),
            }
        }
        _ => return None,
    })
}

fn user(blocks: &[ContentBlock], input: &mut Vec<Value>) -> Result<(), TranslateError> {
    let mut parts = Vec::new();
    for block in blocks {
        match block {
            ContentBlock::ToolResult { id, content, is_error, .. } => {
                let rich = content.iter().any(|block| !matches!(block, ContentBlock::Text { .. }));
                let output = if rich {
                    Value::from(content.iter().filter_map(part).collect::<Vec<_>>())
                } else if *is_error {
                    Value::from(format!("Error: {}", result_text(content)))
                } else {
                    Value::from(result_text(content))
                };
                input.push(
                    Obj::new()
                        .with("type", "function_call_output")
                        .with("call_id", id.as_str())
                        .with("output", output)
                        .into(),
                );
            }
            ContentBlock::Audio { .. } => {
                return Err(TranslateError::unsupported("messages.audio", "responses", "it takes no sound"));
            }
            block => parts.extend(part(block)),
        }
    }
    if !parts.is_empty() {
        input.push(Obj::new().with("type", "message").with("role", "user").with("content", parts).into());
    }
    Ok(())
}

fn assistant(blocks: &[ContentBlock], input: &mut Vec<Value>) {
    for block in blocks {
        let item = match block {
            ContentBlock::Text { text, .. } | ContentBlock::Refusal(text) => {
                Obj::new().with("type", "message").with("role", "assistant").with(
                    "content",
                    vec![Value::from(Obj::new().with("type", "output_text").with("text", text.as_str()))],
                )
            }
            ContentBlock::Thinking { text, signature: Some(signature) } => {
                let part = Value::from(Obj::new().with("type", "summary_text").with("text", text.as_str()));
                let summary = if text.is_empty() { Vec::new() } else { vec![part] };
                Obj::new()
                    .with("type", "reasoning")
                    .with("summary", summary)
                    .with("encrypted_content", signature.data.as_str())
            }
            ContentBlock::ToolUse { id, name, input, .. } => Obj::new()
                .with("type", "function_call")
                .with("call_id", id.as_str())
                .with("name", name.as_str())
                .with("arguments", input.as_str()),
            _ => continue,
        };
        input.push(item.into());
    }
}

/// Why a response ended; a failed one is a failure.
fn finish(response: &Value) -> Result<FinishReason, UpstreamFailure> {
    match response.text("status") {
        "failed" | "cancelled" => {
            let mut failure = read_failure_json(200, "", response);
            if failure.message.is_empty() {
                failure = UpstreamFailure::new(FailureClass::Server, "the upstream's response failed");
            }
            Err(failure)
        }
        "incomplete" => Ok(match response.at("incomplete_details").text("reason") {
            "content_filter" => FinishReason::Filtered,
            _ => FinishReason::Length,
        }),
        _ => Ok(FinishReason::Stop),
    }
}

fn item_blocks(item: &Value, maker: Maker, blocks: &mut Vec<ContentBlock>) {
    match item.text("type") {
        "reasoning" => {
            let text = reasoning_text(item);
            match item.word("encrypted_content").map(|field| read_encrypted(field, maker)) {
                Some((true, signature)) => blocks.push(ContentBlock::Redacted(signature)),
                Some((false, signature)) => {
                    blocks.push(ContentBlock::Thinking { text, signature: Some(signature) });
                }
                None if text.is_empty() => {}
                None => blocks.push(ContentBlock::Thinking { text, signature: None }),
            }
        }
        "message" => {
            for part in item.items("content") {
                match part.text("type") {
                    "refusal" => blocks.push(ContentBlock::Refusal(part.text("refusal").to_owned())),
                    _ => blocks.push(ContentBlock::text(part.text("text"))),
                }
            }
        }
        "function_call" => {
            let (id, signature) = split_id(call_id(item));
            let (name, input) = (item.text("name").to_owned(), arguments(item.at("arguments")));
            blocks.push(ContentBlock::ToolUse { id, name, input, signature, cache: None });
        }
        "custom_tool_call" => {
            let (id, signature) = split_id(call_id(item));
            let input = Value::from(Obj::new().with("input", item.text("input"))).to_string();
            blocks.push(ContentBlock::ToolUse {
                id,
                name: item.text("name").to_owned(),
                input,
                signature,
                cache: None,
            });
        }
        _ => {}
    }
}

fn call_id(item: &Value) -> &str {
    item.word("call_id").unwrap_or_else(|| item.text("id"))
}

fn reasoning_text(item: &Value) -> String {
    let parts = item.items("summary").iter().chain(item.items("content"));
    parts.map(|part| part.text("text")).collect::<Vec<_>>().join("\n\n")
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    let reason = finish(json)?;
    if !json.at("output").is_array() {
        return Err(UpstreamFailure::malformed("the response has no output"));
    }
    let maker = session.maker().unwrap_or(Maker::OpenAi);
    let mut blocks = Vec::new();
    for item in json.items("output") {
        item_blocks(item, maker, &mut blocks);
    }
    let called = blocks.iter().any(|block| matches!(block, ContentBlock::ToolUse { .. }));
    Ok(InnerResponse {
        id: json.text("id").to_owned(),
        model: json.text("model").to_owned(),
        blocks,
        finish: if called && reason == FinishReason::Stop { FinishReason::ToolUse } else { reason },
        stop_sequence: None,
        usage: read_responses(json.at("usage")).unwrap_or_default(),
    })
}

/// What of an item was already read from deltas.
#[derive(Debug, Default)]
struct SeenItem {
    deltas: bool,
    parts: u64,
    call: Option<u64>,
    done: bool,
}

/// Reads a stream of events.
#[derive(Debug)]
pub(crate) struct ResponsesReader {
    pub(crate) sequence: Sequencer,
    maker: Maker,
    items: BTreeMap<u64, SeenItem>,
    next: u64,
}

impl ResponsesReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self {
            sequence: Sequencer::new(&id_base(session)),
            maker: session.maker().unwrap_or(Maker::OpenAi),
            items: BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn event(&mut self, name: &str, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        let index = json.count("output_index").unwrap_or_default();
        let delta = json.text("delta");
        match json.word("type").unwrap_or(name) {
            "response.created" | "response.in_progress" | "response.queued" => {
                let response = json.at("response");
                self.sequence.start(response.text("id"), response.text("model"), out);
            }
            "response.output_item.added" => self.added(index, json.at("item"), out),
            "response.output_text.delta" => {
                self.items.entry(index).or_default().deltas |= !delta.is_empty();
                self.sequence.text(delta, out);
            }
            "response.refusal.delta" => {
                self.items.entry(index).or_default().deltas |= !delta.is_empty();
                self.sequence.refusal(delta, out);
            }
            "response.reasoning_summary_part.added" => {
                let item = self.items.entry(index).or_default();
                item.parts += 1;
                if item.parts > 1 {
                    self.sequence.thinking("\n\n", out);
                }
            }
            "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
                self.items.entry(index).or_default().deltas |= !delta.is_empty();
                self.sequence.thinking(delta, out);
            }
            "response.function_call_arguments.delta" => {
                let item = self.items.entry(index).or_default();
                item.deltas |= !delta.is_empty();
                if let Some(key) = item.call {
                    self.sequence.tool(key, "", "", delta, out);
                }
            }
            // Some servers send arguments only when they are whole (BerriAI/litellm#25321).
            "response.function_call_arguments.done" => self.rest_of_call(index, json.text("arguments"), out),
            "response.output_item.done" => self.done(index, json.at("item"), out),
            "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled" => {
                self.ended(json.at("response"), out);
            }
            "error" => {
                let failure = read_failure_json(200, "", json);
                self.sequence.fail(failure, out);
            }
            _ => {}
        }
    }

    fn added(&mut self, index: u64, item: &Value, out: &mut Vec<InnerEvent>) {
        if matches!(item.text("type"), "function_call" | "custom_tool_call") {
            let key = self.next;
            self.next += 1;
            self.items.entry(index).or_default().call = Some(key);
            let (id, signature) = split_id(call_id(item));
            if let Some(signature) = signature {
                self.sequence.sign_tool(key, signature);
            }
            self.sequence.tool(key, &id, item.text("name"), "", out);
        }
    }

    fn rest_of_call(&mut self, index: u64, arguments: &str, out: &mut Vec<InnerEvent>) {
        let item = self.items.entry(index).or_default();
        if let Some(key) = item.call {
            if !std::mem::replace(&mut item.deltas, true) {
                self.sequence.tool(key, "", "", arguments, out);
            }
            self.sequence.close_tool(key, out);
        }
    }

    fn done(&mut self, index: u64, item: &Value, out: &mut Vec<InnerEvent>) {
        if std::mem::replace(&mut self.items.entry(index).or_default().done, true) {
            return;
        }
        let kind = item.text("type");
        if matches!(kind, "function_call" | "custom_tool_call") {
            if self.items.entry(index).or_default().call.is_none() {
                self.added(index, item, out);
            }
            let text = if kind == "function_call" {
                item.text("arguments").to_owned()
            } else {
                Value::from(Obj::new().with("input", item.text("input"))).to_string()
            };
            self.rest_of_call(index, &text, out);
            return;
        }
        let seen = self.items.entry(index).or_default().deltas;
        let mut blocks = Vec::new();
        item_blocks(item, self.maker, &mut blocks);
        for block in blocks {
            match block {
                ContentBlock::Text { text, .. } if !seen => self.sequence.text(&text, out),
                ContentBlock::Refusal(text) if !seen => self.sequence.refusal(&text, out),
                ContentBlock::Thinking { text, signature } => {
                    if !seen {
                        self.sequence.thinking(&text, out);
                    }
                    if let Some(signature) = signature {
                        self.sequence.sign(signature, out);
                    }
                }
                ContentBlock::Redacted(signature) => self.sequence.redacted(signature, out),
                _ => {}
            }
        }
        self.sequence.close_plain(out);
    }

    fn ended(&mut self, response: &Value, out: &mut Vec<InnerEvent>) {
        self.sequence.start(response.text("id"), response.text("model"), out);
        // Figures count even where the answer is cut off (BerriAI/litellm#34351).
        out.extend(read_responses(response.at("usage")).map(InnerEvent::Usage));
        match finish(response) {
            Ok(reason) => {
                // A server that sent the whole output at once, and no items before.
                let silent = self.items.is_empty();
                for (index, item) in response.items("output").iter().enumerate().filter(|_| silent) {
                    self.done(index as u64, item, out);
                }
                self.sequence.finish(reason, None);
                self.sequence.end(out);
            }
            Err(failure) => self.sequence.fail(failure, out),
        }
    }
}
