//! Failsafe mode, as a member sees it that is asked: a primary without etcd goes on while every member has
//! promised not to lead (S20, `ha-behaviour.md` 18).

use super::memory::Memory;
use super::observation::{Observation, Process, Sql};
use super::tenure::{self, Lock};
use crate::config::Settings;
use crate::ids::MemberName;

/// Whether `caller` may go on: then we do not stand for election for `ttl` from now on.
///
/// # Errors
/// Why not, as the caller is told.
pub fn answer(
    o: &Observation,
    m: &Memory,
    s: &Settings,
    caller: &MemberName,
) -> Result<(), String> {
    let lock = tenure::lock(o, m, s);
    let primary = matches!(
        (&o.postgres.process, &o.postgres.sql),
        (Process::Alive { .. }, Sql::Sample(sample)) if !sample.in_recovery
    );
    if primary || matches!(lock, Lock::Mine(_)) {
        return Err("Running as a leader".into());
    }
    if let Lock::Other(leader) = lock
        && leader != *caller
        && o.dcs.confirmed
    {
        return Err(format!("{leader} is the leader"));
    }
    Ok(())
}
