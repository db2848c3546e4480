//! What stands in the spool, as values and as bytes. Pure.
//!
//! Not its job: files, order, who reads.
//! Invariant: any bytes give a record or none; what was encoded decodes to the same value; no record is longer than
//! [`MAX_PAYLOAD`].
//!
//! A record is `length (u32) · CRC-32 of length and payload (u32) · payload`, numbers little-endian. A length of 0 is
//! where nothing was written yet. The payload begins with its kind.

use std::borrow::Cow;

use catalog::price::{Money, PricedTokens, TokenPrice, TokenRates, UsageCost};
use uuid::Uuid;

/// Bytes before the payload.
pub const HEAD: usize = 8;

/// Above what the fixed fields and all texts at their limits take together (under 6 KiB).
pub const MAX_PAYLOAD: usize = 8 * 1024;

/// A text of at most `MAX` bytes without NULs, which PostgreSQL does not take.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct SpoolText<'a, const MAX: usize>(Cow<'a, str>);

impl<'a, const MAX: usize> SpoolText<'a, MAX> {
    /// Cuts what is too long, between characters.
    pub fn new(text: impl Into<Cow<'a, str>>) -> Self {
        let mut text = text.into();
        if text.len() > MAX {
            let end = text.floor_char_boundary(MAX);
            match &mut text {
                Cow::Borrowed(it) => text = Cow::Borrowed(it.get(..end).unwrap_or_default()),
                Cow::Owned(it) => it.truncate(end),
            }
        }
        if text.contains('\0') {
            text = Cow::Owned(text.replace('\0', " "));
        }
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'a, const MAX: usize> From<&'a str> for SpoolText<'a, MAX> {
    fn from(text: &'a str) -> Self {
        Self::new(text)
    }
}

impl<const MAX: usize> From<String> for SpoolText<'_, MAX> {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl<const MAX: usize> std::ops::Deref for SpoolText<'_, MAX> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// Where the tokens of a row come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum UsageSource {
    /// The provider's own count of a whole answer.
    Reported,
    /// Counted from bytes.
    Estimated,
    /// The provider's count of an answer that broke off or was left.
    Partial,
    /// Nothing was used, or nothing is known.
    #[default]
    None,
}

impl UsageSource {
    /// The word in `metadata.usage_source`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::Estimated => "estimated",
            Self::Partial => "partial",
            Self::None => "none",
        }
    }
}

/// A part of a payload.
trait Field<'a>: Sized {
    fn put(&self, into: &mut Vec<u8>);
    fn get(from: &mut &'a [u8]) -> Option<Self>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Field<'_> for $type {
            fn put(&self, into: &mut Vec<u8>) {
                into.extend_from_slice(&self.to_le_bytes());
            }

            fn get(from: &mut &[u8]) -> Option<Self> {
                let (bytes, rest) = from.split_first_chunk()?;
                *from = rest;
                Some(Self::from_le_bytes(*bytes))
            }
        }
    )*};
}
number!(u8, u16, u32, u64, i64);

impl Field<'_> for bool {
    fn put(&self, into: &mut Vec<u8>) {
        into.push(u8::from(*self));
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        match u8::get(from)? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl Field<'_> for Uuid {
    fn put(&self, into: &mut Vec<u8>) {
        into.extend_from_slice(self.as_bytes());
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(Self::from_bytes(*bytes))
    }
}

impl<'a, T: Field<'a>> Field<'a> for Option<T> {
    fn put(&self, into: &mut Vec<u8>) {
        self.is_some().put(into);
        if let Some(it) = self {
            it.put(into);
        }
    }

    fn get(from: &mut &'a [u8]) -> Option<Self> {
        if bool::get(from)? { T::get(from).map(Some) } else { Some(None) }
    }
}

