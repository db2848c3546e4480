//! The alert rules and the dashboard: valid, true to the metrics of the program, and explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use serde_json::{Value, json};

use providerd::{checks::export, metrics::Metrics};

use crate::support::monitoring::{dashboard, gateway_series, promtool_agrees, queries, shipped};

fn text(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

/// Files of cases of the rules.
const CASES: [&str; 2] = ["alerts_test.yml", "alerts_days_test.yml"];

fn cases() -> String {
    CASES.map(text).concat()
}

/// Series that the program exports.
fn exported() -> BTreeSet<String> {
    let mut names: BTreeSet<String> = export::ALL.iter().map(|((name, _), _)| (*name).to_owned()).collect();
    for (name, kind, _, _) in Metrics::ALL {
        if kind.starts_with("Histogram") {
            names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")));
        } else {
            names.insert((*name).to_owned());
        }
    }
    for (name, kind, ..) in gateway_series() {
        if kind == "histogram" {
            names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")));
        } else {
            names.insert(name);
        }
    }
    names
}

/// Names of series of ours in a text.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|it: char| !it.is_ascii_alphanumeric() && it != '_')
        .filter(|word| word.starts_with("providerd_"))
        .map(str::to_owned)
        .collect()
}

/// The alerts by name, each with its text.
fn alerts() -> BTreeMap<String, String> {
    let rules = text("alerts.yml");
    rules
        .split("- alert: ")
        .skip(1)
        .map(|block| (block.split_whitespace().next().unwrap().to_owned(), block.to_owned()))
        .collect()
}

#[test]
fn rules_are_valid_and_do_what_their_cases_say() {
    let rules = shipped("alerts.yml");
    promtool_agrees(&["check", "rules", "--lint=all", "--lint-fatal", rules.to_str().unwrap()], None);
    for cases in CASES {
        promtool_agrees(&["test", "rules", shipped(cases).to_str().unwrap()], None);
    }
}

#[test]
fn every_alert_is_explained_and_has_cases_in_which_it_fires_and_in_which_it_does_not() {
    let (docs, cases) = (fs::read_to_string("docs/ALERTS.md").unwrap(), cases());
    let alerts = alerts();
    for (name, rule) in &alerts {
        for wanted in ["severity: ", "summary: ", "description: "] {
            assert!(rule.contains(wanted), "{name} has no {wanted}");
        }
        let link = format!("runbook_url: docs/ALERTS.md#{}\n", name.to_lowercase());
        assert!(rule.contains(&link), "{name} lacks {link}");
        let heading = format!("\n### {name}\n**");
        let (_, section) = docs.split_once(&heading).unwrap_or_else(|| panic!("docs: {heading}"));
        assert!(section.split("\n#").next().unwrap().contains("*Run:*"), "{name}: what to run?");
        let fires = cases.contains(&format!("alertname: {name}\n"));
        let rests = cases.contains(&format!("alertname: {name}, eval_time"))
            && cases
                .split(&format!("alertname: {name},"))
                .skip(1)
                .any(|it| it.lines().next().is_some_and(|line| line.contains("exp_alerts: []")));
        assert!(fires, "no case in which {name} fires");
        assert!(rests, "no case in which {name} does not fire");
    }
    for heading in docs.lines().filter_map(|line| line.strip_prefix("### ")) {
        assert!(alerts.contains_key(heading), "docs: there is no alert {heading}");
    }
}

#[test]
fn rules_and_dashboard_name_what_the_program_exports_and_leave_nothing_out() {
    let exported = exported();
    let shown: String = queries(&dashboard()).iter().map(|it| it.expr.clone() + "\n").collect();
    // Comments of the rules and their annotations name series too, and those must be right as well.
    let used: BTreeSet<String> = named(&text("alerts.yml")).union(&named(&shown)).cloned().collect();
    let own = gateway_series();
    let families: BTreeSet<&str> =
        Metrics::ALL.iter().map(|it| it.0).chain(own.iter().map(|it| it.0.as_str())).collect();
    for name in used.union(&named(&cases())) {
        assert!(exported.contains(name) || families.contains(name.as_str()), "{name} does not exist");
    }
    let unused: Vec<_> =
        families.iter().filter(|family| !used.iter().any(|name| name.starts_with(**family))).collect();
    assert!(unused.is_empty(), "neither dashboard nor rules show {unused:?}");
}

#[test]
fn every_query_of_the_dashboard_parses() {
    let queries = queries(&dashboard());
    assert!(queries.len() > 40, "only {} queries", queries.len());
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(index, query)| json!({ "record": format!("query:{index}"), "expr": query.resolved("1m") }))
        .collect();
    // JSON is YAML.
    let file = json!({ "groups": [{ "name": "dashboard", "rules": rules }] }).to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.yml");
    fs::write(&path, file).unwrap();
    promtool_agrees(&["check", "rules", path.to_str().unwrap()], None);
}

#[test]
fn the_dashboard_depends_on_nothing_that_it_does_not_bring() {
    let dashboard = dashboard();
    let variables: BTreeSet<&str> = dashboard["templating"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|variable| variable["name"].as_str().unwrap())
        .collect();
    assert_eq!(variables, BTreeSet::from(["datasource", "job", "provider"]));
    let mut sources = Vec::new();
    gather(&dashboard, "datasource", &mut sources);
    assert!(sources.len() > 60);
    for source in sources {
        assert_eq!(source, &json!({ "type": "prometheus", "uid": "${datasource}" }));
    }
    for query in queries(&dashboard) {
        let left = query.resolved("1m");
        assert!(!left.contains('$'), "{}: unknown variable in {left}", query.place);
    }

    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "panels share an id");
    let mut taken = BTreeSet::new();
    for panel in panels {
        let place = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{} is too wide", panel["title"]);
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                assert!(taken.insert((x, y)), "{} lies over another panel", panel["title"]);
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{} has no unit", panel["title"]);
        assert!(panel["description"].as_str().is_some_and(|it| it.ends_with('.')), "{}", panel["title"]);
        assert!(panel["targets"].as_array().is_some_and(|it| !it.is_empty()), "{}", panel["title"]);
    }
}

/// All values of a key, wherever it stands.
fn gather<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if name == key {
                    found.push(inner);
                } else {
                    gather(inner, key, found);
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| gather(inner, key, found)),
        _ => {}
    }
}
