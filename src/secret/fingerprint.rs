//! Keyed fingerprints, and the ring of keys with which a database row's key columns are read.
//!
//! Its job: name a secret without revealing it. Not its job: storing the fingerprint key.
//!
//! Invariant: equal secrets have equal fingerprints for as long as the database lives, whatever happens to
//! the BYOK key; without the fingerprint key no guess can be tested against one.

use std::fmt;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use catalog::plan::Fingerprint;

use super::{Byok, Secret, Undecryptable};

/// Bytes of the fingerprint key: the output size of SHA-256, beyond which HMAC gains nothing.
const KEY_BYTES: usize = 32;

/// Bytes of a fingerprint: 64 bits distinguish 10,000 keys with a chance of collision below 10⁻¹¹.
const FINGERPRINT_BYTES: usize = 8;

/// The key of all fingerprints. It lives in the database, encrypted, and not in the BYOK key, so that
/// fingerprints outlive a rotation.
#[derive(Clone)]
pub struct FingerprintKey {
    // Keyed once: cloning the state saves two of the four compressions per fingerprint.
    mac: Hmac<Sha256>,
    bytes: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey(…)")
    }
}

impl FingerprintKey {
    /// A new random key.
    ///
    /// # Panics
    /// If the kernel has no random numbers, as the Fernet implementation does.
    pub fn generate() -> Self {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *bytes).expect("the kernel gives random numbers");
        Self::from_bytes(bytes)
    }

    /// The key as a Fernet token, to be stored.
    pub fn seal(&self, byok: &Byok) -> String {
        let hex = Zeroizing::new(hex(&*self.bytes));
        byok.encrypt(&Secret::copy_of(&hex))
    }

    /// The key behind a stored token.
    ///
    /// # Errors
    /// [`Undecryptable`] if the token does not open or does not hold such a key.
    pub fn open(byok: &Byok, token: &str) -> Result<Self, Undecryptable> {
        let text = byok.decrypt(token)?;
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        unhex(text.expose(), &mut *bytes).ok_or(Undecryptable)?;
        Ok(Self::from_bytes(bytes))
    }

    /// The first 16 hexadecimal digits of HMAC-SHA-256 over the secret.
    pub fn fingerprint(&self, secret: &Secret) -> Fingerprint {
        let mut mac = self.mac.clone();
        mac.update(secret.expose().as_bytes());
        let digest = mac.finalize().into_bytes();
        Fingerprint(hex(&digest[..FINGERPRINT_BYTES]).into())
    }

    fn from_bytes(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        let mac = Hmac::new_from_slice(&*bytes).expect("HMAC takes keys of any length");
        Self { mac, bytes }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)].into());
        text.push(DIGITS[usize::from(byte & 15)].into());
    }
    text
}

fn unhex(text: &str, out: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != 2 * out.len() {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high << 4 | low).ok()?;
    }
    Some(())
}

/// Everything needed to read the key columns of a database. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyring {
    pub byok: Byok,
    pub fp: FingerprintKey,
}

impl Keyring {
    /// The fingerprint of the key behind a stored token; `None` for a token that no BYOK key opens.
    pub fn open(&self, token: &str) -> Option<Fingerprint> {
        self.byok.open(token).ok().map(|secret| self.fp.fingerprint(&secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn byok() -> Byok {
        Byok::parse(Byok::generate().expose()).unwrap()
    }

    #[test]
    fn fingerprints_are_keyed_and_outlive_a_rotation() {
        let old = byok();
        let key = FingerprintKey::generate();
        let secret = Secret::copy_of("sk-not-a-real-key");
        let print = key.fingerprint(&secret);
        assert_eq!(print.0.len(), 16);
        assert!(print.0.bytes().all(|byte| byte.is_ascii_hexdigit()));

        let opened = FingerprintKey::open(&old, &key.seal(&old)).unwrap();
        assert_eq!(opened.fingerprint(&secret), print);
        assert_ne!(key.fingerprint(&Secret::copy_of("sk-not-a-real-kez")), print);
        assert_ne!(FingerprintKey::generate().fingerprint(&secret), print);
        assert!(FingerprintKey::open(&byok(), &key.seal(&old)).is_err());
        assert!(FingerprintKey::open(&old, &old.encrypt(&Secret::copy_of("short"))).is_err());
    }

    #[test]
    fn the_hmac_is_the_published_one() {
        // RFC 4231, test case 2, truncated, has a key of 4 bytes; ours are 32, so zero-padding, which HMAC
        // itself does, gives the same result.
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(b"Jefe");
        let key = FingerprintKey::from_bytes(Zeroizing::new(bytes));
        let print = key.fingerprint(&Secret::copy_of("what do ya want for nothing?"));
        assert_eq!(&*print.0, "5bdcc146bf60754e");
    }
}
