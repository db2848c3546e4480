//! When the prober suspects itself: simulated fleets, on a clock of their own.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc, time::Duration};

use catalog::model::HealthStatus as H;
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use provider::{CheckOutcome, Failure};
use providerd::checks::{
    impairment::{Impaired, Impairment},
    state::HealthMachine,
};

const INTERVAL: Duration = Duration::from_secs(30);
/// What the monitor adds to an interval before a result is stale.
const SLACK: Duration = Duration::from_secs(10);
const HOUR: u64 = 3600;

/// How one host of the fleet is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Host {
    Good,
    /// Down from this second on.
    Dead(u64),
    /// Down in one of two checks.
    Flaps,
}

/// An outage on our side; from its end on, hosts come back one after the other for `recovery` seconds.
#[derive(Debug, Clone, Copy)]
struct Own {
    from: u64,
    lasts: u64,
    recovery: u64,
}

#[derive(Debug, Clone)]
struct Fleet {
    hosts: Vec<Host>,
    own: Vec<Own>,
    canary: bool,
    /// Failures take this long in milliseconds: at once, or a timeout.
    failing_takes: u64,
    seed: u64,
}

/// What happened to it.
#[derive(Debug, Default)]
struct Seen {
    freezes: Vec<f64>,
    frozen_for: f64,
    /// Host, second, from, to.
    worse: Vec<(usize, f64, H, H)>,
    last: Vec<H>,
    /// When each host was asked first.
    asked: Vec<f64>,
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound.max(1)
    }
}

fn wall(ms: u64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::milliseconds(ms as i64)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Start(usize),
    End(usize, bool, u64),
    House,
}

impl Fleet {
    fn answers(&self, host: usize, at: u64, random: &mut Random) -> bool {
        let really = match self.hosts[host] {
            Host::Good => true,
            Host::Dead(from) => at < from * 1000,
            Host::Flaps => random.below(2) == 0,
        };
        let ours = self.own.iter().any(|own| {
            let share = own.recovery * 1000 * host as u64 / self.hosts.len() as u64;
            (own.from * 1000..(own.from + own.lasts) * 1000 + share).contains(&at)
        });
        really && !ours
    }

