//! One run of git: what it is given, how long it may take, how much it may say.
//!
//! Not its job: what the answers mean (`remote`, `tree`). Invariants: git knows no configuration and no environment
//! but what stands here; the token reaches it through a helper that reads the file, so that it is on no command line
//! and in no environment; when a run is given up, everything that it started ends with it.

use std::{
    ffi::{OsStr, OsString},
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use secrecy::ExposeSecret as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
};

use url::Url;

use super::{PullError, PullOptions, place::MirrorPlace};
use crate::{config::GitTransport, secret::Secret};
use provider::KeyEcho;

/// How often the size of what is being fetched is looked at: at 100 MB/s, some 20 MB may be too much.
const SIZE_LOOK: Duration = Duration::from_millis(200);
/// The end of what git complains about; the beginning is progress.
const COMPLAINT: usize = 4096;
/// An id and a name, or a few of them.
pub const SMALL: usize = 64 * 1024;
/// The bundle of certificate authorities on Debian, Arch and Alpine, and on Fedora.
const BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// Bounds of one run.
#[derive(Debug, Clone, Copy)]
pub struct CommandLimits<'a> {
    /// Bytes of standard output; more is [`PullError::TooLarge`].
    pub output: usize,
    /// A directory that grows meanwhile, and how large it may become.
    pub grows: Option<(&'a Path, u64)>,
}

impl Default for CommandLimits<'_> {
    fn default() -> Self {
        Self { output: SMALL, grows: None }
    }
}

/// What git answered.
#[derive(Debug)]
pub struct GitAnswer {
    pub stdout: Vec<u8>,
    /// Cleaned of control characters and of credentials.
    pub complaint: String,
    status: ExitStatus,
}

impl GitAnswer {
    pub fn is_success(&self) -> bool {
        self.status.success()
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The first line, trimmed.
    pub fn line(&self) -> String {
        String::from_utf8_lossy(&self.stdout).lines().next().unwrap_or_default().trim().to_owned()
    }
}

/// Runs git on the mirror. Not printable: its environment may hold the password of a proxy.
pub struct Git {
    environment: Vec<(OsString, OsString)>,
    directory: PathBuf,
    timeout: Duration,
    /// The token and the proxy's password: only to keep them out of what is shown.
    secrets: Vec<KeyEcho>,
}

impl Git {
    /// # Errors
    /// [`PullError::Io`] when further certificate authorities are wanted and cannot be read.
    pub fn new(options: &PullOptions, place: &MirrorPlace, token: Option<Secret>) -> Result<Self, PullError> {
        let bundle = bundle(options, place)?;
        let environment = environment(options, place, bundle.as_deref());
        let proxy = options.proxy.as_ref().and_then(|proxy| Url::parse(proxy.expose_secret()).ok());
        let secrets = (token.iter().map(|token| KeyEcho::of(token.expose())))
            .chain(proxy.as_ref().and_then(Url::password).map(KeyEcho::of))
            .collect();
        Ok(Self { environment, directory: place.dir().to_owned(), timeout: options.timeout, secrets })
    }

    /// Runs `git arguments…` to its end and fails if git does.
    ///
    /// # Errors
    /// [`PullError::NoGit`], [`PullError::TimedOut`], [`PullError::TooLarge`], [`PullError::Git`].
    pub async fn run(&self, arguments: &[&str], limits: CommandLimits<'_>) -> Result<GitAnswer, PullError> {
        let answer = self.ask(arguments, &[], limits).await?;
        self.succeed(arguments, answer)
    }

    /// Turns a failure of git into an error.
    pub fn succeed(&self, arguments: &[&str], answer: GitAnswer) -> Result<GitAnswer, PullError> {
        if answer.is_success() {
            return Ok(answer);
        }
        let message = match (answer.complaint.is_empty(), answer.code()) {
            (false, _) => answer.complaint,
            (true, Some(code)) => format!("it ended with {code}"),
            (true, None) => "it was killed".to_owned(),
        };
        Err(PullError::Git { command: command_name(arguments), message })
    }

