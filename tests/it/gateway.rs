//! The gateway of a real daemon: declared routes and consumers, a real provider's socket, rows in a real log.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{
    fake::{Fake, KEY, OTHER_KEY},
    http::{Answer, Api, TOKEN, sha256},
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
    scene_with(|_| {}).await
}

async fn scene_with(adjust: impl FnOnce(&mut std::process::Command)) -> Scene {
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
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", sha256(TOKEN));
        command.env("FIRST_API_KEY", KEY).env("SECOND_API_KEY", OTHER_KEY);
        adjust(command);
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
    let saved = tokio::time::Instant::now();
    while ask(&narrow, "second/model-a").await.status != 401 {
        assert!(saved.elapsed() < PATIENCE, "the withdrawn key still works");
    }
    println!("a withdrawn key was refused {:?} after the save", saved.elapsed());
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
    crate::output::compare("`routes explain`", &BTreeSet::new(), &[explained, narrow], &["skipped[]"]);
}

/// A whole request is explained by what it asks for and how long it is; endpoint and command say the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_a_file_is_explained() {
    let mut scene = scene().await;
    let body =
        json!({ "model": "fast", "stream": true, "messages": [{ "role": "user", "content": "Hello" }] });
    let file = scene.lab.dir.path().join("request.json");
    std::fs::write(&file, body.to_string()).unwrap();
    let path = file.to_str().unwrap();
    let explain = |more: &[&str]| {
        let mut args = vec!["routes", "explain", "--request", path, "--output", "json"];
        args.extend(more);
        scene.lab.run(&args)
    };
    let explained = explain(&[]).expect(0).json();
    assert_eq!(
        [&explained["route"], &explained["asked"]],
        [&json!("alias:fast"), &json!("fast")],
        "{explained}"
    );
    let pinned = explain(&["--model", "second/model-a"]).expect(0).json();
    assert_eq!(pinned["candidates"][0]["provider"], "second", "what is said beside the request is stronger");
    let api = Api { address: scene.daemon.address().await, token: Some(TOKEN.to_owned()) };
    let question = json!({ "request": body });
    let answered = api.post("/api/v1/routes/explain", &question).await.expect(200).json();
    assert_eq!(answered, explained);
    let odd = api.post("/api/v1/routes/explain", &json!({ "request": [1] })).await.expect(422);
    assert!(odd.json().to_string().contains("not a JSON object"));
    let unknown = json!({ "request": { "power_level": "lavish", "messages": [] } });
    api.post("/api/v1/routes/explain", &unknown).await.expect(422);
    std::fs::write(&file, "{").unwrap();
    assert!(explain(&[]).expect(1).stderr.contains("is not JSON"));
}

/// What rows cost is what is shown as used, and what is left is the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn budgets_are_shown_with_what_is_left() {
    let mut scene = scene().await;
    let budget = "budgets = [{ usd = 100, per = \"day\" }]\nlimits = { requests_per_minute = 1000, concurrency = 5 }\n";
    let with = consumers().replacen("\n\n[consumers.narrow]", &format!("\n{budget}\n[consumers.narrow]"), 1);
    scene.lab.write("consumers.toml", &with);
    let api = Api { address: scene.daemon.address().await, token: Some(TOKEN.to_owned()) };
    api.wait_for("/api/v1/budgets", |it| it["budgets"][0]["left_usd"] == "100").await;
    ask(&scene.gateway, "first/model-p").await.expect(200);
    // 5 × 0.10 + 2 × 0.20 USD per million tokens, by the stored row; the gateway may hold more for its next requests.
    let shown = api.wait_for("/api/v1/budgets", |it| it["budgets"][0]["used_usd"] == "0.0000009").await;
    let line = &shown["budgets"][0];
    assert_eq!(
        [&line["consumer"], &line["per"], &line["user"]],
        [&json!("web"), &json!("day"), &Value::Null]
    );
    let money = |name: &str| line[name].as_str().unwrap().parse::<f64>().unwrap();
    assert!((money("used_usd") + money("held_usd") + money("left_usd") - 100.0).abs() < 1e-6, "{line}");
    assert!(line["window_start"].as_str().unwrap().contains("T00:00:00"), "{line}");
    assert_eq!(shown["limits"][0]["requests_per_minute"], 1000, "{shown}");
    let metrics = scene.daemon.fetch("/metrics").await;
    assert!(metrics.contains("providerd_usage_budgets_used{percent=\"80\"} 0"), "{metrics}");
}

