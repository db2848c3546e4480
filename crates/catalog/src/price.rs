//! What a request costs: tokens × prices in whole numbers, to the last digit.
//!
//! Not its job: where prices come from, how a dialect counts its tokens (they arrive normalised), budgets.
//! Invariants: no floats; an unknown price is `None` and never 0; nothing overflows into a wrong sum.

use std::{fmt, str::FromStr};

/// Digits behind the point that [`Money`] and [`TokenPrice`] hold. xAI reports cost in exactly these ticks, and one
/// token at 0.0001 USD per million, far below any price asked today, is still a whole number of them.
pub const SCALE: u32 = 10;

const UNIT: u64 = 10_u64.pow(SCALE);

/// Prices are quoted per this many tokens.
const QUOTED: i128 = 1_000_000;

/// Longest text taken for a number; what providers and people write is under 30.
const MAX_TEXT: usize = 64;

/// [`TokenPrices::cost`] multiplies with this to mean "as listed".
pub const LISTED: u32 = 10_000;

/// An amount in units of 1e-10 USD, at most about 922 million USD either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Money(i64);

/// A price in units of 1e-10 USD per million tokens; never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TokenPrice(i64);

/// Why a text is no amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecimalError {
    #[error("not a decimal number; hint: write it like 0.25")]
    Syntax,
    #[error("more than 10 digits behind the point")]
    TooPrecise,
    #[error("larger than 922,337,203 USD")]
    TooLarge,
    #[error("negative")]
    Negative,
}

impl Money {
    pub const ZERO: Self = Self(0);

    /// Units in one USD.
    pub const UNIT: i64 = 10_i64.pow(SCALE);

    /// From units of 1e-10 USD.
    pub const fn from_units(units: i64) -> Self {
        Self(units)
    }

    /// In units of 1e-10 USD.
    pub const fn units(self) -> i64 {
        self.0
    }

    /// Reads an amount as a provider reports it (`0.0012`, `1.5e-05`), rounding what is finer than 1e-10 USD half
    /// away from zero.
    ///
    /// # Errors
    /// No number, or beyond what fits.
    pub fn parse_rounded(text: &str) -> Result<Self, DecimalError> {
        decimal(text, Finer::Round).map(Self)
    }

    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }
}

impl FromStr for Money {
    type Err = DecimalError;

    /// Exact: refuses what is finer than 1e-10 USD.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        decimal(text, Finer::Refuse).map(Self)
    }
}

impl fmt::Display for Money {
    /// As PostgreSQL's NUMERIC reads it, without needless zeros: `0.00012`, `-3`, `12.5`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(self.0, f)
    }
}

impl TokenPrice {
    /// From units of 1e-10 USD per million tokens; `None` if negative.
    pub const fn from_units(units: i64) -> Option<Self> {
        if units < 0 { None } else { Some(Self(units)) }
    }

    /// In units of 1e-10 USD per million tokens.
    pub const fn units(self) -> i64 {
        self.0
    }
}

impl FromStr for TokenPrice {
    type Err = DecimalError;

    /// USD per million tokens, exact: `0.10`.
    fn from_str(text: &str) -> Result<Self, DecimalError> {
        let units = decimal(text, Finer::Refuse)?;
        Self::from_units(units).ok_or(DecimalError::Negative)
    }
}

impl fmt::Display for TokenPrice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_decimal(self.0, f)
    }
}

/// Tokens as they are priced: five parts that do not overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PricedTokens {
    /// Input that was neither read from a prompt cache nor written to one.
    pub input: u64,
    pub cache_read: u64,
    /// Written to a prompt cache at its usual lifetime (Anthropic: 5 minutes).
    pub cache_write: u64,
    /// Written to a prompt cache for an hour (Anthropic; dearer).
    pub cache_write_1h: u64,
    /// All output, reasoning included.
    pub output: u64,
}

impl PricedTokens {
    /// The prompt as a whole, which is what "long context" is measured by.
    pub const fn input_total(&self) -> u64 {
        self.input
            .saturating_add(self.cache_read)
            .saturating_add(self.cache_write)
            .saturating_add(self.cache_write_1h)
    }

