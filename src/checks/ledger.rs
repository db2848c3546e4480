//! What the checks of this daemon's share have found: the latest state of each provider, and what of it is still to
//! be written.
//!
//! Not its job: checking, and writing. Invariant: what was taken for writing and could not be written comes back,
//! so an outage of the database loses no transition.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use catalog::{
    model::{HealthPolicy, HealthStatus, KeyStatus},
    plan::EventKind,
};
use provider::{CheckOutcome, Facts, rollup::Rollup};

use crate::{
    checks::{
        impairment::Impaired,
        monitor::{CheckEvent, CheckTarget, Memory},
        recent::RecentChecks,
    },
    store::{CheckRow, CheckWrite, NewEvent, NewStatus, Span, StatusWrite},
};

/// Transitions of one provider that wait for the database at most; one that flaps through a day-long outage must
/// not fill the memory. The oldest go first.
const MAX_WAITING: usize = 1000;

/// Freezes that begin sooner than this after the last one in the audit trail are counted there, not written one by one.
const FREEZES_APART: TimeDelta = TimeDelta::minutes(10);

/// What is stored of a provider between lives of the daemon, and shown by `status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    #[serde(flatten)]
    pub memory: Arc<Memory>,
    /// Of the last check that was answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_not_after: Option<DateTime<Utc>>,
    /// What the last key test found beside its verdict.
    pub facts: Facts,
    /// Which key the verdict is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_fingerprint: Option<Box<str>>,
    /// How the manifests said last that it is checked; none where they say nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Box<HealthPolicy>>,
}

impl Kept {
    /// What the column holds; nothing where a later version wrote something else.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok().or_else(|| {
            // Earlier versions left zeros out of the facts too, where they mean something.
            let mut value: Value = serde_json::from_str(text).ok()?;
            value.as_object_mut()?.remove("facts")?;
            serde_json::from_value(value).ok()
        })
    }

    /// For the column; what holds its default is left out, since every byte is written for thousands of providers.
    fn text(&self) -> Option<String> {
        let mut value = serde_json::to_value(self).ok()?;
        // These are rare and their zeros mean something.
        let whole = ["policy", "facts"].map(|name| {
            let member = value.as_object_mut().and_then(|members| members.remove(name));
            (name, member.filter(|_| name == "policy" || self.facts != Facts::default()))
        });
        strip(&mut value);
        if let Some(members) = value.as_object_mut() {
            members.extend(whole.into_iter().filter_map(|(name, member)| Some((name.to_owned(), member?))));
        }
        serde_json::to_string(&value).ok()
    }
}

/// Removes null, zero and empty members; `false` is kept, because it differs from none.
fn strip(value: &mut Value) {
    if let Value::Object(members) = value {
        members.values_mut().for_each(strip);
        members.retain(|_, member| match member {
            Value::Null => false,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Object(members) => !members.is_empty(),
            Value::Bool(_) | Value::Array(_) => true,
        });
    }
}

/// One provider as this daemon sees it now.
#[derive(Debug, Clone)]
pub struct LedgerProvider {
    pub target: Arc<CheckTarget>,
    pub kept: Kept,
    /// When the last check ended; `None` before the first.
    pub last_check: Option<DateTime<Utc>>,
    pub last_took: Duration,
    /// Since this daemon checks it.
    pub recent: RecentChecks,
}

/// What waits to be written of one provider.
#[derive(Debug, Default)]
struct Waiting {
    transitions: Vec<(NewStatus, NewEvent)>,
    sums: BTreeMap<DateTime<Utc>, Rollup>,
    /// A check has ended since the last write.
    checked: bool,
    /// A key test has ended since the last write, or the first check of all.
    tested: bool,
    /// The memory differs from what is stored.
    memory: bool,
    /// How it is to be checked does: that is not left to the next write of everything.
    policy: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.transitions.is_empty()
            && self.sums.is_empty()
            && !self.checked
            && !self.tested
            && !self.memory
            && !self.policy
    }
}

struct Entry {
    live: LedgerProvider,
    waiting: Waiting,
}

/// How much is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteDepth {
    /// Transitions and key verdicts.
    News,
    /// Also when each provider was last checked.
    Heartbeats,
    /// Everything: memories and sums as well.
    All,
}

