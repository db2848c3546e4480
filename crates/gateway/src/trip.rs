//! One request from its decision to the beginning of its answer: candidate after candidate, as its course says.
//!
//! Not its job: reading the request (`serve`), one attempt (`upstream`), the answer after its first content (`relay`).
//!
//! Invariant: nothing leaves before its intent is written down.

use std::sync::Arc;

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, sleep_until};

use catalog::price::{LISTED, Money, PricedTokens};
use provider::dialect::{CallerDialect, TokenParts, TranslateError, count_tokens};

use crate::account::{Account, Ending};
use crate::ask::{Ask, OUTPUT_UNLESS_SAID};
use crate::course::{AttemptOutcome, Course, CourseStep, total_of};
use crate::decide::Decision;
use crate::error::{ErrorCode, ErrorSource, GatewayError};
use crate::limit::{RateView, Reserved};
use crate::payload::{Payload, PayloadFacts};
use crate::relay::{Relaying, StreamRelay, attempt_ended};
use crate::serve::{Edge, Scene};
use crate::skim::Skim;
use crate::tick::Tick;
use crate::upstream::{AttemptContext, Attempted, Endpoint, PlainAnswer, ShownRefusal};

/// How long a request waits for its part of a budget that other nodes hold.
const BUDGET_WAIT: std::time::Duration = std::time::Duration::from_millis(250);
/// How often it looks meanwhile.
const BUDGET_LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// One request under way.
pub(crate) struct Trip {
    pub edge: Arc<Edge>,
    pub scene: Arc<Scene>,
    pub endpoint: Endpoint,
    pub ask: Ask,
    pub decision: Decision,
    pub body: Bytes,
    pub skim: Skim,
    pub passed: Vec<(HeaderName, HeaderValue)>,
    pub account: Account,
    pub request_id: Box<str>,
    /// Of the memory for bodies, until the answer begins.
    pub _permit: Option<OwnedSemaphorePermit>,
    pub begun: Instant,
}

/// Who answered, for the head of the answer.
pub(crate) struct Shown {
    /// `provider/model`.
    pub model: Option<HeaderValue>,
    pub provider: Option<HeaderValue>,
    pub attempts: u32,
    pub route: Option<HeaderValue>,
    pub upstream_id: Option<HeaderValue>,
    /// The caller's own limits of requests and of tokens.
    pub limits: [Option<RateView>; 2],
}

/// How a request goes on.
pub(crate) enum Resolved {
    Plain(Bytes, Option<HeaderValue>, Box<Shown>),
    Stream(Box<StreamRelay>, Box<Shown>),
    Failed(GatewayError, Option<Box<Shown>>),
}

