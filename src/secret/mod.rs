//! Secrets: from a reference in a manifest to a value that is wiped from memory, to a Fernet token.
//!
//! Its job: hold secret text ([`Secret`]), the keys that encrypt it at rest ([`Byok`]), the keyed
//! fingerprints that name it without revealing it ([`FingerprintKey`]), and find the value behind a
//! reference ([`Resolver`]). Not its job: where tokens are stored, and when a key is replaced.
//!
//! Invariant: no value of a secret reaches `Debug`, `Display`, an error or a serializer; [`Secret::expose`]
//! is the one way to it, so that a search for that word finds every use.

mod byok;
mod fingerprint;
mod opened;
mod resolve;
mod source;

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

pub use byok::{Byok, CanaryError, KeyError, Undecryptable, check_canary, create_canary};
pub use fingerprint::{FingerprintKey, Keyring};
pub use resolve::{EnvLookup, ResolveError, ResolveProblem, Resolver};
pub use source::{BYOK_CREDENTIAL, BYOK_ENV, LoadError, Source, load_byok, load_byok_file, load_or_generate};

/// Secret text, wiped from memory when dropped.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Takes the text over; its buffer is wiped with the secret.
    pub fn new(text: String) -> Self {
        // Converting to a boxed str may reallocate; the old buffer would stay behind unwiped.
        if text.capacity() == text.len() { Self(text.into()) } else { Self::copy_of(&Zeroizing::new(text)) }
    }

    /// A copy in a buffer of its own, of exactly the right size.
    pub fn copy_of(text: &str) -> Self {
        Self(SecretString::from(Box::<str>::from(text)))
    }

    /// The text itself: for encrypting it or sending it to its provider, never for showing it.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Secret text from bytes that are wiped either way; `None` if they are not UTF-8.
    fn from_bytes(bytes: &Zeroizing<Vec<u8>>) -> Option<Self> {
        std::str::from_utf8(bytes).ok().map(Self::copy_of)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Characters shown at the start of a preview.
const PREVIEW_HEAD: usize = 7;
/// Characters shown at the end of a preview.
const PREVIEW_TAIL: usize = 4;
/// A key of up to this many characters shows none: eleven of them would be more than half.
const PREVIEW_MIN: usize = 20;

/// What may be shown of a key: `c19094f...o8ub`, or `***` for one of 20 characters or fewer.
pub fn preview(secret: &Secret) -> String {
    let text = secret.expose();
    let count = text.chars().count();
    if count <= PREVIEW_MIN {
        return "***".to_owned();
    }
    let head = text.chars().take(PREVIEW_HEAD);
    let tail = text.chars().skip(count - PREVIEW_TAIL);
    head.chain("...".chars()).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn previews_show_eleven_characters_of_long_keys_only() {
        fn check(text: &str, expected: &str) {
            assert_eq!(preview(&Secret::copy_of(text)), expected);
        }
        check("", "***");
        check("12345678901234567890", "***");
        check("123456789012345678901", "1234567...8901");
        check("c19094fXXXXXXXXXXXXXXXXXXo8ub", "c19094f...o8ub");
        // Twenty characters of two bytes each are still twenty characters.
        check(&"é".repeat(20), "***");
        check(&"é".repeat(21), &format!("{}...{}", "é".repeat(7), "é".repeat(4)));
    }

    #[test]
    fn debug_tells_nothing() {
        let text = "not-a-real-key";
        assert_eq!(format!("{:?}", Secret::copy_of(text)), "Secret(…)");
        assert_eq!(format!("{:#?}", Some(Secret::new(text.to_owned()))), "Some(\n    Secret(…),\n)");
    }
}
