//! `status`: every provider at a glance, as the database was read to hold it.

use std::{
    collections::BTreeSet,
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use clap::Args;
use serde::Serialize;

use catalog::{
    manifest::Build,
    plan::{NoticeKind, Plan},
};

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
    progress::Progress,
};
use crate::{
    checks,
    reconcile::Pass,
    source::pull,
    status::{
        judge::{self, Judge, JudgedProvider, State, Unsettled, is_synced},
        view::GatewayCounts,
    },
    store::{EventFilter, ProviderStatus},
};

/// How often `--watch` and `--wait` look again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only these providers
    names: Vec<String>,
    /// Print again whenever something changes, until interrupted
    #[arg(long)]
    watch: bool,
    /// Wait until everything is synced, at most so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "60")]
    wait: Option<u64>,
}

/// Everything `status` shows.
#[derive(Debug, PartialEq, Serialize)]
struct Report {
    synced: bool,
    suspended: bool,
    providers: Vec<JudgedProvider>,
    gateway: GatewayCounts,
    /// What is held back, and the command that confirms it.
    held: Vec<String>,
    /// Why checks doubt their own results now, by daemon: failures change no status meanwhile.
    impaired: Vec<String>,
    /// Origins whose providers are checked less often than asked for.
    paced: Vec<String>,
    /// Invalid and unreadable manifests.
    manifests: Vec<String>,
}

impl StatusArgs {
    /// Exit 0: everything asked for is synced; 2: it is not.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let started = Instant::now();
        let mut printed: Option<Report> = None;
        let mut progress = None;
        let live = self.watch && context.format == OutputFormat::Table && std::io::stdout().is_terminal();
        loop {
            let began = Instant::now();
            let report = self.report(context).await?;
            let waiting =
                self.wait.is_some_and(|limit| !report.synced && started.elapsed().as_secs() < limit);
            let exit = Exit::when(report.synced);
            if waiting {
                progress.get_or_insert_with(|| Progress::waiting("waiting until everything is synced"));
            } else {
                progress = None;
            }
            if live && !waiting {
                output::screen(&screen(&report))?;
            } else if !waiting && printed.as_ref() != Some(&report) {
                print(context, &report)?;
                printed = Some(report);
            }
            if !self.watch && !waiting {
                return Ok(exit);
            }
            // Looking at a large catalog must not keep a core busy.
            let rest = LOOK_EVERY.max(began.elapsed() * 4);
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                _ = tokio::signal::ctrl_c() => return Ok(exit),
            }
        }
    }

    async fn report(&self, context: &Context) -> anyhow::Result<Report> {
        let (loader, build) = context.load_quietly();
        let mut plan = context.reconciler().preview(&Pass::of_all(&build)).await?;
        self.trials(context, &mut plan).await?;
        let suspended = context.backend.store.suspended().await?;
        let rows = context.backend.store.provider_status_rows(None).await?;
        let paced = self.paced(context, &build, &rows).await?;
        let impaired = context.backend.store.impaired().await?;
        let mut lines = Judge::new(&build, &plan, &suspended).lines(rows);
        if !self.names.is_empty() {
            lines.retain(|name, _| self.names.contains(name));
            if let Some(name) = self.names.iter().find(|name| !lines.contains_key(*name)) {
                anyhow::bail!("no provider is called `{name}`");
            }
        }
        let providers: Vec<JudgedProvider> = lines.into_values().collect();
        let held = plan.held.iter().map(|hold| match &hold.digest {
            Some(digest) => format!("{} (hint: `providerd apply --confirm-prune {digest}`)", hold.reason),
            None => hold.reason.clone(),
        });
        let held: Vec<String> = held.collect();
        let pulled =
            pull::PullOptions::of(&context.settings).and_then(|options| pull::PullReport::read(&options));
        let problems =
            judge::problems(&build.diagnostics, loader.problem(), pulled.and_then(|pulled| pulled.problem()));
        let gateway = GatewayCounts::of(&build, &plan);
        let unsettled = Unsettled {
            held: held.len(),
            problems: problems.len(),
            // Only the daemon that applied knows; here, what was refused is pending.
            refused: 0,
            // Who asks about some providers asks about no consumer.
            objects: if self.names.is_empty() { gateway.pending } else { 0 },
            suspended: suspended.all.is_some(),
        };
        let synced = is_synced(providers.iter().map(|line| line.state), unsettled);
        let manifests = problems.into_iter().map(|it| match it.file.as_str() {
            "." => it.message,
            file => format!("{file}:{}:{}: {}", it.line, it.column, it.message),
        });
        let manifests = manifests.collect();
        let suspended = suspended.all.is_some();
        Ok(Report { synced, suspended, providers, gateway, held, impaired, paced, manifests })
    }

    /// Says of keys on trial what the daemon has found out: this program tries none.
    async fn trials(&self, context: &Context, plan: &mut Plan) -> anyhow::Result<()> {
        for notice in plan.notices.iter_mut().filter(|notice| notice.kind == NoticeKind::KeyUntried) {
            let Some(refused) = notice.twin() else { continue };
            let provider = Some(notice.provider.to_string());
            let events =
                context.backend.store.events(EventFilter { provider, ..EventFilter::default() }).await?;
            let verdict = events.iter().rev().find(|event| event.reason == refused.message);
            if let Some(verdict) = verdict {
                let at = verdict.at.format("%Y-%m-%d %H:%M:%S UTC");
                notice.message =
                    format!("{}: rejected at {at}, and asked again every 5 minutes", refused.message);
            }
        }
        Ok(())
    }

    async fn paced(
        &self,
        context: &Context,
        build: &Build,
        rows: &[ProviderStatus],
    ) -> anyhow::Result<Vec<String>> {
        if !self.names.is_empty() {
            return Ok(Vec::new());
        }
        // Each daemon that checks keeps to the rate for itself.
        let (daemons, _) = context.backend.store.lease_holders(checks::MEMBER).await?;
        let rate = f64::from(context.settings.health.per_origin_rate.get()) * daemons.len().max(1) as f64;
        Ok(judge::paced(build, rows, rate, &context.settings.health.policy()))
    }
}