impl Trip {
    /// Asks until there is an answer to show, or a word why there is none.
    pub(crate) async fn run(mut self: Box<Self>) -> Resolved {
        if self.endpoint == Endpoint::CountTokens {
            // Only who speaks the dialect counts; the others are not asked.
            self.decision.candidates.retain(|candidate| candidate.native);
            if self.decision.candidates.is_empty() {
                return self.counted();
            }
        }
        let reserved = match self.reserve().await {
            Ok(reserved) => reserved,
            Err(error) => return self.failed(error, false),
        };
        let Some(total) = self.first_total() else {
            return self.failed(GatewayError::new(ErrorCode::NoUpstream, "there is no candidate"), false);
        };
        let mut course = Course::new(&self.decision.candidates, total, self.decision.seed, self.now());
        let mut step = course.first(self.now());
        let mut refusal: Option<ShownRefusal> = None;
        let mut reason = "";
        // A provider may have read the input, though it gave no answer.
        let mut input_read = false;
        loop {
            let (candidate, not_before) = match step {
                CourseStep::Ask { candidate, not_before, .. } => (candidate, not_before),
                CourseStep::PassOn => {
                    let error = refusal.take().map_or_else(
                        || GatewayError::new(ErrorCode::UpstreamError, "the provider refused the request"),
                        |refusal| refusal.0,
                    );
                    return self.failed(error, input_read);
                }
                CourseStep::Fail(error) => {
                    if course.out_of_budget() {
                        self.edge.meters.out_of_budget.inc();
                    }
                    return self.failed(error, input_read);
                }
                CourseStep::Commit | CourseStep::Truncate(_) | CourseStep::End => {
                    let error = GatewayError::new(ErrorCode::UpstreamError, "the providers gave no answer");
                    return self.failed(error, input_read);
                }
            };
            if not_before > self.now() {
                sleep_until(self.edge.at(not_before)).await;
            }
            let scene = Arc::clone(&self.scene);
            let (Some(asked), now) = (self.decision.candidates.get(candidate), self.now()) else {
                step = CourseStep::End;
                continue;
            };
            let Some(upstream) = scene.picture.upstream(asked.upstream) else {
                step = course.follow(AttemptOutcome::Busy, now, &scene.pulse);
                continue;
            };
            let made = PayloadFacts {
                picture: &scene.picture,
                upstream,
                candidate: asked,
                endpoint: self.endpoint,
                ask: &self.ask,
                body: &self.body,
                skim: &self.skim,
                id: self.account.id(),
                unix: self.edge.unix(),
            };
            let payload = match made.plan() {
                Ok(plan) => plan.make().await,
                Err(error) => Err(error),
            };
            let payload = match payload {
                Ok(payload) => payload,
                Err(error) => {
                    refusal.get_or_insert(ShownRefusal(unfit(&error)));
                    step = course.follow(AttemptOutcome::Unfit, now, &scene.pulse);
                    continue;
                }
            };
            let first = course.attempts() == 1;
            let flight = scene.pulse.begin(asked.upstream, asked.offer, first, now);
            let seat = scene.seats.get(asked.upstream as usize).and_then(Option::as_ref);
            let (Ok(mut flight), Some(seat)) = (flight, seat) else {
                step = course.follow(AttemptOutcome::Busy, now, &scene.pulse);
                continue;
            };
            if !reason.is_empty() {
                self.edge.meters.fallbacks.with_label_values(&[reason]).inc();
            }
            let ledger = (self.endpoint != Endpoint::CountTokens).then_some(&*self.edge.ledger);
            let ratios = scene.pulse.ratios(asked.offer);
            self.account.learn_from(self.ask.estimate(ratios.map(|ratios| &**ratios)), ratios);
            if self.account.ask(ledger, &scene.picture, asked, reserved, reason).is_err() {
                let error = GatewayError::new(
                    ErrorCode::UsageUnavailable,
                    "what this request uses cannot be written down now; hint: ask the operator to look at the spool",
                );
                return self.failed(error, input_read);
            }
            if let Some(settled) = self.account.settled() {
                settled.await;
            }
            if let Payload::Translated(request) = &payload {
                self.account.dropped(&request.dropped);
            } else {
                self.account.dropped(&[]);
            }
            let drain = upstream.drain;
            let deadlines = course.deadlines(&upstream.clocks, self.ask.stream, now);
            if first {
                self.edge.meters.overhead.observe(self.begun.elapsed().as_secs_f64());
            }
            let attempt = AttemptContext {
                pool: &self.edge.pool,
                picture: &scene.picture,
                seat,
                candidate: asked,
                endpoint: self.endpoint,
                ask: &self.ask,
                payload: &payload,
                passed: &self.passed,
                deadlines,
                start: self.edge.start,
            };
            let attempted = attempt.run().await;
            let now = self.now();
            match attempted {
                Attempted::Plain(answer) => {
                    let heard = flight.hear(AttemptOutcome::Finished, now);
                    self.edge.heard(&self.account, heard);
                    attempt_ended(&self.edge.meters, AttemptOutcome::Finished);
                    course.follow(AttemptOutcome::Content, now, &scene.pulse);
                    self.account.content(course.was_fallback());
                    return self.plain(*answer, candidate, &course);
                }
                Attempted::Stream(begun) => {
                    let heard = flight.hear(AttemptOutcome::Content, now);
                    self.edge.heard(&self.account, heard);
                    course.follow(AttemptOutcome::Content, now, &scene.pulse);
                    self.account.content(course.was_fallback());
                    let shown = self.shown(candidate, &course, begun.upstream_id);
                    let Self { edge, account, endpoint, request_id, .. } = *self;
                    let relay = StreamRelay::new(Relaying {
                        body: begun.body,
                        unshown: begun.unshown,
                        reading: begun.reading,
                        ended: begun.ended,
                        shape: endpoint.shape(),
                        api: endpoint.api(),
                        account,
                        flight,
                        course,
                        deadlines,
                        start: edge.start,
                        request_id,
                        drain,
                        edge,
                    });
                    return Resolved::Stream(Box::new(relay), shown);
                }
                Attempted::Failed { outcome, refusal: said } => {
                    let heard = flight.hear(outcome, now);
                    self.edge.heard(&self.account, heard);
                    attempt_ended(&self.edge.meters, outcome);
                    drop(flight);
                    self.account.failed(outcome.word());
                    reason = outcome.word();
                    input_read |= matches!(outcome, AttemptOutcome::TimedOut(clock) if clock != crate::course::Clock::Connect)
                        || outcome == AttemptOutcome::BrokenOff;
                    refusal = said.or(refusal);
                    step = course.follow(outcome, now, &scene.pulse);
                }
            }
        }
    }

