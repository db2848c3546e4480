//! The gateway of a real daemon: declared routes and consumers, a real provider's socket, rows in a real log.

use serde_json::{Value, json};

use crate::support::{
    fake::{Fake, KEY, OTHER_KEY},
    http::{Answer, Api, sha256},
    lab::{Daemon, Lab, PATIENCE},
};

/// Clearly no real key.
const CALLER: &str = "pd_fake-caller-key-for-tests-0001";
const OTHER_CALLER: &str = "pd_fake-caller-key-for-tests-0002";

/// Two consumers: one for everything, one for `second` only.
fn consumers() -> String {
    format!(
        "[consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\n\n[consumers.narrow]\nkeys = [{{ sha256 = \"{}\" }}]\n\
         models = [\"second/*\"]\n\n[aliases]\nfast = \"eco\"\n",
        sha256(CALLER),
        sha256(OTHER_CALLER)
    )
}

fn prices(name: &str) -> String {
    format!(
        "[[providers.{name}.models]]\nname = \"model-p\"\ncost_per_1m_input_tokens = 0.10\n\
         cost_per_1m_output_tokens = 0.20\n"
    )
}

struct Scene {
    lab: Lab,
    first: Fake,
    second: Fake,
    daemon: Daemon,
    gateway: Api,
}

/// Two providers in one cell, the first preferred, and a daemon with a gateway.
async fn scene() -> Scene {
    let (lab, first, second) = (Lab::new().await, Fake::start().await, Fake::start().await);
    second.set_keys(&[OTHER_KEY]);
    let key = |name: &str| format!("{{ env = \"{name}\" }}");
    lab.write(
        "first.toml",
        &(first.manifest("first", &key("FIRST_API_KEY"), "priority = 90") + &prices("first")),
    );
    lab.write("second.toml", &second.manifest("second", &key("SECOND_API_KEY"), "priority = 10"));
    lab.write(
        "routes.toml",
        "[[routes]]\nmodels = \"first/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\npriority = 200\n\n\
         [[routes]]\nmodels = \"second/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\npriority = 100\n",
    );
    lab.write("consumers.toml", &consumers());
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0");
        command.env("FIRST_API_KEY", KEY).env("SECOND_API_KEY", OTHER_KEY);
    });
    daemon.wait_ready().await;
    let gateway = listening(&mut daemon).await;
    Scene { lab, first, second, daemon, gateway }
}

