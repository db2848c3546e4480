//! How fast every view of usage answers over a million requests of a year, and how PostgreSQL reads a log of days.
//! `cargo bench --bench usage_views`; `USAGE_ROWS` (default 1,000,000) says how many requests, `USAGE_LOG_ROWS` (default
//! 3,000,000) how many rows the log of thirty days has.
//!
//! Requests are those of 20 providers with 5 models each, 40 consumers that ask 5 models each on two power levels, and 5,000
//! users. They go through the store as the shipper's batches do, so that sums are those which the gateway writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::indexing_slicing)]

#[path = "../tests/it/support/pg.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod pg;

use std::{sync::Arc, time::Instant};

use catalog::price::Money;
use chrono::{DateTime, TimeDelta, Utc};
use pg::{Cluster, Options, TestDb};
use providerd::store::{NewUsage, Store, StoreSettings, UsageBatch, UsageBy, UsageCursor, UsageQuery};
use uuid::Uuid;

const BATCH: u64 = 5_000;
const YEAR: i64 = 365 * 86_400;

/// Spread over numbers as chance would, alike in every run.
const fn scattered(number: u64) -> u64 {
    let it = (number ^ (number >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    it ^ (it >> 29)
}

/// Names that rows borrow.
struct Names {
    providers: Vec<String>,
    models: Vec<String>,
    consumers: Vec<String>,
    users: Vec<String>,
}

impl Names {
    fn new() -> Self {
        let names = |what: &str, count: usize| (0..count).map(|n| format!("{what}-{n}")).collect();
        Self {
            providers: names("provider", 20),
            models: names("model", 100),
            consumers: names("consumer", 40),
            users: names("user", 5_000),
        }
    }

    fn row(&self, number: u64, at: DateTime<Utc>) -> NewUsage<'_> {
        let chance = scattered(number);
        let pick = |shift: u64, count: usize| usize::try_from((chance >> shift) % count as u64).unwrap();
        let consumer = pick(0, 40);
        let model = (consumer * 7 + pick(8, 5) * 13) % 100;
        let cost = i64::try_from(chance % 40_000_000).unwrap();
        NewUsage {
            id: Uuid::from_u128(u128::from(number) + (7 << 76)),
            at,
            user_id: &self.users[pick(16, 5_000)],
            provider: &self.providers[model % 20],
            model: &self.models[model],
            consumer: &self.consumers[consumer],
            request_id: "r",
            power_level: if chance & 1 == 0 { "eco" } else { "balanced" },
            input: chance % 4_000,
            output: chance % 700,
            cost_input: Some(Money::from_units(cost / 2)),
            cost_output: Some(Money::from_units(cost - cost / 2)),
            cost_total: Some(Money::from_units(cost)),
            latency_ms: 200 + u32::try_from(chance % 9_000).unwrap(),
            ttft_ms: Some(100 + u32::try_from(chance % 900).unwrap()),
            status_code: Some(200),
            success: !chance.is_multiple_of(50),
            metadata: "{}".to_owned(),
            ..NewUsage::default()
        }
    }
}

async fn fill(db: &TestDb, store: &Store, rows: u64, now: DateTime<Utc>) {
    let names = Names::new();
    let table = store.usage_table().await.unwrap();
    let spool = Uuid::from_u128(1);
    let mut from = None;
    let begun = Instant::now();
    for batch in 0..rows.div_ceil(BATCH) {
        let numbers = batch * BATCH..rows.min((batch + 1) * BATCH);
        let stored: Vec<NewUsage<'_>> = numbers
            .map(|number| {
                let ago = YEAR - i64::try_from(number).unwrap() * YEAR / i64::try_from(rows).unwrap();
                names.row(number, now - TimeDelta::seconds(ago))
            })
            .collect();
        let to = UsageCursor { segment: 0, offset: batch + 1 };
        let wanted = UsageBatch { spool, node: "node", from, to, rows: &stored };
        store.usage_ship(&table, &wanted).await.unwrap().commit().await.unwrap();
        from = Some(to);
    }
    println!("{rows} rows of a year stored with their sums in {:.0} s", begun.elapsed().as_secs_f64());
    db.run("ANALYZE").await;
    let sizes = db
        .text(
            "SELECT string_agg(relname || ' ' || n, ', ' ORDER BY relname) s FROM (
                 SELECT 'hourly' relname, count(*) n FROM providerd.usage_hourly UNION ALL
                 SELECT 'daily', count(*) FROM providerd.usage_daily UNION ALL
                 SELECT 'monthly', count(*) FROM providerd.usage_monthly UNION ALL
                 SELECT 'series_hourly', count(*) FROM providerd.usage_series_hourly UNION ALL
                 SELECT 'series_daily', count(*) FROM providerd.usage_series_daily UNION ALL
                 SELECT 'users', count(*) FROM providerd.usage_users UNION ALL
                 SELECT 'users_monthly', count(*) FROM providerd.usage_users_monthly) q",
        )
        .await;
    println!("rows of sums: {sizes}");
}

