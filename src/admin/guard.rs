//! What holds for every request and every answer: headers, hosts, time, and that a panic is an answer too.
//!
//! Invariant: every failure is `{"error":{"code","message"}}`, and every answer carries the security headers.

use std::{net::IpAddr, panic::AssertUnwindSafe, time::Duration};

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures_util::FutureExt as _;

use super::{AdminShared, error::ApiError, llm};

/// Longer than any answer takes, but for the key test, which has a limit of its own below this one.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// Nothing but the page's own files and its own API; no frame, no form, no base, nothing inline.
pub(super) const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What every answer of the API and of the page carries unless its handler says otherwise.
const HEADERS: [(HeaderName, &str); 7] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// The outermost layer.
pub(super) async fn guard(State(shared): State<AdminShared>, request: Request, next: Next) -> Response {
    answer(&shared.hosts, request, next).await
}

async fn answer(hosts: &Hosts, request: Request, next: Next) -> Response {
    let page = llm::is_below(request.uri().path());
    let answered = AssertUnwindSafe(async {
        foreign(hosts, request.method(), request.uri(), request.headers())?;
        tokio::time::timeout(TIME_LIMIT, next.run(request)).await.map_err(|_| ApiError::Timeout)
    });
    // The panic hook has logged where; unwind safety: nothing of the request is looked at any more.
    let mut response = match answered.catch_unwind().await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => error.into_response(),
        Err(_) => ApiError::Internal.into_response(),
    };
    if (response.status().is_client_error() || response.status().is_server_error())
        && !is_json(response.headers())
    {
        // The framework's own words, as plain text: for instance about a path that is no UTF-8.
        response = ApiError::Refused(response.status()).into_response();
    }
    if page && (response.status().is_client_error() || response.status().is_server_error()) {
        response = llm::with_detail(response).await;
    }
    secured(response.headers_mut());
    response
}

/// Adds the security headers that are not there yet.
pub(super) fn secured(headers: &mut HeaderMap) {
    for (name, value) in HEADERS {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json")
}

/// Which names this server goes by.
#[derive(Debug, Clone, Default)]
pub struct Hosts {
    /// From the settings, in lower case.
    pub named: std::sync::Arc<[String]>,
    /// Names other than `named`, `localhost` and addresses belong to other servers.
    pub strict: bool,
}

impl Hosts {
    fn knows(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        !self.strict
            || bare.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || self.named.contains(&host)
    }
}

/// Turns away what another site makes a browser send: a name that was rebound to our address (DNS rebinding), and
/// writes from a page that is not ours.
fn foreign(hosts: &Hosts, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let authority = uri.authority().map(|authority| authority.as_str().to_owned());
    let given = headers.get(header::HOST).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Some(authority) = authority.or(given) else {
        return Err(ApiError::ForeignHost("the request names no host"));
    };
    if !hosts.knows(host_of(&authority)) {
        return Err(ApiError::ForeignHost(
            "the Host header names another host; hint: add it to server.allowed_hosts",
        ));
    }
    if method.is_safe() {
        return Ok(());
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let from = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, from)| from);
    let ours = from.is_some_and(|from| {
        from.eq_ignore_ascii_case(&authority) || hosts.named.contains(&host_of(from).to_ascii_lowercase())
    });
    if ours { Ok(()) } else { Err(ApiError::ForeignHost("the Origin header names another site")) }
}

/// The authority without its port.
fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        // An IPv6 address has colons of its own, inside brackets.
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.is_empty() => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_and_plain_words_become_answers() {
        use axum::{Router, body::Body, http::StatusCode, middleware, routing::get};
        use hyper::service::Service as _;
        use hyper_util::service::TowerToHyperService;

        async fn falls() -> StatusCode {
            let nothing: Option<u8> = None;
            assert!(nothing.is_some(), "on purpose");
            StatusCode::OK
        }
        let app = Router::new()
            .route("/panic", get(falls))
            .route("/plain", get(async || (StatusCode::BAD_REQUEST, "words of a library")))
            .layer(middleware::from_fn(async |request: Request, next: Next| {
                answer(&Hosts::default(), request, next).await
            }));
        let app = TowerToHyperService::new(app);
        let check = async |path: &str, status: u16, code: &str| {
            let request =
                Request::builder().uri(path).header("Host", "localhost").body(Body::empty()).unwrap();
            let response = app.call(request).await.unwrap();
            assert_eq!(response.status().as_u16(), status);
            assert!(response.headers().contains_key(header::CONTENT_SECURITY_POLICY));
            let body = axum::body::to_bytes(response.into_body(), 10_000).await.unwrap();
            let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(json["error"]["code"], code, "{json}");
        };
        check("/panic", 500, "internal").await;
        check("/plain", 400, "refused").await;
    }

    #[test]
    fn other_names_and_other_sites_are_turned_away() {
        let hosts = Hosts { named: ["pd.example.com".to_owned()].into(), strict: true };
        let check = |method: Method, host: &str, origin: Option<&str>, expected: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let found = foreign(&hosts, &method, &Uri::from_static("/x"), &headers);
            assert_eq!(found.is_ok(), expected, "{method} {host} {origin:?}: {found:?}");
        };
        for host in
            ["127.0.0.1:7411", "[::1]:7411", "localhost", "LOCALHOST:1", "a.localhost", "pd.example.com:80"]
        {
            check(Method::GET, host, None, true);
        }
        for host in ["evil.example.com", "evil.example.com:7411", "127.0.0.1.evil.example.com", "[evil]", ""]
        {
            check(Method::GET, host, None, false);
        }
        check(Method::POST, "localhost:7411", Some("http://localhost:7411"), true);
        check(Method::POST, "localhost:7411", Some("https://pd.example.com"), true);
        check(Method::POST, "localhost:7411", Some("http://localhost:80"), false);
        check(Method::POST, "localhost:7411", Some("https://evil.example.com"), false);
        check(Method::POST, "localhost:7411", Some("null"), false);
        check(Method::GET, "localhost:7411", Some("https://evil.example.com"), true);
        assert!(Hosts::default().knows("anything.example.com"));
    }
}
