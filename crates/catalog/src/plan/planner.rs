//! (desired, recorded, live) → [`Plan`]: which rows are created, adopted, changed, given up and pruned.
//!
//! Not its job: reading or writing anything, and holding secrets. Invariants: applying a plan and planning
//! again yields nothing; no row is deleted that providerd did not create or adopt; no field changes that no
//! manifest sets.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use rayon::prelude::*;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    Action, Cause, Change, ChangedTable, FieldChange, Fingerprint, Hold, HoldKind, KeyAction, KeyChange,
    LiveKey, LiveModel, LiveProvider, LiveRule, Managed, Notice, NoticeKind, Plan, ProviderPlan, Record,
    RecordedRow, RecordedRule, World,
    diff::{self, LiveRow, Lowered},
    objects::{self, ObjectChange},
    record::{NextFields, NextRecord, NextRow, NextRule, SaidDigest},
};
use crate::{
    model::{Catalog, Cell, Frozen, Model, Origin, Provider, spelled_alike},
    policy::DriftPolicy,
    routing::DesiredRule,
};

/// One declared provider with the rules its models serve and the key its reference holds.
#[derive(Debug, Clone)]
pub struct Desired {
    pub provider: Arc<Provider>,
    pub rules: Vec<DesiredRule>,
    pub key: DesiredKey,
}

/// What a provider's key reference yields now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DesiredKey {
    /// The manifest has no `api_key`: whatever is stored is left alone.
    Undeclared,
    Resolved(Fingerprint),
    /// Why it cannot be resolved; names the reference, never a value.
    Unresolved(String),
}

/// What a provider says about a declared key before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyTrial {
    /// It was proven.
    Works,
    /// It is definitively rejected.
    Rejected,
    /// The provider does not say.
    Unclear,
}

/// How many providers may be pruned at once without an operator's confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PruneLimit {
    /// Share of the managed providers.
    pub percent: u8,
    /// At least so many, whatever the share yields.
    pub at_least: usize,
}

impl PruneLimit {
    /// Whether pruning `count` of `managed` providers needs to be confirmed.
    pub fn exceeded(self, count: usize, managed: usize) -> bool {
        self.is_large(count, managed) || (count > 0 && count == managed)
    }

    /// The same for what may well go altogether, such as the only consumer.
    fn is_large(self, count: usize, of: usize) -> bool {
        let share = of.saturating_mul(usize::from(self.percent)) / 100;
        count > share.max(self.at_least)
    }
}

/// What decides besides the manifests and the database.
#[derive(Debug, Clone)]
pub struct Policy {
    pub drift: DriftPolicy,
    pub prune_limit: PruneLimit,
    /// Digest of the prune that an operator confirmed.
    pub confirmed: Option<String>,
    /// Providers that an operator suspended.
    pub suspended: BTreeSet<Arc<str>>,
    /// Cells (power level, user tier) that must keep the usable models they have.
    pub hold_cells: BTreeSet<(String, String)>,
    /// Verdicts about declared keys, by provider and key. `None`: keys cannot be tried, and a declared key replaces
    /// whatever is stored.
    pub trials: Option<HashMap<(Arc<str>, Fingerprint), KeyTrial>>,
    /// A declared key replaces a working one only if its provider does not reject it.
    pub require_valid: bool,
}

/// Everything a plan follows from.
pub struct PlanInput<'a> {
    /// The declared providers in scope.
    pub desired: &'a BTreeMap<Arc<str>, Desired>,
    /// The rows of everything in scope.
    pub world: &'a World,
    pub frozen: &'a Frozen,
    /// The catalog whose consumers, tiers, aliases and power levels are in scope; `None`: those are not.
    pub objects: Option<&'a Catalog>,
    pub policy: &'a Policy,
    /// What has usage, among the providers that [`prunable`] names and models that would be deleted.
    pub with_usage: &'a HashSet<Uuid>,
    /// Where new ids come from.
    pub new_id: &'a (dyn Fn() -> Uuid + Sync),
}

