//! The embedded database, with the real PostgreSQL of this machine.
//!
//! Some tests need processes that die: this binary starts itself again, as `helper_process`.
#![allow(clippy::disallowed_methods, reason = "tests spawn readers of their own")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, geteuid},
};
use sqlx::{Connection as _, PgConnection};

use providerd::embedded::{Embedded, EmbeddedError};

/// Tells a helper process its state directory.
const STATE: &str = "EMBEDDED_TEST_STATE";
/// Stands in the environment of a helper and must not reach the server.
const MARKER: (&str, &str) = ("EMBEDDED_TEST_MARKER", "not-a-real-secret");
/// `nobody` on every Linux.
const NOBODY: u32 = 65534;

/// A state directory that leaves nothing behind: no server, no cluster.
struct State {
    root: tempfile::TempDir,
    dir: PathBuf,
}

impl State {
    fn new() -> Self {
        Self::named("state")
    }

    fn named(name: &str) -> Self {
        // Not TMPDIR: its path may be too long for what a test wants to show.
        let root = tempfile::tempdir_in("/tmp").unwrap();
        // As in root's home: the server's user cannot pass.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let dir = root.path().join(name);
        Self { root, dir }
    }

    /// Lets other users pass, so that root's server can lie inside.
    fn open(self) -> Self {
        fs::set_permissions(self.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(&self.dir).unwrap();
        fs::set_permissions(&self.dir, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn base(&self) -> Option<PathBuf> {
        self.dir.join("postgres").canonicalize().ok()
    }

    fn data(&self) -> PathBuf {
        self.base().unwrap().join("data")
    }

    fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn server_pid(&self) -> i32 {
        let text = fs::read_to_string(self.pid_file()).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let Some(base) = self.base() else { return };
        let pid_file = base.join("data/postmaster.pid");
        if let Ok(text) = fs::read_to_string(&pid_file) {
            let mut lines = text.lines();
            if let Some(pid) = lines.next().and_then(|line| line.parse().ok())
                && is_server(pid, &base)
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                poll("the server's end", || (!is_server(pid, &base)).then_some(()));
            }
            // A short directory of its own.
            if let Some(sockets) = lines.nth(3).map(Path::new)
                && sockets.file_name().is_some_and(|name| name.to_string_lossy().starts_with("providerd-"))
            {
                let _ = fs::remove_dir_all(sockets);
            }
        }
        let _ = fs::remove_dir_all(base);
    }
}

fn is_server(pid: i32, base: &Path) -> bool {
    let Ok(arguments) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let data = base.join("data");
    arguments.split(|byte| *byte == 0).any(|argument| Path::new(&*String::from_utf8_lossy(argument)) == data)
}

fn poll<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Another process that uses the embedded database until its input ends.
struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
}

/// What a helper says once its server answers.
#[derive(Debug, PartialEq, Eq)]
struct Ready {
    url: String,
    was_running: bool,
    initialised: bool,
}

impl Helper {
    fn spawn(state: &Path, uid: Option<u32>) -> Self {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--exact", "embedded::helper_process", "--nocapture", "--test-threads=1"]);
        command.env(STATE, state).env(MARKER.0, MARKER.1).env_remove("XDG_RUNTIME_DIR").current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        Self { child, stdin }
    }

    fn ready(&mut self) -> Ready {
        let out = self.child.stdout.take().unwrap();
        let mut lines = BufReader::new(out).lines();
        let line = lines.find_map(|line| {
            let line = line.ok()?;
            // The test harness prints its own words before, on the same line.
            line.split_once("READY ").map(|(_, rest)| rest.to_owned())
        });
        let line = line.expect("the helper starts");
        let mut words = line.split(' ');
        let ready = Ready {
            url: words.next().unwrap().to_owned(),
            was_running: words.next().unwrap() == "true",
            initialised: words.next().unwrap() == "true",
        };
        // Keep the pipe open: a helper that prints must not die of it.
        std::thread::spawn(move || lines.for_each(drop));
        ready
    }

