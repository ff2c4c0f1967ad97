//! Reading and writing the four label copies of devices.
//!
//! Invariants:
//! - A write goes first to one pair of copies (A and C, or B and D), which is flushed on all devices before the other
//!   pair is touched; the pair that was written second is written first the next time. So at every moment one pair
//!   holds a whole label, the newest acknowledged one or a newer one.
//! - All copies of a device are equal except within a write, so that any one of them suffices.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::sync::Arc;

use crate::base::{Error, Result};
use crate::device::{Device, Engine, Op, Request};
use crate::format::label::{LABEL_SLOT, Label, LabelFault, label_offsets};

/// What a device's label slots say.
pub struct Scan {
    pub device: Arc<dyn Device>,
    /// The newest whole label, when this device can be used as the label says.
    pub found: Result<Label, Unusable>,
    /// Copies that are not equal to the newest one; a read-write open writes them again.
    pub damaged: u32,
    /// The pair of copies (0: A and C, 1: B and D) to write first, so that the best copies are kept longest.
    pub first_pair: usize,
}

/// Why a device cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// No copy of a label is left; the text says what was seen.
    NoLabel(String),
    /// A label that is whole, of a format this build does not read.
    Newer(String),
    /// The device is shorter than its label says.
    Cut(Box<Label>),
}

impl Unusable {
    /// The sentence for the user about the device called `name`.
    pub fn explain(&self, name: &str) -> String {
        match self {
            Unusable::NoLabel(why) => format!("{name} has no ArgosFS label ({why})"),
            Unusable::Newer(what) => format!("{name} {what}: use a newer argosfs"),
            Unusable::Cut(label) => format!(
                "{name} was cut short: its label says {} bytes, so it should not be used as it is",
                label.device.size
            ),
        }
    }
}

/// One copy as it was read.
enum Copy {
    Whole(Box<Label>),
    Faulty(LabelFault),
    Unread(Error),
}

/// Reads the labels of all devices, in parallel.
pub fn scan(engine: &dyn Engine, devices: &[Arc<dyn Device>]) -> Vec<Scan> {
    let offsets: Vec<_> = devices.iter().map(|device| label_offsets(device.size())).collect();
    let copies = read_copies(engine, devices, &offsets);
    devices.iter().zip(copies).map(|(device, copies)| judge(engine, device, copies)).collect()
}

/// Reads the slots of each device at its offsets.
fn read_copies(engine: &dyn Engine, devices: &[Arc<dyn Device>], offsets: &[Option<[u64; 4]>]) -> Vec<Vec<Copy>> {
    let mut buffers: Vec<Vec<u8>> =
        offsets.iter().map(|slots| vec![0; if slots.is_some() { 4 * LABEL_SLOT } else { 0 }]).collect();
    let mut batch: Vec<Request<'_>> = Vec::new();
    for ((device, slots), buffer) in devices.iter().zip(offsets).zip(&mut buffers) {
        for (offset, buf) in slots.iter().flatten().zip(buffer.chunks_exact_mut(LABEL_SLOT)) {
            batch.push(Request::new(&**device, Op::Read { offset: *offset, buf }));
        }
    }
    engine.run(&mut batch);
    let mut results: std::vec::IntoIter<Result<()>> =
        batch.into_iter().map(|request| request.result).collect::<Vec<_>>().into_iter();
    buffers
        .iter()
        .map(|buffer| {
            let slots = buffer.chunks_exact(LABEL_SLOT);
            slots
                .zip(&mut results)
                .map(|(slot, result)| match result {
                    Err(error) => Copy::Unread(error),
                    Ok(()) => match Label::decode(slot) {
                        Ok(label) => Copy::Whole(Box::new(label)),
                        Err(fault) => Copy::Faulty(fault),
                    },
                })
                .collect()
        })
        .collect()
}

