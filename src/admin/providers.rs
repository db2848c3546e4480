//! `GET /api/v1/providers` and `/providers/{name}`: every provider at a glance, and one with everything about it.

use std::collections::BTreeMap;

use axum::{
    extract::{Path, State, rejection::PathRejection},
    http::HeaderMap,
    response::Response,
};
use chrono::{DateTime, TimeDelta, Utc};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use utoipa::IntoParams;
use uuid::Uuid;

use provider::rollup::Rollup;

use crate::{
    admin::{
        AdminShared,
        error::ApiError,
        extract::Params,
        list,
        openapi::{Page, ParameterErrors, ReadErrors},
    },
    status::{
        ProviderEntry, Snapshot, Sort,
        view::{
            Bucket, CheckHistory, CheckItem, Health, KeyState, Point, ProviderDetail, ProviderItem, Usage,
        },
    },
    store::{Span, StoreError},
};

/// How far back usage is summed up.
const USAGE: TimeDelta = TimeDelta::days(30);

/// Which providers, in which order.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ProvidersParams {
    /// Part of a name, type, base URL or manifest; case does not matter.
    #[param(max_length = 255)]
    q: Option<String>,
    #[param(inline)]
    health: Option<Health>,
    #[param(inline)]
    key: Option<KeyState>,
    #[serde(default)]
    #[param(inline, required = false)]
    sort: Sort,
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^[0-9a-f]{1,5000}$")]
    cursor: Option<String>,
}

/// Every provider: state, health, key and source.
#[utoipa::path(get, path = "/api/v1/providers", tag = "catalog", params(ProvidersParams),
    responses((status = 200, description = "One page of providers", body = Page<ProviderItem>), (status = 304, description = "Unchanged"), ReadErrors, ParameterErrors))]
pub(super) async fn all(
    State(shared): State<AdminShared>,
    headers: HeaderMap,
    Params(wanted): Params<ProvidersParams>,
) -> Result<Response, ApiError> {
    let limit = list::limit(wanted.limit)?;
    let cursor = list::cursor(wanted.cursor.as_deref())?;
    list::text("q", wanted.q.as_deref())?;
    let snapshot = shared.snapshot()?;
    Ok(list::tagged(&headers, &snapshot.digest, || page(&snapshot, &wanted, limit, cursor)))
}

fn page(
    snapshot: &Snapshot,
    wanted: &ProvidersParams,
    limit: usize,
    cursor: Option<&str>,
) -> axum::body::Bytes {
    let sort = wanted.sort as usize;
    let needle = wanted.q.as_deref().map(str::to_lowercase);
    let fits = |row: &&ProviderEntry| {
        needle.as_deref().is_none_or(|needle| row.haystack.contains(needle))
            && wanted.health.is_none_or(|health| row.health == health)
            && wanted.key.is_none_or(|key| row.key == key)
    };
    let order = snapshot.orders.get(sort).map_or(&[][..], Vec::as_slice);
    let row = |at: &u32| snapshot.rows.get(*at as usize);
    let everything = needle.is_none() && wanted.health.is_none() && wanted.key.is_none();
    let total = if everything { order.len() } else { snapshot.rows.iter().filter(fits).count() };
    let key = |row: &ProviderEntry| row.sort_keys.get(sort).cloned().unwrap_or_default();
    let begin = cursor
        .map_or(0, |cursor| order.partition_point(|at| row(at).is_some_and(|row| *key(row) <= *cursor)));
    let mut rest = order.get(begin..).unwrap_or_default().iter().filter_map(row).filter(fits);
    let items: Vec<&ProviderEntry> = rest.by_ref().take(limit).collect();
    let next = if rest.next().is_some() { items.last().map(|row| key(row)) } else { None };
    list::page(items.iter().map(|row| &*row.item), next.as_deref(), total)
}

/// One provider with its models, its key's fingerprint, its history and its usage.
#[utoipa::path(get, path = "/api/v1/providers/{name}", tag = "catalog",
    params(("name" = String, Path, description = "Name of the provider")),
    responses((status = 200, description = "The provider", body = ProviderDetail), (status = 304, description = "Unchanged"),
        (status = 404, description = "There is no such provider", body = super::error::ErrorBody), ReadErrors))]