impl<'a, const MAX: usize> Field<'a> for SpoolText<'a, MAX> {
    fn put(&self, into: &mut Vec<u8>) {
        // Every MAX here is far below 64 KiB.
        into.extend_from_slice(&(self.0.len() as u16).to_le_bytes());
        into.extend_from_slice(self.0.as_bytes());
    }

    fn get(from: &mut &'a [u8]) -> Option<Self> {
        let length = usize::from(u16::get(from)?);
        let (bytes, rest) = from.split_at_checked(length)?;
        *from = rest;
        let text = std::str::from_utf8(bytes).ok()?;
        (length <= MAX && !text.contains('\0')).then_some(Self(Cow::Borrowed(text)))
    }
}

impl Field<'_> for UsageSource {
    fn put(&self, into: &mut Vec<u8>) {
        into.push(match self {
            Self::None => 0,
            Self::Reported => 1,
            Self::Estimated => 2,
            Self::Partial => 3,
        });
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        Some(match u8::get(from)? {
            0 => Self::None,
            1 => Self::Reported,
            2 => Self::Estimated,
            3 => Self::Partial,
            _ => return None,
        })
    }
}

impl Field<'_> for Money {
    fn put(&self, into: &mut Vec<u8>) {
        self.units().put(into);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        i64::get(from).map(Self::from_units)
    }
}

impl Field<'_> for TokenPrice {
    fn put(&self, into: &mut Vec<u8>) {
        self.units().put(into);
    }

    fn get(from: &mut &[u8]) -> Option<Self> {
        i64::get(from).and_then(Self::from_units)
    }
}

/// `put` and `get` of a struct, its fields in one order.
macro_rules! layout {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl<'a> Field<'a> for $type {
            fn put(&self, into: &mut Vec<u8>) {
                $(self.$field.put(into);)*
            }

            fn get(from: &mut &'a [u8]) -> Option<Self> {
                Some(Self { $($field: Field::get(from)?),* })
            }
        }
    };
}

/// What is known of a request before it leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestFacts<'a> {
    /// Ours, UUIDv7; it becomes the row's id where that is a uuid.
    pub id: Uuid,
    /// When the request came, microseconds since 1970; it becomes the row's `created_at`.
    pub at: i64,
    pub provider_id: Option<Uuid>,
    pub model_id: Option<Uuid>,
    /// Names, which stay when the rows that the ids mean are gone.
    pub provider: SpoolText<'a, 255>,
    pub model: SpoolText<'a, 255>,
    pub consumer: SpoolText<'a, 100>,
    pub user_id: SpoolText<'a, 255>,
    pub user_tier: SpoolText<'a, 50>,
    /// `x-request-id`.
    pub request_id: SpoolText<'a, 255>,
    pub power_level: SpoolText<'a, 50>,
    /// `chat`, `embeddings`, `messages`, ...
    pub operation: SpoolText<'a, 32>,
    /// Cell, alias, name or pin by which the candidates were found.
    pub route: SpoolText<'a, 255>,
    pub seed: u64,
}
layout!(RequestFacts<'a> {
    id, at, provider_id, model_id, provider, model, consumer, user_id, user_tier, request_id, power_level, operation, route,
    seed,
});

