//! Several gateways before one database: together they allow what one would, and a budget is not overspent by asking
//! them at once, whoever is lost meanwhile.
#![allow(clippy::disallowed_methods, reason = "gateways of a test run in tasks of its own")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use gateway::{
    accept::{PlainDoor, accept},
    account::SpoolLedger,
    limit::{LeaseWish, LimitScope, NodeShare},
    meter::Meters,
    picture::{
        Api as Dialect, ApiSet, BudgetPeriod, BudgetSpec, ConsumerInput, KeyHashInput, LimitSpec, OfferInput,
        Picture, PictureInput, PriceInput, UpstreamInput,
    },
    serve::{Gateway, GatewayHooks, GatewaySettings},
    spool::{Spool, SpoolSettings},
    tick::Tick,
};
use net::pool::{ByteStream, ConnectError, ConnectPhase, ConnectResult, Connector, PoolOrigin};
use providerd::{
    dataplane::{
        leases::{BudgetMeters, look_after_budgets, serve_wishes},
        nodes::share_limits,
    },
    store::{Store, StoreSettings},
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::support::{
    fake::{Fake, KEY},
    http::{Answer, Api, sha256},
    lab::PATIENCE,
    pg::{TestDb, pg},
};

/// Clearly no real key.
const CALLER: &str = "pd_fake-caller-key-for-tests-0003";

/// What one request costs and reserves, in units of 1e-10 USD: two tokens of output.
const COST: i64 = 100_000_000;

struct Dial;

impl Connector for Dial {
    fn connect<'a>(&'a self, origin: &'a PoolOrigin) -> ConnectResult<'a> {
        Box::pin(async move {
            let socket = TcpStream::connect((&*origin.host, origin.port))
                .await
                .map_err(|error| ConnectError { phase: ConnectPhase::Tcp, text: error.to_string() })?;
            Ok(Box::new(socket) as Box<dyn ByteStream>)
        })
    }
}

struct Wishes(mpsc::Sender<Vec<LeaseWish>>);

impl GatewayHooks for Wishes {
    fn look_again(&self, _: Uuid) {}

    fn wish(&self, wishes: Vec<LeaseWish>) {
        let _ = self.0.try_send(wishes);
    }
}

/// A gateway with its tasks, as a process has them.
struct Node {
    id: Uuid,
    gateway: Arc<Gateway>,
    api: Api,
    stop: CancellationToken,
    tasks: JoinSet<()>,
    _spool: tempfile::TempDir,
}

impl Node {
    async fn start(store: &Store, input: &PictureInput) -> Self {
        let spool = tempfile::tempdir().unwrap();
        let ledger = Arc::new(Spool::open(SpoolSettings::new(spool.path().to_owned())).unwrap());
        let registry = prometheus::Registry::new();
        let budgets = BudgetMeters::register(&registry).unwrap();
        let (wish, wishes) = mpsc::channel(256);
        let gateway = Arc::new(Gateway::new(
            GatewaySettings::default(),
            Arc::new(Dial),
            Arc::new(SpoolLedger::new(ledger, false)),
            Arc::new(Wishes(wish)),
            Arc::new(Meters::register(&registry).unwrap()),
        ));
        let (picture, problems) = Picture::build(input, |_| Some(Zeroizing::new(KEY.as_bytes().to_vec())));
        assert!(problems.is_empty(), "{problems:?}");
        gateway.publish(picture);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (id, stop, mut tasks) = (Uuid::new_v4(), CancellationToken::new(), JoinSet::new());
        tasks.spawn(accept(listener, Arc::new(PlainDoor), gateway.clone(), gateway.stop_signals()));
        tasks.spawn(serve_wishes(gateway.clone(), store.clone(), id, wishes, stop.clone()));
        tasks.spawn(look_after_budgets(store.clone(), budgets, stop.clone()));
        tasks.spawn(share_limits(gateway.clone(), store.clone(), id, stop.clone()));
        Self { id, gateway, api: Api { address, token: Some(CALLER.to_owned()) }, stop, tasks, _spool: spool }
    }

    async fn share(&self, wanted: impl Fn(NodeShare) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !wanted(self.gateway.limits().share()) {
            assert!(tokio::time::Instant::now() < deadline, "{:?}", self.gateway.limits().share());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// In order, giving everything back.
    async fn stop(mut self) {
        self.stop.cancel();
        self.gateway.drain();
        while self.tasks.join_next().await.is_some() {}
    }

    /// As a crash does it: nothing is given back, nothing is said.
    async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }
}

async fn store(db: &TestDb) -> Store {
    let store = Store::connect(&StoreSettings::new(db.url.clone().into())).await.unwrap();
    store.migrate().await.unwrap();
    store
}

/// One provider, one model of which a token of output has a price, one consumer with these limits.
fn input(fake: &Fake, limits: LimitSpec) -> PictureInput {
    PictureInput {
        consumers: vec![ConsumerInput {
            name: "web".into(),
            keys: vec![KeyHashInput { sha256: sha256(CALLER), expires: None }],
            limits,
            ..ConsumerInput::default()
        }],
        providers: vec![UpstreamInput {
            id: Uuid::from_u128(1),
            name: "fake".into(),
            kind: "openai-compatible".into(),
            base_url: fake.base_url(),
            key_token: Some("token".into()),
            apis: ApiSet::default().with(Dialect::Chat),
            models: vec![OfferInput {
                id: Uuid::from_u128(2),
                name: "m".into(),
                prices: PriceInput {
                    input: Some(0),
                    output: Some(COST / 2 * 1_000_000),
                    ..PriceInput::default()
                },
                ..OfferInput::default()
            }],
            ..UpstreamInput::default()
        }],
        ..PictureInput::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_are_divided_between_the_gateways_that_are_alive() {
    let db = pg().database("gateway_shares").await;
    let (store, fake) = (store(&db).await, Fake::start().await);
    let limits = LimitSpec { requests_per_minute: Some(60), concurrency: Some(10), ..LimitSpec::default() };
    let input = input(&fake, limits.clone());
    let first = Node::start(&store, &input).await;
    first.share(|share| share == NodeShare::ALL).await;
    let second = Node::start(&store, &input).await;
    let mut third = Node::start(&store, &input).await;
    let third_part = |share: NodeShare| (300_000..=340_000).contains(&share.millionths());
    for node in [&first, &second, &third] {
        node.share(third_part).await;
    }
    // At one moment all of them together let in what one would. A consumer of this name alone: no demand but this.
    let asked = |node: &Node, name: &str| {
        let enter = || node.gateway.limits().enter(&[(LimitScope::Consumer(name), &limits)], Tick(1_000));
        let held: Vec<_> = (0..50).filter_map(|_| enter().ok()).collect();
        let at_once = held.len();
        drop(held);
        at_once + (0..100).filter(|_| enter().is_ok()).count()
    };
    let at_once = |node: &Node, name: &str| {
        let only = LimitSpec { concurrency: Some(10), ..LimitSpec::default() };
        let held: Vec<_> = (0..50)
            .filter_map(|_| node.gateway.limits().enter(&[(LimitScope::Consumer(name), &only)], Tick(0)).ok())
            .collect();
        held.len()
    };
    let all = [&first, &second, &third];
    let shares = || all.map(|node| node.gateway.limits().share());
    // Each second shares follow demand, which this itself is: what counts is a look within one of them.
    for look in 0.. {
        let before = shares();
        let here: usize = all.iter().map(|node| at_once(node, &format!("at once {look}"))).sum();
        let minute: usize = all.iter().map(|node| asked(node, &format!("a minute {look}"))).sum();
        if shares() == before {
            assert!((7..=10).contains(&here), "{here} at once, {before:?}");
            assert!((55..=60).contains(&minute), "{minute} a minute, {before:?}");
            break;
        }
        assert!(look < 100, "shares change all the time");
    }

    // One that dies is missed after a while; one that stops, at once.
    third.kill().await;
    first.share(|share| share.millionths() > 340_000).await;
    second.stop().await;
    first.share(|share| share == NodeShare::ALL).await;
    first.stop().await;
    drop(third);
}

/// `None`: no answer, from a gateway that was killed.
async fn answered(address: &str, request: &[u8]) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    stream.write_all(request).await.ok()?;
    let mut raw = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut raw)).await.expect("an end in time");
    Answer::parse(raw)
}

/// 402, or what else went wrong; `None`: served.
fn refused(answer: &Answer) -> Option<u16> {
    (answer.status != 200).then_some(answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_is_not_overspent_by_asking_three_gateways_at_once() {
    const REQUESTS: usize = 200;
    const AFFORDED: i64 = 300;
    let db = pg().database("gateway_budget_race").await;
    let (store, fake) = (store(&db).await, Fake::start().await);
    let budget = BudgetSpec { units: AFFORDED * COST, per: BudgetPeriod::Month };
    let input = input(&fake, LimitSpec { budgets: vec![budget], ..LimitSpec::default() });
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(&store, &input).await);
    }
    for node in &nodes {
        node.share(|share| share != NodeShare::ALL).await;
    }
    let body = json!({ "model": "m", "max_tokens": 2, "messages": [{ "role": "user", "content": "Hi" }] });
    let body = Arc::new(body.to_string().into_bytes());
    let mut asking = JoinSet::new();
    for _ in 0..REQUESTS {
        for (number, node) in nodes.iter().enumerate() {
            let (api, body) = (node.api.clone(), body.clone());
            asking.spawn(async move {
                let content = [("content-type", "application/json")];
                let request = api.request("POST", "/v1/chat/completions", &content, &body);
                // Who waited in vain asks again: how long the database takes is not the question here.
                let begun = tokio::time::Instant::now();
                loop {
                    let answer = answered(&api.address, &request).await;
                    let in_vain = answer.as_ref().is_some_and(|it| {
                        it.status == 402 && String::from_utf8_lossy(&it.body).contains("held by other nodes")
                    });
                    if !in_vain || begun.elapsed() > PATIENCE {
                        return (number, answer);
                    }
                }
            });
        }
    }
    let (mut served, mut over_budget) = (HashMap::<usize, i64>::new(), 0);
    let mut dead: Option<usize> = None;
    while let Some(answered) = asking.join_next().await {
        let (number, answer) = answered.unwrap();
        match answer.as_ref().map(refused) {
            Some(None) => *served.entry(number).or_default() += 1,
            Some(Some(402)) => over_budget += 1,
            Some(Some(status)) => panic!("{status}: {answer:?}"),
            None => assert_eq!(dead, Some(number), "only the one that was killed answers nothing"),
        }
        // In the middle of it, and while it holds a part of the budget.
        if dead.is_none() && served.get(&number).is_some_and(|count| *count >= 20) {
            nodes[number].kill().await;
            dead = Some(number);
        }
    }
    let Some(dead) = dead else { panic!("one of them serves twenty: {served:?}, {over_budget} refused") };
    let dead = nodes.remove(dead);
    let all: i64 = served.values().sum();
    // What it costs is what was reserved: not one request more than the budget affords.
    assert!(all <= AFFORDED, "{served:?}");
    let number = |text: String| -> i64 {
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["n"].as_i64().unwrap_or(0)
    };
    for node in nodes {
        node.stop().await;
    }
    let of_budget =
        async |what: &str| number(db.text(&format!("SELECT {what} n FROM providerd.budget")).await);
    let (spent, leased) = (of_budget("spent").await, of_budget("leased").await);
    let sql = format!(
        "SELECT coalesce(sum(amount), 0)::bigint n FROM providerd.budget_lease WHERE node = '{}'",
        dead.id
    );
    let held = number(db.text(&sql).await);
    assert_eq!(leased, spent + held, "what is leased was spent, or is held by the dead one");
    assert!(leased <= budget.units, "leased {leased}");
    assert!(spent + held >= all * COST, "spent {spent}, held {held}, {served:?}");
    // What those that live gave back they could have spent: that was refused wrongly.
    let wrongly = (budget.units - leased) / COST;
    println!("{served:?}; the dead one held {}; {over_budget} refused, {wrongly} wrongly", held / COST);
    assert!(wrongly <= AFFORDED / 100, "{wrongly} of {over_budget} refused wrongly; {served:?}, held {held}");
}
