use std::collections::HashSet;

use super::*;
use crate::base::{Entropy, Incarnation, Prng, TxnId};
use crate::device::InlineEngine;
use crate::device::engine::ThreadsEngine;
use crate::device::sim::{Fault as SimFault, On, SimWorld};
use crate::format::record::Row;
use crate::format::rows::StripeState;

/// Simulated devices, some of which are away or to be avoided.
struct Bench {
    engine: Box<dyn Engine>,
    world: SimWorld,
    away: HashSet<u16>,
    avoided: HashSet<u16>,
}

impl Bench {
    fn new(seed: u64, devices: usize) -> Bench {
        let world = SimWorld::new(seed, devices, 32 << 20);
        Bench { engine: Box::new(InlineEngine), world, away: HashSet::new(), avoided: HashSet::new() }
    }

    /// Writes a stripe of random payload, shard `i` to device `i`; returns its row and payload.
    fn write(&self, prng: &mut Prng, geometry: Geometry, shard_blocks: u32, block: u64) -> (StripeRow, Vec<u8>) {
        let mut payload = vec![0; usize::from(geometry.k()) * shard_blocks as usize * BLOCK_SIZE as usize];
        prng.fill(&mut payload);
        let codec = Codec::new(geometry);
        let image = StripeImage::encode(&codec, shard_blocks, |out| {
            let pieces = payload.chunks_exact(shard_blocks as usize * BLOCK_SIZE as usize);
            out.iter_mut().zip(pieces).for_each(|(shard, piece)| shard.copy_from_slice(piece));
        })
        .unwrap();
        let shards: Vec<ShardWrite<'_>> = (0..usize::from(geometry.shards()))
            .map(|shard| ShardWrite {
                device: self.world.device(shard),
                block: BlockNo(block),
                bytes: image.shard(shard),
            })
            .collect();
        assert!(write_shards(&InlineEngine, &shards).iter().all(Result::is_ok));
        let placement = |shard| Placement { device: DeviceId(shard), block: BlockNo(block) };
        let row = StripeRow {
            k: geometry.k(),
            m: geometry.m(),
            shard_blocks,
            granule_shift: image.granule_shift,
            state: StripeState::Whole,
            birth: TxnId(1),
            incarnation: Incarnation(1),
            payload_bytes: payload.len() as u32,
            placements: (0..u16::from(geometry.shards())).map(placement).collect(),
            sums: image.sums.clone(),
        };
        (row, payload)
    }

    /// Makes a shard unusable in one of several ways.
    fn spoil(&mut self, prng: &mut Prng, row: &mut StripeRow, shard: usize) {
        let start = payload_offset(row.placements[shard], &(0..0));
        let end = start + shard_bytes(row) as u64;
        match prng.below(5) {
            0 => drop(self.away.insert(shard as u16)),
            1 => row.placements[shard] = Placement::NONE,
            2 => self.world.corrupt(shard, start..end),
            3 => self.world.zero(shard, start..end),
            _ => self.world.fault(shard, SimFault::Fail { on: On::Read, nth: 0, sticky: true }),
        }
    }
}

impl Media for Bench {
    fn device(&self, id: DeviceId) -> Option<Arc<dyn Device>> {
        (!self.away.contains(&id.0)).then(|| self.world.device(usize::from(id.0)))
    }

    fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    fn avoid(&self, id: DeviceId) -> bool {
        let stalled = self.world.device(usize::from(id.0)).stalled_ns().is_some();
        self.avoided.contains(&id.0) || stalled
    }
}

fn read(bench: &Bench, row: &StripeRow, start: usize, out: &mut [u8]) -> Result<Vec<BadShard>> {
    read_payloads(bench, &mut [PayloadRead { id: StripeId(5), row, start: start as u32, out }])
}

