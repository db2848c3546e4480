//! A key travels only where it belongs, whatever is written into the shared tables: a thief listens, and hears nothing.
#![allow(clippy::disallowed_methods, reason = "the thief listens in a task of its own")]

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{io::AsyncReadExt as _, io::AsyncWriteExt as _, net::TcpListener};

use crate::support::{
    fake::{Fake, KEY},
    http::Api,
    lab::{BYOK, Lab, PATIENCE},
};
use providerd::secret::{Byok, Secret};

/// Answers like a provider that knows one key, and keeps every byte that it was sent. It refuses fake keys, so that
/// nobody is warned.
#[derive(Clone)]
struct Thief {
    url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Thief {
    async fn listen(knows: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let thief =
            Self { url: format!("http://{}/v1", listener.local_addr().unwrap()), heard: Arc::default() };
        let heard = thief.heard.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let heard = heard.clone();
                tokio::spawn(async move {
                    let mut head = [0; 8192];
                    let count = stream.read(&mut head).await.unwrap_or(0);
                    let request = String::from_utf8_lossy(&head[..count]).into_owned();
                    let (status, body) = match request.contains(knows) {
                        true => (200, r#"{"object":"list","data":[{"id":"m"}]}"#),
                        false => (401, r#"{"error":{"code":"invalid_api_key"}}"#),
                    };
                    heard.lock().unwrap().push(request);
                    let text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(text.as_bytes()).await;
                });
            }
        });
        thief
    }

    #[track_caller]
    fn heard_no_key(&self) {
        let heard = self.heard.lock().unwrap();
        let stolen: Vec<&String> = heard.iter().filter(|text| text.contains(KEY)).collect();
        assert!(stolen.is_empty(), "{stolen:?}");
    }
}

