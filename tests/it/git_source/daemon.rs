//! The daemon with a repository: from a push to a row, through outages, crashes and restarts.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use hmac::{Hmac, Mac};
use nix::sys::signal::Signal;
use sha2::Sha256;

use crate::{
    git_source::{
        host::{Host, Mode},
        repository::{Repository, sign_with},
    },
    support::lab::{Daemon, Lab, PATIENCE, provider},
};

const TOKEN: &str = "not-a-real-git-token";
const SECRET: &str = "not-a-real-webhook-secret";

/// The surroundings of a daemon that pulls.
pub struct Surroundings {
    pub lab: Lab,
    pub settings: Vec<(&'static str, String)>,
}

impl Surroundings {
    pub async fn new(url: String, more: &[(&'static str, &str)]) -> Self {
        let lab = Lab::new().await;
        let mut settings = vec![("URL", url), ("BRANCH", "main".into()), ("PATH", "providers.d".into())];
        settings.extend(more.iter().map(|(key, value)| (*key, (*value).to_owned())));
        Self { lab, settings }
    }

    /// A file with a secret in it; its path.
    pub fn secret(&self, name: &str, text: &str) -> PathBuf {
        let path = self.lab.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    pub fn adjust(&self, command: &mut Command) {
        for (key, value) in &self.settings {
            command.env(format!("PROVIDERD_SOURCE__GIT__{key}"), value);
        }
    }

    pub fn daemon(&self) -> Daemon {
        self.lab.daemon_with(|command| self.adjust(command))
    }

    /// Runs a command with the same settings; exit code and output.
    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = self.lab.command(arguments);
        self.adjust(&mut command);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
    }

    pub async fn wait_for_priority(&self, name: &str, priority: i32) {
        let sql = format!("SELECT priority FROM llm_providers WHERE name = '{name}'");
        self.lab.wait_for(&sql, &priority.to_string()).await;
    }
}

/// Where the daemon listens, by its log.
async fn port(daemon: &mut Daemon) -> u16 {
    daemon.wait_for_log("\"listen\":\"127.0.0.1:").await;
    let log = daemon.log();
    let (_, rest) = log.split_once("\"listen\":\"127.0.0.1:").unwrap();
    rest.split('"').next().unwrap().parse().unwrap()
}

/// Status and body of an answer.
fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").map(|it| it.1).unwrap_or_default().to_owned())
}

/// What GitHub sends after a push.
fn hook(port: u16, secret: &str) -> u16 {
    let body = "{\"ref\":\"refs/heads/main\"}";
    let mut sum = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    sum.update(body.as_bytes());
    let hex: String = sum.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let signature = format!("sha256={hex}");
    ask(port, "POST", "/hooks/git", &[("X-Hub-Signature-256", &signature), ("X-GitHub-Event", "push")], body)
        .0
}

/// Everything that others could see of all processes: command lines, and names of processes.
fn seen_of_processes() -> String {
    let mut seen = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        for file in ["cmdline", "comm"] {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            seen += &String::from_utf8_lossy(&bytes).replace('\0', " ");
            seen.push('\n');
        }
    }
    seen
}

/// The environment of every process that talks to this host.
fn environments(of: &str) -> String {
    let mut seen = String::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(of) {
            let bytes = fs::read(entry.path().join("environ")).unwrap_or_default();
            seen += &String::from_utf8_lossy(&bytes).replace('\0', "\n");
        }
    }
    seen
}

