//! The world behind the simulated devices: its record, its crash states, and the hands that break things.

use super::event::{Damage, Dice, DiscardMode, Durability, Event, Fate, Kind};
use super::fault::{Armed, Fault};
use super::store::{BLOCK, Store};
use super::{Device, SimDevice};
use crate::base::Prng;
use crate::base::rng::mix64;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Requests one device has seen, failed ones included.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub errors: u64,
}

/// The content of one device at some moment; cheap to keep.
#[derive(Clone)]
pub struct Snapshot {
    size: u64,
    content: Store,
}

impl Snapshot {
    /// Fills `buf` from byte `offset`; zeros where nothing was written.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        self.content.read(offset, buf);
    }
}

pub(super) struct DeviceState {
    pub(super) size: u64,
    /// What reads see.
    pub(super) current: Store,
    /// What is durable whatever the events in the record come to.
    base: Store,
    pub(super) faults: Armed,
    pub(super) discard: DiscardMode,
    pub(super) counters: Counters,
    pub(super) hanging: usize,
    pub(super) domain: u64,
    pub(super) prng: Prng,
}

pub(super) struct Inner {
    seed: u64,
    pub(super) devices: Vec<DeviceState>,
    events: VecDeque<Event>,
    /// Number of the next event.
    pub(super) next: u64,
    /// Crash points before this one are forgotten.
    oldest: u64,
    /// Blocks held by the record, and how many it may hold before it compacts itself.
    held_blocks: u64,
    limit_blocks: Option<u64>,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in a test thread must not hide behind a second one here; the state is whole between statements.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wait<'a>(&self, inner: MutexGuard<'a, Inner>) -> MutexGuard<'a, Inner> {
        self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new(seed: u64, contents: Vec<(u64, Store)>) -> Inner {
        let mut inner = Inner {
            seed,
            devices: Vec::new(),
            events: VecDeque::new(),
            next: 0,
            oldest: 0,
            held_blocks: 0,
            limit_blocks: None,
        };
        for (size, content) in contents {
            inner.add(size, content);
        }
        inner
    }

    fn add(&mut self, size: u64, content: Store) -> usize {
        let index = self.devices.len();
        self.devices.push(DeviceState {
            size: size / BLOCK as u64 * BLOCK as u64,
            current: content.clone(),
            base: content,
            faults: Armed::default(),
            discard: DiscardMode::default(),
            counters: Counters::default(),
            hanging: 0,
            domain: index as u64 + 1,
            prng: Prng::new(mix64(self.seed ^ mix64(index as u64 + 1))),
        });
        index
    }

    /// Lets the event take effect and records it.
    pub(super) fn append(&mut self, device: usize, kind: Kind) {
        kind.apply(&mut self.devices[device].current, Fate::Kept);
        if let Kind::Write { blocks, .. } = &kind {
            self.held_blocks += blocks.len() as u64;
        }
        self.events.push_back(Event { number: self.next, device, kind });
        self.next += 1;
        if self.limit_blocks.is_some_and(|limit| self.held_blocks > limit) {
            self.compact();
            // What is left is pending: compacting again before it has doubled would only cost time.
            self.limit_blocks = self.limit_blocks.map(|limit| limit.max(self.held_blocks * 2));
        }
    }

    /// Folds what is durable now into the bases. Per device, nothing behind a pending event is folded, for order's sake.
    fn compact(&mut self) {
        let durable = Durability::at(self.devices.len(), &self.events, self.next);
        let mut blocked = vec![false; self.devices.len()];
        let devices = &mut self.devices;
        self.events.retain(|event| {
            let blocked = &mut blocked[event.device];
            *blocked |= !durable.covers(event);
            if !*blocked {
                event.kind.apply(&mut devices[event.device].base, Fate::Kept);
            }
            *blocked
        });
        self.held_blocks = self.events.iter().map(|event| event.kind.pending_blocks()).sum();
        self.oldest = self.next;
    }

    /// The contents after a crash at `at`, where `fate` decides about what is pending.
    fn contents(&self, at: u64, mut fate: impl FnMut(&Event) -> Fate) -> Vec<(u64, Store)> {
        assert!(
            (self.oldest..=self.next).contains(&at),
            "crash point {at} is not in the record {}..={}",
            self.oldest,
            self.next
        );
        let durable = Durability::at(self.devices.len(), &self.events, at);
        let mut contents: Vec<_> = self.devices.iter().map(|device| (device.size, device.base.clone())).collect();
        for event in self.events.iter().take_while(|event| event.number < at) {
            let fate = if durable.covers(event) { Fate::Kept } else { fate(event) };
            event.kind.apply(&mut contents[event.device].1, fate);
        }
        contents
    }

    /// Pending writes and discards at `at`: their devices and lengths in blocks, in order.
    fn pending(&self, at: u64) -> Vec<(usize, u64)> {
        let durable = Durability::at(self.devices.len(), &self.events, at);
        let events = self.events.iter().take_while(|event| event.number < at);
        events.filter(|event| !durable.covers(event)).map(|event| (event.device, event.kind.pending_blocks())).collect()
    }
}