/// Written before a request leaves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageIntent<'a> {
    pub facts: RequestFacts<'a>,
    /// Input tokens, estimated from bytes.
    pub input_estimate: u64,
    /// What that input costs, if its price is known.
    pub cost_estimate: Option<Money>,
    /// What was taken from budgets until the outcome is known.
    pub reserved: Money,
}
layout!(UsageIntent<'a> { facts, input_estimate, cost_estimate, reserved });

/// Written before a request goes to a further candidate.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageAttempt<'a> {
    pub id: Uuid,
    pub provider_id: Option<Uuid>,
    pub model_id: Option<Uuid>,
    pub provider: SpoolText<'a, 255>,
    pub model: SpoolText<'a, 255>,
    /// Why the one before did not answer.
    pub reason: SpoolText<'a, 100>,
}
layout!(UsageAttempt<'a> { id, provider_id, model_id, provider, model, reason });

/// Written once the request has ended: everything that its row needs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageRow<'a> {
    pub facts: RequestFacts<'a>,
    pub tokens: PricedTokens,
    /// A part of the output.
    pub reasoning: u64,
    pub cost: UsageCost,
    /// The prices by which `cost` was computed.
    pub rates: TokenRates,
    /// In ten-thousandths of the listed price.
    pub factor: u32,
    pub source: UsageSource,
    /// To the last byte.
    pub latency_ms: u32,
    /// To the first content.
    pub ttft_ms: Option<u32>,
    /// What the caller got; none where the gateway ended before it knew.
    pub status_code: Option<u16>,
    pub success: bool,
    pub was_fallback: bool,
    pub streamed: bool,
    /// How many candidates were asked.
    pub attempts: u8,
    pub error: SpoolText<'a, 500>,
    /// A JSON object of further facts, or empty. Cut, it would be no JSON: give it within its limit.
    pub details: SpoolText<'a, 2048>,
}
layout!(UsageRow<'a> {
    facts, tokens, reasoning, cost, rates, factor, source, latency_ms, ttft_ms, status_code, success, was_fallback,
    streamed, attempts, error, details,
});
layout!(PricedTokens { input, cache_read, cache_write, cache_write_1h, output });
layout!(UsageCost { input, output, computed, reported, cached_as_input, written_as_input });
layout!(TokenRates { input, output, cached_input, cache_write, cache_write_1h });

/// Says that a segment ends earlier than its bytes do: what followed could not be synced and stands again behind this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpoolCut {
    pub segment: u64,
    pub end: u64,
}
layout!(SpoolCut { segment, end });

#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "most are the largest one, and each lives for one step of a loop"
)]
pub enum SpoolRecord<'a> {
    Intent(UsageIntent<'a>),
    Attempt(UsageAttempt<'a>),
    Outcome(UsageRow<'a>),
    Cut(SpoolCut),
}

impl<'a> UsageRow<'a> {
    /// The row of a request whose outcome was never written: its input as estimated, sent to the last candidate known.
    pub fn abandoned(intent: UsageIntent<'a>, last: Option<UsageAttempt<'a>>, attempts: u8) -> Self {
        let mut facts = intent.facts;
        let was_fallback = last.is_some();
        if let Some(last) = last {
            facts.provider_id = last.provider_id;
            facts.model_id = last.model_id;
            facts.provider = last.provider;
            facts.model = last.model;
        }
        let cost = UsageCost {
            input: intent.cost_estimate,
            output: intent.cost_estimate.map(|_| Money::ZERO),
            computed: intent.cost_estimate,
            ..UsageCost::default()
        };
        Self {
            facts,
            tokens: PricedTokens { input: intent.input_estimate, ..PricedTokens::default() },
            cost,
            factor: catalog::price::LISTED,
            source: UsageSource::Estimated,
            was_fallback,
            attempts,
            error: "gateway stopped".into(),
            ..Self::default()
        }
    }
}

/// Appends a record.
pub fn encode(record: &SpoolRecord<'_>, into: &mut Vec<u8>) {
    match record {
        SpoolRecord::Intent(it) => encode_as(1, it, into),
        SpoolRecord::Attempt(it) => encode_as(2, it, into),
        SpoolRecord::Outcome(it) => encode_as(3, it, into),
        SpoolRecord::Cut(it) => encode_as(4, it, into),
    }
}

/// [`encode`] without wrapping the value.
pub(super) fn encode_intent(it: &UsageIntent<'_>, into: &mut Vec<u8>) {
    encode_as(1, it, into);
}

pub(super) fn encode_attempt(it: &UsageAttempt<'_>, into: &mut Vec<u8>) {
    encode_as(2, it, into);
}

pub(super) fn encode_outcome(it: &UsageRow<'_>, into: &mut Vec<u8>) {
    encode_as(3, it, into);
}

fn encode_as<'a>(kind: u8, fields: &impl Field<'a>, into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; HEAD]);
    into.push(kind);
    fields.put(into);
    seal(start, into);
}

