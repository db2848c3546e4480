//! Git over HTTPS: a host whose certificate comes from a private CA, directly and through a proxy.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{
    git_source::{daemon::Surroundings, host::Host, repository::Repository},
    support::lab::provider,
};

const TOKEN: &str = "not-a-real-git-token";
/// As the certificate calls it; nobody can resolve it.
const NAME: &str = "git.test.invalid";

/// Ends TLS in front of `behind`. Its port, and the certificate of its CA.
async fn in_front_of(behind: u16) -> (u16, String) {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(vec![]).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let pem = ca.self_signed(&ca_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), NAME.to_owned()];
    let leaf = rcgen::CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
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
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut plain = TcpStream::connect(("127.0.0.1", behind)).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut plain).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (port, pem)
}

/// A forward proxy that takes everybody to `port`. Its own port, and how often it was asked for a tunnel to [`NAME`].
async fn proxy_to(port: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                if head.starts_with(format!("CONNECT {NAME}:443 ").as_bytes()) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                let mut on = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                let _ = copy_bidirectional(&mut stream, &mut on).await;
            });
        }
    });
    (own, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_a_private_ca_is_believed_once_its_ca_is_named() {
    let repository = Repository::empty();
    repository.write("providers.d/alpha.toml", &provider("alpha", 1));
    repository.push();
    let host = Host::start(repository.dir.path(), TOKEN);
    let (port, pem) = in_front_of(host.port).await;
    let mut around =
        Surroundings::new(format!("https://127.0.0.1:{port}/bare.git"), &[("INTERVAL", "1h")]).await;
    around.settings.push(("TOKEN", around.secret("token", TOKEN).display().to_string()));

    // Nobody vouches for it: nothing is pulled, and the token is kept back.
    let mut daemon = around.daemon();
    daemon.wait_for_log("hint: if the host's CA is your own, name its file in egress.ca_files").await;
    assert_eq!(host.packs(), 0);
    assert_eq!(daemon.stop(), 0);

    let ca = around.lab.dir.path().join("ca.pem");
    fs::write(&ca, &pem).unwrap();
    let trusting = |proxy: Option<u16>| {
        around.lab.daemon_with(|command| {
            around.adjust(command);
            command.env("PROVIDERD_EGRESS__CA_FILES", format!("[{:?}]", ca.display().to_string()));
            if let Some(port) = proxy {
                command.env("PROVIDERD_EGRESS__PROXY", format!("http://127.0.0.1:{port}"));
                command.env("PROVIDERD_SOURCE__GIT__URL", format!("https://{NAME}/bare.git"));
            }
        })
    };
    let mut daemon = trusting(None);
    daemon.wait_ready().await;
    around.wait_for_priority("alpha", 1).await;
    assert_eq!(daemon.stop(), 0);

    // A host that only the proxy can reach.
    repository.write("providers.d/alpha.toml", &provider("alpha", 2));
    repository.push();
    let (proxy, asked) = proxy_to(port).await;
    let mut daemon = trusting(Some(proxy));
    daemon.wait_ready().await;
    around.wait_for_priority("alpha", 2).await;
    assert!(asked.load(Ordering::Relaxed) > 0);
    assert_eq!(daemon.stop(), 0);
}
