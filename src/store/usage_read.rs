//! Reading usage, from the sums alone: no question here looks at `llm_usage_logs`.
//!
//! Not its job: writing sums, showing them.
//! Invariant: at most [`MAX_LINES`] lines come back, whatever was asked.

use catalog::sketch::LatencySketch;
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::Row as _;
use uuid::Uuid;

use super::{ReconcileTx, Result, Store, query, query_built, usage_sums::UsageSpan};

/// What usage can be asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UsageBy {
    Provider,
    Model,
    Consumer,
    User,
    Level,
    Month,
    Week,
    Day,
    Hour,
}

impl UsageBy {
    pub const ALL: [Self; 9] = [
        Self::Provider,
        Self::Model,
        Self::Consumer,
        Self::User,
        Self::Level,
        Self::Month,
        Self::Week,
        Self::Day,
        Self::Hour,
    ];

    /// The word for it, on the command line and in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Consumer => "consumer",
            Self::User => "user",
            Self::Level => "level",
            Self::Month => "month",
            Self::Week => "week",
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    /// The other way round.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.as_str() == word)
    }

    /// What it stands for in a table of sums; in a series there is one name.
    const fn expression(self, series: bool) -> &'static str {
        match self {
            Self::Provider | Self::Model | Self::Consumer | Self::Level if series => "name",
            Self::Provider => "provider",
            Self::Model => "provider || '/' || model",
            Self::Consumer => "consumer",
            Self::User => "user_id",
            Self::Level => "power_level",
            Self::Month => "to_char(at, 'YYYY-MM')",
            // By the Monday that it begins with.
            Self::Week => "to_char(date_trunc('week', at), 'YYYY-MM-DD')",
            Self::Day => "to_char(at, 'YYYY-MM-DD')",
            Self::Hour => "to_char(at, 'YYYY-MM-DD\"T\"HH24:00\"Z\"')",
        }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageQuery {
    /// One line for each combination; none: one line for all.
    pub by: Vec<UsageBy>,
    /// The span in which it begins counts whole.
    pub since: DateTime<Utc>,
    pub until: Option<DateTime<Utc>>,
    pub provider: Option<String>,
    pub consumer: Option<String>,
}

/// Sums of the requests of one combination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsageLine {
    /// In the order of [`UsageQuery::by`].
    pub key: Vec<String>,
    pub requests: i64,
    pub errors: i64,
    pub fallbacks: i64,
    pub input: i64,
    pub cached: i64,
    pub written: i64,
    pub output: i64,
    pub reasoning: i64,
    /// USD, a decimal number; without the requests that `unpriced` counts.
    pub cost: String,
    pub unpriced: i64,
    pub latency_ms: i64,
    pub latency: LatencySketch,
    pub ttft: LatencySketch,
}

/// Lines of an answer: more than is ever looked at, and some megabytes at most.
pub const MAX_LINES: i64 = 10_000;

/// From this on, days are read instead of hours: a year by the hour would be a hundred times the rows.
const BY_DAY: TimeDelta = TimeDelta::days(3);

/// From this on, whole months are read as months, where days are not asked for: a quarter has at most 31 days at its begin that
/// are no whole month.
const BY_MONTH: TimeDelta = TimeDelta::days(62);

/// Why a question has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UsageQueryError {
    #[error(
        "usage by user is kept by day and consumer; hint: ask by user alone, or with consumer, day, week and month"
    )]
    User,
    #[error("a thing can be asked by only once")]
    Twice,
}

impl UsageQuery {
    /// # Errors
    /// What is asked is not kept.
    pub fn check(&self) -> std::result::Result<(), UsageQueryError> {
        let by_user = self.by.contains(&UsageBy::User);
        let kept = [UsageBy::User, UsageBy::Consumer, UsageBy::Month, UsageBy::Week, UsageBy::Day];
        if by_user && (self.provider.is_some() || self.by.iter().any(|it| !kept.contains(it))) {
            return Err(UsageQueryError::User);
        }
        let mut seen = self.by.clone();
        seen.sort_unstable();
        seen.dedup();
        if seen.len() < self.by.len() { Err(UsageQueryError::Twice) } else { Ok(()) }
    }

