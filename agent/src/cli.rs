//! The command line of `garden-agent`, which is Patroni's plus a few subcommands.
//!
//! ```text
//! garden-agent [CONFIG]                                      run the agent
//! garden-agent --validate-config [-i] [-p] [CONFIG]          check, and print when asked
//! garden-agent --generate-sample-config [FILE]               write an example
//! garden-agent --generate-config [--dsn DSN] [FILE]          write the configuration of a server
//! garden-agent guardian …                                    the postmaster's parent (internal)
//! garden-agent replay FILE                                   a recorded moment, decided again
//! garden-agent --print-schema                                a JSON schema of the file, for editors
//! garden-agent completion SHELL, garden-agent man DIR        for the shell, for man
//! ```

use crate::manual::{Completion, Man};
use clap::{Args, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The release of Patroni whose behaviour this is compatible with; also the version published in the
/// member key, since other members read it (`dcs-layout.md` 13).
pub const PATRONI_VERSION: &str = "4.1.5";

/// Our own version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What the process is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// Run the agent.
    Run {
        /// File or directory.
        config: Option<PathBuf>,
    },
    /// Check the configuration and exit.
    Validate {
        /// File or directory.
        config: Option<PathBuf>,
        /// Ports in `listen` may be in use.
        ignore_listen_port: bool,
        /// Print the merged configuration when it is fine.
        print: bool,
    },
    /// Write an example.
    GenerateSample {
        /// Where; `None`: standard output.
        output: Option<PathBuf>,
    },
    /// Write the configuration of a running PostgreSQL.
    Generate {
        /// Where; `None`: standard output.
        output: Option<PathBuf>,
        /// libpq connection string or URL.
        dsn: Option<String>,
    },
    /// Print the JSON schema of the configuration and exit.
    PrintSchema,
    /// Print the completion of a shell and exit.
    Completion(clap_complete::Shell),
    /// Write man pages and exit.
    Man(PathBuf),
    /// Print this line and exit.
    Version(String),
    /// Be the guardian; the arguments are the guardian's own.
    Guardian(Vec<OsString>),
    /// Decide a recorded observation again.
    Replay(PathBuf),
}

/// A high-availability agent for PostgreSQL that takes Patroni's place.
#[derive(Debug, Parser)]
#[command(
    name = "garden-agent",
    disable_version_flag = true,
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    arguments: Arguments,
}

#[derive(Debug, Args)]
struct Arguments {
    /// Configuration file or directory; without it PATRONI_CONFIGURATION, then the PATRONI_* variables.
    /// With --generate-*: the file to write
    configfile: Option<PathBuf>,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
    /// Check the configuration and exit
    #[arg(long, group = "mode")]
    validate_config: bool,
    /// With --validate-config: ports in "listen" settings may be in use
    #[arg(short, long, requires = "validate_config")]
    ignore_listen_port: bool,
    /// With --validate-config: print the merged configuration, without passwords
    #[arg(short, long, requires = "validate_config")]
    print: bool,
    /// Write an example configuration
    #[arg(long, group = "mode")]
    generate_sample_config: bool,
    /// Write the configuration of a running PostgreSQL
    #[arg(long, group = "mode")]
    generate_config: bool,
    /// Print a JSON schema of the configuration, for editors
    #[arg(long, group = "mode")]
    print_schema: bool,
    /// With --generate-config: how to connect; otherwise libpq's defaults and PG* variables
    #[arg(long, requires = "generate_config")]
    dsn: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The process that owns the postmaster (started by the agent)
    #[command(hide = true, disable_help_flag = true)]
    Guardian {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Run a recorded observation through the rules again and print the decision
    Replay {
        /// A journal entry, as JSON
        file: PathBuf,
    },
    /// Print the completion script of a shell
    Completion(Completion),
    /// Write man pages into a directory
    Man(Man),
}

/// The definition of the command line.
pub fn command() -> clap::Command {
    Cli::command()
}

/// What the command line means, or what clap wants to print (the help included).
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let called_as = arguments.first().cloned();
    let Cli { command, arguments } = Cli::try_parse_from(arguments)?;
    match command {
        Some(Command::Guardian { arguments }) => return Ok(Invocation::Guardian(arguments)),
        Some(Command::Replay { file }) => return Ok(Invocation::Replay(file)),
        Some(Command::Completion(args)) => return Ok(Invocation::Completion(args.shell)),
        Some(Command::Man(args)) => return Ok(Invocation::Man(args.directory)),
        None => {}
    }
    if arguments.version {
        return Ok(Invocation::Version(version(
            called_as.as_deref().map(Path::new),
        )));
    }
    let config = arguments.configfile;
    Ok(if arguments.validate_config {
        let (ignore_listen_port, print) = (arguments.ignore_listen_port, arguments.print);
        Invocation::Validate {
            config,
            ignore_listen_port,
            print,
        }
    } else if arguments.generate_sample_config {
        Invocation::GenerateSample { output: config }
    } else if arguments.print_schema {
        Invocation::PrintSchema
    } else if arguments.generate_config {
        Invocation::Generate {
            output: config,
            dsn: arguments.dsn,
        }
    } else {
        Invocation::Run { config }
    })
}

