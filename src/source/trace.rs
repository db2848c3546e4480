//! Which names a path depends on: replace one of them and the path leads elsewhere.

use std::{
    ffi::OsString,
    io::ErrorKind,
    path::{Component, Path, PathBuf},
};

/// As many symlinks as Linux itself follows in one path.
const MAX_LINKS: usize = 40;

/// How an absolute path resolves right now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Every symlink on the way, and the final name, or the first one that does not exist. Absolute; their
    /// parents hold no symlinks.
    pub names: Vec<PathBuf>,
    /// The real directories passed through, without `/`.
    pub dirs: Vec<PathBuf>,
}

/// Follows an absolute path name by name.
pub fn trace(path: &Path) -> Trace {
    let mut trace = Trace::default();
    let mut todo: Vec<OsString> = Vec::new();
    let push = |todo: &mut Vec<OsString>, path: &Path| {
        todo.extend(path.components().rev().map(|part| part.as_os_str().to_owned()));
    };
    push(&mut todo, path);
    let mut done = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) => {
                done.pop();
                continue;
            }
            Some(Component::RootDir) => {
                done = PathBuf::from("/");
                continue;
            }
            _ => continue,
        }
        done.push(&part);
        match std::fs::read_link(&done) {
            Ok(target) => {
                trace.names.push(done.clone());
                links += 1;
                if links > MAX_LINKS {
                    return trace;
                }
                done.pop();
                push(&mut todo, &target);
            }
            // Not a symlink.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                if !todo.is_empty() {
                    trace.dirs.push(done.clone());
                }
            }
            Err(_) => {
                trace.names.push(done);
                return trace;
            }
        }
    }
    trace.names.push(done);
    trace
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_replaceable_name_is_listed() -> std::io::Result<()> {
        let dir = tempfile::tempdir()?;
        let base = dir.path().canonicalize()?;
        std::fs::create_dir_all(base.join("v1/sub"))?;
        symlink("v1", base.join("current"))?;
        symlink(base.join("current"), base.join("alias"))?;
        symlink("loop", base.join("loop"))?;
        let check = |path: &str, expected: &[&str]| {
            let expected: Vec<PathBuf> = expected.iter().map(|name| base.join(name)).collect();
            assert_eq!(trace(&base.join(path)).names, expected, "{path}");
        };
        check("v1/sub", &["v1/sub"]);
        check("current/sub", &["current", "v1/sub"]);
        check("alias/sub", &["alias", "current", "v1/sub"]);
        check("v1/../current", &["current", "v1"]);
        check("missing/below", &["missing"]);
        assert_eq!(trace(&base.join("loop")).names.len(), MAX_LINKS + 1);
        assert!(trace(&base.join("current/sub")).dirs.contains(&base.join("v1")));
        Ok(())
    }
}
