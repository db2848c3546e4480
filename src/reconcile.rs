//! read → plan → apply → report: the only place that carries a plan out.
//!
//! Not its job: deciding what to do (that is `plan`), or when (that is `daemon`). Invariants: one catalog is
//! applied in one transaction, alone among passes and, for a daemon, under its lease; the plan that is
//! applied was made from rows that the same transaction read; nothing is written where nothing differs; an object that
//! is locked, refused or unreadable waits with what hangs on it, and nothing else does.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use rayon::prelude::*;
use sha2::Digest as _;
use tracing::{info, warn};
use uuid::Uuid;

use catalog::{
    manifest::{Build, MAX_RULES},
    model::{HealthPolicy, Provider, Revision, SecretRef},
    plan::{
        Action, AuditEntry, Change, ChangedTable, Desired, DesiredKey, EventKind, Hold, HoldKind, KeyAction,
        Notice, NoticeKind, ObjectChange, Plan, PlanInput, Policy, ProviderPlan, PruneLimit, Wait, World,
        lost_cells, plan,
    },
    policy::RouteGuard,
    serving::ObjectName,
};

use crate::{
    checks::{
        key_trial::{Trial, Trials},
        monitor::CheckTarget,
    },
    config::{self, Reconcile},
    discover,
    secret::{Keyring, Resolver, Secret},
    store::{Lease, NewEvent, ReconcileTx, Scope, Store, StoreError, Suspended},
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
    /// Digest of the prune that a person confirmed.
    pub confirmed: Option<String>,
    pub revision: Option<Revision>,
    /// The lease that must still be held when the pass commits; a one-shot command has none.
    pub lease: Option<&'a Lease>,
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

/// All that a plan follows from, as one transaction read it, with the secrets it needs to be carried out.
struct Facts {
    desired: BTreeMap<Arc<str>, Desired>,
    world: World,
    policy: Policy,
    with_usage: HashSet<Uuid>,
    secrets: HashMap<Arc<str>, Secret>,
    /// An operator stopped all applying.
    suspended: bool,
}

/// A plan, and the cells that would lose their last usable model.
struct Planned {
    plan: Plan,
    lost: Vec<(String, String)>,
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
    /// `None`: nobody tries keys.
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

    /// Goes by rules that somebody else may change.
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
        plan.notices.extend(discover::notices(found, &pass.build.catalog));
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
                // It was not expected, so nobody looked which rows that are.
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
            tx.rollback().await?;
            return Ok(outcome);
        }
        let tokens = self.encrypt(&outcome.plan, &facts.secrets);
        outcome.seq = Some(self.fence(&mut tx, pass, &plan_digest(&outcome.plan)).await?);
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
        outcome.seq = Some(self.fence(&mut tx, pass, &plan_digest(&part)).await?);
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
        facts: &mut Facts,
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
        tx.apply(&plan.providers, tokens, revision).await?;
        let mut events = tx.record_plans(&plan.providers, revision).await?;
        events += write_objects(tx, &plan.objects, revision).await?;
        if !plan.is_empty() {
            tx.tell_gateways().await?;
        }
        if let Some((reported, entries)) = reports {
            tx.meta_set("reported", &reported).await?;
            events += entries.len();
            tx.record(&with_revision(entries, revision)).await?;
        }
        Ok(events)
    }

    /// Finds out what the database refuses, and applies the rest, still in the same transaction.
    async fn isolate(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        facts: &mut Facts,
        tokens: &HashMap<Arc<str>, String>,
        outcome: &mut PassOutcome,
    ) -> Result<(), ReconcileError> {
        let revision = pass.revision.as_ref();
        tx.rollback_to().await?;
        let mut refused = refusals(tx, &outcome.plan.providers, tokens, revision).await?;
        let mut bad: HashSet<ObjectName> = HashSet::new();
        for (object, message) in refused_objects(tx, &outcome.plan.objects, revision).await? {
            bad.insert((object.kind, object.name.clone()));
            refused.push(object_refusal(object, message));
        }
        // What each object is not refused for, all together may be: then their providers wait as a whole.
        for whole in [false, true] {
            for it in
                refused.iter().filter(|it| outcome.plan.providers.iter().any(|plan| plan.name == it.provider))
            {
                let object = if whole { it.provider.to_string() } else { it.object.clone() };
                let wait = Wait { kind: NoticeKind::Refused, message: it.message.clone() };
                facts.world.waits.insert(object, wait);
            }
            let Planned { mut plan, .. } = self.plan(tx, pass, facts).await?;
            plan.objects.retain(|object| !bad.contains(&(object.kind, object.name.clone())));
            let reports = self.new_reports(tx, &plan, pass).await?;
            match self.write(tx, &plan, tokens, reports, revision).await {
                Ok(events) => {
                    outcome.plan = plan;
                    outcome.events = events;
                    break;
                }
                Err(error) if error.is_data() && !whole => {
                    tx.rollback_to().await?;
                    for provider in &plan.providers {
                        if let Some(message) =
                            tx.refuses(std::slice::from_ref(provider), tokens, revision).await?
                        {
                            let object = provider.name.to_string();
                            refused.push(RefusedObject { provider: provider.name.clone(), object, message });
                        }
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        for it in &refused {
            warn!(provider = %it.provider, object = %it.object, error = %it.message, "refused by the database; its last good state stays");
        }
        let events = with_revision(self.new_refusals(&refused), revision);
        tx.record(&events).await?;
        outcome.events += events.len();
        outcome.refused = refused;
        Ok(())
    }

    /// Audit rows for refusals that the previous pass did not have.
    fn new_refusals(&self, refused: &[RefusedObject]) -> Vec<AuditEntry> {
        let mut before = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = refused.iter().filter(|it| before.get(&it.object) != Some(&it.message));
        let entries = fresh.map(|it| AuditEntry {
            kind: EventKind::Refusal,
            provider: Some(it.provider.clone()),
            provider_id: None,
            detail: serde_json::json!({ "object": it.object }),
            reason: it.message.clone(),
            origin: None,
        });
        let entries = entries.collect();
        *before = refused.iter().map(|it| (it.object.clone(), it.message.clone())).collect();
        entries
    }

    /// Proves that nobody else may be writing, in the transaction that is about to write. Returns the catalog's number.
    async fn fence(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        digest: &str,
    ) -> Result<i64, ReconcileError> {
        if let Some(lease) = pass.lease
            && !tx.lease_check(lease).await?
        {
            return Err(ReconcileError::NotLeader);
        }
        let seq = tx.fence_read().await?;
        let holder = pass.lease.map_or(Uuid::nil(), |lease| lease.holder);
        Ok(tx.fence_advance(seq, pass.revision.as_ref(), digest, holder).await?)
    }

    /// Reads all that a plan follows from.
    async fn read(&self, tx: &mut ReconcileTx, pass: &Pass<'_>) -> Result<Facts, ReconcileError> {
        let catalog = &pass.build.catalog;
        let chosen: Vec<Arc<Provider>> = match pass.providers {
            None => catalog.providers.values().cloned().collect(),
            Some(names) => names.iter().filter_map(|name| catalog.providers.get(name)).cloned().collect(),
        };
        let scope = match pass.providers {
            None => Scope::All { declared: chosen.iter().map(|provider| provider.name.clone()).collect() },
            Some(names) => Scope::Providers(names.iter().cloned().collect()),
        };
        // The database sends its rows while the keys are fingerprinted.
        let open = |token: &str| self.keyring.open(token);
        let resolved = self.resolve(&chosen);
        let mut world = tx.world(&scope, &open).await?;
        world.objects = tx.objects(pass.providers, pass.objects).await?;
        let suspended = tx.suspended().await?;

        let rules: Vec<_> = chosen.par_iter().map(|provider| pass.build.index.rules_for(provider)).collect();
        let mut secrets = HashMap::new();
        let mut desired = BTreeMap::new();
        for ((provider, (key, secret)), rules) in chosen.into_iter().zip(resolved).zip(rules) {
            if let Some(secret) = secret {
                secrets.insert(provider.name.clone(), secret);
            }
            if rules.len() > MAX_RULES {
                let message = format!("its models would have {} rules, more than {MAX_RULES}", rules.len());
                let wait = Wait { kind: NoticeKind::Refused, message };
                world.waits.insert(provider.name.to_string(), wait);
            }
            desired.insert(provider.name.clone(), Desired { provider, rules, key });
        }
        let policy = self.policy(pass, &suspended);
        let none = HashSet::new();
        let candidates = PlanInput {
            desired: &desired,
            world: &world,
            frozen: &catalog.frozen,
            objects: None,
            policy: &policy,
            with_usage: &none,
            new_id: &new_id,
        }
        .prune_candidates();
        let mut with_usage = none;
        if !candidates.is_empty() {
            with_usage = tx.with_usage(&candidates).await?;
            world.managed_total = tx.managed_total().await?;
        }
        Ok(Facts { desired, world, policy, with_usage, secrets, suspended: suspended.all.is_some() })
    }

    /// What follows from the facts.
    async fn plan(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        facts: &Facts,
    ) -> Result<Planned, ReconcileError> {
        let Facts { desired, world, .. } = facts;
        let frozen = &pass.build.catalog.frozen;
        let input = |policy: &Policy, with_usage: &HashSet<Uuid>| {
            plan(&PlanInput {
                desired,
                world,
                frozen,
                objects: pass.objects.then_some(&*pass.build.catalog),
                policy,
                with_usage,
                new_id: &new_id,
            })
        };
        let mut plan = input(&facts.policy, &facts.with_usage);
        let mut with_usage = Cow::Borrowed(&facts.with_usage);
        let used = tx.models_with_usage(&deleted_models(&plan)).await?;
        if !used.is_empty() {
            with_usage.to_mut().extend(used);
            plan = input(&facts.policy, &with_usage);
        }
        let lost = self.lost(tx, &plan, world).await?;
        if !lost.is_empty() && self.rules.settings().route_guard == RouteGuard::Hold {
            let mut policy = facts.policy.clone();
            policy.hold_cells = lost.iter().cloned().collect();
            plan = input(&policy, &with_usage);
            plan.held.extend(lost.iter().map(|cell| self.route_hold(cell)));
        }
        Ok(Planned { plan, lost })
    }

    fn route_hold(&self, (power, tier): &(String, String)) -> Hold {
        Hold {
            kind: HoldKind::Route,
            objects: vec![format!("{power} × {tier}")],
            digest: None,
            reason: format!("route cell {power} × {tier} would lose its last usable model"),
        }
    }

    /// The cells that had a usable model and would have none, over the whole database.
    async fn lost(
        &self,
        tx: &mut ReconcileTx,
        plan: &Plan,
        world: &World,
    ) -> Result<Vec<(String, String)>, StoreError> {
        if self.rules.settings().route_guard == RouteGuard::Off {
            return Ok(Vec::new());
        }
        let lost = lost_cells(plan, world);
        if lost.is_empty() {
            return Ok(Vec::new());
        }
        let cells: Vec<(String, String)> = lost.iter().map(|lost| lost.cell.clone()).collect();
        let rules: Vec<Uuid> = lost.iter().flat_map(|lost| lost.rules.iter().copied()).collect();
        let served = tx.cells_served_elsewhere(&cells, &[], &rules).await?;
        Ok(cells.into_iter().filter(|cell| !served.contains(cell)).collect())
    }

    fn policy(&self, pass: &Pass<'_>, suspended: &Suspended) -> Policy {
        let rules = self.rules.settings();
        Policy {
            drift: rules.drift,
            prune_limit: prune_limit(&rules),
            confirmed: pass.confirmed.clone(),
            suspended: suspended.providers.keys().cloned().collect(),
            hold_cells: BTreeSet::new(),
            trials: self.trials.as_ref().map(|trials| trials.verdicts()),
            require_valid: self.rules.require_valid(),
        }
    }

    /// What every key reference holds now, in the order of `providers`.
    fn resolve(&self, providers: &[Arc<Provider>]) -> Vec<(DesiredKey, Option<Secret>)> {
        let one = |provider: &Arc<Provider>| match &provider.api_key {
            None => (DesiredKey::Undeclared, None),
            Some(reference) => match self.resolver.resolve(reference) {
                Ok(secret) => (DesiredKey::Resolved(self.keyring.fp.fingerprint(&secret)), Some(secret)),
                Err(error) => (DesiredKey::Unresolved(error.to_string()), None),
            },
        };
        providers.par_iter().map(one).collect()
    }

    /// Tokens for exactly the keys that the plan sets.
    fn encrypt(&self, plan: &Plan, secrets: &HashMap<Arc<str>, Secret>) -> HashMap<Arc<str>, String> {
        let set: Vec<&ProviderPlan> = plan
            .providers
            .iter()
            .filter(|provider| provider.key.as_ref().is_some_and(|key| key.action == KeyAction::Set))
            .collect();
        set.par_iter()
            .filter_map(|provider| {
                let secret = secrets.get(&provider.name)?;
                Some((provider.name.clone(), self.keyring.byok.encrypt(secret)))
            })
            .collect()
    }

    /// Audit rows for what is held back or reported and was not before, with the new list of what was.
    ///
    /// The list lives in the database, so that neither a restart nor a second daemon reports again, and a pass
    /// that finds what the last one found writes nothing.
    async fn new_reports(
        &self,
        tx: &mut ReconcileTx,
        plan: &Plan,
        pass: &Pass<'_>,
    ) -> Result<Option<(String, Vec<AuditEntry>)>, StoreError> {
        let current: BTreeMap<String, AuditEntry> = plan
            .held
            .iter()
            .map(Hold::audit)
            .chain(
                plan.notices
                    .iter()
                    .filter(|notice| {
                        use NoticeKind as N;
                        matches!(notice.kind, N::Drift | N::KeyRefused | N::KeyUntried)
                    })
                    .filter_map(Notice::audit),
            )
            .map(|entry| (named(&entry), entry))
            .collect();
        // That a refused key is tried again, and refused again, is no news.
        let refused = plan.notices.iter().filter(|notice| notice.kind == NoticeKind::KeyRefused);
        let twins: BTreeSet<String> =
            refused.filter_map(|notice| Some(named(&notice.twin()?.audit()?))).collect();
        // What a trial that is still to be held may find again has not gone away.
        let untried = plan.notices.iter().any(|notice| notice.kind == NoticeKind::KeyUntried);
        let whole = pass.providers.is_none() && !untried;
        if current.is_empty() && !whole {
            return Ok(None);
        }
        let stored = tx.meta_get("reported").await?.unwrap_or_default();
        let known: BTreeSet<&str> = stored.split_whitespace().collect();
        let nothing_new = current.keys().all(|key| known.contains(key.as_str()));
        let mut next: BTreeSet<&str> = current.keys().chain(&twins).map(String::as_str).collect();
        if nothing_new && (!whole || known == next) {
            return Ok(None);
        }
        if !whole {
            next.extend(&known);
        }
        let next = next.into_iter().collect::<Vec<_>>().join(" ");
        let fresh =
            current.iter().filter(|(key, _)| !known.contains(key.as_str())).map(|(_, entry)| entry.clone());
        Ok(Some((next.clone(), fresh.collect())))
    }
}

/// A short name for what is reported, the same in every pass.
fn named(entry: &AuditEntry) -> String {
    short_digest(&format!("{:?}{}{}", entry.kind, entry.detail, entry.reason))
}

/// The declared keys that the plan wants a word about, with what it takes to ask.
fn wanted_trials(
    plan: &Plan,
    pass: &Pass<'_>,
    secrets: &HashMap<Arc<str>, Secret>,
    keyring: &Keyring,
) -> Vec<Trial> {
    let untried = plan.notices.iter().filter(|notice| notice.kind == NoticeKind::KeyUntried);
    let places = ["type", "api_base_url", "config.base_url"];
    let moved = |name: &str| {
        plan.notices.iter().any(|notice| {
            notice.kind == NoticeKind::Drift
                && *notice.provider == *name
                && notice.fields.iter().any(|change| places.contains(&&*change.field))
        })
    };
    let trial = |notice: &Notice| {
        // No key goes out while the row names another place, and stays so.
        if moved(&notice.provider) {
            return None;
        }
        let secret = secrets.get(&notice.provider)?;
        let provider = pass.build.catalog.providers.get(&notice.provider)?;
        let key = Some(secret.expose().into());
        let target = CheckTarget::new(provider, &HealthPolicy::default(), key).ok()?;
        Some(Trial { fingerprint: keyring.fp.fingerprint(secret), target: Arc::new(target) })
    };
    untried.filter_map(trial).collect()
}

/// The objects that the database refuses, found by halves: a thousand good ones cost ten looks.
async fn refusals(
    tx: &mut ReconcileTx,
    plans: &[ProviderPlan],
    tokens: &HashMap<Arc<str>, String>,
    revision: Option<&Revision>,
) -> Result<Vec<RefusedObject>, StoreError> {
    let mut found = Vec::new();
    let mut open = vec![plans];
    while let Some(some) = open.pop() {
        if some.is_empty() {
            continue;
        }
        let Some(message) = tx.refuses(some, tokens, revision).await? else { continue };
        let (front, back) = some.split_at(some.len() / 2);
        match some {
            [one] => found.extend(refused_within(tx, one, message, tokens, revision).await?),
            _ => open.extend([back, front]),
        }
    }
    Ok(found)
}

/// What of one provider the database refuses: models, rules, or all of it.
async fn refused_within(
    tx: &mut ReconcileTx,
    plan: &ProviderPlan,
    message: String,
    tokens: &HashMap<Arc<str>, String>,
    revision: Option<&Revision>,
) -> Result<Vec<RefusedObject>, StoreError> {
    let of = |object: &str, message: String| RefusedObject {
        provider: plan.name.clone(),
        object: object.to_owned(),
        message,
    };
    let (own, rest): (Vec<Change>, Vec<Change>) =
        plan.changes.iter().cloned().partition(|change| change.kind == ChangedTable::Provider);
    let with = |changes: &[&Change]| ProviderPlan {
        changes: own.iter().chain(changes.iter().copied()).cloned().collect(),
        ..plan.clone()
    };
    if own.is_empty() && rest.len() == 1 {
        return Ok(rest.iter().map(|change| of(&change.name, message.clone())).collect());
    }
    if let Some(message) = tx.refuses(&[with(&[])], tokens, revision).await? {
        return Ok(vec![of(&plan.name, message)]);
    }
    let mut found = Vec::new();
    let mut bad: HashSet<Uuid> = HashSet::new();
    let models: Vec<&Change> = rest.iter().filter(|change| change.kind == ChangedTable::Model).collect();
    let rules: Vec<&Change> = rest.iter().filter(|change| change.kind == ChangedTable::Route).collect();
    let mut open = vec![models.as_slice()];
    while let Some(some) = open.pop() {
        if some.is_empty() {
            continue;
        }
        let Some(message) = tx.refuses(&[with(some)], tokens, revision).await? else { continue };
        match some {
            [one] => {
                bad.insert(one.id);
                found.push(of(&one.name, message));
            }
            _ => {
                let (front, back) = some.split_at(some.len() / 2);
                open.extend([back, front]);
            }
        }
    }
    // Rules hang on models, which may be new themselves.
    let good: Vec<&Change> = models.iter().copied().filter(|model| !bad.contains(&model.id)).collect();
    let rules: Vec<&Change> = rules.into_iter().filter(|rule| !bad.contains(&rule.parent)).collect();
    let mut open = vec![rules.as_slice()];
    while let Some(some) = open.pop() {
        if some.is_empty() {
            continue;
        }
        let all: Vec<&Change> = good.iter().chain(some).copied().collect();
        let Some(message) = tx.refuses(&[with(&all)], tokens, revision).await? else { continue };
        match some {
            [one] => found.push(of(&one.name, message)),
            _ => {
                let (front, back) = some.split_at(some.len() / 2);
                open.extend([back, front]);
            }
        }
    }
    if found.is_empty() {
        found.push(of(&plan.name, message));
    }
    Ok(found)
}

fn object_refusal(object: &ObjectChange, message: String) -> RefusedObject {
    let full = format!("{} {}", object.kind.noun(), object.name);
    let provider = object.provider.clone().unwrap_or_else(|| full.as_str().into());
    RefusedObject { provider, object: full, message }
}

/// The rows of the gateway's objects that the database refuses, by halves.
async fn refused_objects<'p>(
    tx: &mut ReconcileTx,
    objects: &'p [ObjectChange],
    revision: Option<&Revision>,
) -> Result<Vec<(&'p ObjectChange, String)>, StoreError> {
    let mut found = Vec::new();
    let mut open = vec![objects];
    while let Some(some) = open.pop() {
        if some.is_empty() {
            continue;
        }
        let tried = write_objects(tx, some, revision).await;
        let message = match tried {
            Ok(_) => None,
            Err(error) if error.is_data() => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        tx.rollback_to().await?;
        let Some(message) = message else { continue };
        match some {
            [one] => found.push((one, message)),
            _ => {
                let (front, back) = some.split_at(some.len() / 2);
                open.extend([back, front]);
            }
        }
    }
    Ok(found)
}

/// Writes rows of the gateway's objects and what the audit trail says about them; how many rows of the trail that are.
async fn write_objects(
    tx: &mut ReconcileTx,
    objects: &[ObjectChange],
    revision: Option<&Revision>,
) -> Result<usize, StoreError> {
    if objects.is_empty() {
        return Ok(0);
    }
    tx.apply_objects(objects, revision).await?;
    let entries = objects.iter().map(ObjectChange::audit).collect();
    tx.record(&with_revision(entries, revision)).await?;
    Ok(objects.len())
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

/// A random id. Random numbers are fetched for many at once: the kernel takes longer to be asked than to answer.
fn new_id() -> Uuid {
    const IDS: usize = 256;
    thread_local! {
        static READY: RefCell<Vec<[u8; 16]>> = const { RefCell::new(Vec::new()) };
    }
    let bytes = READY.with_borrow_mut(|ready| {
        if ready.is_empty() {
            let mut fresh = vec![[0; 16]; IDS];
            if getrandom::fill(fresh.as_flattened_mut()).is_ok() {
                *ready = fresh;
            }
        }
        ready.pop()
    });
    bytes.map_or_else(Uuid::new_v4, |bytes| uuid::Builder::from_random_bytes(bytes).into_uuid())
}

fn short_digest(text: &str) -> String {
    sha2::Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn deleted_models(plan: &Plan) -> Vec<Uuid> {
    let changes = plan.providers.iter().flat_map(|provider| &provider.changes);
    let deleted = |change: &&Change| change.kind == ChangedTable::Model && change.action == Action::Delete;
    changes.filter(deleted).map(|change| change.id).collect()
}

/// Whether a plan takes away providers, or objects of files that are gone. What moves between files is gone for a
/// moment, and a provider would come back with another identity and without its history.
fn prunes(plan: &Plan) -> bool {
    let taken = |change: &Change| matches!(change.action, Action::Delete | Action::Retire);
    let changes = plan.providers.iter().flat_map(|provider| &provider.changes);
    changes.filter(|change| change.kind == ChangedTable::Provider).any(taken)
        || plan.objects.iter().any(|object| object.pruned)
}

fn prune_limit(settings: &Reconcile) -> PruneLimit {
    let minimum = usize::try_from(settings.prune_limit_min).unwrap_or(usize::MAX);
    match settings.prune_limit {
        config::PruneLimitSetting::Percent(percent) => PruneLimit { percent, at_least: minimum },
        config::PruneLimitSetting::Count(count) => {
            PruneLimit { percent: 0, at_least: usize::try_from(count).unwrap_or(usize::MAX).max(minimum) }
        }
    }
}

fn with_revision(entries: Vec<AuditEntry>, revision: Option<&Revision>) -> Vec<NewEvent> {
    let one = |entry: AuditEntry| NewEvent {
        kind: entry.kind,
        provider: entry.provider,
        provider_id: entry.provider_id,
        detail: entry.detail,
        reason: entry.reason,
        origin: entry.origin,
        revision: revision.cloned(),
    };
    entries.into_iter().map(one).collect()
}