/// Several simulated devices and their common past. Clones are handles on the same world.
#[derive(Clone)]
pub struct SimWorld {
    shared: Arc<Shared>,
}

impl SimWorld {
    /// `devices` empty devices of `size` bytes each.
    pub fn new(seed: u64, devices: usize, size: u64) -> SimWorld {
        SimWorld::with_sizes(seed, &vec![size; devices])
    }

    /// Empty devices of these sizes in bytes (rounded down to blocks).
    pub fn with_sizes(seed: u64, sizes: &[u64]) -> SimWorld {
        SimWorld::of(seed, sizes.iter().map(|size| (*size, Store::default())).collect())
    }

    fn of(seed: u64, contents: Vec<(u64, Store)>) -> SimWorld {
        let inner = Mutex::new(Inner::new(seed, contents));
        SimWorld { shared: Arc::new(Shared { inner, changed: Condvar::new() }) }
    }

    /// The device with this index. Its name is `sim` and the index.
    pub fn device(&self, index: usize) -> Arc<dyn Device> {
        let size = self.shared.lock().devices[index].size;
        Arc::new(SimDevice { world: self.shared.clone(), index, name: format!("sim{index}"), size })
    }

    /// All devices in order.
    pub fn devices(&self) -> Vec<Arc<dyn Device>> {
        (0..self.len()).map(|index| self.device(index)).collect()
    }

    /// How many devices there are.
    pub fn len(&self) -> usize {
        self.shared.lock().devices.len()
    }

    /// True when there are no devices.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Plugs in one more empty device; returns its index.
    pub fn add_device(&self, size: u64) -> usize {
        self.shared.lock().add(size, Store::default())
    }

    // --- the record ---

    /// Events recorded so far, over all devices: the crash point "now".
    pub fn record(&self) -> u64 {
        self.shared.lock().next
    }

    /// The oldest crash point still known.
    pub fn oldest_crash_point(&self) -> u64 {
        self.shared.lock().oldest
    }

    /// Forgets how the present came about: crash points from now on only. What is pending stays pending.
    pub fn mark_base(&self) {
        self.shared.lock().compact();
    }

    /// Compacts by itself whenever the record holds more than this many bytes (and not only pending ones).
    pub fn limit_record(&self, bytes: u64) {
        self.shared.lock().limit_blocks = Some(bytes / BLOCK as u64);
    }

    /// The events of a range, one line each, for failure reports.
    pub fn trace(&self, range: Range<u64>) -> Vec<String> {
        let inner = self.shared.lock();
        let events = inner.events.iter().filter(|event| range.contains(&event.number));
        events.map(|event| format!("{} sim{}: {}", event.number, event.device, event.kind.describe())).collect()
    }

    /// Writes and discards that a power cut at `at` brings into doubt.
    pub fn pending(&self, at: u64) -> usize {
        self.shared.lock().pending(at).len()
    }

