//! `doctor`: what is wrong, each finding with its fix. Writes nothing to an external database.
//!
//! Settings, key, manifests, references, database and daemon are looked at here, providers in [`network`].

mod network;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use chrono::{DateTime, TimeDelta, Utc};
use clap::Args;
use secrecy::ExposeSecret as _;
use serde::Serialize;

use catalog::{
    manifest::{Build, Severity},
    model::{Provider, SecretRef},
    plan::{Fingerprint, LiveKey},
};
use net::probe::Prober;
use provider::parse_base;

use super::{
    Global, OutputFormat, context,
    output::{self, Exit},
};
use crate::{
    backend,
    checks::once,
    config::Settings,
    loader::Loader,
    secret::{self, Byok, FingerprintKey, Keyring, Resolver, Source},
    source::pull,
    store::{Layout, Scope, Store, StoreError},
};

/// A clock that is this far off makes certificates, leases and `last_health_check` wrong; network time keeps
/// within a hundredth of it.
const SKEW: TimeDelta = TimeDelta::seconds(5);

/// Enough directories to see that the limit is reached; a longer walk would show nothing more.
const MANY_DIRECTORIES: u64 = 1_000_000;

/// How many providers one finding names.
const NAMED: usize = 10;

/// A daemon answers from memory; longer means that it hangs.
const DAEMON_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);

#[derive(Debug, Args)]
pub struct Doctor {}

/// One thing that is wrong, as `doctor --output json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// A stable word for what was looked at.
    check: &'static str,
    /// File, provider or setting.
    subject: String,
    message: String,
    hint: String,
}

/// Stable JSON of `doctor`.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What was looked at.
    checked: Vec<&'static str>,
    findings: Vec<Finding>,
}

impl Report {
    fn find(
        &mut self,
        check: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        let (subject, message, hint) = (subject.into(), message.into(), hint.into());
        self.findings.push(Finding { check, subject, message, hint });
    }

    /// An error that carries its hint in its text.
    fn error(&mut self, check: &'static str, subject: &str, error: &anyhow::Error, hint: &str) {
        let (message, own) = split_hint(&format!("{error:#}"));
        self.find(check, subject, message, own.unwrap_or_else(|| hint.to_owned()));
    }
}

/// A message and the hint in it.
fn split_hint(text: &str) -> (String, Option<String>) {
    match text.split_once("hint: ") {
        Some((message, hint)) => {
            let message = message.trim_end_matches(['\n', ' ', ';', '(']);
            (message.to_owned(), Some(hint.replace('\n', " ")))
        }
        None => (text.to_owned(), None),
    }
}

impl Doctor {
    /// Exit 0: nothing found; 2: something was.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let mut report = Report::default();
        report.checked.push("settings");
        match context::settings(global) {
            Ok(settings) => crate::process::runtime()?.block_on(examine(&settings, &mut report))?,
            Err(error) => report.error("settings", "settings", &error, "fix the settings file or variable"),
        }
        match global.output {
            OutputFormat::Json => output::json(&report)?,
            OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => output::text(&render(&report))?,
        };
        Ok(Exit::when(report.findings.is_empty()))
    }
}

/// Asks the daemon of these settings, if one runs here, whether it is ready.
async fn daemon(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    report.checked.push("daemon");
    let address = settings.server.listen;
    let client = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(DAEMON_PATIENCE)
        .build()?;
    match client.get(format!("http://{address}/readyz")).send().await {
        Ok(answer) if answer.status().is_success() => {}
        Ok(answer) => {
            let said: serde_json::Value = answer.json().await.unwrap_or_default();
            let why = said
                .pointer("/error/message")
                .and_then(serde_json::Value::as_str)
                .unwrap_or("it does not say why");
            let hint = "its log says more: `journalctl -u providerd`, or where its standard error goes";
            report.find("daemon", address.to_string(), format!("the daemon is not ready: {why}"), hint);
        }
        // No daemon listens: on a machine from which an operator only looks, that is as it should be.
        Err(error) if error.is_connect() => {}
        Err(_) => {
            let message = "something listens there, but it does not answer like providerd";
            report.find("daemon", address.to_string(), message, "set `server.listen` to a free port");
        }
    }
    Ok(())
}

