//! Replication slots: creating, advancing and dropping them on the local server, and copying logical
//! ones from the leader.

mod advance;
mod copy;
mod proof;

pub use advance::advance_copies;
pub(super) use copy::run as copy;
pub use copy::{SlotFile, fetch, install};

use super::connect::{self, ConnectError};
use super::context::PgContext;
use proto::core::decision::SlotPlan;
use proto::wal::Lsn;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::Client;

/// Everything else: creating a logical slot waits for transactions that run.
const STATEMENT_LIMIT: Duration = Duration::from_secs(10);

/// The name under which these sessions appear.
const APPLICATION: &str = "Patroni slots";

/// One step of a plan, in words and in SQL.
struct Step {
    what: String,
    sql: &'static str,
    name: String,
    /// Second argument: a position or a plugin.
    argument: Option<String>,
}

/// Names and positions are parameters, never part of the text. A slot that is there already, or
/// already gone, is what the plan wants. Advancing never goes back: PostgreSQL refuses that, so a slot
/// that has moved on meanwhile is left alone.
const CREATE_PHYSICAL: &str = "SELECT 1 FROM pg_catalog.pg_create_physical_replication_slot($1, true) \
    WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
const CREATE_LOGICAL: &str = "SELECT 1 FROM pg_catalog.pg_create_logical_replication_slot($1, $2) \
    WHERE NOT EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots WHERE slot_name = $1)";
const ADVANCE: &str = "SELECT 1 FROM pg_catalog.pg_replication_slots s, \
    LATERAL pg_catalog.pg_replication_slot_advance(s.slot_name, $2::text::pg_lsn) \
    WHERE s.slot_name = $1 AND NOT s.active \
    AND COALESCE(s.confirmed_flush_lsn, s.restart_lsn) < $2::text::pg_lsn";
const DROP: &str = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
    FROM pg_catalog.pg_replication_slots WHERE slot_name = $1 AND NOT active";

/// Creates, advances and drops. Each failure is logged, and returned as a sentence; the rest goes on.
/// Not the copies of logical slots: [`advance_copies`].
pub async fn carry_out(ctx: &PgContext, plan: &SlotPlan) -> Vec<String> {
    let mut errors = Vec::new();
    for (database, steps) in by_database(plan) {
        let client = match connect::superuser_to(ctx, database.as_deref(), APPLICATION).await {
            Ok(client) => client,
            Err(err) => {
                let place = database.as_deref().unwrap_or("the default database");
                errors.push(format!("connect to {place}: {err}"));
                continue;
            }
        };
        for step in steps {
            if let Err(err) = step.run(&client).await {
                errors.push(format!("{}: {err}", step.what));
            }
        }
    }
    for error in &errors {
        tracing::warn!(error, "replication slots");
    }
    errors
}

/// The steps by the database in which they must be done; `None`: any. Dropping comes first, since a
/// slot of another kind may have to make room for one of the same name.
fn by_database(plan: &SlotPlan) -> BTreeMap<Option<String>, Vec<Step>> {
    let mut steps: BTreeMap<Option<String>, Vec<Step>> = BTreeMap::new();
    let anywhere = steps.entry(None).or_default();
    anywhere.extend(
        plan.drop
            .iter()
            .map(|name| Step::new("drop", DROP, name, None)),
    );
    let create = |name: &String| Step::new("create physical", CREATE_PHYSICAL, name, None);
    anywhere.extend(plan.create_physical.iter().map(create));
    anywhere.extend(
        plan.advance
            .iter()
            .map(|(name, to)| Step::advance(name, *to)),
    );
    for (name, database, plugin) in &plan.create_logical {
        let step = Step::new("create logical", CREATE_LOGICAL, name, Some(plugin.clone()));
        steps.entry(Some(database.clone())).or_default().push(step);
    }
    steps.retain(|_, steps| !steps.is_empty());
    steps
}

impl Step {
    fn new(what: &str, sql: &'static str, name: &str, argument: Option<String>) -> Self {
        let what = format!("{what} slot {name:?}");
        Self {
            what,
            sql,
            name: name.to_owned(),
            argument,
        }
    }

    fn advance(name: &str, to: Lsn) -> Self {
        Self::new("advance", ADVANCE, name, Some(to.to_string()))
    }

    async fn run(&self, client: &Client) -> Result<(), ConnectError> {
        let failed = |err: tokio_postgres::Error| connect::classify(&err);
        let work = async {
            let limit = format!("SET statement_timeout = {}", STATEMENT_LIMIT.as_millis());
            client.batch_execute(&limit).await.map_err(failed)?;
            match &self.argument {
                Some(argument) => client.execute(self.sql, &[&self.name, argument]).await,
                None => client.execute(self.sql, &[&self.name]).await,
            }
            .map_err(failed)
        };
        // A little more than the server's own limit, for a server that is stuck altogether.
        let limit = STATEMENT_LIMIT + connect::CONNECT_LIMIT;
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(ConnectError::Silent(format!("no answer within {limit:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logical_work_goes_to_its_database_and_drops_come_first() {
        let plan = SlotPlan {
            create_physical: vec!["a".into()],
            create_logical: vec![("l".into(), "db".into(), "pgoutput".into())],
            advance: vec![("p".into(), Lsn(1))],
            drop: vec!["old".into()],
            ..SlotPlan::default()
        };
        let steps = by_database(&plan);
        let shown: Vec<(Option<&str>, Vec<&str>)> = steps
            .iter()
            .map(|(db, steps)| {
                (
                    db.as_deref(),
                    steps.iter().map(|s| s.what.as_str()).collect(),
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                (
                    None,
                    vec![
                        "drop slot \"old\"",
                        "create physical slot \"a\"",
                        "advance slot \"p\""
                    ]
                ),
                (Some("db"), vec!["create logical slot \"l\""]),
            ]
        );
    }

    #[test]
    fn an_empty_plan_opens_no_session() {
        assert!(by_database(&SlotPlan::default()).is_empty());
    }
}
