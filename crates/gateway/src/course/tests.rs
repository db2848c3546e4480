//! What follows each outcome, by hand and over arbitrary outcomes.

use std::cell::Cell;

use proptest::prelude::*;

use super::*;
use crate::picture::HealthStatus;

/// Allows so many retries.
struct Purse(Cell<u32>);

impl RetryAllowance for Purse {
    fn take(&self, _: u32, _: Tick) -> bool {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        left > 0
    }
}

fn candidate(upstream: u32, window: Option<u64>) -> RouteCandidate {
    RouteCandidate {
        upstream,
        offer: Some(upstream),
        unlisted: None,
        priority: 1,
        weight: 1,
        health: HealthStatus::Healthy,
        rank: 0,
        native: true,
        window,
        origin: None,
    }
}

fn status(status: u16) -> AttemptOutcome {
    AttemptOutcome::Status { status, retry_after: None }
}

fn later(status: u16, secs: u64) -> AttemptOutcome {
    AttemptOutcome::Status { status, retry_after: Some(Duration::from_secs(secs)) }
}

const IN_BAND: AttemptOutcome = AttemptOutcome::InBand { status: None, retry_after: None };

/// Runs a course over outcomes; steps in short: `ask N`, `again N`, `commit`, `pass`, `fail CODE`, `cut CODE`, `end`.
fn run(windows: &[Option<u64>], purse: u32, outcomes: &[AttemptOutcome]) -> (Vec<String>, Course) {
    let candidates: Vec<_> = (0..).zip(windows).map(|(at, window)| candidate(at, *window)).collect();
    let mut course = Course::new(&candidates, Duration::from_secs(60), 7, Tick(1_000));
    let purse = Purse(Cell::new(purse));
    let mut steps = vec![course.first(Tick(1_000))];
    for outcome in outcomes {
        steps.push(course.follow(*outcome, Tick(2_000), &purse));
    }
    let shown = steps.iter().map(|step| match step {
        CourseStep::Ask { candidate, repeat: false, .. } => format!("ask {candidate}"),
        CourseStep::Ask { candidate, repeat: true, .. } => format!("again {candidate}"),
        CourseStep::Commit => "commit".into(),
        CourseStep::PassOn => "pass".into(),
        CourseStep::Fail(error) => format!("fail {}", error.code),
        CourseStep::Truncate(error) => format!("cut {}", error.code),
        CourseStep::End => "end".into(),
    });
    (shown.collect(), course)
}

#[test]
fn outcomes_lead_on() {
    use AttemptOutcome::*;
    let check = |candidates: usize, outcomes: &[AttemptOutcome], expected: &str| {
        let (steps, _) = run(&vec![None; candidates], 9, outcomes);
        assert_eq!(steps.join(", "), expected);
    };
    check(1, &[Content, Finished], "ask 0, commit, end");
    check(2, &[status(500), Content, Finished], "ask 0, ask 1, commit, end");
    check(2, &[ConnectFailed, status(503)], "ask 0, ask 1, again 1");
    check(1, &[status(500), status(500)], "ask 0, again 0, fail upstream_error");
    check(5, &[status(500); 4], "ask 0, ask 1, ask 2, again 2, fail upstream_error");
    check(2, &[status(429), Content], "ask 0, ask 1, commit");
    check(1, &[status(429)], "ask 0, fail rate_limit_exceeded");
    check(1, &[later(429, 1), Content], "ask 0, again 0, commit");
    check(1, &[later(429, 30)], "ask 0, fail rate_limit_exceeded");
    check(2, &[IN_BAND, Content], "ask 0, ask 1, commit");
    for passed in [400, 404, 413, 422] {
        check(3, &[status(passed), Content], "ask 0, pass, end");
    }
    for refused in [401, 402, 403] {
        check(2, &[status(refused), Content], "ask 0, ask 1, commit");
        check(1, &[status(refused)], "ask 0, fail upstream_auth");
    }
    check(1, &[status(302)], "ask 0, fail upstream_error");
    check(1, &[TimedOut(Clock::FirstToken)], "ask 0, fail upstream_timeout");
    check(2, &[TimedOut(Clock::FirstToken), Content], "ask 0, ask 1, commit");
    check(1, &[TimedOut(Clock::Connect)], "ask 0, again 0");
    check(3, &[CallerLeft, status(500)], "ask 0, end, end");
    check(3, &[Stopping], "ask 0, fail shutting_down");
    check(3, &[Content, BrokenOff], "ask 0, commit, cut upstream_truncated");
    check(3, &[Content, TimedOut(Clock::Idle)], "ask 0, commit, cut upstream_timeout");
    check(3, &[Content, IN_BAND], "ask 0, commit, cut upstream_truncated");
    check(3, &[Content, Stopping], "ask 0, commit, cut shutting_down");
    check(3, &[Content, CallerLeft], "ask 0, commit, end");
    check(4, &[Busy, Busy, Busy, Content], "ask 0, ask 1, ask 2, ask 3, commit");
    check(2, &[Busy, Busy], "ask 0, ask 1, fail overloaded");
    check(2, &[status(500), Busy], "ask 0, ask 1, fail upstream_error");
    check(5, &[Unfit, Unfit, Unfit, Unfit, Content], "ask 0, ask 1, ask 2, ask 3, ask 4, commit");
    check(2, &[Unfit, Unfit], "ask 0, ask 1, pass");
    check(2, &[Unfit, Busy], "ask 0, ask 1, fail overloaded");
    check(2, &[Busy, Unfit], "ask 0, ask 1, fail overloaded");
    check(2, &[status(500), Unfit], "ask 0, ask 1, fail upstream_error");
    check(0, &[Content], "fail no_upstream, end");
}

