//! Creating the rows of a plan: one COPY for each set of columns, straight from the plan's own values.
//!
//! Ten thousand providers are created in one go, so nothing is put together per row but the bytes that are sent.
//! Not its job: rows that exist (`apply`). Invariant: every row is looked at in full before the first byte is sent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use rayon::prelude::*;
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use catalog::plan::{Action, Cause, Change, KeyAction, ProviderPlan};

use super::{
    Result, StoreError, Tx,
    columns::{COLUMNS, MODEL, PROVIDER, ROUTE, Start, TABLES, find, table},
    copy::{Copy, CopyFormat, Rows},
};

/// More than any of the tables has.
pub(super) const MAX_COLUMNS: usize = 16;

/// Providers whose rows are sorted at a time, on as many cores as there are.
const CHUNK: usize = 1_000;

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
#[derive(Clone, Copy, Default)]
enum Cell<'a> {
    #[default]
    Absent,
    Text(&'a str),
    Value(&'a Value),
    Uuid(Uuid),
    /// The keys of the row's JSON column.
    Keys,
}

/// One row's values, in the order of the table's columns. One after the other is put together in the same place.
#[derive(Default)]
struct Line<'a> {
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
        let sorted: Vec<Result<[Groups<'a>; 3]>> =
            plans.par_chunks(CHUNK).map(|plans| all.sort(plans)).collect();
        for part in sorted {
            for (all, part) in all.groups.iter_mut().zip(part?) {
                for (columns, rows) in part {
                    all.entry(columns).or_default().extend(rows);
                }
            }
        }
        Ok(all)
    }

    fn sort(&self, plans: &'a [ProviderPlan]) -> Result<[Groups<'a>; 3]> {
        let mut groups: [Groups<'a>; 3] = Default::default();
        let mut line = Line::default();
        for plan in plans {
            for change in plan.changes.iter().filter(|change| change.action == Action::Create) {
                let row = New { plan, change };
                self.fill(&mut line, row)?;
                groups[table(change.kind)].entry(line.columns()).or_default().push(row);
            }
        }
        Ok(groups)
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
            all.filter(|(at, _)| columns & 1 << at != 0).map(|(_, column)| column.name).collect();
        let target = format!("{} (id, {})", TABLES[kind], names.join(", "));
        let mut copy = Copy::begin(tx, &target, CopyFormat::Text).await?;
        let mut line = Line::default();
        for row in rows {
            self.fill(&mut line, *row)?;
            copy.row(|to| {
                to.uuid(row.change.id);
                line.encode(to);
            })
            .await?;
        }
        copy.finish().await
    }

    /// The values of one row: what its plan says, and what every new row holds beside it.
    fn fill<'s>(&'s self, line: &mut Line<'s>, New { plan, change }: New<'a>) -> Result<()> {
        let refused = |message: String| StoreError::Data { provider: Some(Arc::clone(&plan.name)), message };
        let kind = table(change.kind);
        line.cells = [Cell::Absent; MAX_COLUMNS];
        line.keys.clear();
        let mut near = 0;
        for field in change.fields.iter().filter(|field| field.cause != Cause::Released) {
            near = line
                .field(kind, &field.field, &field.new, near)
                .ok_or_else(|| refused(format!("the field {} has no column", field.field)))?;
        }
        let token = match &plan.key {
            Some(key) if kind == PROVIDER => {
                let token = self.tokens.get(&plan.name).filter(|_| key.action == KeyAction::Set);
                Some(token.ok_or_else(|| refused("the key to store was not handed over".to_owned()))?)
            }
            _ => None,
        };
        let mut name = Cell::Text(match kind {
            PROVIDER => &plan.name,
            MODEL => {
                let below = change.name.strip_prefix(&*plan.name).and_then(|rest| rest.strip_prefix('/'));
                below.unwrap_or(&change.name)
            }
            _ => &change.name,
        });
        let [created, updated] = &self.dates[kind];
        for (cell, column) in line.cells.iter_mut().zip(COLUMNS[kind]) {
            if !matches!(cell, Cell::Absent) {
                if column.start == Start::Name {
                    name = *cell;
                }
                continue;
            }
            *cell = match column.start {
                Start::Left => Cell::Absent,
                Start::Text(text) => Cell::Text(text),
                Start::Name | Start::SameName => name,
                Start::Parent => Cell::Uuid(change.parent),
                Start::Created => Cell::Text(created),
                Start::Updated => Cell::Text(updated),
                Start::Keys => Cell::Keys,
                Start::Token => Cell::Text(token.map_or("", String::as_str)),
                Start::KeyDate => token.map_or(Cell::Absent, |_| Cell::Text(updated)),
                Start::KeyStatus => token.map_or(Cell::Absent, |_| Cell::Text("pending")),
            };
        }
        Ok(())
    }
}

impl<'a> Line<'a> {
    /// Takes one field of a plan and says where its column stands; `None` if it has none.
    fn field(&mut self, kind: usize, field: &'a str, value: &'a Value, near: usize) -> Option<usize> {
        let (name, key) = match field.split_once('.') {
            Some((name, key)) => (name, Some(key)),
            None => (field, None),
        };
        let at = find(kind, name, near)?;
        let column = COLUMNS[kind].get(at)?;
        let cell = self.cells.get_mut(at)?;
        match key {
            Some(key) if column.cast == "jsonb" => {
                *cell = Cell::Keys;
                self.keys.push((key, value));
            }
            Some(_) => return None,
            None => *cell = Cell::Value(value),
        }
        Some(at)
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
