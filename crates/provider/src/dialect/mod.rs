//! Whatever the caller speaks, whatever the provider speaks: chat, Responses and Messages in; chat, Azure, Responses,
//! Anthropic, Gemini, Vertex, Bedrock, Cohere and Ollama out.
//!
//! The life of a translated request:
//! 1. The caller's body and the candidate's dialect are the same and [`must_translate`] says no: bytes pass, nothing
//!    of this runs. In the same dialect with proofs of other makers inside: [`scrub()`], then bytes pass.
//! 2. [`translate_request`] reads the body into the inner form (`inner`), fits it to the model (`fit`, by
//!    `capability`), and writes the upstream's body: method, path, headers, the hints that were dropped, an estimate
//!    of tokens, and a [`TranslateSession`]. A [`TranslateError`] means: not with this candidate; [`refuse`] makes
//!    the caller's 400 of it. A fallback starts here again, from the caller's original bytes.
//! 3. The answer. Status 400 and more: [`read_failure`], then [`write_error`]. A whole body: [`translate_response`].
//!    A stream: [`StreamTranslator`], fed with bytes cut anywhere. Until [`StreamTranslator::has_content`], what it
//!    wrote can be thrown away for another candidate; a failure before that is in [`StreamTranslator::failure`].
//!    After the last byte [`StreamTranslator::finish`] ends the caller's stream in its grammar; an end of the
//!    gateway's own (a clock, a shutdown) is [`StreamTranslator::abort`].
//! 4. [`StreamTranslator::usage`] or [`TranslatedResponse::usage`] has the tokens in five parts, with whose figures
//!    they are.
//!
//! Not its job: sockets, authentication, retries, masking of keys. Invariants: values in, values out; never two steps
//! through a third dialect; nothing that an upstream or a caller sends makes it panic or take unbounded memory; what
//! cannot be honoured is refused by name, and what is dropped is named.

mod caller;
pub mod capability;
mod estimate;
mod failure;
mod fit;
pub mod frames;
pub mod inner;
mod json;
mod schema;
mod scrub;
mod sequence;
mod signature;
mod table;
mod target;
mod upstream;
pub mod usage;

#[cfg(test)]
mod tests;

pub use capability::{ModelCapabilities, defaults};
pub(crate) use capability::{ReasoningForm, ReasoningReplay, StructuredForm};
pub use failure::{FailureClass, UpstreamFailure, read_failure};
pub(crate) use inner::EffortLevel;
pub use inner::{FinishReason, TokenParts, TokenSource};
pub use scrub::{must_translate, scrub};
pub use signature::{Maker, Signature, carries_tag};
pub use table::mapping_table;
pub use target::{
    CallerDialect, PathRoot, StreamFraming, TranslateError, TranslateOptions, TranslateSession,
    TranslatedRequest, UpstreamDialect,
};

use caller::CallerWriter;
use frames::{AwsReader, LineReader, SseReader};
use inner::{AnswerBuilder, InnerEvent, InnerRequest, InnerResponse};
use upstream::UpstreamReader;

/// A whole answer in the caller's dialect.
#[derive(Clone, Debug)]
pub struct TranslatedResponse {
    /// JSON.
    pub body: Vec<u8>,
    /// Tokens.
    pub usage: TokenParts,
    /// Why the answer ended.
    pub finish: FinishReason,
}

