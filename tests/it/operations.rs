//! What `docs/OPERATIONS.md` tells people to do works: the workflow's scripts are run as GitHub would run them, and the
//! recipes that are worth it are carried out.
#![allow(clippy::disallowed_methods, reason = "the test's own processes")]

use std::{fs, process::Command};

use crate::support::lab::{Lab, provider};

const WORKFLOW: &str = include_str!("../../docs/examples/github/providers.yml");

/// The script of the step of this name.
fn script(step: &str) -> String {
    let from = WORKFLOW.split(&format!("- name: {step}\n")).nth(1).expect("the step is there");
    let run = from.split("run: |\n").nth(1).expect("it has a script");
    let lines = run.lines().map_while(|line| line.strip_prefix("          "));
    lines.map(|line| format!("{line}\n")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_is_validated_compared_and_planned() {
    let lab = Lab::new().await;
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        command.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"]);
        let output = command.args(args).current_dir(lab.dir.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    let summary = lab.dir.path().join("summary");
    // As GitHub does: bash -e -o pipefail.
    let step = |name: &str| {
        let mut command = Command::new("bash");
        command.args(["--noprofile", "--norc", "-e", "-o", "pipefail", "-c", &script(name)]);
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_providerd"));
        for (key, value) in lab.command(&[]).get_envs() {
            command.env(key, value.unwrap_or_default());
        }
        let path =
            format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).env("GITHUB_STEP_SUMMARY", &summary).env("BASE", "base");
        let output = command.current_dir(lab.dir.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let said = || fs::read_to_string(&summary).unwrap_or_default();

    lab.write("a.toml", &provider("alpha", 1));
    git(&["init", "-q"]);
    git(&["add", "providers.d"]);
    git(&["commit", "-qm", "base"]);
    git(&["tag", "base"]);
    lab.run(&["apply"]).expect(0);

    // A good change.
    lab.write("b.toml", &provider("beta", 2));
    assert_eq!(step("Validate").0, Some(0));
    assert_eq!(step("Routes").0, Some(0), "{}", said());
    assert!(said().contains("beta/beta-small"), "{}", said());
    assert_eq!(step("Plan").0, Some(0), "{}", said());
    assert!(said().contains("### Plan") && said().contains("beta"), "{}", said());
    assert_eq!(lab.value("SELECT count(*) FROM llm_providers").await, "1", "a plan writes nothing");

    // One that takes the last model from a cell.
    lab.remove("b.toml");
    lab.write(
        "a.toml",
        "[providers.alpha]\ntype = \"openai-compatible\"\nbase_url = \"https://alpha.example.com/v1\"\n",
    );
    assert_eq!(step("Validate").0, Some(0));
    assert_eq!(step("Routes").0, Some(2), "{}", said());

    // One that is wrong: the annotation names file and line.
    lab.write("a.toml", "[providers.alpha]\ntyp = \"openai\"\n");
    let (code, annotations) = step("Validate");
    assert_eq!(code, Some(2));
    assert!(annotations.contains("::error file=") && annotations.contains("line=2"), "{annotations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_byok_key_is_recovered_from() {
    let lab = Lab::new().await;
    lab.write(
        "a.toml",
        &provider("alpha", 1).replace("priority", "api_key = { env = \"LAB_KEY\" }\npriority"),
    );
    let new = "bmV3LWJ5b2sta2V5LWZvci1wcm92aWRlcmQtMDAwMDE=";
    let apply = |byok: Option<&str>, code: i32| {
        lab.run_with(&["apply"], |command| {
            command.env("LAB_KEY", "fake-key-of-alpha");
            if let Some(byok) = byok {
                command.env("BYOK_ENCRYPTION_KEY", byok);
            }
        })
        .expect(code)
    };
    apply(None, 0);
    apply(Some(new), 1);
    let doc = include_str!("../../docs/OPERATIONS.md");
    let sql =
        doc.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).expect("the recipe is there");
    lab.execute(sql).await;
    apply(Some(new), 0);
    let verified = lab.run_with(&["key", "verify"], |command| {
        command.env("LAB_KEY", "fake-key-of-alpha").env("BYOK_ENCRYPTION_KEY", new);
    });
    verified.expect(0);
    assert_eq!(lab.value("SELECT length(api_key_encrypted) > 0 FROM llm_providers").await, "true");
}
