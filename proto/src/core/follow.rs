//! Somebody else leads: follow it, on its branch of the WAL (`ha-behaviour.md` 4.3, 4.4, 10, 11).

use super::copies;
use super::cx::Cx;
use super::decide::stop_for;
use super::decision::{Action, LogLevel};
use super::job::{Job, StopMode, StopReason, Upstream};
use super::lead::ASK_LIMIT;
use super::observation::{Lineage, Receiver, SqlSample, Task};
use super::reason::Reason;
use super::rewind::{self, Divergence, RewindState};
use super::{lag, sync, vote};
use crate::config::StandbyCluster;
use crate::dcs::PgRole;
use crate::ids::MemberName;
use std::time::Duration;

/// A standby that should stream and does not, for this long, looks at its lineage again.
const NOT_STREAMING_LIMIT: Duration = Duration::from_secs(5);

/// A WAL receiver that waits longer for the first answer of its source waits for a connection that is gone, or for
/// packets that are sent again ever more rarely. Twice what we let one wait that streams (`wal_receiver_timeout`).
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A lineage older than this is asked for anew: data is thrown away because of what it says.
const LINEAGE_FRESH: Duration = Duration::from_secs(2);

/// The name under which the remote primary of a standby cluster is asked for its lineage.
const REMOTE: &str = "remote member";

/// The remote source of a standby cluster.
pub(super) fn remote(remote: &StandbyCluster) -> Upstream {
    Upstream::Remote {
        host: remote.host.clone(),
        port: remote.port.clone(),
        slot: remote.primary_slot_name.clone(),
    }
}

/// Whose history decides whether our WAL has diverged, and where a rewind copies from: the leader's, or
/// in a standby cluster, whose leader follows somebody itself, the remote primary's.
fn trunk(cx: &Cx, leader: &MemberName) -> Option<(MemberName, Upstream)> {
    match &cx.s.cluster.standby_cluster {
        Some(cluster) => Some((REMOTE.into(), remote(cluster))).filter(|(_, to)| to.streams()),
        None => Some((leader.clone(), cx.upstream_of(leader)?)),
    }
}

/// Whom to stream from (`ha-behaviour.md` 10.1).
pub(super) fn target(cx: &Cx, leader: &MemberName) -> Upstream {
    if cx.s.tags.nostream() {
        return Upstream::None;
    }
    let wanted = cx.s.tags.replicatefrom().filter(|name| *name != cx.s.me);
    let source = wanted
        .filter(|name| cx.member(name).is_some())
        .unwrap_or_else(|| leader.clone());
    cx.upstream_of(&source).unwrap_or_default()
}

pub(super) fn decide(cx: &mut Cx, leader: &MemberName) -> Reason {
    if let Some(view) = cx.view() {
        cx.m.note_locked(cx.o.now, view, leader);
    }
    cx.m.free_since = None;
    cx.m.race_asked = None;
    cx.m.race_backoff_since = None;
    cx.m.race_position = None;
    cx.m.handover = None;
    cx.m.failsafe_until = None;
    cx.m.named = false;
    cx.m.last_primary = false;
    cx.m.led = None;
    if cx.is_primary() && !cx.paused() {
        return stop_for(
            cx,
            StopReason::LostLock,
            StopMode::Immediate,
            Reason::LostLock {
                leader: leader.to_string(),
            },
        );
    }
    if cx.o.guardian.armed.is_some() && !cx.is_primary() && cx.sample().is_some() {
        cx.push(Action::Disarm);
    }
    let Some(sample) = cx.sample() else {
        return Reason::Starting;
    };
    if !sample.in_recovery {
        return Reason::PausedFollowing {
            me: cx.s.me.clone(),
        };
    }
    cx.m.role = Some(PgRole::Replica);
    if let Some(reason) = super::lead::restart_wish(cx) {
        return reason;
    }
    if let Some(reason) = reinit_wish(cx, leader) {
        return reason;
    }
    let request = cx.view().and_then(|v| v.failover.as_ref());
    if request.is_some_and(|r| r.candidate.as_ref() == Some(&cx.s.me)) {
        // The leader hands over as soon as we are known to have everything: be quick to say so.
        cx.probe(Duration::from_millis(20));
    }
    if let Some(reason) = vote::consider(cx, leader, sample) {
        return reason;
    }
    stream(cx, leader, sample)
}

