//! Rows of the behaviour table that one driver and a real PostgreSQL 15 can show: copies, custom
//! bootstraps, what is archived before a rewind, bounded stops.

#[path = "common/postgres.rs"]
#[allow(dead_code, reason = "shared with programs that need more of it")]
mod postgres;

use garden_agent::postgres::pgdata;
use nix::sys::socket::{setsockopt, sockopt};
use postgres::{Node, TIMEOUT, as_postgres, as_postgres_on_a_mount, clone_of, primary, sql_of};
use proto::core::job::{Job, JobEnd, StopMode, StopReason, Upstream};
use proto::core::observation::{DataDir, LocalPostgres, Process};
use proto::ids::Epoch;
use proto::wal::Timeline;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn stop(mode: StopMode) -> Job {
    Job::Stop {
        mode,
        checkpoint_first: false,
        timeout: Some(TIMEOUT),
        why: StopReason::Shutdown,
    }
}

fn again_from(source: &Node) -> Job {
    Job::Reinitialize {
        source: source.upstream(),
        follow: source.upstream(),
        basebackup_only: false,
        wish: None,
    }
}

/// The directory that a member of this name gets.
fn root_of(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("garden-jobs-{}-{name}", std::process::id()))
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\nset -e\n{text}\n")).expect("write the script");
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// A directory that is a mount point can be neither renamed nor removed, but its content can.
#[test]
fn a_data_directory_that_is_a_mount_point_is_copied_anew() {
    let test = "a_data_directory_that_is_a_mount_point_is_copied_anew";
    as_postgres_on_a_mount(test, "b", async {
        let a = primary("a", 23600, "").await;
        let mut b = Node::new("b", 23601, "");
        let device = |path: &Path| std::fs::metadata(path).expect("there").dev();
        assert_ne!(
            device(&b.data()),
            device(&b.root),
            "a file system of its own"
        );
        assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
        b.streams_from(&a).await;
        let version = b.data().join("PG_VERSION");
        let before = std::fs::metadata(&version).expect("there").ino();
        a.query("CREATE TABLE t AS SELECT 5 AS n").await;
        assert_eq!(b.job(again_from(&a)).await, JobEnd::Done);
        b.streams_from(&a).await;
        b.query_until("SELECT n FROM t", "5").await;
        assert_ne!(std::fs::metadata(&version).expect("there").ino(), before);
        assert_ne!(device(&b.data()), device(&b.root), "still mounted");
    });
}

#[test]
fn replica_methods_are_tried_in_order_with_their_parameters() {
    as_postgres(
        "replica_methods_are_tried_in_order_with_their_parameters",
        async {
            let a = primary("a", 23610, "").await;
            let root = root_of("b");
            let mut b = Node::new(
                "b",
                23611,
                &format!(
                    "postgresql: {{create_replica_methods: [broken, copy, basebackup], \
                     broken: {{command: /bin/false}}, \
                     copy: {{command: '/bin/sh {0}/copy.sh', stanza: main}}, \
                     recovery_conf: {{recovery_min_apply_delay: 10ms, \
                     archive_cleanup_command: /bin/true}}}}",
                    root.display()
                ),
            );
            script(
                &root.join("copy.sh"),
                &format!(
                    "echo \"$@\" >{0}/args\nfor word; do case $word in \
                     --connstring=*) source=${{word#*=}} ;; --datadir=*) dir=${{word#*=}} ;; esac; done\n\
                     exec /usr/lib/postgresql/15/bin/pg_basebackup -D \"$dir\" -d \"$source\" -c fast",
                    root.display()
                ),
            );
            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            let args = read(&root.join("args"));
            let datadir = format!("--datadir={}", b.data().display());
            for word in [
                "--scope=batman",
                "--role=replica",
                &datadir,
                "--stanza=main",
            ] {
                assert!(args.contains(word), "{word}: {args}");
            }
            assert!(args.contains("--connstring="), "{args}");
            // `recovery_conf` is in force on a standby.
            let show = |name: &str| format!("SHOW {name}");
            assert_eq!(
                b.query(&show("recovery_min_apply_delay")).await.as_deref(),
                Some("10ms")
            );
            assert_eq!(
                b.query(&show("archive_cleanup_command")).await.as_deref(),
                Some("/bin/true")
            );
        },
    );
}

