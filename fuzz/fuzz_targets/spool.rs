//! Fuzzes the records of the spool; the checks stand in `gateway::spool::examine`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| gateway::spool::examine(bytes));
