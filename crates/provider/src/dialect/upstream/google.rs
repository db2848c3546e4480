//! Gemini's own API, at AI Studio and on Vertex (gateway-protocols §4).
//!
//! Not its job: the compatible endpoint. Invariants: all results of one turn are in one content, in the order of the
//! calls; the first call of a turn carries a signature where the model wants one; figures are kept, never added.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use super::{
    super::{
        capability::ReasoningForm,
        failure::UpstreamFailure,
        fit::{begin_with_user, reasons},
        inner::{
            AnswerForm, ContentBlock, EffortLevel, FinishReason, InnerEvent, InnerRequest, InnerResponse,
            MediaSource, Side, ToolRule,
        },
        json::{JsonLook, Obj, number, object_text, text_object},
        schema,
        sequence::Sequencer,
        signature::{Maker, Signature},
        target::{PathRoot, TranslateError, TranslateOptions, TranslateSession, UpstreamDialect},
        usage::read_google,
    },
    Written,
    anthropic::drop_rest,
    chat::{encode, result_text},
    id_base,
};

/// What Google documents for calls whose signature was lost.
const NO_SIGNATURE: &str = "skip_thought_signature_validator";

/// The largest budget that all models of the 2.5 line take.
const MOST_BUDGET: u64 = 24_576;

pub(crate) fn write(
    request: &mut InnerRequest,
    upstream: UpstreamDialect,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    let caps = &options.capabilities;
    begin_with_user(request);
    let mut body = Obj::new().with("contents", contents(request, caps.reasoning == ReasoningForm::Level)?);
    if !request.system.is_empty() {
        let parts: Vec<Value> = request.system.iter().filter_map(part).collect();
        body.set("systemInstruction", Obj::new().with("parts", parts));
    }
    if !request.tools.is_empty() {
        let list: Vec<Value> = request
            .tools
            .iter()
            .map(|tool| {
                Obj::new()
                    .with("name", tool.name.as_str())
                    .maybe("description", tool.description.clone())
                    .with("parametersJsonSchema", schema::for_google(&tool.schema))
                    .into()
            })
            .collect();
        body.set("tools", vec![Value::from(Obj::new().with("functionDeclarations", list))]);
    }
    if let Some(rule) = &request.tool_rule {
        let mode = match rule {
            ToolRule::Auto => Obj::new().with("mode", "AUTO"),
            ToolRule::Never => Obj::new().with("mode", "NONE"),
            ToolRule::Any => Obj::new().with("mode", "ANY"),
            ToolRule::Named(name) => {
                Obj::new().with("mode", "ANY").with("allowedFunctionNames", vec![name.as_str()])
            }
        };
        body.set("toolConfig", Obj::new().with("functionCallingConfig", mode));
    }
    if let Some(config) = generation(request, caps.reasoning) {
        body.set("generationConfig", config);
    }
    for (given, name) in [(request.user.take(), "user"), (request.service_tier.take(), "service_tier")] {
        if given.is_some() {
            request.dropped.push(name.to_owned());
        }
    }
    drop_rest(request);
    let verb = if request.stream { "streamGenerateContent?alt=sse" } else { "generateContent" };
    let model = encode(options.model.strip_prefix("models/").unwrap_or(&options.model));
    Ok(if upstream == UpstreamDialect::Vertex {
        let place = vertex_place(options);
        Written::new(PathRoot::Origin, format!("{place}/publishers/google/models/{model}:{verb}"), body)
    } else {
        Written::new(PathRoot::Base, format!("/models/{model}:{verb}"), body)
    })
}

/// Where models are on Vertex; without a project it is the place of express keys.
pub(crate) fn vertex_place(options: &TranslateOptions) -> String {
    match &options.project {
        Some(project) => {
            let location = options.location.as_deref().unwrap_or("global");
            format!("/v1/projects/{}/locations/{}", encode(project), encode(location))
        }
        None => "/v1".to_owned(),
    }
}

