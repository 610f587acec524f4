//! We hold the lock (`ha-behaviour.md` 4.2, 7).

use super::cx::Cx;
use super::decision::{Action, LogLevel, Wish, WishOutcome};
use super::election;
use super::handover;
use super::job::{Job, StopMode, StopReason, Upstream};
use super::leave;
use super::observation::{SqlSample, Task, TaskResult};
use super::reason::Reason;
use super::sync::{self, SyncStep};
use super::tenure::Tenure;
use super::txns;
use super::{follow, history, keep, lag, quorum, slots};
use crate::config::SyncMode;
use crate::dcs::txn::TxnOutcome;
use crate::dcs::{ClusterView, PgRole, SyncRecord};
use crate::ids::{Epoch, MemberName, STRICT_PLACEHOLDER};
use crate::time::MonoTime;
use crate::wal::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// While the lock is contested or a switchover is under way, the slowest peer is waited for this long:
/// a dead node's silence changes nothing (`DESIGN.md`, "Peers are asked in parallel").
pub(super) const ASK_LIMIT: Duration = Duration::from_millis(300);

/// Answers older than this are asked for anew.
pub(super) const ANSWERS_FRESH: Duration = Duration::from_millis(1500);

/// Promotions that fail before others may try.
const PROMOTIONS_BEFORE_STEPPING_ASIDE: u32 = 3;

/// How long a member whose promotions fail leaves the lock to others.
const STEP_ASIDE: Duration = Duration::from_secs(10);

/// The guardian confirms within a millisecond or not at all.
const ARM_AGAIN: Duration = Duration::from_millis(20);

/// Our name stands in `/leader`, from an earlier life or on a lease that is gone.
pub(super) fn inherit(cx: &mut Cx) -> Reason {
    if leave::native(cx) {
        // An earlier life led in an epoch that we cannot renew. A server that is writable, or may
        // become so, goes down first; then the epoch is over and the next one may be claimed. The
        // deadline stays armed meanwhile.
        if cx.may_write() && !cx.paused() {
            return super::decide::stop_for(
                cx,
                StopReason::LostLock,
                StopMode::Fast,
                Reason::LeaseSpent,
            );
        }
        if cx.paused() {
            if cx.o.guardian.armed.is_some() {
                cx.push(Action::Disarm);
            }
            // An agent that was restarted in pause: its PostgreSQL is the primary still, and would be
            // stopped when the pause ends. It leads on in the next epoch.
            if cx.is_primary() {
                super::race::claim(cx);
            }
        }
        return Reason::Inherit;
    }
    let view = cx.view().filter(|_| cx.o.dcs.confirmed);
    // L10: where the key is on our session already, writing it anew earns nothing. It has run out by our own clock, and
    // the next answer to the keeper either proves that etcd still has it, or takes the key away.
    let on_session = |view: &&ClusterView| {
        let lease = view.leader.as_ref().map(|leader| leader.lease);
        lease == cx.o.dcs.session.as_ref().map(|session| session.id)
    };
    if cx.o.dcs.session.is_some()
        && let Some(txn) = view
            .filter(|view| !on_session(view))
            .and_then(|view| txns::inherit(view, cx.s))
    {
        cx.write(Task::Lock, txn);
    }
    Reason::Inherit
}

/// Whether the guardian has confirmed the deadline of this tenure; orders it if not (S2).
pub(super) fn armed(cx: &mut Cx, tenure: &Tenure) -> bool {
    let confirmed =
        cx.o.guardian
            .armed
            .is_some_and(|armed| armed.epoch == tenure.epoch && armed.deadline > cx.o.now);
    if !confirmed {
        order_arm(cx, tenure.epoch, tenure.deadline);
    }
    confirmed
}

