//! Who may use the pages' calls: an admin token, or the browser of an administrator that Ops-Center or a proxy vouches for.
//!
//! A session is vouched for by the URL in `pages.session.url`, which is asked with the cookie alone; a proxy's word is a
//! header, believed from the addresses in `pages.proxy.peers` alone. Not its job: what may be done once inside.
//! Invariants: without a token, and with nothing set, the door is closed; a cookie reaches one URL and no log; a browser's
//! write is accepted only from a page of the same site, since cookies travel by themselves; what is remembered is bounded
//! and short-lived.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use secrecy::SecretString;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::Instant};
use tracing::debug;
use url::Url;

use net::{PhaseLimits, probe::Prober, server::PeerAddress};

use crate::{
    admin::{
        AdminShared,
        auth::{self, Caller},
        error::ApiError,
    },
    config::Pages,
};

/// How long a session that was vouched for is not asked about again, and one that was not.
const GOOD_FOR: Duration = Duration::from_secs(15);
const BAD_FOR: Duration = Duration::from_secs(3);
/// Sessions that are remembered; an installation has tens of administrators.
const REMEMBERED: usize = 1024;
/// Questions about sessions at once: what is made up by strangers must not flood Ops-Center.
const ASKING: usize = 8;
/// Bytes of a cookie's value.
const MAX_COOKIE: usize = 4096;
/// Bytes of an answer about a session.
const MAX_ANSWER: usize = 64 * 1024;
/// Characters of a user's name in the audit trail.
const MAX_WHO: usize = 64;

/// Who may use the pages without a token.
pub struct PageAccess {
    url: Option<Url>,
    cookie: String,
    roles: Vec<String>,
    header: Option<String>,
    header_roles: Vec<String>,
    peers: Vec<IpAddr>,
    known: Mutex<HashMap<[u8; 32], PageSession>>,
    asking: Semaphore,
}

/// What was said about a session.
#[derive(Debug, Clone)]
struct PageSession {
    until: Instant,
    verdict: PageVouched,
}

/// What the introspection said about a session.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PageVouched {
    /// An administrator of this name.
    Admin(String),
    /// A user without the role.
    Other,
    /// There is no such session.
    Unknown,
}

impl PageAccess {
    /// The settings are checked: what cannot be read here is as if it were not set.
    pub fn new(settings: &Pages) -> Self {
        let address = |text: &String| text.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        Self {
            url: settings.session_url.as_deref().and_then(|url| Url::parse(url).ok()),
            cookie: settings.session_cookie.clone(),
            roles: settings.session_roles.clone(),
            header: settings.proxy_header.as_deref().map(str::to_ascii_lowercase),
            header_roles: settings.proxy_roles.clone(),
            peers: settings.proxy_peers.iter().filter_map(address).collect(),
            known: Mutex::default(),
            asking: Semaphore::new(ASKING),
        }
    }

    /// Whether a browser may come in without a token.
    pub fn is_open(&self) -> bool {
        self.url.is_some() || (self.header.is_some() && !self.peers.is_empty())
    }

    /// What the proxy in front says of this request; `None`: nothing that counts.
    fn proxied(&self, peer: Option<IpAddr>, headers: &HeaderMap) -> Option<PageVouched> {
        let name = self.header.as_deref()?;
        if !self.peers.contains(&peer?.to_canonical()) {
            return None;
        }
        let mut values = headers.get_all(name).iter();
        // Two of them: one may have come through.
        let (Some(value), None) = (values.next(), values.next()) else { return None };
        let roles = value.to_str().ok()?;
        let admin = roles.split(',').any(|role| self.header_roles.iter().any(|known| known == role.trim()));
        Some(if admin { PageVouched::Admin("proxy".to_owned()) } else { PageVouched::Other })
    }

    /// What is said of this session: remembered, or asked now.
    async fn session(&self, value: &str, prober: &Prober) -> Result<PageVouched, ApiError> {
        let Some(url) = &self.url else { return Ok(PageVouched::Unknown) };
        let id: [u8; 32] = Sha256::digest(value.as_bytes()).into();
        if let Some(verdict) = self.remembered(&id, Instant::now()) {
            return Ok(verdict);
        }
        let unavailable = ApiError::Unavailable("the session cannot be checked now");
        let Ok(_place) = self.asking.acquire().await else { return Err(unavailable) };
        // Another request of the same page may have asked meanwhile.
        if let Some(verdict) = self.remembered(&id, Instant::now()) {
            return Ok(verdict);
        }
        let cookie = SecretString::from(format!("{}={value}", self.cookie));
        let request = provider::Request {
            method: provider::Method::Get,
            url: url.clone(),
            headers: vec![
                ("accept", provider::Value::Plain("application/json".to_owned())),
                ("cookie", provider::Value::Secret(cookie)),
            ],
            body: None,
            max_body: MAX_ANSWER,
        };
        let limits = PhaseLimits { total: Duration::from_secs(5), ..PhaseLimits::default() };
        let verdict = match prober.send(&request, limits).await {
            Ok(answer) => match answer.status {
                200 if !answer.truncated => vouched(&answer.body, &self.roles),
                401 | 403 | 404 => PageVouched::Unknown,
                status => {
                    tracing::warn!(status, "pages.session.url gave no answer about a session");
                    return Err(unavailable);
                }
            },
            Err(error) => {
                tracing::warn!(%error, "pages.session.url cannot be asked about a session");
                return Err(unavailable);
            }
        };
        self.remember(id, &verdict, Instant::now());
        Ok(verdict)
    }

