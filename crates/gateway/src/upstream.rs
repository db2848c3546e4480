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
use provider::dialect::{FailureClass, UpstreamFailure, read_failure};

use crate::ask::Ask;
use crate::course::{AttemptDeadlines, AttemptOutcome, Clock};
use crate::decide::RouteCandidate;
use crate::error::GatewayError;
use crate::picture::{Api, LevelDefaults, Picture, Upstream};
use crate::serve::tick;
use crate::skim::{BodyField, OWN_FIELDS, Skim};
use crate::splice::{BodyEdit, splice, usage_wanted};
use crate::tap::{Tap, TapShape};
use crate::tick::Tick;

/// Of an answer that is an error: more is no message.
const REFUSAL_MAX: usize = 64 * 1024;
/// Of a plain answer. Embeddings of a large batch have some ten megabytes.
const PLAIN_MAX: usize = 64 * 1024 * 1024;
/// Of a stream before its first content. Comments and empty deltas are small; what is larger is shown as it is.
const UNSHOWN_MAX: usize = 256 * 1024;
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
    paths: [Uri; Endpoint::ALL.len()],
    fixed: Vec<(HeaderName, HeaderValue)>,
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
        let base = url.path().trim_end_matches('/');
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
            paths: paths.map(Option::unwrap_or_default),
            fixed,
        })
    }
}

/// A refusal that may be shown: masked.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) GatewayError);

/// What became of an attempt.
pub(crate) enum Attempted {
    /// A plain answer, whole and good.
    Plain(PlainAnswer),
    /// A stream whose first content is there.
    Stream(Box<StreamBegun>),
    /// Nothing that may be shown as an answer.
    Failed { outcome: AttemptOutcome, refusal: Option<Refusal> },
}

pub(crate) struct PlainAnswer {
    pub(crate) body: Bytes,
    pub(crate) content_type: Option<HeaderValue>,
    pub(crate) upstream_id: Option<HeaderValue>,
    pub(crate) tap: Tap,
}

pub(crate) struct StreamBegun {
    pub(crate) body: PooledAnswer,
    pub(crate) tap: Tap,
    /// What came so far and was not shown.
    pub(crate) unshown: Vec<Bytes>,
    pub(crate) upstream_id: Option<HeaderValue>,
    /// The answer has ended already.
    pub(crate) ended: bool,
}

/// One attempt's circumstances.
pub(crate) struct Attempt<'a> {
    pub(crate) pool: &'a Pool,
    pub(crate) picture: &'a Picture,
    pub(crate) seat: &'a UpstreamSeat,
    pub(crate) candidate: &'a RouteCandidate,
    pub(crate) endpoint: Endpoint,
    pub(crate) ask: &'a Ask,
    pub(crate) body: &'a Bytes,
    pub(crate) skim: &'a Skim,
    /// Of the caller's, by the allow-list.
    pub(crate) passed: &'a [(HeaderName, HeaderValue)],
    pub(crate) deadlines: AttemptDeadlines,
    /// From when ticks are counted.
    pub(crate) start: Instant,
}

