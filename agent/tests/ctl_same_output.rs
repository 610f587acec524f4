//! The same cluster data and the same answers of agents, shown by gardenctl and by a released
//! `patronictl`: standard output, exit code, error lines, requests, and what stands in etcd afterwards
//! must be equal. `GARDEN_PATRONICTL_BIN` names the program; without it, and without one in `PATH`, there is
//! nothing to compare with and a line says so. `./deploy/test` installs it and sets the variable.

mod ctl_support;

use ctl_support::clusters::clusters;
use ctl_support::{Outcome, Stage};
use std::path::PathBuf;

/// The other program.
fn patronictl() -> Option<String> {
    let found = std::env::var_os("GARDEN_PATRONICTL_BIN")
        .filter(|path| !path.is_empty())
        .map(PathBuf::from)
        .or_else(|| {
            let path = std::env::var_os("PATH")?;
            std::env::split_paths(&path)
                .map(|dir| dir.join("patronictl"))
                .find(|p| p.is_file())
        });
    if found.is_none() {
        println!("skipped: no patronictl in PATH, and GARDEN_PATRONICTL_BIN is not set");
    }
    found.map(|path| path.display().to_string())
}

/// Moments become the same text.
fn without_times(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        match moment_length(rest) {
            Some(length) => {
                out.push_str("<moment>");
                rest = rest.get(length..).unwrap_or_default();
            }
            None => {
                let mut chars = rest.chars();
                out.extend(chars.next());
                rest = chars.as_str();
            }
        }
    }
    out
}

/// The length of a moment of this year that text begins with: `YYYY-MM-DD hh:mm[:ss[.fffff]]`.
fn moment_length(text: &str) -> Option<usize> {
    let year = jiff::Zoned::now().year().to_string();
    let shape = "0000-00-00 00:00";
    let matches = |length: usize, shape: &str| {
        let part = text.get(..length)?;
        let fits = part.chars().zip(shape.chars()).all(|(c, s)| match s {
            '0' => c.is_ascii_digit(),
            ' ' => c == ' ' || c == 'T',
            s => c == s,
        });
        fits.then_some(length)
    };
    if !text.starts_with(&year) {
        return None;
    }
    let long = matches(25, "0000-00-00 00:00:00.00000");
    // A zone follows only a moment that somebody wrote, and that must be the same.
    let zoned = |length: usize| {
        text.get(length..)
            .is_some_and(|rest| rest.starts_with(['+', '.']))
    };
    let found = long
        .or(matches(19, "0000-00-00 00:00:00"))
        .or(matches(16, shape))?;
    (!zoned(found)).then_some(found)
}

/// What scripts read: the error lines, without tracebacks and log lines.
fn error_lines(outcome: &Outcome) -> Vec<&str> {
    let said = |line: &&str| line.starts_with("Error: ") || *line == "Aborted!";
    outcome.stderr.lines().filter(said).collect()
}

/// One command for both programs, from the same beginning.
struct Comparison<'s> {
    stage: &'s Stage,
    patronictl: &'s str,
    keys: Vec<(String, String)>,
}

impl Comparison<'_> {
    async fn run(&self, args: &[&str], input: &str) {
        self.stage.put(&self.keys).await;
        self.stage.agents.asked();
        let theirs = self.stage.run(self.patronictl, args, input);
        let (their_asked, their_keys) = (self.stage.agents.asked(), self.values().await);

        self.stage.put(&self.keys).await;
        let ours = self.stage.gardenctl(args, input);
        let (our_asked, our_keys) = (self.stage.agents.asked(), self.values().await);

        let about = format!("{args:?} <<< {input:?}\ntheir stderr: {}", theirs.stderr);
        let shown = |outcome: &Outcome| without_times(&outcome.stdout);
        assert_eq!(shown(&ours), shown(&theirs), "standard output of {about}");
        assert_eq!(ours.code, theirs.code, "exit code of {about}");
        assert_eq!(
            error_lines(&ours),
            error_lines(&theirs),
            "errors of {about}"
        );
        assert_eq!(our_asked, their_asked, "requests of {about}");
        assert_eq!(our_keys, their_keys, "keys after {about}");
    }

    /// Keys and values, JSON as what it means.
    async fn values(&self) -> Vec<(String, Result<serde_json::Value, String>)> {
        let read = |value: &str| serde_json::from_str(value).map_err(|_| value.to_owned());
        let snapshot = self.stage.snapshot().await;
        snapshot
            .entries
            .iter()
            .map(|(key, e)| (key.clone(), read(&e.value)))
            .collect()
    }
}

