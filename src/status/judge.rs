//! What `status` and the admin API say about each provider: one judgement of its state.
//!
//! Not its job: reading the database or the manifests. Invariant: a state comes from rows and a plan that were
//! read, never from memory of what was written.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use serde::Serialize;

use catalog::{
    manifest::{Build, Diagnostic, Severity},
    model::{HealthPolicy, Provider, Schedule, SecretRef},
    plan::{Notice, NoticeKind, Plan},
};
use provider::origin_of;

use super::view::ManifestProblem;
use crate::{
    checks::Kept,
    destination::Declared,
    store::{ProviderStatus, Suspended},
};

/// How a provider's rows stand to its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The rows hold what the manifest declares.
    Synced,
    /// A declared change is not applied yet.
    Pending,
    /// Someone else changed a managed value, and the settings say to report it.
    Drifted,
    /// Its manifest cannot be read: the last good state stays.
    Frozen,
    /// An operator suspended applying it.
    Suspended,
    /// Its deletion waits for an operator's confirmation.
    Held,
    /// No manifest names it.
    Unmanaged,
}

impl State {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Synced => "synced",
            Self::Pending => "pending",
            Self::Drifted => "drifted",
            Self::Frozen => "frozen",
            Self::Suspended => "suspended",
            Self::Held => "held",
            Self::Unmanaged => "unmanaged",
        }
    }
}

/// What "synced" follows from besides the states of providers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unsettled {
    /// Prunes and route cells that are held back.
    pub held: usize,
    /// Of manifests, their directory and their Git repository ([`problems`]).
    pub problems: usize,
    /// Objects that the database refused in the last pass.
    pub refused: usize,
    /// Gateway objects that the database does not hold as declared.
    pub objects: usize,
    /// Applying is suspended as a whole.
    pub suspended: bool,
}

/// Whether the database was read to hold what manifests declare, and manifests are what the operator committed: the one
/// answer of `status`, the admin API and the dashboard.
pub fn is_synced(states: impl IntoIterator<Item = State>, unsettled: Unsettled) -> bool {
    unsettled == Unsettled::default()
        && states.into_iter().all(|state| matches!(state, State::Synced | State::Unmanaged))
}

/// What is wrong with the manifests: their Git repository is not followed, their directory cannot be believed (the file
/// `.`), files are not valid.
pub fn problems(
    diagnostics: &[Diagnostic],
    directory: Option<&str>,
    pulled: Option<String>,
) -> Vec<ManifestProblem> {
    let whole = |message: String| ManifestProblem { file: ".".to_owned(), line: 1, column: 1, message };
    let bad = diagnostics.iter().filter(|it| it.severity == Severity::Error);
    let of_file = |it: &Diagnostic| ManifestProblem {
        file: it.path.to_string(),
        line: it.line,
        column: it.column,
        message: it.message.clone(),
    };
    let general = pulled.into_iter().chain(directory.map(str::to_owned)).map(whole);
    general.chain(bad.map(of_file)).collect()
}

/// Origins that may not be asked as often as their providers want to be checked, in words. `rate`: checks a second that
/// one origin takes, of all daemons together. `outer`: how providers are checked whose manifests say nothing else.
pub fn paced(build: &Build, rows: &[ProviderStatus], rate: f64, outer: &HealthPolicy) -> Vec<String> {
    let mut wanted: BTreeMap<Arc<str>, (usize, f64)> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.managed.is_some() && row.enabled != Some(false)) {
        let declared = build.catalog.providers.get(&row.name);
        let own = declared.map(|provider| build.catalog.health(provider)).unwrap_or_default();
        let place = row.place();
        let base = Declared::of(Some(build), &row.name, &place).map(|declared| declared.base);
        let base = base.or_else(|| Some(place.own().ok()?.1));
        // A time of day is nothing that could stretch.
        if let (Some(base), Some(Schedule::Every(interval))) = (base, own.or(outer).schedule) {
            let (count, checks) = wanted.entry(origin_of(&base)).or_default();
            *count += 1;
            *checks += 1.0 / interval.as_secs_f64().max(1.0);
        }
    }
    let crowded = wanted.into_iter().filter(|(_, (_, checks))| *checks > rate);
    let said = crowded.map(|(origin, (count, checks))| {
        format!(
            "{origin} takes {rate:.0} checks a second, and its {count} providers want {checks:.0}: their intervals \
             stretch by {:.1} (hint: raise health.per_origin_rate, or their intervals)",
            checks / rate
        )
    });
    said.collect()
}