/// What systemd hands over is what callers connect to, and Prometheus finds the gateway's series at an address of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_alone_takes_a_socket_of_systemd_and_serves_its_metrics() {
    let Scene { lab, daemon, .. } = scene().await;
    assert_eq!(daemon.stop(), 0);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let number = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let template = lab.command(&["gateway"]);
    let mut command = std::process::Command::new("bash");
    // As systemd does: the socket is descriptor 3, and the variables name this very process.
    command.arg("-c").arg(format!("exec 3<&{number}; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" gateway"));
    command.arg(template.get_program()).current_dir(lab.dir.path()).env_clear();
    command.envs(template.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PROVIDERD_GATEWAY__METRICS_LISTEN", "127.0.0.1:0");
    let log = lab.dir.path().join("gateway-log");
    command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
    command.stderr(std::fs::File::create(&log).unwrap());
    let mut child = command.spawn().unwrap();
    // Held by systemd: a caller may connect before the program is there.
    let gateway = Api { address: address.to_string(), token: Some(CALLER.to_owned()) };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while gateway.get("/v1/models").await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "{}", std::fs::read_to_string(&log).unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    ask(&gateway, "eco").await.expect(200);
    let said = std::fs::read_to_string(&log).unwrap();
    let line = said.lines().find(|line| line.contains("metrics are served")).expect("where metrics are");
    let line: Value = serde_json::from_str(line).unwrap();
    let metrics = Api { address: line["address"].as_str().unwrap().to_owned(), token: None };
    let text = String::from_utf8(metrics.get("/metrics").await.expect(200).body).unwrap();
    assert!(text.contains("providerd_gateway_requests_total{code=\"200\",operation=\"chat\"} 1"), "{text}");
    metrics.get("/livez").await.expect(200);
    // No admin API hides there.
    metrics.get("/api/v1/status").await.expect(404);
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
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

/// Callers may make a provider refuse: that says nothing about it. `GATEWAY_TEST_REFUSALS=10000` is the full size.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crafted_errors_change_no_verdict_of_the_checks() {
    let refusals: usize =
        std::env::var("GATEWAY_TEST_REFUSALS").ok().and_then(|count| count.parse().ok()).unwrap_or(800);
    let scene = scene_with(|command| {
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
    })
    .await;
    let (lab, gateway) = (&scene.lab, &scene.gateway);
    let good = "SELECT count(*) FROM llm_providers WHERE health_status = 'healthy' AND api_key_test_status = 'valid'";
    lab.wait_for(good, "2").await;
    // So few refusals that count against a provider that it seldom cools, and most requests reach it.
    scene.first.refuse_completions(&[
        (400, r#"{"error":{"message":"messages: too few","type":"invalid_request_error"}}"#),
        (401, r#"{"error":{"message":"Incorrect API key provided","code":"invalid_api_key"}}"#),
        (413, r#"{"error":{"message":"too large"}}"#),
        (422, r#"{"error":{"message":"unprocessable"}}"#),
        (400, r#"{"error":{"message":"context_length_exceeded"}}"#),
        (403, r#"{"error":{"message":"no access to this model","code":"model_not_found"}}"#),
        (400, r#"{"error":{"message":"bad image"}}"#),
    ]);
    let before = lab.value("SELECT count(*) FROM providerd.events").await;
    let (asked, checked) = (scene.first.asked().len(), scene.first.seen());
    let refused_ones = async || {
        for _ in 0..refusals / 8 {
            // Pinned, so that no other provider hides a refusal; while it cools, the gateway itself answers.
            let answer = ask(gateway, "first/model-a").await;
            assert_ne!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.raw));
        }
    };
    let one = refused_ones;
    tokio::join!(one(), one(), one(), one(), one(), one(), one(), one());
    let refused = scene.first.asked().len() - asked;
    assert!(refused >= 7, "{refused} reached the provider");
    // The checks have looked again, more than once, and found what they had found.
    let looked = |seen: usize| seen - checked - refused;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while looked(scene.first.seen()) < 3 {
        assert!(tokio::time::Instant::now() < deadline, "nothing was checked");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(lab.value(good).await, "2");
    assert_eq!(
        lab.value("SELECT count(*) FROM providerd.events").await,
        before,
        "no transition was recorded"
    );
    scene.first.refuse_completions(&[]);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while ask(gateway, "first/model-a").await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "it is asked again when its pause is over");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
