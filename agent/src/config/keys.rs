//! Every key of the configuration: its form, its default and its meaning. The notes about unknown keys,
//! the JSON schema for editors ([`super::schema`]) and the table of the reference are made from this.

/// The form of a value. Patroni takes many spellings (`"30"` for 30, `on` for true); these are the ones
/// to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Text.
    Text,
    /// `true` or `false`.
    Flag,
    /// A whole number, at least this.
    Number(i64),
    /// A whole number, or a text with a unit.
    Amount,
    /// One of these words.
    Word(&'static [&'static str]),
    /// `true`, `false` or one of these words.
    FlagOrWord(&'static [&'static str]),
    /// A list of texts.
    Texts,
    /// A text, or a list of texts.
    TextOrTexts,
    /// Options of a program: a list of texts and of mappings with one pair, or a mapping.
    Options,
    /// A text, or a list of texts and mappings.
    LogFormat,
    /// A mapping of anything.
    Mapping,
    /// A list of mappings.
    Mappings,
    /// A section whose keys are listed here and nothing else has a meaning.
    Section,
    /// A section that may also have sections with names of the operator's choice: methods.
    SectionWithMethods,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Where it stands, with dots.
    pub path: &'static str,
    /// What its value looks like.
    pub form: Form,
    /// Without it.
    pub default: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn key(path: &'static str, form: Form, default: &'static str, meaning: &'static str) -> Key {
    Key {
        path,
        form,
        default,
        meaning,
    }
}

use Form::{
    Amount, Flag, FlagOrWord, LogFormat, Mapping, Mappings, Number, Options, Section,
    SectionWithMethods, Text, TextOrTexts, Texts, Word,
};

const ROLES: &[&str] = &["superuser", "replication", "rewind"];

