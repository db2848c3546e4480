//! What follows an outcome: the next attempt, a commitment, an answer.
//!
//! Its job: one request's way through its candidates, as a state machine of values; the clocks of an attempt; the
//! budget that keeps retries from growing a storm. Not its job: waiting, sending, and who is to blame (`pulse`).
//! Invariants: at most [`MAX_CANDIDATES`] candidates and one repeat are asked; none after content or after the caller
//! left; every course ends.

use std::time::Duration;

use provider::{dialect::FailureClass, words};

use crate::{
    decide::RouteCandidate,
    error::{ErrorCode, ErrorSource, GatewayError},
    picture::Clocks,
    tick::Tick,
};

/// Candidates that one request may ask.
pub const MAX_CANDIDATES: u32 = 3;

/// A provider's `Retry-After` that a repeat waits for; callers rather wait longer themselves.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Pause before a repeat where the provider names none, and as much again by chance, so that repeats do not arrive
/// together.
const PAUSE_MILLIS: u64 = 100;

words! {
    /// A clock that ran out.
    Clock { Connect = "connect", FirstToken = "first_token", Idle = "idle", Total = "total" }
}

/// How an attempt went, as the edge saw it. Several may follow each other: content, then its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptOutcome {
    /// The first content is there, or a plain answer whole and good.
    Content,
    /// The answer is whole.
    Finished,
    /// Not asked: it has begun to cool, or has as many requests as it may have.
    Busy,
    /// Not asked: what the request wants cannot be said in its dialect.
    Unfit,
    /// Resolving, connecting or TLS failed.
    ConnectFailed,
    TimedOut(Clock),
    /// The connection broke, or the stream ended without the mark of a whole one.
    BrokenOff,
    /// What came is no answer.
    Garbage,
    /// A status that is no success.
    Status {
        status: u16,
        retry_after: Option<Duration>,
    },
    /// An error inside a 200, with the status it stands for where that is known.
    InBand {
        status: Option<u16>,
        retry_after: Option<Duration>,
    },
    /// The provider says that the input does not fit.
    ContextOverflow,
    CallerLeft,
    /// Descriptors, memory or resolver of our own.
    OwnFault,
    /// The process ends.
    Stopping,
}

impl AttemptOutcome {
    /// What an error of a provider's own words comes to. Its class says more than its status: some refuse a key
    /// with 400 and an empty account with 429. `in_band`: it came inside a success.
    pub const fn of_failure(class: FailureClass, in_band: bool, retry_after: Option<Duration>) -> Self {
        let status = match class {
            FailureClass::ContextOverflow => return Self::ContextOverflow,
            FailureClass::Truncated => return Self::BrokenOff,
            FailureClass::Malformed => return Self::Garbage,
            FailureClass::Invalid | FailureClass::Unsupported | FailureClass::Policy => 400,
            FailureClass::TooLarge => 413,
            FailureClass::Auth => 401,
            FailureClass::NoCredit => 402,
            FailureClass::NotFound => 404,
            FailureClass::RateLimit => 429,
            FailureClass::Overloaded => 503,
            FailureClass::Server => 500,
            FailureClass::Timeout => 504,
        };
        if in_band {
            Self::InBand { status: Some(status), retry_after }
        } else {
            Self::Status { status, retry_after }
        }
    }

    /// The status that a provider gave, or means.
    pub const fn status(self) -> Option<u16> {
        match self {
            Self::Status { status, .. } => Some(status),
            Self::InBand { status, .. } => status,
            _ => None,
        }
    }

