//! Usage from the spool to the database: once, whoever dies when, whatever the table is like.

use std::{path::Path, sync::Arc, time::Duration};

use catalog::price::{Money, PricedTokens, TokenRates, UsageCost};
use chrono::{DateTime, TimeDelta, Utc};
use gateway::spool::{RequestFacts, Spool, SpoolSettings, UsageIntent, UsageRow, UsageSource};
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};
use providerd::{
    store::{Store, StoreSettings, UsageBy, UsageQuery},
    usage::{ShipReport, Shipper, ShipperSettings},
};
use uuid::Uuid;

use crate::support::{
    http::Api,
    lab::{Lab, provider},
    pg::{Cluster, Options, TestDb, pg},
};

const PROVIDER: Uuid = Uuid::from_u128(1);
const MODEL: Uuid = Uuid::from_u128(2);

async fn store(db: &TestDb) -> Store {
    Store::connect(&StoreSettings::new(db.url.clone().into())).await.expect("the URL is valid")
}

async fn migrated(db: &TestDb) -> Store {
    let store = store(db).await;
    store.migrate().await.expect("the layout is joined");
    store
}

/// A provider and a model of it, in whatever layout.
async fn with_model(db: &TestDb) {
    db.run(&format!(
        "INSERT INTO llm_providers (id, name, type, api_key_encrypted, api_base_url) VALUES ('{PROVIDER}', 'shop', 'openai', '', '');
         INSERT INTO llm_models (id, provider_id, name) VALUES ('{MODEL}', '{PROVIDER}', 'gpt')"
    ))
    .await;
}

fn open(dir: &Path) -> Arc<Spool> {
    let settings = SpoolSettings { segment_bytes: 64 << 10, ..SpoolSettings::new(dir.to_owned()) };
    Arc::new(Spool::open(settings).expect("the spool opens"))
}

fn shipper(spool: &Arc<Spool>, store: &Store) -> Shipper {
    let settings = ShipperSettings { batch: 100, ..ShipperSettings::new("node-1".to_owned()) };
    Shipper::new(Arc::clone(spool), store.clone(), settings)
}

fn facts(number: u64, at: DateTime<Utc>) -> RequestFacts<'static> {
    RequestFacts {
        id: Uuid::from_u128(u128::from(number) + (7 << 76)),
        at: at.timestamp_micros(),
        provider_id: Some(PROVIDER),
        model_id: Some(MODEL),
        provider: "shop".into(),
        model: "gpt".into(),
        consumer: "web".into(),
        user_id: "ann".into(),
        request_id: format!("r-{number}").into(),
        power_level: "eco".into(),
        seed: 7,
        ..RequestFacts::default()
    }
}

fn row(number: u64, at: DateTime<Utc>) -> UsageRow<'static> {
    UsageRow {
        facts: facts(number, at),
        tokens: PricedTokens { input: 10, cache_read: 5, cache_write: 3, cache_write_1h: 2, output: 7 },
        reasoning: 4,
        cost: UsageCost {
            input: "0.0000000001".parse().ok(),
            output: "0.5".parse().ok(),
            computed: "0.5000000001".parse().ok(),
            ..UsageCost::default()
        },
        rates: TokenRates { input: "0.25".parse().ok(), ..TokenRates::default() },
        factor: catalog::price::LISTED,
        source: UsageSource::Reported,
        latency_ms: 120,
        ttft_ms: Some(30),
        status_code: Some(200),
        success: true,
        attempts: 1,
        ..UsageRow::default()
    }
}

fn write(spool: &Spool, row: &UsageRow<'_>) {
    let intent = UsageIntent { facts: row.facts.clone(), ..UsageIntent::default() };
    let ticket = spool.intent(&intent).expect("there is room");
    spool.outcome(ticket, row).expect("there is room");
}

/// Ships until nothing is left; what was done in all.
async fn drain(spool: &Spool, shipper: &mut Shipper) -> ShipReport {
    spool.sync_now().expect("the disk takes it");
    let mut sum = ShipReport::default();
    loop {
        let now = shipper.round().await.expect("shipped");
        if now == ShipReport::default() {
            return sum;
        }
        sum.stored += now.stored;
        sum.known += now.known;
        sum.rejected += now.rejected;
    }
}

