use std::collections::HashMap;

use super::*;
use crate::base::Prng;

/// The rows of `groups`, as the store would keep them.
#[derive(Default)]
struct Rows(HashMap<GroupKey2, Vec<u8>>);
type GroupKey2 = (u16, u32, u8);

impl Rows {
    fn mark(&mut self, run: Run, used: bool) {
        for at in run.block.0..run.end() {
            let row = self.0.entry((run.device.0, (at / u64::from(PART)) as u32, 0)).or_insert_with(|| vec![0; 1024]);
            let at = (at % u64::from(PART)) as usize;
            assert_eq!(row[at / 8] >> (at % 8) & 1 == 1, !used, "{run:?}");
            row[at / 8] ^= 1 << (at % 8);
        }
    }

    fn load(&self) -> impl FnMut(&GroupKey) -> Result<Option<Vec<u8>>> {
        |key| Ok(self.0.get(&(key.device.0, key.group, key.part)).cloned())
    }
}

const DEVICE: DeviceId = DeviceId(2);

fn layout(blocks: u64) -> GroupLayout {
    GroupLayout { start: 256, blocks, group_blocks: 1024 }
}

fn allocator(blocks: u64) -> Allocator {
    let mut allocator = Allocator::default();
    allocator.add_device(DEVICE, layout(blocks), 0);
    allocator
}

#[test]
fn an_empty_device_fills_in_order_to_the_last_block() {
    let rows = Rows::default();
    let mut allocator = allocator(40_000);
    let mut next = 256;
    while let Some(run) = allocator.reserve(DEVICE, 129, &mut rows.load()).unwrap() {
        assert_eq!(run.block.0, next);
        next += 129;
    }
    let left = allocator.free_blocks(DEVICE);
    assert_eq!(left, 40_000 % 129);
    assert_eq!(u64::from(allocator.largest_run(DEVICE, 500, &mut rows.load()).unwrap()), left);
    assert!(allocator.reserve(DEVICE, left as u32, &mut rows.load()).unwrap().is_some());
    assert_eq!(allocator.free_blocks(DEVICE), 0);
    assert_eq!(allocator.largest_run(DEVICE, 500, &mut rows.load()).unwrap(), 0);
}

