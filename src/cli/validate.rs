//! `validate`: every problem of every file at once, offline.

use std::path::PathBuf;

use clap::Args;

use catalog::manifest::render;

use super::{
    Global, OutputFormat,
    context::{self, is_valid},
    output::{self, Exit},
};
use crate::loader::Loader;

#[derive(Debug, Args)]
pub struct Validate {
    /// Directories of manifests, or single files [default: the manifest directory]
    paths: Vec<PathBuf>,
}

impl Validate {
    /// Exit 0: no error; 2: at least one; 1: a directory, or a part of one, cannot be looked into.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let paths =
            if self.paths.is_empty() { vec![context::settings(global)?.manifests.path] } else { self.paths };
        let (mut valid, mut files, mut problems) = (true, 0, Vec::new());
        let mut all = Vec::new();
        for path in paths {
            anyhow::ensure!(path.exists(), "{} does not exist", path.display());
            let mut loader = Loader::new(&path);
            let build = loader.load(true);
            // What can be seen of the directory is reported all the same.
            problems.extend(loader.problem().map(str::to_owned));
            valid &= is_valid(&build);
            files += build.files.valid + build.files.invalid + build.files.unreadable;
            match global.output {
                OutputFormat::Table | OutputFormat::Csv => {
                    output::coloured(&render::human(&build.diagnostics, &|path| loader.text(path), true))?;
                }
                OutputFormat::Github => {
                    output::text(&render::github(&build.diagnostics, &path))?;
                }
                OutputFormat::Json => all.extend(build.diagnostics),
            }
        }
        match global.output {
            OutputFormat::Json => {
                output::json(&render::json(&all))?;
            }
            OutputFormat::Table | OutputFormat::Csv if problems.is_empty() => {
                let verdict = if valid { "valid" } else { "invalid" };
                output::text(&format!("{files} file{}: {verdict}\n", if files == 1 { "" } else { "s" }))?;
            }
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {}
        }
        anyhow::ensure!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(Exit::when(valid))
    }
}
