//! Whatever the metadata log is made of: anchors with a hash that matches, heads of entries, redo units, checkpoints.
#![no_main]

use argosfs::format::log::{Anchor, Checkpoint, EntryHead, HEAD, each_group};

/// Bytes of an anchor in front of its hash.
const ANCHOR_HASHED: usize = 80;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [what, data @ ..] = data else { return };
    match what % 4 {
        0 => {
            let mut anchor = data.to_vec();
            anchor.resize(ANCHOR_HASHED, 0);
            let hash = blake3::hash(&anchor);
            anchor.extend_from_slice(hash.as_bytes());
            if let Some(found) = Anchor::decode(&anchor) {
                assert_eq!(Anchor::decode(&found.encode()), Some(found));
            }
        }
        1 => {
            if let Some(mut head) = EntryHead::decode(data) {
                let payload = data.get(HEAD..).unwrap_or_default();
                let _ = head.matches(data, payload);
                let sealed = head.seal(payload);
                assert!(EntryHead::decode(&sealed).is_some_and(|head| head.matches(&sealed, payload)));
            }
        }
        2 => {
            let mut bytes = 0;
            let whole = each_group(data, |_, changes| bytes += 12 + changes.len());
            assert!(bytes <= data.len() && (whole.is_err() || bytes == data.len()));
        }
        _ => {
            if let Ok(checkpoint) = Checkpoint::decode(data) {
                assert_eq!(Checkpoint::decode(&checkpoint.encode()).expect("it was just encoded"), checkpoint);
            }
        }
    }
});
