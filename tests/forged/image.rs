//! The pool that is forged: small, with some of everything in it, left by a crash.

use std::ops::Bound;
use std::sync::Arc;

use argosfs::base::clock::ManualClock;
use argosfs::base::file::{Caller, FallocateMode, FileType, XattrSet};
use argosfs::base::{BLOCK_SIZE, Error, Ino, Prng, Result, StripeId};
use argosfs::device::sim::SimWorld;
use argosfs::device::{Device, InlineEngine};
use argosfs::format::intent::Intent;
use argosfs::format::label::{DefaultGeometry, LABEL_SLOT, Label};
use argosfs::format::rows::{Counter, InodeRow, Placement, StripeRow};
use argosfs::format::table::{Inodes, Intents, Stripes, TABLES};
use argosfs::fs::op::{AclRecipe, Driver, Name, Op, Outcome, Slot, Who, XattrName};
use argosfs::fs::{Fs, Options, RootOwner};
use argosfs::meta::{Reader, Visit};
use argosfs::pool::{FormatOptions, OpenMode, Pool};
use argosfs::store::Store;

use crate::home;

/// A row of a table as it is stored.
pub struct Stored {
    pub table: u8,
    pub key: Vec<u8>,
    pub row: Vec<u8>,
}

/// A shard of a stripe.
pub struct Shard {
    /// The device's index in the world.
    pub device: usize,
    pub stripe: StripeId,
    pub index: usize,
    pub row: StripeRow,
}

impl Shard {
    /// Where its header lies, in bytes.
    pub fn offset(&self) -> u64 {
        self.row.placements[self.index].block.byte_offset()
    }
}

/// A pool, and where everything in it lies.
pub struct Image {
    pub world: SimWorld,
    pub rows: Vec<Stored>,
    pub shards: Vec<Shard>,
    /// Pages of the database that hold anything.
    pub pages: Vec<(u64, Vec<u8>)>,
}

const DEVICES: usize = 3;
const SIZE: u64 = 32 << 20;
const SHARD_BLOCKS: u32 = 8;

/// All devices of a world.
pub fn devices(world: &SimWorld) -> Vec<Arc<dyn Device>> {
    world.devices()
}

/// Opens the pool and its store.
pub fn open(world: &SimWorld, read_only: bool, untrusted: bool) -> Result<(Arc<Pool>, Arc<Store>)> {
    let mode = OpenMode { read_only, ..OpenMode::default() };
    let pool = Arc::new(Pool::open(&devices(world), &mode, Arc::new(InlineEngine), Box::new(Prng::new(5)))?);
    let clock = Arc::new(ManualClock::default());
    let store = match untrusted {
        true => Store::open_untrusted(pool.clone(), clock, 9)?,
        false => Store::open(pool.clone(), clock, 9)?,
    };
    Ok((pool, Arc::new(store)))
}

/// The label of a device as it is now.
pub fn label(world: &SimWorld, device: usize) -> Label {
    let mut slot = vec![0; LABEL_SLOT];
    world.device(device).read_at(0, &mut slot).expect("a simulated device can be read");
    Label::decode(&slot).expect("the image has labels")
}

impl Image {
    /// Makes it.
    pub fn new() -> Image {
        let world = SimWorld::new(7, DEVICES, SIZE);
        fill(&world).expect("the image is made");
        // What is left is what a killed process leaves.
        let world = world.fork();
        let (pool, store) = open(&world.fork(), true, false).expect("the image opens");
        let mut rows = Vec::new();
        let mut shards = Vec::new();
        let name_of = |placement: &Placement| {
            let state = pool.state();
            state.member(placement.device).and_then(|member| member.name().strip_prefix("sim")?.parse::<usize>().ok())
        };
        let read = store.view(|view| {
            for (table, _) in TABLES {
                view.scan_raw(*table, (Bound::Unbounded, Bound::Unbounded), false, &mut |key, row| {
                    rows.push(Stored { table: *table, key: key.to_vec(), row: row.to_vec() });
                    Ok(Visit::Continue(()))
                })?;
            }
            view.scan::<Stripes>((Bound::Unbounded, Bound::Unbounded), |stripe, row| {
                for (index, placement) in row.placements.iter().enumerate() {
                    if let Some(device) = name_of(placement) {
                        shards.push(Shard { device, stripe, index, row: row.clone() });
                    }
                }
                Ok(Visit::Continue(()))
            })
        });
        read.expect("the image can be read");
        let pages = home::pages(&world);
        assert!(rows.len() > 100 && shards.len() > 10 && pages.len() > 20, "there is something in it");
        Image { world, rows, shards, pages }
    }
}

