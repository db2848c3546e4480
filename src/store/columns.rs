//! The columns of the three shared tables that a plan may set, and what a new row starts with in them.
//!
//! Not its job: the columns that no manifest declares; their defaults are the table's. Invariant: a row's JSON column is the
//! only one that fields of the form `column.key` go to.

use catalog::plan::ChangedTable;

pub(super) const PROVIDER: usize = 0;
pub(super) const MODEL: usize = 1;
pub(super) const ROUTE: usize = 2;
pub(super) const TABLES: [&str; 3] = ["llm_providers", "llm_models", "llm_routing_rules"];

pub(super) const fn table(kind: ChangedTable) -> usize {
    match kind {
        ChangedTable::Provider => PROVIDER,
        ChangedTable::Model => MODEL,
        ChangedTable::Route => ROUTE,
    }
}

/// One column.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    pub name: &'static str,
    /// The type that a changed value is cast to; `jsonb` takes a patch.
    pub cast: &'static str,
    pub start: Start,
}

/// What a new row holds where no field says otherwise. Named here instead of left to the table's defaults, because an
/// existing installation's table may have others or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// The table's default.
    Left,
    Text(&'static str),
    /// The row's own name.
    Name,
    /// What the column `name` holds: the two names of a model are one value.
    SameName,
    /// The row it hangs on.
    Parent,
    Created,
    Updated,
    /// The keys of the JSON column, if any.
    Keys,
    /// The token of the key that is set, or ''.
    Token,
    /// When the key was set, if one is.
    KeyDate,
    /// `pending`, if a key is set.
    KeyStatus,
}

/// In the order in which a plan names the fields, so that the next one is found at once.
pub(super) const COLUMNS: [&[Column]; 3] = [
    &[
        column("name", "text", Start::Name),
        column("type", "text", Start::Left),
        column("enabled", "boolean", Start::Text("true")),
        column("priority", "integer", Start::Text("0")),
        column("api_key_source", "text", Start::Left),
        column("api_base_url", "text", Start::Left),
        column("config", "jsonb", Start::Keys),
        column("api_key_encrypted", "text", Start::Token),
        column("encrypted_api_key", "text", Start::Token),
        column("api_key_updated_at", "timestamp", Start::KeyDate),
        column("api_key_test_status", "text", Start::KeyStatus),
        column("health_status", "text", Start::Text("unknown")),
        column("created_at", "timestamp", Start::Created),
        column("updated_at", "timestamp", Start::Updated),
    ],
    &[
        column("provider_id", "uuid", Start::Parent),
        column("name", "text", Start::Name),
        column("model_name", "text", Start::SameName),
        column("display_name", "text", Start::Left),
        column("context_length", "integer", Start::Left),
        column("cost_per_1m_input_tokens", "numeric", Start::Left),
        column("cost_per_1m_output_tokens", "numeric", Start::Left),
        column("cost_per_1m_tokens", "numeric", Start::Left),
        column("enabled", "boolean", Start::Text("true")),
        column("metadata", "jsonb", Start::Keys),
        column("created_at", "timestamp", Start::Created),
        column("updated_at", "timestamp", Start::Updated),
    ],
    &[
        column("model_id", "uuid", Start::Parent),
        column("power_level", "text", Start::Left),
        column("user_tier", "text", Start::Left),
        column("task_type", "text", Start::Left),
        column("priority", "integer", Start::Text("100")),
        column("weight", "integer", Start::Text("100")),
        column("is_active", "boolean", Start::Text("true")),
        column("created_at", "timestamp", Start::Created),
        column("updated_at", "timestamp", Start::Updated),
    ],
];

const fn column(name: &'static str, cast: &'static str, start: Start) -> Column {
    Column { name, cast, start }
}

/// Where a column stands. `near`: where the one before it was found.
pub(super) fn find(kind: usize, name: &str, near: usize) -> Option<usize> {
    let columns = COLUMNS.get(kind)?;
    let (before, from) = columns.split_at_checked(near)?;
    let found = |columns: &[Column]| columns.iter().position(|column| column.name == name);
    found(from).map(|at| near + at).or_else(|| found(before))
}

/// A column by its name.
pub(super) fn named(kind: usize, name: &str) -> Option<Column> {
    COLUMNS.get(kind)?.get(find(kind, name, 0)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_found_from_anywhere() {
        for (kind, columns) in COLUMNS.iter().enumerate() {
            for (at, column) in columns.iter().enumerate() {
                for near in 0..columns.len() {
                    assert_eq!(find(kind, column.name, near), Some(at));
                }
            }
            assert_eq!(find(kind, "no_such_column", 3), None);
            assert!(columns.len() <= super::super::create::MAX_COLUMNS);
        }
    }
}