/// The caller's body in the upstream's dialect.
///
/// `options.capabilities` is the model's; [`defaults`] has them where no manifest says more.
pub fn translate_request(
    caller: CallerDialect,
    upstream: UpstreamDialect,
    body: &[u8],
    options: &TranslateOptions,
) -> Result<TranslatedRequest, TranslateError> {
    let mut request = caller::read_request(caller, body, options)?;
    let free_text =
        request.tools.iter().filter(|tool| tool.free_text).map(|tool| tool.name.clone()).collect();
    let estimate = estimate::estimate(&request);
    // Models that take tools only there.
    let bridge = upstream == UpstreamDialect::Chat
        && options.capabilities.tools_need_responses
        && !request.tools.is_empty();
    let upstream = if bridge { UpstreamDialect::Responses } else { upstream };
    let names = fit::fit(&mut request, caller, upstream, options)?;
    let written = upstream::write_request(&mut request, upstream, options)?;
    let InnerRequest { stream, include_usage, echo, mut dropped, .. } = request;
    dropped.sort();
    dropped.dedup();
    Ok(TranslatedRequest {
        method: "POST",
        root: written.root,
        path: written.path,
        headers: written.headers,
        body: written.body.to_string().into_bytes(),
        stream,
        dropped,
        estimate,
        session: TranslateSession {
            caller,
            upstream,
            model: options.model.clone(),
            shown_model: options.shown_model.clone(),
            id: options.id.clone(),
            now: options.now,
            include_usage,
            estimate,
            names,
            free_text,
            echo,
        },
    })
}

/// Where a body goes that passes in its own dialect: what its path is put behind, and the path. Nothing for
/// upstreams that no caller speaks like.
pub fn native_path(upstream: UpstreamDialect, options: &TranslateOptions) -> Option<(PathRoot, String)> {
    match upstream {
        UpstreamDialect::Chat | UpstreamDialect::Azure => Some(upstream::chat::place(upstream, options)),
        UpstreamDialect::Responses => Some((PathRoot::Base, "/responses".to_owned())),
        UpstreamDialect::Anthropic => Some((PathRoot::Base, "/messages".to_owned())),
        _ => None,
    }
}

/// The upstream's whole answer (its status was good) in the caller's dialect. An error inside it is a failure too.
pub fn translate_response(
    session: &TranslateSession,
    body: &[u8],
) -> Result<TranslatedResponse, UpstreamFailure> {
    let mut response = upstream::read_response(session, body)?;
    if response.usage.source == TokenSource::None {
        response.usage = estimated(session, answer_bytes(&response));
    }
    Ok(TranslatedResponse {
        body: caller::write_response(session, &response),
        usage: response.usage,
        finish: response.finish,
    })
}

fn answer_bytes(response: &InnerResponse) -> u64 {
    response.clone().events().iter().map(bytes_of).sum()
}

fn bytes_of(event: &InnerEvent) -> u64 {
    match event {
        InnerEvent::Delta(text) => text.len() as u64,
        _ => 0,
    }
}

/// Bytes of an answer per token: 4 in English prose.
const ANSWER_BYTES: u64 = 4;

fn estimated(session: &TranslateSession, bytes: u64) -> TokenParts {
    TokenParts {
        input: session.estimate,
        output: bytes.div_ceil(ANSWER_BYTES),
        source: TokenSource::Estimated,
        ..TokenParts::default()
    }
}

/// Status and body for a failure, in the caller's dialect. The message is not yet masked.
pub fn write_error(caller: CallerDialect, failure: &UpstreamFailure) -> (u16, Vec<u8>) {
    let status = failure.class.status(caller == CallerDialect::Messages);
    (status, caller::error_body(caller, failure).to_string().into_bytes())
}

/// Status and body for a request that was refused, in the caller's dialect: 400, `unsupported_parameter` where a
/// feature is missing.
pub fn refuse(caller: CallerDialect, error: &TranslateError) -> (u16, Vec<u8>) {
    let class = match error {
        TranslateError::Invalid { .. } => FailureClass::Invalid,
        TranslateError::Unsupported { .. } => FailureClass::Unsupported,
    };
    let failure = UpstreamFailure {
        param: Some(error.param().to_owned()),
        ..UpstreamFailure::new(class, error.to_string())
    };
    write_error(caller, &failure)
}

/// The answer of `count_tokens` from an estimate: instructions, tools and all.
pub fn count_tokens(caller: CallerDialect, body: &[u8]) -> Result<Vec<u8>, TranslateError> {
    Ok(caller::messages::count(estimate_tokens(caller, body)?))
}

/// An estimate of a body's input tokens, from bytes, rounded up.
pub fn estimate_tokens(caller: CallerDialect, body: &[u8]) -> Result<u64, TranslateError> {
    // What a provider runs itself is counted by nothing here, and no reason to refuse.
    let options = TranslateOptions { drop_hosted_tools: true, ..TranslateOptions::default() };
    Ok(estimate::estimate(&caller::read_request(caller, body, &options)?))
}

