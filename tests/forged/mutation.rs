//! Mutations of an image, made of bytes: any bytes are a list of them, each of the form kind, which (2), where (2), how, bytes.
//! Whatever is changed, all checksums over it are made right again.

use std::collections::BTreeMap;

use argosfs::base::Result;
use argosfs::device::sim::SimWorld;
use argosfs::format::label::{HEADER_LEN, LABEL_SLOT, label_offsets};
use argosfs::format::record::{Key, Row};
use argosfs::format::rows::StripeRow;
use argosfs::format::shard::ShardHeader;
use argosfs::format::table::{Stripes, TABLES, Table};

use crate::home::{self, PageEdit};
use crate::image::{self, BLOCK, Image, Shard, Stored};
use crate::log;

/// Kinds of mutations.
pub const KINDS: u8 = 13;
/// Mutations of one image.
const MOST: usize = 12;

/// One mutation.
struct Mutation {
    kind: u8,
    which: u16,
    at: u16,
    how: u8,
    bytes: Vec<u8>,
}

fn decode(mut bytes: &[u8]) -> Vec<Mutation> {
    let mut list = Vec::new();
    while let Some(([kind, which @ .., a, b, how], rest)) = bytes.split_first_chunk::<6>() {
        let (new, rest) = rest.split_at(rest.len().min(usize::from(how & 7) + 1));
        let [low, high] = *which;
        list.push(Mutation {
            kind: kind % KINDS,
            which: u16::from_le_bytes([low, high]),
            at: u16::from_le_bytes([*a, *b]),
            how: how >> 3,
            bytes: new.to_vec(),
        });
        bytes = rest;
        if list.len() == MOST {
            break;
        }
    }
    list
}

impl Mutation {
    fn number(&self) -> u64 {
        self.bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Changes bytes whose length may change.
    fn edit(&self, bytes: &mut Vec<u8>) {
        let at = usize::from(self.at) % bytes.len().max(1);
        match self.how % 10 {
            5 => bytes.truncate(at),
            6 => drop(bytes.splice(at.min(bytes.len())..at.min(bytes.len()), self.bytes.iter().copied())),
            7 => bytes.extend_from_slice(&self.bytes),
            _ => self.edit_in_place(bytes),
        }
    }

    /// Changes bytes whose length stays.
    fn edit_in_place(&self, bytes: &mut [u8]) {
        let at = usize::from(self.at) % bytes.len().max(1);
        let rest = bytes.get_mut(at..).unwrap_or_default();
        match self.how % 10 {
            1 => rest.iter_mut().zip(&self.bytes).for_each(|(byte, by)| *byte ^= by),
            2 | 3 => {
                let (mut carry, down) = (0u16, self.how % 10 == 3);
                for (byte, by) in rest.iter_mut().zip(&self.bytes) {
                    let by = if down { !*by } else { *by };
                    let sum = u16::from(*byte) + u16::from(by) + carry;
                    (*byte, carry) = (sum as u8, sum >> 8);
                }
            }
            4 => rest.iter_mut().take(self.bytes.len()).for_each(|byte| *byte = 0xff),
            _ => rest.iter_mut().zip(&self.bytes).for_each(|(byte, new)| *byte = *new),
        }
    }
}

/// Rows that will be something else, or gone.
#[derive(Default)]
struct Rows(BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>);

impl Rows {
    fn now(&self, stored: &Stored) -> Vec<u8> {
        let changed = self.0.get(&(stored.table, stored.key.clone()));
        changed.cloned().flatten().unwrap_or_else(|| stored.row.clone())
    }
}

/// Whether pages of the database are among what is forged.
pub fn forges_pages(bytes: &[u8]) -> bool {
    decode(bytes).iter().any(|mutation| mutation.kind >= 11)
}

/// The image with these mutations; `None` where one of them cannot be made beside the others.
pub fn forge(image: &Image, bytes: &[u8]) -> Option<SimWorld> {
    let world = image.world.fork();
    let list = decode(bytes);
    let mut rows = Rows::default();
    let mut pages = Vec::new();
    for mutation in &list {
        match mutation.kind {
            2 => payload(image, &world, mutation, &mut rows),
            3..=6 => row(image, mutation, &mut rows),
            // Its head and its first entries mostly.
            11 => pages.push(PageEdit {
                page: page(image, mutation.which).0,
                at: usize::from(mutation.at) % if mutation.how & 1 == 0 { 160 } else { BLOCK },
                bytes: mutation.bytes.clone(),
            }),
            // All of another one.
            12 => pages.push(PageEdit {
                page: page(image, mutation.which).0,
                at: 0,
                bytes: page(image, mutation.at).1.clone(),
            }),
            _ => {}
        }
    }
    if !rows.0.is_empty() {
        store_rows(&world, rows).ok()?;
    }
    if !pages.is_empty() {
        home::forge_pages(&world, pages).ok()?;
    }
    for mutation in &list {
        let number = mutation.number();
        match mutation.kind {
            7 | 8 => home::forge_redo(&world, u64::from(mutation.how >> 4), redo(image, mutation)).ok()?,
            9 => {
                let (which, at) = (usize::from(mutation.which), usize::from(mutation.at));
                log::forge_entry(&world, which, mutation.how & 1 == 1, at, &mutation.bytes);
            }
            10 => log::forge_anchors(&world, usize::from(mutation.which), number),
            _ => {}
        }
    }
    for mutation in &list {
        match mutation.kind {
            0 => labels(&world, mutation),
            1 => header(image, &world, mutation),
            _ => {}
        }
    }
    Some(world)
}

fn page(image: &Image, which: u16) -> &(u64, Vec<u8>) {
    &image.pages[usize::from(which) % image.pages.len()]
}

fn stored<'i>(image: &'i Image, mutation: &Mutation) -> &'i Stored {
    let [row, table] = mutation.which.to_le_bytes();
    let of = |table: u8| image.rows.iter().filter(move |stored| stored.table == table % TABLES.len() as u8);
    // There is a table that has any.
    let table = (0..=u8::MAX).map(|add| table.wrapping_add(add)).find(|table| of(*table).next().is_some());
    let table = table.unwrap_or(0);
    let count = of(table).count().max(1);
    of(table).nth(usize::from(row) % count).expect("one of them")
}

