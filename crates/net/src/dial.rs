//! The pool's connector over the one way to connect: the egress policy, the proxy and the trusted roots of the checks
//! hold for requests, too.
//!
//! Not its job: keeping connections (`pool`). Invariant: no address is connected to that the policy refuses.

use std::time::Duration;

use provider::Failure;
use tokio::time::Instant;
use url::Url;

use crate::{
    connect::{Dialer, PhaseLimits, Phases, Stream, connect},
    fault::ProbeError,
    pool::{ByteStream, ConnectError, ConnectPhase, ConnectResult, Connector, PoolOrigin},
};

/// The pool has a clock of its own, which a manifest sets; this only ends what that one was never set for.
const LONGEST: Duration = Duration::from_secs(60);

impl Connector for Dialer {
    fn connect<'a>(&'a self, origin: &'a PoolOrigin) -> ConnectResult<'a> {
        Box::pin(async move {
            let url = url_of(origin)
                .ok_or_else(|| failed(ConnectPhase::Resolve, "the base URL names no host".to_owned()))?;
            let limits = PhaseLimits { dns: LONGEST, connect: LONGEST, total: LONGEST };
            let opened = connect(self, &url, Instant::now(), limits, &mut Phases::default()).await;
            match opened.map_err(of_probe)?.stream {
                Stream::Plain(stream) => Ok(Box::new(stream) as Box<dyn ByteStream>),
                Stream::Tls(stream) => Ok(stream as Box<dyn ByteStream>),
            }
        })
    }
}

fn url_of(origin: &PoolOrigin) -> Option<Url> {
    let scheme = if origin.tls { "https" } else { "http" };
    let host = &origin.host;
    let text = if host.contains(':') {
        format!("{scheme}://[{host}]:{}", origin.port)
    } else {
        format!("{scheme}://{host}:{}", origin.port)
    };
    Url::parse(&text).ok()
}

fn failed(phase: ConnectPhase, text: String) -> ConnectError {
    ConnectError { phase, text }
}

fn of_probe(error: ProbeError) -> ConnectError {
    match error {
        ProbeError::Local { reason } => failed(ConnectPhase::Local, reason),
        ProbeError::Failed { failure, reason } => {
            let phase = match failure {
                Failure::Egress => ConnectPhase::Refused,
                Failure::Dns => ConnectPhase::Resolve,
                Failure::Tls => ConnectPhase::Tls,
                Failure::Timeout => ConnectPhase::Timeout,
                _ => ConnectPhase::Tcp,
            };
            failed(phase, reason)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_the_url_that_it_came_from() {
        let check = |tls, host: &str, port, expected: &str| {
            let origin = PoolOrigin { tls, host: host.into(), port, settings: 0 };
            assert_eq!(url_of(&origin).unwrap().as_str(), expected);
        };
        check(true, "api.example.com", 443, "https://api.example.com/");
        check(false, "127.0.0.1", 8080, "http://127.0.0.1:8080/");
        check(false, "::1", 8080, "http://[::1]:8080/");
    }
}
