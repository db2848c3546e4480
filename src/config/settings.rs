//! Every settings key: its name, type, default, unit and meaning.
//!
//! Job: the one list from which the typed [`Settings`], the reference in `docs/SETTINGS.md` and the example
//! in `systemd/providerd.toml` come. Not its job: reading layers. Invariant: a key that is not here does not
//! exist, and a rule between keys stands in [`Settings::cross_check`].

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret as _, SecretString};
use url::{Host, Url};

use catalog::{
    plan::PruneLimit,
    policy::{DriftPolicy, RouteGuard},
};

use super::{
    git,
    layers::{LayerReader, SettingKey},
    value::{
        GitVerify, LogFormat, PruneLimitSetting, Setting, TokenHash, UnhealthyPolicy, UsageDurability,
        UsageWhenFull,
    },
};

macro_rules! key_name {
    ($key:ident) => {
        stringify!($key)
    };
    ($key:ident $name:literal) => {
        $name
    };
}

/// Declares the sections: `key ("name where it differs"): type = "default as TOML; empty: none";`.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $field:ident: $section:ident {
            $( $(#[doc = $doc:literal])+ $key:ident $(($name:literal))?: $type:ty = $default:literal; )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Debug, Clone)]
            pub struct $section {
                $( $(#[doc = $doc])+ pub $key: $type, )+
            }

            impl $section {
                fn read(reader: &mut LayerReader) -> Option<Self> {
                    // All keys are read before the first failure ends it, so that all mistakes are found.
                    $( let $key: Option<$type> = reader.take(concat!(
                        stringify!($field), ".", key_name!($key $($name)?)), $default); )+
                    Some(Self { $( $key: $key?, )+ })
                }

                fn differences(&self, other: &Self, found: &mut Vec<&'static str>) {
                    $( if !self.$key.same(&other.$key) {
                        found.push(concat!(stringify!($field), ".", key_name!($key $($name)?)));
                    } )+
                }
            }
        )+

        /// All settings, checked. Secrets print as `[REDACTED]`.
        #[derive(Debug, Clone)]
        pub struct Settings {
            $( pub $field: $section, )+
            /// `BYOK_ENCRYPTION_KEY`: Fernet keys between commas, the first encrypts. Only the environment
            /// sets it; files and credentials with keys are the secret module's to read.
            pub byok_encryption_key: Option<SecretString>,
            /// The settings file that was read, where there was one.
            pub file: Option<PathBuf>,
        }

        impl Settings {
            pub(super) fn read(reader: &mut LayerReader) -> Option<Self> {
                $( let $field = $section::read(reader); )+
                Some(Self { $( $field: $field?, )+ byok_encryption_key: None, file: None })
            }

            /// The keys whose values differ, in the order of the reference.
            #[must_use]
            pub fn differences(&self, other: &Self) -> Vec<&'static str> {
                let mut found = Vec::new();
                $( self.$field.differences(&other.$field, &mut found); )+
                found
            }
        }

        /// Every section in order: name, lines of documentation, keys.
        pub(super) const SECTIONS: &[(&str, &[&str], &[SettingKey])] = &[$(
            (stringify!($field), &[$($about),+], &[$(
                SettingKey {
                    path: concat!(stringify!($field), ".", key_name!($key $($name)?)),
                    doc: &[$($doc),+],
                    form: <$type as Setting>::FORM,
                    default: $default,
                },
            )+]),
        )+];
    };
}

