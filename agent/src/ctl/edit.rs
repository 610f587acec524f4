//! `edit-config` (`cli.md` 8.13): straight to etcd, by compare-and-set.

use super::args::EditConfig;
use super::console::confirm;
use super::diff;
use super::error::{CtlError, CtlResult, says};
use super::say;
use super::session::{Cluster, Session};
use super::show::config_text;
use crate::config::{merge, value, yaml};
use proto::dcs::{Compare, Key, Op, Txn};
use serde_json::{Map, Value};
use std::fs::OpenOptions;
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A configuration larger than this is a mistake.
const INPUT_BYTES_MAX: u64 = 16 << 20;

/// `edit-config`.
pub async fn edit(session: &Session, args: EditConfig) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    let Some(modified) = cluster.view.config.modified() else {
        return says(format!(
            "The config key does not exist in the cluster {}",
            cluster.scope
        ));
    };
    let before = cluster.view.config.document().cloned().unwrap_or_default();
    let after = if changes_named(&args) {
        changed(&before, &args)?
    } else {
        edited(&cluster, &before)?
    };
    let texts = [&before, &after].map(|map| config_text(&Value::Object(map.clone())));
    let [before_text, after_text] = &texts;
    if before_text == after_text {
        if !args.quiet {
            say!("Not changed");
        }
        return Ok(());
    }
    if !args.quiet {
        show_diff(before_text, after_text);
    }
    let from_stdin = [&args.apply, &args.replace]
        .into_iter()
        .any(|f| f.as_deref() == Some("-"));
    if from_stdin && !args.force.force {
        say!("Use --force option to apply changes");
        return Ok(());
    }
    if !args.force.force && !confirm("Apply these changes?")? {
        return Ok(());
    }
    let txn = Txn::when(
        vec![Compare::Unchanged(Key::Config, modified)],
        vec![Op::put(Key::Config, Value::Object(after).to_string())],
    );
    if !cluster.commit(&txn).await? {
        return says("Config modification aborted due to concurrent changes");
    }
    say!("Configuration changed");
    Ok(())
}

fn changes_named(args: &EditConfig) -> bool {
    args.replace.is_some() || args.apply.is_some() || !args.set.is_empty() || !args.pg.is_empty()
}

/// Replace, then merge, then the single settings.
fn changed(before: &Map<String, Value>, args: &EditConfig) -> CtlResult<Map<String, Value>> {
    let mut document = before.clone();
    if let Some(file) = &args.replace {
        document = Map::new();
        merge::patch(&mut document, &read_document(file)?);
    }
    if let Some(file) = &args.apply {
        merge::patch(&mut document, &read_document(file)?);
    }
    let parameters = args
        .pg
        .iter()
        .map(|pair| format!("postgresql.parameters.{pair}"));
    let settings = args.set.iter().cloned().chain(parameters);
    for (setting, given) in settings.zip(args.set.iter().chain(&args.pg)) {
        let Some((path, text)) = setting.split_once('=') else {
            return says(format!("Invalid parameter setting {given}"));
        };
        let value = yaml::from_str(text)
            .map_err(|err| CtlError::Says(format!("Invalid parameter setting {given}: {err}")))?;
        merge::set(&mut document, &merge::split_path(path.trim()), value);
    }
    Ok(document)
}

fn read_document(file: &str) -> CtlResult<Map<String, Value>> {
    let failed = |source| CtlError::Io {
        what: format!("failed to read {file}"),
        source,
    };
    let mut text = String::new();
    match file {
        "-" => io::stdin()
            .lock()
            .take(INPUT_BYTES_MAX)
            .read_to_string(&mut text),
        path => std::fs::File::open(path)
            .and_then(|opened| opened.take(INPUT_BYTES_MAX).read_to_string(&mut text)),
    }
    .map_err(failed)?;
    parse_document(&text, file)
}

fn parse_document(text: &str, origin: &str) -> CtlResult<Map<String, Value>> {
    match yaml::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => says(format!("{origin}: expected a YAML mapping")),
        Err(err) => says(format!("{origin}: {err}")),
    }
}

/// Lets the operator edit the text.
fn edited(cluster: &Cluster, before: &Map<String, Value>) -> CtlResult<Map<String, Value>> {
    let file = Scratch::new(&cluster.scope, &config_text(&Value::Object(before.clone())))?;
    let mut words = editor()?;
    words.push(file.0.display().to_string());
    let (program, arguments) = words.split_first().ok_or(CtlError::Aborted)?;
    let status = Command::new(program).args(arguments).status();
    let status = status.map_err(|source| CtlError::Io {
        what: format!("failed to start the editor {program}"),
        source,
    })?;
    if !status.success() {
        let code = status.code().unwrap_or(1);
        return says(format!("Editor exited with return code {code}"));
    }
    let text = std::fs::read_to_string(&file.0).map_err(|source| CtlError::Io {
        what: format!("failed to read {}", file.0.display()),
        source,
    })?;
    parse_document(&text, "the edited configuration")
}

fn editor() -> CtlResult<Vec<String>> {
    let named = std::env::var("EDITOR")
        .ok()
        .and_then(|text| value::shell_words(&text));
    if let Some(words) = named.filter(|words| !words.is_empty()) {
        return Ok(words);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        |name: &&str| std::env::split_paths(&path).any(|dir| Path::is_file(&dir.join(name)));
    match ["editor", "vi"].into_iter().find(found) {
        Some(name) => Ok(vec![name.to_owned()]),
        None => says("EDITOR environment variable is not set. editor or vi are not available"),
    }
}

/// A file that only we can read, gone at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(scope: &str, text: &str) -> CtlResult<Self> {
        let safe: String = scope
            .chars()
            .filter(|c| c.is_alphanumeric() || "-_".contains(*c))
            .collect();
        let random: String = (0..8).map(|_| fastrand::alphanumeric()).collect();
        let path = std::env::temp_dir().join(format!("{safe}-config-{random}.yaml"));
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(CtlError::Io {
                what: format!("failed to write {}", path.display()),
                source,
            }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn show_diff(before: &str, after: &str) {
    let coloured = io::stdout().is_terminal();
    for line in diff::unified(before, after) {
        let colour = match line.chars().next() {
            Some('+') => "32",
            Some('-') => "31",
            Some('@') => "36",
            _ => "0",
        };
        match coloured {
            true => say!("\x1b[{colour}m{line}\x1b[0m"),
            false => say!("{line}"),
        }
    }
}
