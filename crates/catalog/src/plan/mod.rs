//! What differs between the catalog and the database, and what to do about it.
//!
//! PURE. (desired, recorded, live) → [`Plan`]. The plan is the one value that `plan` prints, `run` applies
//! and the audit trail records; it holds no secret, only keyed fingerprints.

mod audit;
mod diff;
mod discovery;
mod guard;
mod keys;
mod objects;
mod planner;
mod record;
mod render;

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::{
    model::{Cell, JsonMap, ManifestPath, Origin},
    serving::ObjectName,
};

pub use self::{
    audit::{AuditEntry, AuditRow, EventKind, audit},
    discovery::{DiscoveryDecision, DiscoveryMemory, GoneModel, ListEnd, ListState, SeenModel},
    guard::{LostCell, lost_cells},
    objects::{LiveObject, ObjectChange},
    planner::{Desired, DesiredKey, KeyTrial, PlanInput, Policy, PruneLimit, plan},
    render::Summary,
};

/// A column name, or `config.KEY` / `metadata.KEY` for one key of a JSON column.
pub type Field = Cow<'static, str>;

/// Fields with their values, as a manifest declares them.
pub type Fields = BTreeMap<Field, Value>;

/// A keyed fingerprint of an API key: 16 hexadecimal digits of HMAC-SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Fingerprint(pub Box<str>);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// ---------------------------------------------------------------- what the database holds

/// The key that a live provider row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LiveKey {
    /// Both columns are empty.
    Absent,
    /// Opens with the BYOK key. `columns_agree`: `api_key_encrypted` = `encrypted_api_key`.
    Known { fingerprint: Fingerprint, columns_agree: bool },
    /// Something is stored that the BYOK key does not open.
    Undecryptable,
}

/// Which of a row's two key columns counts, with what `open` made of its token: the first that opens, because programs
/// read the first to use the key. They should hold the same token; an empty one is none.
pub fn stored_key<'t, T>(
    tokens: [&'t str; 2],
    mut open: impl FnMut(&'t str) -> Option<T>,
) -> Option<(&'t str, T)> {
    let [first, second] = tokens;
    let other = if first == second { "" } else { second };
    let mut candidates = [first, other].into_iter().filter(|token| !token.is_empty());
    candidates.find_map(|token| Some((token, open(token)?)))
}

impl LiveKey {
    /// What a row's two key columns hold, and the token that counts where one opens.
    pub fn of_columns<'t>(
        tokens: [&'t str; 2],
        open: impl FnMut(&'t str) -> Option<Fingerprint>,
    ) -> (Self, Option<&'t str>) {
        match stored_key(tokens, open) {
            Some((token, fingerprint)) => {
                (Self::Known { fingerprint, columns_agree: tokens[0] == tokens[1] }, Some(token))
            }
            None if tokens == ["", ""] => (Self::Absent, None),
            None => (Self::Undecryptable, None),
        }
    }
}

/// A row of `llm_providers`, with NULLs as `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveProvider {
    pub id: Uuid,
    pub name: Arc<str>,
    pub kind: Option<String>,
    pub enabled: Option<bool>,
    pub priority: Option<i32>,
    pub api_base_url: Option<String>,
    pub api_key_source: Option<String>,
    pub key: LiveKey,
    pub key_test_status: Option<String>,
    pub health_status: Option<String>,
    pub config: JsonMap,
    pub models: Vec<LiveModel>,
}

/// A row of `llm_models` with the routing rules that point at it.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveModel {
    pub id: Uuid,
    pub name: String,
    pub display_name: Option<String>,
    pub context_length: Option<i32>,
    /// USD per million tokens, as `numeric` read to the nearest double.
    pub cost_per_1m_tokens: Option<f64>,
    pub cost_per_1m_input_tokens: Option<f64>,
    pub cost_per_1m_output_tokens: Option<f64>,
    pub enabled: Option<bool>,
    pub metadata: JsonMap,
    pub rules: Vec<LiveRule>,
}

/// A row of `llm_routing_rules` that belongs to a model. `power_level` may be any text: others write it.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveRule {
    pub id: Uuid,
    pub power_level: Option<String>,
    pub user_tier: Option<String>,
    pub task_type: Option<String>,
    pub priority: Option<i32>,
    pub weight: Option<i32>,
    pub is_active: Option<bool>,
}

/// What providerd remembers of its last apply to one provider: which rows it manages, which fields it owns.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub provider: Fields,
    #[serde(default)]
    pub models: BTreeMap<Box<str>, RecordedRow>,
    #[serde(default)]
    pub rules: Vec<RecordedRule>,
    /// Fingerprint of the key that the manifest's reference held when it was last applied.
    #[serde(default)]
    pub key: Option<Fingerprint>,
    /// Fingerprint of a foreign key that was already reported, so that it is reported once.
    #[serde(default)]
    pub foreign_key: Option<Fingerprint>,
}