    // --- other worlds ---

    /// A world as it may look after a power cut when `at` events had happened (`0..=record()`): what was flushed is there;
    /// every other write is kept, lost, or torn at 512-byte sectors, each device in a mood of its own. The new world's
    /// devices are healthy, its record is empty.
    pub fn crash_state(&self, at: u64, prng: &mut Prng) -> SimWorld {
        let inner = self.shared.lock();
        let mut pending = vec![0; inner.devices.len()];
        for (device, _) in inner.pending(at) {
            pending[device] += 1;
        }
        let mut dice = Dice::new(&pending, prng);
        let contents = inner.contents(at, |event| dice.fate(event.device, event.kind.pending_blocks()));
        SimWorld::of(prng.next(), contents)
    }

    /// Every crash state at `at` in which each pending write is lost, kept, or there in its first or its last half: calls
    /// `check` with each. When that would be more than `limit` states it calls nothing and returns `None`; otherwise
    /// how many there were.
    pub fn each_crash_state(&self, at: u64, limit: u64, mut check: impl FnMut(SimWorld)) -> Option<u64> {
        let pending = self.shared.lock().pending(at);
        let states = 4u64.checked_pow(u32::try_from(pending.len()).ok()?).filter(|states| *states <= limit)?;
        for state in 0..states {
            let mut digits = state;
            let contents = self.shared.lock().contents(at, |event| {
                let half = event.kind.pending_blocks() * 4;
                let fate = [Fate::Lost, Fate::Kept, Fate::Prefix(half), Fate::Suffix(half)][(digits % 4) as usize];
                digits /= 4;
                fate
            });
            check(SimWorld::of(mix64(state), contents));
        }
        Some(states)
    }

    /// A healthy copy of the present, nothing lost: what a killed process leaves behind.
    pub fn fork(&self) -> SimWorld {
        let inner = self.shared.lock();
        let contents = inner.devices.iter().map(|device| (device.size, device.current.clone())).collect();
        SimWorld::of(mix64(inner.seed), contents)
    }

    /// A number that stands for the content of all devices, as seen from a world this one descends from: equal content
    /// has equal numbers, and other content another one but for one chance in 2^64. Costs what differs.
    pub fn fingerprint(&self, ancestor: &SimWorld) -> u64 {
        let contents = |world: &SimWorld| -> Vec<Store> {
            world.shared.lock().devices.iter().map(|device| device.current.clone()).collect()
        };
        let (ours, theirs) = (contents(self), contents(ancestor));
        let mut print = 0u64;
        for (index, content) in ours.iter().enumerate() {
            let empty = Store::default();
            content.each_difference(theirs.get(index).unwrap_or(&empty), |number, block| {
                let mut sum = mix64(number ^ (index as u64) << 56);
                // Zeros are what was never written.
                let block = block.filter(|block| block.iter().any(|byte| *byte != 0));
                for word in block.into_iter().flat_map(|block| block.as_chunks::<8>().0) {
                    sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
                }
                print = print.wrapping_add(mix64(sum));
            });
        }
        print
    }

    // --- content ---

    /// The device's content now.
    pub fn snapshot(&self, device: usize) -> Snapshot {
        let inner = self.shared.lock();
        let device = &inner.devices[device];
        Snapshot { size: device.size, content: device.current.clone() }
    }

    /// The device's content when `at` events had happened; `at` is a crash point.
    pub fn snapshot_at(&self, device: usize, at: u64) -> Snapshot {
        let (size, content) = self.shared.lock().contents(at, |_| Fate::Kept).swap_remove(device);
        Snapshot { size, content }
    }

    /// The device holds this content from now on (stale, foreign or cloned), durably. Sizes must agree.
    pub fn restore(&self, device: usize, snapshot: &Snapshot) {
        let mut inner = self.shared.lock();
        assert_eq!(inner.devices[device].size, snapshot.size, "snapshot of a device of another size");
        inner.append(device, Kind::Damage(Damage::Reset(snapshot.content.clone())));
    }

