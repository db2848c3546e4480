//! `POST /api/v1/llm/providers/keys/test`: proves a key now, by asking its provider.
//!
//! Not its job: what is asked and what an answer means (`health`). Invariants: an answer never repeats a key; one
//! token makes at most ten tests a minute; nothing is written to the catalog.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Extension, Json, extract::State};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout};
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

use net::{PhaseLimits, probe::Prober};
use provider::{Controls, Evidence, ProviderType, parse_base};

use crate::{
    admin::{
        AdminShared,
        actions::record,
        auth::Caller,
        error::{ApiError, ErrorBody},
        extract::JsonBody,
        openapi::{BodyErrors, ReadErrors},
    },
    destination::{Misplaced, destination},
    secret::Secret,
    store::ProviderStatus,
};

/// Tests by one token in any minute.
const TESTS: usize = 10;
const MINUTE: Duration = Duration::from_secs(60);
/// Below the limit of every request, so that the caller hears how it ended.
const TIME_LIMIT: Duration = Duration::from_secs(25);

/// Which key to test.
#[derive(Deserialize, ToSchema)]
pub(super) struct KeyTest {
    /// Name of a provider, or a type: then the declared provider of that type with the highest priority that has a key,
    /// or, with `api_key`, the type's own base URL. Case does not matter.
    #[schema(min_length = 1, max_length = 255)]
    provider_type: String,
    /// A key to test in place of the stored one; an empty one counts as absent. It is not kept.
    #[schema(max_length = 8192)]
    api_key: Option<String>,
}

/// How the test ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct KeyTestResult {
    /// The provider accepted the key, in an answer that it gives to none without one.
    pub success: bool,
    pub latency_ms: u64,
    /// Models that the provider offers to this key.
    pub models_found: Option<u64>,
    /// Why not, where it did not succeed.
    pub error: Option<String>,
}

/// What is asked where, with which key.
struct KeyTestTarget {
    name: Option<String>,
    kind: ProviderType,
    base: Url,
    key: Option<Arc<Secret>>,
}

/// Who tested when.
#[derive(Default)]
pub struct Budget(Mutex<HashMap<usize, VecDeque<Instant>>>);

impl Budget {
    /// Takes one test, or says how many seconds to wait for the next.
    fn take(&self, token: usize, now: Instant) -> Result<(), ApiError> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.entry(token).or_default();
        while taken.front().is_some_and(|at| now.duration_since(*at) >= MINUTE) {
            taken.pop_front();
        }
        if let (true, Some(oldest)) = (taken.len() >= TESTS, taken.front()) {
            let wait = MINUTE.saturating_sub(now.duration_since(*oldest));
            return Err(ApiError::TooManyRequests { retry_after: wait.as_secs() + 1 });
        }
        taken.push_back(now);
        Ok(())
    }
}

/// Proves a stored or a given key by asking its provider, at no cost. At most 10 a minute for each token.
#[utoipa::path(post, path = "/api/v1/llm/providers/keys/test", tag = "keys", request_body = KeyTest,
    responses((status = 200, description = "How the test ended", body = KeyTestResult),
        (status = 400, description = "There is no such provider or type", body = ErrorBody),
        (status = 429, description = "Too many tests; see Retry-After", body = ErrorBody), ReadErrors, BodyErrors))]
pub(super) async fn test(
    State(shared): State<AdminShared>,
    Extension(caller): Extension<Caller>,
    JsonBody(body): JsonBody<KeyTest>,
) -> Result<Json<KeyTestResult>, ApiError> {
    let KeyTest { provider_type, api_key } = body;
    let api_key = api_key.filter(|key| !key.is_empty()).map(|key| Arc::new(Secret::new(key)));
    let length = provider_type.chars().count();
    if !(1..=255).contains(&length) || api_key.as_ref().is_some_and(|key| key.expose().len() > 8192) {
        return Err(ApiError::Invalid(
            "provider_type must have 1 to 255 characters, and api_key at most 8192 bytes".to_owned(),
        ));
    }
    let stored = api_key.is_none();
    let target = match target(&shared, &provider_type, api_key).await? {
        Ok(target) => target,
        Err(why) => return Ok(Json(failed(why))),
    };
    Ok(Json(carry_out(&shared, &caller, &target, stored).await?))
}

