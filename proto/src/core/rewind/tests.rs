use super::*;
use crate::config::{ClusterConfig, StandbyCluster, Tags};
use crate::core::observation::SqlSample;
use crate::ids::SystemId;
use crate::time::MonoTime;
use crate::wal::TimelineHistory;
use serde_json::Map;

const SWITCH: Lsn = Lsn(0x0300_0000);

/// The leader is on timeline 3; 1 ended at 0/2000000 and 2 at [`SWITCH`].
fn lineage() -> Lineage {
    let text = "1\t0/2000000\twhy\n2\t0/3000000\twhy\n";
    Lineage {
        leader: "leader".into(),
        at: MonoTime(0),
        is_primary: true,
        system_id: SystemId(7),
        history: TimelineHistory::parse(Timeline(3), text).expect("well formed"),
    }
}

fn standby(timeline: u32, replayed: Lsn, received: Lsn) -> LocalPostgres {
    let sample = SqlSample {
        in_recovery: true,
        timeline: Some(Timeline(timeline)),
        replay_lsn: replayed,
        receive_lsn: received,
        ..SqlSample::default()
    };
    LocalPostgres {
        process: Process::Alive { pid: 1 },
        sql: Sql::Sample(Box::new(sample)),
        ..LocalPostgres::default()
    }
}

fn stopped(control: ControlData) -> LocalPostgres {
    let control = Some(ControlData {
        system_id: SystemId(7),
        ..control
    });
    LocalPostgres {
        process: Process::Gone,
        control,
        ..LocalPostgres::default()
    }
}

fn shut_down(timeline: u32, checkpoint: Lsn, end: Option<Lsn>) -> LocalPostgres {
    stopped(ControlData {
        state: ControlState::ShutDown,
        timeline: Timeline(timeline),
        checkpoint,
        checkpoint_end: end,
        ..ControlData::default()
    })
}

fn plus(lsn: Lsn, bytes: u64) -> Lsn {
    Lsn(lsn.0 + bytes)
}

fn beyond(lsn: Lsn) -> Divergence {
    Divergence::Need {
        why: Diverged::BeyondSwitch {
            timeline: Timeline(2),
            lsn,
            switch: SWITCH,
        },
    }
}

fn unknown(why: Unclear) -> Divergence {
    Divergence::Unknown { why }
}

#[test]
fn a_standby_has_diverged_once_it_replayed_beyond_the_switch() {
    let at = |lsn| check(&standby(2, lsn, Lsn::NONE), &lineage());
    assert_eq!(at(Lsn(1)), Divergence::Same);
    assert_eq!(at(SWITCH), Divergence::Same);
    assert_eq!(at(plus(SWITCH, 1)), beyond(plus(SWITCH, 1)));
}

#[test]
fn received_wal_beyond_the_switch_counts_unless_it_may_be_a_torn_record() {
    let got = |received| check(&standby(2, SWITCH, received), &lineage());
    assert_eq!(got(plus(SWITCH, TORN_RECORD_MAX)), Divergence::Same);
    let far = plus(SWITCH, TORN_RECORD_MAX + 1);
    assert_eq!(got(far), beyond(far));
}

#[test]
fn timelines_that_the_leader_does_not_know_have_diverged() {
    let (mine, leader) = (Timeline(4), Timeline(3));
    assert_eq!(
        check(&standby(4, Lsn(1), Lsn::NONE), &lineage()),
        Divergence::Need {
            why: Diverged::NewerTimeline { mine, leader }
        }
    );
    let mut skipped = lineage();
    skipped.history.switches.remove(0);
    let why = Diverged::ForeignTimeline {
        mine: Timeline(1),
        leader,
    };
    assert_eq!(
        check(&standby(1, Lsn(1), Lsn::NONE), &skipped),
        Divergence::Need { why }
    );
}

