//! Bodies of answers: a whole one, a stream that is relayed as it comes, and a stream whose answer is still awaited.
//!
//! Not its job: choosing who answers (`trip`), what is seen in the bytes (`tap`), their translation (`reading`).
//!
//! Invariants: what a provider sent in the caller's dialect leaves as it came; a stream that is not whole ends with an error in the caller's
//! dialect and without the mark of a whole one; dropping a body closes the connection to the provider with it.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;

use net::pool::PooledAnswer;

use crate::account::{Account, Ending, LEFT};
use crate::course::{AttemptDeadlines, AttemptOutcome, Course, CourseStep};
use crate::error::{ErrorCode, GatewayError};
use crate::guard::KeyGuard;
use crate::meter::Meters;
use crate::picture::Api;
use crate::pulse::{Flight, Heard};
use crate::reading::AnswerReading;
use crate::serve::{Edge, tick};
use crate::tap::TapShape;
use crate::tick::Tick;
use crate::trip::Resolved;

/// Bytes that are read on after the caller left, where a provider's manifest wants the usage of the whole answer.
const DRAIN_MAX: u64 = 16 * 1024 * 1024;
/// How long.
const DRAIN_FOR: Duration = Duration::from_secs(60);
/// A comment of a stream: keeps connections alive, and is no event.
const KEEPALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

/// The body of an answer of the gateway. Its errors never happen: what goes wrong is said inside.
pub enum GatewayBody {
    /// Known as a whole.
    Whole(Bytes),
    /// Relayed as it comes.
    Stream(Box<StreamRelay>),
    /// Nothing to show yet; the connection is kept alive.
    Awaited(Box<AwaitedStream>),
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let found = match &mut *self {
            Self::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Whole(bytes) => Poll::Ready(Some(std::mem::take(bytes))),
            Self::Stream(relay) => relay.next(context),
            Self::Awaited(awaited) => match awaited.next(context) {
                Poll::Ready(Awaiting::Bytes(bytes)) => Poll::Ready(Some(bytes)),
                Poll::Ready(Awaiting::Stream(mut relay)) => {
                    let first = relay.next(context);
                    *self = Self::Stream(relay);
                    first
                }
                Poll::Ready(Awaiting::Last(bytes)) => {
                    *self = Self::Whole(Bytes::new());
                    Poll::Ready(Some(bytes))
                }
                Poll::Pending => Poll::Pending,
            },
        };
        found.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            _ => SizeHint::default(),
        }
    }
}

/// A stream on its way to the caller.
pub struct StreamRelay {
    /// `None`: it ended.
    body: Option<PooledAnswer>,
    /// To be shown next.
    queue: VecDeque<Bytes>,
    reading: AnswerReading,
    shape: TapShape,
    api: Api,
    account: Account,
    flight: Flight,
    course: Course,
    deadlines: AttemptDeadlines,
    last_byte: Instant,
    timer: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    start: Instant,
    request_id: Box<str>,
    /// The provider reads on where the caller left.
    drain: bool,
    edge: Arc<Edge>,
    settled: bool,
}

/// What a relay is made of.
pub(crate) struct Relaying {
    pub body: PooledAnswer,
    pub unshown: Vec<Bytes>,
    pub reading: AnswerReading,
    pub ended: bool,
    pub shape: TapShape,
    pub api: Api,
    pub account: Account,
    pub flight: Flight,
    pub course: Course,
    pub deadlines: AttemptDeadlines,
    pub start: Instant,
    pub request_id: Box<str>,
    pub drain: bool,
    pub edge: Arc<Edge>,
}

