//! What is missing for pulling to work, each with its remedy: for `doctor`.
//!
//! Not its job: asking the remote. Invariant: nothing is written, and no secret is shown.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Command, Stdio},
};

use super::{PullOptions, PullReport};
use crate::config::GitTransport;

/// One thing that is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct PullFinding {
    pub subject: String,
    pub message: String,
    pub hint: &'static str,
}

/// Everything that can be seen to be wrong from here.
pub fn examine(options: &PullOptions) -> Vec<PullFinding> {
    let mut found = Vec::new();
    let mut find = |subject: &str, message: String, hint| {
        found.push(PullFinding { subject: subject.to_owned(), message, hint });
    };
    let mut programs = vec![("git", "--version", "install git")];
    if options.transport == GitTransport::Ssh {
        programs.push(("ssh", "-V", "install openssh-client"));
    }
    if options.allowed_signers.is_some() {
        // It has no option that only prints something; a wrong one ends it.
        programs.push(("ssh-keygen", "-?", "install openssh-client"));
    }
    for (program, argument, hint) in programs {
        let mut command = Command::new(program);
        command.arg(argument).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Err(error) = command.status() {
            find(program, format!("{program} cannot be run: {error}"), hint);
        }
    }
    let files = [
        ("source.git.ssh_key", &options.ssh_key, true),
        ("source.git.token", &options.token, true),
        ("source.git.known_hosts", &options.known_hosts, false),
        ("source.git.allowed_signers", &options.allowed_signers, false),
    ];
    for (setting, path, is_secret) in files {
        let Some(path) = path else { continue };
        match fs::metadata(path).and_then(|meta| fs::File::open(path).map(|_| meta)) {
            Err(error) => find(
                setting,
                format!("{} cannot be read: {error}", path.display()),
                "the user that runs providerd must be able to read it",
            ),
            Ok(meta) if is_secret && is_open(&meta) => find(
                setting,
                format!("{} can be read by others (mode {:04o})", path.display(), meta.mode() & 0o7777),
                "chmod 0600",
            ),
            Ok(_) => {}
        }
    }
    if options.transport == GitTransport::Ssh
        && options.known_hosts.is_none()
        && !Path::new("/etc/ssh/ssh_known_hosts").exists()
    {
        find(
            "source.git.known_hosts",
            "no host key is known, so that no host is believed".to_owned(),
            "write the host's key into a file (ssh-keyscan, then compare it) and name it",
        );
    }
    if let Some(problem) = PullReport::read(options).and_then(|report| report.problem()) {
        find("source.git", problem, "the daemon goes on trying; what runs stays as it is");
    }
    found
}

fn is_open(meta: &fs::Metadata) -> bool {
    meta.mode() & 0o007 != 0
}