/// One provider, as `status --output json` prints it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JudgedProvider {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub state: State,
    pub enabled: Option<bool>,
    pub health: Option<String>,
    pub last_check: Option<DateTime<Utc>>,
    pub has_key: bool,
    pub key: Option<String>,
    pub key_last_tested: Option<DateTime<Utc>>,
    /// Since when the health is what it is.
    pub health_since: Option<DateTime<Utc>>,
    /// Why the last check was not good; empty when it was.
    pub health_reason: String,
    /// Until when the provider asked to be left alone (`Retry-After`).
    pub asked_to_wait: Option<DateTime<Utc>>,
    /// What the last key test said; empty for a plainly valid key.
    pub key_reason: String,
    /// When the key was rejected first, where only a second rejection confirms it.
    pub key_rejected_at: Option<DateTime<Utc>>,
    /// When that is looked at again.
    pub key_next_test: Option<DateTime<Utc>>,
    /// Of the last check that was answered, as of the last time it was written down.
    pub latency_ms: Option<u64>,
    /// `false`: the key is real, yet completions will be refused.
    pub can_serve: Option<bool>,
    pub models: i64,
    /// Manifest and line.
    pub source: Option<String>,
    /// The commit from which it was last changed, abbreviated.
    pub revision: Option<String>,
    /// What the operator should know.
    pub notices: Vec<String>,
    /// An operator paused its checks.
    pub checks_paused: bool,
}

/// A plan, looked up by provider.
pub struct Judge<'a> {
    build: &'a Build,
    planned: HashSet<&'a str>,
    held: HashSet<&'a str>,
    notices: HashMap<&'a str, Vec<&'a Notice>>,
    suspended: &'a Suspended,
    now: DateTime<Utc>,
}

impl<'a> Judge<'a> {
    pub fn new(build: &'a Build, plan: &'a Plan, suspended: &'a Suspended) -> Self {
        let mut notices: HashMap<&str, Vec<&Notice>> = HashMap::new();
        for notice in &plan.notices {
            notices.entry(&notice.provider).or_default().push(notice);
        }
        Self {
            build,
            planned: plan
                .providers
                .iter()
                .map(|provider| &*provider.name)
                .chain(plan.objects.iter().filter_map(|object| object.provider.as_deref()))
                .collect(),
            held: plan.held.iter().flat_map(|hold| hold.objects.iter().map(String::as_str)).collect(),
            notices,
            suspended,
            now: Utc::now(),
        }
    }