fn print(context: &Context, report: &Report) -> anyhow::Result<()> {
    if context.format == OutputFormat::Json {
        output::json(report)?;
        return Ok(());
    }
    let now = Utc::now();
    let lines: Vec<&JudgedProvider> = report.providers.iter().collect();
    output::coloured(&output::paint(&(table(&lines, now) + &remarks(report, now))))?;
    Ok(())
}

/// What fits a terminal: sums, the providers that need attention first, and what there is to say.
fn screen(report: &Report) -> String {
    let now = Utc::now();
    let (rows, _) = output::terminal();
    let remarks = remarks(report, now);
    let count = |health: &str| {
        report
            .providers
            .iter()
            .filter(|it| it.enabled != Some(false) && it.health.as_deref() == Some(health))
            .count()
    };
    let mut text = format!(
        "providerd  {}  {} healthy · {} degraded · {} unhealthy · {} providers  {}\n\n",
        now.format("%H:%M:%S UTC"),
        count("healthy"),
        count("degraded"),
        count("unhealthy"),
        report.providers.len(),
        if report.synced { "synced" } else { "not synced" },
    );
    let mut lines: Vec<&JudgedProvider> = report.providers.iter().collect();
    lines.sort_by_key(|line| !needs_somebody(line));
    // Header, sums, an empty line on either side, and the remarks take their share; at least half is the table's.
    let said = remarks.lines().count();
    let room = rows.saturating_sub(6 + said).max(rows / 2).max(3);
    let more = lines.len().saturating_sub(room);
    lines.truncate(room);
    text += &table(&lines, now);
    if more > 0 {
        output::say(&mut text, &format!("… and {more} more\n"));
    }
    text.push('\n');
    let left = rows.saturating_sub(text.lines().count() + 1);
    for line in remarks.lines().take(left) {
        text += line;
        text.push('\n');
    }
    output::paint(&text)
}

fn needs_somebody(line: &JudgedProvider) -> bool {
    let enabled = line.enabled != Some(false);
    enabled
        && (matches!(line.health.as_deref(), Some("unhealthy" | "degraded"))
            || matches!(line.key.as_deref(), Some("failed" | "missing")))
        || !matches!(line.state, State::Synced | State::Unmanaged)
}

fn table(lines: &[&JudgedProvider], now: DateTime<Utc>) -> String {
    let ago = |at: Option<DateTime<Utc>>| at.map_or_else(|| "never".to_owned(), |at| age(now - at));
    let mut header = vec!["NAME", "TYPE", "STATE", "HEALTH", "KEY", "CHECKED", "LATENCY", "MODELS", "SOURCE"];
    let versioned = lines.iter().any(|line| line.revision.is_some());
    if versioned {
        header.push("REVISION");
    }
    let rows = lines.iter().map(|line| {
        let mut row = vec![
            line.name.clone(),
            line.kind.clone().unwrap_or_default(),
            line.state.as_str().to_owned(),
            match line.enabled {
                Some(false) => "off".to_owned(),
                _ => line.health.clone().unwrap_or_else(|| "unknown".into()),
            },
            line.key.clone().unwrap_or_else(|| if line.has_key { "untested".into() } else { "none".into() }),
            ago(line.last_check),
            line.latency_ms.map_or_else(String::new, |ms| format!("{ms} ms")),
            line.models.to_string(),
            line.source.clone().unwrap_or_default(),
        ];
        if versioned {
            row.push(line.revision.clone().unwrap_or_default());
        }
        row
    });
    output::table(&header, rows)
}

