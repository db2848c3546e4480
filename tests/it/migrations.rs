//! Every layout found in the field is joined without loss, and programs written for it go on as before.

use providerd::store::{Store, StoreError, StoreSettings};

use crate::support::pg::{self, TestDb, pg};

const TABLES: [&str; 4] = ["llm_providers", "llm_models", "llm_routing_rules", "llm_usage_logs"];

async fn store(db: &TestDb) -> Store {
    Store::connect(&StoreSettings::new(db.url.clone().into())).await.expect("the URL is valid")
}

/// The columns of a table as they are now.
async fn columns(db: &TestDb, table: &str) -> String {
    db.text(&format!(
        "SELECT string_agg(quote_ident(attname::text), ', ' ORDER BY attnum) AS c FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped"
    ))
    .await
    .trim_start_matches("{\"c\": \"")
    .trim_end_matches("\"}")
    .to_owned()
}

/// Constraints, column types and nullability, restricted to `columns` by the caller's snapshot of names.
async fn shape(db: &TestDb, table: &str, columns: &str) -> String {
    db.text(&format!(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND quote_ident(attname::text) = ANY (string_to_array('{columns}', ', '))
         ORDER BY attnum"
    ))
    .await
        + &db
            .text(&format!(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
                 WHERE conrelid = '{table}'::regclass AND contype <> 'f' ORDER BY 1"
            ))
            .await
}

/// How many files there are in `migrations/`: each is a step.
fn steps() -> usize {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations");
    std::fs::read_dir(dir).expect("the directory of migrations").count()
}

async fn adopt(layout: &str, sql: &[&str], programs: &str) {
    let db = pg().database(layout).await;
    for text in sql {
        db.run(text).await;
    }
    db.run(programs).await;
    let mut before = Vec::new();
    for table in TABLES {
        let columns = columns(&db, table).await;
        let rows = db.text(&format!("SELECT {columns} FROM {table} ORDER BY id")).await;
        let file = db.text(&format!("SELECT pg_relation_filenode('{table}')")).await;
        before.push((table, columns.clone(), rows, file, shape(&db, table, &columns).await));
    }

    let store = store(&db).await;
    assert!(!store.migrated().await.expect("readable"));
    let report = store.migrate().await.expect("the layout is joined");
    assert_eq!(report.applied.len(), steps());
    for (table, columns, rows, file, shape_before) in &before {
        let now = db.text(&format!("SELECT {columns} FROM {table} ORDER BY id")).await;
        assert_eq!(rows, &now, "{layout}: rows of {table}");
        let now = db.text(&format!("SELECT pg_relation_filenode('{table}')")).await;
        assert_eq!(file, &now, "{layout}: {table} was rewritten");
        assert_eq!(shape_before, &shape(&db, table, columns).await, "{layout}: shape of {table}");
    }
    assert!(store.migrate().await.expect("twice is once").applied.is_empty());

    // Both generations see names, keys and numbers.
    let none = |what: &'static str, sql: &'static str| {
        let db = &db;
        async move { assert_eq!(db.text(sql).await, "", "{what}") }
    };
    none("model names differ", "SELECT 1 FROM llm_models WHERE name IS DISTINCT FROM model_name").await;
    none(
        "counters are missing",
        "SELECT 1 FROM llm_usage_logs WHERE prompt_tokens IS NULL OR completion_tokens IS DISTINCT FROM 2 * prompt_tokens
            OR cost_total_usd IS DISTINCT FROM 0.001 OR cost IS DISTINCT FROM 0.001
            OR (input_tokens, request_tokens) IS DISTINCT FROM (prompt_tokens, prompt_tokens)
            OR (output_tokens, response_tokens) IS DISTINCT FROM (completion_tokens, completion_tokens)
            OR total_tokens IS DISTINCT FROM 3 * prompt_tokens OR status IS DISTINCT FROM 'success'",
    )
    .await;
    db.run(programs).await;
    db.run(programs).await;
    none("programs changed names", "SELECT 1 FROM llm_models WHERE name IS DISTINCT FROM model_name").await;
    every_program(&db).await;
    if layout == "d" {
        // Theirs: it wants an address of each provider, which the statements below do not know.
        db.run("ALTER TABLE llm_providers ALTER api_base_url SET DEFAULT ''").await;
    }
    contract(&db).await;
}