/// What was taken for writing.
pub struct Batch {
    pub writes: Vec<CheckWrite>,
    /// Whose, in the same order.
    names: Vec<Arc<str>>,
    /// Transitions of our own trustworthiness.
    pub own: Vec<NewEvent>,
    /// Why the prober suspects itself, or that it no longer does; `None` where that is written already.
    pub impaired: Option<Option<String>>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.own.is_empty() && self.impaired.is_none()
    }

    /// Takes out what is about other rows than these.
    pub fn without(&mut self, free: &HashSet<Uuid>) -> Self {
        let (writes, names) = (std::mem::take(&mut self.writes), std::mem::take(&mut self.names));
        let mut rest = Self { writes: Vec::new(), names: Vec::new(), own: Vec::new(), impaired: None };
        for (write, name) in writes.into_iter().zip(names) {
            let to = if free.contains(&write.status.id) { &mut *self } else { &mut rest };
            to.writes.push(write);
            to.names.push(name);
        }
        rest
    }
}

/// All providers of this daemon's share.
#[derive(Default)]
pub struct CheckLedger {
    entries: HashMap<Arc<str>, Entry>,
    /// Of providers that left the share with something unwritten.
    leaving: HashMap<Arc<str>, Entry>,
    own: Vec<NewEvent>,
    impaired: Option<String>,
    /// That is not in the database yet.
    impaired_unwritten: bool,
    freezes: Freezes,
}

/// Which freezes the audit trail reports.
#[derive(Default)]
struct Freezes {
    /// When the last one that it reports began.
    reported: Option<DateTime<Utc>>,
    /// The present one is not reported, and neither is its end.
    quiet: bool,
    /// How many were not, since the last one that was.
    untold: u32,
}

