//! The monitor over real sockets: verdicts, keys, freezes, and nobody held up by anybody.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chrono::{TimeDelta, Utc};
use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use catalog::model::{HealthPolicy, HealthStatus as H, KeyStatus as K, Origin, Provider, Schedule};
use net::{NetConfig, PhaseLimits, probe::Prober};
use provider::{ProviderType as P, origin_of, parse_base};
use providerd::checks::{
    impairment::Impaired,
    monitor::{CheckEvent, CheckTarget, Label, Memory, MonitorCommand, MonitorConfig, Rhythm, Wall, run},
};

const KEY: &str = "sk-fake-key-for-tests-0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(20);

/// Answers with `status` to the right key, 401 to others; 0 hangs.
async fn provider(status: Arc<AtomicU16>, seen: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (status, seen) = (status.clone(), seen.clone());
            tokio::spawn(async move {
                let mut part = [0; 4096];
                let count = stream.read(&mut part).await.unwrap_or(0);
                seen.fetch_add(1, Ordering::Relaxed);
                let status = match status.load(Ordering::Relaxed) {
                    0 => return std::future::pending().await,
                    200 if !String::from_utf8_lossy(&part[..count]).contains(KEY) => 401,
                    status => status,
                };
                let body =
                    if status == 200 { r#"{"data":[]}"# } else { r#"{"error":{"code":"invalid_api_key"}}"# };
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(head.as_bytes()).await;
            });
        }
    });
    address
}

fn target(name: &str, address: SocketAddr, key: &str) -> Box<CheckTarget> {
    let base = parse_base(P::OpenAi, Some(&format!("http://{address}/v1"))).unwrap();
    Box::new(CheckTarget {
        name: name.into(),
        label: Label::default(),
        kind: P::OpenAi,
        origin: origin_of(&base),
        base,
        key: Some(SecretString::from(key)),
        withheld: None,
        rhythm: Rhythm::Every(Duration::from_millis(200)),
        slow_after: Duration::from_secs(3),
        path: None,
        expect_status: None,
        limits: PhaseLimits { total: Duration::from_millis(500), ..PhaseLimits::default() },
    })
}

struct Running {
    commands: mpsc::Sender<MonitorCommand>,
    events: mpsc::Receiver<CheckEvent>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn monitor(config: MonitorConfig) -> Running {
    let (commands, orders) = mpsc::channel(64);
    let (told, events) = mpsc::channel(64);
    let stop = CancellationToken::new();
    let prober = Arc::new(Prober::new(NetConfig::default()).unwrap());
    let task = tokio::spawn(run(prober, config, orders, told, stop.clone()));
    Running { commands, events, stop, task }
}

impl Running {
    async fn set(&self, target: Box<CheckTarget>) {
        self.commands.send(MonitorCommand::Set { target, memory: None, taken: false }).await.unwrap();
    }

    /// The first event that fits.
    async fn until<T>(&mut self, what: &str, mut fits: impl FnMut(&CheckEvent) -> Option<T>) -> T {
        let found = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.expect("the monitor ended");
                assert!(!format!("{event:?}").contains("0123456789"), "{event:?}");
                if let Some(found) = fits(&event) {
                    return found;
                }
            }
        });
        found.await.unwrap_or_else(|_| panic!("never saw: {what}"))
    }

    async fn health(&mut self, name: &str, to: H) {
        let reaches = |event: &CheckEvent| match event {
            CheckEvent::Checked { target, transition: Some(transition), .. }
            | CheckEvent::Health { target, transition, .. }
                if &*target.name == name && transition.to == to =>
            {
                Some(())
            }
            _ => None,
        };
        self.until(&format!("{name} {to}"), reaches).await;
    }

    async fn key(&mut self, name: &str, to: K) {
        let reaches = |event: &CheckEvent| match event {
            CheckEvent::KeyTested { target, transition: Some(transition), .. }
            | CheckEvent::Key { target, transition, .. }
                if &*target.name == name && transition.to == to =>
            {
                Some(())
            }
            _ => None,
        };
        self.until(&format!("{name} {to}"), reaches).await;
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(Duration::from_secs(2), self.task).await.expect("does not stop").unwrap();
    }
}

