//! The daemon: what is started in which order, which task wakes which, what is stopped how.
//!
//! Not its job: deciding what a pass does (`reconcile`). Invariants: every wake-up means "look again" and goes
//! through one loop; the newest catalog pre-empts retries of an older one; losing PostgreSQL ends nothing.

pub mod gateway;
pub(crate) mod git_events;
mod lease;
mod litellm;
mod reload;
mod work;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
};
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

pub(crate) use self::lease::{Leader, Leadership};
use self::{litellm::LiteLlmKeeper, reload::Reload, work::Loop};
use crate::{
    admin::{self, AdminLive, AdminShared, Fresh, Hosts, PageAccess, Readiness, Tail, Tokens, hooks::Hook},
    backend,
    checks::{self, Checks, monitor::MonitorConfig},
    config::{self, Retention, Settings},
    dataplane::{EMBEDDED_LISTEN, ListeningGateway, first_consumer::first_consumer, serving},
    discover::{
        run::Discoverer,
        schedule::{AppliedCatalog, Discovery},
    },
    embedded::Embedded,
    loader::Loader,
    metrics::Metrics,
    process::lifecycle::{self, Hangups, Heartbeat, Supervisor, Systemd},
    reconcile::{Reconciler, Rules},
    secret::{Byok, Keyring, Secret, Source},
    source::{
        self, RESYNC, RevisionTracker, Wake, Watcher,
        pull::{self, Pulled, Puller},
    },
    status::{Board, Keeper, Snapshot},
    store::{ProviderStatus, Store, StoreError, UsageUpkeep},
};
use net::{
    probe::Prober,
    server::{Listen, ListenError, Tls, bind, bind_address},
};

/// First and longest wait before a failed pass is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// How often the loop moves when nothing happens.
const BEAT: Duration = Duration::from_secs(5);
/// The loop moves at every event and at least at every second resync; standing still for longer than this while
/// it has something to do means that it is wedged.
const WEDGED_AFTER: Duration = Duration::from_secs(120);
/// How long sums by the hour are kept; after that, those by the day remain.
const HOURLY: Duration = Duration::from_secs(48 * 3600);
/// Room for the few jobs of the scheduler: its default of 200 is lost silently when exceeded.
const SCHEDULER_CHANNEL: usize = 1024;

/// Where callers reach the gateway.
pub struct GatewayArrival {
    /// Its base URL.
    pub url: String,
    /// The key of the embedded consumer, where it was made at this start: to be shown now, or never.
    pub key: Option<Secret>,
}

/// What an operator in front of a terminal wants to know once the daemon works.
pub struct Arrival {
    pub manifests: PathBuf,
    /// How to reach the database with `psql`; `None` for one that was named, whose URL may hold a password.
    pub database: Option<String>,
    /// The base URL of the HTTP server.
    pub listen: String,
    /// The admin token, where it was made at this start: to be shown now, or never.
    pub admin_token: Option<Secret>,
    pub providers: Vec<ProviderStatus>,
    pub gateway: Option<GatewayArrival>,
}

/// Called once, when the first reconcile is done.
pub type Greeting = Box<dyn FnOnce(Arrival) + Send>;

