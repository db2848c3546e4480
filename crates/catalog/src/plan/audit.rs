//! The rows of the audit trail that a plan causes.
//!
//! PURE. One row for what happens to one provider in one transaction, field by field, and one for each drift,
//! key operation and hold, so that each can be searched for by its kind.

use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Action, Cause, Change, ChangedTable, FieldChange, Fingerprint, Hold, KeyAction, Notice, NoticeKind,
    ProviderPlan,
};
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
    /// A prune or a route change waits for an operator's confirmation.
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
    /// A provider's own list brought models, marked some that it no longer offers, or could not be believed.
    Discovery = "discovery",
    /// A consumer, tier, alias or power level changed, or what a provider or model says for the gateway.
    Gateway = "gateway",
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

/// A row of the audit trail about what happens to one provider: it borrows the plan's values, because ten thousand of
/// these may be written at once.
#[derive(Debug, Clone, Copy)]
pub struct AuditRow<'a> {
    pub kind: EventKind,
    pub provider: &'a ProviderPlan,
    pub reason: &'a str,
    pub origin: Option<&'a Origin>,
}

/// The rows that applying this plan to one provider writes.
pub fn audit(provider: &ProviderPlan) -> impl Iterator<Item = AuditRow<'_>> {
    let applied = provider.changes.iter().any(|change| !is_only_drift(change));
    let drift = provider.changes.iter().any(|change| change.fields.iter().any(is_drift));
    let reason = match provider.changes.first().map(|change| change.action) {
        Some(Action::Delete) => "no manifest declares it any more",
        Some(Action::Retire) => "no manifest declares it any more; its usage history stays",
        Some(Action::Release) => "the manifest gave up fields or moved",
        Some(Action::Adopt) => "declared; the row existed",
        _ => "declared",
    };
    let key = provider.key.as_ref().filter(|_| !is_new(provider));
    let rows = [
        applied.then_some((EventKind::Change, reason)),
        drift.then_some((EventKind::Drift, "changed by someone else; set back")),
        key.map(|key| (EventKind::Key, &*key.reason)),
    ];
    let origin = provider.changes.iter().find_map(|change| change.origin.as_ref());
    let origin = origin.or_else(|| provider.record.as_ref().map(|record| &record.origin));
    rows.into_iter().flatten().map(move |(kind, reason)| AuditRow { kind, provider, reason, origin })
}

/// Its JSON is the row's `detail`.
impl Serialize for AuditRow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match (self.kind, &self.provider.key) {
            (EventKind::Key, Some(key)) => {
                map.serialize_entry("action", &key.action)?;
                map.serialize_entry("old", &key.old)?;
                map.serialize_entry("new", &key.new)?;
            }
            (EventKind::Drift, _) => {
                map.serialize_entry("corrected", &true)?;
                map.serialize_entry("changes", &Changes { of: self.provider, drift: true })?;
            }
            (_, key) => {
                map.serialize_entry("changes", &Changes { of: self.provider, drift: false })?;
                if let Some(key) = key.as_ref().filter(|_| is_new(self.provider)) {
                    map.serialize_entry("key", &NewKey { action: key.action, new: &key.new })?;
                }
            }
        }
        map.end()
    }
}

/// The key of a new row; there is no old one.
#[derive(Serialize)]
struct NewKey<'a> {
    action: KeyAction,
    new: &'a Option<Fingerprint>,
}

/// What changes because it is declared, or what another program had changed.
struct Changes<'a> {
    of: &'a ProviderPlan,
    drift: bool,
}

impl Serialize for Changes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = |change: &&Change| {
            if self.drift { change.fields.iter().any(is_drift) } else { !is_only_drift(change) }
        };
        let changes = self.of.changes.iter().filter(shown);
        serializer.collect_seq(changes.map(|change| OneChange { change, drift: self.drift }))
    }
}

struct OneChange<'a> {
    change: &'a Change,
    drift: bool,
}

impl Serialize for OneChange<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Change { kind, action, id, name, fields, .. } = self.change;
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", kind)?;
        if !self.drift {
            map.serialize_entry("action", action)?;
        }
        map.serialize_entry("name", name)?;
        if *action == Action::Create {
            // Nothing was there before: names and values say it all.
            map.serialize_entry("values", &Values(fields))?;
            return map.end();
        }
        map.serialize_entry("id", id)?;
        let fields: Vec<&FieldChange> = fields.iter().filter(|field| is_drift(field) == self.drift).collect();
        if !fields.is_empty() {
            map.serialize_entry("fields", &fields)?;
        }
        map.end()
    }
}

/// The fields of a new row.
struct Values<'a>(&'a [FieldChange]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|field| (&field.field, &field.new)))
    }
}

fn is_drift(field: &FieldChange) -> bool {
    field.cause == Cause::Drift
}

/// Nothing of it is declared again.
fn is_only_drift(change: &Change) -> bool {
    !change.fields.is_empty() && change.action != Action::Create && change.fields.iter().all(is_drift)
}

/// Whether the provider's row is created; its key is then part of that.
fn is_new(provider: &ProviderPlan) -> bool {
    provider
        .changes
        .iter()
        .any(|change| change.kind == ChangedTable::Provider && change.action == Action::Create)
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
    /// The audit row of a notice that has one: reported drift, keys on trial, refused and unresolvable keys.
    pub fn audit(&self) -> Option<AuditEntry> {
        let kind = match self.kind {
            NoticeKind::Drift => EventKind::Drift,
            NoticeKind::KeyUnresolved | NoticeKind::KeyUndecryptable | NoticeKind::KeyUntried => {
                EventKind::Key
            }
            NoticeKind::KeyRefused => EventKind::Refusal,
            NoticeKind::KeyForeign
            | NoticeKind::Frozen
            | NoticeKind::Suspended
            | NoticeKind::Vanished
            | NoticeKind::Discovery
            | NoticeKind::Unreadable
            | NoticeKind::Locked
            | NoticeKind::Refused
            | NoticeKind::Twin => return None,
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
