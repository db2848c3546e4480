//! `key`: make a BYOK key or a consumer's, seal a secret for a manifest, prove or re-encrypt every stored key.

use std::io::Read;

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use catalog::{
    plan::{EventKind, Fingerprint, LiveKey},
    serving,
};

use super::{
    Global, OutputFormat,
    context::{self, Context},
    output::{self, Exit},
    progress::Progress,
};
use crate::{
    backend,
    dataplane::first_consumer::{caller_key, key_hash},
    secret::{Byok, Secret},
    store::{NewEvent, Scope},
};

/// A secret longer than this is a mistake (a file piped in by accident).
const MAX_SECRET: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Print a new BYOK key
    Generate,
    /// Read a secret from standard input and print it sealed, for `api_key = { sealed = "…" }`
    Seal {
        /// Make a BYOK key where providerd's own database has none yet
        #[arg(long)]
        new: bool,
    },
    /// Make a key with which a program may call the gateway: prints it once, and the lines to commit
    Consumer {
        /// The consumer's name in the manifests
        #[arg(value_parser = consumer_name)]
        name: String,
        /// From when on it is refused: a date (its beginning, UTC) or a moment such as 2027-06-30T12:00:00Z
        #[arg(long, value_name = "DATE", value_parser = expires)]
        expires: Option<String>,
    },
    /// Prove every stored key: stored → decrypted → matches its source
    Verify,
    /// Encrypt every stored key again with the first of several BYOK keys, online; run again, it continues
    Rotate,
}

/// Prints a fresh key; the only command that prints a secret, because it makes it.
pub fn generate(format: OutputFormat) -> anyhow::Result<Exit> {
    let key = Byok::generate();
    match format {
        OutputFormat::Json => output::json(&serde_json::json!({ "key": key.expose() })),
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
            output::text(&format!("{}\n", key.expose()))
        }
    }
}

impl KeyCommand {
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        match self {
            Self::Generate => generate(global.output),
            Self::Consumer { name, expires } => consumer(global.output, &name, expires.as_deref()),
            Self::Seal { new } => seal(global, new),
            Self::Rotate => {
                context::block_on(global, backend::Access::Write, |context| Box::pin(rotate(context)))
            }
            Self::Verify => {
                context::block_on(global, backend::Access::Look, |context| Box::pin(verify(context)))
            }
        }
    }
}

fn consumer_name(text: &str) -> Result<String, String> {
    if serving::is_consumer_name(text) {
        return Ok(text.to_owned());
    }
    Err("a name has 1 to 100 letters, digits, `.`, `_` and `-`, and begins with a letter or digit".to_owned())
}

fn expires(text: &str) -> Result<String, String> {
    match serving::expiry(text) {
        None => Err("expected a date such as 2027-06-30".to_owned()),
        Some(at) if at <= chrono::Utc::now().timestamp() => Err("that is past".to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

/// Stable JSON of `key consumer`.
#[derive(Serialize)]
struct ConsumerKey<'a> {
    consumer: &'a str,
    /// The key; stored nowhere.
    key: &'a str,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<&'a str>,
    /// Lines for a manifest.
    manifest: String,
}

/// Prints a fresh key of 256 random bits and the lines to commit. Needs no settings and no database: what opens the
/// gateway is the hash in a manifest.
fn consumer(format: OutputFormat, name: &str, expires: Option<&str>) -> anyhow::Result<Exit> {
    let key = caller_key().context("no random numbers")?;
    let sha256 = key_hash(&key);
    let until = expires.map_or_else(String::new, |date| format!(", expires = \"{date}\""));
    // A name with a dot is quoted.
    let table = if name.contains('.') { format!("\"{name}\"") } else { name.to_owned() };
    let manifest = format!("[consumers.{table}]\nkeys = [{{ sha256 = \"{sha256}\"{until} }}]\n");
    match format {
        OutputFormat::Json => {
            output::json(&ConsumerKey { consumer: name, key: key.expose(), sha256, expires, manifest })
        }
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => output::text(&format!(
            "{}\n\n# The key is stored nowhere and not shown again. To commit; a second key goes into the same list:\n{manifest}",
            key.expose()
        )),
    }
}

fn seal(global: &Global, new: bool) -> anyhow::Result<Exit> {
    let settings = context::settings(global)?;
    let new = if new { backend::NewKey::Make } else { backend::NewKey::Refuse };
    let (byok, _) = backend::byok(&settings, backend::byok_env(), new)?;
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::stdin().lock().take(MAX_SECRET + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= MAX_SECRET, "the secret is longer than {MAX_SECRET} bytes");
    let text = text.trim();
    anyhow::ensure!(!text.is_empty(), "there is no secret on standard input");
    let secret = Secret::copy_of(text.strip_prefix("Bearer ").unwrap_or(text).trim());
    let token = byok.encrypt(&secret);
    match global.output {
        OutputFormat::Json => output::json(&serde_json::json!({ "sealed": token })),
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
            output::text(&format!("api_key = {{ sealed = \"{token}\" }}\n"))
        }
    }
}

/// What was found out about one provider's key.
#[derive(Serialize)]
struct Proof {
    provider: String,
    verdict: Verdict,
    stored: Option<Fingerprint>,
    declared: Option<Fingerprint>,
    detail: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// Stored, opens, and is what its source holds.
    Matches,
    /// Stored and opens; no manifest or no resolvable reference to compare with.
    Opens,
    /// Stored and opens, but the source holds another key.
    Differs,
    /// Declared, but nothing is stored.
    Missing,
    /// Stored, but the BYOK key does not open it.
    Undecryptable,
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Self::Matches => "matches its source",
            Self::Opens => "opens",
            Self::Differs => "differs from its source",
            Self::Missing => "not stored",
            Self::Undecryptable => "does not open",
        }
    }
}

