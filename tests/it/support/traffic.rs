//! Load on a real gateway, counted on both sides: a provider that remembers what it was asked, callers that remember
//! what they received whole, and what the log of usage must say after both.
//!
//! Invariant: nothing is judged by time. Whatever ends when, the three counts have to agree.
#![allow(clippy::disallowed_methods, reason = "a provider and callers run in tasks of their own")]

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Notify, watch},
    task::JoinHandle,
};

use super::{
    http::{Answer, Api, sha256},
    lab::{Daemon, Lab, PATIENCE},
};

/// Clearly no real keys.
const CALLER: &str = "pd_fake-caller-key-for-tests-0003";
const PROVIDER_KEY: &str = "sk-fake-key-for-tests-counting-provider";

/// Requests of this kind are read by the provider and never answered.
const HANGS: &str = "hang";

/// What the provider reports for a request: input and output tokens.
fn tokens(number: u64) -> (u64, u64) {
    (10 + number % 97, 1 + number % 13)
}

/// What they cost at 0.10 and 0.20 USD per million, in 1e-10 USD.
fn cost(number: u64) -> u64 {
    let (input, output) = tokens(number);
    input * 1_000 + output * 2_000
}

/// Speaks the OpenAI protocol, and remembers the number of each request.
pub struct CountingProvider {
    base_url: String,
    seen: Arc<Mutex<BTreeSet<u64>>>,
    hanging: Arc<AtomicU64>,
}

impl CountingProvider {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base_url = format!("http://{}/v1", listener.local_addr().unwrap());
        let it = Self { base_url, seen: Arc::default(), hanging: Arc::default() };
        let (seen, hanging) = (it.seen.clone(), it.hanging.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer_all(socket, seen.clone(), hanging.clone()));
            }
        });
        it
    }

    /// Numbers of the requests that arrived whole.
    pub fn seen(&self) -> BTreeSet<u64> {
        self.seen.lock().unwrap().clone()
    }

    /// Requests so far that are held for ever.
    pub fn hanging(&self) -> u64 {
        self.hanging.load(SeqCst)
    }
}

/// Answers the requests of one connection.
async fn answer_all(mut socket: TcpStream, seen: Arc<Mutex<BTreeSet<u64>>>, hanging: Arc<AtomicU64>) {
    let mut bytes = Vec::new();
    loop {
        let (head, body) = loop {
            if let Some(whole) = take_request(&mut bytes) {
                break whole;
            }
            let mut chunk = [0; 8192];
            match socket.read(&mut chunk).await {
                Ok(count) if count > 0 => bytes.extend_from_slice(&chunk[..count]),
                _ => return,
            }
        };
        assert!(head.contains(PROVIDER_KEY), "another key: {head}");
        let asked: Value = serde_json::from_slice(&body).unwrap();
        let content = asked["messages"][0]["content"].as_str().unwrap();
        let (number, kind) = content.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        seen.lock().unwrap().insert(number);
        if kind == HANGS {
            hanging.fetch_add(1, SeqCst);
            // Until the gateway is gone.
            let _ = socket.read(&mut [0; 64]).await;
            return;
        }
        let sent = if asked["stream"] == true {
            stream_answer(&mut socket, number).await
        } else {
            plain_answer(&mut socket, number).await
        };
        if sent.is_err() {
            return;
        }
    }
}

/// Cuts a whole request off the front.
fn take_request(bytes: &mut Vec<u8>) -> Option<(String, Vec<u8>)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().ok())?
    })?;
    let body = bytes.get(end..end + length)?.to_vec();
    bytes.drain(..end + length);
    Some((head, body))
}

