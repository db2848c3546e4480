//! A real, private PostgreSQL for the tests of one process.
//!
//! One cluster per test process, one database per test. The server is the child of a small `sh` that holds the reading
//! end of a pipe: when the test process is gone, however it went, the pipe closes, the shell stops the server and
//! removes its directory. Nothing is ever left running.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    io::Write as _,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// What a cluster is started with.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Durable writes: slower, needed only where a crash of the machine is the subject.
    pub fsync: bool,
}

/// A PostgreSQL of its own.
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    options: Options,
    server: Mutex<Option<Server>>,
    next: AtomicU32,
}

struct Server {
    supervisor: Child,
    pipe: ChildStdin,
}

/// A fresh, empty database; it goes with the cluster.
pub struct TestDb {
    pub url: String,
    /// Keeps a private cluster alive while its databases are used.
    _cluster: Arc<Cluster>,
}

static SHARED: LazyLock<Arc<Cluster>> =
    LazyLock::new(|| Arc::new(Cluster::start_private(Options::default())));

/// The cluster of this test process, started at the first call.
pub fn pg() -> Arc<Cluster> {
    Arc::clone(&SHARED)
}

/// Stops the server when its standard input closes. `$1`: the program, `$2`: the data directory, `$3`: the directory to
/// remove at the end (so the server need not shut down in order), `$4`: further options. The server's own input is not the pipe.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
"$1" -D "$2" $4 </dev/null >>"$3/log" 2>&1 &
pid=$!
while IFS= read -r word; do
    case "$word" in
        immediate) kill -QUIT "$pid"; wait "$pid"; exit 0 ;;
        fast) kill -INT "$pid"; wait "$pid"; exit 0 ;;
        kill) kill -KILL "$pid"; wait "$pid"; exit 0 ;;
    esac
done
kill -QUIT "$pid" 2>/dev/null
wait "$pid"
rm -rf "$3"
"#;

impl Cluster {
    /// Starts a cluster that nobody else uses.
    pub fn start_private(options: Options) -> Self {
        let bin = binaries();
        // Short: a socket's path may have 107 bytes, and `.s.PGSQL.5432` is part of it.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let dir = PathBuf::from(format!(
            "/tmp/pdt-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        ));
        std::fs::create_dir(&dir).expect("a directory for the cluster");
        if let Some((uid, gid)) = unprivileged() {
            std::os::unix::fs::chown(&dir, Some(uid), Some(gid)).expect("chown the cluster's directory");
        }
        let output = as_unprivileged(Command::new(bin.join("initdb")))
            .args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(dir.join("data"))
            .stdin(Stdio::null())
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let cluster = Self { dir, bin, options, server: Mutex::new(None), next: AtomicU32::new(0) };
        cluster.start();
        cluster
    }

    /// Starts the server (again) and waits until it answers.
    pub fn start(&self) {
        let mut server = self.server.lock().expect("no test panicked here");
        assert!(server.is_none(), "the server runs already");
        let fsync = if self.options.fsync { "on" } else { "off" };
        let settings = format!(
            "-k {dir} -c listen_addresses= -c fsync={fsync} -c full_page_writes={fsync} -c max_connections=200 \
             -c shared_buffers=64MB -c autovacuum=off -c wal_level=minimal -c max_wal_senders=0 \
             -c log_min_messages=warning",
            dir = self.dir.display()
        );
        let mut supervisor = as_unprivileged(Command::new("sh"))
            .args(["-c", SUPERVISOR, "supervisor"])
            .arg(self.bin.join("postgres"))
            .arg(self.dir.join("data"))
            .arg(&self.dir)
            .arg(settings)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn()
            .expect("sh runs");
        let pipe = supervisor.stdin.take().expect("its input is a pipe");
        *server = Some(Server { supervisor, pipe });
        drop(server);
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            // The server writes what it is about into the eighth line; `pg_isready` is not part of every package.
            let pid = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
            let ready = pid.lines().nth(7).is_some_and(|line| line.trim() == "ready");
            if ready {
                return;
            }
            let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "PostgreSQL does not answer: {log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the server as a crash would: no checkpoint, connections cut.
    pub fn stop_immediate(&self) {
        self.stop("immediate");
    }

    /// `kill -9` of the first process of the server. Its others notice and end; one that starts before they have ended
    /// would be refused, so they are waited for.
    pub fn kill(&self) {
        let children = self.children();
        self.stop("kill");
        let deadline = Instant::now() + Duration::from_secs(30);
        while children.iter().any(|pid| Path::new("/proc").join(pid).exists()) {
            assert!(Instant::now() < deadline, "processes of the killed server stay");
            std::thread::sleep(Duration::from_millis(2));
        }
        // It still says "ready", and would of the next server before that is.
        std::fs::remove_file(self.dir.join("data/postmaster.pid")).expect("what a killed server leaves");
    }

    /// Process ids of the server's children.
    fn children(&self) -> Vec<String> {
        let file = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).expect("the server runs");
        let parent = format!("PPid:\t{}", file.lines().next().expect("its first line is the process id"));
        std::fs::read_dir("/proc")
            .expect("/proc")
            .flatten()
            .filter(|entry| {
                std::fs::read_to_string(entry.path().join("status"))
                    .is_ok_and(|status| status.lines().any(|line| line == parent))
            })
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    fn stop(&self, how: &str) {
        let server = self.server.lock().expect("no test panicked here").take();
        if let Some(mut server) = server {
            let _ = writeln!(server.pipe, "{how}");
            let _ = server.supervisor.wait();
        }
    }

    /// `postgres://…` for a database of this cluster.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost/{database}?host={}", self.dir.display())
    }

