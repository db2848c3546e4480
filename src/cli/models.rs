//! `models`: what a provider itself offers, beside what is declared and what is stored.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use catalog::{model::Provider, routing::Pattern};
use net::probe::Lister;
use provider::{ListedModel, Models, ProviderType};

use provider::shown;

use super::{
    OutputFormat,
    context::Context,
    output::{self, Exit},
};
use crate::{
    discover::{
        self, ListTarget,
        compare::{ComparedModel, compare},
    },
    edit::{
        file::Manifest,
        models::{Edited, add_models},
    },
    store::Scope,
};

/// Added models that are named one by one on a terminal.
const SHOWN: usize = 50;

#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// The provider
    name: String,
    /// Only models of such names (`*` and `?`)
    #[arg(long = "match", value_name = "GLOB")]
    glob: Option<String>,
    /// Add what is offered and not declared to the manifest that declares the provider
    #[arg(long)]
    write: bool,
}

/// Stable JSON of `models`.
#[derive(Serialize)]
struct Report<'a> {
    provider: &'a str,
    #[serde(rename = "type")]
    kind: ProviderType,
    /// Manifest and line that declare the provider.
    source: Option<String>,
    /// The list was cut: there are more models than it names.
    truncated: bool,
    /// Entries left out because they repeat the API key (count).
    withheld: usize,
    models: &'a [ComparedModel],
    /// Declared, and no longer offered. Empty where the list was cut, because that is not known then.
    missing: Vec<&'a str>,
    /// What `--write` added, and the file it went to.
    added: &'a [String],
    left_out: Vec<LeftOut<'a>>,
    file: Option<PathBuf>,
}

#[derive(Serialize)]
struct LeftOut<'a> {
    name: &'a str,
    reason: &'a str,
}

impl ModelsArgs {
    /// Exit 0: everything declared is offered; 2: something declared is not.
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        anyhow::ensure!(
            !self.write || context.settings.source.git_url.is_none(),
            "the manifests are pulled from Git (`source.git.url`): what is written here would not last\n\
             hint: run the command in a work tree of your own, with --manifests, and commit"
        );
        let (_, build) = context.load_quietly();
        let (backend, name): (_, Arc<str>) = (&context.backend, self.name.as_str().into());
        let declared = build.catalog.providers.get(&name).map(|provider| &**provider);
        let world = backend
            .store
            .read_world(&Scope::Providers(vec![name.clone()]), &|token| backend.keyring.open(token))
            .await?;
        let live = world.live.get(&name);
        if declared.is_none() && build.catalog.frozen.providers.contains(&name) {
            anyhow::ensure!(
                !self.write && live.is_some(),
                "`{name}` is declared in an invalid manifest, or in two\nhint: `providerd validate` shows where"
            );
        }
        let stored_kind = live.and_then(|live| live.kind.as_deref());
        let kind = match (declared, stored_kind) {
            (Some(provider), _) => provider.kind,
            (None, Some(word)) => ProviderType::parse(word).with_context(|| {
                let (name, word) = (shown::one_line(&name), shown::one_line(word));
                format!("`{name}` has the type `{word}` in the database, which is not known")
            })?,
            (None, None) => anyhow::bail!("no provider is called `{name}`, neither declared nor stored"),
        };
        anyhow::ensure!(
            !self.write || declared.is_some(),
            "no manifest declares `{name}`, so there is none to write to\n\
             hint: `providerd import` writes manifests for what the database holds"
        );

        let keyring = &backend.keyring;
        let rows = match live {
            Some(_) if declared.is_none() => backend.store.key_rows(&name, true).await?,
            Some(_) => discover::key_rows(&backend.store, &name, keyring).await?,
            None => Vec::new(),
        };
        let target = match declared {
            Some(provider) => ListTarget::declared(provider, &rows, &backend.resolver, keyring).map(Some),
            None => ListTarget::stored(&rows, &name, keyring),
        };
        let target = target
            .with_context(|| format!("`{name}` cannot be asked for its models"))?
            .with_context(|| format!("`{name}` has no row any more"))?;
        let offered = target
            .list(&Lister::new(context.settings.egress.net_config()?, Lister::LIMITS)?)
            .await
            .with_context(|| format!("`{name}` was asked for its models"))?;

        let vanished = match live {
            Some(live) => backend.store.vanished(Some(live.id)).await?,
            None => HashMap::new(),
        };
        let mut rows = compare(&offered, declared, live, &vanished);
        if let Some(glob) = &self.glob {
            let glob = Pattern::new(glob);
            rows.retain(|row| glob.matches(&row.name));
        }
        let (edited, file) = match declared {
            Some(provider) if self.write => {
                let (edited, file) = write(&context.root(), provider, &offered, &rows)?;
                for row in &mut rows {
                    row.declared |= edited.added.contains(&row.name);
                }
                (edited, file)
            }
            _ => (Edited { text: String::new(), added: Vec::new(), left_out: Vec::new() }, None),
        };
        let report = Report {
            provider: &name,
            kind,
            source: declared.map(|provider| provider.origin.to_string()),
            truncated: offered.truncated,
            withheld: offered.withheld,
            missing: if offered.truncated {
                Vec::new()
            } else {
                rows.iter().filter(|row| row.is_missing()).map(|row| row.name.as_str()).collect()
            },
            models: &rows,
            added: &edited.added,
            left_out: edited.left_out.iter().map(|(name, reason)| LeftOut { name, reason }).collect(),
            file,
        };
        match context.format {
            OutputFormat::Json => output::json(&report)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
                output::text(&render(&report, self.write))?
            }
        };
        Ok(Exit::when(report.missing.is_empty()))
    }
}