async fn examine(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    daemon(settings, report).await?;
    exposed_password(settings, report);
    if let Some(options) = pull::PullOptions::of(settings) {
        report.checked.push("git");
        for found in pull::examine(&options) {
            report.find("git", found.subject, found.message, found.hint);
        }
    }
    let build = manifests(settings, report);
    let key = byok(settings, report);
    if let Some((byok, source)) = &key {
        references(&build, &backend::resolver(settings, byok.clone(), source), report);
    }
    report.checked.push("database");
    if let Err(error) = backend::has_database(settings) {
        report.error("database", "embedded PostgreSQL", &error, "start `providerd run`, or set DATABASE_URL");
        return Ok(());
    }
    let (url, embedded) = match backend::database(settings).await {
        Ok(found) => found,
        Err(error) => {
            report.error("database", "embedded PostgreSQL", &error, "look at its log in the state directory");
            return Ok(());
        }
    };
    let (store, looked) = match Store::connect(&backend::store_settings(settings, url)).await {
        Ok(store) => {
            let looked = database(&store, &build, key.as_ref().map(|(byok, _)| byok), report).await;
            (Some(store), looked)
        }
        Err(error) => (None, Err(error)),
    };
    // A database that cannot be read has nothing to say about providers: their manifests have.
    let readable = matches!(looked, Ok(Layout::Current));
    if let Err(error) = looked {
        let check = match &error {
            StoreError::ForeignLayout(_) => "layout",
            StoreError::NotMigrated => "migrations",
            _ => "database",
        };
        report.error(
            check,
            "database",
            &error.into(),
            "check database.url, the server's log and the role's rights",
        );
    }
    let asked = match (&store, key) {
        (Some(store), Some(key)) if settings.health.enabled => {
            providers(settings, if readable { store.clone() } else { store.blank() }, key, &build, report)
                .await
        }
        _ => Ok(()),
    };
    if let Some(store) = store {
        store.close().await;
    }
    if let Some(embedded) = embedded {
        embedded.stop().await?;
    }
    asked
}

/// Asks every provider, unless the settings turn all checks off.
async fn providers(
    settings: &Settings,
    store: Store,
    (byok, source): (Byok, Source),
    build: &Build,
    report: &mut Report,
) -> anyhow::Result<()> {
    report.checked.push("providers");
    let prober = match settings.egress.net_config().and_then(|config| Ok(Prober::new(config)?)) {
        Ok(prober) => prober,
        Err(error) => {
            report.error("egress", "egress", &error, "fix `egress` in the settings");
            return Ok(());
        }
    };
    let resolver = Arc::new(backend::resolver(settings, byok.clone(), &source));
    let known = if store.is_blank() { None } else { backend::keyring(&store, &byok).await? };
    let keyring = Arc::new(known.unwrap_or_else(|| Keyring { byok, fp: FingerprintKey::generate() }));
    let candidates = once::candidates(&store, &keyring, &resolver, build, &settings.health.policy()).await?;
    report.findings.extend(network::ask(&prober, candidates).await);
    Ok(())
}

/// A password in a world-readable settings file is no secret; the unit's user reads it as "other".
fn exposed_password(settings: &Settings, report: &mut Report) {
    let has_password =
        settings.database.url.as_ref().is_some_and(|url| {
            url::Url::parse(url.expose_secret()).is_ok_and(|url| url.password().is_some())
        });
    let Some(file) =
        settings.file.as_ref().filter(|_| has_password && std::env::var_os("DATABASE_URL").is_none())
    else {
        return;
    };
    if fs::metadata(file).is_ok_and(|found| found.mode() & 0o004 != 0) {
        report.find(
            "permissions",
            file.display().to_string(),
            "every user may read it, and it holds the database's password",
            "leave the password out of `database.url` and give it as the credential `database_password`, or set \
             DATABASE_URL in /etc/default/providerd (mode 0600)",
        );
    }
}