/// Tells the guardian a deadline. A refusal wakes us as an answer does, so the same is not asked again
/// at once.
fn order_arm(cx: &mut Cx, epoch: Epoch, deadline: MonoTime) {
    let again = cx.m.arm_ordered.map(|at| at + ARM_AGAIN);
    if let Some(again) = again.filter(|again| cx.o.now < *again) {
        return cx.wake(again);
    }
    cx.m.arm_ordered = Some(cx.o.now);
    cx.push(Action::Arm { epoch, deadline });
    cx.wake_in(ARM_AGAIN);
}

pub(super) fn decide(cx: &mut Cx, tenure: Tenure) -> Reason {
    if let Some(view) = cx.view() {
        let me = cx.s.me.clone();
        cx.m.note_locked(cx.o.now, view, &me);
    }
    cx.m.free_since = None;
    cx.m.race_backoff_since = None;
    if cx.paused() {
        return paused(cx);
    }
    let armed = armed(cx, &tenure);
    if let Some(until) =
        cx.m.failsafe_until
            .filter(|until| *until >= tenure.deadline)
        && cx
            .o
            .guardian
            .armed
            .is_none_or(|armed| armed.deadline < until)
    {
        order_arm(cx, tenure.epoch, until);
    }
    let Some(sample) = cx.sample() else {
        return leading(cx, tenure);
    };
    if cx.s.cluster.standby_cluster.is_some() {
        return standby_leader(cx, sample);
    }
    if sample.in_recovery {
        return promote(cx, tenure, armed);
    }
    cx.m.role = Some(PgRole::Primary);
    cx.m.last_primary = true;
    if let Some(reason) = handover::decide(cx) {
        return reason;
    }
    if let Some(reason) = restart_wish(cx) {
        return reason;
    }
    if hold_back_after_crash(cx, sample) {
        // The standbys are coming back; to drop them now would acknowledge commits alone.
        return leading(cx, tenure);
    }
    replicate_synchronously(cx, sample);
    leading(cx, tenure)
}

fn leading(cx: &mut Cx, tenure: Tenure) -> Reason {
    let blind = !cx.o.dcs.confirmed || renewal_fails(cx, &tenure);
    if blind && let Some(reason) = failsafe(cx, &tenure) {
        return reason;
    }
    if cx.o.dcs.confirmed {
        return Reason::Leading {
            me: cx.s.me.clone(),
        };
    }
    Reason::LeadingBlind {
        left: cx.o.now.until(tenure.deadline),
    }
}

fn paused(cx: &mut Cx) -> Reason {
    if cx.o.guardian.armed.is_some() {
        // S13: in pause nothing is demoted, so no deadline may end it either.
        cx.push(Action::Disarm);
    }
    if !cx.is_primary() && cx.sample().is_some() && cx.s.cluster.standby_cluster.is_none() {
        let candidate = cx
            .view()
            .and_then(|v| v.failover.as_ref())
            .and_then(|f| f.candidate.clone());
        if candidate.as_ref() == Some(&cx.s.me) || cx.m.named {
            let Some(tenure) = cx.tenure() else {
                return Reason::Inherit;
            };
            return promote(cx, tenure, true);
        }
        if matches!(cx.m.role, Some(PgRole::Promoted)) {
            return Reason::PromotionPending;
        }
        return leave::begin(cx, None, Reason::ReleasedInPause);
    }
    if cx.is_primary() {
        cx.m.named = false;
        cx.m.role = Some(PgRole::Primary);
        if let Some(reason) = handover::decide(cx) {
            return reason;
        }
        if let Some(reason) = restart_wish(cx) {
            return reason;
        }
        if let Some(sample) = cx.sample() {
            replicate_synchronously(cx, sample);
        }
    }
    Reason::PausedLeading {
        me: cx.s.me.clone(),
    }
}