    pub const fn retry_after(self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::InBand { retry_after, .. } => retry_after,
            _ => None,
        }
    }

    /// A word of a bounded set, for metrics, rows and logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Content => "content",
            Self::Finished => "ok",
            Self::Busy => "busy",
            Self::Unfit => "unfit",
            Self::ConnectFailed => "connect_failed",
            Self::TimedOut(Clock::Connect) => "timeout_connect",
            Self::TimedOut(Clock::FirstToken) => "timeout_first_token",
            Self::TimedOut(Clock::Idle) => "timeout_idle",
            Self::TimedOut(Clock::Total) => "timeout_total",
            Self::BrokenOff => "broken_off",
            Self::Garbage => "garbage",
            Self::InBand { .. } => "in_band",
            Self::ContextOverflow => "context_overflow",
            Self::CallerLeft => "caller_left",
            Self::OwnFault => "own_fault",
            Self::Stopping => "shutting_down",
            Self::Status { status, .. } => match status {
                401..=403 => "auth",
                404 => "not_found",
                408 => "status_408",
                429 => "rate_limited",
                400..=499 => "refused",
                500..=599 => "status_5xx",
                _ => "status_other",
            },
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CourseStep {
    /// Ask this candidate, not before that moment.
    Ask {
        /// Index into the decision's candidates.
        candidate: usize,
        /// It was asked before.
        repeat: bool,
        not_before: Tick,
    },
    /// Show the answer, and report what becomes of it.
    Commit,
    /// The provider's own refusal is the answer, masked.
    PassOn,
    /// Answer this.
    Fail(GatewayError),
    /// End the stream that the caller already reads with this.
    Truncate(GatewayError),
    /// Nothing is left to do.
    End,
}

/// Whether one more attempt may follow a failure at that upstream.
pub trait RetryAllowance {
    /// `failed` indexes the picture's upstreams. Taking is spending.
    fn take(&self, failed: u32, now: Tick) -> bool;
}

/// One candidate, as far as a course looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Leg {
    upstream: u32,
    window: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asking,
    Relaying,
    Over,
}

/// One request's way.
#[derive(Debug, Clone)]
pub struct Course {
    legs: Vec<Leg>,
    at: usize,
    stage: Stage,
    candidates_asked: u32,
    attempts: u32,
    repeated: bool,
    /// Only larger windows than this make sense.
    above: Option<u64>,
    total: Tick,
    seed: u64,
    out_of_budget: bool,
    /// What a candidate before the present one failed with: says more than that the last ones were busy.
    failed: Option<GatewayError>,
}

impl Course {
    /// A course through `candidates`, to end within `total` of now.
    pub fn new(candidates: &[RouteCandidate], total: Duration, seed: u64, now: Tick) -> Self {
        let leg = |candidate: &RouteCandidate| Leg { upstream: candidate.upstream, window: candidate.window };
        Self {
            legs: candidates.iter().map(leg).collect(),
            at: 0,
            stage: Stage::Asking,
            candidates_asked: 0,
            attempts: 0,
            repeated: false,
            above: None,
            total: now.after(total),
            seed,
            out_of_budget: false,
            failed: None,
        }
    }

    /// The first step.
    pub fn first(&mut self, now: Tick) -> CourseStep {
        if self.legs.is_empty() {
            return self.fail(GatewayError::new(ErrorCode::NoUpstream, "there is no candidate"));
        }
        self.ask(0, false, now)
    }

    /// What follows an outcome of the candidate that was asked last.
    pub fn follow(
        &mut self,
        outcome: AttemptOutcome,
        now: Tick,
        allowance: &dyn RetryAllowance,
    ) -> CourseStep {
        match (self.stage, outcome) {
            (Stage::Over, _) => CourseStep::End,
            (_, AttemptOutcome::CallerLeft | AttemptOutcome::Finished) => self.end(CourseStep::End),
            (Stage::Relaying, AttemptOutcome::Content | AttemptOutcome::Busy) => CourseStep::Commit,
            (Stage::Relaying, outcome) => {
                let error = self.error(outcome);
                self.end(CourseStep::Truncate(cut_short(error)))
            }
            (Stage::Asking, AttemptOutcome::Content) => {
                self.stage = Stage::Relaying;
                CourseStep::Commit
            }
            (Stage::Asking, AttemptOutcome::Stopping) => {
                let error = self.error(outcome);
                self.fail(error)
            }
            (Stage::Asking, outcome) => self.after_failure(outcome, now, allowance),
        }
    }

