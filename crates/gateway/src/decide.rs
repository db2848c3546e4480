//! Who answers: the candidates in the order in which they are asked, and all others with the reason.
//!
//! Its job: one pure function of the picture, the ask, the pulse and the time. Not its job: asking, and what follows
//! an answer (`course`). Invariants: equal arguments give equal decisions on every node and in every version of this
//! file's formula; a pinned ask stays with its provider; what a list refuses is never a candidate; handlers and
//! `routes explain` call the same function.

use std::{cmp::Reverse, time::Duration};

use provider::words;

use crate::{
    allow::{AllowList, Grant},
    ask::{Ask, AskBody, AskHead, AskedFor},
    error::{ErrorCode, GatewayError},
    picture::{ALL_TIERS, Api, HealthStatus, KnownConsumer, Offer, Picture, PowerLevel, Upstream},
    tick::Tick,
};

words! {
    /// Why a model is not asked.
    SkipWord {
        /// The rule, the model or the provider is switched off.
        Disabled = "disabled",
        /// No manifest manages it, and `gateway.unmanaged` is off.
        Unmanaged = "unmanaged",
        NotAllowed = "not_allowed",
        KeyFailed = "key_failed",
        /// It cannot be asked in the caller's dialect.
        Dialect = "dialect",
        /// The request asks for privacy, and it is not inside our walls.
        NotLocal = "not_local",
        ContextTooLong = "context_too_long",
        /// `gateway.unhealthy = "exclude"`.
        Unhealthy = "unhealthy",
        /// It failed or refused lately.
        Cooling = "cooling",
        /// It has as many requests as it may have at once.
        Limit = "limit",
    }
}

impl SkipWord {
    /// It may pass while the picture stays as it is. Such a model still makes its cell a usable one.
    const fn passes(self) -> bool {
        matches!(self, Self::Cooling | Self::Limit)
    }
}

/// What live outcomes say of a provider or a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Ready,
    /// Not before then; where a trial is under way, `until` is not known and is now.
    Cooling {
        until: Tick,
    },
    /// It has as many requests as it may have at once.
    Full,
}

/// What live outcomes say; `pulse` is the real one.
pub trait PulseView {
    /// `upstream` and `offer` are indexes into the picture of the decision.
    fn standing(&self, upstream: u32, offer: Option<u32>, now: Tick) -> Standing;
}

/// A pulse without events: for explaining by what is declared alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct CalmPulse;

impl PulseView for CalmPulse {
    fn standing(&self, _: u32, _: Option<u32>, _: Tick) -> Standing {
        Standing::Ready
    }
}

/// Weight of models that no rule weighs: those asked for by name.
const PLAIN_WEIGHT: u32 = 100;

/// A model that is held against the ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteCandidate {
    /// Index into [`Picture::upstreams`].
    pub upstream: u32,
    /// Index into [`Picture::offers`]; `None`: a name that is no row.
    pub offer: Option<u32>,
    /// The name, where it is no row.
    pub unlisted: Option<Box<str>>,
    pub priority: i32,
    pub weight: u32,
    pub health: HealthStatus,
    /// Of equals the lowest is asked first.
    pub rank: u64,
    /// The provider speaks the caller's dialect itself.
    pub native: bool,
    /// Tokens that fit, where known.
    pub window: Option<u64>,
    /// `file:line` of the rule.
    pub origin: Option<Box<str>>,
}

impl RouteCandidate {
    /// The model's name in `llm_models`, or as the caller wrote it.
    pub fn model<'a>(&'a self, picture: &'a Picture) -> &'a str {
        match (&self.unlisted, self.offer_in(picture)) {
            (Some(name), _) => name,
            (None, Some(offer)) => &offer.name,
            (None, None) => "",
        }
    }

    /// What the provider calls the model.
    pub fn upstream_model<'a>(&'a self, picture: &'a Picture) -> &'a str {
        match (&self.unlisted, self.offer_in(picture)) {
            (Some(name), _) => name,
            (None, Some(offer)) => &offer.upstream_name,
            (None, None) => "",
        }
    }

    pub fn offer_in<'a>(&self, picture: &'a Picture) -> Option<&'a Offer> {
        self.offer.and_then(|offer| picture.offer(offer))
    }

    /// `provider/model`.
    pub fn full(&self, picture: &Picture) -> String {
        let provider = picture.upstream(self.upstream).map_or("", |upstream| &upstream.name);
        format!("{provider}/{}", self.model(picture))
    }
}

