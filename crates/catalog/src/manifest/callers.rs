//! What a manifest says about the gateway: `[aliases]`, `[power_levels]`, `[consumers]`, `[tiers]`, and the gateway's keys
//! of providers and models.
//!
//! PURE. Not its job: what takes two files (`meanings`). Invariant: a value that may be a caller's or a provider's key is
//! refused and never shown, whatever stands beside it.

use std::{borrow::Cow, sync::Arc, time::Duration};

use provider::dialect::ModelCapabilities;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    ParsedFile,
    diagnostic::SourcePlace,
    keyshape,
    objects::is_tier,
    parse::{ManifestReader, SpannedItem},
    values::{MAX_NAME, REVOKE, shorten},
};
use crate::{
    model::{JsonMap, Origin, PowerLevel},
    price::{Money, TokenPrice},
    serving::{
        Allowance, Api, BudgetPeriod, Consumer, ConsumerKey, GatewayObject, LevelSettings, ObjectBody,
        OfferPrices, OfferSettings, OnDisconnect, SpendLimit, UpstreamSettings, UpstreamTimeouts, expiry,
        is_consumer_name,
    },
};

/// Keys of each table, in the order of the documentation.
pub(super) const UPSTREAM: &[&str] =
    &["apis", "local", "unlisted_models", "max_in_flight", "timeouts", "headers", "on_disconnect"];
pub(super) const TIMEOUTS: &[&str] = &["connect", "first_token", "idle", "total"];
pub(super) const LEVEL: &[&str] = &["max_tokens", "temperature"];
pub(super) const CONSUMER: &[&str] = &["keys", "user_tier", "models", "limits", "budgets", "trusted"];
pub(super) const CONSUMER_KEY: &[&str] = &["sha256", "expires"];
pub(super) const LIMITS: &[&str] = &["requests_per_minute", "tokens_per_minute", "concurrency"];
pub(super) const BUDGET: &[&str] = &["usd", "per"];
pub(super) const TIER: &[&str] = &["limits", "budgets"];

/// The ask that leaves the choice to the gateway.
pub(super) const AUTO: &str = "auto";
/// More than any provider serves at once, and far from overflowing any sum.
const MOST_AT_ONCE: i64 = 1_000_000;
/// A minute's worth that no caller reaches; sums over many callers still fit 64 bits.
const MOST_PER_MINUTE: i64 = 1_000_000_000_000;
/// A longer header is a mistake; a few of these stay far below what servers take as a head.
const MAX_HEADER: usize = 1024;
const MAX_HEADERS: usize = 32;

