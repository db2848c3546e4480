//! Settings: layers, their order, and every mistake at once.

use std::{fs, path::Path, time::Duration};

use secrecy::ExposeSecret;

use catalog::policy::{DriftPolicy, RouteGuard};
use provider::ProviderType;
use providerd::{
    checks::export,
    config::{LogFormat, PruneLimitSetting, Settings, reference},
    metrics::Metrics,
};

use crate::support::monitoring::gateway_series;

/// Loads `toml` as the settings file, with the environment `env`.
fn load(toml: &str, env: &[(&str, &str)]) -> Result<Settings, Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    fs::write(&file, toml).unwrap();
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Settings::load(Some(&file), env).map_err(|errors| {
        let here = format!("{}/", dir.path().display());
        errors.iter().map(|error| error.to_string().replace(&here, "")).collect()
    })
}

fn root(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn the_defaults_are_as_documented() {
    let settings = Settings::defaults().unwrap();
    assert_eq!(settings.manifests.path, Path::new("providers.d"));
    assert_eq!(settings.manifests.settle, Duration::from_millis(1500));
    assert!(settings.database.url.is_none());
    assert_eq!(settings.database.schema, "public");
    assert_eq!(settings.reconcile.drift, DriftPolicy::Correct);
    assert_eq!(settings.reconcile.prune_limit, PruneLimitSetting::Percent(20));
    assert_eq!(settings.reconcile.route_guard, RouteGuard::Hold);
    assert_eq!(settings.server.listen.to_string(), "127.0.0.1:7411");
    assert_eq!(settings.server.tls(), None);
    assert_eq!(settings.log.format, LogFormat::Auto);
    assert_eq!(settings.retention.events, Duration::from_secs(365 * 86_400));
}

#[test]
fn the_environment_is_stronger_than_the_file() {
    let toml = "[health]\ninterval = \"10s\"\ntimeout = \"8s\"\n[server.tls]\ncert = \"/a\"\nkey = \"/b\"\n";
    let settings = load(
        toml,
        &[
            ("PROVIDERD_HEALTH__INTERVAL", "1m"),
            ("PROVIDERD_HEALTH__TIMEOUT", ""),
            ("PROVIDERD_SERVER__TLS__CERT", "/c"),
            ("PROVIDERD_SERVER__PLAIN_HTTP", "true"),
            ("PROVIDERD_RECONCILE__PRUNE_LIMIT", "7"),
            ("PROVIDERD_EGRESS__CA_FILES", "/x.pem, /y.pem"),
            ("HOME", "/root"),
        ],
    )
    .unwrap();
    assert_eq!(settings.health.interval, Duration::from_secs(60));
    assert_eq!(settings.health.timeout, Duration::from_secs(8), "an empty variable counts as unset");
    assert_eq!(settings.server.tls(), Some((Path::new("/c"), Path::new("/b"))));
    assert!(settings.server.plain_http);
    assert_eq!(settings.reconcile.prune_limit, PruneLimitSetting::Count(7));
    assert_eq!(settings.egress.ca_files, [Path::new("/x.pem"), Path::new("/y.pem")]);
}

#[test]
fn the_database_url_has_an_order() {
    let check = |env: &[(&str, &str)], expected: &str| {
        let settings = load("[database]\nurl = \"postgres://file/x\"\n", env).unwrap();
        assert_eq!(settings.database.url.unwrap().expose_secret(), expected);
    };
    check(&[], "postgres://file/x");
    check(&[("PROVIDERD_DATABASE__URL", "postgres://env/x")], "postgres://env/x");
    check(
        &[("PROVIDERD_DATABASE__URL", "postgres://env/x"), ("DATABASE_URL", "postgres://url/x")],
        "postgres://url/x",
    );
    check(&[("DATABASE_URL", "")], "postgres://file/x");

    let mut settings = load("", &[("DATABASE_URL", "postgres://url/x")]).unwrap();
    settings.set_database_url("postgres://option/x");
    assert_eq!(settings.database.url.unwrap().expose_secret(), "postgres://option/x");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let toml = "\
[helth]
x = 1

[health]
intervall = \"30s\"
timeout = 10
interval = \"10 parsecs\"

[reconcile]
drift = \"corect\"
prune_limit = \"120%\"

[server]
listen = \"localhost\"
prune_limit_min = 2
tls = true
";
    let errors =
        load(toml, &[("PROVIDERD_HEALTH__TIMEUOT", "1s"), ("PROVIDERD_SERVER__PLAIN_HTTP", "maybe")])
            .unwrap_err();
    assert_eq!(
        errors,
        [
            "p.toml:5:1: unknown key health.intervall\n  hint: did you mean health.interval?",
            "p.toml:1:2: unknown key helth\n  hint: did you mean health?",
            "p.toml:15:1: unknown key server.prune_limit_min\n  hint: did you mean reconcile.prune_limit_min?",
            "environment variable PROVIDERD_HEALTH__TIMEUOT: sets no known key\n  \
             hint: did you mean PROVIDERD_HEALTH__TIMEOUT?",
            "p.toml:16:1: server.tls must be a table\n  hint: write [server.tls] and keys below it",
            "p.toml:10:1: reconcile.drift must be \"correct\" or \"report\", not \"corect\" \
             (did you mean \"correct\"?)",
            "p.toml:11:1: reconcile.prune_limit must be a percentage such as \"20%\" or a number of providers \
             such as 5",
            "p.toml:7:1: health.interval is wrong: a duration is a whole number and a unit, such as \"30s\" or \"1500ms\"",
            "p.toml:6:1: health.timeout must be a duration with its unit, such as \"10s\"",
            "p.toml:14:1: server.listen must be an IP address and a port, such as \"127.0.0.1:7411\" or \
             \"[::]:7411\", not \"localhost\"",
            "environment variable PROVIDERD_SERVER__PLAIN_HTTP: server.plain_http must be a boolean, not a \
             string; write true or false",
        ]
    );
}

#[test]
fn rules_between_keys_hold() {
    let check = |toml: &str, expected: &str| {
        let errors = load(toml, &[]).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with(expected), "{errors:?}");
    };
    check(
        "[server]\nlisten = \"0.0.0.0:7411\"",
        "p.toml:2:1: server.listen goes beyond loopback without TLS",
    );
    check("[server]\nlisten = \"[::]:7411\"", "p.toml:2:1: server.listen goes beyond");
    check("[server.tls]\ncert = \"/a\"", "server.tls.key is missing");
    check("[health]\ninterval = \"999ms\"", "p.toml:2:1: health.interval must be 1s or more");
    check("[health]\ntimeout = \"2s\"", "health.slow_after must be shorter than health.timeout");
    check("[database]\nschema = \"a; drop\"", "p.toml:2:1: database.schema must be a plain");
    check("[database]\nschema = \"providerd\"", "p.toml:2:1: database.schema is reserved");
    check("[database]\nurl = \"mysql://h/d\"", "p.toml:2:1: database.url must be a URL that begins");
    check("[egress]\nproxy = \"proxy:3128\"", "p.toml:2:1: egress.proxy must be");
    check("[health]\ncanary = \"10.0.0.1\"", "p.toml:2:1: health.canary must be");
    check("[health]\ncanary = \"ftp://x\"", "p.toml:2:1: health.canary must be");
    check("[database]\nmax_connections = 0", "p.toml:2:1: database.max_connections must be from 1");

    let fine = |toml: &str| load(toml, &[]).map(|_| ()).unwrap();
    fine("[server]\nlisten = \"[::1]:0\"");
    fine("[database]\nurl = \"postgres:///d?host=/run/postgresql\"");
    fine("[health]\ncanary = \"[::1]:53\"");
    fine("[health]\ncanary = \"https://canary.example.com/ok\"");
    fine("[server]\nlisten = \"[::ffff:127.0.0.1]:1\"");
    fine("[server]\nlisten = \"0.0.0.0:7411\"\nplain_http = true");
    fine("[server]\nlisten = \"0.0.0.0:7411\"\ntls = { cert = \"/a\", key = \"/b\" }");
}

