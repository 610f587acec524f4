//! The judgement: `decide(observation, memory, settings) -> decision`.

pub mod decision;
pub mod election;
pub mod job;
pub mod lag;
pub mod observation;
pub mod reason;
pub mod sync;
