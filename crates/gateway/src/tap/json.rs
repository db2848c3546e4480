//! JSON read byte by byte, and what the few words in it mean that the gateway wants to know.
//!
//! [`JsonReader`] knows where in an object it stands; [`TapReading`] keeps what was said there. One table of places and words
//! serves all dialects: their words do not collide.

use super::words::{Key, Place, inside};
use crate::skim::plain_run;

/// Words longer than this are none that we know.
const WORD_MAX: usize = 64;
/// Levels whose place is known one by one; below, everything belongs to the last one.
const PLACES: usize = 12;
/// Levels after which an event is no longer read.
const DEPTH_MAX: u32 = 127;
const MARK: &[u8] = b"[DONE]";

/// How answers of a dialect look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapShape {
    /// Chat completions, completions, embeddings.
    Chat,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapFinish {
    /// The model was done.
    Stop,
    /// A limit of tokens or of the window.
    Length,
    /// It calls tools.
    Tools,
    /// A filter, or a refusal.
    Filter,
    /// A word that says something else.
    Other,
}

/// Counts as they stand in the answer, of the last that said them. Whether `input` contains the cached ones differs
/// by dialect: `provider::dialect` normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TapUsage {
    /// `prompt_tokens`, `input_tokens`
    pub input: Option<u64>,
    /// `completion_tokens`, `output_tokens`
    pub output: Option<u64>,
    /// `total_tokens`
    pub total: Option<u64>,
    /// Read from a cache.
    pub cached: Option<u64>,
    /// Written to a cache.
    pub cache_write: Option<u64>,
    /// Of those, for five minutes.
    pub cache_write_5m: Option<u64>,
    /// Of those, for an hour.
    pub cache_write_1h: Option<u64>,
    /// Reasoning.
    pub reasoning: Option<u64>,
    /// A cost that the provider names, in units of 1e-10 USD.
    pub cost_units: Option<i64>,
}

/// What one answer said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TapSums {
    /// Counts, where any came.
    pub usage: TapUsage,
    /// Text, reasoning, an argument of a tool, a refusal, or a reason of the end came: no other provider may answer.
    pub content: bool,
    /// The reason of the end.
    pub finish: Option<TapFinish>,
    /// An error inside the answer.
    pub error: bool,
    /// The mark of a whole answer: `[DONE]`, `message_stop`, `response.completed`; the end of a JSON body.
    pub ended: bool,
    /// Events, or a body, that could not be read.
    pub garbage: u32,
    /// Bytes of content, as they stand in JSON.
    pub output_bytes: u64,
    /// Events with data.
    pub events: u64,
    /// The last `sequence_number` (Responses).
    pub sequence: Option<u64>,
    /// `response.id` (Responses).
    pub response_id: Option<Box<str>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// Nothing came yet.
    #[default]
    Start,
    Value,
    /// A value, or the end of the array just opened.
    First,
    /// A key, or the end of the object just opened.
    FirstKey,
    NextKey,
    KeyText,
    KeyEscape,
    Colon,
    Text,
    TextEscape,
    Number,
    Literal,
    After,
    Done,
    Broken,
}

/// A reader of one JSON value.
#[derive(Debug, Clone, Default)]
pub(super) struct JsonReader {
    mode: Mode,
    depth: u32,
    /// One bit per open container, the innermost lowest: 1 is an object.
    kinds: u128,
    places: [Place; PLACES],
    key: Key,
    word: Word,
    /// Bytes of the present text.
    length: u64,
}

/// The first bytes of a key, text, number or literal.
#[derive(Debug, Clone)]
struct Word {
    bytes: [u8; WORD_MAX],
    length: u8,
    /// There were more.
    cut: bool,
}

impl Default for Word {
    fn default() -> Self {
        Self { bytes: [0; WORD_MAX], length: 0, cut: false }
    }
}

impl Word {
    fn clear(&mut self) {
        (self.length, self.cut) = (0, false);
    }

