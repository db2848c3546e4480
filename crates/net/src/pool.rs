//! Pooled HTTP/1.1 connections to the origins that the gateway asks: one request at a time on each, kept alive between
//! requests, closed by dropping the answer's body.
//!
//! Not its job: resolving, egress policy, TLS (a [`Connector`] from outside does that), clocks other than connecting,
//! choosing which to ask. HTTP/2 is left out on purpose: with one stream per connection, closing *is* cancelling, and no
//! stream waits behind another.
//!
//! Invariant: no connection has a task of its own. The holder of the answer drives its connection, so an event that
//! arrives wakes the relaying task alone, and what is dropped is closed at that instant.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Connections that wait for their next request are closed after this. Below what providers and balancers use (nginx
/// 75 s, Node 5 s is the known exception and is caught by the repeat): a request is not sent into a closing socket.
pub const IDLE: Duration = Duration::from_secs(15);
/// Idle connections kept per origin; more than a core of the gateway can keep busy, and bounded against a peak that
/// would hold thousands of descriptors for nothing.
pub const KEPT: usize = 512;

/// Where a connection leads. Connections of different origins are never exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolOrigin {
    /// TLS or plain.
    pub tls: bool,
    /// Host name or literal address, as in the URL (IPv6 without brackets).
    pub host: Box<str>,
    /// TCP port.
    pub port: u16,
    /// Which TLS settings (roots, client certificate, pins); connections of different settings are different origins.
    /// 0 are the default ones.
    pub settings: u32,
}

/// Both directions of an open connection.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// What connecting failed at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectPhase {
    /// The egress policy refuses the address.
    Refused,
    /// No address for the name.
    Resolve,
    /// TCP.
    Tcp,
    /// TLS handshake.
    Tls,
    /// Nothing within the clock.
    Timeout,
    /// This machine's own fault (descriptors, memory): says nothing about the provider.
    Local,
}

/// Why there is no connection.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct ConnectError {
    /// At which step.
    pub phase: ConnectPhase,
    /// Without secrets; for logs.
    pub text: String,
}

/// What opening a connection returns.
pub type ConnectResult<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn ByteStream>, ConnectError>> + Send + 'a>>;

/// Opens connections: resolves, obeys the egress policy, speaks TLS, sets TCP_NODELAY.
pub trait Connector: Send + Sync {
    /// One new connection; the pool bounds its time.
    fn connect<'a>(&'a self, origin: &'a PoolOrigin) -> ConnectResult<'a>;
}

/// A request body of slices that are sent as they are, in order, with their total as `content-length`.
#[derive(Clone, Debug, Default)]
pub struct BodySlices {
    parts: Vec<Bytes>,
    next: usize,
    left: u64,
}

impl BodySlices {
    /// Of these slices; empty ones are left out.
    pub fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let left = parts.iter().map(|part| part.len() as u64).sum();
        Self { parts, next: 0, left }
    }
}

