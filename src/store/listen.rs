//! Hints that another program changed what this program goes by, by LISTEN/NOTIFY.
//!
//! A hint carries no data. Invariant: a lost connection costs one extra hint, never a missed one: after every
//! (re)connect a hint is given, because what happened meanwhile is unknown. Through a transaction-pooling PgBouncer
//! LISTEN does not work; the periodic resync does then what the hints would have done sooner.

use std::time::Duration;

use sqlx::postgres::{PgListener, PgPoolOptions};

use super::Store;

/// Between attempts to connect; doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Gives hints one at a time; see [`Store::listen_drift`] and [`Store::listen_gateway`].
pub struct HintListener {
    store: Store,
    channel: &'static str,
    listener: Option<PgListener>,
    pause: Duration,
}

impl Store {
    /// A listener for drift, with a connection of its own, which is opened by the first [`HintListener::hint`].
    pub fn listen_drift(&self) -> HintListener {
        self.listen("providerd_drift")
    }

    /// The same for what a gateway serves by: a daemon applied a catalog, or what is stored for the gateway was
    /// changed by another program.
    pub fn listen_gateway(&self) -> HintListener {
        self.listen("providerd_gateway")
    }

    pub(super) fn listen(&self, channel: &'static str) -> HintListener {
        HintListener { store: self.clone(), channel, listener: None, pause: BACKOFF.0 }
    }
}

impl HintListener {
    /// Waits until there is a reason to look again. Cancel-safe: a hint that was not awaited to its end is given later
    /// or covered by the hint after a reconnect.
    pub async fn hint(&mut self) {
        if let Some(listener) = &mut self.listener {
            match listener.try_recv().await {
                Ok(Some(_)) => {
                    // One transaction may touch several tables: what has arrived already is the same hint.
                    while listener.next_buffered().is_some() {}
                    return;
                }
                // The listener does not see every way in which a connection dies: build a new one.
                Ok(None) | Err(_) => self.listener = None,
            }
        }
        self.connect().await;
    }

    /// Waits for one notice and returns its text; `None` after each (re)connect, when what was said meanwhile is
    /// unknown. Cancel-safe.
    pub async fn notice(&mut self) -> Option<String> {
        if let Some(listener) = &mut self.listener {
            match listener.try_recv().await {
                Ok(Some(notice)) => return Some(notice.payload().to_owned()),
                Ok(None) | Err(_) => self.listener = None,
            }
        }
        self.connect().await;
        None
    }

    /// Opens the connection, however often that takes.
    async fn connect(&mut self) {
        loop {
            match self.open().await {
                Ok(listener) => {
                    self.listener = Some(listener);
                    self.pause = BACKOFF.0;
                    return;
                }
                Err(error) => {
                    tracing::debug!(error = %super::StoreError::from(error), "listening failed");
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(BACKOFF.1);
                }
            }
        }
    }

    async fn open(&self) -> Result<PgListener, sqlx::Error> {
        // A pool of one, so that the listener takes none of the store's connections.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with(self.store.options.clone());
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        listener.listen(self.channel).await?;
        Ok(listener)
    }
}