    /// As [`Self::run`], but git may answer no. `more` is added to the environment.
    ///
    /// # Errors
    /// As [`Self::run`], without [`PullError::Git`].
    pub async fn ask(
        &self,
        arguments: &[&str],
        more: &[(&str, &OsStr)],
        limits: CommandLimits<'_>,
    ) -> Result<GitAnswer, PullError> {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .envs(more.iter().copied())
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that ssh and the helpers can be ended together with it.
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(PullError::NoGit)?;
        let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr, status) =
                tokio::join!(read(stdout, limits.output), read_end(stderr), child.wait());
            (stdout, stderr, status)
        };
        let (stdout, stderr, status) = tokio::select! {
            done = work => done,
            () = tokio::time::sleep(self.timeout) => {
                return Err(PullError::TimedOut { command: command_name(arguments), limit: self.timeout });
            }
            limit = outgrows(limits.grows) => {
                return Err(PullError::TooLarge { what: "what is fetched", limit });
            }
        };
        // All that held the pipes are gone, and the number of the group may soon be another's.
        group.0 = None;
        let stdout =
            stdout.ok_or(PullError::TooLarge { what: "the answer of git", limit: limits.output as u64 })?;
        let status = status.map_err(PullError::NoGit)?;
        Ok(GitAnswer { stdout, complaint: self.clean(&stderr), status })
    }

    /// The last lines of what git complained about: without progress, control characters, credentials.
    fn clean(&self, stderr: &[u8]) -> String {
        let text = String::from_utf8_lossy(stderr);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with("hint:"))
            .collect();
        let last = lines.get(lines.len().saturating_sub(4)..).unwrap_or_default();
        let kept: Vec<&str> = last.iter().copied().filter(|line| !self.is_telling(line)).collect();
        let mut text = kept.join("; ");
        // Broken over lines, a secret is in none of them.
        if self.repeats(&text) {
            text.clear();
        }
        if kept.len() < last.len() || text.is_empty() && !last.is_empty() {
            let gap = if text.is_empty() { "" } else { "; " };
            text = format!("{text}{gap}(what repeats a credential is left out)");
        }
        text.chars().filter(|it| !it.is_control()).take(600).collect()
    }

    fn repeats(&self, text: &str) -> bool {
        self.secrets.iter().any(|secret| secret.is_in(text))
    }

    /// Whether a line shows a credential: ours in any form, or what follows `Basic` and `Bearer`.
    fn is_telling(&self, line: &str) -> bool {
        self.repeats(line) || {
            let mut words =
                line.split(|c: char| c.is_whitespace() || matches!(c, ':' | ',' | '"' | '\'' | '<' | '>'));
            let mut scheme = false;
            words.by_ref().filter(|word| !word.is_empty()).any(|word| {
                let follows = std::mem::replace(
                    &mut scheme,
                    ["basic", "bearer", "token", "negotiate"].iter().any(|it| word.eq_ignore_ascii_case(it)),
                );
                follows && is_credential(word)
            })
        }
    }
}

/// Not a word of a sentence (`Basic authentication`): long, with digits or capitals inside.
fn is_credential(word: &str) -> bool {
    word.len() >= 12 && word.bytes().skip(1).any(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase())
}

fn command_name(arguments: &[&str]) -> String {
    arguments.first().copied().unwrap_or_default().to_owned()
}

/// Ends a whole process group when it is dropped while it runs.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended meanwhile; then there is nothing to signal.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Everything; `None` if it is more than `limit` bytes. Reads to the end in any case, so that git can.
async fn read(pipe: Option<impl AsyncRead + Unpin>, limit: usize) -> Option<Vec<u8>> {
    let mut all = Vec::new();
    let Some(mut pipe) = pipe else { return Some(all) };
    let mut part = [0; 16 * 1024];
    let mut fits = true;
    // A pipe that breaks is a pipe that ends: the exit status says the rest.
    while let Ok(count @ 1..) = pipe.read(&mut part).await {
        fits &= all.len() + count <= limit;
        if fits {
            all.extend_from_slice(part.get(..count).unwrap_or_default());
        }
    }
    fits.then_some(all)
}

/// The last [`COMPLAINT`] bytes or so.
async fn read_end(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut end = Vec::new();
    let Some(mut pipe) = pipe else { return end };
    let mut part = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut part).await {
        end.extend_from_slice(part.get(..count).unwrap_or_default());
        if end.len() > 2 * COMPLAINT {
            end.drain(..end.len() - COMPLAINT);
        }
    }
    end
}