/// A short record lease runs out before the view counts as old: whoever may go on without etcd asks when half
/// of it has passed.
fn renewal_fails(cx: &mut Cx, tenure: &Tenure) -> bool {
    if !cx.s.cluster.failsafe_mode || !leave::native(cx) {
        return false;
    }
    let half = tenure.sent_at + Duration::from_millis(cx.s.cluster.native.lease_ms) / 2;
    if cx.o.now < half {
        cx.wake(half);
    }
    cx.o.now >= half
}

// --- becoming the primary -------------------------------------------------------------------------

fn promote(cx: &mut Cx, tenure: Tenure, armed: bool) -> Reason {
    if cx.o.watchdog_failed {
        return leave::begin(cx, None, Reason::ReleasedForWatchdog);
    }
    if !cx.o.guardian.fit {
        return leave::begin(cx, None, Reason::GuardianLost);
    }
    if cx.m.not_leading_before.is_some_and(|at| cx.o.now < at) {
        let why = "see the line above".to_owned();
        return leave::begin(cx, None, Reason::ReleasedForPrePromote { why });
    }
    if cx.m.failed_promotions >= PROMOTIONS_BEFORE_STEPPING_ASIDE {
        // Others may try; we do not take the lock back at once only to fail again (L10).
        cx.m.not_leading_before = Some(cx.o.now + STEP_ASIDE);
        cx.m.failed_promotions = 0;
        cx.m.failed_starts = 0;
        return leave::begin(cx, None, Reason::ReleasedForStart);
    }
    if let Some(at) = cx.m.start_not_before.filter(|at| cx.o.now < *at) {
        cx.wake(at);
        return Reason::PromotionPending;
    }
    let above = claim_timeline(cx);
    if let Some(reason) = prepare_sync(cx) {
        return reason;
    }
    let Some(above) = above else {
        return Reason::PreparePromotion {
            what: "the number of the new timeline".into(),
        };
    };
    if !armed {
        return Reason::ArmFirst;
    }
    cx.probe(Duration::from_millis(20));
    cx.start(Job::Promote {
        epoch: tenure.epoch,
        above,
    });
    Reason::Promote
}

/// The highest number that is in use anywhere, as far as we know. A promotion by hand claims none, and a
/// second timeline of the same number could not be told from the first.
fn highest_timeline(cx: &Cx, mine: Timeline) -> Timeline {
    let files =
        cx.o.postgres
            .history
            .as_ref()
            .map(|(file, _)| file.timeline);
    let keys = cx.view().into_iter().flat_map(|view| view.members.values());
    let answers = cx.o.peers.values().filter_map(|a| a.status.as_ref());
    let all = [Some(mine), files].into_iter();
    all.chain(keys.map(|m| m.record.timeline))
        .chain(answers.map(|status| status.timeline))
        .flatten()
        .fold(mine, Timeline::max)
}

/// The number that the new timeline must exceed, once `/history` says that we take it (S4).
fn claim_timeline(cx: &mut Cx) -> Option<Timeline> {
    let view = cx.view()?;
    let sample = cx.sample()?;
    let now = cx.o.wall.to_iso();
    let claimant = history::Claimant {
        me: &cx.s.me,
        timeline: highest_timeline(cx, sample.timeline?),
        position: lag::position(sample),
        now: &now,
        keep: cx.s.cluster.max_timelines_history,
    };
    match history::claim(&view.history, &claimant) {
        history::Claim::Above(timeline) => Some(timeline),
        history::Claim::Write(record) => {
            let txn = txns::claim_timeline(&view.history, cx.s, &record);
            cx.write(Task::History, txn);
            None
        }
    }
}

