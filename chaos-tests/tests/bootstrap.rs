//! How a cluster begins.

use anyhow::{Result, ensure};
use chaos_tests::steps::BOOTSTRAP_LIMIT;
use chaos_tests::{Builder, Cluster, story};
use std::collections::BTreeSet;
use std::time::Duration;

/// `xxx` in the caption of the control tool's list and in every data directory.
fn system_identifiers(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let program = cluster.binaries().postgres.join("pg_controldata");
    let mut found = BTreeSet::new();
    for member in cluster.members() {
        let log = cluster
            .dir()
            .join("ctl")
            .join(format!("{}.controldata", member.name));
        let (args, env) = (vec![member.data_dir().into_os_string()], Default::default());
        let cwd = cluster.dir();
        let (program, log) = (program.as_path(), log.as_path());
        let launch = chaos_tests::process::Launch {
            network: None,
            program,
            args,
            env,
            cwd,
            log,
            user: None,
        };
        let (status, text) = chaos_tests::process::run(&launch, Duration::from_secs(10))?;
        ensure!(status.success(), "pg_controldata: {text}");
        let line = text
            .lines()
            .find(|line| line.starts_with("Database system identifier"));
        found.insert(line.unwrap_or_default().to_owned());
    }
    Ok(found)
}

#[test]
fn bootstrap_of_three_ends_with_one_leader_and_two_copies_of_it() {
    story("bootstrap_of_three", async {
        let cluster = Builder::from_environment()?.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        ensure!(settled.timeline == 1, "nobody was promoted: {settled:?}");
        ensure!(
            settled.replicas.len() == 2,
            "both others stream: {settled:?}"
        );
        let identifiers = system_identifiers(&cluster)?;
        ensure!(
            identifiers.len() == 1,
            "one database system, not {identifiers:?}"
        );
        cluster.routed(&settled).await?;
        let list = cluster.ctl_ok(&["list"]).await?;
        for member in cluster.members() {
            ensure!(
                list.contains(&member.name),
                "the list names {}:\n{list}",
                member.name
            );
        }
        Ok(())
    });
}

#[test]
fn agents_that_wait_for_etcd_bootstrap_once_it_is_there() {
    story("agents_before_etcd", async {
        let cluster = Builder::from_environment()?.quick().prepare()?;
        for member in cluster.members() {
            member.start()?;
        }
        tokio::time::sleep(Duration::from_secs(3)).await;
        for member in cluster.members() {
            ensure!(member.agent().is_some(), "{} waits for etcd", member.name);
            ensure!(
                !member.data_dir().join("PG_VERSION").exists(),
                "nothing is created yet"
            );
        }
        cluster.start_etcd().await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        Ok(())
    });
}

#[test]
fn restart_of_every_agent_and_server_keeps_the_cluster() {
    // SIGTERM of all agents is a stop of the whole cluster: the servers end cleanly, and the one that
    // led, or one that has all of its WAL, leads again.
    story("restart_of_everything", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = chaos_tests::Writer::through_haproxy(&cluster).await?;
        let ledger = writer.stop().await;
        for index in before.replicas.iter().chain([&before.leader]) {
            let member = cluster.member(*index)?;
            member.signal_agent(nix::sys::signal::Signal::SIGTERM)?;
            ensure!(
                member.wait_agent(Duration::from_secs(60)),
                "{} stops",
                member.name
            );
            ensure!(
                member.postmaster().is_none(),
                "{} stopped its PostgreSQL",
                member.name
            );
        }
        for member in cluster.members() {
            member.start()?;
        }
        let after = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let verdict = chaos_tests::checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
