//! `run`: the daemon.

use super::{Global, context, output::Exit};
use crate::{app, daemon, logging};

/// Runs until a signal ends it.
pub fn run(global: &Global) -> anyhow::Result<Exit> {
    let settings = context::settings(global)?;
    logging::init(&settings.log)?;
    let byok = app::byok_env();
    app::runtime()?.block_on(daemon::run(settings, byok))?;
    Ok(Exit::Done)
}
