//! Where a stored key may travel: one answer for checks, key tests, lists and trials.
//!
//! PURE. A managed provider's key goes to the URL that its manifests declare, and nowhere while its row says another type
//! or URL; what was applied last stands in for a manifest that cannot be read. An unmanaged row's key goes to the row's
//! own URL, unless the same key stands in another row of another origin: a program that may write rows could have it sent
//! to its own host by copying. Nor does a managed row's key travel that was not applied by this daemon and is another row's: see
//! [`copied`]. Which of a row's two tokens is the key is answered here as well, for all that open one. Not its job: how a
//! token is opened (`secret`). Invariant: where the answer is not certain, there is none.

use std::{collections::HashMap, sync::Arc};

use url::Url;
use uuid::Uuid;

use catalog::{manifest::Build, plan};
use provider::{BaseError, ProviderType, RowUrls, origin_of, parse_base, row_base};

use crate::{
    secret::{Byok, Keyring, Secret},
    store::{KeyRow, RowPlace},
};

/// Why a key goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Misplaced {
    #[error("drifted: its key goes nowhere; its row says {row}, its manifest {declared}")]
    Drifted { row: String, declared: String },
    #[error(
        "its key also stands in the row of `{0}`, which names another host\nhint: declare one of them, or give each a key of its own"
    )]
    Shared(Arc<str>),
    #[error("its type `{0}` is not known")]
    Type(String),
    #[error("no manifest that can be read says where it is")]
    Undeclared,
    #[error(transparent)]
    Base(#[from] BaseError),
}

/// What manifests say about where a provider is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    pub kind: ProviderType,
    pub base: Url,
}

impl Declared {
    fn new(kind: ProviderType, base_url: Option<&str>) -> Option<Self> {
        Some(Self { kind, base: parse_base(kind, base_url).ok()? })
    }

    /// What the manifests declare of a managed row or, where they cannot be read, what was applied last.
    pub fn of(build: Option<&Build>, name: &str, place: &RowPlace) -> Option<Self> {
        if let Some(provider) = build.and_then(|build| build.catalog.providers.get(name)) {
            return Self::new(provider.kind, provider.base_url.as_deref());
        }
        let applied = place.applied.as_ref()?;
        Self::new(ProviderType::parse(applied.kind.as_deref()?)?, applied.base_url.as_deref())
    }
}

impl RowPlace {
    fn urls(&self) -> RowUrls<'_> {
        RowUrls {
            api_base_url: self.api_base_url.as_deref(),
            config_base_url: self.config_base_url.as_deref(),
            any: self.any_url,
        }
    }

    /// Type and URL as the row says.
    ///
    /// # Errors
    /// [`Misplaced`]: it says none that can be used.
    pub fn own(&self) -> Result<(ProviderType, Url), Misplaced> {
        let word = self.kind.as_deref().unwrap_or_default();
        let kind =
            ProviderType::parse(word).ok_or_else(|| Misplaced::Type(word.chars().take(64).collect()))?;
        Ok((kind, row_base(kind, self.urls())?))
    }

    /// Whether the row says what is declared.
    ///
    /// # Errors
    /// [`Misplaced::Drifted`]
    pub fn agrees(&self, declared: &Declared) -> Result<(), Misplaced> {
        let own = self.own();
        if own.as_ref().is_ok_and(|(kind, base)| *kind == declared.kind && *base == declared.base) {
            return Ok(());
        }
        let words = |kind: &str, base: Option<&Url>| {
            // No more than the origin: a row's path and query are words of other programs.
            let place = base.map_or_else(|| "no usable URL".to_owned(), |base| origin_of(base).to_string());
            format!("{kind} at {place}")
        };
        let differ = own.as_ref().is_ok_and(|(_, base)| origin_of(base) != origin_of(&declared.base));
        let same_kind = own.as_ref().is_ok_and(|(kind, _)| *kind == declared.kind);
        let (row, declared) = match &own {
            Ok((_, base)) if same_kind && !differ => {
                (format!("the path {}", short(base.path())), short(declared.base.path()))
            }
            Ok((kind, base)) => {
                (words(kind.as_str(), Some(base)), words(declared.kind.as_str(), Some(&declared.base)))
            }
            Err(_) => {
                ("no usable type or URL".to_owned(), words(declared.kind.as_str(), Some(&declared.base)))
            }
        };
        Err(Misplaced::Drifted { row, declared })
    }
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Where the key of a row goes, with the row's key opened.
pub struct Destination {
    pub kind: ProviderType,
    pub base: Url,
    pub key: Option<Arc<Secret>>,
}

