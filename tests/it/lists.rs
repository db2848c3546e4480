//! Lists of models of every shape, over real sockets, through the client that discovery uses.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use net::{
    NetConfig, PhaseLimits, ProbeError, Resolve, certificates_from_pem,
    egress::EgressPolicy,
    probe::{ListFailure, Lister},
};
use provider::{Failure, ListError, Models, ProviderType as P, parse_base};

use crate::support::offering::Offering;

const KEY: &str = "fake-key-for-tests-0123456789abcdef";
/// Far above the limits, far below "for ever".
const PATIENCE: Duration = Duration::from_secs(10);
const QUICK: PhaseLimits = PhaseLimits {
    dns: Duration::from_millis(300),
    connect: Duration::from_millis(400),
    total: Duration::from_millis(800),
};

fn lister(config: NetConfig, limits: PhaseLimits) -> Lister {
    Lister::new(config, limits).unwrap()
}

async fn ask(lister: &Lister, kind: P, url: &str) -> Result<Models, ListFailure> {
    let base = parse_base(kind, Some(url)).unwrap();
    let began = Instant::now();
    let list = lister.models(kind, &base, Some(KEY)).await;
    assert!(began.elapsed() < PATIENCE, "took {:?}", began.elapsed());
    if let Err(error) = &list {
        assert!(!format!("{error} {error:?}").contains(KEY), "{error:?}");
    }
    list
}

fn ids(list: Result<Models, ListFailure>) -> Vec<String> {
    list.unwrap().models.into_iter().map(|model| model.id).collect()
}

