//! The jobs of the PostgreSQL driver against PostgreSQL 15, with a guardian of its own for each member.

#[path = "common/postgres.rs"]
mod postgres;

use garden_agent::postgres::pgdata::{self, DurableState, FoundState};
use garden_agent::postgres::{PgEvent, connect, lineage};
use postgres::{Node, TIMEOUT, as_postgres, clone_of, primary, sql_of};
use proto::core::decision::WantedConf;
use proto::core::job::{Failure, Job, JobEnd, StopMode, StopReason, Upstream};
use proto::core::observation::{DataDir, LocalPostgres, Process, Task, TaskResult};
use proto::core::rewind::{self, Divergence};
use proto::ids::{Epoch, SystemId};
use proto::wal::{Lsn, Timeline};
use std::path::Path;
use std::time::{Duration, Instant};

fn stop(mode: StopMode) -> Job {
    Job::Stop {
        mode,
        checkpoint_first: true,
        timeout: Some(TIMEOUT),
        why: StopReason::Shutdown,
    }
}

fn standby_of(source: &Node) -> Job {
    Job::StartStandby {
        follow: source.upstream(),
        timeout: TIMEOUT,
    }
}

fn why(end: &JobEnd) -> String {
    match end {
        JobEnd::Failed(
            Failure::PrePromote(why)
            | Failure::SourceUnavailable(why)
            | Failure::HalfDone(why)
            | Failure::Other(why),
        ) => why.clone(),
        other => panic!("should have failed: {other:?}"),
    }
}

async fn standby(name: &'static str, port: u16, source: &Node) -> Node {
    let mut node = Node::new(name, port, "");
    assert_eq!(node.job(clone_of(source)).await, JobEnd::Done);
    node.streams_from(source).await;
    node
}

#[test]
fn a_bootstrapped_cluster_has_its_roles_and_survives_stop_and_start() {
    as_postgres(
        "a_bootstrapped_cluster_has_its_roles_and_survives_stop_and_start",
        async {
            let mut a = primary("a", 23000, "").await;
            let roles = "SELECT string_agg(rolname || rolsuper || rolreplication, ',' ORDER BY 1) \
                     FROM pg_roles WHERE rolname !~ '^pg_'";
            assert_eq!(
                a.query(roles).await.as_deref(),
                Some("postgrestruetrue,replicatorfalsetrue,rewinderfalsefalse")
            );
            assert!(!a.data().join("garden.unfinished").exists());
            assert!(a.data().join("pg_hba.conf.backup").exists());

            let end = a.job(stop(StopMode::Fast)).await;
            let JobEnd::Stopped {
                shutdown: Some((timeline, lsn)),
            } = end
            else {
                panic!("{end:?}")
            };
            assert_eq!(timeline, Timeline(1));
            assert!(lsn > Lsn(0x0100_0000), "{lsn}");
            a.sample(|pg| pg.process == Process::Gone).await;
            assert_eq!(
                a.job(stop(StopMode::Fast)).await,
                end,
                "stopping twice gives the same position"
            );

            assert_eq!(
                a.job(Job::StartPrimary { timeout: TIMEOUT }).await,
                JobEnd::Done
            );
            assert!(
                why(&a.job(Job::StartPrimary { timeout: TIMEOUT }).await).contains("runs already")
            );
            let sample = a.sample(|pg| sql_of(pg).is_some()).await;
            assert!(!sql_of(&sample).expect("just checked").in_recovery);
            let restart = Job::Restart {
                timeout: TIMEOUT,
                wish: None,
                follow: Upstream::None,
            };
            let before = a.query("SELECT pg_postmaster_start_time()").await;
            assert_eq!(a.job(restart).await, JobEnd::Done);
            assert_ne!(a.query("SELECT pg_postmaster_start_time()").await, before);
            assert_eq!(
                a.job(stop(StopMode::Immediate)).await,
                JobEnd::Stopped { shutdown: None },
                "an immediate stop has no shutdown position"
            );
        },
    );
}

