//! The picture: everything that a request is decided by, as one immutable value.
//!
//! Its job: make it from plain inputs ([`PictureInput`], which others fill from rows and may keep sealed on disk), and
//! find things in it. Not its job: deciding (`decide`), what happens while it holds (`pulse`, `limit`), opening keys
//! (the opener is an argument). Invariants: a bad object is left out and named, and spoils nothing else; no key can
//! be printed or serialized; equal inputs give equal pictures, so that all nodes decide alike.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
pub use catalog::model::{HealthStatus, KeyStatus, PowerLevel};
use catalog::price::{LongContextRates, TokenPrice, TokenPrices, TokenRates};
use hyper::header::{HeaderName, HeaderValue};
use provider::{dialect::CallerDialect, words};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{allow::AllowList, decide::name_hash};

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

words! {
    /// A window of a budget, UTC; a week begins on Monday.
    BudgetPeriod { Day = "day", Week = "week", Month = "month" }
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
    pub fn is_empty(&self) -> bool {
        self == &Self::default()
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
    /// Whoever builds the request signs it or exchanges it: the key does not travel as it is.
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

    fn prices(&self) -> TokenPrices {
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

/// The tier of everybody.
pub const ALL_TIERS: &str = "all";

/// A provider's key: wiped when the last request that holds it ends, and by no way printed.
#[derive(Clone)]
pub struct UpstreamKey(Bytes);

impl UpstreamKey {
    pub fn new(key: Zeroizing<Vec<u8>>) -> Self {
        Self(Bytes::from_owner(Wiped(key)))
    }

    /// The key itself: for signing a request, never for showing it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A header value `prefix` + key in memory that is wiped, marked so that no printer shows it. `None`: a key with
    /// bytes that no header can carry.
    fn header(&self, prefix: &str) -> Option<HeaderValue> {
        let mut text = Zeroizing::new(Vec::with_capacity(prefix.len() + self.0.len()));
        text.extend_from_slice(prefix.as_bytes());
        text.extend_from_slice(&self.0);
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(Wiped(text))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for UpstreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamKey(…)")
    }
}

/// Whether a key is one that never travels: a service account of Google, which is exchanged for a token, and access
/// keys of Amazon, which sign (its API keys begin with `ABSK` or `bedrock-api-key-`; "Amazon Bedrock API keys").
fn must_sign(kind: &str, key: &[u8]) -> bool {
    match kind {
        "vertex" => key.trim_ascii_start().starts_with(b"{"),
        "bedrock" => !key.starts_with(b"ABSK") && !key.starts_with(b"bedrock-api-key-"),
        _ => false,
    }
}

/// What [`Bytes`] owns here.
struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// How long an attempt may take in each of its phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    pub connect: Duration,
    pub first_token: Duration,
    pub idle: Duration,
    pub total: Duration,
    pub total_streaming: Duration,
}

impl Clocks {
    /// Where neither manifests nor settings say anything. A model on a machine of one's own may have to be loaded
    /// first; else a minute to the first token is already longer than callers wait.
    pub const fn preset(local: bool) -> Self {
        Self {
            connect: Duration::from_secs(4),
            first_token: Duration::from_secs(if local { 300 } else { 60 }),
            idle: Duration::from_secs(120),
            total: Duration::from_secs(15 * 60),
            total_streaming: Duration::from_secs(60 * 60),
        }
    }

    fn over(self, own: ClocksInput) -> Self {
        let pick = |own: Option<u64>, inherited| own.map_or(inherited, Duration::from_millis);
        Self {
            connect: pick(own.connect, self.connect),
            first_token: pick(own.first_token, self.first_token),
            idle: pick(own.idle, self.idle),
            total: pick(own.total, self.total),
            // A manifest knows one `total`: where it sets it, it means streams as well.
            total_streaming: pick(own.total_streaming.or(own.total), self.total_streaming),
        }
    }
}

/// A provider, ready to be asked.
#[derive(Debug)]
pub struct Upstream {
    pub id: Uuid,
    pub name: Box<str>,
    pub kind: Box<str>,
    pub base_url: Url,
    /// Scheme, host and port: what connections and retry budgets are shared by.
    pub origin: Box<str>,
    /// Which of [`Picture::origins`].
    pub origin_at: u32,
    pub key: Option<UpstreamKey>,
    /// The header that carries the key, where one does.
    pub auth: Option<(HeaderName, HeaderValue)>,
    pub key_status: Option<KeyStatus>,
    pub key_missing: bool,
    /// Its token could not be opened, or its key cannot stand in a header.
    pub key_unusable: bool,
    pub key_note: Option<Box<str>>,
    /// Dialects that it speaks itself: bytes pass untouched.
    pub native: ApiSet,
    /// Dialects in which it can be asked, itself or through a translation.
    pub reachable: ApiSet,
    pub local: bool,
    pub clocks: Clocks,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub max_in_flight: Option<u32>,
    pub priority: i32,
    pub prefixes: Box<[Box<str>]>,
    pub unlisted_models: bool,
    pub health: HealthStatus,
    pub enabled: bool,
    pub managed: bool,
    pub drain: bool,
    pub declared_at: Option<Box<str>>,
    offers: HashMap<Box<str>, u32>,
}

impl Upstream {
    /// The key is known not to work.
    pub fn key_failed(&self) -> bool {
        self.key_status == Some(KeyStatus::Failed) || self.key_missing || self.key_unusable
    }
}

/// A model as one provider offers it.
#[derive(Debug)]
pub struct Offer {
    pub id: Uuid,
    /// Index into [`Picture::upstreams`].
    pub upstream: u32,
    pub name: Box<str>,
    /// `provider/model`.
    pub full: Box<str>,
    /// Of `full`: its share of a rank.
    pub hash: u64,
    /// What the provider calls it.
    pub upstream_name: Box<str>,
    pub display_name: Option<Box<str>>,
    pub context_length: Option<u64>,
    pub max_output_tokens: Option<u64>,
    /// See [`OfferInput::takes`].
    pub takes: Map<String, Value>,
    pub prices: TokenPrices,
    pub enabled: bool,
    pub created_at: i64,
}

/// One model in one cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellEntry {
    /// Index into [`Picture::offers`].
    pub offer: u32,
    pub priority: i32,
    pub weight: u32,
    pub enabled: bool,
    pub origin: Option<Box<str>>,
}

#[derive(Debug, Default)]
struct LevelCells {
    plain: Vec<CellEntry>,
    by_task: HashMap<Box<str>, Vec<CellEntry>>,
}

/// A caller whom a manifest names.
#[derive(Debug)]
pub struct KnownConsumer {
    /// Which of [`Picture::consumers`].
    pub at: u32,
    pub name: Box<str>,
    pub user_tier: Option<Box<str>>,
    pub allow: AllowList,
    pub limits: LimitSpec,
    pub trusted: bool,
}

#[derive(Debug, Clone, Copy)]
struct KnownKey {
    consumer: u32,
    expires: Option<i64>,
}

/// An object that is left out of a picture, or only partly in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{object}: {problem}")]
pub struct PictureProblem {
    /// Kind and name, with file and line where they are known.
    pub object: String,
    pub problem: String,
}

/// What handlers read.
#[derive(Debug, Default)]
pub struct Picture {
    pub revision: Box<str>,
    pub taken_at: i64,
    pub rules: PictureRules,
    upstreams: Vec<Arc<Upstream>>,
    offers: Vec<Offer>,
    origins: Vec<Box<str>>,
    origin_index: HashMap<Box<str>, u32>,
    consumers: Vec<KnownConsumer>,
    keys: HashMap<[u8; 32], KnownKey>,
    tiers: HashMap<Box<str>, LimitSpec>,
    aliases: HashMap<Box<str>, Box<[Box<str>]>>,
    defaults: [LevelDefaults; PowerLevel::ALL.len()],
    by_name: HashMap<Box<str>, u32>,
    /// Prefix → the upstream that it pins.
    prefixes: HashMap<Box<str>, u32>,
    /// Lengths of prefixes, the longest first.
    prefix_lengths: Vec<usize>,
    /// Bare model name → its offers.
    by_model: HashMap<Box<str>, Vec<u32>>,
    cells: HashMap<Box<str>, [LevelCells; PowerLevel::ALL.len()]>,
}

impl Picture {
    /// Makes a picture. `open` opens a ciphertext token; `None` where it cannot.
    pub fn build(
        input: &PictureInput,
        mut open: impl FnMut(&str) -> Option<Zeroizing<Vec<u8>>>,
    ) -> (Self, Vec<PictureProblem>) {
        let mut picture = Self {
            revision: input.revision.as_str().into(),
            taken_at: input.taken_at,
            rules: input.rules,
            ..Self::default()
        };
        let mut problems = Problems::default();
        for provider in &input.providers {
            picture.add_upstream(provider, &mut open, &mut problems);
        }
        picture.index_prefixes();
        picture.add_routes(&input.routes, &mut problems);
        for consumer in &input.consumers {
            picture.add_consumer(consumer, &mut problems);
        }
        for tier in &input.tiers {
            picture.tiers.insert(tier.name.as_str().into(), tier.limits.clone());
        }
        for alias in &input.aliases {
            let targets = alias.targets.iter().map(|target| target.as_str().into()).collect();
            picture.aliases.insert(alias.name.as_str().into(), targets);
        }
        for level in &input.levels {
            picture.defaults[level.level as usize] = level.defaults;
        }
        (picture, problems.0)
    }

    fn add_upstream(
        &mut self,
        input: &UpstreamInput,
        open: &mut impl FnMut(&str) -> Option<Zeroizing<Vec<u8>>>,
        problems: &mut Problems,
    ) {
        let named = Named { kind: "provider", name: &input.name, origin: input.origin.as_deref() };
        if self.by_name.contains_key(input.name.as_str()) {
            return problems.add(&named, "a second one of that name is left out");
        }
        let base_url = match Url::parse(&input.base_url) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => url,
            _ => return problems.add(&named, "its base URL is no http(s) URL: it is left out"),
        };
        let origin: Box<str> = base_url.origin().ascii_serialization().into();
        let origin_at = *self.origin_index.entry(origin.clone()).or_insert_with(|| {
            self.origins.push(origin.clone());
            index(self.origins.len() - 1)
        });
        let at = index(self.upstreams.len());

        let mut key_unusable = false;
        let key = input.key_token.as_deref().and_then(|token| {
            let key = open(token).map(UpstreamKey::new);
            if key.is_none() {
                key_unusable = true;
                problems.add(&named, "its key cannot be decrypted: it is not asked");
            }
            key
        });
        let signed = input.key_placement == KeyPlacement::Signed
            || key.as_ref().is_some_and(|key| must_sign(&input.kind, key.expose()));
        let auth = key.as_ref().filter(|_| !signed).and_then(|key| {
            let made = match &input.key_placement {
                KeyPlacement::Signed => return None,
                KeyPlacement::Bearer => {
                    key.header("Bearer ").map(|value| (hyper::header::AUTHORIZATION, value))
                }
                KeyPlacement::Header(name) => HeaderName::from_bytes(name.as_bytes())
                    .ok()
                    .and_then(|name| Some((name, key.header("")?))),
            };
            if made.is_none() {
                key_unusable = true;
                problems.add(&named, "its key cannot stand in a header: it is not asked");
            }
            made
        });

        // Requests are not signed here: it cannot be asked in any dialect.
        let (apis, reachable) = match signed {
            true => (ApiSet::default(), ApiSet::default()),
            false => (input.apis, input.apis.union(input.translated)),
        };

        let mut headers = Vec::with_capacity(input.headers.len());
        for (name, value) in &input.headers {
            match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
                (Ok(name), Ok(value)) => headers.push((name, value)),
                _ => problems.add(&named, "one of its fixed headers is none and is left out"),
            }
        }

        let mut offers = HashMap::with_capacity(input.models.len());
        for model in &input.models {
            let name: Box<str> = model.name.as_str().into();
            let offer = index(self.offers.len());
            if offers.contains_key(&name) {
                problems.add(&named, format!("its model `{name}` stands twice: the second is left out"));
                continue;
            }
            offers.insert(name.clone(), offer);
            let full = format!("{}/{}", input.name, model.name);
            self.by_model.entry(name.clone()).or_default().push(offer);
            self.offers.push(Offer {
                id: model.id,
                upstream: at,
                hash: name_hash(&full),
                full: full.into(),
                upstream_name: model.upstream_name.as_deref().unwrap_or(&model.name).into(),
                name,
                display_name: model.display_name.as_deref().map(Into::into),
                context_length: model.context_length.filter(|length| *length > 0),
                max_output_tokens: model.max_output_tokens.filter(|most| *most > 0),
                takes: model.takes.clone(),
                prices: model.prices.prices(),
                enabled: model.enabled,
                created_at: model.created_at,
            });
        }
        self.by_name.insert(input.name.as_str().into(), at);
        self.upstreams.push(Arc::new(Upstream {
            id: input.id,
            name: input.name.as_str().into(),
            kind: input.kind.as_str().into(),
            base_url,
            origin,
            origin_at,
            key,
            auth,
            key_status: input.key_status,
            key_missing: input.key_missing,
            key_unusable,
            key_note: input.key_note.as_deref().map(Into::into),
            native: apis,
            reachable,
            local: input.local,
            clocks: Clocks::preset(input.local).over(self.rules.clocks).over(input.clocks),
            headers,
            max_in_flight: input.max_in_flight,
            priority: input.priority,
            prefixes: input.prefixes.iter().map(|prefix| prefix.as_str().into()).collect(),
            unlisted_models: input.unlisted_models,
            health: input.health,
            enabled: input.enabled,
            managed: input.managed,
            drain: input.drain,
            declared_at: input.origin.as_deref().map(Into::into),
            offers,
        }));
    }

    /// Of equal prefixes that of a provider which may serve, then of the higher priority, then of the first name.
    fn index_prefixes(&mut self) {
        let rank = |at: u32| {
            let upstream = &self.upstreams[at as usize];
            let serves = upstream.enabled && (upstream.managed || self.rules.unmanaged);
            (!serves, std::cmp::Reverse(upstream.priority), &*upstream.name)
        };
        let mut prefixes: HashMap<Box<str>, u32> = HashMap::new();
        for (at, upstream) in self.upstreams.iter().enumerate() {
            for prefix in upstream.prefixes.iter().filter(|prefix| !prefix.is_empty()) {
                let best = prefixes.entry(prefix.clone()).or_insert(index(at));
                if rank(index(at)) < rank(*best) {
                    *best = index(at);
                }
            }
        }
        let mut lengths: Vec<usize> = prefixes.keys().map(|prefix| prefix.len()).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        self.prefixes = prefixes;
        self.prefix_lengths = lengths;
    }

    fn add_routes(&mut self, routes: &[RouteInput], problems: &mut Problems) {
        let by_id: HashMap<Uuid, u32> =
            self.offers.iter().enumerate().map(|(at, offer)| (offer.id, index(at))).collect();
        for route in routes {
            let Some(&offer) = by_id.get(&route.model_id) else {
                let id = route.model_id.to_string();
                let named = Named { kind: "route", name: &id, origin: route.origin.as_deref() };
                problems.add(&named, "its model is not in the picture: it is left out");
                continue;
            };
            let tier = self.cells.entry(route.tier.as_str().into()).or_default();
            let cells = &mut tier[route.level as usize];
            let cell = match route.task.as_deref() {
                None => &mut cells.plain,
                Some(task) => cells.by_task.entry(task.into()).or_default(),
            };
            cell.push(CellEntry {
                offer,
                priority: route.priority,
                weight: u32::try_from(route.weight).unwrap_or(0),
                enabled: route.enabled,
                origin: route.origin.as_deref().map(Into::into),
            });
        }
        let offers = &self.offers;
        let sort = |cell: &mut Vec<CellEntry>| {
            cell.sort_by(|a, b| {
                let full = |entry: &CellEntry| &offers[entry.offer as usize].full;
                // Enabled first, so that of two rules of one model the one that holds is found first.
                (b.enabled, b.priority).cmp(&(a.enabled, a.priority)).then_with(|| full(a).cmp(full(b)))
            });
        };
        for cells in self.cells.values_mut().flatten() {
            sort(&mut cells.plain);
            cells.by_task.values_mut().for_each(sort);
        }
    }

    fn add_consumer(&mut self, input: &ConsumerInput, problems: &mut Problems) {
        let named = Named { kind: "consumer", name: &input.name, origin: input.origin.as_deref() };
        let consumer = index(self.consumers.len());
        for key in &input.keys {
            let Some(hash) = sha256_of_hex(&key.sha256) else {
                problems.add(&named, "a key of it is no SHA-256 in 64 hexadecimal digits and opens nothing");
                continue;
            };
            if self.keys.contains_key(&hash) {
                problems.add(&named, "a key of it opens another consumer already, and stays with that one");
                continue;
            }
            self.keys.insert(hash, KnownKey { consumer, expires: key.expires });
        }
        self.consumers.push(KnownConsumer {
            at: consumer,
            name: input.name.as_str().into(),
            user_tier: input.user_tier.as_deref().map(Into::into),
            allow: AllowList::new(input.models.iter().map(String::as_str)),
            limits: input.limits.clone(),
            trusted: input.trusted,
        });
    }

    /// Who calls with a key of this SHA-256. `now` in Unix seconds: an expired key opens nothing.
    pub fn consumer(&self, sha256: &[u8; 32], now: i64) -> Option<&KnownConsumer> {
        let key = self.keys.get(sha256)?;
        if key.expires.is_some_and(|expires| expires <= now) {
            return None;
        }
        self.consumers.get(key.consumer as usize)
    }

    pub fn consumers(&self) -> &[KnownConsumer] {
        &self.consumers
    }

    pub fn consumer_named(&self, name: &str) -> Option<&KnownConsumer> {
        self.consumers.iter().find(|consumer| &*consumer.name == name)
    }

    /// What holds for each user of a tier.
    pub fn tier(&self, name: &str) -> Option<&LimitSpec> {
        self.tiers.get(name)
    }

    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    pub fn upstream(&self, at: u32) -> Option<&Arc<Upstream>> {
        self.upstreams.get(at as usize)
    }

    pub fn offers(&self) -> &[Offer] {
        &self.offers
    }

    pub fn offer(&self, at: u32) -> Option<&Offer> {
        self.offers.get(at as usize)
    }

    /// Scheme, host and port of all providers.
    pub fn origins(&self) -> &[Box<str>] {
        &self.origins
    }

    pub fn aliases(&self) -> impl Iterator<Item = (&str, &[Box<str>])> {
        self.aliases.iter().map(|(name, targets)| (&**name, &**targets))
    }

    pub fn alias(&self, name: &str) -> Option<&[Box<str>]> {
        self.aliases.get(name).map(|targets| &**targets)
    }

    pub fn level_defaults(&self, level: PowerLevel) -> &LevelDefaults {
        &self.defaults[level as usize]
    }

    pub fn upstream_named(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The upstream that the longest prefix of `asked` pins, and what follows the prefix.
    pub fn upstream_by_prefix<'a>(&self, asked: &'a str) -> Option<(u32, &'a str)> {
        self.prefix_lengths.iter().find_map(|&length| {
            let (prefix, rest) = asked.split_at_checked(length)?;
            self.prefixes.get(prefix).map(|at| (*at, rest))
        })
    }

    /// One provider's model of that name.
    pub fn offer_of(&self, upstream: u32, model: &str) -> Option<u32> {
        self.upstreams.get(upstream as usize)?.offers.get(model).copied()
    }

    /// All models of that name.
    pub fn offers_named(&self, model: &str) -> &[u32] {
        self.by_model.get(model).map_or(&[], |offers| offers)
    }

    /// The entries of a cell, the first to be tried first; empty where no route fills it.
    pub fn cell(&self, level: PowerLevel, tier: &str, task: Option<&str>) -> &[CellEntry] {
        let Some(cells) = self.cells.get(tier).map(|tier| &tier[level as usize]) else { return &[] };
        match task {
            None => &cells.plain,
            Some(task) => cells.by_task.get(task).map_or(&[], |cell| cell),
        }
    }
}

