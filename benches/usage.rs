//! What shipping usage costs beside a bare COPY of the same rows into the same table, and how fast sums answer.
//! `cargo bench --bench usage`; `USAGE_ROWS` (default 100,000) says how many.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

#[path = "../tests/it/support/pg.rs"]
#[allow(dead_code, reason = "a part of it is used")]
mod pg;

use std::{sync::Arc, time::Instant};

use catalog::price::{Money, PricedTokens, UsageCost};
use chrono::{TimeDelta, Utc};
use gateway::spool::{RequestFacts, Spool, SpoolSettings, UsageIntent, UsageRow, UsageSource};
use pg::{Cluster, Options, TestDb};
use providerd::{
    store::{Store, StoreSettings, UsageBy, UsageQuery},
    usage::{ShipReport, Shipper, ShipperSettings},
};
use uuid::Uuid;

const PROVIDERS: u128 = 20;
const MODELS: u128 = 100;

fn row(number: u128, rows: u128) -> UsageRow<'static> {
    let model = number % MODELS;
    let provider = model % PROVIDERS;
    // Spread over two days, as a backlog might be.
    let at = Utc::now() - TimeDelta::microseconds(i64::try_from(number * 172_800_000_000 / rows).unwrap());
    UsageRow {
        facts: RequestFacts {
            id: Uuid::now_v7(),
            at: at.timestamp_micros(),
            provider_id: Some(Uuid::from_u128(1 + provider)),
            model_id: Some(Uuid::from_u128(1_000 + model)),
            provider: format!("provider-{provider}").into(),
            model: format!("model-{model}").into(),
            consumer: format!("consumer-{}", number % 10).into(),
            user_id: format!("user-{}", number % 1_000).into(),
            user_tier: "pro".into(),
            request_id: Uuid::now_v7().to_string().into(),
            power_level: "balanced".into(),
            operation: "chat".into(),
            route: "balanced/pro".into(),
            seed: 7,
        },
        tokens: PricedTokens { input: 812, output: 203, ..PricedTokens::default() },
        cost: UsageCost {
            input: Some(Money::from_units(8_120_000)),
            output: Some(Money::from_units(4_060_000)),
            computed: Some(Money::from_units(12_180_000)),
            ..UsageCost::default()
        },
        source: UsageSource::Reported,
        latency_ms: 600 + u32::try_from(number % 3_000).unwrap(),
        ttft_ms: Some(140),
        status_code: Some(200),
        success: true,
        attempts: 1,
        ..UsageRow::default()
    }
}

async fn ship(db: &TestDb, store: &Store, rows: u128) -> f64 {
    db.run(
        "TRUNCATE llm_usage_logs, providerd.usage_hourly, providerd.usage_daily, providerd.usage_monthly,
                  providerd.usage_series_hourly, providerd.usage_series_daily, providerd.usage_users,
                  providerd.usage_users_monthly",
    )
    .await;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let spool = Arc::new(Spool::open(SpoolSettings::new(dir.path().to_owned())).unwrap());
    for number in 0..rows {
        let row = row(number, rows);
        let ticket =
            spool.intent(&UsageIntent { facts: row.facts.clone(), ..UsageIntent::default() }).unwrap();
        spool.outcome(ticket, &row).unwrap();
    }
    spool.sync_now().unwrap();
    let mut shipper =
        Shipper::new(Arc::clone(&spool), store.clone(), ShipperSettings::new("bench".to_owned()));
    let begun = Instant::now();
    let mut stored = 0;
    loop {
        let report: ShipReport = shipper.round().await.unwrap();
        if report == ShipReport::default() {
            break;
        }
        stored += report.stored as u128;
    }
    assert_eq!(stored, rows);
    begun.elapsed().as_secs_f64()
}

async fn copy(cluster: &Cluster, db: &TestDb, batch: u128, rows: u128) -> f64 {
    let dir = cluster.socket_dir().join("data");
    let mut files = Vec::new();
    let mut at = 0;
    while at < rows {
        let file = dir.join(format!("usage-{at}"));
        db.run(&format!(
            "COPY (SELECT * FROM llm_usage_logs ORDER BY id OFFSET {at} LIMIT {batch}) TO '{}'",
            file.display()
        ))
        .await;
        files.push(file);
        at += batch;
    }
    db.run("TRUNCATE llm_usage_logs").await;
    let mut connection = db.connect().await;
    let begun = Instant::now();
    for file in &files {
        // Its columns stand as SELECT * has them; each a transaction, as the shipper's batches are.
        let sql = format!("COPY llm_usage_logs FROM '{}'", file.display());
        sqlx::Executor::execute(&mut connection, sqlx::AssertSqlSafe(sql)).await.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    for file in files {
        // They belong to the server's user; what is left goes with the cluster.
        let _ = std::fs::remove_file(file);
    }
    took
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let rows: u128 = std::env::var("USAGE_ROWS").map_or(100_000, |it| it.parse().unwrap());
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("usage").await;
    let store = Store::connect(&StoreSettings::new(db.url.clone().into())).await.unwrap();
    store.migrate().await.unwrap();
    db.run(&format!(
        "INSERT INTO llm_providers (id, name, type) SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(1 + n), 12, '0'))::uuid,
             'provider-' || n, 'openai' FROM generate_series(0, {PROVIDERS} - 1) n;
         INSERT INTO llm_models (id, provider_id, name) SELECT ('00000000-0000-0000-0000-' || lpad(to_hex(1000 + n), 12, '0'))::uuid,
             ('00000000-0000-0000-0000-' || lpad(to_hex(1 + n % {PROVIDERS}), 12, '0'))::uuid, 'model-' || n
             FROM generate_series(0, {MODELS} - 1) n"
    ))
    .await;
    for round in 1..=3 {
        let shipped = ship(&db, &store, rows).await;
        let copied = copy(&cluster, &db, 5_000, rows).await;
        let each = 1e6 / rows as f64;
        println!(
            "round {round}: {rows} rows, shipping {shipped:.2} s ({:.1} us a row), COPY {copied:.2} s ({:.1} us a row): {:.2}x",
            shipped * each,
            copied * each,
            shipped / copied
        );
    }
    let now = Utc::now();
    for by in [
        vec![UsageBy::Provider],
        vec![UsageBy::Model, UsageBy::Level],
        vec![UsageBy::User],
        vec![UsageBy::Hour],
    ] {
        let query =
            UsageQuery { by, since: now - TimeDelta::days(2), until: None, provider: None, consumer: None };
        let begun = Instant::now();
        let lines = store.usage_lines(&query, now).await.unwrap();
        println!("by {:?}: {} lines in {:.1} ms", query.by, lines.len(), begun.elapsed().as_secs_f64() * 1e3);
    }
}
