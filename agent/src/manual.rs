//! What is made from the command lines themselves: shell completion, man pages, and the reference page
//! of the options.

use clap::{Arg, Args, Command};
use clap_complete::Shell;
use std::io;
use std::path::{Path, PathBuf};

/// `completion`.
#[derive(Clone, Debug, Args)]
pub struct Completion {
    /// Shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// `man`.
#[derive(Clone, Debug, Args)]
pub struct Man {
    /// Directory to write the pages into; made when it is not there
    pub directory: PathBuf,
}

/// Prints the script that completes this command line.
///
/// # Errors
/// When standard output cannot be written.
pub fn complete(mut command: Command, shell: Shell) -> io::Result<()> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    io::Write::write_all(&mut io::stdout().lock(), &script)
}

/// Writes a man page for the program and one for each command.
///
/// # Errors
/// When the directory or a page cannot be written.
pub fn pages(command: Command, directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(command, directory)
}

/// The commands and options as Markdown, for `docs/reference`.
pub fn markdown(command: Command) -> String {
    let mut command = command
        .disable_help_flag(true)
        .disable_help_subcommand(true);
    command.build();
    let mut text = table(&command, true);
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let name = format!("{} {}", command.get_name(), sub.get_name());
        text.push_str(&format!(
            "\n### {name}\n\n{about}.\n\n{}",
            table(sub, false)
        ));
    }
    text
}

/// One row for each argument. Options of the program itself are those of every command.
fn table(command: &Command, own: bool) -> String {
    let shown =
        |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    let global = |arg: &&Arg| own || !arg.is_global_set();
    let rows: Vec<String> = command
        .get_arguments()
        .filter(shown)
        .filter(global)
        .map(row)
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("| argument | default | |\n|---|---|---|\n{}", rows.concat())
}

fn row(arg: &Arg) -> String {
    let values = arg.get_action().takes_values();
    let value = match arg.get_value_names() {
        Some(names) if values => names
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
        _ if values => arg.get_id().as_str().to_uppercase(),
        _ => String::new(),
    };
    let mut names = Vec::new();
    names.extend(arg.get_short().map(|short| format!("-{short}")));
    let aliases = arg.get_visible_aliases().unwrap_or_default();
    let long = arg.get_long().into_iter().chain(aliases);
    names.extend(long.map(|long| format!("--{long}")));
    let shown = match (names.is_empty(), value.is_empty()) {
        (true, _) => value,
        (false, true) => names.join(", "),
        (false, false) => format!("{} {value}", names.join(", ")),
    };
    let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let words: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|value| value.get_name().to_owned())
        .collect();
    if !words.is_empty() && values {
        help.push_str(&format!(": {}", words.join(", ")));
    }
    if let Some(variable) = arg.get_env() {
        help.push_str(&format!("; `{}`", variable.to_string_lossy()));
    }
    let default = arg
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy());
    let default = default.collect::<Vec<_>>().join(" ");
    let default = if arg.is_hide_default_value_set() || !values {
        String::new()
    } else {
        default
    };
    let help = help.replace('|', "\\|");
    format!("| `{}` | {default} | {help} |\n", shown.replace('|', "\\|"))
}
