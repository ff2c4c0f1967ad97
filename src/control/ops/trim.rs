//! `trim`.

use crate::base::Result;
use crate::control::protocol::Outcome;
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};

/// Tells every device which of its blocks are free.
pub fn trim(service: &PoolService, reply: &mut dyn Reply) -> Result<Outcome> {
    let ticket = service.work.begin("trim", "bytes")?;
    // What was freed lately is free for good after this.
    service.store.durable_point()?;
    let mut told = Ok(());
    let bytes = service.store.trim(&mut |bytes| {
        told = ticket.advance(bytes, 0, reply);
        told.is_ok()
    })?;
    told?;
    outcome(
        0,
        &serde_json::json!({ "bytes": bytes }),
        format!("{:.1} GiB of free space discarded", bytes as f64 / (1u64 << 30) as f64),
    )
}