/// A model that is not asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedCandidate {
    pub candidate: RouteCandidate,
    pub word: SkipWord,
    /// When it may be asked again, where it is cooling.
    pub until: Option<Tick>,
}

/// A cell that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CellTried {
    pub level: PowerLevel,
    pub tier: Box<str>,
    pub task: Option<Box<str>>,
    /// Models in it, usable or not.
    pub models: usize,
    /// It decides.
    pub usable: bool,
    /// `file:line` of its first rule.
    pub origin: Option<Box<str>>,
}

/// Who is asked, in which order, and who is not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// Cells in the order in which they were looked at.
    pub cells: Vec<CellTried>,
    pub candidates: Vec<RouteCandidate>,
    pub skipped: Vec<SkippedCandidate>,
    pub seed: u64,
    /// All words of the ask were refused.
    pub refused: bool,
}

/// Decides. `pulse` must speak of the same picture.
pub fn decide(picture: &Picture, ask: &Ask, pulse: &dyn PulseView, now: Tick) -> Decision {
    let all = AllowList::default();
    let consumer = ask.consumer.and_then(|at| picture.consumers().get(at as usize));
    let judge =
        Judging { picture, ask, pulse, now, allow: consumer.map_or(&all, |consumer| &consumer.allow) };
    let mut decision = Decision { seed: ask.seed, refused: true, ..Decision::default() };
    let mut seen = Seen::new(picture.offers().len());
    for target in &ask.targets {
        if target.grant == Grant::Refused {
            continue;
        }
        decision.refused = false;
        let mut usable = match &target.wanted {
            AskedFor::Cell(level) => judge.cell(*level, target.grant, &mut decision, &mut seen),
            AskedFor::Name(name) => {
                let entries = picture.offers_named(name).iter().filter_map(|offer| judge.plain(*offer));
                judge.sift(entries, target.grant, &mut decision.skipped, &mut seen).0
            }
            AskedFor::Pin { upstream, rest, whole } => {
                let entry = judge.pinned(*upstream, rest, whole);
                judge.sift(entry, target.grant, &mut decision.skipped, &mut seen).0
            }
        };
        let name = |candidate: &RouteCandidate| candidate.offer_in(picture).map(|offer| &offer.full);
        usable.sort_unstable_by(|a, b| {
            let order = |it: &RouteCandidate| (Reverse(it.priority), class(it.health), it.rank);
            order(a).cmp(&order(b)).then_with(|| name(a).cmp(&name(b)))
        });
        decision.candidates.append(&mut usable);
    }
    // The last resort comes after everything else that was asked for, whatever its priority.
    if decision.candidates.iter().any(|candidate| candidate.health == HealthStatus::Unhealthy) {
        decision.candidates.sort_by_key(|candidate| candidate.health == HealthStatus::Unhealthy);
    }
    decision
}

/// Healthy and unknown alike, then degraded, then unhealthy.
const fn class(health: HealthStatus) -> u8 {
    match health {
        HealthStatus::Healthy | HealthStatus::Unknown => 0,
        HealthStatus::Degraded => 1,
        HealthStatus::Unhealthy => 2,
    }
}

/// Models that are candidates already, a bit each.
struct Seen(Vec<u64>);

impl Seen {
    fn new(offers: usize) -> Self {
        Self(vec![0; offers.div_ceil(64)])
    }

    fn place(offer: u32) -> (usize, u64) {
        (offer as usize / 64, 1 << (offer % 64))
    }

    /// A name that is no row can be asked for in one way only, and stands for itself.
    fn has(&self, offer: Option<u32>) -> bool {
        offer.is_some_and(|offer| {
            let (word, bit) = Self::place(offer);
            self.0.get(word).is_some_and(|bits| bits & bit != 0)
        })
    }

    fn add(&mut self, offer: Option<u32>) {
        if let Some(offer) = offer {
            let (word, bit) = Self::place(offer);
            if let Some(bits) = self.0.get_mut(word) {
                *bits |= bit;
            }
        }
    }
}

