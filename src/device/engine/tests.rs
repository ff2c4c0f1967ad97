use super::*;
use crate::base::{Bytes, Prng};
use crate::device::file::tests::{LoopDevice, TempDir};
use crate::device::file::{self, OpenOptions};
use crate::device::sim::{Fault, On, SimWorld};
use crate::device::{AlignedBuf, Answer, Device, InFlight, OwnRead, RawFile};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const SIZE: u64 = 4 << 20;

/// Every engine that works here.
fn engines() -> Vec<(String, Arc<dyn Engine>)> {
    let mut engines: Vec<(String, Arc<dyn Engine>)> =
        vec![("inline".into(), Arc::new(InlineEngine)), ("threads".into(), Arc::new(ThreadsEngine::new()))];
    for register in [true, false] {
        match UringEngine::with_registration(register) {
            Ok(engine) => engines.push((format!("uring, registered buffers: {register}"), Arc::new(engine))),
            Err(error) => eprintln!("SKIPPED: no io_uring here: {error}"),
        }
    }
    match MmapEngine::new() {
        Ok(engine) => engines.push(("mmap".into(), Arc::new(engine))),
        Err(error) => eprintln!("SKIPPED: no staged reads here: {error}"),
    }
    engines
}

fn files(dir: &TempDir, count: usize, engine: EngineChoice) -> Vec<Arc<dyn Device>> {
    let options = OpenOptions { create_size: Some(Bytes(SIZE)), recreate: true, engine, ..OpenOptions::default() };
    (0..count).map(|at| file::open(&dir.path().join(at.to_string()), &options).unwrap()).collect()
}

fn run(engine: &dyn Engine, batch: Vec<(&dyn Device, Op<'_>)>) -> Vec<Result<()>> {
    let mut requests: Vec<_> = batch.into_iter().map(|(device, op)| Request::new(device, op)).collect();
    engine.run(&mut requests);
    requests.into_iter().map(|request| request.result).collect()
}

/// Memory of all kinds a caller may bring.
enum Memory {
    Arena(AlignedBuf),
    Heap(Vec<u8>, usize),
}

impl Memory {
    fn new(prng: &mut Prng, len: usize) -> Memory {
        let mut memory = match prng.below(3) {
            0 => Memory::Heap(vec![0; len + 1], prng.below(2) as usize),
            _ => Memory::Arena(AlignedBuf::scratch(len)),
        };
        crate::base::Entropy::fill(prng, memory.bytes());
        memory
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Memory::Arena(buf) => buf,
            Memory::Heap(bytes, skew) => {
                let len = bytes.len() - 1;
                &mut bytes[*skew..*skew + len]
            }
        }
    }
}

