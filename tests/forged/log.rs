//! Forging entries of the log where they lie: whatever an entry says, its hash is made right, and those of all entries behind it.

use argosfs::base::BLOCK_SIZE;
use argosfs::device::sim::SimWorld;
use argosfs::format::log::{ANCHORS, Anchor, EntryHead, HEAD, Kind, Link};

use crate::image::{self, BLOCK};

/// An entry, and where in the ring it lies.
struct Entry {
    place: usize,
    head: EntryHead,
    payload: Vec<u8>,
}

/// One replica's log: its device, where it begins in bytes, and what is in it behind the anchors.
struct Replica {
    device: usize,
    from: u64,
    ring: Vec<u8>,
}

fn replicas(world: &SimWorld) -> Vec<Replica> {
    let labels: Vec<_> = (0..world.len()).map(|index| image::label(world, index)).collect();
    let mut replicas = Vec::new();
    for root in &labels[0].pool.meta.replicas {
        let Some(device) = labels.iter().position(|label| label.device.id.0 == root.device) else { continue };
        let from = root.log_block * BLOCK_SIZE;
        let mut ring = vec![0; (u64::from(root.log_blocks) - ANCHORS) as usize * BLOCK];
        world.device(device).read_at(from + ANCHORS * BLOCK_SIZE, &mut ring).expect("a simulated device can be read");
        replicas.push(Replica { device, from, ring });
    }
    replicas
}

/// The entries from the newest checkpoint on, in order.
fn entries(ring: &[u8]) -> Vec<Entry> {
    let mut found = Vec::new();
    for (place, block) in ring.chunks_exact(BLOCK).enumerate() {
        let Some(head) = EntryHead::decode(block) else { continue };
        let from = place * BLOCK + HEAD;
        let Some(payload) = ring.get(from..from + head.payload_len as usize) else { continue };
        if head.matches(block, payload) {
            found.push(Entry { place, payload: payload.to_vec(), head });
        }
    }
    found.sort_by_key(|entry| entry.head.seq);
    let newest = found.iter().rposition(|entry| entry.head.kind == Kind::Checkpoint && !entry.head.continued);
    found.split_off(newest.unwrap_or(0))
}

/// Changes one entry of the chain: in its payload at `at`, or, where `in_head`, one of its fields.
pub fn forge_entry(world: &SimWorld, which: usize, in_head: bool, at: usize, bytes: &[u8]) {
    let replicas = replicas(world);
    let Some(first) = replicas.first() else { return };
    let mut chain = entries(&first.ring);
    let count = chain.len().max(1);
    let Some(entry) = chain.get_mut(which % count) else { return };
    let number = bytes.iter().rev().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
    if in_head {
        let head = &mut entry.head;
        match at % 9 {
            0 => head.kind = [Kind::Redo, Kind::Checkpoint, Kind::Opened][number as usize % 3],
            1 => head.more = !head.more,
            2 => head.continued = !head.continued,
            3 => head.life = number as u32,
            4 => head.volume ^= number,
            5 => head.salt = number,
            6 => head.seq = head.seq.wrapping_add(number),
            7 => head.position = head.position.wrapping_add(number),
            _ => entry.payload.truncate(number as usize % (entry.payload.len() + 1)),
        }
    } else {
        let length = entry.payload.len().max(1);
        for (byte, new) in entry.payload.iter_mut().skip(at % length).zip(bytes) {
            *byte = *new;
        }
    }
    let mut rings: Vec<_> = replicas.iter().map(|replica| replica.ring.clone()).collect();
    let mut previous: Option<Link> = None;
    for entry in &mut chain {
        if let Some(link) = previous {
            entry.head.previous = link;
        }
        let head = entry.head.seal(&entry.payload);
        previous = Some(entry.head.hash);
        let from = entry.place * BLOCK;
        for ring in &mut rings {
            ring[from..from + HEAD].copy_from_slice(&head);
            ring[from + HEAD..from + HEAD + entry.payload.len()].copy_from_slice(&entry.payload);
        }
    }
    for (replica, ring) in replicas.iter().zip(&rings) {
        let device = world.device(replica.device);
        for (at, (new, old)) in ring.chunks_exact(BLOCK).zip(replica.ring.chunks_exact(BLOCK)).enumerate() {
            if new != old {
                let offset = replica.from + (ANCHORS + at as u64) * BLOCK_SIZE;
                device.write_at(offset, &[new]).expect("a simulated device can be written");
            }
        }
    }
}

/// Changes both anchors of every replica.
pub fn forge_anchors(world: &SimWorld, field: usize, number: u64) {
    for replica in replicas(world) {
        let device = world.device(replica.device);
        for slot in 0..ANCHORS {
            let mut block = vec![0; BLOCK];
            device.read_at(replica.from + slot * BLOCK_SIZE, &mut block).expect("a simulated device can be read");
            let Some(mut anchor) = Anchor::decode(&block) else { continue };
            match field % 5 {
                0 => anchor.volume ^= number,
                1 => anchor.seq = anchor.seq.wrapping_add(number),
                2 => anchor.position = anchor.position.wrapping_add(number),
                3 => anchor.life = number as u32,
                _ => anchor.previous.0[0] ^= number as u8,
            }
            let bytes = anchor.encode();
            block[..bytes.len()].copy_from_slice(&bytes);
            device.write_at(replica.from + slot * BLOCK_SIZE, &[&block]).expect("a simulated device can be written");
        }
    }
}
