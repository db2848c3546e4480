//! `events`: the audit trail.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use provider::shown;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
};
use crate::{
    store::{EventFilter, EventRow},
    usage::view,
};

/// How often `--follow` looks for new rows; the trail is indexed by number, so looking is cheap.
const FOLLOW_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Go on printing new rows until interrupted
    #[arg(long, short)]
    follow: bool,
    /// Only rows about this provider
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only rows since a time (RFC 3339) or for a duration back (`2h`, `30m`, `7d`)
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<DateTime<Utc>>,
    /// At most so many of the newest rows
    #[arg(long, default_value_t = 100)]
    limit: u32,
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    view::since(text, Utc::now())
}

impl EventsArgs {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let store = &context.backend.store;
        let mut filter =
            EventFilter { provider: self.provider, since: self.since, after_id: None, limit: self.limit };
        let mut rows = store.events(filter.clone()).await?;
        if !self.follow && context.format == OutputFormat::Json {
            return output::json(&rows);
        }
        loop {
            for row in &rows {
                match context.format {
                    OutputFormat::Json => output::json_line(row)?,
                    OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                        output::text(&line(row))?
                    }
                };
            }
            if !self.follow {
                return Ok(Exit::Done);
            }
            filter.after_id = rows.last().map(|row| row.id).or(filter.after_id).or(Some(0));
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
                _ = tokio::signal::ctrl_c() => return Ok(Exit::Done),
            }
            rows = store.events(filter.clone()).await?;
        }
    }
}

/// When, what, about which provider, why, from where; then the changed fields, one a line.
fn line(event: &EventRow) -> String {
    let at = event.at.format("%Y-%m-%dT%H:%M:%S%.3fZ");
    let mut text = format!("{at}  {:<10} {}", event.kind, event.reason);
    if let Some(provider) = &event.provider {
        text = format!("{at}  {:<10} {provider}: {}", event.kind, event.reason);
    }
    if let Some(origin) = &event.origin {
        text += &format!("  ({origin})");
    }
    if let Some(revision) = &event.revision {
        text += &format!("  @{revision}");
    }
    let mut text = shown::one_line(&text).into_owned();
    text.push('\n');
    for change in event.detail.get("changes").and_then(|it| it.as_array()).into_iter().flatten() {
        let word = |key: &str| change.get(key).and_then(|it| it.as_str()).unwrap_or_default();
        let drift = change.get("action").is_none();
        let action = if drift { "set back" } else { word("action") };
        let action = shown::one_line(action);
        text +=
            &format!("    {action} {} {}\n", shown::one_line(word("kind")), shown::one_line(word("name")));
        for field in change.get("fields").and_then(|it| it.as_array()).into_iter().flatten() {
            if let Some(name) = field.get("field").and_then(|it| it.as_str()) {
                let value =
                    |key: &str| field.get(key).map_or_else(|| "unset".to_owned(), ToString::to_string);
                let name = shown::one_line(name);
                text += &format!("      {name}: {} → {}\n", value("old"), value("new"));
            }
        }
    }
    text
}
