//! Whose WAL belongs to the leader's line.

use super::*;
use crate::core::lead::tests::leader;
use crate::dcs::{LeaseRecord, RECORD_VERSION};
use serde_json::json;

fn native(record_owner: &str, history: &str, published: u32) -> ClusterView {
    let record = LeaseRecord {
        v: RECORD_VERSION,
        epoch: Epoch(3),
        owner: record_owner.into(),
        session: "s".into(),
        seq: 1,
        state: RecordState::Held,
        l_ms: 8000,
        w_ms: 8600,
        members: vec!["a".into(), "b".into()],
        final_position: None,
    };
    let mut scene = leader(json!({}))
        .key("record", &record.to_value())
        .key("history", history);
    for name in ["a", "b", "c"] {
        let timeline = if name == record_owner { published } else { 1 };
        let member = json!({
            "api_url": format!("http://{name}:8008/patroni"), "timeline": timeline,
            "garden": {"protocol": 1, "record": true, "fence": true},
        });
        scene = scene.key(&format!("members/{name}"), &member.to_string());
    }
    scene.view()
}

/// `/history` says that timeline 1 has ended: the leader is on 2. A promotion by hand made a 3.
#[test]
fn a_timeline_that_no_leader_has_claimed_is_of_no_leader() {
    let history = r#"[[1,100,"claimed for a promotion","2026-01-01T00:00:00+00:00","a"]]"#;
    let view = native("a", history, 2);
    assert!(
        view.members
            .values()
            .all(|m| m.record.capabilities.is_some())
    );
    for (timeline, leaders) in [(1, true), (2, true), (3, false)] {
        assert_eq!(
            of_a_leader(&view, Timeline(timeline)),
            leaders,
            "{timeline}"
        );
    }
    // The leader publishes its timeline before `/history` is written.
    let view = native("a", history, 3);
    assert!(of_a_leader(&view, Timeline(3)));
    assert!(!of_a_leader(&view, Timeline(4)));
}

/// Where Patroni may have led, numbers are claimed by nobody, and none is refused.
#[test]
fn beside_patroni_no_timeline_is_refused() {
    let history = r#"[[1,100,"no recovery target specified","2026-01-01T00:00:00+00:00","a"]]"#;
    let view = leader(json!({})).key("history", history).view();
    assert!(of_a_leader(&view, Timeline(7)));
}
