//! The gateway as its callers see it: paths, keys, bodies, answers in the caller's dialect.
//!
//! Not its job: accepting connections (`accept`), what a request may ask for (`ask`), who answers (`decide`, `trip`).
//!
//! Invariants: no request waits for anything but its caller and its provider; a request keeps the picture that it began
//! with; a caller's key is hashed and forgotten; each answer has an `x-request-id`.

mod answer;
mod body;

use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use net::pool::{Connector, Pool};

use self::answer::{HEADERS, json_response, refused, request_id_header, show, small, streaming};
use self::body::BodyReader;
use crate::accept::{RequestHandler, StopSignals};
use crate::account::{Account, Opening, UsageLedger};
use crate::ask::{Ask, AskBody, AskHead};
use crate::decide::decide;
use crate::error::{ErrorCode, GatewayError};
use crate::limit::{LeaseWish, LimitBook, LimitScope};
use crate::list;
use crate::meter::Meters;
use crate::picture::{Api, KnownConsumer, Picture};
use crate::pulse::{Pulse, PulseBook};
use crate::relay::{AwaitedStream, GatewayBody};
use crate::skim::{BodyField, Skim, SkimError};
use crate::spool::{RequestFacts, SpoolText};
use crate::tick::Tick;
use crate::trip::{Resolved, Trip};
use crate::upstream::{Endpoint, UpstreamSeat, seats};

/// Headers of a caller that reach a provider (contract §11); settings may add names.
const PASSED: [&str; 8] = [
    "content-type",
    "accept",
    "idempotency-key",
    "openai-beta",
    "anthropic-version",
    "anthropic-beta",
    "traceparent",
    "tracestate",
];
/// Names that no setting can add: they carry keys, or move the bill, or say where to go.
const NEVER: [&str; 12] = [
    "authorization",
    "x-api-key",
    "api-key",
    "cookie",
    "host",
    "forwarded",
    "x-forwarded-for",
    "baggage",
    "openai-organization",
    "openai-project",
    "content-length",
    "transfer-encoding",
];
/// Answers that are read on for providers whose manifest says `drain`, at once.
const ASIDE_MAX: usize = 256;

/// What an operator sets.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Bytes of one request's body.
    pub body_max: usize,
    /// Bytes of all bodies under way.
    pub body_memory: usize,
    /// After so long without content, a stream's connection is kept alive by comments.
    pub keepalive: Duration,
    /// From the stop until streams are cut.
    pub drain: Duration,
    /// Further headers of callers that reach providers; those that carry keys are left out.
    pub header_allow: Vec<String>,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            body_max: 32 << 20,
            body_memory: 1 << 30,
            keepalive: Duration::from_secs(15),
            // Within the five seconds of the whole process.
            drain: Duration::from_secs(4),
            header_allow: Vec::new(),
        }
    }
}

/// What the gateway reports to the rest of the house; none of it is waited for.
pub trait GatewayHooks: Send + Sync {
    /// The checks shall look at this provider again.
    fn look_again(&self, provider: Uuid);
    /// Parts of budgets are wanted.
    fn wish(&self, wishes: Vec<LeaseWish>);
}

/// A picture with the live state of what stands in it.
pub(crate) struct Scene {
    pub(crate) picture: Picture,
    pub(crate) pulse: Pulse,
    pub(crate) seats: Vec<Option<Arc<UpstreamSeat>>>,
    /// `provider/model` of each offer, for the head of answers.
    pub(crate) names: Vec<Option<HeaderValue>>,
}

/// Whole milliseconds: read several times per request, so without the division of 128 bits that `as_millis` is.
pub(crate) const fn tick(since_start: Duration) -> Tick {
    Tick(since_start.as_secs() * 1_000 + since_start.subsec_millis() as u64)
}

/// What requests share.
pub(crate) struct Edge {
    pub(crate) meters: Arc<Meters>,
    pub(crate) ledger: Arc<dyn UsageLedger>,
    pub(crate) hooks: Arc<dyn GatewayHooks>,
    pub(crate) pool: Pool,
    pub(crate) cut: CancellationToken,
    /// Tick 0.
    pub(crate) start: Instant,
    aside: Mutex<JoinSet<()>>,
}

