//! The gateway beside nginx and a direct connection, in one run on the same cores. `scripts/bench-gateway` builds and
//! starts it; GATEWAY.md of the reports gives the goals.
//!
//! The relay under test has core 0 for itself; the mock provider and the callers share core 1. Processor time per
//! request is the main figure: latencies on a shared machine lie.
#![allow(clippy::disallowed_methods, reason = "a program of measurement without a supervisor")]

mod load;
mod mock;
mod relay;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use load::{Seen, Shape};

/// The caller's key of the benchmark.
pub const CALLER: &str = "pd_bench_0000000000000000000000000000000000000000";
const MOCK: u16 = 18_901;
const NGINX: u16 = 18_902;
const OURS: u16 = 18_903;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let word = |at: usize| arguments.get(at).map(String::as_str);
    match word(1) {
        Some("mock") => local(async {
            mock::run(tokio::net::TcpListener::bind(("127.0.0.1", MOCK)).await.expect("port")).await
        }),
        Some("relay") => match word(2) {
            Some("threads") => {
                let workers = word(3).and_then(|n| n.parse().ok()).unwrap_or(1);
                tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(workers)
                    .enable_all()
                    .build()
                    .expect("runtime")
                    .block_on(async {
                        let listener = reuse(OURS);
                        // Accepting on a worker, not on the main thread, which is not one.
                        let _ = tokio::spawn(relay::run(listener, MOCK, spool(0))).await;
                    });
            }
            _ => {
                let cores = word(3).and_then(|n| n.parse().ok()).unwrap_or(1);
                let threads: Vec<_> = (0..cores)
                    .map(|at| {
                        std::thread::spawn(move || {
                            local(async move { relay::run(reuse(OURS), MOCK, spool(at)).await })
                        })
                    })
                    .collect();
                for thread in threads {
                    let _ = thread.join();
                }
            }
        },
        Some("load") => {
            let model = match word(3) {
                Some("stream") => "stream",
                Some("translated") => "translated",
                _ => "plain",
            };
            let number = |at: usize, default: usize| word(at).and_then(|n| n.parse().ok()).unwrap_or(default);
            let shape = Shape {
                port: number(2, usize::from(OURS)) as u16,
                model,
                connections: number(4, 64),
                bytes: number(5, 1024),
                seconds: number(6, 3) as f64,
            };
            let pid = word(7).and_then(|n| n.parse().ok());
            let seen = local(load::run(shape, pid));
            println!("{}", line(&seen));
        }
        _ => run(),
    }
}

fn line(seen: &Seen) -> String {
    format!(
        "{} requests, {:.0}/s, {:.2} µs each, p50 {:?} p99 {:?} first {:?}, failed {}",
        seen.requests,
        seen.per_second,
        seen.cpu.as_nanos() as f64 / 1e3,
        seen.p50,
        seen.p99,
        seen.first,
        seen.failed
    )
}

fn local<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Where the relay under test keeps its spool, below the directory of the run.
fn spool(worker: usize) -> std::path::PathBuf {
    let directory = std::env::var_os("BENCH_DIRECTORY").map_or_else(std::env::temp_dir, Into::into);
    directory.join(format!("spool-{}-{worker}", std::process::id()))
}

fn reuse(port: u16) -> tokio::net::TcpListener {
    let socket = tokio::net::TcpSocket::new_v4().expect("socket");
    socket.set_reuseport(true).expect("reuseport");
    socket.set_reuseaddr(true).expect("reuseaddr");
    socket.bind(([127, 0, 0, 1], port).into()).expect("port free");
    socket.listen(1024).expect("listen")
}

/// Ended with the value.
struct Running(Child);

