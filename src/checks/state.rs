//! Two state machines: a provider's health and a key's status.
//!
//! PURE. The time is a parameter, and the state can be stored and taken up again after a restart. Not their job:
//! asking, and suspecting ourselves (see [`impairment`](super::impairment)).
//! Invariants: nothing becomes unhealthy without three hard failures in a row, no key becomes valid without a
//! proof, what is inconclusive never overwrites a failed key, and no wait that a provider asks for keeps a result
//! from going stale.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use catalog::model::{HealthStatus, KeyStatus};
use provider::{CheckOutcome, Evidence, KeyVerdict, MAX_RETRY_AFTER};

/// Hard failures in a row that make a provider unhealthy: one may be a hiccup, two a deployment.
const HARD_IN_A_ROW: u32 = 3;
/// Slow, soft or hard results in a row that degrade a healthy provider.
const BAD_IN_A_ROW: u32 = 3;
/// Bad results among the last ten that degrade it.
const BAD_OF_LAST_10: u32 = 3;
/// Changes between good and bad among the last twenty results that degrade it.
const FLIPS_OF_LAST_20: u32 = 6;
/// A degraded provider is healthy again after this many good results in a row…
const GOOD_TO_SETTLE: u32 = 5;
/// …while this few flips remain: a lower bar to leave than to enter keeps a flapper from flapping here too.
const FLIPS_TO_SETTLE: u32 = 2;
/// Good results in a row that bring an unhealthy provider back.
const GOOD_TO_RECOVER: u32 = 2;
/// Answers that are no hard failures, in a row, that turn unhealthy into degraded: it is up, if poorly.
const SOFT_TO_RECOVER: u32 = 3;
/// A result is believed for this many intervals.
const STALE_INTERVALS: u32 = 3;
/// How soon a failure is looked at again while the verdict is pending.
const FAST: Duration = Duration::from_secs(5);
/// The unhealthy interval, at first and at most, and how long it stays at the first.
const UNHEALTHY_FIRST: Duration = Duration::from_secs(30);
const UNHEALTHY_MAX: Duration = Duration::from_secs(120);
const UNHEALTHY_PATIENCE: TimeDelta = TimeDelta::minutes(5);
/// Results that are remembered.
const REMEMBERED: u32 = 20;

/// A change of health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    pub from: HealthStatus,
    pub to: HealthStatus,
    pub at: DateTime<Utc>,
    /// For the operator. Comes from an outcome, which was redacted before.
    pub reason: String,
}

/// One provider's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthMachine {
    status: HealthStatus,
    since: Option<DateTime<Utc>>,
    /// The last result that counted; local ones do not.
    last_result: Option<DateTime<Utc>>,
    last_reason: String,
    hard_in_a_row: u32,
    good_in_a_row: u32,
    answered_in_a_row: u32,
    /// The newest result in the lowest bit; 1 is bad.
    history: u32,
    /// Results in `history`, at most 20.
    remembered: u32,
    /// Times that the unhealthy interval grew.
    backoff_steps: u32,
    /// The provider asked not to be called before.
    not_before: Option<DateTime<Utc>>,
    /// Until then results were not believed, so that nothing went stale.
    #[serde(skip)]
    held: Option<DateTime<Utc>>,
}

/// How much of a result is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// All of it.
    Full,
    /// A failure counts, but no transition to worse comes of it yet: it waits for what other hosts answer.
    NotWorse,
    /// The prober suspects itself: answers count, failures do not.
    Frozen,
}

impl Default for HealthMachine {
    fn default() -> Self {
        Self {
            status: HealthStatus::Unknown,
            since: None,
            last_result: None,
            last_reason: String::new(),
            hard_in_a_row: 0,
            good_in_a_row: 0,
            answered_in_a_row: 0,
            history: 0,
            remembered: 0,
            backoff_steps: 0,
            not_before: None,
            held: None,
        }
    }
}

impl HealthMachine {
    pub const fn status(&self) -> HealthStatus {
        self.status
    }

    /// When the status was entered.
    pub const fn since(&self) -> Option<DateTime<Utc>> {
        self.since
    }

    pub const fn last_result(&self) -> Option<DateTime<Utc>> {
        self.last_result
    }

