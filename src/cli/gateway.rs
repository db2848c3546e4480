//! `gateway`: the data plane alone.

use super::{Global, context, output::Exit};
use crate::{
    backend, daemon,
    process::{self, logging, memory},
};

/// Serves until a signal ends it.
pub fn run(global: &Global) -> anyhow::Result<Exit> {
    memory::expect_to_stay();
    let settings = context::settings(global)?;
    logging::init(&settings.log)?;
    let byok = backend::byok_env();
    let runtime = process::runtime()?;
    let ended = runtime.block_on(daemon::gateway::run(settings, byok));
    runtime.shutdown_background();
    ended?;
    Ok(Exit::Done)
}
