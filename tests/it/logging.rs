//! What a real process writes to standard error: form, fields, and what it leaves out.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt as _,
    process::{Command, Stdio},
};

use providerd::{
    config::Settings,
    process::{lifecycle::install_panic_hook, logging},
};

/// Marks the child; its value is `log.format`.
const FORMAT: &str = "LOGGING_TEST_FORMAT";

/// Obviously fake.
const SECRET: &str = "sk-not-a-real-key";

/// Not a test of its own: the process whose standard error the tests below read.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    let Ok(format) = std::env::var(FORMAT) else { return };
    let env = [("PROVIDERD_LOG__FORMAT".to_owned(), format)];
    logging::init(&Settings::load(None, env.into_iter()).unwrap().log).unwrap();
    install_panic_hook();
    tracing::info!(provider = "ollama-cloud", duration_ms = 12, "applied");
    tracing::debug!("fine detail");
    tracing::error!(target: "hyper::proto", "library error");
    tracing::trace!(target: "hyper::proto", header = SECRET, "library bytes");
    let panicked = std::thread::Builder::new()
        .name("worker".into())
        .spawn(|| panic!("cannot use {}", std::hint::black_box(SECRET)))
        .unwrap()
        .join();
    assert!(panicked.is_err());
}

/// The child's standard error, which is a file.
fn stderr_of(format: &str, rust_log: &str, journal: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stderr");
    let file = File::create(&path).unwrap();
    let meta = file.metadata().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "logging::child", "--ignored", "--nocapture"])
        .env(FORMAT, format)
        .env("RUST_LOG", rust_log)
        .env_remove("JOURNAL_STREAM")
        .stdout(Stdio::null())
        .stderr(file);
    if journal {
        command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
    }
    assert!(command.status().unwrap().success());
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains(SECRET), "{text}");
    assert!(!text.contains('\u{1b}'), "colours in a file: {text}");
    text
}

#[test]
fn a_file_gets_json_with_fields() {
    let text = stderr_of("auto", "", false);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let applied = &lines[0];
    assert_eq!(applied["message"], "applied");
    assert_eq!(applied["level"], "INFO");
    assert_eq!(applied["provider"], "ollama-cloud");
    assert_eq!(applied["duration_ms"], 12);
    assert!(applied["timestamp"].is_string());
    let panic = lines.iter().find(|line| line["thread"] == "worker").unwrap();
    assert!(panic["location"].as_str().unwrap().contains("logging.rs"));
    assert!(!text.contains("fine detail"), "info does not show debug: {text}");
}

#[test]
fn the_journal_gets_priorities() {
    let text = stderr_of("auto", "", true);
    assert!(text.lines().all(|line| line.starts_with("<3>") || line.starts_with("<6>")), "{text}");
    assert!(text.starts_with("<6>"), "{text}");
    assert!(text.contains("provider=\"ollama-cloud\""), "{text}");
}

#[test]
fn no_filter_makes_libraries_show_headers() {
    let text = stderr_of("human", "trace", false);
    assert!(text.contains("fine detail"), "{text}");
    assert!(text.contains("library error"), "{text}");
    assert!(!text.contains("library bytes"), "{text}");
}