/// A model with what the words that led to it say.
struct Entry<'a> {
    upstream: u32,
    offer: Option<u32>,
    unlisted: Option<&'a str>,
    priority: i32,
    weight: u32,
    enabled: bool,
    origin: Option<&'a str>,
}

struct Judging<'a> {
    picture: &'a Picture,
    ask: &'a Ask,
    pulse: &'a dyn PulseView,
    now: Tick,
    allow: &'a AllowList,
}

impl<'a> Judging<'a> {
    /// The first cell with a usable model; the others leave their reasons.
    fn cell(
        &self,
        level: PowerLevel,
        grant: Grant,
        decision: &mut Decision,
        seen: &mut Seen,
    ) -> Vec<RouteCandidate> {
        let tiers = self.ask.tier.as_deref().into_iter().chain([ALL_TIERS]);
        let task = self.ask.task.as_deref();
        let places =
            tiers.flat_map(|tier| task.map(|task| (tier, Some(task))).into_iter().chain([(tier, None)]));
        for (tier, task) in places {
            let rules = self.picture.cell(level, tier, task);
            let entries = rules.iter().filter_map(|rule| {
                let upstream = self.picture.offer(rule.offer)?.upstream;
                Some(Entry {
                    upstream,
                    offer: Some(rule.offer),
                    unlisted: None,
                    priority: rule.priority,
                    weight: rule.weight,
                    enabled: rule.enabled,
                    origin: rule.origin.as_deref(),
                })
            });
            let (usable, passing) = self.sift(entries, grant, &mut decision.skipped, seen);
            decision.cells.push(CellTried {
                level,
                tier: tier.into(),
                task: task.map(Into::into),
                models: rules.len(),
                usable: passing,
                origin: rules.first().and_then(|rule| rule.origin.clone()),
            });
            if passing {
                return usable;
            }
        }
        Vec::new()
    }

