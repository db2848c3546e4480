//! The socket: one that systemd has opened, else the one that the settings name.

use std::{net::SocketAddr, os::fd::AsFd as _};

use tokio::net::TcpListener;
use tracing::info;

/// Where to listen.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// Used unless systemd gives a socket.
    pub address: SocketAddr,
    /// Whether a socket beyond loopback is allowed: with TLS, or where a proxy adds it.
    pub beyond_loopback: bool,
    /// The section of the settings that says so: `server` or `gateway`.
    pub section: &'static str,
}

/// Why a socket cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}\nhint: is another providerd running? set `{setting}`")]
    Listen { address: SocketAddr, setting: String, source: std::io::Error },
    #[error(
        "the socket {address} goes beyond loopback without TLS\nhint: set {section}.tls.cert and {section}.tls.key, or \
         {section}.plain_http = true where a proxy adds TLS"
    )]
    InTheClear { address: SocketAddr, section: &'static str },
    #[error("the socket that systemd gives cannot be used")]
    Socket(#[source] std::io::Error),
}

/// Opens the socket, so that a mistake is reported at the start.
///
/// # Errors
/// [`ListenError::Listen`]; [`ListenError::InTheClear`] if the socket of systemd goes beyond loopback and that is not
/// allowed; [`ListenError::Socket`] if systemd gives something else than one TCP socket.
pub async fn bind(listen: Listen) -> Result<TcpListener, ListenError> {
    let mut given = listenfd::ListenFd::from_env();
    if given.len() == 0 {
        return bind_address(listen.address, &format!("{}.listen", listen.section)).await;
    }
    let listener = given.take_tcp_listener(0).map_err(ListenError::Socket)?;
    let listener = listener.filter(|_| given.len() == 1).ok_or_else(|| {
        ListenError::Socket(std::io::Error::other("exactly one ListenStream= with an address is needed"))
    })?;
    // An embedded PostgreSQL, or a git, must not hold it open.
    rustix::io::fcntl_setfd(listener.as_fd(), rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| ListenError::Socket(error.into()))?;
    listener.set_nonblocking(true).map_err(ListenError::Socket)?;
    let address = listener.local_addr().map_err(ListenError::Socket)?;
    if !is_private(address) && !listen.beyond_loopback {
        return Err(ListenError::InTheClear { address, section: listen.section });
    }
    info!(%address, "listening on the socket of systemd");
    TcpListener::from_std(listener).map_err(ListenError::Socket)
}

/// Opens a socket of its own; `setting` names it.
///
/// # Errors
/// [`ListenError::Listen`]
pub async fn bind_address(address: SocketAddr, setting: &str) -> Result<TcpListener, ListenError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| ListenError::Listen { address, setting: setting.to_owned(), source })
}

/// Whether no other machine can connect.
pub fn is_private(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
