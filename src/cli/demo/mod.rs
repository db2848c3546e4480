//! `demo`: everything at work without a real key: made-up providers, a daemon of its own, a trickle of requests.
//!
//! Not its job: anything that a real installation uses. Invariants: it listens on loopback only, reads no settings,
//! variables or manifests of the operator, and leaves nothing behind: the daemon is a child process that ends with this
//! one, and the directory of both is deleted.

mod declared;
mod providers;
mod trickle;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, geteuid, getppid},
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{providers::FakeProviders, trickle::RequestTrickle};
use super::{
    Global,
    output::{self, Exit},
    run,
};
use crate::{
    dataplane::first_consumer::{caller_key, key_hash},
    process::lifecycle::Supervisor,
    secret::Secret,
};

/// Where the demo listens if the port is free: where a real installation does.
const DASHBOARD: u16 = 7411;
const GATEWAY: u16 = 7412;

/// A first start makes a database: some seconds, on slow machines many.
const START: Duration = Duration::from_secs(90);
/// A daemon stops within 5 s; its database is given the same.
const STOP: Duration = Duration::from_secs(12);
/// Between two looks at whether the daemon is ready.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Lines of the daemon's log that are shown if it fails.
const LAST_LINES: usize = 20;

#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Print only where everything is, not each request
    #[arg(long)]
    quiet: bool,
    /// The daemon of a demo in this directory, started by it
    #[arg(long, hide = true, value_name = "DIR")]
    daemon: Option<PathBuf>,
}

/// The keys and addresses of one demo.
pub(in crate::cli::demo) struct DemoScene {
    dir: PathBuf,
    dashboard: SocketAddr,
    gateway: SocketAddr,
    token: Secret,
    /// Of the consumer `demo-app`, and of the consumer `demo-batch`, which has a budget.
    app_key: Secret,
    batch_key: Secret,
}

impl DemoArgs {
    /// Runs until a signal ends it.
    pub fn run(self, global: &Global) -> anyhow::Result<Exit> {
        if let Some(dir) = self.daemon {
            return daemon(global, dir);
        }
        // One thread: the kernel ends the child when the thread that started it ends.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let dir = ScratchDir::new()?;
        let ended = runtime.block_on(self.play(dir.path.clone()));
        runtime.shutdown_background();
        drop(dir);
        output::text("demo: over; nothing of it is left\n")?;
        ended
    }

    async fn play(self, dir: PathBuf) -> anyhow::Result<Exit> {
        let supervisor = Supervisor::new();
        let _hangups = supervisor.install_signals()?;
        let stop = supervisor.token();
        let began = Instant::now();
        let fakes = FakeProviders::start(&supervisor).await?;
        let mut scene = DemoScene {
            dashboard: free_port(DASHBOARD)?,
            gateway: free_port(GATEWAY)?,
            token: admin_token()?,
            app_key: caller_key()?,
            batch_key: caller_key()?,
            dir,
        };
        output::text("demo: starting a daemon with a database of its own …\n")?;
        let (mut child, trickle) = match opened(&scene, &fakes, began, &stop).await? {
            DemoStart::Ready(child, trickle) => (child, trickle),
            DemoStart::Stopped => return Ok(Exit::Done),
            // Another program took a port after it was seen to be free.
            DemoStart::PortTaken => {
                (scene.dashboard, scene.gateway) = (free_port(0)?, free_port(0)?);
                match opened(&scene, &fakes, began, &stop).await? {
                    DemoStart::Ready(child, trickle) => (child, trickle),
                    DemoStart::Stopped => return Ok(Exit::Done),
                    DemoStart::PortTaken => bail!("the daemon found no port:\n{}", last_lines(&scene)),
                }
            }
        };
        output::text(&greeting(&scene, began.elapsed()))?;
        let ended = tokio::select! {
            ended = trickle.run(self.quiet) => ended,
            status = child.wait() => Err(anyhow::anyhow!("the daemon ended ({}):\n{}", status?, last_lines(&scene))),
            () = stop.cancelled() => Ok(()),
        };
        supervisor.shutdown();
        child.end().await;
        ended.map(|()| Exit::Done)
    }
}

/// How the start of a daemon ended.
enum DemoStart {
    Ready(DemoDaemon, Box<RequestTrickle>),
    PortTaken,
    Stopped,
}

