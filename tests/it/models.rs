//! `providerd models`: the real program, a provider over a real socket, a real PostgreSQL.

use std::fs;

use serde_json::json;

use crate::support::{lab::Lab, offering::Offering};

const KEY: &str = "fake-key-of-a-test-0123456789";

fn manifest(offering: &Offering, rest: &str) -> String {
    format!(
        "# Our own server.\n[providers.x]   # x as in example\ntype = \"openai-compatible\"\nbase_url = \"{}\"\n\
         api_key = {{ env = \"X_KEY\" }}\n{rest}\n[[providers.x.models]]\nname = \"old\"   # stays\n\n\
         # Everything is cheap.\n[[routes]]\nmodels = \"x/old\"\npower_level = \"eco\"\nuser_tier = \"all\"\n# the end\n",
        offering.url("/v1")
    )
}

fn run(lab: &Lab, args: &[&str]) -> crate::support::lab::Ran {
    lab.run_with(args, |command| {
        command.env("X_KEY", KEY);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_stand_beside_what_is_declared_and_stored() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    lab.write("x.toml", &manifest(&offering, ""));
    run(&lab, &["apply"]).expect(0);
    offering.page(
        "/v1/models",
        200,
        r#"{"data":[{"id":"new","name":"The New","context_length":8192,"pricing":{"prompt":"0.0000001","completion":"0.0000002"}},{"id":"old"}]}"#,
    );
    let ran = run(&lab, &["models", "x", "--output", "json"]).expect(0);
    let report = ran.json();
    assert_eq!(report["provider"], "x");
    assert_eq!(report["source"], "x.toml:2");
    assert_eq!(report["missing"], json!([]));
    assert_eq!(
        report["models"],
        json!([
            { "name": "new", "offered": true, "declared": false, "stored": false, "enabled": null, "selected": true,
              "display_name": "The New", "context_length": 8192, "cost_per_1m_input_tokens": 0.1,
              "cost_per_1m_output_tokens": 0.2, "line": null, "vanished_at": null, "routes": [] },
            { "name": "old", "offered": true, "declared": true, "stored": true, "enabled": true, "selected": true,
              "display_name": null, "context_length": null, "cost_per_1m_input_tokens": null,
              "cost_per_1m_output_tokens": null, "line": 7, "vanished_at": null, "routes": ["eco × all"] },
        ])
    );
    assert!(offering.heard().iter().all(|head| head.contains(&format!("authorization: Bearer {KEY}"))));

    // Where the variable is not, the stored key is used.
    let heard = offering.heard().len();
    let table = lab.run(&["models", "x"]).expect(0).stdout;
    assert!(offering.heard()[heard].contains(KEY));
    assert!(table.starts_with("MODEL  OFFERED  DECLARED  STORED"), "{table}");
    assert!(table.contains("1 model not declared (hint: `providerd models x --write`"), "{table}");

    // What is declared and not offered is called out.
    offering.page("/v1/models", 200, r#"{"data":[{"id":"new"},{"id":"other"}]}"#);
    let table = run(&lab, &["models", "x"]).expect(2).stdout;
    assert!(
        table.contains(
            "! x/old: declared in x.toml:7, and the provider does not offer it; it serves eco × all"
        ),
        "{table}"
    );
    assert_eq!(run(&lab, &["models", "x", "--output", "json"]).expect(2).json()["missing"], json!(["old"]));
    let only = run(&lab, &["models", "x", "--output", "json", "--match", "n?w"]).expect(0).json();
    assert_eq!(only["models"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_is_written_and_everything_else_stays() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    let before = manifest(&offering, "[providers.x.discover]\nexclude = [\"*-preview\"]\n");
    lab.write("team/x.toml", &before);
    let path = lab.manifests().join("team/x.toml");
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    offering.offers(&["b", "a-preview", "old", "a"]);

    let ran = run(&lab, &["models", "x", "--write"]).expect(0);
    assert!(ran.stdout.contains("+ x/b\n+ x/a\nadded 2 models to "), "{}", ran.stdout);
    let expected = before.replace(
        "name = \"old\"   # stays\n",
        "name = \"old\"   # stays\n\n[[providers.x.models]]\nname = \"b\"\n\n[[providers.x.models]]\nname = \"a\"\n",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    run(&lab, &["validate"]).expect(0);

    // Nothing is added twice; `--match` limits what is.
    let again = run(&lab, &["models", "x", "--write"]).expect(0);
    assert!(again.stdout.ends_with("nothing to add\n"), "{}", again.stdout);
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
    offering.offers(&["b", "a", "old", "c1", "d1"]);
    let some = run(&lab, &["models", "x", "--write", "--match", "d*", "--output", "json"]).expect(0).json();
    assert_eq!((&some["added"], &some["left_out"]), (&json!(["d1"]), &json!([])));
    run(&lab, &["apply"]).expect(0);
    assert_eq!(lab.value("SELECT string_agg(name, ' ' ORDER BY name) FROM llm_models").await, "a b d1 old");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_says_why_and_writes_nothing() {
    let (lab, offering) = (Lab::new().await, Offering::start().await);
    let text = manifest(&offering, "");
    lab.write("x.toml", &text);
    let check = |args: &[&str], expected: &str| {
        let ran = run(&lab, args).expect(1);
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(!ran.stderr.contains(KEY), "{}", ran.stderr);
        assert_eq!(fs::read_to_string(lab.manifests().join("x.toml")).unwrap(), text);
    };
    check(&["models", "y"], "no provider is called `y`");
    offering.anywhere(
        401,
        "",
        format!(r#"{{"error":{{"code":"invalid_api_key","message":"wrong: {KEY}"}}}}"#),
    );
    check(&["models", "x", "--write"], "the list of models was refused");
    offering.anywhere(200, "", "<html>");
    check(&["models", "x", "--write"], "is not a list of models");
    offering.anywhere(302, "Location: http://example.invalid/\r\n", "");
    check(&["models", "x", "--write"], "caused by: ");
    assert!(lab.run(&["models", "x"]).expect(1).stderr.contains("X_KEY"), "without a key");

    // What is pulled from Git would not keep it.
    let pulled = |command: &mut std::process::Command| {
        command.env("PROVIDERD_SOURCE__GIT__URL", "https://git.example.invalid/llm.git");
    };
    let ran = lab.run_with(&["models", "x", "--write"], pulled).expect(1);
    assert!(ran.stderr.contains("hint: run the command in a work tree of your own"), "{}", ran.stderr);
    // A manifest that leads out of the directory is not followed.
    offering.offers(&["a"]);
    fs::rename(lab.manifests().join("x.toml"), lab.dir.path().join("x.toml")).unwrap();
    std::os::unix::fs::symlink("../x.toml", lab.manifests().join("x.toml")).unwrap();
    run(&lab, &["models", "x", "--write"]).expect(1);
    assert_eq!(fs::read_to_string(lab.dir.path().join("x.toml")).unwrap(), text);
}
