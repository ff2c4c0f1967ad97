//! Promise P8: with every copy of the metadata gone, a pool is made again from its newest archive and the headers of newer
//! shards; promise P9: or from an export of it. Whole pools on simulated devices; what must be there is said by the model of
//! POSIX.

use std::collections::BTreeMap;
use std::sync::Arc;

use argosfs::base::clock::ManualClock;
use argosfs::base::file::{Caller, FileType};
use argosfs::base::{BLOCK_SIZE, Clock, DeviceId, Entropy, Error, Ino, Prng, Result, StripeId, TxnId};
use argosfs::check::{Context, Export, ExportHeader, Findings, Old, Recovered, export, fsck};
use argosfs::device::sim::{Fault, SimWorld};
use argosfs::device::{Device, InlineEngine};
use argosfs::format::label::DefaultGeometry;
use argosfs::format::rows::{ExtentBody, GroupKey, Placement, StripeRow, StripeState};
use argosfs::format::shard::{ShardHeader, Unit};
use argosfs::format::table::{Extents, Groups, Stripes};
use argosfs::fs::model::{Mix, Model, read_tree};
use argosfs::fs::op::Driver;
use argosfs::fs::{Fs, Options, RootOwner};
use argosfs::meta::{Reader, Visit};
use argosfs::pool::{FormatOptions, OpenMode, Pool};
use argosfs::store::Store;

const SIZE: u64 = 64 << 20;

/// A pool on simulated devices.
struct Rig {
    world: SimWorld,
    clock: Arc<ManualClock>,
    store: Arc<Store>,
}

fn devices(world: &SimWorld, which: &[usize]) -> Vec<Arc<dyn Device>> {
    which.iter().map(|index| world.device(*index)).collect()
}

fn open_pool(world: &SimWorld, which: &[usize]) -> Arc<Pool> {
    let mode = OpenMode::default();
    Arc::new(Pool::open(&devices(world, which), &mode, Arc::new(InlineEngine), Box::new(Prng::new(7))).unwrap())
}

impl Rig {
    fn format(seed: u64, count: usize, k: u8, m: u8) -> Rig {
        let world = SimWorld::new(seed, count, SIZE);
        let options = FormatOptions {
            name: "tank".into(),
            geometry: DefaultGeometry { k, m, shard_blocks: 8 },
            force: false,
            created: 0,
            features: Default::default(),
        };
        let engine = Arc::new(InlineEngine);
        let pool = Pool::format(&world.devices(), &options, engine, Box::new(Prng::new(seed))).unwrap();
        let clock = Arc::new(ManualClock::default());
        let store = Store::format(Arc::new(pool), clock.clone(), seed).unwrap();
        store.meta().transact(|tx| Fs::format(tx, &mut Prng::new(seed), RootOwner::default())).unwrap();
        Rig { world, clock, store: Arc::new(store) }
    }

    fn fs(&self) -> Fs {
        Fs::open(self.store.clone(), Options::default()).unwrap()
    }

    fn archive(&self) {
        let pool = self.store.pool().unwrap().uuid();
        argosfs::check::archive(&self.store, pool, 5, &|| true).unwrap();
    }

    /// Archives the metadata, and tells how it is made again from the archive.
    fn archived(&self) -> Restore {
        self.archive();
        Box::new(|pool, clock, salt| argosfs::check::recover(pool, Old::Useless, clock, salt, &mut |_, _, _| true))
    }

    fn export(&self) -> Vec<u8> {
        let header = ExportHeader { pool: self.store.pool().unwrap().uuid(), name: "tank".into() };
        let mut text = Vec::new();
        let mut sink = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        self.store.view(|view| export(view, &header, &mut sink)).unwrap();
        text
    }

    /// Exports the metadata, and tells how it is made again from the export.
    fn exported(&self) -> Restore {
        let text = self.export();
        Box::new(move |pool, clock, salt| {
            let pieces = |sink: &mut dyn FnMut(&[u8]) -> Result<()>| text.chunks(1000).try_for_each(sink);
            let export = Export::verify(pool.uuid(), &pieces)?;
            argosfs::check::import(pool, export, Old::Useless, clock, salt, &mut |_, _, _| true)
        })
    }

    /// Lets the process die and every copy of the metadata be overwritten with noise; nothing that was written is lost.
    fn destroy_metadata(self) -> (SimWorld, Arc<ManualClock>) {
        let root = self.store.pool().unwrap().state().label.meta.clone();
        let Rig { world, clock, store } = self;
        drop(store);
        let noise = |device: u16, block: u64, blocks: u64| {
            world.corrupt(usize::from(device), block * BLOCK_SIZE..(block + blocks) * BLOCK_SIZE);
        };
        assert!(!root.chunks.is_empty());
        root.replicas.iter().for_each(|replica| noise(replica.device, replica.log_block, replica.log_blocks.into()));
        let chunk_blocks = u64::from(root.chunk_blocks);
        root.chunks.iter().for_each(|chunk| noise(chunk.device, chunk.block, u64::from(chunk.count) * chunk_blocks));
        (world, clock)
    }
}

