//! Cohere's chat, second version (gateway-protocols §6).
//!
//! Not its job: the compatible endpoint. Invariant: every object is built from fields that the API knows: an unknown
//! one is a 400.

use serde_json::Value;

use super::{
    super::{
        failure::{FailureClass, UpstreamFailure},
        fit::reasons,
        inner::{
            AnswerForm, ContentBlock, FinishReason, InnerEvent, InnerRequest, InnerResponse, Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text},
        sequence::Sequencer,
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession},
        usage::read_cohere,
    },
    Written,
    anthropic::drop_rest,
    chat::{address, result_text},
    id_base,
};

pub(crate) fn write(
    request: &mut InnerRequest,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    if let Some(ToolRule::Named(name)) = &request.tool_rule {
        // There is only `REQUIRED`: of this one tool it means the same.
        request.tools.retain(|tool| tool.name == *name);
    }
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(message("system", result_text(&request.system).into()));
    }
    for turn in &request.turns {
        match turn.side {
            Side::User => user(&turn.blocks, &mut messages)?,
            Side::Assistant => messages.push(assistant(&turn.blocks)),
        }
    }
    let mut body = Obj::new()
        .with("model", options.model.as_str())
        .with("messages", messages)
        .with("stream", request.stream)
        .maybe("max_tokens", request.max_tokens)
        .maybe("temperature", request.temperature.map(number))
        .maybe("p", request.top_p.map(|p| number(p.clamp(0.01, 0.99))))
        .maybe("k", request.top_k.map(|k| k.min(500)))
        .maybe("seed", request.seed);
    for (key, value) in
        [("presence_penalty", request.presence_penalty), ("frequency_penalty", request.frequency_penalty)]
    {
        match value {
            Some(value) if value >= 0.0 => body.set(key, number(value.min(1.0))),
            // Its range is 0 to 1.
            Some(_) => request.dropped.push(key.to_owned()),
            None => {}
        }
    }
    if !request.stop.is_empty() {
        body.set("stop_sequences", request.stop.clone());
    }
    if !request.tools.is_empty() {
        let list: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                let function = Obj::new()
                    .with("name", tool.name.as_str())
                    .maybe("description", tool.description.clone())
                    .with("parameters", tool.schema.clone());
                Obj::new().with("type", "function").with("function", function).into()
            })
            .collect();
        body.set("tools", list);
        if request.tools.iter().all(|tool| tool.strict == Some(true)) {
            body.set("strict_tools", true);
        }
        match &request.tool_rule {
            Some(ToolRule::Any | ToolRule::Named(_)) => body.set("tool_choice", "REQUIRED"),
            Some(ToolRule::Never) => body.set("tool_choice", "NONE"),
            None | Some(ToolRule::Auto) => {}
        }
    }
    match &request.form {
        None => {}
        Some(AnswerForm::Json) => body.set("response_format", Obj::new().with("type", "json_object")),
        Some(AnswerForm::Schema { schema, .. }) => {
            body.set(
                "response_format",
                Obj::new().with("type", "json_object").with("json_schema", schema.clone()),
            );
        }
    }
    if let Some(wish) = request.reasoning {
        let thinking = if reasons(request) {
            Obj::new().with("type", "enabled").with("token_budget", wish.tokens().max(1))
        } else {
            Obj::new().with("type", "disabled")
        };
        body.set("thinking", thinking);
    }
    for (given, name) in [(request.user.take(), "user"), (request.service_tier.take(), "service_tier")] {
        if given.is_some() {
            request.dropped.push(name.to_owned());
        }
    }
    drop_rest(request);
    Ok(Written::new(PathRoot::Origin, "/v2/chat", body))
}

fn message(role: &str, content: Value) -> Value {
    Obj::new().with("role", role).with("content", content).into()
}

fn user(blocks: &[ContentBlock], messages: &mut Vec<Value>) -> Result<(), TranslateError> {
    let mut parts = Vec::new();
    let mut plain = true;
    for block in blocks {
        match block {
            ContentBlock::ToolResult { id, content, is_error, .. } => {
                if content.iter().any(|block| !matches!(block, ContentBlock::Text { .. })) {
                    let why = "results of tools are text only";
                    return Err(TranslateError::unsupported("messages.tool.image", "cohere", why));
                }
                let mut text = result_text(content);
                if *is_error {
                    text.insert_str(0, "Error: ");
                }
                let document =
                    Obj::new().with("type", "document").with("document", Obj::new().with("data", text));
                messages.push(
                    Obj::new()
                        .with("role", "tool")
                        .with("tool_call_id", id.as_str())
                        .with("content", vec![Value::from(document)])
                        .into(),
                );
            }
            ContentBlock::Text { text, .. } | ContentBlock::Refusal(text) => {
                parts.push(Value::from(Obj::new().with("type", "text").with("text", text.as_str())));
            }
            ContentBlock::Image { source, detail, .. } => {
                plain = false;
                let image = Obj::new().with("url", address(source)).maybe("detail", detail.clone());
                parts.push(Obj::new().with("type", "image_url").with("image_url", image).into());
            }
            ContentBlock::Audio { .. } | ContentBlock::Document { .. } => {
                let why = "it takes text and images only";
                return Err(TranslateError::unsupported("messages.document", "cohere", why));
            }
            ContentBlock::ToolUse { .. } | ContentBlock::Thinking { .. } | ContentBlock::Redacted(_) => {}
        }
    }
    if !parts.is_empty() {
        let text: Vec<&str> = parts.iter().map(|part| part.text("text")).collect();
        let content = if plain { Value::from(text.join("\n")) } else { Value::from(parts) };
        messages.push(message("user", content));
    }
    Ok(())
}

