//! Chaos on a real cluster: random faults by default, the rows of the matrix with `--row`.
//!
//! ```text
//! chaos --minutes 60 --seed 7 --json run.json --html run.html
//! chaos --row node-loss,network --runs 10 --mode on
//! chaos --patroni --row node-loss --runs 5 --json patroni.json
//! chaos report run.json patroni.json
//! ```

use anyhow::{Context, Result, ensure};
use chaos_tests::chaos::{self, Chaos, Mode, Options, Row, Session, report};
use chaos_tests::netns::Network;
use chaos_tests::{Binaries, disks};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Members and etcds of the cluster.
const SIZE: u16 = 3;

/// Breaks a three-node cluster under load, in every way that one machine can, and checks what its
/// clients saw.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Option<Sub>,
    /// Rows of the matrix instead of a random schedule, separated by commas; `all` for all.
    #[arg(long, value_delimiter = ',')]
    row: Vec<String>,
    /// Runs per row.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Length of a random schedule.
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Repeats the schedule of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// How commits are replicated.
    #[arg(long, value_enum, default_value = "quorum")]
    mode: Mode,
    /// Directory of PostgreSQL's programs.
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// etcd's server.
    #[arg(long, value_name = "FILE")]
    etcd: Option<PathBuf>,
    /// The released Patroni as the agent (GARDEN_PATRONI, or what `./deploy/test` installs).
    #[arg(long)]
    patroni: bool,
    /// Data directories on small disks of their own, for the faults of disks.
    #[arg(long)]
    disks: bool,
    /// Results, as JSON, after every chapter.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A page that shows throughput over time with the faults marked.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Copies the agents' logs of chapters that went wrong into this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// First of a hundred ports.
    #[arg(long, default_value_t = 31_000)]
    ports: u16,
    /// Lists the rows and does nothing else.
    #[arg(long)]
    list: bool,
}

#[derive(Debug, Subcommand)]
enum Sub {
    /// Makes one table of the results of several sessions.
    Report {
        /// What `--json` wrote.
        files: Vec<PathBuf>,
        /// The page of all of them.
        #[arg(long, value_name = "FILE")]
        html: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.command {
        Some(Sub::Report { files, html }) => merged(files, html.as_deref()),
        None => run(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn merged(files: &[PathBuf], html: Option<&Path>) -> Result<bool> {
    let sessions = report::read(files)?;
    println!("{}", report::table(&sessions));
    page(html, &sessions)?;
    Ok(sessions.iter().all(Session::clean))
}

fn page(html: Option<&Path>, sessions: &[Session]) -> Result<()> {
    let Some(file) = html else {
        return Ok(());
    };
    std::fs::write(file, chaos::html(sessions)).with_context(|| format!("write {}", file.display()))
}

fn run(args: &Args) -> Result<bool> {
    let mut binaries = Binaries::find()?;
    if args.patroni {
        binaries = binaries.all_patroni()?;
    }
    if let Some(directory) = &args.postgres {
        binaries = binaries.with_postgres(directory)?;
    }
    if let Some(etcd) = &args.etcd {
        binaries.etcd.clone_from(etcd);
    }
    let options = Options {
        binaries,
        mode: args.mode,
        ports: args.ports,
        disks: args.disks,
        logs: args.logs.clone(),
    };
    if args.list {
        for row in chaos::all(options.lease()) {
            println!("{:24}{}", row.name, row.what);
        }
        return Ok(true);
    }
    // First of all, while this process has one thread.
    let apart = Network::enter();
    if args.disks {
        disks::enter()?;
    }
    let _turn = chaos_tests::turn()?;
    let network = match apart {
        Ok(()) => Some(Network::build(&Chaos::ports(&options), SIZE, SIZE)?),
        Err(error) => {
            println!("no network of its own, rows that need one are left out: {error:#}");
            None
        }
    };
    let rows = chosen(&args.row, options.rows(network.is_some()))?;
    let session = chaos_tests::runtime()?.block_on(session(args, options, network, &rows))?;
    let sessions = [session];
    println!("\n{}", report::table(&sessions));
    for look in sessions.iter().flat_map(|session| &session.post_mortem) {
        println!("post-mortem: {look}");
    }
    page(args.html.as_deref(), &sessions)?;
    Ok(sessions.iter().all(Session::clean))
}

async fn session(
    args: &Args,
    options: Options,
    network: Option<Network>,
    rows: &[Row],
) -> Result<Session> {
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut chaos = Chaos::start(options, network, seed, args.json.clone()).await?;
    if args.row.is_empty() {
        println!("random faults for {} minutes, --seed {seed}", args.minutes);
        let time = Duration::from_secs_f64(args.minutes.max(0.0) * 60.0);
        chaos.random(rows, time).await?;
    } else {
        for row in rows {
            println!("{}: {}", row.name, row.what);
            chaos.row(row, args.runs).await?;
        }
    }
    chaos.finish().await
}

/// The rows that are named, or all that fit to the options.
fn chosen(names: &[String], fitting: Vec<Row>) -> Result<Vec<Row>> {
    if names.is_empty() || names.iter().any(|name| name == "all") {
        return Ok(fitting);
    }
    let known = |name: &&String| fitting.iter().any(|row| row.name == **name);
    let unknown = names.iter().find(|name| !known(name));
    ensure!(
        unknown.is_none(),
        "there is no row {unknown:?} here; see --list, and --disks"
    );
    let wanted = names
        .iter()
        .filter_map(|name| fitting.iter().find(|row| row.name == *name));
    Ok(wanted.copied().collect())
}
