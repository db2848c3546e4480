//! How results and failures reach a terminal or a program.

use std::{io::Write, process::ExitCode};

use serde::Serialize;

use provider::shown;

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
    let written = serde_json::to_string_pretty(value)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", shown::json(&written))?;
    Ok(Exit::Done)
}

/// Prints a value as one line of JSON on standard output, as [`text`] does.
pub fn json_line(value: &impl Serialize) -> anyhow::Result<Exit> {
    let written = serde_json::to_string(value)?;
    print(&format!("{}\n", shown::json(&written)))
}

/// Prints text on standard output, whatever is in it; a reader that went away (`| head`) is no failure. Text of others
/// that is to stay in its line goes through [`shown::one_line`] before.
pub fn text(text: &str) -> anyhow::Result<Exit> {
    print(&shown::lines(text))
}

/// As [`text`], for one line; the line break is added.
pub fn line(text: &str) -> anyhow::Result<Exit> {
    print(&format!("{}\n", shown::one_line(text)))
}

/// As [`text`], for what was coloured here after its parts went through [`shown::one_line`].
pub fn coloured(text: &str) -> anyhow::Result<Exit> {
    print(&shown::coloured(text))
}

/// Adds to a text what is one line of it, or the beginning of one; other programs' words may be in it.
pub fn say(text: &mut String, words: &str) {
    let (words, end) = words.strip_suffix('\n').map_or((words, ""), |words| (words, "\n"));
    text.push_str(&shown::one_line(&words.replace("\nhint: ", "; hint: ")));
    text.push_str(end);
}

fn print(text: &str) -> anyhow::Result<Exit> {
    match anstream::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Done),
    }
}

/// Replaces what stands on the terminal.
pub fn screen(text: &str) -> anyhow::Result<Exit> {
    // Home, text line by line with the rest of each line cleared, then everything below: it does not flicker.
    let lines: String = shown::coloured(text).lines().map(|line| format!("{line}\x1b[K\n")).collect();
    print(&format!("\x1b[H{lines}\x1b[J"))
}

/// Rows and columns of the terminal, or what the smallest ones have.
pub fn terminal() -> (usize, usize) {
    terminal_size::terminal_size()
        .map_or((24, 80), |(width, height)| (usize::from(height.0), usize::from(width.0)))
}

/// Words of state in their colours, where they stand alone in a column. What is printed through [`coloured`] loses
/// them again where colours are not shown.
pub fn paint(text: &str) -> String {
    const WORDS: [(&str, &str); 14] = [
        ("healthy", "32"),
        ("valid", "32"),
        ("synced", "32"),
        ("degraded", "33"),
        ("pending", "33"),
        ("error", "33"),
        ("drifted", "33"),
        ("held", "33"),
        ("frozen", "33"),
        ("suspended", "33"),
        ("unhealthy", "31"),
        ("failed", "31"),
        ("missing", "31"),
        ("unknown", "2"),
    ];
    let mut painted = String::with_capacity(text.len() * 2);
    for line in text.split_inclusive('\n') {
        // Only columns are painted: two spaces in front, and a space or the end behind.
        let mut rest = line;
        while let Some(at) = rest.find("  ") {
            let (before, from) = rest.split_at(at);
            let gap = from.len() - from.trim_start_matches(' ').len();
            painted += before;
            painted += &from[..gap];
            rest = &from[gap..];
            let word = rest.split([' ', '\n']).next().unwrap_or_default();
            if let Some((_, colour)) = WORDS.iter().find(|(known, _)| *known == word) {
                painted += &format!("\x1b[{colour}m{word}\x1b[0m");
                rest = &rest[word.len()..];
            }
        }
        painted += rest;
    }
    painted
}

/// A table without lines, as `kubectl` prints them: it survives `grep` and `awk`.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_preset(comfy_table::presets::NOTHING).set_header(header.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| shown::one_line(cell)));
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
    let _ = writeln!(err, "error: {}", indented(&error.to_string()));
    for cause in error.chain().skip(1) {
        let _ = writeln!(err, "  caused by: {}", indented(&cause.to_string()));
    }
}

/// A message of one or more lines. But for a hint, those after the first stand apart from what begins a line of ours.
fn indented(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, line) in shown::lines(text).split('\n').enumerate() {
        let is_apart =
            at == 0 || line.is_empty() || line.starts_with([' ', '\t']) || line.starts_with("hint:");
        out.push_str(if at == 0 { "" } else { "\n" });
        out.push_str(if is_apart { "" } else { "  " });
        out.push_str(line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_quotes_begins_no_line() {
        let check = |text: &str, expected: &str| assert_eq!(indented(text), expected);
        check("it is so\nhint: do this", "it is so\nhint: do this");
        check("a `x\nerror: y\x1b` b\n  c", "a `x\n  error: y\\x1b` b\n  c");
    }

    #[test]
    fn only_columns_are_painted() {
        let check = |text: &str, expected: &str| assert_eq!(paint(text), expected);
        check("healthy  openai  healthy\n", "healthy  openai  \x1b[32mhealthy\x1b[0m\n");
        check("a  unhealthy  x\n! a: unhealthy\n", "a  \x1b[31munhealthy\x1b[0m  x\n! a: unhealthy\n");
        check("héé  –  valid", "héé  –  \x1b[32mvalid\x1b[0m");
    }
}
