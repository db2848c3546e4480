//! From a reference in a manifest to the secret's value.
//!
//! Its job: read one reference now. Not its job: watching (it names what to watch) and remembering.
//!
//! Invariant: a reference reaches what it may name and nothing else. With `keys.dir`, files lie below it,
//! whatever symbolic links say; devices, FIFOs and the kernel's own files are not read; providerd's own
//! secrets cannot be named. Manifests may come from people who must not learn those.

use std::{
    fmt, fs, io,
    io::Read as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use wildmatch::WildMatch;
use zeroize::Zeroizing;

use catalog::model::SecretRef;

use super::{BYOK_CREDENTIAL, BYOK_ENV, Byok, Secret, Undecryptable};

/// The largest secret: 64 KiB holds every key and certificate, and bounds what a wrong path costs.
const MAX_BYTES: usize = 64 * 1024;

/// Variables that hold providerd's own secrets or where they lie, as globs; a manifest must not send them to a provider,
/// whatever the settings say. `PG*` is what libpq and our driver read; `PROVIDERD_SECTION__KEY` are settings.
const OWN_VARIABLES: &[&str] = &[
    BYOK_ENV,
    "DATABASE_URL",
    "PG*",
    "PROVIDERD_*__*",
    "PROVIDERD_*_TOKEN",
    "PROVIDERD_*_PASSWORD",
    "PROVIDERD_*_SECRET",
    "CREDENTIALS_DIRECTORY",
    "STATE_DIRECTORY",
    "RUST_LOG",
    "NOTIFY_SOCKET",
    "JOURNAL_STREAM",
];
/// Variables that belong to the machine or to other tools in the daemon's environment, as globs: no keys of providers,
/// unless `keys.allow_env` names them.
const OTHER_VARIABLES: &[&str] = &[
    "AWS_*",
    "AZURE_CLIENT_*",
    "AZURE_FEDERATED_*",
    "GOOGLE_APPLICATION_*",
    "VAULT_*",
    "KUBE*",
    "SSH_*",
    "GIT_*",
    "CI_*",
    "ACTIONS_*",
    "DOCKER_*",
    "*_PROXY",
    "*_proxy",
    "LD_*",
    "HOME",
    "PATH",
    "USER",
];
/// The one of `AWS_*` that is a provider's key: Bedrock's API key, under the name that AWS gives it.
const BEDROCK_VARIABLE: &str = "AWS_BEARER_TOKEN_BEDROCK";
/// Systemd credentials that are providerd's own; `admin::auth`, `backend` and `config` read them.
const OWN_CREDENTIALS: &[&str] = &[
    BYOK_CREDENTIAL,
    "admin_token",
    "admin_token_sha256",
    "database_password",
    "git_ssh_key",
    "git_token",
    "git_webhook_secret",
    "tls_cert",
    "tls_key",
];

/// File systems made of the kernel's own state: procfs and sysfs (`statfs(2)`).
const KERNEL_FILE_SYSTEMS: &[i64] = &[0x9fa0, 0x6265_6572];

/// Looks an environment variable up.
pub type EnvLookup = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Why a reference yields no secret. Names the reference, never a value.
#[derive(Debug, thiserror::Error)]
#[error("{reference}: {problem}")]
pub struct ResolveError {
    /// The reference as the operator wrote it.
    pub reference: String,
    pub problem: ResolveProblem,
}

/// What is wrong with a reference or what it points at.
#[derive(Debug, thiserror::Error)]
pub enum ResolveProblem {
    #[error("the variable is not set\nhint: set it in the daemon's environment and restart it")]
    Unset,
    #[error("it is empty")]
    Empty,
    #[error("it holds a line break or control character\nhint: it must hold the key alone, on one line")]
    ControlCharacter,
    #[error("it is not UTF-8 text")]
    NotText,
    #[error("it is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it leads out of keys.dir\nhint: put the file below keys.dir")]
    Escapes,
    #[error(
        "the variable is not among those that a manifest may name\nhint: add it to keys.allow_env, if it is a provider's key"
    )]
    NotAllowed,
    #[error("it is one of providerd's own secrets, which no provider may get")]
    Own,
    #[error("the path is relative, and keys.dir is not set\nhint: set keys.dir, or give an absolute path")]
    NoKeysDir,
    #[error("this process has no systemd credentials\nhint: add LoadCredential= to the unit")]
    NoCredentials,
    #[error("a credential's name is a plain file name")]
    BadCredentialName,
    #[error("no BYOK key is set, so nothing sealed can be opened")]
    NoByok,
    #[error(
        "the token does not open with the BYOK key\n\
         hint: seal the key again with `providerd key seal`"
    )]
    Undecryptable,
    #[error("cannot be read: {0}")]
    Io(io::Error),
}

