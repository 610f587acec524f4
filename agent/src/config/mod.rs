//! What the agent was configured to be: an unmodified Patroni YAML (file or directory), the
//! `PATRONI_*` environment over it, and the dynamic document below it (`configuration.md`).
//!
//! [`AgentConfig`] is the meaning: parsed, checked, defaults filled in. The other modules read it and
//! never the YAML.

pub mod cache;
mod effective;
pub mod env;
pub mod error;
pub mod generate;
pub mod keys;
mod known;
mod local;
pub mod merge;
pub mod reload;
pub mod schema;
pub mod secret;
mod source;
pub mod validate;
pub mod value;
pub mod yaml;

pub use effective::RECOVERY;
pub(crate) use effective::percent_decode;
pub use error::ConfigError;
pub use local::{LocalConfig, clamp};
pub use source::{Loader, Source};

use proto::config::Tags;
use secret::Secret;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// The effective configuration of this member: the local layer over the dynamic one.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Member name.
    pub name: String,
    /// Cluster name.
    pub scope: String,
    /// DCS prefix, `service` by default.
    pub namespace: String,
    /// Logging.
    pub log: LogConfig,
    /// REST server.
    pub restapi: RestApiConfig,
    /// REST client, for peers and for gardenctl.
    pub ctl: CtlConfig,
    /// etcd.
    pub etcd: EtcdConfig,
    /// Tags.
    pub tags: Tags,
    /// Watchdog.
    pub watchdog: WatchdogConfig,
    /// The guardian.
    pub guardian: GuardianConfig,
    /// How to initialise a cluster; without it this member never does.
    pub bootstrap: Option<BootstrapConfig>,
    /// PostgreSQL.
    pub postgresql: PostgresConfig,
}

/// What gardenctl needs of the same file: everything optional that a control host may lack.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Cluster name.
    pub scope: Option<String>,
    /// DCS prefix, `service` by default.
    pub namespace: String,
    /// etcd.
    pub etcd: EtcdConfig,
    /// REST client.
    pub ctl: CtlConfig,
    /// For `gardenctl query` and `dsn`.
    pub superuser: Credentials,
    /// `postgresql.database`.
    pub database: Option<String>,
}

/// `log`.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// JSON lines instead of plain ones.
    pub json: bool,
    /// `DEBUG`, `INFO`, …
    pub level: String,
    /// `DEBUG` or `ERROR`.
    pub traceback_level: String,
    /// Percent-style text, or a list for JSON.
    pub format: Value,
    /// `strftime` text.
    pub dateformat: Option<String>,
    /// Added to each JSON line.
    pub static_fields: Map<String, Value>,
    /// Records that may wait for the writer.
    pub max_queue_size: usize,
    /// Directory of `patroni.log`.
    pub dir: Option<PathBuf>,
    /// Mode of log files.
    pub mode: Option<u32>,
    /// Bytes before rotation; zero: never.
    pub file_size: u64,
    /// Rotated files to keep.
    pub file_num: usize,
    /// Level per module.
    pub loggers: BTreeMap<String, String>,
    /// Leave out repeated heartbeat lines.
    pub deduplicate_heartbeat_logs: bool,
}

/// `restapi`.
#[derive(Clone, Debug, PartialEq)]
pub struct RestApiConfig {
    /// Host to bind; empty or `*` means all addresses.
    pub listen_host: String,
    /// Port to bind.
    pub listen_port: u16,
    /// `host:port` that others use.
    pub connect_address: String,
    /// Basic authentication for unsafe requests.
    pub authentication: Option<(String, Secret)>,
    /// TLS, when a certificate is configured.
    pub tls: Option<ServerTls>,
    /// Hosts, addresses and networks that may send unsafe requests.
    pub allowlist: Vec<String>,
    /// Members may, too.
    pub allowlist_include_members: bool,
    /// Headers of every answer.
    pub http_extra_headers: BTreeMap<String, String>,
    /// More headers under TLS.
    pub https_extra_headers: BTreeMap<String, String>,
    /// Listen backlog.
    pub request_queue_size: u32,
    /// `original`, `minimal` or `productonly`.
    pub server_tokens: String,
}