    fn after_failure(
        &mut self,
        outcome: AttemptOutcome,
        now: Tick,
        allowance: &dyn RetryAllowance,
    ) -> CourseStep {
        let Some(leg) = self.legs.get(self.at).copied() else { return self.end(CourseStep::End) };
        if matches!(outcome, AttemptOutcome::Busy | AttemptOutcome::Unfit) {
            // It was not asked: that costs no candidate and no budget.
            self.candidates_asked = self.candidates_asked.saturating_sub(u32::from(!self.repeated));
            self.attempts = self.attempts.saturating_sub(1);
        }
        match fate(outcome) {
            Fate::Answer => return self.end(CourseStep::PassOn),
            Fate::Larger => {
                let Some(window) = leg.window else { return self.end(CourseStep::PassOn) };
                self.above = Some(self.above.map_or(window, |above| above.max(window)));
            }
            Fate::Next | Fate::Repeat => {}
        }
        let error = self.error(outcome);
        let next = (self.at + 1..self.legs.len()).find(|at| {
            let window = self.legs.get(*at).and_then(|leg| leg.window);
            self.above.is_none_or(|above| window.is_some_and(|window| window > above))
        });
        let next = next.filter(|_| self.candidates_asked < MAX_CANDIDATES);
        let late = now >= self.total;
        let free =
            matches!(outcome, AttemptOutcome::Busy | AttemptOutcome::Unfit | AttemptOutcome::ContextOverflow);
        if outcome == AttemptOutcome::ContextOverflow && (next.is_none() || late) {
            return self.end(CourseStep::PassOn);
        }
        let step = match next {
            _ if late => None,
            Some(next) => Some((next, false, now)),
            None => self.pause(outcome, now).map(|not_before| (self.at, true, not_before)),
        };
        let Some((candidate, repeat, not_before)) = step else {
            let error = match (outcome, self.failed.take()) {
                (AttemptOutcome::Busy | AttemptOutcome::Unfit, Some(before)) => before,
                // The reason stands in the request.
                (AttemptOutcome::Unfit, None) if !late => return self.end(CourseStep::PassOn),
                _ => error,
            };
            return self.fail(error);
        };
        if !free && !allowance.take(leg.upstream, now) {
            self.out_of_budget = true;
            return self.fail(error);
        }
        match outcome {
            // Another time it may be asked, so a later one that never can says less.
            AttemptOutcome::Busy => drop(self.failed.get_or_insert(error)),
            AttemptOutcome::Unfit => {}
            _ => self.failed = Some(error),
        }
        self.ask(candidate, repeat, not_before)
    }

    /// When the candidate may be asked once more; `None`: it makes no sense, or was done already.
    fn pause(&self, outcome: AttemptOutcome, now: Tick) -> Option<Tick> {
        if self.repeated || fate(outcome) != Fate::Repeat {
            return None;
        }
        let pause = match outcome.retry_after() {
            Some(named) => (named <= LONGEST_PAUSE).then_some(named)?,
            // A rate limit that names no time is not over after a tenth of a second.
            None if outcome.status() == Some(429) => return None,
            None => Duration::from_millis(PAUSE_MILLIS + self.seed % PAUSE_MILLIS),
        };
        let moment = now.after(pause);
        (moment < self.total).then_some(moment)
    }

    fn ask(&mut self, candidate: usize, repeat: bool, not_before: Tick) -> CourseStep {
        self.at = candidate;
        self.attempts += 1;
        if repeat {
            self.repeated = true;
        } else {
            self.candidates_asked += 1;
        }
        CourseStep::Ask { candidate, repeat, not_before }
    }

    fn end(&mut self, step: CourseStep) -> CourseStep {
        self.stage = Stage::Over;
        step
    }

    fn fail(&mut self, error: GatewayError) -> CourseStep {
        // A client that asks again by itself would multiply what was done here already.
        let error = if self.attempts > 1 && error.retry_after.is_none() { error.exhausted() } else { error };
        self.end(CourseStep::Fail(error))
    }

