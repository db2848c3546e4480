//! Durations as people write them: `30s`, `1500ms`, `6h`, `30d`, `1h30m`.
//!
//! Job: text to [`Duration`] and back, the shortest exact spelling. Not its job: calendar time (a day is
//! 24 h here, and there are no months). Invariant: `parse(&format(d)) == Ok(d)` for whole milliseconds.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Units by their spelling, largest first, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("w", 604_800_000), ("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Longest duration accepted: 100 years. Beyond it lies only a slip of the finger, and timers overflow.
const MAX_MILLIS: u64 = 100 * 365 * 86_400_000;

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error("a duration is empty; write a number and a unit, such as \"30s\"")]
    Empty,
    #[error("a duration needs a unit after its number: ms, s, m, h, d or w, such as \"30s\"")]
    NoUnit,
    #[error("\"{0}\" is no unit of time; use ms, s, m, h, d or w")]
    UnknownUnit(String),
    #[error("a duration is a whole number and a unit, such as \"30s\" or \"1500ms\"")]
    NotANumber,
    #[error("a duration is at most 100 years")]
    TooLong,
}

/// Reads a duration: one or more pairs of a whole number and a unit, blanks allowed between pairs.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(DurationError::Empty);
    }
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_where(rest, |c| !c.is_ascii_digit());
        if number.is_empty() {
            return Err(DurationError::NotANumber);
        }
        let (unit, tail) = split_where(tail, |c| !c.is_alphabetic());
        if unit.is_empty() {
            let dangling = tail.trim().is_empty();
            return Err(if dangling { DurationError::NoUnit } else { DurationError::NotANumber });
        }
        let millis = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, millis)| *millis)
            .ok_or_else(|| DurationError::UnknownUnit(unit.chars().take(20).collect()))?;
        let amount: u64 = number.parse().map_err(|_| DurationError::TooLong)?;
        total = amount
            .checked_mul(millis)
            .and_then(|part| total.checked_add(part))
            .filter(|sum| *sum <= MAX_MILLIS)
            .ok_or(DurationError::TooLong)?;
        rest = tail.trim_start();
    }
    Ok(Duration::from_millis(total))
}

fn split_where(text: &str, stop: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(stop).unwrap_or(text.len()))
}

/// Writes a duration in at most two units where that is exact, else in all that it takes; below a
/// millisecond it is cut off.
#[must_use]
pub fn format(duration: Duration) -> String {
    let mut left = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if left == 0 {
        return "0s".to_owned();
    }
    // A single unit reads best: 365d, 1500ms and 90s rather than 52w1d, 1s500ms and 1m30s. Weeks are
    // read but never written, since days are what people count in.
    let written = || UNITS.iter().skip(1);
    if let Some((name, size)) = written().find(|(_, size)| left.is_multiple_of(*size) && left / size < 10_000)
    {
        return format!("{}{name}", left / size);
    }
    let mut out = String::new();
    for (name, size) in written() {
        if left >= *size {
            out.push_str(&format!("{}{name}", left / size));
            left %= size;
        }
    }
    out
}

/// A [`Duration`] that reads and writes itself as people do; for serde, clap and messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format(self.0))
    }
}

impl FromStr for Human {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        parse(text).map(Self)
    }
}

impl<'de> Deserialize<'de> for Human {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Human {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        let check = |text: &str, millis: u64| {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        };
        check("30s", 30_000);
        check("1500ms", 1_500);
        check(" 2m ", 120_000);
        check("1h30m", 5_400_000);
        check("1h 30m", 5_400_000);
        check("365d", 31_536_000_000);
        check("2w", 1_209_600_000);
        check("0", 0);
        check("0s", 0);
    }

    #[test]
    fn refuses_the_rest_and_says_why() {
        let check = |text: &str, error: DurationError| assert_eq!(parse(text), Err(error), "{text}");
        check("", DurationError::Empty);
        check("   ", DurationError::Empty);
        check("30", DurationError::NoUnit);
        check("1h30", DurationError::NoUnit);
        check("30 s", DurationError::NotANumber);
        check("-5s", DurationError::NotANumber);
        check("1.5s", DurationError::NotANumber);
        check("s", DurationError::NotANumber);
        check("30sec", DurationError::UnknownUnit("sec".into()));
        check("5é", DurationError::UnknownUnit("é".into()));
        check("99999999999999999999999s", DurationError::TooLong);
        check("18446744073709551615w", DurationError::TooLong);
        check("101w101d999999999999h", DurationError::TooLong);
    }

    #[test]
    fn writes_the_shortest_exact_spelling() {
        let check = |millis: u64, text: &str| assert_eq!(format(Duration::from_millis(millis)), text);
        check(0, "0s");
        check(30_000, "30s");
        check(1_500, "1500ms");
        check(60_000, "1m");
        check(90_000, "90s");
        check(5_400_000, "90m");
        check(21_600_000, "6h");
        check(31_536_000_000, "365d");
        check(86_400_001, "1d1ms");
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn comes_back_unchanged(millis in 0..MAX_MILLIS) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
