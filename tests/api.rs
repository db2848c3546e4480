//! The admin API as its users meet it: the real program, real PostgreSQL, real sockets.
#![allow(clippy::disallowed_methods, reason = "tests spawn servers of their own")]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{
    http::{Api, TOKEN, sha256},
    lab::{Lab, provider},
};

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_shown() {
    let lab = Lab::new().await;
    lab.write("a.toml", &provider("alpha", 5));
    let (_daemon, api) = Api::start(&lab).await;
    for path in [
        "/api/v1/status",
        "/api/v1/providers",
        "/api/v1/providers/alpha",
        "/api/v1/models",
        "/api/v1/routes",
        "/api/v1/events",
        "/api/v1/llm/providers/keys",
        "/api/v1/openapi.json",
    ] {
        let answer = api.wait_for(path, |_| true).await;
        println!("{path}: {answer:#}");
    }
}
