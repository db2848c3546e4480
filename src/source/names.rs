//! Which names in the directory count.
//!
//! PURE. Hidden names (editor and rsync temporaries, `.git`, Kubernetes' `..data`) are never looked at by
//! themselves; a visible symlink may lead to them.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
};

/// A file of this name is a manifest: `*.toml`, not hidden. Backups (`x.toml~`, `#x.toml#`, `x.toml.swp`,
/// `4913`, `x.toml.orig`) all fail the suffix.
pub fn is_manifest(name: &[u8]) -> bool {
    !is_hidden(name) && name.len() > b".toml".len() && name.ends_with(b".toml")
}

/// Never walked: hidden names, and the directory that every ext4 volume has and only root can read.
pub fn is_hidden(name: &[u8]) -> bool {
    name.first() == Some(&b'.') || name == b"lost+found"
}

/// The path has only plain, visible parts and at least one of them.
pub fn is_visible(relative: &Path) -> bool {
    let mut any = false;
    relative.components().all(|part| {
        any = true;
        matches!(part, Component::Normal(name) if !is_hidden(name.as_bytes()))
    }) && any
}

/// A name that can be shown and stored, with every byte that is not UTF-8 as `\xNN`.
pub fn printable(name: &OsStr) -> String {
    let mut text = String::with_capacity(name.len());
    for chunk in name.as_bytes().utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_visible_toml_files_are_manifests() {
        let check = |name: &str, expected: bool| {
            assert_eq!(is_manifest(name.as_bytes()), expected, "{name}");
        };
        for name in ["a.toml", "a.b.toml", "a b.toml", "ä.toml", "_defaults.toml"] {
            check(name, true);
        }
        for name in [
            ".toml",
            ".a.toml",
            "..a.toml",
            ".#a.toml",
            "#a.toml#",
            "a.toml~",
            "a.toml.swp",
            ".a.toml.swp",
            "4913",
            "a.toml.orig",
            "a.TOML",
            "toml",
            "",
            ".a.toml.Xy12Zz",
        ] {
            check(name, false);
        }
    }

    #[test]
    fn a_path_is_visible_when_all_its_parts_are() {
        let check = |path: &str, expected: bool| {
            assert_eq!(is_visible(Path::new(path)), expected, "{path}");
        };
        check("a/b.toml", true);
        check("a/.git/b.toml", false);
        check("..data/b.toml", false);
        check("../b.toml", false);
        check("/a.toml", false);
        check("", false);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_shown_escaped() {
        assert_eq!(printable(OsStr::from_bytes(b"a\xff\xe4b.toml")), "a\\xff\\xe4b.toml");
    }
}
