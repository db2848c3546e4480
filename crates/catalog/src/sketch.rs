//! How long requests took, as counts by class: small, adds up over hours, nodes and models, and yields percentiles
//! within a class's width (41 %).
//!
//! Not its job: which requests are counted, and where the counts are kept.

/// Upper bounds in milliseconds: 8 × 2^(n/2), up to 17 minutes. A model needs more than 8 ms, and a request ends within
/// an hour; what is above the last bound is one more class.
pub const BOUNDS_MS: [u64; 35] = [
    8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1_024, 1_448, 2_048, 2_896, 4_096, 5_793,
    8_192, 11_585, 16_384, 23_170, 32_768, 46_341, 65_536, 92_682, 131_072, 185_364, 262_144, 370_728,
    524_288, 741_455, 1_048_576,
];

/// Classes in all.
pub const CLASSES: usize = BOUNDS_MS.len() + 1;

/// Decimal digits of one class in [`LatencySketch::packed`]: sums of packed sketches are right up to 10^12 requests a class,
/// which is 27 years of 100 million a day.
const PACKED: usize = 12;

/// Counts by class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencySketch {
    counts: [u64; CLASSES],
}

impl Default for LatencySketch {
    fn default() -> Self {
        Self { counts: [0; CLASSES] }
    }
}

impl LatencySketch {
    /// From counts as [`Self::counts`] gives them; missing ones are zero, further ones are left out.
    pub fn from_counts(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut sketch = Self::default();
        for (mine, count) in sketch.counts.iter_mut().zip(counts) {
            *mine = count;
        }
        sketch
    }

    pub fn add(&mut self, milliseconds: u64) {
        let class = BOUNDS_MS.partition_point(|bound| *bound < milliseconds);
        if let Some(count) = self.counts.get_mut(class) {
            *count = count.saturating_add(1);
        }
    }

    pub fn merge(&mut self, other: &Self) {
        for (mine, more) in self.counts.iter_mut().zip(other.counts) {
            *mine = mine.saturating_add(more);
        }
    }

    /// The counts, without the zeros at the end.
    pub fn counts(&self) -> &[u64] {
        let end = self.counts.iter().rposition(|it| *it > 0).map_or(0, |at| at + 1);
        self.counts.get(..end).unwrap_or_default()
    }

    /// All counts as one decimal number, twelve digits each, the fastest class last: adding such numbers adds the
    /// counts, so that a database sums a sketch as it sums a number.
    pub fn packed(&self) -> String {
        let mut text = String::new();
        for count in self.counts().iter().rev() {
            use std::fmt::Write as _;
            // A count beyond would spill into the next class.
            let count = (*count).min(10_u64.pow(PACKED as u32) - 1);
            // Writing to a text cannot fail.
            let _ = if text.is_empty() { write!(text, "{count}") } else { write!(text, "{count:0PACKED$}") };
        }
        if text.is_empty() { "0".to_owned() } else { text }
    }

    /// From a number as [`Self::packed`] writes it, or a sum of such; what is no number counts nothing.
    pub fn from_packed(text: &str) -> Self {
        let digits = text.as_bytes();
        Self::from_counts(digits.rchunks(PACKED).map(|class| {
            std::str::from_utf8(class).ok().and_then(|class| class.parse().ok()).unwrap_or_default()
        }))
    }

    /// Milliseconds within which this share of the requests ended (`0.95`), as if they lay evenly within their class;
    /// none if nothing was counted.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let total: u64 = self.counts.iter().fold(0, |sum, it| sum.saturating_add(*it));
        if total == 0 {
            return None;
        }
        let wanted = (share.clamp(0.0, 1.0) * total as f64).max(1.0);
        let mut before = 0.0;
        let mut lower = 0;
        for (at, count) in self.counts.iter().enumerate() {
            let upper = BOUNDS_MS.get(at).or_else(|| BOUNDS_MS.last()).copied().unwrap_or_default();
            let count = *count as f64;
            if count > 0.0 && before + count >= wanted {
                let part = (wanted - before) / count;
                return Some(lower + ((upper - lower) as f64 * part).round() as u64);
            }
            before += count;
            lower = upper;
        }
        BOUNDS_MS.last().copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bounds_grow_by_the_root_of_two() {
        for (n, bound) in BOUNDS_MS.iter().enumerate() {
            assert_eq!(*bound, (8.0 * 2.0_f64.powf(n as f64 / 2.0)).round() as u64);
        }
    }

    #[test]
    fn packed_counts_are_digits() {
        let check = |counts: &[u64], packed: &str| {
            let sketch = LatencySketch::from_counts(counts.iter().copied());
            assert_eq!(sketch.packed(), packed, "{counts:?}");
            assert_eq!(LatencySketch::from_packed(packed), sketch, "{counts:?}");
        };
        check(&[], "0");
        check(&[7], "7");
        check(&[0, 1], "1000000000000");
        check(&[999_999_999_999, 2, 30], "30000000000002999999999999");
        assert_eq!(LatencySketch::from_packed("1.5e3"), LatencySketch::default());
    }

    #[test]
    fn nothing_counted_has_no_percentile() {
        assert_eq!(LatencySketch::default().percentile(0.5), None);
        assert_eq!(LatencySketch::default().counts(), [0; 0]);
    }

    proptest! {
        #[test]
        fn percentiles_are_within_a_class(mut times in prop::collection::vec(8_u64..1_000_000, 1..300), share in 0.01_f64..1.0) {
            let mut sketch = LatencySketch::default();
            times.iter().for_each(|it| sketch.add(*it));
            times.sort_unstable();
            let rank = ((share * times.len() as f64).ceil() as usize).clamp(1, times.len());
            let exact = times[rank - 1] as f64;
            let near = sketch.percentile(share).unwrap() as f64;
            prop_assert!(near <= exact * 1.45 + 1.0 && near >= exact / 1.45 - 1.0, "{near} for {exact}");
        }

        #[test]
        fn parts_add_up(one in prop::collection::vec(0_u64..2_000_000, 0..50), two in prop::collection::vec(0_u64..2_000_000, 0..50)) {
            let of = |times: &[u64]| {
                let mut sketch = LatencySketch::default();
                times.iter().for_each(|it| sketch.add(*it));
                sketch
            };
            let mut sum = of(&one);
            sum.merge(&of(&two));
            let both: Vec<u64> = one.iter().chain(&two).copied().collect();
            prop_assert_eq!(&sum, &of(&both));
            prop_assert_eq!(&LatencySketch::from_counts(sum.counts().iter().copied()), &sum);
            prop_assert_eq!(&LatencySketch::from_packed(&sum.packed()), &sum);
        }
    }
}
