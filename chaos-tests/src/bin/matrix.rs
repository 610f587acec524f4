//! The fault matrix on a real cluster: `matrix --rows node-loss,network --runs 10`.

use anyhow::{Context, Result, ensure};
use chaos_tests::Binaries;
use chaos_tests::matrix::{self, Matrix, Mode, Options, Report, Row};
use chaos_tests::netns::Network;
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Members and etcds of the cluster.
const SIZE: u16 = 3;
/// Runs per row of an ordinary and of a long round.
const RUNS: (usize, usize) = (3, 20);

/// Injects every fault of the matrix into a three-node cluster under load and prints one table.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Rows to run, separated by commas; all by default.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Runs per row (default 3, with --long 20).
    #[arg(long)]
    runs: Option<usize>,
    /// How commits are replicated.
    #[arg(long, value_enum, default_value = "quorum")]
    mode: Mode,
    /// A random schedule for so many seconds instead of rows.
    #[arg(long, value_name = "SECONDS")]
    random: Option<u64>,
    /// Repeats the schedule of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Every run's figures, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Copies the agents' logs of runs that went wrong into this directory.
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// Twenty runs of every row.
    #[arg(long)]
    long: bool,
    /// First of a hundred ports.
    #[arg(long, default_value_t = 31_000)]
    ports: u16,
    /// Lists the rows and does nothing else.
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if args.list {
        for row in matrix::all() {
            println!("{:20}{}", row.name, row.what);
        }
        return Ok(true);
    }
    let rows = chosen(&args.rows)?;
    // First of all, while this process has one thread.
    let apart = Network::enter();
    let _turn = chaos_tests::turn()?;
    let options = Options {
        binaries: Binaries::find()?,
        mode: args.mode,
        ports: args.ports,
        logs: args.logs.clone(),
    };
    let network = match apart {
        Ok(()) => Some(Network::build(&Matrix::ports(&options), SIZE, SIZE)?),
        Err(error) => {
            println!("no network of its own, rows that need one are left out: {error:#}");
            None
        }
    };
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| network.is_some() || !row.trouble.needs_network())
        .collect();
    let report = chaos_tests::runtime()?.block_on(measure(args, options, network, &rows))?;
    println!("\n{report}");
    if let Some(file) = &args.json {
        let all: Vec<_> = report.rows.iter().map(matrix::RowReport::json).collect();
        let text = serde_json::to_string_pretty(&all).context("write the figures")?;
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    Ok(report.clean())
}

async fn measure(
    args: &Args,
    options: Options,
    network: Option<Network>,
    rows: &[Row],
) -> Result<Report> {
    let mut matrix = Matrix::start(options, network).await?;
    println!("a cluster is at rest");
    let mut report = Report::default();
    if let Some(seconds) = args.random {
        let seed = args.seed.unwrap_or_else(|| fastrand::u64(..));
        println!("random faults for {seconds} s, --seed {seed}");
        let time = Duration::from_secs(seconds);
        report
            .rows
            .push(matrix::random(&mut matrix, time, seed).await?);
        return Ok(report);
    }
    let runs = args.runs.unwrap_or(if args.long { RUNS.1 } else { RUNS.0 });
    for row in rows {
        report.rows.push(matrix.row(row, runs).await?);
    }
    Ok(report)
}

fn chosen(names: &[String]) -> Result<Vec<Row>> {
    let all = matrix::all();
    if names.is_empty() {
        return Ok(all);
    }
    let unknown = names
        .iter()
        .find(|name| !all.iter().any(|row| row.name == **name));
    ensure!(unknown.is_none(), "there is no row {unknown:?}; see --list");
    let wanted = names
        .iter()
        .filter_map(|name| all.iter().find(|row| row.name == *name));
    Ok(wanted.copied().collect())
}