#[tokio::test]
async fn every_type_is_asked_in_its_way_and_understood() {
    const OPENAI: &str = r#"{"object":"list","data":[{"id":"m"}]}"#;
    const BEARER: &str = "authorization: Bearer ";
    #[rustfmt::skip]
    let rows: &[(P, &str, &str, &str, &str)] = &[
        (P::OpenAi, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Anthropic, "/v1", "/v1/models?limit=1000", "x-api-key: ", r#"{"data":[{"id":"m","display_name":"M"}],"has_more":false}"#),
        (P::Google, "/v1beta", "/v1beta/models?pageSize=1000", "x-goog-api-key: ", r#"{"models":[{"name":"models/m"},{"name":"models/e","supportedGenerationMethods":["embedContent"]}]}"#),
        (P::AzureOpenAi, "/openai/v1", "/openai/models?api-version=2024-10-21", "api-key: ", OPENAI),
        (P::OpenRouter, "/api/v1", "/api/v1/models", BEARER, r#"{"data":[{"id":"m","pricing":{"prompt":"0"}}]}"#),
        (P::OllamaCloud, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Ollama, "", "/api/tags", "", r#"{"models":[{"name":"m","model":"m"}]}"#),
        (P::Vllm, "/v1", "/v1/models", BEARER, r#"{"data":[{"id":"m","max_model_len":1}]}"#),
        (P::LlamaCpp, "", "/v1/models", BEARER, OPENAI),
        (P::Groq, "/openai/v1", "/openai/v1/models", BEARER, OPENAI),
        (P::Together, "/v1", "/v1/models", BEARER, r#"[{"id":"m"}]"#),
        (P::Mistral, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Cohere, "", "/v1/models?endpoint=chat&page_size=1000", BEARER, r#"{"models":[{"name":"m","endpoints":["chat"]}]}"#),
        (P::DeepSeek, "", "/models", BEARER, OPENAI),
        (P::Xai, "/v1", "/v1/language-models", BEARER, r#"{"models":[{"id":"m"}]}"#),
        (P::Fireworks, "/inference/v1", "", BEARER, OPENAI),
        (P::Perplexity, "", "", BEARER, OPENAI),
        (P::Cerebras, "/v1", "", BEARER, OPENAI),
        (P::SambaNova, "/v1", "/v1/models", BEARER, OPENAI),
        (P::NvidiaNim, "/v1", "/v1/models", BEARER, OPENAI),
        (P::HuggingFace, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Replicate, "/v1", "/v1/models", BEARER, r#"{"next":null,"results":[{"owner":"o","name":"m"}]}"#),
        (P::DeepInfra, "/v1/openai", "/v1/openai/models", BEARER, OPENAI),
        (P::Moonshot, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Zhipu, "/api/paas/v4", "", BEARER, OPENAI),
        (P::Qwen, "/compatible-mode/v1", "", BEARER, OPENAI),
        (P::MiniMax, "/v1", "", BEARER, OPENAI),
        (P::LiteLlm, "/v1", "/v1/models", BEARER, OPENAI),
        (P::LmStudio, "/v1", "/v1/models", BEARER, OPENAI),
        (P::OpenAiCompatible, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Custom, "/v1", "/v1/models", BEARER, OPENAI),
        (P::OpenAiUnderscored, "/v1", "/v1/models", BEARER, OPENAI),
        (P::Local, "/v1", "/v1/models", BEARER, OPENAI),
        (P::UnicornCommander, "/v1", "/v1/models", BEARER, OPENAI),
    ];
    let lister = lister(NetConfig::default(), Lister::LIMITS);
    for (kind, base, path, auth, body) in rows {
        let offering = Offering::start().await;
        offering.anywhere(200, "", *body);
        let found = ids(ask(&lister, *kind, &offering.url(base)).await);
        assert_eq!(found, [if *kind == P::Replicate { "o/m" } else { "m" }], "{kind}");
        let heard = offering.heard();
        if !path.is_empty() {
            assert!(heard[0].starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{kind}: {}", heard[0]);
        }
        if !auth.is_empty() {
            assert!(heard[0].contains(&format!("{auth}{KEY}\r\n")), "{kind}: {}", heard[0]);
        }
        assert!(heard[0].contains("accept-encoding: identity\r\n"), "{kind}: {}", heard[0]);
    }
    // All types but the two that have no list, and the one that has two.
    assert_eq!(rows.len() + 3, P::ALL.len());
    let offering = Offering::start().await;
    for kind in [P::Vertex, P::GithubModels] {
        let refused = ask(&lister, kind, &offering.url("")).await.unwrap_err();
        assert!(matches!(refused, ListFailure::List(ListError::Unsupported(_))), "{refused:?}");
    }
    offering.page("/foundation-models", 200, r#"{"modelSummaries":[{"modelId":"m"}]}"#);
    offering.page(
        "/inference-profiles?maxResults=1000",
        200,
        r#"{"inferenceProfileSummaries":[{"inferenceProfileId":"p"}]}"#,
    );
    assert_eq!(ids(ask(&lister, P::Bedrock, &offering.url("")).await), ["m", "p"]);
}

#[tokio::test]
async fn pages_come_over_one_connection() {
    let lister = lister(NetConfig::default(), Lister::LIMITS);
    let check = async |kind, base: &str, pages: &[(&str, &str)], expected: &[&str]| {
        let offering = Offering::start().await;
        for (path, body) in pages {
            offering.page(path, 200, body.replace("HERE", &offering.url("")));
        }
        assert_eq!(ids(ask(&lister, kind, &offering.url(base)).await), expected, "{kind}");
        assert_eq!((offering.heard().len(), offering.connections()), (pages.len(), 1), "{kind}");
    };
    check(
        P::Anthropic,
        "/v1",
        &[
            ("/v1/models?limit=1000", r#"{"data":[{"id":"a"}],"has_more":true,"last_id":"a"}"#),
            ("/v1/models?limit=1000&after_id=a", r#"{"data":[{"id":"b"}],"has_more":false}"#),
        ],
        &["a", "b"],
    )
    .await;
    check(
        P::Google,
        "/v1beta",
        &[
            ("/v1beta/models?pageSize=1000", r#"{"models":[{"name":"models/a"}],"nextPageToken":"t"}"#),
            ("/v1beta/models?pageSize=1000&pageToken=t", r#"{"models":[{"name":"models/b"}]}"#),
        ],
        &["a", "b"],
    )
    .await;
    check(
        P::Replicate,
        "/v1",
        &[
            ("/v1/models", r#"{"next":"HERE/v1/models?cursor=2","results":[{"owner":"o","name":"a"}]}"#),
            ("/v1/models?cursor=2", r#"{"next":null,"results":[{"owner":"o","name":"b"}]}"#),
        ],
        &["o/a", "o/b"],
    )
    .await;
    // Where the next page is somebody else's, the key does not go there.
    check(
        P::Replicate,
        "/v1",
        &[("/v1/models", r#"{"next":"http://127.0.0.2:9/v1/models","results":[{"owner":"o","name":"a"}]}"#)],
        &["o/a"],
    )
    .await;
}

#[tokio::test]
async fn absurd_answers_are_refused() {
    let lister = lister(NetConfig::default(), Lister::LIMITS);
    let offering = Offering::start().await;
    let elsewhere = Offering::start().await;
    elsewhere.offers(&["stolen"]);
    let check = async |expected: &str| {
        let error = ask(&lister, P::OpenAi, &offering.url("/v1")).await.unwrap_err();
        assert!(format!("{error}").contains(expected), "{error}");
    };
    offering.anywhere(302, &format!("Location: {}\r\n", elsewhere.url("/v1/models")), "");
    let _ = ask(&lister, P::OpenAi, &offering.url("/v1")).await.unwrap_err();
    assert!(elsewhere.heard().is_empty(), "a key must not travel");
    offering.anywhere(401, "", format!(r#"{{"error":{{"message":"Incorrect API key provided: {KEY}"}}}}"#));
    check("refused").await;
    offering.anywhere(200, "", vec![b' '; 9 * 1024 * 1024]);
    check("larger than 8388608 bytes").await;
    offering.anywhere(200, "Content-Encoding: gzip\r\n", &b"\x1f\x8b\x08\x00\x00"[..]);
    check("is packed (content-encoding: gzip)").await;
    offering.anywhere(200, "", "\0\0{");
    check("not a list").await;
    // Just below the limit it is read.
    let mut body = br#"{"data":[{"id":"m"}]"#.to_vec();
    body.resize(8 * 1024 * 1024 - 1, b' ');
    body.push(b'}');
    offering.anywhere(200, "", body);
    assert_eq!(ids(ask(&lister, P::OpenAi, &offering.url("/v1")).await), ["m"]);
}

#[tokio::test]
async fn servers_that_hang_drip_or_break_off_are_left() {
    let lister = lister(NetConfig::default(), QUICK);
    let check = async |how: &'static str, expected: Failure| {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.read(&mut [0; 4096]).await;
                    match how {
                        "hang" => {}
                        "close" => return,
                        "garbage" => drop(stream.write_all(b"\0\x01\x02 nonsense\r\n\r\n").await),
                        "head" => drop(stream.write_all(b"HTTP/1.1 200 OK\r\n").await),
                        _ => {
                            let _ = stream
                                .write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                                .await;
                            while stream.write_all(b"1\r\n \r\n").await.is_ok() {
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                        }
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        match ask(&lister, P::OpenAi, &url).await {
            Err(ListFailure::Probe(ProbeError::Failed { failure, .. })) => {
                assert_eq!(failure, expected, "{how}")
            }
            other => panic!("{how}: {other:?}"),
        }
    };
    check("hang", Failure::Timeout).await;
    check("head", Failure::Timeout).await;
    check("drip", Failure::Timeout).await;
    check("close", Failure::Body).await;
    check("garbage", Failure::Body).await;
    // Nobody there.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    match ask(&lister, P::OpenAi, &format!("http://{closed}/v1")).await {
        Err(ListFailure::Probe(ProbeError::Failed { failure: Failure::Connect, .. })) => {}
        other => panic!("{other:?}"),
    }
}

// ---------------------------------------------------------------- names and addresses

/// A resolver that knows one answer.
struct Names(Vec<IpAddr>);

impl Resolve for Names {
    fn resolve(&self, _: &str) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

#[tokio::test]
async fn the_egress_policy_holds_for_names_and_literals() {
    let offering = Offering::start().await;
    offering.offers(&["m"]);
    let port = offering.address.port();
    let private = EgressPolicy { allow_private: false, allow_loopback: false };
    let anything = EgressPolicy::default();
    let check = async |addresses: &[&str], egress, host: &str, expected: bool| {
        let addresses = addresses.iter().map(|it| it.parse().unwrap()).collect();
        let config = NetConfig { egress, resolver: Arc::new(Names(addresses)), ..NetConfig::default() };
        match ask(&lister(config, QUICK), P::OpenAi, &format!("http://{host}:{port}/v1")).await {
            Ok(_) => assert!(expected, "{host} is reached"),
            Err(ListFailure::Probe(ProbeError::Failed { failure: Failure::Egress, .. })) => {
                assert!(!expected, "{host} is refused")
            }
            other => panic!("{host}: {other:?}"),
        }
    };
    check(&["127.0.0.1"], anything, "name.example", true).await;
    // What the policy refuses among several is passed over.
    check(&["169.254.169.254", "127.0.0.1"], anything, "name.example", true).await;
    check(&["169.254.169.254"], anything, "metadata.example", false).await;
    check(&["fd00:ec2::254", "::ffff:169.254.169.254"], anything, "metadata.example", false).await;
    check(&["127.0.0.1"], private, "name.example", false).await;
    for host in ["169.254.169.254", "[::ffff:a9fe:a9fe]", "2852039166", "0xa9.0xfe.0xa9.0xfe", "0.0.0.0"] {
        check(&["127.0.0.1"], anything, host, false).await;
    }
    check(&[], private, "127.0.0.1", false).await;
    check(&[], private, "2130706433", false).await;
}

// ---------------------------------------------------------------- TLS

/// A server of its own certificate; what it speaks is agreed on in the handshake.
async fn tls_server(speaks: &[&[u8]]) -> (SocketAddr, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
    config.alpn_protocols = speaks.iter().map(|it| it.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let body = r#"{"data":[{"id":"SPOKEN"}]}"#;
                if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let mut out = respond.send_response(http_ok(), false).unwrap();
                        out.send_data(body.replace("SPOKEN", "two").into(), true).unwrap();
                    }
                } else {
                    let _ = stream.read(&mut [0; 4096]).await;
                    let body = body.replace("SPOKEN", "one");
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    let _ = stream.write_all(head.as_bytes()).await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    (address, made.cert.pem())
}

fn http_ok() -> hyper::Response<()> {
    hyper::Response::new(())
}

#[tokio::test]
async fn tls_is_verified_and_http_2_is_spoken_where_it_is_known() {
    for (speaks, expected) in
        [(&[&b"h2"[..], b"http/1.1"][..], "two"), (&[&b"http/1.1"[..]], "one"), (&[], "one")]
    {
        let (address, pem) = tls_server(speaks).await;
        let url = format!("https://localhost:{}/v1", address.port());
        let resolver = Arc::new(Names(vec![address.ip()]));
        let trusting = NetConfig {
            extra_ca: certificates_from_pem(pem.as_bytes()).unwrap(),
            resolver: resolver.clone(),
            ..NetConfig::default()
        };
        assert_eq!(ids(ask(&lister(trusting, Lister::LIMITS), P::OpenAi, &url).await), [expected]);
        let doubting = lister(NetConfig { resolver, ..NetConfig::default() }, Lister::LIMITS);
        match ask(&doubting, P::OpenAi, &url).await {
            Err(ListFailure::Probe(ProbeError::Failed { failure: Failure::Tls, reason })) => {
                assert!(reason.contains("hint: if the server's CA is your own"), "{reason}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_proxy_is_used_where_the_settings_say_so() {
    let proxy = Offering::start().await;
    proxy.offers(&["m"]);
    let through = |proxy: String| NetConfig { proxy: Some(proxy.into()), ..NetConfig::default() };
    let user = proxy.url("").replace("http://", "http://fake-user:fake-word@");
    // The name is the proxy's to resolve.
    let found = ask(&lister(through(user), QUICK), P::OpenAi, "http://provider.invalid/v1").await;
    assert_eq!(ids(found), ["m"]);
    let heard = proxy.heard();
    assert!(heard[0].starts_with("GET http://provider.invalid/v1/models HTTP/1.1\r\n"), "{}", heard[0]);
    assert!(heard[0].to_lowercase().contains("proxy-authorization: basic "), "{}", heard[0]);
    // One that is not there is our own fault, and never names its password.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = lister(through(format!("http://fake-user:fake-word@{closed}")), QUICK);
    match ask(&dead, P::OpenAi, "http://provider.invalid/v1").await {
        Err(ListFailure::Probe(ProbeError::Local { reason })) => {
            assert!(!reason.contains("fake-word"), "{reason}")
        }
        other => panic!("{other:?}"),
    }
    assert!(Lister::new(through("socks5://h:1".into()), QUICK).is_err());
}
