//! The settings of the daemon and the commands: defaults, one TOML file and the environment, in layers.
//!
//! Job: read all layers, find every mistake of all of them at once, and give back typed values. Not its
//! job: opening what the settings name (files, databases, sockets). Invariant: every key has its default,
//! its unit and its meaning in exactly one place, [`settings`], from which the reference is generated;
//! secrets are held in types that do not print themselves.
//!
//! A key `section.key` is, from weakest to strongest: its default, the settings file, the environment
//! variable `PROVIDERD_SECTION__KEY`. For `database.url`, `DATABASE_URL` is stronger still, and a command
//! line option is strongest (see [`Settings::set_database_url`]). An empty variable counts as unset.

mod credentials;
mod egress;
mod git;
mod health;
mod layers;
pub mod reference;
mod settings;
mod value;

use std::{
    fmt,
    path::{Path, PathBuf},
};

pub use credentials::credentials_dir;
pub use git::{GitTransport, address as git_address};
pub use layers::SettingsError;
pub use settings::{
    Database, Egress, Gateway, Health, Keys, LiteLlmExport, Log, Manifests, Metrics, Pages, Reconcile,
    Retention, Server, Settings, Source, Usage,
};
pub use value::{
    GitVerify, LogFormat, PruneLimitSetting, Setting, TokenHash, UnhealthyPolicy, UsageDurability,
    UsageWhenFull,
};

/// Read when no file is named on the command line; it need not exist.
pub const DEFAULT_FILE: &str = "/etc/providerd/providerd.toml";

/// All mistakes in the settings, for error chains; prints one paragraph per mistake.
#[derive(Debug, thiserror::Error)]
pub struct SettingsErrors(pub Vec<SettingsError>);

impl fmt::Display for SettingsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl From<Vec<SettingsError>> for SettingsErrors {
    fn from(errors: Vec<SettingsError>) -> Self {
        Self(errors)
    }
}

/// The process environment; variables that are not UTF-8 are left out, since no setting can be one.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Where providerd keeps what must survive a restart: `$STATE_DIRECTORY` (systemd's; the first, where
/// there are several), else `$XDG_STATE_HOME/providerd`, else `./.providerd`.
#[must_use]
pub fn state_dir() -> PathBuf {
    state_dir_from(|name| std::env::var_os(name).map(PathBuf::from))
}

fn state_dir_from(var: impl Fn(&str) -> Option<PathBuf>) -> PathBuf {
    let var = |name| var(name).filter(|path| !path.as_os_str().is_empty());
    if let Some(directories) = var("STATE_DIRECTORY") {
        // systemd separates several directories by colons; the unit names one.
        let first = directories.to_str().and_then(|text| text.split(':').next()).map(PathBuf::from);
        return first.unwrap_or(directories);
    }
    // The XDG specification asks readers to ignore a relative path.
    match var("XDG_STATE_HOME").filter(|path| path.is_absolute()) {
        Some(home) => home.join("providerd"),
        None => PathBuf::from(".providerd"),
    }
}

impl Settings {
    /// Reads the settings from `file` (which must exist; `None`: [`DEFAULT_FILE`], if it does) and from
    /// the environment variables `env` (see [`environment`]).
    ///
    /// # Errors
    /// Every mistake of every layer, each with its place.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, Vec<SettingsError>> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => Ok(None),
            Err(error) => Err(SettingsError::unreadable(path, &error)),
        };
        Self::from_layers(path, text, env)
    }

    /// The defaults alone.
    ///
    /// # Errors
    /// None in practice: a test proves that every default is valid.
    pub fn defaults() -> Result<Self, Vec<SettingsError>> {
        Self::from_layers(Path::new(""), Ok(None), std::iter::empty())
    }
}

/// The candidate that `word` was probably meant to be. Close enough is one slip in three letters, which
/// finds transpositions in short words without proposing unrelated ones.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_its_variables() {
        let check = |state: Option<&str>, xdg: Option<&str>, expected: &str| {
            let found = state_dir_from(|name| match name {
                "STATE_DIRECTORY" => state.map(PathBuf::from),
                _ => xdg.map(PathBuf::from),
            });
            assert_eq!(found, Path::new(expected));
        };
        check(None, None, ".providerd");
        check(Some(""), Some(""), ".providerd");
        check(None, Some("/home/u/.local/state"), "/home/u/.local/state/providerd");
        check(None, Some("relative"), ".providerd");
        check(Some("/var/lib/providerd"), Some("/x"), "/var/lib/providerd");
        check(Some("/var/lib/providerd:/var/lib/other"), None, "/var/lib/providerd");
    }

    #[test]
    fn guesses_are_near() {
        let check = |word: &str, expected: Option<&str>| {
            assert_eq!(
                nearest(word, ["interval", "timeout", "url", "schema"].into_iter()),
                expected,
                "{word}"
            );
        };
        check("intervall", Some("interval"));
        check("time_out", Some("timeout"));
        check("ulr", Some("url"));
        check("nonsense", None);
    }
}
