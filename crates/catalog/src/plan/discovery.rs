//! What discovery decides about one provider, and what it remembers: values that the store writes and reads.

use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{AuditEntry, Change, EventKind};
use crate::model::{JsonMap, Provider};

/// How a look at a provider's list ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ListEnd {
    Ok,
    /// The list has no model.
    Empty,
    /// There is no list.
    Failed,
    /// The list would mark more than half of the known models.
    Suspect,
}

impl ListEnd {
    pub const ALL: &'static [Self] = &[Self::Ok, Self::Empty, Self::Failed, Self::Suspect];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Empty => "empty",
            Self::Failed => "failed",
            Self::Suspect => "suspect",
        }
    }

    /// A word that is not in the list reads as no state at all.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|ended| ended.as_str() == word)
    }
}

/// How the last look ended, and since when looks end so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListState {
    pub ended: ListEnd,
    pub since: DateTime<Utc>,
    /// What was asked for then.
    pub policy: String,
}

/// A model that the provider was seen to list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenModel {
    pub model_id: Uuid,
    pub name: String,
    /// Discovery made its row.
    pub created: bool,
    pub vanished_at: Option<DateTime<Utc>>,
}

/// What discovery remembers of one provider.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiscoveryMemory {
    pub state: Option<ListState>,
    pub seen: Vec<SeenModel>,
}

/// A model that the provider no longer lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoneModel {
    pub model_id: Uuid,
    pub name: String,
    /// Power levels and user tiers that it serves.
    pub routes: Vec<String>,
}

/// What is to be written, in one transaction.
#[derive(Debug, Clone, PartialEq)]
pub struct DiscoveryDecision {
    pub at: DateTime<Utc>,
    pub ended: ListEnd,
    /// Why it did not end well.
    pub detail: String,
    /// The state to remember; `None` where it is what is remembered.
    pub state: Option<ListState>,
    /// Rows to create.
    pub create: Vec<Change>,
    /// Models seen for the first time, the created ones among them.
    pub seen: Vec<SeenModel>,
    pub gone: Vec<GoneModel>,
    pub back: Vec<SeenModel>,
    /// Remembered models whose rows are gone.
    pub forget: Vec<Uuid>,
    /// How things were before.
    pub before: Option<ListEnd>,
}

impl DiscoveryDecision {
    pub const fn is_empty(&self) -> bool {
        self.state.is_none()
            && self.create.is_empty()
            && self.seen.is_empty()
            && self.gone.is_empty()
            && self.back.is_empty()
            && self.forget.is_empty()
    }
}

impl DiscoveryDecision {
    /// The rows of the audit trail for what is written. What is only remembered has none.
    pub fn audit(&self, provider: &Provider, provider_id: Uuid) -> Vec<AuditEntry> {
        let entry = |detail: Value, reason: String| AuditEntry {
            kind: EventKind::Discovery,
            provider: Some(provider.name.clone()),
            provider_id: Some(provider_id),
            detail,
            reason,
            origin: Some(provider.origin.clone()),
        };
        let mut entries = Vec::new();
        if self.ended != self.before.unwrap_or(ListEnd::Ok) {
            let reason = match self.ended {
                ListEnd::Ok => "the list is good again".to_owned(),
                ListEnd::Empty | ListEnd::Failed | ListEnd::Suspect => {
                    format!("{}: {}", self.ended.as_str(), self.detail)
                }
            };
            entries.push(entry(json!({ "state": self.ended.as_str() }), reason));
        }
        // Same JSON shape as every other change, so one renderer serves both.
        let name = |model: &str| format!("{}/{model}", provider.name);
        let values = |change: &Change| -> JsonMap {
            change.fields.iter().map(|field| (field.field.to_string(), field.new.clone())).collect()
        };
        let made = self.create.iter().map(
            |it| json!({ "kind": "model", "action": "create", "name": it.name, "id": it.id, "values": values(it) }),
        );
        let gone = self.gone.iter().map(|it| {
            json!({ "kind": "model", "action": "vanish", "name": name(&it.name), "id": it.model_id, "routes": it.routes })
        });
        let back = self.back.iter().map(
            |it| json!({ "kind": "model", "action": "return", "name": name(&it.name), "id": it.model_id }),
        );
        let changes: Vec<Value> = made.chain(gone).chain(back).collect();
        let counts = [
            (self.create.len(), "found"),
            (self.gone.len(), "no longer offered"),
            (self.back.len(), "offered again"),
        ];
        let said: Vec<String> = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, what)| format!("{count} {what}"))
            .collect();
        if !changes.is_empty() {
            entries.push(entry(json!({ "changes": changes }), format!("models: {}", said.join(", "))));
        }
        for gone in self.gone.iter().filter(|gone| !gone.routes.is_empty()) {
            let reason = format!(
                "{}/{} is no longer offered and still serves {}",
                provider.name,
                gone.name,
                gone.routes.join(", ")
            );
            entries.push(entry(json!({ "model": gone.name, "routes": gone.routes }), reason));
        }
        entries
    }
}
