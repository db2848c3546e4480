//! What a pass says about what it did and did not do: rows of the audit trail, keys to try.
//!
//! Invariant: what was reported once is not reported again while it lasts, by this daemon or another.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sha2::Digest as _;

use catalog::{
    model::{HealthPolicy, Revision},
    plan::{AuditEntry, Hold, Notice, NoticeKind, ObjectChange, Plan},
};

use super::{Pass, Reconciler};
use crate::{
    checks::{key_trial::Trial, monitor::CheckTarget},
    secret::{Keyring, Secret},
    store::{NewEvent, ReconcileTx, StoreError},
};

impl Reconciler {
    /// Audit rows for what is held back or reported and was not before, with the new list of what was.
    ///
    /// The list lives in the database, so that neither a restart nor a second daemon reports again, and a pass
    /// that finds what the last one found writes nothing.
    pub(super) async fn new_reports(
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
pub(super) fn wanted_trials(
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

/// Writes rows of the gateway's objects and what the audit trail says about them; how many rows of the trail that are.
pub(super) async fn write_objects(
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

fn short_digest(text: &str) -> String {
    sha2::Sha256::digest(text.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn with_revision(entries: Vec<AuditEntry>, revision: Option<&Revision>) -> Vec<NewEvent> {
    entries.into_iter().map(|entry| NewEvent::of(entry, revision)).collect()
}
