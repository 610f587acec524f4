//! The real rules, asked about the state of a model.

use super::super::etcd::{
    At, Promise, Sent, Store, SyncKey, mask_of, name, names_of, number, settings,
};
use super::super::kit::{Memo, memo};
use super::{Mutation, Names, Node, State, Votes, Wal};
use proto::config::Settings;
use proto::core::election::{self, Race};
use proto::core::memory::LastLocked;
use proto::core::observation::{PeerAnswer, PeerStatus, SqlSample};
use proto::core::quorum::{self, Change, QuorumState};
use proto::core::sync::{self, SyncInput, SyncMemory, SyncStep, parse_names};
use proto::core::txns::{self, Claimant};
use proto::core::vote;
use proto::dcs::{
    ClusterView, FencePromise, MemberEntry, MemberRecord, RECORD_VERSION, SyncRecord,
};
use proto::dcs::{Key, Op};
use proto::ids::{Epoch, LeaseId, MemberName, Revision};
use proto::time::MonoTime;
use proto::wal::{Lsn, Timeline};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

/// What a peer says: not at all, or whether it is a primary, its position and its timeline.
type Answers = [Option<(bool, u8, u8)>; 3];

thread_local! {
    static CLAIMS: Memo<(u8, Store, Vec<u8>), Option<Sent>> = RefCell::default();
    static SETS: Memo<(Store, u8), Vec<u8>> = RefCell::default();
    static VOTERS: Memo<(u8, Store, u8), bool> = RefCell::default();
    static STANDS: Memo<(u8, Store, u8, u8, Answers), bool> = RefCell::default();
    static STEPS: Memo<(Store, u8, Names, u8, u8), Option<Step>> = RefCell::default();
    static FENCES: Memo<(u8, Store, Option<Promise>), Sent> = RefCell::default();
}

pub fn timeline(wal: &Wal) -> u8 {
    wal.last().copied().unwrap_or(0)
}

pub fn lsn(wal: &Wal) -> u8 {
    u8::try_from(wal.len()).unwrap()
}

fn member(model: &Votes, n: u8) -> Settings {
    let mode = if model.on { "on" } else { "quorum" };
    settings(n, &json!({"synchronous_mode": mode}))
}

/// As an agent reads it, with all members running.
fn view(store: &Store) -> ClusterView {
    let mut view = store.view();
    for n in 0..3 {
        let record = MemberRecord {
            state: Some("running".into()),
            api_url: Some("http://x".into()),
            capabilities: Some(proto::core::capabilities()),
            ..MemberRecord::default()
        };
        let entry = MemberEntry {
            record,
            lease: LeaseId(1),
            modified: Revision(1),
        };
        view.members.insert(name(n), entry);
    }
    view
}

/// S18: whether this standby has a vote.
pub fn may_vote(model: &Votes, state: &State, n: u8) -> bool {
    let wal_epoch = match model.mutation {
        Some(Mutation::LsnOnly) => state.record().epoch,
        _ => state.node(n).wal_epoch,
    };
    let votes = |n: u8| {
        memo(&VOTERS, (n, state.store, wal_epoch), || {
            vote::may_vote(&view(&state.store), &name(n), Epoch(wal_epoch.into()))
        })
    };
    votes(n) || (model.is(Mutation::VoteOfNonMember) && wal_epoch == state.record().epoch)
}

/// The members whose promises a takeover counts, its winner first; none when they are too few.
pub fn takeover_set(model: &Votes, state: &State, skip: u8) -> Vec<u8> {
    let changed = [
        Mutation::OnePromiseShort,
        Mutation::LsnOnly,
        Mutation::VoteOfNonMember,
    ];
    if changed.iter().any(|mutation| model.is(*mutation)) {
        return wrong_set(model, state, skip);
    }
    let epoch = state.record().epoch;
    memo(&SETS, (state.store, skip), || {
        vote::takeover_set(&view(&state.store), Epoch(epoch.into()), skip.into())
            .map(|set| set.iter().map(|n| number(n.as_str())).collect())
            .unwrap_or_default()
    })
}

fn wrong_set(model: &Votes, state: &State, skip: u8) -> Vec<u8> {
    let Some(key) = state.store.sync() else {
        return Vec::new();
    };
    let epoch = state.record().epoch;
    let listed = |n: &u8| key.standbys & 1 << n != 0 || model.is(Mutation::VoteOfNonMember);
    let mut all: Vec<(u8, Promise)> = (0..3)
        .filter(listed)
        .filter_map(|n| Some((n, state.store.promise(n)?)))
        .filter(|(_, promise)| promise.epoch == epoch)
        .collect();
    all.sort_by_key(|(n, promise)| {
        let timeline = if model.is(Mutation::LsnOnly) {
            0
        } else {
            promise.timeline
        };
        (std::cmp::Reverse((timeline, promise.lsn)), *n)
    });
    let needed = usize::from(key.quorum + 1) - usize::from(model.is(Mutation::OnePromiseShort));
    let Some(spare) = all.len().checked_sub(needed) else {
        return Vec::new();
    };
    let set = all.split_off(usize::from(skip).min(spare));
    set.into_iter().map(|(n, _)| n).collect()
}

