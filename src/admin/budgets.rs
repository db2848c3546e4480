//! `GET /api/v1/budgets`: budgets with what is left, and other limits of callers.

use axum::{extract::State, response::Response};
use chrono::Utc;

use super::{AdminShared, error::ApiError, list, openapi::ReadErrors};
use crate::dataplane::budgets::{self, BudgetAnswer};

/// Budgets of consumers and of users of tiers with what is left of them, and what else limits callers.
///
/// A budget counts as used where a gateway has spent, reserved, or taken a part of it for its next requests.
#[utoipa::path(get, path = "/api/v1/budgets", tag = "usage",
    responses((status = 200, description = "Budgets and limits", body = BudgetAnswer), ReadErrors))]
pub(super) async fn all(State(shared): State<AdminShared>) -> Result<Response, ApiError> {
    let answer = budgets::read(&shared.store, Utc::now()).await?;
    Ok(list::json(serde_json::to_vec(&answer).map_err(|_| ApiError::Internal)?.into()))
}