#[test]
fn shutdown_position_reaches_the_standby() {
    as_postgres("shutdown_position_reaches_the_standby", async {
        let mut a = primary("a", 23010, "").await;
        let mut b = standby("b", 23011, &a).await;
        a.query("CREATE TABLE t AS SELECT generate_series(1, 1000)")
            .await;
        let started = Instant::now();
        let end = a.job(stop(StopMode::Fast)).await;
        println!("stop with checkpoint: {:?}", started.elapsed());
        let JobEnd::Stopped {
            shutdown: Some((_, lsn)),
        } = end
        else {
            panic!("{end:?}")
        };
        let sample = b
            .sample(|pg| sql_of(pg).is_some_and(|sql| sql.receive_lsn >= lsn))
            .await;
        assert_eq!(sql_of(&sample).expect("just checked").receive_lsn, lsn);

        let started = Instant::now();
        assert_eq!(
            b.job(Job::Promote {
                epoch: Epoch(0),
                above: Timeline::FIRST
            })
            .await,
            JobEnd::Done
        );
        println!("promotion: {:?}", started.elapsed());
        assert_eq!(
            b.query("SELECT count(*) FROM t").await.as_deref(),
            Some("1000")
        );
        // In order, so without a rewind.
        assert_eq!(a.job(standby_of(&b)).await, JobEnd::Done);
        a.streams_from(&b).await;
    });
}

/// Two members that are promoted from the same timeline one after the other would both make the same
/// number, and nothing could tell their WAL apart (S4).
#[test]
fn a_promotion_skips_numbers_that_are_taken_and_others_can_follow() {
    as_postgres(
        "a_promotion_skips_numbers_that_are_taken_and_others_can_follow",
        async {
            let mut a = primary("a", 23080, "").await;
            let mut b = standby("b", 23081, &a).await;
            let mut c = standby("c", 23082, &a).await;
            a.query("CREATE TABLE t AS SELECT 1 AS n").await;
            assert!(matches!(
                a.job(stop(StopMode::Fast)).await,
                JobEnd::Stopped { .. }
            ));
            let promote = Job::Promote {
                epoch: Epoch(0),
                above: Timeline(3),
            };
            assert_eq!(b.job(promote).await, JobEnd::Done);
            let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
            assert_eq!(b.query(timeline).await.as_deref(), Some("00000004"));

            assert_eq!(
                c.job(Job::Follow {
                    follow: b.upstream()
                })
                .await,
                JobEnd::Done
            );
            c.streams_from(&b).await;
            b.query("UPDATE t SET n = 2").await;
            c.query_until("SELECT n::text FROM t", "2").await;
            // The old primary too, and again after a restart of both.
            assert_eq!(a.job(standby_of(&b)).await, JobEnd::Done);
            a.streams_from(&b).await;
            let restart = |follow| Job::Restart {
                timeout: TIMEOUT,
                wish: None,
                follow,
            };
            assert_eq!(b.job(restart(Upstream::None)).await, JobEnd::Done);
            assert_eq!(c.job(restart(b.upstream())).await, JobEnd::Done);
            c.streams_from(&b).await;
        },
    );
}