/// What is recorded and no longer declared, and no bad file may still mean.
fn prunable<'a>(input: &'a PlanInput<'_>) -> impl Iterator<Item = &'a Managed> {
    input.world.managed.values().filter(|managed| {
        !input.desired.contains_key(&managed.name)
            && !input.frozen.files.contains(&managed.origin.file)
            && !input.frozen.providers.contains(&managed.name)
            && !input.policy.suspended.contains(&managed.name)
            && input.world.waits.get(&managed.name).is_none()
    })
}

impl PlanInput<'_> {
    /// Ids of providers whose usage history decides between deleting and retiring.
    pub fn prune_candidates(&self) -> Vec<Uuid> {
        prunable(self).map(|managed| managed.provider_id).collect()
    }
}

/// Plans everything in scope. Pure and deterministic but for the ids of new rows.
pub fn plan(input: &PlanInput<'_>) -> Plan {
    let by_id: BTreeMap<Uuid, &LiveProvider> =
        input.world.live.values().map(|live| (live.id, live)).collect();
    let held = HeldCells::of(&input.policy.hold_cells);
    let planned: Vec<(Option<ProviderPlan>, Vec<Notice>)> = input
        .desired
        .par_iter()
        .map(|(name, desired)| {
            let managed = input.world.managed.get(name);
            if input.policy.suspended.contains(name) {
                return (
                    None,
                    vec![notice(name, NoticeKind::Suspended, "suspended by an operator: nothing is applied")],
                );
            }
            if let Some(wait) = input.world.waits.get(name) {
                return (None, vec![notice(name, wait.kind, wait.message.clone())]);
            }
            let live = input
                .world
                .live
                .get(name)
                .or_else(|| managed.and_then(|managed| by_id.get(&managed.provider_id).copied()));
            One { input, desired, managed, live, held: &held, notices: Vec::new() }.plan()
        })
        .collect();
    let mut plan = Plan::default();
    for (provider, notices) in planned {
        plan.providers.extend(provider);
        plan.notices.extend(notices);
    }
    for name in &input.frozen.providers {
        if input.world.managed.contains_key(name) && !input.desired.contains_key(name) {
            plan.notices.push(notice(
                name,
                NoticeKind::Frozen,
                "declared in an invalid file: its last good state stays",
            ));
        }
    }
    let gone = objects::callers(input, &mut plan);
    let twins = input.world.unreadable.iter().filter(|row| row.column == "name");
    for twin in twins.filter(|row| input.world.waits.get(&row.provider).is_none()) {
        plan.notices.push(notice(&twin.provider, NoticeKind::Twin, twin.to_string()));
    }
    case_twins(input, &mut plan);
    for managed in input.world.managed.values().filter(|it| !input.desired.contains_key(&it.name)) {
        if let Some(wait) = input.world.waits.get(&managed.name) {
            plan.notices.push(notice(&managed.name, wait.kind, wait.message.clone()));
        }
    }
    prune(input, &by_id, &held, gone, &mut plan);
    objects::of_providers(input, &mut plan);
    plan.providers.sort_by(|a, b| a.name.cmp(&b.name));
    plan
}

/// Says which declared providers have a row beside them whose name differs only in case: programs that look names up
/// without case take one for the other.
fn case_twins(input: &PlanInput<'_>, plan: &mut Plan) {
    let names = input.desired.keys().chain(input.world.live.keys());
    let plain = |lower: &str| {
        let desired = input.desired.get_key_value(lower).map(|(name, _)| name);
        desired.or_else(|| input.world.live.get_key_value(lower).map(|(name, _)| name))
    };
    for group in spelled_alike(names, plain) {
        for name in group.iter().filter(|name| input.desired.contains_key(**name)) {
            let others: Vec<String> =
                group.iter().filter(|it| *it != name).take(3).map(|it| format!("`{it}`")).collect();
            let message = format!(
                "differs from {} only in case; programs that look names up without case take one for the other",
                others.join(", ")
            );
            plan.notices.push(notice(name, NoticeKind::Twin, message));
        }
    }
}

pub(super) fn notice(provider: &Arc<str>, kind: NoticeKind, message: impl Into<String>) -> Notice {
    Notice { provider: provider.clone(), kind, message: message.into(), fields: Vec::new() }
}

