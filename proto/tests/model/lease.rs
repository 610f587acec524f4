//! Lease and guardian: members that renew, watch, claim, release, crash and freeze, on clocks that run
//! apart.
//!
//! ```text
//!  agent:    renew ─▶ in flight ─▶ committed ─▶ answer ─▶ deadline to the guardian
//!                        └─ no answer: the same again, the first one may still come
//!  guardian: deadline passed ─▶ every process ended, within F
//!  others:   see a revision ─▶ it stands still for W, or says released ─▶ claim ─▶ guardian ─▶ promote
//! ```
//!
//! Real: `tenure::lock`, `txns::{claim, release}`, the renewal of `agent/src/etcd/record.rs`, `FenceClock`.
//! An agent may do nothing at any time, so its crash, freeze and isolation need no states of their own.

mod moves;
mod rules;

use super::etcd::{At, HELD, RELEASED, Rec, Sent, Store, Val};
use stateright::{Model, Property};

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    ClaimWithoutRecord,
    RenewWithoutRecord,
    ReleaseWithoutRecord,
    DeadlineFromReply,
    DeadlineFromLastSend,
    DeadlineOfRestartedAgent,
    UnknownIsSuccess,
    WaitEqualsBound,
    NoQuarantine,
    ReleaseBeforeEmpty,
    GuardianAfterPromotion,
    NoGuardian,
    NoKernelTimer,
    ReleaseNotForgotten,
    ClaimFromLastSend,
    EqualCounterIsMine,
    ShorterWaitAtOnce,
    OwnWaitAlone,
    LengthOfTheRecord,
}

pub const MUTATIONS: &[(Mutation, &str)] = &[
    (
        Mutation::ClaimWithoutRecord,
        "claim does not compare the record",
    ),
    (
        Mutation::RenewWithoutRecord,
        "renewal does not compare the record",
    ),
    (
        Mutation::ReleaseWithoutRecord,
        "release does not compare the record",
    ),
    (
        Mutation::DeadlineFromReply,
        "deadline counts from the reply",
    ),
    (
        Mutation::DeadlineFromLastSend,
        "deadline counts from the last attempt",
    ),
    (
        Mutation::DeadlineOfRestartedAgent,
        "restarted agent counts its deadline from its start",
    ),
    (
        Mutation::UnknownIsSuccess,
        "unknown outcome of a renewal taken for success",
    ),
    (
        Mutation::WaitEqualsBound,
        "W equals (L + F) with drift, not more",
    ),
    (
        Mutation::NoQuarantine,
        "no waiting after the observation was lost",
    ),
    (
        Mutation::ReleaseBeforeEmpty,
        "released while processes are left",
    ),
    (
        Mutation::GuardianAfterPromotion,
        "guardian armed after the promotion",
    ),
    (Mutation::NoGuardian, "no guardian"),
    (
        Mutation::NoKernelTimer,
        "no kernel timer behind the guardian",
    ),
    (
        Mutation::ReleaseNotForgotten,
        "restarted agent goes on in an epoch whose release was sent",
    ),
    (
        Mutation::ClaimFromLastSend,
        "claim found in the record counts from the last attempt",
    ),
    (
        Mutation::EqualCounterIsMine,
        "restarted agent takes an equal counter for its own renewal",
    ),
    (
        Mutation::ShorterWaitAtOnce,
        "the renewal that shortens L writes the shorter W already",
    ),
    (
        Mutation::OwnWaitAlone,
        "candidate waits the W of its own configuration only",
    ),
    (
        Mutation::LengthOfTheRecord,
        "restarted agent takes L from the record, not from the guardian's deadline",
    ),
];

/// The sizes, in ticks and counts.
#[derive(Clone, Debug)]
pub struct Lease {
    pub nodes: u8,
    /// Lease length L.
    pub l: u8,
    /// Fencing bound F.
    pub f: u8,
    /// How long a revision is seen standing still, W.
    pub w: u8,
    /// How often a clock may run a tick slow or fast, all clocks together.
    pub slips: u8,
    /// How many restarts and freezes.
    pub faults: u8,
    /// The last epoch.
    pub epochs: u8,
    /// L and W that any member may have read from a changed configuration, at any time.
    pub change: Option<(u8, u8)>,
    pub mutation: Option<Mutation>,
}

impl Lease {
    /// Clocks that run apart, and no fault.
    pub fn drifting() -> Self {
        Self {
            nodes: 2,
            l: 1,
            f: 1,
            w: 5,
            slips: 2,
            faults: 0,
            epochs: 2,
            change: None,
            mutation: None,
        }
    }

    /// The configuration shortens the lease while the cluster runs.
    pub fn shorter() -> Self {
        Self {
            l: 2,
            w: 4,
            slips: 0,
            faults: 1,
            change: Some((1, 3)),
            ..Self::drifting()
        }
    }

    /// It lengthens it.
    pub fn longer() -> Self {
        Self {
            l: 1,
            w: 3,
            change: Some((2, 4)),
            ..Self::shorter()
        }
    }