/// Everything a store does, at random, against a plain array; evictions of bitmaps happen all the time.
#[test]
fn no_block_is_ever_given_out_twice_and_free_space_is_exact() {
    #[derive(Clone, Copy, PartialEq, Debug)]
    enum Block {
        Free,
        Reserved,
        Committed,
        Deferred,
        Claimed,
    }
    for seed in 0..25 {
        let mut prng = Prng::new(seed);
        let blocks = 20_000 + prng.below(90_000);
        let mut rows = Rows::default();
        let mut allocator = allocator(blocks);
        let mut plain = vec![Block::Free; (256 + blocks) as usize];
        plain[..256].fill(Block::Claimed);
        let (mut reserved, mut committed, mut deferred) = (Vec::new(), Vec::new(), Vec::<(u64, Run)>::new());
        let mut claims = Vec::new();
        let mut txn = 1;
        fn set(plain: &mut [Block], run: Run, from: Block, to: Block) {
            for block in &mut plain[run.block.0 as usize..run.end() as usize] {
                assert_eq!(*block, from, "{run:?}");
                *block = to;
            }
        }
        fn any(runs: &mut Vec<Run>, prng: &mut Prng) -> Option<Run> {
            (!runs.is_empty()).then(|| runs.swap_remove(prng.below(runs.len() as u64) as usize))
        }
        for step in 0..1_500 {
            if prng.chance(1, 20) {
                let space = allocator.devices.get_mut(&DEVICE).unwrap();
                space.bitmaps.clear();
            }
            match prng.below(18) {
                0..=6 => {
                    let most = if prng.chance(1, 10) { 3_000 } else { 200 };
                    let count = 1 + prng.below(most) as u32;
                    match allocator.reserve(DEVICE, count, &mut rows.load()).unwrap() {
                        Some(run) => {
                            set(&mut plain, run, Block::Free, Block::Reserved);
                            reserved.push(run);
                        }
                        None => {
                            let longest =
                                plain.split(|b| *b != Block::Free).map(<[Block]>::len).max().unwrap_or_default() as u32;
                            assert!(longest < count, "seed {seed}: a run of {longest} was not found for {count}");
                            let largest = allocator.largest_run(DEVICE, u32::MAX, &mut rows.load()).unwrap();
                            assert_eq!(largest, longest, "seed {seed}");
                        }
                    }
                }
                7..=9 => {
                    if let Some(run) = any(&mut reserved, &mut prng) {
                        rows.mark(run, true);
                        allocator.commit(run);
                        set(&mut plain, run, Block::Reserved, Block::Committed);
                        committed.push(run);
                    }
                }
                10 => {
                    if let Some(run) = any(&mut reserved, &mut prng) {
                        allocator.release(run);
                        set(&mut plain, run, Block::Reserved, Block::Free);
                    }
                }
                11..=12 => {
                    if let Some(run) = any(&mut committed, &mut prng) {
                        txn += 1;
                        allocator.free_later(TxnId(txn), run);
                        if prng.chance(1, 8) {
                            allocator.undo_free(TxnId(txn), run);
                            committed.push(run);
                        } else {
                            rows.mark(run, false);
                            set(&mut plain, run, Block::Committed, Block::Deferred);
                            deferred.push((txn, run));
                        }
                    }
                }
                13 => {
                    let through = txn.saturating_sub(prng.below(4));
                    let mut freed = allocator.reclaim_through(TxnId(through));
                    let (now, later) = deferred.drain(..).partition(|(txn, _)| *txn <= through);
                    deferred = later;
                    let mut expected: Vec<Run> =
                        Vec::from_iter(now).into_iter().map(|(_, run): (u64, Run)| run).collect();
                    expected.sort();
                    freed.sort();
                    assert_eq!(freed, expected);
                    freed.iter().for_each(|run| set(&mut plain, *run, Block::Deferred, Block::Free));
                }
                14 => {
                    let count = 1 + prng.below(3_000) as u32;
                    if let Some(run) = allocator.claim_groups(DEVICE, count, &mut rows.load()).unwrap() {
                        assert!(run.blocks >= count && (run.block.0 - 256) % 1024 == 0 && run.blocks % 1024 == 0);
                        set(&mut plain, run, Block::Free, Block::Claimed);
                        claims.push(run);
                    }
                }
                15 => {
                    let from = prng.below(256 + blocks);
                    let blocks = (1 + prng.below(400)).min(256 + blocks - from) as u32;
                    let run = Run { device: DEVICE, block: BlockNo(from), blocks };
                    let free = plain[run.block.0 as usize..run.end() as usize].iter().all(|b| *b == Block::Free);
                    assert_eq!(allocator.hold(run, &mut rows.load()).unwrap(), free, "seed {seed}: {run:?}");
                    if free {
                        set(&mut plain, run, Block::Free, Block::Reserved);
                        reserved.push(run);
                    }
                }
                16 => {
                    let from = prng.below(256 + blocks);
                    let next = (from..256 + blocks).find(|at| plain[*at as usize] == Block::Free);
                    let run = allocator.hold_next(DEVICE, BlockNo(from), 100, &mut rows.load()).unwrap();
                    assert_eq!(run.map(|run| run.block.0), next, "seed {seed}");
                    if let Some(run) = run {
                        assert!((1..=100).contains(&run.blocks));
                        set(&mut plain, run, Block::Free, Block::Reserved);
                        reserved.push(run);
                    }
                }
                _ => {
                    if let Some(run) = any(&mut claims, &mut prng) {
                        allocator.unclaim(run);
                        set(&mut plain, run, Block::Claimed, Block::Free);
                    }
                }
            }
            if step % 50 > 0 {
                continue;
            }
            let free = plain.iter().filter(|block| **block == Block::Free).count() as u64;
            assert_eq!(allocator.free_blocks(DEVICE), free, "seed {seed}");
        }
        // What is stored says the same to an allocator that comes anew.
        let used = committed.iter().map(|run| u64::from(run.blocks)).sum();
        let mut fresh = Allocator::default();
        fresh.add_device(DEVICE, layout(blocks), used);
        claims.iter().for_each(|run| fresh.claim(*run));
        let free = plain.iter().filter(|b| !matches!(b, Block::Committed | Block::Claimed)).count() as u64;
        assert_eq!(fresh.free_blocks(DEVICE), free);
        while let Some(run) = fresh.reserve(DEVICE, 1 + prng.below(4) as u32, &mut rows.load()).unwrap() {
            for at in run.block.0..run.end() {
                assert!(!matches!(plain[at as usize], Block::Committed | Block::Claimed), "seed {seed}: {run:?}");
            }
        }
    }
}

