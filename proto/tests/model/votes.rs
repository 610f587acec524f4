//! Votes, epochs and `/sync`: a synchronous primary, its standbys with their WAL, promises as keys,
//! takeovers, withdrawals, restarts, and primaries of older epochs that live on.
//!
//! No clock: whatever is allowed may happen at any time, so suspicion needs no state. Only the takeover by
//! the lease relies on what the model of the lease has shown, that its former holder is not writable.
//!
//! Real: `vote::{may_vote, takeover_set}`, `election::stand`, `quorum::{next_change, step_quorum,
//! pre_promotion}`, `sync::pre_promotion`, and every transaction. A timeline has the number of the epoch
//! that made it: `/history` sees to it that each is new.

mod moves;
mod rules;

use super::etcd::{At, HELD, Rec, Sent, Store, SyncKey, Val};
use stateright::{Model, Property};

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    ClaimWithoutRecord,
    ClaimWithoutSync,
    ClaimWithoutPromises,
    OnePromiseShort,
    PromiseForgotten,
    LsnOnly,
    VoteBeforeCut,
    StreamBeforeWithdrawal,
    LatePromise,
    WithdrawalWithoutLeader,
    LoosenBeforeKey,
    TightenAfterKey,
    KeyOneLower,
    KeyWithoutLeader,
    KeyWithoutRevision,
    NamesInDoubt,
    KeyOfEarlierLife,
    VoteOfNonMember,
    OneVoteShort,
}

pub const MUTATIONS: &[(Mutation, &str)] = &[
    (
        Mutation::ClaimWithoutRecord,
        "takeover does not compare the record",
    ),
    (
        Mutation::ClaimWithoutSync,
        "takeover does not compare /sync",
    ),
    (
        Mutation::ClaimWithoutPromises,
        "takeover does not compare the counted promises",
    ),
    (Mutation::OnePromiseShort, "promises counted one short"),
    (Mutation::PromiseForgotten, "promise forgotten at a restart"),
    (
        Mutation::LsnOnly,
        "promises ordered by LSN alone, from whoever is listed",
    ),
    (
        Mutation::VoteBeforeCut,
        "position read before the stream is cut",
    ),
    (
        Mutation::StreamBeforeWithdrawal,
        "withdrawal by streaming first",
    ),
    (
        Mutation::LatePromise,
        "promise written without comparing its key",
    ),
    (
        Mutation::WithdrawalWithoutLeader,
        "withdrawal does not compare /leader",
    ),
    (
        Mutation::LoosenBeforeKey,
        "PostgreSQL loosened before /sync is written",
    ),
    (
        Mutation::TightenAfterKey,
        "PostgreSQL tightened after /sync is written",
    ),
    (Mutation::KeyOneLower, "k + q = |V|: the quorum one too low"),
    (
        Mutation::KeyWithoutLeader,
        "/sync written without comparing /leader",
    ),
    (
        Mutation::KeyOfEarlierLife,
        "promotion by a key of an earlier life that is not written again",
    ),
    (
        Mutation::NamesInDoubt,
        "PostgreSQL changed while a write of /sync is in doubt",
    ),
    (
        Mutation::KeyWithoutRevision,
        "/sync written without comparing its revision",
    ),
    (
        Mutation::VoteOfNonMember,
        "takeover by a member that is not in /sync",
    ),
    (
        Mutation::OneVoteShort,
        "answers counted one short after the lease",
    ),
];

/// The sizes.
#[derive(Clone, Debug)]
pub struct Votes {
    /// `synchronous_mode: on` with one standby of two, else `quorum` with both.
    pub on: bool,
    /// Whether members promise at all.
    pub votes: bool,
    /// Commits, beside the records that end recovery.
    pub writes: u8,
    pub epochs: u8,
    pub restarts: u8,
    pub withdrawals: u8,
    /// Changes of `synchronous_standby_names` or `/sync` by a primary that holds the key.
    pub changes: u8,
    /// Writes of `/sync` whose answer is lost, and which may be committed late.
    pub losses: u8,
    /// Takeovers by the lease, beside those by votes.
    pub leases: u8,
    /// Whoever held the record last may take it again.
    pub again: bool,
    pub mutation: Option<Mutation>,
}

impl Votes {
    /// Promises against promises, over three epochs.
    pub fn promises() -> Self {
        Self {
            on: false,
            votes: true,
            writes: 1,
            epochs: 3,
            restarts: 1,
            withdrawals: 1,
            changes: 0,
            losses: 0,
            leases: 0,
            again: false,
            mutation: None,
        }
    }