    /// What an outcome is called towards the caller, if it is the last one.
    fn error(&self, outcome: AttemptOutcome) -> GatewayError {
        let error = |code, message: &str| GatewayError::new(code, message);
        let made = match outcome {
            AttemptOutcome::TimedOut(clock) => {
                let message = format!("the provider did not keep to the clock `{clock}`");
                GatewayError::new(ErrorCode::UpstreamTimeout, message).param(clock.as_str())
            }
            AttemptOutcome::Status { status: 401..=403, .. }
            | AttemptOutcome::InBand { status: Some(401..=403), .. } => {
                error(ErrorCode::UpstreamAuth, "the provider does not accept the gateway's key for this")
            }
            AttemptOutcome::Status { status: 429, .. } | AttemptOutcome::InBand { status: Some(429), .. } => {
                let mut limited = error(ErrorCode::RateLimitExceeded, "the provider limits the rate");
                limited.blame = ErrorSource::Upstream;
                limited
            }
            AttemptOutcome::Status { status, .. } => GatewayError::new(
                ErrorCode::UpstreamError,
                format!("the provider answered with status {status}"),
            ),
            AttemptOutcome::InBand { .. } => {
                error(ErrorCode::UpstreamError, "the provider answered with an error inside a success")
            }
            AttemptOutcome::ConnectFailed => {
                error(ErrorCode::UpstreamError, "the provider could not be reached")
            }
            AttemptOutcome::BrokenOff => {
                error(ErrorCode::UpstreamError, "the connection to the provider broke off")
            }
            AttemptOutcome::Garbage => error(ErrorCode::UpstreamError, "what the provider sent is no answer"),
            AttemptOutcome::ContextOverflow => {
                error(ErrorCode::ContextLengthExceeded, "the input does not fit the model's context")
            }
            AttemptOutcome::Stopping => error(ErrorCode::ShuttingDown, "the gateway is shutting down"),
            AttemptOutcome::CallerLeft => error(ErrorCode::CallerLeft, "the caller left"),
            AttemptOutcome::Busy => {
                error(ErrorCode::Overloaded, "the providers have as many requests as they may have at once")
                    .retry_after(Duration::from_secs(1))
            }
            AttemptOutcome::Unfit => {
                error(ErrorCode::UnsupportedParameter, "no provider takes all of what the request asks for")
            }
            AttemptOutcome::OwnFault | AttemptOutcome::Content | AttemptOutcome::Finished => {
                error(ErrorCode::Overloaded, "the gateway lacks the means to ask")
                    .retry_after(Duration::from_secs(1))
            }
        };
        match outcome.retry_after() {
            Some(after) => made.retry_after(after),
            None => made,
        }
    }

    /// Attempts so far, the one under way included.
    pub const fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Index of the candidate that is or was asked last.
    pub const fn candidate(&self) -> usize {
        self.at
    }

    /// Content has been shown: nothing but this provider's answer can follow.
    pub const fn committed(&self) -> bool {
        matches!(self.stage, Stage::Relaying)
    }

    /// The answer does not come from the first candidate.
    pub const fn was_fallback(&self) -> bool {
        self.at > 0
    }

    /// A further attempt was due, and the retry budget forbade it.
    pub const fn out_of_budget(&self) -> bool {
        self.out_of_budget
    }

    /// The clocks of an attempt that begins now; the request's own end bounds them all.
    pub fn deadlines(&self, clocks: &Clocks, stream: bool, now: Tick) -> AttemptDeadlines {
        let total = now.after(total_of(clocks, stream)).min(self.total);
        AttemptDeadlines {
            connect: now.after(clocks.connect).min(total),
            first_token: now.after(clocks.first_token).min(total),
            idle: clocks.idle,
            total,
        }
    }
}

/// How long an answer may take as a whole.
pub const fn total_of(clocks: &Clocks, stream: bool) -> Duration {
    if stream { clocks.total_streaming } else { clocks.total }
}

/// Until when each phase of an attempt must be over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptDeadlines {
    pub connect: Tick,
    /// Any content; comments and empty deltas are none.
    pub first_token: Tick,
    /// From one byte of the answer to the next.
    pub idle: Duration,
    pub total: Tick,
}

impl AttemptDeadlines {
    /// The clock that runs out first while connecting or before content; `last_byte` of the answer, if any came.
    pub fn before_content(&self, connected: bool, last_byte: Option<Tick>) -> (Tick, Clock) {
        let phase =
            if connected { (self.first_token, Clock::FirstToken) } else { (self.connect, Clock::Connect) };
        self.nearest(phase, last_byte)
    }

    /// The clock that runs out first while content flows.
    pub fn relaying(&self, last_byte: Tick) -> (Tick, Clock) {
        self.nearest((self.total, Clock::Total), Some(last_byte))
    }

