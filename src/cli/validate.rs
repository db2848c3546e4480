//! `validate`: every problem of every file at once, offline.

use std::path::PathBuf;

use clap::Args;

use catalog::manifest::render;

use super::{
    Format, Global,
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
    /// Exit 0: no error; 2: at least one.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let paths =
            if self.paths.is_empty() { vec![context::settings(global)?.manifests.path] } else { self.paths };
        let (mut valid, mut files) = (true, 0);
        let mut all = Vec::new();
        for path in paths {
            anyhow::ensure!(path.exists(), "{} does not exist", path.display());
            let mut loader = Loader::new(&path);
            let build = loader.load(true);
            if let Some(problem) = loader.problem() {
                anyhow::bail!("{problem}");
            }
            valid &= is_valid(&build);
            files += build.files.valid + build.files.invalid + build.files.unreadable;
            match global.output {
                Format::Table | Format::Csv => {
                    output::text(&render::human(&build.diagnostics, &|path| loader.text(path), true))?;
                }
                Format::Github => {
                    output::text(&render::github(&build.diagnostics, &path))?;
                }
                Format::Json => all.extend(build.diagnostics),
            }
        }
        match global.output {
            Format::Json => {
                output::json(&render::json(&all))?;
            }
            Format::Table | Format::Csv => {
                let verdict = if valid { "valid" } else { "invalid" };
                output::text(&format!("{files} file{}: {verdict}\n", if files == 1 { "" } else { "s" }))?;
            }
            Format::Github => {}
        }
        Ok(Exit::when(valid))
    }
}