#[test]
fn a_diverged_primary_is_rewound_and_others_follow_by_reload() {
    as_postgres(
        "a_diverged_primary_is_rewound_and_others_follow_by_reload",
        async {
            let mut a = primary("a", 23020, "").await;
            let mut b = standby("b", 23021, &a).await;
            let mut c = standby("c", 23022, &a).await;
            a.query("CREATE TABLE t(who text)").await;
            let lsn = a
                .query("SELECT pg_current_wal_lsn()")
                .await
                .expect("a position");
            let lsn: Lsn = lsn.parse().expect("well formed");
            for node in [&mut b, &mut c] {
                node.sample(|pg| sql_of(pg).is_some_and(|sql| sql.replay_lsn >= lsn))
                    .await;
            }
            assert_eq!(
                b.job(Job::Promote {
                    epoch: Epoch(0),
                    above: Timeline::FIRST
                })
                .await,
                JobEnd::Done
            );
            b.query("INSERT INTO t VALUES ('b')").await;

            let before = c.query("SELECT pg_postmaster_start_time()").await;
            let end = c
                .job(Job::Follow {
                    follow: b.upstream(),
                })
                .await;
            assert_eq!(end, JobEnd::Done);
            c.streams_from(&b).await;
            c.query_until("SELECT string_agg(who, ',') FROM t", "b")
                .await;
            assert_eq!(
                c.query("SELECT pg_postmaster_start_time()").await,
                before,
                "no restart"
            );
            let sample = c.sample(|pg| pg.conf.upstream == b.upstream()).await;
            assert!(!sample.conf.as_primary);

            // The old primary goes on for a while, and is then killed without a shutdown checkpoint.
            a.query("INSERT INTO t VALUES ('a')").await;
            a.job(stop(StopMode::Immediate)).await;
            let end = a
                .job(Job::Rewind {
                    source: c.upstream(),
                })
                .await;
            assert!(
                matches!(end, JobEnd::Failed(Failure::SourceUnavailable(_))),
                "{end:?}"
            );
            assert_eq!(
                a.job(Job::Rewind {
                    source: b.upstream()
                })
                .await,
                JobEnd::Done
            );
            assert_eq!(pgdata::look(&a.data()), DataDir::Initialised);
            assert_eq!(a.job(standby_of(&b)).await, JobEnd::Done);
            a.streams_from(&b).await;
            a.query_until("SELECT string_agg(who, ',') FROM t", "b")
                .await;

            let told = lineage::ask(&a.ctx, "b".into(), &b.upstream())
                .await
                .expect("an answer");
            assert!(told.is_primary);
            assert_eq!(told.history.timeline, Timeline(2));
            assert!(
                told.history
                    .switch_point(Timeline(1))
                    .is_some_and(|point| point >= lsn)
            );
            let told = lineage::ask(&a.ctx, "c".into(), &c.upstream())
                .await
                .expect("an answer");
            assert!(!told.is_primary);
        },
    );
}

/// Why nobody connects to a leader before its WAL was compared (S3): a standby that was ahead of the place where the
/// leader's timeline begins lets commits return that it will never have.
#[test]
fn a_diverged_standby_acknowledges_what_it_does_not_have() {
    as_postgres(
        "a_diverged_standby_acknowledges_what_it_does_not_have",
        async {
            let mut a = primary("a", 23130, "").await;
            let mut b = standby("b", 23131, &a).await;
            // The timeline must not begin where a segment does: then there is nothing to ask for.
            a.query("CREATE TABLE first AS SELECT 1 AS one").await;
            b.query_until("SELECT to_regclass('first') IS NOT NULL", "t")
                .await;
            let alone = Job::Follow {
                follow: Upstream::None,
            };
            assert_eq!(b.job(alone).await, JobEnd::Done);
            a.query("CREATE TABLE more AS SELECT g FROM generate_series(1, 100000) g")
                .await;
            a.job(stop(StopMode::Immediate)).await;
            let promote = Job::Promote {
                epoch: Epoch(1),
                above: Timeline::FIRST,
            };
            assert_eq!(b.job(promote).await, JobEnd::Done);
            b.query("CREATE TABLE only_here(i int)").await;
            b.query("SELECT pg_create_physical_replication_slot('a')")
                .await;
            b.driver.configure(WantedConf {
                generation: 7,
                sync_names: Some("a".into()),
                as_primary: true,
            });
            assert_eq!(b.task(Task::Configure).await, TaskResult::Done);
            b.query_until("SHOW synchronous_standby_names", "a").await;

            // As a leader's crashed predecessor comes back: alone, and compared.
            let start = Job::StartStandby {
                follow: Upstream::None,
                timeout: TIMEOUT,
            };
            assert_eq!(a.job(start).await, JobEnd::Done);
            let lineage = lineage::ask(&a.ctx, "b".into(), &b.upstream())
                .await
                .expect("an answer");
            let beyond =
                |pg: &LocalPostgres| matches!(rewind::check(pg, &lineage), Divergence::Need { .. });
            a.sample(beyond).await;
            let client = connect::superuser(&b.ctx).await.expect("session");
            let commit = tokio::spawn(async move {
                client
                    .simple_query("INSERT INTO only_here VALUES (1)")
                    .await
            });
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!commit.is_finished(), "there is no standby");

            let follow = Job::Follow {
                follow: b.upstream(),
            };
            assert_eq!(a.job(follow).await, JobEnd::Done);
            let returned = tokio::time::timeout(TIMEOUT, commit).await;
            assert!(
                matches!(returned, Ok(Ok(Ok(_)))),
                "should PostgreSQL compare first one day, then `may_be_ahead` is not needed any more"
            );
            let there = a.query("SELECT to_regclass('only_here') IS NULL").await;
            assert_eq!(there.as_deref(), Some("t"));
        },
    );
}

