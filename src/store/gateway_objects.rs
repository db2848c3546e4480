//! Rows of `providerd.gateway_object`: what manifests declare for the gateway alone.
//!
//! Not its job: what the rows mean (`catalog::serving`), or which of them change (`plan`). Invariant: whatever another
//! program wrote there is read without an error; what cannot be a row of ours is passed over, or set back by the plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;
use sqlx::{Row, postgres::PgRow};

use catalog::{
    model::{Origin, Revision},
    plan::{Action, Digest, LiveObject, ObjectChange},
    serving::{ObjectKind, ObjectName},
};

use super::{ReconcileTx, Result, Store, Tx, query, query_built};

/// Rows per statement: the arrays stay below a megabyte.
const CHUNK: usize = 5_000;
/// A spec longer than this is none of ours: a manifest has 1 MiB at most, and what one object says is a part of it.
const MAX_SPEC: i32 = 4 * 1024 * 1024;

/// A row as a gateway reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayObjectRow {
    pub kind: ObjectKind,
    pub name: String,
    /// JSON; what it holds is judged by who reads it.
    pub spec: String,
    /// Where it was declared.
    pub origin: Option<Origin>,
}

const COLUMNS: &str =
    "SELECT kind::text AS kind, name, spec::text AS spec, file, line, applied FROM providerd.gateway_object";

impl Store {
    /// Everything that manifests declare for the gateway, in order of kind and name. Rows of a kind that this program
    /// does not know are passed over.
    ///
    /// # Errors
    /// The database failed.
    pub async fn gateway_objects(&self) -> Result<Vec<GatewayObjectRow>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let objects = all(&mut tx).await?;
        tx.rollback().await?;
        Ok(objects)
    }
}

/// All of them, as the transaction sees them.
pub(super) async fn all(tx: &mut Tx) -> Result<Vec<GatewayObjectRow>> {
    let rows = query(
        "SELECT kind::text AS kind, name, spec::text AS spec, file, line FROM providerd.gateway_object
         WHERE octet_length(spec::text) <= $1 ORDER BY kind, name",
    )
    .bind(MAX_SPEC)
    .fetch_all(&mut **tx)
    .await?;
    let mut objects = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(kind) = ObjectKind::parse(row.try_get("kind")?) else { continue };
        let origin = origin(row)?;
        objects.push(GatewayObjectRow {
            kind,
            name: row.try_get("name")?,
            spec: row.try_get("spec")?,
            origin,
        });
    }
    Ok(objects)
}

/// Where a row says that it was declared; a line that no file has is the first.
fn origin(row: &PgRow) -> Result<Option<Origin>> {
    let (file, line): (Option<String>, Option<i32>) = (row.try_get("file")?, row.try_get("line")?);
    Ok(file.map(|file| Origin {
        file: file.into(),
        line: line.and_then(|line| u32::try_from(line).ok()).unwrap_or(1),
    }))
}

/// Puts rows of [`COLUMNS`] where a plan looks for them.
fn take(objects: &mut BTreeMap<ObjectName, LiveObject>, rows: &[PgRow]) -> Result<()> {
    for row in rows {
        let (kind, name): (&str, &str) = (row.try_get("kind")?, row.try_get("name")?);
        let Some(kind) = ObjectKind::parse(kind) else { continue };
        let spec: &str = row.try_get("spec")?;
        let applied: Option<&[u8]> = row.try_get("applied")?;
        let object = LiveObject {
            // What nests deeper than a parser goes is none of ours, and compares as such.
            spec: serde_json::from_str(spec).unwrap_or(Value::Null),
            origin: origin(row)?,
            applied: applied.and_then(|digest| digest.try_into().ok()).map(Digest),
        };
        objects.insert((kind, Arc::from(name)), object);
    }
    Ok(())
}

