//! What operations on names and attributes cost above the devices, in CPU time: filesystem, tables and journal, in memory.
//! Run with `cargo bench --bench fs`; `benches/README.md` says how to read the table.

use std::sync::Arc;
use std::time::Duration;

use argosfs::base::file::{Caller, RenameMode, SetAttr, SetTime, Sink, XattrSet};
use argosfs::base::{Ino, Prng, SystemClock};
use argosfs::fs::{Fs, Options, RootOwner};
use argosfs::store::Store;

const CALLER: Caller = Caller { uid: 1000, gid: 1000, pid: 1, umask: 0o022 };
/// Operations of each kind; the directory they happen in holds this many names besides.
const OPERATIONS: u32 = 20_000;
const DIRECTORIES: [u32; 2] = [1_000, 1_000_000];

fn main() {
    // Without `--bench` this is a test run over all targets, which must not take long.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("benchmark: run it with `cargo bench --bench fs`");
    }
    for names in DIRECTORIES {
        let store = Arc::new(Store::in_memory(Arc::new(SystemClock), 1 << 40).expect("memory"));
        store.transact(|tx, _| Fs::format(tx, &mut Prng::new(1), RootOwner::default())).expect("an empty store");
        let fs = Fs::open(store, Options::default()).expect("it was just made");
        println!("in a directory of {names} names, us of CPU time per operation");
        run(&fs, names);
    }
}

/// CPU time of the process so far: what others do on the machine matters little.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

fn report(what: &str, count: u32, took: Duration) {
    println!("  {what:<34} {:>9.2}", took.as_secs_f64() * 1e6 / f64::from(count));
}

/// Runs `operation` for every number and prints what one took.
fn measure(what: &str, count: u32, mut operation: impl FnMut(u32)) {
    let start = cpu_time();
    (0..count).for_each(&mut operation);
    report(what, count, cpu_time() - start);
}

fn run(fs: &Fs, names: u32) {
    let dir = fs.mkdir(&CALLER, Ino::ROOT, b"dir", 0o755).expect("a directory").attr.ino;
    let name = |number: u32| format!("a file with the number {number}").into_bytes();
    let make = |number: u32| fs.mknod(&CALLER, dir, &name(number), 0o100_644, 0).expect("a file").attr.ino;
    let start = cpu_time();
    for number in 0..names {
        fs.forget(make(number), 1);
    }
    report("create, from empty", names, cpu_time() - start);

    let mut inodes = Vec::new();
    measure("create", OPERATIONS, |number| inodes.push(make(names + number)));
    let inode = |number: u32| inodes[number as usize];
    measure("getattr, hot", OPERATIONS, |number| {
        fs.getattr(inode(number)).expect("it exists");
    });
    measure("lookup, hot inode", OPERATIONS, |number| {
        let entry = fs.lookup(&CALLER, dir, &name(names + number)).expect("it exists");
        fs.forget(entry.attr.ino, 1);
    });
    measure("lookup, inode not in memory", OPERATIONS.min(names), |number| {
        let number = (u64::from(number) * 7919 % u64::from(names)) as u32;
        let entry = fs.lookup(&CALLER, dir, &name(number)).expect("it exists");
        fs.forget(entry.attr.ino, 1);
    });
    measure("lookup, no such name", OPERATIONS, |number| {
        assert!(fs.lookup(&CALLER, dir, format!("none{number}").as_bytes()).is_err());
    });
    let touch = SetAttr { mtime: Some(SetTime::Now), ..SetAttr::default() };
    measure("setattr", OPERATIONS, |number| {
        fs.setattr(&CALLER, inode(number), &touch).expect("allowed");
    });
    measure("setxattr, 20 bytes", OPERATIONS, |number| {
        fs.set_xattr(&CALLER, inode(number), b"user.origin", &[7; 20], XattrSet::Any, false).expect("allowed");
    });
    measure("getxattr", OPERATIONS, |number| {
        fs.get_xattr(&CALLER, inode(number), b"user.origin").expect("it was set");
    });
    measure("getxattr, none", OPERATIONS, |_| {
        assert!(fs.get_xattr(&CALLER, dir, b"security.capability").is_err());
    });
    measure("rename", OPERATIONS, |number| {
        let (from, to) = (name(names + number), format!("renamed {number}").into_bytes());
        fs.rename(&CALLER, dir, &from, dir, &to, RenameMode::Replace).expect("allowed");
    });
    let mut listed = 0u32;
    let start = cpu_time();
    fs.readdir(dir, 0, &mut |_| {
        listed += 1;
        Sink::Taken
    })
    .expect("a directory");
    report("readdir, per name", listed, cpu_time() - start);
    let (mut cookie, start) = (0, cpu_time());
    loop {
        let mut room = 25;
        let (before, mut taken) = (cookie, Vec::with_capacity(room));
        fs.readdir_plus(dir, cookie, &mut |entry, inode| {
            if room == 0 {
                return Sink::Full;
            }
            room -= 1;
            cookie = entry.cookie;
            taken.extend(inode.map(|_| entry.ino));
            Sink::Taken
        })
        .expect("a directory");
        taken.into_iter().for_each(|ino| fs.forget(ino, 1));
        if cookie == before {
            break;
        }
    }
    report("readdir plus, 25 a time, per name", listed, cpu_time() - start);
    measure("unlink, referenced", OPERATIONS, |number| {
        fs.unlink(&CALLER, dir, format!("renamed {number}").as_bytes()).expect("allowed");
    });
    let start = cpu_time();
    for inode in &inodes {
        fs.forget(*inode, 1);
    }
    fs.reclaim_all().expect("nothing is damaged");
    report("forget and reclaim", OPERATIONS, cpu_time() - start);
}