/// What the operator should know beside the table.
fn remarks(report: &Report, now: DateTime<Utc>) -> String {
    let mut text = String::new();
    for why in &report.impaired {
        output::say(&mut text, &format!("! checks: {why} (hint: `providerd doctor` looks from here)\n"));
    }
    for line in report.providers.iter().filter(|line| line.enabled != Some(false)) {
        let since = line.health_since.map_or_else(String::new, |at| format!(" for {}", length(now - at)));
        if let Some(health) = line.health.as_deref().filter(|it| matches!(*it, "degraded" | "unhealthy")) {
            let reason = said(&line.health_reason, "its last answer was good; more of them make it healthy");
            output::say(&mut text, &format!("! {}: {health}{since}: {reason}\n", line.name));
        }
        if let Some(until) = line.asked_to_wait.filter(|until| now < *until) {
            output::say(
                &mut text,
                &format!(
                    "! {}: it asked to be left alone until {} (Retry-After)\n",
                    line.name,
                    until.format("%H:%M:%S UTC")
                ),
            );
        }
        if let Some(remark) = key_remark(line, now) {
            output::say(&mut text, &remark);
        }
    }
    let notices =
        report.providers.iter().flat_map(|line| line.notices.iter().map(move |it| (&line.name, it)));
    let mut hints = BTreeSet::new();
    for (name, notice) in notices {
        let (message, hint) =
            notice.split_once("\nhint: ").map_or((notice.as_str(), None), |(a, b)| (a, Some(b)));
        output::say(&mut text, &format!("! {name}: {message}\n"));
        hints.extend(hint);
    }
    for hint in hints {
        output::say(&mut text, &format!("  hint: {hint}\n"));
    }
    if report.gateway.pending > 0 {
        let count = report.gateway.pending;
        text +=
            &format!("! gateway: {count} objects are not as declared (hint: `providerd plan` shows them)\n");
    }
    for held in &report.held {
        output::say(&mut text, &format!("! held back: {held}\n"));
    }
    for paced in &report.paced {
        output::say(&mut text, &format!("! {paced}\n"));
    }
    for problem in &report.manifests {
        output::say(&mut text, &format!("! {problem}\n"));
    }
    if report.suspended {
        text += "! applying is suspended (hint: `providerd resume`)\n";
    }
    text
}

/// What is known against a provider's key.
fn key_remark(line: &JudgedProvider, now: DateTime<Utc>) -> Option<String> {
    let (name, reason) = (&line.name, said(&line.key_reason, "its provider gave no reason"));
    match line.key.as_deref() {
        Some(status @ ("failed" | "error")) => Some(format!("! {name}: key {status}: {reason}\n")),
        _ if let Some(first) = line.key_rejected_at => {
            let again = line.key_next_test.filter(|again| now < *again);
            let again = again.map_or_else(
                || ", to be asked again now".to_owned(),
                |again| format!(", asked again at {}", again.format("%H:%M:%S UTC")),
            );
            Some(format!(
                "! {name}: key rejected once, at {}{again}: {reason}\n",
                first.format("%H:%M:%S UTC")
            ))
        }
        Some("valid") if line.can_serve == Some(false) => {
            Some(format!("! {name}: the key is valid, but cannot serve: {reason}\n"))
        }
        _ => None,
    }
}

/// What there is to say, or else what that means.
fn said<'a>(reason: &'a str, nothing: &'a str) -> &'a str {
    if reason.trim().is_empty() { nothing } else { reason }
}

/// `<1m ago`, `5m ago`, `3h ago`, `2d ago`. A date that is younger than a minute is not shown more finely: it is written
/// once a minute.
fn age(since: chrono::TimeDelta) -> String {
    if since.num_seconds() < 60 { "<1m ago".to_owned() } else { format!("{} ago", length(since)) }
}

/// `12s`, `5m`, `3h`, `2d`.
fn length(span: chrono::TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}
