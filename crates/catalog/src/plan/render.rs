//! A plan as text for people: grouped by provider, field by field, old → new.
//!
//! PURE. A key shows as keyed fingerprints, because the plan holds nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use provider::shown::one_line as line;

use super::{
    Action, Cause, Change, ChangedTable, FieldChange, Fingerprint, HoldKind, KeyAction, KeyChange, Notice,
    Plan,
};
use crate::{model::Origin, serving::ObjectKind};

/// How many rows of each kind a plan creates, changes and deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Number of rows by kind and action.
    #[serde(flatten, serialize_with = "by_words")]
    pub rows: BTreeMap<(ChangedTable, Action), usize>,
    /// The same of what is stored for the gateway alone.
    #[serde(flatten, serialize_with = "by_object_words")]
    pub objects: BTreeMap<(ObjectKind, Action), usize>,
    pub keys: usize,
    pub drifted_fields: usize,
    pub held: usize,
}

fn by_words<S: Serializer>(rows: &BTreeMap<(ChangedTable, Action), usize>, to: S) -> Result<S::Ok, S::Error> {
    let mut map = to.serialize_map(Some(rows.len()))?;
    for ((kind, action), count) in rows {
        map.serialize_entry(&format!("{}_{}", kind.as_str(), action.as_str()), count)?;
    }
    map.end()
}

fn by_object_words<S: Serializer>(
    rows: &BTreeMap<(ObjectKind, Action), usize>,
    to: S,
) -> Result<S::Ok, S::Error> {
    to.collect_map(
        rows.iter().map(|((kind, action), count)| (format!("{}_{}", kind.counted(), action.as_str()), count)),
    )
}

impl ObjectKind {
    /// Word under which changes are counted; the rows of providers and models have words of their own.
    pub const fn counted(self) -> &'static str {
        match self {
            Self::Provider => "provider_gateway",
            Self::Model => "model_gateway",
            other => other.as_str(),
        }
    }

    fn count(self, count: usize) -> String {
        let word = match (self, count) {
            (Self::Alias, 1) => "alias",
            (Self::Alias, _) => "aliases",
            (Self::Consumer, 1) => "consumer",
            (Self::Consumer, _) => "consumers",
            (Self::PowerLevel, 1) => "power level",
            (Self::PowerLevel, _) => "power levels",
            (Self::Tier, 1) => "tier",
            (Self::Tier, _) => "tiers",
            (Self::Provider, 1) => "provider's gateway settings",
            (Self::Provider, _) => "providers' gateway settings",
            (Self::Model, 1) => "model's gateway settings",
            (Self::Model, _) => "models' gateway settings",
        };
        format!("{count} {word}")
    }
}

impl ChangedTable {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Provider => "provider",
            Self::Model => "model",
            Self::Route => "route",
        }
    }
}

impl Action {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Adopt => "adopt",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Retire => "retire",
            Self::Release => "release",
        }
    }

    /// The mark in front of a line; suffices without colour.
    const fn mark(self) -> char {
        match self {
            Self::Create => '+',
            Self::Adopt => '=',
            Self::Update => '~',
            Self::Delete | Self::Retire => '-',
            Self::Release => '.',
        }
    }
}

impl Plan {
    /// Counts for one line of log or text.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary { held: self.held.len(), ..Summary::default() };
        for provider in &self.providers {
            summary.keys += usize::from(provider.key.is_some());
            for change in &provider.changes {
                *summary.rows.entry((change.kind, change.action)).or_default() += 1;
                summary.drifted_fields +=
                    change.fields.iter().filter(|field| field.cause == Cause::Drift).count();
            }
        }
        for change in &self.objects {
            *summary.objects.entry((change.kind, change.action)).or_default() += 1;
            summary.drifted_fields +=
                change.fields.iter().filter(|field| field.cause == Cause::Drift).count();
        }
        summary
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        for action in
            [Action::Create, Action::Adopt, Action::Update, Action::Delete, Action::Retire, Action::Release]
        {
            let of = |kind| self.rows.get(&(kind, action)).copied().unwrap_or(0);
            let mut counts: Vec<String> = [ChangedTable::Provider, ChangedTable::Model, ChangedTable::Route]
                .into_iter()
                .filter(|kind| of(*kind) > 0)
                .map(|kind| format!("{} {}{}", of(kind), kind.as_str(), if of(kind) == 1 { "" } else { "s" }))
                .collect();
            let objects = self.objects.iter().filter(|((_, of), _)| *of == action);
            counts.extend(objects.map(|((kind, _), count)| kind.count(*count)));
            if !counts.is_empty() {
                parts.push(format!("{} {}", action.as_str(), counts.join(", ")));
            }
        }
        if self.keys > 0 {
            parts.push(format!("{} key{}", self.keys, if self.keys == 1 { "" } else { "s" }));
        }
        if self.held > 0 {
            parts.push(format!("{} held back", self.held));
        }
        if parts.is_empty() { f.write_str("nothing to do") } else { f.write_str(&parts.join("; ")) }
    }
}

impl Plan {
    /// As [`fmt::Display`], but the rows of the first `limit` providers only; the rest is counted.
    pub fn brief(&self, limit: usize) -> impl fmt::Display + '_ {
        Brief { plan: self, limit }
    }
}

