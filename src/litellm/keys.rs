//! Keys for LiteLLM: variables by which a configuration names them, and files that hold them.
//!
//! LiteLLM reads keys from its environment. A directory of keys holds one file for each, for a container's secrets, and
//! `keys.env` with all of them, for `EnvironmentFile=` or `env_file:`. Not its job: resolving references. Invariants: a file
//! is mode 0600 from its first byte; what another version of the catalog left behind is removed; a reader finds a whole
//! file, old or new.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use zeroize::Zeroizing;

use catalog::model::{Catalog, SecretRef};

use crate::secret::{Resolver, Secret};

/// All keys in one file, as systemd and container engines read them.
const ALL: &str = "keys.env";
/// The ending of the files of single keys.
const ENDING: &str = "key";

/// Under which variable LiteLLM finds each provider's key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyVariables(BTreeMap<Arc<str>, String>);

impl KeyVariables {
    /// The variables that manifests name; keys that stand elsewhere have none.
    pub fn declared(catalog: &Catalog) -> Self {
        let variable = |provider: &catalog::model::Provider| match &provider.api_key {
            Some(SecretRef::Env(name)) => Some(name.clone()),
            _ => None,
        };
        Self(catalog.providers.values().filter_map(|it| Some((it.name.clone(), variable(it)?))).collect())
    }

    /// One for every key: the variable that its manifest names, else one made from the provider's name.
    pub fn for_files(catalog: &Catalog) -> Self {
        let Self(mut all) = Self::declared(catalog);
        let mut taken: BTreeSet<String> = all.values().cloned().collect();
        for provider in catalog.providers.values().filter(|it| it.api_key.is_some()) {
            if all.contains_key(&provider.name) {
                continue;
            }
            let made = made_from(&provider.name);
            let mut name = made.clone();
            for at in 2.. {
                if taken.insert(name.clone()) {
                    break;
                }
                name = format!("{made}_{at}");
            }
            all.insert(provider.name.clone(), name);
        }
        Self(all)
    }

    /// The variable of this provider's key.
    pub fn of(&self, provider: &str) -> Option<&str> {
        self.0.get(provider).map(String::as_str)
    }
}

/// The keys of all enabled providers, by the variables of [`KeyVariables::for_files`], and which cannot be obtained.
pub fn found_keys(resolver: &Resolver, catalog: &Catalog) -> (BTreeMap<String, Secret>, Vec<String>) {
    let variables = KeyVariables::for_files(catalog);
    let (mut keys, mut missing) = (BTreeMap::new(), Vec::new());
    for provider in catalog.providers.values().filter(|it| it.enabled != Some(false)) {
        let (Some(reference), Some(variable)) = (&provider.api_key, variables.of(&provider.name)) else {
            continue;
        };
        match resolver.resolve(reference) {
            Ok(secret) => {
                keys.insert(variable.to_owned(), secret);
            }
            Err(error) => missing.push(format!("the key of {}: {error}", provider.name)),
        }
    }
    (keys, missing)
}

fn made_from(name: &str) -> String {
    let word = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    let name: String = name.chars().map(word).collect();
    let digit = if name.starts_with(|c: char| c.is_ascii_digit()) { "_" } else { "" };
    format!("{digit}{name}_API_KEY")
}

/// A directory of keys that belongs to providerd.
pub struct KeyFiles {
    dir: PathBuf,
}

impl KeyFiles {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Makes the directory hold these keys, by variable, and no others. Says whether anything had to be written, and which
    /// keys `keys.env` leaves out because no line of such a file can hold them alike for all readers.
    ///
    /// # Errors
    /// The directory cannot be made or written.
    pub fn write(&self, keys: &BTreeMap<String, Secret>) -> io::Result<(bool, Vec<String>)> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let mut changed = false;
        let mut odd = Vec::new();
        let mut all = Zeroizing::new(String::new());
        for (variable, key) in keys {
            let key = key.expose();
            changed |=
                write_if_changed(&self.dir.join(format!("{variable}.{ENDING}")), key.as_bytes(), 0o600)?;
            if key.bytes().all(|byte| byte.is_ascii_graphic() && !b"'\"\\#$`".contains(&byte)) {
                all.push_str(&format!("{variable}={key}\n"));
            } else {
                odd.push(variable.clone());
            }
        }
        changed |= write_if_changed(&self.dir.join(ALL), all.as_bytes(), 0o600)?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
            let is_key = path.extension().is_some_and(|ending| ending == ENDING);
            if is_key && !keys.contains_key(stem) {
                fs::remove_file(&path)?;
                changed = true;
            }
        }
        Ok((changed, odd))
    }
}

/// Replaces a file by one of these bytes and this mode, whole, where it differs. Says whether it did.
///
/// # Errors
/// It cannot be read, or not be written beside where it lies.
pub fn write_if_changed(path: &Path, bytes: &[u8], mode: u32) -> io::Result<bool> {
    let same = |path: &Path| -> io::Result<bool> {
        let metadata = fs::metadata(path)?;
        // A file of keys that others may read is written again.
        let right = metadata.permissions().mode() & 0o777 & !mode == 0;
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Ok(right && metadata.len() == length && *Zeroizing::new(fs::read(path)?) == bytes)
    };
    match same(path) {
        Ok(true) => return Ok(false),
        Ok(false) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let written = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).and_then(
        |mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        },
    );
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed.map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_made_of_names() {
        for (name, expected) in [
            ("openai", "OPENAI_API_KEY"),
            ("Google AI", "GOOGLE_AI_API_KEY"),
            ("eu.west-1", "EU_WEST_1_API_KEY"),
            ("1st", "_1ST_API_KEY"),
        ] {
            assert_eq!(made_from(name), expected);
        }
    }

    #[test]
    fn the_directory_holds_these_keys_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let files = KeyFiles::new(dir.path().join("keys"));
        let key = |text: &str| Secret::new(text.to_owned());
        let mut keys = BTreeMap::from([
            ("A_API_KEY".to_owned(), key("sk-fake-a")),
            ("B_API_KEY".to_owned(), key("with 'quote")),
        ]);
        assert_eq!(files.write(&keys).unwrap(), (true, vec!["B_API_KEY".to_owned()]));
        assert_eq!(files.write(&keys).unwrap(), (false, vec!["B_API_KEY".to_owned()]));
        let at = |name: &str| dir.path().join("keys").join(name);
        assert_eq!(fs::read_to_string(at(ALL)).unwrap(), "A_API_KEY=sk-fake-a\n");
        assert_eq!(fs::read_to_string(at("B_API_KEY.key")).unwrap(), "with 'quote");
        for name in [ALL, "A_API_KEY.key", "B_API_KEY.key"] {
            assert_eq!(fs::metadata(at(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        assert_eq!(fs::metadata(dir.path().join("keys")).unwrap().permissions().mode() & 0o777, 0o700);
        // Opened to others, it is closed again; what is gone from the catalog goes.
        fs::set_permissions(at("A_API_KEY.key"), fs::Permissions::from_mode(0o644)).unwrap();
        keys.remove("B_API_KEY");
        assert!(files.write(&keys).unwrap().0);
        assert_eq!(fs::metadata(at("A_API_KEY.key")).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!at("B_API_KEY.key").exists());
    }
}
