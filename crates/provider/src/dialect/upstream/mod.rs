//! The upstreams' side: the inner form into bodies of each family, their answers, streams and errors out of them.
//!
//! Not its job: what a caller speaks. Invariant: every answer that is read ends in exactly one `End` or `Failed`.

pub(crate) mod anthropic;
pub(crate) mod bedrock;
pub(crate) mod chat;
pub(crate) mod cohere;
pub(crate) mod google;
pub(crate) mod ollama;
pub(crate) mod responses;

use serde_json::Value;

use super::{
    failure::{UpstreamFailure, read_failure_json},
    fit::short_hash,
    frames::AwsFrame,
    inner::{InnerEvent, InnerRequest, InnerResponse},
    json::JsonLook,
    target::{PathRoot, StreamFraming, TranslateError, TranslateOptions, TranslateSession, UpstreamDialect},
};

/// A body and where it goes.
#[derive(Debug)]
pub(crate) struct Written {
    pub root: PathRoot,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Value,
}

impl Written {
    pub(crate) fn new(root: PathRoot, path: impl Into<String>, body: impl Into<Value>) -> Self {
        Self { root, path: path.into(), headers: Vec::new(), body: body.into() }
    }
}

/// Writes a request that was fitted to the model.
pub(crate) fn write_request(
    request: &mut InnerRequest,
    upstream: UpstreamDialect,
    options: &TranslateOptions,
) -> Result<Written, TranslateError> {
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => chat::write(request, upstream, options),
        UpstreamDialect::Responses => responses::write(request, options),
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => {
            anthropic::write(request, upstream, options)
        }
        UpstreamDialect::Google | UpstreamDialect::Vertex => google::write(request, upstream, options),
        UpstreamDialect::Bedrock => bedrock::write(request, options),
        UpstreamDialect::Cohere => cohere::write(request, options),
        UpstreamDialect::Ollama => ollama::write(request, options),
    }
}

/// How the upstream frames its stream.
pub(crate) fn framing(upstream: UpstreamDialect) -> StreamFraming {
    match upstream {
        UpstreamDialect::Bedrock => StreamFraming::Aws,
        UpstreamDialect::Ollama => StreamFraming::Lines,
        _ => StreamFraming::Sse,
    }
}

/// What ids are made of that an upstream leaves out: short, because chat allows 40 characters, and of this request.
pub(crate) fn id_base(session: &TranslateSession) -> String {
    format!("{:016x}", short_hash(&session.id))
}

/// Reads a whole answer.
pub(crate) fn read_response(
    session: &TranslateSession,
    body: &[u8],
) -> Result<InnerResponse, UpstreamFailure> {
    let json: Value = serde_json::from_slice(body).map_err(UpstreamFailure::malformed)?;
    in_band(&json, session.upstream)?;
    match session.upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => chat::read(session, &json),
        UpstreamDialect::Responses => responses::read(session, &json),
        UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => anthropic::read(session, &json),
        UpstreamDialect::Google | UpstreamDialect::Vertex => google::read(session, &json),
        UpstreamDialect::Bedrock => bedrock::read(session, &json),
        UpstreamDialect::Cohere => cohere::read(session, &json),
        UpstreamDialect::Ollama => ollama::read(session, &json),
    }
}

/// An error inside a 200.
fn in_band(json: &Value, upstream: UpstreamDialect) -> Result<(), UpstreamFailure> {
    let error = json.at("error");
    // A Responses object has `error: null` when all is well, and its own reading when not.
    let failed = match error {
        Value::Null | Value::Bool(false) => false,
        Value::String(text) => !text.is_empty(),
        _ => upstream != UpstreamDialect::Responses || json.text("object") != "response",
    };
    let base = json.at("base_resp").count("status_code").is_some_and(|code| code != 0);
    let listed = json.as_array().and_then(|list| list.first()).is_some_and(|first| first.given("error"));
    if failed || base || listed {
        return Err(read_failure_json(200, "", json));
    }
    Ok(())
}

/// Reads a stream of one upstream.
#[derive(Debug)]
pub(crate) enum UpstreamReader {
    Chat(Box<chat::ChatReader>),
    Responses(Box<responses::ResponsesReader>),
    Anthropic(Box<anthropic::AnthropicReader>),
    Google(Box<google::GoogleReader>),
    Bedrock(Box<bedrock::BedrockReader>),
    Cohere(Box<cohere::CohereReader>),
    Ollama(Box<ollama::OllamaReader>),
}