fn fill(world: &SimWorld) -> Result<()> {
    let options = FormatOptions {
        name: "tank".into(),
        geometry: DefaultGeometry { k: 2, m: 1, shard_blocks: SHARD_BLOCKS },
        force: false,
        created: 0,
        features: Default::default(),
    };
    let pool = Pool::format(&devices(world), &options, Arc::new(InlineEngine), Box::new(Prng::new(1)))?;
    let clock = Arc::new(ManualClock::default());
    let store = Arc::new(Store::format(Arc::new(pool), clock.clone(), 3)?);
    store.set_discard(true);
    store.transact(|tx, _| Fs::format(tx, &mut Prng::new(2), RootOwner::default()))?;
    let mut driver = Driver::new(Fs::open(store.clone(), Options::default())?, clock);
    let mut act = |op: Op| {
        let (_, outcome) = driver.apply(&op);
        assert!(!matches!(outcome, Outcome::Refused(_) | Outcome::Skipped), "{op:?}: {outcome:?}");
    };
    tree().into_iter().for_each(&mut act);
    act(Op::Sync);
    let uuid = store.pool().map(|pool| pool.uuid()).unwrap_or_default();
    argosfs::check::archive(&store, uuid, 0, &|| true)?;
    store.meta().checkpoint()?;
    // The rest is in the log.
    unfinished().into_iter().for_each(&mut act);
    act(Op::Sync);
    let cut = driver.fs().lookup(&Caller::ROOT, Ino::ROOT, &Name(4).bytes())?;
    cut_short(&store, cut.attr.ino)?;
    store.durable_point()
}

const ROOT: Slot = Slot::ROOT;
const DIR: Slot = Slot(1);
const SMALL: Slot = Slot(2);
const LARGE: Slot = Slot(3);
const SPARSE: Slot = Slot(4);
const INLINE: Slot = Slot(5);
const OTHER: Slot = Slot(6);
const HELD: Slot = Slot(7);

fn make(dir: Slot, name: u8, kind: FileType, to: Slot) -> Op {
    Op::Make { who: Who::ROOT, dir, name: Name(name), kind, mode: 0o644, seed: 3, to }
}

fn write(inode: Slot, offset: u64, length: u32, fill: u8) -> Op {
    Op::Write { who: Who::ROOT, inode, offset, length, fill, kill_suidgid: false }
}

fn tree() -> Vec<Op> {
    let user = XattrName(0);
    let copy = Op::Copy { who: Who::ROOT, from: LARGE, from_offset: 8192, to: OTHER, to_offset: 4096, length: 60_000 };
    vec![
        make(ROOT, 3, FileType::Directory, DIR),
        make(ROOT, 0, FileType::Regular, SMALL),
        write(SMALL, 0, 9000, 1),
        make(ROOT, 1, FileType::Regular, LARGE),
        write(LARGE, 0, 400_000, 2),
        make(DIR, 0, FileType::Regular, SPARSE),
        write(SPARSE, 0, 5000, 3),
        write(SPARSE, 1 << 33, 5000, 4),
        make(DIR, 1, FileType::Regular, INLINE),
        write(INLINE, 0, 700, 5),
        make(DIR, 2, FileType::Symlink, OTHER),
        make(DIR, 4, FileType::Directory, OTHER),
        make(OTHER, 5, FileType::Fifo, HELD),
        make(OTHER, 6, FileType::CharDevice, HELD),
        make(OTHER, 7, FileType::Regular, HELD),
        Op::Link { inode: SMALL, dir: OTHER, name: Name(8) },
        Op::SetXattr { inode: SMALL, name: user, length: 40, fill: 6, set: XattrSet::Any },
        Op::SetXattr { inode: LARGE, name: user, length: 40_000, fill: 7, set: XattrSet::Any },
        Op::SetAcl { inode: DIR, default: true, recipe: AclRecipe(0b101 << 9 | 0o751), kill_sgid: false },
        Op::SetAcl { inode: SMALL, default: false, recipe: AclRecipe(0b101 << 9 | 0o640), kill_sgid: false },
        make(ROOT, 2, FileType::Regular, OTHER),
        copy,
        Op::Fallocate {
            who: Who::ROOT,
            inode: SPARSE,
            offset: 100_000,
            length: 50_000,
            mode: FallocateMode::Allocate { keep_size: false },
        },
        Op::Fallocate { who: Who::ROOT, inode: LARGE, offset: 30_000, length: 40_000, mode: FallocateMode::PunchHole },
    ]
}

/// A file without a name that somebody holds, and content of several small writes.
fn unfinished() -> Vec<Op> {
    let mut ops = vec![
        Op::Tmpfile { who: Who::ROOT, dir: ROOT, mode: 0o600, to: HELD },
        write(HELD, 0, 30_000, 8),
        write(SMALL, 2000, 3000, 10),
        make(ROOT, 4, FileType::Regular, OTHER),
    ];
    ops.extend((0..20).map(|at| write(OTHER, at * 9000, 5, 9)));
    ops
}

/// Truncates a file of many extents as far as one transaction would: the rest is left to the background.
fn cut_short(store: &Store, ino: Ino) -> Result<()> {
    store.transact(|tx, _| {
        let txn = tx.id();
        let row = tx.get::<Inodes>(&ino)?.ok_or(Error::Stale)?;
        tx.put::<Inodes>(&ino, &InodeRow { size: 10, ..row })?;
        let id = tx.bump_counter(Counter::NextIntent, 1)?;
        tx.put::<Intents>(&id, &Intent::Truncate { ino: ino.0, from: 10, txn: txn.0 })
    })
}

/// The inode of the root, for whoever walks from there.
pub const TOP: Ino = Ino::ROOT;

/// Bytes of a block.
pub const BLOCK: usize = BLOCK_SIZE as usize;
