//! The gateway under test: authentication, routing, limits and the spool are on.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::net::TcpStream;

use gateway::accept::{PlainDoor, accept};
use gateway::account::{LedgerEntry, SpoolLedger, UsageLedger};
use gateway::limit::LeaseWish;
use gateway::meter::Meters;
use gateway::picture::{
    Api, ApiSet, ConsumerInput, KeyHashInput, LimitSpec, OfferInput, Picture, PictureInput, PowerLevel,
    PriceInput, RouteInput, UpstreamInput,
};
use gateway::serve::{Gateway, GatewayHooks, GatewaySettings};
use gateway::spool::{Spool, SpoolError, SpoolSettings, UsageAttempt, UsageIntent, UsageRow};
use net::pool::{ByteStream, ConnectError, ConnectPhase, ConnectResult, Connector, PoolOrigin};
use uuid::Uuid;
use zeroize::Zeroizing;

struct Dial;

impl Connector for Dial {
    fn connect<'a>(&'a self, origin: &'a PoolOrigin) -> ConnectResult<'a> {
        Box::pin(async move {
            let socket = TcpStream::connect((&*origin.host, origin.port))
                .await
                .map_err(|error| ConnectError { phase: ConnectPhase::Tcp, text: error.to_string() })?;
            let _ = socket.set_nodelay(true);
            Ok(Box::new(socket) as Box<dyn ByteStream>)
        })
    }
}

struct Silent;

impl GatewayHooks for Silent {
    fn look_again(&self, _: Uuid) {}
    fn wish(&self, _: Vec<LeaseWish>) {}
}

struct Nothing;

impl UsageLedger for Nothing {
    fn intent(&self, _: &UsageIntent<'_>) -> Result<Box<dyn LedgerEntry>, SpoolError> {
        Ok(Box::new(Self))
    }
}

impl LedgerEntry for Nothing {
    fn settled(&self) -> Option<Pin<Box<dyn Future<Output = ()> + Send>>> {
        None
    }

    fn attempt(&mut self, _: &UsageAttempt<'_>) -> Result<(), SpoolError> {
        Ok(())
    }

    fn outcome(self: Box<Self>, _: &UsageRow<'_>) -> Result<(), SpoolError> {
        Ok(())
    }
}

/// One provider with the models of the mock, and one that speaks another dialect; one consumer with limits, a cell of
/// three models.
fn picture(upstream: u16) -> Picture {
    let names = ["plain-model", "stream-model", "idle-model"];
    let models: Vec<OfferInput> = (1u128..)
        .zip(names)
        .map(|(at, name)| OfferInput {
            id: Uuid::from_u128(at),
            name: name.into(),
            prices: PriceInput {
                input: Some(1_000_000_000),
                output: Some(2_000_000_000),
                ..PriceInput::default()
            },
            ..OfferInput::default()
        })
        .collect();
    let route = |model: &OfferInput| RouteInput {
        model_id: model.id,
        level: PowerLevel::Eco,
        tier: "all".into(),
        task: None,
        priority: 100,
        weight: 100,
        enabled: true,
        origin: None,
    };
    let hash = Sha256::digest(crate::CALLER).iter().map(|byte| format!("{byte:02x}")).collect();
    let input = PictureInput {
        routes: models.iter().map(route).collect(),
        consumers: vec![ConsumerInput {
            name: "web".into(),
            keys: vec![KeyHashInput { sha256: hash, expires: None }],
            models: vec!["mock/*".into(), "claude/*".into(), "eco".into()],
            limits: LimitSpec {
                requests_per_minute: Some(100_000_000),
                tokens_per_minute: Some(100_000_000_000),
                concurrency: Some(100_000),
                budgets: Vec::new(),
            },
            ..ConsumerInput::default()
        }],
        providers: vec![
            other_dialect(upstream),
            UpstreamInput {
                id: Uuid::from_u128(9),
                name: "mock".into(),
                kind: "openai-compatible".into(),
                base_url: format!("http://127.0.0.1:{upstream}/v1"),
                key_token: Some("token".into()),
                apis: ApiSet::default().with(Api::Chat),
                models,
                ..UpstreamInput::default()
            },
        ],
        ..PictureInput::default()
    };
    let (picture, problems) =
        Picture::build(&input, |_| Some(Zeroizing::new(b"sk-bench-0123456789-QXZJKVY-not-a-key".to_vec())));
    assert!(problems.is_empty(), "{problems:?}");
    picture
}

/// The mock as it speaks Messages: what callers of chat get from it is translated.
fn other_dialect(upstream: u16) -> UpstreamInput {
    UpstreamInput {
        id: Uuid::from_u128(10),
        name: "claude".into(),
        kind: "anthropic".into(),
        base_url: format!("http://127.0.0.1:{upstream}/claude"),
        key_token: Some("token".into()),
        apis: ApiSet::default().with(Api::Messages),
        translated: ApiSet::default().with(Api::Chat),
        models: vec![OfferInput {
            id: Uuid::from_u128(11),
            name: "translated-model".into(),
            ..OfferInput::default()
        }],
        ..UpstreamInput::default()
    }
}

pub async fn run(listener: tokio::net::TcpListener, upstream: u16, directory: std::path::PathBuf) {
    let meters = Arc::new(Meters::register(&prometheus::Registry::new()).expect("an empty registry"));
    // BENCH_LEDGER=none shows what accounting costs.
    let ledger: Arc<dyn UsageLedger> = match std::env::var("BENCH_LEDGER").as_deref() {
        Ok("none") => Arc::new(Nothing),
        _ => {
            let spool = Spool::open(SpoolSettings::new(directory)).expect("a spool");
            Arc::new(SpoolLedger::new(Arc::new(spool), false))
        }
    };
    let gateway = Arc::new(Gateway::new(
        GatewaySettings { drain: Duration::from_secs(1), ..GatewaySettings::default() },
        Arc::new(Dial),
        ledger,
        Arc::new(Silent),
        meters,
    ));
    gateway.publish(picture(upstream));
    // As the program does it; nothing else keeps the timer of its runtime from being woken by every new clock.
    let tended = Arc::clone(&gateway);
    tokio::spawn(async move {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tick.tick().await;
            tended.tend();
        }
    });
    let stop = gateway.stop_signals();
    accept(listener, Arc::new(PlainDoor), gateway, stop).await;
}