    /// A model asked for by its name alone.
    fn plain(&self, offer: u32) -> Option<Entry<'a>> {
        let upstream = self.picture.offer(offer)?.upstream;
        Some(Entry {
            upstream,
            offer: Some(offer),
            unlisted: None,
            priority: self.picture.upstream(upstream)?.priority,
            weight: PLAIN_WEIGHT,
            enabled: true,
            origin: None,
        })
    }

    /// A model of one provider: its name may be all of the words, or have the provider's name in front twice.
    fn pinned(&self, at: u32, rest: &'a str, whole: &'a str) -> Option<Entry<'a>> {
        let upstream = self.picture.upstream(at)?;
        let again = || {
            let named = rest.strip_prefix(&*upstream.name).and_then(|rest| rest.strip_prefix('/'));
            let prefixed = || upstream.prefixes.iter().find_map(|prefix| rest.strip_prefix(&**prefix));
            named.or_else(prefixed).filter(|rest| !rest.is_empty())
        };
        let offer = self.picture.offer_of(at, rest).or_else(|| self.picture.offer_of(at, whole));
        let offer = offer.or_else(|| self.picture.offer_of(at, again()?));
        match offer {
            Some(offer) => self.plain(offer),
            None if upstream.unlisted_models => Some(Entry {
                upstream: at,
                offer: None,
                unlisted: Some(rest),
                priority: upstream.priority,
                weight: PLAIN_WEIGHT,
                enabled: true,
                origin: None,
            }),
            None => None,
        }
    }

    /// Usable ones, and whether any of the entries is one or will be by itself.
    fn sift(
        &self,
        entries: impl IntoIterator<Item = Entry<'a>>,
        grant: Grant,
        skipped: &mut Vec<SkippedCandidate>,
        seen: &mut Seen,
    ) -> (Vec<RouteCandidate>, bool) {
        let mut usable = Vec::new();
        let mut passing = false;
        for entry in entries {
            let Some(upstream) = self.picture.upstream(entry.upstream) else { continue };
            if seen.has(entry.offer) {
                passing = true;
                continue;
            }
            let offer = entry.offer.and_then(|offer| self.picture.offer(offer));
            let candidate = RouteCandidate {
                upstream: entry.upstream,
                offer: entry.offer,
                unlisted: entry.unlisted.map(Into::into),
                priority: entry.priority,
                weight: entry.weight,
                health: upstream.health,
                rank: offer.map_or(0, |offer| rank(self.ask.seed, offer.hash, entry.weight)),
                native: upstream.native.has(self.ask.api),
                window: offer.and_then(|offer| offer.context_length),
                origin: entry.origin.map(Into::into),
            };
            match self.word(&entry, upstream, offer, grant) {
                None => {
                    passing = true;
                    seen.add(entry.offer);
                    usable.push(candidate);
                }
                Some((word, until)) => {
                    passing |= word.passes();
                    skipped.push(SkippedCandidate { candidate, word, until });
                }
            }
        }
        (usable, passing)
    }

    /// Why not, the reasons that do not pass first; whether a caller may know of it before all but being served.
    fn word(
        &self,
        entry: &Entry<'_>,
        upstream: &Upstream,
        offer: Option<&Offer>,
        grant: Grant,
    ) -> Option<(SkipWord, Option<Tick>)> {
        let lasting = if !entry.enabled || !upstream.enabled || offer.is_some_and(|offer| !offer.enabled) {
            Some(SkipWord::Disabled)
        } else if !upstream.managed && !self.picture.rules.unmanaged {
            Some(SkipWord::Unmanaged)
        } else if !self.allowed(upstream, offer, entry.unlisted, grant) {
            Some(SkipWord::NotAllowed)
        } else if upstream.key_failed() {
            Some(SkipWord::KeyFailed)
        } else if !upstream.reachable.has(self.ask.api) {
            Some(SkipWord::Dialect)
        } else if self.ask.private && !upstream.local {
            Some(SkipWord::NotLocal)
        } else if offer
            .and_then(|offer| offer.context_length)
            .is_some_and(|length| self.ask.input_at_least > length)
        {
            Some(SkipWord::ContextTooLong)
        } else if self.picture.rules.exclude_unhealthy && upstream.health == HealthStatus::Unhealthy {
            Some(SkipWord::Unhealthy)
        } else {
            None
        };
        if let Some(word) = lasting {
            return Some((word, None));
        }
        match self.pulse.standing(entry.upstream, entry.offer, self.now) {
            Standing::Ready => None,
            Standing::Cooling { until } => Some((SkipWord::Cooling, Some(until))),
            Standing::Full => Some((SkipWord::Limit, None)),
        }
    }

    fn allowed(
        &self,
        upstream: &Upstream,
        offer: Option<&Offer>,
        unlisted: Option<&str>,
        grant: Grant,
    ) -> bool {
        match (offer, unlisted) {
            (Some(offer), _) => self.allow.model(&offer.full, &offer.name, grant),
            (None, Some(name)) => {
                self.allow.allows_all() || self.allow.model(&format!("{}/{name}", upstream.name), name, grant)
            }
            (None, None) => false,
        }
    }
}

impl Decision {
    /// The answer where there are no candidates; `None` where there are some.
    pub fn refusal(&self, picture: &Picture, ask: &Ask, now: Tick) -> Option<GatewayError> {
        if !self.candidates.is_empty() {
            return None;
        }
        let has = |word| self.skipped.iter().any(|skipped| skipped.word == word);
        let echo = ask.echo();
        let error = if has(SkipWord::Cooling) {
            let soonest = self.skipped.iter().filter_map(|skipped| skipped.until).min().unwrap_or(now);
            let wait = soonest.since(now).max(SHORTEST_WAIT);
            let message =
                format!("all that could answer `{echo}` failed or refused lately; hint: ask again later");
            GatewayError::new(ErrorCode::NoUpstream, message).retry_after(wait)
        } else if has(SkipWord::Limit) {
            let message =
                format!("all that could answer `{echo}` have as many requests as they may have at once");
            GatewayError::new(ErrorCode::Overloaded, message).retry_after(SHORTEST_WAIT)
        } else if has(SkipWord::KeyFailed) || has(SkipWord::Unhealthy) {
            let message =
                format!("all that could answer `{echo}` are out of service; hint: ask the operator");
            GatewayError::new(ErrorCode::NoUpstream, message)
        } else if has(SkipWord::ContextTooLong) {
            let largest =
                self.skipped.iter().filter_map(|skipped| skipped.candidate.window).max().unwrap_or(0);
            let message = format!(
                "the input has at least {} tokens; the largest context of `{echo}` is {largest} tokens",
                ask.input_at_least
            );
            GatewayError::new(ErrorCode::ContextLengthExceeded, message).param("messages")
        } else if has(SkipWord::NotLocal) {
            let message = format!("`privacy_required` is set, and nothing local can answer `{echo}`");
            GatewayError::new(ErrorCode::NoUpstream, message).param("privacy_required").exhausted()
        } else if has(SkipWord::Dialect) {
            let message = format!("`{echo}` cannot be asked by {}", ask.api);
            GatewayError::new(ErrorCode::UnsupportedParameter, message).param("model")
        } else if self.refused || has(SkipWord::NotAllowed) {
            let message = format!("this key may not ask for `{echo}`");
            GatewayError::new(ErrorCode::ModelNotAllowed, message).param("model")
        } else if let Some(cell) = self.cells.first() {
            let message = format!(
                "no model serves {} × {}; hint: the operator can see why with `providerd routes explain`",
                cell.level, cell.tier
            );
            GatewayError::new(ErrorCode::NoUpstream, message)
        } else {
            let near = nearest(picture, ask);
            let hint = if near.is_empty() {
                "; hint: GET /v1/models lists what there is".to_owned()
            } else {
                format!("; did you mean {}?", near.join(" or "))
            };
            GatewayError::new(ErrorCode::ModelNotFound, format!("there is no model `{echo}`{hint}"))
                .param("model")
        };
        Some(error)
    }
}