    fn nearest(&self, phase: (Tick, Clock), last_byte: Option<Tick>) -> (Tick, Clock) {
        let idle = last_byte.map(|last| (last.after(self.idle), Clock::Idle));
        let total = (self.total, Clock::Total);
        // Of two that end together the wider one is named: the request's end is the reason.
        [Some(total), idle, Some(phase)].into_iter().flatten().min_by_key(|(tick, _)| *tick).unwrap_or(total)
    }
}

/// What an outcome before content leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The next candidate; where there is none, the same once more.
    Repeat,
    /// The next candidate.
    Next,
    /// A candidate with a larger window.
    Larger,
    /// It is the caller's own mistake, and the answer.
    Answer,
}

const fn fate(outcome: AttemptOutcome) -> Fate {
    match outcome {
        AttemptOutcome::ContextOverflow => Fate::Larger,
        AttemptOutcome::ConnectFailed
        | AttemptOutcome::TimedOut(Clock::Connect)
        | AttemptOutcome::BrokenOff
        | AttemptOutcome::InBand { status: None, .. } => Fate::Repeat,
        AttemptOutcome::Status { status, .. } | AttemptOutcome::InBand { status: Some(status), .. } => {
            match status {
                400 | 404 | 413 | 422 => Fate::Answer,
                408 | 429 | 500..=599 => Fate::Repeat,
                _ => Fate::Next,
            }
        }
        // Who has waited for the first token once shall not wait for it twice at the same place.
        _ => Fate::Next,
    }
}

/// An error after content: half an answer was read, whatever the reason.
fn cut_short(error: GatewayError) -> GatewayError {
    match error.code {
        ErrorCode::ShuttingDown | ErrorCode::UpstreamTimeout => error,
        _ => {
            let message = format!("the answer is not whole: {}", error.message);
            let mut cut = GatewayError::new(ErrorCode::UpstreamTruncated, message);
            cut.retry_after = error.retry_after;
            cut
        }
    }
}

/// Retries after failures at one origin: a fifth of the requests that went there first, over ten seconds.
#[derive(Debug, Clone, Default)]
pub struct RetryBudget {
    /// First attempts and retries, by second.
    slots: [(u32, u32); RetryBudget::SECONDS],
    /// The second of the newest slot.
    newest: u64,
}

impl RetryBudget {
    const SECONDS: usize = 10;

    /// Part of the first attempts: one in so many.
    const ONE_IN: u32 = 5;

    /// Retries that are free: without them the first failure of a quiet hour could not be survived. Beyond 50 requests
    /// in ten seconds it makes no difference.
    const FREE: u32 = 10;

    fn slot(&mut self, now: Tick) -> Option<&mut (u32, u32)> {
        let second = now.0 / 1_000;
        let length = Self::SECONDS as u64;
        let gone = second.saturating_sub(self.newest).min(length);
        for passed in 1..=gone {
            let at = usize::try_from((self.newest + passed) % length).unwrap_or(0);
            if let Some(slot) = self.slots.get_mut(at) {
                *slot = (0, 0);
            }
        }
        // After a long silence every slot is empty, whichever seconds they stood for.
        self.newest = self.newest.max(second);
        let at = usize::try_from(self.newest % length).unwrap_or(0);
        self.slots.get_mut(at)
    }

    /// A request is asked here first.
    pub fn first(&mut self, now: Tick) {
        if let Some(slot) = self.slot(now) {
            slot.0 = slot.0.saturating_add(1);
        }
    }

    /// Takes one retry, if one is left.
    pub fn take(&mut self, now: Tick) -> bool {
        // Makes the present second's slot, and empties those that are over.
        self.slot(now);
        let (firsts, retries) = self
            .slots
            .iter()
            .fold((0_u32, 0_u32), |sum, slot| (sum.0.saturating_add(slot.0), sum.1.saturating_add(slot.1)));
        if retries >= (firsts / Self::ONE_IN).max(Self::FREE) {
            return false;
        }
        if let Some(slot) = self.slot(now) {
            slot.1 = slot.1.saturating_add(1);
        }
        true
    }
}

#[cfg(test)]
mod tests;