    fn push(&mut self, bytes: &[u8]) {
        let from = usize::from(self.length);
        let free = self.bytes.get_mut(from..).unwrap_or_default();
        let taken = free.len().min(bytes.len());
        if let (Some(to), Some(part)) = (free.get_mut(..taken), bytes.get(..taken)) {
            to.copy_from_slice(part);
        }
        self.cut |= taken < bytes.len();
        self.length += taken as u8;
    }

    /// The whole word; nothing, if it is too long to be known.
    fn whole(&self) -> &[u8] {
        if self.cut { &[] } else { self.bytes.get(..usize::from(self.length)).unwrap_or_default() }
    }
}

impl JsonReader {
    pub(super) fn is_untouched(&self) -> bool {
        self.mode == Mode::Start
    }

    /// One value, whole.
    pub(super) fn is_whole(&self) -> bool {
        self.mode == Mode::Done
    }

    pub(super) fn feed(&mut self, bytes: &[u8], reading: &mut TapReading) {
        self.run(bytes, reading, false);
    }

    /// The beginning of an event. Events of a stream differ in little but the text that they add: what comes before and
    /// after it is looked up, not read, where it is byte for byte that of an event before.
    pub(super) fn feed_event(&mut self, bytes: &[u8], reading: &mut TapReading, memo: &mut EventMemo) {
        let at = match memo.before.as_ref().filter(|known| bytes.starts_with(&known.bytes)) {
            Some(known) => {
                known.resume(self, reading);
                known.bytes.len()
            }
            None => {
                reading.touched = false;
                let at = self.run(bytes, reading, true);
                if at >= bytes.len() || at > MEMO_MAX || reading.touched {
                    return self.feed(bytes.get(at..).unwrap_or_default(), reading);
                }
                memo.before = Some(Checkpoint::of(bytes.get(..at).unwrap_or_default(), self, reading));
                memo.after = None;
                at
            }
        };
        let rest = bytes.get(at..).unwrap_or_default();
        let run = plain_run(rest);
        if rest.get(run) != Some(&b'"') {
            return self.feed(rest, reading);
        }
        let (text, after) = rest.split_at(run);
        self.feed(text, reading);
        self.feed(b"\"", reading);
        let after = after.get(1..).unwrap_or_default();
        match memo.after.as_ref().filter(|known| *known.bytes == *after) {
            Some(known) => known.resume(self, reading),
            None => {
                reading.touched = false;
                self.feed(after, reading);
                if self.is_whole() && after.len() <= MEMO_MAX && !reading.touched {
                    memo.after = Some(Checkpoint::of(after, self, reading));
                }
            }
        }
    }

