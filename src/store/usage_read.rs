//! Reading usage, from the sums alone: no question here looks at `llm_usage_logs`.
//!
//! Not its job: writing sums, showing them.
//! Invariant: at most [`MAX_LINES`] lines come back, whatever was asked.

use catalog::sketch::{CLASSES, LatencySketch};
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use uuid::Uuid;

use super::{ReconcileTx, Result, Store, query, query_built};

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

    const fn expression(self) -> &'static str {
        match self {
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

/// Lines of an answer: more than anybody looks at, and some megabytes at most.
pub const MAX_LINES: i64 = 10_000;

/// From this on, days are read instead of hours: a year by the hour would be a hundred times the rows.
const BY_DAY: chrono::TimeDelta = chrono::TimeDelta::days(3);

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

    fn table(&self, now: DateTime<Utc>) -> (&'static str, &'static str) {
        if self.by.contains(&UsageBy::User) {
            ("usage_users", "day")
        } else if !self.by.contains(&UsageBy::Hour) && self.until.unwrap_or(now) - self.since > BY_DAY {
            ("usage_daily", "day")
        } else {
            ("usage_hourly", "hour")
        }
    }
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
        let (table, span) = wanted.table(now);
        let keys: Vec<&str> = wanted.by.iter().map(|it| it.expression()).collect();
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
        // Element by element: PostgreSQL adds numbers far faster than a function adds arrays.
        let counts = |column: &str| {
            if table == "usage_users" {
                return "'{}'::bigint[]".to_owned();
            }
            let parts: Vec<String> =
                (1..=CLASSES).map(|class| format!("coalesce(sum({column}[{class}]), 0)::bigint")).collect();
            format!("ARRAY[{}]", parts.join(", "))
        };
        let provider =
            if table == "usage_users" { "$3::text IS NULL" } else { "($3::text IS NULL OR provider = $3)" };
        let sql = format!(
            "SELECT {columns} sum(requests)::bigint, sum(errors)::bigint, sum(fallbacks)::bigint, sum(input)::bigint,
                    sum(cached)::bigint, sum(written)::bigint, sum(output)::bigint, sum(reasoning)::bigint,
                    trim_scale(sum(cost))::text, sum(unpriced)::bigint, sum(latency_ms)::bigint, {}, {}
             FROM providerd.{table}
             WHERE at >= date_trunc('{span}', $1::timestamptz) AND at < $2 AND {provider}
               AND ($4::text IS NULL OR consumer = $4)
             {group} HAVING count(*) > 0 ORDER BY {order} LIMIT {MAX_LINES}",
            counts("latency"),
            counts("ttft")
        );
        let mut tx = self.read().await?;
        let rows = query_built(sql)
            .bind(wanted.since)
            .bind(wanted.until.unwrap_or(DateTime::<Utc>::MAX_UTC.min(now + chrono::TimeDelta::days(1))))
            .bind(wanted.provider.as_deref())
            .bind(wanted.consumer.as_deref())
            .fetch_all(&mut *tx)
            .await?;
        tx.rollback().await?;
        let width = keys.len();
        let read = |row: &sqlx::postgres::PgRow| {
            let number = |at: usize| row.try_get::<i64, _>(width + at);
            let sketch = |at: usize| -> Result<LatencySketch> {
                let counts: Vec<i64> = row.try_get(width + at)?;
                Ok(LatencySketch::from_counts(
                    counts.into_iter().map(|it| u64::try_from(it).unwrap_or_default()),
                ))
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
