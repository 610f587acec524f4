//! The command line: `patronictl`'s, and our own commands on top (`cli.md` 1 and 8).

use crate::manual::{Completion, Man};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Controls a cluster of garden-agent or Patroni.
#[derive(Debug, Parser)]
#[command(
    name = "gardenctl",
    version,
    arg_required_else_help = true,
    subcommand_required = true
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options before the command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Configuration file or directory; default: patronictl.yaml in the user's configuration directory
    #[arg(short = 'c', long, env = "PATRONICTL_CONFIG_FILE", value_name = "PATH")]
    pub config_file: Option<PathBuf>,
    /// The etcd to use instead of the configured one: [etcd3://][host][:port][/namespace]
    #[arg(
        short = 'd',
        long = "dcs-url",
        visible_alias = "dcs",
        env = "DCS_URL",
        value_name = "URL"
    )]
    pub dcs_url: Option<String>,
    /// Do not verify the members' TLS certificates
    #[arg(short = 'k', long)]
    pub insecure: bool,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the members of clusters
    List(List),
    /// Show the members as a tree of who replicates from whom
    Topology(Topology),
    /// Print where a member's PostgreSQL listens
    Dsn(Dsn),
    /// Run SQL on a member
    Query(Query),
    /// Restart PostgreSQL
    Restart(Restart),
    /// Make agents read their configuration again
    Reload(Reload),
    /// Throw a replica's data away and copy it anew
    Reinit(Reinit),
    /// Hand leadership over to a replica
    Switchover(Switchover),
    /// Make a replica the leader, whatever the leader says
    Failover(Failover),
    /// Forget scheduled restarts, or the scheduled switchover
    Flush(Flush),
    /// Stop automatic failover: maintenance mode
    Pause(Pause),
    /// Leave maintenance mode
    Resume(Pause),
    /// Show the dynamic configuration
    ShowConfig(OneCluster),
    /// Change the dynamic configuration
    EditConfig(EditConfig),
    /// Show the past timelines
    History(History),
    /// Show the version of this program and of members
    Version(Version),
    /// Delete everything that etcd holds about a cluster
    Remove(Remove),
    /// Turn the cluster into a standby cluster
    DemoteCluster(DemoteCluster),
    /// Turn a standby cluster into one of its own
    PromoteCluster(PromoteCluster),
    /// Tell the last change of leadership in milliseconds, from the members' journals
    Timeline(Timeline),
    /// Say why members lead or do not lead, and why no failover happens now
    Explain(Explain),
    /// Look for what would go wrong
    Doctor(OneCluster),
    /// Print the completion script of a shell
    Completion(Completion),
    /// Write man pages into a directory
    Man(Man),
}

/// `--group`, which every command takes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Group {
    /// Citus group
    #[arg(long, value_name = "N")]
    pub group: Option<i64>,
}

/// A cluster that the configuration names otherwise.
#[derive(Clone, Debug, Args)]
pub struct OneCluster {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
}

/// `--force`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Force {
    /// Ask nothing
    #[arg(long)]
    pub force: bool,
}

/// Repetition.
#[derive(Clone, Copy, Debug, Args)]
pub struct Watch {
    /// Repeat every 2 seconds
    #[arg(short = 'W')]
    pub repeat: bool,
    /// Repeat every so many seconds
    #[arg(short = 'w', long, value_name = "SECONDS")]
    pub watch: Option<f64>,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    Pretty,
    /// Fields with tabs between them.
    Tsv,
    /// One line of JSON.
    Json,
    /// YAML.
    Yaml,
    /// YAML.
    Yml,
}

/// Which members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Holds the leader key.
    Leader,
    /// The same, unless it leads a standby cluster.
    Primary,
    /// The same, unless it is a primary.
    StandbyLeader,
    /// All but the leader.
    Replica,
    /// All but the leader.
    Standby,
    /// All.
    Any,
}

impl Role {
    /// The word on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Primary => "primary",
            Self::StandbyLeader => "standby-leader",
            Self::Replica => "replica",
            Self::Standby => "standby",
            Self::Any => "any",
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct List {
    /// Clusters; default: scope of the configuration
    pub cluster_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    /// Show all columns
    #[arg(short, long)]
    pub extended: bool,
    /// Show the time first
    #[arg(short, long)]
    pub timestamp: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub format: Format,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Clone, Debug, Args)]
pub struct Topology {
    /// Clusters; default: scope of the configuration
    pub cluster_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Clone, Debug, Args)]
