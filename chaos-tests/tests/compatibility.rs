//! The released `patronictl`, unmodified, against our cluster.

use anyhow::{Result, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT};
use chaos_tests::{Builder, Writer, checker, story};
use std::path::PathBuf;

/// Where `./deploy/test` puts it.
const VARIABLE: &str = "GARDEN_PATRONICTL_BIN";

fn patronictl() -> Option<PathBuf> {
    let path = std::env::var_os(VARIABLE)
        .map(PathBuf::from)
        .filter(|path| path.is_file());
    if path.is_none() {
        println!("skipped: {VARIABLE} names no patronictl; ./deploy/test installs it from PyPI");
    }
    path
}

#[test]
fn released_patronictl_lists_switches_over_and_shows_the_configuration() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    story("patronictl", async {
        let cluster = Builder::from_environment()?.start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let run = async |args: &[&str]| -> Result<String> {
            let (status, output) = cluster.control(&patronictl, args).await?;
            ensure!(
                status.success(),
                "patronictl {args:?} ended with {status}:\n{output}"
            );
            Ok(output)
        };
        let list = run(&["list"]).await?;
        let leader = format!("node{}", before.leader + 1);
        let is_leader = |line: &str| line.contains(&leader) && line.contains("Leader");
        ensure!(
            list.lines().any(is_leader),
            "{leader} is the leader:\n{list}"
        );
        let streaming = list
            .lines()
            .filter(|line| line.contains("streaming"))
            .count();
        ensure!(streaming == 2, "two standbys stream:\n{list}");
        ensure!(list.contains("Sync Standby"), "one is synchronous:\n{list}");

        let config = run(&["show-config"]).await?;
        for line in [
            "ttl: 30",
            "loop_wait: 10",
            "synchronous_mode: true",
            "use_pg_rewind: true",
        ] {
            ensure!(
                config.contains(line),
                "the configuration has {line}:\n{config}"
            );
        }

        run(&["switchover", "garden", "--force"]).await?;
        let changed = |now: &chaos_tests::Settled| now.leader != before.leader;
        let from = std::time::Instant::now();
        let measured = steps::measure(&cluster, &writer, from, changed).await?;
        let history = run(&["history"]).await?;
        let leader = format!("node{}", measured.settled.leader + 1);
        ensure!(
            history.contains(&leader),
            "the history names {leader}:\n{history}"
        );
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, measured.settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