/// S9: before the promotion PostgreSQL already waits for those whom the key names, so that no commit is
/// acknowledged that the next election would not find (`ha-behaviour.md` 16.4, 17.4).
fn prepare_sync(cx: &mut Cx) -> Option<Reason> {
    let view = cx.view()?;
    let strict = cx.s.cluster.synchronous_mode_strict;
    let names = match cx.s.cluster.synchronous_mode {
        SyncMode::Off => {
            let settled = cx.configured(Some(String::new()), true);
            return (!settled).then(|| Reason::PreparePromotion {
                what: "configuration".into(),
            });
        }
        SyncMode::On => {
            let prepared = sync::pre_promotion(view, &cx.s.me, strict);
            // A key of our own, too, which names standbys that we are about to wait for no more (S3): we were
            // the leader, and are promoted again.
            let named: BTreeSet<&String> = view.sync.standbys.iter().collect();
            let same = view.sync.leader.as_ref() == Some(&cx.s.me)
                && named == prepared.standbys.iter().collect();
            if !same || !sync_key_is_known(cx) {
                let txn = txns::write_sync(&view.sync, cx.s, &prepared.standbys, 0);
                cx.write(Task::Sync, txn);
                return Some(Reason::PreparePromotion {
                    what: "the sync key".into(),
                });
            }
            prepared.names
        }
        SyncMode::Quorum => {
            if view.sync.leader.as_ref() == Some(&cx.s.me) && !sync_key_is_known(cx) {
                // Ours from an earlier life, which may have left a write under way that compares with
                // nothing else than this name: written once more, it stays as it is.
                let SyncRecord {
                    standbys, quorum, ..
                } = &view.sync;
                let txn = txns::write_sync(&view.sync, cx.s, standbys, *quorum);
                cx.write(Task::Sync, txn);
                return Some(Reason::PreparePromotion {
                    what: "the sync key".into(),
                });
            }
            quorum::pre_promotion(view, &cx.s.me, strict)
        }
    };
    let settled = cx.configured(Some(names), true);
    (!settled).then(|| Reason::PreparePromotion {
        what: "synchronous standby names".into(),
    })
}

/// Names that a crashed primary must have in force before it is started again.
pub(super) fn names_for_start(cx: &Cx) -> Option<String> {
    (cx.s.cluster.is_synchronous() && !cx.o.postgres.conf.as_primary)
        .then(|| cx.o.postgres.conf.sync_names.clone())
}

// --- synchronous replication ----------------------------------------------------------------------

fn replicate_synchronously(cx: &mut Cx, sample: &SqlSample) {
    if !cx.o.dcs.confirmed {
        return;
    }
    let Some(view) = cx.view() else { return };
    // A lost standby must unblock commits within 3 s (L8): look often enough to see it.
    if cx.s.cluster.is_synchronous() {
        cx.probe(Duration::from_millis(500));
    }
    let input = sync::SyncInput {
        now: cx.o.now,
        me: &cx.s.me,
        view,
        sample,
        written: &cx.o.postgres.conf.sync_names,
        in_flight: &cx.o.in_flight,
        config: &cx.s.cluster,
    };
    let step = match cx.s.cluster.synchronous_mode {
        SyncMode::Off if view.sync.modified.is_none() => return configure_steady(cx, sample),
        SyncMode::Off => sync::switch_off(&view.sync),
        SyncMode::On => sync::step_on(&input, &mut cx.m.sync),
        SyncMode::Quorum => quorum::step_quorum(&input, &mut cx.m.sync),
    };
    let known = sync_key_is_known(cx);
    let step = sync::unless_in_doubt(step, &view.sync, &cx.s.me, known);
    carry_out(cx, step, sample);
}

/// Whether the outcome of the last write of `/sync` is known. A new agent does not know what the one before
/// it has sent.
fn sync_key_is_known(cx: &Cx) -> bool {
    let outcome = cx.outcome(Task::Sync).map(|outcome| &outcome.result);
    matches!(
        outcome,
        Some(TaskResult::Txn(
            TxnOutcome::Committed(_) | TxnOutcome::Refused
        ))
    )
}

