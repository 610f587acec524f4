//! Which ports a cluster uses.

use anyhow::Result;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Mutex, PoisonError};

/// Variable that moves the blocks of tests elsewhere.
pub const PORTS_VARIABLE: &str = "GARDEN_TEST_PORTS";
/// First port of the blocks of tests; below the range from which Linux gives out client ports.
const FIRST_BLOCK: u16 = 26_000;
/// Ports per block: three for HAProxy, and at most nine members and nine etcd.
const BLOCK: u16 = 100;
/// Blocks to try.
const BLOCKS: u16 = 9;

/// The ports of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// HAProxy: writes.
    pub writes: u16,
    /// HAProxy: reads.
    pub reads: u16,
    /// HAProxy: statistics.
    pub statistics: u16,
    /// PostgreSQL of the first member; the others follow.
    pub postgres: u16,
    /// REST of the first member.
    pub rest: u16,
    /// Clients of the first etcd.
    pub etcd: u16,
    /// Peers of the first etcd.
    pub etcd_peer: u16,
}

impl Ports {
    /// The fixed ports of the demo, as the README names them.
    pub const DEMO: Self = Self {
        writes: 5000,
        reads: 5001,
        statistics: 7000,
        postgres: 15_431,
        rest: 18_001,
        etcd: 12_371,
        etcd_peer: 12_381,
    };

    /// A block of ports that begins at `base`.
    pub fn block(base: u16) -> Self {
        Self {
            writes: base,
            reads: base + 1,
            statistics: base + 2,
            postgres: base + 11,
            rest: base + 21,
            etcd: base + 31,
            etcd_peer: base + 41,
        }
    }

    /// A block that is free right now.
    ///
    /// # Errors
    /// When none of the blocks from `GARDEN_TEST_PORTS` (default 26000) is.
    pub fn free_block() -> Result<Self> {
        Ok(Self::free_blocks::<1>()?[0])
    }

    /// So many blocks that are free right now.
    ///
    /// # Errors
    /// When there are not so many from `GARDEN_TEST_PORTS` (default 26000) on.
    pub fn free_blocks<const N: usize>() -> Result<[Self; N]> {
        let first = std::env::var(PORTS_VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok());
        let first = first.unwrap_or(FIRST_BLOCK);
        // Starting elsewhere each time keeps away from sockets of the last cluster that linger.
        let start = u16::try_from(std::process::id() % u32::from(BLOCKS)).unwrap_or(0);
        let blocks = (0..BLOCKS).map(|step| Self::block(first + (start + step) % BLOCKS * BLOCK));
        let free: Vec<Self> = blocks
            .filter(|ports| ports.taken(3, 3).is_empty())
            .take(N)
            .collect();
        free.try_into().map_err(|_| {
            anyhow::anyhow!(
                "no {N} free blocks of ports from {first}; set {PORTS_VARIABLE} to another start"
            )
        })
    }

    /// All ports of a cluster of this size, with their users.
    pub fn all(&self, members: u16, etcds: u16) -> Vec<(u16, String)> {
        let mut all = vec![
            (self.writes, "HAProxy, writes".to_owned()),
            (self.reads, "HAProxy, reads".to_owned()),
            (self.statistics, "HAProxy, statistics".to_owned()),
        ];
        for index in 0..members {
            all.push((
                self.postgres + index,
                format!("PostgreSQL of node{}", index + 1),
            ));
            all.push((self.rest + index, format!("REST of node{}", index + 1)));
        }
        for index in 0..etcds {
            all.push((self.etcd + index, format!("etcd{}, clients", index + 1)));
            all.push((self.etcd_peer + index, format!("etcd{}, peers", index + 1)));
        }
        all
    }

    /// Those that somebody already uses.
    pub fn taken(&self, members: u16, etcds: u16) -> Vec<(u16, String)> {
        let all = self.all(members, etcds).into_iter();
        all.filter(|(port, _)| TcpListener::bind(("127.0.0.1", *port)).is_err())
            .collect()
    }
}

/// The loopback address with this port.
pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Ports that are on a machine of their own.
static PLACES: Mutex<BTreeMap<u16, Ipv4Addr>> = Mutex::new(BTreeMap::new());

/// Says on which address a port of the cluster listens. Every port of a cluster is used once, so a port
/// names its machine, and the rest of the harness need not know whether there are any.
pub fn place(port: u16, host: Ipv4Addr) {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    places.insert(port, host);
}

/// The address on which this port listens: loopback, unless [`place`] said otherwise.
pub fn host(port: u16) -> Ipv4Addr {
    let places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    places.get(&port).copied().unwrap_or(Ipv4Addr::LOCALHOST)
}

/// Host and port, as configuration files want it.
pub fn address(port: u16) -> String {
    format!("{}:{port}", host(port))
}