/// Adds the prune to the plan, or the reason why it is held back. `objects`: those that go with their files.
fn prune(
    input: &PlanInput<'_>,
    by_id: &BTreeMap<Uuid, &LiveProvider>,
    held: &HeldCells<'_>,
    objects: Vec<ObjectChange>,
    plan: &mut Plan,
) {
    let (mut gone, mut stay) = (Vec::new(), Vec::new());
    for managed in prunable(input) {
        match by_id.get(&managed.provider_id) {
            // A declared provider may have taken over the row under its own name.
            Some(live) if !input.desired.contains_key(&live.name) => {
                let held = held.serves(live);
                if held { &mut stay } else { &mut gone }.push((managed, Some(*live)));
            }
            _ => gone.push((managed, None)),
        }
    }
    let deleted: Vec<&Managed> =
        gone.iter().filter(|(_, live)| live.is_some()).map(|(managed, _)| *managed).collect();
    let digest = prune_digest(&deleted, &objects);
    // Providers that this plan takes under management count, or applying it would change its own verdict.
    let fresh =
        plan.providers.iter().filter(|provider| !input.world.managed.contains_key(&provider.name)).count();
    let managed_total = input.world.managed_total.saturating_add(fresh);
    let all_objects = input.world.objects.keys().filter(|(kind, _)| !kind.is_of_provider()).count();
    let limit = input.policy.prune_limit;
    let reason = if deleted.is_empty() && objects.is_empty() {
        None
    } else if let Some(reason) = &input.frozen.no_prune {
        Some(format!("nothing is pruned while {reason}"))
    } else if input.policy.confirmed.as_deref() == Some(digest.as_str()) {
        None
    } else if limit.exceeded(deleted.len(), managed_total) {
        Some(format!("{} of {} managed providers would be pruned", deleted.len(), managed_total))
    } else if limit.is_large(objects.len(), all_objects) {
        let what = "consumers, tiers, aliases and power levels would be pruned";
        Some(format!("{} of {all_objects} {what}", objects.len()))
    } else {
        None
    };
    if let Some(reason) = reason {
        let confirmable = input.frozen.no_prune.is_none().then_some(digest);
        let providers = deleted.iter().map(|managed| managed.name.to_string());
        let objects = providers.chain(objects.iter().map(ObjectChange::title)).collect();
        plan.held.push(Hold { kind: HoldKind::Prune, objects, digest: confirmable, reason });
        return;
    }
    plan.objects.extend(objects);
    for (managed, live) in gone {
        plan.providers.push(removal(managed, live, input.with_usage.contains(&managed.provider_id)));
    }
}

