//! From a URL to a connection: resolved, checked against the egress policy, encrypted.
//!
//! Invariant: no address is connected to that the policy refuses, whether a name or a literal led to it.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use base64::Engine as _;
use chrono::{DateTime, Utc};
use futures_util::{StreamExt as _, stream::FuturesUnordered};
use rustls::pki_types::ServerName;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use url::{Host, Url};

use provider::Failure;

use crate::{
    Resolve, SystemResolver,
    egress::{EgressPolicy, is_metadata_name},
    fault::{ProbeError, is_local, is_own_fault},
    tls,
};

/// A second address is tried beside the first after this long, as browsers do: a dead IPv6 route costs little.
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 6;
/// For resolving a name that a proxy is going to resolve itself. Where a machine has no resolver but the proxy's, this is
/// waited for in vain.
const JUDGING: Duration = Duration::from_millis(500);
/// Bytes of a proxy's answer.
const MAX_PROXY_HEAD: usize = 8 * 1024;

/// How long each phase may take. The total bounds them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PhaseLimits {
    pub dns: Duration,
    /// TCP and TLS together.
    pub connect: Duration,
    pub total: Duration,
}

impl Default for PhaseLimits {
    fn default() -> Self {
        Self { dns: Duration::from_secs(2), connect: Duration::from_secs(4), total: Duration::from_secs(10) }
    }
}

/// How long each phase took; zero for one that was not needed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    pub dns: Duration,
    pub connect: Duration,
    pub tls: Duration,
    /// From sending the request to the head of the reply.
    pub first_byte: Duration,
    pub body: Duration,
    pub total: Duration,
}

/// How connections reach the world.
pub struct NetConfig {
    pub egress: EgressPolicy,
    /// Trusted beside the system's own roots.
    pub extra_ca: Vec<rustls::pki_types::CertificateDer<'static>>,
    /// `http://[user:password@]host:port`; every connection goes through it.
    pub proxy: Option<SecretString>,
    pub resolver: Arc<dyn Resolve>,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            egress: EgressPolicy::default(),
            extra_ca: Vec::new(),
            proxy: None,
            resolver: Arc::new(SystemResolver::default()),
        }
    }
}

/// Why no connection can ever be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("TLS cannot be set up")]
    Tls(#[source] rustls::Error),
    #[error("the proxy's address cannot be used\nhint: write it as http://host:port")]
    Proxy,
    #[error("the HTTP client cannot be set up")]
    Client,
}

/// Opens connections as one configuration allows. Cheap to share.
#[derive(Clone)]
pub struct Dialer {
    egress: EgressPolicy,
    tls: Arc<rustls::ClientConfig>,
    resolver: Arc<dyn Resolve>,
    proxy: Option<Arc<Proxy>>,
}

impl Dialer {
    /// # Errors
    /// TLS cannot be set up, or the proxy's address cannot be used.
    pub fn new(config: NetConfig) -> Result<Self, SetupError> {
        let proxy = config.proxy.as_ref().map(|proxy| Proxy::parse(proxy.expose_secret())).transpose()?;
        Ok(Self {
            egress: config.egress,
            tls: tls::config(config.extra_ca).map_err(SetupError::Tls)?,
            resolver: config.resolver,
            proxy: proxy.map(Arc::new),
        })
    }
}

/// What bytes travel over.
pub enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// An open connection.
pub struct OpenConnection {
    pub stream: Stream,
    /// When the server's certificate expires.
    pub tls_not_after: Option<DateTime<Utc>>,
}

/// A forward proxy that is asked for tunnels.
pub(crate) struct Proxy {
    url: Url,
    authorization: Option<SecretString>,
}