sections! {
    /// Where the manifests are and how they are watched.
    manifests: Manifests {
        /// Directory of the manifests, read recursively. A relative path starts at the working directory.
        path: PathBuf = "\"providers.d\"";
        /// Time between two looks at the directory and the database when no event asks for one.
        resync_interval: Duration = "\"60s\"";
        /// Longest time for which a burst of file events is gathered before it is applied; a lone change
        /// is applied at once.
        settle: Duration = "\"1500ms\"";
    }

    /// Manifests that providerd pulls from Git by itself, instead of reading `manifests.path`; docs/GIT.md shows it
    /// at work. `--manifests` on the command line is stronger.
    source: Source {
        /// Repository: `https://…`, `ssh://…` or `user@host:path`, also `file://…`; plain `http://` to this host
        /// only. No password belongs in it. With it, pulling is on.
        git_url ("git.url"): Option<String> = "";
        /// Branch to follow. Without one, the branch that the repository's `HEAD` names.
        git_branch ("git.branch"): Option<String> = "";
        /// Tag to follow, stronger than `source.git.branch`.
        git_tag ("git.tag"): Option<String> = "";
        /// Directory of the manifests inside the repository.
        git_path ("git.path"): PathBuf = "\".\"";
        /// Time between two looks at the repository; a webhook, SIGHUP or a start looks at once.
        git_interval ("git.interval"): Duration = "\"60s\"";
        /// Longest time for one run of git, a fetch above all.
        git_timeout ("git.timeout"): Duration = "\"120s\"";
        /// Most space for what is fetched, and for the files of one commit below `source.git.path` (MiB).
        git_max_mib ("git.max_mib"): NonZeroU32 = "256";
        /// File with the private SSH key. Without it, the systemd credential `git_ssh_key`, if there is one.
        git_ssh_key ("git.ssh_key"): Option<PathBuf> = "";
        /// File with the SSH host keys that are believed; no others are. Without it, `/etc/ssh/ssh_known_hosts`.
        git_known_hosts ("git.known_hosts"): Option<PathBuf> = "";
        /// File with the token (or password) for HTTPS, on one line. Without it, the systemd credential
        /// `git_token`, if there is one.
        git_token ("git.token"): Option<PathBuf> = "";
        /// User name sent with the token. GitHub takes any; GitLab's deploy tokens have one of their own.
        git_username ("git.username"): String = "\"git\"";
        /// `ssh`: a commit (or signed tag) that is not signed by one of `source.git.allowed_signers` is not applied.
        git_verify ("git.verify"): GitVerify = "\"off\"";
        /// File of the signers' public keys, as `ssh-keygen` describes it under ALLOWED SIGNERS.
        git_allowed_signers ("git.allowed_signers"): Option<PathBuf> = "";
        /// With `source.git.verify`: also follow a commit that does not come after the applied one (a forced push, a
        /// tag moved back). Without it such a commit is refused, because its signature may be an old one.
        git_allow_rewritten ("git.allow_rewritten"): bool = "false";
        /// File with the secret of the webhook `POST /hooks/git`. Without it, the systemd credential
        /// `git_webhook_secret`; without either, there is no webhook.
        git_webhook_secret ("git.webhook_secret"): Option<PathBuf> = "";
    }

    /// The PostgreSQL database that other programs read.
    database: Database {
        /// PostgreSQL URL, `postgres://user:password@host/name`. `DATABASE_URL` overrides it. Without one,
        /// an embedded PostgreSQL is started under the state directory. The systemd credential
        /// `database_password` gives the password that a URL lacks.
        url: Option<SecretString> = "";
        /// Schema of the shared tables; providerd's own bookkeeping is always in `providerd`.
        schema: String = "\"public\"";
        /// Most connections held open at once (count).
        max_connections: NonZeroU32 = "5";
        /// Longest wait for a connection.
        connect_timeout: Duration = "\"5s\"";
    }

    /// The encryption key of stored API keys, and where manifests may point for secrets.
    keys: Keys {
        /// File with the Fernet keys, between commas or on lines of their own; the first encrypts.
        /// `BYOK_ENCRYPTION_KEY` overrides it.
        file: Option<PathBuf> = "";
        /// Directory below which the files of a manifest's `{ file = … }` references lie, relative to it or as absolute
        /// paths; no others are read then. Without it only absolute paths are accepted, but for providerd's own files.
        dir: Option<PathBuf> = "";
        /// Globs of the environment variables that `{ env = … }` may name, such as `["*_API_KEY"]`. Without any, all may be
        /// named but those of providerd itself and of the machine (`PG*`, `AWS_*`, `VAULT_*`, …); the former never.
        allow_env: Vec<String> = "[]";
        /// Keep a stored key that works when the provider rejects the one that should replace it.
        require_valid: bool = "true";
    }

    /// How differences between manifests and database are resolved.
    reconcile: Reconcile {
        /// What happens to a managed value that someone else changed: `correct` sets it back, `report`
        /// leaves it; both record it.
        drift: DriftPolicy = "\"correct\"";
        /// Most providers pruned at once without a confirmation: a share of the managed ones (`"20%"`) or
        /// a count.
        prune_limit: PruneLimitSetting = "\"20%\"";
        /// Number of providers that `prune_limit` never goes below (count).
        prune_limit_min: u32 = "3";
        /// What happens to a change that would leave a (power level, tier) cell without a usable model:
        /// `hold` it back, `warn` and apply it, or `off`.
        route_guard: RouteGuard = "\"hold\"";
    }

    /// Health checks and key tests. Their interval and limits are defaults: a manifest's own `health` table, and
    /// its directory's `[defaults.health]`, are stronger.
    health: Health {
        /// Run health checks and key tests.
        enabled: bool = "true";
        /// Time between two checks of a healthy provider; 1s or more.
        interval: Duration = "\"30s\"";
        /// Longest time for a whole check.
        timeout: Duration = "\"10s\"";
        /// Time above which an answer counts as slow.
        slow_after: Duration = "\"3s\"";
        /// URL or `host:port` that must answer before an outage of most providers is believed. Without it
        /// the prober distrusts itself for at most 5 minutes.
        canary: Option<String> = "";
        /// Most checks under way at once over all origins (count); half of them at most for providers that are
        /// failing. Those that have taken longer than 1s count apart: up to eight times as many.
        max_in_flight: NonZeroU32 = "256";
        /// Most checks under way at once to one origin, which is scheme, host and port (count).
        per_origin_in_flight: NonZeroU32 = "4";
        /// Most checks begun per second to one origin (count per second).
        per_origin_rate: NonZeroU32 = "20";
    }

    /// What outgoing connections may reach, and how.
    egress: Egress {
        /// Proxy for all outgoing HTTP, as a URL; `HTTP_PROXY` and its like are not read.
        proxy: Option<SecretString> = "";
        /// PEM files with certificate authorities that are trusted beside the system's own.
        ca_files: Vec<PathBuf> = "[]";
        /// Allow private and loopback addresses, such as a local Ollama. Link-local addresses and cloud
        /// metadata services are always refused.
        allow_private: bool = "true";
    }

    /// The HTTP server: metrics, probes and the admin API.
    server: Server {
        /// Address and port to listen on. A socket that systemd gives (`LISTEN_FDS`) is used in its place.
        listen: SocketAddr = "\"127.0.0.1:7411\"";
        /// Permit listening beyond loopback without TLS, for instance behind a proxy that adds it.
        plain_http: bool = "false";
        /// PEM file with the certificate chain: with it and its key, only TLS is served. Both files are read again
        /// when they change; files that cannot be used are reported, and the certificate in use stays.
        tls_cert ("tls.cert"): Option<PathBuf> = "";
        /// PEM file with the private key of `server.tls.cert`.
        tls_key ("tls.key"): Option<PathBuf> = "";
        /// SHA-256 of each accepted admin token, in hexadecimal. The systemd credentials `admin_token_sha256`
        /// (hashes between spaces) and `admin_token` (one token in clear) add to them. Without any the admin API is
        /// closed, except that with the embedded database a token is made and shown once.
        token_sha256: Vec<TokenHash> = "[]";
        /// Names by which the server is reached, beside `localhost` and addresses. While it listens on loopback
        /// only, requests for other names are refused, so that no web site can reach it by a name of its own;
        /// beyond loopback they are refused once this list has a name.
        allowed_hosts: Vec<String> = "[]";
    }

    /// Who may use what lies below `/api/v1/llm/` without an admin token: the browser of an Ops-Center's administrator.
    /// Closed while nothing is set; docs/OPS-CENTER.md shows it at work.
    pages: Pages {
        /// URL that says whose a session is: it is asked with the session's cookie, and answers 200 with a JSON object whose
        /// `role`, `roles` or `groups`, or those of its `user`, name one of `pages.session.roles`. An answer is good for 15 s.
        session_url ("session.url"): Option<String> = "";
        /// Name of the cookie that carries the session.
        session_cookie ("session.cookie"): String = "\"session_token\"";
        /// Roles that may use the pages.
        session_roles ("session.roles"): Vec<String> = "[\"admin\", \"system_admin\"]";
        /// Name of a header by which a proxy in front says which role its user has. The proxy must remove what browsers send
        /// by this name, and `pages.proxy.peers` must name it.
        proxy_header ("proxy.header"): Option<String> = "";
        /// Values of that header that may use the pages; several roles may stand in it between commas.
        proxy_roles ("proxy.roles"): Vec<String> = "[\"admin\", \"system_admin\"]";
        /// Addresses from which that header is believed; from others it is ignored.
        proxy_peers ("proxy.peers"): Vec<String> = "[\"127.0.0.1\", \"::1\"]";
    }

    /// The LiteLLM configuration that the daemon keeps in step with the catalog; docs/LITELLM.md shows it at work.
    litellm: LiteLlmExport {
        /// File that is written after every change of the catalog. Without it, none is.
        path: Option<PathBuf> = "";
        /// Directory for the keys, one file of mode 0600 each, and for `keys.env` with all of them; the configuration then
        /// names them as variables. Without it the variables of the manifests are named, and no key is written.
        keys: Option<PathBuf> = "";
    }

    /// The gateway: the data plane that answers callers by routes and health; docs/GATEWAY.md shows it at work.
    gateway: Gateway {
        /// Address and port to listen on. Without one there is no gateway, except that with the embedded database it
        /// listens on 127.0.0.1:7412.
        listen: Option<SocketAddr> = "";
        /// Address and port where `providerd gateway` serves `/metrics`, without TLS. `providerd run` shows them at
        /// `server.listen`.
        metrics_listen: Option<SocketAddr> = "";
        /// Permit listening beyond loopback without TLS, for instance behind a proxy that adds it.
        plain_http: bool = "false";
        /// PEM file with the certificate chain; with its key, only TLS is served. Both are reloaded when they change.
        tls_cert ("tls.cert"): Option<PathBuf> = "";
        /// PEM file with the private key of `gateway.tls.cert`.
        tls_key ("tls.key"): Option<PathBuf> = "";
        /// Threads that serve (count). Without it, one per core.
        workers: Option<NonZeroU32> = "";
        /// Longest body of a request (MiB).
        max_body_mib: NonZeroU32 = "32";
        /// Memory for the bodies of all requests together (MiB); what does not fit waits, then is refused.
        body_memory_mib: NonZeroU32 = "1024";
        /// While a model thinks, a comment keeps the caller's connection alive this often.
        keepalive: Duration = "\"15s\"";
        /// How long streams may go on after a stop.
        drain: Duration = "\"4s\"";
        /// A picture older than this is not served from after a start without PostgreSQL.
        stale_after: Duration = "\"24h\"";
        /// Serve from rows that no manifest manages, too: a program that may write the tables then decides where prompts go.
        unmanaged: bool = "false";
        /// Whether unhealthy providers are the last resort (`last`) or never asked (`exclude`).
        unhealthy: UnhealthyPolicy = "\"last\"";
        /// Names of request headers that travel to providers beside the usual ones.
        header_allow: Vec<String> = "[]";
        /// Longest time for a connection to a provider, TLS included.
        connect ("timeouts.connect"): Duration = "\"4s\"";
        /// Longest time from the request to the first content of an answer. Without it, 60s, and 300s for providers
        /// inside our walls (`local`), which load models on demand.
        first_token ("timeouts.first_token"): Option<Duration> = "";
        /// Longest silence within an answer.
        idle ("timeouts.idle"): Duration = "\"120s\"";
        /// Longest time for a whole plain answer.
        total ("timeouts.total"): Duration = "\"15m\"";
        /// Longest time for a whole stream.
        total_streaming ("timeouts.total_streaming"): Duration = "\"60m\"";
    }

    /// What `/metrics` shows.
    metrics: Metrics {
        /// Expose the series that carry a `provider` label.
        per_provider: bool = "true";
    }

    /// What is logged, to standard error.
    log: Log {
        /// `human`, `json`, or `auto`: human on a terminal and in the journal, else JSON.
        format: LogFormat = "\"auto\"";
        /// Level (`error`, `warn`, `info`, `debug`, `trace`) or filter directives such as
        /// `info,providerd::health=debug`. `RUST_LOG` overrides it.
        level: String = "\"info\"";
    }

    /// Usage: the local spool that the gateway writes, and how its rows reach the database.
    usage: Usage {
        /// Directory of the spool. Without one, `usage` in the state directory.
        spool_dir: Option<PathBuf> = "";
        /// Most space for rows that wait for the database (MiB): about 2,500 requests each.
        spool_max_mib: NonZeroU32 = "10240";
        /// Time between two syncs of the spool: what a power cut may cost.
        sync_interval: Duration = "\"100ms\"";
        /// `normal`, or `strict`: a request waits until what it wrote would survive a power cut.
        durability: UsageDurability = "\"normal\"";
        /// What happens to requests while the spool is full: `refuse` (nothing goes unmetered), or `serve` (counted).
        when_full: UsageWhenFull = "\"refuse\"";
        /// Rows that are stored in one transaction.
        batch: NonZeroU32 = "5000";
        /// Age at which rows of `llm_usage_logs` are let go, by whole days where it is partitioned. Without one, they stay.
        retention: Option<Duration> = "";
        /// Age at which sums of usage are deleted.
        sums_retention: Duration = "\"400d\"";
    }

    /// How long records are kept.
    retention: Retention {
        /// Age at which rows of the audit trail are deleted.
        events: Duration = "\"365d\"";
        /// Age at which roll-ups of latency and outcomes are deleted.
        history: Duration = "\"30d\"";
    }
}

