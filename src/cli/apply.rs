//! `apply`: one reconcile, then exit; for CI and cron.

use clap::Args;
use serde::Serialize;

use super::{
    Format,
    context::{Context, is_valid},
    output::{self, Exit},
};
use crate::{
    app,
    plan::Plan,
    reconcile::{Outcome, Pass, Refusal},
};

/// Providers whose rows are printed one by one; a first apply of thousands would drown its own summary.
const SHOWN: usize = 200;

#[derive(Debug, Args)]
pub struct Apply {
    /// Permit exactly the prune that a plan with this digest shows
    #[arg(long, value_name = "DIGEST")]
    confirm_prune: Option<String>,
}

/// Stable JSON of `apply`.
#[derive(Serialize)]
struct Report<'a> {
    applied: bool,
    suspended: bool,
    refused: &'a [Refusal],
    #[serde(flatten)]
    plan: &'a Plan,
}

impl Apply {
    /// Exit 0: the database is as declared; 2: something is held back, refused, suspended or invalid.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (_, build) = context.load();
        let pass = Pass {
            build: &build,
            providers: None,
            settled: true,
            confirmed: self.confirm_prune,
            revision: context.revision(),
            lease: None,
        };
        let trials = app::trials(&context.settings);
        let reconciler = context.backend.reconciler(&context.settings, trials.clone());
        let mut outcome = reconciler.reconcile(&pass).await?;
        if let Some(trials) = trials.filter(|_| !outcome.trials.is_empty()) {
            trials.run(&app::prober(&context.settings)?, std::mem::take(&mut outcome.trials)).await;
            outcome = after(outcome, reconciler.reconcile(&pass).await?);
        }
        match context.format {
            Format::Json => output::json(&Report {
                applied: outcome.applied,
                suspended: outcome.suspended,
                refused: &outcome.refused,
                plan: &outcome.plan,
            })?,
            Format::Table | Format::Github => {
                let mut text = outcome.plan.brief(SHOWN).to_string();
                for refusal in &outcome.refused {
                    text +=
                        &format!("! {}: refused by the database: {}\n", refusal.provider, refusal.message);
                }
                if outcome.suspended {
                    text += "! applying is suspended: nothing was written (hint: `providerd resume`)\n";
                }
                output::text(&text)?
            }
        };
        Ok(Exit::when(outcome.is_as_desired() && !outcome.suspended && is_valid(&build)))
    }
}

/// Both passes as one: what the first did, and what the second did and found.
fn after(first: Outcome, mut second: Outcome) -> Outcome {
    let mut providers = first.plan.providers;
    providers.append(&mut second.plan.providers);
    providers.sort_by(|a, b| a.name.cmp(&b.name));
    second.plan.providers = providers;
    second.applied |= first.applied;
    second.events += first.events;
    second
}
