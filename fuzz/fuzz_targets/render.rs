//! Fuzzes the manifest reader; the checks stand in `fuzz/entry.rs`.
#![no_main]

#[path = "../entry.rs"]
#[allow(dead_code)]
mod entry;

libfuzzer_sys::fuzz_target!(|text: &str| entry::render(text));
