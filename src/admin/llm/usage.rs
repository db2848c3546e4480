//! `GET /api/v1/llm/usage` and what lies below it: sums as the pages draw them, from the roll-ups.
//!
//! Not its job: adding up (`store`), and the sums that the commands show (`admin::usage`).

use std::collections::{BTreeMap, HashMap};

use axum::{
    Json,
    extract::State,
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use chrono::{DateTime, Days, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use catalog::model::PowerLevel;

use crate::{
    admin::{
        AdminShared,
        error::ApiError,
        extract::Params,
        openapi::{ParameterErrors, ReadErrors},
    },
    store::{MAX_LINES, UsageBy, UsageLine, UsageQuery},
    usage::view,
};

/// The longest stretch of time: roll-ups are kept for about a year.
const MAX_DAYS: u64 = 3660;

/// Which stretch of time: one of these, the first that is given.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedSpan {
    /// Days back from today.
    #[param(minimum = 1, maximum = 3660)]
    days: Option<u32>,
    /// `7d`, `24h`, or one of day, week, month, quarter, year.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    period: Option<String>,
    /// The same.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    range: Option<String>,
}

/// Which sums.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedSums {
    /// Days back from today; 7 without any of these three.
    #[param(minimum = 1, maximum = 3660)]
    days: Option<u32>,
    /// `7d`, `24h`, or one of day, week, month, quarter, year.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    period: Option<String>,
    /// The same.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    range: Option<String>,
    /// Only what this provider answered.
    provider_id: Option<Uuid>,
}

/// In which form, and which stretch of time.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WantedExport {
    #[serde(default)]
    #[param(inline, required = false)]
    format: ExportFormat,
    /// Days back from today; 30 without any of these three.
    #[param(minimum = 1, maximum = 3660)]
    days: Option<u32>,
    /// `7d`, `24h`, or one of day, week, month, quarter, year.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    period: Option<String>,
    /// The same.
    #[param(max_length = 16, pattern = "^([1-9][0-9]{0,2}[dh]|day|week|month|quarter|year)$")]
    range: Option<String>,
}

/// In which form sums are exported.
#[derive(Debug, Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum ExportFormat {
    Csv,
    #[default]
    Json,
}

/// Whole days in UTC, the last of them today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DaySpan {
    days: u64,
    first: NaiveDate,
}

impl DaySpan {
    fn new(wanted: &WantedSpan, otherwise: u64, now: DateTime<Utc>) -> Result<Self, ApiError> {
        let invalid = || {
            ApiError::Invalid(
                "days must be from 1 to 3660, period and range such as 7d, 24h, day, week, month, quarter or year"
                    .to_owned(),
            )
        };
        // Each that is given has to be valid, also the one that another is stronger than.
        let said = [&wanted.period, &wanted.range].map(|word| word.as_deref().map(in_days));
        let said = [wanted.days.map(|days| Some(u64::from(days)))].into_iter().chain(said).flatten();
        let said = said
            .map(|days| days.filter(|days| (1..=MAX_DAYS).contains(days)).ok_or_else(invalid))
            .collect::<Result<Vec<u64>, ApiError>>()?;
        let days = said.first().copied().unwrap_or(otherwise);
        let first = now.date_naive().checked_sub_days(Days::new(days - 1)).ok_or(ApiError::Internal)?;
        Ok(Self { days, first })
    }

    fn begin(self) -> DateTime<Utc> {
        self.first.and_time(NaiveTime::MIN).and_utc()
    }

    /// As many days before it.
    fn before(self) -> Option<DateTime<Utc>> {
        Some(self.first.checked_sub_days(Days::new(self.days))?.and_time(NaiveTime::MIN).and_utc())
    }

    /// Its days, as the roll-ups name them.
    fn each(self) -> impl Iterator<Item = String> {
        (0..self.days).filter_map(move |at| Some(self.first.checked_add_days(Days::new(at))?.to_string()))
    }

    fn query(self, by: Vec<UsageBy>, provider: Option<String>) -> UsageQuery {
        UsageQuery { by, since: self.begin(), until: None, provider, consumer: None }
    }
}