#[test]
fn a_cancelled_clone_leaves_its_mark_and_the_next_one_starts_over() {
    as_postgres(
        "a_cancelled_clone_leaves_its_mark_and_the_next_one_starts_over",
        async {
            let a = primary("a", 23030, "").await;
            let slow = "postgresql: {basebackup: [{max-rate: 8M}]}";
            let mut b = Node::new("b", 23031, slow);
            let id = b.start(clone_of(&a));
            b.phase_of(id, "basebackup").await;
            b.sample(|pg| matches!(pg.data_dir, DataDir::Unfinished(_)))
                .await;
            b.driver.cancel(id);
            assert_eq!(b.end_of(id).await, JobEnd::Cancelled);
            assert!(b.data().join("garden.unfinished").exists());
            assert!(matches!(pgdata::look(&b.data()), DataDir::Unfinished(_)));
            let end = b.job(standby_of(&a)).await;
            assert!(
                matches!(end, JobEnd::Failed(Failure::HalfDone(_))),
                "{end:?}"
            );
            a.query_until("SELECT count(*) FROM pg_stat_replication", "0")
                .await;

            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            assert!(!b.data().join("garden.unfinished").exists());
        },
    );
}

#[test]
fn the_last_copy_is_never_removed_and_a_proved_one_is_cloned_again() {
    as_postgres(
        "the_last_copy_is_never_removed_and_a_proved_one_is_cloned_again",
        async {
            let mut a = primary("a", 23040, "").await;
            let mut b = standby("b", 23041, &a).await;
            assert!(
                why(&a.job(Job::RemoveData).await).contains("process"),
                "it runs"
            );
            a.query("CREATE TABLE t()").await;

            let again = Job::Reinitialize {
                source: a.upstream(),
                follow: a.upstream(),
                basebackup_only: true,
                wish: None,
            };
            let before = std::fs::metadata(b.data().join("PG_VERSION"))
                .expect("there")
                .modified()
                .ok();
            assert_eq!(b.job(again.clone()).await, JobEnd::Done);
            b.streams_from(&a).await;
            let after = std::fs::metadata(b.data().join("PG_VERSION"))
                .expect("there")
                .modified()
                .ok();
            assert_ne!(before, after);

            a.job(stop(StopMode::Fast)).await;
            assert!(why(&a.job(Job::RemoveData).await).contains("last copy"));
            let end = b.job(again).await;
            assert!(
                matches!(end, JobEnd::Failed(Failure::SourceUnavailable(_))),
                "{end:?}"
            );
            b.job(stop(StopMode::Fast)).await;
            assert!(why(&b.job(Job::RemoveData).await).contains("last copy"));
            for node in [&a, &b] {
                assert_eq!(pgdata::look(&node.data()), DataDir::Initialised);
            }
        },
    );
}

