//! Budgets over several gateways: parts of a budget are leased to a node, and given back.
//!
//! Amounts are whole numbers of 1e-10 USD. Not its job: enforcing (the gateway, against its lease). Invariant: what is
//! leased to all nodes together never exceeds the budget, because the sum moves under one row lock; a node that never
//! returns keeps what it took, so that it counts as spent.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::{Result, Store, query};

/// What a node wants of a budget.
#[derive(Debug, Clone)]
pub struct LeaseTake<'a> {
    /// Whose budget, and which.
    pub budget: &'a str,
    pub window_start: DateTime<Utc>,
    pub window_end: DateTime<Utc>,
    pub node: Uuid,
    /// The whole budget.
    pub limit: i64,
    /// At least so much is wanted.
    pub least: i64,
}

/// What a node got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTaken {
    pub units: i64,
    /// Nothing is left.
    pub dry: bool,
}

/// What nodes took of one budget in one window: spent, reserved, or held for their next requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetTaken {
    /// Whose budget, and which.
    pub budget: String,
    pub start: DateTime<Utc>,
    /// Of 1e-10 USD.
    pub units: i64,
}

/// A node takes the larger of this share of the budget and what it asked for, so that a small budget costs few
/// statements and one node cannot take all at once while others want some.
const SHARE: i64 = 100;

impl Store {
    /// Takes a part of a budget: one statement, one row lock.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn budget_take(&self, take: &LeaseTake<'_>) -> Result<LeaseTaken> {
        let mut tx = self.write().await?;
        query("INSERT INTO providerd.budget (budget, window_start) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(take.budget)
            .bind(take.window_start)
            .execute(&mut *tx)
            .await?;
        let wanted = take.least.max(take.limit / SHARE);
        let row: (i64, i64) = sqlx::query_as(
            "UPDATE providerd.budget b SET leased = b.leased + least($3::bigint, greatest($4::bigint - old.leased, 0))
             FROM (SELECT leased FROM providerd.budget WHERE budget = $1 AND window_start = $2 FOR UPDATE) old
             WHERE b.budget = $1 AND b.window_start = $2
             RETURNING b.leased - old.leased, $4::bigint - b.leased",
        )
        .persistent(false)
        .bind(take.budget)
        .bind(take.window_start)
        .bind(wanted)
        .bind(take.limit)
        .fetch_one(&mut *tx)
        .await?;
        let (units, left) = row;
        if units > 0 {
            query(
                "INSERT INTO providerd.budget_lease AS l (budget, window_start, node, amount, expires_at)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (budget, window_start, node)
                 DO UPDATE SET amount = l.amount + excluded.amount, expires_at = excluded.expires_at",
            )
            .bind(take.budget)
            .bind(take.window_start)
            .bind(take.node)
            .bind(units)
            .bind(take.window_end)
            .execute(&mut *tx)
            .await?;
        }
        tx.commit().await?;
        Ok(LeaseTaken { units, dry: left <= 0 })
    }

    /// Gives back what was not used; below zero: more was spent than was granted, and that counts.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn budget_return(
        &self,
        budget: &str,
        window_start: DateTime<Utc>,
        node: Uuid,
        units: i64,
    ) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "UPDATE providerd.budget SET leased = greatest(leased - $3, 0) WHERE budget = $1 AND window_start = $2",
        )
        .bind(budget)
        .bind(window_start)
        .bind(units)
        .execute(&mut *tx)
        .await?;
        query(
            "UPDATE providerd.budget_lease SET amount = greatest(amount - $4, 0)
             WHERE budget = $1 AND window_start = $2 AND node = $3",
        )
        .bind(budget)
        .bind(window_start)
        .bind(node)
        .bind(units)
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Budgets whose windows begin at these times or later: name, begin of the window, units that nodes took of it.
    /// The largest first, at most `most`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn budgets_taken(&self, since: DateTime<Utc>, most: u32) -> Result<Vec<BudgetTaken>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let mut tx = self.read().await?;
        let rows: Vec<(String, DateTime<Utc>, i64)> = sqlx::query_as(
            "SELECT budget, window_start, leased FROM providerd.budget
             WHERE window_start >= $1 AND isfinite(window_start) AND octet_length(budget) <= 2000
             ORDER BY leased DESC, budget LIMIT $2",
        )
        .persistent(false)
        .bind(since)
        .bind(i64::from(most))
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(rows.into_iter().map(|(budget, start, units)| BudgetTaken { budget, start, units }).collect())
    }

    /// Forgets budgets whose windows ended more than a month ago.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn budgets_expire(&self, before: DateTime<Utc>) -> Result<()> {
        let mut tx = self.write().await?;
        query("DELETE FROM providerd.budget_lease WHERE expires_at < $1")
            .bind(before)
            .execute(&mut *tx)
            .await?;
        query("DELETE FROM providerd.budget WHERE window_start < $1 - interval '62 days'")
            .bind(before)
            .execute(&mut *tx)
            .await?;
        Ok(tx.commit().await?)
    }
}
