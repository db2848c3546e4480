//! The one immutable picture of catalog and statuses from which the admin API answers.
//!
//! Its job: read everything again after each pass, on news of the checks, and from time to time, and publish the result as
//! ready-made JSON. Not its job: serving it (`http`), or deciding anything. Invariants: a request never waits for
//! PostgreSQL because of this; a reading that fails leaves the last picture where it is.

mod build;
mod findings;
pub mod judge;
mod live;
mod mask;
pub mod view;

use std::{collections::HashMap, sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use hyper::body::Bytes;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;
use view::{Health, KeyState, StatusView};

use catalog::{manifest::Build, plan::Plan};

pub use self::findings::TurnFound;
use self::{
    findings::{Findings, PlanStanding},
    live::{LedgerView, Strips},
};
use crate::{
    checks::Checks,
    process::memory,
    reconcile::{Pass, ReconcileError, Reconciler, RefusedObject},
    secret::Keyring,
    source::pull::{PullOptions, PullReport},
    store::Store,
};

/// A picture is never older than this while PostgreSQL answers, whatever hint was lost.
const REFRESH: Duration = Duration::from_secs(15);
/// Two pictures are at least so far apart: a burst of changes is shown by the picture after it.
const SPACING: Duration = Duration::from_secs(1);
/// A picture that took long to make is followed by a rest of so many times as long, so that a large catalog costs
/// a tenth of one core at most.
const REST: u32 = 9;
/// How long the hours of a large catalog are good: they are written every ten minutes.
const STRIPS_LAST: Duration = Duration::from_secs(300);
/// From so many providers on, making a picture leaves enough behind to be worth giving back.
const LARGE: usize = 500;

/// What the reconcile loop saw last.
#[derive(Clone, Default)]
pub struct SeenByLoop {
    /// `None` until the manifests were read.
    pub build: Option<Arc<Build>>,
    /// Commit of the manifests, as it is shown.
    pub revision: Option<String>,
    /// What the database refused.
    pub refused: Vec<RefusedObject>,
    /// Why the directory as a whole cannot be believed.
    pub problem: Option<String>,
}

/// Where the reconcile loop puts what it saw and found, for the keeper of the picture.
#[derive(Clone, Default)]
pub struct Board {
    seen: watch::Sender<SeenByLoop>,
    findings: Findings,
}

impl Board {
    /// After a turn of the reconcile loop.
    pub fn saw(&self, seen: SeenByLoop, found: TurnFound) {
        self.findings.add(found);
        self.seen.send_replace(seen);
    }

    /// Follows what the loop sees.
    pub fn follow(&self) -> watch::Receiver<SeenByLoop> {
        self.seen.subscribe()
    }
}

/// The latest picture; `None` until the first one is made.
pub type Latest = watch::Receiver<Option<Arc<Snapshot>>>;

/// A ready-made JSON text, which costs nothing to hand out.
#[derive(Debug, Clone)]
pub struct JsonText {
    pub text: Bytes,
    /// 16 hexadecimal digits: equal for equal texts.
    pub digest: Box<str>,
}

/// One provider of the picture.
#[derive(Debug)]
pub struct ProviderEntry {
    pub name: Arc<str>,
    pub id: Option<Uuid>,
    /// What a search looks into, in lower case.
    pub haystack: Box<str>,
    pub health: Health,
    pub key: KeyState,
    /// Position in the order of each [`Sort`]; hexadecimal, so that it can stand in a URL.
    pub sort_keys: [Box<str>; 4],
    /// A [`view::ProviderItem`].
    pub item: Box<str>,
    /// The masked `config`.
    pub config: Box<str>,
    pub key_preview: Option<Box<str>>,
    pub key_fingerprint: Option<Box<str>>,
    /// Its models, as a range of [`Snapshot::models`].
    pub models: std::ops::Range<usize>,
}

/// One model of the picture, in order of provider and name.
#[derive(Debug)]
pub struct ModelEntry {
    pub provider: Arc<str>,
    /// Its place in the order, hexadecimal.
    pub sort_key: Box<str>,
    /// A [`view::ModelItem`].
    pub item: Box<str>,
}

/// In which order providers are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    #[default]
    Name,
    /// The worst first.
    Health,
    /// The slowest first.
    Latency,
    /// The one not looked at for longest first.
    Checked,
}

impl Sort {
    pub const ALL: [Self; 4] = [Self::Name, Self::Health, Self::Latency, Self::Checked];
}

/// Everything, as it was read at one time.
#[derive(Debug)]
pub struct Snapshot {
    /// When the reading began.
    pub at: DateTime<Utc>,
    /// Equal for pictures that differ in nothing but their time.
    pub digest: Box<str>,
    /// Without `leader` and `database`, which are known better at the time of the request.
    pub status: StatusView,
    pub keys: JsonText,
    pub routes: JsonText,
    pub rows: Vec<ProviderEntry>,
    /// Indices into `rows`, for each [`Sort`].
    pub orders: [Vec<u32>; 4],
    pub by_name: HashMap<Arc<str>, usize>,
    pub models: Vec<ModelEntry>,
    /// By type.
    pub best_with_key: HashMap<String, Arc<str>>,
}

