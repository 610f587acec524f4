use super::*;
use crate::core::observation::PeerStatus;
use crate::rest::fixture::{object, view};
use crate::time::MonoTime;
use HandoverKind::{Failover, Switchover};
use serde_json::json;

const TODAY: WallTime = WallTime(1_784_887_932_000);

fn parse(kind: HandoverKind, body: Value, paused: bool) -> Result<HandoverRequest, Reply> {
    HandoverRequest::parse(kind, &object(body), paused, TODAY)
}

#[test]
fn bodies_are_validated_in_the_published_order() {
    let at = "2030-01-01T00:00:00Z";
    for (kind, body, paused, code, text) in [
        (
            Failover,
            json!({"foo": "bar"}),
            false,
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            Failover,
            json!({"leader": "a", "candidate": ""}),
            true,
            400,
            "Failover could be performed only to a specific candidate",
        ),
        (
            Switchover,
            json!({"candidate": "b", "scheduled_at": at}),
            true,
            400,
            "Switchover could be performed only from a specific leader",
        ),
        (
            Failover,
            json!({"candidate": "b", "scheduled_at": at}),
            true,
            400,
            "Failover can't be scheduled",
        ),
        (
            Switchover,
            json!({"leader": "a", "scheduled_at": "x"}),
            true,
            400,
            "Can't schedule switchover in the paused state",
        ),
        (
            Switchover,
            json!({"leader": "a", "scheduled_at": "2030-01-01"}),
            false,
            400,
            "Timezone information is mandatory for the scheduled switchover",
        ),
        (
            Switchover,
            json!({"leader": "a", "scheduled_at": "2020-01-01T00:00Z"}),
            false,
            422,
            "Cannot schedule switchover in the past",
        ),
        (
            Switchover,
            json!({"leader": "a", "scheduled_at": 5}),
            false,
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        ),
        (
            Switchover,
            json!({"leader": "a"}),
            true,
            400,
            "Switchover is possible only to a specific candidate in a paused state",
        ),
        (
            Switchover,
            json!({"leader": "a", "member": "a"}),
            false,
            400,
            "Switchover target and source are the same",
        ),
        (
            Failover,
            json!({"leader": "a", "candidate": "a"}),
            false,
            400,
            "Switchover target and source are the same",
        ),
    ] {
        assert_eq!(
            parse(kind, body.clone(), paused),
            Err(Reply::new(code, text)),
            "{body}"
        );
    }
}