    pub const fn total(&self) -> u64 {
        self.input_total().saturating_add(self.output)
    }
}

/// One set of prices; `None` is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenRates {
    pub input: Option<TokenPrice>,
    pub output: Option<TokenPrice>,
    /// Default: the input price.
    pub cached_input: Option<TokenPrice>,
    /// Default: the input price.
    pub cache_write: Option<TokenPrice>,
    /// Default: the price of a usual write.
    pub cache_write_1h: Option<TokenPrice>,
}

impl TokenRates {
    /// The older generation's single price, which holds for both directions.
    pub const fn flat(price: TokenPrice) -> Self {
        Self {
            input: Some(price),
            output: Some(price),
            cached_input: None,
            cache_write: None,
            cache_write_1h: None,
        }
    }

    const fn is_unknown(&self) -> bool {
        self.input.is_none()
            && self.output.is_none()
            && self.cached_input.is_none()
            && self.cache_write.is_none()
            && self.cache_write_1h.is_none()
    }

    /// These, with what they leave open taken from `base`.
    fn over(self, base: Self) -> Self {
        Self {
            input: self.input.or(base.input),
            output: self.output.or(base.output),
            cached_input: self.cached_input.or(base.cached_input),
            cache_write: self.cache_write.or(base.cache_write),
            cache_write_1h: self.cache_write_1h.or(base.cache_write_1h),
        }
    }
}

/// Prices that hold for the whole of a request whose prompt is longer than `above` tokens (Gemini and Claude: 200,000;
/// OpenAI's newest: 272,000). What they leave open costs as usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongContextRates {
    pub above: u64,
    pub rates: TokenRates,
}

/// All prices of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenPrices {
    pub rates: TokenRates,
    /// In any order; the highest threshold that a prompt exceeds holds.
    pub long_context: Vec<LongContextRates>,
}

/// What one request costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsageCost {
    /// Computed; `None` if a price that it needs is unknown.
    pub input: Option<Money>,
    pub output: Option<Money>,
    /// The sum of both, each rounded to 1e-10 USD for itself, so that the columns of a row add up.
    pub computed: Option<Money>,
    /// As the provider reports it.
    pub reported: Option<Money>,
    /// Cached input was there and priced as other input, because its own price is unknown.
    pub cached_as_input: bool,
    /// Written input was there and priced as other input, because its own price is unknown.
    pub written_as_input: bool,
}

impl UsageCost {
    /// What counts: the provider's word where there is one, else what was computed.
    pub fn total(&self) -> Option<Money> {
        self.reported.or(self.computed)
    }
}

impl TokenPrices {
    /// The prices that hold for a prompt of that many tokens.
    pub fn rates_for(&self, input_total: u64) -> TokenRates {
        self.long_context
            .iter()
            .filter(|it| input_total > it.above)
            .max_by_key(|it| it.above)
            .map_or(self.rates, |it| it.rates.over(self.rates))
    }

    /// What these tokens cost. `factor` is the service tier's, in ten-thousandths of the listed price ([`LISTED`];
    /// batch and flex: 5,000; priority: 17,000 to 25,000), taken from the provider's answer.
    ///
    /// A part without tokens costs nothing even if its price is unknown, except where no price is known at all: a model
    /// without a price does not look free. A sum beyond [`Money`] is unknown too.
    pub fn cost(&self, tokens: &PricedTokens, factor: u32, reported: Option<Money>) -> UsageCost {
        let rates = self.rates_for(tokens.input_total());
        let mut cost = UsageCost { reported, ..UsageCost::default() };
        if rates.is_unknown() {
            return cost;
        }
        let cached = rates.cached_input.or(rates.input);
        let written = rates.cache_write.or(rates.input);
        let written_1h = rates.cache_write_1h.or(written);
        cost.cached_as_input = tokens.cache_read > 0 && rates.cached_input.is_none() && cached.is_some();
        cost.written_as_input = rates.cache_write.is_none()
            && written.is_some()
            && (tokens.cache_write > 0 || tokens.cache_write_1h > 0 && rates.cache_write_1h.is_none());
        cost.input = charge(
            &[
                (tokens.input, rates.input),
                (tokens.cache_read, cached),
                (tokens.cache_write, written),
                (tokens.cache_write_1h, written_1h),
            ],
            factor,
        );
        cost.output = charge(&[(tokens.output, rates.output)], factor);
        cost.computed = cost.input.zip(cost.output).and_then(|(input, output)| input.checked_add(output));
        cost
    }
}

