//! The gateway's counters and histograms.
//!
//! Not its job: where they are shown. Invariant: labels are words of bounded sets; a consumer is never one.

use std::time::Duration;

use catalog::price::{Money, PricedTokens};
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry,
};

use crate::{limit::LimitWord, spool::UsageSource};

/// From a cached embedding to a long generation.
const SECONDS: &[f64] =
    &[0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0];
/// First tokens of small local models come within milliseconds; a minute is the default clock.
const FIRST: &[f64] = &[0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0, 6.0, 12.0, 30.0, 60.0];
/// 1,000 to one token a second.
const EACH: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.4, 1.0];
/// Our own share is tens of microseconds; a millisecond is already wrong.
const OVERHEAD: &[f64] = &[0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1];

/// The words of the label `operation`.
const OPERATIONS: [&str; 8] =
    ["chat", "completions", "embeddings", "responses", "messages", "count_tokens", "models", "other"];

/// The words of attempts that went wrong, of `attempts_total{outcome}` and `fallbacks_total{reason}`.
const FAILURES: [&str; 18] = [
    "auth",
    "broken_off",
    "busy",
    "connect_failed",
    "context_overflow",
    "garbage",
    "in_band",
    "not_found",
    "own_fault",
    "rate_limited",
    "refused",
    "status_408",
    "status_5xx",
    "timeout_connect",
    "timeout_first_token",
    "timeout_idle",
    "timeout_total",
    "unfit",
];

/// The words of `cooldowns_total{reason}`.
const COOLDOWNS: [&str; 4] = ["failures", "model_not_found", "rate_limited", "refused"];

/// The words of the label `hint`: fields that a translation may drop, by the names of all dialects of callers.
const HINTS: &[&str] = &[
    "cache_control",
    "container",
    "context_management",
    "frequency_penalty",
    "include",
    "logit_bias",
    "max_tool_calls",
    "metadata",
    "metadata.user_id",
    "modalities",
    "moderation",
    "output_config.effort",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_retention",
    "reasoning",
    "reasoning.effort",
    "reasoning.summary",
    "reasoning_effort",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "stop_sequences",
    "store",
    "stream_options",
    "temperature",
    "text.verbosity",
    "thinking",
    "tool_choice",
    "tool_choice.disable_parallel_tool_use",
    "tools",
    "tools.strict",
    "top_k",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "verbosity",
    "web_search_options",
];

