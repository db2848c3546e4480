//! The spool against ends at any moment: a process killed at random, files cut or spoilt at random places, any bytes.

use std::{
    collections::{HashMap, HashSet},
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use gateway::spool::{
    HEAD, MAX_PAYLOAD, RequestFacts, Spool, SpoolBatch, SpoolCut, SpoolFrame, SpoolOffset, SpoolRecord,
    SpoolSettings, UsageAttempt, UsageIntent, UsageRow, UsageSource, decode, encode, examine, frame,
};
use proptest::prelude::*;
use uuid::Uuid;

fn facts(id: Uuid) -> RequestFacts<'static> {
    RequestFacts { id, provider: "p".into(), model: "m".into(), ..RequestFacts::default() }
}

fn small(dir: &Path) -> SpoolSettings {
    SpoolSettings {
        segment_bytes: 16 << 10,
        sync_interval: Duration::from_millis(1),
        ..SpoolSettings::new(dir.to_owned())
    }
}

fn read_all(spool: &Spool) -> Vec<(Uuid, bool)> {
    let mut found = Vec::new();
    for id in spool.spools() {
        let batch = spool.read(id, None, usize::MAX).unwrap();
        found.extend(batch.rows().map(|(_, row)| (row.facts.id, &*row.error == "gateway stopped")));
    }
    found
}

const CHILD: &str = "SPOOL_TEST_DIR";
const CURSORS: &str = "SPOOL_TEST_CURSORS";

/// `spool segment offset`, one a line.
fn cursors_of(text: &str) -> HashMap<Uuid, SpoolOffset> {
    text.lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [spool, segment, offset] = words.as_slice() else { panic!("{line}") };
            let at = SpoolOffset { segment: segment.parse().unwrap(), offset: offset.parse().unwrap() };
            (spool.parse().unwrap(), at)
        })
        .collect()
}

/// Not a test by itself: what the process that is killed does. It says on its output what was accepted.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let spool = Spool::open(small(Path::new(&dir))).unwrap();
    std::thread::scope(|scope| {
        let spool = &spool;
        // Ships now and then, as the daemon would.
        scope.spawn(move || {
            spool.recover().unwrap();
            println!("\nrecovered");
            let mut cursors = cursors_of(&std::env::var(CURSORS).unwrap());
            loop {
                for id in spool.spools() {
                    let batch = spool.read(id, cursors.get(&id).copied(), 50).unwrap();
                    let mut out = String::new();
                    for (_, row) in batch.rows() {
                        out.push_str(&format!("shipped {} {}\n", row.facts.id, row.error.is_empty()));
                    }
                    let Some(next) = batch.next() else { continue };
                    // One write: the parent gets whole batches, as a transaction would be.
                    out.push_str(&format!("cursor {id} {} {}\n", next.segment, next.offset));
                    std::io::stdout().lock().write_all(out.as_bytes()).unwrap();
                    cursors.insert(id, next);
                    spool.release(id, next).unwrap();
                }
                std::thread::yield_now();
            }
        });
        for _ in 0..2 {
            scope.spawn(move || {
                let mut held = Vec::new();
                loop {
                    let id = Uuid::new_v4();
                    let ticket =
                        spool.intent(&UsageIntent { facts: facts(id), ..UsageIntent::default() }).unwrap();
                    println!("intent {id}");
                    held.push((id, ticket));
                    // Some requests take long.
                    let at = if held.len() > 20 { 0 } else { held.len() - 1 };
                    if !id.as_u128().is_multiple_of(4) {
                        let (id, ticket) = held.remove(at);
                        let row = UsageRow { facts: facts(id), ..UsageRow::default() };
                        spool.outcome(ticket, &row).unwrap();
                        println!("outcome {id}");
                    }
                }
            });
        }
    });
}

