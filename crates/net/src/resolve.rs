//! Names to addresses, through the system's resolver, without letting a stuck one pile up threads.

use std::{
    future::Future,
    io,
    net::{IpAddr, ToSocketAddrs as _},
    pin::Pin,
    sync::Arc,
};

use tokio::sync::Semaphore;

/// Lookups that may be under way at once. A lookup keeps its thread until the system gives up on it, which may be
/// long after we did: more than these wait, and a long wait counts as our own failure.
const MAX_LOOKUPS: usize = 64;

pub type AddressLookup = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Where addresses come from.
pub trait Resolve: Send + Sync {
    /// All addresses of a name, in order of preference.
    fn resolve(&self, host: &str) -> AddressLookup;
}

/// `getaddrinfo`, as every program of the machine uses it.
#[derive(Debug)]
pub struct SystemResolver {
    lookups: Arc<Semaphore>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(MAX_LOOKUPS)) }
    }
}

/// No lookup could even begin: the resolver hangs.
#[derive(Debug, thiserror::Error)]
#[error("the system's resolver hangs")]
struct Stuck;

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> AddressLookup {
        let (host, lookups) = (host.to_owned(), self.lookups.clone());
        Box::pin(async move {
            // Half a second in the queue means that dozens of threads are stuck in the resolver.
            let waited =
                tokio::time::timeout(std::time::Duration::from_millis(500), lookups.acquire_owned()).await;
            let Ok(Ok(permit)) = waited else { return Err(io::Error::other(Stuck)) };
            tokio::task::spawn_blocking(move || {
                // Given back when the system is done, not when we lose patience.
                let _permit = permit;
                Ok((host.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
            })
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
        })
    }
}
