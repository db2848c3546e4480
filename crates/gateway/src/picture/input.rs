//! What a picture is made from: plain values, as they are read from rows and kept sealed on disk.

pub use catalog::serving::{Api, BudgetPeriod};
use catalog::{
    model::{HealthStatus, KeyStatus, PowerLevel},
    price::{LongContextRates, TokenPrice, TokenPrices, TokenRates},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// A set of dialects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ApiSet(u8);

impl ApiSet {
    const fn bit(api: Api) -> u8 {
        1 << api as u8
    }

    pub const fn with(self, api: Api) -> Self {
        Self(self.0 | Self::bit(api))
    }

    pub const fn has(self, api: Api) -> bool {
        self.0 & Self::bit(api) != 0
    }

    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = Api> {
        Api::ALL.iter().copied().filter(move |api| self.has(*api))
    }
}

impl FromIterator<Api> for ApiSet {
    fn from_iter<I: IntoIterator<Item = Api>>(apis: I) -> Self {
        apis.into_iter().fold(Self::default(), Self::with)
    }
}

impl Serialize for ApiSet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for ApiSet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::<Api>::deserialize(deserializer).map(|apis| apis.into_iter().collect())
    }
}

/// Everything that a picture is made of. Keys stand in it as ciphertext tokens only.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PictureInput {
    /// Names what it was made from, for rows and `explain`.
    pub revision: String,
    /// When it was read, in Unix seconds: an old one is refused at the start.
    pub taken_at: i64,
    pub rules: PictureRules,
    pub consumers: Vec<ConsumerInput>,
    pub tiers: Vec<TierInput>,
    pub aliases: Vec<AliasInput>,
    pub levels: Vec<LevelInput>,
    pub providers: Vec<UpstreamInput>,
    pub routes: Vec<RouteInput>,
}

/// Settings that decide.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PictureRules {
    /// Rows that no manifest manages serve too.
    pub unmanaged: bool,
    /// Unhealthy providers are not even the last resort.
    pub exclude_unhealthy: bool,
    /// Of all providers; each may set its own.
    pub clocks: ClocksInput,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConsumerInput {
    pub name: String,
    pub keys: Vec<KeyHashInput>,
    pub user_tier: Option<String>,
    /// Globs over `provider/model`, aliases and levels; `!` wins; none: everything.
    pub models: Vec<String>,
    pub limits: LimitSpec,
    pub trusted: bool,
    /// `file:line`.
    pub origin: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct KeyHashInput {
    /// 64 hexadecimal digits.
    pub sha256: String,
    /// Unix seconds; from then on it is refused.
    #[serde(default)]
    pub expires: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TierInput {
    pub name: String,
    pub limits: LimitSpec,
}

/// Limits and budgets of a consumer, or of each user of a tier.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitSpec {
    pub requests_per_minute: Option<u64>,
    pub tokens_per_minute: Option<u64>,
    /// Requests at once.
    pub concurrency: Option<u32>,
    pub budgets: Vec<BudgetSpec>,
}

impl LimitSpec {
    /// Nothing is limited.
    pub const fn is_empty(&self) -> bool {
        !self.is_shared() && self.budgets.is_empty()
    }

    /// Some of it is divided between the nodes.
    pub const fn is_shared(&self) -> bool {
        self.requests_per_minute.is_some() || self.tokens_per_minute.is_some() || self.concurrency.is_some()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BudgetSpec {
    /// In units of 1e-10 USD.
    pub units: i64,
    pub per: BudgetPeriod,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AliasInput {
    pub name: String,
    /// `provider/model`, a model, a power level, another alias; tried in order.
    pub targets: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelInput {
    pub level: PowerLevel,
    pub defaults: LevelDefaults,
}

/// Applied to requests of a level where the caller set none.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LevelDefaults {
    pub max_tokens: Option<u64>,
    pub temperature: Option<f64>,
}

/// One provider, as rows and manifests say it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamInput {
    pub id: Uuid,
    pub name: String,
    /// The type's word.
    pub kind: String,
    pub base_url: String,
    /// Ciphertext; `None`: no key is stored.
    pub key_token: Option<String>,
    /// A key is declared, and neither its source nor the database holds one.
    pub key_missing: bool,
    pub key_placement: KeyPlacement,
    pub key_status: Option<KeyStatus>,
    /// Why the key failed, in words that may be shown.
    pub key_note: Option<String>,
    /// Dialects that it speaks itself.
    pub apis: ApiSet,
    /// Dialects in which it can be asked through a translation.
    pub translated: ApiSet,
    pub local: bool,
    pub clocks: ClocksInput,
    /// Fixed headers.
    pub headers: Vec<(String, String)>,
    pub max_in_flight: Option<u32>,
    pub priority: i32,
    pub prefixes: Vec<String>,
    pub unlisted_models: bool,
    pub health: HealthStatus,
    pub enabled: bool,
    pub managed: bool,
    /// Read on after the caller left, to know the usage.
    pub drain: bool,
    pub models: Vec<OfferInput>,
    pub origin: Option<String>,
}

impl Default for UpstreamInput {
    fn default() -> Self {
        Self {
            id: Uuid::nil(),
            name: String::new(),
            kind: String::new(),
            base_url: String::new(),
            key_token: None,
            key_missing: false,
            key_placement: KeyPlacement::Bearer,
            key_status: None,
            key_note: None,
            apis: ApiSet::default().with(Api::Chat),
            translated: ApiSet::default(),
            local: false,
            clocks: ClocksInput::default(),
            headers: Vec::new(),
            max_in_flight: None,
            priority: 0,
            prefixes: Vec::new(),
            unlisted_models: false,
            health: HealthStatus::Unknown,
            enabled: true,
            managed: true,
            drain: false,
            models: Vec::new(),
            origin: None,
        }
    }
}

/// Where a key travels in a request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPlacement {
    /// `Authorization: Bearer …`
    #[default]
    Bearer,
    /// Alone, in the header of this name.
    Header(String),
    /// The code that builds the request signs it or exchanges it: the key does not travel as it is.
    Signed,
}

/// The four clocks, in milliseconds; what is absent is inherited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ClocksInput {
    pub connect: Option<u64>,
    pub first_token: Option<u64>,
    pub idle: Option<u64>,
    pub total: Option<u64>,
    pub total_streaming: Option<u64>,
}

/// One model of one provider.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OfferInput {
    pub id: Uuid,
    pub name: String,
    /// What the provider calls it; absent: its name.
    pub upstream_name: Option<String>,
    pub display_name: Option<String>,
    pub context_length: Option<u64>,
    pub max_output_tokens: Option<u64>,
    /// What the model takes, where it differs from the defaults: fields of `provider::dialect::ModelCapabilities`.
    pub takes: Map<String, Value>,
    pub prices: PriceInput,
    pub enabled: bool,
    /// Unix seconds, for lists of models.
    pub created_at: i64,
}