/// Sums exactly and rounds once, half away from zero.
fn charge(parts: &[(u64, Option<TokenPrice>)], factor: u32) -> Option<Money> {
    let mut sum: i128 = 0;
    for (tokens, price) in parts {
        if *tokens > 0 {
            sum = sum.checked_add(i128::from(*tokens).checked_mul(i128::from((*price)?.0))?)?;
        }
    }
    let divisor = QUOTED * i128::from(LISTED);
    let sum = sum.checked_mul(i128::from(factor))?.checked_add(divisor / 2)?;
    i64::try_from(sum / divisor).ok().map(Money)
}

/// What to do with digits finer than 1e-10.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Finer {
    Refuse,
    Round,
}

/// `[+-]digits[.digits][e[+-]digits]` times 1e10, as a whole number.
fn decimal(text: &str, finer: Finer) -> Result<i64, DecimalError> {
    if text.len() > MAX_TEXT {
        return Err(DecimalError::Syntax);
    }
    let (negative, text) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if digits.is_empty() || !digits.bytes().all(|it| it.is_ascii_digit()) {
                return Err(DecimalError::Syntax);
            }
            // Beyond four digits only the sign matters: the text is too short to make up for it.
            let size = digits.trim_start_matches('0').parse().unwrap_or(if digits.contains(|it| it != '0') {
                9_999
            } else {
                0
            });
            let size: i32 = i32::min(size, 9_999);
            (mantissa, if exponent.starts_with('-') { -size } else { size })
        }
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digit = |it: u8| it.is_ascii_digit();
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(digit) {
        return Err(DecimalError::Syntax);
    }
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|it| it - b'0').collect();
    // Where the point stands once everything is multiplied by 1e10, counted from the left.
    let point = whole.len() as i64 + i64::from(exponent) + i64::from(SCALE);
    let mut value: i64 = 0;
    let mut half = false;
    let mut lost = false;
    for (at, digit) in digits.iter().enumerate() {
        let at = at as i64;
        if at < point {
            value = value
                .checked_mul(10)
                .and_then(|it| it.checked_add(i64::from(*digit)))
                .ok_or(DecimalError::TooLarge)?;
        } else {
            half |= at == point && *digit >= 5;
            lost |= *digit > 0;
        }
    }
    // Zeros between the last digit and the point.
    if value > 0 {
        for _ in digits.len() as i64..point {
            value = value.checked_mul(10).ok_or(DecimalError::TooLarge)?;
        }
    }
    if lost && finer == Finer::Refuse {
        return Err(DecimalError::TooPrecise);
    }
    if half {
        value = value.checked_add(1).ok_or(DecimalError::TooLarge)?;
    }
    Ok(if negative { -value } else { value })
}