    /// Why the last result was not good; empty when it was.
    pub fn last_reason(&self) -> &str {
        &self.last_reason
    }

    /// Failures stand that may yet make the provider unhealthy: it is re-checked fast.
    pub const fn is_pending(&self) -> bool {
        self.hard_in_a_row > 0 && !matches!(self.status, HealthStatus::Unhealthy)
    }

    /// Until when the provider asked to be left alone, where that is still to come.
    pub fn asked_to_wait(&self, now: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.not_before.filter(|until| now < *until)
    }

    /// Takes a result as far as it is believed. An answer always is; what is not believed leaves no trace, but keeps
    /// what is known from going stale.
    pub fn take(&mut self, now: DateTime<Utc>, outcome: &CheckOutcome, trust: Trust) -> Option<Transition> {
        let hard = matches!(outcome, CheckOutcome::Hard { .. });
        if trust == Trust::Frozen && hard {
            self.hold(now);
            return None;
        }
        if trust == Trust::Full {
            return self.observe(now, outcome);
        }
        let mut next = self.clone();
        let transition = next.observe(now, outcome);
        if transition.as_ref().is_some_and(Transition::is_worse) {
            self.hold(now);
            return None;
        }
        *self = next;
        transition
    }

    /// Takes back the failures in a row that have led to no verdict yet: the prober suspects itself.
    pub fn forgive(&mut self) {
        if self.is_pending() {
            let count = self.hard_in_a_row.min(self.remembered);
            self.history = self.history.checked_shr(count).unwrap_or(0);
            self.remembered -= count;
            self.hard_in_a_row = 0;
        }
    }

    /// Moves everything that is remembered by a jump of the wall clock.
    pub fn shift(&mut self, jump: TimeDelta) {
        for at in [&mut self.since, &mut self.last_result, &mut self.not_before, &mut self.held] {
            moved(at, jump);
        }
    }

    /// Takes a result. A refused key (`auth`) is a good answer here; a local failure is no result at all.
    pub fn observe(&mut self, now: DateTime<Utc>, outcome: &CheckOutcome) -> Option<Transition> {
        let (bad, hard) = match outcome {
            CheckOutcome::Local { .. } => return None,
            CheckOutcome::Ok | CheckOutcome::Auth { .. } => (false, false),
            CheckOutcome::Slow | CheckOutcome::Soft { .. } => (true, false),
            CheckOutcome::Hard { .. } => (true, true),
        };
        self.last_result = Some(now);
        self.last_reason = if bad { outcome.reason().to_owned() } else { String::new() };
        self.not_before = outcome.retry_after().and_then(|wait| after(now, wait.min(MAX_RETRY_AFTER)));
        self.hard_in_a_row = if hard { self.hard_in_a_row.saturating_add(1) } else { 0 };
        self.good_in_a_row = if bad { 0 } else { self.good_in_a_row.saturating_add(1) };
        self.answered_in_a_row = if hard { 0 } else { self.answered_in_a_row.saturating_add(1) };
        self.history = self.history << 1 | u32::from(bad);
        self.remembered = (self.remembered + 1).min(REMEMBERED);
        if self.status == HealthStatus::Unhealthy
            && self.since.is_some_and(|since| now - since >= UNHEALTHY_PATIENCE)
        {
            self.backoff_steps = (self.backoff_steps + 1).min(8);
        }
        let (to, reason) = self.verdict(outcome)?;
        Some(self.enter(now, to, reason))
    }

    /// The status that the results call for, where it is another one.
    fn verdict(&self, outcome: &CheckOutcome) -> Option<(HealthStatus, String)> {
        use HealthStatus as H;
        if self.hard_in_a_row >= HARD_IN_A_ROW && self.status != H::Unhealthy {
            return Some((
                H::Unhealthy,
                format!("{} failures in a row: {}", self.hard_in_a_row, outcome.reason()),
            ));
        }
        match self.status {
            H::Unknown if self.good_in_a_row > 0 => Some((H::Healthy, "answers".into())),
            // It answers, though never well: better said than left unknown.
            H::Unknown
                if self.remembered >= BAD_IN_A_ROW
                    && self.bad_among(BAD_IN_A_ROW) == BAD_IN_A_ROW
                    && self.answered_in_a_row > 0 =>
            {
                Some((H::Degraded, outcome.reason().to_owned()))
            }
            H::Healthy => self.degradation(outcome).map(|reason| (H::Degraded, reason)),
            H::Degraded if self.good_in_a_row >= GOOD_TO_SETTLE && self.flips() <= FLIPS_TO_SETTLE => {
                Some((H::Healthy, format!("{GOOD_TO_SETTLE} good answers in a row")))
            }
            H::Unhealthy if self.good_in_a_row >= GOOD_TO_RECOVER => {
                Some((H::Healthy, format!("{GOOD_TO_RECOVER} good answers in a row")))
            }
            H::Unhealthy if self.answered_in_a_row >= SOFT_TO_RECOVER => {
                Some((H::Degraded, format!("answers again, but not well: {}", outcome.reason())))
            }
            _ => None,
        }
    }

