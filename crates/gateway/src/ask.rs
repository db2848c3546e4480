//! What a request asks for, and how far it may be moved.
//!
//! Its job: what was found in the body and the head, and who calls, to one value ([`Ask`]): aliases followed, a
//! provider pinned, level, tier, task, privacy, seed, size. Not its job: reading bytes (`skim`), choosing (`decide`).
//! Invariants: a request is never moved further than its words allow; only a trusted consumer speaks for others; equal
//! words give equal asks on every node.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use crate::{
    allow::Grant,
    error::{ErrorCode, GatewayError},
    learned::TokenRatios,
    picture::{ALL_TIERS, Api, KnownConsumer, Picture, PowerLevel},
};

/// What the body says, each field decoded from JSON.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskBody<'a> {
    pub model: Option<&'a str>,
    pub power_level: Option<&'a str>,
    pub task_type: Option<&'a str>,
    pub privacy_required: bool,
    pub prompt_cache_key: Option<&'a str>,
    pub session_id: Option<&'a str>,
    pub user: Option<&'a str>,
    pub stream: bool,
    /// Most tokens of each answer, by whichever name the dialect has for it.
    pub max_tokens: Option<u64>,
    /// Answers wanted; 0 counts as 1.
    pub n: u64,
    /// Bytes of what the model shall read, but for pictures, sounds and files inside.
    pub text_bytes: u64,
    /// Pictures, sounds and files inside.
    pub media_parts: u64,
}

/// What the head says.
#[derive(Debug, Clone, Copy, Default)]
pub struct AskHead<'a> {
    /// `X-Power-Level`
    pub power_level: Option<&'a str>,
    /// `X-Task-Type`
    pub task_type: Option<&'a str>,
    /// `X-Session-ID`
    pub session_id: Option<&'a str>,
    /// `X-Session-Affinity`
    pub session_affinity: Option<&'a str>,
    /// `X-User-ID`
    pub user_id: Option<&'a str>,
    /// `X-User-Tier`
    pub user_tier: Option<&'a str>,
}

/// By which words a request found its way: the answer's `x-providerd-route`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RouteWord {
    Alias(Box<str>),
    Pin,
    Name,
    Cell,
}

impl RouteWord {
    /// As it is shown; without a copy where it is one of ours.
    pub fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Alias(name) => format!("alias:{name}").into(),
            Self::Pin => "pin".into(),
            Self::Name => "name".into(),
            Self::Cell => "cell".into(),
        }
    }
}

impl std::fmt::Display for RouteWord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text())
    }
}

/// One thing that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AskedFor {
    /// A model of one provider.
    Pin {
        upstream: u32,
        /// What follows the provider's name or prefix.
        rest: Box<str>,
        /// All of it: some catalogues name models with the provider's name in front.
        whole: Box<str>,
    },
    /// Models of that name, of all providers.
    Name(Box<str>),
    /// All models of the level's cell.
    Cell(PowerLevel),
}

/// One thing that is asked for, with what the consumer's list said to the words that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskTarget {
    pub wanted: AskedFor,
    pub grant: Grant,
}

/// A request as `decide` sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub api: Api,
    /// Index of the consumer; `None`: an operator asks, who may everything.
    pub consumer: Option<u32>,
    /// The model as the caller wrote it, cut to [`MAX_MODEL`].
    pub asked: Option<Box<str>>,
    pub route: RouteWord,
    /// Tried in order; never empty.
    pub targets: Vec<AskTarget>,
    pub level: PowerLevel,
    /// The caller named a level, or may be moved within one: its defaults apply.
    pub of_level: bool,
    pub tier: Option<Box<str>>,
    pub task: Option<Box<str>>,
    pub private: bool,
    /// Chooses among equals: the session's, else chance.
    pub seed: u64,
    pub sticky: bool,
    /// Whose request it is: a trusted consumer's word, else the body's `user`.
    pub user: Option<Box<str>>,
    /// The user was named by a consumer who may do so: tiers count per user.
    pub user_trusted: bool,
    pub stream: bool,
    /// Tokens of input, estimated without a look at the model.
    pub input_estimate: u64,
    /// Bytes of text among the input.
    pub text_bytes: u64,
    /// There is nothing but text.
    pub only_text: bool,
    /// Tokens of input that it is at least, whatever the tokenizer.
    pub input_at_least: u64,
    /// Most tokens of output, over all answers, where the caller set it.
    pub output_limit: Option<u64>,
    /// Answers wanted.
    pub answers: u64,
}