/// Finds the values of references.
#[derive(Clone)]
pub struct Resolver {
    /// `keys.dir`: where relative `file` references lie.
    pub keys_dir: Option<PathBuf>,
    /// `$CREDENTIALS_DIRECTORY`.
    pub credentials_dir: Option<PathBuf>,
    pub env: EnvLookup,
    /// Opens `sealed` references.
    pub byok: Option<Byok>,
    /// `keys.allow_env`: globs of the variables that may be named; none: all but our own and the machine's.
    pub allow_env: Vec<String>,
    /// Files that no reference may name: the BYOK key's, the settings', TLS keys, Git's secrets.
    pub protected: Vec<PathBuf>,
    /// Directories below which no reference may lead, but for a `keys_dir` inside: the state directory.
    pub protected_dirs: Vec<PathBuf>,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("keys_dir", &self.keys_dir)
            .field("credentials_dir", &self.credentials_dir)
            .field("protected", &self.protected)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver that reads the process's own environment.
    pub fn new(keys_dir: Option<PathBuf>, credentials_dir: Option<PathBuf>, byok: Option<Byok>) -> Self {
        let env: EnvLookup = Arc::new(|name| std::env::var(name).ok());
        Self {
            keys_dir,
            credentials_dir,
            env,
            byok,
            allow_env: Vec::new(),
            protected: Vec::new(),
            protected_dirs: Vec::new(),
        }
    }

    /// The secret that a reference names, without the white space around it and without a pasted `Bearer `.
    ///
    /// # Errors
    /// [`ResolveError`] if there is none, or it cannot be used as a key.
    pub fn resolve(&self, reference: &SecretRef) -> Result<Secret, ResolveError> {
        let value = match reference {
            SecretRef::Env(name) => self.read_env(name),
            SecretRef::File(path) => self.read_file(Path::new(path)),
            SecretRef::Credential(name) => self.read_credential(name),
            SecretRef::Sealed(token) => self.read_sealed(token),
        };
        value
            .and_then(|secret| clean(&secret))
            .map_err(|problem| ResolveError { reference: reference.to_string(), problem })
    }

    /// The file whose change means that the reference must be read again; `None` for what cannot change
    /// while the process runs.
    pub fn watched_paths(&self, reference: &SecretRef) -> Option<PathBuf> {
        match reference {
            SecretRef::File(path) if Path::new(path).is_absolute() => Some(PathBuf::from(path)),
            SecretRef::File(path) => Some(self.keys_dir.as_ref()?.join(path)),
            SecretRef::Credential(name) if is_plain_name(name) => {
                Some(self.credentials_dir.as_ref()?.join(name))
            }
            SecretRef::Env(_) | SecretRef::Credential(_) | SecretRef::Sealed(_) => None,
        }
    }

    fn read_env(&self, name: &str) -> Result<Secret, ResolveProblem> {
        let is_among = |globs: &[&str]| globs.iter().any(|glob| WildMatch::new(glob).matches(name));
        if is_among(OWN_VARIABLES) {
            return Err(ResolveProblem::Own);
        }
        let is_allowed = match self.allow_env.is_empty() {
            true => name == BEDROCK_VARIABLE || !is_among(OTHER_VARIABLES),
            false => self.allow_env.iter().any(|glob| WildMatch::new(glob).matches(name)),
        };
        if !is_allowed {
            return Err(ResolveProblem::NotAllowed);
        }
        (self.env)(name).map(Secret::new).ok_or(ResolveProblem::Unset)
    }