/// Makes the metadata of a pool again; the number is a random one.
type Restore = Box<dyn Fn(&Arc<Pool>, Arc<dyn Clock>, u64) -> Result<Recovered>>;

/// Recovers from these devices and opens what came of it, which must be consistent.
fn recovered(world: &SimWorld, which: &[usize], clock: Arc<ManualClock>) -> (Rig, Recovered) {
    restored(world, which, clock, &|pool, clock, salt| {
        argosfs::check::recover(pool, Old::Useless, clock, salt, &mut |_, _, _| true)
    })
}

fn restored(
    world: &SimWorld,
    which: &[usize],
    clock: Arc<ManualClock>,
    restore: &dyn Fn(&Arc<Pool>, Arc<dyn Clock>, u64) -> Result<Recovered>,
) -> (Rig, Recovered) {
    let pool = open_pool(world, which);
    let why = Store::open(pool.clone(), clock.clone(), 8).err().expect("there is no metadata").to_string();
    assert!(why.contains("argosfs recover"), "{why}");
    let report = restore(&pool, clock.clone(), 9).unwrap();
    drop(pool);
    let store = Arc::new(Store::open(open_pool(world, which), clock.clone(), 10).unwrap());
    let rig = Rig { world: world.clone(), clock, store };
    rig.check();
    (rig, report)
}

impl Rig {
    /// Everything stored twice agrees.
    fn check(&self) {
        let state = self.store.pool().unwrap().state();
        let mut context = Context::default();
        for member in &state.members {
            let (blocks, layout) = (member.size / BLOCK_SIZE, member.layout);
            context.devices.push((member.id, blocks));
            context.metadata.push((member.id, 0, layout.start));
        }
        for run in self.store.archive_runs() {
            context.metadata.push((run.device, run.block.0, run.blocks.into()));
        }
        let root = &state.label.meta;
        for replica in &root.replicas {
            context.metadata.push((DeviceId(replica.device), replica.log_block, replica.log_blocks.into()));
        }
        for chunk in &root.chunks {
            let blocks = u64::from(chunk.count) * u64::from(root.chunk_blocks);
            context.metadata.push((DeviceId(chunk.device), chunk.block, blocks));
        }
        let mut findings = Findings::default();
        self.store.view(|view| fsck(view, &context, &mut findings, &mut |_| {})).unwrap();
        assert_eq!(findings.total(), 0, "{:#?}", findings.listed());
    }

    fn assert_whole(&self) {
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let whole = |id, row: StripeRow| {
            assert_eq!(row.state, StripeState::Whole, "stripe {id}: {:?}", row.placements);
            Ok(Visit::Continue(()))
        };
        self.store.view(|view| view.scan::<Stripes>(all, whole)).unwrap();
        let progress = self.store.scrub(&mut |_| true).unwrap();
        assert_eq!((progress.lost, progress.repaired.missing), (0, 0), "{progress:?}");
    }
}

/// Whatever was there when the archive was made is there again, names, modes, attributes, links and content alike.
#[test]
fn p8_everything_in_the_archive_comes_back() {
    for seed in 0..6 {
        let rig = Rig::format(seed, 6, 4, 2);
        let mut model = Model::new(rig.clock.now());
        let mut driver = Driver::new(rig.fs(), rig.clock.clone());
        let mut prng = Prng::new(seed);
        let mix = Mix { remount: 0, ..Mix::default() };
        for _ in 0..1200 {
            let op = model.random_op(&mut prng, &mix);
            let (now, outcome) = driver.apply(&op);
            model.check(&op, now, &outcome).unwrap();
        }
        let fs = driver.into_fs();
        fs.forget_all();
        fs.reclaim_waiting().unwrap();
        fs.syncfs().unwrap();
        let expected = read_tree(&fs).unwrap();
        drop(fs);
        rig.archive();
        let (world, clock) = rig.destroy_metadata();
        let lost = [prng.below(6) as usize, prng.below(6) as usize];
        let which: Vec<usize> = (0..6).filter(|index| seed % 2 == 0 || !lost.contains(index)).collect();
        let (rig, report) = recovered(&world, &which, clock);
        assert!(report.newer.is_empty() && report.lost.is_empty(), "seed {seed}: {report:?}");
        let found = read_tree(&rig.fs()).unwrap();
        if let Some(difference) = found.difference(&expected) {
            panic!("seed {seed}: {difference}");
        }
        if seed % 2 == 0 {
            rig.assert_whole();
        }
    }
}

/// Files by their numbers, as they should be.
type Files = BTreeMap<Ino, Vec<u8>>;

fn new_file(fs: &Fs, name: &[u8]) -> Ino {
    fs.mknod(&Caller::ROOT, Ino::ROOT, name, FileType::Regular.mode_bits() | 0o644, 0).unwrap().attr.ino
}

