//! The rows of the matrix: what is done, for how long, and what must come of it.

mod servers;

use super::trouble::{EtcdFault, PacketFault, ProcessFault, Trouble, Who};
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
    /// A person takes the cluster's guarantees away (makes a second primary, switches replication off):
    /// what then happens is shown and not held against anybody.
    pub by_hand: bool,
    /// The median of the write gap may be this long, in ms: synchronous, asynchronous.
    pub limit: [Option<u32>; 2],
}

impl Row {
    fn new(name: &'static str, what: &'static str, trouble: Trouble, hold: Hold) -> Self {
        Self {
            name,
            what,
            trouble,
            hold,
            expect: Expect::Either,
            fenced: false,
            by_hand: false,
            limit: [None; 2],
        }
    }

    fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    fn fenced(self) -> Self {
        Self {
            fenced: true,
            ..self
        }
    }

    fn by_hand(self) -> Self {
        Self {
            by_hand: true,
            ..self
        }
    }

    fn limit(self, limit: [u32; 2]) -> Self {
        Self {
            limit: limit.map(Some),
            ..self
        }
    }
}

/// All rows, for a lease of this length.
pub fn all(lease: Duration) -> Vec<Row> {
    let mut all = processes(lease);
    all.extend(standbys());
    all.extend(networks(lease));
    all.extend(etcds(lease));
    all.extend(etcd_contents());
    all.extend(servers::servers());
    all.extend(servers::operators());
    all.extend(servers::disks());
    all
}

const fn seconds(seconds: u64) -> Hold {
    Hold::For(Duration::from_secs(seconds))
}

const MOVED: Hold = Hold::UntilMoved(Duration::ZERO);

/// The faults that an agent cannot see coming.
fn processes(lease: Duration) -> Vec<Row> {
    use Expect::{Failover, Nothing};
    use ProcessFault as P;
    use Who::Primary;
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Process(fault), hold);
    let past_lease = Hold::UntilMoved(lease + Duration::from_millis(2500));
    let three_leases = Hold::For(lease * 3);
    vec![
        row(
            "agent-kill",
            "SIGKILL of the agent, started again after 300 ms",
            P::AgentRestarted(Primary),
            seconds(2),
        )
        .expect(Nothing)
        .limit([1000; 2]),
        row(
            "agent-gone",
            "SIGKILL of the agent, not started again",
            P::AgentGone(Primary),
            MOVED,
        )
        .expect(Failover)
        .fenced(),
        row(
            "agent-stop",
            "SIGSTOP of the agent for three leases",
            P::AgentStopped(Primary),
            three_leases,
        )
        .expect(Failover)
        .fenced(),
        row(
            "agent-crash-loop",
            "SIGKILL of the agent 700 ms after each of twelve starts",
            P::AgentCrashLoop,
            seconds(0),
        ),
        row(
            "guardian-kill",
            "SIGKILL of agent and guardian",
            P::GuardianGone,
            past_lease,
        )
        .expect(Failover)
        .fenced(),
        row(
            "guardian-kill-alone",
            "SIGKILL of the guardian, the agent lives",
            P::GuardianKilled,
            seconds(3),
        ),
        row(
            "guardian-stop",
            "SIGSTOP of agent and guardian for three leases",
            P::GuardianStopped,
            three_leases,
        )
        .expect(Failover)
        .fenced(),
        row(
            "guardian-stop-alone",
            "SIGSTOP of the guardian for three leases, the agent lives",
            P::GuardianPaused,
            three_leases,
        ),
        row(
            "node-freeze",
            "SIGSTOP of everything on the node for three leases",
            P::NodeFrozen(Primary),
            three_leases,
        )
        .expect(Failover)
        .fenced(),
        row(
            "node-loss",
            "SIGKILL of everything on the node",
            P::NodeLost(Primary),
            MOVED,
        )
        .expect(Failover)
        .limit([3000, 9500]),
        row(
            "two-lost",
            "SIGKILL of everything on the primary's node and a standby's",
            P::TwoLost,
            seconds(12),
        ),
        row(
            "all-lost",
            "SIGKILL of everything on all nodes",
            P::AllLost,
            seconds(2),
        ),
    ]
}

/// The same of standbys: nothing may move.
fn standbys() -> Vec<Row> {
    use ProcessFault as P;
    use Who::Standby;
    let row = |name, what, fault| {
        let trouble = Trouble::Process(fault);
        Row::new(name, what, trouble, seconds(8)).expect(Expect::Nothing)
    };
    let soon = [3000; 2];
    vec![
        row(
            "standby-loss",
            "a synchronous standby is lost",
            P::NodeLost(Standby),
        )
        .limit(soon),
        row("standbys-loss", "all standbys are lost", P::StandbysLost),
        row(
            "standby-freeze",
            "SIGSTOP of everything on a standby's node",
            P::NodeFrozen(Standby),
        ),
        row(
            "standby-agent-kill",
            "SIGKILL of a standby's agent",
            P::AgentGone(Standby),
        ),
        row(
            "standby-agent-stop",
            "SIGSTOP of a standby's agent",
            P::AgentStopped(Standby),
        ),
        row(
            "standby-postmaster-kill",
            "SIGKILL of a standby's postmaster",
            P::PostmasterGone(Standby),
        ),
        row(
            "walsender-stop",
            "SIGSTOP of a synchronous standby's walsender",
            P::WalsenderStopped,
        )
        .limit(soon),
        row(
            "walreceiver-stop",
            "SIGSTOP of a synchronous standby's walreceiver",
            P::WalreceiverStopped,
        ),
    ]
}

