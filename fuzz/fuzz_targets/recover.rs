//! Fuzzes the recovery of a spool whose last segment holds any bytes, as a crash or a bad disk leaves them: it opens, every
//! request that can be read gets one outcome, and a second recovery finds nothing more to do.
#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;

use gateway::spool::{RequestFacts, Spool, SpoolOffset, SpoolSettings, UsageIntent};
use uuid::Uuid;

fn settings(dir: &std::path::Path) -> SpoolSettings {
    SpoolSettings { segment_bytes: 64 << 10, ..SpoolSettings::new(dir.to_owned()) }
}

/// Ids of all rows that are handed out, with how often.
fn rows(spool: &Spool) -> BTreeMap<Uuid, u32> {
    let mut found = BTreeMap::new();
    for id in spool.spools() {
        let mut after: Option<SpoolOffset> = None;
        loop {
            let batch = spool.read(id, after, 100).expect("a disk in memory");
            for (_, row) in batch.rows() {
                *found.entry(row.facts.id).or_default() += 1;
            }
            after = batch.next();
            if batch.is_last() {
                break;
            }
        }
    }
    found
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [at, bytes @ ..] = bytes else { return };
    let dir = std::path::PathBuf::from(format!("/dev/shm/providerd-fuzz-{}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    let spool = Spool::open(settings(&dir)).expect("a new spool");
    // One request under way and a segment that exists.
    let facts = RequestFacts { id: Uuid::from_u128(7), ..RequestFacts::default() };
    let intent = UsageIntent { facts, ..UsageIntent::default() };
    let ticket = spool.intent(&intent).expect("room");
    spool.sync_now().expect("a disk in memory");
    drop((ticket, spool));
    let segment = fs::read_dir(&dir)
        .expect("it is there")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "seg"))
        .expect("a segment");
    let file = fs::OpenOptions::new().write(true).open(&segment).expect("ours");
    // Into the header, into the first record, or behind it.
    file.write_all_at(bytes, u64::from(*at) * 2).expect("a disk in memory");
    drop(file);
    let spool = Spool::open(settings(&dir)).expect("it opens whatever stands there");
    spool.recover().expect("a disk in memory");
    let first = rows(&spool);
    drop(spool);
    let spool = Spool::open(settings(&dir)).expect("it opens again");
    let again = spool.recover().expect("a disk in memory");
    assert_eq!(again.abandoned, 0, "all have an outcome");
    assert_eq!(rows(&spool), first);
    drop(spool);
    let _ = fs::remove_dir_all(&dir);
});
