//! Health checks and key tests as users get them: the real daemon, providers on real sockets, a real PostgreSQL.
#![allow(clippy::disallowed_methods, reason = "tests spawn tasks of their own")]

use std::{fs, path::PathBuf};

use crate::support::{
    fake::{Fake, KEY, OTHER_KEY},
    lab::{Daemon, Lab, PATIENCE},
};

const HEALTH: &str = "SELECT health_status FROM llm_providers WHERE name = 'alpha'";
const KEY_STATUS: &str = "SELECT api_key_test_status FROM llm_providers WHERE name = 'alpha'";

fn key_file(lab: &Lab, text: &str) -> (PathBuf, String) {
    let path = lab.dir.path().join("alpha.key");
    let temporary = path.with_extension("new");
    fs::write(&temporary, text).unwrap();
    fs::rename(temporary, &path).unwrap();
    let reference = format!("{{ file = \"{}\" }}", path.display());
    (path, reference)
}

/// A lab with one provider `alpha` that works.
async fn one() -> (Lab, Fake, Daemon) {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    let (_, reference) = key_file(&lab, KEY);
    lab.write("alpha.toml", &fake.manifest("alpha", &reference, ""));
    let daemon = lab.checking();
    lab.wait_for(HEALTH, "healthy").await;
    lab.wait_for(KEY_STATUS, "valid").await;
    (lab, fake, daemon)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_dies_and_comes_back_and_a_restart_forgets_nothing() {
    let (lab, fake, daemon) = one().await;
    assert_ne!(lab.value("SELECT api_key_last_tested FROM llm_providers").await, "");

    fake.set_status(503);
    lab.wait_for(HEALTH, "unhealthy").await;
    // The key was proven and stays so: an outage says nothing about it.
    assert_eq!(lab.value(KEY_STATUS).await, "valid");
    let events =
        "SELECT string_agg(kind || ' ' || (detail::jsonb->>'from') || ' ' || (detail::jsonb->>'to'), ', ' ORDER BY id)
                  FROM providerd.events WHERE kind IN ('health', 'key_test') AND provider = 'alpha'";
    let seen = lab.value(events).await;
    for wanted in ["health unknown healthy", "key_test pending valid", "health healthy unhealthy"] {
        assert!(seen.contains(wanted), "{seen}");
    }

    // The next daemon takes up where this one was stopped.
    assert_eq!(daemon.stop(), 0);
    let before =
        lab.value("SELECT count(*) FROM providerd.events WHERE kind IN ('health', 'key_test')").await;
    let mut again = lab.checking();
    again.wait_ready().await;
    fake.set_status(200);
    lab.wait_for("SELECT memory::json->'health'->>'status' FROM providerd.health", "unhealthy").await;
    assert_eq!(lab.value(HEALTH).await, "unhealthy");
    assert_eq!(
        lab.value("SELECT count(*) FROM providerd.events WHERE kind IN ('health', 'key_test')").await,
        before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_revoked_and_replaced() {
    let (lab, fake, _daemon) = one().await;
    // Another key in the file: pending at once, proven within moments.
    fake.set_keys(&[KEY, OTHER_KEY]);
    let updated = "SELECT api_key_updated_at FROM llm_providers";
    let before = lab.value(updated).await;
    key_file(&lab, OTHER_KEY);
    lab.wait_for(&format!("SELECT api_key_updated_at > '{before}' FROM llm_providers"), "true").await;
    lab.wait_for(KEY_STATUS, "valid").await;
    // A provider with a refused key is a healthy provider.
    assert_eq!(lab.value(HEALTH).await, "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_managed_or_not_enabled_is_not_checked() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    lab.run(&["apply"]);
    lab.execute(&format!(
        "INSERT INTO llm_providers (name, type, api_key_encrypted, api_base_url) VALUES ('theirs', 'openai', '', '{}')",
        fake.base_url()
    ))
    .await;
    let (_, reference) = key_file(&lab, KEY);
    lab.write("alpha.toml", &fake.manifest("alpha", &reference, ""));
    let _daemon = lab.checking();
    lab.wait_for(HEALTH, "healthy").await;
    // An operator switches it off in the database: nobody declared `enabled`.
    lab.execute("UPDATE llm_providers SET enabled = false WHERE name = 'alpha'").await;
    lab.wait_for(HEALTH, "unknown").await;
    assert_eq!(
        lab.value(
            "SELECT coalesce(last_health_check::text, 'never') FROM llm_providers WHERE name = 'theirs'"
        )
        .await,
        "never"
    );
    lab.execute("UPDATE llm_providers SET enabled = true WHERE name = 'alpha'").await;
    lab.wait_for(HEALTH, "healthy").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_looks_now_and_writes_nothing() {
    let lab = Lab::new().await;
    let (good, bad, dead) = (Fake::start().await, Fake::start().await, Fake::start().await);
    bad.set_keys(&[]);
    dead.set_status(500);
    let (_, reference) = key_file(&lab, KEY);
    lab.write("a.toml", &good.manifest("alpha", &reference, ""));
    // Also before anything was applied.
    let ran = lab.run(&["check"]).expect(0);
    assert!(ran.stdout.contains("valid, 2 models found"), "{}", ran.stdout);
    lab.run(&["apply"]).expect(0);
    lab.write("b.toml", &bad.manifest("beta", &reference, ""));
    lab.write("c.toml", &dead.manifest("gamma", &reference, ""));
    lab.write("d.toml", &dead.manifest("off", "{ env = \"NOT_SET_ANYWHERE\" }", ""));
    let ran = lab.run(&["check"]).expect(2);
    assert!(ran.stdout.contains("invalid: HTTP 401: Incorrect API key provided"), "{}", ran.stdout);
    assert!(ran.stdout.contains("NOT_SET_ANYWHERE"), "{}", ran.stdout);
    lab.run(&["check", "alpha"]).expect(0);
    lab.run(&["check", "beta"]).expect(2);
    assert!(lab.run(&["check", "nobody"]).expect(1).stderr.contains("`nobody`"));
    let json = lab.run(&["check", "alpha", "gamma", "--output", "json"]).expect(2).json();
    assert_eq!(json[0]["key"]["verdict"], "valid");
    assert_eq!(json[0]["models_found"], 2);
    assert_eq!(json[1]["outcome"], "hard");
    assert!(!json.to_string().contains(KEY));
    assert_eq!(lab.value("SELECT health_status FROM llm_providers").await, "unknown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_new_key_does_not_replace_a_working_one() {
    let (lab, fake, daemon) = one().await;
    let token = "SELECT api_key_encrypted FROM llm_providers WHERE name = 'alpha'";
    let before = lab.value(token).await;

    // The provider does not know the new key: the old one stays, and that is reported once.
    key_file(&lab, OTHER_KEY);
    let refusals = "SELECT count(*) FROM providerd.events WHERE kind = 'refusal' AND provider = 'alpha'";
    lab.wait_for(refusals, "1").await;
    assert_eq!(lab.value(token).await, before);
    assert_eq!(lab.value(KEY_STATUS).await, "valid");
    let status = lab.run_checking(&["status"]);
    assert!(
        status.stdout.contains("rejected at ") && status.stdout.contains("asked again"),
        "{}",
        status.stdout
    );
    // The audit trail tells of a trial, and of nothing that was given up.
    let told = "SELECT string_agg(kind || ' ' || detail, ', ' ORDER BY id) FROM providerd.events
                WHERE reason LIKE '%is tried at its provider%' OR reason LIKE '%gave up%'";
    assert_eq!(lab.value(told).await, r#"key {"corrected":false,"fields":[]}"#);

    // The one-shot command comes to the same verdict.
    let applied = lab.run_checking(&["apply"]);
    assert!(applied.stdout.contains("rejects the declared key"), "{}", applied.stdout);
    assert_eq!(lab.value(token).await, before);
    assert_eq!(lab.value(refusals).await, "1");

    // A working key is taken, by whomever it is asked for.
    fake.set_keys(&[KEY, OTHER_KEY]);
    lab.run_checking(&["apply"]).expect(0);
    assert_ne!(lab.value(token).await, before);
    lab.wait_for(KEY_STATUS, "valid").await;
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_somebody_else_set_stays_while_it_works() {
    let (lab, fake, _daemon) = one().await;
    fake.set_keys(&[KEY, OTHER_KEY]);
    let declared = lab.value("SELECT api_key_encrypted FROM llm_providers").await;
    let byok = providerd::secret::Byok::parse(crate::support::lab::BYOK).unwrap();
    let theirs = byok.encrypt(&providerd::secret::Secret::copy_of(OTHER_KEY));
    lab.execute(&format!("UPDATE llm_providers SET api_key_encrypted = '{theirs}'")).await;
    lab.wait_for(
        "SELECT count(*) FROM providerd.events WHERE kind = 'key' AND reason LIKE '%someone else%'",
        "1",
    )
    .await;
    lab.wait_for(KEY_STATUS, "valid").await;
    assert_eq!(lab.value("SELECT api_key_encrypted FROM llm_providers").await, theirs);

    // Once it is known not to work, and the declared one does, the declared one comes back.
    fake.set_keys(&[KEY]);
    lab.execute("UPDATE llm_providers SET api_key_test_status = 'failed', priority = 9").await;
    lab.wait_for(
        "SELECT api_key_test_status = 'valid' AND api_key_encrypted NOT IN ('') FROM llm_providers",
        "true",
    )
    .await;
    let now = lab.value("SELECT api_key_encrypted FROM llm_providers").await;
    assert!(now != theirs && now != declared, "a fresh token of the declared key");
}

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_stops_one_provider_s_checks_for_a_while() {
    let (lab, fake, mut daemon) = one().await;
    let said = lab.run(&["suspend", "alpha", "--checks", "--for", "2h", "--reason", "new disks"]).expect(0);
    assert!(said.stdout.contains("checking is suspended for alpha"), "{}", said.stdout);
    lab.wait_for("SELECT count(*) FROM providerd.events WHERE kind = 'suspend'", "1").await;
    let status = lab.run(&["status"]);
    assert!(
        status.stdout.contains("not checked until") && status.stdout.contains("new disks"),
        "{}",
        status.stdout
    );
    // It is off for hours, and nobody says that it is dead.
    daemon.fetch_until("/metrics", "its series are gone", |text| !text.contains("provider=\"alpha\"")).await;
    let asked = fake.seen();
    fake.set_status(503);
    assert_eq!(lab.value(HEALTH).await, "healthy");
    lab.run(&["resume", "alpha", "--checks"]).expect(0);
    lab.wait_for(HEALTH, "unhealthy").await;
    assert!(fake.seen() > asked);
    // One that ends by itself does so in time.
    lab.run(&["suspend", "alpha", "--checks", "--for", "3s"]).expect(0);
    daemon.fetch_until("/metrics", "paused", |text| !text.contains("provider=\"alpha\"")).await;
    daemon.fetch_until("/metrics", "checked again", |text| text.contains("provider=\"alpha\"")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_becomes_invalid_changes_nothing_in_how_its_providers_are_checked() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    // Read in the usual way, each of these answers would count as an outage.
    fake.set_status(503);
    let (_, reference) = key_file(&lab, KEY);
    let policy = "expect_status = [503]\n";
    let alpha = format!("{}[providers.alpha.health]\n{policy}", fake.manifest("alpha", &reference, ""));
    lab.write("alpha.toml", &alpha);
    lab.write("team/beta.toml", &fake.manifest("beta", &reference, ""));
    lab.write("team/defaults.toml", &format!("[defaults.health]\n{policy}"));
    let healthy = "SELECT count(*) FROM llm_providers WHERE health_status = 'healthy'";
    let mut daemon = lab.checking();
    lab.wait_for(healthy, "2").await;

    lab.write("alpha.toml", &format!("{alpha}nonsense"));
    lab.write("team/defaults.toml", "[defaults.health]\nnonsense");
    daemon
        .fetch_until("/metrics", "both files are invalid", |text| {
            text.contains("providerd_manifest_files{state=\"invalid\"} 2")
        })
        .await;
    let stays_healthy = async || {
        let (before, started) = (fake.seen(), std::time::Instant::now());
        while fake.seen() < before + 16 {
            assert_eq!(lab.value(healthy).await, "2");
            assert!(started.elapsed() < PATIENCE, "nothing is checked");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    stays_healthy().await;
    // Nor does the next daemon, which has never seen the files valid.
    assert_eq!(daemon.stop(), 0);
    let _daemon = lab.checking();
    stays_healthy().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_waits_for_the_verdicts() {
    let (lab, _fake, _daemon) = one().await;
    let bad = Fake::start().await;
    bad.set_keys(&[]);
    lab.write("beta.toml", &bad.manifest("beta", "{ env = \"NOT_SET_ANYWHERE\" }", ""));
    let ran = lab.run_checking(&["apply", "--wait"]).expect(0);
    assert!(ran.stdout.contains("every provider is checked"), "{}", ran.stdout);
    bad.set_status(500);
    lab.wait_for("SELECT health_status FROM llm_providers WHERE name = 'beta'", "unhealthy").await;
    let ran = lab.run_checking(&["apply", "--wait", "--output", "json"]).expect(2);
    assert_eq!(ran.json()["checks"]["unhealthy"][0], "beta");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_tell_what_the_database_holds() {
    let (lab, fake, mut daemon) = one().await;
    let metrics = daemon
        .fetch_until("/metrics", "the key is proven", |text| {
            text.contains("providerd_provider_keys{status=\"valid\"} 1")
        })
        .await;
    for line in [
        "providerd_providers{status=\"healthy\"} 1",
        "providerd_provider_health_status{provider=\"alpha\",status=\"healthy\"} 1",
        "providerd_provider_health_status{provider=\"alpha\",status=\"unhealthy\"} 0",
        "providerd_provider_api_key_test_status{provider=\"alpha\",status=\"valid\"} 1",
        "providerd_provider_info{provider=\"alpha\",type=\"openai\",can_serve=\"unknown\"} 1",
        "providerd_health_transitions_total{from=\"unknown\",to=\"healthy\"} 1",
        "providerd_api_key_transitions_total{from=\"pending\",to=\"valid\"} 1",
        "providerd_leases_held 2",
        "providerd_prober_impaired 0",
    ] {
        assert!(metrics.contains(&format!("\n{line}\n")), "{line}\n{metrics}");
    }
    fake.set_status(500);
    daemon
        .fetch_until("/metrics", "unhealthy", |text| {
            text.contains("providerd_provider_health_status{provider=\"alpha\",status=\"unhealthy\"} 1")
                && text.contains("providerd_probe_failures_total{check=\"health\",reason=\"status\"}")
        })
        .await;
    lab.remove("alpha.toml");
    lab.write("other.toml", &crate::support::lab::provider("other", 1));
    daemon.fetch_until("/metrics", "the removed provider is gone", |text| !text.contains("alpha")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn daemons_share_the_checks_and_take_over_a_dead_one_s() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    let (_, reference) = key_file(&lab, KEY);
    for index in 0..16 {
        lab.write(&format!("p{index}.toml"), &fake.manifest(&format!("p{index}"), &reference, ""));
    }
    let (mut one, mut two) = (lab.checking(), lab.checking());
    let count = |text: &str| text.matches("providerd_provider_info{").count();
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE health_status = 'healthy'", "16").await;
    one.fetch_until("/metrics", "a share", |text| (1..16).contains(&count(text))).await;
    let shares = async |one: &mut Daemon, two: &mut Daemon| {
        let (first, second) = (one.fetch("/metrics").await, two.fetch("/metrics").await);
        count(&first) + count(&second)
    };
    let started = std::time::Instant::now();
    while shares(&mut one, &mut two).await != 16 {
        assert!(started.elapsed() < PATIENCE, "shares never add up");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    two.kill();
    one.fetch_until("/metrics", "the whole", |text| count(text) == 16).await;
    fake.set_status(500);
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE health_status = 'unhealthy'", "16").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn verdicts_wait_for_the_database_and_none_is_lost() {
    let cluster = crate::support::pg::Cluster::start_private(crate::support::pg::Options::default());
    let mut lab = Lab::new().await;
    lab.url = cluster.url("postgres");
    let fake = Fake::start().await;
    let (_, reference) = key_file(&lab, KEY);
    lab.write("alpha.toml", &fake.manifest("alpha", &reference, ""));
    let mut daemon = lab.checking();
    lab.wait_for(HEALTH, "healthy").await;
    lab.wait_for(KEY_STATUS, "valid").await;
    cluster.stop_immediate();
    let is = |status: &str| {
        format!("providerd_provider_health_status{{provider=\"alpha\",status=\"{status}\"}} 1")
    };
    fake.set_status(500);
    daemon.fetch_until("/metrics", "it dies", |text| text.contains(&is("unhealthy"))).await;
    cluster.start();
    lab.wait_for(
        "SELECT string_agg((detail::jsonb->>'from') || '-' || (detail::jsonb->>'to'), ' ' ORDER BY id) FROM providerd.events
         WHERE kind = 'health' AND provider = 'alpha'",
        "unknown-healthy healthy-unhealthy",
    )
    .await;
    assert_eq!(lab.value(HEALTH).await, "unhealthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_on_this_side_blames_nobody_and_ends_by_itself() {
    let lab = Lab::new().await;
    let (_, reference) = key_file(&lab, KEY);
    let mut fakes = Vec::new();
    for index in 0..6 {
        let fake = Fake::start().await;
        lab.write(&format!("p{index}.toml"), &fake.manifest(&format!("p{index}"), &reference, ""));
        fakes.push(fake);
    }
    // Nobody listens where the canary sits: as with a cable that was pulled.
    let port = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let canary = port.local_addr().unwrap();
    drop(port);
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
        command.env("PROVIDERD_HEALTH__TIMEOUT", "900ms").env("PROVIDERD_HEALTH__SLOW_AFTER", "800ms");
        command.env("PROVIDERD_HEALTH__CANARY", canary.to_string());
    });
    let healthy = "SELECT count(*) FROM llm_providers WHERE health_status = 'healthy'";
    lab.wait_for(healthy, "6").await;
    for fake in &fakes {
        fake.set_status(0);
    }
    daemon.fetch_until("/metrics", "impaired", |text| text.contains("\nproviderd_prober_impaired 1\n")).await;
    let skipped = |text: &str| {
        let found = text
            .lines()
            .find_map(|line| line.strip_prefix("providerd_probes_skipped_total{reason=\"impaired\"} "));
        found.and_then(|count| count.parse::<u32>().ok()).unwrap_or_default()
    };
    // Three rounds of failures of everybody, and nobody is called dead.
    daemon.fetch_until("/metrics", "three rounds", |text| skipped(text) >= 18).await;
    assert_eq!(lab.value(healthy).await, "6");
    assert_eq!(
        lab.value("SELECT count(*) FROM providerd.events WHERE kind = 'health' AND provider IS NULL").await,
        "1"
    );

    for fake in &fakes {
        fake.set_status(200);
    }
    let _back = tokio::net::TcpListener::bind(canary).await.unwrap();
    daemon
        .fetch_until("/metrics", "sure again", |text| text.contains("\nproviderd_prober_impaired 0\n"))
        .await;
    fakes[0].set_status(500);
    lab.wait_for("SELECT health_status FROM llm_providers WHERE name = 'p0'", "unhealthy").await;
    assert_eq!(lab.value(healthy).await, "5");
}
