//! Whether a copy of a logical slot can be decoded from (`ha-behaviour.md` 15.3, "safety"). The primary keeps
//! old catalog rows for its own slot, and for the standby as soon as that has told it what the copy needs
//! (`hot_standby_feedback`). In between, the primary's slot may have moved on, and vacuum have removed rows
//! that the copy still needs. It needs them no more once it has moved as far as the primary's slot was at a
//! moment when the standby's need was known there.

use super::super::connect::{self, ConnectError, Role};
use super::super::promote;
use super::super::shared::{Shared, chain};
use proto::core::job::Upstream;
use proto::ids::MemberName;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio_postgres::Client;

/// Between two looks. The standby tells what it needs every ten seconds (`wal_receiver_status_interval`).
const PAUSE: Duration = Duration::from_secs(2);

/// A consumer that does not move for this long leaves the copy as it is.
const LOOKS: u32 = 1800;

/// Looks until every copy among `names` is proved, or gone. `follow` is whom this standby streams from.
pub(super) async fn prove(shared: &Shared, leader: &Upstream, follow: &Upstream, names: &[String]) {
    let copies: BTreeSet<String> = names.iter().cloned().collect();
    shared.unproved.send_modify(|all| all.extend(copies));
    for _ in 0..LOOKS {
        tokio::time::sleep(PAUSE).await;
        match look(shared, leader, follow, names).await {
            Ok(true) => return,
            Ok(false) => {}
            // A leader that is gone leaves them unproved; the next one makes new copies, or has them.
            Err(error) => tracing::debug!(error = chain(&error), "copies of logical slots"),
        }
    }
}

/// One look; whether nothing is left to look at.
async fn look(
    shared: &Shared,
    leader: &Upstream,
    follow: &Upstream,
    names: &[String],
) -> Result<bool, ConnectError> {
    let failed = |err: tokio_postgres::Error| connect::classify(&err);
    // Ours first: it only grows, so it is at least this when the primary answers.
    let local = connect::superuser(&shared.ctx).await?;
    if !promote::in_recovery(&local).await.map_err(failed)? {
        return Ok(true);
    }
    let ours = needs(&local, names).await.map_err(failed)?;
    let remote = connect::remote(&shared.ctx, leader, Role::Rewind).await?;
    let theirs = needs(&remote, names).await.map_err(failed)?;
    let me = MemberName::new(shared.ctx.config().name.as_str());
    let branch = [branch_slot(&me, leader, follow)];
    let told = needs(&remote, &branch).await.map_err(failed)?;
    let told = told.values().next().copied();
    let open = |name: &String| {
        // Gone here or there: nothing to decode from.
        let (Some(ours), Some(theirs)) = (ours.get(name), theirs.get(name)) else {
            return false;
        };
        let proved = told.is_some_and(|told| not_after(told, *ours)) && not_after(*theirs, *ours);
        if proved {
            tracing::info!(
                slot = name,
                "the copy of a logical slot can be decoded from"
            );
        }
        !proved
    };
    let others = |name: &String| !names.contains(name);
    shared
        .unproved
        .send_modify(|all| all.retain(|name| others(name) || open(name)));
    Ok(shared.unproved.borrow().iter().all(others))
}

/// The slot at the leader that speaks for this standby: its own, or that of the member in between.
fn branch_slot(me: &MemberName, leader: &Upstream, follow: &Upstream) -> String {
    match follow {
        Upstream::Member { name, .. } if follow != leader => name.slot_name(),
        _ => me.slot_name(),
    }
}

/// The oldest transaction whose catalog rows each slot needs.
async fn needs(
    client: &Client,
    names: &[String],
) -> Result<BTreeMap<String, u32>, tokio_postgres::Error> {
    let query = "SELECT slot_name::text, catalog_xmin::text FROM pg_catalog.pg_replication_slots \
        WHERE slot_name::text = ANY($1) AND catalog_xmin IS NOT NULL";
    let rows = client.query(query, &[&names]).await?;
    let mut found = BTreeMap::new();
    for row in rows {
        let (name, xmin): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        found.extend(xmin.parse().ok().map(|xmin| (name, xmin)));
    }
    Ok(found)
}

/// Transaction numbers go round (PostgreSQL documentation, "Preventing Transaction ID Wraparound Failures").
fn not_after(one: u32, other: u32) -> bool {
    other.wrapping_sub(one) < 1 << 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_compared_on_a_circle() {
        assert!(not_after(5, 5) && not_after(5, 6) && !not_after(6, 5));
        assert!(not_after(u32::MAX - 2, 4) && !not_after(4, u32::MAX - 2));
    }

    #[test]
    fn a_cascade_is_spoken_for_by_the_member_in_between() {
        let member = |name: &str| Upstream::Member {
            name: name.into(),
            conn_url: format!("postgres://{name}:5432/postgres"),
        };
        let me = MemberName::from("node-3");
        let slot = |follow: &str| branch_slot(&me, &member("node-1"), &member(follow));
        assert_eq!(slot("node-1"), "node_3");
        assert_eq!(slot("node-2"), "node_2");
    }
}
