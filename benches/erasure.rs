//! Speed of the erasure code on one core: every kernel of this CPU against `reed-solomon-erasure`, in one run.
//! Run with `cargo bench --bench erasure`; `benches/README.md` says how to read the table.

use std::hint::black_box;
use std::time::{Duration, Instant};

use argosfs::base::{Entropy, Prng};
use argosfs::erasure::kernel::Kernel;
use argosfs::erasure::{Codec, Geometry};
use reed_solomon_erasure::galois_8::ReedSolomon;

/// Contenders take turns this often; the best turn counts, since others share the machine.
const ROUNDS: usize = 15;
const TURN: Duration = Duration::from_millis(15);

fn main() {
    // Without `--bench` this is a test run over all targets, which must not take long.
    if !std::env::args().any(|argument| argument == "--bench") {
        return println!("benchmark: run it with `cargo bench --bench erasure`");
    }
    println!("GB/s of data per core (times the speed of reed-solomon-erasure)\n");
    println!("| geometry | shard | kernel | encode | rebuild 1 | rebuild 2 |\n|---|---|---|---|---|---|");
    for (k, m) in [(4, 2), (10, 4)] {
        for shard in [512 << 10, 64 << 10, 4 << 10] {
            table(Geometry::new(k, m).expect("a valid geometry"), shard);
        }
    }
}

/// The rows of one geometry and shard size.
fn table(geometry: Geometry, shard: usize) {
    let mut contenders: Vec<(&str, Box<dyn Contender>)> = Kernel::available()
        .map(|kernel| (kernel.name(), Box::new(Ours(Codec::with_kernel(geometry, kernel))) as Box<dyn Contender>))
        .collect();
    let (k, m) = (usize::from(geometry.k()), usize::from(geometry.m()));
    let oracle = ReedSolomon::new(k, m).expect("a valid geometry");
    contenders.push(("reed-solomon-erasure", Box::new(oracle)));

    let mut arena = Arena::new(k, m, shard);
    let mut best = vec![[Duration::MAX; 3]; contenders.len()];
    for _ in 0..ROUNDS {
        for ((_, contender), best) in contenders.iter().zip(&mut best) {
            best[0] = best[0].min(contender.encode(&mut arena));
            best[1] = best[1].min(contender.rebuild(&mut arena, 1));
            best[2] = best[2].min(contender.rebuild(&mut arena, 2));
            arena.check();
        }
    }
    let oracle = best[best.len() - 1];
    for ((name, _), times) in contenders.iter().zip(&best) {
        let cells: Vec<String> = times
            .iter()
            .zip(&oracle)
            .map(|(time, oracle)| {
                let rate = (k * shard) as f64 / time.as_nanos() as f64;
                format!("{rate:.1} ({:.1}x)", oracle.as_nanos() as f64 / time.as_nanos() as f64)
            })
            .collect();
        println!("| {geometry} | {} KiB | {name} | {} |", shard >> 10, cells.join(" | "));
    }
}

/// Mean time of one call over one turn.
fn time(mut call: impl FnMut()) -> Duration {
    let mut calls = 0;
    let start = Instant::now();
    loop {
        for _ in 0..8 {
            call();
        }
        calls += 8;
        let elapsed = start.elapsed();
        if elapsed >= TURN {
            return elapsed / calls;
        }
    }
}

/// A stripe in memory, each shard on a page boundary as I/O buffers are, and room for what is rebuilt.
struct Arena {
    memory: Vec<u8>,
    start: usize,
    k: usize,
    m: usize,
    shard: usize,
    original: Vec<u8>,
}

/// The shards of an [`Arena`].
struct Parts<'a> {
    data: Vec<&'a [u8]>,
    parity: Vec<&'a mut [u8]>,
    spare: Vec<&'a mut [u8]>,
}

impl Arena {
    fn new(k: usize, m: usize, shard: usize) -> Arena {
        let mut memory = vec![0; (k + m + 2) * shard + 4096];
        Prng::new(1).fill(&mut memory);
        let start = memory.as_ptr().align_offset(4096);
        let original = memory[start..start + k * shard].to_vec();
        Arena { memory, start, k, m, shard, original }
    }

    fn parts(&mut self) -> Parts<'_> {
        let (data, rest) = self.memory[self.start..].split_at_mut(self.k * self.shard);
        let (parity, spare) = rest.split_at_mut(self.m * self.shard);
        Parts {
            data: data.chunks_exact(self.shard).collect(),
            parity: parity.chunks_exact_mut(self.shard).collect(),
            spare: spare.chunks_exact_mut(self.shard).take(2).collect(),
        }
    }

    /// Every contender must have rebuilt what was there.
    fn check(&mut self) {
        let original = std::mem::take(&mut self.original);
        let shard = self.shard;
        let Parts { data, spare, .. } = self.parts();
        assert!(data.concat() == original, "data changed");
        assert!(spare[0] == &original[..shard] && spare[1] == &original[shard..2 * shard], "rebuilt wrongly");
        spare.into_iter().for_each(|shard| shard.fill(0));
        self.original = original;
    }
}

/// Both return the mean time of one call, without setting up the slices.
trait Contender {
    /// Computes the parity.
    fn encode(&self, arena: &mut Arena) -> Duration;
    /// Computes the first `lost` data shards into the spare ones from the rest of the stripe.
    fn rebuild(&self, arena: &mut Arena, lost: usize) -> Duration;
}

struct Ours(Codec);

impl Contender for Ours {
    fn encode(&self, arena: &mut Arena) -> Duration {
        let Parts { data, mut parity, .. } = arena.parts();
        time(|| self.0.encode(black_box(&data), black_box(&mut parity)).expect("shapes fit"))
    }

    fn rebuild(&self, arena: &mut Arena, lost: usize) -> Duration {
        let Parts { data, parity, spare } = arena.parts();
        let parity = parity.iter().map(|shard| &**shard);
        let all = data.iter().copied().chain(parity);
        let present: Vec<(u8, &[u8])> = (0..).zip(all).skip(lost).collect();
        let mut wanted: Vec<(u8, &mut [u8])> = (0..).zip(spare).take(lost).collect();
        time(|| self.0.reconstruct(black_box(&present), black_box(&mut wanted)).expect("enough shards"))
    }
}

impl Contender for ReedSolomon {
    fn encode(&self, arena: &mut Arena) -> Duration {
        let Parts { data, mut parity, .. } = arena.parts();
        time(|| self.encode_sep(black_box(&data), black_box(&mut parity)).expect("shapes fit"))
    }

    fn rebuild(&self, arena: &mut Arena, lost: usize) -> Duration {
        // It wants the whole stripe mutable, in one order; the spare shards stand in for the lost ones.
        let (k, m, shard) = (arena.k, arena.m, arena.shard);
        let (stripe, spare) = arena.memory[arena.start..].split_at_mut((k + m) * shard);
        let present = stripe.chunks_exact_mut(shard).skip(lost).map(|shard| (shard, true));
        let mut shards: Vec<(&mut [u8], bool)> =
            spare.chunks_exact_mut(shard).take(lost).map(|shard| (shard, false)).chain(present).collect();
        time(|| {
            shards.iter_mut().take(lost).for_each(|shard| shard.1 = false);
            self.reconstruct_data(black_box(&mut shards)).expect("enough shards");
        })
    }
}
