//! The words of `docs/STYLE.md`: habits that comments, messages and documents do without.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words that say who does something without saying who, or that have a plainer one.
const WORDS: [&str; 18] = [
    "nobody",
    "somebody",
    "anybody",
    "everybody",
    "whoever",
    "whom",
    "anew",
    "told",
    "tell",
    "tells",
    "mend",
    "mends",
    "mended",
    // A program is *it*.
    "he",
    "him",
    "his",
    "she",
    "hers",
];

/// The same, of several words.
const PHRASES: [&str; 5] = ["a person", "be had", "url is none", "that is none", "or is none"];

/// Where a word stands for something else: the file, the word, why.
const ALLOWED: [(&str, &str, &str); 4] = [
    ("src/embedded/error.rs", "nobody", "the name of a system user"),
    ("src/embedded/place.rs", "nobody", "the name of a system user"),
    ("crates/gateway/src/tap/tests.rs", "he", "the begin of a streamed word"),
    ("docs/STYLE.md", "", "lists the words that are not used"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below `dir` that end in `.ending`, as paths from the root.
fn files(dir: &str, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|it| it == ending) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// What people read in a Rust source: its comments and its texts, with everything else blanked. Lines stay where they
/// are.
fn read_by_people(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let glued = std::mem::replace(&mut before, first).is_alphanumeric();
        if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            out += &rest[..end];
            rest = &rest[end..];
        } else if let Some(raw) = rest.strip_prefix('r').filter(|raw| !glued && is_raw_text(raw)) {
            let hashes = raw.len() - raw.trim_start_matches('#').len();
            let close = format!("\"{}", "#".repeat(hashes));
            let text = &raw[hashes + 1..];
            let end = text.find(&close).map_or(text.len(), |end| end + close.len());
            out += &text[..end].replace('"', " ");
            rest = &text[end..];
        } else if first == '"' {
            let text = &rest[1..];
            let mut end = text.len();
            let mut escaped = false;
            for (at, c) in text.char_indices() {
                match c {
                    _ if escaped => escaped = false,
                    '\\' => escaped = true,
                    '"' => {
                        end = at;
                        break;
                    }
                    _ => {}
                }
            }
            out.push(' ');
            // An escape would glue itself to the word after it.
            out += &text[..end].replace("\\n", "  ").replace("\\t", "  ");
            out.push(' ');
            rest = text.get(end + 1..).unwrap_or_default();
        } else if let Some(after) = ["'\"'", "'\\\"'", "b'\"'"].iter().find_map(|it| rest.strip_prefix(it)) {
            out.push(' ');
            rest = after;
        } else {
            // Keeps lines apart, and words.
            out.push(if first == '\n' { '\n' } else { ' ' });
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

/// Whether what follows an `r` makes it the begin of a raw text.
fn is_raw_text(after: &str) -> bool {
    after.starts_with(['#', '"']) && after.trim_start_matches('#').starts_with('"')
}

/// Which of the words a line holds.
fn habits(line: &str) -> Vec<&'static str> {
    let lower = line.to_lowercase();
    let words: Vec<&str> =
        lower.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|it| !it.is_empty()).collect();
    let mut found: Vec<&'static str> = WORDS.into_iter().filter(|word| words.contains(word)).collect();
    let plain = format!(" {} ", words.join(" "));
    found.extend(PHRASES.into_iter().filter(|phrase| plain.contains(&format!(" {phrase} "))));
    found
}

#[test]
fn comments_messages_and_documents_use_plain_words() {
    let mut sources = files("src", "rs");
    for name in ["provider", "catalog", "net", "gateway"] {
        sources.extend(files(&format!("crates/{name}/src"), "rs"));
    }
    let mut texts: Vec<(String, String)> = Vec::new();
    for path in sources {
        let source = fs::read_to_string(root().join(&path)).unwrap();
        texts.push((path, read_by_people(&source)));
    }
    let mut documents = files("docs", "md");
    documents.extend(["README.md", "CHANGELOG.md"].map(str::to_owned));
    for path in documents {
        let text = fs::read_to_string(root().join(&path)).unwrap();
        texts.push((path, text));
    }
    let mut found = Vec::new();
    let mut used = [false; ALLOWED.len()];
    for (path, text) in &texts {
        for (at, line) in text.lines().enumerate() {
            for word in habits(line) {
                let allowed = ALLOWED
                    .iter()
                    .position(|(file, only, _)| file == path && (only.is_empty() || *only == word));
                match allowed {
                    Some(at) => used[at] = true,
                    None => found.push(format!("{path}:{}: `{word}`: {}", at + 1, line.trim())),
                }
            }
        }
    }
    assert!(found.is_empty(), "docs/STYLE.md has a plainer word:\n{}", found.join("\n"));
    for ((file, word, why), used) in ALLOWED.iter().zip(used) {
        assert!(used, "{file} no longer needs `{word}` ({why}): take it off the list");
    }
}

#[test]
fn the_words_are_found_where_people_read() {
    let source = "fn tell() {\n    // Nobody knows.\n    let he = 'x'; say(\"is told \\\n        anew\\nmend\");\n    \
                  let text = r#\"whoever \"says\" so\"#; // a\n    let quote = '\"'; let his = 1;\n}\n";
    let read = read_by_people(source);
    let found: Vec<Vec<&str>> = read.lines().map(habits).collect();
    let none: [&str; 0] = [];
    assert_eq!(found[0], none, "{read}");
    assert_eq!(found[1], ["nobody"]);
    assert_eq!(found[2], ["told"]);
    assert_eq!(found[3], ["anew", "mend"]);
    assert_eq!(found[4], ["whoever"]);
    assert_eq!(found[5], none, "{read}");
    assert_eq!(habits("It cannot be had by a person."), ["a person", "be had"]);
    assert_eq!(habits("`retell` and a personal mention"), none);
}