impl Attempt<'_> {
    pub(crate) async fn run(&self) -> Attempted {
        let Some(upstream) = self.picture.upstream(self.candidate.upstream) else {
            return Attempted::failed(AttemptOutcome::OwnFault);
        };
        let (parts, withhold) = self.body_parts();
        let request = || self.request(&parts);
        let connect = self.deadlines.connect.since(self.now());
        let (deadline, clock) = self.deadline(None);
        let sending = self.pool.send(&self.seat.origin, connect, request);
        let answer = match timeout_at(deadline, sending).await {
            Err(_) => return Attempted::failed(AttemptOutcome::TimedOut(clock)),
            Ok(Err(error)) => return Attempted::failed(outcome_of(&error)),
            Ok(Ok(answer)) => answer,
        };
        let (head, body) = answer.into_parts();
        let upstream_id =
            head.headers.get("x-request-id").or_else(|| head.headers.get("request-id")).cloned();
        if !head.status.is_success() {
            return self.refused(upstream, head.status.as_u16(), &head.headers, body).await;
        }
        let content_type = head.headers.get(CONTENT_TYPE);
        let streams = content_type.is_some_and(|value| {
            value.as_bytes().get(..17).is_some_and(|begin| begin.eq_ignore_ascii_case(b"text/event-stream"))
        });
        match (streams, self.ask.stream) {
            (true, true) => self.stream(upstream, body, withhold, upstream_id).await,
            // Events where one answer was asked for.
            (true, false) => Attempted::failed(AttemptOutcome::Garbage),
            (false, _) => self.plain(upstream, body, content_type.cloned(), upstream_id).await,
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

    /// The body for this candidate, and whether usage was asked for by us alone.
    fn body_parts(&self) -> (Vec<Bytes>, bool) {
        let mut edits: Vec<BodyEdit> = Vec::with_capacity(4);
        let model = self.candidate.upstream_model(self.picture);
        // A plain name is written without escapes.
        let plain = |text: &str| !text.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\');
        let written = match plain(model) {
            true => format!("\"{model}\""),
            false => serde_json::Value::from(model).to_string(),
        };
        if self.skim.value(self.body, BodyField::Model) != Some(written.as_bytes()) {
            edits.push(BodyEdit::Set(BodyField::Model, written.into()));
        }
        edits.extend(
            OWN_FIELDS
                .iter()
                .filter(|field| self.skim.member(**field).is_some())
                .map(|field| BodyEdit::Remove(*field)),
        );
        let mut withhold = false;
        if self.ask.stream
            && matches!(self.endpoint, Endpoint::Chat | Endpoint::Completions)
            && let Some(edit) = usage_wanted(self.body, self.skim)
        {
            edits.push(edit);
            withhold = true;
        }
        if self.ask.of_level {
            self.level_defaults(self.picture.level_defaults(self.ask.level), &mut edits);
        }
        if edits.is_empty() {
            return (vec![self.body.clone()], withhold);
        }
        (splice(self.body, self.skim, &edits), withhold)
    }

    fn level_defaults(&self, defaults: &LevelDefaults, edits: &mut Vec<BodyEdit>) {
        let absent = |field| self.skim.value(self.body, field).is_none();
        if let Some(most) = defaults.max_tokens
            && absent(BodyField::MaxTokens)
            && absent(BodyField::MaxCompletionTokens)
            && absent(BodyField::MaxOutputTokens)
        {
            let field = match self.endpoint {
                Endpoint::Responses => Some(BodyField::MaxOutputTokens),
                Endpoint::Chat | Endpoint::Completions | Endpoint::Messages => Some(BodyField::MaxTokens),
                Endpoint::Embeddings | Endpoint::CountTokens => None,
            };
            edits.extend(field.map(|field| BodyEdit::Set(field, most.to_string().into())));
        }
        if let Some(temperature) = defaults.temperature
            && absent(BodyField::Temperature)
            && !matches!(self.endpoint, Endpoint::Embeddings | Endpoint::CountTokens)
            && let Some(number) = serde_json::Number::from_f64(temperature)
        {
            edits.push(BodyEdit::Set(BodyField::Temperature, number.to_string().into()));
        }
    }

    fn request(&self, parts: &[Bytes]) -> Request<BodySlices> {
        let mut request = Request::new(BodySlices::new(parts.to_vec()));
        *request.method_mut() = Method::POST;
        let path = self.seat.paths.get(self.endpoint as usize);
        *request.uri_mut() = path.cloned().unwrap_or_default();
        let headers = request.headers_mut();
        headers.reserve(self.passed.len() + self.seat.fixed.len() + 4);
        headers.insert(HOST, self.seat.host.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        for (name, value) in self.passed {
            headers.append(name, value.clone());
        }
        if self.endpoint.api() == Api::Messages {
            headers.entry("anthropic-version").or_insert(ANTHROPIC_VERSION);
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
        let failure = read_failure(status, "", &text);
        let retry_after = retry_after(headers).or(failure.retry_after.map(Duration::from_secs));
        let outcome = match failure.class {
            FailureClass::ContextOverflow => AttemptOutcome::ContextOverflow,
            _ => AttemptOutcome::Status { status, retry_after },
        };
        let refusal = Some(refusal(upstream, status, failure, &text));
        Attempted::Failed { outcome, refusal }
    }

    async fn plain(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        content_type: Option<HeaderValue>,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let declared = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
        let mut whole = Bytes::new();
        let mut gathered: Vec<u8> = Vec::new();
        loop {
            match within(|| self.deadline(Some(self.now())), next(&mut body)).await {
                Err(clock) => return Attempted::failed(AttemptOutcome::TimedOut(clock)),
                Ok(Some(Err(_))) => return Attempted::failed(AttemptOutcome::BrokenOff),
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
                return Attempted::failed(AttemptOutcome::Garbage);
            }
        }
        let body = if gathered.is_empty() { whole } else { gathered.into() };
        let mut tap = Tap::body(self.endpoint.shape());
        tap.feed(&body, drop);
        tap.end(drop);
        let sums = tap.sums();
        if sums.error {
            return in_band(upstream, &body);
        }
        if sums.garbage > 0 {
            return Attempted::failed(AttemptOutcome::Garbage);
        }
        Attempted::Plain(PlainAnswer { body, content_type, upstream_id, tap })
    }

    async fn stream(
        &self,
        upstream: &Upstream,
        mut body: PooledAnswer,
        withhold: bool,
        upstream_id: Option<HeaderValue>,
    ) -> Attempted {
        let mut tap = Tap::stream(self.endpoint.shape(), withhold);
        let mut unshown = Vec::new();
        let mut size = 0;
        let mut last_byte = None;
        let ended = loop {
            match within(|| self.deadline(last_byte), next(&mut body)).await {
                Err(clock) => return Attempted::failed(AttemptOutcome::TimedOut(clock)),
                Ok(Some(Err(_))) => return Attempted::failed(AttemptOutcome::BrokenOff),
                Ok(Some(Ok(data))) => {
                    last_byte = Some(self.now());
                    size += data.len();
                    tap.feed(&data, |part| unshown.push(part));
                }
                Ok(None) => {
                    tap.end(|part| unshown.push(part));
                    break true;
                }
            }
            let sums = tap.sums();
            if sums.content || size > UNSHOWN_MAX {
                break false;
            }
            if sums.error {
                return in_band(upstream, &unshown.concat());
            }
        };
        let sums = tap.sums();
        if ended && !sums.content && !sums.ended {
            let outcome = match sums.garbage {
                0 => AttemptOutcome::BrokenOff,
                _ => AttemptOutcome::Garbage,
            };
            return Attempted::failed(outcome);
        }
        Attempted::Stream(Box::new(StreamBegun { body, tap, unshown, upstream_id, ended }))
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
fn refusal(upstream: &Upstream, status: u16, failure: UpstreamFailure, text: &[u8]) -> Refusal {
    let code = serde_json::from_slice::<serde_json::Value>(text).ok().and_then(|json| {
        let error = json.get("error").unwrap_or(&json);
        error
            .get("code")
            .and_then(|code| code.as_str())
            .map(|code| code.chars().take(100).collect::<String>())
    });
    let code = match failure.class {
        FailureClass::ContextOverflow => Some("context_length_exceeded".to_owned()),
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
    Refusal(GatewayError::refused(status, message, code.as_deref(), param.as_deref()))
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