#[test]
fn every_engine_reads_and_writes_what_a_plain_copy_would() {
    let dir = TempDir::new("engines");
    for (name, engine) in engines() {
        for choice in [EngineChoice::Auto, EngineChoice::Buffered] {
            let mut devices = files(&dir, 3, choice);
            devices.push(SimWorld::new(1, 1, SIZE).device(0));
            let mut prng = Prng::new(7);
            let mut model = vec![vec![0u8; SIZE as usize]; devices.len()];
            for step in 0..20 {
                // Each request has a region of its own; now and then a batch is larger than a ring.
                let regions = if step % 10 == 9 { 128 } else { 8 };
                let region = SIZE as usize / regions;
                let mut writes: Vec<(usize, usize, Memory)> = Vec::new();
                for at in 0..prng.below(regions as u64) as usize {
                    let len = (1 + prng.below(region as u64 / 4096)) as usize * 4096;
                    writes.push((prng.below(devices.len() as u64) as usize, at * region, Memory::new(&mut prng, len)));
                }
                for (device, offset, memory) in &mut writes {
                    let bytes = memory.bytes();
                    model[*device][*offset..*offset + bytes.len()].copy_from_slice(bytes);
                }
                let mut batch: Vec<(&dyn Device, Op<'_>)> = Vec::new();
                for (device, offset, memory) in &mut writes {
                    let bytes: &[u8] = memory.bytes();
                    let (one, two) = bytes.split_at(prng.below(bytes.len() as u64 / 4096) as usize * 4096);
                    let bufs = if prng.chance(1, 2) { vec![bytes] } else { vec![one, two] };
                    batch.push((&*devices[*device], Op::Write { offset: *offset as u64, bufs }));
                }
                assert!(run(&*engine, batch).iter().all(Result::is_ok), "{name} {choice} step {step}");
                let flushes = devices.iter().map(|device| (&**device, Op::Flush)).collect();
                assert!(run(&*engine, flushes).iter().all(Result::is_ok), "{name} {choice} step {step}");
                let mut reads: Vec<(usize, usize, Memory)> = (0..regions)
                    .map(|at| (prng.below(4) as usize, at * region, Memory::new(&mut prng, region)))
                    .collect();
                let batch = reads
                    .iter_mut()
                    .map(|(device, offset, memory)| {
                        (&*devices[*device], Op::Read { offset: *offset as u64, buf: memory.bytes() })
                    })
                    .collect();
                assert!(run(&*engine, batch).iter().all(Result::is_ok), "{name} {choice} step {step}");
                for (device, offset, memory) in &mut reads {
                    let got = memory.bytes();
                    assert!(*got == model[*device][*offset..*offset + got.len()], "{name} {choice} step {step}");
                }
            }
            assert!(devices.iter().all(|device| device.stalled_ns().is_none()), "{name}: requests counted for ever");
        }
    }
}

#[test]
fn an_error_stays_with_its_request() {
    let dir = TempDir::new("errors");
    for (name, engine) in engines() {
        let devices = files(&dir, 2, EngineChoice::Auto);
        let world = SimWorld::new(1, 1, SIZE);
        let broken = world.device(0);
        world.fault(0, Fault::Gone);
        let read_only = file::open(&dir.path().join("0"), &OpenOptions { read_only: true, ..OpenOptions::default() });
        assert!(matches!(read_only, Err(Error::Busy(_))));
        std::fs::write(dir.path().join("ro"), vec![0; 8192]).unwrap();
        let read_only =
            file::open(&dir.path().join("ro"), &OpenOptions { read_only: true, ..Default::default() }).unwrap();
        // This one was cut short while open.
        std::fs::OpenOptions::new().write(true).open(dir.path().join("1")).unwrap().set_len(8192).unwrap();
        let block = AlignedBuf::from(&[5u8; 4096][..]);
        let mut bufs: Vec<_> = (0..4).map(|_| AlignedBuf::zeroed(8192)).collect();
        let mut buf = bufs.iter_mut();
        let mut read = |offset| Op::Read { offset, buf: buf.next().unwrap() };
        let write = |offset| Op::Write { offset, bufs: vec![&block] };
        let results = run(
            &*engine,
            vec![
                (&*devices[0], write(0)),
                (&*devices[0], write(SIZE)),
                (&*devices[1], read(4096)),
                (&*devices[1], read(0)),
                (&*broken, write(0)),
                (&*read_only, write(0)),
                (&*read_only, read(0)),
                (&*devices[0], read(u64::MAX - 4095)),
                (&*devices[0], write(512)),
                (&*broken, Op::Flush),
                (&*devices[0], Op::Flush),
            ],
        );
        let ok: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(
            ok,
            [true, false, false, true, false, false, true, false, false, false, true],
            "{name}: {results:?}"
        );
        assert!(matches!(results[5], Err(Error::ReadOnly)));
        assert!(results[2].as_ref().unwrap_err().to_string().contains("cut short"), "{name}: {results:?}");
        assert_eq!(std::fs::metadata(dir.path().join("0")).unwrap().len(), SIZE, "{name}: a request extended the file");
        let only_reads = run(&*engine, vec![(&*devices[1], Op::Read { offset: 4096, buf: &mut [0; 8192] })]);
        assert!(only_reads[0].is_err());
        drop(devices);
        run(&*engine, Vec::new());
    }
}

/// A mapped page behind the new end answers loads with SIGBUS, which would end this process.
#[test]
fn staged_reads_of_a_file_cut_short_give_errors() {
    let dir = TempDir::new("sigbus");
    let Ok(engine) = MmapEngine::new() else { return eprintln!("SKIPPED: no staged reads here") };
    let devices = files(&dir, 1, EngineChoice::Mmap);
    devices[0].write_at(0, &[&[3; 65536]]).unwrap();
    std::fs::OpenOptions::new().write(true).open(dir.path().join("0")).unwrap().set_len(16384).unwrap();
    let (mut one, mut two) = (vec![0; 16384], vec![0; 16384]);
    let results = run(
        &engine,
        vec![
            (&*devices[0], Op::Read { offset: 0, buf: &mut one }),
            (&*devices[0], Op::Read { offset: 8192, buf: &mut two }),
        ],
    );
    assert!(results[0].is_ok() && one == [3; 16384]);
    assert!(results[1].is_err());
}

/// A tmpfs of one MiB; unmounted when dropped.
struct SmallDisk<'a>(&'a TempDir);

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

