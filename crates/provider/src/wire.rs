//! Requests and replies as values, and the making of URLs and authentication headers.
//!
//! Invariant: a key stands in a header, never in a URL, and no `Debug` prints it.

use std::sync::Arc;

use secrecy::SecretString;
use url::Url;

use crate::{
    ProviderType,
    family::{At, Family, KeyHeader, family},
};

/// Bytes of a body that a check reads.
pub(super) const CHECK_BODY: usize = 256 * 1024;
/// Bytes of a page of a model list; the largest public catalogues are near 2 MB.
pub(super) const LIST_BODY: usize = 8 * 1024 * 1024;
/// No provider's key is near this; service-account files are not sent as keys.
const MAX_KEY: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Post,
}

impl Method {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
        }
    }
}

/// A header's value.
#[derive(Debug, Clone)]
pub enum Value {
    Plain(String),
    Secret(SecretString),
}

pub type Header = (&'static str, Value);

/// One request, described.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: Method,
    pub url: Url,
    pub headers: Vec<Header>,
    pub body: Option<String>,
    /// Reading stops here; the reply is then marked as truncated.
    pub max_body: usize,
}

/// One answer, as received.
#[derive(Debug, Clone, Copy)]
pub struct Reply<'a> {
    pub status: u16,
    pub headers: &'a [(String, String)],
    pub body: &'a [u8],
    /// The body went on beyond what was read.
    pub truncated: bool,
}

impl<'a> Reply<'a> {
    pub fn header(&self, name: &str) -> Option<&'a str> {
        self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub const fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    /// The body as JSON. A byte order mark before it is skipped: it means nothing in UTF-8, and some servers send it.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(self.body)).ok()
    }

    /// How the server has packed the body, where it has: bodies are asked for as they are, and not unpacked.
    pub fn packed(&self) -> Option<&'a str> {
        self.header("content-encoding")
            .filter(|with| !with.is_empty() && !with.eq_ignore_ascii_case("identity"))
    }
}

/// Why a base URL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BaseError {
    #[error("type {0} has no address of its own\nhint: set base_url")]
    Missing(ProviderType),
    #[error("base_url cannot be read: {0}\nhint: write it as https://host/path")]
    Unreadable(String),
    #[error("base_url begins with `{0}:`\nhint: use https://, or http:// for a host of your own")]
    Scheme(String),
    #[error("base_url carries a user name or a password\nhint: declare the key as api_key")]
    UserInfo,
    #[error(
        "its row names a URL, and neither as api_base_url nor as config.base_url\nhint: set api_base_url"
    )]
    Elsewhere,
}

/// What a row of the database says about where its provider is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowUrls<'a> {
    pub api_base_url: Option<&'a str>,
    /// `config.base_url`
    pub config_base_url: Option<&'a str>,
    /// Some URL stands in `config`.
    pub any: bool,
}

/// The URL that a row means: `api_base_url`, else `config.base_url`, else the type's own, unless the row names another
/// one somewhere.
///
/// # Errors
/// [`BaseError`]; then nothing of the row may be sent anywhere.
pub fn row_base(kind: ProviderType, urls: RowUrls<'_>) -> Result<Url, BaseError> {
    let said = [urls.api_base_url, urls.config_base_url].into_iter().flatten();
    match said.map(str::trim).find(|url| !url.is_empty()) {
        Some(url) => parse_base(kind, Some(url)),
        None if urls.any => Err(BaseError::Elsewhere),
        None => parse_base(kind, None),
    }
}

