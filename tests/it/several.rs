//! Several daemons on one database, through a PgBouncer with transaction pooling, killed and frozen at random.
//!
//! `PROVIDERD_CHAOS=40` makes so many rounds of it, with another course of events for each `PROVIDERD_SEED`.
//! A trigger in the database itself is the witness of who wrote when, and as what.
#![allow(clippy::disallowed_methods, reason = "the tests' own tasks and processes")]

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sqlx::{PgConnection, Row as _};

use crate::support::{
    bouncer::Bouncer,
    lab::{Daemon, Lab, PATIENCE, provider, swap, value},
    targets,
};

const DAEMONS: usize = 3;
const PROVIDERS: usize = 12;
/// The lease lives 8 s and is looked for each second.
const TAKEOVER: Duration = Duration::from_secs(10);
/// How much later than it happened the test may see it: one look of its own on a busy machine.
const LOOK: Duration = Duration::from_secs(2);
/// How often each provider is checked.
const INTERVAL: Duration = Duration::from_secs(2);
/// Longer than the lease: whoever wakes up after it has been replaced.
const FREEZE: Duration = Duration::from_millis(9_500);

/// Every applied catalog leaves a row: who wrote it, and who held the lease at that instant.
const WITNESS: &str = "
    CREATE TABLE public.witness (at timestamptz DEFAULT clock_timestamp(), seq bigint, writer uuid, holder uuid,
                          token bigint, in_time boolean);
    CREATE FUNCTION public.witness() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO public.witness (seq, writer, holder, token, in_time)
        SELECT NEW.seq, NEW.holder, l.holder, l.token, l.expires_at > clock_timestamp()
        FROM providerd.lease l WHERE l.name = 'reconcile';
        RETURN NULL;
    END $$;
    CREATE TRIGGER witness AFTER UPDATE ON providerd.applied FOR EACH ROW EXECUTE FUNCTION public.witness();";

/// Numbers that a seed repeats.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap_or_default()
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Term of office: the number of the lease and whose it is.
async fn term(direct: &mut PgConnection) -> String {
    value(direct, "SELECT token || ' ' || holder FROM providerd.lease WHERE name = 'reconcile'").await
}

/// Which of the daemons leads, by their own logs: the last to say so, since one that has just woken up may still
/// believe that it does.
fn leader(daemons: &[Daemon]) -> Option<usize> {
    let since = |daemon: &Daemon| {
        let log = daemon.log();
        let last = log.lines().rev().find(|line| line.contains("leadership changed"))?;
        // A line begins with its time, which sorts as text.
        last.contains("\"leader\":true").then(|| last.to_owned())
    };
    let leaders = daemons.iter().enumerate().filter_map(|(index, daemon)| Some((since(daemon)?, index)));
    leaders.max().map(|(_, index)| index)
}