fn manifests(settings: &Settings, report: &mut Report) -> Build {
    report.checked.push("manifests");
    let root = &settings.manifests.path;
    let subject = root.display().to_string();
    let mut loader = Loader::new(root);
    let build = loader.load(true);
    if let Some(problem) = loader.problem() {
        let (message, hint) = split_hint(problem);
        let fix = "make the directory, or set manifests.path (--manifests) to where the manifests are";
        report.find("manifests", &subject, message, hint.unwrap_or_else(|| fix.to_owned()));
    }
    let errors = build.diagnostics.iter().filter(|it| it.severity == Severity::Error);
    let mut files: Vec<&str> = errors.map(|it| &*it.path).collect();
    files.dedup();
    if !files.is_empty() {
        let message = format!("invalid or unreadable: {}", some(&files));
        report.find("manifests", &subject, message, "`providerd validate` shows every problem");
    }
    report.checked.push("inotify");
    let limit = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).ok()?.trim().parse().ok()
    };
    report.findings.extend(inotify(directories(root), limit("max_user_watches")));
    if let Err(error) = rustix::fs::inotify::init(rustix::fs::inotify::CreateFlags::CLOEXEC) {
        let message = format!("files cannot be watched: {error}");
        let most = limit("max_user_instances").unwrap_or(128);
        let fix = format!("`sysctl fs.inotify.max_user_instances={}`, or end what uses them up", most * 4);
        report.find("inotify", "fs.inotify.max_user_instances", message, fix);
    }
    build
}

/// Directories in and below one, links not followed; the watcher needs a watch for each.
fn directories(root: &Path) -> u64 {
    let mut count = 0;
    let mut open: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(entries) = fs::read_dir(&path) else { continue };
        count += 1;
        if count >= MANY_DIRECTORIES {
            break;
        }
        let inner = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(inner.map(|entry| entry.path()));
    }
    count
}

/// Half the limit is left to the user's other programs.
fn inotify(directories: u64, watches: Option<u64>) -> Option<Finding> {
    let watches = watches.filter(|watches| directories > watches / 2)?;
    Some(Finding {
        check: "inotify",
        subject: "fs.inotify.max_user_watches".into(),
        message: format!(
            "{directories} directories are to be watched, and the user may have {watches} watches"
        ),
        hint: format!(
            "`sysctl fs.inotify.max_user_watches={}`; until then changes are found by polling",
            directories.saturating_mul(4).max(65_536)
        ),
    })
}

fn byok(settings: &Settings, report: &mut Report) -> Option<(Byok, Source)> {
    report.checked.push("byok-key");
    if let Some(path) = &settings.keys.file {
        permissions(path, report);
    }
    match backend::byok(settings, backend::byok_env(), backend::NewKey::Refuse) {
        Ok((byok, source)) => {
            if let Source::File(path) = &source
                && settings.keys.file.as_ref() != Some(path)
            {
                permissions(path, report);
            }
            Some((byok, source))
        }
        Err(error) => {
            report.error("byok-key", secret::BYOK_ENV, &error, "make one with `providerd key generate`");
            None
        }
    }
}

/// A key file that others can read is no secret; one that others can write is theirs.
fn permissions(path: &Path, report: &mut Report) {
    // Missing files are reported by who needs them.
    let Ok(found) = fs::metadata(path) else { return };
    let what = match found.mode() {
        mode if mode & 0o022 != 0 => "others may write it",
        mode if mode & 0o004 != 0 => "every user may read it",
        _ => return,
    };
    let shown = path.display().to_string();
    let message = format!("{what} (mode {:04o})", found.mode() & 0o7777);
    report.find("permissions", &shown, message, format!("`chmod 0600 {shown}`"));
}

