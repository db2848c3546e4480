//! The rules of `[source.git]`: which addresses, names and paths are accepted.
//!
//! Job: judge texts. Not its job: pulling (`source::pull`). Invariant: what passes here can stand on a command
//! line and in a log: it holds no password, is no option, and names no program.

use std::{
    path::{Component, Path, PathBuf},
    time::Duration,
};

use url::{Host, Url};

use super::{settings::Source, value::GitVerify};

/// How a repository is reached; nothing else is ever spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GitTransport {
    Https,
    /// To this host only.
    Http,
    Ssh,
    File,
}

impl GitTransport {
    /// As git calls it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::Ssh => "ssh",
            Self::File => "file",
        }
    }
}

/// How the address is reached, and for HTTP the origin to which alone a token may go.
///
/// # Errors
/// What is wrong with it, and what to do. Neither repeats the address, which may hold a password.
pub fn address(text: &str) -> Result<(GitTransport, Option<String>), (&'static str, &'static str)> {
    const FORMS: &str = "use https://host/path, ssh://user@host/path, user@host:path or file:///path";
    if text.is_empty() || text.chars().any(|it| it.is_control() || it.is_whitespace()) {
        return Err(("must be an address without blanks", FORMS));
    }
    if !text.contains("://") {
        return if is_scp(text) {
            Ok((GitTransport::Ssh, None))
        } else {
            Err(("is no address of Git", FORMS))
        };
    }
    let Ok(url) = Url::parse(text) else { return Err(("is no address of Git", FORMS)) };
    if url.password().is_some() {
        return Err(("holds a password", "put it into the file that source.git.token names"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(("must not have a query or a fragment", "set source.git.branch or source.git.tag"));
    }
    let transport = match url.scheme() {
        "https" => GitTransport::Https,
        "http" if is_loopback(&url) => GitTransport::Http,
        "http" => return Err(("is not encrypted", "use https://; http:// is for this host only")),
        "ssh" => GitTransport::Ssh,
        "file" => GitTransport::File,
        _ => return Err(("has a scheme that is not spoken", FORMS)),
    };
    match transport {
        GitTransport::Https | GitTransport::Http if !url.username().is_empty() => {
            Err(("holds a user name", "set source.git.username and source.git.token"))
        }
        GitTransport::Https | GitTransport::Http => Ok((transport, Some(url.origin().ascii_serialization()))),
        GitTransport::Ssh => {
            let plain = |text: &str| !text.starts_with('-');
            if url.host_str().is_some_and(|host| !host.is_empty() && plain(host)) && plain(url.username()) {
                Ok((transport, None))
            } else {
                Err(("names no host", FORMS))
            }
        }
        GitTransport::File => Ok((transport, None)),
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

/// `user@host:path`.
fn is_scp(text: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('-')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    text.split_once(':').is_some_and(|(place, path)| {
        !path.is_empty() && place.split_once('@').is_some_and(|(user, host)| plain(user) && plain(host))
    })
}

/// Whether git accepts the name as that of a branch or tag (`git-check-ref-format`).
fn is_ref_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 200
        && name != "@"
        && !name.starts_with(['-', '/'])
        && !name.ends_with(['/', '.'])
        && !["..", "//", "@{"].iter().any(|bad| name.contains(bad))
        && !name.chars().any(|it| it.is_control() || " ~^:?*[\\".contains(it))
        && name.split('/').all(|part| !part.starts_with('.') && !part.ends_with(".lock"))
}

/// Relative, plain, UTF-8, and not within what belongs to Git.
fn is_inside(path: &Path) -> bool {
    path.to_str().is_some_and(|text| !text.chars().any(char::is_control))
        && path.components().all(|part| match part {
            Component::CurDir => true,
            Component::Normal(name) => !name.eq_ignore_ascii_case(".git"),
            _ => false,
        })
}

type Rule = (bool, &'static str, &'static str, &'static str);

/// What is wrong between these keys.
pub(super) fn rules(source: &Source) -> Vec<Rule> {
    let mut found: Vec<Rule> = Vec::new();
    let mut rule = |broken, key, message, hint| found.push((broken, key, message, hint));
    let address = source.git_url.as_deref().map(address);
    if let Some(Err((message, hint))) = address {
        rule(true, "source.git.url", message, hint);
    }
    let bad_name = |name: &Option<String>| name.as_deref().is_some_and(|name| !is_ref_name(name));
    let hint = "give its short name, such as main or release/2";
    rule(bad_name(&source.git_branch), "source.git.branch", "is no name of a branch", hint);
    rule(bad_name(&source.git_tag), "source.git.tag", "is no name of a tag", hint);
    rule(
        !is_inside(&source.git_path),
        "source.git.path",
        "must be a path inside the repository",
        "for instance \"providers.d\"; it begins at the repository's root and has no ..",
    );
    rule(
        source.git_interval < Duration::from_secs(1),
        "source.git.interval",
        "must be 1s or more",
        "60s is the default; a webhook makes changes arrive at once",
    );
    rule(
        source.git_timeout < Duration::from_secs(1),
        "source.git.timeout",
        "must be 1s or more",
        "120s is the default",
    );
    rule(
        source.git_username.chars().any(char::is_control) || source.git_username.is_empty(),
        "source.git.username",
        "must be a name on one line",
        "\"git\" is the default",
    );
    rule(
        source.git_verify == GitVerify::Ssh && source.git_allowed_signers.is_none(),
        "source.git.allowed_signers",
        "is missing; source.git.verify needs it",
        "name the file with the signers' public keys",
    );
    let files: [(&str, &Option<PathBuf>); 5] = [
        ("source.git.ssh_key", &source.git_ssh_key),
        ("source.git.known_hosts", &source.git_known_hosts),
        ("source.git.token", &source.git_token),
        ("source.git.allowed_signers", &source.git_allowed_signers),
        ("source.git.webhook_secret", &source.git_webhook_secret),
    ];
    for (key, file) in files {
        let odd = |path: &PathBuf| {
            path.to_str().is_none_or(|text| text.chars().any(|it| it.is_control() || it == '"'))
        };
        rule(
            file.as_ref().is_some_and(odd),
            key,
            "must be a plain path",
            "without quotation marks and control characters",
        );
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_can_be_spoken_to_safely_pass() {
        let check = |text: &str, expected: Option<GitTransport>| {
            assert_eq!(address(text).ok().map(|(transport, _)| transport), expected, "{text}");
        };
        check("https://git.example.com/a/b.git", Some(GitTransport::Https));
        check("ssh://git@git.example.com:2222/a/b.git", Some(GitTransport::Ssh));
        check("git@git.example.com:a/b.git", Some(GitTransport::Ssh));
        check("file:///srv/git/b.git", Some(GitTransport::File));
        check("http://127.0.0.1:8080/b.git", Some(GitTransport::Http));
        check("http://localhost/b.git", Some(GitTransport::Http));
        check("http://[::1]/b.git", Some(GitTransport::Http));
        for text in [
            "",
            "http://git.example.com/b.git",
            "http://127.0.0.1.example.com/b.git",
            "git://git.example.com/b.git",
            "ext::sh -c id",
            "ext::id",
            "--upload-pack=id",
            "-oProxyCommand=id@h:p",
            "a@-oProxyCommand=id:p",
            "ssh://-oProxyCommand=id/p",
            "ssh://-x@host/p",
            "/srv/git/b.git",
            "https://user@h/b.git",
            "https://user:not-a-real-token@h/b.git",
            "ssh://user:not-a-real-token@h/b.git",
            "https://h/b.git?private_token=x",
            "https://h/b.git#main",
            "https://h/a b",
            "https://h/a\nb",
        ] {
            check(text, None);
        }
        let origin = address("https://git.example.com:8443/a.git").ok().and_then(|it| it.1);
        assert_eq!(origin.as_deref(), Some("https://git.example.com:8443"));
    }

    #[test]
    fn names_are_those_that_git_accepts() {
        let check = |name: &str, expected: bool| assert_eq!(is_ref_name(name), expected, "{name}");
        for name in ["main", "release/2", "v1.0", "a@b", "ä"] {
            check(name, true);
        }
        for name in [
            "", "-f", "--x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b",
            "a.lock", "a.lock/b", ".a", "a/.b", "a.", "@", "a@{b", "a\nb",
        ] {
            check(name, false);
        }
    }

    #[test]
    fn a_path_stays_inside() {
        let check = |path: &str, expected: bool| assert_eq!(is_inside(Path::new(path)), expected, "{path}");
        for path in [".", "a", "a/b", "./a", "a b"] {
            check(path, true);
        }
        for path in ["/a", "..", "a/../b", ".git", "a/.GIT/b", "a\nb"] {
            check(path, false);
        }
    }
}
