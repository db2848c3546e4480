//! Reading values that other programs have written: bounded, and never an error of the whole reading.
//!
//! The macros cut in SQL what is read, so that memory follows no value; [`Cells`] takes one row apart. Not its job: what
//! values mean. Invariant: whatever stands in a row, the rows after it are read.

use std::panic::{AssertUnwindSafe, catch_unwind};

use chrono::{DateTime, NaiveDateTime, Utc};
use serde_json::Value;
use sqlx::{Row, ValueRef, postgres::PgRow};

use catalog::model::JsonMap;

/// A text of at most 4096 characters, for [`Cells::text`]: no name, URL or word of ours is longer. The marks make bytes
/// of it where a text may be of no encoding, as the server would refuse to send it (`link`).
macro_rules! cut {
    ($column:literal) => {
        concat!("/*bytes*/(left(", $column, "::text, 4096))/*bytes*/")
    };
}

/// A Fernet token: 64 KiB hold a key of 48,000 bytes. A longer one is cut, so it does not open.
macro_rules! token {
    ($column:literal) => {
        concat!("/*bytes*/(coalesce(left(", $column, ", 65536), ''))/*bytes*/")
    };
}

/// A time from year 1 to 9999; NULL for any other, as what reads it here knows none.
macro_rules! time {
    ($column:literal) => {
        concat!(
            "CASE WHEN isfinite(",
            $column,
            ") AND ",
            $column,
            " BETWEEN '0001-01-01' AND '9999-12-31' THEN ",
            $column,
            "::timestamp END"
        )
    };
}

/// Whether [`time!`] hides something.
macro_rules! odd_time {
    ($column:literal) => {
        concat!(
            "CASE WHEN NOT (isfinite(",
            $column,
            ") AND ",
            $column,
            " BETWEEN '0001-01-01' AND '9999-12-31') THEN '",
            $column,
            "' END"
        )
    };
}

/// An integer of 32 bits, whatever the type of the column; NULL for others.
macro_rules! integer {
    ($column:literal) => {
        concat!("CASE WHEN ", $column, " BETWEEN -2147483648 AND 2147483647 THEN ", $column, "::integer END")
    };
}

/// A number that a double can hold; NULL for NaN, infinity and what is beyond every price.
macro_rules! number {
    ($column:literal) => {
        concat!(
            "CASE WHEN ",
            $column,
            " BETWEEN -1e15 AND 1e15 THEN round(",
            $column,
            "::numeric, 10)::float8 END"
        )
    };
}

/// A JSON column as text, or `#` with its size. A manifest of 1 MiB is the largest that writes one; compressed text may
/// be many times as long as it is stored.
macro_rules! json {
    ($column:literal) => {
        concat!(
            "/*bytes*/(CASE WHEN pg_column_size(",
            $column,
            ") > 2097152 THEN '#' || pg_column_size(",
            $column,
            ") WHEN length(",
            $column,
            "::text) > 4194304 THEN '#' || length(",
            $column,
            "::text) ELSE ",
            $column,
            "::text END)/*bytes*/"
        )
    };
}

pub(super) use {cut, integer, json, number, odd_time, time, token};

/// A value that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub column: &'static str,
    pub why: String,
}

/// The values of one row, by place.
pub(super) struct Cells<'r> {
    row: &'r PgRow,
    pub bad: Vec<Bad>,
}

impl<'r> Cells<'r> {
    pub(super) const fn of(row: &'r PgRow) -> Self {
        Self { row, bad: Vec::new() }
    }

    /// A value of a type of fixed size; `None` also where it cannot be read.
    pub(super) fn get<T>(&mut self, at: usize, column: &'static str) -> Option<T>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        // A decoder that panics over one value must not take everything along.
        let read = catch_unwind(AssertUnwindSafe(|| self.row.try_get::<Option<T>, _>(at)));
        let why = match read {
            Ok(Ok(value)) => return value,
            Ok(Err(sqlx::Error::ColumnDecode { source, .. })) => source.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "reading it failed inside of this program (a bug)".to_owned(),
        };
        self.bad.push(Bad { column, why });
        None
    }

    /// A text. Bytes that are no UTF-8 are replaced: such a text equals none that is declared.
    pub(super) fn text(&mut self, at: usize) -> Option<String> {
        self.bytes(at).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn time(&mut self, at: usize, column: &'static str) -> Option<DateTime<Utc>> {
        self.get::<NaiveDateTime>(at, column).map(|time| time.and_utc())
    }

    /// A JSON object; another JSON value reads as an empty one.
    pub(super) fn object(&mut self, at: usize, column: &'static str) -> JsonMap {
        let Some(bytes) = self.bytes(at) else { return JsonMap::new() };
        let why = match bytes.strip_prefix(b"#") {
            Some(size) => format!("{} bytes are too many to be read", String::from_utf8_lossy(size)),
            None => match serde_json::from_slice(bytes) {
                Ok(Value::Object(map)) => return map,
                Ok(_) => return JsonMap::new(),
                // Where the parser stopped is of no use: the text is not shown as it was sent.
                Err(error) => {
                    let text = error.to_string();
                    text.split(" at line ").next().unwrap_or_default().to_owned()
                }
            },
        };
        self.bad.push(Bad { column, why });
        JsonMap::new()
    }

    fn bytes(&self, at: usize) -> Option<&'r [u8]> {
        let value = self.row.try_get_raw(at).ok()?;
        if value.is_null() { None } else { value.as_bytes().ok() }
    }
}
