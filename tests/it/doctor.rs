//! `doctor` breaks nothing and finds what is broken on the way to a provider. What it finds on this machine and in the
//! database is tested with the other commands.
#![allow(clippy::disallowed_methods, reason = "the tests' own servers")]

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command, sync::Arc};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::support::{
    fake::{Fake, KEY, OTHER_KEY},
    lab::{BYOK, Lab},
};

/// The findings as `check subject`, and all hints and messages.
fn findings(lab: &Lab, adjust: impl FnOnce(&mut Command)) -> (Vec<String>, String) {
    let mut command = lab.command(&["doctor", "--output", "json"]);
    command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__TIMEOUT", "5s");
    adjust(&mut command);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let found = report["findings"].as_array().unwrap();
    assert_eq!(output.status.code(), Some(if found.is_empty() { 0 } else { 2 }), "{report}");
    assert!(found.iter().all(|it| !it["hint"].as_str().unwrap().is_empty()), "{report}");
    let text = report.to_string();
    assert!(!text.contains(KEY) && !text.contains(OTHER_KEY), "a key in {text}");
    let word = |it: &Value, name: &str| it[name].as_str().unwrap().to_owned();
    (found.iter().map(|it| format!("{} {}", word(it, "check"), word(it, "subject"))).collect(), text)
}

fn manifest(base_url: &str, more: &str) -> String {
    format!("[providers.alpha]\ntype = \"openai-compatible\"\nbase_url = \"{base_url}\"\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_at_which_a_provider_fails_is_named() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    let key = |command: &mut Command, key: &str| {
        command.env("LAB_KEY", key);
    };
    let keyed = fake.manifest("alpha", "{ env = \"LAB_KEY\" }", "");
    lab.write("a.toml", &keyed);
    let apply = || lab.run_with(&["apply"], |command| key(command, KEY)).expect(0);
    apply();
    let (found, text) = findings(&lab, |command| key(command, KEY));
    assert!(found.is_empty(), "{text}");

    // The key.
    fake.set_keys(&[OTHER_KEY]);
    let (found, text) = findings(&lab, |command| key(command, KEY));
    assert_eq!(found, ["auth alpha"], "{text}");
    fake.set_keys(&[KEY]);
    // HTTP.
    fake.set_status(503);
    let (found, text) = findings(&lab, |command| key(command, KEY));
    assert_eq!(found, ["http alpha"], "{text}");
    fake.set_status(200);

    // The ways to a provider, each broken at one step.
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let speaks_no_tls = plain.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            let _ = stream.write_all(b"220 this is no TLS\r\n").await;
        }
    });
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let check = |base_url: String, expected: &str, hint: &str| {
        lab.write("a.toml", &manifest(&base_url, ""));
        lab.run(&["apply"]).expect(0);
        let (found, text) = findings(&lab, |_| {});
        assert_eq!(found, [expected], "{base_url}: {text}");
        assert!(text.contains(hint), "{base_url}: {text}");
    };
    check(format!("http://{closed}/v1"), "tcp alpha", "port");
    check(format!("https://{speaks_no_tls}/v1"), "tls alpha", "http://");
    check("http://169.254.169.254/v1".into(), "egress alpha", "egress");
    // The stored key outlives its reference; one that never had a key is told to get one.
    lab.execute("UPDATE llm_providers SET api_key_encrypted = '', encrypted_api_key = ''").await;
    check(fake.base_url(), "auth alpha", "api_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_a_matter_of_dns_or_of_our_own_resolver() {
    let lab = Lab::new().await;
    lab.write("a.toml", &manifest("https://nowhere.invalid/v1", ""));
    lab.run(&["apply"]).expect(0);
    let (found, text) = findings(&lab, |_| {});
    // Where this machine has no working resolver, that is what is said.
    assert!(found == ["dns alpha"] || found == ["network alpha"], "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_noticed_by_the_providers_answers() {
    let lab = Lab::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let date = Arc::new(std::sync::Mutex::new(String::new()));
    let served = date.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let date = served.lock().unwrap().clone();
            let body = r#"{"object":"list","data":[{"id":"m","object":"model"}]}"#;
            let text = format!(
                "HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes()).await;
        }
    });
    lab.write("a.toml", &manifest(&format!("http://{address}/v1"), ""));
    lab.run(&["apply"]).expect(0);
    let tell = |offset: i64| {
        let time = chrono::Utc::now() + chrono::TimeDelta::seconds(offset);
        *date.lock().unwrap() = time.format("%a, %d %b %Y %H:%M:%S GMT").to_string();
    };
    tell(600);
    let (found, text) = findings(&lab, |_| {});
    assert_eq!(found, ["clock alpha"], "{text}");
    assert!(text.contains("set-ntp"), "{text}");
    *date.lock().unwrap() = "no date at all".into();
    let (found, text) = findings(&lab, |_| {});
    assert!(found.is_empty(), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_database_the_manifests_say_whom_to_ask() {
    let lab = Lab::new().await;
    let fake = Fake::start().await;
    fake.set_keys(&[]);
    lab.write("a.toml", &fake.manifest("alpha", "{ env = \"LAB_KEY\" }", ""));
    let (found, text) = findings(&lab, |command| {
        command.env("LAB_KEY", KEY).env("DATABASE_URL", "postgres://u@127.0.0.1:9/x");
    });
    assert_eq!(found, ["database database", "auth alpha"], "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_everybody_may_read_is_found() {
    let lab = Lab::new().await;
    let file = lab.dir.path().join("settings.toml");
    let url = lab.url.replace("postgres@", "postgres:fake-password@");
    fs::write(&file, format!("[database]\nurl = {url:?}\n")).unwrap();
    let look = |mode: u32| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let (found, text) = findings(&lab, |command| {
            command.env_remove("DATABASE_URL").env("BYOK_ENCRYPTION_KEY", BYOK).arg("--config").arg(&file);
        });
        assert!(!text.contains("fake-password"), "{text}");
        found
    };
    assert!(look(0o644).contains(&format!("permissions {}", file.display())));
    assert!(!look(0o600).iter().any(|it| it.starts_with("permissions")));
}
