//! Proves a key, at no cost, in as many requests as it takes.
//!
//! A proof is a small machine: it says what to ask, takes the answer, and ends with a verdict. Where it is not
//! certain that an endpoint refuses strangers, a request without a key and one with an obviously fake key go
//! first (the *negative control*); what they show can be kept for a day per URL. Some endpoints are asked
//! something malformed: refused to the fake key and answered to the real one, it proves the key and runs nothing.
//!
//! Invariant: `Valid` comes from an answer to the real key that a fake key is known, or was seen, not to get.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

use crate::{
    Evidence, KeyReport, KeyVerdict, ProviderType as P, Reply, Request,
    family::{CHAT_PROOFS, Control, Family, KeyPlan, ProofAttempt, Reads, SentKeys, family},
    read::{ErrorSaid, read_said},
    retry::retry_after,
    wire::{CHECK_BODY, clean_key, is_own_host, is_sendable, locate, request},
};

/// How long a negative control is believed.
const CONTROL_AGE: TimeDelta = TimeDelta::days(1);
/// Controls that are kept; far more than one provider can have.
const MAX_CONTROLS: usize = 64;

/// What an endpoint does with a stranger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Guard {
    /// Refuses the fake key: an answer to the real one means something.
    Guarded,
    /// Answers every caller.
    Public,
    /// Answers about the request without looking at the key.
    Blind,
}

/// Negative controls by endpoint, to be kept between proofs. Holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Controls(BTreeMap<String, (DateTime<Utc>, Guard)>);

impl Controls {
    pub fn get(&self, endpoint: &str, now: DateTime<Utc>) -> Option<Guard> {
        let (seen, guard) = self.0.get(endpoint)?;
        (now >= *seen && now - *seen < CONTROL_AGE).then_some(*guard)
    }

    fn put(&mut self, endpoint: String, now: DateTime<Utc>, guard: Guard) {
        self.0.retain(|_, (seen, _)| now - *seen < CONTROL_AGE);
        if self.0.len() < MAX_CONTROLS {
            self.0.insert(endpoint, (now, guard));
        }
    }
}

/// What to do next.
#[derive(Debug)]
pub enum Step {
    Ask(Box<Request>),
    Done(KeyReport),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Begin,
    FakeKey,
    NoKey,
    RealKey,
}

/// One proof of one key.
pub struct Proof {
    kind: P,
    family: &'static Family,
    key: SecretString,
    now: DateTime<Utc>,
    /// Base URLs to try: the declared one first, then the vendor's other regions.
    bases: Vec<Url>,
    attempts: Vec<ProofAttempt>,
    base: usize,
    attempt: usize,
    phase: Phase,
    controls: Controls,
    /// The most telling verdict so far.
    best: Option<KeyReport>,
    /// A rejection by the declared base, while other regions are asked.
    rejected: Option<KeyReport>,
    /// Set when nothing can be asked.
    early: Option<KeyVerdict>,
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proof").field("kind", &self.kind).field("phase", &self.phase).finish_non_exhaustive()
    }
}

