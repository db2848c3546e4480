//! From a commit to files: what it holds is counted first, then written beside what runs.
//!
//! Not its job: judging manifests. Invariants: nothing that the repository configures changes a byte on the way (no
//! filter, no line endings, no submodule); a tree that is too large, or holds no manifest, is never written.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _, path::Path};

use super::{
    PullError, PullOptions, blocking,
    command::{CommandLimits, Git},
    place::{self, MirrorPlace},
};
use crate::source::names;

/// A list of a hundred thousand long names.
const MAX_LIST: usize = 32 * 1024 * 1024;
/// Twice as many as there may be manifests.
const MAX_ENTRIES: usize = 200_000;
/// Stronger than any `.gitattributes` of the tree.
const ATTRIBUTES: &str = "* -text -eol -ident -filter -working-tree-encoding -export-subst\n";

/// Writes the files of `commit` below the path of the options to their checkout, unless it is there.
///
/// # Errors
/// [`PullError::NoPath`], [`PullError::NoManifest`], [`PullError::TooLarge`] and those of git and the disk.
pub async fn check_out(
    git: &Git,
    options: &PullOptions,
    place: &MirrorPlace,
    commit: &str,
) -> Result<(), PullError> {
    if place.checkout(commit).is_dir() {
        return Ok(());
    }
    let tree = tree_of(git, options, commit).await?;
    let limits = CommandLimits { output: MAX_LIST, ..CommandLimits::default() };
    let list = git.run(&["ls-tree", "-r", "-l", "-z", "--full-tree", &tree], limits).await?;
    let contents = count(&list.stdout);
    drop(list);
    if contents.bytes > options.max_bytes || contents.entries > MAX_ENTRIES {
        return Err(PullError::TooLarge { what: "the directory of manifests", limit: options.max_bytes });
    }
    if !contents.has_manifest {
        return Err(PullError::NoManifest { commit: commit.to_owned(), path: options.path.clone() });
    }
    let temporary = place.temporary();
    let written = write(git, place, &temporary, &tree, commit).await;
    let cleared = blocking(move || place::remove(&temporary)).await;
    written.and(cleared)
}

async fn tree_of(git: &Git, options: &PullOptions, commit: &str) -> Result<String, PullError> {
    let inside: Vec<_> = options
        .path
        .components()
        .filter_map(|part| match part {
            std::path::Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let name = match inside.as_slice() {
        [] => format!("{commit}^{{tree}}"),
        parts => format!("{commit}:{}", parts.join("/")),
    };
    let missing = || PullError::NoPath { commit: commit.to_owned(), path: options.path.clone() };
    let arguments = ["rev-parse", "--verify", "--quiet", &name];
    let answer = git.ask(&arguments, &[], CommandLimits::default()).await?;
    if !answer.is_success() {
        return Err(missing());
    }
    let tree = answer.line();
    let kind = git.run(&["cat-file", "-t", &tree], CommandLimits::default()).await?;
    // A symlink to a directory is not followed: it would lead out of what was asked for.
    if kind.line() == "tree" { Ok(tree) } else { Err(missing()) }
}

async fn write(
    git: &Git,
    place: &MirrorPlace,
    temporary: &Path,
    tree: &str,
    commit: &str,
) -> Result<(), PullError> {
    let files = temporary.join("tree");
    let (made, info) = (files.clone(), place.mirror().join("info"));
    blocking(move || {
        std::fs::create_dir_all(&made).map_err(PullError::io(&made))?;
        std::fs::create_dir_all(&info).map_err(PullError::io(&info))?;
        let attributes = info.join("attributes");
        std::fs::write(&attributes, ATTRIBUTES).map_err(PullError::io(&attributes))
    })
    .await?;
    let index = temporary.join("index");
    let more = [("GIT_INDEX_FILE", index.as_os_str()), ("GIT_WORK_TREE", files.as_os_str())];
    for arguments in [&["read-tree", tree][..], &["checkout-index", "--all", "--force", "--quiet"][..]] {
        let answer = git.ask(arguments, &more, CommandLimits::default()).await?;
        git.succeed(arguments, answer)?;
    }
    let (place, commit) = (place.clone(), commit.to_owned());
    blocking(move || place.keep(&files, &commit)).await
}

/// What a tree holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Contents {
    entries: usize,
    bytes: u64,
    has_manifest: bool,
}

/// Reads `mode type id size<TAB>path`, each ended by NUL; a submodule has `-` for its size and holds nothing.
fn count(list: &[u8]) -> Contents {
    let mut contents = Contents::default();
    for entry in list.split(|byte| *byte == 0).filter(|entry| !entry.is_empty()) {
        contents.entries += 1;
        let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
        let (about, path) = (entry.get(..tab).unwrap_or_default(), entry.get(tab + 1..).unwrap_or_default());
        let size = about.rsplit(|byte| *byte == b' ').next().and_then(|it| std::str::from_utf8(it).ok());
        let size: Option<u64> = size.and_then(|it| it.parse().ok());
        contents.bytes = contents.bytes.saturating_add(size.unwrap_or(0));
        let path = Path::new(OsStr::from_bytes(path));
        let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
        contents.has_manifest |= size.is_some() && names::is_manifest(name) && names::is_visible(path);
    }
    contents
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_before_it_is_written() {
        let check = |list: &str, entries, bytes, has_manifest| {
            let list = list.replace('|', "\0");
            assert_eq!(count(list.as_bytes()), Contents { entries, bytes, has_manifest }, "{list:?}");
        };
        check("", 0, 0, false);
        check("100644 blob 0123      12\ta.toml|100644 blob 0123 30\tREADME|", 2, 42, true);
        check("100644 blob 0123 12\t.hidden/a.toml|", 1, 12, false);
        check("160000 commit 0123       -\tmodule.toml|", 1, 0, false);
        check("100644 blob 0123 18446744073709551615\ta|100644 blob 0123 5\tb|", 2, u64::MAX, false);
        check("nonsense|", 1, 0, false);
        check("120000 blob 0123 9\twith\ttab/x.toml|", 1, 9, true);
    }
}