/// Indexes fit: a picture of four billion objects fits into no memory.
fn index(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

fn sha256_of_hex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        let digit = |digit: &u8| char::from(*digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(high)? << 4 | digit(low)?;
    }
    Some(hash)
}

struct Named<'a> {
    kind: &'static str,
    name: &'a str,
    origin: Option<&'a str>,
}

#[derive(Default)]
struct Problems(Vec<PictureProblem>);

/// Problems that are kept; of thousands of bad rows the first ones tell as much as all.
const MAX_PROBLEMS: usize = 1000;

impl Problems {
    fn add(&mut self, named: &Named<'_>, problem: impl Into<String>) {
        if self.0.len() < MAX_PROBLEMS {
            let at = named.origin.map(|origin| format!(" ({origin})")).unwrap_or_default();
            let object = format!("{} `{}`{at}", named.kind, named.name);
            self.0.push(PictureProblem { object, problem: problem.into() });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// An id that is the same for the same name.
    pub(crate) fn id(name: &str) -> Uuid {
        let mut bytes = [0_u8; 16];
        for (at, byte) in name.bytes().enumerate() {
            bytes[at % 16] = bytes[at % 16].wrapping_mul(31).wrapping_add(byte);
        }
        Uuid::from_bytes(bytes)
    }

    /// A provider at an origin of its own, with models.
    pub(crate) fn provider(name: &str, models: &[&str]) -> UpstreamInput {
        let models = models.iter().map(|model| OfferInput {
            id: id(&format!("{name}/{model}")),
            name: (*model).into(),
            ..OfferInput::default()
        });
        UpstreamInput {
            id: id(name),
            name: name.into(),
            kind: "openai-compatible".into(),
            base_url: format!("https://{name}.test/v1"),
            models: models.collect(),
            ..UpstreamInput::default()
        }
    }

    /// A rule of `provider/model` in a cell `level/tier[/task]`.
    pub(crate) fn route(full: &str, cell: &str, priority: i32, weight: i32) -> RouteInput {
        let mut parts = cell.split('/');
        RouteInput {
            model_id: id(full),
            level: PowerLevel::parse(parts.next().unwrap()).unwrap(),
            tier: parts.next().unwrap().into(),
            task: parts.next().map(Into::into),
            priority,
            weight,
            enabled: true,
            origin: None,
        }
    }

    /// A picture without keys and without problems.
    pub(crate) fn picture(input: &PictureInput) -> Picture {
        let (picture, problems) = Picture::build(input, |_| None);
        assert_eq!(problems, []);
        picture
    }

    const FAKE_HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF";

    fn fake_hash() -> [u8; 32] {
        sha256_of_hex(FAKE_HASH).unwrap()
    }

    #[test]
    fn a_key_opens_one_consumer_until_it_expires() {
        let key = |expires| KeyHashInput { sha256: FAKE_HASH.into(), expires };
        let consumer =
            |name: &str, keys| ConsumerInput { name: name.into(), keys, ..ConsumerInput::default() };
        let input = PictureInput {
            consumers: vec![
                consumer("web", vec![key(Some(1_000))]),
                consumer("second", vec![key(None)]),
                consumer("broken", vec![KeyHashInput { sha256: "éé".repeat(16), expires: None }]),
            ],
            ..PictureInput::default()
        };
        let (picture, problems) = Picture::build(&input, |_| None);
        let who = |now| picture.consumer(&fake_hash(), now).map(|consumer| &*consumer.name);
        assert_eq!(who(999), Some("web"));
        assert_eq!(who(1_000), None);
        assert!(picture.consumer(&[0; 32], 0).is_none());
        assert_eq!(problems.len(), 2);
        assert!(problems.iter().all(|problem| !problem.to_string().to_lowercase().contains("00112233")));
    }

    #[test]
    fn keys_are_headers_that_cannot_be_printed() {
        let mut bearer = provider("a", &[]);
        bearer.key_token = Some("token-of-a".into());
        let mut header = provider("b", &[]);
        header.key_token = Some("token-of-b".into());
        header.key_placement = KeyPlacement::Header("x-api-key".into());
        let mut bad = provider("c", &[]);
        bad.key_token = Some("no-token".into());
        let mut newline = provider("d", &[]);
        newline.key_token = Some("newline".into());
        let input = PictureInput { providers: vec![bearer, header, bad, newline], ..PictureInput::default() };
        let (picture, problems) = Picture::build(&input, |token| match token {
            "token-of-a" => Some(Zeroizing::new(b"FAKE-KEY-A".to_vec())),
            "token-of-b" => Some(Zeroizing::new(b"FAKE-KEY-B".to_vec())),
            "newline" => Some(Zeroizing::new(b"FAKE-\nKEY".to_vec())),
            _ => None,
        });
        let auth = |at: u32| picture.upstream(at).unwrap().auth.as_ref().unwrap();
        assert_eq!(auth(0).1.as_bytes(), b"Bearer FAKE-KEY-A");
        assert_eq!((auth(1).0.as_str(), auth(1).1.as_bytes()), ("x-api-key", &b"FAKE-KEY-B"[..]));
        assert!(picture.upstream(2).unwrap().key_failed());
        assert!(picture.upstream(3).unwrap().key_failed());
        assert_eq!(problems.len(), 2);
        let printed = format!("{picture:?} {problems:?}");
        assert!(!printed.contains("FAKE"), "{printed}");
        assert!(!serde_json::to_string(&input).unwrap().contains("FAKE"));
    }

    #[test]
    fn the_input_survives_being_written_down() {
        let mut provider = provider("a", &["m"]);
        provider.apis = [Api::Responses, Api::Chat].into_iter().collect();
        provider.models[0].prices.long_context =
            vec![(200_000, PriceInput { input: Some(3), ..Default::default() })];
        let input = PictureInput {
            revision: "r1".into(),
            providers: vec![provider],
            routes: vec![route("a/m", "eco/all/chat", 1, 2)],
            levels: vec![LevelInput {
                level: PowerLevel::Eco,
                defaults: LevelDefaults { max_tokens: Some(5), temperature: Some(0.7) },
            }],
            ..PictureInput::default()
        };
        let text = serde_json::to_string(&input).unwrap();
        assert!(text.contains(r#""apis":["chat","responses"]"#), "{text}");
        assert_eq!(serde_json::from_str::<PictureInput>(&text).unwrap(), input);
        // What an older version wrote lacks newer fields.
        assert_eq!(serde_json::from_str::<PictureInput>("{}").unwrap(), PictureInput::default());
    }

    #[test]
    fn the_longest_prefix_pins_and_ties_go_by_priority_then_name() {
        let with = |name: &str, priority: i32, prefixes: &[&str]| UpstreamInput {
            priority,
            prefixes: prefixes.iter().map(|prefix| (*prefix).into()).collect(),
            ..provider(name, &[])
        };
        let mut off = with("off", 99, &["o/"]);
        off.enabled = false;
        let picture = picture(&PictureInput {
            providers: vec![
                with("low", 1, &["o/", "o/long/"]),
                with("high", 5, &["o/"]),
                with("also", 5, &["o/", "é"]),
                off,
            ],
            ..PictureInput::default()
        });
        let check = |asked: &str, expected: Option<(&str, &str)>| {
            let found = picture.upstream_by_prefix(asked);
            let found = found.map(|(at, rest)| (&*picture.upstream(at).unwrap().name, rest));
            assert_eq!(found, expected, "{asked}");
        };
        check("o/m", Some(("also", "m")));
        check("o/long/m", Some(("low", "m")));
        check("é-m", Some(("also", "-m")));
        check("ç", None);
        check("", None);
    }

    #[test]
    fn a_bad_object_spoils_nothing_else() {
        let mut broken = provider("broken", &["m"]);
        broken.base_url = "ftp://x".into();
        let mut twice = provider("twice", &["m", "m"]);
        twice.headers = vec![("bad name".into(), "x".into()), ("x-team".into(), "ops".into())];
        let input = PictureInput {
            providers: vec![broken, twice, provider("a", &["m"]), provider("a", &["n"])],
            routes: vec![route("broken/m", "eco/all", 1, 1), route("a/m", "eco/all", 1, -5)],
            ..PictureInput::default()
        };
        let (picture, problems) = Picture::build(&input, |_| None);
        assert_eq!(problems.len(), 5, "{problems:?}");
        let cell = picture.cell(PowerLevel::Eco, "all", None);
        assert_eq!(cell.len(), 1);
        assert_eq!(cell[0].weight, 0);
        assert_eq!(picture.offers_named("m").len(), 2);
        assert_eq!(picture.upstream(0).unwrap().headers.len(), 1);
    }

    #[test]
    fn clocks_are_inherited_one_by_one() {
        let mut a = provider("a", &[]);
        a.clocks.total = Some(9_000);
        let mut local = provider("local", &[]);
        local.local = true;
        let rules = PictureRules {
            clocks: ClocksInput { idle: Some(7_000), ..Default::default() },
            ..Default::default()
        };
        let picture = picture(&PictureInput { rules, providers: vec![a, local], ..Default::default() });
        let clocks = |at: u32| picture.upstream(at).unwrap().clocks;
        assert_eq!(clocks(0).idle, Duration::from_secs(7));
        assert_eq!(
            (clocks(0).total, clocks(0).total_streaming),
            (Duration::from_secs(9), Duration::from_secs(9))
        );
        assert_eq!(clocks(0).first_token, Duration::from_secs(60));
        assert_eq!(clocks(1).first_token, Duration::from_secs(300));
    }
}