#[test]
fn a_named_file_must_exist() {
    let errors = Settings::load(Some(Path::new("/nonexistent/p.toml")), std::iter::empty()).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert!(errors[0].to_string().starts_with("/nonexistent/p.toml: the settings file cannot be read"));
}

#[test]
fn no_secret_is_printed() {
    // Obviously fake; each appears where a mistake or a Debug could repeat it.
    const SECRET: &str = "not-a-real-secret";
    let url = format!("postgres://u:{SECRET}@h/d");
    let check_error = |toml: &str, env: &[(&str, &str)]| {
        let errors = load(toml, env).unwrap_err().join("\n");
        assert!(!errors.contains(SECRET), "{errors}");
    };
    check_error(&format!("[database]\nurl = \"{url}\nx"), &[]);
    check_error(&format!("[database]\nurl = [\"{url}\"]"), &[]);
    check_error(&format!("[server]\ntoken_sha256 = [\"{SECRET}\"]"), &[]);
    check_error("", &[("PROVIDERD_SERVER__TOKEN_SHA256", SECRET)]);
    check_error("", &[("PROVIDERD_DATABASE__PASSWORD", SECRET)]);
    check_error("", &[("DATABASE_URL", SECRET)]);
    check_error(&format!("[egress]\nproxy = \"u:{SECRET}@p\""), &[]);

    let settings = load(
        &format!("[egress]\nproxy = \"http://u:{SECRET}@p\""),
        &[("DATABASE_URL", &url), ("BYOK_ENCRYPTION_KEY", SECRET)],
    )
    .unwrap();
    assert!(!format!("{settings:?}").contains(SECRET));
    assert_eq!(settings.byok_encryption_key.unwrap().expose_secret(), SECRET);
}