#[test]
fn a_promise_freezes_the_position_across_restarts_until_it_is_withdrawn() {
    as_postgres(
        "a_promise_freezes_the_position_across_restarts_until_it_is_withdrawn",
        async {
            let a = primary("a", 23050, "").await;
            let mut b = standby("b", 23051, &a).await;
            b.driver.note_wal_epoch(Epoch(4));
            b.sample(|pg| pg.wal_epoch == Epoch(4)).await;
            let started = Instant::now();
            b.driver.promise(Epoch(4));
            let TaskResult::Promised(promise) = b.task(Task::Fence).await else {
                panic!("no promise")
            };
            println!("promise: {:?}", started.elapsed());
            assert_eq!((promise.epoch, promise.wal_epoch), (Epoch(4), Epoch(4)));
            assert_eq!(promise.timeline, Timeline(1));
            let stored = DurableState {
                promised: Some(Epoch(4)),
                wal_epoch: Epoch(4),
                led: None,
            };
            assert_eq!(pgdata::read_state(&b.data()), FoundState::Known(stored));

            a.query("CREATE TABLE after_the_promise()").await;
            a.query_until("SELECT count(*) FROM pg_stat_replication", "0")
                .await;
            assert_eq!(
                b.job(Job::Follow {
                    follow: a.upstream()
                })
                .await,
                JobEnd::Done
            );
            let restart = Job::Restart {
                timeout: TIMEOUT,
                wish: None,
                follow: a.upstream(),
            };
            assert_eq!(b.job(restart).await, JobEnd::Done);
            let sample = b.sample(|pg| sql_of(pg).is_some()).await;
            let sql = sql_of(&sample).expect("just checked");
            assert_eq!(sql.receiver, None);
            assert!(
                sql.replay_lsn <= promise.lsn,
                "{} > {}",
                sql.replay_lsn,
                promise.lsn
            );
            assert_eq!(sample.promised, Some(Epoch(4)));

            b.driver.withdraw(Epoch(3));
            assert_eq!(b.task(Task::Fence).await, TaskResult::Done);
            assert_eq!(
                pgdata::read_state(&b.data()),
                FoundState::Known(stored),
                "an earlier epoch"
            );
            b.driver.withdraw(Epoch(4));
            assert_eq!(b.task(Task::Fence).await, TaskResult::Done);
            assert_eq!(
                b.job(Job::Follow {
                    follow: a.upstream()
                })
                .await,
                JobEnd::Done
            );
            b.streams_from(&a).await;
            b.query_until(
                "SELECT count(*) FROM pg_class WHERE relname = 'after_the_promise'",
                "1",
            )
            .await;
        },
    );
}

#[test]
fn an_interrupted_rewind_is_never_started() {
    as_postgres("an_interrupted_rewind_is_never_started", async {
        let mut a = primary("a", 23060, "").await;
        a.job(stop(StopMode::Fast)).await;
        pgdata::mark_rewinding(&a.data()).expect("mark");
        let end = a.job(Job::StartPrimary { timeout: TIMEOUT }).await;
        assert!(
            matches!(end, JobEnd::Failed(Failure::HalfDone(_))),
            "{end:?}"
        );
        pgdata::clear_rewinding(&a.data()).expect("clear");
        assert_eq!(
            a.job(Job::StartPrimary { timeout: TIMEOUT }).await,
            JobEnd::Done
        );
    });
}

