//! What a consumer may ask for: globs over `provider/model`, aliases and power levels; `!` wins.
//!
//! Its job: one list, made ready once, and its verdict about one name. Not its job: what a request then may be moved
//! to (`decide`). Invariant: whatever a `!` pattern matches is refused, in any order of the patterns and by any way
//! of asking.

use wildmatch::WildMatch;

/// One consumer's list. Without patterns everything is allowed; so it is, but for what they match, where all patterns
/// are refusals (a list that allows nothing would have no use).
#[derive(Debug, Clone, Default)]
pub struct AllowList {
    allow: Vec<WildMatch>,
    deny: Vec<WildMatch>,
}

impl AllowList {
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let mut list = Self::default();
        for pattern in patterns {
            match pattern.strip_prefix('!') {
                Some(refused) => list.deny.push(WildMatch::new(refused)),
                None => list.allow.push(WildMatch::new(pattern)),
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