    /// Directory of the socket.
    pub fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// Makes an empty database; `hint` shows up in its name.
    pub async fn database(self: &Arc<Self>, hint: &str) -> TestDb {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let hint: String = hint.chars().filter(char::is_ascii_alphanumeric).take(30).collect();
        let name = format!("t{number}_{}", hint.to_ascii_lowercase());
        let mut admin = PgConnection::connect(&self.url("postgres")).await.expect("the cluster answers");
        admin
            .execute(AssertSqlSafe(format!("CREATE DATABASE {name} TEMPLATE template0")))
            .await
            .expect("a database is made");
        admin.close().await.expect("the connection closes");
        TestDb { url: self.url(&name), _cluster: Arc::clone(self) }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let server = self.server.lock().map(|mut server| server.take());
        if let Ok(Some(Server { mut supervisor, pipe })) = server {
            drop(pipe);
            let _ = supervisor.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl TestDb {
    /// A connection of a test's own, beside the program's.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.url).await.expect("the test database answers")
    }

    /// Runs statements as another program would.
    pub async fn run(&self, sql: &str) {
        let mut connection = self.connect().await;
        if let Err(error) = connection.execute(AssertSqlSafe(sql.to_owned())).await {
            panic!("{error}\n{sql}");
        }
        connection.close().await.expect("the connection closes");
    }

    /// The first column of the rows, as text, joined by newlines.
    pub async fn text(&self, sql: &str) -> String {
        let mut connection = self.connect().await;
        let wrapped = format!("SELECT coalesce(string_agg(to_jsonb(q)::text, E'\\n'), '') FROM ({sql}) q");
        let text = sqlx::query_scalar::<_, String>(AssertSqlSafe(wrapped))
            .fetch_one(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
        connection.close().await.expect("the connection closes");
        text
    }

    /// Bytes of WAL written so far by the whole cluster: compare only while nobody else writes.
    pub async fn wal(&self) -> i64 {
        let mut connection = self.connect().await;
        sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
            .fetch_one(&mut connection)
            .await
            .expect("the WAL position is read")
    }
}

/// The directory that `PROVIDERD_TEST_POSTGRES` names, or the newest PostgreSQL installed.
fn binaries() -> PathBuf {
    if let Some(dir) = std::env::var_os("PROVIDERD_TEST_POSTGRES") {
        return dir.into();
    }
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("initdb").exists())
        .collect();
    found.sort();
    if let Some((_, bin)) = found.pop() {
        return bin;
    }
    std::env::var_os("PATH")
        .and_then(|path| std::env::split_paths(&path).find(|dir| dir.join("initdb").exists()))
        .expect("these tests need PostgreSQL's programs (Debian: apt-get install postgresql)")
}

/// PostgreSQL refuses to run as root: whom to run it as instead.
pub fn unprivileged() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].iter().find_map(|wanted| {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let (name, uid, gid) = (fields.first()?, fields.get(2)?, fields.get(3)?);
            (name == wanted).then(|| Some((uid.parse().ok()?, gid.parse().ok()?)))?
        })
    })
}

fn as_unprivileged(mut command: Command) -> Command {
    if let Some((uid, gid)) = unprivileged() {
        command.uid(uid).gid(gid);
    }
    command.current_dir("/").env_remove("LC_ALL").env("LANG", "C");
    command
}
