//! What a family of providers is made of: the values that a type's file fills in.
//!
//! Not its job: any one type, and what is done with the facts (`wire`, `probe`, `list`, `proof`, `read`, `serving`).
//! Invariant: facts only; everything here can be written down as a constant.

use serde_json::{Map, Value};

use crate::{
    KeyReport, KeyVerdict,
    dialect::{ModelCapabilities, UpstreamDialect},
    read::Complaint,
    wire::Method,
};

/// Everything by which one type differs from another.
pub(crate) struct Family {
    /// As its vendor writes it.
    pub name: &'static str,
    /// The base URL used when a manifest names none; `None` where only the operator can know it.
    pub base_url: Option<&'static str>,
    /// The vendor's own hosts; `*.x` matches every name below `x`.
    pub hosts: &'static [&'static str],
    /// Endings of a base path that belong to the API, longest first.
    pub suffixes: &'static [&'static str],
    /// Base URLs of the same vendor among which keys do not travel.
    pub regions: &'static [&'static str],
    /// How a key travels.
    pub auth: Auth,
    /// Shaped like a key, so that it is refused for what it is and not for its looks.
    pub fake_key: &'static str,
    /// Is the provider there?
    pub probe: HealthProbe,
    /// Its list of models.
    pub list: Listing,
    /// Which answer proves a key.
    pub proofs: Proofs,
    /// What its errors mean where that is not the rule.
    pub errors: ErrorHabits,
    /// How it serves completions.
    pub serving: ChatServing,
    /// A sentence without its full stop if the operator has ended the service: then no key works, nothing is listed
    /// and it counts as down.
    pub retired: Option<&'static str>,
}

/// How a key travels.
pub(crate) struct Auth {
    /// The header of an ordinary key.
    pub header: KeyHeader,
    /// Which keys may be sent as they are.
    pub sent: SentKeys,
    /// Headers of every request, with a key or without.
    pub always: &'static [(&'static str, &'static str)],
    /// Keys that begin so are tokens: they travel as Bearer whatever `header` says, beside these headers.
    pub tokens: Option<(&'static str, &'static [(&'static str, &'static str)])>,
}

/// In which header a key travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyHeader {
    /// `Authorization: Bearer …`
    Bearer,
    /// Alone, in the header of this name.
    Named(&'static str),
}

/// Which keys may be sent as they are.
#[derive(Clone, Copy)]
pub(crate) enum SentKeys {
    All,
    /// Those that begin so; others belong into signatures, not onto the wire.
    Beginning(&'static [&'static str]),
    /// None: what is declared as the key must be exchanged for a token first.
    None,
}

impl Auth {
    /// Every key in this header.
    pub const fn by(header: KeyHeader) -> Self {
        Self { header, sent: SentKeys::All, always: &[], tokens: None }
    }

    /// Whether this key may stand in a header.
    pub fn sends(&self, key: &str) -> bool {
        match self.sent {
            SentKeys::All => true,
            SentKeys::Beginning(prefixes) => begins(key, prefixes),
            SentKeys::None => false,
        }
    }
}

