//! Filling a data directory from another server (`ha-behaviour.md` 12.2, `configuration.md` 7.3).
//!
//! Two defaults differ from Patroni's. `pg_basebackup` asks for a fast checkpoint, since nobody is
//! served by a copy that idles until the source's next scheduled one (an operator's own `checkpoint`
//! option wins). And the directory carries a mark from its first file on, so that a copy that did not
//! end is never started (S18).

use super::connect::{self, ConninfoKind};
use super::pgdata::{self, DurableState};
use super::shared::{self, JobCx, JobError, chain};
use super::start;
use super::stop::{self, Stop};
use super::tool::Tool;
use super::wipe;
use crate::config::{CustomMethod, PostgresConfig, ReplicaMethod};
use proto::core::job::{Failure, JobEnd, Upstream};
use proto::core::observation::DataDir;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

/// How often `pg_basebackup` is tried before the next method.
const BASEBACKUP_TRIES: u32 = 2;

/// Between two tries.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The beginning of the mark's text.
const MARK: &str = "clone";

/// The configuration files that the agent keeps copies of inside the data directory, since a base
/// backup takes only what is in there.
const CONFIG_FILES: [&str; 4] = ["", ".base", "pg_hba", "pg_ident"];

/// [`proto::core::job::Job::Clone`].
pub(super) async fn run(
    job: &JobCx,
    source: Option<&Upstream>,
    follow: &Upstream,
    basebackup_only: bool,
) -> Result<JobEnd, JobError> {
    match pgdata::inspect(job.ctx()).await {
        DataDir::Empty => {}
        // What is left of an earlier try.
        DataDir::Unfinished(_) => wipe::data_dir(job, follow).await?,
        other => {
            return Err(JobError::other(format!(
                "the data directory is not empty: {other:?}"
            )));
        }
    }
    fill(job, source, follow, basebackup_only).await
}

/// [`proto::core::job::Job::Reinitialize`].
pub(super) async fn again(
    job: &JobCx,
    source: &Upstream,
    follow: &Upstream,
    basebackup_only: bool,
) -> Result<JobEnd, JobError> {
    // Nothing is stopped for a source that is not there, or for a removal that will be refused.
    if let Err(err) = super::lineage::session(job.ctx(), source).await {
        return Err(JobError::source(&err));
    }
    wipe::permitted(job, follow).await?;
    stop::halt(job, &Stop::immediate()).await?;
    wipe::data_dir(job, follow).await?;
    fill(job, Some(source), follow, basebackup_only).await
}

/// Copies by the first method that works, and starts.
async fn fill(
    job: &JobCx,
    source: Option<&Upstream>,
    follow: &Upstream,
    basebackup_only: bool,
) -> Result<JobEnd, JobError> {
    let config = job.ctx().config();
    let promise = pgdata::read_state(&config.postgresql.data_dir)
        .or_strictest()
        .promised;
    let mut last = JobError::Failed(Failure::SourceUnavailable(
        "no replica method applies".into(),
    ));
    for method in methods(job, &config.postgresql, source.is_some(), basebackup_only) {
        let conninfo = match source {
            Some(source) => connect::conninfo(job.ctx(), source, ConninfoKind::Basebackup)
                .await
                .map_err(|err| JobError::source(&err))?,
            None => String::new(),
        };
        match by_method(job, &config.postgresql, &method, &conninfo).await {
            Ok(()) => {
                settle(job, promise).await?;
                return start::standby(job, follow, config.postgresql.pg_ctl_timeout).await;
            }
            Err(JobError::Cancelled) => return Err(JobError::Cancelled),
            Err(failed) => last = failed,
        }
    }
    Err(last)
}

/// The methods to try, in order.
fn methods(
    job: &JobCx,
    config: &PostgresConfig,
    has_source: bool,
    basebackup_only: bool,
) -> Vec<ReplicaMethod> {
    if basebackup_only {
        return vec![ReplicaMethod::Basebackup];
    }
    let cluster = job.ctx().cluster();
    let named = cluster
        .standby_cluster
        .as_ref()
        .and_then(|s| s.create_replica_methods.as_ref());
    let listed = match named {
        Some(names) => names
            .iter()
            .map(|name| method_by_name(config, name))
            .collect(),
        None => config.create_replica_methods.clone(),
    };
    let works = |method: &ReplicaMethod| match method {
        ReplicaMethod::Basebackup => has_source,
        ReplicaMethod::Custom(custom) => has_source || custom.no_leader,
    };
    listed.into_iter().filter(works).collect()
}

