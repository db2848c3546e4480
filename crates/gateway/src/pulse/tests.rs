//! Cooling, trials and panic, by hand and over arbitrary outcomes.

use proptest::prelude::*;

use super::*;
use crate::picture::{
    PictureInput,
    tests::{picture, provider},
};

const HARD: AttemptOutcome = AttemptOutcome::ConnectFailed;
const GOOD: AttemptOutcome = AttemptOutcome::Content;

fn status(status: u16) -> AttemptOutcome {
    AttemptOutcome::Status { status, retry_after: None }
}

/// Providers p0, p1, … with a model `m` each.
fn many(count: usize) -> Picture {
    let providers = (0..count).map(|at| provider(&format!("p{at}"), &["m"])).collect();
    picture(&PictureInput { providers, ..PictureInput::default() })
}

fn one() -> Pulse {
    PulseBook::default().bind(&many(1))
}

/// One attempt at the first provider, with its outcome.
fn attempt(pulse: &Pulse, outcome: AttemptOutcome, now: u64) -> Heard {
    pulse.begin(0, Some(0), true, Tick(now)).expect("a seat").hear(outcome, Tick(now))
}

fn until(pulse: &Pulse, now: u64) -> Option<u64> {
    match pulse.standing(0, Some(0), Tick(now)) {
        Standing::Ready => None,
        Standing::Cooling { until } => Some(until.0),
        Standing::Full => panic!("full"),
    }
}

#[test]
fn three_hard_failures_in_a_row_cool_and_trials_double() {
    let pulse = one();
    attempt(&pulse, HARD, 0);
    attempt(&pulse, HARD, 1);
    attempt(&pulse, GOOD, 2);
    attempt(&pulse, HARD, 3);
    attempt(&pulse, status(400), 4);
    attempt(&pulse, status(500), 5);
    assert_eq!(until(&pulse, 6), None);
    assert_eq!(attempt(&pulse, AttemptOutcome::TimedOut(Clock::Idle), 10).cooled, Some("failures"));
    let mut now = 10;
    for length in [2, 4, 8, 16, 32, 60, 60] {
        assert_eq!(until(&pulse, now), Some(now + length * 1_000));
        assert!(pulse.begin(0, Some(0), true, Tick(now + length * 1_000 - 1)).is_err());
        now += length * 1_000;
        assert_eq!(until(&pulse, now), None);
        attempt(&pulse, HARD, now);
    }
    now += 60_000;
    attempt(&pulse, GOOD, now);
    assert_eq!(until(&pulse, now), None);
    // It begins at the start again.
    for _ in 0..3 {
        attempt(&pulse, HARD, now);
    }
    assert_eq!(until(&pulse, now), Some(now + 2_000));
}

#[test]
fn half_of_the_last_twenty_cool() {
    let pulse = one();
    for at in 0..19 {
        attempt(&pulse, if at % 2 == 0 { HARD } else { GOOD }, at);
        assert_eq!(until(&pulse, at).is_some(), at == 18, "{at}");
    }
}

#[test]
fn one_trial_at_a_time() {
    let pulse = one();
    for _ in 0..3 {
        attempt(&pulse, HARD, 0);
    }
    let mut trial = pulse.begin(0, None, true, Tick(2_000)).unwrap();
    assert!(trial.is_trial());
    assert_eq!(
        pulse.begin(0, None, true, Tick(2_000)).unwrap_err(),
        Standing::Cooling { until: Tick(2_000) }
    );
    assert_eq!(until(&pulse, 2_000), Some(2_000));
    // A caller's mistake is no answer to the question: the next request is the trial.
    trial.hear(status(422), Tick(2_001));
    drop(trial);
    let left = pulse.begin(0, None, true, Tick(2_002)).unwrap();
    assert!(left.is_trial());
    drop(left);
    let mut trial = pulse.begin(0, None, true, Tick(2_003)).unwrap();
    trial.hear(GOOD, Tick(2_004));
    assert!(pulse.begin(0, None, true, Tick(2_005)).is_ok(), "a stream that flows is no trial any more");
}

