//! Where the BYOK key comes from: the environment, a file, a systemd credential, or made once.
//!
//! Its job: find or make the key. Not its job: deciding whether one is needed.
//!
//! Invariant: a key file that exists is never written to, whatever it holds.

use std::{
    fmt, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use zeroize::Zeroizing;

use super::{Byok, KeyError, resolve};

/// The environment variable that holds the BYOK key.
pub const BYOK_ENV: &str = "BYOK_ENCRYPTION_KEY";
/// The systemd credential that holds the BYOK key.
pub const BYOK_CREDENTIAL: &str = "byok_encryption_key";

/// Where a BYOK key was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `BYOK_ENCRYPTION_KEY`.
    Env,
    /// `keys.file`, or the generated one of the embedded database.
    File(PathBuf),
    /// The systemd credential, at this path.
    Credential(PathBuf),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env => f.write_str(BYOK_ENV),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Credential(_) => write!(f, "credential {BYOK_CREDENTIAL}"),
        }
    }
}

/// Why no BYOK key could be read. Names the place, never the value.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{from}: no usable BYOK key")]
    Key {
        from: Source,
        #[source]
        source: KeyError,
    },
    #[error("{from}: cannot read the BYOK key")]
    Read {
        from: Source,
        #[source]
        source: io::Error,
    },
    #[error("{}: cannot write a new BYOK key", .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The BYOK key from the first of: the environment's value, `keys.file`, the systemd credential. A
/// variable that is set but blank counts as unset, as container tools produce it. `None` if there is none.
///
/// # Errors
/// [`LoadError`] if a place has a key that cannot be read or is not valid; later places are not tried then.
pub fn load_byok(
    env: Option<&str>,
    file: Option<&Path>,
    credentials_dir: Option<&Path>,
) -> Result<Option<(Byok, Source)>, LoadError> {
    if let Some(text) = env.filter(|text| !text.trim().is_empty()) {
        let byok = Byok::parse(text).map_err(|source| LoadError::Key { from: Source::Env, source })?;
        return Ok(Some((byok, Source::Env)));
    }
    if let Some(path) = file {
        return load(Source::File(path.to_owned()), path).map(Some);
    }
    if let Some(path) = credentials_dir.map(|dir| dir.join(BYOK_CREDENTIAL))
        && path.exists()
    {
        return load(Source::Credential(path.clone()), &path).map(Some);
    }
    Ok(None)
}

/// The BYOK key in a file.
///
/// # Errors
/// [`LoadError`] if the file cannot be read or holds no key.
pub fn load_byok_file(path: &Path) -> Result<Byok, LoadError> {
    load(Source::File(path.to_owned()), path).map(|(byok, _)| byok)
}

fn load(from: Source, path: &Path) -> Result<(Byok, Source), LoadError> {
    let bytes = match resolve::read_small(path) {
        Ok(bytes) => bytes,
        Err(source) => return Err(LoadError::Read { from, source }),
    };
    let parsed =
        std::str::from_utf8(&bytes).map_err(|_| KeyError::NotBase64 { index: 1 }).and_then(Byok::parse);
    match parsed {
        Ok(byok) => Ok((byok, from)),
        Err(source) => Err(LoadError::Key { from, source }),
    }
}

/// The key in `path`, or a new one written there, mode 0600, complete or not at all. The flag says
/// whether it is new. Where several processes come at once, all get the same key.
///
/// # Errors
/// [`LoadError`]; an existing file that holds no key is an error and stays as it is.
pub fn load_or_generate(path: &Path) -> Result<(Byok, bool), LoadError> {
    match fs::symlink_metadata(path) {
        Ok(_) => return load_byok_file(path).map(|byok| (byok, false)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(LoadError::Read { from: Source::File(path.to_owned()), source }),
    }
    // Before the embedded database made it, perhaps: as that would, so that its server, which is not
    // root's, can pass through.
    if let Some(dir) = path.parent() {
        let mode = if nix::unistd::geteuid().is_root() { 0o711 } else { 0o700 };
        let made = fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        made.map_err(|source| LoadError::Write { path: path.to_owned(), source })?;
    }
    let write_error = |source| LoadError::Write { path: path.to_owned(), source };
    let created = create(path).map_err(write_error)?;
    load_byok_file(path).map(|byok| (byok, created))
}

/// Writes a new key unless the file appeared meanwhile; `false` if it did.
fn create(path: &Path) -> io::Result<bool> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut temp = path.as_os_str().to_owned();
    temp.push(format!(".new-{}", uuid::Uuid::new_v4().simple()));
    let temp = PathBuf::from(temp);

    let result = write_new(&temp).and_then(|()| match fs::hard_link(&temp, path) {
        // A hard link, unlike a rename, never replaces a key that another process wrote first.
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(_) => rename_new(&temp, path),
    });
    // The leftover of a crash right here is a second name of the same key, mode 0600.
    let _ = fs::remove_file(&temp);
    let created = result?;
    fs::File::open(dir)?.sync_all()?;
    Ok(created)
}

/// For file systems without hard links.
fn rename_new(temp: &Path, path: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, temp, CWD, path, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn write_new(path: &Path) -> io::Result<()> {
    let key = Byok::generate();
    let line = Zeroizing::new(format!("{}\n", key.expose()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::secret::Secret;

    const KEY: &str = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=";

    #[test]
    fn the_first_place_that_has_a_key_wins() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, format!("{KEY}\n")).unwrap();
        let check = |env: Option<&str>, file: Option<&Path>, credentials: Option<&Path>, expected| {
            let found = load_byok(env, file, credentials).unwrap();
            assert_eq!(found.map(|(_, source)| source), expected);
        };
        check(None, None, None, None);
        check(Some(" "), None, Some(dir.path()), None);
        check(Some(KEY), Some(&file), None, Some(Source::Env));
        check(Some(""), Some(&file), None, Some(Source::File(file.clone())));
        let credential = dir.path().join(BYOK_CREDENTIAL);
        fs::write(&credential, KEY).unwrap();
        check(None, None, Some(dir.path()), Some(Source::Credential(credential.clone())));
        check(None, Some(&file), Some(dir.path()), Some(Source::File(file.clone())));
    }

    #[test]
    fn a_place_without_a_usable_key_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        assert!(matches!(load_byok(None, Some(&file), None), Err(LoadError::Read { .. })));
        fs::write(&file, "").unwrap();
        assert!(matches!(
            load_byok(None, Some(&file), None),
            Err(LoadError::Key { source: KeyError::Empty, .. })
        ));
        assert!(load_or_generate(&file).is_err());
        assert_eq!(fs::read(&file).unwrap(), b"", "an existing file is never written to");
        assert!(matches!(load_byok(Some("x"), None, None), Err(LoadError::Key { from: Source::Env, .. })));
    }

    #[test]
    fn a_rename_does_not_replace() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, path) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("path"));
        fs::write(&one, "1").unwrap();
        fs::write(&two, "2").unwrap();
        assert!(rename_new(&one, &path).unwrap());
        assert!(!rename_new(&two, &path).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }

    #[test]
    fn a_key_is_generated_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("state/byok.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| load_or_generate(&file).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(keys.iter().filter(|(_, created)| *created).count(), 1);
        let token = keys[0].0.encrypt(&Secret::copy_of("x"));
        assert!(keys.iter().all(|(byok, _)| byok.decrypt(&token).is_ok()));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }
}
