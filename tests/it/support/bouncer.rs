//! A PgBouncer with transaction pooling in front of the tests' PostgreSQL; stopped and removed like it.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::pg::{Cluster, unprivileged};

/// Ends with this process, however it goes: the shell waits for the pipe to close.
const SUPERVISOR: &str = r#"
trap '' INT TERM HUP
pgbouncer "$1/pgbouncer.ini" </dev/null >>"$1/log" 2>&1 &
pid=$!
read -r _
kill -KILL "$pid" 2>/dev/null
wait "$pid"
rm -rf "$1"
"#;

pub struct Bouncer {
    dir: std::path::PathBuf,
    supervisor: Child,
}

impl Bouncer {
    /// In front of all databases of a cluster. Few server connections, so that clients really share them.
    pub fn start(cluster: &Cluster) -> Self {
        // Short: a socket's path may have 107 bytes.
        let dir = std::path::PathBuf::from(format!("/tmp/pdb-{}", std::process::id()));
        fs::create_dir(&dir).expect("a directory for PgBouncer");
        fs::write(dir.join("users.txt"), "\"postgres\" \"\"\n").expect("its users are written");
        let settings = format!(
            "[databases]\n* = host={server} user=postgres\n\n[pgbouncer]\nlisten_addr =\nlisten_port = 6432\n\
             unix_socket_dir = {dir}\nauth_type = trust\nauth_file = {dir}/users.txt\npool_mode = transaction\n\
             default_pool_size = 6\nmax_client_conn = 200\n\
             log_connections = 0\nlog_disconnections = 0\n",
            server = cluster.socket_dir().display(),
            dir = dir.display()
        );
        fs::write(dir.join("pgbouncer.ini"), settings).expect("its settings are written");
        let mut command = Command::new("sh");
        command.args(["-c", SUPERVISOR, "supervisor"]).arg(&dir).stdin(Stdio::piped()).process_group(0);
        if let Some((uid, gid)) = unprivileged() {
            chown(&dir, Some(uid), Some(gid)).expect("chown PgBouncer's directory");
            command.uid(uid).gid(gid);
        }
        let supervisor = command.spawn().expect("sh runs");
        let bouncer = Self { dir, supervisor };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !bouncer.dir.join(".s.PGSQL.6432").exists() {
            let log = fs::read_to_string(bouncer.dir.join("log")).unwrap_or_default();
            assert!(
                Instant::now() < deadline,
                "PgBouncer does not answer (Debian: apt-get install pgbouncer): {log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        bouncer
    }

    /// A database of the cluster, through here.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@localhost:6432/{database}?host={}", self.dir.display())
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}
