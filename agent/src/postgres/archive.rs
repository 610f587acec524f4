//! WAL that PostgreSQL had not archived yet when it went down, before a rewind takes it away
//! (`ha-behaviour.md` 9.3, 11.4): a recovery to a point in time on the old branch needs it.

use super::conf;
use super::pgdata;
use super::shared::{JobCx, JobError, chain};
use super::tool::{self, Tool};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One file; PostgreSQL itself has no limit, but a rewind must not wait for ever.
const ONE_FILE_LIMIT: Duration = Duration::from_secs(60);

/// All of them together.
const ALL_FILES_LIMIT: Duration = Duration::from_secs(600);

/// What a setting is without a running server; the answer of `postgres -C`.
async fn setting(job: &JobCx, name: &str) -> Option<String> {
    let config = job.ctx().config();
    let dir = config.postgresql.data_dir.to_string_lossy().into_owned();
    let mut file = String::from("--config_file=");
    file.push_str(&conf::main_file(&config.postgresql).to_string_lossy());
    let args = ["-D", &dir, "-C", name, &file];
    let limit = super::context::SHORT_PROGRAM_LIMIT;
    match job.ctx().run("postgres", &args, limit).await {
        Ok(printed) => Some(printed.stdout.trim_end_matches('\n').to_owned()),
        Err(error) => {
            tracing::warn!(error = chain(&error), name, "cannot read the setting");
            None
        }
    }
}

/// Files that wait, oldest first; histories sort behind segments of their timeline's predecessor.
fn waiting(dir: &Path) -> Vec<String> {
    let status = dir.join("pg_wal/archive_status");
    let entries = std::fs::read_dir(status).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| {
        let name = entry
            .file_name()
            .to_str()?
            .strip_suffix(".ready")?
            .to_owned();
        dir.join("pg_wal").join(&name).is_file().then_some(name)
    });
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    names
}

/// Runs `archive_command` for every file that waits, as the archiver would, until one fails. PostgreSQL
/// is down. Failure does not stop the rewind: the member is needed more than its old branch.
pub(super) async fn flush(job: &JobCx) -> Result<(), JobError> {
    let dir = job.ctx().data_dir();
    let looked = dir.clone();
    let names = job.blocking(move || Ok(waiting(&looked))).await?;
    if names.is_empty() || setting(job, "archive_mode").await.as_deref() == Some("off") {
        return Ok(());
    }
    let Some(command) = setting(job, "archive_command").await else {
        return Ok(());
    };
    if command.is_empty() || command == "(disabled)" {
        return Ok(());
    }
    job.phase("archiving the last WAL").await;
    let until = tokio::time::Instant::now() + ALL_FILES_LIMIT;
    for name in names {
        if tokio::time::Instant::now() >= until {
            tracing::warn!("archiving takes too long, going on without the rest");
            break;
        }
        let text = expand(&command, &name);
        let mut script = Tool::new(PathBuf::from("/bin/sh"), ["-c"])
            .arg(text)
            .limit(ONE_FILE_LIMIT);
        script.cwd = Some(dir.clone());
        match tool::succeed(script, &job.cancel).await {
            Ok(_) => {
                let status = dir.join("pg_wal/archive_status");
                let (from, to) = (format!("{name}.ready"), format!("{name}.done"));
                job.blocking(move || std::fs::rename(status.join(from), status.join(to)))
                    .await?;
                tracing::info!(file = name, "archived before the rewind");
            }
            Err(tool::ToolError::Cancelled { .. }) => return Err(JobError::Cancelled),
            Err(error) => {
                tracing::warn!(error = chain(&error), file = name, "archive_command failed");
                break;
            }
        }
    }
    let status = dir.join("pg_wal/archive_status/any");
    job.blocking(move || pgdata::sync_parent(&status)).await
}

/// `%p` is the path below the data directory, `%f` the name, `%%` a per cent sign (PostgreSQL
/// documentation, `archive_command`).
fn expand(command: &str, name: &str) -> String {
    let mut text = String::with_capacity(command.len());
    let mut rest = command.chars();
    while let Some(c) = rest.next() {
        match (c, rest.clone().next()) {
            ('%', Some('p')) => text.push_str(&format!("pg_wal/{name}")),
            ('%', Some('f')) => text.push_str(name),
            ('%', Some('%')) => text.push('%'),
            _ => {
                text.push(c);
                continue;
            }
        }
        rest.next();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_the_command_are_filled_as_postgresql_does_it() {
        let name = "00000001000000000000000A";
        assert_eq!(
            expand("cp %p /a/%f && echo 5%% %x", name),
            format!("cp pg_wal/{name} /a/{name} && echo 5% %x")
        );
    }
}
