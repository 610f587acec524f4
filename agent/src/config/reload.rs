//! What a reload cannot change: Patroni ignores such a change silently until its next start, we say so
//! (`configuration.md` 16).

use super::{AgentConfig, EtcdConfig};

/// The keys whose new value waits for a restart of the agent.
pub fn waiting_for_restart(running: &AgentConfig, new: &AgentConfig) -> Vec<&'static str> {
    let (old_pg, new_pg) = (&running.postgresql, &new.postgresql);
    [
        ("name", running.name != new.name),
        ("scope", running.scope != new.scope),
        ("namespace", running.namespace != new.namespace),
        (
            "etcd3",
            without_login(&running.etcd) != without_login(&new.etcd),
        ),
        (
            "restapi.request_queue_size",
            running.restapi.request_queue_size != new.restapi.request_queue_size,
        ),
        ("postgresql.data_dir", old_pg.data_dir != new_pg.data_dir),
        (
            "postgresql.config_dir",
            old_pg.config_dir != new_pg.config_dir,
        ),
        ("postgresql.bin_dir", old_pg.bin_dir != new_pg.bin_dir),
        ("postgresql.pgpass", old_pg.pgpass != new_pg.pgpass),
        ("postgresql.database", old_pg.database != new_pg.database),
        (
            "postgresql.config_base_name",
            old_pg.config_base_name != new_pg.config_base_name,
        ),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(key))
    .collect()
}

/// The login is used for the next token, so it may change.
fn without_login(etcd: &EtcdConfig) -> EtcdConfig {
    EtcdConfig {
        username: None,
        password: None,
        ..etcd.clone()
    }
}
