//! What PostgreSQL writes to. Each member has a small file system of its own for its data directory
//! ([`crate::disks`]), so that filling or freezing one is felt by nobody else.

use super::{Held, Scene, Who};
use crate::disks;
use anyhow::{Context, Result};
use std::io::Write;

/// What is done to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskFault {
    /// Nothing is left of the primary's.
    Full,
    /// Writes and flushes to the node's disk wait.
    Stalled(Who),
}

/// Name of the file that takes all that is left.
const FILLER: &str = "filler";
/// Written at a time.
const PIECE: usize = 1 << 20;

impl DiskFault {
    pub(super) fn inject(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::Full => {
                let disk = scene
                    .member(Who::Primary)?
                    .disk()
                    .context("no disk of its own")?;
                let file = disk.join(FILLER);
                let mut filler = std::fs::File::create(&file).context("create a filler")?;
                scene.held.files.push(file);
                // Until it is full: that is the error.
                for piece in [PIECE, 4096] {
                    while filler.write_all(&vec![0; piece]).is_ok() {}
                }
                Ok(())
            }
            Self::Stalled(who) => {
                let disk = scene.member(who)?.disk().context("no disk of its own")?;
                disks::freeze(&disk)?;
                scene.held.frozen.push(disk);
                Ok(())
            }
        }
    }
}

pub(super) fn heal(held: &mut Held) -> Result<()> {
    for disk in held.frozen.drain(..) {
        disks::thaw(&disk)?;
    }
    for file in held.files.drain(..) {
        std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
    }
    Ok(())
}
