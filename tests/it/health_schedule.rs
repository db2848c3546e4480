//! Whose turn it is, simulated.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, Utc};
use proptest::prelude::*;

use provider::origin_of;
use providerd::checks::schedule::{Caps, Dues, Job, NextTurn, TurnSchedule, jittered, place, unit};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn check_at(due: u64) -> Dues {
    Dues { check: Some(ms(due)), ..Dues::default() }
}

/// Runs the schedule for a time: each check takes `took`, and is due again `interval` after its start.
/// Gives the starts of every provider.
fn simulate(
    schedule: &mut TurnSchedule,
    until: u64,
    took: impl Fn(&str) -> u64,
    interval: u64,
) -> BTreeMap<String, Vec<u64>> {
    let mut starts: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut ends: BTreeMap<(u64, Arc<str>), u64> = BTreeMap::new();
    let mut long: BTreeSet<(u64, Arc<str>)> = BTreeSet::new();
    let mut now = 0;
    while now < until {
        match schedule.next(ms(now)) {
            NextTurn::Run(turn) => {
                starts.entry(turn.provider.to_string()).or_default().push(now);
                if took(&turn.provider) > 2000 {
                    long.insert((now + 2000, turn.provider.clone()));
                }
                ends.insert((now + took(&turn.provider), turn.provider), now + interval);
                continue;
            }
            next => {
                let end = ends.keys().chain(&long).map(|(at, _)| *at).min();
                let due = match next {
                    NextTurn::At(at) => Some(u64::try_from(at.as_millis()).unwrap().max(now + 1)),
                    _ => None,
                };
                now = end.into_iter().chain(due).min().unwrap_or(until);
            }
        }
        while let Some((_, provider)) = long.first().filter(|(at, _)| *at <= now).cloned() {
            schedule.linger(&provider);
            long.pop_first();
        }
        while let Some(((at, provider), due)) = ends.first_key_value().map(|(key, due)| (key.clone(), *due)) {
            if at > now {
                break;
            }
            ends.remove(&(at, provider.clone()));
            let suspect = took(&provider) >= 10_000;
            schedule.done(&provider, Job::Check, Some(ms(due)), suspect);
        }
    }
    starts
}

fn filled(caps: Caps, providers: u64, origins: u64, interval: u64) -> TurnSchedule {
    let mut schedule = TurnSchedule::new(caps);
    for n in 0..providers {
        let (name, origin) = (format!("p{n}").into(), format!("o{}", n % origins).into());
        schedule.set(&name, &origin, check_at(n * interval / providers));
    }
    schedule
}

#[test]
fn everyone_has_a_turn_in_time() {
    let mut schedule = filled(Caps::default(), 1000, 1000, 30_000);
    let starts = simulate(&mut schedule, 120_000, |_| 300, 30_000);
    assert_eq!(starts.len(), 1000);
    assert!(
        starts
            .values()
            .all(|starts| starts.len() == 4 && starts.windows(2).all(|two| two[1] - two[0] == 30_000))
    );
}

#[test]
fn where_a_cap_does_not_fit_all_wait_alike() {
    // 100 providers every second over 20 starts a second: each has its turn every 5 s.
    let mut schedule = filled(Caps::default(), 100, 1, 1000);
    assert_eq!(schedule.stretched("o0", ms(1000)), ms(5000));
    let starts = simulate(&mut schedule, 60_000, |_| 10, 1000);
    assert!(starts.values().all(|starts| (11..=13).contains(&starts.len())), "{starts:?}");
    let mut all: Vec<u64> = starts.values().flatten().copied().collect();
    all.sort_unstable();
    assert!(all.windows(2).all(|two| two[1] - two[0] >= 50), "more than 20 a second");
    assert!(schedule.lag(ms(60_000)) > ms(3000));
}

#[test]
fn an_outage_does_not_take_the_turns_of_others() {
    // 2000 providers hang for 10 s each, known to be failing or just begun; 100 work.
    outage(true);
    outage(false);
}

fn outage(known: bool) {
    let mut schedule = TurnSchedule::new(Caps::default());
    for n in 0..2100u64 {
        let (name, origin): (Arc<str>, Arc<str>) =
            (format!("{}{n}", if n < 2000 { "dead" } else { "good" }).into(), format!("o{n}").into());
        schedule.set(&name, &origin, Dues { suspect: known && n < 2000, ..check_at(n * 30_000 / 2100) });
    }
    let took = |name: &str| if name.starts_with("dead") { 10_000 } else { 100 };
    let starts = simulate(&mut schedule, 120_000, took, 30_000);
    for (name, starts) in starts.iter().filter(|(name, _)| name.starts_with("good")) {
        assert!(
            starts.len() >= 3 && starts.windows(2).all(|two| two[1] - two[0] == 30_000),
            "{name} {starts:?}"
        );
    }
}

