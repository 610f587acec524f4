//! The leader hands over: a planned switchover, or a failover asked for by hand
//! (`ha-behaviour.md` 6.2).
//!
//! ```text
//! request ─▶ ask peers ─▶ choose, name the candidate in /failover ─▶ CHECKPOINT, stop fast
//!         ─▶ candidate has the end of WAL? ─yes─▶ release ─▶ rejoin
//!                                          └─no, in time─▶ start again in place, clear the request
//! ```

use super::cx::Cx;
use super::job::{Job, StopMode, StopReason, Upstream};
use super::leave;
use super::memory::Handover;
use super::observation::Task;
use super::reason::Reason;
use super::{lead, txns};
use crate::dcs::{FailoverRecord, PgRole};
use crate::ids::MemberName;
use std::time::Duration;

/// How long the stopped leader waits for the candidate to have everything, before it starts again
/// itself (L4: old primary back in 5 s).
const END_OF_WAL_LIMIT: Duration = Duration::from_secs(2);

/// How often the candidate is asked meanwhile; it looks at itself as often (L10).
const ASK_EVERY: Duration = Duration::from_millis(20);

/// How long the stop of a switchover may take before the processes are ended.
const STOP_LIMIT_MIN: Duration = Duration::from_secs(5);

/// What is asked of the leader.
pub(super) struct Request {
    pub switchover: bool,
    pub candidate: Option<MemberName>,
}

/// Looks at `/failover`. `None`: nothing to do.
pub(super) fn decide(cx: &mut Cx) -> Option<Reason> {
    let Some(record) = cx.view().and_then(|v| v.failover.as_ref()) else {
        cx.m.handover = None;
        return None;
    };
    if !cx.o.dcs.confirmed {
        return None;
    }
    match admissible(cx, record) {
        Admit::Now => {}
        Admit::Later => return None,
        Admit::Clear(why) => {
            cx.m.handover = None;
            cx.write(Task::Failover, txns::clear_failover(record));
            return Some(Reason::HandoverRefused { why });
        }
    }
    prepare(cx, record)
}

enum Admit {
    Now,
    Later,
    Clear(String),
}

fn admissible(cx: &mut Cx, record: &FailoverRecord) -> Admit {
    if let Some(schedule) = &record.scheduled_at {
        let Some(at) = schedule.at else {
            return Admit::Clear(format!("{:?} is no point in time", schedule.text));
        };
        if cx.paused() {
            return Admit::Later;
        }
        let left = cx.o.wall.millis_until(at);
        if left > 0 {
            let left = Duration::from_millis(left.unsigned_abs());
            cx.wake_in(left.min(cx.s.cluster.timing.loop_wait()));
            return Admit::Later;
        }
        let late = Duration::from_millis(left.unsigned_abs());
        if late > cx.s.cluster.timing.loop_wait().mul_f32(1.5) {
            return Admit::Clear(format!("the scheduled time {} has passed", schedule.text));
        }
    }
    if record
        .leader
        .as_ref()
        .is_some_and(|leader| *leader != cx.s.me)
    {
        return Admit::Clear("it names another leader".into());
    }
    if record.candidate.as_ref() == Some(&cx.s.me) {
        return Admit::Clear("we are the candidate, and lead already".into());
    }
    if record.candidate.is_none() && cx.paused() {
        return Admit::Clear("in pause only a named candidate can take over".into());
    }
    Admit::Now
}