/// All keys, sections before their contents.
#[rustfmt::skip]
pub const KEYS: &[Key] = &[
    key("name", Text, "required", "Name of this member, unique in the cluster."),
    key("scope", Text, "required", "Name of the cluster."),
    key("namespace", Text, "/service", "Prefix of all keys in etcd."),
    key("thread_pool_size", Number(5), "5", "Accepted, without effect."),
    key("thread_stack_size", Amount, "512kB", "Accepted, without effect."),

    key("log", Section, "", "The log of the agent."),
    key("log.type", Word(&["plain", "json"]), "plain", "Lines of text, or of JSON."),
    key("log.level", Word(&["DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"]), "INFO", "From which level on."),
    key("log.traceback_level", Text, "ERROR", "Accepted: ours are one line each."),
    key("log.format", LogFormat, "%(asctime)s %(levelname)s: %(message)s", "Percent-style text; for JSON a list of names."),
    key("log.dateformat", Text, "", "Form of moments, as of strftime."),
    key("log.static_fields", Mapping, "", "Added to each line of JSON."),
    key("log.max_queue_size", Number(1), "1000", "Lines that may wait for the disk; more are dropped and counted."),
    key("log.dir", Text, "standard error", "Directory of patroni.log."),
    key("log.mode", Number(0), "0644 by umask", "Mode of the files."),
    key("log.file_size", Number(0), "25000000", "Bytes before rotation; 0: never."),
    key("log.file_num", Number(0), "4", "Rotated files to keep."),
    key("log.loggers", Mapping, "", "Levels by module."),
    key("log.deduplicate_heartbeat_logs", Flag, "false", "Leave out heartbeat lines that say the same again."),

    key("restapi", Section, "", "The HTTP interface."),
    key("restapi.listen", Text, "required", "host:port to listen on."),
    key("restapi.connect_address", Text, "listen", "host:port under which others reach it."),
    key("restapi.authentication", Section, "", "What requests that change something must carry."),
    key("restapi.authentication.username", Text, "", "Name."),
    key("restapi.authentication.password", Text, "", "Password."),
    key("restapi.certfile", Text, "", "Certificate chain; switches TLS on. Read again when it changes."),
    key("restapi.keyfile", Text, "in certfile", "Its key."),
    key("restapi.keyfile_password", Text, "", "Password of the key."),
    key("restapi.cafile", Text, "", "Who signs certificates of clients."),
    key("restapi.ciphers", Text, "", "Accepted, without effect: TLS 1.2 and 1.3 with modern suites."),
    key("restapi.verify_client", Word(&["none", "optional", "required"]), "none", "Whether clients need a certificate: for nothing, for changes, for everything."),
    key("restapi.allowlist", Texts, "", "Addresses, networks and names that may change something."),
    key("restapi.allowlist_include_members", Flag, "false", "Members may, too."),
    key("restapi.http_extra_headers", Mapping, "", "Headers of every answer."),
    key("restapi.https_extra_headers", Mapping, "", "More of them under TLS."),
    key("restapi.request_queue_size", Number(0), "5", "Connections that may wait to be accepted; at least 4096 here."),
    key("restapi.server_tokens", Text, "original", "The Server header: original, minimal, productonly."),
    key("restapi.thread_pool_size", Number(5), "5", "Accepted, without effect."),

    key("ctl", Section, "", "How members and gardenctl call the HTTP interface."),
    key("ctl.authentication", Section, "restapi.authentication", "What they send."),
    key("ctl.authentication.username", Text, "", "Name."),
    key("ctl.authentication.password", Text, "", "Password."),
    key("ctl.insecure", Flag, "false", "Do not verify certificates."),
    key("ctl.cacert", Text, "restapi.cafile", "Who signs certificates of members."),
    key("ctl.certfile", Text, "", "Certificate to present."),
    key("ctl.keyfile", Text, "in certfile", "Its key."),
    key("ctl.keyfile_password", Text, "", "Password of the key."),

    key("etcd3", Section, "", "etcd."),
    key("etcd3.host", Text, "", "One endpoint, host:port."),
    key("etcd3.hosts", TextOrTexts, "", "Endpoints, host:port."),
    key("etcd3.port", Number(1), "2379", "Port of endpoints without one."),
    key("etcd3.url", Text, "", "One endpoint as URL."),
    key("etcd3.proxy", Text, "", "The same, and members are not discovered."),
    key("etcd3.use_proxies", Flag, "false", "Do not discover members."),
    key("etcd3.srv", Text, "", "Domain of SRV records."),
    key("etcd3.discovery_srv", Text, "", "The same."),
    key("etcd3.srv_domain", Text, "", "The same."),
    key("etcd3.srv_suffix", Text, "", "Suffix of the service names."),
    key("etcd3.protocol", Word(&["http", "https"]), "http", "Of endpoints without a scheme."),
    key("etcd3.username", Text, "", "Authentication."),
    key("etcd3.password", Text, "", "Authentication."),
    key("etcd3.cacert", Text, "", "Who signs certificates of etcd; switches TLS on."),
    key("etcd3.cert", Text, "", "Certificate to present."),
    key("etcd3.key", Text, "in cert", "Its key."),

    key("bootstrap", SectionWithMethods, "", "How a new cluster begins; without it this member never makes one."),
    key("bootstrap.dcs", Section, "", "The first dynamic configuration; later it is changed by gardenctl edit-config."),
    key("bootstrap.dcs.ttl", Amount, "30", "Seconds a lease lives, at least 20."),
    key("bootstrap.dcs.loop_wait", Amount, "10", "Seconds between two looks when nothing happens."),
    key("bootstrap.dcs.retry_timeout", Amount, "10", "Seconds for retries against etcd and PostgreSQL."),
    key("bootstrap.dcs.maximum_lag_on_failover", Amount, "1048576", "Bytes that a candidate may lack."),
    key("bootstrap.dcs.maximum_lag_on_syncnode", Amount, "-1", "Bytes behind which a synchronous standby is replaced; -1: never."),
    key("bootstrap.dcs.max_timelines_history", Amount, "0", "Lines of the history to keep; 0: all."),
    key("bootstrap.dcs.primary_start_timeout", Amount, "300", "Seconds for a crashed primary to come back before a failover."),
    key("bootstrap.dcs.primary_stop_timeout", Amount, "0", "Seconds for a primary to stop when synchronous; 0: no limit."),
    key("bootstrap.dcs.master_start_timeout", Amount, "", "Old name of primary_start_timeout."),
    key("bootstrap.dcs.master_stop_timeout", Amount, "", "Old name of primary_stop_timeout."),
    key("bootstrap.dcs.primary_race_backoff", Amount, "", "Seconds that a failed candidate waits."),
    key("bootstrap.dcs.synchronous_mode", FlagOrWord(&["quorum"]), "false", "Commits wait for a standby, or for a quorum of them."),
    key("bootstrap.dcs.synchronous_mode_strict", Flag, "false", "They do so even if there is no standby."),
    key("bootstrap.dcs.synchronous_node_count", Amount, "1", "How many standbys they wait for."),
    key("bootstrap.dcs.failsafe_mode", Flag, "false", "A primary that reaches all members goes on without etcd."),
    key("bootstrap.dcs.check_timeline", Flag, "false", "Candidates must have the newest timeline."),
    key("bootstrap.dcs.pause", Flag, "false", "Maintenance mode."),
    key("bootstrap.dcs.member_slots_ttl", Amount, "30min", "How long slots of lost members are kept."),
    key("bootstrap.dcs.slots", Mapping, "", "Permanent replication slots."),
    key("bootstrap.dcs.permanent_slots", Mapping, "", "Old name of slots."),
    key("bootstrap.dcs.permanent_replication_slots", Mapping, "", "Old name of slots."),
    key("bootstrap.dcs.ignore_slots", Mappings, "", "Slots to leave alone."),
    key("bootstrap.dcs.standby_cluster", Section, "", "This cluster follows another one."),
    key("bootstrap.dcs.standby_cluster.host", Text, "", "Its primary."),
    key("bootstrap.dcs.standby_cluster.port", Amount, "5432", "Its port."),
    key("bootstrap.dcs.standby_cluster.primary_slot_name", Text, "", "Slot there."),
    key("bootstrap.dcs.standby_cluster.create_replica_methods", Texts, "", "How to copy it."),
    key("bootstrap.dcs.standby_cluster.restore_command", Text, "", "How to fetch its WAL."),
    key("bootstrap.dcs.standby_cluster.archive_cleanup_command", Text, "", "How to clean its archive."),
    key("bootstrap.dcs.standby_cluster.recovery_min_apply_delay", Amount, "", "How far to stay behind."),
    key("bootstrap.dcs.postgresql", SectionWithMethods, "", "As postgresql, for all members."),
    key("bootstrap.dcs.postgresql.parameters", Mapping, "", "As postgresql.parameters, and those that must be equal everywhere."),
    key("bootstrap.dcs.postgresql.use_slots", Flag, "true", "Replication slots for members."),
    key("bootstrap.dcs.postgresql.use_pg_rewind", Flag, "false", "Rewind a diverged member."),
    key("bootstrap.dcs.postgresql.pg_hba", Texts, "", "Lines of pg_hba.conf."),
    key("bootstrap.dcs.postgresql.pg_ident", Texts, "", "Lines of pg_ident.conf."),
    key("bootstrap.dcs.garden", Section, "", "Our own times; docs/reference/configuration.md has them."),
    key("bootstrap.dcs.garden.profile", Word(&["safe", "fast", "tuned"]), "safe", "Sets the times below."),
    key("bootstrap.dcs.garden.record_lease", Flag, "true", "Lead by /record when every member is ours."),
    key("bootstrap.dcs.garden.lease_ms", Number(1000), "8000", "How long a leader may act after its last renewal."),
    key("bootstrap.dcs.garden.fence_ms", Number(100), "500", "How long after that a process may still run."),
    key("bootstrap.dcs.garden.wait_ms", Number(1000), "8600", "How long a candidate waits."),
    key("bootstrap.dcs.garden.renew_ms", Number(1), "500", "Between renewals."),
    key("bootstrap.dcs.garden.quorum_failover", Flag, "true", "Fail over by quorum."),
    key("bootstrap.dcs.garden.suspect_ms", Number(1), "1500", "Silence that makes a leader suspect."),
    key("bootstrap.method", Text, "initdb", "Name of a section here whose command makes the cluster."),
    key("bootstrap.initdb", Options, "", "Options of initdb."),
    key("bootstrap.pg_hba", Texts, "", "Lines appended to the first pg_hba.conf."),
    key("bootstrap.post_bootstrap", Text, "", "Command after the superuser exists."),
    key("bootstrap.post_init", Text, "", "Old name of post_bootstrap."),
    key("bootstrap.users", Mapping, "", "Not supported, as in Patroni 4."),

    key("postgresql", SectionWithMethods, "", "PostgreSQL of this member."),
    key("postgresql.listen", Text, "required", "host,host:port to listen on."),
    key("postgresql.connect_address", Text, "listen", "host:port under which others reach it."),
    key("postgresql.proxy_address", Text, "", "host:port of a pooler beside it."),
    key("postgresql.data_dir", Text, "required", "PGDATA."),
    key("postgresql.config_dir", Text, "data_dir", "Directory of its configuration files."),
    key("postgresql.bin_dir", Text, "PATH", "Directory of its programs."),
    key("postgresql.bin_name", Section, "", "Other names of its programs."),
    key("postgresql.bin_name.pg_ctl", Text, "pg_ctl", ""),
    key("postgresql.bin_name.initdb", Text, "initdb", ""),
    key("postgresql.bin_name.pg_controldata", Text, "pg_controldata", ""),
    key("postgresql.bin_name.pg_basebackup", Text, "pg_basebackup", ""),
    key("postgresql.bin_name.postgres", Text, "postgres", ""),
    key("postgresql.bin_name.pg_isready", Text, "pg_isready", ""),
    key("postgresql.bin_name.pg_rewind", Text, "pg_rewind", ""),
    key("postgresql.pgpass", Text, "~/pgpass", "Password file that the agent writes."),
    key("postgresql.authentication", Section, "", "Who connects."),
    key("postgresql.parameters", Mapping, "", "Parameters of this member."),
    key("postgresql.parameters_primary", Mapping, "", "Over them on the primary."),
    key("postgresql.parameters_replica", Mapping, "", "Over them on replicas."),
    key("postgresql.parameters_standby_leader", Mapping, "", "Over them on a standby leader."),
    key("postgresql.pg_hba", Texts, "", "Lines of pg_hba.conf."),
    key("postgresql.pg_hba_primary", Texts, "", "Instead, on the primary."),
    key("postgresql.pg_hba_replica", Texts, "", "Instead, on replicas."),
    key("postgresql.pg_hba_standby_leader", Texts, "", "Instead, on a standby leader."),
    key("postgresql.pg_ident", Texts, "", "Lines of pg_ident.conf."),
    key("postgresql.pg_ident_primary", Texts, "", "Instead, on the primary."),
    key("postgresql.pg_ident_replica", Texts, "", "Instead, on replicas."),
    key("postgresql.pg_ident_standby_leader", Texts, "", "Instead, on a standby leader."),
    key("postgresql.recovery_conf", Mapping, "", "Further recovery settings of standbys."),
    key("postgresql.custom_conf", Text, "", "File to include instead of postgresql.base.conf."),
    key("postgresql.use_pg_rewind", Flag, "false", "Rewind a diverged member."),
    key("postgresql.rewind", Options, "", "Options of pg_rewind."),
    key("postgresql.remove_data_directory_on_rewind_failure", Flag, "false", "Copy anew after a failed rewind."),
    key("postgresql.remove_data_directory_on_diverged_timelines", Flag, "false", "Copy anew where a rewind is not possible."),
    key("postgresql.create_replica_methods", Texts, "basebackup", "How to copy, in this order."),
    key("postgresql.create_replica_method", Texts, "", "Old name of create_replica_methods."),
    key("postgresql.basebackup", Options, "", "Options of pg_basebackup."),
    key("postgresql.callbacks", Section, "", "Commands on events."),
    key("postgresql.callbacks.on_start", Text, "", "PostgreSQL was started."),
    key("postgresql.callbacks.on_stop", Text, "", "It was stopped."),
    key("postgresql.callbacks.on_restart", Text, "", "It was restarted in the same role."),
    key("postgresql.callbacks.on_reload", Text, "", "It has loaded its configuration."),
    key("postgresql.callbacks.on_role_change", Text, "", "It was promoted or demoted."),
    key("postgresql.pre_promote", Text, "", "Command before a promotion; its failure prevents it."),
    key("postgresql.before_stop", Text, "", "Command before each stop."),
    key("postgresql.pg_ctl_timeout", Amount, "60", "Seconds for start and stop."),
    key("postgresql.use_slots", Flag, "true", "Ignored here: it belongs to the dynamic configuration."),
    key("postgresql.use_unix_socket", Flag, "false", "Connect by socket."),
    key("postgresql.use_unix_socket_repl", Flag, "false", "The same for replication connections."),
    key("postgresql.database", Text, "postgres", "Database of the agent's own connections."),
    key("postgresql.config_base_name", Text, "postgresql", "Name of postgresql.conf without its ending."),
    key("postgresql.krbsrvname", Text, "", "Kerberos service name."),
    key("postgresql.name", Text, "", "Old place of name."),
    key("postgresql.superuser", Mapping, "", "Old place of authentication.superuser."),
    key("postgresql.replication", Mapping, "", "Old place of authentication.replication."),
    key("postgresql.pg_rewind", Mapping, "", "Old place of authentication.rewind."),

    key("watchdog", Section, "", "A device that resets the node when the agent is gone."),
    key("watchdog.mode", FlagOrWord(&["off", "automatic", "required"]), "automatic", "Never, if it works, or no leadership without it."),
    key("watchdog.device", Text, "/dev/watchdog", "The device."),
    key("watchdog.driver", Text, "default", "default, or testing for a FIFO."),
    key("watchdog.safety_margin", Number(-1), "5", "Seconds before the lease ends; -1: half of ttl."),

    key("garden", Section, "", "Our own."),
    key("garden.pid_namespace", Flag, "false", "Run PostgreSQL in a PID namespace."),
];