#[test]
fn what_kubernetes_sets_is_no_mistake() {
    let env = [
        ("PROVIDERD_SERVICE_HOST", "10.0.0.1"),
        ("PROVIDERD_SERVICE_PORT", "7411"),
        ("PROVIDERD_PORT", "tcp://10.0.0.1:7411"),
        ("PROVIDERD_PORT_7411_TCP", "tcp://10.0.0.1:7411"),
    ];
    load("", &env).map(|_| ()).unwrap();
    assert!(load("", &[("PROVIDERD_LISTEN", "x")]).is_err());
}

#[test]
fn token_hashes_are_read() {
    let hash = "AB".repeat(32);
    let check = |settings: Settings| assert_eq!(settings.server.token_sha256[0].0, [0xab; 32]);
    check(load(&format!("[server]\ntoken_sha256 = [\"{hash}\"]"), &[]).unwrap());
    check(load("", &[("PROVIDERD_SERVER__TOKEN_SHA256", &hash)]).unwrap());
    // A sign is no hexadecimal digit, though number parsers accept it.
    assert!(load("", &[("PROVIDERD_SERVER__TOKEN_SHA256", &"+a".repeat(32))]).is_err());
}

#[test]
fn the_prune_allowance_has_a_floor() {
    let check = |limit: &str, managed: usize, expected: usize| {
        let settings = load("", &[("PROVIDERD_RECONCILE__PRUNE_LIMIT", limit)]).unwrap();
        let bound = settings.reconcile.prune_bound();
        assert!(!bound.exceeded(expected, managed), "{limit} of {managed}");
        assert!(bound.exceeded(expected + 1, managed), "{limit} of {managed}");
    };
    check("20%", 4, 3);
    check("20%", 15, 3);
    check("20%", 100, 20);
    check("0%", 100, 3);
    check("5", 100, 5);
}

/// Compares a committed file with what the code says; `UPDATE_DOCS=1` writes it instead.
fn is_up_to_date(path: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(root(path), expected).unwrap();
    }
    let held = fs::read_to_string(root(path)).unwrap_or_default();
    assert!(held == expected, "{path} is out of date; run: UPDATE_DOCS=1 scripts/test --test it config::");
}

#[test]
fn the_reference_is_up_to_date() {
    is_up_to_date("docs/SETTINGS.md", &reference::markdown());
}

#[test]
fn the_table_of_metrics_is_up_to_date() {
    let mut rows: Vec<(String, String, String, String)> = Metrics::ALL
        .iter()
        .map(|(name, kind, labels, help)| {
            let kind = if kind.contains("Histogram") {
                "histogram"
            } else if kind.contains("Counter") {
                "counter"
            } else {
                "gauge"
            };
            (name.to_string(), kind.to_owned(), labels.join(", "), help.trim().to_owned())
        })
        .collect();
    rows.extend(export::ALL.iter().map(|(family, labels)| {
        (family.0.to_owned(), "gauge".to_owned(), labels.to_string(), family.1.to_owned())
    }));
    rows.extend(gateway_series());
    rows.sort();
    let mut text = "# Metrics\n\nServed at `/metrics`. Generated from the code and tested against it. Series with the label `provider` \
                    can be turned off\n(`metrics.per_provider`); a daemon shows them for the providers that it checks itself, \
                    so sums over daemons are right.\n\n| name | type | labels | |\n|---|---|---|---|\n"
        .to_owned();
    for (name, kind, labels, help) in rows {
        text += &format!("| `{name}` | {kind} | {labels} | {help} |\n");
    }
    is_up_to_date("docs/METRICS.md", &text);
}

