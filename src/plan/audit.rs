//! The rows of the audit trail that a plan causes.
//!
//! PURE. One row for what happens to one provider in one transaction, field by field, and one for each drift,
//! key operation and hold, so that each can be searched for by its kind.

use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{Action, Cause, Hold, Kind, Notice, NoticeKind, Plan, ProviderPlan};
use crate::model::Origin;

macro_rules! kinds {
    ($($(#[$meta:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        /// What an audit row is about.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum EventKind { $($(#[$meta])* #[serde(rename = $word)] $variant),+ }

        impl EventKind {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

kinds! {
    /// A declared change was applied.
    Change = "change",
    /// Someone else changed a managed value; set back or reported.
    Drift = "drift",
    /// A prune or a route change waits for a person's word.
    Hold = "hold",
    /// The database refused an object, or a provider a key.
    Refusal = "refusal",
    /// A key was set, replaced, wiped, rotated or found changed.
    Key = "key",
    /// `health_status` changed.
    Health = "health",
    /// `api_key_test_status` changed.
    KeyTest = "key_test",
    /// Applying was stopped.
    Suspend = "suspend",
    /// Applying was started again.
    Resume = "resume",
    /// The Git repository has another commit: followed, or refused.
    Source = "source",
    /// Manifests were written from the database.
    Import = "import",
    /// A call to the admin API.
    Admin = "admin",
}

/// A row of the audit trail before it has a time and a number.
#[derive(Debug, Clone, PartialEq)]
pub struct AuditEntry {
    pub kind: EventKind,
    pub provider: Option<Arc<str>>,
    pub provider_id: Option<Uuid>,
    pub detail: Value,
    pub reason: String,
    pub origin: Option<Origin>,
}

/// The rows that applying this plan writes.
pub fn audit(plan: &Plan) -> Vec<AuditEntry> {
    let of = |provider: &ProviderPlan| {
        [applied(provider), drift(provider), key(provider)].into_iter().flatten().collect()
    };
    let rows: Vec<Vec<AuditEntry>> = plan.providers.par_iter().map(of).collect();
    rows.into_iter().flatten().collect()
}

fn entry(provider: &ProviderPlan, kind: EventKind, detail: Value, reason: String) -> AuditEntry {
    let origin = provider.changes.iter().find_map(|change| change.origin.clone());
    let origin = origin.or_else(|| provider.record.as_ref().map(|record| record.origin.clone()));
    let (name, id) = (Some(provider.name.clone()), Some(provider.id));
    AuditEntry { kind, provider: name, provider_id: id, detail, reason, origin }
}

fn applied(provider: &ProviderPlan) -> Option<AuditEntry> {
    let mut changes = Vec::new();
    for change in &provider.changes {
        if change.action == Action::Create {
            // Nothing was there before, so names and values say it all; ten thousand of these are written at once.
            let values: serde_json::Map<String, Value> =
                change.fields.iter().map(|field| (field.field.to_string(), field.new.clone())).collect();
            changes.push(json!({ "kind": change.kind, "action": change.action, "name": change.name, "values": values }));
            continue;
        }
        let declared = change.fields.iter().filter(|field| field.cause != Cause::Drift);
        let fields: Vec<Value> = declared
            .map(|field| json!({ "field": field.field, "old": field.old, "new": field.new, "cause": field.cause }))
            .collect();
        let only_drift = fields.is_empty() && !change.fields.is_empty();
        if !only_drift {
            let mut row =
                json!({ "kind": change.kind, "action": change.action, "name": change.name, "id": change.id });
            if let (false, Some(row)) = (fields.is_empty(), row.as_object_mut()) {
                row.insert("fields".into(), fields.into());
            }
            changes.push(row);
        }
    }
    if changes.is_empty() {
        return None;
    }
    let reason = match provider.changes.first().map(|change| change.action) {
        Some(Action::Delete) => "no manifest declares it any more",
        Some(Action::Retire) => "no manifest declares it any more; its usage history stays",
        Some(Action::Release) => "the manifest gave up fields or moved",
        Some(Action::Adopt) => "declared; the row existed",
        _ => "declared",
    };
    let mut detail = json!({ "changes": changes });
    if let (true, Some(key), Some(detail)) = (is_new(provider), &provider.key, detail.as_object_mut()) {
        detail.insert("key".into(), json!({ "action": key.action, "new": key.new }));
    }
    Some(entry(provider, EventKind::Change, detail, reason.into()))
}

fn drift(provider: &ProviderPlan) -> Option<AuditEntry> {
    let mut rows = Vec::new();
    for change in &provider.changes {
        let fields: Vec<_> = change.fields.iter().filter(|field| field.cause == Cause::Drift).collect();
        if !fields.is_empty() {
            rows.push(json!({ "kind": change.kind, "name": change.name, "id": change.id, "fields": fields }));
        }
    }
    let reason = "changed by someone else; set back".to_owned();
    (!rows.is_empty())
        .then(|| entry(provider, EventKind::Drift, json!({ "corrected": true, "changes": rows }), reason))
}

/// Whether the provider's row is created; its key is then part of that.
fn is_new(provider: &ProviderPlan) -> bool {
    provider.changes.iter().any(|change| change.kind == Kind::Provider && change.action == Action::Create)
}

fn key(provider: &ProviderPlan) -> Option<AuditEntry> {
    let key = provider.key.as_ref().filter(|_| !is_new(provider))?;
    let detail = json!({ "action": key.action, "old": key.old, "new": key.new });
    Some(entry(provider, EventKind::Key, detail, key.reason.to_string()))
}

impl Hold {
    /// The audit row of something newly held back.
    pub fn audit(&self) -> AuditEntry {
        AuditEntry {
            kind: EventKind::Hold,
            provider: None,
            provider_id: None,
            detail: json!({ "kind": self.kind, "objects": self.objects, "digest": self.digest }),
            reason: self.reason.clone(),
            origin: None,
        }
    }
}

impl Notice {
    /// The audit row of a notice that has one: reported drift, refused and unresolvable keys.
    pub fn audit(&self) -> Option<AuditEntry> {
        let kind = match self.kind {
            NoticeKind::Drift => EventKind::Drift,
            NoticeKind::KeyUnresolved | NoticeKind::KeyUndecryptable => EventKind::Key,
            NoticeKind::KeyRefused => EventKind::Refusal,
            NoticeKind::KeyForeign | NoticeKind::KeyUntried | NoticeKind::Frozen | NoticeKind::Suspended => {
                return None;
            }
        };
        Some(AuditEntry {
            kind,
            provider: Some(self.provider.clone()),
            provider_id: None,
            detail: json!({ "corrected": false, "fields": self.fields }),
            reason: self.message.clone(),
            origin: None,
        })
    }
}