struct Brief<'a> {
    plan: &'a Plan,
    limit: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.brief(usize::MAX).fmt(f)
    }
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, limit } = *self;
        for provider in plan.providers.iter().take(limit) {
            for change in &provider.changes {
                write_change(f, change)?;
            }
            if let Some(key) = &provider.key {
                writeln!(f, "~ key of {}: {}", line(&provider.name), line(&key.to_string()))?;
            }
        }
        if let Some(more @ 1..) = plan.providers.len().checked_sub(limit) {
            writeln!(f, "… and the same for {more} more providers (`providerd events` shows each)")?;
        }
        for change in plan.objects.iter().take(limit) {
            let head = (change.action, change.kind.noun(), &*change.name);
            write_row(f, head, change.origin.as_ref(), &change.fields)?;
        }
        if let Some(more @ 1..) = plan.objects.len().checked_sub(limit) {
            writeln!(f, "… and {more} more of the gateway's objects")?;
        }
        for hold in &plan.held {
            writeln!(f, "! held back: {}", line(&hold.reason))?;
            for object in &hold.objects {
                writeln!(f, "    {}", line(object))?;
            }
            if let (HoldKind::Prune, Some(digest)) = (hold.kind, &hold.digest) {
                writeln!(
                    f,
                    "  hint: to prune exactly these, run `providerd apply --confirm-prune {digest}`"
                )?;
            }
        }
        let mut hints = BTreeSet::new();
        for notice in &plan.notices {
            let (message, hint) = notice.parts();
            writeln!(f, "! {}: {}", line(&notice.provider), line(message))?;
            hints.extend(hint);
            for field in &notice.fields {
                writeln!(
                    f,
                    "    {}: declared {}, found {}",
                    line(&field.field),
                    text(&field.new),
                    old(field.old.as_ref())
                )?;
            }
        }
        for hint in hints {
            writeln!(f, "  hint: {}", line(hint))?;
        }
        writeln!(f, "{}", plan.summary())
    }
}

impl Notice {
    /// The message, and apart from it the hint that it may end with: many notices share one.
    pub fn parts(&self) -> (&str, Option<&str>) {
        match self.message.split_once("\nhint: ") {
            Some((message, hint)) => (message, Some(hint)),
            None => (&self.message, None),
        }
    }
}

fn write_change(f: &mut fmt::Formatter<'_>, change: &Change) -> fmt::Result {
    let head = (change.action, change.kind.as_str(), change.name.as_str());
    write_row(f, head, change.origin.as_ref(), &change.fields)
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    (action, kind, name): (Action, &str, &str),
    origin: Option<&Origin>,
    fields: &[FieldChange],
) -> fmt::Result {
    write!(f, "{} {} {kind} {}", action.mark(), action.as_str(), line(name))?;
    match origin {
        Some(origin) => writeln!(f, "  ({})", line(&origin.to_string()))?,
        None => writeln!(f)?,
    }
    for field in fields {
        let new = text(&field.new);
        match (action, field.cause) {
            (Action::Create, Cause::Default) => writeln!(f, "    {}: {new} (default)", line(&field.field))?,
            (Action::Create, _) => writeln!(f, "    {}: {new}", line(&field.field))?,
            (_, Cause::Released) => writeln!(f, "    {}: given up, stays {new}", line(&field.field))?,
            (_, Cause::Drift) => {
                writeln!(f, "    {}: {} → {new} (drift)", line(&field.field), old(field.old.as_ref()))?
            }
            _ => writeln!(f, "    {}: {} → {new}", line(&field.field), old(field.old.as_ref()))?,
        }
    }
    Ok(())
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "unset".into(),
        other => other.to_string(),
    }
}

fn old(value: Option<&Value>) -> String {
    value.map_or_else(|| "unset".into(), text)
}

impl fmt::Display for KeyChange {
    /// `changed (3f9a… → 77c1…)`, in keyed fingerprints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |key: &Option<Fingerprint>| {
            key.as_ref()
                .map_or_else(|| "none".to_owned(), |key| format!("{}…", key.0.get(..4).unwrap_or(&key.0)))
        };
        let (old, new) = (short(&self.old), short(&self.new));
        match self.action {
            KeyAction::Set if self.old.is_none() => write!(f, "set ({new})")?,
            KeyAction::Set => write!(f, "changed ({old} → {new})")?,
            KeyAction::Wipe => write!(f, "wiped ({old})")?,
            KeyAction::Pending => write!(f, "found changed ({old} → {new}), left as it is")?,
            KeyAction::Align => write!(f, "copied to the other column ({new})")?,
        }
        write!(f, ": {}", self.reason)
    }
}

/// Stable JSON: `changes`, `keys`, `gateway`, `held`, `notices`, `summary`, `empty`.
impl Serialize for Plan {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let changes: Vec<&Change> = self.providers.iter().flat_map(|provider| &provider.changes).collect();
        let keys: BTreeMap<&str, &KeyChange> = self
            .providers
            .iter()
            .filter_map(|provider| Some((&*provider.name, provider.key.as_ref()?)))
            .collect();
        let mut map = serializer.serialize_map(Some(7))?;
        map.serialize_entry("empty", &self.is_converged())?;
        map.serialize_entry("summary", &self.summary())?;
        map.serialize_entry("changes", &changes)?;
        map.serialize_entry("keys", &keys)?;
        map.serialize_entry("gateway", &self.objects)?;
        map.serialize_entry("held", &self.held)?;
        map.serialize_entry("notices", &self.notices)?;
        map.end()
    }
}
