//! Sums of usage: what is shown reads them, so that no question looks at the log.
//!
//! Not its job: when rows are stored, what is asked of the sums.
//! Invariants: sums are written in the transaction of their rows, and say the same to the last digit; a batch looks at
//! each row once and derives coarser sums from finer ones; rows are written in the order of their keys, so that two shippers
//! of one node cannot wait for each other.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
};

use catalog::sketch::LatencySketch;
use chrono::{DateTime, Datelike as _, DurationRound as _, NaiveTime, TimeDelta, Utc};
use uuid::Uuid;

use super::{
    Result, Tx, query, query_built,
    usage::{NewUsage, column},
};

/// What a row of sums covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum UsageSpan {
    Hour,
    Day,
    Month,
}

impl UsageSpan {
    /// Where the span begins that `at` lies in (UTC).
    pub(super) fn begin(self, at: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Hour => at.duration_trunc(TimeDelta::hours(1)).unwrap_or(at),
            Self::Day => at.duration_trunc(TimeDelta::days(1)).unwrap_or(at),
            Self::Month => at.date_naive().with_day(1).map_or(at, |it| it.and_time(NaiveTime::MIN).and_utc()),
        }
    }

    /// Where the span after it begins.
    pub(super) fn next(self, begin: DateTime<Utc>) -> DateTime<Utc> {
        match self {
            Self::Hour => begin + TimeDelta::hours(1),
            Self::Day => begin + TimeDelta::days(1),
            // No month has more than 31 days, none fewer than 28.
            Self::Month => self.begin(begin + TimeDelta::days(31)),
        }
    }
}

/// What is summed of requests.
#[derive(Debug, Clone, Default)]
struct UsageSums {
    requests: u64,
    errors: u64,
    fallbacks: u64,
    input: u64,
    cached: u64,
    written: u64,
    output: u64,
    reasoning: u64,
    /// In units of 1e-10 USD.
    cost: i128,
    unpriced: u64,
    latency_ms: u64,
    latency: LatencySketch,
    ttft: LatencySketch,
}

impl UsageSums {
    fn add(&mut self, row: &NewUsage<'_>) {
        self.requests += 1;
        self.errors += u64::from(!row.success);
        self.fallbacks += u64::from(row.was_fallback);
        for (sum, more) in [
            (&mut self.input, row.input),
            (&mut self.cached, row.cached),
            (&mut self.written, row.written),
            (&mut self.output, row.output),
            (&mut self.reasoning, row.reasoning),
        ] {
            // As the columns hold them: a provider's absurd count must not spoil a sum for good.
            *sum = sum.saturating_add(u64::from(column(more).unsigned_abs()));
        }
        match row.cost_total {
            Some(cost) => self.cost += i128::from(cost.units()),
            None => self.unpriced += 1,
        }
        self.latency_ms = self.latency_ms.saturating_add(u64::from(row.latency_ms));
        self.latency.add(u64::from(row.latency_ms));
        if let Some(ttft) = row.ttft_ms {
            self.ttft.add(u64::from(ttft));
        }
    }

    fn merge(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.requests, other.requests),
            (&mut self.errors, other.errors),
            (&mut self.fallbacks, other.fallbacks),
            (&mut self.input, other.input),
            (&mut self.cached, other.cached),
            (&mut self.written, other.written),
            (&mut self.output, other.output),
            (&mut self.reasoning, other.reasoning),
            (&mut self.unpriced, other.unpriced),
            (&mut self.latency_ms, other.latency_ms),
        ] {
            *sum = sum.saturating_add(more);
        }
        self.cost += other.cost;
        self.latency.merge(&other.latency);
        self.ttft.merge(&other.ttft);
    }

    /// A count, in the order of [`COUNTS`].
    const fn count(&self, at: usize) -> u64 {
        match at {
            0 => self.requests,
            1 => self.errors,
            2 => self.fallbacks,
            3 => self.input,
            4 => self.cached,
            5 => self.written,
            6 => self.output,
            7 => self.reasoning,
            8 => self.unpriced,
            _ => self.latency_ms,
        }
    }

    /// USD, as `NUMERIC` reads it.
    fn usd(&self) -> String {
        let sign = if self.cost < 0 { "-" } else { "" };
        let units = self.cost.unsigned_abs();
        format!("{sign}{}.{:010}", units / 10_000_000_000, units % 10_000_000_000)
    }
}

/// Columns that hold counts, `bigint` each.
const COUNTS: [&str; 10] = [
    "requests",
    "errors",
    "fallbacks",
    "input",
    "cached",
    "written",
    "output",
    "reasoning",
    "unpriced",
    "latency_ms",
];

