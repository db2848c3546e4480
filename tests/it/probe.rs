//! The prober against servers that misbehave at every phase, over real sockets on loopback.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use secrecy::SecretString;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
};
use url::Url;

use net::{
    NetConfig, PhaseLimits, ProbeError, Resolve, certificates_from_pem,
    egress::EgressPolicy,
    probe::{HealthCheck, ListFailure, ProbeReply, Prober},
};
use provider::{
    CheckOutcome, Controls, Failure, KeyVerdict, Method, ProviderType as P, Request, Value, parse_base,
};

const KEY: &str = "sk-fake-key-for-tests-0123456789abcdef";
const LIMITS: PhaseLimits = PhaseLimits {
    dns: Duration::from_millis(300),
    connect: Duration::from_millis(400),
    total: Duration::from_millis(800),
};
/// Far above the limits, far below "for ever".
const PATIENCE: Duration = Duration::from_secs(5);

fn prober() -> Prober {
    Prober::new(NetConfig::default()).unwrap()
}

fn request(url: &str) -> Request {
    Request {
        method: Method::Get,
        url: Url::parse(url).unwrap(),
        headers: vec![("authorization", Value::Secret(SecretString::from(format!("Bearer {KEY}"))))],
        body: None,
        max_body: 256 * 1024,
    }
}

/// A server that treats each connection as told, until the test ends.
async fn serve<F, Fut>(each: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// The request's head and as much of the body as came with it.
async fn heard(stream: &mut TcpStream) -> String {
    let mut said = Vec::new();
    let mut part = [0; 4096];
    while !said.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => break,
            Ok(count) => said.extend_from_slice(&part[..count]),
        }
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn http(status: u16, body: &str) -> String {
    format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn hang() {
    std::future::pending::<()>().await;
}

async fn send(url: &str) -> Result<ProbeReply, ProbeError> {
    let began = Instant::now();
    let answer = prober().send(&request(url), LIMITS).await;
    assert!(began.elapsed() < PATIENCE, "took {:?}", began.elapsed());
    answer
}

fn failure(answer: Result<ProbeReply, ProbeError>) -> Failure {
    match answer {
        Err(ProbeError::Failed { failure, reason }) => {
            assert!(!reason.contains(KEY), "{reason}");
            failure
        }
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn a_proper_answer_is_measured() {
    let address = serve(|mut stream| async move {
        let said = heard(&mut stream).await;
        let ok = said.starts_with("GET /v1/models?x=1 HTTP/1.1\r\n")
            && said.contains(&format!("authorization: Bearer {KEY}\r\n"))
            && said.contains("host: 127.0.0.1:")
            && said.contains("accept-encoding: identity\r\n");
        stream.write_all(http(if ok { 200 } else { 400 }, "{\"data\":[]}").as_bytes()).await.unwrap();
    })
    .await;
    let answer = send(&format!("http://{address}/v1/models?x=1")).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, b"{\"data\":[]}".as_slice()));
    let phases = answer.phases;
    assert!(phases.total >= phases.dns + phases.connect + phases.first_byte + phases.body);
    assert!(phases.first_byte > Duration::ZERO && phases.tls == Duration::ZERO);
}

#[tokio::test]
async fn servers_that_hang_are_left() {
    let silent = serve(|stream| async move {
        let _keep = stream;
        hang().await;
    })
    .await;
    assert_eq!(failure(send(&format!("http://{silent}/")).await), Failure::Timeout);
    assert_eq!(failure(send(&format!("https://{silent}/")).await), Failure::Timeout);
    let half = serve(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        hang().await;
    })
    .await;
    assert_eq!(failure(send(&format!("http://{half}/")).await), Failure::Timeout);
    // A full backlog: the connection is never taken up.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut filling = Vec::new();
    for _ in 0..8 {
        filling.push(tokio::time::timeout(Duration::from_millis(50), TcpStream::connect(address)).await);
    }
    assert_eq!(failure(send(&format!("http://{address}/")).await), Failure::Timeout);
}

#[tokio::test]
async fn servers_that_drip_are_left() {
    for head in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"] {
        let address = serve(move |mut stream| async move {
            heard(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        let found = failure(send(&format!("http://{address}/")).await);
        assert!(matches!(found, Failure::Timeout | Failure::Body), "{head:?} {found:?}");
    }
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    let endless = |head: &'static str, part: &'static [u8]| {
        serve(move |mut stream| async move {
            heard(&mut stream).await;
            let _ = stream.write_all(head.as_bytes()).await;
            let part = part.repeat(4096);
            while stream.write_all(&part).await.is_ok() {}
        })
    };
    for head in ["HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
        let address = endless(head, b"{\"data\":[").await;
        let answer = send(&format!("http://{address}/")).await.unwrap();
        assert!(answer.truncated);
        assert_eq!(answer.body.len(), 256 * 1024);
    }
    let chunked =
        endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"8\r\n01234567\r\n").await;
    assert!(send(&format!("http://{chunked}/")).await.unwrap().truncated);
    let headers = endless("HTTP/1.1 200 OK\r\n", b"X-Filler: yes\r\n").await;
    assert_eq!(failure(send(&format!("http://{headers}/")).await), Failure::Body);
    let line = endless("HTTP/1.1 200 OK\r\nX-Long: ", b"yyyyyyyy").await;
    assert_eq!(failure(send(&format!("http://{line}/")).await), Failure::Body);
    let informed = endless("", b"HTTP/1.1 100 Continue\r\n\r\n").await;
    failure(send(&format!("http://{informed}/")).await);
}

#[tokio::test]
async fn garbage_and_broken_lines_are_failures() {
    let cases: &[(&[u8], &[Failure])] = &[
        (b"", &[Failure::Connect]),
        (b"\0\0\0\0\0\0\0\0\r\n\r\n", &[Failure::Body]),
        (b"SSH-2.0-OpenSSH_9\r\n", &[Failure::Body]),
        (b"HTTP/1.1 200 OK\r\nBad\0Name: x\r\n\r\n", &[Failure::Body]),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", &[Failure::Connect, Failure::Body]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", &[Failure::Body, Failure::Connect]),
        (b"HTTP/1.1 99999 Huge\r\n\r\n", &[Failure::Body]),
    ];
    for (bytes, expected) in cases {
        let bytes: &'static [u8] = bytes.to_vec().leak();
        let address = serve(move |mut stream| async move {
            heard(&mut stream).await;
            let _ = stream.write_all(bytes).await;
        })
        .await;
        let found = failure(send(&format!("http://{address}/")).await);
        assert!(expected.contains(&found), "{} {found:?}", String::from_utf8_lossy(bytes));
    }
    let reset = serve(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nx").await;
        let _ = stream.set_zero_linger();
    })
    .await;
    assert_eq!(failure(send(&format!("http://{reset}/")).await), Failure::Connect);
    // Nobody listens.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(failure(send(&format!("http://{gone}/")).await), Failure::Connect);
    // NULs in a body are bytes like others.
    let nuls = serve(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\0\0\0\0").await;
    })
    .await;
    assert_eq!(send(&format!("http://{nuls}/")).await.unwrap().body, [0; 4]);
}

