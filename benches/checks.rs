//! What checking costs, beside its floor and beside prometheus-blackbox-exporter, in one run on the same targets.
//!
//! `scripts/bench-checks` brings what is needed and runs it at full size: 5,000 providers every 15 s. Variables make it
//! smaller: `PROVIDERD_BENCH_TARGETS`, `PROVIDERD_BENCH_INTERVAL` and `PROVIDERD_BENCH_SECONDS` (the window of ours; the
//! default of 1,200 s holds one write of everything that is kept, so that the bytes of WAL are those of a long run).
//!
//! CPU is user and system time of the processes (`/proc/PID/stat`), so other load on the machine hardly matters. Ours is
//! the daemon with all that it does meanwhile: scheduling, HTTP over a fresh connection, verdicts, writing them,
//! metrics, and a scrape every 15 s; the database server stands beside it. Theirs is the exporter and the Prometheus
//! that schedules it. The floor is a loop that connects, asks and reads. The targets are a process of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::panic)]
#![allow(clippy::disallowed_methods, reason = "the bench's own tasks")]

#[path = "proc.rs"]
mod process;
#[path = "../tests/it/support/targets.rs"]
mod targets;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection, Row};
use targets::{KEY, address, arrivals, fetch, sum, write_manifests};

use providerd::embedded::Embedded;

/// Clearly no real key: the bench's database is deleted at its end.
const BYOK: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// Which part of the bench a process of it plays.
const ROLE: &str = "PROVIDERD_BENCH_ROLE";
/// How often metrics are scraped.
const SCRAPE: Duration = Duration::from_secs(15);
/// Checks of the floor's loop.
const FLOOR_CHECKS: usize = 20_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(default)
}

fn main() {
    let runtime = |threads| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    };
    match std::env::var(ROLE).as_deref() {
        Ok("targets") => runtime(1).block_on(async {
            let (listener, port) = targets::listen().await;
            println!("{port}");
            targets::serve(listener, |_| false).await;
        }),
        Ok(port) => bare_loop(port.parse().unwrap()),
        Err(_) => runtime(1).block_on(Bench::run()),
    }
}