/// A key as a row holds it, and what is on record of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    pub id: Uuid,
    pub name: Arc<str>,
    /// Fingerprint of the key that the row holds; `None`: there is none that opens.
    pub held: Option<Box<str>>,
    /// Fingerprint of the key that was applied last; only managed rows have one.
    pub applied: Option<Box<str>>,
    /// Where the row's key would go; `None`: nowhere.
    pub origin: Option<Arc<str>>,
}

/// Which rows hold a key that belongs to another row of another origin, by their ids, with the other's name. A program
/// that may write rows can copy a key, into a row of its own or into one that manifests manage.
///
/// The key that was applied to a row is its own, wherever else it stands.
pub fn copied(rows: &[HeldKey]) -> HashMap<Uuid, Arc<str>> {
    let mut holders: HashMap<&str, Vec<&HeldKey>> = HashMap::new();
    for row in rows {
        for key in [&row.held, &row.applied].into_iter().flatten() {
            holders.entry(key).or_default().push(row);
        }
    }
    let owner = |row: &HeldKey| {
        let held = row.held.as_deref().filter(|held| row.applied.as_deref() != Some(held))?;
        let others = holders.get(held)?.iter().filter(|other| other.id != row.id);
        let mut others = others.filter(|other| other.origin.is_none() || other.origin != row.origin);
        Some((row.id, others.next()?.name.clone()))
    };
    rows.iter().filter_map(owner).collect()
}

/// Where the key that is stored for `name` goes. `rows` are all rows that hold keys, and this one.
///
/// # Errors
/// [`Misplaced`]; the key goes nowhere.
pub fn destination(
    rows: &[KeyRow],
    name: &str,
    build: Option<&Build>,
    keyring: &Keyring,
) -> Result<Option<Destination>, Misplaced> {
    let Some(row) = rows.iter().find(|row| &*row.name == name) else { return Ok(None) };
    let (kind, base) = row.destination(build)?;
    row.is_not_copied(rows, build, keyring)?;
    Ok(Some(Destination { kind, base, key: opened(&row.tokens, &keyring.byok) }))
}

impl KeyRow {
    /// Where the provider is: where manifests declare it or, where none manages it, where its row says.
    ///
    /// # Errors
    /// [`Misplaced`]; it is nowhere.
    pub fn asked_at(&self, build: Option<&Build>) -> Result<(ProviderType, Url), Misplaced> {
        if !self.managed {
            return self.place.own();
        }
        let declared = Declared::of(build, &self.name, &self.place).ok_or(Misplaced::Undeclared)?;
        Ok((declared.kind, declared.base))
    }

    /// Where a key of this row goes that stands in no other.
    ///
    /// # Errors
    /// [`Misplaced`]; it goes nowhere.
    pub fn destination(&self, build: Option<&Build>) -> Result<(ProviderType, Url), Misplaced> {
        let (kind, base) = self.asked_at(build)?;
        if self.managed {
            self.place.agrees(&Declared { kind, base: base.clone() })?;
        }
        Ok((kind, base))
    }

    /// What is known of this row's key.
    pub fn held(&self, build: Option<&Build>, keyring: &Keyring) -> HeldKey {
        let held = held_key(&self.tokens, keyring);
        let applied = self.place.applied.as_ref().filter(|_| self.managed);
        let declared = Declared::of(build, &self.name, &self.place).filter(|_| self.managed);
        let base =
            declared.map(|declared| declared.base).or_else(|| self.place.own().ok().map(|(_, base)| base));
        HeldKey {
            id: self.id,
            name: self.name.clone(),
            held,
            applied: applied.and_then(|applied| applied.key.clone()),
            origin: base.as_ref().map(origin_of),
        }
    }

