//! Replication slots: creating, advancing and dropping them on the local server, and copying logical
//! ones from the leader.

use super::connect::{self, ConnectError, Role};
use super::context::PgContext;
use super::pgdata;
use proto::core::decision::SlotPlan;
use proto::core::job::Upstream;
use proto::wal::Lsn;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;
use tokio_postgres::Client;

/// Advancing a logical slot decodes all WAL up to the target, which may be much after an outage
/// (`ha-behaviour.md` 15.3 gives it no statement timeout at all).
const ADVANCE_LIMIT: Duration = Duration::from_secs(60);

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
    limit: Duration,
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
/// `copy_logical` is not touched: that is a job (a standby must be restarted for it).
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
    for (name, database, to) in &plan.advance_logical {
        steps
            .entry(Some(database.clone()))
            .or_default()
            .push(Step::advance(name, *to));
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
            limit: STATEMENT_LIMIT,
        }
    }

    fn advance(name: &str, to: Lsn) -> Self {
        let step = Self::new("advance", ADVANCE, name, Some(to.to_string()));
        Self {
            limit: ADVANCE_LIMIT,
            ..step
        }
    }

    async fn run(&self, client: &Client) -> Result<(), ConnectError> {
        let failed = |err: tokio_postgres::Error| connect::classify(&err);
        let work = async {
            let limit = format!("SET statement_timeout = {}", self.limit.as_millis());
            client.batch_execute(&limit).await.map_err(failed)?;
            match &self.argument {
                Some(argument) => client.execute(self.sql, &[&self.name, argument]).await,
                None => client.execute(self.sql, &[&self.name]).await,
            }
            .map_err(failed)
        };
        // A little more than the server's own limit, for a server that is stuck altogether.
        let limit = self.limit + connect::CONNECT_LIMIT;
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map(|_| ()),
            Err(_) => Err(ConnectError::Silent(format!("no answer within {limit:?}"))),
        }
    }
}

/// A logical slot as it lies on the leader's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// Its name.
    pub name: String,
    /// `pg_replslot/<name>/state`; may lag behind what the leader knows, which only makes the copy
    /// start further back.
    pub state: Vec<u8>,
}

/// Reads logical slots from the leader (`ha-behaviour.md` 15.3). Slots that are gone meanwhile are left
/// out. To be followed, with the local standby stopped, by [`install`].
pub async fn fetch(
    ctx: &PgContext,
    leader: &Upstream,
    names: &[String],
) -> Result<Vec<SlotFile>, ConnectError> {
    let client = connect::remote(ctx, leader, Role::Rewind).await?;
    let query = "SELECT slot_name::text, \
        pg_catalog.pg_read_binary_file('pg_replslot/' || slot_name || '/state') \
        FROM pg_catalog.pg_replication_slots \
        WHERE slot_type = 'logical' AND NOT temporary AND slot_name::text = ANY($1)";
    let rows = tokio::time::timeout(STATEMENT_LIMIT, client.query(query, &[&names]))
        .await
        .map_err(|_| ConnectError::Silent(format!("no answer within {STATEMENT_LIMIT:?}")))?
        .map_err(|err| connect::classify(&err))?;
    let file = |row: &tokio_postgres::Row| -> Result<SlotFile, tokio_postgres::Error> {
        Ok(SlotFile {
            name: row.try_get(0)?,
            state: row.try_get(1)?,
        })
    };
    rows.iter()
        .map(file)
        .collect::<Result<_, _>>()
        .map_err(|err| connect::classify(&err))
}

/// Puts copied slots into the data directory of a server that is stopped: PostgreSQL reads them when it
/// starts. Blocks.
pub fn install(data_dir: &Path, slots: &[SlotFile]) -> io::Result<()> {
    for slot in slots {
        // The name becomes a path; PostgreSQL allows no others either.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if slot.name.is_empty() || slot.name.len() > 63 || !slot.name.bytes().all(plain) {
            let text = format!("not a slot name: {:?}", slot.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mode = pgdata::file_mode(data_dir);
        let dir = data_dir.join("pg_replslot").join(&slot.name);
        let dir_mode = if mode & 0o040 == 0 { 0o700 } else { 0o750 };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(dir_mode)
            .create(&dir)?;
        pgdata::write_durably(&dir.join("state"), &slot.state, mode)?;
        fs::File::open(data_dir.join("pg_replslot"))?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_name_cannot_leave_its_directory() {
        let slot = SlotFile {
            name: "../../x".into(),
            state: Vec::new(),
        };
        let err = install(Path::new("/nonexistent"), &[slot]).expect_err("refused");
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn logical_work_goes_to_its_database_and_drops_come_first() {
        let plan = SlotPlan {
            create_physical: vec!["a".into()],
            create_logical: vec![("l".into(), "db".into(), "pgoutput".into())],
            advance_logical: vec![("m".into(), "other".into(), Lsn(1))],
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
                    vec!["drop slot \"old\"", "create physical slot \"a\""]
                ),
                (Some("db"), vec!["create logical slot \"l\""]),
                (Some("other"), vec!["advance slot \"m\""]),
            ]
        );
    }

    #[test]
    fn an_empty_plan_opens_no_session() {
        assert!(by_database(&SlotPlan::default()).is_empty());
    }
}
