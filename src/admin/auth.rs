//! Who may use the admin API: bearer tokens, of which only SHA-256 hashes are kept.
//!
//! Its job: collect the hashes, compare, and name the caller by the first 8 digits of its token's hash. Invariants: a
//! comparison takes as long for a wrong token as for a right one, whichever of several it is; no token reaches a
//! log, an answer or an event. A token travels in a header that no browser sends by itself, so other sites cannot
//! make a browser act here (CSRF).

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderMap, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::time::Instant;
use tracing::debug;
use zeroize::Zeroizing;

use super::{AdminShared, error::ApiError};
use crate::{
    config::{Setting as _, TokenHash},
    secret::Secret,
};

/// Systemd credentials: hashes in hexadecimal, between white space or commas; and one token in clear.
const HASHES_CREDENTIAL: &str = "admin_token_sha256";
const TOKEN_CREDENTIAL: &str = "admin_token";
/// The hash of the generated token of embedded mode, in the state directory.
const GENERATED: &str = "admin_token.sha256";
/// A shorter token could be guessed over the network.
const SHORTEST: usize = 16;
/// Bytes of randomness in a generated token.
const RANDOM: usize = 32;
/// Nothing longer is a token of ours, or worth hashing.
const LONGEST: usize = 4096;
/// Hashes take 65 bytes each; no installation has thousands.
const MAX_FILE: u64 = 64 * 1024;

/// Why the admin tokens cannot be read. Names the place, never a token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("{}: cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", .path.display())]
    Content { path: PathBuf, what: String },
}

/// The hashes of all tokens that are accepted.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    hashes: Arc<[[u8; 32]]>,
}

/// Which token a caller has: its place in the list, and the first 8 digits of its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub index: usize,
    pub who: String,
}

/// A token that was made for embedded mode and not been shown yet.
pub struct Fresh {
    pub token: Secret,
    /// Where its hash goes once it was shown.
    path: PathBuf,
}

impl Fresh {
    /// Keeps the hash for the next start. Before this, every start makes another token.
    ///
    /// # Errors
    /// The file cannot be written; the token is good until the daemon stops.
    pub fn remember(&self) -> io::Result<()> {
        let temporary = self.path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        writeln!(file, "{}", hex(&hash(self.token.expose())))?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

impl Tokens {
    /// The hashes of the settings and of the credentials.
    ///
    /// # Errors
    /// A credential is there and cannot be used.
    pub fn load(settings: &[TokenHash], credentials: Option<&Path>) -> Result<Self, TokenError> {
        let mut hashes: Vec<[u8; 32]> = settings.iter().map(|hash| hash.0).collect();
        if let Some(path) = credentials.map(|dir| dir.join(HASHES_CREDENTIAL)).filter(|path| path.exists()) {
            hashes.extend(read_hashes(&path)?);
        }
        if let Some(path) = credentials.map(|dir| dir.join(TOKEN_CREDENTIAL)).filter(|path| path.exists()) {
            let text = read(&path)?;
            let token = text.trim();
            if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                let what = format!(
                    "an admin token has at least {SHORTEST} printable characters\nhint: openssl rand -base64 32"
                );
                return Err(TokenError::Content { path, what });
            }
            hashes.push(hash(token));
        }
        hashes.sort_unstable();
        hashes.dedup();
        Ok(Self { hashes: hashes.into() })
    }

    /// For embedded mode without a configured token: the one that was shown at an earlier start, else a new one.
    ///
    /// # Errors
    /// The state directory holds something that is no hash.
    pub fn embedded(state_dir: &Path) -> Result<(Self, Option<Fresh>), TokenError> {
        let path = state_dir.join(GENERATED);
        if path.exists() {
            return Ok((Self { hashes: read_hashes(&path)?.into() }, None));
        }
        let Some((token, _)) = made_token() else { return Ok((Self::default(), None)) };
        let hashes = Arc::from([hash(token.expose())]);
        Ok((Self { hashes }, Some(Fresh { token, path })))
    }

    /// For embedded mode: a token in place of the one whose hash is kept, once [`Fresh::remember`] is called.
    ///
    /// # Errors
    /// This machine gives no random numbers.
    pub fn renewed(state_dir: &Path) -> Result<Fresh, TokenError> {
        let path = state_dir.join(GENERATED);
        match made_token() {
            Some((token, _)) => Ok(Fresh { token, path }),
            None => {
                Err(TokenError::Content { path, what: "this machine gives no random numbers".to_owned() })
            }
        }
    }

    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Tokens that are accepted.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whose token this is.
    pub fn caller(&self, token: &str) -> Option<Caller> {
        let given = hash(token);
        let mut found = u32::MAX;
        for (at, known) in (0u32..).zip(self.hashes.iter()) {
            found = u32::conditional_select(&found, &at, given.ct_eq(known));
        }
        let index = usize::try_from(found).ok().filter(|index| *index < self.hashes.len())?;
        Some(Caller { index, who: hex(&given).get(..8).unwrap_or_default().to_owned() })
    }

    /// Whose the token of this request is.
    pub(super) fn authenticate(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        if self.is_empty() {
            return Err(ApiError::Closed);
        }
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (given.next(), given.next()) else { return Err(ApiError::Unauthorized) };
        let token = value.to_str().ok().filter(|text| text.len() <= LONGEST).and_then(bearer);
        token.and_then(|token| self.caller(token)).ok_or(ApiError::Unauthorized)
    }
}

/// A new token, and its hash as `server.token_sha256` takes it. `None`: this machine gives no random numbers.
pub fn made_token() -> Option<(Secret, String)> {
    let mut bytes = Zeroizing::new([0; RANDOM]);
    getrandom::fill(&mut *bytes).ok()?;
    let token = Secret::new(URL_SAFE_NO_PAD.encode(bytes.as_slice()));
    let hash = hex(&hash(token.expose()));
    Some((token, hash))
}

/// The token of `Bearer TOKEN`.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn read(path: &Path) -> Result<Zeroizing<String>, TokenError> {
    let error = |source| TokenError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(error)?.len() > MAX_FILE {
        return Err(TokenError::Content { path: path.to_owned(), what: "the file is too large".to_owned() });
    }
    Ok(Zeroizing::new(fs::read_to_string(path).map_err(error)?))
}

