//! Builds a cluster: directories, node files, HAProxy, and the order in which things start.

use crate::binaries::{Binaries, server_account};
use crate::cluster::Cluster;
use crate::disks;
use crate::etcd::Etcd;
use crate::haproxy::Haproxy;
use crate::janitor::Janitor;
use crate::member::{Member, Programs, Software};
use crate::ports::Ports;
use crate::template::{self, Settings};
use anyhow::{Context, Result, bail};
use nix::unistd::{User, chown};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What to build.
#[derive(Clone, Debug)]
pub struct Builder {
    binaries: Binaries,
    members: u16,
    etcds: u16,
    ports: Option<Ports>,
    settings: Settings,
    prefix: String,
    networks: Vec<Arc<File>>,
    patroni: Vec<u16>,
    disks: bool,
}

impl Builder {
    /// Three members, three etcd, synchronous, Patroni's timing.
    pub fn new(binaries: Binaries) -> Self {
        let (settings, prefix) = (Settings::default(), "garden-chaos-".to_owned());
        Self {
            binaries,
            members: 3,
            etcds: 3,
            ports: None,
            settings,
            prefix,
            networks: Vec::new(),
            patroni: Vec::new(),
            disks: false,
        }
    }

    /// The same, with the binaries that the environment names.
    ///
    /// # Errors
    /// When one is not there.
    pub fn from_environment() -> Result<Self> {
        Ok(Self::new(Binaries::find()?))
    }

    /// For stories that wait for leases: the shortest lease that Patroni's rules allow, and cycles that
    /// fit into it.
    pub fn quick(self) -> Self {
        self.configure(|settings| {
            settings.ttl = 20;
            settings.loop_wait = 2;
            settings.retry_timeout = 5;
        })
    }

    /// Number of members.
    pub fn members(mut self, members: u16) -> Self {
        self.members = members;
        self
    }

    /// Number of etcd members.
    pub fn etcds(mut self, etcds: u16) -> Self {
        self.etcds = etcds;
        self
    }

    /// Ports; by default a free block.
    pub fn ports(mut self, ports: Ports) -> Self {
        self.ports = Some(ports);
        self
    }

    /// Changes the settings of the node files.
    pub fn configure(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Lays settings over the file of one node.
    pub fn node(mut self, index: u16, overlay: serde_json::Value) -> Self {
        self.settings.nodes.insert(index, overlay);
        self
    }

    /// Network namespaces of the members, in their order; see [`crate::netns`].
    pub fn networks(mut self, networks: Vec<Arc<File>>) -> Self {
        self.networks = networks;
        self
    }

    /// These members run the released Patroni at first (`binaries.patroni` must be known); any member may
    /// run the other agent later, see [`Member::exchange`].
    pub fn patroni(mut self, members: &[u16]) -> Self {
        self.patroni = members.to_vec();
        self
    }

    /// Gives every data directory a file system of its own; see [`crate::disks`].
    pub fn disks(mut self, disks: bool) -> Self {
        self.disks = disks;
        self
    }

    /// Start of the directory's name.
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// Starts etcd, HAProxy and the members; [`Cluster::settle`] waits for them.
    ///
    /// # Errors
    /// When a port is taken or something cannot be started.
    pub async fn start(self) -> Result<Cluster> {
        let cluster = self.prepare()?;
        cluster.start_etcd().await?;
        for member in cluster.members() {
            member.start()?;
        }
        Ok(cluster)
    }

    /// Everything but etcd and the members, so that a story can start them as it likes.
    ///
    /// # Errors
    /// When a port is taken or something cannot be written.
    pub fn prepare(self) -> Result<Cluster> {
        let ports = self.ports.map_or_else(Ports::free_block, Ok)?;
        if let [first, ..] = ports.taken(self.members, self.etcds).as_slice() {
            bail!("port {} ({}) is in use", first.0, first.1);
        }
        let user = server_account()?;
        let dir = new_directory(&self.prefix)?;
        let janitor = Janitor::start(&dir)?;
        let binaries = self.binaries.staged_into(&dir)?;
        let members = (0..self.members)
            .map(|index| self.member(index, &ports, &dir, &binaries, user.as_ref()))
            .collect::<Result<Vec<_>>>()?;
        let etcds = (0..self.etcds).map(|index| {
            let home = directory(&dir, &format!("etcd{}", index + 1), user.as_ref())?;
            let etcd = binaries.etcd.clone();
            Ok(Etcd::new(
                (index, self.etcds),
                &ports,
                etcd,
                home,
                user.clone(),
            ))
        });
        let etcds = etcds.collect::<Result<Vec<_>>>()?;
        let home = directory(&dir, "haproxy", user.as_ref())?;
        let (program, count) = (&binaries.haproxy, self.members);
        let haproxy = Haproxy::start(program, &ports, count, &home, user.as_ref())?;
        directory(&dir, "ctl", user.as_ref())?;
        let synchronous = self.settings.synchronous_mode.clone();
        Ok(Cluster {
            dir,
            ports,
            binaries,
            members,
            etcds,
            haproxy,
            synchronous,
            janitor: Mutex::new(janitor),
            commands: AtomicU32::new(0),
            kept: false,
        })
    }

    fn member(
        &self,
        index: u16,
        ports: &Ports,
        dir: &Path,
        binaries: &Binaries,
        user: Option<&User>,
    ) -> Result<Member> {
        let name = format!("node{}", index + 1);
        let dir = directory(dir, &name, user)?;
        let config = dir.join("patroni.yml");
        let software = match self.patroni.contains(&index) {
            true => Software::Patroni,
            false => Software::Own,
        };
        let which = (index, self.etcds);
        let mut settings = self.settings.clone();
        if self.disks {
            let disk = directory(&dir, "disk", user)?;
            disks::make(&disk)?;
            give(&disk, user)?;
            let data = serde_json::json!({ "postgresql": { "data_dir": disk.join("data") } });
            template::overlay(&mut settings.local, &data);
        }
        let yaml = template::node_yaml(&settings, ports, which, &dir, &binaries.postgres)?;
        std::fs::write(&config, yaml).with_context(|| format!("write {}", config.display()))?;
        Ok(Member {
            name,
            postgres_port: ports.postgres + index,
            rest_port: ports.rest + index,
            dir,
            config,
            programs: Programs {
                own: binaries.agent.clone(),
                patroni: binaries.patroni.clone(),
            },
            software: Mutex::new(software),
            has_disk: self.disks,
            libraries: binaries.libraries(),
            user: user.cloned(),
            network: self.networks.get(usize::from(index)).cloned(),
            process: Mutex::new(None),
        })
    }
}

/// A directory with a random name, that others may enter but not change.
fn new_directory(prefix: &str) -> Result<PathBuf> {
    let base = std::env::temp_dir();
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) {
        let name: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(8)
            .collect();
        let dir = base.join(format!("{prefix}{name}"));
        match std::fs::create_dir(&dir) {
            Ok(()) => {
                std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
                return Ok(dir);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(error).with_context(|| format!("create {}", dir.display()));
            }
        }
    }
    bail!("no free name in {}", base.display())
}

fn directory(dir: &Path, name: &str, user: Option<&User>) -> Result<PathBuf> {
    let path = dir.join(name);
    let made = std::fs::create_dir(&path);
    made.with_context(|| format!("create {}", path.display()))?;
    give(&path, user)?;
    Ok(path)
}

fn give(path: &Path, user: Option<&User>) -> Result<()> {
    let Some(user) = user else {
        return Ok(());
    };
    chown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("give {} to {}", path.display(), user.name))
}