#[tokio::test]
async fn health_and_keys_are_followed() {
    let status = Arc::new(AtomicU16::new(200));
    let address = provider(status.clone(), Arc::default()).await;
    let mut monitor = monitor(MonitorConfig::default());
    monitor.set(target("p", address, KEY)).await;
    let (mut healthy, mut valid) = (false, false);
    monitor
        .until("healthy and valid", |event| {
            match event {
                CheckEvent::Checked { transition: Some(found), .. } => healthy = found.to == H::Healthy,
                CheckEvent::KeyTested { transition: Some(found), .. } => valid = found.to == K::Valid,
                _ => {}
            }
            (healthy && valid).then_some(())
        })
        .await;
    status.store(503, Ordering::Relaxed);
    monitor.health("p", H::Unhealthy).await;
    status.store(200, Ordering::Relaxed);
    // Not waiting for the 30 s of an unhealthy provider: two checks on demand.
    let mut last = None;
    for _ in 0..2 {
        monitor.commands.send(MonitorCommand::Now("p".into())).await.unwrap();
        let kept = |event: &CheckEvent| match event {
            CheckEvent::Checked { memory, .. } => Some(memory.clone()),
            _ => None,
        };
        last = Some(monitor.until("a check", kept).await);
    }
    let kept = last.unwrap();
    assert_eq!(kept.health.status(), H::Healthy);
    // Another key: pending at once, tested at once, and the provider stays healthy.
    monitor.set(target("p", address, "sk-wrong-fake-key-fedcba")).await;
    monitor.key("p", K::Pending).await;
    monitor
        .until("a rejection", |event| match event {
            CheckEvent::KeyTested { report, .. } => (report.verdict.word() == "invalid").then_some(()),
            _ => None,
        })
        .await;
    monitor.commands.send(MonitorCommand::Now("p".into())).await.unwrap();
    let (from, outcome) = monitor
        .until("a check", |event| match event {
            CheckEvent::Checked { checked, memory, .. } => {
                Some((memory.health.status(), checked.outcome.word()))
            }
            _ => None,
        })
        .await;
    assert_eq!((from, outcome), (H::Healthy, "auth"));
    // What is remembered comes back.
    let stored = serde_json::to_string(&*kept).unwrap();
    assert!(!stored.contains("0123456789"), "{stored}");
    assert_eq!(serde_json::from_str::<Memory>(&stored).unwrap(), *kept);
    monitor.commands.send(MonitorCommand::Remove("p".into())).await.unwrap();
    monitor.end().await;
}

#[tokio::test]
async fn one_that_hangs_holds_up_nobody() {
    let seen = Arc::new(AtomicUsize::new(0));
    let hanging = provider(Arc::new(AtomicU16::new(0)), Arc::default()).await;
    let good = provider(Arc::new(AtomicU16::new(200)), seen.clone()).await;
    let mut monitor = monitor(MonitorConfig::default());
    for n in 0..20 {
        monitor.set(target(&format!("dead{n}"), hanging, KEY)).await;
    }
    monitor.set(target("good", good, KEY)).await;
    let mut checks = 0;
    let began = std::time::Instant::now();
    monitor
        .until("ten checks", |event| match event {
            CheckEvent::Checked { target, .. } if &*target.name == "good" => {
                checks += 1;
                (checks == 10).then_some(())
            }
            _ => None,
        })
        .await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    monitor.end().await;
}

#[tokio::test]
async fn an_outage_of_our_own_is_not_blamed_on_providers() {
    let status = Arc::new(AtomicU16::new(200));
    let canary = Arc::new(AtomicU16::new(0));
    let canary_at = provider(canary, Arc::default()).await;
    let mut addresses = Vec::new();
    for _ in 0..6 {
        addresses.push(provider(status.clone(), Arc::default()).await);
    }
    // The canary's port answers nothing until somebody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let config = |canary: SocketAddr| MonitorConfig {
        interval: Duration::from_millis(600),
        canary: Some(format!("http://{canary}").parse().unwrap()),
        ..MonitorConfig::default()
    };
    // Our side is broken: nobody is declared dead.
    let mut frozen = monitor(config(gone));
    for (n, address) in addresses.iter().enumerate() {
        frozen.set(target(&format!("p{n}"), *address, KEY)).await;
    }
    for n in 0..6 {
        let (mut seen, name) = (false, format!("p{n}"));
        frozen.commands.send(MonitorCommand::Now(name.clone().into())).await.unwrap();
        frozen
            .until("a good check", |event| {
                seen |= matches!(event, CheckEvent::Checked { target, memory, .. } if *target.name == *name && memory.health.status() == H::Healthy);
                seen.then_some(())
            })
            .await;
    }
    status.store(503, Ordering::Relaxed);
    frozen
        .until("a freeze", |event| {
            matches!(event, CheckEvent::Impaired(Impaired::Began { .. })).then_some(())
        })
        .await;
    let mut checks = 0;
    frozen
        .until("checks while frozen", |event| match event {
            CheckEvent::Checked { frozen, transition, checked, .. } => {
                assert!(transition.is_none() && *frozen == (checked.outcome.word() == "hard"));
                checks += 1;
                (checks == 40).then_some(())
            }
            CheckEvent::Health { .. } => panic!("{event:?}"),
            _ => None,
        })
        .await;
    // Our side works again, and so do they.
    status.store(200, Ordering::Relaxed);
    frozen
        .until("the end", |event| matches!(event, CheckEvent::Impaired(Impaired::Ended { .. })).then_some(()))
        .await;
    frozen.end().await;
    // The canary answers: they are really down.
    let mut real = monitor(config(canary_at));
    status.store(503, Ordering::Relaxed);
    for (n, address) in addresses.iter().enumerate() {
        real.set(target(&format!("p{n}"), *address, KEY)).await;
    }
    real.until("a freeze", |event| {
        matches!(event, CheckEvent::Impaired(Impaired::Began { .. })).then_some(())
    })
    .await;
    real.until("the canary", |event| {
        matches!(event, CheckEvent::Impaired(Impaired::Ended { .. })).then_some(())
    })
    .await;
    real.health("p3", H::Unhealthy).await;
    real.end().await;
}

