//! PostgreSQL: WAL as a tree of branches, streaming connections that acknowledge, synchronous commit as
//! walsenders and the checkpointer really carry it out, promotion, crashes, orphans.

use super::clock::{MS, SEC, T, dur};
use super::mutation::Mutation;
use super::network::Plane;
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::job::Upstream;
use proto::core::observation::{
    ControlData, ControlState, DataDir, Led, LocalPostgres, Process, Receiver, Sql, SqlSample,
    WalSender,
};
use proto::core::sync::{Form, ParsedNames, parse_names};
use proto::ids::{Epoch, SystemId};
use proto::wal::{Lsn, Switch, Timeline, TimelineHistory};
use std::rc::Rc;

/// A stretch of WAL with one writer. A promotion begins a new one; so does, under the same number, a
/// primary that goes on writing where another has already written.
#[derive(Clone, Debug)]
pub struct Branch {
    pub tli: u32,
    pub parent: Option<(usize, u64)>,
    pub end: u64,
    pub writer: usize,
}

#[derive(Clone, Debug)]
pub struct Commit {
    pub branch: usize,
    pub lsn: u64,
    pub node: usize,
    /// A client was told, in synchronous mode, or could read it where only what is safe may be read.
    pub strict: bool,
    pub acked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    Gone,
    Orphans,
    Starting,
    Running,
    Stopping,
}

/// The processes.
#[derive(Clone, Debug)]
pub struct Pg {
    pub life: u32,
    pub run: Run,
    pub in_recovery: bool,
    pub shown: Rc<str>,
    /// The same, taken apart.
    pub parsed: Option<Rc<ParsedNames>>,
    /// `sync_standbys_defined`, which only the checkpointer sets: without it nobody waits.
    pub defined: bool,
    pub names_gen: u32,
    pub upstream: Upstream,
    pub conn: Option<u32>,
    pub waiters: Vec<(u64, usize)>,
    pub silent_until: T,
    /// End of WAL after a crash recovery: visible to readers, acknowledged or not.
    pub recovered: Option<u64>,
    pub promoting: bool,
    /// Since when it has been able to write.
    pub writable_since: Option<T>,
}

impl Pg {
    pub fn new() -> Self {
        Self {
            life: 0,
            run: Run::Gone,
            in_recovery: true,
            shown: "".into(),
            parsed: None,
            defined: false,
            names_gen: 0,
            upstream: Upstream::None,
            conn: None,
            waiters: Vec::new(),
            silent_until: 0,
            recovered: None,
            promoting: false,
            writable_since: None,
        }
    }

    /// A postmaster or a child of one exists.
    pub fn lives(&self) -> bool {
        self.run != Run::Gone
    }

    pub fn writable(&self) -> bool {
        matches!(self.run, Run::Running | Run::Orphans) && !self.in_recovery
    }
}

/// What survives a crash.
#[derive(Clone, Debug)]
pub struct Disk {
    pub dir: DataDir,
    pub system: u64,
    pub branch: usize,
    pub flush: u64,
    pub replay: u64,
    pub state: ControlState,
    pub ckpt: u64,
    pub ckpt_tli: u32,
    pub signal: bool,
    pub max_tli: u32,
    pub promised: Option<Epoch>,
    pub wal_epoch: Epoch,
    pub led: Option<Led>,
}

impl Disk {
    pub fn empty() -> Self {
        Self {
            dir: DataDir::Empty,
            system: 0,
            branch: 0,
            flush: 0,
            replay: 0,
            state: ControlState::Unknown,
            ckpt: 0,
            ckpt_tli: 0,
            signal: false,
            max_tli: 0,
            promised: None,
            wal_epoch: Epoch(0),
            led: None,
        }
    }
}

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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Up,
    Promoted,
    ShutdownRecord,
    Exit,
    OrphansGone,
    Reconnect,
    Checkpoint,
}

const RECORD: u64 = 120;

impl World {
    // --- WAL --------------------------------------------------------------------------------------

    /// Whether a data directory at (`branch`, `flush`) holds this place of the WAL.
    pub fn holds(&self, branch: usize, flush: u64, place: (usize, u64)) -> bool {
        let (mut at, mut upto) = (branch, flush);
        loop {
            if at == place.0 {
                return place.1 <= upto;
            }
            match self.branches[at].parent {
                Some((parent, switch)) => {
                    upto = switch.min(upto);
                    at = parent;
                }
                None => return false,
            }
        }
    }