#[test]
fn the_same_number_is_the_same_timeline_only_with_the_same_past() {
    let mut local = standby(3, plus(SWITCH, 500), Lsn::NONE);
    assert_eq!(check(&local, &lineage()), Divergence::Same);
    let mut history = lineage().history;
    history.switches[1].reason = "other words".into();
    local.history = Some((history.clone(), String::new()));
    assert_eq!(check(&local, &lineage()), Divergence::Same);
    history.switches[1].switch.0 += 8;
    local.history = Some((history, String::new()));
    let why = Diverged::SameNumber {
        timeline: Timeline(3),
    };
    assert_eq!(check(&local, &lineage()), Divergence::Need { why });
}

#[test]
fn a_shut_down_primary_must_end_exactly_at_the_switch() {
    let before = Lsn(SWITCH.0 - 104);
    assert_eq!(
        check(&shut_down(2, before, Some(SWITCH)), &lineage()),
        Divergence::Same
    );
    let early = Lsn(SWITCH.0 - 8);
    let why = Diverged::ShutdownElsewhere {
        timeline: Timeline(2),
        end: early,
        switch: SWITCH,
    };
    assert_eq!(
        check(&shut_down(2, before, Some(early)), &lineage()),
        Divergence::Need { why }
    );
    assert_eq!(
        check(&shut_down(2, SWITCH, None), &lineage()),
        beyond(SWITCH)
    );
    assert_eq!(
        check(&shut_down(2, before, None), &lineage()),
        unknown(Unclear::NoCheckpointEnd)
    );
}

#[test]
fn a_stopped_standby_counts_to_its_minimum_recovery_end() {
    let at = |state, end| {
        check(
            &stopped(ControlData {
                state,
                min_recovery_end: end,
                min_recovery_timeline: Timeline(2),
                timeline: Timeline(2),
                checkpoint: SWITCH,
                ..ControlData::default()
            }),
            &lineage(),
        )
    };
    assert_eq!(
        at(ControlState::ShutDownInRecovery, SWITCH),
        Divergence::Same
    );
    assert_eq!(
        at(ControlState::InArchiveRecovery, plus(SWITCH, 1)),
        beyond(plus(SWITCH, 1))
    );
    assert_eq!(
        at(ControlState::InArchiveRecovery, Lsn::NONE),
        beyond(SWITCH),
        "was a primary"
    );
}

/// Found by a member that was promoted by hand and stopped at once: it was started as it was, followed its
/// own timeline, and never streamed.
#[test]
fn a_crashed_server_has_diverged_as_soon_as_its_control_file_tells() {
    let crashed = |timeline: u32, checkpoint, min_recovery: (u32, Lsn)| {
        let local = stopped(ControlData {
            state: ControlState::InProduction,
            timeline: Timeline(timeline),
            checkpoint,
            min_recovery_timeline: Timeline(min_recovery.0),
            min_recovery_end: min_recovery.1,
            ..ControlData::default()
        });
        check(&local, &lineage())
    };
    let none = (0, Lsn::NONE);
    let newer = Divergence::Need {
        why: Diverged::NewerTimeline {
            mine: Timeline(4),
            leader: Timeline(3),
        },
    };
    // Promoted: the control file has the new timeline, and no checkpoint on it.
    assert_eq!(crashed(3, Lsn(1), (4, SWITCH)), newer);
    assert_eq!(crashed(4, SWITCH, none), newer);
    assert_eq!(crashed(2, SWITCH, none), beyond(plus(SWITCH, 1)));
    let end = plus(SWITCH, 8);
    assert_eq!(crashed(1, Lsn(1), (2, end)), beyond(end));
    // Where its WAL ends is known after crash recovery.
    for open in [
        crashed(2, Lsn(1), none),
        crashed(1, Lsn(1), (2, SWITCH)),
        crashed(3, SWITCH, none),
    ] {
        assert_eq!(open, unknown(Unclear::Unclean));
    }
}

#[test]
fn a_starting_server_is_judged_by_its_control_file() {
    let mut local = shut_down(2, Lsn(1), Some(SWITCH));
    local.process = Process::Alive { pid: 1 };
    local.sql = Sql::Rejecting;
    assert_eq!(check(&local, &lineage()), Divergence::Same);
}