#[test]
fn an_overflow_leads_to_larger_windows_only() {
    use AttemptOutcome::*;
    let check = |windows: &[Option<u64>], outcomes: &[AttemptOutcome], expected: &str| {
        // Without any budget: an overflow harms no origin.
        assert_eq!(run(windows, 0, outcomes).0.join(", "), expected);
    };
    check(&[Some(8), Some(4), None, Some(9)], &[ContextOverflow, Content], "ask 0, ask 3, commit");
    check(&[Some(8), Some(8)], &[ContextOverflow], "ask 0, pass");
    check(&[None, Some(8)], &[ContextOverflow], "ask 0, pass");
    check(&[Some(1), Some(3), Some(2), Some(4)], &[ContextOverflow; 3], "ask 0, ask 1, ask 3, pass");
    let (steps, _) = run(&[Some(8), Some(9), Some(4), Some(10)], 9, &[ContextOverflow, status(500)]);
    assert_eq!(steps.join(", "), "ask 0, ask 1, ask 3");
}

#[test]
fn classes_of_failures_lead_on() {
    let check = |class: FailureClass, expected: &str| {
        for in_band in [false, true] {
            let outcome = AttemptOutcome::of_failure(class, in_band, None);
            let (steps, _) = run(&[None, None], 9, &[outcome]);
            assert_eq!(steps.last().map(String::as_str), Some(expected), "{class:?}");
        }
    };
    for own in [
        FailureClass::Invalid,
        FailureClass::Unsupported,
        FailureClass::Policy,
        FailureClass::TooLarge,
        FailureClass::NotFound,
        FailureClass::ContextOverflow,
    ] {
        check(own, "pass");
    }
    for other in [
        FailureClass::Auth,
        FailureClass::NoCredit,
        FailureClass::RateLimit,
        FailureClass::Overloaded,
        FailureClass::Server,
        FailureClass::Timeout,
        FailureClass::Truncated,
        FailureClass::Malformed,
    ] {
        check(other, "ask 1");
    }
}

#[test]
fn without_budget_the_failure_is_the_answer() {
    let (steps, course) = run(&[None, None], 0, &[status(500)]);
    assert_eq!(steps, ["ask 0", "fail upstream_error"]);
    assert!(course.out_of_budget());
}

#[test]
fn hints_tell_clients_whether_to_ask_again() {
    let check = |outcomes: &[AttemptOutcome], retry: Option<bool>, after: Option<u64>| {
        let mut course = Course::new(&[candidate(0, None)], Duration::from_secs(60), 7, Tick(0));
        course.first(Tick(0));
        let purse = Purse(Cell::new(9));
        let steps: Vec<_> = outcomes.iter().map(|it| course.follow(*it, Tick(0), &purse)).collect();
        let Some(CourseStep::Fail(error)) = steps.last() else { panic!("{steps:?}") };
        assert_eq!((error.should_retry, error.retry_after_secs()), (retry, after));
    };
    check(&[status(500), status(500)], Some(false), None);
    check(&[later(429, 30)], None, Some(30));
    check(&[status(401)], None, None);
}

#[test]
fn no_attempt_begins_after_the_end() {
    let mut course =
        Course::new(&[candidate(0, None), candidate(1, None)], Duration::from_secs(1), 7, Tick(0));
    course.first(Tick(0));
    let step = course.follow(status(500), Tick(1_000), &Purse(Cell::new(9)));
    assert!(matches!(step, CourseStep::Fail(_)), "{step:?}");
    let mut course = Course::new(&[candidate(0, None)], Duration::from_secs(1), 7, Tick(0));
    course.first(Tick(0));
    let step = course.follow(status(500), Tick(950), &Purse(Cell::new(9)));
    assert!(matches!(step, CourseStep::Fail(_)), "a repeat would begin after the end: {step:?}");
}

