//! Making a new cluster (`ha-behaviour.md` 12.3 and 12.4, `configuration.md` 6.1): the data directory,
//! the first start, the roles.

use super::conf::ConfState;
use super::connect;
use super::context::PgContext;
use super::controldata;
use super::pgdata;
use super::promote;
use super::shared::{self, JobCx, JobError, ProcessSet};
use super::start;
use super::stop::{self, Stop};
use super::tool::Tool;
use crate::config::secret::Secret;
use crate::config::{AgentConfig, BootstrapConfig, Credentials, CustomMethod};
use proto::core::job::{JobEnd, Upstream};
use proto::core::observation::{BOOTSTRAP_MARK, DataDir};
use proto::ids::SystemId;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::Client;

/// `initdb` writes some 40 MB; a disk that takes longer is broken.
const INITDB_LIMIT: Duration = Duration::from_secs(600);

/// How many failed bootstraps are kept aside.
const FAILED_KEPT_MAX: u32 = 100;

/// Functions that `pg_rewind` calls on its source (PostgreSQL documentation, "pg_rewind", "Notes").
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// [`proto::core::job::Job::Bootstrap`]. On failure the data directory is kept aside as `*.failed`.
pub(super) async fn run(job: &JobCx) -> Result<JobEnd, JobError> {
    let config = job.ctx().config();
    let Some(bootstrap) = &config.bootstrap else {
        return Err(JobError::other("there is no `bootstrap` section"));
    };
    match pgdata::inspect(job.ctx()).await {
        DataDir::Empty => {}
        DataDir::Unfinished(_) => super::wipe::data_dir(job, &Upstream::None).await?,
        other => {
            return Err(JobError::other(format!(
                "the data directory is not empty: {other:?}"
            )));
        }
    }
    match create(job, &config, bootstrap).await {
        Ok(()) => Ok(JobEnd::Done),
        Err(err) => {
            if let Err(aside) = set_aside(job, &config.postgresql.data_dir).await {
                tracing::error!(err = ?aside, "cannot set a failed bootstrap aside");
            }
            Err(err)
        }
    }
}

/// The cluster is about to be presented; an error in words.
pub(super) async fn clear_mark(ctx: &PgContext) -> Result<(), String> {
    let dir = ctx.data_dir();
    let work = move || match pgdata::look(&dir) {
        marked if marked.never_presented() => {
            pgdata::clear_unfinished(&dir).map_err(|err| err.to_string())
        }
        DataDir::Initialised => Ok(()),
        other => Err(format!("it is not what a bootstrap leaves: {other:?}")),
    };
    let done = pgdata::on_disk(work).await;
    done.ok_or("the disk does not answer")?
}

/// [`proto::core::job::Job::SetAside`]: what a bootstrap has made is kept as `*.failed`, since another member
/// has made the cluster. Only the very cluster that the decision saw is moved, or one that carries the mark
/// (S7).
pub(super) async fn abandon(job: &JobCx, system: Option<SystemId>) -> Result<JobEnd, JobError> {
    match (system, pgdata::inspect(job.ctx()).await) {
        (None, marked) if marked.never_presented() => {}
        (Some(system), DataDir::Initialised) => {
            let found = controldata::read(job.ctx()).await?.system_id;
            if found != system {
                return Err(JobError::other(format!(
                    "the data directory holds the cluster {found}, not {system}"
                )));
            }
        }
        (_, other) => {
            return Err(JobError::other(format!(
                "it is not what a bootstrap leaves: {other:?}"
            )));
        }
    }
    if job.shared.process_set() == ProcessSet::Unknown {
        return Err(JobError::other("it is not known what runs here"));
    }
    set_aside(job, &job.ctx().data_dir()).await?;
    Ok(JobEnd::Done)
}

fn mark(config: &AgentConfig) -> String {
    format!("{BOOTSTRAP_MARK} of {}", config.scope)
}

