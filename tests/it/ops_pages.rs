//! Ops-Center's pages, replayed by their calls: what each page asks, and the fields by which it draws.
#![allow(clippy::disallowed_methods, reason = "a session server of the test's own serves in tasks")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    fake::{Fake, KEY},
    http::{Answer, Api, TOKEN, sha256},
    lab::{Daemon, Lab, PATIENCE},
};

/// Clearly no real key.
const CALLER: &str = "pd_fake-caller-key-for-pages-0001";

/// What says whose a session is: `good` is an administrator's, `other` another user's.
struct Sessions {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl Sessions {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v1/auth/me", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut text = Vec::new();
                let mut part = [0; 4096];
                while !text.windows(4).any(|four| four == b"\r\n\r\n") {
                    match stream.read(&mut part).await {
                        Ok(read @ 1..) => text.extend_from_slice(&part[..read]),
                        _ => break,
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
                assert!(
                    !text.contains("authorization"),
                    "a session is asked about with its cookie alone: {text}"
                );
                let (status, body) = if text.contains("cookie: session_token=good\r\n") {
                    (200, json!({ "user": { "user_id": "u-1", "role": "admin" } }))
                } else if text.contains("cookie: session_token=other\r\n") {
                    (200, json!({ "user": { "user_id": "u-2", "role": "viewer" } }))
                } else {
                    (401, json!({ "detail": "Not authenticated" }))
                };
                let body = body.to_string();
                let head = format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                let _ = stream.write_all((head + &body).as_bytes()).await;
            }
        });
        Self { url, asked }
    }
}

/// A browser with this session, behind a proxy that serves pages and API under one name.
struct Browser {
    api: Api,
    cookie: &'static str,
}

impl Browser {
    async fn send(&self, method: &str, path: &str, more: &[(&str, &str)], body: &[u8]) -> Answer {
        let cookie = format!("theme=dark; session_token={}", self.cookie);
        let mut headers = vec![("Host", "ops.example.com"), ("Cookie", cookie.as_str())];
        // What pages send that were never given a token.
        headers.push(("Authorization", "Bearer null"));
        headers.extend(more);
        self.api.send(method, path, &headers, body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }

    async fn write(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let more: &[(&str, &str)] = &[
            ("Origin", "https://ops.example.com"),
            ("Content-Type", "application/json"),
            ("Content-Length", "0"),
        ];
        let more = if body.is_empty() && method != "POST" { more } else { &more[..2] };
        self.send(method, path, more, body).await
    }
}

struct Scene {
    lab: Lab,
    fake: Fake,
    daemon: Daemon,
    browser: Browser,
    sessions: Sessions,
}

/// Two providers, of which one is a row of another program's, and a gateway that has served three requests.
async fn scene() -> Scene {
    let (lab, fake, sessions) = (Lab::new().await, Fake::start().await, Sessions::start().await);
    lab.write(
        "shop.toml",
        &format!(
            "{}enabled = true\ncost_per_1m_input_tokens = 1000.0\ncost_per_1m_output_tokens = 3000.0\n\
             context_length = 128000\n\n[[providers.shop.models]]\nname = \"model-b\"\ndisplay_name = \"Model B\"\n\
             cost_per_1m_input_tokens = 0.1\ncost_per_1m_output_tokens = 0.3\ncontext_length = 4096\n\n\
             [[routes]]\nmodels = \"shop/model-a\"\npower_level = \"eco\"\nuser_tier = \"all\"\n\n\
             [consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\n",
            fake.manifest("shop", "{ env = \"SHOP_API_KEY\" }", "priority = 90\n"),
            sha256(CALLER)
        ),
    );
    let mut daemon = lab.daemon_with(|command| {
        command.env("SHOP_API_KEY", KEY).env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0");
        command.env("PROVIDERD_PAGES__SESSION__URL", &sessions.url);
        command.env("PROVIDERD_SERVER__ALLOWED_HOSTS", "ops.example.com");
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", sha256(TOKEN));
    });
    daemon.wait_ready().await;
    lab.execute(
        "INSERT INTO llm_providers (id, name, type, api_key_encrypted, enabled, priority)
         VALUES ('00000000-0000-4000-8000-000000000001', 'Theirs', 'odd', '', false, 5);
         INSERT INTO llm_models (id, provider_id, name, enabled)
         VALUES ('00000000-0000-4000-8000-000000000002', '00000000-0000-4000-8000-000000000001', 'vendor/their-model', true)",
    )
    .await;
    let address = crate::support::http::address(&daemon);
    let browser = Browser { api: Api { address, token: None }, cookie: "good" };
    Scene { lab, fake, daemon, browser, sessions }
}

async fn gateway(daemon: &mut Daemon) -> Api {
    daemon.wait_for_log("the gateway listens").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let address = line["address"].as_str().unwrap().to_owned();
    Api { address, token: Some(CALLER.to_owned()) }
}

/// Serves requests until their sums are in the database.
async fn serve(scene: &mut Scene) {
    let gateway = gateway(&mut scene.daemon).await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let chat = |model: &str| json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }] });
    while gateway.post("/v1/chat/completions", &chat("shop/model-a")).await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "no picture:\n{}", scene.daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    gateway.post("/v1/chat/completions", &chat("shop/model-b")).await.expect(200);
    gateway.post("/v1/chat/completions", &chat("eco")).await.expect(200);
    scene.lab.wait_for("SELECT sum(requests) FROM providerd.usage_daily", "3").await;
}