/// Real errors of a real block device: a loop device whose file lies on a full disk, or was cut short.
#[test]
fn a_failing_block_device_gives_errors_and_its_failed_flush_is_remembered() {
    let dir = TempDir::new("failing");
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("argosfs-test", dir.path(), "tmpfs", flags, Some(c"size=1m")) {
        return eprintln!("SKIPPED: a full disk is needed, which takes root: {error}");
    }
    let _disk = SmallDisk(&dir);
    for (name, engine) in engines() {
        let backing = dir.path().join("backing");
        std::fs::File::create(&backing).unwrap().set_len(8 << 20).unwrap();
        let Some(looped) = LoopDevice::attach(&backing) else { return };
        let buf = AlignedBuf::from(&[7u8; 2 << 20][..]);
        let write = |offset| Op::Write { offset, bufs: vec![&buf[..]] };

        let direct = file::open(looped.path(), &OpenOptions::default()).unwrap();
        if direct.raw().unwrap().direct {
            let results = run(&*engine, vec![(&*direct, write(0)), (&*direct, write(4 << 20))]);
            assert!(results.iter().any(Result::is_err), "{name}: four MiB do not fit into one");
        }
        drop(direct);

        let options = OpenOptions { engine: EngineChoice::Buffered, ..OpenOptions::default() };
        let buffered = file::open(looped.path(), &options).unwrap();
        let results = run(&*engine, vec![(&*buffered, write(0)), (&*buffered, write(4 << 20))]);
        assert!(results.iter().all(Result::is_ok), "{name}: {results:?}");
        for round in 0..2 {
            let results = run(&*engine, vec![(&*buffered, Op::Flush), (&*buffered, Op::Flush)]);
            assert!(round == 0 && results.iter().any(Result::is_err) || results.iter().all(Result::is_err), "{name}");
        }
        drop(buffered);

        std::fs::OpenOptions::new().write(true).open(&backing).unwrap().set_len(4096).unwrap();
        let cut = file::open(looped.path(), &OpenOptions { read_only: true, ..options }).unwrap();
        let (mut one, mut two) = (vec![0; 4096], vec![0; 65536]);
        let results = run(
            &*engine,
            vec![(&*cut, Op::Read { offset: 0, buf: &mut one }), (&*cut, Op::Read { offset: 6 << 20, buf: &mut two })],
        );
        assert!(results[0].is_ok() && results[1].is_err(), "{name}: {results:?}");
    }
}

#[test]
fn batches_of_several_threads_run_at_once() {
    let dir = TempDir::new("parallel");
    for (name, engine) in engines() {
        let devices = files(&dir, 2, EngineChoice::Auto);
        std::thread::scope(|scope| {
            for thread in 0..8u64 {
                let (engine, devices, name) = (&engine, &devices, &name);
                scope.spawn(move || {
                    let home = thread * SIZE / 8;
                    for round in 0..20u8 {
                        let buf = AlignedBuf::from(&vec![round ^ thread as u8; 64 << 10][..]);
                        let write = || Op::Write { offset: home, bufs: vec![&buf] };
                        let done = run(&**engine, vec![(&*devices[0], write()), (&*devices[1], write())]);
                        assert!(done.iter().all(Result::is_ok), "{name}");
                        let (mut one, mut two) = (AlignedBuf::zeroed(64 << 10), vec![0; 64 << 10]);
                        let done = run(
                            &**engine,
                            vec![
                                (&*devices[0], Op::Read { offset: home, buf: &mut one }),
                                (&*devices[1], Op::Read { offset: home, buf: &mut two }),
                            ],
                        );
                        assert!(done.iter().all(Result::is_ok) && one[..] == buf[..] && two[..] == buf[..], "{name}");
                    }
                });
            }
        });
    }
}