/// Runs until a signal ends it.
///
/// # Errors
/// A mistake that the operator must fix (settings, keys, a foreign database), or a task that died.
pub async fn run(
    settings: Settings,
    again: reload::Read,
    env: Option<Zeroizing<String>>,
    greeting: Option<Greeting>,
) -> anyhow::Result<()> {
    // 1. Signals first: from here on a stop is an orderly one.
    lifecycle::install_panic_hook();
    lifecycle::raise_file_limit();
    let supervisor = Supervisor::new();
    let hangups = supervisor.install_signals()?;
    let stop = supervisor.token();

    // 2. What can be refused at once: keys and the socket.
    let (byok, source) = backend::byok(&settings, env, backend::NewKey::Make)?;
    let tokens = Tokens::load(&settings.server.token_sha256, config::credentials_dir().as_deref())?;
    let tls = settings.server.tls().map(|(certificate, key)| Tls::new(certificate, key)).transpose()?;
    let prober = Arc::new(Prober::new(settings.egress.net_config()?)?);
    let listener = listen(&settings.server).await?;
    let listen = listener.local_addr()?;
    let metrics = Arc::new(Metrics::new()?);
    let revision = env!("BUILT_REVISION");
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);

    // 3. The database, if it is ours to start.
    let (url, embedded) = backend::database(&settings).await?;
    let store = Store::connect(&backend::store_settings(&settings, url)).await?;
    info!(
        manifests = %settings.manifests.path.display(),
        database = if embedded.is_some() { "embedded" } else { "external" },
        %listen,
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );

    let _settings_watch = settings.file.as_deref().and_then(notice_settings);

    // 4. Answering comes before work: a daemon that waits for its database says so.
    let readiness = Arc::new(Readiness::default());
    let pull_now = Arc::new(Notify::new());
    let checked: Arc<OnceLock<admin::ShownChecks>> = Arc::default();
    let (tokens, fresh) = admin_tokens(tokens, embedded.is_some())?;
    let (publish, latest) = watch::channel(None);
    let hosts = Hosts {
        named: settings.server.allowed_hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
        strict: net::server::is_private(listen) || !settings.server.allowed_hosts.is_empty(),
    };
    let pages = Arc::new(PageAccess::new(&settings.pages));
    let shared = AdminShared {
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        checked: checked.clone(),
        hook: hook(&settings, pull_now.clone()),
        per_provider: settings.metrics.per_provider,
        tokens: tokens.clone(),
        hosts,
        store: store.clone(),
        latest,
        live: Arc::default(),
        tail: Tail::new(stop.clone()),
        prober: prober.clone(),
        budget: Arc::default(),
        pages: pages.clone(),
        tls: tls.clone(),
        gateway: settings.gateway.clone(),
    };
    let admin = (!tokens.is_empty() || pages.is_open()).then(|| Admin {
        board: Board::default(),
        publish,
        live: shared.live.clone(),
        tail: shared.tail.clone(),
    });
    let (scheme, served) = (if tls.is_some() { "https" } else { "http" }, supervisor.clone());
    supervisor.spawn("http", admin::serve(listener, shared, served));
    let data =
        data_plane(&settings, (&store, &byok), embedded.is_some(), &metrics, &checked, &supervisor).await?;
    if let Some(tls) = tls {
        supervisor.spawn("certificate", tls.watch(stop.clone()));
    }

    // 5. Everything that needs the database waits for it in here.
    let heartbeat = Heartbeat::new();
    let beat = heartbeat.clone();
    supervisor.serve_watchdog(Systemd, move || beat.age() < WEDGED_AFTER);
    let database = embedded.as_ref().map(Embedded::url);
    let main = Main {
        settings,
        byok,
        source,
        store: store.clone(),
        metrics,
        readiness,
        heartbeat,
        checked,
        prober,
        listen: format!("{scheme}://{listen}"),
        database,
        admin,
        fresh,
        data,
        pull_now,
    };
    let tasks = supervisor.clone();
    supervisor.spawn("reconcile", async move { main.run(tasks, hangups, again, greeting).await });

    // 6. Until a signal or a dead task ends it.
    stop.cancelled().await;
    Systemd.stopping();
    let ended = supervisor.wait().await;

    // 7. The embedded database last: all other tasks have finished writing.
    store.close().await;
    if let Some(embedded) = embedded {
        embedded.stop().await.context("the embedded PostgreSQL did not stop cleanly")?;
    }
    Ok(ended?)
}

/// The tokens that are configured; in embedded mode, without any, one of our own.
fn admin_tokens(configured: Tokens, embedded: bool) -> anyhow::Result<(Tokens, Option<Fresh>)> {
    if !configured.is_empty() {
        return Ok((configured, None));
    }
    // What is printed below the journal is logged, and a log is no place for a token.
    if !embedded || std::env::var_os("JOURNAL_STREAM").is_some() {
        info!("no admin token is configured; the admin API is closed (hint: server.token_sha256)");
        return Ok((configured, None));
    }
    Ok(Tokens::embedded(&config::state_dir())?)
}

/// What the admin API needs of the rest; nothing of it runs while the API is closed.
struct Admin {
    board: Board,
    publish: watch::Sender<Option<Arc<Snapshot>>>,
    live: Arc<OnceLock<AdminLive>>,
    tail: Tail,
}

/// Says so when the settings file changes: a reload reads it, and an operator may think that changing it is enough.
fn notice_settings(file: &Path) -> Option<notify::RecommendedWatcher> {
    let shown = file.display().to_string();
    let changed = move || warn!(file = %shown, "the settings file changed; a reload (SIGHUP) reads it");
    match source::watch_file(file, changed) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            debug!(%error, "the settings file is not watched");
            None
        }
    }
}

/// The reconcile loop and what it stands on.
struct Main {
    settings: Settings,
    byok: Byok,
    source: Source,
    store: Store,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    heartbeat: Heartbeat,
    checked: Arc<OnceLock<admin::ShownChecks>>,
    prober: Arc<Prober>,
    /// The base URL of the HTTP server.
    listen: String,
    database: Option<String>,
    admin: Option<Admin>,
    /// A token that was not shown yet.
    fresh: Option<Fresh>,
    /// The gateway, until it follows the database.
    data: Option<DataPlane>,
    /// Asks for a look at the Git repository.
    pull_now: Arc<Notify>,
}