impl Proof {
    /// `base` comes from [`parse_base`](super::parse_base); `controls` are those of earlier proofs.
    pub fn new(kind: P, base: &Url, key: Option<&str>, controls: Controls, now: DateTime<Utc>) -> Self {
        let family = family(kind);
        let key = key.map(clean_key).unwrap_or_default();
        let mut attempts = Vec::new();
        let mut early = None;
        if key.is_empty() {
            early = Some(KeyVerdict::Untestable { reason: "there is no key to test".into() });
        } else if !is_sendable(key) && !matches!(family.auth.sent, SentKeys::None) {
            let reason =
                "the key holds characters that no key has, or is too long\nhint: check what its source holds";
            early = Some(KeyVerdict::Untestable { reason: reason.into() });
        } else if let Some(retired) = family.retired {
            early =
                Some(KeyVerdict::Untestable { reason: format!("{retired}: no key works there any more") });
        } else {
            match family.proofs.plan(key) {
                KeyPlan::Untestable(reason) => early = Some(KeyVerdict::Untestable { reason: reason.into() }),
                KeyPlan::Try(list) => attempts.extend_from_slice(list),
            }
        }
        let own = is_own_host(family, base);
        if early.is_none() && !own && family.proofs.chat_elsewhere {
            // A gateway may lack the vendor's account endpoints, yet guard its chat endpoint.
            for extra in CHAT_PROOFS {
                if !attempts.iter().any(|have| have.ask == extra.ask) {
                    attempts.push(*extra);
                }
            }
        }
        let mut bases = vec![base.clone()];
        if own {
            let others = family.regions.iter().filter_map(|url| Url::parse(url).ok());
            bases.extend(others.filter(|url| url.host_str() != base.host_str()).map(|mut url| {
                // A plan's own path, as for coding plans, exists in every region.
                url.set_path(base.path());
                url
            }));
        }
        Self {
            kind,
            family,
            key: SecretString::from(key.to_owned()),
            now,
            bases,
            attempts,
            base: 0,
            attempt: 0,
            phase: Phase::Begin,
            controls,
            best: None,
            rejected: None,
            early,
        }
    }

    /// The controls, old and new, to keep for the next proof.
    pub fn into_controls(self) -> Controls {
        self.controls
    }

    /// Says what to ask next. The first call's argument is ignored; later `None` means that the request of the
    /// last step got no usable answer (no connection, a timeout).
    pub fn next(&mut self, answer: Option<Reply<'_>>) -> Step {
        if let Some(verdict) = self.early.clone() {
            return Step::Done(verdict.into());
        }
        match self.phase {
            Phase::Begin => self.enter(),
            Phase::FakeKey | Phase::NoKey => self.on_control(answer),
            Phase::RealKey => self.on_answer(answer),
        }
    }

    fn current(&self) -> Option<(ProofAttempt, Url)> {
        let (attempt, base) = (self.attempts.get(self.attempt)?, self.bases.get(self.base)?);
        Some((*attempt, locate(self.family, base, attempt.ask.at)))
    }

    fn ask(&mut self, phase: Phase) -> Step {
        let Some((attempt, url)) = self.current() else { return self.finish() };
        self.phase = phase;
        let key = match phase {
            Phase::FakeKey => Some(self.family.fake_key),
            Phase::NoKey => None,
            Phase::Begin | Phase::RealKey => Some(self.key.expose_secret()),
        };
        Step::Ask(Box::new(request(self.kind, attempt.ask.method, url, key, attempt.ask.body, CHECK_BODY)))
    }

    /// Begins the current attempt: with its control where one is needed and not known yet.
    fn enter(&mut self) -> Step {
        let Some((attempt, url)) = self.current() else { return self.finish() };
        let own = self.bases.get(self.base).is_some_and(|base| is_own_host(self.family, base));
        if own && attempt.control == Control::Foreign {
            return self.ask(Phase::RealKey);
        }
        match self.controls.get(&endpoint(&attempt, &url), self.now) {
            Some(Guard::Guarded) => self.ask(Phase::RealKey),
            Some(guard) => self.skip(guard),
            None => self.ask(Phase::FakeKey),
        }
    }

