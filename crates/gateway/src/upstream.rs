//! One attempt at one candidate: the request as that provider wants it, the head of its answer, and as much of the
//! answer as must be seen before anything is shown.
//!
//! Not its job: what follows a failure (`course`), relaying after the first content (`relay`).
//!
//! Invariants: each attempt is built from the caller's own bytes and an allow-list of its headers; nothing of one
//! provider reaches another; a text of a provider that is shown has been freed of its key.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::Body;
use hyper::header::{ACCEPT_ENCODING, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Uri};
use tokio::time::{Instant, timeout_at};

use net::pool::{BodySlices, ConnectPhase, Pool, PoolOrigin, PooledAnswer, SendError};
use provider::dialect::{
    FailureClass, PathRoot, StreamTranslator, TranslateSession, UpstreamFailure, read_failure,
};

use crate::ask::Ask;
use crate::course::{AttemptDeadlines, AttemptOutcome, Clock};
use crate::decide::RouteCandidate;
use crate::error::GatewayError;
use crate::guard::KeyGuard;
use crate::payload::{Payload, translated_answer};
use crate::picture::{Api, Picture, Upstream};
use crate::reading::AnswerReading;
use crate::serve::tick;
use crate::tap::TapShape;
use crate::tick::Tick;

/// Of an answer that is an error: more is no message.
const REFUSAL_MAX: usize = 64 * 1024;
/// Of a plain answer. Embeddings of a large batch have some ten megabytes.
const PLAIN_MAX: usize = 64 * 1024 * 1024;
/// Of a stream before its first content. Comments and empty deltas are small; what is larger is shown as it is.
const UNSHOWN_MAX: usize = 256 * 1024;
/// Headers of callers that mean something in their own dialect only.
const OF_DIALECT: [&str; 5] =
    ["accept", "content-type", "openai-beta", "anthropic-version", "anthropic-beta"];
/// The type of a stream.
const EVENTS: &[u8] = b"text/event-stream";
/// The version that Anthropic's API is asked for where the caller names none (its documentation, "Versions").
const ANTHROPIC_VERSION: HeaderValue = HeaderValue::from_static("2023-06-01");

/// What is asked of a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Chat,
    Completions,
    Embeddings,
    Responses,
    Messages,
    CountTokens,
}

impl Endpoint {
    pub(crate) const ALL: [Self; 6] =
        [Self::Chat, Self::Completions, Self::Embeddings, Self::Responses, Self::Messages, Self::CountTokens];

    pub(crate) const fn api(self) -> Api {
        match self {
            Self::Chat => Api::Chat,
            Self::Completions => Api::Completions,
            Self::Embeddings => Api::Embeddings,
            Self::Responses => Api::Responses,
            Self::Messages | Self::CountTokens => Api::Messages,
        }
    }

    pub(crate) const fn shape(self) -> TapShape {
        match self {
            Self::Responses => TapShape::Responses,
            Self::Messages | Self::CountTokens => TapShape::Messages,
            _ => TapShape::Chat,
        }
    }

    /// The word in metrics and rows.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::CountTokens => "count_tokens",
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Chat => "chat/completions",
            Self::Completions => "completions",
            Self::Embeddings => "embeddings",
            Self::Responses => "responses",
            Self::Messages => "messages",
            Self::CountTokens => "messages/count_tokens",
        }
    }
}

/// What is fixed of an upstream for as long as a picture holds: made once, not per request.
pub(crate) struct UpstreamSeat {
    origin: PoolOrigin,
    host: HeaderValue,
    /// Path of the base URL, without a slash at its end.
    base: Box<str>,
    paths: [Uri; Endpoint::ALL.len()],
    fixed: Vec<(HeaderName, HeaderValue)>,
    guard: KeyGuard,
    /// The provider's, for the head of answers.
    pub(crate) name: Option<HeaderValue>,
}