fn generation(request: &InnerRequest, form: ReasoningForm) -> Option<Value> {
    let mut config = Obj::new()
        .maybe("maxOutputTokens", request.max_tokens)
        .maybe("temperature", request.temperature.map(number))
        .maybe("topP", request.top_p.map(number))
        .maybe("topK", request.top_k)
        // The field has 32 bits; the same seed gives the same rest.
        .maybe("seed", request.seed.map(|seed| seed.rem_euclid(i64::from(i32::MAX))))
        .maybe("presencePenalty", request.presence_penalty.map(number))
        .maybe("frequencyPenalty", request.frequency_penalty.map(number));
    if !request.stop.is_empty() {
        config.set("stopSequences", request.stop.clone());
    }
    match &request.form {
        None => {}
        Some(AnswerForm::Json) => config.set("responseMimeType", "application/json"),
        Some(AnswerForm::Schema { schema, .. }) => {
            config.set("responseMimeType", "application/json");
            config.set("responseJsonSchema", schema::for_google(schema));
        }
    }
    if let Some(wish) = request.reasoning {
        let thinking = match form {
            ReasoningForm::Level => {
                let level = match wish.level() {
                    EffortLevel::None | EffortLevel::Minimal => "MINIMAL",
                    EffortLevel::Low => "LOW",
                    EffortLevel::Medium => "MEDIUM",
                    EffortLevel::High | EffortLevel::Xhigh | EffortLevel::Max => "HIGH",
                };
                Obj::new().with("thinkingLevel", level)
            }
            _ => {
                // Google's own figures for words (gateway-protocols §4.1).
                let budget = wish.budget.unwrap_or(match wish.level() {
                    EffortLevel::None => 0,
                    EffortLevel::Minimal | EffortLevel::Low => 1024,
                    EffortLevel::Medium => 8192,
                    _ => MOST_BUDGET,
                });
                Obj::new().with("thinkingBudget", budget.min(MOST_BUDGET))
            }
        };
        config.set("thinkingConfig", thinking.maybe("includeThoughts", reasons(request).then_some(true)));
    }
    config.filled()
}

fn contents(request: &InnerRequest, wants_signature: bool) -> Result<Vec<Value>, TranslateError> {
    let names = request.call_names();
    let mut contents = Vec::with_capacity(request.turns.len());
    let mut order: Vec<&str> = Vec::new();
    for turn in &request.turns {
        let mut parts = Vec::with_capacity(turn.blocks.len());
        if turn.side == Side::User {
            let mut results: Vec<&ContentBlock> =
                turn.blocks.iter().filter(|block| matches!(block, ContentBlock::ToolResult { .. })).collect();
            let place = |block: &&ContentBlock| match block {
                ContentBlock::ToolResult { id, .. } => order.iter().position(|call| call == id),
                _ => None,
            };
            results.sort_by_key(place);
            for result in &results {
                if let ContentBlock::ToolResult { id, content, is_error, .. } = result {
                    let name = names.get(id.as_str()).copied().unwrap_or_default();
                    parts.push(function_response(name, content, *is_error));
                }
            }
            for result in results {
                if let ContentBlock::ToolResult { content, .. } = result {
                    parts.extend(content.iter().filter(|block| !is_text(block)).filter_map(part));
                }
            }
            parts.extend(turn.blocks.iter().filter_map(part));
        } else {
            order.clear();
            for block in &turn.blocks {
                if let ContentBlock::ToolUse { id, name, input, signature, .. } = block {
                    let call = Obj::new()
                        .with("name", name.as_str())
                        .with("args", text_object(input).unwrap_or_else(|| Obj::new().into()));
                    let lost = wants_signature && order.is_empty() && signature.is_none();
                    let signature = signature
                        .as_ref()
                        .map(|own| own.data.clone())
                        .or_else(|| lost.then(|| STANDARD.encode(NO_SIGNATURE)));
                    order.push(id);
                    parts.push(
                        Obj::new().with("functionCall", call).maybe("thoughtSignature", signature).into(),
                    );
                } else {
                    parts.extend(part(block));
                }
            }
        }
        if !parts.is_empty() {
            let role = if turn.side == Side::User { "user" } else { "model" };
            contents.push(Value::from(Obj::new().with("role", role).with("parts", parts)));
        }
    }
    Ok(contents)
}

fn is_text(block: &ContentBlock) -> bool {
    matches!(block, ContentBlock::Text { .. } | ContentBlock::Refusal(_))
}

fn function_response(name: &str, content: &[ContentBlock], is_error: bool) -> Value {
    let text = result_text(content);
    let response = match serde_json::from_str::<Value>(&text) {
        Ok(object @ Value::Object(_)) if !is_error => object,
        _ => Obj::new().with(if is_error { "error" } else { "output" }, text).into(),
    };
    let response = Obj::new().with("name", name).with("response", response);
    Obj::new().with("functionResponse", response).into()
}

/// The type of what is behind an address, by its ending; an image where it says nothing (Envoy's guess).
fn guess(url: &str) -> &'static str {
    let path = url.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let ending = path.rsplit('.').next().unwrap_or_default();
    match ending {
        "png" => "image/png",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "pdf" => "application/pdf",
        _ => "image/jpeg",
    }
}