/// Kills a writer again and again; in the end each accepted request is there once, and each ended one as it ended.
#[test]
fn killed_at_any_moment_nothing_is_lost_and_nothing_doubled() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = std::env::var("SPOOL_TEST_KILLS").map_or(12, |it| it.parse().unwrap());
    let (mut intents, mut outcomes) = (HashSet::new(), HashSet::new());
    // What "the database" holds, with the cursors moved together with it.
    let mut stored: HashMap<Uuid, bool> = HashMap::new();
    let mut cursors: HashMap<Uuid, SpoolOffset> = HashMap::new();
    let mut recovered = 0;
    let mut lines_wanted = 1;
    for round in 0..rounds {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CHILD, dir.path())
            .env(
                CURSORS,
                cursors
                    .iter()
                    .map(|(id, at)| format!("{id} {} {}", at.segment, at.offset))
                    .collect::<Vec<_>>()
                    .join("\n"),
            )
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Killed after some number of lines: at another moment each time, and never by the clock.
        lines_wanted = lines_wanted * 7 % 4_001 + round * 13;
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut pending = Vec::new();
        let mut lines = 0;
        let mut line = String::new();
        let mut killed = false;
        while reader.read_line(&mut line).unwrap_or(0) > 0 {
            let whole = line.ends_with('\n');
            lines += 1;
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["recovered"] => recovered += 1,
                ["intent", id] if whole => drop(intents.insert(id.parse::<Uuid>().unwrap())),
                ["outcome", id] if whole => drop(outcomes.insert(id.parse::<Uuid>().unwrap())),
                ["shipped", id, ended] if whole => {
                    pending.push((id.parse::<Uuid>().unwrap(), *ended == "true"));
                }
                ["cursor", spool, segment, offset] if whole => {
                    cursors.extend(cursors_of(&format!("{spool} {segment} {offset}")));
                    for (id, ended) in pending.drain(..) {
                        assert_eq!(stored.insert(id, ended), None, "{id} is doubled");
                    }
                }
                _ => {}
            }
            line.clear();
            if lines >= lines_wanted + 5 && !killed {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
    }
    assert!(recovered > 0, "no child came so far as to ship");
    // What is left in the spool after the last kill.
    let spool = Spool::open(small(dir.path())).unwrap();
    spool.recover().unwrap();
    for id in spool.spools() {
        let mut after = cursors.get(&id).copied();
        loop {
            let batch: SpoolBatch = spool.read(id, after, 100).unwrap();
            for (_, row) in batch.rows() {
                let twice = stored.insert(row.facts.id, row.error.is_empty());
                assert_eq!(twice, None, "{} is doubled", row.facts.id);
            }
            after = batch.next();
            if batch.is_last() {
                break;
            }
        }
    }
    for id in &intents {
        assert!(stored.contains_key(id), "{id} is lost");
    }
    for id in &outcomes {
        assert_eq!(stored.get(id), Some(&true), "the outcome of {id} is lost");
    }
    // A request may have been accepted and its line not written, one per thread and round; no row comes from nowhere.
    let unknown = stored.keys().filter(|id| !intents.contains(id)).count();
    assert!(unknown <= 2 * rounds, "{unknown} rows without a request");
    assert!(outcomes.len() > 20 * rounds, "{} outcomes", outcomes.len());
}

fn segments(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "seg"))
        .collect();
    found.sort();
    found
}

fn write_some(dir: &Path, count: u128) {
    let spool = Spool::open(small(dir)).unwrap();
    for number in 0..count {
        let id = Uuid::from_u128(number);
        let ticket = spool.intent(&UsageIntent { facts: facts(id), ..UsageIntent::default() }).unwrap();
        spool.outcome(ticket, &UsageRow { facts: facts(id), ..UsageRow::default() }).unwrap();
    }
}

#[tokio::test]
async fn strict_waits_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(SpoolSettings { strict: true, ..small(dir.path()) }).unwrap();
    let ticket =
        spool.intent(&UsageIntent { facts: facts(Uuid::from_u128(1)), ..UsageIntent::default() }).unwrap();
    spool.settled(ticket.sequence()).await;
    let sequence =
        spool.outcome(ticket, &UsageRow { facts: facts(Uuid::from_u128(1)), ..UsageRow::default() });
    spool.settled(sequence.unwrap()).await;
    // What is settled is synced, and so can be read.
    assert_eq!(read_all(&spool), [(Uuid::from_u128(1), false)]);
}

fn text(limit: usize) -> BoxedStrategy<String> {
    prop_oneof![
        "[a-z0-9-]{0,40}",
        "\\PC{0,60}",
        Just("\0nul\0".to_owned()),
        Just("ü".repeat(limit)),
        Just("x".repeat(limit + 1)),
    ]
    .boxed()
}

prop_compose! {
    fn any_facts()(
        id: u128, at: i64, provider_id: Option<u128>, model_id: Option<u128>, seed: u64,
        texts in prop::array::uniform9(text(255)),
    ) -> RequestFacts<'static> {
        let [provider, model, consumer, user_id, user_tier, request_id, power_level, operation, route] = texts;
        RequestFacts {
            id: Uuid::from_u128(id),
            at,
            provider_id: provider_id.map(Uuid::from_u128),
            model_id: model_id.map(Uuid::from_u128),
            provider: provider.into(),
            model: model.into(),
            consumer: consumer.into(),
            user_id: user_id.into(),
            user_tier: user_tier.into(),
            request_id: request_id.into(),
            power_level: power_level.into(),
            operation: operation.into(),
            route: route.into(),
            seed,
        }
    }
}