    fn remembered(&self, id: &[u8; 32], now: Instant) -> Option<PageVouched> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(id).filter(|known| known.until > now).map(|known| known.verdict.clone())
    }

    fn remember(&self, id: [u8; 32], verdict: &PageVouched, now: Instant) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= REMEMBERED {
            known.retain(|_, known| known.until > now);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let good = matches!(verdict, PageVouched::Admin(_));
        let until = now + if good { GOOD_FOR } else { BAD_FOR };
        known.insert(id, PageSession { until, verdict: verdict.clone() });
    }
}

/// What an answer about a session says: roles and name stand at its top, or in its `user`.
fn vouched(body: &[u8], roles: &[String]) -> PageVouched {
    let Ok(Value::Object(top)) = serde_json::from_slice::<Value>(body) else { return PageVouched::Unknown };
    // Some answer 200 to every session.
    let denied = |name: &str| top.get(name).is_some_and(|value| value == &Value::Bool(false));
    if denied("valid") || denied("authenticated") || denied("active") {
        return PageVouched::Unknown;
    }
    let places = || [Some(&top), top.get("user").and_then(Value::as_object)].into_iter().flatten();
    let has = |value: &Value| match value {
        Value::String(role) => roles.contains(role),
        Value::Array(list) => {
            list.iter().filter_map(Value::as_str).any(|role| roles.iter().any(|it| it == role))
        }
        _ => false,
    };
    let named = |place: &serde_json::Map<String, Value>| {
        ["role", "roles", "groups"].iter().filter_map(|name| place.get(*name)).any(has)
    };
    if !places().any(named) {
        return PageVouched::Other;
    }
    let who = ["user_id", "id", "sub", "username", "email"]
        .iter()
        .flat_map(|name| places().filter_map(move |place| place.get(*name)))
        .find_map(|value| match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
    let tidy = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_WHO).collect::<String>();
    PageVouched::Admin(format!("session {}", who.map_or_else(|| "without a name".to_owned(), tidy)))
}

/// The value of the one cookie of this name.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let texts = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut found = texts
        .flat_map(|text| text.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(found, _)| *found == name)
        .map(|(_, value)| value.trim());
    let (value, None) = (found.next()?, found.next()) else { return None };
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b';');
    let usable = !value.is_empty() && value.len() <= MAX_COOKIE && value.bytes().all(plain);
    usable.then_some(value)
}

/// Whether a browser says that its own page of the same site sent this; the names were compared before (`guard`).
fn from_own_page(headers: &HeaderMap) -> bool {
    headers.contains_key(header::ORIGIN)
        || headers.get("sec-fetch-site").is_some_and(|site| site == "same-origin")
}

/// A caller that is known by name: each has its own count of key tests.
fn caller(who: String) -> Caller {
    let digest = Sha256::digest(who.as_bytes());
    let small = digest.iter().take(2).fold(0, |sum, byte| sum * 256 + usize::from(*byte));
    // Above every token's place in its list.
    Caller { index: (1 << 20) + small, who }
}

/// Who sent this: method, headers and address of the connection.
async fn admitted(
    shared: &AdminShared,
    method: &Method,
    headers: &HeaderMap,
    peer: Option<IpAddr>,
) -> Result<Caller, ApiError> {
    let access = &shared.pages;
    // Pages send whatever stands in their storage, the word "null" for one: a token that is not known says nothing.
    let refused = match shared.tokens.authenticate(headers) {
        Ok(caller) => return Ok(caller),
        Err(error) => error,
    };
    if !access.is_open() {
        return Err(refused);
    }
    let verdict = match access.proxied(peer, headers) {
        Some(verdict) => verdict,
        None => match cookie(headers, &access.cookie) {
            Some(value) => access.session(value, &shared.prober).await?,
            None => PageVouched::Unknown,
        },
    };
    match verdict {
        PageVouched::Admin(_) if !method.is_safe() && !from_own_page(headers) => Err(ApiError::ForeignHost(
            "a browser's write must carry an Origin header; hint: programs send an admin token",
        )),
        PageVouched::Admin(who) => Ok(caller(who)),
        PageVouched::Other => Err(ApiError::NotAdmin),
        PageVouched::Unknown => Err(ApiError::Unauthorized),
    }
}

