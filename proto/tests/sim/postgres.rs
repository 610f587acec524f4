//! PostgreSQL: WAL as a tree of branches, processes, promotion, crashes, orphans.

mod look;
mod streaming;

use super::clock::{MS, SEC, T};
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::job::Upstream;
use proto::core::observation::{ControlState, DataDir, Led};
use proto::core::sync::{ParsedNames, parse_names};
use proto::ids::Epoch;
use proto::wal::{Lsn, Switch, Timeline, TimelineHistory};
use std::rc::Rc;
pub use streaming::Conn;

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
    /// Since when its WAL receiver has been connecting to somebody who will never answer.
    pub hanging: Option<T>,
    pub waiters: Vec<(u64, usize)>,
    pub silent_until: T,
    /// End of WAL after a crash recovery: visible to readers, acknowledged or not.
    pub recovered: Option<u64>,
    pub promoting: bool,
    /// It is somebody who promotes it, and not its agent.
    pub by_hand: bool,
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
            hanging: None,
            waiters: Vec::new(),
            silent_until: 0,
            recovered: None,
            promoting: false,
            by_hand: false,
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
        if std::mem::take(&mut self.nodes[n].pg.by_hand) {
            self.checks.hand_made.insert(self.branches.len() - 1);
        }
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
}
