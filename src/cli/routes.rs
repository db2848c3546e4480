//! `routes`: the resolved table, and what a pull request would do to it.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{
    Format, Global,
    context::{self, is_valid},
    output::{self, Exit},
};
use crate::{
    loader::Loader,
    manifest::{self, Build, Content, Workspace},
    routing::Table,
    source,
};

#[derive(Debug, Args)]
pub struct Routes {
    /// Compare with a Git revision of the manifests, or with another directory
    #[arg(long, value_name = "REV|DIR")]
    diff: Option<String>,
}

impl Routes {
    /// Exit 0: no cell becomes empty; 2: one does, or a manifest is invalid.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let root = context::settings(global)?.manifests.path;
        let (table, valid) = load(&root)?;
        let Some(other) = self.diff else {
            match global.output {
                Format::Json => output::json(&table)?,
                Format::Table | Format::Github => output::text(&render(&table))?,
            };
            return Ok(Exit::when(valid));
        };
        let directory = PathBuf::from(&other);
        let before = if directory.is_dir() { load(&directory)?.0 } else { at_revision(&root, &other)? };
        let diff = Table::diff(&before, &table);
        match global.output {
            Format::Json => output::json(&diff)?,
            Format::Table | Format::Github => output::text(&diff.to_string())?,
        };
        Ok(Exit::when(valid && !diff.empties_a_cell()))
    }
}

fn load(root: &Path) -> anyhow::Result<(Table, bool)> {
    let mut loader = Loader::new(root);
    let build: Build = loader.load(true);
    anyhow::ensure!(loader.problem().is_none(), "{}", loader.problem().unwrap_or_default());
    context::report(&loader, &build);
    Ok((Table::resolve(&build.catalog), is_valid(&build)))
}

/// The table of another revision; what was invalid there declared nothing.
fn at_revision(root: &Path, revision: &str) -> anyhow::Result<Table> {
    let Some(files) = source::manifests_at(root, revision) else {
        anyhow::bail!("`{revision}` is neither a directory nor a Git revision that has {}", root.display());
    };
    let mut workspace = Workspace::new();
    for (path, text) in files {
        let file = manifest::read(&path, &Content::Text(text.into()));
        workspace.set_parsed(path, file);
    }
    Ok(Table::resolve(&workspace.build().catalog))
}

fn render(table: &Table) -> String {
    let rows = table.rows().iter().map(|row| {
        vec![
            row.power_level.to_string(),
            row.user_tier.to_string(),
            row.task_type.as_deref().unwrap_or("any").to_owned(),
            row.priority.to_string(),
            row.weight.to_string(),
            format!("{}/{}", row.provider, row.model),
            row.origin.to_string(),
        ]
    });
    output::table(&["POWER", "TIER", "TASK", "PRIORITY", "WEIGHT", "MODEL", "SOURCE"], rows)
}