async fn views(store: &Store, now: DateTime<Utc>) {
    use UsageBy::{Consumer, Day, Hour, Level, Model, Provider, User};
    let questions: [(&[UsageBy], i64); 14] = [
        (&[], 365),
        (&[Provider], 365),
        (&[Model], 365),
        (&[Consumer], 365),
        (&[Level], 365),
        (&[User], 365),
        (&[Day], 365),
        (&[Hour], 31),
        (&[Provider, Day], 365),
        (&[Consumer, Day], 90),
        (&[Model, Day], 31),
        (&[Model, Level], 365),
        (&[Consumer, Model], 365),
        (&[Consumer, User], 365),
    ];
    let ranges = [
        ("1 h", TimeDelta::hours(1)),
        ("1 d", TimeDelta::days(1)),
        ("7 d", TimeDelta::days(7)),
        ("30 d", TimeDelta::days(30)),
        ("90 d", TimeDelta::days(90)),
        ("365 d", TimeDelta::days(365)),
    ];
    let mut slowest = 0.0_f64;
    for filter in [None, Some("consumer-3")] {
        for (by, longest) in questions {
            let mut text = Vec::new();
            for (range, length) in ranges {
                if length > TimeDelta::days(longest) {
                    continue;
                }
                let query = UsageQuery {
                    by: by.to_vec(),
                    since: now - length,
                    until: None,
                    provider: None,
                    consumer: filter.map(str::to_owned),
                };
                // The second of three: what a page costs that is looked at.
                let mut times = Vec::new();
                let mut lines = 0;
                for _ in 0..3 {
                    let begun = Instant::now();
                    lines = store.usage_lines(&query, now).await.unwrap().len();
                    times.push(begun.elapsed().as_secs_f64() * 1e3);
                }
                times.sort_by(f64::total_cmp);
                slowest = slowest.max(times[1]);
                text.push(format!("{range} {:.1} ms ({lines})", times[1]));
            }
            let words: Vec<&str> = by.iter().map(|it| it.as_str()).collect();
            println!(
                "by [{}]{}: {}",
                words.join(","),
                filter.map_or("", |_| " of one consumer"),
                text.join(", ")
            );
        }
    }
    println!("slowest: {slowest:.1} ms");
}

/// The seed's own question over thirty days, on a log of days.
async fn log_of_days(db: &TestDb, rows: u64) {
    db.run(&format!(
        "DO $$ DECLARE d date; BEGIN
             FOR d IN SELECT timezone('utc', now())::date - n FROM generate_series(1, 30) n LOOP
                 EXECUTE format('CREATE TABLE IF NOT EXISTS llm_usage_logs_%s PARTITION OF llm_usage_logs FOR VALUES FROM (%L) TO (%L)',
                                to_char(d, 'YYYYMMDD'), d, d + 1);
             END LOOP;
         END $$;
         INSERT INTO llm_providers (id, name, type)
             SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(1 + n), 12, '0'))::uuid, 'provider-' || n, 'openai' FROM generate_series(0, 19) n;
         INSERT INTO llm_usage_logs (provider_id, model_name, prompt_tokens, completion_tokens, input_tokens, output_tokens, request_tokens,
                                     response_tokens, total_tokens, cost_total_usd, cost, success, status, created_at)
             SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(1 + n % 20), 12, '0'))::uuid, 'm', 10, 5, 10, 5, 10, 5, 15, 0.001, 0.001, true,
                    'success', timezone('utc', now()) - interval '30 days' * n / {rows}
             FROM generate_series(1, {rows}) n;
         ANALYZE llm_usage_logs"
    ))
    .await;
    let explain = "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, SUMMARY ON)
        SELECT COUNT(*) AS total_calls, SUM(prompt_tokens) AS input_tokens, SUM(completion_tokens) AS output_tokens,
               SUM(cost_total_usd) AS total_cost FROM llm_usage_logs
        WHERE provider_id = '00000000-0000-0000-0000-000000000001' AND created_at >= NOW() - INTERVAL '30 days'";
    let mut connection = db.connect().await;
    for round in 1..=2 {
        let plan: Vec<String> =
            sqlx::query_scalar(explain).persistent(false).fetch_all(&mut connection).await.unwrap();
        let kept: Vec<&str> = plan
            .iter()
            .map(|line| line.trim())
            .filter(|line| {
                [
                    "Aggregate",
                    "Finalize",
                    "Gather",
                    "Append",
                    "Subplans",
                    "Execution",
                    "Planning Time",
                    "Buffers: shared hit",
                ]
                .iter()
                .any(|word| line.contains(word))
            })
            .take(8)
            .collect();
        let scans = plan.iter().filter(|line| line.contains("Scan")).count();
        println!("the seed's question, {rows} rows, round {round} ({scans} scans): {}", kept.join(" | "));
    }
    let first = plan_of_one(&mut connection, explain).await;
    println!("one day: {first}");
}

async fn plan_of_one(connection: &mut sqlx::PgConnection, explain: &'static str) -> String {
    let plan: Vec<String> =
        sqlx::query_scalar(explain).persistent(false).fetch_all(connection).await.unwrap();
    let at = plan
        .iter()
        .position(|line| line.contains("Scan on llm_usage_logs_") || line.contains("Scan using"))
        .unwrap_or(0);
    plan[at..plan.len().min(at + 5)].iter().map(|it| it.trim()).collect::<Vec<_>>().join(" | ")
}

fn count(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |it| it.parse().unwrap())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let cluster = Arc::new(Cluster::start_private(Options { fsync: false }));
    let db = cluster.database("views").await;
    let store = Store::connect(&StoreSettings::new(db.url.clone().into())).await.unwrap();
    store.migrate().await.unwrap();
    let now = Utc::now();
    fill(&db, &store, count("USAGE_ROWS", 1_000_000), now).await;
    views(&store, now).await;
    db.run("TRUNCATE llm_usage_logs").await;
    log_of_days(&db, count("USAGE_LOG_ROWS", 3_000_000)).await;
}
