//! `import`: manifests for what the database already holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use catalog::{
    model::SecretRef,
    plan::{EventKind, LiveKey, LiveProvider},
};

use super::{
    Global, OutputFormat,
    context::{self, Context},
    output::{self, Exit},
};
use crate::{
    destination,
    edit::import,
    loader::Loader,
    store::{NewEvent, Scope},
};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Import {
    #[command(subcommand)]
    pub from: Option<ImportFrom>,
    /// Where to write the manifests [default: the manifest directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum ImportFrom {
    /// Write manifests for what a configuration of the LiteLLM proxy declares; needs no database
    Litellm(ImportLiteLlm),
}

#[derive(Debug, Args)]
pub struct ImportLiteLlm {
    /// The file that `litellm --config` reads
    file: PathBuf,
    /// Where to write litellm.toml [default: the manifest directory]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Stable JSON of `import litellm`.
#[derive(Debug, Serialize)]
struct LiteLlmReport {
    /// `null`: nothing could be carried over.
    written: Option<PathBuf>,
    providers: Vec<String>,
    models: usize,
    aliases: usize,
    /// What the manifests leave out.
    left_out: Vec<String>,
}

impl ImportLiteLlm {
    /// Exit 0: everything is in the manifest; 2: something was left out.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let settings = context::settings(global)?;
        anyhow::ensure!(
            self.dir.is_some() || settings.source.git_url.is_none(),
            "the manifests are pulled from Git, where nothing can be written\n\
             hint: write them into a work tree with --dir, and push them"
        );
        let directory = self.dir.unwrap_or_else(|| settings.manifests.path.clone());
        let text =
            fs::read_to_string(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        let imported = crate::litellm::import(&text)?;
        let known = Loader::new(directory.clone()).load(true);
        for name in &imported.providers {
            if let Some(provider) = known.catalog.providers.get(name.as_str()) {
                anyhow::bail!(
                    "`{name}` is declared already at {}; nothing was written\n\
                     hint: import into another --dir, and merge the two",
                    provider.origin
                );
            }
        }
        let path = directory.join("litellm.toml");
        anyhow::ensure!(
            fs::symlink_metadata(&path).is_err(),
            "{} exists already; nothing was written\nhint: move it away, or import into another --dir",
            path.display()
        );
        let written = !imported.providers.is_empty();
        if written {
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            write_new(&path, &imported.text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let report = LiteLlmReport {
            written: written.then_some(path),
            providers: imported.providers,
            models: imported.models,
            aliases: imported.aliases,
            left_out: imported.left_out,
        };
        match global.output {
            OutputFormat::Json => output::json(&report)?,
            _ => output::text(&report.render())?,
        };
        Ok(Exit::when(report.left_out.is_empty()))
    }
}

impl LiteLlmReport {
    fn render(&self) -> String {
        let mut text = String::new();
        if let Some(path) = &self.written {
            let counts = format!(
                "{} providers, {} models, {} aliases",
                self.providers.len(),
                self.models,
                self.aliases
            );
            output::say(&mut text, &format!("{}: {counts}\n", path.display()));
        }
        for left_out in &self.left_out {
            output::say(&mut text, &format!("  ! left out: {left_out}\n"));
        }
        text += match self.written {
            Some(_) => {
                "hint: look at `providerd validate` and `providerd plan`; callers of the gateway need a consumer each\n"
            }
            None => "nothing was written\n",
        };
        text
    }
}

/// Stable JSON of `import`.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// File of each imported provider.
    written: BTreeMap<String, PathBuf>,
    /// What the manifests leave out, by provider: it stays in the database as it is.
    left_out: BTreeMap<String, Vec<String>>,
    /// Providers without a manifest, with the reason.
    skipped: BTreeMap<String, String>,
}

impl Import {
    /// Exit 0: every provider has its manifest; 2: something was left out or skipped.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        anyhow::ensure!(
            self.dir.is_some() || context.settings.source.git_url.is_none(),
            "the manifests are pulled from Git, where nothing can be written\n\
             hint: write them into a work tree with --dir, and push them"
        );
        let (_, build) = context.load_quietly();
        let directory = self.dir.unwrap_or_else(|| context.root());
        let keyring = &context.backend.keyring;
        let world =
            context.backend.store.read_world(&Scope::Everything, &|token| keyring.open(token)).await?;
        let mut report = Report::default();
        let mut texts: Vec<(Arc<str>, PathBuf, String)> = Vec::new();
        let mut taken = BTreeSet::new();
        for (name, live) in &world.live {
            if let Some(known) = build.catalog.providers.get(name) {
                report.skipped.insert(name.to_string(), format!("declared already at {}", known.origin));
                continue;
            }
            let odd: Vec<String> = world
                .unreadable
                .iter()
                .filter(|row| row.provider == *name)
                .map(ToString::to_string)
                .collect();
            if !odd.is_empty() {
                report.skipped.insert(name.to_string(), odd.join("; "));
                continue;
            }
            let mut left_out = Vec::new();
            let sealed = sealed(context, live, &mut left_out).await?;
            match import::provider(live, sealed.as_deref()) {
                Ok(imported) => {
                    left_out.extend(imported.left_out);
                    texts.push((
                        name.clone(),
                        directory.join(import::file_name(name, &mut taken)),
                        imported.text,
                    ));
                    if !left_out.is_empty() {
                        report.left_out.insert(name.to_string(), left_out);
                    }
                }
                Err(refused) => {
                    report.skipped.insert(name.to_string(), refused.to_string());
                }
            }
        }
        // All or nothing: a half-written import would be pruned, refused or merged by the next reader.
        for (_, path, _) in &texts {
            anyhow::ensure!(
                fs::symlink_metadata(path).is_err(),
                "{} exists already; nothing was written\nhint: move it away, or import into another --dir",
                path.display()
            );
        }
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let mut events = Vec::new();
        for (name, path, text) in texts {
            write_new(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
            events.push(NewEvent::about(
                EventKind::Import,
                Some(name.clone()),
                world.live.get(&name).map(|live| live.id),
                serde_json::json!({ "file": path }),
                "a manifest was written from the database",
            ));
            report.written.insert(name.to_string(), path);
        }
        context.backend.store.record(&events).await?;
        match context.format {
            OutputFormat::Json => output::json(&report)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => output::text(&render(&report))?,
        };
        let declared = |reason: &&String| !reason.starts_with("declared already");
        Ok(Exit::when(report.left_out.is_empty() && !report.skipped.values().any(|it| declared(&it))))
    }
}

/// The provider's key, sealed for its manifest; what cannot leave is said in `left_out`.
async fn sealed(
    context: &Context,
    live: &LiveProvider,
    left_out: &mut Vec<String>,
) -> anyhow::Result<Option<String>> {
    let fingerprint = match &live.key {
        LiveKey::Absent => return Ok(None),
        LiveKey::Undecryptable => {
            left_out.push(
                "api_key: what is stored does not open with the BYOK key, or is no token; it stays as it is"
                    .into(),
            );
            return Ok(None);
        }
        LiveKey::Known { fingerprint, .. } => fingerprint,
    };
    let Some((first, second, _)) = context.backend.store.key_columns(&live.name).await? else {
        return Ok(None);
    };
    let keyring = &context.backend.keyring;
    let opened = destination::opened(&[first, second], &keyring.byok);
    let token = opened.map(|secret| keyring.byok.encrypt(&secret));
    // As the manifest's reference will be read: a key with stray white space would come back as another key.
    let same = token.filter(|token| {
        let read = context.backend.resolver.resolve(&SecretRef::Sealed(token.clone()));
        read.is_ok_and(|secret| keyring.fp.fingerprint(&secret) == *fingerprint)
    });
    if same.is_none() {
        left_out.push("api_key: the stored key has white space or control characters around or in it".into());
    }
    Ok(same)
}

/// Writes a whole new file or none; a daemon may be watching.
fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.import", std::process::id()));
    let written =
        fs::OpenOptions::new().write(true).create_new(true).open(&temporary).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    // A link, unlike a rename, never replaces a file that another process made meanwhile.
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => fs::rename(&temporary, path),
        linked => linked,
    });
    let _ = fs::remove_file(&temporary);
    linked
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for (name, path) in &report.written {
        output::say(&mut text, &format!("{name}: {}\n", path.display()));
        for left_out in report.left_out.get(name).into_iter().flatten() {
            output::say(&mut text, &format!("  ! left out: {left_out}\n"));
        }
    }
    for (name, reason) in &report.skipped {
        output::say(&mut text, &format!("! {name}: no manifest: {reason}\n"));
    }
    let count = report.written.len();
    output::say(&mut text, &format!("{count} manifest{} written\n", if count == 1 { "" } else { "s" }));
    if count > 0 {
        text += "hint: look at `providerd plan`, then take them over with `providerd apply`\n";
    }
    text
}
