//! Limits and budgets by hand, over arbitrary steps, and from two hundred threads at once.

use proptest::prelude::*;

use super::{rate::cost, *};
use crate::picture::BudgetPeriod;
use std::sync::atomic::AtomicI64;

/// Seconds.
const DAY: i64 = 86_400;
/// The end of the year 9999, in Unix seconds.
const LATEST: i64 = 253_402_300_799;

const SCOPE: LimitScope<'static> = LimitScope::Consumer("web");

fn requests(limit: u64) -> LimitSpec {
    LimitSpec { requests_per_minute: Some(limit), ..LimitSpec::default() }
}

fn budget(units: i64, per: BudgetPeriod) -> LimitSpec {
    LimitSpec { budgets: vec![BudgetSpec { units, per }], ..LimitSpec::default() }
}

fn enter(book: &LimitBook, spec: &LimitSpec, now: u64) -> Result<Admission, GatewayError> {
    book.enter(&[(SCOPE, spec)], Tick(now))
}

#[test]
fn requests_a_minute_are_counted_and_come_back_with_time() {
    let (book, spec) = (LimitBook::default(), requests(60));
    for left in (0..60).rev() {
        let admission = enter(&book, &spec, 1_000).unwrap();
        assert_eq!(admission.rates(Tick(1_000)).0.unwrap().remaining, left);
    }
    let error = enter(&book, &spec, 1_000).unwrap_err();
    assert_eq!((error.code, error.retry_after_secs()), (ErrorCode::RateLimitExceeded, Some(1)));
    assert_eq!(error.param.as_deref(), Some("requests_per_minute"));
    assert!(enter(&book, &spec, 1_999).is_err());
    let admission = enter(&book, &spec, 2_000).unwrap();
    let headers = admission.headers(Tick(2_000));
    let expected = [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "0"),
        ("x-ratelimit-reset-requests", "1m0s"),
    ];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assert_eq!(headers, expected);
    // It holds no more than a minute's worth, however long nothing came.
    let free = (0..100).filter(|_| enter(&book, &spec, 10_000_000).is_ok()).count();
    assert_eq!(free, 60);
    assert!(enter(&LimitBook::default(), &requests(0), 0).is_err());
}

#[test]
fn resets_are_written_as_clients_read_them() {
    let check = |millis, expected: &str| {
        let view = RateView { limit: 1, remaining: 0, reset: Duration::from_millis(millis) };
        assert_eq!(view.reset_text(), expected);
    };
    check(0, "0ms");
    check(20, "20ms");
    check(1_000, "1s");
    check(1_500, "1.500s");
    check(360_000, "6m0s");
}

#[test]
fn tokens_are_reserved_and_settled() {
    let book = LimitBook::default();
    let spec = LimitSpec { tokens_per_minute: Some(6_000), ..LimitSpec::default() };
    let left = |admission: &Admission| admission.rates(Tick(0)).1.unwrap().remaining;
    let mut first = enter(&book, &spec, 0).unwrap();
    first.reserve(5_000, 0, Tick(0), 0).unwrap();
    let mut second = enter(&book, &spec, 0).unwrap();
    assert_eq!(left(&second), 1_000);
    let error = second.reserve(2_000, 0, Tick(0), 0).unwrap_err();
    assert_eq!((error.param.as_deref(), error.retry_after_secs()), (Some("tokens_per_minute"), Some(10)));
    first.settle(1_000, None, Tick(0));
    assert_eq!(left(&second), 5_000);
    second.reserve(2_000, 0, Tick(0), 0).unwrap();
    second.settle(2_500, None, Tick(0));
    let mut third = enter(&book, &spec, 0).unwrap();
    assert_eq!(left(&third), 2_500);
    third.reserve(2_500, 0, Tick(0), 0).unwrap();
    drop(third);
    let mut all = enter(&book, &spec, 60_000).unwrap();
    // What is larger than the bucket passes when it is full, and is paid off.
    all.reserve(60_000, 0, Tick(60_000), 0).unwrap();
    all.settle(60_000, None, Tick(60_000));
    let mut late = enter(&book, &spec, 60_000).unwrap();
    assert_eq!(late.reserve(1, 0, Tick(60_000), 0).unwrap_err().retry_after_secs(), Some(541));
}