fn references(build: &Build, resolver: &Resolver, report: &mut Report) {
    report.checked.push("references");
    let mut seen = BTreeSet::new();
    for provider in build.catalog.providers.values() {
        let Some(reference) = &provider.api_key else { continue };
        if let Err(error) = resolver.resolve(reference) {
            let (message, hint) = split_hint(&error.to_string());
            let subject = format!("{} ({})", provider.name, provider.origin);
            let hint = hint.unwrap_or_else(|| "make the reference point at the key".to_owned());
            report.find("reference", subject, message, hint);
        }
        if let Some(path) = resolver.watched_paths(reference)
            && seen.insert(path.clone())
        {
            permissions(&path, report);
        }
    }
    report.findings.extend(shared_variables(build.catalog.providers.values().map(|provider| &**provider)));
}

/// One variable whose value goes to several hosts: one manifest may use another provider's key.
fn shared_variables<'a>(providers: impl Iterator<Item = &'a Provider>) -> Vec<Finding> {
    let mut uses: BTreeMap<&str, BTreeMap<String, &Provider>> = BTreeMap::new();
    for provider in providers {
        if let Some(SecretRef::Env(name)) = &provider.api_key
            && let Ok(base) = parse_base(provider.kind, provider.base_url.as_deref())
        {
            uses.entry(name).or_default().entry(base.origin().ascii_serialization()).or_insert(provider);
        }
    }
    let several = uses.into_iter().filter(|(_, origins)| origins.len() > 1);
    let finding = |(name, origins): (&str, BTreeMap<String, &Provider>)| {
        let places: Vec<String> = origins
            .iter()
            .map(|(origin, provider)| format!("{origin} ({}, {})", provider.name, provider.origin))
            .collect();
        Finding {
            check: "reference",
            subject: format!("env {name}"),
            message: format!("its key is sent to several hosts: {}", some(&places.iter().map(String::as_str).collect::<Vec<_>>())),
            hint: "give each host a key of its own, in a variable of its own; revoke a key that went where it does not belong"
                .to_owned(),
        }
    };
    several.map(finding).collect()
}

async fn database(
    store: &Store,
    build: &Build,
    byok: Option<&Byok>,
    report: &mut Report,
) -> Result<Layout, StoreError> {
    let before = Utc::now();
    let now = store.now().await?;
    report.checked.push("clock");
    report.findings.extend(skew(before, now, Utc::now()));
    report.checked.push("migrations");
    let layout = store.layout().await?;
    if layout == Layout::Absent {
        let hint = "`providerd apply` or `providerd run` adds what is missing";
        report.find("migrations", "database", "it has no tables of providerd yet", hint);
        return Ok(layout);
    }
    report.checked.push("stored-keys");
    // Which key it is does not matter here.
    let key = |token: &str| byok?.open(token).ok().map(|_| Fingerprint("".into()));
    let world = store.read_world(&Scope::Everything, &key).await?;
    if let Some(byok) = byok {
        let canary = backend::canary(store).await?;
        if let Some(Err(error)) = canary.map(|canary| secret::check_canary(byok, &canary)) {
            report.error(
                "byok-key",
                "database",
                &error.into(),
                "set the BYOK key that the database was made with",
            );
        }
        let closed = world.live.values().filter(|live| live.key == LiveKey::Undecryptable);
        for live in closed {
            let hint = "give the provider an `api_key` in its manifest, or store the key again; if the BYOK key was \
                        changed, give both: `new,former`";
            report.find("stored-key", &*live.name, "the stored key does not open with the BYOK key", hint);
        }
    }
    report.checked.push("checks");
    for why in store.impaired().await? {
        let hint = "look at this machine's network, names and proxy; with `health.canary` set, a host that always \
                    answers decides at once whose fault it is";
        report.find("checks", "the daemon's checks", why, hint);
    }
    let missing: Vec<&str> = build
        .catalog
        .providers
        .keys()
        .filter(|name| !world.live.contains_key(*name))
        .map(|name| &**name)
        .collect();
    if !missing.is_empty() {
        let message = format!("declared, but not in the database: {}", some(&missing));
        report.find(
            "providers",
            "database",
            message,
            "`providerd plan` shows why, `providerd apply` creates them",
        );
    }
    Ok(layout)
}

