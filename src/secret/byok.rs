//! The keys that encrypt API keys at rest: Fernet, as Python's `cryptography.fernet` reads and writes it.
//!
//! Its job: parse, generate, encrypt, decrypt, and the canary that proves a key fits a database. Not its
//! job: where the key comes from (`source`) and where tokens live.
//!
//! Invariant: every token written is canonical padded URL-safe base64, and what Python's library would
//! refuse is refused here too, so that providerd never calls a key fine which its consumers cannot read. What that
//! library takes in the standard alphabet of base64 is taken as well.

use std::{
    fmt,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE};
use fernet::Fernet;
use zeroize::Zeroizing;

use super::{Secret, opened::OpenedTokens};

/// Bytes of a Fernet key: 16 for HMAC-SHA-256, 16 for AES-128.
const KEY_BYTES: usize = 32;

/// The latest time that lets the `fernet` crate's clock-skew test pass for every token. Python applies no
/// such test without a TTL, and a clock that was stepped back must not turn stored keys unreadable.
const END_OF_TIME: u64 = u64::MAX - 60;

/// What the canary says once decrypted.
const CANARY: &str = "providerd canary 1";

/// One or more Fernet keys: the first encrypts, all decrypt. Cheap to clone; wiped with the last clone.
#[derive(Clone)]
pub struct Byok {
    keys: Arc<[Fernet]>,
    opened: OpenedTokens,
}

impl fmt::Debug for Byok {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Byok({} keys)", self.keys.len())
    }
}

/// Why a text is not a BYOK key. `index` counts from 1 among the comma-separated keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the BYOK key is empty\nhint: make one with `providerd key generate`")]
    Empty,
    #[error("BYOK key {index} is empty\nhint: remove the comma that has no key beside it")]
    EmptyPart { index: usize },
    #[error(
        "BYOK key {index} is not canonical base64 (letters, digits, `-` and `_` or `+` and `/`, padded with `=`)\n\
         hint: was it cut or changed when it was copied? `providerd key generate` makes a new one, which opens nothing \
         that another key has encrypted"
    )]
    NotBase64 { index: usize },
    #[error(
        "BYOK key {index} holds {bytes} bytes instead of {KEY_BYTES}\n\
         hint: a Fernet key is 44 characters long; make one with `providerd key generate`"
    )]
    WrongLength { index: usize, bytes: usize },
}

/// A token that no BYOK key opens, or that is no Fernet token at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the stored token does not open with the BYOK key\n\
     hint: if the key was changed, give both, new one first, separated by a comma"
)]
pub struct Undecryptable;

impl Byok {
    /// Reads comma-separated Fernet keys; white space around each is ignored.
    ///
    /// # Errors
    /// [`KeyError`] names the position of the first bad key, never its text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.trim().is_empty() {
            return Err(KeyError::Empty);
        }
        let parts = text.split(',').enumerate();
        let keys: Vec<_> = parts.map(|(i, part)| parse_key(part.trim(), i + 1)).collect::<Result<_, _>>()?;
        Ok(Self { keys: keys.into(), opened: OpenedTokens::new() })
    }

    /// A new random key, as text that [`Byok::parse`] takes.
    pub fn generate() -> Secret {
        Secret::new(Fernet::generate_key())
    }

    /// A canonical padded token, made with the first key.
    pub fn encrypt(&self, secret: &Secret) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
        // `parse` is the only constructor and never yields an empty list.
        self.keys[0].encrypt_at_time(secret.expose().as_bytes(), now)
    }

    /// The text behind a token.
    ///
    /// # Errors
    /// [`Undecryptable`] if no key opens it, its text is not UTF-8, or it is not a token.
    pub fn decrypt(&self, token: &str) -> Result<Secret, Undecryptable> {
        self.decrypt_indexed(token).map(|(secret, _)| secret)
    }

    /// The text behind the token of a stored key, which is opened once however often it is asked for.
    ///
    /// # Errors
    /// As [`Self::decrypt`].
    pub fn open(&self, token: &str) -> Result<Arc<Secret>, Undecryptable> {
        self.opened.get_or(token, Instant::now(), || self.decrypt(token))
    }

    /// The text behind a token, and whether the first key (the one that encrypts) opened it: a rotation
    /// has nothing left to do for such a token.
    pub fn decrypt_primary(&self, token: &str) -> Result<(Secret, bool), Undecryptable> {
        self.decrypt_indexed(token).map(|(secret, index)| (secret, index == 0))
    }

    /// Number of keys; at least 1.
    pub fn key_count(&self) -> usize {
        self.keys.len()
    }

    fn decrypt_indexed(&self, token: &str) -> Result<(Secret, usize), Undecryptable> {
        // Python skips white space; a token pasted with its newline must open here as it does there.
        let token = token.trim_ascii();
        // Python refuses missing padding, which the crate accepts.
        if token.is_empty() || !token.len().is_multiple_of(4) {
            return Err(Undecryptable);
        }
        let token = url_safe(token);
        for (index, key) in self.keys.iter().enumerate() {
            if let Ok(bytes) = key.decrypt_at_time(&token, None, END_OF_TIME) {
                let bytes = Zeroizing::new(bytes);
                return Secret::from_bytes(&bytes).map(|secret| (secret, index)).ok_or(Undecryptable);
            }
        }
        Err(Undecryptable)
    }
}

