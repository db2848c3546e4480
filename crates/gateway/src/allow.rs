//! What a consumer may ask for: globs over `provider/model`, aliases and power levels; `!` wins.
//!
//! Its job: one list, made ready once, and its verdict about one name. Not its job: what a request then may be moved
//! to (`decide`). Invariant: whatever a `!` pattern matches is refused, in any order of the patterns and by any way
//! of asking.

/// A pattern of `*` (any text) and `?` (one character). Held against every candidate of every request: the usual forms
/// compare bytes once, where a general matcher costs more than the rest of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Glob {
    Literal(Box<str>),
    /// `text*`
    Begins(Box<str>),
    /// `*text`
    Ends(Box<str>),
    Mixed(Box<str>),
}

impl Glob {
    fn new(pattern: &str) -> Self {
        let plain = |text: &str| !text.contains(['*', '?']);
        match (pattern.strip_suffix('*'), pattern.strip_prefix('*')) {
            _ if plain(pattern) => Self::Literal(pattern.into()),
            (Some(begin), _) if plain(begin) => Self::Begins(begin.into()),
            (_, Some(end)) if plain(end) => Self::Ends(end.into()),
            _ => Self::Mixed(pattern.into()),
        }
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Literal(literal) => **literal == *text,
            Self::Begins(begin) => text.starts_with(&**begin),
            Self::Ends(end) => text.ends_with(&**end),
            Self::Mixed(pattern) => matches(pattern, text),
        }
    }
}

/// Goes back to the last `*` only, which is enough: an earlier one can take nothing that the later cannot.
fn matches(pattern: &str, text: &str) -> bool {
    let (mut pattern, mut text) = (pattern.chars(), text.chars());
    let mut star = None;
    loop {
        let rest = pattern.clone();
        match (pattern.next(), text.clone().next()) {
            (None, None) => return true,
            (Some('*'), _) => star = Some((pattern.clone(), text.clone())),
            (Some(wanted), Some(found)) if wanted == '?' || wanted == found => {
                text.next();
            }
            (_, found) => {
                let Some((after, from)) = star.as_mut() else { return false };
                // With the text at its end, a star that takes more finds no more to match.
                if found.is_none() && rest.as_str() != "" || from.next().is_none() {
                    return false;
                }
                (pattern, text) = (after.clone(), from.clone());
            }
        }
    }
}

/// One consumer's list. Without patterns everything is allowed; so it is, but for what they match, where all patterns
/// are refusals (a list that allows nothing would have no use).
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    allow: Vec<Glob>,
    deny: Vec<Glob>,
}

impl AllowList {
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = Self::default();
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(refused) => list.deny.push(Glob::new(refused)),
                None => list.allow.push(Glob::new(pattern)),
            }
        }
        list
    }

    /// There is nothing to look at: the usual consumer costs nothing here.
    pub fn allows_all(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether an alias or a power level may be asked for by its name, and what follows for the models behind it.
    pub fn word(&self, word: &str) -> Grant {
        if self.deny.iter().any(|pattern| pattern.matches(word)) {
            Grant::Refused
        } else if self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(word)) {
            Grant::Whole
        } else {
            Grant::Each
        }
    }

    /// Whether one model may be used: `full` is `provider/model`, `model` its last part. `by` is the grant of the
    /// word that led to it. A refusal may also name the model alone: that it is refused everywhere is the only thing
    /// that can be meant.
    pub fn model(&self, full: &str, model: &str, by: Grant) -> bool {
        if self.allows_all() {
            return true;
        }
        let refused = self.deny.iter().any(|pattern| pattern.matches(full) || pattern.matches(model));
        !refused
            && match by {
                Grant::Refused => false,
                Grant::Whole => true,
                Grant::Each => {
                    self.allow.is_empty() || self.allow.iter().any(|pattern| pattern.matches(full))
                }
            }
    }
}

/// What a list says to a word that stands for several models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// The word is refused.
    Refused,
    /// The word is allowed, and with it all that it stands for but for refusals.
    Whole,
    /// The list does not speak of the word: each model is looked at.
    Each,
}

impl Grant {
    /// The grant of a word that was reached through another one.
    pub fn then(self, inner: Self) -> Self {
        match (self, inner) {
            (Self::Refused, _) | (_, Self::Refused) => Self::Refused,
            (Self::Whole, _) | (_, Self::Whole) => Self::Whole,
            (Self::Each, Self::Each) => Self::Each,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use wildmatch::WildMatch;

    use super::*;

    #[test]
    fn a_list_speaks_of_models_and_words() {
        let check = |patterns: &[&str], full: &str, allowed: bool| {
            let list = AllowList::new(patterns.iter().copied());
            let model = full.split_once('/').unwrap().1;
            assert_eq!(list.model(full, model, Grant::Each), allowed, "{patterns:?} {full}");
        };
        check(&[], "a/m", true);
        check(&["a/*"], "a/m", true);
        check(&["a/*"], "b/m", false);
        check(&["a/*", "!*-preview"], "a/m-preview", false);
        check(&["!*-preview", "*"], "a/m-preview", false);
        check(&["!*-preview"], "a/m", true);
        check(&["!m"], "a/m", false);
        check(&["m"], "a/m", false);
        check(&["balanced"], "a/m", false);

        let list = AllowList::new(["balanced", "!eco"]);
        assert_eq!(list.word("balanced"), Grant::Whole);
        assert_eq!(list.word("eco"), Grant::Refused);
        assert_eq!(list.word("precision"), Grant::Each);
        assert!(list.model("a/m", "m", Grant::Whole));
        assert!(!list.model("a/m", "m", Grant::Each));
        assert!(!list.model("a/m", "m", Grant::Refused));
    }

    fn pattern() -> impl Strategy<Value = String> {
        "!?[ab*?]{1,3}(/[ab*?]{1,3})?"
    }

    proptest! {
        #[test]
        fn patterns_match_as_everywhere_in_the_house(pattern in "[abé*?]{0,7}", text in "[abé?]{0,7}") {
            prop_assert_eq!(Glob::new(&pattern).matches(&text), WildMatch::new(&pattern).matches(&text));
            prop_assert_eq!(matches(&pattern, &text), WildMatch::new(&pattern).matches(&text));
        }

        #[test]
        fn a_refusal_wins_in_any_order(
            mut patterns in prop::collection::vec(pattern(), 0..6),
            denied in "[ab*?]{1,3}/[ab*?]{1,3}",
            full in "[ab]{1,3}/[ab]{1,3}",
            at in any::<prop::sample::Index>(),
        ) {
            let model = full.split_once('/').unwrap().1;
            patterns.insert(at.index(patterns.len() + 1), format!("!{denied}"));
            let list = AllowList::new(patterns.iter().map(String::as_str));
            if WildMatch::new(&denied).matches(&full) {
                for by in [Grant::Refused, Grant::Whole, Grant::Each] {
                    prop_assert!(!list.model(&full, model, by));
                }
            }
            // The order of the patterns says nothing.
            let turned = AllowList::new(patterns.iter().rev().map(String::as_str));
            prop_assert_eq!(list.model(&full, model, Grant::Each), turned.model(&full, model, Grant::Each));
        }
    }
}
