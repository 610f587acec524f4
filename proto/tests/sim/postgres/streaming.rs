//! Streaming: connections whose ends notice by themselves that the other is gone, the acknowledgements that come
//! through them, and the names that decide whom a commit waits for, as walsenders and the checkpointer carry it out.

use super::super::clock::{MS, T};
use super::super::network::Plane;
use super::super::world::{Ev, World};
use super::{Run, Step};
use proto::core::job::Upstream;
use proto::core::sync::{Form, ParsedNames, parse_names};
use std::rc::Rc;

/// A walsender and its walreceiver; each end notices by itself that the other is gone.
#[derive(Clone, Debug)]
pub struct Conn {
    pub id: u32,
    pub standby: usize,
    pub primary: usize,
    pub standby_open: bool,
    pub primary_open: bool,
    /// The names as this walsender has read them; `None` for none.
    pub names: Option<Rc<ParsedNames>>,
    pub acked: u64,
    pub broken_since: Option<T>,
    /// WAL has come through it; what comes after is no older.
    pub heard: bool,
}

/// One in so many attempts to reach somebody who is away gets its first packet through, or is not told when that
/// end is gone, and waits.
const HANGS: u8 = 16;

impl World {
    pub fn upstream_node(upstream: &Upstream) -> Option<usize> {
        match upstream {
            Upstream::Member { name, .. } => name.as_str().get(1..)?.parse().ok(),
            Upstream::Remote { .. } | Upstream::None => None,
        }
    }

    /// Packets pass, and both ends run.
    fn link_ok(&self, a: usize, b: usize) -> bool {
        let up = |n: usize| self.nodes[n].powered && self.nodes[n].frozen == 0;
        up(a) && up(b) && self.net.both(Plane::Pg, a, b)
    }

    pub(super) fn reconnect(&mut self, n: usize) {
        let pg = &self.nodes[n].pg;
        let connects = pg.conn.is_some() || pg.hanging.is_some();
        if pg.run != Run::Running || !pg.in_recovery || connects || pg.promoting {
            return;
        }
        let Some(source) = Self::upstream_node(&pg.upstream) else {
            return;
        };
        if source < self.nodes.len() && source != n && self.link_ok(n, source) {
            self.connect(n, source);
        } else if self.rng.u8(0..HANGS) == 0 {
            self.nodes[n].pg.hanging = Some(self.now);
            self.cover("receiver-hangs");
            return;
        }
        if self.nodes[n].pg.conn.is_none() {
            let wait = self.rng.u64(150..350) * MS;
            self.pg_after(n, wait, Step::Reconnect);
        }
    }

    fn connect(&mut self, n: usize, source: usize) {
        if self.nodes[source].pg.run != Run::Running
            || self.nodes[source].disk.system != self.nodes[n].disk.system
        {
            return;
        }
        let theirs = (
            self.nodes[source].disk.branch,
            self.nodes[source].disk.flush,
        );
        let mine = &self.nodes[n].disk;
        let (branch, replay) = (mine.branch, mine.replay);
        let same_number = self.branches[branch].tli == self.branches[theirs.0].tli;
        if !self.holds(theirs.0, theirs.1, (branch, replay)) {
            if same_number && branch != theirs.0 && replay <= theirs.1 {
                self.cover("same-number-refused");
            }
            // Where both parted from the rest at the same place, nothing can tell them apart.
            let twin = self.of_number(theirs.0, self.branches[branch].tli);
            let alike =
                twin.is_some_and(|t| t != branch && self.history(branch) == self.history(t));
            self.checks.twins |= alike && !self.checks.by_hand.is_empty();
            self.says_more_than_is_there(n, source);
            return;
        }
        // WAL that was received beyond the place where the timelines part is written over.
        let id = self.walsender(n, source, 0);
        self.nodes[n].pg.conn = Some(id);
        self.send_wal(id);
    }