    /// The device is as new: nothing but zeros.
    pub fn wipe(&self, device: usize) {
        self.shared.lock().append(device, Kind::Damage(Damage::Reset(Store::default())));
    }

    /// Bytes of the range become zeros.
    pub fn zero(&self, device: usize, range: Range<u64>) {
        self.fill(device, range, None);
    }

    /// Bytes of the range become noise.
    pub fn corrupt(&self, device: usize, range: Range<u64>) {
        let noise = self.shared.lock().devices[device].prng.next();
        self.fill(device, range, Some(noise));
    }

    fn fill(&self, device: usize, range: Range<u64>, noise: Option<u64>) {
        let mut inner = self.shared.lock();
        assert!(range.start <= range.end && range.end <= inner.devices[device].size, "range outside the device");
        let (offset, len) = (range.start, range.end - range.start);
        inner.append(device, Kind::Damage(Damage::Fill { offset, len, noise }));
    }

    /// So many random bits within the range flip.
    pub fn flip_bits(&self, device: usize, range: Range<u64>, count: usize) {
        let mut inner = self.shared.lock();
        assert!(range.start < range.end && range.end <= inner.devices[device].size, "range outside the device");
        let prng = &mut inner.devices[device].prng;
        let bits = (0..count).map(|_| range.start * 8 + prng.below((range.end - range.start) * 8)).collect();
        inner.append(device, Kind::Damage(Damage::Flip(bits)));
    }

    /// A bit flips in a random block that was written before; returns the block's byte offset, or `None` when there is none.
    pub fn rot_block(&self, device: usize) -> Option<u64> {
        let offset = {
            let mut inner = self.shared.lock();
            let device = &mut inner.devices[device];
            let written: Vec<u64> = device.current.written().collect();
            let pick = device.prng.below((written.len() as u64).max(1));
            written.get(pick as usize)? * BLOCK as u64
        };
        self.flip_bits(device, offset..offset + BLOCK as u64, 1);
        Some(offset)
    }

    /// Blocks the device holds (written and not discarded to zeros).
    pub fn written_blocks(&self, device: usize) -> u64 {
        self.shared.lock().devices[device].current.written().count() as u64
    }

    // --- faults ---

    /// Arms a fault.
    pub fn fault(&self, device: usize, fault: Fault) {
        self.shared.lock().devices[device].faults.arm(fault);
        self.shared.changed.notify_all();
    }

    /// Ends all faults of the device; hanging requests go on. Content stays as it is.
    pub fn heal(&self, device: usize) {
        self.shared.lock().devices[device].faults.heal();
        self.shared.changed.notify_all();
    }

    /// Lets hanging requests of the device go on; other faults stay.
    pub fn release(&self, device: usize) {
        self.shared.lock().devices[device].faults.release();
        self.shared.changed.notify_all();
    }

    /// Every device stops answering.
    pub fn power_off(&self) {
        for device in 0..self.len() {
            self.fault(device, Fault::Gone);
        }
    }

    /// Requests hanging on the device now.
    pub fn hanging(&self, device: usize) -> usize {
        self.shared.lock().devices[device].hanging
    }

    /// Waits until so many requests hang on the device.
    pub fn wait_for_hanging(&self, device: usize, count: usize) {
        let mut inner = self.shared.lock();
        while inner.devices[device].hanging < count {
            inner = self.shared.wait(inner);
        }
    }

    /// What discards leave behind on the device.
    pub fn set_discard(&self, device: usize, mode: DiscardMode) {
        self.shared.lock().devices[device].discard = mode;
    }

    /// The failure domain the device reports; by default each has its own.
    pub fn set_domain(&self, device: usize, domain: u64) {
        self.shared.lock().devices[device].domain = domain;
    }

    /// Requests the device has seen.
    pub fn counters(&self, device: usize) -> Counters {
        self.shared.lock().devices[device].counters
    }
}