#[derive(Debug)]
enum Framer {
    Sse(SseReader),
    Lines(LineReader),
    Aws(AwsReader),
}

/// Longest answer, in bytes of text: a stream of Responses ends with the whole of it, so it is kept.
const ANSWER_LIMIT: u64 = 64 << 20;

/// Translates one streamed answer. Memory is bounded: by one event of the upstream, by what it interleaves, and for
/// callers of Responses by the answer itself.
#[derive(Debug)]
pub struct StreamTranslator {
    session: TranslateSession,
    framer: Framer,
    reader: UpstreamReader,
    writer: CallerWriter,
    events: Vec<InnerEvent>,
    usage: Option<TokenParts>,
    finish: Option<FinishReason>,
    failure: Option<UpstreamFailure>,
    bytes: u64,
    content: bool,
    over: bool,
    holds: bool,
}

impl StreamTranslator {
    /// A translator for the answer to this request.
    pub fn new(session: TranslateSession) -> Self {
        let framer = match upstream::framing(session.upstream) {
            StreamFraming::Sse => Framer::Sse(SseReader::default()),
            StreamFraming::Lines => Framer::Lines(LineReader::default()),
            StreamFraming::Aws => Framer::Aws(AwsReader::default()),
        };
        Self {
            framer,
            reader: UpstreamReader::new(&session),
            writer: CallerWriter::new(&session),
            session,
            events: Vec::new(),
            usage: None,
            finish: None,
            failure: None,
            bytes: 0,
            content: false,
            over: false,
            holds: false,
        }
    }

    /// Failures are kept for [`Self::failure`] and not written: who relays the stream ends it in words that were freed
    /// of keys.
    #[must_use]
    pub fn holding_failures(mut self) -> Self {
        self.holds = true;
        self
    }

