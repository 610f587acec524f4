//! Clients: unique commits on every node that takes them, through HAProxy or past it, and what they
//! were told.

use super::clock::MS;
use super::network::{CLIENT, Plane};
use super::postgres::Commit;
use super::world::{Ev, World};

impl World {
    /// One round of all clients.
    pub fn clients(&mut self) {
        if !self.quiet {
            for n in 0..self.nodes.len() {
                let node = &self.nodes[n];
                let reached = self.net.both(Plane::Client, CLIENT, n) && node.powered;
                if node.pg.writable() && reached && node.frozen == 0 {
                    self.write(n);
                }
            }
        }
        for n in 0..self.nodes.len() {
            self.read_recovered(n);
        }
        let wait = self.rng.u64(40..260) * MS;
        self.after(wait, Ev::Client);
    }

    /// One commit: flushed here, then acknowledged by whatever rule PostgreSQL has loaded.
    fn write(&mut self, n: usize) {
        let bytes = self.rng.u64(80..400);
        let disk = &mut self.nodes[n].disk;
        disk.flush += bytes;
        disk.replay = disk.flush;
        let (branch, lsn) = (disk.branch, disk.flush);
        self.branches[branch].end = lsn;
        self.commits.push(Commit {
            branch,
            lsn,
            node: n,
            strict: false,
            acked: false,
        });
        let commit = self.commits.len() - 1;
        self.commit_is_guarded(n);
        if self.nodes[n].pg.defined {
            self.nodes[n].pg.waiters.push((lsn, commit));
        } else {
            self.acknowledge(n, commit);
        }
        self.flushed(n);
    }
}
