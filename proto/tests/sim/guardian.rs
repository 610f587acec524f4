//! The guardian and the kernel behind it: the real [`FenceClock`], and a kill that takes up to F. Nothing
//! that is frozen delays it, since the kernel's own timer stands behind it.

use super::clock::{MS, T};
use super::mutation::Mutation;
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::observation::{Armed, HeldRecord};
use proto::fence::{Basis, FenceClock, Moment, Verdict};
use proto::ids::Epoch;
use proto::time::MonoTime;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Guard {
    pub id: u32,
    pub alive: bool,
    pub clock: FenceClock,
    /// What a restarted agent finds.
    pub kept: Option<(Epoch, Duration)>,
    pub killing: bool,
    /// What the loop is made to believe, with [`Mutation::NeverArmed`].
    pub pretended: Option<Armed>,
}

impl Guard {
    /// The deadline as the loop sees it.
    pub fn shown(&self) -> Option<Armed> {
        let armed = self.clock.armed().map(|armed| Armed {
            epoch: armed.epoch,
            deadline: armed.deadline,
        });
        self.pretended.or(armed)
    }

    pub fn session(&self) -> String {
        format!("g{}", self.id)
    }

    /// The tenure of the agent before this one, as `member/start.rs` makes it of what was kept.
    pub fn inherited(&self) -> Option<HeldRecord> {
        let armed = self.clock.armed()?;
        let (epoch, length) = self.kept?;
        (epoch == armed.epoch).then(|| HeldRecord {
            epoch,
            sent_at: armed.deadline - length,
            length,
            modified: proto::ids::Revision(0),
            seq: 0,
        })
    }
}

impl World {
    fn moment(&self, n: usize) -> Moment {
        let boot = self.local(n);
        Moment { boot, raw: boot }
    }

    /// A guardian for a node that has none.
    pub fn spawn_guard(&mut self, n: usize) {
        self.guards += 1;
        let id = self.guards;
        self.nodes[n].guard = Some(Guard {
            id,
            alive: true,
            clock: FenceClock::default(),
            kept: None,
            killing: false,
            pretended: None,
        });
    }

    pub fn arm(&mut self, n: usize, epoch: Epoch, deadline: MonoTime) {
        if self.has(Mutation::NeverArmed) {
            return self.pretend_armed(n, epoch, deadline);
        }
        let now = self.moment(n);
        let t = self.nodes[n].clock.truth(deadline);
        let Some(guard) = self.nodes[n].guard.as_mut() else {
            return;
        };
        match guard.clock.arm(now, epoch, deadline) {
            Ok(_) => {
                let id = guard.id;
                self.nodes[n].armed_last = Some(epoch);
                self.push(t, Ev::Deadline { n, guard: id });
            }
            Err(why) => self.tell(n, Tag::Guard, || format!("not armed: {why}")),
        }
        // Its answer wakes the loop, a refusal too.
        let inc = self.inc(n);
        self.after(MS / 2, Ev::Nudge { n, inc });
    }

    /// The loop is told that the guardian has the deadline, and no clock runs.
    fn pretend_armed(&mut self, n: usize, epoch: Epoch, deadline: MonoTime) {
        if let Some(guard) = self.nodes[n].guard.as_mut() {
            guard.pretended = Some(Armed { epoch, deadline });
        }
        let inc = self.inc(n);
        self.after(MS / 2, Ev::Nudge { n, inc });
    }

    pub fn disarm(&mut self, n: usize, epoch: Epoch, basis: Basis) {
        let alive = self.nodes[n].pg.lives();
        let Some(guard) = self.nodes[n].guard.as_mut() else {
            return;
        };
        if let Err(why) = guard.clock.disarm(epoch, basis, alive) {
            self.tell(n, Tag::Guard, || format!("not disarmed: {why}"));
        }
    }

    pub fn fence(&mut self, n: usize) {
        if let Some(guard) = self.nodes[n].guard.as_mut() {
            guard.clock.fence();
        }
        self.begin_kill(n);
    }

    pub fn deadline(&mut self, n: usize, id: u32) {
        let now = self.moment(n);
        let Some(guard) = self.nodes[n].guard.as_mut().filter(|g| g.id == id) else {
            return;
        };
        if guard.clock.poll(now) == Verdict::Fence {
            self.tell(n, Tag::Guard, || {
                "the deadline has passed, fencing".to_owned()
            });
            self.begin_kill(n);
        }
    }

    fn begin_kill(&mut self, n: usize) {
        let took = self.rng.u64(MS..self.fence_ms() * MS * 2 / 5);
        let absent = self.has(Mutation::GuardianAbsent);
        let Some(guard) = self.nodes[n].guard.as_mut() else {
            return;
        };
        if guard.killing || absent {
            return;
        }
        guard.killing = true;
        let id = guard.id;
        self.after(took, Ev::Fenced { n, guard: id });
    }

    pub fn fenced(&mut self, n: usize, id: u32) {
        if self.nodes[n].guard.as_ref().is_none_or(|g| g.id != id) {
            return;
        }
        self.kill_postgres(n, 0);
        if let Some(guard) = self.nodes[n].guard.as_mut() {
            guard.killing = false;
            guard.clock.emptied();
        }
        self.probe_now(n);
    }

    /// The guardian itself is killed: its witness ends PostgreSQL, the agent starts another one.
    pub fn guard_killed(&mut self, n: usize) {
        // Another one is on its way already for one that is dead.
        let Some(guard) = self.nodes[n].guard.as_mut().filter(|g| g.alive) else {
            return;
        };
        guard.alive = false;
        let again = self.rng.u64(100..400) * MS;
        self.kill_postgres(n, 20 * MS);
        self.after(again, Ev::GuardAgain { n });
        self.probe_now(n);
    }

    pub fn fence_ms(&self) -> T {
        self.config.native.fence_ms
    }
}
