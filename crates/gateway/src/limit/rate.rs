//! Rates a minute: a bucket that fills with time, and the part of it that is this node's.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::LimitWord;
use crate::{
    error::{ErrorCode, GatewayError},
    tick::Tick,
};

/// A node's part of the limits, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeShare(u32);

/// The whole, in millionths.
pub(super) const WHOLE: u32 = 1_000_000;

impl NodeShare {
    /// A node alone.
    pub const ALL: Self = Self(WHOLE);

    /// The share of node `mine` by the recent demand of all nodes. Each node is counted with a twentieth of the
    /// average on top, so that a quiet one can begin at once; all shares together are at most the whole.
    pub fn of(demands: &[u64], mine: usize) -> Self {
        let nodes = demands.len() as u128;
        let Some(own) = demands.get(mine) else { return Self::ALL };
        let sum: u128 = demands.iter().map(|demand| u128::from(*demand)).sum();
        let floor = (sum / (nodes * 20)).max(1);
        let part = (u128::from(*own) + floor) * u128::from(WHOLE) / (sum + nodes * floor);
        Self(u32::try_from(part).unwrap_or(WHOLE).clamp(1, WHOLE))
    }

    pub(super) const fn of_millionths(millionths: u32) -> Self {
        Self(millionths)
    }

    /// Of the whole.
    pub const fn millionths(self) -> u32 {
        self.0
    }

    /// The share of a count, rounded down; of what is allowed at all, every node may have one.
    pub(super) fn of_count(self, count: u32) -> u32 {
        let part = u64::from(count) * u64::from(self.0) / u64::from(WHOLE);
        u32::try_from(part).unwrap_or(count).max(count.min(1))
    }
}

/// Nanoseconds in a minute: the capacity of a bucket, whatever it holds.
const MINUTE: u64 = 60_000_000_000;

/// A bucket that fills in a minute. It holds one number: when it will be full. Taking moves that moment away, giving
/// back moves it nearer, and time does the rest.
#[derive(Debug, Default)]
pub(super) struct RateGauge(AtomicU64);

/// What a rate limit shows to its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateView {
    pub limit: u64,
    pub remaining: u64,
    /// Until it is full again.
    pub reset: Duration,
}

impl RateView {
    /// `6m0s`, `1.5s`, `20ms`: as OpenAI writes it.
    pub fn reset_text(&self) -> String {
        let mut text = Vec::new();
        self.write_reset(&mut text);
        String::from_utf8(text).unwrap_or_default()
    }

    /// The same, without a text of its own.
    pub(crate) fn write_reset(&self, text: &mut Vec<u8>) {
        let (secs, millis) = (self.reset.as_secs(), u64::from(self.reset.subsec_millis()));
        match (secs / 60, secs % 60, millis) {
            (0, 0, millis) => {
                decimal(text, millis);
                text.push(b'm');
            }
            (0, secs, 0) => decimal(text, secs),
            (0, secs, millis) => {
                decimal(text, secs);
                text.push(b'.');
                text.extend([millis / 100, millis / 10 % 10, millis % 10].map(|digit| b'0' + digit as u8));
            }
            (minutes, secs, _) => {
                decimal(text, minutes);
                text.push(b'm');
                decimal(text, secs);
            }
        }
        text.push(b's');
    }
}

/// Appends a number.
pub(crate) fn decimal(text: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; 20];
    let mut from = digits.len();
    for slot in digits.iter_mut().rev() {
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        from -= 1;
        if number == 0 {
            break;
        }
    }
    text.extend_from_slice(digits.get(from..).unwrap_or_default());
}

fn nanos(now: Tick) -> u64 {
    now.0.saturating_mul(1_000_000)
}

/// Nanoseconds of filling that `count` takes at so many a minute; `None`: at that rate nothing is allowed.
pub(super) fn cost(count: u64, per_minute: u64, share: NodeShare) -> Option<u64> {
    let rate = u128::from(per_minute) * u128::from(share.0);
    let cost = (u128::from(count) * u128::from(MINUTE) * u128::from(WHOLE)).checked_div(rate)?;
    // A thousand minutes of debt are as good as any more, and cannot overflow.
    Some(u64::try_from(cost).unwrap_or(u64::MAX).min(MINUTE * 1_000))
}

impl RateGauge {
    /// Takes `cost`, or says after how long it would do. What is larger than the bucket passes when it is full.
    pub(super) fn take(&self, cost: u64, now: Tick) -> Result<(), Duration> {
        let now = nanos(now);
        let fits = now.saturating_add(MINUTE - cost.min(MINUTE));
        let taken = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |full_at| {
            let full_at = full_at.max(now);
            (full_at <= fits).then(|| full_at.saturating_add(cost))
        });
        taken.map(|_| ()).map_err(|full_at| Duration::from_nanos(full_at.saturating_sub(fits)))
    }

    /// Takes without asking: what was delivered already.
    pub(super) fn charge(&self, cost: u64, now: Tick) {
        let now = nanos(now);
        let add = |full_at: u64| Some(full_at.max(now).saturating_add(cost));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
    }

    pub(super) fn give_back(&self, cost: u64) {
        let sub = |full_at: u64| Some(full_at.saturating_sub(cost));
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, sub);
    }

    pub(super) fn until_full(&self, now: Tick) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Acquire).saturating_sub(nanos(now)))
    }

    pub(super) fn view(&self, limit: u64, share: NodeShare, now: Tick) -> RateView {
        let reset = self.until_full(now);
        let free = u128::from(MINUTE).saturating_sub(reset.as_nanos());
        let remaining =
            free * u128::from(limit) * u128::from(share.0) / (u128::from(MINUTE) * u128::from(WHOLE));
        RateView { limit, remaining: u64::try_from(remaining).unwrap_or(u64::MAX), reset }
    }
}

/// Takes from a bucket, and says what it cost.
pub(super) fn take(
    gauge: &RateGauge,
    count: u64,
    limit: u64,
    share: NodeShare,
    now: Tick,
    word: LimitWord,
) -> Result<u64, GatewayError> {
    let what = if word == LimitWord::Tokens { "tokens" } else { "requests" };
    let error = || {
        let message = format!("{limit} {what} a minute are allowed");
        GatewayError::new(ErrorCode::RateLimitExceeded, message).param(word.as_str())
    };
    let Some(cost) = cost(count, limit, share) else { return Err(error().exhausted()) };
    gauge.take(cost, now).map(|()| cost).map_err(|wait| error().retry_after(wait))
}
