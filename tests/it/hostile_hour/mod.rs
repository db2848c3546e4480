//! A hostile neighbour for an hour: another program writes random values into every column of the shared tables, holds locks,
//! redirects rows, copies keys and drops connections. The real daemon goes on, and keys stay where they belong.
//!
//! A short version runs with all tests. The whole one: `PROVIDERD_HOSTILE_MINUTES=60 cargo test --test it --
//! hostile_hour:: --ignored --nocapture`; `PROVIDERD_HOSTILE_SEED` repeats a run's choices, which depend on nothing else.
//! `PROVIDERD_HOSTILE_DRIFT=report` leaves what the neighbour wrote.
#![allow(clippy::disallowed_methods, reason = "the neighbour and the origins are tasks of their own")]
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

mod chance;
mod neighbour;
mod origin;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use self::{
    chance::Chance,
    neighbour::{Neighbour, TableLocks},
    origin::{Canaries, Origin},
};
use crate::support::{
    http::{Api, TOKEN, sha256},
    lab::{Daemon, Lab, PATIENCE},
    process,
};

/// Clearly no real key.
const CALLER: &str = "pd_fake-caller-key-for-tests-0003";

/// Providers that the neighbour writes to; each has an origin and a key of its own.
const VICTIMS: usize = 5;
/// Providers of others, whose changes are measured. The neighbour may lock their tables, but does not write their rows.
const STEADY: usize = 2;

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_neighbour_stops_no_change_and_draws_no_key() {
    prove(Duration::from_secs(25)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an hour, or PROVIDERD_HOSTILE_MINUTES"]
async fn for_an_hour() {
    let minutes = std::env::var("PROVIDERD_HOSTILE_MINUTES").map_or(60.0, |text| text.parse().unwrap());
    prove(Duration::from_secs_f64(minutes * 60.0)).await;
}

fn steady(index: usize, origin: &Origin, number: i32) -> String {
    let name = format!("steady-{index}");
    format!(
        "[providers.{name}]\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = {}\npriority = {number}\n\n\
         [[providers.{name}.models]]\nname = \"{name}-model\"\ncontext_length = {}\n\n\
         [[routes]]\nmodels = \"{name}/*\"\npower_level = \"balanced\"\nuser_tier = \"all\"\nweight = {}\n",
        origin.base_url(),
        origin.reference,
        4096 + number,
        1 + number,
    )
}

fn victim(index: usize, origin: &Origin) -> String {
    let name = format!("victim-{index}");
    format!(
        "[providers.{name}]\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = {}\npriority = {index}\n\
         description = \"One of several\"\nmodel_prefixes = [\"{name}/\"]\nconfig = {{ region = \"eu\" }}\n\n\
         [providers.{name}.discover]\ncron = \"*/20 * * * * *\"\n\n\
         [[providers.{name}.models]]\nname = \"{name}-model\"\ncontext_length = 4096\n\
         cost_per_1m_input_tokens = 0.1\nmetadata = {{ family = \"f\" }}\n\n\
         [[routes]]\nmodels = \"{name}/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n",
        origin.base_url(),
        origin.reference,
    )
}

/// What the reader saw.
#[derive(Default)]
struct Seen {
    /// From the rename of the manifest to the visible rows, in ms; whether a whole table was locked meanwhile.
    waits: Vec<(f64, bool)>,
}

impl Seen {
    fn print(&self) {
        let line = |what: &str, mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            let at = |share: f64| all.get((all.len() as f64 * share) as usize).copied().unwrap_or_default();
            println!(
                "event → rows, {what}: {} changes, p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms",
                all.len(),
                at(0.5),
                at(0.99),
                all.last().copied().unwrap_or_default()
            );
        };
        let of = |locked: bool| {
            self.waits.iter().filter(|wait| wait.1 == locked).map(|wait| wait.0).collect::<Vec<_>>()
        };
        line("no table locked whole", of(false));
        line("while the neighbour held a table whole", of(true));
    }
}

#[expect(clippy::too_many_lines, reason = "one story: begin, an hour, and what must hold at its end")]
async fn prove(span: Duration) {
    let seed = std::env::var("PROVIDERD_HOSTILE_SEED").ok().and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| u64::from(std::process::id()));
    println!("PROVIDERD_HOSTILE_SEED={seed}");
    let lab = Arc::new(Lab::new().await);
    let canaries = Canaries::default();
    let mut victims = Vec::new();
    for index in 0..VICTIMS {
        victims.push(Origin::start(&canaries, &format!("victim-{index}"), lab.dir.path()).await);
    }
    let mut steadies = Vec::new();
    for index in 0..STEADY {
        steadies.push(Origin::start(&canaries, &format!("steady-{index}"), lab.dir.path()).await);
    }
    let thief = Origin::start(&canaries, "thief", lab.dir.path()).await;

    for (index, origin) in victims.iter().enumerate() {
        lab.write(&format!("victim-{index}.toml"), &victim(index, origin));
    }
    for (index, origin) in steadies.iter().enumerate() {
        lab.write(&format!("steady-{index}.toml"), &steady(index, origin, 1));
    }
    lab.write(
        "consumers.toml",
        &format!("[consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\n", sha256(CALLER)),
    );
    let drift = std::env::var("PROVIDERD_HOSTILE_DRIFT").unwrap_or_else(|_| "correct".to_owned());
    let (mut daemon, api) = Api::start_with(&lab, |command| {
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
        command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0").env("PROVIDERD_GATEWAY__UNMANAGED", "true");
        command.env("PROVIDERD_RECONCILE__DRIFT", &drift).env("RUST_LOG", "warn,providerd=info");
    })
    .await;
    daemon.wait_for_log("the gateway listens").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let gateway =
        Api { address: line["address"].as_str().unwrap().to_owned(), token: Some(CALLER.to_owned()) };
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE api_key_test_status = 'valid'", "7").await;

    // Begin.
    let pid = daemon.pid();
    let memory_before = process::resident_mib(pid.as_raw().cast_unsigned());
    let over = Arc::new(AtomicBool::new(false));
    let locks = TableLocks::default();
    let counts = Arc::new(neighbour::Counts::default());
    let neighbour = Neighbour {
        lab: lab.clone(),
        role: neighbour::role(&lab).await,
        over: over.clone(),
        locks: locks.clone(),
        counts: counts.clone(),
        thief: thief.base_url(),
    };
    let mut tasks = neighbour.begin(seed);
    let answered = Arc::new(AtomicUsize::new(0));
    tasks.push(tokio::spawn(callers(gateway.clone(), over.clone(), answered.clone(), seed)));
    tasks.push(tokio::spawn(key_tests(api.clone(), over.clone())));
    let began = Instant::now();
    let mut seen = Seen::default();
    let mut peak = memory_before;
    let mut number = 1;
    let mut connection = lab.connect().await;
    while began.elapsed() < span {
        number += 1;
        let index = usize::try_from(number).unwrap() % STEADY;
        let sql = format!(
            "SELECT count(*) FROM llm_providers p JOIN llm_models m ON m.provider_id = p.id \
             JOIN llm_routing_rules r ON r.model_id = m.id WHERE p.name = 'steady-{index}' AND p.priority = {number} \
             AND m.context_length = {} AND r.weight = {}",
            4096 + number,
            1 + number
        );
        let before = locks.epoch();
        let started = Instant::now();
        lab.write(&format!("steady-{index}.toml"), &steady(index, &steadies[index], number));
        while crate::support::lab::value(&mut connection, &sql).await != "1" {
            assert!(daemon.is_running(), "the daemon ended:\n{}", tail(&daemon));
            assert!(
                started.elapsed() < PATIENCE,
                "change {number} was not applied; {counts:?}\n{}",
                tail(&daemon)
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let wait = started.elapsed().as_secs_f64() * 1000.0;
        seen.waits.push((wait, locks.since(before)));
        if number % 50 == 0 {
            peak = peak.max(process::resident_mib(pid.as_raw().cast_unsigned()));
            canaries.held(&[]);
        }
        if number % 1000 == 0 {
            println!("{:.0} s: {counts:?}, {peak:.0} MiB at most", began.elapsed().as_secs_f64());
            seen.print();
        }
        // A commit every 100 ms, as far as they are applied.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    over.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.expect("the neighbour and the callers come to an end");
    }

    // What the neighbour did, it did; what the daemon promised, it kept.
    seen.print();
    println!("the neighbour: {counts:?}");
    println!(
        "callers: {} answers; memory: {memory_before:.0} MiB before, {peak:.0} MiB at most, {:.0} MiB after; log: {} KiB",
        answered.load(Ordering::SeqCst),
        process::resident_mib(pid.as_raw().cast_unsigned()),
        daemon.log().len() / 1024
    );
    assert!(daemon.is_running() && daemon.pid() == pid);
    counts.worked();
    assert!(answered.load(Ordering::SeqCst) > 0, "no caller was served");
    let log = daemon.log();
    assert!(!log.contains("panicked"), "{}", tail(&daemon));
    canaries.held(&[&log]);
    for origin in victims.iter().chain(&steadies) {
        assert!(origin.asked() > 0, "{} was never asked", origin.name);
    }

    // The neighbour is gone: what can be read again is as declared again.
    let mut failed = lab.connect().await;
    sqlx::raw_sql(
        "UPDATE llm_providers SET config = '{}' WHERE name NOT LIKE 'steady%';
         UPDATE llm_models SET metadata = '{}' WHERE name NOT LIKE 'steady%'",
    )
    .execute(&mut failed)
    .await
    .unwrap();
    if drift == "correct" {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let plan = lab.run(&["plan", "--output", "json"]);
            let synced = "SELECT count(*) FROM llm_providers p JOIN llm_models m ON m.provider_id = p.id \
                 WHERE p.name LIKE 'victim-%' AND p.type = 'openai' AND m.name = p.name || '-model' AND m.context_length = 4096";
            if plan.code == 0 && lab.value(synced).await == VICTIMS.to_string() {
                break;
            }
            assert!(Instant::now() < deadline, "{}\n{}\n{}", plan.stdout, plan.stderr, tail(&daemon));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    canaries.held(&[]);
    assert_eq!(daemon.stop(), 0);
}

fn tail(daemon: &Daemon) -> String {
    let log = daemon.log();
    let lines: Vec<&str> = log.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// Callers of the gateway: pinned and by level, with whatever answer.
async fn callers(gateway: Api, over: Arc<AtomicBool>, answered: Arc<AtomicUsize>, seed: u64) {
    let mut chance = Chance::new(seed ^ 0xca11);
    while !over.load(Ordering::SeqCst) {
        let index = chance.below(VICTIMS as u64);
        let model = match chance.below(4) {
            0 => "eco".to_owned(),
            1 => "balanced".to_owned(),
            2 => format!("own-{}/m", chance.below(20)),
            _ => format!("victim-{index}/victim-{index}-model"),
        };
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }] });
        let answer = gateway.post("/v1/chat/completions", &body).await;
        answered.fetch_add(usize::from(answer.status == 200), Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The dashboard's button, by name and by type.
async fn key_tests(api: Api, over: Arc<AtomicBool>) {
    assert_eq!(api.token.as_deref(), Some(TOKEN));
    let mut number = 0;
    while !over.load(Ordering::SeqCst) {
        let asked = match number % 4 {
            0 => "openai".to_owned(),
            1 => format!("own-{}", number % 20),
            _ => format!("victim-{}", number % VICTIMS),
        };
        api.post("/api/v1/llm/providers/keys/test", &json!({ "provider_type": asked })).await;
        number += 1;
        // Ten a minute are allowed.
        for _ in 0..60 {
            if over.load(Ordering::SeqCst) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A key of a canary stands in a file, as an operator would have it.
fn key_file(dir: &std::path::Path, name: &str, key: &str) -> String {
    let path = dir.join(format!("{name}.key"));
    fs::write(&path, key).unwrap();
    format!("{{ file = \"{}\" }}", path.display())
}
