//! read → plan → apply → report: the only place that carries a plan out.
//!
//! Not its job: deciding what to do (that is `plan`), or when (that is `daemon`). Invariants: one catalog is
//! applied in one transaction, alone among passes and, for a daemon, under its lease; the plan that is
//! applied was made from rows that the same transaction read; nothing is written where nothing differs; an object that
//! is locked, refused or unreadable waits with what hangs on it, and nothing else does.

mod door;
mod facts;
mod lists;
mod refused;
mod reports;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use sha2::Digest as _;
use tracing::{info, warn};

use catalog::{
    manifest::Build,
    model::{Revision, SecretRef},
    plan::{Action, AuditEntry, Change, ChangedTable, NoticeKind, Plan, Wait},
};

pub use self::door::{carry_out, fence};
use self::{
    facts::{PassFacts, Planned},
    reports::{wanted_trials, with_revision, write_objects},
};
use crate::{
    checks::key_trial::{Trial, Trials},
    config::Reconcile,
    secret::{Keyring, Resolver},
    store::{Lease, ReconcileTx, Store, StoreError},
};

/// Others write to the same rows at the same time; a pass that lost against them reads again so many times at once.
const CONFLICT_TRIES: u32 = 5;

/// Why a pass could not be carried out. The database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("another daemon reconciles this database now")]
    NotLeader,
}

impl ReconcileError {
    /// Word for the `reason` label of `reconcile_failures_total`.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Store(error) => error.reason(),
            Self::NotLeader => "not-leader",
        }
    }

    /// Whether other sessions were in the way: locks, writes at the same time, a statement that waited too long.
    pub const fn is_contended(&self) -> bool {
        matches!(self, Self::Store(error) if error.is_contended())
    }
}

/// What one pass is asked to do.
pub struct Pass<'a> {
    pub build: &'a Build,
    /// `None`: everything that is declared or managed.
    pub providers: Option<&'a BTreeSet<Arc<str>>>,
    /// Also consumers, tiers, aliases and power levels.
    pub objects: bool,
    /// The manifests have been quiet for a while: what disappeared may be believed to be gone.
    pub settled: bool,
    /// Digest of the prune that an operator confirmed.
    pub confirmed: Option<String>,
    pub revision: Option<Revision>,
    /// The lease that must still be held when the pass commits; a one-shot command has none.
    pub lease: Option<&'a Lease>,
}

impl<'a> Pass<'a> {
    /// A look at everything by a program that holds no lease.
    pub fn of_all(build: &'a Build) -> Self {
        Self {
            build,
            providers: None,
            objects: true,
            settled: true,
            confirmed: None,
            revision: None,
            lease: None,
        }
    }

    /// The same at some providers, and not at consumers and the like.
    pub fn of_some(build: &'a Build, providers: &'a BTreeSet<Arc<str>>) -> Self {
        Self { providers: Some(providers), objects: false, ..Self::of_all(build) }
    }
}

/// What one pass found and did.
#[derive(Debug, Default)]
pub struct PassOutcome {
    pub plan: Plan,
    /// The plan, less what was refused, is committed.
    pub applied: bool,
    /// The plan prunes and the manifests are not settled: nothing was applied yet but what may not wait (`at_once`).
    pub deferred: bool,
    /// An operator suspended applying: nothing was applied.
    pub suspended: bool,
    /// Providers that the database refused, with its words.
    pub refused: Vec<RefusedObject>,
    /// Rows of the audit trail that were written.
    pub events: usize,
    /// The number that the applied catalog was given.
    pub seq: Option<i64>,
    /// The plan is about everything, and nothing of it was written: it says how the rows stand to the manifests.
    pub is_whole_reading: bool,
    /// Declared keys that wait for their provider's word; the next pass goes by what it says.
    pub trials: Vec<Trial>,
}

impl PassOutcome {
    /// The database was read to hold, or now holds, exactly what is declared.
    pub fn is_as_desired(&self) -> bool {
        (self.applied || self.plan.is_empty())
            && self.plan.held.is_empty()
            && self.refused.is_empty()
            && !self.plan.notices.iter().any(|notice| notice.kind.is_waiting())
    }

    /// Providers with something that another session keeps locked.
    pub fn locked(&self) -> BTreeSet<Arc<str>> {
        let locked = self.plan.notices.iter().filter(|notice| notice.kind == NoticeKind::Locked);
        locked.map(|notice| notice.provider.clone()).collect()
    }
}

/// One object that the database refused; it stays at its last good state, with what hangs on it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct RefusedObject {
    pub provider: Arc<str>,
    /// `provider`, `provider/model` or `provider/model power × tier`.
    pub object: String,
    pub message: String,
}

/// The settings that passes go by. Clones share them: a reload changes them for all.
#[derive(Debug, Clone)]
pub struct Rules(Arc<Mutex<(Reconcile, bool)>>);