fn in_days(word: &str) -> Option<u64> {
    match word {
        "day" => Some(1),
        "week" => Some(7),
        "month" => Some(30),
        "quarter" => Some(90),
        "year" => Some(365),
        _ => {
            let (number, unit) = word.split_at_checked(word.len().checked_sub(1)?)?;
            // As the pattern in the API's document says.
            let plain = (1..=3).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
            let number = number.parse::<u64>().ok().filter(|_| plain && !number.starts_with('0'))?;
            match unit {
                "d" => Some(number),
                "h" => Some(number.div_ceil(24)),
                _ => None,
            }
        }
    }
}

/// Sums over some lines.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct SpanTotal {
    calls: i64,
    tokens: i64,
    /// USD.
    cost: f64,
    latency_ms: i64,
}

impl SpanTotal {
    fn of<'a>(lines: impl IntoIterator<Item = &'a UsageLine>) -> Self {
        lines.into_iter().fold(Self::default(), |sum, line| Self {
            calls: sum.calls.saturating_add(line.requests),
            tokens: sum.tokens.saturating_add(line.input).saturating_add(line.output),
            cost: sum.cost + usd(line),
            latency_ms: sum.latency_ms.saturating_add(line.latency_ms),
        })
    }

    fn per_call(self) -> f64 {
        if self.calls > 0 { self.cost / self.calls as f64 } else { 0.0 }
    }
}

fn usd(line: &UsageLine) -> f64 {
    line.cost.parse().ok().filter(|cost: &f64| cost.is_finite()).unwrap_or_default()
}

fn key(line: &UsageLine) -> String {
    line.key.first().cloned().unwrap_or_default()
}

/// Percent with one digit after the point.
fn percent(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { (part / whole * 1000.0).round() / 10.0 } else { 0.0 }
}

/// How much more, in percent of what was before; 100 where nothing was.
fn growth(now: f64, before: f64) -> f64 {
    match (now > 0.0, before > 0.0) {
        (_, true) => percent(now - before, before),
        (true, false) => 100.0,
        (false, false) => 0.0,
    }
}

/// Sums of usage. Some stand twice, by the names of different pages.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageUsage {
    pub total_requests: i64,
    /// The same.
    pub total_calls: i64,
    pub total_tokens: i64,
    /// USD.
    pub total_cost: f64,
    /// USD.
    pub avg_cost_per_request: f64,
    pub total_providers: i64,
    /// Models that are switched on.
    pub active_models: i64,
    /// The dearest first.
    pub providers: Vec<PageUsageProvider>,
    /// By name.
    pub by_model: BTreeMap<String, PageUsageModel>,
    /// Days, the oldest first.
    pub labels: Vec<String>,
    /// Requests of each day.
    pub values: Vec<i64>,
    /// Names of providers.
    pub cost_labels: Vec<String>,
    /// USD of each provider.
    pub cost_values: Vec<f64>,
    pub period_days: u64,
}

/// One provider's share.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageUsageProvider {
    /// `null`: there is no row of this name any more.
    pub provider_id: Option<Uuid>,
    pub provider_name: String,
    pub requests: i64,
    pub tokens: i64,
    /// USD.
    pub cost: f64,
    pub avg_latency_ms: i64,
    /// `null`: users are not counted by provider.
    pub unique_users: Option<i64>,
}

/// One model's share.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageUsageModel {
    pub request_count: i64,
    pub total_input_tokens: i64,
    pub total_output_tokens: i64,
    /// USD.
    pub total_cost: f64,
    pub avg_latency_ms: i64,
}

/// What the gateway served, for the pages' cards and charts.
#[utoipa::path(get, path = "/api/v1/llm/usage", tag = "pages", params(WantedSums),
    responses((status = 200, description = "Sums", body = PageUsage), ReadErrors, ParameterErrors))]