fn begins(key: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| key.starts_with(prefix))
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Below the base URL as declared.
    Base(&'static str),
    /// Below what remains of the base URL without the API's own path.
    Root(&'static str),
    /// On another host of the vendor (host, path); with a foreign base, below that base's root.
    Far(&'static str, &'static str),
    /// On the control plane that belongs to a runtime host.
    Control(&'static str),
}

/// A request that is free of charge and changes nothing at the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProofRequest {
    pub method: Method,
    pub at: At,
    pub body: Option<&'static str>,
}

/// A check of health.
#[derive(Clone, Copy)]
pub(crate) struct HealthProbe {
    /// Free, quick and small.
    pub ask: ProofRequest,
    /// Asked instead where there is no key.
    pub keyless: Option<ProofRequest>,
    /// A success must hold JSON.
    pub json: bool,
    /// The status and the words (lower case) of an error that a healthy provider answers with.
    pub tolerated: Option<(u16, &'static str)>,
}

/// A list of models.
#[derive(Clone, Copy)]
pub(crate) struct Listing {
    pub asks: &'static [ProofRequest],
    /// The lists complete each other; elsewhere a later one is asked where an earlier one does not exist.
    pub joined: bool,
    /// Why there is none.
    pub unsupported: Option<&'static str>,
    /// Whether an item is offered for conversation.
    pub offers: fn(&Map<String, Value>) -> bool,
    pub ids: ModelIds,
    pub prices: ListedPrices,
}

/// How a list names a model.
#[derive(Clone, Copy)]
pub(crate) enum ModelIds {
    AsListed,
    /// What stands after the last of these words.
    After(&'static str),
    /// `owner/name`, from two fields.
    OwnerAndName,
}

/// In what a list quotes prices.
#[derive(Clone, Copy)]
pub(crate) enum ListedPrices {
    /// Not known: two figures below any price per million are prices per token.
    Guessed,
    /// USD per token.
    PerToken,
    /// USD per million tokens.
    PerMillion,
    /// In fields of these names, in parts of a dollar per million tokens.
    Fields { input: &'static str, output: &'static str, parts: f64 },
}

/// When an endpoint must first refuse a fake key before a real one's success counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// Only where the base URL is not the vendor's own: a proxy may answer every caller.
    Foreign,
    /// Everywhere: the vendor's own behaviour is not known for certain.
    Always,
}

/// How the real key's answer is read once it is not a plain refusal.
#[derive(Clone, Copy)]
pub(crate) enum Reads {
    /// A success with this shape proves the key; `None` means "not the expected shape".
    Shape(fn(&Value) -> Option<KeyReport>),
    /// As `Shape`; a 403 in JSON proves it as well, since only a key that is known can lack a scope there.
    ShapeOrScope(fn(&Value) -> Option<KeyReport>),
    /// The request is malformed on purpose: an answer about the request, where a fake key is refused, proves it.
    Differential,
}

/// One way to prove a key.
#[derive(Clone, Copy)]
pub(crate) struct ProofAttempt {
    pub ask: ProofRequest,
    pub control: Control,
    pub reads: Reads,
}

/// What can be done to prove a key.
#[derive(Clone, Copy)]
pub(crate) enum KeyPlan {
    /// In this order.
    Try(&'static [ProofAttempt]),
    /// No free request would prove it, and why.
    Untestable(&'static str),
}

/// The ways to prove keys.
#[derive(Clone, Copy)]
pub(crate) struct Proofs {
    pub usual: KeyPlan,
    /// Keys that begin so are proven otherwise.
    pub special: &'static [(&'static [&'static str], KeyPlan)],
    /// A base URL that is not the vendor's own may be a gateway that speaks the OpenAI dialect for many vendors: its
    /// chat endpoint is asked as well.
    pub chat_elsewhere: bool,
}

impl Proofs {
    /// The plan for this key.
    pub fn plan(&self, key: &str) -> KeyPlan {
        self.special.iter().find(|(prefixes, _)| begins(key, prefixes)).map_or(self.usual, |(_, plan)| *plan)
    }
}

/// What errors mean.
#[derive(Clone, Copy)]
pub(crate) struct ErrorHabits {
    /// Exceptions that only this type makes, and where a general marker would mislead.
    pub reads: fn(&Complaint<'_>) -> Option<KeyVerdict>,
    /// It is the vendor's own protocol, whose billing words mean its own account.
    pub own_billing: bool,
    /// It answers 403 to a key it does not know.
    pub forbidden_is_invalid: bool,
}

/// How completions are served.
#[derive(Clone, Copy)]
pub(crate) struct ChatServing {
    /// The dialect of a model whose name holds the word; the first that fits. Empty: no chat protocol at all.
    pub dialects: &'static [(&'static str, UpstreamDialect)],
    /// What it speaks itself, without a translation, by the words of a manifest's `apis`.
    pub apis: &'static [&'static str],
    /// Where `/chat/completions` and its kin stand.
    pub root: CompletionsRoot,
    /// In what its chat completions differ from what most servers take; the model's name, in lower case.
    pub takes: fn(&mut ModelCapabilities, &str),
}

/// Where `/chat/completions` and its kin stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompletionsRoot {
    /// Below the base URL.
    Base,
    /// Below this path, unless the base URL ends with it.
    Below(&'static str),
    /// Below this path, where the base URL is a bare host.
    BelowHost(&'static str),
}