/// The transaction that takes over, counting these promises, or none after the lease.
pub fn claim(model: &Votes, state: &State, n: u8, counted: &[u8]) -> Option<Sent> {
    let question = (n, state.store, counted.to_vec());
    let mut sent = memo(&CLAIMS, question, || {
        let s = member(model, n);
        let view = view(&state.store);
        let by = Claimant {
            s: &s,
            session: "1",
            members: names_of(7),
            highest: Epoch(0),
        };
        let names: Vec<MemberName> = counted.iter().map(|n| name(*n)).collect();
        let mut txn = match names.as_slice() {
            [] => txns::claim(&view, &by),
            counted => txns::fenced_claim(&view, &by, counted)?,
        };
        if names.is_empty() && model.on {
            // As `race::claim` does: the key names the winner at the same revision.
            let prepared = sync::pre_promotion(&view, &s.me, false);
            let value = SyncRecord::value(&s.me, &prepared.standbys, 0);
            txn.when.push(txns::sync_as_read(&view.sync));
            txn.then.push(Op::put(Key::Sync, value));
        }
        Some(Sent::of(&txn, 0))
    })?;
    if model.is(Mutation::ClaimWithoutRecord) {
        sent = sent.without(At::Record).without(At::Leader);
    }
    if model.is(Mutation::ClaimWithoutSync) {
        sent = sent.without(At::Sync);
    }
    if model.is(Mutation::ClaimWithoutPromises) {
        sent = (0..3).fold(sent, |sent, n| sent.without(At::Fence(n)));
    }
    Some(sent)
}

/// Whether this member may lead after the lease, with answers from those in `answering`.
pub fn stands(model: &Votes, state: &State, n: u8, answering: u8) -> bool {
    let mut answers: Answers = [None; 3];
    for peer in (0..3).filter(|peer| *peer != n && answering & 1 << peer != 0) {
        let node = state.node(peer);
        answers[usize::from(peer)] =
            Some((node.primary.is_some(), lsn(&node.wal), timeline(&node.wal)));
    }
    let wal = &state.node(n).wal;
    let question = (n, state.store, lsn(wal), timeline(wal), answers);
    memo(&STANDS, question, || {
        stand(model, &state.store, n, wal, &answers)
    })
}

fn stand(model: &Votes, store: &Store, n: u8, wal: &Wal, answers: &Answers) -> bool {
    let s = member(model, n);
    let mut view = view(store);
    if model.is(Mutation::OneVoteShort) {
        view.sync.quorum = view.sync.quorum.saturating_sub(1);
    }
    let answers: BTreeMap<MemberName, PeerAnswer> = (0..)
        .zip(answers)
        .filter_map(|(peer, answer)| {
            let (is_primary, lsn, timeline) = (*answer)?;
            let status = PeerStatus {
                is_primary,
                position: Lsn(lsn.into()),
                timeline: Some(Timeline(timeline.into())),
                ..PeerStatus::default()
            };
            let answer = PeerAnswer {
                asked_at: MonoTime(1),
                status: Some(status),
            };
            Some((name(peer), answer))
        })
        .collect();
    let verdict = election::stand(&Race {
        me: &s.me,
        tags: &s.tags,
        position: Lsn(lsn(wal).into()),
        timeline: Some(Timeline(timeline(wal).into())),
        view: &view,
        last: &LastLocked::default(),
        answers: &answers,
        config: &s.cluster,
    });
    verdict.is_yes()
}

/// A promise to be published, or its withdrawal.
pub fn fence(model: &Votes, state: &State, n: u8, promise: Option<Promise>) -> Sent {
    let sent = memo(&FENCES, (n, state.store, promise), || {
        let s = member(model, n);
        let txn = match promise {
            Some(p) => txns::promise(
                &view(&state.store),
                &s,
                &FencePromise {
                    v: RECORD_VERSION,
                    epoch: Epoch(p.epoch.into()),
                    wal_epoch: Epoch(p.wal_epoch.into()),
                    timeline: Timeline(p.timeline.into()),
                    lsn: Lsn(p.lsn.into()),
                },
            ),
            None => txns::withdraw(&view(&state.store), &s),
        };
        Sent::of(&txn, 0)
    });
    match model.mutation {
        Some(Mutation::LatePromise) => sent.without(At::Fence(n)),
        Some(Mutation::WithdrawalWithoutLeader) => sent.without(At::Leader),
        _ => sent,
    }
}

fn names_of_text(text: &str) -> Names {
    let parsed = parse_names(text).unwrap();
    Names {
        count: u8::try_from(parsed.count).unwrap(),
        of: mask_of(parsed.names.iter().map(String::as_str)),
    }
}

