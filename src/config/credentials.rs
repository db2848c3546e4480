//! Secrets that come as files: named by a setting, or given by systemd as credentials.

use std::path::PathBuf;

use super::Source;

/// Systemd credentials of `source.git`.
const GIT_SSH_KEY: &str = "git_ssh_key";
const GIT_TOKEN: &str = "git_token";
const GIT_WEBHOOK_SECRET: &str = "git_webhook_secret";

/// Where systemd puts credentials.
pub fn credentials_dir() -> Option<PathBuf> {
    std::env::var_os("CREDENTIALS_DIRECTORY").map(Into::into)
}

/// The file of a setting, else that of a systemd credential.
fn secret_file(set: &Option<PathBuf>, credential: &str) -> Option<PathBuf> {
    let of_systemd = || credentials_dir().map(|dir| dir.join(credential)).filter(|path| path.exists());
    set.clone().or_else(of_systemd)
}

impl Source {
    /// The key that opens the repository over SSH.
    pub fn ssh_key_file(&self) -> Option<PathBuf> {
        secret_file(&self.git_ssh_key, GIT_SSH_KEY)
    }

    /// The token that opens the repository over HTTPS.
    pub fn token_file(&self) -> Option<PathBuf> {
        secret_file(&self.git_token, GIT_TOKEN)
    }

    /// The secret that the Git host signs webhooks with.
    pub fn webhook_secret_file(&self) -> Option<PathBuf> {
        secret_file(&self.git_webhook_secret, GIT_WEBHOOK_SECRET)
    }

    /// All of these.
    pub fn secret_files(&self) -> impl Iterator<Item = PathBuf> {
        [self.ssh_key_file(), self.token_file(), self.webhook_secret_file()].into_iter().flatten()
    }
}
