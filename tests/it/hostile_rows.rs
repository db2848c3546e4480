//! Whatever another program stores, locks or refuses in the shared tables harms its own object alone.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::support::{
    lab::{Daemon, Lab, PATIENCE, Ran, provider},
    pg,
};

/// Values of each type, as SQL.
pub const TIMES: &[&str] = &[
    "'infinity'",
    "'-infinity'",
    "'290000-01-01'",
    "'4713-11-24 BC'",
    "'0001-01-01 BC'",
    "'9999-12-31 23:59:59.999999'",
    "NULL",
];
pub const JSON: &[&str] = &[
    "'null'",
    "'7'",
    "'[1, {}]'",
    "'{\"base_url\": 5, \"description\": [], \"model_prefixes\": {}}'",
    "'{\"\": {\"a\": -0.0, \"b\": 1e-400}}'",
    "jsonb_build_object('long', repeat('x', 5000000))",
    "(repeat('[', 200) || repeat(']', 200))::jsonb",
    "NULL",
    "'{\"n\": 1e400}'",
];
pub const TEXTS: &[&str] = &[
    "''",
    "NULL",
    "repeat('x', 200)",
    "repeat('x', 2000000)",
    "E'\\x1b[2J\\x07\\r\\nforged\\x01'",
    "E'\\u202e\\u200b\\ufeff'",
    "'../../etc'",
];
pub const INTEGERS: &[&str] = &["NULL", "0", "-1", "2147483647", "-2147483648"];
pub const NUMBERS: &[&str] = &["NULL", "'NaN'", "-1", "999999.999999", "-999999.999999"];
pub const FLAGS: &[&str] = &["NULL", "false", "true"];

fn values(kind: &str) -> &'static [&'static str] {
    match kind {
        "timestamp" => TIMES,
        "jsonb" => JSON,
        "varchar" | "text" => TEXTS,
        "int4" => INTEGERS,
        "numeric" => NUMBERS,
        "bool" => FLAGS,
        "_uuid" => &["NULL", "'{}'", "ARRAY[NULL]::uuid[]", "array_fill(gen_random_uuid(), ARRAY[1000])"],
        _ => &["NULL"],
    }
}

/// Two managed providers, one that only the database knows, and a row of usage.
async fn neighbours(lab: &Lab) {
    lab.write("victim.toml", &provider("victim", 1));
    lab.write("other.toml", &provider("other", 1));
    lab.run(&["apply"]).expect(0);
    lab.execute(
        "INSERT INTO llm_providers (name, type, api_base_url) VALUES ('foreign', 'openai', 'https://foreign.example.com/v1');
         INSERT INTO llm_models (provider_id, name) SELECT id, 'foreign-model' FROM llm_providers WHERE name = 'foreign';
         INSERT INTO llm_routing_rules (model_id, power_level, user_tier)
             SELECT id, 'eco', 'all' FROM llm_models WHERE name = 'foreign-model';
         INSERT INTO llm_usage_logs (provider_id, model_name) SELECT id, 'm' FROM llm_providers WHERE name = 'foreign';
         CREATE TABLE known AS SELECT 'llm_providers' AS tab, id FROM llm_providers WHERE name <> 'other'
             UNION ALL SELECT 'llm_models', id FROM llm_models WHERE name NOT LIKE 'other%'
             UNION ALL SELECT 'llm_routing_rules', r.id FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
                 WHERE m.name NOT LIKE 'other%'
             UNION ALL SELECT 'llm_routing_rules', id FROM llm_routing_rules WHERE model_id IS NULL
             UNION ALL SELECT 'llm_usage_logs', id FROM llm_usage_logs",
    )
    .await;
}