#[test]
fn any_m_shards_may_be_lost_or_lie_and_no_wrong_byte_is_returned() {
    for seed in 0..50 {
        let mut prng = Prng::new(seed);
        let geometry = Geometry::new(1 + prng.below(6) as u8, prng.below(4) as u8).unwrap();
        let shards = usize::from(geometry.shards());
        let mut bench = Bench::new(seed, shards);
        let mut stripes: Vec<(StripeRow, Vec<u8>)> = (0..2)
            .map(|at| {
                let shard_blocks = 1 + prng.below(100) as u32;
                bench.write(&mut prng, geometry, shard_blocks, 256 + at * 300)
            })
            .collect();
        let too_many = prng.chance(1, 5);
        let losses =
            prng.below(u64::from(geometry.m()) + 1) as usize + usize::from(too_many) * usize::from(geometry.m());
        let mut lost = HashSet::new();
        while lost.len() < losses.min(shards) {
            lost.insert(prng.below(shards as u64) as usize);
        }
        for shard in &lost {
            for (row, _) in &mut stripes {
                bench.spoil(&mut prng, row, *shard);
            }
        }
        if prng.chance(1, 3) {
            bench.avoided.insert(prng.below(shards as u64) as u16);
        }
        for _ in 0..12 {
            // Several reads in one batch, of both stripes.
            let ranges: Vec<(usize, Range<usize>)> = (0..3)
                .map(|_| {
                    let stripe = prng.below(2) as usize;
                    let start = prng.below(stripes[stripe].1.len() as u64) as usize;
                    let most = (stripes[stripe].1.len() - start) as u64;
                    (stripe, start..start + 1 + prng.below(most) as usize)
                })
                .collect();
            let mut outs: Vec<Vec<u8>> = ranges.iter().map(|(_, range)| vec![0xaa; range.len()]).collect();
            let mut reads: Vec<PayloadRead<'_>> = ranges
                .iter()
                .zip(&mut outs)
                .map(|((stripe, range), out)| PayloadRead {
                    id: StripeId(*stripe as u64),
                    row: &stripes[*stripe].0,
                    start: range.start as u32,
                    out,
                })
                .collect();
            let outcome = read_payloads(&bench, &mut reads);
            match outcome {
                Ok(bad) => {
                    for ((stripe, range), out) in ranges.iter().zip(&outs) {
                        assert!(stripes[*stripe].1[range.clone()] == out[..], "seed {seed}: wrong bytes");
                    }
                    for shard in &bad {
                        let fault_known = lost.contains(&usize::from(shard.index));
                        assert!(fault_known || shard.fault == Fault::Avoided, "seed {seed}: {shard:?} is good");
                    }
                    // Every lost shard that was asked for is reported.
                    for (stripe, range) in &ranges {
                        let bytes = shard_bytes(&stripes[*stripe].0);
                        for shard in range.start / bytes..=(range.end - 1) / bytes {
                            let reported = bad
                                .iter()
                                .any(|b| b.stripe == StripeId(*stripe as u64) && usize::from(b.index) == shard);
                            assert!(reported || !lost.contains(&shard), "seed {seed}: shard {shard} is not reported");
                        }
                    }
                }
                Err(error) => {
                    assert!(lost.len() > usize::from(geometry.m()), "seed {seed}: {error}");
                }
            }
        }
    }
}

#[test]
fn healthy_reads_touch_only_the_granules_they_need() {
    let mut prng = Prng::new(1);
    let bench = Bench::new(1, 6);
    let (row, payload) = bench.write(&mut prng, Geometry::new(4, 2).unwrap(), 128, 256);
    let granule = granule_bytes(&row);
    let before: Vec<_> = (0..6).map(|device| bench.world.counters(device)).collect();
    let mut out = vec![0; granule + 2];
    assert_eq!(read(&bench, &row, shard_bytes(&row) + granule - 1, &mut out).unwrap(), []);
    assert_eq!(out, payload[shard_bytes(&row) + granule - 1..][..granule + 2]);
    for (device, before) in before.iter().enumerate() {
        let after = bench.world.counters(device);
        let expected = if device == 1 { (1, 3 * granule as u64) } else { (0, 0) };
        assert_eq!((after.reads - before.reads, after.bytes_read - before.bytes_read), expected, "device {device}");
    }
}