/// Tests the stored key of the row of this id; of a row without one, whether its list of models can be read. `None`: there
/// is no such row. With it the row's name.
///
/// # Errors
/// The database is away, or this caller has tested too often.
pub(super) async fn of_row(
    shared: &AdminShared,
    caller: &Caller,
    id: Uuid,
) -> Result<Option<(String, KeyTestResult)>, ApiError> {
    let Some(name) = shared.store.page_provider_name(id).await? else { return Ok(None) };
    let rows = shared.store.provider_status_rows(Some(std::slice::from_ref(&name))).await?;
    let Some(row) = rows.into_iter().find(|row| row.id == id) else { return Ok(None) };
    let result = match row_target(shared, &row, None).await? {
        Some(Ok(target)) => carry_out(shared, caller, &target, true).await?,
        Some(Err(why)) => failed(why),
        None => return Ok(None),
    };
    Ok(Some((name, result)))
}

/// Asks, within the caller's budget and with a row in the audit trail. `stored`: the key is the row's own.
async fn carry_out(
    shared: &AdminShared,
    caller: &Caller,
    target: &KeyTestTarget,
    stored: bool,
) -> Result<KeyTestResult, ApiError> {
    shared.budget.take(caller.index, Instant::now())?;
    record(shared, caller, "key test", target.name.as_deref()).await?;
    let result = ask(&shared.prober, target).await;
    // What was found out about the stored key is worth a test that counts: the daemon's own, which writes statuses.
    if let (true, Some(name), Some(checked)) = (stored, &target.name, shared.checked.get()) {
        checked.checks.now(name).await;
    }
    Ok(result)
}

/// What to ask; the inner error is an answer: the test cannot succeed.
async fn target(
    shared: &AdminShared,
    wanted: &str,
    given: Option<Arc<Secret>>,
) -> Result<Result<KeyTestTarget, String>, ApiError> {
    let unknown = || ApiError::UnknownType;
    if wanted.contains('\0') {
        return Err(unknown());
    }
    let kind = ProviderType::parse(&wanted.to_lowercase());
    let named = row_named(shared, wanted).await?;
    // A key that is given for a type does not go to an unmanaged row that bears the type's name.
    let named = named.filter(|row| row.managed.is_some() || kind.is_none() || given.is_none());
    let row: Option<ProviderStatus> = match (named, kind, &given) {
        (Some(row), ..) => Some(row),
        (None, Some(kind), None) => {
            let name = shared.snapshot()?.with_key(kind.as_str()).map(str::to_owned);
            match name {
                Some(name) => shared.store.provider_status_rows(Some(&[name])).await?.into_iter().next(),
                None => None,
            }
        }
        (None, Some(_), Some(_)) => None,
        (None, None, _) => return Err(unknown()),
    };
    match row {
        Some(row) => row_target(shared, &row, given).await?.ok_or_else(unknown),
        None => {
            let Some(kind) = kind else { return Err(unknown()) };
            Ok(match parse_base(kind, None) {
                Ok(base) => Ok(KeyTestTarget { name: None, kind, base, key: given }),
                Err(error) => Err(error.to_string()),
            })
        }
    }
}

/// The row of this name, else the one that differs from it in case alone.
async fn row_named(shared: &AdminShared, wanted: &str) -> Result<Option<ProviderStatus>, ApiError> {
    let exact = shared.store.provider_status_rows(Some(&[wanted.to_owned()])).await?.into_iter().next();
    if exact.is_some() {
        return Ok(exact);
    }
    let lower = wanted.to_lowercase();
    let snapshot = shared.snapshot()?;
    let mut alike = snapshot.rows.iter().filter(|row| row.id.is_some() && row.name.to_lowercase() == lower);
    let (Some(one), None) = (alike.next(), alike.next()) else { return Ok(None) };
    Ok(shared.store.provider_status_rows(Some(&[one.name.to_string()])).await?.into_iter().next())
}

