//! A network for one cluster: every member on a machine of its own, as far as packets can tell.
//!
//! ```text
//!   namespace of the harness                      namespace of node1
//!   etcd, HAProxy, writers        bridge ──veth── eth0 10.77.0.11, its own iptables
//!   10.77.0.1 ────────────────────┤
//!                                 └──veth── eth0 10.77.0.12 (node2) …
//! ```
//!
//! The harness itself moves into a namespace that nobody else sees, so nothing here touches the
//! machine's own network, and everything is gone with the last process that runs in it: there is
//! nothing to clean up, also after a SIGKILL.

use crate::ports::Ports;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

/// The harness, etcd and HAProxy.
const HUB: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// For `pg_hba`: all machines of the cluster.
pub const SUBNET: &str = "10.77.0.0/24";
/// Name of the bridge.
const BRIDGE: &str = "chaos0";

/// Which packets of a member are lost, in both directions. What is lost vanishes: nothing comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All, by a filter on the member: its address can still be resolved.
    Everything,
    /// All, by taking its link down: the others cannot even resolve its address.
    Link,
    /// Those to and from etcd.
    Etcd,
    /// Those to and from the other members.
    Members,
    /// All that it sends; what is sent to it arrives.
    Outbound,
    /// All that is sent to it; what it sends arrives.
    Inbound,
    /// Those to etcd; etcd's own arrive.
    EtcdOutbound,
    /// Its connections to etcd are refused with a reset.
    EtcdRefused,
    /// Those of clients and of HAProxy's checks; etcd and the other members are reached.
    Clients,
    /// So many of a hundred of all, by chance.
    Loss(u8),
}

impl Cut {
    /// Nothing of the harness reaches the member.
    pub fn hides(self) -> bool {
        use Cut::{Clients, Everything, Inbound, Link, Outbound};
        matches!(self, Everything | Link | Outbound | Inbound | Clients)
    }
}

/// The network of one cluster.
#[derive(Debug)]
pub struct Network {
    members: Vec<Arc<File>>,
    etcd: (u16, u16),
}

impl Network {
    /// Moves this process into a namespace of its own, with loopback. Before any other thread is
    /// started, since those would stay where they are.
    ///
    /// # Errors
    /// When the process may not do that (it is not root).
    pub fn enter() -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace (needs root)")?;
        ip(None, &["link", "set", "lo", "up"])
    }

    /// Builds the bridge and a namespace per member, and says on which machine each port is.
    ///
    /// # Errors
    /// When `ip` (Debian: iproute2) refuses something.
    pub fn build(ports: &Ports, members: u16, etcds: u16) -> Result<Self> {
        ip(None, &["link", "add", BRIDGE, "type", "bridge"])?;
        ip(None, &["addr", "add", &format!("{HUB}/24"), "dev", BRIDGE])?;
        ip(None, &["link", "set", BRIDGE, "up"])?;
        for index in 0..etcds {
            crate::ports::place(ports.etcd + index, HUB);
            crate::ports::place(ports.etcd_peer + index, HUB);
        }
        let mut all = Vec::new();
        for index in 0..members {
            all.push(Arc::new(member(index)?));
            crate::ports::place(ports.postgres + index, address(index));
            crate::ports::place(ports.rest + index, address(index));
        }
        let etcd = (ports.etcd, ports.etcd + etcds.saturating_sub(1));
        Ok(Self { members: all, etcd })
    }

    /// The namespaces, for [`crate::Builder::networks`].
    pub fn namespaces(&self) -> Vec<Arc<File>> {
        self.members.clone()
    }

    /// Loses packets of this member.
    ///
    /// # Errors
    /// When `ip` or `iptables` refuse.
    pub fn cut(&self, member: usize, cut: Cut) -> Result<()> {
        let namespace = self.namespace(member)?;
        if cut == Cut::Link {
            return ip(None, &["link", "set", &outer(member), "down"]);
        }
        let mut rules = String::from("*filter\n");
        for rule in self.rules(member, cut)? {
            rules.push_str(&rule);
            rules.push('\n');
        }
        rules.push_str("COMMIT\n");
        filter(namespace, &rules)
    }

    fn rules(&self, member: usize, cut: Cut) -> Result<Vec<String>> {
        let (first, last) = self.etcd;
        let to_etcd = format!("-A OUTPUT -d {HUB} -p tcp --dport {first}:{last}");
        let from_etcd = format!("-A INPUT -s {HUB} -p tcp --sport {first}:{last}");
        let out = "-A OUTPUT -o eth0 -j DROP".to_owned();
        let into = "-A INPUT -i eth0 -j DROP".to_owned();
        Ok(match cut {
            Cut::Link => Vec::new(),
            Cut::Everything => vec![out, into],
            Cut::Outbound => vec![out],
            Cut::Inbound => vec![into],
            Cut::Etcd => vec![format!("{to_etcd} -j DROP"), format!("{from_etcd} -j DROP")],
            Cut::EtcdOutbound => vec![format!("{to_etcd} -j DROP")],
            Cut::EtcdRefused => vec![format!("{to_etcd} -j REJECT --reject-with tcp-reset")],
            Cut::Clients => vec![
                format!("{from_etcd} -j ACCEPT"),
                format!("-A INPUT -s {HUB} -j DROP"),
            ],
            Cut::Loss(percent) => {
                let probability = f64::from(percent) / 100.0;
                let chance = format!("-m statistic --mode random --probability {probability}");
                vec![
                    format!("-A OUTPUT -o eth0 {chance} -j DROP"),
                    format!("-A INPUT -i eth0 {chance} -j DROP"),
                ]
            }
            Cut::Members => {
                let mut rules = Vec::new();
                for other in (0..self.members.len()).filter(|other| *other != member) {
                    let other = address(u16::try_from(other)?);
                    rules.push(format!("-A OUTPUT -d {other} -j DROP"));
                    rules.push(format!("-A INPUT -s {other} -j DROP"));
                }
                rules
            }
        })
    }

    /// Two members do not reach each other.
    ///
    /// # Errors
    /// When `iptables` refuses.
    pub fn part(&self, one: usize, other: usize) -> Result<()> {
        let far = address(u16::try_from(other)?);
        let rules =
            format!("*filter\n-A OUTPUT -d {far} -j DROP\n-A INPUT -s {far} -j DROP\nCOMMIT\n");
        filter(self.namespace(one)?, &rules)
    }

    /// All packets of all members arrive again.
    ///
    /// # Errors
    /// When `ip` or `iptables` refuse.
    pub fn heal(&self) -> Result<()> {
        for (index, namespace) in self.members.iter().enumerate() {
            filter(namespace, "*filter\n-F INPUT\n-F OUTPUT\nCOMMIT\n")?;
            ip(None, &["link", "set", &outer(index), "up"])?;
        }
        Ok(())
    }

    fn namespace(&self, member: usize) -> Result<&File> {
        let found = self.members.get(member);
        found
            .map(AsRef::as_ref)
            .with_context(|| format!("there is no node{}", member + 1))
    }
}