const LOOKS: &[&[&str]] = &[
    &["list"],
    &["list", "-e"],
    &["list", "-f", "tsv"],
    &["list", "-f", "json"],
    &["list", "-f", "yaml"],
    &["topology"],
    &["dsn", "-r", "any"],
    &["dsn", "-r", "standby"],
    &["show-config"],
    &["history"],
    &["history", "-f", "json"],
    &["history", "-f", "yml"],
    &["history", "-f", "tsv"],
];

#[tokio::test]
async fn every_cluster_looks_the_same_in_every_format() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    let stage = Stage::start().await;
    for keys in clusters(&stage) {
        let comparison = Comparison {
            stage: &stage,
            patronictl: &patronictl,
            keys,
        };
        for args in LOOKS {
            comparison.run(args, "").await;
        }
    }
}

#[tokio::test]
async fn unknown_clusters_and_wrong_words_end_the_same_way() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    let stage = Stage::start().await;
    let comparison = Comparison {
        stage: &stage,
        patronictl: &patronictl,
        keys: stage.usual(),
    };
    let commands: &[&[&str]] = &[
        &["list", "nix"],
        &["list", "nix", "-f", "json"],
        &["list", "nix", "-f", "yaml"],
        &["list", "demo", "nix", "-f", "json"],
        &["list", "demo", "nix", "-t"],
        &["list", "--group", "1"],
        &["topology", "nix"],
        &["history", "nix"],
        &["show-config", "nix"],
        &["dsn", "nix"],
        &["dsn"],
        &["dsn", "-m", "gd-c"],
        &["dsn", "-m", "gd-x"],
        &["dsn", "-r", "any", "-m", "gd-a"],
        &["dsn", "-r", "standby-leader"],
        &["-d", "nope://x", "list"],
        &["-c", "/nix", "list"],
        &["restart", "nix", "--force"],
        &["edit-config", "nix", "-s", "a=b"],
        &["switchover", "nix", "--force"],
        &["failover", "nix", "--force", "--candidate", "a"],
        &["demote-cluster"],
        &["promote-cluster", "--force"],
    ];
    for args in commands {
        comparison.run(args, "").await;
    }
}

