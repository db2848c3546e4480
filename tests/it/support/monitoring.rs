//! What `monitoring/` ships, as its tests read it, and promtool.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;

/// A query of the dashboard and where it stands.
#[derive(Debug)]
pub struct Query {
    pub place: String,
    /// As it stands there, with Grafana's variables.
    pub expr: String,
}

impl Query {
    /// What Grafana would ask when everything is selected and one point stands for `interval`.
    pub fn resolved(&self, interval: &str) -> String {
        let text = self.expr.replace("$__rate_interval", interval);
        ["$job", "$provider"].iter().fold(text, |text, variable| text.replace(variable, ".*"))
    }
}

pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("monitoring").join(name)
}

pub fn dashboard() -> Value {
    serde_json::from_str(&fs::read_to_string(shipped("dashboard.json")).unwrap()).unwrap()
}

/// Every query of the dashboard: panels, then annotations.
pub fn queries(dashboard: &Value) -> Vec<Query> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut found = Vec::new();
    for panel in list(&dashboard["panels"]) {
        for target in list(&panel["targets"]) {
            let place = format!("panel {}, query {}", panel["title"], target["refId"]);
            found.push(Query { place, expr: target["expr"].as_str().unwrap().to_owned() });
        }
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        let place = format!("annotation {}", annotation["name"]);
        found.push(Query { place, expr: annotation["expr"].as_str().unwrap().to_owned() });
    }
    found
}

/// Runs promtool, which the tests need as they need PostgreSQL.
#[track_caller]
pub fn promtool(args: &[&str], input: Option<&str>) -> Output {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child =
        command.spawn().expect("these tests need promtool (scripts/setup test; Debian: prometheus)");
    let mut pipe = child.stdin.take().unwrap();
    if let Some(text) = input {
        std::io::Write::write_all(&mut pipe, text.as_bytes()).unwrap();
    }
    drop(pipe);
    child.wait_with_output().unwrap()
}

/// Runs promtool and expects it to be content; what it said.
#[track_caller]
pub fn promtool_agrees(args: &[&str], input: Option<&str>) -> String {
    let output = promtool(args, input);
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}:\n{said}");
    said
}

/// The series of the gateway and of usage: name, type, labels and help, as a registry of them holds them.
pub fn gateway_series() -> Vec<(String, String, String, String)> {
    let dir = tempfile::tempdir().unwrap();
    let registry = prometheus::Registry::new();
    gateway::meter::Meters::register(&registry).unwrap();
    let spool =
        gateway::spool::Spool::open(gateway::spool::SpoolSettings::new(dir.path().to_owned())).unwrap();
    providerd::usage::UsageMeters::register(&registry, spool.into()).unwrap();
    providerd::dataplane::BudgetMeters::register(&registry).unwrap();
    let family = |family: prometheus::proto::MetricFamily| {
        let labels: Vec<String> = (family.get_metric().first().into_iter())
            .flat_map(|metric| metric.get_label().iter().map(|label| label.name().to_owned()))
            .collect();
        let kind = format!("{:?}", family.get_field_type()).to_lowercase();
        (family.name().to_owned(), kind, labels.join(", "), format!("{}.", family.help()))
    };
    registry.gather().into_iter().map(family).collect()
}