/// TLS of a server.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerTls {
    /// Certificate chain, may contain the key.
    pub certfile: PathBuf,
    /// Key.
    pub keyfile: Option<PathBuf>,
    /// Its password.
    pub keyfile_password: Option<Secret>,
    /// CA for client certificates.
    pub cafile: Option<PathBuf>,
    /// OpenSSL cipher list.
    pub ciphers: Option<String>,
    /// Whether clients must present a certificate.
    pub verify_client: VerifyClient,
}

/// `restapi.verify_client`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyClient {
    /// Not asked for.
    #[default]
    None,
    /// Asked for; needed for unsafe requests.
    Optional,
    /// Needed in the handshake.
    Required,
}

/// `ctl`, with its fallbacks to `restapi` resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CtlConfig {
    /// Basic authentication sent to members.
    pub authentication: Option<(String, Secret)>,
    /// Verify nothing.
    pub insecure: bool,
    /// CA file or directory.
    pub cacert: Option<PathBuf>,
    /// Client certificate.
    pub certfile: Option<PathBuf>,
    /// Client key.
    pub keyfile: Option<PathBuf>,
    /// Its password.
    pub keyfile_password: Option<Secret>,
}

/// `etcd3`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EtcdConfig {
    /// `scheme://host:port`, in the order of the configuration.
    pub endpoints: Vec<String>,
    /// DNS domain for SRV discovery, tried before `endpoints`.
    pub srv: Option<String>,
    /// Suffix of the service names.
    pub srv_suffix: Option<String>,
    /// Never ask etcd for its member list.
    pub use_proxies: bool,
    /// Authentication.
    pub username: Option<String>,
    /// Authentication.
    pub password: Option<Secret>,
    /// CA.
    pub cacert: Option<PathBuf>,
    /// Client certificate.
    pub cert: Option<PathBuf>,
    /// Client key.
    pub key: Option<PathBuf>,
}

/// `watchdog`.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchdogConfig {
    /// When to use it.
    pub mode: WatchdogMode,
    /// Device, or the FIFO of the test driver.
    pub device: PathBuf,
    /// `default` or `testing`.
    pub driver: String,
    /// Seconds; -1 means half the `ttl`.
    pub safety_margin: i64,
}

/// `garden`, our own section of the local file; Patroni ignores it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuardianConfig {
    /// PostgreSQL runs in a PID namespace of its own, which the kernel ends as a whole: proof even
    /// against a node on which everything was stopped and goes on. Backends have other pids inside
    /// than outside, which is why it is not the default.
    pub pid_namespace: bool,
}

/// `watchdog.mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchdogMode {
    /// Never.
    Off,
    /// If it works.
    Automatic,
    /// No leadership without it.
    Required,
}

/// `bootstrap`.
#[derive(Clone, Debug, Default)]
pub struct BootstrapConfig {
    /// The first dynamic document, timeouts clamped.
    pub dcs: Map<String, Value>,
    /// `None`: `initdb`.
    pub method: Option<CustomMethod>,
    /// Options of `initdb`, ready for its command line.
    pub initdb: Vec<String>,
    /// Lines for the fresh `pg_hba.conf`.
    pub pg_hba: Vec<String>,
    /// Command after the superuser exists, split into words.
    pub post_bootstrap: Option<Vec<String>>,
    /// What is wrong with this section: initialising a cluster must fail with these sentences, while
    /// a member of an existing cluster has no need of it.
    pub problems: Vec<String>,
}

/// A custom bootstrap or replica method.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CustomMethod {
    /// Its name.
    pub name: String,
    /// Its command, split into words.
    pub command: Vec<String>,
    /// Pass none of the standard parameters.
    pub no_params: bool,
    /// Works without a source.
    pub no_leader: bool,
    /// Do not wipe the data directory.
    pub keep_data: bool,
    /// Leave recovery settings that the tool wrote.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings to write (bootstrap only).
    pub recovery_conf: Option<Map<String, Value>>,
    /// Passed as `--key=value`, in the order of the file.
    pub extra: Vec<(String, String)>,
}

/// One way to create a replica.
#[derive(Clone, Debug, PartialEq)]
pub enum ReplicaMethod {
    /// `pg_basebackup`.
    Basebackup,
    /// A command.
    Custom(CustomMethod),
}

