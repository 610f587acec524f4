use super::*;
use crate::dcs::{FailsafeRecord, Schedule};
use crate::dcs::{HistoryLine, HistoryRecord, MemberEntry, MemberRecord};
use crate::dcs::{RecordEntry, SyncRecord};
use crate::ids::{LeaseId, Revision};
use crate::time::MonoTime;
use serde_json::{Map, Value, json};

/// A cluster of A (the last leader), B, C and others, none of which answers unless told to.
struct Situation {
    view: ClusterView,
    config: ClusterConfig,
    tags: Tags,
    timeline: Option<Timeline>,
    last_timeline: Option<Timeline>,
    answers: BTreeMap<MemberName, PeerAnswer>,
}

fn tags(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn member(name: &str, more: Map<String, Value>) -> (MemberName, MemberEntry) {
    let record = MemberRecord {
        api_url: Some(format!("http://{name}:8008/patroni")),
        tags: more,
        ..MemberRecord::default()
    };
    (
        name.into(),
        MemberEntry {
            record,
            lease: LeaseId(1),
            modified: Revision(1),
        },
    )
}

fn situation(config: Value) -> Situation {
    let mut view = ClusterView::default();
    view.members
        .extend(["A", "B", "C"].map(|n| member(n, Map::new())));
    Situation {
        view,
        config: ClusterConfig::parse(&tags(config)),
        tags: Tags::default(),
        timeline: Some(Timeline(1)),
        last_timeline: None,
        answers: BTreeMap::new(),
    }
}

impl Situation {
    fn answer(mut self, name: &str, position: u64) -> Self {
        self.status(name).position = Lsn(position);
        self
    }

    fn status(&mut self, name: &str) -> &mut PeerStatus {
        let empty = PeerAnswer {
            asked_at: MonoTime(0),
            status: Some(PeerStatus::default()),
        };
        self.answers
            .entry(name.into())
            .or_insert(empty)
            .status
            .as_mut()
            .expect("was given")
    }

    fn sync(mut self, leader: &str, standbys: &[&str], quorum: u32) -> Self {
        self.view.sync = SyncRecord {
            leader: Some(leader.into()),
            standbys: standbys.iter().map(|s| (*s).to_owned()).collect(),
            quorum,
            modified: Some(Revision(1)),
        };
        self
    }

    fn optime(mut self, lsn: u64) -> Self {
        self.view.status.optime = Some(Lsn(lsn));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn ask(&self, me: &str, position: u64) -> Verdict {
        self.race(me, position, stand)
    }

    fn race<T>(&self, me: &str, position: u64, question: impl Fn(&Race<'_>) -> T) -> T {
        let leader = MemberName::from("A");
        let last = LastLocked {
            leader: Some(leader),
            members: [("A".into(), String::from("http://A"))].into(),
            timeline: self.last_timeline,
            ..LastLocked::default()
        };
        question(&Race {
            me: &me.into(),
            tags: &self.tags,
            position: Lsn(position),
            timeline: self.timeline,
            view: &self.view,
            last: &last,
            answers: &self.answers,
            config: &self.config,
        })
    }

    fn handover(&self, change: impl FnOnce(&mut Handover<'_>)) -> Successors {
        let me = MemberName::from("A");
        let mut question = self.question(&me);
        change(&mut question);
        failover_possible(&question)
    }

    fn question<'a>(&'a self, me: &'a MemberName) -> Handover<'a> {
        Handover {
            me,
            view: &self.view,
            answers: &self.answers,
            config: &self.config,
            candidate: None,
            excluded: None,
            any_member: false,
            at_least: None,
        }
    }
}

#[test]
fn asynchronous_races_follow_the_published_vectors() {
    let plain = || situation(json!({}));
    assert_eq!(plain().answer("C", 100).ask("B", 100), Verdict::Best);
    assert_eq!(
        plain().answer("C", 100).ask("B", 90),
        Verdict::PeerAhead {
            peer: "C".into(),
            its: Lsn(100),
            mine: Lsn(90)
        }
    );
    assert_eq!(
        plain().ask("B", 50),
        Verdict::Best,
        "nobody answers; C may be ahead"
    );
    let with_primary = plain().with(|s| s.status("A").is_primary = true);
    assert_eq!(
        with_primary.ask("B", 100),
        Verdict::PeerIsPrimary { peer: "A".into() }
    );
    let barred = with_primary.with(|s| s.status("A").tags = tags(json!({"nofailover": true})));
    assert_eq!(barred.ask("B", 100), Verdict::Best);
    let preferred = plain()
        .answer("C", 100)
        .with(|s| s.status("C").tags = tags(json!({"failover_priority": 2})));
    assert_eq!(
        preferred.ask("B", 100),
        Verdict::HigherPriority {
            peer: "C".into(),
            its: 2,
            mine: 1
        }
    );
    assert_eq!(
        plain().optime(10_000_000).ask("B", 50),
        Verdict::Lagging {
            behind: 9_999_950,
            limit: 1_048_576
        }
    );
}

#[test]
fn synchronous_races_follow_the_published_vectors() {
    let on = || situation(json!({"synchronous_mode": true})).sync("A", &["B"], 0);
    assert_eq!(on().ask("B", 100), Verdict::Best);
    assert_eq!(
        on().answer("A", 200).ask("B", 100),
        Verdict::Best,
        "A's excess is unacknowledged"
    );
    assert_eq!(on().answer("C", 500).ask("C", 500), Verdict::NotSynchronous);
    assert_eq!(
        on().answer("C", 500).ask("B", 100),
        Verdict::Best,
        "C does not count"
    );
}

#[test]
fn quorum_races_follow_the_published_vectors() {
    let voters = || {
        situation(json!({"synchronous_mode": "quorum"}))
            .sync("A", &["B", "C", "D"], 1)
            .with(|s| {
                s.view
                    .members
                    .extend([member("D", tags(json!({"nofailover": true})))])
            })
            .with(|s| s.status("D").tags = tags(json!({"nofailover": true})))
            .with(|s| s.answers.clear())
    };
    let barred_d = |s: Situation| {
        s.answer("D", 100)
            .with(|s| s.status("D").tags = tags(json!({"nofailover": true})))
    };
    assert_eq!(voters().answer("C", 100).ask("B", 100), Verdict::Best);
    let short = Verdict::NotEnoughVotes { have: 0, need: 1 };
    assert_eq!(barred_d(voters()).ask("B", 100), short);
    assert_eq!(voters().ask("B", 100), short);
    assert_eq!(voters().ask("A", 100), Verdict::Best);
    let preferred = voters()
        .answer("C", 100)
        .with(|s| s.status("C").tags = tags(json!({"failover_priority": 2})));
    assert_eq!(
        preferred.ask("B", 100),
        Verdict::HigherPriority {
            peer: "C".into(),
            its: 2,
            mine: 1
        }
    );
    let outsider = || situation(json!({"synchronous_mode": "quorum"})).sync("A", &["B", "C"], 1);
    assert_eq!(
        outsider().answer("B", 100).ask("E", 100),
        Verdict::NotEnoughVotes { have: 0, need: 1 }
    );
    assert_eq!(
        outsider().answer("B", 100).answer("C", 100).ask("E", 100),
        Verdict::Best
    );
}

#[test]
fn a_voter_without_position_gives_no_vote() {
    let s = situation(json!({"synchronous_mode": "quorum"}))
        .sync("A", &["B", "C"], 1)
        .answer("C", 0);
    assert_eq!(
        s.ask("B", 100),
        Verdict::NotEnoughVotes { have: 0, need: 1 }
    );
}

#[test]
fn a_key_with_a_quorum_needs_votes_in_mode_on_too() {
    let s = situation(json!({"synchronous_mode": true})).sync("A", &["B", "C"], 1);
    assert_eq!(
        s.ask("B", 100),
        Verdict::NotEnoughVotes { have: 0, need: 1 }
    );
}

#[test]
fn the_sync_leader_yields_to_a_voter_that_is_ahead() {
    let s = situation(json!({"synchronous_mode": "quorum"})).sync("A", &["B", "C"], 1);
    assert_eq!(
        s.answer("B", 200).ask("A", 100),
        Verdict::PeerAhead {
            peer: "B".into(),
            its: Lsn(200),
            mine: Lsn(100)
        }
    );
}

#[test]
fn a_future_switchover_prefers_its_candidate_as_long_as_it_answers() {
    let planned = || {
        situation(json!({})).optime(10_000_000).with(|s| {
            s.view.failover = Some(FailoverRecord {
                leader: Some("A".into()),
                candidate: Some("C".into()),
                scheduled_at: Some(Schedule {
                    text: "later".into(),
                    at: None,
                }),
                modified: Revision(1),
            });
        })
    };
    let alive = planned().answer("C", 10);
    assert_eq!(
        alive.ask("B", 10),
        Verdict::LeaveTo {
            candidate: "C".into()
        }
    );
    assert_eq!(alive.ask("C", 10), Verdict::Requested, "although it lags");
    assert_eq!(
        planned().ask("B", 10),
        Verdict::Best,
        "C is dead, and lag does not count"
    );
}

#[test]
fn a_stepping_down_leader_takes_the_lock_back_only_if_nobody_else_can() {
    let asked = || {
        situation(json!({})).with(|s| {
            s.view.failover = Some(FailoverRecord {
                leader: Some("A".into()),
                candidate: None,
                scheduled_at: None,
                modified: Revision(1),
            });
        })
    };
    assert_eq!(
        asked().answer("B", 10).ask("A", 10),
        Verdict::SteppingDown {
            replaced_by: vec!["B".into()]
        }
    );
    assert_eq!(asked().ask("A", 10), Verdict::Best);
    assert_eq!(
        asked().with(|s| s.config.pause = true).ask("B", 10),
        Verdict::Paused
    );
}

#[test]
fn a_switchover_needs_a_synchronous_member() {
    let s = situation(json!({"synchronous_mode": true}))
        .sync("A", &["B"], 0)
        .with(|s| {
            s.view.failover = Some(FailoverRecord {
                leader: Some("A".into()),
                candidate: Some("C".into()),
                scheduled_at: None,
                modified: Revision(1),
            });
        });
    assert_eq!(s.ask("C", 10), Verdict::NotSynchronous);
}

#[test]
fn members_that_must_not_lead_say_why() {
    let barred = situation(json!({})).with(|s| s.tags = Tags(tags(json!({"nofailover": true}))));
    assert_eq!(barred.ask("B", 10), Verdict::NoFailover);
    let unlisted = situation(json!({"failsafe_mode": true})).with(|s| {
        let members = BTreeMap::from([("C".into(), String::from("http://C"))]);
        s.view.failsafe = Some(FailsafeRecord { members });
    });
    assert_eq!(unlisted.ask("B", 10), Verdict::NotInFailsafe);
    assert_eq!(unlisted.ask("C", 10), Verdict::Best);
}

#[test]
fn check_timeline_excludes_members_on_old_or_unknown_timelines() {
    let lines = vec![HistoryLine {
        timeline: Timeline(1),
        lsn: Lsn(5),
        reason: String::new(),
        timestamp: None,
        new_leader: None,
    }];
    let s = situation(json!({"check_timeline": true})).with(|s| {
        s.view.history = HistoryRecord {
            modified: None,
            present: true,
            lines,
        }
    });
    let old = Verdict::OldTimeline {
        mine: Some(Timeline(1)),
        cluster: Timeline(2),
    };
    assert_eq!(s.ask("B", 10), old);
    assert!(
        s.with(|s| s.timeline = Some(Timeline(2)))
            .ask("B", 10)
            .is_yes()
    );
}

/// A native cluster whose leader, A, is on timeline 2, as `/history` says.
fn native() -> Situation {
    situation(json!({"synchronous_mode": "quorum"})).with(|s| {
        for entry in s.view.members.values_mut() {
            entry.record.capabilities = Some(Default::default());
        }
        s.timeline = Some(Timeline(2));
        s.view.record = Some(RecordEntry {
            record: serde_json::from_value(json!({
                "v": 1, "epoch": 2, "owner": "A", "session": "", "seq": 0, "state": "held",
                "l_ms": 1, "w_ms": 1, "members": []
            }))
            .expect("a record"),
            modified: Revision(1),
        });
        s.view.history = history(1, "A");
    })
}

fn history(last: u32, leader: &str) -> HistoryRecord {
    HistoryRecord {
        modified: None,
        present: true,
        lines: vec![HistoryLine {
            timeline: Timeline(last),
            lsn: Lsn(5),
            reason: String::new(),
            timestamp: None,
            new_leader: Some(leader.into()),
        }],
    }
}

#[test]
fn a_timeline_made_by_hand_outranks_no_leader() {
    let by_hand = || {
        native()
            .sync("A", &["B", "C"], 2)
            .answer("B", 10)
            .answer("C", 90)
            .with(|s| {
                s.status("B").timeline = Some(Timeline(2));
                s.status("C").timeline = Some(Timeline(3));
            })
    };
    assert_eq!(by_hand().ask("A", 50), Verdict::Best);
    let on_it = by_hand().with(|s| s.timeline = Some(Timeline(3)));
    assert_eq!(
        on_it.ask("C", 90),
        Verdict::PeerOnClaimedTimeline {
            peer: "B".into(),
            its: Timeline(2),
            mine: Timeline(3)
        }
    );
    // Patroni has led since: a number that is not in /history yet may be a leader's.
    let newer = Verdict::PeerOnNewerTimeline {
        peer: "C".into(),
        its: Timeline(3),
        mine: Timeline(2),
    };
    let patroni =
        by_hand().with(|s| s.view.record.as_mut().expect("set").record.owner = "P".into());
    assert_eq!(patroni.ask("A", 50), newer);
    let claimed = by_hand().with(|s| s.view.history = history(2, "C"));
    assert_eq!(claimed.ask("A", 50), newer);
}

/// B was promoted, acknowledged commits that A lacks, and died before it put itself into the key.
#[test]
fn the_leader_in_the_key_needs_votes_when_another_promotion_has_begun() {
    let alone = || native().sync("A", &["B", "C"], 1);
    assert_eq!(alone().ask("A", 50), Verdict::Best);
    let superseded = alone().with(|s| s.view.history = history(2, "B"));
    let short = Verdict::NotEnoughVotes { have: 0, need: 1 };
    assert_eq!(superseded.ask("A", 50), short);
    let ours = alone().with(|s| s.view.history = history(2, "A"));
    assert_eq!(ours.ask("A", 50), Verdict::Best, "its own promotion failed");
}

#[test]
fn members_of_ours_order_by_timeline_before_position() {
    let ours = |timeline: u32| {
        situation(json!({})).answer("C", 50).with(|s| {
            s.status("C").timeline = Some(Timeline(timeline));
            s.timeline = Some(Timeline(2));
            let c = s
                .view
                .members
                .get_mut(&MemberName::from("C"))
                .expect("exists");
            c.record.capabilities = Some(Default::default());
        })
    };
    assert_eq!(
        ours(3).ask("B", 100),
        Verdict::PeerOnNewerTimeline {
            peer: "C".into(),
            its: Timeline(3),
            mine: Timeline(2)
        }
    );
    assert_eq!(
        ours(1).ask("B", 10),
        Verdict::Best,
        "its larger number means nothing"
    );
    let patroni = ours(3).with(|s| {
        s.view
            .members
            .get_mut(&MemberName::from("C"))
            .expect("exists")
            .record
            .capabilities = None;
    });
    assert_eq!(
        patroni.ask("B", 100),
        Verdict::Best,
        "it compares by position, so we must too"
    );
}

#[test]
fn the_last_leader_is_asked_although_its_key_is_gone() {
    let s = situation(json!({})).with(|s| {
        s.view.members.remove(&MemberName::from("A"));
        s.view
            .members
            .extend([member("D", tags(json!({"nofailover": true})))]);
    });
    let asked: Vec<String> = s
        .race("B", 1, peers_to_ask)
        .into_keys()
        .map(|n| n.to_string())
        .collect();
    assert_eq!(asked, ["A", "C"], "D can neither win nor vote");
}

#[test]
fn nofailover_voters_are_asked() {
    let s = situation(json!({"synchronous_mode": "quorum"}))
        .sync("A", &["B", "D"], 1)
        .with(|s| {
            s.view
                .members
                .extend([member("D", tags(json!({"nofailover": true})))])
        });
    let asked: Vec<String> = s
        .race("B", 1, peers_to_ask)
        .into_keys()
        .map(|n| n.to_string())
        .collect();
    assert_eq!(asked, ["A", "D"]);
}

#[test]
fn handing_over_needs_a_reachable_member_that_has_everything() {
    let s = situation(json!({})).answer("B", 100).answer("C", 90);
    assert!(s.handover(|_| ()).possible);
    let exact = s.handover(|q| q.at_least = Some(Lsn(100)));
    assert_eq!(exact.fit, ["B".into()]);
    assert_eq!(exact.unfit, [("C".into(), Unfit::Behind(10))]);
    let (me, c) = (MemberName::from("A"), MemberName::from("C"));
    let named = Handover {
        candidate: Some(&c),
        at_least: Some(Lsn(100)),
        ..s.question(&me)
    };
    assert!(!failover_possible(&named).possible);
    let nobody = situation(json!({})).handover(|_| ());
    assert!(!nobody.possible);
    assert_eq!(nobody.unfit[0], ("B".into(), Unfit::Unreachable));
}

#[test]
fn handing_over_respects_sync_and_quorum() {
    let on = situation(json!({"synchronous_mode": true}))
        .sync("A", &["B"], 0)
        .answer("B", 1)
        .answer("C", 1);
    assert_eq!(on.handover(|_| ()).fit, ["B".into()]);
    assert_eq!(on.handover(|q| q.any_member = true).fit.len(), 2);
    let quorum = situation(json!({"synchronous_mode": "quorum"}))
        .sync("A", &["B", "C"], 1)
        .answer("B", 1);
    assert!(!quorum.handover(|_| ()).possible, "one vote is missing");
    assert!(quorum.answer("C", 1).handover(|_| ()).possible);
}

#[test]
fn the_best_candidate_is_ahead_then_synchronous_then_preferred_then_first() {
    let me = MemberName::from("A");
    let pick = |s: &Situation| best_candidate(&s.question(&me)).map(|n| n.to_string());
    let both = || situation(json!({})).answer("B", 5).answer("C", 5);
    assert_eq!(pick(&both()), Some("B".into()));
    assert_eq!(pick(&both().answer("C", 6)), Some("C".into()));
    let preferred = both().with(|s| s.status("C").tags = tags(json!({"failover_priority": 2})));
    assert_eq!(pick(&preferred), Some("C".into()));
    assert_eq!(pick(&situation(json!({}))), None);
}

/// The model found it: B was promoted, acknowledged with C by its own names, and died before it had written
/// the key, which still names A. A alone lacks what B acknowledged.
#[test]
fn the_keeper_of_the_key_needs_votes_once_another_has_been_promoted() {
    let alone = situation(json!({"synchronous_mode": "quorum"})).sync("A", &["B", "C"], 1);
    assert!(alone.ask("A", 100).is_yes());
    let superseded = alone.with(|s| {
        s.view.history = HistoryRecord {
            present: true,
            lines: vec![HistoryLine {
                timeline: Timeline(1),
                lsn: Lsn(100),
                reason: "claimed for a promotion".into(),
                timestamp: None,
                new_leader: Some("B".into()),
            }],
            modified: Some(Revision(2)),
        };
    });
    assert!(!superseded.ask("A", 100).is_yes());
    // Nor when it has received a part of what the other wrote.
    let followed = superseded.with(|s| s.timeline = Some(Timeline(2)));
    assert!(!followed.ask("A", 100).is_yes());
}

/// B was promoted by hand, from wherever it was on a timeline of a leader (seed 6503060).
#[test]
fn who_was_promoted_by_hand_gives_no_vote() {
    let by_hand = |timeline: u32| {
        native()
            .sync("A", &["B", "C"], 1)
            .answer("B", 40)
            .with(|s| s.status("B").timeline = Some(Timeline(timeline)))
    };
    assert_eq!(by_hand(2).ask("C", 50), Verdict::Best);
    let short = Verdict::NotEnoughVotes { have: 0, need: 1 };
    assert_eq!(by_hand(3).ask("C", 50), short);
}

/// The cluster is on its first timeline still, and /history is empty (seed 6479872).
#[test]
fn before_the_first_promotion_the_timeline_of_the_leader_counts() {
    let first = native().answer("C", 40).with(|s| {
        s.view.history = HistoryRecord::default();
        s.timeline = Some(Timeline(1));
        s.status("C").timeline = Some(Timeline(2));
        let a = s.view.members.get_mut(&MemberName::from("A"));
        a.expect("a member").record.timeline = Some(Timeline(1));
    });
    assert_eq!(first.ask("B", 50), Verdict::Best);
}

/// Its server was gone, and its key did not say any more on which timeline it had led (seed 11867780).
#[test]
fn the_timeline_of_the_leader_is_remembered_while_its_server_is_gone() {
    let by_hand = |remembered: Option<u32>| {
        let first = native().answer("C", 60).with(|s| {
            s.view.history = HistoryRecord::default();
            s.timeline = Some(Timeline(2));
            s.status("C").timeline = Some(Timeline(1));
            s.last_timeline = remembered.map(Timeline);
        });
        first.ask("B", 50)
    };
    let refused = Verdict::PeerOnClaimedTimeline {
        peer: "C".into(),
        its: Timeline(1),
        mine: Timeline(2),
    };
    assert_eq!(by_hand(Some(1)), refused);
    assert_eq!(by_hand(None), Verdict::Best, "nothing tells that it was");
}

/// It died before it could write the key, which names one that was copied anew, and the keeper, which had as much
/// when it was promoted (seed 5435085).
#[test]
fn who_was_promoted_last_needs_no_votes() {
    let last = |by: &str| {
        native().sync("A", &["B", "C"], 1).with(|s| {
            s.view.history = history(1, by);
            s.timeline = Some(Timeline(2));
        })
    };
    assert_eq!(last("B").ask("B", 50), Verdict::Best);
    let short = Verdict::NotEnoughVotes { have: 0, need: 1 };
    assert_eq!(last("C").ask("B", 50), short);
    let not_promoted = last("B").with(|s| s.timeline = Some(Timeline(1)));
    assert!(!not_promoted.ask("B", 50).is_yes());
}