    pub fn node_holds(&self, n: usize, place: (usize, u64)) -> bool {
        let disk = &self.nodes[n].disk;
        disk.dir == DataDir::Initialised && self.holds(disk.branch, disk.flush, place)
    }

    pub fn history(&self, branch: usize) -> TimelineHistory {
        let mut switches = Vec::new();
        let mut at = branch;
        while let Some((parent, switch)) = self.branches[at].parent {
            if self.branches[parent].tli != self.branches[at].tli {
                switches.push(Switch {
                    parent: Timeline(self.branches[parent].tli),
                    switch: Lsn(switch),
                    reason: "no recovery target specified".into(),
                });
            }
            at = parent;
        }
        switches.reverse();
        TimelineHistory {
            timeline: Timeline(self.branches[branch].tli),
            switches,
        }
    }

    /// Appends a record to the WAL of a primary; returns its end.
    fn append(&mut self, n: usize, bytes: u64) -> u64 {
        let disk = &mut self.nodes[n].disk;
        disk.flush += bytes;
        disk.replay = disk.flush;
        let (branch, flush) = (disk.branch, disk.flush);
        self.branches[branch].end = flush;
        flush
    }

    /// Its own branch to write on: the same, unless somebody has been writing there.
    fn own_branch(&mut self, n: usize) {
        let (branch, flush) = (self.nodes[n].disk.branch, self.nodes[n].disk.flush);
        let b = &self.branches[branch];
        if b.writer == n && b.end == flush {
            return;
        }
        let fork = Branch {
            tli: b.tli,
            parent: Some((branch, flush)),
            end: flush,
            writer: n,
        };
        self.branches.push(fork);
        self.nodes[n].disk.branch = self.branches.len() - 1;
        self.cover("wal-fork");
    }

    // --- processes --------------------------------------------------------------------------------

    pub fn pg_after(&mut self, n: usize, wait: T, step: Step) {
        let life = self.nodes[n].pg.life;
        self.after(wait, Ev::Pg { n, life, step });
    }

    /// Launches the postmaster. `Err` says why the guardian refuses.
    pub fn start_postgres(
        &mut self,
        n: usize,
        standby: bool,
        names: String,
        upstream: Upstream,
    ) -> Result<(), String> {
        let node = &mut self.nodes[n];
        let ready = node
            .guard
            .as_ref()
            .is_some_and(|g| g.alive && !g.clock.is_fencing() && !g.killing);
        if !ready || node.pg.lives() {
            return Err("the guardian refuses".into());
        }
        if node.disk.dir != DataDir::Initialised || node.hidden > 0 {
            return Err(format!("cannot be started: {:?}", node.disk.dir));
        }
        node.disk.signal = standby;
        let pg = &mut node.pg;
        *pg = Pg {
            life: pg.life + 1,
            run: Run::Starting,
            in_recovery: true,
            defined: !names.is_empty(),
            parsed: parse_names(&names).map(Rc::new),
            shown: names.into(),
            upstream,
            ..Pg::new()
        };
        let slow = node.slow_until > self.now;
        let took = self.rng.u64(30..400) * MS + if slow { 6 * SEC } else { 0 };
        self.pg_after(n, took, Step::Up);
        Ok(())
    }

    pub fn pg_step(&mut self, n: usize, life: u32, step: Step) {
        if self.nodes[n].pg.life != life {
            return;
        }
        match step {
            Step::Up => self.up(n),
            Step::Promoted => self.promoted(n),
            Step::ShutdownRecord => self.shutdown_record(n),
            Step::Exit => self.exit_when_sent(n),
            Step::OrphansGone => self.gone(n),
            Step::Reconnect => self.reconnect(n),
            Step::Checkpoint => self.checkpointed(n),
        }
    }

    fn up(&mut self, n: usize) {
        if self.nodes[n].pg.run != Run::Starting {
            return;
        }
        let standby = self.nodes[n].disk.signal;
        let unclean = self.nodes[n].disk.state != ControlState::ShutDown;
        let node = &mut self.nodes[n];
        node.pg.run = Run::Running;
        node.disk.replay = node.disk.flush;
        self.tell(n, Tag::Pg, || {
            format!("up as a {}", if standby { "standby" } else { "primary" })
        });
        if standby {
            self.nodes[n].disk.state = ControlState::InArchiveRecovery;
            self.reconnect(n);
        } else {
            self.own_branch(n);
            let end = self.append(n, RECORD);
            let tli = self.branches[self.nodes[n].disk.branch].tli;
            let node = &mut self.nodes[n];
            node.pg.in_recovery = false;
            node.pg.recovered = unclean.then_some(end);
            node.disk.state = ControlState::InProduction;
            (node.disk.ckpt, node.disk.ckpt_tli) = (end, tli);
            self.became_writable(n, "started as a primary");
            self.flushed(n);
        }
        self.probe_now(n);
    }

