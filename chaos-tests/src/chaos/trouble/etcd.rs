//! etcd, and what is in it.

use super::{Held, Scene, etcd_ports};
use crate::cluster::Cluster;
use crate::etcd_api;
use crate::fault::Fault;
use crate::session;
use crate::steps::SETTLE_LIMIT;
use crate::template::SCOPE;
use crate::wait;
use anyhow::{Context, Result};
use nix::sys::signal::Signal;

/// What a person, or a broken program, may leave in a key.
const GARBAGE: &[u8] = b"{\"optime\": -1e400, \xff not json";

/// What is done to etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EtcdFault {
    /// SIGKILL of the one that leads.
    LeaderGone,
    /// SIGSTOP of the one that leads.
    LeaderStopped,
    /// SIGSTOP of all.
    AllStopped,
    /// SIGKILL of two of three.
    QuorumGone,
    /// SIGKILL of all.
    AllGone,
    /// The lease of the leader key is revoked.
    LeaseRevoked,
    /// The leader key is deleted.
    LeaderDeleted,
    /// The record is deleted.
    RecordDeleted,
    /// The record is overwritten with garbage.
    RecordGarbage,
    /// Configuration, status, history and a request are overwritten with garbage.
    KeysGarbage,
    /// The key of the synchronous standbys is overwritten with garbage.
    SyncGarbage,
    /// All revisions but the newest are forgotten.
    Compacted,
    /// One is taken out, loses its disk, and comes back as a new member.
    MemberReplaced,
    /// All lose their disks and begin anew.
    Wiped,
}

impl EtcdFault {
    pub(super) async fn inject(self, scene: &mut Scene<'_>) -> Result<()> {
        let ports = scene.etcd_ports();
        let key = |name: &str| format!("/service/{SCOPE}/{name}");
        match self {
            Self::LeaderGone => signal_leader(scene, Signal::SIGKILL).await,
            Self::LeaderStopped => signal_leader(scene, Signal::SIGSTOP).await,
            Self::AllStopped => Fault::FreezeEtcd.inject(scene.cluster),
            Self::QuorumGone => {
                let two = scene.cluster.etcds().iter().take(2);
                two.into_iter().try_for_each(|e| e.signal(Signal::SIGKILL))
            }
            Self::AllGone => {
                let all = scene.cluster.etcds().iter();
                all.into_iter().try_for_each(|e| e.signal(Signal::SIGKILL))
            }
            Self::LeaseRevoked => etcd_api::revoke_lease_of(&ports, &key("leader")).await,
            Self::LeaderDeleted => etcd_api::delete(&ports, &key("leader")).await,
            Self::RecordDeleted => etcd_api::delete(&ports, &key("record")).await,
            Self::RecordGarbage => {
                scene.held.record_garbled = true;
                etcd_api::put(&ports, &key("record"), GARBAGE).await
            }
            Self::KeysGarbage => {
                // A person puts the configuration right afterwards; the rest the agents write anew.
                let config = etcd_api::get(&ports, &key("config")).await?;
                scene.held.entries.push(config);
                for name in ["config", "status", "history", "failover"] {
                    etcd_api::put(&ports, &key(name), GARBAGE).await?;
                }
                Ok(())
            }
            Self::SyncGarbage => etcd_api::put(&ports, &key("sync"), GARBAGE).await,
            Self::Compacted => etcd_api::compact(&ports).await,
            Self::MemberReplaced => replace(scene, &ports).await,
            Self::Wiped => {
                scene.held.etcd_wiped = true;
                let etcds = scene.cluster.etcds();
                for etcd in etcds {
                    etcd.stop()?;
                }
                for etcd in etcds {
                    etcd.wipe(false)?;
                }
                scene.cluster.start_etcd().await
            }
        }
    }
}

/// What `docs/how-to/troubleshoot.md` asks of the operator: a record that cannot be read is deleted, once no
/// PostgreSQL is a primary any more.
pub(super) async fn heal(cluster: &Cluster, held: &mut Held) -> Result<()> {
    if !std::mem::take(&mut held.record_garbled) {
        return Ok(());
    }
    let (ports, key) = (etcd_ports(cluster), format!("/service/{SCOPE}/record"));
    wait::until(
        "a record that can be read, or no primary",
        SETTLE_LIMIT,
        || async {
            // Another fault, or a member that had not seen the garbage, may have written over it.
            if !etcd_api::get(&ports, &key)
                .await
                .is_ok_and(|entry| entry.value == GARBAGE)
            {
                return Ok(());
            }
            for member in cluster.members() {
                if let Ok(client) = session::client(member.postgres_port).await
                    && session::timeline(&client).await.is_ok()
                {
                    return Err(format!("{} is a primary", member.name));
                }
            }
            etcd_api::delete(&ports, &key)
                .await
                .map_err(|error| format!("{error:#}"))
        },
    )
    .await
}

async fn signal_leader(scene: &Scene<'_>, signal: Signal) -> Result<()> {
    let leader = etcd_api::leader(&scene.etcd_ports()).await?;
    let etcd = scene.cluster.etcds().get(leader);
    etcd.context("an etcd vanished")?.signal(signal)
}

async fn replace(scene: &Scene<'_>, ports: &[u16]) -> Result<()> {
    let [first, others @ ..] = scene.cluster.etcds() else {
        anyhow::bail!("there is no etcd");
    };
    let others: Vec<u16> = others.iter().map(|etcd| etcd.client_port).collect();
    anyhow::ensure!(others.len() + 1 == ports.len(), "an etcd vanished");
    first.stop()?;
    etcd_api::replace_member(&others, &first.name).await?;
    first.wipe(true)?;
    first.start()
}