pub struct Dsn {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// The first member with this role; default: the leader
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// This member
    #[arg(short, long)]
    pub member: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Query {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// SQL
    #[arg(short, long, allow_hyphen_values = true)]
    pub command: Option<String>,
    /// A file with SQL
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// The first member with this role; default: the leader
    #[arg(short, long, value_enum)]
    pub role: Option<Role>,
    /// This member
    #[arg(short, long)]
    pub member: Option<String>,
    /// User
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// Ask for the password
    #[arg(long)]
    pub password: bool,
    /// Database
    #[arg(short, long)]
    pub dbname: Option<String>,
    /// How to print: pretty, tsv, json, yaml
    #[arg(long, default_value = "tsv")]
    pub format: String,
    /// What stands between the fields of tsv
    #[arg(
        long,
        default_value = "\t",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub delimiter: String,
    #[command(flatten)]
    pub watch: Watch,
}

#[derive(Clone, Debug, Args)]
pub struct Restart {
    /// Cluster
    pub cluster_name: String,
    /// Members; default: all with the role
    pub member_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value = "any")]
    pub role: Role,
    /// One of them, whichever
    #[arg(long)]
    pub any: bool,
    /// When (ISO 8601)
    #[arg(long, value_name = "TIMESTAMP")]
    pub scheduled: Option<String>,
    /// Only if the server is older than this
    #[arg(long, value_name = "VERSION")]
    pub pg_version: Option<String>,
    /// Only where a restart is pending
    #[arg(long)]
    pub pending: bool,
    /// Give up, and fail over if necessary, when it takes longer
    #[arg(long)]
    pub timeout: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Reload {
    /// Cluster
    pub cluster_name: String,
    /// Members; default: all with the role
    pub member_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value = "any")]
    pub role: Role,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Reinit {
    /// Cluster
    pub cluster_name: String,
    /// Members
    pub member_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    /// Copy from the leader
    #[arg(long)]
    pub from_leader: bool,
    /// Wait until it is done
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Switchover {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// Who leads now
    #[arg(long, visible_alias = "primary")]
    pub leader: Option<String>,
    /// Who shall lead
    #[arg(long)]
    pub candidate: Option<String>,
    /// When (ISO 8601)
    #[arg(long, value_name = "TIMESTAMP")]
    pub scheduled: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Failover {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// Who shall lead
    #[arg(long)]
    pub candidate: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Flush {
    /// Cluster
    pub cluster_name: String,
    /// Members, and at the end: restart or switchover
    #[arg(required = true, value_name = "MEMBER... restart|switchover")]
    pub rest: Vec<String>,
    #[command(flatten)]
    pub group: Group,
    /// Only members with this role
    #[arg(short, long, value_enum, default_value = "any")]
    pub role: Role,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Pause {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// Wait until all members have seen it
    #[arg(long)]
    pub wait: bool,
}

#[derive(Clone, Debug, Args)]
pub struct EditConfig {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// Do not show the changes
    #[arg(short, long)]
    pub quiet: bool,
    /// Set a.b.c=VALUE; null removes
    #[arg(short, long, value_name = "KEY=VALUE", allow_hyphen_values = true)]
    pub set: Vec<String>,
    /// Set a PostgreSQL parameter
    #[arg(short, long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    pub pg: Vec<String>,
    /// Merge a file; - is standard input
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub apply: Option<String>,
    /// Replace everything by a file; - is standard input
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub replace: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct History {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// How to print
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
pub struct Version {
    /// Cluster
    pub cluster_name: Option<String>,
    /// Members; default: all
    pub member_names: Vec<String>,
    #[command(flatten)]
    pub group: Group,
}

#[derive(Clone, Debug, Args)]
pub struct Remove {
    /// Cluster
    pub cluster_name: String,
    #[command(flatten)]
    pub group: Group,
    /// How to print
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub format: Format,
}

#[derive(Clone, Debug, Args)]
pub struct DemoteCluster {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    /// Host of the primary to follow
    #[arg(long)]
    pub host: Option<String>,
    /// Its port
    #[arg(long)]
    pub port: Option<i64>,
    /// How to fetch its WAL
    #[arg(long, allow_hyphen_values = true)]
    pub restore_command: Option<String>,
    /// Slot there
    #[arg(long)]
    pub primary_slot_name: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct PromoteCluster {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub force: Force,
}

#[derive(Clone, Debug, Args)]
pub struct Timeline {
    /// Cluster; default: scope of the configuration
    pub cluster_name: Option<String>,
    #[command(flatten)]
    pub group: Group,
    /// Entries of each journal to read
    #[arg(long, default_value_t = 500)]
    pub limit: u32,
    /// Show every entry
    #[arg(long)]
    pub all: bool,
}

#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// Member; default: all
    pub member: Option<String>,
    /// Cluster; default: scope of the configuration
    #[arg(long, value_name = "CLUSTER")]
    pub cluster: Option<String>,
    #[command(flatten)]
    pub group: Group,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Command, clap::error::ErrorKind> {
        let words = std::iter::once("gardenctl").chain(line.split(' '));
        Cli::try_parse_from(words)
            .map(|cli| cli.command)
            .map_err(|err| err.kind())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_may_follow_arguments_and_short_ones_change_their_meaning_after_the_command() {
        let Ok(Command::Query(query)) = parsed("-c file query garden -c SELECT -d db -f sql")
        else {
            panic!("query")
        };
        assert_eq!(query.command.as_deref(), Some("SELECT"));
        assert_eq!(query.dbname.as_deref(), Some("db"));
        let Ok(Command::Restart(restart)) = parsed("restart garden --force a b -r replica") else {
            panic!("restart")
        };
        assert_eq!(restart.member_names, ["a", "b"]);
        assert_eq!((restart.role, restart.force.force), (Role::Replica, true));
    }

    #[test]
    fn what_patronictl_gave_up_is_a_usage_error() {
        for line in [
            "failover --leader a",
            "failover --scheduled now",
            "switchover --master a",
            "dsn -r master",
            "list -f xml",
            "restart",
            "nothing",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
