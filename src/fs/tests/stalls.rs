//! Devices that answer late or never, and memory that is short: nobody waits for a device that is not needed, and nobody for
//! ever once the devices answer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::base::file::{RenameMode, SetAttr, XattrSet};
use crate::device::engine::ThreadsEngine;
use crate::device::sim::{Fault, On, SimWorld};
use crate::fs::background::Background;
use crate::store::open_tests::{format, open, open_with};

const SIZE: u64 = 64 << 20;
const DEVICES: [usize; 6] = [0, 1, 2, 3, 4, 5];

/// How long somebody waits who waits for ever.
const FOR_EVER: Duration = Duration::from_secs(300);

/// Runs `body` in a thread of its own; one that never ends ends the process, because its threads cannot be ended.
fn must_end(what: &str, body: impl FnOnce() + Send + 'static) {
    let (done, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let _done = done;
        body();
    });
    if ended.recv_timeout(FOR_EVER) == Err(mpsc::RecvTimeoutError::Timeout) {
        eprintln!("{what} did not end");
        std::process::abort();
    }
    thread.join().unwrap();
}

fn make(world: &SimWorld) -> Fs {
    let store = format(world, 4, 2).unwrap();
    store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).unwrap();
    Fs::open(Arc::new(store), Options::default()).unwrap()
}

fn mount(world: &SimWorld, seed: u64, options: Options) -> Fs {
    let store = open_with(world, &DEVICES, seed, Arc::new(ThreadsEngine::new())).unwrap();
    Fs::open(Arc::new(store), options).unwrap()
}

fn read_all(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = vec![0xEE; fs.getattr(ino).unwrap().size as usize];
    assert_eq!(fs.read(ino, 0, &mut out).unwrap(), out.len());
    out
}

fn content(number: u64) -> Vec<u8> {
    let mut prng = Prng::new(number);
    (0..100 + prng.below(60_000)).map(|at| (at * 31 + number) as u8).collect()
}

fn hang(world: &SimWorld, devices: &[usize], on: On) {
    devices.iter().for_each(|device| world.fault(*device, Fault::Hang { on }));
}

fn hanging(world: &SimWorld) -> usize {
    DEVICES.iter().map(|device| world.hanging(*device)).sum()
}

#[test]
fn whoever_reads_goes_around_devices_that_have_gone_silent() {
    must_end("reading around silent devices", || {
        for seed in 0..3 {
            let world = SimWorld::new(seed, 6, SIZE);
            let fs = make(&world);
            for number in 0..400u64 {
                let name = format!("file {number}");
                let ino = fs.mknod(&USER, ROOT, name.as_bytes(), 0o100_644, 0).unwrap().attr.ino;
                fs.write(&USER, ino, 0, &content(number), false).unwrap();
                fs.set_xattr(&USER, ino, b"user.number", name.as_bytes(), XattrSet::Any, false).unwrap();
            }
            fs.syncfs().unwrap();
            drop(fs);
            // Nothing is known yet of any device, and nothing is in memory.
            let fs = mount(&world, seed, Options::default());
            let first = seed as usize * 2;
            hang(&world, &[first, (first + 1 + seed as usize) % 6], On::Read);
            std::thread::scope(|scope| {
                for part in 0..4 {
                    let fs = &fs;
                    scope.spawn(move || {
                        for number in (part..400).step_by(4) {
                            let name = format!("file {number}");
                            let ino = fs.lookup(&USER, ROOT, name.as_bytes()).unwrap().attr.ino;
                            assert!(read_all(fs, ino) == content(number), "seed {seed}: {name}");
                            assert_eq!(fs.get_xattr(&USER, ino, b"user.number").unwrap(), name.as_bytes());
                        }
                    });
                }
            });
            assert!(hanging(&world) > 0, "seed {seed}: nobody ever asked the silent devices");
            DEVICES.iter().for_each(|device| world.release(*device));
        }
    });
}

