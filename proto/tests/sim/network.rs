//! Who reaches whom. Four planes, since faults rarely hit all: agents to etcd, agents to agents,
//! PostgreSQL to PostgreSQL, clients to PostgreSQL. Cuts have a direction, and count, so that
//! overlapping faults heal independently.

use super::clock::{MS, T};

pub const MAX: usize = 7;
/// The place of etcd and of the clients in the matrix.
pub const ETCD: usize = 5;
pub const CLIENT: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    Etcd,
    Agent,
    Pg,
    Client,
}

#[derive(Clone, Debug, Default)]
pub struct Net {
    cut: [[[u8; MAX]; MAX]; 4],
    /// Longest extra delay per plane.
    pub slow: [T; 4],
    /// Chance in percent that an answer of etcd is lost.
    pub lossy: u32,
}

impl Net {
    pub fn cut(&mut self, plane: Plane, from: usize, to: usize) {
        self.cut[plane as usize][from][to] += 1;
    }

    pub fn heal(&mut self, plane: Plane, from: usize, to: usize) {
        let cell = &mut self.cut[plane as usize][from][to];
        *cell = cell.saturating_sub(1);
    }

    pub fn ok(&self, plane: Plane, from: usize, to: usize) -> bool {
        self.cut[plane as usize][from][to] == 0
    }

    pub fn both(&self, plane: Plane, a: usize, b: usize) -> bool {
        self.ok(plane, a, b) && self.ok(plane, b, a)
    }

    pub fn latency(&self, plane: Plane, rng: &mut fastrand::Rng) -> T {
        let base = rng.u64(MS / 5..2 * MS);
        match self.slow[plane as usize] {
            0 => base,
            extra => base + rng.u64(0..extra),
        }
    }
}
