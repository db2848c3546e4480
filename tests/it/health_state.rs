//! Health and key status over time; when the prober suspects itself stands in `health_freeze.rs`.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, TimeZone, Utc};
use proptest::prelude::*;

use catalog::model::{HealthStatus as H, KeyStatus as K};
use net::egress::EgressPolicy;
use provider::{CheckOutcome, Evidence, Failure, KeyVerdict};
use providerd::checks::state::{HealthMachine, KeyMachine, Trust};

const INTERVAL: Duration = Duration::from_secs(30);

fn start() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2026, 11, 23, 12, 0, 0).unwrap()
}

fn at(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

/// o ok, w slow, s soft, h hard, a auth, l local.
fn outcome(letter: char) -> CheckOutcome {
    match letter {
        'o' => CheckOutcome::Ok,
        'w' => CheckOutcome::Slow,
        's' => CheckOutcome::Soft { reason: "HTTP 429".into(), retry_after: None },
        'h' => {
            CheckOutcome::Hard { failure: Failure::Timeout, reason: "no answer".into(), retry_after: None }
        }
        'a' => CheckOutcome::Auth { reason: "HTTP 401".into() },
        _ => CheckOutcome::Local { reason: "no free descriptor".into() },
    }
}

fn after(letters: &str) -> H {
    let mut machine = HealthMachine::default();
    for (n, letter) in letters.chars().enumerate() {
        machine.observe(at(30 * n as i64), &outcome(letter));
    }
    machine.status()
}

#[test]
fn health_moves_as_promised() {
    let rows: &[(&str, H)] = &[
        ("", H::Unknown),
        ("o", H::Healthy),
        ("a", H::Healthy),
        ("l", H::Unknown),
        ("w", H::Unknown),
        ("www", H::Degraded),
        ("hh", H::Unknown),
        ("hhh", H::Unhealthy),
        ("hhlh", H::Unhealthy),
        ("hhohh", H::Healthy),
        ("ohh", H::Healthy),
        ("ohhh", H::Unhealthy),
        ("ohhwh", H::Degraded),
        ("ohhwhhh", H::Unhealthy),
        ("oww", H::Healthy),
        ("owww", H::Degraded),
        ("osss", H::Degraded),
        ("owowow", H::Degraded),
        ("owooowooow", H::Degraded),
        ("owooooowooooow", H::Healthy),
        // Six flips within twenty, never three bad within ten.
        ("oooowooooowooooowo", H::Degraded),
        ("owwwoooo", H::Degraded),
        ("owwwooooo", H::Healthy),
        ("owwwooooow", H::Healthy),
        ("hhho", H::Unhealthy),
        ("hhhoo", H::Healthy),
        ("hhhoa", H::Healthy),
        ("hhhoh", H::Unhealthy),
        ("hhhoow", H::Healthy),
        ("hhhww", H::Unhealthy),
        ("hhhwww", H::Degraded),
        ("owwwhhh", H::Unhealthy),
    ];
    for (letters, expected) in rows {
        assert_eq!(after(letters), *expected, "{letters}");
    }
}

#[test]
fn checks_come_when_promised() {
    let mut machine = HealthMachine::default();
    assert_eq!(machine.next_check(at(0), INTERVAL), at(0));
    machine.observe(at(0), &outcome('o'));
    assert_eq!(machine.next_check(at(0), INTERVAL), at(30));
    machine.observe(at(30), &outcome('h'));
    assert!(machine.is_pending());
    assert_eq!(machine.next_check(at(30), INTERVAL), at(35));
    assert_eq!(machine.next_check(at(30), Duration::from_secs(2)), at(32));
    machine.observe(at(35), &outcome('h'));
    let transition = machine.observe(at(40), &outcome('h')).unwrap();
    assert_eq!((transition.from, transition.to), (H::Healthy, H::Unhealthy));
    assert!(transition.reason.contains("no answer"));
    // 30 s for five minutes, then half as long again each time, up to 120 s.
    let (mut time, mut delays) = (40, Vec::new());
    for _ in 0..16 {
        let next = machine.next_check(at(time), INTERVAL);
        delays.push((next - at(time)).num_seconds());
        time = (next - start()).num_seconds();
        machine.observe(next, &outcome('h'));
    }
    assert_eq!(delays, [30, 30, 30, 30, 30, 30, 30, 30, 30, 30, 45, 67, 101, 120, 120, 120]);
    machine.observe(at(time), &outcome('o'));
    machine.observe(at(time), &outcome('o'));
    assert_eq!(machine.delay(at(time), INTERVAL), INTERVAL);
    // Asked to wait, and with a limit to what may be asked.
    let wait = |seconds| CheckOutcome::Soft {
        reason: String::new(),
        retry_after: Some(Duration::from_secs(seconds)),
    };
    machine.observe(at(time), &wait(300));
    assert_eq!(machine.next_check(at(time), INTERVAL), at(time + 300));
    machine.observe(at(time), &wait(1_000_000));
    assert_eq!(machine.next_check(at(time), INTERVAL), at(time + 600));
    machine.observe(at(time), &wait(1));
    assert_eq!(machine.next_check(at(time), INTERVAL), at(time + 30));
}

#[test]
fn old_results_are_not_believed() {
    let mut machine = HealthMachine::default();
    machine.observe(at(0), &outcome('o'));
    assert_eq!(machine.expire(at(90), INTERVAL), None);
    let stored = serde_json::to_string(&machine).unwrap();
    let mut machine: HealthMachine = serde_json::from_str(&stored).unwrap();
    assert_eq!(machine.status(), H::Healthy);
    machine.hold(at(60));
    assert_eq!(machine.expire(at(150), INTERVAL), None);
    assert_eq!(machine.expire(at(151), INTERVAL).unwrap().to, H::Unknown);
    machine.observe(at(160), &outcome('o'));
    assert_eq!(machine.status(), H::Healthy);
    // Backoff of our own makes nothing stale.
    for second in 161..164 {
        machine.observe(at(second), &outcome('h'));
    }
    assert_eq!(machine.status(), H::Unhealthy);
    assert_eq!(machine.expire(at(163 + 60), Duration::from_secs(1)), None);
    assert!(serde_json::from_str::<HealthMachine>("{}").is_ok());
    // A wait that the provider asks for does: it may be down by the time that it names.
    let mut machine = HealthMachine::default();
    machine.observe(at(0), &outcome('o'));
    let wait =
        CheckOutcome::Soft { reason: "slow down".into(), retry_after: Some(Duration::from_secs(86_400)) };
    machine.observe(at(30), &wait);
    assert_eq!(machine.asked_to_wait(at(31)), Some(at(630)));
    assert_eq!(machine.expire(at(120), INTERVAL), None);
    let gone = machine.expire(at(121), INTERVAL).unwrap();
    assert!(gone.to == H::Unknown && gone.reason.contains("asked to wait"), "{gone:?}");
    // It is still left alone, and asked once that is over.
    assert_eq!(machine.next_check(at(121), INTERVAL), at(630));
    assert_eq!(machine.asked_to_wait(at(631)), None);
}

#[test]
fn nothing_notices_a_jump_of_the_clock() {
    for jump in [TimeDelta::days(3), TimeDelta::days(-3)] {
        let mut machine = HealthMachine::default();
        machine.observe(at(0), &outcome('o'));
        machine.observe(at(30), &outcome('w'));
        let mut moved = machine.clone();
        moved.shift(jump);
        let (now, then) = (at(40), at(40) + jump);
        assert_eq!(moved.next_check(then, INTERVAL), machine.next_check(now, INTERVAL) + jump);
        assert_eq!(moved.expire(at(115) + jump, INTERVAL), None);
        assert!(moved.expire(at(121) + jump, INTERVAL).is_some());
    }
}

#[test]
fn what_is_doubted_leaves_no_trace() {
    let mut machine = HealthMachine::default();
    machine.observe(at(0), &outcome('o'));
    let sound = machine.clone();
    for second in 1..10 {
        assert_eq!(machine.take(at(second), &outcome('h'), Trust::Frozen), None);
    }
    assert_eq!((machine.status(), machine.is_pending()), (H::Healthy, false));
    // Two failures may count and yet wait; when we come to doubt ourselves, they never were.
    for second in 10..13 {
        assert_eq!(machine.take(at(second), &outcome('h'), Trust::NotWorse), None);
    }
    assert!(machine.is_pending());
    machine.forgive();
    assert!(!machine.is_pending());
    let what = |machine: &HealthMachine| {
        let fields = serde_json::to_value(machine).unwrap();
        ["status", "since", "history", "remembered"].map(|name| fields[name].clone())
    };
    assert_eq!(what(&machine), what(&sound));
    // An answer is believed in any case.
    let mut machine = HealthMachine::default();
    assert_eq!(machine.take(at(0), &outcome('o'), Trust::Frozen).unwrap().to, H::Healthy);
    for second in 1..4 {
        machine.observe(at(second), &outcome('h'));
    }
    machine.take(at(5), &outcome('o'), Trust::Frozen);
    assert_eq!(machine.take(at(6), &outcome('o'), Trust::Frozen).unwrap().to, H::Healthy);
}

fn verdict(letter: char) -> KeyVerdict {
    let reason = String::from("said so");
    match letter {
        'v' => KeyVerdict::Valid,
        'q' => KeyVerdict::Quota { reason, proven: true },
        'i' => KeyVerdict::Invalid { reason },
        'r' => KeyVerdict::Rate { reason, proven: false },
        'o' => KeyVerdict::Overload { reason },
        'p' => KeyVerdict::Restricted { reason, proven: false },
        'u' => KeyVerdict::Untestable { reason },
        _ => KeyVerdict::Inconclusive { reason },
    }
}

#[test]
fn keys_move_as_promised() {
    let rows: &[(&[(i64, char)], K)] = &[
        (&[], K::Pending),
        (&[(0, 'v')], K::Valid),
        (&[(0, 'q')], K::Valid),
        (&[(0, 'i')], K::Pending),
        (&[(0, 'i'), (29, 'i')], K::Pending),
        (&[(0, 'i'), (30, 'i')], K::Failed),
        (&[(0, 'i'), (10, 'i'), (30, 'i')], K::Failed),
        (&[(0, 'i'), (10, 'v'), (35, 'i')], K::Valid),
        (&[(0, 'i'), (10, 'x'), (35, 'i')], K::Failed),
        (&[(0, 'x')], K::Error),
        (&[(0, 'u')], K::Error),
        (&[(0, 'r')], K::Error),
        (&[(0, 'o')], K::Error),
        (&[(0, 'p')], K::Error),
        (&[(0, 'i'), (30, 'i'), (60, 'x')], K::Failed),
        (&[(0, 'i'), (30, 'i'), (60, 'v')], K::Valid),
        (&[(0, 'v'), (3600, 'x')], K::Valid),
        (&[(0, 'v'), (86_399, 'x')], K::Valid),
        (&[(0, 'v'), (86_400, 'x')], K::Error),
        (&[(0, 'v'), (3600, 'i')], K::Valid),
        (&[(0, 'v'), (3600, 'i'), (3630, 'i')], K::Failed),
        (&[(0, 'x'), (60, 'v')], K::Valid),
    ];
    for (tests, expected) in rows {
        let mut machine = KeyMachine::default();
        for (second, letter) in *tests {
            machine.observe(at(*second), &verdict(*letter), None);
        }
        assert_eq!(machine.status(), *expected, "{tests:?}");
    }
}

#[test]
fn keys_are_tested_again_when_promised() {
    let delays = |letters: &str, gap: i64| {
        let mut machine = KeyMachine::default();
        letters
            .chars()
            .enumerate()
            .map(|(n, letter)| {
                machine.observe(at(gap * n as i64), &verdict(letter), None);
                machine.delay().as_secs()
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(delays("v", 60), [21_600]);
    assert_eq!(delays("iiiiiiii", 60), [30, 900, 1800, 3600, 7200, 14_400, 21_600, 21_600]);
    assert_eq!(delays("xxxxxxx", 60), [60, 120, 240, 480, 960, 1800, 1800].map(|s| s));
    let mut machine = KeyMachine::default();
    assert_eq!(machine.next_test(at(7), 0.5), at(7));
    machine.observe(at(0), &verdict('v'), None);
    assert_eq!(machine.next_test(at(0), 1.0), at(23_760));
    assert_eq!(machine.next_test(at(0), -1.0), at(19_440));
    machine.observe(at(0), &verdict('r'), Some(Duration::from_secs(600)));
    assert!(machine.next_test(at(0), -1.0) >= at(600));
    assert_eq!(machine.key_changed(at(10)).unwrap().to, K::Pending);
    assert_eq!(machine.next_test(at(10), 1.0), at(10));
    assert_eq!(machine.key_changed(at(11)), None);
}

proptest! {
    #[test]
    fn never_unhealthy_without_three_hard_in_a_row(letters in "[owshal]{0,80}", gaps in proptest::collection::vec(0i64..400, 80)) {
        let mut machine = HealthMachine::default();
        let (mut time, mut hard) = (0, 0);
        for (letter, gap) in letters.chars().zip(gaps) {
            time += gap;
            let before = machine.status();
            if machine.expire(at(time), INTERVAL).is_some() {
                prop_assert_eq!(machine.status(), H::Unknown);
                hard = 0;
            }
            hard = match letter { 'h' => hard + 1, 'l' => hard, _ => 0 };
            let transition = machine.observe(at(time), &outcome(letter));
            if letter == 'l' { prop_assert!(transition.is_none()); }
            if let Some(transition) = &transition {
                prop_assert_ne!(transition.from, transition.to);
                if transition.to == H::Unhealthy { prop_assert!(hard >= 3, "after {:?}", before); }
                if transition.to == H::Healthy { prop_assert!(matches!(letter, 'o' | 'a')); }
            }
            prop_assert!(hard < 3 || machine.status() == H::Unhealthy);
            let delay = machine.delay(at(time), INTERVAL);
            prop_assert!(delay >= Duration::from_secs(5) && delay <= Duration::from_secs(120));
            let stored: HealthMachine = serde_json::from_str(&serde_json::to_string(&machine).unwrap()).unwrap();
            prop_assert_eq!(&stored, &machine);
        }
    }

    #[test]
    fn never_valid_without_a_proof(letters in "[vqiropux]{0,60}", gaps in proptest::collection::vec(0i64..50_000, 60)) {
        let mut machine = KeyMachine::default();
        let mut time = 0;
        let mut rejections: Vec<i64> = Vec::new();
        for (letter, gap) in letters.chars().zip(gaps) {
            time += gap;
            let verdict = verdict(letter);
            let before = machine.status();
            let proof = machine.last_proof();
            let transition = machine.observe(at(time), &verdict, None);
            match verdict.evidence() {
                Evidence::Proof => { rejections.clear(); prop_assert_eq!(machine.status(), K::Valid); }
                Evidence::Rejection => {
                    rejections.push(time);
                    prop_assert!(machine.status() == before || machine.status() == K::Failed);
                }
                Evidence::Nothing => {
                    if before == K::Failed { prop_assert_eq!(machine.status(), K::Failed); }
                    if before == K::Valid && machine.status() == K::Error {
                        prop_assert!(at(time) - proof.unwrap() >= TimeDelta::hours(24));
                    }
                }
            }
            if let Some(transition) = transition {
                if transition.to == K::Valid { prop_assert_eq!(verdict.evidence(), Evidence::Proof); }
                if transition.to == K::Failed { prop_assert!(time - rejections[0] >= 30 && rejections.len() >= 2); }
            }
            let delay = machine.delay();
            prop_assert!(delay >= Duration::from_secs(30) && delay <= Duration::from_secs(6 * 3600));
        }
    }
}

#[test]
fn addresses_that_may_not_be_reached() {
    let open = EgressPolicy::default();
    let strict = EgressPolicy { allow_private: false, allow_loopback: false };
    // (address, allowed by default, allowed strictly)
    let rows: &[(&str, bool, bool)] = &[
        ("8.8.8.8", true, true),
        ("2606:4700::1", true, true),
        ("127.0.0.1", true, false),
        ("127.9.9.9", true, false),
        ("::1", true, false),
        ("::ffff:127.0.0.1", true, false),
        ("10.0.0.1", true, false),
        ("172.16.0.1", true, false),
        ("192.168.1.1", true, false),
        ("::ffff:192.168.1.1", true, false),
        ("100.64.0.1", true, false),
        ("fd00::1", true, false),
        ("fec0::1", true, false),
        ("198.18.0.1", true, false),
        ("169.254.169.254", false, false),
        ("169.254.0.1", false, false),
        ("::ffff:169.254.169.254", false, false),
        ("::169.254.169.254", false, false),
        ("64:ff9b::a9fe:a9fe", false, false),
        ("64:ff9b:1::a9fe:a9fe", false, false),
        ("2002:a9fe:a9fe::1", false, false),
        ("::ffff:0:169.254.169.254", false, false),
        ("fd00:ec2::254", false, false),
        ("fd00:ec2::23", false, false),
        ("2001:0:4136:e378:8000:63bf:5601:5601", false, false),
        ("2001:db8::5efe:a9fe:a9fe", false, false),
        ("fd00::200:5efe:169.254.169.254", false, false),
        ("fd20:ce::254", false, false),
        ("100.100.100.200", false, false),
        ("168.63.129.16", false, false),
        ("192.0.0.192", false, false),
        ("fe80::1", false, false),
        ("febf::1", false, false),
        ("0.0.0.0", false, false),
        ("::", false, false),
        ("224.0.0.1", false, false),
        ("255.255.255.255", false, false),
        ("ff02::1", false, false),
    ];
    for (address, by_default, strictly) in rows {
        let address = address.parse().unwrap();
        assert_eq!(open.check(address).is_ok(), *by_default, "{address} by default");
        assert_eq!(strict.check(address).is_ok(), *strictly, "{address} strictly");
    }
}
