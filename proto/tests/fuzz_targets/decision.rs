//! The decision itself, from moments that the simulator recorded: whatever etcd, members and PostgreSQL say, it is taken,
//! twice in the same way, and told in a sentence. A panic there would take down every member that reads the same key.

use crate::fuzz::Seen;
use proto::config::Settings;
use proto::core::{Memory, Observation, decide};
use serde::Deserialize;

pub const WORDS: &[&str] = &[
    "\"Released\"",
    "\"Primary\"",
    "\"Garbled\"",
    "\"Absent\"",
    "\"Quorum\"",
    "\"On\"",
    "\"synchronous_mode\"",
    "\"pause\"",
    "\"standby_cluster\"",
    "\"failsafe_mode\"",
    "null",
];

#[derive(Deserialize)]
struct Moment {
    observation: Observation,
    memory: Memory,
    settings: Settings,
}

pub fn decision(input: &[u8]) -> Seen {
    let Ok(moment) = serde_json::from_slice::<Moment>(input) else {
        return Seen::Refused;
    };
    let (decision, memory) = decide(&moment.observation, &moment.memory, &moment.settings);
    let again = decide(&moment.observation, &moment.memory, &moment.settings);
    assert!(
        (&decision, &memory) == (&again.0, &again.1),
        "{}",
        decision.reason.rule()
    );
    assert!(!decision.reason.rule().is_empty() && !decision.reason.to_string().is_empty());
    Seen::Accepted
}
