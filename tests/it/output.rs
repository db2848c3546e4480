//! What `docs/OUTPUT.md` says about the JSON of the commands is what they print, field by field.

use std::{collections::BTreeSet, fs, io::Write as _, process::Stdio};

use serde_json::Value;

use crate::support::{
    fake::{Fake, KEY},
    lab::Lab,
};

/// Objects whose members are named by data.
const MAPS: [&str; 6] = ["summary", "keys", "gateway[].values", "written", "left_out", "skipped"];
/// What is described in words.
const OPAQUE: [&str; 4] = ["[].detail", "[].key.quota", "gateway[].fields", "notices[].fields"];

/// The leaves of a value, as the document writes them.
fn leaves(value: &Value, path: &str, into: &mut BTreeSet<String>) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        _ if OPAQUE.contains(&path) => drop(into.insert(path.to_owned())),
        Value::Object(members) if MAPS.contains(&path) => {
            members.values().for_each(|member| leaves(member, &below("*"), into));
        }
        Value::Object(members) => {
            members.iter().for_each(|(name, member)| leaves(member, &below(name), into))
        }
        Value::Array(items) => items.iter().for_each(|item| leaves(item, &format!("{path}[]"), into)),
        _ => drop(into.insert(path.to_owned())),
    }
}

/// The fields of each section of the document.
fn documented(section: &str) -> BTreeSet<String> {
    let text = include_str!("../../docs/OUTPUT.md");
    let found = text.split("\n## ").find(|it| it.lines().next().is_some_and(|head| head.contains(section)));
    let rows = found.expect("a section").lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect()
}