    pub fn promote_postgres(&mut self, n: usize, above: u32) {
        let node = &mut self.nodes[n];
        if node.pg.run != Run::Running || !node.pg.in_recovery || node.pg.promoting {
            return;
        }
        node.pg.promoting = true;
        // Files that say which numbers are taken.
        node.disk.max_tli = node.disk.max_tli.max(above);
        let behind = node.disk.replay < node.disk.flush;
        let took = self.rng.u64(20..120) * MS + if behind { SEC } else { 0 };
        self.pg_after(n, took, Step::Promoted);
    }

    fn promoted(&mut self, n: usize) {
        if self.nodes[n].pg.run != Run::Running {
            return;
        }
        self.close_receiver(n);
        let disk = &mut self.nodes[n].disk;
        let tli = disk.max_tli.max(self.branches[disk.branch].tli) + 1;
        self.branches.push(Branch {
            tli,
            parent: Some((disk.branch, disk.flush)),
            end: disk.flush,
            writer: n,
        });
        disk.branch = self.branches.len() - 1;
        disk.max_tli = tli;
        disk.signal = false;
        disk.state = ControlState::InProduction;
        disk.replay = disk.flush;
        self.nodes[n].pg.in_recovery = false;
        self.nodes[n].pg.promoting = false;
        self.append(n, RECORD);
        self.number_is_new(n);
        self.promotions += 1;
        self.became_writable(n, "promoted");
        self.tell(n, Tag::Pg, || format!("promoted, timeline {tli}"));
        self.flushed(n);
        self.pg_after(n, 6 * SEC, Step::Checkpoint);
        self.probe_now(n);
    }

    pub fn checkpointed(&mut self, n: usize) {
        if self.nodes[n].pg.run != Run::Running || self.nodes[n].pg.in_recovery {
            return;
        }
        let end = self.append(n, RECORD);
        let tli = self.branches[self.nodes[n].disk.branch].tli;
        let disk = &mut self.nodes[n].disk;
        (disk.ckpt, disk.ckpt_tli) = (end, tli);
        self.flushed(n);
    }

    /// SIGINT: sessions end without an answer, then the shutdown checkpoint.
    pub fn stop_fast(&mut self, n: usize) {
        let node = &mut self.nodes[n];
        match node.pg.run {
            Run::Running | Run::Starting => {}
            Run::Gone | Run::Orphans | Run::Stopping => return,
        }
        let was_up = node.pg.run == Run::Running;
        node.pg.run = Run::Stopping;
        node.pg.waiters.clear();
        self.no_longer_writable(n);
        let slow = self.nodes[n].slow_until > self.now;
        let took = self.rng.u64(20..200) * MS + if slow { 8 * SEC } else { 0 };
        let step = if was_up {
            Step::ShutdownRecord
        } else {
            Step::OrphansGone
        };
        self.close_receiver(n);
        self.pg_after(n, took, step);
    }

    fn shutdown_record(&mut self, n: usize) {
        if self.nodes[n].pg.run != Run::Stopping {
            return;
        }
        if self.nodes[n].pg.in_recovery {
            self.nodes[n].disk.state = ControlState::ShutDownInRecovery;
            self.gone(n);
            return;
        }
        let end = self.append(n, RECORD);
        let tli = self.branches[self.nodes[n].disk.branch].tli;
        let disk = &mut self.nodes[n].disk;
        disk.state = ControlState::ShutDown;
        (disk.ckpt, disk.ckpt_tli) = (end - RECORD, tli);
        self.flushed(n);
        self.pg_after(n, 5 * MS, Step::Exit);
    }