    /// That the key is this row's own, as far as `rows` show.
    ///
    /// # Errors
    /// [`Misplaced::Shared`]
    pub fn is_not_copied(
        &self,
        rows: &[Self],
        build: Option<&Build>,
        keyring: &Keyring,
    ) -> Result<(), Misplaced> {
        let own = self.held(build, keyring);
        if own.held.is_none() || own.held == own.applied {
            return Ok(());
        }
        let all: Vec<HeldKey> = rows.iter().map(|row| row.held(build, keyring)).collect();
        match copied(&all).remove(&self.id) {
            Some(owner) => Err(Misplaced::Shared(owner)),
            None => Ok(()),
        }
    }
}

/// The key that a row's two columns hold, as far as one opens.
pub fn opened(tokens: &[String; 2], byok: &Byok) -> Option<Arc<Secret>> {
    counting(tokens, byok).map(|(_, key)| key)
}

/// The fingerprint of [`opened`].
pub fn held_key(tokens: &[String; 2], keyring: &Keyring) -> Option<Box<str>> {
    opened(tokens, &keyring.byok).map(|key| keyring.fp.fingerprint(&key).0)
}

/// The token of [`opened`]; where none opens, the first that is there.
pub fn counting_token<'t>(tokens: &'t [String; 2], byok: &Byok) -> Option<&'t str> {
    let stored = || tokens.iter().map(String::as_str).find(|token| !token.is_empty());
    counting(tokens, byok).map(|(token, _)| token).or_else(stored)
}

fn counting<'t>(tokens: &'t [String; 2], byok: &Byok) -> Option<(&'t str, Arc<Secret>)> {
    plan::stored_key([&tokens[0], &tokens[1]], |token| byok.open(token).ok())
}

/// Every key that a row's columns hold: what must not be shown of it.
pub fn every_opened(tokens: &[String; 2], byok: &Byok) -> Vec<Arc<Secret>> {
    let stored = tokens.iter().filter(|token| !token.is_empty());
    stored.filter_map(|token| byok.open(token).ok()).collect()
}