/// Who connects, and how.
#[derive(Clone, Default, PartialEq)]
pub struct Credentials {
    /// `None`: the operating system user.
    pub username: Option<String>,
    /// Password.
    pub password: Option<Secret>,
    /// `sslmode`, `sslcert`, `sslkey`, `sslpassword`, `sslrootcert`, `sslcrl`, `sslcrldir`,
    /// `gssencmode`, `channel_binding`, `sslnegotiation`, as far as they are set.
    pub options: BTreeMap<String, String>,
}

/// One of the options is a password, too: only their names show.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("username", &self.username)
            .field("password", &self.password)
            .field("options", &self.options.keys())
            .finish()
    }
}

/// The three roles that PostgreSQL's configuration may differ by; also the suffixes of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConfRole {
    /// `_primary`.
    Primary,
    /// `_replica`.
    Replica,
    /// `_standby_leader`.
    StandbyLeader,
}

/// `postgresql`, effective.
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    /// Hosts of `listen`.
    pub listen_hosts: Vec<String>,
    /// Port of `listen`.
    pub port: u16,
    /// `host:port` for `conn_url`.
    pub connect_address: String,
    /// `host:port` for `proxy_url`.
    pub proxy_address: Option<String>,
    /// PGDATA.
    pub data_dir: PathBuf,
    /// Where the configuration files live.
    pub config_dir: PathBuf,
    /// Where the programs live; `None`: in `PATH`.
    pub bin_dir: Option<PathBuf>,
    /// Replacement names of programs.
    pub bin_name: BTreeMap<String, String>,
    /// Password file that the agent writes.
    pub pgpass: PathBuf,
    /// Superuser.
    pub superuser: Credentials,
    /// Replication user.
    pub replication: Credentials,
    /// Rewind user; `None`: the superuser.
    pub rewind: Option<Credentials>,
    /// Database of the agent's own connections.
    pub database: String,
    /// Base name of the main configuration file, `postgresql`.
    pub config_base_name: String,
    /// Effective parameters, names in lower case, controlled ones included with checked values.
    pub parameters: BTreeMap<String, Value>,
    /// Merged over `parameters` for a role.
    pub parameters_by_role: BTreeMap<ConfRole, BTreeMap<String, Value>>,
    /// Lines of `pg_hba.conf`; `None`: the file is not managed.
    pub pg_hba: Option<Vec<String>>,
    /// Replaces `pg_hba` for a role.
    pub pg_hba_by_role: BTreeMap<ConfRole, Vec<String>>,
    /// Lines of `pg_ident.conf`.
    pub pg_ident: Option<Vec<String>>,
    /// Replaces `pg_ident` for a role.
    pub pg_ident_by_role: BTreeMap<ConfRole, Vec<String>>,
    /// Extra recovery settings of standbys.
    pub recovery_conf: Map<String, Value>,
    /// Included instead of `postgresql.base.conf`.
    pub custom_conf: Option<PathBuf>,
    /// `use_pg_rewind`.
    pub use_pg_rewind: bool,
    /// Extra options of `pg_rewind`, checked.
    pub rewind_options: Vec<String>,
    /// `remove_data_directory_on_rewind_failure`.
    pub wipe_on_rewind_failure: bool,
    /// `remove_data_directory_on_diverged_timelines`.
    pub wipe_on_divergence: bool,
    /// In the order in which they are tried.
    pub create_replica_methods: Vec<ReplicaMethod>,
    /// All methods that have a section, by name: a standby cluster may name them.
    pub methods: BTreeMap<String, CustomMethod>,
    /// Extra options of `pg_basebackup`, checked.
    pub basebackup_options: Vec<String>,
    /// Commands by event, unsplit.
    pub callbacks: BTreeMap<String, String>,
    /// Command before promotion.
    pub pre_promote: Option<String>,
    /// Command before each stop.
    pub before_stop: Option<String>,
    /// Limit of start and stop.
    pub pg_ctl_timeout: Duration,
    /// Superuser connections by socket.
    pub use_unix_socket: bool,
    /// Local replication connections by socket.
    pub use_unix_socket_repl: bool,
    /// Kerberos service name.
    pub krbsrvname: Option<String>,
}
