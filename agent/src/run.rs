//! From the command line to an exit status.

use crate::cli::{self, Invocation};
use crate::config::{self, Loader, env};
use crate::exit::Exit;
use crate::guardian::supervise;
use crate::journal::{self, Replayed};
use crate::manual;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Threads of the runtime. The loop, the watch and REST need little; the lease has a thread of its own.
const WORKERS: usize = 2;

/// Does what the command line asks for.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let invocation = match cli::parse(arguments.iter().cloned()) {
        Ok(invocation) => invocation,
        Err(err) => {
            // Help and mistakes alike; there is nobody to tell when even that cannot be printed.
            let _ = err.print();
            return ExitCode::from(u8::try_from(err.exit_code()).unwrap_or(2));
        }
    };
    match invocation {
        Invocation::Guardian(words) => ExitCode::from(crate::guardian::main(&words)),
        Invocation::Replay(file) => replay(&file),
        Invocation::Version(line) => {
            println!("{line}");
            Exit::Success.into()
        }
        Invocation::PrintSchema => printed(schema()),
        Invocation::Completion(shell) => printed(manual::complete(cli::command(), shell)),
        Invocation::Man(directory) => printed(manual::pages(cli::command(), &directory)),
        // A container's first process has to reap and to pass signals on; the agent runs below it.
        Invocation::Run { .. } if supervise::is_first_process() => {
            ExitCode::from(supervise::run(arguments.get(1..).unwrap_or_default()))
        }
        Invocation::Run { config } => agent(config.as_deref()),
        Invocation::Validate {
            config,
            ignore_listen_port,
            print,
        } => {
            let options = config::validate::ValidateOptions {
                ignore_listen_port,
                print,
            };
            match Loader::new(config.as_deref(), env::capture()).and_then(|l| l.load_any()) {
                Ok(local) => config::validate::run(&local, options).into(),
                Err(err) => failure(&err),
            }
        }
        Invocation::GenerateSample { output } => {
            config::generate::sample(output.as_deref(), &env::capture()).into()
        }
        Invocation::Generate { output, dsn } => {
            config::generate::from_server(output.as_deref(), dsn.as_deref(), &env::capture()).into()
        }
    }
}

fn failure(err: &dyn std::error::Error) -> ExitCode {
    eprintln!("{}", crate::guardian::note::chain(err));
    Exit::Failure.into()
}

fn printed(outcome: std::io::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => Exit::Success.into(),
        Err(err) => failure(&err),
    }
}

/// Prints the JSON schema of the configuration.
fn schema() -> std::io::Result<()> {
    let text = serde_json::to_string_pretty(&config::schema::schema())?;
    writeln!(std::io::stdout().lock(), "{text}")
}

fn agent(path: Option<&Path>) -> ExitCode {
    let environment = env::capture();
    let loaded = Loader::new(path, environment).and_then(|loader| {
        let local = loader.load()?;
        let (config, _) = local.effective(&serde_json::Map::new())?;
        Ok((loader, local, config))
    });
    let (loader, local, config) = match loaded {
        Ok(loaded) => loaded,
        Err(err) => return failure(&err),
    };
    let telemetry = match crate::telemetry::init(&config.log) {
        Ok(telemetry) => Arc::new(telemetry),
        Err(err) => return failure(&err),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(err) => return failure(&err),
    };
    let ended = runtime.block_on(crate::member::run(loader, local, Arc::clone(&telemetry)));
    // Background work that hangs, on a disk perhaps, must not keep the process alive.
    runtime.shutdown_background();
    let code = match ended {
        Ok(code) => code,
        Err(err) => {
            tracing::error!(critical = true, "{}", crate::guardian::note::chain(&err));
            Exit::Failure.code()
        }
    };
    // Background tasks that were cut off may still hold a share; then dropping it writes the rest.
    match Arc::try_unwrap(telemetry).map(crate::telemetry::TelemetryGuard::shutdown) {
        Ok(Err(_)) if code == 0 => Exit::LogLost.into(),
        _ => ExitCode::from(code),
    }
}

fn replay(file: &PathBuf) -> ExitCode {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(err) => {
            eprintln!("{}: {err}", file.display());
            return Exit::Failure.into();
        }
    };
    let mut same = true;
    for outcome in journal::replay(&text) {
        match outcome {
            Replayed::Same { reason } => println!("same     {reason}"),
            Replayed::Differs { recorded, now } => {
                same = false;
                println!("DIFFERS\n  recorded: {recorded}\n  now: {now}");
            }
            Replayed::Unreadable { line, problem } => {
                same = false;
                println!("line {line} is no journal entry of this version: {problem}");
            }
        }
    }
    if same {
        Exit::Success.into()
    } else {
        Exit::Failure.into()
    }
}