impl UpstreamSeat {
    /// `None`: the URL cannot be asked.
    pub(crate) fn new(upstream: &Upstream) -> Option<Self> {
        let url = &upstream.base_url;
        let tls = url.scheme() == "https";
        let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').into();
        let port = url.port_or_known_default()?;
        let authority = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str()?),
            None => url.host_str()?.to_owned(),
        };
        let base = match url.path().trim_end_matches('/') {
            // Azure has its OpenAI-shaped API in one place, whatever part of it a manifest names.
            _ if &*upstream.kind == "azure-openai" => "/openai/v1",
            base => base,
        };
        let path = |endpoint: Endpoint| format!("{base}/{}", endpoint.path()).parse::<PathAndQuery>().ok();
        let mut paths = [const { None }; Endpoint::ALL.len()];
        for (slot, endpoint) in paths.iter_mut().zip(Endpoint::ALL) {
            *slot = Some(Uri::from(path(endpoint)?));
        }
        let mut fixed = upstream.headers.clone();
        fixed.extend(upstream.auth.clone());
        Some(Self {
            origin: PoolOrigin { tls, host, port, settings: 0 },
            host: HeaderValue::try_from(authority).ok()?,
            base: base.into(),
            paths: paths.map(Option::unwrap_or_default),
            fixed,
            guard: KeyGuard::new(upstream.key.as_ref()),
            name: HeaderValue::from_bytes(upstream.name.as_bytes()).ok(),
        })
    }

    /// Where a translated request goes.
    fn place(&self, root: PathRoot, path: &str) -> Option<Uri> {
        let base = match root {
            PathRoot::Base => &*self.base,
            PathRoot::Origin => "",
        };
        format!("{base}{path}").parse::<PathAndQuery>().ok().map(Uri::from)
    }
}

/// A refusal that may be shown: masked.
#[derive(Debug)]
pub(crate) struct ShownRefusal(pub(crate) GatewayError);

/// What became of an attempt.
pub(crate) enum Attempted {
    /// A plain answer, whole and good.
    Plain(Box<PlainAnswer>),
    /// A stream whose first content is there.
    Stream(Box<StreamBegun>),
    /// Nothing that may be shown as an answer.
    Failed { outcome: AttemptOutcome, refusal: Option<ShownRefusal> },
}

pub(crate) struct PlainAnswer {
    pub(crate) body: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) upstream_id: Option<HeaderValue>,
    pub(crate) reading: AnswerReading,
}

pub(crate) struct StreamBegun {
    pub(crate) body: PooledAnswer,
    pub(crate) reading: AnswerReading,
    /// What came so far and was not shown.
    pub(crate) unshown: Vec<Bytes>,
    pub(crate) upstream_id: Option<HeaderValue>,
    /// The answer has ended already.
    pub(crate) ended: bool,
}

/// One attempt's circumstances.
pub(crate) struct AttemptContext<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) picture: &'a Picture,
    pub(crate) seat: &'a UpstreamSeat,
    pub(crate) candidate: &'a RouteCandidate,
    pub(crate) endpoint: Endpoint,
    pub(crate) ask: &'a Ask,
    pub(crate) payload: &'a Payload,
    /// Of the caller's, by the allow-list.
    pub(crate) passed: &'a [(HeaderName, HeaderValue)],
    pub(crate) deadlines: AttemptDeadlines,
    /// From when ticks are counted.
    pub(crate) start: Instant,
}

