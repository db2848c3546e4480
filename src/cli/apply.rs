//! `apply`: one reconcile, then exit; for CI and cron.

use std::sync::Arc;
use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use catalog::{
    model::{HealthStatus, KeyStatus},
    plan::Plan,
};
use net::probe::Prober;

use super::{
    OutputFormat,
    context::{Context, is_valid},
    output::{self, Exit},
    progress::Progress,
};
use crate::{
    checks,
    daemon::git_events,
    metrics::Metrics,
    reconcile::{Pass, PassOutcome, RefusedObject},
    source::pull::{PullOptions, Puller},
    store::Store,
};

/// Providers whose rows are printed one by one; a first apply of thousands would drown its own summary.
const SHOWN: usize = 200;

#[derive(Debug, Args)]
pub struct Apply {
    /// Permit exactly the prune that a plan with this digest shows
    #[arg(long, value_name = "DIGEST")]
    confirm_prune: Option<String>,
    /// Then wait until a running daemon has checked every provider and tested every key, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "120")]
    wait: Option<u64>,
}

/// Stable JSON of `apply`.
#[derive(Serialize)]
struct Report<'a> {
    applied: bool,
    suspended: bool,
    refused: &'a [RefusedObject],
    /// What the checks found, after `--wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Settled>,
    #[serde(flatten)]
    plan: &'a Plan,
}

impl Apply {
    /// Exit 0: the database is as declared, and after `--wait` all is well; 2: something is held back, refused,
    /// suspended, invalid, unhealthy or not settled in time.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if let Some(options) = PullOptions::of(&context.settings) {
            pull_once(options, &context.backend.store).await.context("nothing was applied")?;
            context.read_again();
        }
        let (loader, build) = context.load();
        let pass = Pass {
            build: &build,
            providers: None,
            objects: true,
            settled: true,
            confirmed: self.confirm_prune,
            revision: context.revision(),
            lease: None,
        };
        let trials = context.settings.health.enabled.then(Arc::default);
        let reconciler = context.reconciler_with(trials.clone());
        let mut outcome = reconciler.reconcile(&pass).await?;
        if let Some(trials) = trials.filter(|_| !outcome.trials.is_empty()) {
            trials
                .run(
                    &Prober::new(context.settings.egress.net_config()?)?,
                    std::mem::take(&mut outcome.trials),
                )
                .await;
            outcome = after(outcome, reconciler.reconcile(&pass).await?);
        }
        let checks = match self.wait {
            Some(seconds) => Some(settle(context, Duration::from_secs(seconds)).await?),
            None => None,
        };
        let well = checks.as_ref().is_none_or(Settled::is_well);
        match context.format {
            OutputFormat::Json => output::json(&Report {
                applied: outcome.applied,
                suspended: outcome.suspended,
                refused: &outcome.refused,
                checks,
                plan: &outcome.plan,
            })?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                let mut text = outcome.plan.brief(SHOWN).to_string();
                for refusal in &outcome.refused {
                    output::say(
                        &mut text,
                        &format!("! {}: refused by the database: {}\n", refusal.object, refusal.message),
                    );
                }
                if outcome.suspended {
                    text += "! applying is suspended: nothing was written (hint: `providerd resume`)\n";
                }
                text += &checks.as_ref().map(ToString::to_string).unwrap_or_default();
                output::text(&text)?
            }
        };
        let exit = Exit::when(well && outcome.is_as_desired() && !outcome.suspended && is_valid(&build));
        // To free a plan of thousands takes longer than to print it, and the process is about to end anyway.
        std::thread::spawn(move || drop((outcome, build, loader)));
        Ok(exit)
    }
}

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What the checks have found out about the managed, enabled providers.
#[derive(Debug, Default, Serialize)]
struct Settled {
    unhealthy: Vec<String>,
    failed_keys: Vec<String>,
    /// Not checked, or the key not tested, in the time given.
    unsettled: Vec<String>,
}

impl Settled {
    const fn is_well(&self) -> bool {
        self.unhealthy.is_empty() && self.failed_keys.is_empty() && self.unsettled.is_empty()
    }
}

impl fmt::Display for Settled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (names, what) in [
            (&self.unhealthy, "unhealthy"),
            (&self.failed_keys, "the provider rejects the key"),
            (&self.unsettled, "not checked in the time given"),
        ] {
            for name in names {
                writeln!(f, "! {name}: {what}")?;
            }
        }
        if self.is_well() { writeln!(f, "every provider is checked, no key is rejected") } else { Ok(()) }
    }
}

/// Waits until a daemon has come to a verdict about every provider.
async fn settle(context: &Context, limit: Duration) -> anyhow::Result<Settled> {
    let started = Instant::now();
    let store = &context.backend.store;
    let progress = Progress::waiting("waiting for the checks");
    loop {
        let late = started.elapsed() >= limit;
        let (checking, _) = store.lease_holders(checks::MEMBER).await?;
        anyhow::ensure!(
            !(checking.is_empty() && late),
            "no daemon checks this database\nhint: `providerd run` does; `providerd check` looks once without it"
        );
        let mut settled = Settled::default();
        for row in store.provider_status_rows(None).await? {
            if row.managed.is_none() || row.enabled == Some(false) {
                continue;
            }
            let name = || row.name.to_string();
            match row.health_status.as_deref().and_then(HealthStatus::parse) {
                None | Some(HealthStatus::Unknown) => settled.unsettled.push(name()),
                Some(HealthStatus::Unhealthy) => settled.unhealthy.push(name()),
                Some(HealthStatus::Healthy | HealthStatus::Degraded) => {
                    match row.key_test_status.as_deref().and_then(KeyStatus::parse) {
                        None | Some(KeyStatus::Pending) if row.has_key => settled.unsettled.push(name()),
                        Some(KeyStatus::Failed) => settled.failed_keys.push(name()),
                        _ => {}
                    }
                }
            }
        }
        if settled.unsettled.is_empty() || late {
            return Ok(settled);
        }
        progress.say(format!("waiting for the checks of {} providers", settled.unsettled.len()));
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Both passes as one: what the first did, and what the second did and found.
fn after(first: PassOutcome, mut second: PassOutcome) -> PassOutcome {
    let mut providers = first.plan.providers;
    providers.append(&mut second.plan.providers);
    providers.sort_by(|a, b| a.name.cmp(&b.name));
    second.plan.providers = providers;
    let mut objects = first.plan.objects;
    objects.append(&mut second.plan.objects);
    second.plan.objects = objects;
    second.applied |= first.applied;
    second.events += first.events;
    second
}

/// One look at the repository, for a command that does not stay; what is new is recorded.
///
/// # Errors
/// [`crate::source::pull::PullError`], or the database cannot be written.
async fn pull_once(options: PullOptions, store: &Store) -> anyhow::Result<()> {
    let (mut puller, mut pulled) = Puller::new(options, Arc::default(), Arc::new(Metrics::new()?));
    let result = puller.once().await;
    while let Ok(news) = pulled.news.try_recv() {
        store.record(&[git_events::event_of(news)]).await?;
    }
    Ok(result?)
}
