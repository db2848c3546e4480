//! The admin API as its users meet it: the real program, real PostgreSQL, real sockets.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::support::{
    fake::{self, Fake},
    http::{Answer, Api, TOKEN, exchange, sha256},
    lab::{BYOK, Lab, PATIENCE, provider},
    targets,
};

/// Clearly no real keys.
const GOOD_KEY: &str = "sk-fake/good+key=0123456789\"abcdefghij";
const BAD_KEY: &str = "sk-fake-bad-key-0123456789-abcdefghij";

/// A provider that knows one key.
struct FakeProvider {
    address: String,
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for FakeProvider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl FakeProvider {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    let mut text = Vec::new();
                    let mut part = [0; 4096];
                    while !text.windows(4).any(|four| four == b"\r\n\r\n") {
                        match stream.read(&mut part).await {
                            Ok(read @ 1..) => text.extend_from_slice(&part[..read]),
                            _ => return,
                        }
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let (status, body) = if text.contains(&format!("Bearer {GOOD_KEY}")) {
                        (
                            200,
                            json!({ "object": "list", "data": [{ "id": "fake-1", "object": "model" }, { "id": "fake-2", "object": "model" }] }),
                        )
                    } else {
                        // Providers like to repeat what they were given.
                        let given =
                            text.lines().find(|line| line.to_ascii_lowercase().starts_with("authorization"));
                        let message = format!("Incorrect API key provided: {}", given.unwrap_or_default());
                        (
                            401,
                            json!({ "error": { "message": message, "type": "invalid_request_error", "code": "invalid_api_key" } }),
                        )
                    };
                    let body = body.to_string();
                    let head = format!(
                        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all((head + &body).as_bytes()).await;
                });
            }
        });
        Self { address, asked, task }
    }

    fn manifest(&self, name: &str, variable: &str) -> String {
        format!(
            "[providers.{name}]\ntype = \"openai\"\nbase_url = \"http://{}/v1\"\npriority = 5\napi_key = {{ env = \"{variable}\" }}\n",
            self.address
        )
    }
}

// ------------------------------------------------------------------------------------------ the catalog

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_shown() {
    let lab = Lab::new().await;
    lab.write(
        "a.toml",
        &provider("alpha", 5)
            .replace("priority", "api_key = { env = \"ALPHA\" }\nconfig = { region = \"eu\" }\npriority"),
    );
    lab.write(
        "b.toml",
        &provider("beta", 7).replace("priority", "enabled = false\napi_key = { env = \"NOBODY\" }\npriority"),
    );
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("ALPHA", GOOD_KEY);
    })
    .await;
    lab.execute("INSERT INTO llm_providers (name, type, enabled, health_status) VALUES ('theirs', 'odd', NULL, 'odd')").await;

    let status = api.wait_for("/api/v1/status", |status| status["providers"]["total"] == 3).await;
    assert_eq!(status["synced"], json!(true), "{status:#}");
    assert_eq!(status["leader"], json!(true));
    assert_eq!(status["database"], json!(true));
    assert_eq!(
        status["providers"],
        json!({ "total": 3, "healthy": 0, "degraded": 0, "unhealthy": 0, "unknown": 2, "disabled": 1 })
    );
    assert_eq!(status["keys"], json!({ "valid": 0, "failed": 0, "error": 0, "pending": 1, "none": 2 }));
    assert_eq!(status["attention"][0]["kind"], "key_missing");
    assert_eq!(status["attention"][0]["provider"], "beta");

    let list = api.get("/api/v1/providers").await.expect(200).json();
    let names: Vec<&str> =
        list["items"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["alpha", "beta", "theirs"]);
    let [alpha, beta, theirs] = [0, 1, 2].map(|at| &list["items"][at]);
    assert_eq!(
        (&alpha["state"], &alpha["key"], &alpha["source"], &alpha["priority"]),
        (&json!("synced"), &json!("pending"), &json!("a.toml:1"), &json!(5))
    );
    assert_eq!((&beta["key"], &beta["enabled"]), (&json!("missing"), &json!(false)));
    assert_eq!(
        (&theirs["state"], &theirs["enabled"], &theirs["health"]),
        (&json!("unmanaged"), &json!(true), &json!("unknown"))
    );

    let detail = api.get("/api/v1/providers/alpha").await.expect(200).json();
    assert_eq!(detail["models"][0]["name"], "alpha-small");
    assert_eq!(detail["config"]["region"], "eu");
    assert_eq!(detail["key_preview"], "sk-fake...ghij");
    assert_eq!(detail["usage"], Value::Null);
    lab.execute("INSERT INTO llm_usage_logs (provider_id, prompt_tokens, completion_tokens, cost_total_usd, success) SELECT id, 10, 5, 0.25, false FROM llm_providers WHERE name = 'alpha'").await;
    let detail = api.get("/api/v1/providers/alpha").await.expect(200).json();
    assert_eq!(
        detail["usage"],
        json!({ "calls": 1, "failures": 1, "prompt_tokens": 10, "completion_tokens": 5, "cost_usd": 0.25 })
    );

    let keys = api.get("/api/v1/llm/providers/keys").await.expect(200).json();
    assert_eq!(keys["total"], json!(3));
    let alpha = &keys["providers"][0];
    let fields: BTreeSet<&str> = alpha.as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = [
        "id",
        "name",
        "provider_type",
        "has_key",
        "key_source",
        "enabled",
        "health_status",
        "test_status",
        "last_tested",
        "key_preview",
        "key_fingerprint",
        "config",
    ];
    assert_eq!(fields, BTreeSet::from(wanted));
    assert_eq!((&alpha["has_key"], &alpha["test_status"]), (&json!(true), &json!("pending")));
    assert_eq!(alpha["key_fingerprint"].as_str().unwrap().len(), 16);
    assert_eq!(keys["providers"][1]["key_preview"], Value::Null);

    let routes = api.get("/api/v1/routes").await.expect(200).json();
    let models: Vec<(&str, bool)> = routes["cells"][0]["models"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["provider"].as_str().unwrap(), it["enabled"].as_bool().unwrap()))
        .collect();
    assert_eq!(models, [("beta", false), ("alpha", true)]);

    // What the database holds next is shown without being asked for.
    lab.write("a.toml", &provider("alpha", 6));
    api.wait_for("/api/v1/providers/alpha", |it| it["priority"] == 6).await;
    lab.write("c.toml", "[providers.broken");
    let status = api.wait_for("/api/v1/status", |status| status["synced"] == false).await;
    assert_eq!(status["manifests"][0]["file"], "c.toml");
    assert!(status["attention"].as_array().unwrap().iter().any(|it| it["kind"] == "invalid"), "{status:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let lab = Lab::new().await;
    for index in 0..25 {
        lab.write(&format!("p{index:02}.toml"), &provider(&format!("p{index:02}"), index));
    }
    let (_daemon, api) = Api::start(&lab).await;
    lab.execute("UPDATE llm_providers SET health_status = 'unhealthy' WHERE name IN ('p07', 'p19')").await;
    api.wait_for("/api/v1/providers?health=unhealthy", |page| page["total"] == 2).await;

    for (path, total) in [
        ("/api/v1/providers?limit=10", 25),
        ("/api/v1/providers?limit=10&sort=health", 25),
        ("/api/v1/providers?limit=1&sort=latency&q=P1", 10),
        ("/api/v1/providers?limit=7&sort=checked&key=none", 25),
        ("/api/v1/models?limit=10", 25),
        ("/api/v1/models?limit=10&provider=p03", 1),
        ("/api/v1/models?provider=nobody", 0),
        ("/api/v1/events?limit=10", 25),
        ("/api/v1/events?limit=10&kind=change&since=2020-01-01T00:00:00%2B01:00", 25),
        ("/api/v1/events?provider=p03", 1),
        ("/api/v1/events?kind=import", 0),
        ("/api/v1/events?provider=%00", 0),
        ("/api/v1/events?since=2199-01-01T00:00:00Z", 0),
    ] {
        let mut seen = BTreeSet::new();
        let mut next: Option<String> = None;
        loop {
            let cursor = next.map(|next| format!("&cursor={next}")).unwrap_or_default();
            let page = api.get(&format!("{path}{cursor}")).await.expect(200).json();
            assert_eq!(page["total"], json!(total), "{path}");
            for item in page["items"].as_array().unwrap() {
                assert!(seen.insert(item["id"].to_string()), "{path}: twice: {item}");
            }
            next = page["next"].as_str().map(str::to_owned);
            if next.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), total, "{path}");
    }
    let worst = api.get("/api/v1/providers?sort=health&limit=3").await.json();
    let names: Vec<&str> =
        worst["items"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["p07", "p19", "p00"]);
    let newest = api.get("/api/v1/events?limit=2").await.json();
    assert!(newest["items"][0]["id"].as_i64() > newest["items"][1]["id"].as_i64());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_is_not_sent_again() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 5));
    let (_daemon, api) = Api::start(&lab).await;
    api.wait_for("/api/v1/status", |status| status["checked_at"].is_string()).await;
    for path in [
        "/api/v1/status",
        "/api/v1/providers",
        "/api/v1/providers/alpha",
        "/api/v1/models",
        "/api/v1/routes",
        "/api/v1/llm/providers/keys",
        "/api/v1/openapi.json",
    ] {
        let first = api.get(path).await.expect(200);
        let tag = first.header("etag").unwrap_or_else(|| panic!("{path}: no tag")).to_owned();
        let again = api.send("GET", path, &[("If-None-Match", &tag)], b"").await.expect(304);
        assert!(again.body.is_empty(), "{path}");
        assert_eq!(again.header("etag"), Some(tag.as_str()));
        let other = api.send("GET", path, &[("If-None-Match", "\"other\"")], b"").await.expect(200);
        assert_eq!(other.header("cache-control"), Some("no-store"));
    }
    let tag = api.get("/api/v1/providers").await.header("etag").unwrap().to_owned();
    lab.write("a.toml", &provider("alpha", 6));
    api.wait_for("/api/v1/providers", |page| page["items"][0]["priority"] == 6).await;
    api.send("GET", "/api/v1/providers", &[("If-None-Match", &tag)], b"").await.expect(200);
}

