//! `POST /switchover` and `POST /failover`: validation, feasibility and the words of the result
//! (`rest-api.md` 14). The texts are compared by `patronictl` and by scripts.

use super::requests::{Reply, Scheduled, schedule};
use crate::config::{ClusterConfig, SyncMode, Tags};
use crate::core::observation::PeerAnswer;
use crate::dcs::{ClusterView, FailoverRecord};
use crate::ids::{MemberName, Revision};
use crate::time::WallTime;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::time::Duration;

/// Which of the two; it also decides the words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandoverKind {
    /// Planned, from a leader that is named.
    Switchover,
    /// To a candidate, whatever became of the leader.
    Failover,
}

impl HandoverKind {
    fn name(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Switchover => "Switchover",
            Self::Failover => "Failover",
        }
    }

    /// At the beginning of a sentence, and inside of one.
    fn past(self) -> (&'static str, &'static str) {
        match self {
            Self::Switchover => ("Switched", "switched"),
            Self::Failover => ("Failed", "failed"),
        }
    }

    /// The text for a `/failover` key that could not be written.
    pub fn not_written(self) -> Reply {
        Reply::new(503, "failed to write failover key into DCS")
    }
}

/// A request that passed validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandoverRequest {
    /// A failover that names a leader has become a switchover here.
    pub kind: HandoverKind,
    /// Who shall step down.
    pub leader: Option<MemberName>,
    /// Who shall take over.
    pub candidate: Option<MemberName>,
    /// When, in the form that is stored. `None`: now.
    pub scheduled_at: Option<String>,
}

impl HandoverRequest {
    /// Reads a body; checks 2 to 9 of `rest-api.md` 14.1, in that order.
    pub fn parse(
        kind: HandoverKind,
        body: &Map<String, Value>,
        paused: bool,
        wall: WallTime,
    ) -> Result<Self, Reply> {
        // Anything else than a name is given, too, and is nobody's.
        let name = |key: &str| match body.get(key)? {
            Value::String(text) => (!text.is_empty()).then(|| MemberName::new(text.clone())),
            value => (!is_nothing(value)).then(|| MemberName::new(value.to_string())),
        };
        let leader = name("leader");
        let candidate = name("candidate").or_else(|| name("member"));
        let scheduled = body.get("scheduled_at").filter(|v| !is_nothing(v));
        let refuse = |text: &str| Err(Reply::new(400, text));
        match kind {
            HandoverKind::Failover if candidate.is_none() => {
                return refuse("Failover could be performed only to a specific candidate");
            }
            HandoverKind::Switchover if leader.is_none() => {
                return refuse("Switchover could be performed only from a specific leader");
            }
            HandoverKind::Failover if scheduled.is_some() => {
                return refuse("Failover can't be scheduled");
            }
            HandoverKind::Failover | HandoverKind::Switchover => {}
        }
        if scheduled.is_some() && paused {
            return refuse("Can't schedule switchover in the paused state");
        }
        let scheduled_at = match scheduled {
            Some(value) => Some(schedule(value, Scheduled::Switchover, wall)?.0),
            None => None,
        };
        if paused && candidate.is_none() {
            return refuse("Switchover is possible only to a specific candidate in a paused state");
        }
        if leader.is_some() && leader == candidate {
            return refuse("Switchover target and source are the same");
        }
        let kind = if leader.is_some() {
            HandoverKind::Switchover
        } else {
            kind
        };
        Ok(Self {
            kind,
            leader,
            candidate,
            scheduled_at,
        })
    }

    /// The value of `/failover`.
    pub fn to_value(&self) -> String {
        FailoverRecord::value(
            self.leader.as_ref(),
            self.candidate.as_ref(),
            self.scheduled_at.as_deref(),
        )
    }