/// Panics on every read.
struct Trap;

impl Device for Trap {
    fn name(&self) -> &str {
        "trap"
    }
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
        panic!("sprung");
    }
    fn write_at(&self, _: u64, _: &[&[u8]]) -> Result<()> {
        Ok(())
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<bool> {
        Ok(true)
    }
}

/// Takes long enough that a batch which did not wait would be gone, and tells when it is done.
struct Slow<'a> {
    inner: Arc<dyn Device>,
    start: &'a Barrier,
    done: &'a AtomicBool,
}

impl Device for Slow<'_> {
    fn name(&self) -> &str {
        "slow"
    }
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.start.wait();
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.done.store(true, Ordering::Release);
        self.inner.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        self.inner.write_at(offset, bufs)
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        self.inner.discard(offset, len)
    }
}

#[test]
fn a_panic_goes_on_in_the_caller_after_all_others_are_done() {
    let dir = TempDir::new("panic");
    for (name, engine) in engines() {
        let devices = files(&dir, 2, EngineChoice::Auto);
        devices[0].write_at(0, &[&[8; 4096]]).unwrap();
        let mut bufs: Vec<_> = (0..3).map(|_| AlignedBuf::zeroed(4096)).collect();
        let mut buf = bufs.iter_mut();
        let mut read = || Op::Read { offset: 0, buf: buf.next().unwrap() };
        let batch: Vec<(&dyn Device, Op<'_>)> = vec![(&*devices[0], read()), (&Trap, read()), (&*devices[1], read())];
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&*engine, batch)));
        let text = *outcome.unwrap_err().downcast::<&str>().unwrap();
        assert_eq!(text, "sprung", "{name}");
        // The engine is as good as before.
        let results = run(&*engine, vec![(&*devices[0], Op::Flush), (&*devices[1], Op::Flush)]);
        assert!(results.iter().all(Result::is_ok));
    }
    let (start, done) = (Barrier::new(2), AtomicBool::new(false));
    let world = SimWorld::new(1, 1, SIZE);
    let slow = Slow { inner: world.device(0), start: &start, done: &done };
    struct TrapAfter<'a>(&'a Barrier);
    impl Device for TrapAfter<'_> {
        fn name(&self) -> &str {
            "trap"
        }
        fn size(&self) -> u64 {
            SIZE
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> Result<()> {
            self.0.wait();
            panic!("sprung");
        }
        fn write_at(&self, _: u64, _: &[&[u8]]) -> Result<()> {
            Ok(())
        }
        fn flush(&self) -> Result<()> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<bool> {
            Ok(true)
        }
    }
    let trap = TrapAfter(&start);
    let (mut one, mut two) = ([0; 4096], [0; 4096]);
    let batch: Vec<(&dyn Device, Op<'_>)> =
        vec![(&trap, Op::Read { offset: 0, buf: &mut one }), (&slow, Op::Read { offset: 0, buf: &mut two })];
    let engine = ThreadsEngine::new();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&engine, batch))).unwrap_err();
    assert!(done.load(Ordering::Acquire), "the batch was left before its requests were done");
}

#[test]
fn a_hanging_device_does_not_stop_other_batches() {
    let world = SimWorld::new(1, 2, SIZE);
    let engine = ThreadsEngine::new();
    let (hangs, works) = (world.device(0), world.device(1));
    world.fault(0, Fault::Hang { on: On::Read });
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let mut bufs = [[0; 4096]; 4];
                let batch = bufs.iter_mut().map(|buf| (&*hangs, Op::Read { offset: 0, buf })).collect();
                assert!(run(&engine, batch).iter().all(Result::is_ok));
            });
        }
        // All ten callers and all workers are stuck.
        world.wait_for_hanging(0, 22);
        let mut bufs = [[0; 4096]; 4];
        let batch = bufs.iter_mut().map(|buf| (&*works, Op::Read { offset: 0, buf })).collect();
        assert!(run(&engine, batch).iter().all(Result::is_ok));
        world.release(0);
    });
}

