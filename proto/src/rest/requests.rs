//! What may be asked of this member: the bodies of `/restart`, `/reinitialize` and `/failsafe`, read
//! and judged (`rest-api.md` 9.3, 11, 13, 15). Nothing here acts.

use super::Published;
use super::size::positive_seconds;
use super::stamp::Stamp;
use super::status::{pending_restart, sample, shown_role};
use crate::core::observation::FailsafeCaller;
use crate::dcs::PgRole;
use crate::dcs::records::parse_bool;
use crate::ids::MemberName;
use crate::time::{MonoTime, WallTime};
use serde_json::{Map, Value};

/// A plain answer, mostly a refusal: status code and the text that clients compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// HTTP status.
    pub code: u16,
    /// Body, plain text.
    pub text: String,
}

impl Reply {
    /// An answer with this code and text.
    pub fn new(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// Another long action is under way. `patronictl reinit` looks at how this text ends.
    pub fn busy(action: &str) -> Self {
        Self::new(503, format!("{action} already in progress"))
    }
}

/// What is scheduled, as the texts name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// `POST /restart`.
    Restart,
    /// `POST /switchover`.
    Switchover,
}

impl Scheduled {
    fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::Switchover => "switchover",
        }
    }
}

/// Reads a moment in the future (`rest-api.md` 11.4): ISO text to store, and what it means.
pub fn schedule(
    value: &Value,
    what: Scheduled,
    wall: WallTime,
) -> Result<(String, WallTime), Reply> {
    let stamp = value.as_str().and_then(Stamp::parse).ok_or_else(|| {
        Reply::new(
            422,
            "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601",
        )
    })?;
    let what = what.name();
    let Some(at) = stamp.wall() else {
        let text = format!("Timezone information is mandatory for the scheduled {what}");
        return Err(Reply::new(400, text));
    };
    if at < wall {
        return Err(Reply::new(
            422,
            format!("Cannot schedule {what} in the past"),
        ));
    }
    Ok((stamp.render('T'), at))
}

/// A checked body of `POST /restart`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestartBody {
    /// When: ISO text and moment. `None`: now.
    pub schedule: Option<(String, WallTime)>,
    /// Only in this role: `primary`, `standby_leader` or `replica`.
    pub role: Option<String>,
    /// Only below this server version, as PostgreSQL numbers it (160004).
    pub below_version: Option<u32>,
    /// Limit of the start in seconds; none means `primary_start_timeout`.
    pub timeout: Option<u64>,
    /// Only if a restart is pending.
    pub restart_pending: bool,
    /// The fields of the request, the schedule in its stored form: what the member key shows.
    pub raw: Map<String, Value>,
}

impl RestartBody {
    /// Reads a body; keys are judged in the order in which they stand (`rest-api.md` 11.1).
    pub fn parse(body: &Map<String, Value>, paused: bool, wall: WallTime) -> Result<Self, Reply> {
        let mut read = Self {
            raw: body.clone(),
            ..Self::default()
        };
        // Before anything else is looked at, whatever else is wrong.
        if paused && body.contains_key("schedule") {
            let text = "Can't schedule restart in the paused state";
            return Err(Reply::new(500, text));
        }
        for (key, value) in body {
            match key.as_str() {
                "schedule" => {
                    let (text, at) = schedule(value, Scheduled::Restart, wall)?;
                    read.raw.insert(key.clone(), Value::String(text.clone()));
                    read.schedule = Some((text, at));
                }
                "role" => read.role = Some(role_filter(value)?),
                "postgres_version" => read.below_version = Some(version_filter(value)?),
                "timeout" => {
                    let seconds = positive_seconds(value).ok_or_else(|| {
                        Reply::new(400, "Timeout should be a positive number of seconds")
                    })?;
                    read.raw.insert(key.clone(), Value::from(seconds));
                    read.timeout = Some(seconds);
                }
                // Its presence counts, not its value.
                "restart_pending" => read.restart_pending = true,
                other => {
                    let text = format!("Unknown filter for the scheduled restart: {other}");
                    return Err(Reply::new(400, text));
                }
            }
        }
        Ok(read)
    }

    /// Whether this member is what the filters ask for, right now.
    pub fn applies(&self, published: &Published) -> bool {
        let role = shown_role(published);
        let role_fits = self
            .role
            .as_deref()
            .is_none_or(|wanted| wanted == role.as_str());
        let version = sample(published).map(|s| s.server_version);
        let version_fits = match (self.below_version, version) {
            (Some(limit), Some(version)) => version < limit,
            (Some(_), None) => false,
            (None, _) => true,
        };
        let pending_fits = !self.restart_pending || !pending_restart(published).is_empty();
        role_fits && version_fits && pending_fits
    }

    /// What stands against an immediate or a scheduled restart in this moment.
    pub fn obstacle(&self, published: &Published) -> Option<Reply> {
        if self.schedule.is_some() {
            let taken = published.wishes.scheduled_restart.is_some();
            return taken.then(|| Reply::new(409, "Another restart is already scheduled"));
        }
        if let Some(job) = &published.job {
            return Some(Reply::busy(job));
        }
        let text = "restart conditions are not satisfied";
        (!self.applies(published)).then(|| Reply::new(503, text))
    }
}