/// Scripts take the last word of `patroni --version` for a version number; a link named `patroni` to
/// this program must satisfy them.
fn version(called_as: Option<&Path>) -> String {
    let name = called_as
        .and_then(Path::file_stem)
        .and_then(|name| name.to_str());
    match name {
        Some("patroni") => format!("patroni {PATRONI_VERSION}"),
        _ => format!("garden-agent {VERSION} (compatible with Patroni {PATRONI_VERSION})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, String> {
        parse(line.split(' ').map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn patronis_arguments_mean_the_same() {
        let config = Some(PathBuf::from("a.yml"));
        assert_eq!(
            parsed("garden-agent a.yml"),
            Ok(Invocation::Run {
                config: config.clone()
            })
        );
        assert_eq!(parsed("garden-agent"), Ok(Invocation::Run { config: None }));
        let validate = |ignore_listen_port, print| {
            Ok(Invocation::Validate {
                config: config.clone(),
                ignore_listen_port,
                print,
            })
        };
        assert_eq!(parsed("g --validate-config a.yml"), validate(false, false));
        assert_eq!(
            parsed("g a.yml --validate-config -i -p"),
            validate(true, true)
        );
        assert_eq!(
            parsed("g --generate-sample-config a.yml"),
            Ok(Invocation::GenerateSample {
                output: config.clone()
            })
        );
        assert_eq!(
            parsed("g --generate-config --dsn host=x"),
            Ok(Invocation::Generate {
                output: None,
                dsn: Some(String::from("host=x"))
            })
        );
    }

    #[test]
    fn helpers_for_people_are_told_apart_from_a_run() {
        assert_eq!(parsed("g --print-schema"), Ok(Invocation::PrintSchema));
        assert_eq!(
            parsed("g completion zsh"),
            Ok(Invocation::Completion(clap_complete::Shell::Zsh))
        );
        assert_eq!(parsed("g man x"), Ok(Invocation::Man(PathBuf::from("x"))));
        assert!(parsed("g --print-schema --validate-config").is_err());
    }

    #[test]
    fn switches_that_exclude_each_other_are_refused() {
        for line in [
            "g --validate-config --generate-config",
            "g -p a.yml",
            "g --dsn x a.yml",
            "g a.yml b.yml",
            "g --nonsense",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }

    #[test]
    fn subcommands_are_told_apart_from_files() {
        let arguments = ["--data-dir", "/x", "--help"].map(OsString::from).to_vec();
        assert_eq!(
            parsed("g guardian --data-dir /x --help"),
            Ok(Invocation::Guardian(arguments))
        );
        assert_eq!(
            parsed("g replay f.json"),
            Ok(Invocation::Replay(PathBuf::from("f.json")))
        );
        assert!(parsed("g ./replay").is_ok_and(|i| matches!(i, Invocation::Run { .. })));
    }

    #[test]
    fn the_version_is_the_last_word_for_who_asks_patroni() {
        let version = |line: &str| match parsed(line) {
            Ok(Invocation::Version(text)) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(version("/usr/bin/patroni --version"), "patroni 4.1.5");
        let ours = version("garden-agent --version");
        assert!(
            ours.starts_with("garden-agent ") && ours.contains("Patroni 4.1.5"),
            "{ours}"
        );
    }
}
