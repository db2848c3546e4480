//! The embedded database: a real PostgreSQL that providerd starts and stops itself.
//!
//! Its job: find PostgreSQL's programs, make a cluster once, keep exactly one server of it running while
//! any process uses it. Not its job: SQL and migrations.
//!
//! Invariant: a cluster is whole or absent, never half made; at most one server runs on it; only the
//! cluster's owner and root can connect, over a Unix socket; it is as durable as any PostgreSQL.

mod binaries;
mod cluster;
mod error;
mod instance;
mod lock;
mod place;
mod server;
mod wire;

use std::path::{Path, PathBuf};

pub use error::EmbeddedError;
use instance::Instance;

/// A running private PostgreSQL that this process is a user of.
///
/// Dropping it stops the server too, if no other process uses it, but blocks the thread and reports none of
/// an error: prefer [`Embedded::stop`]. A process that dies leaves the server running; the next start takes
/// it over.
#[derive(Debug)]
pub struct Embedded {
    instance: Instance,
}

impl Embedded {
    /// Makes the cluster if there is none, and starts its server unless it runs already.
    ///
    /// # Errors
    /// [`EmbeddedError`] says what to do. No process and no half-made cluster stays behind.
    pub async fn start(state_dir: &Path) -> Result<Self, EmbeddedError> {
        let state_dir = state_dir.to_owned();
        let instance = blocking(move || Instance::start(&state_dir)).await?;
        Ok(Self { instance })
    }

    /// Starts the server again if it has died; `true` if it had.
    ///
    /// # Errors
    /// As [`Embedded::start`].
    pub async fn revive(&self) -> Result<bool, EmbeddedError> {
        let instance = self.instance.clone();
        blocking(move || instance.revive()).await
    }

    /// Stops the server, unless another process uses it too. `true` if it was stopped. Takes up to five
    /// seconds.
    ///
    /// # Errors
    /// [`EmbeddedError`] if it could not be stopped; it is then as safe as a crashed one.
    pub async fn stop(self) -> Result<bool, EmbeddedError> {
        let instance = self.instance;
        blocking(move || instance.stop()).await
    }

    /// `postgres://providerd@localhost/providerd?host=<socket directory>`.
    pub fn url(&self) -> String {
        self.instance.url()
    }

    /// The cluster's data directory. It may lie outside the state directory, if providerd runs as root.
    pub fn data_dir(&self) -> &Path {
        self.instance.data_dir()
    }

    /// The server's log; never larger than a few MiB.
    pub fn log_path(&self) -> PathBuf {
        self.instance.log_path()
    }

    /// What holds everything of the cluster: data, log, sockets and locks.
    pub fn base_dir(&self) -> &Path {
        self.instance.base_dir()
    }

    /// The server ran already, started by another process.
    pub fn was_running(&self) -> bool {
        self.instance.was_running()
    }

    /// The cluster was made by this start.
    pub fn initialised(&self) -> bool {
        self.instance.initialised()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EmbeddedError> + Send + 'static,
) -> Result<T, EmbeddedError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(EmbeddedError::Interrupted(error)))
}