impl AttemptContext<'_> {
    pub(crate) async fn run(&self) -> Attempted {
        let Some(upstream) = self.picture.upstream(self.candidate.upstream) else {
            return Attempted::failed(AttemptOutcome::OwnFault);
        };
        let (parts, uri) = match self.payload {
            Payload::Own { parts, .. } => {
                (parts.clone(), self.seat.paths.get(self.endpoint as usize).cloned())
            }
            Payload::Translated(asked) => {
                (vec![asked.body.clone().into()], self.seat.place(asked.root, &asked.path))
            }
        };
        // A model's name is percent-encoded, so an invalid path is our own mistake.
        let Some(uri) = uri else { return Attempted::failed(AttemptOutcome::OwnFault) };
        let request = || self.request(&uri, &parts);
        let connect = self.deadlines.connect.since(self.now());
        let (deadline, clock) = self.deadline(None);
        let sending = self.pool.send(&self.seat.origin, connect, request);
        let answer = match timeout_at(deadline, sending).await {
            Err(_) => return Attempted::failed(AttemptOutcome::TimedOut(clock)),
            Ok(Err(error)) => return Attempted::failed(outcome_of(&error)),
            Ok(Ok(answer)) => answer,
        };
        let (head, body) = answer.into_parts();
        let shown = |value: &&HeaderValue| !self.seat.guard.is_in(value.as_bytes());
        let upstream_id = head.headers.get("x-request-id").or_else(|| head.headers.get("request-id"));
        let upstream_id = upstream_id.filter(shown).cloned();
        if !head.status.is_success() {
            return self.refused(upstream, head.status.as_u16(), &head.headers, body).await;
        }
        let content_type = head.headers.get(CONTENT_TYPE).filter(shown);
        let is = |word: &[u8]| {
            content_type.is_some_and(|value| {
                value.as_bytes().get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
            })
        };
        let shape = self.endpoint.shape();
        match self.payload {
            Payload::Own { withhold, .. } => match (is(EVENTS), self.ask.stream) {
                (true, true) => {
                    let reading = AnswerReading::stream(shape, *withhold, self.seat.guard.clone());
                    self.stream(upstream, body, reading, upstream_id).await
                }
                // Events where one answer was asked for.
                (true, false) => Attempted::failed(AttemptOutcome::Garbage),
                (false, _) => self.plain(upstream, body, content_type.cloned(), upstream_id).await,
            },
            Payload::Translated(asked) => {
                let session = &asked.session;
                let reading = || {
                    let translator = StreamTranslator::new(session.clone());
                    AnswerReading::translated(shape, translator, self.seat.guard.clone())
                };
                match (self.ask.stream, is(b"application/json")) {
                    (true, false) => self.stream(upstream, body, reading(), upstream_id).await,
                    (true, true) => self.at_once(upstream, body, reading(), upstream_id).await,
                    (false, _) if is(EVENTS) => Attempted::failed(AttemptOutcome::Garbage),
                    (false, _) => self.translated(upstream, body, session, upstream_id).await,
                }
            }
        }
    }

    fn now(&self) -> Tick {
        tick(self.start.elapsed())
    }

    fn at(&self, tick: Tick) -> Instant {
        self.start + Duration::from_millis(tick.0)
    }

    /// Until when the next bytes must come. A plain answer has no first token: it comes when all is done.
    fn deadline(&self, last_byte: Option<Tick>) -> (Instant, Clock) {
        let (tick, clock) = match self.ask.stream {
            true => self.deadlines.before_content(true, last_byte),
            false => match last_byte {
                Some(last) => self.deadlines.relaying(last),
                None => (self.deadlines.total, Clock::Total),
            },
        };
        (self.at(tick), clock)
    }

    fn request(&self, uri: &Uri, parts: &[Bytes]) -> Request<BodySlices> {
        let mut request = Request::new(BodySlices::new(parts.to_vec()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri.clone();
        let headers = request.headers_mut();
        headers.reserve(self.passed.len() + self.seat.fixed.len() + 4);
        headers.insert(HOST, self.seat.host.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        match self.payload {
            Payload::Own { .. } => {
                for (name, value) in self.passed {
                    headers.append(name, value.clone());
                }
                if self.endpoint.api() == Api::Messages {
                    headers.entry("anthropic-version").or_insert(ANTHROPIC_VERSION);
                }
            }
            Payload::Translated(asked) => {
                let passed = self.passed.iter().filter(|(name, _)| !OF_DIALECT.contains(&name.as_str()));
                for (name, value) in passed {
                    headers.append(name, value.clone());
                }
                for (name, value) in &asked.headers {
                    if let Ok(value) = HeaderValue::from_str(value) {
                        headers.insert(*name, value);
                    }
                }
            }
        }
        headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("application/json"));
        // The provider's own come last: no header of a caller stands in their place.
        for (name, value) in &self.seat.fixed {
            headers.insert(name, value.clone());
        }
        request
    }

    /// An answer that is no success.
    async fn refused(
        &self,
        upstream: &Upstream,
        status: u16,
        headers: &HeaderMap,
        mut body: PooledAnswer,
    ) -> Attempted {
        let mut text = Vec::new();
        while text.len() < REFUSAL_MAX {
            match within(|| self.deadline(Some(self.now())), next(&mut body)).await {
                Ok(Some(Ok(data))) => text.extend_from_slice(&data),
                // An error that is cut is an error still.
                _ => break,
            }
        }
        text.truncate(REFUSAL_MAX);
        let kind = headers.get("x-amzn-errortype").and_then(|kind| kind.to_str().ok()).unwrap_or("");
        let failure = read_failure(status, kind, &text);
        let retry_after = retry_after(headers).or(failure.retry_after.map(Duration::from_secs));
        if let Payload::Translated(_) = self.payload {
            return failed(upstream, failure, false, retry_after);
        }
        let outcome = match failure.class {
            FailureClass::ContextOverflow => AttemptOutcome::ContextOverflow,
            _ => AttemptOutcome::Status { status, retry_after },
        };
        let refusal = Some(refusal(upstream, status, failure, &text));
        Attempted::Failed { outcome, refusal }
    }

    /// A body whole, as it may be shown.
    async fn guarded(&self, body: &mut PooledAnswer) -> Result<(Bytes, KeyGuard), AttemptOutcome> {
        let mut guard = self.seat.guard.clone();
        let body = guard.whole(self.gathered(body).await?);
        Ok((body, guard))
    }

    /// A body whole.
    async fn gathered(&self, body: &mut PooledAnswer) -> Result<Bytes, AttemptOutcome> {
        let declared = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let mut whole = Bytes::new();
        let mut gathered: Vec<u8> = Vec::new();
        loop {
            match within(|| self.deadline(Some(self.now())), next(body)).await {
                Err(clock) => return Err(AttemptOutcome::TimedOut(clock)),
                Ok(Some(Err(_))) => return Err(AttemptOutcome::BrokenOff),
                Ok(None) => break,
                Ok(Some(Ok(data))) if whole.is_empty() && gathered.is_empty() => whole = data,
                Ok(Some(Ok(data))) => {
                    if gathered.is_empty() {
                        gathered.reserve_exact(
                            declared.unwrap_or(0).min(PLAIN_MAX).max(whole.len() + data.len()),
                        );
                        gathered.extend_from_slice(&std::mem::take(&mut whole));
                    }
                    gathered.extend_from_slice(&data);
                }
            }
            if gathered.len().max(whole.len()) > PLAIN_MAX {
                return Err(AttemptOutcome::Garbage);
            }
        }
        Ok(if gathered.is_empty() { whole } else { gathered.into() })
    }

    async fn plain(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        content_type: Option<HeaderValue>,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let (body, guard) = match self.guarded(&mut body).await {
            Ok(guarded) => guarded,
            Err(outcome) => return Attempted::failed(outcome),
        };
        let reading = AnswerReading::plain(self.endpoint.shape(), &body, None, guard);
        let sums = reading.sums();
        if sums.error {
            return in_band(upstream, &body);
        }
        if sums.garbage > 0 {
            return Attempted::failed(AttemptOutcome::Garbage);
        }
        Attempted::Plain(Box::new(PlainAnswer { body, content_type, upstream_id, reading }))
    }

    /// A plain answer in another dialect.
    async fn translated(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        session: &TranslateSession,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let (body, guard) = match self.guarded(&mut body).await {
            Ok(guarded) => guarded,
            Err(outcome) => return Attempted::failed(outcome),
        };
        match translated_answer(session, body).await {
            Ok(answer) => {
                let body = Bytes::from(answer.body);
                let reading = AnswerReading::plain(self.endpoint.shape(), &body, Some(answer.usage), guard);
                let content_type = Some(HeaderValue::from_static("application/json"));
                Attempted::Plain(Box::new(PlainAnswer { body, content_type, upstream_id, reading }))
            }
            Err(failure) => {
                let retry_after = failure.retry_after.map(Duration::from_secs);
                failed(upstream, failure, true, retry_after)
            }
        }
    }

    /// A stream was asked for, and another dialect's answer comes whole.
    async fn at_once(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        mut reading: AnswerReading,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let whole = match self.gathered(&mut body).await {
            Ok(whole) => whole,
            Err(outcome) => return Attempted::failed(outcome),
        };
        let mut unshown = Vec::new();
        reading.whole(&whole, |part| unshown.push(part));
        match reading.failure().cloned() {
            Some(failure) => failed(upstream, failure, true, None),
            None => {
                Attempted::Stream(Box::new(StreamBegun { body, reading, unshown, upstream_id, ended: true }))
            }
        }
    }

    async fn stream(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        mut reading: AnswerReading,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let mut unshown = Vec::new();
        let mut size = 0;
        let mut last_byte = None;
        let mut ended = false;
        // After the end there is nothing to wait for, and what it brought is looked at as before.
        while !ended {
            match within(|| self.deadline(last_byte), next(&mut body)).await {
                Err(clock) => return Attempted::failed(AttemptOutcome::TimedOut(clock)),
                Ok(Some(Err(_))) => return Attempted::failed(AttemptOutcome::BrokenOff),
                Ok(Some(Ok(data))) => {
                    last_byte = Some(self.now());
                    size += data.len();
                    reading.feed(&data, |part| unshown.push(part));
                }
                Ok(None) => {
                    reading.end(|part| unshown.push(part));
                    ended = true;
                }
            }
            if reading.content() || size > UNSHOWN_MAX {
                break;
            }
            if let Some(failure) = reading.failure().cloned() {
                let retry_after = failure.retry_after.map(Duration::from_secs);
                return failed(upstream, failure, true, retry_after);
            }
            if reading.sums().error {
                return in_band(upstream, &unshown.concat());
            }
        }
        let sums = reading.sums();
        if ended && !sums.content && !sums.ended {
            let outcome = match sums.garbage {
                0 => AttemptOutcome::BrokenOff,
                _ => AttemptOutcome::Garbage,
            };
            return Attempted::failed(outcome);
        }
        Attempted::Stream(Box::new(StreamBegun { body, reading, unshown, upstream_id, ended }))
    }
}

impl Attempted {
    const fn failed(outcome: AttemptOutcome) -> Self {
        Self::Failed { outcome, refusal: None }
    }
}

/// What comes within a clock. What is there already costs no timer: most answers come whole with their head.
async fn within<T>(
    deadline: impl FnOnce() -> (Instant, Clock),
    future: impl Future<Output = T>,
) -> Result<T, Clock> {
    let mut future = pin!(future);
    let first = std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
    if let Poll::Ready(value) = first {
        return Ok(value);
    }
    let (at, clock) = deadline();
    timeout_at(at, future).await.map_err(|_| clock)
}

/// The next data of a body.
async fn next(body: &mut PooledAnswer) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await? {
            Err(error) => return Some(Err(error)),
            Ok(frame) => {
                // Trailers say nothing that counts here.
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
        }
    }
}

