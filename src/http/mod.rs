//! The HTTP server: metrics and the two health endpoints of the daemon itself.
//!
//! Answers come from memory; no request waits for PostgreSQL.

pub mod hooks;

use std::{
    future::IntoFuture as _,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{checks::Checks, metrics::Metrics};

/// How long requests under way may take after the stop.
const DRAIN: Duration = Duration::from_secs(2);

/// What the daemon tells about itself.
#[derive(Default)]
pub struct Readiness {
    /// The database answered the last time it was asked, and is migrated.
    pub database: AtomicBool,
    /// The first reconcile is done, by this daemon or, where another one leads, by that one.
    pub reconciled: AtomicBool,
}

/// What handlers share.
#[derive(Clone)]
pub struct Shared {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// The webhook of the Git repository, where there is one.
    pub hook: Option<Arc<hooks::Hook>>,
    /// Set once the checks run.
    pub checked: Arc<OnceLock<Checked>>,
    /// Whether the series that carry a provider's name are shown.
    pub per_provider: bool,
}

/// The checks, as far as they are shown.
pub struct Checked {
    pub checks: Checks,
    /// Turns under way.
    pub in_flight: Arc<AtomicUsize>,
}

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot listen on {address}\nhint: is another providerd running? set `server.listen`")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("the HTTP server failed")]
    Serve(#[from] std::io::Error),
}

/// Opens the socket, so that a mistake in `server.listen` is reported at the start.
///
/// # Errors
/// [`HttpError::Listen`].
pub async fn bind(address: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(address).await.map_err(|source| HttpError::Listen { address, source })
}

/// Serves until `stop`; requests under way are finished.
///
/// # Errors
/// [`HttpError::Serve`] if the socket fails.
pub async fn serve(listener: TcpListener, shared: Shared, stop: CancellationToken) -> Result<(), HttpError> {
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .merge(hooks::router(shared.hook.clone()))
        .fallback(not_found)
        .with_state(shared);
    let serving =
        axum::serve(listener, app).with_graceful_shutdown(stop.clone().cancelled_owned()).into_future();
    let patience = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = serving => Ok(ended?),
        // Somebody who reads his answer byte by byte does not hold up the stop.
        () = patience => Ok(()),
    }
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let checked = shared.checked.get();
    if let Some(checked) = checked {
        let count = checked.in_flight.load(Ordering::Relaxed);
        shared.metrics.probes_in_flight.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    match shared.metrics.encode() {
        Ok(mut text) => {
            if let Some(checked) = checked {
                checked.checks.encode(&mut text, shared.per_provider);
            }
            ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
        }
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the metrics could not be encoded"),
    }
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<Shared>) -> Response {
    let readiness = &shared.readiness;
    let waiting = if !readiness.database.load(Ordering::Relaxed) {
        "the database is not reachable"
    } else if !readiness.reconciled.load(Ordering::Relaxed) {
        "the first reconcile is not done"
    } else {
        return "ok\n".into_response();
    };
    error(StatusCode::SERVICE_UNAVAILABLE, "not-ready", waiting)
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "not-found", "there is nothing at this path")
}

fn error(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}