async fn rows(db: &TestDb) -> i64 {
    let text = db.text("SELECT count(*) n FROM llm_usage_logs").await;
    serde_json::from_str::<serde_json::Value>(&text).expect("JSON")["n"].as_i64().expect("a number")
}

fn everything() -> UsageQuery {
    UsageQuery {
        by: Vec::new(),
        since: DateTime::<Utc>::UNIX_EPOCH,
        until: None,
        provider: None,
        consumer: None,
    }
}

async fn summed(store: &Store) -> i64 {
    let lines = store.usage_lines(&everything(), Utc::now()).await.expect("readable");
    lines.first().map_or(0, |line| line.requests)
}

const A: &str = include_str!("../layouts/a.sql");
const B: &str = include_str!("../layouts/b.sql");
const D: &str = include_str!("../layouts/d.sql");

/// One row through the spool into a layout, every column.
async fn arrives(layout: &str, sql: &str, digits: usize) {
    let db = pg().database(&format!("ship_{layout}")).await;
    db.run(sql).await;
    let store = migrated(&db).await;
    with_model(&db).await;
    db.run("DELETE FROM llm_usage_logs").await;
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    let now = Utc::now();
    write(&spool, &row(1, now));
    // Nothing is known of it: no user, no model, no price, no answer.
    let mut bare = row(2, now);
    bare.facts.user_id = "".into();
    bare.facts.provider_id = Some(Uuid::from_u128(404));
    bare.facts.model_id = Some(Uuid::from_u128(405));
    bare.facts.model = "x".repeat(255).into();
    bare.cost = UsageCost::default();
    bare.status_code = None;
    bare.success = false;
    bare.error = "gateway stopped".into();
    write(&spool, &bare);
    let mut shipper = shipper(&spool, &store);
    let done = drain(&spool, &mut shipper).await;
    assert_eq!((done.stored, done.known, done.rejected), (2, 0, 0), "{layout}");
    let got = db
        .text(
            "SELECT user_id u, provider_id p, model_id m, model_name n, request_id r, power_level l, prompt_tokens + input_tokens
                + request_tokens i, completion_tokens + output_tokens + response_tokens o, total_tokens t, latency_ms ms,
                status_code c, success s, status w, error_message e, was_fallback f, metadata->>'consumer' k,
                metadata->>'cached_tokens' h, metadata->>'reasoning_tokens' a, metadata->>'usage_source' v
             FROM llm_usage_logs WHERE success",
        )
        .await;
    let expected = serde_json::json!({
        "u": "ann", "p": PROVIDER, "m": MODEL, "n": "gpt", "r": "r-1", "l": "eco", "i": 60, "o": 21, "t": 27, "ms": 120,
        "c": 200, "s": true, "w": "success", "e": null, "f": false, "k": "web", "h": "5", "a": "4", "v": "reported",
    });
    assert_eq!(serde_json::from_str::<serde_json::Value>(&got).expect("JSON"), expected, "{layout}");
    let cost = db
        .text("SELECT trim_scale(cost_input_usd)::text a, trim_scale(cost_output_usd)::text b, trim_scale(cost_total_usd)::text c FROM llm_usage_logs WHERE success")
        .await;
    let part = if digits == 10 { ("0.0000000001", "0.5000000001") } else { ("0", "0.5") };
    let expected = serde_json::json!({"a": part.0, "b": "0.5", "c": part.1});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&cost).expect("JSON"), expected, "{layout}");
    let gone = db
        .text("SELECT provider_id p, model_id m, cost_total_usd c, status w, status_code s, metadata->>'provider' n FROM llm_usage_logs WHERE NOT success")
        .await;
    let expected = serde_json::json!({"p": null, "m": null, "c": null, "w": "error", "s": null, "n": "shop"});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&gone).expect("JSON"), expected, "{layout}");
    // Times are the requests', in UTC.
    let near = "SELECT count(*) n FROM llm_usage_logs WHERE abs(extract(epoch FROM created_at - timezone('utc', now()))) < 60";
    assert_eq!(db.text(near).await, r#"{"n": 2}"#);
    assert_eq!(summed(&store).await, 2);
}

