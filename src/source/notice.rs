//! Single files outside the manifest directory whose change an operator should hear of.
//!
//! A few files that change once a month: one plain watcher serves them, and what it reports of files being
//! opened is dropped. The manifests have a watcher of their own (`watches`), because reading ten thousand of them
//! must not fill the queue of the one who reads.

use std::path::Path;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Calls `changed` whenever the file is written, replaced or removed, as long as the result is kept.
///
/// Watched is its directory: editors replace files, and a watch on the file itself would stay with the old one.
///
/// # Errors
/// The kernel grants no watch, or the directory does not exist.
pub fn watch_file(path: &Path, changed: impl Fn() + Send + 'static) -> notify::Result<RecommendedWatcher> {
    let path = std::path::absolute(path).map_err(notify::Error::io)?;
    let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        let concerns = match event {
            Ok(event) => {
                // An overflow comes without a path and may have swallowed ours.
                event.need_rescan()
                    || (!matches!(event.kind, EventKind::Access(_)) && event.paths.contains(&path))
            }
            Err(_) => true,
        };
        if concerns {
            changed();
        }
    })?;
    watcher.watch(&directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