fn prepare(cx: &mut Cx, record: &FailoverRecord) -> Option<Reason> {
    cx.probe(Duration::from_millis(50));
    let now = cx.o.now;
    let fresh =
        cx.m.handover
            .as_ref()
            .is_none_or(|h| h.request != record.modified);
    if fresh {
        let chosen = cx.m.handover.take().filter(|h| {
            // Naming the candidate changed the revision: the same operation goes on.
            h.candidate.is_some() && h.candidate == record.candidate
        });
        let since = chosen.map_or(now, |h| h.since);
        cx.m.handover = Some(Handover {
            request: record.modified,
            switchover: record.is_switchover(),
            candidate: record.candidate.clone(),
            since,
            stop_ordered: None,
            shutdown: None,
        });
    }
    let since = cx.m.handover.as_ref().map_or(now, |h| h.since);
    let peers = lead::peers(cx);
    if peers.is_empty() {
        cx.write(Task::Failover, txns::clear_failover(record));
        return Some(Reason::HandoverRefused {
            why: "there is no other member".into(),
        });
    }
    if !lead::asked_since(cx, peers, since, Duration::from_secs(1)) {
        cx.wake_in(Duration::from_millis(50));
        return Some(Reason::HandoverPreparing {
            what: "asking the other members".into(),
        });
    }
    let request = Request {
        switchover: record.is_switchover(),
        candidate: record.candidate.clone(),
    };
    let Some(candidate) = lead::somebody_can_take_over(cx, Some(&request)) else {
        cx.m.handover = None;
        cx.write(Task::Failover, txns::clear_failover(record));
        return Some(Reason::HandoverRefused {
            why: "no member can take over".into(),
        });
    };
    if record.candidate.as_ref() != Some(&candidate) {
        if let Some(handover) = &mut cx.m.handover {
            handover.candidate = Some(candidate.clone());
        }
        cx.write(Task::Failover, txns::name_candidate(record, &candidate));
        return Some(Reason::HandoverPreparing {
            what: format!("naming {candidate} as the candidate"),
        });
    }
    Some(stop(cx, record, &candidate))
}

fn stop(cx: &mut Cx, record: &FailoverRecord, candidate: &MemberName) -> Reason {
    if let Some(handover) = &mut cx.m.handover {
        handover.candidate = Some(candidate.clone());
        handover.stop_ordered = Some(cx.o.now);
    }
    cx.m.rewind = cx.m.rewind.request();
    let why = if record.is_switchover() {
        StopReason::Switchover
    } else {
        StopReason::ManualFailover
    };
    let configured = cx.s.cluster.primary_stop_timeout;
    let timeout = (!configured.is_zero()).then_some(configured.max(STOP_LIMIT_MIN));
    cx.start(Job::Stop {
        mode: StopMode::Fast,
        checkpoint_first: true,
        timeout,
        why,
    });
    Reason::HandoverStop {
        candidate: candidate.to_string(),
    }
}

/// PostgreSQL has stopped for a hand-over, and the lock is still ours.
pub(super) fn after_stop(cx: &mut Cx) -> Reason {
    let Some(handover) = cx.m.handover.clone() else {
        return Reason::Releasing;
    };
    let Some(candidate) = handover.candidate.clone() else {
        return Reason::Releasing;
    };
    if cx.s.cluster.standby_cluster.is_some() {
        // A standby's stop has no end of WAL, and what it has, its remote primary has.
        return leave::begin(cx, None, Reason::Releasing);
    }
    let (Some((_, end)), Some(stop_ended)) = (
        handover.shutdown,
        cx.o.finished.as_ref().map(|finished| finished.at),
    ) else {
        // It did not stop in order: recover, hand over later.
        return back(cx, &candidate);
    };
    let answer =
        cx.o.peers
            .get(&candidate)
            .filter(|a| a.asked_at >= stop_ended);
    if answer
        .and_then(|a| a.status.as_ref())
        .is_some_and(|status| status.position >= end)
    {
        // Everything is there: nothing acknowledged can be lost by letting go.
        return leave::begin(cx, handover.shutdown, Reason::Releasing);
    }
    if cx.o.now.since(stop_ended) >= END_OF_WAL_LIMIT {
        return back(cx, &candidate);
    }
    let again = answer.map_or(cx.o.now, |answer| answer.asked_at + ASK_EVERY);
    if cx.o.now >= again
        && cx.may(Task::Peers)
        && let Some(url) = cx.member(&candidate).and_then(|m| m.api_url.clone())
    {
        let peers = [(candidate.clone(), url)].into();
        cx.push(super::decision::Action::AskPeers {
            peers,
            limit: lead::ASK_LIMIT,
        });
    }
    cx.wake(if cx.o.now < again {
        again
    } else {
        cx.o.now + ASK_EVERY
    });
    Reason::HandoverWait {
        candidate: candidate.to_string(),
        lsn: end,
    }
}

fn back(cx: &mut Cx, candidate: &MemberName) -> Reason {
    cx.m.handover = None;
    if let Some(record) = cx.view().and_then(|v| v.failover.as_ref()) {
        cx.write(Task::Failover, txns::clear_failover(record));
    }
    let standby = cx.s.cluster.standby_cluster.is_some();
    if !standby {
        cx.m.role = Some(PgRole::Primary);
    }
    let _ = Upstream::None;
    cx.wake_in(Duration::from_millis(1));
    Reason::HandoverBack {
        candidate: candidate.to_string(),
    }
}
