//! Plans carried out and read back, on a real PostgreSQL.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;

use catalog::{
    model::Origin,
    plan::{
        Action, Cause, Change, ChangedTable, Digest, EventKind, FieldChange, Fingerprint, KeyAction,
        KeyChange, LiveKey, Managed, ProviderPlan,
    },
};
use provider::{CheckOutcome, rollup::Rollup};
use providerd::store::{
    CheckWrite, EventFilter, NewEvent, Scope, Span, StatusWrite, Store, StoreError, StoreSettings,
};

use crate::support::pg::{Cluster, Options, TestDb, pg};

fn open(token: &str) -> Option<Fingerprint> {
    token.strip_prefix("fake-token-").map(|rest| Fingerprint(rest.into()))
}

async fn fresh(db: &TestDb) -> Store {
    let store = Store::connect(&StoreSettings::new(db.url.clone().into())).await.expect("the URL is valid");
    store.migrate().await.expect("migrations run");
    store
}

fn field(name: &'static str, new: Value) -> FieldChange {
    FieldChange { field: name.into(), old: None, new, cause: Cause::Declared }
}

fn change(
    kind: ChangedTable,
    action: Action,
    id: Uuid,
    parent: Uuid,
    name: String,
    fields: Vec<FieldChange>,
) -> Change {
    Change { kind, action, id, parent, name, fields, origin: None }
}

fn record(name: &str, id: Uuid) -> Managed {
    Managed {
        name: name.into(),
        provider_id: id,
        digest: Digest([7; 16]),
        origin: Origin { file: "a.toml".into(), line: 3 },
        record: r#"{"provider":{"note":"tab\t, newline\n, backslash \\"}}"#.into(),
    }
}

/// A provider with three models, one of them routed.
fn creation(name: &str) -> ProviderPlan {
    let id = Uuid::new_v4();
    let models: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
    let mut changes = vec![change(
        ChangedTable::Provider,
        Action::Create,
        id,
        id,
        name.to_owned(),
        vec![
            field("type", json!("openai")),
            field("priority", json!(50)),
            field("api_base_url", json!("https://example.invalid/v1")),
            field("config.description", json!("tab\tnewline\nbackslash\\ quote\" \u{1F600}")),
            field("config.region", json!("us")),
        ],
    )];
    for (index, model) in models.iter().enumerate() {
        changes.push(change(
            ChangedTable::Model,
            Action::Create,
            *model,
            id,
            format!("{name}/m/{index}"),
            vec![
                field("display_name", json!(format!("Model {index}"))),
                field("context_length", json!(4096)),
                field("cost_per_1m_input_tokens", json!(0.1)),
                field("metadata.family", json!("llama")),
            ],
        ));
    }
    changes.push(change(
        ChangedTable::Route,
        Action::Create,
        Uuid::new_v4(),
        models[0],
        format!("{name}/m/0 eco × all"),
        vec![field("power_level", json!("eco")), field("user_tier", json!("all"))],
    ));
    ProviderPlan {
        name: name.into(),
        id,
        changes,
        key: Some(KeyChange { action: KeyAction::Set, old: None, new: None, reason: "declared".into() }),
        record: Some(record(name, id)),
        forget: false,
    }
}

fn bare(name: &str, id: Uuid, changes: Vec<Change>) -> ProviderPlan {
    ProviderPlan { name: name.into(), id, changes, key: None, record: None, forget: false }
}

fn tokens(plans: &[ProviderPlan]) -> HashMap<Arc<str>, String> {
    plans.iter().map(|plan| (Arc::clone(&plan.name), format!("fake-token-{}", plan.name))).collect()
}

async fn carry_out(store: &Store, plans: &[ProviderPlan]) -> Result<(), StoreError> {
    let mut tx = store.reconcile_begin().await?;
    tx.world(&Scope::All { declared: Vec::new() }, &open).await?;
    let seq = tx.fence_read().await?;
    tx.fence_advance(seq, None, "digest", Uuid::nil()).await?;
    let events = [NewEvent {
        kind: EventKind::Change,
        provider: Some("p1".into()),
        provider_id: None,
        detail: json!({"fields": [1, null, "x\ty"]}),
        reason: "declared".to_owned(),
        origin: Some(Origin { file: "a.toml".into(), line: 3 }),
        revision: None,
    }];
    tx.apply(plans, &tokens(plans), None).await?;
    tx.record(&events).await?;
    tx.commit().await
}

fn names(list: &[&str]) -> Scope {
    Scope::Providers(list.iter().map(|name| (*name).into()).collect())
}

