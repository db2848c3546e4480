//! The dashboard: the files under `assets`, built into the program and served as they are.
//!
//! Not its job: data. The page reads the admin API like any other client, with a token that its user types in.
//! Invariant: nothing here depends on a request but its `If-None-Match`; no file names another origin, and the
//! policy sent with each forbids inline scripts, inline styles and every host but this one.

use std::{fmt::Write as _, sync::LazyLock};

use axum::{
    Json, Router,
    extract::Path,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::guard::secured;

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

/// One file of the page.
struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

macro_rules! assets {
    ($($name:literal: $kind:ident),+ $(,)?) => {
        &[$(Asset { name: $name, kind: $kind, bytes: include_bytes!(concat!("../../web/", $name)) }),+]
    };
}

const ASSETS: &[Asset] = assets! {
    "index.html": HTML,
    "app.css": STYLE,
    "icon.svg": IMAGE,
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "charts.js": SCRIPT,
    "dom.js": SCRIPT,
    "events-list.js": SCRIPT,
    "format.js": SCRIPT,
    "status.js": SCRIPT,
    "store.js": SCRIPT,
    "theme.js": SCRIPT,
    "timechart.js": SCRIPT,
    "view-events.js": SCRIPT,
    "view-explain.js": SCRIPT,
    "view-held.js": SCRIPT,
    "view-models.js": SCRIPT,
    "view-overview.js": SCRIPT,
    "view-provider.js": SCRIPT,
    "view-providers.js": SCRIPT,
    "view-routes.js": SCRIPT,
    "view-usage.js": SCRIPT,
};

/// The `ETag` of each asset, in their order: strong, because the bytes are what is hashed.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| ASSETS.iter().map(|asset| tag(asset.bytes)).collect());

fn tag(bytes: &[u8]) -> String {
    // Half of SHA-256 is far more than telling two builds apart needs.
    let mut text = String::from("\"");
    for byte in Sha256::digest(bytes).iter().take(16) {
        let _ = write!(text, "{byte:02x}");
    }
    text.push('"');
    text
}

/// `GET /` and `GET /assets/{name}`; public, because they hold no data.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new().route("/", get(async |headers: HeaderMap| serve("index.html", &headers))).route(
        "/assets/{name}",
        get(async |Path(name): Path<String>, headers: HeaderMap| serve(&name, &headers)),
    )
}

fn serve(name: &str, request: &HeaderMap) -> Response {
    let found = ASSETS.iter().zip(TAGS.iter()).find(|(asset, _)| asset.name == name);
    let Some((asset, tag)) = found else {
        let error = json!({ "error": { "code": "not-found", "message": "there is nothing at this path" } });
        return (StatusCode::NOT_FOUND, Json(error)).into_response();
    };
    let mut response = if is_known(request, tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, asset.kind)], asset.bytes).into_response()
    };
    let headers = response.headers_mut();
    secured(headers);
    // Asked for each time: modules of two builds must not meet in one page.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Ok(value) = HeaderValue::from_str(tag) {
        headers.insert(header::ETAG, value);
    }
    response
}

/// Whether the client has these bytes already. Compared weakly, as `If-None-Match` is.
fn is_known(request: &HeaderMap, tag: &str) -> bool {
    let sent = request.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    sent.flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|one| one == "*" || one.trim_start_matches("W/") == tag)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::guard::CONTENT_SECURITY_POLICY;

    fn asked(name: &str, known: Option<&str>) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(known) = known {
            headers.insert(header::IF_NONE_MATCH, known.parse().unwrap());
        }
        serve(name, &headers)
    }

    fn text(asset: &Asset) -> &'static str {
        std::str::from_utf8(asset.bytes).unwrap()
    }

    #[test]
    fn every_file_of_the_directory_is_served() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/web");
        let entries = std::fs::read_dir(directory).unwrap();
        let there: BTreeSet<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(there, ASSETS.iter().map(|asset| asset.name.to_owned()).collect());
        for asset in ASSETS {
            let response = asked(asset.name, None);
            assert_eq!(response.status(), StatusCode::OK);
            assert_eq!(response.headers()[header::CONTENT_TYPE], asset.kind);
            assert_eq!(response.headers()[header::CONTENT_SECURITY_POLICY], CONTENT_SECURITY_POLICY);
        }
        assert_eq!(asked("../page.rs", None).status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn known_bytes_are_not_sent_again() {
        let tag = asked("app.js", None).headers()[header::ETAG].to_str().unwrap().to_owned();
        let check = |known: &str, expected: StatusCode| {
            let response = asked("app.js", Some(known));
            assert_eq!(response.status(), expected, "{known}");
            assert_eq!(response.headers()[header::ETAG], *tag);
        };
        check(&tag, StatusCode::NOT_MODIFIED);
        check(&format!("\"other\", W/{tag}"), StatusCode::NOT_MODIFIED);
        check("*", StatusCode::NOT_MODIFIED);
        check("\"other\"", StatusCode::OK);
        check(&tag.replace('"', ""), StatusCode::OK);
    }

    #[test]
    fn no_file_reaches_outside_or_takes_markup() {
        // The namespace of SVG is a name, not an address that anything fetches.
        let named = ["http://www.w3.org/2000/svg"];
        for asset in ASSETS {
            let mut text = text(asset).to_owned();
            for name in named {
                text = text.replace(name, "");
            }
            for outside in ["http://", "https://", "//cdn", "@import", "indexedDB", "document.cookie"] {
                assert!(!text.contains(outside), "{} names {outside}", asset.name);
            }
            // The token is kept for the tab, in one place.
            assert!(!text.contains("sessionStorage") || asset.name == "app.js", "{}", asset.name);
            for markup in [
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "new Function",
                "DOMParser",
            ] {
                assert!(!text.contains(markup), "{} uses {markup}", asset.name);
            }
        }
    }

    #[test]
    fn nothing_is_inline() {
        let page = text(&ASSETS[0]);
        assert!(!page.contains("style="), "a style attribute is refused by the policy");
        assert!(!page.contains("<style"));
        for script in page.split("<script").skip(1) {
            let (tag, rest) = script.split_once('>').unwrap();
            assert!(tag.contains(" src=\"/assets/"), "{tag}");
            assert!(rest.starts_with("</script>"), "{tag}");
        }
        for handler in [" onclick", " onload", " onerror", "javascript:"] {
            assert!(!page.contains(handler), "{handler}");
        }
    }

    #[test]
    fn modules_import_only_what_is_served() {
        for asset in ASSETS.iter().filter(|asset| asset.kind == SCRIPT) {
            for line in text(asset).lines().filter(|line| line.starts_with("import ")) {
                let name = line.rsplit("\"./").next().unwrap().trim_end_matches("\";");
                assert!(ASSETS.iter().any(|other| other.name == name), "{}: {line}", asset.name);
            }
        }
    }
}
