//! Syncs that fail, disks that refuse, segments that come and go.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::spool::{RequestFacts, SpoolBatch};

fn facts(number: u64) -> RequestFacts<'static> {
    RequestFacts { id: Uuid::from_u128(u128::from(number)), provider: "p".into(), ..RequestFacts::default() }
}

fn intent(number: u64) -> UsageIntent<'static> {
    UsageIntent { facts: facts(number), ..UsageIntent::default() }
}

fn row(number: u64) -> UsageRow<'static> {
    UsageRow { facts: facts(number), ..UsageRow::default() }
}

/// Syncs only when a test asks for it.
fn settings(dir: &std::path::Path) -> SpoolSettings {
    SpoolSettings {
        segment_bytes: 8 << 10,
        sync_interval: Duration::from_secs(3_600),
        ..SpoolSettings::new(dir.to_owned())
    }
}

fn ids(batch: &SpoolBatch) -> Vec<u128> {
    batch.rows().map(|(_, row)| row.facts.id.as_u128()).collect()
}

fn all(spool: &Spool) -> Vec<u128> {
    spool.spools().into_iter().flat_map(|id| ids(&spool.read(id, None, usize::MAX).unwrap())).collect()
}

/// The n-th sync from now fails; what was written since the one before is doubted then, and written again.
#[test]
fn what_a_failed_sync_should_have_covered_is_written_again_once() {
    for fails_at in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let countdown = Arc::new(AtomicU64::new(u64::MAX));
        let sync: SyncFile = {
            let countdown = Arc::clone(&countdown);
            Box::new(move |_| {
                if countdown.fetch_sub(1, Relaxed) == 0 { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
            })
        };
        let spool = Spool::open_with(settings(dir.path()), sync).unwrap();
        spool.sync_now().unwrap();
        countdown.store(fails_at, Relaxed);
        for number in 0..300 {
            let ticket = spool.intent(&intent(number)).unwrap();
            spool.outcome(ticket, &row(number)).unwrap();
            if number % 40 == 39 {
                let _ = spool.sync_now();
            }
        }
        spool.sync_now().unwrap();
        assert_eq!(spool.stats().sync_failures, 1, "sync {fails_at} failed");
        let expected: Vec<u128> = (0..300).collect();
        assert_eq!(all(&spool), expected, "sync {fails_at} failed");
        // The same to a process that knows only the files.
        drop(spool);
        let spool = Spool::open(settings(dir.path())).unwrap();
        assert_eq!(spool.recover().unwrap().abandoned, 0);
        assert_eq!(all(&spool), expected, "sync {fails_at} failed, then a restart");
    }
}

#[test]
fn a_disk_that_refuses_for_long_loses_nothing_of_what_was_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let broken = Arc::new(AtomicBool::new(true));
    let sync: SyncFile = {
        let broken = Arc::clone(&broken);
        Box::new(move |_| if broken.load(Relaxed) { Err(io::ErrorKind::Other.into()) } else { Ok(()) })
    };
    let spool = Spool::open_with(settings(dir.path()), sync).unwrap();
    for number in 0..100 {
        let ticket = spool.intent(&intent(number)).unwrap();
        spool.outcome(ticket, &row(number)).unwrap();
        if number % 7 == 0 {
            spool.sync_now().unwrap_err();
        }
        assert!(all(&spool).is_empty(), "what is not synced is not handed out");
    }
    // No further segment can be made for a while.
    let hidden = dir.path().with_extension("hidden");
    fs::rename(dir.path(), &hidden).unwrap();
    spool.sync_now().unwrap_err();
    spool.sync_now().unwrap_err();
    fs::rename(&hidden, dir.path()).unwrap();
    broken.store(false, Relaxed);
    spool.sync_now().unwrap();
    assert_eq!(all(&spool), (0..100).collect::<Vec<u128>>());
    assert!(spool.stats().sync_failures > 10);
}

#[test]
fn a_full_spool_refuses_intents_and_takes_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    let small = SpoolSettings { max_bytes: 4 << 10, ..settings(dir.path()) };
    let spool = Spool::open(small.clone()).unwrap();
    let mut tickets = Vec::new();
    let error = loop {
        match spool.intent(&intent(tickets.len() as u64)) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full), "{error}");
    let accepted = tickets.len();
    assert!(accepted > 10);
    for (number, ticket) in tickets.into_iter().enumerate() {
        spool.outcome(ticket, &row(number as u64)).unwrap();
    }
    spool.sync_now().unwrap();
    assert_eq!(all(&spool).len(), accepted);
    drop(spool);
    let spool = Spool::open(SpoolSettings { when_full: WhenFull::Serve, ..small }).unwrap();
    let ticket = spool.intent(&intent(1_000)).unwrap();
    spool.outcome(ticket, &row(1_000)).unwrap();
    assert_eq!((spool.stats().lost, spool.stats().open), (1, 0));
}

#[test]
fn what_was_stored_elsewhere_goes_and_long_requests_stay() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(dir.path())).unwrap();
    let long = spool.intent(&intent(1_000_000)).unwrap();
    let further =
        UsageAttempt { id: Uuid::from_u128(1_000_000), provider: "second".into(), ..UsageAttempt::default() };
    spool.attempt(&long, &further).unwrap();
    let mut cursor = None;
    let mut seen = 0_u64;
    for number in 0..2_000 {
        let ticket = spool.intent(&intent(number)).unwrap();
        spool.outcome(ticket, &row(number)).unwrap();
        if number % 100 == 99 {
            spool.sync_now().unwrap();
            loop {
                let batch = spool.read(spool.id(), cursor, 17).unwrap();
                for id in ids(&batch) {
                    assert_eq!(id, u128::from(seen));
                    seen += 1;
                }
                cursor = batch.next();
                spool.release(spool.id(), cursor.unwrap()).unwrap();
                if batch.is_last() {
                    break;
                }
            }
        }
    }
    assert_eq!(seen, 2_000);
    assert!(spool.stats().segments <= 3, "{:?}", spool.stats());
    // The process ends with the long request under way: its intent was carried on.
    drop(long);
    drop(spool);
    let spool = Spool::open(settings(dir.path())).unwrap();
    assert_eq!(spool.recover().unwrap().abandoned, 1);
    let batch = spool.read(spool.id(), None, 10).unwrap();
    let rows: Vec<_> = batch.rows().map(|(_, row)| row).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].facts.id, Uuid::from_u128(1_000_000));
    assert_eq!((&*rows[0].error, &*rows[0].facts.provider), ("gateway stopped", "second"));
    assert_eq!((rows[0].attempts, rows[0].was_fallback, rows[0].success), (2, true, false));
    // Once it is stored too, nothing but the own segment is left.
    for id in spool.spools() {
        let next = spool.read(id, None, usize::MAX).unwrap().next().unwrap();
        spool.release(id, next).unwrap();
    }
    assert_eq!(spool.stats().segments, 1);
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::open(settings(dir.path())).unwrap();
    assert!(matches!(Spool::open(settings(dir.path())), Err(SpoolError::InUse(_))));
    drop(spool);
    Spool::open(settings(dir.path())).unwrap();
}
