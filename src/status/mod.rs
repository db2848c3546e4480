//! The one immutable picture of catalog and statuses from which the admin API answers.
//!
//! Its job: read everything again after each pass, on news of the checks, and from time to time, and publish the result as
//! ready-made JSON. Not its job: serving it (`http`), or deciding anything. Invariants: a request never waits for
//! PostgreSQL because of this; a reading that fails leaves the last picture where it is.

mod build;
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

use self::live::{LedgerView, Strips};
use crate::{
    checks::Checks,
    process::memory,
    reconcile::{Pass, ReconcileError, Reconciler, RefusedObject},
    secret::Keyring,
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

/// Tells the keeper of the picture to look again.
#[derive(Clone, Default)]
pub struct Board {
    seen: watch::Sender<SeenByLoop>,
}

impl Board {
    /// After a pass of the reconcile loop.
    pub fn saw(&self, seen: SeenByLoop) {
        self.seen.send_replace(seen);
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
    strips: Option<(Instant, Strips)>,
}

impl Keeper {
    pub fn new(store: Store, keyring: Arc<Keyring>, reconciler: Reconciler, checks: Option<Checks>) -> Self {
        Self { store, keyring, reconciler, checks, strips: None }
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
        let mut judged: Option<Arc<Plan>> = None;
        let mut answered = true;
        feed.mark_changed();
        loop {
            let began = Instant::now();
            let changed = feed.has_changed().unwrap_or(false);
            let seen = feed.borrow_and_update().clone();
            if let Some(build) = &seen.build {
                if changed {
                    judged = None;
                }
                match self.look(build, &seen, &mut judged).await {
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

    /// One picture. The plan is made anew only where the loop saw something new: the loop itself looks at
    /// everything after each hint of drift and at every resync.
    async fn look(
        &mut self,
        build: &Arc<Build>,
        seen: &SeenByLoop,
        judged: &mut Option<Arc<Plan>>,
    ) -> Result<Snapshot, ReconcileError> {
        // Everything here is read after this time.
        let at = Utc::now();
        let plan = match judged {
            Some(plan) => plan.clone(),
            None => {
                let pass = Pass {
                    build,
                    providers: None,
                    objects: true,
                    settled: true,
                    confirmed: None,
                    revision: None,
                    lease: None,
                };
                judged.insert(Arc::new(slim(self.reconciler.preview(&pass).await?))).clone()
            }
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
        let input = build::StatusInput { build, seen, plan: &plan, rows, catalog, suspended, live, strips };
        // Ten thousand providers take a good part of a second; other tasks go on meanwhile.
        Ok(tokio::task::block_in_place(|| build::snapshot(input, keyring, at)))
    }
}

/// A plan is kept for what it says, not for what it would write.
fn slim(mut plan: Plan) -> Plan {
    for provider in &mut plan.providers {
        provider.changes = Vec::new();
        provider.record = None;
    }
    for object in &mut plan.objects {
        object.fields = Vec::new();
        object.spec = None;
    }
    plan
}