impl Rules {
    pub fn new(settings: &Reconcile, require_valid: bool) -> Self {
        Self(Arc::new(Mutex::new((settings.clone(), require_valid))))
    }

    pub fn set(&self, settings: &Reconcile, require_valid: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (settings.clone(), require_valid);
    }

    fn settings(&self) -> Reconcile {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn require_valid(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

/// Reconciles catalogs into one database.
pub struct Reconciler {
    store: Store,
    keyring: Arc<Keyring>,
    resolver: Arc<Resolver>,
    rules: Rules,
    /// `None`: keys are not tried.
    trials: Option<Arc<Trials>>,
    /// What the database refused in the last pass, so that each refusal is recorded once.
    refused: Mutex<BTreeMap<String, String>>,
    /// The last pass found rows locked: the next one looks before it writes.
    careful: AtomicBool,
}

impl Reconciler {
    pub fn new(
        store: Store,
        keyring: Arc<Keyring>,
        resolver: Arc<Resolver>,
        settings: &Reconcile,
        require_valid: bool,
        trials: Option<Arc<Trials>>,
    ) -> Self {
        let rules = Rules::new(settings, require_valid);
        Self {
            store,
            keyring,
            resolver,
            rules,
            trials,
            refused: Mutex::default(),
            careful: AtomicBool::new(false),
        }
    }

    /// Goes by rules that a reload may change.
    #[must_use]
    pub fn following(self, rules: Rules) -> Self {
        Self { rules, ..self }
    }

    /// The file that a reference reads its key from.
    pub fn watched_path(&self, reference: &SecretRef) -> Option<PathBuf> {
        self.resolver.watched_paths(reference)
    }

    /// What [`Self::reconcile`] would do now; writes nothing.
    pub async fn preview(&self, pass: &Pass<'_>) -> Result<Plan, ReconcileError> {
        let mut tx = self.store.look_begin().await?;
        let facts = self.read(&mut tx, pass).await?;
        let mut plan = self.plan(&mut tx, pass, &facts).await?.plan;
        let found = tx.discovery_notices().await?;
        tx.rollback().await?;
        plan.notices.extend(lists::notices(found, &pass.build.catalog));
        Ok(plan)
    }

    /// Brings the database to what the catalog declares, in one transaction.
    ///
    /// # Errors
    /// The database could not be reached, refused the transaction as a whole, or the lease is lost. Nothing was
    /// applied then. Objects that the database refuses one by one are in [`PassOutcome::refused`].
    pub async fn reconcile(&self, pass: &Pass<'_>) -> Result<PassOutcome, ReconcileError> {
        let mut tries = CONFLICT_TRIES;
        loop {
            match self.attempt(pass).await {
                Err(ReconcileError::Store(StoreError::Conflict(what))) if tries > 0 => {
                    tracing::debug!(%what, "the same rows were changed at the same time; reading again");
                    tries -= 1;
                }
                // It was not expected, so which rows that are is not known.
                Err(ReconcileError::Store(StoreError::Locked(_))) if !self.careful.swap(true, Relaxed) => {}
                result => return result,
            }
        }
    }

    async fn attempt(&self, pass: &Pass<'_>) -> Result<PassOutcome, ReconcileError> {
        let mut tx = self.store.reconcile_begin().await?;
        let mut facts = match self.read(&mut tx, pass).await {
            Err(ReconcileError::Store(StoreError::Locked(text))) => {
                return Err(self.store.name_holders(StoreError::Locked(text)).await.into());
            }
            facts => facts?,
        };
        let mut planned = self.plan(&mut tx, pass, &facts).await?;
        if self.careful.load(Relaxed) && !planned.plan.is_empty() {
            planned = self.without_locked(&mut tx, pass, &mut facts, planned).await?;
        }
        let Planned { plan, lost } = planned;
        for (power, tier) in &lost {
            warn!(power_level = %power, user_tier = %tier, guard = ?self.rules.settings().route_guard, "a route cell loses its last usable model");
        }
        let trials = wanted_trials(&plan, pass, &facts.secrets, &self.keyring);
        let mut outcome = PassOutcome { plan, suspended: facts.suspended, trials, ..PassOutcome::default() };
        if !outcome.suspended && !pass.settled && prunes(&outcome.plan) {
            outcome.deferred = true;
        }
        if outcome.deferred {
            return self.at_once(tx, pass, outcome).await;
        }
        let reports = self.new_reports(&mut tx, &outcome.plan, pass).await?;
        if outcome.suspended || (outcome.plan.is_empty() && reports.is_none()) {
            if pass.providers.is_none() && pass.objects {
                let found = tx.discovery_notices().await?;
                outcome.plan.notices.extend(lists::notices(found, &pass.build.catalog));
                outcome.is_whole_reading = true;
            }
            tx.rollback().await?;
            return Ok(outcome);
        }
        let tokens = self.encrypt(&outcome.plan, &facts.secrets);
        outcome.seq =
            Some(fence(&mut tx, pass.lease, pass.revision.as_ref(), &plan_digest(&outcome.plan)).await?);
        let revision = pass.revision.as_ref();
        tx.savepoint().await?;
        let mut wrote = true;
        match self.write(&mut tx, &outcome.plan, &tokens, reports, revision).await {
            Ok(events) => outcome.events = events,
            Err(error) if error.is_data() => {
                warn!(error = %error, "the database refused part of the catalog; applying the rest");
                self.isolate(&mut tx, pass, &mut facts, &tokens, &mut outcome).await?;
                wrote = !outcome.plan.is_empty() || outcome.events > 0;
            }
            Err(error) => return Err(error.into()),
        }
        if !wrote {
            tx.rollback().await?;
            outcome.seq = None;
            return Ok(outcome);
        }
        tx.commit().await?;
        outcome.applied = true;
        if !outcome.plan.is_empty() {
            info!(summary = %outcome.plan.summary(), events = outcome.events, "applied");
        }
        Ok(outcome)
    }

    /// Applies what does not wait for the manifests to settle: what edits did to consumers and the like, because it may be
    /// a withdrawn key.
    async fn at_once(
        &self,
        mut tx: ReconcileTx,
        pass: &Pass<'_>,
        mut outcome: PassOutcome,
    ) -> Result<PassOutcome, ReconcileError> {
        let objects = outcome.plan.objects.iter().filter(|it| it.provider.is_none() && !it.pruned);
        let part = Plan { objects: objects.cloned().collect(), ..Plan::default() };
        if part.is_empty() {
            tx.rollback().await?;
            return Ok(outcome);
        }
        outcome.seq = Some(fence(&mut tx, pass.lease, pass.revision.as_ref(), &plan_digest(&part)).await?);
        outcome.events = self.write(&mut tx, &part, &HashMap::new(), None, pass.revision.as_ref()).await?;
        tx.commit().await?;
        info!(summary = %part.summary(), events = outcome.events, "applied; the rest waits for the manifests to settle");
        Ok(outcome)
    }

    /// The plan without what other sessions keep locked.
    async fn without_locked(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        facts: &mut PassFacts,
        mut planned: Planned,
    ) -> Result<Planned, ReconcileError> {
        for round in 0.. {
            let locked = tx.locked(&planned.plan.providers).await?;
            if locked.is_empty() {
                if round == 0 {
                    self.careful.store(false, Relaxed);
                }
                break;
            }
            for (object, message) in locked {
                facts.world.waits.insert(object, Wait { kind: NoticeKind::Locked, message });
            }
            planned = self.plan(tx, pass, facts).await?;
        }
        Ok(planned)
    }

    /// Writes the plan and what the audit trail says about it; how many rows of the trail that are.
    async fn write(
        &self,
        tx: &mut ReconcileTx,
        plan: &Plan,
        tokens: &HashMap<Arc<str>, String>,
        reports: Option<(String, Vec<AuditEntry>)>,
        revision: Option<&Revision>,
    ) -> Result<usize, StoreError> {
        carry_out(tx, &plan.providers, tokens, revision).await?;
        let mut events = tx.record_plans(&plan.providers, revision).await?;
        events += write_objects(tx, &plan.objects, revision).await?;
        if plan.providers.is_empty() && !plan.objects.is_empty() {
            tx.tell_gateways().await?;
        }
        if let Some((reported, entries)) = reports {
            tx.meta_set("reported", &reported).await?;
            events += entries.len();
            tx.record(&with_revision(entries, revision)).await?;
        }
        Ok(events)
    }
}

/// Names the desired states that a plan brings about.
fn plan_digest(plan: &Plan) -> String {
    let mut hash = sha2::Sha256::new();
    for provider in &plan.providers {
        hash.update(provider.id);
        hash.update(provider.record.as_ref().map_or([0; 16], |record| record.digest.0));
    }
    for object in &plan.objects {
        hash.update(object.kind.as_str());
        hash.update(object.name.as_bytes());
        hash.update(object.digest().0);
    }
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a plan takes away providers, or objects of files that are gone. What moves between files is gone for a
/// moment, and a provider would come back with another identity and without its history.
fn prunes(plan: &Plan) -> bool {
    let taken = |change: &Change| matches!(change.action, Action::Delete | Action::Retire);
    let changes = plan.providers.iter().flat_map(|provider| &provider.changes);
    changes.filter(|change| change.kind == ChangedTable::Provider).any(taken)
        || plan.objects.iter().any(|object| object.pruned)
}