pub(super) async fn sums(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedSums>,
) -> Result<Json<PageUsage>, ApiError> {
    let now = Utc::now();
    let WantedSums { days, period, range, provider_id } = wanted;
    let span = DaySpan::new(&WantedSpan { days, period, range }, 7, now)?;
    let ids = shared.store.page_provider_ids().await?;
    // An id without a row has no usage; no provider has an empty name.
    let provider = match provider_id {
        Some(id) => Some(shared.store.page_provider_name(id).await?.unwrap_or_default()),
        None => None,
    };
    let read =
        async |by: UsageBy| shared.store.usage_lines(&span.query(vec![by], provider.clone()), now).await;
    let (providers, models, by_day) =
        (read(UsageBy::Provider).await?, read(UsageBy::Model).await?, read(UsageBy::Day).await?);
    let counts = shared.store.page_counts().await?;
    let total = SpanTotal::of(&providers);
    let calls: HashMap<String, i64> = by_day.iter().map(|line| (key(line), line.requests)).collect();
    Ok(Json(PageUsage {
        total_requests: total.calls,
        total_calls: total.calls,
        total_tokens: total.tokens,
        total_cost: total.cost,
        avg_cost_per_request: total.per_call(),
        total_providers: counts.providers,
        active_models: counts.active_models,
        by_model: models.iter().map(|line| (key(line), model(line))).collect(),
        labels: span.each().collect(),
        values: span.each().map(|day| calls.get(&day).copied().unwrap_or_default()).collect(),
        cost_labels: providers.iter().map(key).collect(),
        cost_values: providers.iter().map(usd).collect(),
        providers: providers
            .iter()
            .map(|line| PageUsageProvider {
                provider_id: ids.get(&key(line)).copied(),
                provider_name: key(line),
                requests: line.requests,
                tokens: line.input.saturating_add(line.output),
                cost: usd(line),
                avg_latency_ms: line.latency_ms.checked_div(line.requests).unwrap_or_default(),
                unique_users: None,
            })
            .collect(),
        period_days: span.days,
    }))
}

fn model(line: &UsageLine) -> PageUsageModel {
    PageUsageModel {
        request_count: line.requests,
        total_input_tokens: line.input,
        total_output_tokens: line.output,
        total_cost: usd(line),
        avg_latency_ms: line.latency_ms.checked_div(line.requests).unwrap_or_default(),
    }
}

/// Sums beside those of as many days before.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageUsageSummary {
    pub total_calls: i64,
    pub total_tokens: i64,
    /// USD.
    pub total_cost: f64,
    /// USD.
    pub avg_cost_per_call: f64,
    pub growth: PageGrowth,
    /// Always 0: budgets belong to consumers, and an installation as a whole has none.
    pub quota_used_percent: f64,
    /// The oldest first, days without a call included.
    pub timeline: Vec<PageDay>,
    pub period_days: u64,
}

/// Percent of what was before.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageGrowth {
    pub calls: f64,
    pub cost: f64,
    pub avg_cost: f64,
}

/// One day.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageDay {
    /// UTC, `2026-01-31`.
    pub date: String,
    pub calls: i64,
    /// USD.
    pub cost: f64,
}

/// Sums of a stretch of time, and how they grew.
#[utoipa::path(get, path = "/api/v1/llm/usage/summary", tag = "pages", params(WantedSpan),
    responses((status = 200, description = "Sums; of 30 days where nothing is said", body = PageUsageSummary), ReadErrors, ParameterErrors))]
pub(super) async fn summary(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedSpan>,
) -> Result<Json<PageUsageSummary>, ApiError> {
    let now = Utc::now();
    let span = DaySpan::new(&wanted, 30, now)?;
    let by_day = shared.store.usage_lines(&span.query(vec![UsageBy::Day], None), now).await?;
    let earlier = match span.before() {
        Some(since) => {
            let query =
                UsageQuery { since, until: Some(span.begin()), ..span.query(vec![UsageBy::Day], None) };
            SpanTotal::of(&shared.store.usage_lines(&query, now).await?)
        }
        None => SpanTotal::default(),
    };
    let total = SpanTotal::of(&by_day);
    let days: HashMap<String, SpanTotal> =
        by_day.iter().map(|line| (key(line), SpanTotal::of([line]))).collect();
    Ok(Json(PageUsageSummary {
        total_calls: total.calls,
        total_tokens: total.tokens,
        total_cost: total.cost,
        avg_cost_per_call: total.per_call(),
        growth: PageGrowth {
            calls: growth(total.calls as f64, earlier.calls as f64),
            cost: growth(total.cost, earlier.cost),
            avg_cost: growth(total.per_call(), earlier.per_call()),
        },
        quota_used_percent: 0.0,
        timeline: span
            .each()
            .map(|date| {
                let SpanTotal { calls, cost, .. } = days.get(&date).copied().unwrap_or_default();
                PageDay { date, calls, cost }
            })
            .collect(),
        period_days: span.days,
    }))
}