fn assistant(blocks: &[ContentBlock]) -> Value {
    let text = result_text(blocks);
    let calls: Vec<Value> = blocks
        .iter()
        .filter_map(|block| match block {
            ContentBlock::ToolUse { id, name, input, .. } => {
                let function = Obj::new().with("name", name.as_str()).with("arguments", input.as_str());
                let call =
                    Obj::new().with("id", id.as_str()).with("type", "function").with("function", function);
                Some(call.into())
            }
            _ => None,
        })
        .collect();
    if calls.is_empty() {
        return message("assistant", text.into());
    }
    // Beside calls, words are the plan.
    Obj::new()
        .with("role", "assistant")
        .with("tool_calls", calls)
        .maybe("tool_plan", (!text.is_empty()).then_some(text))
        .into()
}

fn finish(word: &str) -> Result<FinishReason, UpstreamFailure> {
    match word {
        "STOP_SEQUENCE" => Ok(FinishReason::StopSequence),
        "MAX_TOKENS" => Ok(FinishReason::Length),
        "TOOL_CALL" => Ok(FinishReason::ToolUse),
        "ERROR_TOXIC" => Ok(FinishReason::Filtered),
        "ERROR" => Err(UpstreamFailure::new(FailureClass::Server, "the upstream failed while it answered")),
        "TIMEOUT" => Err(UpstreamFailure::new(FailureClass::Timeout, "the upstream ran out of time")),
        _ => Ok(FinishReason::Stop),
    }
}

pub(crate) fn read(_: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    let message = json.at("message");
    if !message.is_object() {
        return Err(UpstreamFailure::malformed("the answer has no message"));
    }
    let reason = finish(json.text("finish_reason"))?;
    let mut blocks = Vec::new();
    if let Some(plan) = message.word("tool_plan") {
        blocks.push(ContentBlock::Thinking { text: plan.to_owned(), signature: None });
    }
    for part in message.items("content") {
        match part.text("type") {
            "thinking" => {
                blocks
                    .push(ContentBlock::Thinking { text: part.text("thinking").to_owned(), signature: None });
            }
            _ => blocks.push(ContentBlock::text(part.text("text"))),
        }
    }
    for call in message.items("tool_calls") {
        let function = call.at("function");
        blocks.push(ContentBlock::ToolUse {
            id: call.text("id").to_owned(),
            name: function.text("name").to_owned(),
            input: object_text(function.at("arguments")),
            signature: None,
            cache: None,
        });
    }
    Ok(InnerResponse {
        id: json.text("id").to_owned(),
        model: String::new(),
        blocks,
        finish: reason,
        stop_sequence: None,
        usage: read_cohere(json.at("usage")).unwrap_or_default(),
    })
}

/// Reads a stream of events.
#[derive(Debug)]
pub(crate) struct CohereReader {
    pub(crate) sequence: Sequencer,
    any: bool,
}

impl CohereReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self { sequence: Sequencer::new(&id_base(session)), any: false }
    }

    pub(crate) fn event(&mut self, name: &str, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        let message = json.at("delta").at("message");
        let content = message.at("content");
        let key = json.count("index").unwrap_or_default();
        match json.word("type").unwrap_or(name) {
            "message-start" => self.sequence.start(json.text("id"), "", out),
            "content-start" | "content-delta" => {
                self.any |= content.given("text") || content.given("thinking");
                self.sequence.thinking(content.text("thinking"), out);
                self.sequence.text(content.text("text"), out);
            }
            "content-end" => self.sequence.close_plain(out),
            "tool-plan-delta" => self.sequence.thinking(message.text("tool_plan"), out),
            "tool-call-start" | "tool-call-delta" => {
                self.any = true;
                let call = message.at("tool_calls");
                // An object by the documents; a list from some servers.
                let call = call.as_array().and_then(|list| list.first()).unwrap_or(call);
                let function = call.at("function");
                let (id, name) = (call.text("id"), function.text("name"));
                self.sequence.tool(key, id, name, function.text("arguments"), out);
            }
            "tool-call-end" => self.sequence.close_tool(key, out),
            "message-end" => {
                let delta = json.at("delta");
                out.extend(read_cohere(delta.at("usage")).map(InnerEvent::Usage));
                match finish(delta.text("finish_reason")) {
                    Ok(reason) => {
                        self.sequence.finish(reason, None);
                        self.sequence.end(out);
                    }
                    Err(failure) if failure.class == FailureClass::Timeout && self.any => {
                        self.sequence.finish(FinishReason::Length, None);
                        self.sequence.end(out);
                    }
                    Err(mut failure) => {
                        if let Some(said) = delta.word("error") {
                            failure.message = said.to_owned();
                        }
                        self.sequence.fail(failure, out);
                    }
                }
            }
            _ => {}
        }
    }
}
