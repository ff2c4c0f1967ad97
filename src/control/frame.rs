//! What travels over the socket: frames of a kind, a length and a payload.
//!
//! Invariant: nothing a peer sends makes the reader allocate more than [`FRAME_MAX`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::io::{self, Read, Write};

/// Longest payload of a frame, in bytes.
pub const FRAME_MAX: usize = 1 << 20;

/// What a frame carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Kind {
    /// Client: a request in JSON.
    Request = b'Q',
    /// Server: how far long work is, in JSON.
    Progress = b'P',
    /// Server: a piece of a stream of bytes.
    Data = b'D',
    /// Server: a piece of an answer that does not fit into one frame; the rest follows.
    More = b'M',
    /// Server: the answer in JSON, or the rest of it; the last frame.
    Answer = b'A',
    /// Server: why there is no answer, in JSON; the last frame.
    Failure = b'F',
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        [Kind::Request, Kind::Progress, Kind::Data, Kind::More, Kind::Answer, Kind::Failure]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Sends one frame.
pub fn write(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    if payload.len() > FRAME_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the answer is longer than a frame"));
    }
    let mut bytes = Vec::with_capacity(5 + payload.len());
    bytes.push(kind as u8);
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(payload);
    to.write_all(&bytes)
}

/// Sends an answer of any length, in as many frames as it takes.
pub fn write_answer(to: &mut impl Write, mut payload: &[u8]) -> io::Result<()> {
    while let Some((piece, rest)) = payload.split_at_checked(FRAME_MAX) {
        write(to, Kind::More, piece)?;
        payload = rest;
    }
    write(to, Kind::Answer, payload)
}

/// Receives one frame; `None` when the peer is gone.
pub fn read(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut head = [0; 5];
    let first = loop {
        match from.read(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(head.get_mut(first..).unwrap_or_default())?;
    let [kind, len @ ..] = head;
    let invalid = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    let kind = Kind::from_byte(kind).ok_or_else(|| invalid("a frame of unknown kind"))?;
    let len = u32::from_le_bytes(len) as usize;
    if len > FRAME_MAX {
        return Err(invalid("a frame is too long"));
    }
    let mut payload = vec![0; len];
    from.read_exact(&mut payload)?;
    Ok(Some((kind, payload)))
}