impl StreamRelay {
    pub(crate) fn new(from: Relaying) -> Self {
        let now = Instant::now();
        from.edge.meters.streams.inc();
        let mut relay = Self {
            body: Some(from.body),
            queue: from.unshown.into(),
            reading: from.reading,
            shape: from.shape,
            api: from.api,
            account: from.account,
            flight: from.flight,
            course: from.course,
            last_byte: now,
            timer: Box::pin(sleep_until(now + from.deadlines.idle)),
            deadlines: from.deadlines,
            cut: Box::pin(from.edge.cut.clone().cancelled_owned()),
            start: from.start,
            request_id: from.request_id,
            drain: from.drain,
            edge: from.edge,
            settled: false,
        };
        if from.ended {
            relay.ended();
        } else {
            relay.check_failure();
            relay.check_whole();
        }
        relay
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        loop {
            if let Some(bytes) = self.queue.pop_front() {
                return Poll::Ready(Some(bytes));
            }
            let Some(body) = &mut self.body else { return Poll::Ready(None) };
            match Pin::new(body).poll_frame(context) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else { continue };
                    self.last_byte = Instant::now();
                    let queue = &mut self.queue;
                    self.reading.feed(&data, |part| queue.push_back(part));
                    self.check_failure();
                    self.check_whole();
                }
                Poll::Ready(Some(Err(_))) if self.is_whole() => self.ended(),
                Poll::Ready(Some(Err(_))) => self.broke(AttemptOutcome::BrokenOff),
                Poll::Ready(None) => {
                    let queue = &mut self.queue;
                    self.reading.end(|part| queue.push_back(part));
                    self.ended();
                }
                Poll::Pending => {
                    if self.cut.as_mut().poll(context).is_ready() {
                        if self.settled {
                            self.body = None;
                        } else {
                            self.broke(AttemptOutcome::Stopping);
                        }
                        continue;
                    }
                    if self.timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                    // The timer is set once and looked at when it fires, not moved with every event.
                    let (tick, clock) = self.deadlines.relaying(self.tick(self.last_byte));
                    let deadline = self.start + Duration::from_millis(tick.0);
                    if deadline > Instant::now() {
                        self.timer.as_mut().reset(deadline);
                    } else if self.is_whole() {
                        self.ended();
                    } else {
                        self.broke(AttemptOutcome::TimedOut(clock));
                    }
                }
            }
        }
    }

    fn tick(&self, at: Instant) -> Tick {
        tick(at.saturating_duration_since(self.start))
    }

    /// What came so far is a whole answer.
    fn is_whole(&self) -> bool {
        self.reading.is_whole()
    }

    /// A translation found an error, an early end or nonsense in what came: nothing follows it.
    fn check_failure(&mut self) {
        if let Some(failure) = self.reading.failure() {
            let retry_after = failure.retry_after.map(Duration::from_secs);
            self.broke(AttemptOutcome::of_failure(failure.class, true, retry_after));
        }
    }

    /// The mark of a whole answer is there: the account is closed before the caller sees it. Many callers leave at the
    /// mark, and a caller that saw a whole answer finds it in the log, whatever happens next.
    fn check_whole(&mut self) {
        let sums = self.reading.sums();
        if sums.ended && !sums.error && self.is_whole() {
            self.settle(AttemptOutcome::Finished, "");
        }
    }

    /// The provider's bytes ended in order.
    fn ended(&mut self) {
        if self.reading.failure().is_some() {
            return self.check_failure();
        }
        match (self.is_whole(), self.reading.sums().error) {
            (true, false) => self.settle(AttemptOutcome::Finished, ""),
            // The provider's own error event stands in the stream: a second one would contradict it.
            (_, true) => {
                self.settle(AttemptOutcome::InBand { status: None, retry_after: None }, "upstream_error")
            }
            (false, false) => return self.broke(AttemptOutcome::BrokenOff),
        }
        self.body = None;
    }

    /// The stream cannot go on: its last event says why.
    fn broke(&mut self, outcome: AttemptOutcome) {
        self.body = None;
        let now = self.tick(Instant::now());
        let error = match self.course.follow(outcome, now, &NoRetry) {
            CourseStep::Truncate(error) => error,
            _ => GatewayError::new(ErrorCode::UpstreamTruncated, "the answer is not whole"),
        };
        let sums = self.reading.sums();
        let sequence = sums.sequence.map_or(0, |last| last.saturating_add(1));
        let event = error.event(self.api, Some(&self.request_id), sequence, sums.response_id.as_deref());
        // A half event must not swallow it.
        let event = if self.reading.mid_event() { format!("\n\n{event}") } else { event };
        self.queue.push_back(event.into());
        self.settle(outcome, error.code.as_str());
    }

    fn settle(&mut self, outcome: AttemptOutcome, error: &str) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        if !matches!(outcome, AttemptOutcome::Finished | AttemptOutcome::CallerLeft) {
            self.edge.meters.truncated.inc();
        }
        let now = self.tick(Instant::now());
        let heard = self.flight.hear(outcome, now);
        self.edge.heard(&self.account, heard);
        attempt_ended(&self.edge.meters, outcome);
        self.edge.meters.streams.dec();
        let status = if outcome == AttemptOutcome::CallerLeft { LEFT } else { 200 };
        let whole = outcome == AttemptOutcome::Finished;
        self.account.keys_found(self.reading.keys_found());
        let (sums, parts) = (Some(self.reading.sums()), self.reading.parts());
        self.account.close(Ending { status, error, sums, parts, whole, input_read: true });
    }
}