impl Default for OfferInput {
    fn default() -> Self {
        Self {
            id: Uuid::nil(),
            name: String::new(),
            upstream_name: None,
            display_name: None,
            context_length: None,
            max_output_tokens: None,
            takes: Map::new(),
            prices: PriceInput::default(),
            enabled: true,
            created_at: 0,
        }
    }
}

/// Prices in units of 1e-10 USD per million tokens; absent or negative: unknown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PriceInput {
    pub input: Option<i64>,
    pub output: Option<i64>,
    pub cached_input: Option<i64>,
    pub cache_write: Option<i64>,
    pub cache_write_1h: Option<i64>,
    /// Prompts longer than this many tokens cost as the prices beside it.
    pub long_context: Vec<(u64, PriceInput)>,
}

impl PriceInput {
    fn rates(&self) -> TokenRates {
        let price = |units: Option<i64>| units.and_then(TokenPrice::from_units);
        TokenRates {
            input: price(self.input),
            output: price(self.output),
            cached_input: price(self.cached_input),
            cache_write: price(self.cache_write),
            cache_write_1h: price(self.cache_write_1h),
        }
    }

    pub(super) fn prices(&self) -> TokenPrices {
        let long = |(above, prices): &(u64, Self)| LongContextRates { above: *above, rates: prices.rates() };
        TokenPrices { rates: self.rates(), long_context: self.long_context.iter().map(long).collect() }
    }
}

/// One routing rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RouteInput {
    /// Of the model.
    pub model_id: Uuid,
    pub level: PowerLevel,
    /// `all`, or a tier's name.
    pub tier: String,
    #[serde(default)]
    pub task: Option<String>,
    pub priority: i32,
    pub weight: i32,
    pub enabled: bool,
    /// `file:line`.
    #[serde(default)]
    pub origin: Option<String>,
}

/// The tier of all users.
pub const ALL_TIERS: &str = "all";
