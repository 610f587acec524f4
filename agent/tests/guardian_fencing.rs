//! The guardian with a real PostgreSQL under load: whatever happens to the agent and to the guardian
//! itself, no process of the cluster outlives the deadline by more than the fencing bound.

mod guardian;

use garden_agent::guardian::{Armed, Basis, GuardianError, GuardianEvent};
use guardian::{Agent, Cluster, FENCE_BOUND, Load, as_postgres, kill};
use nix::sys::signal::Signal;
use proto::ids::Epoch;
use proto::time::MonoTime;
use std::time::{Duration, SystemTime};

/// Checks and prints how long after `from` the last commit was acknowledged and the last process ended.
fn check_delays(what: &str, cluster: &Cluster, load: Load, from: MonoTime, bound: Duration) {
    let empty = cluster.wait_empty();
    let last_ack = load.last_ack();
    let (acked, ended) = (millis(last_ack, from), millis(empty, from));
    println!("{what}: last acknowledgement {acked:+.1} ms, last process {ended:+.1} ms");
    assert!(empty <= from + bound, "processes outlived the bound");
    assert!(last_ack <= from + bound, "acknowledged after the bound");
}

fn millis(at: MonoTime, from: MonoTime) -> f64 {
    (at.0 as f64 - from.0 as f64) / 1e6
}

#[test]
fn fences_at_the_deadline_while_the_agent_is_silent() {
    as_postgres("fences_at_the_deadline_while_the_agent_is_silent", || {
        let cluster = Cluster::new("silent", 27010);
        let mut agent = cluster.agent();
        assert!(agent.hello.fit, "self-test took {:?}", agent.hello.measured);
        println!("self-test: {:?}", agent.hello.measured);
        cluster.start(&agent);
        let load = cluster.load(8, 8);
        let deadline = agent.arm(1, Duration::from_millis(1500));
        let wall_at_deadline = SystemTime::now() + Duration::from_millis(1500);
        let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
        let took = seen.iter().find_map(|event| match event {
            GuardianEvent::Fenced { took } => Some(*took),
            _ => None,
        });
        println!("guardian says: fenced within {took:?}");
        assert!(took.is_some_and(|took| took < FENCE_BOUND));
        check_delays(
            "deadline, agent silent",
            &cluster,
            load,
            deadline,
            FENCE_BOUND,
        );
        assert_eq!(agent.client.postmaster(), None);
        assert_eq!(agent.client.armed(), None);
        let last = cluster.last_commit(&agent);
        let late = last.duration_since(wall_at_deadline).unwrap_or_default();
        println!("last commit in the data directory: {late:?} after the deadline");
        assert!(late < FENCE_BOUND);
    });
}

/// A restart went on while the loop that had ordered it stood still: the server was ended at the deadline, and
/// started after it, with nothing to end it again (simulator, seed 1883954).
#[test]
fn no_primary_is_started_after_the_deadline_under_which_that_was_ordered() {
    as_postgres(
        "no_primary_is_started_after_the_deadline_under_which_that_was_ordered",
        || {
            let cluster = Cluster::new("late", 27034);
            let mut agent = cluster.agent();
            cluster.start(&agent);
            agent.arm(1, Duration::from_millis(700));
            agent.wait_for(|event| *event == GuardianEvent::Empty);
            let late = cluster.try_start(&agent, true);
            let refused =
                matches!(&late, Err(GuardianError::Refused(why)) if why.contains("deadline"));
            assert!(refused, "{late:?}");
            assert_eq!(cluster.alive(), 0);
            // A standby, or whatever was ordered while nothing was armed.
            cluster.start(&agent);
            cluster.stop_by_hand("fast");
            agent.wait_for(|event| *event == GuardianEvent::Empty);
            agent.arm(2, Duration::from_secs(20));
            cluster.try_start(&agent, true).expect("a deadline stands");
        },
    );
}

#[test]
fn fences_at_the_deadline_when_the_agent_is_gone() {
    as_postgres("fences_at_the_deadline_when_the_agent_is_gone", || {
        let cluster = Cluster::new("gone", 27011);
        let mut agent = cluster.agent();
        cluster.start(&agent);
        let load = cluster.load(4, 4);
        let deadline = agent.arm(1, Duration::from_millis(1200));
        drop(agent);
        std::thread::sleep(Duration::from_millis(800));
        assert!(cluster.alive() > 8, "nothing happens before the deadline");
        check_delays(
            "deadline, agent gone",
            &cluster,
            load,
            deadline,
            FENCE_BOUND,
        );
    });
}

