//! From a provider that dies to an alert that fires: the real daemon, scraped by a real Prometheus with the rules that are
//! shipped, and every query of the dashboard put to it.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{
    fake::{Fake, KEY},
    http::{Api, TOKEN, sha256},
    lab::{Daemon, Lab, PATIENCE},
    monitoring::{dashboard, promtool_agrees, queries, shipped},
};

/// Clearly no real key.
const CALLER: &str = "pd_fake-caller-key-for-tests-0001";

/// A caller of the daemon's gateway.
struct Asking(Api);

impl Asking {
    /// Waits until the gateway knows the caller.
    async fn start(daemon: &mut Daemon) -> Self {
        daemon.wait_for_log("the gateway listens").await;
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        let address = line["address"].as_str().unwrap().to_owned();
        let api = Api { address, token: Some(CALLER.to_owned()) };
        let started = Instant::now();
        while api.get("/v1/models").await.status != 200 {
            assert!(started.elapsed() < PATIENCE, "the gateway does not know the caller:\n{}", daemon.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Self(api)
    }

    /// One request, plain or as a stream.
    async fn ask(&mut self, stream: bool) {
        let body = serde_json::json!({ "model": "gamma/model-a", "stream": stream,
            "messages": [{ "role": "user", "content": "Hello" }] });
        self.0.post("/v1/chat/completions", &body).await.expect(200);
    }
}

/// A Prometheus of its own; killed by its own handle whatever happens.
struct Prometheus {
    child: Child,
    address: SocketAddr,
    log: std::path::PathBuf,
}

impl Prometheus {
    /// Scrapes and evaluates every second. The rules are those that are shipped, their `for` included; only how often
    /// they are evaluated is another.
    fn start(dir: &Path, daemon: &str) -> Self {
        let rules = fs::read_to_string(shipped("alerts.yml")).unwrap();
        fs::write(dir.join("alerts.yml"), rules.replace("interval: 15s", "interval: 1s")).unwrap();
        let config = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\nrule_files: [alerts.yml]\n\
             scrape_configs:\n  - job_name: providerd\n    static_configs: [{{ targets: [\"{daemon}\"] }}]\n"
        );
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = dir.join("prometheus.log");
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("tsdb").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .expect("these tests need prometheus (scripts/setup test)");
        Self { child, address, log }
    }

    /// `data` of an answer of its API; `None` while it does not answer.
    async fn get(&self, path: &str) -> Option<Value> {
        let mut stream = tokio::net::TcpStream::connect(self.address).await.ok()?;
        // 1.0, so that the body comes in one piece.
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let body: Value = serde_json::from_str(text.split_once("\r\n\r\n")?.1).ok()?;
        assert_eq!(body["status"], "success", "{path}: {body}");
        Some(body["data"].clone())
    }

    /// What a query yields now.
    async fn ask(&self, query: &str) -> Vec<Value> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let data = self.get(&format!("/api/v1/query?query={encoded}")).await;
        data.and_then(|data| data["result"].as_array().cloned()).unwrap_or_default()
    }

    /// Names and providers of the alerts that fire.
    async fn firing(&self) -> Vec<String> {
        let data = self.get("/api/v1/alerts").await.unwrap_or_default();
        let alerts = data["alerts"].as_array().cloned().unwrap_or_default();
        let firing = alerts.iter().filter(|alert| alert["state"] == "firing");
        let word =
            |alert: &Value, label: &str| alert["labels"][label].as_str().unwrap_or_default().to_owned();
        firing.map(|alert| format!("{} {}", word(alert, "alertname"), word(alert, "provider"))).collect()
    }

    async fn until_fires(&self, alert: &str, within: Duration) -> Duration {
        let started = Instant::now();
        loop {
            let firing = self.firing().await;
            if firing.iter().any(|it| it == alert) {
                return started.elapsed();
            }
            assert!(started.elapsed() < within, "{alert} does not fire; these do: {firing:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A provider that speaks TLS with a certificate of `names`, which ends after `days`; its address and the certificate.
async fn tls_provider(days: i64) -> (SocketAddr, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    let end = chrono::Utc::now() + chrono::TimeDelta::days(days);
    let (year, month, day) = {
        use chrono::Datelike as _;
        (end.year(), u8::try_from(end.month()).unwrap(), u8::try_from(end.day()).unwrap())
    };
    leaf.not_after = rcgen::date_time_ymd(year, month, day);
    let leaf = leaf.signed_by(&key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let body = "{\"object\":\"list\",\"data\":[{\"id\":\"model-a\"}]}";
            let text = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.write_all(text.as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (address, pem)
}

/// Makes the manifests a commit, so that there is a revision to show.
fn commit(dir: &Path) {
    for args in [
        &["init", "-q"] as &[&str],
        &["add", "-A"],
        &["-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-qm", "providers"],
    ] {
        let done = Command::new("git").args(args).current_dir(dir).env("HOME", dir).status().unwrap();
        assert!(done.success(), "git {args:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_provider_and_a_revoked_key_alert_and_the_dashboard_shows_everything() {
    let lab = Lab::new().await;
    // One that will be killed: its sockets go with its runtime.
    let doomed = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let alpha = doomed.spawn(Fake::start()).await.unwrap();
    let (beta, gamma) = (Fake::start().await, Fake::start().await);
    let (delta, certificate) = tls_provider(400).await;
    let reference = "{ env = \"FAKE_KEY\" }";
    for (name, fake) in [("alpha", &alpha), ("beta", &beta), ("gamma", &gamma)] {
        lab.write(&format!("{name}.toml"), &fake.manifest(name, reference, ""));
    }
    lab.write(
        "delta.toml",
        &format!("[providers.delta]\ntype = \"vllm\"\nbase_url = \"https://{delta}/v1\"\n"),
    );
    // A gateway in front of one that stays well.
    lab.write(
        "gateway.toml",
        &format!(
            "[[routes]]\nmodels = \"gamma/*\"\npower_level = \"eco\"\nuser_tier = \"all\"\n\n\
             [consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\nbudgets = [{{ usd = 5, per = \"day\" }}]\n",
            sha256(CALLER)
        ),
    );
    commit(&lab.manifests());
    let authority = lab.dir.path().join("ca.pem");
    fs::write(&authority, certificate).unwrap();
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
        command.env("FAKE_KEY", KEY);
        command.env("PROVIDERD_EGRESS__CA_FILES", &authority);
        command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0");
        // Cells are counted where there is an admin API.
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", sha256(TOKEN));
    });
    let address = daemon.address().await;
    let prometheus = Prometheus::start(lab.dir.path(), &address);
    let status = |name: &str| format!("SELECT health_status FROM llm_providers WHERE name = '{name}'");
    let key_status =
        |name: &str| format!("SELECT api_key_test_status FROM llm_providers WHERE name = '{name}'");
    for name in ["alpha", "beta", "gamma", "delta"] {
        lab.wait_for(&status(name), "healthy").await;
    }
    for name in ["alpha", "beta", "gamma"] {
        lab.wait_for(&key_status(name), "valid").await;
    }

    let mut gateway = Asking::start(&mut daemon).await;
    gateway.ask(false).await;

    // While all is well nothing fires, and there is something to see by which it is known.
    let started = Instant::now();
    while prometheus.ask("sum(providerd_providers{status=\"healthy\"}) == 4").await.is_empty() {
        let log = fs::read_to_string(&prometheus.log).unwrap();
        assert!(started.elapsed() < PATIENCE, "Prometheus never saw four healthy providers:\n{log}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(prometheus.firing().await, [""; 0]);
    let metrics = daemon.fetch("/metrics").await;
    let said = promtool_agrees(&["check", "metrics"], Some(metrics.split_once("\r\n\r\n").unwrap().1));
    assert_eq!(said, "", "promtool check metrics");

    // The provider dies and the other one's key is revoked.
    doomed.shutdown_background();
    beta.set_keys(&[]);
    lab.wait_for(&status("alpha"), "unhealthy").await;
    let minute = Duration::from_secs(60);
    let took = prometheus.until_fires("ProviderdProviderUnhealthy alpha", minute).await;
    assert!(took < Duration::from_secs(30), "it took {took:?} from the verdict to the alert");
    lab.wait_for(&key_status("beta"), "failed").await;
    let took = prometheus.until_fires("ProviderdKeyFailed beta", minute).await;
    assert!(took < Duration::from_secs(30), "it took {took:?} from the verdict to the alert");
    assert_eq!(lab.value(&status("beta")).await, "healthy", "a refused key is no dead provider");
    let others: Vec<_> = prometheus.firing().await.into_iter().filter(|it| !it.ends_with(['a'])).collect();
    assert_eq!(others, [""; 0], "nothing else fires");

    // Each query of the dashboard has something to show.
    let mut missing = queries(&dashboard());
    let started = Instant::now();
    while !missing.is_empty() {
        gateway.ask(true).await;
        let mut still = Vec::new();
        for query in missing {
            if prometheus.ask(&query.resolved("10s")).await.is_empty() {
                still.push(query);
            }
        }
        missing = still;
        assert!(missing.is_empty() || started.elapsed() < PATIENCE, "these show nothing: {missing:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(daemon.stop(), 0);
}