/// All of them. Made once and registered once.
pub struct Meters {
    requests: IntCounterVec,
    /// Of each operation its histogram and its counter of successes: looked up for every request otherwise.
    usual: Vec<(&'static str, Histogram, IntCounter)>,
    pub(crate) first_token: Histogram,
    pub(crate) per_token: Histogram,
    pub(crate) overhead: Histogram,
    pub(crate) in_flight: IntGauge,
    pub(crate) streams: IntGauge,
    pub(crate) attempts: IntCounterVec,
    pub(crate) fallbacks: IntCounterVec,
    pub(crate) out_of_budget: IntCounter,
    pub(crate) cooldowns: IntCounterVec,
    pub(crate) panic: IntGauge,
    pub(crate) truncated: IntCounter,
    /// Input, output, cache_read, cache_write, reasoning.
    tokens: [IntCounter; 5],
    cost: Counter,
    pub(crate) limited: IntCounterVec,
    sources: [(UsageSource, IntCounter); 4],
    pub(crate) picture_age: Gauge,
    pub(crate) unwritten: IntCounter,
    pub(crate) keys_redacted: IntCounter,
    hints: IntCounterVec,
}

impl Meters {
    /// Makes and registers them.
    ///
    /// # Errors
    /// One of the names is taken in this registry.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(format!("providerd_gateway_{name}"), help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let plain = |name: &str, help: &str| {
            let counter = IntCounter::new(format!("providerd_gateway_{name}"), help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(format!("providerd_gateway_{name}"), help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let options = |name: &str, help: &str, buckets: &[f64]| {
            HistogramOpts::new(format!("providerd_gateway_{name}"), help).buckets(buckets.to_vec())
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let histogram = Histogram::with_opts(options(name, help, buckets))?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, prometheus::Error>(histogram)
        };
        let duration = HistogramVec::new(
            options(
                "request_duration_seconds",
                "From a request's head to the last byte of its answer",
                SECONDS,
            ),
            &["operation"],
        )?;
        registry.register(Box::new(duration.clone()))?;
        let requests = counter("requests_total", "Requests that ended, by status", &["operation", "code"])?;
        let usual = OPERATIONS.map(|word| {
            (word, duration.with_label_values(&[word]), requests.with_label_values(&[word, "200"]))
        });
        let tokens = counter("tokens_total", "Tokens", &["type"])?;
        let sources = counter("usage_source_total", "Rows, by where their tokens come from", &["source"])?;
        let cost =
            Counter::new("providerd_gateway_cost_usd_total", "What requests cost, where the price is known")?;
        registry.register(Box::new(cost.clone()))?;
        let picture_age =
            Gauge::new("providerd_gateway_picture_age_seconds", "Age of what the gateway decides by")?;
        registry.register(Box::new(picture_age.clone()))?;
        let meters = Self {
            requests,
            usual: usual.into(),
            first_token: histogram(
                "time_to_first_token_seconds",
                "From a request's head to the first content",
                FIRST,
            )?,
            per_token: histogram("time_per_output_token_seconds", "Between tokens after the first", EACH)?,
            overhead: histogram(
                "overhead_seconds",
                "Of a request's head to that of the first attempt",
                OVERHEAD,
            )?,
            in_flight: gauge("in_flight", "Requests under way")?,
            streams: gauge("streams", "Streams that are relayed now")?,
            attempts: counter("attempts_total", "Attempts at providers, by how they went", &["outcome"])?,
            fallbacks: counter(
                "fallbacks_total",
                "Further attempts, by why the one before failed",
                &["reason"],
            )?,
            out_of_budget: plain(
                "retry_budget_exhausted_total",
                "Further attempts that the retry budget forbade",
            )?,
            cooldowns: counter("cooldowns_total", "Cooldowns that began", &["reason"])?,
            truncated: plain(
                "truncated_total",
                "Streams that ended with an error after content had been sent, not counting callers who left",
            )?,
            panic: gauge("panic", "1 while so many origins cool that cooldowns are ignored")?,
            tokens: ["input", "output", "cache_read", "cache_write", "reasoning"]
                .map(|kind| tokens.with_label_values(&[kind])),
            cost,
            limited: counter("limited_total", "Requests that a limit refused", &["limit"])?,
            sources: [UsageSource::Reported, UsageSource::Estimated, UsageSource::Partial, UsageSource::None]
                .map(|source| (source, sources.with_label_values(&[source.as_str()]))),
            picture_age,
            hints: counter(
                "hints_dropped_total",
                "Fields that a translated request lost because the provider has no place for them",
                &["hint"],
            )?,
            keys_redacted: plain(
                "keys_redacted_total",
                "Keys of providers that stood in their answers and were overwritten",
            )?,
            unwritten: plain("unwritten_outcomes_total", "Outcomes that the spool could not take")?,
        };
        Ok(meters.expect())
    }

    /// Shows what may happen as 0 before it does: `increase()` misses a counter's first appearance.
    fn expect(self) -> Self {
        for word in FAILURES {
            self.attempts.with_label_values(&[word]);
            self.fallbacks.with_label_values(&[word]);
        }
        for word in ["ok", "caller_left"] {
            self.attempts.with_label_values(&[word]);
        }
        for word in COOLDOWNS {
            self.cooldowns.with_label_values(&[word]);
        }
        for word in LimitWord::ALL {
            self.limited.with_label_values(&[word.as_str()]);
        }
        self.hints.with_label_values(&["other"]);
        self
    }

    /// A request ended.
    pub(crate) fn ended(&self, operation: &str, status: u16, latency: Duration) {
        let usual = self.usual.iter().find(|(word, ..)| *word == operation);
        if let Some((_, duration, _)) = usual {
            duration.observe(latency.as_secs_f64());
        }
        match usual {
            Some((.., ok)) if status == 200 => ok.inc(),
            _ => {
                let mut buffer = [0u8; 3];
                self.requests.with_label_values(&[operation, status_text(status, &mut buffer)]).inc();
            }
        }
    }

    /// Hints were dropped: their names as far as they are known ones, `other` for the rest. A caller may send any name.
    pub(crate) fn hints_dropped(&self, names: &[String]) -> Vec<&'static str> {
        let word = |name: &String| HINTS.iter().copied().find(|known| known == name).unwrap_or("other");
        let mut words: Vec<&'static str> = names.iter().map(word).collect();
        words.sort_unstable();
        words.dedup();
        for word in &words {
            self.hints.with_label_values(&[word]).inc();
        }
        words
    }

    /// A row was made.
    pub(crate) fn used(
        &self,
        tokens: &PricedTokens,
        reasoning: u64,
        source: UsageSource,
        cost: Option<Money>,
    ) {
        let written = tokens.cache_write.saturating_add(tokens.cache_write_1h);
        let counts = [tokens.input, tokens.output, tokens.cache_read, written, reasoning];
        for (counter, count) in self.tokens.iter().zip(counts) {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        if let Some((_, counter)) = self.sources.iter().find(|(known, _)| *known == source) {
            counter.inc();
        }
        if let Some(cost) = cost.filter(|cost| cost.units() > 0) {
            // A counter for graphs: the exact sums stand in the rows.
            self.cost.inc_by(cost.units() as f64 / 1e10);
        }
    }
}

/// Three digits without an allocation.
fn status_text(status: u16, buffer: &mut [u8; 3]) -> &str {
    let status = status.clamp(100, 999);
    *buffer = [status / 100, status / 10 % 10, status % 10].map(|digit| b'0' + digit as u8);
    std::str::from_utf8(buffer).unwrap_or("000")
}
