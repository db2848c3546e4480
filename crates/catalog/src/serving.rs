//! What manifests say about the gateway: consumers, tiers, aliases, power levels, and what providers and models add.
//!
//! PURE: values only. Not its job: reading texts (`manifest`), deciding about requests. Invariant: each value's JSON is
//! the part of the gateway's own input of that kind that a manifest can say, so that a node without manifests builds
//! the same picture from what the database holds; what a manifest leaves out is absent from it.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

use provider::{dialect::CallerDialect, words};

use crate::{
    model::{Model, Origin, Provider},
    price::{Money, TokenPrice},
};

words! {
    /// What a row of `providerd.gateway_object` is about.
    ObjectKind {
        Alias = "alias",
        Consumer = "consumer",
        /// What a model adds; its row is named `provider/model`.
        Model = "model",
        PowerLevel = "power_level",
        /// What a provider adds.
        Provider = "provider",
        Tier = "tier",
    }
}

impl ObjectKind {
    /// Whether its objects belong to a provider and follow it in all things.
    pub const fn is_of_provider(self) -> bool {
        matches!(self, Self::Provider | Self::Model)
    }

    /// As it reads in a sentence.
    pub const fn noun(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Consumer => "consumer",
            Self::Model => "gateway settings of model",
            Self::PowerLevel => "power level",
            Self::Provider => "gateway settings of provider",
            Self::Tier => "tier",
        }
    }
}

words! {
    /// A dialect in which callers ask and providers answer; the words of a manifest's `apis`.
    Api {
        Chat = "chat",
        Completions = "completions",
        Embeddings = "embeddings",
        Responses = "responses",
        Messages = "messages",
    }
}

impl Api {
    /// What is translated to and from, where it can be.
    pub const fn dialect(self) -> Option<CallerDialect> {
        match self {
            Self::Chat => Some(CallerDialect::Chat),
            Self::Responses => Some(CallerDialect::Responses),
            Self::Messages => Some(CallerDialect::Messages),
            Self::Completions | Self::Embeddings => None,
        }
    }
}

words! {
    /// What becomes of a provider's answer whose caller has left.
    OnDisconnect {
        /// It is given up at once.
        Cancel = "cancel",
        /// It is read on, within bounds, so that its usage is known.
        Drain = "drain",
    }
}

words! {
    /// A window of a budget, UTC; a week begins on Monday.
    BudgetPeriod { Day = "day", Week = "week", Month = "month" }
}

/// `[providers.NAME.gateway]`: how the gateway uses one provider.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamSettings {
    /// Dialects that it speaks itself, in the order of [`Api::ALL`]; default: the type's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apis: Option<Vec<Api>>,
    /// Inside the operator's walls: may serve requests that ask for privacy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<bool>,
    /// Also serves names that are no row of `llm_models`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unlisted_models: Option<bool>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    #[serde(rename = "clocks", skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<UpstreamTimeouts>,
    /// Fixed headers, by lower-case name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<(Box<str>, Box<str>)>>,
    #[serde(rename = "drain", serialize_with = "drains", skip_serializing_if = "Option::is_none")]
    pub on_disconnect: Option<OnDisconnect>,
}

#[allow(clippy::ref_option)] // serde's signature
fn drains<S: Serializer>(value: &Option<OnDisconnect>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_bool(*value == Some(OnDisconnect::Drain))
}

/// How long the gateway waits for a provider; what is absent is inherited. Written in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct UpstreamTimeouts {
    #[serde(serialize_with = "milliseconds", skip_serializing_if = "Option::is_none")]
    pub connect: Option<Duration>,
    #[serde(serialize_with = "milliseconds", skip_serializing_if = "Option::is_none")]
    pub first_token: Option<Duration>,
    #[serde(serialize_with = "milliseconds", skip_serializing_if = "Option::is_none")]
    pub idle: Option<Duration>,
    #[serde(serialize_with = "milliseconds", skip_serializing_if = "Option::is_none")]
    pub total: Option<Duration>,
}

#[allow(clippy::ref_option)] // serde's signature
fn milliseconds<S: Serializer>(value: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    let all = value.unwrap_or_default().as_millis();
    to.serialize_u64(u64::try_from(all).unwrap_or(u64::MAX))
}

