//! `token`: where the admin API's tokens stand, and a new one.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;

use super::{
    Global, OutputFormat, context,
    output::{self, Exit},
};
use crate::{
    admin::{Tokens, made_token},
    config::{self, Settings},
};

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Make a new token: it is printed once. With the embedded database it replaces the one that was made before
    #[arg(long)]
    new: bool,
}

/// Stable JSON of `token`. No token stands in it but one that was made just now.
#[derive(Debug, Serialize)]
struct TokenReport {
    /// Hashes in `server.token_sha256`.
    in_settings: usize,
    /// Tokens and hashes from the credentials `admin_token` and `admin_token_sha256`.
    in_credentials: usize,
    /// Where the hash of the generated token of embedded mode stands, if there is one.
    generated: Option<PathBuf>,
    /// A token that was made at a start without a terminal, and not read yet.
    unread: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// What to put into `server.token_sha256` for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

impl TokenArgs {
    /// Exit 0: a token is accepted, or was made; 2: none is, so that the admin API is closed.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        let settings = context::settings(global)?;
        let credentials = config::credentials_dir();
        let all = Tokens::load(&settings.server.token_sha256, credentials.as_deref())?.len();
        let own = Tokens::load(&settings.server.token_sha256, None)?.len();
        let state = config::state_dir();
        let there = |name: &str| Some(state.join(name)).filter(|path| path.exists());
        let mut report = TokenReport {
            in_settings: own,
            in_credentials: all.saturating_sub(own),
            generated: there("admin_token.sha256"),
            unread: there("admin_token"),
            token: None,
            sha256: None,
        };
        let open = all > 0 || is_embedded(&settings) && report.generated.is_some();
        if self.new {
            make(&settings, all > 0, &mut report)?;
        }
        match global.output {
            OutputFormat::Json => output::json(&report)?,
            _ => output::text(&report.render(open || self.new, is_embedded(&settings)))?,
        };
        Ok(Exit::when(open || self.new))
    }
}

fn is_embedded(settings: &Settings) -> bool {
    settings.database.url.is_none()
}

/// Makes a token; where the daemon keeps its own, in place of that one.
fn make(settings: &Settings, configured: bool, report: &mut TokenReport) -> anyhow::Result<()> {
    if is_embedded(settings) && !configured {
        let state = config::state_dir();
        anyhow::ensure!(
            state.is_dir(),
            "there is no state directory at {}\nhint: `providerd run` here makes one, and a token at its first start",
            state.display()
        );
        let fresh = Tokens::renewed(&state)?;
        fresh.remember().with_context(|| format!("cannot write below {}", state.display()))?;
        report.token = Some(fresh.token.expose().to_owned());
        report.generated = Some(state.join("admin_token.sha256"));
        return Ok(());
    }
    let (token, hash) = made_token().context("this machine gives no random numbers")?;
    report.token = Some(token.expose().to_owned());
    report.sha256 = Some(hash);
    Ok(())
}

impl TokenReport {
    fn render(&self, open: bool, embedded: bool) -> String {
        let mut text = String::new();
        let mut line = |what: &str| text.push_str(&format!("{what}\n"));
        if let Some(token) = &self.token {
            line(&format!("token      {token}"));
            match &self.sha256 {
                Some(hash) => {
                    line(
                        "           shown this once; the daemon accepts it once its hash stands in the settings:",
                    );
                    line("[server]");
                    line(&format!("token_sha256 = [\"{hash}\"]"));
                }
                None => line(
                    "           shown this once; restart the daemon, which accepts it in place of the one before",
                ),
            }
        }
        if self.in_settings > 0 {
            line(&format!("settings   {} in server.token_sha256", self.in_settings));
        }
        if self.in_credentials > 0 {
            line(&format!(
                "systemd    {} in the credentials admin_token and admin_token_sha256",
                self.in_credentials
            ));
        }
        if let Some(path) = self.generated.as_ref().filter(|_| embedded) {
            line(&format!("generated  its hash is in {}", path.display()));
        }
        if let Some(path) = &self.unread {
            line(&format!(
                "unread     {} holds a token in clear: read it and delete the file",
                path.display()
            ));
        }
        if !open {
            line("no token is accepted: the admin API is closed\nhint: `providerd token --new` makes one");
        } else if self.token.is_none() {
            line("hint: only hashes are kept; `providerd token --new` makes another token");
        }
        text
    }
}
