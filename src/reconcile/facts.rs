//! What a plan follows from, as one transaction reads it, and the plan.
//!
//! Not its job: deciding (`catalog::plan`), writing. Invariant: nothing here writes.

use std::{
    borrow::Cow,
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use rayon::prelude::*;
use uuid::Uuid;

use catalog::{
    manifest::MAX_RULES,
    model::Provider,
    plan::{
        Action, Change, ChangedTable, Desired, DesiredKey, Hold, HoldKind, KeyAction, NoticeKind, Plan,
        PlanInput, Policy, ProviderPlan, Wait, World, lost_cells, plan,
    },
    policy::RouteGuard,
};

use super::{Pass, ReconcileError, Reconciler};
use crate::{
    secret::Secret,
    store::{ReconcileTx, Scope, StoreError, Suspended},
};

/// All that a plan follows from, as one transaction read it, with the secrets it needs to be carried out.
pub(super) struct PassFacts {
    pub desired: BTreeMap<Arc<str>, Desired>,
    pub world: World,
    pub policy: Policy,
    pub with_usage: HashSet<Uuid>,
    pub secrets: HashMap<Arc<str>, Secret>,
    /// An operator stopped all applying.
    pub suspended: bool,
}

/// A plan, and the cells that would lose their last usable model.
pub(super) struct Planned {
    pub plan: Plan,
    pub lost: Vec<(String, String)>,
}

impl Reconciler {
    /// Reads all that a plan follows from.
    pub(super) async fn read(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
    ) -> Result<PassFacts, ReconcileError> {
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
        Ok(PassFacts { desired, world, policy, with_usage, secrets, suspended: suspended.all.is_some() })
    }

    /// What follows from the facts.
    pub(super) async fn plan(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        facts: &PassFacts,
    ) -> Result<Planned, ReconcileError> {
        let PassFacts { desired, world, .. } = facts;
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
            prune_limit: rules.prune_bound(),
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
    pub(super) fn encrypt(
        &self,
        plan: &Plan,
        secrets: &HashMap<Arc<str>, Secret>,
    ) -> HashMap<Arc<str>, String> {
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

fn deleted_models(plan: &Plan) -> Vec<Uuid> {
    let changes = plan.providers.iter().flat_map(|provider| &provider.changes);
    let deleted = |change: &&Change| change.kind == ChangedTable::Model && change.action == Action::Delete;
    changes.filter(deleted).map(|change| change.id).collect()
}