impl Edge {
    pub(crate) fn now(&self) -> Tick {
        tick(self.start.elapsed())
    }

    pub(crate) fn at(&self, tick: Tick) -> Instant {
        self.start + Duration::from_millis(tick.0)
    }

    /// Unix seconds.
    pub(crate) fn unix(&self) -> i64 {
        micros() / 1_000_000
    }

    /// Goes on without the request that began it; given up where too many do.
    pub(crate) fn aside(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        if tasks.len() < ASIDE_MAX {
            tasks.spawn(work);
        }
    }
}

/// The data plane of this process.
pub struct Gateway {
    edge: Arc<Edge>,
    settings: GatewaySettings,
    scene: ArcSwapOption<Scene>,
    book: Mutex<PulseBook>,
    limits: LimitBook,
    bodies: BodyReader,
    passed: Vec<HeaderName>,
    drain: CancellationToken,
    ids: AtomicU64,
    chance: RandomState,
}

impl Gateway {
    /// A gateway without a picture: it is not ready until one is published.
    pub fn new(
        settings: GatewaySettings,
        connector: Arc<dyn Connector>,
        ledger: Arc<dyn UsageLedger>,
        hooks: Arc<dyn GatewayHooks>,
        meters: Arc<Meters>,
    ) -> Self {
        let more = settings.header_allow.iter().map(|name| name.to_ascii_lowercase());
        let more = more.filter(|name| !NEVER.contains(&name.as_str()));
        let passed = PASSED.into_iter().map(str::to_owned).chain(more);
        Self {
            edge: Arc::new(Edge {
                meters,
                ledger,
                hooks,
                pool: Pool::new(connector),
                cut: CancellationToken::new(),
                start: Instant::now(),
                aside: Mutex::default(),
            }),
            scene: ArcSwapOption::empty(),
            book: Mutex::default(),
            limits: LimitBook::default(),
            bodies: BodyReader::new(settings.body_max, settings.body_memory),
            passed: passed.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()).collect(),
            drain: CancellationToken::new(),
            ids: AtomicU64::new(0),
            chance: RandomState::new(),
            settings,
        }
    }

    /// From now on requests are decided by this picture; those under way keep theirs.
    pub fn publish(&self, picture: Picture) {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        let pulse = book.bind(&picture);
        let seats = seats(&picture);
        // A name that no header can carry is left out.
        let names = picture
            .offers()
            .iter()
            .map(|offer| HeaderValue::from_bytes(offer.full.as_bytes()).ok())
            .collect();
        self.scene.store(Some(Arc::new(Scene { picture, pulse, seats, names })));
    }

    /// The limits of callers: shares and leases come in here.
    pub const fn limits(&self) -> &LimitBook {
        &self.limits
    }

    /// The moment as requests count it.
    pub fn now(&self) -> Tick {
        self.edge.now()
    }

    /// There is a picture and no drain.
    pub fn is_ready(&self) -> bool {
        !self.drain.is_cancelled() && self.scene.load().is_some()
    }

    /// Readiness goes off, and no more connections are accepted.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// For [`crate::accept::accept`].
    pub fn stop_signals(&self) -> StopSignals {
        StopSignals { drain: self.drain.clone(), cut: self.edge.cut.clone(), grace: self.settings.drain }
    }

    /// What must be done every few seconds: idle connections to providers, the age of the picture, panic.
    pub fn tend(&self) {
        self.edge.pool.sweep();
        if let Some(scene) = self.scene.load_full() {
            self.edge.meters.picture_age.set((self.edge.unix() - scene.picture.taken_at).max(0) as f64);
            self.edge.meters.panic.set(i64::from(scene.pulse.panic(self.now())));
        }
    }

    /// An id of UUIDv7's form, and chance for the decision. No system call: what callers cannot guess is the hash's key.
    fn next_id(&self, at: i64) -> (Uuid, u64) {
        let count = self.ids.fetch_add(1, Ordering::Relaxed);
        let (a, b) = (self.chance.hash_one((count, at)), self.chance.hash_one((at, count, 1u8)));
        let mut random = [0; 10];
        for (slot, byte) in random.iter_mut().zip(a.to_le_bytes().into_iter().chain(b.to_le_bytes())) {
            *slot = byte;
        }
        let milliseconds = u64::try_from(at / 1_000).unwrap_or(0);
        (uuid::Builder::from_unix_timestamp_millis(milliseconds, &random).into_uuid(), b)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<GatewayBody> {
        let begun = Instant::now();
        let at = micros();
        let (id, chance) = self.next_id(at);
        let request_id = request_id(request.headers(), id);
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let route = Route::of(&head.method, path);
        let api = match route {
            Route::Ask(endpoint, _) => endpoint.api(),
            _ if head.headers.contains_key("anthropic-version") => Api::Messages,
            _ => Api::Chat,
        };
        let refuse = |error: GatewayError| {
            let operation = match route {
                Route::Ask(endpoint, _) => endpoint.word(),
                _ => "other",
            };
            self.edge.meters.ended(operation, error.status, begun.elapsed());
            refused(&error, api, &request_id, None)
        };
        let (endpoint, seed) = match route {
            Route::Live => return small(StatusCode::OK, "ok"),
            Route::Ready if self.is_ready() => return small(StatusCode::OK, "ready"),
            Route::Ready => return small(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            Route::Unknown => {
                let message = format!(
                    "there is nothing at {}; hint: the administration answers on another port",
                    path.get(..path.floor_char_boundary(100)).unwrap_or("")
                );
                return refuse(GatewayError::new(ErrorCode::NotFound, message));
            }
            Route::Method => {
                return refuse(GatewayError::new(
                    ErrorCode::MethodNotAllowed,
                    "this path has another method",
                ));
            }
            Route::Models | Route::Model => {
                let Some(scene) = self.scene.load_full() else { return refuse(no_picture()) };
                let consumer = match caller(&scene.picture, &head.headers, self.edge.unix()) {
                    Ok(consumer) => consumer,
                    Err(error) => return refuse(error),
                };
                let anthropic = api == Api::Messages;
                let listed = match route {
                    Route::Models => Some(list::models(&scene.picture, consumer, anthropic)),
                    _ => {
                        let id = path.strip_prefix("/v1/models/").unwrap_or("");
                        let id = percent_decoded(id);
                        list::model(&scene.picture, consumer, &id, anthropic)
                    }
                };
                return match listed {
                    Some(json) => {
                        self.edge.meters.ended("models", 200, begun.elapsed());
                        let mut response = json_response(StatusCode::OK, json.to_string().into());
                        request_id_header(response.headers_mut(), &request_id);
                        response
                    }
                    None => refuse(GatewayError::new(
                        ErrorCode::ModelNotFound,
                        "there is no such model; hint: GET /v1/models lists what there is",
                    )),
                };
            }
            Route::Ask(endpoint, seed) => (endpoint, seed),
        };
        if self.drain.is_cancelled() {
            return refuse(GatewayError::new(ErrorCode::ShuttingDown, "the gateway is shutting down"));
        }
        let Some(scene) = self.scene.load_full() else { return refuse(no_picture()) };
        let consumer = match caller(&scene.picture, &head.headers, at / 1_000_000) {
            Ok(consumer) => consumer.at,
            Err(error) => return refuse(error),
        };
        let read = match self.bodies.read(body).await {
            Ok(read) => read,
            Err(error) => return refuse(error),
        };
        let arrived = Arrived { id, at, chance, begun, request_id: request_id.clone(), endpoint, consumer };
        match self.prepare(arrived, scene, &head.headers, read) {
            Ok(trip) => self.go(trip, api, seed, request_id).await,
            Err(error) => refuse(error),
        }
    }

    /// From a request that was read to one that may leave: who calls, what is asked, whether it is let in, who answers.
    /// No future of it: its values lie on the stack and in one box.
    fn prepare(
        &self,
        arrived: Arrived,
        scene: Arc<Scene>,
        headers: &HeaderMap,
        (body, permit): (Bytes, Option<OwnedSemaphorePermit>),
    ) -> Result<Box<Trip>, GatewayError> {
        let Arrived { id, at, chance, begun, request_id, endpoint, consumer } = arrived;
        let now = self.edge.now();
        let Some(consumer) = scene.picture.consumers().get(consumer as usize) else {
            return Err(no_picture());
        };
        let skim = Skim::of(&body).map_err(skim_error)?;
        let (ask_head, passed) = self.sorted(headers);
        let ask = asked(&scene.picture, Some(consumer), endpoint, &body, &skim, &ask_head, chance)?;
        let mut scopes = vec![(LimitScope::Consumer(&consumer.name), &consumer.limits)];
        if let Some(tier) = ask.tier.as_deref()
            && let Some(spec) = scene.picture.tier(tier)
        {
            let user = ask.user.as_deref().filter(|_| ask.user_trusted).unwrap_or(&consumer.name);
            scopes.push((LimitScope::User { tier, consumer: &consumer.name, user }, spec));
        }
        let admission = self.limits.enter(&scopes, now).inspect_err(|error| {
            let limit = error.param.as_deref().unwrap_or("other");
            self.edge.meters.limited.with_label_values(&[limit]).inc();
        })?;
        let decision = decide(&scene.picture, &ask, &scene.pulse, now);
        if let Some(error) = decision.refusal(&scene.picture, &ask, now) {
            return Err(error);
        }
        let account = Account::new(Opening {
            meters: Arc::clone(&self.edge.meters),
            facts: RequestFacts {
                id,
                at,
                consumer: SpoolText::new(consumer.name.to_string()),
                user_id: SpoolText::new(ask.user.as_deref().unwrap_or("").to_owned()),
                user_tier: SpoolText::new(ask.tier.as_deref().unwrap_or("").to_owned()),
                request_id: SpoolText::new(String::from(&*request_id)),
                power_level: SpoolText::new(if ask.of_level { ask.level.as_str() } else { "" }),
                operation: SpoolText::new(endpoint.word()),
                route: SpoolText::new(ask.route.text()),
                seed: decision.seed,
                ..RequestFacts::default()
            },
            shape: endpoint.shape(),
            operation: endpoint.word(),
            streamed: ask.stream,
            input_estimate: ask.input_estimate,
            input_text: ask.only_text.then_some(ask.text_bytes),
            begun,
            start: self.edge.start,
            admission: Some(admission),
        });
        Ok(Box::new(Trip {
            edge: Arc::clone(&self.edge),
            passed,
            scene,
            endpoint,
            ask,
            decision,
            body,
            skim,
            account,
            request_id,
            _permit: permit,
            begun,
        }))
    }

    /// Goes over a caller's headers once: what says what is asked, and what travels on.
    fn sorted<'a>(&self, headers: &'a HeaderMap) -> (AskHead<'a>, Vec<(HeaderName, HeaderValue)>) {
        let mut said = AskHead::default();
        let mut passed = Vec::with_capacity(4);
        for (name, value) in headers {
            let slot = match name.as_str() {
                "x-power-level" => &mut said.power_level,
                "x-task-type" => &mut said.task_type,
                "x-session-id" => &mut said.session_id,
                "x-session-affinity" => &mut said.session_affinity,
                "x-user-id" => &mut said.user_id,
                "x-user-tier" => &mut said.user_tier,
                _ => {
                    if self.passed.contains(name) {
                        passed.push((name.clone(), value.clone()));
                    }
                    continue;
                }
            };
            // Of two the first counts.
            *slot = slot.or(value.to_str().ok());
        }
        (said, passed)
    }

    /// Waits for the beginning of the answer; a stream that is long in coming is promised and kept alive.
    async fn go(&self, trip: Box<Trip>, api: Api, seed: bool, request_id: Box<str>) -> Response<GatewayBody> {
        let _flying = Flying::new(&self.edge.meters);
        let streams = trip.ask.stream;
        let mut running: Pin<Box<dyn Future<Output = Resolved> + Send>> = Box::pin(trip.run());
        let resolved = {
            let patience = async {
                match streams {
                    true => tokio::time::sleep(self.settings.keepalive).await,
                    false => std::future::pending().await,
                }
            };
            let mut patience = pin!(patience);
            let mut cut = pin!(self.edge.cut.cancelled());
            tokio::select! {
                biased;
                resolved = running.as_mut() => Some(resolved),
                () = patience.as_mut() => None,
                () = cut.as_mut() => {
                    let error = GatewayError::new(ErrorCode::ShuttingDown, "the gateway is shutting down");
                    return refused(&error, api, &request_id, None);
                }
            }
        };
        let Some(resolved) = resolved else {
            let awaited =
                AwaitedStream::new(running, self.settings.keepalive, &self.edge, api, request_id.clone());
            return streaming(GatewayBody::Awaited(Box::new(awaited)), &request_id, None, seed);
        };
        match resolved {
            Resolved::Plain(body, content_type, shown) => {
                let mut response = Response::new(GatewayBody::Whole(body));
                let headers = response.headers_mut();
                headers.reserve(HEADERS);
                headers.insert(
                    CONTENT_TYPE,
                    content_type.unwrap_or(HeaderValue::from_static("application/json")),
                );
                request_id_header(headers, &request_id);
                show(headers, *shown, seed);
                response
            }
            Resolved::Stream(relay, shown) => {
                streaming(GatewayBody::Stream(relay), &request_id, Some(shown), seed)
            }
            Resolved::Failed(error, shown) => refused(&error, api, &request_id, shown),
        }
    }
}

