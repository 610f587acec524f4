//! Packets that do not arrive.

use super::{Scene, Who};
use crate::netns::Cut;
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// A link that comes and goes does so this often, for a random time up to this.
const FLAPS: (u32, Duration) = (6, Duration::from_millis(2500));

/// What is done to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketFault {
    /// Packets of a node are lost.
    Cut(Who, Cut),
    /// Packets of all nodes are lost by chance, so many of a hundred.
    LossEverywhere(u8),
    /// The primary's node is cut off and comes back, again and again.
    Flapping,
    /// The standbys do not reach each other, and reach the primary.
    StandbysApart,
}

impl PacketFault {
    pub(super) async fn inject(self, scene: &Scene<'_>) -> Result<()> {
        let network = scene.network;
        let network = network.context("the nodes have no network of their own")?;
        match self {
            Self::Cut(who, cut) => {
                let index = match who {
                    Who::Primary => scene.now.leader,
                    Who::Standby => scene.standby()?,
                };
                network.cut(index, cut)?;
                let hidden = scene.member(who)?.check("/liveness").await.is_none();
                // Loss lets a question through now and then.
                let bites = hidden == cut.hides() || matches!(cut, Cut::Loss(_));
                ensure!(bites, "the cut did not bite");
                Ok(())
            }
            Self::LossEverywhere(percent) => {
                let all = 0..scene.cluster.members().len();
                all.into_iter()
                    .try_for_each(|index| network.cut(index, Cut::Loss(percent)))
            }
            Self::Flapping => {
                let (times, longest) = FLAPS;
                for _ in 0..times {
                    network.cut(scene.now.leader, Cut::Everything)?;
                    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
                    network.heal()?;
                    tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
                }
                Ok(())
            }
            Self::StandbysApart => {
                let [one, other] = scene.now.replicas.as_slice() else {
                    anyhow::bail!("there are not two standbys");
                };
                network.part(*one, *other)
            }
        }
    }
}
