//! Lists of models, fetched with reqwest: pages over one kept connection, HTTP/2 where the server speaks it.
//!
//! What is asked, with which key, and what an answer means is the same machine that every other caller drives
//! (`provider`); only the transport differs from the prober's, which keeps no connection and measures phases. Not its
//! job: what is done with a list.
//! Invariant: as the prober's. No redirect is followed, nothing is unpacked, a body ends at the request's limit, and no
//! address is connected to that the egress policy refuses, whether a name or a literal led to it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{Client, dns, redirect};
use secrecy::ExposeSecret as _;
use tokio::time::{Instant, timeout};
use url::Url;

use provider::{Failure, Models, ProviderType, Request};

use super::{ListFailure, MAX_HEAD, ProbeReply, drive};
use crate::{
    Resolve,
    connect::{self, NetConfig, PhaseLimits, SetupError},
    egress::EgressPolicy,
    fault::{self, ProbeError},
    tls,
};

/// The longest a whole list takes: the longest known ones have a dozen pages.
const WHOLE: Duration = Duration::from_secs(120);
/// Long enough for the next page, short enough that ten thousand providers leave no connections behind.
const KEEP: Duration = Duration::from_secs(5);

/// Fetches lists of models. One for the whole program: a client costs memory and a reading of the trusted roots.
pub struct Lister {
    client: Client,
    egress: EgressPolicy,
    resolver: Arc<dyn Resolve>,
    limits: PhaseLimits,
    proxied: bool,
}

impl Lister {
    /// For each page: it may have megabytes and come from the other end of the world.
    pub const LIMITS: PhaseLimits = PhaseLimits {
        dns: Duration::from_secs(2),
        connect: Duration::from_secs(4),
        total: Duration::from_secs(30),
    };

    /// `limits`: for each page. The connection's include those of the name.
    ///
    /// # Errors
    /// [`SetupError`] if TLS cannot be set up or the proxy's address cannot be used.
    pub fn new(config: NetConfig, limits: PhaseLimits) -> Result<Self, SetupError> {
        let mut tls = Arc::unwrap_or_clone(tls::config(config.extra_ca).map_err(SetupError::Tls)?);
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let proxied = config.proxy.is_some();
        let resolver = config.resolver.clone();
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .referer(false)
            // Variables of the environment are not believed: a proxy comes from the settings only.
            .no_proxy()
            .connect_timeout(limits.dns + limits.connect)
            .pool_idle_timeout(KEEP)
            .pool_max_idle_per_host(1)
            .http2_max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
            .dns_resolver(Policed { egress: config.egress, resolver: config.resolver, limit: limits.dns });
        if let Some(proxy) = &config.proxy {
            // Refuses what the prober refuses, so that one setting means one thing.
            connect::Proxy::parse(proxy.expose_secret())?;
            let proxy = reqwest::Proxy::all(proxy.expose_secret()).map_err(|_| SetupError::Proxy)?;
            client = client.proxy(proxy);
        }
        let client = client.build().map_err(|_| SetupError::Client)?;
        Ok(Self { client, egress: config.egress, resolver, limits, proxied })
    }

    /// Fetches the provider's own list of models, page by page.
    ///
    /// # Errors
    /// [`ListFailure`]; its text names no key.
    pub async fn models(
        &self,
        kind: ProviderType,
        base: &Url,
        key: Option<&str>,
    ) -> Result<Models, ListFailure> {
        match timeout(WHOLE, drive::list(self, kind, base, key, self.limits)).await {
            Ok(models) => models,
            Err(_) => {
                let reason = format!("it was not complete within {} s", WHOLE.as_secs());
                Err(ListFailure::Probe(ProbeError::failed(Failure::Timeout, reason)))
            }
        }
    }