#[tokio::test]
async fn a_row_arrives_whole_in_every_layout() {
    arrives("fresh", "", 10).await;
    arrives("a", A, 8).await;
    arrives("b", B, 8).await;
    arrives("d", D, 8).await;
}

#[tokio::test]
async fn a_log_that_numbers_its_rows_itself_is_shipped_to() {
    let db = pg().database("serial").await;
    db.run("CREATE TABLE llm_usage_logs (id bigserial PRIMARY KEY, user_id varchar(10) NOT NULL, created_at timestamp DEFAULT now())").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    let mut long = row(1, Utc::now());
    long.facts.user_id = "a name of more than ten letters".into();
    write(&spool, &long);
    write(
        &spool,
        &UsageRow {
            facts: RequestFacts { user_id: "".into(), ..facts(2, Utc::now()) },
            ..row(2, Utc::now())
        },
    );
    let done = drain(&spool, &mut shipper(&spool, &store)).await;
    assert_eq!((done.stored, done.rejected), (2, 0));
    let users = db.text("SELECT id, user_id u FROM llm_usage_logs ORDER BY id").await;
    assert_eq!(users, "{\"u\": \"a name of \", \"id\": 1}\n{\"u\": \"web\", \"id\": 2}");
}

#[tokio::test]
async fn a_row_that_somebody_refuses_holds_up_no_other() {
    let db = pg().database("refuse").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    db.run("ALTER TABLE llm_usage_logs ADD CONSTRAINT theirs CHECK (request_id NOT IN ('r-13', 'r-77'))")
        .await;
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    for number in 0..150 {
        write(&spool, &row(number, Utc::now()));
    }
    let done = drain(&spool, &mut shipper(&spool, &store)).await;
    assert_eq!((done.stored, done.rejected), (148, 2));
    assert_eq!((rows(&db).await, summed(&store).await), (148, 148));
    assert_eq!(spool.stats().rejected, 2);
    let mut aside = String::new();
    for entry in std::fs::read_dir(dir.path().join("rejected")).expect("a directory") {
        aside.push_str(&std::fs::read_to_string(entry.expect("an entry").path()).expect("readable"));
    }
    let refused: Vec<serde_json::Value> =
        aside.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    assert_eq!(refused.len(), 2);
    for line in &refused {
        assert!(line["reason"].as_str().is_some_and(|it| it.contains("theirs")), "{line}");
        assert!(["r-13", "r-77"].contains(&line["request_id"].as_str().unwrap_or_default()), "{line}");
        assert_eq!(line["cost_total_usd"], "0.5000000001");
    }
}

/// Two shippers of one spool, and processes that end between writing and letting go.
#[tokio::test]
async fn nothing_is_stored_twice() {
    let db = pg().database("twice").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut written = 0;
    let mut conflicts = 0;
    for _ in 0..4 {
        let spool = open(dir.path());
        for _ in 0..250 {
            write(&spool, &row(written, Utc::now()));
            written += 1;
        }
        spool.sync_now().expect("the disk takes it");
        let (mut one, mut two) = (shipper(&spool, &store), shipper(&spool, &store));
        // Both read the same cursor; only one moves it.
        let (first, second) = tokio::join!(one.round(), two.round());
        conflicts += u32::from(first.is_err()) + u32::from(second.is_err());
        // The rest waits in the spool for the next process.
    }
    let spool = open(dir.path());
    drain(&spool, &mut shipper(&spool, &store)).await;
    let written = i64::try_from(written).expect("small");
    assert_eq!((rows(&db).await, summed(&store).await), (written, written));
    assert!(conflicts > 0, "the two never met");
    // A cursor that is lost, as with an old dump: ids keep rows from being stored and summed again.
    for number in 0..10 {
        write(&spool, &row(5_000 + number, Utc::now()));
    }
    drain(&spool, &mut shipper(&spool, &store)).await;
    write(&spool, &row(6_000, Utc::now()));
    db.run("DELETE FROM providerd.usage_cursor").await;
    let done = drain(&spool, &mut shipper(&spool, &store)).await;
    assert_eq!(done.stored, 1);
    assert_eq!((rows(&db).await, summed(&store).await), (written + 11, written + 11));
}