// ------------------------------------------------------------------------------------------ who may ask

/// Every operation that the document names: method, path with its parameters filled in, template.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.to_uppercase(), path.replace("{name}", "alpha"), operation.clone()));
        }
    }
    assert!(found.len() >= 11, "{found:?}");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_admin_path_wants_a_token() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 5));
    let (daemon, api) = Api::start(&lab).await;
    let open = api.without_token();
    let document = open.get("/api/v1/openapi.json").await.expect(200).json();
    for (method, path, _) in operations(&document) {
        let answer = open.send(&method, &path, &[], b"").await.expect(401);
        assert_eq!(answer.code(), "unauthorized", "{method} {path}");
        assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"));
        for wrong in ["wrong", &TOKEN[1..], &format!("{TOKEN}x"), &sha256(TOKEN)] {
            open.with_token(wrong).send(&method, &path, &[], b"").await.expect(401);
        }
        open.send(&method, &path, &[("Authorization", &format!("Basic {TOKEN}"))], b"").await.expect(401);
        open.send(&method, &format!("{path}?token={TOKEN}"), &[], b"").await.expect(401);
    }
    for path in ["/metrics", "/livez", "/readyz"] {
        open.get(path).await.expect(200);
    }
    assert!(!daemon.log().contains(TOKEN));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_the_api_is_closed_and_says_how_to_open_it() {
    let lab = Lab::new().await;
    let mut daemon = lab.daemon();
    daemon.wait_ready().await;
    let api = Api { address: crate::support::http::address(&daemon), token: Some(TOKEN.to_owned()) };
    let answer = api.get("/api/v1/status").await.expect(403);
    assert_eq!(answer.code(), "admin-closed");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("server.token_sha256"));
    api.get("/livez").await.expect(200);
    api.get("/api/v1/openapi.json").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_come_from_credentials_too() {
    let lab = Lab::new().await;
    let credentials = lab.dir.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("admin_token"), "fake-token-of-a-credential\n").unwrap();
    std::fs::write(credentials.join("admin_token_sha256"), sha256("fake-token-by-its-hash")).unwrap();
    let (daemon, api) = Api::start_with(&lab, |command| {
        command.env("CREDENTIALS_DIRECTORY", &credentials);
    })
    .await;
    for token in [TOKEN, "fake-token-of-a-credential", "fake-token-by-its-hash"] {
        api.with_token(token).get("/api/v1/status").await.expect(200);
        assert!(!daemon.log().contains(token));
    }
    assert!(daemon.log().contains(&sha256(TOKEN)[..8]), "reads are traced by who asked");
    drop(daemon);

    std::fs::write(credentials.join("admin_token"), "short").unwrap();
    let ended = lab.command(&["run"]).env("CREDENTIALS_DIRECTORY", &credentials).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("admin_token") && said.contains("hint"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_sites_and_other_names_are_turned_away() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("PROVIDERD_SERVER__ALLOWED_HOSTS", "pd.example.com");
    })
    .await;
    let port = api.address.rsplit(':').next().unwrap();
    let check = async |host: &str, origin: Option<&str>, status: u16| {
        let mut headers = vec![("Host", host)];
        headers.extend(origin.map(|origin| ("Origin", origin)));
        api.send("POST", "/api/v1/sync", &headers, b"").await.expect(status)
    };
    check(&format!("127.0.0.1:{port}"), None, 202).await;
    check(&format!("localhost:{port}"), Some(&format!("http://localhost:{port}")), 202).await;
    check("pd.example.com", Some("https://pd.example.com"), 202).await;
    assert_eq!(check("evil.example.com", None, 403).await.code(), "foreign-host");
    check(&format!("localhost:{port}"), Some("https://evil.example.com"), 403).await;
    check(&format!("localhost:{port}"), Some("null"), 403).await;
    for path in ["/metrics", "/livez", "/api/v1/openapi.json"] {
        api.without_token().send("GET", path, &[("Host", "evil.example.com")], b"").await.expect(403);
    }
}

// ------------------------------------------------------------------------------------------ failures

/// Method, path, headers, body; status and code of the answer.
type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], &'a [u8], u16, &'a str);