pub(super) async fn one(
    State(shared): State<AdminShared>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Response, ApiError> {
    let snapshot = shared.snapshot()?;
    // A path that is not UTF-8 names no provider.
    let row = name.ok().and_then(|Path(name)| snapshot.row(&name));
    let row = row.ok_or_else(|| ApiError::NotFound("no provider has this name".to_owned()))?;
    let (usage, history) = match row.id {
        Some(id) => (
            shared.store.usage_of(id, &row.name, Utc::now() - USAGE).await?,
            history(&shared, id, &row.name).await?,
        ),
        None => (None, None),
    };
    let usage = usage.map(|sums| Usage {
        calls: sums.calls,
        failures: sums.failures,
        prompt_tokens: sums.prompt_tokens,
        completion_tokens: sums.completion_tokens,
        cost_usd: if sums.cost_usd.is_finite() { sums.cost_usd } else { 0.0 },
    });
    let recent = recent(&shared, &row.name);
    let detail =
        detail(&snapshot, row, history.as_ref(), &recent, usage.as_ref()).ok_or(ApiError::Internal)?;
    let text = serde_json::to_vec(&detail).map_err(|_| ApiError::Internal)?;
    let digest: String = Sha256::digest(&text).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(list::tagged(&headers, &digest, || text.into()))
}

/// A [`ProviderDetail`], put together from what is written down already.
fn detail(
    snapshot: &Snapshot,
    row: &ProviderEntry,
    history: Option<&CheckHistory>,
    recent: &[CheckItem],
    usage: Option<&Usage>,
) -> Option<Map<String, Value>> {
    let mut detail: Map<String, Value> = serde_json::from_str(&row.item).ok()?;
    let models = snapshot.models.get(row.models.clone()).unwrap_or_default();
    let models: Result<Vec<Value>, _> =
        models.iter().map(|model| serde_json::from_str(&model.item)).collect();
    let mut set = |name: &str, value: Value| detail.insert(name.to_owned(), value);
    set("models", models.ok()?.into());
    set("config", serde_json::from_str(&row.config).ok()?);
    set("key_preview", row.key_preview.as_deref().into());
    set("key_fingerprint", row.key_fingerprint.as_deref().into());
    set("history", serde_json::to_value(history).ok()?);
    set("recent_checks", serde_json::to_value(recent).ok()?);
    set("usage", serde_json::to_value(usage).ok()?);
    Some(detail)
}

/// The last checks of a provider that this daemon checks, the newest first.
fn recent(shared: &AdminShared, name: &str) -> Vec<CheckItem> {
    let Some(checked) = shared.checked.get() else { return Vec::new() };
    let ledger = checked.checks.ledger();
    let Some(live) = ledger.get(name) else { return Vec::new() };
    let mut items: Vec<CheckItem> = live
        .recent
        .iter()
        .map(|check| CheckItem {
            at: check.at,
            outcome: check.outcome,
            took_ms: u64::try_from(check.took.as_millis()).unwrap_or(u64::MAX),
            reason: check.reason.as_deref().map(str::to_owned),
        })
        .collect();
    items.reverse();
    items
}

/// The checks of the last day and month, with what this daemon has not written yet; `None` if there were none.
async fn history(shared: &AdminShared, id: Uuid, name: &str) -> Result<Option<CheckHistory>, StoreError> {
    let now = Utc::now();
    let unwritten: Vec<(DateTime<Utc>, Rollup)> = match shared.checked.get() {
        Some(checked) => {
            let ledger = checked.checks.ledger();
            ledger.unwritten(name).map(|(at, sums)| (at, sums.clone())).collect()
        }
        None => Vec::new(),
    };
    let points = async |span: Span, length: TimeDelta, count: i32| -> Result<Vec<Point>, StoreError> {
        let begins: Vec<DateTime<Utc>> = (0..count).rev().map(|ago| span.begin(now) - length * ago).collect();
        let since = begins.first().copied().unwrap_or(now);
        let mut sums: BTreeMap<DateTime<Utc>, Rollup> = BTreeMap::new();
        for (_, at, written) in shared.store.rollups(Some(&[id]), span, since).await? {
            sums.entry(span.begin(at)).or_default().merge(&written);
        }
        for (at, more) in &unwritten {
            sums.entry(span.begin(*at)).or_default().merge(more);
        }
        Ok(begins.into_iter().map(|at| point(at, sums.get(&at).unwrap_or(&Rollup::default()))).collect())
    };
    let history = CheckHistory {
        day: points(Span::Hour, TimeDelta::hours(1), 24).await?,
        month: points(Span::Day, TimeDelta::days(1), 30).await?,
    };
    let checked = |point: &Point| (point.ok, point.slow, point.bad) != (0, 0, 0);
    let any = history.day.iter().chain(&history.month).any(checked);
    Ok(any.then_some(history))
}

fn point(at: DateTime<Utc>, sums: &Rollup) -> Point {
    let Bucket { ok, slow, bad } = sums.into();
    Point { at, ok, slow, bad, p50_ms: sums.percentile_ms(0.5), p95_ms: sums.percentile_ms(0.95) }
}
