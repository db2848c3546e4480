//! `man`, and what help says beyond options: examples, variables, files, exit codes.
//!
//! One page for each command, and providerd-manifest(5) from the JSON Schema of manifests. Not its job: what options mean.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_mangen::{
    Man,
    roff::{Roff, bold, roman},
};
use serde_json::Value;

use super::{Cli, output::Exit};

/// At the end of `providerd --help`.
pub(super) const AFTER_HELP: &str = "\
Examples:
  providerd validate                       what is wrong with the manifests, offline
  providerd plan                           what `apply` or the daemon would change
  providerd run                            the daemon; without a database URL with a PostgreSQL of its own
  providerd status --watch                 every provider: synced, health, key
  providerd routes explain --power eco     who would answer, and why not the others
  providerd doctor                         what is wrong, with the fix for each finding

Exit codes:
  0   done, and as desired
  1   could not be done
  2   done, but not as desired: changes pending, invalid, unhealthy, a finding
  64  a mistake on the command line

Set providerd up: docs/OPERATIONS.md. Manifests: docs/MANIFESTS.md, and `man 5 providerd-manifest`.";

/// Examples of one command: what to type, and what it does.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    ("run", &[("providerd run --manifests ./providers.d", "runs the daemon on this directory")]),
    (
        "validate",
        &[
            ("providerd validate", "checks the whole manifest directory"),
            ("providerd validate --output github providers.d", "annotates a pull request"),
        ],
    ),
    ("plan", &[("providerd plan --output json | jq .providers", "the plan, for programs")]),
    (
        "apply",
        &[
            ("providerd apply --wait", "applies once, and waits until checks have settled"),
            ("providerd apply --confirm-prune 3fa9c1d20b7e", "permits exactly the prune that `plan` shows"),
        ],
    ),
    ("routes", &[("providerd routes --diff origin/main", "what a branch changes, for a pull request")]),
    ("status", &[("providerd status openai --watch", "one provider, until interrupted")]),
    ("check", &[("providerd check openai", "checks it and proves its key, now")]),
    (
        "models",
        &[("providerd models openai --write", "declares what the provider offers and no manifest names")],
    ),
    (
        "import",
        &[
            ("providerd import --dir providers.d", "manifests for what the database holds"),
            ("providerd import litellm config.yaml", "manifests for what a LiteLLM proxy is set to"),
        ],
    ),
    ("export", &[("providerd export litellm --file litellm.yaml --keys keys", "for the LiteLLM proxy")]),
    ("doctor", &[("providerd doctor", "looks for every known mistake")]),
    ("events", &[("providerd events --follow --since 1h", "the audit trail, and what comes")]),
    ("usage", &[("providerd usage --by model,day --since 7d --output csv", "a week by model and day")]),
    ("suspend", &[("providerd suspend openai --reason 'vendor migrates'", "stops applying to one provider")]),
    ("resume", &[("providerd resume openai", "applies to it again")]),
    (
        "key",
        &[
            ("providerd key generate", "a key for BYOK_ENCRYPTION_KEY"),
            ("providerd key seal <secret.txt", "a line for a manifest"),
        ],
    ),
    ("token", &[("providerd token --new", "an admin token, and where its hash belongs")]),
    (
        "completions",
        &[(
            "providerd completions bash >/usr/share/bash-completion/completions/providerd",
            "completes options",
        )],
    ),
];

const ENVIRONMENT: &[(&str, &str)] = &[
    ("DATABASE_URL", "PostgreSQL to keep in step; without it and without database.url, an embedded one."),
    ("BYOK_ENCRYPTION_KEY", "Fernet keys between commas: the first encrypts stored API keys, all decrypt."),
    ("PROVIDERD_SECTION__KEY", "Overrides the setting section.key, for instance PROVIDERD_SERVER__LISTEN."),
    (
        "STATE_DIRECTORY, XDG_STATE_HOME",
        "Where the embedded database, the spool and generated keys are; else ./.providerd.",
    ),
    (
        "CREDENTIALS_DIRECTORY",
        "Set by systemd: byok_encryption_key, admin_token, database_password and those that manifests name.",
    ),
    ("RUST_LOG", "Overrides log.level."),
    ("NO_COLOR", "Switches colours off."),
];

const FILES: &[(&str, &str)] = &[
    ("/etc/providerd/providerd.toml", "Settings, unless --config names another file."),
    ("./providers.d/", "Manifests, unless --manifests or manifests.path names another directory."),
    ("/var/lib/providerd/", "The state directory of the systemd unit."),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Done, and as desired."),
    ("1", "Could not be done; a name that does not exist is one of these."),
    (
        "2",
        "Done, but not as desired: changes are pending (plan), invalid (validate), unhealthy or a failed key (check, status), a finding (doctor), something left out (import, export).",
    ),
    ("64", "A mistake on the command line."),
];

/// Prints the page of the program, or writes all pages into a directory.
pub(super) fn man(directory: Option<PathBuf>) -> anyhow::Result<Exit> {
    match directory {
        Some(directory) => {
            fs::create_dir_all(&directory)?;
            let mut command = Cli::command().disable_help_subcommand(true);
            command.build();
            pages(&command, "", &directory)?;
            let mut bytes = Vec::new();
            manifest_page(&mut bytes)?;
            write(&directory, "providerd-manifest.5", &bytes)?;
        }
        None => page(&Cli::command(), "providerd", &mut io::stdout())?,
    }
    Ok(Exit::Done)
}