/// The first few names.
fn some(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        Some(more @ 1..) => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// The database's clock, asked for between two readings of this one.
fn skew(before: DateTime<Utc>, database: DateTime<Utc>, after: DateTime<Utc>) -> Option<Finding> {
    let off = if database < before {
        before - database
    } else if database > after {
        database - after
    } else {
        TimeDelta::zero()
    };
    (off > SKEW).then(|| Finding {
        check: "clock",
        subject: "database".into(),
        message: format!("its clock and this machine's differ by {} s", off.num_seconds()),
        hint: "let both follow network time (`timedatectl set-ntp true`)".into(),
    })
}

fn render(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        output::say(&mut text, &format!("! {}: {}: {}\n", finding.check, finding.subject, finding.message));
        output::say(&mut text, &format!("  hint: {}\n", finding.hint));
    }
    text += &match report.findings.len() {
        0 => format!("nothing found; looked at {}\n", report.checked.join(", ")),
        1 => "1 finding\n".to_owned(),
        count => format!("{count} findings\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_compared_with_the_answer_s_way_allowed_for() {
        let at = |seconds: i64| DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
        let check = |database, expected| {
            assert_eq!(skew(at(0), at(database), at(10)).is_some(), expected, "{database}")
        };
        check(0, false);
        check(10, false);
        check(15, false);
        check(16, true);
        check(-5, false);
        check(-6, true);
    }

    #[test]
    fn a_variable_for_two_hosts_is_found() {
        let check = |second: &str, expected: usize| {
            let text = format!(
                "[providers.a]\ntype = \"openai\"\napi_key = {{ env = \"ONE\" }}\n[providers.b]\n{second}\n"
            );
            let mut workspace = catalog::manifest::Workspace::new();
            let path: catalog::model::ManifestPath = "a.toml".into();
            let file = catalog::manifest::read(&path, &catalog::manifest::Content::Text(text.into()));
            workspace.set_parsed(path, file);
            let build = workspace.build();
            assert!(
                build.diagnostics.iter().all(|it| it.severity == Severity::Warning),
                "{:?}",
                build.diagnostics
            );
            let found = shared_variables(build.catalog.providers.values().map(|it| &**it));
            assert_eq!(found.len(), expected, "{second}: {found:?}");
            found.into_iter().next().map(|it| it.message).unwrap_or_default()
        };
        check("type = \"openai\"\napi_key = { env = \"ONE\" }", 0);
        check(
            "type = \"openai\"\nbase_url = \"https://api.openai.com/other\"\napi_key = { env = \"ONE\" }",
            0,
        );
        check("type = \"groq\"\napi_key = { env = \"TWO\" }", 0);
        let message = check("type = \"groq\"\napi_key = { env = \"ONE\" }", 1);
        assert!(message.contains("https://api.openai.com (a, a.toml:1)"), "{message}");
        check(
            "type = \"openai\"\nbase_url = \"https://api.openai.com:444/v1\"\napi_key = { env = \"ONE\" }",
            1,
        );
    }

    #[test]
    fn watches_run_out_before_directories_do() {
        let check =
            |directories, watches, expected| assert_eq!(inotify(directories, watches).is_some(), expected);
        check(1, Some(8192), false);
        check(4096, Some(8192), false);
        check(4097, Some(8192), true);
        check(1_000_000, None, false);
    }

    #[test]
    fn hints_are_taken_out_of_messages() {
        let check = |text: &str, message: &str, hint: Option<&str>| {
            assert_eq!(split_hint(text), (message.to_owned(), hint.map(str::to_owned)));
        };
        check("it is so", "it is so", None);
        check("it is so\nhint: do this", "it is so", Some("do this"));
        check("it is so; hint: do this\nand that", "it is so", Some("do this and that"));
    }
}