impl Body for BodySlices {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let part = this.parts.get_mut(this.next).map(std::mem::take);
        this.next += 1;
        Poll::Ready(part.map(|part| {
            this.left -= part.len() as u64;
            Ok(Frame::data(part))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// No connection: nothing was sent.
    #[error("no connection: {0}")]
    Connect(#[from] ConnectError),
    /// The connection ended before the answer's head was whole.
    #[error("the connection broke before an answer")]
    Broken(#[source] hyper::Error),
    /// What came is no HTTP/1.1 answer.
    #[error("the answer is no HTTP/1.1")]
    Garbage(#[source] hyper::Error),
}

/// The pool of one runtime. Cheap to share; without tasks of its own.
pub struct Pool {
    connect: Arc<dyn Connector>,
    shelves: Mutex<HashMap<PoolOrigin, Arc<Shelf>>>,
}

/// The idle connections of one origin, the youngest last.
#[derive(Default)]
struct Shelf {
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    link: Box<Link>,
    since: Instant,
}

/// One connection and the handle that asks through it.
struct Link {
    sender: http1::SendRequest<BodySlices>,
    connection: http1::Connection<TokioIo<Listened>, BodySlices>,
    /// One byte came since the last request began, which decides about a repeat.
    heard: Arc<AtomicBool>,
    /// The connection is over and must not be polled again.
    ended: bool,
}

/// A line that notes that something came. The flag is shared because hyper gives no way to its transport; all of it
/// stays in one task, so the order of memory does not matter.
struct Listened {
    line: Box<dyn ByteStream>,
    heard: Arc<AtomicBool>,
}

impl Pool {
    /// An empty pool over a connector.
    pub fn new(connect: Arc<dyn Connector>) -> Self {
        Self { connect, shelves: Mutex::default() }
    }

    /// Sends what `request` makes and waits for the head of the answer. An idle connection that dies before one byte
    /// of an answer is replaced by a fresh one, once; then `request` is called again.
    ///
    /// # Errors
    /// No connection within `within`, or none that answers.
    pub async fn send(
        &self,
        origin: &PoolOrigin,
        within: Duration,
        request: impl Fn() -> Request<BodySlices>,
    ) -> Result<Response<PooledAnswer>, SendError> {
        let shelf = self.shelf(origin);
        if let Some(mut link) = shelf.take() {
            match link.exchange(request()).await {
                Ok(answer) => return Ok(PooledAnswer::of(answer, link, shelf)),
                Err(error) if error.is_parse() => return Err(SendError::Garbage(error)),
                Err(error) if link.heard.load(Ordering::Relaxed) => {
                    return Err(SendError::Broken(error));
                }
                Err(_) => {}
            }
        }
        let line = self.open(origin, within).await?;
        let heard = Arc::new(AtomicBool::new(false));
        let (sender, connection) = http1::Builder::new()
            .handshake(TokioIo::new(Listened { line, heard: Arc::clone(&heard) }))
            .await
            .map_err(SendError::Broken)?;
        let mut link = Box::new(Link { sender, connection, heard, ended: false });
        match link.exchange(request()).await {
            Ok(answer) => Ok(PooledAnswer::of(answer, link, shelf)),
            Err(error) if error.is_parse() => Err(SendError::Garbage(error)),
            Err(error) => Err(SendError::Broken(error)),
        }
    }

    /// Closes what has been idle for too long and forgets origins without connections. To be called every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        let shelves: Vec<_> = lock(&self.shelves).values().cloned().collect();
        for shelf in &shelves {
            let old = {
                let mut idle = lock(&shelf.idle);
                let young = idle.partition_point(|one| now.duration_since(one.since) >= IDLE);
                idle.drain(..young).collect::<Vec<_>>()
            };
            drop(old);
        }
        drop(shelves);
        lock(&self.shelves).retain(|_, shelf| Arc::strong_count(shelf) > 1 || !lock(&shelf.idle).is_empty());
    }

    /// Idle connections of all origins.
    pub fn idle(&self) -> usize {
        lock(&self.shelves).values().map(|shelf| lock(&shelf.idle).len()).sum()
    }

    fn shelf(&self, origin: &PoolOrigin) -> Arc<Shelf> {
        let mut shelves = lock(&self.shelves);
        if let Some(shelf) = shelves.get(origin) {
            return Arc::clone(shelf);
        }
        Arc::clone(shelves.entry(origin.clone()).or_default())
    }

    async fn open(&self, origin: &PoolOrigin, within: Duration) -> Result<Box<dyn ByteStream>, ConnectError> {
        match tokio::time::timeout(within, self.connect.connect(origin)).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError {
                phase: ConnectPhase::Timeout,
                text: format!("no connection to {}:{} within {within:?}", origin.host, origin.port),
            }),
        }
    }
}

impl Shelf {
    /// The youngest idle connection that is still open.
    fn take(&self) -> Option<Box<Link>> {
        loop {
            let Idle { mut link, since } = lock(&self.idle).pop()?;
            if since.elapsed() >= IDLE {
                // The youngest is too old, so all are.
                let old = std::mem::take(&mut *lock(&self.idle));
                drop(old);
                return None;
            }
            if link.is_idle() {
                return Some(link);
            }
        }
    }

    fn put(&self, link: Box<Link>) {
        let mut idle = lock(&self.idle);
        if idle.len() < KEPT {
            idle.push(Idle { link, since: Instant::now() });
        }
    }
}

impl Link {
    /// Sends one request and drives the connection until the answer's head.
    async fn exchange(&mut self, request: Request<BodySlices>) -> Result<Response<Incoming>, hyper::Error> {
        let Self { sender, connection, heard, ended } = self;
        heard.store(false, Ordering::Relaxed);
        let mut answer = pin!(sender.send_request(request));
        poll_fn(|context| {
            let over = !*ended && Pin::new(&mut *connection).poll(context).is_ready();
            *ended |= over;
            // Only the connection, polled above with the real waker, moves the answer on.
            answer.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        })
        .await
    }

    /// Lets the connection move: reads what has come, and learns of its end.
    fn drive(&mut self, context: &mut Context<'_>) {
        self.ended = self.ended || Pin::new(&mut self.connection).poll(context).is_ready();
    }

    /// Open, and ready for another request.
    fn is_idle(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        !self.ended && self.sender.is_ready()
    }
}

/// The body of an answer, with the connection that it comes over. Read to its end, the connection returns to the pool;
/// dropped before, the connection is closed, which is how a request is cancelled.
pub struct PooledAnswer {
    link: Option<Box<Link>>,
    body: Incoming,
    shelf: Arc<Shelf>,
}

impl PooledAnswer {
    fn of(answer: Response<Incoming>, link: Box<Link>, shelf: Arc<Shelf>) -> Response<Self> {
        answer.map(|body| {
            let mut answer = Self { link: Some(link), body, shelf };
            if answer.body.is_end_stream() {
                answer.give_back();
            }
            answer
        })
    }

    fn give_back(&mut self) {
        if let Some(mut link) = self.link.take()
            && link.is_idle()
        {
            self.shelf.put(link);
        }
    }
}

impl Body for PooledAnswer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        // What has already come; if nothing, the connection reads, and we look once more.
        let mut found = Pin::new(&mut this.body).poll_frame(&mut Context::from_waker(Waker::noop()));
        if found.is_pending()
            && let Some(link) = &mut this.link
        {
            link.drive(context);
            found = Pin::new(&mut this.body).poll_frame(&mut Context::from_waker(Waker::noop()));
        }
        match &found {
            Poll::Ready(None) => this.give_back(),
            Poll::Ready(Some(Ok(_))) if this.body.is_end_stream() => this.give_back(),
            Poll::Ready(Some(Err(_))) => this.link = None,
            _ => {}
        }
        found
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl AsyncRead for Listened {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.line).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl AsyncWrite for Listened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.line).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.line).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.line.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.line).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.line).poll_shutdown(cx)
    }
}