fn stream(cx: &mut Cx, leader: &MemberName, sample: &SqlSample) -> Reason {
    let source = target(cx, leader);
    // A leader whose address is not known yet is no reason to let go of the source that there is.
    let known = source != Upstream::None || cx.s.tags.nostream();
    if cx.o.postgres.conf.upstream != source && known && !too_early(cx) {
        if let Some(reason) = may_be_ahead(cx, leader, &source, sample) {
            return reason;
        }
        cx.m.rewind = cx.m.rewind.request();
        cx.m.not_streaming_since = None;
        cx.start(Job::Follow { follow: source });
        return Reason::ChangeUpstream {
            leader: leader.to_string(),
        };
    }
    watch_the_stream(cx, leader, sample);
    if let Some(reason) = on_the_right_branch(cx, leader) {
        return reason;
    }
    if sample.replay_paused && !cx.paused() {
        cx.push(Action::ResumeReplay);
    }
    let configured = cx.configured(Some(sync::standby_names(&cx.s.cluster)), false);
    if cx.paused() {
        return Reason::PausedFollowing {
            me: cx.s.me.clone(),
        };
    }
    if configured && let Some(reason) = copies::decide(cx, leader, sample) {
        return reason;
    }
    Reason::Following {
        me: cx.s.me.clone(),
        leader: leader.clone(),
    }
}

/// Whether we may have WAL that the leader will never have; what is done about it, if so.
///
/// S3, S18: the first thing that a WAL receiver tells its new source is how far *it* has replayed, whatever timeline
/// that was on, and the source counts that as flushed before it has found out that there is nothing to stream
/// (`postgres_jobs.rs::a_diverged_standby_acknowledges_what_it_does_not_have`). A standby beyond the place where the
/// leader's timeline begins would let commits return that it does not have. So nobody connects to a leader before it is
/// known that the leader had as much.
fn may_be_ahead(
    cx: &mut Cx,
    leader: &MemberName,
    source: &Upstream,
    sample: &SqlSample,
) -> Option<Reason> {
    let names_leader =
        |upstream: &Upstream| matches!(upstream, Upstream::Member { name, .. } if name == leader);
    let current = &cx.o.postgres.conf.upstream;
    if !names_leader(source) || names_leader(current) || cx.s.cluster.standby_cluster.is_some() {
        return None;
    }
    if matches!(cx.m.rewind, RewindState::Need | RewindState::Failed) {
        return on_the_right_branch(cx, leader);
    }
    let wait = Some(Reason::CheckLineage {
        leader: leader.clone(),
    });
    cx.probe(Duration::from_millis(50));
    // A new agent does not know what the one before it has written.
    let unknown = !cx.m.source_set && cx.o.postgres.conf.generation == 0;
    if let Some(receiver) = sample.receiver.as_ref().filter(|_| unknown)
        && is_on_the_leaders_timeline(cx, leader, receiver)
    {
        return None;
    }
    if unknown || current.streams() {
        // What comes from elsewhere after the comparison would be missing in it.
        cx.start(Job::Follow {
            follow: Upstream::None,
        });
        return wait;
    }
    if sample.receiver.is_some() {
        return wait;
    }
    if has_told_as_much(cx, leader, sample) {
        return None;
    }
    if runs_as_primary(cx, leader) {
        if let Some(lineage) = lineage(cx, leader) {
            match rewind::check(&cx.o.postgres, lineage) {
                Divergence::Same => return None,
                Divergence::Need { .. } => return compare(cx, leader, lineage),
                Divergence::Unknown { .. } => {}
            }
        } else {
            ask_lineage(cx, leader);
        }
    } else if let Some(url) = cx.member(leader).and_then(|m| m.api_url.clone()) {
        let again = cx.o.now - ASK_LIMIT;
        let _ = super::lead::asked_since(cx, [(leader.clone(), url)].into(), again, ASK_LIMIT);
    }
    cx.wake_in(ASK_LIMIT);
    wait
}

fn is_on_the_leaders_timeline(cx: &Cx, leader: &MemberName, receiver: &Receiver) -> bool {
    let theirs = cx.member(leader).and_then(|m| m.timeline);
    receiver.status == "streaming"
        && theirs.is_some()
        && receiver.timeline == theirs
        && runs_as_primary(cx, leader)
}

/// The leader has told, whenever that was, that it has our WAL: positions on one timeline only grow.
fn has_told_as_much(cx: &Cx, leader: &MemberName, sample: &SqlSample) -> bool {
    let told = cx.o.peers.get(leader).and_then(|a| a.status.as_ref());
    told.is_some_and(|status| {
        let same = status.timeline.is_some() && status.timeline == sample.timeline;
        same && status.position >= lag::position(sample)
    })
}