    fn on_control(&mut self, answer: Option<Reply<'_>>) -> Step {
        let Some((attempt, url)) = self.current() else { return self.finish() };
        let Some(reply) = answer else {
            return self.give_up(inconclusive("no answer"));
        };
        let (said, _) = ErrorSaid::read(&reply);
        let verdict = read_said(self.kind, reply.status, &said);
        let guard = match (&verdict, reply.status) {
            // A web page is a gateway's or a captive portal's answer: it shows nothing about the API.
            _ if said.is_page && reply.status != 401 || said.packed.is_some() => None,
            (None, 200..=299) => Some(Guard::Public),
            // Refused: by status, or by words about the key in a body under 200 or 400.
            (Some(KeyVerdict::Invalid { .. }), _) | (_, 401 | 403) => Some(Guard::Guarded),
            // The fake key passed as far as the account's credit: it was not looked at.
            (Some(verdict), _) if verdict.evidence() == Evidence::Proof && reply.status != 429 => {
                Some(Guard::Blind)
            }
            (_, 400 | 404 | 405 | 410 | 413 | 415 | 422) => Some(Guard::Blind),
            _ => None,
        };
        let Some(guard) = guard else {
            // What is said without a valid key is said of the endpoint.
            let status = reply.status;
            let mut report = KeyReport::from(match verdict {
                Some(KeyVerdict::Overload { .. }) => {
                    KeyVerdict::Overload { reason: format!("the provider is too busy (HTTP {status})") }
                }
                Some(KeyVerdict::Rate { .. }) => {
                    KeyVerdict::Rate { reason: format!("rate limited (HTTP {status})"), proven: false }
                }
                Some(verdict) => KeyVerdict::Inconclusive { reason: verdict.reason().to_owned() },
                None => KeyVerdict::Inconclusive { reason: format!("an unexpected answer (HTTP {status})") },
            });
            report.facts.retry_after = retry_after(&reply, self.now);
            return self.give_up(report);
        };
        // A gateway that asks for a key of any kind is shown up by the fake key alone; an endpoint that is open
        // to those who bring none is called public all the same.
        if guard == Guard::Guarded && self.phase == Phase::FakeKey {
            return self.ask(Phase::NoKey);
        }
        // The fake key was refused; without any, only a success would change the picture.
        let guard = if self.phase == Phase::NoKey && guard == Guard::Blind { Guard::Guarded } else { guard };
        self.controls.put(endpoint(&attempt, &url), self.now, guard);
        if guard == Guard::Guarded { self.ask(Phase::RealKey) } else { self.skip(guard) }
    }

    /// The attempt cannot prove anything: on to the next.
    fn skip(&mut self, guard: Guard) -> Step {
        let reason = match guard {
            Guard::Public => "the endpoint answers without a key, so that its answer proves nothing",
            _ => "no free request was found that distinguishes a real key from a fake one",
        };
        self.note(KeyVerdict::Untestable { reason: reason.into() }.into());
        self.advance()
    }

    /// Not worth another request now.
    fn give_up(&mut self, report: KeyReport) -> Step {
        self.note(report);
        self.next_base()
    }

    fn on_answer(&mut self, answer: Option<Reply<'_>>) -> Step {
        let Some((attempt, _)) = self.current() else { return self.finish() };
        let Some(reply) = answer else { return self.give_up(inconclusive("no answer")) };
        let mut report = self.read(&attempt, &reply);
        report.facts.retry_after = retry_after(&reply, self.now);
        match (&report.verdict, report.verdict.evidence()) {
            (_, Evidence::Proof) => self.proven(report),
            (_, Evidence::Rejection) => {
                if self.base == 0 {
                    self.rejected = Some(report);
                    // A rejection outweighs attempts that proved nothing; what follows is about other regions.
                    self.best = None;
                }
                self.next_base()
            }
            (KeyVerdict::Rate { .. } | KeyVerdict::Overload { .. }, _) => self.give_up(report),
            _ => {
                self.note(report);
                self.advance()
            }
        }
    }

    fn read(&self, attempt: &ProofAttempt, reply: &Reply<'_>) -> KeyReport {
        let (said, json) = ErrorSaid::read(reply);
        let verdict = read_said(self.kind, reply.status, &said);
        match attempt.reads {
            Reads::Shape(shape) | Reads::ShapeOrScope(shape) => match verdict {
                None => json.as_ref().and_then(shape).unwrap_or_else(|| match &said.packed {
                    Some(with) => inconclusive(&format!(
                        "the answer is packed (content-encoding: {with}), although none was asked for\n\
                         hint: turn compression off in what stands before the provider"
                    )),
                    None => inconclusive("a success without the expected content\nhint: is base_url right?"),
                }),
                // Only a key that is known can lack a scope here; the control has shown what a fake one gets.
                Some(KeyVerdict::Restricted { .. })
                    if matches!(attempt.reads, Reads::ShapeOrScope(_))
                        && reply.status == 403
                        && json.is_some() =>
                {
                    KeyVerdict::Valid.into()
                }
                Some(verdict) => verdict.into(),
            },
            Reads::Differential => differential(verdict, reply.status, &said),
        }
    }