/// Clients wait whole seconds.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// Names that are compared for a hint, at most: about a millisecond.
const MAX_COMPARED: usize = 1_000;

/// Names that a hint gives.
const MAX_NEAR: usize = 3;

/// How alike a name must be (Jaro-Winkler): below it, hints only distract.
const NEAR: f64 = 0.8;

/// Names like the one asked for, of those that this caller may ask for.
fn nearest(picture: &Picture, ask: &Ask) -> Vec<String> {
    let asked = ask.echo();
    let all = AllowList::default();
    let consumer = ask.consumer.and_then(|at| picture.consumers().get(at as usize));
    let allow = consumer.map_or(&all, |consumer| &consumer.allow);
    let pinned = asked.contains('/');
    let models = picture
        .offers()
        .iter()
        .filter(|offer| serves(picture, offer) && allow.model(&offer.full, &offer.name, Grant::Each))
        .map(|offer| if pinned { &*offer.full } else { &*offer.name });
    let aliases =
        picture.aliases().map(|(name, _)| name).filter(|name| allow.word(name) == Grant::Whole && !pinned);
    let mut near: Vec<(f64, &str)> = models
        .chain(aliases)
        .filter(|name| name.len() <= 2 * asked.len() + 8 && asked.len() <= 2 * name.len() + 8)
        .take(MAX_COMPARED)
        .map(|name| (strsim::jaro_winkler(asked, name), name))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    near.dedup_by(|a, b| a.1 == b.1);
    near.into_iter().take(MAX_NEAR).map(|(_, name)| format!("`{name}`")).collect()
}

/// The model and its provider are switched on and may serve.
fn serves(picture: &Picture, offer: &Offer) -> bool {
    offer.enabled
        && picture
            .upstream(offer.upstream)
            .is_some_and(|upstream| upstream.enabled && (upstream.managed || picture.rules.unmanaged))
}

/// Something a caller may ask for, by the id that it has in lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisibleModel {
    /// `provider/model`, an alias or a level.
    pub id: String,
    /// The provider; the gateway itself for aliases and levels.
    pub owned_by: String,
    /// Index into [`Picture::offers`], for prices and context.
    pub offer: Option<u32>,
}

/// What stands as the owner of aliases and levels.
pub const OWN_NAME: &str = "providerd";