#[test]
fn renewals_move_the_deadline() {
    as_postgres("renewals_move_the_deadline", || {
        let cluster = Cluster::new("renew", 27012);
        let mut agent = cluster.agent();
        cluster.start(&agent);
        let load = cluster.load(2, 1);
        for _ in 0..10 {
            agent.arm(1, Duration::from_millis(700));
            std::thread::sleep(Duration::from_millis(200));
        }
        assert!(
            cluster.alive() > 3,
            "alive after 2 s of a 0.7 s lease that is renewed"
        );
        let deadline = agent.client.armed().expect("armed").deadline;
        check_delays("end of renewals", &cluster, load, deadline, FENCE_BOUND);
    });
}

#[test]
fn kernel_timer_fences_for_a_stopped_guardian() {
    as_postgres("kernel_timer_fences_for_a_stopped_guardian", || {
        let cluster = Cluster::new("stopped", 27013);
        let mut agent = cluster.agent();
        cluster.start(&agent);
        let load = cluster.load(8, 8);
        let guardian = agent.hello.pid;
        let deadline = agent.arm(1, Duration::from_millis(1500));
        // The agent is gone too: nobody but the kernel and the witness is left to act.
        drop(agent);
        kill(guardian, Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(1000));
        assert!(
            cluster.alive() > 8,
            "nothing happens long before the deadline"
        );
        check_delays(
            "guardian stopped, agent gone",
            &cluster,
            load,
            deadline,
            FENCE_BOUND,
        );
    });
}

#[test]
fn everything_ends_with_a_killed_guardian() {
    as_postgres("everything_ends_with_a_killed_guardian", || {
        let cluster = Cluster::new("killed", 27014);
        let mut agent = cluster.agent();
        cluster.start(&agent);
        let load = cluster.load(8, 8);
        agent.arm(1, Duration::from_secs(30));
        let guardian = agent.hello.pid;
        // Agent and guardian at once.
        drop(agent);
        let at = garden_agent::clock::now();
        kill(guardian, Signal::SIGKILL);
        check_delays("guardian and agent killed", &cluster, load, at, FENCE_BOUND);
    });
}

#[test]
fn agent_stands_in_for_a_killed_guardian_and_starts_another() {
    as_postgres(
        "agent_stands_in_for_a_killed_guardian_and_starts_another",
        || {
            let cluster = Cluster::new("standin", 27015);
            let mut agent = cluster.agent();
            cluster.start(&agent);
            let load = cluster.load(4, 4);
            agent.arm(3, Duration::from_secs(30));
            let before = agent.hello.clone();
            let at = garden_agent::clock::now();
            kill(before.pid, Signal::SIGKILL);
            agent.wait_for(|event| *event == GuardianEvent::Lost);
            agent.wait_for(|event| *event == GuardianEvent::Empty);
            check_delays("guardian killed", &cluster, load, at, FENCE_BOUND);
            let seen = agent.wait_for(|event| matches!(event, GuardianEvent::Attached(_)));
            let Some(GuardianEvent::Attached(after)) = seen.last() else {
                panic!("{seen:?}")
            };
            assert_ne!(after.session, before.session);
            assert_eq!((after.postmaster, after.armed), (None, None));
            cluster.start(&agent);
        },
    );
}