fn write(fs: &Fs, files: &mut Files, ino: Ino, offset: usize, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let piece = &bytes[done..bytes.len().min(done + (1 << 20))];
        done += fs.write(&Caller::ROOT, ino, (offset + done) as u64, piece, false).unwrap();
    }
    let content = files.entry(ino).or_default();
    content.resize(content.len().max(offset + bytes.len()), 0);
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

fn random(prng: &mut Prng, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    prng.fill(&mut bytes);
    bytes
}

fn content(fs: &Fs, ino: Ino) -> Vec<u8> {
    let mut out = vec![0; fs.getattr(ino).unwrap().size as usize];
    let mut done = 0;
    while done < out.len() {
        let more = fs.read(ino, done as u64, &mut out[done..]).unwrap();
        assert!(more > 0);
        done += more;
    }
    out
}

/// Too much to go into the metadata.
fn length(prng: &mut Prng) -> u64 {
    40_000 + prng.below(300_000)
}

/// Writes somewhere into one of the files, without a hole.
fn scribble(fs: &Fs, files: &mut Files, prng: &mut Prng) {
    let inos: Vec<Ino> = files.keys().copied().collect();
    let ino = inos[prng.below(inos.len() as u64) as usize];
    let offset = prng.below(files[&ino].len() as u64 + 1) as usize;
    let bytes = length(prng);
    let bytes = random(prng, bytes);
    write(fs, files, ino, offset, &bytes);
}

/// What was written after the archive was made is taken from the headers of its shards, the later version of two, and
/// what was only moved hides nothing.
#[test]
fn p8_newer_content_is_put_on_top() {
    newer_content_is_put_on_top(0..8, Rig::archived);
}

/// What was written after an export is found in the same way.
#[test]
fn p9_newer_content_is_put_on_top_of_an_export() {
    newer_content_is_put_on_top(8..14, Rig::exported);
}

fn newer_content_is_put_on_top(seeds: std::ops::Range<u64>, known: fn(&Rig) -> Restore) {
    for seed in seeds {
        let rig = Rig::format(seed, 6, 4, 2);
        let fs = rig.fs();
        let mut prng = Prng::new(seed);
        let mut files = Files::new();
        for name in 0..8u8 {
            let ino = new_file(&fs, &[b'a' + name]);
            let bytes = length(&mut prng);
            let bytes = random(&mut prng, bytes);
            write(&fs, &mut files, ino, 0, &bytes);
        }
        for _ in 0..6 {
            scribble(&fs, &mut files, &mut prng);
            fs.syncfs().unwrap();
        }
        let restore = known(&rig);
        let known: Vec<Ino> = files.keys().copied().collect();
        for step in 0..25u8 {
            if step % 8 == 7 {
                let ino = new_file(&fs, &[b'A' + step]);
                let bytes = length(&mut prng);
                let bytes = random(&mut prng, bytes);
                write(&fs, &mut files, ino, 0, &bytes);
            }
            scribble(&fs, &mut files, &mut prng);
            if prng.chance(1, 2) {
                fs.syncfs().unwrap();
            }
            if prng.chance(1, 3) {
                while rig.store.tidy_step(true).unwrap() {}
            }
        }
        fs.syncfs().unwrap();
        while rig.store.tidy_step(true).unwrap() {}
        rig.store.durable_point().unwrap();
        drop(fs);
        let (world, clock) = rig.destroy_metadata();
        let (rig, report) = restored(&world, &[0, 1, 2, 3, 4, 5], clock, &restore);
        assert!(report.lost.is_empty() && report.newer_stripes > 0, "seed {seed}: {report:?}");
        assert_eq!(report.nameless as usize, files.len() - known.len());
        let fs = rig.fs();
        let directory = fs.lookup(&Caller::ROOT, Ino::ROOT, b"lost+found").unwrap().attr.ino;
        for (ino, expected) in &files {
            assert!(content(&fs, *ino) == *expected, "seed {seed}: inode {ino} differs");
            let name = format!("#{ino}").into_bytes();
            let found = fs.lookup(&Caller::ROOT, directory, &name).ok().map(|entry| entry.attr.ino);
            assert_eq!(found, (!known.contains(ino)).then_some(*ino));
        }
        rig.assert_whole();
    }
}

/// Writes until all free space has been used; how much that was.
fn fill(fs: &Fs, files: &mut Files, prng: &mut Prng, ino: Ino) -> u64 {
    let mut length = 0;
    loop {
        let bytes = random(prng, 1 << 20);
        match fs.write(&Caller::ROOT, ino, length, &bytes, false) {
            Ok(done) => length += done as u64,
            Err(Error::NoSpace) => return length,
            Err(error) => panic!("{error}"),
        }
        files.entry(ino).or_default().extend_from_slice(&bytes);
        fs.syncfs().unwrap();
    }
}