    fn run(&self, seconds: u64) -> Seen {
        let names: Vec<Arc<str>> = (0..self.hosts.len()).map(|n| format!("host{n}").into()).collect();
        let mut random = Random(self.seed);
        let mut impairment = Impairment::new(INTERVAL, self.canary);
        let mut machines = vec![HealthMachine::default(); names.len()];
        let mut good_in_a_row = vec![0; names.len()];
        let mut seen = Seen { asked: vec![f64::MAX; names.len()], ..Seen::default() };
        let mut dues = BinaryHeap::new();
        for (n, name) in names.iter().enumerate() {
            impairment.add(Duration::ZERO, name, name, false);
            dues.push(Reverse((random.below(30_000), Due::Start(n))));
        }
        dues.push(Reverse((0, Due::House)));
        let (mut frozen_since, mut canary_asked) = (None, 0);
        while let Some(Reverse((now, due))) = dues.pop() {
            if now >= seconds * 1000 {
                break;
            }
            let (mono, at) = (Duration::from_millis(now), now as f64 / 1000.0);
            let mut changes = Vec::new();
            match due {
                Due::Start(host) => {
                    let answers = self.answers(host, now, &mut random);
                    let takes =
                        if answers { 20 + random.below(200) } else { self.failing_takes + random.below(50) };
                    dues.push(Reverse((now + takes, Due::End(host, answers, takes))));
                }
                Due::End(host, answers, took) => {
                    let machine = &mut machines[host];
                    let outcome = if answers {
                        CheckOutcome::Ok
                    } else {
                        CheckOutcome::Hard {
                            failure: Failure::Connect,
                            reason: "refused".into(),
                            retry_after: None,
                        }
                    };
                    let before = machine.status();
                    seen.asked[host] = seen.asked[host].min(at);
                    let took = Duration::from_millis(took);
                    let judged = impairment.judge((mono, wall(now)), &names[host], machine, &outcome, took);
                    if let Some(transition) = judged.transition.filter(|transition| transition.is_worse()) {
                        seen.worse.push((host, at, before, transition.to));
                    }
                    // A success is always believed.
                    good_in_a_row[host] = if answers { good_in_a_row[host] + 1 } else { 0 };
                    let hidden = match good_in_a_row[host] {
                        0 => false,
                        1 => machine.status() == H::Unknown,
                        _ => matches!(machine.status(), H::Unknown | H::Unhealthy),
                    };
                    assert!(!hidden, "host {host} answers at {at} and is {}", machine.status());
                    changes.extend(judged.change);
                    let delay = machine.delay(wall(now), INTERVAL).as_millis() as u64;
                    let jitter = delay / 20;
                    let next = now + delay - jitter + random.below(2 * jitter);
                    dues.push(Reverse((next, Due::Start(host))));
                }
                Due::House => {
                    changes.extend(impairment.tick(mono));
                    if impairment.is_frozen() {
                        machines.iter_mut().for_each(|machine| machine.hold(wall(now)));
                        if self.canary && now >= canary_asked + 5000 {
                            canary_asked = now;
                            let ours = self.own.iter().any(|own| {
                                (own.from * 1000..(own.from + own.lasts + own.recovery) * 1000).contains(&now)
                            });
                            changes.extend(impairment.canary(mono, !ours));
                        }
                    } else {
                        for (host, machine) in machines.iter_mut().enumerate() {
                            let before = machine.status();
                            if machine.expire(wall(now), INTERVAL + SLACK).is_some() {
                                seen.worse.push((host, at, before, H::Unknown));
                            }
                        }
                    }
                    dues.push(Reverse((now + 500, Due::House)));
                }
            }
            for change in changes {
                match change {
                    Impaired::Began { failing, hosts } => {
                        assert!(
                            frozen_since.is_none() && hosts >= 5 && failing * 2 > hosts,
                            "{failing} of {hosts}"
                        );
                        assert!(
                            seen.asked.iter().all(|asked| *asked <= at),
                            "frozen at {at} before all were asked"
                        );
                        machines.iter_mut().for_each(HealthMachine::forgive);
                        seen.freezes.push(at);
                        frozen_since = Some(at);
                    }
                    Impaired::Ended { .. } => {
                        seen.frozen_for += at - frozen_since.take().expect("ended twice")
                    }
                }
            }
        }
        seen.frozen_for += frozen_since.map_or(0.0, |since| seconds as f64 - since);
        seen.last = machines.iter().map(HealthMachine::status).collect();
        seen
    }

    /// Hosts that are up, yet were found to do worse.
    fn blamed(&self, seen: &Seen) -> Vec<(usize, f64, H, H)> {
        seen.worse.iter().filter(|(host, ..)| self.hosts[*host] == Host::Good).copied().collect()
    }
}

/// `share` percent of the hosts are down from a second on, or from the start.
fn partly(count: usize, share: usize, from: u64) -> Vec<Host> {
    (0..count).map(|n| if n * 100 < share * count { Host::Dead(from) } else { Host::Good }).collect()
}

prop_compose! {
    fn fleet()(count in 5usize..40, canary in any::<bool>(), failing_takes in prop_oneof![Just(5), Just(4000), Just(10_000)],
               seed in any::<u64>()) -> Fleet {
        Fleet { hosts: vec![Host::Good; count], own: vec![], canary, failing_takes, seed }
    }
}