#[tokio::test]
async fn members_are_acted_on_the_same_way() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    let stage = Stage::start().await;
    let comparison = Comparison {
        stage: &stage,
        patronictl: &patronictl,
        keys: stage.usual(),
    };
    let scheduled = "2031-01-01T00:00:00";
    let commands: &[(&[&str], &str)] = &[
        (&["restart", "demo", "--force"], ""),
        (&["restart", "demo"], ""),
        (&["restart", "demo", "gd-b"], "now\ny\n\n"),
        (&["restart", "demo", "gd-b"], "\n\n"),
        (
            &["restart", "demo", "gd-b", "gd-c"],
            "2031-01-01T00:00:00\ny\n15.0.0\n",
        ),
        (
            &["restart", "demo", "--scheduled", scheduled, "--pending"],
            "y\n\n",
        ),
        (&["restart", "demo", "--scheduled", scheduled], "n\n"),
        (
            &["restart", "demo", "--force", "--scheduled", scheduled],
            "",
        ),
        (&["restart", "demo", "--force", "--scheduled", "soon"], ""),
        (&["restart", "demo", "--force", "--pg-version", "15"], ""),
        (&["restart", "demo", "--force", "--pg-version", "x.y"], ""),
        (&["restart", "demo", "--force", "--pending"], ""),
        (
            &["restart", "demo", "--force", "--pending", "-r", "leader"],
            "",
        ),
        (&["restart", "demo", "gd-x", "--force"], ""),
        (
            &[
                "restart",
                "demo",
                "gd-a",
                "gd-b",
                "-r",
                "replica",
                "--force",
                "--timeout",
                "5",
            ],
            "",
        ),
        (&["reload", "demo", "--force"], ""),
        (&["reload", "demo"], "y\n"),
        (&["reload", "demo"], "what\nN\n"),
        (&["reinit", "demo", "--force"], ""),
        (&["reinit", "demo", "gd-b", "gd-c"], "y\n"),
        (
            &["reinit", "demo", "gd-b", "gd-a", "--force", "--from-leader"],
            "",
        ),
        (&["reinit", "demo", "gd-a", "--force"], ""),
        (&["flush", "demo", "restart", "--force"], ""),
        (&["flush", "demo", "gd-c", "restart"], "y\n"),
        (&["flush", "demo", "gd-c", "restart"], "n\n"),
        (&["flush", "demo", "switchover"], ""),
    ];
    for (args, input) in commands {
        comparison.run(args, input).await;
    }
    let agents = &stage.agents;
    agents.answer("gd-a", "POST /restart", 503, "postgres is still starting");
    agents.answer("gd-b", "POST /restart", 202, "Restart scheduled");
    agents.answer("gd-c", "POST /restart", 409, "x");
    agents.answer("", "POST /reload", 202, "reload scheduled");
    agents.answer("", "POST /reinitialize", 503, "restart already in progress");
    agents.answer("", "DELETE /restart", 404, "no restarts are scheduled");
    for (args, input) in [
        (&["restart", "demo", "--force"][..], ""),
        (&["reload", "demo", "--force"], ""),
        (&["reinit", "demo", "gd-b", "--force"], ""),
        (&["reinit", "demo", "gd-b"], "y\ny\n"),
        (&["reinit", "demo", "gd-b"], "y\nn\n"),
        (&["flush", "demo", "restart", "--force"], ""),
    ] {
        comparison.run(args, input).await;
    }
    agents.answer("gd-a", "POST /restart", 0, "");
    let ours = stage.gardenctl(&["restart", "demo", "--force"], "");
    assert_eq!(
        ours.code,
        Some(1),
        "the first member does not answer, so the others are left"
    );
}