/// The server is killed again and again, and away for a while, while rows are written, read and shipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_and_kills_of_the_server_lose_and_double_nothing() {
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("outage").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    let dir = tempfile::tempdir().expect("a directory");
    let mut written = 0;
    let mut failures = 0;
    for round in 0..6_u64 {
        let spool = open(dir.path());
        let mut shipper = shipper(&spool, &store);
        for _ in 0..400 {
            write(&spool, &row(written, Utc::now()));
            written += 1;
        }
        spool.sync_now().expect("the disk takes it");
        let killer = {
            let cluster = Arc::clone(&cluster);
            // At another point of the work each time.
            tokio::task::spawn_blocking(move || {
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_millis(3 + round * 7) {
                    std::thread::yield_now();
                }
                cluster.stop_immediate();
            })
        };
        while !killer.is_finished() {
            failures += u32::from(shipper.round().await.is_err());
        }
        killer.await.expect("the server is stopped");
        // Away: requests go on, none is refused.
        for _ in 0..50 {
            write(&spool, &row(written, Utc::now()));
            written += 1;
        }
        spool.sync_now().expect("the disk takes it");
        failures += u32::from(shipper.round().await.is_err());
        let restarted = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || restarted.start()).await.expect("the server starts");
        if round % 2 == 0 {
            // The gateway ends too, in the middle of a request.
            let ticket =
                spool.intent(&UsageIntent { facts: facts(written, Utc::now()), ..UsageIntent::default() });
            written += 1;
            drop(ticket);
        }
    }
    let spool = open(dir.path());
    let mut shipper = shipper(&spool, &store);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    spool.sync_now().expect("the disk takes it");
    loop {
        match shipper.round().await {
            Ok(report) if report == ShipReport::default() => break,
            Ok(_) => {}
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
    }
    assert!(failures > 0, "no kill was noticed");
    let written = i64::try_from(written).expect("small");
    assert_eq!((rows(&db).await, summed(&store).await), (written, written));
    let stopped =
        "SELECT count(*) n FROM llm_usage_logs WHERE error_message = 'gateway stopped' AND NOT success";
    assert_eq!(db.text(stopped).await, r#"{"n": 3}"#);
    assert_eq!(db.text("SELECT count(*) - count(DISTINCT id) n FROM llm_usage_logs").await, r#"{"n": 0}"#);
}

/// Sums are what the log says, however it is asked.
#[tokio::test]
async fn sums_are_what_the_rows_say() {
    let db = pg().database("sums").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    let now = Utc::now();
    let any = (
        0_i64..200,
        prop::option::of(0_i64..i64::MAX / 1_000),
        0_u64..3_000_000_000,
        0_u32..100_000,
        any::<bool>(),
        ("a|b|c", "x|y", "eco|", "u|v|"),
    );
    let mut runner = TestRunner::deterministic();
    for number in 0..600 {
        let (hours, cost, tokens, latency, success, (provider, model, level, user)) =
            any.new_tree(&mut runner).expect("a value").current();
        let mut it = row(number, now - TimeDelta::hours(hours));
        it.facts.provider = provider.into();
        it.facts.model = model.into();
        it.facts.power_level = level.into();
        it.facts.user_id = user.into();
        it.facts.consumer = if number % 3 == 0 { "one" } else { "two" }.into();
        it.tokens = PricedTokens { input: tokens, output: tokens / 2, ..PricedTokens::default() };
        it.cost = UsageCost { computed: cost.map(Money::from_units), ..UsageCost::default() };
        it.latency_ms = latency;
        it.success = success;
        write(&spool, &it);
    }
    let done = drain(&spool, &mut shipper(&spool, &store)).await;
    assert_eq!((done.stored, done.rejected), (600, 0));
    let since = now - TimeDelta::hours(300);
    let numbers = "count(*)::text || ' ' || count(*) FILTER (WHERE NOT success) || ' ' || sum(prompt_tokens::bigint) || ' '
        || sum(completion_tokens::bigint) || ' ' || trim_scale(coalesce(sum(cost_total_usd), 0)) || ' '
        || count(*) FILTER (WHERE cost_total_usd IS NULL) || ' ' || sum(latency_ms::bigint)";
    for (by, key) in [
        (vec![], "''"),
        (vec![UsageBy::Provider], "metadata->>'provider'"),
        (vec![UsageBy::Model], "(metadata->>'provider') || '/' || model_name"),
        (vec![UsageBy::Consumer], "metadata->>'consumer'"),
        (vec![UsageBy::Level], "coalesce(power_level, '')"),
        (vec![UsageBy::User], "coalesce(user_id, '')"),
        (vec![UsageBy::Day], "to_char(created_at, 'YYYY-MM-DD')"),
        (vec![UsageBy::Hour], "to_char(created_at, 'YYYY-MM-DD\"T\"HH24:00\"Z\"')"),
        (
            vec![UsageBy::Day, UsageBy::Consumer, UsageBy::User],
            "to_char(created_at, 'YYYY-MM-DD') || '|' || (metadata->>'consumer') || '|' || coalesce(user_id, '')",
        ),
    ] {
        let mut expected: Vec<String> = db
            .text(&format!("SELECT {key} k, {numbers} n FROM llm_usage_logs GROUP BY 1"))
            .await
            .lines()
            .map(|line| {
                let it: serde_json::Value = serde_json::from_str(line).expect("JSON");
                format!("{}: {}", it["k"].as_str().expect("a text"), it["n"].as_str().expect("a text"))
            })
            .collect();
        expected.sort();
        let wanted = UsageQuery { by: by.clone(), since, ..everything() };
        let lines = store.usage_lines(&wanted, now).await.expect("readable");
        let mut got: Vec<String> = lines
            .iter()
            .map(|it| {
                format!(
                    "{}: {} {} {} {} {} {} {}",
                    it.key.join("|"),
                    it.requests,
                    it.errors,
                    it.input,
                    it.output,
                    it.cost,
                    it.unpriced,
                    it.latency_ms
                )
            })
            .collect();
        got.sort();
        assert_eq!(got, expected, "{by:?}");
    }
    // Percentiles are those of the rows, within a class.
    let exact = db
        .text("SELECT percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_ms)::bigint p FROM llm_usage_logs")
        .await;
    let exact =
        serde_json::from_str::<serde_json::Value>(&exact).expect("JSON")["p"].as_f64().expect("a number");
    let line =
        store.usage_lines(&UsageQuery { since, ..everything() }, now).await.expect("readable").remove(0);
    let near = line.latency.percentile(0.95).expect("counted") as f64;
    assert!(near / exact < 1.45 && exact / near < 1.45, "{near} for {exact}");
    // Filters.
    let one = UsageQuery {
        since,
        consumer: Some("one".to_owned()),
        provider: Some("a".to_owned()),
        ..everything()
    };
    let line = store.usage_lines(&one, now).await.expect("readable").remove(0);
    let expected = db.text("SELECT count(*) n FROM llm_usage_logs WHERE metadata->>'consumer' = 'one' AND metadata->>'provider' = 'a'").await;
    assert_eq!(format!(r#"{{"n": {}}}"#, line.requests), expected);
}

#[tokio::test]
async fn old_days_go_and_new_ones_come() {
    let db = pg().database("keep").await;
    let store = migrated(&db).await;
    with_model(&db).await;
    let now = Utc::now();
    // Days as they were made a month ago.
    db.run(
        "DO $$ DECLARE d date; BEGIN
            FOR d IN SELECT timezone('utc', now())::date - n FROM generate_series(1, 30) n LOOP
                EXECUTE format('CREATE TABLE llm_usage_logs_%s PARTITION OF llm_usage_logs FOR VALUES FROM (%L) TO (%L)',
                               to_char(d, 'YYYYMMDD'), d, d + 1);
            END LOOP;
         END $$;
         INSERT INTO llm_usage_logs (model_name, created_at)
         SELECT 'm', timezone('utc', now()) - n * interval '1 day' FROM generate_series(0, 60) n",
    )
    .await;
    let done = store
        .usage_maintain(Some(now - TimeDelta::days(10)), Some(now - TimeDelta::days(400)))
        .await
        .expect("kept");
    assert_eq!((done.dropped.len(), done.deleted, done.made, done.mirrored), (20, 30, 0, false));
    assert_eq!(rows(&db).await, 11);
    assert_eq!(
        store.usage_maintain(Some(now - TimeDelta::days(10)), None).await.expect("kept"),
        Default::default()
    );
}

/// An adopted table becomes the oldest partition of a log of days, with all that hung on it.
#[tokio::test]
async fn an_adopted_table_is_partitioned_on_request_only() {
    for (layout, sql) in [("a", A), ("b", B), ("d", D)] {
        let db = pg().database(&format!("adopted_{layout}")).await;
        db.run(sql).await;
        let store = migrated(&db).await;
        with_model(&db).await;
        db.run(
            "CREATE INDEX their_user ON llm_usage_logs (user_id);
             CREATE FUNCTION their() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.error_message := 'theirs'; RETURN NEW; END $$;
             CREATE TRIGGER their BEFORE INSERT ON llm_usage_logs FOR EACH ROW EXECUTE FUNCTION their();
             CREATE VIEW their_view AS SELECT * FROM llm_usage_logs",
        )
        .await;
        let plan = store.usage_partition_plan().await.expect("looked at");
        assert!(
            !plan.done && plan.obstacles.len() == 1 && plan.obstacles[0].contains("their_view"),
            "{plan:?}"
        );
        let error = store.usage_partition().await.expect_err("a view is in the way");
        assert!(error.to_string().contains("their_view"), "{error}");
        db.run("DROP VIEW their_view; DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'reader') THEN CREATE ROLE reader; END IF; END $$;
                GRANT SELECT ON llm_usage_logs TO reader").await;
        let before = db.text("SELECT * FROM llm_usage_logs ORDER BY id").await;
        let file = db.text("SELECT pg_relation_filenode('llm_usage_logs') f").await;
        store.usage_partition().await.expect("partitioned");
        assert!(store.usage_partition_plan().await.expect("looked at").done);
        assert_eq!(before, db.text("SELECT * FROM llm_usage_logs ORDER BY id").await, "{layout}");
        assert_eq!(
            file,
            db.text("SELECT pg_relation_filenode('llm_usage_logs_before') f").await,
            "{layout} was rewritten"
        );
        let kept = db
            .text("SELECT (SELECT count(*) FROM pg_indexes WHERE tablename = 'llm_usage_logs' AND indexdef ~ 'user_id') i,
                          (SELECT count(*) FROM pg_trigger WHERE tgrelid = 'llm_usage_logs'::regclass AND tgname IN ('their', 'providerd_usage')) t,
                          has_table_privilege('reader', 'llm_usage_logs', 'SELECT') g")
            .await;
        assert_eq!(kept, r#"{"g": true, "i": 1, "t": 2}"#, "{layout}");
        // It goes on as before: by other programs and by the shipper, and once more is nothing to do.
        db.run("INSERT INTO llm_usage_logs (user_id, model_name, input_tokens) VALUES ('u', 'm', 5);
                INSERT INTO llm_usage_logs (user_id, model_name, created_at) VALUES ('u', 'm', now() + interval '3 days')").await;
        let theirs = db.text("SELECT prompt_tokens p, error_message e FROM llm_usage_logs WHERE input_tokens = 5 AND user_id = 'u'").await;
        assert_eq!(theirs, r#"{"e": "theirs", "p": 5}"#, "{layout}");
        let dir = tempfile::tempdir().expect("a directory");
        let spool = open(dir.path());
        write(&spool, &row(1, Utc::now() + TimeDelta::days(2)));
        assert_eq!(drain(&spool, &mut shipper(&spool, &store)).await.stored, 1);
        store.usage_partition().await.expect("nothing to do");
        // Long after, the old table goes as a whole.
        let done = store.usage_maintain(Some(Utc::now() + TimeDelta::days(2)), None).await.expect("kept");
        assert!(done.dropped.contains(&"llm_usage_logs_before".to_owned()), "{done:?}");
    }
}

/// What operators and pages see, by the program itself.
#[tokio::test(flavor = "multi_thread")]
async fn usage_is_shown_in_every_form() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    assert!(lab.run(&["usage"]).expect(0).stdout.starts_with("no usage since"), "a database without tables");
    lab.run(&["apply"]).expect(0);
    let store = Store::connect(&StoreSettings::new(lab.url.clone().into())).await.expect("the URL is valid");
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    for number in 0..3 {
        let mut it = row(number, Utc::now());
        it.facts.user_id = if number == 0 { "=formula" } else { "ann, b" }.into();
        it.cost.computed = (number > 0).then_some(Money::from_units(1_234_567_891));
        write(&spool, &it);
    }
    drain(&spool, &mut shipper(&spool, &store)).await;
    let shown = lab.run(&["usage"]).expect(0).stdout;
    assert!(
        shown.contains("shop")
            && shown.contains("FIRST")
            && shown.contains("0.2469135782")
            && shown.contains("note: 1 requests"),
        "{shown}"
    );
    assert!(shown.lines().all(|line| line.chars().count() <= 80), "{shown}");
    let json = lab.run(&["usage", "--by", "user", "--output", "json"]).expect(0).json();
    assert_eq!(json["by"], serde_json::json!(["user"]));
    let item = &json["items"][0];
    assert_eq!(
        [
            &item["user"],
            &item["requests"],
            &item["cost_usd"],
            &item["input_tokens"],
            &item["ttft_p50_ms"].is_null().into()
        ],
        [&serde_json::json!("ann, b"), &2.into(), &"0.2469135782".into(), &40.into(), &true.into()],
    );
    let csv = lab.run(&["usage", "--by", "user", "--output", "csv"]).expect(0).stdout;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(
        lines[0].starts_with("user,requests,errors,") && lines[1].starts_with("\"ann, b\",2,0,"),
        "{csv}"
    );
    assert!(lines[2].starts_with("'=formula,1,0,0,20,5,5,7,4,0,1,120,"), "{csv}");
    assert!(lab.run(&["usage", "--by", "user,model"]).expect(1).stderr.contains("hint: ask by user alone"));
    lab.run(&["usage", "--by", "colour"]).expect(64);
    assert!(lab.run(&["usage", "partition"]).expect(0).stdout.contains("already"));

    let (_daemon, client) = Api::start(&lab).await;
    let answer = client.get("/api/v1/usage?by=provider,level&since=1d").await;
    assert_eq!(answer.status, 200);
    let item = &answer.json()["items"][0];
    assert_eq!(
        [&item["provider"], &item["level"], &item["unpriced"]],
        [&serde_json::json!("shop"), &"eco".into(), &1.into()]
    );
    let csv = client.get("/api/v1/usage?by=user&format=csv").await.expect(200);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    let text = String::from_utf8(csv.body).expect("UTF-8");
    assert!(text.starts_with("user,requests,errors,") && text.contains("\n\"ann, b\",2,0,"), "{text}");
    for (query, status) in [
        ("by=user&format=xml", 422),
        ("by=&consumer=web", 200),
        ("by=week,provider", 200),
        ("by=month,user", 200),
        ("by=week,week", 422),
        ("format=xml", 422),
        ("provider=%00", 200),
        ("by=colour", 422),
        ("by=user,model", 422),
        ("by=day,day", 422),
        ("since=yesterday", 422),
    ] {
        assert_eq!(client.get(&format!("/api/v1/usage?{query}")).await.status, status, "{query}");
    }
    // Weeks begin on Monday, and months with their name; both hold what the days hold.
    let weeks = client.get("/api/v1/usage?by=week&since=7d").await.json();
    let week: chrono::NaiveDate = weeks["items"][0]["week"].as_str().unwrap().parse().unwrap();
    assert_eq!(chrono::Datelike::weekday(&week), chrono::Weekday::Mon, "{weeks}");
    let months = client.get("/api/v1/usage?by=month&since=1d").await.json();
    assert_eq!(months["items"][0]["month"].as_str().map(str::len), Some(7), "{months}");
    let csv = client.get("/api/v1/usage?by=day,provider&since=1d&format=csv").await.expect(200);
    assert_eq!(csv.header("content-type"), Some("text/csv; charset=utf-8"));
    assert!(csv.header("content-disposition").unwrap().starts_with("attachment; filename=\"usage-"));
    let text = String::from_utf8(csv.body).unwrap();
    assert!(
        text.starts_with("day,provider,requests,") && text.lines().nth(1).unwrap().contains(",shop,"),
        "{text}"
    );
}

/// A model that was used is disabled when its manifest goes, and its rows of usage are not touched; one that was not is
/// deleted without reading the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_with_usage_is_retired() {
    let lab = Lab::new().await;
    let manifest = |models: &[&str]| {
        let mut text =
            "[providers.alpha]\ntype = \"openai-compatible\"\nbase_url = \"http://127.0.0.1:9/v1\"\n"
                .to_owned();
        for name in models {
            text += &format!("[[providers.alpha.models]]\nname = \"{name}\"\n");
            text += &format!(
                "[[routes]]\nmodels = \"alpha/{name}\"\npower_level = \"eco\"\nuser_tier = \"all\"\n"
            );
        }
        text
    };
    lab.write("a.toml", &manifest(&["kept", "used", "unused"]));
    lab.run(&["apply"]).expect(0);
    let store = Store::connect(&StoreSettings::new(lab.url.clone().into())).await.expect("the URL is valid");
    let dir = tempfile::tempdir().expect("a directory");
    let spool = open(dir.path());
    let id = |sql: &'static str| {
        let lab = &lab;
        async move { lab.value(sql).await.parse::<Uuid>().expect("an id") }
    };
    let mut it = row(1, Utc::now());
    it.facts.provider_id = Some(id("SELECT id::text FROM llm_providers").await);
    it.facts.model_id = Some(id("SELECT id::text FROM llm_models WHERE name = 'used'").await);
    write(&spool, &it);
    drain(&spool, &mut shipper(&spool, &store)).await;

    lab.write("a.toml", &manifest(&["kept"]));
    let plan = lab.run(&["plan"]).expect(2).stdout;
    assert!(plan.contains("retire model alpha/used") && plan.contains("delete model alpha/unused"), "{plan}");
    lab.run(&["apply"]).expect(0);
    let models = "SELECT string_agg(name || ' ' || enabled, ', ' ORDER BY name) FROM llm_models";
    assert_eq!(lab.value(models).await, "kept true, used false");
    let rules =
        "SELECT string_agg(m.name, ', ') FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id";
    assert_eq!(lab.value(rules).await, "kept");
    assert_eq!(lab.value("SELECT count(model_id)::text FROM llm_usage_logs").await, "1");
    lab.run(&["plan"]).expect(0);
    // Declared again it is the same model; who disabled it was providerd, so the manifest says that it is to be enabled.
    let again = manifest(&["kept", "used"]).replace("name = \"used\"\n", "name = \"used\"\nenabled = true\n");
    lab.write("a.toml", &again);
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value(models).await, "kept true, used true");
    assert_eq!(lab.value("SELECT count(*)::text FROM llm_usage_logs u JOIN llm_models m ON m.id = u.model_id WHERE m.enabled").await, "1");
    lab.run(&["plan"]).expect(0);
}