/// After content nothing is asked again.
struct NoRetry;

impl crate::course::RetryAllowance for NoRetry {
    fn take(&self, _: u32, _: Tick) -> bool {
        false
    }
}

pub(crate) fn attempt_ended(meters: &Meters, outcome: AttemptOutcome) {
    meters.attempts.with_label_values(&[outcome.word()]).inc();
}

impl Drop for StreamRelay {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let Some(body) = self.body.take().filter(|_| self.drain) else {
            return self.settle(AttemptOutcome::CallerLeft, "caller_left");
        };
        // The rest of the answer is paid for anyway: read it for its usage, within bounds.
        let edge = Arc::clone(&self.edge);
        let reading = std::mem::replace(
            &mut self.reading,
            AnswerReading::stream(self.shape, false, KeyGuard::default()),
        );
        let account = std::mem::replace(&mut self.account, Account::closed(&edge.meters));
        self.settled = true;
        self.edge.meters.streams.dec();
        attempt_ended(&self.edge.meters, AttemptOutcome::CallerLeft);
        edge.aside(read_on(body, reading, account));
    }
}

/// Reads an answer on that has lost its caller.
async fn read_on(mut body: PooledAnswer, mut reading: AnswerReading, mut account: Account) {
    let mut left = DRAIN_MAX;
    let _ = tokio::time::timeout(DRAIN_FOR, async {
        while let Some(Ok(frame)) =
            std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await
        {
            let Ok(data) = frame.into_data() else { continue };
            reading.feed(&data, drop);
            left = left.saturating_sub(data.len() as u64);
            if left == 0 {
                break;
            }
        }
    })
    .await;
    let whole = reading.is_whole();
    account.close(Ending {
        status: LEFT,
        error: "caller_left",
        sums: Some(reading.sums()),
        parts: reading.parts(),
        whole,
        input_read: true,
    });
}

/// A stream that is promised to the caller while its answer is still awaited.
pub struct AwaitedStream {
    trip: Pin<Box<dyn Future<Output = Resolved> + Send>>,
    timer: Pin<Box<Sleep>>,
    period: Duration,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    api: Api,
    request_id: Box<str>,
    /// The first comment goes out at once: the time for it has come.
    begun: bool,
}

enum Awaiting {
    Bytes(Bytes),
    Stream(Box<StreamRelay>),
    Last(Bytes),
}

impl AwaitedStream {
    pub(crate) fn new(
        trip: Pin<Box<dyn Future<Output = Resolved> + Send>>,
        period: Duration,
        edge: &Edge,
        api: Api,
        request_id: Box<str>,
    ) -> Self {
        Self {
            trip,
            timer: Box::pin(sleep_until(Instant::now() + period)),
            period,
            cut: Box::pin(edge.cut.clone().cancelled_owned()),
            api,
            request_id,
            begun: false,
        }
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Awaiting> {
        if let Poll::Ready(resolved) = self.trip.as_mut().poll(context) {
            return Poll::Ready(match resolved {
                Resolved::Stream(relay, _) => Awaiting::Stream(relay),
                Resolved::Failed(error, _) => Awaiting::Last(self.event(&error)),
                Resolved::Plain(..) => {
                    let error =
                        GatewayError::new(ErrorCode::UpstreamError, "the provider answered without a stream");
                    Awaiting::Last(self.event(&error))
                }
            });
        }
        if self.cut.as_mut().poll(context).is_ready() {
            let error = GatewayError::new(ErrorCode::ShuttingDown, "the gateway is shutting down");
            return Poll::Ready(Awaiting::Last(self.event(&error)));
        }
        let due = self.timer.as_mut().poll(context).is_ready();
        if due {
            self.timer.as_mut().reset(Instant::now() + self.period);
        }
        if due || !std::mem::replace(&mut self.begun, true) {
            // To be woken by the new time, too.
            let _ = self.timer.as_mut().poll(context);
            return Poll::Ready(Awaiting::Bytes(KEEPALIVE));
        }
        Poll::Pending
    }

    fn event(&self, error: &GatewayError) -> Bytes {
        error.event(self.api, Some(&self.request_id), 0, None).into()
    }
}

impl Edge {
    /// What an outcome brought about, for metrics and for the checks of providers.
    pub(crate) fn heard(&self, account: &Account, heard: Heard) {
        if let Some(reason) = heard.cooled {
            self.meters.cooldowns.with_label_values(&[reason]).inc();
        }
        if heard.look_again
            && let Some(provider) = account.provider()
        {
            self.hooks.look_again(provider);
        }
    }
}