    /// A walsender for this standby, that has been told this much.
    fn walsender(&mut self, standby: usize, primary: usize, acked: u64) -> u32 {
        self.conn_ids += 1;
        let id = self.conn_ids;
        let names = self.nodes[primary].pg.parsed.clone();
        self.conns.insert(
            id,
            Conn {
                id,
                standby,
                primary,
                standby_open: true,
                primary_open: true,
                names,
                acked,
                broken_since: None,
                heard: false,
            },
        );
        id
    }

    /// The branch of this number that this one is, or comes from.
    fn of_number(&self, branch: usize, tli: u32) -> Option<usize> {
        let mut at = branch;
        while self.branches[at].tli != tli {
            (at, _) = self.branches[at].parent?;
        }
        Some(at)
    }

    /// The first report of a WAL receiver is how far it has replayed, on whatever timeline; its source takes that for
    /// flushed until it has found that there is nothing to stream (`agent/tests/postgres_jobs.rs`).
    fn says_more_than_is_there(&mut self, n: usize, source: usize) {
        let Some(names) = &self.nodes[source].pg.parsed else {
            return;
        };
        let name = &self.names[n];
        let listed = |listed: &String| name.same_standby(listed) || listed == "*";
        if !self.nodes[source].pg.writable() || !names.names.iter().any(listed) {
            return;
        }
        let id = self.walsender(n, source, self.nodes[n].disk.replay);
        let before = self.checks.strict_acks;
        self.release(id);
        self.conns.remove(&id);
        if self.checks.strict_acks > before && !self.checks.twins {
            let (standby, primary) = (&self.names[n], &self.names[source]);
            self.fail(format!(
                "S3: {standby}, which has diverged, let a commit of {primary} return"
            ));
        }
    }

