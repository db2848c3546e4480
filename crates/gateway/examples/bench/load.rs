//! The callers of the benchmark: so many connections, each asking again as soon as it was answered.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::mock::content_length;

/// What is asked for.
#[derive(Clone)]
pub struct Shape {
    pub port: u16,
    pub connections: usize,
    /// `plain`, `stream` or `idle`.
    pub model: &'static str,
    /// Bytes of the request's body.
    pub bytes: usize,
    pub seconds: f64,
}

/// What was seen.
pub struct Seen {
    pub requests: u64,
    /// Processor time of the relay, per request.
    pub cpu: Duration,
    pub p50: Duration,
    pub p99: Duration,
    /// From the request to the first byte of content, the median.
    pub first: Duration,
    pub failed: u64,
    pub per_second: f64,
}

pub fn request(shape: &Shape) -> Vec<u8> {
    let stream =
        if shape.model == "plain" { "" } else { r#""stream":true,"stream_options":{"include_usage":true},"# };
    let head = format!(
        r#"{{"model":"{}-model",{stream}"temperature":0.7,"messages":[{{"role":"user","content":""#,
        shape.model
    );
    let tail = r#""}]}"#;
    let fill = "The quick brown fox jumps over the lazy dog, again and again. ";
    let mut body = head;
    while body.len() + tail.len() < shape.bytes {
        let left = shape.bytes - body.len() - tail.len();
        body.push_str(&fill[..left.min(fill.len())]);
    }
    body.push_str(tail);
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\naccept: */*\r\nuser-agent: bench/1\r\ncontent-length: {}\r\n\r\n{body}",
        shape.port,
        crate::CALLER,
        body.len()
    )
    .into_bytes()
}

/// Asks until the time is over; the relay's processor time is read at the beginning (after a warm-up) and the end.
pub async fn run(shape: Shape, pid: Option<u32>) -> Seen {
    let request: Rc<[u8]> = request(&shape).into();
    let stop = Rc::new(Cell::new(false));
    let counting = Rc::new(Cell::new(false));
    let times = Rc::new(RefCell::new((Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 20))));
    let failed = Rc::new(Cell::new(0u64));
    let mut tasks = Vec::new();
    for _ in 0..shape.connections {
        let (request, stop, counting, times, failed) =
            (request.clone(), stop.clone(), counting.clone(), times.clone(), failed.clone());
        let port = shape.port;
        tasks.push(tokio::task::spawn_local(async move {
            while !stop.get() {
                let Ok(mut caller) = Caller::connect(port).await else {
                    failed.set(failed.get() + 1);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while !stop.get() {
                    let begin = Instant::now();
                    match caller.ask(&request).await {
                        Ok(first) => {
                            if counting.get() {
                                let mut times = times.borrow_mut();
                                times.0.push(begin.elapsed());
                                times.1.push(first.duration_since(begin));
                            }
                        }
                        Err(_) => {
                            failed.set(failed.get() + 1);
                            break;
                        }
                    }
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(700)).await;
    failed.set(0);
    let cpu = pid.map_or(Duration::ZERO, cpu_of);
    counting.set(true);
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs_f64(shape.seconds)).await;
    counting.set(false);
    let cpu = pid.map_or(Duration::ZERO, cpu_of) - cpu;
    let elapsed = begin.elapsed();
    stop.set(true);
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    let (mut whole, mut first) = times.take();
    whole.sort_unstable();
    first.sort_unstable();
    let at = |times: &[Duration], share: f64| {
        times
            .get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or_default()
    };
    let requests = whole.len() as u64;
    Seen {
        requests,
        cpu: cpu.checked_div(requests.max(1) as u32).unwrap_or_default(),
        p50: at(&whole, 0.5),
        p99: at(&whole, 0.99),
        first: at(&first, 0.5),
        failed: failed.get(),
        per_second: requests as f64 / elapsed.as_secs_f64(),
    }
}

/// Opens so many streams, waits until each has its first word, and returns them open with how many failed.
pub async fn hold(shape: Shape) -> (Vec<Caller>, usize) {
    let request: Rc<[u8]> = request(&shape).into();
    let mut open = Vec::new();
    let mut failed = 0;
    while open.len() + failed < shape.connections {
        let batch: Vec<_> = (0..100.min(shape.connections - open.len() - failed))
            .map(|_| {
                let (request, port) = (request.clone(), shape.port);
                tokio::task::spawn_local(async move {
                    let mut caller = Caller::connect(port).await?;
                    caller.first(&request).await?;
                    Ok::<_, std::io::Error>(caller)
                })
            })
            .collect();
        for task in batch {
            match task.await {
                Ok(Ok(caller)) => open.push(caller),
                _ => failed += 1,
            }
        }
    }
    (open, failed)
}

/// One connection of a caller.
pub struct Caller {
    socket: TcpStream,
    buffer: Box<[u8]>,
}

impl Caller {
    async fn connect(port: u16) -> std::io::Result<Self> {
        let socket = TcpStream::connect(("127.0.0.1", port)).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, buffer: vec![0; 16 * 1024].into() })
    }

    async fn first(&mut self, request: &[u8]) -> std::io::Result<()> {
        self.socket.write_all(request).await?;
        let mut filled = 0;
        while memchr::memmem::find(&self.buffer[..filled], b" word").is_none() {
            filled += self.read(filled).await?;
        }
        self.buffer = Box::default();
        Ok(())
    }

    async fn read(&mut self, at: usize) -> std::io::Result<usize> {
        let n = self.socket.read(&mut self.buffer[at..]).await?;
        if n == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(n) }
    }

    /// One request to the last byte of its answer; returns when the first content came.
    async fn ask(&mut self, request: &[u8]) -> std::io::Result<Instant> {
        self.socket.write_all(request).await?;
        let mut filled = 0;
        let head = loop {
            filled += self.read(filled).await?;
            if let Some(at) = memchr::memmem::find(&self.buffer[..filled], b"\r\n\r\n") {
                break at + 4;
            }
        };
        if !self.buffer.starts_with(b"HTTP/1.1 200") {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        if let Some(length) = content_length(&self.buffer[..head]) {
            let first = Instant::now();
            let mut left = (head + length).saturating_sub(filled);
            while left > 0 {
                left = left.saturating_sub(self.read(0).await?);
            }
            return Ok(first);
        }
        // Chunked, and the last chunk comes last: its five bytes end what is read.
        let mut first = None;
        self.buffer.copy_within(head..filled, 0);
        filled -= head;
        loop {
            if first.is_none() && memchr::memmem::find(&self.buffer[..filled], b" word").is_some() {
                first = Some(Instant::now());
            }
            if self.buffer[..filled].ends_with(b"0\r\n\r\n") {
                return first.ok_or_else(|| std::io::ErrorKind::InvalidData.into());
            }
            if first.is_some() {
                let keep = filled.min(8);
                self.buffer.copy_within(filled - keep..filled, 0);
                filled = keep;
            }
            filled += self.read(filled).await?;
        }
    }
}

/// Processor time of all threads of a process so far.
pub fn cpu_of(pid: u32) -> Duration {
    let mut nanoseconds = 0u64;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        if let Ok(text) = std::fs::read_to_string(task.path().join("schedstat")) {
            nanoseconds += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(nanoseconds)
}

/// Resident bytes of a process.
pub fn memory_of(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1024
}