const EVERY: &str = include_str!("../layouts/every.programs.sql");

/// Statements of every generation, and what becomes of rows that name only its words.
async fn every_program(db: &TestDb) {
    db.run(EVERY).await;
    db.run(EVERY).await;
    let base = "INSERT INTO llm_usage_logs (user_id, model_name, ";
    let shown = "SELECT prompt_tokens p, input_tokens i, request_tokens r, completion_tokens c, output_tokens o,
                        response_tokens s, total_tokens t, cost_total_usd::float8 u, cost::float8 v, status w, success x
                 FROM llm_usage_logs WHERE user_id = 'mirror'";
    let check = async |what: &str, expected: &[&str]| {
        let row = db.text(shown).await;
        let values: Vec<String> = serde_json::from_str::<serde_json::Value>(&row)
            .unwrap_or_else(|_| panic!("{what}: {row}"))
            .as_object()
            .into_iter()
            .flatten()
            .map(|(_, value)| value.to_string())
            .collect();
        // By the letters of the columns: c i o p r s t u v w x.
        assert_eq!(values, expected, "{what}");
    };
    let (ok, failed) = ("\"success\"", "\"error\"");
    for (what, expected) in [
        (
            "input_tokens, output_tokens) VALUES ('mirror', 'm', 5, 6)",
            ["6", "5", "6", "5", "5", "6", "11", "", "", ok, "true"],
        ),
        (
            "request_tokens, cost) VALUES ('mirror', 'm', 5, 0.25)",
            ["", "5", "", "5", "5", "", "5", "0.25", "0.25", ok, "true"],
        ),
        (
            "prompt_tokens, completion_tokens, total_tokens, cost_total_usd, success) VALUES ('mirror', 'm', 5, 6, 11, 0.5, false)",
            ["6", "5", "6", "5", "5", "6", "11", "0.5", "0.5", failed, "false"],
        ),
        (
            "completion_tokens, status) VALUES ('mirror', 'm', 6, 'error')",
            ["6", "", "6", "", "", "6", "6", "", "", failed, "false"],
        ),
        (
            "input_tokens, status, success) VALUES ('mirror', 'm', 5, 'success', false)",
            ["", "5", "", "5", "5", "", "5", "", "", failed, "false"],
        ),
    ] {
        db.run(&format!("{base}{what}")).await;
        let row = db.text(shown).await;
        // What nobody said is NULL, or a zero where the table forbids NULL or defaults to it.
        let null_or_zero = |at: usize| {
            let letter = ["c", "i", "o", "p", "r", "s", "t", "u", "v", "w", "x"][at];
            let value: serde_json::Value = serde_json::from_str(&row).unwrap();
            let value = value[letter].clone();
            assert!(value.is_null() || value == 0, "{what}: {letter} is {value}");
            value.to_string()
        };
        let expected: Vec<String> = expected
            .iter()
            .enumerate()
            .map(|(at, it)| if it.is_empty() { null_or_zero(at) } else { (*it).to_owned() })
            .collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(what, &expected).await;
        db.run("DELETE FROM llm_usage_logs WHERE user_id = 'mirror'").await;
    }
    db.run(&format!(
        "{base}input_tokens, output_tokens, total_tokens, cost) VALUES ('mirror', 'm', 5, 6, 11, 0.5)"
    ))
    .await;
    for (set, expected) in [
        ("request_tokens = 7", ["6", "7", "6", "7", "7", "6", "13", "0.5", "0.5", ok, "true"]),
        ("completion_tokens = 8", ["8", "7", "8", "7", "7", "8", "15", "0.5", "0.5", ok, "true"]),
        ("cost = 0.25", ["8", "7", "8", "7", "7", "8", "15", "0.25", "0.25", ok, "true"]),
        ("status = 'error'", ["8", "7", "8", "7", "7", "8", "15", "0.25", "0.25", failed, "false"]),
        ("success = true", ["8", "7", "8", "7", "7", "8", "15", "0.25", "0.25", ok, "true"]),
        ("model_name = 'n'", ["8", "7", "8", "7", "7", "8", "15", "0.25", "0.25", ok, "true"]),
    ] {
        db.run(&format!("UPDATE llm_usage_logs SET {set} WHERE user_id = 'mirror'")).await;
        check(set, &expected).await;
    }
    db.run("DELETE FROM llm_usage_logs WHERE user_id = 'mirror'").await;
    // A column that somebody takes away and brings back is followed again, and nothing breaks in between.
    db.run(&format!(
        "ALTER TABLE llm_usage_logs DROP COLUMN input_tokens CASCADE;
         {base}request_tokens) VALUES ('gone', 'm', 1);
         ALTER TABLE llm_usage_logs ADD COLUMN input_tokens integer"
    ))
    .await;
    assert_eq!(db.text("SELECT providerd.mirror_usage() m").await, r#"{"m": true}"#);
    assert_eq!(db.text("SELECT providerd.mirror_usage() m").await, r#"{"m": false}"#);
    db.run(&format!("{base}request_tokens, response_tokens, cost) VALUES ('mirror', 'm', 1, 2, 0.5)")).await;
    check("a column that came back", &["2", "1", "2", "1", "1", "2", "3", "0.5", "0.5", ok, "true"]).await;
    db.run("DELETE FROM llm_usage_logs WHERE user_id IN ('mirror', 'gone')").await;
}

/// The statements that other programs are promised, and that the global strategy row stays the newest.
async fn contract(db: &TestDb) {
    let global = db.text("SELECT count(*) FROM llm_routing_rules WHERE model_id IS NULL").await;
    db.run(
        "INSERT INTO llm_providers (id, name, type, api_key_encrypted)
             VALUES ('dd1a38b8-b124-43db-b0d3-1aff0407397a', 'ollama-cloud', 'ollama-cloud', 'token-cloud');
         INSERT INTO llm_models (provider_id, name) VALUES ('dd1a38b8-b124-43db-b0d3-1aff0407397a', 'llama2-7b');
         SELECT name FROM llm_providers WHERE name ILIKE '%ollama%';
         SELECT api_key_encrypted FROM llm_providers WHERE name='ollama-cloud';
         INSERT INTO llm_routing_rules (model_id, power_level, user_tier, priority, weight, is_active)
         SELECT id, 'eco', 'all', 100, 100, true FROM llm_models
         WHERE provider_id = 'dd1a38b8-b124-43db-b0d3-1aff0407397a' AND model_name LIKE '%7b%';
         SELECT COUNT(*) AS total_calls, SUM(prompt_tokens) AS input_tokens, SUM(completion_tokens) AS output_tokens,
                SUM(cost_total_usd) AS total_cost FROM llm_usage_logs
         WHERE provider_id = 'dd1a38b8-b124-43db-b0d3-1aff0407397a' AND created_at >= NOW() - INTERVAL '30 days';",
    )
    .await;
    let check = |sql: &'static str, expected: &'static str| async move {
        assert_eq!(db.text(sql).await, expected, "{sql}");
    };
    check(
        "SELECT encrypted_api_key k FROM llm_providers WHERE name = 'ollama-cloud'",
        r#"{"k": "token-cloud"}"#,
    )
    .await;
    check("SELECT count(*) n FROM llm_routing_rules WHERE model_id IS NOT NULL", r#"{"n": 1}"#).await;
    if global != r#"{"count": 0}"# {
        for column in ["created_at", "updated_at"] {
            let sql = format!("SELECT model_id FROM llm_routing_rules ORDER BY {column} DESC LIMIT 1");
            assert_eq!(db.text(&sql).await, r#"{"model_id": null}"#, "{sql}");
        }
        db.run(
            "UPDATE llm_routing_rules SET updated_at = now() + interval '1 day' WHERE model_id IS NOT NULL",
        )
        .await;
        check(
            "SELECT model_id FROM llm_routing_rules ORDER BY updated_at DESC LIMIT 1",
            r#"{"model_id": null}"#,
        )
        .await;
    }
    // Whichever column a writer sets, the other follows.
    let sql =
        "SELECT api_key_encrypted a, encrypted_api_key b FROM llm_providers WHERE name = 'ollama-cloud'";
    for (set, expected) in [
        ("encrypted_api_key = 'n1'", r#"{"a": "n1", "b": "n1"}"#),
        ("api_key_encrypted = 'n2'", r#"{"a": "n2", "b": "n2"}"#),
        ("api_key_encrypted = ''", r#"{"a": "", "b": ""}"#),
        ("encrypted_api_key = 'n3'", r#"{"a": "n3", "b": "n3"}"#),
        ("encrypted_api_key = NULL", r#"{"a": "", "b": null}"#),
    ] {
        db.run(&format!("UPDATE llm_providers SET {set} WHERE name = 'ollama-cloud'")).await;
        assert_eq!(db.text(sql).await, expected, "{set}");
    }
    db.run("INSERT INTO llm_models (provider_id, model_name) SELECT id, 'by-model-name' FROM llm_providers WHERE name = 'ollama-cloud'").await;
    check("SELECT name FROM llm_models WHERE model_name = 'by-model-name'", r#"{"name": "by-model-name"}"#)
        .await;
    db.run("UPDATE llm_models SET model_name = 'again' WHERE name = 'by-model-name'").await;
    check("SELECT name FROM llm_models WHERE model_name = 'again'", r#"{"name": "again"}"#).await;
}

const A: &str = include_str!("../layouts/a.sql");
const A_PROGRAMS: &str = include_str!("../layouts/a.programs.sql");
const B: &str = include_str!("../layouts/b.sql");
const B_PROGRAMS: &str = include_str!("../layouts/b.programs.sql");
const D: &str = include_str!("../layouts/d.sql");
const D_PROGRAMS: &str = include_str!("../layouts/d.programs.sql");
const KEYS: &str = include_str!("../layouts/keys.sql");

#[tokio::test]
async fn the_first_generation_is_adopted() {
    adopt("a", &[A], A_PROGRAMS).await;
}

#[tokio::test]
async fn the_first_generation_with_key_columns_is_adopted() {
    adopt("a_keys", &[A, KEYS], A_PROGRAMS).await;
}

#[tokio::test]
async fn the_second_generation_is_adopted() {
    adopt("b", &[B], B_PROGRAMS).await;
}

#[tokio::test]
async fn the_second_generation_with_key_columns_is_adopted() {
    adopt("b_keys", &[B, KEYS], B_PROGRAMS).await;
}

#[tokio::test]
async fn an_empty_database_gets_everything_and_two_daemons_may_start_together() {
    let db = pg().database("fresh").await;
    let (one, two) = (store(&db).await, store(&db).await);
    let (first, second) = tokio::join!(one.migrate(), two.migrate());
    let applied = first.expect("one migrates").applied.len() + second.expect("the other waits").applied.len();
    assert_eq!(applied, steps(), "each step ran once");
    contract(&db).await;
    every_program(&db).await;
    db.run("UPDATE llm_providers SET api_key_encrypted = NULL").await;
}

#[tokio::test]
async fn the_fork_of_the_second_generation_is_adopted() {
    adopt("d", &[D], D_PROGRAMS).await;
}

#[tokio::test]
async fn a_log_of_its_own_is_partitioned_by_day() {
    let db = pg().database("days").await;
    let store = store(&db).await;
    store.migrate().await.expect("an empty database is migrated");
    let days = "SELECT count(*) n FROM pg_inherits WHERE inhparent = 'llm_usage_logs'::regclass";
    assert_eq!(db.text(days).await, r#"{"n": 9}"#, "today, a week ahead, and the rest");
    // Rows that come for a day that was not made yet move into it.
    db.run(
        "INSERT INTO llm_usage_logs (model_name, created_at)
         SELECT 'm', timezone('utc', now()) + n * interval '1 day' FROM generate_series(-1, 9) n",
    )
    .await;
    let rest = "SELECT count(*) n FROM llm_usage_logs_rest";
    assert_eq!(db.text(rest).await, r#"{"n": 3}"#);
    assert_eq!(db.text("SELECT providerd.usage_days_ahead(9) n").await, r#"{"n": 2}"#);
    assert_eq!(db.text("SELECT providerd.usage_days_ahead(9) n").await, r#"{"n": 0}"#);
    assert_eq!(db.text(rest).await, r#"{"n": 1}"#);
    assert_eq!(db.text("SELECT count(*) n FROM llm_usage_logs").await, r#"{"n": 11}"#);
    // What moved is mirrored, referenced and indexed as if it had come later.
    db.run("INSERT INTO llm_usage_logs (input_tokens, created_at) VALUES (5, timezone('utc', now()) + interval '9 days')")
        .await;
    assert_eq!(
        db.text("SELECT prompt_tokens p FROM llm_usage_logs WHERE input_tokens = 5").await,
        r#"{"p": 5}"#
    );
    // Deleting a model looks into an index of each day.
    let plan = db
        .text("SELECT indexdef d FROM pg_indexes WHERE tablename ~ '^llm_usage_logs_2' AND indexdef ~ 'model_id'")
        .await;
    assert_eq!(plan.lines().count(), 10, "{plan}");
}

#[tokio::test]
async fn where_there_are_rules_there_is_a_global_one() {
    let db = pg().database("global").await;
    db.run(A).await;
    db.run("ALTER TABLE llm_routing_rules ADD COLUMN model_id uuid, ADD COLUMN power_level text, ADD COLUMN user_tier text;
            DELETE FROM llm_routing_rules;
            INSERT INTO llm_routing_rules (model_id, power_level, user_tier) SELECT id, 'eco', 'all' FROM llm_models LIMIT 1")
        .await;
    store(&db).await.migrate().await.expect("the layout is joined");
    let newest = "SELECT strategy s, config->>'max_retries' r FROM llm_routing_rules ORDER BY updated_at DESC, created_at DESC LIMIT 1";
    assert_eq!(db.text(newest).await, r#"{"r": "3", "s": "balanced"}"#);
}

#[tokio::test]
async fn a_second_migration_writes_not_one_byte() {
    // Nobody else may write while the WAL is measured.
    let cluster = std::sync::Arc::new(pg::Cluster::start_private(pg::Options::default()));
    let db = cluster.database("quiet").await;
    db.run(B).await;
    let store = store(&db).await;
    store.migrate().await.expect("the layout is joined");
    let wal = db.wal().await;
    assert!(store.migrate().await.expect("twice is once").applied.is_empty());
    assert_eq!(wal, db.wal().await);
    store.close().await;
}

async fn refused(layout: &str, sql: &str, expected: &str) {
    let db = pg().database(layout).await;
    db.run(sql).await;
    let store = store(&db).await;
    let error = store.migrate().await.expect_err("the layout is refused");
    assert!(matches!(error, StoreError::ForeignLayout(_)), "{error:?}");
    assert!(error.to_string().contains(expected), "{error}");
    let left = db.text("SELECT relname FROM pg_class WHERE relname ~ '^llm_' AND relkind = 'r'").await;
    assert_eq!(left, r#"{"relname": "llm_providers"}"#);
    let schemas = db.text("SELECT nspname FROM pg_namespace WHERE nspname = 'providerd'").await;
    assert_eq!(schemas, "", "the schema was made");
}

#[tokio::test]
async fn integer_ids_are_refused_untouched() {
    refused("c", include_str!("../layouts/c.sql"), "llm_providers.id is of type int4").await;
}

#[tokio::test]
async fn repeated_names_are_joined_as_they_are() {
    let db = pg().database("twins").await;
    db.run(
        "CREATE TABLE llm_providers (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name varchar(255), type text,
             UNIQUE (name, type));
         INSERT INTO llm_providers (name, type) VALUES ('twin', 'a'), ('twin', 'b'), ('single', 'a')",
    )
    .await;
    store(&db).await.migrate().await.expect("the layout is joined");
    assert_eq!(db.text("SELECT count(*) n FROM llm_providers").await, r#"{"n": 3}"#);
}

/// What another program put into the schema of the shared tables, and would fit better than what the system has, is
/// never called: it would run with our rights.
#[tokio::test]
async fn migrations_call_nothing_that_lies_in_the_shared_schema() {
    for layout in [
        "",
        include_str!("../layouts/a.sql"),
        include_str!("../layouts/b.sql"),
        include_str!("../layouts/d.sql"),
    ] {
        let db = pg().database("own_path").await;
        db.run(layout).await;
        // Exact types, where the system converts: with the schema in the path these are taken.
        db.run(
            "CREATE FUNCTION public.trap(oid, regclass) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'trapped'; END $$;
             CREATE OPERATOR public.= (LEFTARG = oid, RIGHTARG = regclass, FUNCTION = public.trap)",
        )
        .await;
        let sprung = db.text("SELECT count(*) n FROM pg_operator WHERE oprname = '=' AND oprnamespace = 'public'::regnamespace").await;
        assert_eq!(sprung, r#"{"n": 1}"#);
        let store = store(&db).await;
        store.migrate().await.expect("migrated");
        store.usage_maintain(None, None).await.expect("kept");
        if !layout.is_empty() {
            store.usage_partition().await.expect("partitioned");
        }
    }
}
