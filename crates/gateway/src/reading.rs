//! An answer while it is read: as it comes where the provider speaks the caller's dialect, else through its translation.
//!
//! Not its job: sockets, clocks, what follows a failure. Invariants: what leaves is in the caller's dialect and
//! without the provider's key; what the tap sees is what the caller sees; a translated answer is whole only where its translation says so.

use bytes::Bytes;
use provider::dialect::{StreamTranslator, TokenParts, UpstreamFailure};

use crate::guard::KeyGuard;
use crate::tap::{Tap, TapShape, TapSums};

/// The reading of one answer.
pub(crate) struct AnswerReading {
    tap: Tap,
    translator: Option<Box<StreamTranslator>>,
    /// Tokens of a plain answer that was translated.
    parts: Option<TokenParts>,
    shape: TapShape,
    guard: KeyGuard,
}

impl AnswerReading {
    /// Of a stream in the caller's dialect. `withhold`: see [`Tap::stream`]; `guard`: the provider's key's.
    pub(crate) fn stream(shape: TapShape, withhold: bool, guard: KeyGuard) -> Self {
        Self { tap: Tap::stream(shape, withhold), translator: None, parts: None, shape, guard }
    }

    /// Of a stream in another dialect.
    pub(crate) fn translated(shape: TapShape, translator: StreamTranslator, guard: KeyGuard) -> Self {
        let translator = Some(Box::new(translator.holding_failures()));
        Self { tap: Tap::stream(shape, false), translator, parts: None, shape, guard }
    }

    /// Of a plain answer, whole, that `guard` has seen.
    pub(crate) fn plain(shape: TapShape, body: &Bytes, parts: Option<TokenParts>, guard: KeyGuard) -> Self {
        let mut tap = Tap::body(shape);
        tap.feed(body, drop);
        tap.end(drop);
        Self { tap, translator: None, parts, shape, guard }
    }

    /// More bytes of the provider; `out` gets those for the caller.
    pub(crate) fn feed(&mut self, data: &Bytes, out: impl FnMut(Bytes)) {
        let data = self.guard.pass(data);
        if !data.is_empty() {
            self.translate(|translator, text| translator.feed(&data, text), Some(&data), out);
        }
    }

    /// A stream was asked for, and the provider gave all at once.
    pub(crate) fn whole(&mut self, body: &Bytes, out: impl FnMut(Bytes)) {
        self.translate(|translator, text| translator.whole(body, text), None, out);
    }

    /// The provider's bytes ended.
    pub(crate) fn end(&mut self, mut out: impl FnMut(Bytes)) {
        let rest = self.guard.rest();
        if !rest.is_empty() {
            self.translate(|translator, text| translator.feed(&rest, text), Some(&rest), &mut out);
        }
        self.translate(StreamTranslator::finish, None, &mut out);
        self.tap.end(out);
    }

    /// Feeds the tap with what the translator makes, or with `own` where there is none.
    fn translate(
        &mut self,
        made: impl FnOnce(&mut StreamTranslator, &mut Vec<u8>),
        own: Option<&Bytes>,
        out: impl FnMut(Bytes),
    ) {
        match (&mut self.translator, own) {
            (Some(translator), _) => {
                let mut text = Vec::new();
                made(translator, &mut text);
                if !text.is_empty() {
                    self.tap.feed(&text.into(), out);
                }
            }
            (None, Some(own)) => self.tap.feed(own, out),
            (None, None) => {}
        }
    }

    /// What the caller sees of it.
    pub(crate) fn sums(&self) -> &TapSums {
        self.tap.sums()
    }

    /// The caller sees content: nothing else may answer.
    pub(crate) fn content(&self) -> bool {
        self.sums().content || self.translator.as_ref().is_some_and(|it| it.has_content())
    }

    /// How often the provider's key stood in the answer and was overwritten.
    pub(crate) const fn keys_found(&self) -> u32 {
        self.guard.found()
    }

    /// Inside an event, see [`Tap::mid_event`].
    pub(crate) fn mid_event(&self) -> bool {
        self.tap.mid_event()
    }

    /// What broke a translated stream: an error of the provider inside it, its end before its mark, nonsense.
    pub(crate) fn failure(&self) -> Option<&UpstreamFailure> {
        self.translator.as_ref().and_then(|translator| translator.failure())
    }

    /// What came so far is a whole answer.
    pub(crate) fn is_whole(&self) -> bool {
        match &self.translator {
            Some(translator) => translator.is_over() && translator.failure().is_none(),
            // Some compatible providers leave `[DONE]` out.
            None => {
                let sums = self.sums();
                sums.ended || (self.shape == TapShape::Chat && sums.finish.is_some())
            }
        }
    }

    /// Tokens, where a translation read them.
    pub(crate) fn parts(&self) -> Option<TokenParts> {
        self.translator.as_ref().map(|translator| translator.usage()).or(self.parts)
    }
}
