//! The monitoring query and what its answer means.

use super::connect::{self, ConnectError};
use super::guc::{self, Setting};
use proto::core::observation::{Receiver, SlotRow, SqlSample, WalSender};
use proto::wal::{Lsn, Timeline};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio_postgres::{Client, Row, Statement};

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub(super) enum MonitorError {
    /// No session, or it broke.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// An answer that we do not understand.
    #[error("the monitoring query's answer has no usable {0}")]
    Answer(&'static str),
}

impl From<tokio_postgres::Error> for MonitorError {
    fn from(err: tokio_postgres::Error) -> Self {
        Self::Connect(connect::classify(&err))
    }
}

impl MonitorError {
    /// A kept session may have died with the server that it belonged to; the server of now deserves a
    /// question of its own. Not so after a statement timeout, which is an answer.
    pub(super) fn may_be_stale(&self) -> bool {
        !matches!(self, Self::Connect(ConnectError::Silent(text)) if text.contains("(57014)"))
    }
}

/// A kept session with the query prepared.
#[derive(Debug)]
pub(super) struct Session {
    client: Client,
    sample: Statement,
    version: u32,
}

/// Everything in one statement, hence at one moment. Functions that fail in the wrong role are behind
/// `CASE`, which evaluates only what it needs (PostgreSQL documentation, "Expression Evaluation
/// Rules"; none of them is immutable). `SLOTS` is replaced by the columns that the version has.
const SAMPLE: &str = "\
WITH role AS (SELECT pg_catalog.pg_is_in_recovery() AS recovering), \
receiver AS (SELECT status, sender_host, sender_port, slot_name, received_tli, written_lsn, \
  flushed_lsn, latest_end_lsn FROM pg_catalog.pg_stat_get_wal_receiver() WHERE pid IS NOT NULL) \
SELECT recovering, \
 CASE WHEN NOT recovering THEN \
   pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END, \
 CASE WHEN NOT recovering THEN pg_catalog.pg_current_wal_flush_lsn()::text END, \
 CASE WHEN recovering THEN pg_catalog.pg_last_wal_receive_lsn()::text END, \
 CASE WHEN recovering THEN pg_catalog.pg_last_wal_replay_lsn()::text END, \
 CASE WHEN recovering THEN pg_catalog.pg_is_wal_replay_paused() ELSE false END, \
 CASE WHEN recovering THEN pg_catalog.to_char(pg_catalog.pg_last_xact_replay_timestamp(), \
   'YYYY-MM-DD HH24:MI:SS.USTZH:TZM') END, \
 CASE WHEN recovering AND NOT EXISTS (SELECT FROM receiver WHERE received_tli > 0) THEN \
   (SELECT GREATEST(c.timeline_id, r.min_recovery_end_timeline) \
    FROM pg_catalog.pg_control_checkpoint() c, pg_catalog.pg_control_recovery() r) END, \
 (SELECT pg_catalog.row_to_json(receiver)::text FROM receiver), \
 pg_catalog.to_char(pg_catalog.pg_postmaster_start_time(), 'YYYY-MM-DD HH24:MI:SS.USTZH:TZM'), \
 pg_catalog.current_setting('server_version_num')::int4, \
 pg_catalog.current_setting('restore_command') <> '', \
 pg_catalog.current_setting('synchronous_standby_names'), \
 pg_catalog.current_setting('synchronous_commit'), \
 (SELECT pg_catalog.json_agg(pg_catalog.row_to_json(s))::text FROM (SELECT pid, usename, \
   COALESCE(application_name, '') AS application_name, pg_catalog.host(client_addr) AS client_addr, \
   state, sync_state, sync_priority, write_lsn, flush_lsn, replay_lsn \
   FROM pg_catalog.pg_stat_replication) s), \
 (SELECT pg_catalog.json_agg(pg_catalog.row_to_json(s))::text FROM (SELECT slot_name, slot_type, \
   database, plugin, active, xmin IS NOT NULL AS has_xmin, restart_lsn, confirmed_flush_lsn, \
   SLOTS FROM pg_catalog.pg_replication_slots) s), \
 CASE WHEN recovering AND NOT EXISTS (SELECT FROM receiver) THEN \
   (SELECT EXTRACT(epoch FROM pg_catalog.clock_timestamp() - backend_start)::float8 \
    FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walreceiver' LIMIT 1) END \
FROM role";

/// Columns of `pg_replication_slots` that came later: `wal_status` with 13, `conflicting` with 16,
/// `failover`, `synced` and `invalidation_reason` with 17.
fn slot_columns(version: u32) -> &'static str {
    match version / 10_000 {
        ..=15 => "COALESCE(wal_status = 'lost', false) AS lost, false AS failover, false AS synced",
        16 => {
            "COALESCE(wal_status = 'lost' OR conflicting, false) AS lost, false AS failover, \
             false AS synced"
        }
        _ => {
            "COALESCE(wal_status = 'lost' OR invalidation_reason IS NOT NULL, false) AS lost, \
             failover, synced"
        }
    }
}