/// Headers that the gateway sets itself, and those that carry credentials: a fixed value would break the one, and give
/// away the other.
const TAKEN_HEADERS: &[&str] = &[
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
const CREDENTIAL_HEADERS: &[&str] = &[
    "api-key",
    "authorization",
    "cookie",
    "proxy-authorization",
    "set-cookie",
    "x-amz-security-token",
    "x-api-key",
    "x-goog-api-key",
];

/// A text whose meaning other files may give or take.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mention {
    /// Which of the file's objects says it.
    pub object: usize,
    pub what: Mentioned,
    pub place: SourcePlace,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Mentioned {
    /// The hash of a key, which opens one consumer only.
    Key(ConsumerKey),
    /// A pattern of a consumer's `models`.
    Pattern(Box<str>),
    /// What an alias stands for.
    Target(Box<str>),
}

impl<'a> ManifestReader<'a> {
    /// All tables of the gateway that belong to no provider.
    pub(super) fn callers(&mut self, root: &DeTable<'a>, file: &mut ParsedFile) {
        if let Some(aliases) = self.table(root, "aliases") {
            for (name, item) in aliases {
                let mentions = self.alias(name, item);
                let body = |texts: &[(Box<str>, SourcePlace)]| {
                    ObjectBody::Alias(texts.iter().map(|(text, _)| text.clone()).collect())
                };
                if let Some(targets) = mentions {
                    let body = body(&targets);
                    let said = targets.into_iter().map(|(text, place)| (Mentioned::Target(text), place));
                    self.add_object(file, name, body, said);
                }
            }
        }
        if let Some(levels) = self.table(root, "power_levels") {
            for (name, item) in levels {
                let settings = self.level(name, item);
                if let Some(settings) = settings {
                    self.add_object(file, name, ObjectBody::PowerLevel(settings), []);
                }
            }
        }
        if let Some(consumers) = self.table(root, "consumers") {
            for (name, item) in consumers {
                if let Some((consumer, said)) = self.consumer(name, item) {
                    self.add_object(file, name, ObjectBody::Consumer(consumer), said);
                }
            }
        }
        if let Some(tiers) = self.table(root, "tiers") {
            for (name, item) in tiers {
                if let Some(allowance) = self.tier(name, item) {
                    self.add_object(file, name, ObjectBody::Tier(allowance), []);
                }
            }
        }
    }

    fn add_object(
        &mut self,
        file: &mut ParsedFile,
        name: &Spanned<Cow<'a, str>>,
        body: ObjectBody,
        said: impl IntoIterator<Item = (Mentioned, SourcePlace)>,
    ) {
        let object = file.objects.len();
        file.mentions.extend(said.into_iter().map(|(what, place)| Mention { object, what, place }));
        let place = self.lines.place(name.span());
        let origin = Origin { file: self.path.clone(), line: place.line };
        file.object_places.push(place);
        file.objects.push(Arc::new(GatewayObject { name: name.get_ref().as_ref().into(), origin, body }));
    }

    /// Whether a name may be shown and stored at all.
    fn is_harmless(&mut self, name: &Spanned<Cow<'a, str>>, what: &str) -> bool {
        if keyshape::find(name.get_ref()).is_none() && !self.begins_key(name.span()) {
            return true;
        }
        let found = self.error("literal-key", name.span(), format!("this {what}'s name looks like a key"));
        found.secret = true;
        found.help.push(REVOKE.into());
        false
    }

    fn object_name(&mut self, name: &Spanned<Cow<'a, str>>, what: &str, is_valid: bool, help: &str) {
        if !is_valid {
            let message = format!("`{}` is not a valid name for {what}", shorten(name.get_ref()));
            self.error("object-name", name.span(), message).help.push(help.into());
        }
    }

    // ------------------------------------------------------------------------------------ aliases, levels

    fn alias(
        &mut self,
        name: &Spanned<Cow<'a, str>>,
        item: &SpannedItem<'a>,
    ) -> Option<Vec<(Box<str>, SourcePlace)>> {
        if !self.is_harmless(name, "alias") {
            return None;
        }
        let help = "a name has 1 to 255 characters, no `*`, `?` or `!`, no blanks around it, and is neither a power level nor `auto`";
        self.object_name(name, "an alias", is_alias(name.get_ref()), help);
        let items: Vec<&SpannedItem<'a>> = match item.get_ref() {
            DeValue::String(_) => vec![item],
            DeValue::Array(items) => items.iter().collect(),
            other => {
                let is_table = other.is_table();
                let found =
                    self.wrong_type(item.span(), "an alias", "a string or an array of strings", other);
                if is_table {
                    found.help.push("a name with a dot is quoted: \"gpt-4.1\" = \"…\"".into());
                }
                return None;
            }
        };
        if items.is_empty() {
            self.error("empty-list", item.span(), "an alias stands for one thing at least");
        }
        let mut targets = Vec::with_capacity(items.len());
        for item in items {
            let Some(text) = item.get_ref().as_str() else {
                self.wrong_type(item.span(), "what an alias stands for", "a string", item.get_ref());
                continue;
            };
            self.check_text("aliases", text, item.span());
            if text.trim() != text
                || text.is_empty()
                || text.contains(['*', '?', '!'])
                || text.len() > 2 * MAX_NAME
            {
                let message = "expected `provider/model`, a model, a power level or another alias";
                self.error("alias-target", item.span(), message)
                    .help
                    .push("an alias names one thing; several are a list, tried in order".into());
            }
            targets.push((text.into(), self.lines.place(item.span())));
        }
        Some(targets)
    }

    fn level(&mut self, name: &Spanned<Cow<'a, str>>, item: &SpannedItem<'a>) -> Option<LevelSettings> {
        let known = PowerLevel::parse(name.get_ref());
        if known.is_none() && self.is_harmless(name, "power level") {
            let help =
                match super::values::nearest(name.get_ref(), PowerLevel::ALL.iter().map(|it| it.as_str())) {
                    Some(close) => format!("did you mean `{close}`?"),
                    None => "one of eco, balanced, precision".to_owned(),
                };
            let message = format!("`{}` is not a power level", shorten(name.get_ref()));
            self.error("object-name", name.span(), message).help.push(help);
        }
        let table = self.expect_table(item, "a power level")?;
        self.unknown(table, LEVEL, "a power level");
        let most = self.whole(table, "max_tokens", 1, i64::from(i32::MAX));
        let settings = LevelSettings { max_tokens: most, temperature: self.temperature(table) };
        known.map(|_| settings)
    }

    fn temperature(&mut self, table: &DeTable<'a>) -> Option<f64> {
        let item = table.get("temperature")?;
        let value: Option<f64> = match item.get_ref() {
            DeValue::Float(float) => float.as_str().parse().ok(),
            DeValue::Integer(number) => number.as_str().parse().ok(),
            other => {
                self.wrong_type(item.span(), "`temperature`", "a number", other);
                return None;
            }
        };
        // Every dialect's scale lies within.
        let value = value.filter(|it| (0.0..=2.0).contains(it));
        if value.is_none() {
            self.error("out-of-range", item.span(), "`temperature` must be from 0 to 2");
        }
        value
    }

    // ------------------------------------------------------------------------------------ consumers, tiers

    fn consumer(
        &mut self,
        name: &Spanned<Cow<'a, str>>,
        item: &SpannedItem<'a>,
    ) -> Option<(Consumer, Vec<(Mentioned, SourcePlace)>)> {
        if !self.is_harmless(name, "consumer") {
            return None;
        }
        let help = "a name has 1 to 100 letters, digits, `.`, `_` and `-`, and begins with a letter or digit";
        self.object_name(name, "a consumer", is_consumer_name(name.get_ref()), help);
        let table = self.expect_table(item, "a consumer")?;
        self.unknown(table, CONSUMER, "a consumer");
        let mut said = Vec::new();
        let mut keys: Vec<ConsumerKey> = Vec::new();
        let items = match table.get("keys").map(|item| (item, item.get_ref().as_array())) {
            Some((_, Some(items))) => items.iter().collect(),
            Some((item, None)) => {
                let found = self.wrong_type(item.span(), "`keys`", "an array of tables", item.get_ref());
                // What stands there in its place may be the key itself.
                found.secret = true;
                found.help.push(MAKE_KEY.into());
                Vec::new()
            }
            None => Vec::new(),
        };
        for item in items {
            let Some(key) = self.consumer_key(item) else { continue };
            said.push((Mentioned::Key(key.clone()), self.lines.place(item.span())));
            keys.push(key);
        }
        let models = self.strings(table, "models");
        let items = table.get("models").and_then(|it| it.get_ref().as_array()).into_iter().flatten();
        for (text, item) in models.iter().flatten().zip(items) {
            if text.trim_start_matches('!').trim().is_empty() || text.starts_with("!!") {
                let message = "expected a glob over `provider/model`, aliases and power levels";
                self.error("alias-target", item.span(), message)
                    .help
                    .push("`*` is everything; a `!` in front takes away".into());
            }
            said.push((Mentioned::Pattern(text.clone()), self.lines.place(item.span())));
        }
        let consumer = Consumer {
            keys,
            user_tier: self.tier_word(table, "user_tier"),
            models,
            allowance: self.allowance(table),
            trusted: self.boolean(table, "trusted"),
        };
        Some((consumer, said))
    }

    fn consumer_key(&mut self, item: &SpannedItem<'a>) -> Option<ConsumerKey> {
        let table = match item.get_ref() {
            DeValue::Table(table) => table,
            other => {
                let wanted = "a table such as { sha256 = \"…\" }";
                let found = self.wrong_type(item.span(), "a consumer's key", wanted, other);
                // What stands there in its place may be the key itself.
                found.secret = true;
                found.help.push(MAKE_KEY.into());
                return None;
            }
        };
        self.unknown(table, CONSUMER_KEY, "a consumer's key");
        let expires = self.expiry(table);
        let Some(hash) = table.get("sha256") else {
            self.error("missing-key", item.span(), "a consumer's key needs `sha256`")
                .help
                .push(MAKE_KEY.into());
            return None;
        };
        let text = self.raw_text(table, "sha256")?;
        if keyshape::find(text).is_some() {
            self.check_text("sha256", text, hash.span());
            return None;
        }
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            let message = "`sha256` has 64 hexadecimal digits: the SHA-256 of the key, not the key";
            let found = self.error("consumer-key", hash.span(), message);
            found.secret = true;
            found.help.push(MAKE_KEY.into());
            found.help.push("of a key that exists: `printf %s \"$KEY\" | sha256sum`".into());
            return None;
        }
        Some(ConsumerKey { sha256: text.to_ascii_lowercase().into(), expires })
    }

    /// The moment from which a key is refused: a date means its beginning, UTC.
    fn expiry(&mut self, table: &DeTable<'a>) -> Option<i64> {
        let item = table.get("expires")?;
        let text = match item.get_ref() {
            DeValue::String(text) => Cow::Borrowed(&**text),
            DeValue::Datetime(time) => Cow::Owned(time.to_string()),
            other => {
                self.wrong_type(item.span(), "`expires`", "a date such as \"2027-06-30\"", other);
                return None;
            }
        };
        let moment = expiry(&text);
        if moment.is_none() {
            self.check_text("expires", &text, item.span());
            let message = "`expires`: expected a date such as \"2027-06-30\"";
            self.error("date", item.span(), message)
                .help
                .push("or a moment with its offset: \"2027-06-30T12:00:00Z\"".into());
        }
        moment
    }

    fn tier(&mut self, name: &Spanned<Cow<'a, str>>, item: &SpannedItem<'a>) -> Option<Allowance> {
        if !self.is_harmless(name, "tier") {
            return None;
        }
        let help = "a name has 1 to 50 letters, digits, `.`, `_` and `-`; `all` stands for every tier";
        self.object_name(name, "a tier", is_tier(name.get_ref()) && name.get_ref() != "all", help);
        let table = self.expect_table(item, "a tier")?;
        self.unknown(table, TIER, "a tier");
        Some(self.allowance(table))
    }

    fn tier_word(&mut self, table: &DeTable<'a>, key: &str) -> Option<Box<str>> {
        let word = self.text_of(table, key, None)?;
        if !is_tier(&word) {
            let message = format!("`{key}` has 1 to 50 letters, digits, `.`, `_` and `-`");
            self.error("route-word", table.get(key)?.span(), message);
        }
        Some(word)
    }

    fn allowance(&mut self, table: &DeTable<'a>) -> Allowance {
        let mut allowance = Allowance::default();
        if let Some(limits) = self.table(table, "limits") {
            self.unknown(limits, LIMITS, "`limits`");
            allowance.requests_per_minute = self.whole(limits, "requests_per_minute", 1, MOST_PER_MINUTE);
            allowance.tokens_per_minute = self.whole(limits, "tokens_per_minute", 1, MOST_PER_MINUTE);
            allowance.concurrency = self.whole(limits, "concurrency", 1, MOST_AT_ONCE);
        }
        let mut periods: Vec<BudgetPeriod> = Vec::new();
        for item in self.tables(table, "budgets") {
            let Some(table) = self.expect_table(item, "a budget") else { continue };
            self.unknown(table, BUDGET, "a budget");
            for key in BUDGET.iter().filter(|key| !table.contains_key(**key)) {
                self.error("missing-key", item.span(), format!("a budget needs `{key}`"));
            }
            let usd = self.money(table, "usd");
            let per =
                self.word(table, "per", BudgetPeriod::parse, BudgetPeriod::ALL.iter().map(|it| it.as_str()));
            let (Some(usd), Some(per)) = (usd, per) else { continue };
            if periods.contains(&per) {
                self.error("duplicate-budget", item.span(), format!("there is a budget per {per} already"));
            }
            periods.push(per);
            allowance.budgets.push(SpendLimit { usd, per });
        }
        allowance
    }

    // ------------------------------------------------------------------------------------ providers, models

    pub(super) fn upstream(&mut self, table: &DeTable<'a>) -> UpstreamSettings {
        self.unknown(table, UPSTREAM, "`gateway`");
        UpstreamSettings {
            apis: self.apis(table),
            local: self.boolean(table, "local"),
            unlisted_models: self.boolean(table, "unlisted_models"),
            max_in_flight: self.whole(table, "max_in_flight", 1, MOST_AT_ONCE),
            timeouts: self.table(table, "timeouts").map(|table| {
                self.unknown(table, TIMEOUTS, "`timeouts`");
                let least = Duration::from_millis(1);
                UpstreamTimeouts {
                    connect: self.duration(table, "connect", least),
                    first_token: self.duration(table, "first_token", least),
                    idle: self.duration(table, "idle", least),
                    total: self.duration(table, "total", least),
                }
            }),
            headers: self.headers(table),
            on_disconnect: self.word(
                table,
                "on_disconnect",
                OnDisconnect::parse,
                OnDisconnect::ALL.iter().map(|it| it.as_str()),
            ),
        }
    }

    fn apis(&mut self, table: &DeTable<'a>) -> Option<Vec<Api>> {
        let words = self.strings(table, "apis")?;
        let item = table.get("apis")?;
        if words.is_empty() {
            self.error("empty-list", item.span(), "a provider speaks one dialect at least");
        }
        let mut found = Vec::new();
        for (word, item) in words.iter().zip(item.get_ref().as_array().into_iter().flatten()) {
            match Api::parse(word) {
                Some(api) => found.push(api),
                None if keyshape::find(word).is_some() => {}
                None => {
                    let all = || Api::ALL.iter().map(|it| it.as_str());
                    let help = match super::values::nearest(word, all()) {
                        Some(close) => format!("did you mean `{close}`?"),
                        None => format!("one of {}", all().collect::<Vec<_>>().join(", ")),
                    };
                    let message = format!("`apis` has no value `{}`", keyshape::mask(&shorten(word), &[]));
                    self.error("unknown-value", item.span(), message).help.push(help);
                }
            }
        }
        Some(Api::ALL.iter().copied().filter(|api| found.contains(api)).collect())
    }

    fn headers(&mut self, table: &DeTable<'a>) -> Option<Vec<(Box<str>, Box<str>)>> {
        let items = self.table(table, "headers")?;
        let mut headers: Vec<(Box<str>, Box<str>)> = Vec::new();
        for (name, item) in items {
            let (span, name) = (name.span(), name.get_ref());
            let lower = name.to_ascii_lowercase();
            if self.begins_key(span.clone()) || keyshape::find(name).is_some() {
                let found = self.error("literal-key", span, "this header's name looks like a key");
                found.secret = true;
                found.help.push(REVOKE.into());
                continue;
            }
            if CREDENTIAL_HEADERS.contains(&&*lower) {
                let message = format!("the header `{}` carries a credential", shorten(name));
                let found = self.error("literal-key", item.span(), message);
                found.secret = true;
                found.help.push("a provider's key belongs in `api_key`; the gateway sets the header".into());
                continue;
            }
            let problem = if !is_header_name(name) {
                Some("this is not a valid name for a header".to_owned())
            } else if TAKEN_HEADERS.contains(&&*lower) {
                Some(format!("the header `{lower}` is set by the gateway itself"))
            } else if headers.iter().any(|(other, _)| **other == *lower) {
                Some(format!("the header `{lower}` is set twice; names know no case"))
            } else {
                None
            };
            if let Some(problem) = problem {
                self.error("header", span, problem);
                continue;
            }
            let Some(value) = self.header_value(name, item) else { continue };
            headers.push((lower.into(), value));
        }
        if headers.len() > MAX_HEADERS {
            let span = table.get("headers").map_or(0..0, Spanned::span);
            self.error("header", span, format!("a provider has {MAX_HEADERS} fixed headers at most"));
        }
        headers.sort();
        Some(headers)
    }

    fn header_value(&mut self, name: &str, item: &SpannedItem<'a>) -> Option<Box<str>> {
        let Some(text) = item.get_ref().as_str() else {
            self.wrong_type(item.span(), "a header's value", "a string", item.get_ref());
            return None;
        };
        self.check_text(name, text, item.span());
        let shown = |byte: u8| byte == b'\t' || (0x20..0x7f).contains(&byte);
        if text.len() > MAX_HEADER || !text.bytes().all(shown) || text.trim() != text {
            let message = format!(
                "a header's value has {MAX_HEADER} printable ASCII characters at most, no blanks around it"
            );
            self.error("header", item.span(), message);
        }
        Some(text.into())
    }

    /// The gateway's keys of one model. Prices are read once more, exactly; what is wrong with those that
    /// `llm_models` has is reported where they are read for it.
    pub(super) fn offer(&mut self, table: &DeTable<'a>) -> OfferSettings {
        let upstream_name = self.text_of(table, "upstream_name", Some(MAX_NAME));
        if upstream_name.as_deref() == Some("")
            && let Some(item) = table.get("upstream_name")
        {
            self.error("model-name", item.span(), "a model's name must not be empty");
        }
        let exact = |key| table.get(key).and_then(|item| exact_price(item.get_ref()));
        OfferSettings {
            upstream_name,
            max_output_tokens: self.whole(table, "max_output_tokens", 1, i64::from(i32::MAX)),
            takes: self.takes(table),
            prices: OfferPrices {
                input: exact("cost_per_1m_input_tokens"),
                output: exact("cost_per_1m_output_tokens"),
                cached_input: self
                    .cost(table, "cost_per_1m_cached_input_tokens")
                    .and_then(|_| exact("cost_per_1m_cached_input_tokens")),
                cache_write: self
                    .cost(table, "cost_per_1m_cache_write_tokens")
                    .and_then(|_| exact("cost_per_1m_cache_write_tokens")),
            },
        }
    }

    /// What the model takes, field by field.
    fn takes(&mut self, table: &DeTable<'a>) -> JsonMap {
        let Some(fields) = self.table(table, "takes") else { return JsonMap::new() };
        self.unknown(fields, ModelCapabilities::FIELDS, "`takes`");
        let map = self.json_table(fields, 1);
        for (name, item) in fields {
            let known = ModelCapabilities::FIELDS.contains(&&**name.get_ref());
            if let Some(value) = map.get(&**name.get_ref()).filter(|_| known)
                && let Err(error) = ModelCapabilities::check(name.get_ref(), value)
                // A key in it is reported as one, and not repeated.
                && keyshape::find(&error).is_none()
            {
                self.error("takes", item.span(), format!("`{}`: {}", name.get_ref(), shorten(&error)));
            }
        }
        map
    }

    // ------------------------------------------------------------------------------------ values

    /// A whole number in a range, as the type in which it is kept.
    fn whole<T: TryFrom<i64>>(&mut self, table: &DeTable<'a>, key: &str, least: i64, most: i64) -> Option<T> {
        let item = table.get(key)?;
        let Some(number) = item.get_ref().as_integer() else {
            self.wrong_type(item.span(), &format!("`{key}`"), "an integer", item.get_ref());
            return None;
        };
        let value = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let value = value.filter(|it| (least..=most).contains(it)).and_then(|it| T::try_from(it).ok());
        if value.is_none() {
            self.error("out-of-range", item.span(), format!("`{key}` must be from {least} to {most}"));
        }
        value
    }

    /// An amount in USD, to the last digit that is kept.
    fn money(&mut self, table: &DeTable<'a>, key: &str) -> Option<Money> {
        let item = table.get(key)?;
        if !matches!(item.get_ref(), DeValue::Float(_) | DeValue::Integer(_)) {
            self.wrong_type(item.span(), &format!("`{key}`"), "an amount in USD", item.get_ref());
            return None;
        }
        let money = exact(item.get_ref()).filter(|it| (0..=MOST_USD).contains(&it.units()));
        if money.is_none() {
            let most = MOST_USD / Money::UNIT;
            self.error("out-of-range", item.span(), format!("`{key}` must be from 0 to {most} USD"));
        }
        money
    }
}

/// What to do about a consumer's key that is not valid.
const MAKE_KEY: &str = "`providerd key consumer NAME` makes a key and prints the line to commit";

/// Far above any budget, and a thousand of them still sum up without overflowing.
const MOST_USD: i64 = 900_000 * Money::UNIT;

/// A number of a manifest as money, without a detour over binary fractions.
fn exact(value: &DeValue<'_>) -> Option<Money> {
    match value {
        DeValue::Float(float) => Money::parse_rounded(float.as_str()).ok(),
        DeValue::Integer(number) => {
            let whole = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
            whole.checked_mul(Money::UNIT).map(Money::from_units)
        }
        _ => None,
    }
}

fn exact_price(value: &DeValue<'_>) -> Option<TokenPrice> {
    TokenPrice::from_units(exact(value)?.units())
}

fn is_alias(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name.trim() == name
        && !name.contains(['*', '?', '!'])
        && !name.chars().any(char::is_control)
        && PowerLevel::parse(name).is_none()
        && name != AUTO
}

/// A token of HTTP.
fn is_header_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}
