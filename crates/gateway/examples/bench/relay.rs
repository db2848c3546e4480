//! The relay under test.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::{Request, Response};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use gateway::serve::{Handle, Plain};
use net::pool::{Answer, Connect, ConnectError, ConnectPhase, Connecting, Line, Origin, Pool, Slices};

struct Dial;
impl Connect for Dial {
    fn connect<'a>(&'a self, origin: &'a Origin) -> Connecting<'a> {
        Box::pin(async move {
            let socket = TcpStream::connect((&*origin.host, origin.port))
                .await
                .map_err(|error| ConnectError { phase: ConnectPhase::Tcp, text: error.to_string() })?;
            let _ = socket.set_nodelay(true);
            Ok(Box::new(socket) as Box<dyn Line>)
        })
    }
}

struct Naive {
    pool: Pool,
    origin: Origin,
    keys: std::collections::HashMap<[u8; 32], String>,
}

enum Out {
    Text(Option<Bytes>),
    Relay(Answer, bool),
}

impl Body for Out {
    type Data = Bytes;
    type Error = hyper::Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Text(text) => Poll::Ready(text.take().map(|t| Ok(Frame::data(t)))),
            Self::Relay(answer, seen) => {
                let frame = Pin::new(answer).poll_frame(cx);
                if let Poll::Ready(Some(Ok(frame))) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    *seen |= memchr::memmem::find(data, b"\"usage\"").is_some();
                }
                frame
            }
        }
    }
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Text(t) => t.is_none(),
            Self::Relay(a, _) => a.is_end_stream(),
        }
    }
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Text(t) => SizeHint::with_exact(t.as_ref().map_or(0, |t| t.len() as u64)),
            Self::Relay(a, _) => a.size_hint(),
        }
    }
}

impl Handle for Naive {
    type Body = Out;
    async fn handle(&self, request: Request<Incoming>) -> Response<Out> {
        let (head, mut body) = request.into_parts();
        let key = head
            .headers
            .get("authorization")
            .and_then(|v| v.as_bytes().strip_prefix(b"Bearer "))
            .unwrap_or_default();
        let hash: [u8; 32] = Sha256::digest(key).into();
        if !self.keys.contains_key(&hash) {
            let mut response = Response::new(Out::Text(Some(Bytes::from_static(b"who?"))));
            *response.status_mut() = hyper::StatusCode::UNAUTHORIZED;
            return response;
        }
        let length = body.size_hint().exact().unwrap_or(0) as usize;
        let mut whole: Option<Bytes> = None;
        let mut buffer = Vec::new();
        while let Some(Ok(frame)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let Ok(data) = frame.into_data() else { continue };
            if data.len() == length {
                whole = Some(data);
            } else {
                if buffer.is_empty() {
                    buffer.reserve_exact(length);
                }
                buffer.extend_from_slice(&data);
            }
        }
        let whole = whole.unwrap_or_else(|| Bytes::from(buffer));
        let content_type = head.headers.get("content-type").cloned();
        let make = || {
            let mut request = Request::post("/v1/chat/completions")
                .header("host", "127.0.0.1")
                .header("authorization", "Bearer upstream-key-of-the-bench")
                .header("accept-encoding", "identity");
            if let Some(value) = &content_type {
                request = request.header("content-type", value);
            }
            request.body(Slices::new(vec![whole.clone()])).expect("plain header values")
        };
        match self.pool.send(&self.origin, Duration::from_secs(4), make).await {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                let mut response = Response::new(Out::Relay(body, false));
                *response.status_mut() = head.status;
                if let Some(value) = head.headers.get("content-type") {
                    response.headers_mut().insert("content-type", value.clone());
                }
                response
            }
            Err(error) => {
                let mut response = Response::new(Out::Text(Some(Bytes::from(error.to_string()))));
                *response.status_mut() = hyper::StatusCode::BAD_GATEWAY;
                response
            }
        }
    }
}

pub async fn run(listener: tokio::net::TcpListener, upstream: u16) {
    let handler = Naive {
        pool: Pool::new(Arc::new(Dial)),
        origin: Origin { tls: false, host: "127.0.0.1".into(), port: upstream, settings: 0 },
        keys: [(Sha256::digest(crate::CALLER).into(), "web".to_owned())].into(),
    };
    let (_keep, drain) = tokio::sync::watch::channel(false);
    gateway::serve::serve(listener, Arc::new(Plain), Arc::new(handler), drain, Duration::from_secs(1)).await;
    let _: Option<Infallible> = None;
}