impl Session {
    /// Prepares the query for the server's version.
    pub(super) async fn open(client: Client) -> Result<Self, MonitorError> {
        let version = "SELECT pg_catalog.current_setting('server_version_num')::int4";
        let row = client.query_one(version, &[]).await?;
        let version = u32::try_from(column::<i32>(&row, 0, "server_version_num")?).unwrap_or(0);
        let text = SAMPLE.replace("SLOTS", slot_columns(version));
        let sample = client.prepare(&text).await?;
        Ok(Self {
            client,
            sample,
            version,
        })
    }

    /// One sample, without `pending_restart`.
    pub(super) async fn sample(&self) -> Result<SqlSample, MonitorError> {
        let row = self.client.query_one(&self.sample, &[]).await?;
        let mut sample = read(&row)?;
        sample.server_version = self.version;
        Ok(sample)
    }

    /// Settings that wait for a restart, with what is in force and what would be, for people. What would
    /// be is read from the configuration files by the server (`pg_file_settings`), which costs a parse.
    ///
    /// A standby that was started with the larger values of its primary (`ha-behaviour.md` 23.4) waits for
    /// a restart, too: the server marks a value of the command line only when it reloads.
    pub(super) async fn pending_restart(
        &self,
    ) -> Result<BTreeMap<String, (String, String)>, MonitorError> {
        let rows = self
            .client
            .query(
                "WITH file AS MATERIALIZED (SELECT pg_catalog.lower(name) AS name, setting, seqno \
                   FROM pg_catalog.pg_file_settings) \
                 SELECT s.name, s.setting, s.unit, s.vartype, \
                   COALESCE((SELECT f.setting FROM file f \
                     WHERE f.name = pg_catalog.lower(s.name) \
                     ORDER BY f.seqno DESC LIMIT 1), s.boot_val) \
                 FROM pg_catalog.pg_settings s WHERE s.pending_restart \
                   OR s.source = 'command line' AND s.name IN ('max_connections', \
                     'max_prepared_transactions', 'max_locks_per_transaction', \
                     'max_worker_processes', 'max_wal_senders')",
                &[],
            )
            .await?;
        let text = |row: &Row, index: usize| row.try_get::<_, Option<String>>(index).ok().flatten();
        let mut pending = BTreeMap::new();
        for row in &rows {
            let setting = Setting {
                setting: text(row, 1).unwrap_or_default(),
                unit: text(row, 2),
                vartype: text(row, 3).unwrap_or_default(),
                ..Setting::default()
            };
            let Some(name) = text(row, 0) else { continue };
            let old = guc::human(&setting.setting, &setting);
            let new = guc::human(&text(row, 4).unwrap_or_default(), &setting);
            // A value that a standby needs from its primary may come back to what is configured
            // without the flag being cleared.
            if old != new {
                pending.insert(name, (old, new));
            }
        }
        Ok(pending)
    }
}

/// `synchronous_standby_names` as this session sees it.
pub(super) async fn sync_names(client: &Client) -> Result<String, MonitorError> {
    let query = "SELECT pg_catalog.current_setting('synchronous_standby_names')";
    column(
        &client.query_one(query, &[]).await?,
        0,
        "synchronous_standby_names",
    )
}

fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    row: &'a Row,
    index: usize,
    name: &'static str,
) -> Result<T, MonitorError> {
    row.try_get(index).map_err(|_| MonitorError::Answer(name))
}

fn read(row: &Row) -> Result<SqlSample, MonitorError> {
    let text = |index, name| column::<Option<String>>(row, index, name);
    let lsn = |index, name| -> Result<Lsn, MonitorError> {
        text(index, name)?.map_or(Ok(Lsn::NONE), |t| {
            t.parse().map_err(|_| MonitorError::Answer(name))
        })
    };
    let receiver: Option<ReceiverRow> = json(text(8, "receiver")?, "receiver")?;
    let on_primary = text(1, "timeline")?.and_then(|hex| u32::from_str_radix(&hex, 16).ok());
    let on_standby = column::<Option<i32>>(row, 7, "control timeline")?;
    let received = receiver.as_ref().and_then(ReceiverRow::timeline);
    let controlled = on_standby.and_then(|tli| u32::try_from(tli).ok());
    let written = receiver.as_ref().map_or(Lsn::NONE, ReceiverRow::received);
    let senders: Option<Vec<SenderRow>> = json(text(14, "wal senders")?, "wal senders")?;
    let slots: Option<Vec<SlotJson>> = json(text(15, "slots")?, "slots")?;
    let connecting = column::<Option<f64>>(row, 16, "connecting")?;
    Ok(SqlSample {
        in_recovery: column(row, 0, "pg_is_in_recovery")?,
        timeline: on_primary
            .map(Timeline)
            .or(received)
            .or(controlled.map(Timeline)),
        flush_lsn: lsn(2, "flush_lsn")?,
        receive_lsn: lsn(3, "receive_lsn")?.max(written),
        replay_lsn: lsn(4, "replay_lsn")?,
        replay_paused: column(row, 5, "replay_paused")?,
        replayed_timestamp: text(6, "replayed_timestamp")?.map(|t| trim_fraction(&t)),
        receiver: receiver.map(Receiver::from),
        connecting: connecting.and_then(|secs| Duration::try_from_secs_f64(secs).ok()),
        postmaster_start_time: text(9, "start time")?
            .map(|t| trim_fraction(&t))
            .unwrap_or_default(),
        server_version: u32::try_from(column::<i32>(row, 10, "server_version")?).unwrap_or(0),
        has_restore_command: column(row, 11, "restore_command")?,
        synchronous_standby_names: column(row, 12, "synchronous_standby_names")?,
        synchronous_commit: column(row, 13, "synchronous_commit")?,
        wal_senders: senders
            .unwrap_or_default()
            .into_iter()
            .map(WalSender::from)
            .collect(),
        slots: slots
            .unwrap_or_default()
            .into_iter()
            .map(SlotRow::from)
            .collect(),
        pending_restart: BTreeMap::new(),
    })
}

