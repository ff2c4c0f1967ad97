//! `export-meta`.

use crate::base::Result;
use crate::check;
use crate::control::protocol::Outcome;
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};

/// Streams the whole metadata as of now; the answer has the digest.
pub fn export(service: &PoolService, reply: &mut dyn Reply) -> Result<Outcome> {
    let state = service.pool.state();
    let header = check::ExportHeader { pool: state.label.uuid, name: state.label.name.clone() };
    let summary = service.store.view(|view| check::export(view, &header, &mut |piece| reply.data(piece)))?;
    let mut digest = String::new();
    crate::format::json::hex(&mut digest, &summary.digest);
    let text = format!("{} rows, {} bytes, blake3 {digest}", summary.rows, summary.bytes);
    let answer = serde_json::json!({
        "rows": summary.rows, "bytes": summary.bytes, "transaction": summary.txn.0, "blake3": digest,
    });
    outcome(0, &answer, text)
}