/// The URL that a provider's endpoints stand below.
pub fn parse_base(kind: ProviderType, declared: Option<&str>) -> Result<Url, BaseError> {
    let text = declared.map(str::trim).filter(|text| !text.is_empty()).or(kind.default_base_url());
    let mut url = Url::parse(text.ok_or(BaseError::Missing(kind))?)
        .map_err(|error| BaseError::Unreadable(error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(BaseError::Scheme(url.scheme().into()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BaseError::UserInfo);
    }
    url.set_query(None);
    url.set_fragment(None);
    // A vendor's bare host means its own API root, as other clients accept it too.
    let own = kind.default_base_url().and_then(|own| Url::parse(own).ok());
    if let Some(own) = own
        && url.path() == "/"
        && url.host_str() == own.host_str()
    {
        url.set_path(own.path());
    }
    Ok(url)
}

/// Trims what pasting leaves around a key: white space, `Bearer `.
pub(super) fn clean_key(key: &str) -> &str {
    let key = key.trim();
    match key.split_once(char::is_whitespace) {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim(),
        _ => key,
    }
}

/// Whether a key can stand in a header at all.
pub(super) fn is_sendable(key: &str) -> bool {
    !key.is_empty() && key.len() <= MAX_KEY && key.bytes().all(|byte| (0x21..=0x7e).contains(&byte))
}

/// Whether the base is one of the vendor's own hosts.
pub(super) fn is_own_host(family: &Family, base: &Url) -> bool {
    base.scheme() == "https"
        && base.host_str().is_some_and(|host| {
            family.hosts.iter().any(|own| match own.strip_prefix('*') {
                Some(suffix) => host.len() > suffix.len() && host.ends_with(suffix),
                None => host == *own,
            })
        })
}

fn push_path(url: &mut Url, root: &str, path: &str) {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    url.set_path(&format!("{}{path}", root.trim_end_matches('/')));
    url.set_query(query);
}

/// The part of a base's path above the API's own: `/proxy/v1` → `/proxy`.
fn root_of<'a>(family: &Family, base: &'a Url) -> &'a str {
    let path = base.path().trim_end_matches('/');
    // Suffixes are listed longest first.
    family.suffixes.iter().find_map(|suffix| path.strip_suffix(suffix)).unwrap_or(path)
}

/// Where an endpoint stands, given the base. Another host is used only when the base is the vendor's own.
pub(super) fn locate(family: &Family, base: &Url, at: At) -> Url {
    let mut url = base.clone();
    match at {
        At::Base(path) => push_path(&mut url, base.path(), path),
        At::Root(path) => push_path(&mut url, root_of(family, base), path),
        At::Far(host, path) => {
            if is_own_host(family, base) && url.set_host(Some(host)).is_ok() {
                push_path(&mut url, "", path);
            } else {
                push_path(&mut url, root_of(family, base), path);
            }
        }
        At::Control(path) => {
            let control = url
                .host_str()
                .and_then(|host| host.strip_prefix("bedrock-runtime."))
                .map(|rest| format!("bedrock.{rest}"));
            if let Some(host) = control {
                let _ = url.set_host(Some(&host));
            }
            push_path(&mut url, root_of(family, base), path);
        }
    }
    url
}

fn secret(prefix: &str, key: &str) -> Value {
    // Exactly sized, so that no reallocation leaves a copy behind.
    let mut text = String::with_capacity(prefix.len() + key.len());
    text.push_str(prefix);
    text.push_str(key);
    Value::Secret(SecretString::from(text))
}

/// The headers of every request, with the key where the type wants it.
pub(super) fn headers(kind: ProviderType, key: Option<&str>, has_body: bool) -> Vec<Header> {
    let mut headers: Vec<Header> = vec![
        ("accept", Value::Plain("application/json".into())),
        ("user-agent", Value::Plain(concat!("providerd/", env!("CARGO_PKG_VERSION")).into())),
    ];
    if has_body {
        headers.push(("content-type", Value::Plain("application/json".into())));
    }
    let auth = &family(kind).auth;
    let plain = |(name, value): &(&'static str, &'static str)| (*name, Value::Plain((*value).into()));
    headers.extend(auth.always.iter().map(plain));
    let Some(key) = key.map(clean_key).filter(|key| is_sendable(key) && auth.sends(key)) else {
        return headers;
    };
    let token = auth.tokens.filter(|(prefix, _)| key.starts_with(prefix));
    if let Some((_, beside)) = token {
        headers.extend(beside.iter().map(plain));
    }
    headers.push(match auth.header {
        KeyHeader::Named(name) if token.is_none() => (name, secret("", key)),
        _ => ("authorization", secret("Bearer ", key)),
    });
    headers
}

pub(super) fn request(
    kind: ProviderType,
    method: Method,
    url: Url,
    key: Option<&str>,
    body: Option<&str>,
    max_body: usize,
) -> Request {
    Request { method, url, headers: headers(kind, key, body.is_some()), body: body.map(Into::into), max_body }
}

/// The origin of a URL: what the caps are about.
pub fn origin_of(url: &Url) -> Arc<str> {
    url.origin().ascii_serialization().into()
}