#[tokio::test]
async fn a_redirect_does_not_carry_the_key_on() {
    let heard_there = Arc::new(Mutex::new(0));
    let count = heard_there.clone();
    let target = serve(move |_| {
        *count.lock().unwrap() += 1;
        async {}
    })
    .await;
    for status in [301, 302, 303, 307, 308] {
        let address = serve(move |mut stream| async move {
            heard(&mut stream).await;
            let head =
                format!("HTTP/1.1 {status} X\r\nLocation: http://{target}/\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
        })
        .await;
        assert_eq!(send(&format!("http://{address}/")).await.unwrap().status, status);
        let base = parse_base(P::Custom, Some(&format!("http://{address}/v1"))).unwrap();
        let tested = prober().test_key(P::Custom, &base, Some(KEY), Controls::default(), LIMITS).await;
        assert!(matches!(tested.report.verdict, KeyVerdict::Inconclusive { .. }), "{tested:?}");
        assert!(matches!(
            check(P::Custom, address, Some(KEY)).await,
            CheckOutcome::Hard { failure: Failure::Status, .. }
        ));
    }
    assert_eq!(*heard_there.lock().unwrap(), 0);
}

async fn check(kind: P, address: SocketAddr, key: Option<&str>) -> CheckOutcome {
    let base = parse_base(kind, Some(&format!("http://{address}/v1"))).unwrap();
    let slow_after = Duration::from_millis(300);
    let check =
        HealthCheck { kind, base: &base, key, path: None, expect_status: None, slow_after, limits: LIMITS };
    prober().check(check).await.outcome
}

#[tokio::test]
async fn one_that_hangs_delays_nobody_else() {
    let silent = serve(|stream| async move {
        let _keep = stream;
        hang().await;
    })
    .await;
    let good = serve(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(http(200, "{\"data\":[]}").as_bytes()).await;
    })
    .await;
    let prober = prober();
    let slow = request(&format!("http://{silent}/"));
    let quick = request(&format!("http://{good}/"));
    let hanging = futures_util::future::join_all((0..50).map(|_| prober.send(&slow, LIMITS)));
    let answered = async {
        let began = Instant::now();
        prober.send(&quick, LIMITS).await.unwrap();
        began.elapsed()
    };
    let (hanging, answered) = tokio::join!(hanging, answered);
    assert!(hanging.iter().all(Result::is_err));
    assert!(answered < Duration::from_millis(600), "{answered:?}");
}

