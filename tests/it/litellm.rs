//! LiteLLM's configuration: exported by the command, kept in step by the daemon, and read back.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use crate::support::lab::{Lab, PATIENCE, provider};

/// Clearly no real key.
const KEY: &str = "sk-fake-key-for-litellm-0123456789abcdef";

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Waits until a file holds what it should.
async fn wait_for_file(path: &Path, fits: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let text = fs::read_to_string(path).unwrap_or_default();
        if fits(&text) {
            return text;
        }
        assert!(started.elapsed() < PATIENCE, "{}:\n{text}", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_export_names_variables_or_files_and_never_a_key() {
    let lab = Lab::new().await;
    fs::write(lab.dir.path().join("beta.key"), KEY).unwrap();
    let file = lab.dir.path().join("beta.key").display().to_string();
    lab.write(
        "a.toml",
        &provider("alpha", 5).replace("priority", "api_key = { env = \"ALPHA_API_KEY\" }\npriority"),
    );
    let exported = lab.run(&["export", "litellm"]).expect(0);
    assert!(
        exported.stdout.contains("model_name: \"alpha/alpha-small\" # a.toml:7\n"),
        "{}",
        exported.stdout
    );
    assert!(exported.stdout.contains("api_key: \"os.environ/ALPHA_API_KEY\""), "{}", exported.stdout);
    assert!(exported.stdout.contains("model_name: \"eco\""), "{}", exported.stdout);

    // A key in a file has no variable, and so its provider is left out and named.
    lab.write(
        "b.toml",
        &provider("beta", 7).replace("priority", &format!("api_key = {{ file = \"{file}\" }}\npriority")),
    );
    let without = lab.run(&["export", "litellm", "--output", "json"]).expect(2).json();
    assert!(without["left_out"][0].as_str().unwrap().contains("--keys DIR"), "{without}");
    let run = || {
        lab.run_with(&["export", "litellm", "--file", "out.yaml", "--keys", "keys"], |command| {
            command.env("ALPHA_API_KEY", "sk-fake-other-key-0123456789abcdef");
        })
    };
    assert!(run().expect(0).stdout.starts_with("out.yaml: "));
    let at = |name: &str| lab.dir.path().join(name);
    let text = fs::read_to_string(at("out.yaml")).unwrap();
    assert!(text.contains("os.environ/BETA_API_KEY") && !text.contains("sk-fake"), "{text}");
    assert_eq!(fs::read_to_string(at("keys/BETA_API_KEY.key")).unwrap(), KEY);
    assert_eq!(
        fs::read_to_string(at("keys/keys.env")).unwrap(),
        format!("ALPHA_API_KEY=sk-fake-other-key-0123456789abcdef\nBETA_API_KEY={KEY}\n")
    );
    assert_eq!(
        (mode(&at("keys/keys.env")), mode(&at("keys/BETA_API_KEY.key")), mode(&at("keys"))),
        (0o600, 0o600, 0o700)
    );
    run().expect(0);
    assert_eq!(fs::read_to_string(at("out.yaml")).unwrap(), text, "the same manifests give the same bytes");

    // And back: what was exported declares the same models at the same places.
    let imported = lab.run(&["import", "litellm", "out.yaml", "--dir", "again", "--output", "json"]);
    assert!([0, 2].contains(&imported.code), "{}\n{}", imported.stdout, imported.stderr);
    lab.run(&["validate", "again"]).expect(0);
    let again = fs::read_to_string(at("again/litellm.toml")).unwrap();
    for expected in ["https://alpha.example.com/v1", "alpha-small", "BETA_API_KEY", "context_length = 4096"] {
        assert!(again.contains(expected), "{expected}\n{again}");
    }
    // It never overwrites.
    let refused = lab.run(&["import", "litellm", "out.yaml", "--dir", "again"]).expect(1);
    assert!(refused.stderr.contains("nothing was written"), "{}", refused.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_keeps_the_configuration_in_step() {
    let lab = Lab::new().await;
    let (path, keys) = (lab.dir.path().join("litellm.yaml"), lab.dir.path().join("litellm-keys"));
    lab.write(
        "a.toml",
        &provider("alpha", 5).replace("priority", "api_key = { env = \"ALPHA_API_KEY\" }\npriority"),
    );
    lab.write("b.toml", &provider("beta", 7));
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_LITELLM__PATH", &path).env("PROVIDERD_LITELLM__KEYS", &keys);
        command.env("ALPHA_API_KEY", KEY);
    });
    daemon.wait_ready().await;
    let first =
        wait_for_file(&path, |text| text.contains("alpha/alpha-small") && text.contains("beta/beta-small"))
            .await;
    assert!(!first.contains("sk-fake"));
    assert_eq!(wait_for_file(&keys.join("ALPHA_API_KEY.key"), |text| !text.is_empty()).await, KEY);

    lab.write("b.toml", &provider("beta", 7).replace("beta-small", "beta-large"));
    wait_for_file(&path, |text| text.contains("beta/beta-large") && !text.contains("beta-small")).await;
    // A manifest that cannot be read takes nothing out; the daemon says that the file waits.
    lab.write("b.toml", "[providers.beta\n");
    lab.write("c.toml", &provider("gamma", 1));
    daemon.wait_for_log("it stays as it is while a manifest is not valid").await;
    let kept = fs::read_to_string(&path).unwrap();
    assert!(kept.contains("beta/beta-large") && !kept.contains("gamma"), "{kept}");
    lab.write("b.toml", &provider("beta", 7));
    wait_for_file(&path, |text| text.contains("gamma/gamma-small") && text.contains("beta/beta-small")).await;
    // What is taken out goes, with its key.
    lab.remove("a.toml");
    wait_for_file(&path, |text| !text.contains("alpha") && text.contains("gamma")).await;
    let started = Instant::now();
    while keys.join("ALPHA_API_KEY.key").exists() {
        assert!(started.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(daemon.stop(), 0);
}