impl RequestHandler for Gateway {
    type Body = GatewayBody;

    async fn handle(&self, request: Request<Incoming>) -> Response<GatewayBody> {
        self.answer(request).await
    }
}

/// Counts a request that is under way.
struct Flying<'a>(&'a Meters);

impl<'a> Flying<'a> {
    fn new(meters: &'a Meters) -> Self {
        meters.in_flight.inc();
        Self(meters)
    }
}

impl Drop for Flying<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

/// A request as it came.
struct Arrived {
    id: Uuid,
    /// Microseconds since 1970.
    at: i64,
    chance: u64,
    begun: Instant,
    request_id: Box<str>,
    endpoint: Endpoint,
    /// Which of the picture's consumers calls.
    consumer: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    /// The flag: the seed's own path.
    Ask(Endpoint, bool),
    Models,
    Model,
    Live,
    Ready,
    Method,
    Unknown,
}

impl Route {
    fn of(method: &Method, path: &str) -> Self {
        let (route, wanted) = match path {
            "/v1/chat/completions" => (Self::Ask(Endpoint::Chat, false), Method::POST),
            "/api/v1/llm/chat/completions" => (Self::Ask(Endpoint::Chat, true), Method::POST),
            "/v1/completions" => (Self::Ask(Endpoint::Completions, false), Method::POST),
            "/v1/embeddings" => (Self::Ask(Endpoint::Embeddings, false), Method::POST),
            "/v1/responses" => (Self::Ask(Endpoint::Responses, false), Method::POST),
            "/v1/messages" => (Self::Ask(Endpoint::Messages, false), Method::POST),
            "/v1/messages/count_tokens" => (Self::Ask(Endpoint::CountTokens, false), Method::POST),
            "/v1/models" => (Self::Models, Method::GET),
            "/livez" => (Self::Live, Method::GET),
            "/readyz" => (Self::Ready, Method::GET),
            _ if path.starts_with("/v1/models/") => (Self::Model, Method::GET),
            _ => return Self::Unknown,
        };
        if *method == wanted { route } else { Self::Method }
    }
}