/// Before it streams no setting of PostgreSQL bounds a WAL receiver: `wal_receiver_timeout` counts from the first
/// answer, `connect_timeout` is not for it, and TCP gives a connection up after two hours whose other end has vanished.
/// Commits may wait for this standby, so another attempt is made: at the same source, which is why nothing has to be
/// known about who leads.
pub(super) fn do_not_connect_for_ever(cx: &mut Cx) {
    let waited = cx.sample().and_then(|sample| sample.connecting);
    if waited.is_some_and(|waited| waited >= CONNECT_LIMIT) && cx.o.job.is_none() {
        cx.push(Action::EndReceiver(CONNECT_LIMIT));
    }
}

/// Finds reasons to look at the lineage: the leader is on a newer timeline than we have seen, or the
/// stream does not come up.
pub(super) fn watch_the_stream(cx: &mut Cx, leader: &MemberName, sample: &SqlSample) {
    let theirs = cx.member(leader).and_then(|m| m.timeline);
    let behind = matches!((sample.timeline, theirs), (Some(mine), Some(theirs)) if mine < theirs);
    let streams = sample
        .receiver
        .as_ref()
        .is_some_and(|r| r.status == "streaming");
    if streams && !behind {
        cx.m.not_streaming_since = None;
        if cx.m.rewind != RewindState::Check {
            cx.m.rewind = RewindState::Initial;
        }
        return;
    }
    let since = *cx.m.not_streaming_since.get_or_insert(cx.o.now);
    let waited = cx.o.now.since(since);
    if !cx.o.postgres.conf.upstream.streams() {
        return;
    }
    if waited >= NOT_STREAMING_LIMIT || (behind && waited >= Duration::from_secs(1)) {
        cx.m.not_streaming_since = Some(cx.o.now);
        cx.m.rewind = cx.m.rewind.request();
    } else {
        cx.wake_in(Duration::from_secs(1));
        cx.probe(Duration::from_millis(250));
    }
}

/// Settles whether our branch leads to the leader's, before we start or stream. `None`: it does, or
/// there is no reason to doubt it.
pub(super) fn on_the_right_branch(cx: &mut Cx, leader: &MemberName) -> Option<Reason> {
    match cx.m.rewind {
        RewindState::Initial | RewindState::NotNeeded | RewindState::Done => return None,
        RewindState::Failed => return Some(after_failed_rewind(cx, leader)),
        RewindState::Check => {}
        RewindState::Need => return Some(rewind_or_copy(cx, leader, "diverged".into())),
    }
    // Asked also where neither a rewind nor a new copy is allowed: a member that will never stream again
    // must not say that it follows (S18).
    let running = cx.alive();
    let standby_cluster = cx.s.cluster.standby_cluster.is_some();
    // The leader must be a primary that answers; its member key says so first.
    let ready = standby_cluster || runs_as_primary(cx, leader);
    let Some(lineage) = lineage(cx, leader) else {
        if ready {
            ask_lineage(cx, leader);
        }
        cx.wake_in(Duration::from_millis(300));
        // A running standby goes on streaming meanwhile; a stopped one must know first. Not in a standby
        // cluster, which has to come up while its remote primary is out of reach: it is never promoted
        // meanwhile, and is compared as soon as the stream does not come up.
        return (!running && !standby_cluster).then(|| Reason::CheckLineage {
            leader: leader.clone(),
        });
    };
    compare(cx, leader, lineage)
}

fn runs_as_primary(cx: &Cx, member: &MemberName) -> bool {
    cx.member(member)
        .is_some_and(|m| matches!(m.role.as_deref(), Some("primary" | "master")))
}

/// The leader's lineage as this tenure of its has it. What the same member answered when it led before
/// is another timeline, against which ours would look diverged.
fn lineage<'a>(cx: &Cx<'a>, leader: &MemberName) -> Option<&'a Lineage> {
    let since =
        cx.m.last_locked
            .as_ref()
            .map_or(cx.o.now, |last| last.since);
    let (asked, _) = trunk(cx, leader)?;
    cx.o.lineage.as_ref().filter(|l| {
        l.leader == asked && l.is_primary && l.at >= since && cx.o.now.since(l.at) < LINEAGE_FRESH
    })
}

fn compare(cx: &mut Cx, leader: &MemberName, lineage: &Lineage) -> Option<Reason> {
    match rewind::check(&cx.o.postgres, lineage) {
        Divergence::Same => {
            cx.m.rewind = RewindState::NotNeeded;
            None
        }
        Divergence::Need { why } => {
            cx.m.rewind = RewindState::Need;
            Some(rewind_or_copy(cx, leader, why.to_string()))
        }
        Divergence::Unknown { .. } => {
            cx.wake_in(Duration::from_secs(1));
            // Where the WAL of a stopped server ends cannot be told: it is started as it is, alone, and looked at again.
            if !cx.alive() && cx.s.cluster.standby_cluster.is_some() {
                cx.m.rewind = RewindState::Initial;
            }
            None
        }
    }
}