#[tokio::test]
async fn checks_read_what_servers_say() {
    let says = |status: u16, body: &'static str| {
        serve(move |mut stream| async move {
            heard(&mut stream).await;
            let _ = stream.write_all(http(status, body).as_bytes()).await;
        })
    };
    for (status, body, expected) in [
        (200, r#"{"data":[]}"#, "ok"),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-fake-key-for-tests-0123456789abcdef"}}"#,
            "auth",
        ),
        (429, "{}", "soft"),
        (503, "{}", "hard"),
        (200, "<html>", "hard"),
    ] {
        let outcome = check(P::OpenAi, says(status, body).await, Some(KEY)).await;
        assert_eq!(outcome.word(), expected, "{status} {outcome:?}");
        assert!(!outcome.reason().contains("0123456789"), "{outcome:?}");
    }
    let slow = serve(|mut stream| async move {
        heard(&mut stream).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        let _ = stream.write_all(http(200, "{\"data\":[]}").as_bytes()).await;
    })
    .await;
    assert_eq!(check(P::OpenAi, slow, Some(KEY)).await, CheckOutcome::Slow);
}

/// A provider that guards its list and echoes keys.
async fn provider() -> SocketAddr {
    serve(|mut stream| async move {
        let said = heard(&mut stream).await;
        let real = said.contains(&format!("Bearer {KEY}\r\n"));
        let key = said.lines().find_map(|line| line.strip_prefix("authorization: Bearer ")).unwrap_or("none");
        let answer = match real {
            true => http(200, r#"{"data":[{"id":"m1"},{"id":"m2"}]}"#),
            false => {
                http(401, &format!(r#"{{"error":{{"code":"invalid_api_key","message":"bad key {key}"}}}}"#))
            }
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

#[tokio::test]
async fn keys_are_proven_and_lists_fetched() {
    let base = parse_base(P::OpenAi, Some(&format!("http://{}/v1", provider().await))).unwrap();
    let prober = prober();
    let tested = prober.test_key(P::OpenAi, &base, Some(KEY), Controls::default(), LIMITS).await;
    assert_eq!(tested.report.verdict, KeyVerdict::Valid);
    let wrong = "sk-another-fake-key-9876543210fedcba";
    let tested = prober.test_key(P::OpenAi, &base, Some(wrong), tested.controls, LIMITS).await;
    assert!(matches!(tested.report.verdict, KeyVerdict::Invalid { .. }));
    assert!(!tested.report.verdict.reason().contains("9876543210"), "{tested:?}");
    let models = prober.models(P::OpenAi, &base, Some(KEY), LIMITS).await.unwrap();
    assert_eq!(models.models.len(), 2);
    let refused = prober.models(P::OpenAi, &base, Some(wrong), LIMITS).await.unwrap_err();
    assert!(
        matches!(refused, ListFailure::List(_)) && !refused.to_string().contains("9876543210"),
        "{refused}"
    );
}

// ---------------------------------------------------------------- names and addresses

enum Names {
    Hang,
    Fail(&'static str),
    Os(i32),
    Are(Vec<IpAddr>),
}

impl Resolve for Names {
    fn resolve(&self, _: &str) -> std::pin::Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        match self {
            Self::Hang => Box::pin(std::future::pending()),
            Self::Fail(text) => Box::pin(std::future::ready(Err(io::Error::other(*text)))),
            Self::Os(code) => Box::pin(std::future::ready(Err(io::Error::from_raw_os_error(*code)))),
            Self::Are(found) => Box::pin(std::future::ready(Ok(found.clone()))),
        }
    }
}

async fn named(names: Names, url: &str, egress: EgressPolicy) -> Result<ProbeReply, ProbeError> {
    let config = NetConfig { resolver: Arc::new(names), egress, ..NetConfig::default() };
    let began = Instant::now();
    let answer = Prober::new(config).unwrap().send(&request(url), LIMITS).await;
    assert!(began.elapsed() < PATIENCE);
    answer
}

#[tokio::test]
async fn resolvers_fail_for_them_or_for_us() {
    let open = EgressPolicy::default();
    let url = "http://provider.example/";
    assert_eq!(failure(named(Names::Hang, url, open).await), Failure::Dns);
    let unknown = Names::Fail("failed to lookup address information: Name or service not known");
    assert_eq!(failure(named(unknown, url, open).await), Failure::Dns);
    assert_eq!(failure(named(Names::Are(vec![]), url, open).await), Failure::Dns);
    for names in [
        Names::Fail("failed to lookup address information: Temporary failure in name resolution"),
        Names::Os(nix::libc::EMFILE),
        Names::Os(nix::libc::ENFILE),
    ] {
        let answer = named(names, url, open).await;
        assert!(matches!(answer, Err(ProbeError::Local { .. })), "{answer:?}");
    }
}

#[tokio::test]
async fn addresses_are_judged_after_resolving() {
    let open = EgressPolicy::default();
    let strict = EgressPolicy { allow_private: false, allow_loopback: false };
    let address = provider().await;
    let port = address.port();
    let url = format!("http://provider.example:{port}/");
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for bad in ["169.254.169.254", "::ffff:169.254.169.254", "fd00:ec2::254", "100.100.100.200", "fe80::1"] {
        assert_eq!(failure(named(Names::Are(vec![ip(bad)]), &url, open).await), Failure::Egress, "{bad}");
    }
    assert_eq!(failure(named(Names::Are(vec![ip("127.0.0.1")]), &url, strict).await), Failure::Egress);
    // What is allowed is used; what is not is left alone.
    let mixed = Names::Are(vec![ip("169.254.169.254"), ip("127.0.0.1")]);
    assert_eq!(named(mixed, &url, open).await.unwrap().status, 200);
    // A dead first address does not spoil the second.
    let second = Names::Are(vec![ip("127.0.0.2"), ip("127.0.0.1")]);
    assert_eq!(named(second, &url, open).await.unwrap().status, 200);
    // Literals meet the policy in every notation.
    for literal in [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "[::ffff:a9fe:a9fe]",
        "[fe80::1]",
    ] {
        assert_eq!(failure(send(&format!("http://{literal}/latest")).await), Failure::Egress, "{literal}");
    }
    for literal in ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"] {
        assert_eq!(
            failure(named(Names::Hang, &format!("http://{literal}:{port}/"), strict).await),
            Failure::Egress
        );
    }
}

// ---------------------------------------------------------------- TLS

struct Certificates {
    ca_pem: String,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
}

fn certificates(name: &str, expired: bool) -> Certificates {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2020, 1, 1);
    leaf.not_after =
        if expired { rcgen::date_time_ymd(2021, 1, 1) } else { rcgen::date_time_ymd(2049, 6, 1) };
    let leaf = leaf.signed_by(&key, &issuer).unwrap();
    Certificates {
        ca_pem,
        chain: vec![leaf.der().clone()],
        key: rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
    }
}

async fn tls_server(certificates: &Certificates) -> SocketAddr {
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates.chain.clone(), certificates.key.clone_key())
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut part = [0; 4096];
            let _ = stream.read(&mut part).await;
            let _ = stream.write_all(http(200, "{\"data\":[]}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

#[tokio::test]
async fn certificates_are_verified() {
    let trusting = |certificates: &Certificates| {
        let extra_ca = certificates_from_pem(certificates.ca_pem.as_bytes()).unwrap();
        Prober::new(NetConfig { extra_ca, ..NetConfig::default() }).unwrap()
    };
    let good = certificates("127.0.0.1", false);
    let address = tls_server(&good).await;
    let url = format!("https://{address}/");
    let answer = trusting(&good).send(&request(&url), LIMITS).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.tls_not_after.unwrap().to_rfc3339(), "2049-06-01T00:00:00+00:00");
    assert!(answer.phases.tls > Duration::ZERO);
    // Without its CA, under another name, expired.
    assert_eq!(failure(send(&url).await), Failure::Tls);
    for bad in [certificates("other.example", false), certificates("127.0.0.1", true)] {
        let address = tls_server(&bad).await;
        let answer = trusting(&bad).send(&request(&format!("https://{address}/")), LIMITS).await;
        assert_eq!(failure(answer), Failure::Tls);
    }
    // A server that speaks plain HTTP, or nonsense, where TLS is expected.
    let plain = provider().await;
    assert!(matches!(failure(send(&format!("https://{plain}/")).await), Failure::Tls | Failure::Timeout));
    let nonsense = serve(|mut stream| async move {
        let _ = stream.write_all(&[0; 512]).await;
        hang().await;
    })
    .await;
    assert_eq!(failure(send(&format!("https://{nonsense}/")).await), Failure::Tls);
    for bad in ["", "no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        assert!(certificates_from_pem(bad.as_bytes()).is_err(), "{bad}");
    }
}

// ---------------------------------------------------------------- a proxy, when one is set

#[tokio::test]
async fn a_proxy_is_used_and_blamed_on_us() {
    let through = |proxy: String| {
        let proxy = Some(SecretString::from(proxy));
        Prober::new(NetConfig { proxy, ..NetConfig::default() }).unwrap()
    };
    let target = provider().await;
    let tunnel = serve(move |mut stream| async move {
        let said = heard(&mut stream).await;
        assert!(!said.contains(KEY), "the key is for the provider alone");
        if !said.contains("Proxy-Authorization: Basic dTpwQA==\r\n") {
            let _ = stream.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
            return;
        }
        let mut onward = TcpStream::connect(target).await.unwrap();
        let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
        let _ = tokio::io::copy_bidirectional(&mut stream, &mut onward).await;
    })
    .await;
    let url = format!("http://provider.example:{}/v1/models", target.port());
    let answer = through(format!("http://u:p%40@{tunnel}")).send(&request(&url), LIMITS).await.unwrap();
    assert_eq!(answer.status, 200);
    let refused = through(format!("http://{tunnel}")).send(&request(&url), LIMITS).await;
    assert!(matches!(refused, Err(ProbeError::Local { .. })), "{refused:?}");
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let refused = through(format!("http://{gone}")).send(&request(&url), LIMITS).await;
    assert!(matches!(refused, Err(ProbeError::Local { .. })), "{refused:?}");
    let failing = serve(|mut stream| async move {
        heard(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
    })
    .await;
    assert_eq!(
        failure(through(format!("http://{failing}")).send(&request(&url), LIMITS).await),
        Failure::Connect
    );
    // The policy holds for literals behind a proxy too.
    let literal =
        through(format!("http://u:p%40@{tunnel}")).send(&request("http://169.254.169.254/"), LIMITS).await;
    assert_eq!(failure(literal), Failure::Egress);
    // So it does for names: those of metadata services, and those that lead to one as far as this machine can see.
    let judging = |names| {
        let proxy = Some(SecretString::from(format!("http://u:p%40@{tunnel}")));
        let egress = EgressPolicy { allow_private: false, ..EgressPolicy::default() };
        Prober::new(NetConfig { proxy, egress, resolver: Arc::new(names), ..NetConfig::default() }).unwrap()
    };
    let are = |address: &str| Names::Are(vec![address.parse().unwrap()]);
    for (host, names) in [
        ("metadata.google.internal", Names::Fail("no such name")),
        ("METADATA.google.internal.", Names::Hang),
        ("instance-data", are("127.0.0.1")),
        ("innocent.example", are("169.254.169.254")),
        ("inside.example", are("10.0.0.1")),
    ] {
        let url = format!("http://{host}/v1/models");
        assert_eq!(failure(judging(names).send(&request(&url), LIMITS).await), Failure::Egress, "{host}");
    }
    let elsewhere = judging(Names::Fail("no such name")).send(&request(&url), LIMITS).await.unwrap();
    assert_eq!(elsewhere.status, 200, "a name that only the proxy can resolve is the proxy's");
}