fn write_decimal(units: i64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let sign = if units < 0 { "-" } else { "" };
    let (whole, fraction) = (units.unsigned_abs() / UNIT, units.unsigned_abs() % UNIT);
    if fraction == 0 {
        return write!(f, "{sign}{whole}");
    }
    let digits = format!("{fraction:010}");
    write!(f, "{sign}{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn price(text: &str) -> Option<TokenPrice> {
        (text != "-").then(|| text.parse().unwrap())
    }

    /// `prices`: input, output, cached, write, write for an hour; `-` is unknown. `tokens` in the order of the struct.
    fn check(what: &str, prices: [&str; 5], tokens: [u64; 5], factor: u32, expected: [&str; 3]) {
        let [input, output, cached_input, cache_write, cache_write_1h] = prices.map(price);
        let prices = TokenPrices {
            rates: TokenRates { input, output, cached_input, cache_write, cache_write_1h },
            long_context: Vec::new(),
        };
        let [input, cache_read, cache_write, cache_write_1h, output] = tokens;
        let tokens = PricedTokens { input, cache_read, cache_write, cache_write_1h, output };
        let cost = prices.cost(&tokens, factor, None);
        let shown = [cost.input, cost.output, cost.total()]
            .map(|it| it.map_or_else(|| "-".to_owned(), |it| it.to_string()));
        assert_eq!(shown, expected, "{what}");
    }

    /// Usage bodies of every family, normalised, × rows of prices, to the last digit.
    #[test]
    fn tokens_times_prices_to_the_last_digit() {
        let listed = LISTED;
        // The older generation and the usual row.
        check(
            "7b model",
            ["0.10", "0.20", "-", "-", "-"],
            [9, 0, 0, 0, 12],
            listed,
            ["0.0000009", "0.0000024", "0.0000033"],
        );
        check(
            "one token at a tenth of a cent",
            ["0.001", "0.001", "-", "-", "-"],
            [1, 0, 0, 0, 1],
            listed,
            ["0.000000001", "0.000000001", "0.000000002"],
        );
        // openai: prompt_tokens 2006 with cached_tokens 1920; 0.25x.
        check(
            "openai cached",
            ["2.00", "8.00", "0.50", "-", "-"],
            [86, 1_920, 0, 0, 300],
            listed,
            ["0.001132", "0.0024", "0.003532"],
        );
        // anthropic: input_tokens 3 beside 12,304 read and 188 written.
        check(
            "anthropic",
            ["3", "15", "0.30", "3.75", "6"],
            [3, 12_304, 188, 0, 550],
            listed,
            ["0.0044052", "0.00825", "0.0126552"],
        );
        check(
            "anthropic 1 h",
            ["3", "15", "0.30", "3.75", "6"],
            [3, 0, 100, 1_000, 1],
            listed,
            ["0.006384", "0.000015", "0.006399"],
        );
        // gemini: thoughts are output.
        check(
            "gemini",
            ["1.25", "10", "0.125", "-", "-"],
            [1_000, 31_000, 0, 0, 81 + 1_201],
            listed,
            ["0.005125", "0.01282", "0.017945"],
        );
        // deepseek: hit and miss.
        check(
            "deepseek",
            ["0.27", "1.10", "0.07", "-", "-"],
            [11, 64, 0, 0, 9],
            listed,
            ["0.00000745", "0.0000099", "0.00001735"],
        );
        // bedrock: regional profile, +10 %.
        check(
            "bedrock",
            ["3.3", "16.5", "0.33", "4.125", "-"],
            [21, 5, 7, 0, 3],
            listed,
            ["0.000099825", "0.0000495", "0.000149325"],
        );
        // cohere, ollama: plain; an embedding has no output price and no output.
        check(
            "embedding",
            ["0.02", "-", "-", "-", "-"],
            [1_536, 0, 0, 0, 0],
            listed,
            ["0.00003072", "0", "0.00003072"],
        );
        check("free on purpose", ["0", "0", "-", "-", "-"], [5, 0, 0, 0, 5], listed, ["0", "0", "0"]);
        // Unknown is not free.
        check("unpriced", ["-", "-", "-", "-", "-"], [5, 0, 0, 0, 5], listed, ["-", "-", "-"]);
        check("unpriced, nothing used", ["-", "-", "-", "-", "-"], [0; 5], listed, ["-", "-", "-"]);
        check("output unpriced", ["1", "-", "-", "-", "-"], [5, 0, 0, 0, 5], listed, ["0.000005", "-", "-"]);
        check("input unpriced", ["-", "1", "-", "-", "-"], [5, 0, 0, 0, 5], listed, ["-", "0.000005", "-"]);
        // Where no own price is known, cached and written input price as input, an hour's write as a write.
        check("defaults", ["2", "8", "-", "-", "-"], [1, 1, 1, 1, 0], listed, ["0.000008", "0", "0.000008"]);
        check(
            "an hour as a write",
            ["2", "8", "-", "3", "-"],
            [0, 0, 0, 1, 0],
            listed,
            ["0.000003", "0", "0.000003"],
        );
        // Service tiers.
        check(
            "batch",
            ["2", "8", "0.5", "-", "-"],
            [86, 1_920, 0, 0, 300],
            5_000,
            ["0.000566", "0.0012", "0.001766"],
        );
        check(
            "priority",
            ["2", "8", "-", "-", "-"],
            [1, 0, 0, 0, 1],
            17_500,
            ["0.0000035", "0.000014", "0.0000175"],
        );
        // Halves go away from zero, each column for itself, and the columns add up.
        check(
            "rounding",
            ["0.00005", "0.00005", "-", "-", "-"],
            [1, 0, 0, 0, 1],
            listed,
            ["0.0000000001", "0.0000000001", "0.0000000002"],
        );
        check(
            "below a half",
            ["0.000049", "0.000049", "-", "-", "-"],
            [1, 0, 0, 0, 1],
            listed,
            ["0", "0", "0"],
        );
        // What a lying provider counts makes a sum unknown, not wrong.
        check(
            "absurd",
            ["900000000", "1", "-", "-", "-"],
            [u64::MAX, u64::MAX, 0, 0, 1],
            listed,
            ["-", "0.000001", "-"],
        );
    }

    #[test]
    fn a_long_prompt_switches_the_whole_request() {
        let rates = |input: &str, output: &str| TokenRates {
            input: price(input),
            output: price(output),
            ..TokenRates::default()
        };
        let prices = TokenPrices {
            rates: TokenRates { cached_input: price("0.1"), ..rates("1", "2") },
            long_context: vec![
                LongContextRates { above: 500_000, rates: rates("4", "-") },
                LongContextRates { above: 200_000, rates: rates("2", "3") },
            ],
        };
        let check = |input: u64, read: u64, expected: &str| {
            let tokens = PricedTokens { input, cache_read: read, output: 1_000_000, ..Default::default() };
            let cost = prices.cost(&tokens, LISTED, None);
            assert_eq!(cost.total().unwrap().to_string(), expected, "{input} + {read}");
        };
        check(200_000, 0, "2.2");
        check(200_001, 0, "3.400002");
        check(100_000, 100_001, "3.2100001");
        check(1_000_000, 0, "6");
    }

    #[test]
    fn what_a_provider_reports_is_preferred_and_both_are_kept() {
        let prices = TokenPrices { rates: TokenRates::flat("1".parse().unwrap()), ..Default::default() };
        let tokens = PricedTokens { input: 10, output: 10, cache_read: 1, ..Default::default() };
        let reported = Money::parse_rounded("1.95e-05").unwrap();
        let cost = prices.cost(&tokens, LISTED, Some(reported));
        assert_eq!(cost.total(), Some(reported));
        assert_eq!(cost.computed, Some("0.000021".parse().unwrap()));
        assert!(cost.cached_as_input && !cost.written_as_input);
        let cost = TokenPrices::default().cost(&tokens, LISTED, Some(reported));
        assert_eq!((cost.total(), cost.computed, cost.input), (Some(reported), None, None));
    }

    #[test]
    fn texts_become_amounts() {
        let check = |text: &str, exact: Result<i64, DecimalError>, rounded: Result<i64, DecimalError>| {
            assert_eq!(text.parse::<Money>().map(Money::units), exact, "{text}");
            assert_eq!(Money::parse_rounded(text).map(Money::units), rounded, "{text}");
        };
        let same = |text: &str, expected| check(text, expected, expected);
        same("0", Ok(0));
        same("-0", Ok(0));
        same("0.10", Ok(1_000_000_000));
        same(".5", Ok(5_000_000_000));
        same("5.", Ok(50_000_000_000));
        same("+1", Ok(10_000_000_000));
        same("-2.5e0", Ok(-25_000_000_000));
        same("1e-10", Ok(1));
        same("12.5E-3", Ok(125_000_000));
        same("0.0000000001", Ok(1));
        same("0.00000000010000", Ok(1));
        same("922337203.6854775807", Ok(i64::MAX));
        same("922337203.6854775808", Err(DecimalError::TooLarge));
        same("1e9", Err(DecimalError::TooLarge));
        same("1e99999999999999999999", Err(DecimalError::TooLarge));
        same("0e99999999999999999999", Ok(0));
        same("0e00000000000000000000", Ok(0));
        same("000000000000000000000000000000001", Ok(10_000_000_000));
        check("0.00000000005", Err(DecimalError::TooPrecise), Ok(1));
        check("-0.00000000005", Err(DecimalError::TooPrecise), Ok(-1));
        check("0.00000000004999", Err(DecimalError::TooPrecise), Ok(0));
        check("1e-99999999999", Err(DecimalError::TooPrecise), Ok(0));
        for text in [
            "", "-", ".", "e5", "1e", "1e+", "1,5", " 1", "1 ", "0x1", "NaN", "inf", "1.2.3", "--1", "1_0",
            "١",
        ] {
            same(text, Err(DecimalError::Syntax));
        }
        same(&"1".repeat(MAX_TEXT + 1), Err(DecimalError::Syntax));
        assert_eq!("-0.1".parse::<TokenPrice>(), Err(DecimalError::Negative));
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(units: i64) {
            let money = Money::from_units(units);
            prop_assert_eq!(money.to_string().parse(), if units == i64::MIN { Err(DecimalError::TooLarge) } else { Ok(money) });
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[-+0-9.eE]{0,70}|\\PC{0,20}") {
            if let Ok(exact) = text.parse::<Money>() {
                prop_assert_eq!(Money::parse_rounded(&text), Ok(exact));
            }
        }

        /// Against sums of long fractions: the parts of a column are added before anything is rounded.
        #[test]
        fn no_digit_is_lost(tokens in prop::array::uniform5(0_u64..10_000_000), prices in prop::array::uniform5(0_i64..10_i64.pow(14)), factor in 1_u32..100_000) {
            let [input, output, cached_input, cache_write, cache_write_1h] = prices.map(TokenPrice::from_units);
            let rates = TokenRates { input, output, cached_input, cache_write, cache_write_1h };
            let [t_input, cache_read, t_write, t_write_1h, t_output] = tokens;
            let parts = PricedTokens { input: t_input, cache_read, cache_write: t_write, cache_write_1h: t_write_1h, output: t_output };
            let cost = TokenPrices { rates, long_context: Vec::new() }.cost(&parts, factor, None);
            let exact = |pairs: &[(u64, i64)]| pairs.iter().map(|(n, p)| i128::from(*n) * i128::from(*p)).sum::<i128>() * i128::from(factor);
            let near = |money: Option<Money>, exact: i128| {
                let scaled = i128::from(money.unwrap().units()) * QUOTED * i128::from(LISTED);
                (scaled - exact).abs() * 2 <= QUOTED * i128::from(LISTED)
            };
            prop_assert!(near(cost.input, exact(&[(t_input, prices[0]), (cache_read, prices[2]), (t_write, prices[3]), (t_write_1h, prices[4])])));
            prop_assert!(near(cost.output, exact(&[(t_output, prices[1])])));
            prop_assert_eq!(cost.computed.unwrap().units(), cost.input.unwrap().units() + cost.output.unwrap().units());
        }

        /// More tokens never cost less, and an unknown price never becomes a number.
        #[test]
        fn cost_grows_with_tokens(tokens in prop::array::uniform5(0_u64..1_000_000), more in 0_u64..1_000, known in prop::array::uniform5(proptest::option::of(0_i64..10_i64.pow(12)))) {
            let [input, output, cached_input, cache_write, cache_write_1h] = known.map(|it| it.and_then(TokenPrice::from_units));
            let prices = TokenPrices { rates: TokenRates { input, output, cached_input, cache_write, cache_write_1h }, long_context: Vec::new() };
            let [t_input, cache_read, cache_write, cache_write_1h, t_output] = tokens;
            let parts = PricedTokens { input: t_input, cache_read, cache_write, cache_write_1h, output: t_output };
            let larger = PricedTokens { output: t_output + more, input: t_input + more, ..parts };
            let (small, large) = (prices.cost(&parts, LISTED, None), prices.cost(&larger, LISTED, None));
            if let (Some(small), Some(large)) = (small.computed, large.computed) {
                prop_assert!(small <= large);
            }
            if output.is_none() && t_output > 0 {
                prop_assert_eq!(small.total(), None);
            }
            if input.is_none() && t_input > 0 {
                prop_assert_eq!(small.total(), None);
            }
        }
    }
}