/// What to ask of a row, with its stored key or the given one. `None`: the row is gone; the inner error is an answer.
async fn row_target(
    shared: &AdminShared,
    row: &ProviderStatus,
    given: Option<Arc<Secret>>,
) -> Result<Option<Result<KeyTestTarget, String>>, ApiError> {
    let live = shared.live()?;
    let build = shared.checked.get().and_then(|checked| checked.checks.build());
    let rows = shared.store.key_rows(&row.name, given.is_none()).await?;
    let Some(stored) = rows.iter().find(|it| it.id == row.id) else { return Ok(None) };
    let place = match given {
        Some(key) => stored.destination(build.as_deref()).map(|(kind, base)| (kind, base, Some(key))),
        None => destination(&rows, &row.name, build.as_deref(), &live.keyring)
            .and_then(|found| found.ok_or(Misplaced::Undeclared))
            .map(|found| (found.kind, found.base, found.key)),
    };
    let (kind, base, key) = match place {
        Ok(place) => place,
        Err(why) => return Ok(Some(Err(why.to_string()))),
    };
    if key.is_none() && row.has_key {
        return Ok(Some(Err("the stored key does not open with the BYOK key".to_owned())));
    }
    Ok(Some(Ok(KeyTestTarget { name: Some(row.name.to_string()), kind, base, key })))
}

async fn ask(prober: &Prober, target: &KeyTestTarget) -> KeyTestResult {
    let began = Instant::now();
    let key = target.key.as_ref().map(|key| key.expose());
    let limits = PhaseLimits::default();
    let asking = async {
        if key.is_none() {
            let models = prober.models(target.kind, &target.base, None, limits).await;
            let latency_ms = millis(began.elapsed());
            return match models {
                Ok(models) => KeyTestResult {
                    success: true,
                    latency_ms,
                    models_found: u64::try_from(models.models.len()).ok(),
                    error: None,
                },
                Err(error) => KeyTestResult {
                    success: false,
                    latency_ms,
                    models_found: None,
                    error: Some(format!("it has no key, and its list cannot be read: {error}")),
                },
            };
        }
        let tested = prober.test_key(target.kind, &target.base, key, Controls::default(), limits).await;
        let latency_ms = millis(tested.took);
        let verdict = &tested.report.verdict;
        if verdict.evidence() != Evidence::Proof {
            let reason = verdict.reason();
            let error = if reason.is_empty() {
                verdict.word().to_owned()
            } else {
                format!("{}: {reason}", verdict.word())
            };
            return KeyTestResult { success: false, latency_ms, models_found: None, error: Some(error) };
        }
        // The key is good whether or not the list can be read.
        let models = prober.models(target.kind, &target.base, key, limits).await.ok();
        let models_found = models.and_then(|models| u64::try_from(models.models.len()).ok());
        KeyTestResult { success: true, latency_ms, models_found, error: None }
    };
    match timeout(TIME_LIMIT, asking).await {
        Ok(result) => result,
        Err(_) => {
            let error = Some(format!("inconclusive: no verdict within {} s", TIME_LIMIT.as_secs()));
            KeyTestResult { success: false, latency_ms: millis(began.elapsed()), models_found: None, error }
        }
    }
}

fn failed(why: String) -> KeyTestResult {
    KeyTestResult { success: false, latency_ms: 0, models_found: None, error: Some(why) }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ten_tests_a_minute_for_each_token() {
        let budget = Budget::default();
        let begin = Instant::now();
        let take = |token, seconds| budget.take(token, begin + Duration::from_secs(seconds));
        for at in 0..10 {
            assert_eq!(take(0, at), Ok(()));
        }
        assert_eq!(take(0, 10), Err(ApiError::TooManyRequests { retry_after: 51 }));
        assert_eq!(take(1, 10), Ok(()), "another token has its own");
        assert_eq!(take(0, 60), Ok(()));
        assert!(take(0, 60).is_err());
        assert_eq!(take(0, 61), Ok(()));
    }
}