impl UpstreamReader {
    pub(crate) fn new(session: &TranslateSession) -> Self {
        match session.upstream {
            UpstreamDialect::Chat | UpstreamDialect::Azure => {
                Self::Chat(Box::new(chat::ChatReader::new(session)))
            }
            UpstreamDialect::Responses => Self::Responses(Box::new(responses::ResponsesReader::new(session))),
            UpstreamDialect::Anthropic | UpstreamDialect::VertexClaude => {
                Self::Anthropic(Box::new(anthropic::AnthropicReader::new(session)))
            }
            UpstreamDialect::Google | UpstreamDialect::Vertex => {
                Self::Google(Box::new(google::GoogleReader::new(session)))
            }
            UpstreamDialect::Bedrock => Self::Bedrock(Box::new(bedrock::BedrockReader::new(session))),
            UpstreamDialect::Cohere => Self::Cohere(Box::new(cohere::CohereReader::new(session))),
            UpstreamDialect::Ollama => Self::Ollama(Box::new(ollama::OllamaReader::new(session))),
        }
    }

    /// One event of a stream of JSON: its name (where the framing has one) and its data.
    pub(crate) fn event(&mut self, name: &str, data: &str, out: &mut Vec<InnerEvent>) {
        let data = data.trim();
        if data.is_empty() {
            return;
        }
        if data.starts_with("[DONE]") {
            return self.done(out);
        }
        if let Self::Chat(reader) = self
            && reader.plain(data, out)
        {
            return;
        }
        match serde_json::from_str::<Value>(data) {
            Ok(json) => self.json(name, &json, out),
            Err(error) => self.fail(UpstreamFailure::malformed(error), out),
        }
    }

    fn json(&mut self, name: &str, json: &Value, out: &mut Vec<InnerEvent>) {
        let upstream = match self {
            Self::Responses(_) => UpstreamDialect::Responses,
            _ => UpstreamDialect::Chat,
        };
        if let Err(failure) = in_band(json, upstream) {
            return self.fail(failure, out);
        }
        match self {
            Self::Chat(reader) => reader.event(json, out),
            Self::Responses(reader) => reader.event(name, json, out),
            Self::Anthropic(reader) => reader.event(name, json, out),
            Self::Google(reader) => reader.event(json, out),
            Self::Bedrock(reader) => reader.event(name, json, out),
            Self::Cohere(reader) => reader.event(name, json, out),
            Self::Ollama(reader) => reader.event(json, out),
        }
    }

    /// One frame of Amazon's framing.
    pub(crate) fn frame(&mut self, frame: &AwsFrame<'_>, out: &mut Vec<InnerEvent>) {
        let json = serde_json::from_slice::<Value>(frame.payload).unwrap_or_default();
        match frame.message_type {
            "exception" => self.fail(bedrock::exception(frame.name, &json), out),
            "error" => {
                let json = super::json::Obj::new().with("message", frame.message).into();
                self.fail(bedrock::exception(frame.name, &json), out);
            }
            _ if json.is_object() => self.json(frame.name, &json, out),
            _ => self.fail(UpstreamFailure::malformed("a frame holds no JSON object"), out),
        }
    }

    /// `[DONE]`.
    fn done(&mut self, out: &mut Vec<InnerEvent>) {
        // Some gateways add it to other dialects, whose own end counts.
        if let Self::Chat(reader) = self {
            reader.done(true, out);
        }
    }

    /// The stream broke.
    pub(crate) fn fail(&mut self, failure: UpstreamFailure, out: &mut Vec<InnerEvent>) {
        match self {
            Self::Chat(reader) => reader.sequence.fail(failure, out),
            Self::Responses(reader) => reader.sequence.fail(failure, out),
            Self::Anthropic(reader) => reader.sequence.fail(failure, out),
            Self::Google(reader) => reader.sequence.fail(failure, out),
            Self::Bedrock(reader) => reader.sequence.fail(failure, out),
            Self::Cohere(reader) => reader.sequence.fail(failure, out),
            Self::Ollama(reader) => reader.sequence.fail(failure, out),
        }
    }

    /// The bytes are over.
    pub(crate) fn eof(&mut self, out: &mut Vec<InnerEvent>) {
        match self {
            Self::Chat(reader) => reader.done(false, out),
            Self::Google(reader) => reader.eof(out),
            Self::Bedrock(reader) => reader.eof(out),
            // These say themselves when they are whole.
            _ => self.fail(UpstreamFailure::truncated(), out),
        }
    }
}