fn row(image: &Image, mutation: &Mutation, rows: &mut Rows) {
    let stored = stored(image, mutation);
    let mut row = rows.now(stored);
    let mut key = stored.key.clone();
    let mut table = stored.table;
    match mutation.kind {
        3 => mutation.edit(&mut row),
        // Under another key: a second one, or moved there.
        4 => {
            mutation.edit(&mut key);
            if mutation.how >= 10 {
                rows.0.insert((table, stored.key.clone()), None);
            }
        }
        5 => {
            rows.0.insert((table, key), None);
            return;
        }
        // In another table.
        _ => {
            table = (mutation.at % TABLES.len() as u16) as u8;
            mutation.edit(&mut row);
        }
    }
    rows.0.insert((table, key), Some(row));
}

fn store_rows(world: &SimWorld, rows: Rows) -> Result<()> {
    let (_, store) = image::open(world, false, false)?;
    let gone = rows.0.iter().filter(|(_, row)| row.is_none());
    store.meta().transact(|tx| {
        for ((table, key), _) in gone {
            tx.delete_raw(*table, key)?;
        }
        Ok(())
    })?;
    store.view(|_| Ok(()))?;
    // The counters that are read afterwards may be among the rows.
    let _ = store.meta().load(&mut |put| {
        for ((table, key), row) in &rows.0 {
            if let Some(row) = row {
                put(*table, key, row)?;
            }
        }
        Ok(())
    });
    store.meta().checkpoint()
}

