//! Single values of a manifest: their types, their ranges, and that none of them is a secret.
//!
//! PURE. Not its job: which keys there are (`objects`). Invariant: no text of a manifest gets into a message unmasked.

use std::{ops::Range, str::FromStr, sync::Arc, time::Duration};

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::{
    Diagnostic, keyshape,
    parse::{ManifestReader, SpannedItem},
};
use crate::{duration, model::JsonMap};

/// `VARCHAR(255)` columns.
pub(super) const MAX_NAME: usize = 255;
/// `numeric(10,4)` holds six digits before the point.
const MAX_COST: f64 = 1_000_000.0;
/// The column is `numeric(12, 6)`.
const COST_DIGITS: f64 = 1e6;
pub(super) const REVOKE: &str = "if this file was ever committed, revoke the key: Git remembers it";
/// No key is known to be longer, and more of a line is not looked at.
const LONGEST_KEY: usize = 1024;
/// Free-form tables nest so deep at most; each level costs stack here and in the programs that read the column.
const MAX_DEPTH: usize = 64;
/// Nothing here is waited for longer; far greater numbers would overflow a clock.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// Six fields with seconds, as `tokio-cron-scheduler` reads them.
fn is_cron(text: &str) -> bool {
    text.split_whitespace().count() == 6
        && croner::parser::CronParser::builder()
            .seconds(croner::parser::Seconds::Required)
            .build()
            .parse(text)
            .is_ok()
}

/// The candidate that was probably meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = |candidate: &str| (candidate.chars().count() / 3).max(1);
    // Lengths that differ by more are further away than that; most candidates cost no more than this.
    let length = word.chars().count();
    let near = candidates.into_iter().filter(|it| length.abs_diff(it.chars().count()) <= allowed(it));
    let close = near.map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate));
    close
        .filter(|(distance, it)| *distance <= allowed(it))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, it)| it)
}

impl<'a> ManifestReader<'a> {
    /// Whether the text at this place is a key: without quotes, TOML takes one apart at its dots.
    pub(super) fn begins_key(&self, span: Range<usize>) -> bool {
        let rest = self.lines.rest_of_line(span.start, LONGEST_KEY);
        keyshape::find(rest).is_some_and(|found| found.start <= span.end - span.start)
    }