fn outcome_of(error: &SendError) -> AttemptOutcome {
    match error {
        SendError::Connect(error) => match error.phase {
            ConnectPhase::Timeout => AttemptOutcome::TimedOut(Clock::Connect),
            ConnectPhase::Local => AttemptOutcome::OwnFault,
            _ => AttemptOutcome::ConnectFailed,
        },
        SendError::Broken(_) => AttemptOutcome::BrokenOff,
        SendError::Garbage(_) => AttemptOutcome::Garbage,
    }
}

/// What a translation, or its reading of a refusal, made of a provider's error.
fn failed(
    upstream: &Upstream,
    failure: UpstreamFailure,
    in_band: bool,
    retry_after: Option<Duration>,
) -> Attempted {
    let outcome = AttemptOutcome::of_failure(failure.class, in_band, retry_after);
    let status = failure.class.status(false);
    Attempted::Failed { outcome, refusal: Some(refusal(upstream, status, failure, b"")) }
}

/// An error inside a success: its JSON, or the events in which it stands.
fn in_band(upstream: &Upstream, text: &[u8]) -> Attempted {
    let of_event = text
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .rfind(|line| line.starts_with(b"data:") && memchr::memmem::find(line, b"error").is_some());
    let json = of_event.and_then(|line| line.strip_prefix(b"data:")).unwrap_or(text).trim_ascii();
    let failure = read_failure(500, "", json);
    let status = match failure.class {
        FailureClass::Auth => 401,
        FailureClass::NoCredit => 402,
        class => class.status(false),
    };
    let retry_after = failure.retry_after.map(Duration::from_secs);
    let outcome = match failure.class {
        FailureClass::ContextOverflow => AttemptOutcome::ContextOverflow,
        _ => AttemptOutcome::InBand { status: Some(status), retry_after },
    };
    Attempted::Failed { outcome, refusal: Some(refusal(upstream, status, failure, json)) }
}