/// A key as another program stores it.
fn sealed(key: &str) -> String {
    Byok::parse(BYOK).unwrap().encrypt(&Secret::new(key.to_owned()))
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A lab with `alpha`, whose key stands in a file.
async fn one(fake: &Fake) -> (Lab, String) {
    let lab = Lab::new().await;
    let path = lab.dir.path().join("alpha.key");
    fs::write(&path, KEY).unwrap();
    let reference = format!("{{ file = \"{}\" }}", path.display());
    lab.write("alpha.toml", &fake.manifest("alpha", &reference, "[providers.alpha.discover]\n"));
    (lab, reference)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_names_another_place_draws_no_key_there() {
    let (fake, thief) = (Fake::start().await, Thief::listen(KEY).await);
    let (lab, _) = one(&fake).await;
    let (_daemon, api) = Api::start_with(&lab, |command| {
        command.env("PROVIDERD_RECONCILE__DRIFT", "report");
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
    })
    .await;
    lab.wait_for("SELECT api_key_test_status FROM llm_providers", "valid").await;
    let own = fake.base_url();
    for (what, set, back) in [
        ("api_base_url", format!("api_base_url = '{}'", thief.url), format!("api_base_url = '{own}'")),
        (
            "config.base_url",
            format!(
                "api_base_url = NULL, config = jsonb_set(config::jsonb, '{{base_url}}', '\"{}\"')",
                thief.url
            ),
            format!("api_base_url = '{own}', config = jsonb_set(config::jsonb, '{{base_url}}', '\"{own}\"')"),
        ),
        ("type", "type = 'anthropic'".to_owned(), "type = 'openai'".to_owned()),
    ] {
        lab.execute(&format!("UPDATE llm_providers SET {set}")).await;
        api.wait_for("/api/v1/providers/alpha", |it| {
            it["notices"].as_array().is_some_and(|all| {
                all.iter()
                    .any(|it| it.as_str().is_some_and(|it| it.contains("drifted: its key goes nowhere")))
            })
        })
        .await;
        // It is still checked, where it is declared.
        let seen = fake.seen();
        until("three checks at the declared place", || fake.seen() >= seen + 3).await;
        assert_eq!(lab.value("SELECT health_status FROM llm_providers").await, "healthy", "{what}");
        let test = json!({ "provider_type": "alpha" });
        let tested = api.post("/api/v1/llm/providers/keys/test", &test).await.expect(200).json();
        assert!(
            tested["error"].as_str().unwrap().starts_with("drifted: its key goes nowhere"),
            "{what}: {tested}"
        );
        let checked = lab.run_checking(&["check", "alpha"]);
        assert!(checked.stdout.contains("not tested: drifted"), "{what}: {}", checked.stdout);
        let listed = lab.run(&["models", "alpha"]);
        assert!(listed.code == 1 && listed.stderr.contains("drifted"), "{what}: {}", listed.stderr);
        thief.heard_no_key();
        lab.execute(&format!("UPDATE llm_providers SET {back}")).await;
        api.wait_for("/api/v1/providers/alpha", |it| it["state"] == "synced").await;
        assert_eq!(lab.value("SELECT api_key_test_status FROM llm_providers").await, "valid", "{what}");
    }
    let tested = api.post("/api/v1/llm/providers/keys/test", &json!({ "provider_type": "alpha" })).await;
    assert_eq!(tested.expect(200).json()["success"], true);
    thief.heard_no_key();
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_that_is_corrected_leaves_no_gap_for_a_thief() {
    let (fake, thief) = (Fake::start().await, Thief::listen(KEY).await);
    let (lab, _) = one(&fake).await;
    let _daemon = lab.checking();
    lab.wait_for("SELECT api_key_test_status FROM llm_providers", "valid").await;
    for _ in 0..20 {
        lab.execute(&format!(
            "UPDATE llm_providers SET api_base_url = '{}', api_key_test_status = 'pending'",
            thief.url
        ))
        .await;
        lab.wait_for("SELECT api_base_url FROM llm_providers", &fake.base_url()).await;
    }
    let seen = fake.seen();
    until("a check at the declared place", || fake.seen() > seen).await;
    thief.heard_no_key();
    assert_eq!(lab.value("SELECT health_status FROM llm_providers").await, "healthy");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copied_key_goes_nowhere_and_an_unmanaged_one_only_home() {
    let own_key = "sk-fake-key-of-its-own-0123456789";
    let (fake, thief, home) = (Fake::start().await, Thief::listen(KEY).await, Thief::listen(own_key).await);
    let (lab, _) = one(&fake).await;
    let (_daemon, api) = Api::start_with(&lab, |_| {}).await;
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE name = 'alpha'", "1").await;
    // Whoever may write rows copies a token beside a place of their own, before all others by priority and by name.
    for name in ["theirs", "openai"] {
        lab.execute(&format!(
            "INSERT INTO llm_providers (name, type, priority, api_base_url, api_key_encrypted)
             SELECT '{name}', 'openai', 999, '{}', api_key_encrypted FROM llm_providers WHERE name = 'alpha'",
            thief.url
        ))
        .await;
    }
    // And somebody honest has a row as Ops-Center writes it, with a key of its own.
    lab.execute(&format!(
        "INSERT INTO llm_providers (name, type, api_base_url, config, api_key_encrypted)
         VALUES ('honest', 'openai', NULL, '{{\"base_url\": \"{}\"}}', '{}')",
        home.url,
        sealed(own_key)
    ))
    .await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 4).await;
    let test = async |body: serde_json::Value| {
        api.post("/api/v1/llm/providers/keys/test", &body).await.expect(200).json()
    };
    for name in ["theirs", "openai"] {
        let refused = test(json!({ "provider_type": name })).await;
        assert!(refused["error"].as_str().unwrap().contains("also stands in the row of"), "{refused}");
        let listed = lab.run(&["models", name]);
        assert!(listed.code == 1 && listed.stderr.contains("also stands in"), "{}", listed.stderr);
    }
    // By type only what manifests manage; a key that is typed in goes to no row of that name either.
    lab.execute("DELETE FROM llm_providers WHERE name = 'openai'").await;
    api.wait_for("/api/v1/llm/providers/keys", |keys| keys["total"] == 3).await;
    let seen = fake.seen();
    let by_type = test(json!({ "provider_type": "openai" })).await;
    assert_eq!(by_type["success"], true, "{by_type}");
    assert!(fake.seen() > seen);
    assert!(thief.heard.lock().unwrap().is_empty(), "{:?}", thief.heard);
    // The honest one's key goes home: config.base_url, where api_base_url is empty.
    test(json!({ "provider_type": "honest" })).await;
    assert!(home.heard.lock().unwrap().iter().any(|text| text.contains(own_key)));
    assert!(thief.heard.lock().unwrap().is_empty(), "{:?}", thief.heard);
    home.heard_no_key();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_copied_into_a_managed_row_stays_home_and_is_set_back() {
    let own_key = "sk-fake-key-of-its-own-0123456789";
    let (fake, other) = (Fake::start().await, Thief::listen(own_key).await);
    let (lab, _) = one(&fake).await;
    let path = lab.dir.path().join("beta.key");
    fs::write(&path, own_key).unwrap();
    lab.write(
        "beta.toml",
        &format!(
            "[providers.beta]\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = {{ file = \"{}\" }}\n\n\
             [[providers.beta.models]]\nname = \"m\"\n\n[consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\n",
            other.url,
            path.display(),
            crate::support::http::sha256("pd_fake-caller"),
        ),
    );
    let (mut daemon, _api) = Api::start_with(&lab, |command| {
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
        command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0").env("PROVIDERD_GATEWAY__UNMANAGED", "true");
    })
    .await;
    daemon.wait_for_log("the gateway listens").await;
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let address = line["address"].as_str().unwrap().to_owned();
    let gateway = Api { address, token: Some("pd_fake-caller".to_owned()) };
    let ask = async |model: &str| {
        let body = json!({ "model": model, "messages": [{ "role": "user", "content": "Hello" }] });
        gateway.post("/v1/chat/completions", &body).await
    };
    let valid = "SELECT count(*) FROM llm_providers WHERE api_key_test_status = 'valid'";
    lab.wait_for(valid, "2").await;
    let token = "SELECT api_key_encrypted FROM llm_providers WHERE name = 'beta'";
    for _ in 0..5 {
        let before = lab.value(token).await;
        lab.execute(
            "UPDATE llm_providers SET api_key_test_status = 'pending', api_key_encrypted =
                 (SELECT api_key_encrypted FROM llm_providers WHERE name = 'alpha') WHERE name = 'beta'",
        )
        .await;
        ask("beta/m").await;
        // The row has its own key again, as a token of its own.
        lab.wait_for(
            "SELECT count(*) FROM llm_providers b JOIN llm_providers a ON a.name = 'alpha'
             WHERE b.name = 'beta' AND b.api_key_encrypted <> a.api_key_encrypted AND b.encrypted_api_key = b.api_key_encrypted",
            "1",
        )
        .await;
        assert_ne!(lab.value(token).await, before, "it was set again");
    }
    lab.wait_for(valid, "2").await;
    let events = lab.run(&["events", "--output", "json"]).expect(0);
    assert!(
        events.stdout.contains("the key of another provider was copied into its row"),
        "{}",
        events.stdout
    );

    // An unmanaged row of the gateway's does not draw it either.
    lab.execute(&format!(
        "INSERT INTO llm_providers (name, type, priority, api_base_url, api_key_encrypted)
             SELECT 'own', 'openai', 999, '{}', api_key_encrypted FROM llm_providers WHERE name = 'alpha';
         INSERT INTO llm_models (provider_id, name) SELECT id, 'm' FROM llm_providers WHERE name = 'own'",
        other.url
    ))
    .await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let said = lab.run_with(
            &["routes", "explain", "--model", "own/m", "--consumer", "web", "--output", "json"],
            |command| {
                command.env("PROVIDERD_GATEWAY__UNMANAGED", "true");
            },
        );
        if said.stdout.contains("\"key_failed\"") {
            break;
        }
        assert!(Instant::now() < deadline, "{}\n{}", said.stdout, said.stderr);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for _ in 0..3 {
        assert_ne!(ask("own/m").await.status, 200);
    }
    other.heard_no_key();
    assert_eq!(daemon.stop(), 0);
}