fn json<T: serde::de::DeserializeOwned>(
    text: Option<String>,
    name: &'static str,
) -> Result<Option<T>, MonitorError> {
    let parse = |text: String| serde_json::from_str(&text).map_err(|_| MonitorError::Answer(name));
    text.map(parse).transpose()
}

/// Six digits of fraction, or none when they are zero (`rest-api.md` 5.1).
fn trim_fraction(text: &str) -> String {
    text.replacen(".000000", "", 1)
}

/// A position that may be null.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
struct Position(Option<String>);

impl Position {
    /// PostgreSQL prints what it prints; something else counts as none.
    fn lsn(&self) -> Lsn {
        self.0
            .as_ref()
            .and_then(|text| text.parse().ok())
            .unwrap_or(Lsn::NONE)
    }
}

#[derive(Debug, Deserialize)]
struct ReceiverRow {
    status: Option<String>,
    sender_host: Option<String>,
    sender_port: Option<i32>,
    slot_name: Option<String>,
    received_tli: Option<u32>,
    written_lsn: Position,
    flushed_lsn: Position,
    latest_end_lsn: Position,
}

impl ReceiverRow {
    fn timeline(&self) -> Option<Timeline> {
        self.received_tli.filter(|tli| *tli != 0).map(Timeline)
    }

    fn received(&self) -> Lsn {
        self.written_lsn.lsn().max(self.flushed_lsn.lsn())
    }
}

impl From<ReceiverRow> for Receiver {
    fn from(row: ReceiverRow) -> Self {
        let timeline = row.timeline();
        let port = row.sender_port.and_then(|port| u16::try_from(port).ok());
        Self {
            status: row.status.unwrap_or_default(),
            sender: row.sender_host.zip(port),
            slot: row.slot_name.filter(|name| !name.is_empty()),
            timeline,
            latest_end_lsn: row.latest_end_lsn.lsn(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct SenderRow {
    pid: i32,
    usename: Option<String>,
    application_name: String,
    client_addr: Option<String>,
    state: Option<String>,
    sync_state: Option<String>,
    sync_priority: Option<i32>,
    write_lsn: Position,
    flush_lsn: Position,
    replay_lsn: Position,
}

impl From<SenderRow> for WalSender {
    fn from(row: SenderRow) -> Self {
        Self {
            pid: row.pid,
            usename: row.usename,
            application_name: row.application_name,
            client_addr: row.client_addr,
            state: row.state.unwrap_or_default(),
            sync_state: row.sync_state.unwrap_or_default(),
            sync_priority: row.sync_priority.unwrap_or(0),
            write_lsn: row.write_lsn.lsn(),
            flush_lsn: row.flush_lsn.lsn(),
            replay_lsn: row.replay_lsn.lsn(),
        }
    }
}

#[derive(Debug, Deserialize)]
struct SlotJson {
    slot_name: String,
    slot_type: String,
    database: Option<String>,
    plugin: Option<String>,
    active: bool,
    has_xmin: bool,
    restart_lsn: Position,
    confirmed_flush_lsn: Position,
    lost: bool,
    failover: bool,
    synced: bool,
}

impl From<SlotJson> for SlotRow {
    fn from(row: SlotJson) -> Self {
        Self {
            name: row.slot_name,
            logical: row.slot_type == "logical",
            database: row.database,
            plugin: row.plugin,
            active: row.active,
            has_xmin: row.has_xmin,
            restart_lsn: row.restart_lsn.lsn(),
            confirmed_flush_lsn: row.confirmed_flush_lsn.lsn(),
            lost: row.lost,
            failover: row.failover,
            synced: row.synced,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_seconds_have_no_fraction() {
        assert_eq!(
            trim_fraction("2026-07-24 10:00:00.000000+00:00"),
            "2026-07-24 10:00:00+00:00"
        );
        assert_eq!(
            trim_fraction("2026-07-24 10:00:00.123000+00:00"),
            "2026-07-24 10:00:00.123000+00:00"
        );
    }

    #[test]
    fn slot_columns_follow_the_version() {
        assert!(!slot_columns(140_000).contains("conflicting"));
        assert!(slot_columns(160_004).contains("conflicting"));
        assert!(slot_columns(170_011).contains("invalidation_reason"));
        assert!(slot_columns(180_000).contains("synced"));
    }
}