    /// A primary ends when every connected walsender has sent everything.
    fn exit_when_sent(&mut self, n: usize) {
        if self.nodes[n].pg.run != Run::Stopping {
            return;
        }
        let end = self.nodes[n].disk.flush;
        let waits = self
            .conns
            .values()
            .any(|c| c.primary == n && c.primary_open && c.acked < end);
        if waits {
            self.pg_after(n, 20 * MS, Step::Exit);
        } else {
            self.gone(n);
        }
    }

    /// SIGQUIT or SIGKILL. `orphans`: how long backends outlive their postmaster.
    pub fn kill_postgres(&mut self, n: usize, orphans: T) {
        if !self.nodes[n].pg.lives() {
            return;
        }
        if orphans == 0 {
            self.gone(n);
        } else {
            self.nodes[n].pg.run = Run::Orphans;
            self.tell(n, Tag::Pg, || "the postmaster was killed".to_owned());
            self.pg_after(n, orphans, Step::OrphansGone);
            self.probe_now(n);
        }
    }

    fn gone(&mut self, n: usize) {
        let pg = &mut self.nodes[n].pg;
        pg.run = Run::Gone;
        pg.life += 1;
        pg.waiters.clear();
        pg.promoting = false;
        self.no_longer_writable(n);
        self.tell(n, Tag::Pg, || "no process is left".to_owned());
        let ids: Vec<u32> = self.conns.keys().copied().collect();
        for id in ids {
            self.close_from(id, n);
        }
        self.probe_now(n);
    }

    // --- streaming --------------------------------------------------------------------------------

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

