//! What members and clients are told of us: state, role, and until when we lead.

use super::cx::Cx;
use super::job::Job;
use super::observation::{DataDir, Process, ScheduledRestart, Sql, SqlSample};
use super::tenure::Lock;
use crate::dcs::{PgRole, PgState};
use crate::time::MonoTime;
use serde_json::{Map, Value, json};

pub(super) fn state(cx: &Cx) -> PgState {
    if let Some(job) = &cx.o.job {
        return match &job.job {
            Job::Bootstrap => PgState::Initdb,
            Job::Clone { .. } | Job::Reinitialize { .. } => PgState::CreatingReplica,
            Job::StartPrimary { .. } | Job::StartStandby { .. } => PgState::Starting,
            Job::Restart { .. } => PgState::Restarting,
            // Only a part of it: before and after it, the standby serves.
            Job::CopySlots { .. } if !matches!(cx.o.postgres.sql, Sql::Sample(_)) => {
                PgState::Restarting
            }
            Job::Stop { .. } | Job::SetAside { .. } if cx.alive() => PgState::Stopping,
            Job::Rewind { .. }
            | Job::CrashRecovery
            | Job::RemoveData
            | Job::SetAside { .. }
            | Job::Stop { .. } => PgState::Stopped,
            Job::Promote { .. } | Job::Follow { .. } | Job::CopySlots { .. } => settled(cx),
        };
    }
    settled(cx)
}

fn settled(cx: &Cx) -> PgState {
    match (&cx.o.postgres.process, &cx.o.postgres.sql) {
        (Process::Alive { .. }, Sql::Sample(_) | Sql::Silent) => PgState::Running,
        (Process::Alive { .. }, _) => PgState::Starting,
        (Process::Orphans, _) => PgState::Crashed,
        // In pause whoever ended it may have meant to.
        (Process::Gone | Process::Unknown, _) if cx.m.was_running && !cx.paused() => {
            PgState::Crashed
        }
        (Process::Gone | Process::Unknown, _) if cx.m.start_failed => PgState::StartFailed,
        (Process::Gone | Process::Unknown, _) => PgState::Stopped,
    }
}

pub(super) fn role(cx: &Cx) -> PgRole {
    if cx.o.postgres.data_dir == DataDir::Empty && !cx.alive() {
        return PgRole::Uninitialized;
    }
    if let Some(job) =
        cx.o.job
            .as_ref()
            .filter(|j| matches!(j.job, Job::Promote { .. }))
        && job.phase == "promoting"
    {
        return PgRole::Promoted;
    }
    cx.m.role.unwrap_or(PgRole::Uninitialized)
}

pub(super) fn leader_until(cx: &Cx) -> Option<MonoTime> {
    match cx.lock {
        Lock::Mine(tenure) if cx.m.stepping_down.is_none() => Some(tenure.deadline),
        _ => None,
    }
}

pub(super) fn failsafe_active(cx: &Cx) -> bool {
    let promised = cx.o.failsafe_caller.as_ref().is_some_and(|caller| {
        cx.o.now.since(caller.at) < cx.s.cluster.timing.ttl() && !cx.o.dcs.confirmed
    });
    promised || (cx.m.failsafe_until.is_some_and(|at| at > cx.o.now) && !cx.o.dcs.confirmed)
}

/// `replication_state`: `streaming`, `in archive recovery`, or nothing.
pub fn replication_state(sample: &SqlSample) -> Option<&'static str> {
    if sample
        .receiver
        .as_ref()
        .is_some_and(|r| r.status == "streaming")
    {
        return Some("streaming");
    }
    (sample.in_recovery && sample.has_restore_command).then_some("in archive recovery")
}

/// `scheduled_restart` in the member key.
pub fn scheduled_restart(restart: &ScheduledRestart) -> Value {
    let mut map = Map::new();
    map.insert("schedule".into(), json!(restart.schedule));
    for (key, value) in &restart.raw {
        if key != "schedule" {
            map.insert(key.clone(), value.clone());
        }
    }
    map.insert(
        "postmaster_start_time".into(),
        json!(restart.postmaster_start_time),
    );
    Value::Object(map)
}