/// Microseconds since 1970.
fn micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The caller's own id if it is a sane one, else ours.
fn request_id(headers: &HeaderMap, id: Uuid) -> Box<str> {
    let own = headers
        .get("x-request-id")
        .map(HeaderValue::as_bytes)
        .filter(|own| (1..=128).contains(&own.len()) && own.iter().all(u8::is_ascii_graphic));
    match own.and_then(|own| std::str::from_utf8(own).ok()) {
        Some(own) => own.into(),
        None => (&*id.as_hyphenated().encode_lower(&mut [0; uuid::fmt::Hyphenated::LENGTH])).into(),
    }
}

/// Who calls, by the hash of the key.
fn caller<'a>(
    picture: &'a Picture,
    headers: &HeaderMap,
    unix: i64,
) -> Result<&'a KnownConsumer, GatewayError> {
    let bearer = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).and_then(|value| {
        let (scheme, key) = value.split_at_checked(7)?;
        scheme.eq_ignore_ascii_case(b"bearer ").then_some(key.trim_ascii())
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(HeaderValue::as_bytes));
    let wrong = |message: &str| Err(GatewayError::new(ErrorCode::InvalidApiKey, message));
    let Some(key) = key.filter(|key| !key.is_empty()) else {
        return wrong("no key; hint: send `Authorization: Bearer …` or `x-api-key`");
    };
    let hash: [u8; 32] = Sha256::digest(key).into();
    match picture.consumer(&hash, unix) {
        Some(consumer) => Ok(consumer),
        None => wrong("this key is not known, or expired"),
    }
}