#[test]
fn the_table_of_types_is_up_to_date() {
    let mut text = "# Types of providers\n\nWhat `type` in a manifest means. Made from the code (`crates/provider/src/family/`); \
                    a test keeps it so.\n\nEvery request of a probe or a key test is free of charge and changes nothing at \
                    the provider. *base* is `base_url`;\n*root* is what remains of it without the API's own path, such as \
                    `/v1`. Where `base_url` is not the vendor's own, every key test\nfirst sees a fake key refused; what \
                    cannot be proven stays untested. The dialects are those that callers of the gateway\ncan use \
                    without a translation, and the one that requests are translated into.\n\n\
                    | type | default `base_url` | health probe | key test | dialects |\n|---|---|---|---|---|\n"
        .to_owned();
    for kind in ProviderType::ALL {
        let words: Vec<String> = kind.same_protocol().map(|it| format!("`{it}`")).collect();
        if words.first() == Some(&format!("`{kind}`")) {
            let it = kind.describe();
            let words = words.join(", ");
            text += &format!(
                "| {words} | {} | {} | {} | {} |\n",
                it.base_url, it.probe, it.key_test, it.dialects
            );
        }
    }
    is_up_to_date("docs/TYPES.md", &text);
}

#[test]
fn the_example_is_up_to_date_and_valid() {
    let example = reference::example();
    is_up_to_date("systemd/providerd.toml", &example);
    load(&example, &[]).map(|_| ()).unwrap();

    // With every key uncommented it is valid too, so nobody who removes a # meets a surprise.
    let is_key = |line: &str| line.starts_with('#') && !line.starts_with("# ");
    let all: String = example
        .lines()
        .map(|line| if is_key(line) { &line[1..] } else { line })
        .map(|line| format!("{line}\n"))
        .collect();
    load(&all, &[]).map(|_| ()).unwrap();
}

proptest::proptest! {
    #[test]
    fn no_text_makes_it_panic(toml in "(\\[[a-z.]{0,12}\\]|[a-z_.]{1,12} ?= ?|\"[^\"]{0,8}\"|[0-9é\n\r\t {}\\[\\],'#]){0,30}",
                              name in "PROVIDERD_[A-Z_]{0,20}", value in ".{0,20}") {
        let _ = load(&toml, &[(&name, &value), ("PROVIDERD_EGRESS__CA_FILES", &value)]);
    }
}

/// The settings and variables of the container examples are ones that this version knows.
#[test]
fn the_container_examples_are_accepted() {
    let kubernetes = fs::read_to_string(root("docs/examples/kubernetes/providerd.yaml")).unwrap();
    let inline = kubernetes.split_once("providerd.toml: |\n").expect("settings in the ConfigMap").1;
    let toml: String = inline
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("    "))
        .map(|line| format!("{}\n", line.get(4..).unwrap_or_default()))
        .collect();
    // One line each: `NAME: value` (compose), or `- name: NAME` and `value: …` below it.
    let compose = fs::read_to_string(root("docs/examples/compose/compose.yaml")).unwrap();
    let lines: Vec<&str> = kubernetes.lines().chain(compose.lines()).map(str::trim).collect();
    let mut variables = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let found = match line.strip_prefix("- name: ") {
            Some(name) => (name, lines.get(at + 1).and_then(|next| next.strip_prefix("value: "))),
            None => line.split_once(": ").map_or((*line, None), |(name, value)| (name, Some(value))),
        };
        if let (name, Some(value)) = found
            && name.starts_with("PROVIDERD_")
        {
            variables.push((name, value.trim_matches('"')));
        }
    }
    assert!(variables.len() >= 5, "{variables:?}");
    let settings = load(&toml, &variables).unwrap();
    assert_eq!(settings.gateway.drain, Duration::from_secs(60));
    assert!(settings.server.plain_http && settings.gateway.listen.is_some());
}
