//! Where a member stands in the WAL, and how far that is behind the cluster (`ha-behaviour.md` 1).

use super::observation::{LocalPostgres, Sql, SqlSample};
use crate::config::ClusterConfig;
use crate::dcs::ClusterView;
use crate::wal::Lsn;

/// The position with which a server stands for election: what a primary has flushed, or the larger
/// of what a standby has received and replayed. Replay can be ahead of the receiver when WAL comes
/// from an archive.
pub fn position(sample: &SqlSample) -> Lsn {
    if sample.in_recovery {
        sample.receive_lsn.max(sample.replay_lsn)
    } else {
        sample.flush_lsn
    }
}

/// [`position`] of the local server; `None` while it does not answer or has no position yet.
pub fn local_position(postgres: &LocalPostgres) -> Option<Lsn> {
    match &postgres.sql {
        Sql::Sample(sample) => position(sample).some(),
        Sql::None | Sql::Refused | Sql::Rejecting | Sql::Silent => None,
    }
}

/// Bytes between the position that the last leader published and `position`; zero when it published
/// none. The published position is a sample, so the true lag can be larger by what the leader wrote
/// after it.
pub fn behind_cluster(view: &ClusterView, position: Lsn) -> u64 {
    view.status
        .optime
        .unwrap_or(Lsn::NONE)
        .bytes_ahead_of(position)
}

/// The lag in bytes, when it is above `maximum_lag_on_failover`.
pub fn excessive(view: &ClusterView, config: &ClusterConfig, position: Lsn) -> Option<u64> {
    let behind = behind_cluster(view, position);
    (behind > config.maximum_lag_on_failover).then_some(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_stands_where_it_flushed_and_a_standby_at_the_larger_of_both() {
        let mut sample = SqlSample {
            flush_lsn: Lsn(7),
            receive_lsn: Lsn(20),
            replay_lsn: Lsn(30),
            ..SqlSample::default()
        };
        assert_eq!(position(&sample), Lsn(7));
        sample.in_recovery = true;
        assert_eq!(position(&sample), Lsn(30));
        sample.replay_lsn = Lsn(10);
        assert_eq!(position(&sample), Lsn(20));
    }

    #[test]
    fn the_limit_itself_is_not_excessive() {
        let mut view = ClusterView::default();
        let config = ClusterConfig::default();
        assert_eq!(
            excessive(&view, &config, Lsn(5)),
            None,
            "nothing was published"
        );
        view.status.optime = Some(Lsn(5 + config.maximum_lag_on_failover));
        assert_eq!(excessive(&view, &config, Lsn(5)), None);
        assert_eq!(
            excessive(&view, &config, Lsn(4)),
            Some(config.maximum_lag_on_failover + 1)
        );
    }

    #[test]
    fn a_server_that_does_not_answer_has_no_position() {
        let mut postgres = LocalPostgres {
            sql: Sql::Silent,
            ..LocalPostgres::default()
        };
        assert_eq!(local_position(&postgres), None);
        postgres.sql = Sql::Sample(Box::default());
        assert_eq!(local_position(&postgres), None, "0/0 is no position");
    }
}
