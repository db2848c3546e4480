//! Keys of providers in memory.

use std::fmt;

use bytes::Bytes;
use hyper::header::HeaderValue;
use zeroize::Zeroizing;

/// A provider's key: wiped when the last request that holds it ends, and by no way printed.
#[derive(Clone)]
pub struct UpstreamKey(Bytes);

impl UpstreamKey {
    pub fn new(key: Zeroizing<Vec<u8>>) -> Self {
        Self(Bytes::from_owner(Wiped(key)))
    }

    /// The key itself: for signing a request, never for showing it.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// A header value `prefix` + key in memory that is wiped, marked so that no printer shows it. `None`: a key with
    /// bytes that no header can carry.
    pub(super) fn header(&self, prefix: &str) -> Option<HeaderValue> {
        let mut text = Zeroizing::new(Vec::with_capacity(prefix.len() + self.0.len()));
        text.extend_from_slice(prefix.as_bytes());
        text.extend_from_slice(&self.0);
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(Wiped(text))).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for UpstreamKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpstreamKey(…)")
    }
}

/// Whether a key is one that never travels: a service account of Google, which is exchanged for a token, and access
/// keys of Amazon, which sign (its API keys begin with `ABSK` or `bedrock-api-key-`; "Amazon Bedrock API keys").
pub(super) fn must_sign(kind: &str, key: &[u8]) -> bool {
    match kind {
        "vertex" => key.trim_ascii_start().starts_with(b"{"),
        "bedrock" => !key.starts_with(b"ABSK") && !key.starts_with(b"bedrock-api-key-"),
        _ => false,
    }
}

/// What [`Bytes`] owns here.
struct Wiped(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