/// Shares of providers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageProviderShares {
    /// The dearest first.
    pub providers: Vec<PageProviderShare>,
    pub period_days: u64,
}

/// One provider's share.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageProviderShare {
    /// `null`: there is no row of this name any more.
    pub provider_id: Option<Uuid>,
    pub name: String,
    pub calls: i64,
    pub tokens: i64,
    /// USD.
    pub cost: f64,
    /// Of all calls.
    pub percentage: f64,
}

/// Calls and cost of each provider.
#[utoipa::path(get, path = "/api/v1/llm/usage/by-provider", tag = "pages", params(WantedSpan),
    responses((status = 200, description = "Shares; of 30 days where nothing is said", body = PageProviderShares), ReadErrors, ParameterErrors))]
pub(super) async fn by_provider(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedSpan>,
) -> Result<Json<PageProviderShares>, ApiError> {
    let now = Utc::now();
    let span = DaySpan::new(&wanted, 30, now)?;
    let lines = shared.store.usage_lines(&span.query(vec![UsageBy::Provider], None), now).await?;
    let (ids, total) = (shared.store.page_provider_ids().await?, SpanTotal::of(&lines));
    let providers = lines
        .iter()
        .map(|line| PageProviderShare {
            provider_id: ids.get(&key(line)).copied(),
            name: key(line),
            calls: line.requests,
            tokens: line.input.saturating_add(line.output),
            cost: usd(line),
            percentage: percent(line.requests as f64, total.calls as f64),
        })
        .collect();
    Ok(Json(PageProviderShares { providers, period_days: span.days }))
}

/// Shares of power levels.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageLevelShares {
    /// eco, balanced and precision, then any others.
    pub levels: Vec<PageLevelShare>,
    pub period_days: u64,
}

/// One power level's share.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub(super) struct PageLevelShare {
    /// `unspecified`: a model was asked for by name.
    pub level: String,
    pub calls: i64,
    pub tokens: i64,
    /// USD.
    pub cost: f64,
}

/// Calls and cost of each power level.
#[utoipa::path(get, path = "/api/v1/llm/usage/by-power-level", tag = "pages", params(WantedSpan),
    responses((status = 200, description = "Shares; of 30 days where nothing is said", body = PageLevelShares), ReadErrors, ParameterErrors))]
pub(super) async fn by_power_level(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedSpan>,
) -> Result<Json<PageLevelShares>, ApiError> {
    let now = Utc::now();
    let span = DaySpan::new(&wanted, 30, now)?;
    let lines = shared.store.usage_lines(&span.query(vec![UsageBy::Level], None), now).await?;
    Ok(Json(PageLevelShares { levels: levels(&lines), period_days: span.days }))
}

fn levels(lines: &[UsageLine]) -> Vec<PageLevelShare> {
    let share = |level: &str, line: Option<&UsageLine>| {
        let SpanTotal { calls, tokens, cost, .. } = SpanTotal::of(line);
        PageLevelShare { level: level.to_owned(), calls, tokens, cost }
    };
    let known = |line: &UsageLine| PowerLevel::ALL.iter().any(|level| level.as_str() == key(line));
    let mut all: Vec<PageLevelShare> = PowerLevel::ALL
        .iter()
        .map(|level| share(level.as_str(), lines.iter().find(|line| key(line) == level.as_str())))
        .collect();
    all.extend(lines.iter().filter(|line| !known(line)).map(|line| {
        let level = key(line);
        share(if level.is_empty() { "unspecified" } else { &level }, Some(line))
    }));
    all
}

/// Sums by day, model and power level.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageExport {
    /// The first day, in UTC.
    pub since: String,
    pub period_days: u64,
    pub total_records: usize,
    /// There are more lines than one answer has.
    pub truncated: bool,
    pub data: Vec<view::UsageItem>,
}

/// Sums by day, model and power level, as a file.
#[utoipa::path(get, path = "/api/v1/llm/usage/export", tag = "pages", params(WantedExport),
    responses((status = 200, description = "The file; `x-providerd-truncated` says that there are more than 10,000 lines",
            content((String = "text/csv"), (PageExport = "application/json"))), ReadErrors, ParameterErrors))]
