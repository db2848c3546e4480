//! What the two local writes of a request cost beside two bare `write(2)` of as many bytes.
//! `cargo bench -p providerd-gateway --bench spool`

use std::{fs::File, io::Write as _, sync::Arc, time::Instant};

use gateway::spool::{
    RequestFacts, Spool, SpoolRecord, SpoolSettings, UsageIntent, UsageRow, UsageSource, encode,
};
use uuid::Uuid;

const REQUESTS: u32 = 200_000;

fn facts() -> RequestFacts<'static> {
    RequestFacts {
        id: Uuid::new_v4(),
        at: 1_700_000_000_000_000,
        provider_id: Some(Uuid::new_v4()),
        model_id: Some(Uuid::new_v4()),
        provider: "ollama-cloud".into(),
        model: "llama2-7b".into(),
        consumer: "web-app".into(),
        user_id: "user-0123456789".into(),
        user_tier: "pro".into(),
        request_id: "01890a5d-ac96-774b-bcce-b302099a8057".into(),
        power_level: "balanced".into(),
        operation: "chat".into(),
        route: "balanced/pro".into(),
        seed: 7,
    }
}

fn row() -> UsageRow<'static> {
    UsageRow {
        facts: facts(),
        source: UsageSource::Reported,
        success: true,
        status_code: Some(200),
        latency_ms: 812,
        ttft_ms: Some(140),
        attempts: 1,
        ..UsageRow::default()
    }
}

fn lengths() -> (usize, usize) {
    let (mut one, mut two) = (Vec::new(), Vec::new());
    encode(&SpoolRecord::Intent(UsageIntent { facts: facts(), ..UsageIntent::default() }), &mut one);
    encode(&SpoolRecord::Outcome(row()), &mut two);
    (one.len(), two.len())
}

fn floor(dir: &std::path::Path) -> f64 {
    let (one, two) = lengths();
    let (one, two) = (vec![1; one], vec![1; two]);
    let mut file = File::create(dir.join("floor")).unwrap();
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        file.write_all(&one).unwrap();
        file.write_all(&two).unwrap();
    }
    let micros = begun.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS);
    std::fs::remove_file(dir.join("floor")).unwrap();
    micros
}

fn ours(dir: &std::path::Path, threads: u32) -> f64 {
    let spool = Arc::new(Spool::open(SpoolSettings::new(dir.join(format!("spool-{threads}")))).unwrap());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let spool = Arc::clone(&spool);
            scope.spawn(move || {
                let mut intent = UsageIntent { facts: facts(), ..UsageIntent::default() };
                let mut row = row();
                for number in 0..REQUESTS / threads {
                    let id = Uuid::from_u128(u128::from(number));
                    intent.facts.id = id;
                    row.facts.id = id;
                    let ticket = spool.intent(&intent).unwrap();
                    spool.outcome(ticket, &row).unwrap();
                }
            });
        }
    });
    begun.elapsed().as_secs_f64() * 1e6 / f64::from(REQUESTS)
}

fn main() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (one, two) = lengths();
    println!("intent {one} bytes, outcome {two} bytes, {REQUESTS} requests; per request:");
    for round in 1..=3 {
        let (floor, ours, both) = (floor(dir.path()), ours(dir.path(), 1), ours(dir.path(), 2));
        println!(
            "round {round}: two write(2) {floor:.2} us, intent + outcome {ours:.2} us ({:.2}x), two threads {both:.2} us",
            ours / floor
        );
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
        }
    }
}
