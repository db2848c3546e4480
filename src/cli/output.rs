//! How results and failures reach a terminal or a program.

use std::{io::Write, process::ExitCode};

use serde::Serialize;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done, and things are as desired.
    Done = 0,
    /// Could not be done.
    Failed = 1,
    /// Done, but things are not as desired.
    NotAsDesired = 2,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// `Done` if `as_desired`.
    pub const fn when(as_desired: bool) -> Self {
        if as_desired { Self::Done } else { Self::NotAsDesired }
    }
}

/// Prints a value as JSON on standard output.
pub fn json(value: &impl Serialize) -> anyhow::Result<Exit> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    Ok(Exit::Done)
}

/// Prints text on standard output; a reader that went away (`| head`) is no failure.
pub fn text(text: &str) -> anyhow::Result<Exit> {
    match anstream::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Done),
    }
}

/// A table without lines, as `kubectl` prints them: it survives `grep` and `awk`.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

/// The chain of an error, once, on standard error.
pub fn print_error(error: &anyhow::Error) {
    let mut err = anstream::stderr().lock();
    // Nowhere is left to report a failure to print.
    let _ = writeln!(err, "error: {error}");
    for cause in error.chain().skip(1) {
        let _ = writeln!(err, "  caused by: {cause}");
    }
}
