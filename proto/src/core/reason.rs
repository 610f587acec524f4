//! Placeholder.
use serde::{Deserialize, Serialize};
/// Why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reason { /// None
  None }
