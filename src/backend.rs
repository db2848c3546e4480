//! What `run` and the one-shot commands share: from settings to an open database with its keys.
//!
//! Invariant: without the right BYOK key nothing is ever written, because a [`Backend`] exists only after the
//! canary has been opened.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use secrecy::{ExposeSecret as _, SecretString};
use url::Url;
use zeroize::Zeroizing;

use crate::{
    config::{self, Settings, SettingsErrors, credentials_dir},
    embedded::Embedded,
    secret::{self, Byok, FingerprintKey, Keyring, Resolver, Source},
    source::pull,
    store::{self, Store, StoreError},
};

/// Where the canary and the sealed fingerprint key stand in `providerd.meta`.
const CANARY: &str = "canary";
const FINGERPRINT_KEY: &str = "fingerprint_key";

/// The systemd credential that keeps a password out of the settings.
const DATABASE_PASSWORD: &str = "database_password";

/// The settings of a file and the environment, with what the command line overrides.
pub fn settings(
    file: Option<&Path>,
    manifests: Option<&Path>,
    database: Option<&str>,
) -> anyhow::Result<Settings> {
    let mut settings = Settings::load(file, config::environment()).map_err(SettingsErrors)?;
    match manifests {
        // A directory that the settings name is meant as it is.
        Some(path) => {
            settings.manifests.path = path.to_owned();
            settings.source.git_url = None;
        }
        None => {
            if let Some(pull) = pull::PullOptions::of(&settings) {
                settings.manifests.path = pull.manifests();
            }
        }
    }
    if let Some(url) = database {
        settings.set_database_url(url);
    }
    Ok(settings)
}

/// The BYOK key of the environment, if it is there.
pub fn byok_env() -> Option<Zeroizing<String>> {
    crate::process::take_env(secret::BYOK_ENV)
}

/// Whether a BYOK key is made where the embedded database has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewKey {
    Make,
    Refuse,
}

/// The BYOK key; with the embedded database one is made on first use, where `new` allows it.
///
/// # Errors
/// No key with an external database, or an invalid key. The message says how to make one.
pub fn byok(
    settings: &Settings,
    env: Option<Zeroizing<String>>,
    new: NewKey,
) -> anyhow::Result<(Byok, Source)> {
    let env = env.as_ref().map(|text| text.as_str());
    if let Some(found) = secret::load_byok(env, settings.keys.file.as_deref(), credentials_dir().as_deref())?
    {
        return Ok(found);
    }
    anyhow::ensure!(
        settings.database.url.is_none(),
        "BYOK_ENCRYPTION_KEY is not set, and an external database is used\n\
         hint: make a key with `providerd key generate`, keep it safe, and set it as BYOK_ENCRYPTION_KEY, \
         `keys.file` or the systemd credential `byok_encryption_key`"
    );
    let path = config::state_dir().join("byok.key");
    anyhow::ensure!(
        new == NewKey::Make || std::fs::symlink_metadata(&path).is_ok(),
        "there is no BYOK key: BYOK_ENCRYPTION_KEY is not set, and {} does not exist\n\
         hint: run this where `providerd run` was started, or with its STATE_DIRECTORY; `key seal --new` makes a key",
        path.display()
    );
    let (byok, fresh) = secret::load_or_generate(&path)?;
    if fresh {
        tracing::info!(path = %path.display(), "made a BYOK key for the embedded database; back it up");
    }
    Ok((byok, Source::File(path)))
}

/// What a command is going to do with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Read only: an external database is not even migrated. One that was never migrated is read as it stands.
    Look,
    /// Read and write: what is missing in the database is added first.
    Write,
}

/// An open database whose keys open.
pub struct Backend {
    pub store: Store,
    pub keyring: Arc<Keyring>,
    pub resolver: Arc<Resolver>,
    /// The embedded PostgreSQL, where no URL was given.
    pub embedded: Option<Embedded>,
}

/// That there is a database to look at: one that is set, or one of providerd's own.
///
/// # Errors
/// There is none; the message says where it was looked for.
pub fn has_database(settings: &Settings) -> anyhow::Result<()> {
    let own = config::state_dir().join("postgres");
    anyhow::ensure!(
        settings.database.url.is_some() || std::fs::symlink_metadata(&own).is_ok(),
        "there is no database: no database.url is set, and {} does not exist\n\
         hint: run this where `providerd run` was started, or with its STATE_DIRECTORY, or set DATABASE_URL",
        own.display()
    );
    Ok(())
}

