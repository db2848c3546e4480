//! Opaque proofs that reasoning is a maker's own: who made each, and how it travels through a caller's dialect that
//! has only one field for it, so that it comes back on any node.
//!
//! Not its job: checking proofs. Invariant: a proof is given only to its maker; every reader that meets a tagged
//! one knows the maker from the tag alone.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// The mark before a tagged proof. Letters that tool ids and base64 fields both allow, and that no provider uses.
const TAG: &str = "_pdsig_";

/// Who made a proof, and thus who may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Maker {
    /// Claude, at Anthropic, on Bedrock or on Vertex: one maker.
    Anthropic,
    /// Gemini at AI Studio.
    Google,
    /// Gemini on Vertex: its proofs are refused at AI Studio and the other way round.
    Vertex,
    /// OpenAI's encrypted reasoning.
    OpenAi,
    /// The same on Azure: encrypted for that resource.
    Azure,
    /// Other models on Bedrock.
    Bedrock,
}

impl Maker {
    const ALL: [Self; 6] =
        [Self::Anthropic, Self::Google, Self::Vertex, Self::OpenAi, Self::Azure, Self::Bedrock];

    /// A letter that stands for it inside a tag.
    fn letter(self) -> char {
        match self {
            Self::Anthropic => 'a',
            Self::Google => 'g',
            Self::Vertex => 'v',
            Self::OpenAi => 'o',
            Self::Azure => 'z',
            Self::Bedrock => 'b',
        }
    }
}

/// A proof and its maker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Who made it.
    pub maker: Maker,
    /// As it came.
    pub data: String,
}

impl Signature {
    /// A proof of this maker.
    pub fn new(maker: Maker, data: impl Into<String>) -> Self {
        Self { maker, data: data.into() }
    }

    /// The proof with its maker, in letters `[A-Za-z0-9_-]`.
    pub(crate) fn tagged(&self) -> String {
        format!("{TAG}{}{}", self.maker.letter(), URL_SAFE_NO_PAD.encode(&self.data))
    }

    /// Reads a tagged proof; without a tag it is of `untagged`, whose own dialect the field belongs to.
    pub(crate) fn read(field: &str, untagged: Maker) -> Self {
        match field.strip_prefix(TAG).and_then(untag) {
            Some(signature) => signature,
            None => Self::new(untagged, field),
        }
    }

    /// As the field of a dialect whose own maker is `native`: plain for it, tagged for all others.
    pub(crate) fn field(&self, native: Maker) -> String {
        if self.maker == native { self.data.clone() } else { self.tagged() }
    }

    /// The proof if it is this maker's.
    pub(crate) fn of(&self, maker: Option<Maker>) -> Option<&str> {
        (maker == Some(self.maker)).then_some(self.data.as_str())
    }
}

fn untag(rest: &str) -> Option<Signature> {
    let letter = rest.chars().next()?;
    let maker = Maker::ALL.into_iter().find(|maker| maker.letter() == letter)?;
    let data = URL_SAFE_NO_PAD.decode(rest.get(1..)?).ok()?;
    Some(Signature { maker, data: String::from_utf8(data).ok()? })
}

/// A tool id that carries a proof: chat clients keep ids and nothing else.
pub(crate) fn id_with(id: &str, signature: Option<&Signature>) -> String {
    match signature {
        Some(signature) => format!("{id}{}", signature.tagged()),
        None => id.to_owned(),
    }
}

/// Splits a tool id that may carry a proof.
pub(crate) fn split_id(id: &str) -> (String, Option<Signature>) {
    if let Some((base, rest)) = id.split_once(TAG)
        && let Some(signature) = untag(rest)
    {
        return (base.to_owned(), Some(signature));
    }
    (id.to_owned(), None)
}

/// Whether a body carries a tagged proof: then it must not pass untouched, even in the same dialect.
pub fn carries_tag(body: &[u8]) -> bool {
    memchr::memmem::find(body, TAG.as_bytes()).is_some()
}
