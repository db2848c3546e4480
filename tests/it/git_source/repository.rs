//! A repository to push to, and somebody who pushes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A bare repository, a work tree of somebody who pushes to it, and signers' keys.
pub struct Repository {
    pub dir: TempDir,
}

impl Repository {
    /// Without a commit.
    pub fn empty() -> Self {
        Self::with_format("sha1")
    }

    pub fn with_format(format: &str) -> Self {
        let it = Self { dir: tempfile::Builder::new().prefix("pdgit").tempdir_in("/tmp").unwrap() };
        let format = format!("--object-format={format}");
        it.git_in(it.dir.path(), &["init", "-q", "--bare", "-b", "main", &format, "bare.git"]);
        it.git_in(it.dir.path(), &["init", "-q", "-b", "main", &format, "work"]);
        it.git(&["remote", "add", "origin", it.bare().to_str().unwrap()]);
        it
    }

    pub fn bare(&self) -> PathBuf {
        self.dir.path().join("bare.git")
    }

    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    pub fn url(&self) -> String {
        format!("file://{}", self.bare().display())
    }

    pub fn git(&self, arguments: &[&str]) -> String {
        self.git_in(&self.work(), arguments)
    }

    fn git_in(&self, dir: &Path, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=Nobody", "-c", "user.email=nobody@example.com", "-c", "gpg.format=ssh"])
            .args(arguments)
            .current_dir(dir)
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "git {arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.work().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits everything; the commit's id.
    pub fn commit(&self) -> String {
        self.commit_with(&[])
    }

    pub fn commit_with(&self, more: &[&str]) -> String {
        self.git(&["add", "-A"]);
        self.git(&[&["commit", "-q", "--allow-empty", "-m", "a change"], more].concat());
        self.git(&["rev-parse", "HEAD"])
    }

    /// Commits and pushes to main.
    pub fn push(&self) -> String {
        let commit = self.commit();
        self.git(&["push", "-q", "--force", "origin", "HEAD:main"]);
        commit
    }

    /// Takes a branch away on the remote.
    pub fn delete_branch(&self, name: &str) {
        self.git_in(&self.bare(), &["update-ref", "-d", &format!("refs/heads/{name}")]);
    }

    /// Makes an SSH key that signs; its path.
    pub fn signer(&self, name: &str) -> PathBuf {
        let key = self.dir.path().join(name);
        let output = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"])
            .arg(&key)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        key
    }

    /// A file of allowed signers with these keys.
    pub fn allow(&self, keys: &[&Path]) -> PathBuf {
        let line = |key: &&Path| {
            let public = fs::read_to_string(key.with_extension("pub")).unwrap();
            format!("nobody@example.com namespaces=\"git\" {public}")
        };
        let path = self.dir.path().join("allowed_signers");
        fs::write(&path, keys.iter().map(line).collect::<String>()).unwrap();
        path
    }
}

/// The argument and setting with which git signs.
pub fn sign_with(key: &Path) -> String {
    format!("-S{}", key.display())
}