/// A method with `keep_data` starts from the old copy, and one that needs no leader makes a copy while
/// there is none.
#[test]
fn keep_data_keeps_the_old_copy_and_no_leader_needs_none() {
    as_postgres(
        "keep_data_keeps_the_old_copy_and_no_leader_needs_none",
        async {
            let a = primary("a", 23620, "").await;
            let root = root_of("b");
            let mut b = Node::new(
                "b",
                23621,
                &format!(
                    "postgresql: {{create_replica_methods: [delta, alone, basebackup], \
                     delta: {{command: '/bin/sh {0}/delta.sh', keep_data: true}}, \
                     alone: {{command: '/bin/sh {0}/alone.sh', no_leader: true}}}}",
                    root.display()
                ),
            );
            let data = b.data();
            script(
                &root.join("delta.sh"),
                &format!(
                    "[ -f {}/PG_VERSION ] && echo kept >>{}/seen\nexit 1",
                    data.display(),
                    root.display()
                ),
            );
            // A restore from elsewhere: here, from the only server that there is.
            script(
                &root.join("alone.sh"),
                &format!(
                    "echo \"$@\" >{0}/args\nPGPASSWORD=rep exec \
                     /usr/lib/postgresql/15/bin/pg_basebackup -D {1} \
                     -d 'host=127.0.0.1 port={2} user=replicator' -c fast",
                    root.display(),
                    data.display(),
                    a.port
                ),
            );
            let alone = Job::Clone {
                source: None,
                follow: Upstream::None,
                basebackup_only: false,
            };
            assert_eq!(b.job(alone).await, JobEnd::Done);
            let args = read(&root.join("args"));
            assert!(args.contains("--no_leader=True"), "{args}");
            let follow = Job::Follow {
                follow: a.upstream(),
            };
            assert_eq!(b.job(follow).await, JobEnd::Done);
            b.streams_from(&a).await;
            assert_eq!(read(&root.join("seen")), "", "nothing was there to keep");
            assert_eq!(b.job(again_from(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            assert_eq!(read(&root.join("seen")).trim(), "kept");
            assert_eq!(pgdata::look(&data), DataDir::Initialised);
        },
    );
}

/// Finished segments that wait for the archiver go there before `pg_rewind` removes them, and what it
/// needs and PostgreSQL has removed already comes back from there.
#[test]
fn wal_is_archived_before_a_rewind_and_restored_for_it() {
    as_postgres(
        "wal_is_archived_before_a_rewind_and_restored_for_it",
        async {
            let archive = root_of("a").join("archive");
            let open = root_of("a").join("open");
            let extra = format!(
                "postgresql: {{parameters: {{archive_mode: 'on', \
             archive_command: 'test -f {1} && cp %p {0}/%f'}}, \
             recovery_conf: {{restore_command: 'cp {0}/%f %p'}}}}",
                archive.display(),
                open.display()
            );
            let mut a = Node::new("a", 23630, &extra);
            std::fs::create_dir(&archive).expect("create");
            std::fs::write(&open, "").expect("write");
            a.make_cluster().await;
            let mut b = Node::new("b", 23631, "");
            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            a.query("CREATE TABLE t(n int)").await;
            b.query_until("SELECT count(*) FROM t", "0").await;
            let promote = Job::Promote {
                epoch: Epoch(0),
                above: Timeline::FIRST,
            };
            assert_eq!(b.job(promote).await, JobEnd::Done);
            let name = "SELECT pg_walfile_name(pg_current_wal_lsn())";
            let first = a.query(name).await.expect("a segment");
            // More than PostgreSQL keeps, so that the segment with the divergence goes.
            for _ in 0..14 {
                a.query("INSERT INTO t VALUES (1); SELECT pg_switch_wal()")
                    .await;
            }
            let archived = "SELECT (last_archived_wal > '0')::text || (SELECT count(*) FROM \
                        pg_ls_archive_statusdir() WHERE name LIKE '%.ready')::text \
                        FROM pg_stat_archiver";
            a.query_until(archived, "true0").await;
            for _ in 0..2 {
                a.query("CHECKPOINT").await;
            }
            let gone = a.data().join("pg_wal").join(&first);
            assert!(!gone.exists(), "{first} was removed by checkpoints");
            std::fs::remove_file(&open).expect("removed");
            let last = a.query(name).await.expect("a segment");
            a.query("INSERT INTO t VALUES (2); SELECT pg_switch_wal()")
                .await;
            a.job(stop(StopMode::Immediate)).await;
            assert!(!archive.join(&last).exists(), "it waits for the archiver");
            std::fs::write(&open, "").expect("write");

            let rewind = Job::Rewind {
                source: b.upstream(),
            };
            assert_eq!(a.job(rewind).await, JobEnd::Done);
            assert!(archive.join(&last).exists(), "{last} was archived");
            let start = Job::StartStandby {
                follow: b.upstream(),
                timeout: TIMEOUT,
            };
            assert_eq!(a.job(start).await, JobEnd::Done);
            a.streams_from(&b).await;
            a.query_until("SELECT count(*) FROM t", "0").await;
        },
    );
}

/// A base backup, an archive, a named point: once with `recovery_conf`, once with what the method itself
/// left in the directory.
#[test]
fn a_custom_bootstrap_recovers_to_a_named_point() {
    as_postgres("a_custom_bootstrap_recovers_to_a_named_point", async {
        let root = root_of("a");
        let (archive, backup) = (root.join("archive"), root.join("backup"));
        let extra = format!(
            "postgresql: {{parameters: {{archive_mode: 'on', archive_command: 'cp %p {}/%f'}}}}",
            archive.display()
        );
        let mut a = Node::new("a", 23640, &extra);
        std::fs::create_dir(&archive).expect("create");
        a.make_cluster().await;
        let taken = std::process::Command::new("/usr/lib/postgresql/15/bin/pg_basebackup")
            .args([
                "-d",
                &format!("host=127.0.0.1 port={} user=replicator", a.port),
            ])
            .args(["-c", "fast", "-D"])
            .arg(&backup)
            .env("PGPASSWORD", "rep")
            .status();
        assert!(taken.expect("pg_basebackup").success());
        a.query("CREATE TABLE t AS SELECT 1 AS n").await;
        a.query("SELECT pg_create_restore_point('here')").await;
        a.query("INSERT INTO t VALUES (2)").await;
        let last = a.query("SELECT pg_walfile_name(pg_switch_wal())").await;
        let last = last.expect("a segment");
        let done = format!("SELECT (last_archived_wal >= '{last}')::text FROM pg_stat_archiver");
        a.query_until(&done, "true").await;

        let restore = format!("cp {}/%f %p", archive.display());
        let targets = format!(
            "restore_command: \"{restore}\", recovery_target_name: here, \
             recovery_target_action: promote"
        );
        let copy = |name: &str| {
            let data = root_of(name).join("data");
            format!("cp -a {}/. {}", backup.display(), data.display())
        };
        let by_agent = format!(
            "bootstrap: {{method: pitr, pitr: {{command: \"/bin/sh -c '{}'\", no_params: true, \
             recovery_conf: {{{targets}}}}}}}",
            copy("b")
        );
        let mut b = Node::new("b", 23641, &by_agent);
        b.make_cluster().await;
        let rows = "SELECT string_agg(n::text, ',') FROM t";
        assert_eq!(b.query(rows).await.as_deref(), Some("1"));

        let data = root_of("c").join("data");
        let by_method = format!(
            "bootstrap: {{method: tool, tool: {{command: '/bin/sh {}/tool.sh', no_params: true, \
             keep_existing_recovery_conf: true}}}}",
            root.display()
        );
        let mut c = Node::new("c", 23642, &by_method);
        script(
            &root.join("tool.sh"),
            &format!(
                "{}\ntouch {1}/recovery.signal\ncat >>{1}/postgresql.auto.conf <<END\n\
                 restore_command = '{restore}'\nrecovery_target_name = 'here'\n\
                 recovery_target_action = 'promote'\nEND",
                copy("c"),
                data.display()
            ),
        );
        c.make_cluster().await;
        assert_eq!(c.query(rows).await.as_deref(), Some("1"));
        assert!(!data.join("recovery.signal").exists());
    });
}

/// `primary_stop_timeout`: a walsender that hangs keeps a fast shutdown waiting for ever.
#[test]
fn a_stop_that_takes_too_long_becomes_an_immediate_one() {
    as_postgres(
        "a_stop_that_takes_too_long_becomes_an_immediate_one",
        async {
            let mut a = primary(
                "a",
                23650,
                "postgresql: {parameters: {wal_sender_timeout: '0'}}",
            )
            .await;
            let mut b = Node::new("b", 23651, "");
            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            let pid = a.query("SELECT pid FROM pg_stat_replication").await;
            let pid = pid.and_then(|pid| pid.parse().ok()).expect("a walsender");
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).expect("stopped");
            a.query("CREATE TABLE t AS SELECT 1 AS n").await;
            let started = Instant::now();
            let bounded = Job::Stop {
                mode: StopMode::Fast,
                checkpoint_first: false,
                timeout: Some(Duration::from_secs(1)),
                why: StopReason::Switchover,
            };
            let end = a.job(bounded).await;
            assert_eq!(end, JobEnd::Stopped { shutdown: None });
            assert!(
                started.elapsed() < Duration::from_secs(15),
                "{:?}",
                started.elapsed()
            );
            a.sample(|pg| pg.process == Process::Gone).await;
        },
    );
}

/// A server that takes connections and vanishes from each without a word, as one does that dies while its last
/// packet is lost. Only root can do that.
fn vanishing_server(port: u16) {
    let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            // The startup packet is taken, so that nothing is left to be sent again.
            std::thread::sleep(Duration::from_millis(50));
            if setsockopt(&connection, sockopt::TcpRepair, &1).is_err() {
                // Closed with a word it would prove nothing.
                std::process::abort();
            }
        }
    });
}