/// Twelve hexadecimal digits that name exactly this set of providers and objects.
fn prune_digest(managed: &[&Managed], objects: &[ObjectChange]) -> String {
    let mut hash = Sha256::new();
    for managed in managed {
        hash.update(managed.provider_id);
        hash.update(managed.name.as_bytes());
        hash.update([0]);
    }
    for object in objects {
        hash.update(object.kind.as_str());
        hash.update([1]);
        hash.update(object.name.as_bytes());
        hash.update([0]);
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn removal(managed: &Managed, live: Option<&LiveProvider>, has_usage: bool) -> ProviderPlan {
    let mut plan = ProviderPlan {
        name: managed.name.clone(),
        id: managed.provider_id,
        changes: Vec::new(),
        key: None,
        record: None,
        forget: true,
    };
    let Some(live) = live else { return plan };
    let mut change = Change {
        kind: ChangedTable::Provider,
        action: Action::Delete,
        id: live.id,
        parent: live.id,
        name: managed.name.to_string(),
        fields: Vec::new(),
        origin: Some(managed.origin.clone()),
    };
    if has_usage {
        change.action = Action::Retire;
        let old = Some(live.value("enabled"));
        change.fields.push(FieldChange {
            field: "enabled".into(),
            old,
            new: false.into(),
            cause: Cause::Declared,
        });
        let old = match &live.key {
            LiveKey::Known { fingerprint, .. } => Some(fingerprint.clone()),
            LiveKey::Absent | LiveKey::Undecryptable => None,
        };
        if live.key != LiveKey::Absent {
            let reason = "pruned; its usage history stays".into();
            plan.key = Some(KeyChange { action: KeyAction::Wipe, old, new: None, reason });
        }
    }
    plan.changes.push(change);
    plan
}

/// The cells that must keep what serves them.
pub(super) struct HeldCells<'a>(HashSet<(&'a str, &'a str)>);

impl<'a> HeldCells<'a> {
    fn of(cells: &'a BTreeSet<(String, String)>) -> Self {
        Self(cells.iter().map(|(level, tier)| (level.as_str(), tier.as_str())).collect())
    }

    /// Whether a caller of one of them is served by one of the provider's models.
    fn serves(&self, live: &LiveProvider) -> bool {
        !self.0.is_empty()
            && live.enabled != Some(false)
            && live.models.iter().any(|model| self.model_serves(model))
    }

    fn model_serves(&self, model: &LiveModel) -> bool {
        !self.0.is_empty()
            && model.enabled != Some(false)
            && model.rules.iter().any(|rule| rule.is_active != Some(false) && self.contains(rule))
    }

    fn contains(&self, rule: &LiveRule) -> bool {
        let cell = rule.power_level.as_deref().zip(rule.user_tier.as_deref());
        cell.is_some_and(|cell| self.0.contains(&cell))
    }
}

/// The planning of one declared provider.
pub(super) struct One<'a> {
    pub(super) input: &'a PlanInput<'a>,
    pub(super) desired: &'a Desired,
    pub(super) managed: Option<&'a Managed>,
    pub(super) live: Option<&'a LiveProvider>,
    pub(super) held: &'a HeldCells<'a>,
    pub(super) notices: Vec<Notice>,
}

/// Rules of one kind, found by what they are for: a model may have a hundred thousand.
struct RuleMaps<'r> {
    live: HashMap<Uuid, &'r LiveRule>,
    /// The first by id of each cell.
    live_cells: HashMap<CellRef<'r>, &'r LiveRule>,
    recorded: HashMap<&'r Cell, &'r RecordedRule>,
}

/// Power level, user tier and task type.
type CellRef<'r> = (Option<&'r str>, Option<&'r str>, Option<&'r str>);

fn cell_ref(cell: &Cell) -> CellRef<'_> {
    (Some(cell.power_level.as_str()), Some(&cell.user_tier), cell.task_type.as_deref())
}

fn live_cell(live: &LiveRule) -> CellRef<'_> {
    (live.power_level.as_deref(), live.user_tier.as_deref(), live.task_type.as_deref())
}

impl<'r> RuleMaps<'r> {
    fn of(live: &'r [LiveRule], recorded: &[&'r RecordedRule]) -> Self {
        let mut live_cells: HashMap<CellRef<'r>, &'r LiveRule> = HashMap::with_capacity(live.len());
        for rule in live {
            let first = live_cells.entry(live_cell(rule)).or_insert(rule);
            if rule.id < first.id {
                *first = rule;
            }
        }
        // Of several with one cell the first is meant.
        let recorded = recorded.iter().rev().map(|rule| (&rule.cell, *rule)).collect();
        Self { live: live.iter().map(|rule| (rule.id, rule)).collect(), live_cells, recorded }
    }
}