/// One of many who change files of their own and check them, until it is over; its operations are counted.
fn worker(fs: &Fs, number: u64, over: &AtomicBool, done: &AtomicU64) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut prng = Prng::new(number);
    let mut files: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let dir = fs.mkdir(&USER, ROOT, format!("d{number}").as_bytes(), 0o755).unwrap().attr.ino;
    while !over.load(Ordering::Relaxed) {
        let name = format!("f{}", prng.below(6)).into_bytes();
        match (prng.below(8), files.get_mut(&name)) {
            (0..=2, None) => {
                let bytes = content(prng.next() % 1000);
                let ino = fs.mknod(&USER, dir, &name, 0o100_644, 0).unwrap().attr.ino;
                fs.write(&USER, ino, 0, &bytes, false).unwrap();
                files.insert(name, bytes);
            }
            (_, None) => fs.flush_times().unwrap(),
            (kind, Some(bytes)) => {
                let ino = fs.lookup(&USER, dir, &name).unwrap().attr.ino;
                match kind {
                    0 => fs.fsync(ino, false).unwrap(),
                    1 => assert!(read_all(fs, ino) == *bytes, "{name:?} of {number}"),
                    2 => {
                        fs.unlink(&USER, dir, &name).unwrap();
                        files.remove(&name);
                    }
                    3 => {
                        // Over another one, if it is there: that makes content durable first.
                        let bytes = bytes.clone();
                        fs.rename(&USER, dir, &name, dir, b"f0", RenameMode::Replace).unwrap();
                        files.remove(&name);
                        files.insert(b"f0".to_vec(), bytes);
                    }
                    4 => {
                        let size = prng.below(bytes.len() as u64 + 1);
                        bytes.truncate(size as usize);
                        fs.setattr(&USER, ino, &SetAttr { size: Some(size), ..SetAttr::default() }).unwrap();
                    }
                    5 => fs.syncfs().unwrap(),
                    _ => {
                        let more = content(prng.next() % 1000);
                        fs.write(&USER, ino, bytes.len() as u64, &more, false).unwrap();
                        bytes.extend(more);
                    }
                }
                fs.forget(ino, 1);
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    files
}

#[test]
fn with_little_memory_and_stalling_devices_everybody_gets_on_once_they_answer() {
    must_end("working with stalling devices", || {
        for seed in 0..3u64 {
            let world = SimWorld::new(seed, 6, SIZE);
            make(&world).store().durable_point().unwrap();
            // Two writes of these fill it.
            let options = Options { memory: 64 << 10, ..Options::default() };
            let fs = Arc::new(mount(&world, seed, options));
            let background = Background::start(fs.clone(), 2, Duration::from_millis(5)).unwrap();
            let (over, done) = (AtomicBool::new(false), AtomicU64::new(0));
            let files: Vec<BTreeMap<Vec<u8>, Vec<u8>>> = std::thread::scope(|scope| {
                let (fs, over, done) = (&*fs, &over, &done);
                let workers: Vec<_> =
                    (0..8).map(|number| scope.spawn(move || worker(fs, number, over, done))).collect();
                let mut prng = Prng::new(seed);
                for round in 0..25 {
                    // More of them than the pool could do without.
                    let first = prng.below(6) as usize;
                    let count = 1 + prng.below(6) as usize;
                    let devices: Vec<usize> = (0..count).map(|at| (first + at) % 6).collect();
                    hang(&world, &devices, [On::Any, On::Write, On::Flush][round % 3]);
                    while hanging(&world) == 0 {
                        std::thread::yield_now();
                    }
                    // What needs no device goes on.
                    assert_eq!(fs.getattr(ROOT).unwrap().ino, ROOT);
                    std::thread::sleep(Duration::from_millis(prng.below(20)));
                    let before = done.load(Ordering::Relaxed);
                    DEVICES.iter().for_each(|device| world.release(*device));
                    while done.load(Ordering::Relaxed) < before + 20 {
                        std::thread::yield_now();
                    }
                }
                over.store(true, Ordering::Relaxed);
                workers.into_iter().map(|worker| worker.join().unwrap()).collect()
            });
            background.stop().unwrap();
            let store = fs.store().clone();
            drop(fs);
            Arc::into_inner(store).expect("nobody else holds the store").close().unwrap();
            let fs = Fs::open(Arc::new(open(&world, &DEVICES, seed + 9).unwrap()), Options::default()).unwrap();
            for (number, files) in files.iter().enumerate() {
                let dir = fs.lookup(&USER, ROOT, format!("d{number}").as_bytes()).unwrap().attr.ino;
                for (name, bytes) in files {
                    let ino = fs.lookup(&USER, dir, name).unwrap().attr.ino;
                    assert!(read_all(&fs, ino) == *bytes, "seed {seed}: {name:?} of {number}");
                }
            }
        }
    });
}