/// Address of a member.
fn address(index: u16) -> Ipv4Addr {
    let [a, b, c, _] = HUB.octets();
    Ipv4Addr::new(a, b, c, 11 + u8::try_from(index).unwrap_or(u8::MAX - 11))
}

/// The bridge's end of a member's cable.
fn outer(index: usize) -> String {
    format!("chaos{}", index + 1)
}

/// A namespace with a cable to the bridge. It has no name; it lives as long as its descriptor or a
/// process in it.
fn member(index: u16) -> Result<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        File::open("/proc/thread-self/ns/net").context("open the network namespace")
    });
    let Ok(namespace) = made.join() else {
        bail!("the thread that makes a network namespace panicked");
    };
    let namespace = namespace?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
    let cable = outer(usize::from(index));
    let peer = ["peer", "name", "eth0", "netns", &path];
    let add = ["link", "add", &cable, "type", "veth"];
    ip(None, &[&add[..], &peer[..]].concat())?;
    ip(None, &["link", "set", &cable, "master", BRIDGE, "up"])?;
    let inside = Some(namespace.as_fd());
    ip(inside, &["link", "set", "lo", "up"])?;
    ip(
        inside,
        &[
            "addr",
            "add",
            &format!("{}/24", address(index)),
            "dev",
            "eth0",
        ],
    )?;
    ip(inside, &["link", "set", "eth0", "up"])?;
    Ok(namespace)
}

fn ip(namespace: Option<BorrowedFd>, args: &[&str]) -> Result<()> {
    let mut command = Command::new("ip");
    command.args(args);
    run(command, namespace, "")
}

fn filter(namespace: &File, rules: &str) -> Result<()> {
    let mut command = Command::new("iptables-restore");
    command.arg("--noflush");
    run(command, Some(namespace.as_fd()), rules)
}

/// Runs a tool, in a namespace if one is given.
fn run(mut command: Command, namespace: Option<BorrowedFd>, input: &str) -> Result<()> {
    if let Some(namespace) = namespace {
        let namespace = namespace.as_raw_fd();
        // SAFETY: setns is a system call, safe between fork and exec; the descriptor is borrowed for
        // the time of this function, and the child is spawned within it.
        unsafe {
            command.pre_exec(move || {
                setns(BorrowedFd::borrow_raw(namespace), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
    }
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    crate::process::tool(command, input).map(|_| ())
}
