//! `key`: make a BYOK key, seal a secret for a manifest, prove every stored key.

use std::io::Read;

use clap::Subcommand;
use serde::Serialize;

use super::{
    Format, Global,
    context::{self, Context},
    output::{self, Exit},
};
use crate::{
    app,
    plan::{Fingerprint, LiveKey},
    secret::{Byok, Secret},
    store::Scope,
};

/// A secret longer than this is a mistake (a file piped in by accident).
const MAX_SECRET: u64 = 64 * 1024;

#[derive(Debug, Subcommand)]
pub enum Key {
    /// Print a new BYOK key
    Generate,
    /// Read a secret from standard input and print it sealed, for `api_key = { sealed = "…" }`
    Seal,
    /// Prove every stored key: stored → decrypted → matches its source
    Verify,
}

/// Prints a fresh key; the only command that prints a secret, because it makes it.
pub fn generate() -> anyhow::Result<Exit> {
    output::text(&format!("{}\n", Byok::generate().expose()))
}

impl Key {
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        match self {
            Self::Generate => generate(),
            Self::Seal => seal(global),
            Self::Verify => context::block_on(global, app::Access::Look, |context| Box::pin(verify(context))),
        }
    }
}

fn seal(global: &Global) -> anyhow::Result<Exit> {
    let settings = context::settings(global)?;
    let (byok, _) = app::byok(&settings, app::byok_env())?;
    let mut text = zeroize::Zeroizing::new(String::new());
    std::io::stdin().lock().take(MAX_SECRET + 1).read_to_string(&mut text)?;
    anyhow::ensure!(text.len() as u64 <= MAX_SECRET, "the secret is longer than {MAX_SECRET} bytes");
    let text = text.trim();
    anyhow::ensure!(!text.is_empty(), "there is no secret on standard input");
    let secret = Secret::copy_of(text.strip_prefix("Bearer ").unwrap_or(text).trim());
    let token = byok.encrypt(&secret);
    match global.output {
        Format::Json => output::json(&serde_json::json!({ "sealed": token })),
        Format::Table | Format::Github => output::text(&format!("api_key = {{ sealed = \"{token}\" }}\n")),
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
        Format::Json => output::json(&proofs)?,
        Format::Table | Format::Github => {
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
