//! gardenctl as operators and scripts meet it: exit codes, texts, requests, and what it leaves in etcd.

mod ctl_support;

use ctl_support::{Stage, keys};
use expect_test::expect;
use std::os::unix::fs::PermissionsExt;

async fn usual() -> Stage {
    let stage = Stage::start().await;
    stage.put(&stage.usual()).await;
    stage
}

#[tokio::test]
async fn the_table_of_members_has_the_known_shape() {
    let stage = usual().await;
    let outcome = stage.gardenctl(&["list"], "");
    expect![[r#"
        + Cluster: demo (7268616322854375442) -----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-----------------------------------------------+-----------------+
        | Member | Host       | Role         | State     | TL | Receive LSN | Lag | Replay LSN | Lag | Pending restart | Pending restart reason    | Scheduled restart                             | Tags            |
        +--------+------------+--------------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-----------------------------------------------+-----------------+
        | gd-a   | 192.0.2.11 | Leader       | running   |  5 |             |     |            |     |                 |                           |                                               |                 |
        | gd-b   | 192.0.2.12 | Sync Standby | streaming |  5 |   0/404BE60 |   0 |  0/3B4BE60 |   5 | *               | max_connections: 100->200 |                                               | clonefrom: true |
        | gd-c   | 192.0.2.13 | Replica      | stopped   |    |     unknown |     |    unknown |     |                 |                           | 2030-01-01T00:00:00+00:00 if version < 15.0.0 |                 |
        +--------+------------+--------------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-----------------------------------------------+-----------------+
    "#]]
    .assert_eq(&outcome.stdout);
    assert_eq!(outcome.code, Some(0));
    assert!(stage.agents.asked().is_empty(), "the table needs no agent");
}

#[tokio::test]
async fn failed_requests_are_told_and_exit_zero_but_a_silent_agent_is_an_error() {
    let stage = usual().await;
    stage
        .agents
        .answer("gd-a", "POST /restart", 503, "still starting");
    let outcome = stage.gardenctl(&["restart", "demo", "gd-a", "--force"], "");
    let line = "Failed: restart for member gd-a, status code=503, (still starting)\n";
    assert!(outcome.stdout.ends_with(line), "{outcome:?}");
    assert_eq!(outcome.code, Some(0));

    stage.agents.answer("gd-a", "POST /restart", 0, "");
    let outcome = stage.gardenctl(&["restart", "demo", "--force"], "");
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome
            .stderr
            .starts_with("Error: member gd-a is not accessible: "),
        "{outcome:?}"
    );
    let lines: Vec<&str> = outcome.stderr.lines().collect();
    assert!(
        matches!(lines.as_slice(), [_, hint] if hint.starts_with("Hint: ")),
        "what to do next is said: {outcome:?}"
    );
}

#[tokio::test]
async fn an_unknown_outcome_of_a_switchover_is_not_called_a_failure() {
    let stage = usual().await;
    let text = "Switchover status unknown after 20 seconds; operation may still be in progress";
    stage.agents.answer("gd-a", "POST /switchover", 503, text);
    let outcome = stage.gardenctl(&["switchover", "--force"], "");
    let line = format!("Switchover result unknown, details: 503, {text}\n");
    assert!(outcome.stdout.ends_with(&line), "{outcome:?}");
    assert_eq!(outcome.code, Some(0));
    assert_eq!(
        stage.agents.asked(),
        [r#"gd-a POST /switchover {"candidate": null, "leader": "gd-a"}"#]
    );
}

#[tokio::test]
async fn a_switchover_without_agents_is_left_in_etcd() {
    let stage = usual().await;
    stage.agents.answer("gd-a", "POST /switchover", 0, "");
    let args = ["switchover", "--force", "--candidate", "gd-b"];
    let outcome = stage.gardenctl(&args, "");
    assert_eq!(outcome.code, Some(0));
    let text = "Could not switchover using Patroni api, falling back to DCS";
    assert!(outcome.stdout.contains(text), "{outcome:?}");
    let key = stage.value("failover").await;
    assert_eq!(key.as_deref(), Some(r#"{"leader":"gd-a","member":"gd-b"}"#));
}

#[tokio::test]
async fn a_change_of_the_configuration_does_not_overwrite_one_that_was_faster() {
    let stage = usual().await;
    // The editor of this test changes the file, and somebody else is faster: the same program does it.
    let script = format!(
        "#!/bin/sh\nsed -i 's/^ttl: .*/ttl: 44/' \"$1\"\n\
         EDITOR=false {} edit-config -s loop_wait=2 --force >/dev/null\n",
        env!("CARGO_BIN_EXE_gardenctl")
    );
    let editor = stage.file("editor.sh");
    std::fs::write(&editor, script).expect("write the editor");
    std::fs::set_permissions(&editor, PermissionsExt::from_mode(0o755)).expect("make it a program");
    let wrapper = stage.file("gardenctl.sh");
    let program = env!("CARGO_BIN_EXE_gardenctl");
    let text = format!(
        "#!/bin/sh\nEDITOR={} exec {program} \"$@\"\n",
        editor.display()
    );
    std::fs::write(&wrapper, text).expect("write the wrapper");
    std::fs::set_permissions(&wrapper, PermissionsExt::from_mode(0o755))
        .expect("make it a program");
    let wrapper = wrapper.display().to_string();

    let outcome = stage.run(&wrapper, &["edit-config"], "y\n");
    assert_eq!(outcome.code, Some(1));
    let error = "Error: Config modification aborted due to concurrent changes\n";
    assert_eq!(outcome.stderr, error);
    let config = stage.value("config").await.unwrap_or_default();
    assert!(
        config.contains(r#""loop_wait":2"#) && config.contains(r#""ttl":30"#),
        "{config}"
    );

    let outcome = stage.run(&wrapper, &["edit-config"], "y\n");
    assert_eq!(
        outcome.stdout.lines().last(),
        Some("Apply these changes? [y/N]: Configuration changed")
    );
}

#[tokio::test]
async fn input_that_ends_aborts() {
    let stage = usual().await;
    for args in [
        &["restart", "demo"][..],
        &["remove", "demo"],
        &["switchover"],
    ] {
        let outcome = stage.gardenctl(args, "");
        assert_eq!(
            (outcome.code, outcome.stderr.as_str()),
            (Some(1), "Aborted!\n"),
            "{args:?}"
        );
    }
    assert!(stage.agents.asked().is_empty());
}

#[tokio::test]
async fn usage_errors_exit_two_and_missing_stores_one() {
    let stage = usual().await;
    for args in [
        &["restart"][..],
        &["nothing"],
        &["list", "-f", "xml"],
        &["flush", "demo", "gd-c"],
        &["query", "-f", "/nowhere"],
        &["failover", "--leader", "gd-a"],
    ] {
        assert_eq!(stage.gardenctl(args, "").code, Some(2), "{args:?}");
    }
    std::fs::write(stage.file("empty.yml"), "scope: demo\n").expect("write");
    let empty = stage.file("empty.yml").display().to_string();
    let outcome = stage.gardenctl(&["-c", &empty, "list"], "");
    assert_eq!(outcome.code, Some(1));
    assert!(
        outcome
            .stderr
            .starts_with("Error: Can not find suitable configuration of")
    );
}

#[tokio::test]
async fn pause_waits_until_every_living_member_has_seen_it() {
    let stage = usual().await;
    let outcome = stage.gardenctl(&["pause", "--wait"], "");
    // Nobody writes its key here, so nobody is blamed.
    expect![[r#"
        'pause' request sent, waiting until it is recognized by all nodes
        Success: cluster management is paused
    "#]]
    .assert_eq(&outcome.stdout);
    assert_eq!(
        stage.agents.asked(),
        [r#"gd-a PATCH /config {"pause": true}"#]
    );
}

#[tokio::test]
async fn reinit_waits_until_the_copy_is_done() {
    let stage = usual().await;
    stage
        .agents
        .answer("gd-b", "GET /patroni", 200, r#"{"state": "running"}"#);
    let args = [
        "reinit",
        "demo",
        "gd-b",
        "--force",
        "--from-leader",
        "--wait",
    ];
    let outcome = stage.gardenctl(&args, "");
    let lines: Vec<&str> = outcome.stdout.lines().rev().take(3).collect();
    assert_eq!(
        lines,
        [
            "Reinitialize is completed on: gd-b",
            "Waiting for reinitialize to complete on: gd-b",
            "Success: reinitialize for member gd-b",
        ]
    );
    assert_eq!(
        stage.agents.asked(),
        [
            r#"gd-b POST /reinitialize {"force": true, "from_leader": true}"#,
            "gd-b GET /patroni"
        ]
    );
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_the_output_quietly() {
    let stage = usual().await;
    let program = env!("CARGO_BIN_EXE_gardenctl");
    let script = format!("{program} list -w 0.1 | head -n 1");
    let outcome = stage.run("sh", &["-c", &script], "");
    assert_eq!(outcome.stdout.lines().count(), 1);
    assert_eq!(outcome.stderr, "");
}

#[tokio::test]
async fn the_timeline_is_told_from_the_journals_that_can_be_read() {
    let stage = usual().await;
    let journal = [
        r#"{"seq":1,"wall_ms":1790000000000,"member":"gd-b","rule":"following","reason":"as ever"}"#,
        r#"{"seq":2,"wall_ms":1790000005000,"member":"gd-b","rule":"suspect","reason":"gd-a is silent"}"#,
        r#"{"seq":3,"wall_ms":1790000005040,"member":"gd-b","rule":"wait-promises","reason":"1 of 2"}"#,
        r#"{"seq":4,"wall_ms":1790000005060,"member":"gd-b","rule":"fenced-claim","reason":"taking over"}"#,
        r#"{"seq":5,"wall_ms":1790000005070,"member":"gd-b","rule":"promote","reason":"promoted"}"#,
        r#"{"seq":6,"wall_ms":1790000005130,"member":"gd-b","rule":"leading","reason":"I lead"}"#,
    ];
    stage
        .agents
        .answer("", "GET /garden/journal?limit=500", 404, "");
    stage.agents.answer(
        "gd-b",
        "GET /garden/journal?limit=500",
        200,
        &journal.join("\n"),
    );
    let outcome = stage.gardenctl(&["timeline"], "");
    expect![[r#"
        Cluster demo: gd-b took over in 130 ms, beginning at 2026-09-21 14:13:25.000
        +----------+--------+----------+--------+---------------+----------------+
        | Phase    | At, ms | Took, ms | Member | Rule          | Reason         |
        +----------+--------+----------+--------+---------------+----------------+
        | detected |      0 |        0 | gd-b   | suspect       | gd-a is silent |
        | fenced   |     40 |       40 | gd-b   | wait-promises | 1 of 2         |
        | elected  |     60 |       20 | gd-b   | fenced-claim  | taking over    |
        | promoted |     70 |       10 | gd-b   | promote       | promoted       |
        | routed   |    130 |       60 | gd-b   | leading       | I lead         |
        +----------+--------+----------+--------+---------------+----------------+
    "#]]
    .assert_eq(&outcome.stdout);
}

#[tokio::test]
async fn members_explain_themselves_and_the_records_tell_the_rest() {
    let stage = usual().await;
    stage.agents.answer("", "GET /garden", 404, "");
    let words = r#"{"rule": "following", "reason": "no action", "job": "clone"}"#;
    stage.agents.answer("gd-b", "GET /garden", 200, words);
    let outcome = stage.gardenctl(&["explain"], "");
    expect![[r#"
        gd-a: leads
            its agent is not garden-agent and does not explain itself
        gd-b: does not lead, since gd-a does; it could take over
            no action [following]
            under way: clone
        gd-c: does not lead, since gd-a does; it could not take over: its PostgreSQL is not running (stopped)
            its agent is not garden-agent and does not explain itself
        Failover: gd-a holds the leader key on an etcd lease of 30 s; gd-b could take over if it stopped
    "#]]
    .assert_eq(&outcome.stdout);
}

#[tokio::test]
async fn the_doctor_fails_on_what_must_be_looked_at_only() {
    let stage = usual().await;
    let status = r#"{"state": "running", "patroni": {"version": "4.1.4"}}"#;
    stage.agents.answer("", "GET /patroni", 200, status);
    let outcome = stage.gardenctl(&["doctor"], "");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stdout);
    let warning = "| WARN   | pending               | gd-b needs a restart (max_connections)";
    assert!(outcome.stdout.contains(warning), "{}", outcome.stdout);

    stage
        .put(&keys(&[
            ("initialize", "7268616322854375442"),
            ("record", "nonsense"),
        ]))
        .await;
    let outcome = stage.gardenctl(&["doctor"], "");
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(1), ""));
    for failure in [
        "/record: expected a lease record",
        "nobody leads",
        "has no members",
    ] {
        let line = outcome.stdout.lines().find(|line| line.contains(failure));
        assert!(
            line.is_some_and(|line| line.starts_with("| FAIL")),
            "{}",
            outcome.stdout
        );
    }
}