fn own(device: &Arc<dyn Device>, offset: u64) -> OwnRead {
    OwnRead { device: Arc::clone(device), offset, buf: AlignedBuf::zeroed(4096) }
}

fn is_read(answer: &Answer, byte: u8) -> bool {
    matches!(answer, Answer::Read(bytes) if **bytes == [byte; 4096])
}

/// Longer than any answer takes that comes at all.
const LONG: Duration = Duration::from_secs(600);
/// What a test waits in vain.
const SHORT: Duration = Duration::from_millis(30);

#[test]
fn reads_with_patience_are_answered_like_others() {
    let dir = TempDir::new("patient");
    for (name, engine) in engines() {
        let mut devices = files(&dir, 2, EngineChoice::Auto);
        let world = SimWorld::new(1, 1, SIZE);
        devices.push(world.device(0));
        for (device, fill) in devices.iter().zip(1..) {
            for block in 0..200 {
                device.write_at(block * 4096, &[&[fill; 4096]]).unwrap();
            }
        }
        // Some devices have files for a ring and some have not; and a ring takes them in several waves.
        for (count, among) in [(1, 2), (5, 2), (5, 3), (150, 2), (0, 2)] {
            let reads = (0..count).map(|at| own(&devices[at % among], at as u64 * 4096)).collect();
            let answers = engine.read(reads, Some(LONG));
            let right = answers.iter().enumerate().all(|(at, answer)| is_read(answer, (at % among) as u8 + 1));
            assert!(answers.len() == count && right, "{name}: {count} of {among}: {answers:?}");
        }
        world.fault(0, Fault::Fail { on: On::Read, nth: 0, sticky: false });
        let reads = vec![own(&devices[0], 0), own(&devices[0], SIZE), own(&devices[2], 0)];
        let answers = engine.read(reads, Some(LONG));
        assert!(is_read(&answers[0], 1), "{name}");
        assert!(answers[1..].iter().all(|answer| matches!(answer, Answer::Failed(_))), "{name}: {answers:?}");
    }
}

#[test]
fn a_device_that_has_gone_silent_is_not_waited_for() {
    let engine = ThreadsEngine::new();
    let world = SimWorld::new(1, 2, SIZE);
    let (silent, well) = (world.device(0), world.device(1));
    well.write_at(0, &[&[7; 4096]]).unwrap();
    world.fault(0, Fault::Hang { on: On::Read });
    // However many threads it keeps.
    for round in 0..40 {
        let answers = engine.read(vec![own(&silent, 0), own(&well, 0)], Some(SHORT));
        assert!(matches!(answers[0], Answer::Late), "round {round}");
        assert!(is_read(&engine.read(vec![own(&well, 0)], Some(LONG))[0], 7), "round {round}");
    }
    world.wait_for_hanging(0, 40);
    world.release(0);
    while world.hanging(0) > 0 {
        std::thread::yield_now();
    }
    assert!(is_read(&engine.read(vec![own(&silent, 0)], Some(LONG))[0], 0));
}

/// A device whose reads are answered when somebody writes into the other end of a pipe.
struct Pipe {
    ends: (std::os::fd::OwnedFd, std::os::fd::OwnedFd),
    in_flight: InFlight,
    flush_failed: AtomicBool,
}