#[test]
fn requests_at_once_are_counted_and_given_back() {
    let book = LimitBook::default();
    let spec = LimitSpec { concurrency: Some(2), ..LimitSpec::default() };
    let held: Vec<_> = (0..2).map(|_| enter(&book, &spec, 0).unwrap()).collect();
    assert_eq!(enter(&book, &spec, 0).unwrap_err().code, ErrorCode::ConcurrencyExceeded);
    drop(held);
    enter(&book, &spec, 0).unwrap().settle(0, None, Tick(0));
    let again: Vec<_> = (0..2).map(|_| enter(&book, &spec, 0)).collect();
    assert!(again.iter().all(Result::is_ok));
}

#[test]
fn a_refusal_takes_nothing_from_the_other_scopes() {
    let book = LimitBook::default();
    let (wide, narrow) = (requests(100), requests(1));
    let user = LimitScope::User { tier: "free", consumer: "web", user: "u" };
    let both = || book.enter(&[(SCOPE, &wide), (user, &narrow)], Tick(0));
    both().unwrap();
    for _ in 0..10 {
        assert!(both().is_err());
    }
    let admission = book.enter(&[(SCOPE, &wide)], Tick(0)).unwrap();
    assert_eq!(admission.rates(Tick(0)).0.unwrap().remaining, 98);
    assert_eq!(book.enter(&[(user, &LimitSpec::default())], Tick(0)).unwrap().holds.len(), 0);
}

#[test]
fn budgets_want_leases_and_settle_what_was_spent() {
    let (book, spec) = (LimitBook::default(), budget(1_000, BudgetPeriod::Day));
    let mut admission = enter(&book, &spec, 0).unwrap();
    let Ok(Reserved::Wanting(wishes)) = admission.reserve(0, 100, Tick(0), 0) else { panic!() };
    assert_eq!(
        (wishes[0].units, wishes[0].urgent, wishes[0].window),
        (100, true, BudgetWindow { start: 0, end: DAY })
    );
    book.grant(&wishes[0], 400, false, Tick(0));
    assert_eq!(admission.reserve(0, 100, Tick(0), 0), Ok(Reserved::Made(vec![])));
    let lease = book.leases(&SCOPE, 0).remove(0);
    assert_eq!((lease.left(), lease.reserved(), lease.spent()), (300, 100, 0));
    admission.settle(0, Some(70), Tick(0));
    assert_eq!((lease.left(), lease.reserved(), lease.spent()), (330, 0, 70));
    let mut admission = enter(&book, &spec, 0).unwrap();
    let Ok(Reserved::Made(low)) = admission.reserve(0, 300, Tick(0), 0) else { panic!() };
    assert_eq!((low[0].urgent, low.len()), (false, 1));
    drop(admission);
    assert_eq!(lease.left(), 330);
    // The database has no more: that is an answer at once, believed for a while.
    let mut admission = enter(&book, &spec, 0).unwrap();
    book.grant(&wishes[0], 0, true, Tick(0));
    let error = admission.reserve(0, 500, Tick(0), 3_600).unwrap_err();
    assert_eq!((error.status, error.should_retry), (402, Some(false)));
    assert_eq!(
        &*error.message,
        "the budget of 0.0000001 USD a day does not cover this request; it begins again in 23 h"
    );
    assert!(matches!(admission.reserve(0, 500, Tick(5_000), 0), Ok(Reserved::Wanting(_))));
    // The next day is another lease.
    assert!(matches!(admission.reserve(0, 1, Tick(0), DAY), Ok(Reserved::Wanting(_))));
}

#[test]
fn a_spent_budget_lets_nothing_pass() {
    let (book, spec) = (LimitBook::default(), budget(100, BudgetPeriod::Month));
    let mut admission = enter(&book, &spec, 0).unwrap();
    let Ok(Reserved::Wanting(wishes)) = admission.reserve(0, 100, Tick(0), 0) else { panic!() };
    book.grant(&wishes[0], 100, true, Tick(0));
    admission.reserve(0, 100, Tick(0), 0).unwrap();
    // It cost more than it was reserved for.
    admission.settle(0, Some(130), Tick(0));
    let mut free = enter(&book, &spec, 0).unwrap();
    assert_eq!(free.reserve(0, 0, Tick(0), 0).unwrap_err().code, ErrorCode::BudgetExceeded);
    drop(free);
    let returns = book.give_back(None, true, Tick(0), 0);
    assert_eq!(returns.iter().map(|it| it.units).collect::<Vec<_>>(), [-30], "the overrun is said");
}