impl Main {
    async fn run(
        mut self,
        supervisor: Supervisor,
        hangups: Hangups,
        again: reload::Read,
        greeting: Option<Greeting>,
    ) -> anyhow::Result<()> {
        let stop = supervisor.token();
        let pulled = self.pull(&supervisor);
        let Some(keyring) = self.prepare(&stop).await? else { return Ok(()) };
        let news = match pulled {
            Some(pulled) if !self.wait_for_tree(pulled.ready.clone(), &stop).await => return Ok(()),
            Some(pulled) => Some(pulled.news),
            None => None,
        };
        let resolver = backend::resolver(&self.settings, self.byok.clone(), &self.source);
        let watcher = Watcher::start(
            &self.settings.manifests.path,
            source::WatchOptions {
                settle: self.settings.manifests.settle,
                ..source::WatchOptions::default()
            },
        );
        let wake = Wake::new(watcher.handle(), self.pull_now.clone());
        let data = self.data.take().map(|data| {
            let (url, key, hint) = (data.url, data.key, data.serving.hint.clone());
            data.serving.follow(&self.store, &self.byok, &self.settings, &supervisor);
            (hint, GatewayArrival { url, key })
        });
        let (picture, gateway) = data.unzip();
        let drift = Arc::new(Notify::new());

        let (leading, leadership) = watch::channel(Leader::Unknown);
        let (store, token, holder) = (self.store.clone(), stop.clone(), Uuid::new_v4());
        supervisor.spawn("lease", async move { lease::hold(store, holder, leading, token).await });
        if let Some(news) = news {
            let (store, token, leader) = (self.store.clone(), stop.clone(), leadership.clone());
            supervisor
                .spawn("git events", async move { git_events::record(store, news, leader, token).await });
        }
        let (store, token, hint) = (self.store.clone(), stop.clone(), drift.clone());
        supervisor.spawn("drift", async move {
            let mut listener = store.listen_drift();
            while token.run_until_cancelled(listener.hint()).await.is_some() {
                hint.notify_one();
            }
        });
        let (retention, kept) = watch::channel(self.settings.retention.clone());
        let (resync, resync_interval) = watch::channel(self.settings.manifests.resync_interval);
        let mut scheduler = self.schedule(kept).await?;
        let (looking, interval, token) = (wake.clone(), resync_interval.clone(), stop.clone());
        supervisor.spawn("resync", async move { look_again(looking, interval, token).await });

        let (keyring, resolver) = (Arc::new(keyring), Arc::new(resolver));
        let board = self.admin.as_ref().map(|admin| admin.board.clone()).unwrap_or_default();
        if let Some(keeper) = LiteLlmKeeper::new(&self.settings.litellm, resolver.clone()) {
            supervisor.spawn("litellm", keeper.run(board.follow(), stop.clone()));
        }
        let checks = self.start_checks(&supervisor, &keyring)?;
        let (applied, catalogs) = watch::channel(AppliedCatalog::None);
        let discovery = Discovery {
            discoverer: Discoverer::new(
                self.store.clone(),
                keyring.clone(),
                resolver.clone(),
                &self.settings.egress,
            ),
            applied: catalogs,
            lease: {
                let leadership = leadership.clone();
                move || leadership.borrow().lease().cloned()
            },
            metrics: self.metrics.clone(),
        };
        supervisor.spawn("discovery", discovery.run(stop.clone()));

        let trials = self.settings.health.enabled.then(Arc::default);
        let rules = Rules::new(&self.settings.reconcile, self.settings.keys.require_valid);
        let mut reload = Reload {
            running: self.settings.clone(),
            read: again,
            rules: rules.clone(),
            checks: checks.clone(),
            retention,
            resync,
        };
        let hup = wake.clone();
        supervisor.serve_reloads(hangups, Systemd, move || {
            reload.again();
            hup.poke("signal");
            std::future::ready(())
        });
        let reconciler = || {
            let (store, keyring, resolver) = (self.store.clone(), keyring.clone(), resolver.clone());
            let settings = &self.settings;
            Reconciler::new(
                store,
                keyring,
                resolver,
                &settings.reconcile,
                settings.keys.require_valid,
                trials.clone(),
            )
            .following(rules.clone())
        };
        let reconciler = (reconciler(), self.admin.is_some().then(reconciler));
        if let (Some(admin), Some(reconciler)) = (self.admin.take(), reconciler.1) {
            // Set once: this is the only place.
            let _ = admin.live.set(AdminLive { wake: wake.clone(), keyring: keyring.clone() });
            let pull = pull::PullOptions::of(&self.settings);
            let keeper = Keeper::new(self.store.clone(), keyring, reconciler, checks.clone(), pull);
            supervisor.spawn("snapshot", keeper.run(admin.board, admin.publish, stop.clone()));
            supervisor.spawn("event-tail", admin.tail.read(self.store.clone()));
        }
        let reconciler = reconciler.0;
        let root = self.settings.manifests.path.clone();
        let revisions = Arc::new(RevisionTracker::new(&root));
        let parts = work::LoopParts {
            reconciler,
            trials: trials.zip(checks.as_ref().map(|checks| checks.prober().clone())),
            supervisor,
            checks,
            revisions,
            leadership,
            resync_interval,
            wake,
            drift,
            picture,
            gateway,
            greeting,
            applied,
            board,
        };
        let ended = Loop::new(self, Loader::new(root), parts).run(watcher, &stop).await;
        if let Err(error) = scheduler.shutdown().await {
            debug!(%error, "the scheduler was already gone");
        }
        ended
    }

