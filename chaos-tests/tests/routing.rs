//! HAProxy's view, all the way through.

use anyhow::{Context, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Fault, Writer, story};

#[test]
fn haproxy_view_is_the_leader_for_writes_and_the_healthy_standbys_for_reads() {
    story("haproxy_view", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        println!("at rest: HAProxy {}", cluster.routed(&first).await?);
        let writer = Writer::through_haproxy(&cluster).await?;

        let second = steps::switchover(&cluster, &writer, &first, None)
            .await?
            .settled;
        println!(
            "after a switchover: HAProxy {}",
            cluster.routed(&second).await?
        );

        let lost = *second.replicas.first().context("a standby")?;
        Fault::LoseNode(lost).inject(&cluster)?;
        let third = cluster.settle(SETTLE_LIMIT).await?;
        println!(
            "without a standby: HAProxy {}",
            cluster.routed(&third).await?
        );
        ensure!(!third.replicas.contains(&lost));

        let (fourth, _) = steps::return_node(&cluster, &writer, lost).await?;
        println!(
            "with it again: HAProxy {}",
            cluster.routed(&fourth.settled).await?
        );

        let before = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        let fifth = steps::lose_leader(&cluster, &writer, &before)
            .await?
            .settled;
        println!(
            "without the leader: HAProxy {}",
            cluster.routed(&fifth).await?
        );
        writer.stop().await;
        Ok(())
    });
}

#[test]
fn health_checks_answer_every_method_and_both_versions_of_http() {
    story("health_checks", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let leader = cluster.member(settled.leader)?;
        let standby = cluster.member(*settled.replicas.first().context("a standby")?)?;
        for (path, of_leader, of_standby) in [
            ("/", 200, 503),
            ("/primary", 200, 503),
            ("/read-write", 200, 503),
            ("/leader", 200, 503),
            ("/replica", 503, 200),
            ("/read-only", 200, 200),
            ("/health", 200, 200),
            ("/asynchronous", 503, 0),
            ("/synchronous", 503, 0),
        ] {
            ensure!(
                leader.check(path).await == Some(of_leader),
                "the leader's {path}"
            );
            let code = standby.check(path).await;
            ensure!(
                of_standby == 0 || code == Some(of_standby),
                "the standby's {path}: {code:?}"
            );
            for method in ["GET", "HEAD"] {
                let limit = std::time::Duration::from_secs(1);
                let answer =
                    chaos_tests::http::request(leader.rest_port, method, path, None, limit);
                ensure!(
                    answer.await?.status == of_leader,
                    "the leader's {method} {path}"
                );
            }
        }
        // These two mean something for GET only.
        for member in cluster.members() {
            for path in ["/liveness", "/readiness"] {
                let limit = std::time::Duration::from_secs(1);
                let answer = chaos_tests::http::get(member.rest_port, path, limit).await?;
                ensure!(answer.status == 200, "{}'s {path}: {answer:?}", member.name);
            }
        }
        Ok(())
    });
}