proptest! {
    // An hour of forty hosts each; PROPTEST_CASES asks for more of them (3000 of each were seen to pass).
    #![proptest_config(ProptestConfig {
        cases: if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 24 },
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_steady_outage_of_many_freezes_once_and_hides_nobody(
        fleet in fleet(), share in 40usize..=80, from in prop_oneof![Just(0), 100u64..400]
    ) {
        let fleet = Fleet { hosts: partly(fleet.hosts.len(), share, from), ..fleet };
        let seen = fleet.run(HOUR);
        prop_assert!(seen.freezes.len() <= 1, "{:?}", seen.freezes);
        prop_assert!(seen.frozen_for <= if fleet.canary { 6.0 } else { 301.0 }, "{}", seen.frozen_for);
        prop_assert_eq!(fleet.blamed(&seen), vec![]);
        for (host, status) in seen.last.iter().enumerate() {
            let expected = if fleet.hosts[host] == Host::Good { H::Healthy } else { H::Unhealthy };
            prop_assert_eq!(*status, expected, "host {}", host);
        }
        // Those that are down are found out: three failures and a freeze later.
        let found = seen.worse.iter().filter(|(.., to)| *to == H::Unhealthy);
        let limit = from as f64 + 60.0 + 301.0 + 120.0;
        prop_assert!(found.clone().all(|(_, at, ..)| *at <= limit), "{:?}", seen.worse);
    }

    #[test]
    fn an_outage_of_our_own_blames_nobody(
        fleet in fleet(), share in 0usize..=80, from in 1000u64..1100, lasts in 1u64..200, recovery in 0u64..80,
        again in any::<bool>()
    ) {
        let mut own = vec![Own { from, lasts, recovery }];
        if again {
            own.push(Own { from: from + 1500, lasts, recovery });
        }
        // Hosts that stay away while most have never gone are an outage of theirs.
        own.iter_mut().filter(|own| own.lasts < 60).for_each(|own| own.recovery = 0);
        let fleet = Fleet { hosts: partly(fleet.hosts.len(), share, 0), own, ..fleet };
        let good = fleet.hosts.iter().filter(|host| **host == Host::Good).count();
        // One that is left alone cannot tell our fault from its own.
        prop_assume!(good >= 2);
        let seen = fleet.run(HOUR);
        prop_assert_eq!(fleet.blamed(&seen), vec![]);
        prop_assert!(seen.freezes.len() <= 3, "{:?}", seen.freezes);
    }

    #[test]
    fn with_a_canary_an_outage_of_our_own_may_last(fleet in fleet(), lasts in 300u64..2000) {
        let fleet = Fleet { canary: true, own: vec![Own { from: 600, lasts, recovery: 0 }], ..fleet };
        let seen = fleet.run(HOUR);
        prop_assert_eq!(fleet.blamed(&seen), vec![]);
        prop_assert_eq!(seen.freezes.len(), 1);
    }

    #[test]
    fn a_start_during_an_outage_of_our_own_blames_nobody(fleet in fleet(), lasts in 30u64..290) {
        let fleet = Fleet { own: vec![Own { from: 0, lasts, recovery: 0 }], ..fleet };
        let seen = fleet.run(HOUR);
        prop_assert_eq!(fleet.blamed(&seen), vec![]);
        prop_assert!(seen.freezes.len() <= 1, "{:?}", seen.freezes);
        prop_assert!(seen.last.iter().all(|status| *status == H::Healthy));
    }

    #[test]
    fn hosts_that_flap_do_not_make_us_flap(fleet in fleet(), share in 20usize..=100) {
        let count = fleet.hosts.len();
        let flaps = |n: usize| if n * 100 < share * count { Host::Flaps } else { Host::Good };
        let fleet = Fleet { hosts: (0..count).map(flaps).collect(), ..fleet };
        let seen = fleet.run(2 * HOUR);
        prop_assert!(seen.freezes.len() <= 3, "{:?}", seen.freezes);
        prop_assert!(seen.frozen_for <= 400.0, "{} {:?}", seen.frozen_for, seen.freezes);
        prop_assert_eq!(fleet.blamed(&seen), vec![]);
    }

    #[test]
    fn hosts_that_die_one_after_the_other_freeze_nothing(fleet in fleet(), apart in 150u64..400) {
        let dies = |n: usize| Host::Dead(200 + n as u64 * apart);
        let fleet = Fleet { hosts: (0..fleet.hosts.len().min(12)).map(dies).collect(), ..fleet };
        let seen = fleet.run(6000);
        prop_assert_eq!(&seen.freezes, &Vec::<f64>::new());
        prop_assert!(seen.last.iter().all(|status| *status == H::Unhealthy));
    }
}