    /// Starts pulling from Git, where that is asked for.
    fn pull(&self, supervisor: &Supervisor) -> Option<Pulled> {
        let options = pull::PullOptions::of(&self.settings)?;
        let (puller, pulled) = Puller::new(options, self.pull_now.clone(), self.metrics.clone());
        let token = supervisor.token();
        supervisor.spawn("git", async move { puller.run(token).await });
        Some(pulled)
    }

    /// Nothing is reconciled before there is a tree; `false` when asked to stop meanwhile.
    async fn wait_for_tree(&self, mut ready: watch::Receiver<bool>, stop: &CancellationToken) -> bool {
        if !*ready.borrow() {
            info!("waiting for the first tree from Git");
            Systemd.status("waiting for the first tree from Git");
        }
        loop {
            tokio::select! {
                is_ready = ready.wait_for(|it| *it) => return is_ready.is_ok(),
                () = tokio::time::sleep(BEAT) => self.heartbeat.beat(),
                () = stop.cancelled() => return false,
            }
        }
    }

    /// Health checks and key tests, unless the settings turn them off.
    fn start_checks(
        &self,
        supervisor: &Supervisor,
        keyring: &Arc<Keyring>,
    ) -> anyhow::Result<Option<Checks>> {
        if !self.settings.health.enabled {
            return Ok(None);
        }
        let monitor = MonitorConfig::of(&self.settings.health);
        let in_flight = monitor.in_flight.clone();
        let parts = checks::CheckParts {
            store: self.store.clone(),
            keyring: keyring.clone(),
            prober: self.prober.clone(),
            monitor,
            policy: self.settings.health.policy(),
            metrics: self.metrics.clone(),
            holder: Uuid::new_v4(),
        };
        let checks = Checks::start(parts, supervisor);
        let exported = admin::ShownChecks { checks: checks.clone(), in_flight };
        // Set once: the server has been answering since before the database was there.
        let _ = self.checked.set(exported);
        Ok(Some(checks))
    }

    /// Migrates and opens the canary, as often as it takes; `None` when asked to stop meanwhile.
    async fn prepare(&self, stop: &CancellationToken) -> anyhow::Result<Option<Keyring>> {
        let mut wait = RETRY.0;
        loop {
            let prepared = stop.run_until_cancelled(backend::prepare(&self.store, &self.byok)).await;
            let Some(prepared) = prepared else { return Ok(None) };
            match prepared {
                Ok(keyring) => {
                    self.database_up(true);
                    return Ok(Some(keyring));
                }
                Err(error) if backend::is_transient(&error) => {
                    if let Some(error) = error.downcast_ref::<StoreError>() {
                        self.readiness.trouble(error.cause());
                    }
                    self.database_up(false);
                    warn!(error = format!("{error:#}"), retry_in = ?wait, "the database is not ready");
                }
                Err(error) => return Err(error),
            }
            Systemd.status("waiting for the database");
            self.heartbeat.beat();
            tokio::select! {
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(RETRY.1),
                () = stop.cancelled() => return Ok(None),
            }
        }
    }

    fn database_up(&self, up: bool) {
        self.metrics.database_up.set(up.into());
        self.readiness.database.store(up, Ordering::Relaxed);
    }