impl Proxy {
    pub(crate) fn parse(text: &str) -> Result<Self, SetupError> {
        let mut url = Url::parse(text.trim()).map_err(|_| SetupError::Proxy)?;
        if url.scheme() != "http" || url.host().is_none() {
            return Err(SetupError::Proxy);
        }
        let decode = |text: &str| {
            url::form_urlencoded::parse(format!("x={}", text.replace('+', "%2B")).as_bytes())
                .next()
                .map(|(_, value)| value.into_owned())
                .unwrap_or_default()
        };
        let authorization = (!url.username().is_empty()).then(|| {
            let pair = format!("{}:{}", decode(url.username()), decode(url.password().unwrap_or_default()));
            SecretString::from(base64::engine::general_purpose::STANDARD.encode(pair))
        });
        let _ = url.set_username("");
        let _ = url.set_password(None);
        Ok(Self { url, authorization })
    }
}

/// Opens a connection within the limits; `phases` is filled in as far as it comes.
///
/// # Errors
/// [`ProbeError`], which says whose fault it is.
pub async fn connect(
    dialer: &Dialer,
    url: &Url,
    start: Instant,
    limits: PhaseLimits,
    phases: &mut Phases,
) -> Result<OpenConnection, ProbeError> {
    let deadline = start + limits.total;
    let via = dialer.proxy.as_ref().map_or(url, |proxy| &proxy.url);
    let (judged, found) = tokio::join!(
        judge(dialer.egress, &dialer.resolver, url, dialer.proxy.is_some(), start + limits.dns),
        addresses(dialer, via, deadline.min(start + limits.dns)),
    );
    judged?;
    let addresses = found.map_err(|error| ours(dialer, error))?;
    phases.dns = start.elapsed();

    let began = Instant::now();
    let deadline = deadline.min(began + limits.connect);
    let late = |what: &str| {
        ProbeError::failed(
            Failure::Timeout,
            format!("{what} took longer than {} ms", began.elapsed().as_millis()),
        )
    };
    let mut stream = match timeout_at(deadline, race(&addresses)).await {
        Ok(stream) => stream.map_err(|error| ours(dialer, error))?,
        Err(_) => return Err(ours(dialer, late("connecting"))),
    };
    // Small requests, sent at once.
    let _ = stream.set_nodelay(true);
    if let Some(proxy) = &dialer.proxy {
        timeout_at(deadline, tunnel(&mut stream, proxy, url)).await.map_err(|_| late("the proxy"))??;
    }
    phases.connect = began.elapsed();
    if url.scheme() != "https" {
        return Ok(OpenConnection { stream: Stream::Plain(stream), tls_not_after: None });
    }

    let name = server_name(url)?;
    let began_tls = Instant::now();
    let handshake = TlsConnector::from(dialer.tls.clone()).connect(name, stream);
    let stream = match timeout_at(deadline, handshake).await {
        Ok(stream) => stream.map_err(|error| tls_error(&error))?,
        Err(_) => return Err(late("connecting and the TLS handshake")),
    };
    phases.tls = began_tls.elapsed();
    let certificates = stream.get_ref().1.peer_certificates();
    let tls_not_after = certificates.and_then(|chain| tls::not_after(chain.first()?));
    Ok(OpenConnection { stream: Stream::Tls(Box::new(stream)), tls_not_after })
}

/// A proxy that cannot be reached is our own fault, never the provider's.
fn ours(dialer: &Dialer, error: ProbeError) -> ProbeError {
    match error {
        ProbeError::Failed { reason, .. } if dialer.proxy.is_some() => {
            ProbeError::local(format!("the proxy: {reason}"))
        }
        other => other,
    }
}