fn carry_out(cx: &mut Cx, step: SyncStep, sample: &SqlSample) {
    let Some(view) = cx.view() else { return };
    match step {
        SyncStep::WriteKey { standbys, quorum } => {
            let txn = txns::write_sync(&view.sync, cx.s, &standbys, quorum);
            cx.write(Task::Sync, txn);
        }
        SyncStep::SetNames(names) => {
            // With the order, not at each look until it is carried out. Operators grep for this text.
            if names.contains(STRICT_PLACEHOLDER) && cx.may(Task::Configure) {
                let text = "No active replication connections from Patroni members and \
                            synchronous_mode_strict is requested";
                cx.log(LogLevel::Warning, text);
            }
            cx.configured(Some(names), true);
            cx.probe(Duration::from_millis(50));
            cx.wake_in(Duration::from_millis(50));
        }
        SyncStep::DeleteKey => {
            if view.sync.modified.is_some() {
                cx.write(Task::Sync, txns::delete_sync(&view.sync, cx.s));
            }
        }
        SyncStep::Wait(_) => {
            cx.probe(Duration::from_millis(100));
            configure_steady(cx, sample);
        }
        SyncStep::Settled => configure_steady(cx, sample),
    }
}

/// No change of the names is under way: keep them, and apply whatever else has changed.
fn configure_steady(cx: &mut Cx, sample: &SqlSample) {
    let managed = cx.s.cluster.is_synchronous();
    let names = managed.then(|| sample.synchronous_standby_names.clone());
    cx.configured(names, true);
}

/// After a crash restart the standbys have this long to come back before they count as lost (L8: a
/// lost standby blocks commits for 3 s at most).
const RECONNECT_GRACE: Duration = Duration::from_millis(2500);

/// S9: after a crash restart clients are kept out until as many standbys as a commit needs have what
/// was recovered; else they could read what an election might still lose. True while standbys are
/// waited for.
fn hold_back_after_crash(cx: &mut Cx, sample: &SqlSample) -> bool {
    let Some(target) = cx.m.hold_until else {
        return false;
    };
    let since = *cx.m.hold_since.get_or_insert(cx.o.now);
    let target = match target {
        Lsn::NONE => {
            cx.m.hold_until = sample.flush_lsn.some();
            sample.flush_lsn
        }
        known => known,
    };
    let parsed = sync::parse_names(&sample.synchronous_standby_names);
    let have = parsed.as_ref().map_or(0, |parsed| {
        sample
            .wal_senders
            .iter()
            .filter(|w| {
                parsed
                    .names
                    .iter()
                    .any(|n| n.eq_ignore_ascii_case(&w.application_name))
            })
            .filter(|w| w.flush_lsn >= target)
            .count()
    });
    let need = parsed.map_or(0, |p| usize::try_from(p.count).unwrap_or(usize::MAX));
    if have >= need {
        cx.m.hold_until = None;
        cx.m.hold_since = None;
        cx.hold_back = None;
        return false;
    }
    cx.probe(Duration::from_millis(50));
    cx.hold_back = Some(format!(
        "recovered WAL up to {target} is not on a quorum yet"
    ));
    cx.o.now.since(since) < RECONNECT_GRACE
}

// --- wishes ---------------------------------------------------------------------------------------

pub(super) fn restart_wish(cx: &mut Cx) -> Option<Reason> {
    let follow = cx.o.postgres.conf.upstream.clone();
    restart_now(cx, follow)
}

/// Carries out the restart that is asked for or due, if there is one.
pub(super) fn restart_now(cx: &mut Cx, follow: Upstream) -> Option<Reason> {
    let wish = match cx.o.wishes.restart.clone() {
        Some(wish) if cx.m.restart_wish_done == Some(wish.id) => return None,
        Some(wish) => (wish.timeout, Some(wish.id)),
        None => (scheduled_restart(cx)?, None),
    };
    let (timeout, id) = wish;
    let timeout = timeout.map_or(cx.s.cluster.primary_start_timeout, Duration::from_secs);
    cx.start(Job::Restart {
        timeout,
        wish: id,
        follow,
    });
    Some(Reason::RestartWish)
}