    fn degradation(&self, outcome: &CheckOutcome) -> Option<String> {
        let last = outcome.reason();
        if self.remembered >= BAD_IN_A_ROW && self.bad_among(BAD_IN_A_ROW) == BAD_IN_A_ROW {
            Some(format!("{BAD_IN_A_ROW} bad results in a row: {last}"))
        } else if self.bad_among(10) >= BAD_OF_LAST_10 {
            Some(format!("{BAD_OF_LAST_10} of the last 10 results were bad: {last}"))
        } else if self.flips() >= FLIPS_OF_LAST_20 {
            Some(format!("flapping: changed {FLIPS_OF_LAST_20} times within the last 20 results"))
        } else {
            None
        }
    }

    const fn bad_among(&self, last: u32) -> u32 {
        let count = if last < self.remembered { last } else { self.remembered };
        (self.history & ((1 << count) - 1)).count_ones()
    }

    /// Changes between good and bad among the remembered results.
    const fn flips(&self) -> u32 {
        if self.remembered < 2 {
            return 0;
        }
        ((self.history ^ self.history >> 1) & ((1 << (self.remembered - 1)) - 1)).count_ones()
    }

    fn enter(&mut self, now: DateTime<Utc>, to: HealthStatus, reason: String) -> Transition {
        let from = std::mem::replace(&mut self.status, to);
        self.since = Some(now);
        self.backoff_steps = 0;
        if to == HealthStatus::Healthy {
            // The results that led here must not speak against it a second time.
            self.history = 0;
            self.remembered = 0;
        }
        Transition { from, to, at: now, reason }
    }

    /// Forgets a status whose last result is older than three intervals. `regular` is the provider's own interval; the
    /// longer one of an unhealthy provider makes nothing stale, a wait that the provider asked for does.
    pub fn expire(&mut self, now: DateTime<Utc>, regular: Duration) -> Option<Transition> {
        if self.status == HealthStatus::Unknown {
            return None;
        }
        let last = self.last_result?;
        let allowed = regular.max(self.wanted(regular)).saturating_mul(STALE_INTERVALS);
        let counts = self.held.map_or(last, |held| held.max(last));
        if after(counts, allowed).is_none_or(|limit| now <= limit) {
            return None;
        }
        let asked = match self.asked_to_wait(now) {
            Some(until) => format!("; it asked to wait until {}", until.format("%Y-%m-%dT%H:%M:%SZ")),
            None => String::new(),
        };
        self.history = 0;
        self.remembered = 0;
        self.hard_in_a_row = 0;
        self.good_in_a_row = 0;
        self.answered_in_a_row = 0;
        let reason = format!("no result since {}{asked}", last.format("%Y-%m-%dT%H:%M:%SZ"));
        Some(self.enter(now, HealthStatus::Unknown, reason))
    }

    /// Keeps the status from going stale while results are not believed.
    pub fn hold(&mut self, now: DateTime<Utc>) {
        self.held = Some(self.held.map_or(now, |held| held.max(now)));
    }

    /// How long after the last result we would ask again by ourselves.
    fn wanted(&self, regular: Duration) -> Duration {
        match self.status {
            HealthStatus::Unhealthy => {
                UNHEALTHY_FIRST.mul_f64(1.5_f64.powi(self.backoff_steps.min(8) as i32)).min(UNHEALTHY_MAX)
            }
            _ if self.is_pending() => FAST.min(regular),
            _ => regular,
        }
    }

