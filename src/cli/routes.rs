//! `routes`: the resolved table, and what a pull request would do to it.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde::Serialize;

use catalog::{
    manifest::{self, Build, Content, Workspace},
    routing::{CellRow, Table},
};

use super::{
    Global, OutputFormat,
    context::{self, Context, is_valid},
    explain::Explain,
    output::{self, Exit},
};
use crate::{
    backend::Access,
    config::Settings,
    loader::Loader,
    source::{self, pull},
    store::DiscoveryNotice,
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct RoutesArgs {
    #[command(subcommand)]
    action: Option<RoutesAction>,
    /// Compare with a Git revision of the manifests, or with another directory
    #[arg(long, value_name = "REV|DIR")]
    diff: Option<String>,
    /// Also say which models their provider no longer offers, as discovery last found; needs the database
    #[arg(long, conflicts_with = "diff")]
    offered: bool,
}

#[derive(Debug, Subcommand)]
enum RoutesAction {
    /// Say who would answer a request, in which order, and why not the others
    Explain(Explain),
}

/// Since when models are no longer offered, by provider and model.
type Vanished = HashMap<(String, String), DateTime<Utc>>;

/// Stable JSON of `routes --offered`.
#[derive(Serialize)]
struct Offered<'a> {
    rows: Vec<OfferedRow<'a>>,
}

#[derive(Serialize)]
struct OfferedRow<'a> {
    #[serde(flatten)]
    row: &'a CellRow,
    /// Since when the provider no longer offers the model; null while it does, or where discovery is off.
    vanished_at: Option<DateTime<Utc>>,
}

impl RoutesArgs {
    /// Exit 0: no cell becomes empty; 2: one does, or a manifest is invalid.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        if let Some(RoutesAction::Explain(explain)) = self.action {
            return context::block_on(global, Access::Look, |context| Box::pin(explain.run(context)));
        }
        if self.offered {
            return context::block_on(global, Access::Look, |context| Box::pin(offered(context)));
        }
        let settings = context::settings(global)?;
        let root = &settings.manifests.path;
        let (table, valid) = load(root)?;
        let Some(other) = self.diff else {
            match global.output {
                OutputFormat::Json => output::json(&table)?,
                OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                    output::text(&render(&table, None))?
                }
            };
            return Ok(Exit::when(valid));
        };
        let directory = PathBuf::from(&other);
        let before = if directory.is_dir() { load(&directory)?.0 } else { at_revision(&settings, &other)? };
        let diff = Table::diff(&before, &table);
        match global.output {
            OutputFormat::Json => output::json(&diff)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                output::text(&diff.to_string())?
            }
        };
        Ok(Exit::when(valid && !diff.empties_a_cell()))
    }
}

/// Exit 0: everything routed is offered, as far as discovery looks; 2: something is not, or a manifest is invalid.
async fn offered(context: &Context) -> anyhow::Result<Exit> {
    let (table, valid) = load(&context.root())?;
    let mut tx = context.backend.store.look_begin().await?;
    let notices = tx.discovery_notices().await?;
    tx.rollback().await?;
    let vanished: Vanished = notices
        .into_iter()
        .filter_map(|notice| match notice {
            DiscoveryNotice::Vanished { provider, model, since, .. } => {
                Some(((provider.to_string(), model), since))
            }
            DiscoveryNotice::Trouble { .. } => None,
        })
        .collect();
    match context.format {
        OutputFormat::Json => {
            let row = |row| OfferedRow { row, vanished_at: since(&vanished, row) };
            output::json(&Offered { rows: table.rows().iter().map(row).collect() })?
        }
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
            output::text(&render(&table, Some(&vanished)))?
        }
    };
    let complete = table.rows().iter().all(|row| since(&vanished, row).is_none());
    Ok(Exit::when(valid && complete))
}

fn since(vanished: &Vanished, row: &CellRow) -> Option<DateTime<Utc>> {
    vanished.get(&(row.provider.to_string(), row.model.to_string())).copied()
}

fn load(root: &Path) -> anyhow::Result<(Table, bool)> {
    let mut loader = Loader::new(root);
    let build: Build = loader.load(true);
    anyhow::ensure!(loader.problem().is_none(), "{}", loader.problem().unwrap_or_default());
    context::report(&loader, &build);
    Ok((Table::resolve(&build.catalog), is_valid(&build)))
}

/// The table of another revision; what was invalid there declared nothing.
fn at_revision(settings: &Settings, revision: &str) -> anyhow::Result<Table> {
    let root = &settings.manifests.path;
    let files = match pull::PullOptions::of(settings) {
        // A checkout of what is pulled has no repository around it.
        Some(options) if *root == options.manifests() => options
            .mirror()
            .and_then(|mirror| source::manifests_in(&mirror, &options.path, revision))
            .with_context(|| {
                format!(
                    "`{revision}` is neither a directory nor a commit that was pulled\n\
                     hint: name a commit that `providerd events` shows; of what came before the first pull there is no copy"
                )
            })?,
        _ => source::manifests_at(root, revision).with_context(|| {
            format!("`{revision}` is neither a directory nor a Git revision that has {}", root.display())
        })?,
    };
    let mut workspace = Workspace::new();
    for (path, text) in files {
        let file = manifest::read(&path, &Content::Text(text.into()));
        workspace.set_parsed(path, file);
    }
    Ok(Table::resolve(&workspace.build().catalog))
}

fn render(table: &Table, vanished: Option<&Vanished>) -> String {
    let rows = table.rows().iter().map(|row| {
        let mut cells = vec![
            row.power_level.to_string(),
            row.user_tier.to_string(),
            row.task_type.as_deref().unwrap_or("any").to_owned(),
            row.priority.to_string(),
            row.weight.to_string(),
            format!("{}/{}", row.provider, row.model),
            row.origin.to_string(),
        ];
        let gone = vanished.map(|vanished| since(vanished, row));
        cells.extend(gone.map(|gone| match gone {
            Some(at) => format!("NO LONGER, since {}", at.format("%Y-%m-%d %H:%M UTC")),
            None => "-".to_owned(),
        }));
        cells
    });
    let mut header = vec!["POWER", "TIER", "TASK", "PRIORITY", "WEIGHT", "MODEL", "SOURCE"];
    header.extend(vanished.map(|_| "OFFERED"));
    output::table(&header, rows)
}