fn judge(engine: &dyn Engine, device: &Arc<dyn Device>, mut copies: Vec<Copy>) -> Scan {
    let device = device.clone();
    // A device that grew keeps its last two copies where its old end was.
    let size = copies.iter().find_map(|copy| match copy {
        Copy::Whole(label) if label.device.size < device.size() => label_offsets(label.device.size),
        _ => None,
    });
    if let Some(offsets) = size.filter(|offsets| Some(*offsets) != label_offsets(device.size())) {
        copies = read_copies(engine, std::slice::from_ref(&device), &[Some(offsets)]).remove(0);
    }

    let newest = copies.iter().filter_map(|copy| if let Copy::Whole(label) = copy { Some(label) } else { None });
    let newest = newest.max_by_key(|label| label.pool.sequence).cloned();
    let newer = copies.iter().find_map(|copy| match copy {
        Copy::Faulty(LabelFault::Newer { version, incompat, pool }) => Some(format!(
            "belongs to pool {pool} of format version {version} with features {incompat:#x}, which this argosfs does not read"
        )),
        _ => None,
    });
    let good = |copy: &Copy| matches!((copy, &newest), (Copy::Whole(label), Some(newest)) if label == newest);
    let damaged = copies.iter().filter(|copy| !good(copy)).count() as u32;
    let good_in = |pair: usize| copies.iter().skip(pair).step_by(2).filter(|copy| good(copy)).count();
    let first_pair = usize::from(good_in(1) < good_in(0));
    let found = match (newer, newest) {
        (Some(newer), _) => Err(Unusable::Newer(newer)),
        (None, Some(label)) if label.device.size > device.size() => Err(Unusable::Cut(label)),
        (None, Some(label)) => Ok(*label),
        (None, None) => Err(Unusable::NoLabel(describe(&copies))),
    };
    Scan { device, found, damaged, first_pair }
}

/// What is wrong with the copies, none of which is whole; the most telling reason.
fn describe(copies: &[Copy]) -> String {
    let unread = copies.iter().find_map(|copy| match copy {
        Copy::Unread(error) => Some(error.to_string()),
        _ => None,
    });
    let damaged = copies.iter().find_map(|copy| match copy {
        Copy::Faulty(LabelFault::Damaged(why)) => Some(format!("there was one, but {why}")),
        _ => None,
    });
    if copies.is_empty() {
        return "it is too small to hold one".to_owned();
    }
    unread.or(damaged).unwrap_or_else(|| "nothing there looks like one".to_owned())
}

/// One device's part of a label write.
pub(super) struct LabelWrite {
    pub device: Arc<dyn Device>,
    /// The encoded slot.
    pub slot: Vec<u8>,
    /// Where the four copies lie.
    pub offsets: [u64; 4],
    /// The pair to write first.
    pub first_pair: usize,
}

/// Writes the labels of several devices in parallel; they are durable where the answer is `Ok`.
#[expect(clippy::indexing_slicing, reason = "there is one answer for each write")]
pub(super) fn write(engine: &dyn Engine, writes: &[LabelWrite]) -> Vec<Result<()>> {
    let mut answers: Vec<Result<()>> = writes.iter().map(|_| Ok(())).collect();
    let pair_requests = |second: bool, answers: &mut Vec<Result<()>>| {
        let mut whose = Vec::new();
        let mut batch = Vec::new();
        for (at, write) in writes.iter().enumerate().filter(|(at, _)| answers[*at].is_ok()) {
            let pair = write.first_pair ^ usize::from(second);
            for offset in [write.offsets[pair], write.offsets[pair + 2]] {
                whose.push(at);
                batch.push(Request::new(&*write.device, Op::Write { offset, bufs: vec![&write.slot] }));
            }
        }
        run(engine, &whose, batch, answers);
    };
    pair_requests(false, &mut answers);
    flush(engine, writes, &mut answers);
    pair_requests(true, &mut answers);
    flush(engine, writes, &mut answers);
    answers
}

#[expect(clippy::indexing_slicing, reason = "there is one answer for each write")]
fn flush(engine: &dyn Engine, writes: &[LabelWrite], answers: &mut [Result<()>]) {
    let whose: Vec<usize> = (0..writes.len()).filter(|at| answers[*at].is_ok()).collect();
    let batch = whose.iter().map(|at| Request::new(&*writes[*at].device, Op::Flush)).collect();
    run(engine, &whose, batch, answers);
}

/// Runs the batch and keeps the first error of each device.
#[expect(clippy::indexing_slicing, reason = "there is one answer for each write")]
fn run(engine: &dyn Engine, whose: &[usize], mut batch: Vec<Request<'_>>, answers: &mut [Result<()>]) {
    engine.run(&mut batch);
    for (at, request) in whose.iter().zip(batch) {
        if answers[*at].is_ok() {
            answers[*at] = request.result;
        }
    }
}