/// `ha-behaviour.md` 13: carried out at its time if its conditions hold then, dropped when it is too
/// late or somebody else has restarted PostgreSQL meanwhile. Never in pause. `Some`: now, with this
/// limit.
fn scheduled_restart(cx: &mut Cx) -> Option<Option<u64>> {
    let restart = cx.o.wishes.scheduled_restart.clone()?;
    if cx.paused() {
        return None;
    }
    let left = cx.o.wall.millis_until(restart.at);
    if left > 0 {
        cx.wake_in(Duration::from_millis(left.unsigned_abs()).min(cx.s.cluster.timing.loop_wait()));
        return None;
    }
    let sample = cx.sample()?;
    let late =
        Duration::from_millis(left.unsigned_abs()) > cx.s.cluster.timing.loop_wait().mul_f32(1.5);
    let restarted = restart
        .postmaster_start_time
        .as_ref()
        .is_some_and(|time| *time != sample.postmaster_start_time);
    let role = super::standing::role(cx);
    let meets = restart
        .role
        .as_ref()
        .is_none_or(|wanted| wanted == role.as_str())
        && restart
            .below_version
            .is_none_or(|version| sample.server_version < version)
        && (!restart.restart_pending || !sample.pending_restart.is_empty());
    let outcome = match (late || restarted, meets) {
        (true, _) => WishOutcome::Refused("its time has passed".into()),
        (false, false) => WishOutcome::Refused("restart conditions are not satisfied".into()),
        (false, true) => WishOutcome::Started,
    };
    let now = outcome == WishOutcome::Started;
    cx.push(Action::Answer {
        wish: Wish::ScheduledRestart,
        outcome,
    });
    now.then_some(restart.timeout)
}

// --- who could take over --------------------------------------------------------------------------

/// The answer to "could somebody else lead?".
pub(super) enum Takeover {
    /// The question is on its way.
    Asking,
    /// This member could.
    By(MemberName),
    /// Nobody could.
    Nobody,
}

/// Everybody but us who has a REST URL.
pub(super) fn peers(cx: &Cx) -> BTreeMap<MemberName, String> {
    let Some(view) = cx.view() else {
        return BTreeMap::new();
    };
    view.members
        .iter()
        .filter(|(name, _)| **name != cx.s.me)
        .filter_map(|(name, entry)| Some((name.clone(), entry.record.api_url.clone()?)))
        .collect()
}

/// Whether all of `peers` were asked after `since`; asks them if not.
pub(super) fn asked_since(
    cx: &mut Cx,
    peers: BTreeMap<MemberName, String>,
    since: MonoTime,
    limit: Duration,
) -> bool {
    let fresh = peers
        .keys()
        .all(|n| cx.o.peers.get(n).is_some_and(|a| a.asked_at >= since));
    if !fresh && cx.may(Task::Peers) {
        cx.push(Action::AskPeers { peers, limit });
    }
    fresh
}

pub(super) fn takeover_candidate(cx: &mut Cx) -> Takeover {
    let since = MonoTime(cx.o.now.0) - ANSWERS_FRESH;
    let peers = peers(cx);
    if peers.is_empty() {
        return Takeover::Nobody;
    }
    if !asked_since(cx, peers, since, ASK_LIMIT) {
        return Takeover::Asking;
    }
    match somebody_can_take_over(cx, None) {
        Some(name) => Takeover::By(name),
        None => Takeover::Nobody,
    }
}

/// `ha-behaviour.md` 5.3 on the answers at hand.
pub(super) fn somebody_can_take_over(
    cx: &Cx,
    request: Option<&handover::Request>,
) -> Option<MemberName> {
    let view = cx.view()?;
    let question = election::Handover {
        me: &cx.s.me,
        view,
        answers: &cx.o.peers,
        config: &cx.s.cluster,
        candidate: request.and_then(|r| r.candidate.as_ref()),
        excluded: None,
        any_member: request.is_some_and(|r| !r.switchover),
        at_least: None,
    };
    election::failover_possible(&question)
        .possible
        .then(|| election::best_candidate(&question))
        .flatten()
}

