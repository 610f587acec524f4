//! Rows of PostgreSQL, of people, and of disks.

use super::super::trouble::{DiskFault, OperatorFault, ProcessFault, Trouble, Who};
use super::{Expect, Hold, MOVED, Row, seconds};
use std::time::Duration;

/// Faults of PostgreSQL.
pub(super) fn servers() -> Vec<Row> {
    use ProcessFault as P;
    use Who::Primary;
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Process(fault), hold);
    vec![
        Row {
            limit: [Some(1000), None],
            ..row(
                "postmaster-kill",
                "SIGKILL of the postmaster",
                P::PostmasterGone(Primary),
                Hold::UntilWrites,
            )
        },
        row(
            "postmaster-stop",
            "SIGSTOP of the postmaster",
            P::PostmasterStopped(Primary),
            MOVED,
        )
        .expect(Expect::Failover),
        row(
            "backend-kill",
            "SIGKILL of a session's process",
            P::BackendKilled,
            Hold::UntilWrites,
        ),
        row(
            "backends-stop",
            "SIGSTOP of all sessions' processes",
            P::BackendsStopped,
            seconds(8),
        ),
        row(
            "checkpointer-kill",
            "SIGKILL of the checkpointer",
            P::CheckpointerKilled,
            Hold::UntilWrites,
        ),
        row(
            "walsender-kill",
            "SIGKILL of a walsender",
            P::WalsenderKilled,
            Hold::UntilWrites,
        ),
    ]
}

/// What people do.
pub(super) fn operators() -> Vec<Row> {
    use Expect::{Failover, Nothing};
    use OperatorFault as O;
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Operator(fault), hold);
    let short = Hold::For(Duration::from_secs(5));
    vec![
        row("switchover", "planned switchover", O::Switchover, MOVED)
            .expect(Failover)
            .limit([600; 2]),
        row(
            "switchover-twice",
            "two switchovers at once",
            O::SwitchoverTwice,
            short,
        ),
        row(
            "switchover-dead",
            "switchover to a dead standby",
            O::SwitchoverToDead,
            short,
        )
        .expect(Nothing),
        row(
            "switchover-stopped",
            "switchover to a standby whose PostgreSQL is stopped",
            O::SwitchoverToStopped,
            short,
        ),
        row(
            "switchover-callback",
            "switchover while callbacks never end",
            O::SwitchoverHungCallback,
            MOVED,
        )
        .expect(Failover),
        row(
            "failover-forced",
            "forced failover to a named standby",
            O::ForcedFailover,
            MOVED,
        ),
        row(
            "pause-kill-resume",
            "pause, SIGKILL of the postmaster, resume after 6 s",
            O::PauseKillResume,
            Hold::UntilWrites,
        ),
        row(
            "pause-lose-resume",
            "pause, loss of the primary's node, resume after 6 s",
            O::PauseLoseResume,
            Hold::UntilWrites,
        ),
        row(
            "hand-promote",
            "pg_promote() on a standby by hand",
            O::HandPromote,
            short,
        )
        .by_hand(),
        row(
            "hand-stop",
            "pg_ctl stop -m fast on the primary by hand",
            O::HandStop,
            Hold::UntilWrites,
        ),
        row(
            "hand-sync-names",
            "synchronous_standby_names emptied by hand",
            O::HandSyncNames,
            short,
        )
        .expect(Nothing)
        .by_hand(),
        row(
            "restart",
            "restart of the primary by the control tool",
            O::Restart,
            Hold::UntilWrites,
        )
        .expect(Nothing),
        row(
            "reinit",
            "a standby is copied anew by the control tool",
            O::Reinit,
            seconds(2),
        )
        .expect(Nothing),
        row(
            "mode-change",
            "asynchronous for 5 s, then as before",
            O::ModeChange,
            short,
        )
        .expect(Nothing)
        .by_hand(),
        row(
            "connections-gone",
            "all connections are taken for 8 s",
            O::ConnectionsGone,
            seconds(8),
        )
        .expect(Nothing),
    ]
}

/// Disks.
pub(super) fn disks() -> Vec<Row> {
    use DiskFault as D;
    let row = |name, what, fault, hold| Row::new(name, what, Trouble::Disk(fault), hold);
    vec![
        row(
            "disk-full",
            "nothing is left of the primary's disk",
            D::Full,
            seconds(20),
        ),
        row(
            "disk-stall-short",
            "the primary's disk hangs for 4 s",
            D::Stalled(Who::Primary),
            seconds(4),
        ),
        row(
            "disk-stall-long",
            "the primary's disk hangs for 25 s",
            D::Stalled(Who::Primary),
            seconds(25),
        ),
        row(
            "standby-disk-stall",
            "a standby's disk hangs for 10 s",
            D::Stalled(Who::Standby),
            seconds(10),
        )
        .expect(Expect::Nothing),
    ]
}
