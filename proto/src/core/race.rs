//! Nobody leads: may we take the lock? (`ha-behaviour.md` 4.1, 5)

use super::cx::Cx;
use super::decision::LogLevel;
use super::election::{self, Race, Verdict};
use super::job::{StopMode, StopReason};
use super::lead::{self, ASK_LIMIT};
use super::memory::LastLocked;
use super::observation::{PeerAnswer, SqlSample, Task};
use super::reason::Reason;
use super::{decide::stop_for, follow, keep, lag, sync, tenure, txns};
use crate::config::SyncMode;
use crate::dcs::{ClusterView, Initialize, Key, Op, PgRole, RecordState, SyncRecord};
use crate::ids::{Epoch, MemberName};
use crate::time::MonoTime;
use std::collections::BTreeMap;
use std::time::Duration;

/// A verdict against us is looked at again after this: positions and peers change.
const ASK_AGAIN: Duration = Duration::from_millis(700);

/// A peer whose position was of the time before is asked again after this, for so long.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
const LOOK_LIMIT: Duration = Duration::from_millis(1500);

/// How long the named candidate of a request is left alone with the free lock before all others may
/// race for it (W21 of `ha-behaviour.md` 28: a candidate that cannot promote stalls Patroni for ever), and
/// how long a leader that was asked to leave waits for anybody at all.
const CANDIDATE_GRACE: Duration = Duration::from_secs(5);

pub(super) fn decide(cx: &mut Cx) -> Reason {
    cx.probe(Duration::from_millis(100));
    let since = *cx.m.free_since.get_or_insert(cx.o.now);
    let Some(sample) = cx.sample() else {
        // No position, no candidacy; a silent server is no reason to demote it either.
        return if cx.m.role == Some(PgRole::Primary) {
            blocked_primary(cx)
        } else {
            Reason::Starting
        };
    };
    if !sample.in_recovery {
        return primary(cx, sample);
    }
    if let Some(at) = cx.m.not_leading_before.filter(|at| cx.o.now < *at) {
        cx.wake(at);
        return not_allowed(cx, "the promotion failed lately");
    }
    if cx.paused() {
        return paused(cx, sample, since);
    }
    if cx.s.tags.nofailover() {
        return not_allowed(cx, "nofailover");
    }
    if cx.o.watchdog_failed || !cx.o.guardian.fit {
        return not_allowed(cx, "watchdog or guardian cannot be used");
    }
    if cx.s.cluster.failsafe_mode
        && let Some(reason) = promised_time(cx)
    {
        return reason;
    }
    if let Some(reason) = unknown_cluster(cx) {
        return reason;
    }
    if let Some(reason) = race_backoff(cx, sample) {
        return reason;
    }
    contest(cx, sample, since)
}

fn not_allowed(cx: &mut Cx, why: &str) -> Reason {
    cx.m.rewind = cx.m.rewind.request();
    Reason::NotAllowed {
        why: why.to_owned(),
    }
}

/// S20: a primary without etcd goes on because we have promised it not to lead. An agent that was
/// restarted does not know what the one before it has promised, unless PostgreSQL was the primary itself
/// then. A record that was released ends all of it: only its holder can have been promised time, and it
/// lets go when nothing of it is left (S10). `/leader` alone may as well have run out, and a record older
/// than the WAL that we have received comes from a backup of etcd.
fn promised_time(cx: &mut Cx) -> Option<Reason> {
    let record = cx.view()?.record.as_ref().map(|entry| &entry.record);
    let known = cx.o.postgres.wal_epoch;
    if record.is_some_and(|r| r.state == RecordState::Released && r.epoch >= known) {
        return None;
    }
    let ttl = cx.s.cluster.timing.ttl();
    let asked = cx.o.failsafe_caller.as_ref().map(|caller| caller.at);
    let unknown = cx.m.began.filter(|_| !cx.m.last_primary);
    let until = asked.max(unknown)? + ttl;
    if cx.o.now >= until {
        return None;
    }
    cx.wake(until);
    Some(not_allowed(cx, "a primary without etcd was promised time"))
}

/// S23: etcd was wiped or replaced, and knows nothing of this cluster. Who may lead without losing
/// commits was written there and is gone; so only the last primary leads on, or whom an operator names.
/// Even the last primary waits until a lease that was given out in the lost etcd must have ended.
fn unknown_cluster(cx: &mut Cx) -> Option<Reason> {
    let view = cx.view()?;
    let named = view
        .failover
        .as_ref()
        .is_some_and(|r| r.candidate.as_ref() == Some(&cx.s.me));
    if knows_cluster(view) || named {
        return None;
    }
    if !cx.m.last_primary || !keep::led_last(cx) {
        return Some(not_allowed(
            cx,
            "etcd knows nothing of this cluster: its last primary leads on, or whom an operator names",
        ));
    }
    let native = Duration::from_millis(cx.s.cluster.native.wait_ms);
    let quarantine = cx.s.cluster.timing.ttl().max(native);
    let until = cx.o.dcs.watching_since? + quarantine;
    if cx.o.now >= until {
        return None;
    }
    cx.wake(until);
    Some(not_allowed(
        cx,
        "etcd knows nothing of this cluster: another member may still lead it",
    ))
}

