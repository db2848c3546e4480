//! What is refused as a manifest is refused by every command, and never read for the sake of an excerpt.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::support::lab::{Lab, provider};

/// A command that reads on is ended after so long; none of these takes a second.
const LIMIT: Duration = Duration::from_secs(30);

/// Exit code and everything printed.
fn run(lab: &Lab, args: &[&str]) -> (Option<i32>, String) {
    let printed = lab.dir.path().join("printed");
    let file = fs::File::create(&printed).unwrap();
    let mut command = lab.command(args);
    command.stdout(file.try_clone().unwrap()).stderr(file).stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if started.elapsed() > LIMIT {
            child.kill().unwrap();
            child.wait().unwrap();
            break None;
        }
        std::thread::yield_now();
    };
    let mut text = String::new();
    // What it printed may have no end.
    fs::File::open(printed).unwrap().take(1 << 20).read_to_string(&mut text).unwrap();
    (code, text)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_request_cannot_hang_a_command() {
    let lab = Lab::new().await;
    lab.write("good.toml", &provider("good", 1));
    lab.run(&["apply"]).expect(0);
    nix::unistd::mkfifo(&lab.manifests().join("fifo.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    symlink("/dev/zero", lab.manifests().join("zero.toml")).unwrap();
    // Sparse: it holds nothing, and reading it takes gigabytes.
    fs::File::create(lab.manifests().join("huge.toml")).unwrap().set_len(3 << 30).unwrap();
    symlink(lab.dir.path().join("outside.toml"), lab.manifests().join("link.toml")).unwrap();
    fs::write(lab.dir.path().join("outside.toml"), "SECRET of the machine = 1").unwrap();
    let manifests = lab.manifests();
    let commands: [(&[&str], i32); 6] = [
        (&["validate"], 2),
        (&["validate", manifests.to_str().unwrap()], 2),
        (&["plan"], 2),
        (&["apply"], 2),
        (&["routes"], 2),
        (&["routes", "--diff", manifests.to_str().unwrap()], 2),
    ];
    for (args, expected) in commands {
        let (code, text) = run(&lab, args);
        assert_eq!(code, Some(expected), "{args:?}: {text}");
        for name in ["fifo.toml", "zero.toml", "huge.toml", "link.toml"] {
            assert!(text.contains(name), "{args:?} does not name {name}: {text}");
        }
        assert!(!text.contains("SECRET"), "{args:?}: {text}");
    }
}

#[test]
fn what_cannot_be_looked_into_hides_no_other_problem() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("bad.toml"), "typo = 1\n").unwrap();
    let deep = dir.path().join("d/".repeat(70));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("a.toml"), "typo = 1\n").unwrap();
    let check = |format: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_providerd"))
            .args(["validate", "--output", format, dir.path().to_str().unwrap()])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        assert!(stdout.contains("bad.toml") && stdout.contains("typo"), "{format}: {stdout}");
        assert!(stderr.contains("directories deep"), "{format}: {stderr}");
    };
    ["table", "json", "github"].into_iter().for_each(check);
}
