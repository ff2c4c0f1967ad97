//! Content of the model's files.

use super::super::op::{Outcome, Refusal, Who};
use super::{Answer, Model, is_privileged};
use crate::base::Timestamp;
use crate::base::file::{FILE_SIZE_MAX, FallocateMode, FileType, Whence};

fn end_of(offset: u64, length: u64) -> Result<u64, Refusal> {
    offset.checked_add(length).filter(|end| *end <= FILE_SIZE_MAX).ok_or(Refusal::FileTooLarge)
}

impl Model {
    pub(super) fn regular(&self, id: u64) -> Result<(), Refusal> {
        match self.node(id).kind {
            FileType::Regular => Ok(()),
            FileType::Directory => Err(Refusal::IsDirectory),
            _ => Err(Refusal::Invalid),
        }
    }

    fn modified(&mut self, id: u64, now: Timestamp) {
        let node = self.node_mut(id);
        node.mtime = now;
        node.ctime = now;
    }

    pub(super) fn write(&mut self, id: u64, offset: u64, data: &[u8], kill_suidgid: bool, now: Timestamp) -> Answer {
        self.regular(id)?;
        self.changeable(id, offset >= self.node(id).content.size())?;
        end_of(offset, data.len() as u64)?;
        if !data.is_empty() {
            self.node_mut(id).content.write(offset, data);
            self.modified(id, now);
            if kill_suidgid {
                self.strip(id, true);
            }
        }
        Ok(Outcome::Count(data.len() as u64))
    }

    pub(super) fn read(&mut self, id: u64, offset: u64, length: u64, now: Timestamp) -> Answer {
        self.regular(id)?;
        self.touch(id, now);
        Ok(Outcome::Bytes(self.node(id).content.read(offset, length)))
    }

    pub(super) fn fallocate(
        &mut self,
        who: Who,
        id: u64,
        offset: u64,
        length: u64,
        mode: FallocateMode,
        now: Timestamp,
    ) -> Answer {
        if length == 0 {
            return Err(Refusal::Invalid);
        }
        let end = end_of(offset, length)?;
        self.regular(id)?;
        let (zero, keep_size) = match mode {
            FallocateMode::Allocate { keep_size } => (false, keep_size),
            FallocateMode::PunchHole => (true, true),
            FallocateMode::ZeroRange { keep_size } => (true, keep_size),
        };
        self.changeable(id, !zero)?;
        let content = &mut self.node_mut(id).content;
        if zero {
            content.zero(offset..end);
        }
        if !keep_size && end > content.size() {
            content.resize(end);
        }
        self.strip(id, !is_privileged(who));
        self.modified(id, now);
        Ok(Outcome::Done)
    }

    pub(super) fn copy(
        &mut self,
        who: Who,
        (from, from_offset): (u64, u64),
        (to, to_offset): (u64, u64),
        length: u64,
        now: Timestamp,
    ) -> Answer {
        self.regular(from)?;
        self.regular(to)?;
        self.changeable(to, to_offset >= self.node(to).content.size())?;
        end_of(from_offset, length)?;
        let length = length.min(self.node(from).content.size().saturating_sub(from_offset));
        let end = end_of(to_offset, length)?;
        if from == to && from_offset < end && to_offset < from_offset + length {
            return Err(Refusal::Invalid);
        }
        if length > 0 {
            let bytes = self.node(from).content.read(from_offset, length);
            self.node_mut(to).content.write(to_offset, &bytes);
            self.strip(to, !is_privileged(who));
            self.modified(to, now);
        }
        Ok(Outcome::Count(length))
    }

    /// The first data, or the end of the file as the hole that is always there.
    pub(super) fn seek(&self, id: u64, offset: u64, whence: Whence) -> Answer {
        self.regular(id)?;
        let content = &self.node(id).content;
        if offset >= content.size() {
            return Err(Refusal::NoData);
        }
        match whence {
            Whence::Data => content.first_data(offset..content.size()).map(Outcome::Count).ok_or(Refusal::NoData),
            Whence::Hole => Ok(Outcome::Count(content.size())),
        }
    }
}
