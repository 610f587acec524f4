//! `postgresql.conf` and the files beside it (`configuration.md` 8.5).

pub use super::changes::{Changes, changed_settings, running_settings};
use super::connect::{self, ConninfoKind};
use super::context::PgContext;
use super::guc;
use super::pgdata::{file_mode, read_small, remove_durably, write_durably};
use super::settings::{self, Settings};
use super::{controldata, hba};
use crate::config::{AgentConfig, PostgresConfig};
use proto::core::job::Upstream;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tracing::{info, warn};

/// How long writing the files may take before the disk counts as hung; each of them is synced.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// What the configuration is to be written for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Where a standby streams from.
    pub upstream: Upstream,
    /// For a primary.
    pub as_primary: bool,
    /// `synchronous_standby_names`: empty means none, `None` the operator's own value.
    pub sync_names: Option<String>,
    /// `Settings::conf_generation`.
    pub generation: u64,
    /// Write recovery settings and `standby.signal`; otherwise the signal files are removed.
    pub standby: bool,
    /// A promise not to follow holds (S19): neither stream nor restore from an archive.
    pub cut_off: bool,
    /// For a custom bootstrap: `pg_hba.conf` trusts this machine's superuser and admits nobody else.
    /// The next write without it puts the real file back.
    pub bootstrap_trust: bool,
    /// A custom bootstrap's `recovery_conf`: written instead of the standby's settings, with
    /// `recovery.signal` unless it asks for standby mode.
    pub custom_recovery: Option<Map<String, Value>>,
    /// Leave signal files and `postgresql.auto.conf` as the bootstrap tool wrote them.
    pub keep_existing_recovery: bool,
}