#[tokio::test]
async fn what_is_created_is_read_back_changed_and_deleted() {
    let db = pg().database("roundtrip").await;
    let store = fresh(&db).await;
    db.run("INSERT INTO llm_routing_rules (strategy, created_at, updated_at) VALUES ('cost', '2020-01-01', '2020-01-01')").await;
    let plan = creation("p1");
    carry_out(&store, std::slice::from_ref(&plan)).await.expect("created");

    let world = store.read_world(&names(&["p1", "absent"]), &open).await.expect("readable");
    let live = &world.live["p1"];
    assert_eq!(live.id, plan.id);
    assert_eq!((live.enabled, live.priority, live.kind.as_deref()), (Some(true), Some(50), Some("openai")));
    assert_eq!(live.config["description"], json!("tab\tnewline\nbackslash\\ quote\" \u{1F600}"));
    assert_eq!(live.key, LiveKey::of_columns(["fake-token-p1"; 2], open).0);
    assert_eq!(live.key_test_status.as_deref(), Some("pending"));
    assert_eq!(live.models.len(), 3);
    assert_eq!(live.models[0].name, "m/0");
    assert_eq!(live.models[0].cost_per_1m_input_tokens, Some(0.1));
    assert_eq!(live.models[0].rules.len(), 1);
    assert_eq!(live.models[0].rules[0].weight, Some(100));
    assert_eq!(world.managed["p1"], record("p1", plan.id));
    assert_eq!(world.managed_total, usize::MAX);
    let newest = "SELECT model_id FROM llm_routing_rules ORDER BY created_at DESC LIMIT 1";
    assert_eq!(db.text(newest).await, r#"{"model_id": null}"#);

    // Found by id under another name; its key columns disagree.
    db.run("UPDATE llm_providers SET name = 'other', config = '[1]'; ALTER TABLE llm_providers DISABLE TRIGGER USER;
            UPDATE llm_providers SET encrypted_api_key = 'garbage'; ALTER TABLE llm_providers ENABLE TRIGGER USER").await;
    let mut tx = store.reconcile_begin().await.expect("begun");
    let world = tx.world(&Scope::All { declared: Vec::new() }, &open).await.expect("readable");
    let live = &world.live["other"];
    assert!(live.config.is_empty());
    assert!(matches!(live.key, LiveKey::Known { columns_agree: false, .. }));
    let model = live.models[1].id;
    let rule = live.models[0].rules[0].id;
    let mut fix = bare(
        "p1",
        plan.id,
        vec![
            change(
                ChangedTable::Provider,
                Action::Update,
                plan.id,
                plan.id,
                "p1".into(),
                vec![field("name", json!("p1")), field("config.region", json!("eu"))],
            ),
            change(
                ChangedTable::Model,
                Action::Update,
                model,
                plan.id,
                "p1/m/1".into(),
                vec![field("enabled", json!(false)), field("context_length", json!(8))],
            ),
            change(
                ChangedTable::Route,
                Action::Update,
                rule,
                live.models[0].id,
                "r".into(),
                vec![field("priority", json!(7)), field("task_type", Value::Null)],
            ),
        ],
    );
    fix.key = Some(KeyChange { action: KeyAction::Align, old: None, new: None, reason: "".into() });
    fix.record = Some(record("p1", plan.id));
    tx.apply(&[fix], &HashMap::new(), None).await.expect("applied");
    tx.commit().await.expect("committed");
    let world = store.read_world(&names(&["p1"]), &open).await.expect("readable");
    let live = &world.live["p1"];
    assert_eq!(json!(live.config), json!({"region": "eu"}));
    assert_eq!(live.key, LiveKey::of_columns(["fake-token-p1"; 2], open).0);
    assert_eq!((live.models[1].enabled, live.models[1].context_length), (Some(false), Some(8)));
    assert_eq!(live.models[0].rules[0].priority, Some(7));
    assert_eq!(db.text(newest).await, r#"{"model_id": null}"#);

    // Retired: disabled, its key gone, its bookkeeping too.
    let mut retire = bare(
        "p1",
        plan.id,
        vec![change(ChangedTable::Provider, Action::Retire, plan.id, plan.id, "p1".into(), vec![])],
    );
    retire.forget = true;
    carry_out(&store, &[retire]).await.expect("retired");
    let world = store.read_world(&names(&["p1"]), &open).await.expect("readable");
    assert_eq!((world.live["p1"].enabled, &world.live["p1"].key), (Some(false), &LiveKey::Absent));
    assert!(world.managed.is_empty());

    let delete = bare(
        "p1",
        plan.id,
        vec![change(ChangedTable::Provider, Action::Delete, plan.id, plan.id, "p1".into(), vec![])],
    );
    carry_out(&store, &[delete]).await.expect("deleted");
    assert!(store.read_world(&names(&["p1"]), &open).await.expect("readable").live.is_empty());
    assert_eq!(db.text("SELECT count(*) n FROM llm_routing_rules").await, r#"{"n": 1}"#);

    let events =
        store.events(EventFilter { after_id: Some(0), ..EventFilter::default() }).await.expect("readable");
    assert_eq!(events.len(), 3);
    assert_eq!(events[0].detail, json!({"fields": [1, null, "x\ty"]}));
    assert_eq!(events[0].origin, Some(Origin { file: "a.toml".into(), line: 3 }));
}

#[tokio::test]
async fn a_refused_value_names_its_provider_and_the_rest_can_go_on() {
    let db = pg().database("refused").await;
    let store = fresh(&db).await;
    let good = creation("good");
    let mut bad = creation("bad");
    bad.changes[2].fields.push(field("cost_per_1m_output_tokens", json!(1e30)));
    let plans = [good, bad];
    let mut tx = store.reconcile_begin().await.expect("begun");
    tx.world(&Scope::All { declared: Vec::new() }, &open).await.expect("readable");
    tx.savepoint().await.expect("marked");
    let error = tx.apply(&plans, &tokens(&plans), None).await.expect_err("refused");
    let StoreError::Data { provider, .. } = &error else { panic!("{error:?}") };
    assert_eq!(provider.as_deref(), Some("bad"), "{error}");
    tx.rollback_to().await.expect("undone");
    tx.apply(&plans[..1], &tokens(&plans), None).await.expect("applied");
    tx.commit().await.expect("committed");
    assert_eq!(db.text("SELECT name FROM llm_providers").await, r#"{"name": "good"}"#);
}

#[tokio::test]
async fn a_stale_fence_and_a_lost_lease_are_seen() {
    let db = pg().database("fence").await;
    let store = fresh(&db).await;
    let (one, two) = (Uuid::new_v4(), Uuid::new_v4());
    let ttl = Duration::from_secs(60);
    let lease = store.lease_acquire("leader", one, ttl).await.expect("asked").expect("free");
    assert_eq!(store.lease_acquire("leader", two, ttl).await.expect("asked"), None);
    assert!(store.lease_renew(&lease, ttl).await.expect("asked"));
    store.lease_release(&lease).await.expect("released");
    let next = store.lease_acquire("leader", two, ttl).await.expect("asked").expect("free again");
    assert!(next.token > lease.token);
    let mut tx = store.reconcile_begin().await.expect("begun");
    assert!(!tx.lease_check(&lease).await.expect("asked"));
    assert!(tx.lease_check(&next).await.expect("asked"));
    let seq = tx.fence_read().await.expect("read");
    assert!(matches!(tx.fence_advance(seq + 1, None, "d", one).await, Err(StoreError::Fenced)));
    assert_eq!(tx.fence_advance(seq, None, "d", one).await.expect("advanced"), seq + 1);
}

#[tokio::test]
async fn usage_and_served_cells_are_known() {
    let db = pg().database("cells").await;
    let store = fresh(&db).await;
    let plan = creation("p1");
    carry_out(&store, std::slice::from_ref(&plan)).await.expect("created");
    let mut tx = store.reconcile_begin().await.expect("begun");
    let cells = [("eco".to_owned(), "all".to_owned()), ("precision".to_owned(), "all".to_owned())];
    let served = tx.cells_served_elsewhere(&cells, &[], &[]).await.expect("asked");
    assert_eq!(served, HashSet::from([cells[0].clone()]));
    assert!(tx.cells_served_elsewhere(&cells, &[plan.changes[1].id], &[]).await.expect("asked").is_empty());
    assert!(tx.with_usage(&[plan.id]).await.expect("asked").is_empty());
    drop(tx);
    db.run(&format!("INSERT INTO llm_usage_logs (provider_id, prompt_tokens) VALUES ('{}', 5)", plan.id))
        .await;
    let mut tx = store.reconcile_begin().await.expect("begun");
    assert_eq!(tx.with_usage(&[plan.id]).await.expect("asked"), HashSet::from([plan.id]));
}

#[tokio::test]
async fn drift_is_hinted_and_a_status_or_an_apply_is_not() {
    let db = pg().database("hints").await;
    let store = fresh(&db).await;
    carry_out(&store, &[creation("p1")]).await.expect("created");
    let mut listener = store.listen_drift();
    let soon = Duration::from_secs(10);
    tokio::time::timeout(soon, listener.hint()).await.expect("one hint after connecting");
    db.run("UPDATE llm_providers SET health_status = 'healthy', last_health_check = now()").await;
    carry_out(&store, &[creation("p2")]).await.expect("created");
    db.run("UPDATE llm_models SET enabled = false").await;
    tokio::time::timeout(soon, listener.hint()).await.expect("a hint of drift");
    // Notifications come in order of commit: had the others been hints, more would be waiting.
    let quiet = tokio::time::timeout(Duration::from_millis(200), listener.hint()).await;
    assert!(quiet.is_err(), "a status or an apply was taken for drift");
}

#[tokio::test]
async fn looking_writes_nothing_and_a_lost_server_comes_back() {
    let cluster = Arc::new(Cluster::start_private(Options::default()));
    let db = cluster.database("quiet").await;
    let store = fresh(&db).await;
    carry_out(&store, &[creation("p1")]).await.expect("created");
    // The first look after a write may set hint bits.
    for round in 0..2 {
        let wal = db.wal().await;
        let mut tx = store.reconcile_begin().await.expect("begun");
        tx.world(&Scope::All { declared: vec!["p1".into()] }, &open).await.expect("readable");
        tx.fence_read().await.expect("readable");
        tx.commit().await.expect("committed");
        assert_eq!(wal, db.wal().await, "round {round}");
    }
    cluster.stop_immediate();
    let error = store.now().await.expect_err("no server answers");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error:?}");
    cluster.start();
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = store.now().await {
        assert!(Instant::now() < deadline, "{error}");
    }
    assert_eq!(store.provider_status_rows(None).await.expect("readable")[0].models, 3);
    store.close().await;
}

/// Prints the figures; run with `--release --ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement"]
async fn measure_the_first_convergence() {
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("measure").await;
    let store = fresh(&db).await;
    let plans: Vec<ProviderPlan> = (0..10_000).map(|n| creation(&format!("provider-{n}"))).collect();
    let begun = Instant::now();
    carry_out(&store, &plans).await.expect("created");
    println!("apply 10,000 providers, 30,000 models, 10,000 rules: {:?}", begun.elapsed());
    for _ in 0..3 {
        let begun = Instant::now();
        let world = store.read_world(&Scope::All { declared: Vec::new() }, &open).await.expect("readable");
        println!("read {}: {:?}", world.live.len(), begun.elapsed());
    }
    let floor = cluster.database("floor").await;
    fresh(&floor).await;
    for table in ["llm_providers", "llm_models", "llm_routing_rules"] {
        db.run(&format!("COPY {table} TO '{}/data/{table}'", cluster.socket_dir().display())).await;
    }
    let begun = Instant::now();
    for table in ["llm_providers", "llm_models", "llm_routing_rules"] {
        floor.run(&format!("COPY {table} FROM '{}/data/{table}'", cluster.socket_dir().display())).await;
    }
    println!("plain COPY of the same rows: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sums_are_added_to_rows_of_the_first_layout() {
    let db = pg().database("sums").await;
    let store = fresh(&db).await;
    let id = Uuid::from_u128(7);
    let hour = Span::Hour.begin(chrono::Utc::now());
    let mut connection = db.connect().await;
    let rows = [
        format!(
            "INSERT INTO llm_providers (id, name, type, api_key_encrypted) VALUES ('{id}', 'p', 'openai', '')"
        ),
        // Twenty classes: a hundred answers between 750 and 1000 ms.
        format!(
            "INSERT INTO providerd.rollups (provider_id, span, at, ok, slow, soft, hard, auth, latency)
             VALUES ('{id}', 'h', '{}', 100, 0, 0, 0, 0, '{{0,0,0,0,0,0,0,0,0,0,0,0,100,0,0,0,0,0,0,0}}')",
            hour.to_rfc3339()
        ),
    ];
    for sql in rows {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    }
    let mut more = Rollup::default();
    for _ in 0..100 {
        more.add(&CheckOutcome::Ok, Duration::from_millis(3000));
    }
    let status = StatusWrite {
        id,
        health_status: None,
        last_health_check: None,
        key_status: None,
        key_last_tested: None,
        key_updated_at: None,
    };
    let write = CheckWrite { status, transitions: Vec::new(), memory: None, rollups: vec![(hour, more)] };
    for times in 1..=2_u32 {
        store.checks_write(None, std::slice::from_ref(&write)).await.unwrap();
        let found = store.rollups(Some(&[id]), Span::Hour, hour).await.unwrap();
        let [(_, at, sums)] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(
            (*at, sums.ok, sums.latency.iter().sum::<u32>()),
            (hour, 100 * (times + 1), 100 * (times + 1))
        );
        let (low, high) = (sums.percentile_ms(0.2).unwrap(), sums.percentile_ms(0.99).unwrap());
        assert!((750..=1050).contains(&low) && (2850..=3150).contains(&high), "{low} {high}");
    }
}