    /// Crashes and freezes, and clocks that agree.
    pub fn faulty() -> Self {
        Self {
            l: 2,
            w: 4,
            slips: 0,
            faults: 1,
            epochs: 2,
            ..Self::drifting()
        }
    }

    /// Both at once.
    pub fn both() -> Self {
        Self {
            faults: 2,
            epochs: 3,
            ..Self::drifting()
        }
    }

    /// The size at which a mutation is looked for.
    pub fn with(mutation: Mutation) -> Self {
        let size = match mutation {
            Mutation::WaitEqualsBound => Self::drifting(),
            Mutation::ShorterWaitAtOnce => Self::shorter(),
            Mutation::OwnWaitAlone | Mutation::LengthOfTheRecord => Self::longer(),
            Mutation::ClaimFromLastSend => Self {
                faults: 0,
                epochs: 3,
                ..Self::faulty()
            },
            _ => Self {
                faults: 2,
                epochs: 3,
                ..Self::faulty()
            },
        };
        Self {
            mutation: Some(mutation),
            ..size
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// W as candidates wait it. With drift the holder's clock may be slow by one tick and the waiter's fast
    /// by one, so W must exceed L + F + 2.
    fn wait(&self) -> u8 {
        self.w - u8::from(self.is(Mutation::WaitEqualsBound))
    }

    /// L and W of a member's configuration.
    fn lengths(&self, changed: bool) -> (u8, u8) {
        let changed = self.change.filter(|_| changed);
        changed.unwrap_or((self.l, self.wait()))
    }

    /// No age beyond these makes a difference.
    fn longest(&self) -> (u8, u8) {
        let (l, w) = self.change.unwrap_or_default();
        (l.max(self.l), w.max(self.w))
    }
}

/// PostgreSQL, with all its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pg {
    /// Not there, or in recovery: it cannot commit, and becomes writable by promotion only.
    Harmless,
    /// From the order to promote on, which is the worst that can follow it.
    Writable,
    /// Stopping, or its postmaster has crashed: processes are left, and may still commit.
    Dying,
}

impl Pg {
    fn may_commit(self) -> bool {
        self != Self::Harmless
    }
}

/// A tenure as its agent knows it: `HeldRecord` and the renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hold {
    epoch: u8,
    session: u8,
    seq: u8,
    /// The length that the renewal that counts has earned.
    l: u8,
    /// L and W of the record as last known.
    base: (u8, u8),
    /// Ticks until the furthest deadline that was earned.
    far: u8,
    /// Age of the renewal that counts, at most its length.
    sent: u8,
    /// Age of the first attempt of the one under way, at most L.
    first: Option<u8>,
    /// The record is still as this agent knows it.
    current: bool,
    settled: bool,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ask {
    /// By the changed configuration, or by the one before.
    Renew(bool),
    /// Its epoch, its age, at most L, and whether by the changed configuration.
    Claim(u8, u8, bool),
    Release,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    Idle,
    Sent(Ask, Sent),
    Refused(Ask),
    /// Committed; and whether the record is still what it wrote.
    Committed(Ask, bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guard {
    /// Epoch, and ticks left, down to -F.
    armed: Option<(u8, i8)>,
    /// The tenure that it remembers for a restarted agent, by its length.
    keeps: Option<u8>,
    /// Which guardian it is: the session of a record.
    life: u8,
    frozen: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    pg: Pg,
    hold: Option<Hold>,
    way: Way,
    /// A request without an answer that may still be committed.
    stray: Option<Sent>,
    /// A claim without an answer: epoch, and age of the first attempt, at most L.
    claimed: Option<(u8, u8)>,
    /// For how long the present revision of the record has been seen, at most W.
    seen: Option<u8>,
    /// Giving leadership up: nothing is renewed or started until it is gone.
    stepping_down: bool,
    guard: Guard,
    frozen: bool,
    /// It has read the changed configuration.
    changed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    nodes: Vec<Node>,
    slips: u8,
    faults: u8,
    /// What has happened, for the properties that must be seen.
    waited: bool,
}

impl State {
    fn record(&self) -> Rec {
        self.store.record().unwrap()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Tick,
    /// The changed configuration is read.
    Configure(u8),
    /// A tick that this node's clock does not see.
    Slow(u8),
    /// A tick that this node's clock counts twice.
    Fast(u8),
    Observe(u8),
    Renew(u8),
    Claim(u8),
    /// Sends a claim again that has been committed unseen.
    ClaimAgain(u8),
    Release(u8),
    Commit(u8),
    CommitStray(u8),
    Answer(u8),
    Timeout(u8),
    Promote(u8),
    Stop(u8),
    Ended(u8),
    Fence(u8),
    RestartAgent(u8),
    KillGuard(u8),
    FreezeGuard(u8),
    ThawGuard(u8),
    FreezeNode(u8),
    ThawNode(u8),
}

/// `a` leads in epoch 1 and has just renewed; the others have just seen it.
fn beginning(model: &Lease) -> State {
    let guard = Guard {
        armed: None,
        keeps: None,
        life: 1,
        frozen: false,
    };
    let standby = Node {
        pg: Pg::Harmless,
        hold: None,
        way: Way::Idle,
        stray: None,
        claimed: None,
        seen: Some(0),
        stepping_down: false,
        guard,
        frozen: false,
        changed: false,
    };
    let mut nodes = vec![standby; usize::from(model.nodes)];
    nodes[0].pg = Pg::Writable;
    nodes[0].guard.armed = Some((1, i8::try_from(model.l).unwrap()));
    nodes[0].guard.keeps = Some(model.l);
    nodes[0].seen = None;
    nodes[0].hold = Some(Hold {
        epoch: 1,
        session: 1,
        seq: SEQ,
        l: model.l,
        base: (model.l, model.wait()),
        far: model.l,
        sent: 0,
        first: None,
        current: true,
        settled: true,
    });
    let mut store = Store::default();
    let record = Rec {
        epoch: 1,
        owner: 0,
        session: 1,
        seq: SEQ,
        state: HELD,
        l: model.l,
        w: model.wait(),
        members: 7,
    };
    store.put(At::Record, Val::Record(record), 0);
    State {
        store,
        nodes,
        slips: model.slips,
        faults: model.faults,
        waited: false,
    }
}

/// The counter of the record in every state: only differences to it count.
const SEQ: u8 = 10;

impl Model for Lease {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        vec![beginning(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Act>) {
        for n in 0..self.nodes {
            moves::offer(self, state, n, actions);
        }
        if moves::time_may_pass(self, state) {
            actions.push(Act::Tick);
            if state.slips > 0 {
                actions.extend((0..self.nodes).map(Act::Slow));
                actions.extend((0..self.nodes).map(Act::Fast));
            }
        }
    }

    fn next_state(&self, state: &State, action: Act) -> Option<State> {
        let mut next = state.clone();
        moves::carry_out(self, &mut next, action);
        moves::settle(&mut next);
        (next != *state).then_some(next)
    }

    /// Where lengths change, what comes after the takeover is as without.
    fn within_boundary(&self, state: &State) -> bool {
        self.change.is_none() || state.nodes[0].pg.may_commit() || state.nodes[1].pg == Pg::Harmless
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S1: one unexpired tenure", one_tenure),
            Property::always("S2: writable only under a deadline", under_a_deadline),
            Property::always("S2x: one that may commit", one_that_may_commit),
            Property::always("S4: epochs only grow, one owner each", epochs_grow),
            Property::always("S10: released means empty", released_is_empty),
            Property::sometimes("a takeover after W", |_, s: &State| {
                s.waited && s.nodes[1].pg == Pg::Writable
            }),
        ];
        if self.change.is_some() {
            properties.push(Property::sometimes(
                "the changed lengths",
                |model: &Self, s: &State| {
                    let hold = s.nodes[0].hold;
                    hold.is_some_and(|hold| Some((hold.l, s.record().w)) == model.change)
                },
            ));
            return properties;
        }
        properties.extend([
            Property::sometimes("a takeover of a released record", |_, s: &State| {
                !s.waited && s.record().epoch == 2 && s.nodes[1].pg == Pg::Writable
            }),
            Property::sometimes("leadership is lost and taken back", |_, s: &State| {
                s.record().epoch > 1 && s.record().owner == 0 && s.nodes[0].pg == Pg::Writable
            }),
        ]);
        properties
    }
}

fn one_tenure(_: &Lease, state: &State) -> bool {
    let holders = state
        .nodes
        .iter()
        .filter(|node| node.hold.is_some_and(|hold| hold.sent < hold.l) && !node.stepping_down);
    holders.count() <= 1
}

fn under_a_deadline(model: &Lease, state: &State) -> bool {
    state.nodes.iter().all(|node| {
        let armed = node
            .guard
            .armed
            .is_some_and(|(_, left)| left >= -i8::try_from(model.f).unwrap());
        !node.pg.may_commit() || node.frozen || armed
    })
}

fn one_that_may_commit(_: &Lease, state: &State) -> bool {
    let able = |node: &&Node| node.pg.may_commit() && !node.frozen;
    state.nodes.iter().filter(able).count() <= 1
}

fn epochs_grow(_: &Lease, state: &State) -> bool {
    let record = state.record();
    let held = state.nodes.iter().zip(0..);
    held.filter_map(|(node, n)| Some((node.hold?, n)))
        .all(|(hold, n)| {
            hold.epoch < record.epoch || (hold.epoch == record.epoch && record.owner == n)
        })
}

fn released_is_empty(_: &Lease, state: &State) -> bool {
    let record = state.record();
    let owner = &state.nodes[usize::from(record.owner)];
    record.state != RELEASED || owner.pg == Pg::Harmless
}