#[test]
fn attempts_from_before_a_cooldown_do_not_lengthen_it() {
    let pulse = one();
    let mut old: Vec<_> = (0..10).map(|_| pulse.begin(0, None, true, Tick(0)).unwrap()).collect();
    for flight in &mut old {
        flight.hear(HARD, Tick(100));
    }
    assert_eq!(until(&pulse, 100), Some(2_100));
    let mut late = pulse.begin(0, None, true, Tick(2_100)).unwrap();
    late.hear(HARD, Tick(2_200));
    assert_eq!(until(&pulse, 2_200), Some(6_200), "the second cooldown, not the eighth");
}

#[test]
fn limits_and_missing_models_cool_the_model() {
    let check = |outcome: AttemptOutcome, expected: Option<u64>| {
        let pulse = one();
        attempt(&pulse, outcome, 0);
        assert_eq!(until(&pulse, 0), expected, "{outcome:?}");
        assert_eq!(pulse.standing(0, None, Tick(0)), Standing::Ready, "the provider itself does not cool");
    };
    let limited = |secs| AttemptOutcome::Status { status: 429, retry_after: Some(Duration::from_secs(secs)) };
    check(status(429), Some(5_000));
    check(limited(90), Some(90_000));
    check(limited(100_000), Some(600_000));
    check(status(404), Some(60_000));
    for own in [status(400), status(413), status(422), status(408), AttemptOutcome::ContextOverflow] {
        check(own, None);
    }
    let pulse = one();
    let mut first = pulse.begin(0, Some(0), true, Tick(0)).unwrap();
    let mut second = pulse.begin(0, Some(0), true, Tick(0)).unwrap();
    first.hear(limited(90), Tick(0));
    second.hear(limited(3), Tick(1));
    assert_eq!(until(&pulse, 1), Some(90_000), "the longest wins");
}

#[test]
fn callers_and_our_own_faults_cool_nobody() {
    let pulse = one();
    for outcome in [400, 413, 422, 409].map(status).into_iter().chain([
        AttemptOutcome::CallerLeft,
        AttemptOutcome::OwnFault,
        AttemptOutcome::Stopping,
        AttemptOutcome::ContextOverflow,
        AttemptOutcome::TimedOut(Clock::Total),
    ]) {
        for at in 0..100 {
            assert_eq!(attempt(&pulse, outcome, at), Heard::default());
        }
    }
    assert_eq!((until(&pulse, 100), pulse.cooldowns()), (None, 0));
}

#[test]
fn refusals_of_the_key_wait_a_moment_and_ask_for_a_look() {
    let pulse = one();
    assert!(attempt(&pulse, status(401), 0).look_again);
    assert!(!attempt(&pulse, status(401), 4_999).look_again);
    let heard = attempt(&pulse, status(403), 5_000);
    assert_eq!(heard, Heard { cooled: Some("refused"), look_again: true });
    let pulse = one();
    for at in 0..100 {
        attempt(&pulse, if at % 2 == 0 { status(403) } else { GOOD }, at);
    }
    assert_eq!(until(&pulse, 100), None, "between answers they say nothing");
}

#[test]
fn seats_are_bounded_and_given_back() {
    let mut limited = provider("p", &["m"]);
    limited.max_in_flight = Some(2);
    let picture = picture(&PictureInput { providers: vec![limited], ..PictureInput::default() });
    let pulse = PulseBook::default().bind(&picture);
    let seats: Vec<_> = (0..2).map(|_| pulse.begin(0, None, true, Tick(0)).unwrap()).collect();
    assert_eq!(pulse.begin(0, None, true, Tick(0)).unwrap_err(), Standing::Full);
    assert_eq!(pulse.standing(0, None, Tick(0)), Standing::Full);
    drop(seats);
    assert_eq!((pulse.in_flight(0), pulse.standing(0, None, Tick(0))), (0, Standing::Ready));
}

#[test]
fn cooldowns_are_ignored_where_half_of_five_origins_cool() {
    let check = |origins: usize, cool: u32, panic: bool| {
        let picture = many(origins);
        let pulse = PulseBook::default().bind(&picture);
        for upstream in 0..cool {
            for _ in 0..3 {
                if let Ok(mut flight) = pulse.begin(upstream, None, true, Tick(0)) {
                    flight.hear(HARD, Tick(0));
                }
            }
        }
        assert_eq!(pulse.panic(Tick(1)), panic, "{cool} of {origins}");
        let open = pulse.standing(0, None, Tick(1)) == Standing::Ready;
        assert_eq!(open, panic);
        assert_eq!(pulse.begin(0, None, true, Tick(1)).is_ok(), panic);
        assert!(!pulse.panic(Tick(2_000)), "it ends with the cooldowns");
    };
    check(4, 4, false);
    check(5, 2, false);
    check(5, 3, true);
    check(6, 3, true);
    check(10, 4, false);
    check(10, 5, true);
}

