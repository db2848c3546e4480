//! Ollama's own `/api/chat`: for what `/v1` cannot set, the context window above all (gateway-protocols §9.2).
//!
//! Not its job: `/v1`, which is chat. Invariant: a stream is whole only after `done: true`.

use serde_json::Value;

use super::{
    super::{
        failure::UpstreamFailure,
        fit::reasons,
        inner::{
            AnswerForm, ContentBlock, FinishReason, InnerEvent, InnerRequest, InnerResponse, MediaSource,
            Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text, text_object},
        sequence::Sequencer,
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession},
        usage::read_ollama,
    },
    Written,
    anthropic::drop_rest,
    chat::result_text,
    id_base,
};

pub(crate) fn write(
    request: &mut InnerRequest,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    if request.tool_rule == Some(ToolRule::Never) {
        request.tools.clear();
    }
    let mut messages = Vec::new();
    if !request.system.is_empty() {
        messages.push(message("system", result_text(&request.system)).into());
    }
    let names = request.call_names();
    for turn in &request.turns {
        match turn.side {
            Side::User => {
                for block in &turn.blocks {
                    if let ContentBlock::ToolResult { id, content, is_error, .. } = block {
                        let mut text = result_text(content);
                        if *is_error {
                            text.insert_str(0, "Error: ");
                        }
                        let name = names.get(id.as_str()).copied().unwrap_or_default();
                        messages.push(images(content, message("tool", text).with("tool_name", name)).into());
                    }
                }
                let text = result_text(&turn.blocks);
                let rest = images(&turn.blocks, message("user", text.clone()));
                let rest = Value::from(rest);
                if !text.is_empty() || rest.given("images") {
                    messages.push(rest);
                }
            }
            Side::Assistant => messages.push(assistant(&turn.blocks)),
        }
    }
    let mut inner = Obj::new()
        .maybe("num_ctx", options.window)
        .maybe("num_predict", request.max_tokens)
        .maybe("temperature", request.temperature.map(number))
        .maybe("top_p", request.top_p.map(number))
        .maybe("top_k", request.top_k)
        .maybe("seed", request.seed)
        .maybe("presence_penalty", request.presence_penalty.map(number))
        .maybe("frequency_penalty", request.frequency_penalty.map(number));
    if !request.stop.is_empty() {
        inner.set("stop", request.stop.clone());
    }
    let mut body = Obj::new()
        .with("model", options.model.as_str())
        .with("messages", messages)
        // It streams where this is not said.
        .with("stream", request.stream)
        .maybe("options", inner.filled());
    match &request.form {
        None => {}
        Some(AnswerForm::Json) => body.set("format", "json"),
        Some(AnswerForm::Schema { schema, .. }) => body.set("format", schema.clone()),
    }
    if let Some(wish) = request.reasoning {
        // Words are for gpt-oss; all others know on and off.
        let on = reasons(request);
        body.set(
            "think",
            if on && options.model.contains("gpt-oss") {
                Value::from(wish.level().word())
            } else {
                Value::from(on)
            },
        );
    }
    if !request.tools.is_empty() {
        let list: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                let function = Obj::new()
                    .with("name", tool.name.as_str())
                    .with("description", tool.description.clone().unwrap_or_default())
                    .with("parameters", tool.schema.clone());
                Obj::new().with("type", "function").with("function", function).into()
            })
            .collect();
        body.set("tools", list);
    }
    for (given, name) in [(request.user.take(), "user"), (request.service_tier.take(), "service_tier")] {
        if given.is_some() {
            request.dropped.push(name.to_owned());
        }
    }
    drop_rest(request);
    Ok(Written::new(PathRoot::Origin, "/api/chat", body))
}

fn message(role: &str, content: String) -> Obj {
    Obj::new().with("role", role).with("content", content)
}

fn images(blocks: &[ContentBlock], mut message: Obj) -> Obj {
    let images: Vec<Value> = blocks
        .iter()
        .filter_map(|block| match block {
            ContentBlock::Image { source: MediaSource::Inline { data, .. }, .. } => {
                Some(Value::from(data.as_str()))
            }
            _ => None,
        })
        .collect();
    if !images.is_empty() {
        message.set("images", images);
    }
    message
}

fn assistant(blocks: &[ContentBlock]) -> Value {
    let calls: Vec<Value> = blocks
        .iter()
        .filter_map(|block| match block {
            ContentBlock::ToolUse { name, input, .. } => {
                let arguments = text_object(input).unwrap_or_else(|| Obj::new().into());
                let function = Obj::new().with("name", name.as_str()).with("arguments", arguments);
                Some(Obj::new().with("function", function).into())
            }
            _ => None,
        })
        .collect();
    message("assistant", result_text(blocks)).maybe("tool_calls", (!calls.is_empty()).then_some(calls)).into()
}

fn finish(word: &str) -> FinishReason {
    match word {
        "length" => FinishReason::Length,
        _ => FinishReason::Stop,
    }
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    if !json.at("message").is_object() {
        return Err(UpstreamFailure::malformed("the answer has no message"));
    }
    let mut reader = OllamaReader::new(session);
    let mut events = Vec::new();
    reader.event(json, &mut events);
    let mut builder = super::super::inner::AnswerBuilder::default();
    events.into_iter().for_each(|event| builder.push(event));
    builder.finish()
}

/// Reads a stream of lines.
#[derive(Debug)]
pub(crate) struct OllamaReader {
    pub(crate) sequence: Sequencer,
    next: u64,
}

impl OllamaReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self { sequence: Sequencer::new(&id_base(session)), next: 0 }
    }

    pub(crate) fn event(&mut self, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        self.sequence.start("", json.text("model"), out);
        let message = json.at("message");
        self.sequence.thinking(message.text("thinking"), out);
        self.sequence.text(message.text("content"), out);
        for call in message.items("tool_calls") {
            let key = self.next;
            self.next += 1;
            let function = call.at("function");
            let arguments = object_text(function.at("arguments"));
            self.sequence.tool(key, call.text("id"), function.text("name"), &arguments, out);
            self.sequence.close_tool(key, out);
        }
        if json.flag("done") == Some(true) {
            out.extend(read_ollama(json).map(InnerEvent::Usage));
            self.sequence.finish(finish(json.text("done_reason")), None);
            self.sequence.end(out);
        }
    }
}