#[test]
fn nothing_is_concluded_from_half_knowledge() {
    let mut recovering = lineage();
    recovering.is_primary = false;
    let local = standby(2, SWITCH, Lsn::NONE);
    assert_eq!(
        check(&local, &recovering),
        unknown(Unclear::LeaderNotPrimary)
    );
    let mut other = lineage();
    other.system_id = SystemId(8);
    assert_eq!(
        check(&shut_down(2, SWITCH, None), &other),
        unknown(Unclear::OtherCluster)
    );
    let silent = LocalPostgres::default();
    assert_eq!(
        check(&silent, &lineage()),
        unknown(Unclear::NoLocalPosition)
    );
    let mut primary = standby(2, SWITCH, Lsn::NONE);
    primary.sql = Sql::Sample(Box::default());
    assert_eq!(check(&primary, &lineage()), unknown(Unclear::StillPrimary));
}

#[test]
fn a_request_does_not_forget_what_is_known() {
    use RewindState::*;
    for (before, after) in [
        (Initial, Check),
        (NotNeeded, Check),
        (Done, Check),
        (Need, Need),
        (Failed, Failed),
    ] {
        assert_eq!(before.request(), after);
    }
    assert_eq!(Check.after(&Divergence::Same), NotNeeded);
    assert_eq!(Check.after(&beyond(SWITCH)), Need);
    assert_eq!(Check.after(&unknown(Unclear::Unclean)), Check);
    assert_eq!(Need.after(&Divergence::Same), Need);
}

fn settings() -> Settings {
    Settings {
        me: "me".into(),
        scope: "demo".into(),
        version: "4.1.4".into(),
        conn_url: String::new(),
        api_url: String::new(),
        proxy_url: None,
        tags: Tags::default(),
        cluster: ClusterConfig::default(),
        dynamic: Map::new(),
        can_bootstrap: false,
        can_clone_without_leader: false,
        use_pg_rewind: true,
        wipe_on_rewind_failure: false,
        wipe_on_divergence: false,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 0,
    }
}

#[test]
fn the_remedy_is_a_rewind_where_one_is_possible() {
    let mut settings = settings();
    let mut local = shut_down(2, SWITCH, None);
    let control = |local: &mut LocalPostgres, state, rewindable| {
        local.control = Some(ControlData {
            state,
            rewindable,
            ..ControlData::default()
        });
    };
    assert_eq!(
        remedy(&settings, &local),
        Remedy::Nothing,
        "no checksums, no hints"
    );
    settings.wipe_on_divergence = true;
    assert_eq!(remedy(&settings, &local), Remedy::Reinitialise);
    control(&mut local, ControlState::InArchiveRecovery, true);
    assert_eq!(remedy(&settings, &local), Remedy::RecoverFirst);
    control(&mut local, ControlState::ShutDownInRecovery, true);
    assert_eq!(remedy(&settings, &local), Remedy::Rewind);
    settings.use_pg_rewind = false;
    settings.cluster.standby_cluster = Some(StandbyCluster::default());
    assert_eq!(
        remedy(&settings, &local),
        Remedy::Nothing,
        "a standby cluster wipes nothing"
    );
}

#[test]
fn a_failed_rewind_is_only_wiped_where_that_is_allowed() {
    let mut settings = settings();
    assert_eq!(remedy_after_failure(&settings), Remedy::Nothing);
    settings.wipe_on_rewind_failure = true;
    assert_eq!(remedy_after_failure(&settings), Remedy::Reinitialise);
}

/// Two members had made a timeline of one number, and the leader has gone on from its own (seed 6237752).
#[test]
fn a_timeline_of_a_number_in_the_leaders_history_may_be_another() {
    let at = |history: &str| {
        let file = TimelineHistory::parse(Timeline(2), history).expect("well formed");
        let mut local = standby(2, Lsn(0x0250_0000), Lsn::NONE);
        local.history = Some((file, String::from("then")));
        check(&local, &lineage())
    };
    assert_eq!(at("1\t0/2000000\tother words\n"), Divergence::Same);
    assert_eq!(at("# taken by another member\n"), Divergence::Same);
    let twin = Divergence::Need {
        why: Diverged::SameNumber {
            timeline: Timeline(2),
        },
    };
    assert_eq!(at("1\t0/1F00000\twhy\n"), twin);
}
