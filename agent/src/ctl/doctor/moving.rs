//! What would behave differently under our agents, for a cluster that has members of Patroni: told
//! before anything is exchanged. What all clusters differ in is in `docs/compatibility.md`; here is only
//! what this cluster's configuration makes matter.

use super::Level;
use proto::config::ClusterConfig;
use serde_json::{Map, Value};

/// Our defaults for what PostgreSQL leaves at a minute, or five seconds for the last.
const SHORTER: [(&str, &str); 3] = [
    ("wal_sender_timeout", "5 s"),
    ("wal_receiver_timeout", "5 s"),
    ("wal_retrieve_retry_interval", "250 ms"),
];

/// The findings for this dynamic configuration.
pub fn differences(
    config: &ClusterConfig,
    document: Option<&Map<String, Value>>,
) -> Vec<(Level, String)> {
    let mut found = Vec::new();
    let parameters = document.and_then(|document| document.get("postgresql")?.get("parameters"));
    let unset = SHORTER
        .iter()
        .filter(|(name, _)| parameters.is_none_or(|parameters| parameters.get(name).is_none()));
    let unset: Vec<String> = unset
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    if !unset.is_empty() {
        let text = format!("not set, so our agents set it: {}", unset.join(", "));
        found.push((Level::Warn, text));
    }
    if config.is_synchronous() {
        let text =
            "with all members ours, a failover waits for the synchronous standbys and not for ttl";
        found.push((Level::Warn, text.into()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn levels(document: Value) -> Vec<(Level, String)> {
        let document = document.as_object().cloned().expect("an object");
        differences(&ClusterConfig::parse(&document), Some(&document))
    }

    #[test]
    fn timeouts_are_told_unless_set_and_a_logical_slot_is_no_difference() {
        let set = json!({ "wal_sender_timeout": "60s", "wal_receiver_timeout": "60s",
            "wal_retrieve_retry_interval": "5s" });
        assert_eq!(levels(json!({ "postgresql": { "parameters": set } })), []);
        let found = levels(json!({ "slots": {
            "archive": { "type": "physical" },
            "changes": { "type": "logical", "database": "app", "plugin": "pgoutput" },
        } }));
        let [(Level::Warn, timeouts)] = found.as_slice() else {
            panic!("{found:?}");
        };
        assert!(timeouts.contains("wal_sender_timeout 5 s"), "{timeouts}");
    }
}