/// Longest model name that is looked for; providers' names stay below 200.
pub const MAX_MODEL: usize = 512;

/// Longest word of a user, tier, task.
const MAX_WORD: usize = 255;

/// How much of a name is repeated in an error.
const MAX_ECHO: usize = 120;

/// What an alias may stand for at most, after aliases within it are followed.
const MAX_TARGETS: usize = 32;

/// Bytes of English and code per token, about, over the vocabularies in use, until `learned` knows the model.
pub const BYTES_PER_TOKEN: u64 = 4;

/// No text in use has more bytes to a token than this (long runs of spaces aside).
const MOST_BYTES_PER_TOKEN: u64 = 10;

/// A picture of usual size, over providers: 258 (Google) to about 1,600 (Anthropic).
const TOKENS_PER_MEDIA: u64 = 1_000;

/// What a request is assumed to answer where neither the caller nor the model says how long.
pub const OUTPUT_UNLESS_SAID: u64 = 4_096;

impl Ask {
    /// Puts together what is asked for. `entropy` is chance, used where no session is named.
    ///
    /// # Errors
    /// An unknown power level; a tier or user that is no word.
    pub fn new(
        picture: &Picture,
        consumer: Option<&KnownConsumer>,
        api: Api,
        body: &AskBody<'_>,
        head: &AskHead<'_>,
        entropy: u64,
    ) -> Result<Self, GatewayError> {
        let said = level_said(body, head)?;
        let model = body.model.map(str::trim).filter(|model| !model.is_empty());
        let word = model.and_then(level_word);
        let level = said.or(word).unwrap_or(PowerLevel::Balanced);

        let speaks_for_others = consumer.is_none_or(|consumer| consumer.trusted);
        let user_id = if speaks_for_others { checked(head.user_id, "X-User-ID")? } else { None };
        let said_tier = if speaks_for_others { checked(head.user_tier, "X-User-Tier")? } else { None };
        let tier = said_tier.or_else(|| consumer.and_then(|consumer| consumer.user_tier.as_deref()));

        let mut finder = Finder { picture, consumer, level, said: said.is_some(), found: Vec::new() };
        let route = finder.find(model);
        let Finder { found: targets, .. } = finder;

        let consumer_name = consumer.map_or("", |consumer| &consumer.name);
        let session = [head.session_id, head.session_affinity, body.prompt_cache_key, body.session_id]
            .into_iter()
            .flatten()
            .find(|session| !session.is_empty());
        let answers = body.n.max(1);
        Ok(Self {
            api,
            consumer: consumer.map(|consumer| consumer.at),
            asked: model.map(|model| cut(model, MAX_MODEL).into()),
            of_level: said.is_some()
                || targets.iter().any(|target| matches!(target.wanted, AskedFor::Cell(_))),
            route,
            level: match targets.first() {
                // An alias for a level asks for that level.
                Some(AskTarget { wanted: AskedFor::Cell(level), .. }) => *level,
                _ => level,
            },
            targets,
            tier: tier.filter(|tier| *tier != ALL_TIERS).map(Into::into),
            task: head
                .task_type
                .or(body.task_type)
                .map(|task| cut(task.trim(), MAX_WORD))
                .and_then(full)
                .map(Into::into),
            private: body.privacy_required,
            seed: session.map_or(entropy, |session| session_seed(consumer_name, session)),
            sticky: session.is_some(),
            user_trusted: user_id.is_some(),
            user: user_id.or(body.user).map(|user| cut(user, MAX_WORD)).and_then(full).map(Into::into),
            stream: body.stream,
            input_estimate: (body.text_bytes.div_ceil(BYTES_PER_TOKEN))
                .saturating_add(body.media_parts.saturating_mul(TOKENS_PER_MEDIA)),
            text_bytes: body.text_bytes,
            only_text: body.media_parts == 0,
            input_at_least: body.text_bytes / MOST_BYTES_PER_TOKEN,
            output_limit: body.max_tokens.map(|most| most.saturating_mul(answers)),
            answers,
        })
    }