/// Adds what is offered, selected and not declared to the provider's manifest.
fn write(
    root: &std::path::Path,
    provider: &Provider,
    offered: &Models,
    rows: &[ComparedModel],
) -> anyhow::Result<(Edited, Option<PathBuf>)> {
    let wanted: std::collections::HashSet<&str> =
        rows.iter().filter(|row| row.is_new() && row.selected).map(|row| row.name.as_str()).collect();
    // In the provider's own order: it often lists what matters first.
    let models: Vec<&ListedModel> =
        offered.models.iter().filter(|model| wanted.contains(&*model.id)).collect();
    let manifest = Manifest::open(root, &provider.origin.file)?;
    let edited = add_models(&provider.origin.file, manifest.text(), &provider.name, &models)?;
    let file = match edited.added.is_empty() {
        true => None,
        false => Some(manifest.replace(&edited.text)?),
    };
    Ok((edited, file))
}

fn render(report: &Report<'_>, write: bool) -> String {
    let yes = |is: bool| if is { "yes" } else { "-" }.to_owned();
    let cost = |cost: Option<f64>| cost.map(|cost| cost.to_string()).unwrap_or_default();
    let rows = report.models.iter().map(|row| {
        vec![
            row.name.clone(),
            match (row.offered, row.selected || row.declared) {
                (true, true) => "yes".to_owned(),
                (true, false) => "excluded".to_owned(),
                (false, _) if report.truncated => "?".to_owned(),
                (false, _) => "-".to_owned(),
            },
            yes(row.declared),
            match (row.stored, row.enabled) {
                (true, Some(false)) => "off".to_owned(),
                (stored, _) => yes(stored),
            },
            row.context_length.map(|tokens| tokens.to_string()).unwrap_or_default(),
            cost(row.cost_per_1m_input_tokens),
            cost(row.cost_per_1m_output_tokens),
        ]
    });
    let header = ["MODEL", "OFFERED", "DECLARED", "STORED", "CONTEXT", "USD/1M IN", "USD/1M OUT"];
    let mut text = output::table(&header, rows);
    let provider = report.provider;
    let file = report.source.as_deref().and_then(|source| source.rsplit_once(':')).map(|(file, _)| file);
    for row in report.models.iter().filter(|row| report.missing.contains(&&*row.name)) {
        let place = match (file, row.line) {
            (Some(file), Some(line)) => format!("{file}:{line}"),
            _ => "a manifest".to_owned(),
        };
        output::say(
            &mut text,
            &format!("! {provider}/{}: declared in {place}, and the provider does not offer it", row.name),
        );
        if let Some(since) = row.vanished_at {
            output::say(&mut text, &format!(" since {}", since.format("%Y-%m-%d %H:%M UTC")));
        }
        if !row.routes.is_empty() {
            output::say(&mut text, &format!("; it serves {}", row.routes.join(", ")));
        }
        text.push('\n');
    }
    if report.truncated {
        text += "! the list was cut short: what is not in it may be offered all the same\n";
    }
    if report.withheld > 0 {
        output::say(
            &mut text,
            &format!(
                "! {} left out: the provider repeats the API key in their names (hint: whose host is this?)\n",
                count(report.withheld)
            ),
        );
    }
    for left in &report.left_out {
        output::say(&mut text, &format!("! {}: left out: {}\n", left.name, left.reason));
    }
    let new = report.models.iter().filter(|row| row.is_new() && row.selected).count();
    match (&report.file, write) {
        (Some(file), _) => {
            for name in report.added.iter().take(SHOWN) {
                output::say(&mut text, &format!("+ {provider}/{name}\n"));
            }
            if let Some(more @ 1..) = report.added.len().checked_sub(SHOWN) {
                output::say(&mut text, &format!("… and {more} more\n"));
            }
            output::say(&mut text, &format!("added {} to {}\n", count(report.added.len()), file.display()));
        }
        (None, true) => text += "nothing to add\n",
        (None, false) if new > 0 && report.source.is_some() => {
            output::say(
                &mut text,
                &format!(
                    "{} not declared (hint: `providerd models {provider} --write` adds what is missing)\n",
                    count(new)
                ),
            );
        }
        (None, false) => {}
    }
    text
}

fn count(models: usize) -> String {
    format!("{models} model{}", if models == 1 { "" } else { "s" })
}