#[test]
fn a_new_agent_finds_epoch_and_postmaster_as_they_were() {
    as_postgres(
        "a_new_agent_finds_epoch_and_postmaster_as_they_were",
        || {
            let cluster = Cluster::new("again", 27016);
            let mut agent = cluster.agent();
            let pid = cluster.start(&agent);
            let deadline = agent.arm(5, Duration::from_secs(20));
            agent
                .client
                .keep("session-1".into(), b"{\"seq\":7}".to_vec())
                .expect("keep");
            let busy = cluster.second_agent();
            assert!(matches!(busy, Err(GuardianError::Busy { .. })), "{busy:?}");
            let first = agent.hello.clone();
            drop(agent);

            let begin = garden_agent::clock::now();
            let mut agent = cluster.agent();
            println!(
                "attached again within {:?}",
                garden_agent::clock::now().since(begin)
            );
            assert_eq!(agent.hello.session, first.session);
            assert_eq!(agent.hello.postmaster, Some(pid));
            assert!(agent.hello.is_parent);
            assert_eq!(
                agent.hello.armed,
                Some(Armed {
                    epoch: Epoch(5),
                    deadline
                })
            );
            let kept = agent.hello.kept.clone().expect("kept");
            assert_eq!(
                (kept.session.as_str(), kept.blob.as_slice()),
                ("session-1", &b"{\"seq\":7}"[..])
            );

            refuses(&mut agent, |c| {
                c.arm(Epoch(4), deadline + Duration::from_secs(60))
            });
            refuses(&mut agent, |c| c.disarm(Epoch(5)));
            refuses(&mut agent, |c| {
                c.disarm_because(Epoch(4), Basis::InRecovery)
            });
            assert_eq!(
                agent.client.armed(),
                Some(Armed {
                    epoch: Epoch(5),
                    deadline
                })
            );
            agent
                .client
                .disarm_because(Epoch(5), Basis::InRecovery)
                .expect("disarm");
            agent.wait_for(|event| *event == GuardianEvent::Disarmed);
            agent.client.signal(Signal::SIGINT).expect("signal");
            let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
            assert!(
                seen.contains(&GuardianEvent::PostmasterExited {
                    pid,
                    status: Some(0)
                }),
                "{seen:?}"
            );
            assert!(
                !seen.iter().any(|e| matches!(e, GuardianEvent::Orphans(_))),
                "{seen:?}"
            );
        },
    );
}

fn refuses(
    agent: &mut Agent,
    order: impl Fn(&garden_agent::guardian::GuardianClient) -> Result<(), GuardianError>,
) {
    order(&agent.client).expect("sent");
    agent.wait_for(|event| matches!(event, GuardianEvent::Refused(_)));
}

#[test]
fn orphans_of_a_killed_postmaster_are_ended_at_once() {
    as_postgres("orphans_of_a_killed_postmaster_are_ended_at_once", || {
        let cluster = Cluster::new("orphans", 27017);
        let mut agent = cluster.agent();
        let pid = cluster.start(&agent);
        let load = cluster.load(4, 8);
        agent.arm(1, Duration::from_secs(30));
        let at = garden_agent::clock::now();
        kill(pid, Signal::SIGKILL);
        let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
        let empty = garden_agent::clock::now();
        println!(
            "postmaster killed: reported empty {:+.1} ms",
            millis(empty, at)
        );
        assert!(
            seen.contains(&GuardianEvent::PostmasterExited {
                pid,
                status: Some(9)
            }),
            "{seen:?}"
        );
        assert!(
            seen.iter()
                .any(|e| matches!(e, GuardianEvent::Orphans(n) if *n > 0)),
            "{seen:?}"
        );
        assert_eq!(cluster.alive(), 0, "empty means empty");
        check_delays("postmaster killed", &cluster, load, at, FENCE_BOUND);
        assert!(
            agent.client.armed().is_some(),
            "the deadline is the agent's to give up"
        );
    });
}

#[test]
fn adopts_a_postmaster_that_others_started() {
    as_postgres("adopts_a_postmaster_that_others_started", || {
        let cluster = Cluster::new("adopt", 27018);
        let pid = cluster.start_by_hand();
        let mut agent = cluster.agent();
        assert_eq!(agent.hello.postmaster, Some(pid), "found by itself");
        assert!(!agent.hello.is_parent);
        let adopt = |agent: &Agent, pid| cluster.runtime.block_on(agent.client.adopt(pid));
        let me = i32::try_from(std::process::id()).expect("pid");
        assert!(matches!(adopt(&agent, me), Err(GuardianError::Refused(_))));
        assert_eq!(
            adopt(&agent, pid).expect("adopt"),
            pid,
            "again is no mistake"
        );
        let load = cluster.load(4, 8);
        let deadline = agent.arm(1, Duration::from_millis(1000));
        agent.wait_for(|event| *event == GuardianEvent::Empty);
        check_delays("adopted, deadline", &cluster, load, deadline, FENCE_BOUND);

        cluster.wait_reaped(pid);
        let pid = cluster.start_by_hand();
        adopt(&agent, pid).expect("adopt");
        let load = cluster.load(2, 4);
        let at = garden_agent::clock::now();
        kill(pid, Signal::SIGKILL);
        let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
        assert!(
            seen.contains(&GuardianEvent::PostmasterExited { pid, status: None }),
            "{seen:?}"
        );
        check_delays(
            "adopted, postmaster killed",
            &cluster,
            load,
            at,
            FENCE_BOUND,
        );

        cluster.wait_reaped(pid);
        let pid = cluster.start_by_hand();
        agent.wait_for(|event| *event == GuardianEvent::PostmasterFound(pid));
        cluster.stop_by_hand("fast");
        agent.wait_for(|event| *event == GuardianEvent::PostmasterExited { pid, status: None });
        agent.wait_for(|event| *event == GuardianEvent::Empty);
    });
}