fn usage(number: u64) -> Value {
    let (input, output) = tokens(number);
    json!({ "prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output })
}

async fn plain_answer(socket: &mut TcpStream, number: u64) -> std::io::Result<()> {
    let choice = json!({ "index": 0, "finish_reason": "stop", "message": { "role": "assistant", "content": "Hello" } });
    let body =
        json!({ "id": "c", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage(number) })
            .to_string();
    // In two parts, so that a death may fall between them.
    let (one, two) = body.split_at(body.len() / 2);
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{one}",
        body.len()
    );
    socket.write_all(head.as_bytes()).await?;
    tokio::task::yield_now().await;
    socket.write_all(two.as_bytes()).await
}

async fn stream_answer(socket: &mut TcpStream, number: u64) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await?;
    let chunk = |delta: Value, finish: Option<&str>| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
        json!({ "id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice] }).to_string()
    };
    let last = json!({ "id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [], "usage": usage(number) });
    for event in [
        chunk(json!({ "role": "assistant", "content": "" }), None),
        chunk(json!({ "content": "Hel" }), None),
        chunk(json!({ "content": "lo" }), Some("stop")),
        last.to_string(),
        "[DONE]".to_owned(),
    ] {
        let data = format!("data: {event}\n\n");
        socket.write_all(format!("{:x}\r\n{data}\r\n", data.len()).as_bytes()).await?;
        tokio::task::yield_now().await;
    }
    socket.write_all(b"0\r\n\r\n").await
}

/// A database with one provider and one consumer, and a gateway alone that serves it.
pub struct Traffic {
    pub lab: Lab,
    pub provider: CountingProvider,
    callers: Arc<Callers>,
    tasks: Vec<JoinHandle<()>>,
    gateway: Option<Daemon>,
}

/// What callers share.
struct Callers {
    next: AtomicU64,
    stop: AtomicBool,
    /// The address of the gateway that runs now, with a number that grows with each start.
    address: watch::Sender<(u64, String)>,
    received: Notify,
    book: Mutex<CallersBook>,
}

#[derive(Default)]
struct CallersBook {
    whole: BTreeSet<u64>,
    /// Requests that were sent, or begun to be, and whose answer broke off or never came.
    broken: BTreeSet<u64>,
    /// Whole answers that are no success, by status and word.
    refused: BTreeMap<String, u64>,
    /// When answers were received whole, and after how long.
    latencies: Vec<(Instant, Duration)>,
}

/// How a request ended for its caller.
enum Received {
    Whole(Duration),
    Refused(String),
    Broken,
    /// There was no connection: nothing was sent.
    Unsent,
}

impl Traffic {
    /// Applies the manifests to this database and starts a gateway on it; no load yet.
    pub async fn new(url: String) -> Self {
        let (mut lab, provider) = (Lab::new().await, CountingProvider::start().await);
        lab.url = url;
        lab.write(
            "all.toml",
            &format!(
                "[providers.counting]\ntype = \"openai\"\nbase_url = \"{}\"\napi_key = {{ env = \"COUNTING_API_KEY\" }}\n\n\
                 [[providers.counting.models]]\nname = \"model-a\"\ncost_per_1m_input_tokens = 0.10\n\
                 cost_per_1m_output_tokens = 0.20\n\n[consumers.web]\nkeys = [{{ sha256 = \"{}\" }}]\n",
                provider.base_url,
                sha256(CALLER)
            ),
        );
        lab.run_with(&["apply"], |command| {
            command.env("COUNTING_API_KEY", PROVIDER_KEY);
        })
        .expect(0);
        let callers = Arc::new(Callers {
            next: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            address: watch::Sender::new((0, String::new())),
            received: Notify::new(),
            book: Mutex::default(),
        });
        let mut it = Self { lab, provider, callers, tasks: Vec::new(), gateway: None };
        it.start().await;
        it.until_it_answers().await;
        it
    }

    /// Starts the gateway and lets callers know.
    pub async fn start(&mut self) {
        let mut gateway = self.lab.started(&["gateway"], |command| {
            command.env("PROVIDERD_GATEWAY__LISTEN", "127.0.0.1:0").env("RUST_LOG", "warn,providerd=info");
        });
        gateway.wait_for_log("the gateway serves").await;
        let log = gateway.log();
        let line = log.lines().find(|line| line.contains("the gateway listens")).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        let address = line["address"].as_str().unwrap().to_owned();
        self.callers.address.send_modify(|(generation, now)| {
            *generation += 1;
            *now = address;
        });
        self.gateway = Some(gateway);
    }

    /// Waits until the gateway has a picture.
    async fn until_it_answers(&self) {
        let address = self.callers.address.borrow().1.clone();
        let api = Api { address, token: Some(CALLER.to_owned()) };
        api.wait_for("/v1/models", |models| !models["data"].as_array().unwrap().is_empty()).await;
    }

    /// `kill -9` of the gateway.
    pub fn kill(&mut self) {
        self.gateway.take().unwrap().kill();
    }

    /// Callers that ask without a pause, and where wanted one more whose requests are never answered.
    pub fn ask(&mut self, callers: usize, hanging: bool) {
        for at in 0..callers + usize::from(hanging) {
            self.tasks.push(tokio::spawn(self.callers.clone().ask_on(at == callers)));
        }
    }

    /// Answers received whole so far.
    pub fn received(&self) -> usize {
        self.callers.book.lock().unwrap().whole.len()
    }

    /// Waits for so many further whole answers.
    pub async fn more(&self, answers: usize) {
        let wanted = self.received() + answers;
        self.until(|it| it.received() >= wanted).await;
    }

    /// Waits until something is true that an answer may bring about.
    pub async fn until(&self, fits: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !fits(self) {
            assert!(tokio::time::Instant::now() < deadline, "no answers any more: {:?}", self.refused());
            let _ = tokio::time::timeout(Duration::from_millis(20), self.callers.received.notified()).await;
        }
    }

    /// Waits until as many rows are stored as answers were received before.
    pub async fn caught_up(&self) {
        let wanted = self.received();
        let started = Instant::now();
        let mut connection = self.lab.connect().await;
        loop {
            let rows = super::lab::value(&mut connection, "SELECT count(*) FROM llm_usage_logs").await;
            if rows.parse::<usize>().unwrap_or_default() >= wanted {
                return;
            }
            assert!(started.elapsed() < PATIENCE * 3, "{rows} rows for {wanted} answers");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whole answers that were no success, by status and word.
    pub fn refused(&self) -> BTreeMap<String, u64> {
        self.callers.book.lock().unwrap().refused.clone()
    }

    /// How long the whole answers took that came from then on, and before.
    pub fn latencies(&self, from: Instant, until: Instant) -> Vec<Duration> {
        let book = self.callers.book.lock().unwrap();
        let mut found: Vec<Duration> =
            book.latencies.iter().filter(|(at, _)| (from..until).contains(at)).map(|(_, it)| *it).collect();
        found.sort_unstable();
        found
    }

    /// Ends the load, waits until everything is stored, and holds the three counts against each other.
    pub async fn settle(mut self) -> TrafficCount {
        self.callers.stop.store(true, SeqCst);
        // What hangs ends with its gateway; the next one gives it an outcome.
        if self.provider.hanging() > 0 {
            self.kill();
        }
        // Callers that wait for an address have to see that they are to stop.
        self.callers.address.send_modify(|(generation, _)| *generation += 1);
        for task in std::mem::take(&mut self.tasks) {
            task.await.expect("a caller ends in order");
        }
        if self.gateway.is_none() {
            self.start().await;
        }
        let seen = self.provider.seen();
        let stored = "SELECT count(*) FROM llm_usage_logs";
        let started = Instant::now();
        let mut connection = self.lab.connect().await;
        loop {
            let now = super::lab::value(&mut connection, stored).await;
            if now.parse::<usize>().unwrap_or_default() >= seen.len() {
                break;
            }
            assert!(started.elapsed() < PATIENCE * 3, "{now} rows for {} requests", seen.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A stop in order ships what is left: intents of requests that never left.
        assert_eq!(self.gateway.take().unwrap().stop(), 0);
        drop(connection);
        self.count(&seen).await
    }

    async fn count(&self, seen: &BTreeSet<u64>) -> TrafficCount {
        let mut connection = self.lab.connect().await;
        let rows = sqlx::query(
            "SELECT request_id, success, coalesce(error_message, ''), prompt_tokens::bigint, completion_tokens::bigint,
                    (cost_total_usd * 10000000000)::bigint FROM llm_usage_logs",
        )
        .fetch_all(&mut connection)
        .await
        .unwrap();
        let mut count = TrafficCount::default();
        let mut stored: HashMap<u64, bool> = HashMap::new();
        let mut wrong = Vec::new();
        for row in &rows {
            let id: String = row.get(0);
            let number: u64 = id.strip_prefix("n-").and_then(|it| it.parse().ok()).expect("an id of ours");
            let (success, error): (bool, String) = (row.get(1), row.get(2));
            let figures: (i64, i64, Option<i64>) = (row.get(3), row.get(4), row.get(5));
            count.doubled += usize::from(stored.insert(number, success).is_some());
            count.marked += usize::from(error == "gateway stopped");
            if success {
                let (input, output) = tokens(number);
                let (input, output, cost) =
                    (input.cast_signed(), output.cast_signed(), cost(number).cast_signed());
                if figures != (input, output, Some(cost)) {
                    wrong.push((number, figures));
                }
            } else if !(error == "gateway stopped"
                || ["caller_left", "shutting_down"].contains(&error.as_str()) && seen.contains(&number))
            {
                count.unexplained.push((number, error));
            }
        }
        count.rows = rows.len();
        count.wrong = wrong.len();
        count.unseen = seen.iter().filter(|it| !stored.contains_key(it)).count();
        {
            let book = self.callers.book.lock().unwrap();
            (count.whole, count.broken) = (book.whole.len(), book.broken.len());
            count.lost = book.whole.iter().filter(|it| stored.get(it) != Some(&true)).count();
            count.refused = book.refused.clone();
        }
        // The sums have to say what the rows say, to the last digit.
        let sums = "SELECT concat_ws(' ', sum(requests), sum(requests - errors), sum(input), sum(output), sum(cost))";
        let rows =
            "SELECT concat_ws(' ', count(*), count(*) FILTER (WHERE success), sum(prompt_tokens::bigint),
                    sum(completion_tokens::bigint), sum(cost_total_usd)) FROM llm_usage_logs";
        let expected = super::lab::value(&mut connection, rows).await;
        for table in [
            "usage_hourly",
            "usage_monthly",
            "usage_users",
            "usage_users_monthly",
            "usage_series_hourly WHERE kind = 'all'",
            "usage_series_daily WHERE kind = 'model'",
        ] {
            let got = super::lab::value(&mut connection, &format!("{sums} FROM providerd.{table}")).await;
            assert_eq!(got, expected, "{table}");
        }
        count
    }
}

/// What a load came to.
#[derive(Debug, Default)]
pub struct TrafficCount {
    pub rows: usize,
    /// Answers that callers received whole.
    pub whole: usize,
    /// Requests whose answer broke off or never came.
    pub broken: usize,
    /// Rows of requests that had no outcome.
    pub marked: usize,
    /// Rows beyond the first of a request.
    pub doubled: usize,
    /// Whole answers without a row that says so.
    pub lost: usize,
    /// Requests that the provider read, without a row.
    pub unseen: usize,
    /// Rows with other tokens or another cost than the provider's.
    pub wrong: usize,
    /// Failures that no death explains.
    pub unexplained: Vec<(u64, String)>,
    pub refused: BTreeMap<String, u64>,
}

impl TrafficCount {
    #[track_caller]
    pub fn nothing_lost_nothing_doubled(&self) {
        let all =
            (self.lost, self.unseen, self.doubled, self.wrong, self.unexplained.len(), self.refused.len());
        assert_eq!(all, (0, 0, 0, 0, 0, 0), "{self:?}");
        assert!(self.whole > 0 && self.rows >= self.whole, "{self:?}");
        // Whatever has a row was received whole, broke off, or both never left and is marked.
        assert!(self.rows <= self.whole + self.broken, "{self:?}");
    }
}

impl Callers {
    async fn ask_on(self: Arc<Self>, hanging: bool) {
        let mut address = self.address.subscribe();
        while !self.stop.load(SeqCst) {
            let (generation, now) = address.borrow_and_update().clone();
            let number = self.next.fetch_add(1, SeqCst);
            match ask_once(&now, number, hanging).await {
                Received::Whole(took) => {
                    let mut book = self.book.lock().unwrap();
                    book.whole.insert(number);
                    book.latencies.push((Instant::now(), took));
                    drop(book);
                    self.received.notify_waiters();
                }
                Received::Refused(why) => {
                    *self.book.lock().unwrap().refused.entry(why).or_default() += 1;
                    tokio::task::yield_now().await;
                }
                Received::Broken => {
                    self.book.lock().unwrap().broken.insert(number);
                }
                Received::Unsent => {
                    // The next start makes another address known.
                    while address.borrow().0 == generation && !self.stop.load(SeqCst) {
                        if address.changed().await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// One request over a connection of its own. Whole is an answer of which nothing is missing: its length as said, or the
/// mark at the end of a stream.
async fn ask_once(address: &str, number: u64, hanging: bool) -> Received {
    let begun = Instant::now();
    let Ok(mut socket) = TcpStream::connect(address).await else { return Received::Unsent };
    let kind = if hanging { HANGS } else { "go" };
    let body = json!({ "model": "counting/model-a", "stream": number.is_multiple_of(3), "max_tokens": 16,
        "messages": [{ "role": "user", "content": format!("{number} {kind}") }] });
    let api = Api { address: address.to_owned(), token: Some(CALLER.to_owned()) };
    let id = format!("n-{number}");
    let headers = [("Content-Type", "application/json"), ("X-Request-Id", id.as_str())];
    let request = api.request("POST", "/v1/chat/completions", &headers, body.to_string().as_bytes());
    let mut raw = Vec::new();
    if socket.write_all(&request).await.is_err() {
        return Received::Broken;
    }
    let _ = socket.read_to_end(&mut raw).await;
    let Some(answer) = Answer::parse(raw) else { return Received::Broken };
    let whole = match answer.header("content-length") {
        Some(length) => length.parse() == Ok(answer.body.len()),
        // As the official clients do, at the mark of a whole stream.
        None => answer.body.windows(14).any(|bytes| bytes == b"data: [DONE]\n\n"),
    };
    match (whole, answer.status) {
        (false, _) => Received::Broken,
        (true, 200) => Received::Whole(begun.elapsed()),
        (true, status) => Received::Refused(format!("{status} {}", answer.code())),
    }
}
