//! How long writes stop, and what the agent costs at rest. Medians over several rounds on one cluster;
//! `--patroni` does the same with the released Patroni and shows the ratio.

use anyhow::{Context, Result};
use chaos_tests::bench::{self, Figures};
use chaos_tests::cluster::last_words;
use chaos_tests::ports::Ports;
use chaos_tests::report::{median, table};
use chaos_tests::{Binaries, Builder};
use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Write gaps, memory and idle CPU of a three-node cluster; HAProxy checks every 200 ms.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Rounds of each event.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Path of the released `patroni` to compare with; `patronictl` must lie beside it.
    #[arg(long, value_name = "FILE")]
    patroni: Option<PathBuf>,
    /// Directory of the PostgreSQL binaries.
    #[arg(long, value_name = "DIR")]
    postgres: Option<PathBuf>,
    /// First of a block of free ports.
    #[arg(long, value_name = "FIRST")]
    ports: Option<u16>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}\nerror: {error:#}", last_words());
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let mut ours = Binaries::find()?;
    if let Some(postgres) = &args.postgres {
        ours = ours.with_postgres(postgres).context("--postgres")?;
    }
    let runtime = chaos_tests::runtime()?;
    let one = |binaries: Binaries| {
        let mut builder = Builder::new(binaries);
        if let Some(first) = args.ports {
            builder = builder.ports(Ports::block(first));
        }
        runtime.block_on(bench::run(builder, args.rounds))
    };
    let mut theirs = None;
    if let Some(patroni) = &args.patroni {
        let mut binaries = ours.clone();
        binaries.ctl = patroni.with_file_name("patronictl");
        binaries.agent.clone_from(patroni);
        theirs = Some(one(binaries).context("Patroni")?);
    }
    print_table(&one(ours)?, theirs.as_ref());
    Ok(())
}

fn print_table(ours: &Figures, theirs: Option<&Figures>) {
    let head = [
        "median of",
        "rounds",
        "value",
        "range",
        "limit",
        "Patroni",
        "Patroni / ours",
    ];
    let rows = ours.rows().into_iter().enumerate().map(|(index, row)| {
        let value = median(&row.values);
        let other = theirs.and_then(|theirs| median(&theirs.rows().get(index)?.values));
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| row.format(v));
        let ratio = value.zip(other).filter(|(value, _)| *value > 0.0);
        let ratio = ratio.map_or("-".to_owned(), |(value, other)| {
            format!("{:.1}", other / value)
        });
        let low = row.values.iter().copied().reduce(f64::min);
        let high = row.values.iter().copied().reduce(f64::max);
        let range = format!("{} - {}", number(low), number(high));
        let rounds = row.values.len().to_string();
        let limit = row.format(row.limit);
        [
            row.name.clone(),
            rounds,
            number(value),
            range,
            limit,
            number(other),
            ratio,
        ]
    });
    println!(
        "\n{}",
        table(&head.map(str::to_owned), &rows.collect::<Vec<_>>())
    );
}
