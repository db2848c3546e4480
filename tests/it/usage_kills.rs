//! `kill -9` of the gateway and of PostgreSQL, again and again, under load: every request that reached a provider is one
//! row, once, with the provider's own figures; what was cut off is marked.
//!
//! Tens of kills run with all tests. The long proof is a thousand:
//! `PROVIDERD_KILLS=1000 cargo test --test it -- --ignored --nocapture usage_kills`.
//! `PROVIDERD_KILLS_SEED` repeats a course of kills.
#![allow(clippy::print_stdout, reason = "figures of the long proof")]

use std::{sync::Arc, time::Instant};

use crate::support::{
    pg::{Cluster, Options},
    traffic::Traffic,
};

/// Callers that ask without a pause; one more holds a request that is never answered, so that each kill cuts one off.
const CALLERS: usize = 6;

/// Numbers for choosing when and whom (SplitMix64).
struct Choice(u64);

impl Choice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut it = self.0;
        it = (it ^ (it >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        it = (it ^ (it >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (it ^ (it >> 31)) % limit
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// `kills` in all; every `each`-th is PostgreSQL, and some are both at once.
async fn prove(kills: u64, each: u64) {
    let seed = number("PROVIDERD_KILLS_SEED", 7);
    let mut choice = Choice(seed);
    let cluster = Arc::new(Cluster::start_private(Options { fsync: true }));
    let db = cluster.database("kills").await;
    let mut traffic = Traffic::new(db.url.clone()).await;
    traffic.ask(CALLERS, true);
    let (mut gateway, mut server) = (0, 0);
    let begun = Instant::now();
    while gateway + server < kills {
        // Some requests after the last start, at another point of their work each time.
        let hanging = gateway + 1;
        traffic.until(|it| it.provider.hanging() >= hanging).await;
        traffic.more(1 + usize::try_from(choice.below(24)).expect("small")).await;
        for _ in 0..choice.below(300) {
            tokio::task::yield_now().await;
        }
        let turn = gateway + server;
        if turn % 8 == 7 {
            // Else a machine that is slow to start would never ship before the last kill.
            traffic.caught_up().await;
        }
        if turn % each != each - 1 {
            gateway += 1;
            traffic.kill();
            traffic.start().await;
        } else {
            server += 1;
            let both = choice.below(3) == 0;
            if both {
                traffic.kill();
            }
            let killed = Arc::clone(&cluster);
            tokio::task::spawn_blocking(move || killed.kill()).await.expect("the server is killed");
            if both {
                // It starts without a database, from the last picture.
                gateway += 1;
                traffic.start().await;
            }
            // Requests go on meanwhile.
            traffic.more(5).await;
            let again = Arc::clone(&cluster);
            tokio::task::spawn_blocking(move || again.start()).await.expect("the server starts");
        }
        if turn % 100 == 99 {
            println!(
                "{} kills, {:.0} s, {} whole answers",
                turn + 1,
                begun.elapsed().as_secs_f64(),
                traffic.received()
            );
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let count = traffic.settle().await;
    println!("seed {seed}: {gateway} kills of the gateway, {server} of PostgreSQL in {took:.0} s: {count:?}");
    count.nothing_lost_nothing_doubled();
    assert!(count.marked as u64 >= gateway, "each kill cut off a request: {count:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tens_of_kills_lose_and_double_nothing() {
    prove(number("PROVIDERD_KILLS", 20), 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "minutes: a thousand kills"]
async fn a_thousand_kills_lose_and_double_nothing() {
    prove(number("PROVIDERD_KILLS", 1_000), 10).await;
}