/// Returns the limit once the directory holds more than it.
async fn outgrows(grows: Option<(&Path, u64)>) -> u64 {
    let Some((dir, limit)) = grows else { return std::future::pending().await };
    loop {
        tokio::time::sleep(SIZE_LOOK).await;
        if size_of(dir) > limit {
            return limit;
        }
    }
}

/// Bytes in the files of a directory: packs, and what is going to be one.
pub fn size_of(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// The system's certificate authorities and those of the settings in one file, as git wants them.
fn bundle(options: &PullOptions, place: &MirrorPlace) -> Result<Option<PathBuf>, PullError> {
    if options.ca_files.is_empty() || options.transport != GitTransport::Https {
        return Ok(None);
    }
    let mut all = Vec::new();
    let system = BUNDLES.iter().map(Path::new).find(|path| path.exists()).map(Path::to_owned);
    for path in system.iter().chain(&options.ca_files) {
        all.extend(std::fs::read(path).map_err(PullError::io(path))?);
        all.push(b'\n');
    }
    let path = place.dir().join("ca.pem");
    std::fs::write(&path, all).map_err(PullError::io(&path))?;
    Ok(Some(path))
}

/// All that git knows of the world.
fn environment(
    options: &PullOptions,
    place: &MirrorPlace,
    bundle: Option<&Path>,
) -> Vec<(OsString, OsString)> {
    let mut all: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |name: &str, value: &OsStr| all.push((name.into(), value.into()));
    for name in ["PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(name) {
            set(name, &value);
        }
    }
    set("HOME", place.dir().as_os_str());
    set("GIT_DIR", place.mirror().as_os_str());
    for (name, value) in [
        ("LC_ALL", "C"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_ATTR_NOSYSTEM", "1"),
        ("GIT_TERMINAL_PROMPT", "0"),
        ("GIT_NO_LAZY_FETCH", "1"),
        ("GIT_NO_REPLACE_OBJECTS", "1"),
        ("GIT_ADVICE", "0"),
        ("GIT_ALLOW_PROTOCOL", options.transport.as_str()),
    ] {
        set(name, value.as_ref());
    }
    if options.transport == GitTransport::Ssh {
        set("GIT_SSH_VARIANT", "ssh".as_ref());
        set("GIT_SSH_COMMAND", ssh_command(options).as_ref());
    }
    let settings = settings(options, bundle);
    set("GIT_CONFIG_COUNT", settings.len().to_string().as_ref());
    for (at, (key, value)) in settings.iter().enumerate() {
        set(&format!("GIT_CONFIG_KEY_{at}"), key.as_ref());
        set(&format!("GIT_CONFIG_VALUE_{at}"), value.as_ref());
    }
    all
}

/// Settings of git; those of the environment are stronger than a repository's.
fn settings(options: &PullOptions, bundle: Option<&Path>) -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = [
        // Nothing that a repository names is started.
        ("core.hooksPath", "/dev/null"),
        ("core.fsmonitor", "false"),
        ("core.attributesFile", "/dev/null"),
        ("submodule.recurse", "false"),
        ("fetch.recurseSubmodules", "false"),
        ("gc.auto", "0"),
        ("maintenance.auto", "false"),
        // What comes is checked, stays in packs, and large objects never come into memory whole.
        ("fetch.fsckObjects", "true"),
        ("transfer.fsckObjects", "true"),
        ("fetch.unpackLimit", "1"),
        ("core.bigFileThreshold", "1m"),
        ("core.packedGitLimit", "64m"),
        ("core.deltaBaseCacheLimit", "16m"),
        ("pack.threads", "1"),
        ("index.threads", "1"),
        // A token must not travel.
        ("http.followRedirects", "false"),
        ("http.lowSpeedLimit", "1"),
        ("credential.helper", ""),
        // Signatures by SSH keys only, and only by keys that the file names.
        ("gpg.format", "ssh"),
        ("gpg.program", "false"),
        ("gpg.openpgp.program", "false"),
        ("gpg.x509.program", "false"),
        ("gpg.ssh.program", "ssh-keygen"),
        ("gpg.minTrustLevel", "fully"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut set = |key: &str, value: String| all.push((key.to_owned(), value));
    set("http.lowSpeedTime", options.timeout.as_secs().max(1).to_string());
    // Empty: none, whatever git would find elsewhere.
    set("http.proxy", options.proxy.as_ref().map_or_else(String::new, |it| it.expose_secret().to_owned()));
    if let Some(bundle) = bundle {
        set("http.sslCAInfo", bundle.display().to_string());
    }
    if let Some(signers) = &options.allowed_signers {
        set("gpg.ssh.allowedSignersFile", signers.display().to_string());
    }
    if let (Some(origin), Some(token)) = (&options.origin, &options.token) {
        // Scoped: only this origin is ever offered the token.
        set(&format!("credential.{origin}.helper"), credential_helper(&options.username, token));
    }
    all
}

/// A line for the shell that git starts: reads the token with the shell's own words, which are no processes.
fn credential_helper(username: &str, token: &Path) -> String {
    format!(
        "!f() {{ test \"$1\" = get || exit 0; read -r token < {}; printf 'username=%s\\npassword=%s\\n' {} \"$token\"; }}; f",
        quoted(&token.display().to_string()),
        quoted(username),
    )
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// ssh with one key, known hosts only, and no prompt.
fn ssh_command(options: &PullOptions) -> String {
    // Inside an option, ssh reads quotation marks and percent signs itself.
    let file = |path: &Path| format!("\"{}\"", path.display().to_string().replace('%', "%%"));
    let mut command = String::from("ssh -F /dev/null");
    let mut option = |text: String| {
        let _ = write!(command, " -o {}", quoted(&text));
    };
    for text in [
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "ForwardAgent=no",
        "ForwardX11=no",
        "ClearAllForwardings=yes",
        "PermitLocalCommand=no",
        "ConnectTimeout=10",
        "ServerAliveInterval=10",
        "ServerAliveCountMax=3",
        "IdentityAgent=none",
        "IdentitiesOnly=yes",
    ] {
        option(text.to_owned());
    }
    match &options.known_hosts {
        Some(path) => {
            option(format!("UserKnownHostsFile={}", file(path)));
            option("GlobalKnownHostsFile=/dev/null".to_owned());
        }
        None => option("UserKnownHostsFile=/dev/null".to_owned()),
    }
    match &options.ssh_key {
        Some(path) => {
            let _ = write!(command, " -i {}", quoted(&path.display().to_string().replace('%', "%%")));
        }
        // Without a key of ours, those in the user's home are not tried either.
        None => option("IdentityFile=none".to_owned()),
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::pull::Reference;

    fn options(transport: GitTransport) -> PullOptions {
        PullOptions {
            url: "https://git.example.com/a.git".to_owned(),
            transport,
            origin: Some("https://git.example.com".to_owned()),
            reference: Reference::Branch("main".to_owned()),
            path: ".".into(),
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(120),
            max_bytes: 1 << 20,
            ssh_key: Some("/etc/pd/it's 100%/key".into()),
            known_hosts: Some("/etc/pd/known hosts".into()),
            token: Some("/etc/pd/it's/token".into()),
            username: "o'neil".to_owned(),
            allowed_signers: Some("/etc/pd/signers".into()),
            allow_rewritten: false,
            proxy: None,
            ca_files: Vec::new(),
            state: "/var/lib/pd/git".into(),
        }
    }

    fn environment_of(transport: GitTransport) -> Vec<(String, String)> {
        let options = options(transport);
        let place = MirrorPlace::of(&options);
        let text = |text: OsString| text.into_string().unwrap();
        environment(&options, &place, None)
            .into_iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    fn value(environment: &[(String, String)], name: &str) -> Option<String> {
        environment.iter().find(|(it, _)| it == name).map(|(_, value)| value.clone())
    }

    fn setting(environment: &[(String, String)], key: &str) -> Option<String> {
        let (name, _) =
            environment.iter().find(|(name, value)| name.starts_with("GIT_CONFIG_KEY_") && value == key)?;
        value(environment, &name.replace("_KEY_", "_VALUE_"))
    }

    #[test]
    fn git_speaks_one_protocol_and_knows_no_foreign_configuration() {
        for (transport, word) in [
            (GitTransport::Https, "https"),
            (GitTransport::Http, "http"),
            (GitTransport::Ssh, "ssh"),
            (GitTransport::File, "file"),
        ] {
            let environment = environment_of(transport);
            assert_eq!(value(&environment, "GIT_ALLOW_PROTOCOL").as_deref(), Some(word));
            assert_eq!(value(&environment, "GIT_CONFIG_NOSYSTEM").as_deref(), Some("1"));
            assert_eq!(value(&environment, "GIT_CONFIG_GLOBAL").as_deref(), Some("/dev/null"));
            assert_eq!(value(&environment, "GIT_SSH_COMMAND").is_some(), transport == GitTransport::Ssh);
            let count: usize = value(&environment, "GIT_CONFIG_COUNT").unwrap().parse().unwrap();
            let keys = environment.iter().filter(|(name, _)| name.starts_with("GIT_CONFIG_KEY_")).count();
            assert_eq!(count, keys);
            for (key, expected) in [
                ("core.hooksPath", "/dev/null"),
                ("fetch.fsckObjects", "true"),
                ("http.followRedirects", "false"),
                ("gpg.minTrustLevel", "fully"),
                ("gpg.ssh.allowedSignersFile", "/etc/pd/signers"),
            ] {
                assert_eq!(setting(&environment, key).as_deref(), Some(expected), "{key}");
            }
        }
    }

    #[test]
    fn ssh_asks_nobody_and_believes_only_the_file() {
        let command = ssh_command(&options(GitTransport::Ssh));
        for part in [
            "-F /dev/null",
            "'StrictHostKeyChecking=yes'",
            "'BatchMode=yes'",
            "'IdentitiesOnly=yes'",
            "'IdentityAgent=none'",
            "'UserKnownHostsFile=\"/etc/pd/known hosts\"'",
            "'GlobalKnownHostsFile=/dev/null'",
            r"-i '/etc/pd/it'\''s 100%%/key'",
        ] {
            assert!(command.contains(part), "{part} in {command}");
        }
        let without = PullOptions { ssh_key: None, known_hosts: None, ..options(GitTransport::Ssh) };
        let command = ssh_command(&without);
        assert!(command.contains("'IdentityFile=none'"), "{command}");
        assert!(command.contains("'UserKnownHostsFile=/dev/null'"), "{command}");
        assert!(!command.contains("GlobalKnownHostsFile"), "{command}");
    }

    #[test]
    fn the_token_goes_to_one_origin_and_its_helper_survives_odd_names() {
        let environment = environment_of(GitTransport::Https);
        let helper = setting(&environment, "credential.https://git.example.com.helper").unwrap();
        assert!(helper.contains(r"< '/etc/pd/it'\''s/token'"), "{helper}");
        assert_eq!(setting(&environment, "credential.helper").as_deref(), Some(""));

        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("it's a token");
        for text in ["not-a-real-token\n", "not-a-real-token", "  not-a-real-token \n"] {
            std::fs::write(&token, text).unwrap();
            let helper = credential_helper("o'neil", &token);
            // As git calls it.
            let script = format!("{} get", helper.trim_start_matches('!'));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(
                String::from_utf8(output.stdout).unwrap(),
                "username=o'neil\npassword=not-a-real-token\n"
            );
        }
        let script = format!("{} erase", credential_helper("git", &token).trim_start_matches('!'));
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(output.stdout.is_empty());
    }

    #[test]
    fn complaints_hold_neither_the_token_nor_control_characters() {
        let options = options(GitTransport::Https);
        let place = MirrorPlace::of(&options);
        let git = Git::new(&options, &place, Some(Secret::copy_of("not-a-real-token"))).unwrap();
        let shown = git.clean(b"remote: you sent not-a-real-token\x1b[31m\n\nhint: x\nfatal: no\n");
        assert_eq!(shown, "fatal: no; (what repeats a credential is left out)");
        let check = |line: &str, shown: bool| {
            let text = git.clean(format!("{line}\nfatal: no\n").as_bytes());
            assert_eq!(text.contains("left out"), !shown, "{text}");
            assert_eq!(text.starts_with(line), shown, "{text}");
        };
        check("remote: HTTP Basic: Access denied. The provided password is incorrect", true);
        check("remote: Bearer authentication is required", true);
        check("remote: you sent NOT-A-REAL-TOKEN", false);
        check("remote: you sent Authorization: Basic Z2l0Om5vdC1hLXJlYWwtdG9rZW4=", false);
        check("remote: you sent Authorization: bearer c29tZWJvZHkgZWxzZQ", false);
        check("remote: you sent n%6ft-a-r%65al-token", false);
        let shown = git.clean(b"remote: not-a-\nremote: real-tok\nremote: en");
        assert!(shown.contains("left out") || !KeyEcho::of("not-a-real-token").is_in(&shown), "{shown}");
    }
}