    /// How long after the last result the next check is due; spread and jitter come on top.
    pub fn delay(&self, now: DateTime<Utc>, regular: Duration) -> Duration {
        let wanted = self.wanted(regular);
        let asked = self.not_before.zip(self.last_result.or(Some(now)));
        let asked = asked.and_then(|(until, last)| (until - last).to_std().ok()).unwrap_or_default();
        wanted.max(asked)
    }

    /// When the next check is due; at once where there was none.
    pub fn next_check(&self, now: DateTime<Utc>, regular: Duration) -> DateTime<Utc> {
        match self.last_result {
            Some(last) => after(last, self.delay(now, regular)).unwrap_or(now),
            None => now,
        }
    }
}

impl Transition {
    /// Whether it says that the provider does worse than was known.
    pub fn is_worse(&self) -> bool {
        use HealthStatus as H;
        match (self.from, self.to) {
            // It answers, though never well: that hides nothing.
            (H::Unknown, H::Degraded) => false,
            (_, H::Unhealthy) | (H::Healthy, H::Degraded | H::Unknown) | (H::Degraded, H::Unknown) => true,
            _ => false,
        }
    }
}

/// Moves a time; one that would leave the calendar is forgotten.
fn moved(at: &mut Option<DateTime<Utc>>, jump: TimeDelta) {
    *at = at.and_then(|at| at.checked_add_signed(jump));
}

/// `None` only beyond the end of the calendar.
fn after(at: DateTime<Utc>, wait: Duration) -> Option<DateTime<Utc>> {
    at.checked_add_signed(TimeDelta::from_std(wait).ok()?)
}

// ---------------------------------------------------------------- keys

/// Between the two rejections that make a key failed.
const CONFIRM_AFTER: Duration = Duration::from_secs(30);
/// A valid key is doubted after this long without a proof.
const PROOF_AGE: TimeDelta = TimeDelta::hours(24);
const RETEST_VALID: Duration = Duration::from_secs(6 * 3600);
const RETEST_FAILED: (Duration, Duration) = (Duration::from_secs(15 * 60), Duration::from_secs(6 * 3600));
const RETEST_ERROR: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(30 * 60));
/// Spread of re-tests, so that keys which changed together are not tested together for ever.
const JITTER: f64 = 0.10;

/// A change of a key's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTransition {
    pub from: KeyStatus,
    pub to: KeyStatus,
    pub at: DateTime<Utc>,
    pub reason: String,
}

/// One key's status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyMachine {
    status: KeyStatus,
    since: Option<DateTime<Utc>>,
    last_test: Option<DateTime<Utc>>,
    last_proof: Option<DateTime<Utc>>,
    /// The first of the rejections that have not been answered by a proof.
    first_rejection: Option<DateTime<Utc>>,
    /// What the last test found; may differ from the status.
    last_evidence: LastTest,
    last_reason: String,
    /// Tests in a row that ended like the last one.
    repeats: u32,
    not_before: Option<DateTime<Utc>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LastTest {
    #[default]
    None,
    Proof,
    Rejection,
    Nothing,
}

impl Default for KeyMachine {
    fn default() -> Self {
        Self {
            status: KeyStatus::Pending,
            since: None,
            last_test: None,
            last_proof: None,
            first_rejection: None,
            last_evidence: LastTest::None,
            last_reason: String::new(),
            repeats: 0,
            not_before: None,
        }
    }
}

impl KeyMachine {
    pub const fn status(&self) -> KeyStatus {
        self.status
    }

    pub const fn since(&self) -> Option<DateTime<Utc>> {
        self.since
    }

    pub const fn last_test(&self) -> Option<DateTime<Utc>> {
        self.last_test
    }

    pub const fn last_proof(&self) -> Option<DateTime<Utc>> {
        self.last_proof
    }

    /// What the last test said; empty for a plainly valid key.
    pub fn last_reason(&self) -> &str {
        &self.last_reason
    }

    /// When a key was rejected first, where a second rejection is still to confirm it.
    pub fn rejected_once(&self) -> Option<DateTime<Utc>> {
        self.first_rejection.filter(|_| self.status != KeyStatus::Failed)
    }