/// Packets that do not arrive.
fn networks(lease: Duration) -> Vec<Row> {
    use Expect::{Failover, Nothing};
    use Who::{Primary, Standby};
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Packets(fault), hold);
    let cut = |name, what, cut| {
        let isolated = Hold::UntilMoved(lease + Duration::from_millis(2500));
        let fault = PacketFault::Cut(Primary, cut);
        row(name, what, fault, isolated).expect(Failover).fenced()
    };
    let past_wait = Hold::For(lease + Duration::from_secs(2));
    let quiet = |name, what, fault| row(name, what, fault, past_wait).expect(Nothing);
    vec![
        cut("network", "the node's packets are dropped", Cut::Everything).limit([3000, 9500]),
        cut("network-link", "the node's link is down", Cut::Link).limit([3000, 9500]),
        cut(
            "one-way-out",
            "what the primary's node sends is dropped",
            Cut::Outbound,
        ),
        cut(
            "one-way-in",
            "what is sent to the primary's node is dropped",
            Cut::Inbound,
        ),
        cut("cut-etcd", "the primary is cut from etcd only", Cut::Etcd),
        cut(
            "one-way-etcd",
            "what the primary sends to etcd is dropped",
            Cut::EtcdOutbound,
        ),
        cut(
            "refuse-etcd",
            "the primary's connections to etcd are reset",
            Cut::EtcdRefused,
        ),
        quiet(
            "cut-standbys",
            "the primary is cut from the standbys only",
            PacketFault::Cut(Primary, Cut::Members),
        ),
        quiet(
            "cut-clients",
            "clients and HAProxy are cut from the primary only",
            PacketFault::Cut(Primary, Cut::Clients),
        ),
        quiet(
            "standby-network",
            "a standby's packets are dropped",
            PacketFault::Cut(Standby, Cut::Everything),
        ),
        quiet(
            "standby-cut-etcd",
            "a standby is cut from etcd only",
            PacketFault::Cut(Standby, Cut::Etcd),
        ),
        quiet(
            "standbys-apart",
            "the standbys do not reach each other",
            PacketFault::StandbysApart,
        ),
        row(
            "loss-5",
            "5 of 100 packets of all nodes are lost",
            PacketFault::LossEverywhere(5),
            seconds(15),
        ),
        row(
            "loss-30",
            "30 of 100 packets of the primary's node are lost",
            PacketFault::Cut(Primary, Cut::Loss(30)),
            seconds(15),
        ),
        row(
            "flapping",
            "the primary's link fails six times for up to 2.5 s",
            PacketFault::Flapping,
            seconds(0),
        ),
    ]
}

/// Faults of etcd.
fn etcds(lease: Duration) -> Vec<Row> {
    use EtcdFault as E;
    use Expect::Nothing;
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Etcd(fault), hold);
    let long = Hold::For(lease + Duration::from_secs(4));
    vec![
        row(
            "etcd-leader-kill",
            "SIGKILL of etcd's leader",
            E::LeaderGone,
            seconds(5),
        )
        .expect(Nothing)
        .limit([1000; 2]),
        row(
            "etcd-leader-freeze",
            "SIGSTOP of etcd's leader for 6 s",
            E::LeaderStopped,
            seconds(6),
        )
        .expect(Nothing)
        .limit([1000; 2]),
        row(
            "etcd-quorum-short",
            "two of three etcd are killed for 3 s",
            E::QuorumGone,
            seconds(3),
        )
        .expect(Nothing),
        row(
            "etcd-quorum-long",
            "two of three etcd are killed, past the lease",
            E::QuorumGone,
            long,
        ),
        row(
            "etcd-all-short",
            "all etcd are killed for 3 s",
            E::AllGone,
            seconds(3),
        )
        .expect(Nothing),
        row(
            "etcd-freeze",
            "SIGSTOP of all etcd, past the lease",
            E::AllStopped,
            long,
        )
        .fenced(),
        row(
            "etcd-replace",
            "an etcd is replaced by an empty one",
            E::MemberReplaced,
            seconds(8),
        )
        .expect(Nothing),
        row(
            "etcd-wipe",
            "all etcd lose their disks",
            E::Wiped,
            seconds(12),
        ),
    ]
}

/// Faults of what is in etcd.
fn etcd_contents() -> Vec<Row> {
    use EtcdFault as E;
    use Expect::Nothing;
    let row = |name, what, fault| Row::new(name, what, Trouble::Etcd(fault), seconds(10));
    vec![
        row(
            "lease-revoked",
            "the lease of the leader key is revoked",
            E::LeaseRevoked,
        ),
        row(
            "leader-deleted",
            "the leader key is deleted",
            E::LeaderDeleted,
        ),
        row("record-deleted", "the record is deleted", E::RecordDeleted),
        row(
            "record-garbage",
            "the record is overwritten with garbage",
            E::RecordGarbage,
        ),
        row(
            "keys-garbage",
            "config, status, history and failover hold garbage",
            E::KeysGarbage,
        )
        .expect(Nothing),
        row(
            "sync-garbage",
            "the key of the synchronous standbys holds garbage",
            E::SyncGarbage,
        ),
        row(
            "etcd-compact",
            "all old revisions are compacted",
            E::Compacted,
        )
        .expect(Nothing),
    ]
}
