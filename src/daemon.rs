//! The daemon: what is started in which order, who wakes whom, what is stopped how.
//!
//! Not its job: deciding what a pass does (`reconcile`). Invariants: every wake-up means "look again" and goes
//! through one loop; the newest catalog pre-empts retries of an older one; losing PostgreSQL ends nothing.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_cron_scheduler::{Job, JobScheduler};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    app,
    checks::{self, Checks},
    config::{self, Retention, Settings},
    discover::{
        run::{Discoverer, LazyLister},
        schedule::{Applied, Discovery},
    },
    embedded::Embedded,
    health::probe::Prober,
    http::{self, Fresh, Hosts, Live, Readiness, Shared, Tail, Tls, Tokens},
    lifecycle::{self, Hangups, Heartbeat, Supervisor, Systemd},
    loader::Loader,
    manifest::{Build, Changed, Severity, render},
    memory,
    metrics::Metrics,
    model::SecretRef,
    plan::{HoldKind, NoticeKind},
    reconcile::{Outcome, Pass, ReconcileError, Reconciler, Refusal, Rules},
    reload::{self, Reload},
    secret::{Byok, Keyring, Secret, Source},
    snapshot::{Board, Keeper, Seen, Snapshot},
    source::{self, Look, RevisionTracker, Watcher},
    store::{Lease, ProviderStatus, Store, StoreError},
    trial::Trials,
};

/// Name of the lease that admits one reconciling daemon.
const LEASE: &str = "reconcile";
/// A crashed leader is replaced within this time plus one look (below), so within 10 s.
const LEASE_TTL: Duration = Duration::from_secs(8);
/// Three tries to renew fit into the time for which the lease is good.
const LEASE_RENEW: Duration = Duration::from_millis(2500);
/// How often a daemon in waiting looks whether the lease is free.
const LEASE_LOOK: Duration = Duration::from_secs(1);
/// First and longest wait before a failed pass is tried again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(15));
/// A stream of events may put off a deletion so long, and no longer.
const DEFER_LIMIT: Duration = Duration::from_secs(10);
/// The loop moves at every event and at least at every second resync; standing still for longer than this while
/// it has something to do means that it is wedged.
const WEDGED_AFTER: Duration = Duration::from_secs(120);
/// How often the loop moves when nothing happens.
const BEAT: Duration = Duration::from_secs(5);
/// From so many providers on, a pass over all of them leaves enough behind to be worth giving back.
const LARGE: usize = 500;
/// Batches of tried keys that may wait for the loop.
const TRIED: usize = 16;
/// How long sums by the hour are kept; after that, those by the day tell.
const HOURLY: Duration = Duration::from_secs(48 * 3600);
/// Room for the few jobs of the scheduler: its default of 200 is lost silently when exceeded.
const SCHEDULER_CHANNEL: usize = 1024;

/// What the reconcile loop still has to look at.
enum Wanted {
    Nothing,
    Some(BTreeSet<Arc<str>>),
    Everything,
}

impl Wanted {
    fn add(&mut self, changed: Changed) {
        match (&mut *self, changed) {
            (Self::Everything, _) => {}
            (_, Changed::All) => *self = Self::Everything,
            (Self::Some(names), Changed::Providers(more)) => names.extend(more),
            (Self::Nothing, Changed::Providers(names)) if names.is_empty() => {}
            (Self::Nothing, Changed::Providers(names)) => *self = Self::Some(names),
        }
    }
}

/// Who may reconcile.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Leader {
    /// The database was not asked yet.
    Unknown,
    Somebody,
    Us(Lease),
}

impl Leader {
    fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Us(lease) => Some(lease),
            Self::Unknown | Self::Somebody => None,
        }
    }
}

type Leadership = watch::Receiver<Leader>;

/// Wakes the loop from elsewhere.
#[derive(Clone)]
pub struct Wake {
    handle: source::Handle,
    drift: Arc<Notify>,
    trigger: Arc<Mutex<&'static str>>,
}

impl Wake {
    /// Looks at everything again, for the reason `trigger`.
    pub fn poke(&self, trigger: &'static str) {
        *self.trigger.lock().unwrap_or_else(PoisonError::into_inner) = trigger;
        self.handle.poke();
    }