#[test]
fn pre_promote_can_refuse_and_a_slow_one_can_be_cancelled() {
    as_postgres(
        "pre_promote_can_refuse_and_a_slow_one_can_be_cancelled",
        async {
            let a = primary("a", 23070, "").await;
            let refuse = "postgresql: {pre_promote: \"/bin/sh -c 'echo not today >&2; exit 1'\"}";
            let mut b = Node::new("b", 23071, refuse);
            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            let end = b
                .job(Job::Promote {
                    epoch: Epoch(1),
                    above: Timeline::FIRST,
                })
                .await;
            assert!(
                matches!(&end, JobEnd::Failed(Failure::PrePromote(why)) if why.contains("not today"))
            );
            assert_eq!(
                b.query("SELECT pg_is_in_recovery()").await.as_deref(),
                Some("t")
            );
            drop(b);

            let mut c = Node::new("c", 23072, "postgresql: {pre_promote: sleep 60}");
            assert_eq!(c.job(clone_of(&a)).await, JobEnd::Done);
            let id = c.start(Job::Promote {
                epoch: Epoch(1),
                above: Timeline::FIRST,
            });
            c.phase_of(id, "pre_promote").await;
            let second = c.job(Job::CrashRecovery).await;
            assert!(why(&second).contains("still runs"), "{second:?}");
            c.driver.cancel(id);
            assert_eq!(c.end_of(id).await, JobEnd::Cancelled);
            assert_eq!(
                c.query("SELECT pg_is_in_recovery()").await.as_deref(),
                Some("t")
            );
        },
    );
}

#[test]
fn configuration_reaches_new_sessions_before_the_task_ends() {
    as_postgres(
        "configuration_reaches_new_sessions_before_the_task_ends",
        async {
            let mut a = primary("a", 23080, "").await;
            let wanted = |names: &str| WantedConf {
                generation: 7,
                sync_names: Some(names.into()),
                as_primary: true,
            };
            for names in ["x", "ANY 1 (x,y)", ""] {
                a.driver.configure(wanted(names));
                assert_eq!(a.task(Task::Configure).await, TaskResult::Done);
                let shown = a.query("SHOW synchronous_standby_names").await;
                assert_eq!(shown.as_deref(), Some(names));
            }
            let sample = a.sample(|pg| pg.conf.generation == 7).await;
            assert!(sample.conf.as_primary);
            a.driver.checkpoint();
            assert_eq!(a.task(Task::Checkpoint).await, TaskResult::Done);
            a.driver.lineage("a".into(), a.upstream());
            let told = a
                .next(|event| match event {
                    PgEvent::Lineage(lineage) => Some(lineage),
                    _ => None,
                })
                .await;
            assert_eq!(told.history.timeline, Timeline(1));
        },
    );
}

#[test]
fn a_failed_bootstrap_keeps_its_data_aside() {
    as_postgres("a_failed_bootstrap_keeps_its_data_aside", async {
        let mut a = Node::new("a", 23090, "bootstrap: {post_bootstrap: /bin/false}");
        assert!(why(&a.job(Job::Bootstrap).await).contains("false failed"));
        assert_eq!(pgdata::look(&a.data()), DataDir::Empty);
        let aside = a.root.join("data.failed");
        assert!(matches!(pgdata::look(&aside), DataDir::Unfinished(_)));
        a.sample(|pg| pg.process == Process::Gone && pg.data_dir == DataDir::Empty)
            .await;
    });
}

/// S7: only what carries the mark, or is the very cluster that the decision saw, is moved out of the way.
#[test]
fn a_bootstrap_that_was_overtaken_is_kept_aside() {
    as_postgres("a_bootstrap_that_was_overtaken_is_kept_aside", async {
        let mut a = Node::new("a", 23120, "");
        let set_aside = |system| Job::SetAside { system };
        a.make_cluster().await;
        let sample = a.sample(|pg| pg.control.is_some()).await;
        let system = sample.control.as_ref().expect("just seen").system_id;
        assert!(why(&a.job(set_aside(None)).await).contains("not what"));
        let other = Some(SystemId(system.0 + 1));
        assert!(why(&a.job(set_aside(other)).await).contains("holds the cluster"));
        assert_eq!(a.job(set_aside(Some(system))).await, JobEnd::Done);
        assert_eq!(pgdata::look(&a.data()), DataDir::Empty);
        a.sample(|pg| pg.process == Process::Gone).await;

        assert_eq!(a.job(Job::Bootstrap).await, JobEnd::Done);
        assert_eq!(a.job(set_aside(None)).await, JobEnd::Done);
        assert_eq!(pgdata::look(&a.data()), DataDir::Empty);
        for aside in ["data.failed", "data.failed.1"] {
            assert!(pgdata::look(&a.root.join(aside)).abandoned(), "{aside}");
        }
    });
}