/// A method without a section of its own is a command of that name.
fn method_by_name(config: &PostgresConfig, name: &str) -> ReplicaMethod {
    if name == "basebackup" {
        return ReplicaMethod::Basebackup;
    }
    let bare = || CustomMethod {
        name: name.to_owned(),
        command: vec![name.to_owned()],
        ..CustomMethod::default()
    };
    ReplicaMethod::Custom(config.methods.get(name).cloned().unwrap_or_else(bare))
}

async fn by_method(
    job: &JobCx,
    config: &PostgresConfig,
    method: &ReplicaMethod,
    conninfo: &str,
) -> Result<(), JobError> {
    match method {
        ReplicaMethod::Basebackup => basebackup(job, config, conninfo).await,
        ReplicaMethod::Custom(custom) => by_command(job, config, custom, conninfo).await,
    }
}

async fn basebackup(job: &JobCx, config: &PostgresConfig, conninfo: &str) -> Result<(), JobError> {
    let mut tries = 0;
    loop {
        tries += 1;
        prepare(job, config).await?;
        job.phase("basebackup").await;
        let args = basebackup_args(config, conninfo);
        let tool = Tool::new(job.ctx().bin("pg_basebackup"), args)
            .env("PGPASSFILE", &config.pgpass)
            .env(
                "PGAPPNAME",
                format!("{} basebackup", job.ctx().config().name),
            );
        let what = format!("{MARK} by pg_basebackup");
        let done =
            shared::under_mark(&config.data_dir, &what, job.tool(tool.dies_with_us())).await?;
        match done {
            Ok(output) => {
                tracing::info!(took = ?output.took, "pg_basebackup done");
                return Ok(());
            }
            Err(JobError::Cancelled) => return Err(JobError::Cancelled),
            Err(JobError::Failed(failure)) => {
                tracing::error!(?failure, tries, "pg_basebackup failed");
                wipe::data_dir(job, &Upstream::None).await?;
                if tries == BASEBACKUP_TRIES {
                    return Err(JobError::Failed(failure));
                }
            }
        }
        job.pause(RETRY_PAUSE).await?;
    }
}

fn basebackup_args(config: &PostgresConfig, conninfo: &str) -> Vec<OsString> {
    let mut pgdata = OsString::from("--pgdata=");
    pgdata.push(&config.data_dir);
    let mut args = vec![
        pgdata,
        "--wal-method=stream".into(),
        format!("--dbname={conninfo}").into(),
        "--no-password".into(),
    ];
    let chosen = |option: &String| option == "-c" || option.starts_with("--checkpoint");
    if !config.basebackup_options.iter().any(chosen) {
        args.push("--checkpoint=fast".into());
    }
    args.extend(config.basebackup_options.iter().map(OsString::from));
    args
}

async fn by_command(
    job: &JobCx,
    config: &PostgresConfig,
    method: &CustomMethod,
    conninfo: &str,
) -> Result<(), JobError> {
    if !method.keep_data {
        prepare(job, config).await?;
    }
    job.phase(&method.name).await;
    let scope = job.ctx().config().scope.clone();
    let words = method_words(method, &scope, &config.data_dir.to_string_lossy(), conninfo);
    let Some(tool) = Tool::from_words(&words) else {
        return Err(JobError::other(format!(
            "replica method {} has no command",
            method.name
        )));
    };
    let tool = tool.env("PGPASSFILE", &config.pgpass).dies_with_us();
    let what = format!("{MARK} by {}", method.name);
    match shared::under_mark(&config.data_dir, &what, job.tool(tool)).await? {
        Ok(_) => Ok(()),
        Err(JobError::Cancelled) => Err(JobError::Cancelled),
        Err(JobError::Failed(failure)) => {
            tracing::error!(?failure, method = method.name, "replica method failed");
            if !method.keep_data {
                wipe::data_dir(job, &Upstream::None).await?;
            }
            Err(JobError::Failed(failure))
        }
    }
}

/// The command with its parameters.
fn method_words(method: &CustomMethod, scope: &str, data_dir: &str, conninfo: &str) -> Vec<String> {
    let mut words = method.command.clone();
    if !method.no_params {
        words.push(format!("--scope={scope}"));
        words.push("--role=replica".into());
        words.push(format!("--datadir={data_dir}"));
        words.push(format!("--connstring={conninfo}"));
    }
    words.extend(
        method
            .extra
            .iter()
            .map(|(key, value)| format!("--{key}={value}")),
    );
    words
}

