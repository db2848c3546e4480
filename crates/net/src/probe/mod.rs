//! The thin part that opens sockets: one request, measured phase by phase and bounded in every direction.
//!
//! Redirects are not followed, bodies are not decompressed, connections are not kept. Not its job: what to ask
//! and what an answer means (`provider`), or when (the scheduler).
//! Invariant: `send` returns within the total limit whatever the other side does, holds at most the body limit
//! in memory, connects to no address that the egress policy refuses, and blames ourselves for our own failures.

mod drive;
mod lists;

pub use drive::{FinishedCheck, HealthCheck, KeyTested, ListFailure};
pub use lists::Lister;

use std::{future::Future as _, pin::pin, task::Poll};

use chrono::{DateTime, Utc};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use url::Url;

use crate::{
    connect::{self, Dialer, NetConfig, PhaseLimits, Phases, SetupError, connect},
    fault::ProbeError,
};
use provider::{Failure, Method, Reply, Request, Value};

/// Bytes of a reply's head; real ones stay below 8 KiB.
const MAX_HEAD: usize = 64 * 1024;
/// Header lines that are kept.
const MAX_HEADERS: usize = 128;

/// A reply with what was learned on the way.
#[derive(Debug, Clone)]
pub struct ProbeReply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub truncated: bool,
    /// When the server's certificate expires.
    pub tls_not_after: Option<DateTime<Utc>>,
    pub phases: Phases,
}

impl ProbeReply {
    /// An answer whose body is still to come.
    fn begun(status: u16, headers: &HeaderMap) -> Self {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = headers.iter().take(MAX_HEADERS);
        Self {
            status,
            headers: headers.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
            body: Vec::new(),
            truncated: false,
            tls_not_after: None,
            phases: Phases::default(),
        }
    }

    /// Keeps a piece of the body up to the request's limit; `false` once that is passed, and then reading ends.
    fn keep(&mut self, piece: &[u8], max_body: usize) -> bool {
        let room = max_body.saturating_sub(self.body.len());
        self.body.extend_from_slice(piece.get(..room.min(piece.len())).unwrap_or_default());
        self.truncated = piece.len() > room;
        !self.truncated
    }

    pub fn reply(&self) -> Reply<'_> {
        Reply { status: self.status, headers: &self.headers, body: &self.body, truncated: self.truncated }
    }
}

/// Sends requests. Cheap to share; keeps no connections.
pub struct Prober {
    dialer: Dialer,
}

impl Prober {
    /// # Errors
    /// As [`Dialer::new`].
    pub fn new(config: NetConfig) -> Result<Self, SetupError> {
        Ok(Self { dialer: Dialer::new(config)? })
    }

    /// Opens a connection and closes it again: does the host answer at all?
    pub async fn reach(&self, url: &Url, limits: PhaseLimits) -> Result<Phases, ProbeError> {
        let start = Instant::now();
        let mut phases = Phases::default();
        connect(&self.dialer, url, start, limits, &mut phases).await?;
        phases.total = start.elapsed();
        Ok(phases)
    }

    /// Sends one request and reads its reply, within the limits.
    pub async fn send(&self, request: &Request, limits: PhaseLimits) -> Result<ProbeReply, ProbeError> {
        let start = Instant::now();
        let deadline = start + limits.total;
        let mut phases = Phases::default();
        let line = connect(&self.dialer, &request.url, start, limits, &mut phases).await?;
        let tls_not_after = line.tls_not_after;
        let sent = Instant::now();
        let exchange = async {
            match line.stream {
                connect::Stream::Plain(stream) => exchange(stream, request, &mut phases).await,
                connect::Stream::Tls(stream) => exchange(*stream, request, &mut phases).await,
            }
        };
        let mut answer = match timeout_at(deadline, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                let waited = sent.elapsed().as_millis();
                return Err(ProbeError::failed(
                    Failure::Timeout,
                    format!("no complete answer within {} ms of sending the request", waited),
                ));
            }
        };
        phases.total = start.elapsed();
        answer.phases = phases;
        answer.tls_not_after = tls_not_after;
        Ok(answer)
    }
}