    /// The nightly work: deleting what is too old.
    async fn schedule(&self, retention: watch::Receiver<Retention>) -> anyhow::Result<JobScheduler> {
        let scheduler = JobScheduler::new_with_channel_size(SCHEDULER_CHANNEL).await?;
        let store = self.store.clone();
        // Once a night, at a minute at which nothing else is due.
        scheduler
            .add(Job::new_async("0 17 3 * * *", move |_, _| {
                let store = store.clone();
                let Retention { events: keep, history } = retention.borrow().clone();
                Box::pin(async move {
                    let now = chrono::Utc::now();
                    let cut = async {
                        let events = store.events_expire(now - keep).await?;
                        let history = store.health_expire(now - HOURLY, now - history).await?;
                        Ok::<_, StoreError>((events, history))
                    };
                    match cut.await {
                        Ok((events, history)) => info!(events, history, "deleted what was too old"),
                        Err(error) => {
                            warn!(error = %error, "what is too old could not be deleted; tried again tomorrow")
                        }
                    }
                })
            })?)
            .await?;
        let store = self.store.clone();
        let usage = self.settings.usage.clone();
        // Every hour, so that a day is there long before it comes and columns that are added are soon followed.
        scheduler
            .add(Job::new_async("0 41 * * * *", move |_, _| {
                let (store, usage) = (store.clone(), usage.clone());
                Box::pin(async move {
                    let now = chrono::Utc::now();
                    let rows = usage.retention.map(|keep| now - keep);
                    match store.usage_maintain(rows, Some(now - usage.sums_retention)).await {
                        Ok(done) if done == UsageUpkeep::default() => {}
                        Ok(done) => info!(
                            made = done.made,
                            dropped = done.dropped.join(", "),
                            deleted = done.deleted,
                            mirrored = done.mirrored,
                            "looked after the log of usage"
                        ),
                        Err(error) => {
                            warn!(error = %error, "the log of usage could not be looked after; tried again in an hour")
                        }
                    }
                })
            })?)
            .await?;
        scheduler.start().await?;
        Ok(scheduler)
    }
}

/// The gateway of this daemon.
pub(crate) struct DataPlane {
    serving: ListeningGateway,
    /// Its base URL.
    url: String,
    /// The key of the consumer that embedded mode made at this start.
    key: Option<Secret>,
}

/// Starts the gateway where the settings name an address, and in embedded mode.
async fn data_plane(
    settings: &Settings,
    (store, byok): (&Store, &Byok),
    embedded: bool,
    metrics: &Metrics,
    checked: &Arc<OnceLock<admin::ShownChecks>>,
    supervisor: &Supervisor,
) -> anyhow::Result<Option<DataPlane>> {
    let Some(listen) = settings.gateway.listen.or(embedded.then_some(EMBEDDED_LISTEN)) else {
        return Ok(None);
    };
    let state = config::state_dir();
    let checked = checked.clone();
    let look = move |provider: Uuid| {
        if let Some(checked) = checked.get() {
            checked.checks.look_again(provider);
        }
    };
    let listener = match bind_address(listen, "gateway.listen").await {
        Ok(listener) => listener,
        // No setting names this address: another daemon of this user has it.
        Err(error) if settings.gateway.listen.is_none() => {
            warn!(error = format!("{error:#}"), "there is no gateway; set gateway.listen");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    let mut serving = serving::start(settings, listener, state.clone(), metrics, look, supervisor).await?;
    let scheme = if serving.tls { "https" } else { "http" };
    let url = format!("{scheme}://{}", serving.address);
    let mut key = None;
    if embedded {
        let (consumer, made) = first_consumer(&state)?;
        serving.own.push(consumer);
        key = made;
    }
    serving.keeper(store, byok, settings).start_from_sealed();
    Ok(Some(DataPlane { serving, url, key }))
}

/// The webhook of `source.git`; `None` without a secret.
fn hook(settings: &Settings, wake: Arc<Notify>) -> Option<Arc<Hook>> {
    settings.source.git_url.as_ref()?;
    let secret = settings.source.webhook_secret_file()?;
    Some(Arc::new(Hook::new(std::path::absolute(&secret).unwrap_or(secret), wake)))
}

/// Opens the socket of the admin API.
async fn listen(server: &config::Server) -> Result<TcpListener, ListenError> {
    let beyond_loopback = server.tls().is_some() || server.plain_http;
    bind(Listen { address: server.listen, beyond_loopback, section: "server" }).await
}

/// Wakes the loop at every resync interval, which a reload may change.
async fn look_again(wake: Wake, mut interval: watch::Receiver<Duration>, stop: CancellationToken) {
    loop {
        let wait = *interval.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep(wait) => wake.poke(RESYNC),
            // Once the sender is gone, this branch is off.
            Ok(()) = interval.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}