fn knows_cluster(view: &ClusterView) -> bool {
    matches!(view.initialize, Some(Initialize::System(_)))
}

/// S23: before a running primary leads on in an etcd that knows nothing. While it stood still, a quorum of its
/// standbys may have cut it off and another may lead on in a new line of WAL, and what they wrote about that is gone
/// with the old etcd. So everybody whom it knew is asked. One silent member hides no acknowledged commit: that is on
/// the new primary and on a standby of it. With more of them silent the lease decides, and then
/// [`unknown_cluster`].
fn led_on_elsewhere(cx: &mut Cx) -> Option<Reason> {
    let native = &cx.s.cluster.native;
    let fenced = native.record_lease && native.quorum_failover && cx.s.cluster.is_synchronous();
    if !fenced || cx.paused() || cx.view().is_none_or(knows_cluster) {
        return None;
    }
    let since = cx.m.free_since?;
    let armed = cx.o.guardian.armed.map(|armed| armed.deadline);
    let wait = Duration::from_millis(native.wait_ms);
    // S2: nothing of ours is writable for longer than we have promised.
    let reserve = tenure::reserve(Duration::from_millis(native.lease_ms));
    let until = armed.unwrap_or(since + wait) - reserve;
    cx.wake(until);
    if cx.o.now >= until {
        return Some(deposed(cx));
    }
    let last = cx.m.last_locked.clone().unwrap_or_default();
    let mut peers = last.members.clone();
    peers.extend(lead::peers(cx));
    peers.remove(&cx.s.me);
    if asked(cx, peers.clone(), since).is_none() {
        return Some(Reason::AskPeers);
    }
    if let Some((name, epoch)) = later_epoch(cx, since) {
        cx.log(
            LogLevel::Warning,
            format!(
                "etcd knows nothing of this cluster any more, but {name} knows of epoch {epoch}: others have led \
                 since we did"
            ),
        );
        return Some(deposed(cx));
    }
    let told = |name: &&MemberName| {
        let answer = cx.o.peers.get(*name);
        answer.is_some_and(|a| a.asked_at >= since && a.status.is_some())
    };
    let silent = peers.len() - peers.keys().filter(told).count();
    (silent > 1).then_some(Reason::AskPeers)
}

fn deposed(cx: &mut Cx) -> Reason {
    stop_for(
        cx,
        StopReason::LostLock,
        StopMode::Immediate,
        Reason::NoLock,
    )
}

/// Who has told us, since this moment, of an epoch after all that we know of.
fn later_epoch(cx: &Cx, since: MonoTime) -> Option<(MemberName, Epoch)> {
    let mine = keep::highest_epoch(cx);
    let told = cx.o.peers.iter().filter(|(_, a)| a.asked_at >= since);
    let epochs = told.filter_map(|(name, a)| Some((a.status.as_ref()?.epoch, name)));
    let (epoch, name) = epochs.max()?;
    (epoch > mine).then(|| (name.clone(), epoch))
}

/// S3, S23: in an etcd that knows nothing, or whose record somebody has deleted, who led in the last epoch has all that
/// was acknowledged. A member on a newer timeline that knows of no later epoch was promoted by somebody who asked nobody,
/// and its timeline counts for nothing.
fn promoted_by_hand(cx: &Cx, sample: &SqlSample, answer: &PeerAnswer) -> bool {
    let led = cx.m.led.or(cx.o.postgres.led).filter(|led| led.native);
    let (Some(led), Some(status)) = (led, &answer.status) else {
        return false;
    };
    let newer = status.timeline > sample.timeline;
    let ours = status.epoch > Epoch(0) && status.epoch <= led.epoch;
    let unknown = |view| !knows_cluster(view) || led_in_the_deleted_record(view, sample);
    newer && ours && cx.view().is_some_and(unknown) && keep::led_last(cx)
}

/// Nobody has been promoted since we led, as far as `/history` knows, and all are ours, who write it before they are.
fn led_in_the_deleted_record(view: &ClusterView, sample: &SqlSample) -> bool {
    let promoted = view.history.cluster_timeline();
    view.record.is_none()
        && promoted.is_none_or(|last| sample.timeline >= Some(last))
        && election::all_ours(view)
}