    /// Reads on; with `stop`, not beyond the beginning of a text that the model says. How much was read.
    fn run(&mut self, bytes: &[u8], reading: &mut TapReading, stop: bool) -> usize {
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            match self.mode {
                Mode::KeyText | Mode::Text => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let run = plain_run(rest);
                    let part = rest.get(..run).unwrap_or_default();
                    self.length += run as u64;
                    at += run + 1;
                    let end = rest.get(run);
                    if end == Some(&b'"') {
                        // Usually it stands whole in these bytes, and nothing is copied.
                        let pieces = self.word.length > 0 || self.word.cut;
                        if pieces {
                            self.word.push(part);
                        }
                        let word = match pieces {
                            true => self.word.whole(),
                            false if part.len() > WORD_MAX => &[],
                            false => part,
                        };
                        if self.mode == Mode::KeyText {
                            self.key = Key::of(word);
                            self.mode = Mode::Colon;
                        } else {
                            reading.text(self.place(), self.key, word, self.length);
                            self.ended();
                        }
                        continue;
                    }
                    self.word.push(part);
                    match end {
                        None => return bytes.len(),
                        Some(b'\\') if self.mode == Mode::KeyText => self.mode = Mode::KeyEscape,
                        Some(b'\\') => self.mode = Mode::TextEscape,
                        Some(_) => self.mode = Mode::Broken,
                    }
                }
                Mode::KeyEscape | Mode::TextEscape => {
                    // Digits of \u are plain bytes and come by themselves.
                    self.word.push(&[b'\\', *byte]);
                    self.length += 2;
                    self.mode = if self.mode == Mode::KeyEscape { Mode::KeyText } else { Mode::Text };
                    at += 1;
                }
                Mode::Number | Mode::Literal => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let part = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
                    let run = rest.iter().position(|byte| !part(byte)).unwrap_or(rest.len());
                    self.word.push(rest.get(..run).unwrap_or_default());
                    at += run;
                    if run < rest.len() {
                        self.bare_ended(reading);
                    }
                }
                Mode::Done if !byte.is_ascii_whitespace() => self.mode = Mode::Broken,
                Mode::Broken => return bytes.len(),
                _ => {
                    self.structure(*byte, reading);
                    at += 1;
                    if stop && self.mode == Mode::Text && is_said(self.place(), self.key) {
                        return at;
                    }
                }
            }
        }
        at
    }

    /// A number or literal ended.
    fn bare_ended(&mut self, reading: &mut TapReading) {
        if self.mode == Mode::Number {
            reading.number(self.place(), self.key, self.word.whole());
        } else if !matches!(self.word.whole(), b"true" | b"false" | b"null") {
            self.mode = Mode::Broken;
            return;
        }
        self.ended();
    }

    fn structure(&mut self, byte: u8, reading: &mut TapReading) {
        match (self.mode, byte) {
            (_, b' ' | b'\n' | b'\r' | b'\t') => {}
            (Mode::Start | Mode::Value | Mode::First, b'"') => self.begin(Mode::Text),
            (Mode::Start | Mode::Value | Mode::First, b'-' | b'0'..=b'9') => {
                self.begin(Mode::Number);
                self.word.push(&[byte]);
            }
            (Mode::Start | Mode::Value | Mode::First, b't' | b'f' | b'n') => {
                self.begin(Mode::Literal);
                self.word.push(&[byte]);
            }
            (Mode::Start | Mode::Value | Mode::First, b'{' | b'[') => self.open(byte == b'{', reading),
            (Mode::FirstKey | Mode::NextKey, b'"') => self.begin(Mode::KeyText),
            (Mode::Colon, b':') => self.mode = Mode::Value,
            (Mode::After, b',') if self.in_object() => self.mode = Mode::NextKey,
            (Mode::After, b',') => {
                self.key = Key::Element;
                self.mode = Mode::Value;
            }
            (Mode::After | Mode::FirstKey, b'}') if self.in_object() => self.close(),
            (Mode::After | Mode::First, b']') if !self.in_object() => self.close(),
            _ => self.mode = Mode::Broken,
        }
    }

    fn in_object(&self) -> bool {
        self.kinds & 1 == 1
    }

    fn begin(&mut self, mode: Mode) {
        self.word.clear();
        self.length = 0;
        self.mode = mode;
    }

    fn open(&mut self, object: bool, reading: &mut TapReading) {
        let place = match self.depth {
            0 => Place::Root,
            _ => inside(reading.shape, self.place(), self.key),
        };
        reading.opened(if self.depth == 0 { Place::Other } else { self.place() }, self.key, place);
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            self.mode = Mode::Broken;
            return;
        }
        self.kinds = self.kinds << 1 | u128::from(object);
        if let Some(slot) = self.places.get_mut(self.depth as usize) {
            *slot = place;
        }
        self.key = Key::Element;
        self.mode = if object { Mode::FirstKey } else { Mode::First };
    }

    fn close(&mut self) {
        self.depth -= 1;
        self.kinds >>= 1;
        self.ended();
    }

    /// A value ended.
    fn ended(&mut self) {
        self.mode = if self.depth == 0 { Mode::Done } else { Mode::After };
    }

    /// The innermost open container.
    fn place(&self) -> Place {
        let at = (self.depth as usize).min(PLACES - 1);
        self.places.get(at).copied().unwrap_or_default()
    }
}

