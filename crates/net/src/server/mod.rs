//! Sockets: accepting connections, with TLS where it is set, and cutting off who is too slow.
//!
//! Not its job: what is answered. Invariants: a connection holds a place for as long as it lives, and there are only
//! so many places; no peer keeps one by being slow: not while shaking hands, not while sending a request's head, not
//! while taking an answer; nor by being idle while another connection waits for a place; an end of the daemon waits no
//! longer than [`DRAIN`].

mod listen;
mod tls;

use std::{
    future::Future as _,
    io,
    net::SocketAddr,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use futures_util::{FutureExt as _, future::BoxFuture};
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

pub use self::{
    listen::{Listen, ListenError, bind, bind_address, is_private},
    tls::{Tls, TlsError},
};

/// How long requests under way may take after the stop.
const DRAIN: Duration = Duration::from_secs(2);
/// A pause after the system refused a connection for want of files or memory; others end meanwhile.
const BREATHER: Duration = Duration::from_millis(100);

/// What a connection may cost.
#[derive(Debug, Clone, Copy)]
pub struct ServerLimits {
    /// Connections at once. Far more than a Prometheus, a few pages and a probe need.
    pub connections: usize,
    /// From the connection, or the end of the answer before, to the end of a request's head.
    pub head: Duration,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// Without a single byte of the answer taken.
    pub stalled: Duration,
    /// Bytes of a request's head.
    pub head_bytes: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            connections: 512,
            head: Duration::from_secs(10),
            handshake: Duration::from_secs(5),
            stalled: Duration::from_secs(20),
            head_bytes: 32 * 1024,
        }
    }
}

/// Where a request comes from; every request carries it among its extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerAddress(pub SocketAddr);

/// Serves until `stop`; requests under way are finished. `spawn` starts the task of each connection.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Tls>,
    app: Router,
    limits: ServerLimits,
    stop: CancellationToken,
    spawn: impl Fn(BoxFuture<'static, ()>),
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let crowded = Arc::new(Notify::new());
    loop {
        let Some(accepted) = stop.run_until_cancelled(listener.accept()).await else { break };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                if !is_of_one_connection(&error) {
                    warn!(%error, "no connection can be accepted now");
                    sleep(BREATHER).await;
                }
                continue;
            }
        };
        let place = match places.clone().try_acquire_owned() {
            Ok(place) => place,
            Err(_) => {
                // It waits, and others behind it in the system's own queue: connections that are kept for later are
                // closed.
                crowded.notify_waiters();
                let waiting = stop.run_until_cancelled(places.clone().acquire_owned()).await;
                let Some(Ok(place)) = waiting else { break };
                place
            }
        };
        let (app, tls, token, crowded) = (app.clone(), tls.clone(), stop.clone(), crowded.clone());
        spawn(Box::pin(async move {
            let _place = place;
            let work = AssertUnwindSafe(connection(stream, peer, tls, app, limits, token, crowded));
            // A handler's panic is answered; this is for one in a body that was already on its way.
            if work.catch_unwind().await.is_err() {
                debug!(%peer, "a connection ended in a panic");
            }
        }));
    }
    drop(listener);
    // The connections see the stop themselves; a place for each shows that they are gone.
    let all = u32::try_from(limits.connections).unwrap_or(u32::MAX);
    let _ = timeout(DRAIN, places.acquire_many(all)).await;
}

/// Errors of `accept` that concern only the peer that wanted to connect.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::ConnectionRefused | K::Interrupted)
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Tls>,
    app: Router,
    limits: ServerLimits,
    stop: CancellationToken,
    crowded: Arc<Notify>,
) {
    // Answers are small and whole: waiting for more of them does not help.
    let _ = stream.set_nodelay(true);
    match tls {
        None => exchange(stream, peer, app, limits, stop, crowded).await,
        Some(tls) => match timeout(limits.handshake, tls.accept(stream)).await {
            Ok(Ok(stream)) => exchange(stream, peer, app, limits, stop, crowded).await,
            Ok(Err(error)) => debug!(%peer, %error, "a TLS handshake failed"),
            Err(_) => debug!(%peer, "a TLS handshake took too long"),
        },
    }
}

async fn exchange<S>(
    stream: S,
    peer: SocketAddr,
    app: Router,
    limits: ServerLimits,
    stop: CancellationToken,
    crowded: Arc<Notify>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = TokioIo::new(Impatient::new(stream, limits.stalled));
    let app = TowerToHyperService::new(app);
    let app = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        app.call(request)
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(limits.head_bytes)
        .serve_connection(stream, app);
    let mut serving = pin!(serving);
    let mut makes_room = pin!(crowded.notified());
    let mut asked = false;
    let ended = loop {
        tokio::select! {
            ended = serving.as_mut() => break Some(ended),
            // An idle connection ends now, another one after the answer that it is about.
            () = makes_room.as_mut(), if !asked => {
                asked = true;
                serving.as_mut().graceful_shutdown();
            }
            () = stop.cancelled() => {
                serving.as_mut().graceful_shutdown();
                break timeout(DRAIN, serving).await.ok();
            }
        }
    };
    if let Some(Err(error)) = ended {
        debug!(%peer, %error, "a connection ended early");
    }
}

/// A stream whose writing fails once the other side has taken nothing for some time.
struct Impatient<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, waiting: None }
    }

    fn judge<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let patience = self.patience;
        let waiting =
            self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, shut)
    }
}
