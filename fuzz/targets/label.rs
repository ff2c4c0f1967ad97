//! A label slot: anything in it, with a checksum that matches.
#![no_main]

use argosfs::format::label::{HEADER_LEN, LABEL_MAGIC, LABEL_SLOT, Label};

const AT_BODY_LEN: usize = 12;
const AT_CRC: usize = 16;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut slot = data[..data.len().min(LABEL_SLOT)].to_vec();
    slot.resize(slot.len().max(HEADER_LEN), 0);
    slot[..8].copy_from_slice(&LABEL_MAGIC);
    let body = (slot.len() - HEADER_LEN) as u32;
    slot[AT_BODY_LEN..AT_BODY_LEN + 4].copy_from_slice(&body.to_le_bytes());
    slot[AT_CRC..AT_CRC + 4].fill(0);
    let sum = crc32c::crc32c(&slot);
    slot[AT_CRC..AT_CRC + 4].copy_from_slice(&sum.to_le_bytes());
    if let Ok(label) = Label::decode(&slot) {
        // It may not fit any more: what is stored may be shorter than what is meant.
        if let Ok(again) = label.encode() {
            assert_eq!(Label::decode(&again), Ok(label));
        }
    }
});
