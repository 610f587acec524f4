//! Rows of the behaviour table, each as one decision: what a member sees, and what it orders. The real
//! clusters of `chaos-tests/tests/rows` show the same with processes.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod behaviour;
