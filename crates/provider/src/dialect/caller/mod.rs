//! The callers' side: bodies of three dialects into the inner form, answers out of it.
//!
//! Not its job: what an upstream takes. Invariant: an answer keeps its dialect's grammar in every ending: whole,
//! cut off, failed.

pub(crate) mod chat;
pub(crate) mod messages;
pub(crate) mod responses;

use serde::Serialize;
use serde_json::Value;

use super::{
    failure::UpstreamFailure,
    inner::{CacheMark, ContentBlock, InnerEvent, InnerRequest, InnerResponse, MediaSource, Side},
    json::{JsonLook, Obj},
    target::{CallerDialect, TranslateError, TranslateOptions, TranslateSession},
};

/// Reads a caller's body.
pub(crate) fn read_request(
    caller: CallerDialect,
    body: &[u8],
    options: &TranslateOptions,
) -> Result<InnerRequest, TranslateError> {
    let json: Value = serde_json::from_slice(body)
        .map_err(|error| TranslateError::invalid("body", format!("it is not JSON: {error}")))?;
    if !json.is_object() {
        return Err(TranslateError::invalid("body", "it must be a JSON object"));
    }
    let mut request = match caller {
        CallerDialect::Chat => chat::read(&json, options)?,
        CallerDialect::Responses => responses::read(&json, options)?,
        CallerDialect::Messages => messages::read(&json, options)?,
    };
    request.results_first();
    check_calls(&request)?;
    Ok(request)
}

/// Every call needs its result in the next turn, and every result its call: all providers refuse anything else, some
/// only after minutes.
fn check_calls(request: &InnerRequest) -> Result<(), TranslateError> {
    let mut open: Vec<&str> = Vec::new();
    for (index, turn) in request.turns.iter().enumerate() {
        let param = || format!("messages[{index}]");
        if turn.side == Side::Assistant {
            open = turn
                .blocks
                .iter()
                .filter_map(|block| match block {
                    ContentBlock::ToolUse { id, .. } => Some(id.as_str()),
                    _ => None,
                })
                .collect();
            let mut ids = open.clone();
            ids.sort_unstable();
            if let Some(pair) = ids.windows(2).find(|pair| pair.first() == pair.last()) {
                let id = pair.first().copied().unwrap_or_default();
                return Err(TranslateError::invalid(param(), format!("two tool calls have the id `{id}`")));
            }
            continue;
        }
        let mut called: std::collections::BTreeSet<&str> = open.drain(..).collect();
        for block in &turn.blocks {
            if let ContentBlock::ToolResult { id, .. } = block
                && !called.remove(id.as_str())
            {
                return Err(TranslateError::invalid(
                    param(),
                    format!("the tool result `{id}` does not follow a call of that id"),
                ));
            }
        }
        if let Some(id) = called.first() {
            return Err(TranslateError::invalid(param(), format!("the tool call `{id}` has no result")));
        }
    }
    match open.first() {
        Some(id) => Err(TranslateError::invalid("messages", format!("the tool call `{id}` has no result"))),
        None => Ok(()),
    }
}

/// Writes a whole answer.
pub(crate) fn write_response(session: &TranslateSession, response: &InnerResponse) -> Vec<u8> {
    let value = match session.caller {
        CallerDialect::Chat => chat::write(session, response),
        CallerDialect::Responses => responses::write(session, response),
        CallerDialect::Messages => messages::write(session, response),
    };
    value.to_string().into_bytes()
}

/// The error object of a caller's dialect.
pub(crate) fn error_body(caller: CallerDialect, failure: &UpstreamFailure) -> Value {
    match caller {
        CallerDialect::Chat | CallerDialect::Responses => openai_error(failure),
        CallerDialect::Messages => messages::error(failure),
    }
}

/// OpenAI's error object, all four keys.
pub(crate) fn openai_error(failure: &UpstreamFailure) -> Value {
    let (kind, code) = failure.class.openai();
    let error = Obj::new()
        .with("message", failure.public_message())
        .with("type", kind)
        .with("param", failure.param.clone())
        .with("code", code);
    Obj::new().with("error", error).into()
}

/// Writes a stream in the caller's dialect.
#[derive(Debug)]
pub(crate) enum CallerWriter {
    Chat(chat::ChatWriter),
    Responses(Box<responses::ResponsesWriter>),
    Messages(messages::MessagesWriter),
}