#[test]
fn leases_go_back_when_idle_over_or_wanted() {
    let spec = budget(1_000, BudgetPeriod::Day);
    let check = |only: Option<&str>, all: bool, now: u64, unix: i64, units: &[i64], kept: usize| {
        let book = LimitBook::default();
        let mut busy = enter(&book, &spec, 0).unwrap();
        let Ok(Reserved::Wanting(wishes)) = busy.reserve(0, 100, Tick(0), 0) else { panic!() };
        book.grant(&wishes[0], 400, false, Tick(0));
        busy.reserve(0, 100, Tick(0), 0).unwrap();
        let given: Vec<_> = book.give_back(only, all, Tick(now), unix).iter().map(|it| it.units).collect();
        assert_eq!(given, units);
        busy.settle(0, Some(40), Tick(now));
        // What was reserved is not lost: it goes back with the next turn.
        let spent: Vec<_> = book.spends().iter().map(|it| it.units).collect();
        assert_eq!((spent, book.spends()), (vec![40], vec![]), "said once");
        let later = book.give_back(None, true, Tick(u64::MAX), unix);
        assert_eq!(later.iter().map(|it| it.units).sum::<i64>(), 360 - units.iter().sum::<i64>());
        assert_eq!(book.leases(&SCOPE, 0).len(), kept);
    };
    check(None, false, 10, 0, &[], 0);
    check(Some("consumer\u{1f}web"), false, 10, 0, &[300], 0);
    check(Some("consumer\u{1f}other"), false, 10, 0, &[], 0);
    check(None, true, 10, 0, &[300], 0);
    check(None, false, 60_000, 0, &[300], 0);
    check(None, false, 10, DAY, &[300], 0);
}

#[test]
fn what_was_spent_is_reported_until_it_arrives() {
    let (book, spec) = (LimitBook::default(), budget(1_000, BudgetPeriod::Day));
    let mut admission = enter(&book, &spec, 0).unwrap();
    let Ok(Reserved::Wanting(wishes)) = admission.reserve(0, 100, Tick(0), 0) else { panic!() };
    book.grant(&wishes[0], 100, false, Tick(0));
    admission.reserve(0, 100, Tick(0), 0).unwrap();
    admission.settle(0, Some(100), Tick(0));
    let lost = book.spends();
    assert_eq!(lost.iter().map(|it| it.units).collect::<Vec<_>>(), [100]);
    book.unreported(&lost[0], Tick(0));
    // Idle and used up, but not forgotten: its news did not arrive.
    assert_eq!(book.give_back(None, false, Tick(60_000), 0), []);
    assert_eq!((book.leases(&SCOPE, 0).len(), book.spends()), (1, lost));
    book.give_back(None, false, Tick(60_000), 0);
    assert_eq!(book.leases(&SCOPE, 0).len(), 0);
}

#[test]
fn a_node_enforces_its_share_and_counts_who_came() {
    let (book, spec) = (LimitBook::default(), LimitSpec { concurrency: Some(5), ..requests(60) });
    book.set_share(NodeShare::of(&[0, 0], 0));
    let held: Vec<_> = (0..10).filter_map(|_| enter(&book, &spec, 0).ok()).collect();
    assert_eq!(held.len(), 2, "half of five at once, rounded down");
    drop(held);
    assert_eq!(
        (0..100).filter(|_| enter(&book, &spec, 0).is_ok()).count(),
        28,
        "half of sixty, two of which went"
    );
    assert_eq!((book.take_demand(), book.take_demand()), (110, 0));
    enter(&book, &budget(10, BudgetPeriod::Day), 0).unwrap();
    assert_eq!(book.take_demand(), 0, "budgets are not divided by demand");
    book.set_share(NodeShare::of(&[0, 1_000_000], 0));
    assert!(
        enter(&book, &LimitSpec { concurrency: Some(1), ..LimitSpec::default() }, 0).is_ok(),
        "one is always one"
    );
}