    /// Takeovers while `/sync` and PostgreSQL change: a standby leaves and comes back.
    pub fn changes() -> Self {
        Self {
            epochs: 2,
            restarts: 0,
            withdrawals: 0,
            changes: 3,
            ..Self::promises()
        }
    }

    /// One primary, and writes of `/sync` that come late.
    pub fn losses() -> Self {
        Self {
            epochs: 1,
            changes: 6,
            losses: 1,
            ..Self::changes()
        }
    }

    /// A leader starts again and leads again, while a write of its earlier life is under way.
    pub fn lives() -> Self {
        Self {
            votes: false,
            epochs: 2,
            restarts: 1,
            leases: 1,
            again: true,
            ..Self::changes()
        }
    }

    /// Lost leaders are replaced by the lease alone.
    pub fn leases() -> Self {
        Self {
            votes: false,
            withdrawals: 0,
            restarts: 2,
            leases: 2,
            ..Self::promises()
        }
    }

    /// `synchronous_mode: on`.
    pub fn on() -> Self {
        Self {
            on: true,
            leases: 1,
            ..Self::promises()
        }
    }

    pub fn large() -> Self {
        Self {
            writes: 2,
            restarts: 2,
            withdrawals: 1,
            changes: 2,
            leases: 1,
            ..Self::promises()
        }
    }