async fn create(
    job: &JobCx,
    config: &AgentConfig,
    bootstrap: &BootstrapConfig,
) -> Result<(), JobError> {
    let dir = config.postgresql.data_dir.clone();
    let made = dir.clone();
    job.blocking(move || prepare(&made)).await?;
    let what = mark(config);
    let work = async {
        match &bootstrap.method {
            None => initdb(job, config, bootstrap).await,
            Some(method) => custom(job, config, method).await,
        }
    };
    shared::under_mark(&dir, &what, work).await??;
    // The mark stays: until the cluster is presented nobody else knows of it, and what an agent that was
    // killed leaves, maybe without roles, is made anew.
    let method = bootstrap.method.as_ref();
    let state = ConfState {
        as_primary: true,
        bootstrap_trust: method.is_some(),
        sync_names: Some(String::new()),
        custom_recovery: method.and_then(|method| method.recovery_conf.clone()),
        keep_existing_recovery: method.is_some_and(|method| method.keep_existing_recovery_conf),
        ..ConfState::default()
    };
    first_start(job, config, &state).await?;
    after_start(job, config, bootstrap).await?;
    match method {
        Some(method) => real_rules(job, config, method).await,
        None => Ok(()),
    }
}

/// Puts the real `pg_hba.conf` back after a custom method. A server that recovered by itself was
/// started with settings that only a restart can take away (`hot_standby` is off).
async fn real_rules(
    job: &JobCx,
    config: &AgentConfig,
    method: &CustomMethod,
) -> Result<(), JobError> {
    let state = ConfState {
        as_primary: true,
        sync_names: Some(String::new()),
        ..ConfState::default()
    };
    if method.recovery_conf.is_some() || method.keep_existing_recovery_conf {
        stop::halt(job, &Stop::fast(Some(config.postgresql.pg_ctl_timeout))).await?;
        return match start::launch_made(job, &state, config.postgresql.pg_ctl_timeout).await? {
            JobEnd::Done => Ok(()),
            _ => Err(JobError::other(
                "PostgreSQL did not come back after the bootstrap's restart",
            )),
        };
    }
    job.shared.write_conf(&state).await?;
    start::reload(&job.shared).await?;
    job.shared.loaded(&state);
    Ok(())
}

/// An empty directory of our own; small files of the agent in it would make `initdb` refuse it.
fn prepare(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
    {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        Ok(()) | Err(_) => {}
    }
    for file in [pgdata::STATE_FILE, pgdata::DYNAMIC_FILE] {
        pgdata::remove_durably(&dir.join(file))?;
    }
    Ok(())
}

async fn initdb(
    job: &JobCx,
    config: &AgentConfig,
    bootstrap: &BootstrapConfig,
) -> Result<(), JobError> {
    job.phase("initdb").await;
    let pg = &config.postgresql;
    let mut pgdata = std::ffi::OsString::from("--pgdata=");
    pgdata.push(&pg.data_dir);
    let mut tool = Tool::new(job.ctx().bin("initdb"), &bootstrap.initdb).arg(pgdata);
    if let Some(user) = &pg.superuser.username {
        tool = tool.arg(format!("--username={user}"));
    }
    let password = match &pg.superuser.password {
        Some(password) => Some(PasswordFile::new(password)?),
        None => None,
    };
    if let Some(file) = &password {
        let mut arg = std::ffi::OsString::from("--pwfile=");
        arg.push(&file.0);
        tool = tool.arg(arg);
    }
    job.tool(tool.limit(INITDB_LIMIT).dies_with_us()).await?;
    drop(password);
    let own_hba = pg.pg_hba.is_some() || pg.parameters.contains_key("hba_file");
    if !own_hba && !bootstrap.pg_hba.is_empty() {
        let path = pg.data_dir.join("pg_hba.conf");
        let lines = bootstrap.pg_hba.join("\n");
        job.blocking(move || {
            let mut file = fs::OpenOptions::new().append(true).open(path)?;
            file.write_all(format!("\n{lines}\n").as_bytes())
        })
        .await?;
    }
    Ok(())
}

/// A password for a program that reads it from a file; gone when dropped.
struct PasswordFile(PathBuf);

