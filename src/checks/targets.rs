//! From database rows to what the monitor checks.
//!
//! Where a provider is comes from its manifests, the key from its row, as its consumers read it. Invariant: while the row
//! says another place than the manifests, the provider is checked where it is declared, and its key stays here.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use secrecy::SecretString;
use uuid::Uuid;

use catalog::{manifest::Build, model::HealthPolicy};
use provider::origin_of;

use super::Kept;
use crate::{
    checks::monitor::{CheckTarget, Label},
    destination::{self, Declared, HeldKey, Misplaced, held_key, opened},
    secret::Keyring,
    store::{self, CheckRow, Store},
};

/// What to do about one row.
pub(super) enum Checkable {
    Yes(Box<CheckTarget>),
    /// Why not, for the operator.
    No(String),
}

/// How the manifests say that a provider is checked: its own settings over its directory's defaults. While its file or
/// one with defaults is not valid, or before the manifests are read, what they said last goes on.
pub(super) fn policy(build: Option<&Build>, name: &str, last: impl Fn() -> HealthPolicy) -> HealthPolicy {
    let declared = build.and_then(|build| Some((&build.catalog, build.catalog.providers.get(name)?)));
    match declared {
        Some((catalog, provider)) if catalog.may_lack_defaults(&provider.origin.file) => {
            catalog.health(provider).or(&last())
        }
        Some((catalog, provider)) => catalog.health(provider),
        None => last(),
    }
}

/// What is on record of it.
pub(super) fn recorded_policy(row: &CheckRow) -> HealthPolicy {
    let kept = row.memory.as_deref().and_then(Kept::parse);
    kept.and_then(|kept| kept.policy).map(|policy| *policy).unwrap_or_default()
}

/// A number that differs where anything differs that a check depends on. Not stable between programs.
pub(super) fn digest(
    row: &CheckRow,
    declared: Option<&Declared>,
    policy: &HealthPolicy,
    owner: Option<&Arc<str>>,
) -> u64 {
    let mut hash = DefaultHasher::new();
    (row.id, row.enabled, &row.place, &row.tokens, row.key_updated_at).hash(&mut hash);
    declared.map(|declared| (declared.kind.as_str(), declared.base.as_str())).hash(&mut hash);
    owner.hash(&mut hash);
    format!("{policy:?}").hash(&mut hash);
    hash.finish()
}

/// Which of these rows hold a key that belongs to another row, by their ids, with the other's name. Only where a row holds
/// another key than was applied are the other rows looked at.
///
/// # Errors
/// The database cannot be read.
pub(super) async fn copied(
    rows: &[CheckRow],
    store: &Store,
    build: Option<&Build>,
    keyring: &Keyring,
) -> store::Result<HashMap<Uuid, Arc<str>>> {
    let is_own = |row: &CheckRow| {
        let held = held_key(&row.tokens, keyring);
        held.is_none() || held == row.applied_key
    };
    if rows.iter().all(is_own) {
        return Ok(HashMap::new());
    }
    let all = store.key_rows("", true).await?;
    let mut all: HashMap<Uuid, HeldKey> = all.iter().map(|row| (row.id, row.held(build, keyring))).collect();
    // What is judged is the key that would be sent, not what the row may hold by now.
    for row in rows {
        let held = held_key(&row.tokens, keyring);
        let declared = Declared::of(build, &row.name, &row.place);
        let (id, name, applied) = (row.id, row.name.clone(), row.applied_key.clone());
        let origin = declared.map(|declared| origin_of(&declared.base));
        all.insert(id, HeldKey { id, name, held, applied, origin });
    }
    Ok(destination::copied(&all.into_values().collect::<Vec<_>>()))
}

/// The target of a row, or why there is none. `owner`: whose key it holds, if not its own.
pub(super) fn target(
    row: &CheckRow,
    declared: Option<&Declared>,
    policy: HealthPolicy,
    keyring: &Keyring,
    owner: Option<&Arc<str>>,
) -> Checkable {
    if !row.enabled {
        return Checkable::No("the provider is disabled".to_owned());
    }
    let Some(declared) = declared else {
        return Checkable::No("no manifest that can be read says where it is".to_owned());
    };
    let key = opened(&row.tokens, &keyring.byok);
    let fingerprint = key.as_ref().map(|key| keyring.fp.fingerprint(key).0);
    let key = key.map(|key| SecretString::from(key.expose()));
    let base = Some(declared.base.as_str());
    match CheckTarget::from_parts(row.name.clone(), declared.kind, base, policy, key) {
        Ok(mut target) => {
            let shared = owner.map(|owner| Misplaced::Shared(owner.clone()));
            let why = row.place.agrees(declared).err().or(shared);
            target.withheld = why.map(|why| why.to_string().into());
            target.label =
                Label { id: row.id, key_updated_at: row.key_updated_at, key_fingerprint: fingerprint };
            Checkable::Yes(Box::new(target))
        }
        Err(error) => Checkable::No(error.to_string()),
    }
}

/// The last valid catalog, shared with the reconcile loop.
pub(super) type SharedCatalog = Option<Arc<Build>>;
