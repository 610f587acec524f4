//! The judgement: `decide(observation, memory, settings) -> decision`.

pub mod decision;
pub mod job;
pub mod observation;
pub mod reason;