#[test]
fn only_blank_scopes_are_forgotten() {
    let book = LimitBook::with_room(SHARDS);
    let spec = requests(60);
    let user = |at: u64| format!("u{at}");
    let enter = |at: u64, now: u64| {
        let user = user(at);
        book.enter(&[(LimitScope::User { tier: "t", consumer: "c", user: &user }, &spec)], Tick(now))
    };
    let let_in: Vec<u64> = (0..1_000).filter(|at| enter(*at, 0).is_ok()).collect();
    assert!(let_in.len() <= SHARDS && book.len() == let_in.len());
    let error = (0..1_000).find_map(|at| enter(at, 0).err()).unwrap();
    assert_eq!(error.code, ErrorCode::Overloaded);
    // Their buckets are full again after a second, and others may take their places.
    assert!((0..1_000).filter(|at| enter(1_000 + at, 1_000).is_ok()).count() > 0);
    assert!(book.len() <= SHARDS);
}

#[test]
fn windows_are_those_of_the_calendar() {
    let check = |period, now: i64, start: i64, end: i64| {
        assert_eq!(BudgetWindow::of(period, now), BudgetWindow { start, end }, "{period} {now}");
    };
    // 2024-02-29T12:00:00Z, a Thursday.
    let leap = 1_709_208_000;
    check(BudgetPeriod::Day, leap, 1_709_164_800, 1_709_251_200);
    check(BudgetPeriod::Week, leap, 1_708_905_600, 1_709_510_400);
    check(BudgetPeriod::Month, leap, 1_706_745_600, 1_709_251_200);
    // The last second of 2026, a Thursday, and the first of 2027.
    check(BudgetPeriod::Month, 1_798_761_599, 1_796_083_200, 1_798_761_600);
    check(BudgetPeriod::Month, 1_798_761_600, 1_798_761_600, 1_801_440_000);
    // Monday begins a week.
    check(BudgetPeriod::Week, 4 * DAY, 4 * DAY, 11 * DAY);
    check(BudgetPeriod::Week, 4 * DAY - 1, -3 * DAY, 4 * DAY);
    check(BudgetPeriod::Day, -1, -DAY, 0);
}

#[test]
fn a_quiet_node_can_begin_and_a_busy_one_has_the_most() {
    let shares = |demands: &[u64]| {
        (0..demands.len()).map(|at| NodeShare::of(demands, at).millionths()).collect::<Vec<_>>()
    };
    assert_eq!(shares(&[5]), [1_000_000]);
    assert_eq!(shares(&[0, 0]), [500_000, 500_000]);
    assert!(shares(&[1_000, 0])[0] > 950_000 && shares(&[1_000, 0])[1] > 20_000);
}

proptest! {
    #[test]
    fn shares_are_never_more_than_the_whole(demands in prop::collection::vec(any::<u64>(), 1..20)) {
        let shares: Vec<_> = (0..demands.len()).map(|at| NodeShare::of(&demands, at).millionths()).collect();
        prop_assert!(shares.iter().all(|share| *share > 0));
        prop_assert!(shares.iter().sum::<u32>() <= WHOLE);
    }

    #[test]
    fn windows_hold_their_moment_and_follow_each_other(now in -70_000_000_000..LATEST) {
        for period in BudgetPeriod::ALL {
            let window = BudgetWindow::of(*period, now);
            prop_assert!(window.start <= now && now < window.end);
            let days = (window.end - window.start) / DAY;
            let expected = match period {
                BudgetPeriod::Day => 1..=1,
                BudgetPeriod::Week => 7..=7,
                BudgetPeriod::Month => 28..=31,
            };
            prop_assert!(expected.contains(&days));
            prop_assert_eq!(BudgetWindow::of(*period, window.end).start, window.end);
            prop_assert_eq!(BudgetWindow::of(*period, window.end - 1), window);
        }
        let _ = BudgetWindow::of(BudgetPeriod::Month, i64::MAX);
        let _ = BudgetWindow::of(BudgetPeriod::Week, i64::MIN);
    }

    #[test]
    fn never_more_than_the_bucket_and_its_refill(
        limit in 1..500_u64,
        steps in prop::collection::vec((0..3_000_u64, 1..40_u64), 1..200),
    ) {
        let gauge = RateGauge::default();
        let (mut now, mut taken) = (0, 0);
        for (passed, count) in steps {
            now += passed;
            let cost = cost(count, limit, NodeShare::ALL).unwrap();
            if count <= limit && gauge.take(cost, Tick(now)).is_ok() {
                taken += count;
            }
            // One more for rounding down each cost to nanoseconds.
            prop_assert!(taken <= limit + limit * now / 60_000 + 1);
        }
    }
}