/// What the policy says about a URL's host before anything is connected to: of names of metadata services and of literal
/// addresses always; of other names where a proxy does the connecting and this machine can resolve them too.
///
/// # Errors
/// [`ProbeError`]: the policy refuses it.
pub(crate) async fn judge(
    egress: EgressPolicy,
    resolver: &Arc<dyn Resolve>,
    url: &Url,
    proxied: bool,
    deadline: Instant,
) -> Result<(), ProbeError> {
    let check = |address: IpAddr| {
        egress.check(address).map_err(|refusal| ProbeError::failed(Failure::Egress, refusal.to_string()))
    };
    let name = match url.host() {
        None => return Ok(()),
        Some(Host::Ipv4(address)) => return check(address.into()),
        Some(Host::Ipv6(address)) => return check(address.into()),
        Some(Host::Domain(name)) => name,
    };
    if is_metadata_name(name) {
        return Err(ProbeError::failed(Failure::Egress, format!("{name} is a cloud metadata service")));
    }
    if !proxied {
        return Ok(());
    }
    let deadline = deadline.min(Instant::now() + JUDGING);
    match timeout_at(deadline, resolver.resolve(name)).await {
        // Which of them the proxy would take is not ours to choose.
        Ok(Ok(found)) => found.into_iter().take(64).try_for_each(check),
        // A name that only the proxy can resolve is the proxy's to judge.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

fn refuse(dialer: &Dialer, address: IpAddr) -> Result<(), ProbeError> {
    dialer.egress.check(address).map_err(|refusal| ProbeError::failed(Failure::Egress, refusal.to_string()))
}

/// Every address that may be connected to; what the policy refuses is dropped, and if nothing else is left, said.
async fn addresses(dialer: &Dialer, url: &Url, deadline: Instant) -> Result<Vec<SocketAddr>, ProbeError> {
    let unusable = || ProbeError::failed(Failure::Dns, "base_url names no host");
    let port = url.port_or_known_default().ok_or_else(unusable)?;
    let found = match url.host().ok_or_else(unusable)? {
        Host::Ipv4(address) => vec![address.into()],
        Host::Ipv6(address) => vec![address.into()],
        Host::Domain(name) => match timeout_at(deadline, dialer.resolver.resolve(name)).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) if is_own_fault(&error) => {
                return Err(ProbeError::local(format!("our resolver failed for {name}: {error}")));
            }
            Ok(Err(error)) => {
                return Err(ProbeError::failed(Failure::Dns, format!("{name} cannot be resolved: {error}")));
            }
            Err(_) => {
                return Err(ProbeError::failed(Failure::Dns, format!("{name} was not resolved in time")));
            }
        },
    };
    let mut refusal = None;
    let mut allowed = Vec::with_capacity(found.len().min(MAX_ADDRESSES));
    for address in found.into_iter().take(64) {
        match refuse(dialer, address) {
            Ok(()) => allowed.push(SocketAddr::new(address, port)),
            Err(error) => refusal = Some(error),
        }
    }
    if allowed.is_empty() {
        return Err(refusal.unwrap_or_else(|| ProbeError::failed(Failure::Dns, "the name has no address")));
    }
    Ok(interleaved(allowed))
}

/// Families take turns, beginning with the preferred one.
fn interleaved(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (one, other): (Vec<_>, Vec<_>) =
        addresses.into_iter().partition(|address| address.is_ipv6() == first);
    let (mut one, mut other) = (one.into_iter(), other.into_iter());
    let mut out = Vec::new();
    loop {
        match (one.next(), other.next()) {
            (None, None) => break,
            (a, b) => out.extend(a.into_iter().chain(b)),
        }
    }
    out.truncate(MAX_ADDRESSES);
    out
}

