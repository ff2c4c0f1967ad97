//! `export-meta`.

use std::sync::Arc;

use crate::base::{Error, Result};
use crate::check::{self, ExportHeader, ExportSummary};
use crate::control::protocol::Outcome;
use crate::control::server::Reply;
use crate::control::service::{PoolService, outcome};
use crate::pool::Pool;
use crate::store::PoolMembership;

/// Streams the whole metadata as of now; the answer has the digest.
pub fn export(service: &PoolService, reply: &mut dyn Reply) -> Result<Outcome> {
    let header = header(&service.pool);
    let summary = service.store.view(|view| check::export(view, &header, &mut |piece| reply.data(piece)))?;
    answer(&summary)
}

/// Streams the metadata in the newest archive that can be read; none of the pool's own is needed.
pub fn export_archived(pool: &Arc<Pool>, reply: &mut dyn Reply) -> Result<Outcome> {
    let state = pool.state();
    let mut failed = Error::Unavailable(format!("pool {} has no metadata archive yet", state.label.name));
    for archive in &state.label.archives {
        let media = PoolMembership(Arc::clone(pool));
        let header = header(pool);
        // Whether it is whole is known at its end, so it is read to the end before anything is shown.
        match check::export_archive(&media, &header, archive, &mut |_| Ok(())) {
            Ok(_) => return answer(&check::export_archive(&media, &header, archive, &mut |piece| reply.data(piece))?),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

fn header(pool: &Pool) -> ExportHeader {
    let state = pool.state();
    ExportHeader { pool: state.label.uuid, name: state.label.name.clone() }
}

fn answer(summary: &ExportSummary) -> Result<Outcome> {
    let mut digest = String::new();
    crate::format::json::hex(&mut digest, &summary.digest);
    let text = format!("{} rows, {} bytes, blake3 {digest}", summary.rows, summary.bytes);
    let answer = serde_json::json!({
        "rows": summary.rows, "bytes": summary.bytes, "transaction": summary.txn.0, "blake3": digest,
    });
    outcome(0, &answer, text)
}
