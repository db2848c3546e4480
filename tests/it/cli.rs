//! Every command as a user runs it: exit codes, JSON, real Git, real PostgreSQL.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::support::{
    http::sha256,
    lab::{Lab, provider},
};

/// The words of the findings of `doctor`.
fn findings(lab: &Lab, adjust: impl FnOnce(&mut Command) -> &mut Command) -> Vec<String> {
    let mut command = lab.command(&["doctor", "--output", "json"]);
    adjust(&mut command);
    let output = command.output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = report["findings"].as_array().unwrap();
    assert_eq!(output.status.code(), Some(if found.is_empty() { 0 } else { 2 }), "{report}");
    assert!(found.iter().all(|it| !it["hint"].as_str().unwrap().is_empty()), "{report}");
    found.iter().map(|it| it["check"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_a_database_that_was_never_migrated_writes_nothing() {
    let lab = Lab::new().await;
    lab.execute(include_str!("../layouts/a.sql")).await;
    lab.write("a.toml", &provider("alpha", 1));
    let shape = "SELECT string_agg(n.nspname || '.' || c.relname || a.attname, ',' ORDER BY 1) FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid \
                 WHERE n.nspname NOT LIKE 'pg\\_%'";
    let before = lab.value(shape).await;
    let ran = lab.run(&["plan"]).expect(2);
    assert!(ran.stdout.contains("alpha") && ran.stderr.contains("no tables of providerd yet"), "{ran:?}");
    lab.run(&["status"]).expect(2);
    lab.run(&["events"]).expect(0);
    lab.run(&["key", "verify"]).expect(0);
    assert_eq!(findings(&lab, |it| it), ["migrations"]);
    assert_eq!(lab.value(shape).await, before);
    lab.run(&["apply"]).expect(0);
    lab.run(&["plan"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_each_broken_thing() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.run(&["apply"]).expect(0);
    assert!(findings(&lab, |it| it).is_empty());
    let other = "d3Jvbmctd3JvbmctYnlvay1rZXktdGVzdC0wMDAwMDI=";
    assert_eq!(findings(&lab, |it| it.env("BYOK_ENCRYPTION_KEY", other)), ["byok-key"]);
    assert_eq!(findings(&lab, |it| it.env_remove("BYOK_ENCRYPTION_KEY")), ["byok-key"]);
    assert_eq!(findings(&lab, |it| it.env("DATABASE_URL", "postgres://u@127.0.0.1:9/x")), ["database"]);
    assert_eq!(findings(&lab, |it| it.args(["--manifests", "nowhere"])), ["manifests"]);
    lab.execute("UPDATE llm_providers SET api_key_encrypted = 'junk', encrypted_api_key = 'junk'").await;
    assert_eq!(findings(&lab, |it| it), ["stored-key"]);
    lab.run(&["key", "verify"]).expect(2);
    lab.execute("UPDATE llm_providers SET api_key_encrypted = '', encrypted_api_key = ''").await;
    lab.write("bad.toml", "[providers.x]\n");
    assert_eq!(findings(&lab, |it| it), ["manifests"]);
    let file = lab.dir.path().join("open.key");
    fs::write(&file, "fake-open-key").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    lab.write("bad.toml", &format!("[providers.x]\ntype = \"openai\"\napi_key = {{ file = {file:?} }}\n"));
    assert_eq!(findings(&lab, |it| it), ["permissions", "providers"]);
    lab.write("bad.toml", "[providers.x]\ntype = \"openai\"\napi_key = { env = \"LAB_NOWHERE\" }\n");
    assert_eq!(findings(&lab, |it| it), ["reference", "providers"]);

    let foreign = Lab::new().await;
    foreign.execute(include_str!("../layouts/c.sql")).await;
    foreign.write("a.toml", &provider("alpha", 1));
    assert_eq!(findings(&foreign, |it| it), ["layout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_key_applies_and_a_changed_one_shows_as_fingerprints() {
    let lab = Lab::new().await;
    let seal = |key: &str| {
        let mut command = lab.command(&["key", "seal"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(key.as_bytes()).unwrap();
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    let generated = lab.run(&["key", "generate"]).expect(0);
    assert_eq!(generated.stdout.trim().len(), 44);
    lab.write("a.toml", &format!("[providers.alpha]\ntype = \"openai\"\n{}", seal("fake-first-key")));
    lab.run(&["apply"]).expect(0);
    let proofs = lab.run(&["key", "verify", "--output", "json"]).expect(0).json();
    assert_eq!(proofs[0]["verdict"], "matches");
    lab.write("a.toml", &format!("[providers.alpha]\ntype = \"openai\"\n{}", seal("fake-second-key")));
    let plan = lab.run(&["plan"]).expect(2).stdout;
    assert!(plan.contains("… → ") && plan.contains("changed (") && !plan.contains("fake-"), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn commits_are_recorded_and_routes_are_compared() {
    let lab = Lab::new().await;
    let git = |args: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"])
            .args(args)
            .current_dir(lab.manifests())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    lab.write("a.toml", &provider("alpha", 1));
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "first"]);
    let commit = git(&["rev-parse", "HEAD"]);
    lab.run(&["apply"]).expect(0);
    let revision = || lab.run(&["status", "--output", "json"]).json()["providers"][0]["revision"].clone();
    assert_eq!(revision(), commit[..12]);
    lab.write("a.toml", &provider("alpha", 2));
    lab.run(&["apply"]).expect(0);
    assert_eq!(revision(), format!("{}+dirty", &commit[..12]));
    let table = lab.run(&["status"]).stdout;
    assert!(table.contains("REVISION") && table.contains(&format!("{}+dirty", &commit[..12])), "{table}");
    let events =
        lab.run(&["events", "--output", "json", "--provider", "alpha", "--since", "1h"]).expect(0).json();
    let revisions: Vec<&str> =
        events.as_array().unwrap().iter().filter_map(|event| event["revision"].as_str()).collect();
    assert_eq!(revisions, [commit[..12].to_owned(), format!("{}+dirty", &commit[..12])]);

    lab.run(&["routes"]).expect(0);
    lab.run(&["routes", "--diff", "HEAD"]).expect(0);
    lab.write("a.toml", "[providers.alpha]\ntype = \"openai\"\n");
    lab.run(&["routes", "--diff", "HEAD"]).expect(2);
    lab.run(&["routes", "--diff", "no-such-revision"]).expect(1);
    let other = lab.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("a.toml"), provider("alpha", 1)).unwrap();
    lab.run(&["routes", "--diff", other.to_str().unwrap()]).expect(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_what_needs_no_database() {
    let lab = Lab::new().await;
    for args in [&["nonsense"][..], &["plan", "--nonsense"], &["events", "--since", "yesterday"], &[]] {
        lab.run(args).expect(64);
    }
    for shell in ["bash", "zsh", "fish"] {
        assert!(lab.run(&["completions", shell]).expect(0).stdout.contains("providerd"));
    }
    lab.write("a.toml", &(provider("alpha", 1) + &provider("beta", 2)));
    assert_eq!(lab.run(&["names"]).expect(0).stdout, "alpha\nbeta\n");
    let script = lab.run(&["completions", "bash"]).expect(0).stdout;
    fs::write(lab.dir.path().join("completion.bash"), script).unwrap();
    let typed = "PATH=$1:$PATH; . ./completion.bash; COMP_WORDS=(providerd check al); COMP_CWORD=2; \
                 _providerd_named providerd al check; printf '%s\\n' \"${COMPREPLY[@]}\"";
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_providerd")).parent().unwrap();
    let shell = Command::new("bash")
        .args(["-c", typed, "bash"])
        .arg(program)
        .current_dir(lab.dir.path())
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&shell.stdout).trim(),
        "alpha",
        "{}",
        String::from_utf8_lossy(&shell.stderr)
    );
    lab.run(&["man", "pages"]).expect(0);
    assert!(lab.dir.path().join("pages/providerd-manifest.5").exists());
    assert!(!lab.dir.path().join("pages/providerd-names.1").exists());
    assert!(lab.dir.path().join("pages/providerd-plan.1").exists());
    assert!(lab.run(&["schema"]).expect(0).json().is_object());
    lab.write("a.toml", "[providers.alpha]\ntyp = \"openai\"\n");
    assert!(lab.run(&["validate"]).expect(2).stdout.contains("did you mean"));
    let problems = lab.run(&["validate", "--output", "json"]).expect(2).json().to_string();
    assert!(problems.contains("\"unknown-key\"") && problems.contains("\"a.toml\""), "{problems}");
    assert!(lab.run(&["validate", "--output", "github"]).expect(2).stdout.contains("::error "));
    lab.run(&["validate", "nowhere"]).expect(1);
    lab.write("a.toml", &provider("alpha", 1));
    lab.run(&["validate"]).expect(0);
    lab.run(&["apply"]).expect(0);
    lab.run(&["status", "alpha"]).expect(0);
    lab.run(&["status", "nobody"]).expect(1);
    lab.run(&["plan", "--database-url", "postgres://u@127.0.0.1:9/x"]).expect(1);
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_events_go_on() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 1));
    lab.run(&["apply"]).expect(0);
    let mut child =
        lab.command(&["events", "--follow", "--output", "json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["provider"], "alpha");
    lab.write("b.toml", &provider("beta", 1));
    lab.run(&["apply"]).expect(0);
    assert_eq!(next()["provider"], "beta");
    child.kill().unwrap();
    child.wait().unwrap();
}

/// In surroundings without a database: an empty state directory, and no variable that names one.
fn bare(lab: &Lab, args: &[&str], adjust: impl FnOnce(&mut Command)) -> crate::support::lab::Ran {
    lab.run_with(args, |command| {
        command.env_remove("DATABASE_URL").env_remove("BYOK_ENCRYPTION_KEY");
        adjust(command);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_reads_makes_neither_a_database_nor_a_key() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("a", 1));
    let state = lab.dir.path().join("state");
    for args in [
        &["status"] as &[&str],
        &["plan"],
        &["events"],
        &["usage"],
        &["check"],
        &["models", "a"],
        &["routes", "explain", "--model", "a/a-small"],
        &["key", "verify"],
    ] {
        let ran = bare(&lab, args, |_| {}).expect(1);
        assert!(
            ran.stderr.contains("there is no database") && ran.stderr.contains("hint:"),
            "{args:?}: {}",
            ran.stderr
        );
        assert!(ran.stderr.contains(&state.display().to_string()), "{args:?}: {}", ran.stderr);
        assert!(!state.exists(), "{args:?} made {}", state.display());
    }
    let doctor = bare(&lab, &["doctor"], |_| {});
    assert!(doctor.code == 2 && doctor.stdout.contains("there is no database"), "{doctor:?}");
    assert!(!state.exists(), "doctor made {}", state.display());
    // A secret that is sealed with a key that no daemon knows is lost.
    let secret = lab.dir.path().join("secret");
    fs::write(&secret, "sk-fake-key-for-tests-0123456789abcdef").unwrap();
    let seal = |args: &[&str]| {
        bare(&lab, args, |command| {
            command.stdin(fs::File::open(&secret).unwrap());
        })
    };
    let refused = seal(&["key", "seal"]).expect(1);
    assert!(
        refused.stderr.contains("there is no BYOK key") && refused.stderr.contains("--new"),
        "{}",
        refused.stderr
    );
    assert!(!state.exists(), "key seal made {}", state.display());
    let sealed = seal(&["key", "seal", "--new"]).expect(0);
    assert!(sealed.stdout.contains("sealed = \"gAAAAA") && state.join("byok.key").exists(), "{sealed:?}");
    seal(&["key", "seal"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slip_in_a_name_suspends_nothing() {
    let lab = Lab::new().await;
    lab.write("ollama-cloud.toml", &provider("ollama-cloud", 1));
    lab.run(&["apply"]).expect(0);
    lab.execute("INSERT INTO llm_providers (name, type) VALUES ('Foreign One', 'openai')").await;
    for args in [
        &["suspend", "ollama-clod"] as &[&str],
        &["resume", "ollama-clod"],
        &["suspend", "ollama-clod", "--checks"],
    ] {
        let ran = lab.run(args).expect(1);
        assert!(ran.stderr.contains("did you mean `ollama-cloud`?"), "{args:?}: {}", ran.stderr);
    }
    assert!(lab.run(&["suspend", "quite-another"]).expect(1).stderr.contains("hint:"));
    let events = lab.run(&["events", "--output", "json"]).expect(0).stdout;
    assert!(!events.contains("ollama-clod") && !events.contains("quite-another"), "{events}");
    for name in ["ollama-cloud", "Foreign One"] {
        lab.run(&["suspend", name]).expect(0);
        lab.run(&["resume", name]).expect(0);
    }
    // What is stopped can be started again, though it is gone by now.
    lab.run(&["suspend", "Foreign One"]).expect(0);
    lab.execute("DELETE FROM llm_providers WHERE name = 'Foreign One'").await;
    lab.run(&["resume", "Foreign One"]).expect(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_made_once_and_its_place_named() {
    let lab = Lab::new().await;
    let closed = lab.run(&["token"]).expect(2);
    assert!(closed.stdout.contains("the admin API is closed"), "{}", closed.stdout);
    let made = lab.run(&["token", "--new", "--output", "json"]).expect(0).json();
    let hash = sha256(made["token"].as_str().unwrap());
    assert_eq!(made["sha256"], Value::from(hash.as_str()));
    let open = lab.run_with(&["token"], |command| {
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", &hash);
    });
    assert!(open.expect(0).stdout.contains("1 in server.token_sha256"));

    // With the embedded database the daemon keeps the hash itself.
    let embedded = |args: &[&str]| {
        lab.run_with(args, |command| {
            command.env_remove("DATABASE_URL");
        })
    };
    assert!(embedded(&["token", "--new"]).expect(1).stderr.contains("there is no state directory"));
    fs::create_dir(lab.dir.path().join("state")).unwrap();
    let made = embedded(&["token", "--new", "--output", "json"]).expect(0).json();
    let kept = lab.dir.path().join("state/admin_token.sha256");
    assert_eq!(fs::read_to_string(&kept).unwrap().trim(), sha256(made["token"].as_str().unwrap()));
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    embedded(&["token"]).expect(0);
    let again = embedded(&["token", "--new", "--output", "json"]).expect(0).json();
    assert_ne!(again["token"], made["token"]);
}
