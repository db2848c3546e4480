//! Replacing a manifest's text on disk, whole or not at all.
//!
//! Not its job: what the text is. Invariant: nothing outside the manifest directory is written, a reader sees the old text
//! or the new one, and another writer's change that came in between is not overwritten.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

/// Files over this are refused by name when they are read.
const MAX_FILE: u64 = 1024 * 1024;

/// Why a manifest was not written. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} cannot be read", .0.display())]
    Read(PathBuf, #[source] io::Error),
    #[error("{} is over {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is not a regular file", .0.display())]
    NotAFile(PathBuf),
    #[error(
        "{} leads out of the manifest directory, to {}\nhint: change the file where it really lies",
        .from.display(), .to.display()
    )]
    Outside { from: PathBuf, to: PathBuf },
    #[error("{} was changed by another program meanwhile\nhint: run the command again", .0.display())]
    Changed(PathBuf),
    #[error(
        "{} cannot be written\nhint: is the directory a read-only checkout? then change it where it comes from",
        .0.display()
    )]
    Write(PathBuf, #[source] io::Error),
}

/// A manifest that may be replaced.
#[derive(Debug)]
pub struct Manifest {
    /// Where it really lies, inside the directory.
    path: PathBuf,
    text: String,
}

impl Manifest {
    /// Reads `relative` below `root`. Links are followed as far as they stay inside.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn open(root: &Path, relative: &str) -> Result<Self, FileError> {
        let from = root.join(relative);
        let read = |path: &Path, error| FileError::Read(path.to_owned(), error);
        let inside = fs::canonicalize(root).map_err(|error| read(root, error))?;
        let path = fs::canonicalize(&from).map_err(|error| read(&from, error))?;
        if !path.starts_with(&inside) {
            return Err(FileError::Outside { from, to: path });
        }
        let about = fs::metadata(&path).map_err(|error| read(&path, error))?;
        if !about.is_file() {
            return Err(FileError::NotAFile(path));
        }
        if about.len() > MAX_FILE {
            return Err(FileError::TooLarge(path));
        }
        let text = fs::read_to_string(&path).map_err(|error| read(&path, error))?;
        Ok(Self { path, text })
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Puts `text` in its place: written beside it under a name that no reader takes for a manifest, brought to disk,
    /// renamed over it, with the same permissions and, where the system lets us, the same owner.
    ///
    /// # Errors
    /// [`FileError`]
    pub fn replace(self, text: &str) -> Result<PathBuf, FileError> {
        let Self { path, text: old } = self;
        let failed = |error| FileError::Write(path.clone(), error);
        let missing = || failed(io::Error::other("it has no directory"));
        let directory = path.parent().ok_or_else(missing)?;
        let name = path.file_name().ok_or_else(missing)?.to_string_lossy().into_owned();
        let temporary = directory.join(format!(".{name}.{}.tmp", uuid::Uuid::new_v4().simple()));
        let written = write_beside(&path, &temporary, text).map_err(failed);
        let result = written.and_then(|()| {
            // As late as possible: an editor may have saved in between.
            let now = fs::read(&path).map_err(|error| FileError::Read(path.clone(), error))?;
            if now != old.as_bytes() {
                return Err(FileError::Changed(path.clone()));
            }
            fs::rename(&temporary, &path).map_err(failed)
        });
        if let Err(error) = result {
            // What is left behind is hidden, and not taken for a manifest.
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        // The new text is there; only a crash of the machine within the next seconds could still undo it.
        if let Ok(directory) = File::open(directory) {
            let _ = directory.sync_all();
        }
        Ok(path)
    }
}

fn write_beside(path: &Path, temporary: &Path, text: &str) -> io::Result<()> {
    let about = fs::metadata(path)?;
    // No other user may read it before it has the permissions of the old one.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    file.write_all(text.as_bytes())?;
    let made = file.metadata()?;
    if (made.uid(), made.gid()) != (about.uid(), about.gid()) {
        // Only root may give files away; another's file is replaced by one of ours.
        let _ = fchown(&file, Some(about.uid()), Some(about.gid()));
    }
    file.set_permissions(fs::Permissions::from_mode(about.permissions().mode() & 0o7777))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_with_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("a.toml", dir.path().join("link.toml")).unwrap();
        let manifest = Manifest::open(dir.path(), "link.toml").unwrap();
        assert_eq!(manifest.text(), "old");
        manifest.replace("new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o640);
        // The link still is one, and nothing else is left.
        assert!(fs::symlink_metadata(dir.path().join("link.toml")).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn nothing_outside_and_nobody_elses_change_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("providers.d");
        fs::create_dir(&root).unwrap();
        fs::write(dir.path().join("secret.toml"), "outside").unwrap();
        std::os::unix::fs::symlink("../secret.toml", root.join("a.toml")).unwrap();
        assert!(matches!(Manifest::open(&root, "a.toml"), Err(FileError::Outside { .. })));
        assert!(matches!(Manifest::open(&root, "../secret.toml"), Err(FileError::Outside { .. })));
        fs::create_dir(root.join("d.toml")).unwrap();
        assert!(matches!(Manifest::open(&root, "d.toml"), Err(FileError::NotAFile(_))));
        assert!(matches!(Manifest::open(&root, "none.toml"), Err(FileError::Read(..))));

        fs::write(root.join("b.toml"), "old").unwrap();
        let manifest = Manifest::open(&root, "b.toml").unwrap();
        fs::write(root.join("b.toml"), "theirs").unwrap();
        assert!(matches!(manifest.replace("ours"), Err(FileError::Changed(_))));
        assert_eq!(fs::read_to_string(root.join("b.toml")).unwrap(), "theirs");
        assert_eq!(fs::read_dir(&root).unwrap().count(), 3, "no temporary file is left");
    }
}
