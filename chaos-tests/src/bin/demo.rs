//! `./deploy/demo`: a three-node cluster on this machine, four events, one table.

use anyhow::{Context, Result};
use chaos_tests::cluster::{last_words, stop_kept};
use chaos_tests::demo::{self, PREFIX};
use chaos_tests::ports::Ports;
use chaos_tests::{Binaries, Builder};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// A three-node PostgreSQL cluster behind HAProxy, killed in several ways while a writer writes.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Leave the cluster running and print how to use it.
    #[arg(long)]
    keep: bool,
    /// Stop a cluster that was left running, and do nothing else.
    #[arg(long, conflicts_with = "keep")]
    stop: bool,
    /// Directory of the PostgreSQL binaries.
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// Use the ports from here on instead of 5000, 5001, 7000 and those of the nodes.
    #[arg(long, value_name = "FIRST")]
    ports: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{}\nerror: {error:#}", last_words());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    if args.stop {
        let stopped = stop_kept(PREFIX)?;
        println!("{stopped} cluster(s) stopped and removed");
        return Ok(true);
    }
    let mut binaries = Binaries::find()?;
    if let Some(postgres) = &args.postgres {
        binaries = binaries.with_postgres(postgres).context("--postgres")?;
    }
    let ports = args.ports.map_or(Ports::DEMO, Ports::block);
    let builder = Builder::new(binaries).ports(ports).prefix(PREFIX);
    let runtime = chaos_tests::runtime()?;
    let outcome = runtime.block_on(demo::run(builder))?;
    if outcome.clean {
        println!("No acknowledged row is missing.");
    } else {
        println!("FAILED: acknowledged rows are missing.");
    }
    if args.keep {
        let text = demo::instructions(&outcome.cluster);
        println!("\nThe cluster goes on running:\n{text}");
        outcome.cluster.keep(&text)?;
    }
    Ok(outcome.clean)
}