/// No code panics while it holds one of these locks; a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::mpsc;

    /// Hands the other end of each connection to the test.
    struct Ends {
        made: mpsc::Sender<DuplexStream>,
        count: AtomicUsize,
    }

    impl Connector for Ends {
        fn connect<'a>(&'a self, _: &'a PoolOrigin) -> ConnectResult<'a> {
            Box::pin(async {
                self.count.fetch_add(1, Ordering::Relaxed);
                let (near, far) = tokio::io::duplex(64 * 1024);
                self.made
                    .send(far)
                    .await
                    .map_err(|_| ConnectError { phase: ConnectPhase::Tcp, text: "refused".to_owned() })?;
                Ok(Box::new(near) as Box<dyn ByteStream>)
            })
        }
    }

    fn origin() -> PoolOrigin {
        PoolOrigin { tls: false, host: "provider.test".into(), port: 80, settings: 0 }
    }

    fn pool() -> (Arc<Pool>, Arc<Ends>, mpsc::Receiver<DuplexStream>) {
        let (made, ends) = mpsc::channel(8);
        let connect = Arc::new(Ends { made, count: AtomicUsize::new(0) });
        (Arc::new(Pool::new(Arc::clone(&connect) as Arc<dyn Connector>)), connect, ends)
    }

    fn request() -> Request<BodySlices> {
        let body = BodySlices::new(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]);
        Request::post("/v1/x").header("host", "provider.test").body(body).expect("plain header values")
    }

    /// Reads one request to the end of its body, which is `abc`.
    async fn read_request(end: &mut DuplexStream) -> String {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\nabc") {
            let mut buffer = [0; 1024];
            let n = end.read(&mut buffer).await.expect("a request");
            assert!(n > 0, "closed within a request: {}", String::from_utf8_lossy(&text));
            text.extend_from_slice(&buffer[..n]);
        }
        String::from_utf8(text).expect("text")
    }

    async fn whole(mut answer: PooledAnswer) -> Result<Vec<u8>, hyper::Error> {
        let mut body = Vec::new();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut answer).poll_frame(context)).await {
            if let Ok(data) = frame?.into_data() {
                body.extend_from_slice(&data);
            }
        }
        Ok(body)
    }

    async fn send(pool: &Pool) -> Result<Response<PooledAnswer>, SendError> {
        pool.send(&origin(), Duration::from_secs(4), request).await
    }

    const LENGTH: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
    const CHUNKED: &[u8] =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n";

    #[tokio::test]
    async fn a_connection_serves_one_request_after_the_other() {
        let (pool, connect, mut ends) = pool();
        let server = tokio::task::JoinSet::from_iter([async move {
            let mut end = ends.recv().await.expect("a connection");
            for answer in [LENGTH, CHUNKED, LENGTH] {
                let head = read_request(&mut end).await;
                assert!(head.contains("content-length: 3\r\n"), "{head}");
                end.write_all(answer).await.expect("open");
            }
            end
        }]);
        for _ in 0..3 {
            let answer = send(&pool).await.expect("answered");
            assert_eq!(whole(answer.into_body()).await.expect("whole"), b"hello");
        }
        assert_eq!((connect.count.load(Ordering::Relaxed), pool.idle()), (1, 1));
        server.join_all().await;
    }

    /// One request that is answered whole; returns the far end of its connection, which is idle then.
    async fn one_answered(pool: &Pool, ends: &mut mpsc::Receiver<DuplexStream>) -> DuplexStream {
        let (answer, end) = tokio::join!(send(pool), async {
            let mut end = ends.recv().await.expect("a connection");
            read_request(&mut end).await;
            end.write_all(LENGTH).await.expect("open");
            end
        });
        whole(answer.expect("answered").into_body()).await.expect("whole");
        assert_eq!(pool.idle(), 1);
        end
    }

    #[tokio::test]
    async fn an_idle_connection_that_closed_is_replaced_before_the_request() {
        let (pool, connect, mut ends) = pool();
        drop(one_answered(&pool, &mut ends).await);
        one_answered(&pool, &mut ends).await;
        assert_eq!(connect.count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_reused_connection_that_dies_unheard_is_repeated_once() {
        let (pool, connect, mut ends) = pool();
        let mut end = one_answered(&pool, &mut ends).await;
        let (answer, ()) = tokio::join!(send(&pool), async {
            read_request(&mut end).await;
            drop(end);
            let mut fresh = ends.recv().await.expect("a repeat");
            read_request(&mut fresh).await;
            drop(fresh);
        });
        assert!(matches!(answer, Err(SendError::Broken(_))), "a fresh connection that dies is an error");
        assert_eq!(connect.count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_broken_head_is_not_repeated() {
        let (pool, connect, mut ends) = pool();
        let mut end = one_answered(&pool, &mut ends).await;
        let (answer, ()) = tokio::join!(send(&pool), async {
            read_request(&mut end).await;
            end.write_all(b"HTTP/1.1 200 OK\r\ncont").await.expect("open");
            drop(end);
        });
        assert!(matches!(answer, Err(SendError::Broken(_))));
        assert_eq!(connect.count.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn garbage_is_named_and_its_connection_is_not_kept() {
        let (pool, _, mut ends) = pool();
        let (answer, ()) = tokio::join!(send(&pool), async {
            let mut end = ends.recv().await.expect("a connection");
            read_request(&mut end).await;
            end.write_all(b"SSH-2.0-OpenSSH_9\r\n\r\n").await.expect("open");
        });
        assert!(matches!(answer, Err(SendError::Garbage(_))));
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn dropping_the_answer_closes_the_connection() {
        let (pool, _, mut ends) = pool();
        let (answer, mut end) = tokio::join!(send(&pool), async {
            let mut end = ends.recv().await.expect("a connection");
            read_request(&mut end).await;
            end.write_all(&CHUNKED[..CHUNKED.len() - 5]).await.expect("open");
            end
        });
        drop(answer.expect("answered"));
        assert_eq!(end.read(&mut [0; 16]).await.expect("closed in order"), 0);
        assert_eq!(pool.idle(), 0);
    }

    #[tokio::test]
    async fn more_than_the_answer_spoils_a_connection() {
        let (pool, connect, mut ends) = pool();
        let mut end = one_answered(&pool, &mut ends).await;
        end.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil").await.expect("open");
        let (answer, ()) = tokio::join!(send(&pool), async {
            let mut end = ends.recv().await.expect("a fresh one");
            read_request(&mut end).await;
            end.write_all(LENGTH).await.expect("open");
        });
        assert_eq!(whole(answer.expect("answered").into_body()).await.expect("whole"), b"hello");
        assert_eq!(connect.count.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn connecting_has_a_clock() {
        struct Never;
        impl Connector for Never {
            fn connect<'a>(&'a self, _: &'a PoolOrigin) -> ConnectResult<'a> {
                Box::pin(std::future::pending())
            }
        }
        let pool = Pool::new(Arc::new(Never));
        let answer = send(&pool).await;
        assert!(matches!(answer, Err(SendError::Connect(ConnectError { phase: ConnectPhase::Timeout, .. }))));
    }
}
