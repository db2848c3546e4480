//! What one request used: its intent before it leaves, its outcome after it ended, whatever way it ends.
//!
//! Not its job: keeping rows ([`UsageLedger`] comes from outside), reserving (`limit`).
//!
//! Invariant: an account that was opened is closed exactly once. Dropped open, it is closed as left by its caller: no
//! way out of a request can forget it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use catalog::price::{LISTED, Money, PricedTokens, TokenPrices};
use provider::dialect::{TokenParts, TokenSource};

use crate::ask::BYTES_PER_TOKEN;
use crate::decide::RouteCandidate;
use crate::learned::TokenRatios;
use crate::limit::Admission;
use crate::meter::Meters;
use crate::picture::Picture;
use crate::spool::{
    RequestFacts, Spool, SpoolError, SpoolText, SpoolTicket, UsageAttempt, UsageIntent, UsageRow, UsageSource,
};
use crate::tap::{TapShape, TapSums, TapUsage};

/// Status of a request whose caller left (nginx's word for it; no caller ever sees it).
pub(crate) const LEFT: u16 = 499;

/// Keeps what requests use.
pub trait UsageLedger: Send + Sync + 'static {
    /// Writes down that a request is about to leave.
    ///
    /// # Errors
    /// It cannot be kept: the request must not leave.
    fn intent(&self, intent: &UsageIntent<'_>) -> Result<Box<dyn LedgerEntry>, SpoolError>;
}

