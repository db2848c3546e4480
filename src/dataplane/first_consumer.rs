//! The consumer that embedded mode makes, so that a first request works without a manifest.
//!
//! Invariant: its key is shown once and stands nowhere; its hash lies beside the data, mode 0600, and outlives a restart.

use std::{
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use gateway::picture::{ConsumerInput, KeyHashInput};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::secret::Secret;

/// Its name among the consumers.
pub const NAME: &str = "embedded";
/// The file of its hash in the state directory.
const FILE: &str = "gateway_consumer.sha256";
/// What a caller's key begins with, so that operators, scanners and `validate` recognize it.
const PREFIX: &str = "pd_";
/// Bytes of chance in a key.
const RANDOM: usize = 32;

/// A caller's key: `pd_` and 256 random bits.
///
/// # Errors
/// The system has no random bytes.
pub fn caller_key() -> io::Result<Secret> {
    let mut bytes = Zeroizing::new([0; RANDOM]);
    getrandom::fill(&mut *bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Secret::new(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes.as_slice()))))
}

/// The hash of a caller's key, as manifests hold it: 64 hexadecimal digits.
pub fn key_hash(key: &Secret) -> String {
    Sha256::digest(key.expose()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The consumer, and its key where it was made just now.
///
/// # Errors
/// The state directory cannot be read or written.
pub fn first_consumer(state: &Path) -> io::Result<(ConsumerInput, Option<Secret>)> {
    let path = state.join(FILE);
    let (sha256, key) = match std::fs::read_to_string(&path) {
        Ok(text) => (text.trim().to_owned(), None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = caller_key()?;
            let hash = key_hash(&key);
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
            writeln!(file, "{hash}")?;
            (hash, Some(key))
        }
        Err(error) => return Err(error),
    };
    let consumer = ConsumerInput {
        name: NAME.to_owned(),
        keys: vec![KeyHashInput { sha256, expires: None }],
        ..ConsumerInput::default()
    };
    Ok((consumer, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_key_is_made_once_and_its_hash_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (first, key) = first_consumer(dir.path()).unwrap();
        let key = key.unwrap();
        assert!(key.expose().starts_with("pd_") && key.expose().len() == 46);
        assert_eq!(first.keys[0].sha256, key_hash(&key));
        let (second, key) = first_consumer(dir.path()).unwrap();
        assert_eq!((second, key.is_none()), (first, true));
    }
}