#[test]
fn large_runs_are_filled_in_order_and_small_holes_with_what_fits() {
    let mut rows = Rows::default();
    let mut allocator = allocator(30_000);
    let mut runs = Vec::new();
    for _ in 0..100 {
        runs.push(allocator.reserve(DEVICE, 100, &mut rows.load()).unwrap().unwrap());
    }
    for run in &runs {
        rows.mark(*run, true);
        allocator.commit(*run);
    }
    // A hole of 100 blocks, and one of 200.
    for run in [runs[10], runs[20], runs[21]] {
        allocator.free_later(TxnId(5), run);
        rows.mark(run, false);
    }
    assert_eq!(allocator.deferred_blocks(DEVICE), 300);
    assert_eq!(allocator.free_blocks(DEVICE), 20_000);
    assert_eq!(allocator.reclaim_through(TxnId(4)), []);
    assert_eq!(allocator.reclaim_through(TxnId(5)).len(), 3);
    assert_eq!(allocator.free_blocks(DEVICE), 20_300);
    // The large run goes on.
    let next = allocator.reserve(DEVICE, 90, &mut rows.load()).unwrap().unwrap();
    assert_eq!(next.block, BlockNo(runs[99].block.0 + 100));
    while allocator.free_blocks(DEVICE) > 600 {
        allocator.reserve(DEVICE, 300, &mut rows.load()).unwrap().unwrap();
    }
    // Once no large one is left, the smallest hole that does.
    allocator.set_cursor(DEVICE, BlockNo(256));
    let hole = allocator.reserve(DEVICE, 90, &mut rows.load()).unwrap().unwrap();
    assert_eq!(hole.block, runs[10].block);
}

#[test]
fn a_stripe_gets_all_its_runs_or_none() {
    let rows = Rows::default();
    let mut allocator = allocator(5_000);
    allocator.add_device(DeviceId(3), layout(1_000), 0);
    let ids = [DEVICE, DeviceId(3)];
    let runs = allocator.reserve_all(&ids, 600, &mut rows.load()).unwrap().unwrap();
    assert_eq!(runs.iter().map(|run| run.device).collect::<Vec<_>>(), ids);
    assert_eq!(allocator.reserve_all(&ids, 600, &mut rows.load()).unwrap(), Err(DeviceId(3)));
    assert_eq!(allocator.free_blocks(DEVICE), 4_400);
    // A row that cannot be read gives nothing away either.
    let mut fresh = self::allocator(50_000);
    fresh.add_device(DeviceId(3), layout(1_000), 0);
    let mut broken = |key: &GroupKey| if key.device == DEVICE { Ok(None) } else { Err(crate::base::Error::NoData) };
    assert!(fresh.reserve_all(&ids, 10, &mut broken).is_err());
    assert_eq!(fresh.free_blocks(DEVICE), 50_000);
}

#[test]
fn the_rows_of_a_run() {
    let rows = |block, blocks| {
        let run = Run { device: DEVICE, block: BlockNo(block), blocks };
        run.rows().map(|key| (key.group, key.part)).collect::<Vec<_>>()
    };
    assert_eq!(rows(8_191, 1), [(0, 0)]);
    assert_eq!(rows(8_191, 2), [(0, 0), (1, 0)]);
    assert_eq!(rows(8_192, 16_384), [(1, 0), (2, 0)]);
}