/// The gateway, once it has a picture.
async fn listening(daemon: &mut Daemon) -> Api {
    daemon.wait_for_log("the gateway listens").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let address = line["address"].as_str().unwrap().to_owned();
    let gateway = Api { address, token: Some(CALLER.to_owned()) };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let models = gateway.get("/v1/models").await;
        if models.status == 200 && !models.json()["data"].as_array().unwrap().is_empty() {
            return gateway;
        }
        assert!(tokio::time::Instant::now() < deadline, "no picture:\n{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

fn chat(model: &str, stream: bool) -> Value {
    json!({ "model": model, "stream": stream, "messages": [{ "role": "user", "content": "Hello" }] })
}

async fn ask(gateway: &Api, model: &str) -> Answer {
    gateway.post("/v1/chat/completions", &chat(model, false)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_go_by_declared_routes_and_each_becomes_one_row() {
    let scene = scene().await;
    let gateway = &scene.gateway;

    let answer = ask(gateway, "eco").await.expect(200);
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "Hello");
    assert_eq!(answer.header("x-providerd-model").map(|it| it.split('/').next().unwrap()), Some("first"));
    let id = answer.header("x-request-id").unwrap().to_owned();

    let stream = gateway.post("/v1/chat/completions", &chat("first/model-p", true)).await.expect(200);
    let text = String::from_utf8_lossy(&stream.body).into_owned();
    assert!(text.contains("\"Hel\"") && text.contains("[DONE]"), "{text}");
    assert!(!text.contains("prompt_tokens"), "usage that was not asked for is withheld: {text}");

    let seeds_own = gateway.post("/api/v1/llm/chat/completions", &chat("fast", false)).await.expect(200);
    assert_eq!(seeds_own.header("x-providerd-route"), Some("alias:fast"));

    // A provider that fails is passed over, and the row says so.
    scene.first.set_status(503);
    let answer = ask(gateway, "eco").await.expect(200);
    assert_eq!(answer.header("x-providerd-model"), Some("second/model-a"));
    // A pinned request is not moved.
    let pinned = ask(gateway, "first/model-a").await;
    assert!(pinned.status >= 500, "{}", String::from_utf8_lossy(&pinned.raw));

    let lab = &scene.lab;
    lab.wait_for("SELECT count(*) FROM llm_usage_logs", "5").await;
    lab.wait_for(
        "SELECT count(*) FROM llm_usage_logs WHERE success AND prompt_tokens = 5 AND completion_tokens = 2 \
         AND total_tokens = 7 AND input_tokens = 5 AND output_tokens = 2 AND status = 'success'",
        "4",
    )
    .await;
    let row = format!("SELECT count(*) FROM llm_usage_logs WHERE request_id = '{id}' AND NOT was_fallback");
    lab.wait_for(&row, "1").await;
    lab.wait_for("SELECT count(*) FROM llm_usage_logs WHERE was_fallback", "1").await;
    // 5 × 0.10 + 2 × 0.20 USD per million tokens.
    lab.wait_for(
        "SELECT DISTINCT trim_scale(cost_total_usd::numeric)::text FROM llm_usage_logs WHERE model_name = 'model-p' AND success",
        "0.0000009",
    )
    .await;
    // A price that is not known is not nothing.
    let priced =
        "SELECT count(*) FROM llm_usage_logs WHERE model_name = 'model-a' AND cost_total_usd IS NOT NULL";
    assert_eq!(lab.value(priced).await, "0");
    let shown = lab.run(&["usage", "--output", "json"]).expect(0).json();
    assert_eq!(shown["items"].as_array().map_or(0, Vec::len), 2, "{shown}");
    assert_eq!(scene.daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_are_known_by_their_keys_and_keys_stay_where_they_belong() {
    let mut scene = scene().await;
    let gateway = &scene.gateway;
    let nobody = gateway.without_token().post("/v1/chat/completions", &chat("eco", false)).await.expect(401);
    assert_eq!(nobody.code(), "invalid_api_key");
    let wrong = gateway.with_token("pd_fake-wrong").post("/v1/chat/completions", &chat("eco", false)).await;
    assert_eq!((wrong.status, wrong.code().as_str()), (401, "invalid_api_key"));

    let narrow = gateway.with_token(OTHER_CALLER);
    let refused = ask(&narrow, "first/model-a").await.expect(403);
    assert_eq!(refused.code(), "model_not_allowed");
    ask(&narrow, "second/model-a").await.expect(200);
    assert_eq!(ask(gateway, "first/no-such").await.expect(404).code(), "model_not_found");

    // Each provider got its own key, and neither a caller's.
    ask(gateway, "first/model-a").await.expect(200);
    for (fake, own, other) in [(&scene.first, KEY, OTHER_KEY), (&scene.second, OTHER_KEY, KEY)] {
        let asked = fake.asked().join("\n");
        assert!(asked.contains(own) && !asked.contains(other), "{asked}");
        assert!(!asked.contains(CALLER) && !asked.contains(OTHER_CALLER), "{asked}");
    }
    let log = scene.daemon.log();
    assert!(!log.contains(KEY) && !log.contains(CALLER) && !log.contains(OTHER_KEY), "a key is in the log");

    // A withdrawn key is refused soon after the save.
    scene.lab.write("consumers.toml", &consumers().replace(&sha256(OTHER_CALLER), &sha256("pd_fake-next")));
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ask(&narrow, "second/model-a").await.status != 401 {
        assert!(tokio::time::Instant::now() < deadline, "the withdrawn key still works");
    }
    ask(&gateway.with_token("pd_fake-next"), "second/model-a").await.expect(200);

    let metrics = scene.daemon.fetch("/metrics").await;
    assert!(metrics.contains("providerd_gateway_requests_total"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn command_and_endpoint_explain_alike() {
    let scene = scene().await;
    let explained =
        scene.lab.run(&["routes", "explain", "--power", "eco", "--output", "json"]).expect(0).json();
    let names: Vec<_> = explained["candidates"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["provider"].as_str().unwrap())
        .collect();
    assert_eq!(names.last(), Some(&"second"), "{explained}");
    assert_eq!(names.first(), Some(&"first"), "{explained}");
    let narrow = scene
        .lab
        .run(&["routes", "explain", "--model", "first/model-a", "--consumer", "narrow", "--output", "json"])
        .expect(2)
        .json();
    assert_eq!(narrow["error"]["code"], "model_not_allowed", "{narrow}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_alone_serves_and_starts_without_a_database() {
    let Scene { lab, daemon, .. } = scene().await;
    assert_eq!(daemon.stop(), 0);
    let alone = |url: &str| {
        lab.started(&["gateway"], |command| {
            command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0").env("DATABASE_URL", url);
        })
    };
    let mut first = alone(&lab.url);
    let gateway = listening(&mut first).await;
    ask(&gateway, "eco").await.expect(200);
    lab.wait_for("SELECT count(*) FROM llm_usage_logs", "1").await;
    assert_eq!(first.stop(), 0);

    // Nothing listens there: the sealed picture serves.
    let mut second = alone("postgres://postgres@127.0.0.1:9/none");
    let gateway = listening(&mut second).await;
    ask(&gateway, "eco").await.expect(200);
    assert_eq!(second.stop(), 0);
}
