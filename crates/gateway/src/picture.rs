//! The picture: everything that a request is decided by, as one immutable value.
//!
//! Its job: make it from plain inputs ([`PictureInput`], which others fill from rows and may keep sealed on disk), and
//! find things in it. Not its job: deciding (`decide`), what happens while it holds (`pulse`, `limit`), opening keys
//! (the opener is an argument). Invariants: a bad object is left out and named, and spoils nothing else; no key can
//! be printed or serialized; equal inputs give equal pictures, so that all nodes decide alike.

mod input;
mod key;

use std::{collections::HashMap, sync::Arc, time::Duration};

pub use catalog::model::{HealthStatus, KeyStatus, PowerLevel};
use catalog::price::TokenPrices;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Map, Value};
use url::Url;
use uuid::Uuid;
use zeroize::Zeroizing;

pub use self::input::{
    ALL_TIERS, AliasInput, Api, ApiSet, BudgetPeriod, BudgetSpec, ClocksInput, ConsumerInput, KeyHashInput,
    KeyPlacement, LevelDefaults, LevelInput, LimitSpec, OfferInput, PictureInput, PictureRules, PriceInput,
    RouteInput, TierInput, UpstreamInput,
};
pub use self::key::UpstreamKey;
use self::key::must_sign;
use crate::{allow::AllowList, decide::name_hash};

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

/// A caller that a manifest names.
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
                _ => problems.add(&named, "one of its fixed headers is not valid and is left out"),
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

/// Problems that are kept; of thousands of bad rows the first ones say as much as all.
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
pub(crate) mod tests;