/// The URL-safe alphabet for both: Python's `urlsafe_b64decode` takes the standard one as well, so that a key of
/// `openssl rand -base64 32` works there.
fn url_safe(text: &str) -> Zeroizing<String> {
    let mut out = Zeroizing::new(String::with_capacity(text.len()));
    out.extend(text.chars().map(|c| match c {
        '+' => '-',
        '/' => '_',
        c => c,
    }));
    out
}

fn parse_key(text: &str, index: usize) -> Result<Fernet, KeyError> {
    if text.is_empty() {
        return Err(KeyError::EmptyPart { index });
    }
    let text = url_safe(text);
    let bytes = Zeroizing::new(URL_SAFE.decode(text.as_bytes()).map_err(|_| KeyError::NotBase64 { index })?);
    if bytes.len() != KEY_BYTES {
        return Err(KeyError::WrongLength { index, bytes: bytes.len() });
    }
    Fernet::new(&text).ok_or(KeyError::NotBase64 { index })
}

/// Why a database's canary does not prove the BYOK key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CanaryError {
    #[error(
        "the BYOK key is not the one that this database's keys are encrypted with; nothing was written\n\
         hint: set BYOK_ENCRYPTION_KEY to the former key, or to `new,former` to change over"
    )]
    WrongKey,
    #[error(
        "the database's canary opens with the BYOK key, but is not one that this version wrote; nothing was \
         written\nhint: was it edited by hand, or written by a newer providerd?"
    )]
    Foreign,
}

/// A token to store beside the encrypted keys: a key that opens it is the right one.
pub fn create_canary(byok: &Byok) -> String {
    byok.encrypt(&Secret::copy_of(CANARY))
}

