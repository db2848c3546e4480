//! Says from which commit the program is built: `PROVIDERD_REVISION`, else what Git says, else nothing.
//!
//! Only builds for release ask Git: they are built again when the commit changes, and a debug build would be, too. What is set
//! here reaches tests as variables, so that none may begin with `PROVIDERD_`, which are settings.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=PROVIDERD_REVISION");
    let given = env::var("PROVIDERD_REVISION").ok().map(|text| text.trim().to_owned());
    let given = given.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()));
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let revision = given.or_else(|| if release { from_git() } else { None });
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let shown = match &revision {
        Some(revision) => format!("{version} ({revision})"),
        None => version,
    };
    println!("cargo:rustc-env=BUILT_REVISION={}", revision.as_deref().unwrap_or("unknown"));
    println!("cargo:rustc-env=BUILT_VERSION={shown}");
}

/// The commit, abbreviated; `+dirty` where tracked files differ from it. `None`: these are no files of a work tree.
fn from_git() -> Option<String> {
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    for name in ["HEAD", "index"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    Some(if dirty { format!("{commit}+dirty") } else { commit })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_owned())
}