    /// Whom to ask whether they could take over, with their REST URLs; or why nobody could
    /// (`rest-api.md` 14.2).
    pub fn candidates(
        &self,
        view: &ClusterView,
        config: &ClusterConfig,
    ) -> Result<BTreeMap<MemberName, String>, Reply> {
        let refuse = |text: &str| Err(Reply::new(412, text));
        let leader = view.leader_name();
        if self.leader.is_some() && self.leader.as_ref() != leader {
            return refuse("leader name does not match");
        }
        let classic = config.synchronous_mode == SyncMode::On;
        let asked: Vec<&MemberName> = match &self.candidate {
            Some(candidate) => {
                let bound = classic && self.kind == HandoverKind::Switchover;
                if bound && !view.sync.lists(candidate) {
                    return refuse("candidate name does not match with sync_standby");
                }
                if !view.members.contains_key(candidate) {
                    return refuse("candidate does not exists");
                }
                vec![candidate]
            }
            None => {
                let others = view.members.keys().filter(|name| Some(*name) != leader);
                if classic {
                    let listed: Vec<_> = others.filter(|name| view.sync.lists(name)).collect();
                    if listed.is_empty() {
                        return refuse("switchover is not possible: can not find sync_standby");
                    }
                    listed
                } else {
                    let reachable: Vec<_> = others
                        .filter(|n| view.member(n).is_some_and(|m| m.api_url.is_some()))
                        .collect();
                    if reachable.is_empty() {
                        return refuse(
                            "switchover is not possible: cluster does not have members except leader",
                        );
                    }
                    reachable
                }
            }
        };
        let url = |name: &MemberName| view.member(name).and_then(|m| m.api_url.clone());
        Ok(asked
            .into_iter()
            .filter_map(|name| Some((name.clone(), url(name)?)))
            .collect())
    }

    /// Whether one of the answers comes from a member that may lead; lag is judged later, by the
    /// leader.
    pub fn judge(&self, answers: &BTreeMap<MemberName, PeerAnswer>) -> Result<(), Reply> {
        let good = answers
            .values()
            .filter_map(|answer| answer.status.as_ref())
            .any(|status| {
                let limited = Tags(status.tags.clone()).nofailover() || status.watchdog_failed;
                !status.agent_only && !limited
            });
        if good {
            return Ok(());
        }
        let name = self.kind.name();
        let text = format!("{name} is not possible: no good candidates have been found");
        Err(Reply::new(412, text))
    }

    /// What a view says about a request that was written at `written`, while `before` led: the final
    /// answer, or `None` as long as it is under way (`rest-api.md` 14.3).
    pub fn progress(
        &self,
        view: &ClusterView,
        before: Option<&MemberName>,
        written: Revision,
    ) -> Option<Reply> {
        if view.revision < written {
            return None;
        }
        let leader = view.leader_name();
        match leader.filter(|leader| Some(*leader) != before) {
            Some(leader) => Some(self.succeeded(leader)),
            // A key that is gone while nobody leads: the new leader is about to take the lock.
            None if view.failover.is_none() && (leader.is_some() || before.is_none()) => {
                Some(Reply::new(503, format!("{} failed", self.kind.title())))
            }
            None => None,
        }
    }

    fn succeeded(&self, leader: &MemberName) -> Reply {
        let (first, inside) = self.kind.past();
        let text = match &self.candidate {
            Some(candidate) if candidate != leader => {
                format!("{first} over to \"{leader}\" instead of \"{candidate}\"")
            }
            _ => format!("Successfully {inside} over to \"{leader}\""),
        };
        Reply::new(200, text)
    }

    /// How long the result is waited for.
    pub fn patience(config: &ClusterConfig) -> Duration {
        config.timing.loop_wait().max(Duration::from_secs(10)) * 2
    }

    /// The answer after that time.
    pub fn undecided(&self, waited: Duration) -> Reply {
        let (title, seconds) = (self.kind.title(), waited.as_secs());
        let text = format!(
            "{title} status unknown after {seconds} seconds; operation may still be in progress"
        );
        Reply::new(503, text)
    }
}

/// An empty text means "now"; so do the values that are nothing.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.is_empty(),
        Value::Bool(true) => false,
    }
}

#[cfg(test)]
mod tests;