    /// Moves everything that is remembered by a jump of the wall clock.
    pub fn shift(&mut self, jump: TimeDelta) {
        for at in [
            &mut self.since,
            &mut self.last_test,
            &mut self.last_proof,
            &mut self.first_rejection,
            &mut self.not_before,
        ] {
            moved(at, jump);
        }
    }

    /// Another key: everything known about the old one is forgotten, and it is tested at once.
    pub fn key_changed(&mut self, now: DateTime<Utc>) -> Option<KeyTransition> {
        let from = self.status;
        *self = Self { since: Some(now), ..Self::default() };
        (from != KeyStatus::Pending).then(|| KeyTransition {
            from,
            to: KeyStatus::Pending,
            at: now,
            reason: "the key changed".into(),
        })
    }

    /// Takes the result of a test.
    pub fn observe(
        &mut self,
        now: DateTime<Utc>,
        verdict: &KeyVerdict,
        retry_after: Option<Duration>,
    ) -> Option<KeyTransition> {
        let evidence = match verdict.evidence() {
            Evidence::Proof => LastTest::Proof,
            Evidence::Rejection => LastTest::Rejection,
            Evidence::Nothing => LastTest::Nothing,
        };
        self.repeats = if evidence == self.last_evidence { self.repeats.saturating_add(1) } else { 0 };
        self.last_evidence = evidence;
        self.last_test = Some(now);
        self.last_reason = verdict.reason().to_owned();
        self.not_before = retry_after.and_then(|wait| after(now, wait.min(MAX_RETRY_AFTER)));
        let to = match evidence {
            LastTest::Proof => {
                self.last_proof = Some(now);
                self.first_rejection = None;
                KeyStatus::Valid
            }
            LastTest::Rejection => {
                let first = *self.first_rejection.get_or_insert(now);
                // Also while the clock was set back: the first one then counts from its new beginning.
                if now < first {
                    self.first_rejection = Some(now);
                }
                match (now - first).to_std() {
                    Ok(apart) if apart >= CONFIRM_AFTER => KeyStatus::Failed,
                    _ => self.status,
                }
            }
            LastTest::Nothing | LastTest::None => match self.status {
                KeyStatus::Failed => KeyStatus::Failed,
                KeyStatus::Valid if self.last_proof.is_some_and(|proof| now - proof < PROOF_AGE) => {
                    KeyStatus::Valid
                }
                _ => KeyStatus::Error,
            },
        };
        if to == self.status {
            return None;
        }
        self.repeats = 0;
        let from = std::mem::replace(&mut self.status, to);
        self.since = Some(now);
        let reason = match to {
            KeyStatus::Valid if self.last_reason.is_empty() => "the provider accepts the key".into(),
            _ => self.last_reason.clone(),
        };
        Some(KeyTransition { from, to, at: now, reason })
    }

    /// How long after the last test the next one is due.
    pub fn delay(&self) -> Duration {
        let wanted = match (self.last_evidence, self.status) {
            (LastTest::None, _) => Duration::ZERO,
            (LastTest::Proof, _) => RETEST_VALID,
            (LastTest::Rejection, KeyStatus::Failed) | (LastTest::Nothing, KeyStatus::Failed) => {
                doubled(RETEST_FAILED, self.repeats)
            }
            // To be confirmed.
            (LastTest::Rejection, _) => CONFIRM_AFTER,
            (LastTest::Nothing, _) => doubled(RETEST_ERROR, self.repeats),
        };
        let asked = self.not_before.zip(self.last_test);
        wanted.max(asked.and_then(|(until, test)| (until - test).to_std().ok()).unwrap_or_default())
    }

    /// When the next test is due; at once for a new key. `unit`, from -1 to 1, spreads it by up to 10 %; it never
    /// comes before its time where that has a meaning (a confirmation, a `Retry-After`).
    pub fn next_test(&self, now: DateTime<Utc>, unit: f64) -> DateTime<Utc> {
        let Some(last) = self.last_test else { return now };
        let delay = self.delay();
        let exact = delay == CONFIRM_AFTER || self.not_before.is_some();
        let unit = if unit.is_finite() { unit.clamp(-1.0, 1.0) } else { 0.0 };
        let unit = if exact { unit.abs() } else { unit };
        after(last, delay.mul_f64(1.0 + JITTER * unit)).unwrap_or(now)
    }
}

fn doubled((first, most): (Duration, Duration), times: u32) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(most)
}
