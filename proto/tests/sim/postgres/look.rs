//! What an agent sees that looks at its PostgreSQL.

use super::super::clock::dur;
use super::super::mutation::Mutation;
use super::super::world::World;
use super::{RECORD, Run};
use proto::core::observation::{
    ControlData, ControlState, DataDir, LocalPostgres, Process, Receiver, Sql, SqlSample, WalSender,
};
use proto::core::sync::Form;
use proto::ids::SystemId;
use proto::wal::{Lsn, Timeline};

impl World {
    pub fn look_at_postgres(&mut self, n: usize) -> LocalPostgres {
        let node = &self.nodes[n];
        let conf = self.nodes[n]
            .agent
            .as_ref()
            .map(|a| a.applied.clone())
            .unwrap_or_default();
        let early = self.has(Mutation::ReleaseBeforeEmpty);
        let process = match node.pg.run {
            Run::Gone => Process::Gone,
            Run::Orphans | Run::Stopping if early => Process::Gone,
            Run::Orphans => Process::Orphans,
            Run::Starting | Run::Running | Run::Stopping => Process::Alive {
                pid: i32::try_from(node.pg.life).unwrap_or(1),
            },
        };
        let sql = match node.pg.run {
            Run::Gone | Run::Orphans => Sql::None,
            Run::Stopping if early => Sql::None,
            Run::Starting | Run::Stopping => Sql::Rejecting,
            Run::Running if node.pg.silent_until > self.now => Sql::Silent,
            Run::Running => Sql::Sample(Box::new(self.sample(n))),
        };
        let disk = &node.disk;
        let there = disk.dir == DataDir::Initialised && node.hidden == 0;
        let tli = if there {
            self.branches[disk.branch].tli
        } else {
            0
        };
        let known = tli > 1 && !self.has(Mutation::TimelineNumberOnly);
        LocalPostgres {
            data_dir: match (&disk.dir, node.hidden) {
                (DataDir::Unfinished(_), 0) if self.has(Mutation::UnfinishedHidden) => {
                    DataDir::Initialised
                }
                (dir, 0) => dir.clone(),
                _ => DataDir::Unreadable("permission denied".into()),
            },
            process,
            sql,
            sql_at: node.clock.local(self.now),
            control: there.then(|| self.control(n)),
            signal_file: disk.signal,
            major_version: 15,
            conf,
            history: known.then(|| {
                (
                    self.history(disk.branch),
                    "2026-01-01T00:00:00+00:00".to_owned(),
                )
            }),
            promised: disk.promised,
            wal_epoch: disk.wal_epoch,
            led: disk.led,
        }
    }

    fn control(&self, n: usize) -> ControlData {
        let disk = &self.nodes[n].disk;
        let clean = disk.state == ControlState::ShutDown;
        let standby = matches!(
            disk.state,
            ControlState::InArchiveRecovery | ControlState::ShutDownInRecovery
        );
        let branch = &self.branches[disk.branch];
        // A promotion notes where its timeline begins; the next checkpoint takes the note away.
        let promoted = disk.state == ControlState::InProduction && disk.ckpt_tli != branch.tli;
        let begins = branch.parent.map_or(0, |(_, switch)| switch + RECORD);
        let (min_recovery_end, min_recovery_timeline) = match (standby, promoted) {
            (true, _) => (disk.replay, branch.tli),
            (false, true) => (begins, branch.tli),
            (false, false) => (0, 0),
        };
        ControlData {
            system_id: SystemId(disk.system),
            state: disk.state,
            timeline: Timeline(disk.ckpt_tli),
            checkpoint: Lsn(disk.ckpt),
            redo: Lsn(disk.ckpt),
            checkpoint_end: clean.then_some(Lsn(disk.flush)),
            min_recovery_end: Lsn(min_recovery_end),
            min_recovery_timeline: Timeline(min_recovery_timeline),
            rewindable: true,
        }
    }

    fn sample(&self, n: usize) -> SqlSample {
        let node = &self.nodes[n];
        let (pg, disk) = (&node.pg, &node.disk);
        let tli = Timeline(self.branches[disk.branch].tli);
        let receiver = pg
            .conn
            .and_then(|id| self.conns.get(&id))
            .map(|conn| Receiver {
                status: "streaming".into(),
                sender: Some((self.names[conn.primary].to_string(), 5432)),
                slot: None,
                timeline: Some(tli),
                latest_end_lsn: Lsn(disk.flush),
            });
        let (primary, standby) = if pg.in_recovery {
            (0, disk.flush)
        } else {
            (disk.flush, 0)
        };
        SqlSample {
            in_recovery: pg.in_recovery,
            timeline: Some(tli),
            flush_lsn: Lsn(primary),
            receive_lsn: Lsn(standby),
            replay_lsn: Lsn(if pg.in_recovery { disk.replay } else { 0 }),
            receiver,
            connecting: pg.hanging.map(|since| dur(self.now - since)),
            postmaster_start_time: format!("start {}", pg.life),
            server_version: 150_018,
            synchronous_standby_names: pg.shown.to_string(),
            synchronous_commit: "on".into(),
            wal_senders: self.wal_senders(n),
            ..SqlSample::default()
        }
    }

    fn wal_senders(&self, n: usize) -> Vec<WalSender> {
        let names = self.nodes[n].pg.parsed.clone().unwrap_or_default();
        let mut rows: Vec<(usize, WalSender)> = self
            .conns
            .values()
            .filter(|c| c.primary == n && c.primary_open && c.acked > 0)
            .map(|c| {
                let name = &self.names[c.standby];
                let at = names.names.iter().position(|l| name.same_standby(l));
                let unproved = self.has(Mutation::NamesUnproved);
                let flush = Lsn(if unproved {
                    self.nodes[n].disk.flush
                } else {
                    c.acked
                });
                let row = WalSender {
                    pid: i32::try_from(c.id).unwrap_or(0),
                    application_name: name.to_string(),
                    state: "streaming".into(),
                    sync_state: "async".into(),
                    write_lsn: flush,
                    flush_lsn: flush,
                    replay_lsn: flush,
                    ..WalSender::default()
                };
                (at.unwrap_or(usize::MAX), row)
            })
            .collect();
        rows.sort_by_key(|(at, _)| *at);
        for (index, (at, row)) in rows.iter_mut().enumerate() {
            if *at != usize::MAX {
                let first = index < usize::try_from(names.count).unwrap_or(0);
                row.sync_state = match (names.form, first) {
                    (Form::Any, _) => "quorum",
                    (Form::First, true) => "sync",
                    (Form::First, false) => "potential",
                }
                .to_owned();
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    pub fn since_writable(&self, n: usize) -> std::time::Duration {
        dur(self.nodes[n]
            .pg
            .writable_since
            .map_or(0, |at| self.now - at))
    }
}
