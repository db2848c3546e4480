//! Creating the rows of a plan: one COPY for each set of columns, straight from the plan's own values.
//!
//! Ten thousand providers are created in one go, so nothing is put together per row but the bytes that are sent.
//! Not its job: rows that exist (`apply`). Invariant: every row is looked at in full before the first byte is sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::{
    Result, StoreError, Tx,
    apply::{COLUMNS, MODEL, PROVIDER, ROUTE, TABLES, table},
    copy::{Copy, Format, Rows},
};
use crate::plan::{Action, Cause, Change, KeyAction, ProviderPlan};

/// More than any of the tables has.
const MAX_COLUMNS: usize = 16;

/// One row to create, and whose it is.
#[derive(Clone, Copy)]
struct New<'a> {
    plan: &'a ProviderPlan,
    change: &'a Change,
}

/// Rows by the columns that they set: a bit for each of [`COLUMNS`]. What a row leaves out takes the table's default.
type Groups<'a> = BTreeMap<u32, Vec<New<'a>>>;

/// The rows that a set of plans creates.
pub(super) struct Creations<'a> {
    groups: [Groups<'a>; 3],
    tokens: &'a HashMap<Arc<str>, String>,
    /// `created_at` and `updated_at` of each table's rows.
    dates: [[String; 2]; 3],
}