fn role_filter(value: &Value) -> Result<String, Reply> {
    match value.as_str() {
        Some(role @ ("primary" | "standby_leader" | "replica")) => Ok(role.to_owned()),
        _ => Err(Reply::new(
            400,
            "PostgreSQL role should be either primary, standby_leader, or replica",
        )),
    }
}

/// `16.4` is 160004, `9.6.3` is 90603.
fn version_filter(value: &Value) -> Result<u32, Reply> {
    let shown = value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned);
    let bad_form = || {
        let text = format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {shown}");
        Reply::new(400, text)
    };
    let numbers: Option<Vec<u32>> = shown
        .split('.')
        .map(|p| p.parse().ok().filter(|n: &u32| *n < 100))
        .collect();
    match numbers.as_deref() {
        Some([major, minor]) if *major >= 10 => Ok(major * 10_000 + minor),
        Some([major, middle, minor]) if *major < 10 => Ok(major * 10_000 + middle * 100 + minor),
        Some(_) => Err(bad_form()),
        None => Err(Reply::new(
            400,
            format!("Invalid PostgreSQL version: {shown}"),
        )),
    }
}

/// A checked body of `POST /reinitialize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReinitBody {
    /// Cancel what runs.
    pub force: bool,
    /// Copy from the leader.
    pub from_leader: bool,
}

impl ReinitBody {
    /// Reads a body. The documentation of Patroni writes `from-leader`, its tool `from_leader`.
    pub fn parse(body: &Map<String, Value>) -> Self {
        let flag = |key: &str| body.get(key).and_then(parse_bool).unwrap_or(false);
        Self {
            force: flag("force"),
            from_leader: flag("from_leader") || flag("from-leader"),
        }
    }

    /// Why this member cannot be thrown away. A leader refuses even when forced.
    pub fn obstacle(&self, published: &Published) -> Option<Reply> {
        let leader = published
            .view
            .as_deref()
            .and_then(|view| view.leader_name());
        if leader.is_none() {
            return Some(Reply::new(
                503,
                "Cluster has no leader, can not reinitialize",
            ));
        }
        if leader == Some(&published.settings.me) {
            return Some(Reply::new(503, "I am the leader, can not reinitialize"));
        }
        let job = published.job.as_deref().filter(|_| !self.force);
        job.map(Reply::busy)
    }
}

/// Reads a body of `POST /failsafe`; `None` when a mandatory part lacks.
pub fn failsafe_caller(body: &Map<String, Value>, now: MonoTime) -> Option<FailsafeCaller> {
    let text = |key: &str| body.get(key)?.as_str().map(str::to_owned);
    let slots = body
        .get("slots")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    Some(FailsafeCaller {
        name: MemberName::new(text("name")?),
        at: now,
        conn_url: text("conn_url")?,
        api_url: text("api_url")?,
        slots: slots
            .into_iter()
            .filter_map(|(name, lsn)| Some((name, lsn.as_u64()?)))
            .collect(),
    })
}

