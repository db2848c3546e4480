//! `routes explain`: who would answer a request, in which order, and why not the others.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
};
use crate::dataplane::{
    explain::{RouteQuestion, answer},
    load,
};

#[derive(Debug, Args)]
pub struct Explain {
    /// What a caller asks for: provider/model, a model, an alias or a power level
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Power level: eco, balanced or precision
    #[arg(long, value_name = "LEVEL")]
    power: Option<String>,
    /// User tier
    #[arg(long, value_name = "TIER")]
    tier: Option<String>,
    /// Task type
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Only what this consumer may ask for
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// The caller's dialect [default: chat]
    #[arg(long, value_name = "API")]
    api: Option<String>,
    /// Only providers inside our walls
    #[arg(long)]
    private: bool,
    /// A file with a request as a caller would send it (JSON); `-`: standard input. Other options are stronger
    #[arg(long, value_name = "FILE")]
    request: Option<PathBuf>,
    /// Chooses among equals: 16 hexadecimal digits
    #[arg(long, value_name = "SEED")]
    seed: Option<String>,
}

/// The request in a file.
fn read(path: &Path) -> anyhow::Result<serde_json::Value> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin())
    } else {
        std::fs::read_to_string(path)
    };
    let text = text.with_context(|| format!("{} cannot be read", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

impl Explain {
    /// Exit 0: a provider would answer; 2: none would.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let byok = &context.backend.keyring.byok;
        let (input, problems) =
            load::read_input(&context.backend.store, byok, &context.settings.gateway).await?;
        for problem in problems {
            anstream::eprintln!("warning: {problem}");
        }
        let (picture, problems) = load::build(&input, byok);
        for problem in problems {
            anstream::eprintln!("warning: {problem}");
        }
        let question = RouteQuestion {
            model: self.model,
            power_level: self.power,
            user_tier: self.tier,
            task_type: self.task,
            consumer: self.consumer,
            api: self.api,
            privacy_required: self.private,
            request: self.request.as_deref().map(read).transpose()?,
            seed: self.seed,
        };
        let explanation = answer(&picture, &question).context("the question cannot be answered")?;
        match context.format {
            OutputFormat::Json => output::json(&explanation)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                output::text(&(explanation.lines().join("\n") + "\n"))?
            }
        };
        Ok(Exit::when(!explanation.candidates.is_empty()))
    }
}
