//! `providerd demo`: the real program, with a database, providers and requests of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::http::Api;

/// A first start makes a database, and two cores run many tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// A demo in a directory of its own; stopped whatever happens.
struct Demo {
    child: Child,
    said: PathBuf,
    root: tempfile::TempDir,
}

impl Demo {
    fn start() -> Self {
        let root = tempfile::Builder::new().prefix("pd").tempdir_in("/tmp").unwrap();
        // Root's PostgreSQL runs as another user, who has to pass.
        fs::set_permissions(root.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let said = root.path().join("said");
        let mut command = Command::new(env!("CARGO_BIN_EXE_providerd"));
        command.arg("demo").current_dir("/").stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("TMPDIR", root.path());
        // What an operator may have set must not reach the demo.
        command.env("DATABASE_URL", "postgres://nobody@127.0.0.1:9/none");
        command.env("PROVIDERD_SERVER__LISTEN", "127.0.0.1:9").env("STATE_DIRECTORY", "/nonexistent");
        command
            .stdout(fs::File::create(&said).unwrap())
            .stderr(fs::File::create(root.path().join("err")).unwrap());
        Self { child: command.spawn().unwrap(), said, root }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.said).unwrap()
    }

    fn wait_for(&mut self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let said = self.said();
            if fits(&said) {
                return said;
            }
            let ended = self.child.try_wait().unwrap();
            let err = fs::read_to_string(self.root.path().join("err")).unwrap_or_default();
            assert!(
                ended.is_none() && started.elapsed() < PATIENCE,
                "never: {what} ({ended:?})\n{said}\n{err}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes whose arguments name the directory: the daemon and its database.
    fn processes(&self) -> Vec<u32> {
        let root = self.root.path().to_string_lossy().into_owned();
        let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = all.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|pid| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).contains(&root)
        })
        .collect()
    }

    fn scratch(&self) -> Vec<PathBuf> {
        let all = fs::read_dir(self.root.path()).unwrap().flatten().map(|entry| entry.path());
        all.filter(|path| path.is_dir()).collect()
    }

    fn interrupt(&mut self) -> i32 {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGINT).unwrap();
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < PATIENCE, "it does not stop:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_gone(&self) {
        let started = Instant::now();
        while !self.processes().is_empty() {
            assert!(started.elapsed() < PATIENCE, "processes stay: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What stands behind a word at the begin of a line, or behind spaces.
fn after<'a>(text: &'a str, word: &str) -> &'a str {
    let (_, rest) = text.split_once(word).unwrap_or_else(|| panic!("no {word:?} in:\n{text}"));
    rest.split_whitespace().next().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_sees_everything_work_and_nothing_is_left() {
    let mut demo = Demo::start();
    let said = demo.wait_for("a fallback", |said| said.contains("by fallback"));
    assert!(said.contains("demo-fast/swift-8b"), "{said}");
    let base = after(&said, "dashboard  http://").trim_end_matches('/').to_owned();
    let token = after(&said, "\n           token ").to_owned();
    let gateway = after(&said, "gateway    http://").trim_end_matches("/v1").to_owned();
    let key = after(&said, "\n           key ").to_owned();

    // The two lines that a newcomer copies: the token, and the request.
    let api = Api { address: base, token: Some(token) };
    let slow = api
        .wait_for("/api/v1/providers", |all| {
            let health = |name: &str| {
                let row = all["items"].as_array().and_then(|it| it.iter().find(|row| row["name"] == name));
                row.map(|row| row["health"].as_str().unwrap_or_default().to_owned()).unwrap_or_default()
            };
            health("demo-fast") == "healthy"
                && health("demo-slow") == "degraded"
                && health("demo-locked") == "healthy"
        })
        .await;
    assert_eq!(slow["total"], 3, "{slow}");
    let gateway = Api { address: gateway, token: Some(key) };
    let body =
        serde_json::json!({ "model": "balanced", "messages": [{ "role": "user", "content": "Hello" }] });
    let answer = gateway.post("/v1/chat/completions", &body).await.expect(200);
    assert_eq!(answer.header("x-providerd-model"), Some("demo-fast/swift-8b"));
    let usage = api
        .wait_for("/api/v1/usage?by=consumer", |usage| {
            let items = usage["items"].as_array().cloned().unwrap_or_default();
            let named = |name: &str| items.iter().any(|it| it["consumer"] == name && it["cost_usd"] != "0");
            named("demo-app") && named("demo-batch")
        })
        .await;
    assert!(usage["items"].as_array().is_some_and(|it| it.len() == 2), "{usage}");

    assert_eq!(demo.scratch().len(), 1);
    assert_eq!(demo.interrupt(), 0, "{}", demo.said());
    demo.wait_gone();
    assert_eq!(demo.scratch(), Vec::<PathBuf>::new());
    assert!(!Path::new("/.providerd").exists());
}

#[test]
fn a_demo_that_is_killed_takes_its_daemon_along() {
    let mut demo = Demo::start();
    demo.wait_for("the daemon is ready", |said| said.contains("dashboard  http://"));
    assert!(!demo.processes().is_empty());
    demo.child.kill().unwrap();
    demo.child.wait().unwrap();
    demo.wait_gone();
    assert_eq!(demo.scratch(), Vec::<PathBuf>::new());
}
