//! What devices did wrong since they were last found whole. Kept in memory: a new mount begins with a clean sheet, and
//! what is damaged is found again when it is read.

use std::collections::BTreeMap;

use super::lock;
use crate::base::DeviceId;
use crate::base::sync::Mutex;
use crate::pool::stripe_io::{BadShard, Fault};

/// What was seen of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DeviceFaults {
    /// Shards it did not return.
    pub read_errors: u64,
    /// Shards it returned with a wrong checksum.
    pub checksum_errors: u64,
}

/// Devices that did something wrong.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<BTreeMap<DeviceId, DeviceFaults>>);

impl Faults {
    /// Counts what a read found. Returns the devices of which nothing bad was known.
    pub fn add(&self, bad: &[BadShard]) -> Vec<DeviceId> {
        let mut new = Vec::new();
        let mut devices = lock(&self.0);
        for shard in bad {
            let errors = match shard.fault {
                Fault::Io => DeviceFaults { read_errors: 1, checksum_errors: 0 },
                Fault::Checksum => DeviceFaults { read_errors: 0, checksum_errors: 1 },
                Fault::Missing | Fault::Avoided => continue,
            };
            let seen = devices.entry(shard.device).or_insert_with(|| {
                new.push(shard.device);
                DeviceFaults::default()
            });
            seen.read_errors += errors.read_errors;
            seen.checksum_errors += errors.checksum_errors;
        }
        new
    }

    /// All that is known.
    pub fn now(&self) -> BTreeMap<DeviceId, DeviceFaults> {
        lock(&self.0).clone()
    }

    /// Forgets what is known of one device, or of all: everything on them was verified or is gone.
    pub fn forget(&self, device: Option<DeviceId>) {
        lock(&self.0).retain(|id, _| device.is_some_and(|device| device != *id));
    }
}
