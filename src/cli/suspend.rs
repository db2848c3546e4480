//! `suspend` and `resume`: stop and restart applying, which leaves checks alone; or one provider's checks, for
//! maintenance.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use serde_json::json;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
};
use crate::{
    config,
    store::{Stopped, Suspension},
};

#[derive(Debug, Args)]
pub struct SuspendArgs {
    /// One provider [default: everything]
    name: Option<String>,
    /// Why, for the audit trail
    #[arg(long)]
    reason: Option<String>,
    /// Stop this provider's health checks and key tests instead: maintenance
    #[arg(long, requires = "name")]
    checks: bool,
    /// How long checks are stopped, such as 30m or 2h [default: until resumed]
    #[arg(long = "for", value_name = "DURATION", requires = "checks", value_parser = catalog::duration::parse)]
    duration: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// One provider [default: everything]
    name: Option<String>,
    /// Start this provider's health checks and key tests again
    #[arg(long, requires = "name")]
    checks: bool,
}

fn what(name: Option<&str>, checks: bool) -> Stopped<'_> {
    match (name, checks) {
        (None, _) => Stopped::Everything,
        (Some(name), false) => Stopped::Provider(name),
        (Some(name), true) => Stopped::Checks(name),
    }
}

/// `applying`, or `checks`; and to what.
fn words(stopped: Stopped<'_>) -> (&'static str, &str) {
    match stopped {
        Stopped::Everything => ("applying", "everything"),
        Stopped::Provider(name) => ("applying", name),
        Stopped::Checks(name) => ("checking", name),
    }
}

/// That a provider of this name is declared, stored or stopped already: a slip in an incident must not look like a stop.
async fn is_known(context: &Context, name: Option<&str>) -> anyhow::Result<()> {
    let Some(name) = name else { return Ok(()) };
    let (_, build) = context.load_quietly();
    let store = &context.backend.store;
    let stopped = store.suspended().await?;
    let mut known: BTreeSet<String> = build.catalog.providers.keys().map(ToString::to_string).collect();
    known.extend(stopped.providers.keys().chain(stopped.checks.keys()).map(ToString::to_string));
    known.extend(store.provider_status_rows(None).await?.iter().map(|row| row.name.to_string()));
    let hint = match config::nearest(name, known.iter().map(String::as_str)) {
        Some(near) => format!("did you mean `{near}`?"),
        None => "`providerd status` lists them".to_owned(),
    };
    anyhow::ensure!(known.contains(name), "no provider is called `{name}`\nhint: {hint}");
    Ok(())
}

impl SuspendArgs {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        is_known(context, self.name.as_deref()).await?;
        let reason = self.reason.as_deref().unwrap_or("suspended from the command line");
        let now = chrono::Utc::now();
        let until = self
            .duration
            .and_then(|duration| now.checked_add_signed(chrono::TimeDelta::from_std(duration).ok()?));
        let suspension = Suspension { at: now, reason: reason.to_owned(), until };
        let stopped = what(self.name.as_deref(), self.checks);
        context.backend.store.suspend(stopped, &suspension).await?;
        let (verb, what) = words(stopped);
        if context.format == OutputFormat::Json {
            let provider = self.name.as_deref();
            return output::json(
                &json!({ "suspended": true, "what": verb, "provider": provider, "until": until }),
            );
        }
        let command = match stopped {
            Stopped::Everything => "providerd resume".to_owned(),
            Stopped::Provider(name) => format!("providerd resume {name}"),
            Stopped::Checks(name) => format!("providerd resume {name} --checks"),
        };
        let end = until.map_or_else(
            || format!("`{command}` starts it again"),
            |until| format!("until {}; `{command}` starts it earlier", until.format("%Y-%m-%dT%H:%M:%SZ")),
        );
        output::line(&format!("{verb} is suspended for {what} (hint: {end})"))
    }
}

impl ResumeArgs {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        is_known(context, self.name.as_deref()).await?;
        let stopped = what(self.name.as_deref(), self.checks);
        let was = context.backend.store.resume(stopped, "resumed from the command line").await?;
        let (verb, what) = words(stopped);
        if context.format == OutputFormat::Json {
            let provider = self.name.as_deref();
            return output::json(
                &json!({ "suspended": false, "was_suspended": was, "what": verb, "provider": provider }),
            );
        }
        let state = if was { "resumed for" } else { "was not suspended for" };
        output::line(&format!("{verb} {state} {what}"))
    }
}
