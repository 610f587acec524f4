//! A new cluster, from its first key to the moment it is presented.

use super::scene::*;

/// A member that has just made the cluster, of which etcd holds its claim.
fn made(dynamic: Value) -> Scene {
    let mut made = scene("node1", dynamic, json!({}));
    made.keys = vec![("initialize".into(), String::new())];
    made.m.bootstrapped = true;
    made
}

fn orders(scene: &Scene) -> (Option<Armed>, bool) {
    let (decision, _) = scene.decide();
    let armed = decision.actions.iter().find_map(|action| match action {
        Action::Arm { epoch, deadline } => Some(Armed {
            epoch: *epoch,
            deadline: *deadline,
        }),
        _ => None,
    });
    let written = |action: &Action| {
        matches!(
            action,
            Action::Write {
                task: Task::Lock,
                ..
            }
        )
    };
    (armed, decision.actions.iter().any(written))
}

/// S2: a claim was committed, its answer was lost, and its server went on without a deadline.
#[test]
fn a_new_cluster_is_presented_only_under_a_deadline() {
    let made_now = made(json!({}));
    let deadline = NOW + Duration::from_secs(29);
    let armed = Armed {
        epoch: Epoch(0),
        deadline,
    };
    assert_eq!(orders(&made_now), (Some(armed), false));
    let confirmed = made_now.clone().with(|scene| {
        scene.o.guardian.armed = Some(armed);
    });
    assert_eq!(orders(&confirmed), (None, true));
    // S7: what etcd may name is not thrown away by an agent that knows nothing of it.
    let marked = confirmed.clone().with(|scene| {
        scene.o.postgres.data_dir = DataDir::Unfinished("bootstrap of garden".into());
        scene.o.postgres.control = None;
    });
    assert_eq!(orders(&marked), (None, false));
    assert!(marked.decide().0.actions.contains(&Action::ClearMark));
    // Any try may have been the one that was committed: a later one does not move the deadline on.
    let renewed = confirmed.with(|scene| {
        scene.o.now = NOW + Duration::from_secs(9);
        if let Some(session) = &mut scene.o.dcs.session {
            session.sent_at = scene.o.now;
        }
    });
    assert_eq!(orders(&renewed), (None, true));
    // No time is left under a session that was renewed long ago.
    let spent = made_now.with(|scene| scene.o.now = NOW + Duration::from_secs(28));
    assert_eq!(orders(&spent), (None, false));
    assert_eq!(orders(&made(paused())), (None, true), "S13");
    // Somebody else makes the cluster.
    let other = made(json!({})).with(|scene| {
        if let Some(session) = &mut scene.o.dcs.session {
            session.id = LeaseId(7);
        }
    });
    assert_eq!(orders(&other), (None, false));
}

/// It ended with its server running, which no agent looked after from then on.
#[test]
fn a_cluster_that_another_member_overtook_is_set_aside() {
    let overtaken = made(json!({}))
        .key("initialize", Some("7000000000000000001"))
        .key("leader", Some("node2"));
    let (rule, job) = overtaken.job();
    assert_eq!(rule, "bootstrap-failed");
    let system = SystemId(SYSTEM);
    let set_aside = Job::SetAside {
        system: Some(system),
    };
    assert_eq!(job, Some(set_aside.clone()));
    let marked = overtaken.clone().with(|scene| {
        scene.o.postgres.data_dir = DataDir::Unfinished("bootstrap of garden".into());
        scene.o.postgres.control = None;
    });
    assert_eq!(marked.job().1, Some(Job::SetAside { system: None }));
    let aside = overtaken.clone().down().with(|scene| {
        let (name, record) = member("node2", "primary");
        scene.keys.push((name, record));
        scene.o.postgres.data_dir = DataDir::Empty;
        scene.o.postgres.control = None;
        scene.o.finished = Some(Finished {
            id: JobId(1),
            job: set_aside,
            at: NOW,
            end: JobEnd::Done,
        });
    });
    assert_eq!(aside.job().0, "clone");
    // Not before it is known to be another cluster.
    let unknown = overtaken.clone().key("initialize", None);
    assert!(
        matches!(unknown.job().1, Some(Job::Stop { .. })),
        "{unknown:?}"
    );
    assert_eq!(unknown.down().job().1, None);
    // Ours: what we wrote was committed, and somebody else leads it by now.
    let ours = overtaken.key("initialize", Some(&SYSTEM.to_string()));
    let (decision, memory) = ours.decide();
    assert_eq!(decision.reason.rule(), "bootstrap-finish");
    assert!(!memory.bootstrapped);
}

/// S7: an agent that cannot set it aside leaves nothing that runs, and the data where they are.
#[test]
fn a_cluster_that_cannot_be_set_aside_does_not_run_on() {
    let failed = made(json!({})).with(|scene| {
        scene.o.finished = Some(Finished {
            id: JobId(1),
            job: Job::SetAside { system: None },
            at: NOW,
            end: JobEnd::Failed(Failure::Other("no room".into())),
        });
    });
    let (decision, _) = failed.decide();
    assert!(decision.actions.contains(&Action::Fence));
    let ends = |action: &Action| matches!(action, Action::Exit { code: 1, .. });
    assert!(decision.actions.iter().any(ends));
}