impl ReconcileTx {
    /// The rows of these providers (`None`: of all) and their models, and, where `callers`, consumers, tiers, aliases and
    /// power levels.
    ///
    /// # Errors
    /// The database failed.
    pub async fn objects(
        &mut self,
        providers: Option<&BTreeSet<Arc<str>>>,
        callers: bool,
    ) -> Result<BTreeMap<ObjectName, LiveObject>> {
        let mut objects = BTreeMap::new();
        if self.blank {
            return Ok(objects);
        }
        let only = match (providers, callers) {
            (None, true) => "",
            (None, false) => " WHERE kind IN ('provider', 'model')",
            (Some(_), true) => " WHERE kind NOT IN ('provider', 'model')",
            (Some(_), false) => " WHERE false",
        };
        if !only.ends_with("false") {
            let select = query_built(format!("{COLUMNS}{only}"));
            take(&mut objects, &select.fetch_all(&mut *self.tx).await?)?;
        }
        let names: Vec<&str> = providers.into_iter().flatten().map(|name| &**name).collect();
        if !names.is_empty() {
            let select = query_built(format!("{COLUMNS} WHERE kind = 'provider' AND name = ANY($1)"));
            take(&mut objects, &select.bind(&names).fetch_all(&mut *self.tx).await?)?;
            // The names that begin with `provider/`: '0' is the byte after '/'.
            let select = query_built(format!(
                "{COLUMNS} JOIN unnest($1::text[]) AS p (provider) ON kind = 'model'
                     AND name > (provider || '/') COLLATE \"C\" AND name < (provider || '0') COLLATE \"C\""
            ));
            take(&mut objects, &select.bind(&names).fetch_all(&mut *self.tx).await?)?;
        }
        Ok(objects)
    }

    /// Carries out what a plan says about these rows.
    ///
    /// # Errors
    /// [`super::StoreError::Data`] if the database refuses a value.
    pub async fn apply_objects(
        &mut self,
        changes: &[ObjectChange],
        revision: Option<&Revision>,
    ) -> Result<()> {
        let (gone, kept): (Vec<&ObjectChange>, Vec<&ObjectChange>) =
            changes.iter().partition(|change| change.action == Action::Delete);
        for chunk in gone.chunks(CHUNK) {
            query(
                "DELETE FROM providerd.gateway_object o USING unnest($1::text[], $2::text[]) AS g (kind, name)
                 WHERE o.kind = g.kind AND o.name = g.name",
            )
            .bind(chunk.iter().map(|change| change.kind.as_str()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|change| &*change.name).collect::<Vec<&str>>())
            .execute(&mut *self.tx)
            .await?;
        }
        let revision = revision.map(ToString::to_string);
        for chunk in kept.chunks(CHUNK) {
            let digests: Vec<Digest> = chunk.iter().map(|change| change.digest()).collect();
            let lines = chunk.iter().map(|change| {
                change.origin.as_ref().map(|origin| i32::try_from(origin.line).unwrap_or(i32::MAX))
            });
            query(
                "INSERT INTO providerd.gateway_object (kind, name, spec, file, line, applied, revision)
                 SELECT kind, name, spec::jsonb, file, line, applied, $7
                 FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::bytea[])
                     AS n (kind, name, spec, file, line, applied)
                 ON CONFLICT (kind, name) DO UPDATE SET spec = excluded.spec, file = excluded.file,
                     line = excluded.line, applied = excluded.applied, revision = excluded.revision,
                     updated_at = excluded.updated_at",
            )
            .bind(chunk.iter().map(|change| change.kind.as_str()).collect::<Vec<_>>())
            .bind(chunk.iter().map(|change| &*change.name).collect::<Vec<&str>>())
            .bind(
                chunk
                    .iter()
                    .map(|change| change.spec.as_ref().map(Value::to_string))
                    .collect::<Vec<Option<String>>>(),
            )
            .bind(
                chunk
                    .iter()
                    .map(|change| change.origin.as_ref().map(|origin| &*origin.file))
                    .collect::<Vec<Option<&str>>>(),
            )
            .bind(lines.collect::<Vec<Option<i32>>>())
            .bind(digests.iter().map(|digest| digest.0.as_slice()).collect::<Vec<_>>())
            .bind(revision.as_deref())
            .execute(&mut *self.tx)
            .await?;
        }
        Ok(())
    }

    /// Lets gateways know, once this transaction commits, that there is something new to read.
    ///
    /// # Errors
    /// The database failed.
    pub async fn tell_gateways(&mut self) -> Result<()> {
        query("SELECT pg_notify('providerd_gateway', '')").execute(&mut *self.tx).await?;
        Ok(())
    }
}