    fn read_file(&self, path: &Path) -> Result<Secret, ResolveProblem> {
        let file = match self.keys_dir.as_deref() {
            Some(dir) if path.is_absolute() => {
                let real = || Some(path.strip_prefix(dir.canonicalize().ok()?).ok()?.to_owned());
                let below = path.strip_prefix(dir).ok().map(Path::to_owned).or_else(real);
                // What is no file below it cannot be said to be one that is missing.
                open_beneath(
                    dir,
                    &below.filter(|it| !it.as_os_str().is_empty()).ok_or(ResolveProblem::Escapes)?,
                )?
            }
            Some(dir) => open_beneath(dir, path)?,
            None if path.is_absolute() => open_absolute(path).map_err(ResolveProblem::Io)?,
            None => return Err(ResolveProblem::NoKeysDir),
        };
        if self.is_below_protected(&file, path) {
            return Err(ResolveProblem::Own);
        }
        self.read_opened(file)
    }

    fn read_credential(&self, name: &str) -> Result<Secret, ResolveProblem> {
        if !is_plain_name(name) {
            return Err(ResolveProblem::BadCredentialName);
        }
        if OWN_CREDENTIALS.contains(&name) {
            return Err(ResolveProblem::Own);
        }
        let dir = self.credentials_dir.as_deref().ok_or(ResolveProblem::NoCredentials)?;
        self.read_opened(open_beneath(dir, Path::new(name))?)
    }

    fn read_sealed(&self, token: &str) -> Result<Secret, ResolveProblem> {
        let byok = self.byok.as_ref().ok_or(ResolveProblem::NoByok)?;
        let opened = byok.open(token).map_err(|Undecryptable| ResolveProblem::Undecryptable)?;
        Ok(Secret::clone(&opened))
    }

    fn read_opened(&self, file: fs::File) -> Result<Secret, ResolveProblem> {
        let meta = file.metadata().map_err(ResolveProblem::Io)?;
        if self.is_protected(&meta) {
            return Err(ResolveProblem::Own);
        }
        let bytes = read_regular(&file, &meta)?;
        Secret::from_bytes(&bytes).ok_or(ResolveProblem::NotText)
    }

    fn is_below_protected(&self, file: &fs::File, asked: &Path) -> bool {
        // A file whose place is not known is not one of ours by its place; its inode is looked at as well.
        let Ok(path) = real_path(file, asked) else { return false };
        let real = |dir: &PathBuf| dir.canonicalize().ok();
        let keys = self.keys_dir.as_ref().and_then(real);
        self.protected_dirs.iter().filter_map(real).any(|dir| {
            let is_for_keys = keys
                .as_ref()
                .is_some_and(|keys| *keys != dir && keys.starts_with(&dir) && path.starts_with(keys));
            path.starts_with(&dir) && !is_for_keys
        })
    }

    /// Compared by inode: a protected file has many names, and links are names.
    fn is_protected(&self, file: &fs::Metadata) -> bool {
        let credentials =
            self.credentials_dir.iter().flat_map(|dir| OWN_CREDENTIALS.iter().map(|name| dir.join(name)));
        self.protected.iter().cloned().chain(credentials).any(|path| {
            fs::metadata(path).is_ok_and(|own| (own.dev(), own.ino()) == (file.dev(), file.ino()))
        })
    }
}

/// The path under which a file is open: links resolved, and not to be changed between look and use.
fn real_path(file: &fs::File, asked: &Path) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).or_else(|_| asked.canonicalize())
}

/// Takes off what people paste along with a key.
fn clean(secret: &Secret) -> Result<Secret, ResolveProblem> {
    let mut text = secret.expose().trim();
    // Editors on Windows begin a file with a byte order mark.
    text = text.trim_start_matches('\u{feff}').trim_start();
    if let Some((scheme, rest)) = text.split_once(' ')
        && scheme.eq_ignore_ascii_case("bearer")
    {
        text = rest.trim_start();
    }
    if text.is_empty() || text.eq_ignore_ascii_case("bearer") {
        return Err(ResolveProblem::Empty);
    }
    if text.chars().any(char::is_control) {
        return Err(ResolveProblem::ControlCharacter);
    }
    Ok(Secret::copy_of(text))
}

fn is_plain_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