#[test]
fn clocks_are_named() {
    let course = Course::new(&[candidate(0, None)], Duration::from_secs(100), 7, Tick(0));
    let clocks = Clocks {
        connect: Duration::from_secs(4),
        first_token: Duration::from_secs(60),
        idle: Duration::from_secs(30),
        total: Duration::from_secs(90),
        total_streaming: Duration::from_secs(900),
    };
    let plain = course.deadlines(&clocks, false, Tick(0));
    assert_eq!(plain.before_content(false, None), (Tick(4_000), Clock::Connect));
    assert_eq!(plain.before_content(true, None), (Tick(60_000), Clock::FirstToken));
    assert_eq!(plain.before_content(true, Some(Tick(10_000))), (Tick(40_000), Clock::Idle));
    assert_eq!(plain.before_content(true, Some(Tick(40_000))), (Tick(60_000), Clock::FirstToken));
    assert_eq!(plain.relaying(Tick(50_000)), (Tick(80_000), Clock::Idle));
    assert_eq!(plain.relaying(Tick(80_000)), (Tick(90_000), Clock::Total));
    // The request's own end bounds a later attempt.
    let late = course.deadlines(&clocks, true, Tick(95_000));
    assert_eq!(late.before_content(true, None), (Tick(100_000), Clock::Total));
}

#[test]
fn the_retry_budget_is_a_fifth_of_ten_seconds() {
    let mut budget = RetryBudget::default();
    let take = |budget: &mut RetryBudget, now| (0..1_000).filter(|_| budget.take(Tick(now))).count();
    assert_eq!(take(&mut budget, 0), 10);
    assert_eq!(take(&mut budget, 9_999), 0);
    assert_eq!(take(&mut budget, 10_000), 10);
    for second in 20..30 {
        (0..100).for_each(|_| budget.first(Tick(second * 1_000)));
    }
    assert_eq!(take(&mut budget, 29_999), 200);
    assert_eq!(take(&mut budget, 34_000), 0);
    // A clock that other threads read a little earlier harms nothing.
    budget.first(Tick(33_000));
    assert_eq!(take(&mut budget, 1_000_000), 10);
}

fn any_outcome() -> impl Strategy<Value = AttemptOutcome> {
    use AttemptOutcome::*;
    let after = prop_oneof![Just(None), (0..4_000_u64).prop_map(|ms| Some(Duration::from_millis(ms)))];
    prop_oneof![
        Just(Content),
        Just(Finished),
        Just(Busy),
        Just(Unfit),
        Just(ConnectFailed),
        prop::sample::select(Clock::ALL).prop_map(TimedOut),
        Just(BrokenOff),
        Just(Garbage),
        (100..600_u16, after.clone()).prop_map(|(status, retry_after)| Status { status, retry_after }),
        (prop::option::of(100..600_u16), after)
            .prop_map(|(status, retry_after)| InBand { status, retry_after }),
        Just(ContextOverflow),
        Just(CallerLeft),
        Just(OwnFault),
        Just(Stopping),
    ]
}

proptest! {
    #[test]
    fn attempts_are_bounded_and_nothing_follows_content(
        windows in prop::collection::vec(prop::option::of(0..4_u64), 1..7),
        purse in 0..9_u32,
        outcomes in prop::collection::vec((any_outcome(), 0..20_000_u64), 0..30),
    ) {
        let candidates: Vec<_> = (0..).zip(&windows).map(|(at, window)| candidate(at, *window)).collect();
        let mut course = Course::new(&candidates, Duration::from_secs(60), 7, Tick(0));
        let purse = Purse(Cell::new(purse));
        let mut step = course.first(Tick(0));
        let (mut now, mut sent, mut asked) = (0, 0, std::collections::BTreeSet::new());
        let (mut content, mut left, mut over) = (false, false, false);
        for (outcome, passed) in outcomes {
            if let CourseStep::Ask { candidate, not_before, .. } = &step {
                prop_assert!(!content && !left && !over, "nothing is asked after content or the end");
                prop_assert!(not_before.0 >= now && not_before.0 < 60_000);
                if !matches!(outcome, AttemptOutcome::Busy | AttemptOutcome::Unfit) {
                    sent += 1;
                    asked.insert(*candidate);
                }
            }
            prop_assert!(sent <= 4 && asked.len() <= 3, "{sent} {asked:?}");
            now += passed;
            let before = course.attempts();
            step = course.follow(outcome, Tick(now), &purse);
            if over {
                prop_assert_eq!(&step, &CourseStep::End);
                prop_assert_eq!(course.attempts(), before);
            }
            content |= step == CourseStep::Commit;
            left |= outcome == AttemptOutcome::CallerLeft;
            over |= !matches!(step, CourseStep::Ask { .. } | CourseStep::Commit);
            if matches!(step, CourseStep::Truncate(_)) {
                prop_assert!(content, "only what was begun can be cut short");
            }
            if matches!(step, CourseStep::Fail(_) | CourseStep::PassOn) {
                prop_assert!(!content, "after content an answer has no status any more");
            }
        }
        prop_assert!(course.attempts() <= 4);
    }
}
