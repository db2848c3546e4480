//! Who answers: the candidates in the order in which they are asked, and everybody else with the reason.
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
pub(crate) mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        ask::tests::ask,
        picture::{
            AliasInput, ApiSet, ConsumerInput, KeyStatus, PictureInput, PictureRules, UpstreamInput,
            tests::{picture, provider, route},
        },
    };

    fn names(picture: &Picture, decision: &Decision) -> Vec<String> {
        decision.candidates.iter().map(|candidate| candidate.full(picture)).collect()
    }

    fn words(picture: &Picture, decision: &Decision) -> Vec<String> {
        let skipped = decision.skipped.iter();
        skipped.map(|skipped| format!("{} {}", skipped.candidate.full(picture), skipped.word)).collect()
    }

    fn calm(picture: &Picture, ask: &Ask) -> Decision {
        decide(picture, ask, &CalmPulse, Tick::default())
    }

    /// Providers a to d with one model `m` each.
    fn four(change: impl Fn(&mut UpstreamInput)) -> Vec<UpstreamInput> {
        let make = |name: &&str| {
            let mut provider = provider(name, &["m"]);
            change(&mut provider);
            provider
        };
        ["a", "b", "c", "d"].iter().map(make).collect()
    }

    #[test]
    fn the_first_cell_with_a_usable_model_decides() {
        let input = |routes: &[(&str, &str)]| PictureInput {
            providers: four(|provider| provider.enabled = provider.name != "d"),
            routes: routes.iter().map(|(full, cell)| route(full, cell, 100, 100)).collect(),
            ..PictureInput::default()
        };
        let check = |routes: &[(&str, &str)], tier: Option<&str>, task: Option<&str>, expected: &[&str]| {
            let picture = picture(&input(routes));
            let mut ask = ask(&picture, Some("eco"));
            ask.tier = tier.map(Into::into);
            ask.task = task.map(Into::into);
            assert_eq!(names(&picture, &calm(&picture, &ask)), expected, "{routes:?} {tier:?} {task:?}");
        };
        let all = [("a/m", "eco/pro/chat"), ("b/m", "eco/pro"), ("c/m", "eco/all/chat"), ("a/m", "eco/all")];
        check(&all, Some("pro"), Some("chat"), &["a/m"]);
        check(&all, Some("pro"), None, &["b/m"]);
        check(&all, Some("pro"), Some("code"), &["b/m"]);
        check(&all, Some("free"), Some("chat"), &["c/m"]);
        check(&all, None, Some("code"), &["a/m"]);
        // A cell whose only model is switched off is no usable one.
        check(&[("d/m", "eco/pro/chat"), ("b/m", "eco/pro")], Some("pro"), Some("chat"), &["b/m"]);
        check(&[("d/m", "eco/pro"), ("b/m", "eco/all")], Some("pro"), Some("chat"), &["b/m"]);
        check(&[("d/m", "eco/all")], None, None, &[]);
        check(&[("a/m", "precision/all")], None, None, &[]);
    }

    #[test]
    fn a_cooling_cell_is_not_left() {
        let picture = picture(&PictureInput {
            providers: four(|_| ()),
            routes: vec![route("a/m", "eco/pro", 1, 1), route("b/m", "eco/all", 1, 1)],
            ..PictureInput::default()
        });
        let mut ask = ask(&picture, Some("eco"));
        ask.tier = Some("pro".into());
        let decision = decide(&picture, &ask, &Weather(HashMap::from([(0, Tick(9_500))])), Tick(5_000));
        assert_eq!(names(&picture, &decision), [""; 0]);
        let error = decision.refusal(&picture, &ask, Tick(5_000)).unwrap();
        assert_eq!((error.status, error.retry_after_secs()), (503, Some(5)));
    }

    /// Upstreams that cool.
    struct Weather(HashMap<u32, Tick>);

    impl PulseView for Weather {
        fn standing(&self, upstream: u32, _: Option<u32>, _: Tick) -> Standing {
            self.0.get(&upstream).map_or(Standing::Ready, |until| Standing::Cooling { until: *until })
        }
    }

    #[test]
    fn priority_then_health_and_the_last_resort_last() {
        let health = |name: &str| match name {
            "a" => HealthStatus::Unhealthy,
            "b" => HealthStatus::Degraded,
            "c" => HealthStatus::Unknown,
            _ => HealthStatus::Healthy,
        };
        let check = |exclude: bool, priorities: [i32; 4], expected: &[&str]| {
            let routes = ["a/m", "b/m", "c/m", "d/m"].iter().zip(priorities);
            let picture = picture(&PictureInput {
                rules: PictureRules { exclude_unhealthy: exclude, ..PictureRules::default() },
                providers: four(|provider| provider.health = health(&provider.name)),
                // Weight 0 comes last among equals, which makes the order a fixed one.
                routes: routes
                    .map(|(full, priority)| route(full, "eco/all", priority, i32::from(*full != "d/m")))
                    .collect(),
                ..PictureInput::default()
            });
            for seed in 0..50 {
                let ask = Ask { seed, ..ask(&picture, Some("eco")) };
                assert_eq!(names(&picture, &calm(&picture, &ask)), expected);
            }
        };
        check(false, [1, 1, 1, 1], &["c/m", "d/m", "b/m", "a/m"]);
        check(false, [9, 1, 1, 1], &["c/m", "d/m", "b/m", "a/m"]);
        check(false, [1, 5, 1, 2], &["b/m", "d/m", "c/m", "a/m"]);
        check(true, [9, 5, 1, 2], &["b/m", "d/m", "c/m"]);
    }

    #[test]
    fn everybody_skipped_has_a_word() {
        let check =
            |word: &str, status: u16, change: &dyn Fn(&mut UpstreamInput), ask_change: &dyn Fn(&mut Ask)| {
                let mut only = provider("a", &["m"]);
                change(&mut only);
                let input = PictureInput {
                    providers: vec![only],
                    consumers: vec![ConsumerInput { models: vec!["b/*".into()], ..Default::default() }],
                    ..PictureInput::default()
                };
                let (picture, _) = Picture::build(&input, |_| None);
                let mut ask = ask(&picture, Some("a/m"));
                ask_change(&mut ask);
                let decision = calm(&picture, &ask);
                assert_eq!(words(&picture, &decision), [format!("a/m {word}")]);
                let error = decision.refusal(&picture, &ask, Tick(0)).unwrap();
                assert_eq!(error.status, status, "{word}: {error}");
            };
        let same = |_: &mut Ask| ();
        check("disabled", 404, &|a| a.enabled = false, &same);
        check("disabled", 404, &|a| a.models[0].enabled = false, &same);
        check("unmanaged", 404, &|a| a.managed = false, &same);
        check("not_allowed", 403, &|_| (), &|ask| ask.consumer = Some(0));
        check("key_failed", 503, &|a| a.key_status = Some(KeyStatus::Failed), &same);
        check("key_failed", 503, &|a| a.key_missing = true, &same);
        check("key_failed", 503, &|a| a.key_token = Some("cannot be opened".into()), &same);
        check("dialect", 400, &|a| a.apis = ApiSet::default().with(Api::Messages), &same);
        check("not_local", 503, &|_| (), &|ask| ask.private = true);
        check("context_too_long", 400, &|a| a.models[0].context_length = Some(10), &|ask| {
            ask.input_at_least = 11
        });
    }

    #[test]
    fn dialects_are_native_or_translated() {
        let mut translated = provider("a", &["m"]);
        translated.translated = ApiSet::default().with(Api::Messages);
        let picture = picture(&PictureInput { providers: vec![translated], ..PictureInput::default() });
        let native = |api| {
            let ask = Ask { api, ..ask(&picture, Some("a/m")) };
            calm(&picture, &ask).candidates.first().map(|candidate| candidate.native)
        };
        assert_eq!(native(Api::Chat), Some(true));
        assert_eq!(native(Api::Messages), Some(false));
        assert_eq!(native(Api::Responses), None);
    }

    #[test]
    fn a_pin_finds_the_model_under_each_of_its_names() {
        let mut a = provider("a", &["m", "a/twice", "p/odd", "deep/er"]);
        a.prefixes = vec!["p/".into()];
        let mut open = provider("open", &["m"]);
        open.unlisted_models = true;
        let picture = picture(&PictureInput { providers: vec![a, open], ..PictureInput::default() });
        let check = |asked: &str, expected: &[&str]| {
            let mut found = names(&picture, &calm(&picture, &ask(&picture, Some(asked))));
            found.sort();
            assert_eq!(found, expected, "{asked}");
        };
        check("a/m", &["a/m"]);
        check("p/m", &["a/m"]);
        check("a/a/m", &["a/m"]);
        check("a/p/m", &["a/m"]);
        check("a/twice", &["a/a/twice"]);
        check("a/a/twice", &["a/a/twice"]);
        check("p/odd", &["a/p/odd"]);
        check("a/deep/er", &["a/deep/er"]);
        check("a/none", &[]);
        check("open/none", &["open/none"]);
        check("m", &["a/m", "open/m"]);
    }

    #[test]
    fn an_alias_is_tried_in_its_order() {
        let alias = |targets: &[&str]| AliasInput {
            name: "x".into(),
            targets: targets.iter().map(|target| (*target).into()).collect(),
        };
        let check = |targets: &[&str], expected: &[&str]| {
            let picture = picture(&PictureInput {
                providers: four(|provider| {
                    if provider.name == "c" {
                        provider.health = HealthStatus::Unhealthy;
                    }
                }),
                routes: vec![route("a/m", "eco/all", 1, 1), route("b/m", "eco/all", 9, 1)],
                aliases: vec![alias(targets)],
                ..PictureInput::default()
            });
            assert_eq!(names(&picture, &calm(&picture, &ask(&picture, Some("x")))), expected);
        };
        check(&["d/m", "eco"], &["d/m", "b/m", "a/m"]);
        check(&["a/m", "eco", "d/m"], &["a/m", "b/m", "d/m"]);
        check(&["c/m", "d/none", "d/m"], &["d/m", "c/m"]);
    }

    #[test]
    fn not_found_names_what_is_near_and_may_be_asked_for() {
        let mut off = provider("off", &["llama-3.1-8c"]);
        off.enabled = false;
        let picture = picture(&PictureInput {
            providers: vec![
                provider("groq", &["llama-3.1-8b", "mixtral"]),
                provider("secret", &["llama-3.1-8d"]),
                off,
            ],
            consumers: vec![ConsumerInput { models: vec!["groq/*".into()], ..Default::default() }],
            ..PictureInput::default()
        });
        let message = |asked: &str| {
            let ask = Ask { consumer: Some(0), ..ask(&picture, Some(asked)) };
            let error = calm(&picture, &ask).refusal(&picture, &ask, Tick(0)).unwrap();
            assert_eq!(error.code, ErrorCode::ModelNotFound);
            error.message.to_string()
        };
        assert_eq!(message("llama-3.1-8"), "there is no model `llama-3.1-8`; did you mean `llama-3.1-8b`?");
        assert!(message("groq/llama3.1-8b").ends_with("did you mean `groq/llama-3.1-8b`?"));
        assert!(message("entirely-other").contains("GET /v1/models"));
    }

    #[test]
    fn lists_show_what_may_be_asked_for_and_nothing_else() {
        let alias = |name: &str, target: &str| AliasInput { name: name.into(), targets: vec![target.into()] };
        let picture = picture(&PictureInput {
            providers: four(|provider| provider.managed = provider.name != "d"),
            routes: vec![route("a/m", "eco/all", 1, 1), route("b/m", "balanced/all", 1, 1)],
            aliases: vec![alias("fast", "eco"), alias("bee", "b/m"), alias("gone", "z/m")],
            consumers: vec![ConsumerInput { models: vec!["a/*".into(), "bee".into()], ..Default::default() }],
            ..PictureInput::default()
        });
        let check = |consumer: Option<u32>, expected: &[&str]| {
            let consumer = consumer.map(|at| &picture.consumers()[at as usize]);
            let ids: Vec<_> = visible(&picture, consumer).into_iter().map(|model| model.id).collect();
            assert_eq!(ids, expected);
            for id in ["a/m", "b/m", "c/m", "d/m", "bee", "fast", "gone", "eco", "balanced", "precision", "x"]
            {
                let one = visible_one(&picture, consumer, id).map(|model| model.id);
                assert_eq!(one.is_some(), expected.contains(&id), "{id}");
            }
        };
        check(None, &["a/m", "b/m", "c/m", "bee", "fast", "eco", "balanced"]);
        check(Some(0), &["a/m", "bee", "fast", "eco"]);
    }

    #[test]
    fn the_logarithm_is_exact_enough() {
        let check = |x: u64| {
            #[expect(clippy::cast_precision_loss, reason = "compared with a tolerance")]
            let (found, expected) = (negative_log2(x) as f64 / 16_777_216.0, 64.0 - (x as f64).log2());
            assert!((found - expected).abs() < 1e-6, "{x}: {found} {expected}");
        };
        [1, 2, 3, 1 << 32, (1 << 63) - 1, 1 << 63, u64::MAX].into_iter().for_each(check);
        (0..1_000).for_each(|at| check(mix(at) | 1));
    }

    #[test]
    fn the_formula_is_pinned() {
        // Nodes of different versions must agree: a change here breaks sessions, and wants a reason.
        assert_eq!(name_hash("a/m"), 0xe620_bc19_0468_c37c);
        assert_eq!(rank(1, name_hash("a/m"), 100), 0x3457299999999);
    }

    /// Shares of first places over many seeds, compared with the weights by chi-square.
    fn shares_come_out(weights: &[u32]) {
        const SEEDS: u64 = 20_000;
        let names: Vec<u64> =
            (0..weights.len()).map(|at| name_hash(&format!("provider-{at}/model"))).collect();
        let mut won = vec![0_u64; weights.len()];
        for seed in 0..SEEDS {
            let first = (0..weights.len()).min_by_key(|at| rank(seed, names[*at], weights[*at]));
            won[first.unwrap()] += 1;
        }
        let sum: f64 = weights.iter().copied().map(f64::from).sum();
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let chi: f64 = won
            .iter()
            .zip(weights)
            .filter(|(_, weight)| **weight > 0)
            .map(|(won, weight)| {
                let expected = SEEDS as f64 * f64::from(*weight) / sum;
                (*won as f64 - expected).powi(2) / expected
            })
            .sum();
        // 99.99 % of right formulas stay below this with up to 7 degrees of freedom.
        assert!(chi < 30.0, "{weights:?}: {won:?}, chi-square {chi}");
        for (won, weight) in won.iter().zip(weights) {
            assert!(*weight > 0 || *won == 0);
        }
    }

    #[test]
    fn weights_come_out() {
        shares_come_out(&[100, 100]);
        shares_come_out(&[1, 2, 3, 4]);
        shares_come_out(&[90, 9, 1]);
        shares_come_out(&[100, 0, 50]);
        shares_come_out(&[7, 7, 7, 7, 7, 7, 7, 7]);
    }

    proptest! {
        #[test]
        fn a_session_stays_where_it_is_and_only_the_share_of_the_lost_moves(
            seed in any::<u64>(),
            weights in prop::collection::vec(1..1_000_i32, 4),
            lost in 0..4_usize,
        ) {
            let all = ["a/m", "b/m", "c/m", "d/m"];
            let with = |keep: &dyn Fn(usize) -> bool, turn: bool| {
                let kept = all.iter().zip(&weights).enumerate().filter(|(at, _)| keep(*at));
                let mut routes: Vec<_> =
                    kept.map(|(_, (full, weight))| route(full, "eco/all", 1, *weight)).collect();
                let mut providers = four(|_| ());
                if turn {
                    routes.reverse();
                    providers.reverse();
                }
                let picture = picture(&PictureInput { providers, routes, ..PictureInput::default() });
                let ask = Ask { seed, ..ask(&picture, Some("eco")) };
                names(&picture, &calm(&picture, &ask))
            };
            let whole = with(&|_| true, false);
            prop_assert_eq!(whole.len(), 4);
            // A node that read its rows in another order decides alike.
            prop_assert_eq!(&with(&|_| true, true), &whole);
            let rest = with(&|at| at != lost, false);
            let expected: Vec<_> = whole.iter().filter(|name| **name != all[lost]).cloned().collect();
            prop_assert_eq!(rest, expected);
        }

        #[test]
        fn a_pinned_ask_is_never_moved(
            seed in any::<u64>(),
            model in "[a-d]{1,2}",
            health in prop::collection::vec(0..4_usize, 4),
            enabled in prop::collection::vec(any::<bool>(), 4),
        ) {
            let mut providers = four(|_| ());
            for (at, provider) in providers.iter_mut().enumerate() {
                provider.health = HealthStatus::ALL[health[at]];
                provider.enabled = enabled[at];
                provider.prefixes = vec![format!("{}/", ["d", "c", "b", "a"][at])];
                provider.models.push(crate::picture::OfferInput {
                    id: crate::picture::tests::id(&format!("{}!", provider.name)),
                    name: "aa".into(),
                    ..Default::default()
                });
            }
            let picture = picture(&PictureInput { providers, ..PictureInput::default() });
            for pinned in ["a", "b", "c", "d"] {
                let ask = Ask { seed, ..ask(&picture, Some(&format!("{pinned}/{model}"))) };
                for candidate in calm(&picture, &ask).candidates {
                    prop_assert_eq!(&*picture.upstream(candidate.upstream).unwrap().name, pinned);
                }
            }
        }

        #[test]
        fn a_refusal_wins_over_every_way_of_asking(
            asked in prop::sample::select(vec!["eco", "x", "m", "a/m", "b/m", "auto"]),
            mut patterns in prop::collection::vec(
                prop::sample::select(vec!["*", "eco", "balanced", "x", "a/*", "*/m", "b/m", "!c/*", "!*preview"]), 0..4),
            denied in prop::sample::select(vec!["a/m", "a/*", "?/m", "*"]),
        ) {
            patterns.push("unused");
            let mut models: Vec<String> = patterns.into_iter().map(Into::into).collect();
            models.push(format!("!{denied}"));
            let picture = picture(&PictureInput {
                providers: four(|_| ()),
                routes: vec![
                    route("a/m", "eco/all", 1, 1), route("b/m", "eco/all", 1, 1), route("a/m", "balanced/all", 1, 1),
                ],
                aliases: vec![AliasInput { name: "x".into(), targets: vec!["a/m".into(), "eco".into()] }],
                consumers: vec![ConsumerInput { models, ..Default::default() }],
                ..PictureInput::default()
            });
            let body = AskBody { model: Some(asked), ..AskBody::default() };
            let consumer = &picture.consumers()[0];
            let ask = Ask::new(&picture, Some(consumer), Api::Chat, &body, &AskHead::default(), 7).unwrap();
            let decision = calm(&picture, &ask);
            let denied = wildmatch::WildMatch::new(denied);
            for name in names(&picture, &decision) {
                prop_assert!(!denied.matches(&name), "{}", name);
            }
            if let Some(error) = decision.refusal(&picture, &ask, Tick(0)) {
                prop_assert!(matches!(error.code, ErrorCode::ModelNotAllowed), "{}", error);
            }
        }
    }
}