/// One request that was written down.
pub trait LedgerEntry: Send {
    /// Waits until what was written survives a power cut, where that is wanted; `None`: there is nothing to wait for.
    fn settled(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>>;

    /// It goes to a further candidate.
    ///
    /// # Errors
    /// It cannot be kept: the candidate must not be asked.
    fn attempt(&mut self, attempt: &UsageAttempt<'_>) -> Result<(), SpoolError>;

    /// It ended.
    ///
    /// # Errors
    /// It cannot be kept: it becomes a row without an outcome.
    fn outcome(self: Box<Self>, row: &UsageRow<'_>) -> Result<(), SpoolError>;
}

/// The spool as a ledger.
pub struct SpoolLedger {
    spool: Arc<Spool>,
    strict: bool,
}

impl SpoolLedger {
    /// `strict`: requests wait for the disk, as the spool's own settings say.
    pub const fn new(spool: Arc<Spool>, strict: bool) -> Self {
        Self { spool, strict }
    }
}

struct SpoolLedgerEntry {
    spool: Arc<Spool>,
    ticket: SpoolTicket,
    sequence: u64,
    strict: bool,
}

impl UsageLedger for SpoolLedger {
    fn intent(&self, intent: &UsageIntent<'_>) -> Result<Box<dyn LedgerEntry>, SpoolError> {
        let ticket = self.spool.intent(intent)?;
        let sequence = ticket.sequence();
        Ok(Box::new(SpoolLedgerEntry {
            spool: Arc::clone(&self.spool),
            ticket,
            sequence,
            strict: self.strict,
        }))
    }
}

impl LedgerEntry for SpoolLedgerEntry {
    fn settled(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let (spool, sequence) = (Arc::clone(&self.spool), self.sequence);
        self.strict.then(|| Box::pin(async move { spool.settled(sequence).await }) as Pin<Box<_>>)
    }

    fn attempt(&mut self, attempt: &UsageAttempt<'_>) -> Result<(), SpoolError> {
        self.sequence = self.spool.attempt(&self.ticket, attempt)?;
        Ok(())
    }

    fn outcome(self: Box<Self>, row: &UsageRow<'_>) -> Result<(), SpoolError> {
        self.spool.outcome(self.ticket, row).map(drop)
    }
}

/// How a request ended, for its row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ending<'a> {
    /// What the caller got.
    pub status: u16,
    /// The error's word; empty: none.
    pub error: &'a str,
    /// What the last answer said, where there was one.
    pub sums: Option<&'a TapSums>,
    /// Tokens that a translation read; they say more than `sums`.
    pub parts: Option<TokenParts>,
    /// The answer was whole.
    pub whole: bool,
    /// A provider may have read the input.
    pub input_read: bool,
}

/// One request's account.
pub(crate) struct Account {
    meters: Arc<Meters>,
    entry: Option<Box<dyn LedgerEntry>>,
    pub(crate) admission: Option<Admission>,
    facts: RequestFacts<'static>,
    prices: TokenPrices,
    shape: TapShape,
    operation: &'static str,
    streamed: bool,
    input_estimate: u64,
    /// Bytes of input, where it is text alone.
    input_text: Option<u64>,
    /// Of the model that was asked last.
    ratios: Option<Arc<TokenRatios>>,
    begun: Instant,
    start: Instant,
    first_content: Option<Duration>,
    attempts: u8,
    fallback: bool,
    /// Who was asked before, and why they did not answer.
    before: String,
    /// Hints that the last provider has no place for.
    dropped: Vec<&'static str>,
    closed: bool,
}

/// What an account begins with.
pub(crate) struct Opening {
    pub meters: Arc<Meters>,
    pub facts: RequestFacts<'static>,
    pub shape: TapShape,
    pub operation: &'static str,
    pub streamed: bool,
    pub input_estimate: u64,
    /// Bytes of input, where it is text alone.
    pub input_text: Option<u64>,
    /// When the request came.
    pub begun: Instant,
    /// From when ticks are counted.
    pub start: Instant,
    pub admission: Option<Admission>,
}

impl Account {
    /// In place of one that was moved away.
    pub(crate) fn closed(meters: &Arc<Meters>) -> Self {
        let now = Instant::now();
        let mut account = Self::new(Opening {
            meters: Arc::clone(meters),
            facts: RequestFacts::default(),
            shape: TapShape::Chat,
            operation: "",
            streamed: false,
            input_estimate: 0,
            input_text: None,
            begun: now,
            start: now,
            admission: None,
        });
        account.closed = true;
        account
    }

    /// The request's id.
    pub(crate) fn id(&self) -> uuid::Uuid {
        self.facts.id
    }

    /// Who is or was asked last.
    pub(crate) fn provider(&self) -> Option<uuid::Uuid> {
        self.facts.provider_id
    }

    /// By which words the request found its way; of an open account.
    pub(crate) fn route(&self) -> &str {
        self.facts.route.as_str()
    }

    /// Attempts so far.
    pub(crate) const fn attempts(&self) -> u8 {
        self.attempts
    }

    /// Not written down yet: [`Self::ask`] does that.
    pub(crate) fn new(opening: Opening) -> Self {
        let Opening {
            meters,
            facts,
            shape,
            operation,
            streamed,
            input_estimate,
            input_text,
            begun,
            start,
            admission,
        } = opening;
        Self {
            meters,
            entry: None,
            admission,
            facts,
            prices: TokenPrices::default(),
            shape,
            operation,
            streamed,
            input_estimate,
            input_text,
            ratios: None,
            begun,
            start,
            first_content: None,
            attempts: 0,
            fallback: false,
            before: String::new(),
            dropped: Vec::new(),
            closed: false,
        }
    }

    /// Hints that the candidate which is asked next has no place for.
    pub(crate) fn dropped(&mut self, hints: &[String]) {
        self.dropped = self.meters.hints_dropped(hints);
    }

    /// The input by what is known of the model that is asked next, and where to learn.
    pub(crate) fn learn_from(&mut self, input_estimate: u64, ratios: Option<&Arc<TokenRatios>>) {
        self.input_estimate = input_estimate;
        self.ratios = ratios.cloned();
    }

    /// A candidate is about to be asked: the intent, or one more attempt, is written down first. `reserved`: of money,
    /// until the outcome is known.
    pub(crate) fn ask(
        &mut self,
        ledger: Option<&dyn UsageLedger>,
        picture: &Picture,
        candidate: &RouteCandidate,
        reserved: Money,
        reason: &'static str,
    ) -> Result<(), SpoolError> {
        let upstream = picture.upstream(candidate.upstream);
        let offer = candidate.offer_in(picture);
        self.facts.provider_id = upstream.map(|upstream| upstream.id);
        self.facts.provider =
            SpoolText::new(upstream.map_or(String::new(), |upstream| String::from(&*upstream.name)));
        self.facts.model_id = offer.map(|offer| offer.id);
        self.facts.model = SpoolText::new(candidate.model(picture).to_owned());
        self.prices = offer.map_or_else(TokenPrices::default, |offer| offer.prices.clone());
        self.attempts = self.attempts.saturating_add(1);
        let Some(ledger) = ledger else { return Ok(()) };
        match &mut self.entry {
            None => {
                let tokens = PricedTokens { input: self.input_estimate, ..PricedTokens::default() };
                let cost_estimate = self.prices.cost(&tokens, LISTED, None).input;
                let facts = std::mem::take(&mut self.facts);
                let intent =
                    UsageIntent { facts, input_estimate: self.input_estimate, cost_estimate, reserved };
                let entry = ledger.intent(&intent);
                self.facts = intent.facts;
                self.entry = Some(entry?);
                Ok(())
            }
            Some(entry) => entry.attempt(&UsageAttempt {
                id: self.facts.id,
                provider_id: self.facts.provider_id,
                model_id: self.facts.model_id,
                provider: SpoolText::new(self.facts.provider.as_str()),
                model: SpoolText::new(self.facts.model.as_str()),
                reason: SpoolText::new(reason),
            }),
        }
    }

    /// The answer held its provider's key, so often.
    pub(crate) fn keys_found(&self, count: u32) {
        if count > 0 {
            self.meters.keys_redacted.inc_by(u64::from(count));
            tracing::warn!(
                target: "gateway",
                id = %self.facts.id,
                provider = self.facts.provider.as_str(),
                count,
                "an answer held the key of its provider, and was shown without it; hint: rotate the key, and ask the \
                 provider why it repeats keys"
            );
        }
    }

    /// What the entry waits for before the request may leave.
    pub(crate) fn settled(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        self.entry.as_ref()?.settled()
    }

    /// A candidate did not answer.
    pub(crate) fn failed(&mut self, word: &str) {
        use std::fmt::Write;
        let separator = if self.before.is_empty() { "" } else { "," };
        let name = serde_json::Value::from(format!(
            "{}/{}",
            self.facts.provider.as_str(),
            self.facts.model.as_str()
        ));
        // Writing to a text cannot fail.
        let _ = write!(self.before, "{separator}[{name},\"{word}\"]");
    }

    /// The first content is there, from the first candidate or a later one.
    pub(crate) fn content(&mut self, fallback: bool) {
        let after = self.begun.elapsed();
        self.first_content.get_or_insert(after);
        self.fallback = fallback;
        if self.streamed {
            self.meters.first_token.observe(after.as_secs_f64());
        }
    }

    /// Closes the account; later calls do nothing.
    pub(crate) fn close(&mut self, ending: Ending<'_>) {
        if std::mem::replace(&mut self.closed, true) {
            return;
        }
        let latency = self.begun.elapsed();
        let (tokens, reasoning, source) = self.tokens(ending);
        if source == UsageSource::Reported
            && let Some(ratios) = &self.ratios
        {
            if let Some(bytes) = self.input_text {
                ratios.learn_input(bytes, tokens.input_total());
            }
            // Reasoning that is counted is not always shown.
            if let Some(sums) = ending.sums.filter(|_| reasoning == 0) {
                ratios.learn_output(sums.output_bytes, tokens.output);
            }
        }
        let units = match ending.parts {
            Some(parts) => parts.reported_cost.and_then(|units| i64::try_from(units).ok()),
            None => ending.sums.and_then(|sums| sums.usage.cost_units),
        };
        let units = units.map(Money::from_units);
        let cost = self.prices.cost(&tokens, LISTED, units);
        self.meters.ended(self.operation, ending.status, latency);
        if let Some(admission) = self.admission.take() {
            let now = crate::serve::tick(self.start.elapsed());
            admission.settle(tokens.total(), cost.total().map(Money::units), now);
        }
        tracing::info!(
            target: "gateway",
            id = %self.facts.id,
            request_id = self.facts.request_id.as_str(),
            operation = self.operation,
            consumer = self.facts.consumer.as_str(),
            user = self.facts.user_id.as_str(),
            provider = self.facts.provider.as_str(),
            model = self.facts.model.as_str(),
            route = self.facts.route.as_str(),
            attempts = self.attempts,
            before = self.before,
            status = ending.status,
            error = ending.error,
            first_ms = self.first_content.map(|time| time.as_millis() as u64),
            ms = latency.as_millis() as u64,
            input = tokens.input_total(),
            output = tokens.output,
            usage = source.as_str(),
            dropped = ?self.dropped,
            "request"
        );
        let Some(entry) = self.entry.take() else { return };
        self.meters.used(&tokens, reasoning, source, cost.total());
        if let (true, Some(first), true) = (self.streamed, self.first_content, tokens.output > 1) {
            let each = latency.saturating_sub(first).as_secs_f64() / (tokens.output - 1) as f64;
            self.meters.per_token.observe(each);
        }
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        // Whole pairs only: a text that is cut would be no JSON.
        let details = match self.before.len() {
            0 => String::new(),
            1..=1900 => format!("{{\"failed\":[{}]}}", self.before),
            _ => "{\"failed\":\"too long to be recorded\"}".to_owned(),
        };
        let row = UsageRow {
            facts: std::mem::take(&mut self.facts),
            tokens,
            reasoning,
            cost,
            rates: self.prices.rates_for(tokens.input_total()),
            factor: LISTED,
            source,
            latency_ms: milliseconds(latency),
            ttft_ms: self.first_content.map(milliseconds),
            status_code: Some(ending.status),
            success: ending.whole && ending.error.is_empty(),
            was_fallback: self.fallback,
            streamed: self.streamed,
            attempts: self.attempts,
            error: SpoolText::new(ending.error),
            details: SpoolText::new(details),
        };
        if entry.outcome(&row).is_err() {
            self.meters.unwritten.inc();
        }
    }

    /// Tokens, reasoning among them, and where they come from.
    fn tokens(&self, ending: Ending<'_>) -> (PricedTokens, u64, UsageSource) {
        if let Some(parts) = ending.parts {
            let source = match parts.source {
                TokenSource::Reported if ending.whole => UsageSource::Reported,
                TokenSource::Reported | TokenSource::Partial => UsageSource::Partial,
                TokenSource::Estimated => UsageSource::Estimated,
                TokenSource::None => UsageSource::None,
            };
            return (parted(parts), parts.reasoning, source);
        }
        let output_tokens = |bytes: u64| match &self.ratios {
            Some(ratios) => ratios.output_tokens(bytes),
            None => bytes.div_ceil(BYTES_PER_TOKEN),
        };
        let estimated = |output_bytes: u64| PricedTokens {
            input: self.input_estimate,
            output: output_tokens(output_bytes),
            ..PricedTokens::default()
        };
        let Some(sums) = ending.sums else {
            return match ending.input_read {
                true => (estimated(0), 0, UsageSource::Estimated),
                false => (PricedTokens::default(), 0, UsageSource::None),
            };
        };
        let reasoning = sums.usage.reasoning.unwrap_or(0);
        match priced(self.shape, &sums.usage) {
            // Chat counts come at the end only: half an answer has none, or those of the beginning.
            Some(tokens) if ending.whole => (tokens, reasoning, UsageSource::Reported),
            Some(mut tokens) => {
                tokens.output = tokens.output.max(output_tokens(sums.output_bytes));
                (tokens, reasoning, UsageSource::Partial)
            }
            None => (estimated(sums.output_bytes), 0, UsageSource::Estimated),
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.close(Ending {
            status: LEFT,
            error: "caller_left",
            sums: None,
            parts: None,
            whole: false,
            input_read: true,
        });
    }
}

/// What a translation read as five parts that do not overlap.
const fn parted(parts: TokenParts) -> PricedTokens {
    PricedTokens {
        input: parts.input,
        cache_read: parts.cache_read,
        cache_write: parts.cache_write.saturating_sub(parts.cache_write_long),
        cache_write_1h: parts.cache_write_long,
        output: parts.output,
    }
}

/// A dialect's counts as five parts that do not overlap; `None` where there are none.
fn priced(shape: TapShape, usage: &TapUsage) -> Option<PricedTokens> {
    if usage.input.is_none() && usage.output.is_none() {
        return None;
    }
    let input = usage.input.unwrap_or(0);
    let cache_read = usage.cached.unwrap_or(0);
    let cache_write_1h = usage.cache_write_1h.unwrap_or(0);
    let written =
        usage.cache_write.unwrap_or(0).max(cache_write_1h.saturating_add(usage.cache_write_5m.unwrap_or(0)));
    let mut output = usage.output.unwrap_or(0);
    let reasoning = usage.reasoning.unwrap_or(0);
    // Some count reasoning beside the output, and only the total shows it (xAI).
    if reasoning > 0 && usage.total == input.checked_add(output).and_then(|sum| sum.checked_add(reasoning)) {
        output = output.saturating_add(reasoning);
    }
    let input = match shape {
        TapShape::Messages => input,
        // With those that were read from a cache or written to one.
        TapShape::Chat | TapShape::Responses => input.saturating_sub(cache_read.saturating_add(written)),
    };
    Some(PricedTokens {
        input,
        cache_read,
        cache_write: written.saturating_sub(cache_write_1h),
        cache_write_1h,
        output,
    })
}

#[cfg(test)]
mod bills;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_dialects_become_the_same_parts() {
        let check = |shape, usage: TapUsage, expected: Option<[u64; 5]>| {
            let parts = priced(shape, &usage).map(|tokens| {
                [tokens.input, tokens.cache_read, tokens.cache_write, tokens.cache_write_1h, tokens.output]
            });
            assert_eq!(parts, expected, "{usage:?}");
        };
        let usage = TapUsage { input: Some(10), output: Some(4), cached: Some(6), ..TapUsage::default() };
        check(TapShape::Chat, usage, Some([4, 6, 0, 0, 4]));
        check(TapShape::Messages, usage, Some([10, 6, 0, 0, 4]));
        let written = TapUsage { cache_write: Some(3), cache_write_1h: Some(1), ..usage };
        check(TapShape::Messages, written, Some([10, 6, 2, 1, 4]));
        check(TapShape::Chat, written, Some([1, 6, 2, 1, 4]));
        let beside = TapUsage {
            input: Some(10),
            output: Some(4),
            total: Some(19),
            reasoning: Some(5),
            ..TapUsage::default()
        };
        check(TapShape::Chat, beside, Some([10, 0, 0, 0, 9]));
        check(TapShape::Chat, TapUsage { total: Some(14), ..beside }, Some([10, 0, 0, 0, 4]));
        check(TapShape::Chat, TapUsage { cached: Some(99), ..usage }, Some([0, 99, 0, 0, 4]));
        check(TapShape::Chat, TapUsage { total: Some(9), ..TapUsage::default() }, None);
    }
}
