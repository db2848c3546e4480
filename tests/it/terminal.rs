//! Nothing that somebody else named moves the cursor, forges a line or hides text: not of a command, not of the log.

use std::fs;

use crate::support::lab::{Lab, PATIENCE, Ran};

/// A line of its own, the title of the window, the screen, the direction of the text, nothing to be seen.
const ACTS: &str = "x\nFORGED\r\u{1b}]0;t\u{7}\u{1b}[2J\u{1b}[31m\u{9b}2J\u{202e}\u{200b}\u{2028}y";

/// Characters that a terminal obeys; a line break and a tab may be ours.
fn obeyed(text: &str) -> Vec<String> {
    let acts = |c: &char| {
        (c.is_control() && !matches!(c, '\n' | '\t'))
            || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut found: Vec<String> = text.chars().filter(acts).map(|c| format!("{c:?}")).collect();
    found.extend(text.lines().filter(|line| line.starts_with("FORGED")).map(str::to_owned));
    found
}

#[test]
fn the_check_itself_sees() {
    assert_eq!(obeyed("plain\ttext\n"), Vec::<String>::new());
    assert!(obeyed(ACTS).len() >= 9, "{:?}", obeyed(ACTS));
}

/// A directory and a database in which everything that can be named by others is hostile.
async fn hostile() -> Lab {
    let lab = Lab::new().await;
    let text = "[providers.good]\ntype = \"openai-compatible\"\nbase_url = \"https://good.example.com/v1\"\n\
                api_key = { env = \"NOT_SET_ANYWHERE\" }\n\
                [[providers.good.models]]\nname = \"m\u{202e}\u{200b}\"\n\
                [[routes]]\nmodels = \"good/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n";
    lab.write("first.toml", text);
    lab.run(&["apply"]).expect(0);
    lab.remove("first.toml");
    fs::write(lab.manifests().join(format!("{ACTS}.toml")), text).unwrap();
    fs::write(lab.manifests().join(format!("bad {ACTS}.toml")), "# \u{202e}\u{9b}\ntypo\u{202e} = 1\n")
        .unwrap();
    let literal = format!("'{}'", ACTS.replace('\'', "''"));
    // The types of some columns are shorter than the text.
    lab.execute(&format!(
        "INSERT INTO llm_providers (name, type, api_key_encrypted, health_status, api_key_test_status, priority)
         VALUES ({literal}, {literal}, {literal}, {literal}, {literal}, 7), ('named', 'openai', '', {literal}, {literal}, 6);
         UPDATE llm_providers SET api_base_url = {literal}, health_status = {literal} WHERE name = 'good';
         INSERT INTO llm_models (provider_id, name, display_name)
         SELECT id, {literal}, {literal} FROM llm_providers;
         INSERT INTO providerd.events (kind, provider, reason, detail, file, line)
         VALUES ('drift', {literal}, {literal}, jsonb_build_object('changes', jsonb_build_array(jsonb_build_object(
             'kind', {literal}, 'name', {literal}, 'fields', jsonb_build_array(jsonb_build_object('field', {literal}, 'old', {literal}))))),
             {literal}, 1);",
    ))
    .await;
    lab
}

#[tokio::test(flavor = "multi_thread")]
async fn no_command_passes_on_what_a_terminal_obeys() {
    let lab = hostile().await;
    let other = lab.dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(
        other.join(format!("{ACTS}.toml")),
        "[[routes]]\nmodels = \"*/*\"\npower_level = \"precision\"\n",
    )
    .unwrap();
    let other = other.to_str().unwrap();
    let check = |args: &[&str], hostile: bool| {
        for more in [&[][..], &["--output", "json"]] {
            let _ = fs::remove_dir_all(lab.dir.path().join("imported"));
            let ran: Ran = lab.run_with(&[args, more].concat(), |command| {
                command.env("PROVIDERD_LOG__FORMAT", "human");
            });
            let text = format!("{}{}", ran.stdout, ran.stderr);
            assert_eq!(obeyed(&text), Vec::<String>::new(), "{args:?} {more:?} printed:\n{text}");
            assert!(!text.contains("panicked"), "{text}");
            // Each was given something to print, or the row shows nothing.
            assert!(
                !hostile || text.contains("FORGED") || text.contains("202e"),
                "{args:?} {more:?}:\n{text}"
            );
        }
    };
    check(&["validate"], true);
    check(&["validate", other], true);
    check(&["plan"], true);
    check(&["routes"], true);
    check(&["routes", "--diff", other], true);
    check(&["status"], true);
    check(&["status", ACTS], true);
    check(&["events"], true);
    check(&["import", "--dir", "imported"], true);
    check(&["key", "verify"], true);
    check(&["doctor"], true);
    check(&["models", "good"], false);
    check(&["models", ACTS], true);
    check(&["check"], false);
    check(&["suspend", ACTS], true);
    check(&["resume", ACTS], true);
    check(&["apply"], true);
    check(&["--manifests", ACTS, "validate"], true);
    check(&["--config", ACTS, "validate"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_of_the_log_is_forged() {
    let lab = hostile().await;
    let greeting = lab.dir.path().join("greeting");
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_LOG__FORMAT", "human").stdout(fs::File::create(&greeting).unwrap());
    });
    daemon.wait_for_log("FORGED").await;
    let started = std::time::Instant::now();
    while !fs::read_to_string(&greeting).unwrap().contains("manifests  ") {
        assert!(started.elapsed() < PATIENCE && daemon.is_running(), "{}", daemon.log());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let said = fs::read_to_string(&greeting).unwrap();
    assert!(said.contains("FORGED"), "{said}");
    for text in [said, daemon.log()] {
        assert_eq!(obeyed(&text), Vec::<String>::new(), "{text}");
    }
    assert_eq!(daemon.stop(), 0);
}