/// A provider's refusal in words that may be shown.
fn refusal(upstream: &Upstream, status: u16, failure: UpstreamFailure, text: &[u8]) -> ShownRefusal {
    let code = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|json| {
        let error = json.get("error").unwrap_or(&json);
        error
            .get("code")
            .and_then(|code| code.as_str())
            .map(|code| code.chars().take(100).collect::<String>())
    });
    let code = match failure.class {
        FailureClass::ContextOverflow => Some("context_length_exceeded".to_owned()),
        // A provider of another dialect has other words for it.
        FailureClass::Unsupported if text.is_empty() => Some("unsupported_parameter".to_owned()),
        FailureClass::Policy if text.is_empty() => Some("content_policy_violation".to_owned()),
        _ => code.filter(|code| code.bytes().all(|byte| byte.is_ascii_graphic())),
    };
    let mask = |text: &str| {
        let key = upstream.key.as_ref().and_then(|key| std::str::from_utf8(key.expose()).ok()).unwrap_or("");
        provider::redact(text, key)
    };
    let message = match mask(&failure.message) {
        message if message.is_empty() => format!("the provider answered with status {status}"),
        message => message,
    };
    let code = code.as_deref().map(mask);
    let param = failure.param.as_deref().map(mask);
    ShownRefusal(GatewayError::refused(status, message, code.as_deref(), param.as_deref()))
}

/// `retry-after-ms`, or `retry-after` in seconds; dates are left to the caller's own clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |name: HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    number(HeaderName::from_static("retry-after-ms"))
        .map(|milliseconds| milliseconds / 1e3)
        .or_else(|| number(RETRY_AFTER))
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
}

/// Seats of all upstreams of a picture, by their indexes.
pub(crate) fn seats(picture: &Picture) -> Vec<Option<Arc<UpstreamSeat>>> {
    picture.upstreams().iter().map(|upstream| UpstreamSeat::new(upstream).map(Arc::new)).collect()
}
