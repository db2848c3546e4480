//! `GET /api/v1/llm/routing/rules`: the global strategy, and what serves each power level.

use std::collections::BTreeMap;

use axum::{Json, extract::State};
use serde::Serialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use uuid::Uuid;

use catalog::model::{JsonMap, PowerLevel};

use crate::{
    admin::{AdminShared, error::ApiError, openapi::ReadErrors},
    store::PageRule,
};

/// Models that the words about one power level name.
const NAMED: usize = 5;

/// The global strategy. providerd's own routes are rules of models, and stand in `power_levels` in words.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PageRules {
    /// `null`: no row holds it.
    pub id: Option<Uuid>,
    /// `cost`, `latency`, `balanced` or `custom`.
    pub strategy: String,
    /// Ids of providers.
    #[schema(value_type = Vec<String>)]
    pub fallback_providers: Value,
    #[schema(value_type = Object)]
    pub model_aliases: JsonMap,
    #[schema(value_type = Object)]
    pub config: JsonMap,
    /// A sentence for each power level.
    pub power_levels: BTreeMap<String, String>,
}

/// The global strategy of routing, as Ops-Center's pages show it.
#[utoipa::path(get, path = "/api/v1/llm/routing/rules", tag = "pages",
    responses((status = 200, description = "The strategy", body = PageRules), ReadErrors))]
pub(super) async fn show(State(shared): State<AdminShared>) -> Result<Json<PageRules>, ApiError> {
    let (strategy, rules) = shared.store.page_strategy().await?;
    let power_levels = PowerLevel::ALL
        .iter()
        .map(|level| (level.as_str().to_owned(), in_words(level.as_str(), &rules)))
        .collect();
    Ok(Json(match strategy {
        Some(row) => PageRules {
            id: row.id,
            strategy: row.strategy.unwrap_or_else(|| "balanced".to_owned()),
            fallback_providers: row.fallback_providers,
            model_aliases: row.model_aliases,
            config: row.config,
            power_levels,
        },
        None => PageRules {
            id: None,
            strategy: "balanced".to_owned(),
            fallback_providers: json!([]),
            model_aliases: JsonMap::new(),
            config: JsonMap::new(),
            power_levels,
        },
    }))
}

fn in_words(level: &str, rules: &[PageRule]) -> String {
    let mut names: Vec<String> = Vec::new();
    for rule in rules.iter().filter(|rule| rule.power_level == level) {
        let name = format!("{}/{}", rule.provider, rule.model);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    match names.split_at_checked(NAMED) {
        _ if names.is_empty() => "no model for all tiers".to_owned(),
        Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", first.join(", "), rest.len()),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_level_is_told_by_its_models() {
        let rule = |level: &str, model: &str| PageRule {
            power_level: level.to_owned(),
            provider: "p".to_owned(),
            model: model.to_owned(),
        };
        let mut rules = vec![rule("eco", "a"), rule("balanced", "b"), rule("eco", "a"), rule("eco", "c")];
        assert_eq!(in_words("eco", &rules), "p/a, p/c");
        assert_eq!(in_words("precision", &rules), "no model for all tiers");
        rules.extend(["d", "e", "f", "g"].map(|model| rule("eco", model)));
        assert_eq!(in_words("eco", &rules), "p/a, p/c, p/d, p/e, p/f and 1 more");
    }
}
