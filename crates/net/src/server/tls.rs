//! TLS for the server: certificate and key from files, read again when the files change.
//!
//! Invariant: what is served is always a chain whose key fits; files that cannot be used change nothing but the log
//! and the status.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use rustls::{
    ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use zeroize::Zeroizing;

/// Between two looks at the files: two calls of `stat`, which see every way of replacing a file, links included.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Chains take a few kilobytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: holds no PEM certificate\nhint: the file begins with -----BEGIN CERTIFICATE-----", .path.display())]
    Certificate { path: PathBuf },
    #[error("{}: holds no PEM private key\nhint: PKCS #8, PKCS #1 or SEC 1, without a password", .path.display())]
    Key { path: PathBuf },
    #[error("server.tls: certificate and key cannot be used together")]
    Unfit(#[source] rustls::Error),
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// Accepts TLS connections with the current certificate. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    current: Arc<Current>,
}

/// The certificate in use, and why the files' newer one is not.
#[derive(Debug)]
struct Current {
    files: Files,
    key: RwLock<Arc<CertifiedKey>>,
    problem: RwLock<Option<String>>,
}

#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What distinguishes one content of a file from another without reading it: device, inode, size, change time.
type Mark = Option<(u64, u64, u64, i64, i64)>;

impl Files {
    fn marks(&self) -> [Mark; 2] {
        [&self.certificate, &self.key].map(|path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.dev(), meta.ino(), meta.size(), meta.ctime(), meta.ctime_nsec()))
        })
    }

    fn load(&self) -> Result<CertifiedKey, TlsError> {
        let pem = read(&self.certificate)?;
        let chain: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.ok().filter(|chain| !chain.is_empty());
        let chain = chain.ok_or_else(|| TlsError::Certificate { path: self.certificate.clone() })?;
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|_| TlsError::Key { path: self.key.clone() })?;
        // Also checks that the key is the certificate's.
        CertifiedKey::from_der(chain, key, &provider()).map_err(TlsError::Unfit)
    }
}

fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let error = |source| TlsError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(error)?.len() > MAX_FILE {
        return Err(error(io::ErrorKind::FileTooLarge.into()));
    }
    fs::read(path).map(Zeroizing::new).map_err(error)
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// They cannot be used; at the start that ends the daemon.
    pub fn new(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let files = Files { certificate: certificate.to_owned(), key: key.to_owned() };
        let current = Arc::new(Current {
            key: RwLock::new(Arc::new(files.load()?)),
            problem: RwLock::default(),
            files,
        });
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_no_client_auth()
            .with_cert_resolver(current.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), current })
    }

    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Why the files as they are now are not served.
    pub fn problem(&self) -> Option<String> {
        self.current.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again whenever they change, until the stop.
    pub async fn watch(self, stop: CancellationToken) {
        let current = &self.current;
        // Read once more at the first look: they may have changed since they were read.
        let mut marks = [None, None];
        let mut reported = None;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let now = current.files.marks();
            if now == marks && reported.is_none() {
                continue;
            }
            let first = marks == [None, None];
            marks = now;
            let files = current.files.clone();
            let loaded = tokio::task::spawn_blocking(move || files.load()).await;
            let problem = match loaded {
                Ok(Ok(key)) => {
                    let mut held = current.key.write().unwrap_or_else(PoisonError::into_inner);
                    if !first || held.cert != key.cert {
                        info!(file = %current.files.certificate.display(), "read the certificate again");
                    }
                    *held = Arc::new(key);
                    None
                }
                Ok(Err(error)) => Some(match std::error::Error::source(&error) {
                    Some(source) => format!("{error}: {source}"),
                    None => error.to_string(),
                }),
                Err(_) => Some("the files could not be read".to_owned()),
            };
            if let Some(problem) = problem.as_ref().filter(|problem| reported.as_ref() != Some(*problem)) {
                error!(problem, "the new certificate or key cannot be used; the old one stays");
            }
            *current.problem.write().unwrap_or_else(PoisonError::into_inner) = problem.clone();
            reported = problem;
        }
    }
}
