//! Signals and systemd's protocol, with a real process and a real notification socket.

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use providerd::process::lifecycle::{Heartbeat, Supervisor, Systemd, install_panic_hook};

/// What the child does after it is ready.
const BEHAVIOUR: &str = "LIFECYCLE_TEST_BEHAVIOUR";

/// Longest wait for anything the child does. Generous: the machine may be busy.
const DEADLINE: Duration = Duration::from_secs(20);

/// Not a test of its own: the process that the tests below start, by running this file again.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Ok(behaviour) = std::env::var(BEHAVIOUR) else { return };
    install_panic_hook();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let end = runtime.block_on(async {
        let supervisor = Supervisor::new();
        let hangups = supervisor.install_signals().unwrap();
        let heart = Heartbeat::new();
        let token = supervisor.token();
        match behaviour.as_str() {
            "deaf" => supervisor.spawn("deaf", std::future::pending::<()>()),
            "panics" => supervisor.spawn("panics", panics()),
            _ => supervisor.spawn("main", async move { token.cancelled().await }),
        }
        supervisor.serve_reloads(hangups, Systemd, || async { Systemd.status("looked\nagain") });
        let alive = behaviour != "stuck";
        supervisor.serve_watchdog(Systemd, move || alive && heart.age() < Duration::from_secs(60));
        Systemd.ready();
        let end = supervisor.wait();
        supervisor.token().cancelled().await;
        Systemd.stopping();
        end.await
    });
    runtime.shutdown_background();
    std::process::exit(if end.is_ok() { 0 } else { 1 });
}

async fn panics() {
    panic!("on purpose");
}

struct Process {
    child: Child,
    socket: UnixDatagram,
    _dir: tempfile::TempDir,
}

impl Process {
    fn start(behaviour: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path: PathBuf = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "lifecycle::child", "--ignored", "--nocapture"])
            .env(BEHAVIOUR, behaviour)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "100000")
            .env_remove("WATCHDOG_PID")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket, _dir: dir }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// The next message that is no watchdog's.
    fn message(&self) -> String {
        loop {
            let message = self.any_message(DEADLINE).unwrap();
            if message != "WATCHDOG=1" {
                return message;
            }
        }
    }

    fn any_message(&self, limit: Duration) -> io::Result<String> {
        self.socket.set_read_timeout(Some(limit))?;
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes[..length]).trim_end().to_owned())
    }

    fn end(&mut self) -> ExitStatus {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begin.elapsed() < DEADLINE, "the process does not end");
            std::thread::yield_now();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_ends_it_orderly() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut process = Process::start("obeys");
        assert_eq!(process.message(), "READY=1");
        process.signal(signal);
        assert_eq!(process.message(), "STOPPING=1");
        assert!(process.end().success(), "{signal}");
    }
}

#[test]
fn the_second_signal_ends_it_at_once() {
    let mut process = Process::start("deaf");
    assert_eq!(process.message(), "READY=1");
    process.signal(Signal::SIGTERM);
    assert_eq!(process.message(), "STOPPING=1");
    let begin = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(1));
    assert!(begin.elapsed() < providerd::process::lifecycle::GRACE, "{:?}", begin.elapsed());
}

#[test]
fn a_deaf_task_does_not_hold_up_the_end() {
    let mut process = Process::start("deaf");
    assert_eq!(process.message(), "READY=1");
    let begin = Instant::now();
    process.signal(Signal::SIGTERM);
    assert_eq!(process.end().code(), Some(1));
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

#[test]
fn a_panicking_task_ends_the_process_with_failure() {
    assert_eq!(Process::start("panics").end().code(), Some(1));
}

#[test]
fn a_hangup_is_reported_as_a_reload() {
    let process = Process::start("obeys");
    assert_eq!(process.message(), "READY=1");
    process.signal(Signal::SIGHUP);
    let reloading = process.message();
    let (first, second) = reloading.split_once('\n').unwrap();
    assert_eq!(first, "RELOADING=1");
    let micros: u64 = second.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!(micros > 0);
    assert_eq!(process.message(), "STATUS=looked again", "a line break does not begin another assignment");
    assert_eq!(process.message(), "READY=1");
}

#[test]
fn the_watchdog_is_served_only_while_alive() {
    let process = Process::start("obeys");
    assert_eq!(process.message(), "READY=1");
    assert_eq!(process.any_message(DEADLINE).unwrap(), "WATCHDOG=1");

    let process = Process::start("stuck");
    assert_eq!(process.message(), "READY=1");
    // Ten periods without a sign.
    let error = process.any_message(Duration::from_secs(1)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}
