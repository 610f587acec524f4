//! From what was written to what it means: the local document over the dynamic one
//! (`configuration.md` 2.3).
//!
//! ```text
//! dynamic ─▶ timeouts checked ───────────────┐
//! local   ─▶ sections parsed, defaults ──────┼─▶ AgentConfig, sentences for the log
//! both    ─▶ postgresql: local over dynamic ─┘
//! ```

mod etcd;
mod methods;
mod parameters;
mod postgres;
mod read;
mod sections;

pub(crate) use etcd::percent_decode;
pub use parameters::RECOVERY;
pub(super) use parameters::{CONTROLLED, Rule};

use super::error::ConfigError;
use super::source::Origins;
use super::value::{python_int, python_text};
use super::{AgentConfig, ControlConfig};
use read::{Notes, Section};
use serde_json::{Map, Value};

/// Patroni's name for "no synchronous standby is known yet"; a member cannot have it.
const RESERVED_NAME: &str = "__patroni_strict_sync_replica_placeholder__";

/// The default of `namespace` (`/service`), without its slashes.
const NAMESPACE: &str = "service";

/// Builds the effective configuration.
pub(super) fn build(
    local: &Map<String, Value>,
    dynamic: &Map<String, Value>,
    origins: &Origins,
) -> Result<(AgentConfig, Vec<String>), ConfigError> {
    check_dynamic(dynamic)?;
    let notes = Notes::default();
    let top = Section {
        map: local.clone(),
        path: String::new(),
        origins,
        notes: &notes,
        local: None,
    };
    let name = name(&top)?;
    let scope = top
        .text("scope")?
        .ok_or_else(|| top.missing("scope", "the cluster's name"))?;
    refuse_citus(&top)?;
    let section = |name: &str| Section::of(local, name, origins, &notes);
    let restapi_section = section("restapi")?;
    let restapi = sections::restapi(&restapi_section)?;
    let config = AgentConfig {
        namespace: namespace(&top)?,
        log: sections::log(&section("log")?)?,
        ctl: sections::ctl(&section("ctl")?, &restapi_section)?,
        restapi,
        etcd: etcd::build(&top)?,
        tags: sections::tags(&section("tags")?),
        watchdog: sections::watchdog(&section("watchdog")?)?,
        guardian: sections::guardian(&section("garden")?),
        bootstrap: sections::bootstrap(local, &section("bootstrap")?)?,
        postgresql: postgres::build(&section("postgresql")?, dynamic, &scope)?,
        name,
        scope,
    };
    Ok((config, notes.into_inner()))
}

/// Builds what the control tool needs.
pub(super) fn control(
    local: &Map<String, Value>,
    origins: &Origins,
) -> Result<(ControlConfig, Vec<String>), ConfigError> {
    let notes = Notes::default();
    let top = Section {
        map: local.clone(),
        path: String::new(),
        origins,
        notes: &notes,
        local: None,
    };
    let section = |name: &str| Section::of(local, name, origins, &notes);
    let config = ControlConfig {
        scope: top.text("scope")?,
        namespace: namespace(&top)?,
        etcd: etcd::build(&top)?,
        ctl: sections::ctl(&section("ctl")?, &section("restapi")?)?,
        superuser: postgres::superuser_of(&section("postgresql")?)?,
        database: section("postgresql")?.text("database")?,
    };
    Ok((config, notes.into_inner()))
}

/// The three timeouts and `postgresql.parameters` can make a dynamic document unusable
/// (`configuration.md` 2.4).
fn check_dynamic(dynamic: &Map<String, Value>) -> Result<(), ConfigError> {
    for key in ["ttl", "loop_wait", "retry_timeout"] {
        if dynamic
            .get(key)
            .is_some_and(|value| python_int(value).is_none())
        {
            let expected = String::from("a number of seconds");
            return Err(ConfigError::Dynamic {
                key: key.to_owned(),
                expected,
            });
        }
    }
    match dynamic.get("postgresql").and_then(|p| p.get("parameters")) {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => Err(ConfigError::Dynamic {
            key: String::from("postgresql.parameters"),
            expected: String::from("a mapping"),
        }),
    }
}

fn name(top: &Section<'_>) -> Result<String, ConfigError> {
    let legacy = || top.map.get("postgresql")?.get("name").map(python_text);
    let name = top.text("name")?.or_else(legacy).filter(|n| !n.is_empty());
    let name = name.ok_or_else(|| top.missing("name", "this member's name"))?;
    if name == RESERVED_NAME {
        let expected = format!("another name: Node 'name' can't be set to {RESERVED_NAME}");
        return Err(top.wrong("name", expected));
    }
    Ok(name)
}

fn namespace(top: &Section<'_>) -> Result<String, ConfigError> {
    let namespace = top.text("namespace")?;
    Ok(namespace.map_or_else(|| NAMESPACE.to_owned(), |n| n.trim_matches('/').to_owned()))
}

/// A Citus section with a group and a database moves the whole cluster to other paths in etcd, so it
/// must not be ignored; Patroni drops any other one.
fn refuse_citus(top: &Section<'_>) -> Result<(), ConfigError> {
    let Some(citus) = top.get("citus").and_then(Value::as_object) else {
        return Ok(());
    };
    let complete = citus.get("group").is_some_and(Value::is_i64)
        && citus.get("database").is_some_and(Value::is_string);
    if complete {
        return Err(ConfigError::Unsupported {
            origin: top.origin("citus"),
            key: String::from("citus"),
            why: String::from("Citus clusters are not supported"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