/// An existing, empty directory: our own small files would make the tools refuse it.
async fn prepare(job: &JobCx, config: &PostgresConfig) -> Result<(), JobError> {
    let dir = config.data_dir.clone();
    job.blocking(move || {
        match std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
        {
            Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
            Ok(()) | Err(_) => {}
        }
        for file in [pgdata::STATE_FILE, pgdata::DYNAMIC_FILE] {
            pgdata::remove_durably(&dir.join(file))?;
        }
        Ok(())
    })
    .await
}

/// Makes the copy ours: our own promise instead of the source's, missing configuration files from
/// their copies, no mark.
async fn settle(job: &JobCx, promise: Option<proto::ids::Epoch>) -> Result<(), JobError> {
    let config = job.ctx().config();
    let pg = &config.postgresql;
    let (dir, conf_dir, base) = (
        pg.data_dir.clone(),
        pg.config_dir.clone(),
        pg.config_base_name.clone(),
    );
    job.blocking(move || {
        own_state(&dir, promise)?;
        if let Err(err) = restore_config_copies(&dir, &conf_dir, &base) {
            tracing::warn!(error = chain(&err), "cannot restore configuration files");
        }
        for leftover in ["recovery.signal", "postmaster.pid", "promote"] {
            pgdata::remove_durably(&dir.join(leftover))?;
        }
        pgdata::clear_unfinished(&dir)
    })
    .await
}

/// After a copy or a rewind the state file is the source's. The epoch of its WAL is right for us, since
/// it is the same WAL; its promise is not ours.
pub(super) fn own_state(dir: &Path, promised: Option<proto::ids::Epoch>) -> io::Result<()> {
    let wal_epoch = pgdata::read_state(dir).or_strictest().wal_epoch;
    pgdata::save_state(
        dir,
        &DurableState {
            promised,
            wal_epoch,
        },
    )
}

/// The name of a configuration file from its entry in [`CONFIG_FILES`].
fn config_file(entry: &str, base_name: &str) -> String {
    match entry {
        "" | ".base" => format!("{base_name}{entry}.conf"),
        other => format!("{other}.conf"),
    }
}

/// Copies the configuration files into the data directory, so that whoever clones from here has them.
pub(super) fn save_config_copies(dir: &Path, conf_dir: &Path, base_name: &str) -> io::Result<()> {
    for entry in CONFIG_FILES {
        let name = config_file(entry, base_name);
        let copy = dir.join(format!("{name}.backup"));
        let Some(content) = pgdata::read_small(&conf_dir.join(&name))? else {
            continue;
        };
        if pgdata::read_small(&copy)?.as_ref() != Some(&content) {
            pgdata::write_durably(&copy, &content, pgdata::file_mode(dir))?;
        }
    }
    Ok(())
}

/// Brings missing configuration files back from their copies; an empty one is better than none for the
/// two that PostgreSQL cannot start without.
fn restore_config_copies(dir: &Path, conf_dir: &Path, base_name: &str) -> io::Result<()> {
    for entry in CONFIG_FILES {
        let name = config_file(entry, base_name);
        let path = conf_dir.join(&name);
        if path.exists() {
            continue;
        }
        if let Some(content) = pgdata::read_small(&dir.join(format!("{name}.backup")))? {
            pgdata::write_durably(&path, &content, pgdata::file_mode(dir))?;
        } else if entry == "pg_ident" {
            pgdata::write_durably(&path, b"", pgdata::file_mode(dir))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_custom_method_gets_the_standard_parameters_unless_it_wants_none() {
        let method = CustomMethod {
            name: "restore".into(),
            command: vec!["/bin/restore".into(), "x".into()],
            extra: vec![("stanza".into(), "main".into())],
            ..CustomMethod::default()
        };
        assert_eq!(
            method_words(&method, "batman", "/pg", "host=a"),
            [
                "/bin/restore",
                "x",
                "--scope=batman",
                "--role=replica",
                "--datadir=/pg",
                "--connstring=host=a",
                "--stanza=main",
            ]
        );
        let bare = CustomMethod {
            no_params: true,
            ..method
        };
        assert_eq!(
            method_words(&bare, "batman", "/pg", "host=a"),
            ["/bin/restore", "x", "--stanza=main"]
        );
    }

    #[test]
    fn configuration_files_have_the_names_that_patroni_gives_them() {
        let names: Vec<_> = CONFIG_FILES
            .iter()
            .map(|e| config_file(e, "postgresql"))
            .collect();
        assert_eq!(
            names,
            [
                "postgresql.conf",
                "postgresql.base.conf",
                "pg_hba.conf",
                "pg_ident.conf"
            ]
        );
    }
}
