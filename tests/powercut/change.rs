//! Changes of files, each one transaction that carries its number.

use std::collections::BTreeSet;
use std::sync::Arc;

use argosfs::base::{Entropy, Error, Ino, Result};
use argosfs::format::table::Inodes;
use argosfs::meta::{Reader, Tx};
use argosfs::store::{ContentWrite, Inline, SharedBytes, Store};

use crate::campaign::{Verdict, trace};
use crate::content::{FILES, Run, ino, mark};
use crate::history::Files;

/// Longest file, in bytes.
const LONGEST: u64 = 200_000;

impl Run {
    /// Random bytes.
    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        self.prng.fill(&mut bytes);
        bytes
    }

    fn file(&mut self) -> usize {
        self.prng.below(FILES) as usize
    }

    /// A range within the file, not empty unless the file is.
    fn range(&mut self, file: usize) -> (u64, u64) {
        let size = self.files[file].len() as u64;
        let start = self.prng.below(size.max(1));
        let length = if self.prng.chance(1, 2) { 1 + self.prng.below(5000) } else { 1 + self.prng.below(LONGEST) };
        (start.min(size), (start + length).min(size))
    }

    /// Notes what the files will be, and makes them so by `act`, which is given the number to [`mark`].
    pub fn change(&mut self, what: String, files: Files, act: impl FnOnce(&Store, u64) -> Result<()>) -> Verdict {
        let before = self.history.current();
        let number = self.history.add(self.world.record(), files.clone(), what.clone());
        trace(|| format!("{}: {number}: {what}", self.world.record()));
        match act(self.store(), number) {
            Ok(()) => {
                self.files = files;
                Ok(())
            }
            Err(Error::NoSpace) => {
                self.history.take_back(before);
                Ok(())
            }
            Err(error) => Err(format!("{what}: {error}")),
        }
    }

    pub fn commit(&mut self) -> Verdict {
        let mut files = self.files.clone();
        let mut writes = Vec::new();
        let mut written = BTreeSet::new();
        for _ in 0..1 + self.prng.below(3) {
            let file = self.file();
            if !written.insert(file) {
                continue;
            }
            let size = files[file].len() as u64;
            let offset = match self.prng.below(4) {
                0 => size,
                1 => size + self.prng.below(20_000),
                _ => self.prng.below(size + 1),
            };
            let most = [100, 3000, 20_000, LONGEST][self.prng.below(4) as usize];
            let length = 1 + self.prng.below(most);
            let offset = offset.min(LONGEST);
            let bytes = self.bytes(length);
            let content = Arc::make_mut(&mut files[file]);
            content.resize(content.len().max((offset + length) as usize), 0);
            content[offset as usize..(offset + length) as usize].copy_from_slice(&bytes);
            writes.push(ContentWrite { ino: ino(file), offset, bytes: SharedBytes::new(bytes) });
        }
        let inline = if self.prng.chance(1, 3) { Inline::Synchronous } else { Inline::Small };
        let what =
            format!("commit {:?}", writes.iter().map(|w| (w.ino.0, w.offset, w.bytes.len())).collect::<Vec<_>>());
        let ends: Vec<u64> = writes.iter().map(|write| write.offset + write.bytes.len() as u64).collect();
        self.change(what, files, |store, number| {
            store.commit(&writes, inline, |tx, deltas| {
                for ((ino, delta), end) in deltas.iter().zip(ends) {
                    resize(tx, *ino, *delta, |size| size.max(end))?;
                }
                mark(tx, number)
            })
        })
    }

    /// So many extents that a truncate takes several transactions.
    pub fn sprinkle(&mut self) -> Verdict {
        let file = self.file();
        let mut files = self.files.clone();
        let content = Arc::make_mut(&mut files[file]);
        let mut writes = Vec::new();
        for at in 0..1100 {
            let offset = at * 16;
            let bytes = vec![(at % 255) as u8 + 1; 5];
            content.resize(content.len().max(offset + 5), 0);
            content[offset..offset + 5].copy_from_slice(&bytes);
            writes.push(ContentWrite { ino: ino(file), offset: offset as u64, bytes: SharedBytes::new(bytes) });
        }
        let size = content.len() as u64;
        self.change(format!("sprinkle {}", ino(file)), files, |store, number| {
            store.commit(&writes, Inline::Small, |tx, deltas| {
                resize(tx, ino(file), deltas.iter().map(|(_, delta)| delta).sum(), |old| old.max(size))?;
                mark(tx, number)
            })
        })
    }

    pub fn punch(&mut self) -> Verdict {
        let file = self.file();
        let (start, end) = self.range(file);
        let mut files = self.files.clone();
        Arc::make_mut(&mut files[file])[start as usize..end as usize].fill(0);
        self.change(format!("punch {} {start}..{end}", ino(file)), files, |store, number| {
            store.transact(|tx, ledger| {
                let delta = store.punch(tx, ino(file), start..end, ledger)?;
                resize(tx, ino(file), delta, |size| size)?;
                mark(tx, number)
            })
        })
    }

    pub fn shrink(&mut self) -> Verdict {
        let file = self.file();
        let size = if self.prng.chance(1, 3) { 0 } else { self.range(file).0 };
        let mut files = self.files.clone();
        Arc::make_mut(&mut files[file]).truncate(size as usize);
        self.change(format!("shrink {} to {size}", ino(file)), files, |store, number| {
            store.transact(|tx, ledger| {
                let delta = store.shrink(tx, ino(file), size, ledger)?;
                resize(tx, ino(file), delta, |_| size)?;
                mark(tx, number)
            })
        })
    }

    pub fn promise(&mut self) -> Verdict {
        let file = self.file();
        let (start, end) = self.range(file);
        if start == end {
            return Ok(());
        }
        let files = self.files.clone();
        self.change(format!("promise {} {start}..{end}", ino(file)), files, |store, number| {
            store.transact(|tx, ledger| {
                let delta = store.promise(tx, ino(file), start..end, ledger)?;
                resize(tx, ino(file), delta, |size| size)?;
                mark(tx, number)
            })
        })
    }

    pub fn share(&mut self) -> Verdict {
        let (from, to) = (self.file(), self.file());
        let (start, end) = self.range(from);
        if from == to || start == end {
            return Ok(());
        }
        let target = self.prng.below(self.files[to].len() as u64 + 1);
        let what = format!("share {} {start}..{end} to {} at {target}", ino(from), ino(to));
        // How much is done is only known afterwards: the number is noted first and the state put right then.
        let start_event = self.world.record();
        let before = self.history.current();
        let number = self.history.add(start_event, self.files.clone(), what.clone());
        let old = &self.files[to];
        let source = &self.files[from][start as usize..end as usize];
        let after = |done: u64| {
            let mut content = old.as_ref().clone();
            let done = done as usize;
            content.resize(content.len().max(target as usize + done), 0);
            content[target as usize..target as usize + done].copy_from_slice(&source[..done]);
            content
        };
        let store = self.store();
        let shared = store.transact(|tx, ledger| {
            let (done, delta) = store.share(tx, (ino(from), start), (ino(to), target), end - start, ledger)?;
            resize(tx, ino(to), delta, |size| size.max(target + done))?;
            mark(tx, number)?;
            Ok(done)
        });
        // Died in the middle: either nothing or, if it was committed, nobody can tell; it was not made durable.
        match shared {
            Ok(done) => {
                let content = after(done);
                self.files[to] = Arc::new(content);
                self.history.take_back(before);
                self.history.add(start_event, self.files.clone(), what);
                Ok(())
            }
            Err(error) => {
                self.history.take_back(before);
                Err(format!("{what}: {error}"))
            }
        }
    }
}

/// Follows a change of content.
fn resize(tx: &mut Tx<'_>, ino: Ino, delta: i64, size: impl FnOnce(u64) -> u64) -> Result<()> {
    let Some(mut row) = tx.get::<Inodes>(&ino)? else { return Err(Error::Stale) };
    row.content = row.content.saturating_add_signed(delta);
    row.size = size(row.size);
    tx.put::<Inodes>(&ino, &row)
}
