//! redb's check of all of itself, on a copy that is made as it writes: the check ends with a commit, which must become no part
//! of the pool. Forged pages may make redb panic later, but not here.
//!
//! Invariant: nothing is written to the backend below.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{Builder, Database, StorageBackend};

use super::db::guarded;
use super::tables::store_error;
use crate::base::Result;

const PAGE: u64 = 4096;

/// Checks the database on `backend`.
///
/// # Errors
/// [`crate::base::Error::Corrupt`] when it is not what redb wrote.
pub fn check_database(backend: impl StorageBackend) -> Result<()> {
    check(backend, &mut Database::builder())
}

fn check(backend: impl StorageBackend, builder: &mut Builder) -> Result<()> {
    guarded(|| {
        let len = backend.len().map_err(store_error)?;
        let copy = Copied { below: backend, written: Mutex::new(Written { pages: BTreeMap::new(), len }) };
        let checked = builder.set_check_integrity_on_open(true).create_with_backend(copy);
        checked.map(drop).map_err(store_error)
    })
}

/// Memory for pages while somebody uses the database.
const CACHE: usize = 32 << 20;

/// Whether the newest commit on `backend` uses anything that `backend` calls corrupt. Another database may be at work on it.
///
/// # Errors
/// [`crate::base::Error::Corrupt`] when all that was read could be read and is not what redb wrote; a commit made meanwhile may
/// be the reason.
pub fn uses_unreadable(backend: impl StorageBackend) -> Result<bool> {
    let failed = Arc::new(AtomicBool::new(false));
    let watched = Watched { below: backend, failed: Arc::clone(&failed) };
    let checked = check(watched, Database::builder().set_cache_size(CACHE));
    if failed.load(Ordering::Acquire) { Ok(true) } else { checked.map(|()| false) }
}

/// Notes whether anything was read that is corrupt.
#[derive(Debug)]
struct Watched<B> {
    below: B,
    failed: Arc<AtomicBool>,
}

impl<B: StorageBackend> StorageBackend for Watched<B> {
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = self.below.read(offset, out);
        let corrupt = read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData);
        self.failed.fetch_or(corrupt, Ordering::AcqRel);
        read
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

#[derive(Debug)]
struct Written {
    pages: BTreeMap<u64, Vec<u8>>,
    len: u64,
}

/// What was written lies over what is below.
#[derive(Debug)]
struct Copied<B> {
    below: B,
    written: Mutex<Written>,
}

impl<B: StorageBackend> Copied<B> {
    fn written(&self) -> MutexGuard<'_, Written> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The parts of a range of bytes by page: page, where in it, and how many bytes.
fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length as u64;
    let mut at = offset;
    std::iter::from_fn(move || {
        let stop = end.min((at / PAGE + 1) * PAGE);
        let part = (at < end).then_some((at / PAGE, (at % PAGE) as usize, (stop.saturating_sub(at)) as usize));
        at = stop;
        part
    })
}

impl<B: StorageBackend> StorageBackend for Copied<B> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if parts(offset, out.len()).all(|(page, _, _)| !written.pages.contains_key(&page)) {
            return self.below.read(offset, out);
        }
        let mut rest = out;
        for (page, from, length) in parts(offset, rest.len()).collect::<Vec<_>>() {
            let (part, behind) = rest.split_at_mut(length);
            match written.pages.get(&page).and_then(|page| page.get(from..from + length)) {
                Some(bytes) => part.copy_from_slice(bytes),
                None => self.below.read(page * PAGE + from as u64, part)?,
            }
            rest = behind;
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.written().len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let mut rest = data;
        for (page, from, length) in parts(offset, data.len()) {
            let (part, behind) = rest.split_at(length);
            rest = behind;
            let stored = match written.pages.entry(page) {
                std::collections::btree_map::Entry::Occupied(stored) => stored.into_mut(),
                std::collections::btree_map::Entry::Vacant(place) => {
                    let mut bytes = vec![0; PAGE as usize];
                    if length < bytes.len() {
                        self.below.read(page * PAGE, &mut bytes)?;
                    }
                    place.insert(bytes)
                }
            };
            if let Some(target) = stored.get_mut(from..from + length) {
                target.copy_from_slice(part);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redb::{Durability, TableDefinition};

    use super::*;

    /// A disk in memory that outlives the database on it.
    #[derive(Clone, Debug, Default)]
    struct Disk(Arc<Mutex<Vec<u8>>>);

    impl Disk {
        fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock().expect("not poisoned")
        }
    }

    impl StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes().len() as u64)
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.bytes()[offset as usize..offset as usize + out.len()]);
            Ok(())
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.bytes().resize(len as usize, 0);
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.bytes()[offset as usize..offset as usize + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn forged_pages_are_refused_and_nothing_is_written() {
        const ROWS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("rows");
        let disk = Disk::default();
        let db = Database::builder().create_with_backend(disk.clone()).expect("makes");
        let mut write = db.begin_write().expect("begins");
        write.set_durability(Durability::Immediate).expect("is one");
        for number in 0..500 {
            let mut rows = write.open_table(ROWS).expect("opens");
            rows.insert(number, [number as u8; 500].as_slice()).expect("inserts");
        }
        write.commit().expect("commits");
        drop(db);
        let whole = disk.bytes().clone();
        check_database(disk.clone()).expect("what redb wrote is in order");
        assert!(*disk.bytes() == whole, "the check wrote");

        let mut refused = 0;
        let used: Vec<usize> =
            (0..whole.len()).step_by(4096).filter(|at| whole[*at..*at + 4096] != [0; 4096]).collect();
        for page in used.iter().skip(1) {
            disk.bytes()[page + 100] ^= 0x55;
            refused += u64::from(check_database(disk.clone()).is_err());
            disk.bytes().clone_from(&whole);
        }
        // Some pages are free, or hold what is made anew.
        assert!(refused >= 60, "{refused} of {} forged pages were refused", used.len());
    }
}