    /// A proof at the declared base is the end; one elsewhere means that base and key do not belong together.
    fn proven(&mut self, report: KeyReport) -> Step {
        if self.base == 0 {
            return Step::Done(report);
        }
        let place = self.bases.get(self.base).map(Url::as_str).unwrap_or_default();
        let reason =
            format!("the key belongs to another region: {place} accepts it\nhint: base_url = \"{place}\"");
        Step::Done(KeyVerdict::Restricted { reason, proven: false }.into())
    }

    fn advance(&mut self) -> Step {
        self.attempt += 1;
        if self.attempt < self.attempts.len() { self.enter() } else { self.next_base() }
    }

    /// Other regions are asked only after the declared base rejected the key.
    fn next_base(&mut self) -> Step {
        if self.rejected.is_none() || self.base + 1 >= self.bases.len() {
            return self.finish();
        }
        self.base += 1;
        self.attempt = 0;
        self.enter()
    }

    /// Keeps the more telling of two reports that prove nothing.
    fn note(&mut self, report: KeyReport) {
        const fn weight(verdict: &KeyVerdict) -> u8 {
            match verdict {
                KeyVerdict::Untestable { .. } => 0,
                KeyVerdict::Inconclusive { .. } => 1,
                KeyVerdict::Overload { .. } => 2,
                KeyVerdict::Rate { .. } => 3,
                _ => 4,
            }
        }
        if self.best.as_ref().is_none_or(|best| weight(&report.verdict) > weight(&best.verdict)) {
            self.best = Some(report);
        }
    }

    fn finish(&mut self) -> Step {
        match (self.rejected.take(), self.best.take()) {
            // Rejected here, and what the other regions say is not known: that is not a rejection everywhere.
            (Some(rejected), Some(other)) => {
                let reason = format!(
                    "{}; the vendor's other regions could not be asked: {}",
                    rejected.verdict.reason(),
                    other.verdict.reason()
                );
                let mut report = KeyReport::from(KeyVerdict::Inconclusive { reason });
                report.facts.retry_after = other.facts.retry_after;
                Step::Done(report)
            }
            (Some(report), None) | (None, Some(report)) => Step::Done(report),
            (None, None) => Step::Done(KeyVerdict::Untestable { reason: "nothing to ask".into() }.into()),
        }
    }
}

fn inconclusive(reason: &str) -> KeyReport {
    KeyVerdict::Inconclusive { reason: reason.into() }.into()
}

/// Which control an attempt falls under: the same endpoint with the same body.
fn endpoint(attempt: &ProofAttempt, url: &Url) -> String {
    format!("{} {url} {}", attempt.ask.method.as_str(), attempt.ask.body.unwrap_or_default())
}

/// The fake key was refused; what did the real one get?
fn differential(verdict: Option<KeyVerdict>, status: u16, said: &ErrorSaid) -> KeyReport {
    match verdict {
        None | Some(KeyVerdict::Valid) => KeyVerdict::Valid.into(),
        Some(_) if said.is_page => inconclusive("a web page instead of an API answer"),
        Some(verdict) if said.is_gate || said.packed.is_some() => inconclusive(verdict.reason()),
        Some(KeyVerdict::Quota { reason, .. }) => KeyVerdict::Quota { reason, proven: true }.into(),
        // Past the point where the fake key was refused.
        Some(KeyVerdict::Rate { reason, .. }) if status == 429 => {
            KeyVerdict::Rate { reason, proven: true }.into()
        }
        Some(KeyVerdict::Inconclusive { .. }) if matches!(status, 400 | 404 | 410 | 413 | 415 | 422) => {
            KeyVerdict::Valid.into()
        }
        Some(verdict) => verdict.into(),
    }
}