#[test]
fn a_degraded_read_of_a_whole_stripe_reads_k_shards_once() {
    let mut prng = Prng::new(2);
    let mut bench = Bench::new(2, 6);
    let (row, payload) = bench.write(&mut prng, Geometry::new(4, 2).unwrap(), 128, 256);
    bench.away.extend([0, 2]);
    let mut out = vec![0; payload.len()];
    let bad = read(&bench, &row, 0, &mut out).unwrap();
    assert!(out == payload);
    let missing = |index| BadShard::of(StripeId(5), &row, index, Fault::Missing);
    assert_eq!(bad, [missing(0), missing(2)]);
    for device in [1, 3, 4, 5] {
        assert_eq!(bench.world.counters(device).reads, 1, "device {device}");
        assert_eq!(bench.world.counters(device).bytes_read, shard_bytes(&row) as u64);
    }
}

#[test]
fn slow_devices_are_read_around_until_there_is_no_other_way() {
    let mut prng = Prng::new(3);
    let mut bench = Bench::new(3, 3);
    let (row, payload) = bench.write(&mut prng, Geometry::new(2, 1).unwrap(), 16, 256);
    let mut out = vec![0; payload.len()];
    bench.avoided.insert(1);
    let bad = read(&bench, &row, 0, &mut out).unwrap();
    assert!(out == payload);
    assert_eq!(bad, [BadShard::of(StripeId(5), &row, 1, Fault::Avoided)]);
    assert_eq!(bench.world.counters(1).reads, 0);
    bench.away.insert(0);
    out.fill(0);
    read(&bench, &row, 0, &mut out).unwrap();
    assert!(out == payload);
    assert!(bench.world.counters(1).reads > 0);
}

#[test]
fn each_shard_that_could_not_be_written_is_told() {
    let bench = Bench::new(4, 4);
    bench.world.fault(2, SimFault::Gone);
    let bytes = vec![7; 8192];
    let shards: Vec<ShardWrite<'_>> = (0..4)
        .map(|shard| ShardWrite { device: bench.world.device(shard), block: BlockNo(300), bytes: &bytes })
        .collect();
    let told: Vec<bool> = write_shards(&InlineEngine, &shards).iter().map(Result::is_ok).collect();
    assert_eq!(told, [true, true, false, true]);
}

#[test]
fn verification_and_rebuilding_find_exactly_what_is_wrong() {
    let mut prng = Prng::new(5);
    let mut bench = Bench::new(5, 5);
    let (row, _) = bench.write(&mut prng, Geometry::new(3, 2).unwrap(), 64, 256);
    assert_eq!(verify_stripe(&bench, StripeId(5), &row), []);
    let good = read_shard(&bench, &row, 1).unwrap();
    let at = payload_offset(row.placements[1], &(0..0)) + 77_777;
    bench.world.flip_bits(1, at..at + 1, 1);
    bench.away.insert(4);
    let bad: Vec<_> = verify_stripe(&bench, StripeId(5), &row).iter().map(|b| (b.index, b.fault)).collect();
    assert!(bad.len() == 2 && bad.contains(&(1, Fault::Checksum)) && bad.contains(&(4, Fault::Missing)), "{bad:?}");
    assert!(read_shard(&bench, &row, 1).is_none());
    let rebuilt = rebuild_shards(&bench, StripeId(5), &row, &[1, 4]).unwrap();
    assert!(rebuilt[0][..] == good[..]);
    bench.away.insert(0);
    assert!(matches!(rebuild_shards(&bench, StripeId(5), &row, &[4]), Err(Error::Corrupt(_))));
}

