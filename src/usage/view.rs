//! How sums of usage are shown: the same lines to the command line, the API and the page. PURE.
//!
//! Not its job: which sums are asked for, and how they are read.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;

use crate::store::{UsageBy, UsageLine, UsageQuery};

/// How far back usage is shown where nothing is said.
pub const DEFAULT_SINCE: TimeDelta = TimeDelta::days(30);

/// An answer to a question about usage.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UsageAnswer {
    /// From here on; the hour or day that it lies in counts whole.
    pub since: DateTime<Utc>,
    /// Up to here; `null`: up to now.
    pub until: Option<DateTime<Utc>>,
    /// What each item is about: provider, model, consumer, user, level, month, week, day, hour.
    pub by: Vec<String>,
    /// The dearest first, or by time where that is asked.
    pub items: Vec<UsageItem>,
}

/// Sums of the requests of one combination.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UsageItem {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// `provider/model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// Empty: none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Empty: no power level was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
    /// UTC, `2026-01`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub month: Option<String>,
    /// Its Monday, UTC, `2026-01-26`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub week: Option<String>,
    /// UTC, `2026-01-31`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub day: Option<String>,
    /// UTC, `2026-01-31T12:00Z`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hour: Option<String>,
    pub requests: i64,
    pub errors: i64,
    /// Answered by another than the first candidate.
    pub fallbacks: i64,
    /// All input, cached and written tokens included.
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub cache_write_tokens: i64,
    /// All output, reasoning included.
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
    /// Exact, as a decimal number in a text; without the requests that `unpriced` counts.
    pub cost_usd: String,
    /// Requests whose cost is unknown.
    pub unpriced: i64,
    pub latency_avg_ms: i64,
    pub latency_p50_ms: Option<u64>,
    pub latency_p95_ms: Option<u64>,
    /// To the first content, of streams.
    pub ttft_p50_ms: Option<u64>,
    pub ttft_p95_ms: Option<u64>,
}

/// Lines as they are shown.
pub fn answer(query: &UsageQuery, lines: &[UsageLine]) -> UsageAnswer {
    UsageAnswer {
        since: query.since,
        until: query.until,
        by: query.by.iter().map(|it| it.as_str().to_owned()).collect(),
        items: lines.iter().map(|line| item(&query.by, line)).collect(),
    }
}

fn item(by: &[UsageBy], line: &UsageLine) -> UsageItem {
    let key =
        |wanted: UsageBy| by.iter().position(|it| *it == wanted).and_then(|at| line.key.get(at)).cloned();
    UsageItem {
        provider: key(UsageBy::Provider),
        model: key(UsageBy::Model),
        consumer: key(UsageBy::Consumer),
        user: key(UsageBy::User),
        level: key(UsageBy::Level),
        month: key(UsageBy::Month),
        week: key(UsageBy::Week),
        day: key(UsageBy::Day),
        hour: key(UsageBy::Hour),
        requests: line.requests,
        errors: line.errors,
        fallbacks: line.fallbacks,
        input_tokens: line.input,
        cached_tokens: line.cached,
        cache_write_tokens: line.written,
        output_tokens: line.output,
        reasoning_tokens: line.reasoning,
        cost_usd: line.cost.clone(),
        unpriced: line.unpriced,
        latency_avg_ms: line.latency_ms.checked_div(line.requests).unwrap_or_default(),
        latency_p50_ms: line.latency.percentile(0.5),
        latency_p95_ms: line.latency.percentile(0.95),
        ttft_p50_ms: line.ttft.percentile(0.5),
        ttft_p95_ms: line.ttft.percentile(0.95),
    }
}

/// Names of the columns of [`cells`].
pub fn header(by: &[UsageBy]) -> Vec<&'static str> {
    let numbers = [
        "requests",
        "errors",
        "fallbacks",
        "input_tokens",
        "cached_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_usd",
        "unpriced",
        "latency_avg_ms",
        "latency_p50_ms",
        "latency_p95_ms",
        "ttft_p50_ms",
        "ttft_p95_ms",
    ];
    by.iter().map(|it| it.as_str()).chain(numbers).collect()
}

/// One line, column by column; what is unknown is empty.
pub fn cells(by: &[UsageBy], line: &UsageLine) -> Vec<String> {
    let it = item(by, line);
    let maybe = |value: Option<u64>| value.map(|it| it.to_string()).unwrap_or_default();
    line.key
        .iter()
        .cloned()
        .chain([
            it.requests.to_string(),
            it.errors.to_string(),
            it.fallbacks.to_string(),
            it.input_tokens.to_string(),
            it.cached_tokens.to_string(),
            it.cache_write_tokens.to_string(),
            it.output_tokens.to_string(),
            it.reasoning_tokens.to_string(),
            it.cost_usd,
            it.unpriced.to_string(),
            it.latency_avg_ms.to_string(),
            maybe(it.latency_p50_ms),
            maybe(it.latency_p95_ms),
            maybe(it.ttft_p50_ms),
            maybe(it.ttft_p95_ms),
        ])
        .collect()
}

/// All lines as comma-separated values, with a header; quoted as RFC 4180 says, lines ended as Unix does.
pub fn csv(by: &[UsageBy], lines: &[UsageLine]) -> String {
    let mut text = row(header(by).iter().map(|it| (*it).to_owned()));
    for line in lines {
        text += &row(cells(by, line).into_iter());
    }
    text
}

fn row(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<String> = cells.map(|it| field(&it)).collect();
    format!("{}\n", cells.join(","))
}

fn field(text: &str) -> String {
    // A spreadsheet takes these for the begin of a formula, and names come from callers.
    let guarded = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) && text.parse::<f64>().is_err() {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if guarded.contains([',', '"', '\r', '\n']) {
        format!("\"{}\"", guarded.replace('"', "\"\""))
    } else {
        guarded
    }
}

/// A time (RFC 3339), or a duration back from now (`2h`, `30m`, `7d`).
///
/// # Errors
/// Neither; the text says what is expected.
pub fn since(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let back = catalog::duration::parse(text).map_err(|error| {
        format!("{error}; expected a time such as 2026-01-31T12:00:00Z, or a duration such as 30m, 2h or 7d")
    })?;
    let back = TimeDelta::from_std(back).map_err(|_| "too long ago")?;
    now.checked_sub_signed(back).ok_or_else(|| "too long ago".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_csv_are_values_and_no_formulas() {
        let check = |text: &str, expected: &str| assert_eq!(field(text), expected, "{text}");
        check("web-app", "web-app");
        check("a,b", "\"a,b\"");
        check("say \"hi\"", "\"say \"\"hi\"\"\"");
        check("two\nlines", "\"two\nlines\"");
        check("-0.5", "-0.5");
        check("=cmd()", "'=cmd()");
        check("@x", "'@x");
    }
}