#[tokio::test]
async fn leadership_is_handed_over_the_same_way() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    let stage = Stage::start().await;
    let mut comparison = Comparison {
        stage: &stage,
        patronictl: &patronictl,
        keys: stage.usual(),
    };
    let commands: &[(&[&str], &str)] = &[
        (&["switchover", "--force"], ""),
        (&["switchover"], "\n\n\ny\n"),
        (&["switchover"], "gd-a\ngd-b\n2031-01-01T00:00:00\ny\n"),
        (&["switchover"], "gd-a\ngd-b\n2031-01-01T00:00:00\nn\n"),
        (&["switchover"], "gd-a\ngd-b\nnow\nn\n"),
        (&["switchover"], "gd-b\n"),
        (&["switchover", "--force", "--candidate", "gd-x"], ""),
        (&["switchover", "--force", "--candidate", "gd-a"], ""),
        (&["switchover", "--force", "--primary", "gd-b"], ""),
        (
            &[
                "switchover",
                "--force",
                "--scheduled",
                "2031-01-01 00:00:00.123456+00:00",
            ],
            "",
        ),
        (&["switchover", "--force", "--scheduled", "soon"], ""),
        (&["failover", "--force"], ""),
        (&["failover"], "\n"),
        (&["failover"], "gd-b\ny\n"),
        (&["failover"], "gd-c\ny\ny\n"),
        (&["failover"], "gd-c\nn\n"),
        (&["failover", "--force", "--candidate", "gd-c"], ""),
    ];
    for (args, input) in commands {
        comparison.run(args, input).await;
    }
    let agents = &stage.agents;
    agents.answer("", "POST /switchover", 412, "switchover is not possible");
    comparison.run(&["switchover", "--force"], "").await;
    agents.answer(
        "",
        "POST /switchover",
        501,
        "Server does not support this operation",
    );
    comparison.run(&["switchover", "--force"], "").await;
    agents.answer("", "POST /switchover", 0, "");
    agents.answer("", "POST /failover", 0, "");
    comparison
        .run(&["switchover", "--force", "--candidate", "gd-b"], "")
        .await;
    comparison
        .run(&["failover", "--force", "--candidate", "gd-b"], "")
        .await;

    agents.forget_answers();
    comparison.keys = stage.usual_without("leader");
    comparison.run(&["switchover", "--force"], "").await;
    comparison.run(&["failover"], "gd-c\ny\ny\n").await;
    comparison.keys = stage.usual_but(&[("config", r#"{"pause":true,"loop_wait":1}"#)]);
    comparison
        .run(
            &["switchover", "--force", "--scheduled", "2031-01-01T00:00"],
            "",
        )
        .await;
    comparison
        .run(
            &[
                "restart",
                "demo",
                "--force",
                "--scheduled",
                "2031-01-01T00:00",
            ],
            "",
        )
        .await;
    comparison.keys = vec![stage.usual().remove(1), stage.usual().remove(6)];
    comparison
        .run(&["switchover", "--primary", "gd-a", "--force"], "")
        .await;
    let scheduled =
        r#"{"leader":"gd-a","member":"gd-b","scheduled_at":"2031-01-01T00:00:00+00:00"}"#;
    comparison.keys = stage.usual_but(&[("failover", scheduled)]);
    for (status, body) in [(200, "deleted"), (404, "none"), (409, "conflict"), (0, "")] {
        agents.answer("", "DELETE /switchover", status, body);
        comparison.run(&["flush", "demo", "switchover"], "").await;
    }
}

#[tokio::test]
async fn the_configuration_is_changed_the_same_way() {
    let Some(patronictl) = patronictl() else {
        return;
    };
    let stage = Stage::start().await;
    let mut comparison = Comparison {
        stage: &stage,
        patronictl: &patronictl,
        keys: stage.usual(),
    };
    let commands: &[(&[&str], &str)] = &[
        (&["edit-config", "-s", "ttl=20"], "y\n"),
        (&["edit-config", "-s", "ttl=20"], "n\n"),
        (&["edit-config", "-s", "ttl=30", "--force"], ""),
        (&["edit-config", "-q", "-s", "ttl=30", "--force"], ""),
        (&["edit-config", "-q", "-s", "ttl=20", "--force"], ""),
        (
            &[
                "edit-config",
                "-p",
                "foo=on",
                "-s",
                "a.b.c=1",
                "--force",
                "demo",
            ],
            "",
        ),
        (
            &[
                "edit-config",
                "demo",
                "-s",
                "postgresql.parameters.a.b=null",
                "-s",
                "loop_wait=null",
                "--force",
            ],
            "",
        ),
        (&["edit-config", "-s", "a", "--force"], ""),
        (&["edit-config", "--apply", "-"], "ttl: 33\nfoo: bar\n"),
        (
            &["edit-config", "--apply", "-", "--force"],
            "ttl: 33\nloop_wait: null\n",
        ),
        (
            &["edit-config", "--replace", "-", "--force"],
            "ttl: 33\nfoo: [a, b]\n",
        ),
        (&["pause"], ""),
        (&["pause", "--wait"], ""),
        (&["resume"], ""),
        (&["remove", "demo"], "wrong\n"),
        (&["remove", "demo"], "demo\nyes\n"),
        (&["remove", "demo"], "\ndemo\nYes I am aware\ngd-b\n"),
        (&["remove", "demo"], "demo\nYes I am aware\ngd-a\n"),
        (&["demote-cluster", "--host", "h"], "n\n"),
    ];
    for (args, input) in commands {
        comparison.run(args, input).await;
    }
    stage.agents.answer("", "PATCH /config", 409, "conflict");
    comparison.run(&["pause"], "").await;
    comparison
        .run(
            &[
                "demote-cluster",
                "--host",
                "h",
                "--port",
                "1",
                "--restore-command",
                "c",
                "--primary-slot-name",
                "s",
                "--force",
            ],
            "",
        )
        .await;
    stage.agents.answer("gd-a", "PATCH /config", 0, "");
    stage.agents.answer("gd-b", "PATCH /config", 200, "{}");
    comparison.run(&["pause"], "").await;
    stage.agents.answer("", "PATCH /config", 0, "");
    stage.agents.answer("gd-b", "PATCH /config", 0, "");
    comparison.run(&["pause"], "").await;
    stage.agents.forget_answers();
    comparison.keys = stage.usual_but(&[("config", r#"{"pause":true,"loop_wait":1}"#)]);
    comparison.run(&["pause"], "").await;
    comparison.run(&["resume", "--wait"], "").await;
}