/// Exit 0: every stored key opens; 2: at least one does not.
async fn verify(context: &Context) -> anyhow::Result<Exit> {
    let (_, build) = context.load();
    let keyring = &context.backend.keyring;
    let world = context.backend.store.read_world(&Scope::Everything, &|token| keyring.open(token)).await?;
    let mut proofs = Vec::new();
    for (name, live) in &world.live {
        let reference = build.catalog.providers.get(name).and_then(|provider| provider.api_key.as_ref());
        let source = reference.map(|reference| context.backend.resolver.resolve(reference));
        let declared =
            source.as_ref().and_then(|it| it.as_ref().ok()).map(|secret| keyring.fp.fingerprint(secret));
        let (verdict, stored) = match &live.key {
            LiveKey::Absent if reference.is_none() => continue,
            LiveKey::Absent => (Verdict::Missing, None),
            LiveKey::Undecryptable => (Verdict::Undecryptable, None),
            LiveKey::Known { fingerprint, .. } => {
                let verdict = match &declared {
                    Some(declared) if declared == fingerprint => Verdict::Matches,
                    Some(_) => Verdict::Differs,
                    None => Verdict::Opens,
                };
                (verdict, Some(fingerprint.clone()))
            }
        };
        let detail = source.and_then(Result::err).map(|error| error.to_string());
        proofs.push(Proof { provider: name.to_string(), verdict, stored, declared, detail });
    }
    match context.format {
        OutputFormat::Json => output::json(&proofs)?,
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
            let rows = proofs.iter().map(|proof| {
                let stored = proof.stored.as_ref().map(ToString::to_string).unwrap_or_default();
                let detail = proof.detail.clone().unwrap_or_default();
                vec![proof.provider.clone(), proof.verdict.word().to_owned(), stored, detail]
            });
            output::text(&output::table(&["PROVIDER", "STORED KEY", "FINGERPRINT", "SOURCE"], rows))?
        }
    };
    Ok(Exit::when(proofs.iter().all(|proof| proof.verdict != Verdict::Undecryptable)))
}

/// Stable JSON of `key rotate`.
#[derive(Debug, Default, Serialize)]
struct Rotation {
    /// Encrypted again by this run.
    rotated: Vec<String>,
    /// Encrypted with the first key before.
    current: usize,
    /// Stored, but no BYOK key opens it; left as it is.
    undecryptable: Vec<String>,
    /// Everything that opens is encrypted with the first key, so the others may go.
    done: bool,
}

/// How often all rows are gone through while another program keeps storing keys under the former BYOK key.
const ROTATE_ROUNDS: u32 = 5;

/// Exit 0: nothing needs the former keys any more; 2: something undecryptable is left.
async fn rotate(context: &Context) -> anyhow::Result<Exit> {
    let (store, byok) = (&context.backend.store, &context.backend.keyring.byok);
    let mut report = Rotation::default();
    for _ in 0..ROTATE_ROUNDS {
        report.current = 0;
        report.undecryptable.clear();
        let mut stale = false;
        let rows = store.provider_status_rows(None).await?;
        let progress = Progress::steps("encrypting again", rows.len());
        for row in rows {
            progress.step();
            if !row.has_key {
                continue;
            }
            let Some((first, second, _)) = store.key_columns(&row.name).await? else { continue };
            let old = [first, second];
            // Equal tokens stay equal: the two columns are copies of each other.
            let one = |token: &str| (!token.is_empty()).then(|| byok.decrypt_primary(token));
            let mut new = old.clone();
            for index in 0..old.len() {
                match one(&old[index]) {
                    Some(Ok((_, true))) | None => {}
                    Some(Ok((secret, false))) => {
                        new[index] = if index == 1 && old[0] == old[1] {
                            new[0].clone()
                        } else {
                            byok.encrypt(&secret)
                        };
                    }
                    Some(Err(_)) => {
                        if report.undecryptable.last().is_none_or(|last| **last != *row.name) {
                            report.undecryptable.push(row.name.to_string());
                        }
                    }
                }
            }
            if new == old {
                report.current += 1;
                continue;
            }
            let event = NewEvent::about(
                EventKind::Key,
                Some(row.name.clone()),
                Some(row.id),
                serde_json::json!({ "action": "rotate" }),
                "encrypted again with the first BYOK key",
            );
            if store.key_rotate(row.id, [&old[0], &old[1]], [&new[0], &new[1]], &event).await? {
                report.rotated.push(row.name.to_string());
            }
            // Stored by this run, or by another program at the same moment: either way worth another look.
            stale = true;
        }
        if !stale {
            report.done = true;
            break;
        }
    }
    anyhow::ensure!(
        report.done,
        "keys are being stored under a former BYOK key as fast as they are rotated\n\
         hint: give every daemon the new BYOK key first (`new,former`), then rotate again"
    );
    // Last of all, so that no process can start with the new key alone before everything opens with it.
    backend::rotate_own(store, byok).await?;
    report.done = report.undecryptable.is_empty();
    match context.format {
        OutputFormat::Json => output::json(&report)?,
        OutputFormat::Table | OutputFormat::Github | OutputFormat::Csv => {
            let mut text = format!("{} rotated, {} current\n", report.rotated.len(), report.current);
            for name in &report.undecryptable {
                output::say(
                    &mut text,
                    &format!("! {name}: does not open with any BYOK key; left as it is\n"),
                );
            }
            if report.done && byok.key_count() > 1 {
                text += "hint: every stored key opens with the first BYOK key now. Sealed references in manifests are \
                         not stored here: seal them again before dropping the former key\n";
            }
            output::text(&text)?
        }
    };
    Ok(Exit::when(report.done))
}
