//! PostgreSQL is away for long while requests go on: none is refused, none is lost, none is stored twice.
//!
//! A short outage runs with all tests. The long proof takes ten minutes of it, and prints how long requests took before,
//! during and after: `PROVIDERD_OUTAGE_SECONDS=600 cargo test --test it -- --ignored --nocapture usage_outage`.
#![allow(clippy::print_stdout, reason = "figures of the long proof")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::support::{
    pg::{Cluster, Options},
    traffic::Traffic,
};

async fn blocking(cluster: &Arc<Cluster>, work: impl FnOnce(&Cluster) + Send + 'static) {
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || work(&cluster)).await.expect("the server does as it is said");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_under_load_loses_and_doubles_nothing() {
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("outage").await;
    let mut traffic = Traffic::new(db.url.clone()).await;
    traffic.ask(4, false);
    traffic.more(50).await;
    blocking(&cluster, Cluster::stop_immediate).await;
    traffic.more(300).await;
    blocking(&cluster, Cluster::start).await;
    traffic.more(50).await;
    let count = traffic.settle().await;
    count.nothing_lost_nothing_doubled();
    assert_eq!((count.rows, count.broken, count.marked), (count.whole, 0, 0), "{count:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: a long outage, and as long around it"]
async fn ten_minutes_of_outage() {
    let seconds = std::env::var("PROVIDERD_OUTAGE_SECONDS").map_or(600, |it| it.parse().expect("a number"));
    let (outage, around) = (Duration::from_secs(seconds), Duration::from_secs(seconds / 2));
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("outage").await;
    let mut traffic = Traffic::new(db.url.clone()).await;
    traffic.ask(4, false);
    traffic.more(200).await;
    let mut phases = Vec::new();
    for (name, length) in [("before", around), ("during", outage), ("after", around)] {
        match name {
            "during" => blocking(&cluster, Cluster::stop_immediate).await,
            "after" => blocking(&cluster, Cluster::start).await,
            _ => {}
        }
        let begun = Instant::now();
        while begun.elapsed() < length {
            traffic.more(1).await;
        }
        phases.push((name, begun, Instant::now()));
    }
    let shares = [0.5, 0.95, 0.99, 0.999];
    let mut p99 = Vec::new();
    for (name, from, until) in &phases {
        let found = traffic.latencies(*from, *until);
        let at = |share: f64| found[((found.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let text: Vec<String> =
            shares.iter().map(|it| format!("p{}: {:.2} ms", it * 100.0, at(*it))).collect();
        println!("{name}: {} requests, {}", found.len(), text.join(", "));
        p99.push(at(0.99));
    }
    println!("p99 during the outage is {:.2} of before", p99[1] / p99[0]);
    let count = traffic.settle().await;
    println!("{count:?}");
    count.nothing_lost_nothing_doubled();
    assert_eq!((count.rows, count.broken, count.marked), (count.whole, 0, 0), "{count:?}");
}