/// A managed model row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedRow {
    pub id: Uuid,
    pub fields: Fields,
}

/// A managed routing rule row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedRule {
    pub id: Uuid,
    pub model: Box<str>,
    #[serde(flatten)]
    pub cell: Cell,
    /// Where its route was declared; may differ from the provider's file.
    pub file: ManifestPath,
    pub fields: Fields,
}

/// A row of `providerd.managed`: a provider that providerd created or adopted.
#[derive(Debug, Clone, PartialEq)]
pub struct Managed {
    pub name: Arc<str>,
    pub provider_id: Uuid,
    /// Digest of the desired state that was last applied; equal digests mean equal desired states.
    pub digest: Digest,
    pub origin: Origin,
    /// JSON of [`Record`], parsed only where something differs.
    pub record: Box<str>,
}

/// First 16 bytes of a SHA-256.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 16]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What one transaction read: the live rows and the bookkeeping of some or all providers.
#[derive(Debug, Default)]
pub struct World {
    pub live: BTreeMap<Arc<str>, LiveProvider>,
    pub managed: BTreeMap<Arc<str>, Managed>,
    /// Number of rows in `providerd.managed`, whatever the scope of this reading; a reading of some providers leaves
    /// it to the caller, who sets it where something may be pruned.
    pub managed_total: usize,
    /// Rows of `providerd.gateway_object`: those of the providers in scope, and the others where they are.
    pub objects: BTreeMap<ObjectName, LiveObject>,
    /// Objects that cannot be changed now.
    pub waits: Waits,
    /// Values that could not be read.
    pub unreadable: Vec<UnreadableRow>,
    /// Managed providers whose rows hold a key that was applied to another one, at another place.
    pub copied_keys: HashSet<Arc<str>>,
}

/// A value of a shared table that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableRow {
    pub table: &'static str,
    pub id: Uuid,
    pub column: &'static str,
    /// The provider that the row belongs to.
    pub provider: Arc<str>,
    pub why: String,
}

impl fmt::Display for UnreadableRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, row {}, column {}: {}", self.table, self.id, self.column, self.why)
    }
}

/// Objects that nothing may be done to in this pass, by the name that a [`Change`] of theirs would have. What hangs on
/// one of them waits too.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits(BTreeMap<String, Wait>);

/// Why an object waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wait {
    /// [`NoticeKind::Unreadable`], [`NoticeKind::Locked`] or [`NoticeKind::Refused`].
    pub kind: NoticeKind,
    pub message: String,
}

impl Waits {
    /// Notes a reason; the first one stays.
    pub fn insert(&mut self, object: String, wait: Wait) {
        self.0.entry(object).or_insert(wait);
    }

    pub fn get(&self, object: &str) -> Option<&Wait> {
        self.0.get(object)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Wait)> {
        self.0.iter().map(|(object, wait)| (object.as_str(), wait))
    }
}

// ---------------------------------------------------------------- what to do

/// Which table a change is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangedTable {
    Provider,
    Model,
    /// A row of `llm_routing_rules`.
    Route,
}

/// What happens to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Create,
    /// The row exists and is taken under management; its id stays. `fields` holds what changes in it.
    Adopt,
    Update,
    Delete,
    /// A provider with usage history: disabled and its key wiped, instead of deleted.
    Retire,
    /// The manifest gave up fields, or the object moved to another file: bookkeeping only.
    Release,
}

/// Why a field changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// A manifest declares the new value.
    Declared,
    /// No manifest declares it: the value a new row starts with.
    Default,
    /// Someone else changed a managed value; it is set back.
    Drift,
    /// A manifest no longer sets it; its value stays.
    Released,
}

/// One field, old → new. `old` is `None` on creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldChange {
    pub field: Field,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old: Option<Value>,
    pub new: Value,
    pub cause: Cause,
}

/// One row that changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    pub kind: ChangedTable,
    pub action: Action,
    pub id: Uuid,
    /// The row it hangs on: a model's provider, a route's model; the row itself for a provider.
    #[serde(skip)]
    pub parent: Uuid,
    /// `provider`, `provider/model` or `provider/model power × tier`.
    pub name: String,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub fields: Vec<FieldChange>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origin: Option<Origin>,
}

/// What happens to a provider's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyChange {
    pub action: KeyAction,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub old: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub new: Option<Fingerprint>,
    pub reason: Cow<'static, str>,
}

/// What is written to the key columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyAction {
    /// The declared key is encrypted and stored; the test status becomes `pending`.
    Set,
    /// The key columns are emptied, because the provider is retired.
    Wipe,
    /// Someone else changed the key: it stays, the test status becomes `pending`.
    Pending,
    /// The two key columns disagree; the one that opens is copied to the other.
    Align,
}

