//! Manifests that are pulled from Git: real repositories, real git, real signatures, hosts that fail.
#![allow(clippy::disallowed_methods, reason = "tests spawn what they watch")]

mod daemon;
mod host;
mod https;
mod puller;
mod repository;
mod ssh;