/// Texts there are what the model says.
const fn is_said(place: Place, key: Key) -> bool {
    matches!(
        (place, key),
        (Place::Choice | Place::Block, Key::Text)
            | (Place::Delta, Key::Content | Key::Text | Key::Said)
            | (Place::BlockDelta, Key::Text | Key::Said)
            | (Place::Root, Key::Delta)
    )
}

/// Longer beginnings and ends of events are not kept.
const MEMO_MAX: usize = 1024;

/// How the last event began, up to its text, and how it ended after it.
#[derive(Debug, Default)]
pub(super) struct EventMemo {
    before: Option<Checkpoint>,
    after: Option<Checkpoint>,
}

/// What reading these bytes came to: nothing but a place in the event. Bytes that say more are read each time.
#[derive(Debug)]
struct Checkpoint {
    bytes: Box<[u8]>,
    reader: JsonReader,
    kind: Option<Kind>,
    /// Whether there are choices, a choice, usage.
    seen: [bool; 3],
}

impl Checkpoint {
    fn of(bytes: &[u8], reader: &JsonReader, reading: &TapReading) -> Self {
        Self {
            bytes: bytes.into(),
            reader: reader.clone(),
            kind: reading.kind,
            seen: [reading.choices, reading.choice, reading.usage],
        }
    }

    fn resume(&self, reader: &mut JsonReader, reading: &mut TapReading) {
        reader.clone_from(&self.reader);
        reading.kind = self.kind;
        [reading.choices, reading.choice, reading.usage] = self.seen;
    }
}

/// What an event says by its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Kind {
    /// Something of the model's.
    Said,
    /// The answer is whole.
    Ended,
    /// It failed.
    Failed,
    #[default]
    Other,
}

impl Kind {
    fn of(word: &[u8]) -> Self {
        match word {
            b"response.completed" | b"response.incomplete" | b"message_stop" => Self::Ended,
            b"response.failed" | b"error" => Self::Failed,
            _ if word.starts_with(b"response.")
                && (word.ends_with(b".delta") || word.ends_with(b".done")) =>
            {
                Self::Said
            }
            _ => Self::Other,
        }
    }
}

/// What was read, of the answer and of the present event.
#[derive(Debug)]
pub(super) struct TapReading {
    pub(super) sums: TapSums,
    shape: TapShape,
    stream: bool,
    /// How much of `[DONE]` came.
    mark: u8,
    kind: Option<Kind>,
    name: Word,
    /// The list of choices was opened, and has one.
    choices: bool,
    choice: bool,
    usage: bool,
    /// The event has data.
    data: bool,
    /// `sums` was set or added to since this was cleared.
    touched: bool,
}

impl TapReading {
    pub(super) fn new(shape: TapShape, stream: bool) -> Self {
        Self {
            sums: TapSums::default(),
            shape,
            stream,
            mark: 0,
            kind: None,
            name: Word::default(),
            choices: false,
            choice: false,
            usage: false,
            data: false,
            touched: false,
        }
    }

    /// The present event carries usage and no choice.
    pub(super) fn is_extra(&self) -> bool {
        self.choices && self.usage && !self.choice
    }

    /// The present event cannot become an extra one any more.
    pub(super) fn is_decided(&self) -> bool {
        self.choice || self.mark > 0
    }

    /// The mark of the end has come whole.
    pub(super) fn is_mark(&self) -> bool {
        usize::from(self.mark) == MARK.len()
    }

    /// Data of an event, of which no JSON was read yet: passes by as much as may be the mark of the end, and gives
    /// to `json` what turned out to be none.
    pub(super) fn data(&mut self, data: &[u8], json: &mut JsonReader, memo: &mut EventMemo) {
        self.data = true;
        if !json.is_untouched() {
            return json.feed(data, self);
        }
        if self.mark == 0 && data.first() == Some(&b'{') {
            return json.feed_event(data, self, memo);
        }
        let mut rest = data;
        while let Some((first, behind)) = rest.split_first() {
            match MARK.get(usize::from(self.mark)) {
                None => return,
                Some(expected) if expected == first => self.mark += 1,
                Some(_) if self.mark == 0 && *first == b' ' => {}
                Some(_) => {
                    let passed = MARK.get(..usize::from(std::mem::take(&mut self.mark))).unwrap_or_default();
                    json.feed(passed, self);
                    return json.feed(rest, self);
                }
            }
            rest = behind;
        }
    }

