//! The agent. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    garden_agent::run::main(std::env::args_os())
}
