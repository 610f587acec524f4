//! `GET /openapi.json`, made from the operations that the router has.

use super::answer::Answer;
use super::routes::{Access, BodyRule, Operation, Operations};
use axum::extract::Extension;
use axum::http::StatusCode;
use proto::rest::json::to_text;
use serde_json::{Map, Value, json};

/// The health checks, which are no operations of the router: any path is one.
const HEALTH_PATHS: &[(&str, &str)] = &[
    (
        "/",
        "Whether this member is the primary that holds the lock; the same as /primary.",
    ),
    (
        "/primary",
        "Whether this member is the primary that holds the lock.",
    ),
    ("/leader", "Whether this member holds the lock."),
    (
        "/standby-leader",
        "Whether this member leads a standby cluster.",
    ),
    ("/replica", "Whether this member is a running replica."),
    ("/read-only", "Whether this member can serve reads."),
    ("/sync", "Whether this member is a synchronous standby."),
    ("/async", "Whether this member is an asynchronous standby."),
    ("/quorum", "Whether this member votes in quorum commits."),
    ("/read-only-sync", "The primary, or a synchronous standby."),
    ("/read-only-quorum", "The primary, or a quorum standby."),
    ("/health", "Whether PostgreSQL runs."),
];

/// `GET /openapi.json`.
pub(super) async fn document(Extension(operations): Extension<Operations>) -> Answer {
    Answer::json(200, describe(&operations, env!("CARGO_PKG_VERSION")))
}

fn describe(operations: &[Operation], version: &str) -> String {
    let mut paths = Map::new();
    for (path, summary) in HEALTH_PATHS {
        let check = json!({
            "summary": summary,
            "parameters": check_parameters(),
            "responses": responses(&[200, 503]),
        });
        paths.insert(
            (*path).into(),
            json!({"get": check, "head": check, "options": check}),
        );
    }
    for known in operations {
        let path = format!("/{}", known.segment);
        let entry = paths.entry(path).or_insert_with(|| json!({}));
        if let Some(methods) = entry.as_object_mut() {
            methods.insert(known.method.to_lowercase(), operation(known));
        }
    }
    to_text(&json!({
        "openapi": "3.1.0",
        "info": {"title": "garden-agent", "version": version},
        "paths": paths,
        "components": {"securitySchemes": {"basic": {"type": "http", "scheme": "basic"}}},
    }))
}

fn operation(known: &Operation) -> Value {
    let mut doc = Map::new();
    doc.insert("summary".into(), json!(known.summary));
    if known.access != Access::Open {
        doc.insert("security".into(), json!([{"basic": []}, {}]));
    }
    if known.body != BodyRule::None {
        doc.insert(
            "requestBody".into(),
            json!({
                "required": known.body == BodyRule::Mandatory,
                "content": {"application/json": {"schema": body(known)}},
            }),
        );
    }
    doc.insert("responses".into(), responses(known.codes));
    Value::Object(doc)
}

/// What a health check may be narrowed down by. A value that cannot be read counts as absent.
fn check_parameters() -> Value {
    let query = |name: &str, example: &str, description: &str| {
        json!({
            "name": name, "in": "query", "description": description, "example": example,
            "schema": {"type": "string"},
        })
    };
    json!([
        query("lag", "16MB", "Replicas: at most so far behind."),
        query(
            "replication_state",
            "streaming",
            "Replicas: the state of replication."
        ),
        query("tag_NAME", "value", "The tag NAME has this value."),
    ])
}

/// The keys that a body may have. All are optional here: which ones belong together is said by the
/// answer.
fn body(known: &Operation) -> Value {
    let any = json!({});
    let text = json!({"type": "string"});
    let flag = json!({"type": "boolean"});
    let properties = match known.segment {
        "switchover" => json!({"leader": text, "candidate": text, "scheduled_at": any}),
        "failover" => json!({"candidate": text}),
        "restart" => json!({
            "schedule": text, "role": {"enum": ["primary", "standby_leader", "replica"]},
            "postgres_version": text, "timeout": any, "restart_pending": flag,
        }),
        "reinitialize" => json!({"force": flag, "from-leader": flag}),
        "failsafe" => json!({
            "name": text, "conn_url": text, "api_url": text,
            "slots": {"type": "object", "additionalProperties": {"type": "integer"}},
        }),
        _ => return json!({"type": "object"}),
    };
    json!({"type": "object", "properties": properties})
}

fn responses(codes: &[u16]) -> Value {
    let describe = |code: &u16| {
        let reason = StatusCode::from_u16(*code)
            .ok()
            .and_then(|c| c.canonical_reason());
        (
            code.to_string(),
            json!({"description": reason.unwrap_or_default()}),
        )
    };
    Value::Object(codes.iter().map(describe).collect())
}
