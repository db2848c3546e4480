//! Thousands of providers of which half hang: the others keep their schedule, nothing bursts, nothing grows.
//!
//! The short version runs with all tests. The whole one takes five minutes and two cores of its own:
//! `cargo test --release --test it -- load:: --ignored --nocapture`. It judges by what the providers themselves saw; the daemon's own
//! histogram is printed beside it.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]
#![allow(clippy::print_stdout, reason = "figures of the whole version")]

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::support::{
    lab::{Daemon, Lab, PATIENCE},
    process,
    targets::{self, KEY, arrivals, fetch, sum, write_manifests},
};

struct Size {
    providers: usize,
    interval: Duration,
    /// How long is looked, after the first checks.
    window: Duration,
    /// What is allowed on top of the interval; a machine that builds and tests at the same time is late itself.
    late: Duration,
    /// After which a check is given up.
    timeout: &'static str,
}

/// Every second target accepts and never answers.
fn hangs(index: usize) -> bool {
    index % 2 == 1
}

#[tokio::test(flavor = "multi_thread")]
async fn healthy_providers_keep_their_schedule_while_others_hang() {
    let interval = Duration::from_secs(4);
    prove(Size {
        providers: 200,
        interval,
        window: Duration::from_secs(16),
        late: Duration::from_secs(3),
        timeout: "2s",
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes; wants the machine for itself"]
async fn five_thousand_providers_of_which_half_hang() {
    let interval = Duration::from_secs(15);
    prove(Size {
        providers: 5000,
        interval,
        window: Duration::from_secs(240),
        late: Duration::from_secs(1),
        timeout: "10s",
    })
    .await;
}

async fn prove(size: Size) {
    // In a thread of its own, so that it is not the test that is late.
    let (said, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (listener, port) = targets::listen().await;
            said.send(port).unwrap();
            targets::serve(listener, hangs).await;
        });
    });
    let port = port.recv().unwrap();
    let lab = Lab::new().await;
    write_manifests(&lab.manifests(), size.providers, port, "api_key = { env = \"LOAD_KEY\" }");
    let start = || {
        lab.daemon_with(|command| {
            command.env("PROVIDERD_HEALTH__ENABLED", "true").env("LOAD_KEY", KEY).env("RUST_LOG", "info");
            command.env("PROVIDERD_HEALTH__INTERVAL", format!("{}s", size.interval.as_secs()));
            command.env("PROVIDERD_HEALTH__TIMEOUT", size.timeout).env("PROVIDERD_HEALTH__SLOW_AFTER", "1s");
            // Half of all hosts hang, which a prober without a canary might take for its own fault.
            command.env("PROVIDERD_HEALTH__CANARY", format!("127.0.0.1:{port}"));
        })
    };
    let mut daemon = start();
    let address: SocketAddr = daemon.address().await.parse().unwrap();
    let pid = daemon.pid().as_raw().cast_unsigned();

    // Until each provider was asked once and hanging ones were found out.
    let half = size.providers as f64 / 2.0;
    until(&mut daemon, address, "half are healthy, half unhealthy", |text| {
        sum(text, "providerd_providers", "\"healthy\"") >= half
            && sum(text, "providerd_providers", "\"unhealthy\"") >= half
    })
    .await;
    let begun = arrivals(port).await;
    let before = fetch(address, "/metrics").await;
    let (memory, descriptors) = (process::resident_mib(pid), process::descriptors(pid));
    let started = Instant::now();
    let mut peak = descriptors;
    while started.elapsed() < size.window {
        tokio::time::sleep(Duration::from_secs(1)).await;
        peak = peak.max(process::descriptors(pid));
    }
    let after = fetch(address, "/metrics").await;
    let all = arrivals(port).await;
    let grown = process::resident_mib(pid) - memory;

    // 1. Healthy ones: the time between two checks as they saw it.
    let first = begun.last().map_or(0, |(at, _)| *at);
    let mut last = HashMap::new();
    let mut gaps: Vec<Duration> = Vec::new();
    for (at, index) in all.iter().filter(|(_, index)| !hangs(*index)) {
        if let Some(previous) = last.insert(*index, *at)
            && *at > first
        {
            gaps.push(Duration::from_millis(u64::from(at - previous)));
        }
    }
    gaps.sort();
    let longest_allowed = size.interval.mul_f64(1.05) + size.late;
    let p99 = gaps[gaps.len() * 99 / 100];
    let lag = sum(&after, "providerd_probe_schedule_lag_seconds_bucket", "le=\"1\"")
        - sum(&before, "providerd_probe_schedule_lag_seconds_bucket", "le=\"1\"");
    let checks = sum(&after, "providerd_probe_schedule_lag_seconds_count", "")
        - sum(&before, "providerd_probe_schedule_lag_seconds_count", "");

    println!(
        "{} gaps of healthy providers: p50 {:?}, p99 {p99:?}, longest {:?}",
        gaps.len(),
        gaps[gaps.len() / 2],
        gaps[gaps.len() - 1]
    );
    println!(
        "begun within 1 s of their time, hanging ones included: {:.2} % of {checks}",
        lag / checks * 100.0
    );
    println!(
        "descriptors: {descriptors} at first, {peak} at most; memory: {memory:.1} MiB, {grown:+.1} MiB in {:?}",
        size.window
    );

    assert!(p99 <= longest_allowed, "p99 is {p99:?}, allowed {longest_allowed:?}");
    assert!(grown < 16.0, "memory grew by {grown:.1} MiB from {memory:.1} MiB");
    // Hanging ones hold a descriptor each while they are asked; there may be no more of them than hang.
    assert!(peak < 200 + size.providers / 2, "{peak} descriptors");
    assert_eq!(sum(&after, "providerd_providers", "\"healthy\""), half);
    assert_eq!(sum(&after, "providerd_provider_keys", "\"failed\""), 0.0);
    assert_eq!(daemon.stop(), 0);

    // 2. A restart: requests per second, from the first one on. (At the very first start every key is new, and new
    // keys are proven at once.)
    let known = all.len();
    let mut daemon = start();
    daemon.wait_ready().await;
    let deadline = Instant::now() + PATIENCE;
    let whole = |all: &[(u32, usize)]| {
        let span = all.last().zip(all.get(known)).map_or(0, |(last, first)| last.0 - first.0);
        Duration::from_millis(u64::from(span)) > size.interval
    };
    let mut all = arrivals(port).await;
    while !whole(&all) {
        assert!(Instant::now() < deadline, "too few requests after a restart: {}", all.len() - known);
        tokio::time::sleep(Duration::from_millis(250)).await;
        all = arrivals(port).await;
    }
    let zero = all[known].0;
    let mut seconds = vec![0_usize; usize::try_from(size.interval.as_secs()).unwrap()];
    for (at, _) in &all[known..] {
        if let Some(count) = seconds.get_mut(usize::try_from((at - zero) / 1000).unwrap()) {
            *count += 1;
        }
    }
    let even = size.providers / seconds.len();
    println!("after a restart: {seconds:?} requests in each second; {even} if all were asked evenly");
    let busiest = seconds.iter().max().copied().unwrap_or_default();
    assert!(busiest <= even * 2 + 20, "a burst: {seconds:?}");
    assert_eq!(daemon.stop(), 0);
}

async fn until(daemon: &mut Daemon, address: SocketAddr, what: &str, fits: impl Fn(&str) -> bool) {
    let started = Instant::now();
    loop {
        let text = fetch(address, "/metrics").await;
        if fits(&text) {
            return;
        }
        let waited = started.elapsed();
        assert!(
            daemon.is_running() && waited < PATIENCE * 4,
            "never: {what}\n{}",
            daemon.log().lines().rev().take(10).collect::<Vec<_>>().join("\n")
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
