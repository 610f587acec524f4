//! One HAProxy, with the file that the repository ships (`deploy/haproxy/haproxy.cfg`), and its own
//! view of who is up.

use crate::http;
use crate::ports::Ports;
use crate::process::{Launch, Process};
use anyhow::{Context, Result};
use nix::unistd::User;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// The shipped file; it is part of the harness so that the demo needs no source tree.
const SHIPPED: &str = include_str!("../../deploy/haproxy/haproxy.cfg");
/// Servers that the shipped file names.
const SHIPPED_MEMBERS: u16 = 3;

/// Servers that HAProxy holds to be up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// For writes.
    pub writes: BTreeSet<String>,
    /// For reads.
    pub reads: BTreeSet<String>,
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |set: &BTreeSet<String>| match set.len() {
            0 => "nobody".to_owned(),
            _ => set.iter().cloned().collect::<Vec<_>>().join(" "),
        };
        write!(
            f,
            "writes to {}, reads from {}",
            list(&self.writes),
            list(&self.reads)
        )
    }
}

/// A running HAProxy.
#[derive(Debug)]
pub struct Haproxy {
    statistics: u16,
    config: PathBuf,
    _process: Mutex<Process>,
}

impl Haproxy {
    pub(crate) fn start(
        program: &Path,
        ports: &Ports,
        members: u16,
        dir: &Path,
        user: Option<&User>,
    ) -> Result<Self> {
        let config = dir.join("haproxy.cfg");
        std::fs::write(&config, render(members)).context("write haproxy.cfg")?;
        let address = |port: u16| format!("127.0.0.1:{port}");
        let mut env = BTreeMap::from([
            ("GARDEN_WRITES".to_owned(), address(ports.writes)),
            ("GARDEN_READS".to_owned(), address(ports.reads)),
            ("GARDEN_STATISTICS".to_owned(), address(ports.statistics)),
        ]);
        for index in 0..members {
            let node = format!("GARDEN_NODE{}", index + 1);
            env.insert(format!("{node}_REST"), (ports.rest + index).to_string());
            env.insert(node, crate::ports::address(ports.postgres + index));
        }
        let args = vec!["-db".into(), "-f".into(), config.clone().into_os_string()];
        let log = dir.join("haproxy.log");
        let launch = Launch {
            program,
            args,
            env,
            cwd: dir,
            log: &log,
            user,
            network: None,
        };
        let process = Mutex::new(Process::spawn(&launch).context("start HAProxy")?);
        Ok(Self {
            statistics: ports.statistics,
            config,
            _process: process,
        })
    }

    /// Its configuration file.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Who is up for what, from the statistics.
    ///
    /// # Errors
    /// When the statistics do not answer or lack a column that is needed.
    pub async fn view(&self) -> Result<View> {
        let answer = http::get(self.statistics, "/;csv", Duration::from_secs(2)).await?;
        let mut lines = answer.body.lines();
        let header = lines.next().unwrap_or_default().trim_start_matches("# ");
        let header: Vec<&str> = header.split(',').collect();
        let column = |name: &str| {
            let found = header.iter().position(|column| *column == name);
            found.with_context(|| format!("HAProxy's statistics have no column {name}"))
        };
        let (proxy, server, status) = (column("pxname")?, column("svname")?, column("status")?);
        let mut view = View::default();
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            let field = |index: usize| fields.get(index).copied().unwrap_or_default();
            let up = field(status).starts_with("UP") && !field(server).ends_with("END");
            match field(proxy) {
                "writes" if up => view.writes.insert(field(server).to_owned()),
                "reads" if up => view.reads.insert(field(server).to_owned()),
                _ => false,
            };
        }
        Ok(view)
    }
}

/// The shipped file names three servers; other sizes get as many lines of the same form.
fn render(members: u16) -> String {
    let mut text = String::new();
    for line in SHIPPED.lines() {
        let is_server = line.trim_start().starts_with("server node");
        if !is_server || members == SHIPPED_MEMBERS {
            text.push_str(line);
            text.push('\n');
        } else if line.contains("server node1 ") {
            for index in 1..=members {
                let server = line.replace("node1", &format!("node{index}"));
                text.push_str(&server.replace("NODE1", &format!("NODE{index}")));
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_members_get_five_servers_for_writes_and_for_reads() {
        let text = render(5);
        let servers = text
            .lines()
            .filter(|line| line.trim_start().starts_with("server "))
            .count();
        assert_eq!(servers, 10);
        assert!(
            text.contains(r#"server node5 "${GARDEN_NODE5}" check port "${GARDEN_NODE5_REST}""#)
        );
    }

    #[test]
    fn three_members_get_the_shipped_file_unchanged() {
        assert_eq!(render(3), SHIPPED);
    }
}
