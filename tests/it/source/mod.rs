//! The manifest directory with real files and real file events: what people, editors and tools do to it.
//!
//! Every manifest written here ends with a marker line, and the rig fails as soon as a text without it is read:
//! that would be half a file taken for a whole one.

mod git;
mod reading;
mod rig;
mod swaps;
mod watching;