/// A WAL receiver waits for the answer to its first packet for as long as the connection seems to stand: for two
/// hours, by the system's keepalives, in which nothing is in the log and nobody starts another one.
#[test]
fn an_attempt_to_stream_that_is_left_half_open_is_made_again() {
    const NOBODY: u16 = 23662;
    if nix::unistd::geteuid().is_root() {
        vanishing_server(NOBODY);
    }
    as_postgres(
        "an_attempt_to_stream_that_is_left_half_open_is_made_again",
        async {
            if TcpStream::connect(("127.0.0.1", NOBODY)).is_err() {
                println!("not tried: only root can make a server vanish");
                return;
            }
            let a = primary("a", 23660, "").await;
            let mut b = Node::new("b", 23661, "");
            assert_eq!(b.job(clone_of(&a)).await, JobEnd::Done);
            b.streams_from(&a).await;
            let follow = Upstream::Member {
                name: "c".into(),
                conn_url: format!("postgres://127.0.0.1:{NOBODY}/postgres"),
            };
            assert_eq!(b.job(Job::Follow { follow }).await, JobEnd::Done);
            let for_long = |wanted: Duration| {
                move |pg: &LocalPostgres| {
                    let sql = sql_of(pg).filter(|sql| sql.receiver.is_none());
                    sql.is_some_and(|sql| sql.connecting.is_some_and(|waited| waited >= wanted))
                }
            };
            let limit = Duration::from_secs(2);
            b.sample(for_long(limit)).await;
            b.driver.end_receiver(Duration::from_secs(600));
            b.sample(for_long(2 * limit)).await;
            b.driver.end_receiver(limit);
            // Another one connects.
            b.sample(move |pg| {
                sql_of(pg).is_some_and(|sql| sql.connecting.is_some_and(|waited| waited < limit))
            })
            .await;
            let follow = a.upstream();
            assert_eq!(b.job(Job::Follow { follow }).await, JobEnd::Done);
            b.streams_from(&a).await;
            // What streams is left alone.
            b.driver.end_receiver(Duration::ZERO);
            a.query("CREATE TABLE after_all ()").await;
            b.query_until(
                "SELECT count(*) FROM pg_class WHERE relname = 'after_all'",
                "1",
            )
            .await;
            let log = read(&b.data().join("log/server.log"));
            let ended = log.matches("terminating walreceiver process due to administrator");
            assert_eq!(
                ended.count(),
                3,
                "the two sources that changed, and the one that hung: {log}"
            );
        },
    );
}
