use super::*;
use crate::base::Prng;

pub(crate) fn sample() -> Label {
    let layout = GroupLayout { start: 256, blocks: 15_000, group_blocks: 512 };
    let member = |id: u16| MemberEntry {
        id: DeviceId(id),
        uuid: Uuid([id as u8 + 1; 16]),
        state: MemberState::Active,
        class: 2,
        tier: 0,
        weight_milli: 1000,
        failure_domain: u64::from(id),
        size: 64 << 20,
        layout,
        last_epoch: Uuid([9; 16]),
        path: format!("/dev/disk{id}"),
    };
    Label {
        device: DeviceIdent { uuid: Uuid([2; 16]), id: DeviceId(1), size: 64 << 20, layout },
        pool: PoolLabel {
            features: Features { compat: 1 << 63, ro_compat: 0, incompat: 0 },
            uuid: Uuid([7; 16]),
            name: "tank".to_owned(),
            sequence: 42,
            settings: PoolSettings {
                block_size: 4096,
                geometry: DefaultGeometry { k: 1, m: 1, shard_blocks: 128 },
                incarnation: Incarnation(0x1122_3344_5566_7788),
                created: 1_700_000_000,
            },
            epoch: Epoch {
                id: Uuid([9; 16]),
                number: 3,
                ancestors: vec![Uuid([8; 16]), Uuid([6; 16])],
                reason: "device 0 was dropped".to_owned(),
            },
            members: vec![member(0), member(1)],
            meta: MetaRoot {
                generation: 5,
                volume: 0x99aa,
                chunk_blocks: 512,
                replicas: vec![ReplicaRoot { device: 0, log_block: 256, log_blocks: 512, stale: false }],
                chunks: vec![ChunkRun { device: 0, chunk: 0, count: 2, block: 768 }],
            },
            archives: vec![Archive {
                txn: 77,
                created: 1_700_000_001,
                length: 12_345,
                digest: [5; 32],
                indirect: false,
                stripes: vec![StripeLocation {
                    stripe: 9,
                    k: 1,
                    m: 1,
                    shard_blocks: 4,
                    payload_bytes: 12_345,
                    placements: vec![
                        ShardLocation { device: 0, block: 2_000 },
                        ShardLocation { device: 1, block: 2_000 },
                    ],
                }],
            }],
            key_slots: vec![KeySlot { kind: 1, bytes: vec![1, 2, 3] }],
            unknown: vec![Section { number: 900, bytes: b"from the future".to_vec() }],
        },
    }
}

