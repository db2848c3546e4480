//! The performance figures of the core, each beside its floor in the same run.
//!
//! `cargo bench --bench reconcile` runs at full size (10,000 files); `PROVIDERD_BENCH_FILES=1000` makes it
//! smaller. It prints a line for each figure: ours, the floor's, and the ratio of the medians.
//!
//! Floors: for the first convergence, `psql` copying the same rows into the same indexed tables in one
//! transaction, once the three shared tables alone and once with the bookkeeping and audit rows that converging
//! writes beside them; for a pass that finds nothing to do, `cat` of the files plus `psql` selecting the managed rows; for `validate`, `cat`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::panic)]

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, Executor, PgConnection, Row};

use providerd::embedded::Embedded;

/// Clearly no real key: the bench's database is deleted at its end.
const BYOK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const TABLES: [&str; 3] = ["llm_providers", "llm_models", "llm_routing_rules"];
/// What converging writes beside the shared tables.
const OWN_TABLES: [(&str, &str); 2] = [
    ("providerd.managed", ""),
    ("providerd.events", "(kind, provider, provider_id, detail, reason, file, line, revision)"),
];
const RUNS: usize = 5;
const CHANGES: usize = 300;

fn main() {
    let files = std::env::var("PROVIDERD_BENCH_FILES").ok().and_then(|it| it.parse().ok()).unwrap_or(10_000);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(run(files));
}

async fn run(files: usize) {
    let dir = tempfile::Builder::new().prefix("providerd-bench").tempdir_in("/tmp").unwrap();
    let manifests = dir.path().join("providers.d");
    write_manifests(&manifests, files);
    let cluster = Embedded::start(&dir.path().join("state")).await.unwrap();
    let bench = Bench { dir: dir.path().to_owned(), manifests, url: cluster.url(), files };
    println!("{files} files with {} models and {files} routes; medians of {RUNS} runs, seconds\n", files * 3);
    println!("{:<34} {:>9} {:>9} {:>7}  target", "", "ours", "floor", "ratio");
    bench.validate();
    bench.first_and_no_op().await;
    bench.one_change().await;
    bench.small().await;
    cluster.stop().await.unwrap();
}

struct Bench {
    dir: PathBuf,
    manifests: PathBuf,
    /// URL of the cluster's own database.
    url: String,
    files: usize,
}

/// One provider with three models and a route in each file, about 1 KiB.
fn write_manifests(dir: &Path, files: usize) {
    for index in 0..files {
        let mut text = String::with_capacity(1024);
        write!(
            text,
            "[providers.provider-{index:05}]\ntype = \"openai-compatible\"\nenabled = true\npriority = {}\n\
             base_url = \"https://llm-{index}.example.com/v1\"\nmodel_prefixes = [\"p{index}/\"]\n\
             description = \"Provider number {index}, declared for measuring\"\n\
             api_key = {{ env = \"BENCH_KEY\" }}\napi_key_source = \"database\"\nconfig = {{ region = \"eu\" }}\n",
            index % 100
        )
        .unwrap();
        for model in ["small", "medium", "large"] {
            write!(
                text,
                "\n[[providers.provider-{index:05}.models]]\nname = \"{model}-{index}\"\ndisplay_name = \"The {model} one\"\n\
                 context_length = 32768\ncost_per_1m_input_tokens = 0.15\ncost_per_1m_output_tokens = 0.60\n\
                 enabled = true\nmetadata = {{ family = \"bench\" }}\n"
            )
            .unwrap();
        }
        write!(
            text,
            "\n[[routes]]\nmodels = \"provider-{index:05}/small-*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n\
             priority = {}\nweight = 100\n",
            index % 50
        )
        .unwrap();
        let sub = dir.join(format!("{:02}", index % 100));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(format!("provider-{index:05}.toml")), text).unwrap();
    }
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn line(what: &str, ours: f64, floor: f64, target: &str) {
    println!("{what:<34} {ours:>9.3} {floor:>9.3} {:>6.2}×  {target}", ours / floor);
}

fn timed(command: &mut Command) -> f64 {
    let started = Instant::now();
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output().unwrap();
    let time = started.elapsed().as_secs_f64();
    let code = output.status.code();
    assert!(code == Some(0), "{command:?} ended with {code:?}: {}", String::from_utf8_lossy(&output.stderr));
    time
}

impl Bench {
    fn providerd(&self, database: &str, manifests: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_providerd"));
        command.args(args).arg("--manifests").arg(manifests).current_dir(&self.dir);
        command.env("DATABASE_URL", self.url_of(database)).env("BYOK_ENCRYPTION_KEY", BYOK);
        command
            .env("BENCH_KEY", "not-a-real-key-for-measuring-only")
            .env("PROVIDERD_SERVER__LISTEN", "127.0.0.1:0");
        command.env("PROVIDERD_HEALTH__ENABLED", "false");
        command
    }

    fn url_of(&self, database: &str) -> String {
        let (base, query) = self.url.split_once('?').unwrap();
        let server = base.rsplit_once('/').unwrap().0;
        format!("{server}/{database}?{query}")
    }

    fn psql(&self, database: &str, commands: &[String]) -> Command {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d"]).arg(self.url_of(database)).arg("-1");
        for command in commands {
            psql.arg("-c").arg(command);
        }
        psql
    }

    fn cat(&self) -> Command {
        let mut cat = Command::new("sh");
        cat.arg("-c").arg(format!("exec cat {}/*/*.toml > /dev/null", self.manifests.display()));
        cat
    }