/// Opens without waiting for the writer of a FIFO and without taking over a terminal.
fn open_absolute(path: &Path) -> io::Result<fs::File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Opens `path` below `dir`. Symbolic links are followed as long as they stay below: Kubernetes mounts
/// secrets through two of them.
fn open_beneath(dir: &Path, path: &Path) -> Result<fs::File, ResolveProblem> {
    if path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return Err(ResolveProblem::Escapes);
    }
    let root = fs::File::open(dir).map_err(ResolveProblem::Io)?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: a directory was renamed during the look-up, which a few more tries outlast.
    for _ in 0..8 {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => return Ok(fd.into()),
            Err(rustix::io::Errno::XDEV) => return Err(ResolveProblem::Escapes),
            Err(rustix::io::Errno::AGAIN) => {}
            // A sandbox that filters system calls may not know this one.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                return open_beneath_by_name(dir, path);
            }
            Err(errno) => return Err(ResolveProblem::Io(errno.into())),
        }
    }
    Err(ResolveProblem::Io(rustix::io::Errno::AGAIN.into()))
}

/// The same by comparing real paths, for kernels without `openat2`.
fn open_beneath_by_name(dir: &Path, path: &Path) -> Result<fs::File, ResolveProblem> {
    let root = dir.canonicalize().map_err(ResolveProblem::Io)?;
    let real = root.join(path).canonicalize().map_err(ResolveProblem::Io)?;
    if !real.starts_with(&root) {
        return Err(ResolveProblem::Escapes);
    }
    open_absolute(&real).map_err(ResolveProblem::Io)
}

fn read_regular(file: &fs::File, meta: &fs::Metadata) -> Result<Zeroizing<Vec<u8>>, ResolveProblem> {
    if !meta.is_file() {
        return Err(ResolveProblem::NotAFile);
    }
    let stat = rustix::fs::fstatfs(file).map_err(|errno| ResolveProblem::Io(errno.into()))?;
    if KERNEL_FILE_SYSTEMS.contains(&stat.f_type) {
        return Err(ResolveProblem::NotAFile);
    }
    if meta.len() > MAX_BYTES as u64 {
        return Err(ResolveProblem::TooLarge);
    }
    // Room for one byte more than allowed, from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(ResolveProblem::Io)?;
    if bytes.len() > MAX_BYTES {
        return Err(ResolveProblem::TooLarge);
    }
    Ok(bytes)
}

