//! `POST /hooks/git`: a Git host says that something was pushed.
//!
//! Not its job: looking (the puller does, and believes nothing that the request says). Invariants: the body is never
//! kept, only summed up; secrets are compared in constant time; without a secret there is no webhook.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures_util::StreamExt as _;
use hmac::{Hmac, Mac as _};
use serde_json::json;
use sha2::Sha256;
use tokio::sync::Notify;
use tracing::{info, warn};

use catalog::model::SecretRef;

use crate::secret::{Resolver, Secret};

/// GitHub sends at most 25 MB.
const MAX_BODY: usize = 25 * 1024 * 1024;
/// Hosts give up after 10 s themselves.
const PATIENCE: Duration = Duration::from_secs(10);
/// Strangers do not fill the log.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// The webhook's secret, and what it wakes.
#[derive(Debug)]
pub struct Hook {
    /// Read again for every request, so that it can be changed without a restart.
    secret: PathBuf,
    wake: Arc<Notify>,
    complained: Mutex<Option<Instant>>,
}

impl Hook {
    pub fn new(secret: PathBuf, wake: Arc<Notify>) -> Self {
        Self { secret, wake, complained: Mutex::default() }
    }

    /// Whether it is time to complain again.
    fn may_complain(&self) -> bool {
        let mut last = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

/// The route; without a hook there is nothing at its path.
pub fn router<S: Clone + Send + Sync + 'static>(hook: Option<Arc<Hook>>) -> Router<S> {
    match hook {
        Some(hook) => Router::new().route("/hooks/git", post(git).with_state(hook)),
        None => Router::new(),
    }
}

/// Proof that a request carries.
enum Proof {
    /// GitHub, Gitea and Forgejo: HMAC-SHA256 of the body.
    Signature([u8; 32]),
    /// GitLab: the secret itself.
    Token(Secret),
}

async fn git(State(hook): State<Arc<Hook>>, headers: HeaderMap, body: Body) -> Response {
    // Reject before reading the body if no signature is present.
    let Some(proof) = proof(&headers) else { return refused() };
    let reference = SecretRef::File(hook.secret.to_string_lossy().into());
    let secret = match Resolver::new(None, None, None).resolve(&reference) {
        Ok(secret) => secret,
        Err(error) => {
            if hook.may_complain() {
                warn!(path = %hook.secret.display(), error = %error.problem, "the secret of the webhook cannot be used");
            }
            return error_of(
                StatusCode::SERVICE_UNAVAILABLE,
                "hook-unavailable",
                "the webhook cannot be verified now",
            );
        }
    };
    let is_genuine = match proof {
        Proof::Token(token) => is_same(&secret, &token),
        Proof::Signature(signature) => match tokio::time::timeout(PATIENCE, sum(&secret, body)).await {
            Ok(Some(sum)) => sum.verify_slice(&signature).is_ok(),
            Ok(None) => return error_of(StatusCode::PAYLOAD_TOO_LARGE, "too-large", "the body is too large"),
            Err(_) => return error_of(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took too long"),
        },
    };
    if !is_genuine {
        if hook.may_complain() {
            warn!("a webhook with a wrong signature or token was refused");
        }
        return refused();
    }
    info!(trigger = "webhook", "asked to look at the Git repository");
    hook.wake.notify_one();
    (StatusCode::ACCEPTED, Json(json!({ "accepted": true }))).into_response()
}

fn proof(headers: &HeaderMap) -> Option<Proof> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(signature) = text("x-hub-signature-256") {
        return digest(signature.strip_prefix("sha256=")?).map(Proof::Signature);
    }
    text("x-gitlab-token").map(|token| Proof::Token(Secret::copy_of(token)))
}

/// 64 hexadecimal digits.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(digest)
}

fn keyed(secret: &Secret) -> Option<Hmac<Sha256>> {
    // Never none: this code takes keys of any length.
    Hmac::new_from_slice(secret.expose().as_bytes()).ok()
}

