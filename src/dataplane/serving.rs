//! Serves the gateway: its own listener, its own threads, its accounts.
//!
//! Not its job: what is answered (`gateway`). Invariants: the control plane cannot stall it, nor it the control plane:
//! it has a runtime of its own, and between the two there are only values; no request waits for PostgreSQL.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use gateway::{
    accept::{Door, accept},
    account::SpoolLedger,
    limit::LeaseWish,
    meter::Meters,
    picture::ConsumerInput,
    serve::{Gateway, GatewayHooks, GatewaySettings},
    spool::{Spool, SpoolSettings, WhenFull as SpoolWhenFull},
};
use net::{Dialer, pool::ByteStream, server::Tls};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc},
    time::{interval, timeout},
};
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    keeper::PictureKeeper,
    leases::{self, BudgetMeters},
    nodes,
};
use crate::{
    config::{Settings, UsageDurability, UsageWhenFull},
    metrics::Metrics,
    process::lifecycle::Supervisor,
    secret::Byok,
    store::Store,
    usage::{Shipper, ShipperSettings, UsageMeters},
};

/// For the TLS handshake of a caller.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Between two sweeps of idle connections and gauges.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// Wishes that may wait for the database.
const WISHES: usize = 256;

/// Where the gateway of embedded mode listens.
pub const EMBEDDED_LISTEN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7412);

/// Plain, or TLS with a certificate that may change.
struct CallersDoor(Option<Tls>);

impl Door for CallersDoor {
    async fn enter(&self, socket: TcpStream) -> io::Result<Box<dyn ByteStream>> {
        match &self.0 {
            None => Ok(Box::new(socket)),
            Some(tls) => match timeout(HANDSHAKE, tls.accept(socket)).await {
                Ok(stream) => Ok(Box::new(stream?)),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}

/// What the gateway reports to the rest of the house.
struct Hooks {
    look: Box<dyn Fn(Uuid) + Send + Sync>,
    wishes: mpsc::Sender<Vec<LeaseWish>>,
}

impl GatewayHooks for Hooks {
    fn look_again(&self, provider: Uuid) {
        (self.look)(provider);
    }

    fn wish(&self, wishes: Vec<LeaseWish>) {
        // A full queue means that the database is away; the next request wishes again.
        let _ = self.wishes.try_send(wishes);
    }
}

/// A gateway that listens.
pub struct ListeningGateway {
    pub gateway: Arc<Gateway>,
    pub address: SocketAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
    spool: Arc<Spool>,
    usage: UsageMeters,
    wishes: mpsc::Receiver<Vec<LeaseWish>>,
    budgets: BudgetMeters,
    /// A reason to read the picture again.
    pub hint: Arc<Notify>,
    state: PathBuf,
    /// Consumers that no manifest names.
    pub own: Vec<ConsumerInput>,
}

/// Opens the spool, and serves on a socket from the sealed picture until [`ListeningGateway::follow`] has a database.
///
/// # Errors
/// The certificate or the spool cannot be used.
pub async fn start(
    settings: &Settings,
    listener: TcpListener,
    state: PathBuf,
    metrics: &Metrics,
    look: impl Fn(Uuid) + Send + Sync + 'static,
    supervisor: &Supervisor,
) -> anyhow::Result<ListeningGateway> {
    let own = &settings.gateway;
    let tls = own.tls().map(|(certificate, key)| Tls::new(certificate, key)).transpose()?;
    let address = listener.local_addr()?;
    let spool = Arc::new(open_spool(settings, &state)?);
    let strict = settings.usage.durability == UsageDurability::Strict;
    let dialer = Dialer::new(settings.egress.net_config()?)?;
    let (wish, wishes) = mpsc::channel(WISHES);
    let meters = Arc::new(Meters::register(metrics.registry())?);
    let gateway = Arc::new(Gateway::new(
        GatewaySettings {
            body_max: mib(own.max_body_mib.get()),
            body_memory: mib(own.body_memory_mib.get()),
            keepalive: own.keepalive,
            drain: own.drain,
            header_allow: own.header_allow.clone(),
        },
        Arc::new(dialer),
        Arc::new(SpoolLedger::new(spool.clone(), strict)),
        Arc::new(Hooks { look: Box::new(look), wishes: wish }),
        meters,
    ));
    let is_tls = tls.is_some();
    if let Some(tls) = tls.clone() {
        supervisor.spawn("gateway certificate", tls.watch(supervisor.token()));
    }
    spawn(gateway.clone(), listener, tls, own.workers.map(|workers| workers.get()), supervisor)?;
    info!(%address, tls = is_tls, "the gateway listens");
    // Without a database too: the room that earlier processes had set aside counts until it was looked at.
    let left = spool.clone();
    supervisor.spawn_brief("usage recovery", async move {
        match tokio::task::spawn_blocking(move || left.recover()).await {
            Ok(Ok(found)) if found.abandoned > 0 => {
                info!(
                    requests = found.abandoned,
                    "requests of an earlier process had no outcome; they are marked"
                );
            }
            Ok(Ok(_)) => {}
            // The shipper tries again.
            Ok(Err(error)) => warn!(%error, "what earlier processes left in the spool cannot be read"),
            Err(error) => warn!(%error, "what earlier processes left in the spool was not read"),
        }
    });
    let usage = UsageMeters::register(metrics.registry(), spool.clone())?;
    let budgets = BudgetMeters::register(metrics.registry())?;
    Ok(ListeningGateway {
        gateway,
        address,
        tls: is_tls,
        spool,
        usage,
        wishes,
        budgets,
        hint: Arc::default(),
        state,
        own: Vec::new(),
    })
}

fn open_spool(settings: &Settings, state: &std::path::Path) -> anyhow::Result<Spool> {
    let usage = &settings.usage;
    let dir = usage.spool_dir.clone().unwrap_or_else(|| state.join("usage"));
    std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    let when_full = match usage.when_full {
        UsageWhenFull::Refuse => SpoolWhenFull::Refuse,
        UsageWhenFull::Serve => SpoolWhenFull::Serve,
    };
    let strict = usage.durability == UsageDurability::Strict;
    let max_bytes = u64::from(usage.spool_max_mib.get()) << 20;
    let sync_interval = usage.sync_interval;
    Ok(Spool::open(SpoolSettings { max_bytes, sync_interval, when_full, strict, ..SpoolSettings::new(dir) })?)
}

const fn mib(count: u32) -> usize {
    (count as usize) << 20
}

/// Whose usage it is.
fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().chars().take(64).collect()
}

/// The threads of the data plane, and a task that ends with them.
fn spawn(
    gateway: Arc<Gateway>,
    listener: TcpListener,
    tls: Option<Tls>,
    workers: Option<u32>,
    supervisor: &Supervisor,
) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = workers.and_then(|workers| usize::try_from(workers).ok()).unwrap_or(cores);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers.max(1))
        .thread_name("gateway")
        .enable_all()
        .build()
        .context("the gateway's threads cannot be started")?;
    let listener = listener.into_std()?;
    let stop = supervisor.token();
    let (serving, tended) = (gateway.clone(), gateway.clone());
    let accepting = runtime.spawn(async move {
        let listener = TcpListener::from_std(listener)?;
        accept(listener, Arc::new(CallersDoor(tls)), serving.clone(), serving.stop_signals()).await;
        io::Result::Ok(())
    });
    runtime.spawn(async move {
        let mut tick = interval(TEND_EVERY);
        loop {
            tick.tick().await;
            tended.tend();
        }
    });
    supervisor.spawn("gateway", async move {
        let mut accepting = accepting;
        let ended = tokio::select! {
            ended = &mut accepting => ended,
            () = stop.cancelled() => {
                gateway.drain();
                accepting.await
            }
        };
        runtime.shutdown_background();
        match ended {
            Ok(ended) => ended.map_err(anyhow::Error::from),
            Err(error) => Err(anyhow::anyhow!("the gateway's listener ended: {error}")),
        }
    });
    Ok(())
}