    /// A fresh database with the tables in it and no rows.
    async fn fresh(&self, name: &str) {
        let mut admin = PgConnection::connect(&self.url).await.unwrap();
        let exists = sqlx::query("SELECT 1 FROM pg_database WHERE datname = 'migrated'")
            .fetch_optional(&mut admin)
            .await;
        if exists.unwrap().is_none() {
            admin.execute("CREATE DATABASE migrated").await.unwrap();
            let empty = self.dir.join("empty");
            fs::create_dir_all(&empty).unwrap();
            fs::write(empty.join("empty.toml"), "").unwrap();
            timed(&mut self.providerd("migrated", &empty, &["apply"]));
        }
        let create = format!("CREATE DATABASE {name} TEMPLATE migrated");
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        admin.execute("CHECKPOINT").await.unwrap();
    }

    fn validate(&self) {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            floor.push(timed(&mut self.cat()));
            ours.push(timed(&mut self.providerd("none", &self.manifests, &["validate"])));
        }
        line("validate / cat", median(ours), median(floor), "≤ 3.0");
    }

    async fn first_and_no_op(&self) {
        let (mut first, mut copy, mut copy_all) = (Vec::new(), Vec::new(), Vec::new());
        let (mut no_op, mut look) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            let (ours, floor) = (format!("ours_{run}"), format!("floor_{run}"));
            self.fresh(&ours).await;
            self.fresh(&floor).await;
            first.push(timed(&mut self.providerd(&ours, &self.manifests, &["apply"])));
            let file = |table: &str| self.dir.join(format!("{table}.copy"));
            for (table, columns) in TABLES.iter().map(|table| (*table, "")).chain(OWN_TABLES) {
                let out = format!("\\copy {table} {columns} TO '{}'", file(table).display());
                timed(&mut self.psql(&ours, &[out]));
            }
            let into = |(table, columns): (&str, &str)| {
                format!("\\copy {table} {columns} FROM '{}'", file(table).display())
            };
            let shared: Vec<String> = TABLES.iter().map(|table| into((table, ""))).collect();
            copy.push(timed(&mut self.psql(&floor, &shared)));
            let whole = format!("whole_{run}");
            self.fresh(&whole).await;
            let all: Vec<String> = shared.into_iter().chain(OWN_TABLES.map(into)).collect();
            copy_all.push(timed(&mut self.psql(&whole, &all)));

            let select = TABLES.map(|table| format!("SELECT * FROM {table}"));
            look.push(timed(&mut self.cat()) + timed(&mut self.psql(&ours, &select)));
            no_op.push(timed(&mut self.providerd(&ours, &self.manifests, &["apply"])));
        }
        let first = median(first);
        line("first convergence / COPY", first, median(copy), "≤ 2.0");
        line("… / COPY of all rows it writes", first, median(copy_all), "");
        line("no-op pass / cat + SELECT", median(no_op), median(look), "≤ 2.0");
    }

    /// From the write of one file to its value seen by another connection, with everything else in place.
    async fn one_change(&self) {
        let database = "ours_0";
        let mut daemon = Daemon::start(self.providerd(database, &self.manifests, &["run"]));
        daemon.wait_ready().await;
        let mut reader = PgConnection::connect(&self.url_of(database)).await.unwrap();
        let mut times = Vec::new();
        for change in 0..CHANGES {
            let index = (change * 37) % self.files;
            let path = self.manifests.join(format!("{:02}/provider-{index:05}.toml", index % 100));
            let text = fs::read_to_string(&path).unwrap();
            let wanted = 1000 + i32::try_from(change).unwrap();
            let lines = text.lines().map(|line| match line.strip_prefix("priority = ") {
                Some(_) if !text.starts_with("[[") => format!("priority = {wanted}\n"),
                _ => format!("{line}\n"),
            });
            let text: String = lines.collect();
            let name = format!("provider-{index:05}");
            let started = Instant::now();
            fs::write(&path, text).unwrap();
            loop {
                let row = sqlx::query("SELECT priority FROM llm_providers WHERE name = $1").bind(&name);
                let found: i32 = row.fetch_one(&mut reader).await.unwrap().get(0);
                if found == wanted {
                    break;
                }
                assert!(started.elapsed() < Duration::from_secs(10), "the change of {name} never arrived");
            }
            times.push(started.elapsed().as_secs_f64() * 1000.0);
        }
        times.sort_by(f64::total_cmp);
        println!(
            "one changed file → visible: p50 {:.1} ms (≤ 15), p99 {:.1} ms (≤ 40), {CHANGES} changes",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
        println!("memory of the daemon after it: {:.1} MiB (≤ 150)", daemon.resident_mib());
        daemon.stop();
    }

    async fn small(&self) {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers.d");
        self.fresh("small").await;
        let mut daemon = Daemon::start(self.providerd("small", &examples, &["run"]));
        daemon.wait_ready().await;
        println!("memory of the daemon with the examples: {:.1} MiB (≤ 25)", daemon.resident_mib());
        daemon.stop();
    }
}

/// A daemon, ended by its own handle whatever happens.
struct Daemon(Child);

impl Daemon {
    fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    /// Reads the log until it says that the first reconcile is done; goes on draining it.
    async fn wait_ready(&mut self) {
        use std::io::BufRead;
        let log = std::io::BufReader::new(self.0.stderr.take().unwrap());
        let (ready, seen) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            let mut ready = Some(ready);
            for line in log.lines().map_while(Result::ok) {
                if line.contains("\"ready\"") || line.ends_with(" ready") {
                    let _ = ready.take().map(|ready| ready.send(()));
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(60), seen).await.expect("ready within a minute").unwrap();
    }

    fn resident_mib(&self) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }

    fn stop(mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