fn set_priority(repository: &Repository, priority: i32) -> String {
    repository.write("providers.d/alpha.toml", &provider("alpha", priority));
    // Enough to be cut in half on its way.
    let noise: String = (0..2000).map(|line| format!("# {}\n", (line * 7919 + priority) % 104_729)).collect();
    repository.write("providers.d/noise.toml", &noise);
    repository.push()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_becomes_a_row_through_outages_and_crashes() {
    let repository = Repository::empty();
    let first = set_priority(&repository, 1);
    let host = Host::start(repository.dir.path(), TOKEN);
    let mut around = Surroundings::new(host.url(), &[("INTERVAL", "1h"), ("TIMEOUT", "60s")]).await;
    for (key, name, text) in [("TOKEN", "token", TOKEN), ("WEBHOOK_SECRET", "hook", SECRET)] {
        let path = around.secret(name, text).display().to_string();
        around.settings.push((key, path));
    }

    // Nothing there yet: alive, not ready, nothing written.
    host.set(Mode::Down);
    let mut daemon = around.daemon();
    let at = port(&mut daemon).await;
    daemon.wait_for_log("cannot be pulled").await;
    assert_eq!(ask(at, "GET", "/livez", &[], "").0, 200);
    assert_eq!(ask(at, "GET", "/readyz", &[], "").0, 503);
    daemon.wait_for_log("waiting for the first tree from Git").await;
    around.lab.wait_for("SELECT count(*) FROM llm_providers", "0").await;
    let (code, status) = around.run(&["status"]);
    assert!(
        code == 2 && status.contains("is not followed") && status.contains("nothing is applied"),
        "{status}"
    );
    host.set(Mode::Serve);
    daemon.signal(Signal::SIGHUP);
    daemon.wait_ready().await;
    around.wait_for_priority("alpha", 1).await;
    let sql = "SELECT DISTINCT revision FROM providerd.events WHERE kind = 'change'";
    assert!(first.starts_with(&around.lab.value(sql).await), "the commit is recorded");
    assert!(!around.lab.value(sql).await.is_empty());
    around.lab.wait_for("SELECT detail->>'to' FROM providerd.events WHERE kind = 'source'", &first).await;

    // At once, and only for those who know the secret.
    set_priority(&repository, 2);
    assert_eq!(hook(at, "another secret"), 401);
    assert_eq!(ask(at, "POST", "/hooks/git", &[("X-Gitlab-Token", "another")], "").0, 401);
    assert_eq!(ask(at, "POST", "/hooks/git", &[], "").0, 401);
    assert_eq!(ask(at, "GET", "/hooks/git", &[], "").0, 405);
    assert_eq!(around.lab.value("SELECT priority FROM llm_providers").await, "1");
    assert_eq!(hook(at, SECRET), 202);
    around.wait_for_priority("alpha", 2).await;
    set_priority(&repository, 3);
    assert_eq!(ask(at, "POST", "/hooks/git", &[("X-Gitlab-Token", SECRET)], "").0, 202);
    around.wait_for_priority("alpha", 3).await;
    let metrics = ask(at, "GET", "/metrics", &[], "").1;
    assert!(metrics.contains("providerd_source_fetches_total{result=\"updated\"} 3\n"), "{metrics}");
    assert!(metrics.contains("providerd_source_last_success_timestamp_seconds 1"), "{metrics}");

    // In the middle of a fetch: the token is nowhere to be seen, and a crash there costs nothing.
    set_priority(&repository, 4);
    host.set(Mode::Stall);
    let before = host.packs();
    assert_eq!(hook(at, SECRET), 202);
    let started = Instant::now();
    while host.packs() == before {
        assert!(started.elapsed() < PATIENCE, "{}", daemon.log());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let seen = seen_of_processes();
    assert!(seen.contains("fetch --quiet --no-tags") && seen.contains(&host.url()), "{seen}");
    assert!(!seen.contains(TOKEN), "{seen}");
    let environments = environments(&host.url());
    assert!(
        environments.contains("GIT_CONFIG_NOSYSTEM=1") && !environments.contains(TOKEN),
        "{environments}"
    );
    daemon.kill();
    host.set(Mode::Down);
    let logs = daemon.log();
    let mut daemon = around.daemon();
    daemon.wait_ready().await;
    daemon.wait_for_log("cannot be pulled").await;
    assert_eq!(around.lab.value("SELECT priority FROM llm_providers").await, "3");
    let (code, status) = around.run(&["status"]);
    assert!(
        code == 2 && status.contains("is not followed") && status.contains("git ls-remote failed"),
        "{status}"
    );
    host.set(Mode::Serve);
    // By itself, with its backoff.
    around.wait_for_priority("alpha", 4).await;
    daemon.wait_for_log("can be pulled again").await;
    let started = Instant::now();
    while around.run(&["status"]).0 != 0 {
        assert!(started.elapsed() < PATIENCE, "{}", around.run(&["status"]).1);
    }
    let logs = logs + &daemon.log();
    assert_eq!(daemon.stop(), 0);
    assert!(!logs.contains(TOKEN) && !logs.contains(SECRET), "{logs}");
    let outages = logs.lines().filter(|line| line.contains("cannot be pulled")).count();
    assert_eq!(outages, 2, "one line for each outage: {logs}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_interval_alone_suffices_and_forced_pushes_are_in_the_audit_trail() {
    let repository = Repository::empty();
    let key = repository.signer("good");
    let signers = repository.allow(&[&key]).display().to_string();
    let push = |priority| {
        repository.write("providers.d/alpha.toml", &provider("alpha", priority));
        let commit = repository.commit_with(&[&sign_with(&key)]);
        repository.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        commit
    };
    let first = push(1);
    let more = [
        ("INTERVAL", "1s"),
        ("VERIFY", "ssh"),
        ("ALLOWED_SIGNERS", signers.as_str()),
        ("ALLOW_REWRITTEN", "true"),
    ];
    let around = Surroundings::new(repository.url(), &more).await;
    let mut daemon = around.daemon();
    daemon.wait_ready().await;
    around.wait_for_priority("alpha", 1).await;
    repository.write("providers.d/beta.toml", &provider("beta", 1));
    push(2);
    around.wait_for_priority("alpha", 2).await;
    // A checkout has no repository around it, and what was pulled can be compared with all the same.
    let (code, diff) = around.run(&["routes", "--diff", &first]);
    assert!(code == 0 && diff.contains("+ 2. beta/beta-small"), "{code} {diff}");
    let (code, refused) = around.run(&["routes", "--diff", "main~7"]);
    assert!(code == 1 && refused.contains("nor a commit that was pulled"), "{code} {refused}");
    repository.git(&["reset", "-q", "--hard", &first]);
    let other = push(3);
    around.wait_for_priority("alpha", 3).await;
    let sql = "SELECT detail->>'to' FROM providerd.events WHERE kind = 'source' AND detail->>'history' = 'rewritten'";
    around.lab.wait_for(sql, &other).await;
    // Somebody without a key.
    repository.write("providers.d/alpha.toml", &provider("alpha", 4));
    let unsigned = repository.push();
    let sql = "SELECT detail->>'refused' FROM providerd.events WHERE kind = 'source' AND detail->>'refused' IS NOT NULL";
    around.lab.wait_for(sql, &unsigned).await;
    daemon.wait_for_log("a commit is refused").await;
    assert_eq!(around.lab.value("SELECT priority FROM llm_providers").await, "3");
    push(5);
    around.wait_for_priority("alpha", 5).await;
    // A file that goes takes its provider along, as in a directory.
    repository.write("providers.d/beta.toml", &provider("beta", 1));
    push(6);
    around.wait_for_priority("beta", 1).await;
    fs::remove_file(repository.work().join("providers.d/beta.toml")).unwrap();
    push(7);
    around.lab.wait_for("SELECT count(*) FROM llm_providers", "1").await;
    // One-shot commands read the same tree.
    let (code, text) = around.run(&["plan"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_is_named_is_meant() {
    let around = Surroundings::new("https://git.example.invalid/a.git".into(), &[]).await;
    around.lab.write("a.toml", &provider("alpha", 1));
    let directory = around.lab.manifests().display().to_string();
    let (code, text) = around.run(&["validate", &directory]);
    assert_eq!(code, 0, "{text}");
    for command in ["plan", "routes"] {
        let (_, text) = around.run(&[command, "--manifests", &directory]);
        assert!(text.contains("alpha"), "{text}");
    }
    assert_eq!(around.run(&["apply", "--manifests", &directory]).0, 0);
    let (code, text) = around.run(&["import"]);
    assert!(code == 1 && text.contains("--dir"), "{text}");
    // Without it, there is nothing yet, and nothing goes.
    assert_eq!(around.run(&["plan"]).0, 2);
    assert_eq!(around.run(&["apply"]).0, 1);
    assert_eq!(around.lab.value("SELECT count(*) FROM llm_providers").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn apply_pulls_once_or_uses_what_the_daemon_pulled() {
    let repository = Repository::empty();
    let first = set_priority(&repository, 1);
    let around = Surroundings::new(repository.url(), &[("INTERVAL", "1h")]).await;
    let (code, text) = around.run(&["apply"]);
    assert_eq!(code, 0, "{text}");
    around.wait_for_priority("alpha", 1).await;
    let sql = "SELECT detail->>'to' FROM providerd.events WHERE kind = 'source'";
    assert_eq!(around.lab.value(sql).await, first);
    // The new tree, not the one that was there when the command began.
    let second = set_priority(&repository, 2);
    assert_eq!(around.run(&["apply"]).0, 0);
    around.wait_for_priority("alpha", 2).await;
    let sql = "SELECT revision FROM providerd.events WHERE kind = 'change' ORDER BY id DESC LIMIT 1";
    assert!(second.starts_with(&around.lab.value(sql).await));
    let away = repository.dir.path().join("away");
    fs::rename(repository.bare(), &away).unwrap();
    let (code, text) = around.run(&["apply"]);
    assert!(code == 1 && text.contains("git ls-remote failed"), "{text}");
    let mut daemon = around.daemon();
    daemon.wait_ready().await;
    let (code, text) = around.run(&["apply"]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_misses_git() {
    let around = Surroundings::new("git@git.example.invalid:a.git".into(), &[]).await;
    let mut command = around.lab.command(&["doctor", "--output", "json"]);
    around.adjust(&mut command);
    let output = command.env("PATH", "/nonexistent").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in ["git cannot be run", "ssh cannot be run", "install git", "no host key is known"] {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_manifest_may_send_the_token_to_a_provider() {
    let around = Surroundings::new("https://git.example.invalid/a.git".into(), &[]).await;
    let token = around.secret("token", TOKEN).display().to_string();
    let text =
        provider("alpha", 1).replace("priority", &format!("api_key = {{ file = \"{token}\" }}\npriority"));
    around.lab.write("a.toml", &text);
    let directory = around.lab.manifests().display().to_string();
    let mut command = around.lab.command(&["apply", "--manifests", &directory]);
    around.adjust(&mut command);
    let output = command.env("PROVIDERD_SOURCE__GIT__TOKEN", &token).output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("one of providerd's own secrets"), "{said}");
    assert_eq!(around.lab.value("SELECT api_key_encrypted FROM llm_providers").await, "");
}