/// Everything that happens to one provider, its models and its routes. Applied whole or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct ProviderPlan {
    pub name: Arc<str>,
    pub id: Uuid,
    pub changes: Vec<Change>,
    pub key: Option<KeyChange>,
    /// The bookkeeping to write; `None` with a delete or retire removes it, otherwise leaves it.
    pub record: Option<Managed>,
    /// Removes the bookkeeping row.
    pub forget: bool,
}

/// Something the plan would do but must not without an operator's confirmation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    pub kind: HoldKind,
    /// What is held: provider names for a prune, `power × tier` for a route cell.
    pub objects: Vec<String>,
    /// What `--confirm-prune` takes; only for a prune.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    pub reason: String,
}

/// Why something is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HoldKind {
    Prune,
    Route,
}

/// Something the operator should know about one provider, and nothing is written for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Notice {
    pub provider: Arc<str>,
    pub kind: NoticeKind,
    pub message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<FieldChange>,
}

/// The row of a model that its provider lists and no manifest declares, with the values a declared one would have.
pub fn discovered_model(
    provider: &crate::model::Provider,
    provider_id: Uuid,
    id: Uuid,
    model: &crate::model::Model,
) -> Change {
    Change {
        kind: ChangedTable::Model,
        action: Action::Create,
        id,
        parent: provider_id,
        name: format!("{}/{}", provider.name, model.name),
        fields: diff::creation(&diff::lower_model(model, true)),
        origin: Some(provider.origin.clone()),
    }
}

/// What a notice is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoticeKind {
    /// Drift, where the settings say to report and not to correct it.
    Drift,
    /// The key's reference cannot be resolved; a stored key stays.
    KeyUnresolved,
    /// Someone else changed the key, and it stays.
    KeyForeign,
    /// The declared key waits for its provider's word.
    KeyUntried,
    /// The provider rejects the declared key; the stored one works and stays.
    KeyRefused,
    /// The stored key does not open with the BYOK key.
    KeyUndecryptable,
    /// Its file is invalid or unreadable: the last good state stays.
    Frozen,
    /// An operator suspended it.
    Suspended,
    /// Discovery found that the provider no longer offers a model.
    Vanished,
    /// The provider's own list could not be read, or is not believed.
    Discovery,
    /// A stored value cannot be read: its object is not touched.
    Unreadable,
    /// Another session keeps a row locked: its object waits.
    Locked,
    /// The database refuses the object.
    Refused,
    /// Another row has the name of a managed provider.
    Twin,
}

impl NoticeKind {
    /// Whether an object waits that is declared otherwise than it is stored, or may be.
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Unreadable | Self::Locked | Self::Refused)
    }
}

/// What differs between catalog and database, and what is going to be done about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// Only providers to which something happens, by name.
    pub providers: Vec<ProviderPlan>,
    /// What happens to rows of `providerd.gateway_object`.
    pub objects: Vec<ObjectChange>,
    pub held: Vec<Hold>,
    pub notices: Vec<Notice>,
}

impl Plan {
    /// Nothing would be written. Held work and notices do not count: they wait for something else.
    pub fn is_empty(&self) -> bool {
        self.providers.is_empty() && self.objects.is_empty()
    }

    /// The database is exactly as declared: nothing to write and nothing held back.
    pub fn is_converged(&self) -> bool {
        self.is_empty() && self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_that_opens_is_the_key() {
        let open = |token: &str| token.strip_prefix("good-").map(|rest| Fingerprint(rest.into()));
        let known = |print: &str, columns_agree| LiveKey::Known {
            fingerprint: Fingerprint(print.into()),
            columns_agree,
        };
        let check = |first, second, key, token| {
            assert_eq!(LiveKey::of_columns([first, second], open), (key, token), "{first:?} {second:?}");
        };
        check("", "", LiveKey::Absent, None);
        check("good-a", "good-a", known("a", true), Some("good-a"));
        check("good-a", "", known("a", false), Some("good-a"));
        check("", "good-a", known("a", false), Some("good-a"));
        check("good-a", "good-b", known("a", false), Some("good-a"));
        check("bad", "good-b", known("b", false), Some("good-b"));
        check("good-b", "bad", known("b", false), Some("good-b"));
        check("bad", "", LiveKey::Undecryptable, None);
        check("bad", "worse", LiveKey::Undecryptable, None);
        check("bad", "bad", LiveKey::Undecryptable, None);
    }

    #[test]
    fn equal_columns_are_opened_once() {
        let mut opened = 0;
        let found = stored_key(["bad", "bad"], |_| {
            opened += 1;
            None::<()>
        });
        assert_eq!((found, opened), (None, 1));
    }
}