    fn now(&self) -> Tick {
        self.edge.now()
    }

    /// How long the whole may take: as the first candidate's clocks say.
    fn first_total(&self) -> Option<std::time::Duration> {
        let candidate = self.decision.candidates.first()?;
        let upstream = self.scene.picture.upstream(candidate.upstream)?;
        Some(total_of(&upstream.clocks, self.ask.stream))
    }

    /// Reserves tokens and money for the dearest outcome that is usual.
    async fn reserve(&mut self) -> Result<Money, GatewayError> {
        if self.endpoint == Endpoint::CountTokens {
            return Ok(Money::ZERO);
        }
        let Some(admission) = &mut self.account.admission else { return Ok(Money::ZERO) };
        let candidate = self.decision.candidates.first();
        let offer = candidate.and_then(|candidate| candidate.offer_in(&self.scene.picture));
        let most = offer.and_then(|offer| offer.max_output_tokens);
        let output = match (self.ask.output_limit, most) {
            (Some(asked), Some(most)) => asked.min(most.saturating_mul(self.ask.answers)),
            (Some(asked), None) => asked,
            (None, most) => {
                most.unwrap_or(OUTPUT_UNLESS_SAID).min(OUTPUT_UNLESS_SAID).saturating_mul(self.ask.answers)
            }
        };
        let ratios = self.scene.pulse.ratios(candidate.and_then(|candidate| candidate.offer));
        let input = self.ask.estimate(ratios.map(|ratios| &**ratios));
        let tokens = PricedTokens { input, output, ..PricedTokens::default() };
        let money =
            offer.and_then(|offer| offer.prices.cost(&tokens, LISTED, None).total()).unwrap_or(Money::ZERO);
        let begun = Instant::now();
        loop {
            let now = self.edge.now();
            match admission.reserve(tokens.total(), money.units(), now, self.edge.unix()) {
                Ok(Reserved::Made(wishes)) => {
                    if !wishes.is_empty() {
                        self.edge.hooks.wish(wishes);
                    }
                    return Ok(money);
                }
                Ok(Reserved::Wanting(wishes)) => {
                    if begun.elapsed() >= BUDGET_WAIT {
                        return Err(GatewayError::new(
                            ErrorCode::BudgetExceeded,
                            "what is left of the budget is held by other nodes",
                        ));
                    }
                    self.edge.hooks.wish(wishes);
                    tokio::time::sleep(BUDGET_LOOK).await;
                }
                Err(error) => {
                    let limit = error.param.as_deref().unwrap_or("budget").to_owned();
                    self.edge.meters.limited.with_label_values(&[&*limit]).inc();
                    return Err(error);
                }
            }
        }
    }

    fn limits(&self) -> [Option<RateView>; 2] {
        match &self.account.admission {
            Some(admission) => admission.rates(self.now()).into(),
            None => [None; 2],
        }
    }

