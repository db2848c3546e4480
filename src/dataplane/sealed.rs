//! The last picture on disk, so that a gateway starts while PostgreSQL is away.
//!
//! Sealed with the BYOK key: what it is made of names providers, prices and consumers' hashes, and holds keys as
//! ciphertext. Not its job: when it is written. Invariants: it is written beside and renamed over, mode 0600; one that
//! does not open, is of another database, or is too old is refused by name.

use std::{
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use gateway::picture::PictureInput;
use serde::{Deserialize, Serialize};

use crate::secret::{Byok, Secret};

/// Its name in the state directory.
pub const FILE: &str = "picture.sealed";
/// Larger than the picture of 100,000 models.
const MAX: u64 = 512 * 1024 * 1024;

/// Why there is no picture to start from.
#[derive(Debug, thiserror::Error)]
pub enum SealedError {
    #[error("{}: cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: does not open with the BYOK key", .path.display())]
    Closed { path: PathBuf },
    #[error("{}: cannot be understood", .path.display())]
    Damaged { path: PathBuf },
    #[error("{}: is of another database", .path.display())]
    Foreign { path: PathBuf },
    #[error("{}: is older than gateway.stale_after", .path.display())]
    Stale { path: PathBuf },
}

#[derive(Serialize, Deserialize)]
struct Sealed {
    /// Which database it was read from.
    database: String,
    input: PictureInput,
}

/// Writes the picture of `database` below `state`.
///
/// # Errors
/// The file cannot be written.
pub fn seal(state: &Path, byok: &Byok, database: &str, input: &PictureInput) -> io::Result<()> {
    let text = serde_json::to_string(&Sealed { database: database.to_owned(), input: input.clone() })
        .map_err(io::Error::other)?;
    let token = byok.encrypt(&Secret::new(text));
    let (path, beside) = (state.join(FILE), state.join(".picture.sealed.new"));
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(token.as_bytes())?;
    file.sync_data()?;
    std::fs::rename(&beside, &path)
}

/// Reads it back. `database`: the one that it must be of, where that is known; `now`: Unix seconds.
///
/// # Errors
/// [`SealedError`]; `None` where there is no file.
pub fn unseal(
    state: &Path,
    byok: &Byok,
    database: Option<&str>,
    stale_after: Duration,
    now: i64,
) -> Result<Option<PictureInput>, SealedError> {
    let path = state.join(FILE);
    let unreadable = |source| SealedError::Read { path: path.clone(), source };
    let token = match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
        Ok(found) if found.len() > MAX => return Err(SealedError::Damaged { path }),
        Ok(_) => std::fs::read_to_string(&path).map_err(unreadable)?,
    };
    let text = byok.decrypt(&token).map_err(|_| SealedError::Closed { path: path.clone() })?;
    let sealed: Sealed =
        serde_json::from_str(text.expose()).map_err(|_| SealedError::Damaged { path: path.clone() })?;
    if database.is_some_and(|database| database != sealed.database) {
        return Err(SealedError::Foreign { path });
    }
    let oldest = now.saturating_sub(i64::try_from(stale_after.as_secs()).unwrap_or(i64::MAX));
    if sealed.input.taken_at < oldest {
        return Err(SealedError::Stale { path });
    }
    Ok(Some(sealed.input))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_picture_opens_for_its_own_database_while_it_is_young() {
        let dir = tempfile::tempdir().unwrap();
        let byok = Byok::parse(Byok::generate().expose()).unwrap();
        let other = Byok::parse(Byok::generate().expose()).unwrap();
        let day = Duration::from_secs(86_400);
        assert!(unseal(dir.path(), &byok, None, day, 1_000).unwrap().is_none());
        let input = PictureInput { revision: "r".to_owned(), taken_at: 1_000, ..PictureInput::default() };
        seal(dir.path(), &byok, "db-1", &input).unwrap();
        assert_eq!(unseal(dir.path(), &byok, Some("db-1"), day, 2_000).unwrap(), Some(input.clone()));
        assert_eq!(unseal(dir.path(), &byok, None, day, 2_000).unwrap(), Some(input));
        assert!(matches!(
            unseal(dir.path(), &byok, Some("db-2"), day, 2_000),
            Err(SealedError::Foreign { .. })
        ));
        assert!(matches!(unseal(dir.path(), &byok, None, day, 90_000), Err(SealedError::Stale { .. })));
        assert!(matches!(unseal(dir.path(), &other, None, day, 2_000), Err(SealedError::Closed { .. })));
        std::fs::write(dir.path().join(FILE), "garbage").unwrap();
        assert!(matches!(unseal(dir.path(), &byok, None, day, 2_000), Err(SealedError::Closed { .. })));
    }
}
