//! What must hold between the tables at any time, and between them and what is cached.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::*;
use crate::format::rows::{FLAG_XATTRS, InodeRow};

impl Rig {
    /// Checks the invariants of the module.
    pub fn check(&self) {
        let all = (Bound::Unbounded, Bound::Unbounded);
        let mut inodes: BTreeMap<Ino, InodeRow> = BTreeMap::new();
        let mut names: BTreeMap<Ino, Vec<(Ino, u8)>> = BTreeMap::new();
        let (mut orphans, mut with_xattrs) = (BTreeSet::new(), BTreeSet::new());
        let view = |view: &crate::meta::View| {
            view.scan::<Inodes>(all, |ino, row| {
                inodes.insert(ino, row);
                Ok(Visit::Continue(()))
            })?;
            view.scan::<Dentries>((Bound::Unbounded, Bound::Unbounded), |key, row| {
                assert!(key.cookie >= 3, "a cookie of a dot");
                names.entry(key.parent).or_default().push((row.ino, row.kind));
                Ok(Visit::Continue(()))
            })?;
            view.scan::<Orphans>((Bound::Unbounded, Bound::Unbounded), |ino, ()| {
                orphans.insert(ino);
                Ok(Visit::Continue(()))
            })?;
            view.scan::<Xattrs>((Bound::Unbounded, Bound::Unbounded), |key, _| {
                with_xattrs.insert(key.ino);
                Ok(Visit::Continue(()))
            })?;
            let next = view.counter(Counter::NextIno)?;
            assert!(inodes.keys().all(|ino| ino.0 < next), "an inode number was not given out");
            assert_eq!(view.counter(Counter::Inodes)?, inodes.len() as u64);
            Ok(())
        };
        self.fs.store().view(view).unwrap();
        let mut links: BTreeMap<Ino, u32> = BTreeMap::new();
        for (parent, children) in &names {
            let directory = inodes.get(parent).unwrap_or_else(|| panic!("names in directory {parent}, which is gone"));
            assert_eq!(directory.mode >> 12, 4, "names in {parent}, which is no directory");
            for (child, kind) in children {
                let row = inodes.get(child).unwrap_or_else(|| panic!("a name of inode {child}, which is gone"));
                assert_eq!(row.mode >> 12, u32::from(*kind), "kind of {child}");
                *links.entry(*child).or_default() += 1;
                if *kind == 4 {
                    assert_eq!(row.parent, *parent, "parent of directory {child}");
                    *links.entry(*parent).or_default() += 1;
                }
            }
        }
        for (ino, row) in &inodes {
            let is_directory = row.mode >> 12 == 4;
            let children = names.get(ino).map_or(0, Vec::len) as u64;
            let mut nlink = links.get(ino).copied().unwrap_or(0);
            if is_directory {
                assert_eq!(row.entries, children, "entries of {ino}");
                let alive = *ino == ROOT || row.nlink > 0;
                nlink = if alive { nlink + 1 + u32::from(*ino == ROOT) } else { nlink };
            }
            assert_eq!(row.nlink, nlink, "links of {ino}");
            assert_eq!(orphans.contains(ino), row.nlink == 0, "whether {ino} is an orphan");
            assert_eq!(row.flags & FLAG_XATTRS != 0, with_xattrs.contains(ino), "whether {ino} has attributes");
            let live = self.fs.inodes.state(*ino);
            if let Some(cached) = &live.live().row {
                assert_eq!(cached, row, "the cached row of {ino}");
            }
        }
        for ino in orphans.iter().chain(&with_xattrs) {
            assert!(inodes.contains_key(ino), "rows of inode {ino}, which is gone");
        }
    }
}