/// The finest sums: of an hour, a consumer, a provider, a model and a power level.
type FineKey<'a> = (DateTime<Utc>, [&'a str; 4]);

/// A key of sums without its node: when, and the names of [`SumTable::key`].
type SumKey<'a> = (DateTime<Utc>, Vec<Cow<'a, str>>);

/// One table of sums.
struct SumTable {
    name: &'static str,
    span: UsageSpan,
    /// Key columns behind `at` and `node`.
    key: &'static [&'static str],
    /// Whether classes of latency are kept.
    sketches: bool,
}

const ALL: &[&str] = &["consumer", "provider", "model", "power_level"];
const SERIES: &[&str] = &["kind", "name"];
const USERS: &[&str] = &["consumer", "user_id"];

const fn table(
    name: &'static str,
    span: UsageSpan,
    key: &'static [&'static str],
    sketches: bool,
) -> SumTable {
    SumTable { name, span, key, sketches }
}

const FINE_TABLES: [SumTable; 3] = [
    table("usage_hourly", UsageSpan::Hour, ALL, true),
    table("usage_daily", UsageSpan::Day, ALL, true),
    table("usage_monthly", UsageSpan::Month, ALL, true),
];
const SERIES_TABLES: [SumTable; 2] = [
    table("usage_series_hourly", UsageSpan::Hour, SERIES, true),
    table("usage_series_daily", UsageSpan::Day, SERIES, true),
];
const USER_TABLES: [SumTable; 2] = [
    table("usage_users", UsageSpan::Day, USERS, false),
    table("usage_users_monthly", UsageSpan::Month, USERS, false),
];

/// All tables of sums, and what a row of each covers.
pub(super) fn sum_tables() -> impl Iterator<Item = (&'static str, UsageSpan)> {
    FINE_TABLES.iter().chain(&SERIES_TABLES).chain(&USER_TABLES).map(|it| (it.name, it.span))
}

/// Adds stored rows to all sums.
pub(super) async fn add_sums(tx: &mut Tx, node: &str, rows: &[&NewUsage<'_>]) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut fine: HashMap<FineKey<'_>, UsageSums> = HashMap::new();
    let mut users: HashMap<(DateTime<Utc>, [&str; 2]), UsageSums> = HashMap::new();
    for row in rows {
        let key = [row.consumer, row.provider, row.model, row.power_level];
        fine.entry((UsageSpan::Hour.begin(row.at), key)).or_default().add(row);
        users.entry((UsageSpan::Day.begin(row.at), [row.consumer, row.user_id])).or_default().add(row);
    }
    for table in &FINE_TABLES {
        let finer = fine.iter().map(|((at, key), it)| (*at, borrowed(key), it));
        write_sums(tx, table, node, &coarser(table.span, finer)).await?;
    }
    for table in &SERIES_TABLES {
        let finer = fine.iter().flat_map(|((at, [consumer, provider, model, level]), it)| {
            let model = Cow::Owned(format!("{provider}/{model}"));
            [
                ("all", Cow::Borrowed("")),
                ("consumer", Cow::Borrowed(*consumer)),
                ("level", Cow::Borrowed(*level)),
                ("model", model),
                ("provider", Cow::Borrowed(*provider)),
            ]
            .map(|(kind, name)| (*at, vec![Cow::Borrowed(kind), name], it))
        });
        write_sums(tx, table, node, &coarser(table.span, finer)).await?;
    }
    for table in &USER_TABLES {
        let finer = users.iter().map(|((at, key), it)| (*at, borrowed(key), it));
        write_sums(tx, table, node, &coarser(table.span, finer)).await?;
    }
    add_models(tx, rows).await
}

fn borrowed<'a>(names: &[&'a str]) -> Vec<Cow<'a, str>> {
    names.iter().map(|name| Cow::Borrowed(*name)).collect()
}

/// Sums by key and span of finer ones.
fn coarser<'a, 's>(
    span: UsageSpan,
    finer: impl Iterator<Item = (DateTime<Utc>, Vec<Cow<'a, str>>, &'s UsageSums)>,
) -> BTreeMap<SumKey<'a>, UsageSums> {
    let mut sums: BTreeMap<SumKey<'a>, UsageSums> = BTreeMap::new();
    for (at, key, it) in finer {
        sums.entry((span.begin(at), key)).or_default().merge(it);
    }
    sums
}

