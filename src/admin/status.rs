//! `GET /api/v1/status`: how everything is.

use axum::{
    extract::State,
    http::HeaderMap,
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};

use net::server::Tls;

use crate::{
    admin::{AdminShared, error::ApiError, list, openapi::ReadErrors},
    status::view::{Attention, AttentionKind, StatusView},
};

/// How everything is: synced or not, counts, what wants attention.
///
/// Answers also before the database does; `checked_at` is `null` then.
#[utoipa::path(get, path = "/api/v1/status", tag = "catalog",
    responses((status = 200, description = "How everything is", body = StatusView), (status = 304, description = "Unchanged"), ReadErrors))]
pub(super) async fn show(State(shared): State<AdminShared>, headers: HeaderMap) -> Response {
    let latest = shared.latest.borrow().clone();
    let mut status = match &latest {
        Some(snapshot) => snapshot.status.clone(),
        None => StatusView { version: env!("CARGO_PKG_VERSION").to_owned(), ..StatusView::default() },
    };
    status.database = shared.readiness.database.load(std::sync::atomic::Ordering::Relaxed);
    status.leader = shared.metrics.leader.get() == 1;
    if let Some(problem) = shared.tls.as_ref().and_then(Tls::problem) {
        let message = format!("the certificate in use is not the one of the files: {problem}");
        status.attention.push(Attention {
            provider: None,
            kind: AttentionKind::Invalid,
            message,
            command: None,
        });
    }
    // What cannot be read now is not known to be in step.
    status.synced &= status.database;
    let at = status.checked_at.take();
    let Ok(without_time) = serde_json::to_vec(&status) else { return ApiError::Internal.into_response() };
    status.checked_at = at;
    let digest: String =
        Sha256::digest(&without_time).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    list::tagged(&headers, &digest, || serde_json::to_vec(&status).unwrap_or_default().into())
}
