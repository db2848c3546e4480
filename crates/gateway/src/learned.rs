//! Bytes per token, learned for each model from requests whose provider counted: estimates without a tokenizer.
//!
//! Not its job: counting (providers do), money. Invariants: one answer moves a ratio by an eighth of its distance at
//! most; a ratio stays within what texts have, so that a provider that lies about its counts bends an estimate and does
//! not break it.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::ask::BYTES_PER_TOKEN;

/// A ratio is kept in thousandths of a byte per token.
const SCALE: u64 = 1_000;
/// Chinese in an old vocabulary has about one byte to a token; long runs of one word have more than ten.
const BOUNDS: (u64, u64) = (SCALE, 12 * SCALE);
/// Shorter texts say more about the words around them than about the text.
const INPUT_MIN: u64 = 400;
/// The same for answers, which have less around them.
const OUTPUT_MIN: u64 = 80;
/// A new ratio is so many parts of the old one and one part of what was seen.
const OLD_PARTS: u64 = 7;

/// What is known of one model; zero: nothing yet.
#[derive(Debug, Default)]
pub(crate) struct TokenRatios {
    input: AtomicU32,
    output: AtomicU32,
}

impl TokenRatios {
    /// Tokens of input that a text of so many bytes has, about.
    pub(crate) fn input_tokens(&self, bytes: u64) -> u64 {
        tokens(&self.input, bytes)
    }

    /// The same for an answer.
    pub(crate) fn output_tokens(&self, bytes: u64) -> u64 {
        tokens(&self.output, bytes)
    }

    /// A provider counted the input of a request, which was text alone.
    pub(crate) fn learn_input(&self, bytes: u64, tokens: u64) {
        learn(&self.input, bytes, tokens, INPUT_MIN);
    }

    /// A provider counted an answer, all of which was shown.
    pub(crate) fn learn_output(&self, bytes: u64, tokens: u64) {
        learn(&self.output, bytes, tokens, OUTPUT_MIN);
    }
}

fn tokens(ratio: &AtomicU32, bytes: u64) -> u64 {
    match u64::from(ratio.load(Ordering::Relaxed)) {
        0 => bytes.div_ceil(BYTES_PER_TOKEN),
        ratio => bytes.saturating_mul(SCALE).div_ceil(ratio),
    }
}

/// Two answers at once may lose one of two lessons: that is no harm.
fn learn(ratio: &AtomicU32, bytes: u64, tokens: u64, least: u64) {
    let Some(seen) = bytes.saturating_mul(SCALE).checked_div(tokens).filter(|_| bytes >= least) else {
        return;
    };
    let seen = seen.clamp(BOUNDS.0, BOUNDS.1);
    let next = match u64::from(ratio.load(Ordering::Relaxed)) {
        0 => (BYTES_PER_TOKEN * SCALE + seen) / 2,
        old => (old * OLD_PARTS + seen) / (OLD_PARTS + 1),
    };
    ratio.store(u32::try_from(next).unwrap_or(u32::MAX), Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_follow_what_providers_count() {
        let ratios = TokenRatios::default();
        assert_eq!(
            (ratios.input_tokens(4_000), ratios.output_tokens(401)),
            (1_000, 101),
            "four bytes until then"
        );
        // A Chinese prompt: two bytes a token. Within twenty requests the estimate is within a tenth.
        for _ in 0..20 {
            ratios.learn_input(4_000, 2_000);
        }
        assert!((1_800..=2_000).contains(&ratios.input_tokens(4_000)), "{}", ratios.input_tokens(4_000));
        assert_eq!(ratios.output_tokens(401), 101, "answers are learned apart");
        ratios.learn_output(600, 100);
        assert_eq!(ratios.output_tokens(500), 100, "half way from four to six");
    }

    #[test]
    fn short_texts_and_absurd_counts_bend_nothing_beyond_bounds() {
        let ratios = TokenRatios::default();
        ratios.learn_input(399, 1);
        ratios.learn_output(79, 1);
        ratios.learn_input(5_000, 0);
        assert_eq!((ratios.input_tokens(400), ratios.output_tokens(400)), (100, 100));
        for _ in 0..1_000 {
            ratios.learn_input(1_000, u64::MAX);
            ratios.learn_output(u64::MAX, 1);
        }
        // Within a hundredth of the bounds: one byte, and twelve.
        assert!((990..=1_000).contains(&ratios.input_tokens(1_000)), "{}", ratios.input_tokens(1_000));
        assert!((1_000..=1_010).contains(&ratios.output_tokens(12_000)), "{}", ratios.output_tokens(12_000));
    }
}
