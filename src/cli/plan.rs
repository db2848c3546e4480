//! `plan`: what `run` would do.

use clap::Args;

use super::{
    OutputFormat,
    context::{Context, is_valid},
    output::{self, Exit},
};
use crate::reconcile::Pass;

#[derive(Debug, Args)]
pub struct PlanArgs {}

impl PlanArgs {
    /// Exit 0: the database is as declared; 2: changes are pending, held back, or a manifest is invalid.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let (_, build) = context.load();
        let pass = Pass {
            build: &build,
            providers: None,
            objects: true,
            settled: true,
            confirmed: None,
            revision: context.revision(),
            lease: None,
        };
        let plan = context.reconciler().preview(&pass).await?;
        match context.format {
            OutputFormat::Json => output::json(&plan)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                output::text(&plan.to_string())?
            }
        };
        Ok(Exit::when(plan.is_converged() && is_valid(&build)))
    }
}