impl Device for Pipe {
    fn name(&self) -> &str {
        "pipe"
    }
    fn size(&self) -> u64 {
        SIZE
    }
    fn read_at(&self, _: u64, buf: &mut [u8]) -> Result<()> {
        rustix::io::read(&self.ends.0, buf).map(drop).map_err(|error| Error::io("pipe", "read", error.into()))
    }
    fn write_at(&self, _: u64, bufs: &[&[u8]]) -> Result<()> {
        let bytes = bufs.concat();
        rustix::io::write(&self.ends.1, &bytes).map(drop).map_err(|error| Error::io("pipe", "write", error.into()))
    }
    fn flush(&self) -> Result<()> {
        Ok(())
    }
    fn discard(&self, _: u64, _: u64) -> Result<bool> {
        Ok(false)
    }
    fn raw(&self) -> Option<RawFile<'_>> {
        use std::os::fd::AsFd;
        let Pipe { ends, in_flight, flush_failed } = self;
        Some(RawFile { fd: ends.0.as_fd(), direct: false, alignment: 1, may_wait: true, in_flight, flush_failed })
    }
    fn stalled_ns(&self) -> Option<u64> {
        self.in_flight.oldest_ns()
    }
}

#[test]
fn a_read_that_a_ring_leaves_behind_keeps_its_memory_until_it_ends() {
    let dir = TempDir::new("left-behind");
    for register in [true, false] {
        let Ok(engine) = UringEngine::with_registration(register) else {
            return eprintln!("SKIPPED: no io_uring here");
        };
        let pipe = Arc::new(Pipe {
            ends: std::io::pipe().map(|(out, into)| (out.into(), into.into())).unwrap(),
            in_flight: InFlight::new(Arc::new(crate::base::SystemClock)),
            flush_failed: AtomicBool::new(false),
        });
        let silent: Arc<dyn Device> = pipe.clone();
        let well = files(&dir, 1, EngineChoice::Auto).remove(0);
        well.write_at(0, &[&[7; 4096]]).unwrap();
        let answers = engine.read(vec![own(&well, 0), own(&silent, 0), own(&well, SIZE)], Some(SHORT));
        assert!(is_read(&answers[0], 7) && matches!(answers[1], Answer::Late), "{answers:?}");
        assert!(matches!(answers[2], Answer::Failed(_)), "{answers:?}");
        assert!(silent.stalled_ns().is_some(), "it is seen to be under way");
        // The memory it may still write into is nobody else's.
        let buffers: Vec<AlignedBuf> = (0..64).map(|_| AlignedBuf::zeroed(4096)).collect();
        silent.write_at(0, &[&[9; 4096]]).unwrap();
        while silent.stalled_ns().is_some() {
            std::thread::yield_now();
        }
        assert!(buffers.iter().all(|buf| **buf == [0; 4096]));
        // It was the one left behind that took the answer, and the device goes with it.
        while Arc::strong_count(&pipe) > 2 {
            std::thread::yield_now();
        }
        silent.write_at(0, &[&[5; 4096]]).unwrap();
        assert!(is_read(&engine.read(vec![own(&silent, 0)], Some(LONG))[0], 5));
    }
}

#[test]
fn choices_have_names_and_every_choice_gives_an_engine() {
    for (name, choice) in EngineChoice::NAMES {
        assert_eq!((name.parse::<EngineChoice>().unwrap(), choice.to_string()), (choice, name.to_owned()));
        let (engine, notes) = select(choice);
        assert!(!engine.name().is_empty() && notes.len() <= 1);
    }
    assert!("floppy".parse::<EngineChoice>().unwrap_err().to_string().contains("uring"));
}

/// A filter on this thread alone refuses io_uring and process_vm_readv, as sandboxes do.
#[test]
fn where_the_kernel_refuses_threads_take_over_and_it_is_said() {
    std::thread::spawn(|| {
        if let Err(error) = refuse(&[libc::SYS_io_uring_setup, libc::SYS_process_vm_readv]) {
            return eprintln!("SKIPPED: no seccomp filter here: {error}");
        }
        for choice in [EngineChoice::Auto, EngineChoice::Uring, EngineChoice::Mmap] {
            let (engine, notes) = select(choice);
            assert_eq!((engine.name(), notes.len()), ("threads", 1), "{choice}");
            assert!(notes[0].contains("using threads"), "{notes:?}");
        }
    })
    .join()
    .unwrap();
}

/// Makes these system calls fail with EPERM in the calling thread.
fn refuse(calls: &[i64]) -> std::io::Result<()> {
    let statement = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in calls {
        program.push(statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32));
        program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the filter outlives the call, which copies it; both calls affect this thread only.
    let refused = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
            || libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) != 0
    };
    if refused { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
