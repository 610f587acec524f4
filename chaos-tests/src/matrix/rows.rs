//! The rows of the matrix: what is done, for how long, and what must come of it.

use super::trouble::Trouble;
use crate::netns::Cut;
use serde_json::Value;
use std::time::Duration;

/// How commits are replicated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// `synchronous_mode: quorum`.
    Quorum,
    /// `synchronous_mode: on`.
    On,
    /// Asynchronous.
    Async,
}

impl Mode {
    /// Value of `synchronous_mode`.
    pub fn setting(self) -> Value {
        match self {
            Self::Quorum => Value::from("quorum"),
            Self::On => Value::Bool(true),
            Self::Async => Value::Bool(false),
        }
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::On => "on",
            Self::Async => "async",
        }
    }
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug)]
pub enum Hold {
    /// So long.
    For(Duration),
    /// Until another server acknowledges, and at least so long.
    UntilMoved(Duration),
    /// Until writes work again, by whomever.
    UntilWrites,
}

/// What must become of the leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Another member leads.
    Failover,
    /// Nothing changes.
    Nothing,
    /// Either is right.
    Either,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// For people.
    pub what: &'static str,
    /// What is done.
    pub trouble: Trouble,
    /// For how long.
    pub hold: Hold,
    /// What must come of it.
    pub expect: Expect,
    /// The old primary must be dead at its deadline, and how long after that it was is shown.
    pub fenced: bool,
    /// The median of the write gap may be this long, in ms: synchronous, asynchronous.
    pub limit: [Option<u32>; 2],
}

/// Three times the lease of the `safe` profile.
const THREE_LEASES: Duration = Duration::from_secs(24);
/// Longer than the lease and what it takes to end a server.
const PAST_LEASE: Duration = Duration::from_millis(10_500);
/// A wait of the `safe` profile, and something: a failover that should not be would have come.
const PAST_WAIT: Duration = Duration::from_secs(10);

/// All rows.
pub fn all() -> Vec<Row> {
    let mut all = processes();
    all.extend(networks());
    all.extend(servers());
    all.extend(etcds());
    all
}

/// The faults that an agent cannot see coming.
fn processes() -> Vec<Row> {
    let row = |name, what, trouble, hold| Row {
        name,
        what,
        trouble,
        hold,
        expect: Expect::Failover,
        fenced: true,
        limit: [None; 2],
    };
    use Trouble as T;
    let moved = Hold::UntilMoved(Duration::ZERO);
    vec![
        Row {
            expect: Expect::Nothing,
            fenced: false,
            limit: [Some(1000); 2],
            ..row(
                "agent-kill",
                "SIGKILL of the agent, started again after 300 ms",
                T::AgentRestarted,
                Hold::For(Duration::from_secs(2)),
            )
        },
        row(
            "agent-gone",
            "SIGKILL of the agent, not started again",
            T::AgentGone,
            moved,
        ),
        row(
            "agent-stop",
            "SIGSTOP of the agent for three leases",
            T::AgentStopped,
            Hold::For(THREE_LEASES),
        ),
        row(
            "guardian-kill",
            "SIGKILL of agent and guardian",
            T::GuardianGone,
            Hold::UntilMoved(PAST_LEASE),
        ),
        row(
            "guardian-stop",
            "SIGSTOP of agent and guardian for three leases",
            T::GuardianStopped,
            Hold::For(THREE_LEASES),
        ),
        row(
            "node-freeze",
            "SIGSTOP of everything on the node for three leases",
            T::NodeFrozen,
            Hold::For(THREE_LEASES),
        ),
        Row {
            fenced: false,
            limit: [Some(3000), Some(9500)],
            ..row(
                "node-loss",
                "SIGKILL of everything on the node",
                T::NodeLost,
                moved,
            )
        },
    ]
}

/// Packets that do not arrive.
fn networks() -> Vec<Row> {
    let row = |name, what, cut, hold| Row {
        name,
        what,
        trouble: Trouble::Network(cut),
        hold,
        expect: Expect::Failover,
        fenced: true,
        limit: [None; 2],
    };
    let isolated = Hold::UntilMoved(PAST_LEASE);
    vec![
        Row {
            limit: [Some(3000), Some(9500)],
            ..row(
                "network",
                "the node's packets are dropped",
                Cut::Everything,
                isolated,
            )
        },
        Row {
            limit: [Some(3000), Some(9500)],
            ..row(
                "network-link",
                "the node's link is down",
                Cut::Link,
                isolated,
            )
        },
        row(
            "cut-etcd",
            "the primary is cut from etcd only",
            Cut::Etcd,
            isolated,
        ),
        Row {
            expect: Expect::Nothing,
            fenced: false,
            ..row(
                "cut-standbys",
                "the primary is cut from the standbys only",
                Cut::Members,
                Hold::For(PAST_WAIT),
            )
        },
    ]
}

/// Faults of PostgreSQL, and the planned change.
fn servers() -> Vec<Row> {
    let row = |name, what, trouble, hold, limit| Row {
        name,
        what,
        trouble,
        hold,
        expect: Expect::Nothing,
        fenced: false,
        limit: [limit; 2],
    };
    use Trouble as T;
    let lasting = Hold::For(Duration::from_secs(8));
    vec![
        Row {
            expect: Expect::Either,
            limit: [Some(1000), None],
            ..row(
                "postmaster-kill",
                "SIGKILL of the postmaster",
                T::PostmasterGone,
                Hold::UntilWrites,
                None,
            )
        },
        Row {
            expect: Expect::Failover,
            ..row(
                "postmaster-stop",
                "SIGSTOP of the postmaster",
                T::PostmasterStopped,
                Hold::UntilMoved(Duration::ZERO),
                None,
            )
        },
        Row {
            expect: Expect::Failover,
            ..row(
                "switchover",
                "planned switchover",
                T::Switchover,
                Hold::UntilMoved(Duration::ZERO),
                Some(600),
            )
        },
        row(
            "standby-loss",
            "a synchronous standby is lost",
            T::StandbyLost,
            lasting,
            Some(3000),
        ),
        row(
            "walsender-stop",
            "SIGSTOP of a synchronous standby's walsender",
            T::WalsenderStopped,
            lasting,
            Some(3000),
        ),
    ]
}

/// Faults of etcd.
fn etcds() -> Vec<Row> {
    let row = |name, what, trouble, seconds| Row {
        name,
        what,
        trouble,
        hold: Hold::For(Duration::from_secs(seconds)),
        expect: Expect::Nothing,
        fenced: false,
        limit: [Some(1000); 2],
    };
    use Trouble as T;
    vec![
        row(
            "etcd-leader-kill",
            "SIGKILL of etcd's leader",
            T::EtcdLeaderGone,
            5,
        ),
        row(
            "etcd-leader-freeze",
            "SIGSTOP of etcd's leader for 6 s",
            T::EtcdLeaderStopped,
            6,
        ),
        Row {
            expect: Expect::Either,
            fenced: true,
            limit: [None; 2],
            ..row(
                "etcd-freeze",
                "SIGSTOP of all etcd for 12 s",
                T::EtcdStopped,
                12,
            )
        },
    ]
}
