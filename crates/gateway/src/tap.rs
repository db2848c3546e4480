//! A look at the answer while it passes: usage, first content, reason of the end, error inside a 200, mark of the end.
//!
//! Not its job: translating, holding back (but for the one event that the caller did not ask for), accounting.
//!
//! Invariants: of constant size, whatever comes; cut at any byte, the same bytes give the same result; no byte is
//! changed. What cannot be read is counted and passed on: the caller may understand what we do not.

mod json;
mod sse;
mod words;

use bytes::Bytes;

use json::{EventMemo, JsonReader, TapReading};
pub use json::{TapFinish, TapShape, TapSums, TapUsage};
use sse::{Sse, SseLine};

/// Bytes of an event that may wait for the word whether it is the extra one about usage. Such events are below 2 KiB;
/// a larger one is let go as it is.
const HELD_MAX: usize = 16 * 1024;

/// The look at one answer.
pub struct Tap {
    reading: TapReading,
    json: JsonReader,
    memo: EventMemo,
    /// `None`: one JSON body.
    sse: Option<Sse>,
    /// Where the extra event is withheld.
    sieve: Option<Sieve>,
}

/// What has come of an event that is not decided yet.
#[derive(Default)]
struct Sieve {
    held: Vec<Bytes>,
    bytes: usize,
    /// The present event is let go, whatever follows.
    passed: bool,
}

impl Tap {
    /// Of one JSON body.
    pub fn body(shape: TapShape) -> Self {
        Self {
            reading: TapReading::new(shape, false),
            json: JsonReader::default(),
            memo: EventMemo::default(),
            sse: None,
            sieve: None,
        }
    }

    /// Of a stream of server-sent events. `withhold`: usage was asked for by us alone, so the event that carries
    /// nothing else is kept from the caller.
    pub fn stream(shape: TapShape, withhold: bool) -> Self {
        Self {
            reading: TapReading::new(shape, true),
            json: JsonReader::default(),
            memo: EventMemo::default(),
            sse: Some(Sse::default()),
            sieve: (withhold && shape == TapShape::Chat).then(Sieve::default),
        }
    }

    /// What was seen so far.
    pub fn sums(&self) -> &TapSums {
        &self.reading.sums
    }

    /// Inside an event: what follows must begin with an empty line, or it becomes part of it.
    pub fn mid_event(&self) -> bool {
        self.sse.as_ref().is_some_and(Sse::mid_event)
    }

    /// Looks at the next bytes and gives `out` those that are passed on, in order.
    pub fn feed(&mut self, frame: &Bytes, mut out: impl FnMut(Bytes)) {
        let Self { reading, json, memo, sse, sieve } = self;
        let Some(sse) = sse else {
            json.feed(frame, reading);
            out(frame.clone());
            return;
        };
        let Some(sieve) = sieve else {
            let mut rest: &[u8] = frame;
            while !rest.is_empty() {
                let (line, used) = sse.next(rest);
                event(line, json, reading, memo);
                rest = rest.get(used..).unwrap_or_default();
            }
            out(frame.clone());
            return;
        };
        // From where nothing was given out yet, and where the present event began.
        let (mut from, mut begin, mut at) = (0, 0, 0);
        while at < frame.len() {
            let (line, used) = sse.next(frame.get(at..).unwrap_or_default());
            at += used;
            let extra = reading.is_extra();
            if event(line, json, reading, memo) {
                if extra && !sieve.passed {
                    if begin > from {
                        out(frame.slice(from..begin));
                    }
                    sieve.held.clear();
                    from = at;
                }
                sieve.let_go(&mut out);
                sieve.passed = false;
                begin = at;
            }
        }
        sieve.passed |= reading.is_decided() || sieve.bytes + (frame.len() - begin) > HELD_MAX;
        if sieve.passed {
            sieve.let_go(&mut out);
            begin = frame.len();
        }
        if begin > from {
            out(frame.slice(from..begin));
        }
        if begin < frame.len() {
            // What waits is little: copied, it does not keep a whole buffer alive.
            let rest = Bytes::copy_from_slice(frame.get(begin..).unwrap_or_default());
            sieve.bytes += rest.len();
            sieve.held.push(rest);
        }
    }

    /// The bytes ended. A last event without its empty line counts if it is whole; what waited is given out.
    pub fn end(&mut self, mut out: impl FnMut(Bytes)) {
        let Self { reading, json, sse, sieve, .. } = self;
        if sse.is_none() {
            reading.body_ended(json.is_whole());
            return;
        }
        if let Some(sse) = sse
            && sse.mid_event()
            && (json.is_whole() || reading.is_mark())
        {
            reading.event_ended(true);
        }
        if let Some(sieve) = sieve {
            sieve.let_go(&mut out);
        }
    }
}

impl Sieve {
    fn let_go(&mut self, out: &mut impl FnMut(Bytes)) {
        self.held.drain(..).for_each(out);
        self.bytes = 0;
    }
}

/// Takes in what a line says; true if an event ended.
fn event(line: SseLine<'_>, json: &mut JsonReader, reading: &mut TapReading, memo: &mut EventMemo) -> bool {
    match line {
        SseLine::Data(data) => {
            reading.data(data, json, memo);
            false
        }
        SseLine::NextData => {
            json.feed(b"\n", reading);
            false
        }
        SseLine::Name(name) => {
            reading.event_name(name);
            false
        }
        SseLine::Other => false,
        SseLine::End => {
            reading.event_ended(json.is_whole());
            *json = JsonReader::default();
            true
        }
    }
}

#[cfg(test)]
mod tests;
