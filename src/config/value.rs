//! The types a setting can have, and how each is read from TOML and from the environment.
//!
//! Job: one [`Setting`] implementation per type, with messages that name the expected form. Not its job:
//! where a value came from (the caller adds that). Invariant: a message never repeats a secret's value.

use std::{net::SocketAddr, num::NonZeroU32, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use toml::Value;

use catalog::{
    duration,
    policy::{DriftPolicy, RouteGuard},
};

/// A type that a settings key can have. Errors are sentences without place: "must be …, not …".
pub trait Setting: Sized + std::fmt::Debug {
    /// The form of the value, for the reference: `duration`, `path`, `list of paths`.
    const FORM: &'static str;

    fn from_toml(value: &Value) -> Result<Self, String>;

    /// From an environment variable. Everything that is no text in TOML is read as TOML.
    fn from_env(text: &str) -> Result<Self, String> {
        Self::from_toml(&toml_or_text(text))
    }

    /// What an absent key without a default means; `None` where the key must have a value.
    fn unset() -> Option<Self> {
        None
    }

    /// Whether two values mean the same. What prints itself alike is alike; secrets compare themselves.
    fn same(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

/// `true`, `3` and `["a"]` are TOML; what is not TOML is a text.
pub(super) fn toml_or_text(text: &str) -> Value {
    toml::from_str::<toml::Table>(&format!("value = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

fn mismatch(form: &str, value: &Value) -> String {
    format!("must be a {form}, not {}", article(value))
}

fn article(value: &Value) -> &'static str {
    match value {
        Value::String(_) => "a string",
        Value::Integer(_) => "an integer",
        Value::Float(_) => "a float",
        Value::Boolean(_) => "a boolean",
        Value::Datetime(_) => "a date",
        Value::Array(_) => "an array",
        Value::Table(_) => "a table",
    }
}

fn text<'a>(form: &str, value: &'a Value) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| mismatch(form, value))
}

impl Setting for bool {
    const FORM: &'static str = "boolean";

    fn from_toml(value: &Value) -> Result<Self, String> {
        value.as_bool().ok_or_else(|| format!("{}; write true or false", mismatch(Self::FORM, value)))
    }
}

impl Setting for NonZeroU32 {
    const FORM: &'static str = "positive integer";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let number = value.as_integer().ok_or_else(|| mismatch(Self::FORM, value))?;
        u32::try_from(number)
            .ok()
            .and_then(Self::new)
            .ok_or_else(|| format!("must be from 1 to {}, not {number}", u32::MAX))
    }
}

impl Setting for u32 {
    const FORM: &'static str = "integer";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let number = value.as_integer().ok_or_else(|| mismatch(Self::FORM, value))?;
        Self::try_from(number).map_err(|_| format!("must be from 0 to {}, not {number}", Self::MAX))
    }
}

impl Setting for String {
    const FORM: &'static str = "string";

    fn from_toml(value: &Value) -> Result<Self, String> {
        text(Self::FORM, value).map(str::to_owned)
    }

    fn from_env(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }
}

impl Setting for PathBuf {
    const FORM: &'static str = "path";

    fn from_toml(value: &Value) -> Result<Self, String> {
        match text(Self::FORM, value)? {
            "" => Err("must be a path, not an empty string".to_owned()),
            path if path.contains('\0') => Err("must be a path without NUL characters".to_owned()),
            path => Ok(Self::from(path)),
        }
    }

    fn from_env(text: &str) -> Result<Self, String> {
        Self::from_toml(&Value::String(text.to_owned()))
    }
}

impl Setting for SecretString {
    const FORM: &'static str = "secret string";

    fn from_toml(value: &Value) -> Result<Self, String> {
        text(Self::FORM, value).map(Self::from)
    }

    fn from_env(text: &str) -> Result<Self, String> {
        Ok(Self::from(text))
    }

    fn same(&self, other: &Self) -> bool {
        self.expose_secret() == other.expose_secret()
    }
}

impl Setting for Duration {
    const FORM: &'static str = "duration";

    fn from_toml(value: &Value) -> Result<Self, String> {
        if let Some(number) = value.as_integer() {
            return Err(format!("must be a duration with its unit, such as \"{number}s\""));
        }
        duration::parse(text(Self::FORM, value)?).map_err(|error| format!("is wrong: {error}"))
    }

    fn from_env(text: &str) -> Result<Self, String> {
        Self::from_toml(&Value::String(text.trim_matches('"').to_owned()))
    }
}

impl Setting for SocketAddr {
    const FORM: &'static str = "address and port";

    fn from_toml(value: &Value) -> Result<Self, String> {
        let text = text(Self::FORM, value)?;
        text.parse().map_err(|_| {
            format!("must be an IP address and a port, such as \"127.0.0.1:7411\" or \"[::]:7411\", not \"{text}\"")
        })
    }
}

impl<T: Setting> Setting for Option<T> {
    const FORM: &'static str = T::FORM;

    fn from_toml(value: &Value) -> Result<Self, String> {
        T::from_toml(value).map(Some)
    }

    fn from_env(text: &str) -> Result<Self, String> {
        T::from_env(text).map(Some)
    }

    fn unset() -> Option<Self> {
        Some(None)
    }

    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (None, None) => true,
            (Some(one), Some(two)) => one.same(two),
            _ => false,
        }
    }
}