/// The bytes of a small regular file, wiped after use.
pub(super) fn read_small(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = open_absolute(path)?;
    let meta = file.metadata()?;
    read_regular(&file, &meta).map_err(|problem| match problem {
        ResolveProblem::Io(error) => error,
        other => io::Error::new(io::ErrorKind::InvalidData, other.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const KEY: &str = "sk-not-a-real-key";

    fn resolver(dir: &Path) -> Resolver {
        let byok = Byok::parse("QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=").unwrap();
        let env: EnvLookup = Arc::new(|name| match name {
            "GOOD" => Some(format!(" Bearer {KEY}\n")),
            "BLANK" => Some(" \n".to_owned()),
            "BARE" => Some("Bearer ".to_owned()),
            "TWO_LINES" => Some(format!("{KEY}\n{KEY}")),
            "ABSENT" => None,
            _ => Some(KEY.to_owned()),
        });
        Resolver {
            keys_dir: Some(dir.join("keys")),
            credentials_dir: Some(dir.join("credentials")),
            env,
            byok: Some(byok),
            allow_env: Vec::new(),
            protected: vec![dir.join("byok.key")],
            protected_dirs: vec![dir.join("state")],
        }
    }

    /// A directory as an operator, Kubernetes and an attacker would fill it.
    fn fixture() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["keys/..data_1", "keys/sub", "credentials", "state/keys"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for (name, text) in [
            ("byok.key", KEY),
            ("outside", KEY),
            ("keys/plain", KEY),
            ("keys/windows", "\u{feff}sk-not-a-real-key\r\n"),
            ("keys/empty", ""),
            ("keys/sub/key", KEY),
            ("keys/..data_1/key", KEY),
            ("credentials/openai", KEY),
            ("credentials/byok_encryption_key", KEY),
            ("credentials/admin_token", KEY),
            ("credentials/database_password", KEY),
            ("state/admin_token.sha256", KEY),
            ("state/keys/plain", KEY),
        ] {
            fs::write(at(name), text).unwrap();
        }
        fs::write(at("keys/binary"), [0xff, 0xfe]).unwrap();
        fs::write(at("keys/most"), "x".repeat(MAX_BYTES)).unwrap();
        fs::write(at("keys/too-large"), "x".repeat(MAX_BYTES + 1)).unwrap();
        for (target, link) in [
            ("..data_1", "keys/..data"),
            ("..data/key", "keys/kubernetes"),
            ("../outside", "keys/escape"),
            ("/etc/passwd", "keys/absolute-link"),
            ("loop", "keys/loop"),
        ] {
            symlink(target, at(link)).unwrap();
        }
        symlink(at("byok.key"), at("disguise")).unwrap();
        symlink(at("state"), at("other-state")).unwrap();
        symlink(at("keys"), at("other-keys")).unwrap();
        nix::unistd::mkfifo(&at("keys/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        dir
    }

    #[test]
    fn references_reach_what_they_may_name() {
        let dir = fixture();
        let resolver = resolver(dir.path());
        let check = |reference: SecretRef, expected: &str| {
            let found = match resolver.resolve(&reference) {
                Ok(secret) if secret.expose() == KEY => "key".to_owned(),
                Ok(secret) => format!("{} bytes", secret.expose().len()),
                Err(error) => {
                    let text = format!("{error} {error:?}");
                    assert!(!text.contains(KEY), "{text}");
                    assert!(text.contains(&reference.to_string()), "{text}");
                    error.problem.to_string().lines().next().unwrap_or_default().to_owned()
                }
            };
            assert!(found.contains(expected), "{reference}: {found:?} instead of {expected:?}");
        };
        let env = |name: &str| SecretRef::Env(name.to_owned());
        check(env("GOOD"), "key");
        check(env("ABSENT"), "not set");
        check(env("BLANK"), "empty");
        check(env("BARE"), "empty");
        check(env("TWO_LINES"), "line break");
        check(env(BYOK_ENV), "own secrets");
        check(env("DATABASE_URL"), "own secrets");
        for own in [
            "PROVIDERD_DATABASE__URL",
            "PROVIDERD_ADMIN_TOKEN",
            "PGPASSWORD",
            "PGSSLKEY",
            "CREDENTIALS_DIRECTORY",
            "RUST_LOG",
        ] {
            check(env(own), "own secrets");
        }
        for other in ["AWS_SECRET_ACCESS_KEY", "VAULT_TOKEN", "HTTPS_PROXY", "https_proxy", "CI_JOB_TOKEN"] {
            check(env(other), "not among those");
        }
        for good in ["OPENAI_API_KEY", "HF_TOKEN", "PROVIDERD_OPENAI_KEY", BEDROCK_VARIABLE] {
            check(env(good), "key");
        }

        let file = |name: &str| SecretRef::File(name.to_owned());
        check(file("plain"), "key");
        check(file("./sub/key"), "key");
        check(file("windows"), "key");
        check(file("kubernetes"), "key");
        check(file("most"), "65536 bytes");
        check(file("too-large"), "larger than");
        check(file("empty"), "empty");
        check(file("binary"), "not UTF-8");
        check(file("absent"), "No such file");
        check(file("sub"), "not a regular file");
        check(file("fifo"), "not a regular file");
        check(file("../outside"), "leads out");
        check(file("sub/../plain"), "leads out");
        check(file("escape"), "leads out");
        check(file("absolute-link"), "leads out");
        check(file("loop"), "cannot be read");

        let absolute = |name: &str| SecretRef::File(dir.path().join(name).to_string_lossy().into_owned());
        check(absolute("keys/plain"), "key");
        check(absolute("keys/kubernetes"), "key");
        check(absolute("keys/absent"), "No such file");
        for out in ["outside", "keys", "keys/escape", "keys/../outside", "byok.key", "credentials/openai"] {
            check(absolute(out), "leads out");
        }
        check(file("/dev/zero"), "leads out");

        let credential = |name: &str| SecretRef::Credential(name.to_owned());
        check(credential("openai"), "key");
        check(credential("absent"), "No such file");
        check(credential("../keys/plain"), "plain file name");
        check(credential("openai/"), "plain file name");
        check(credential(".."), "plain file name");
        check(credential(""), "plain file name");
        for own in OWN_CREDENTIALS {
            check(credential(own), "own secrets");
        }

        let sealed = resolver.byok.as_ref().unwrap().encrypt(&Secret::copy_of(KEY));
        check(SecretRef::Sealed(sealed), "key");
        check(SecretRef::Sealed("gAAAAA".to_owned()), "does not open");
    }

    fn found(resolver: &Resolver, reference: &SecretRef) -> String {
        match resolver.resolve(reference) {
            Ok(_) => "key".to_owned(),
            Err(error) => error.problem.to_string().lines().next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn without_a_directory_for_keys_every_file_but_our_own_can_be_named() {
        let dir = fixture();
        let mut resolver = Resolver { keys_dir: None, ..resolver(dir.path()) };
        let check = |resolver: &Resolver, name: &str, expected: &str| {
            let found =
                found(resolver, &SecretRef::File(dir.path().join(name).to_string_lossy().into_owned()));
            assert!(found.contains(expected), "{name}: {found:?} instead of {expected:?}");
        };
        check(&resolver, "outside", "key");
        check(&resolver, "keys/plain", "key");
        check(&resolver, "credentials/openai", "key");
        for own in [
            "byok.key",
            "disguise",
            "credentials/byok_encryption_key",
            "credentials/admin_token",
            "credentials/database_password",
            "state/admin_token.sha256",
            "other-state/admin_token.sha256",
            "state/keys/plain",
        ] {
            check(&resolver, own, "own secrets");
        }
        check(&resolver, "/dev/zero", "not a regular file");
        check(&resolver, "/proc/self/environ", "not a regular file");
        // A directory for keys below the state directory is for keys.
        resolver.keys_dir = Some(dir.path().join("other-state/keys"));
        check(&resolver, "other-state/keys/plain", "key");
        check(&resolver, "state/keys/plain", "key");
        resolver.keys_dir = Some(dir.path().join("state"));
        check(&resolver, "state/keys/plain", "own secrets");
    }

    #[test]
    fn the_settings_narrow_the_variables() {
        let dir = fixture();
        let allowed = vec!["*_API_KEY".to_owned(), "AWS_SECRET_?".to_owned(), "PG*".to_owned()];
        let resolver = Resolver { allow_env: allowed, ..resolver(dir.path()) };
        let check = |name: &str, expected: &str| {
            let found = found(&resolver, &SecretRef::Env(name.to_owned()));
            assert!(found.contains(expected), "{name}: {found:?} instead of {expected:?}");
        };
        check("OPENAI_API_KEY", "key");
        check("AWS_SECRET_X", "key");
        check("AWS_SECRET_ACCESS_KEY", "not among those");
        check("GOOD", "not among those");
        check("openai_api_key", "not among those");
        // What is our own stays so.
        check("PGPASSWORD", "own secrets");
        check(BYOK_ENV, "own secrets");
    }

    #[test]
    fn what_is_not_configured_is_said() {
        let dir = fixture();
        let bare = Resolver { keys_dir: None, credentials_dir: None, byok: None, ..resolver(dir.path()) };
        let check = |reference: SecretRef, expected: &str| {
            let error = bare.resolve(&reference).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(SecretRef::File("plain".to_owned()), "keys.dir is not set");
        check(SecretRef::Credential("openai".to_owned()), "no systemd credentials");
        check(SecretRef::Sealed("gAAAAA".to_owned()), "no BYOK key");
    }

    #[test]
    fn a_look_up_by_name_keeps_to_the_directory_too() {
        let dir = fixture();
        let keys = dir.path().join("keys");
        assert!(open_beneath_by_name(&keys, Path::new("kubernetes")).is_ok());
        let escape = open_beneath_by_name(&keys, Path::new("escape"));
        assert!(matches!(escape, Err(ResolveProblem::Escapes)));
    }

    #[test]
    fn files_and_credentials_are_watched() {
        let dir = Path::new("/d");
        let check = |reference: SecretRef, expected: Option<&str>| {
            assert_eq!(resolver(dir).watched_paths(&reference), expected.map(PathBuf::from));
        };
        check(SecretRef::File("/abs/key".to_owned()), Some("/abs/key"));
        check(SecretRef::File("sub/key".to_owned()), Some("/d/keys/sub/key"));
        check(SecretRef::Credential("openai".to_owned()), Some("/d/credentials/openai"));
        check(SecretRef::Credential("../x".to_owned()), None);
        check(SecretRef::Env("X".to_owned()), None);
        check(SecretRef::Sealed("x".to_owned()), None);
    }
}