    fn shown(&self, candidate: usize, course: &Course, upstream_id: Option<HeaderValue>) -> Box<Shown> {
        let asked = self.decision.candidates.get(candidate);
        let scene = &*self.scene;
        let seat = asked.and_then(|asked| scene.seats.get(asked.upstream as usize)?.as_deref());
        let named = asked.and_then(|asked| scene.names.get(asked.offer? as usize).cloned());
        let unlisted =
            || asked.and_then(|asked| HeaderValue::from_bytes(asked.full(&scene.picture).as_bytes()).ok());
        Box::new(Shown {
            model: named.unwrap_or_else(unlisted),
            provider: seat.and_then(|seat| seat.name.clone()),
            attempts: course.attempts(),
            route: route_header(self.account.route()),
            upstream_id,
            limits: self.limits(),
        })
    }

    fn plain(mut self: Box<Self>, answer: PlainAnswer, candidate: usize, course: &Course) -> Resolved {
        let shown = self.shown(candidate, course, answer.upstream_id);
        let sums = answer.reading.sums();
        self.account.keys_found(answer.reading.keys_found());
        self.account.close(Ending {
            status: 200,
            error: "",
            sums: Some(sums),
            parts: match self.endpoint {
                // Counting uses nothing.
                Endpoint::CountTokens => Some(TokenParts::default()),
                _ => answer.reading.parts(),
            },
            whole: true,
            input_read: true,
        });
        Resolved::Plain(answer.body, answer.content_type, shown)
    }

    /// What is shown where no provider answered.
    fn unanswered(&self) -> Box<Shown> {
        Box::new(Shown {
            model: None,
            provider: None,
            attempts: u32::from(self.account.attempts()),
            route: route_header(self.account.route()),
            upstream_id: None,
            limits: self.limits(),
        })
    }

    /// The gateway's own estimate of tokens, for callers of `count_tokens`.
    fn counted(mut self: Box<Self>) -> Resolved {
        let body = match count_tokens(CallerDialect::Messages, &self.body) {
            Ok(body) => body,
            Err(error) => return self.refused(unfit(&error), false),
        };
        let shown = self.unanswered();
        self.account.close(Ending {
            status: 200,
            error: "",
            sums: None,
            parts: Some(TokenParts::default()),
            whole: true,
            input_read: false,
        });
        Resolved::Plain(body.into(), None, shown)
    }

    fn failed(self: Box<Self>, error: GatewayError, input_read: bool) -> Resolved {
        // An estimate is better than no count; 404 is said by servers that speak the dialect and do not count.
        let no_answer = error.blame != ErrorSource::Caller
            && (error.code != ErrorCode::UpstreamRefused || error.status == 404);
        match self.endpoint {
            Endpoint::CountTokens if no_answer => self.counted(),
            _ => self.refused(error, input_read),
        }
    }

    fn refused(mut self: Box<Self>, error: GatewayError, input_read: bool) -> Resolved {
        let shown = self.unanswered();
        self.account.close(Ending {
            status: error.status,
            error: error.code.as_str(),
            sums: None,
            parts: (self.endpoint == Endpoint::CountTokens).then(TokenParts::default),
            whole: false,
            input_read,
        });
        Resolved::Failed(error, Some(shown))
    }
}

/// The route's word as a header; an alias that no header can carry is left out.
fn route_header(route: &str) -> Option<HeaderValue> {
    match route {
        "name" => Some(HeaderValue::from_static("name")),
        "pin" => Some(HeaderValue::from_static("pin")),
        "cell" => Some(HeaderValue::from_static("cell")),
        alias => HeaderValue::from_bytes(alias.as_bytes()).ok(),
    }
}

/// What the caller is answered where no candidate takes the request.
fn unfit(error: &TranslateError) -> GatewayError {
    let code = match error {
        TranslateError::Invalid { .. } => ErrorCode::InvalidRequest,
        TranslateError::Unsupported { .. } => ErrorCode::UnsupportedParameter,
    };
    GatewayError::new(code, error.to_string()).param(error.param().to_owned())
}
