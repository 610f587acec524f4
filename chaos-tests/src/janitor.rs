//! Cleans up after a harness that could not.
//!
//! A panic unwinds through the cluster's destructor; a SIGKILL or a Ctrl-C does not. So each cluster
//! has a janitor: a shell in a session of its own that reads a pipe from the harness. When the pipe
//! closes without a word, the harness is gone, and the janitor ends the cluster's processes (found as
//! in [`crate::process`]) and removes its directory.

use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The directory comes through the environment, so that no argument of the janitor names it and it
/// never takes itself for a process of the cluster.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
if read -r word && [ "$word" = keep ]; then exit 0; fi
[ -n "$GARDEN_JANITOR_DIR" ] || exit 1
round=0
while [ "$round" -lt 50 ]; do
  found=0
  for entry in /proc/[0-9]*; do
    pid=${entry#/proc/}
    mine=0
    case "$(readlink "$entry/cwd" 2>/dev/null)" in "$GARDEN_JANITOR_DIR"*) mine=1 ;; esac
    case "$(tr '\0' ' ' 2>/dev/null <"$entry/cmdline")" in *"$GARDEN_JANITOR_DIR/"*) mine=1 ;; esac
    if [ "$mine" = 1 ] && [ -r "$entry/cmdline" ]; then kill -9 "$pid" 2>/dev/null && found=1; fi
  done
  [ "$found" = 0 ] && break
  round=$((round + 1))
  sleep 0.1
done
rm -rf -- "$GARDEN_JANITOR_DIR"
"#;

/// The janitor of one cluster.
#[derive(Debug)]
pub struct Janitor(Option<Child>);

impl Janitor {
    /// Starts it for this directory.
    ///
    /// # Errors
    /// When there is no shell.
    pub fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(SCRIPT)
            .env("GARDEN_JANITOR_DIR", dir)
            .current_dir("/");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: setsid is async-signal-safe and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                Ok(())
            });
        }
        Ok(Self(Some(command.spawn().context("start the janitor")?)))
    }

    /// The cluster has been cleaned up, or stays on purpose: the janitor goes home.
    pub fn dismiss(&mut self) {
        if let Some(mut child) = self.0.take() {
            if let Some(mut pipe) = child.stdin.take() {
                // A janitor that is gone needs no dismissal.
                let _ = pipe.write_all(b"keep\n");
            }
            let _ = child.wait();
        }
    }
}