/// What a request with this body asks for, as the handler reads it: for who wants to know who would answer it.
///
/// # Errors
/// What the caller would be answered.
pub fn asked_by_body(
    picture: &Picture,
    consumer: Option<&KnownConsumer>,
    api: Api,
    body: &[u8],
    head: &AskHead<'_>,
    chance: u64,
) -> Result<Ask, GatewayError> {
    let skim = Skim::of(body).map_err(skim_error)?;
    let endpoint = Endpoint::ALL.into_iter().find(|endpoint| endpoint.api() == api).unwrap_or(Endpoint::Chat);
    asked(picture, consumer, endpoint, body, &skim, head, chance)
}

/// What the request asks for.
fn asked(
    picture: &Picture,
    consumer: Option<&KnownConsumer>,
    endpoint: Endpoint,
    body: &[u8],
    skim: &Skim,
    head: &AskHead<'_>,
    chance: u64,
) -> Result<Ask, GatewayError> {
    let text = |field| skim.text(body, field).map_err(skim_error);
    if endpoint == Endpoint::Responses {
        for field in [BodyField::PreviousResponseId, BodyField::Conversation] {
            if skim.value(body, field).is_some() {
                return Err(unsupported(field));
            }
        }
        if skim.flag(body, BodyField::Background).map_err(skim_error)? {
            return Err(unsupported(BodyField::Background));
        }
    }
    let model = text(BodyField::Model)?;
    let power_level = text(BodyField::PowerLevel)?;
    let task_type = text(BodyField::TaskType)?;
    let prompt_cache_key = text(BodyField::PromptCacheKey)?;
    let session_id = text(BodyField::SessionId)?;
    let user = match endpoint.api() {
        Api::Messages => skim.metadata_user(body),
        _ => text(BodyField::User)?,
    };
    let ask_body = AskBody {
        model: model.as_deref(),
        power_level: power_level.as_deref(),
        task_type: task_type.as_deref(),
        privacy_required: skim.flag(body, BodyField::PrivacyRequired).map_err(skim_error)?,
        prompt_cache_key: prompt_cache_key.as_deref(),
        session_id: session_id.as_deref(),
        user: user.as_deref(),
        stream: skim.flag(body, BodyField::Stream).map_err(skim_error)?
            && !matches!(endpoint, Endpoint::Embeddings | Endpoint::CountTokens),
        max_tokens: skim.max_tokens(body).map_err(skim_error)?,
        n: skim.count(body, BodyField::N).map_err(skim_error)?.unwrap_or(1),
        text_bytes: skim.text_bytes(),
        media_parts: skim.media_parts,
    };
    Ask::new(picture, consumer, endpoint.api(), &ask_body, head, chance)
}

fn unsupported(field: BodyField) -> GatewayError {
    let message = format!(
        "`{}` needs what another request left behind, and this gateway keeps nothing; hint: send the whole input",
        field.as_str()
    );
    GatewayError::new(ErrorCode::UnsupportedParameter, message).param(field.as_str())
}

fn skim_error(error: SkimError) -> GatewayError {
    let message = error.to_string();
    match error {
        SkimError::Json { .. } | SkimError::NoObject => GatewayError::new(ErrorCode::InvalidJson, message),
        SkimError::Duplicate(field) => GatewayError::new(ErrorCode::DuplicateField, message).param(field),
        SkimError::Type { field, .. } => {
            GatewayError::new(ErrorCode::InvalidRequest, message).param(field.as_str())
        }
    }
}

fn no_picture() -> GatewayError {
    GatewayError::new(ErrorCode::NoUpstream, "the gateway has not read its configuration yet")
        .retry_after(Duration::from_secs(1))
}

/// A path's segment as it was meant; what is no encoding stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let digits = behind.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = behind.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = behind;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
