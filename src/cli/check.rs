//! `check`: looks at providers now and says what it found. Writes nothing: statuses are the daemon's.

use clap::Args;
use tracing::debug;

use net::probe::Prober;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
    progress::Progress,
};
use crate::checks::once::{self, Candidate, CheckFinding};

#[derive(Debug, Args)]
pub struct Check {
    /// Only these providers
    names: Vec<String>,
}

impl Check {
    /// Exit 0: all answer and no key is refused; 2: one does not, or is; 1: the fault is on this side.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (_, build) = context.load_quietly();
        let prober = Prober::new(context.settings.egress.net_config()?)?;
        let outer = context.settings.health.policy();
        let mut candidates = context.candidates(&build, &outer).await?;
        if !self.names.is_empty() {
            let known = |wanted: &&String| candidates.iter().any(|it| name(it) == wanted.as_str());
            if let Some(unknown) = self.names.iter().find(|wanted| !known(wanted)) {
                anyhow::bail!("no provider is called `{unknown}`\nhint: `providerd status` lists them");
            }
            candidates.retain(|it| self.names.iter().any(|wanted| wanted == name(it)));
        }
        let progress = Progress::steps("checking", candidates.len());
        let mut found = once::look(&prober, candidates, |finding| {
            progress.step();
            debug!(provider = %finding.provider, outcome = finding.outcome, "checked");
        })
        .await;
        drop(progress);
        let impaired = context.backend.store.impaired().await?;
        for finding in &mut found {
            finding.impaired = impaired.first().map(|why| why.as_str().into());
        }
        match context.format {
            OutputFormat::Json => output::json(&found)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                output::text(&(render(&found) + &doubts(&impaired, &found)))?
            }
        };
        if found.iter().any(CheckFinding::is_local) {
            return Ok(Exit::Failed);
        }
        let asked = found.iter().filter(|finding| finding.outcome != "skipped" || !self.names.is_empty());
        Ok(Exit::when(asked.into_iter().all(CheckFinding::is_good)))
    }
}

fn name(candidate: &Candidate) -> &str {
    match candidate {
        Ok(target) => &target.name,
        Err((name, _)) => name,
    }
}

fn render(found: &[CheckFinding]) -> String {
    let rows = found.iter().map(|it| {
        let health = match it.outcome {
            "ok" | "auth" => "answers".to_owned(),
            "skipped" => "not checked".to_owned(),
            "hard" => "fails".to_owned(),
            "soft" => "answers, but not well".to_owned(),
            other => other.to_owned(),
        };
        let latency = if it.outcome == "skipped" { String::new() } else { format!("{} ms", it.latency_ms) };
        // A refused key stands in its own column.
        let note = if it.outcome == "auth" { "" } else { &it.reason };
        vec![it.provider.to_string(), health, latency, key(it), note.replacen("\nhint: ", "; hint: ", 1)]
    });
    output::table(&["NAME", "HEALTH", "LATENCY", "KEY", "NOTE"], rows)
}

/// That the daemon does not believe its own checks, or that this look should not be either.
fn doubts(impaired: &[String], found: &[CheckFinding]) -> String {
    let mut text: String = impaired.iter().map(|why| format!("! the daemon's checks: {why}\n")).collect();
    let asked = found.iter().filter(|it| it.outcome != "skipped").count();
    let failing = found.iter().filter(|it| matches!(it.outcome, "hard" | "local")).count();
    if asked >= 5 && failing * 2 > asked {
        output::say(
            &mut text,
            &format!(
                "! {failing} of {asked} providers do not answer, which points to this machine or its network \
             (hint: `providerd doctor` looks step by step)\n"
            ),
        );
    }
    text
}

/// `valid, 15 models found, 450 ms`, `invalid: the provider's words`, `none`.
fn key(finding: &CheckFinding) -> String {
    let models = finding.models_found.map(|count| format!("{count} models found"));
    let Some(key) = &finding.key else {
        if finding.has_key || finding.outcome == "skipped" {
            return "not tested".to_owned();
        }
        return models.map_or_else(|| "none".to_owned(), |models| format!("none, {models}"));
    };
    if !key.reason.is_empty() {
        // What this word alone would leave open: nothing was learned about the key.
        let word = match key.verdict {
            "rate" | "untestable" => "not tested",
            "overload" | "inconclusive" => "not proven",
            word => word,
        };
        return format!("{word}: {}", key.reason.replacen("\nhint: ", "; hint: ", 1));
    }
    let took = Some(format!("{} ms", key.latency_ms));
    [Some(key.verdict.to_owned()), models, took].into_iter().flatten().collect::<Vec<_>>().join(", ")
}