pub(super) async fn export(
    State(shared): State<AdminShared>,
    Params(wanted): Params<WantedExport>,
) -> Result<Response, ApiError> {
    let now = Utc::now();
    let WantedExport { format, days, period, range } = wanted;
    let span = DaySpan::new(&WantedSpan { days, period, range }, 30, now)?;
    let query = span.query(vec![UsageBy::Day, UsageBy::Model, UsageBy::Level], None);
    let lines = shared.store.usage_lines(&query, now).await?;
    let truncated = i64::try_from(lines.len()).is_ok_and(|count| count >= MAX_LINES);
    let (ending, kind, text) = match format {
        ExportFormat::Csv => ("csv", "text/csv", view::csv(&query.by, &lines).into_bytes()),
        ExportFormat::Json => {
            let answer = PageExport {
                since: span.first.to_string(),
                period_days: span.days,
                total_records: lines.len(),
                truncated,
                data: view::answer(&query, &lines).items,
            };
            ("json", "application/json", serde_json::to_vec(&answer).map_err(|_| ApiError::Internal)?)
        }
    };
    let name = format!("attachment; filename=\"llm-usage-{}-{}d.{ending}\"", now.date_naive(), span.days);
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    if let Ok(name) = HeaderValue::from_str(&name) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    if truncated {
        let header = HeaderName::from_static("x-providerd-truncated");
        response.headers_mut().insert(header, HeaderValue::from_static("true"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use catalog::sketch::LatencySketch;

    use super::*;

    fn line(key: &str, requests: i64, cost: &str) -> UsageLine {
        UsageLine {
            key: vec![key.to_owned()],
            requests,
            errors: 0,
            fallbacks: 0,
            input: 10 * requests,
            cached: 0,
            written: 0,
            output: requests,
            reasoning: 0,
            cost: cost.to_owned(),
            unpriced: 0,
            latency_ms: 100 * requests,
            latency: LatencySketch::default(),
            ttft: LatencySketch::default(),
        }
    }

    #[test]
    fn stretches_of_time_are_whole_days() {
        let now: DateTime<Utc> = "2026-03-01T12:00:00Z".parse().unwrap();
        let check = |days: Option<u32>, period: Option<&str>, expected: Option<(u64, &str)>| {
            let wanted = WantedSpan { days, period: period.map(str::to_owned), range: None };
            let found = DaySpan::new(&wanted, 30, now).ok();
            assert_eq!(
                found.map(|it| (it.days, it.first.to_string())),
                expected.map(|(d, f)| (d, f.to_owned()))
            );
        };
        check(Some(1), None, Some((1, "2026-03-01")));
        check(None, Some("7d"), Some((7, "2026-02-23")));
        check(None, Some("24h"), Some((1, "2026-03-01")));
        check(None, Some("25h"), Some((2, "2026-02-28")));
        check(None, Some("week"), Some((7, "2026-02-23")));
        check(None, None, Some((30, "2026-01-31")));
        for bad in ["", "d", "0d", "7", "7w", "fortnight", "9999d", "é"] {
            check(None, Some(bad), None);
        }
        check(Some(0), None, None);
        let span = DaySpan::new(&WantedSpan { days: Some(2), period: None, range: None }, 30, now).unwrap();
        assert_eq!(span.each().collect::<Vec<_>>(), ["2026-02-28", "2026-03-01"]);
        assert_eq!(span.before().unwrap().to_string(), "2026-02-26 00:00:00 UTC");
    }

    #[test]
    fn growth_is_of_what_was_before() {
        for (now, before, expected) in
            [(3.0, 2.0, 50.0), (1.0, 2.0, -50.0), (1.0, 0.0, 100.0), (0.0, 0.0, 0.0)]
        {
            assert!((growth(now, before) - expected).abs() < 1e-9, "{now} {before}");
        }
        assert!((percent(1.0, 3.0) - 33.3).abs() < 1e-9);
    }

    #[test]
    fn the_three_levels_come_first_and_always() {
        let found = levels(&[line("", 4, "0.5"), line("eco", 2, "0.25"), line("turbo", 1, "NaN")]);
        let found: Vec<(&str, i64, f64)> =
            found.iter().map(|share| (share.level.as_str(), share.calls, share.cost)).collect();
        assert_eq!(
            found,
            [
                ("eco", 2, 0.25),
                ("balanced", 0, 0.0),
                ("precision", 0, 0.0),
                ("unspecified", 4, 0.5),
                ("turbo", 1, 0.0)
            ]
        );
    }
}