/// What a write did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Some file has another content than before: a reload is due.
    pub changed: bool,
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The disk did not answer.
    #[error("write configuration files: no answer from the disk within {0:?}")]
    Hung(Duration),
    /// A program.
    #[error(transparent)]
    Program(#[from] super::context::ProgramError),
    /// The connection string.
    #[error(transparent)]
    Connect(#[from] super::connect::ConnectError),
    /// The control file.
    #[error(transparent)]
    Control(#[from] super::controldata::ControlError),
}

fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfError {
    let path = path.to_owned();
    move |source| ConfError::File {
        operation,
        path,
        source,
    }
}

/// Writes `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf` and the signal files, each atomically, and
/// only those whose content changes.
pub async fn write(ctx: &PgContext, state: &ConfState) -> Result<Written, ConfError> {
    let config = ctx.config();
    let version = ctx.major_version().await?;
    let server = checked_settings(ctx, &config, state).await?;
    let follows = state.standby && !state.cut_off && state.custom_recovery.is_none();
    let conninfo = match &state.upstream {
        upstream if follows && upstream.streams() => {
            Some(connect::conninfo(ctx, upstream, ConninfoKind::PrimaryConninfo).await?)
        }
        _ => None,
    };
    let recovery = settings::recovery_settings(&config, &ctx.cluster(), state, conninfo, version);
    let state = state.clone();
    let job = tokio::task::spawn_blocking(move || write_files(&config, &state, &server, &recovery));
    match tokio::time::timeout(WRITE_LIMIT, job).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(ConfError::Hung(WRITE_LIMIT)),
    }
}

/// The settings for a role after the server's program has judged them; warnings go to the log.
async fn checked_settings(
    ctx: &PgContext,
    config: &AgentConfig,
    state: &ConfState,
) -> Result<Settings, ConfError> {
    let wanted = settings::server_settings(config, &ctx.cluster(), state);
    Ok(guc::check(ctx, wanted).await?)
}

/// The command that starts the postmaster, the program first (`configuration.md` 8.1). A standby gets
/// what its control file demands where that is more than what is configured.
pub async fn command_line(ctx: &PgContext, state: &ConfState) -> Result<Vec<OsString>, ConfError> {
    let config = ctx.config();
    let mut server = checked_settings(ctx, &config, state).await?;
    if !state.as_primary {
        let control = controldata::read_all(ctx).await?;
        for (name, (configured, needed)) in settings::raise(&mut server, &control.settings) {
            info!(
                "{name} value in pg_controldata: {needed}, in the global configuration: \
                 {configured}. Setting it to {needed} and setting 'Pending restart' flag"
            );
        }
    }
    Ok(render_command(
        ctx.bin("postgres"),
        &config.postgresql,
        &server,
    ))
}

fn render_command(program: PathBuf, pg: &PostgresConfig, server: &Settings) -> Vec<OsString> {
    let mut config_file = OsString::from("--config_file=");
    config_file.push(main_file(pg));
    let mut command = vec![
        program.into(),
        OsString::from("-D"),
        pg.data_dir.clone().into(),
        config_file,
    ];
    let enforced = settings::enforced(server);
    command.extend(
        enforced
            .iter()
            .map(|(name, value)| format!("--{name}={value}").into()),
    );
    command
}

/// `<config_dir>/postgresql.conf`.
pub fn main_file(pg: &PostgresConfig) -> PathBuf {
    pg.config_dir.join(format!("{}.conf", pg.config_base_name))
}

fn base_name(pg: &PostgresConfig) -> String {
    format!("{}.base.conf", pg.config_base_name)
}

fn write_files(
    config: &AgentConfig,
    state: &ConfState,
    server: &Settings,
    recovery: &Settings,
) -> Result<Written, ConfError> {
    let pg = &config.postgresql;
    create_directories(pg, server);
    keep_base(pg)?;
    let mut changed = replace(pg, &main_file(pg), &render(pg, server, recovery))?;
    changed |= write_hba(pg, state)?;
    if let Some(text) = hba::ident(pg, settings::conf_role(state)) {
        changed |= replace(pg, &settings::ident_file(pg), &text)?;
    }
    if !state.keep_existing_recovery {
        changed |= clean_auto_conf(pg)?;
        changed |= write_signal_files(pg, state)?;
    }
    Ok(Written { changed })
}

/// Directories that PostgreSQL expects and a fresh container lacks (`configuration.md` 8.3).
fn create_directories(pg: &PostgresConfig, server: &Settings) {
    let lists = ["unix_socket_directories", "stats_temp_directory"];
    let wanted = lists
        .iter()
        .filter_map(|name| server.get(*name))
        .flat_map(|list| list.split(','));
    for dir in wanted
        .map(|dir| dir.trim().trim_matches('"'))
        .filter(|dir| !dir.is_empty())
    {
        // An abstract socket is no directory.
        if dir.starts_with('@') {
            continue;
        }
        let path = pg.data_dir.join(dir);
        if let Err(err) = std::fs::create_dir_all(&path) {
            warn!(path = %path.display(), error = %err, "create directory");
        }
    }
}

/// The file that was there before us is kept as the base that ours includes.
fn keep_base(pg: &PostgresConfig) -> Result<(), ConfError> {
    let base = pg.config_dir.join(base_name(pg));
    if pg.custom_conf.is_some() || base.exists() {
        return Ok(());
    }
    let main = main_file(pg);
    let include = include_line(&base_name(pg));
    let existing = read_small(&main).map_err(at("read", &main))?;
    match existing {
        // Ours already: including itself would never end.
        Some(text) if !String::from_utf8_lossy(&text).contains(&include) => {
            std::fs::rename(&main, &base).map_err(at("rename", &main))
        }
        Some(_) | None => {
            write_durably(&base, b"", mode_for(pg, &base)).map_err(at("write", &base))
        }
    }
}

fn include_line(file: &str) -> String {
    format!("include '{}'", escape(file))
}

/// The content of `postgresql.conf`.
fn render(pg: &PostgresConfig, server: &Settings, recovery: &Settings) -> String {
    let mut text = String::from(
        "# Do not edit this file: garden-agent writes it anew, and changes made here are lost.\n\
         # Use the agent's configuration, or gardenctl edit-config for the whole cluster.\n\n",
    );
    let included = match &pg.custom_conf {
        Some(path) => path.to_string_lossy().into_owned(),
        None => base_name(pg),
    };
    text.push_str(&include_line(&included));
    text.push_str("\n\n");
    let last = ["hba_file", "ident_file"];
    let mut line = |name: &str, value: &str| {
        text.push_str(&format!("{name} = '{}'\n", escape(value)));
    };
    for (name, value) in server
        .iter()
        .filter(|(name, _)| !last.contains(&name.as_str()))
    {
        line(name, value);
    }
    for (name, value) in last.iter().filter_map(|name| server.get_key_value(*name)) {
        line(name, value);
    }
    if !recovery.is_empty() {
        text.push_str("\n# recovery.conf\n");
        for (name, value) in recovery {
            text.push_str(&format!("{name} = '{}'\n", escape(value)));
        }
    }
    text
}

/// A value between quotes: `'` and `\` are doubled; line ends become escapes, since the file format has
/// no other way to hold them.
pub(crate) fn escape(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\'' => text.push_str("''"),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\0' => {}
            other => text.push(other),
        }
    }
    text
}

/// Writes a file when its content differs; `true` when it did.
fn replace(pg: &PostgresConfig, path: &Path, text: &str) -> Result<bool, ConfError> {
    let old = read_small(path).map_err(at("read", path))?;
    if old.as_deref() == Some(text.as_bytes()) {
        return Ok(false);
    }
    write_durably(path, text.as_bytes(), mode_for(pg, path)).map_err(at("write", path))?;
    Ok(true)
}