    /// Tokens of input by what is known of a model; `None`: nothing is.
    pub(crate) fn estimate(&self, ratios: Option<&TokenRatios>) -> u64 {
        let Some(ratios) = ratios else { return self.input_estimate };
        let media = self.input_estimate.saturating_sub(self.text_bytes.div_ceil(BYTES_PER_TOKEN));
        ratios.input_tokens(self.text_bytes).saturating_add(media)
    }

    /// The model in words that an error may repeat.
    pub fn echo(&self) -> &str {
        self.asked.as_deref().map_or("auto", |asked| cut(asked, MAX_ECHO))
    }
}

/// The seed of a session: the same on every node and in every version, and of no use to another consumer.
pub fn session_seed(consumer: &str, session: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(consumer.as_bytes());
    hash.update([0]);
    hash.update(session.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte))
}

fn full(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// At most `most` bytes of a text, whole characters.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or(text)
}

/// A word of the head that decides: refused rather than cut, because half a name is another one.
fn checked<'a>(value: Option<&'a str>, header: &'static str) -> Result<Option<&'a str>, GatewayError> {
    let Some(value) = value.map(str::trim).filter(|value| !value.is_empty()) else { return Ok(None) };
    if value.len() > MAX_WORD || value.chars().any(char::is_control) {
        let message = format!("{header} is longer than {MAX_WORD} bytes or holds control characters");
        return Err(GatewayError::new(ErrorCode::InvalidRequest, message).param(header));
    }
    Ok(Some(value))
}

/// The level that the head or the body names; the head wins.
fn level_said(body: &AskBody<'_>, head: &AskHead<'_>) -> Result<Option<PowerLevel>, GatewayError> {
    let said = [(head.power_level, "X-Power-Level"), (body.power_level, "power_level")];
    let mut first = None;
    for (word, place) in said {
        let Some(word) = word.map(str::trim).filter(|word| !word.is_empty()) else { continue };
        let Some(level) = PowerLevel::parse(&word.to_ascii_lowercase()) else {
            let words = PowerLevel::ALL.iter().map(|level| level.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("`{}` is no power level; hint: one of {words}", cut(word, MAX_ECHO));
            return Err(GatewayError::new(ErrorCode::UnknownPowerLevel, message).param(place));
        };
        first = first.or(Some(level));
    }
    Ok(first)
}

/// The level that a model name stands for; `auto` stands for the default.
fn level_word(model: &str) -> Option<PowerLevel> {
    PowerLevel::parse(model).or_else(|| (model == "auto").then_some(PowerLevel::Balanced))
}

struct Finder<'a> {
    picture: &'a Picture,
    consumer: Option<&'a KnownConsumer>,
    level: PowerLevel,
    /// The head or the body named the level: it wins over a model's word.
    said: bool,
    found: Vec<AskTarget>,
}

impl<'a> Finder<'a> {
    fn find(&mut self, model: Option<&'a str>) -> RouteWord {
        let Some(model) = model else {
            self.push(AskedFor::Cell(self.level), Grant::Each);
            return RouteWord::Cell;
        };
        if self.picture.alias(model).is_some() {
            self.follow(model);
            if self.found.is_empty() {
                // It stands for nothing but itself: a model of that name is all that can be meant.
                self.found.push(AskTarget { wanted: AskedFor::Name(model.into()), grant: self.word(model) });
            }
            return RouteWord::Alias(model.into());
        }
        self.push_plain(model, Grant::Each)
    }