/// Proves that `byok` is what the database's keys are encrypted with.
///
/// # Errors
/// [`CanaryError`], on which nothing may be written.
pub fn check_canary(byok: &Byok, token: &str) -> Result<(), CanaryError> {
    let text = byok.decrypt(token).map_err(|Undecryptable| CanaryError::WrongKey)?;
    if text.expose() == CANARY { Ok(()) } else { Err(CanaryError::Foreign) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Fernet keys that no installation uses: 32 times the same byte.
    const A: &str = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";
    const B: &str = "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI=";

    fn byok(text: &str) -> Byok {
        Byok::parse(text).unwrap()
    }

    #[test]
    fn parse_accepts_canonical_keys_only() {
        fn check(text: &str, expected: Result<usize, KeyError>) {
            assert_eq!(Byok::parse(text).map(|byok| byok.key_count()), expected, "{text:?}");
        }
        check(A, Ok(1));
        check(&format!(" {A}\n"), Ok(1));
        check(&format!("{A},\r\n\t{B} "), Ok(2));
        check("", Err(KeyError::Empty));
        check(" \n", Err(KeyError::Empty));
        check(&format!("{A},"), Err(KeyError::EmptyPart { index: 2 }));
        check(",", Err(KeyError::EmptyPart { index: 1 }));
        check("not base64!", Err(KeyError::NotBase64 { index: 1 }));
        // The standard alphabet is the same key.
        check(&format!("{A},{}", B.replacen('Q', "+", 1)), Ok(2));
        check(&B.replace('Q', "/"), Ok(1));
        // Without padding; with trailing bits that decode to the same bytes.
        check(A.trim_end_matches('='), Err(KeyError::NotBase64 { index: 1 }));
        check(&A.replace("QUE=", "QUF="), Err(KeyError::NotBase64 { index: 1 }));
        check("QUFB", Err(KeyError::WrongLength { index: 1, bytes: 3 }));
        check(
            "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFB",
            Err(KeyError::WrongLength { index: 1, bytes: 33 }),
        );
    }

    #[test]
    fn errors_do_not_echo_the_value() {
        let error = Byok::parse("hunter2-hunter2").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn the_first_key_encrypts_and_all_decrypt() {
        let (a, b, ba) = (byok(A), byok(B), byok(&format!("{B},{A}")));
        let secret = Secret::copy_of("sk-not-a-real-key");
        let old = a.encrypt(&secret);
        let new = ba.encrypt(&secret);
        assert_eq!(ba.decrypt(&old).unwrap().expose(), secret.expose());
        assert!(!ba.decrypt_primary(&old).unwrap().1);
        assert!(ba.decrypt_primary(&new).unwrap().1);
        assert_eq!(b.decrypt(&new).unwrap().expose(), secret.expose());
        assert!(b.decrypt(&old).is_err());
        assert_eq!(format!("{ba:?}"), "Byok(2 keys)");
    }

    #[test]
    fn only_what_python_would_open_opens() {
        let a = byok(A);
        let token = a.encrypt(&Secret::copy_of("sk-not-a-real-key"));
        assert!(token.ends_with('='), "this text needs padding, or the test shows nothing");
        let check = |token: &str, opens: bool| assert_eq!(a.decrypt(token).is_ok(), opens, "{token:?}");
        check(&token, true);
        check(&format!("{token}\n"), true);
        check(token.trim_end_matches('='), false);
        check("", false);
        check("gAAA", false);
        check(&token[4..], false);
        check(&"é".repeat(40), false);
        check(&token.replacen("gAAAAA", "gAAAAB", 1), false);
    }

    #[test]
    fn a_token_from_the_future_opens() {
        let fernet = Fernet::new(A).unwrap();
        let token = fernet.encrypt_at_time(b"sk-not-a-real-key", u64::from(u32::MAX) * 4);
        assert!(byok(A).decrypt(&token).is_ok());
    }

    #[test]
    fn text_that_is_not_utf8_is_undecryptable() {
        let token = Fernet::new(A).unwrap().encrypt(&[0xff, 0xfe]);
        assert_eq!(byok(A).decrypt(&token).unwrap_err(), Undecryptable);
    }

    #[test]
    fn generated_keys_parse_and_differ() {
        let (one, two) = (Byok::generate(), Byok::generate());
        assert!(Byok::parse(one.expose()).is_ok());
        assert_ne!(one.expose(), two.expose());
    }

    #[test]
    fn the_canary_proves_the_key() {
        let canary = create_canary(&byok(A));
        assert_eq!(check_canary(&byok(A), &canary), Ok(()));
        assert_eq!(check_canary(&byok(&format!("{B},{A}")), &canary), Ok(()));
        assert_eq!(check_canary(&byok(B), &canary), Err(CanaryError::WrongKey));
        let other = byok(A).encrypt(&Secret::copy_of("something else"));
        assert_eq!(check_canary(&byok(A), &other), Err(CanaryError::Foreign));
    }
}
