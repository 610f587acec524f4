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
        let name = |key: &str| match body.get(key)? {
            Value::String(text) if !text.is_empty() => Some(MemberName::new(text.clone())),
            _ => None,
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
mod tests {
    use super::super::fixture::{object, view};
    use super::*;
    use crate::core::observation::PeerStatus;
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
        let to_b =
            parse(Switchover, json!({"leader": "a", "candidate": "b"}), false).expect("valid");
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
}
