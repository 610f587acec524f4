//! The protocol, checked exhaustively at small sizes (`safety.md` 8, layer 1): every order of events that
//! the bounds of a model allow is visited. Each model also runs with one rule taken out after the other,
//! and must find what that breaks. `docs/explanation/model.md` has sizes, counts and what is left out.
//!
//! `GARDEN_LONG=1` runs larger sizes besides.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

#[path = "model/mod.rs"]
mod parts;

use parts::failsafe::{self, Failsafe};
use parts::kit;
use parts::lease::{self, Lease};
use parts::switch::{self, Switch};
use parts::votes::{self, Votes};

#[test]
fn lease_and_guardian_keep_s1_s2_s4_and_s10() {
    kit::exhaust("lease, clocks apart", Lease::drifting());
    kit::exhaust("lease, crashes and freezes", Lease::faulty());
    if kit::long() {
        kit::exhaust("lease, both", Lease::both());
    }
}

#[test]
fn lengths_of_the_lease_change_while_it_is_held() {
    kit::exhaust("lease, shortened by the configuration", Lease::shorter());
    kit::exhaust("lease, lengthened by the configuration", Lease::longer());
}

#[test]
fn every_mutation_of_lease_and_guardian_is_found() {
    let rows = lease::MUTATIONS
        .iter()
        .map(|(mutation, name)| kit::hunt(name, Lease::with(*mutation)));
    kit::table("lease and guardian", rows);
}

#[test]
fn the_switch_between_record_and_leader_key_keeps_s1_s2_and_s4() {
    kit::exhaust("switch, restarts", Switch::ours());
    kit::exhaust("switch, lost answers", Switch::unheard());
    kit::exhaust("switch, revoked leases", Switch::revoked());
    if kit::long() {
        kit::exhaust("switch, beside Patroni", Switch::mixed());
        kit::exhaust("switch, lost answers and a longer lease", Switch::late());
        kit::exhaust("switch, both", Switch::large());
    }
}

#[test]
fn every_mutation_of_the_switch_is_found() {
    let rows = switch::MUTATIONS
        .iter()
        .map(|(mutation, name)| kit::hunt(name, Switch::with(*mutation)));
    kit::table("the switch", rows);
}

#[test]
fn failsafe_mode_keeps_s2_with_etcd_coming_back_to_some() {
    kit::exhaust("failsafe, by /leader", Failsafe::compatible());
    kit::exhaust("failsafe, by record", Failsafe::native());
    kit::exhaust("failsafe, beside a newcomer", Failsafe::newcomer());
    if kit::long() {
        kit::exhaust("failsafe, more of it", Failsafe::large());
    }
}

#[test]
fn every_mutation_of_failsafe_mode_is_found() {
    let rows = failsafe::MUTATIONS
        .iter()
        .map(|(mutation, name)| kit::hunt(name, Failsafe::with(*mutation)));
    kit::table("failsafe mode", rows);
}

#[test]
fn votes_epochs_and_sync_changes_keep_s3_s4_s5_and_s19() {
    kit::exhaust("votes, a leader that leads again", Votes::lives());
    kit::exhaust("votes, /sync changes", Votes::changes());
    kit::exhaust("votes, late writes of /sync", Votes::losses());
    kit::exhaust("votes, and takeovers by the lease", Votes::leases());
    kit::exhaust("votes, mode on", Votes::on());
    kit::exhaust("votes, promises over three epochs", Votes::promises());
    if kit::long() {
        kit::exhaust("votes, all together", Votes::large());
    }
}

#[test]
fn every_mutation_of_votes_is_found() {
    let rows = votes::MUTATIONS
        .iter()
        .map(|(mutation, name)| kit::hunt(name, Votes::with(*mutation)));
    kit::table("votes and /sync", rows);
}
