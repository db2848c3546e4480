//! `suspend` and `resume`: stop and restart applying; checks go on.

use clap::Args;

use super::{
    context::Context,
    output::{self, Exit},
};
use crate::store::Suspension;

#[derive(Debug, Args)]
pub struct Suspend {
    /// One provider [default: everything]
    name: Option<String>,
    /// Why, for the audit trail
    #[arg(long)]
    reason: Option<String>,
}

#[derive(Debug, Args)]
pub struct Resume {
    /// One provider [default: everything]
    name: Option<String>,
}

impl Suspend {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let reason = self.reason.as_deref().unwrap_or("suspended from the command line");
        let suspension = Suspension { at: chrono::Utc::now(), reason: reason.to_owned() };
        context.backend.store.suspend(self.name.as_deref(), &suspension).await?;
        let what = self.name.as_deref().unwrap_or("everything");
        output::text(&format!(
            "applying is suspended for {what} (hint: `providerd resume` starts it again)\n"
        ))
    }
}

impl Resume {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let was = context.backend.store.resume(self.name.as_deref(), "resumed from the command line").await?;
        let what = self.name.as_deref().unwrap_or("everything");
        let state = if was { "resumed for" } else { "was not suspended for" };
        output::text(&format!("applying {state} {what}\n"))
    }
}
