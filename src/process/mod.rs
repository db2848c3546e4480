//! The process itself: hardening before the first secret, supervised tasks and signals, logging, and memory given back.
//!
//! Not its job: what the daemon does.

mod harden;
pub mod lifecycle;
pub mod logging;
pub mod memory;

pub use harden::{HardenError, harden_process, take_env};

/// A runtime for as many cores as there are, but no more than the work needs.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    Ok(runtime)
}