    /// Ends its input: it stops the server if it is the last user.
    fn finish(mut self) {
        drop(self.stdin.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the helper ends with {status}");
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn helper_process() {
    let Some(state) = std::env::var_os(STATE) else { return };
    // As the daemon does: nothing may depend on being open to others of the same user.
    providerd::process::harden_process().unwrap();
    let embedded = Embedded::start(Path::new(&state)).await.unwrap();
    println!("READY {} {} {}", embedded.url(), embedded.was_running(), embedded.initialised());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    embedded.stop().await.unwrap();
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn ask(connection: &mut PgConnection, sql: &'static str) -> String {
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

async fn write_row(url: &str) {
    let mut connection = connect(url).await;
    for sql in ["CREATE TABLE IF NOT EXISTS kept (n int)", "INSERT INTO kept VALUES (42)"] {
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    }
}

async fn assert_row(url: &str) {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM kept WHERE n = 42")
        .fetch_one(&mut connect(url).await)
        .await
        .unwrap();
    assert_eq!(count, 1);
}

#[tokio::test]
async fn a_cluster_is_made_once_and_outlives_its_server() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(embedded.initialised() && !embedded.was_running());
    assert_eq!(embedded.data_dir(), state.data());
    write_row(&embedded.url()).await;

    let mut connection = connect(&embedded.url()).await;
    for (setting, expected) in [
        ("SHOW fsync", "on"),
        ("SHOW full_page_writes", "on"),
        ("SHOW synchronous_commit", "on"),
        ("SHOW data_checksums", "on"),
        ("SHOW listen_addresses", ""),
        ("SHOW server_encoding", "UTF8"),
        ("SHOW TimeZone", "UTC"),
        ("SHOW jit", "off"),
        ("SELECT current_user::text", "providerd"),
        ("SELECT current_database()::text", "providerd"),
    ] {
        assert_eq!(ask(&mut connection, setting).await, expected, "{setting}");
    }
    connection.close().await.unwrap();
    assert_eq!(fs::metadata(state.data()).unwrap().mode() & 0o777, 0o700);
    let base = fs::symlink_metadata(state.dir.join("postgres")).unwrap();
    assert_eq!(base.is_symlink(), geteuid().is_root(), "root's is out of reach here, and lies elsewhere");
    assert_eq!(fs::metadata(embedded.log_path()).unwrap().mode() & 0o777, 0o600);

    assert!(embedded.stop().await.unwrap());
    assert!(!state.pid_file().exists());

    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(!embedded.initialised() && !embedded.was_running());
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn the_server_is_cut_off_from_terminal_groups_and_environment() {
    let state = State::new();
    let mut helper = Helper::spawn(&state.dir, None);
    helper.ready();
    let pid = state.server_pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    assert_eq!((fields[2], fields[3]), (&*pid.to_string(), &*pid.to_string()), "own group and session");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains(MARKER.1));
    if geteuid().is_root() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = |key: &str| status.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
        assert_eq!(line("Groups:").trim(), "Groups:");
        assert!(!line("Uid:").split_whitespace().any(|uid| uid == "0"), "{}", line("Uid:"));
    }
    helper.finish();
}

#[tokio::test]
async fn the_server_of_a_killed_process_is_taken_over() {
    let state = State::new();
    let mut helper = Helper::spawn(&state.dir, None);
    let ready = helper.ready();
    write_row(&ready.url).await;
    let pid = state.server_pid();
    helper.kill();

    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(embedded.was_running() && !embedded.initialised());
    assert_eq!((embedded.url(), state.server_pid()), (ready.url, pid));
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
    assert!(!is_server(pid, &state.base().unwrap()));
}

#[tokio::test]
async fn processes_that_start_together_share_one_server_and_the_last_stops_it() {
    let state = State::new();
    let mut helpers: Vec<_> = (0..4).map(|_| Helper::spawn(&state.dir, None)).collect();
    let ready: Vec<_> = helpers.iter_mut().map(Helper::ready).collect();
    assert_eq!(ready.iter().filter(|ready| ready.initialised).count(), 1, "{ready:?}");
    assert_eq!(ready.iter().filter(|ready| !ready.was_running).count(), 1, "{ready:?}");
    assert!(ready.iter().all(|one| one.url == ready[0].url));
    let pid = state.server_pid();
    while let Some(helper) = helpers.pop() {
        assert!(is_server(pid, &state.base().unwrap()), "it runs while somebody uses it");
        helper.finish();
    }
    assert!(!is_server(pid, &state.base().unwrap()));
}

#[tokio::test]
async fn committed_data_survives_the_death_of_the_server() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(!embedded.revive().await.unwrap(), "it lives");
    write_row(&embedded.url()).await;
    // Its process stays as a zombie of this one until somebody asks: the lock file names a process that
    // exists and is dead.
    kill(Pid::from_raw(state.server_pid()), Signal::SIGKILL).unwrap();
    assert!(embedded.revive().await.unwrap());
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn processes_that_outlive_their_server_are_ended_first() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    write_row(&embedded.url()).await;
    let mut connection = connect(&embedded.url()).await;
    let backend: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    // It computes for hours and never looks whether its server lives.
    let busy = tokio::spawn(async move {
        let sql = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000000) b";
        let _ = sqlx::query(sql).execute(&mut connection).await;
    });
    let mut watch = connect(&embedded.url()).await;
    loop {
        let sql = "SELECT state FROM pg_stat_activity WHERE pid = $1";
        let activity: String = sqlx::query_scalar(sql).bind(backend).fetch_one(&mut watch).await.unwrap();
        if activity == "active" {
            break;
        }
        tokio::task::yield_now().await;
    }
    kill(Pid::from_raw(state.server_pid()), Signal::SIGKILL).unwrap();
    assert!(Path::new(&format!("/proc/{backend}/cwd")).exists(), "or the test shows nothing");
    assert!(embedded.revive().await.unwrap());
    assert!(!Path::new(&format!("/proc/{backend}/cwd/PG_VERSION")).exists(), "it is ended");
    busy.await.unwrap();
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn a_server_in_another_container_is_used_and_not_doubled() {
    let state = State::new();
    let mut helper = Helper::spawn(&state.dir, None);
    let ready = helper.ready();
    // What a container sees of another's process: an id that means nothing to it.
    let owner = fs::metadata(state.pid_file()).unwrap();
    let true_text = fs::read_to_string(state.pid_file()).unwrap();
    let rest = true_text.split_once('\n').unwrap().1;
    fs::write(state.pid_file(), format!("4194999\n{rest}")).unwrap();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    fs::write(state.pid_file(), &true_text).unwrap();
    chown(state.pid_file(), Some(owner.uid()), Some(owner.gid())).unwrap();
    assert!(embedded.was_running());
    assert_eq!(embedded.url(), ready.url);
    write_row(&embedded.url()).await;
    assert!(!embedded.stop().await.unwrap());
    helper.finish();
}

#[tokio::test]
async fn a_crash_of_both_is_recovered_from() {
    let state = State::new();
    let mut helper = Helper::spawn(&state.dir, None);
    let ready = helper.ready();
    write_row(&ready.url).await;
    let pid = state.server_pid();
    helper.kill();
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();

    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(!embedded.was_running());
    assert_ne!(state.server_pid(), pid);
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn a_stale_pid_file_that_names_a_living_stranger_is_no_obstacle() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    write_row(&embedded.url()).await;
    let owner = fs::metadata(state.data()).unwrap();
    let mut text = fs::read_to_string(state.pid_file()).unwrap();
    assert!(embedded.stop().await.unwrap());

    // After a reboot the id may belong to anybody; the worst is a process of the same user.
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null()).current_dir("/");
    if geteuid().is_root() {
        command.uid(owner.uid()).gid(owner.gid());
    }
    let mut stranger = command.spawn().unwrap();
    let rest = text.split_off(text.find('\n').unwrap());
    for content in
        [format!("{}{rest}", stranger.id()), format!("{}\n", stranger.id()), "9".into(), String::new()]
    {
        fs::write(state.pid_file(), &content).unwrap();
        chown(state.pid_file(), Some(owner.uid()), Some(owner.gid())).unwrap();
        let result = Embedded::start(&state.dir).await;
        if result.is_err() {
            stranger.kill().unwrap();
            stranger.wait().unwrap();
        }
        let embedded = result.unwrap();
        assert!(!embedded.was_running(), "{content:?}");
        assert_row(&embedded.url()).await;
        assert!(embedded.stop().await.unwrap());
    }
    assert!(stranger.try_wait().unwrap().is_none(), "the stranger is left alone");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_kill_while_the_cluster_is_made_leaves_no_half_of_it() {
    let state = State::new();
    // At several moments: as soon as the unfinished cluster shows, and as its files appear.
    for sign in ["", "PG_VERSION", "global/pg_control"] {
        let mut helper = Helper::spawn(&state.dir, None);
        poll("an unfinished cluster", || {
            let entries = fs::read_dir(state.base()?).ok()?;
            let mut names = entries.flatten().map(|entry| entry.path());
            names.find(|path| {
                path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("data.new-"))
                    && path.join(sign).exists()
            })
        });
        helper.kill();
        assert!(!state.data().exists());
    }
    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert!(embedded.initialised());
    let names: Vec<_> =
        fs::read_dir(state.base().unwrap()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(!names.iter().any(|name| name.to_string_lossy().starts_with("data.new-")), "{names:?}");
    write_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn other_users_are_refused() {
    if !geteuid().is_root() {
        eprintln!("only root can become another user: not tested");
        return;
    }
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    let sockets = state.base().unwrap().join("run");
    let psql = || {
        let mut command = Command::new("psql");
        command.args(["-h".as_ref(), sockets.as_os_str()]).args([
            "-U",
            "providerd",
            "-d",
            "providerd",
            "-c",
            "SELECT 1",
        ]);
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null());
        command
    };
    assert!(psql().output().unwrap().status.success(), "root may, or the test shows nothing");
    let as_nobody = || {
        let output = psql().uid(NOBODY).gid(NOBODY).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let refusal = as_nobody();
    assert!(refusal.contains("Permission denied"), "{refusal}");
    // Even if somebody opened the doors of the file system.
    fs::set_permissions(&sockets, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(sockets.join(".s.PGSQL.5432"), fs::Permissions::from_mode(0o777)).unwrap();
    let refusal = as_nobody();
    assert!(refusal.contains("Peer authentication failed"), "{refusal}");
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn an_ordinary_user_keeps_everything_in_the_state_directory() {
    let state = State::new().open();
    let uid = if geteuid().is_root() {
        chown(&state.dir, Some(NOBODY), Some(NOBODY)).unwrap();
        Some(NOBODY)
    } else {
        None
    };
    let mut helper = Helper::spawn(&state.dir, uid);
    assert!(helper.ready().initialised);
    assert_eq!(state.base().unwrap(), state.dir.canonicalize().unwrap().join("postgres"));
    assert_eq!(fs::metadata(state.base().unwrap()).unwrap().mode() & 0o777, 0o700);
    // Root may come along, and leaves nothing that its owner could not use.
    if uid.is_some() {
        let visitor = Embedded::start(&state.dir).await.unwrap();
        assert!(visitor.was_running());
        write_row(&visitor.url()).await;
        assert!(!visitor.stop().await.unwrap(), "somebody else uses it");
    }
    helper.finish();
    if uid.is_some() {
        let visitor = Embedded::start(&state.dir).await.unwrap();
        assert!(!visitor.was_running());
        assert_eq!(fs::metadata(state.pid_file()).unwrap().uid(), NOBODY);
        assert!(visitor.stop().await.unwrap());
    }
    let mut helper = Helper::spawn(&state.dir, uid);
    assert!(!helper.ready().initialised);
    helper.finish();
}

#[tokio::test]
async fn a_state_directory_with_any_name_works() {
    for name in [&*"long".repeat(40), "with space, \"quotes\" and 'é"] {
        let state = State::named(name).open();
        let embedded = Embedded::start(&state.dir).await.unwrap();
        assert!(embedded.data_dir().starts_with(&state.dir), "{}", embedded.data_dir().display());
        write_row(&embedded.url()).await;
        assert_row(&embedded.url()).await;
        assert!(embedded.stop().await.unwrap());
        let embedded = Embedded::start(&state.dir).await.unwrap();
        assert_row(&embedded.url()).await;
        let sockets =
            fs::read_to_string(state.pid_file()).unwrap().lines().nth(4).map(PathBuf::from).unwrap();
        assert!(sockets.exists() && !sockets.starts_with(&state.dir));
        drop(embedded);
        assert!(!sockets.exists(), "{}", sockets.display());
        assert!(!state.pid_file().exists(), "whoever forgets to stop it leaves nothing behind");
    }
}

#[tokio::test]
async fn a_cluster_of_a_version_that_is_not_installed_is_refused() {
    let state = State::new().open();
    let base = state.dir.join("postgres");
    fs::create_dir_all(base.join("data")).unwrap();
    fs::write(base.join("data/PG_VERSION"), "9\n").unwrap();
    let error = Embedded::start(&state.dir).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::VersionMismatch { data: 9, .. }), "{error}");

    fs::remove_file(base.join("data/PG_VERSION")).unwrap();
    let error = Embedded::start(&state.dir).await.unwrap_err();
    assert!(
        matches!(error, EmbeddedError::Io { .. }),
        "a directory without a version is no empty place: {error}"
    );
    assert!(base.join("data").exists());
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_and_leaves_no_process() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    write_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
    let path = state.data().join("postgresql.auto.conf");
    let kept = fs::read(&path).unwrap();
    fs::write(&path, "shared_buffers = 'nonsense'\n").unwrap();
    let error = Embedded::start(&state.dir).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::Died { .. }), "{error}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
    assert!(!state.pid_file().exists());
    fs::write(&path, kept).unwrap();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert_row(&embedded.url()).await;
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn the_cluster_lies_in_the_state_directory_where_its_user_can_reach_it() {
    let state = State::new();
    fs::set_permissions(state.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    assert_eq!(embedded.data_dir(), state.dir.join("postgres/data"));
    assert!(!fs::symlink_metadata(state.dir.join("postgres")).unwrap().is_symlink());
    let mode = fs::metadata(&state.dir).unwrap().mode() & 0o777;
    assert_eq!(mode, if geteuid().is_root() { 0o711 } else { 0o700 });
    assert!(embedded.stop().await.unwrap());
}

#[tokio::test]
async fn a_foreign_link_does_not_lead_root_astray() {
    if !geteuid().is_root() {
        eprintln!("only root has a link: not tested");
        return;
    }
    let state = State::new().open();
    let target = state.root.path().join("target");
    fs::create_dir(&target).unwrap();
    symlink(&target, state.dir.join("postgres")).unwrap();
    std::os::unix::fs::lchown(state.dir.join("postgres"), Some(NOBODY), Some(NOBODY)).unwrap();
    let error = Embedded::start(&state.dir).await.unwrap_err();
    assert!(matches!(error, EmbeddedError::ForeignOwner { .. }), "{error}");
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[tokio::test]
async fn a_log_that_grew_is_cut() {
    let state = State::new();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    let log = embedded.log_path();
    assert!(embedded.stop().await.unwrap());
    fs::write(&log, "a line\n".repeat(1_000_000)).unwrap();
    let embedded = Embedded::start(&state.dir).await.unwrap();
    let kept = fs::metadata(log.with_extension("log.1")).unwrap().len();
    assert_eq!(kept, 2 * 1024 * 1024);
    assert!(fs::metadata(&log).unwrap().len() < 100_000);
    assert!(embedded.stop().await.unwrap());
}