    fn word(&self, word: &str) -> Grant {
        self.consumer.map_or(Grant::Whole, |consumer| consumer.allow.word(word))
    }

    fn push(&mut self, wanted: AskedFor, by: Grant) {
        let grant = match &wanted {
            AskedFor::Cell(level) => by.then(self.word(level.as_str())),
            _ => by,
        };
        let known = self.found.iter_mut().find(|target| target.wanted == wanted);
        match known {
            Some(_) => {}
            None => self.found.push(AskTarget { wanted, grant }),
        }
    }

    /// What an alias stands for, in order, each alias followed once: a circle ends where it began.
    fn follow(&mut self, alias: &'a str) {
        let mut seen = vec![alias];
        let mut open: Vec<(&'a str, Grant)> = self.targets(alias, self.word(alias));
        while let Some((word, grant)) = open.pop() {
            if self.found.len() >= MAX_TARGETS || seen.len() > MAX_TARGETS {
                break;
            }
            if self.picture.alias(word).is_none() {
                self.push_plain(word, grant);
            } else if !seen.contains(&word) {
                seen.push(word);
                let inner = self.targets(word, grant.then(self.word(word)));
                open.extend(inner);
            }
        }
    }

    /// The words an alias stands for, the first one last.
    fn targets(&self, alias: &str, grant: Grant) -> Vec<(&'a str, Grant)> {
        let targets = self.picture.alias(alias).unwrap_or_default();
        targets.iter().take(MAX_TARGETS).rev().map(|target| (&**target, grant)).collect()
    }

    /// Words that are no alias.
    fn push_plain(&mut self, model: &str, grant: Grant) -> RouteWord {
        if let Some(word) = level_word(model) {
            let level = if self.said { self.level } else { word };
            self.push(AskedFor::Cell(level), grant);
            return RouteWord::Cell;
        }
        let model = cut(model, MAX_MODEL);
        let named = model
            .split_once('/')
            .and_then(|(provider, rest)| Some((self.picture.upstream_named(provider)?, rest)));
        match named.or_else(|| self.picture.upstream_by_prefix(model)) {
            Some((upstream, rest)) if !rest.is_empty() => {
                self.push(AskedFor::Pin { upstream, rest: rest.into(), whole: model.into() }, grant);
                RouteWord::Pin
            }
            _ => {
                self.push(AskedFor::Name(model.into()), grant);
                RouteWord::Name
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::picture::{
        AliasInput, ConsumerInput, PictureInput, UpstreamInput,
        tests::{picture, provider},
    };

    /// What an operator asks for.
    pub(crate) fn ask(picture: &Picture, model: Option<&str>) -> Ask {
        let body = AskBody { model, ..AskBody::default() };
        Ask::new(picture, None, Api::Chat, &body, &AskHead::default(), 1).unwrap()
    }

    fn alias(name: &str, targets: &[&str]) -> AliasInput {
        AliasInput { name: name.into(), targets: targets.iter().map(|target| (*target).into()).collect() }
    }

    fn town() -> Picture {
        let mut prefixed = provider("prefixed", &["m"]);
        prefixed.prefixes = vec!["p/".into(), "a/".into()];
        picture(&PictureInput {
            providers: vec![provider("a", &["m", "n"]), prefixed],
            aliases: vec![
                alias("fast", &["eco"]),
                alias("gpt-4", &["a/m", "prefixed/m", "fast", "a/m"]),
                alias("round", &["about", "a/m"]),
                alias("about", &["round", "n"]),
                alias("self", &["self"]),
            ],
            consumers: vec![
                ConsumerInput { name: "web".into(), user_tier: Some("pro".into()), ..Default::default() },
                ConsumerInput { name: "center".into(), trusted: true, ..Default::default() },
                ConsumerInput {
                    name: "narrow".into(),
                    models: vec!["fast".into(), "!eco".into()],
                    ..Default::default()
                },
            ],
            ..PictureInput::default()
        })
    }

    /// Targets in short: `pin provider:rest`, `name`, `cell level`.
    fn shown(picture: &Picture, ask: &Ask) -> Vec<String> {
        let show = |target: &AskTarget| match &target.wanted {
            AskedFor::Pin { upstream, rest, .. } => {
                format!("{}:{rest}", picture.upstream(*upstream).unwrap().name)
            }
            AskedFor::Name(name) => name.to_string(),
            AskedFor::Cell(level) => format!("cell {level}"),
        };
        ask.targets.iter().map(show).collect()
    }

    #[test]
    fn words_say_how_far_a_request_may_be_moved() {
        let town = town();
        let check = |model: Option<&str>, route: &str, expected: &[&str]| {
            let ask = ask(&town, model);
            assert_eq!(shown(&town, &ask), expected, "{model:?}");
            assert_eq!(ask.route.to_string(), route, "{model:?}");
        };
        check(None, "cell", &["cell balanced"]);
        check(Some(" "), "cell", &["cell balanced"]);
        check(Some("auto"), "cell", &["cell balanced"]);
        check(Some("precision"), "cell", &["cell precision"]);
        check(Some("m"), "name", &["m"]);
        check(Some("a/m"), "pin", &["a:m"]);
        check(Some("a/b/c"), "pin", &["a:b/c"]);
        check(Some("p/m"), "pin", &["prefixed:m"]);
        check(Some("p/"), "name", &["p/"]);
        check(Some("meta/llama"), "name", &["meta/llama"]);
        check(Some("fast"), "alias:fast", &["cell eco"]);
        check(Some("gpt-4"), "alias:gpt-4", &["a:m", "prefixed:m", "cell eco"]);
        check(Some("round"), "alias:round", &["n", "a:m"]);
        check(Some("self"), "alias:self", &["self"]);
    }

    #[test]
    fn the_header_names_the_level_before_the_body_and_the_model() {
        let town = town();
        let check =
            |header: Option<&str>, body: Option<&str>, model: Option<&str>, expected: Result<&str, &str>| {
                let body = AskBody { model, power_level: body, ..AskBody::default() };
                let head = AskHead { power_level: header, ..AskHead::default() };
                let ask = Ask::new(&town, None, Api::Chat, &body, &head, 1);
                let found = match &ask {
                    Ok(ask) => Ok(ask.level.as_str()),
                    Err(error) => {
                        assert_eq!((error.status, error.code), (400, ErrorCode::UnknownPowerLevel));
                        Err(error.param.as_deref().unwrap())
                    }
                };
                assert_eq!(found, expected);
            };
        check(Some("eco"), Some("precision"), Some("balanced"), Ok("eco"));
        check(Some("ECO "), None, None, Ok("eco"));
        check(None, Some("precision"), Some("eco"), Ok("precision"));
        check(None, None, Some("eco"), Ok("eco"));
        check(None, None, Some("fast"), Ok("eco"));
        check(Some("precision"), None, Some("fast"), Ok("precision"));
        check(None, None, Some("m"), Ok("balanced"));
        check(Some("cheap"), None, None, Err("X-Power-Level"));
        check(Some("eco"), Some("cheap"), None, Err("power_level"));
    }

    #[test]
    fn a_level_beside_a_model_does_not_move_the_request() {
        let town = town();
        let body = AskBody { model: Some("a/m"), power_level: Some("eco"), ..AskBody::default() };
        let ask = Ask::new(&town, None, Api::Chat, &body, &AskHead::default(), 1).unwrap();
        assert_eq!(shown(&town, &ask), ["a:m"]);
        assert!(ask.of_level && ask.level == PowerLevel::Eco);
    }

    #[test]
    fn only_a_trusted_consumer_speaks_for_others() {
        let town = town();
        let head = AskHead { user_id: Some("u-7"), user_tier: Some("gold"), ..AskHead::default() };
        let body = AskBody { user: Some("another-user"), ..AskBody::default() };
        let check = |consumer: &str, tier: Option<&str>, user: &str, trusted: bool| {
            let consumer = town.consumer_named(consumer);
            let ask = Ask::new(&town, consumer, Api::Chat, &body, &head, 1).unwrap();
            assert_eq!((ask.tier.as_deref(), ask.user.as_deref()), (tier, Some(user)));
            assert_eq!(ask.user_trusted, trusted);
        };
        check("web", Some("pro"), "another-user", false);
        check("center", Some("gold"), "u-7", true);
        check("narrow", None, "another-user", false);
        let long = "x".repeat(300);
        let head = AskHead { user_tier: Some(&long), ..AskHead::default() };
        let refused = |name| Ask::new(&town, town.consumer_named(name), Api::Chat, &body, &head, 1).is_err();
        assert!(refused("center"));
        assert!(!refused("web"), "a header that means nothing cannot be wrong");
    }

    #[test]
    fn a_refusal_of_what_an_alias_stands_for_holds() {
        let town = town();
        let body = AskBody { model: Some("fast"), ..AskBody::default() };
        let consumer = town.consumer_named("narrow");
        let ask = Ask::new(&town, consumer, Api::Chat, &body, &AskHead::default(), 1).unwrap();
        assert_eq!(ask.targets[0].grant, Grant::Refused);
    }

    #[test]
    fn sessions_seed_by_consumer() {
        let town = town();
        let seed = |consumer: &str, head: &AskHead<'_>, body: &AskBody<'_>, entropy| {
            let ask = Ask::new(&town, town.consumer_named(consumer), Api::Chat, body, head, entropy).unwrap();
            (ask.seed, ask.sticky)
        };
        let body = AskBody { prompt_cache_key: Some("k"), ..AskBody::default() };
        let head = AskHead { session_id: Some("s"), ..AskHead::default() };
        let none = (AskHead::default(), AskBody::default());
        assert_eq!(seed("web", &none.0, &none.1, 42), (42, false));
        assert_eq!(seed("web", &head, &body, 1), seed("web", &head, &none.1, 2));
        assert_ne!(seed("web", &head, &none.1, 1), seed("center", &head, &none.1, 1));
        assert_ne!(seed("web", &none.0, &body, 1), seed("web", &head, &body, 1));
        // Pinned: nodes of different versions share sessions.
        assert_eq!(session_seed("web", "s"), 0xb9e1_2467_7fde_b09a);
    }

    #[test]
    fn sizes_are_estimates_and_floors() {
        let town = town();
        let body =
            AskBody { text_bytes: 401, media_parts: 2, max_tokens: Some(100), n: 3, ..AskBody::default() };
        let ask = Ask::new(&town, None, Api::Chat, &body, &AskHead::default(), 1).unwrap();
        assert_eq!((ask.input_estimate, ask.input_at_least, ask.output_limit), (2_101, 40, Some(300)));
    }

    proptest! {
        #[test]
        fn any_words_give_an_ask(
            model in ".{0,600}",
            aliases in prop::collection::vec(("[a-d]", prop::collection::vec("[a-e]|a/m|eco", 0..6)), 0..6),
            asked in "[a-e]",
        ) {
            let aliases: Vec<_> = aliases
                .into_iter()
                .map(|(name, targets)| AliasInput { name, targets })
                .collect();
            let picture = picture(&PictureInput {
                providers: vec![UpstreamInput { prefixes: vec!["é".into()], ..provider("a", &["m"]) }],
                aliases,
                ..PictureInput::default()
            });
            for model in [&*model, &*asked] {
                let ask = ask(&picture, Some(model));
                prop_assert!(!ask.targets.is_empty() && ask.targets.len() <= MAX_TARGETS);
                prop_assert!(ask.echo().len() <= MAX_ECHO);
            }
        }
    }
}
