//! The settings as text: the reference for people and the commented example.
//!
//! Job: render the list of keys. Not its job: reading. Invariant: both texts are functions of that list
//! alone, so a test can compare the committed files with them.

use std::fmt::Write as _;

use super::{layers::SettingKey, settings::SECTIONS};

/// `docs/SETTINGS.md`.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(INTRODUCTION);
    for (section, about, keys) in SECTIONS {
        let _ = write!(out, "\n## `[{section}]`\n\n{}\n\n", joined(about));
        out.push_str("| key | default | what it does |\n|---|---|---|\n");
        for key in *keys {
            let default = match key.default {
                "" => "unset".to_owned(),
                default => format!("`{default}`"),
            };
            let _ = writeln!(
                out,
                "| `{}` ({}) | {default} | {} |",
                short(key),
                cell(key.form),
                cell(&joined(key.doc))
            );
        }
    }
    out
}

const INTRODUCTION: &str = "\
# Settings

Generated from the code; a test compares this page with it (`UPDATE_DOCS=1 scripts/test --test it config::` writes it).

Settings come from `/etc/providerd/providerd.toml`, if it exists, or from the file that `--config` names.
A key `section.key` is also set by the environment variable `PROVIDERD_SECTION__KEY`, with two underscores
between the parts: `PROVIDERD_RECONCILE__PRUNE_LIMIT=10%`, `PROVIDERD_SERVER__TLS__CERT=/etc/ssl/p.pem`. The
environment is stronger than the file; an empty variable counts as unset. Lists are TOML arrays, in the
environment also entries between commas. Durations are a whole number and a unit: `ms`, `s`, `m`, `h`, `d` or
`w`, also combined (`1h30m`). Unknown keys and unknown `PROVIDERD_…` variables are errors, and all mistakes are
reported at once.

Four variables stand beside this scheme. `DATABASE_URL` is stronger than `database.url`, and `--database-url`
is stronger than both. `BYOK_ENCRYPTION_KEY` holds the Fernet key that encrypts API keys (several between
commas: the first encrypts, all decrypt). `RUST_LOG` overrides `log.level`. The state directory is
`$STATE_DIRECTORY`, else `$XDG_STATE_HOME/providerd`, else `./.providerd`.
";

/// `systemd/providerd.toml`: every key, commented out, with its default.
#[must_use]
pub fn example() -> String {
    let mut out = String::from(
        "# Settings of providerd. Every key is shown with its default; remove the # to change it.\n\
         # The reference is docs/SETTINGS.md. Unknown keys are errors.\n",
    );
    for (section, about, keys) in SECTIONS {
        let _ = write!(out, "\n# {}\n[{section}]\n", joined(about));
        for key in *keys {
            for line in key.doc {
                let _ = writeln!(out, "#{line}");
            }
            let value = if key.default.is_empty() { placeholder(key) } else { key.default };
            let _ = writeln!(out, "#{} = {value}", short(key));
        }
    }
    out
}

/// Something of the right form for a key without a default.
fn placeholder(key: &SettingKey) -> &'static str {
    match key.path {
        "database.url" => "\"postgres://providerd@db.example.com/ops\"",
        "source.git.url" => "\"https://git.example.com/team/providers.git\"",
        "source.git.branch" => "\"main\"",
        "source.git.tag" => "\"production\"",
        "source.git.ssh_key" => "\"/etc/providerd/git.key\"",
        "source.git.known_hosts" => "\"/etc/providerd/known_hosts\"",
        "source.git.token" => "\"/etc/providerd/git.token\"",
        "source.git.allowed_signers" => "\"/etc/providerd/allowed_signers\"",
        "source.git.webhook_secret" => "\"/etc/providerd/git.webhook\"",
        "keys.file" => "\"/etc/providerd/byok.key\"",
        "keys.dir" => "\"/etc/providerd/keys\"",
        "health.canary" => "\"canary.example.com:443\"",
        "egress.proxy" => "\"http://proxy.example.com:3128\"",
        "server.tls.cert" => "\"/etc/providerd/tls.crt\"",
        "server.tls.key" => "\"/etc/providerd/tls.key\"",
        "pages.session.url" => "\"http://ops-center:8084/api/v1/auth/me\"",
        "pages.proxy.header" => "\"X-Auth-Role\"",
        "litellm.path" => "\"/var/lib/providerd/litellm.yaml\"",
        "litellm.keys" => "\"/var/lib/providerd/litellm-keys\"",
        "gateway.listen" => "\"127.0.0.1:7412\"",
        "gateway.metrics_listen" => "\"127.0.0.1:7413\"",
        "gateway.tls.cert" => "\"/etc/providerd/gateway.crt\"",
        "gateway.tls.key" => "\"/etc/providerd/gateway.key\"",
        "gateway.workers" => "2",
        "gateway.timeouts.first_token" => "\"60s\"",
        "usage.spool_dir" => "\"/var/lib/providerd/usage\"",
        "usage.retention" => "\"90d\"",
        _ => "\"\"",
    }
}

/// The key inside its section.
fn short(key: &SettingKey) -> &'static str {
    key.path.split_once('.').map_or(key.path, |(_, rest)| rest)
}

fn joined(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

/// A bar would end the cell of a Markdown table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}
