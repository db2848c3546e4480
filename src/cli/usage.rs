//! `usage`: tokens, cost and latency; and turning an adopted log into one of days.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use provider::shown;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
};
use crate::{
    store::{UsageBy, UsageLine, UsagePartitionPlan, UsageQuery},
    usage::view,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct UsageArgs {
    #[command(subcommand)]
    action: Option<UsageAction>,
    /// One line for each of these: provider, model, consumer, user, level, day, hour; several with commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = by, default_value = "provider")]
    by: Vec<UsageBy>,
    /// From a time (RFC 3339) or a duration back (`2h`, `7d`) [default: 30d]
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<DateTime<Utc>>,
    /// Up to a time or a duration back [default: now]
    #[arg(long, value_name = "WHEN", value_parser = since)]
    until: Option<DateTime<Utc>>,
    /// Only requests that this provider answered
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Only requests of this consumer
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
}

#[derive(Debug, Subcommand)]
enum UsageAction {
    /// Turn an adopted llm_usage_logs into one of days; shows what it means and changes nothing without --confirm
    Partition {
        /// Do it: readers and writers of the log wait while the table is read once
        #[arg(long)]
        confirm: bool,
    },
}

fn by(word: &str) -> Result<UsageBy, String> {
    UsageBy::of(word).ok_or_else(|| {
        let words: Vec<&str> = UsageBy::ALL.iter().map(|it| it.as_str()).collect();
        format!("expected one of {}", words.join(", "))
    })
}

fn since(text: &str) -> Result<DateTime<Utc>, String> {
    view::since(text, Utc::now())
}

impl UsageArgs {
    /// Whether the command changes the database.
    pub const fn writes(&self) -> bool {
        matches!(self.action, Some(UsageAction::Partition { confirm: true }))
    }

    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if let Some(UsageAction::Partition { confirm }) = self.action {
            return partition(context, confirm).await;
        }
        let now = Utc::now();
        let query = UsageQuery {
            by: self.by,
            since: self.since.unwrap_or(now - view::DEFAULT_SINCE),
            until: self.until,
            provider: self.provider,
            consumer: self.consumer,
        };
        query.check()?;
        let lines = context.backend.store.usage_lines(&query, now).await?;
        match context.format {
            OutputFormat::Json => output::json(&view::answer(&query, &lines)),
            OutputFormat::Csv => output::text(&view::csv(&query.by, &lines)),
            OutputFormat::Table | OutputFormat::Github => output::text(&table(&query, &lines)),
        }
    }
}

/// What fits into 80 columns: the rest is in the other formats.
fn table(query: &UsageQuery, lines: &[UsageLine]) -> String {
    let mut header: Vec<String> = query.by.iter().map(|it| it.as_str().to_uppercase()).collect();
    header.extend(
        ["REQUESTS", "ERRORS", "INPUT", "OUTPUT", "COST USD", "P50", "P95", "FIRST"].map(str::to_owned),
    );
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let time = |it: Option<u64>| match it {
        None => "–".to_owned(),
        Some(ms) if ms < 10_000 => format!("{ms} ms"),
        Some(ms) => format!("{} s", ms / 1_000),
    };
    let mut unpriced = 0;
    let mut rows = Vec::new();
    for line in lines {
        unpriced += line.unpriced;
        let mut cells: Vec<String> = line
            .key
            .iter()
            .map(|it| if it.is_empty() { "–".to_owned() } else { shown::one_line(it).into_owned() })
            .collect();
        cells.extend([
            line.requests.to_string(),
            line.errors.to_string(),
            line.input.to_string(),
            line.output.to_string(),
            // Unknown is not free.
            if line.unpriced == line.requests { "unknown".to_owned() } else { line.cost.clone() },
            time(line.latency.percentile(0.5)),
            time(line.latency.percentile(0.95)),
            time(line.ttft.percentile(0.5)),
        ]);
        rows.push(cells);
    }
    if rows.is_empty() {
        return format!("no usage since {}\n", query.since.format("%Y-%m-%d %H:%M UTC"));
    }
    let mut text = output::table(&header, rows);
    if unpriced > 0 {
        text +=
            &format!("note: {unpriced} requests are in no cost, because a price of their model is unknown\n");
    }
    text
}

async fn partition(context: &Context, confirm: bool) -> anyhow::Result<Exit> {
    let store = &context.backend.store;
    let plan = if confirm { store.usage_partition().await? } else { store.usage_partition_plan().await? };
    if context.format == OutputFormat::Json {
        output::json(&serde_json::json!({
            "partitioned": plan.done || confirm,
            "rows": plan.rows,
            "bytes": plan.bytes,
            "newest": plan.newest,
            "obstacles": plan.obstacles,
        }))?;
    } else {
        output::text(&describe(&plan, confirm))?;
    }
    Ok(Exit::when(plan.done || confirm))
}

fn describe(plan: &UsagePartitionPlan, confirm: bool) -> String {
    if plan.done {
        return "llm_usage_logs is partitioned by day already\n".to_owned();
    }
    if confirm {
        return "llm_usage_logs is partitioned by day now; what it held is its partition llm_usage_logs_before\n"
            .to_owned();
    }
    let mut text = format!(
        "llm_usage_logs is a plain table of about {} rows, {} MiB\n\
         it would become the oldest partition of a log of days, and not be rewritten; readers and writers of the log\n\
         wait meanwhile, for about as long as it takes to read it once and to index it\n",
        plan.rows,
        plan.bytes >> 20
    );
    for obstacle in &plan.obstacles {
        output::say(&mut text, &format!("in the way: {obstacle}\n"));
    }
    if plan.obstacles.is_empty() {
        text += "hint: `providerd usage partition --confirm` does it\n";
    }
    text
}