    pub(super) fn event_name(&mut self, part: &[u8]) {
        self.name.push(part);
    }

    fn opened(&mut self, outer: Place, key: Key, place: Place) {
        match (outer, key, place) {
            (_, _, Place::Choices) => self.choices = true,
            (_, _, Place::Choice) => self.choice = true,
            (_, _, Place::Usage) => self.usage = true,
            (Place::Root | Place::Response | Place::Choice, Key::Error, _) => {
                self.sums.error = true;
                self.touched = true;
            }
            _ => {}
        }
    }

    fn text(&mut self, place: Place, key: Key, word: &[u8], length: u64) {
        use {Key as K, Place as P};
        match (place, key) {
            (P::Root, K::Type) => return self.kind = Some(Kind::of(word)),
            (P::Response | P::Root, K::Status) => self.status(place, word),
            (P::Response, K::Id) if self.sums.response_id.is_none() => {
                self.sums.response_id = std::str::from_utf8(word).ok().map(Into::into);
            }
            (P::Root, K::Error) if length > 0 => self.sums.error = true,
            (P::Choice | P::Root | P::BlockDelta, K::Finish) if length > 0 => self.finish(word),
            (P::Choice | P::Block | P::BlockDelta, K::Text)
            | (P::Delta, K::Content | K::Text | K::Said)
            | (P::BlockDelta, K::Said) => self.said(length),
            (P::Root, K::Delta) if self.shape == TapShape::Responses => self.sums.output_bytes += length,
            (P::Part, K::Type | K::Id | K::Index | K::Role | K::Status) => return,
            (P::Part, _) => self.said(length),
            // What has no delta of its own: a tool's name, reasoning that is hidden.
            (P::Block, K::Type) if !matches!(word, b"text" | b"thinking") => self.sums.content = true,
            // Some compatible providers write counts or costs as texts.
            (P::Usage | P::Cost, K::Cost | K::TotalCost) => self.number(place, key, word),
            _ => return,
        }
        self.touched = true;
    }

    fn said(&mut self, length: u64) {
        self.touched = true;
        self.sums.content |= length > 0;
        self.sums.output_bytes += length;
    }

    fn finish(&mut self, word: &[u8]) {
        self.sums.content = true;
        self.sums.finish = Some(match word {
            b"stop" | b"end_turn" | b"stop_sequence" | b"completed" => TapFinish::Stop,
            b"length"
            | b"max_tokens"
            | b"max_output_tokens"
            | b"incomplete"
            | b"model_context_window_exceeded" => TapFinish::Length,
            b"tool_calls" | b"tool_use" | b"function_call" => TapFinish::Tools,
            b"content_filter" | b"refusal" | b"sensitive" => TapFinish::Filter,
            b"error" | b"network_error" => {
                self.sums.error = true;
                TapFinish::Other
            }
            _ => TapFinish::Other,
        });
    }

    /// Of a response (Responses).
    fn status(&mut self, place: Place, word: &[u8]) {
        if self.shape != TapShape::Responses || (place == Place::Root && self.stream) {
            return;
        }
        match word {
            b"completed" => self.sums.finish = Some(TapFinish::Stop),
            b"incomplete" => self.sums.finish = Some(TapFinish::Length),
            b"failed" => self.sums.error = true,
            _ => {}
        }
    }