impl<'a> One<'a> {
    fn plan(mut self) -> (Option<ProviderPlan>, Vec<Notice>) {
        let name = self.desired.provider.name.clone();
        let known: Option<Record> =
            self.managed.and_then(|managed| serde_json::from_str(&managed.record).ok());
        let record = known.clone().unwrap_or_default();
        let mut next = NextRecord::default();
        let mut said = SaidDigest::new(&self.desired.provider);
        let id = self
            .live
            .map(|live| live.id)
            .or(self.managed.map(|it| it.provider_id))
            .unwrap_or_else(self.input.new_id);

        let mut changes = Vec::new();
        self.row(known.is_some(), &record, &mut next, &mut said, id, &mut changes);
        let waiting = self.models(id, &record, &mut next, &mut said, &mut changes);
        self.notices.extend(waiting);
        let key = self.key(&record, &mut next.keys);
        // While a key is on trial, nothing was given up and nothing declared: the last one goes on.
        let waits = match (&self.desired.key, &next.keys.key) {
            (DesiredKey::Resolved(declared), Some(kept)) if kept != declared => {
                Some(DesiredKey::Resolved(kept.clone()))
            }
            _ => None,
        };
        let desired_key = waits.as_ref().unwrap_or(&self.desired.key);
        let digest = said.finish(&self.desired.rules, desired_key, self.live.map(|live| &live.key));

        if self.input.policy.drift == DriftPolicy::Report {
            self.report_drift(&mut changes);
        }
        let written = changes.iter().any(|change| change.action != Action::Release) || key.is_some();
        let up_to_date =
            self.managed.is_some_and(|managed| managed.digest == digest && managed.provider_id == id);
        if !written
            && up_to_date
            && next.keys.key == record.key
            && next.keys.foreign_key == record.foreign_key
        {
            return (None, self.notices);
        }
        let origin = self.desired.provider.origin.clone();
        if changes.is_empty() && key.is_none() {
            changes.push(self.change(
                ChangedTable::Provider,
                Action::Release,
                id,
                id,
                name.to_string(),
                Vec::new(),
            ));
        }
        // Serializing plain values with string keys cannot fail; an empty record would only mean re-adoption.
        let text = serde_json::to_string(&next).unwrap_or_default();
        let record = Managed { name: name.clone(), provider_id: id, digest, origin, record: text.into() };
        (Some(ProviderPlan { name, id, changes, key, record: Some(record), forget: false }), self.notices)
    }

    fn change(
        &self,
        kind: ChangedTable,
        action: Action,
        id: Uuid,
        parent: Uuid,
        name: String,
        fields: Vec<FieldChange>,
    ) -> Change {
        let origin = Some(self.desired.provider.origin.clone());
        Change { kind, action, id, parent, name, fields, origin }
    }

    fn row(
        &self,
        known: bool,
        record: &Record,
        next: &mut NextRecord<'_>,
        said: &mut SaidDigest,
        id: Uuid,
        changes: &mut Vec<Change>,
    ) {
        let provider = &self.desired.provider;
        let lowered = diff::lower_provider(provider);
        said.fields(&lowered);
        let name = provider.name.to_string();
        match self.live {
            None => changes.push(self.change(
                ChangedTable::Provider,
                Action::Create,
                id,
                id,
                name,
                diff::creation(&lowered),
            )),
            Some(live) => {
                let recorded = known.then_some(&record.provider);
                let mut fields = diff::changes(&lowered, live, recorded);
                if live.name != provider.name {
                    let (old, new) = (Some((&*live.name).into()), (&*provider.name).into());
                    fields.push(FieldChange { field: "name".into(), old, new, cause: Cause::Drift });
                }
                if self.keeps_serving(live) {
                    fields.retain(|field| !(field.field == "enabled" && field.new == false));
                }
                self.push(
                    ChangedTable::Provider,
                    known,
                    id,
                    id,
                    name,
                    fields,
                    diff::released(&lowered, &record.provider),
                    changes,
                );
            }
        }
        next.provider = NextFields::New(lowered);
    }

    /// Disabling this provider would empty a cell that must be kept.
    fn keeps_serving(&self, live: &LiveProvider) -> bool {
        self.held.serves(live)
    }

    /// An existing row: adopt it, update it, give fields up, or leave it alone.
    #[allow(clippy::too_many_arguments)]
    fn push(
        &self,
        kind: ChangedTable,
        known: bool,
        id: Uuid,
        parent: Uuid,
        name: String,
        fields: Vec<FieldChange>,
        released: Vec<FieldChange>,
        changes: &mut Vec<Change>,
    ) {
        let action = if known { Action::Update } else { Action::Adopt };
        if !known || !fields.is_empty() {
            changes.push(self.change(kind, action, id, parent, name.clone(), fields));
        }
        if !released.is_empty() {
            changes.push(self.change(kind, Action::Release, id, parent, name, released));
        }
    }

