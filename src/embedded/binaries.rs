//! Finds PostgreSQL's programs on this machine.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use super::EmbeddedError;

/// The oldest PostgreSQL that the shared tables are promised to work on.
const MINIMUM: u32 = 14;

/// Where distributions put one directory per major version (Debian; Red Hat and its kin; source builds).
const ROOTS: &[(&str, &str)] = &[("/usr/lib/postgresql", "bin"), ("/usr", "bin"), ("/usr/local", "bin")];

/// A directory that holds `initdb` and `postgres` of one major version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    pub dir: PathBuf,
    pub major: u32,
}

impl Binaries {
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The programs to use: of the data directory's own version if there is one, else the newest. A version's
/// own directory goes before `PATH`.
pub fn choose(data: Option<(&Path, u32)>) -> Result<Binaries, EmbeddedError> {
    let (found, searched) = installed();
    select(found, data, &searched)
}

fn select(
    mut found: Vec<Binaries>,
    data: Option<(&Path, u32)>,
    searched: &str,
) -> Result<Binaries, EmbeddedError> {
    // Stable: among equal versions the first found stays first.
    found.sort_by_key(|binaries| std::cmp::Reverse(binaries.major));
    let Some(newest) = found.first() else {
        return Err(EmbeddedError::NoBinaries { searched: searched.to_owned() });
    };
    if let Some((data_dir, major)) = data {
        let same = found.iter().find(|binaries| binaries.major == major);
        return same.cloned().ok_or_else(|| {
            let versions: Vec<_> = found.iter().map(|binaries| binaries.major.to_string()).collect();
            EmbeddedError::VersionMismatch {
                data_dir: data_dir.to_owned(),
                data: major,
                found: versions.join(", "),
            }
        });
    }
    if newest.major < MINIMUM {
        return Err(EmbeddedError::TooOld { bin: newest.dir.clone(), found: newest.major, minimum: MINIMUM });
    }
    Ok(newest.clone())
}

fn installed() -> (Vec<Binaries>, String) {
    let mut dirs = Vec::new();
    for (root, bin) in ROOTS {
        let Ok(entries) = fs::read_dir(root) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let of_one_version = *root == "/usr/lib/postgresql" || name.starts_with("pgsql");
            if of_one_version {
                dirs.push(entry.path().join(bin));
            }
        }
    }
    if let Some(path) = env::var_os("PATH") {
        dirs.extend(env::split_paths(&path).filter(|dir| dir.is_absolute()));
    }
    let mut found: Vec<Binaries> = Vec::new();
    for dir in dirs {
        if ["initdb", "postgres"].iter().all(|name| is_executable(&dir.join(name)))
            && let Some(major) = major_version(&dir)
            && !found.iter().any(|binaries| binaries.major == major)
        {
            found.push(Binaries { dir, major });
        }
    }
    (found, "/usr/lib/postgresql/*/bin, /usr/pgsql-*/bin, /usr/local/pgsql*/bin and PATH".to_owned())
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// `postgres --version` says `postgres (PostgreSQL) 15.12 (Debian 15.12-0+deb12u2)`.
fn major_version(dir: &Path) -> Option<u32> {
    // Debian's directory already has the number in its name, which saves starting a program.
    let parent = dir.parent()?.file_name()?.to_str()?;
    if let Ok(major) = parent.parse() {
        return Some(major);
    }
    let output = Command::new(dir.join("postgres")).arg("--version").env_clear().output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(text: &str) -> Option<u32> {
    let number = text.split(") ").nth(1)?;
    let digits = number.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_programs_own_words() {
        fn check(text: &str, expected: Option<u32>) {
            assert_eq!(parse_version(text), expected, "{text:?}");
        }
        check("postgres (PostgreSQL) 15.12 (Debian 15.12-0+deb12u2)\n", Some(15));
        check("postgres (PostgreSQL) 18beta1\n", Some(18));
        check("postgres (PostgreSQL) devel\n", None);
        check("", None);
    }

    #[test]
    fn the_data_directorys_version_decides() {
        let of = |major| Binaries { dir: PathBuf::from(format!("/{major}")), major };
        let data = Path::new("/data");
        let pick = |found: &[u32], data| select(found.iter().map(|m| of(*m)).collect(), data, "nowhere");
        assert_eq!(pick(&[14, 17, 15], None).unwrap().major, 17);
        assert_eq!(pick(&[14, 17, 15], Some((data, 15))).unwrap().major, 15);
        // A cluster that exists is served by what made it, however old.
        assert_eq!(pick(&[13], Some((data, 13))).unwrap().major, 13);
        let error = pick(&[14, 17], Some((data, 15))).unwrap_err().to_string();
        assert!(error.contains("PostgreSQL 15, but only 17, 14 is installed"), "{error}");
        assert!(matches!(pick(&[13], None), Err(EmbeddedError::TooOld { found: 13, .. })));
        assert!(matches!(pick(&[], None), Err(EmbeddedError::NoBinaries { .. })));
    }
}
