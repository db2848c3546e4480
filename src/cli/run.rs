//! `run`: the daemon.

use std::{
    io::{IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
};

use super::{
    Global, context,
    output::{self, Exit},
};
use crate::{
    backend,
    config::{self, LogFormat},
    daemon::{self, Arrival, Greeting},
    process::{logging, memory},
    secret::Secret,
    source,
};

/// A secret that is made at the first start of embedded mode.
struct MadeSecret {
    /// In the state directory: where it is written if standard output is no terminal.
    file: &'static str,
    /// The file of its hash, without the ending.
    hash: &'static str,
    /// What to do where it cannot be kept.
    instead: &'static str,
}

const ADMIN_TOKEN: MadeSecret =
    MadeSecret { file: "admin_token", hash: "admin_token", instead: "set server.token_sha256" };
const GATEWAY_KEY: MadeSecret =
    MadeSecret { file: "gateway_key", hash: "gateway_consumer", instead: "declare a consumer" };

/// Rows of the table that a terminal is greeted with; `status` shows all.
const SHOWN: usize = 50;

/// Runs until a signal ends it.
pub fn run(global: &Global) -> anyhow::Result<Exit> {
    memory::expect_to_stay();
    let settings = context::settings(global)?;
    logging::init(&settings.log)?;
    let byok = backend::byok_env();
    let for_people = match settings.log.format {
        LogFormat::Human => true,
        LogFormat::Auto => std::io::stdout().is_terminal(),
        LogFormat::Json => false,
    };
    let greeting: Greeting = if for_people { Box::new(greet) } else { Box::new(show_token) };
    let runtime = crate::process::runtime()?;
    let global = global.clone();
    let again = Box::new(move || context::settings(&global));
    let ended = runtime.block_on(daemon::run(settings, again, byok, Some(greeting)));
    // Work that cannot be interrupted must not hold up an orderly end.
    runtime.shutdown_background();
    ended?;
    Ok(Exit::Done)
}

/// Programs read the log; a token made just now is shown once all the same, apart from the log.
fn show_token(arrival: Arrival) {
    if let Some(token) = &arrival.admin_token {
        let _ = output::text(&format!("admin token {}\n", shown_or_kept(token, &ADMIN_TOKEN)));
    }
    if let Some(key) = arrival.gateway.as_ref().and_then(|gateway| gateway.key.as_ref()) {
        let _ = output::text(&format!("gateway key {}\n", shown_or_kept(key, &GATEWAY_KEY)));
    }
}

/// A token on a terminal; elsewhere, where standard output is most likely kept as a log, the file that holds it.
fn shown_or_kept(token: &Secret, made: &MadeSecret) -> String {
    if std::io::stdout().is_terminal() {
        return format!("{}  (shown this once; delete {}.sha256 for a new one)", token.expose(), made.hash);
    }
    let path = config::state_dir().join(made.file);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&path)
        .and_then(|mut file| file.write_all(token.expose().as_bytes()));
    match written {
        Ok(()) => format!("in {}  (read it and delete the file)", path.display()),
        Err(error) => {
            format!("could not be written to {}: {error} (hint: {})", path.display(), made.instead)
        }
    }
}

/// Where everything is, and a table of what the database holds.
fn greet(arrival: Arrival) {
    let rows = arrival.providers.iter().take(SHOWN).map(|row| {
        vec![
            row.name.to_string(),
            row.kind.clone().unwrap_or_default(),
            row.health_status.clone().unwrap_or_default(),
            if row.has_key {
                row.key_test_status.clone().unwrap_or_else(|| "untested".into())
            } else {
                "none".into()
            },
            row.models.to_string(),
            row.managed.as_ref().map(|(origin, _)| origin.to_string()).unwrap_or_default(),
        ]
    });
    let mut text = output::table(&["NAME", "TYPE", "HEALTH", "KEY", "MODELS", "SOURCE"], rows);
    if let Some(more @ 1..) = arrival.providers.len().checked_sub(SHOWN) {
        text += &format!("… and {more} more\n");
    }
    let how = match source::pull::commit_of(&arrival.manifests) {
        // An edit there would be lost with the next commit.
        Some(_) => "pulled from Git: push a change",
        None => "edit one",
    };
    text.push('\n');
    output::say(
        &mut text,
        &format!(
            "manifests  {}  ({how} and watch `providerd events --follow`)\n",
            arrival.manifests.display()
        ),
    );
    if let Some(url) = arrival.database {
        text += &format!("database   psql '{url}'\n");
    }
    text += &format!("metrics    {}/metrics\n", arrival.listen);
    text += &format!("dashboard  {}/\n", arrival.listen);
    if let Some(token) = &arrival.admin_token {
        text += &format!("           token {}\n", shown_or_kept(token, &ADMIN_TOKEN));
    }
    if let Some(gateway) = &arrival.gateway {
        text += &format!("gateway    {}/v1\n", gateway.url);
        if let Some(key) = &gateway.key {
            text += &format!("           key {}\n", shown_or_kept(key, &GATEWAY_KEY));
        }
        let key = gateway.key.as_ref().filter(|_| std::io::stdout().is_terminal());
        text += &format!(
            "           curl {}/v1/chat/completions -H 'Authorization: Bearer {}' \\\n                \
             -H 'Content-Type: application/json' \\\n                \
             -d '{{\"model\": \"eco\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n",
            gateway.url,
            key.map_or("$KEY", |key| key.expose()),
        );
    }
    // A terminal that went away is no reason to stop working.
    let _ = output::text(&text);
}