/// The answer to `POST /failsafe` that needs no decision: a running primary follows nobody.
pub fn failsafe_obstacle(published: &Published) -> Option<Reply> {
    let primary = shown_role(published) == PgRole::Primary && sample(published).is_some();
    primary.then(|| Reply::new(500, "Running as a leader"))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW, edit_sample, leader, object, replica};
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::sync::Arc;

    const TODAY: WallTime = WallTime(1_784_887_932_000);

    fn parse(body: Value) -> Result<RestartBody, Reply> {
        RestartBody::parse(&object(body), false, TODAY)
    }

    #[test]
    fn restart_bodies_are_judged_key_by_key() {
        let role = "PostgreSQL role should be either primary, standby_leader, or replica";
        let timeout = "Timeout should be a positive number of seconds";
        let stamp = "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. ISO 8601";
        let form = "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: ";
        for (body, code, text) in [
            (json!({"role": "master"}), 400, role.to_owned()),
            (json!({"role": 1}), 400, role.to_owned()),
            (json!({"timeout": 0}), 400, timeout.to_owned()),
            (
                json!({"timeout": "10 parsecs", "role": "x"}),
                400,
                timeout.to_owned(),
            ),
            (json!({"postgres_version": "16"}), 400, format!("{form}16")),
            (
                json!({"postgres_version": "x"}),
                400,
                String::from("Invalid PostgreSQL version: x"),
            ),
            (json!({"postgres_version": 16}), 400, format!("{form}16")),
            (
                json!({"postgres_version": "1.2.3.4"}),
                400,
                format!("{form}1.2.3.4"),
            ),
            (
                json!({"postgres_version": "x.y"}),
                400,
                "Invalid PostgreSQL version: x.y".into(),
            ),
            (
                json!({"foo": 1}),
                400,
                "Unknown filter for the scheduled restart: foo".into(),
            ),
            (json!({"schedule": "soon"}), 422, stamp.to_owned()),
            (json!({"schedule": ""}), 422, stamp.to_owned()),
            (json!({"schedule": null}), 422, stamp.to_owned()),
            (
                json!({"schedule": "2030-01-01T00:00"}),
                400,
                "Timezone information is mandatory for the scheduled restart".into(),
            ),
            (
                json!({"schedule": "2020-01-01T00:00Z"}),
                422,
                "Cannot schedule restart in the past".into(),
            ),
        ] {
            assert_eq!(parse(body.clone()), Err(Reply::new(code, text)), "{body}");
        }
    }

    #[test]
    fn an_accepted_body_keeps_its_filters() {
        let body = json!({"schedule": "2030-01-01 00:00:00Z", "role": "replica",
            "postgres_version": "9.6.3", "timeout": "5min", "restart_pending": false});
        let read = parse(body).expect("valid");
        assert_eq!(
            read.schedule.as_ref().map(|s| s.0.as_str()),
            Some("2030-01-01T00:00:00+00:00")
        );
        assert_eq!(
            read.raw.get("schedule"),
            Some(&json!("2030-01-01T00:00:00+00:00"))
        );
        assert_eq!(read.below_version, Some(90_603));
        assert_eq!(read.timeout, Some(300));
        assert!(read.restart_pending, "its presence counts");
        assert_eq!(read.raw.get("timeout"), Some(&json!(300)));
        let text = "Can't schedule restart in the paused state";
        for body in [
            json!(read.raw),
            json!({"schedule": "soon"}),
            json!({"role": "master", "schedule": "2010-01-01T00:00:00"}),
        ] {
            let body = body.as_object().cloned().unwrap_or_default();
            let paused = RestartBody::parse(&body, true, TODAY);
            assert_eq!(paused, Err(Reply::new(500, text)), "{body:?}");
        }
    }

    #[test]
    fn filters_are_compared_with_this_member() {
        let not_met = Some(Reply::new(503, "restart conditions are not satisfied"));
        let obstacle =
            |body: Value, published: &Published| parse(body).expect("valid").obstacle(published);
        assert_eq!(obstacle(json!({}), &leader()), None);
        assert_eq!(obstacle(json!({"role": "primary"}), &leader()), None);
        assert_eq!(obstacle(json!({"role": "replica"}), &leader()), not_met);
        assert_eq!(
            obstacle(json!({"postgres_version": "16.5"}), &leader()),
            None
        );
        assert_eq!(
            obstacle(json!({"postgres_version": "16.4"}), &leader()),
            not_met
        );
        assert_eq!(
            obstacle(json!({"restart_pending": true}), &leader()),
            not_met
        );
        let mut pending = leader();
        edit_sample(&mut pending, |s| {
            s.pending_restart
                .insert("x".into(), ("1".into(), "2".into()));
        });
        assert_eq!(obstacle(json!({"restart_pending": true}), &pending), None);
        let busy = Published {
            job: Some("promote".into()),
            ..leader()
        };
        assert_eq!(
            obstacle(json!({}), &busy),
            Some(Reply::new(503, "promote already in progress"))
        );
        let later = json!({"schedule": "2030-01-01T00:00Z", "role": "replica"});
        assert_eq!(
            obstacle(later, &busy),
            None,
            "filters and jobs matter when the time has come"
        );
    }

    #[test]
    fn a_leader_is_not_thrown_away() {
        let force = ReinitBody::parse(&object(json!({"force": "YES", "from_leader": 1})));
        assert_eq!(
            force,
            ReinitBody {
                force: true,
                from_leader: true
            }
        );
        let obstacle = |p: &Published| force.obstacle(p).map(|reply| reply.text);
        assert_eq!(
            obstacle(&leader()).as_deref(),
            Some("I am the leader, can not reinitialize")
        );
        assert_eq!(obstacle(&replica()), None);
        let blind = Published {
            view: None,
            ..replica()
        };
        assert_eq!(
            obstacle(&blind).as_deref(),
            Some("Cluster has no leader, can not reinitialize")
        );
        let busy = Published {
            job: Some("bootstrap".into()),
            ..replica()
        };
        assert_eq!(obstacle(&busy), None);
        assert_eq!(
            ReinitBody::default().obstacle(&busy),
            Some(Reply::new(503, "bootstrap already in progress"))
        );
    }

    #[test]
    fn failsafe_needs_a_caller_and_no_primary_here() {
        let body =
            json!({"name": "gd-b", "conn_url": "c", "api_url": "a", "slots": {"s": 5, "t": "x"}});
        let caller = failsafe_caller(&object(body), NOW).expect("complete");
        assert_eq!((caller.name, caller.slots.len()), ("gd-b".into(), 1));
        assert_eq!(failsafe_caller(&object(json!({"name": "x"})), NOW), None);
        assert_eq!(
            failsafe_obstacle(&leader()),
            Some(Reply::new(500, "Running as a leader"))
        );
        assert_eq!(failsafe_obstacle(&replica()), None);
        let dead = Published {
            postgres: Arc::default(),
            ..leader()
        };
        assert_eq!(failsafe_obstacle(&dead), None);
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(key in "schedule|role|timeout|postgres_version|\\PC*", text in "\\PC*") {
            let _ = parse(json!({ key: text }));
        }
    }
}