/// What a new row has in one column.
#[derive(Clone, Copy)]
enum Cell<'a> {
    Absent,
    Text(&'a str),
    Value(&'a Value),
    Uuid(Uuid),
    /// The keys of the row's JSON column.
    Keys,
}

/// One row's values, in the order of the table's columns.
struct Line<'a> {
    kind: usize,
    cells: [Cell<'a>; MAX_COLUMNS],
    /// Keys of the row's JSON column; a later one overrides an earlier one.
    keys: Vec<(&'a str, &'a Value)>,
}

impl<'a> Creations<'a> {
    /// Sorts what is to be created. `now`: the date of every new row.
    ///
    /// # Errors
    /// [`StoreError::Data`] for a field that no column stands for, or a key that is missing.
    pub(super) fn of(
        plans: &'a [ProviderPlan],
        tokens: &'a HashMap<Arc<str>, String>,
        now: &str,
    ) -> Result<Self> {
        let dates = std::array::from_fn(|_| [now.to_owned(), now.to_owned()]);
        let mut all = Self { groups: Default::default(), tokens, dates };
        let mut groups: [Groups<'a>; 3] = Default::default();
        for plan in plans {
            for change in plan.changes.iter().filter(|change| change.action == Action::Create) {
                let row = New { plan, change };
                let columns = all.line(row)?.columns();
                groups[table(change.kind)].entry(columns).or_default().push(row);
            }
        }
        all.groups = groups;
        Ok(all)
    }

    pub(super) fn has_routes(&self) -> bool {
        !self.groups[ROUTE].is_empty()
    }

    /// Dates the new rules.
    pub(super) fn date_routes(&mut self, created: Option<String>, updated: Option<String>) {
        for (date, given) in self.dates[ROUTE].iter_mut().zip([created, updated]) {
            if let Some(given) = given {
                *date = given;
            }
        }
    }

    /// Creates all of them, parents before children.
    pub(super) async fn write(&self, tx: &mut Tx) -> Result<()> {
        for kind in [PROVIDER, MODEL, ROUTE] {
            for (columns, rows) in &self.groups[kind] {
                self.copy(tx, kind, *columns, rows).await.map_err(|error| name_the_row(error, rows))?;
            }
        }
        Ok(())
    }

    async fn copy(&self, tx: &mut Tx, kind: usize, columns: u32, rows: &[New<'a>]) -> Result<()> {
        let all = COLUMNS[kind].iter().enumerate();
        let names: Vec<&str> =
            all.filter(|(at, _)| columns & 1 << at != 0).map(|(_, (name, _))| *name).collect();
        let target = format!("{} (id, {})", TABLES[kind], names.join(", "));
        let mut copy = Copy::begin(tx, &target, Format::Text).await?;
        for row in rows {
            let line = self.line(*row)?;
            copy.row(|to| {
                to.uuid(row.change.id);
                line.encode(to);
            })
            .await?;
        }
        copy.finish().await
    }

    /// The values of one row: what its plan says, and what every new row holds beside it. These are named here instead
    /// of left to the table's defaults, because an existing installation's table may have others or none.
    fn line(&self, New { plan, change }: New<'a>) -> Result<Line<'_>> {
        let refused = |message: &str| StoreError::Data {
            provider: Some(Arc::clone(&plan.name)),
            message: message.to_owned(),
        };
        let kind = table(change.kind);
        let mut line = Line { kind, cells: [Cell::Absent; MAX_COLUMNS], keys: Vec::new() };
        for field in change.fields.iter().filter(|field| field.cause != Cause::Released) {
            line.field(&field.field, &field.new)
                .ok_or_else(|| refused(&format!("the field {} has no column", field.field)))?;
        }
        let name = match kind {
            MODEL => change.name.strip_prefix(&*plan.name).and_then(|rest| rest.strip_prefix('/')),
            _ => None,
        };
        let name = name.unwrap_or(&change.name);
        let start: &[(&str, Cell<'_>)] = match kind {
            PROVIDER => &[
                ("name", Cell::Text(&plan.name)),
                ("enabled", Cell::Text("true")),
                ("priority", Cell::Text("0")),
                ("config", Cell::Keys),
                ("health_status", Cell::Text("unknown")),
                ("api_key_encrypted", Cell::Text("")),
                ("encrypted_api_key", Cell::Text("")),
            ],
            MODEL => &[
                ("provider_id", Cell::Uuid(change.parent)),
                ("name", Cell::Text(name)),
                // The two names of a model are one value.
                ("model_name", line.cell("name").unwrap_or(Cell::Text(name))),
                ("enabled", Cell::Text("true")),
                ("metadata", Cell::Keys),
            ],
            _ => &[
                ("model_id", Cell::Uuid(change.parent)),
                ("priority", Cell::Text("100")),
                ("weight", Cell::Text("100")),
                ("is_active", Cell::Text("true")),
            ],
        };
        if let (PROVIDER, Some(key)) = (kind, &plan.key) {
            let token = self.tokens.get(&plan.name).filter(|_| key.action == KeyAction::Set);
            let token = Cell::Text(token.ok_or_else(|| refused("the key to store was not handed over"))?);
            line.set("api_key_encrypted", token);
            line.set("encrypted_api_key", token);
            line.set("api_key_updated_at", Cell::Text(&self.dates[PROVIDER][1]));
            line.set("api_key_test_status", Cell::Text("pending"));
        }
        let [created, updated] = &self.dates[kind];
        for (column, cell) in [("created_at", Cell::Text(created)), ("updated_at", Cell::Text(updated))] {
            line.set(column, cell);
        }
        for (column, cell) in start {
            line.set(column, *cell);
        }
        Ok(line)
    }
}

impl<'a> Line<'a> {
    fn at(&self, column: &str) -> Option<usize> {
        COLUMNS[self.kind].iter().position(|(name, _)| *name == column)
    }

    fn cell(&self, column: &str) -> Option<Cell<'a>> {
        self.cells.get(self.at(column)?).copied().filter(|cell| !matches!(cell, Cell::Absent))
    }

    /// Takes one field of a plan; `None` if it has no column.
    fn field(&mut self, field: &'a str, value: &'a Value) -> Option<()> {
        let (column, key) = match field.split_once('.') {
            Some((column, key)) => (column, Some(key)),
            None => (field, None),
        };
        let at = self.at(column)?;
        let (_, kind) = COLUMNS[self.kind].get(at)?;
        let cell = self.cells.get_mut(at)?;
        match key {
            Some(key) if *kind == "jsonb" => {
                *cell = Cell::Keys;
                self.keys.push((key, value));
            }
            Some(_) => return None,
            None => *cell = Cell::Value(value),
        }
        Some(())
    }

    /// Sets what no field has set.
    fn set(&mut self, column: &str, value: Cell<'a>) {
        if let Some(cell) = self.at(column).and_then(|at| self.cells.get_mut(at))
            && matches!(cell, Cell::Absent)
        {
            *cell = value;
        }
    }

    fn columns(&self) -> u32 {
        let set = self.cells.iter().enumerate().filter(|(_, cell)| !matches!(cell, Cell::Absent));
        set.fold(0, |columns, (at, _)| columns | 1 << at)
    }

    fn encode(&self, to: &mut Rows) {
        for cell in &self.cells {
            match cell {
                Cell::Absent => {}
                Cell::Text(text) => to.text(text),
                Cell::Uuid(id) => to.uuid(*id),
                Cell::Value(Value::Null) => to.null(),
                Cell::Value(Value::String(text)) => to.text(text),
                Cell::Value(value) => to.json(value),
                Cell::Keys => to.json(&Keys(&self.keys)),
            }
        }
    }
}

/// Keys and values as one JSON object.
struct Keys<'a>(&'a [(&'a str, &'a Value)]);

impl Serialize for Keys<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// PostgreSQL says "COPY llm_models, line 17, …": the provider that the row belongs to.
fn name_the_row(error: StoreError, rows: &[New<'_>]) -> StoreError {
    match error {
        StoreError::Data { provider: None, message } => {
            let line = message
                .split_once(", line ")
                .and_then(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next())
                .and_then(|digits| digits.parse::<usize>().ok());
            let row = line.and_then(|line| rows.get(line.checked_sub(1)?));
            StoreError::Data { provider: row.map(|row| Arc::clone(&row.plan.name)), message }
        }
        other => other,
    }
}