impl ListeningGateway {
    /// Follows a database: the picture, budgets, and shipping what was used.
    pub fn follow(self, store: &Store, byok: &Byok, settings: &Settings, supervisor: &Supervisor) {
        let keeper = self.keeper(store, byok, settings);
        let stop = supervisor.token();
        supervisor.spawn("picture", keeper.run(stop.clone()));
        let hinted = self.hint.clone();
        let (listening, token) = (store.clone(), stop.clone());
        supervisor.spawn("picture hints", async move {
            let mut drift = listening.listen_drift();
            let mut applied = listening.listen_gateway();
            let mut either = async || {
                tokio::select! {
                    () = drift.hint() => {}
                    () = applied.hint() => {}
                }
            };
            while token.run_until_cancelled(either()).await.is_some() {
                hinted.notify_one();
            }
        });
        // One life of one gateway: what an earlier life held is not this one's.
        let life = Uuid::new_v4();
        let sharing = nodes::share_limits(self.gateway.clone(), store.clone(), life, stop.clone());
        supervisor.spawn("limits", sharing);
        let wishes =
            leases::serve_wishes(self.gateway.clone(), store.clone(), life, self.wishes, stop.clone());
        supervisor.spawn("budgets", wishes);
        let looking = leases::look_after_budgets(store.clone(), self.budgets, stop.clone());
        supervisor.spawn("budget looks", looking);
        let node = node_name();
        let batch = usize::try_from(settings.usage.batch.get()).unwrap_or(usize::MAX);
        let metered = self.spool.clone();
        let meters = self.usage;
        let shipper =
            Shipper::new(self.spool, store.clone(), ShipperSettings { batch, ..ShipperSettings::new(node) });
        supervisor.spawn("usage", async move {
            let mut failing = false;
            shipper
                .run(stop, |round| match round {
                    Ok(report) => {
                        failing = false;
                        meters.shipped(&report, &metered.stats());
                    }
                    Err(error) if !std::mem::replace(&mut failing, true) => {
                        warn!(%error, "usage cannot be shipped; it waits in the spool");
                    }
                    Err(_) => {}
                })
                .await;
        });
    }

    /// What keeps the picture; its sealed copy may be served from before there is a database.
    pub fn keeper(&self, store: &Store, byok: &Byok, settings: &Settings) -> PictureKeeper {
        PictureKeeper {
            gateway: self.gateway.clone(),
            store: store.clone(),
            byok: byok.clone(),
            settings: settings.gateway.clone(),
            hint: self.hint.clone(),
            state: self.state.clone(),
            own: self.own.clone(),
        }
    }
}