/// All that these outputs hold is documented, and all that is documented was seen, but for what is named.
pub fn compare(section: &str, more: &BTreeSet<String>, outputs: &[Value], unseen: &[&str]) {
    let mut seen = BTreeSet::new();
    outputs.iter().for_each(|output| leaves(output, "", &mut seen));
    let known: BTreeSet<String> = documented(section).union(more).cloned().collect();
    let parents = |path: &&String| {
        // An empty list or a null where something may be: its members are documented.
        !known.iter().any(|it| it.starts_with(&format!("{path}.")) || it.starts_with(&format!("{path}[]")))
    };
    let undocumented: Vec<&String> = seen.difference(&known).filter(parents).collect();
    assert!(undocumented.is_empty(), "{section} prints what docs/OUTPUT.md does not tell: {undocumented:?}");
    let missing = known.difference(&seen).filter(|it| {
        let list = it.strip_suffix("[]").unwrap_or(it);
        !unseen.iter().any(|unseen| it.starts_with(*unseen)) && list != "summary"
    });
    let missing: Vec<&String> = missing.collect();
    assert!(missing.is_empty(), "docs/OUTPUT.md tells of {section} what it does not print: {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_that_is_documented_is_printed_and_the_other_way_round() {
    let lab = Lab::new().await;
    let (fake, dead) = (Fake::start().await, Fake::start().await);
    dead.set_status(500);
    let key = lab.dir.path().join("key");
    fs::write(&key, KEY).unwrap();
    let reference = format!("{{ file = \"{}\" }}", key.display());
    let route = |name: &str| {
        format!("[[routes]]\nmodels = \"{name}/*\"\npower_level = \"eco\"\nuser_tier = \"{name}\"\n")
    };
    let alpha = fake.manifest("alpha", &reference, "");
    lab.write("alpha.toml", &format!("{alpha}{}", route("alpha")));
    lab.write("beta.toml", &dead.manifest("beta", "{ env = \"NOT_SET_ANYWHERE\" }", ""));
    lab.write("callers.toml", "[consumers.web]\n\n[tiers.free]\nlimits = { concurrency = 1 }\n");
    let json = |args: &[&str]| lab.run(&[args, &["--output", "json"]].concat()).json();

    let none = BTreeSet::new();
    let mut plans = vec![json(&["plan"])];
    lab.run(&["apply"]).expect(0);
    let routes = vec![json(&["routes"]), json(&["routes", "--offered"])];

    // Something of everything: drift, another key, a cell that would lose its model, a prune that waits.
    lab.execute("UPDATE llm_providers SET priority = 99 WHERE name = 'alpha'").await;
    fs::write(&key, format!("{KEY}-2")).unwrap();
    let before = lab.dir.path().join("before");
    fs::create_dir(&before).unwrap();
    fs::copy(lab.manifests().join("alpha.toml"), before.join("alpha.toml")).unwrap();
    lab.write("alpha.toml", &alpha.replace("type =", "priority = 1\ntype ="));
    lab.remove("beta.toml");
    lab.write("callers.toml", "[consumers.web]\n\n[tiers.free]\nlimits = { concurrency = 2 }\n");
    lab.write("gamma.toml", &format!("{}{}", fake.manifest("gamma", &reference, ""), route("gamma")));
    let strict = lab.run_with(&["plan", "--output", "json"], |command| {
        command.env("PROVIDERD_RECONCILE__PRUNE_LIMIT", "0").env("PROVIDERD_RECONCILE__PRUNE_LIMIT_MIN", "0");
    });
    plans.push(strict.json());
    let before = before.display().to_string();
    let routes = [routes, vec![json(&["routes", "--diff", &before])]].concat();
    let plan = documented("`plan`");
    compare("`plan`", &none, &plans, &["notices[].fields"]);
    compare("`routes`", &none, &routes, &[]);

    lab.write("alpha.toml", &format!("{alpha}{}", route("alpha")));
    lab.execute("ALTER TABLE llm_providers ADD CONSTRAINT no_gamma CHECK (name <> 'gamma')").await;
    let refused = json(&["apply"]);
    lab.execute("ALTER TABLE llm_providers DROP CONSTRAINT no_gamma").await;
    fs::write(&key, KEY).unwrap();
    let daemon = lab.checking();
    lab.wait_for("SELECT count(*) FROM llm_providers WHERE name = 'gamma'", "1").await;
    let waited = lab.run_checking(&["apply", "--wait", "--output", "json"]).json();
    lab.wait_for("SELECT health_status FROM llm_providers WHERE name = 'gamma'", "healthy").await;
    compare(
        "`apply`",
        &plan,
        &[refused, waited].into_iter().chain(plans).collect::<Vec<_>>(),
        &["checks.", "notices[].fields"],
    );
    assert_eq!(daemon.stop(), 0);
    lab.write("bad.toml", "nonsense");
    // A daemon somewhere else that doubts its own checks.
    let other = "00000000-0000-4000-8000-000000000001";
    lab.execute(&format!(
        "INSERT INTO providerd.lease (name, holder, token, expires_at)
         VALUES ('checks:{other}', '{other}', 1, now() + interval '1 hour');
         INSERT INTO providerd.meta (key, value) VALUES ('impaired:{other}', '6 of 9 hosts fail at once')"
    ))
    .await;

    let slow = |rate: &str| {
        let status = lab.run_with(&["status", "--output", "json"], |command| {
            command.env("PROVIDERD_HEALTH__INTERVAL", "1s").env("PROVIDERD_HEALTH__SLOW_AFTER", "500ms");
            command.env("PROVIDERD_HEALTH__PER_ORIGIN_RATE", rate);
        });
        status.json()
    };
    // Two providers of one host.
    let paced = slow("1");
    assert!(paced["paced"][0].as_str().unwrap().contains("stretch by 2.0"), "{paced}");
    assert_eq!(slow("2")["paced"], serde_json::json!([]));
    compare("`status`", &none, &[paced], &["held[]", "providers[].notices[]"]);
    compare("`check`", &none, &[json(&["check"])], &["[].key.quota"]);
    compare("`events`", &none, &[json(&["events"])], &[]);
    let suspended = [
        json(&["suspend"]),
        json(&["resume"]),
        json(&["suspend", "alpha", "--checks", "--for", "2h"]),
        json(&["resume", "alpha", "--checks"]),
    ];
    assert_eq!((&suspended[0]["suspended"], &suspended[1]["was_suspended"]), (&true.into(), &true.into()));
    assert_eq!((&suspended[2]["what"], &suspended[3]["provider"]), (&"checking".into(), &"alpha".into()));
    compare("`suspend`", &none, &suspended, &[]);

    lab.execute("INSERT INTO llm_providers (name, type, api_key_encrypted) VALUES ('theirs', 'openai', '')")
        .await;
    compare("`import`", &none, &[json(&["import"])], &["left_out.*"]);
    compare("`doctor`", &none, &[json(&["doctor"])], &[]);

    let mut child = lab.command(&["key", "seal", "--output", "json"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(KEY.as_bytes()).unwrap();
    let sealed: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    let new = json(&["key", "generate"]);
    let consumer = json(&["key", "consumer", "web", "--expires", "2999-12-31"]);
    let verified = json(&["key", "verify"]);
    let rotated = lab.run_with(&["key", "rotate", "--output", "json"], |command| {
        let both = format!("{},{}", new["key"].as_str().unwrap(), crate::support::lab::BYOK);
        command.env("BYOK_ENCRYPTION_KEY", both);
    });
    let keys = [sealed, new, consumer, verified, rotated.json()];
    compare("`key`", &none, &keys, &["undecryptable[]"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_work_shows_how_far_it_is_on_a_terminal_only() {
    let lab = Lab::new().await;
    let (fast, slow) = (Fake::start().await, Fake::start().await);
    // It hangs.
    slow.set_status(0);
    lab.write("fast.toml", &fast.manifest("fast", "{ env = \"KEY\" }", ""));
    lab.write("slow.toml", &slow.manifest("slow", "{ env = \"KEY\" }", ""));
    let check = |mut command: std::process::Command| {
        command
            .env("KEY", KEY)
            .env("PROVIDERD_HEALTH__TIMEOUT", "1s")
            .env("PROVIDERD_HEALTH__SLOW_AFTER", "500ms")
            .env("TERM", "xterm")
            .env("COLUMNS", "80");
        let output = command.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    let plain = check(lab.command(&["check"]));
    assert!(plain.contains("took longer") || plain.contains("no complete answer"), "{plain}");
    assert!(!plain.contains("checking") && !plain.contains("1/2"), "{plain}");

    // `script` gives it a terminal.
    let direct = lab.command(&["check"]);
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &format!("{} check", direct.get_program().display()), "/dev/null"]);
    command.current_dir(lab.dir.path()).stdin(Stdio::null()).env_clear();
    command.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let shown = check(command);
    assert!(shown.contains("checking") && shown.contains("1/2"), "{shown:?}");
    // And nothing of it is left behind the table.
    let last = shown.trim_end().lines().last().unwrap();
    assert!(!last.contains("checking"), "{shown:?}");
}
