//! The HTTP server: metrics, the two health endpoints of the daemon itself, and the admin API.
//!
//! One file per resource; `server`, `tls` and `listen` are the sockets below, `guard`, `auth` and `extract` what
//! holds for all requests. Invariants: what the catalog holds is answered from memory, and waits for PostgreSQL no
//! more than `/metrics` does; everything below `/api/v1` but its own description wants a token or, below `/api/v1/llm/`, a session (`llm`); every answer
//! carries the security headers, every failure the same JSON.

#![allow(unused_qualifications, reason = "the derives of utoipa write paths in full")]

mod actions;
mod auth;
mod budgets;
mod error;
mod event_stream;
mod events;
mod extract;
mod guard;
pub mod hooks;
mod key_test;
mod keys;
mod list;
mod llm;
mod models;
mod openapi;
mod page;
mod providers;
mod public;
mod routes;
mod status;
mod usage;

use std::{
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, middleware};
use tokio::{net::TcpListener, time::Instant};
use utoipa::OpenApi as _;
use utoipa_axum::{router::OpenApiRouter, routes};

use self::error::ApiError;
pub use crate::admin::{
    auth::{Fresh, TokenError, Tokens, made_token},
    event_stream::Tail,
    guard::Hosts,
    key_test::Budget,
    llm::PageAccess,
    public::metrics_alone,
};
use crate::{
    checks::Checks,
    metrics::Metrics,
    process::lifecycle::Supervisor,
    secret::Keyring,
    source::Wake,
    status::{Latest, Snapshot},
    store::Store,
};
use net::{
    probe::Prober,
    server::{ServerLimits, Tls},
};

/// What the daemon reports about itself.
#[derive(Default)]
pub struct Readiness {
    /// The database answered the last time it was asked, and is migrated.
    pub database: AtomicBool,
    /// The first reconcile is done, by this daemon or, where another one leads, by that one.
    pub reconciled: AtomicBool,
    /// Why the database cannot be used, where more is known than that it does not answer.
    trouble: Mutex<Option<&'static str>>,
    /// When the pass under way began.
    pass: Mutex<Option<Instant>>,
}

/// The daemon asks the database at least every 2.5 s, and a pass takes about a second for 10,000 providers: what takes
/// longer than this is not going to end well, and the caller should ask another daemon.
const PATIENCE: Duration = Duration::from_secs(15);

impl Readiness {
    /// Notes why the database cannot be used.
    pub fn trouble(&self, cause: &'static str) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(cause);
    }

    pub fn pass_began(&self) {
        *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    pub fn pass_ended(&self) {
        *self.pass.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// What is waited for; `None`: ready. `silence`: how long ago the database answered last.
    fn waiting(&self, silence: Duration) -> Option<&'static str> {
        let began = *self.pass.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.database.load(Ordering::Relaxed) {
            let trouble = *self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            Some(trouble.unwrap_or("the database is not reachable"))
        } else if silence > PATIENCE {
            Some("the database has not answered for more than 15 s")
        } else if began.is_some_and(|began| began.elapsed() > PATIENCE) {
            Some("a pass has been waiting for the database for more than 15 s")
        } else if !self.reconciled.load(Ordering::Relaxed) {
            Some("the first reconcile is not done")
        } else {
            None
        }
    }
}

/// What exists once the database was reached for the first time.
pub struct AdminLive {
    pub wake: Wake,
    pub keyring: Arc<Keyring>,
}

/// What handlers share.
#[derive(Clone)]
pub struct AdminShared {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// The webhook of the Git repository, where there is one.
    pub hook: Option<Arc<hooks::Hook>>,
    /// Set once the checks run.
    pub checked: Arc<OnceLock<ShownChecks>>,
    /// Whether the series that carry a provider's name are shown.
    pub per_provider: bool,
    pub tokens: Tokens,
    pub hosts: Hosts,
    pub store: Store,
    pub latest: Latest,
    pub live: Arc<OnceLock<AdminLive>>,
    pub tail: Tail,
    pub prober: Arc<Prober>,
    pub budget: Arc<Budget>,
    /// Who may use the pages' calls without a token.
    pub pages: Arc<PageAccess>,
    pub tls: Option<Tls>,
    /// How the gateway decides.
    pub gateway: crate::config::Gateway,
}

/// The checks, as far as they are shown.
pub struct ShownChecks {
    pub checks: Checks,
    /// Turns under way.
    pub in_flight: Arc<AtomicUsize>,
}

impl AdminShared {
    fn snapshot(&self) -> Result<Arc<Snapshot>, ApiError> {
        self.latest.borrow().clone().ok_or(ApiError::Unavailable("the database was not read yet"))
    }

    fn live(&self) -> Result<&AdminLive, ApiError> {
        self.live.get().ok_or(ApiError::Unavailable("the start-up is not over"))
    }
}

/// Everything that is served.
pub fn router(shared: AdminShared) -> Router {
    let (admin, mut document) = admin().split_for_parts();
    let (pages, their_document) = llm::router().split_for_parts();
    document.merge(their_document);
    let pages = pages.route_layer(middleware::from_fn_with_state(shared.clone(), llm::authorize));
    let admin = admin.route_layer(middleware::from_fn_with_state(shared.clone(), auth::authorize));
    Router::new()
        .merge(public::router())
        .merge(page::router())
        .merge(hooks::router(shared.hook.clone()))
        .merge(admin)
        .merge(pages)
        .merge(openapi::serve(&document))
        .fallback(async || ApiError::NoSuchPath)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(middleware::from_fn_with_state(shared.clone(), guard::guard))
        .with_state(shared)
}

fn admin() -> OpenApiRouter<AdminShared> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(status::show))
        .routes(routes!(providers::all))
        .routes(routes!(providers::one))
        .routes(routes!(models::all))
        .routes(routes!(routes::all))
        .routes(routes!(routes::explain))
        .routes(routes!(events::all))
        .routes(routes!(usage::sums))
        .routes(routes!(budgets::all))
        .routes(routes!(actions::sync))
        .routes(routes!(actions::suspend))
        .routes(routes!(actions::resume))
        .routes(routes!(actions::check))
}

/// Serves until the supervisor stops; requests under way are finished.
pub async fn serve(listener: TcpListener, shared: AdminShared, supervisor: Supervisor) {
    let tls = shared.tls.clone();
    let stop = supervisor.token();
    let spawn = move |connection| supervisor.spawn_brief("http-connection", connection);
    net::server::serve(listener, tls, router(shared), ServerLimits::default(), stop, spawn).await;
}