fn near(value: &Value, expected: f64) -> bool {
    value.as_f64().is_some_and(|value| (value - expected).abs() < 1e-9)
}

// 5 tokens of input and 2 of output each.
const DEAR: f64 = (5.0 * 1000.0 + 2.0 * 3000.0) / 1e6;
const CHEAP: f64 = (5.0 * 0.1 + 2.0 * 0.3) / 1e6;

#[tokio::test(flavor = "multi_thread")]
async fn the_management_pages_list_test_and_count() {
    let mut scene = scene().await;
    serve(&mut scene).await;
    let browser = &scene.browser;

    // Cards of providers: `data.providers[]` by id, provider_id, status, model_count, avg_cost.
    let list = browser.get("/api/v1/llm/providers").await.expect(200).json();
    let cards = list["providers"].as_array().unwrap();
    assert_eq!(cards.len(), 2, "{list:#}");
    let (shop, theirs) = (&cards[0], &cards[1]);
    assert_eq!(
        (&shop["name"], &shop["type"], &shop["status"]),
        (&json!("shop"), &json!("openai"), &json!("active"))
    );
    assert_eq!(
        (&shop["model_count"], &shop["models"], &shop["priority"]),
        (&json!(2), &json!(2), &json!(90))
    );
    assert!(near(&shop["avg_cost"], 1000.1) && near(&shop["avg_cost_per_1m"], 1000.1), "{shop}");
    assert_eq!(shop["enabled_models"], json!(["model-a", "model-b"]));
    assert_eq!(shop["id"], shop["provider_id"]);
    assert_eq!((&theirs["status"], &theirs["health_status"]), (&json!("disabled"), &json!("unknown")));
    let enabled = browser.get("/api/v1/llm/providers?enabled_only=true").await.expect(200).json();
    assert_eq!(enabled["total"], 1);

    // The button Test: `data.success`, `data.latency` or `latency_ms`, `data.error`.
    let path = format!("/api/v1/llm/providers/{}/test", shop["id"].as_str().unwrap());
    let tested = browser.write("POST", &path, b"").await.expect(200).json();
    assert_eq!((&tested["success"], &tested["error"]), (&json!(true), &Value::Null), "{tested}");
    assert_eq!((&tested["latency"], &tested["models_found"]), (&tested["latency_ms"], &json!(2)));
    scene.fake.set_keys(&[]);
    let tested = browser.write("POST", &path, b"").await.expect(200).json();
    assert_eq!(tested["success"], false);
    assert!(tested["error"].as_str().unwrap().starts_with("invalid: "), "{tested}");
    let missing =
        browser.write("POST", "/api/v1/llm/providers/00000000-0000-4000-8000-0000000000ff/test", b"").await;
    assert_eq!(missing.expect(404).json()["detail"], "no provider has this id");

    // Cards and charts of numbers.
    let usage = browser.get("/api/v1/llm/usage").await.expect(200).json();
    assert_eq!((&usage["total_calls"], &usage["total_requests"]), (&json!(3), &json!(3)), "{usage:#}");
    assert_eq!((&usage["total_providers"], &usage["active_models"]), (&json!(2), &json!(2)));
    assert!(near(&usage["total_cost"], 2.0 * DEAR + CHEAP), "{usage:#}");
    assert_eq!(usage["total_tokens"], 21);
    assert_eq!(usage["providers"][0]["provider_id"], shop["id"]);
    let week = browser.get("/api/v1/llm/usage?period=7d").await.expect(200).json();
    let (labels, values) = (week["labels"].as_array().unwrap(), week["values"].as_array().unwrap());
    assert_eq!((labels.len(), values.len(), week["period_days"].as_i64()), (7, 7, Some(7)));
    assert_eq!(values.iter().filter_map(Value::as_i64).sum::<i64>(), 3);
    assert_eq!(week["cost_labels"], json!(["shop"]));
    let model = &week["by_model"]["shop/model-b"];
    assert_eq!(
        (&model["request_count"], &model["total_input_tokens"], &model["total_output_tokens"]),
        (&json!(1), &json!(5), &json!(2))
    );
    let narrowed = format!("/api/v1/llm/usage?days=7&provider_id={}", theirs["id"].as_str().unwrap());
    assert_eq!(browser.get(&narrowed).await.expect(200).json()["total_calls"], 0);

    // The strategy, and what serves each level.
    let rules = browser.get("/api/v1/llm/routing/rules").await.expect(200).json();
    assert_eq!(rules["strategy"], "balanced");
    assert_eq!(rules["power_levels"]["eco"], "shop/model-a");
    assert_eq!(rules["power_levels"]["precision"], "no model for all tiers");
    assert_eq!((&rules["fallback_providers"], &rules["model_aliases"]), (&json!([]), &json!({})));
    assert!(near(&rules["config"]["cost_weight"], 0.4), "{rules}");
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_page_draws_and_exports() {
    let mut scene = scene().await;
    serve(&mut scene).await;
    let browser = &scene.browser;

    for (range, days) in [("week", 7), ("month", 30), ("quarter", 90), ("year", 365)] {
        let summary =
            browser.get(&format!("/api/v1/llm/usage/summary?range={range}")).await.expect(200).json();
        assert_eq!(summary["total_calls"], 3, "{summary:#}");
        assert!(near(&summary["avg_cost_per_call"], (2.0 * DEAR + CHEAP) / 3.0), "{summary:#}");
        assert!(near(&summary["growth"]["calls"], 100.0) && near(&summary["growth"]["cost"], 100.0));
        assert!(summary["growth"]["avg_cost"].is_number() && summary["quota_used_percent"].is_number());
        let timeline = summary["timeline"].as_array().unwrap();
        assert_eq!(timeline.len(), days);
        assert!(timeline.iter().all(|day| day["date"].is_string() && day["calls"].is_i64()));
        // The day may have changed since.
        assert_eq!(timeline.iter().filter_map(|day| day["calls"].as_i64()).sum::<i64>(), 3);
    }
    let shares = browser.get("/api/v1/llm/usage/by-provider").await.expect(200).json();
    assert_eq!(
        (&shares["providers"][0]["name"], &shares["providers"][0]["calls"]),
        (&json!("shop"), &json!(3))
    );
    assert!(near(&shares["providers"][0]["percentage"], 100.0));
    let levels = browser.get("/api/v1/llm/usage/by-power-level").await.expect(200).json();
    let levels: Vec<(&str, i64)> = levels["levels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["level"].as_str().unwrap(), it["calls"].as_i64().unwrap()))
        .collect();
    assert_eq!(levels[..3], [("eco", 1), ("balanced", 0), ("precision", 0)]);
    assert_eq!(levels[3..], [("unspecified", 2)]);

    // The buttons Export lead the browser away from the page, with the cookie alone.
    let csv = browser.get("/api/v1/llm/usage/export?format=csv&range=month").await.expect(200);
    assert_eq!(csv.header("content-type"), Some("text/csv"));
    assert!(csv.header("content-disposition").unwrap().starts_with("attachment; filename=\"llm-usage-"));
    let text = String::from_utf8(csv.body).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("day,model,level,requests,"), "{text}");
    assert_eq!(lines.count(), 3, "{text}");
    let file = browser.get("/api/v1/llm/usage/export?format=json&range=week").await.expect(200).json();
    assert_eq!((&file["total_records"], &file["truncated"]), (&json!(3), &json!(false)));
    assert!(file["data"].as_array().unwrap().iter().any(|row| row["model"] == "shop/model-b"));
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_pages_filter_and_switch_what_no_manifest_owns() {
    let scene = scene().await;
    let browser = &scene.browser;

    let all = browser.get("/api/v1/llm/models").await.expect(200).json();
    assert_eq!((&all["object"], &all["total"]), (&json!("list"), &json!(3)));
    let names = |list: &Value| -> Vec<String> {
        list["data"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap().to_owned()).collect()
    };
    // The cheapest first, those without a price last.
    assert_eq!(names(&all), ["model-b", "model-a", "vendor/their-model"]);
    let dear = &all["data"][1];
    assert_eq!(
        (&dear["id"], &dear["object"], &dear["provider"]),
        (&json!("model-a"), &json!("model"), &json!("shop"))
    );
    assert_eq!(dear["pricing"], json!({ "input": 1000.0, "output": 3000.0 }));
    assert_eq!(
        (&dear["context_length"], &dear["enabled"], &dear["display_name"]),
        (&json!(128_000), &json!(true), &json!("model-a"))
    );
    assert_eq!(all["models"][0]["status"], "active");
    let ask = async |query: &str| {
        names(&browser.get(&format!("/api/v1/llm/models?{query}")).await.expect(200).json())
    };
    assert_eq!(ask("enabled_only=true&sort_by=context").await, ["model-a", "model-b"]);
    assert_eq!(ask("search=Model%20B").await, ["model-b"]);
    assert_eq!(ask("search=MODEL-A").await, ["model-a"]);
    assert_eq!(ask("max_cost=1").await, ["model-b"]);
    assert_eq!(ask("min_cost=1&min_context=5000").await, ["model-a"]);
    assert_eq!(ask("max_context=5000").await, ["model-b"]);
    assert_eq!(ask("sort_by=name&limit=1&offset=1").await, ["model-b"]);
    assert_eq!(ask("provider_id=00000000-0000-4000-8000-000000000001").await, ["vendor/their-model"]);
    assert_eq!(ask("search=%00").await, Vec::<String>::new());
    for bad in ["limit=0", "limit=1001", "sort_by=odd", "provider_id=x", "min_cost=NaN"] {
        let answer = browser.get(&format!("/api/v1/llm/models?{bad}")).await;
        assert!(answer.expect(422).json()["detail"].is_string(), "{bad}");
    }

    // The manifest says `enabled` of model-a and nothing of model-b; another program made the third.
    let toggle =
        async |id: &str| browser.write("PUT", &format!("/api/v1/llm/admin/models/{id}/toggle"), b"").await;
    let uuid = |at: usize| all["data"][at]["_uuid"].as_str().unwrap().to_owned();
    let refused = toggle(&uuid(1)).await.expect(409).json();
    let detail = refused["detail"].as_str().unwrap();
    assert!(detail.starts_with("shop.toml:") && detail.contains("`shop/model-a`"), "{refused}");
    assert_eq!(refused["error"]["code"], "managed");
    let done = toggle(&uuid(0)).await.expect(200).json();
    assert_eq!((&done["success"], &done["is_active"]), (&json!(true), &json!(false)), "{done}");
    let done = toggle("vendor%2Ftheir-model").await.expect(200).json();
    assert_eq!(
        (&done["is_active"], &done["message"]),
        (&json!(false), &json!("Theirs/vendor/their-model is disabled"))
    );
    assert_eq!(toggle("vendor%2Ftheir-model").await.expect(200).json()["is_active"], true);
    toggle("no-such-model").await.expect(404);
    let off = "SELECT string_agg(name, ',' ORDER BY name) FROM llm_models WHERE NOT enabled";
    scene.lab.wait_for(off, "model-b").await;
    let trail = "SELECT count(*) FROM providerd.events WHERE kind = 'admin' AND detail->>'call' = 'disable model' \
                 AND detail->>'who' = 'session u-1'";
    assert_eq!(scene.lab.value(trail).await, "2");
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keys_page_shows_and_tests_keys() {
    let scene = scene().await;
    let browser = &scene.browser;
    scene
        .lab
        .execute("INSERT INTO llm_providers (name, type, api_key_encrypted, priority) VALUES ('keyless', 'ollama', '', 99)")
        .await;
    let keys =
        browser.api.with_token(TOKEN).wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 3).await;
    assert_eq!(keys["success"], true);
    let list = keys["providers"].as_array().unwrap();
    let names: Vec<&str> = list.iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["shop", "keyless", "Theirs"], "those with a key first, then by priority");
    assert_eq!((&list[0]["key_source"], &list[1]["key_source"]), (&json!("database"), &json!("not_set")));
    assert_eq!(list[0]["has_key"], true);

    let test = async |body: Value| {
        browser.write("POST", "/api/v1/llm/providers/keys/test", body.to_string().as_bytes()).await
    };
    // Case does not matter, an empty key is none, and what is not known is passed over.
    let result =
        test(json!({ "provider_type": "SHOP", "api_key": "", "remember": true })).await.expect(200).json();
    assert_eq!((&result["success"], &result["models_found"]), (&json!(true), &json!(2)), "{result}");
    let unknown = test(json!({ "provider_type": "nothing-of-the-kind" })).await.expect(400).json();
    assert_eq!((&unknown["error"]["code"], unknown["detail"].is_string()), (&json!("unknown-type"), true));

    let types = browser.get("/api/v1/llm/providers/info").await.expect(200).json();
    let openrouter =
        types["providers"].as_array().unwrap().iter().find(|it| it["provider_type"] == "openrouter").unwrap();
    assert_eq!(
        (&openrouter["display_name"], &openrouter["auth_type"]),
        (&json!("OpenRouter"), &json!("bearer"))
    );
    assert_eq!(openrouter["supports_test"], true);
    assert_eq!(types["total"].as_u64(), types["providers"].as_array().map(|list| list.len() as u64));
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_is_closed_but_to_administrators() {
    let scene = scene().await;
    let path = "/api/v1/llm/providers";
    let browser = |cookie: &'static str| Browser { api: scene.browser.api.clone(), cookie };

    scene.browser.get(path).await.expect(200);
    scene.browser.api.with_token(TOKEN).get(path).await.expect(200);
    let nobody = scene.browser.api.without_token().get(path).await.expect(401).json();
    assert!(nobody["detail"].is_string(), "{nobody}");
    browser("stolen").get(path).await.expect(401);
    assert_eq!(browser("other").get(path).await.expect(403).code(), "admin-required");
    // Asked once each, though asked for twice.
    let asked = scene.sessions.asked.load(Ordering::SeqCst);
    scene.browser.get(path).await.expect(200);
    assert_eq!(scene.sessions.asked.load(Ordering::SeqCst), asked);

    // A session opens the pages' calls, and nothing else.
    for other in ["/api/v1/status", "/api/v1/providers", "/api/v1/events"] {
        scene.browser.get(other).await.expect(401);
    }
    // Another site's page, and a write that does not say where it comes from.
    let toggle = "/api/v1/llm/admin/models/no-such-model/toggle";
    let evil = [("Origin", "https://evil.example.com"), ("Content-Length", "0")];
    scene.browser.send("PUT", toggle, &evil, b"").await.expect(403);
    scene.browser.send("PUT", toggle, &[("Content-Length", "0")], b"").await.expect(403);
    scene.browser.write("PUT", toggle, b"").await.expect(404);
    // What is no path below here is a failure in the pages' words, too.
    let lost = scene.browser.get("/api/v1/llm/no-such-call").await.expect(404).json();
    assert_eq!(lost["detail"], lost["error"]["message"]);
    assert!(!scene.daemon.log().contains("session_token"), "no cookie in the log");
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_may_vouch_from_its_own_address() {
    let lab = Lab::new().await;
    let start = async |peers: &str| {
        let mut daemon = lab.daemon_with(|command| {
            command
                .env("PROVIDERD_PAGES__PROXY__HEADER", "X-Auth-Role")
                .env("PROVIDERD_PAGES__PROXY__PEERS", peers);
        });
        daemon.wait_ready().await;
        let address = crate::support::http::address(&daemon);
        (daemon, Api { address, token: None })
    };
    let ask = async |api: &Api, role: &str| {
        api.send("GET", "/api/v1/llm/providers", &[("X-Auth-Role", role)], b"").await.status
    };
    let (daemon, api) = start("127.0.0.1").await;
    assert_eq!((ask(&api, "admin").await, ask(&api, "viewer").await), (200, 403));
    // Even without any token, the picture is there for the keys.
    let started = tokio::time::Instant::now();
    while api.send("GET", "/api/v1/llm/providers/keys", &[("X-Auth-Role", "admin")], b"").await.status != 200
    {
        assert!(started.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.stop(), 0);
    let (daemon, api) = start("10.1.2.3").await;
    assert_eq!(ask(&api, "admin").await, 401);
    assert_eq!(daemon.stop(), 0);
}