    /// Takes more of the upstream's bytes, cut anywhere, and appends what they mean to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        let (reader, events) = (&mut self.reader, &mut self.events);
        let read = match &mut self.framer {
            Framer::Sse(framer) => {
                framer.feed(bytes, &mut |event| reader.event(event.name, event.data, events))
            }
            Framer::Lines(framer) => framer.feed(bytes, &mut |line| match std::str::from_utf8(line) {
                Ok(line) => reader.event("", line, events),
                Err(error) => reader.fail(UpstreamFailure::malformed(error), events),
            }),
            Framer::Aws(framer) => framer.feed(bytes, &mut |frame| reader.frame(&frame, events)),
        };
        if let Err(error) = read {
            self.reader.fail(UpstreamFailure::malformed(error), &mut self.events);
        }
        self.write(out);
    }

    /// The upstream's bytes are over: ends the caller's stream, as whole or as broken.
    pub fn finish(&mut self, out: &mut Vec<u8>) {
        if self.over {
            return;
        }
        let (reader, events) = (&mut self.reader, &mut self.events);
        // A last event without its end counts if it is whole.
        let whole = |data: &str| {
            data.trim_start().starts_with("[DONE]")
                || serde_json::from_str::<serde::de::IgnoredAny>(data).is_ok()
        };
        match &mut self.framer {
            Framer::Sse(framer) => {
                let read = framer.finish(&mut |event| {
                    if whole(event.data) {
                        reader.event(event.name, event.data, events);
                    }
                });
                if let Err(error) = read {
                    reader.fail(UpstreamFailure::malformed(error), events);
                }
            }
            Framer::Lines(framer) => framer.finish(&mut |line| {
                if let Some(line) = std::str::from_utf8(line).ok().filter(|line| whole(line)) {
                    reader.event("", line, events);
                }
            }),
            Framer::Aws(framer) => {
                if !framer.is_whole() {
                    reader.fail(UpstreamFailure::truncated(), events);
                }
            }
        }
        self.reader.eof(&mut self.events);
        self.write(out);
    }

    /// The upstream answered with a whole body although a stream was asked for: the same answer as a stream.
    pub fn whole(&mut self, body: &[u8], out: &mut Vec<u8>) {
        match upstream::read_response(&self.session, body) {
            Ok(response) => self.events.extend(response.events()),
            Err(failure) => self.reader.fail(failure, &mut self.events),
        }
        self.write(out);
    }

    /// Ends the caller's stream with an error of the gateway's own.
    pub fn abort(&mut self, failure: UpstreamFailure, out: &mut Vec<u8>) {
        self.reader.fail(failure, &mut self.events);
        self.write(out);
    }

    fn write(&mut self, out: &mut Vec<u8>) {
        for mut event in self.events.drain(..) {
            if self.over {
                break;
            }
            if self.bytes > ANSWER_LIMIT {
                event = InnerEvent::Failed(UpstreamFailure::malformed("the answer does not end"));
            }
            match &event {
                InnerEvent::Usage(usage) => self.usage = Some(*usage),
                InnerEvent::Delta(text) => {
                    self.content = true;
                    self.bytes += text.len() as u64;
                }
                InnerEvent::Open(inner::BlockKind::Tool { .. }) | InnerEvent::Redacted(_) => {
                    self.content = true
                }
                InnerEvent::Finish { reason, .. } => self.finish = Some(*reason),
                InnerEvent::Failed(failure) => {
                    self.failure = Some(failure.clone());
                    self.over = true;
                    if self.holds {
                        break;
                    }
                }
                InnerEvent::End => {
                    self.over = true;
                    if self.usage.is_none() {
                        let usage = estimated(&self.session, self.bytes);
                        self.writer.event(&self.session, &InnerEvent::Usage(usage), out);
                    }
                }
                InnerEvent::Start { .. } | InnerEvent::Open(_) | InnerEvent::Sign(_) | InnerEvent::Close => {}
            }
            self.writer.event(&self.session, &event, out);
        }
    }

    /// The caller would see content of this answer: no other candidate may be asked any more.
    pub fn has_content(&self) -> bool {
        self.content
    }

    /// The stream has its end, good or bad; nothing more is written.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// What broke the stream.
    pub fn failure(&self) -> Option<&UpstreamFailure> {
        self.failure.as_ref()
    }

    /// Why the answer ended, once it did.
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.finish
    }

    /// Tokens: the upstream's figures; an estimate where it gave none; partial where the answer broke off.
    pub fn usage(&self) -> TokenParts {
        let own = estimated(&self.session, self.bytes);
        let whole = self.over && self.failure.is_none();
        match self.usage {
            Some(usage) if whole => usage,
            Some(usage) => {
                TokenParts { output: usage.output.max(own.output), source: TokenSource::Partial, ..usage }
            }
            None => own,
        }
    }
}

/// Reads a stream of one dialect back into a whole answer; for tests and for tools.
#[doc(hidden)]
pub fn collect(session: &TranslateSession, bytes: &[u8]) -> Result<InnerResponse, UpstreamFailure> {
    let mut events = Vec::new();
    let mut reader = UpstreamReader::new(session);
    match upstream::framing(session.upstream) {
        StreamFraming::Sse => {
            let mut framer = SseReader::default();
            let read = framer
                .feed(bytes, &mut |event| reader.event(event.name, event.data, &mut events))
                .and_then(|()| framer.finish(&mut |event| reader.event(event.name, event.data, &mut events)));
            if let Err(error) = read {
                return Err(UpstreamFailure::malformed(error));
            }
        }
        StreamFraming::Lines => {
            let mut framer = LineReader::default();
            let mut line = |line: &[u8]| reader.event("", &String::from_utf8_lossy(line), &mut events);
            framer.feed(bytes, &mut line).map_err(UpstreamFailure::malformed)?;
            framer.finish(&mut line);
        }
        StreamFraming::Aws => {
            let mut framer = AwsReader::default();
            framer
                .feed(bytes, &mut |frame| reader.frame(&frame, &mut events))
                .map_err(UpstreamFailure::malformed)?;
        }
    }
    reader.eof(&mut events);
    let mut builder = AnswerBuilder::default();
    events.into_iter().for_each(|event| builder.push(event));
    builder.finish()
}