/// The first address that answers; the next is tried beside a slow one, and at once after a failed one.
async fn race(addresses: &[SocketAddr]) -> Result<TcpStream, ProbeError> {
    let attempt = |address: SocketAddr| async move {
        TcpStream::connect(address).await.map_err(|error| {
            let text = format!("{address} cannot be connected to: {error}");
            if is_local(&error) {
                ProbeError::local(text)
            } else {
                ProbeError::failed(Failure::Connect, text)
            }
        })
    };
    if let [only] = addresses {
        return attempt(*only).await;
    }
    let mut waiting = addresses.iter();
    let mut tries = FuturesUnordered::new();
    let mut failure: Option<ProbeError> = None;
    if let Some(address) = waiting.next() {
        tries.push(attempt(*address));
    }
    while !tries.is_empty() {
        tokio::select! {
            Some(result) = tries.next() => match result {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    // What the other side did says more than what we could not do.
                    if matches!(error, ProbeError::Failed { .. }) || failure.is_none() {
                        failure = Some(error);
                    }
                    if let Some(address) = waiting.next() {
                        tries.push(attempt(*address));
                    }
                }
            },
            () = sleep(NEXT_ADDRESS), if waiting.len() > 0 => {
                if let Some(address) = waiting.next() {
                    tries.push(attempt(*address));
                }
            }
        }
    }
    Err(failure.unwrap_or_else(|| ProbeError::failed(Failure::Connect, "there is no address to connect to")))
}

/// Asks the proxy for a tunnel to the URL's host.
async fn tunnel(stream: &mut TcpStream, proxy: &Proxy, url: &Url) -> Result<(), ProbeError> {
    let broken = |error: io::Error| ProbeError::local(format!("the proxy broke off: {error}"));
    let host = url.host_str().unwrap_or_default();
    let port = url.port_or_known_default().unwrap_or(443);
    let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some(secret) = &proxy.authorization {
        head.push_str("Proxy-Authorization: Basic ");
        head.push_str(secret.expose_secret());
        head.push_str("\r\n");
    }
    head.push_str("\r\n");
    let head = zeroize::Zeroizing::new(head);
    stream.write_all(head.as_bytes()).await.map_err(broken)?;
    let mut said = Vec::new();
    // Byte by byte, so that nothing behind the head is taken from the tunnel.
    while !said.ends_with(b"\r\n\r\n") {
        if said.len() >= MAX_PROXY_HEAD {
            return Err(ProbeError::local("the proxy's answer does not end"));
        }
        said.push(stream.read_u8().await.map_err(broken)?);
    }
    let text = String::from_utf8_lossy(&said);
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        Some(status @ (502..=504)) => Err(ProbeError::failed(
            Failure::Connect,
            format!("the proxy cannot reach {host}:{port} (HTTP {status})"),
        )),
        Some(status) => {
            Err(ProbeError::local(format!("the proxy refuses a tunnel to {host}:{port} (HTTP {status})")))
        }
        None => Err(ProbeError::local("the proxy does not speak HTTP")),
    }
}

fn server_name(url: &Url) -> Result<ServerName<'static>, ProbeError> {
    let unusable = || ProbeError::failed(Failure::Tls, "base_url's host cannot stand in a certificate");
    match url.host().ok_or_else(unusable)? {
        Host::Domain(name) => {
            ServerName::try_from(name.trim_end_matches('.').to_owned()).map_err(|_| unusable())
        }
        Host::Ipv4(address) => Ok(ServerName::IpAddress(IpAddr::from(address).into())),
        Host::Ipv6(address) => Ok(ServerName::IpAddress(IpAddr::from(address).into())),
    }
}

pub(crate) fn tls_error(error: &io::Error) -> ProbeError {
    use rustls::{CertificateError as Bad, Error};
    if is_local(error) {
        return ProbeError::local(format!("our own side failed during the TLS handshake: {error}"));
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let hint = match inner {
        Some(Error::InvalidCertificate(Bad::UnknownIssuer)) => {
            "\nhint: if the server's CA is your own, add its certificate to the extra CA files"
        }
        Some(Error::InvalidMessage(_)) => {
            "\nhint: the server may speak plain HTTP: base_url must then begin with http://"
        }
        Some(Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
            "\nhint: renew the server's certificate, and check this machine's clock"
        }
        _ => "",
    };
    ProbeError::failed(Failure::Tls, format!("the TLS handshake failed: {error}{hint}"))
}
