//! What the kernel, or somebody in its place, may send over `/dev/fuse`.
#![no_main]

use argosfs::fuse::request::{Dialect, Operation, Request};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [what, data @ ..] = data else { return };
    let mut bytes = data.to_vec();
    // Mostly with the length the header should have: others are refused at once.
    if what & 1 == 0 && bytes.len() >= 4 {
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_le_bytes());
    }
    if let Ok(request) = Request::parse(&bytes, Dialect { setxattr_ext: what & 2 != 0 })
        && let Operation::BatchForget(forgets) = request.operation
    {
        assert!(forgets.iter().count() * 16 <= bytes.len());
    }
});