#[tokio::test]
async fn a_jump_of_the_wall_clock_hides_nobody_and_tests_nothing_twice() {
    for days in [3, -3] {
        let jumped = Arc::new(std::sync::atomic::AtomicI64::new(0));
        let read = jumped.clone();
        let seen = Arc::new(AtomicUsize::new(0));
        let address = provider(Arc::new(AtomicU16::new(200)), seen.clone()).await;
        let mut monitor = monitor(MonitorConfig {
            wall: Wall::new(move || Utc::now() + TimeDelta::days(read.load(Ordering::Relaxed))),
            ..MonitorConfig::default()
        });
        monitor.set(target("p", address, KEY)).await;
        let (mut healthy, mut valid) = (false, false);
        monitor
            .until("healthy and valid", |event| {
                match event {
                    CheckEvent::Checked { transition: Some(found), .. } => healthy = found.to == H::Healthy,
                    CheckEvent::KeyTested { transition: Some(found), .. } => valid = found.to == K::Valid,
                    _ => {}
                }
                (healthy && valid).then_some(())
            })
            .await;
        jumped.store(days, Ordering::Relaxed);
        // Long enough for every look at ages to come round: each second, and after three intervals.
        let (began, mut checks, mut last) = (std::time::Instant::now(), 0, None);
        monitor
            .until("three seconds of checks", |event| {
                match event {
                    CheckEvent::Checked { transition, memory, .. } => {
                        assert_eq!(*transition, None);
                        checks += 1;
                        last = memory.health.last_result();
                    }
                    other => panic!("{days}: {other:?}"),
                }
                (began.elapsed() > Duration::from_secs(3)).then_some(())
            })
            .await;
        // Every 200 ms, neither in a burst nor with a hole.
        assert!((8..=17).contains(&checks), "{days}: {checks}");
        // What is stored is what the wall clock says.
        let off = last.unwrap() - (Utc::now() + TimeDelta::days(days));
        assert!(off.abs() < TimeDelta::seconds(5), "{days}: {off}");
        monitor.end().await;
    }
}

#[test]
fn targets_come_from_manifests() {
    let mut provider = Provider {
        name: "p".into(),
        origin: Origin { file: "a.toml".into(), line: 1 },
        kind: P::Groq,
        enabled: None,
        priority: None,
        base_url: None,
        model_prefixes: None,
        description: None,
        api_key: None,
        api_key_source: None,
        config: Default::default(),
        health: HealthPolicy::default(),
        discover: None,
        gateway: None,
        models: vec![],
    };
    let outer = HealthPolicy { timeout: Some(Duration::from_secs(5)), ..HealthPolicy::default() };
    let target = CheckTarget::new(&provider, &outer, None).unwrap();
    assert_eq!(target.base.as_str(), "https://api.groq.com/openai/v1");
    assert_eq!(target.limits.total, Duration::from_secs(5));
    let noon = "2026-11-23T12:00:00Z".parse().unwrap();
    assert_eq!(target.rhythm.regular(noon), Duration::from_secs(30));
    provider.health.schedule = Some(Schedule::Cron("0 */5 * * * *".into()));
    let target = CheckTarget::new(&provider, &outer, None).unwrap();
    assert_eq!(target.rhythm.regular(noon), Duration::from_secs(300));
    provider.health.schedule = Some(Schedule::Cron("nonsense".into()));
    assert!(CheckTarget::new(&provider, &outer, None).is_err());
    provider.health.schedule = None;
    provider.kind = P::Custom;
    assert!(CheckTarget::new(&provider, &outer, None).unwrap_err().to_string().contains("base_url"));
}