#[tokio::test(flavor = "multi_thread")]
async fn every_failure_is_json_without_internals() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 5));
    let (_daemon, api) = Api::start(&lab).await;
    api.wait_for("/api/v1/providers", |page| page["total"] == 1).await;
    let typed = [("Content-Type", "application/json")];
    let large = vec![b' '; 70_000];
    let long = format!("/api/v1/providers?q={}", "a".repeat(256));
    let test = "/api/v1/llm/providers/keys/test";
    let cases: Vec<Case<'_>> = vec![
        ("GET", "/nothing", &[], b"", 404, "not-found"),
        ("GET", "/api/v1/nothing", &[], b"", 404, "not-found"),
        ("GET", "/api/v1/providers/nobody", &[], b"", 404, "not-found"),
        ("GET", "/api/v1/providers/%00%ff", &[], b"", 404, "not-found"),
        ("GET", "/assets/%ff", &[], b"", 400, "refused"),
        ("POST", "/api/v1/status", &[], b"", 405, "method-not-allowed"),
        ("DELETE", "/api/v1/providers/alpha", &[], b"", 405, "method-not-allowed"),
        ("GET", "/api/v1/sync", &[], b"", 405, "method-not-allowed"),
        ("TRACE", "/metrics", &[], b"", 405, "method-not-allowed"),
        ("BREW", "/api/v1/openapi.json", &[], b"", 405, "method-not-allowed"),
        ("POST", test, &[], b"{}", 415, "media-type"),
        ("POST", test, &[("Content-Type", "text/plain")], b"{}", 415, "media-type"),
        ("POST", test, &typed, b"", 422, "invalid"),
        ("POST", test, &typed, b"{", 422, "invalid"),
        ("POST", test, &typed, b"[]", 422, "invalid"),
        ("POST", test, &typed, b"{\"provider_type\":1}", 422, "invalid"),
        ("POST", test, &typed, b"{\"provider_type\":\"\"}", 422, "invalid"),
        ("POST", test, &typed, b"{\"provider_type\":\"nobody\",\"other\":1}", 400, "unknown-type"),
        ("POST", test, &typed, b"{\"provider_type\":\"nobody\"}", 400, "unknown-type"),
        ("POST", test, &typed, b"{\"provider_type\":\"\\u0000\"}", 400, "unknown-type"),
        ("POST", test, &typed, b"\xff\xfe", 422, "invalid"),
        ("POST", test, &typed, &large, 413, "too-large"),
        ("POST", "/api/v1/suspend", &typed, b"{\"provider\":\"nobody\"}", 404, "not-found"),
        ("POST", "/api/v1/resume", &typed, b"{\"reason\":\"x\"}", 422, "invalid"),
        ("POST", "/api/v1/suspend", &typed, b"[null,null]", 422, "invalid"),
        ("POST", "/api/v1/suspend", &typed, b"{\"checks\":true}", 422, "invalid"),
        ("POST", "/api/v1/resume", &typed, b"{\"checks\":true}", 422, "invalid"),
        ("POST", "/api/v1/suspend", &typed, b"{\"for\":\"2h\"}", 422, "invalid"),
        ("POST", "/api/v1/suspend", &typed, b"{\"checks\":true,\"for\":\"soon\"}", 422, "invalid"),
        ("GET", &long, &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?limit=0", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?limit=501", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?limit=-1", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?limit=", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?limit=1&limit=2", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?health=fine", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?key=fine", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?sort=fine", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/providers?cursor=ZZ", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/models?cursor=%22", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/events?cursor=x", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/events?kind=x", &[], b"", 422, "invalid"),
        ("GET", "/api/v1/events?since=yesterday", &[], b"", 422, "invalid"),
        (
            "GET",
            "/api/v1/events",
            &[("Accept", "text/event-stream"), ("Last-Event-ID", "x")],
            b"",
            422,
            "invalid",
        ),
    ];
    for (method, path, headers, body, status, code) in cases {
        let answer = api.send(method, path, headers, body).await;
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (status, Some("application/json")),
            "{method} {path} {}",
            String::from_utf8_lossy(&answer.raw)
        );
        assert_eq!(answer.code(), code, "{method} {path}");
        let json = answer.json();
        // Ops-Center's pages look for the message as `detail`.
        let page = path.starts_with("/api/v1/llm/");
        assert_eq!(json.as_object().unwrap().len(), 1 + usize::from(page), "{method} {path}");
        assert!(!page || json["detail"] == json["error"]["message"], "{json}");
        assert_eq!(json["error"].as_object().unwrap().len(), 2);
        let message = json["error"]["message"].as_str().unwrap().to_owned();
        for word in ["src/", "panicked", "sqlx", "serde", "axum", "SELECT", "postgres"] {
            assert!(!message.contains(word), "{method} {path}: {message}");
        }
        if status == 405 {
            assert!(answer.header("allow").is_some(), "{method} {path}: {:?}", answer.headers);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_carries_the_security_headers() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start(&lab).await;
    for path in [
        "/metrics",
        "/livez",
        "/nothing",
        "/api/v1/status",
        "/api/v1/openapi.json",
        "/api/v1/providers?limit=0",
    ] {
        for answer in [api.get(path).await, api.without_token().get(path).await] {
            let header = |name| answer.header(name).unwrap_or_else(|| panic!("{path}: no {name}"));
            let policy = header("content-security-policy");
            assert!(
                policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
                "{policy}"
            );
            assert!(!policy.contains("unsafe"), "{policy}");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("x-frame-options"), "DENY");
            assert_eq!(header("referrer-policy"), "no-referrer");
            assert_eq!(header("cache-control"), "no-store");
            assert_eq!(answer.header("access-control-allow-origin"), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_a_connection_by_being_slow() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start(&lab).await;
    // A head that never ends, byte by byte; nothing at all; a body that never comes; an idle connection.
    let drip = {
        let api = api.clone();
        tokio::spawn(async move {
            let mut stream = api.connect().await;
            let request = api.request("GET", "/livez", &[], b"");
            let begun = Instant::now();
            for byte in request.iter().take(30).cycle() {
                if stream.write_all(&[*byte]).await.is_err() || begun.elapsed() > PATIENCE {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            begun.elapsed()
        })
    };
    let silent = api.connect().await;
    let mut idle = api.connect().await;
    idle.write_all(&api.request("GET", "/livez", &[("Connection", "keep-alive")], b"")).await.unwrap();
    let mut bodiless = api.connect().await;
    let head = api.request("POST", "/api/v1/suspend", &[("Content-Type", "application/json")], b"x");
    bodiless.write_all(&head[..head.len() - 1]).await.unwrap();

    for (what, mut stream) in [("silent", silent), ("idle", idle), ("without a body", bodiless)] {
        let mut all = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await;
        assert!(read.is_ok(), "{what}: still open");
        if what == "without a body" {
            Answer::parse(all).unwrap().expect(408);
        }
    }
    assert!(drip.await.unwrap() < PATIENCE);

    // An endless body ends at the limit, whatever was announced.
    let mut endless = api.connect().await;
    let text = String::from_utf8(api.request(
        "POST",
        "/api/v1/suspend",
        &[("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")],
        b"",
    ))
    .unwrap();
    endless.write_all(text.replace("Content-Length: 0\r\n", "").as_bytes()).await.unwrap();
    let chunk = [b"4000\r\n".as_slice(), &[b' '; 0x4000], b"\r\n"].concat();
    for _ in 0..1000 {
        if endless.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, endless.read_to_end(&mut all)).await.unwrap();
    if let Some(answer) = Answer::parse(all) {
        answer.expect(413);
    }
    // A head of megabytes is refused before it is held.
    let mut wide = api.connect().await;
    wide.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
    for _ in 0..200 {
        if wide.write_all(&[b'a'; 0x4000]).await.is_err() {
            break;
        }
    }
    drop(wide);
    api.get("/livez").await.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_idle_connections_shuts_nobody_out_for_long() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start(&lab).await;
    let mut crowd = Vec::new();
    for _ in 0..600 {
        crowd.push(api.connect().await);
    }
    // The places are taken; the slow lose theirs.
    api.get("/livez").await.expect(200);
}

/// One request over a connection that is kept; `false`: it was closed.
async fn asks_again(stream: &mut TcpStream, request: &[u8]) -> bool {
    if stream.write_all(request).await.is_err() {
        return false;
    }
    let mut block = [0; 4096];
    matches!(stream.read(&mut block).await, Ok(1..))
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_make_room_for_those_that_wait() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start(&lab).await;
    let request = api.request("GET", "/livez", &[("Connection", "keep-alive")], b"");
    let mut crowd = Vec::new();
    for _ in 0..512 {
        let mut stream = api.connect().await;
        assert!(asks_again(&mut stream, &request).await);
        crowd.push(stream);
    }
    // They are asked again and again, so that none is ever idle for long enough to be given up.
    let over = Arc::new(AtomicBool::new(false));
    let (told, again) = (over.clone(), request.clone());
    let keeping = tokio::spawn(async move {
        while !told.load(Ordering::SeqCst) {
            let mut kept = Vec::new();
            for mut stream in crowd.drain(..) {
                if asks_again(&mut stream, &again).await {
                    kept.push(stream);
                }
            }
            crowd = kept;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    for _ in 0..6 {
        api.get("/livez").await.expect(200);
    }
    over.store(true, Ordering::SeqCst);
    keeping.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_survived() {
    let lab = Lab::new().await;
    let (mut daemon, api) = Api::start(&lab).await;
    let path = format!("GET /api/v1/providers/{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "a".repeat(20_000));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00".as_slice(),
        b"\0\0\0\0",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/v1/sync HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        path.as_bytes(),
    ] {
        let mut stream = api.connect().await;
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut all = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("an end");
    }
    api.get("/livez").await.expect(200);
    assert!(daemon.is_running());
    assert!(!daemon.log().contains("panic"));
}

// ------------------------------------------------------------------------------------------ acting

#[tokio::test(flavor = "multi_thread")]
async fn maintenance_stops_the_checks_of_one_provider() {
    let lab = Lab::new().await;
    let (fake, other) = (Fake::start().await, Fake::start().await);
    lab.write("alpha.toml", &fake.manifest("alpha", "{ env = \"KEY\" }", ""));
    lab.write("beta.toml", &other.manifest("beta", "{ env = \"KEY\" }", ""));
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("KEY", fake::KEY);
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
    })
    .await;
    let health = "SELECT health_status FROM llm_providers WHERE name = 'alpha'";
    lab.wait_for(health, "healthy").await;
    let order = json!({ "provider": "alpha", "checks": true, "for": "2h", "reason": "new disks" });
    let said = api.post("/api/v1/suspend", &order).await.expect(200).json();
    let until: chrono::DateTime<chrono::Utc> = said["until"].as_str().unwrap().parse().unwrap();
    let left = until - chrono::Utc::now();
    assert!(left > chrono::TimeDelta::minutes(110) && left <= chrono::TimeDelta::hours(2), "{said}");
    let paused =
        |it: &Value| it["notices"].to_string().contains("not checked until") && it["checks_paused"] == true;
    api.wait_for("/api/v1/providers/alpha", paused).await;
    let series = async || String::from_utf8(api.get("/metrics").await.expect(200).body).unwrap();
    let shown = async |wanted: bool| {
        let started = Instant::now();
        while series().await.contains("provider=\"alpha\"") != wanted {
            assert!(started.elapsed() < PATIENCE, "never: its series are there: {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    shown(false).await;
    // It is off, and nobody asks it or says that it is dead, while others go on being checked.
    fake.set_status(503);
    let (asked, others, started) = (fake.seen(), other.seen(), Instant::now());
    while other.seen() < others + 4 {
        assert!(started.elapsed() < PATIENCE, "nobody is checked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let check = "/api/v1/providers/alpha/check";
    let said = api.send("POST", check, &[], b"").await.expect(202).json();
    assert_eq!(said, json!({ "triggered": false }));
    assert_eq!(fake.seen(), asked);
    assert_eq!(lab.value(health).await, "healthy");
    let resume = json!({ "provider": "alpha", "checks": true });
    assert_eq!(api.post("/api/v1/resume", &resume).await.expect(200).json(), json!({ "suspended": false }));
    lab.wait_for(health, "unhealthy").await;
    // One that ends by itself does so.
    let order = json!({ "provider": "alpha", "checks": true, "for": "3s" });
    api.post("/api/v1/suspend", &order).await.expect(200);
    shown(false).await;
    shown(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_now_does_not_wait_for_its_turn_and_the_last_ones_are_told_one_by_one() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    lab.write("alpha.toml", &fake.manifest("alpha", "{ env = \"KEY\" }", ""));
    // A route whose only model is refused its key later on.
    let route = "[[routes]]\nmodels = \"alpha/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n";
    lab.write("routes.toml", route);
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("KEY", fake::KEY);
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1h");
    })
    .await;
    lab.wait_for("SELECT api_key_test_status FROM llm_providers WHERE name = 'alpha'", "valid").await;
    let one = json!({ "total": 1, "without_model": 0, "unproven": 0 });
    api.wait_for("/api/v1/status", |status| status["cells"] == one).await;
    let before = api
        .wait_for("/api/v1/providers/alpha", |it| {
            it["recent_checks"].as_array().is_some_and(|all| all.len() == 1)
        })
        .await;
    assert_eq!(before["recent_checks"][0]["outcome"], "ok", "{before}");
    fake.set_status(503);
    let check = "/api/v1/providers/alpha/check";
    assert_eq!(api.send("POST", check, &[], b"").await.expect(202).json(), json!({ "triggered": true }));
    let after =
        api.wait_for("/api/v1/providers/alpha", |it| it["recent_checks"][0]["outcome"] == "hard").await;
    // The newest first, with why.
    let newest = &after["recent_checks"][0];
    assert!(newest["reason"].as_str().unwrap().contains("503"), "{newest}");
    assert!(newest["took_ms"].is_u64() && newest["at"].is_string(), "{newest}");
    assert_eq!(after["recent_checks"].as_array().unwrap().last().unwrap()["outcome"], "ok");
    assert_eq!(
        api.send("POST", "/api/v1/providers/nobody/check", &[], b"").await.expect(404).code(),
        "not-found"
    );
    let recorded = api.get("/api/v1/events?kind=admin&provider=alpha").await.expect(200).json();
    assert_eq!(recorded["items"][0]["detail"]["call"], "check", "{recorded}");
    // Three in a row, the last two by the fast look again: the cell has no model left, and the metric says so.
    let none = json!({ "total": 1, "without_model": 1, "unproven": 0 });
    api.wait_for("/api/v1/status", |status| status["cells"] == none).await;
    let metrics = String::from_utf8(api.get("/metrics").await.expect(200).body).unwrap();
    assert!(metrics.contains("providerd_route_cells{state=\"without_model\"} 1"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_act_and_are_recorded() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let (_daemon, api) = Api::start(&lab).await;
    api.wait_for("/api/v1/providers/alpha", |it| it["state"] == "synced").await;
    assert_eq!(
        api.send("POST", "/api/v1/sync", &[], b"").await.expect(202).json(),
        json!({ "triggered": true })
    );

    let suspended = api.post("/api/v1/suspend", &json!({ "reason": "a\u{0}b\nc" })).await.expect(200).json();
    assert_eq!(suspended, json!({ "suspended": true }));
    assert_eq!(lab.value("SELECT reason FROM providerd.events WHERE kind = 'suspend'").await, "a b c");
    let status = api.wait_for("/api/v1/status", |status| status["suspended"] == true).await;
    assert_eq!(
        status["attention"].as_array().unwrap().iter().filter(|it| it["kind"] == "suspended").count(),
        1
    );
    lab.write("a.toml", &provider("alpha", 2));
    api.wait_for("/api/v1/providers/alpha", |it| it["state"] == "pending").await;
    assert_eq!(lab.value("SELECT priority FROM llm_providers").await, "1");
    assert_eq!(
        api.post("/api/v1/resume", &json!({ "provider": null })).await.expect(200).json(),
        json!({ "suspended": false })
    );
    lab.wait_for("SELECT priority FROM llm_providers", "2").await;

    api.post("/api/v1/suspend", &json!({ "provider": "alpha" })).await.expect(200);
    api.wait_for("/api/v1/providers/alpha", |it| it["state"] == "suspended").await;
    api.post("/api/v1/resume", &json!({ "provider": "alpha" })).await.expect(200);
    api.wait_for("/api/v1/providers/alpha", |it| it["state"] == "synced").await;

    let admin = api.get("/api/v1/events?kind=admin").await.expect(200).json();
    let calls: Vec<(&str, &Value)> = admin["items"]
        .as_array()
        .unwrap()
        .iter()
        .rev()
        .map(|it| (it["detail"]["call"].as_str().unwrap(), &it["provider"]))
        .collect();
    let (none, alpha) = (Value::Null, json!("alpha"));
    assert_eq!(
        calls,
        [("sync", &none), ("suspend", &none), ("resume", &none), ("suspend", &alpha), ("resume", &alpha)]
    );
    let who = json!(sha256(TOKEN)[..8]);
    assert!(admin["items"].as_array().unwrap().iter().all(|it| it["actor"] == who));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_tested_and_no_secret_comes_out_anywhere() {
    let fake = FakeProvider::start().await;
    let lab = Lab::new().await;
    lab.write("good.toml", &fake.manifest("good", "GOOD"));
    lab.write("bad.toml", &fake.manifest("bad", "BAD").replace("priority = 5", "priority = 1"));
    let (daemon, api) = Api::start_with(&lab, |command| {
        command.env("GOOD", GOOD_KEY).env("BAD", BAD_KEY);
    })
    .await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 2).await;
    // Another program stores a key where it does not belong.
    let config = json!({ "region": "eu", "x": [GOOD_KEY], "y": { "token": BAD_KEY } }).to_string();
    lab.execute(&format!("INSERT INTO llm_providers (name, type, config, api_key_encrypted) SELECT 'theirs', 'openai', '{config}', api_key_encrypted FROM llm_providers WHERE name = 'good'")).await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 3).await;
    let mut answers = Vec::new();
    let mut test = async |body: Value, status: u16| {
        let answer = api.post("/api/v1/llm/providers/keys/test", &body).await.expect(status);
        let json = answer.json();
        answers.push(answer);
        json
    };
    let good = test(json!({ "provider_type": "good" }), 200).await;
    assert_eq!(
        (&good["success"], &good["models_found"], &good["error"]),
        (&json!(true), &json!(2), &Value::Null),
        "{good}"
    );
    assert!(good["latency_ms"].is_u64());
    let bad = test(json!({ "provider_type": "bad" }), 200).await;
    assert_eq!((&bad["success"], &bad["models_found"]), (&json!(false), &Value::Null), "{bad}");
    assert!(bad["error"].as_str().unwrap().starts_with("invalid"), "{bad}");
    // By type: the preferred provider that has a key. A given key is tested in place of the stored one.
    assert_eq!(test(json!({ "provider_type": "openai" }), 200).await["success"], json!(true));
    assert_eq!(
        test(json!({ "provider_type": "good", "api_key": BAD_KEY }), 200).await["success"],
        json!(false)
    );
    assert_eq!(
        test(json!({ "provider_type": "bad", "api_key": GOOD_KEY }), 200).await["success"],
        json!(true)
    );
    let odd = test(json!({ "provider_type": "good", "api_key": "line\nbreak \u{1F511}" }), 200).await;
    assert_eq!(odd["success"], json!(false), "{odd}");
    // Nothing of it is stored.
    assert_eq!(lab.value("SELECT string_agg(api_key_test_status, ',' ORDER BY name) FROM llm_providers WHERE name <> 'theirs'").await, "pending,pending");
    test(json!({ "provider_type": "nobody" }), 400).await;
    for _ in 0..4 {
        test(json!({ "provider_type": "good" }), 200).await;
    }
    let asked = fake.asked.load(Ordering::SeqCst);
    let refused =
        api.post("/api/v1/llm/providers/keys/test", &json!({ "provider_type": "good" })).await.expect(429);
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=61).contains(&wait));
    assert_eq!(fake.asked.load(Ordering::SeqCst), asked);

    let theirs = api.get("/api/v1/providers/theirs").await.expect(200).json();
    assert_eq!(theirs["config"]["region"], "eu");
    // Now everything that can be said is looked through.
    for path in [
        "/api/v1/status",
        "/api/v1/providers",
        "/api/v1/providers/good",
        "/api/v1/providers/bad",
        "/api/v1/providers/theirs",
        "/api/v1/models",
        "/api/v1/routes",
        "/api/v1/events?limit=500",
        "/api/v1/llm/providers/keys",
        "/api/v1/openapi.json",
        "/metrics",
        "/readyz",
        "/nothing",
    ] {
        answers.push(api.get(path).await);
    }
    let key = api
        .send(
            "POST",
            "/api/v1/suspend",
            &[("Content-Type", "application/json")],
            format!("{{\"reason\":{{\"{BAD_KEY}\":1}}}}").as_bytes(),
        )
        .await;
    answers.push(key.expect(422));
    let mut texts: Vec<(String, Vec<u8>)> =
        answers.into_iter().map(|answer| ("an answer".to_owned(), answer.raw)).collect();
    texts.push(("the log".to_owned(), daemon.log().into_bytes()));
    let rows = lab.value("SELECT string_agg(e::text, E'\\n') FROM providerd.events e").await;
    texts.push(("an event".to_owned(), rows.into_bytes()));
    for secret in [GOOD_KEY, BAD_KEY, TOKEN, BYOK] {
        for form in forms(secret) {
            for (what, text) in &texts {
                let found = text.windows(form.len()).position(|part| part == form.as_bytes());
                assert_eq!(found, None, "{what} holds a secret: {}", String::from_utf8_lossy(text));
            }
        }
    }
}

/// A secret as it may slip out: as it is, and in the usual wrappings.
fn forms(secret: &str) -> Vec<String> {
    let url: String = secret
        .bytes()
        .map(|byte| {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect();
    let json = serde_json::to_string(secret).unwrap().trim_matches('"').to_owned();
    let mut forms = vec![secret.to_owned(), url.to_lowercase(), url, json, sha256(secret)];
    // In the middle of other text base64 has three forms; their inner parts are always the same.
    for shift in 0..3 {
        let padded = format!("{}{secret}", "x".repeat(shift));
        let text = STANDARD.encode(padded);
        let inner = text.trim_end_matches('=');
        let inner = inner[4..inner.len() - 3].to_owned();
        forms.push(inner.replace('+', "-").replace('/', "_"));
        forms.push(inner);
    }
    forms
}

// ------------------------------------------------------------------------------------------ the stream of events

/// One who follows the events.
struct Stream {
    stream: TcpStream,
    text: String,
}

impl Stream {
    async fn open(api: &Api, path: &str, last: Option<i64>) -> Self {
        let last = last.map(|last| last.to_string());
        let mut headers = vec![("Accept", "text/event-stream"), ("Connection", "keep-alive")];
        headers.extend(last.as_deref().map(|last| ("Last-Event-ID", last)));
        let mut stream = api.connect().await;
        stream.write_all(&api.request("GET", path, &headers, b"")).await.unwrap();
        let mut opened = Self { stream, text: String::new() };
        opened.wait_for(": providerd").await;
        assert!(opened.text.starts_with("HTTP/1.1 200"), "{}", opened.text);
        assert!(opened.text.contains("content-type: text/event-stream"), "{}", opened.text);
        opened
    }

    async fn wait_for(&mut self, text: &str) {
        let mut part = [0; 4096];
        while !self.text.contains(text) {
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut part)).await;
            let read = read.unwrap_or_else(|_| panic!("no {text:?} in {}", self.text)).unwrap();
            assert!(read > 0, "it ended before {text:?}: {}", self.text);
            self.text += &String::from_utf8_lossy(&part[..read]);
        }
    }

    /// The items that have arrived.
    fn items(&self) -> Vec<Value> {
        self.text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_and_taken_up_again() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    let (daemon, api) = Api::start(&lab).await;
    lab.wait_for("SELECT count(*) FROM providerd.events", "1").await;
    let mut all = Stream::open(&api, "/api/v1/events", None).await;
    let mut beta = Stream::open(&api, "/api/v1/events?provider=beta", None).await;
    lab.write("a.toml", &provider("alpha", 2));
    all.wait_for("\"provider\":\"alpha\"").await;
    lab.write("b.toml", &provider("beta", 2));
    all.wait_for("\"provider\":\"beta\"").await;
    beta.wait_for("\"provider\":\"beta\"").await;
    let items = all.items();
    assert_eq!(items.len(), 2, "only what happened since: {}", all.text);
    assert_eq!(beta.items().len(), 1);
    assert!(all.text.contains(&format!("id: {}\ndata: ", items[1]["id"])));
    let listed = api.get("/api/v1/events?limit=1").await.json();
    assert_eq!(listed["items"][0], items[1], "the stream tells what the list does");

    // A lower number that becomes visible late is not lost.
    let mut late = lab.connect().await;
    sqlx::raw_sql("BEGIN; INSERT INTO providerd.events (kind, reason) VALUES ('import', 'late')")
        .execute(&mut late)
        .await
        .unwrap();
    lab.execute("INSERT INTO providerd.events (kind, reason) VALUES ('import', 'early')").await;
    all.wait_for("early").await;
    sqlx::raw_sql("COMMIT").execute(&mut late).await.unwrap();
    all.wait_for("late").await;

    // Back again: everything after the last one, once.
    let first = items[0]["id"].as_i64().unwrap();
    drop(all);
    let mut again = Stream::open(&api, "/api/v1/events", Some(first)).await;
    again.wait_for("\"early\"").await;
    lab.execute("INSERT INTO providerd.events (kind, reason) VALUES ('import', 'after')").await;
    again.wait_for("\"after\"").await;
    let ids: Vec<i64> = again.items().iter().map(|it| it["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 4, "{ids:?}");

    // The end of the daemon ends the stream, and does not wait for it.
    let stopping = Instant::now();
    assert_eq!(daemon.stop(), 0);
    assert!(stopping.elapsed() < Duration::from_secs(5));
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, again.stream.read_to_end(&mut rest)).await.expect("an end");
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_streams() {
    let lab = Lab::new().await;
    let (_daemon, api) = Api::start(&lab).await;
    let mut streams = Vec::new();
    for _ in 0..32 {
        streams.push(Stream::open(&api, "/api/v1/events", None).await);
    }
    let follow = [("Accept", "application/json;q=0.5, text/event-stream")];
    let refused = api.send("GET", "/api/v1/events", &follow, b"").await.expect(503);
    assert_eq!(refused.code(), "too-many-streams");
    assert!(refused.header("retry-after").is_some());
    // Who leaves makes room.
    streams.pop();
    let started = Instant::now();
    loop {
        let mut stream = api.connect().await;
        stream.write_all(&api.request("GET", "/api/v1/events", &follow, b"")).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        if head == *b"HTTP/1.1 200" {
            break;
        }
        assert!(started.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_checks_find_is_shown_at_once() {
    let fake = Fake::start().await;
    let lab = Lab::new().await;
    let manifest = format!(
        "[providers.fake]\ntype = \"openai\"\nbase_url = \"http://{}/v1\"\napi_key = {{ env = \"FAKE\" }}\n\
         health = {{ interval = \"1s\" }}\n",
        fake.address
    );
    lab.write("a.toml", &manifest);
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("FAKE", fake::KEY).env("PROVIDERD_HEALTH__ENABLED", "true");
    })
    .await;
    let path = "/api/v1/providers/fake";
    let found = api
        .wait_for(path, |it| it["health"] == "healthy" && it["key"] == "valid" && it["history"].is_object())
        .await;
    assert!(found["latency_ms"].is_u64() && found["last_check"].is_string(), "{found:#}");
    assert!(found["next_check"].is_string() && found["health_since"].is_string(), "{found:#}");
    let (day, month) =
        (found["history"]["day"].as_array().unwrap(), found["history"]["month"].as_array().unwrap());
    assert_eq!((day.len(), month.len()), (24, 30));
    assert!(day[23]["ok"].as_u64() > Some(0) && day[23]["p50_ms"].is_u64(), "{}", day[23]);
    assert_eq!(day[0]["p50_ms"], Value::Null);
    let list = api.wait_for("/api/v1/providers", |list| list["items"][0]["strip"].is_array()).await;
    let strip = list["items"][0]["strip"].as_array().unwrap();
    assert_eq!(strip.len(), 24);
    assert_eq!(strip[0], Value::Null);
    assert!(strip[23]["ok"].as_u64() > Some(0));
    let document = api.get("/api/v1/openapi.json").await.json();
    let answer = api.get(path).await;
    check_documented(&document, &document["paths"]["/api/v1/providers/{name}"]["get"], path, &answer);

    // Whoever hears of a change finds it shown.
    let mut stream = Stream::open(&api, "/api/v1/events?kind=health", None).await;
    fake.set_status(503);
    stream.wait_for("\"to\":\"unhealthy\"").await;
    let now = api.get(path).await.json();
    assert_eq!(now["health"], "unhealthy");
    assert!(now["health_reason"].as_str().unwrap().contains("503"), "{now:#}");
    let status = api.get("/api/v1/status").await.json();
    assert_eq!(status["attention"][0]["kind"], "unhealthy", "{status:#}");
}

// ------------------------------------------------------------------------------------------ an outage

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_shown_while_the_database_is_away() {
    let cluster = crate::support::pg::Cluster::start_private(crate::support::pg::Options::default());
    let mut lab = Lab::new().await;
    lab.url = cluster.url("postgres");
    lab.write("a.toml", &provider("alpha", 1));
    let (mut daemon, api) = Api::start_with(&lab, |command| {
        command
            .env("PROVIDERD_DATABASE__CONNECT_TIMEOUT", "1s")
            .env("PROVIDERD_MANIFESTS__RESYNC_INTERVAL", "1s");
    })
    .await;
    api.wait_for("/api/v1/status", |status| status["synced"] == true).await;
    cluster.stop_immediate();
    let status = api.wait_for("/api/v1/status", |status| status["database"] == false).await;
    assert_eq!(status["synced"], json!(false));
    assert_eq!(status["providers"]["total"], json!(1));
    for path in ["/api/v1/providers", "/api/v1/models", "/api/v1/routes", "/api/v1/llm/providers/keys"] {
        api.get(path).await.expect(200);
    }
    for answer in [
        api.get("/api/v1/events").await,
        api.get("/api/v1/providers/alpha").await,
        api.post("/api/v1/sync", &json!({})).await,
    ] {
        assert_eq!(answer.expect(503).code(), "unavailable");
    }
    api.get("/readyz").await.expect(503);
    cluster.start();
    lab.write("a.toml", &provider("alpha", 2));
    api.wait_for("/api/v1/providers/alpha", |it| it["priority"] == 2).await;
    api.wait_for("/api/v1/status", |status| status["synced"] == true).await;
    assert!(daemon.is_running());
}

// ------------------------------------------------------------------------------------------ TLS and sockets

struct Certificate {
    pem: String,
    key: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    Certificate { pem: made.cert.pem(), key: made.signing_key.serialize_pem(), der: made.cert.der().clone() }
}

/// Asks over TLS, trusting this certificate alone.
async fn ask_over_tls(api: &Api, trusted: &Certificate) -> Result<Answer, String> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.der.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, api.connect().await).await.map_err(|error| error.to_string())?;
    Ok(exchange(stream, &api.request("GET", "/api/v1/status", &[], b"")).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_is_served_and_certificates_are_taken_anew() {
    let lab = Lab::new().await;
    let (first, second) = (certificate(), certificate());
    let [pem, key] = ["server.pem", "server.key"].map(|name| lab.dir.path().join(name));
    let put = |path: &std::path::Path, text: &str| {
        let beside = path.with_extension("new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, path).unwrap();
    };
    put(&pem, &first.pem);
    put(&key, &first.key);
    let (mut daemon, api) = Api::start_with(&lab, |command| {
        // TLS is what permits listening on all addresses.
        command.env("PROVIDERD_SERVER__LISTEN", "0.0.0.0:0");
        command.env("PROVIDERD_SERVER__TLS__CERT", &pem).env("PROVIDERD_SERVER__TLS__KEY", &key);
    })
    .await;
    let api = Api { address: api.address.replace("0.0.0.0", "127.0.0.1"), ..api };
    ask_over_tls(&api, &first).await.unwrap().expect(200);
    ask_over_tls(&api, &second).await.unwrap_err();
    // In clear there is nothing to be had.
    let mut clear = api.connect().await;
    clear.write_all(&api.request("GET", "/livez", &[], b"")).await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, clear.read_to_end(&mut all)).await.unwrap();
    assert!(!all.starts_with(b"HTTP"));

    // Files that cannot be used: half of a pair, garbage, nothing.
    for (path, text) in [
        (&pem, second.pem.as_str()),
        (&pem, "garbage"),
        (&pem, ""),
        (&key, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
    ] {
        put(path, text);
        let started = Instant::now();
        loop {
            let status = ask_over_tls(&api, &first).await.unwrap().expect(200).json();
            if status["attention"]
                .as_array()
                .unwrap()
                .iter()
                .any(|it| it["message"].as_str().unwrap().contains("certificate in use"))
            {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{status:#}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    daemon.wait_for_log("the old one stays").await;
    put(&key, &second.key);
    put(&pem, &second.pem);
    let started = Instant::now();
    while ask_over_tls(&api, &second).await.is_err() {
        assert!(started.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = ask_over_tls(&api, &second).await.unwrap().json();
    assert!(!status.to_string().contains("certificate in use"), "{status:#}");
    // Somebody who never ends his handshake is cut off.
    let mut silent = api.connect().await;
    let mut all = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, silent.read_to_end(&mut all)).await.expect("an end");
    assert!(!daemon.log().contains("PRIVATE KEY"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_of_systemd_is_used() {
    let lab = Lab::new().await;
    let start = |address: &str| {
        let listener = std::net::TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        // As systemd does: the socket is descriptor 3, and the variables name this very process.
        nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&listener);
        let template = lab.command(&["run"]);
        let mut command = std::process::Command::new("bash");
        command.arg("-c").arg(format!("exec 3<&{number}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" run"));
        command.arg(template.get_program()).current_dir(lab.dir.path()).env_clear();
        command.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", sha256(TOKEN));
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped());
        (command.spawn().unwrap(), address, listener)
    };
    let (mut child, address, _listener) = start("127.0.0.1:0");
    let api = Api { address: address.to_string(), token: Some(TOKEN.to_owned()) };
    api.get("/livez").await.expect(200);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    child.wait().unwrap();

    // Beyond loopback in clear it is refused, as an address of the settings is.
    let (child, ..) = start("0.0.0.0:0");
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(said.contains("goes beyond loopback without TLS"), "{said}");
}

// ------------------------------------------------------------------------------------------ the document

/// Why a value is not what its schema says; the part of JSON Schema that the document uses.
fn violations(document: &Value, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut wrong = |what: &str| found.push(format!("{at}: {what}: {value}"));
    let schema = match schema["$ref"].as_str() {
        Some(reference) => {
            let target = document.pointer(reference.trim_start_matches('#'));
            return match target {
                Some(schema) => violations(document, schema, value, at, found),
                None => wrong(&format!("{reference} is nowhere")),
            };
        }
        None => schema,
    };
    if let Some(words) = schema["enum"].as_array()
        && !words.contains(value)
    {
        wrong("is not one of the words");
    }
    for some in ["oneOf", "anyOf"] {
        let Some(options) = schema[some].as_array() else { continue };
        let fits = |option: &&Value| {
            let mut problems = Vec::new();
            violations(document, option, value, at, &mut problems);
            problems.is_empty()
        };
        if options.iter().filter(fits).count() == 0 {
            wrong("fits no option");
        }
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("{at}: {other}"),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is(kind)) {
        return wrong(&format!("is no {}", kinds.join(" or ")));
    }
    match value {
        Value::Object(fields) => {
            let known = schema["properties"].as_object();
            for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                if !fields.contains_key(name) {
                    wrong(&format!("lacks {name}"));
                }
            }
            for (name, field) in fields {
                match known.map(|known| known.get(name)) {
                    Some(Some(schema)) => violations(document, schema, field, &format!("{at}.{name}"), found),
                    Some(None) => found.push(format!("{at}: {name} is not documented")),
                    // Free form.
                    None => {}
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                violations(document, &schema["items"], item, &format!("{at}[]"), found);
            }
        }
        Value::String(text) => match schema["format"].as_str() {
            Some("date-time") => {
                chrono::DateTime::parse_from_rfc3339(text).unwrap();
            }
            Some("uuid") => {
                uuid::Uuid::parse_str(text).unwrap();
            }
            _ => {}
        },
        _ => {}
    }
}

/// Whether an answer is one of those that its operation documents.
fn check_documented(document: &Value, operation: &Value, what: &str, answer: &Answer) {
    let responses = &operation["responses"];
    let documented = &responses[answer.status.to_string()];
    assert!(
        documented.is_object(),
        "{what}: {} is not documented: {}",
        answer.status,
        String::from_utf8_lossy(&answer.raw)
    );
    let Some(content) = documented["content"].as_object() else {
        assert!(answer.body.is_empty(), "{what}");
        return;
    };
    let kind = answer.header("content-type").unwrap();
    let schema = &content.get(kind).unwrap_or_else(|| panic!("{what}: {kind} is not documented"))["schema"];
    let mut found = Vec::new();
    violations(document, schema, &answer.json(), what, &mut found);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_is_true() {
    let fake = FakeProvider::start().await;
    let lab = Lab::new().await;
    lab.write("a.toml", &(provider("alpha", 1) + &fake.manifest("good", "GOOD")));
    lab.write("b.toml", &fake.manifest("lacking", "NOBODY"));
    lab.write("c.toml", "[providers.broken");
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("GOOD", GOOD_KEY);
    })
    .await;
    lab.execute("INSERT INTO llm_usage_logs (provider_id, prompt_tokens) SELECT id, 10 FROM llm_providers")
        .await;
    lab.execute("UPDATE llm_models SET avg_latency_ms = 12, cost_per_1m_input_tokens = 0.5").await;
    api.wait_for("/api/v1/status", |status| status["providers"]["total"] == 3).await;
    let document = api.without_token().get("/api/v1/openapi.json").await.expect(200).json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut seen = BTreeSet::new();
    for (method, path, operation) in operations(&document) {
        let what = format!("{method} {path}");
        assert!(operation["summary"].is_string() && operation["operationId"].is_string(), "{what}");
        let mut ask = async |api: &Api, headers: &[(&str, &str)], path: &str, body: &[u8]| {
            let answer = api.send(&method, path, headers, body).await;
            seen.insert((
                method.clone(),
                path.split('?').next().unwrap_or_default().to_owned(),
                answer.status,
            ));
            check_documented(&document, &operation, &what, &answer);
        };
        ask(&api.without_token(), &[], &path, b"").await;
        ask(&api, &[("Host", "evil.example.com")], &path, b"").await;
        ask(&api, &[], &path, b"").await;
        if method == "GET" {
            ask(&api, &[("If-None-Match", "*")], &path, b"").await;
            ask(&api, &[], &format!("{path}?limit=1"), b"").await;
        } else {
            let typed = [("Content-Type", "application/json")];
            for body in [
                "{",
                "{}",
                "{\"provider\":null}",
                "{\"provider\":\"good\"}",
                "{\"provider\":\"nobody\"}",
                "{\"provider_type\":\"good\"}",
                "{\"provider_type\":\"nobody\"}",
            ] {
                ask(&api, &typed, &path, body.as_bytes()).await;
            }
            if operation["requestBody"].is_object() {
                ask(&api, &typed, &path, &[b' '; 70_000]).await;
            }
        }
    }
    // The list above reached what is documented, but for what needs a fault or a minute.
    for name in ["good", "lacking", "nobody"] {
        let answer = api.get(&format!("/api/v1/providers/{name}")).await;
        check_documented(&document, &document["paths"]["/api/v1/providers/{name}"]["get"], name, &answer);
    }
    let statuses: BTreeSet<u16> = seen.iter().map(|(_, _, status)| *status).collect();
    assert_eq!(statuses, BTreeSet::from([200, 202, 304, 400, 401, 403, 404, 413, 415, 422]), "{seen:?}");
    for (_, _, operation) in operations(&document) {
        for status in operation["responses"].as_object().unwrap().keys() {
            assert!(
                [
                    "200", "202", "304", "400", "401", "403", "404", "408", "409", "413", "415", "422",
                    "429", "500", "503"
                ]
                .contains(&status.as_str()),
                "{status}"
            );
        }
    }
}

// ------------------------------------------------------------------------------------------ load, embedded

/// One who asks for the keys again and again over one connection.
struct Reader {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Reader {
    async fn new(api: &Api) -> Self {
        let keep = [("Connection", "keep-alive")];
        let request = api.request("GET", "/api/v1/llm/providers/keys", &keep, b"");
        Self { stream: api.connect().await, request, buffer: vec![0; 1024 * 1024] }
    }

    /// Bytes of the answer's body.
    async fn ask(&mut self) -> usize {
        self.stream.write_all(&self.request).await.unwrap();
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await.unwrap();
            assert!(read > 0, "the connection was closed");
            filled += read;
            let text = &self.buffer[..filled];
            let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
            assert!(text.starts_with(b"HTTP/1.1 200"));
            let head = String::from_utf8_lossy(&text[..end]).to_ascii_lowercase();
            let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap();
            let length: usize = length.parse().unwrap();
            if filled == end + 4 + length {
                return length;
            }
        }
    }
}

/// A daemon with a hundred providers, each with a key.
async fn hundred(lab: &Lab) -> (crate::support::lab::Daemon, Api) {
    for index in 0..100 {
        let name = format!("p{index:03}");
        lab.write(
            &format!("{name}.toml"),
            &provider(&name, index).replace("priority", "api_key = { env = \"KEY\" }\npriority"),
        );
    }
    let (daemon, api) = Api::start_with(lab, |command| {
        command.env("KEY", GOOD_KEY).env("RUST_LOG", "info");
    })
    .await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 100).await;
    (daemon, api)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_are_answered_without_an_error() {
    let lab = Lab::new().await;
    let (_daemon, api) = hundred(&lab).await;
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = Reader::new(&api).await;
        readers.push(tokio::spawn(async move {
            for _ in 0..100 {
                assert!(reader.ask().await > 10_000);
            }
        }));
    }
    // Meanwhile the catalog changes.
    lab.write("p000.toml", &provider("p000", 1000));
    for reader in readers {
        reader.await.unwrap();
    }
}

/// The promise in figures; for a quiet machine: `cargo test --release --test it -- api:: --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "half a minute of load"]
async fn two_thousand_requests_a_second_for_half_a_minute() {
    const RATE: u32 = 2_000;
    const READERS: u32 = 32;
    let time = Duration::from_secs(30);
    let lab = Lab::new().await;
    let (listener, port) = targets::listen().await;
    let providers = tokio::spawn(targets::serve(listener, |_| false));
    targets::write_manifests(&lab.manifests(), 100, port, "api_key = { env = \"KEY\" }");
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("KEY", targets::KEY).env("RUST_LOG", "info");
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
    })
    .await;
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE health_status = 'healthy'", "100").await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 100).await;
    let address = api.address.parse().unwrap();
    let before = targets::fetch(address, "/metrics").await;
    let begin = tokio::time::Instant::now();
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut reader = Reader::new(&api).await;
        readers.push(tokio::spawn(async move {
            let mut took = Vec::new();
            let mut ticks = tokio::time::interval(Duration::from_secs(1) * READERS / RATE);
            while begin.elapsed() < time {
                ticks.tick().await;
                let asked = Instant::now();
                reader.ask().await;
                took.push(asked.elapsed());
            }
            took
        }));
    }
    let mut took = Vec::new();
    for reader in readers {
        took.extend(reader.await.unwrap());
    }
    took.sort_unstable();
    let rate = took.len() as f64 / begin.elapsed().as_secs_f64();
    let at = |share: f64| took[(took.len() as f64 * share) as usize];
    println!(
        "{} requests, {rate:.0}/s, p50 {:?}, p99 {:?}, slowest {:?}",
        took.len(),
        at(0.5),
        at(0.99),
        took[took.len() - 1]
    );
    assert!(rate > f64::from(RATE) * 0.95, "{rate:.0}/s");

    let after = targets::fetch(address, "/metrics").await;
    let more =
        |name: &str, label: &str| targets::sum(&after, name, label) - targets::sum(&before, name, label);
    let checks = more("providerd_probe_schedule_lag_seconds_count", "");
    let in_time = more("providerd_probe_schedule_lag_seconds_bucket", "le=\"0.1\"") / checks;
    println!("meanwhile {checks} checks, {:.2} % of them begun within 100 ms of their time", in_time * 100.0);
    assert!(checks > 100.0 * time.as_secs_f64() * 0.9, "{checks} checks");
    assert!(in_time > 0.99, "{in_time}");
    assert_eq!(targets::sum(&after, "providerd_providers", "\"healthy\""), 100.0);
    providers.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_mode_shows_a_token_once() {
    let lab = Lab::new().await;
    // The server of the embedded database runs as somebody else and must be able to pass.
    std::fs::set_permissions(lab.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    lab.write("a.toml", &provider("alpha", 1));
    let start = async |round: usize| {
        let printed = lab.dir.path().join(format!("stdout-{round}"));
        let log = lab.dir.path().join(format!("stderr-{round}"));
        let mut command = lab.command(&["run"]);
        command.env_remove("DATABASE_URL").env_remove("BYOK_ENCRYPTION_KEY");
        command.stdout(std::fs::File::create(&printed).unwrap()).stderr(std::fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        let started = Instant::now();
        while !read(&log).contains("\"message\":\"ready\"") {
            assert!(child.try_wait().unwrap().is_none() && started.elapsed() < PATIENCE, "{}", read(&log));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let listen = read(&log).split("\"listen\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
        (child, listen, printed, log)
    };
    let stop = |mut child: std::process::Child| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(child.wait().unwrap().success());
    };
    let (child, address, printed, log) = start(1).await;
    let started = Instant::now();
    let token = loop {
        let text = std::fs::read_to_string(&printed).unwrap();
        // What is no terminal may be a log, in which the token has no place.
        if let Some((path, _)) = text.strip_prefix("admin token in ").and_then(|rest| rest.split_once("  ("))
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
            break std::fs::read_to_string(path).unwrap();
        }
        assert!(started.elapsed() < PATIENCE, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let api = Api { address, token: Some(token.clone()) };
    api.wait_for("/api/v1/providers", |page| page["total"] == 1).await;
    api.with_token("wrong").get("/api/v1/status").await.expect(401);
    assert!(!std::fs::read_to_string(&log).unwrap().contains(&token));
    stop(child);
    let kept = std::fs::read_to_string(lab.dir.path().join("state/admin_token.sha256")).unwrap();
    assert_eq!(kept.trim(), sha256(&token));

    let (child, address, printed, _) = start(2).await;
    Api { address, token: Some(token) }.get("/api/v1/status").await.expect(200);
    assert_eq!(std::fs::read_to_string(printed).unwrap(), "", "a token is shown once");
    stop(child);
}