    /// What the plan has to say about a provider.
    pub fn notices(&self, name: &str) -> &[&'a Notice] {
        self.notices.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether its manifest names a variable for its key that holds one.
    pub fn key_variable_is_set(&self, name: &str) -> bool {
        let declared = self.build.catalog.providers.get(name).and_then(|provider| provider.api_key.as_ref());
        matches!(declared, Some(SecretRef::Env(_)))
            && !self.notices(name).iter().any(|notice| notice.kind == NoticeKind::KeyUnresolved)
    }

    pub fn line(&self, row: ProviderStatus) -> JudgedProvider {
        let declared = self.build.catalog.providers.get(&row.name);
        let about = self.notices(&row.name);
        let is = |kind| about.iter().any(|notice| notice.kind == kind);
        let state = if is(NoticeKind::Suspended) {
            State::Suspended
        } else if is(NoticeKind::Frozen) {
            State::Frozen
        } else if is(NoticeKind::Drift) {
            State::Drifted
        } else if self.held.contains(&*row.name) {
            State::Held
        } else if self.planned.contains(&*row.name) || about.iter().any(|it| it.kind.is_waiting()) {
            State::Pending
        } else if declared.is_some() {
            State::Synced
        } else if row.managed.is_some() {
            State::Frozen
        } else {
            State::Unmanaged
        };
        let source = declared
            .map(|provider| provider.origin.to_string())
            .or_else(|| Some(row.managed.as_ref()?.0.to_string()));
        let missing = is(NoticeKind::KeyUnresolved) && !row.has_key;
        let kept = row.memory.as_deref().and_then(Kept::parse).unwrap_or_default();
        let mut notices: Vec<String> = about.iter().map(|notice| notice.message.clone()).collect();
        let paused = self.paused(&row.name);
        let checks_paused = paused.is_some();
        notices.extend(paused);
        if row.managed.is_some() && row.has_key {
            let place = row.place();
            let declared = Declared::of(Some(self.build), &row.name, &place);
            let misplaced = declared.and_then(|declared| place.agrees(&declared).err());
            notices.extend(misplaced.map(|why| format!("key: {why}")));
        }
        notices.extend(row.odd);
        JudgedProvider {
            name: row.name.to_string(),
            kind: row.kind,
            state,
            enabled: row.enabled,
            health: row.health_status,
            last_check: row.last_health_check,
            has_key: row.has_key,
            key: if missing { Some("missing".to_owned()) } else { row.key_test_status },
            key_last_tested: row.key_last_tested,
            health_since: kept.memory.health.since(),
            health_reason: kept.memory.health.last_reason().to_owned(),
            asked_to_wait: kept.memory.health.asked_to_wait(self.now),
            key_reason: kept.memory.key.last_reason().to_owned(),
            key_rejected_at: kept.memory.key.rejected_once(),
            key_next_test: kept.memory.key.rejected_once().map(|_| kept.memory.key.next_test(self.now, 0.0)),
            latency_ms: kept.latency_ms,
            can_serve: kept.facts.can_serve,
            models: row.models,
            source,
            revision: row.revision,
            notices,
            checks_paused,
        }
    }

    /// That a provider is not checked for now.
    fn paused(&self, name: &str) -> Option<String> {
        let pause = self.suspended.checks.get(name)?;
        let until = match pause.until {
            Some(until) if until <= self.now => return None,
            Some(until) => format!(" until {}", until.format("%Y-%m-%dT%H:%M:%SZ")),
            None => String::new(),
        };
        Some(format!("not checked{until}: {}", pause.reason))
    }

    /// A line for every row, and one for every declared provider that has none yet.
    pub fn lines(&self, rows: Vec<ProviderStatus>) -> BTreeMap<String, JudgedProvider> {
        let mut lines: BTreeMap<String, JudgedProvider> =
            rows.into_iter().map(|row| (row.name.to_string(), self.line(row))).collect();
        for provider in self.absent(|name| lines.contains_key(name)) {
            let line = Self::absent_line(&provider);
            lines.insert(line.name.clone(), line);
        }
        lines
    }

    /// Declared providers without a row.
    pub fn absent(&self, has_row: impl Fn(&str) -> bool) -> Vec<Arc<Provider>> {
        self.build.catalog.providers.values().filter(|it| !has_row(&it.name)).cloned().collect()
    }

    fn absent_line(provider: &Provider) -> JudgedProvider {
        JudgedProvider {
            name: provider.name.to_string(),
            kind: Some(provider.kind.to_string()),
            state: State::Pending,
            enabled: provider.enabled,
            health: None,
            last_check: None,
            has_key: false,
            key: None,
            key_last_tested: None,
            health_since: None,
            health_reason: String::new(),
            asked_to_wait: None,
            key_reason: String::new(),
            key_rejected_at: None,
            key_next_test: None,
            latency_ms: None,
            can_serve: None,
            models: 0,
            source: Some(provider.origin.to_string()),
            revision: None,
            notices: Vec::new(),
            checks_paused: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn synced_has_one_meaning() {
        let none = Unsettled::default();
        let check = |states: &[State], unsettled: Unsettled, expected: bool| {
            assert_eq!(is_synced(states.iter().copied(), unsettled), expected, "{states:?} {unsettled:?}");
        };
        check(&[], none, true);
        check(&[State::Synced, State::Unmanaged], none, true);
        for state in [State::Pending, State::Drifted, State::Frozen, State::Suspended, State::Held] {
            check(&[State::Synced, state], none, false);
        }
        // What only the command or only the API looked at once.
        check(&[State::Synced], Unsettled { problems: 1, ..none }, false);
        check(&[State::Synced], Unsettled { refused: 1, ..none }, false);
        check(&[State::Synced], Unsettled { held: 1, ..none }, false);
        check(&[State::Synced], Unsettled { objects: 1, ..none }, false);
        check(&[State::Synced], Unsettled { suspended: true, ..none }, false);
    }

    #[test]
    fn a_directory_and_a_repository_are_problems_like_a_file() {
        let found = problems(&[], Some("it is empty"), Some("it is not followed".to_owned()));
        let found: Vec<_> = found.iter().map(|it| (it.file.as_str(), it.message.as_str())).collect();
        assert_eq!(found, [(".", "it is not followed"), (".", "it is empty")]);
        assert!(problems(&[], None, None).is_empty());
    }
}