/// The sum over the whole body; `None` if it is too large or breaks off.
async fn sum(secret: &Secret, body: Body) -> Option<Hmac<Sha256>> {
    let mut sum = keyed(secret)?;
    let mut left = MAX_BODY;
    let mut parts = body.into_data_stream();
    while let Some(part) = parts.next().await {
        let part = part.ok()?;
        left = left.checked_sub(part.len())?;
        sum.update(&part);
    }
    Some(sum)
}

/// Compares sums of both, so that neither length nor place of a difference takes its own time.
fn is_same(secret: &Secret, token: &Secret) -> bool {
    let sums = |text: &Secret| keyed(secret).map(|sum| sum.chain_update(text.expose()));
    match (sums(secret), sums(token)) {
        (Some(own), Some(theirs)) => own.verify(&theirs.finalize().into_bytes()).is_ok(),
        _ => false,
    }
}

fn refused() -> Response {
    error_of(StatusCode::UNAUTHORIZED, "unauthorized", "the signature or token is missing or wrong")
}

fn error_of(status: StatusCode, code: &str, message: &str) -> Response {
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "not-a-real-webhook-secret";

    async fn answer(headers: &[(&'static str, &str)], body: Vec<u8>) -> (StatusCode, bool) {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
        let wake = Arc::new(Notify::new());
        let hook = Arc::new(Hook::new(secret, wake.clone()));
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, value.parse().unwrap());
        }
        let response = git(State(hook), map, Body::from(body)).await;
        let woken = tokio::time::timeout(Duration::ZERO, wake.notified()).await.is_ok();
        (response.status(), woken)
    }

    fn signature(secret: &str, body: &[u8]) -> String {
        let mut sum = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        sum.update(body);
        let hex: String = sum.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256={hex}")
    }

    #[tokio::test]
    async fn only_who_knows_the_secret_wakes_anybody() {
        let body = b"{\"ref\":\"refs/heads/main\"}".to_vec();
        let good = signature(SECRET, &body);
        assert_eq!(
            answer(&[("x-hub-signature-256", &good)], body.clone()).await,
            (StatusCode::ACCEPTED, true)
        );
        assert_eq!(answer(&[("x-gitlab-token", SECRET)], Vec::new()).await, (StatusCode::ACCEPTED, true));

        let refused = (StatusCode::UNAUTHORIZED, false);
        let wrong = signature("another", &body);
        let longer = format!("{good}0");
        let check: &[(&'static str, &str)] = &[
            ("x-hub-signature-256", &wrong),
            ("x-hub-signature-256", &longer),
            ("x-hub-signature-256", "sha256="),
            ("x-hub-signature-256", &good[7..]),
            ("x-hub-signature-256", "sha1=00"),
            ("x-hub-signature", &good),
            ("x-gitlab-token", ""),
            ("x-gitlab-token", "not-a-real-webhook-secre"),
            ("x-gitlab-token", "not-a-real-webhook-secrets"),
        ];
        for header in check {
            assert_eq!(answer(&[*header], body.clone()).await, refused, "{header:?}");
        }
        assert_eq!(answer(&[], body.clone()).await, refused);
        assert_eq!(answer(&[("x-hub-signature-256", &good)], b"{}".to_vec()).await, refused);
        // A wrong signature is not saved by a right token.
        let both = [("x-hub-signature-256", wrong.as_str()), ("x-gitlab-token", SECRET)];
        assert_eq!(answer(&both, body).await, refused);
    }

    #[tokio::test]
    async fn a_body_without_end_is_given_up() {
        let body = vec![b'x'; MAX_BODY + 1];
        let good = signature(SECRET, &body);
        let (status, woken) = answer(&[("x-hub-signature-256", &good)], body).await;
        assert_eq!((status, woken), (StatusCode::PAYLOAD_TOO_LARGE, false));
    }

    #[test]
    fn secrets_are_the_same_or_not() {
        let check = |token: &str, expected| {
            assert_eq!(is_same(&Secret::copy_of(SECRET), &Secret::copy_of(token)), expected, "{token}");
        };
        check(SECRET, true);
        check("", false);
        check("not-a-real-webhook-secret ", false);
    }
}