impl Snapshot {
    pub fn row(&self, name: &str) -> Option<&ProviderEntry> {
        self.by_name.get(name).and_then(|at| self.rows.get(*at))
    }

    /// The provider of this type that is preferred among those that are switched on and have a key.
    pub fn with_key(&self, kind: &str) -> Option<&str> {
        self.best_with_key.get(kind).map(|name| &**name)
    }
}

/// What a picture is made from.
pub struct Keeper {
    store: Store,
    keyring: Arc<Keyring>,
    /// For its preview alone.
    reconciler: Reconciler,
    checks: Option<Checks>,
    /// The Git repository that manifests are pulled from.
    pull: Option<PullOptions>,
    strips: Option<(Instant, Strips)>,
}

impl Keeper {
    pub fn new(
        store: Store,
        keyring: Arc<Keyring>,
        reconciler: Reconciler,
        checks: Option<Checks>,
        pull: Option<PullOptions>,
    ) -> Self {
        Self { store, keyring, reconciler, checks, pull, strips: None }
    }

    /// Makes pictures until `stop`.
    pub async fn run(
        mut self,
        board: Board,
        publish: watch::Sender<Option<Arc<Snapshot>>>,
        stop: CancellationToken,
    ) {
        let news = self.checks.as_ref().map(Checks::news).unwrap_or_default();
        let mut feed = board.seen.subscribe();
        let mut standing = PlanStanding::default();
        let mut answered = true;
        feed.mark_changed();
        loop {
            let began = Instant::now();
            let seen = feed.borrow_and_update().clone();
            board.findings.move_to(&mut standing);
            if let Some(build) = &seen.build {
                match self.look(build, &seen, &mut standing).await {
                    Ok(snapshot) => {
                        let (providers, took) = (snapshot.rows.len(), began.elapsed());
                        debug!(
                            providers,
                            duration_ms = took.as_millis(),
                            "renewed the picture for the admin API"
                        );
                        let large = providers >= LARGE;
                        publish.send_replace(Some(Arc::new(snapshot)));
                        if large {
                            memory::give_back();
                        }
                        answered = true;
                    }
                    Err(error) => {
                        if std::mem::replace(&mut answered, false) {
                            warn!(error = %error, "the admin API shows what was last read; looking again");
                        } else {
                            debug!(error = %error, "the picture for the admin API could not be renewed");
                        }
                        // What was seen is not shown yet.
                        feed.mark_changed();
                    }
                }
            }
            // Before the first pass there is nothing to rest from.
            let rest =
                if seen.build.is_some() { (began.elapsed() * REST).max(SPACING) } else { Duration::ZERO };
            if stop.run_until_cancelled(tokio::time::sleep(rest)).await.is_none() {
                return;
            }
            let wait = if answered { REFRESH.saturating_sub(rest) } else { Duration::ZERO };
            tokio::select! {
                () = stop.cancelled() => return,
                () = news.notified() => {}
                changed = feed.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Seen by the next turn.
                    feed.mark_changed();
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One picture.
    async fn look(
        &mut self,
        build: &Arc<Build>,
        seen: &SeenByLoop,
        standing: &mut PlanStanding,
    ) -> Result<Snapshot, ReconcileError> {
        // Everything here is read after this time.
        let at = Utc::now();
        let plan = match standing.current() {
            Some(plan) => plan.clone(),
            None => self.plan(build, standing).await?,
        };
        let rows = self.store.provider_status_rows(None).await?;
        let catalog = self.store.catalog_rows().await?;
        let suspended = self.store.suspended().await?;
        let live =
            self.checks.as_ref().map(|checks| LedgerView::of(&checks.ledger(), at)).unwrap_or_default();
        let fresh = |(read, _): &(Instant, Strips)| rows.len() >= LARGE && read.elapsed() < STRIPS_LAST;
        if !self.strips.as_ref().is_some_and(fresh) {
            let hours = self.store.hours(Strips::since(at)).await?;
            self.strips = Some((Instant::now(), Strips::new(at, hours)));
        }
        let (keyring, strips) = (&self.keyring, self.strips.as_ref().map(|(_, strips)| strips));
        let pull = self.pull.as_ref();
        // Ten thousand providers take a good part of a second; other tasks go on meanwhile.
        Ok(tokio::task::block_in_place(|| {
            let pulled = pull.and_then(PullReport::read).and_then(|report| report.problem());
            let input = build::StatusInput {
                build,
                seen,
                plan: &plan,
                rows,
                catalog,
                suspended,
                live,
                strips,
                pulled,
            };
            build::snapshot(input, keyring, at)
        }))
    }

    /// How the rows stand to the manifests now, as far as the loop has not said.
    async fn plan(&self, build: &Build, standing: &mut PlanStanding) -> Result<Arc<Plan>, ReconcileError> {
        if let Some(names) = standing.some() {
            let part = self.reconciler.preview(&Pass::of_some(build, names)).await?;
            if let Some(plan) = standing.part(part) {
                return Ok(plan);
            }
        }
        let whole = self.reconciler.preview(&Pass::of_all(build)).await?;
        Ok(standing.whole(whole))
    }
}
