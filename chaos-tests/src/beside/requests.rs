//! Requests that are refused, or that change nothing: they can be sent to both clusters, and twice.

use super::probe::{Caller, Probe};
use serde_json::json;

/// A moment that never comes.
pub const LATER: &str = "2040-01-01T00:00:00+00:00";

fn post(path: &str, body: &str) -> Probe {
    Probe::with("POST", path, body)
}

/// Requests that a leader refuses, or that change nothing.
pub fn refused_by_leader() -> Vec<Probe> {
    let mut all = vec![
        post("/reinitialize", "{}"),
        post("/reinitialize", r#"{"force": true}"#),
    ];
    for caller in [Caller::Anonymous, Caller::Wrong] {
        for (method, path) in [
            ("POST", "/reload"),
            ("POST", "/restart"),
            ("PATCH", "/config"),
            ("PUT", "/config"),
            ("DELETE", "/restart"),
            ("DELETE", "/switchover"),
            ("POST", "/failsafe"),
            ("POST", "/citus"),
            ("POST", "/switchover"),
            ("POST", "/sigterm"),
        ] {
            all.push(Probe::get(method, path).from(caller));
        }
    }
    for (method, path) in [
        ("POST", "/"),
        ("PUT", "/patroni"),
        ("PATCH", "/"),
        ("DELETE", "/failover"),
        ("FOO", "/"),
        ("POST", "/unknown"),
        ("DELETE", "/restart"),
        ("DELETE", "/switchover"),
        ("PATCH", "/config"),
        ("PUT", "/config"),
        ("POST", "/switchover"),
        ("POST", "/failover"),
        ("POST", "/failsafe"),
        ("POST", "/citus"),
        ("POST", "/mpp"),
        ("POST", "/reload"),
        ("POST", "/sigterm"),
        ("OPTIONS", "*"),
        ("GET", "http://elsewhere/patroni/"),
    ] {
        all.push(Probe::get(method, path));
    }
    for body in ["", "{}", "[]", "1", "nope", "\"text\"", "{\"a\": "] {
        all.push(Probe::with("PATCH", "/config", body));
        for path in ["/switchover", "/failover", "/failsafe", "/citus", "/mpp"] {
            all.push(post(path, body));
        }
        if body != "{}" && !body.is_empty() {
            all.push(post("/restart", body));
            all.push(Probe::with("PUT", "/config", body));
        }
    }
    for body in [r#"{"ttl": "20"}"#, r#"{"loop_wait": 2, "absent": null}"#] {
        all.push(Probe::with("PATCH", "/config", body));
    }
    all.push(post("/citus", r#"{"type": "x"}"#));
    all.push(post("/mpp", r#"{"type": "x"}"#).from(Caller::Anonymous));
    all.push(post(
        "/failsafe",
        r#"{"name": "a", "conn_url": "b", "api_url": "c"}"#,
    ));
    all.extend(handovers());
    all
}

/// Switchovers and failovers that cannot be.
pub fn handovers() -> Vec<Probe> {
    let mut all = Vec::new();
    for body in [
        json!({"leader": "node1", "candidate": "node1"}),
        json!({"leader": "node2"}),
        json!({"leader": "node2", "candidate": "node1"}),
        json!({"leader": "node1", "candidate": "nobody"}),
        json!({"leader": "node1", "candidate": "node3"}),
        json!({"leader": "node1", "member": "node3"}),
        json!({"candidate": "node2"}),
        json!({"leader": "node1", "scheduled_at": "soon"}),
        json!({"leader": "node1", "scheduled_at": 5}),
        json!({"leader": "node1", "scheduled_at": "2010-01-01T00:00:00+00:00"}),
        json!({"leader": "node1", "scheduled_at": "2040-01-01T00:00:00"}),
        json!({"foo": "bar"}),
        json!({"leader": null}),
        json!({"leader": ""}),
        json!({"leader": 5}),
        json!({"leader": ["node1"], "candidate": "node1"}),
    ] {
        all.push(post("/switchover", &body.to_string()));
    }
    for body in [
        json!({"leader": "node1"}),
        json!({"foo": "bar"}),
        json!({"candidate": "nobody"}),
        json!({"candidate": "node3"}),
        json!({"candidate": ""}),
        json!({"candidate": "node2", "scheduled_at": LATER}),
        json!({"leader": "node1", "candidate": "node1"}),
        json!({"leader": "node2", "candidate": "node1"}),
    ] {
        all.push(post("/failover", &body.to_string()));
    }
    all
}

/// Restarts that a replica refuses.
pub fn refused_by_replica() -> Vec<Probe> {
    let mut all = Vec::new();
    for body in [
        json!({"role": "master"}),
        json!({"role": "primary"}),
        json!({"role": 5}),
        json!({"postgres_version": "x"}),
        json!({"postgres_version": "15"}),
        json!({"postgres_version": "9.0.1.2"}),
        json!({"postgres_version": "9.0.1"}),
        json!({"postgres_version": "10.1"}),
        json!({"timeout": -1}),
        json!({"timeout": 0}),
        json!({"timeout": "abc"}),
        json!({"timeout": "100ms"}),
        json!({"timeout": null}),
        json!({"other": 1}),
        json!({"other": 1, "role": "master"}),
        json!({"restart_pending": true}),
        json!({"restart_pending": false}),
        json!({"schedule": "2010-01-01T00:00:00+00:00"}),
        json!({"schedule": "2040-01-01T00:00:00"}),
        json!({"schedule": "soon"}),
        json!({"schedule": ""}),
        json!({"schedule": null}),
        json!({"schedule": 5}),
        json!({"schedule": LATER, "role": "master"}),
        json!({"role": "master", "schedule": "soon"}),
    ] {
        all.push(post("/restart", &body.to_string()));
    }
    all.push(Probe::get("DELETE", "/restart"));
    all
}

/// What maintenance mode forbids.
pub fn refused_in_pause() -> Vec<Probe> {
    let restarts = [
        json!({"schedule": LATER}),
        json!({"schedule": "soon"}),
        json!({"schedule": "2010-01-01T00:00:00+00:00"}),
        json!({"schedule": "2040-01-01T00:00:00"}),
        json!({"schedule": LATER, "role": "master"}),
        json!({"role": "master", "schedule": LATER}),
        json!({"schedule": LATER, "role": "replica"}),
        json!({"schedule": LATER, "other": 1}),
        json!({"role": "replica"}),
    ];
    let switchovers = [
        json!({"leader": "node1"}),
        json!({"leader": "node1", "scheduled_at": LATER}),
        json!({"leader": "node1", "scheduled_at": "soon"}),
        json!({"leader": "node1", "candidate": "node1"}),
        json!({"leader": "node1", "candidate": "node3"}),
    ];
    let restarts = restarts
        .iter()
        .map(|body| post("/restart", &body.to_string()));
    let switchovers = switchovers
        .iter()
        .map(|body| post("/switchover", &body.to_string()));
    restarts.chain(switchovers).collect()
}