    fn number(&mut self, place: Place, key: Key, word: &[u8]) {
        use {Key as K, Place as P};
        let usage = &mut self.sums.usage;
        let touched = std::mem::replace(&mut self.touched, true);
        let slot = match (place, key) {
            (P::Usage, K::Input) => &mut usage.input,
            (P::Usage, K::OutputCount) => &mut usage.output,
            (P::Usage, K::Total) => &mut usage.total,
            (P::Usage | P::InputDetails, K::Cached) => &mut usage.cached,
            (P::Usage | P::InputDetails, K::CacheWrite) => &mut usage.cache_write,
            (P::CacheCreation, K::Write5m) => &mut usage.cache_write_5m,
            (P::CacheCreation, K::Write1h) => &mut usage.cache_write_1h,
            (P::OutputDetails | P::Usage, K::Reasoning) => &mut usage.reasoning,
            (P::Root, K::Sequence) => &mut self.sums.sequence,
            (P::Usage, K::Cost) | (P::Cost, K::TotalCost) => {
                usage.cost_units = cost_units(word).or(usage.cost_units);
                return;
            }
            // A tick is 1e-10 USD (xAI's reference, "cost_in_usd_ticks").
            (P::Usage, K::CostTicks) => {
                usage.cost_units =
                    whole(word).and_then(|ticks| i64::try_from(ticks).ok()).or(usage.cost_units);
                return;
            }
            // Anything else that a model says as a number.
            (P::Part, key) if !matches!(key, K::Index | K::Id) => return self.said(word.len() as u64),
            _ => return self.touched = touched,
        };
        *slot = whole(word).or(*slot);
    }

    /// An event ended; `whole`: its data is one JSON value.
    pub(super) fn event_ended(&mut self, whole: bool) {
        let kind = self.kind.unwrap_or_else(|| Kind::of(self.name.whole()));
        if self.data {
            self.sums.events += 1;
        }
        if self.is_mark() {
            self.sums.ended = true;
        } else if self.data && !whole {
            self.sums.garbage = self.sums.garbage.saturating_add(1);
        }
        match kind {
            Kind::Said => self.sums.content = true,
            Kind::Ended if self.shape != TapShape::Chat => {
                self.sums.ended = true;
                self.sums.content = true;
            }
            Kind::Failed => self.sums.error = true,
            _ => {}
        }
        self.mark = 0;
        self.kind = None;
        self.name.clear();
        (self.choices, self.choice, self.usage, self.data) = (false, false, false, false);
    }

    /// The body ended.
    pub(super) fn body_ended(&mut self, whole: bool) {
        self.sums.ended = whole;
        self.sums.garbage = u32::from(!whole);
        if self.kind == Some(Kind::Failed) {
            self.sums.error = true;
        }
    }
}

/// A count. A fraction without one (`12.0`) is the same; others are not taken.
fn whole(word: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(word).ok()?;
    let text = text
        .split_once('.')
        .map_or(text, |(whole, rest)| if rest.bytes().all(|b| b == b'0') { whole } else { text });
    text.parse().ok()
}

/// USD in decimal notation as units of 1e-10, rounded up: exact where floats are not.
fn cost_units(word: &[u8]) -> Option<i64> {
    const DIGITS: i32 = 10;
    let text = std::str::from_utf8(word).ok()?;
    let (number, exponent) = match text.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 30 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u128 = digits.parse().ok()?;
    let shift = exponent.checked_add(DIGITS)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let units = if shift >= 0 {
        value.checked_mul(10u128.checked_pow(shift.unsigned_abs())?)?
    } else {
        match 10u128.checked_pow(shift.unsigned_abs()) {
            Some(by) => value.div_ceil(by),
            None => u128::from(value > 0),
        }
    };
    i64::try_from(units).ok()
}

#[cfg(test)]
mod tests {
    use super::cost_units;

    #[test]
    fn costs_are_exact() {
        let check = |text: &str, units| assert_eq!(cost_units(text.as_bytes()), units, "{text}");
        check("0.000123", Some(1_230_000));
        check("1", Some(10_000_000_000));
        check("1e-10", Some(1));
        check("1.5e-10", Some(2));
        check("3e-7", Some(3_000));
        check("0", Some(0));
        check("1e400", None);
        check("-1", None);
        check("", None);
        check("1e-400", Some(1));
    }
}
