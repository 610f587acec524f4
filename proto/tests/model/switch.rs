//! The switch between `/leader` on an etcd lease and the record, in both directions, beside a member that is
//! Patroni: two members of ours that see old news, write late, are restarted, and lose their etcd leases.
//!
//! ```text
//!  compatible ── record written, /leader off the lease ──▶ native
//!      ▲ keepalive + proof                                    │ renewals, W
//!      └──── record says compatible, /leader on a lease ◀─────┘
//!            that outlasts what the record has earned
//! ```
//!
//! Real: `tenure::{lock, ends_before}`, `txns::{claim, go_native, go_compatible, inherit, release}`, the renewal
//! of `agent/src/etcd/record.rs`, `FenceClock`. One clock: the lease model has those that run apart.
//! etcd ends a lease as late as it likes once it is due, and at any time while the record is in force. Earlier
//! than that a compatible lease protects nobody, which is why there is another.

mod moves;
mod rules;

use super::etcd::{At, HELD, Rec, Sent, Store, Val};
use rules::Judged;
use stateright::{Model, Property};

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    GoNativeWithoutLeader,
    LeaderStaysOnLease,
    FirstWaitIsW,
    RenewedBeforeGuardian,
    GoCompatibleUncompared,
    SessionNeedNotOutlast,
    ClaimUncompared,
    ClaimWithoutLeader,
    ClaimOnceLeaderIsGone,
    KeepaliveAlone,
    InheritWithoutLeader,
    SwitchFromLastSend,
}

pub const MUTATIONS: &[(Mutation, &str)] = &[
    (
        Mutation::GoNativeWithoutLeader,
        "the switch to the record does not compare /leader",
    ),
    (
        Mutation::LeaderStaysOnLease,
        "/leader stays on the lease after the switch to the record",
    ),
    (
        Mutation::FirstWaitIsW,
        "the first record is waited for W only",
    ),
    (
        Mutation::RenewedBeforeGuardian,
        "record renewed while the guardian has the longer deadline of before",
    ),
    (
        Mutation::GoCompatibleUncompared,
        "the switch to /leader compares neither it nor the record",
    ),
    (
        Mutation::SessionNeedNotOutlast,
        "the switch to /leader on a lease that ends before the record's deadline",
    ),
    (
        Mutation::ClaimUncompared,
        "native claim compares neither the record nor /leader",
    ),
    (
        Mutation::ClaimWithoutLeader,
        "native claim does not compare /leader",
    ),
    (
        Mutation::ClaimOnceLeaderIsGone,
        "native claim once /leader is gone, before W",
    ),
    (
        Mutation::KeepaliveAlone,
        "a keepalive counts without proof that /leader is on the lease",
    ),
    (
        Mutation::InheritWithoutLeader,
        "/leader of an earlier life confirmed without comparing it",
    ),
    (
        Mutation::SwitchFromLastSend,
        "a switch found in the record counts from the last attempt",
    ),
];

/// The sizes, in ticks and counts.
#[derive(Clone, Debug)]
pub struct Switch {
    pub l: u8,
    pub w: u8,
    /// Length of an etcd lease.
    pub ttl: u8,
    /// The last epoch, and the last that a switch to the record begins.
    pub epochs: u8,
    pub natives: u8,
    /// Restarts of `a`.
    pub restarts: u8,
    /// Requests without an answer.
    pub unheard: u8,
    /// Leases that etcd ends early while the record is in force.
    pub revoked: u8,
    /// Whether a Patroni member may join.
    pub patroni: bool,
    pub mutation: Option<Mutation>,
}

/// Fencing bound F.
pub const F: i8 = 1;

/// The member that is Patroni, and its lease.
pub const PATRONI_NUMBER: u8 = 2;
pub const ITS_LEASE: u8 = 5;

impl Switch {
    /// Without Patroni: restarts.
    pub fn ours() -> Self {
        Self {
            l: 2,
            w: 4,
            ttl: 4,
            epochs: 2,
            natives: 1,
            restarts: 1,
            unheard: 0,
            revoked: 0,
            patroni: false,
            mutation: None,
        }
    }