// --- without etcd ---------------------------------------------------------------------------------

/// S20: while etcd is out of reach, the promise of every member not to lead moves our deadline on.
fn failsafe(cx: &mut Cx, tenure: &Tenure) -> Option<Reason> {
    if !cx.s.cluster.failsafe_mode || !cx.m.failsafe_members.contains_key(&cx.s.me) {
        return None;
    }
    let mut peers = BTreeMap::clone(&cx.m.failsafe_members);
    peers.remove(&cx.s.me);
    let promise = cx.s.cluster.timing.ttl() - super::tenure::COMPATIBLE_MARGIN;
    if peers.is_empty() {
        cx.m.failsafe_until = Some(cx.o.now + promise);
    }
    if let Some(outcome) = cx.outcome(Task::AskFailsafe)
        && let super::observation::TaskResult::Failsafe {
            accepted: true,
            sent_at,
        } = outcome.result
    {
        let until = sent_at + promise;
        if until > cx.m.failsafe_until.unwrap_or_default() && sent_at > tenure.sent_at {
            cx.m.failsafe_until = Some(until);
        }
    }
    let since_last = cx
        .outcome(Task::AskFailsafe)
        .map_or(Duration::MAX, |o| cx.o.now.since(o.at));
    let due = cx.s.cluster.timing.loop_wait().min(Duration::from_secs(3));
    if since_last >= due && cx.may(Task::AskFailsafe) && !peers.is_empty() {
        // As `/status` would have them, so that the others can move theirs along.
        let slots = match (cx.view(), cx.sample()) {
            (Some(view), Some(sample)) => slots::status_slots(&keep::slot_input(cx, view, sample)),
            _ => BTreeMap::new(),
        };
        cx.push(Action::AskFailsafe { peers, slots });
    }
    cx.wake_in(Duration::from_secs(1));
    let active = cx.m.failsafe_until.is_some_and(|until| until > cx.o.now);
    active.then(|| Reason::Failsafe {
        me: cx.s.me.clone(),
    })
}

// --- standby cluster ------------------------------------------------------------------------------

fn standby_leader(cx: &mut Cx, sample: &SqlSample) -> Reason {
    if !sample.in_recovery {
        return super::decide::stop_for(
            cx,
            StopReason::DemoteCluster,
            StopMode::Fast,
            Reason::HandoverStop {
                candidate: "the remote primary".into(),
            },
        );
    }
    if let Some(reason) = handover::decide(cx) {
        return reason;
    }
    if let Some(reason) = restart_wish(cx) {
        return reason;
    }
    let Some(remote) = &cx.s.cluster.standby_cluster else {
        return Reason::NotLookedYet;
    };
    if cx.m.role != Some(PgRole::StandbyLeader) {
        cx.m.role = Some(PgRole::StandbyLeader);
        cx.push(Action::Callback {
            event: "on_role_change".into(),
            role: PgRole::StandbyLeader.as_str().into(),
        });
    }
    let target: Upstream = follow::remote(remote);
    if cx.o.postgres.conf.upstream != target {
        cx.start(Job::Follow { follow: target });
        return Reason::ChangeUpstream {
            leader: "the remote primary".into(),
        };
    }
    // The lock is kept meanwhile: nobody here is writable, and the others have the same to do.
    let me = cx.s.me.clone();
    follow::watch_the_stream(cx, &me, sample);
    if let Some(reason) = follow::on_the_right_branch(cx, &me) {
        return reason;
    }
    cx.configured(None, false);
    Reason::StandbyLeading {
        me: cx.s.me.clone(),
    }
}

#[cfg(test)]
pub(crate) mod tests;
