//! Failsafe mode: a primary that has lost etcd goes on while every member answers, and nobody else takes over
//! meanwhile, with etcd coming back to some of them first.
//!
//! ```text
//!  primary:  etcd gone ─▶ asks all of /failsafe ─▶ every one promises ─▶ deadline = first send + ttl - margin
//!  others:   promise ─▶ no election for ttl from the receipt; a restarted agent promises without being asked
//! ```
//!
//! Real: `decide()` as a whole, as the primary that counts answers and as the member that may stand or not;
//! `core::failsafe::answer`, `tenure::lock`, `txns::claim`. A tick is 10 s and `ttl` three of them, so what the
//! guardian needs lies within the tick in which a deadline passes. Nobody can reach the primary but for its
//! questions: what a candidate sees of it elsewhere must not be needed.

mod moves;
mod rules;

use super::etcd::{At, HELD, Rec, Sent, Store, Val};
use rules::STEP;
use stateright::{Model, Property};

/// A rule that is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutation {
    MajorityIsEnough,
    FromTheAnswer,
    PromiseForgotten,
    RestartForgets,
    AnybodyStands,
}

pub const MUTATIONS: &[(Mutation, &str)] = &[
    (
        Mutation::MajorityIsEnough,
        "the primary goes on with a majority of the answers",
    ),
    (
        Mutation::FromTheAnswer,
        "the promised time counts from the last answer",
    ),
    (
        Mutation::PromiseForgotten,
        "who has promised stands once etcd is back",
    ),
    (
        Mutation::RestartForgets,
        "a restarted agent does not wait for what it may have promised",
    ),
    (
        Mutation::AnybodyStands,
        "a member that is not in /failsafe stands",
    ),
];

/// The sizes.
#[derive(Clone, Debug)]
pub struct Failsafe {
    /// Members; the first leads.
    pub nodes: u8,
    /// Those in `/failsafe`, as bits.
    pub listed: u8,
    /// By record, or by `/leader`.
    pub native: bool,
    /// How often a member loses etcd.
    pub cuts: u8,
    pub restarts: u8,
    /// Elections that are won.
    pub claims: u8,
    pub mutation: Option<Mutation>,
}

impl Failsafe {
    /// By `/leader`.
    pub fn compatible() -> Self {
        Self {
            nodes: 3,
            listed: 7,
            native: false,
            cuts: 2,
            restarts: 1,
            claims: 1,
            mutation: None,
        }
    }

    /// By record.
    pub fn native() -> Self {
        Self {
            native: true,
            ..Self::compatible()
        }
    }

    /// A member has come that the primary does not ask.
    pub fn newcomer() -> Self {
        Self {
            listed: 3,
            ..Self::compatible()
        }
    }

    /// For the long mode.
    pub fn large() -> Self {
        Self {
            cuts: 4,
            restarts: 2,
            ..Self::compatible()
        }
    }

    /// The size at which a mutation is looked for.
    pub fn with(mutation: Mutation) -> Self {
        let size = match mutation {
            Mutation::AnybodyStands => Self::newcomer(),
            _ => Self::compatible(),
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

/// Ages end here: `ttl` has passed.
pub const TTL: u8 = 3;

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node {
    writable: bool,
    /// Ticks that the guardian leaves it.
    guard: u8,
    /// Out of reach of etcd, which was last seen so.
    cut: Option<Store>,
    /// For how long the record has been seen standing.
    seen: u8,
    /// Age of the keepalive that counts.
    session: u8,
    /// Epoch of the record that it holds, and age of the renewal.
    hold: Option<(u8, u8)>,
    /// Age of the promise that was given last.
    promised: Option<u8>,
    /// Age of the agent.
    began: u8,
    /// Age of the question that all have answered, as the deadline counts from it.
    agreed: Option<u8>,
    /// Age of the question under way, and who has said yes.
    asked: Option<(u8, u8)>,
    /// A claim under way, and its age.
    claim: Option<(Sent, u8)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    store: Store,
    /// Time until etcd may end the lease of `/leader`.
    lease: u8,
    nodes: Vec<Node>,
    cuts: u8,
    restarts: u8,
    claims: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Tick,
    /// These members lose etcd.
    Cut(u8),
    Back(u8),
    Renew(u8),
    Expire,
    Ask(u8),
    /// A question arrives, and is answered.
    Answer(u8, u8),
    /// Every answer is there.
    Agreed(u8),
    Claim(u8),
    Commit(u8),
    Promote(u8),
    Restart(u8),
}

/// The first leads, and has just renewed.
fn beginning(model: &Failsafe) -> State {
    let mut store = Store::default();
    store.put(At::Leader, Val::Name(0), 1);
    if model.native {
        let record = Rec {
            epoch: 1,
            owner: 0,
            session: 1,
            seq: 0,
            state: HELD,
            l: 2 * STEP - 2,
            w: 2 * STEP,
            members: 7,
        };
        store.put(At::Record, Val::Record(record), 0);
    }
    let node = |n: u8| Node {
        writable: n == 0,
        guard: if n == 0 { moves::earned(model) } else { 0 },
        cut: None,
        seen: 0,
        session: 0,
        hold: (n == 0 && model.native).then_some((1, 0)),
        promised: None,
        began: TTL,
        agreed: None,
        asked: None,
        claim: None,
    };
    State {
        store,
        lease: TTL,
        nodes: (0..model.nodes).map(node).collect(),
        cuts: model.cuts,
        restarts: model.restarts,
        claims: model.claims,
    }
}

impl Model for Failsafe {
    type State = State;
    type Action = Act;

    fn init_states(&self) -> Vec<State> {
        vec![beginning(self)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Act>) {
        for n in 0..self.nodes {
            moves::offer(self, state, n, actions);
        }
        if state.cuts > 0 {
            // One of them, or all.
            let reach = |n: &u8| state.nodes[usize::from(*n)].cut.is_none();
            let all: u8 = (0..self.nodes).filter(reach).map(|n| 1 << n).sum();
            actions.extend((0..self.nodes).filter(reach).map(|n| Act::Cut(1 << n)));
            if all.count_ones() > 1 {
                actions.push(Act::Cut(all));
            }
        }
        if state.lease == 0 && state.store.leader().is_some() {
            actions.push(Act::Expire);
        }
        actions.push(Act::Tick);
    }

    fn next_state(&self, state: &State, action: Act) -> Option<State> {
        let mut next = state.clone();
        moves::carry_out(self, &mut next, action);
        moves::settle(self, &mut next);
        (next != *state).then_some(next)
    }

    /// Once another leads and the first does not, it has the part of the first.
    fn within_boundary(&self, state: &State) -> bool {
        state.nodes[0].writable || !state.nodes[1..].iter().any(|node| node.writable)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always("S2: writable only under a deadline", |_, s: &State| {
                s.nodes.iter().all(|node| !node.writable || node.guard > 0)
            }),
            Property::always("S2x: one that may commit", |_, s: &State| {
                s.nodes.iter().filter(|node| node.writable).count() <= 1
            }),
            Property::sometimes("a takeover", |_, s: &State| s.store.leader() == Some(1)),
        ];
        if self.listed == 7 {
            properties.push(Property::sometimes(
                "it outlives its lease by what was promised",
                |_, s: &State| s.nodes[0].writable && s.store.leader().is_none(),
            ));
        }
        properties
    }
}