impl Settings {
    /// Replaces `database.url`, as `--database-url` does.
    pub fn set_database_url(&mut self, url: impl Into<SecretString>) {
        self.database.url = Some(url.into());
    }

    /// Rules that no key can keep alone: the key to blame, what is wrong, and what to do.
    pub(super) fn cross_check(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut found = Vec::new();
        let mut rule = |broken: bool, key: &'static str, message: &str, hint: &'static str| {
            if broken {
                found.push((key, message.to_owned(), hint));
            }
        };
        for (broken, key, message, hint) in git::rules(&self.source) {
            rule(broken, key, message, hint);
        }
        let (health, server) = (&self.health, &self.server);
        rule(
            self.manifests.resync_interval < Duration::from_secs(1),
            "manifests.resync_interval",
            "must be 1s or more",
            "changes are seen at once anyway; the resync only catches what was missed",
        );
        rule(
            self.manifests.settle > Duration::from_secs(60),
            "manifests.settle",
            "must be 60s or less",
            "1500ms suits editors, git checkout and rsync",
        );
        rule(
            self.keys.allow_env.iter().any(|glob| glob.is_empty() || glob.contains(['=', '\0', ' '])),
            "keys.allow_env",
            "must be globs of names of variables",
            "for instance [\"*_API_KEY\"]",
        );
        rule(
            self.database.url.as_ref().is_some_and(|url| !is_database_url(url)),
            "database.url",
            NOT_A_DATABASE_URL.0,
            NOT_A_DATABASE_URL.1,
        );
        rule(
            self.database.connect_timeout.is_zero(),
            "database.connect_timeout",
            "must be more than zero",
            "5s is the default",
        );
        rule(
            !is_plain_identifier(&self.database.schema),
            "database.schema",
            "must be a plain PostgreSQL identifier: letters, digits and _, at most 63, no digit first",
            "the shared tables usually live in \"public\"",
        );
        rule(
            self.database.schema == "providerd" || self.database.schema.starts_with("pg_"),
            "database.schema",
            "is reserved; the shared tables cannot live there",
            "the shared tables usually live in \"public\"",
        );
        rule(
            health.interval < Duration::from_secs(1),
            "health.interval",
            "must be 1s or more",
            "30s is the default",
        );
        rule(health.timeout.is_zero(), "health.timeout", "must be more than zero", "10s is the default");
        rule(
            health.slow_after >= health.timeout,
            "health.slow_after",
            "must be shorter than health.timeout",
            "an answer that is slower than the timeout is no answer",
        );
        rule(
            health.canary.as_deref().is_some_and(|canary| !is_canary(canary)),
            "health.canary",
            "must be an http or https URL, or host:port",
            "choose something near and dependable, such as a gateway's \"10.0.0.1:53\"",
        );
        rule(
            self.egress.proxy.as_ref().is_some_and(|proxy| !is_http_url(proxy.expose_secret())),
            "egress.proxy",
            "must be an http or https URL",
            "for instance \"http://proxy.example.com:3128\"",
        );
        rule(
            server.tls_cert.is_some() != server.tls_key.is_some(),
            if server.tls_cert.is_some() { "server.tls.key" } else { "server.tls.cert" },
            "is missing; TLS needs a certificate and its key",
            "set both server.tls.cert and server.tls.key, or neither",
        );
        rule(
            !server.listen.ip().to_canonical().is_loopback()
                && server.tls_cert.is_none()
                && !server.plain_http,
            "server.listen",
            "goes beyond loopback without TLS",
            "set server.tls.cert and server.tls.key, or server.plain_http = true where a proxy adds TLS",
        );
        let pages = &self.pages;
        rule(
            pages.session_url.as_deref().is_some_and(|url| !is_http_url(url)),
            "pages.session.url",
            "must be an http or https URL",
            "for instance \"http://ops-center:8084/api/v1/auth/me\"",
        );
        rule(
            !is_token(&pages.session_cookie),
            "pages.session.cookie",
            "must be the name of a cookie",
            "Ops-Center's is \"session_token\"",
        );
        rule(
            pages.proxy_header.as_deref().is_some_and(|name| !is_token(name)),
            "pages.proxy.header",
            "must be the name of a header",
            "for instance \"X-Auth-Role\"",
        );
        rule(
            pages.proxy_header.is_some() && pages.proxy_peers.is_empty(),
            "pages.proxy.peers",
            "is empty, so that pages.proxy.header is never believed",
            "name the proxy's address, for instance [\"127.0.0.1\"]",
        );
        rule(
            pages.proxy_peers.iter().any(|peer| peer.parse::<IpAddr>().is_err()),
            "pages.proxy.peers",
            "must be addresses",
            "for instance [\"127.0.0.1\", \"10.0.0.7\"]",
        );
        rule(
            self.litellm.keys.is_some() && self.litellm.path.is_none(),
            "litellm.path",
            "is missing; litellm.keys alone does nothing",
            "for instance \"/var/lib/providerd/litellm.yaml\"",
        );
        let gateway = &self.gateway;
        rule(
            gateway.tls_cert.is_some() != gateway.tls_key.is_some(),
            if gateway.tls_cert.is_some() { "gateway.tls.key" } else { "gateway.tls.cert" },
            "is missing; TLS needs a certificate and its key",
            "set both gateway.tls.cert and gateway.tls.key, or neither",
        );
        rule(
            gateway.listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback())
                && gateway.tls_cert.is_none()
                && !gateway.plain_http,
            "gateway.listen",
            "goes beyond loopback without TLS",
            "set gateway.tls.cert and gateway.tls.key, or gateway.plain_http = true where a proxy adds TLS",
        );
        rule(
            gateway.metrics_listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback())
                && !gateway.plain_http,
            "gateway.metrics_listen",
            "goes beyond loopback without TLS",
            "let it listen on loopback, or set gateway.plain_http = true where the network is trusted",
        );
        rule(
            gateway.listen.is_some_and(|listen| listen == server.listen && listen.port() != 0),
            "gateway.listen",
            "is the address of the admin API",
            "give the gateway a port of its own, such as 7412",
        );
        rule(
            [gateway.connect, gateway.idle, gateway.total, gateway.total_streaming]
                .iter()
                .chain(&gateway.first_token)
                .any(Duration::is_zero),
            "gateway.timeouts",
            "must be more than zero",
            "the defaults are 4s, 60s, 120s, 15m and 60m",
        );
        rule(
            gateway.keepalive.is_zero(),
            "gateway.keepalive",
            "must be more than zero",
            "15s is the default",
        );
        rule(
            self.retention.history < Duration::from_secs(86_400),
            "retention.history",
            "must be 1d or more",
            "30d is the default",
        );
        rule(
            !(Duration::from_millis(1)..=Duration::from_secs(10)).contains(&self.usage.sync_interval),
            "usage.sync_interval",
            "must be from 1ms to 10s",
            "100ms is the default",
        );
        rule(
            self.usage.spool_max_mib.get() < 256,
            "usage.spool_max_mib",
            "must be 256 or more",
            "two files of 64 MiB are always there; 10240 is the default",
        );
        rule(
            self.usage.batch.get() > 50_000,
            "usage.batch",
            "must be 50000 or less",
            "5000 is the default; more is not faster",
        );
        rule(
            self.usage.retention.is_some_and(|it| it < Duration::from_secs(86_400)),
            "usage.retention",
            "must be 1d or more",
            "budgets of a month need 31d",
        );
        rule(
            self.usage.sums_retention < Duration::from_secs(86_400),
            "usage.sums_retention",
            "must be 1d or more",
            "400d is the default",
        );
        rule(
            self.retention.events < Duration::from_secs(86_400),
            "retention.events",
            "must be 1d or more",
            "365d is the default",
        );
        found
    }
}

