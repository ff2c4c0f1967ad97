//! When the metadata is archived: at unmount and hourly, if it has changed.

use super::service::PoolService;
use crate::base::{BLOCK_SIZE, Result, TxnId};
use crate::check;

/// How old the newest archive may get while there is something new to archive, in seconds.
const MOST_AGE: i64 = 3600;
/// Metadata of up to so many bytes is archived at each unmount. More takes longer than whoever unmounts likes to wait, and
/// is archived when the newest archive has become too old.
const SMALL: u64 = 64 << 20;

/// Whether an archive should be written now; `ending`: the pool is about to be unmounted.
pub fn is_due(service: &PoolService, ending: bool) -> bool {
    let Some((txn, created)) = service.store.newest_archive() else { return true };
    if txn == service.store.meta().committed() {
        return false;
    }
    let age = service.options.clock.now().seconds.saturating_sub(created);
    !(0..MOST_AGE).contains(&age) || (ending && metadata_bytes(service) <= SMALL)
}

fn metadata_bytes(service: &PoolService) -> u64 {
    let chunk = u64::from(service.pool.state().label.meta.chunk_blocks) * BLOCK_SIZE;
    service.store.volume_stats().map_or(0, |stats| stats.chunks * chunk)
}

/// Archives everything committed so far; durable when this returns. `watch` says now and then whether to go on.
pub fn write(service: &PoolService, watch: &dyn Fn() -> bool) -> Result<TxnId> {
    check::archive(&service.store, service.pool.uuid(), service.options.clock.now().seconds, watch)
}
