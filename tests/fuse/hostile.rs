//! P5: whatever bytes come out of `/dev/fuse`, each request gets one well-formed answer and nothing panics.

use std::io::{self, IoSlice};
use std::sync::Mutex;

use argosfs::base::{Ino, Prng};
use argosfs::fuse::abi::{InHeader, OutHeader, op};
use argosfs::fuse::adapter::Adapter;
use argosfs::fuse::reply::Channel;
use argosfs::fuse::request::Dialect;
use argosfs::fuse::{Buffer, Filesystem, Report};
use zerocopy::{FromBytes, IntoBytes};

use crate::memfs::MemFs;

#[derive(Default)]
struct Recorder(Mutex<Vec<Vec<u8>>>);

impl Channel for Recorder {
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.lock().expect("not poisoned").push(parts.iter().flat_map(|part| part.to_vec()).collect());
        Ok(())
    }
}

/// Bytes that are often meaningful: small numbers, names, flags; sometimes anything.
fn body(random: &mut Prng) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < 200 && !random.chance(1, 12) {
        match random.below(8) {
            0 => bytes.extend_from_slice(&random.next().to_ne_bytes()),
            1 => bytes.extend_from_slice(&random.below(70_000).to_ne_bytes()),
            2 => bytes.extend_from_slice(&(random.below(4) as u32).to_ne_bytes()),
            3 => bytes.extend_from_slice(&(1u32 << random.below(32)).to_ne_bytes()),
            4 => bytes.extend_from_slice(&u64::MAX.to_ne_bytes()),
            5 => bytes.extend_from_slice(b"name\0"),
            6 => bytes.extend_from_slice(&[b'a' + random.below(3) as u8, 0]),
            _ => bytes.extend_from_slice(&[0; 8]),
        }
    }
    bytes
}

#[test]
fn every_request_gets_one_answer() {
    let seed = 7_452_026;
    let mut random = Prng::new(seed);
    let fs = MemFs::new(true, None);
    let report = Report::new(|_| {});
    let mut buffer = Buffer::new().expect("memory");
    let channel = Recorder::default();
    let (mut good, mut wide) = (0, 0);
    for round in 0..60_000u64 {
        let opcode = random.below(60) as u32;
        // What these do to a filesystem is only safe when a kernel keeps the books.
        if matches!(opcode, op::FORGET | op::BATCH_FORGET | op::RENAME | op::RENAME2) {
            continue;
        }
        let body = body(&mut random);
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: round * 2 + 2,
            nodeid: random.below(6),
            ..Default::default()
        };
        let message = [header.as_bytes(), body.as_slice()].concat();
        buffer.message_mut()[..message.len()].copy_from_slice(&message);
        let adapter = Adapter { fs: &fs, dialect: Dialect { setxattr_ext: random.chance(1, 2) }, report: &report };
        adapter.serve(&channel, &mut buffer, message.len());
        let replies = std::mem::take(&mut *channel.0.lock().expect("not poisoned"));
        let silent = matches!(opcode, op::INTERRUPT | op::NOTIFY_REPLY);
        assert_eq!(replies.len(), usize::from(!silent), "seed {seed} round {round} opcode {opcode}");
        for reply in replies {
            let (header, rest) = OutHeader::read_from_prefix(&reply).expect("a header");
            assert_eq!((header.len as usize, header.unique), (reply.len(), round * 2 + 2));
            assert!((-4095..=0).contains(&header.error), "seed {seed} round {round} errno {}", header.error);
            assert!(header.error == 0 || rest.is_empty(), "seed {seed} round {round}: an error carries nothing");
            good += u32::from(header.error == 0);
            wide += u32::from(!rest.is_empty());
        }
    }
    assert!(good > 5_000 && wide > 2_000, "{good} requests succeeded, {wide} with content");
    fs.getattr(Ino::ROOT).expect("the filesystem lives");
}
