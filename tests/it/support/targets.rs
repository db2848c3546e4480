//! Thousands of providers behind one socket: each has a loopback address of its own, and half of them may hang.
#![allow(clippy::disallowed_methods, reason = "a fake provider serves in tasks of its own")]

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// Path at which the server tells its arrivals, one a line: milliseconds since its start and the target's number.
pub const ARRIVALS: &str = "/arrivals";

/// The one key that all targets accept; clearly no real one.
pub const KEY: &str = "not-a-real-key-for-measuring-only";

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 64\r\nConnection: close\r\n\r\n\
    {\"object\":\"list\",\"data\":[{\"id\":\"model-a\",\"object\":\"model\"}]}    ";

const REFUSAL: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 75\r\nConnection: close\r\n\r\n\
    {\"error\":{\"message\":\"Incorrect API key provided\",\"code\":\"invalid_api_key\"}}";

/// The address of a target; 127.0.0.0/8 is this machine as a whole.
pub fn address(index: usize) -> Ipv4Addr {
    let part = |number: usize| u8::try_from(number % 250 + 1).expect("at most 250");
    Ipv4Addr::new(127, part(index / 62_500), part(index / 250), part(index))
}

fn index(address: IpAddr) -> Option<usize> {
    let IpAddr::V4(address) = address else { return None };
    let [_, a, b, c] = address.octets().map(usize::from);
    Some(a.checked_sub(1)? * 62_500 + b.checked_sub(1)? * 250 + c.checked_sub(1)?)
}

/// A socket on which all targets answer.
pub async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("a socket");
    let port = listener.local_addr().expect("it is bound").port();
    (listener, port)
}

/// Serves for ever. Targets for which `hangs` holds accept, read, and never answer.
pub async fn serve(listener: TcpListener, hangs: fn(usize) -> bool) {
    let started = Instant::now();
    let arrivals: Arc<Mutex<Vec<(u32, u32)>>> = Arc::default();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let arrivals = arrivals.clone();
        tokio::spawn(async move {
            // A client that goes away needs no answer.
            let _ = answer(stream, started, &arrivals, hangs).await;
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    started: Instant,
    arrivals: &Mutex<Vec<(u32, u32)>>,
    hangs: fn(usize) -> bool,
) -> std::io::Result<()> {
    let mut head = [0; 4096];
    let mut filled = 0;
    while !head[..filled].ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut head[filled..]).await?;
        if count == 0 {
            return Ok(());
        }
        filled += count;
    }
    let Some(index) = index(stream.local_addr()?.ip()) else {
        // 127.0.0.x is no target.
        let mut text = String::new();
        for (at, index) in arrivals.lock().expect("no panic holds it").iter() {
            let _ = writeln!(text, "{at} {index}");
        }
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}", text.len());
        return stream.write_all(answer.as_bytes()).await;
    };
    let at = u32::try_from(started.elapsed().as_millis()).unwrap_or(u32::MAX);
    arrivals.lock().expect("no panic holds it").push((at, u32::try_from(index).unwrap_or(u32::MAX)));
    if hangs(index) {
        // Until the client gives up.
        while stream.read(&mut head).await? > 0 {}
        return Ok(());
    }
    let known = head[..filled].windows(KEY.len()).any(|part| part == KEY.as_bytes());
    stream.write_all(if known { ANSWER } else { REFUSAL }.as_bytes()).await
}

/// Manifests of `count` providers, a hundred in a file.
pub fn write_manifests(dir: &Path, count: usize, port: u16, more: &str) {
    fs::create_dir_all(dir).expect("a directory");
    for first in (0..count).step_by(100) {
        let mut text = String::new();
        for index in first..count.min(first + 100) {
            let _ = write!(
                text,
                "[providers.target-{index:05}]\ntype = \"openai-compatible\"\nbase_url = \"http://{}:{port}/v1\"\n{more}\n",
                address(index)
            );
        }
        fs::write(dir.join(format!("{:03}.toml", first / 100)), text).expect("a manifest is written");
    }
}

/// Fetches a path; head and body as one text.
pub async fn fetch(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("it takes a request");
    let mut text = Vec::new();
    stream.read_to_end(&mut text).await.expect("it answers");
    String::from_utf8_lossy(&text).into_owned()
}

/// The arrivals so far: milliseconds since the server's start, and the target.
pub async fn arrivals(port: u16) -> Vec<(u32, usize)> {
    let text = fetch(SocketAddr::from(([127, 0, 0, 1], port)), ARRIVALS).await;
    let body = text.split_once("\r\n\r\n").expect("an answer").1;
    body.lines()
        .map(|line| {
            let (at, index) = line.split_once(' ').expect("two numbers");
            (at.parse().expect("a number"), index.parse().expect("a number"))
        })
        .collect()
}

/// The sum of a series over its labels, from an answer of `/metrics`; `which` is a part of the labels.
pub fn sum(text: &str, name: &str, which: &str) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']) && rest.contains(which))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}
