//! What manifests declare for the gateway, on its way through the real program and a real PostgreSQL to what a gateway
//! reads.
#![allow(clippy::disallowed_methods, reason = "tests spawn readers of their own")]

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use catalog::serving::ObjectKind;
use gateway::picture::{
    AliasInput, Api, BudgetPeriod, BudgetSpec, ClocksInput, ConsumerInput, KeyHashInput, LevelInput,
    LimitSpec, OfferInput, Picture, PictureInput, PriceInput, TierInput, UpstreamInput,
};
use providerd::store::{GatewayObjectRow, Store, StoreSettings};

use crate::support::lab::{Lab, provider};

const EVERYTHING: &str = include_str!("../manifests/valid/gateway.toml");
const COUNT: &str = "SELECT count(*) FROM providerd.gateway_object";

/// The hash of no key, told apart by its end.
fn hash(end: &str) -> String {
    format!("{end:0>64}")
}

async fn rows(lab: &Lab) -> Vec<GatewayObjectRow> {
    let store = Store::connect(&StoreSettings::new(lab.url.clone().into())).await.expect("the URL is valid");
    let rows = store.gateway_objects().await.expect("rows of any form are read");
    store.close().await;
    rows
}

fn read<T: DeserializeOwned>(rows: &[GatewayObjectRow], kind: ObjectKind, name: &str) -> T {
    let row = rows.iter().find(|row| row.kind == kind && row.name == name);
    let row = row.unwrap_or_else(|| panic!("no {kind} {name} among {rows:?}"));
    serde_json::from_str(&row.spec).unwrap_or_else(|error| panic!("{error}: {}", row.spec))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_reads_from_the_database_what_manifests_declare() {
    let lab = Lab::new().await;
    lab.write("gateway.toml", EVERYTHING);
    let plan = lab.run(&["plan"]).expect(2).stdout;
    for line in ["+ create consumer web-app  (gateway.toml:", "limits.concurrency: 50", "+ create alias fast"]
    {
        assert!(plan.contains(line), "{line}: {plan}");
    }
    let applied = lab.run(&["apply"]).expect(0).stdout;
    assert!(applied.contains("2 consumers") && applied.contains("2 tiers"), "{applied}");
    lab.run(&["plan"]).expect(0);

    let rows = rows(&lab).await;
    assert_eq!(rows.len(), 2 + 2 + 2 + 2 + 1 + 2, "{rows:?}");
    assert!(rows.iter().all(|row| row.origin.as_ref().is_some_and(|origin| &*origin.file == "gateway.toml")));

    let upstream: UpstreamInput = read(&rows, ObjectKind::Provider, "ollama-cloud");
    assert_eq!(upstream.apis, [Api::Chat, Api::Responses].into_iter().collect());
    assert_eq!((upstream.max_in_flight, upstream.drain, upstream.local), (Some(200), true, false));
    let clocks = ClocksInput {
        connect: Some(4_000),
        first_token: Some(60_000),
        idle: Some(120_000),
        total: Some(900_000),
        total_streaming: None,
    };
    assert_eq!(upstream.clocks, clocks);
    let headers = [("accept", "*/*"), ("x-team", "ops")];
    assert_eq!(upstream.headers, headers.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let offer: OfferInput = read(&rows, ObjectKind::Model, "ollama-cloud/llama2-7b");
    assert_eq!((offer.upstream_name.as_deref(), offer.max_output_tokens), (Some("llama2:7b"), Some(4096)));
    assert_eq!(Value::from(offer.takes.clone()), json!({ "temperature": false, "efforts": ["low"] }));
    let prices = PriceInput {
        input: Some(1_000_000_000),
        output: Some(2_000_000_000),
        cached_input: Some(100_000_000),
        cache_write: Some(1_200_000_000),
        ..PriceInput::default()
    };
    assert_eq!(offer.prices, prices);
    let exact: Value = read(&rows, ObjectKind::Model, "ollama-cloud/exact-to-the-last-digit");
    assert_eq!(exact, json!({ "prices": { "input": 752_500_000 }, "prices_usd": { "input": "0.07525" } }));

    let consumer: ConsumerInput = read(&rows, ObjectKind::Consumer, "web-app");
    let key = |end: &str, expires| KeyHashInput { sha256: hash(end), expires };
    assert_eq!(
        consumer,
        ConsumerInput {
            name: "web-app".into(),
            keys: vec![
                key("face0001", Some(1_814_313_600)),
                key("face0002", Some(1_814_349_600)),
                key("face0003", None)
            ],
            user_tier: Some("pro".into()),
            models: ["ollama-cloud/*", "fast", "bal*", "!*-digit", "!plain", "ollama-cloud/plain"]
                .map(str::to_owned)
                .into(),
            limits: LimitSpec {
                requests_per_minute: Some(600),
                tokens_per_minute: Some(400_000),
                concurrency: Some(50),
                budgets: vec![
                    BudgetSpec { units: 500_000_000_000, per: BudgetPeriod::Month },
                    BudgetSpec { units: 25_000_000_000, per: BudgetPeriod::Day },
                ],
            },
            trusted: true,
            origin: None,
        }
    );
    let tier: TierInput = read(&rows, ObjectKind::Tier, "free");
    assert_eq!(tier.limits.budgets, [BudgetSpec { units: 1, per: BudgetPeriod::Week }]);
    let alias: AliasInput = read(&rows, ObjectKind::Alias, "gpt-4.1");
    assert_eq!(alias.targets, ["ollama-cloud/llama2-7b", "oc/plain", "plain", "fast", "auto"]);
    let level: LevelInput = read(&rows, ObjectKind::PowerLevel, "eco");
    assert_eq!((level.defaults.max_tokens, level.defaults.temperature), (Some(2000), Some(0.7)));

    // A picture takes them as they are.
    let input = PictureInput {
        consumers: vec![consumer, read(&rows, ObjectKind::Consumer, "Nightly.Batch_2")],
        tiers: vec![tier, read(&rows, ObjectKind::Tier, "pro")],
        aliases: vec![alias, read(&rows, ObjectKind::Alias, "fast")],
        levels: vec![level, read(&rows, ObjectKind::PowerLevel, "precision")],
        ..PictureInput::default()
    };
    let (picture, problems) = Picture::build(&input, |_| None);
    assert_eq!(problems, []);
    assert!(picture.consumer_named("Nightly.Batch_2").is_some_and(|it| it.allow.allows_all()));

    // One value changes: one field is planned, one row of the trail tells it.
    lab.write("gateway.toml", &EVERYTHING.replace("concurrency = 50", "concurrency = 51"));
    let plan = lab.run(&["plan", "--output", "json"]).expect(2).json();
    assert_eq!(plan["summary"]["consumer_update"], 1, "{plan}");
    let fields = json!([{ "field": "limits.concurrency", "old": 50, "new": 51, "cause": "declared" }]);
    assert_eq!(plan["gateway"][0]["fields"], fields, "{plan}");
    lab.run(&["apply"]).expect(0);
    let told = "SELECT detail #>> '{changes,0,name}' FROM providerd.events WHERE kind = 'gateway' ORDER BY id DESC LIMIT 1";
    assert_eq!(lab.value(told).await, "web-app");

    // What is no longer said goes, field by field and row by row.
    let short = EVERYTHING.replace("[tiers.pro]", "").replace("max_in_flight = 200", "");
    lab.write("gateway.toml", &short);
    lab.run(&["apply"]).expect(0);
    let in_flight =
        "SELECT count(*) FROM providerd.gateway_object WHERE spec ? 'max_in_flight' OR name = 'pro'";
    assert_eq!(lab.value(in_flight).await, "0");

    // They go with their provider.
    let callers = short.split_once("[aliases]").map(|(_, callers)| format!("[aliases]{callers}")).unwrap();
    lab.write("gateway.toml", &callers);
    lab.write("other.toml", &provider("alpha", 1));
    lab.run(&["apply"]);
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value(&format!("{COUNT} WHERE kind IN ('provider', 'model')")).await, "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_do_for_the_gateway_writes_no_wal() {
    let cluster = crate::support::pg::Cluster::start_private(crate::support::pg::Options::default());
    let mut lab = Lab::new().await;
    lab.url = cluster.url("postgres");
    lab.write("gateway.toml", EVERYTHING);
    lab.run(&["apply"]).expect(0);
    // A comment moves every line: that alone is worth no write.
    lab.write("gateway.toml", &format!("# moved\n{EVERYTHING}"));
    lab.execute("VACUUM FREEZE").await;
    lab.execute("CHECKPOINT").await;
    let before = lab.value("SELECT pg_current_wal_insert_lsn()").await;
    let again = lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value("SELECT pg_current_wal_insert_lsn()").await, before, "{}", again.stdout);
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
}

const CALLERS: &str = "[consumers.web]\nkeys = [\n{ sha256 = \"H1\" },\n{ sha256 = \"H2\" },\n]\n\n[tiers.free]\nlimits = { concurrency = 3 }\n";

fn callers() -> String {
    CALLERS.replace("H1", &hash("face0001")).replace("H2", &hash("face0002"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_withdrawn_at_once_and_bad_files_withdraw_nothing() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.write("callers.toml", &callers());
    lab.write("more.toml", "[consumers.batch]\n");
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.wait_for(COUNT, "3").await;
    let keys = "SELECT jsonb_array_length(spec->'keys') FROM providerd.gateway_object WHERE name = 'web'";
    assert_eq!(lab.value(keys).await, "2");
    let mut hints = sqlx::postgres::PgListener::connect(&lab.url).await.unwrap();
    hints.listen("providerd_gateway").await.unwrap();

    // A file that cannot be read, and never could, forbids every prune; a key that an edit takes out goes all the same.
    std::fs::write(lab.manifests().join("z.toml"), [0xff, 0xfe, 0]).unwrap();
    let second = format!("{{ sha256 = \"{}\" }},\n", hash("face0002"));
    lab.write("callers.toml", &callers().replace(&second, ""));
    lab.wait_for(keys, "1").await;
    let hint = tokio::time::timeout(Duration::from_secs(10), hints.recv()).await;
    assert!(hint.is_ok_and(|hint| hint.is_ok()), "gateways are told");

    // A consumer whose file is gone waits for that.
    lab.remove("more.toml");
    lab.write("callers.toml", &callers());
    lab.wait_for(keys, "2").await;
    assert_eq!(lab.value(COUNT).await, "3");
    lab.remove("z.toml");
    lab.wait_for(COUNT, "2").await;

    // A broken file keeps what it declared.
    lab.write("callers.toml", "[consumers.web]\nkey = 1\n");
    lab.write("a.toml", &provider("alpha", 2));
    lab.wait_for("SELECT priority FROM llm_providers", "2").await;
    assert_eq!(lab.value(COUNT).await, "2");
    assert_eq!(lab.value(keys).await, "2");

    // A consumer that is taken out of a file goes.
    lab.write("callers.toml", "[tiers.free]\nlimits = { concurrency = 4 }\n");
    lab.wait_for("SELECT string_agg(name, ' ') FROM providerd.gateway_object", "free").await;
    let trail = "SELECT count(*) FROM providerd.events WHERE kind = 'gateway' AND detail #>> '{changes,0,action}' = 'delete' AND file LIKE '%.toml'";
    assert_eq!(lab.value(trail).await, "2");
    assert_eq!(daemon.stop(), 0);
}

/// A prune waits until the directory has settled; a withdrawn key does not wait with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_key_does_not_wait_for_a_prune() {
    let lab = Lab::new().await;
    lab.write("a.toml", &(provider("alpha", 1) + &provider("beta", 1)));
    lab.write("callers.toml", &callers());
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_MANIFESTS__SETTLE", "5s");
    });
    daemon.wait_ready().await;
    lab.wait_for(COUNT, "2").await;
    lab.write("a.toml", &provider("beta", 1));
    let second = format!("{{ sha256 = \"{}\" }},\n", hash("face0002"));
    lab.write("callers.toml", &callers().replace(&second, ""));
    lab.wait_for("SELECT string_agg(name, ' ') FROM llm_providers", "beta").await;
    // In one transaction the trail would name the provider first.
    let order = "SELECT string_agg(kind, ' ' ORDER BY id) FROM providerd.events
         WHERE detail #>> '{changes,0,action}' IN ('update', 'delete')";
    assert_eq!(lab.value(order).await, "gateway change");
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_programs_write_there_is_read_safely_and_set_back() {
    let lab = Lab::new().await;
    lab.write("a.toml", &(provider("alpha", 1) + "\n[providers.alpha.gateway]\nmax_in_flight = 3\n"));
    lab.write("callers.toml", &callers());
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value(COUNT).await, "3");
    let specs =
        "SELECT string_agg(kind || name || spec, ' ' ORDER BY kind, name) FROM providerd.gateway_object";
    let good = lab.value(specs).await;

    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let vandals = [
        "UPDATE providerd.gateway_object SET spec = jsonb_set(spec, '{trusted}', 'true') WHERE kind = 'consumer'",
        "UPDATE providerd.gateway_object SET spec = '[]', file = NULL, line = -5, applied = '\\x00'",
        "UPDATE providerd.gateway_object SET name = name || '2'",
        "DELETE FROM providerd.gateway_object",
        "INSERT INTO providerd.gateway_object (kind, name, spec) VALUES ('consumer', 'intruder', '{\"trusted\": true}'),
             ('model', 'alpha/alpha-small', '{\"upstream_name\": \"x\"}'), ('provider', 'unknown', '7'), ('model', '', 'null')",
        "UPDATE providerd.gateway_object SET spec = (repeat('[', 500) || repeat(']', 500))::jsonb",
    ];
    for vandal in vandals {
        lab.execute(vandal).await;
        lab.wait_for(specs, &good).await;
    }
    let drift = "SELECT count(*) > 0 FROM providerd.events WHERE kind = 'gateway' AND reason LIKE 'changed by someone else%'
        AND detail #>> '{changes,0,fields,0,field}' = 'trusted' AND detail #>> '{changes,0,fields,0,cause}' = 'drift'";
    assert_eq!(lab.value(drift).await, "true");
    assert_eq!(daemon.stop(), 0);

    // A kind of a later version is left alone, and no reader stumbles over any of it.
    lab.execute(
        "INSERT INTO providerd.gateway_object (kind, name, spec, file, line)
         VALUES ('later', 'x', '{}', 'a.toml', 2147483647), ('alias', E'odd \\u2028 name', '\"text\"', '', -1)",
    )
    .await;
    let rows = rows(&lab).await;
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().any(|row| row.kind == ObjectKind::Alias && row.spec == "\"text\""));
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value(COUNT).await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_comes_with_the_lines_that_let_it_in() {
    let lab = Lab::new().await;
    let made = lab.run_with(&["key", "consumer", "web.app", "--expires", "2999-12-31"], |command| {
        command.env_remove("DATABASE_URL").env_remove("BYOK_ENCRYPTION_KEY");
    });
    let stdout = made.expect(0).stdout;
    let (key, manifest) = stdout.split_once('\n').unwrap();
    assert!(key.len() == 46 && key.starts_with("pd_"), "{key}");
    lab.write("callers.toml", manifest);
    lab.run(&["validate"]).expect(0);
    lab.run(&["apply"]).expect(0);
    let consumer: ConsumerInput = read(&rows(&lab).await, ObjectKind::Consumer, "web.app");
    let (picture, problems) =
        Picture::build(&PictureInput { consumers: vec![consumer], ..PictureInput::default() }, |_| None);
    assert_eq!(problems, []);
    let hash: [u8; 32] = Sha256::digest(key).into();
    assert_eq!(picture.consumer(&hash, 0).map(|consumer| &*consumer.name), Some("web.app"));

    // Another time it is another key, and a key in a manifest is refused without being shown.
    let again = lab.run(&["key", "consumer", "web.app", "--output", "json"]).expect(0).json();
    assert!(again["key"] != *key && again.get("expires").is_none(), "{again}");
    lab.write("callers.toml", &format!("[consumers.web]\nkeys = [{{ sha256 = \"{key}\" }}]\n"));
    let refused = lab.run(&["validate"]).expect(2).stdout;
    assert!(refused.contains("literal-key") && !refused.contains(&key[3..]), "{refused}");
    lab.run(&["key", "consumer", "two words"]).expect(64);
    lab.run(&["key", "consumer", "web", "--expires", "2001-01-01"]).expect(64);
    lab.run(&["key", "consumer", "web", "--expires", "soon"]).expect(64);
}