fn read_hashes(path: &Path) -> Result<Vec<[u8; 32]>, TokenError> {
    let text = read(path)?;
    let words = text.split(|c: char| c.is_whitespace() || c == ',').filter(|word| !word.is_empty());
    let hashes: Result<Vec<[u8; 32]>, String> = words.map(|word| Ok(TokenHash::from_env(word)?.0)).collect();
    match hashes {
        Ok(hashes) if hashes.is_empty() => {
            Err(TokenError::Content { path: path.to_owned(), what: "holds no hash of a token".to_owned() })
        }
        Ok(hashes) => Ok(hashes),
        Err(what) => Err(TokenError::Content { path: path.to_owned(), what }),
    }
}

/// Lets only known tokens through, and traces every call.
pub(super) async fn authorize(State(shared): State<AdminShared>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    match shared.tokens.authenticate(request.headers()) {
        Ok(caller) => pass(request, next, caller, began, "admin call").await,
        Err(error) => {
            debug!(error = ?error, "an admin call was turned away");
            error.into_response()
        }
    }
}

/// Lets a call of a known caller through and traces it, under the name `what`.
pub(super) async fn pass(
    mut request: Request,
    next: Next,
    caller: Caller,
    began: Instant,
    what: &str,
) -> Response {
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>().cloned();
    let who = caller.who.clone();
    request.extensions_mut().insert(caller);
    let response = next.run(request).await;
    debug!(
        who,
        %method,
        path = path.as_ref().map_or("", MatchedPath::as_str),
        status = response.status().as_u16(),
        duration_ms = began.elapsed().as_millis(),
        "{what}"
    );
    response
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn tokens_are_found_by_their_hash() {
        let tokens =
            Tokens::load(&[TokenHash(hash("first-fake-token")), TokenHash(hash("other-fake-token"))], None)
                .unwrap();
        let mut seen = Vec::new();
        for token in ["first-fake-token", "other-fake-token"] {
            let caller = tokens.caller(token).unwrap();
            assert_eq!(caller.who, hex(&hash(token))[..8]);
            seen.push(caller.index);
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1]);
        assert_eq!(tokens.caller("first-fake-toke"), None);
        assert_eq!(tokens.caller(""), None);
        assert_eq!(Tokens::default().caller("first-fake-token"), None);
    }

    #[test]
    fn one_bearer_header_is_wanted() {
        let tokens = Tokens::load(&[TokenHash(hash("first-fake-token"))], None).unwrap();
        let check = |values: &[&str], expected: Result<(), ApiError>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, value.parse().unwrap());
            }
            assert_eq!(tokens.authenticate(&headers).map(|_| ()), expected, "{values:?}");
        };
        check(&["Bearer first-fake-token"], Ok(()));
        check(&["bearer  first-fake-token "], Ok(()));
        check(&[], Err(ApiError::Unauthorized));
        check(&["first-fake-token"], Err(ApiError::Unauthorized));
        check(&["Basic first-fake-token"], Err(ApiError::Unauthorized));
        check(&["Bearer wrong"], Err(ApiError::Unauthorized));
        check(&["Bearer first-fake-token", "Bearer first-fake-token"], Err(ApiError::Unauthorized));
        assert_eq!(Tokens::default().authenticate(&HeaderMap::new()), Err(ApiError::Closed));
    }

    #[test]
    fn credentials_add_to_the_settings() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(HASHES_CREDENTIAL), format!("{}\n", hex(&hash("one-fake-token-"))))
            .unwrap();
        fs::write(dir.path().join(TOKEN_CREDENTIAL), "two-fake-token-two\n").unwrap();
        let tokens = Tokens::load(&[], Some(dir.path())).unwrap();
        assert!(tokens.caller("one-fake-token-").is_some() && tokens.caller("two-fake-token-two").is_some());
        for (name, content) in
            [(TOKEN_CREDENTIAL, "short"), (HASHES_CREDENTIAL, "no-hash"), (HASHES_CREDENTIAL, "")]
        {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), content).unwrap();
            let error = Tokens::load(&[], Some(dir.path())).unwrap_err().to_string();
            assert!(content.is_empty() || !error.contains(content), "{error}");
        }
    }

    #[test]
    fn a_generated_token_is_made_until_it_was_shown() {
        let dir = tempfile::tempdir().unwrap();
        let (_, first) = Tokens::embedded(dir.path()).unwrap();
        let (tokens, second) = Tokens::embedded(dir.path()).unwrap();
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_ne!(first.token.expose(), second.token.expose());
        assert!(tokens.caller(second.token.expose()).is_some());
        second.remember().unwrap();
        let mode = fs::metadata(dir.path().join(GENERATED)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let (tokens, third) = Tokens::embedded(dir.path()).unwrap();
        assert!(third.is_none() && tokens.caller(second.token.expose()).is_some());
    }
}
