//! What clients saw, held against what a database may show.
//!
//! Pure functions over recorded histories; nothing here talks to a server. [`crate::checker`] counts
//! rows; these look at what rows cannot show: transactions that contradict each other, and reads of a
//! state that was never the last one.

pub mod append;
pub mod graph;
pub mod register;