/// A silent primary whose lock is gone: it may come back to writing at any moment, so it goes.
fn blocked_primary(cx: &mut Cx) -> Reason {
    if cx.paused() {
        return Reason::PausedFree;
    }
    deposed(cx)
}

/// A running primary takes a free lock if no newer timeline than its own is known (rules 4 and 5).
fn primary(cx: &mut Cx, sample: &SqlSample) -> Reason {
    let Some(view) = cx.view() else {
        return Reason::EtcdNeverRead;
    };
    let system = cx.o.postgres.control.as_ref().map(|c| c.system_id);
    let same_cluster = match (&view.initialize, system) {
        (Some(Initialize::System(cluster)), Some(ours)) => *cluster == ours,
        _ => true,
    };
    let newest = view.history.cluster_timeline();
    let up_to_date = match (sample.timeline, newest) {
        (Some(mine), Some(newest)) => mine >= newest,
        (_, None) => true,
        (None, Some(_)) => false,
    };
    // Somebody has promoted it by hand, outside of pause: it may lack what was acknowledged (S3), and may have
    // promised time (S20).
    let by_hand = !keep::led_last(cx);
    if same_cluster && ((up_to_date && !by_hand) || cx.paused()) {
        if let Some(reason) = led_on_elsewhere(cx) {
            return reason;
        }
        claim(cx);
        return Reason::Claim {
            verdict: Verdict::Best,
        };
    }
    if cx.paused() {
        return Reason::PausedFree;
    }
    deposed(cx)
}

fn paused(cx: &mut Cx, sample: &SqlSample, since: MonoTime) -> Reason {
    let request = cx.view().and_then(|v| v.failover.as_ref());
    let named =
        request.is_some_and(|r| r.candidate.as_ref() == Some(&cx.s.me) && r.scheduled_at.is_none());
    if named && !cx.s.tags.nofailover() {
        cx.m.named = true;
        // A switchover is compared as without a pause: the request may have been changed after the leader had waited
        // for another candidate (S3).
        return contest(cx, sample, since);
    }
    // The request goes with our claim, whose outcome may come later than what the watch shows.
    if !cx.o.in_flight.contains(&Task::Lock) {
        cx.m.named = false;
    }
    Reason::PausedFree
}

/// `ha-behaviour.md` 4.1, rule 1.
fn race_backoff(cx: &mut Cx, sample: &SqlSample) -> Option<Reason> {
    let backoff = cx.s.cluster.primary_race_backoff;
    let requested = cx.view().is_some_and(|v| v.failover.is_some());
    if backoff.is_zero() || requested || cx.s.cluster.standby_cluster.is_some() {
        return None;
    }
    let position = lag::position(sample);
    let before = cx.m.race_position.replace(position)?;
    let since = *cx.m.race_backoff_since.get_or_insert(cx.o.now);
    let passed = cx.o.now.since(since);
    let moves = sample.receiver.is_some() && position > before;
    let waits = passed + cx.s.cluster.timing.loop_wait() < backoff;
    if (passed < backoff && moves) || waits {
        cx.wake_in(Duration::from_secs(1));
        return Some(Reason::RaceBackoff);
    }
    None
}

fn contest(cx: &mut Cx, sample: &SqlSample, since: MonoTime) -> Reason {
    let Some(view) = cx.view() else {
        return Reason::EtcdNeverRead;
    };
    let last = cx.m.last_locked.clone().unwrap_or_default();
    let none = BTreeMap::new();
    let race = race(cx, sample, &last, &none);
    // The named candidate needs no comparison at all (rule 1 of 6.3).
    let request = view.failover.as_ref();
    if request.is_some_and(|r| r.candidate.as_ref() == Some(&cx.s.me))
        && election::stand(&race) == Verdict::Requested
    {
        claim(cx);
        return Reason::ClaimAsCandidate;
    }
    let peers = election::peers_to_ask(&race);
    let Some(again) = asked(cx, peers, since) else {
        return Reason::AskPeers;
    };
    if let Some(reason) = looks_too_old(cx, since, again) {
        return reason;
    }
    if cx.view().is_some_and(|view| !knows_cluster(view)) && later_epoch(cx, since).is_some() {
        // S23: the last primary only as far as we knew.
        cx.m.last_primary = false;
        return not_allowed(cx, "others have led after us in the etcd that was lost");
    }
    let answers: BTreeMap<MemberName, PeerAnswer> =
        cx.o.peers
            .iter()
            .filter(|(_, answer)| answer.tells_since(since))
            .filter(|(_, answer)| !promoted_by_hand(cx, sample, answer))
            .map(|(name, answer)| (name.clone(), answer.clone()))
            .collect();
    let verdict = election::stand(&Race {
        answers: &answers,
        ..race
    });
    settle(cx, since, verdict)
}

