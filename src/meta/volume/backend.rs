//! The volume as redb's storage.
//!
//! redb keeps a commit in a header it overwrites in place: it writes everything else and the header with the new commit in the
//! slot that is not primary, syncs, flips the primary bit, and syncs again. Here the header stays in memory, and the sync that
//! finds the primary commit changed appends a checkpoint with that header to the log, which is the moment of the commit.
//! Every other sync has nothing to do: the first of those two, since the checkpoint flushes all data before it is appended;
//! and those redb makes while its file grows, since the length is the header's.

use super::block::BLOCK;
use super::{Core, redb_header, write};
use crate::base::{Error, Result};
use std::fmt;
use std::io;
use std::sync::Arc;

/// redb's view of the volume.
pub struct Backend {
    core: Arc<Core>,
}

impl Backend {
    pub(super) fn new(core: Arc<Core>) -> Backend {
        Backend { core }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "metadata volume {:016x}", self.core.volume)
    }
}

fn answer<T>(result: Result<T>) -> io::Result<T> {
    result.map_err(|error| match error {
        Error::Io { ref source, .. } => io::Error::new(source.kind(), error.to_string()),
        Error::NoSpace => io::Error::new(io::ErrorKind::StorageFull, error.to_string()),
        Error::Corrupt(_) => io::Error::new(io::ErrorKind::InvalidData, error.to_string()),
        other => io::Error::other(other.to_string()),
    })
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(super::read(&self.core.state).len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        answer(self.core.read(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        answer(self.core.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        answer(self.core.sync())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset == 0 && data.len() == redb_header::LEN {
            answer(self.core.write_header(data))
        } else if offset < BLOCK as u64 {
            answer(Err(Error::Invalid("a write to the header block that is no header")))
        } else {
            answer(self.core.write(offset, data))
        }
    }
}

impl Core {
    fn set_len(&self, len: u64) -> Result<()> {
        self.check()?;
        let mut state = write(&self.state);
        if len < state.len {
            // Blocks that come back later read as zeros.
            let first = len.div_ceil(BLOCK as u64);
            drop(state.dirty.split_off(&first));
            state.table.forget_from(first);
        }
        state.len = len;
        Ok(())
    }

    fn write_header(&self, data: &[u8]) -> Result<()> {
        self.check()?;
        let header = data.try_into().map_err(|_| Error::Invalid("a header of another length"))?;
        let mut state = write(&self.state);
        let free = state.announced || state.published.is_none();
        if !free && !redb_header::same_commits(&state.header, &header) {
            return Err(Error::Invalid("redb tried to commit outside a checkpoint"));
        }
        state.header = header;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.check()?;
        let publish = {
            let state = super::read(&self.state);
            let commit = redb_header::commit(&state.header);
            let published = state.published.as_ref().and_then(redb_header::commit);
            state.announced && commit.is_some() && commit != published
        };
        if publish { self.publish() } else { Ok(()) }
    }
}
