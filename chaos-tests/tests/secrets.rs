//! Secrets stay where they belong. A cluster whose passwords are all planted goes through what an
//! operator does, well and badly, at level DEBUG and with every statement logged; then all that was
//! logged, printed, answered, journalled and given to a program as an argument is searched for them.

use anyhow::{Context, Result, ensure};
use chaos_tests::process;
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::template::{SCOPE, SUPERUSER_PASSWORD};
use chaos_tests::{Builder, Cluster, Member, http, story, wait};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Planted, and what they are for. Those of PostgreSQL are the template's.
const SECRETS: &[&str] = &[
    SUPERUSER_PASSWORD,
    "replicator-secret",
    "rewind-secret",
    "rest-secret-17",
    // base64 of `operator:rest-secret-17`, as it goes over the wire.
    "b3BlcmF0b3I6cmVzdC1zZWNyZXQtMTc=",
    "wrong-type-4711",
    "rotated-secret-18",
];

const ANSWERS: &[&str] = &[
    "/patroni",
    "/cluster",
    "/config",
    "/history",
    "/metrics",
    "/failsafe",
    "/garden",
    "/garden/journal",
    "/openapi.json",
    "/",
];

#[test]
fn planted_secrets_are_in_no_log_answer_journal_or_argument() {
    story("secrets", async {
        let builder = Builder::from_environment()?.quick().members(2).etcds(1);
        let cluster = builder
            .configure(|settings| {
                settings.local = json!({
                    "log": {"level": "DEBUG"},
                    "restapi": {"authentication": {"username": "operator", "password": "rest-secret-17"}},
                    "postgresql": {"parameters": {
                        "log_statement": "all", "log_min_duration_statement": 0, "log_connections": "on",
                        "log_replication_commands": "on",
                    }},
                });
            })
            .start()
            .await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        let mut printed = operate(&cluster).await?;
        mistakes(&cluster, &mut printed).await?;
        for member in cluster.members() {
            for path in ANSWERS {
                let answer = http::get(member.rest_port, path, Duration::from_secs(5)).await?;
                printed.push((format!("{} {path}", member.name), answer.body));
            }
        }
        for pid in process::below(cluster.dir()) {
            let arguments = process::arguments(pid);
            printed.push((
                format!("arguments of {:?}", arguments.first()),
                arguments.join(" "),
            ));
        }
        for file in logs(cluster.dir()) {
            let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
            printed.push((
                file.display().to_string(),
                String::from_utf8_lossy(&text).into_owned(),
            ));
        }
        search(&printed)
    });
}

fn search(printed: &[(String, String)]) -> Result<()> {
    let bytes: usize = printed.iter().map(|(_, text)| text.len()).sum();
    println!(
        "{} texts, {} kB, searched for {} secrets",
        printed.len(),
        bytes >> 10,
        SECRETS.len()
    );
    let logged = |needle: &str| printed.iter().any(|(_, text)| text.contains(needle));
    ensure!(logged("statement: "), "PostgreSQL logged its statements");
    ensure!(logged(" DEBUG"), "the agents logged at level DEBUG");
    let mut found = Vec::new();
    for (place, text) in printed {
        for secret in SECRETS {
            for line in text.lines().filter(|line| line.contains(secret)) {
                found.push(format!("{secret} in {place}: {line}"));
            }
        }
    }
    ensure!(
        found.is_empty(),
        "secrets were found:\n{}",
        found.join("\n")
    );
    Ok(())
}

/// What an operator does.
async fn operate(cluster: &Cluster) -> Result<Vec<(String, String)>> {
    let mut printed = Vec::new();
    for line in [
        "list -e -f json",
        "show-config",
        "dsn -r any",
        "version garden",
        "doctor",
        "explain",
        "timeline",
        "restart garden node2 --force",
        "reinit garden node2 --force --wait",
        "reload garden --force",
        "query -c SELECT --format json -U postgres",
        "switchover --force",
        "history -f yaml",
        "edit-config --force -p work_mem=8MB",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let (_, output) = cluster.ctl(&words).await?;
        printed.push((format!("gardenctl {line}"), output));
        cluster.settle(SETTLE_LIMIT).await?;
    }
    ensure!(SCOPE == "garden", "the lines above name it");
    Ok(printed)
}

/// Files that cannot be read, values of the wrong type, a password that is not PostgreSQL's.
async fn mistakes(cluster: &Cluster, printed: &mut Vec<(String, String)>) -> Result<()> {
    let member = cluster.member(1)?;
    let good = std::fs::read_to_string(&member.config)?;
    let mut wrong_type: Value = serde_norway::from_str(&good)?;
    wrong_type["restapi"]["authentication"]["password"] = json!(["wrong-type-4711"]);
    wrong_type["restapi"]["keyfile_password"] = json!(["wrong-type-4711"]);
    let mut rotated: Value = serde_norway::from_str(&good)?;
    rotated["postgresql"]["authentication"]["superuser"]["password"] = json!("rotated-secret-18");
    rotated["postgresql"]["authentication"]["replication"]["password"] = json!("rotated-secret-18");
    rotated["postgresql"]["authentication"]["rewind"]["password"] = json!("rotated-secret-18");
    let broken = good.replace("superuser-secret", "superuser-secret\n  - : [");
    for (what, text) in [
        ("broken", broken),
        ("wrong type", serde_norway::to_string(&wrong_type)?),
        ("rotated", serde_norway::to_string(&rotated)?),
    ] {
        std::fs::write(&member.config, text)?;
        printed.push((
            format!("--validate-config of {what}"),
            validate(cluster, member).await?,
        ));
        reload(member).await?;
    }
    // The copy fails with the password that PostgreSQL does not know.
    let (_, output) = cluster
        .ctl(&["reinit", SCOPE, &member.name, "--force"])
        .await?;
    printed.push(("gardenctl reinit".to_owned(), output));
    wait::until("a copy to fail", Duration::from_secs(60), || async {
        let log = member.log_since(0);
        if log.contains("password authentication failed") {
            Ok(())
        } else {
            Err("not yet".to_owned())
        }
    })
    .await?;
    std::fs::write(&member.config, good)?;
    reload(member).await?;
    cluster.settle(SETTLE_LIMIT).await.map(|_| ())
}

async fn validate(cluster: &Cluster, member: &Member) -> Result<String> {
    let log = cluster.dir().join("ctl").join("validate.txt");
    let config = member.config.clone().into_os_string();
    let launch = process::Launch {
        program: &cluster.binaries().agent,
        args: vec!["--validate-config".into(), "-i".into(), config],
        env: std::collections::BTreeMap::default(),
        cwd: cluster.dir(),
        log: &log,
        user: None,
        network: None,
    };
    Ok(process::run(&launch, Duration::from_secs(60))?.1)
}

async fn reload(member: &Member) -> Result<()> {
    let before = member.log_bytes();
    member.signal_agent(nix::sys::signal::Signal::SIGHUP)?;
    wait::until("the reload", Duration::from_secs(30), || async {
        if member.log_bytes() > before {
            Ok(())
        } else {
            Err("nothing was logged".to_owned())
        }
    })
    .await
}

/// Logs, journals and outputs below a directory.
fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("base") {
            found.extend(logs(&path));
        } else if path.extension().is_some_and(|end| {
            ["log", "out", "jsonl", "txt", "1"]
                .iter()
                .any(|e| end == *e)
        }) {
            found.push(path);
        }
    }
    found
}
