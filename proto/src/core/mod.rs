//! The judgement: `decide(observation, memory, settings) -> decision`.

pub mod decision;
pub mod election;
pub mod history;
pub mod job;
pub mod lag;
pub mod observation;
pub mod quorum;
pub mod reason;
pub mod rewind;
pub mod slots;
pub mod sync;