    fn models<'r>(
        &self,
        provider_id: Uuid,
        record: &'r Record,
        next: &mut NextRecord<'r>,
        said: &mut SaidDigest,
        changes: &mut Vec<Change>,
    ) -> Vec<Notice>
    where
        'a: 'r,
    {
        let mut waiting = Vec::new();
        let live_models = self.live.map(|live| live.models.as_slice()).unwrap_or_default();
        let by_name: BTreeMap<&str, &LiveModel> =
            live_models.iter().map(|live| (live.name.as_str(), live)).collect();
        let by_id: HashMap<Uuid, &LiveModel> = live_models.iter().map(|live| (live.id, live)).collect();
        let rules = self.rules_by_model();
        let mut recorded_rules: HashMap<&str, Vec<&'r RecordedRule>> = HashMap::new();
        for rule in &record.rules {
            recorded_rules.entry(&rule.model).or_default().push(rule);
        }
        let recorded_rules = |model: &str| recorded_rules.get(model).map(Vec::as_slice).unwrap_or_default();
        let provider: &'a Provider = &self.desired.provider;
        for model in &provider.models {
            let recorded = record.models.get(&model.name);
            let live = by_name
                .get(&*model.name)
                .copied()
                .or_else(|| recorded.and_then(|known| by_id.get(&known.id).copied()));
            let id = live.map(|live| live.id).unwrap_or_else(self.input.new_id);
            let blended = live.is_none()
                || recorded.is_some_and(|known| known.fields.contains_key("cost_per_1m_tokens"));
            let lowered = diff::lower_model(model, blended);
            said.model(&model.name, &lowered);
            let name = format!("{}/{}", provider.name, model.name);
            if let Some(wait) = self.input.world.waits.get(&name) {
                waiting.push(notice(&provider.name, wait.kind, format!("{name}: {}", wait.message)));
                said.waits(&name);
                if let Some(known) = recorded {
                    let fields = NextFields::Kept(&known.fields);
                    next.models.insert(&model.name, NextRow { id: known.id, fields });
                    next.rules.extend(recorded_rules(&model.name).iter().map(|rule| NextRule::kept(rule)));
                }
                continue;
            }
            let at = changes.len();
            match live {
                None => changes.push(self.change(
                    ChangedTable::Model,
                    Action::Create,
                    id,
                    provider_id,
                    name,
                    diff::creation(&lowered),
                )),
                Some(live) => self.model_row(model, live, recorded, &lowered, provider_id, name, changes),
            }
            for change in changes.iter_mut().skip(at) {
                change.origin = Some(Origin { line: model.line, ..provider.origin.clone() });
            }
            let recorded = recorded_rules(&model.name);
            let said_rules = rules.get(&*model.name).map(Vec::as_slice).unwrap_or_default();
            waiting.extend(self.rules(model, id, live, said_rules, recorded, next, said, changes));
            next.models.insert(&model.name, NextRow { id, fields: NextFields::New(lowered) });
        }
        let declared: HashSet<&str> = provider.models.iter().map(|model| &*model.name).collect();
        for (name, recorded) in &record.models {
            let declared = declared.contains(&**name);
            let live = by_id.get(&recorded.id).copied();
            if let (false, Some(live)) = (declared, live) {
                let full = format!("{}/{name}", provider.name);
                let wait = self.input.world.waits.get(&full);
                if let Some(wait) = wait {
                    waiting.push(notice(&provider.name, wait.kind, format!("{full}: {}", wait.message)));
                    said.waits(&full);
                }
                if wait.is_some() || self.held.model_serves(live) {
                    let fields = NextFields::Kept(&recorded.fields);
                    next.models.insert(name, NextRow { id: recorded.id, fields });
                    next.rules.extend(recorded_rules(name).iter().map(|rule| NextRule::kept(rule)));
                } else {
                    self.model_removal(live, provider_id, name, recorded_rules(name), changes);
                }
            }
        }
        waiting
    }

    /// A model with usage is disabled instead of deleted, and so its rules go by themselves.
    fn model_removal(
        &self,
        live: &LiveModel,
        provider_id: Uuid,
        name: &str,
        recorded: &[&RecordedRule],
        changes: &mut Vec<Change>,
    ) {
        let full = format!("{}/{name}", self.desired.provider.name);
        if !self.input.with_usage.contains(&live.id) {
            changes.push(self.change(
                ChangedTable::Model,
                Action::Delete,
                live.id,
                provider_id,
                full,
                Vec::new(),
            ));
            return;
        }
        let disabled = FieldChange {
            field: "enabled".into(),
            old: live.enabled.map(Into::into),
            new: false.into(),
            cause: Cause::Declared,
        };
        changes.push(self.change(
            ChangedTable::Model,
            Action::Retire,
            live.id,
            provider_id,
            full.clone(),
            vec![disabled],
        ));
        let recorded: HashSet<Uuid> = recorded.iter().map(|known| known.id).collect();
        let managed = |rule: &&LiveRule| recorded.contains(&rule.id);
        for rule in live.rules.iter().filter(managed) {
            let word = |part: &Option<String>| part.clone().unwrap_or_default();
            let name = format!("{full} {} × {}", word(&rule.power_level), word(&rule.user_tier));
            changes.push(self.change(
                ChangedTable::Route,
                Action::Delete,
                rule.id,
                live.id,
                name,
                Vec::new(),
            ));
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn model_row(
        &self,
        model: &Model,
        live: &LiveModel,
        recorded: Option<&RecordedRow>,
        lowered: &Lowered,
        provider_id: Uuid,
        name: String,
        changes: &mut Vec<Change>,
    ) {
        let mut fields = diff::changes(lowered, live, recorded.map(|known| &known.fields));
        if live.name != *model.name {
            let (old, new) = (Some(live.name.as_str().into()), (&*model.name).into());
            fields.push(FieldChange { field: "name".into(), old, new, cause: Cause::Drift });
        }
        if self.held.model_serves(live) {
            fields.retain(|field| !(field.field == "enabled" && field.new == false));
        }
        let released = recorded.map(|known| diff::released(lowered, &known.fields)).unwrap_or_default();
        self.push(
            ChangedTable::Model,
            recorded.is_some(),
            live.id,
            provider_id,
            name,
            fields,
            released,
            changes,
        );
    }

    fn rules_by_model(&self) -> BTreeMap<&'a str, Vec<&'a DesiredRule>> {
        let mut rules: BTreeMap<&str, Vec<&DesiredRule>> = BTreeMap::new();
        for rule in &self.desired.rules {
            rules.entry(&rule.model).or_default().push(rule);
        }
        rules
    }

    #[allow(clippy::too_many_arguments)]
    fn rules<'r>(
        &self,
        model: &Model,
        model_id: Uuid,
        live: Option<&'r LiveModel>,
        desired: &[&'r DesiredRule],
        recorded: &[&'r RecordedRule],
        next: &mut NextRecord<'r>,
        said: &mut SaidDigest,
        changes: &mut Vec<Change>,
    ) -> Vec<Notice> {
        let mut waiting = Vec::new();
        let live_rules = live.map(|live| live.rules.as_slice()).unwrap_or_default();
        let maps = RuleMaps::of(live_rules, recorded);
        let mut done: HashSet<Uuid> = HashSet::with_capacity(desired.len());
        let full_name = |cell: &Cell| format!("{}/{} {cell}", self.desired.provider.name, model.name);
        let waits = &self.input.world.waits;
        let mut waits = |cell: &Cell, said: &mut SaidDigest| {
            let name = if waits.is_empty() { return false } else { full_name(cell) };
            let Some(wait) = waits.get(&name) else { return false };
            let message = format!("{name}: {}", wait.message);
            waiting.push(notice(&self.desired.provider.name, wait.kind, message));
            said.waits(&name);
            true
        };
        for rule in desired {
            let known = maps.recorded.get(&rule.cell).copied();
            let frozen = known.filter(|known| {
                known.file != rule.origin.file && self.input.frozen.files.contains(&known.file)
            });
            if frozen.is_some() || waits(&rule.cell, said) {
                // The file that the rule came from is bad now, or its row cannot be changed: its last good state stays.
                done.extend(known.map(|known| known.id));
                next.rules.extend(known.map(NextRule::kept));
                continue;
            }
            let live = known
                .and_then(|known| maps.live.get(&known.id))
                .or_else(|| maps.live_cells.get(&cell_ref(&rule.cell)))
                .copied();
            let id = live.map(|live| live.id).unwrap_or_else(self.input.new_id);
            let lowered = diff::lower_rule(rule);
            let at = changes.len();
            match live {
                None => {
                    let mut fields = cell_fields(&rule.cell);
                    fields.extend(diff::creation(&lowered));
                    changes.push(self.change(
                        ChangedTable::Route,
                        Action::Create,
                        id,
                        model_id,
                        full_name(&rule.cell),
                        fields,
                    ));
                }
                Some(live) => {
                    let mut fields = diff::changes(&lowered, live, known.map(|known| &known.fields));
                    if self.held.contains(live) {
                        fields.retain(|field| !(field.field == "is_active" && field.new == false));
                    }
                    fields.extend(cell_drift(live, &rule.cell));
                    let released =
                        known.map(|known| diff::released(&lowered, &known.fields)).unwrap_or_default();
                    let name = full_name(&rule.cell);
                    self.push(
                        ChangedTable::Route,
                        known.is_some(),
                        id,
                        model_id,
                        name,
                        fields,
                        released,
                        changes,
                    );
                }
            }
            for change in changes.iter_mut().skip(at) {
                change.origin = Some(rule.origin.clone());
            }
            done.insert(id);
            next.rules.push(NextRule {
                id,
                model: &rule.model,
                cell: &rule.cell,
                file: &rule.origin.file,
                fields: NextFields::New(lowered),
            });
        }
        for known in recorded {
            if done.contains(&known.id) {
                continue;
            }
            let Some(live) = maps.live.get(&known.id) else { continue };
            let held = self.held.contains(live);
            if held || waits(&known.cell, said) || self.input.frozen.files.contains(&known.file) {
                next.rules.push(NextRule::kept(known));
            } else {
                changes.push(self.change(
                    ChangedTable::Route,
                    Action::Delete,
                    live.id,
                    model_id,
                    full_name(&known.cell),
                    Vec::new(),
                ));
            }
        }
        waiting
    }

    /// Under `reconcile.drift = "report"` what another program changed is reported, not corrected.
    fn report_drift(&mut self, changes: &mut Vec<Change>) {
        for change in changes.iter_mut().filter(|change| change.action == Action::Update) {
            let (drift, declared) =
                std::mem::take(&mut change.fields).into_iter().partition(|field| field.cause == Cause::Drift);
            change.fields = declared;
            let drift: Vec<FieldChange> = drift;
            if !drift.is_empty() {
                let message = format!("{} was changed by someone else", change.name);
                let provider = self.desired.provider.name.clone();
                self.notices.push(Notice { provider, kind: NoticeKind::Drift, message, fields: drift });
            }
        }
        changes.retain(|change| change.action != Action::Update || !change.fields.is_empty());
    }
}

/// What another writer changed of the columns that say which cell a rule is for; a task where none is declared included.
fn cell_drift(live: &LiveRule, cell: &Cell) -> impl Iterator<Item = FieldChange> {
    let (level, tier, task) = live_cell(live);
    let (own_level, own_tier, own_task) = cell_ref(cell);
    let columns =
        [("power_level", level, own_level), ("user_tier", tier, own_tier), ("task_type", task, own_task)];
    columns.into_iter().filter(|(_, old, new)| old != new).map(|(field, old, new)| FieldChange {
        field: field.into(),
        old: old.map(Into::into),
        new: new.into(),
        cause: Cause::Drift,
    })
}

/// The columns that say which cell a new rule is for.
fn cell_fields(cell: &Cell) -> Vec<FieldChange> {
    let field = |field: &'static str, new| FieldChange {
        field: field.into(),
        old: None,
        new,
        cause: Cause::Declared,
    };
    let mut fields = vec![
        field("power_level", cell.power_level.as_str().into()),
        field("user_tier", (&*cell.user_tier).into()),
    ];
    fields.extend(cell.task_type.as_deref().map(|task| field("task_type", task.into())));
    fields
}
