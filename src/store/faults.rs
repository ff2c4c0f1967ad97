//! What devices did wrong since they were last found whole. It is kept in their rows from time to time, so that an unmount does
//! not make a failing device look well; after a crash what was seen last may have to be seen again.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::{Store, lock};
use crate::base::sync::Mutex;
use crate::base::{DeviceId, Error, Result};
use crate::format::rows::DeviceRow;
use crate::format::table::Devices;
use crate::meta::{Reader, Visit};
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
pub(super) struct Faults(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<DeviceId, DeviceFaults>,
    /// Whether the rows say something else.
    unsaved: bool,
}

impl Faults {
    /// Counts what a read found. Returns the devices of which nothing bad was known.
    pub fn add(&self, bad: &[BadShard]) -> Vec<DeviceId> {
        let mut new = Vec::new();
        let mut state = lock(&self.0);
        for shard in bad {
            let errors = match shard.fault {
                Fault::Io => DeviceFaults { read_errors: 1, checksum_errors: 0 },
                Fault::Checksum => DeviceFaults { read_errors: 0, checksum_errors: 1 },
                Fault::Missing | Fault::Avoided => continue,
            };
            state.unsaved = true;
            let seen = state.devices.entry(shard.device).or_insert_with(|| {
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
        lock(&self.0).devices.clone()
    }

    /// Forgets what is known of one device, or of all: everything on them was verified or is gone.
    pub fn forget(&self, device: Option<DeviceId>) {
        let mut state = lock(&self.0);
        let before = state.devices.len();
        state.devices.retain(|id, _| device.is_some_and(|device| device != *id));
        state.unsaved |= state.devices.len() != before;
    }
}

impl Store {
    /// Takes up what the rows say. Those that cannot be read are for fsck, which has to open the pool.
    pub(super) fn load_faults(&self) -> Result<()> {
        let mut devices = BTreeMap::new();
        let scanned = self.view(|view| {
            view.scan::<Devices>((Bound::Unbounded, Bound::Unbounded), |id, row| {
                let faults = DeviceFaults { read_errors: row.read_errors, checksum_errors: row.checksum_errors };
                if faults != DeviceFaults::default() {
                    devices.insert(id, faults);
                }
                Ok(Visit::Continue(()))
            })
        });
        *lock(&self.faults.0) = State { devices, unsaved: false };
        match scanned {
            Err(Error::Corrupt(_)) => Ok(()),
            scanned => scanned.map(drop),
        }
    }

    /// Stores what is new. What cannot be stored now is stored later: nothing depends on it.
    pub(super) fn save_faults(&self) {
        let known = {
            let mut state = lock(&self.faults.0);
            if !std::mem::take(&mut state.unsaved) {
                return;
            }
            state.devices.clone()
        };
        if self.put_faults(&known).is_err() {
            lock(&self.faults.0).unsaved = true;
        }
    }

    fn put_faults(&self, known: &BTreeMap<DeviceId, DeviceFaults>) -> Result<()> {
        self.transact(|tx, _| {
            let mut changed = Vec::new();
            tx.scan::<Devices>((Bound::Unbounded, Bound::Unbounded), |id, row| {
                let DeviceFaults { read_errors, checksum_errors } = known.get(&id).copied().unwrap_or_default();
                if (row.read_errors, row.checksum_errors) != (read_errors, checksum_errors) {
                    changed.push((id, DeviceRow { read_errors, checksum_errors, ..row }));
                }
                Ok(Visit::Continue(()))
            })?;
            changed.iter().try_for_each(|(id, row)| tx.put::<Devices>(id, row))
        })
    }
}