/// Inside PGDATA as PGDATA itself; outside 0666 minus the umask (`configuration.md` 8.5).
fn mode_for(pg: &PostgresConfig, path: &Path) -> u32 {
    if path.starts_with(&pg.data_dir) {
        return file_mode(&pg.data_dir);
    }
    // The umask cannot be read without being set, except here.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    let umask = umask
        .and_then(|text| u32::from_str_radix(text.trim(), 8).ok())
        .unwrap_or(0o022);
    0o666 & !umask
}

fn write_hba(pg: &PostgresConfig, state: &ConfState) -> Result<bool, ConfError> {
    let path = settings::hba_file(pg);
    let backup = pg.config_dir.join("pg_hba.conf.real");
    if state.bootstrap_trust {
        if !hba::is_bootstrap_hba(&path) && path.exists() {
            std::fs::rename(&path, &backup).map_err(at("rename", &path))?;
        }
        let superuser = connect::user_of(&pg.superuser);
        return replace(pg, &path, &hba::bootstrap_hba(&superuser, &pg.replication));
    }
    if let Some(text) = hba::hba(pg, settings::conf_role(state)) {
        return replace(pg, &path, &text);
    }
    if hba::is_bootstrap_hba(&path) && backup.exists() {
        std::fs::rename(&backup, &path).map_err(at("rename", &backup))?;
        return Ok(true);
    }
    Ok(false)
}

/// `ALTER SYSTEM` and `pg_basebackup --write-recovery-conf` leave recovery settings in a file that
/// beats ours.
fn clean_auto_conf(pg: &PostgresConfig) -> Result<bool, ConfError> {
    let path = pg.data_dir.join("postgresql.auto.conf");
    let Some(old) = read_small(&path).map_err(at("read", &path))? else {
        return Ok(false);
    };
    let old = String::from_utf8_lossy(&old).into_owned();
    let cleaned = without_recovery_settings(&old);
    if cleaned == old {
        return Ok(false);
    }
    replace(pg, &path, &cleaned)
}

pub(crate) fn without_recovery_settings(text: &str) -> String {
    let sets_recovery = |line: &str| {
        let line = line.trim_start();
        let end = line
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(line.len());
        guc::is_recovery_setting(&line.get(..end).unwrap_or_default().to_ascii_lowercase())
    };
    text.split_inclusive('\n')
        .filter(|line| !sets_recovery(line))
        .collect()
}

fn write_signal_files(pg: &PostgresConfig, state: &ConfState) -> Result<bool, ConfError> {
    let wanted = match &state.custom_recovery {
        Some(custom) if !settings::wants_standby_mode(custom) => Some("recovery.signal"),
        Some(_) => Some("standby.signal"),
        None => state.standby.then_some("standby.signal"),
    };
    let mut changed = false;
    // First the one that is wanted: between the two steps there is never a moment without any.
    if let Some(name) = wanted {
        let path = pg.data_dir.join(name);
        if !path.exists() {
            write_durably(&path, b"", file_mode(&pg.data_dir)).map_err(at("write", &path))?;
            changed = true;
        }
    }
    for name in ["standby.signal", "recovery.signal"] {
        let path = pg.data_dir.join(name);
        if wanted != Some(name) && path.exists() {
            remove_durably(&path).map_err(at("remove", &path))?;
            changed = true;
        }
    }
    Ok(changed)
}

/// The settings that a role should have right now, judged by the server's program, for
/// [`changed_settings`].
pub async fn wanted_settings(ctx: &PgContext, state: &ConfState) -> Result<Settings, ConfError> {
    checked_settings(ctx, &ctx.config(), state).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn values_are_escaped_as_the_file_format_wants_it() {
        assert_eq!(escape("it's"), "it''s");
        assert_eq!(escape("a\\b\nc\0"), "a\\\\b\\nc");
        assert_eq!(include_line("a'b.conf"), "include 'a''b.conf'");
    }

    #[test]
    fn only_recovery_settings_leave_the_auto_file() {
        let text = "# primary_conninfo\nPrimary_ConnInfo='x'\n  restore_command = 'y'\n\
                    primary_conninfo_old = 'z'\nwork_mem='1MB'";
        assert_eq!(
            without_recovery_settings(text),
            "# primary_conninfo\nprimary_conninfo_old = 'z'\nwork_mem='1MB'"
        );
    }

    proptest! {
        #[test]
        fn an_escaped_value_stays_on_its_line_and_inside_its_quotes(value in "\\PC*|[\n\r'\\\\]*") {
            let escaped = escape(&value);
            prop_assert!(!escaped.contains(['\n', '\r', '\0']));
            let quotes = escaped.replace("\\\\", "").replace("''", "");
            prop_assert!(!quotes.contains('\''));
        }
    }
}