fn any_record() -> BoxedStrategy<SpoolRecord<'static>> {
    prop_oneof![
        (any_facts(), any::<u64>()).prop_map(|(facts, input_estimate)| SpoolRecord::Intent(UsageIntent {
            facts,
            input_estimate,
            ..UsageIntent::default()
        })),
        (any::<u128>(), text(100)).prop_map(|(id, reason)| SpoolRecord::Attempt(UsageAttempt {
            id: Uuid::from_u128(id),
            reason: reason.into(),
            ..UsageAttempt::default()
        })),
        (
            any_facts(),
            any::<[u64; 5]>(),
            text(500),
            text(2_048),
            any::<(u32, Option<u32>, Option<u16>, bool)>()
        )
            .prop_map(
                |(facts, tokens, error, details, (latency_ms, ttft_ms, status_code, success))| {
                    let mut row = UsageRow {
                        facts,
                        reasoning: tokens[4],
                        latency_ms,
                        ttft_ms,
                        status_code,
                        success,
                        source: UsageSource::Partial,
                        error: error.into(),
                        details: details.into(),
                        ..UsageRow::default()
                    };
                    row.tokens.input = tokens[0];
                    row.tokens.cache_read = tokens[1];
                    row.cost.reported = Some(catalog::price::Money::from_units(tokens[2] as i64));
                    SpoolRecord::Outcome(row)
                }
            ),
        any::<(u64, u64)>().prop_map(|(segment, end)| SpoolRecord::Cut(SpoolCut { segment, end })),
    ]
    .boxed()
}

proptest! {
    #[test]
    fn what_is_encoded_decodes(record in any_record()) {
        let mut bytes = Vec::new();
        encode(&record, &mut bytes);
        let SpoolFrame::Whole(payload) = frame(&bytes) else { panic!("{:?}", frame(&bytes)) };
        prop_assert!(payload.len() <= MAX_PAYLOAD && payload.len() + HEAD == bytes.len());
        prop_assert_eq!(decode(payload), Some(record));
        // Any part of it is no record, and any flipped bit is found.
        for end in 0..bytes.len() {
            prop_assert!(!matches!(frame(&bytes[..end]), SpoolFrame::Whole(_)));
        }
        let at = bytes.len() / 2;
        bytes[at] ^= 4;
        prop_assert!(!matches!(frame(&bytes), SpoolFrame::Whole(_)));
        examine(&bytes);
    }

    #[test]
    fn any_bytes_are_read_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        examine(&bytes);
        let mut bytes = bytes;
        bytes.insert(0, 3);
        examine(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The files as a power cut may leave them: the end of the last segment torn at any byte, or its tail zeros or noise.
    #[test]
    fn a_torn_end_costs_only_what_stood_behind_it(cut in 64_u64..16_384, noise in prop::collection::vec(any::<u8>(), 0..200), zero: bool) {
        let dir = tempfile::tempdir().unwrap();
        write_some(dir.path(), 300);
        let last = segments(dir.path()).pop().unwrap();
        let file = std::fs::OpenOptions::new().write(true).open(&last).unwrap();
        let length = file.metadata().unwrap().len();
        let cut = cut.min(length);
        file.set_len(cut).unwrap();
        if zero {
            file.set_len(16_384).unwrap();
        } else {
            std::os::unix::fs::FileExt::write_all_at(&file, &noise, cut).unwrap();
        }
        let spool = Spool::open(small(dir.path())).unwrap();
        let found = spool.recover().unwrap();
        prop_assert!(found.abandoned <= 1, "{found:?}");
        let rows = read_all(&spool);
        // A prefix of what was written, each once.
        let numbers: Vec<u128> = rows.iter().map(|(id, _)| id.as_u128()).collect();
        prop_assert_eq!(&numbers, &(0..numbers.len() as u128).collect::<Vec<_>>());
        prop_assert!(numbers.len() as u128 + 120 > 300, "{} rows of 300", numbers.len());
        prop_assert!(rows.iter().rev().skip(found.abandoned).all(|(_, stopped)| !stopped));
        drop(spool);
        // And so it stays, however often it is opened.
        let spool = Spool::open(small(dir.path())).unwrap();
        prop_assert_eq!(spool.recover().unwrap().abandoned, 0);
        prop_assert_eq!(read_all(&spool), rows);
    }

    /// A byte that changed in the middle costs at most the record that it stood in, or what follows in that segment if it
    /// was a length; never a wrong row, never a second one.
    #[test]
    fn a_spoilt_byte_gives_no_wrong_row(at in 0_u64..16_384, segment in 0_usize..3, flip in 1_u8..) {
        let dir = tempfile::tempdir().unwrap();
        write_some(dir.path(), 300);
        let path = segments(dir.path()).swap_remove(segment);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = at as usize % bytes.len();
        bytes[at] ^= flip;
        std::fs::write(&path, bytes).unwrap();
        let spool = Spool::open(small(dir.path())).unwrap();
        spool.recover().unwrap();
        let rows = read_all(&spool);
        let ids: HashSet<Uuid> = rows.iter().map(|(id, _)| *id).collect();
        prop_assert_eq!(ids.len(), rows.len());
        prop_assert!(ids.iter().all(|id| id.as_u128() < 300));
        prop_assert!(rows.len() >= 200, "{}", rows.len());
    }
}
