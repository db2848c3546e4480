//! A type in words, for `docs/TYPES.md`.
//!
//! Not its job: the page around it. Invariant: nothing is said here that is not read from the type's facts.

use super::{At, CompletionsRoot, Control, KeyPlan, ProofAttempt, facts::ProofRequest, family};
use crate::ProviderType;

/// What a type speaks, in words; Markdown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TypeDescription {
    /// The URL used where a manifest names none.
    pub base_url: String,
    /// The request that asks whether it is there.
    pub probe: String,
    /// How a key is tested.
    pub key_test: String,
    /// What it speaks itself, and what requests are translated into.
    pub dialects: String,
}

impl ProviderType {
    /// The words of types that speak exactly this type's protocol, this one among them.
    pub fn same_protocol(self) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |kind| std::ptr::eq(family(*kind), family(self)))
    }

    /// What this type speaks.
    pub fn describe(self) -> TypeDescription {
        let family = family(self);
        let base_url =
            family.base_url.map_or_else(|| "must be declared".to_owned(), |url| format!("`{url}`"));
        if let Some(retired) = family.retired {
            let nothing = "–".to_owned();
            return TypeDescription {
                base_url,
                probe: format!("none: {retired}"),
                key_test: nothing.clone(),
                dialects: nothing,
            };
        }
        let keyless = family.probe.keyless.map(|it| format!("; without a key {}", ask(it)));
        let special = family.proofs.special.iter().map(|(prefixes, plan)| {
            let prefixes: Vec<String> = prefixes.iter().map(|it| format!("`{it}…`")).collect();
            format!("; {}: {}", prefixes.join(", "), in_words(*plan))
        });
        TypeDescription {
            base_url,
            probe: ask(family.probe.ask) + &keyless.unwrap_or_default(),
            key_test: in_words(family.proofs.usual) + &special.collect::<String>(),
            dialects: dialects(self),
        }
    }
}

impl ProviderType {
    /// As its vendor writes itself.
    pub const fn display_name(self) -> &'static str {
        family(self).name
    }

    /// How its keys begin, such as `sk-…`; `None` where they have no beginning of their own.
    pub fn key_format(self) -> Option<String> {
        let fake = family(self).fake_key;
        let ends = ["providerd", "prvdrd", "0000", "cHJvdmlkZXJk"];
        let end = ends.iter().filter_map(|end| fake.find(end)).min().unwrap_or(0);
        fake.get(..end).filter(|prefix| !prefix.is_empty()).map(|prefix| format!("{prefix}…"))
    }

    /// Whether some free request distinguishes a working key from any other.
    pub fn has_key_test(self) -> bool {
        let family = family(self);
        family.retired.is_none() && !matches!(family.proofs.usual, KeyPlan::Untestable(_))
    }
}

fn dialects(kind: ProviderType) -> String {
    let serving = &family(kind).serving;
    if serving.dialects.is_empty() {
        return "none: it is not asked for completions".to_owned();
    }
    let own: Vec<String> = serving.apis.iter().map(|api| format!("`{api}`")).collect();
    let asked: Vec<String> = serving
        .dialects
        .iter()
        .map(|(word, dialect)| match *word {
            "" => format!("`{}`", dialect.word()),
            word => format!("`{}` for models with `{word}` in their name", dialect.word()),
        })
        .collect();
    let place = match serving.root {
        CompletionsRoot::Base => String::new(),
        CompletionsRoot::Below(path) | CompletionsRoot::BelowHost(path) => format!(", below `{path}`"),
    };
    let own = if own.is_empty() { String::new() } else { format!("{}{place}; ", own.join(", ")) };
    format!("{own}asked in {}", asked.join(", else "))
}

fn in_words(plan: KeyPlan) -> String {
    match plan {
        KeyPlan::Untestable(why) => format!("not: {why}"),
        KeyPlan::Try(attempts) => {
            let mut words: Vec<String> = attempts.iter().map(attempt).collect();
            // The same endpoint, malformed in two ways.
            words.dedup();
            words.join(", else ")
        }
    }
}

fn attempt(attempt: &ProofAttempt) -> String {
    match attempt.control {
        Control::Always => format!("{}, if a fake key is refused", ask(attempt.ask)),
        Control::Foreign => ask(attempt.ask),
    }
}

fn ask(ask: ProofRequest) -> String {
    let (place, path) = match ask.at {
        At::Base(path) => ("base".to_owned(), path),
        At::Root(path) => ("root".to_owned(), path),
        At::Far(host, path) => (host.to_owned(), path),
        At::Control(path) => ("control plane".to_owned(), path),
    };
    // Every body is malformed on purpose but the empty one, which is no body.
    let malformed = if ask.body.is_some_and(|body| !body.is_empty()) { "malformed " } else { "" };
    format!("{malformed}{} {place} `{path}`", ask.method.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_described_by_how_they_begin() {
        let check = |kind: ProviderType, expected: Option<&str>| {
            assert_eq!(kind.key_format().as_deref(), expected, "{kind}");
        };
        check(ProviderType::OpenAi, Some("sk-…"));
        check(ProviderType::OpenRouter, Some("sk-or-v1-…"));
        check(ProviderType::Anthropic, Some("sk-ant-api03-…"));
        check(ProviderType::Bedrock, Some("ABSK…"));
        check(ProviderType::Groq, Some("gsk_…"));
        check(ProviderType::Mistral, None);
        check(ProviderType::Zhipu, None);
        for kind in ProviderType::ALL {
            assert!(!kind.display_name().is_empty(), "{kind}");
            assert!(kind.key_format().is_none_or(|format| format.len() < 20), "{kind}");
        }
        assert!(ProviderType::OpenAi.has_key_test() && !ProviderType::GithubModels.has_key_test());
    }
}