    /// The dimension of a series that holds all that is asked, if one does: one table row for each name and span, where the
    /// whole key would be as many as names occur together.
    fn series(&self) -> Option<&'static str> {
        let mut kind = None;
        for by in &self.by {
            let one = match by {
                UsageBy::Provider => "provider",
                UsageBy::Model => "model",
                UsageBy::Consumer => "consumer",
                UsageBy::Level => "level",
                UsageBy::Month | UsageBy::Week | UsageBy::Day | UsageBy::Hour => continue,
                UsageBy::User => return None,
            };
            if kind.replace(one).is_some() {
                return None;
            }
        }
        match (&self.provider, &self.consumer, kind) {
            (None, None, kind) => Some(kind.unwrap_or("all")),
            (Some(_), None, None | Some("provider")) => Some("provider"),
            (None, Some(_), None | Some("consumer")) => Some("consumer"),
            _ => None,
        }
    }

    /// Which tables are read from when (inclusive) until when.
    fn pieces(&self, now: DateTime<Utc>) -> Vec<SumPiece> {
        let end = self.until.unwrap_or(now);
        // What clocks of nodes are ahead by counts too.
        let last = self.until.unwrap_or_else(|| now.checked_add_signed(TimeDelta::days(1)).unwrap_or(now));
        let by_user = self.by.contains(&UsageBy::User);
        let series = self.series().is_some();
        let hourly = !by_user && (self.by.contains(&UsageBy::Hour) || end - self.since <= BY_DAY);
        let table = match (by_user, series, hourly) {
            (true, ..) => "usage_users",
            (_, true, true) => "usage_series_hourly",
            (_, true, false) => "usage_series_daily",
            (_, false, true) => "usage_hourly",
            (_, false, false) => "usage_daily",
        };
        let span = if hourly { UsageSpan::Hour } else { UsageSpan::Day };
        let since = span.begin(self.since);
        let one = SumPiece { table, since, until: last };
        let by_day = self.by.iter().any(|it| matches!(it, UsageBy::Week | UsageBy::Day));
        if hourly || series || by_day || end - self.since <= BY_MONTH {
            return vec![one];
        }
        // Whole months from the sums of months; what is left before and after by days.
        let table = if by_user { "usage_users_monthly" } else { "usage_monthly" };
        let first = UsageSpan::Month.begin(since);
        let first = if first == since { first } else { UsageSpan::Month.next(first) };
        let until = if end >= now { last } else { UsageSpan::Month.begin(end) };
        vec![
            SumPiece { until: first, ..one },
            SumPiece { table, since: first, until },
            SumPiece { since: until, ..one },
        ]
    }
}

/// A part of the sums that an answer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SumPiece {
    table: &'static str,
    since: DateTime<Utc>,
    /// Exclusive.
    until: DateTime<Utc>,
}

impl Store {
    /// Sums of usage, the dearest first, or by time where that is asked.
    ///
    /// # Errors
    /// The database cannot be reached. A question that [`UsageQuery::check`] refuses gives no lines.
    pub async fn usage_lines(&self, wanted: &UsageQuery, now: DateTime<Utc>) -> Result<Vec<UsageLine>> {
        if self.is_blank() || wanted.check().is_err() {
            return Ok(Vec::new());
        }
        let pieces = wanted.pieces(now);
        let series = wanted.series();
        let by_user = wanted.by.contains(&UsageBy::User);
        let keys: Vec<&str> = wanted.by.iter().map(|it| it.expression(series.is_some())).collect();
        let columns: String = keys.iter().map(|key| format!("{key}, ")).collect();
        let numbers: Vec<String> = (1..=keys.len()).map(|it| it.to_string()).collect();
        let group = if keys.is_empty() { String::new() } else { format!("GROUP BY {}", numbers.join(", ")) };
        let timed = wanted
            .by
            .iter()
            .position(|it| matches!(it, UsageBy::Month | UsageBy::Week | UsageBy::Day | UsageBy::Hour));
        let order = match timed {
            Some(at) => format!("{}, sum(cost) DESC", at + 1),
            None => "sum(cost) DESC, sum(requests) DESC".to_owned(),
        };
        let classes = |column: &str| match by_user {
            true => "'0'".to_owned(),
            false => format!("coalesce(sum({column}), 0)::text"),
        };
        let (filter, kept) = match (series, by_user) {
            (Some(kind), _) => (
                format!(
                    "kind = '{kind}' AND ($1::text IS NULL OR name = $1) AND ($2::text IS NULL OR name = $2)"
                ),
                "name",
            ),
            (None, true) => {
                ("$1::text IS NULL AND ($2::text IS NULL OR consumer = $2)".to_owned(), "consumer, user_id")
            }
            (None, false) => (
                "($1::text IS NULL OR provider = $1) AND ($2::text IS NULL OR consumer = $2)".to_owned(),
                "consumer, provider, model, power_level",
            ),
        };
        let sketches = if by_user { "" } else { ", latency_classes, ttft_classes" };
        let parts: Vec<String> = pieces
            .iter()
            .enumerate()
            .map(|(at, piece)| {
                format!(
                    "SELECT at, {kept}, requests, errors, fallbacks, input, cached, written, output, reasoning, cost, unpriced,
                            latency_ms{sketches}
                     FROM providerd.{} WHERE at >= ${} AND at < ${} AND {filter}",
                    piece.table,
                    2 * at + 3,
                    2 * at + 4
                )
            })
            .collect();
        let sql = format!(
            "SELECT {columns} sum(requests)::bigint, sum(errors)::bigint, sum(fallbacks)::bigint, sum(input)::bigint,
                    sum(cached)::bigint, sum(written)::bigint, sum(output)::bigint, sum(reasoning)::bigint,
                    trim_scale(sum(cost))::text, sum(unpriced)::bigint, sum(latency_ms)::bigint, {}, {}
             FROM ({}) s {group} HAVING count(*) > 0 ORDER BY {order} LIMIT {MAX_LINES}",
            classes("latency_classes"),
            classes("ttft_classes"),
            parts.join(" UNION ALL ")
        );
        let mut tx = self.read().await?;
        let mut statement =
            query_built(sql).bind(wanted.provider.as_deref()).bind(wanted.consumer.as_deref());
        for piece in &pieces {
            statement = statement.bind(piece.since).bind(piece.until);
        }
        let rows = statement.fetch_all(&mut *tx).await?;
        tx.rollback().await?;
        let width = keys.len();
        let read = |row: &sqlx::postgres::PgRow| {
            let number = |at: usize| row.try_get::<i64, _>(width + at);
            let sketch = |at: usize| -> Result<LatencySketch> {
                Ok(LatencySketch::from_packed(row.try_get(width + at)?))
            };
            Ok(UsageLine {
                key: (0..width).map(|at| row.try_get(at)).collect::<Result<_, sqlx::Error>>()?,
                requests: number(0)?,
                errors: number(1)?,
                fallbacks: number(2)?,
                input: number(3)?,
                cached: number(4)?,
                written: number(5)?,
                output: number(6)?,
                reasoning: number(7)?,
                cost: row.try_get(width + 8)?,
                unpriced: number(9)?,
                latency_ms: number(10)?,
                latency: sketch(11)?,
                ttft: sketch(12)?,
            })
        };
        rows.iter().map(read).collect()
    }
}

