//! What reading and writing file content costs above the kernel's transport: filesystem, store, tables and devices.
//! Run with `cargo bench --bench content [-- DIR]`; `benches/README.md` says how to read the table.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use argosfs::base::file::Caller;
use argosfs::base::{Bytes, Ino, Prng, SystemClock};
use argosfs::device::EngineChoice;
use argosfs::device::engine::select;
use argosfs::device::file::{self, OpenOptions};
use argosfs::format::label::DefaultGeometry;
use argosfs::fs::background::{Background, INTERVAL, WORKERS};
use argosfs::fs::{Fs, Options, RootOwner};
use argosfs::pool::{FormatOptions, Pool};
use argosfs::store::Store;

const CALLER: Caller = Caller { uid: 1000, gid: 1000, pid: 1, umask: 0o022 };
const WIDTH: usize = 6;
/// Size of each of the six members.
const MEMBER: u64 = 1 << 30;
/// Bytes written and read in a row.
const LARGE: usize = 512 << 20;
const REQUEST: usize = 1 << 20;
const SMALL: usize = 4 << 10;
const SYNCED: u32 = 2_000;
const FILES: u32 = 10_000;

fn main() {
    // Without `--bench` this is a test run over all targets, which must not take long.
    let mut arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return println!("benchmark: run it with `cargo bench --bench content`");
    }
    arguments.retain(|argument| !argument.starts_with("--"));
    let parent = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("argosfs-bench-content-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the files");
    let fs = Arc::new(make(&dir));
    let background = Background::start(fs.clone(), WORKERS, INTERVAL).expect("threads");
    run(&fs);
    background.stop().expect("everything durable");
    std::fs::remove_dir_all(&dir).expect("the files go away");
}

/// A filesystem on a pool of six image files, four data and two parity shards.
fn make(dir: &Path) -> Fs {
    let open = OpenOptions { create_size: Some(Bytes(MEMBER)), ..OpenOptions::default() };
    let member = |at| file::open(&dir.join(format!("member{at}")), &open).expect("an image file");
    let devices: Vec<_> = (0..WIDTH).map(member).collect();
    let geometry = DefaultGeometry { k: 4, m: 2, shard_blocks: 128 };
    let options =
        FormatOptions { name: "bench".into(), geometry, force: false, created: 0, features: Default::default() };
    let (engine, notes) = select(EngineChoice::Auto);
    notes.iter().for_each(|note| println!("note: {note}"));
    let pool = Pool::format(&devices, &options, engine, Box::new(Prng::new(1))).expect("a pool");
    let store = Store::format(Arc::new(pool), Arc::new(SystemClock), 1).expect("an empty store");
    store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).expect("an empty filesystem");
    Fs::open(Arc::new(store), Options::default()).expect("it was just made")
}

/// CPU time so far: of the calling thread, of the process.
fn cpu_time() -> (Duration, Duration) {
    let of = |clock| {
        let spent = rustix::time::clock_gettime(clock);
        Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
    };
    (of(rustix::time::ClockId::ThreadCPUTime), of(rustix::time::ClockId::ProcessCPUTime))
}

/// Runs `work` and prints what one of its `count` operations took.
fn measure(what: &str, count: u32, work: impl FnOnce()) {
    let (began, before) = (Instant::now(), cpu_time());
    work();
    let after = cpu_time();
    let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(count);
    let (caller, all, wall) = (each(after.0 - before.0), each(after.1 - before.1), each(began.elapsed()));
    println!("| {what} | {caller:.1} | {all:.1} | {wall:.1} |");
}

fn run(fs: &Fs) {
    println!("| per operation, us | CPU of the caller | CPU of all | time |\n|---|---|---|---|");
    let make = |name: &[u8]| fs.mknod(&CALLER, Ino::ROOT, name, 0o100_644, 0).expect("a file").attr.ino;
    let mut prng = Prng::new(7);
    let data: Vec<u8> = (0..REQUEST / 8).flat_map(|_| prng.next().to_le_bytes()).collect();
    let requests = (LARGE / REQUEST) as u32;
    let mut copy = vec![1; 8 * REQUEST];
    measure("copy 1 MiB in memory", requests, || {
        for at in 0..requests as usize {
            copy[at % 8 * REQUEST..][..REQUEST].copy_from_slice(&data);
            std::hint::black_box(&mut copy);
        }
    });
    let write = |ino, offset: u64, bytes: &[u8]| {
        fs.write(&CALLER, ino, offset, bytes, false).expect("space");
    };
    let large = make(b"large");
    for (round, what) in ["write 1 MiB in a row", "overwrite 1 MiB in a row"].into_iter().enumerate() {
        measure(what, requests, || (0..LARGE).step_by(REQUEST).for_each(|offset| write(large, offset as u64, &data)));
        measure("fsync after it", 1, || fs.fsync(large, false).expect("durable"));
        assert!(round < 2);
    }
    let mut out = vec![0; REQUEST];
    measure("read 1 MiB in a row", requests, || {
        for offset in (0..LARGE).step_by(REQUEST) {
            assert_eq!(fs.read(large, offset as u64, &mut out).expect("readable"), REQUEST);
        }
        assert!(out == data);
    });
    let mut prng = Prng::new(9);
    let mut place = || prng.below((LARGE / SMALL) as u64) * SMALL as u64;
    measure("read 4 KiB anywhere", SYNCED, || {
        for _ in 0..SYNCED {
            fs.read(large, place(), &mut out[..SMALL]).expect("readable");
        }
    });
    measure("write 4 KiB in a row, fsync each", SYNCED, || {
        let ino = make(b"synced");
        for at in 0..SYNCED {
            write(ino, u64::from(at) * SMALL as u64, &data[..SMALL]);
            fs.fsync(ino, true).expect("durable");
        }
    });
    measure("write 4 KiB anywhere", 10 * SYNCED, || {
        (0..10 * SYNCED).for_each(|_| write(large, place(), &data[..SMALL]))
    });
    measure("fsync after it", 1, || fs.fsync(large, false).expect("durable"));
    let mut inodes = Vec::new();
    measure("create a file of 4 KiB", FILES, || {
        for at in 0..FILES {
            let ino = make(format!("a small file, number {at}").as_bytes());
            write(ino, 0, &data[..SMALL]);
            inodes.push(ino);
        }
    });
    measure("sync after it", 1, || fs.syncfs().expect("durable"));
    measure("read a file of 4 KiB", FILES, || {
        for ino in &inodes {
            fs.read(*ino, 0, &mut out[..SMALL]).expect("readable");
        }
    });
}