/// Appends a record of a payload that was read.
pub(super) fn reframe(payload: &[u8], into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; HEAD]);
    into.extend_from_slice(payload);
    seal(start, into);
}

/// Fills the head of the record that begins at `start` and ends with the bytes.
fn seal(start: usize, into: &mut [u8]) {
    let length = ((into.len() - start - HEAD) as u32).to_le_bytes();
    let (_, record) = into.split_at_mut(start);
    if let Some((head, payload)) = record.split_first_chunk_mut::<HEAD>() {
        let crc = checksum(length, payload).to_le_bytes();
        for (to, from) in head.iter_mut().zip(length.into_iter().chain(crc)) {
            *to = from;
        }
    }
}

fn checksum(length: [u8; 4], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    crc.update(payload);
    crc.finalize()
}

/// What bytes begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpoolFrame<'a> {
    /// A record whose checksum is right.
    Whole(&'a [u8]),
    /// Nothing was written here.
    End,
    /// A record may go on behind these bytes.
    Short,
    /// No record, or a torn one. `skip`: how far to the next, if the length can be believed.
    Torn { skip: usize },
}

/// Looks at the first record; its length in all is [`HEAD`] + payload.
pub fn frame(bytes: &[u8]) -> SpoolFrame<'_> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return SpoolFrame::Short };
    let size = u32::from_le_bytes(*length) as usize;
    if size == 0 {
        return SpoolFrame::End;
    }
    if size > MAX_PAYLOAD {
        return SpoolFrame::Torn { skip: 0 };
    }
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else { return SpoolFrame::Short };
    let Some(payload) = rest.get(..size) else { return SpoolFrame::Short };
    if checksum(*length, payload) == u32::from_le_bytes(*crc) {
        SpoolFrame::Whole(payload)
    } else {
        SpoolFrame::Torn { skip: HEAD + size }
    }
}

/// Reads a payload; `None` if it is none of ours.
pub fn decode(payload: &[u8]) -> Option<SpoolRecord<'_>> {
    let mut from = payload;
    let record = match u8::get(&mut from)? {
        1 => SpoolRecord::Intent(Field::get(&mut from)?),
        2 => SpoolRecord::Attempt(Field::get(&mut from)?),
        3 => SpoolRecord::Outcome(Field::get(&mut from)?),
        4 => SpoolRecord::Cut(Field::get(&mut from)?),
        _ => return None,
    };
    from.is_empty().then_some(record)
}

/// Whether a payload is an outcome, without reading it.
pub(super) fn is_outcome(payload: &[u8]) -> bool {
    payload.first() == Some(&3)
}

/// The request of an intent, attempt or outcome: `(kind, id)`.
pub(super) fn peek(payload: &[u8]) -> Option<(u8, Uuid)> {
    let mut from = payload;
    let kind = u8::get(&mut from)?;
    matches!(kind, 1..=3).then_some(kind).zip(Uuid::get(&mut from))
}

/// What must hold for any bytes; shared by the fuzz target and the property tests.
///
/// # Panics
/// When it does not hold.
#[doc(hidden)]
pub fn examine(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        match frame(rest) {
            SpoolFrame::Whole(payload) => {
                assert!(payload.len() <= MAX_PAYLOAD);
                if let Some(record) = decode(payload) {
                    let mut again = Vec::new();
                    encode(&record, &mut again);
                    assert_eq!(again.get(HEAD..), Some(payload), "one value has one form");
                }
                rest = &rest[HEAD + payload.len()..];
            }
            SpoolFrame::Torn { skip } => {
                assert!(skip == 0 || skip <= rest.len());
                break;
            }
            SpoolFrame::End | SpoolFrame::Short => break,
        }
    }
    if let Some(record) = decode(bytes) {
        let mut again = Vec::new();
        encode(&record, &mut again);
        assert_eq!(again.get(HEAD..), Some(bytes));
        assert_eq!(frame(&again), SpoolFrame::Whole(bytes));
    }
}
