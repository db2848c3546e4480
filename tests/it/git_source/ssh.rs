//! Over SSH, where an `sshd` is installed: the key, the known hosts, and strangers.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use providerd::{
    config::git_address,
    metrics::Metrics,
    source::pull::{PullOptions, PullReport, Puller, Reference, commit_of},
};

use crate::{git_source::repository::Repository, support::lab::PATIENCE};

/// An sshd on loopback that lets one key in.
struct Sshd {
    child: Child,
    port: u16,
    known_hosts: PathBuf,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Sshd {
    /// `None` where there is no sshd, or it does not run here.
    fn start(repository: &Repository, key: &Path) -> Option<Self> {
        let program =
            ["/usr/sbin/sshd", "/usr/bin/sshd"].into_iter().find(|path| Path::new(path).exists())?;
        // It insists on this directory when started by root.
        let _ = fs::create_dir_all("/run/sshd");
        let host_key = repository.signer("host");
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = repository.dir.path().join("sshd_config");
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n",
            host_key.display(),
            key.with_extension("pub").display()
        );
        fs::write(&config, text).unwrap();
        let known_hosts = repository.dir.path().join("known hosts");
        let public = fs::read_to_string(host_key.with_extension("pub")).unwrap();
        fs::write(&known_hosts, format!("[127.0.0.1]:{port} {public}")).unwrap();
        let child = Command::new(program)
            .args(["-D", "-e", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let mut sshd = Self { child, port, known_hosts };
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if sshd.child.try_wait().unwrap().is_some() || started.elapsed() > PATIENCE {
                return None;
            }
            std::thread::yield_now();
        }
        Some(sshd)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deploy_key_opens_and_only_known_hosts_are_believed() {
    let repository = Repository::empty();
    repository.write("a.toml", "# 1\n");
    let commit = repository.push();
    let (key, stranger) = (repository.signer("deploy"), repository.signer("stranger"));
    let Some(sshd) = Sshd::start(&repository, &key) else {
        assert!(std::env::var_os("CI").is_none(), "no sshd here: scripts/setup ci");
        // Its package opens a port of the machine, which running tests should not do to anybody's.
        eprintln!("no sshd here; what ssh is given is proved by unit tests alone");
        return;
    };
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).unwrap().unwrap().name;
    let url = format!("ssh://{user}@127.0.0.1:{}{}", sshd.port, repository.bare().display());
    let (transport, origin) = git_address(&url).unwrap();
    let empty = repository.dir.path().join("nobody");
    fs::write(&empty, "").unwrap();
    let options = |key: &Path, known_hosts: &Path| PullOptions {
        url: url.clone(),
        transport,
        origin: origin.clone(),
        reference: Reference::Branch("main".to_owned()),
        path: ".".into(),
        interval: Duration::from_secs(3600),
        timeout: Duration::from_secs(30),
        max_bytes: 64 << 20,
        ssh_key: Some(key.to_owned()),
        known_hosts: Some(known_hosts.to_owned()),
        token: None,
        username: "git".to_owned(),
        allowed_signers: None,
        allow_rewritten: false,
        proxy: None,
        ca_files: Vec::new(),
        state: repository.dir.path().join("state"),
    };
    let open = repository.signer("open");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    for (options, words) in [
        (options(&key, &empty), "Host key verification failed"),
        (options(&stranger, &sshd.known_hosts), "Permission denied"),
        (options(&open, &sshd.known_hosts), "Permission denied"),
        (options(&key, &sshd.known_hosts), ""),
    ] {
        let stop = CancellationToken::new();
        let (puller, _pulled) =
            Puller::new(options.clone(), Arc::new(Notify::new()), Arc::new(Metrics::new().unwrap()));
        let task = tokio::spawn(puller.run(stop.clone()));
        let started = Instant::now();
        loop {
            let report = PullReport::read(&options).unwrap_or_default();
            let error = report.error.clone().unwrap_or_default();
            if (words.is_empty() && report.commit.is_some()) || (!words.is_empty() && error.contains(words)) {
                break;
            }
            assert!(started.elapsed() < PATIENCE, "{words}: {report:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
        task.await.unwrap();
        let expected = words.is_empty().then(|| commit.clone());
        assert_eq!(commit_of(&options.manifests()), expected);
    }
}
