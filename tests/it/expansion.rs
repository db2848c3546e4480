//! A small manifest that stands for very many rules: what a pass that finds nothing costs, beside reading the rows.
//!
//! The short version runs with all tests. Figures: `cargo test --release --test it -- expansion:: --ignored --nocapture`.
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use sqlx::Connection as _;

use crate::support::lab::Lab;

/// One provider with so many models, and so many routes to all of them.
fn manifest(models: usize, routes: usize) -> String {
    let mut text = String::from("[providers.x]\ntype = \"ollama\"\n\n");
    for model in 0..models {
        writeln!(text, "[[providers.x.models]]\nname = \"model-{model}\"").unwrap();
    }
    for route in 0..routes {
        writeln!(text, "[[routes]]\nmodels = \"x/*\"\npower_level = \"eco\"\nuser_tier = \"tier-{route}\"")
            .unwrap();
    }
    text
}

/// Reads the rows as a program would that compares them: all of them, and what is on record.
async fn reading(lab: &Lab) -> Duration {
    let mut connection = lab.connect().await;
    let began = Instant::now();
    for sql in [
        "SELECT id, model_id, power_level, user_tier, task_type, priority, weight, is_active FROM llm_routing_rules",
        "SELECT id, provider_id, name, display_name, context_length, enabled, metadata::text FROM llm_models",
        "SELECT name, record FROM providerd.managed",
    ] {
        let rows = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
        assert!(!rows.is_empty());
    }
    let took = began.elapsed();
    connection.close().await.unwrap();
    took
}

/// Of several tries the best, because others use the machine too.
async fn measured(models: usize, routes: usize) -> (Duration, Duration) {
    let lab = Lab::new().await;
    lab.write("x.toml", &manifest(models, routes));
    lab.run(&["apply"]).expect(0);
    let rules = "SELECT count(*) FROM llm_routing_rules WHERE model_id IS NOT NULL";
    assert_eq!(lab.value(rules).await, (models * routes).to_string());
    let (mut read, mut pass) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        read = read.min(reading(&lab).await);
        let began = Instant::now();
        let plan = lab.run(&["plan", "--output", "json"]).expect(0).json();
        pass = pass.min(began.elapsed());
        assert_eq!(plan["empty"], true);
    }
    (read, pass)
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_rules_are_applied_once_and_then_found_to_be_there() {
    measured(200, 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_rules_than_are_allowed_are_said_before_they_are_made() {
    let lab = Lab::new().await;
    lab.write("x.toml", &manifest(2_001, 100));
    let said = lab.run(&["validate"]).expect(2);
    let said = said.stdout + &said.stderr;
    assert!(said.contains("200000 rules"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints figures; minutes"]
async fn in_figures() {
    for (models, routes) in [(2_000, 10), (2_000, 30), (2_000, 60), (2_000, 100)] {
        let (read, pass) = measured(models, routes).await;
        println!(
            "{} rules: rows read in {read:.0?}, the whole of `providerd plan` in {pass:.0?}: {:.2} times",
            models * routes,
            pass.as_secs_f64() / read.as_secs_f64()
        );
    }
}
