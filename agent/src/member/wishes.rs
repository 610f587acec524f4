//! What operators ask for over REST. What could be refused from the snapshot has been refused by the
//! server already; here a wish becomes part of the observation, or a reply.

use super::Member;
use crate::clock;
use crate::rest::{ReplyTo, RestRequest};
use proto::core::observation::{FailsafeCaller, ReinitWish, RestartWish, ScheduledRestart, Sql};
use proto::rest::RestartBody;

impl Member {
    pub(super) fn rest_request(&mut self, request: RestRequest) {
        match request {
            RestRequest::Reload => self.reload(),
            RestRequest::Wake => {}
            RestRequest::Restart { body, reply } => self.restart(body, reply),
            RestRequest::CancelScheduledRestart { reply } => {
                let wishes = &mut self.observation.wishes;
                let answer = match wishes.scheduled_restart.take() {
                    Some(_) => (200, String::from("scheduled restart deleted")),
                    None => (404, String::from("no restarts are scheduled")),
                };
                respond(reply, answer);
            }
            RestRequest::Reinitialize {
                force,
                from_leader,
                reply,
            } => {
                self.reinitialize(force, from_leader, reply);
            }
            RestRequest::Failsafe { caller, reply } => self.failsafe(caller, reply),
        }
    }

    fn busy(&self) -> Option<(u16, String)> {
        let job = self.observation.job.as_ref()?;
        Some((503, format!("{} already in progress", job.job.label())))
    }

    fn restart(&mut self, body: RestartBody, reply: ReplyTo) {
        if let Some((text, at)) = body.schedule {
            if self.observation.wishes.scheduled_restart.is_some() {
                return respond(reply, (409, "Another restart is already scheduled".into()));
            }
            self.observation.wishes.scheduled_restart = Some(ScheduledRestart {
                schedule: text,
                at,
                postmaster_start_time: self.postmaster_start_time(),
                role: body.role,
                below_version: body.below_version,
                timeout: body.timeout,
                restart_pending: body.restart_pending,
                raw: body.raw,
            });
            return respond(reply, (202, "Restart scheduled".into()));
        }
        if let Some(busy) = self.busy() {
            return respond(reply, busy);
        }
        if self.observation.wishes.restart.is_some() {
            return respond(reply, (503, "restart already in progress".into()));
        }
        self.next_wish += 1;
        let id = self.next_wish;
        self.observation.wishes.restart = Some(RestartWish {
            id,
            timeout: body.timeout,
        });
        self.restart_replies.insert(id, reply);
    }

    fn postmaster_start_time(&self) -> Option<String> {
        match &self.observation.postgres.sql {
            Sql::Sample(sample) => Some(sample.postmaster_start_time.clone()),
            _ => None,
        }
    }

    fn reinitialize(&mut self, force: bool, from_leader: bool, reply: ReplyTo) {
        if let Some(job) = &mut self.observation.job {
            if !force {
                let text = format!("{} already in progress", job.job.label());
                return respond(reply, (503, text));
            }
            job.cancelled = true;
            self.postgres.cancel(job.id);
        }
        self.next_wish += 1;
        self.observation.wishes.reinitialize = Some(ReinitWish {
            id: self.next_wish,
            from_leader,
        });
        respond(reply, (200, "reinitialize started".into()));
    }

    /// A primary without etcd asks whether it may go on. A running primary never says yes; whoever
    /// says yes does not stand for election for `ttl` (S20).
    fn failsafe(&mut self, caller: FailsafeCaller, reply: ReplyTo) {
        let answer = proto::core::failsafe::answer(
            &self.observation,
            &self.memory,
            &self.settings,
            &caller.name,
        );
        if let Err(why) = answer {
            return respond(reply, (500, why));
        }
        self.observation.failsafe_caller = Some(FailsafeCaller {
            at: clock::now(),
            ..caller
        });
        respond(reply, (200, "Accepted".into()));
    }
}

/// Whoever asked may have hung up.
fn respond(reply: ReplyTo, answer: (u16, String)) {
    let _ = reply.send(answer);
}
