//! The store over simulated devices in many orders of events; see [`crate::base::sync`].

use std::sync::atomic::{AtomicU8, Ordering};

use super::*;
use crate::base::BlockNo;
use crate::base::sync::{explore, thread};
use crate::store::repair::Queue;

/// Long enough for a stripe.
const LENGTH: usize = 9000;
const FILE: u64 = 2;
const OTHER: u64 = 3;

/// Files whose content is one version from end to end.
struct Versions {
    rig: Rig,
    /// The version each file has at least, by number.
    told: [AtomicU8; 4],
}

impl Versions {
    fn new(devices: usize) -> Versions {
        let versions = Versions { rig: Rig::new(devices, 2, 1), told: Default::default() };
        versions.write(FILE, 1);
        versions.write(OTHER, 1);
        versions.rig.store.durable_point().unwrap();
        versions
    }

    fn write(&self, ino: u64, version: u8) {
        let bytes = SharedBytes::new(vec![version; LENGTH]);
        let write = ContentWrite { ino: Ino(ino), offset: 0, bytes };
        self.rig.store.commit(&[write], Inline::Small, |_, _| Ok(())).unwrap();
        self.told[ino as usize].store(version, Ordering::Relaxed);
    }

    /// Lets the next writer begin with the first free blocks: those that were freed last.
    fn rewind(&self) {
        let mut allocator = lock(&self.rig.store.devices.as_ref().unwrap().allocator);
        for member in self.rig.pool.members() {
            allocator.set_cursor(member.id, BlockNo(member.layout.start));
        }
    }

    fn read(&self, ino: u64) {
        let least = self.told[ino as usize].load(Ordering::Relaxed);
        let mut out = vec![0xEE; LENGTH];
        self.rig.store.read(Ino(ino), 0, &mut out).unwrap();
        assert!(out[0] >= least && out[0] < 100, "{} was read where {least} was written", out[0]);
        assert!(out.iter().all(|byte| *byte == out[0]), "a mixture of versions");
    }

    /// The stripe a file is in now.
    fn stripe(&self, ino: u64) -> StripeId {
        let find = |view: &crate::meta::View<'_>| {
            let mut found = None;
            extents::overlapping(view, Ino(ino), 0..LENGTH as u64, |_, row| {
                if let crate::format::rows::ExtentBody::Run(run) = &row.body {
                    found = Some(run.stripe);
                }
                Ok(Visit::Continue(()))
            })?;
            Ok(found.expect("the content is in a stripe"))
        };
        self.rig.store.view(find).unwrap()
    }

    /// Everything is where it belongs, and whole.
    fn check(&self) {
        self.rig.store.durable_point().unwrap();
        self.rig.store.repair_queued().unwrap();
        self.read(FILE);
        self.read(OTHER);
        self.rig.check_rows();
    }
}

/// Runs `bodies` at once, then checks.
fn race(versions: Versions, bodies: Vec<fn(&Versions)>) {
    let versions = Arc::new(versions);
    let spawn = |body: fn(&Versions)| {
        let versions = versions.clone();
        thread::spawn(move || body(&versions))
    };
    let threads: Vec<_> = bodies.into_iter().map(spawn).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    versions.check();
}

#[test]
fn blocks_are_used_again_only_when_nobody_can_read_what_was_there() {
    explore(600, || {
        let overwrite = |versions: &Versions| {
            for version in [2, 3] {
                versions.rewind();
                versions.write(FILE, version);
                versions.rig.store.durable_point().unwrap();
            }
        };
        let write_another = |versions: &Versions| {
            for version in [2, 3] {
                versions.rewind();
                versions.write(OTHER, version);
            }
            versions.rig.store.durable_point().unwrap();
        };
        let read = |versions: &Versions| [FILE, OTHER, FILE].into_iter().for_each(|ino| versions.read(ino));
        let tidy = |versions: &Versions| {
            versions.rig.store.tidy_step(true).unwrap();
            versions.rig.truncate();
        };
        race(Versions::new(3), vec![overwrite, write_another, read, read, tidy]);
    });
}

#[test]
fn a_discard_never_meets_what_was_just_written() {
    explore(600, || {
        let versions = Versions::new(3);
        (0..3).for_each(|device| versions.rig.pool.world.set_discard(device, DiscardMode::Garbage));
        versions.rig.store.set_discard(true);
        let overwrite = |versions: &Versions| {
            for version in [2, 3, 4] {
                versions.rewind();
                versions.write(FILE, version);
                versions.rig.store.durable_point().unwrap();
            }
        };
        let discard = |versions: &Versions| (0..3).for_each(|_| assert!(versions.rig.store.discard_step().is_ok()));
        let write_another = |versions: &Versions| {
            versions.rewind();
            versions.write(OTHER, 2);
        };
        let read = |versions: &Versions| [FILE, OTHER].into_iter().for_each(|ino| versions.read(ino));
        race(versions, vec![overwrite, discard, write_another, read]);
    });
}

#[test]
fn one_at_a_time_holds_a_stripe_and_everybody_gets_it() {
    explore(1000, || {
        let queue = Arc::new(Queue::default());
        let inside: Arc<[AtomicU8; 2]> = Arc::default();
        let spawn = |order: [u64; 2]| {
            let (queue, inside) = (queue.clone(), inside.clone());
            thread::spawn(move || {
                for stripe in order {
                    let held = queue.hold(StripeId(stripe));
                    assert_eq!(inside[stripe as usize].fetch_add(1, Ordering::Relaxed), 0, "two hold stripe {stripe}");
                    thread::yield_now();
                    inside[stripe as usize].fetch_sub(1, Ordering::Relaxed);
                    drop(held);
                }
            })
        };
        let threads = [[0, 1], [1, 0], [0, 1], [1, 0]].map(spawn);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn repairs_of_one_stripe_take_turns_and_leave_it_whole() {
    explore(300, || {
        let versions = Versions::new(5);
        let begin = versions.rig.pool.layout.start * 4096;
        versions.rig.pool.world.corrupt(1, begin..begin + 20 * 4096);
        let repair = |versions: &Versions| {
            for ino in [FILE, OTHER] {
                versions.rig.store.repair(versions.stripe(ino)).unwrap();
            }
        };
        let relocate = |versions: &Versions| {
            versions.rig.store.relocate(versions.stripe(FILE), DeviceId(2)).unwrap();
            versions.rig.store.relocate(versions.stripe(OTHER), DeviceId(1)).unwrap();
        };
        let read = |versions: &Versions| {
            versions.read(FILE);
            versions.rig.store.repair_queued().unwrap();
        };
        let overwrite = |versions: &Versions| {
            versions.rewind();
            versions.write(FILE, 2);
            versions.rig.store.durable_point().unwrap();
        };
        race(versions, vec![repair, repair, relocate, read, overwrite]);
    });
}
