//! A running cluster of Patroni becomes one of ours, node by node under load, and goes back, both by the
//! documented script. systemd is played by the harness: what the script asks `systemctl` for is done to
//! the members' agents.

use anyhow::{Context, Result, bail, ensure};
use chaos_tests::mixed::{Lives, Released, Tool, end_agent, held};
use chaos_tests::process::{self, Launch};
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::store::Way;
use chaos_tests::{Cluster, Settled, Software, Writer, checker, story};
use serde_json::json;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// One run of the script: a switchover, two waits for every member, a stop and a start.
const SCRIPT_LIMIT: Duration = Duration::from_secs(240);
/// The key of the last Patroni member runs out after 20 s; the leader switches after it.
const SWITCHED: Duration = Duration::from_secs(60);
/// How often the harness looks for what the script wants of systemd.
const LOOK: Duration = Duration::from_millis(50);

/// Writes the words into a file and waits for the answer beside it.
const SYSTEMCTL: &str = "#!/bin/sh
request=$(dirname \"$0\")/requests/$$
echo \"$*\" > \"$request.new\" && mv \"$request.new\" \"$request\"
while [ ! -e \"$request.done\" ]; do sleep 0.05; done
exit \"$(cat \"$request.done\")\"
";

/// The directory of the false `systemctl`.
struct Systemd {
    dir: PathBuf,
}

impl Systemd {
    fn new(cluster: &Cluster) -> Result<Self> {
        let dir = cluster.dir().join("systemd");
        std::fs::create_dir_all(dir.join("requests"))?;
        let program = dir.join("systemctl");
        std::fs::write(&program, SYSTEMCTL)?;
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
        Ok(Self { dir })
    }

    /// Does what the script has asked for, to this member.
    async fn serve(&self, cluster: &Cluster, member: usize) -> Result<()> {
        for entry in std::fs::read_dir(self.dir.join("requests"))?.flatten() {
            let path = entry.path();
            if path.extension().is_some() || path.with_extension("done").exists() {
                continue;
            }
            let words = std::fs::read_to_string(&path)?;
            let done = self.carry_out(cluster, member, words.trim()).await;
            let status = if done.is_ok() { "0" } else { "1" };
            if let Err(error) = done {
                println!("systemctl {}: {error:#}", words.trim());
            }
            // Renamed into its place, so that the script never reads an empty answer.
            let answer = path.with_extension("answer");
            std::fs::write(&answer, status)?;
            std::fs::rename(&answer, path.with_extension("done"))?;
        }
        Ok(())
    }

    async fn carry_out(&self, cluster: &Cluster, member: usize, words: &str) -> Result<()> {
        let member = cluster.member(member)?;
        let software = |unit: &str| match unit {
            "patroni" => Ok(Software::Patroni),
            "garden-agent" => Ok(Software::Own),
            other => bail!("no unit {other}"),
        };
        match words.split(' ').collect::<Vec<_>>().as_slice() {
            ["stop", unit] => {
                ensure!(member.software() == software(unit)?, "{unit} does not run");
                end_agent(member).await
            }
            ["start", unit] => {
                member.exchange(software(unit)?)?;
                member.start()
            }
            ["enable" | "disable", unit] => software(unit).map(|_| ()),
            _ => bail!("not understood"),
        }
    }
}

/// `deploy/migrate-node` of this checkout.
fn script() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    Ok(workspace
        .context("a workspace")?
        .join("deploy/migrate-node"))
}

/// Runs the script on a member's file to its end, while the harness plays systemd.
async fn migrate(
    cluster: &Cluster,
    systemd: &Systemd,
    node: usize,
    words: &[&str],
) -> Result<String> {
    let member = cluster.member(node)?;
    let (program, home) = (script()?, cluster.dir().join("ctl"));
    let number = process::below(cluster.dir()).len();
    let log = home.join(format!(
        "migrate-{}-{number}-{}.out",
        member.name,
        words.len()
    ));
    let mut args: Vec<std::ffi::OsString> = vec!["--config".into(), member.config.clone().into()];
    args.extend(["--ctl".into(), cluster.binaries().ctl.clone().into()]);
    args.extend(words.iter().map(Into::into));
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", systemd.dir.display());
    let task = tokio::task::spawn_blocking(move || {
        let home_text = home.display().to_string();
        let env = BTreeMap::from([("PATH".to_owned(), path), ("HOME".to_owned(), home_text)]);
        let launch = Launch {
            program: &program,
            args,
            env,
            cwd: &home,
            log: &log,
            user: None,
            network: None,
        };
        process::run(&launch, SCRIPT_LIMIT)
    });
    while !task.is_finished() {
        systemd.serve(cluster, node).await?;
        tokio::time::sleep(LOOK).await;
    }
    let (status, output) = task.await.context("run the script")??;
    ensure!(
        status.success(),
        "migrate-node ended with {status}:\n{output}"
    );
    Ok(output)
}

/// All nodes, the standbys first and the leader last, as the page says. Standbys keep their PostgreSQL;
/// the leader's is restarted once, by its switchover.
async fn roll(
    cluster: &Cluster,
    systemd: &Systemd,
    writer: &Writer,
    before: &Settled,
    back: &[&str],
) -> Result<Settled> {
    let candidate = *before
        .synchronous
        .first()
        .context("a synchronous standby")?;
    let candidate = cluster.member(candidate)?.name.clone();
    let order = before.replicas.iter().chain([&before.leader]);
    for node in order.copied().collect::<Vec<_>>() {
        let name = cluster.member(node)?.name.clone();
        let (lives, from) = (Lives::count(cluster), Instant::now());
        let mut words = back.to_vec();
        words.extend(["--candidate", &candidate]);
        migrate(cluster, systemd, node, &words).await?;
        let took = from.elapsed();
        let settled = cluster.settle(SETTLE_LIMIT).await?;
        let ack = writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        println!(
            "{name}{}: {:.1} s, write gap {:.2} s, PostgreSQL restarts: {}",
            if node == before.leader {
                " (leader)"
            } else {
                ""
            },
            took.as_secs_f64(),
            writer.ledger().gap(from, ack.at).as_secs_f64(),
            lives.describe()
        );
        for member in cluster.members() {
            let allowed = usize::from(node == before.leader && member.name == name);
            let restarts = lives.restarts(&member.name);
            ensure!(
                restarts <= allowed,
                "{} was restarted {restarts} times",
                member.name
            );
        }
        let handed = node == before.leader;
        ensure!((settled.leader != before.leader) == handed, "{settled:?}");
    }
    cluster.settle(SETTLE_LIMIT).await
}

#[test]
fn a_patroni_cluster_is_replaced_node_by_node_and_rolled_back() {
    let Some(released) = Released::find() else {
        return;
    };
    story("migration", async {
        let builder = released.beside_ours(&[0, 1, 2])?;
        let cluster = builder
            .configure(|settings| settings.synchronous_mode = json!(true))
            .start()
            .await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let systemd = Systemd::new(&cluster)?;
        let writer = Writer::through_haproxy(&cluster).await?;

        // The check alone changes nothing.
        let said = migrate(&cluster, &systemd, first.leader, &["--dry-run"]).await?;
        println!("{said}");
        ensure!(said.contains("would do"), "{said}");
        ensure!(
            cluster.settle(SETTLE_LIMIT).await? == first,
            "a dry run changes nothing"
        );

        let ours = roll(&cluster, &systemd, &writer, &first, &[]).await?;
        held(&cluster, Way::Native, SWITCHED).await?;
        println!(
            "all members are ours: {} rows acknowledged so far",
            writer.acked()
        );
        released.ctl(&cluster, Tool::Patronictl, &["list"]).await?;

        let theirs = roll(&cluster, &systemd, &writer, &ours, &["--back"]).await?;
        held(&cluster, Way::Compatible, SWITCHED).await?;
        // Patroni restarts a server whose parent is the guardian that ours left behind.
        let replica = *theirs.replicas.first().context("a standby")?;
        restarted_by_patroni(&released, &cluster, replica).await?;
        let last = cluster.settle(SETTLE_LIMIT).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, last.leader, &[ledger]).await?;
        println!("there and back: {verdict}");
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// After the roll back the guardian of ours only waits for the server that it started: a restart by
/// Patroni works, and the guardian goes.
async fn restarted_by_patroni(released: &Released, cluster: &Cluster, node: usize) -> Result<()> {
    let member = cluster.member(node)?;
    let scope = chaos_tests::template::SCOPE;
    let args = ["restart", scope, &member.name, "--force"];
    released.ctl(cluster, Tool::Patronictl, &args).await?;
    chaos_tests::wait::until("the guardian's end", SWITCHED, || async {
        match member.guardian() {
            None => Ok(()),
            Some(pid) => Err(format!("guardian {pid} still runs")),
        }
    })
    .await?;
    ensure!(member.postmaster().is_some(), "the new server runs");
    Ok(())
}