/// Whether a key is stored that does not open.
pub fn is_undecryptable(tokens: &[String; 2], byok: &Byok) -> bool {
    tokens.iter().any(|token| !token.is_empty()) && counting(tokens, byok).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::RecordedPlace;

    const ORIGIN: &str = "https://api.openai.com/v1";

    fn place(kind: &str, api: Option<&str>, config: Option<&str>, any_url: bool) -> RowPlace {
        let own = |text: Option<&str>| text.map(str::to_owned);
        RowPlace {
            kind: Some(kind.to_owned()),
            api_base_url: own(api),
            config_base_url: own(config),
            any_url,
            applied: None,
        }
    }

    #[test]
    fn a_row_names_one_place_or_none() {
        #[track_caller]
        fn check(place: RowPlace, expected: Option<&str>) {
            let own = place.own().ok().map(|(_, base)| base.to_string());
            assert_eq!(own.as_deref(), expected, "{place:?}");
        }
        check(place("openai", Some("http://a/v1"), Some("http://b/v1"), true), Some("http://a/v1"));
        check(place("openai", Some(" "), Some("http://b/v1"), true), Some("http://b/v1"));
        check(place("openai", None, Some("http://b/v1"), true), Some("http://b/v1"));
        check(place("openai", None, None, false), Some(ORIGIN));
        check(place("openai", None, None, true), None);
        check(place("custom", None, None, false), None);
        check(place("nonsense", Some("http://a/v1"), None, true), None);
        check(place("openai", Some("ftp://a"), None, true), None);
    }

    #[test]
    fn what_a_row_says_must_be_what_is_declared() {
        let declared = Declared::new(ProviderType::OpenAi, None).unwrap();
        let agrees = |kind, api, config| {
            place(kind, api, config, true).agrees(&declared).map_err(|error| error.to_string())
        };
        assert_eq!(agrees("openai", Some(ORIGIN), None), Ok(()));
        assert_eq!(agrees("openai", Some("https://api.openai.com"), None), Ok(()));
        for (kind, api, config) in [
            ("openai", Some("http://thief/v1"), None),
            ("openai", None, Some("https://thief/v1")),
            ("openai", Some("https://api.openai.com:8443/v1"), None),
            ("openai", Some("http://api.openai.com/v1"), None),
            ("openai", Some("https://api.openai.com/v2"), None),
            ("anthropic", Some(ORIGIN), None),
            ("openai", Some("https://user:x@api.openai.com/v1"), None),
            ("nonsense", Some(ORIGIN), None),
        ] {
            let said = agrees(kind, api, config).unwrap_err();
            assert!(said.starts_with("drifted: its key goes nowhere"), "{said}");
        }
        // A manifest that cannot be read is replaced by what it said when it was applied.
        let mut drifted = place("openai", Some("http://thief/v1"), None, true);
        drifted.applied = Some(RecordedPlace {
            kind: Some("openai".to_owned()),
            base_url: Some("https://own/v1".to_owned()),
            key: None,
        });
        let declared = Declared::of(None, "p", &drifted).unwrap();
        assert_eq!(declared.base.as_str(), "https://own/v1");
        assert!(drifted.agrees(&declared).is_err());
        drifted.applied = None;
        assert_eq!(Declared::of(None, "p", &drifted), None);
    }

    #[test]
    fn a_key_is_whose_it_was_applied_to() {
        let row = |name: &str, held: &str, applied: &str, origin: &str| HeldKey {
            id: Uuid::new_v4(),
            name: name.into(),
            held: Some(held).filter(|it| !it.is_empty()).map(Into::into),
            applied: Some(applied).filter(|it| !it.is_empty()).map(Into::into),
            origin: Some(origin).filter(|it| !it.is_empty()).map(Into::into),
        };
        #[track_caller]
        fn check(rows: &[HeldKey], expected: &[(&str, &str)]) {
            let found = copied(rows);
            let mut named: Vec<(&str, &str)> =
                rows.iter().filter_map(|row| Some((&*row.name, found.get(&row.id)?.as_ref()))).collect();
            named.sort_unstable();
            assert_eq!(named, expected);
        }
        // Two that were given the same key by their manifests.
        check(&[row("a", "1", "1", "A"), row("b", "1", "1", "B")], &[]);
        // Copied into a row of the copier's own, and into a managed one.
        check(&[row("a", "1", "1", "A"), row("own", "1", "", "T")], &[("own", "a")]);
        check(&[row("a", "1", "1", "A"), row("b", "1", "2", "B")], &[("b", "a")]);
        // The owner's row holds another key by now, or nothing.
        check(&[row("a", "3", "1", "A"), row("b", "1", "2", "B")], &[("b", "a")]);
        check(&[row("a", "", "1", "A"), row("own", "1", "", "T")], &[("own", "a")]);
        // The same place: nothing is lost. A place that is not known is another.
        check(&[row("a", "1", "1", "A"), row("own", "1", "", "A")], &[]);
        check(&[row("a", "1", "", ""), row("own", "1", "", "T")], &[("a", "own"), ("own", "a")]);
        // A key that an operator typed in.
        check(&[row("a", "9", "1", "A"), row("b", "2", "2", "B")], &[]);
    }

    #[test]
    fn the_first_token_that_opens_is_the_key() {
        let byok = Byok::parse(Byok::generate().expose()).unwrap();
        let token = |text: &str| byok.encrypt(&Secret::copy_of(text));
        let (one, two) = (token("key-one"), token("key-two"));
        let check = |tokens: [&str; 2], key: Option<&str>, counts: Option<&str>| {
            let tokens = tokens.map(str::to_owned);
            assert_eq!(
                opened(&tokens, &byok).map(|key| key.expose().to_owned()).as_deref(),
                key,
                "{tokens:?}"
            );
            assert_eq!(counting_token(&tokens, &byok), counts, "{tokens:?}");
            assert_eq!(is_undecryptable(&tokens, &byok), counts.is_some() && key.is_none(), "{tokens:?}");
        };
        check(["", ""], None, None);
        check([&one, &two], Some("key-one"), Some(&one));
        check(["", &two], Some("key-two"), Some(&two));
        check(["rubbish", &two], Some("key-two"), Some(&two));
        check(["rubbish", "worse"], None, Some("rubbish"));
    }
}