/// One HTTP/1.1 exchange. The connection is polled here, beside the exchange, so that dropping one ends both.
async fn exchange<S>(stream: S, request: &Request, phases: &mut Phases) -> Result<ProbeReply, ProbeError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let wire = to_wire(request)?;
    let began = Instant::now();
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(MAX_HEAD)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken(&error))?;
    let mut connection = pin!(connection);
    let mut exchange = pin!(async {
        let response = sender.send_request(wire).await.map_err(|error| broken(&error))?;
        phases.first_byte = began.elapsed();
        let answer = read(response, request.max_body).await;
        phases.body = began.elapsed().saturating_sub(phases.first_byte);
        answer
    });
    let mut closed = false;
    std::future::poll_fn(|context| {
        if let Poll::Ready(answer) = exchange.as_mut().poll(context) {
            return Poll::Ready(answer);
        }
        if !closed && connection.as_mut().poll(context).is_ready() {
            // What it delivered before it closed still waits in the exchange.
            closed = true;
            return exchange.as_mut().poll(context);
        }
        Poll::Pending
    })
    .await
}

fn to_wire(request: &Request) -> Result<hyper::Request<Full<Bytes>>, ProbeError> {
    let mut target = request.url.path().to_owned();
    if let Some(query) = request.url.query() {
        target.push('?');
        target.push_str(query);
    }
    let body = request.body.clone().unwrap_or_default();
    let mut wire = hyper::Request::builder()
        .method(method(request))
        .uri(target)
        .header(hyper::header::HOST, authority(&request.url).ok_or_else(unusable)?)
        .header(hyper::header::CONNECTION, "close")
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| unusable())?;
    wire.headers_mut().extend(headers(request)?);
    Ok(wire)
}

fn unusable() -> ProbeError {
    ProbeError::failed(Failure::Connect, "the request cannot be written down\nhint: check base_url")
}

const fn method(request: &Request) -> hyper::Method {
    match request.method {
        Method::Get => hyper::Method::GET,
        Method::Post => hyper::Method::POST,
    }
}

/// The headers of a request as both clients send them; keys are marked as sensitive.
fn headers(request: &Request) -> Result<HeaderMap, ProbeError> {
    let mut headers = HeaderMap::new();
    // Bodies are read as they come; nothing is unpacked, so nothing can explode.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    for (name, value) in &request.headers {
        let mut found = match value {
            Value::Plain(text) => HeaderValue::from_str(text),
            Value::Secret(secret) => HeaderValue::from_str(secret.expose_secret()),
        }
        .map_err(|_| unusable())?;
        found.set_sensitive(matches!(value, Value::Secret(_)));
        headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| unusable())?, found);
    }
    Ok(headers)
}

/// `host`, or `host:port` where the port is not the scheme's own.
fn authority(url: &Url) -> Option<String> {
    let host = url.host_str()?;
    Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
}

async fn read(response: hyper::Response<Incoming>, max_body: usize) -> Result<ProbeReply, ProbeError> {
    let (head, mut body) = response.into_parts();
    let mut answer = ProbeReply::begun(head.status.as_u16(), &head.headers);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if !answer.keep(&data, max_body) {
            break;
        }
    }
    Ok(answer)
}

/// What went wrong with HTTP itself.
fn broken(error: &hyper::Error) -> ProbeError {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if let Some(io) = cause.downcast_ref::<std::io::Error>() {
        if crate::fault::is_local(io) {
            return ProbeError::local(format!("our own side failed while talking: {io}"));
        }
        return ProbeError::failed(
            Failure::Connect,
            format!("the connection broke before the answer was complete: {io}"),
        );
    }
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return ProbeError::failed(
            Failure::Connect,
            "the connection was closed before the answer was complete",
        );
    }
    ProbeError::failed(Failure::Body, format!("the answer is not proper HTTP: {cause}"))
}