/// Puts the right checksum on a slot whose header or body was changed.
fn reseal(slot: &mut [u8]) {
    let len = HEADER_LEN + u32::from_le_bytes(slot[AT_BODY_LEN..AT_BODY_LEN + 4].try_into().unwrap()) as usize;
    slot[AT_CRC..AT_CRC + 4].fill(0);
    let crc = crc32c::crc32c(&slot[..len]);
    slot[AT_CRC..AT_CRC + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn a_label_round_trips_with_what_it_does_not_know() {
    let label = sample();
    let slot = label.encode().unwrap();
    assert_eq!(slot.len(), LABEL_SLOT);
    assert_eq!(Label::decode(&slot).unwrap(), label);
}

#[test]
fn golden_bytes() {
    let slot = sample().encode().unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(
        hex(&slot[..112]),
        "4172676f7346530a01000000a1020000dcf3bacd000000000000000000000080000000000000000000000000000000000707070707070707\
         0707070707070707020202020202020202020202020202022a0000000000000000000004000000000474616e6b0000000000000000000000"
    );
    assert_eq!(
        blake3::hash(&slot).to_hex().as_str(),
        "b0e4aac04dc741e0c91c1c00f45ea00ecf74f85eb55317fa901e08c7fc80175a"
    );
}

#[test]
fn metadata_that_lies_where_something_else_does_is_refused() {
    let refused = |spoil: &dyn Fn(&mut MetaRoot)| {
        let mut label = sample();
        spoil(&mut label.pool.meta);
        let slot = label.encode().unwrap();
        assert!(matches!(Label::decode(&slot), Err(LabelFault::Damaged(_))), "{:?}", label.pool.meta);
    };
    refused(&|meta| meta.chunks[0].block = 767);
    refused(&|meta| meta.chunks[0].block = u64::MAX);
    refused(&|meta| meta.chunks[0].count = u32::MAX);
    refused(&|meta| meta.chunks[0].block = 14_300);
    refused(&|meta| meta.replicas[0].log_block = 255);
    refused(&|meta| meta.replicas[0].log_blocks = 513);
    refused(&|meta| meta.chunks.push(ChunkRun { device: 0, chunk: 2, count: 1, block: 1_791 }));
    // Pieces without blocks lie over nothing, and can be named twice.
    let empty = |chunk| ChunkRun { device: 0, chunk, count: 0, block: 5_000 };
    refused(&|meta| meta.chunks.extend([empty(2), empty(3)]));
    let stale = |device| ReplicaRoot { device, log_block: 9_000, log_blocks: 0, stale: true };
    refused(&|meta| meta.replicas.push(stale(0)));
    // On devices that nobody knows, too, and longer than can be counted with.
    refused(&|meta| meta.chunks.push(ChunkRun { device: 9, chunk: 2, count: 1 << 23, block: 768 }));
    // Chunks as small as nobody makes them: there would be very many.
    refused(&|meta| {
        meta.chunk_blocks = 63;
        meta.chunks[0].count = 1;
    });
    let mut label = sample();
    // What the member table has checked is not what counts.
    label.device.layout.blocks = 1_024;
    assert!(matches!(Label::decode(&label.encode().unwrap()), Err(LabelFault::Damaged(_))));
    // Next to each other, and on a device that nobody knows.
    let mut label = sample();
    label.pool.meta.chunks.push(ChunkRun { device: 0, chunk: 2, count: 1, block: 1_792 });
    label.pool.meta.chunks.push(ChunkRun { device: 7, chunk: 0, count: 1, block: 0 });
    assert_eq!(Label::decode(&label.encode().unwrap()).unwrap(), label);
}

#[test]
fn newer_formats_are_named_and_not_read() {
    let mut slot = sample().encode().unwrap();
    slot[AT_VERSION] = 2;
    reseal(&mut slot);
    let newer = |version, incompat| LabelFault::Newer { version, incompat, pool: "tank".to_owned() };
    assert_eq!(Label::decode(&slot), Err(newer(2, 0)));
    let mut slot = sample().encode().unwrap();
    slot[AT_INCOMPAT] = 4;
    // The body of a newer format may be anything.
    slot[HEADER_LEN..HEADER_LEN + 40].fill(0xee);
    reseal(&mut slot);
    assert_eq!(Label::decode(&slot), Err(newer(1, 4)));
    let mut slot = sample().encode().unwrap();
    slot[AT_RO_COMPAT] = 1;
    reseal(&mut slot);
    assert!(!Label::decode(&slot).unwrap().pool.writable());
}

#[test]
fn every_flipped_bit_is_noticed() {
    let slot = sample().encode().unwrap();
    let len = HEADER_LEN + u32::from_le_bytes(slot[AT_BODY_LEN..AT_BODY_LEN + 4].try_into().unwrap()) as usize;
    for bit in 0..len * 8 {
        let mut bad = slot[..len].to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Label::decode(&bad).is_err(), "bit {bit}");
    }
    // What follows in the slot is not covered.
    assert!(Label::decode(&slot[..len]).is_ok());
    assert!(Label::decode(&slot[..len - 1]).is_err());
}

#[test]
fn hostile_bytes_never_panic() {
    let slot = sample().encode().unwrap();
    let len = HEADER_LEN + u32::from_le_bytes(slot[AT_BODY_LEN..AT_BODY_LEN + 4].try_into().unwrap()) as usize;
    let mut prng = Prng::new(3);
    let mut read = 0;
    for round in 0..60_000 {
        let mut bad = slot[..len].to_vec();
        for _ in 0..1 + prng.below(3) {
            let at = (AT_VERSION as u64 + prng.below((len - AT_VERSION) as u64)) as usize;
            bad[at] = if prng.chance(1, 2) { 0xff } else { prng.next() as u8 };
        }
        if round % 3 == 0 {
            // An impossible length with everything else in order.
            let at = HEADER_LEN + prng.below((len - HEADER_LEN - 8) as u64) as usize;
            bad[at..at + 8].copy_from_slice(&(prng.next() >> prng.below(60)).to_le_bytes());
        }
        let claimed = u32::from_le_bytes(bad[AT_BODY_LEN..AT_BODY_LEN + 4].try_into().unwrap()) as usize;
        if HEADER_LEN + claimed <= bad.len() {
            reseal(&mut bad);
        }
        // What comes through can be written again.
        if let Ok(label) = Label::decode(&bad) {
            read += 1;
            assert_eq!(Label::decode(&label.encode().unwrap()).unwrap(), label);
        }
    }
    assert!(read > 1_000, "only {read} labels came through: the test does not reach the sections");
    for len in 0..600 {
        let mut noise = vec![0; len];
        crate::base::Entropy::fill(&mut prng, &mut noise);
        noise[..len.min(8)].copy_from_slice(&LABEL_MAGIC[..len.min(8)]);
        assert!(Label::decode(&noise).is_err());
    }
}

#[test]
fn impossible_values_are_refused() {
    let refused = |change: fn(&mut Label)| {
        let mut label = sample();
        change(&mut label);
        assert!(matches!(Label::decode(&label.encode().unwrap()), Err(LabelFault::Damaged(_))));
    };
    refused(|label| label.device.layout.blocks = u64::MAX);
    refused(|label| label.device.layout.group_blocks = 500);
    refused(|label| label.device.layout.start = 0);
    refused(|label| label.device.uuid = Uuid([3; 16]));
    refused(|label| label.pool.members[0].uuid = label.pool.members[1].uuid);
    refused(|label| label.pool.members[0].id = DeviceId(1));
    refused(|label| label.pool.members.clear());
    refused(|label| label.pool.settings.geometry.k = 0);
    refused(|label| label.pool.settings.geometry.shard_blocks = 1 << 30);
    refused(|label| (label.pool.settings.geometry.k, label.pool.settings.geometry.m) = (200, 56));
    refused(|label| label.pool.settings.block_size = 512);
    refused(|label| label.pool.sequence = u64::MAX);
    refused(|label| label.pool.epoch.number = u64::MAX);
    refused(|label| label.pool.name = "\u{1b}[2J".to_owned());
}

#[test]
fn a_label_that_does_not_fit_is_refused() {
    let mut label = sample();
    label.pool.meta.chunks =
        (0..4_000).map(|chunk| ChunkRun { device: 0, chunk, count: 1, block: u64::from(chunk) }).collect();
    assert!(matches!(label.encode(), Err(Error::Unavailable(_))));
    label.pool.meta.chunks.truncate(3_000);
    assert!(label.encode().is_ok());
}

#[test]
fn layouts_leave_room_for_the_labels() {
    for size in [6 << 20, (64 << 20) + 4096, 100 << 20, 5 << 30, 20_u64 << 40] {
        let layout = GroupLayout::for_size(size).unwrap();
        let slots = label_offsets(size).unwrap();
        assert!(layout.start * BLOCK_SIZE >= slots[1] + LABEL_SLOT as u64);
        assert!((layout.start + layout.blocks) * BLOCK_SIZE <= slots[2]);
        assert!(slots[3] + LABEL_SLOT as u64 <= size);
        let covered: u64 = (0..layout.groups()).map(|group| layout.group(group).1).sum();
        assert_eq!(covered, layout.blocks);
        assert!(layout.groups() >= 15);
        layout.check(size).unwrap();
    }
    assert_eq!(GroupLayout::for_size(20 << 40).unwrap().group_blocks, GROUP_BLOCKS);
    assert_eq!(GroupLayout::for_size(2 << 20), None);
}
