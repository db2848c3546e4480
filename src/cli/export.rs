//! `export litellm`: the manifests as LiteLLM's configuration.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    Global, OutputFormat,
    context::{is_valid, report, settings},
    output::{self, Exit},
};
use crate::{
    backend,
    litellm::{KeyFiles, KeyVariables, export, found_keys, write_if_changed},
    loader::Loader,
};

#[derive(Debug, Args)]
pub struct Export {
    #[command(subcommand)]
    to: ExportTo,
}

#[derive(Debug, Subcommand)]
enum ExportTo {
    /// Print the declared providers, models, routes and aliases as a configuration for the LiteLLM proxy
    Litellm(ExportLiteLlm),
}

#[derive(Debug, Args)]
struct ExportLiteLlm {
    /// Write it to this file instead of standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Write the keys into this directory, one file of mode 0600 each and keys.env with all of them
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

/// Stable JSON of `export litellm`.
#[derive(Debug, Serialize)]
struct ExportReport {
    /// Where the configuration was written; `null`: it is `text`.
    file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Entries of `model_list`.
    entries: usize,
    /// What LiteLLM cannot be given.
    left_out: Vec<String>,
}

impl Export {
    /// Exit 0: everything that is declared and enabled is in it; 2: something was left out, or a manifest is not valid.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let ExportTo::Litellm(args) = self.to;
        let settings = settings(global)?;
        let mut loader = Loader::new(settings.manifests.path.clone());
        let build = loader.load(true);
        report(&loader, &build);
        anyhow::ensure!(
            loader.problem().is_none(),
            "there is nothing to export\nhint: --manifests names the directory"
        );
        let catalog = &build.catalog;
        let mut config = match &args.keys {
            Some(dir) => {
                let (byok, source) = backend::byok(&settings, backend::byok_env(), backend::NewKey::Refuse)?;
                let resolver = backend::resolver(&settings, byok, &source);
                let (keys, missing) = found_keys(&resolver, catalog);
                let (_, odd) = KeyFiles::new(dir)
                    .write(&keys)
                    .with_context(|| format!("cannot write keys below {}", dir.display()))?;
                let mut config = export(catalog, &KeyVariables::for_files(catalog));
                config.left_out.extend(missing);
                let why = "keys.env: it holds a character that readers of such files take for their own";
                config.left_out.extend(odd.iter().map(|variable| format!("{variable} in {why}")));
                config
            }
            None => export(catalog, &KeyVariables::declared(catalog)),
        };
        if let Some(file) = &args.file {
            write(file, &config.text)?;
        }
        match (global.output, &args.file) {
            (OutputFormat::Json, file) => {
                let text = std::mem::take(&mut config.text);
                output::json(&ExportReport {
                    text: file.is_none().then_some(text),
                    file: file.clone(),
                    entries: config.entries,
                    left_out: config.left_out.clone(),
                })?;
            }
            (_, file) => {
                for reason in &config.left_out {
                    anstream::eprintln!("note: left out: {}", provider::shown::one_line(reason));
                }
                match file {
                    Some(file) => {
                        output::text(&format!("{}: {} entries\n", file.display(), config.entries))?;
                    }
                    None => {
                        output::text(&config.text)?;
                    }
                }
            }
        }
        Ok(Exit::when(config.left_out.is_empty() && is_valid(&build)))
    }
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    // It holds no key.
    write_if_changed(file, text.as_bytes(), 0o644)
        .map(|_| ())
        .with_context(|| format!("cannot write {}", file.display()))
}