impl CallerWriter {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        match session.caller {
            CallerDialect::Chat => Self::Chat(chat::ChatWriter::new(session)),
            CallerDialect::Responses => Self::Responses(Box::new(responses::ResponsesWriter::new(session))),
            CallerDialect::Messages => Self::Messages(messages::MessagesWriter::new(session)),
        }
    }

    pub(crate) fn event(&mut self, session: &TranslateSession, event: &InnerEvent, out: &mut Vec<u8>) {
        match self {
            Self::Chat(writer) => writer.event(session, event, out),
            Self::Responses(writer) => writer.event(session, event, out),
            Self::Messages(writer) => writer.event(session, event, out),
        }
    }
}

/// Appends JSON.
pub(crate) fn push_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value)
        .expect("writing JSON without maps of other keys into memory cannot fail");
}

/// Appends one event: its name where the dialect has names, and its data.
pub(crate) fn push_sse(name: Option<&str>, data: &Value, out: &mut Vec<u8>) {
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    push_json(data, out);
    out.extend_from_slice(b"\n\n");
}

/// Names, once each, what of a caller's object is not in `known` and thus dropped.
fn unknown_fields(json: &Value, known: &[&str], dropped: &mut Vec<String>) {
    let Some(object) = json.as_object() else { return };
    for (key, value) in object {
        if !value.is_null() && !known.contains(&key.as_str()) {
            dropped.push(key.clone());
        }
    }
}

fn optional_number(json: &Value, key: &str) -> Result<Option<f64>, TranslateError> {
    match json.at(key) {
        Value::Null => Ok(None),
        value => value.as_f64().map(Some).ok_or_else(|| TranslateError::invalid(key, "it must be a number")),
    }
}

fn optional_count(json: &Value, key: &str) -> Result<Option<u64>, TranslateError> {
    match json.at(key) {
        Value::Null => Ok(None),
        _ => json
            .count(key)
            .map(Some)
            .ok_or_else(|| TranslateError::invalid(key, "it must be a whole number that is not negative")),
    }
}

/// The texts of a `stop` field: one string or a list.
fn stop_words(json: &Value, key: &str) -> Result<Vec<String>, TranslateError> {
    match json.at(key) {
        Value::Null => Ok(Vec::new()),
        Value::String(word) => Ok(vec![word.clone()]),
        Value::Array(words) => words
            .iter()
            .map(|word| word.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .ok_or_else(|| TranslateError::invalid(key, "it must hold strings only")),
        _ => Err(TranslateError::invalid(key, "it must be a string or a list of strings")),
    }
}

/// A mark for the prompt cache on a block.
fn cache_mark(block: &Value) -> Option<CacheMark> {
    let control = block.at("cache_control");
    if control.is_object() {
        return Some(if control.text("ttl") == "1h" { CacheMark::Long } else { CacheMark::Short });
    }
    block.given("prompt_cache_breakpoint").then_some(CacheMark::Short)
}

/// The mark as Anthropic's field.
pub(crate) fn cache_control(mark: Option<CacheMark>) -> Option<Value> {
    mark.map(|mark| {
        let ttl = (mark == CacheMark::Long).then_some("1h");
        Obj::new().with("type", "ephemeral").maybe("ttl", ttl).into()
    })
}

/// An address: `data:` becomes bytes, anything else stays an address.
fn media(url: &str, param: &str) -> Result<MediaSource, TranslateError> {
    let Some(rest) = url.strip_prefix("data:") else {
        return if url.is_empty() {
            Err(TranslateError::invalid(param, "the address is empty"))
        } else {
            Ok(MediaSource::Url(url.to_owned()))
        };
    };
    let (head, data) = rest
        .split_once(',')
        .filter(|(head, _)| head.ends_with(";base64"))
        .ok_or_else(|| TranslateError::invalid(param, "a `data:` address must be base64"))?;
    let media_type = head.split(';').next().unwrap_or_default();
    Ok(MediaSource::Inline { media_type: media_type.to_ascii_lowercase(), data: data.to_owned() })
}

/// An image or, by its type, a document.
fn picture(source: MediaSource, detail: Option<String>, cache: Option<CacheMark>) -> ContentBlock {
    let document = match &source {
        MediaSource::Inline { media_type, .. } => !media_type.starts_with("image/"),
        MediaSource::Url(url) => {
            let path = url.split(['?', '#']).next().unwrap_or_default();
            path.to_ascii_lowercase().ends_with(".pdf")
        }
    };
    if document {
        ContentBlock::Document { source, name: None, cache }
    } else {
        ContentBlock::Image { source, detail, cache }
    }
}