/// The names with which a winner is promoted; in mode `on` also the key that it writes before.
pub fn promotion(model: &Votes, store: &Store, n: u8) -> (Names, Option<Sent>) {
    let (view, s) = (view(store), member(model, n));
    if !model.on {
        return (
            names_of_text(&quorum::pre_promotion(&view, &s.me, false)),
            None,
        );
    }
    let prepared = sync::pre_promotion(&view, &s.me, false);
    let ours = view.sync.leader.as_ref() == Some(&s.me);
    let txn = txns::write_sync(&view.sync, &s, &prepared.standbys, 0);
    let key = (!ours).then(|| Sent::of(&txn, 0));
    (names_of_text(&prepared.names), key)
}

/// One step of a primary that looks after `/sync`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    Names(Names),
    Key(SyncKey),
}

fn set(mask: u8) -> BTreeSet<String> {
    names_of(mask)
        .iter()
        .map(|n| n.as_str().to_owned())
        .collect()
}

fn mask(names: &BTreeSet<String>) -> u8 {
    mask_of(names.iter().map(String::as_str))
}

/// The next step, while these stream and so many of them have proved themselves.
pub fn step(model: &Votes, state: &State, n: u8, active: u8, confirmed: u8) -> Option<Step> {
    let names = state.node(n).names;
    let question = (state.store, n, names, active, confirmed);
    memo(&STEPS, question, || {
        let key = state.store.sync()?;
        if key.leader != n {
            return take_key(model, state, n);
        }
        let change = quorum::next_change(&QuorumState {
            voters: set(key.standbys),
            quorum: key.quorum.into(),
            names: set(names.of),
            count: names.count.into(),
            active: set(active),
            confirmed: confirmed.into(),
            wanted: 1,
        })?;
        Some(match change {
            Change::Names { count, names } => Step::Names(Names {
                count: u8::try_from(count).unwrap(),
                of: mask(&names),
            }),
            Change::Key { quorum, voters } => Step::Key(SyncKey {
                leader: n,
                standbys: mask(&voters),
                quorum: u8::try_from(quorum).unwrap(),
            }),
        })
    })
}

fn text(names: Names) -> String {
    let list: Vec<String> = set(names.of).into_iter().collect();
    sync::render_names(&list, names.count.into(), sync::Form::Any)
}

/// A new primary puts itself in the place of the old one.
fn take_key(model: &Votes, state: &State, n: u8) -> Option<Step> {
    let (s, view) = (member(model, n), view(&state.store));
    let shown = text(state.node(n).names);
    let sample = SqlSample {
        synchronous_standby_names: shown.clone(),
        flush_lsn: Lsn(1),
        ..SqlSample::default()
    };
    let input = SyncInput {
        now: MonoTime(1),
        me: &s.me,
        view: &view,
        sample: &sample,
        written: &shown,
        in_flight: &BTreeSet::new(),
        config: &s.cluster,
    };
    match quorum::step_quorum(&input, &mut SyncMemory::default()) {
        SyncStep::WriteKey { standbys, quorum } => Some(Step::Key(SyncKey {
            leader: n,
            standbys: mask_of(standbys.iter().map(String::as_str)),
            quorum: u8::try_from(quorum).unwrap(),
        })),
        SyncStep::SetNames(text) => Some(Step::Names(names_of_text(&text))),
        _ => None,
    }
}

/// The transaction that writes the key.
pub fn write_key(model: &Votes, store: &Store, n: u8, key: SyncKey) -> Sent {
    let (view, s) = (view(store), member(model, n));
    let standbys: Vec<String> = set(key.standbys).into_iter().collect();
    let low = model.is(Mutation::KeyOneLower) && key.quorum > 0;
    let quorum = key.quorum - u8::from(low);
    let txn = txns::write_sync(&view.sync, &s, &standbys, quorum.into());
    let mut sent = Sent::of(&txn, 0);
    if model.is(Mutation::KeyWithoutLeader) {
        sent = sent.without(At::Leader);
    }
    if model.is(Mutation::KeyWithoutRevision) {
        sent = sent.without(At::Sync);
    }
    sent
}

/// S5: whoever keeps the key waits for so many that every takeover meets them, by its old names too.
pub fn overlap(model: &Votes, state: &State) -> bool {
    let Some(key) = state.store.sync() else {
        return true;
    };
    let keeper = state.node(key.leader);
    if model.on || keeper.primary != Some(state.record().epoch) {
        return true;
    }
    let sound = |names: Names| {
        QuorumState {
            voters: set(key.standbys),
            quorum: key.quorum.into(),
            names: set(names.of),
            count: names.count.into(),
            ..QuorumState::default()
        }
        .is_sound()
    };
    sound(keeper.names) && keeper.former.is_none_or(sound)
}

/// The position that a promise of this node names.
pub fn position(node: &Node, epoch: u8) -> Promise {
    Promise {
        epoch,
        wal_epoch: node.wal_epoch,
        timeline: timeline(&node.wal),
        lsn: lsn(&node.wal),
    }
}