    fn take_trigger(&self) -> &'static str {
        std::mem::replace(&mut *self.trigger.lock().unwrap_or_else(PoisonError::into_inner), "file")
    }
}

/// What a person in front of a terminal wants to know once the daemon works.
pub struct Arrival {
    pub manifests: PathBuf,
    /// How to reach the database with `psql`; `None` for one that was named, whose URL may hold a password.
    pub database: Option<String>,
    /// The base URL of the HTTP server.
    pub listen: String,
    /// The admin token, where it was made at this start: to be shown now, or never.
    pub admin_token: Option<Secret>,
    pub providers: Vec<ProviderStatus>,
}

/// Called once, when the first reconcile is done.
pub type Greeting = Box<dyn FnOnce(Arrival) + Send>;

/// Runs until a signal ends it.
///
/// # Errors
/// A mistake that a person must mend (settings, keys, a foreign database), or a task that died.
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
    let (byok, source) = app::byok(&settings, env)?;
    let tokens = Tokens::load(&settings.server.token_sha256, app::credentials_dir().as_deref())?;
    let tls = settings.server.tls().map(|(certificate, key)| Tls::new(certificate, key)).transpose()?;
    let prober = Arc::new(app::prober(&settings)?);
    let listener = http::bind(&settings.server).await?;
    let listen = listener.local_addr()?;
    let metrics = Arc::new(Metrics::new()?);
    let revision = option_env!("PROVIDERD_REVISION").unwrap_or("unknown");
    metrics.build_info.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);

    // 3. The database, if it is ours to start.
    let (url, embedded) = app::database(&settings).await?;
    let store = Store::connect(&app::store_settings(&settings, url)).await?;
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
    let checked: Arc<OnceLock<http::Checked>> = Arc::default();
    let (tokens, fresh) = admin_tokens(tokens, embedded.is_some())?;
    let (publish, latest) = watch::channel(None);
    let hosts = Hosts {
        named: settings.server.allowed_hosts.iter().map(|name| name.to_ascii_lowercase()).collect(),
        strict: http::is_private(listen) || !settings.server.allowed_hosts.is_empty(),
    };
    let shared = Shared {
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        checked: checked.clone(),
        per_provider: settings.metrics.per_provider,
        tokens: tokens.clone(),
        hosts,
        store: store.clone(),
        latest,
        live: Arc::default(),
        tail: Tail::new(stop.clone()),
        prober: prober.clone(),
        budget: Arc::default(),
        tls: tls.clone(),
    };
    let admin = (!tokens.is_empty()).then(|| Admin {
        board: Board::default(),
        publish,
        live: shared.live.clone(),
        tail: shared.tail.clone(),
    });
    let (scheme, served) = (if tls.is_some() { "https" } else { "http" }, supervisor.clone());
    supervisor.spawn("http", http::serve(listener, shared, served));
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
    };
    let tasks = supervisor.clone();
    supervisor.spawn("reconcile", async move { main.run(tasks, hangups, again, greeting).await });

    // 6. Until a signal or a dead task ends it.
    stop.cancelled().await;
    Systemd.stopping();
    let ended = supervisor.wait().await;

    // 7. The embedded database last: everybody else has finished writing.
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
    live: Arc<OnceLock<Live>>,
    tail: Tail,
}

