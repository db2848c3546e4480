//! What the database refuses: found by halves, so that the rest is applied.
//!
//! Invariant: everything tried here is taken back; what is refused waits with what hangs on it.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError},
};

use tracing::warn;
use uuid::Uuid;

use catalog::{
    model::Revision,
    plan::{AuditEntry, Change, ChangedTable, EventKind, NoticeKind, ObjectChange, ProviderPlan, Wait},
    serving::ObjectName,
};

use super::{
    Pass, PassOutcome, ReconcileError, Reconciler, RefusedObject,
    facts::{PassFacts, Planned},
    reports::{with_revision, write_objects},
};
use crate::store::{ReconcileTx, StoreError};

impl Reconciler {
    /// Finds out what the database refuses, and applies the rest, still in the same transaction.
    pub(super) async fn isolate(
        &self,
        tx: &mut ReconcileTx,
        pass: &Pass<'_>,
        facts: &mut PassFacts,
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