/// Starts the embedded PostgreSQL where no URL is set; the URL to connect to in any case.
pub async fn database(settings: &Settings) -> anyhow::Result<(SecretString, Option<Embedded>)> {
    if let Some(url) = &settings.database.url {
        return Ok((with_password(url, credentials_dir().as_deref())?, None));
    }
    let embedded = Embedded::start(&config::state_dir()).await?;
    Ok((embedded.url().into(), Some(embedded)))
}

/// The URL with the password of the systemd credential `database_password`, where it has none itself.
fn with_password(url: &SecretString, credentials: Option<&Path>) -> anyhow::Result<SecretString> {
    let Some(path) = credentials.map(|dir| dir.join(DATABASE_PASSWORD)).filter(|path| path.exists()) else {
        return Ok(url.clone());
    };
    let mut parsed = Url::parse(url.expose_secret()).context("the database URL is not valid")?;
    if parsed.password().is_some() || parsed.query_pairs().any(|(name, _)| name == "password") {
        return Ok(url.clone());
    }
    let text = Zeroizing::new(
        std::fs::read_to_string(&path)
            .with_context(|| format!("the credential `{DATABASE_PASSWORD}` cannot be read"))?,
    );
    let password = text.trim_end_matches(['\n', '\r']);
    anyhow::ensure!(
        parsed.set_password(Some(password)).is_ok(),
        "the credential `{DATABASE_PASSWORD}` cannot be used with a database URL that names no host\n\
         hint: write it as postgres://user@host/name"
    );
    Ok(String::from(parsed).into())
}

/// Migrates the database and proves that the key opens what it holds.
///
/// # Errors
/// [`StoreError`] where trying again may help; anything else is a mistake that the operator must fix.
pub async fn prepare(store: &Store, byok: &Byok) -> anyhow::Result<Keyring> {
    let report = store.migrate().await?;
    if !report.applied.is_empty() {
        tracing::info!(migrations = report.applied.len(), "migrated the database");
    }
    let canary = store.meta_set_if_absent(CANARY, &secret::create_canary(byok)).await?;
    secret::check_canary(byok, &canary)?;
    let sealed = store.meta_set_if_absent(FINGERPRINT_KEY, &FingerprintKey::generate().seal(byok)).await?;
    let fp = FingerprintKey::open(byok, &sealed).context("the stored fingerprint key does not open")?;
    Ok(Keyring { byok: byok.clone(), fp })
}

/// The token that the right BYOK key opens; none before the first start.
///
/// # Errors
/// The database cannot be read.
pub async fn canary(store: &Store) -> Result<Option<String>, StoreError> {
    store.meta_get(CANARY).await
}

/// What reads the key columns of this database; `None` before the first start, and where the BYOK key is another's.
///
/// # Errors
/// The database cannot be read.
pub async fn keyring(store: &Store, byok: &Byok) -> Result<Option<Keyring>, StoreError> {
    let sealed = store.meta_get(FINGERPRINT_KEY).await?;
    let fp = sealed.and_then(|sealed| FingerprintKey::open(byok, &sealed).ok());
    Ok(fp.map(|fp| Keyring { byok: byok.clone(), fp }))
}

/// Encrypts providerd's own two tokens with the first BYOK key: the canary last, because it is what lets a daemon start.
///
/// # Errors
/// As [`prepare`].
pub async fn rotate_own(store: &Store, byok: &Byok) -> anyhow::Result<()> {
    for name in [FINGERPRINT_KEY, CANARY] {
        let token = store.meta_get(name).await?.unwrap_or_default();
        let (secret, is_current) = byok.decrypt_primary(&token)?;
        if !is_current {
            store.meta_set(name, &byok.encrypt(&secret)).await?;
        }
    }
    Ok(())
}

/// As [`prepare`], without a single write.
///
/// # Errors
/// Also [`StoreError::NotMigrated`], for a database that an older providerd has migrated.
async fn look(store: &Store, byok: &Byok) -> anyhow::Result<(Store, Keyring)> {
    let fresh = || Keyring { byok: byok.clone(), fp: FingerprintKey::generate() };
    if store.layout().await? == store::Layout::Absent {
        return Ok((store.blank(), fresh()));
    }
    if let Some(canary) = store.meta_get(CANARY).await? {
        secret::check_canary(byok, &canary)?;
    }
    let Some(sealed) = store.meta_get(FINGERPRINT_KEY).await? else { return Ok((store.clone(), fresh())) };
    let fp = FingerprintKey::open(byok, &sealed).context("the stored fingerprint key does not open")?;
    Ok((store.clone(), Keyring { byok: byok.clone(), fp }))
}

