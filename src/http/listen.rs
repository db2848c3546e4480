//! The socket: one that systemd has opened, else the one that the settings name.

use std::{net::SocketAddr, os::fd::AsFd as _};

use tokio::net::TcpListener;
use tracing::info;

use super::HttpError;
use crate::config::Server;

/// Opens the socket, so that a mistake is reported at the start.
///
/// # Errors
/// [`HttpError::Listen`]; [`HttpError::InTheClear`] if the socket of systemd goes beyond loopback and neither TLS nor
/// `server.plain_http` is set; [`HttpError::Socket`] if systemd gives something else than one TCP socket.
pub async fn bind(settings: &Server) -> Result<TcpListener, HttpError> {
    let mut given = listenfd::ListenFd::from_env();
    if given.len() == 0 {
        let address = settings.listen;
        return TcpListener::bind(address).await.map_err(|source| HttpError::Listen { address, source });
    }
    let listener = given.take_tcp_listener(0).map_err(HttpError::Socket)?;
    let listener = listener.filter(|_| given.len() == 1).ok_or_else(|| {
        HttpError::Socket(std::io::Error::other("exactly one ListenStream= with an address is needed"))
    })?;
    // An embedded PostgreSQL, or a git, must not hold it open.
    rustix::io::fcntl_setfd(listener.as_fd(), rustix::io::FdFlags::CLOEXEC)
        .map_err(|error| HttpError::Socket(error.into()))?;
    listener.set_nonblocking(true).map_err(HttpError::Socket)?;
    let address = listener.local_addr().map_err(HttpError::Socket)?;
    if !is_private(address) && settings.tls().is_none() && !settings.plain_http {
        return Err(HttpError::InTheClear { address });
    }
    info!(%address, "listening on the socket of systemd");
    TcpListener::from_std(listener).map_err(HttpError::Socket)
}

/// Whether nobody on another machine can connect.
pub fn is_private(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