fn part(block: &ContentBlock) -> Option<Value> {
    let inline = |kind: &str, data: &str| {
        Value::from(Obj::new().with("inlineData", Obj::new().with("mimeType", kind).with("data", data)))
    };
    Some(match block {
        ContentBlock::Text { text, .. } | ContentBlock::Refusal(text) => {
            Obj::new().with("text", text.as_str()).into()
        }
        ContentBlock::Image { source, .. } | ContentBlock::Document { source, .. } => match source {
            MediaSource::Inline { media_type, data } => inline(media_type, data),
            MediaSource::Url(url) => {
                let file = Obj::new().with("mimeType", guess(url)).with("fileUri", url.as_str());
                Obj::new().with("fileData", file).into()
            }
        },
        ContentBlock::Audio { format, data } => inline(&format!("audio/{format}"), data),
        ContentBlock::Thinking { text, signature: Some(signature) } => Obj::new()
            .with("text", text.as_str())
            .with("thought", true)
            .with("thoughtSignature", signature.data.as_str())
            .into(),
        _ => return None,
    })
}

/// Why an answer ended. `empty`: nothing was said.
fn finish(word: &str, empty: bool) -> FinishReason {
    match word {
        "STOP" => FinishReason::Stop,
        "MAX_TOKENS" => FinishReason::Length,
        "SAFETY"
        | "RECITATION"
        | "BLOCKLIST"
        | "PROHIBITED_CONTENT"
        | "SPII"
        | "LANGUAGE"
        | "IMAGE_SAFETY"
        | "IMAGE_PROHIBITED_CONTENT"
        | "IMAGE_RECITATION" => FinishReason::Filtered,
        "MALFORMED_FUNCTION_CALL" | "UNEXPECTED_TOOL_CALL" | "TOO_MANY_TOOL_CALLS" => FinishReason::Stop,
        _ if empty => FinishReason::Filtered,
        _ => FinishReason::Stop,
    }
}

pub(crate) fn read(session: &TranslateSession, json: &Value) -> Result<InnerResponse, UpstreamFailure> {
    let mut reader = GoogleReader::new(session);
    let mut events = Vec::new();
    reader.event(json, &mut events);
    let mut builder = super::super::inner::AnswerBuilder::default();
    if !json.at("candidates").is_array() && !json.at("promptFeedback").given("blockReason") {
        return Err(UpstreamFailure::malformed("the answer has no candidate"));
    }
    if !reader.sequence.is_finished() {
        // A whole answer is not cut off: compatible servers leave the reason out.
        reader.sequence.finish(FinishReason::Stop, None);
    }
    reader.eof(&mut events);
    events.into_iter().for_each(|event| builder.push(event));
    builder.finish()
}

/// Reads a stream of whole fragments.
#[derive(Debug)]
pub(crate) struct GoogleReader {
    pub(crate) sequence: Sequencer,
    maker: Maker,
    next: u64,
    any: bool,
}

impl GoogleReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        Self {
            sequence: Sequencer::new(&id_base(session)),
            maker: session.maker().unwrap_or(Maker::Google),
            next: 0,
            any: false,
        }
    }

    pub(crate) fn event(&mut self, json: &Value, out: &mut Vec<InnerEvent>) {
        if self.sequence.is_over() {
            return;
        }
        if json.at("promptFeedback").given("blockReason") && json.items("candidates").is_empty() {
            self.sequence.start(json.text("responseId"), json.text("modelVersion"), out);
            self.sequence.finish(FinishReason::Filtered, None);
        }
        if let Some(candidate) = json.items("candidates").first() {
            self.sequence.start(json.text("responseId"), json.text("modelVersion"), out);
            for part in candidate.at("content").items("parts") {
                self.part(part, out);
            }
            if let Some(word) =
                candidate.word("finishReason").filter(|word| *word != "FINISH_REASON_UNSPECIFIED")
            {
                self.sequence.finish(finish(word, !self.any), None);
            }
        }
        out.extend(read_google(json.at("usageMetadata")).map(InnerEvent::Usage));
    }

    fn part(&mut self, part: &Value, out: &mut Vec<InnerEvent>) {
        let signature = part.word("thoughtSignature").map(|data| Signature::new(self.maker, data));
        if part.at("functionCall").is_object() {
            self.any = true;
            let call = part.at("functionCall");
            let key = self.next;
            self.next += 1;
            if let Some(signature) = signature {
                self.sequence.sign_tool(key, signature);
            }
            self.sequence.tool(key, call.text("id"), call.text("name"), &object_text(call.at("args")), out);
            self.sequence.close_tool(key, out);
            return;
        }
        let text = part.text("text");
        if part.flag("thought") == Some(true) {
            self.sequence.thinking(text, out);
            if let Some(signature) = signature {
                self.sequence.sign(signature, out);
            }
        } else {
            self.any |= !text.is_empty();
            self.sequence.text(text, out);
        }
    }

    /// The bytes are over: there is no other mark than a reason before it.
    pub(crate) fn eof(&mut self, out: &mut Vec<InnerEvent>) {
        self.sequence.end(out);
    }
}