/// Lets admin tokens and administrators' browsers through, and traces every call.
pub(in crate::admin) async fn authorize(
    State(shared): State<AdminShared>,
    request: Request,
    next: Next,
) -> Response {
    let began = Instant::now();
    let peer = request.extensions().get::<PeerAddress>().map(|peer| peer.0.ip());
    // Copies: a body is not shared between threads, and so neither is the request while a session is asked about.
    let (method, headers) = (request.method().clone(), request.headers().clone());
    match admitted(&shared, &method, &headers, peer).await {
        Ok(caller) => auth::pass(request, next, caller, began, "a page's call").await,
        Err(error) => {
            debug!(error = ?error, "a page's call was turned away");
            error.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn roles() -> Vec<String> {
        vec!["admin".to_owned(), "system_admin".to_owned()]
    }

    #[test]
    fn an_answer_about_a_session_is_believed_by_its_roles() {
        let check = |body: Value, expected: &PageVouched| {
            assert_eq!(vouched(body.to_string().as_bytes(), &roles()), *expected, "{body}");
        };
        let ada = PageVouched::Admin("session u-1".to_owned());
        check(json!({ "role": "admin", "user_id": "u-1" }), &ada);
        check(json!({ "user": { "role": "system_admin", "sub": "u-1" } }), &ada);
        check(json!({ "user": { "roles": ["viewer", "admin"], "id": "u-1" } }), &ada);
        check(
            json!({ "groups": ["admin"], "user": "x" }),
            &PageVouched::Admin("session without a name".to_owned()),
        );
        check(json!({ "role": "viewer", "user_id": "u-2" }), &PageVouched::Other);
        check(json!({ "role": "administrator" }), &PageVouched::Other);
        check(json!({ "org_role": "admin" }), &PageVouched::Other);
        check(json!({ "valid": false, "role": "admin" }), &PageVouched::Unknown);
        check(json!(["admin"]), &PageVouched::Unknown);
        assert_eq!(vouched(b"<html>admin</html>", &roles()), PageVouched::Unknown);
    }

    #[test]
    fn one_cookie_of_the_name_is_wanted() {
        let check = |values: &[&str], expected: Option<&str>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::COOKIE, value.parse().unwrap());
            }
            assert_eq!(cookie(&headers, "session_token"), expected, "{values:?}");
        };
        check(&["session_token=abc"], Some("abc"));
        check(&["theme=dark; session_token=a.b-c; x=y"], Some("a.b-c"));
        check(&["theme=dark", "session_token=abc="], Some("abc="));
        check(&["session_token=abc; session_token=def"], None);
        check(&["xsession_token=abc"], None);
        check(&["session_token="], None);
        check(&["session_token=a b"], None);
        check(&[], None);
    }

    #[test]
    fn a_header_is_believed_from_the_proxy_alone() {
        let access = PageAccess {
            url: None,
            cookie: "session_token".to_owned(),
            roles: roles(),
            header: Some("x-auth-role".to_owned()),
            header_roles: roles(),
            peers: vec!["10.0.0.7".parse().unwrap()],
            known: Mutex::default(),
            asking: Semaphore::new(1),
        };
        let check = |peer: Option<&str>, values: &[&str], expected: Option<PageVouched>| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("X-Auth-Role", value.parse().unwrap());
            }
            let peer = peer.map(|peer| peer.parse().unwrap());
            assert_eq!(access.proxied(peer, &headers), expected, "{peer:?} {values:?}");
        };
        let admin = || Some(PageVouched::Admin("proxy".to_owned()));
        check(Some("10.0.0.7"), &["admin"], admin());
        check(Some("::ffff:10.0.0.7"), &["viewer, admin"], admin());
        check(Some("10.0.0.7"), &["viewer"], Some(PageVouched::Other));
        check(Some("10.0.0.7"), &["admin", "admin"], None);
        check(Some("10.0.0.7"), &[], None);
        check(Some("10.0.0.8"), &["admin"], None);
        check(None, &["admin"], None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_remembered_for_a_short_time_and_not_without_end() {
        let access = PageAccess {
            url: None,
            cookie: String::new(),
            roles: roles(),
            header: None,
            header_roles: roles(),
            peers: Vec::new(),
            known: Mutex::default(),
            asking: Semaphore::new(1),
        };
        let (now, admin) = (Instant::now(), PageVouched::Admin("session u".to_owned()));
        access.remember([1; 32], &admin, now);
        access.remember([2; 32], &PageVouched::Unknown, now);
        assert_eq!(access.remembered(&[1; 32], now + Duration::from_secs(14)), Some(admin.clone()));
        assert_eq!(access.remembered(&[1; 32], now + GOOD_FOR), None);
        assert_eq!(access.remembered(&[2; 32], now + Duration::from_secs(2)), Some(PageVouched::Unknown));
        assert_eq!(access.remembered(&[2; 32], now + BAD_FOR), None);
        for at in 0..5_000_u16 {
            let mut id = [0; 32];
            id[..2].copy_from_slice(&at.to_be_bytes());
            access.remember(id, &admin, now);
        }
        assert!(access.known.lock().unwrap().len() <= REMEMBERED);
        assert!(!access.is_open());
    }
}