    async fn exchange(&self, request: &Request, limits: PhaseLimits) -> Result<ProbeReply, ProbeError> {
        let began = Instant::now();
        connect::judge(self.egress, &self.resolver, &request.url, self.proxied, began + limits.dns).await?;
        let mut to_send = self
            .client
            .request(super::method(request), request.url.clone())
            .timeout(limits.total)
            .headers(super::headers(request)?);
        if let Some(body) = &request.body {
            to_send = to_send.body(body.clone());
        }
        let mut response = to_send.send().await.map_err(|error| self.failure(error))?;
        let first_byte = began.elapsed();
        let mut answer = ProbeReply::begun(response.status().as_u16(), response.headers());
        answer.phases.first_byte = first_byte;
        while let Some(data) = response.chunk().await.map_err(|error| self.failure(error))? {
            if !answer.keep(&data, request.max_body) {
                break;
            }
        }
        answer.phases.total = began.elapsed();
        answer.phases.body = answer.phases.total.saturating_sub(first_byte);
        Ok(answer)
    }

    /// What went wrong, in the prober's words. The URL is left out: it says nothing that the caller does not know.
    fn failure(&self, error: reqwest::Error) -> ProbeError {
        let error = error.without_url();
        let mut cause: &dyn std::error::Error = &error;
        loop {
            if let Some(known) = cause.downcast_ref::<ProbeError>() {
                return known.clone();
            }
            if let Some(mut io) = cause.downcast_ref::<std::io::Error>() {
                // Connectors wrap one in another, which `source` does not show.
                while let Some(inner) = io.get_ref().and_then(|inner| inner.downcast_ref()) {
                    io = inner;
                }
                let inner = io.get_ref();
                if let Some(known) = inner.and_then(|inner| inner.downcast_ref::<ProbeError>()) {
                    return known.clone();
                }
                if inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
                    return connect::tls_error(io);
                }
                if fault::is_local(io) {
                    return ProbeError::local(format!("our own side failed while talking: {io}"));
                }
            }
            match cause.source() {
                Some(source) => cause = source,
                None => break,
            }
        }
        if error.is_timeout() {
            return ProbeError::failed(Failure::Timeout, "no complete answer came in time");
        }
        if error.is_connect() {
            let reason = format!("cannot be connected to: {cause}");
            // A proxy that cannot be reached is our own fault, never the provider's.
            return if self.proxied {
                ProbeError::local(format!("the proxy {reason}"))
            } else {
                ProbeError::failed(Failure::Connect, reason)
            };
        }
        ProbeError::failed(Failure::Body, format!("the connection broke or did not speak HTTP: {cause}"))
    }
}

impl drive::Carry for Lister {
    async fn carry(&self, request: &Request, limits: PhaseLimits) -> Result<ProbeReply, ProbeError> {
        self.exchange(request, limits).await
    }
}

/// Names to those of their addresses that may be reached.
struct Policed {
    egress: EgressPolicy,
    resolver: Arc<dyn Resolve>,
    limit: Duration,
}

impl dns::Resolve for Policed {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        let name = name.as_str().to_owned();
        let (egress, limit, lookup) = (self.egress, self.limit, self.resolver.resolve(&name));
        Box::pin(async move {
            let found = match timeout(limit, lookup).await {
                Ok(Ok(found)) => found,
                Ok(Err(error)) if fault::is_own_fault(&error) => {
                    let reason = format!("our resolver failed for {name}: {error}");
                    return Err(ProbeError::local(reason).into());
                }
                Ok(Err(error)) => {
                    let reason = format!("{name} cannot be resolved: {error}");
                    return Err(ProbeError::failed(Failure::Dns, reason).into());
                }
                Err(_) => {
                    let reason = format!("{name} was not resolved in time");
                    return Err(ProbeError::failed(Failure::Dns, reason).into());
                }
            };
            let mut refusal = None;
            let mut allowed = Vec::new();
            for address in found.into_iter().take(64) {
                match egress.check(address) {
                    // Port 0 stands for the URL's own.
                    Ok(()) => allowed.push(SocketAddr::new(address, 0)),
                    Err(error) => refusal = Some(error),
                }
            }
            match (allowed.is_empty(), refusal) {
                (false, _) => Ok(Box::new(allowed.into_iter()) as dns::Addrs),
                (true, Some(refusal)) => Err(ProbeError::failed(Failure::Egress, refusal.to_string()).into()),
                (true, None) => Err(ProbeError::failed(Failure::Dns, "the name has no address").into()),
            }
        })
    }
}