/// What a model says for the gateway alone, and its prices to the last digit: the columns of `llm_models` keep four.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OfferSettings {
    /// What the provider calls it; default: its name.
    pub upstream_name: Option<Box<str>>,
    /// Tokens.
    pub max_output_tokens: Option<u32>,
    pub prices: OfferPrices,
    /// What the model takes, where it differs from what is known of it: fields of
    /// [`provider::dialect::ModelCapabilities`].
    pub takes: Map<String, Value>,
}

impl OfferSettings {
    /// Whether the columns of `llm_models` say all of it.
    pub fn is_plain(&self) -> bool {
        let fits = |price: Option<TokenPrice>| price.is_none_or(|it| it.units() % COLUMN_STEP == 0);
        self.upstream_name.is_none()
            && self.max_output_tokens.is_none()
            && self.takes.is_empty()
            && self.prices.cached_input.is_none()
            && self.prices.cache_write.is_none()
            && fits(self.prices.input)
            && fits(self.prices.output)
    }
}

/// `numeric(…,4)`: the fourth digit behind the point, in units of 1e-10 USD.
const COLUMN_STEP: i64 = 1_000_000;

/// Prices of a model as its manifest declares them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfferPrices {
    pub input: Option<TokenPrice>,
    pub output: Option<TokenPrice>,
    /// Default: the input price.
    pub cached_input: Option<TokenPrice>,
    /// Default: the input price.
    pub cache_write: Option<TokenPrice>,
}

impl OfferPrices {
    fn named(&self) -> impl Iterator<Item = (&'static str, TokenPrice)> {
        let all = [
            ("input", self.input),
            ("output", self.output),
            ("cached_input", self.cached_input),
            ("cache_write", self.cache_write),
        ];
        all.into_iter().filter_map(|(name, price)| Some((name, price?)))
    }
}

/// `prices` in units of 1e-10 USD per million tokens, and the same as decimal text in USD for readers of the table.
impl Serialize for OfferSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(name) = &self.upstream_name {
            map.serialize_entry("upstream_name", name)?;
        }
        if let Some(most) = self.max_output_tokens {
            map.serialize_entry("max_output_tokens", &most)?;
        }
        if !self.takes.is_empty() {
            map.serialize_entry("takes", &self.takes)?;
        }
        if self.prices.named().next().is_some() {
            let units: Map<String, Value> =
                self.prices.named().map(|(name, price)| (name.into(), price.units().into())).collect();
            let texts: Map<String, Value> =
                self.prices.named().map(|(name, price)| (name.into(), price.to_string().into())).collect();
            map.serialize_entry("prices", &units)?;
            map.serialize_entry("prices_usd", &texts)?;
        }
        map.end()
    }
}

/// `[consumers.NAME]`: who may call the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Consumer {
    pub keys: Vec<ConsumerKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_tier: Option<Box<str>>,
    /// Globs over `provider/model`, aliases and levels; those with `!` win. Absent: everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<Box<str>>>,
    #[serde(rename = "limits", skip_serializing_if = "Allowance::is_empty")]
    pub allowance: Allowance,
    /// May say whose request it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trusted: Option<bool>,
}

/// The hash of a consumer's key; the key itself stands nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConsumerKey {
    /// 64 hexadecimal digits in lower case.
    pub sha256: Box<str>,
    /// Unix seconds; refused from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

/// Limits and budgets of a consumer, or of each user of a tier.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Allowance {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<SpendLimit>,
}

impl Allowance {
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
    }
}

/// What may be spent in one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SpendLimit {
    /// In units of 1e-10 USD.
    #[serde(rename = "units", serialize_with = "units")]
    pub usd: Money,
    pub per: BudgetPeriod,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn units<S: Serializer>(money: &Money, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_i64(money.units())
}

/// `[power_levels.NAME]`: applied to requests of the level where the caller set none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LevelSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
}

/// An object of the gateway that belongs to no provider.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GatewayObject {
    pub name: Arc<str>,
    pub origin: Origin,
    #[serde(flatten)]
    pub body: ObjectBody,
}