/// Every shard is bad somewhere, but nowhere are more than m of them.
#[test]
fn shards_that_are_bad_in_different_places_are_rebuilt_from_each_other() {
    for seed in 0..30 {
        let mut prng = Prng::new(seed);
        let geometry = Geometry::new(1 + prng.below(5) as u8, 1 + prng.below(3) as u8).unwrap();
        let shards = usize::from(geometry.shards());
        let bench = Bench::new(seed, shards);
        let shard_blocks = 16 + prng.below(100) as u32;
        let (row, _) = bench.write(&mut prng, geometry, shard_blocks, 256);
        let good: Vec<AlignedBuf> = (0..shards).map(|shard| read_shard(&bench, &row, shard).unwrap()).collect();
        let spoil = |shard: usize, granule: usize| {
            let bytes = byte_range(&row, &(granule..granule + 1));
            let at = payload_offset(row.placements[shard], &bytes);
            bench.world.flip_bits(shard, at..at + bytes.len() as u64, 1);
        };
        (0..shards).for_each(|shard| spoil(shard, shard % row.granules()));
        let bad = verify_stripe(&bench, StripeId(5), &row);
        assert_eq!(bad.len(), shards, "seed {seed}");
        assert!(!is_lost(&bench, StripeId(5), &row, &bad), "seed {seed}");
        let wanted: Vec<usize> = (0..shards).collect();
        let rebuilt = rebuild_shards(&bench, StripeId(5), &row, &wanted).unwrap();
        assert!(rebuilt.iter().zip(&good).all(|(rebuilt, good)| rebuilt[..] == good[..]), "seed {seed}");
        // One place has too few.
        (0..=usize::from(geometry.m())).for_each(|shard| spoil(shard, row.granules() - 1));
        let bad = verify_stripe(&bench, StripeId(5), &row);
        assert!(is_lost(&bench, StripeId(5), &row, &bad), "seed {seed}");
        assert!(matches!(rebuild_shards(&bench, StripeId(5), &row, &wanted), Err(Error::Corrupt(_))), "seed {seed}");
    }
}

#[test]
fn rows_of_usual_stripes_stay_below_a_kilobyte() {
    for shards in 1..=16_usize {
        for shard_blocks in [1, 2, 16, 100, 128, 129, 512, 1024] {
            let granule_shift = granule_shift(shards, shard_blocks);
            let mut row = StripeRow {
                k: shards as u8,
                m: 0,
                shard_blocks,
                granule_shift,
                state: StripeState::Whole,
                birth: TxnId(1),
                incarnation: Incarnation(1),
                payload_bytes: 1,
                placements: vec![Placement::NONE; shards],
                sums: Vec::new(),
            };
            row.sums = vec![0; shards * row.granules()];
            let mut bytes = Vec::new();
            row.encode(&mut bytes);
            assert!(bytes.len() <= 1024, "{shards} shards of {shard_blocks}: {}", bytes.len());
            assert!(row.sums.len() <= crate::format::shard::MAX_SUMS);
            assert!(granule_shift == 0 || shards * row.granules() * 8 > SUMS_BYTES / 2, "coarser than needed");
        }
    }
}

#[test]
fn devices_that_go_silent_are_read_around_and_with_too_many_waited_for() {
    for seed in 0..8 {
        let mut prng = Prng::new(seed);
        let mut bench = Bench::new(seed, 6);
        bench.engine = Box::new(ThreadsEngine::new());
        let (row, payload) = bench.write(&mut prng, Geometry::new(4, 2).unwrap(), 3, 256);
        let first = prng.below(6) as usize;
        let silent = [first, (first + 1 + prng.below(5) as usize) % 6];
        silent.iter().for_each(|device| bench.world.fault(*device, SimFault::Hang { on: On::Read }));
        // Nobody knows yet that they are silent; then it is known.
        for _ in 0..2 {
            let mut out = vec![0; payload.len()];
            let bad = read(&bench, &row, 0, &mut out).unwrap();
            assert!(out == payload, "seed {seed}: {silent:?}");
            assert!(bad.iter().all(|bad| bad.fault == Fault::Avoided && silent.contains(&usize::from(bad.device.0))));
        }
        // One more is away: somebody has to be waited for, and then everything is there.
        let gone = (0..6).find(|device| !silent.contains(device)).unwrap();
        bench.away.insert(gone as u16);
        let hanging = || bench.world.hanging(silent[0]) + bench.world.hanging(silent[1]);
        let before = hanging();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut out = vec![0; payload.len()];
                read(&bench, &row, 0, &mut out).map(|_| out)
            });
            while hanging() == before && !reader.is_finished() {
                std::thread::yield_now();
            }
            assert!(!reader.is_finished(), "seed {seed}: too few answered");
            silent.iter().for_each(|device| bench.world.release(*device));
            assert!(reader.join().unwrap().unwrap() == payload, "seed {seed}");
        });
    }
}