/// Waits until the database holds exactly what the manifests of this number say.
async fn converged(direct: &mut PgConnection, wanted: u32, daemons: &[Daemon]) {
    let started = Instant::now();
    loop {
        let found = value(direct, "SELECT string_agg(DISTINCT priority::text, ',') FROM llm_providers").await;
        if found == wanted.to_string() {
            return;
        }
        if started.elapsed() > PATIENCE {
            let logs: Vec<String> = daemons.iter().map(Daemon::log).collect();
            panic!(
                "the database holds {found}, the manifests {wanted}; the daemons say:\n{}",
                logs.join("\n---\n")
            );
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Waits until every provider was asked after a moment of its server's clock; how long that took from then on.
async fn covered(port: u16, since: Duration) -> Duration {
    let started = Instant::now();
    loop {
        let since = u32::try_from(since.as_millis()).unwrap();
        let mut first = [None; PROVIDERS];
        for (at, index) in targets::arrivals(port).await {
            if at >= since {
                first[index].get_or_insert(at);
            }
        }
        if let Some(last) =
            first.into_iter().collect::<Option<Vec<u32>>>().and_then(|all| all.into_iter().max())
        {
            return Duration::from_millis(u64::from(last - since));
        }
        assert!(started.elapsed() < PATIENCE, "not asked: {first:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn never_two_writers_and_never_long_without_one() {
    let rounds = number("PROVIDERD_CHAOS", 4);
    let seed = number("PROVIDERD_SEED", 20_261_123).max(1);
    let mut dice = Dice(seed);
    println!("{rounds} rounds, seed {seed}");

    let lab = Lab::new().await;
    let name = lab.url.split('/').nth(3).and_then(|it| it.split('?').next()).unwrap().to_owned();
    let bouncer = Bouncer::start(&crate::support::pg::pg());
    let through = bouncer.url(&name);
    let (listener, port) = targets::listen().await;
    let epoch = Instant::now();
    let serving = tokio::spawn(targets::serve(listener, |_| false));
    let start = || {
        lab.daemon_with(|command| {
            command.env("DATABASE_URL", &through).env("PROVIDERD_MANIFESTS__RESYNC_INTERVAL", "1s");
            command.env("PROVIDERD_HEALTH__ENABLED", "true");
            command.env("PROVIDERD_HEALTH__INTERVAL", format!("{}s", INTERVAL.as_secs()));
        })
    };

    // Two sets of manifests, exchanged in one step: a database that holds a mixture was written by two.
    let versions: Vec<_> = (0..2).map(|index| lab.dir.path().join(format!("v{index}"))).collect();
    for version in &versions {
        fs::create_dir(version).unwrap();
    }
    fs::remove_dir(lab.manifests()).unwrap();
    let current = Arc::new(AtomicU32::new(0));
    let edit = {
        let (current, manifests) = (current.clone(), lab.manifests());
        move || {
            let next = current.load(Ordering::SeqCst) + 1;
            let dir = &versions[next as usize % 2];
            for index in 0..PROVIDERS {
                let text = provider(&format!("p{index}"), i32::try_from(next).unwrap());
                let here = format!("http://{}:{port}/v1", targets::address(index));
                let text = text.replace(&format!("https://p{index}.example.com/v1"), &here);
                fs::write(dir.join(format!("p{index}.toml")), text).unwrap();
            }
            swap(&manifests, dir);
            current.store(next, Ordering::SeqCst);
            next
        }
    };
    edit();
    lab.run(&["apply"]).expect(0);
    lab.execute(WITNESS).await;

    let mut daemons: Vec<Daemon> = (0..DAEMONS).map(|_| start()).collect();
    for daemon in &mut daemons {
        daemon.wait_ready().await;
    }
    let mut direct = lab.connect().await;
    let healthy = "SELECT count(*) FROM llm_providers WHERE health_status = 'healthy'";
    lab.wait_for(healthy, &PROVIDERS.to_string()).await;
    let (mut takeovers, mut gaps) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let before = term(&mut direct).await;
        // The one that leads is the interesting one; now and then it is a bystander, or two at once.
        let leading = leader(&daemons);
        let target = match (leading, dice.below(4)) {
            (Some(leader), 0..3) => leader,
            _ => dice.below(DAEMONS),
        };
        let also = (dice.below(3) == 0).then(|| (target + 1) % DAEMONS);
        let freezes = if round == 1 { true } else { dice.below(2) == 0 };
        // In the middle of a change.
        let wanted = edit();
        tokio::time::sleep(Duration::from_millis(dice.below(60) as u64)).await;
        let struck = Instant::now();
        for victim in [Some(target), also].into_iter().flatten() {
            if freezes {
                daemons[victim].signal(Signal::SIGSTOP);
            } else {
                daemons[victim].kill();
            }
        }
        let hits_leader = leading.is_some_and(|leader| leader == target || Some(leader) == also);
        if hits_leader {
            while term(&mut direct).await == before {
                assert!(struck.elapsed() < TAKEOVER + LOOK, "nobody took over in round {round}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            takeovers.push(struck.elapsed());
        }
        // Whoever leads now brings what is wanted.
        converged(&mut direct, wanted, &daemons).await;
        let applied = struck.elapsed();
        // By what the providers saw, none of them is forgotten.
        let again = covered(port, struck - epoch).await;
        gaps.push(again);
        println!(
            "round {round}: {} {target}{}, leader {leading:?}; takeover {}; applied after {} ms, all checked after {} ms",
            if freezes { "froze" } else { "killed" },
            also.map(|also| format!(" and {also}")).unwrap_or_default(),
            takeovers
                .last()
                .filter(|_| hits_leader)
                .map_or("none".to_owned(), |it| format!("{} ms", it.as_millis())),
            applied.as_millis(),
            again.as_millis()
        );
        if freezes {
            // What they were about to write is older than what the others have written since.
            edit();
            tokio::time::sleep_until((struck + FREEZE).into()).await;
        }
        for victim in [Some(target), also].into_iter().flatten() {
            if freezes {
                daemons[victim].signal(Signal::SIGCONT);
            } else {
                daemons[victim] = start();
            }
        }
    }

    let last = edit();
    converged(&mut direct, last, &daemons).await;
    for daemon in &mut daemons {
        assert!(daemon.is_running(), "a daemon ended by itself:\n{}", daemon.log());
    }
    // The witness: each catalog was written by who held the lease, in its time; one after the other.
    let rows = sqlx::query(
        "SELECT seq, writer = holder AS same, token, in_time, holder::text FROM witness ORDER BY seq, at",
    )
    .fetch_all(&mut direct)
    .await
    .unwrap();
    let (mut seq, mut token, mut holder) = (0i64, 0i64, String::new());
    let mut terms = 0;
    for row in &rows {
        let (next, term, of): (i64, i64, String) = (row.get(0), row.get(2), row.get(4));
        assert!(next > seq, "catalog {next} was written twice");
        assert!(row.get::<bool, _>(1), "catalog {next} was written by somebody without the lease");
        assert!(row.get::<bool, _>(3), "catalog {next} was written after the lease had run out");
        assert!(term >= token, "catalog {next} was written by a holder of the past");
        assert!(term > token || of == holder, "term {term} had two holders");
        terms += u32::from(term > token);
        (seq, token, holder) = (next, term, of);
    }
    // And by the audit trail nobody ever corrected another.
    let drift = lab.value("SELECT count(*) FROM providerd.events WHERE kind = 'drift'").await;
    assert_eq!(drift, "0", "one daemon undid what another had written");
    lab.run_with(&["plan"], |command| {
        command.env("DATABASE_URL", &through);
    })
    .expect(0);
    serving.abort();
    let gap = gaps.iter().max().copied().unwrap_or_default();
    assert!(gap <= TAKEOVER + LOOK + INTERVAL, "{gap:?} until all were checked again");
    assert_eq!(lab.value(healthy).await, PROVIDERS.to_string());
    let slowest = takeovers.iter().max().copied().unwrap_or_default();
    println!(
        "{} catalogs written in {terms} terms; {} takeovers, the slowest {} ms; all checked again within {} ms",
        rows.len(),
        takeovers.len(),
        slowest.as_millis(),
        gap.as_millis()
    );
    assert!(slowest <= TAKEOVER + LOOK, "{takeovers:?}");
}
