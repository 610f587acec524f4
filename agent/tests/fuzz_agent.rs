//! Everything in this crate that reads what others wrote, fed with damaged examples: YAML and environment, output and
//! files of PostgreSQL, `/proc`, connection strings, answers of members, journals, certificates, requests as they come
//! from the network. The engine, and how to use it, is that of `fuzz_proto.rs`.

#[path = "../../proto/tests/fuzz/mod.rs"]
mod fuzz;
mod fuzz_targets;
mod rest_support;

use std::path::Path;

#[global_allocator]
static ALLOCATOR: fuzz::heap::Counting = fuzz::heap::Counting;

#[test]
fn readers_keep_their_promises_whatever_they_are_given() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let plan = fuzz::Plan::asked(env!("CARGO_TARGET_TMPDIR"));
    fuzz::run_all(&fuzz_targets::TARGETS, &corpus, &plan);
}