    fn send_wal(&mut self, id: u32) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (from, to) = (conn.primary, conn.standby);
        if !conn.primary_open || !self.link_ok(from, to) {
            return;
        }
        let disk = &self.nodes[from].disk;
        // Cascading: a standby hands on what it has received.
        let (branch, lsn) = (disk.branch, disk.flush);
        let wait = self.net.latency(Plane::Pg, &mut self.rng);
        self.after(wait, Ev::Wal { id, branch, lsn });
    }

    fn streaming_from(&self, n: usize) -> Vec<u32> {
        let from = self.conns.values().filter(|c| c.primary == n);
        from.map(|c| c.id).collect()
    }

    /// New WAL is on disk here: on to whoever streams from here.
    pub fn flushed(&mut self, n: usize) {
        for id in self.streaming_from(n) {
            self.send_wal(id);
        }
    }

    pub fn wal_arrived(&mut self, id: u32, branch: usize, lsn: u64) {
        let Some(conn) = self.conns.get(&id).filter(|c| c.standby_open) else {
            return;
        };
        let n = conn.standby;
        let first = !conn.heard;
        let lag = self.nodes[n].replay_lag;
        let tli = self.branches[branch].tli;
        let disk = &mut self.nodes[n].disk;
        if (disk.branch, disk.flush) != (branch, lsn) {
            if branch == disk.branch && lsn < disk.flush && disk.replay <= lsn {
                // Backwards only where it begins to stream: what it had beyond is written over.
                if first {
                    disk.flush = lsn;
                }
            } else if branch > disk.branch || branch == disk.branch && lsn > disk.flush {
                // Nor to an earlier branch: messages of one connection do not overtake each other.
                (disk.branch, disk.flush) = (branch, lsn);
            }
            disk.max_tli = disk.max_tli.max(tli);
            if lag == 0 {
                disk.replay = disk.flush;
            }
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.heard = true;
        }
        let wait = self.rng.u64(MS / 5..3 * MS) + self.net.latency(Plane::Pg, &mut self.rng);
        let lsn = self.nodes[n].disk.flush;
        self.after(wait, Ev::Ack { id, lsn });
        self.flushed(n);
    }

    pub fn acked(&mut self, id: u32, lsn: u64) {
        let Some(conn) = self.conns.get_mut(&id).filter(|c| c.primary_open) else {
            return;
        };
        let (a, b) = (conn.primary, conn.standby);
        if !self.link_ok(a, b) {
            return;
        }
        let conn = self.conns.get_mut(&id).unwrap();
        conn.acked = conn.acked.max(lsn);
        self.release(id);
    }

    /// Which standbys a commit waits for, and how far they are: `None` when there are not enough. One that has come
    /// back before its old walsender has noticed counts once: its slot admits only one of them.
    fn released_to(&self, primary: usize, names: &ParsedNames) -> Option<u64> {
        let count = usize::try_from(names.count).unwrap_or(0);
        // Whose, at which place, how far.
        let mut found: Vec<(usize, usize, u64)> = Vec::new();
        let open = |c: &&Conn| c.primary == primary && c.primary_open;
        for conn in self.conns.values().filter(open) {
            let name = &self.names[conn.standby];
            let listed = |listed: &String| name.same_standby(listed) || listed == "*";
            let Some(at) = names.names.iter().position(listed) else {
                continue;
            };
            match found.iter_mut().find(|(of, ..)| *of == conn.standby) {
                Some((.., acked)) => *acked = conn.acked.max(*acked),
                None => found.push((conn.standby, at, conn.acked)),
            }
        }
        if count == 0 || found.len() < count {
            return None;
        }
        match names.form {
            Form::First => {
                found.sort_by_key(|(_, at, _)| *at);
                found.iter().take(count).map(|(.., lsn)| *lsn).min()
            }
            Form::Any => {
                found.sort_by_key(|(.., lsn)| std::cmp::Reverse(*lsn));
                found.get(count - 1).map(|(.., lsn)| *lsn)
            }
        }
    }

    /// A walsender releases waiters by the names as it has read them, if it is among them.
    fn release(&mut self, id: u32) {
        let conn = &self.conns[&id];
        let (primary, standby) = (conn.primary, conn.standby);
        if self.nodes[primary].pg.waiters.is_empty() {
            return;
        }
        let Some(names) = conn.names.clone() else {
            return;
        };
        let listed = |n: &String| self.names[standby].same_standby(n) || n == "*";
        if !names.names.iter().any(listed) {
            return;
        }
        if let Some(upto) = self.released_to(primary, &names) {
            self.wake_waiters(primary, upto);
        }
    }

    fn wake_waiters(&mut self, n: usize, upto: u64) {
        let waiters = std::mem::take(&mut self.nodes[n].pg.waiters);
        let (done, left): (Vec<_>, Vec<_>) = waiters.into_iter().partition(|(lsn, _)| *lsn <= upto);
        self.nodes[n].pg.waiters = left;
        for (_, commit) in done {
            self.acknowledge(n, commit);
        }
    }

    // --- configuration ----------------------------------------------------------------------------

    /// SIGHUP has been seen by the postmaster; its children follow one by one.
    pub fn load_names(&mut self, n: usize, names: &str) {
        if *self.nodes[n].pg.shown == *names || !self.nodes[n].pg.lives() {
            return;
        }
        let names: Rc<str> = names.into();
        let pg = &mut self.nodes[n].pg;
        pg.parsed = parse_names(&names).map(Rc::new);
        pg.shown = names;
        pg.names_gen += 1;
        let (life, names_gen) = (pg.life, pg.names_gen);
        let slow = self.nodes[n].slow_reload_until > self.now;
        let limit = if slow { 1_500 * MS } else { 25 * MS };
        for id in self.streaming_from(n) {
            let wait = self.rng.u64(0..limit);
            self.after(wait, Ev::NamesSeen { id, names_gen });
        }
        let wait = self.rng.u64(0..limit);
        self.after(wait, Ev::Defined { n, life, names_gen });
    }

    pub fn names_seen(&mut self, id: u32, names_gen: u32) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        // Whoever reads the file late reads what it says then.
        let pg = &self.nodes[conn.primary].pg;
        if pg.names_gen == names_gen {
            conn.names = pg.parsed.clone();
            self.release(id);
        }
    }

    pub fn names_defined(&mut self, n: usize, life: u32, names_gen: u32) {
        let pg = &mut self.nodes[n].pg;
        if pg.life != life || pg.names_gen != names_gen {
            return;
        }
        pg.defined = !pg.shown.is_empty();
        if !pg.defined {
            self.wake_waiters(n, u64::MAX);
        }
    }

    pub fn load_upstream(&mut self, n: usize, upstream: &Upstream) {
        if self.nodes[n].pg.upstream == *upstream {
            return;
        }
        self.nodes[n].pg.upstream = upstream.clone();
        self.close_receiver(n);
        self.pg_after(n, 10 * MS, Step::Reconnect);
    }

    // --- broken connections -----------------------------------------------------------------------

    /// The WAL receiver is ended if it has been connecting for so long; another one is started.
    pub fn end_receiver(&mut self, n: usize, limit: T) {
        let pg = &mut self.nodes[n].pg;
        if pg.hanging.is_some_and(|since| self.now - since >= limit) {
            pg.hanging = None;
            self.cover("receiver-ended");
            self.pg_after(n, 10 * MS, Step::Reconnect);
        }
    }

    pub fn close_receiver(&mut self, n: usize) {
        self.nodes[n].pg.hanging = None;
        if let Some(id) = self.nodes[n].pg.conn.take() {
            self.close_end(id, n);
        }
    }

    /// The process at one end is gone; the other end learns of it when packets pass.
    fn close_end(&mut self, id: u32, n: usize) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (standby, primary) = (conn.standby, conn.primary);
        let told = self.link_ok(standby, primary);
        if n == standby || told {
            self.standby_end_closed(id);
        }
        if n == primary || told {
            self.conns
                .get_mut(&id)
                .into_iter()
                .for_each(|c| c.primary_open = false);
        }
        let over = self
            .conns
            .get(&id)
            .is_some_and(|c| !c.primary_open && !c.standby_open);
        if over {
            self.conns.remove(&id);
        }
    }

    pub(super) fn close_from(&mut self, id: u32, n: usize) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        if conn.standby == n {
            self.nodes[n].pg.conn = None;
        }
        if conn.standby == n || conn.primary == n {
            self.close_end(id, n);
        }
    }

    fn standby_end_closed(&mut self, id: u32) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        let n = conn.standby;
        conn.standby_open = false;
        if self.nodes[n].pg.conn == Some(id) {
            self.nodes[n].pg.conn = None;
            let wait = self.rng.u64(20..150) * MS;
            self.pg_after(n, wait, Step::Reconnect);
        }
    }

    /// After any change of the network or of a node: connections that came back go on, others run
    /// into their timeouts.
    pub fn relink(&mut self) {
        let ids: Vec<u32> = self.conns.keys().copied().collect();
        for id in ids {
            let Some(conn) = self.conns.get(&id).cloned() else {
                continue;
            };
            let ok = self.link_ok(conn.standby, conn.primary);
            match (ok, conn.broken_since) {
                (true, Some(_)) => {
                    self.conns.get_mut(&id).unwrap().broken_since = None;
                    if conn.primary_open && conn.standby_open {
                        self.send_wal(id);
                    } else {
                        let closed = if conn.primary_open {
                            conn.standby
                        } else {
                            conn.primary
                        };
                        self.close_end(id, closed);
                    }
                }
                (false, None) => {
                    self.conns.get_mut(&id).unwrap().broken_since = Some(self.now);
                    let (a, b) = (
                        self.rng.u64(1_500..5_000) * MS,
                        self.rng.u64(1_500..5_000) * MS,
                    );
                    let since = self.now;
                    self.after(
                        a,
                        Ev::ConnTimeout {
                            id,
                            since,
                            standby: true,
                        },
                    );
                    self.after(
                        b,
                        Ev::ConnTimeout {
                            id,
                            since,
                            standby: false,
                        },
                    );
                }
                (true, None) | (false, Some(_)) => {}
            }
        }
    }

    pub fn conn_timeout(&mut self, id: u32, since: T, standby: bool) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        if conn.broken_since != Some(since) {
            return;
        }
        let n = if standby { conn.standby } else { conn.primary };
        self.close_end(id, n);
    }
}