fn write(directory: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = directory.join(name);
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The page of a command, and those of the commands below it.
fn pages(command: &clap::Command, above: &str, directory: &Path) -> anyhow::Result<()> {
    let name = if above.is_empty() {
        command.get_name().to_owned()
    } else {
        format!("{above}-{}", command.get_name())
    };
    let mut bytes = Vec::new();
    page(command, &name, &mut bytes)?;
    write(directory, &format!("{name}.1"), &bytes)?;
    for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
        pages(below, &name, directory)?;
    }
    Ok(())
}

fn page(command: &clap::Command, name: &str, to: &mut dyn Write) -> io::Result<()> {
    let man =
        Man::new(command.clone().after_long_help("").display_name(name.to_owned())).title(name).section("1");
    man.render_title(to)?;
    man.render_name_section(to)?;
    man.render_synopsis_section(to)?;
    man.render_description_section(to)?;
    man.render_options_section(to)?;
    if command.has_subcommands() {
        let mut roff = Roff::default();
        roff.control("SH", ["COMMANDS"]);
        for below in command.get_subcommands().filter(|it| !it.is_hide_set()) {
            let about = below.get_about().map(ToString::to_string).unwrap_or_default();
            entry(&mut roff, &format!("{name}-{}(1)", below.get_name()), &about);
        }
        roff.to_writer(to)?;
    }
    let mut roff = Roff::default();
    let word = name.split('-').nth(1).unwrap_or_default();
    let own = EXAMPLES.iter().find(|(command, _)| *command == word).map(|(_, examples)| *examples);
    let all: Vec<(&str, &str)> = match own {
        Some(examples) => examples.to_vec(),
        None if word.is_empty() => {
            EXAMPLES.iter().filter_map(|(_, examples)| examples.first().copied()).collect()
        }
        None => Vec::new(),
    };
    if !all.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        all.iter().for_each(|(typed, what)| entry(&mut roff, typed, what));
    }
    for (heading, entries) in [("ENVIRONMENT", ENVIRONMENT), ("FILES", FILES), ("EXIT STATUS", EXIT_STATUS)] {
        roff.control("SH", [heading]);
        entries.iter().for_each(|(name, what)| entry(&mut roff, name, what));
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("providerd(1), providerd-manifest(5)")]);
    roff.to_writer(to)
}

fn entry(roff: &mut Roff, name: &str, what: &str) {
    roff.control("TP", []);
    roff.text([bold(name)]);
    roff.text([roman(what)]);
}

/// providerd-manifest(5): every key of a manifest, from its JSON Schema.
fn manifest_page(to: &mut dyn Write) -> io::Result<()> {
    let schema = catalog::manifest::json_schema();
    let mut roff = Roff::default();
    roff.control("TH", ["providerd-manifest", "5", "", concat!("providerd ", env!("CARGO_PKG_VERSION")), ""]);
    roff.control("SH", ["NAME"]);
    roff.text([roman(
        "providerd-manifest - providers, models, routes and consumers that providerd keeps in a database",
    )]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([roman(
        "A manifest is a TOML file below the manifest directory. One file may hold one provider or thousands. Unknown keys are \
         errors; `providerd validate` names every mistake.",
    )]);
    let mut open: Vec<(String, Value)> = vec![("THE FILE".to_owned(), schema.clone())];
    let mut seen = std::collections::BTreeSet::new();
    while let Some((heading, table)) = open.pop() {
        let Some(keys) = table.get("properties").and_then(Value::as_object) else { continue };
        roff.control("SH", [heading.as_str()]);
        if let Some(about) = table.get("description").and_then(Value::as_str) {
            roff.text([roman(about.replace('\n', " "))]);
        }
        let mut below = Vec::new();
        for (key, value) in keys {
            let about = value.get("description").and_then(Value::as_str).unwrap_or_default();
            entry(&mut roff, key, &about.replace('\n', " "));
            for name in references(value) {
                if seen.insert(name.clone())
                    && let Some(found) = schema.get("$defs").and_then(|defs| defs.get(&name))
                {
                    below.push((format!("KEYS OF {}", key.to_uppercase()), found.clone()));
                }
            }
        }
        below.reverse();
        open.extend(below);
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([roman("providerd(1), providerd-validate(1)")]);
    roff.to_writer(to)
}

/// Names of the definitions that a value of a schema refers to, in order.
fn references(value: &Value) -> Vec<String> {
    match value {
        Value::Object(map) => map
            .iter()
            .flat_map(|(key, value)| match (key.as_str(), value) {
                ("$ref", Value::String(path)) => {
                    path.rsplit('/').next().map(str::to_owned).into_iter().collect()
                }
                _ => references(value),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(references).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_with_every_section() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(man(Some(dir.path().to_owned())), Ok(Exit::Done)));
        let read = |name: &str| {
            fs::read_to_string(dir.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        for command in Cli::command().get_subcommands().filter(|it| !it.is_hide_set()) {
            let text = read(&format!("providerd-{}.1", command.get_name()));
            for section in ["NAME", "SYNOPSIS", "ENVIRONMENT", "FILES", "\"EXIT STATUS\""] {
                assert!(
                    text.contains(&format!(".SH {section}")),
                    "{}: {section}\n{text}",
                    command.get_name()
                );
            }
        }
        assert!(read("providerd-plan.1").contains(".SH EXAMPLES"));
        let manifest = read("providerd-manifest.5");
        for key in ["base_url", "power_level", "requests_per_minute", "upstream_name", "slow_after"] {
            assert!(manifest.contains(key) || manifest.contains(&key.replace('_', "\\_")), "{key}");
        }
    }

    #[test]
    fn examples_are_of_commands_that_exist() {
        let command = Cli::command();
        for (name, examples) in EXAMPLES {
            assert!(command.find_subcommand(name).is_some(), "{name}");
            assert!(
                examples.iter().all(|(typed, _)| typed.starts_with(&format!("providerd {name}"))),
                "{name}"
            );
        }
    }
}