/// What an object says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectBody {
    Consumer(Consumer),
    /// Holds for each user of the tier.
    Tier(Allowance),
    /// What it stands for, tried in order.
    Alias(Vec<Box<str>>),
    /// The object's name is the level.
    PowerLevel(LevelSettings),
}

/// Kind and name: what is unique over all files.
pub type ObjectName = (ObjectKind, Arc<str>);

impl GatewayObject {
    pub const fn kind(&self) -> ObjectKind {
        match &self.body {
            ObjectBody::Consumer(_) => ObjectKind::Consumer,
            ObjectBody::Tier(_) => ObjectKind::Tier,
            ObjectBody::Alias(_) => ObjectKind::Alias,
            ObjectBody::PowerLevel(_) => ObjectKind::PowerLevel,
        }
    }

    pub fn object_name(&self) -> ObjectName {
        (self.kind(), self.name.clone())
    }

    /// What is stored, in the form in which the gateway reads it.
    pub fn spec(&self) -> Value {
        #[derive(Serialize)]
        struct Named<'a, T: Serialize> {
            name: &'a str,
            #[serde(flatten)]
            body: T,
        }
        let name = &*self.name;
        match &self.body {
            ObjectBody::Consumer(body) => json(&Named { name, body }),
            ObjectBody::Tier(allowance) => serde_json::json!({ "name": name, "limits": json(allowance) }),
            ObjectBody::Alias(targets) => serde_json::json!({ "name": name, "targets": targets }),
            ObjectBody::PowerLevel(defaults) => {
                serde_json::json!({ "level": name, "defaults": json(defaults) })
            }
        }
    }
}

impl fmt::Display for GatewayObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind().noun(), self.name)
    }
}

/// Plain values with string keys: their JSON cannot fail.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Whether a consumer may be called so: 1 to 100 letters, digits, `.`, `_` and `-`, a letter or digit first.
pub fn is_consumer_name(name: &str) -> bool {
    (1..=100).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// The moment from which a key is refused, in Unix seconds: a date (`2027-06-30`) means its beginning, UTC; else a moment
/// of RFC 3339 with its offset.
pub fn expiry(text: &str) -> Option<i64> {
    let date = chrono::NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
    let midnight = date.and_then(|date| date.and_hms_opt(0, 0, 0)).map(|it| it.and_utc().timestamp());
    midnight.or_else(|| chrono::DateTime::parse_from_rfc3339(text).ok().map(|it| it.timestamp()))
}

/// What one provider and its models add for the gateway: kind, name, line and spec of each row.
pub fn of_provider(provider: &Provider) -> impl Iterator<Item = (ObjectKind, String, u32, Value)> {
    let own = provider.gateway.as_deref().map(|settings| {
        (ObjectKind::Provider, provider.name.to_string(), provider.origin.line, json(settings))
    });
    let models = provider.models.iter().filter_map(|model: &Model| {
        let settings = model.gateway.as_deref()?;
        Some((ObjectKind::Model, format!("{}/{}", provider.name, model.name), model.line, json(settings)))
    });
    own.into_iter().chain(models)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_columns_keep_needs_no_row() {
        let check = |price: &str, is_plain: bool| {
            let prices = OfferPrices { input: Some(price.parse().unwrap()), ..OfferPrices::default() };
            let settings = OfferSettings { prices, ..OfferSettings::default() };
            assert_eq!(settings.is_plain(), is_plain, "{price}");
        };
        check("0", true);
        check("0.1", true);
        check("12.3456", true);
        check("0.07525", false);
        let cached = OfferPrices { cached_input: Some("0.1".parse().unwrap()), ..OfferPrices::default() };
        assert!(!OfferSettings { prices: cached, ..OfferSettings::default() }.is_plain());
    }

    #[test]
    fn prices_are_written_as_whole_numbers_and_as_text() {
        let prices = OfferPrices { input: Some("0.07525".parse().unwrap()), ..OfferPrices::default() };
        let written = json(&OfferSettings { prices, ..OfferSettings::default() });
        let expected =
            serde_json::json!({ "prices": { "input": 752_500_000 }, "prices_usd": { "input": "0.07525" } });
        assert_eq!(written, expected);
    }
}
