//! Rows of `providerd.gateway_object`: what is declared beside what is stored.
//!
//! PURE. Not its job: the tables that other programs share. Invariants: what belongs to a provider goes the way of its
//! provider; what an edit of a valid file changes or takes out is never held back, because it may be a withdrawn key;
//! nothing is deleted that a bad file may still declare.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Action, AuditEntry, Cause, ChangedTable, Digest, EventKind, FieldChange, Plan, PlanInput, diff};
use crate::{
    model::Origin,
    serving::{self, ObjectKind, ObjectName},
};

/// A row of `providerd.gateway_object`. Another program may have written anything there.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveObject {
    pub spec: Value,
    /// `None`: the row does not say where it was declared.
    pub origin: Option<Origin>,
    /// Digest of the spec that providerd wrote last; `None` in a row that another program made.
    pub applied: Option<Digest>,
}

/// One row that changes.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectChange {
    pub kind: ObjectKind,
    /// [`Action::Create`], [`Action::Update`], [`Action::Delete`], or [`Action::Release`]: it is declared elsewhere now.
    pub action: Action,
    pub name: Arc<str>,
    pub fields: Vec<FieldChange>,
    pub origin: Option<Origin>,
    /// Whose settings these are.
    pub provider: Option<Arc<str>>,
    /// What is stored then; `None` in what is deleted.
    pub spec: Option<Value>,
    /// The file that declared it is gone: it goes as providers go.
    pub pruned: bool,
}

impl ObjectChange {
    /// Of the spec, for the row that remembers it.
    pub fn digest(&self) -> Digest {
        self.spec.as_ref().map_or(Digest([0; 16]), digest)
    }

    fn is_drift(&self) -> bool {
        self.fields.iter().any(|field| field.cause == Cause::Drift)
    }

    /// Its row of the audit trail.
    pub fn audit(&self) -> AuditEntry {
        let reason = match self.action {
            _ if self.is_drift() => "changed by someone else; set back",
            Action::Delete if self.origin.is_none() => "made by someone else; no manifest declares it",
            Action::Delete => "no manifest declares it any more",
            Action::Release => "declared in another file",
            _ => "declared",
        };
        AuditEntry {
            kind: EventKind::Gateway,
            provider: self.provider.clone(),
            provider_id: None,
            detail: json!({ "changes": [self] }),
            reason: reason.to_owned(),
            origin: self.origin.clone(),
        }
    }

    /// As it stands among what is held back.
    pub(super) fn title(&self) -> String {
        format!("{} {}", self.kind.noun(), self.name)
    }
}

/// `kind`, `action`, `name`, then `values` of a new row or the `fields` that change, and `origin`.
impl Serialize for ObjectChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", &self.kind)?;
        map.serialize_entry("action", &self.action)?;
        map.serialize_entry("name", &self.name)?;
        if self.action == Action::Create {
            let values: BTreeMap<&str, &Value> =
                self.fields.iter().map(|field| (&*field.field, &field.new)).collect();
            map.serialize_entry("values", &values)?;
        } else if !self.fields.is_empty() {
            map.serialize_entry("fields", &self.fields)?;
        }
        if let Some(origin) = &self.origin {
            map.serialize_entry("origin", origin)?;
        }
        map.end()
    }
}

fn digest(spec: &Value) -> Digest {
    let mut digest = [0; 16];
    digest.copy_from_slice(Sha256::digest(spec.to_string()).get(..16).unwrap_or(&[0; 16]));
    Digest(digest)
}

/// Adds what happens to consumers, tiers, aliases and power levels, but for those that go with their file: these are
/// returned.
pub(super) fn callers(input: &PlanInput<'_>, plan: &mut Plan) -> Vec<ObjectChange> {
    let Some(catalog) = input.objects else { return Vec::new() };
    for (name, object) in &catalog.objects {
        let live = input.world.objects.get(name);
        let of_bad_file = live.and_then(|live| live.origin.as_ref()).is_some_and(|origin| {
            origin.file != object.origin.file && input.frozen.files.contains(&origin.file)
        });
        if !of_bad_file {
            plan.objects.extend(compare(name, object.spec(), &object.origin, None, live));
        }
    }
    let mut gone = Vec::new();
    for (name, live) in &input.world.objects {
        if name.0.is_of_provider()
            || catalog.objects.contains_key(name)
            || input.frozen.objects.contains(name)
        {
            continue;
        }
        let mut change = removal(name, live, None);
        // A row of another program came from no file.
        let file = live.origin.as_ref().filter(|_| live.applied.is_some()).map(|origin| &origin.file);
        match file {
            Some(file) if input.frozen.files.contains(file) => continue,
            Some(file) if !catalog.files.contains(file) => {
                change.pruned = true;
                gone.push(change);
            }
            _ => plan.objects.push(change),
        }
    }
    gone
}

