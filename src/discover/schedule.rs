//! When which provider's list is looked at.
//!
//! Each provider has its cron expression; one that was never looked at, or whose manifest asks for something else than at
//! its last look, is looked at without waiting. A list that could not be read is tried again three times before its next
//! time. Not its job: the look itself (`run`). Invariants: only a daemon that leads looks; one provider is looked at once
//! at a time; a provider that hangs holds up none but itself.

use std::{
    collections::{BTreeMap, HashMap},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use croner::parser::{CronParser, Seconds};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use uuid::Uuid;

use catalog::{
    model::{Catalog, Provider, Revision},
    plan::ListEnd,
};
use provider::parse_base;

use super::run::{DiscoverError, Discoverer, Looked, policy};
use crate::{
    metrics::Metrics,
    store::{Lease, Store},
};

/// Lists under way at once: all providers without a time of their own are due at the same second of the night.
const IN_FLIGHT: usize = 16;
/// Of these to one origin, so that a gateway with hundreds of providers behind it neither suffers nor holds up others.
const PER_ORIGIN: usize = 4;
/// After a look that did not end well: soon, and then less soon. After these the cron expression decides again.
const AGAIN: [TimeDelta; 3] = [TimeDelta::minutes(1), TimeDelta::minutes(5), TimeDelta::minutes(25)];
/// The clock is looked at so often at least, because it may be set.
const GLANCE: Duration = Duration::from_secs(30);
/// Where it stands in the database up to when lists were looked at in time.
const LOOKED_UNTIL: &str = "discovery_until";
/// How often that is written: what was due within this time before a stop may be looked at twice.
const NOTE_EVERY: TimeDelta = TimeDelta::minutes(10);
/// A time that never comes (30 February) is looked for again after this.
const NEVER: TimeDelta = TimeDelta::days(365);

/// What the daemon applied last, as the watch channel carries it.
pub type AppliedCatalog = Option<(Arc<Catalog>, Option<Revision>)>;

/// Runs discovery beside the reconcile.
pub struct Discovery<L> {
    pub discoverer: Discoverer,
    /// Each catalog that was applied.
    pub applied: watch::Receiver<AppliedCatalog>,
    /// The lease to write under; `None` while another daemon leads.
    pub lease: L,
    pub metrics: Arc<Metrics>,
}

/// One provider's times.
#[derive(Debug, Clone)]
struct Entry {
    provider: Arc<Provider>,
    policy: String,
    /// Scheme, host and port.
    origin: Arc<str>,
    due: DateTime<Utc>,
    failures: usize,
    busy: bool,
}

/// All providers' times. Pure: the time is an argument.
#[derive(Debug, Default)]
struct Times {
    entries: BTreeMap<Arc<str>, Entry>,
    /// Looks under way, by origin.
    busy: HashMap<Arc<str>, usize>,
}

impl Times {
    /// Takes a catalog in. `last`: what was asked for at each provider's last look. `until`: up to when some daemon looked at
    /// lists in time; what was due since then is due now, once.
    fn update(
        &mut self,
        catalog: &Catalog,
        last: &HashMap<Arc<str>, Option<String>>,
        until: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) {
        let since = until.map_or(now, |until| until.min(now));
        let mut before = std::mem::take(&mut self.entries);
        for (name, provider) in &catalog.providers {
            let Some(discover) = provider.discover.as_ref().filter(|_| provider.enabled != Some(false))
            else {
                continue;
            };
            let policy = policy(provider);
            let entry = before.remove(name);
            let due = match &entry {
                Some(entry)
                    if entry.policy == policy && entry.provider.discover.as_ref() == Some(discover) =>
                {
                    entry.due
                }
                _ if last.get(name).and_then(Option::as_ref) == Some(&policy) => next(&discover.cron, since),
                _ => now,
            };
            let entry_origin = entry.as_ref().map(|entry| entry.origin.clone());
            let (failures, busy) = entry.map_or((0, false), |entry| (entry.failures, entry.busy));
            // Who is under way stays counted where its look began.
            let origin = entry_origin.filter(|_| busy).unwrap_or_else(|| origin(provider));
            let entry = Entry { provider: provider.clone(), policy, origin, due, failures, busy };
            self.entries.insert(name.clone(), entry);
        }
    }

    /// The next time at which something is due.
    fn soonest(&self) -> Option<DateTime<Utc>> {
        self.entries.values().filter(|entry| self.is_free(entry)).map(|entry| entry.due).min()
    }

    /// Whether a look may begin now, but for its time.
    fn is_free(&self, entry: &Entry) -> bool {
        !entry.busy && self.busy.get(&entry.origin).is_none_or(|busy| *busy < PER_ORIGIN)
    }

    /// A provider that is due, marked as under way; and where.
    fn take(&mut self, now: DateTime<Utc>) -> Option<(Arc<Provider>, Arc<str>)> {
        let due = self.entries.iter().filter(|(_, entry)| entry.due <= now && self.is_free(entry));
        let name = due.min_by_key(|(_, entry)| entry.due)?.0.clone();
        let entry = self.entries.get_mut(&name)?;
        entry.busy = true;
        *self.busy.entry(entry.origin.clone()).or_default() += 1;
        Some((entry.provider.clone(), entry.origin.clone()))
    }

    /// A look is over; `good`: it need not be tried again before its time.
    fn done(&mut self, asked: &Provider, origin: &Arc<str>, good: bool, now: DateTime<Utc>) {
        if let Some(busy) = self.busy.get_mut(origin) {
            *busy = busy.saturating_sub(1);
            if *busy == 0 {
                self.busy.remove(origin);
            }
        }
        let Some(entry) = self.entries.get_mut(&asked.name) else { return };
        entry.busy = false;
        if entry.policy != policy(asked) {
            // It was asked for something else meanwhile: its time stays.
            return;
        }
        let cron = entry.provider.discover.as_ref().map(|discover| discover.cron.clone());
        let regular = cron.map_or(now + NEVER, |cron| next(&cron, now));
        let again = if good { None } else { AGAIN.get(entry.failures) };
        entry.failures = if again.is_some() { entry.failures + 1 } else { 0 };
        entry.due = again.map_or(regular, |again| regular.min(now + *again));
    }
}

/// The first time after `now` that a cron expression names.
fn next(cron: &str, now: DateTime<Utc>) -> DateTime<Utc> {
    let parser = CronParser::builder().seconds(Seconds::Required).build();
    let found = parser.parse(cron).and_then(|cron| cron.find_next_occurrence(&now, false));
    // The manifest's reader has refused what cannot be parsed.
    found.unwrap_or(now + NEVER)
}

/// Where a provider is asked; those of one origin share its limit.
fn origin(provider: &Provider) -> Arc<str> {
    let base = parse_base(provider.kind, provider.base_url.as_deref());
    base.map(|base| base.origin().ascii_serialization()).unwrap_or_default().into()
}

/// A look under way: whose, where, and what became of it.
type Look<'a> =
    Pin<Box<dyn Future<Output = (Arc<Provider>, Arc<str>, Result<Looked, DiscoverError>)> + Send + 'a>>;

impl<L: Fn() -> Option<Lease> + Send + Sync> Discovery<L> {
    /// Looks at lists until the stop.
    ///
    /// # Errors
    /// Never; the signature is that of the supervisor's tasks.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let Self { discoverer, mut applied, lease, metrics } = self;
        let mut times = Times::default();
        // `None`: the database is to be asked again.
        let mut last: Option<HashMap<Arc<str>, Option<String>>> = None;
        let mut noted: Option<DateTime<Utc>> = None;
        let mut current: AppliedCatalog = None;
        let mut stale = false;
        let mut looks: FuturesUnordered<Look<'_>> = FuturesUnordered::new();
        loop {
            let leads = lease().is_some();
            if !leads {
                last = None;
            } else if let Some((catalog, revision)) = current.as_ref().filter(|_| stale || last.is_none()) {
                let until = if last.is_none() { looked_until(&discoverer.store).await } else { None };
                match catch_up(&discoverer, catalog, revision.as_ref(), lease().as_ref(), &mut last).await {
                    Ok(()) => {
                        stale = false;
                        times.update(catalog, last.as_ref().unwrap_or(&HashMap::new()), until, Utc::now());
                    }
                    Err(error) => {
                        debug!(error = %error, "discovery waits");
                        last = None;
                    }
                }
            }
            while leads && last.is_some() && looks.len() < IN_FLIGHT {
                let Some((provider, origin)) = times.take(Utc::now()) else { break };
                let (discoverer, lease) = (&discoverer, lease());
                let revision = current.as_ref().and_then(|(_, revision)| revision.clone());
                looks.push(Box::pin(async move {
                    let looked = discoverer.look(&provider, lease.as_ref(), revision.as_ref()).await;
                    (provider, origin, looked)
                }));
            }
            if leads && last.is_some() && !times.entries.is_empty() {
                note(&discoverer.store, &mut noted, Utc::now()).await;
            }
            let full = looks.len() >= IN_FLIGHT;
            let soonest = times.soonest().filter(|_| leads && !full && last.is_some());
            let wait =
                soonest.map_or(GLANCE, |at| (at - Utc::now()).to_std().unwrap_or_default().min(GLANCE));
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = applied.changed() => {
                    if changed.is_err() {
                        // The daemon is going down.
                        stop.cancelled().await;
                        return Ok(());
                    }
                    current = applied.borrow_and_update().clone();
                    stale = true;
                }
                Some((provider, origin, looked)) = looks.next(), if !looks.is_empty() => {
                    let outcome = took(&provider, &looked, &metrics);
                    if let (Ok(_), Some(last)) = (&looked, &mut last) {
                        last.insert(provider.name.clone(), Some(policy(&provider)));
                    }
                    times.done(&provider, &origin, outcome == "ok", Utc::now());
                }
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Up to when a daemon looked at lists in time; `None` where none has said so.
async fn looked_until(store: &Store) -> Option<DateTime<Utc>> {
    let noted = store.meta_get(LOOKED_UNTIL).await.ok().flatten()?;
    Some(DateTime::parse_from_rfc3339(&noted).ok()?.to_utc())
}

/// Writes down, now and then, that what is due is looked at in time.
async fn note(store: &Store, noted: &mut Option<DateTime<Utc>>, now: DateTime<Utc>) {
    if noted.is_some_and(|at| at <= now && now < at + NOTE_EVERY) {
        return;
    }
    match store.meta_set(LOOKED_UNTIL, &now.to_rfc3339()).await {
        Ok(()) => *noted = Some(now),
        Err(error) => debug!(%error, "the time of discovery could not be written down"),
    }
}

/// Asks the database what was asked for last, once, and forgets what no manifest asks for any more.
async fn catch_up(
    discoverer: &Discoverer,
    catalog: &Catalog,
    revision: Option<&Revision>,
    lease: Option<&Lease>,
    last: &mut Option<HashMap<Arc<str>, Option<String>>>,
) -> Result<(), DiscoverError> {
    // A manifest that cannot be read now says nothing about what it asks for: only who is declared without counts.
    let dropped = |name: &Arc<str>| catalog.providers.get(name).is_some_and(|it| it.discover.is_none());
    let known = last.as_ref();
    if known.is_some_and(|known| !known.keys().any(dropped)) {
        return Ok(());
    }
    let rows = discoverer.store.discovery_rows().await?;
    let gone = |name: &Option<Arc<str>>| name.as_ref().is_none_or(dropped);
    let forget: Vec<(Uuid, Option<Arc<str>>)> =
        rows.iter().filter(|row| gone(&row.name)).map(|row| (row.provider_id, row.name.clone())).collect();
    discoverer.forget(&forget, lease, revision).await?;
    let kept = rows.into_iter().filter(|row| !gone(&row.name));
    *last = Some(kept.filter_map(|row| Some((row.name?, row.policy))).collect());
    Ok(())
}

/// Says what became of a look; one word for it.
fn took(provider: &Provider, looked: &Result<Looked, DiscoverError>, metrics: &Metrics) -> &'static str {
    let outcome = match looked {
        Ok(looked) => {
            looked.log(&provider.name);
            metrics.events.inc_by(looked.events as u64);
            looked.decision.ended.as_str()
        }
        // It goes on when it is resumed, or when the daemon leads again.
        Err(DiscoverError::Suspended) => "suspended",
        Err(DiscoverError::NotLeader) => "not-leader",
        Err(error @ DiscoverError::NotApplied) => {
            debug!(provider = %provider.name, error = %error, "discovery waits");
            "not-applied"
        }
        Err(DiscoverError::Store(error)) => {
            warn!(provider = %provider.name, error = %error, "discovery could not be written down");
            "database"
        }
    };
    debug_assert!(ListEnd::ALL.iter().any(|it| it.as_str() == outcome) || looked.is_err());
    metrics.discovery_runs.with_label_values(&[outcome]).inc();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use catalog::manifest;

    fn catalog(texts: &[&str]) -> Catalog {
        let mut catalog = Catalog::default();
        for (at, text) in texts.iter().enumerate() {
            let path: Arc<str> = format!("{at}.toml").into();
            let parsed = manifest::parse(&path, text);
            assert!(!parsed.has_errors(), "{:?}", parsed.diagnostics);
            catalog.providers.extend(parsed.providers.iter().map(|it| (it.name.clone(), it.clone())));
        }
        catalog
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::seconds(seconds)
    }

    fn x(rest: &str) -> String {
        format!("[providers.x]\ntype = \"ollama\"\n{rest}\n")
    }

    #[test]
    fn what_was_due_while_no_daemon_ran_is_made_up_for_once() {
        let all = catalog(&[&x("[providers.x.discover]\ncron = \"0 0 3 * * *\"")]);
        let last = HashMap::from([(Arc::from("x"), Some(policy(&all.providers["x"])))]);
        let due = |until: Option<i64>, now| {
            let mut times = Times::default();
            times.update(&all, &last, until.map(at), at(now));
            times.entries["x"].due
        };
        let (three, next_day) = (3 * 3600, 27 * 3600);
        // Stopped before three, started after it.
        assert_eq!(due(Some(three - 60), three + 60), at(three));
        assert_eq!(due(Some(three - 86_400 * 30), three + 60).max(at(three)), at(three));
        // Stopped after it; stopped and started before it; nothing is known; the clock was set back.
        assert_eq!(due(Some(three + 30), three + 60), at(next_day));
        assert_eq!(due(Some(three - 90), three - 60), at(three));
        assert_eq!(due(None, three + 60), at(next_day));
        assert_eq!(due(Some(next_day), three + 60), at(next_day));
        // Made up for, it is due again at its own time.
        let mut times = Times::default();
        times.update(&all, &last, Some(at(0)), at(three + 60));
        assert!(times.take(at(three + 60)).is_some());
        times.done(&all.providers["x"], &origin(&all.providers["x"]), true, at(three + 62));
        assert_eq!(times.entries["x"].due, at(next_day));
    }

    #[test]
    fn who_was_never_looked_at_is_due_at_once_and_others_at_their_time() {
        let mut times = Times::default();
        let all = catalog(&[
            &x("[providers.x.discover]"),
            "[providers.y]\ntype = \"ollama\"\n[providers.y.discover]\ncron = \"0 30 * * * *\"\n",
            "[providers.z]\ntype = \"ollama\"\n",
            "[providers.off]\ntype = \"ollama\"\nenabled = false\n[providers.off.discover]\n",
        ]);
        let last = HashMap::from([(Arc::from("y"), Some(policy(&all.providers["y"])))]);
        times.update(&all, &last, None, at(0));
        assert_eq!(times.take(at(0)).map(|(it, _)| it.name.clone()), Some("x".into()));
        assert!(times.take(at(0)).is_none(), "it is looked at once at a time");
        assert_eq!(times.soonest(), Some(at(1800)));
        times.done(&all.providers["x"], &origin(&all.providers["x"]), true, at(2));
        // The default is three in the morning; the day began at 0.
        times.entries.remove("y");
        assert_eq!(times.soonest(), Some(at(3 * 3600)));
        // Reading the same manifests again changes no time, another wish does.
        times.update(&all, &last, None, at(100));
        assert_eq!(times.entries["x"].due, at(3 * 3600));
        let other = catalog(&[&x("[providers.x.discover]\nexclude = [\"a\"]")]);
        times.update(&other, &last, None, at(200));
        assert_eq!(times.entries["x"].due, at(200));
        let later = catalog(&[&x("[providers.x.discover]\nexclude = [\"a\"]\ncron = \"0 0 4 * * *\"")]);
        let last = HashMap::from([(Arc::from("x"), Some(policy(&later.providers["x"])))]);
        times.update(&later, &last, None, at(300));
        assert_eq!(times.entries["x"].due, at(4 * 3600));
        times.update(&catalog(&[]), &last, None, at(400));
        assert_eq!(times.soonest(), None);
    }

    #[test]
    fn what_failed_is_tried_again_thrice() {
        let mut times = Times::default();
        let all = catalog(&[&x("[providers.x.discover]")]);
        times.update(&all, &HashMap::new(), None, at(0));
        let mut now = at(0);
        let mut waits = Vec::new();
        for _ in 0..5 {
            let (provider, origin) = times.take(now).unwrap();
            times.done(&provider, &origin, false, now);
            waits.push((times.entries["x"].due - now).num_seconds());
            now = times.entries["x"].due;
        }
        assert_eq!(waits, [60, 300, 1500, 3 * 3600 - 1860, 60]);
        // Never later than its own time.
        let often = catalog(&[&x("[providers.x.discover]\ncron = \"*/10 * * * * *\"")]);
        times.update(&often, &HashMap::new(), None, at(0));
        let (provider, origin) = times.take(at(0)).unwrap();
        times.done(&provider, &origin, false, at(1));
        assert_eq!(times.entries["x"].due, at(10));
    }

    #[test]
    fn one_origin_holds_up_no_other() {
        let texts: Vec<String> = (0..9)
            .map(|n| {
                let host = if n == 8 { "other" } else { "same" };
                format!("[providers.p{n}]\ntype = \"custom\"\nbase_url = \"https://{host}.example/{n}\"\n[providers.p{n}.discover]\n")
            })
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut times = Times::default();
        times.update(&catalog(&texts), &HashMap::new(), None, at(0));
        let mut taken = Vec::new();
        while let Some(look) = times.take(at(0)) {
            taken.push(look);
        }
        assert_eq!(taken.len(), PER_ORIGIN + 1);
        assert_eq!(times.soonest(), None, "nothing wakes the task before one of them is done");
        // Reading the manifests meanwhile changes nothing of it.
        times.update(&catalog(&texts), &HashMap::new(), None, at(1));
        assert!(times.take(at(1)).is_none());
        let (provider, origin) = taken.remove(0);
        times.done(&provider, &origin, true, at(2));
        assert!(times.take(at(2)).is_some() && times.take(at(2)).is_none());
    }

    #[test]
    fn times_that_never_come_wait() {
        assert_eq!(next("0 0 0 30 2 *", at(0)), at(0) + NEVER);
        assert_eq!(next("nonsense", at(0)), at(0) + NEVER);
    }
}