#[test]
fn a_failover_that_names_a_leader_is_a_switchover() {
    let request = parse(Failover, json!({"leader": "a", "member": "b"}), true).expect("valid");
    assert_eq!(request.kind, Switchover);
    assert_eq!(request.to_value(), r#"{"leader":"a","member":"b"}"#);
    let body = json!({"leader": "a", "scheduled_at": "2030-01-01 01:00+01"});
    let request = parse(Switchover, body, false).expect("valid");
    assert_eq!(
        request.to_value(),
        r#"{"leader":"a","scheduled_at":"2030-01-01T01:00:00+01:00"}"#
    );
    let now = parse(
        Switchover,
        json!({"leader": "a", "scheduled_at": ""}),
        false,
    );
    assert_eq!(now.expect("valid").scheduled_at, None);
}

const MEMBERS: [(&str, &str); 3] = [
    ("leader", "a"),
    ("members/a", r#"{"api_url":"http://a/"}"#),
    ("members/b", r#"{"api_url":"http://b/"}"#),
];

fn candidates(
    kind: HandoverKind,
    body: Value,
    more: &[(&str, &str)],
    config: Value,
) -> Result<Vec<String>, String> {
    let entries: Vec<_> = MEMBERS.iter().chain(more).copied().collect();
    let config = ClusterConfig::parse(&object(config));
    let request = parse(kind, body, false).expect("valid");
    match request.candidates(&view(&entries), &config) {
        Ok(found) => Ok(found.into_keys().map(|name| name.to_string()).collect()),
        Err(reply) => {
            assert_eq!(reply.code, 412);
            Err(reply.text)
        }
    }
}

#[test]
fn feasibility_names_what_is_missing() {
    let off = json!(null);
    let on = json!({"synchronous_mode": true});
    let quorum = json!({"synchronous_mode": "quorum"});
    let sync = [
        ("sync", r#"{"leader":"a","sync_standby":"c"}"#),
        ("members/c", "{}"),
    ];
    let from_a = json!({"leader": "a"});
    let to_b = json!({"leader": "a", "candidate": "b"});
    let err = |text: &str| Err(text.to_owned());
    let names = |list: &[&str]| Ok(list.iter().map(|n| (*n).to_owned()).collect());
    assert_eq!(
        candidates(Switchover, json!({"leader": "x"}), &[], off.clone()),
        err("leader name does not match")
    );
    assert_eq!(
        candidates(Switchover, to_b.clone(), &sync, on.clone()),
        err("candidate name does not match with sync_standby")
    );
    assert_eq!(
        candidates(Switchover, to_b.clone(), &sync, quorum),
        names(&["b"])
    );
    assert_eq!(
        candidates(Failover, json!({"candidate": "b"}), &sync, on.clone()),
        names(&["b"])
    );
    assert_eq!(
        candidates(
            Switchover,
            json!({"leader": "a", "candidate": "z"}),
            &[],
            off.clone()
        ),
        err("candidate does not exists")
    );
    assert_eq!(
        candidates(Switchover, from_a.clone(), &[], on.clone()),
        err("switchover is not possible: can not find sync_standby")
    );
    assert_eq!(
        candidates(Switchover, from_a.clone(), &sync, on),
        names(&[]),
        "c has no REST URL"
    );
    assert_eq!(
        candidates(Switchover, from_a.clone(), &[], off.clone()),
        names(&["b"])
    );
    let alone = [("members/b", "{}")];
    assert_eq!(
        candidates(Switchover, from_a, &alone, off),
        err("switchover is not possible: cluster does not have members except leader")
    );
}

#[test]
fn one_good_candidate_is_enough() {
    let request = parse(Failover, json!({"candidate": "b"}), false).expect("valid");
    let answers = |list: Vec<Option<PeerStatus>>| {
        let answer = |status| PeerAnswer {
            asked_at: MonoTime(0),
            status,
        };
        let names = (0..).map(|n: u32| MemberName::new(n.to_string()));
        request.judge(&names.zip(list.into_iter().map(answer)).collect())
    };
    let tagged = |tags: Value| PeerStatus {
        tags: object(tags),
        ..PeerStatus::default()
    };
    let bad = [
        None,
        Some(tagged(json!({"nofailover": true}))),
        Some(tagged(json!({"failover_priority": 0}))),
        Some(PeerStatus {
            watchdog_failed: true,
            ..PeerStatus::default()
        }),
        Some(PeerStatus {
            agent_only: true,
            ..PeerStatus::default()
        }),
    ];
    let text = "failover is not possible: no good candidates have been found";
    assert_eq!(answers(bad.to_vec()), Err(Reply::new(412, text)));
    let mut one_good = bad.to_vec();
    one_good.push(Some(tagged(
        json!({"nofailover": false, "failover_priority": 0}),
    )));
    assert_eq!(answers(one_good), Ok(()));
}

#[test]
fn the_result_is_read_from_the_records() {
    let to_b = parse(Switchover, json!({"leader": "a", "candidate": "b"}), false).expect("valid");
    let open = parse(Switchover, json!({"leader": "a"}), false).expect("valid");
    let forced = parse(Failover, json!({"candidate": "b"}), false).expect("valid");
    let before = MemberName::from("a");
    let see = |request: &HandoverRequest, entries: &[(&str, &str)]| {
        request
            .progress(&view(entries), Some(&before), Revision(5))
            .map(|reply| (reply.code, reply.text))
    };
    let key = ("failover", r#"{"leader":"a","member":"b"}"#);
    let said = |code, text: &str| Some((code, text.to_owned()));
    assert_eq!(see(&to_b, &[("leader", "a"), key]), None);
    assert_eq!(see(&to_b, &[key]), None, "nobody leads yet");
    assert_eq!(
        see(&to_b, &[("failover", "{}")]),
        None,
        "the new leader is about to come"
    );
    assert_eq!(
        see(&to_b, &[("leader", "b"), key]),
        said(200, "Successfully switched over to \"b\"")
    );
    assert_eq!(
        see(&to_b, &[("leader", "c")]),
        said(200, "Switched over to \"c\" instead of \"b\"")
    );
    assert_eq!(
        see(&open, &[("leader", "c")]),
        said(200, "Successfully switched over to \"c\"")
    );
    assert_eq!(
        see(&forced, &[("leader", "c")]),
        said(200, "Failed over to \"c\" instead of \"b\"")
    );
    assert_eq!(
        see(&forced, &[("leader", "a"), ("failover", "{}")]),
        said(503, "Failover failed")
    );
    let old = to_b.progress(&view(&[("leader", "c")]), Some(&before), Revision(6));
    assert_eq!(old, None, "a view from before the request says nothing");
    let waited = HandoverRequest::patience(&ClusterConfig::default());
    assert_eq!(
        to_b.undecided(waited).text,
        "Switchover status unknown after 20 seconds; operation may still be in progress"
    );
}