/// Starts a daemon and waits until it is ready.
async fn opened(
    scene: &DemoScene,
    fakes: &FakeProviders,
    began: Instant,
    stop: &CancellationToken,
) -> anyhow::Result<DemoStart> {
    declared::write(scene, fakes)?;
    let mut child = DemoDaemon::start(scene)?;
    let trickle = Box::new(RequestTrickle::new(scene)?);
    let ready = async {
        while !trickle.is_ready().await {
            if began.elapsed() > START {
                bail!("the daemon is not ready after {} s", START.as_secs());
            }
            sleep(LOOK_EVERY).await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        ready = ready => match ready {
            Ok(()) => Ok(DemoStart::Ready(child, trickle)),
            Err(error) => {
                let log = last_lines(scene);
                child.end().await;
                Err(error.context(log))
            }
        },
        status = child.wait() => {
            let (status, log) = (status?, last_lines(scene));
            if log.contains("cannot listen on") {
                return Ok(DemoStart::PortTaken);
            }
            bail!("the daemon ended ({status}):\n{log}")
        }
        () = stop.cancelled() => {
            child.end().await;
            Ok(DemoStart::Stopped)
        }
    }
}

/// The daemon: `run`, that ends when the demo ends, however that ends.
fn daemon(global: &Global, dir: PathBuf) -> anyhow::Result<Exit> {
    let demo = getppid();
    prctl::set_pdeathsig(Signal::SIGTERM).context("the end of the demo could not be watched")?;
    let ended = run::run(global);
    // A demo that was killed deletes nothing any more.
    if getppid() != demo {
        drop(ScratchDir { path: dir });
    }
    ended
}

/// A daemon that was started.
struct DemoDaemon(Child);

impl DemoDaemon {
    fn start(scene: &DemoScene) -> anyhow::Result<Self> {
        let log = fs::File::create(scene.log())?;
        let mut command = Command::new(std::env::current_exe().context("the own program is not found")?);
        command
            .args(["demo", "--daemon"])
            .arg(&scene.dir)
            .arg("--config")
            .arg(scene.dir.join("providerd.toml"));
        command.current_dir(&scene.dir).env_clear().env("STATE_DIRECTORY", scene.dir.join("state"));
        // Beside these, nothing of the operator's surroundings: no DATABASE_URL, no key.
        for name in ["PATH", "TMPDIR", "LANG"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        for (name, key) in FakeProviders::keys() {
            command.env(name, key);
        }
        // A group of its own: Ctrl-C reaches the demo, which then stops the daemon in order.
        command.process_group(0).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(Self(command.spawn().context("the daemon could not be started")?))
    }

    async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.0.wait().await
    }

    /// Stops it in order, and by force where that takes too long.
    async fn end(&mut self) {
        let Some(pid) = self.0.id().and_then(|pid| i32::try_from(pid).ok()) else { return };
        // Where it has ended already, there is nothing to stop.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if timeout(STOP, self.0.wait()).await.is_err() {
            let _ = self.0.kill().await;
        }
    }
}

impl DemoScene {
    fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn manifests(&self) -> PathBuf {
        self.dir.join("providers.d")
    }
}

/// A directory that is deleted with this value, with what root's database keeps elsewhere.
struct ScratchDir {
    path: PathBuf,
}

impl ScratchDir {
    fn new() -> anyhow::Result<Self> {
        let name = format!("providerd-demo-{}", uuid::Uuid::new_v4().simple());
        let path = std::env::temp_dir().join(name.get(..24).unwrap_or(&name));
        let make = |path: &Path| {
            // PostgreSQL does not run as root, and its user has to pass; what is secret is closed itself.
            let mode = if geteuid().is_root() { 0o755 } else { 0o700 };
            fs::DirBuilder::new().mode(mode).create(path)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))
        };
        make(&path)
            .and_then(|()| make(&path.join("state")))
            .and_then(|()| make(&path.join("providers.d")))
            .with_context(|| format!("{} cannot be made\nhint: set TMPDIR", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for ScratchDir {
    fn drop(&mut self) {
        // A link, where the database could not lie below this directory.
        if let Ok(base) = self.path.join("state/postgres").canonicalize() {
            let _ = fs::remove_dir_all(base);
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            anstream::eprintln!("warning: {} could not be deleted: {error}", self.path.display());
        }
    }
}

/// A loopback address with this port, or with one that is free.
fn free_port(port: u16) -> anyhow::Result<SocketAddr> {
    let at = |port| std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = at(port).or_else(|_| at(0)).context("no port is free on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

fn last_lines(scene: &DemoScene) -> String {
    let text = fs::read_to_string(scene.log()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n")
}

fn greeting(scene: &DemoScene, took: Duration) -> String {
    format!(
        "demo: ready after {seconds:.1} s. No provider is real, no key opens anything, Ctrl-C ends and deletes all.\n\n\
         dashboard  http://{dashboard}/\n           token {token}\n\
         gateway    http://{gateway}/v1\n           key {key}\n           \
         curl http://{gateway}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n                \
         -H 'Content-Type: application/json' \\\n                \
         -d '{{\"model\": \"balanced\", \"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'\n\
         metrics    http://{dashboard}/metrics\n\
         manifests  {manifests}  (edit one and look at the dashboard)\n\
         log        {log}\n\n\
         watch      demo-fast    answers at once\n           \
         demo-slow    takes a second, is soon `degraded`, and refuses every fourth request\n           \
         demo-locked  refuses its key: each request to it falls back, until two refusals 30 s apart prove the key wrong\n           \
         demo-batch   a consumer with a budget of 0.10 USD a day: after some minutes it is answered 402\n           \
         Routes, Explain and Usage in the dashboard show who answers, why, and what it costs\n\n",
        seconds = took.as_secs_f64(),
        dashboard = scene.dashboard,
        gateway = scene.gateway,
        token = scene.token.expose(),
        key = scene.app_key.expose(),
        manifests = scene.manifests().display(),
        log = scene.log().display(),
    )
}

/// As random as a caller's key, and without the mark of one.
fn admin_token() -> io::Result<Secret> {
    let key = caller_key()?;
    Ok(Secret::new(key.expose().trim_start_matches("pd_").to_owned()))
}

/// The hash of a token or key, as settings and manifests hold it.
fn hash(key: &Secret) -> String {
    key_hash(key)
}
