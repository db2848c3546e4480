//! `apply`: one reconcile, then exit; for CI and cron.

use clap::Args;
use serde::Serialize;

use super::{
    Format,
    context::{Context, is_valid},
    output::{self, Exit},
};
use crate::{
    plan::Plan,
    reconcile::{Pass, Refusal},
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
        let (loader, build) = context.load();
        let pass = Pass {
            build: &build,
            providers: None,
            settled: true,
            confirmed: self.confirm_prune,
            revision: context.revision(),
            lease: None,
        };
        let outcome = context.reconciler().reconcile(&pass).await?;
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
        let exit = Exit::when(outcome.is_as_desired() && !outcome.suspended && is_valid(&build));
        // To free a plan of thousands takes longer than to print it, and the process is about to end anyway.
        std::thread::spawn(move || drop((outcome, build, loader)));
        Ok(exit)
    }
}