#[test]
fn a_new_picture_keeps_what_is_known() {
    let mut book = PulseBook::default();
    let old = book.bind(&many(2));
    for _ in 0..3 {
        attempt(&old, HARD, 0);
    }
    let flight = old.begin(1, None, true, Tick(0)).unwrap();
    // Turned round, and one more.
    let mut turned: Vec<_> = (0..3).map(|at| provider(&format!("p{at}"), &["m"])).collect();
    turned.reverse();
    let new = book.bind(&picture(&PictureInput { providers: turned.clone(), ..PictureInput::default() }));
    assert!(matches!(new.standing(2, None, Tick(1)), Standing::Cooling { .. }));
    assert_eq!((new.in_flight(1), new.standing(0, None, Tick(1))), (1, Standing::Ready));
    drop(flight);
    assert_eq!(new.in_flight(1), 0);
    turned[2].base_url = "https://elsewhere.test".into();
    let moved = book.bind(&picture(&PictureInput { providers: turned, ..PictureInput::default() }));
    assert_eq!(moved.standing(2, None, Tick(1)), Standing::Ready);
}

#[test]
fn the_retry_budget_belongs_to_the_origin() {
    let mut providers: Vec<_> = (0..3).map(|at| provider(&format!("p{at}"), &["m"])).collect();
    providers[1].base_url = "https://p0.test/other".into();
    let pulse = PulseBook::default().bind(&picture(&PictureInput { providers, ..PictureInput::default() }));
    for _ in 0..100 {
        drop(pulse.begin(0, None, true, Tick(0)));
        drop(pulse.begin(0, None, false, Tick(0)));
    }
    let taken = |upstream| (0..100).filter(|_| pulse.take(upstream, Tick(0))).count();
    assert_eq!((taken(1), taken(0), taken(2)), (20, 0, 10));
}

fn blame() -> impl Strategy<Value = Blame> {
    prop_oneof![
        Just(Blame::Good),
        Just(Blame::Hard),
        Just(Blame::Refused),
        Just(Blame::RateLimited(None)),
        Just(Blame::ModelGone),
        Just(Blame::Nothing),
    ]
}

proptest! {
    #[test]
    fn a_cooldown_is_never_shortened_but_by_a_trial(
        steps in prop::collection::vec((blame(), 0..3_000_u64, 0..5_000_u64, any::<bool>()), 0..200),
    ) {
        let (mut beat, mut now) = (Beat::default(), 10_000);
        for (blame, passed, ago, trial) in steps {
            now += passed;
            let ready = beat.cooling.is_none_or(|cooling| cooling.until.0 <= now);
            let trial = trial && ready && beat.cooling.is_some();
            let began = if trial { now } else { now.saturating_sub(ago) };
            let next = beat.step(blame, Tick(began), trial, Tick(now));
            if let (Some(before), Some(after)) = (beat.cooling, next.cooling) {
                prop_assert!(after.until >= before.until);
            }
            if let Some(cooling) = next.cooling {
                prop_assert!(cooling.until.since(cooling.since) <= LONGEST);
                prop_assert!(cooling.until.since(cooling.since) >= BASE);
            }
            if beat.cooling.is_some() && next.cooling.is_none() {
                prop_assert!(blame == Blame::Good && ready);
            }
            if beat.cooling.is_none() && next.cooling.is_some() {
                prop_assert!(matches!(blame, Blame::Hard | Blame::Refused));
            }
            beat = next;
        }
    }
}

#[test]
fn threads_share_one_trial_and_lose_no_seat() {
    let pulse = one();
    for _ in 0..3 {
        attempt(&pulse, HARD, 0);
    }
    let trials = AtomicU32::new(0);
    let held = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                held.wait();
                let flight = pulse.begin(0, None, true, Tick(2_000));
                held.wait();
                trials.fetch_add(u32::from(flight.is_ok()), Ordering::AcqRel);
            });
        }
    });
    assert_eq!((trials.load(Ordering::Acquire), pulse.in_flight(0)), (1, 0));
}
