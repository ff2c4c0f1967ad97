//! What a stripe of shard requests costs in CPU time through each engine, in one run.
//! Run with `cargo bench --bench device [-- DIR]`; `benches/README.md` says how to read the table.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use argosfs::base::Bytes;
use argosfs::device::engine::{MmapEngine, ThreadsEngine, UringEngine};
use argosfs::device::file::{self, OpenOptions};
use argosfs::device::{AlignedBuf, Device, Engine, EngineChoice, InlineEngine, Op, Request};

/// Shards of a 4+2 stripe, each on a file of its own.
const WIDTH: usize = 6;
const SHARD: usize = 256 << 10;
const FILE: u64 = 64 << 20;
/// Contenders take turns this often; the median turn counts.
const ROUNDS: usize = 15;
const STRIPES_PER_TURN: usize = 64;

fn main() {
    // Without `--bench` this is a test run over all targets, which must not take long.
    let mut arguments = std::env::args().skip(1).collect::<Vec<_>>();
    if !arguments.iter().any(|argument| argument == "--bench") {
        return println!("benchmark: run it with `cargo bench --bench device`");
    }
    arguments.retain(|argument| !argument.starts_with("--"));
    let parent = arguments.first().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = parent.join(format!("argosfs-bench-device-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory for the files");
    run(&dir);
    std::fs::remove_dir_all(&dir).expect("the files go away");
}

fn run(dir: &Path) {
    let direct = members(dir, "direct", EngineChoice::Auto);
    let cached = members(dir, "cached", EngineChoice::Buffered);
    println!("CPU time of one stripe of {WIDTH} x {} KiB, user and kernel", SHARD >> 10);
    for (title, write) in [("write", true), ("read", false)] {
        let mut contenders = contenders(&direct, &cached, write);
        let mut cpu = vec![Vec::new(); contenders.len()];
        let mut wall = vec![Vec::new(); contenders.len()];
        for _ in 0..ROUNDS {
            for (at, contender) in contenders.iter_mut().enumerate() {
                let (began, before) = (Instant::now(), cpu_time());
                contender.turn(write);
                cpu[at].push((cpu_time() - before) / STRIPES_PER_TURN as u32);
                wall[at].push(began.elapsed() / STRIPES_PER_TURN as u32);
            }
        }
        println!("\n| {title} | CPU us per stripe | CPU, of inline | time, of inline |\n|---|---|---|---|");
        let (cpu, wall): (Vec<_>, Vec<_>) = cpu.into_iter().map(median).zip(wall.into_iter().map(median)).unzip();
        for (at, contender) in contenders.iter().enumerate() {
            let of = |all: &[Duration]| all[at].as_secs_f64() / all[0].as_secs_f64();
            let name = contender.name;
            println!("| {name} | {} | {:.2} | {:.2} |", cpu[at].as_micros(), of(&cpu), of(&wall));
        }
    }
}

/// Files whose blocks are all allocated, so that only the transfers are measured.
fn members(dir: &Path, name: &str, engine: EngineChoice) -> Vec<Arc<dyn Device>> {
    let options = OpenOptions { create_size: Some(Bytes(FILE)), engine, ..OpenOptions::default() };
    let fill = AlignedBuf::from(&vec![1; 1 << 20][..]);
    (0..WIDTH)
        .map(|at| {
            let device = file::open(&dir.join(format!("{name}{at}")), &options).expect("a file of 64 MiB");
            (0..FILE).step_by(fill.len()).for_each(|offset| device.write_at(offset, &[&fill]).expect("room for it"));
            device.flush().expect("the fill is written");
            device.notes().iter().for_each(|note| println!("note: {note}"));
            device
        })
        .collect()
}

struct Contender {
    name: &'static str,
    engine: Arc<dyn Engine>,
    devices: Vec<Arc<dyn Device>>,
    /// Stripes in one batch.
    together: usize,
    shards: Vec<AlignedBuf>,
}

fn contenders(direct: &[Arc<dyn Device>], cached: &[Arc<dyn Device>], write: bool) -> Vec<Contender> {
    let threads: Arc<dyn Engine> = Arc::new(ThreadsEngine::new());
    let contender = |name, engine: Arc<dyn Engine>, devices: &[Arc<dyn Device>], together: usize| {
        let shards = (0..together * WIDTH).map(|_| AlignedBuf::zeroed(SHARD)).collect();
        Contender { name, engine, devices: devices.to_vec(), together, shards }
    };
    let mut all = vec![
        contender("inline", Arc::new(InlineEngine), direct, 1),
        contender("threads", threads.clone(), direct, 1),
        contender("page cache, threads", threads, cached, 1),
    ];
    match (UringEngine::with_registration(false), UringEngine::with_registration(true)) {
        (Ok(plain), Ok(registered)) => {
            let registered: Arc<dyn Engine> = Arc::new(registered);
            all.push(contender("uring, foreign buffers", Arc::new(plain), direct, 1));
            all.push(contender("uring", registered.clone(), direct, 1));
            all.push(contender("uring, four stripes in flight", registered, direct, 4));
        }
        (Err(why), _) | (_, Err(why)) => println!("no io_uring here: {why}"),
    }
    match MmapEngine::new() {
        Ok(engine) if !write => all.push(contender("page cache, mmap", Arc::new(engine), cached, 1)),
        Ok(_) => {}
        Err(why) => println!("no staged reads here: {why}"),
    }
    all
}

impl Contender {
    /// Runs one turn's stripes.
    fn turn(&mut self, write: bool) {
        for step in (0..STRIPES_PER_TURN).step_by(self.together) {
            let mut batch: Vec<Request<'_>> = Vec::with_capacity(self.shards.len());
            for (at, buf) in self.shards.iter_mut().enumerate() {
                let offset = ((step + at / WIDTH) * SHARD) as u64 % FILE;
                let op = if write { Op::Write { offset, bufs: vec![&buf[..]] } } else { Op::Read { offset, buf } };
                batch.push(Request::new(&*self.devices[at % WIDTH], op));
            }
            self.engine.run(&mut batch);
            batch.into_iter().for_each(|request| request.result.expect("a healthy device"));
        }
    }
}

/// CPU time of the process so far, kernel workers on its behalf included.
fn cpu_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(spent.tv_sec as u64, spent.tv_nsec as u32)
}

fn median(mut turns: Vec<Duration>) -> Duration {
    turns.sort_unstable();
    turns[turns.len() / 2]
}
