//! Reading committed content.

use std::ops::Range;

use super::{Store, extents};
use crate::base::{Error, Ino, Result};
use crate::format::rows::ExtentBody;
use crate::meta::{Reader, Visit};

/// What a range of a file is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mapping {
    Data,
    /// Nothing there; reads as zeros.
    Hole,
    /// Promised by fallocate; reads as zeros.
    Promised,
}

impl Store {
    /// Fills `out` with the committed content from `offset` on; holes read as zeros. The caller cuts at the size.
    pub fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<()> {
        out.fill(0);
        let range = offset..offset + out.len() as u64;
        self.view(|view| {
            self.visible(view, ino, range.clone(), |at, row| {
                let start = at.max(range.start);
                let end = (at + row.length).min(range.end);
                let target = &mut out[(start - range.start) as usize..(end - range.start) as usize];
                match &row.body {
                    ExtentBody::Inline(bytes) => {
                        target.copy_from_slice(&bytes[(start - at) as usize..(end - at) as usize]);
                    }
                    ExtentBody::Reserved => {}
                    ExtentBody::Run(_) => return Err(Error::corrupt("a store without devices has a run")),
                }
                Ok(Visit::Continue(()))
            })
        })
    }

    /// The first range at or after `offset`, within `end`, and what it is: neighbours of one kind are merged.
    pub fn mapping(&self, ino: Ino, range: Range<u64>) -> Result<Vec<(Range<u64>, Mapping)>> {
        let mut pieces: Vec<(Range<u64>, Mapping)> = Vec::new();
        let mut add = |piece: Range<u64>, kind: Mapping| {
            if piece.is_empty() {
                return;
            }
            match pieces.last_mut() {
                Some((last, last_kind)) if *last_kind == kind && last.end == piece.start => last.end = piece.end,
                _ => pieces.push((piece, kind)),
            }
        };
        let mut reached = range.start;
        self.view(|view| {
            self.visible(view, ino, range.clone(), |at, row| {
                let start = at.max(range.start);
                let end = (at + row.length).min(range.end);
                add(reached..start, Mapping::Hole);
                let kind = if row.body == ExtentBody::Reserved { Mapping::Promised } else { Mapping::Data };
                add(start..end, kind);
                reached = end;
                Ok(Visit::Continue(()))
            })
        })?;
        add(reached..range.end, Mapping::Hole);
        Ok(pieces)
    }

    /// The first offset within `range` that is data, or (`data` false) that is not; promised ranges are not data.
    pub fn seek(&self, ino: Ino, range: Range<u64>, data: bool) -> Result<Option<u64>> {
        let mut reached = range.start;
        let mut found = None;
        self.view(|view| {
            self.visible(view, ino, range.clone(), |at, row| {
                let is_data = row.body != ExtentBody::Reserved;
                let start = at.max(range.start);
                if data && is_data {
                    found = Some(start);
                } else if !data && (start > reached || !is_data) {
                    found = Some(reached);
                }
                reached = at + row.length;
                Ok(if found.is_some() { Visit::Break(()) } else { Visit::Continue(()) })
            })
        })?;
        Ok(found.or_else(|| (!data && reached < range.end).then_some(reached)))
    }

    /// Visits the extents that overlap `range` and were not cut off by a truncate that still goes on.
    pub(super) fn visible(
        &self,
        reader: &impl Reader,
        ino: Ino,
        range: Range<u64>,
        mut visit: impl FnMut(u64, crate::format::rows::ExtentRow) -> Result<Visit>,
    ) -> Result<()> {
        extents::overlapping(reader, ino, range, |at, row| {
            if self.hidden(ino, at, row.birth) { Ok(Visit::Continue(())) } else { visit(at, row) }
        })
    }
}