impl ReconcileTx {
    /// Which of these models have usage. Asks one small table, never the log.
    pub async fn models_with_usage(&mut self, ids: &[Uuid]) -> Result<std::collections::HashSet<Uuid>> {
        if ids.is_empty() || self.blank {
            return Ok(std::collections::HashSet::new());
        }
        let rows = query("SELECT model_id FROM providerd.usage_models WHERE model_id = ANY($1)")
            .bind(ids)
            .fetch_all(&mut *self.tx)
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_read_few_sums_and_each_span_once() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let now = at("2026-12-15T10:30:00Z");
        let check = |by: &[UsageBy],
                     provider: Option<&str>,
                     since: &str,
                     until: Option<&str>,
                     expected: &[(&str, &str, &str)]| {
            let query = UsageQuery {
                by: by.to_vec(),
                since: at(since),
                until: until.map(at),
                provider: provider.map(str::to_owned),
                consumer: None,
            };
            let got: Vec<(&str, DateTime<Utc>, DateTime<Utc>)> =
                query.pieces(now).into_iter().map(|it| (it.table, it.since, it.until)).collect();
            let expected: Vec<_> =
                expected.iter().map(|(table, from, to)| (*table, at(from), at(to))).collect();
            assert_eq!(got, expected, "{by:?} {since} {until:?}");
        };
        use UsageBy::{Consumer, Day, Hour, Model, Provider, User};
        let end = "2026-12-16T10:30:00Z";
        check(
            &[Model],
            None,
            "2026-12-15T09:31:00Z",
            None,
            &[("usage_series_hourly", "2026-12-15T09:00:00Z", end)],
        );
        check(
            &[],
            Some("a"),
            "2026-11-15T09:31:00Z",
            None,
            &[("usage_series_daily", "2026-11-15T00:00:00Z", end)],
        );
        check(
            &[Hour],
            None,
            "2026-11-15T09:31:00Z",
            None,
            &[("usage_series_hourly", "2026-11-15T09:00:00Z", end)],
        );
        check(
            &[Model],
            Some("a"),
            "2026-12-14T09:31:00Z",
            None,
            &[("usage_hourly", "2026-12-14T09:00:00Z", end)],
        );
        check(
            &[Model, Consumer, Day],
            None,
            "2026-01-14T09:31:00Z",
            None,
            &[("usage_daily", "2026-01-14T00:00:00Z", end)],
        );
        check(
            &[User, Day],
            None,
            "2026-12-15T09:31:00Z",
            None,
            &[("usage_users", "2026-12-15T00:00:00Z", end)],
        );
        check(
            &[Provider, Consumer],
            None,
            "2026-01-14T09:31:00Z",
            None,
            &[
                ("usage_daily", "2026-01-14T00:00:00Z", "2026-02-01T00:00:00Z"),
                ("usage_monthly", "2026-02-01T00:00:00Z", end),
                ("usage_daily", end, end),
            ],
        );
        check(
            &[User],
            None,
            "2026-01-01T00:00:00Z",
            Some("2026-11-20T12:00:00Z"),
            &[
                ("usage_users", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
                ("usage_users_monthly", "2026-01-01T00:00:00Z", "2026-11-01T00:00:00Z"),
                ("usage_users", "2026-11-01T00:00:00Z", "2026-11-20T12:00:00Z"),
            ],
        );
    }
}