/// A change of a row as redo has it, or bytes.
fn redo(image: &Image, mutation: &Mutation) -> Vec<u8> {
    if mutation.kind == 8 {
        return mutation.bytes.clone();
    }
    let stored = stored(image, mutation);
    let mut row = stored.row.clone();
    mutation.edit(&mut row);
    let mut changes = vec![stored.table];
    changes.extend_from_slice(&(stored.key.len() as u16).to_le_bytes());
    changes.extend_from_slice(&(row.len() as u32 + 1).to_le_bytes());
    changes.extend_from_slice(&stored.key);
    changes.extend_from_slice(&row);
    changes
}

/// All four copies on one device, or on all.
fn labels(world: &SimWorld, mutation: &Mutation) {
    const AT_BODY_LEN: usize = 12;
    const AT_CRC: usize = 16;
    for index in 0..world.len() {
        if mutation.which & 3 != 3 && usize::from(mutation.which & 3) != index {
            continue;
        }
        let device = world.device(index);
        for offset in label_offsets(device.size()).expect("it has labels") {
            let mut slot = vec![0; LABEL_SLOT];
            device.read_at(offset, &mut slot).expect("a simulated device can be read");
            let length = slot[AT_BODY_LEN..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)) as usize;
            let used = (HEADER_LEN + length).min(LABEL_SLOT);
            mutation.edit_in_place(&mut slot[AT_CRC + 4..used]);
            slot[AT_CRC..AT_CRC + 4].fill(0);
            let sum = crc32c::crc32c(&slot[..used]);
            slot[AT_CRC..AT_CRC + 4].copy_from_slice(&sum.to_le_bytes());
            device.write_at(offset, &[&slot]).expect("a simulated device can be written");
        }
    }
}

fn shard<'i>(image: &'i Image, mutation: &Mutation) -> &'i Shard {
    &image.shards[usize::from(mutation.which) % image.shards.len()]
}

fn header(image: &Image, world: &SimWorld, mutation: &Mutation) {
    let shard = shard(image, mutation);
    edit_header(world, shard, |block| mutation.edit_in_place(&mut block[..BLOCK - 4]));
}

fn edit_header(world: &SimWorld, shard: &Shard, edit: impl FnOnce(&mut [u8])) {
    let device = world.device(shard.device);
    let mut block = vec![0; BLOCK];
    device.read_at(shard.offset(), &mut block).expect("a simulated device can be read");
    edit(&mut block);
    let sum = crc32c::crc32c(&block[..BLOCK - 4]);
    block[BLOCK - 4..].copy_from_slice(&sum.to_le_bytes());
    device.write_at(shard.offset(), &[&block]).expect("a simulated device can be written");
}

/// Changes a payload, its sum in the stripe's row and that in the header.
fn payload(image: &Image, world: &SimWorld, mutation: &Mutation, rows: &mut Rows) {
    let shard = shard(image, mutation);
    let length = shard.row.shard_blocks as usize * BLOCK;
    let device = world.device(shard.device);
    let mut payload = vec![0; length];
    let offset = shard.offset() + BLOCK as u64;
    device.read_at(offset, &mut payload).expect("a simulated device can be read");
    mutation.edit_in_place(&mut payload);
    device.write_at(offset, &[&payload]).expect("a simulated device can be written");
    let mut key = Vec::new();
    shard.stripe.encode(&mut key);
    let stored = image.rows.iter().find(|stored| stored.table == Stripes::ID && stored.key == key);
    let Some(stored) = stored else { return };
    let Ok(mut row) = StripeRow::decode(&rows.now(stored)) else { return };
    let granule = BLOCK << shard.row.granule_shift;
    let sums: Vec<u32> = payload.chunks(granule).map(crc32c::crc32c).collect();
    let from = shard.index * sums.len();
    if let Some(place) = row.sums.get_mut(from..from + sums.len()) {
        place.copy_from_slice(&sums);
    }
    let mut bytes = Vec::new();
    row.encode(&mut bytes);
    rows.0.insert((Stripes::ID, key), Some(bytes));
    edit_header(world, shard, |block| {
        if let Ok(mut header) = ShardHeader::decode(block) {
            header.sums.clone_from(&row.sums);
            block.copy_from_slice(&header.encode());
        }
    });
}
