//! Everything in this crate that reads what others wrote, fed with damaged examples: records in etcd, requests, the
//! messages between agent and guardian, history files, lists of standbys, moments and sizes.
//!
//! `GARDEN_LONG=1` runs a hundred times as many; `FUZZ_RUNS=n` sets the number for each target, `FUZZ_TARGET=text`
//! runs only those with it in their name, `FUZZ_SEED=n` repeats a run.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod fuzz;
mod fuzz_targets;

use std::path::Path;

#[global_allocator]
static ALLOCATOR: fuzz::heap::Counting = fuzz::heap::Counting;

#[test]
fn readers_keep_their_promises_whatever_they_are_given() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let plan = fuzz::Plan::asked(env!("CARGO_TARGET_TMPDIR"));
    fuzz::run_all(&fuzz_targets::TARGETS, &corpus, &plan);
}