/// Models that have usage are retired, not deleted.
async fn add_models(tx: &mut Tx, rows: &[&NewUsage<'_>]) -> Result<()> {
    let models: HashSet<Uuid> = rows.iter().filter_map(|row| row.model_id).collect();
    let mut models: Vec<Uuid> = models.into_iter().collect();
    models.sort_unstable();
    query(
        "INSERT INTO providerd.usage_models (model_id)
         SELECT id FROM unnest($1::uuid[]) AS x (id) WHERE NOT EXISTS (SELECT FROM providerd.usage_models u WHERE u.model_id = x.id)
         ORDER BY id ON CONFLICT DO NOTHING",
    )
    .bind(models)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

async fn write_sums(
    tx: &mut Tx,
    table: &SumTable,
    node: &str,
    sums: &BTreeMap<SumKey<'_>, UsageSums>,
) -> Result<()> {
    // Texts for what is NUMERIC: a sum of money has more digits than a bigint, and classes of latency far more.
    let numeric: &[&str] =
        if table.sketches { &["cost", "latency_classes", "ttft_classes"] } else { &["cost"] };
    let keys: Vec<&str> = ["at", "node"].iter().chain(table.key).copied().collect();
    let numbers: Vec<&str> = COUNTS.iter().chain(numeric).copied().collect();
    let columns = [keys.as_slice(), numbers.as_slice()].concat().join(", ");
    let types = std::iter::once("timestamptz[]")
        .chain(table.key.iter().map(|_| "text[]"))
        .chain(COUNTS.iter().map(|_| "bigint[]"))
        .chain(numeric.iter().map(|_| "text[]"));
    let parameters: Vec<String> =
        types.enumerate().map(|(at, kind)| format!("${}::{kind}", at + 2)).collect();
    let values: Vec<String> = std::iter::once("x.at, $1::text".to_owned())
        .chain(table.key.iter().chain(&COUNTS).map(|name| format!("x.{name}")))
        .chain(numeric.iter().map(|name| format!("x.{name}::numeric")))
        .collect();
    let names: Vec<&str> =
        std::iter::once("at").chain(table.key.iter().copied()).chain(numbers.iter().copied()).collect();
    let updates: Vec<String> =
        numbers.iter().map(|name| format!("{name} = s.{name} + EXCLUDED.{name}")).collect();
    let sql = format!(
        "INSERT INTO providerd.{} AS s ({columns}) SELECT {} FROM unnest({}) AS x ({})
         ON CONFLICT ({}) DO UPDATE SET {}",
        table.name,
        values.join(", "),
        parameters.join(", "),
        names.join(", "),
        keys.join(", "),
        updates.join(", ")
    );
    let mut statement =
        query_built(sql).bind(node.to_owned()).bind(sums.keys().map(|(at, _)| *at).collect::<Vec<_>>());
    for part in 0..table.key.len() {
        let names = sums.keys().map(|(_, key)| key.get(part).map(|it| it.to_string()).unwrap_or_default());
        statement = statement.bind(names.collect::<Vec<String>>());
    }
    for part in 0..COUNTS.len() {
        let counts = sums.values().map(|it| i64::try_from(it.count(part)).unwrap_or(i64::MAX));
        statement = statement.bind(counts.collect::<Vec<i64>>());
    }
    statement = statement.bind(sums.values().map(UsageSums::usd).collect::<Vec<String>>());
    if table.sketches {
        statement = statement
            .bind(sums.values().map(|it| it.latency.packed()).collect::<Vec<String>>())
            .bind(sums.values().map(|it| it.ttft.packed()).collect::<Vec<String>>());
    }
    statement.execute(&mut **tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_begin_and_end_by_the_calendar() {
        let at = |text: &str| text.parse::<DateTime<Utc>>().unwrap();
        let check = |span: UsageSpan, from: &str, begin: &str, next: &str| {
            assert_eq!(span.begin(at(from)), at(begin), "{span:?} {from}");
            assert_eq!(span.next(at(begin)), at(next), "{span:?} {from}");
        };
        check(UsageSpan::Hour, "2026-01-31T23:59:59.9Z", "2026-01-31T23:00:00Z", "2026-02-01T00:00:00Z");
        check(UsageSpan::Day, "2026-02-28T23:59:59Z", "2026-02-28T00:00:00Z", "2026-03-01T00:00:00Z");
        check(UsageSpan::Month, "2026-01-31T23:59:59Z", "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        check(UsageSpan::Month, "2026-02-28T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z");
        check(UsageSpan::Month, "2026-12-01T00:00:00Z", "2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z");
        check(UsageSpan::Month, "2028-02-29T12:00:00Z", "2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z");
    }
}