    fn reconnect(&mut self, n: usize) {
        let pg = &self.nodes[n].pg;
        if pg.run != Run::Running || !pg.in_recovery || pg.conn.is_some() || pg.promoting {
            return;
        }
        let Some(source) = Self::upstream_node(&pg.upstream) else {
            return;
        };
        if source < self.nodes.len() && source != n && self.link_ok(n, source) {
            self.connect(n, source);
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

    /// New WAL is on disk here: on to whoever streams from here.
    pub fn flushed(&mut self, n: usize) {
        let ids: Vec<u32> = self
            .conns
            .values()
            .filter(|c| c.primary == n)
            .map(|c| c.id)
            .collect();
        for id in ids {
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
        let ids: Vec<u32> = self
            .conns
            .values()
            .filter(|c| c.primary == n)
            .map(|c| c.id)
            .collect();
        for id in ids {
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

    pub fn close_receiver(&mut self, n: usize) {
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

    fn close_from(&mut self, id: u32, n: usize) {
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

    // --- what a probe sees ------------------------------------------------------------------------

    pub fn look_at_postgres(&mut self, n: usize) -> LocalPostgres {
        let node = &self.nodes[n];
        let conf = self.nodes[n]
            .agent
            .as_ref()
            .map(|a| a.applied.clone())
            .unwrap_or_default();
        let early = self.has(Mutation::ReleaseBeforeEmpty);
        let process = match node.pg.run {
            Run::Gone => Process::Gone,
            Run::Orphans | Run::Stopping if early => Process::Gone,
            Run::Orphans => Process::Orphans,
            Run::Starting | Run::Running | Run::Stopping => Process::Alive {
                pid: i32::try_from(node.pg.life).unwrap_or(1),
            },
        };
        let sql = match node.pg.run {
            Run::Gone | Run::Orphans => Sql::None,
            Run::Stopping if early => Sql::None,
            Run::Starting | Run::Stopping => Sql::Rejecting,
            Run::Running if node.pg.silent_until > self.now => Sql::Silent,
            Run::Running => Sql::Sample(Box::new(self.sample(n))),
        };
        let disk = &node.disk;
        let there = disk.dir == DataDir::Initialised && node.hidden == 0;
        let tli = if there {
            self.branches[disk.branch].tli
        } else {
            0
        };
        let known = tli > 1 && !self.has(Mutation::TimelineNumberOnly);
        LocalPostgres {
            data_dir: match (&disk.dir, node.hidden) {
                (DataDir::Unfinished(_), 0) if self.has(Mutation::UnfinishedHidden) => {
                    DataDir::Initialised
                }
                (dir, 0) => dir.clone(),
                _ => DataDir::Unreadable("permission denied".into()),
            },
            process,
            sql,
            sql_at: node.clock.local(self.now),
            control: there.then(|| self.control(n)),
            signal_file: disk.signal,
            major_version: 15,
            conf,
            history: known.then(|| {
                (
                    self.history(disk.branch),
                    "2026-01-01T00:00:00+00:00".to_owned(),
                )
            }),
            promised: disk.promised,
            wal_epoch: disk.wal_epoch,
            led: disk.led,
        }
    }

    fn control(&self, n: usize) -> ControlData {
        let disk = &self.nodes[n].disk;
        let clean = disk.state == ControlState::ShutDown;
        let standby = matches!(
            disk.state,
            ControlState::InArchiveRecovery | ControlState::ShutDownInRecovery
        );
        let branch = &self.branches[disk.branch];
        // A promotion notes where its timeline begins; the next checkpoint takes the note away.
        let promoted = disk.state == ControlState::InProduction && disk.ckpt_tli != branch.tli;
        let begins = branch.parent.map_or(0, |(_, switch)| switch + RECORD);
        let (min_recovery_end, min_recovery_timeline) = match (standby, promoted) {
            (true, _) => (disk.replay, branch.tli),
            (false, true) => (begins, branch.tli),
            (false, false) => (0, 0),
        };
        ControlData {
            system_id: SystemId(disk.system),
            state: disk.state,
            timeline: Timeline(disk.ckpt_tli),
            checkpoint: Lsn(disk.ckpt),
            redo: Lsn(disk.ckpt),
            checkpoint_end: clean.then_some(Lsn(disk.flush)),
            min_recovery_end: Lsn(min_recovery_end),
            min_recovery_timeline: Timeline(min_recovery_timeline),
            rewindable: true,
        }
    }

    fn sample(&self, n: usize) -> SqlSample {
        let node = &self.nodes[n];
        let (pg, disk) = (&node.pg, &node.disk);
        let tli = Timeline(self.branches[disk.branch].tli);
        let receiver = pg
            .conn
            .and_then(|id| self.conns.get(&id))
            .map(|conn| Receiver {
                status: "streaming".into(),
                sender: Some((self.names[conn.primary].to_string(), 5432)),
                slot: None,
                timeline: Some(tli),
                latest_end_lsn: Lsn(disk.flush),
            });
        let (primary, standby) = if pg.in_recovery {
            (0, disk.flush)
        } else {
            (disk.flush, 0)
        };
        SqlSample {
            in_recovery: pg.in_recovery,
            timeline: Some(tli),
            flush_lsn: Lsn(primary),
            receive_lsn: Lsn(standby),
            replay_lsn: Lsn(if pg.in_recovery { disk.replay } else { 0 }),
            receiver,
            postmaster_start_time: format!("start {}", pg.life),
            server_version: 150_018,
            synchronous_standby_names: pg.shown.to_string(),
            synchronous_commit: "on".into(),
            wal_senders: self.wal_senders(n),
            ..SqlSample::default()
        }
    }

    fn wal_senders(&self, n: usize) -> Vec<WalSender> {
        let names = self.nodes[n].pg.parsed.clone().unwrap_or_default();
        let mut rows: Vec<(usize, WalSender)> = self
            .conns
            .values()
            .filter(|c| c.primary == n && c.primary_open && c.acked > 0)
            .map(|c| {
                let name = &self.names[c.standby];
                let at = names.names.iter().position(|l| name.same_standby(l));
                let unproved = self.has(Mutation::NamesUnproved);
                let flush = Lsn(if unproved {
                    self.nodes[n].disk.flush
                } else {
                    c.acked
                });
                let row = WalSender {
                    pid: i32::try_from(c.id).unwrap_or(0),
                    application_name: name.to_string(),
                    state: "streaming".into(),
                    sync_state: "async".into(),
                    write_lsn: flush,
                    flush_lsn: flush,
                    replay_lsn: flush,
                    ..WalSender::default()
                };
                (at.unwrap_or(usize::MAX), row)
            })
            .collect();
        rows.sort_by_key(|(at, _)| *at);
        for (index, (at, row)) in rows.iter_mut().enumerate() {
            if *at != usize::MAX {
                let first = index < usize::try_from(names.count).unwrap_or(0);
                row.sync_state = match (names.form, first) {
                    (Form::Any, _) => "quorum",
                    (Form::First, true) => "sync",
                    (Form::First, false) => "potential",
                }
                .to_owned();
            }
        }
        rows.into_iter().map(|(_, row)| row).collect()
    }

    pub fn since_writable(&self, n: usize) -> std::time::Duration {
        dur(self.nodes[n]
            .pg
            .writable_since
            .map_or(0, |at| self.now - at))
    }
}