/// Space that the archive's files gave up may hold something else since. Those files are reported, and nothing else is.
#[test]
fn what_was_overwritten_since_the_archive_is_reported_lost() {
    let rig = Rig::format(3, 4, 2, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(3);
    let mut files = Files::new();
    let kept = new_file(&fs, b"kept");
    let bytes = random(&mut prng, 3_000_000);
    write(&fs, &mut files, kept, 0, &bytes);
    let gone = new_file(&fs, b"gone");
    let old = random(&mut prng, 8_000_000);
    write(&fs, &mut Files::new(), gone, 0, &old);
    fs.syncfs().unwrap();
    rig.archive();
    fs.unlink(&Caller::ROOT, Ino::ROOT, b"gone").unwrap();
    fs.forget_all();
    fs.reclaim_waiting().unwrap();
    fs.syncfs().unwrap();
    let new = new_file(&fs, b"new");
    let length = fill(&fs, &mut files, &mut prng, new);
    drop(fs);
    let (world, clock) = rig.destroy_metadata();
    let (rig, report) = recovered(&world, &[0, 1, 2, 3], clock);
    let lost: Vec<&str> = report.lost.iter().map(|file| file.names.paths[0].as_str()).collect();
    assert_eq!(lost, ["/gone"], "{report:?}");
    assert!(report.shards_gone > 0);
    let fs = rig.fs();
    assert!(content(&fs, kept) == files[&kept]);
    let found = content(&fs, new);
    assert!(found == files[&new][..found.len()] && found.len() as u64 >= length - (1 << 20), "{}", found.len());
    let mut lost = 0;
    for (at, expected) in (0..).step_by(4096).zip(old.chunks(4096)) {
        let mut found = vec![0; expected.len()];
        match fs.read(gone, at, &mut found) {
            Ok(_) => assert!(found == expected, "what is lost reads as something else at {at}"),
            Err(_) => lost += 1,
        }
    }
    assert!(lost > 0);
}

/// Shards that moved to another device after the archive was made are found there.
#[test]
fn moved_shards_are_found() {
    let rig = Rig::format(4, 6, 3, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(4);
    let mut files = Files::new();
    for name in [b"a", b"b"] {
        let ino = new_file(&fs, name);
        let bytes = random(&mut prng, 4_000_000);
        write(&fs, &mut files, ino, 0, &bytes);
    }
    fs.syncfs().unwrap();
    drop(fs);
    rig.archive();
    let spare = rig.world.add_device(SIZE);
    rig.store.replace(DeviceId(1), rig.world.device(spare), false, &mut |_| true).unwrap();
    rig.store.durable_point().unwrap();
    let (world, clock) = rig.destroy_metadata();
    world.wipe(1);
    // Two more may be missing.
    let (rig, report) = recovered(&world, &[0, 3, 4, spare], clock);
    assert!(report.shards_moved > 0 && report.lost.is_empty(), "{report:?}");
    let fs = rig.fs();
    for (ino, expected) in &files {
        assert!(content(&fs, *ino) == *expected);
    }
}

/// What was moved may lie where the archive has something else, which was removed since; and the device that it was on before may
/// still be a member, which failed.
#[test]
fn moved_shards_are_found_in_space_that_was_free_since() {
    let rig = Rig::format(40, 6, 3, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(40);
    let mut files = Files::new();
    let kept = new_file(&fs, b"kept");
    let bytes = random(&mut prng, 24_000_000);
    write(&fs, &mut files, kept, 0, &bytes);
    let remove = |name: &[u8]| {
        fs.unlink(&Caller::ROOT, Ino::ROOT, name).unwrap();
        fs.forget_all();
        fs.reclaim_waiting().unwrap();
        fs.syncfs().unwrap();
    };
    let spare = new_file(&fs, b"spare");
    write(&fs, &mut Files::new(), spare, 0, &random(&mut prng, 2_000_000));
    let gone = new_file(&fs, b"gone");
    fill(&fs, &mut Files::new(), &mut prng, gone);
    // The archive needs some space.
    remove(b"spare");
    rig.archive();
    remove(b"gone");
    drop(fs);
    let pool = rig.store.pool().unwrap().clone();
    pool.drop_members(&[DeviceId(1)], "it failed").unwrap();
    rig.store.rebuild(&mut |_| true).unwrap();
    drop(pool);
    let (world, clock) = rig.destroy_metadata();
    world.wipe(1);
    let (rig, report) = recovered(&world, &[0, 2, 3, 4, 5], clock);
    let lost: Vec<&str> = report.lost.iter().map(|file| file.names.paths[0].as_str()).collect();
    assert!(report.shards_moved > 0 && (lost.is_empty() || lost == ["/gone"]), "{report:?}");
    let whole = |row: &StripeRow| {
        row.placements.iter().all(|place| ![DeviceId(1), Placement::NONE.device].contains(&place.device))
    };
    let mut found = 0;
    rig.store
        .view(|view| {
            view.scan::<Extents>((std::ops::Bound::Unbounded, std::ops::Bound::Unbounded), |key, extent| {
                if let (true, ExtentBody::Run(run)) = (key.ino == kept, &extent.body) {
                    let row = view.get::<Stripes>(&run.stripe)?.unwrap();
                    assert!(whole(&row), "stripe {}: {:?}", run.stripe, row.placements);
                    found += 1;
                }
                Ok(Visit::Continue(()))
            })
        })
        .unwrap();
    assert!(found > 0);
    assert!(content(&rig.fs(), kept) == files[&kept]);
}

impl Rig {
    /// Rows of bitmaps, as many as a larger pool would have. They say that nothing is in use.
    fn add_groups(&self, count: u32) {
        let add = |group| {
            let key = GroupKey { device: DeviceId(0), group, part: 0 };
            self.store.meta().transact(|tx| tx.put::<Groups>(&key, &vec![0; 1024])).unwrap();
        };
        (1000..1000 + count).for_each(add);
    }
}

fn recover(pool: &Arc<Pool>, old: Old, clock: &Arc<ManualClock>) -> Result<Recovered> {
    argosfs::check::recover(pool, old, clock.clone(), 9, &mut |_, _, _| true)
}

/// Its bitmaps alone are more than what new metadata begins with.
#[test]
fn a_pool_with_many_groups_is_recovered() {
    let rig = Rig::format(50, 4, 2, 2);
    let fs = rig.fs();
    let mut files = Files::new();
    let ino = new_file(&fs, b"file");
    let bytes = random(&mut Prng::new(50), 1_000_000);
    write(&fs, &mut files, ino, 0, &bytes);
    fs.syncfs().unwrap();
    drop(fs);
    rig.add_groups(5000);
    rig.archive();
    let (world, clock) = rig.destroy_metadata();
    let all = [0, 1, 2, 3];
    let report = recover(&open_pool(&world, &all), Old::Useless, &clock).unwrap();
    assert!(report.rows > 5000 && report.lost.is_empty(), "{report:?}");
    let store = Arc::new(Store::open(open_pool(&world, &all), clock.clone(), 10).unwrap());
    assert!(content(&Rig { world, clock, store }.fs(), ino) == files[&ino]);
}

/// Where there is no room beside the old metadata it is overwritten, but not when it can still be opened.
#[test]
fn only_useless_metadata_is_overwritten() {
    let rig = Rig::format(51, 4, 2, 2);
    let fs = rig.fs();
    let (mut prng, mut files) = (Prng::new(51), Files::new());
    let ino = new_file(&fs, b"file");
    rig.add_groups(10_000);
    rig.archive();
    let length = fill(&fs, &mut files, &mut prng, ino);
    fs.syncfs().unwrap();
    drop(fs);
    let Rig { world, clock, store } = rig;
    drop(store);
    let all = [0, 1, 2, 3];
    let why = recover(&open_pool(&world, &all), Old::Opens, &clock).unwrap_err().to_string();
    assert!(why.contains("no room"), "{why}");
    let store = Arc::new(Store::open(open_pool(&world, &all), clock.clone(), 10).unwrap());
    let rig = Rig { world, clock, store };
    assert!(content(&rig.fs(), ino) == files[&ino][..length as usize]);
    let (world, clock) = rig.destroy_metadata();
    let pool = open_pool(&world, &all);
    recover(&pool, Old::Useless, &clock).unwrap();
    assert!(pool.take_notes().iter().any(|note| note.contains("no room beside")));
    drop(pool);
    let store = Arc::new(Store::open(open_pool(&world, &all), clock.clone(), 11).unwrap());
    let found = content(&Rig { world, clock, store }.fs(), ino);
    assert!(found == files[&ino][..found.len()] && found.len() + (1 << 20) >= files[&ino].len());
}

/// A file may hold what looks like a shard, a copy of a device for example: while the file is there it is nothing else.
#[test]
fn shards_inside_of_files_are_not_taken_for_shards() {
    let rig = Rig::format(5, 3, 2, 1);
    let fs = rig.fs();
    let mut prng = Prng::new(5);
    let mut files = Files::new();
    let ino = new_file(&fs, b"file");
    let bytes = random(&mut prng, 1_000_000);
    write(&fs, &mut files, ino, 0, &bytes);
    let state = rig.store.pool().unwrap().state();
    let payload = [b'x'; BLOCK_SIZE as usize];
    // One for each device, because nobody knows where it will lie.
    let forged: Vec<u8> = (state.members.iter())
        .flat_map(|member| {
            let header = ShardHeader {
                pool: state.label.uuid,
                device: member.uuid,
                stripe: StripeId(1 << 40),
                incarnation: state.label.settings.incarnation,
                index: 0,
                k: 1,
                m: 0,
                granule_shift: 0,
                shard_blocks: 1,
                txn: TxnId(1 << 40),
                payload_bytes: BLOCK_SIZE as u32,
                sums: vec![crc32c::crc32c(&payload)],
                sealed: false,
                truncated: false,
                units: vec![Unit {
                    ino,
                    offset: 0,
                    length: BLOCK_SIZE as u32,
                    start: 0,
                    birth: None,
                    parent: Ino(0),
                    name: Vec::new(),
                }],
            };
            [header.encode(), payload].concat()
        })
        .collect();
    let known = new_file(&fs, b"known");
    (0..10).for_each(|at| write(&fs, &mut files, known, at * forged.len(), &forged));
    fs.syncfs().unwrap();
    rig.archive();
    let newer = new_file(&fs, b"newer");
    (0..10).for_each(|at| write(&fs, &mut files, newer, at * forged.len(), &forged));
    fs.syncfs().unwrap();
    drop((fs, state));
    let (world, clock) = rig.destroy_metadata();
    let (rig, report) = recovered(&world, &[0, 1, 2], clock);
    assert!(report.lost.is_empty() && report.newer.len() == 1, "{report:?}");
    let fs = rig.fs();
    for (ino, expected) in &files {
        assert!(content(&fs, *ino) == *expected, "inode {ino} differs");
    }
    rig.assert_whole();
}

/// What was moved after the archive was made is found where it is now, and is as certain as before.
#[test]
fn what_was_only_moved_is_not_newer() {
    let rig = Rig::format(8, 6, 4, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(8);
    let mut files = Files::new();
    let ino = new_file(&fs, b"file");
    let bytes = random(&mut prng, 4_000_000);
    write(&fs, &mut files, ino, 0, &bytes);
    fs.syncfs().unwrap();
    // Little is left of each stripe.
    for at in (0..3_900_000).step_by(128 << 10) {
        let bytes = random(&mut prng, 100 << 10);
        write(&fs, &mut files, ino, at, &bytes);
    }
    fs.syncfs().unwrap();
    rig.archive();
    let before = rig.store.oldest_unfinished();
    while rig.store.tidy_step(true).unwrap() {}
    assert!(rig.store.oldest_unfinished() > before, "nothing was moved");
    rig.store.durable_point().unwrap();
    // So that what it was moved from cannot help.
    let other = new_file(&fs, b"other");
    let bytes = random(&mut prng, 100 << 20);
    write(&fs, &mut files, other, 0, &bytes);
    fs.syncfs().unwrap();
    drop(fs);
    let (world, clock) = rig.destroy_metadata();
    let (rig, report) = recovered(&world, &[0, 1, 2, 3, 4, 5], clock);
    let newer: Vec<u64> = report.newer.iter().map(|file| file.ino).collect();
    assert_eq!(newer, [other.0], "{report:?}");
    let fs = rig.fs();
    for (ino, expected) in &files {
        assert!(content(&fs, *ino) == *expected, "inode {ino} differs");
    }
}

/// Interrupted anywhere, a recovery can be begun again, and until it is done nothing is changed that anybody needs.
#[test]
fn an_interrupted_recovery_is_begun_again() {
    interrupted_it_is_begun_again(Rig::archived);
}

#[test]
fn an_interrupted_import_is_begun_again() {
    interrupted_it_is_begun_again(Rig::exported);
}

fn interrupted_it_is_begun_again(known: fn(&Rig) -> Restore) {
    let rig = Rig::format(6, 4, 2, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(6);
    let mut files = Files::new();
    let ino = new_file(&fs, b"file");
    let bytes = random(&mut prng, 2_000_000);
    write(&fs, &mut files, ino, 0, &bytes);
    fs.syncfs().unwrap();
    let restore = known(&rig);
    for _ in 0..8 {
        scribble(&fs, &mut files, &mut prng);
        fs.syncfs().unwrap();
    }
    drop(fs);
    let (world, clock) = rig.destroy_metadata();
    world.mark_base();
    let whole = world.fork();
    restored(&whole, &[0, 1, 2, 3], clock.clone(), &restore);
    let pool = open_pool(&world, &[0, 1, 2, 3]);
    restore(&pool, clock.clone(), 9).unwrap();
    drop(pool);
    let (first, last) = (world.oldest_crash_point(), world.record());
    let mut begun_again = 0;
    for _ in 0..40 {
        let at = first + prng.below(last - first + 1);
        let world = world.crash_state(at, &mut prng);
        let pool = open_pool(&world, &[0, 1, 2, 3]);
        let opened = Store::open(pool.clone(), clock.clone(), 8);
        let store = match opened {
            Ok(store) => store,
            Err(Error::Unavailable(why)) if why.contains("argosfs recover") => {
                begun_again += 1;
                restore(&pool, clock.clone(), 11).unwrap();
                Store::open(pool, clock.clone(), 12).unwrap()
            }
            Err(error) => panic!("{error}"),
        };
        let rig = Rig { world, clock: clock.clone(), store: Arc::new(store) };
        rig.check();
        assert!(content(&rig.fs(), ino) == files[&ino], "cut at {at}");
    }
    assert!((5..40).contains(&begun_again), "{begun_again} of 40");
}

/// The stripes of what was removed are still there, and nobody knows of them: that does not make them newer.
#[test]
fn what_was_removed_before_an_export_stays_so() {
    let rig = Rig::format(9, 4, 2, 2);
    let fs = rig.fs();
    let mut prng = Prng::new(9);
    let mut files = Files::new();
    let kept = new_file(&fs, b"kept");
    let bytes = random(&mut prng, 1_000_000);
    write(&fs, &mut files, kept, 0, &bytes);
    fs.syncfs().unwrap();
    let gone = new_file(&fs, b"gone");
    let bytes = random(&mut prng, 2_000_000);
    write(&fs, &mut Files::new(), gone, 0, &bytes);
    fs.syncfs().unwrap();
    fs.unlink(&Caller::ROOT, Ino::ROOT, b"gone").unwrap();
    fs.forget_all();
    fs.reclaim_waiting().unwrap();
    fs.syncfs().unwrap();
    drop(fs);
    let restore = rig.exported();
    let (world, clock) = rig.destroy_metadata();
    let (rig, report) = restored(&world, &[0, 1, 2, 3], clock, &restore);
    assert!(report.newer.is_empty() && report.lost.is_empty(), "{report:?}");
    assert!(content(&rig.fs(), kept) == files[&kept]);
}

/// Its transactions must not have numbers that an archive of what came after it has, too.
#[test]
fn transactions_go_on_behind_all_archives() {
    let rig = Rig::format(10, 3, 2, 1);
    let restore = rig.exported();
    let fs = rig.fs();
    for name in 100..200u8 {
        new_file(&fs, &[b'a', name]);
    }
    fs.syncfs().unwrap();
    drop(fs);
    rig.archive();
    let archived = rig.store.newest_archive().unwrap().0;
    let (world, clock) = rig.destroy_metadata();
    let (rig, report) = restored(&world, &[0, 1, 2], clock, &restore);
    assert!(report.transaction + 100 <= archived.0 && rig.store.meta().committed() > archived, "{report:?}");
}

#[test]
fn an_export_of_another_pool_or_one_that_changes_is_refused() {
    let rig = Rig::format(11, 3, 2, 1);
    let texts = std::cell::RefCell::new(vec![rig.export()]);
    let restore = rig.exported();
    new_file(&rig.fs(), b"newer");
    texts.borrow_mut().push(rig.export());
    let other = Rig::format(12, 3, 2, 1).exported();
    let (world, clock) = rig.destroy_metadata();
    let pool = open_pool(&world, &[0, 1, 2]);
    let why = other(&pool, clock.clone(), 9).unwrap_err().to_string();
    assert!(why.contains("is an export of pool tank"), "{why}");

    // Another one each time it is read.
    let pieces = |sink: &mut dyn FnMut(&[u8]) -> Result<()>| {
        texts.borrow_mut().rotate_right(1);
        sink(&texts.borrow()[0])
    };
    let export = Export::verify(pool.uuid(), &pieces).unwrap();
    let why = argosfs::check::import(&pool, export, Old::Useless, clock.clone(), 9, &mut |_, _, _| true)
        .unwrap_err()
        .to_string();
    assert!(why.contains("was changed while it was read"), "{why}");
    restore(&pool, clock, 9).unwrap();
}

/// Numbers in an export may be anything: it is refused, or what comes of it can be opened and checked, or not, without a
/// panic.
#[test]
fn p5_a_forged_export_harms_nobody() {
    let rig = Rig::format(13, 3, 2, 1);
    let fs = rig.fs();
    let mut prng = Prng::new(13);
    let mut files = Files::new();
    for name in b'a'..b'f' {
        let ino = new_file(&fs, &[name]);
        let bytes = random(&mut prng, 1 << (8 + 2 * (name - b'a')));
        write(&fs, &mut files, ino, 0, &bytes);
    }
    fs.syncfs().unwrap();
    drop(fs);
    let text = String::from_utf8(rig.export()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // The rows of each table, and where the numbers of a line are.
    let tables: Vec<Vec<usize>> = lines.iter().enumerate().skip(1).fold(Vec::new(), |mut tables, (at, line)| {
        match line.as_bytes() {
            [b'{', ..] => tables.last_mut().unwrap().push(at),
            [.., b'['] => tables.push(Vec::new()),
            _ => {}
        }
        tables
    });
    let numbers = |line: &str| -> Vec<usize> {
        let digit = |at: usize| line.as_bytes()[at].is_ascii_digit();
        let begins = |at: &usize| digit(*at) && matches!(line.as_bytes()[*at - 1], b':' | b',' | b'[');
        (1..line.len()).filter(begins).collect()
    };
    let (world, clock) = rig.destroy_metadata();
    let mut imported = 0;
    while imported < 200 {
        let mut forged: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        for _ in 0..=prng.below(4) {
            let rows = &tables[prng.below(tables.len() as u64) as usize];
            let line = &mut forged[rows[prng.below(rows.len() as u64) as usize]];
            let numbers = numbers(line);
            let Some(at) = numbers.get(prng.below(numbers.len().max(1) as u64) as usize).copied() else { continue };
            let end = line[at..].find(|c: char| !c.is_ascii_digit()).unwrap_or(0) + at;
            let ends = [0, 1, 255, 65_535, u64::from(u32::MAX), (1 << 48) - 1, i64::MAX as u64, u64::MAX - 1, u64::MAX];
            let number = if prng.chance(1, 3) { prng.below(5000) } else { ends[prng.below(9) as usize] };
            line.replace_range(at..end, &number.to_string());
        }
        let body = forged[..forged.len() - 1].join("\n") + "\n";
        let digest = blake3::hash(body.as_bytes()).to_hex();
        let forged = format!("{body}\"blake3\":\"{digest}\"}}\n");
        let pieces = |sink: &mut dyn FnMut(&[u8]) -> Result<()>| sink(forged.as_bytes());
        let world = world.fork();
        let pool = open_pool(&world, &[0, 1, 2]);
        let Ok(export) = Export::verify(pool.uuid(), &pieces) else { continue };
        imported += 1;
        if argosfs::check::import(&pool, export, Old::Useless, clock.clone(), 9, &mut |_, _, _| true).is_err() {
            continue;
        }
        drop(pool);
        if let Ok(store) = Store::open(open_pool(&world, &[0, 1, 2]), clock.clone(), 10) {
            let mut findings = Findings::default();
            let _ = store.view(|view| fsck(view, &Context::default(), &mut findings, &mut |_| {}));
            let _ = Fs::open(Arc::new(store), Options::default());
        }
    }
}

#[test]
fn without_an_archive_it_is_refused() {
    let rig = Rig::format(7, 3, 2, 1);
    let (world, clock) = rig.destroy_metadata();
    let pool = open_pool(&world, &[0, 1, 2]);
    let why = argosfs::check::recover(&pool, Old::Useless, clock, 9, &mut |_, _, _| true).unwrap_err().to_string();
    assert!(why.contains("archive"), "{why}");
}

/// A block of the log that no device returns keeps the pool from being written. What can be read comes back through an export.
#[test]
fn what_can_be_read_of_a_log_comes_back_through_an_export() {
    let rig = Rig::format(61, 3, 2, 1);
    let fs = rig.fs();
    let (mut prng, mut files) = (Prng::new(61), Files::new());
    let mut inos = Vec::new();
    for name in [b"first", b"other", b"third"] {
        let ino = new_file(&fs, name);
        write(&fs, &mut files, ino, 0, &random(&mut prng, 5000));
        fs.syncfs().unwrap();
        inos.push(ino);
    }
    drop(fs);
    let root = rig.store.pool().unwrap().state().label.meta.clone();
    let Rig { world, clock, store } = rig;
    drop(store);
    let all = [0, 1, 2];
    let with_bad = |at: u64| {
        let state = world.fork();
        for replica in &root.replicas {
            let bad = Fault::BadBlock { block: replica.log_block + at, times: u64::MAX };
            state.fault(usize::from(replica.device), bad);
        }
        state
    };
    let read_only = |state: &SimWorld| {
        let mode = OpenMode { read_only: true, ..OpenMode::default() };
        let pool = Pool::open(&devices(state, &all), &mode, Arc::new(InlineEngine), Box::new(Prng::new(7))).unwrap();
        Store::open(Arc::new(pool), clock.clone(), 8)
    };
    let refused = |state: &SimWorld| Store::open(open_pool(state, &all), clock.clone(), 8).err();
    let cut: Vec<u64> = (2..u64::from(root.replicas[0].log_blocks))
        .filter(|at| refused(&with_bad(*at)).is_some() && read_only(&with_bad(*at)).is_ok())
        .collect();
    // The last one is where the next entry goes: nothing is missing.
    for (at, whole) in [(cut[cut.len() - 1], 3), (cut[cut.len() - 2], 2)] {
        let state = with_bad(at);
        let why = refused(&state).unwrap().to_string();
        assert!(why.contains("argosfs export-meta") && why.contains("argosfs import-meta --force"), "{why}");
        let rig = Rig { store: Arc::new(read_only(&state).unwrap()), world: state.clone(), clock: clock.clone() };
        let text = rig.export();
        drop(rig);
        let pool = open_pool(&state, &all);
        let pieces = |sink: &mut dyn FnMut(&[u8]) -> Result<()>| text.chunks(1000).try_for_each(sink);
        let export = Export::verify(pool.uuid(), &pieces).unwrap();
        argosfs::check::import(&pool, export, Old::Opens, clock.clone(), 9, &mut |_, _, _| true).unwrap();
        drop(pool);
        let store = Arc::new(Store::open(open_pool(&state, &all), clock.clone(), 10).unwrap());
        let rig = Rig { world: state, clock: clock.clone(), store };
        rig.check();
        let fs = rig.fs();
        assert!(inos[..whole].iter().all(|ino| content(&fs, *ino) == files[ino]), "block {at}");
    }
}
