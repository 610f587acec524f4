//! Ending every process of the cluster.
//!
//! Never just the postmaster: its busy backends outlive it and can still commit. A pass stops the
//! postmaster (it can then start nothing new), collects, kills; passes repeat until one finds nobody.

use super::proc::{self, Process};
use rustix::process::Signal;
use std::time::Duration;

/// Pause between two passes: long enough for a killed process to go, short beside the bound F.
pub const PASS_INTERVAL: Duration = Duration::from_millis(2);

/// Room that is made at start, so that a pass does not allocate on a machine with fewer processes.
const ROOM: usize = 8192;

/// Which processes belong to the cluster.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope<'a> {
    /// Servers that work in this directory. `None` leaves such processes alone.
    pub data_dir: Option<&'a [u8]>,
    /// The postmaster, and whatever descends from it.
    pub postmaster: Option<Process>,
    /// Everything that descends from this process, itself not included: the guardian is the parent of
    /// the postmaster and, as subreaper, of all that its death leaves behind.
    pub under: Option<i32>,
    /// Not these, nor their descendants.
    pub spared: &'a [i32],
}

/// What one pass saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Processes of the cluster that could still run code when it began.
    pub alive: u32,
    /// The processes could not be listed; `alive` means nothing.
    pub blind: bool,
}

/// The reusable lists of a pass.
#[derive(Debug)]
pub struct Sweeper {
    list: Vec<Process>,
    member: Vec<bool>,
}

impl Default for Sweeper {
    fn default() -> Self {
        Self {
            list: Vec::with_capacity(ROOM),
            member: Vec::with_capacity(ROOM),
        }
    }
}

impl Sweeper {
    /// Counts the living processes of the cluster.
    pub fn count(&mut self, scope: &Scope<'_>) -> Pass {
        if proc::all(&mut self.list).is_err() {
            return Pass {
                alive: 0,
                blind: true,
            };
        }
        self.mark(scope);
        let alive = self.members().filter(|p| p.is_alive()).count();
        Pass {
            alive: u32::try_from(alive).unwrap_or(u32::MAX),
            blind: false,
        }
    }

    /// What runs in this directory: the postmaster, and whether children of one do. A process whose
    /// parent is a server there too is no postmaster, whatever it looks like.
    pub fn servers(&mut self, data_dir: &[u8]) -> (Option<Process>, bool) {
        let mut found = (None, false);
        if proc::all(&mut self.list).is_err() {
            return found;
        }
        for process in self.list.iter().filter(|p| p.is_alive()) {
            if !proc::is_server_in(process.pid, data_dir) {
                continue;
            }
            match proc::Server::of(process.pid) {
                Some(proc::Server::Postmaster) if !proc::is_server_in(process.parent, data_dir) => {
                    found.0 = Some(*process);
                }
                Some(proc::Server::Postmaster | proc::Server::Child) => found.1 = true,
                Some(proc::Server::Tool) | None => {}
            }
        }
        found
    }

    /// Kills them all, once. Repeat until a pass sees nobody: what was forked between the listing and
    /// the killing is found by the next one.
    pub fn kill(&mut self, scope: &Scope<'_>) -> Pass {
        if let Some(postmaster) = scope.postmaster {
            postmaster.signal(Signal::STOP);
        }
        let pass = self.count(scope);
        let postmaster = scope.postmaster.map_or(0, |p| p.pid);
        for process in self
            .members()
            .filter(|p| p.is_alive() && p.pid != postmaster)
        {
            process.signal(Signal::KILL);
        }
        // Last, so that its children were its children while they were listed.
        if let Some(postmaster) = scope.postmaster {
            postmaster.signal(Signal::KILL);
        }
        pass
    }

    fn members(&self) -> impl Iterator<Item = &Process> {
        self.list
            .iter()
            .zip(&self.member)
            .filter(|(_, member)| **member)
            .map(|(p, _)| p)
    }

    /// Marks the members: first by what they are, then by descent until nothing changes.
    fn mark(&mut self, scope: &Scope<'_>) {
        let Self { list, member } = self;
        list.sort_unstable_by_key(|p| p.pid);
        member.clear();
        member.extend(list.iter().map(|p| {
            let is_postmaster = scope
                .postmaster
                .is_some_and(|m| m.pid == p.pid && m.start == p.start);
            let is_server = || {
                scope
                    .data_dir
                    .is_some_and(|dir| proc::is_server_in(p.pid, dir))
            };
            is_postmaster || (!scope.spared.contains(&p.pid) && p.is_alive() && is_server())
        }));
        let mut changed = true;
        while changed {
            changed = false;
            for i in 0..list.len() {
                let Some(p) = list.get(i) else { break };
                if member.get(i) == Some(&true) || scope.spared.contains(&p.pid) {
                    continue;
                }
                let parent = list.binary_search_by_key(&p.parent, |q| q.pid).ok();
                let of_member = parent.and_then(|at| member.get(at)) == Some(&true);
                if (scope.under == Some(p.parent) || of_member)
                    && let Some(slot) = member.get_mut(i)
                {
                    *slot = true;
                    changed = true;
                }
            }
        }
    }
}

/// Kills until nobody is left, or `limit` has passed. Returns how many were found at first, or `None`
/// when some are left. Blocks; for whoever is not the guardian's loop.
pub fn sweep(scope: &Scope<'_>, limit: Duration) -> Option<u32> {
    let mut sweeper = Sweeper::default();
    let begin = crate::clock::now();
    let mut first = None;
    loop {
        let pass = sweeper.kill(scope);
        let found = *first.get_or_insert(pass.alive);
        if pass.alive == 0 && !pass.blind {
            return Some(found);
        }
        if crate::clock::now().since(begin) >= limit {
            return None;
        }
        std::thread::sleep(PASS_INTERVAL);
    }
}