/// Keys of one role of `postgresql.authentication`.
#[rustfmt::skip]
const ACCOUNT: &[Key] = &[
    key("username", Text, "", "Name."),
    key("password", Text, "", "Password."),
    key("sslmode", Text, "", "As of libpq."),
    key("sslcert", Text, "", "As of libpq."),
    key("sslkey", Text, "", "As of libpq."),
    key("sslpassword", Text, "", "As of libpq."),
    key("sslrootcert", Text, "", "As of libpq."),
    key("sslcrl", Text, "", "As of libpq."),
    key("sslcrldir", Text, "", "As of libpq."),
    key("gssencmode", Text, "", "As of libpq."),
    key("channel_binding", Text, "", "As of libpq."),
    key("sslnegotiation", Text, "", "As of libpq."),
];

/// Tags with a meaning; others are the operator's own.
#[rustfmt::skip]
const TAGS: &[Key] = &[
    key("nofailover", Flag, "false", "Never lead."),
    key("failover_priority", Number(0), "1", "Preference among candidates; 0: never lead."),
    key("nosync", Flag, "false", "Never be a synchronous standby."),
    key("sync_priority", Number(0), "1", "Preference among synchronous standbys; 0: never be one."),
    key("noloadbalance", Flag, "false", "Answer 503 to checks of replicas."),
    key("clonefrom", Flag, "false", "Others may copy from this member."),
    key("replicatefrom", Text, "", "Stream from this member instead of the leader."),
    key("nostream", Flag, "false", "Take WAL from the archive only."),
];

