//! What other sessions keep locked: which objects of a plan that concerns, and who they are.
//!
//! Not its job: what is done about it. Invariant: nothing here waits.

use std::collections::{BTreeMap, HashMap, HashSet};

use sqlx::Row as _;
use uuid::Uuid;

use catalog::plan::{Action, Change, ChangedTable, ProviderPlan};

use super::{
    ReconcileTx, Result, Store, StoreError,
    columns::{TABLES, table},
    query, query_built,
};

/// Holders that one message names.
const NAMED: i64 = 3;

impl Store {
    /// Who holds locks on a table that keep writers off, the oldest first: `: "psql" (role app, process 123, since 48 s)`,
    /// or nothing.
    pub(super) async fn holders(&self, relation: &str) -> Result<String> {
        let mut tx = self.read().await?;
        let relation = tx.qualified(relation);
        let found = holders(&mut tx, &relation).await;
        tx.rollback().await?;
        found
    }
}

async fn holders(tx: &mut super::Tx, relation: &str) -> Result<String> {
    // Of another role's session only the name of its program and the role itself are shown to every role.
    let rows = query(
        "SELECT DISTINCT ON (a.xact_start, l.pid) l.pid, left(coalesce(a.application_name, ''), 64),
                left(coalesce(a.usename, '')::text, 64),
                floor(extract(epoch FROM clock_timestamp() - a.xact_start))::bigint
         FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'relation' AND l.relation = to_regclass($1) AND l.granted AND l.pid <> pg_backend_pid()
           AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND l.mode NOT IN ('AccessShareLock', 'SIReadLock')
         ORDER BY a.xact_start NULLS LAST, l.pid LIMIT $2",
    )
    .bind(relation)
    .bind(NAMED)
    .fetch_all(&mut **tx)
    .await?;
    let mut text = String::new();
    for row in &rows {
        let (pid, program): (i32, String) = (row.try_get(0)?, row.try_get(1)?);
        let (role, since): (String, Option<i64>) = (row.try_get(2)?, row.try_get(3)?);
        text += if text.is_empty() { ", held by " } else { ", " };
        text += &format!("{program:?} (role {role}, process {pid}");
        text += &since.map(|since| format!(", since {since} s")).unwrap_or_default();
        text.push(')');
    }
    Ok(text)
}

/// Rows of one table that a plan needs for itself.
#[derive(Default)]
struct Needs<'a> {
    /// The row, the change's name, and whether the row goes or stays.
    rows: HashMap<Uuid, &'a str>,
    going: HashSet<Uuid>,
    /// Rows that new rows are to hang on.
    parents: HashMap<Uuid, Vec<&'a str>>,
}

impl ReconcileTx {
    /// The objects of these plans that another session keeps from being changed, by the name of the change, with the
    /// reason. What is free is locked until the end of the transaction.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a row was changed since it was read.
    pub async fn locked(&mut self, plans: &[ProviderPlan]) -> Result<BTreeMap<String, String>> {
        let needs = needs(plans);
        let mut locked: BTreeMap<String, String> = BTreeMap::new();
        for (at, needs) in needs.iter().enumerate() {
            let table = TABLES[at];
            let mut stuck: Vec<&str> = Vec::new();
            let created = plans.iter().flat_map(|plan| &plan.changes).filter(|it| is_new(it, at));
            let created: Vec<&str> = created.map(|change| change.name.as_str()).collect();
            if !created.is_empty() || !needs.rows.is_empty() {
                self.simple("SAVEPOINT providerd_lock").await?;
                let lock = query_built(format!("LOCK TABLE {table} IN ROW EXCLUSIVE MODE NOWAIT"));
                match lock.execute(&mut *self.tx).await.map_err(StoreError::from) {
                    Ok(_) => {}
                    Err(StoreError::Locked(_)) => {
                        self.simple("ROLLBACK TO SAVEPOINT providerd_lock").await?;
                        stuck.extend(needs.rows.values().chain(&created));
                    }
                    Err(error) => return Err(error),
                }
            }
            if stuck.is_empty() {
                stuck.extend(self.taken(table, needs).await?);
            }
            if stuck.is_empty() {
                continue;
            }
            let relation = self.tx.qualified(table);
            let holders = holders(&mut self.tx, &relation).await?;
            for name in stuck {
                locked.insert(
                    name.to_owned(),
                    format!("a row of {table} is locked by another session{holders}"),
                );
            }
        }
        Ok(locked)
    }

