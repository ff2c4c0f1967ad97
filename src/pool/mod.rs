//! A pool as a set of devices: which ones belong together and what each is worth, where free space is, and where new
//! data goes. Above: `meta` keeps its volume on the members, `store` its stripes. Below: `device` moves the bytes,
//! `format` gives labels their shape.
//!
//! Invariants:
//! - A membership change (a member absent, back, dropped, added or removed) is in the flushed labels of all present
//!   members, as a new epoch, before anything that relies on it is acknowledged.
//! - The labels say nothing that is not yet true: a change describes a state that is valid with and without it.
//! - With more members lost than the geometry allows nothing is written any more, and no epoch is in which nobody
//!   present holds the current metadata: it could never be opened again.

pub mod allocator;
pub mod assembly;
mod bitmap;
mod format;
pub mod label_io;
mod labels;
mod member;
mod membership;
mod open;
pub mod placement;
mod signatures;
pub mod stripe_io;
#[cfg(test)]
mod tests;

pub use format::FormatOptions;
pub use member::{Member, PoolState};
pub use open::OpenMode;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::base::{DeviceId, Entropy, Error, Incarnation, Result, Uuid};
use crate::device::{Device, Engine};
use crate::format::label::DefaultGeometry;

/// An open pool. All methods take `&self` and may be called from any thread.
pub struct Pool {
    engine: Arc<dyn Engine>,
    entropy: Mutex<Box<dyn Entropy>>,
    state: RwLock<Arc<PoolState>>,
    /// Held while labels are written; the reason why nothing may be written any more.
    writer: Mutex<Option<String>>,
    read_only: bool,
    notes: Mutex<Vec<String>>,
}

impl Pool {
    fn new(engine: Arc<dyn Engine>, entropy: Box<dyn Entropy>, state: PoolState, read_only: bool) -> Pool {
        Pool {
            engine,
            entropy: Mutex::new(entropy),
            state: RwLock::new(Arc::new(state)),
            writer: Mutex::new(None),
            read_only,
            notes: Mutex::new(Vec::new()),
        }
    }

    /// Label and members at this moment.
    pub fn state(&self) -> Arc<PoolState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What runs requests on the members.
    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    /// The device of a member that is present.
    pub fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        self.state().device(id).cloned()
    }

    /// The pool's id.
    pub fn uuid(&self) -> Uuid {
        self.state().label.uuid
    }

    /// The id of this read-write mount; of the last one when opened read-only.
    pub fn incarnation(&self) -> Incarnation {
        self.state().label.settings.incarnation
    }

    /// The geometry of new stripes while enough devices are there.
    pub fn geometry(&self) -> DefaultGeometry {
        self.state().label.settings.geometry
    }

    /// Whether the pool was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Why nothing may be written any more, if that is so.
    pub fn poisoned(&self) -> Option<String> {
        lock(&self.writer).clone()
    }

    /// What the user should know, a line each; each line is returned once.
    pub fn take_notes(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.notes))
    }

    /// Adds a line for the user.
    pub fn note(&self, text: String) {
        lock(&self.notes).push(text);
    }

    fn random_uuid(&self) -> Uuid {
        Uuid::random(&mut **lock(&self.entropy))
    }

    /// Fails when the pool may not be written.
    fn check_writable(&self, writer: &MutexGuard<'_, Option<String>>) -> Result<()> {
        match &**writer {
            _ if self.read_only => Err(Error::ReadOnly),
            Some(why) => Err(Error::Poisoned(why.clone())),
            None => Ok(()),
        }
    }
}

/// Locks a mutex; what it guards is consistent at every step, so a panic of another holder changes nothing.
fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
