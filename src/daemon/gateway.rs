//! `providerd gateway`: the data plane alone, on a database that others reconcile.
//!
//! Not its job: manifests, checks, the admin API. Invariant: it serves from the sealed picture before, and while,
//! PostgreSQL cannot be reached.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use net::server::{Listen, ServerLimits, bind, bind_address};
use tokio::time::sleep;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::{
    admin, backend,
    config::{self, Settings},
    dataplane::{EMBEDDED_LISTEN, serving},
    metrics::Metrics,
    process::lifecycle::{self, Supervisor, Systemd},
    store::Store,
};

/// First and longest wait before the database is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));

/// Runs until a signal ends it.
///
/// # Errors
/// A configuration error the operator must fix, or a task that died.
pub async fn run(settings: Settings, env: Option<Zeroizing<String>>) -> anyhow::Result<()> {
    lifecycle::install_panic_hook();
    lifecycle::raise_file_limit();
    let supervisor = Supervisor::new();
    let _hangups = supervisor.install_signals()?;
    let stop = supervisor.token();
    let (byok, _) = backend::byok(&settings, env, backend::NewKey::Make)?;
    let metrics = Arc::new(Metrics::new()?);
    let listen = settings.gateway.listen.unwrap_or(EMBEDDED_LISTEN);
    let state = config::state_dir();
    std::fs::create_dir_all(&state).with_context(|| format!("{} cannot be made", state.display()))?;
    // The socket of systemd is the gateway's: nothing else here listens by it.
    let beyond_loopback = settings.gateway.tls().is_some() || settings.gateway.plain_http;
    let listener = bind(Listen { address: listen, beyond_loopback, section: "gateway" }).await?;
    let serving = serving::start(&settings, listener, state, &metrics, |_| (), &supervisor).await?;
    if let Some(address) = settings.gateway.metrics_listen {
        let listener = bind_address(address, "gateway.metrics_listen").await?;
        info!(address = %listener.local_addr()?, "metrics are served");
        let (tasks, stop) = (supervisor.clone(), stop.clone());
        let spawned = supervisor.clone();
        let spawn = move |connection| spawned.spawn_brief("http-connection", connection);
        let router = admin::metrics_alone(metrics.clone());
        tasks.spawn("metrics", async move {
            net::server::serve(listener, None, router, ServerLimits::default(), stop, spawn).await;
        });
    }
    let (url, embedded) = backend::database(&settings).await?;
    let store = Store::connect(&backend::store_settings(&settings, url)).await?;
    serving.keeper(&store, &byok, &settings).start_from_sealed();
    info!(address = %serving.address, version = env!("CARGO_PKG_VERSION"), "the gateway serves");
    Systemd.ready();
    let (tasks, following, waiting) = (supervisor.clone(), store.clone(), stop.clone());
    supervisor.spawn("database", async move {
        let mut wait = RETRY.0;
        loop {
            // Connecting may take longer than a stop may.
            match waiting.run_until_cancelled(backend::prepare(&following, &byok)).await {
                None => return Ok(()),
                Some(Ok(_)) => break,
                Some(Err(error)) if backend::is_transient(&error) => {
                    warn!(error = format!("{error:#}"), retry_in = ?wait, "the database is not ready");
                    if waiting.run_until_cancelled(sleep(wait)).await.is_none() {
                        return Ok(());
                    }
                    wait = (wait * 2).min(RETRY.1);
                }
                Some(Err(error)) => return Err(error),
            }
        }
        serving.follow(&following, &byok, &settings, &tasks);
        waiting.cancelled().await;
        anyhow::Ok(())
    });
    stop.cancelled().await;
    Systemd.stopping();
    let ended = supervisor.wait().await;
    store.close().await;
    if let Some(embedded) = embedded {
        embedded.stop().await.context("the embedded PostgreSQL did not stop cleanly")?;
    }
    Ok(ended?)
}