#[test]
fn a_custom_bootstrap_recovers_to_its_target_and_gets_the_real_rules_back() {
    as_postgres(
        "a_custom_bootstrap_recovers_to_its_target_and_gets_the_real_rules_back",
        async {
            let mut a = primary("a", 23110, "").await;
            a.query("CREATE TABLE t AS SELECT 1 AS n").await;
            a.job(stop(StopMode::Fast)).await;
            // The method runs with fixed paths; the target is the end of the copied WAL.
            let copy = format!(
                "bootstrap: {{method: copy, copy: {{command: \"/bin/sh -c 'cp -a {}/. $PGCOPY'\", \
             no_params: true, recovery_conf: {{restore_command: /bin/false, \
             recovery_target_action: promote}}}}}}",
                a.data().display()
            );
            let target =
                std::env::temp_dir().join(format!("garden-jobs-{}-b/data", std::process::id()));
            let copy = copy.replace("$PGCOPY", &target.display().to_string());
            let mut b = Node::new("b", 23111, &copy);
            b.make_cluster().await;
            assert_eq!(b.query("SELECT n FROM t").await.as_deref(), Some("1"));
            let segment = b
                .query("SELECT pg_walfile_name(pg_current_wal_lsn())")
                .await;
            assert!(
                segment.is_some_and(|name| name.starts_with("00000002")),
                "promoted"
            );
            let rules = std::fs::read_to_string(b.data().join("pg_hba.conf")).expect("there");
            assert!(
                rules.contains("scram-sha-256") && !rules.contains("trust"),
                "{rules}"
            );
            assert_eq!(b.query("SHOW hot_standby").await.as_deref(), Some("on"));
        },
    );
}

#[test]
fn a_newer_callback_ends_the_older_one_with_its_children() {
    as_postgres(
        "a_newer_callback_ends_the_older_one_with_its_children",
        async {
            let script = "/bin/sh -c 'echo $0 $1 $2 >> /tmp/garden-calls-23100; sleep 77 & wait'";
            let extra = format!(
                "postgresql: {{callbacks: {{on_start: \"{script}\", on_stop: \"{script}\"}}}}"
            );
            let calls = Path::new("/tmp/garden-calls-23100");
            let _ = std::fs::remove_file(calls);
            let a = Node::new("a", 23100, &extra);
            a.driver.callback("on_start", "promoted");
            wait_for(|| lines(calls) == ["on_start primary batman"]).await;
            assert_eq!(sleepers(), 1);
            a.driver.callback("on_stop", "replica");
            wait_for(|| lines(calls).len() == 2).await;
            assert_eq!(lines(calls)[1], "on_stop replica batman");
            wait_for(|| sleepers() == 1).await;
            // One without a command leaves the running one alone.
            a.driver.callback("on_restart", "replica");
            a.driver.callback("on_start", "demoted");
            wait_for(|| lines(calls).len() == 3).await;
            let script = Path::new("/proc");
            for pid in pids_of_sleepers(script) {
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
            let _ = std::fs::remove_file(calls);
        },
    );
}

fn lines(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn sleepers() -> usize {
    pids_of_sleepers(Path::new("/proc")).len()
}

/// Processes that are `sleep 77`: nobody else sleeps for so long.
fn pids_of_sleepers(proc: &Path) -> Vec<nix::unistd::Pid> {
    let entries = std::fs::read_dir(proc).expect("proc");
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            std::fs::read(proc.join(format!("{pid}/cmdline"))).is_ok_and(|c| c == b"sleep\x0077\0")
        })
        .map(nix::unistd::Pid::from_raw)
        .collect()
}

async fn wait_for(mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < until, "it never came true");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