macro_rules! lists {
    ($($type:ty, $form:literal;)+) => {$(
        impl Setting for Vec<$type> {
            const FORM: &'static str = $form;

            fn from_toml(value: &Value) -> Result<Self, String> {
                let items = value.as_array().ok_or_else(|| mismatch(Self::FORM, value))?;
                items
                    .iter()
                    .enumerate()
                    .map(|(at, item)| {
                        <$type>::from_toml(item).map_err(|error| format!("entry {}: {error}", at + 1))
                    })
                    .collect()
            }

            /// A TOML array, or entries between commas.
            fn from_env(text: &str) -> Result<Self, String> {
                if text.trim_start().starts_with('[') {
                    return Self::from_toml(&toml_or_text(text));
                }
                text.split(',')
                    .map(str::trim)
                    .filter(|entry| !entry.is_empty())
                    .map(<$type>::from_env)
                    .collect()
            }
        }
    )+};
}

lists! {
    PathBuf, "list of paths";
    String, "list of strings";
    TokenHash, "list of SHA-256 hashes";
}

/// The SHA-256 of an admin token; the token itself stands in no setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenHash(pub [u8; 32]);

impl Setting for TokenHash {
    const FORM: &'static str = "SHA-256 hash";

    fn from_toml(value: &Value) -> Result<Self, String> {
        // The value is not repeated: a token that was put here by mistake must not stand in the log.
        const WRONG: &str = "must be 64 hexadecimal digits, the SHA-256 of a token \
                             (printf %s \"$TOKEN\" | sha256sum)";
        let text = text(Self::FORM, value)?.as_bytes();
        let mut hash = [0; 32];
        if text.len() != 64 {
            return Err(WRONG.to_owned());
        }
        for (byte, digits) in hash.iter_mut().zip(text.chunks_exact(2)) {
            *byte = std::str::from_utf8(digits)
                .ok()
                .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .ok_or(WRONG)?;
        }
        Ok(Self(hash))
    }

    fn from_env(text: &str) -> Result<Self, String> {
        Self::from_toml(&Value::String(text.to_owned()))
    }
}

/// How much may be pruned at once without a confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PruneLimitSetting {
    /// A share of the managed providers, 0 to 100.
    Percent(u8),
    /// A number of providers.
    Count(u32),
}

impl Setting for PruneLimitSetting {
    const FORM: &'static str = "percentage or integer";

    fn from_toml(value: &Value) -> Result<Self, String> {
        const WRONG: &str = "must be a percentage such as \"20%\" or a number of providers such as 5";
        match value {
            Value::Integer(count) => u32::try_from(*count).map(Self::Count).map_err(|_| WRONG.to_owned()),
            Value::String(text) => text
                .trim()
                .strip_suffix('%')
                .and_then(|digits| digits.trim_end().parse().ok())
                .filter(|percent| *percent <= 100)
                .map(Self::Percent)
                .ok_or_else(|| WRONG.to_owned()),
            _ => Err(WRONG.to_owned()),
        }
    }
}

/// A setting with a closed set of words.
macro_rules! choices {
    ($($(#[$meta:meta])* $name:ident, $form:literal { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? })+) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl Setting for $name {
            const FORM: &'static str = $form;

            fn from_toml(value: &Value) -> Result<Self, String> {
                match value.as_str() {
                    $(Some($word) => Ok(Self::$variant),)+
                    Some(other) => Err(unknown_word($form, other, [$($word),+].into_iter())),
                    None => Err(format!("must be {}, not {}", $form, article(value))),
                }
            }
        }
    )+};
}

choices! {
    /// Whose commits are applied.
    GitVerify, "\"off\" or \"ssh\"" {
        /// Those of every account that may push.
        Off = "off",
        /// Those that an allowed signer has signed.
        Ssh = "ssh",
    }

    /// Whether unhealthy providers are asked at all.
    UnhealthyPolicy, "\"last\" or \"exclude\"" {
        /// After all others.
        Last = "last",
        /// Never.
        Exclude = "exclude",
    }

    /// What a power cut may cost.
    UsageDurability, "\"normal\" or \"strict\"" {
        /// A power cut may cost what was written since the last sync.
        Normal = "normal",
        /// Requests wait for the sync.
        Strict = "strict",
    }

    /// What happens to requests while the spool is full.
    UsageWhenFull, "\"refuse\" or \"serve\"" {
        /// No request without a row.
        Refuse = "refuse",
        /// Requests are served, and counted as lost.
        Serve = "serve",
    }

    /// How log lines look.
    LogFormat, "\"auto\", \"human\" or \"json\"" {
        /// `human` on a terminal and in the journal, else `json`.
        Auto = "auto",
        Human = "human",
        Json = "json",
    }
}

/// A setting whose words stand elsewhere.
macro_rules! words_of {
    ($($name:ident, $form:literal;)+) => {$(
        impl Setting for $name {
            const FORM: &'static str = $form;

            fn from_toml(value: &Value) -> Result<Self, String> {
                let words = || Self::ALL.iter().map(|word| word.as_str());
                match value.as_str() {
                    Some(text) => Self::parse(text).ok_or_else(|| unknown_word($form, text, words())),
                    None => Err(format!("must be {}, not {}", $form, article(value))),
                }
            }
        }
    )+};
}

words_of! {
    DriftPolicy, "\"correct\" or \"report\"";
    RouteGuard, "\"hold\", \"warn\" or \"off\"";
}

fn unknown_word<'a>(form: &str, text: &str, words: impl Iterator<Item = &'a str>) -> String {
    let guess =
        super::nearest(text, words).map(|word| format!(" (did you mean \"{word}\"?)")).unwrap_or_default();
    format!("must be {form}, not \"{text}\"{guess}")
}
