//! Budgets over several gateways: parts of a budget are leased to a node, and given back.
//!
//! Amounts are whole numbers of 1e-10 USD. Not its job: enforcing (the gateway, against its lease). Invariants: what is
//! leased to all nodes together never exceeds the budget, because the sum moves under one row lock; `leased` is `spent`
//! and what nodes hold; a node that never returns keeps what it held, so that it counts as spent.

use chrono::{DateTime, Utc};
use sqlx::Row as _;
use uuid::Uuid;

use super::{HintListener, Result, Store, query, query_built};

/// Nodes ask each other here for what they do not need of a budget.
const CHANNEL: &str = "providerd_budget";

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
    /// Nothing is left to take.
    pub dry: bool,
    /// Less than what was wanted was left, and other nodes hold some; they were asked to give back what they do not use.
    pub asked_others: bool,
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

/// What requests of a consumer, or of one of its users, cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentSums {
    pub consumer: String,
    pub user: Option<String>,
    /// Of 1e-10 USD, since each of the beginnings that were asked for.
    pub units: [i64; 3],
}

/// A node takes the larger of this share of the budget and what it asked for, so that a budget costs few statements
/// and one node cannot take all at once while others want some.
const SHARE: i64 = 100;

impl Store {
    /// Takes a part of a budget: one transaction, one row lock.
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
        // Only nodes that are alive can answer.
        let asked_others = units < take.least
            && sqlx::query_scalar(
                "SELECT pg_notify($4::text, $3::uuid::text || ' ' || $1::text) IS NOT NULL FROM (
                     SELECT FROM providerd.budget_lease l JOIN providerd.gateway_node n USING (node)
                     WHERE l.budget = $1 AND l.window_start = $2 AND l.node <> $3 AND l.amount > 0
                         AND n.expires_at > clock_timestamp() LIMIT 1) held",
            )
            .persistent(false)
            .bind(take.budget)
            .bind(take.window_start)
            .bind(take.node)
            .bind(CHANNEL)
            .fetch_optional(&mut *tx)
            .await?
            .unwrap_or(false);
        tx.commit().await?;
        Ok(LeaseTaken { units, dry: left <= 0, asked_others })
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
        self.budget_move(budget, window_start, node, (-units, 0, -units)).await
    }

    /// Says what a node spent of what it holds.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn budget_spent(
        &self,
        budget: &str,
        window_start: DateTime<Utc>,
        node: Uuid,
        units: i64,
    ) -> Result<()> {
        self.budget_move(budget, window_start, node, (0, units, -units)).await
    }

    /// Adds to what is leased, what is spent, and what a node holds.
    async fn budget_move(
        &self,
        budget: &str,
        window_start: DateTime<Utc>,
        node: Uuid,
        (leased, spent, held): (i64, i64, i64),
    ) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "UPDATE providerd.budget SET leased = greatest(leased + $3, 0), spent = spent + $4
             WHERE budget = $1 AND window_start = $2",
        )
        .bind(budget)
        .bind(window_start)
        .bind(leased)
        .bind(spent)
        .execute(&mut *tx)
        .await?;
        query(
            "UPDATE providerd.budget_lease SET amount = amount + $4
             WHERE budget = $1 AND window_start = $2 AND node = $3",
        )
        .bind(budget)
        .bind(window_start)
        .bind(node)
        .bind(held)
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

    /// What requests since the beginnings of three windows cost, by consumer, and by consumer and user for those that are
    /// named: from the sums of days, so that the beginnings are midnights, UTC. Units of 1e-10 USD, in the order of the
    /// beginnings.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn spent_since(
        &self,
        begins: [DateTime<Utc>; 3],
        users: &[(String, String)],
    ) -> Result<Vec<SpentSums>> {
        if self.is_blank() {
            return Ok(Vec::new());
        }
        let first = begins.iter().min().copied().unwrap_or_default();
        let mut tx = self.read().await?;
        let sums = "coalesce(sum(cost) FILTER (WHERE at >= $1) * 10000000000, 0)::bigint,
                    coalesce(sum(cost) FILTER (WHERE at >= $2) * 10000000000, 0)::bigint,
                    coalesce(sum(cost) FILTER (WHERE at >= $3) * 10000000000, 0)::bigint";
        let of_consumers = format!(
            "SELECT consumer, NULL::text, {sums} FROM providerd.usage_daily WHERE at >= $4 GROUP BY consumer"
        );
        let of_users = format!(
            "SELECT consumer, user_id, {sums} FROM providerd.usage_users
             JOIN unnest($5::text[], $6::text[]) AS w (consumer, user_id) USING (consumer, user_id)
             WHERE at >= $4 GROUP BY consumer, user_id"
        );
        let (names, ids): (Vec<&str>, Vec<&str>) =
            users.iter().map(|(consumer, user)| (consumer.as_str(), user.as_str())).unzip();
        let mut found = Vec::new();
        for (sql, is_users) in [(of_consumers, false), (of_users, true)] {
            if is_users && users.is_empty() {
                continue;
            }
            let mut select = query_built(sql).bind(begins[0]).bind(begins[1]).bind(begins[2]).bind(first);
            if is_users {
                select = select.bind(&names).bind(&ids);
            }
            for row in &select.fetch_all(&mut *tx).await? {
                let units = [row.try_get(2)?, row.try_get(3)?, row.try_get(4)?];
                found.push(SpentSums { consumer: row.try_get(0)?, user: row.try_get(1)?, units });
            }
        }
        tx.rollback().await?;
        Ok(found)
    }

    /// A listener for nodes that ask for what others do not need: [`wanted_budget`] reads its notices.
    pub fn listen_budgets(&self) -> HintListener {
        self.listen(CHANNEL)
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

    /// Says that a gateway is alive, for `ttl`, and how many requests a minute came under its limits of late. Forgets
    /// nodes that have been gone for a minute.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn gateway_beat(&self, node: Uuid, demand: i64, ttl: std::time::Duration) -> Result<()> {
        let mut tx = self.write().await?;
        query(
            "INSERT INTO providerd.gateway_node (node, demand, expires_at)
             VALUES ($1, $2, clock_timestamp() + $3 * interval '1 second')
             ON CONFLICT (node) DO UPDATE SET demand = excluded.demand, expires_at = excluded.expires_at",
        )
        .bind(node)
        .bind(demand)
        .bind(ttl.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        query(
            "DELETE FROM providerd.gateway_node WHERE expires_at < clock_timestamp() - interval '1 minute'",
        )
        .execute(&mut *tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Gateways that are alive, with their demand.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn gateway_nodes(&self) -> Result<Vec<(Uuid, i64)>> {
        let mut tx = self.read().await?;
        let nodes = sqlx::query_as(
            "SELECT node, demand FROM providerd.gateway_node WHERE expires_at > clock_timestamp() ORDER BY node",
        )
        .persistent(false)
        .fetch_all(&mut *tx)
        .await?;
        tx.rollback().await?;
        Ok(nodes)
    }

    /// Says that a gateway ends.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn gateway_leave(&self, node: Uuid) -> Result<()> {
        let mut tx = self.write().await?;
        query("DELETE FROM providerd.gateway_node WHERE node = $1").bind(node).execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }
}

/// Which budget another node wants, of a notice of [`Store::listen_budgets`]; `None`: it is `own`'s, or no such notice.
pub fn wanted_budget(notice: &str, own: Uuid) -> Option<&str> {
    let (node, budget) = notice.split_once(' ')?;
    (Uuid::parse_str(node).ok()? != own).then_some(budget)
}
