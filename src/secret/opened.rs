//! Stored keys that were opened: each token is opened once, however many readers a change has.
//!
//! Not its job: opening (`byok`), or which of a row's tokens counts (`catalog::plan::LiveKey`). Invariants: what is kept
//! is wiped when it leaves; what no reader asked for in a while leaves with the next opening; a token that does not open
//! is not kept, because there may be many of them and none is of use.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Secret;

/// Readers that look at everything come by at least every 15 s; a key that was replaced is gone soon after.
const KEPT: Duration = Duration::from_secs(60);
/// Between two looks for what may leave: with 10,000 keys a look takes a millisecond.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// One opened token.
struct OpenedToken {
    secret: Arc<Secret>,
    used: Instant,
}

struct Inner {
    tokens: HashMap<Box<str>, OpenedToken>,
    swept: Instant,
}

/// Opened tokens by their text. Cheap to clone: clones share.
#[derive(Clone)]
pub(super) struct OpenedTokens(Arc<Mutex<Inner>>);

impl OpenedTokens {
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner { tokens: HashMap::new(), swept: Instant::now() })))
    }

    /// The secret behind `token`, by `open` where it is not known.
    pub fn get_or<E>(
        &self,
        token: &str,
        now: Instant,
        open: impl FnOnce() -> Result<Secret, E>,
    ) -> Result<Arc<Secret>, E> {
        if let Some(known) = self.lock().tokens.get_mut(token) {
            known.used = known.used.max(now);
            return Ok(known.secret.clone());
        }
        // Opened outside the lock: many readers open many tokens at the same time.
        let secret = Arc::new(open()?);
        let mut inner = self.lock();
        if now.saturating_duration_since(inner.swept) >= SWEEP_EVERY {
            inner.swept = now;
            inner.tokens.retain(|_, it| now.saturating_duration_since(it.used) < KEPT);
        }
        inner.tokens.insert(token.into(), OpenedToken { secret: secret.clone(), used: now });
        Ok(secret)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_opened_once_and_leaves_when_it_is_not_asked_for() {
        let (tokens, start) = (OpenedTokens::new(), Instant::now());
        let mut opened = Vec::new();
        let mut get = |token: &'static str, after: u64| {
            let open = || {
                opened.push(token);
                if token == "bad" { Err(()) } else { Ok(Secret::copy_of(token)) }
            };
            tokens.get_or(token, start + Duration::from_secs(after), open)
        };
        let first = get("a", 0).unwrap();
        assert!(Arc::ptr_eq(&first, &get("a", 1).unwrap()));
        assert!(get("bad", 1).is_err() && get("bad", 1).is_err());
        assert_eq!(get("b", 2).unwrap().expose(), "b");
        // `a` is asked for now and then, `b` is not.
        get("a", 50).unwrap();
        get("c", 70).unwrap();
        get("a", 71).unwrap();
        get("b", 72).unwrap();
        assert_eq!(opened, ["a", "bad", "bad", "b", "c", "b"]);
        assert_eq!(tokens.lock().tokens.len(), 3);
    }
}
