//! `gardenctl`, the operator's hand: `patronictl`'s commands with its output, and a few of our own
//! (`cli.md`).
//!
//! ```text
//! args ─▶ session: configuration, etcd, the members' agents
//!            ├─▶ show, sheet                what is: tables and other formats
//!            ├─▶ select, member_actions     restart, reload, reinit, flush
//!            ├─▶ handover, pause            requests to one agent
//!            ├─▶ edit, remove               straight to etcd
//!            ├─▶ query                      straight to PostgreSQL
//!            └─▶ timeline, explain, doctor  ours: journals and outlook hold what they conclude
//! ```
//!
//! Tables come from etcd alone, so they work with all agents down. A request that an agent refuses is
//! no error here: it prints `Failed: …` and exits 0, since scripts read the text (`cli.md` 9).

mod args;
pub(crate) mod console;
mod diff;
mod doctor;
mod edit;
mod error;
mod explain;
mod handover;
pub(crate) mod journals;
mod member_actions;
mod outlook;
mod pause;
mod progress;
mod query;
mod remove;
mod select;
mod session;
mod sheet;
mod show;
pub(crate) mod timeline;

use crate::cli::{PATRONI_VERSION, VERSION};
use crate::config::LogConfig;
use crate::manual;
use crate::telemetry;
use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use error::{CtlError, CtlResult, chain};
use serde_json::Value;
use session::Session;
use std::path::Path;
use std::process::ExitCode;

/// Prints a line on standard output.
macro_rules! say {
    ($($arg:tt)*) => { $crate::ctl::console::write(&format!("{}\n", format_args!($($arg)*))) };
}
/// Prints without a newline.
macro_rules! sayn {
    ($($arg:tt)*) => { $crate::ctl::console::write(&format!($($arg)*)) };
}
use {say, sayn};

/// Worker threads beside the one that runs the command.
const WORKERS: usize = 1;

/// The definition of the command line.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the command line and prints its error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Prints the help, or the usage error; exit code 0 or 2.
        Err(err) => err.exit(),
    };
    let log = telemetry::init(&log_config());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => {
            let outcome = runtime.block_on(async {
                // Questions block the thread that asks them, so Ctrl-C is watched from another one.
                tokio::spawn(abort_on_interrupt());
                run(cli).await
            });
            runtime.shutdown_background();
            outcome
        }
        Err(source) => Err(CtlError::Io {
            what: String::from("failed to start the runtime"),
            source,
        }),
    };
    drop(log);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(CtlError::Usage(err)) => err.exit(),
        // The findings were the message.
        Err(CtlError::Failed) => ExitCode::FAILURE,
        Err(CtlError::Aborted) => {
            eprintln!("Aborted!");
            ExitCode::FAILURE
        }
        Err(err) => {
            eprintln!("Error: {}", chain(&err));
            if let Some(advice) = err.advice() {
                eprintln!("Hint: {advice}.");
            }
            ExitCode::FAILURE
        }
    }
}

async fn abort_on_interrupt() {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("Aborted!");
        std::process::exit(1);
    }
}

/// Warnings go to standard error; the last of three variables that is set says from which level on.
fn log_config() -> LogConfig {
    let variables = ["PATRONI_LOG_LEVEL", "PATRONI_LOGLEVEL", "LOGLEVEL"];
    let level = variables.iter().find_map(|name| std::env::var(name).ok());
    LogConfig {
        level: level.unwrap_or_else(|| String::from("WARNING")),
        format: Value::from("%(asctime)s - %(levelname)s - %(message)s"),
        ..LogConfig::default()
    }
}

/// Scripts that call this program by the other name read the other program's version.
fn own_version() -> String {
    let name = std::env::args_os().next();
    let name = name.as_deref().map(Path::new).and_then(Path::file_stem);
    match name.and_then(|name| name.to_str()) {
        Some("patronictl") => format!("patronictl version {PATRONI_VERSION}"),
        _ => format!("gardenctl version {VERSION} (compatible with patronictl {PATRONI_VERSION})"),
    }
}

async fn run(cli: Cli) -> CtlResult<()> {
    if let Command::Version(args) = &cli.command
        && args.cluster_name.is_none()
    {
        return show::version(None, args.clone(), &own_version()).await;
    }
    let written = match &cli.command {
        Command::Completion(args) => Some(manual::complete(command(), args.shell)),
        Command::Man(args) => Some(manual::pages(command(), &args.directory)),
        _ => None,
    };
    if let Some(written) = written {
        return written.map_err(|source| CtlError::Io {
            what: String::from("failed to write"),
            source,
        });
    }
    let session = Session::open(&cli.global)?;
    let session = &session;
    match cli.command {
        Command::List(args) => show::list(session, args).await,
        Command::Topology(args) => show::topology(session, args).await,
        Command::Dsn(args) => show::dsn(session, args).await,
        Command::Query(args) => query::query(session, args).await,
        Command::Restart(args) => member_actions::restart(session, args).await,
        Command::Reload(args) => member_actions::reload(session, args).await,
        Command::Reinit(args) => member_actions::reinit(session, args).await,
        Command::Switchover(args) => handover::switchover(session, args).await,
        Command::Failover(args) => handover::failover(session, args).await,
        Command::Flush(args) => member_actions::flush(session, args).await,
        Command::Pause(args) => pause::pause(session, args, true).await,
        Command::Resume(args) => pause::pause(session, args, false).await,
        Command::ShowConfig(args) => show::show_config(session, args).await,
        Command::EditConfig(args) => edit::edit(session, args).await,
        Command::History(args) => show::history(session, args).await,
        Command::Version(args) => show::version(Some(session), args, &own_version()).await,
        Command::Remove(args) => remove::remove(session, args).await,
        Command::DemoteCluster(args) => pause::demote(session, args).await,
        Command::PromoteCluster(args) => pause::promote(session, args).await,
        Command::Timeline(args) => timeline::timeline(session, args).await,
        Command::Explain(args) => explain::explain(session, args).await,
        Command::Doctor(args) => doctor::doctor(session, args).await,
        // Done above, since they need no configuration.
        Command::Completion(_) | Command::Man(_) => Ok(()),
    }
}