    pub(super) fn unknown(&mut self, table: &DeTable<'a>, known: &[&'static str], what: &str) {
        for key in table.keys().filter(|key| !known.contains(&&**key.get_ref())) {
            let name = key.get_ref();
            if self.begins_key(key.span()) {
                let found =
                    self.error("literal-key", key.span(), format!("a key stands where {what} has keys"));
                found.secret = true;
                found.help.push(REVOKE.into());
                continue;
            }
            let close = nearest(name, known.iter().copied());
            let help = match close {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("{what} knows {}", known.join(", ")),
            };
            let found =
                self.error("unknown-key", key.span(), format!("{what} has no key `{}`", shorten(name)));
            found.help.push(help);
        }
    }

    pub(super) fn wrong_type(
        &mut self,
        span: Range<usize>,
        what: &str,
        wanted: &str,
        found: &DeValue<'_>,
    ) -> &mut Diagnostic {
        let article = if found.type_str().starts_with(['a', 'i', 'o']) { "an" } else { "a" };
        let message = format!("{what}: expected {wanted}, found {article} {}", found.type_str());
        self.error("wrong-type", span, message)
    }

    pub(super) fn table<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Option<&'t DeTable<'a>> {
        let item = table.get(key)?;
        self.expect_table(item, &format!("`{key}`"))
    }

    pub(super) fn expect_table<'t>(
        &mut self,
        item: &'t SpannedItem<'a>,
        what: &str,
    ) -> Option<&'t DeTable<'a>> {
        let table = item.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(item.span(), what, "a table", item.get_ref());
        }
        table
    }

    /// The elements of an array of tables.
    pub(super) fn tables<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Vec<&'t SpannedItem<'a>> {
        let Some(item) = table.get(key) else { return Vec::new() };
        match item.get_ref().as_array() {
            Some(items) => items.iter().collect(),
            None => {
                let wanted = format!("an array of tables, each under [[{key}]]");
                self.wrong_type(item.span(), &format!("`{key}`"), &wanted, item.get_ref());
                Vec::new()
            }
        }
    }

    pub(super) fn raw_text<'t>(&mut self, table: &'t DeTable<'a>, key: &str) -> Option<&'t str> {
        let item = table.get(key)?;
        let text = item.get_ref().as_str();
        if text.is_none() {
            let seconds = item
                .get_ref()
                .as_integer()
                .filter(|_| DURATIONS.contains(&key))
                .map(|number| number.as_str());
            let help = seconds.map(|number| format!("write \"{}s\"", shorten(number)));
            self.wrong_type(item.span(), &format!("`{key}`"), "a string", item.get_ref()).help.extend(help);
        }
        text
    }

    /// A string that the database takes and that is no secret.
    pub(super) fn text_of(
        &mut self,
        table: &DeTable<'a>,
        key: &str,
        longest: Option<usize>,
    ) -> Option<Box<str>> {
        let text = self.raw_text(table, key)?;
        let span = table.get(key)?.span();
        self.check_text(key, text, span.clone());
        if let Some(longest) = longest
            && text.chars().count() > longest
        {
            self.error("too-long", span, format!("`{key}` is longer than {longest} characters"));
        }
        Some(text.into())
    }

    pub(super) fn check_text(&mut self, key: &str, text: &str, span: Range<usize>) {
        if text.contains('\0') {
            self.error("nul", span, "PostgreSQL cannot store the character NUL");
        } else if keyshape::find(text).is_some() || keyshape::is_named_secret(key, text) {
            let found = self.error("literal-key", span, format!("the value of `{key}` looks like a key"));
            found.secret = true;
            found
                .help
                .push("a key belongs in `api_key`, sealed with `providerd key seal` or by reference".into());
            found.help.push(REVOKE.into());
        }
    }

    pub(super) fn required(
        &mut self,
        table: &DeTable<'a>,
        key: &str,
        span: Range<usize>,
        what: &str,
    ) -> Option<Box<str>> {
        if !table.contains_key(key) {
            self.error("missing-key", span, format!("{what} needs `{key}`"));
            return None;
        }
        self.text_of(table, key, Some(MAX_NAME))
    }

    pub(super) fn strings(&mut self, table: &DeTable<'a>, key: &str) -> Option<Vec<Box<str>>> {
        let item = table.get(key)?;
        let Some(items) = item.get_ref().as_array() else {
            self.wrong_type(item.span(), &format!("`{key}`"), "an array of strings", item.get_ref());
            return None;
        };
        let mut texts = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => {
                    self.check_text(key, text, item.span());
                    texts.push(text.into());
                }
                None => drop(self.wrong_type(
                    item.span(),
                    &format!("an element of `{key}`"),
                    "a string",
                    item.get_ref(),
                )),
            }
        }
        Some(texts)
    }

    pub(super) fn boolean(&mut self, table: &DeTable<'a>, key: &str) -> Option<bool> {
        let item = table.get(key)?;
        let value = item.get_ref().as_bool();
        if value.is_none() {
            self.wrong_type(item.span(), &format!("`{key}`"), "true or false", item.get_ref());
        }
        value
    }

    pub(super) fn integer(&mut self, table: &DeTable<'a>, key: &str, least: i32, most: i32) -> Option<i32> {
        let item = table.get(key)?;
        let Some(number) = item.get_ref().as_integer() else {
            let help = item
                .get_ref()
                .as_str()
                .and_then(plain_integer)
                .map(|number| format!("write {number}, without quotes"));
            self.wrong_type(item.span(), &format!("`{key}`"), "an integer", item.get_ref()).help.extend(help);
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.and_then(|it| i32::try_from(it).ok()).filter(|it| (least..=most).contains(it));
        if value.is_none() {
            self.error("out-of-range", item.span(), format!("`{key}` must be from {least} to {most}"));
        }
        value
    }

    pub(super) fn cost(&mut self, table: &DeTable<'a>, key: &str) -> Option<f64> {
        let item = table.get(key)?;
        let number = match item.get_ref() {
            DeValue::Float(float) => f64::from_str(float.as_str()).ok(),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).ok().map(|it| it as f64)
            }
            other => {
                let quoted = other.as_str().filter(|text| text.parse::<f64>().is_ok_and(f64::is_finite));
                let help = quoted.map(|text| format!("write {}, without quotes", shorten(text)));
                self.wrong_type(item.span(), &format!("`{key}`"), "a price in USD per million tokens", other)
                    .help
                    .extend(help);
                return None;
            }
        };
        // As the column will hold it: what is rounded up to the limit does not fit.
        let stored = |it: f64| (it * COST_DIGITS).round() / COST_DIGITS;
        let number = number.filter(|it| it.is_finite() && *it >= 0.0 && stored(*it) < MAX_COST);
        if number.is_none() {
            self.error(
                "out-of-range",
                item.span(),
                format!("`{key}` must be from 0 to below {MAX_COST} USD"),
            );
        }
        number
    }

    pub(super) fn duration(&mut self, table: &DeTable<'a>, key: &str, least: Duration) -> Option<Duration> {
        let text = self.raw_text(table, key)?;
        let span = table.get(key)?.span();
        let problem = match duration::parse(text) {
            Ok(found) if (least..=LONGEST).contains(&found) => return Some(found),
            Ok(found) if found < least => Some(format!("must be at least {}", duration::format(least))),
            Ok(_) => Some(format!("must be at most {}", duration::format(LONGEST))),
            Err(_) => None,
        };
        match problem {
            Some(problem) => self.error("out-of-range", span, format!("`{key}` {problem}")),
            None => {
                let message = format!("`{key}`: expected a duration such as 500ms, 30s, 5m or 1h");
                self.error("duration", span, message)
            }
        };
        None
    }

    pub(super) fn cron(&mut self, table: &DeTable<'a>, key: &str) -> Option<Arc<str>> {
        let text = self.raw_text(table, key)?;
        if is_cron(text) {
            return Some(text.into());
        }
        let span = table.get(key)?.span();
        let found = self.error("cron", span, format!("`{key}` is no cron expression of six fields"));
        found.help.push("second minute hour day month weekday, for example \"0 */5 * * * *\"".into());
        None
    }

    /// One of a closed set of words.
    pub(super) fn word<T>(
        &mut self,
        table: &DeTable<'a>,
        key: &str,
        parse: impl Fn(&str) -> Option<T>,
        all: impl Iterator<Item = &'static str>,
    ) -> Option<T> {
        let text = self.raw_text(table, key)?;
        let parsed = parse(text);
        if parsed.is_none() {
            let span = table.get(key)?.span();
            self.check_text(key, text, span.clone());
            if keyshape::find(text).is_some() {
                // What a key is doing here matters more than which words there are.
                return None;
            }
            let all: Vec<&str> = all.collect();
            let help = match nearest(text, all.iter().copied()) {
                Some(close) => format!("did you mean `{close}`?"),
                None => format!("one of {}", all.join(", ")),
            };
            let message = format!("`{key}` has no value `{}`", keyshape::mask(&shorten(text), &[]));
            self.error("unknown-value", span, message).help.push(help);
        }
        parsed
    }

    /// A table of free form, as JSON.
    pub(super) fn free(&mut self, table: &DeTable<'a>, key: &str, reserved: &[&str]) -> JsonMap {
        let Some(table) = self.table(table, key) else { return JsonMap::new() };
        for name in table.keys().filter(|name| reserved.contains(&&**name.get_ref())) {
            let message =
                format!("`{}` in `{key}` is set from the provider's own key of that name", name.get_ref());
            self.error("reserved-key", name.span(), message);
        }
        self.json_table(table, 1)
    }

    pub(super) fn json_table(&mut self, table: &DeTable<'a>, depth: usize) -> JsonMap {
        let mut map = JsonMap::new();
        for (name, item) in table {
            if name.get_ref().contains('\0') || keyshape::find(name.get_ref()).is_some() {
                self.error("key-name", name.span(), "this is no name for a key").secret = true;
                continue;
            }
            let value = self.json(name.get_ref(), item, depth);
            map.insert(name.get_ref().clone().into_owned(), value);
        }
        map
    }

    pub(super) fn json(&mut self, name: &str, item: &SpannedItem<'a>, depth: usize) -> Value {
        if depth > MAX_DEPTH {
            self.error("too-deep", item.span(), format!("tables and arrays nest {MAX_DEPTH} deep at most"));
            return Value::Null;
        }
        match item.get_ref() {
            DeValue::String(text) => {
                self.check_text(name, text, item.span());
                Value::from(text.as_ref())
            }
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => number.into(),
                Err(_) => {
                    self.error("out-of-range", item.span(), "this integer does not fit into 64 bits");
                    Value::Null
                }
            },
            DeValue::Float(float) => match f64::from_str(float.as_str()).ok().filter(|it| it.is_finite()) {
                Some(float) => float.into(),
                None => {
                    self.error("not-finite", item.span(), "JSON has no infinity and no NaN");
                    Value::Null
                }
            },
            DeValue::Boolean(value) => (*value).into(),
            DeValue::Datetime(time) => time.to_string().into(),
            DeValue::Array(items) => {
                Value::Array(items.iter().map(|item| self.json(name, item, depth + 1)).collect())
            }
            DeValue::Table(table) => Value::Object(self.json_table(table, depth + 1)),
        }
    }
}

/// A word from a manifest for a message: one line, of bounded length, without a secret.
pub(super) fn shorten(word: &str) -> String {
    // Masked first: half a key would pass for none.
    let masked = keyshape::mask(word, &[]);
    let mut characters = masked.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut plain: String = characters.by_ref().take(60).collect();
    if characters.next().is_some() {
        plain.push('…');
    }
    plain
}
/// Keys whose values are durations, such as `"30s"`.
const DURATIONS: &[&str] = &["interval", "timeout", "slow_after", "connect", "first_token", "idle", "total"];

/// The integer that a text such as `128k` or `4_096` means.
fn plain_integer(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase().replace(['_', ','], "");
    let (digits, zeros) = match text.strip_suffix('k') {
        Some(digits) => (digits, "_000"),
        None => match text.strip_suffix('m') {
            Some(digits) => (digits, "_000_000"),
            None => (text.as_str(), ""),
        },
    };
    let plain = (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| format!("{digits}{zeros}"))
}
