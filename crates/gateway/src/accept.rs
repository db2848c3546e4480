//! Accepts connections, speaks HTTP/1.1 on them, and drains on stop.
//!
//! Not its job: what a request means (the handler's), choosing, accounting.
//!
//! Invariant: every connection is a task of one set that is waited for; after the drain nothing of them is left.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use net::pool::ByteStream;

/// Bytes of a request's head, names and values (contract §11).
pub const HEAD_MAX: usize = 32 * 1024;
/// A head that is not whole by then closes the connection; also how long an idle connection of a caller is kept.
const HEAD_WITHIN: Duration = Duration::from_secs(75);
/// Per connection: what is read at once at most. Bounds memory per connection, and is large enough for bodies of
/// megabytes to cost few reads (measured: 64 KiB and 400 KiB cost alike).
const READ_MAX: usize = 64 * 1024;
/// After an error of accept (descriptors used up): time for connections to end, instead of a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Time for a last event to leave after the cut: callers that do not read are not waited for.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Turns an accepted socket into a line: plain, or TLS within its own clock.
pub trait Door: Send + Sync + 'static {
    /// The handshake, if there is one.
    fn enter(&self, socket: TcpStream) -> impl Future<Output = io::Result<Box<dyn ByteStream>>> + Send;
}

/// The door without TLS.
pub struct PlainDoor;

impl Door for PlainDoor {
    async fn enter(&self, socket: TcpStream) -> io::Result<Box<dyn ByteStream>> {
        Ok(Box::new(socket))
    }
}

/// What answers requests.
pub trait RequestHandler: Send + Sync + 'static {
    /// The body of its answers.
    type Body: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static;
    /// One request. Dropped when the caller leaves.
    fn handle(&self, request: Request<Incoming>) -> impl Future<Output = Response<Self::Body>> + Send;
}

/// When connections end.
#[derive(Clone)]
pub struct StopSignals {
    /// No new connections; idle ones close, and each open one closes after its present request.
    pub drain: CancellationToken,
    /// Given by [`accept`] after the grace: what still runs ends with a word that says so.
    pub cut: CancellationToken,
    /// From the drain to the cut.
    pub grace: Duration,
}

/// Serves a listener until the drain, then lets what runs end within the grace, stops the rest, and closes
/// what does not.
pub async fn accept<D: Door, H: RequestHandler>(
    listener: TcpListener,
    door: Arc<D>,
    handler: Arc<H>,
    stop: StopSignals,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, peer)) => {
                    let (door, handler, drain) = (Arc::clone(&door), Arc::clone(&handler), stop.drain.clone());
                    connections.spawn(connection(socket, peer, door, handler, drain));
                }
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            Some(_) = connections.join_next() => {}
            () = stop.drain.cancelled() => break,
        }
    }
    drop(listener);
    let all = async |connections: &mut JoinSet<()>| while connections.join_next().await.is_some() {};
    if tokio::time::timeout(stop.grace, all(&mut connections)).await.is_err() {
        stop.cut.cancel();
        let _ = tokio::time::timeout(LAST_WORD, all(&mut connections)).await;
    }
    connections.shutdown().await;
}

async fn connection<D: Door, H: RequestHandler>(
    socket: TcpStream,
    _peer: SocketAddr,
    door: Arc<D>,
    handler: Arc<H>,
    drain: CancellationToken,
) {
    // Frames of a stream leave at once; without it, the second waits for the acknowledgement of the first.
    let _ = socket.set_nodelay(true);
    let Ok(line) = door.enter(socket).await else { return };
    let service = service_fn(|request| {
        let handler = Arc::clone(&handler);
        // Boxed, so that it is gone once the answer began: hyper keeps a future's room for as long as the connection
        // lives, and a stream lives long.
        Box::pin(async move { Ok::<_, Infallible>(handler.handle(request).await) })
    });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_WITHIN)
            .max_header_size(HEAD_MAX)
            .max_buf_size(READ_MAX)
            .serve_connection(TokioIo::new(line), service)
    );
    tokio::select! {
        biased;
        _ = served.as_mut() => return,
        () = drain.cancelled() => served.as_mut().graceful_shutdown(),
    }
    let _ = served.await;
}