/// All that a consumer may ask for: models, then aliases, then levels, each by name.
pub fn visible(picture: &Picture, consumer: Option<&KnownConsumer>) -> Vec<VisibleModel> {
    let all = AllowList::default();
    let allow = consumer.map_or(&all, |consumer| &consumer.allow);
    let mut models: Vec<VisibleModel> = (0..)
        .zip(picture.offers())
        .filter(|(_, offer)| serves(picture, offer) && allow.model(&offer.full, &offer.name, Grant::Each))
        .map(|(at, offer)| VisibleModel {
            id: offer.full.to_string(),
            owned_by: picture.upstream(offer.upstream).map_or_else(String::new, |up| up.name.to_string()),
            offer: Some(at),
        })
        .collect();
    models.sort_by(|a, b| a.id.cmp(&b.id));
    let mut aliases: Vec<&str> = picture.aliases().map(|(name, _)| name).collect();
    aliases.sort_unstable();
    let levels = PowerLevel::ALL.iter().map(|level| level.as_str());
    let levels: Vec<&str> = levels.filter(|level| picture.alias(level).is_none()).collect();
    let words = aliases.into_iter().chain(levels).filter(|word| answers(picture, consumer, word));
    models.extend(words.map(|word| VisibleModel {
        id: word.to_owned(),
        owned_by: OWN_NAME.to_owned(),
        offer: None,
    }));
    models
}

/// One of [`visible`], without making all of it.
pub fn visible_one(picture: &Picture, consumer: Option<&KnownConsumer>, id: &str) -> Option<VisibleModel> {
    let word = picture.alias(id).is_some() || PowerLevel::parse(id).is_some();
    if word {
        let owned_by = OWN_NAME.to_owned();
        return answers(picture, consumer, id).then(|| VisibleModel {
            id: id.to_owned(),
            owned_by,
            offer: None,
        });
    }
    let (provider, model) = id.split_once('/')?;
    let at = picture.offer_of(picture.upstream_named(provider)?, model)?;
    let offer = picture.offer(at)?;
    let all = AllowList::default();
    let allow = consumer.map_or(&all, |consumer| &consumer.allow);
    (serves(picture, offer) && allow.model(&offer.full, &offer.name, Grant::Each)).then(|| VisibleModel {
        id: id.to_owned(),
        owned_by: provider.to_owned(),
        offer: Some(at),
    })
}

/// A word leads to a model in one of the dialects, as far as what is declared goes.
fn answers(picture: &Picture, consumer: Option<&KnownConsumer>, word: &str) -> bool {
    let body = AskBody { model: Some(word), ..AskBody::default() };
    let ask = Ask::new(picture, consumer, Api::Chat, &body, &AskHead::default(), 0);
    ask.is_ok_and(|ask| {
        let decision = decide(picture, &ask, &CalmPulse, Tick::default());
        let only_now = |word| matches!(word, SkipWord::KeyFailed | SkipWord::Unhealthy | SkipWord::Dialect);
        !decision.candidates.is_empty() || decision.skipped.iter().any(|skipped| only_now(skipped.word))
    })
}

/// A name's share of a rank: FNV-1a, 64 bits. Part of the formula that all nodes share.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finalizer of SplitMix64: every bit of the input moves every bit of the output.
const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Weighted rendezvous hashing: the lowest -log(u) / weight wins, so that each name wins in proportion to its weight
/// and, when one leaves, only its own share moves. In whole numbers: every machine computes the same. Without weight
/// a name comes last.
pub(crate) fn rank(seed: u64, name: u64, weight: u32) -> u64 {
    if weight == 0 {
        return u64::MAX;
    }
    let uniform = mix(mix(seed).wrapping_add(mix(name ^ 0x9e37_79b9_7f4a_7c15)));
    // Below 2^31 (64 with 24 binary digits behind the point), so that 32 more digits fit.
    (negative_log2(uniform | 1) << 32) / u64::from(weight)
}

/// Binary digits behind the point of a logarithm: shares are right to a ten-millionth.
const LOG_DIGITS: u32 = 24;

/// -log2(x / 2^64) with [`LOG_DIGITS`], for x > 0.
fn negative_log2(x: u64) -> u64 {
    let zeros = x.leading_zeros();
    // 1 ≤ mantissa < 2, with 63 digits behind the point; squaring it yields the logarithm digit by digit.
    let mut mantissa = x << zeros;
    let mut log = u64::from(63 - zeros);
    for _ in 0..LOG_DIGITS {
        let square = u128::from(mantissa) * u128::from(mantissa);
        #[expect(clippy::cast_possible_truncation, reason = "the upper and the lower half of 128 bits")]
        let (high, low) = ((square >> 64) as u64, square as u64);
        let digit = high >> 63;
        log = log << 1 | digit;
        mantissa = if digit == 1 { high } else { high << 1 | low >> 63 };
    }
    (64 << LOG_DIGITS) - log
}

#[cfg(test)]
pub(crate) mod tests;
