//! A directory of manifests, a database of its own, and the real program run on both.

use std::{
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection, Row};

/// Clearly no real key.
pub const BYOK: &str = "dGVzdC1ieW9rLWtleS1mb3ItcHJvdmlkZXJkLTAwMDE=";

/// How long anything may take before a test gives up; generous, because two cores run many tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub url: String,
}

impl Lab {
    /// An empty manifest directory beside an empty database.
    pub async fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pd").tempdir_in("/tmp").unwrap();
        fs::create_dir(dir.path().join("providers.d")).unwrap();
        let url = super::pg::pg().database("lab").await.url;
        Self { dir, url }
    }

    pub fn manifests(&self) -> PathBuf {
        self.dir.path().join("providers.d")
    }

    /// Writes a manifest as an editor does: beside it, then renamed over.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.manifests().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = path.with_extension("new");
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, path).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.manifests().join(name)).unwrap();
    }

    /// The program with these arguments, in surroundings of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_providerd"));
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("NO_COLOR", "1");
        command.env("HOME", self.dir.path()).env("STATE_DIRECTORY", self.dir.path().join("state"));
        command.env("DATABASE_URL", &self.url).env("BYOK_ENCRYPTION_KEY", BYOK);
        command.env("PROVIDERD_SERVER__LISTEN", "127.0.0.1:0").env("PROVIDERD_MANIFESTS__SETTLE", "300ms");
        // The providers of most tests exist on paper only.
        command.env("PROVIDERD_HEALTH__ENABLED", "false");
        command.env("PROVIDERD_LOG__FORMAT", "json").env("RUST_LOG", "info,providerd=debug");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::new(self.command(args).output().unwrap())
    }

    /// The same, with checks and key tests turned on.
    pub fn run_checking(&self, args: &[&str]) -> Ran {
        Ran::new(self.command(args).env("PROVIDERD_HEALTH__ENABLED", "true").output().unwrap())
    }

    /// As [`Lab::run`], with surroundings adjusted.
    pub fn run_with(&self, args: &[&str], adjust: impl FnOnce(&mut Command)) -> Ran {
        let mut command = self.command(args);
        adjust(&mut command);
        Ran::new(command.output().unwrap())
    }

    pub fn daemon(&self) -> Daemon {
        self.daemon_with(|_| {})
    }

    /// A daemon that also checks, every second unless the manifest says otherwise.
    pub fn checking(&self) -> Daemon {
        self.daemon_with(|command| {
            command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
        })
    }

    pub fn daemon_with(&self, adjust: impl FnOnce(&mut Command)) -> Daemon {
        self.started(&["run"], adjust)
    }

    /// A program that stays, with a log of its own.
    pub fn started(&self, args: &[&str], adjust: impl FnOnce(&mut Command)) -> Daemon {
        let mut command = self.command(args);
        let log = self.dir.path().join(format!("log-{}", uuid::Uuid::new_v4().simple()));
        command.stdout(Stdio::null());
        adjust(&mut command);
        command.stderr(fs::File::create(&log).unwrap());
        Daemon { child: command.spawn().unwrap(), log }
    }

    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.unwrap()
    }

    /// The first column of the first row, as text; an empty string without a row or table.
    pub async fn value(&self, sql: &str) -> String {
        let mut connection = self.connect().await;
        value(&mut connection, sql).await
    }

    pub async fn execute(&self, sql: &str) {
        let mut connection = self.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }

    /// Waits until a query yields a value.
    pub async fn wait_for(&self, sql: &str, wanted: &str) {
        let mut connection = self.connect().await;
        let started = Instant::now();
        loop {
            let found = value(&mut connection, sql).await;
            if found == wanted {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{sql}\n  is {found:?}, expected {wanted:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// As [`Lab::value`], on an open connection. A table that does not exist yet reads as empty.
pub async fn value(connection: &mut PgConnection, sql: &str) -> String {
    let text = format!("SELECT v::text FROM ({sql}) q(v) LIMIT 1");
    match sqlx::query(sqlx::AssertSqlSafe(text)).persistent(false).fetch_optional(connection).await {
        Ok(Some(row)) => row.try_get::<Option<String>, _>(0).unwrap().unwrap_or_default(),
        Ok(None) => String::new(),
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => String::new(),
        Err(error) => panic!("{sql}: {error}"),
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    fn new(output: Output) -> Self {
        let code = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(1));
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        let found = serde_json::from_str(&self.stdout);
        found.unwrap_or_else(|error| panic!("{error} in:\n{}\nstderr:\n{}", self.stdout, self.stderr))
    }
}

/// A running daemon; killed by its own handle whatever happens.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(self.pid(), signal).unwrap();
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits until its log contains a text.
    pub async fn wait_for_log(&mut self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            let running = self.is_running();
            assert!(
                running && started.elapsed() < PATIENCE,
                "no {text:?} (running: {running}) in:\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn wait_ready(&mut self) {
        self.wait_for_log("\"message\":\"ready\"").await;
    }

    /// Where its HTTP server listens.
    pub async fn address(&mut self) -> String {
        self.wait_for_log("\"listen\":\"").await;
        let log = self.log();
        let (_, rest) = log.split_once("\"listen\":\"").unwrap();
        rest.split('"').next().unwrap().to_owned()
    }

    /// Fetches a path: head and body as one text.
    pub async fn fetch(&mut self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.address().await).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Fetches a path until its answer fits.
    pub async fn fetch_until(&mut self, path: &str, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let text = self.fetch(path).await;
            if fits(&text) {
                return text;
            }
            assert!(started.elapsed() < PATIENCE, "never: {what}\n{text}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills it without a word.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop; its exit code.
    pub fn stop(mut self) -> i32 {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(started.elapsed() < PATIENCE, "it does not stop:\n{}", self.log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One provider with one model and one route.
pub fn provider(name: &str, priority: i32) -> String {
    format!(
        "[providers.{name}]\ntype = \"openai-compatible\"\nbase_url = \"https://{name}.example.com/v1\"\n\
         priority = {priority}\n\n[[providers.{name}.models]]\nname = \"{name}-small\"\ncontext_length = 4096\n\n\
         [[routes]]\nmodels = \"{name}/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n"
    )
}

/// Swaps a symbolic link in one step, as git-sync and Kubernetes do.
pub fn swap(link: &Path, target: &Path) {
    let temporary = link.with_extension("swap");
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(target, &temporary).unwrap();
    fs::rename(temporary, link).unwrap();
}