/// Adds what happens to what providers and their models say for the gateway, once it is planned what becomes of them.
pub(super) fn of_providers(input: &PlanInput<'_>, plan: &mut Plan) {
    let mut wanted: HashSet<ObjectName> = HashSet::new();
    let waits = &input.world.waits;
    let stands = |name: &str| input.policy.suspended.contains(name) || waits.get(name).is_some();
    for (name, desired) in input.desired.iter().filter(|(name, _)| !stands(name)) {
        for (kind, row, line, spec) in serving::of_provider(&desired.provider) {
            let row: ObjectName = (kind, row.into());
            // What belongs to a model that waits, waits with it.
            if kind == ObjectKind::Model && waits.get(&row.1).is_some() {
                wanted.insert(row);
                continue;
            }
            let origin = Origin { line, ..desired.provider.origin.clone() };
            plan.objects.extend(compare(&row, spec, &origin, Some(name), input.world.objects.get(&row)));
            wanted.insert(row);
        }
    }
    if !input.world.objects.keys().any(|(kind, _)| kind.is_of_provider()) {
        return;
    }
    let forgotten: HashSet<&str> =
        plan.providers.iter().filter(|it| it.forget).map(|provider| &*provider.name).collect();
    let deleted: HashSet<&str> = plan
        .providers
        .iter()
        .flat_map(|provider| &provider.changes)
        .filter(|change| {
            change.kind == ChangedTable::Model && matches!(change.action, Action::Delete | Action::Retire)
        })
        .map(|change| change.name.as_str())
        .collect();
    let declared: HashSet<(&str, &str)> = input
        .desired
        .values()
        .flat_map(|it| it.provider.models.iter().map(|model| (&*it.provider.name, &*model.name)))
        .collect();
    let live: HashSet<(&str, &str)> = input
        .world
        .live
        .iter()
        .flat_map(|(name, live)| live.models.iter().map(|model| (&**name, model.name.as_str())))
        .collect();
    // A model that no manifest declares any more may have to stay as the last one of a route's cell, and with it its
    // prices.
    let stays = |provider: &str, model: &str, full: &str| {
        !declared.contains(&(provider, model)) && live.contains(&(provider, model)) && !deleted.contains(full)
    };
    let mut removals = Vec::new();
    for (row, live) in &input.world.objects {
        let (kind, name) = row;
        if !kind.is_of_provider() || wanted.contains(row) {
            continue;
        }
        let (provider, model) = name.split_once('/').unwrap_or((name, ""));
        let is_desired = input.desired.contains_key(provider);
        let keep = stands(provider)
            || waits.get(name).is_some()
            || if is_desired {
                *kind == ObjectKind::Model && stays(provider, model, name)
            } else {
                !forgotten.contains(provider)
                    && (input.world.managed.contains_key(provider)
                        || input.frozen.providers.contains(provider))
            };
        if !keep {
            removals.push(removal(row, live, Some(provider.into())));
        }
    }
    plan.objects.extend(removals);
}

fn removal((kind, name): &ObjectName, live: &LiveObject, provider: Option<Arc<str>>) -> ObjectChange {
    ObjectChange {
        kind: *kind,
        action: Action::Delete,
        name: name.clone(),
        fields: Vec::new(),
        origin: live.origin.clone().filter(|_| live.applied.is_some()),
        provider,
        spec: None,
        pruned: false,
    }
}

/// What makes the stored row the declared one; `None`: it is.
fn compare(
    (kind, name): &ObjectName,
    spec: Value,
    origin: &Origin,
    provider: Option<&Arc<str>>,
    live: Option<&LiveObject>,
) -> Option<ObjectChange> {
    let known = live.and_then(|live| live.applied) == Some(digest(&spec));
    let (action, fields) = match live {
        None => {
            let new = |(field, new)| FieldChange { field, old: None, new, cause: Cause::Declared };
            (Action::Create, shown(flat(&spec).into_iter().map(new).collect()))
        }
        Some(live) if diff::same("", &spec, &live.spec) => {
            if known && live.origin.as_ref().is_some_and(|it| it.file == origin.file) {
                return None;
            }
            (Action::Release, Vec::new())
        }
        Some(live) => {
            let cause = if known { Cause::Drift } else { Cause::Declared };
            (Action::Update, shown(differences(&spec, &live.spec, cause)))
        }
    };
    Some(ObjectChange {
        kind: *kind,
        action,
        name: name.clone(),
        fields,
        origin: Some(origin.clone()),
        provider: provider.cloned(),
        spec: Some(spec),
        pruned: false,
    })
}

/// The fields of a spec, those of its tables too; its name is no field.
fn flat(spec: &Value) -> BTreeMap<Cow<'static, str>, Value> {
    let mut fields = BTreeMap::new();
    let Value::Object(map) = spec else {
        fields.insert("spec".into(), spec.clone());
        return fields;
    };
    for (key, value) in map.iter().filter(|(key, _)| !matches!(key.as_str(), "name" | "level")) {
        match value {
            Value::Object(inner) => fields
                .extend(inner.iter().map(|(name, value)| (format!("{key}.{name}").into(), value.clone()))),
            _ => drop(fields.insert(Cow::Owned(key.clone()), value.clone())),
        }
    }
    fields
}

fn differences(new: &Value, old: &Value, cause: Cause) -> Vec<FieldChange> {
    let (new, mut old) = (flat(new), flat(old));
    let mut fields = Vec::new();
    for (field, new) in new {
        let before = old.remove(&field).unwrap_or(Value::Null);
        if !diff::same("", &new, &before) {
            fields.push(FieldChange { field, old: Some(before), new, cause });
        }
    }
    let gone = |(field, old)| FieldChange { field, old: Some(old), new: Value::Null, cause };
    fields.extend(old.into_iter().map(gone));
    fields
}

/// Prices stand in a row as whole numbers and as text: where both change, the text says it.
fn shown(mut fields: Vec<FieldChange>) -> Vec<FieldChange> {
    let texts: HashSet<String> = fields
        .iter()
        .filter_map(|field| Some(format!("prices.{}", field.field.strip_prefix("prices_usd.")?)))
        .collect();
    fields.retain(|field| !texts.contains(&*field.field));
    fields
}
