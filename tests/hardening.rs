//! What a process does for itself before it reads the first secret. It cannot be undone and needs a process
//! of one thread: there is no test harness here, and the binary starts itself again.

use std::{fs, process::Command};

use nix::sys::{
    prctl,
    resource::{Resource, getrlimit},
};

use providerd::process::{harden_process, take_env};

const NAME: &str = "HARDENING_TEST_SECRET";
const VALUE: &str = "not-a-real-secret-4711";

fn environment_as_seen_from_outside() -> String {
    // As root only, once the process is closed; before that for every process of the same user.
    String::from_utf8_lossy(&fs::read("/proc/self/environ").unwrap()).into_owned()
}

/// Runs in a process of its own, with one thread.
fn child() {
    assert!(environment_as_seen_from_outside().contains(VALUE), "or the test shows nothing");
    assert_eq!(take_env(NAME).unwrap().as_str(), VALUE);
    assert!(take_env(NAME).is_none());
    assert!(!environment_as_seen_from_outside().contains(VALUE));

    // Beside another thread a value is returned and the environment left alone.
    std::thread::scope(|scope| {
        let (end, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || wait.recv());
        assert!(take_env("PATH").is_some() && take_env("PATH").is_some());
        drop(end);
    });

    harden_process().unwrap();
    assert!(!prctl::get_dumpable().unwrap());
    assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
}

fn main() {
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "--list") {
        // As test runners ask for it.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("a_process_closes_itself: test");
        }
        return;
    }
    if std::env::var_os(NAME).is_some() {
        return child();
    }
    let status = Command::new("/proc/self/exe").env(NAME, VALUE).status().unwrap();
    assert!(status.success(), "{status}");
}