    /// Names of the changes whose rows are locked.
    async fn taken<'a>(&mut self, table: &str, needs: &Needs<'a>) -> Result<Vec<&'a str>> {
        let mut taken = Vec::new();
        let going: Vec<Uuid> = needs.going.iter().copied().collect();
        let staying: Vec<Uuid> = needs.rows.keys().filter(|id| !needs.going.contains(id)).copied().collect();
        let parents: Vec<Uuid> = needs.parents.keys().copied().collect();
        for (ids, strength) in [(going, "UPDATE"), (staying, "NO KEY UPDATE"), (parents, "KEY SHARE")] {
            if ids.is_empty() {
                continue;
            }
            let free: HashSet<Uuid> =
                query_built(format!("SELECT id FROM {table} WHERE id = ANY($1) FOR {strength} SKIP LOCKED"))
                    .bind(&ids)
                    .fetch_all(&mut *self.tx)
                    .await?
                    .iter()
                    .map(|row| row.try_get(0))
                    .collect::<Result<_, _>>()?;
            for id in ids.iter().filter(|id| !free.contains(id)) {
                if strength == "KEY SHARE" {
                    taken.extend(needs.parents.get(id).into_iter().flatten());
                } else {
                    taken.extend(needs.rows.get(id));
                }
            }
        }
        // What hangs on a row that goes, goes with it.
        if table == TABLES[0] && taken.is_empty() && !needs.going.is_empty() {
            let going: Vec<Uuid> = needs.going.iter().copied().collect();
            for (all, free) in [
                (
                    "SELECT id, provider_id FROM llm_models WHERE provider_id = ANY($1)",
                    "SELECT id, provider_id FROM llm_models WHERE provider_id = ANY($1) FOR UPDATE SKIP LOCKED",
                ),
                (
                    "SELECT r.id, m.provider_id FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
                     WHERE m.provider_id = ANY($1)",
                    "SELECT r.id, m.provider_id FROM llm_routing_rules r JOIN llm_models m ON m.id = r.model_id
                     WHERE m.provider_id = ANY($1) FOR UPDATE OF r SKIP LOCKED",
                ),
            ] {
                let mut missing: HashMap<Uuid, Uuid> = HashMap::new();
                for row in query(all).bind(&going).fetch_all(&mut *self.tx).await? {
                    missing.insert(row.try_get(0)?, row.try_get(1)?);
                }
                for row in query(free).bind(&going).fetch_all(&mut *self.tx).await? {
                    missing.remove(&row.try_get(0)?);
                }
                taken.extend(missing.values().filter_map(|parent| needs.rows.get(parent)));
            }
        }
        Ok(taken)
    }
}

fn is_new(change: &Change, at: usize) -> bool {
    change.action == Action::Create && table(change.kind) == at
}

fn needs(plans: &[ProviderPlan]) -> [Needs<'_>; 3] {
    let mut needs: [Needs<'_>; 3] = Default::default();
    for plan in plans {
        let new: HashSet<Uuid> =
            plan.changes.iter().filter(|it| it.action == Action::Create).map(|it| it.id).collect();
        if plan.key.is_some() && !new.contains(&plan.id) {
            needs[0].rows.insert(plan.id, &plan.name);
        }
        for change in &plan.changes {
            let at = table(change.kind);
            match change.action {
                Action::Release => {}
                Action::Adopt if change.fields.is_empty() => {}
                Action::Create => {
                    if let (Some(above), false) = (at.checked_sub(1), new.contains(&change.parent)) {
                        needs[above].parents.entry(change.parent).or_default().push(&change.name);
                    }
                }
                Action::Delete => {
                    needs[at].going.insert(change.id);
                    needs[at].rows.insert(change.id, &change.name);
                }
                Action::Adopt | Action::Update | Action::Retire => {
                    needs[at].rows.insert(change.id, &change.name);
                    // A row is known by its name: changing it keeps off who refers to it.
                    if change.kind != ChangedTable::Route
                        && change.fields.iter().any(|field| field.field == "name")
                    {
                        needs[at].going.insert(change.id);
                    }
                }
            }
        }
    }
    needs
}