#[test]
fn one_provider_has_one_turn_at_a_time() {
    let mut schedule = TurnSchedule::new(Caps::default());
    let (name, origin): (Arc<str>, Arc<str>) = ("p".into(), "o".into());
    schedule.set(&name, &origin, Dues { check: Some(ms(0)), key_test: Some(ms(0)), suspect: false });
    let NextTurn::Run(turn) = schedule.next(ms(5)) else { panic!("nothing runs") };
    assert_eq!((turn.job, turn.lag), (Job::Check, ms(5)));
    assert_eq!(schedule.next(ms(1000)), NextTurn::Wait);
    // Set anew while it runs: counts after it.
    schedule.set(&name, &origin, check_at(2000));
    assert_eq!(schedule.next(ms(3000)), NextTurn::Wait);
    schedule.done(&name, Job::Check, Some(ms(9000)), false);
    assert!(matches!(schedule.next(ms(3000)), NextTurn::Run(_)));
    // Moved to another origin, or removed, while it runs: its end is not counted twice.
    schedule.set(&name, &"other".into(), check_at(0));
    assert_eq!(schedule.in_flight(), 0);
    assert!(matches!(schedule.next(ms(3000)), NextTurn::Run(_)));
    schedule.remove(&name);
    schedule.done(&name, Job::Check, Some(ms(0)), false);
    assert_eq!((schedule.in_flight(), schedule.len()), (0, 0));
    assert_eq!(schedule.next(ms(9000)), NextTurn::Wait);
}

#[test]
fn places_are_spread_and_kept() {
    let now: DateTime<Utc> = "2026-11-23T12:00:07.123Z".parse().unwrap();
    let interval = Duration::from_secs(30);
    let mut slots = [0u32; 30];
    for n in 0..9000 {
        let name = format!("provider-{n}");
        let wait = place(&name, interval, now);
        assert!(wait < interval);
        slots[usize::try_from(wait.as_secs()).unwrap()] += 1;
        // A restart two seconds later finds the same place.
        let later = place(&name, interval, now + chrono::TimeDelta::seconds(2));
        assert_eq!((later + ms(2000)).as_millis() % 30_000, wait.as_millis() % 30_000);
    }
    assert!(slots.iter().all(|count| (200..400).contains(count)), "{slots:?}");
    let delays: Vec<_> = (0..1000).map(|turn| jittered(interval, "p", turn)).collect();
    assert!(delays.iter().all(|delay| (ms(28_500)..=ms(31_500)).contains(delay)));
    assert!(delays.iter().max().unwrap() > &ms(31_300) && delays.iter().min().unwrap() < &ms(28_700));
    assert!((unit("p", 1) - unit("q", 1)).abs() > 1e-9);
    assert_eq!(&*origin_of(&"https://API.x.ai/v1".parse().unwrap()), "https://api.x.ai");
}

proptest! {
    #[test]
    fn caps_hold_whatever_happens(steps in proptest::collection::vec((0u8..9, 0u64..12, 0u64..4, 0u64..3000, proptest::bool::ANY), 1..300)) {
        let caps = Caps { origin_in_flight: 2, origin_per_second: 10.0, total: 5, suspects: 2, lingering: 3 };
        let mut schedule = TurnSchedule::new(caps);
        let mut now = 0;
        // What runs: provider → (origin, suspect); and where each provider is.
        let mut running: HashMap<Arc<str>, (Job, Arc<str>, bool)> = HashMap::new();
        let mut homes: HashMap<Arc<str>, (Arc<str>, bool)> = HashMap::new();
        let mut last_start: HashMap<Arc<str>, u64> = HashMap::new();
        for (what, provider, origin, time, suspect) in steps {
            let name: Arc<str> = format!("p{provider}").into();
            let home: Arc<str> = format!("o{origin}").into();
            match what {
                0 | 1 => {
                    let moved = homes.get(&name).is_some_and(|(old, _)| *old != home);
                    if moved { running.remove(&name); }
                    schedule.set(&name, &home, Dues { check: Some(ms(now + time)), key_test: suspect.then_some(ms(time)), suspect });
                    homes.insert(name, (home, suspect));
                }
                2 => { schedule.remove(&name); running.remove(&name); homes.remove(&name); }
                3 | 4 => {
                    if let Some((job, ..)) = running.remove(&name) {
                        schedule.done(&name, job, Some(ms(now + time)), suspect);
                        if let Some(found) = homes.get_mut(&name) { found.1 = suspect; }
                    }
                }
                5 => schedule.linger(&name),
                _ => {
                    now += time / 10;
                    if let NextTurn::Run(turn) = schedule.next(ms(now)) {
                        let (home, suspect) = homes[&turn.provider].clone();
                        prop_assert!(!running.contains_key(&turn.provider), "two turns at once");
                        if let Some(last) = last_start.insert(home.clone(), now) && homes.values().filter(|(at, _)| *at == home).count() > 1 {
                            // An origin that lost all its providers begins anew.
                            prop_assert!(now - last >= 100 || running.values().all(|(_, at, _)| *at != home));
                        }
                        running.insert(turn.provider, (turn.job, home, suspect));
                    }
                }
            }
            prop_assert_eq!(schedule.in_flight(), running.len());
            prop_assert!(running.len() <= 5 + 3);
            prop_assert!(running.values().filter(|(_, _, suspect)| *suspect).count() <= 2);
            for origin in running.values().map(|(_, origin, _)| origin.clone()).collect::<HashSet<_>>() {
                prop_assert!(running.values().filter(|(_, at, _)| *at == origin).count() <= 2);
            }
        }
        // Nothing is lost: everyone has a turn in the end.
        for (name, (job, ..)) in running.drain() { schedule.done(&name, job, None, false); }
        let mut had: HashSet<Arc<str>> = HashSet::new();
        let waiting: HashSet<Arc<str>> = homes.keys().filter(|name| schedule.dues(name).is_some_and(|dues| dues.check.is_some() || dues.key_test.is_some())).cloned().collect();
        for _ in 0..2000 {
            now += 100;
            if let NextTurn::Run(turn) = schedule.next(ms(now)) {
                schedule.done(&turn.provider, turn.job, None, false);
                had.insert(turn.provider);
            }
        }
        prop_assert_eq!(had, waiting);
    }
}