/// A change of the other provider is applied, whatever the rest is like.
async fn goes_on(lab: &Lab, daemon: &mut Daemon, priority: i32) {
    lab.write("other.toml", &provider("other", priority));
    let sql = "SELECT priority FROM llm_providers WHERE name = 'other'";
    let started = Instant::now();
    let mut connection = lab.connect().await;
    while crate::support::lab::value(&mut connection, sql).await != priority.to_string() {
        assert!(daemon.is_running(), "it ended:\n{}", tail(daemon));
        assert!(started.elapsed() < PATIENCE, "not applied:\n{}", tail(daemon));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn tail(daemon: &Daemon) -> String {
    let log = daemon.log();
    log.get(log.len().saturating_sub(4000)..).unwrap_or(&log).to_owned()
}

/// Every command that reads everything; what each of them said.
fn commands(lab: &Lab) -> String {
    let mut said = String::new();
    let dir = lab.dir.path().join("imported");
    let _ = std::fs::remove_dir_all(&dir);
    let dir = dir.display().to_string();
    let all: [&[&str]; 5] = [
        &["status", "--output", "json"],
        &["plan", "--output", "json"],
        &["import", "--output", "json", "--dir", &dir],
        &["key", "verify", "--output", "json"],
        &["apply", "--output", "json"],
    ];
    for args in all {
        let Ran { code, stdout, stderr } = lab.run(args);
        assert!(code == 0 || code == 2, "{args:?}: {code}\n{stderr}");
        said += &stdout;
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn no_value_of_a_row_harms_another() {
    let lab = Lab::new().await;
    neighbours(&lab).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let mut connection = lab.connect().await;
    let columns: Vec<(String, String, String)> = sqlx::query_as(
        "SELECT c.relname::text, a.attname::text, t.typname::text FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         JOIN pg_type t ON t.oid = a.atttypid
         WHERE c.relname IN ('llm_providers', 'llm_models', 'llm_routing_rules', 'llm_usage_logs') AND a.attnum > 0
           AND NOT a.attisdropped ORDER BY 1, a.attnum",
    )
    .fetch_all(&mut connection)
    .await
    .expect("the tables are there");
    assert!(columns.len() > 60, "{columns:?}");
    let (mut priority, mut stored) = (1, 0);
    for (table, column, kind) in &columns {
        for value in values(kind) {
            // One row after the other, as a value may be refused for one of them.
            let ids: Vec<(sqlx::types::Uuid,)> = sqlx::query_as(AssertSqlSafe(format!(
                "SELECT k.id FROM known k JOIN {table} t ON t.id = k.id WHERE k.tab = '{table}'"
            )))
            .fetch_all(&mut connection)
            .await
            .expect("the rows are there");
            for (id,) in ids {
                let set = format!("UPDATE {table} SET {column} = {value} WHERE id = '{id}'");
                stored += u32::from(connection.execute(AssertSqlSafe(set)).await.is_ok());
            }
            priority += 1;
            goes_on(&lab, &mut daemon, priority).await;
        }
        // The last value of each column stays.
        if kind == "jsonb" || column == "updated_at" {
            commands(&lab);
        }
    }
    assert!(stored > 300, "only {stored} values could be stored");
    commands(&lab);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_named_and_left() {
    let check = async |set: &str, managed: bool, expected: &[&str]| {
        let lab = Lab::new().await;
        neighbours(&lab).await;
        lab.execute(set).await;
        lab.write("other.toml", &provider("other", 9));
        lab.write("victim.toml", &provider("victim", 9));
        let said = commands(&lab);
        for text in expected {
            assert!(said.contains(text), "{set}: no {text:?} in\n{said}");
        }
        let priorities = "SELECT string_agg(priority::text, ',' ORDER BY name) FROM llm_providers WHERE id IN (SELECT provider_id FROM providerd.managed)";
        assert_eq!(lab.value(priorities).await, if managed { "9,1" } else { "9,9" }, "{set}");
    };
    let deep = "(repeat('[', 200) || repeat(']', 200))::jsonb";
    let config = ["llm_providers, row ", "column config: "];
    check("UPDATE llm_providers SET config = '{\"n\": 1e400}' WHERE name = 'victim'", true, &config).await;
    check(&format!("UPDATE llm_providers SET config = {deep} WHERE name = 'foreign'"), false, &config).await;
    check(
        &format!("UPDATE llm_models SET metadata = {deep} WHERE name = 'victim-small'"),
        false,
        &["llm_models, row ", "column metadata: recursion limit"],
    )
    .await;
    let long =
        "jsonb_build_object('x', (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 150000) n))";
    check(
        &format!("UPDATE llm_providers SET config = {long} WHERE name = 'victim'"),
        true,
        &["column config: ", " bytes are too many to be read"],
    )
    .await;
    check(
        "UPDATE llm_providers SET updated_at = 'infinity' WHERE name = 'foreign'",
        false,
        &["llm_providers, row ", "column updated_at: a date that no calendar has"],
    )
    .await;
    check(
        "DROP INDEX llm_providers_name_type_providerd; ALTER TABLE llm_providers DROP CONSTRAINT llm_providers_name_key;
         INSERT INTO llm_providers (name, type) VALUES ('foreign', 'a'), ('foreign', 'b'), ('victim', 'c')",
        false,
        &["column name: several rows are called so", "column name: another row is called so too"],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_any_kind_are_read() {
    let mut lab = Lab::new().await;
    let name = format!("ascii_{}", uuid::Uuid::new_v4().simple());
    lab.execute(&format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
    ))
    .await;
    lab.url = pg::pg().url(&name);
    neighbours(&lab).await;
    lab.execute(
        "UPDATE llm_models SET display_name = convert_from('\\xff41c3'::bytea, 'SQL_ASCII') WHERE name = 'victim-small';
         UPDATE llm_providers SET api_key_source = convert_from('\\xff41'::bytea, 'SQL_ASCII'),
             health_status = convert_from('\\xff41'::bytea, 'SQL_ASCII');
         UPDATE llm_providers SET config = ('{\"x\": \"' || convert_from('\\xff'::bytea, 'SQL_ASCII') || '\"}')::jsonb
             WHERE name = 'victim';
         INSERT INTO llm_providers (name, type) VALUES (convert_from('\\xfffe'::bytea, 'SQL_ASCII'), 'x')",
    )
    .await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    goes_on(&lab, &mut daemon, 7).await;
    let said = commands(&lab);
    assert!(said.contains("column config: "), "{said}");
    assert_eq!(daemon.stop(), 0);
}

/// Another program, which begins and forgets.
async fn forgetful(lab: &Lab, program: &str, statement: &str) -> PgConnection {
    let mut connection = lab.connect().await;
    let begin = format!("SET application_name = '{program}'; BEGIN; {statement}");
    sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut connection).await.expect("it takes what it wants");
    connection
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_holds_up_its_own_object_alone() {
    let lab = Lab::new().await;
    neighbours(&lab).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let check = async |daemon: &mut Daemon, statement: &str, priority: i32| {
        let holder = forgetful(&lab, "forgotten-psql", statement).await;
        lab.write(
            "victim.toml",
            &provider("victim", priority).replace("4096", &format!("{}", 4096 + priority)),
        );
        goes_on(&lab, daemon, priority).await;
        goes_on(&lab, daemon, priority + 1).await;
        holder.close().await.expect("it ends");
        let model = "SELECT context_length FROM llm_models WHERE name = 'victim-small'";
        lab.wait_for(model, &(4096 + priority).to_string()).await;
    };
    check(&mut daemon, "UPDATE llm_providers SET priority = 77 WHERE name = 'victim'", 11).await;
    daemon.wait_for_log("forgotten-psql").await;
    check(&mut daemon, "SELECT FROM llm_models WHERE name = 'victim-small' FOR UPDATE", 21).await;
    check(&mut daemon, "LOCK TABLE llm_models IN SHARE MODE", 31).await;
    assert!(!daemon.log().contains("\"leader\":false"), "the lease was lost:\n{}", daemon.log());

    // Nothing can be read: it is said, and goes on afterwards.
    let holder = forgetful(&lab, "forgotten-ddl", "LOCK TABLE llm_models IN ACCESS EXCLUSIVE MODE").await;
    lab.write("other.toml", &provider("other", 41));
    daemon.wait_for_log("forgotten-ddl").await;
    holder.close().await.expect("it ends");
    goes_on(&lab, &mut daemon, 42).await;
    assert!(!daemon.log().contains("\"leader\":false"), "the lease was lost:\n{}", daemon.log());
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_holds_up_its_own_verdict_alone() {
    let lab = Lab::new().await;
    for name in ["victim", "other"] {
        let text = provider(name, 1).replace(&format!("https://{name}.example.com"), "http://127.0.0.1:9");
        lab.write(&format!("{name}.toml"), &text);
    }
    lab.run(&["apply"]).expect(0);
    let holder =
        forgetful(&lab, "forgotten", "UPDATE llm_providers SET priority = 7 WHERE name = 'victim'").await;
    let mut daemon = lab.checking();
    daemon.wait_ready().await;
    lab.wait_for("SELECT health_status FROM llm_providers WHERE name = 'other'", "unhealthy").await;
    assert_eq!(lab.value("SELECT health_status FROM llm_providers WHERE name = 'victim'").await, "unknown");
    holder.close().await.expect("it ends");
    lab.wait_for("SELECT health_status FROM llm_providers WHERE name = 'victim'", "unhealthy").await;
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_rights_stops_nothing() {
    let lab = Lab::new().await;
    let role = format!("nobody_{}", uuid::Uuid::new_v4().simple());
    lab.execute(&format!("CREATE ROLE {role} LOGIN")).await;
    let url = lab.url.replace("postgres@", &format!("{role}@"));
    let mut guest = PgConnection::connect(&url).await.expect("it may connect");
    for number in [0x7072_6f76_6964_6572_i64, 0x7072_6f76_6d69_6772] {
        sqlx::query("SELECT pg_advisory_lock($1)")
            .bind(number)
            .execute(&mut guest)
            .await
            .expect("it may lock");
    }
    neighbours(&lab).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    for table in ["providerd.applying", "providerd.lease", "providerd.migrations", "llm_providers"] {
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS SHARE MODE");
        let error =
            sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut guest).await.expect_err("it has no right");
        assert_eq!(
            error.as_database_error().and_then(|error| error.code()).as_deref(),
            Some("42501"),
            "{table}"
        );
        sqlx::raw_sql("ROLLBACK").execute(&mut guest).await.expect("it ends");
    }
    goes_on(&lab, &mut daemon, 5).await;
    assert_eq!(daemon.stop(), 0);
    let said = lab.run_with(&["apply"], |command| {
        command.env("DATABASE_URL", &url);
    });
    assert!(said.stderr.contains("may not do this") && said.stderr.contains("hint:"), "{said:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_of_others_are_not_run() {
    let lab = Lab::new().await;
    // An exact match for two columns of type varchar, which the system's own operator is not.
    let trap = "CREATE TABLE public.trapped (program text, stack text);
         CREATE FUNCTION public.trap(a varchar, b varchar) RETURNS boolean LANGUAGE plpgsql AS $$
         DECLARE stack text;
         BEGIN
             GET DIAGNOSTICS stack = PG_CONTEXT;
             INSERT INTO public.trapped VALUES (current_setting('application_name'), stack);
             RETURN a::text = b::text;
         END $$;
         CREATE OPERATOR public.= (LEFTARG = varchar, RIGHTARG = varchar, FUNCTION = public.trap)";
    neighbours(&lab).await;
    lab.execute(trap).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    goes_on(&lab, &mut daemon, 3).await;
    commands(&lab);
    // The statements of other programs reach the functions of our triggers.
    lab.execute("UPDATE llm_models SET model_name = name || 'x' WHERE name = 'foreign-model'").await;
    let trapped = "SELECT count(*) FROM public.trapped";
    assert_ne!(lab.value(trapped).await, "0", "the trap is none");
    let ours = format!("{trapped} WHERE program = 'providerd' OR stack LIKE '%providerd.%'");
    assert_eq!(lab.value(&ours).await, "0");
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cause_is_told_as_it_is() {
    let lab = Lab::new().await;
    neighbours(&lab).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let name = lab.value("SELECT current_database()").await;
    lab.execute(&format!(
        "ALTER DATABASE {name} SET default_transaction_read_only = on;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'providerd' AND datname = '{name}'"
    ))
    .await;
    lab.write("other.toml", &provider("other", 2));
    daemon
        .fetch_until("/readyz", "it says that the database is read-only", |text| {
            text.contains("is read-only")
        })
        .await;
    let mut connection = lab.connect().await;
    for statement in [
        "SET default_transaction_read_only = off".to_owned(),
        format!("ALTER DATABASE {name} RESET default_transaction_read_only"),
        format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'providerd' AND datname = '{name}'"
        ),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("it is done");
    }
    goes_on(&lab, &mut daemon, 3).await;
    daemon.fetch_until("/readyz", "it is ready again", |text| text.contains("200 OK")).await;
    assert_eq!(daemon.stop(), 0);
}

/// Stands between the daemon and the server, on loopback. A connection that begins to write rows of providers is
/// swallowed from then on: nothing gets through, and nobody hangs up.
#[expect(clippy::disallowed_methods, reason = "ends with the test")]
async fn relay(socket: std::path::PathBuf, armed: std::sync::Arc<std::sync::atomic::AtomicBool>) -> u16 {
    use std::sync::atomic::Ordering::SeqCst;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    tokio::task::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (socket, armed) = (socket.clone(), armed.clone());
            tokio::task::spawn(async move {
                let Ok(server) = tokio::net::UnixStream::connect(socket).await else { return };
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let swallowed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let dumb = swallowed.clone();
                let back = tokio::task::spawn(async move {
                    let mut block = vec![0; 65536];
                    while let Ok(read @ 1..) = from_server.read(&mut block).await {
                        if !dumb.load(SeqCst) && to_client.write_all(&block[..read]).await.is_err() {
                            break;
                        }
                    }
                    // Nobody hangs up.
                    if dumb.load(SeqCst) {
                        std::future::pending::<()>().await;
                    }
                });
                let mut block = vec![0; 65536];
                while let Ok(read @ 1..) = from_client.read(&mut block).await {
                    let writes = block[..read].windows(4).any(|word| word == b"COPY");
                    if writes && armed.swap(false, SeqCst) {
                        swallowed.store(true, SeqCst);
                    }
                    if !swallowed.load(SeqCst) && to_server.write_all(&block[..read]).await.is_err() {
                        break;
                    }
                }
                back.abort();
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_dumb_is_given_up() {
    let mut lab = Lab::new().await;
    let armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let socket = pg::pg().socket_dir().join(".s.PGSQL.5432");
    let port = relay(socket, armed.clone()).await;
    let direct = lab.url.clone();
    lab.write("other.toml", &provider("other", 1));
    lab.url = direct.split('?').next().expect("a URL").replace("localhost/", &format!("127.0.0.1:{port}/"));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    armed.store(true, std::sync::atomic::Ordering::SeqCst);
    lab.write("new.toml", &provider("new", 5));
    daemon
        .fetch_until("/readyz", "it says that it waits", |text| {
            text.contains("has been waiting for the database")
        })
        .await;
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'new'", "5").await;
    daemon.fetch_until("/readyz", "it is ready again", |text| text.contains("200 OK")).await;
    assert!(!armed.load(std::sync::atomic::Ordering::SeqCst), "nothing was swallowed");
    assert_eq!(daemon.stop(), 0);
}

/// Longer than any stop may take, and shorter than any wait for a database.
const STOPPED: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_told_and_stops_no_stop() {
    let cluster = std::sync::Arc::new(pg::Cluster::start_private(pg::Options::default()));
    let mut lab = Lab::new().await;
    lab.url = cluster.database("frozen").await.url;
    lab.write("other.toml", &provider("other", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let backends = lab
        .value("SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE application_name = 'providerd' AND datname = current_database()")
        .await;
    let main = std::fs::read_to_string(cluster.socket_dir().join("data/postmaster.pid")).expect("it runs");
    let pids: Vec<i32> =
        backends.split(' ').chain(main.lines().take(1)).map(|pid| pid.parse().expect("a number")).collect();
    let all = |signal| {
        for pid in &pids {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal);
        }
    };
    all(nix::sys::signal::Signal::SIGSTOP);
    lab.write("other.toml", &provider("other", 2));
    daemon.fetch_until("/readyz", "it is not ready", |text| text.contains("503")).await;
    let began = Instant::now();
    daemon.stop();
    assert!(began.elapsed() < STOPPED, "a stop took {:?}", began.elapsed());
    all(nix::sys::signal::Signal::SIGCONT);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_writer_did_to_a_route_is_set_back() {
    let lab = Lab::new().await;
    neighbours(&lab).await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let rule = "SELECT concat_ws(' ', r.power_level, r.user_tier, r.task_type) FROM llm_routing_rules r
        JOIN llm_models m ON m.id = r.model_id WHERE m.name = 'victim-small'";
    for set in [
        "task_type = 'chat'",
        "task_type = ''",
        "power_level = NULL, task_type = repeat('x', 40)",
        "user_tier = NULL",
        "power_level = 'precision', user_tier = 'pro'",
    ] {
        lab.execute(&format!(
            "UPDATE llm_routing_rules SET {set} WHERE model_id = (SELECT id FROM llm_models WHERE name = 'victim-small')"
        ))
        .await;
        lab.wait_for(rule, "eco all").await;
        // Nothing is left of it that each pass would find again.
        let plan = lab.run(&["plan", "--output", "json"]).expect(0).json();
        assert_eq!(plan["empty"], true, "{set}: {plan}");
    }
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_does_not_follow_what_others_store() {
    use crate::support::{http::Api, process::resident_mib};
    let lab = Lab::new().await;
    neighbours(&lab).await;
    let (mut daemon, api) = Api::start_with(&lab, |command| {
        command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0");
    })
    .await;
    daemon.wait_for_log("the gateway listens").await;
    goes_on(&lab, &mut daemon, 2).await;
    let pid = daemon.pid().as_raw().cast_unsigned();
    let before = resident_mib(pid);
    lab.execute(
        "UPDATE llm_providers SET config = jsonb_build_object('x', repeat('x', 100000000)), type = 'openai' WHERE name = 'foreign';
         UPDATE llm_models SET metadata = jsonb_build_object('x', repeat('x', 50000000)), display_name = repeat('y', 250)
             WHERE name = 'foreign-model';
         INSERT INTO llm_models (provider_id, name, display_name)
             SELECT id, 'foreign-' || n, repeat('z', 200) FROM llm_providers, generate_series(1, 50000) n WHERE name = 'foreign'",
    )
    .await;
    let mut peak = before;
    for priority in 3..23 {
        goes_on(&lab, &mut daemon, priority).await;
        let keys = api.get("/api/v1/llm/providers/keys").await.expect(200);
        assert!(keys.body.len() < 1 << 20, "{} bytes of keys", keys.body.len());
        peak = peak.max(resident_mib(pid));
    }
    eprintln!("memory: {before:.0} MiB before, {peak:.0} MiB at most");
    assert!(peak < before + 100.0, "{before:.0} MiB before, {peak:.0} MiB at most");
    daemon.stop();
}