    /// An answer is lost, and the request may come late.
    pub fn unheard() -> Self {
        Self {
            l: 1,
            w: 3,
            ..Self::late()
        }
    }

    /// The same with a longer lease.
    pub fn late() -> Self {
        Self {
            restarts: 0,
            unheard: 1,
            ..Self::ours()
        }
    }

    /// etcd ends a lease early while the record is in force.
    pub fn revoked() -> Self {
        Self {
            restarts: 0,
            revoked: 1,
            ..Self::ours()
        }
    }

    /// A Patroni member joins, takes the lock and leaves it.
    pub fn mixed() -> Self {
        Self {
            restarts: 0,
            patroni: true,
            ..Self::ours()
        }
    }

    /// More of everything, for the long mode.
    pub fn large() -> Self {
        Self {
            epochs: 3,
            natives: 2,
            revoked: 1,
            unheard: 1,
            patroni: true,
            ..Self::ours()
        }
    }

    /// The size at which a mutation is looked for.
    pub fn with(mutation: Mutation) -> Self {
        let size = match mutation {
            Mutation::ClaimWithoutLeader => Self::mixed(),
            Mutation::InheritWithoutLeader => Self {
                unheard: 1,
                ..Self::ours()
            },
            Mutation::ClaimOnceLeaderIsGone => Self::revoked(),
            // The late record must outlive the lease.
            Mutation::GoNativeWithoutLeader => Self {
                l: 4,
                w: 6,
                ..Self::late()
            },
            // The longer deadline of before must reach beyond W.
            Mutation::FirstWaitIsW | Mutation::RenewedBeforeGuardian => Self::unheard(),
            _ => Self::late(),
        };
        Self {
            mutation: Some(mutation),
            ..size
        }
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// No age beyond it makes a difference.
    fn longest(&self) -> u8 {
        self.ttl.max(self.w)
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ask {
    GoNative,
    GoCompatible,
    Claim,
    Inherit,
    Release,
    Renew,
}

/// The record as its holder knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hold {
    epoch: u8,
    /// Age of the renewal that counts, at most L.
    sent: u8,
}

/// A lease as its owner knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session {
    id: u8,
    /// Age of the keepalive that counts.
    sent: u8,
    /// `/leader` has hung on it as far as its owner knew.
    led: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    writable: bool,
    /// etcd as last seen, and whether `/leader` and the record are still so.
    view: Store,
    current: (bool, bool),
    /// For how long the record has been seen standing.
    seen: u8,
    session: Option<Session>,
    hold: Option<Hold>,
    /// A claim or switch without an answer: epoch, and age of the attempt.
    claimed: Option<(u8, u8)>,
    stepping_down: bool,
    /// Epoch and ticks left, down to -F.
    armed: Option<(u8, i8)>,
    /// The epoch that the guardian keeps for a restarted agent.
    kept: Option<u8>,
    /// A request under way, and its age.
    way: Option<(Ask, Sent, u8)>,
    /// One that nobody waits for any more.
    stray: Option<Sent>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patroni {
    Away,
    Joined,
    Leads,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    /// Time until etcd may end each lease; `None` for one that is gone.
    leases: [Option<u8>; 5],
    nodes: Vec<Node>,
    /// Patroni: it may join, has joined, leads, and has led.
    patroni: Patroni,
    restarts: u8,
    unheard: u8,
    revoked: u8,
    /// How often leadership has changed its way, up to two.
    switched: u8,
}

impl State {
    fn alive(&self, lease: u8) -> bool {
        self.leases[usize::from(lease) - 1].is_some()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Tick,
    Observe(u8),
    /// A keepalive; for a leader with the proof behind it.
    Beat(u8),
    NewSession(u8),
    Send(u8, Ask),
    Commit(u8),
    GiveUp(u8),
    CommitStray(u8),
    Arm(u8),
    Promote(u8),
    Stop(u8),
    Fence(u8),
    Restart(u8),
    Expire(u8),
    Revoke(u8),
    Joins,
    ItTakes,
    ItKeeps,
    ItStops,
    ItReleases,
}

/// `a` leads by `/leader`; there has been no record.
fn beginning(model: &Switch) -> State {
    let mut store = Store::default();
    store.put(At::Leader, Val::Name(0), 1);
    let node = |id: u8| Node {
        writable: id == 1,
        view: store,
        current: (true, true),
        seen: 0,
        session: Some(Session {
            id,
            sent: 0,
            led: id == 1,
        }),
        hold: None,
        claimed: None,
        stepping_down: false,
        armed: (id == 1).then(|| (0, i8::try_from(model.ttl - 2).unwrap())),
        kept: None,
        way: None,
        stray: None,
    };
    State {
        store,
        leases: [Some(model.ttl), None, Some(model.ttl), None, None],
        nodes: vec![node(1), node(3)],
        patroni: Patroni::Away,
        restarts: model.restarts,
        unheard: model.unheard,
        revoked: model.revoked,
        switched: 0,
    }
}

impl Model for Switch {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        vec![beginning(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Act>) {
        for n in 0..2 {
            moves::offer(self, state, n, actions);
        }
        moves::offer_etcd(self, state, actions);
        moves::offer_patroni(self, state, actions);
        if moves::time_may_pass(state) {
            actions.push(Act::Tick);
        }
    }

    fn next_state(&self, state: &State, action: Act) -> Option<State> {
        let mut next = state.clone();
        moves::carry_out(self, &mut next, action);
        moves::settle(self, &mut next);
        (next != *state).then_some(next)
    }

    /// What comes after a takeover is as in the lease model.
    fn within_boundary(&self, state: &State) -> bool {
        let over = !state.nodes[0].writable && state.nodes[1].writable;
        !over && state.patroni != Patroni::Done
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S1: one unexpired tenure", one_tenure),
            Property::always("S2: writable only under a deadline", |_, state: &State| {
                let armed = |node: &Node| node.armed.is_some_and(|(_, left)| left >= -F);
                state.nodes.iter().all(|node| !node.writable || armed(node))
            }),
            Property::always("S2x: one that may commit", |_, state: &State| {
                let ours = state.nodes.iter().filter(|node| node.writable).count();
                ours + usize::from(state.patroni == Patroni::Leads) <= 1
            }),
            Property::always("S4: epochs only grow, one owner each", epochs_grow),
            Property::sometimes("the record, and /leader again", |_, s: &State| {
                s.switched == 2 && s.nodes[0].writable
            }),
            Property::sometimes("a takeover by the record", |_, s: &State| {
                s.nodes[1].hold.is_some()
            }),
            Property::sometimes("a takeover by /leader", |_, s: &State| {
                s.store.leader() == Some(1) && !rules::held_in(&s.store)
            }),
        ];
        if self.patroni {
            properties.push(Property::sometimes(
                "Patroni leads after a record",
                |_, s: &State| s.patroni == Patroni::Leads && s.switched > 0,
            ));
        }
        properties
    }
}

fn one_tenure(model: &Switch, state: &State) -> bool {
    let ours = (0..2).filter(|n| {
        let node = &state.nodes[usize::from(*n)];
        !node.stepping_down && matches!(rules::judge(model, *n, node), Judged::Mine { .. })
    });
    ours.count() + usize::from(state.patroni == Patroni::Leads) <= 1
}

fn epochs_grow(_: &Switch, state: &State) -> bool {
    let known = state
        .store
        .record()
        .map_or((0, 0), |r: Rec| (r.epoch, r.owner));
    let held = state.nodes.iter().zip(0..);
    held.filter_map(|(node, n)| Some((node.hold?.epoch, n)))
        .all(|(epoch, n)| epoch < known.0 || (epoch, n) == known)
}
