//! The daemon as a user runs it: real files, real PostgreSQL, real signals.
#![allow(clippy::disallowed_methods, reason = "tests spawn readers of their own")]

use std::{
    fs,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sqlx::{Executor, Row};

use crate::support::lab::{Lab, PATIENCE, provider, swap};

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_manifest_is_in_the_database_moments_later() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "1").await;
    let id = lab.value("SELECT id FROM llm_providers WHERE name = 'alpha'").await;

    // In place, by rename, a new file, a new directory.
    fs::write(lab.manifests().join("a.toml"), provider("alpha", 2)).unwrap();
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "2").await;
    lab.write("a.toml", &provider("alpha", 3));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "3").await;
    lab.write("team/deep/b.toml", &provider("beta", 4));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", "4").await;
    lab.wait_for("SELECT count(*) FROM llm_routing_rules WHERE is_active AND model_id IS NOT NULL", "2")
        .await;

    // A removed file takes its provider away; its neighbour's identity stays.
    lab.remove("team/deep/b.toml");
    lab.wait_for("SELECT count(*) FROM llm_providers", "1").await;
    assert_eq!(lab.value("SELECT id FROM llm_providers WHERE name = 'alpha'").await, id);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_to_do_writes_no_wal() {
    // Neighbours write WAL too, so this needs a server of its own.
    let cluster = crate::support::pg::Cluster::start_private(crate::support::pg::Options::default());
    let mut lab = Lab::new().await;
    lab.url = cluster.url("postgres");
    for index in 0..20 {
        lab.write(&format!("p{index}.toml"), &provider(&format!("p{index}"), index));
    }
    lab.run(&["apply"]).expect(0);
    // Vacuum once, so that PostgreSQL's own page cleaning is not blamed on the second pass.
    lab.execute("VACUUM FREEZE").await;
    lab.execute("CHECKPOINT").await;
    let before = lab.value("SELECT pg_current_wal_insert_lsn()").await;
    let again = lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value("SELECT pg_current_wal_insert_lsn()").await, before, "{}", again.stdout);
    assert!(again.stdout.contains("nothing to do"), "{}", again.stdout);
    lab.run(&["plan"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_is_set_back_and_recorded_but_undeclared_fields_are_nobodys_business() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.execute("UPDATE llm_providers SET priority = 77, enabled = false, config = config || '{\"theirs\": 1}' WHERE name = 'alpha'").await;
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "1").await;
    // `enabled` is declared by nobody: an operator switched it off.
    assert_eq!(lab.value("SELECT enabled FROM llm_providers WHERE name = 'alpha'").await, "false");
    assert_eq!(lab.value("SELECT config->>'theirs' FROM llm_providers WHERE name = 'alpha'").await, "1");
    lab.wait_for("SELECT count(*) FROM providerd.events WHERE kind = 'drift'", "1").await;

    // A deleted row is created again.
    lab.execute("DELETE FROM llm_providers WHERE name = 'alpha'").await;
    lab.wait_for("SELECT count(*) FROM llm_models", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_files_stop_nothing_else_and_lose_nothing() {
    let lab = Lab::new().await;
    for name in ["alpha", "beta", "gamma", "delta"] {
        lab.write(&format!("{name}.toml"), &provider(name, 1));
    }
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.wait_for("SELECT count(*) FROM llm_providers", "4").await;

    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("syntax", b"[providers.alpha\ntype = ".to_vec()),
        ("empty key", b"[providers.alpha]\ntype = \"openai\"\nsurprise = 1\n".to_vec()),
        ("binary", vec![0, 159, 146, 150, 0, 255]),
        ("huge", vec![b'#'; 2 * 1024 * 1024]),
    ];
    for (round, (what, bytes)) in bad.into_iter().enumerate() {
        let priority = 10 + i32::try_from(round).unwrap();
        fs::write(lab.manifests().join("alpha.toml"), bytes).unwrap();
        lab.write("beta.toml", &provider("beta", priority));
        lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", &priority.to_string()).await;
        assert_eq!(lab.value("SELECT count(*) FROM llm_providers p JOIN llm_models m ON m.provider_id = p.id JOIN llm_routing_rules r ON r.model_id = m.id WHERE p.name = 'alpha'").await, "1", "{what}");
    }
    // A FIFO would block a careless reader for ever.
    lab.remove("alpha.toml");
    nix::unistd::mkfifo(&lab.manifests().join("alpha.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    lab.write("beta.toml", &provider("beta", 30));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", "30").await;
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "4");

    // Mended, it goes on.
    lab.remove("alpha.toml");
    lab.write("alpha.toml", &provider("alpha", 31));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "31").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_or_missing_directory_prunes_nothing() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.write("b.toml", &provider("beta", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.wait_for("SELECT count(*) FROM llm_providers", "2").await;

    let away = lab.dir.path().join("away");
    fs::rename(lab.manifests(), &away).unwrap();
    daemon.wait_for_log("cannot be believed").await;
    lab.run(&["plan"]).expect(2);
    lab.run(&["apply"]).expect(2);
    fs::create_dir(lab.manifests()).unwrap();
    lab.run(&["apply"]).expect(2);
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "2");

    // The directory comes back, with a change in it.
    fs::remove_dir(lab.manifests()).unwrap();
    fs::write(away.join("a.toml"), provider("alpha", 5)).unwrap();
    fs::rename(&away, lab.manifests()).unwrap();
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "5").await;
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_prune_waits_for_its_digest() {
    let lab = Lab::new().await;
    for index in 0..10 {
        lab.write(&format!("p{index}.toml"), &provider(&format!("p{index}"), 1));
    }
    lab.run(&["apply"]).expect(0);
    for index in 0..5 {
        lab.remove(&format!("p{index}.toml"));
    }
    lab.write("p9.toml", &provider("p9", 99));
    let held = lab.run(&["apply", "--output", "json"]).expect(2).json();
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "10", "held back whole");
    assert_eq!(
        lab.value("SELECT priority FROM llm_providers WHERE name = 'p9'").await,
        "99",
        "the rest is applied"
    );
    let digest = held["held"][0]["digest"].as_str().unwrap().to_owned();
    lab.run(&["apply", "--confirm-prune", "000000000000"]).expect(2);
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "10");
    lab.run(&["apply", "--confirm-prune", &digest]).expect(0);
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "5");
    lab.run(&["plan"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_history_is_kept_when_its_provider_goes() {
    let lab = Lab::new().await;
    for name in ["alpha", "beta", "gamma", "delta", "epsilon"] {
        lab.write(
            &format!("{name}.toml"),
            &provider(name, 1).replace("priority", "api_key = { env = \"KEY\" }\npriority"),
        );
    }
    let apply = |code: i32| {
        let output = lab.command(&["apply"]).env("KEY", "not-a-real-key-for-tests").output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    };
    apply(0);
    lab.execute("INSERT INTO llm_usage_logs (user_id, provider_id) SELECT 'u', id FROM llm_providers WHERE name = 'alpha'").await;
    lab.remove("alpha.toml");
    lab.remove("beta.toml");
    apply(0);
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers WHERE name = 'beta'").await, "0");
    assert_eq!(lab.value("SELECT enabled::text || api_key_encrypted || coalesce(encrypted_api_key, '') FROM llm_providers WHERE name = 'alpha'").await, "false");
    assert_eq!(lab.value("SELECT count(*) FROM llm_usage_logs WHERE provider_id IS NOT NULL").await, "1");
    apply(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_cell_keeps_its_last_usable_model() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.write("b.toml", &provider("beta", 1).replace("eco", "precision"));
    lab.run(&["apply"]).expect(0);
    // Beta is the only one that serves precision.
    lab.write("b.toml", &provider("beta", 7).replace("eco", "balanced"));
    let held = lab.run(&["apply"]).expect(2);
    assert!(held.stdout.contains("precision × all"), "{}", held.stdout);
    assert_eq!(
        lab.value("SELECT count(*) FROM llm_routing_rules WHERE power_level = 'precision'").await,
        "1"
    );
    assert_eq!(
        lab.value("SELECT priority FROM llm_providers WHERE name = 'beta'").await,
        "7",
        "the rest is applied"
    );
    // Somebody else serves it now, so the rule may go.
    lab.write("a.toml", &provider("alpha", 1).replace("eco", "precision"));
    lab.run(&["apply"]).expect(2);
    lab.write("c.toml", &provider("gamma", 1));
    lab.run(&["apply"]).expect(0);
    assert_eq!(
        lab.value("SELECT string_agg(power_level, ',' ORDER BY power_level) FROM llm_routing_rules").await,
        "balanced,eco,precision"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_database_refuses_stays_alone() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.run(&["apply"]).expect(0);
    lab.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
         IF NEW.name = 'beta-small' THEN RAISE EXCEPTION 'no betas here' USING ERRCODE = 'check_violation'; END IF; RETURN NEW; END $$; \
         CREATE TRIGGER refuse BEFORE INSERT ON llm_models FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    let sibling = "\n[[providers.beta.models]]\nname = \"beta-large\"\n";
    lab.write("b.toml", &(provider("beta", 1) + sibling));
    lab.write("c.toml", &provider("gamma", 1));
    let ran = lab.run(&["apply"]).expect(2);
    assert!(ran.stdout.contains("beta/beta-small") && ran.stdout.contains("no betas here"), "{}", ran.stdout);
    assert_eq!(
        lab.value("SELECT string_agg(name, ',' ORDER BY name) FROM llm_providers").await,
        "alpha,beta,gamma"
    );
    // Its sibling with its route is there, and that it waits writes nothing more.
    assert_eq!(
        lab.value("SELECT string_agg(m.name, ',' ORDER BY m.name) FROM llm_models m JOIN llm_routing_rules r ON r.model_id = m.id").await,
        "alpha-small,beta-large,gamma-small"
    );
    let events = lab.value("SELECT count(*) FROM providerd.events").await;
    lab.run(&["apply"]).expect(2);
    let again: i64 = lab.value("SELECT count(*) FROM providerd.events").await.parse().unwrap();
    assert!(
        again <= events.parse::<i64>().unwrap() + 1,
        "each apply by hand records the refusal, and nothing else"
    );
    assert_eq!(lab.value("SELECT count(*) FROM providerd.events WHERE kind = 'refusal'").await, "2");
    lab.execute("DROP TRIGGER refuse ON llm_models").await;
    lab.run(&["apply"]).expect(0);
    assert_eq!(lab.value("SELECT count(*) FROM llm_models").await, "4");
}

#[tokio::test(flavor = "multi_thread")]
async fn suspended_means_nothing_is_applied_until_resumed() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.run(&["suspend", "--reason", "an incident"]).expect(0);
    lab.write("a.toml", &provider("alpha", 2));
    lab.run(&["apply"]).expect(2);
    assert_eq!(lab.value("SELECT priority FROM llm_providers").await, "1");
    lab.run(&["resume"]).expect(0);
    lab.wait_for("SELECT priority FROM llm_providers", "2").await;

    lab.write("b.toml", &provider("beta", 1));
    lab.wait_for("SELECT count(*) FROM llm_providers", "2").await;
    lab.run(&["suspend", "alpha"]).expect(0);
    lab.write("a.toml", &provider("alpha", 3));
    lab.write("b.toml", &provider("beta", 3));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", "3").await;
    assert_eq!(lab.value("SELECT priority FROM llm_providers WHERE name = 'alpha'").await, "2");
    lab.run(&["resume", "alpha"]).expect(0);
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'alpha'", "3").await;
    assert_eq!(
        lab.value("SELECT count(*) FROM providerd.events WHERE kind IN ('suspend', 'resume')").await,
        "4"
    );
}

/// A reader at any instant sees one whole catalog, whatever is killed when. `PROVIDERD_KILLS=100` is the slow
/// proof; a few rounds run always.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_at_any_instant_leaves_one_whole_catalog() {
    let kills: u32 = std::env::var("PROVIDERD_KILLS").ok().and_then(|it| it.parse().ok()).unwrap_or(8);
    let lab = Lab::new().await;
    let providers = 60;
    for version in 0..2 {
        let dir = lab.dir.path().join(format!("v{version}"));
        fs::create_dir(&dir).unwrap();
        for index in 0..providers {
            // Each version has models of its own, so that rows come and go, and not only change.
            let text = provider(&format!("p{index}"), version).replace("-small", &format!("-v{version}"));
            fs::write(dir.join(format!("p{index}.toml")), text).unwrap();
        }
    }
    fs::remove_dir(lab.manifests()).unwrap();
    swap(&lab.manifests(), &lab.dir.path().join("v0"));
    lab.run(&["apply"]).expect(0);

    let url = lab.url.clone();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let reader = tokio::spawn(async move {
        use sqlx::Connection;
        let mut connection = sqlx::PgConnection::connect(&url).await.unwrap();
        let (mut looks, mut switches, mut last) = (0u64, 0u64, -1);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let rows = connection
                .fetch_all(
                    "SELECT p.priority, right(m.name, 1)::int AS model, count(*) AS n FROM llm_providers p \
                     JOIN llm_models m ON m.provider_id = p.id JOIN llm_routing_rules r ON r.model_id = m.id GROUP BY 1, 2",
                )
                .await
                .unwrap();
            let found: Vec<(i32, i32, i64)> =
                rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
            assert_eq!(found.len(), 1, "a mixture: {found:?}");
            let (priority, model, count) = found[0];
            assert!(priority == model && count == 60, "a mixture: {found:?}");
            looks += 1;
            switches += u64::from(priority != last);
            last = priority;
        }
        (looks, switches)
    });
    for round in 0..kills {
        let mut daemon = lab.daemon_with(|command| {
            command.env("RUST_LOG", "info");
        });
        // Start-up, waiting for the lease and an apply take some 20 to 200 ms: every instant of them is hit.
        let instant = Duration::from_millis(u64::from((round * 37) % 400));
        swap(&lab.manifests(), &lab.dir.path().join(format!("v{}", round % 2)));
        tokio::time::sleep(instant).await;
        daemon.kill();
        // The dead leader's lease would make the next one wait; its row is what a failover looks like.
        lab.execute("DELETE FROM providerd.lease").await;
    }
    let version = kills % 2;
    swap(&lab.manifests(), &lab.dir.path().join(format!("v{version}")));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    lab.wait_for("SELECT DISTINCT priority FROM llm_providers", &version.to_string()).await;
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (looks, switches) = reader.await.unwrap();
    println!("{kills} kills, {looks} looks, {switches} whole catalogs seen");
    lab.run(&["plan"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_daemon_reconciles_and_the_other_takes_over() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let mut first = lab.daemon();
    first.wait_ready().await;
    lab.wait_for("SELECT count(*) FROM llm_providers", "1").await;
    let mut second = lab.daemon();
    second.wait_ready().await;
    assert!(!second.log().contains("\"leader\":true"), "one leader");
    first.kill();
    let started = Instant::now();
    lab.write("a.toml", &provider("alpha", 2));
    lab.wait_for("SELECT priority FROM llm_providers", "2").await;
    assert!(started.elapsed() < Duration::from_secs(10), "took over after {:?}", started.elapsed());

    // A daemon that slept through its own replacement must not write what it still remembers.
    second.signal(Signal::SIGSTOP);
    let mut third = lab.daemon();
    third.wait_for_log("\"leader\":true").await;
    lab.write("a.toml", &provider("alpha", 3));
    lab.wait_for("SELECT priority FROM llm_providers", "3").await;
    second.signal(Signal::SIGCONT);
    second.wait_for_log("\"leader\":false").await;
    assert_eq!(lab.value("SELECT priority FROM llm_providers").await, "3");
    lab.write("a.toml", &provider("alpha", 4));
    lab.wait_for("SELECT priority FROM llm_providers", "4").await;
    assert_eq!(third.stop(), 0);
    lab.write("a.toml", &provider("alpha", 5));
    lab.wait_for("SELECT priority FROM llm_providers", "5").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_going_away_ends_nothing() {
    let cluster = crate::support::pg::Cluster::start_private(crate::support::pg::Options::default());
    let mut lab = Lab::new().await;
    lab.url = cluster.url("postgres");
    lab.write("a.toml", &provider("alpha", 1));
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    for round in 2..5 {
        cluster.stop_immediate();
        lab.write("a.toml", &provider("alpha", round));
        daemon.wait_for_log("the pass failed").await;
        cluster.start();
        lab.wait_for("SELECT priority FROM llm_providers", &round.to_string()).await;
        assert!(daemon.is_running());
    }
    // A daemon that starts before its database waits for it.
    cluster.stop_immediate();
    let mut early = lab.daemon();
    early.wait_for_log("the database is not ready").await;
    cluster.start();
    early.wait_ready().await;
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_file_is_applied_without_a_restart() {
    let lab = Lab::new().await;
    let keys = lab.dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join("alpha"), "not-a-real-key-number-one\n").unwrap();
    lab.write(
        "a.toml",
        &provider("alpha", 1).replace("priority", "api_key = { file = \"alpha\" }\npriority"),
    );
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_KEYS__DIR", &keys);
    });
    daemon.wait_ready().await;
    let stored = "SELECT api_key_encrypted FROM llm_providers";
    lab.wait_for("SELECT length(api_key_encrypted) > 0 FROM llm_providers", "true").await;
    let first = lab.value(stored).await;
    fs::write(keys.join("alpha"), "not-a-real-key-number-two\n").unwrap();
    let started = Instant::now();
    while lab.value(stored).await == first {
        assert!(started.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(lab.value("SELECT api_key_encrypted = encrypted_api_key AND api_key_test_status = 'pending' FROM llm_providers").await, "true");
    // An emptied file is reported, and the stored key stays.
    let second = lab.value(stored).await;
    fs::write(keys.join("alpha"), "").unwrap();
    lab.write(
        "a.toml",
        &provider("alpha", 9).replace("priority", "api_key = { file = \"alpha\" }\npriority"),
    );
    lab.wait_for("SELECT priority FROM llm_providers", "9").await;
    assert_eq!(lab.value(stored).await, second);
    let log = daemon.log();
    assert!(!log.contains("not-a-real-key"), "a key in the log");
    daemon.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_byok_key_writes_nothing() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.run(&["apply"]).expect(0);
    lab.write("a.toml", &provider("alpha", 2));
    let other = "b3RoZXItYnlvay1rZXktZm9yLXByb3ZpZGVyZC0wMDI=";
    let output = lab.command(&["apply"]).env("BYOK_ENCRYPTION_KEY", other).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("BYOK") && !said.contains(other), "{said}");
    assert_eq!(lab.value("SELECT priority FROM llm_providers").await, "1");
    let output = lab.command(&["run"]).env("BYOK_ENCRYPTION_KEY", "").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("key generate"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_settings_file_is_noticed() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let file = lab.dir.path().join("settings.toml");
    fs::write(&file, "[manifests]\nresync_interval = \"30s\"\n").unwrap();
    let mut daemon = lab.daemon_with(|command| {
        command.arg("--config").arg(&file);
    });
    daemon.wait_ready().await;
    assert!(!daemon.log().contains("a reload (SIGHUP) reads it"));
    fs::write(&file, "[manifests]\nresync_interval = \"40s\"\n").unwrap();
    daemon.wait_for_log("a reload (SIGHUP) reads it").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_takes_settings_and_names_those_that_need_a_restart() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let file = lab.dir.path().join("settings.toml");
    fs::write(&file, "").unwrap();
    let mut daemon = lab.daemon_with(|command| {
        command.arg("--config").arg(&file);
    });
    daemon.wait_ready().await;
    let priority = "SELECT priority FROM llm_providers WHERE name = 'alpha'";
    lab.execute("UPDATE llm_providers SET priority = 99").await;
    lab.wait_for(priority, "1").await;

    fs::write(&file, "[reconcile]\ndrift = \"report\"\n[database]\nmax_connections = 7\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("\"keys\":\"reconcile.drift\"").await;
    daemon.wait_for_log("\"keys\":\"database.max_connections\"").await;
    // Drift is only reported now. The other provider shows that a look has happened.
    lab.execute("UPDATE llm_providers SET priority = 98").await;
    lab.write("b.toml", &provider("beta", 1));
    lab.wait_for("SELECT count(*) FROM llm_providers", "2").await;
    daemon.signal(Signal::SIGHUP);
    lab.write("b.toml", &provider("beta", 2));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", "2").await;
    assert_eq!(lab.value(priority).await, "98");

    // A mistake changes nothing, neither settings nor what is applied.
    fs::write(&file, "[reconcile]\ndrift = \"correct\"\nnonsense = 1\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.wait_for_log("those in force stay").await;
    lab.write("b.toml", &provider("beta", 3));
    lab.wait_for("SELECT priority FROM llm_providers WHERE name = 'beta'", "3").await;
    assert_eq!(lab.value(priority).await, "98");
    // Mended, it is taken, and corrects.
    fs::write(&file, "[reconcile]\ndrift = \"correct\"\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    lab.wait_for(priority, "1").await;
    assert_eq!(daemon.stop(), 0);
}

/// A file that gets another name, in all the ways in which that happens, is neither a conflict nor a reason to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_rename_raises_no_alarm_and_waits_for_nothing() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("moving", 1));
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com"])
            .args(arguments)
            .current_dir(lab.manifests())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "first"]);
    git(&["checkout", "-q", "-b", "moved"]);
    git(&["mv", "a.toml", "z.toml"]);
    fs::write(lab.manifests().join("z.toml"), provider("moving", 77)).unwrap();
    git(&["commit", "-qam", "moved"]);
    git(&["checkout", "-q", "main"]);
    // So long that what waits for it is seen to.
    let settle = Duration::from_secs(40);
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_MANIFESTS__SETTLE", "40s");
    });
    daemon.wait_ready().await;
    let at = |name: &str| lab.manifests().join(name);
    let priority = "SELECT priority FROM llm_providers WHERE name = 'moving'";
    let started = Instant::now();
    for round in 0..4 {
        let (from, to) =
            (format!("{}.toml", ["a", "b"][round % 2]), format!("{}.toml", ["b", "a"][round % 2]));
        let text = provider("moving", 10 + i32::try_from(round).unwrap());
        match round {
            // `mv`, then an editor.
            0 | 1 => {
                fs::rename(at(&from), at(&to)).unwrap();
                lab.write(&to, &text);
            }
            // Written under the new name, then the old one removed.
            _ => {
                lab.write(&to, &text);
                lab.remove(&from);
            }
        }
        lab.wait_for(priority, &(10 + round).to_string()).await;
    }
    lab.write("a.toml", &provider("moving", 1));
    lab.wait_for(priority, "1").await;
    for (branch, wanted) in [("moved", "77"), ("main", "1"), ("moved", "77")] {
        git(&["checkout", "-q", branch]);
        lab.wait_for(priority, wanted).await;
    }
    assert!(started.elapsed() < settle, "something waited for rest");
    let metrics = daemon.fetch("/metrics").await;
    assert!(metrics.contains("providerd_manifest_last_reload_successful 1"), "{metrics}");
    assert!(metrics.contains("providerd_manifest_files{state=\"invalid\"} 0"), "{metrics}");
    let log = daemon.log();
    assert!(!log.contains("several files") && !log.contains("\"ERROR\""), "{log}");
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_is_not_blamed_for_what_it_does_not_hold() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("edited", 1));
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git")
            .args(["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com"])
            .args(arguments)
            .current_dir(lab.manifests())
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "-A"]);
    git(&["commit", "-qm", "first"]);
    let check = async |name: &str, priority: i32, is_dirty: bool| {
        let of = |what: &str, of: &str| format!("SELECT {what} FROM {of} '{name}' ORDER BY id DESC");
        lab.wait_for(&of("priority", "llm_providers WHERE name ="), &priority.to_string()).await;
        let revision = lab.value(&of("revision", "providerd.events WHERE provider =")).await;
        assert_eq!(revision.ends_with("+dirty"), is_dirty, "{name} {priority}: {revision:?}");
        assert!(revision.len() >= 12, "{revision:?}");
    };
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    check("edited", 1, false).await;
    lab.write("a.toml", &provider("edited", 222));
    check("edited", 222, true).await;
    git(&["commit", "-qam", "second"]);
    git(&["commit", "-q", "--allow-empty", "-m", "third"]);
    lab.write("b.toml", &provider("untracked", 333));
    check("untracked", 333, true).await;
    git(&["add", "-A"]);
    lab.write("c.toml", &provider("later", 444));
    check("later", 444, true).await;
    assert_eq!(daemon.stop(), 0);
}