impl Freezes {
    /// Whether this one is reported, and how many were not before it.
    fn begin(&mut self, now: DateTime<Utc>) -> Option<u32> {
        // Also where the clock was set back meanwhile.
        self.quiet = self.reported.is_some_and(|at| (now - at).abs() < FREEZES_APART);
        if self.quiet {
            self.untold = self.untold.saturating_add(1);
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

impl CheckLedger {
    /// Takes a provider in with what the manifests say of its checks, or notes that it is checked differently now.
    pub fn set(&mut self, target: Arc<CheckTarget>, policy: HealthPolicy, kept: Option<Kept>) {
        let name = target.name.clone();
        let policy = (policy != HealthPolicy::default()).then(|| Box::new(policy));
        if let Some(Entry { live, waiting }) = self.entries.get_mut(&name) {
            live.target = target;
            waiting.policy |= live.kept.policy != policy;
            live.kept.policy = policy;
            return;
        }
        let mut waiting = self.leaving.remove(&name).map(|entry| entry.waiting).unwrap_or_default();
        let mut kept = kept.unwrap_or_default();
        waiting.policy |= kept.policy != policy;
        kept.policy = policy;
        let last_check = kept.memory.health.last_result();
        let live = LedgerProvider {
            target,
            kept,
            last_check,
            last_took: Duration::ZERO,
            recent: RecentChecks::default(),
        };
        self.entries.insert(name, Entry { live, waiting });
    }

    /// Lets a provider go. What is unwritten of it, its memory included, is still written.
    pub fn remove(&mut self, name: &str) {
        if let Some((name, mut entry)) = self.entries.remove_entry(name)
            && entry.live.last_check.is_some()
        {
            entry.waiting.memory = true;
            self.leaving.insert(name, entry);
        }
    }

    pub fn get(&self, name: &str) -> Option<&LedgerProvider> {
        self.entries.get(name).map(|entry| &entry.live)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &LedgerProvider> {
        self.entries.values().map(|entry| &entry.live)
    }

    /// Sums of a provider's checks by the begin of their hour that are not in the database yet.
    pub fn unwritten(&self, name: &str) -> impl Iterator<Item = (DateTime<Utc>, &Rollup)> {
        let entry = self.entries.get(name);
        entry.into_iter().flat_map(|entry| entry.waiting.sums.iter().map(|(at, sums)| (*at, sums)))
    }

    /// Why the prober does not believe its results now.
    pub fn impaired(&self) -> Option<&str> {
        self.impaired.as_deref()
    }

    /// Takes an event in. Whether it is worth writing at once.
    pub fn absorb(&mut self, event: CheckEvent, now: DateTime<Utc>) -> bool {
        let (target, memory) = match &event {
            CheckEvent::Impaired(change) => {
                let event = self.impairment(change, now);
                self.own.extend(event);
                return true;
            }
            CheckEvent::Checked { target, memory, .. }
            | CheckEvent::KeyTested { target, memory, .. }
            | CheckEvent::Health { target, memory, .. }
            | CheckEvent::Key { target, memory, .. } => (target.clone(), memory.clone()),
        };
        // It left the share while the event was under way.
        let Some(Entry { live, waiting }) = self.entries.get_mut(&target.name) else { return false };
        live.kept.memory = memory;
        let queue = |waiting: &mut Waiting, to, event| {
            if waiting.transitions.len() >= MAX_WAITING {
                waiting.transitions.remove(0);
            }
            waiting.transitions.push((to, event));
            waiting.memory = true;
        };
        match &event {
            CheckEvent::Checked { checked, transition, frozen, .. } => {
                // That it was looked at for the first time is news, whatever is believed of it.
                let first =
                    live.last_check.is_none() && !matches!(checked.outcome, CheckOutcome::Local { .. });
                if !matches!(checked.outcome, CheckOutcome::Local { .. }) {
                    live.last_check = Some(now);
                    waiting.checked = true;
                    waiting.tested |= first;
                }
                live.last_took = checked.took;
                live.recent.add(now, &checked.outcome, checked.took);
                let answered =
                    !matches!(checked.outcome, CheckOutcome::Hard { .. } | CheckOutcome::Local { .. });
                if answered {
                    live.kept.latency_ms = u64::try_from(checked.took.as_millis()).ok();
                    live.kept.tls_not_after = checked.tls_not_after;
                }
                if *frozen || matches!(checked.outcome, CheckOutcome::Local { .. }) {
                    return first;
                }
                waiting.sums.entry(Span::Hour.begin(now)).or_default().add(&checked.outcome, checked.took);
                let Some(transition) = transition else { return first };
                let (from, to) = (transition.from, transition.to);
                queue(waiting, NewStatus::Health(to), health_event(&target, from, to, &transition.reason));
            }
            CheckEvent::Health { transition, .. } => {
                let (from, to) = (transition.from, transition.to);
                queue(waiting, NewStatus::Health(to), health_event(&target, from, to, &transition.reason));
            }
            CheckEvent::KeyTested { report, transition, .. } => {
                live.kept.facts = report.facts.clone();
                live.kept.key_fingerprint.clone_from(&target.label.key_fingerprint);
                waiting.tested = true;
                waiting.memory = true;
                if let Some(transition) = transition {
                    let (from, to) = (transition.from, transition.to);
                    queue(waiting, NewStatus::Key(to), key_event(&target, from, to, &transition.reason));
                }
            }
            CheckEvent::Key { transition, .. } => {
                live.kept.key_fingerprint.clone_from(&target.label.key_fingerprint);
                let (from, to) = (transition.from, transition.to);
                queue(waiting, NewStatus::Key(to), key_event(&target, from, to, &transition.reason));
            }
            CheckEvent::Impaired(_) => {}
        }
        true
    }

    /// The audit row of a freeze's begin or end, where it gets one.
    fn impairment(&mut self, change: &Impaired, now: DateTime<Utc>) -> Option<NewEvent> {
        self.impaired_unwritten = true;
        let (detail, reason) = match change {
            Impaired::Began { failing, hosts } => {
                let mut reason = format!(
                    "{failing} of {hosts} hosts fail at once, which points to this machine or its network: until that is \
                     clear, failures change no status"
                );
                self.impaired = Some(reason.clone());
                let untold = self.freezes.begin(now)?;
                if untold > 0 {
                    reason += &format!(" (and {untold} times more since the last such event)");
                }
                (json!({ "impaired": true, "failing": failing, "hosts": hosts, "untold": untold }), reason)
            }
            Impaired::Ended { reason } => {
                self.impaired = None;
                if self.freezes.quiet {
                    return None;
                }
                (json!({ "impaired": false }), format!("failures are believed again: {reason}"))
            }
        };
        Some(NewEvent::about(EventKind::Health, None, None, detail, reason))
    }

    /// What is to be written now, at most `limit` providers. Give it back with [`Self::give_back`] if it could not be.
    pub fn take(&mut self, depth: WriteDepth, limit: usize) -> Batch {
        let impaired = std::mem::take(&mut self.impaired_unwritten).then(|| self.impaired.clone());
        let own = std::mem::take(&mut self.own);
        let mut batch = Batch { writes: Vec::new(), names: Vec::new(), own, impaired };
        for (name, entry) in self.leaving.iter_mut().chain(&mut self.entries) {
            if batch.writes.len() >= limit {
                break;
            }
            let waiting = &mut entry.waiting;
            let news = !waiting.transitions.is_empty() || waiting.tested || waiting.policy;
            let wanted = match depth {
                WriteDepth::News => news,
                WriteDepth::Heartbeats => news || waiting.checked,
                WriteDepth::All => !waiting.is_empty(),
            };
            if !wanted {
                continue;
            }
            let (all, live) = (depth == WriteDepth::All, &entry.live);
            let memory = (all && (waiting.checked || waiting.memory)
                || news && (waiting.memory || waiting.policy))
                .then(|| live.kept.text())
                .flatten();
            let sums = if all { std::mem::take(&mut waiting.sums) } else { BTreeMap::new() };
            batch.names.push(name.clone());
            batch.writes.push(CheckWrite {
                status: status(live),
                transitions: std::mem::take(&mut waiting.transitions),
                memory,
                rollups: sums.into_iter().collect(),
            });
            (waiting.checked, waiting.tested, waiting.policy) = (false, false, false);
            waiting.memory &= !(all || news);
        }
        batch
    }

    /// What was taken is in the database.
    pub fn written(&mut self, _: Batch) {
        self.leaving.retain(|_, entry| !entry.waiting.is_empty());
    }

    /// Takes back what could not be written.
    pub fn give_back(&mut self, batch: Batch) {
        self.own.splice(0..0, batch.own);
        self.impaired_unwritten |= batch.impaired.is_some();
        for (name, write) in batch.names.into_iter().zip(batch.writes) {
            let entry = self.entries.get_mut(&name).or_else(|| self.leaving.get_mut(&name));
            let Some(entry) = entry else { continue };
            let waiting = &mut entry.waiting;
            waiting.transitions.splice(0..0, write.transitions);
            waiting.checked = true;
            waiting.tested = true;
            waiting.memory = true;
            for (at, sums) in write.rollups {
                waiting.sums.entry(at).or_default().merge(&sums);
            }
        }
    }
}

/// The columns of the provider's row as they should be.
fn status(live: &LedgerProvider) -> StatusWrite {
    let (target, memory) = (&live.target, &live.kept.memory);
    // A verdict about another key says nothing about this row.
    let same_key = live.kept.key_fingerprint == target.label.key_fingerprint;
    let tested = memory.key.last_test().filter(|_| target.key.is_some() && same_key);
    StatusWrite {
        id: target.label.id,
        health_status: Some(memory.health.status()),
        last_health_check: live.last_check,
        key_status: tested.map(|_| memory.key.status()),
        key_last_tested: tested,
        key_updated_at: target.label.key_updated_at,
    }
}

/// The audit row of a change of health.
fn health_event(target: &CheckTarget, from: HealthStatus, to: HealthStatus, reason: &str) -> NewEvent {
    event(EventKind::Health, target, json!({ "from": from, "to": to }), reason)
}

/// The audit row of a change of a key's status.
fn key_event(target: &CheckTarget, from: KeyStatus, to: KeyStatus, reason: &str) -> NewEvent {
    let detail = json!({ "from": from, "to": to, "key": target.label.key_fingerprint });
    event(EventKind::KeyTest, target, detail, reason)
}

/// The audit row of a change that was read off the provider's row.
pub(super) fn row_event(kind: EventKind, row: &CheckRow, detail: Value, reason: String) -> NewEvent {
    NewEvent::about(kind, Some(row.name.clone()), Some(row.id), detail, reason)
}

fn event(kind: EventKind, target: &CheckTarget, detail: Value, reason: &str) -> NewEvent {
    NewEvent::about(kind, Some(target.name.clone()), Some(target.label.id), detail, reason)
}

#[cfg(test)]
mod tests {
    use super::*;
    use provider::{KeyVerdict, Quota};

    #[test]
    fn how_a_provider_is_checked_is_written_without_waiting_for_a_check() {
        let policy = HealthPolicy {
            timeout: Some(Duration::from_secs(7)),
            path: Some("/healthz".into()),
            ..HealthPolicy::default()
        };
        let base = Some("http://127.0.0.1:1/v1");
        let kind = provider::ProviderType::OpenAi;
        let target = CheckTarget::from_parts("p".into(), kind, base, policy.clone(), None).unwrap();
        let mut ledger = CheckLedger::default();
        ledger.set(Arc::new(target.clone()), policy.clone(), None);
        let batch = ledger.take(WriteDepth::News, 10);
        let kept = Kept::parse(batch.writes[0].memory.as_deref().unwrap()).unwrap();
        assert_eq!(kept.policy.as_deref(), Some(&policy));
        // Once, unless it could not be written, or is another one.
        assert!(ledger.take(WriteDepth::All, 10).is_empty());
        ledger.give_back(batch);
        assert!(!ledger.take(WriteDepth::News, 10).is_empty());
        ledger.set(Arc::new(target), HealthPolicy::default(), None);
        let batch = ledger.take(WriteDepth::News, 10);
        assert_eq!(Kept::parse(batch.writes[0].memory.as_deref().unwrap()).unwrap().policy, None);
    }

    #[test]
    fn freezes_do_not_flood_the_audit_trail() {
        let mut ledger = CheckLedger::default();
        let start: DateTime<Utc> = "2026-01-02T03:04:05Z".parse().unwrap();
        // One freeze a minute for an hour.
        for minute in 0..60 {
            let at = start + TimeDelta::minutes(minute);
            ledger.absorb(CheckEvent::Impaired(Impaired::Began { failing: 4, hosts: 6 }), at);
            assert!(ledger.impaired().is_some_and(|why| why.starts_with("4 of 6 hosts")));
            ledger.absorb(CheckEvent::Impaired(Impaired::Ended { reason: "the canary answers" }), at);
            assert_eq!(ledger.impaired(), None);
        }
        let batch = ledger.take(WriteDepth::News, 10);
        assert_eq!(batch.impaired, Some(None));
        // A begin and an end each ten minutes, and the begin counts those that were left out.
        assert_eq!(batch.own.len(), 12);
        let untold: Vec<u64> = batch.own.iter().filter_map(|event| event.detail["untold"].as_u64()).collect();
        assert_eq!(untold, [0, 9, 9, 9, 9, 9]);
        // What could not be written comes back, whether checks doubt themselves now included.
        ledger.give_back(batch);
        let batch = ledger.take(WriteDepth::News, 10);
        assert_eq!((batch.own.len(), batch.impaired), (12, Some(None)));
        // A clock that was set back silences nothing.
        let earlier = start - TimeDelta::days(3);
        ledger.absorb(CheckEvent::Impaired(Impaired::Began { failing: 4, hosts: 6 }), earlier);
        assert_eq!(ledger.take(WriteDepth::News, 10).own.len(), 1);
    }

    #[test]
    fn what_is_kept_is_short_and_comes_back_whole() {
        let at = "2026-01-02T03:04:05Z".parse().unwrap();
        let mut kept = Kept { latency_ms: Some(0), ..Kept::default() };
        for outcome in [CheckOutcome::Ok, CheckOutcome::Slow, CheckOutcome::Ok] {
            Arc::make_mut(&mut kept.memory).health.observe(at, &outcome);
        }
        Arc::make_mut(&mut kept.memory).key.observe(at, &KeyVerdict::Valid, None);
        kept.facts.can_serve = Some(false);
        kept.facts.retry_after = Some(Duration::from_secs(30));
        let quota = Quota { remaining: Some(0.0), limit: None, unit: String::new() };
        kept.facts.quota = Some(quota);
        let text = kept.text().unwrap();
        assert!(text.len() < 550, "{text}");
        // A latency below a millisecond counts as one millisecond.
        let expected = Kept { latency_ms: None, ..kept };
        assert_eq!(Kept::parse(&text), Some(expected.clone()), "{text}");
        assert_eq!(Kept::parse(&Kept::default().text().unwrap()), Some(Kept::default()));
        // As an earlier version wrote it.
        let earlier = text.replace(r#""nanos":0,"#, "").replace(r#","nanos":0"#, "");
        assert_ne!(earlier, text);
        let parsed = Kept::parse(&earlier).unwrap();
        assert_eq!((parsed.memory, parsed.facts), (expected.memory, Facts::default()));
    }
}