impl PasswordFile {
    fn new(password: &Secret) -> io::Result<Self> {
        let name = format!("garden-pw-{}-{:x}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        let kept = Self(path);
        file.write_all(password.reveal().as_bytes())?;
        file.write_all(b"\n")?;
        Ok(kept)
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs the operator's own method. Its recovery files stay when asked for; without targets of its own
/// the restored server simply starts.
async fn custom(job: &JobCx, config: &AgentConfig, method: &CustomMethod) -> Result<(), JobError> {
    job.phase("running custom bootstrap script").await;
    let dir = &config.postgresql.data_dir;
    let mut words = method.command.clone();
    if !method.no_params {
        words.push(format!("--scope={}", config.scope));
        words.push(format!("--datadir={}", dir.display()));
    }
    words.extend(
        method
            .extra
            .iter()
            .map(|(key, value)| format!("--{key}={value}")),
    );
    let Some(tool) = Tool::from_words(&words) else {
        return Err(JobError::other(format!(
            "bootstrap method {} has no command",
            method.name
        )));
    };
    job.tool(tool.dies_with_us()).await?;
    Ok(())
}

/// Starts, and waits until recovery has ended: a recovery to a point in time takes as long as it takes
/// and is bounded by cancelling the job.
async fn first_start(job: &JobCx, config: &AgentConfig, state: &ConfState) -> Result<(), JobError> {
    start::launch_made(job, state, config.postgresql.pg_ctl_timeout).await?;
    job.phase("waiting for the end of recovery").await;
    match promote::wait_out_of_recovery(job, None, None).await? {
        JobEnd::Done => Ok(()),
        _ => Err(JobError::other("recovery did not end")),
    }
}

/// Roles and the operator's script, in the order of `configuration.md` 6.1.
async fn after_start(
    job: &JobCx,
    config: &AgentConfig,
    bootstrap: &BootstrapConfig,
) -> Result<(), JobError> {
    job.phase("creating roles").await;
    let pg = &config.postgresql;
    let client = connect::superuser(job.ctx()).await?;
    quiet(&client).await?;
    if pg.superuser.username.is_some() && pg.superuser.password.is_some() {
        role(&client, &pg.superuser, "SUPERUSER LOGIN").await?;
    }
    if let Some(words) = &bootstrap.post_bootstrap {
        // S7: a backup that the script takes must not carry the mark, else what is restored from it would pass
        // for ours to throw away.
        let (dir, what) = (pg.data_dir.clone(), mark(config));
        let unmarked = dir.clone();
        job.blocking(move || pgdata::clear_unfinished(&unmarked))
            .await?;
        post_bootstrap(job, words).await?;
        job.blocking(move || pgdata::mark_unfinished(&dir, &what))
            .await?;
    }
    role(&client, &pg.replication, "REPLICATION LOGIN").await?;
    if let Some(rewind) = &pg.rewind
        && rewind.username != pg.superuser.username
    {
        role(&client, rewind, "LOGIN").await?;
        let name = quote_ident(rewind.username.as_deref().unwrap_or_default());
        for function in REWIND_FUNCTIONS {
            let sql = format!("GRANT EXECUTE ON FUNCTION {function} TO {name}");
            client.batch_execute(&sql).await?;
        }
    }
    Ok(())
}

/// Settings for the session that sets passwords: none of them may reach a log, and nothing waits for a
/// standby that does not exist yet.
async fn quiet(client: &Client) -> Result<(), tokio_postgres::Error> {
    client
        .batch_execute(
            "SET statement_timeout = 0; SET synchronous_commit = local; \
             SET log_statement = none; SET log_min_duration_statement = -1; \
             SET log_min_error_statement = log; SET log_min_messages = log; \
             SET pg_stat_statements.track_utility = off; SET pgaudit.log = none",
        )
        .await
}

/// Creates or alters a role.
async fn role(
    client: &Client,
    credentials: &Credentials,
    attributes: &str,
) -> Result<(), tokio_postgres::Error> {
    let Some(name) = &credentials.username else {
        return Ok(());
    };
    let exists = client
        .query_opt(
            "SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = $1",
            &[name],
        )
        .await?
        .is_some();
    let verb = if exists { "ALTER" } else { "CREATE" };
    let mut sql = format!("{verb} ROLE {} WITH {attributes}", quote_ident(name));
    if let Some(password) = &credentials.password {
        sql.push_str(&format!(" PASSWORD {}", quote_literal(password.reveal())));
    }
    client.batch_execute(&sql).await
}

fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A literal that means the same whatever `standard_conforming_strings` says.
fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

async fn post_bootstrap(job: &JobCx, words: &[String]) -> Result<(), JobError> {
    job.phase("post_bootstrap").await;
    let Some(tool) = Tool::from_words(words) else {
        return Ok(());
    };
    let conninfo = connect::local_conninfo(job.ctx()).await?;
    let options = std::env::var("PGOPTIONS").unwrap_or_default();
    let tool = tool
        .arg(conninfo)
        .env("PGPASSFILE", &job.ctx().config().postgresql.pgpass)
        .env(
            "PGOPTIONS",
            format!("{options} -c synchronous_commit=local -c statement_timeout=0"),
        );
    job.tool(tool).await?;
    Ok(())
}

/// Stops what was started and keeps the directory aside for people to look at, with the WAL directory
/// and tablespaces that hang off it, which the next try needs empty.
async fn set_aside(job: &JobCx, dir: &Path) -> Result<(), JobError> {
    // Cancelled or not, nothing may run on a directory that is moved.
    let job = JobCx {
        cancel: tokio_util::sync::CancellationToken::new(),
        ..job.clone()
    };
    stop::halt(&job, &Stop::immediate()).await?;
    let dir = dir.to_owned();
    if let Some(path) = job.blocking(move || move_aside(&dir)).await? {
        tracing::error!(path = %path.display(), "bootstrap failed, data kept");
    }
    Ok(())
}

fn move_aside(dir: &Path) -> io::Result<Option<PathBuf>> {
    if pgdata::look(dir) == DataDir::Empty {
        return Ok(None);
    }
    // Also when it cannot be moved, as at the root of a mount, it is not to be started.
    pgdata::mark_unfinished(dir, &format!("{BOOTSTRAP_MARK} that failed"))?;
    let mut links = vec![dir.join("pg_wal")];
    if let Ok(entries) = fs::read_dir(dir.join("pg_tblspc")) {
        links.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    for link in links.iter().filter(|link| link.is_symlink()) {
        let target = fs::read_link(link)?;
        let aside = free_name(&target)?;
        fs::rename(&target, &aside)?;
        fs::remove_file(link)?;
        std::os::unix::fs::symlink(&aside, link)?;
    }
    let aside = free_name(dir)?;
    fs::rename(dir, &aside)?;
    Ok(Some(aside))
}

/// `<path>.failed`, or with a number when there is one already.
fn free_name(path: &Path) -> io::Result<PathBuf> {
    let named = |suffix: String| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    std::iter::once(named(".failed".into()))
        .chain((1..FAILED_KEPT_MAX).map(|n| named(format!(".failed.{n}"))))
        .find(|candidate| fs::symlink_metadata(candidate).is_err())
        .ok_or_else(|| io::Error::other("too many failed data directories are kept"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_survives_quotes_and_backslashes() {
        assert_eq!(quote_ident("a\"b"), "\"a\"\"b\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\'b"), "E'a\\\\''b'");
    }

    #[test]
    fn failed_directories_are_kept_beside_each_other() {
        let root = std::env::temp_dir().join(format!("garden-aside-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let dir = root.join("data");
        for expected in ["data.failed", "data.failed.1"] {
            fs::create_dir_all(dir.join("global")).expect("create");
            fs::write(dir.join("PG_VERSION"), "15").expect("write");
            let aside = move_aside(&dir)
                .expect("moved")
                .expect("there was something");
            assert_eq!(aside, root.join(expected));
            assert!(matches!(pgdata::look(&aside), DataDir::Unfinished(_)));
        }
        fs::remove_dir_all(&root).expect("removable");
    }
}