/// The floor: nothing but a connection, a request and its answer.
fn bare_loop(port: u16) {
    let count = usize::try_from(number("PROVIDERD_BENCH_TARGETS", 5000)).unwrap();
    let mut answer = Vec::with_capacity(4096);
    for turn in 0..FLOOR_CHECKS {
        let host = address(turn % count);
        let mut stream = TcpStream::connect((host, port)).unwrap();
        let request = format!(
            "GET /v1/models HTTP/1.1\r\nHost: {host}:{port}\r\nAuthorization: Bearer {KEY}\r\nAccept: */*\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        answer.clear();
        stream.read_to_end(&mut answer).unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
    }
    println!("{}", process::cpu(std::process::id()) / FLOOR_CHECKS as f64);
}

struct Bench {
    dir: PathBuf,
    count: usize,
    interval: u64,
    window: Duration,
    port: u16,
    targets: Running,
}

impl Bench {
    async fn run() {
        let dir = tempfile::Builder::new().prefix("providerd-bench").tempdir_in("/tmp").unwrap();
        let (targets, said) = Running::role("targets");
        let bench = Self {
            dir: dir.path().to_owned(),
            count: usize::try_from(number("PROVIDERD_BENCH_TARGETS", 5000)).unwrap(),
            interval: number("PROVIDERD_BENCH_INTERVAL", 15),
            window: Duration::from_secs(number("PROVIDERD_BENCH_SECONDS", 1200)),
            port: said.parse().unwrap(),
            targets,
        };
        let (count, interval) = (bench.count, bench.interval);
        println!("{count} providers every {interval} s, {} s of ours\n", bench.window.as_secs());

        let floor = bench.floor();
        println!("{:<44} {:>8.0} µs of CPU per check", "floor: connect, ask, read", floor * 1e6);
        let ours = bench.ours().await;
        let theirs = bench.theirs().await;

        println!("\n{:<44} {:>8} {:>8}", "", "ours", "target");
        println!("{:<44} {:>7.1}× {:>8}", "CPU per check / floor", ours / floor, "");
        println!(
            "{:<44} {:>7.2}× {:>8}",
            "CPU per check / blackbox_exporter + Prometheus",
            ours / theirs,
            "≤ 0.17×"
        );
    }

    fn floor(&self) -> f64 {
        let (_loop, said) = Running::role(&self.port.to_string());
        said.parse().unwrap()
    }

    /// CPU seconds per check of the daemon.
    async fn ours(&self) -> f64 {
        let manifests = self.dir.join("providers.d");
        write_manifests(&manifests, self.count, self.port, "api_key = { env = \"BENCH_KEY\" }");
        let cluster = Embedded::start(&self.dir.join("state")).await.unwrap();
        let mut admin = PgConnection::connect(&cluster.url()).await.unwrap();
        let backend: i32 = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut admin).await.unwrap().get(0);
        let postgres = process::parent(u32::try_from(backend).unwrap()).unwrap();

        let listen = free_port();
        let program = std::env::var_os("PROVIDERD_BENCH_BINARY")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_providerd")), PathBuf::from);
        let mut command = Command::new(program);
        command.arg("run").arg("--manifests").arg(&manifests).current_dir(&self.dir);
        command.env("DATABASE_URL", cluster.url()).env("BYOK_ENCRYPTION_KEY", BYOK).env("BENCH_KEY", KEY);
        command
            .env("STATE_DIRECTORY", self.dir.join("daemon"))
            .env("PROVIDERD_SERVER__LISTEN", listen.to_string());
        command.env("PROVIDERD_HEALTH__INTERVAL", format!("{}s", self.interval));
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("PROVIDERD_BENCH_")) {
                command.env_remove(name);
            }
        }
        let mut daemon = Running::start(&mut command, &self.dir.join("providerd.log"));

        // Every provider checked twice and every key proven: from here on nothing is new.
        let checked = |text: &str| sum(text, "providerd_probes_total", "health");
        self.until(&mut daemon, listen, "all are checked and proven", |text| {
            let all = self.count as f64;
            checked(text) >= 2.0 * all && sum(text, "providerd_provider_keys", "\"valid\"") >= all
        })
        .await;

        let lsn = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
        let before = fetch(listen, "/metrics").await;
        let wal: i64 = sqlx::query(lsn).fetch_one(&mut admin).await.unwrap().get(0);
        let (cpu, cpu_postgres) = (process::cpu(daemon.pid()), process::cpu_of_tree(postgres));
        let memory = process::resident_mib(daemon.pid());
        let started = Instant::now();
        let mut scrapes = Vec::new();
        while started.elapsed() < self.window {
            tokio::time::sleep(SCRAPE.min(self.window)).await;
            let begun = Instant::now();
            let text = fetch(listen, "/metrics").await;
            scrapes.push((begun.elapsed().as_secs_f64(), text.len()));
        }
        let after = fetch(listen, "/metrics").await;
        let cpu = process::cpu(daemon.pid()) - cpu;
        let cpu_postgres = process::cpu_of_tree(postgres) - cpu_postgres;
        let end: i64 = sqlx::query(lsn).fetch_one(&mut admin).await.unwrap().get(0);
        let checks = checked(&after) - checked(&before);
        let expected = started.elapsed().as_secs_f64() / self.interval as f64 * self.count as f64;
        scrapes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (scrape, size) = scrapes[scrapes.len() / 2];
        let late = 1.0
            - (sum(&after, "providerd_probe_schedule_lag_seconds_bucket", "le=\"1\"")
                - sum(&before, "providerd_probe_schedule_lag_seconds_bucket", "le=\"1\""))
                / (sum(&after, "providerd_probe_schedule_lag_seconds_count", "")
                    - sum(&before, "providerd_probe_schedule_lag_seconds_count", ""));
        let last = process::resident_mib(daemon.pid());
        let row = |what: &str, figure: String, target: &str| println!("{what:<44} {figure:>8} {target}");
        row("providerd, all included", format!("{:.0}", cpu / checks * 1e6), "µs of CPU per check (≤ 200)");
        row("its PostgreSQL", format!("{:.0}", cpu_postgres / checks * 1e6), "µs of CPU per check");
        row("checks done / expected", format!("{:.3}", checks / expected), "");
        row("checks over 1 s late", format!("{:.2} %", late * 100.0), "");
        row("WAL per check", format!("{:.0}", (end - wal) as f64 / checks), "bytes (≤ 100)");
        row("memory at the end", format!("{last:.1}"), "MiB (≤ 100)");
        row("its growth in the window", format!("{:.1}", last - memory), "MiB");
        row("scrape, median", format!("{:.0}", scrape * 1e3), "ms (≤ 100)");
        row("scrape, longest", format!("{:.0}", scrapes[scrapes.len() - 1].0 * 1e3), "ms");
        row("scrape, size", format!("{:.1}", size as f64 / 1e6), "MB");
        drop(daemon);
        drop(admin);
        cluster.stop().await.unwrap();
        cpu / checks
    }

    async fn until(&self, daemon: &mut Running, listen: SocketAddr, what: &str, fits: impl Fn(&str) -> bool) {
        let started = Instant::now();
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let listening = tokio::net::TcpStream::connect(listen).await.is_ok();
            if listening && fits(&fetch(listen, "/metrics").await) {
                return;
            }
            let log = fs::read_to_string(self.dir.join("providerd.log")).unwrap_or_default();
            let end = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
            let running = daemon.0.try_wait().unwrap().is_none();
            assert!(running && started.elapsed() < Duration::from_secs(300), "never: {what}\n{end}");
        }
    }

    /// CPU seconds per check of prometheus-blackbox-exporter and the Prometheus that drives it.
    async fn theirs(&self) -> f64 {
        let file = |name: &str, text: &str| {
            let path = self.dir.join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (exporter_at, prometheus_at) = (free_port(), free_port());
        let modules = file(
            "blackbox.yml",
            &format!(
                "modules:\n  models:\n    prober: http\n    timeout: 10s\n    http:\n      preferred_ip_protocol: ip4\n      \
                 bearer_token: {KEY}\n"
            ),
        );
        let all: Vec<String> = (0..self.count)
            .map(|index| format!("http://{}:{}/v1/models", address(index), self.port))
            .collect();
        file("targets.json", &serde_json::json!([{ "targets": all }]).to_string());
        let config = file(
            "prometheus.yml",
            &format!(
                "global: {{ scrape_interval: {}s, scrape_timeout: {}s }}\nscrape_configs:\n  - job_name: blackbox\n    \
                 metrics_path: /probe\n    params: {{ module: [models] }}\n    file_sd_configs: [{{ files: [targets.json] }}]\n    \
                 relabel_configs:\n      - {{ source_labels: [__address__], target_label: __param_target }}\n      \
                 - {{ source_labels: [__param_target], target_label: instance }}\n      \
                 - {{ target_label: __address__, replacement: \"{exporter_at}\" }}\n",
                self.interval,
                self.interval.min(10)
            ),
        );
        let mut command = Command::new("prometheus-blackbox-exporter");
        command.arg(format!("--config.file={}", modules.display()));
        command.arg(format!("--web.listen-address={exporter_at}")).arg("--log.level=error");
        let exporter = Running::start(&mut command, &self.dir.join("blackbox.log"));
        let mut command = Command::new("prometheus");
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", self.dir.join("tsdb").display()));
        command.arg(format!("--web.listen-address={prometheus_at}")).arg("--log.level=error");
        let prometheus = Running::start(&mut command, &self.dir.join("prometheus.log"));

        let warm_up = Duration::from_secs(2 * self.interval + 5);
        tokio::time::sleep(warm_up).await;
        let before = arrivals(self.port).await.len();
        let (cpu, cpu_prometheus) = (process::cpu(exporter.pid()), process::cpu(prometheus.pid()));
        let started = Instant::now();
        tokio::time::sleep(self.window.min(Duration::from_secs(4 * self.interval))).await;
        let cpu = process::cpu(exporter.pid()) - cpu;
        let cpu_prometheus = process::cpu(prometheus.pid()) - cpu_prometheus;
        let checks = (arrivals(self.port).await.len() - before) as f64;
        let expected = started.elapsed().as_secs_f64() / self.interval as f64 * self.count as f64;
        println!();
        let row = |what: &str, figure: String, unit: &str| println!("{what:<44} {figure:>8} {unit}");
        row("prometheus-blackbox-exporter", format!("{:.0}", cpu / checks * 1e6), "µs of CPU per check");
        row(
            "the Prometheus that drives it",
            format!("{:.0}", cpu_prometheus / checks * 1e6),
            "µs of CPU per check",
        );
        row("checks done / expected", format!("{:.3}", checks / expected), "");
        let (a, b) = (process::resident_mib(exporter.pid()), process::resident_mib(prometheus.pid()));
        row("memory of both", format!("{:.1}", a + b), "MiB");
        row("the targets, all the while", format!("{:.1}", process::cpu(self.targets.pid())), "s of CPU");
        (cpu + cpu_prometheus) / checks
    }
}

/// An address that was free a moment ago.
fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A process, ended by its own handle whatever happens.
struct Running(Child);

impl Running {
    fn start(command: &mut Command, log: &Path) -> Self {
        let log = fs::File::create(log).unwrap();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; scripts/setup bench")))
    }

    /// This program in another role, and the first line it says.
    fn role(role: &str) -> (Self, String) {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        (Self(child), line.trim().to_owned())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
