//! The lease that admits one reconciling daemon: taken, renewed, given back.
//!
//! Not its job: what the leader does. Invariant: a daemon that cannot renew steps down no later than the database lets
//! another daemon take over.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;

use crate::store::{Lease, Result, Store, StoreError};

/// Name of the lease that admits one reconciling daemon.
const LEASE: &str = "reconcile";
/// A crashed leader is replaced within this time plus one look (below), so within 10 s.
const LEASE_TTL: Duration = Duration::from_secs(8);
/// Three tries to renew fit into the time for which the lease is good.
const LEASE_RENEW: Duration = Duration::from_millis(2500);
/// How often a daemon in waiting looks whether the lease is free.
const LEASE_LOOK: Duration = Duration::from_secs(1);

/// A look takes a millisecond; one that takes so long has met a connection that is gone, and there is time for another
/// one before the lease runs out.
const LEASE_WAIT: Duration = Duration::from_millis(2500);

/// Giving it back is a courtesy: a stop waits no longer for it.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// Who may reconcile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leader {
    /// The database was not asked yet.
    Unknown,
    Another,
    Us(Lease),
}

impl Leader {
    pub(super) fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Us(lease) => Some(lease),
            Self::Unknown | Self::Another => None,
        }
    }
}

pub(crate) type Leadership = watch::Receiver<Leader>;

/// Takes the lease whenever it is free, renews it while it is held, gives it back at the end.
pub(super) async fn hold(
    store: Store,
    holder: Uuid,
    leading: watch::Sender<Leader>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut lease: Option<Lease> = None;
    let mut good_until = Instant::now();
    let mut trouble = Reported::default();
    while !stop.is_cancelled() {
        let asked = Instant::now();
        let answer = tokio::time::timeout(LEASE_WAIT, ask(&store, lease.as_ref(), holder)).await;
        let answer = answer.unwrap_or_else(|_| Err(StoreError::Unreachable("no answer in time".to_owned())));
        let answered = answer.is_ok();
        trouble.note(answer.as_ref().err());
        match answer {
            Ok(now) => {
                if now.is_some() {
                    good_until = asked + LEASE_TTL;
                }
                if now.is_some() != lease.is_some() {
                    info!(leader = now.is_some(), "leadership changed");
                }
                lease = now;
            }
            // An outage is no reason to step down before the lease has run out: no other daemon can hold it.
            Err(_) => {
                if Instant::now() >= good_until {
                    lease = None;
                }
            }
        }
        let now = match &lease {
            Some(lease) => Leader::Us(lease.clone()),
            None if answered => Leader::Another,
            None => Leader::Unknown,
        };
        leading.send_if_modified(|current| {
            let changed = *current != now;
            *current = now;
            changed
        });
        let wait = if lease.is_some() { LEASE_RENEW } else { LEASE_LOOK };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.cancelled() => {}
        }
    }
    if let Some(held) = lease {
        // A lease that cannot be given back runs out by itself.
        let _ = tokio::time::timeout(RELEASE_WAIT, store.lease_release(&held)).await;
    }
    Ok(())
}

async fn ask(store: &Store, lease: Option<&Lease>, holder: Uuid) -> Result<Option<Lease>> {
    match lease {
        Some(held) => Ok(store.lease_renew(held, LEASE_TTL).await?.then(|| held.clone())),
        None => store.lease_acquire(LEASE, holder, LEASE_TTL).await,
    }
}

/// What was logged last, so that a trouble that lasts is logged once.
#[derive(Default)]
struct Reported(Option<&'static str>);

impl Reported {
    fn note(&mut self, error: Option<&StoreError>) {
        let Some(error) = error else {
            self.0 = None;
            return;
        };
        if self.0.replace(error.reason()) == Some(error.reason()) {
            debug!(%error, "the lease could not be renewed");
        } else {
            warn!(%error, reason = error.reason(), "this daemon cannot lead: the lease cannot be taken or renewed");
        }
    }
}