/// Resolves key references as these settings say.
pub fn resolver(settings: &Settings, byok: Byok, source: &Source) -> Resolver {
    let mut resolver = Resolver::new(settings.keys.dir.clone(), credentials_dir(), Some(byok));
    if let Source::File(path) | Source::Credential(path) = source {
        resolver.protected.push(path.clone());
    }
    resolver.allow_env.clone_from(&settings.keys.allow_env);
    resolver.protected.extend(settings.source.secret_files());
    resolver.protected.extend(own_files(settings));
    resolver.protected_dirs.push(config::state_dir());
    resolver
}

/// Every file that the settings or the environment name for the daemon itself; its credentials the resolver knows.
fn own_files(settings: &Settings) -> Vec<PathBuf> {
    let (git, server) = (&settings.source, &settings.server);
    let set = [
        &settings.file,
        &settings.keys.file,
        &git.git_known_hosts,
        &git.git_allowed_signers,
        &server.tls_cert,
        &server.tls_key,
    ];
    let mut files: Vec<PathBuf> = set.into_iter().flatten().cloned().collect();
    files.extend(settings.egress.ca_files.iter().cloned());
    // Where the PostgreSQL driver looks for passwords and keys.
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    files.extend(["PGPASSFILE", "PGSSLKEY", "PGSSLCERT"].into_iter().filter_map(variable));
    files.extend(variable("HOME").map(|home| home.join(".pgpass")));
    let url = settings.database.url.as_ref().and_then(|url| Url::parse(url.expose_secret()).ok());
    for (name, value) in url.iter().flat_map(Url::query_pairs) {
        if matches!(&*name, "sslkey" | "sslcert" | "passfile") {
            files.push(PathBuf::from(&*value));
        }
    }
    files
}

/// How to connect.
pub fn store_settings(settings: &Settings, url: SecretString) -> store::StoreSettings {
    store::StoreSettings {
        schema: settings.database.schema.clone(),
        max_connections: settings.database.max_connections.get(),
        acquire_timeout: settings.database.connect_timeout,
        ..store::StoreSettings::new(url)
    }
}

impl Backend {
    /// Opens everything a one-shot command needs.
    pub async fn open(
        settings: &Settings,
        env: Option<Zeroizing<String>>,
        access: Access,
    ) -> anyhow::Result<Self> {
        if access == Access::Look {
            has_database(settings)?;
        }
        let new = if access == Access::Look { NewKey::Refuse } else { NewKey::Make };
        let (byok, source) = byok(settings, env, new)?;
        let (url, embedded) = database(settings).await?;
        let opened = async {
            let store = Store::connect(&store_settings(settings, url)).await?;
            // The embedded database is ours alone, so there is no other program to be careful of.
            if access == Access::Look && embedded.is_none() {
                return look(&store, &byok).await;
            }
            let keyring = prepare(&store, &byok).await?;
            anyhow::Ok((store, keyring))
        };
        match opened.await {
            Ok((store, keyring)) => {
                let resolver = Arc::new(resolver(settings, byok, &source));
                Ok(Self { store, keyring: Arc::new(keyring), resolver, embedded })
            }
            Err(error) => {
                if let Some(embedded) = embedded {
                    embedded.stop().await?;
                }
                Err(error)
            }
        }
    }

    /// Closes connections and stops the embedded PostgreSQL, unless another process uses it.
    pub async fn close(self) -> anyhow::Result<()> {
        self.store.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await?;
        }
        Ok(())
    }
}

/// Whether trying again later may help.
pub fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(StoreError::is_transient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_credential_fills_a_gap_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(DATABASE_PASSWORD), "p/w:1@%\n").unwrap();
        let check = |url: &str, dir: Option<&Path>, expected: &str| {
            let found = with_password(&url.into(), dir);
            let found = found.map_or_else(|error| error.to_string(), |it| it.expose_secret().to_owned());
            assert!(found.starts_with(expected), "{url}: {found}");
        };
        let given = Some(dir.path());
        check("postgres://me@db/ops", None, "postgres://me@db/ops");
        check("postgres://me@db/ops", given, "postgres://me:p%2Fw%3A1%40%");
        check("postgres://me:own@db/ops", given, "postgres://me:own@db/ops");
        check("postgres://me@db/ops?password=own", given, "postgres://me@db/ops?password=own");
        check("postgres:///ops?host=/run", given, "the credential `database_password` cannot be used");
        let other = tempfile::tempdir().unwrap();
        check("postgres://me@db/ops", Some(other.path()), "postgres://me@db/ops");
    }
}