#[test]
fn two_hundred_threads_never_spend_more_than_the_lease() {
    const THREADS: usize = 200;
    const GRANTED: i64 = 10_000;
    let (book, spec) = (LimitBook::default(), budget(GRANTED, BudgetPeriod::Day));
    let wish = {
        let mut admission = enter(&book, &spec, 0).unwrap();
        let Ok(Reserved::Wanting(mut wishes)) = admission.reserve(0, 1, Tick(0), 0) else { panic!() };
        wishes.remove(0)
    };
    book.grant(&wish, GRANTED, true, Tick(0));
    let spent = AtomicI64::new(0);
    let barrier = std::sync::Barrier::new(THREADS);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (book, spec, spent, barrier) = (&book, &spec, &spent, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for at in 0..40 {
                    let mut admission = enter(book, spec, 0).unwrap();
                    let units = i64::try_from((thread * 7 + at * 13) % 97 + 1).unwrap();
                    if admission.reserve(0, units, Tick(0), 0).is_err() {
                        continue;
                    }
                    match at % 3 {
                        0 => drop(admission),
                        1 => {
                            admission.settle(0, Some(units / 2), Tick(0));
                            spent.fetch_add(units / 2, Ordering::AcqRel);
                        }
                        _ => {
                            admission.settle(0, Some(units), Tick(0));
                            spent.fetch_add(units, Ordering::AcqRel);
                        }
                    }
                }
            });
        }
    });
    let lease = book.leases(&SCOPE, 0).remove(0);
    let spent = spent.load(Ordering::Acquire);
    assert!(spent <= GRANTED, "{spent}");
    assert_eq!((lease.spent(), lease.reserved(), lease.left()), (spent, 0, GRANTED - spent));
    assert!(GRANTED - spent < 97, "what was left was refused: {spent}");
}

#[test]
fn two_hundred_threads_pass_no_more_than_the_limit() {
    let (book, spec) = (LimitBook::default(), LimitSpec { concurrency: Some(50), ..requests(1_000) });
    let (passed, peak, flying) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let barrier = std::sync::Barrier::new(200);
    std::thread::scope(|scope| {
        for _ in 0..200 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20 {
                    if let Ok(admission) = enter(&book, &spec, 0) {
                        peak.fetch_max(flying.fetch_add(1, Ordering::AcqRel) + 1, Ordering::AcqRel);
                        passed.fetch_add(1, Ordering::AcqRel);
                        std::thread::yield_now();
                        flying.fetch_sub(1, Ordering::AcqRel);
                        drop(admission);
                    }
                }
            });
        }
    });
    assert!(passed.load(Ordering::Acquire) <= 1_000);
    assert!(peak.load(Ordering::Acquire) <= 50);
    assert!(passed.load(Ordering::Acquire) >= 50, "it lets pass what is allowed");
}

#[test]
fn a_scope_is_read_back_from_its_text() {
    for scope in [
        LimitScope::Consumer("web"),
        LimitScope::User { tier: "free", consumer: "web", user: "ada" },
        LimitScope::User { tier: "free", consumer: "web", user: "a\u{1f}b" },
    ] {
        assert_eq!(LimitScope::parse(&scope.key()), Some(scope));
    }
    for other in ["", "user", "user\u{1f}free\u{1f}web", "tier\u{1f}free\u{1f}web\u{1f}ada"] {
        assert_eq!(LimitScope::parse(other), None, "{other:?}");
    }
}