fn ask_lineage(cx: &mut Cx, leader: &MemberName) {
    let Some((leader, upstream)) = trunk(cx, leader) else {
        return;
    };
    if cx.may(Task::Lineage) {
        cx.push(Action::AskLineage { leader, upstream });
    }
}

/// Whether the last job failed just now: a source that refuses does so within a millisecond (L10).
fn too_early(cx: &mut Cx) -> bool {
    let until = cx.m.start_not_before.filter(|at| cx.o.now < *at);
    if let Some(until) = until {
        cx.wake(until);
    }
    until.is_some()
}

fn rewind_or_copy(cx: &mut Cx, leader: &MemberName, why: String) -> Reason {
    if too_early(cx) {
        return Reason::CheckLineage {
            leader: leader.clone(),
        };
    }
    let Some((_, source)) = trunk(cx, leader) else {
        return Reason::CheckLineage {
            leader: leader.clone(),
        };
    };
    let control = cx.o.postgres.control.as_ref();
    if cx.s.use_pg_rewind && control.is_some_and(|c| c.rewindable) {
        // pg_rewind reads the source's control file: it must know of the new timeline already. A remote
        // primary publishes nothing; the job itself looks.
        let checkpointed = cx
            .member(leader)
            .is_some_and(|m| m.checkpoint_after_promote != Some(false));
        let told = checkpointed && runs_as_primary(cx, leader);
        if !told && cx.s.cluster.standby_cluster.is_none() {
            cx.wake_in(Duration::from_millis(200));
            return Reason::WaitCheckpoint {
                leader: leader.clone(),
            };
        }
        cx.start(Job::Rewind { source });
        return Reason::Rewind {
            leader: leader.clone(),
            why,
        };
    }
    if cx.s.wipe_on_divergence && cx.s.cluster.standby_cluster.is_none() {
        return copy_anew(cx, leader, source, why);
    }
    cx.wake_in(Duration::from_secs(5));
    Reason::Diverged { why }
}

/// S7: our copy is thrown away only while another live primary with the same identifier exists; the
/// job checks the rest.
fn copy_anew(cx: &mut Cx, leader: &MemberName, source: Upstream, why: String) -> Reason {
    if cx.paused() {
        // Nothing is thrown away in pause unless somebody asks for it.
        return Reason::Diverged { why };
    }
    if too_early(cx) {
        return Reason::CheckLineage {
            leader: leader.clone(),
        };
    }
    let Some(lineage) = lineage(cx, leader) else {
        ask_lineage(cx, leader);
        return Reason::CheckLineage {
            leader: leader.clone(),
        };
    };
    let ours = cx.o.postgres.control.as_ref().map(|c| c.system_id);
    if ours.is_some_and(|ours| ours != lineage.system_id) {
        return Reason::Diverged {
            why: "the leader has another system identifier".into(),
        };
    }
    cx.log(
        LogLevel::Warning,
        format!("throwing the data directory away and copying it from {leader}: {why}"),
    );
    let follow = target(cx, leader);
    cx.start(Job::Reinitialize {
        source,
        follow,
        basebackup_only: false,
        wish: None,
    });
    Reason::CopyAnew {
        leader: leader.clone(),
        why,
    }
}

fn after_failed_rewind(cx: &mut Cx, leader: &MemberName) -> Reason {
    let allowed = cx.s.wipe_on_rewind_failure || cx.s.wipe_on_divergence;
    let why = String::from("pg_rewind failed");
    match cx.upstream_of(leader).filter(|_| allowed) {
        Some(source) => copy_anew(cx, leader, source, why),
        None => {
            cx.wake_in(Duration::from_secs(10));
            Reason::Diverged { why }
        }
    }
}

pub(super) fn reinit_wish(cx: &mut Cx, leader: &MemberName) -> Option<Reason> {
    let wish = cx.o.wishes.reinitialize.clone()?;
    if cx.m.reinit_wish_done == Some(wish.id) {
        return None;
    }
    let source = cx.upstream_of(leader)?;
    let follow = target(cx, leader);
    cx.start(Job::Reinitialize {
        source,
        follow,
        basebackup_only: wish.from_leader,
        wish: Some(wish.id),
    });
    Some(Reason::Reinitialize)
}

/// While the lock is free nothing about the source changes: the old leader may come back.
pub(super) fn keep_source_while_free(cx: &mut Cx) {
    cx.probe(Duration::from_millis(100));
}
