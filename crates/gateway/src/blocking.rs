//! Work that takes long, on a thread of its own.
//!
//! Not its job: what the work is. Invariant: the threads that serve requests go on meanwhile.

/// `None`: the work panicked, or the runtime ends.
pub(crate) async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