/// The moment since which all of `peers` were asked, not before the lock was free and not long ago; asks them if
/// they were not.
fn asked(cx: &mut Cx, peers: BTreeMap<MemberName, String>, since: MonoTime) -> Option<MonoTime> {
    let again =
        cx.m.race_asked
            .filter(|at| *at >= since)
            .map_or(since, |at| {
                if cx.o.now.since(at) >= ASK_AGAIN {
                    cx.o.now
                } else {
                    at
                }
            });
    if lead::asked_since(cx, peers, again, ASK_LIMIT) {
        return Some(again);
    }
    cx.m.race_asked = Some(again);
    None
}

/// S3: a lock that is released at once is free before anybody has looked at PostgreSQL again, and what was
/// acknowledged between the last look and the release would be missing from every position. So positions
/// from before the lock was free do not count, neither our own nor others'. Others look again as soon as
/// they see it free; one that does not counts as silent after a while.
fn looks_too_old(cx: &mut Cx, since: MonoTime, asked: MonoTime) -> Option<Reason> {
    if cx.o.postgres.sql_at < since {
        cx.probe(Duration::from_millis(1));
        cx.wake_in(Duration::from_millis(20));
        return Some(Reason::AskPeers);
    }
    let old = |a: &PeerAnswer| a.asked_at >= since && !a.tells_since(since);
    if cx.o.now.since(since) >= LOOK_LIMIT || !cx.o.peers.values().any(old) {
        return None;
    }
    let again = asked + LOOK_AGAIN;
    if cx.o.now >= again {
        cx.m.race_asked = Some(cx.o.now);
    }
    cx.wake(again);
    Some(Reason::AskPeers)
}

fn race<'a>(
    cx: &Cx<'a>,
    sample: &SqlSample,
    last: &'a LastLocked,
    answers: &'a BTreeMap<MemberName, PeerAnswer>,
) -> Race<'a> {
    Race {
        me: &cx.s.me,
        tags: &cx.s.tags,
        position: lag::position(sample),
        timeline: sample.timeline,
        view: cx.o.dcs.view.as_ref().unwrap_or(&EMPTY),
        last,
        answers,
        config: &cx.s.cluster,
    }
}

static EMPTY: std::sync::LazyLock<crate::dcs::ClusterView> =
    std::sync::LazyLock::new(crate::dcs::ClusterView::default);

fn settle(cx: &mut Cx, since: MonoTime, verdict: Verdict) -> Reason {
    if verdict.is_yes() {
        claim(cx);
        return Reason::Claim { verdict };
    }
    cx.wake_in(ASK_AGAIN);
    if matches!(verdict, Verdict::SteppingDown { .. }) && cx.o.now.since(since) >= CANDIDATE_GRACE {
        cx.log(
            LogLevel::Warning,
            "nobody takes the lock that we were asked to leave",
        );
        if let Some(request) = cx.view().and_then(|v| v.failover.as_ref()) {
            cx.write(Task::Failover, txns::clear_failover(request));
        }
    }
    if let Verdict::LeaveTo { candidate } = &verdict {
        if cx.o.now.since(since) < CANDIDATE_GRACE {
            return Reason::LeaveToCandidate {
                candidate: candidate.clone(),
            };
        }
        cx.log(
            LogLevel::Warning,
            format!("{candidate} does not take the lock that was left to it"),
        );
        if let Some(request) = cx.view().and_then(|v| v.failover.as_ref()) {
            cx.write(Task::Failover, txns::clear_failover(request));
        }
        return Reason::LeaveToCandidate {
            candidate: candidate.clone(),
        };
    }
    follow::keep_source_while_free(cx);
    Reason::NotBest { verdict }
}

/// Orders the transaction that takes the lock.
pub(super) fn claim(cx: &mut Cx) {
    let Some(view) = cx.view().filter(|_| cx.o.dcs.confirmed) else {
        return;
    };
    if cx.o.dcs.session.is_none() {
        return;
    }
    let claimant = keep::claimant(cx);
    let mut txn = txns::claim(view, &claimant);
    if cx.s.cluster.synchronous_mode == SyncMode::On {
        // The key must name us before the promotion anyway (`ha-behaviour.md` 16.4): at the same
        // revision it costs no round trip, and a change by the old leader fails the claim.
        let prepared = sync::pre_promotion(view, &cx.s.me, cx.s.cluster.synchronous_mode_strict);
        let value = SyncRecord::value(&cx.s.me, &prepared.standbys, 0);
        txn.when.push(txns::sync_as_read(&view.sync));
        txn.then.push(Op::put(Key::Sync, value));
    }
    cx.write(Task::Lock, txn);
}