/// Message and hint for an invalid database URL; the value may hold a password and is not repeated.
pub(super) const NOT_A_DATABASE_URL: (&str, &str) = (
    "must be a URL that begins with postgres:// or postgresql://",
    "for instance postgres://user:password@db.example.com:5432/name; special characters of a password are \
     percent-encoded",
);

pub(super) fn is_database_url(url: &SecretString) -> bool {
    Url::parse(url.expose_secret()).is_ok_and(|url| matches!(url.scheme(), "postgres" | "postgresql"))
}

fn is_http_url(text: &str) -> bool {
    Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// A token as HTTP has it: the name of a header or of a cookie.
fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

fn is_canary(text: &str) -> bool {
    let is_host_and_port = || {
        text.rsplit_once(':').is_some_and(|(host, port)| {
            Host::parse(host).is_ok() && port.parse::<u16>().is_ok_and(|port| port != 0)
        })
    };
    if text.contains("://") { is_http_url(text) } else { is_host_and_port() }
}

/// What needs no quoting in SQL and survives in a search path.
fn is_plain_identifier(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

impl Reconcile {
    /// What may be pruned at once without a confirmation.
    #[must_use]
    pub fn prune_bound(&self) -> PruneLimit {
        let minimum = usize::try_from(self.prune_limit_min).unwrap_or(usize::MAX);
        match self.prune_limit {
            PruneLimitSetting::Percent(percent) => PruneLimit { percent, at_least: minimum },
            PruneLimitSetting::Count(count) => {
                PruneLimit { percent: 0, at_least: usize::try_from(count).unwrap_or(usize::MAX).max(minimum) }
            }
        }
    }
}

impl Server {
    /// Certificate and key file, where TLS is on.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}

impl Gateway {
    /// Certificate and key file, where TLS is on.
    #[must_use]
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }
}