impl Running {
    fn start(directory: &std::path::Path, core: &str, program: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("taskset");
        command.env("BENCH_DIRECTORY", directory);
        command.args(["-c", core, program]).args(arguments).stdin(Stdio::null()).process_group(0);
        Self(command.spawn().expect("taskset is installed"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx ends its workers on TERM.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn run() {
    let me = std::env::current_exe().expect("own path");
    let me = me.to_str().expect("plain path");
    let streams = std::env::var("BENCH_STREAMS").ok().and_then(|n| n.parse().ok()).unwrap_or(9_000);
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3.0);
    let rounds = std::env::var("BENCH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let directory = std::env::temp_dir().join(format!("bench-gateway-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("temporary directory");
    let configuration = directory.join("nginx.conf");
    std::fs::write(&configuration, nginx(&directory.display().to_string())).expect("written");
    let _mock = Running::start(&directory, "1", me, &["mock"]);
    let nginx =
        Running::start(&directory, "0", "nginx", &["-c", configuration.to_str().expect("plain path")]);
    let ours = Running::start(&directory, "0", me, &["relay", "threads", "1"]);
    std::thread::sleep(Duration::from_millis(800));
    let worker = worker_of(nginx.0.id());
    let targets = [("direct", MOCK, None), ("nginx", NGINX, Some(worker)), ("ours", OURS, Some(ours.0.id()))];
    pin_self();

    println!("{:<28}{:>12}{:>12}{:>12}{:>9}", "", "direct", "nginx", "ours", "ratio");
    let shape = |port, model, connections, bytes| Shape { port, connections, model, bytes, seconds };
    // Three rounds of each, in turn; the median counts.
    let measure = |model: &'static str, connections, bytes| -> Vec<Vec<Seen>> {
        let mut all: Vec<Vec<Seen>> = (0..3).map(|_| Vec::new()).collect();
        for _ in 0..rounds {
            for (at, (_, port, pid)) in targets.iter().enumerate() {
                all[at].push(local(load::run(shape(*port, model, connections, bytes), *pid)));
            }
        }
        all
    };
    let row = |name: &str, unit: &str, goal: f64, values: [f64; 3]| {
        let ratio = values[2] / values[1];
        let verdict = if goal == 0.0 {
            ""
        } else if ratio <= goal {
            "  ok"
        } else {
            "  MISSED"
        };
        let goal = if goal == 0.0 { String::new() } else { format!("(≤ {goal})") };
        println!(
            "{:<28}{:>12.2}{:>12.2}{:>12.2}{:>9.2} {unit} {goal}{verdict}",
            name, values[0], values[1], values[2], ratio
        );
    };
    let each = |all: &[Vec<Seen>], value: &dyn Fn(&Seen) -> f64| -> [f64; 3] {
        [0, 1, 2].map(|at| {
            let mut values: Vec<f64> = all[at].iter().map(value).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        })
    };
    let micro = |time: Duration| time.as_nanos() as f64 / 1e3;
    let failed = |all: &[Vec<Seen>]| {
        let failed: u64 = all.iter().flatten().map(|seen| seen.failed).sum();
        if failed > 0 {
            println!("    {failed} requests FAILED");
        }
    };

    let plain = measure("plain", 64, 1024);
    row("CPU per request, c=64", "µs", 1.5, each(&plain, &|seen| micro(seen.cpu)));
    row("requests per second, c=64", "/s", 0.0, each(&plain, &|seen| seen.per_second));
    row("p99, c=64", "µs", 0.0, each(&plain, &|seen| micro(seen.p99)));
    failed(&plain);
    let stream = measure("stream", 64, 1024);
    row("CPU per stream of 23 events", "µs", 1.35, each(&stream, &|seen| micro(seen.cpu)));
    failed(&stream);
    // Messages of the provider, chat of the caller; the mock writes about as many bytes. The goal is of our own relaying.
    let mut translated: Vec<Vec<Seen>> = (0..3).map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        let (_, port, pid) = targets[2];
        translated[2].push(local(load::run(shape(port, "translated", 64, 1024), pid)));
    }
    let cpu = |all: &[Vec<Seen>]| {
        let mut values: Vec<f64> = all[2].iter().map(|seen| micro(seen.cpu)).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (whole, relayed) = (cpu(&translated), cpu(&stream));
    println!(
        "{:<28}{:>12}{relayed:>12.2}{whole:>12.2}{:>9.2} µs (≤ 3)  {}",
        "… translated, to relayed",
        "",
        whole / relayed,
        if whole <= 3.0 * relayed { "ok" } else { "MISSED" }
    );
    failed(&translated);
    let one = measure("stream", 1, 1024);
    row("first token, c=1", "µs", 1.5, each(&one, &|seen| micro(seen.first)));
    failed(&one);
    let alone = measure("plain", 1, 1024);
    let p50 = each(&alone, &|seen| micro(seen.p50));
    row("p50, c=1", "µs", 0.0, p50);
    let added = [0.0, p50[1] - p50[0], p50[2] - p50[0]];
    row("added p50, c=1", "µs", 1.25, added);
    println!(
        "{:<28}{}",
        "",
        if added[2] <= 200.0 { "added p50 ≤ 0.2 ms: ok" } else { "added p50 ≤ 0.2 ms: MISSED" }
    );
    let large = measure("plain", 8, 1024 * 1024);
    row("CPU per MB, 1 MB bodies", "µs", 1.3, each(&large, &|seen| micro(seen.cpu)));
    failed(&large);
    let mut held = [0.0; 3];
    for (at, (_, port, pid)) in targets.iter().enumerate() {
        let Some(pid) = pid else { continue };
        let before = load::memory_of(*pid);
        let (used, failed) = local(async {
            let (open, failed) = load::hold(shape(*port, "idle", streams, 1024)).await;
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let used = load::memory_of(*pid).saturating_sub(before);
            drop(open);
            tokio::time::sleep(Duration::from_millis(500)).await;
            (used, failed)
        });
        held[at] = used as f64 / 1024.0 / (streams - failed) as f64;
        if failed > 0 {
            println!("    {failed} streams FAILED");
        }
    }
    row(&format!("{streams} idle streams, each"), "KiB", 2.0, held);
    println!("{:<28}{}", "", if held[2] <= 32.0 { "≤ 32 KiB each: ok" } else { "≤ 32 KiB each: MISSED" });
    let _ = std::fs::remove_dir_all(&directory);
}

/// The callers, like the mock, leave core 0 to the relay.
fn pin_self() {
    let pid = std::process::id().to_string();
    let _ = Command::new("taskset").args(["-a", "-cp", "1", &pid]).stdout(Stdio::null()).status();
}

/// The worker of an nginx master.
fn worker_of(master: u32) -> u32 {
    std::fs::read_to_string(format!("/proc/{master}/task/{master}/children"))
        .ok()
        .and_then(|text| text.split_whitespace().next().and_then(|pid| pid.parse().ok()))
        .unwrap_or(master)
}

fn nginx(directory: &str) -> String {
    format!(
        "daemon off; pid {directory}/pid; error_log {directory}/error.log; worker_processes 1; worker_rlimit_nofile 20000;
events {{ worker_connections 20000; }}
http {{
  access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  client_max_body_size 64m; client_body_buffer_size 2m; keepalive_requests 100000000; tcp_nodelay on;
  upstream mock {{ server 127.0.0.1:{MOCK}; keepalive 512; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{NGINX};
    location / {{ proxy_pass http://mock; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_buffering off; proxy_read_timeout 600s; }}
  }}
}}
"
    )
}
