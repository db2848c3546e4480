//! The public endpoints: `/metrics`, `/livez`, `/readyz`.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Router,
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
    routing::get,
};

use super::{AdminShared, error::ApiError};
use crate::metrics::Metrics;

pub(super) fn router() -> Router<AdminShared> {
    Router::new().route("/metrics", get(metrics)).route("/livez", get(livez)).route("/readyz", get(readyz))
}

async fn metrics(State(shared): State<AdminShared>) -> Response {
    let checked = shared.checked.get();
    if let Some(checked) = checked {
        let count = checked.in_flight.load(Ordering::Relaxed);
        shared.metrics.probes_in_flight.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    if let Some(snapshot) = shared.latest.borrow().as_ref() {
        let cells = snapshot.status.cells;
        let working = cells.total.saturating_sub(cells.without_model + cells.unproven);
        let states =
            [("working", working), ("unproven", cells.unproven), ("without_model", cells.without_model)];
        for (state, count) in states {
            shared
                .metrics
                .route_cells
                .with_label_values(&[state])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
    match shared.metrics.encode() {
        Ok(mut text) => {
            if let Some(checked) = checked {
                checked.checks.encode(&mut text, shared.per_provider);
            }
            exposition(text)
        }
        Err(_) => ApiError::Internal.into_response(),
    }
}

/// `/metrics` and `/livez` alone, for a process without an admin API.
pub fn metrics_alone(metrics: Arc<Metrics>) -> Router {
    let show = async |State(metrics): State<Arc<Metrics>>| match metrics.encode() {
        Ok(text) => exposition(text),
        Err(_) => ApiError::Internal.into_response(),
    };
    Router::new().route("/metrics", get(show)).route("/livez", get(livez)).with_state(metrics)
}

fn exposition(text: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn livez() -> &'static str {
    "ok\n"
}

async fn readyz(State(shared): State<AdminShared>) -> Response {
    match shared.readiness.waiting(shared.store.silence()) {
        None => "ok\n".into_response(),
        Some(waiting) => ApiError::NotReady(waiting).into_response(),
    }
}
