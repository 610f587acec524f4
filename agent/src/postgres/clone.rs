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
use std::time::{Duration, Instant};

/// How often `pg_basebackup` is tried before the next method.
const BASEBACKUP_TRIES: u32 = 2;

/// Between two counts of the bytes that were copied.
const COUNT_PAUSE: Duration = Duration::from_secs(1);

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
        // What is left of an earlier try is emptied by the method, if it wants to.
        DataDir::Empty | DataDir::Unfinished(_) => {}
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
    // Each method empties the directory for itself, or works on what is there.
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
    let promise = own_promise(&config.postgresql.data_dir);
    let mut last = JobError::Failed(Failure::SourceUnavailable(
        "no replica method applies".into(),
    ));
    let source = source.filter(|source| source.streams());
    for method in methods(job, &config.postgresql, source, basebackup_only) {
        if !keeps_data(&method) {
            wipe::data_dir(job, follow).await?;
        }
        let conninfo = match source {
            Some(source) => connect::conninfo(job.ctx(), source, ConninfoKind::Basebackup)
                .await
                .map_err(|err| JobError::source(&err))?,
            None => String::new(),
        };
        let copy = by_method(job, &config.postgresql, &method, &conninfo);
        match counted(job, &config.postgresql.data_dir, copy).await {
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

/// Does the copy, and counts its bytes meanwhile for those who ask.
async fn counted<T>(job: &JobCx, data_dir: &Path, copy: impl Future<Output = T>) -> T {
    let copied = &job.ctx().copied;
    let count = async {
        loop {
            let (dir, from) = (data_dir.to_owned(), Instant::now());
            tokio::time::sleep(COUNT_PAUSE).await;
            // Only a number for people: a count that fails is not missed.
            if let Ok(bytes) = tokio::task::spawn_blocking(move || pgdata::bytes_below(&dir)).await
            {
                copied.note(bytes);
            }
            // A directory that is slow to read is read the more rarely.
            tokio::time::sleep(from.elapsed()).await;
        }
    };
    let done = tokio::select! {
        done = copy => done,
        () = count => std::future::pending().await,
    };
    copied.note(0);
    done
}

/// The promise that a whole data directory holds outlives its content (S19). One that is torn ends here: a
/// new copy is what it waits for. In an unfinished directory it may be the source's.
fn own_promise(dir: &Path) -> Option<proto::ids::Epoch> {
    match (pgdata::look(dir), pgdata::read_state(dir)) {
        (DataDir::Initialised, pgdata::FoundState::Known(state)) => state.promised,
        _ => None,
    }
}

/// A delta restore starts from what an earlier copy left.
fn keeps_data(method: &ReplicaMethod) -> bool {
    matches!(method, ReplicaMethod::Custom(custom) if custom.keep_data)
}

/// The methods to try, in order. A standby cluster may have its own for its leader, which alone copies
/// from the remote primary.
fn methods(
    job: &JobCx,
    config: &PostgresConfig,
    source: Option<&Upstream>,
    basebackup_only: bool,
) -> Vec<ReplicaMethod> {
    if basebackup_only {
        return vec![ReplicaMethod::Basebackup];
    }
    let cluster = job.ctx().cluster();
    let named = cluster
        .standby_cluster
        .as_ref()
        .filter(|_| !matches!(source, Some(Upstream::Member { .. })))
        .and_then(|s| s.create_replica_methods.as_ref());
    let listed = match named {
        Some(names) => names
            .iter()
            .map(|name| method_by_name(config, name))
            .collect(),
        None => config.create_replica_methods.clone(),
    };
    let works = |method: &ReplicaMethod| match method {
        ReplicaMethod::Basebackup => source.is_some(),
        ReplicaMethod::Custom(custom) => source.is_some() || custom.no_leader,
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
    let what = format!("{MARK} by {}", method.name);
    if method.keep_data {
        // What is there is about to become neither the old copy nor the new one (S18).
        let dir = config.data_dir.clone();
        let mark = what.clone();
        job.blocking(move || match pgdata::look(&dir) {
            DataDir::Initialised => pgdata::mark_unfinished(&dir, &mark),
            _ => Ok(()),
        })
        .await?;
    } else {
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
/// it is the same WAL; its promise is not ours, and neither is what it has led.
pub(super) fn own_state(dir: &Path, promised: Option<proto::ids::Epoch>) -> io::Result<()> {
    let wal_epoch = pgdata::read_state(dir).or_strictest().wal_epoch;
    pgdata::save_state(
        dir,
        &DurableState {
            promised,
            wal_epoch,
            led: None,
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
    use proto::ids::Epoch;

    /// S19: to fill a directory anew forgets no promise that is known. A torn one ends with the copy, and one
    /// in an unfinished directory was the source's.
    #[test]
    fn a_copy_over_a_data_directory_keeps_its_promise() {
        let dir = std::env::temp_dir().join(format!("garden-promise-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("global")).expect("create");
        std::fs::write(dir.join("global/pg_control"), "").expect("write");
        assert_eq!(own_promise(&dir), None);
        let state = pgdata::DurableState {
            promised: Some(Epoch(7)),
            wal_epoch: Epoch(7),
            led: None,
        };
        pgdata::save_state(&dir, &state).expect("save");
        assert_eq!(own_promise(&dir), Some(Epoch(7)));
        pgdata::mark_unfinished(&dir, "basebackup").expect("mark");
        assert_eq!(own_promise(&dir), None);
        pgdata::clear_unfinished(&dir).expect("clear");
        std::fs::write(dir.join(pgdata::STATE_FILE), "{").expect("tear");
        assert_eq!(own_promise(&dir), None);
        std::fs::remove_dir_all(&dir).expect("remove");
    }

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
