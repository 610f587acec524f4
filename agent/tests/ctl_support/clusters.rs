//! Clusters as they may stand in etcd.

use super::Stage;

/// Clusters that differ in what their tables have to show.
pub fn clusters(stage: &Stage) -> Vec<Vec<(String, String)>> {
    vec![
        stage.usual(),
        // An unusual port, a shared host, an IPv6 address, and members that publish old positions.
        stage.usual_but(&[
            ("members/gd-d", r#"{"conn_url":"postgres://[::1]:5433/postgres","state":"running","xlog_location":6000000,"role":"replica"}"#),
            ("members/gd-e", r#"{"conn_url":"postgres://[::1]/postgres","state":"streaming","xlog_location":6000000,"role":"replica"}"#),
            ("members/gd-f", r#"{"state":"running","replication_state":"in archive recovery","role":"replica","replay_lsn":66895456}"#),
        ]),
        // A standby cluster.
        stage.usual_but(&[
            ("config", r#"{"standby_cluster":{"host":"192.0.2.1"},"synchronous_mode":true}"#),
            ("members/gd-a", r#"{"conn_url":"postgres://192.0.2.11/postgres","state":"running","replication_state":"streaming","role":"standby_leader","timeline":5}"#),
        ]),
        // Quorum mode, paused, with a switchover ahead.
        stage.usual_but(&[
            ("config", r#"{"synchronous_mode":"quorum","pause":true}"#),
            ("failover", r#"{"leader":"gd-a","member":"gd-b","scheduled_at":"2031-01-01 00:00:00+00:00"}"#),
            ("sync", r#"{"leader":"gd-a","sync_standby":"GD-B,gd-c","quorum":1}"#),
        ]),
        // Nobody leads, and nothing is initialised.
        stage.usual_but(&[
            ("initialize", ""),
            ("leader", ""),
            ("failover", r#"{"member":"gd-b","scheduled_at":"2031-01-01T00:00:00.5+02:00"}"#),
        ]),
        // A tree, a circle, tags and reasons of several lines.
        stage.usual_but(&[
            ("members/gd-b", r#"{"conn_url":"postgres://192.0.2.12/postgres","state":"running","tags":{"replicatefrom":"gd-c","x":[1,2],"nested":{"a":"b: c"},"t":"a,b"},"pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"200"},"shared_preload_libraries":{"old_value":"a_rather_long_name","new_value":"another_name_that_is_rather_long"}}}"#),
            ("members/gd-d", r#"{"conn_url":"postgres://192.0.2.14/postgres","state":"running","tags":{"replicatefrom":"gd-b"}}"#),
            ("members/gd-e", r#"{"conn_url":"postgres://192.0.2.15/postgres","state":"running","tags":{"replicatefrom":"gd-f"}}"#),
            ("members/gd-f", r#"{"conn_url":"postgres://192.0.2.16/postgres","state":"running","tags":{"replicatefrom":"gd-e"}}"#),
            ("members/gd-g", r#"{"conn_url":"postgres://192.0.2.17/postgres","state":"running","tags":{"replicatefrom":"nobody"}}"#),
        ]),
        // Names beyond ASCII, half megabytes, a member that cannot be read, texts that need quotes.
        stage.usual_but(&[
            ("members/Zähler", r#"{"conn_url":"postgres://192.0.2.12/postgres","state":"running","receive_lsn":66895456,"replay_lsn":65846880}"#),
            ("members/名前", r#"{"conn_url":"postgres://192.0.2.19/postgres","state":"running","receive_lsn":64798304,"replay_lsn":65846881}"#),
            ("members/bad", "nonsense"),
            ("config", r#"{"ttl":30,"postgresql":{"parameters":{"archive_command":"test ! -f /a/very/long/path/to/somewhere/%f && cp %p /a/very/long/path/to/somewhere/%f && echo it has been archived, and this is more than eighty columns and even more than two hundred, yes it is","e":"é","multi":"a\nb","empty":"","num":"1e3","t":"2030-01-01","d":"2030-01-01 x"},"pg_hba":["host all all 0.0.0.0/0 md5",{"a":1}]},"f":1.5,"n":null,"l":[],"m":{}}"#),
        ]),
        // The form that very old agents write.
        stage.usual_but(&[
            ("members/gd-a", "postgres://192.0.2.11:5432/postgres?application_name=http://127.0.0.1:1/patroni"),
            ("status", "67419744"),
            ("history", "[]"),
        ]),
    ]
}
