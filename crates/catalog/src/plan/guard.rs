//! Which route cells a plan would empty.
//!
//! PURE. A cell is a (power level, user tier). Only providers that the plan touches are looked at here; whether
//! others still serve a lost cell is a question to the database, asked by the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use uuid::Uuid;

use super::{Action, Change, ChangedTable, LiveProvider, Plan, ProviderPlan, World};

/// A cell that planned providers served before and none of them serves after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LostCell {
    /// Power level and user tier, as the table holds them.
    pub cell: (String, String),
    /// The usable rules that planned providers had in it.
    pub rules: Vec<Uuid>,
}

/// The cells that the plan takes from the providers it touches.
pub fn lost_cells(plan: &Plan, world: &World) -> Vec<LostCell> {
    let mut before: BTreeMap<(String, String), Vec<Uuid>> = BTreeMap::new();
    let mut after: BTreeSet<(String, String)> = BTreeSet::new();
    // Made where a row has another name than its manifest.
    let mut by_id: Option<HashMap<Uuid, &LiveProvider>> = None;
    for provider in plan.providers.iter().filter(|provider| provider.changes.iter().any(takes_away)) {
        let live = world.live.get(&provider.name).or_else(|| {
            let all = || world.live.values().map(|live| (live.id, live)).collect();
            by_id.get_or_insert_with(all).get(&provider.id).copied()
        });
        let Some(live) = live else { continue };
        for (cell, rule) in served(live) {
            before.entry(cell).or_default().push(rule);
        }
        after.extend(served_after(live, provider));
    }
    if before.is_empty() {
        return Vec::new();
    }
    // A provider that only gains rules may fill what another one loses.
    for provider in plan.providers.iter().filter(|provider| !provider.changes.iter().any(takes_away)) {
        if let Some(live) = world.live.get(&provider.name) {
            after.extend(served_after(live, provider));
        } else {
            after.extend(created(provider));
        }
    }
    before
        .into_iter()
        .filter(|(cell, _)| !after.contains(cell))
        .map(|(cell, rules)| LostCell { cell, rules })
        .collect()
}

/// Whether a change can make a rule unusable.
fn takes_away(change: &Change) -> bool {
    matches!(change.action, Action::Delete | Action::Retire)
        || change
            .fields
            .iter()
            .any(|field| matches!(&*field.field, "enabled" | "is_active") && field.new == false)
}

fn served(live: &LiveProvider) -> impl Iterator<Item = ((String, String), Uuid)> {
    let enabled = live.enabled != Some(false);
    let models = live.models.iter().filter(move |model| enabled && model.enabled != Some(false));
    models
        .flat_map(|model| &model.rules)
        .filter(|rule| rule.is_active != Some(false))
        .filter_map(|rule| Some(((rule.power_level.clone()?, rule.user_tier.clone()?), rule.id)))
}

/// What a change sets a yes-or-no field to, if it does.
fn set_to(change: &Change, name: &str) -> Option<bool> {
    change.fields.iter().find(|field| field.field == name).and_then(|field| field.new.as_bool())
}

fn served_after(live: &LiveProvider, plan: &ProviderPlan) -> BTreeSet<(String, String)> {
    let by_id: BTreeMap<Uuid, Vec<&Change>> = plan.changes.iter().fold(BTreeMap::new(), |mut all, change| {
        all.entry(change.id).or_insert_with(Vec::new).push(change);
        all
    });
    let usable = |id: Uuid, field: &str, now: Option<bool>| {
        let changes = by_id.get(&id).map(Vec::as_slice).unwrap_or_default();
        let gone = changes.iter().any(|change| matches!(change.action, Action::Delete | Action::Retire));
        !gone && changes.iter().find_map(|change| set_to(change, field)).or(now) != Some(false)
    };
    if !usable(live.id, "enabled", live.enabled) {
        return BTreeSet::new();
    }
    let mut cells = created(plan);
    for model in live.models.iter().filter(|model| usable(model.id, "enabled", model.enabled)) {
        for rule in model.rules.iter().filter(|rule| usable(rule.id, "is_active", rule.is_active)) {
            cells.extend(rule.power_level.clone().zip(rule.user_tier.clone()));
        }
    }
    cells
}

/// The cells of rules that the plan creates on models that it does not disable.
fn created(plan: &ProviderPlan) -> BTreeSet<(String, String)> {
    let off: BTreeSet<Uuid> = plan
        .changes
        .iter()
        .filter(|change| change.kind != ChangedTable::Route && set_to(change, "enabled") == Some(false))
        .map(|change| change.id)
        .collect();
    let text = |change: &Change, name: &str| {
        change
            .fields
            .iter()
            .find(|field| field.field == name)
            .and_then(|field| field.new.as_str().map(str::to_owned))
    };
    plan.changes
        .iter()
        .filter(|change| change.kind == ChangedTable::Route && change.action == Action::Create)
        .filter(|change| {
            !off.contains(&change.parent)
                && !off.contains(&plan.id)
                && set_to(change, "is_active") != Some(false)
        })
        .filter_map(|change| text(change, "power_level").zip(text(change, "user_tier")))
        .collect()
}