    /// The size at which a mutation is looked for.
    pub fn with(mutation: Mutation) -> Self {
        let size = match mutation {
            Mutation::LoosenBeforeKey
            | Mutation::TightenAfterKey
            | Mutation::KeyOneLower
            | Mutation::ClaimWithoutSync
            | Mutation::KeyWithoutLeader => Self {
                restarts: 1,
                ..Self::changes()
            },
            Mutation::KeyOfEarlierLife => Self::lives(),
            Mutation::KeyWithoutRevision | Mutation::NamesInDoubt => Self::losses(),
            Mutation::OneVoteShort | Mutation::ClaimWithoutRecord => Self::leases(),
            Mutation::VoteOfNonMember => Self::on(),
            Mutation::LsnOnly => Self {
                withdrawals: 0,
                ..Self::promises()
            },
            _ => Self::promises(),
        };
        Self {
            mutation: Some(mutation),
            ..size
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// The timeline of each record of WAL, first to last. Only one primary ever writes on a timeline, so equal
/// beginnings are the same WAL.
pub type Wal = Vec<u8>;

/// `synchronous_standby_names`: how many of whom. Nobody waits when it is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Names {
    count: u8,
    of: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    wal: Wal,
    /// Writable, in this epoch.
    primary: Option<u8>,
    /// Streams from.
    from: Option<u8>,
    /// On disk.
    promised: Option<u8>,
    wal_epoch: u8,
    /// The newest epoch that its agent is sure to have seen: it follows no older leader.
    known: u8,
    names: Names,
    /// Names before, by which some WAL sender may still release commits.
    former: Option<Names>,
    /// How much WAL there was when every sender had read the names.
    changed_at: u8,
    /// Its own key on the way: a promise, or (`true`) a withdrawal.
    fence: Option<(bool, Sent)>,
    /// The same, given up; it may still be committed.
    stray: Option<Sent>,
    claim: Option<(u8, Sent)>,
    /// Has taken this epoch and not promoted yet.
    won: Option<u8>,
    sync: Option<Sent>,
    /// The same, given up.
    late_sync: Option<Sent>,
    /// What has become of that is not known.
    in_doubt: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    nodes: Vec<Node>,
    /// The longest WAL that was acknowledged on each timeline.
    acked: Vec<Wal>,
    writes: u8,
    restarts: u8,
    withdrawals: u8,
    changes: u8,
    losses: u8,
    leases: u8,
}

impl State {
    fn record(&self) -> Rec {
        self.store.record().unwrap()
    }

    fn node(&self, n: u8) -> &Node {
        &self.nodes[usize::from(n)]
    }

    fn node_mut(&mut self, n: u8) -> &mut Node {
        &mut self.nodes[usize::from(n)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Write(u8),
    /// One record reaches this standby's disk.
    Receive(u8),
    /// Begins to stream from.
    Stream(u8, u8),
    /// Its stream breaks.
    Break(u8),
    NoteEpoch(u8),
    Promise(u8),
    Publish(u8),
    Withdraw(u8),
    CommitFence(u8),
    /// The answer does not come: the request may still be committed.
    LoseFence(u8),
    CommitStray(u8),
    /// By votes, passing over so many of the best.
    Claim(u8, u8),
    /// By the lease, with answers from these members.
    LeaseClaim(u8, u8),
    CommitClaim(u8),
    Promote(u8),
    Restart(u8),
    ChangeSync(u8),
    CommitSync(u8),
    LoseSync(u8),
    CommitLateSync(u8),
    /// Every WAL sender has read the names.
    NamesRead(u8),
}

fn beginning(model: &Votes) -> State {
    let (standbys, quorum) = if model.on { (2, 0) } else { (6, 1) };
    let standby = Node {
        wal: vec![1],
        primary: None,
        from: Some(0),
        promised: None,
        wal_epoch: 1,
        known: 1,
        names: Names::default(),
        former: None,
        changed_at: 0,
        fence: None,
        stray: None,
        claim: None,
        won: None,
        sync: None,
        late_sync: None,
        in_doubt: false,
    };
    let mut nodes = vec![standby; 3];
    nodes[0].from = None;
    nodes[0].primary = Some(1);
    nodes[0].names = Names {
        count: 1,
        of: standbys,
    };
    let mut store = Store::default();
    let record = Rec {
        epoch: 1,
        owner: 0,
        session: 1,
        seq: 1,
        state: HELD,
        l: 2,
        w: 4,
        members: 7,
    };
    store.put(At::Record, Val::Record(record), 0);
    store.put(At::Leader, Val::Name(0), 0);
    let key = SyncKey {
        leader: 0,
        standbys,
        quorum,
    };
    store.put(At::Sync, Val::Sync(key), 0);
    State {
        store,
        nodes,
        acked: vec![vec![1]],
        writes: model.writes,
        restarts: model.restarts,
        withdrawals: model.withdrawals,
        changes: model.changes,
        losses: model.losses,
        leases: model.leases,
    }
}

impl Model for Votes {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        vec![beginning(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Act>) {
        for n in 0..3 {
            moves::offer(self, state, n, actions);
        }
    }

    fn next_state(&self, state: &State, action: Act) -> Option<State> {
        let mut next = state.clone();
        moves::carry_out(self, &mut next, action)?;
        moves::settle(&mut next);
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S3: every later primary has what was acknowledged", kept),
            Property::always("S4: one primary in each epoch", one_per_epoch),
            Property::always("S5: names and key always overlap", rules::overlap),
            Property::always("S19: a counted promise is on disk", promises_hold),
        ];
        if self.epochs > 1 {
            properties.push(Property::sometimes("a takeover", |_, s: &State| {
                s.nodes.iter().any(|n| n.primary == Some(2))
            }));
        }
        if self.again {
            properties.push(Property::sometimes(
                "a leader that leads again",
                |_, s: &State| s.nodes[0].primary == Some(2),
            ));
        }
        if self.votes && self.epochs > 1 {
            properties.push(Property::sometimes(
                "an old primary lives on",
                |_, s: &State| {
                    s.nodes.iter().any(|n| n.primary == Some(2)) && s.nodes[0].primary == Some(1)
                },
            ));
        }
        if self.epochs > 2 {
            properties.push(Property::sometimes("a third epoch", |_, s: &State| {
                s.nodes.iter().any(|n| n.primary == Some(3))
            }));
        }
        if self.changes > 0 {
            properties.push(Property::sometimes(
                "one standby in the key",
                |_, s: &State| {
                    s.store
                        .sync()
                        .is_some_and(|key| key.standbys.count_ones() == 1)
                },
            ));
        }
        properties
    }
}

fn kept(_: &Votes, state: &State) -> bool {
    state.nodes.iter().all(|node| {
        let has = |wal: &Wal| node.primary <= wal.last().copied() || node.wal.starts_with(wal);
        node.primary.is_none() || state.acked.iter().all(has)
    })
}

fn one_per_epoch(_: &Votes, state: &State) -> bool {
    let epochs: Vec<u8> = state.nodes.iter().filter_map(|n| n.primary).collect();
    let unique = epochs
        .iter()
        .all(|epoch| epochs.iter().filter(|e| *e == epoch).count() == 1);
    unique && epochs.iter().all(|epoch| *epoch <= state.record().epoch)
}

/// Whose promise stands against the present epoch streams from nobody.
fn promises_hold(_: &Votes, state: &State) -> bool {
    let epoch = state.record().epoch;
    state.nodes.iter().zip(0..).all(|(node, n)| {
        let published = state.store.promise(n).is_some_and(|p| p.epoch == epoch);
        !published || (node.promised == Some(epoch) && node.from.is_none())
    })
}