/// A key with its whole path, for those that repeat.
#[derive(Clone, Debug)]
pub struct Described {
    /// Where it stands.
    pub path: String,
    /// The rest.
    pub key: Key,
}

/// All keys with their paths, those that repeat included.
pub fn all() -> Vec<Described> {
    let plain = KEYS.iter().map(|key| Described {
        path: key.path.to_owned(),
        key: *key,
    });
    let mut all: Vec<Described> = plain.collect();
    for role in ROLES {
        let section = format!("postgresql.authentication.{role}");
        let head = key("", Section, "", "Who connects as this.");
        all.push(Described {
            path: section.clone(),
            key: head,
        });
        all.extend(ACCOUNT.iter().map(|key| Described {
            path: format!("{section}.{}", key.path),
            key: *key,
        }));
    }
    let head = key(
        "",
        Form::Mapping,
        "",
        "What others shall know about this member.",
    );
    all.push(Described {
        path: String::from("tags"),
        key: head,
    });
    all.extend(TAGS.iter().map(|key| Described {
        path: format!("tags.{}", key.path),
        key: *key,
    }));
    all
}

/// Names of the keys of one section; of the top with an empty name.
pub(crate) fn of(section: &str) -> Vec<&'static str> {
    let name = |key: &'static Key| match section {
        "" => Some(key.path),
        section => key.path.strip_prefix(section)?.strip_prefix('.'),
    };
    KEYS.iter()
        .filter_map(name)
        .filter(|name| !name.contains('.'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_key_is_told_once_and_stands_in_a_section() {
        let mut seen = BTreeSet::new();
        for described in all() {
            if let Some((section, _)) = described.path.rsplit_once('.') {
                assert!(
                    seen.contains(section),
                    "{} has no section before it",
                    described.path
                );
            }
            assert!(
                seen.insert(described.path.clone()),
                "{} is told twice",
                described.path
            );
        }
    }

    #[test]
    fn sections_have_the_keys_right_below_them() {
        assert!(of("").contains(&"postgresql") && !of("").contains(&"postgresql.listen"));
        assert_eq!(of("garden"), ["pid_namespace"]);
        assert!(of("restapi").contains(&"authentication"));
    }
}