/// Says so when the settings file changes: a reload reads it, and a person may think that changing it is enough.
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
    checked: Arc<OnceLock<http::Checked>>,
    prober: Arc<Prober>,
    /// The base URL of the HTTP server.
    listen: String,
    database: Option<String>,
    admin: Option<Admin>,
    /// A token that nobody has seen yet.
    fresh: Option<Fresh>,
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
        let Some(keyring) = self.prepare(&stop).await? else { return Ok(()) };
        let resolver = app::resolver(&self.settings, self.byok.clone(), &self.source);
        let watcher = Watcher::start(
            &self.settings.manifests.path,
            source::Options { settle: self.settings.manifests.settle, ..source::Options::default() },
        );
        let wake =
            Wake { handle: watcher.handle(), drift: Arc::default(), trigger: Arc::new(Mutex::new("start")) };

        let (leading, leadership) = watch::channel(Leader::Unknown);
        let (store, token, holder) = (self.store.clone(), stop.clone(), Uuid::new_v4());
        supervisor.spawn("lease", async move { hold_lease(store, holder, leading, token).await });
        let (store, token, drift) = (self.store.clone(), stop.clone(), wake.drift.clone());
        supervisor.spawn("drift", async move {
            let mut listener = store.listen_drift();
            while token.run_until_cancelled(listener.hint()).await.is_some() {
                drift.notify_one();
            }
        });
        let (retention, kept) = watch::channel(self.settings.retention.clone());
        let (resync, resync_interval) = watch::channel(self.settings.manifests.resync_interval);
        let mut scheduler = self.schedule(kept).await?;
        let (looking, interval, token) = (wake.clone(), resync_interval.clone(), stop.clone());
        supervisor.spawn("resync", async move { look_again(looking, interval, token).await });

        let (keyring, resolver) = (Arc::new(keyring), Arc::new(resolver));
        let board = self.admin.as_ref().map(|admin| admin.board.clone()).unwrap_or_default();
        let checks = self.start_checks(&supervisor, &keyring, &board)?;
        let (applied, catalogs) = watch::channel(Applied::None);
        let discovery = Discovery {
            discoverer: Discoverer {
                store: self.store.clone(),
                keyring: keyring.clone(),
                resolver: resolver.clone(),
                lister: LazyLister::new(&self.settings.egress),
            },
            applied: catalogs,
            lease: {
                let leadership = leadership.clone();
                move || leadership.borrow().lease().cloned()
            },
            metrics: self.metrics.clone(),
        };
        supervisor.spawn("discovery", discovery.run(stop.clone()));

        let trials = app::trials(&self.settings);
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
            let _ = admin.live.set(Live { wake: wake.clone(), keyring: keyring.clone() });
            let keeper = Keeper { store: self.store.clone(), keyring, reconciler, checks: checks.clone() };
            supervisor.spawn("snapshot", keeper.run(admin.board, admin.publish, stop.clone()));
            supervisor.spawn("event-tail", admin.tail.read(self.store.clone()));
        }
        let reconciler = reconciler.0;
        let root = self.settings.manifests.path.clone();
        let revisions = Arc::new(RevisionTracker::new(&root));
        let ended = Loop {
            main: self,
            loader: Loader::new(root),
            reconciler,
            trials: trials.zip(checks.as_ref().map(|checks| checks.prober().clone())),
            tried: mpsc::channel(TRIED),
            supervisor,
            checks,
            revisions,
            leadership,
            resync_interval,
            wake,
            build: None,
            wanted: Wanted::Everything,
            settled: false,
            deferred_since: None,
            failures: 0,
            retry_at: None,
            drift_not_before: Instant::now(),
            ready: false,
            greeting,
            suspended: false,
            applied,
            board,
            refused: Vec::new(),
        }
        .run(watcher, &stop)
        .await;
        if let Err(error) = scheduler.shutdown().await {
            debug!(%error, "the scheduler was already gone");
        }
        ended
    }

    /// Health checks and key tests, unless the settings turn them off.
    fn start_checks(
        &self,
        supervisor: &Supervisor,
        keyring: &Arc<Keyring>,
        board: &Board,
    ) -> anyhow::Result<Option<Checks>> {
        if !self.settings.health.enabled {
            return Ok(None);
        }
        let monitor = app::monitor(&self.settings);
        let in_flight = monitor.in_flight.clone();
        let parts = checks::Parts {
            store: self.store.clone(),
            keyring: keyring.clone(),
            prober: self.prober.clone(),
            monitor,
            policy: app::health_policy(&self.settings),
            metrics: self.metrics.clone(),
            holder: Uuid::new_v4(),
            news: {
                let board = board.clone();
                Arc::new(move || board.poke())
            },
        };
        let checks = Checks::start(parts, supervisor);
        let exported = http::Checked { checks: checks.clone(), in_flight };
        // Set once: the server has been answering since before the database was there.
        let _ = self.checked.set(exported);
        Ok(Some(checks))
    }

    /// Migrates and opens the canary, as often as it takes; `None` when asked to stop meanwhile.
    async fn prepare(&self, stop: &CancellationToken) -> anyhow::Result<Option<Keyring>> {
        let mut wait = RETRY.0;
        loop {
            match app::prepare(&self.store, &self.byok).await {
                Ok(keyring) => {
                    self.database_up(true);
                    return Ok(Some(keyring));
                }
                Err(error) if app::is_transient(&error) => {
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
        scheduler.start().await?;
        Ok(scheduler)
    }
}

/// Wakes the loop at every resync interval, which a reload may change.
async fn look_again(wake: Wake, mut interval: watch::Receiver<Duration>, stop: CancellationToken) {
    loop {
        let wait = *interval.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep(wait) => wake.poke("resync"),
            // Nobody can change it any more: the interval it has is the last one.
            Ok(()) = interval.changed() => {}
            () = stop.cancelled() => return,
        }
    }
}

/// Takes the lease whenever it is free, renews it while it is held, gives it back at the end.
async fn hold_lease(
    store: Store,
    holder: Uuid,
    leading: watch::Sender<Leader>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut lease: Option<Lease> = None;
    let mut good_until = Instant::now();
    while !stop.is_cancelled() {
        let asked = Instant::now();
        let answer = match &lease {
            Some(held) => {
                store.lease_renew(held, LEASE_TTL).await.map(|held_still| held_still.then(|| held.clone()))
            }
            None => store.lease_acquire(LEASE, holder, LEASE_TTL).await,
        };
        let answered = answer.is_ok();
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
            // An outage is no reason to step down before the lease has run out: nobody else can hold it.
            Err(error) => {
                debug!(error = %error, "the lease could not be renewed");
                if Instant::now() >= good_until {
                    lease = None;
                }
            }
        }
        let now = match &lease {
            Some(lease) => Leader::Us(lease.clone()),
            None if answered => Leader::Somebody,
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
        let _ = store.lease_release(&held).await;
    }
    Ok(())
}

fn is_file(reference: &SecretRef) -> bool {
    matches!(reference, SecretRef::File(_) | SecretRef::Credential(_))
}

/// Names of providers.
type Names = BTreeSet<Arc<str>>;

struct Loop {
    main: Main,
    loader: Loader,
    reconciler: Reconciler,
    checks: Option<Checks>,
    trials: Option<(Arc<Trials>, Arc<Prober>)>,
    /// Providers whose declared keys have been tried.
    tried: (mpsc::Sender<Names>, mpsc::Receiver<Names>),
    supervisor: Supervisor,
    revisions: Arc<RevisionTracker>,
    leadership: Leadership,
    resync_interval: watch::Receiver<Duration>,
    wake: Wake,
    build: Option<Arc<Build>>,
    wanted: Wanted,
    settled: bool,
    deferred_since: Option<Instant>,
    failures: u32,
    retry_at: Option<Instant>,
    drift_not_before: Instant,
    ready: bool,
    greeting: Option<Greeting>,
    suspended: bool,
    /// What discovery goes by.
    applied: watch::Sender<Applied>,
    board: Board,
    /// What the database refused in the last pass.
    refused: Vec<Refusal>,
}

impl Loop {
    async fn run(mut self, mut watcher: Watcher, stop: &CancellationToken) -> anyhow::Result<()> {
        self.settled = true;
        self.load(&Look::Everything, BTreeSet::new()).await;
        self.pass("start").await?;
        self.saw();
        // Should the task that wakes this loop ever be late, this look is not.
        let mut resync_at = Instant::now() + *self.resync_interval.borrow() * 2;
        loop {
            self.main.heartbeat.beat();
            let retry_at = self.retry_at.unwrap_or(resync_at);
            let trigger = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                activation = watcher.next() => {
                    self.settled = activation.settled;
                    self.load(&activation.look, activation.unfinished).await;
                    self.wake.take_trigger()
                }
                () = self.wake.drift.notified() => {
                    self.wanted = Wanted::Everything;
                    if let Some(checks) = &self.checks {
                        checks.look(None);
                    }
                    if Instant::now() < self.drift_not_before {
                        self.retry_at = Some(self.retry_at.map_or(self.drift_not_before, |at| at.min(self.drift_not_before)));
                        continue;
                    }
                    "drift"
                }
                changed = self.leadership.changed() => {
                    changed.context("the lease task is gone")?;
                    let leader = self.leadership.borrow().clone();
                    let leads = i64::from(leader.lease().is_some());
                    self.main.metrics.leases_held.add(leads - self.main.metrics.leader.get());
                    self.main.metrics.leader.set(leads);
                    self.main.database_up(leader != Leader::Unknown);
                    self.wanted = Wanted::Everything;
                    "leader"
                }
                Some(names) = self.tried.1.recv() => {
                    self.wanted.add(Changed::Providers(names));
                    "key"
                }
                () = tokio::time::sleep_until(retry_at) => {
                    if self.retry_at.take().is_none() {
                        self.wanted = Wanted::Everything;
                    }
                    "retry"
                }
                () = tokio::time::sleep(BEAT) => {
                    if !self.suspended {
                        continue;
                    }
                    // Another program may have resumed; its notice can be lost.
                    "resume"
                }
            };
            if matches!(self.wanted, Wanted::Everything) {
                resync_at = Instant::now() + *self.resync_interval.borrow() * 2;
            }
            self.pass(trigger).await?;
            self.saw();
        }
    }

    /// Shows what this turn of the loop has seen to the admin API.
    fn saw(&self) {
        self.board.saw(Seen {
            build: self.build.clone(),
            revision: self.revisions.current().map(|revision| revision.to_string()),
            refused: self.refused.clone(),
            problem: self.loader.problem().map(str::to_owned),
        });
    }

    /// Reads what changed and notes whom it concerns.
    async fn load(&mut self, look: &Look, unfinished: BTreeSet<PathBuf>) {
        self.loader.set_unfinished(unfinished);
        let build = match look {
            Look::Everything => {
                self.wanted = Wanted::Everything;
                tokio::task::block_in_place(|| self.loader.load(self.settled))
            }
            Look::Paths { manifests, secrets } => {
                if !secrets.is_empty() {
                    self.wanted.add(self.keys_from_files());
                }
                if manifests.is_empty() {
                    return;
                }
                tokio::task::block_in_place(|| self.loader.load_paths(manifests, self.settled))
            }
        };
        self.revisions.latest().await;
        self.report(&build);
        self.wanted.add(build.changed.clone());
        let build = Arc::new(build);
        if self.concerns_key_files(&build) {
            let references = build.catalog.providers.values().filter_map(|it| it.api_key.as_ref());
            let files = references.filter_map(|reference| self.reconciler.watched_path(reference)).collect();
            self.wake.handle.watch_secrets(files);
        }
        if let Some(checks) = &self.checks {
            checks.catalog(build.clone());
            self.look_at_checks();
        }
        self.build = Some(build);
    }

    /// Providers may be checked differently, or be others.
    fn look_at_checks(&self) {
        match (&self.checks, &self.wanted) {
            (None, _) | (_, Wanted::Nothing) => {}
            (Some(checks), Wanted::Some(names)) => checks.look(Some(names)),
            (Some(checks), Wanted::Everything) => checks.look(None),
        }
    }

    /// Whether the set of watched key files may differ from the previous build's.
    fn concerns_key_files(&self, build: &Arc<Build>) -> bool {
        let (Changed::Providers(names), Some(before)) = (&build.changed, &self.build) else { return true };
        let mut of_both =
            names.iter().flat_map(|name| [before, build].map(|it| it.catalog.providers.get(name)));
        of_both.any(|provider| provider.and_then(|it| it.api_key.as_ref()).is_some_and(is_file))
    }

    /// Providers whose key may be another one because a file changed.
    fn keys_from_files(&self) -> Changed {
        let providers = self.build.iter().flat_map(|build| build.catalog.providers.values());
        let named = providers.filter(|it| it.api_key.as_ref().is_some_and(is_file)).map(|it| it.name.clone());
        Changed::Providers(named.collect())
    }

    /// Each problem of the manifests once, in the log and in the metrics.
    fn report(&self, build: &Build) {
        let metrics = &self.main.metrics;
        let files = &build.files;
        for (state, count) in
            [("valid", files.valid), ("invalid", files.invalid), ("unreadable", files.unreadable)]
        {
            metrics.manifest_files.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let errors = build.diagnostics.iter().filter(|it| it.severity == Severity::Error).count();
        let good = errors == 0 && self.loader.problem().is_none();
        metrics.manifest_last_reload_successful.set(good.into());
        if good {
            metrics.manifest_last_success.set(chrono::Utc::now().timestamp() as f64);
        }
        let before = self.build.as_ref().map(|build| &build.diagnostics);
        if before != Some(&build.diagnostics) {
            for problem in &build.diagnostics {
                if before.is_none_or(|before| !before.contains(problem)) {
                    let place = format!("{}:{}:{}", problem.path, problem.line, problem.column);
                    match problem.severity {
                        Severity::Error => {
                            error!(%place, code = problem.code, "{}", render::one_line(problem))
                        }
                        Severity::Warning => {
                            warn!(%place, code = problem.code, "{}", render::one_line(problem))
                        }
                    }
                }
            }
        }
        if let Some(problem) = self.loader.problem() {
            error!(reason = problem, "the manifest directory cannot be believed; nothing is pruned");
        }
    }

    /// One pass over what is wanted, if this daemon leads.
    async fn pass(&mut self, trigger: &'static str) -> anyhow::Result<()> {
        let Some(build) = self.build.clone() else { return Ok(()) };
        let leader = self.leadership.borrow().clone();
        let lease = match leader {
            Leader::Us(lease) => lease,
            Leader::Unknown => return Ok(()),
            Leader::Somebody => {
                // This daemon is ready to take over.
                if self.main.readiness.database.load(Ordering::Relaxed) {
                    self.is_ready();
                }
                return Ok(());
            }
        };
        let started = Instant::now();
        let waited = self.deferred_since.is_some_and(|since| since.elapsed() >= DEFER_LIMIT);
        let providers = match &self.wanted {
            Wanted::Nothing => return Ok(()),
            Wanted::Some(names) => Some(names),
            Wanted::Everything => None,
        };
        let pass = Pass {
            build: &build,
            providers,
            settled: self.settled || waited,
            confirmed: None,
            revision: self.revisions.current(),
            lease: Some(&lease),
        };
        let whole = providers.is_none();
        let metrics = &self.main.metrics;
        metrics.reconcile_runs.with_label_values(&[trigger]).inc();
        let result = self.reconciler.reconcile(&pass).await;
        metrics.reconcile_duration.observe(started.elapsed().as_secs_f64());
        match result {
            Ok(outcome) => {
                self.main.database_up(true);
                self.failures = 0;
                self.retry_at = None;
                self.took(&outcome, whole, started.elapsed());
                self.is_ready();
                self.greet().await;
                Ok(())
            }
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &ReconcileError) -> anyhow::Result<()> {
        self.main.metrics.reconcile_failures.with_label_values(&[error.reason()]).inc();
        if let ReconcileError::Store(error) = error
            && error.is_unreachable()
        {
            self.main.database_up(false);
        }
        let wait = (RETRY.0 * 2u32.saturating_pow(self.failures.min(10))).min(RETRY.1);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(Instant::now() + wait);
        warn!(error = %error, reason = error.reason(), retry_in = ?wait, "the pass failed; nothing was applied");
        Ok(())
    }

    /// Notes what a pass did: metrics, what is left to do, what a person should know.
    fn took(&mut self, outcome: &Outcome, whole: bool, time: Duration) {
        let metrics = &self.main.metrics;
        if outcome.deferred {
            self.deferred_since.get_or_insert_with(Instant::now);
            self.retry_at = Some(Instant::now() + DEFER_LIMIT);
            return;
        }
        self.deferred_since = None;
        self.refused.clone_from(&outcome.refused);
        self.suspended = outcome.suspended;
        if outcome.suspended {
            // `resume` wakes the loop; what is wanted stays wanted.
            return;
        }
        self.look_at_checks();
        self.try_keys(outcome);
        self.wanted = Wanted::Nothing;
        if outcome.applied {
            for ((kind, action), count) in &outcome.plan.summary().rows {
                let labels = [kind.as_str(), action.as_str()];
                metrics.reconcile_changes.with_label_values(&labels).inc_by(*count as u64);
            }
            metrics.drift_detected.inc_by(outcome.plan.summary().drifted_fields as u64);
            metrics.events.inc_by(outcome.events as u64);
        }
        if let Some(build) = &self.build {
            self.applied.send_replace(Some((build.catalog.clone(), self.revisions.current())));
        }
        if let Some(revision) = self.revisions.current() {
            metrics.applied_revision.reset();
            metrics.applied_revision.with_label_values(&[&revision.to_string()]).set(1);
        }
        if !whole {
            return;
        }
        if self.build.as_ref().is_some_and(|build| build.catalog.providers.len() >= LARGE) {
            memory::give_back();
        }
        // A pass over everything knows the totals; writing foreign databases must not make it a busy loop.
        self.drift_not_before = Instant::now() + time * 4;
        let held = |kind| {
            outcome
                .plan
                .held
                .iter()
                .filter(move |it| it.kind == kind)
                .map(|it| it.objects.len())
                .sum::<usize>()
        };
        let notices = |kind| outcome.plan.notices.iter().filter(|it| it.kind == kind).count();
        let set =
            |gauge: &prometheus::IntGauge, count: usize| gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        set(&metrics.prune_held, held(HoldKind::Prune));
        set(&metrics.route_cells_held, held(HoldKind::Route));
        set(&metrics.refused_providers, outcome.refused.len());
        set(&metrics.undecryptable_keys, notices(NoticeKind::KeyUndecryptable));
        set(&metrics.unresolved_keys, notices(NoticeKind::KeyUnresolved));
        for hold in &outcome.plan.held {
            warn!(kind = ?hold.kind, objects = hold.objects.len(), digest = hold.digest, "held back: {}", hold.reason);
        }
        if !self.ready {
            for notice in outcome.plan.notices.iter().filter(|it| it.kind == NoticeKind::KeyUnresolved) {
                warn!(provider = %notice.provider, "{}", notice.message);
            }
        }
    }

    /// Asks providers about declared keys that would replace working ones; the pass after goes by what they say.
    fn try_keys(&self, outcome: &Outcome) {
        let Some((trials, prober)) = self.trials.clone().filter(|_| !outcome.trials.is_empty()) else {
            return;
        };
        let (wanted, tell) = (outcome.trials.clone(), self.tried.0.clone());
        let stop = self.supervisor.token();
        self.supervisor.spawn_brief("trials", async move {
            let tried = stop.run_until_cancelled(trials.run(&prober, wanted)).await;
            let names: Names = tried.into_iter().flatten().collect();
            if !names.is_empty() {
                // Nobody listens any more only in a shutdown.
                let _ = tell.send(names).await;
            }
        });
    }

    /// Tells who stands in front of the terminal where everything is, once.
    async fn greet(&mut self) {
        let Some(greeting) = self.greeting.take() else { return };
        if let Ok(providers) = self.main.store.provider_status_rows(None).await {
            let manifests = self.main.settings.manifests.path.clone();
            let (database, listen) = (self.main.database.clone(), self.main.listen.clone());
            let fresh = self.main.fresh.take();
            if let Some(Err(error)) = fresh.as_ref().map(Fresh::remember) {
                warn!(%error, "the admin token cannot be kept; the next start makes another one");
            }
            let admin_token = fresh.map(|fresh| fresh.token);
            greeting(Arrival { manifests, database, listen, admin_token, providers });
        }
    }

    fn is_ready(&mut self) {
        self.main.readiness.reconciled.store(true, Ordering::Relaxed);
        if !std::mem::replace(&mut self.ready, true) {
            info!("ready");
            Systemd.ready();
            Systemd.status("reconciling");
        }
    }
}