/// A member is handed back to Patroni with its PostgreSQL running: the guardian stays as the parent of
/// that server. When Patroni restarts it, the new server is somebody else's, and none of the orphans.
#[test]
fn the_next_server_of_another_agent_is_let_alone_after_ours_has_gone() {
    as_postgres(
        "the_next_server_of_another_agent_is_let_alone_after_ours_has_gone",
        || {
            let cluster = Cluster::new("handed-over", 27031);
            let agent = cluster.agent();
            let first = cluster.start(&agent);
            drop(agent);
            cluster.stop_by_hand("fast");
            cluster.wait_reaped(first);
            let second = cluster.start_by_hand();
            // Twice as long as the guardian waits for the log writer of the first before it ends it.
            std::thread::sleep(Duration::from_millis(500));
            assert_eq!(cluster.pid_in_file(), second);
            assert!(cluster.alive() > 0, "the second server runs");
            cluster.stop_by_hand("fast");
        },
    );
}

#[test]
fn a_first_guardian_ends_what_a_dead_postmaster_left() {
    as_postgres("a_first_guardian_ends_what_a_dead_postmaster_left", || {
        let cluster = Cluster::new("left", 27022);
        let pid = cluster.start_by_hand();
        let load = cluster.load(0, 4);
        kill(pid, Signal::SIGKILL);
        cluster.wait_reaped(pid);
        assert!(
            cluster.alive() >= 2,
            "backends that are busy outlive their postmaster"
        );
        let mut agent = cluster.agent();
        let at = garden_agent::clock::now();
        agent.wait_for(|event| *event == GuardianEvent::Empty);
        check_delays("left behind", &cluster, load, at, FENCE_BOUND);
        cluster.start(&agent);
    });
}

#[test]
fn a_program_that_cannot_be_executed_is_an_exit() {
    as_postgres("a_program_that_cannot_be_executed_is_an_exit", || {
        let cluster = Cluster::new("noexec", 27019);
        let mut agent = cluster.agent();
        let start =
            agent
                .client
                .start_postmaster(vec!["/nowhere/postgres".into()], vec![], None, false);
        let pid = cluster.runtime.block_on(start).expect("a pid");
        let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
        let exit = GuardianEvent::PostmasterExited {
            pid,
            status: Some(127 << 8),
        };
        assert!(seen.contains(&exit), "{seen:?}");
        agent.client.leave().expect("leave");
        let guardian = agent.hello.pid;
        drop(agent);
        ends(guardian);
    });
}

/// It ends long before an idle one, which waits 15 s for another agent.
fn ends(guardian: i32) {
    let begin = std::time::Instant::now();
    while garden_agent::guardian::proc::Process::read(guardian).is_some_and(|p| p.is_alive()) {
        assert!(begin.elapsed() < Duration::from_secs(8), "it did not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The leader is shut down and hands its member to Patroni at once: what runs there at the deadline of the
/// lease that was given up is not ours.
#[test]
fn a_guardian_whose_agent_has_left_does_not_wait_for_the_deadline() {
    as_postgres(
        "a_guardian_whose_agent_has_left_does_not_wait_for_the_deadline",
        || {
            let cluster = Cluster::new("left-armed", 27032);
            let mut agent = cluster.agent();
            cluster.start(&agent);
            agent.arm(1, Duration::from_mins(1));
            cluster.stop_by_hand("fast");
            agent.wait_for(|event| *event == GuardianEvent::Empty);
            agent.client.leave().expect("leave");
            let guardian = agent.hello.pid;
            drop(agent);
            ends(guardian);
        },
    );
}

/// On a busy machine the guardian reads only after the agent has ended, and its answers reach nobody.
#[test]
fn what_an_agent_asked_before_it_ended_is_carried_out() {
    as_postgres("what_an_agent_asked_before_it_ended_is_carried_out", || {
        let cluster = Cluster::new("late", 27033);
        let agent = cluster.agent();
        let guardian = agent.hello.pid;
        kill(guardian, Signal::SIGSTOP);
        agent.client.disarm(proto::ids::Epoch(0)).expect("disarm");
        agent.client.leave().expect("leave");
        drop(agent);
        std::thread::sleep(Duration::from_secs(1));
        kill(guardian, Signal::SIGCONT);
        ends(guardian);
    });
}

#[test]
fn strict_form_needs_nobody_to_be_scheduled() {
    as_postgres("strict_form_needs_nobody_to_be_scheduled", || {
        let cluster = Cluster::new("strict", 27020);
        let mut agent = cluster.strict_agent();
        if !agent.hello.fit {
            println!("no PID namespaces on this machine; nothing shown");
            return;
        }
        assert_eq!(agent.hello.method, "namespace");
        let pid = cluster.start(&agent);
        assert_eq!(cluster.pid_in_file(), pid, "the same pid on both sides");
        let load = cluster.load(8, 8);
        let deadline = agent.arm(1, Duration::from_millis(1500));
        let guardian = agent.hello.pid;
        drop(agent);
        // Everything: guardian, witness, postmaster, backends. They are never continued.
        let stopped = Stopped::all(|| cluster.everybody(guardian));
        assert!(stopped.0.len() > 18, "{:?}", stopped.0);
        check_delays(
            "strict, everything stopped",
            &cluster,
            load,
            deadline,
            FENCE_BOUND,
        );
        drop(stopped);
    });
}

/// Processes that are stopped until this is dropped: then whoever still lives goes on, and ends.
struct Stopped(Vec<i32>);

impl Stopped {
    /// Looks again until nobody is new; who has ended since the look is not there to be stopped.
    fn all(everybody: impl Fn() -> Vec<i32>) -> Self {
        let mut stopped = Self(Vec::new());
        loop {
            let found = everybody().into_iter();
            let new: Vec<i32> = found.filter(|pid| !stopped.0.contains(pid)).collect();
            if new.is_empty() {
                return stopped;
            }
            for pid in new {
                let at = nix::unistd::Pid::from_raw(pid);
                match nix::sys::signal::kill(at, Signal::SIGSTOP) {
                    Ok(()) => stopped.0.push(pid),
                    Err(nix::errno::Errno::ESRCH) => {}
                    Err(error) => panic!("stop {pid}: {error}"),
                }
            }
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), Signal::SIGCONT);
        }
    }
}

#[test]
fn strict_form_reports_exits_and_orphans_like_the_other() {
    as_postgres(
        "strict_form_reports_exits_and_orphans_like_the_other",
        || {
            let cluster = Cluster::new("strictend", 27021);
            let mut agent = cluster.strict_agent();
            if !agent.hello.fit {
                println!("no PID namespaces on this machine; nothing shown");
                return;
            }
            let pid = cluster.start(&agent);
            cluster.stop_by_hand("fast");
            let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
            assert!(
                seen.contains(&GuardianEvent::PostmasterExited {
                    pid,
                    status: Some(0)
                }),
                "{seen:?}"
            );

            let pid = cluster.start(&agent);
            let load = cluster.load(4, 8);
            let at = garden_agent::clock::now();
            kill(pid, Signal::SIGKILL);
            let seen = agent.wait_for(|event| *event == GuardianEvent::Empty);
            assert!(
                seen.contains(&GuardianEvent::PostmasterExited {
                    pid,
                    status: Some(9)
                }),
                "{seen:?}"
            );
            check_delays("strict, postmaster killed", &cluster, load, at, FENCE_BOUND);

            let pid = cluster.start(&agent);
            let load = cluster.load(4, 8);
            let deadline = agent.arm(1, Duration::from_millis(800));
            agent.wait_for(|event| *event == GuardianEvent::Empty);
            assert!(garden_agent::guardian::proc::Process::read(pid).is_none_or(|p| !p.is_alive()));
            check_delays("strict, deadline", &cluster, load, deadline, FENCE_BOUND);
        },
    );
}

#[test]
fn an_idle_guardian_is_small_and_single_threaded() {
    as_postgres("an_idle_guardian_is_small_and_single_threaded", || {
        let cluster = Cluster::new("small", 27023);
        let mut agent = cluster.agent();
        cluster.start(&agent);
        for _ in 0..5 {
            agent.arm(1, Duration::from_secs(8));
        }
        let of = |name: &str| {
            let status = std::fs::read_to_string(format!("/proc/{}/status", agent.hello.pid));
            let status = status.expect("status");
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace()
                .nth(1)
                .and_then(|n| n.parse::<u64>().ok())
                .expect("number")
        };
        println!(
            "guardian: {} kB, of them {} kB its own",
            of("VmRSS:"),
            of("RssAnon:")
        );
        assert_eq!(of("Threads:"), 1);
        assert!(of("RssAnon:") < 4096);
    });
}
