//! Streams of bytes through zstd, in pieces.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::io::Write;

use zstd::stream::raw::{self, Operation};

use crate::base::{Error, Result};

/// Takes what has been produced.
pub type Sink<'s> = &'s mut dyn FnMut(&[u8]) -> Result<()>;

/// Fast, and most of what there is to gain.
const LEVEL: i32 = 1;
/// Largest window a stream may ask for, as a power of two: bounds the memory to read it.
const WINDOW_LOG_MAX: u32 = 23;

/// Bytes handed on at once: a stream of a few bytes may become any number.
const PIECE: usize = 64 << 10;

/// Compresses a stream.
pub struct Compressor(zstd::stream::write::Encoder<'static, Vec<u8>>);

impl Compressor {
    pub fn new() -> Result<Compressor> {
        Ok(Compressor(zstd::stream::write::Encoder::new(Vec::new(), LEVEL).map_err(|_| no_memory())?))
    }

    /// Takes more of the stream.
    pub fn push(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<()> {
        self.0.write_all(bytes).map_err(|_| no_memory())?;
        hand_on(self.0.get_mut(), sink)
    }

    /// Ends the stream.
    pub fn finish(self, sink: Sink<'_>) -> Result<()> {
        hand_on(&mut self.0.finish().map_err(|_| no_memory())?, sink)
    }
}

/// Reads a compressed stream. Any bytes at all may come in; that the stream is whole is for the reader to see.
pub struct Decompressor {
    decoder: raw::Decoder<'static>,
    out: Vec<u8>,
}

impl Decompressor {
    pub fn new() -> Result<Decompressor> {
        let mut decoder = raw::Decoder::new().map_err(|_| no_memory())?;
        decoder.set_parameter(raw::DParameter::WindowLogMax(WINDOW_LOG_MAX)).map_err(|_| no_memory())?;
        Ok(Decompressor { decoder, out: vec![0; PIECE] })
    }

    /// Takes more of the compressed stream.
    pub fn push(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<()> {
        let mut input = raw::InBuffer::around(bytes);
        loop {
            let mut output = raw::OutBuffer::around(&mut self.out[..]);
            let step = self.decoder.run(&mut input, &mut output);
            step.map_err(|error| Error::corrupt(format!("a compressed stream cannot be read: {error}")))?;
            let produced = output.pos();
            if produced > 0 {
                sink(self.out.get(..produced).unwrap_or_default())?;
            }
            if input.pos() == bytes.len() && produced < PIECE {
                return Ok(());
            }
        }
    }
}

fn hand_on(produced: &mut Vec<u8>, sink: Sink<'_>) -> Result<()> {
    if !produced.is_empty() {
        sink(produced)?;
        produced.clear();
    }
    Ok(())
}

fn no_memory() -> Error {
    Error::Unavailable("there is not enough memory to compress or decompress".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    fn compressed(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut out = Vec::new();
        let mut sink = |bytes: &[u8]| {
            out.extend_from_slice(bytes);
            Ok(())
        };
        let mut compressor = Compressor::new().unwrap();
        for piece in bytes.chunks(piece) {
            compressor.push(piece, &mut sink).unwrap();
        }
        compressor.finish(&mut sink).unwrap();
        out
    }

    fn decompressed(bytes: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut decompressor = Decompressor::new()?;
        for piece in bytes.chunks(piece) {
            decompressor.push(piece, &mut |bytes| {
                out.extend_from_slice(bytes);
                Ok(())
            })?;
        }
        Ok(out)
    }

    #[test]
    fn streams_come_back_whatever_the_pieces() {
        let mut prng = Prng::new(1);
        let bytes: Vec<u8> = (0..300_000).map(|at| if at % 9 < 5 { b'a' } else { prng.next() as u8 }).collect();
        for (into, out_of) in [(1000, 7000), (300_000, 13), (77, 300_000)] {
            let small = compressed(&bytes, into);
            assert!(small.len() < bytes.len() * 3 / 4);
            assert!(decompressed(&small, out_of).unwrap() == bytes);
        }
        assert!(decompressed(&compressed(&[], 1), 5).unwrap().is_empty());
    }

    #[test]
    fn what_a_few_bytes_become_comes_in_pieces() {
        let small = compressed(&vec![0; 200 << 20], 1 << 20);
        let mut length = 0;
        let mut decompressor = Decompressor::new().unwrap();
        let mut sink = |bytes: &[u8]| {
            assert!(bytes.len() <= PIECE);
            length += bytes.len();
            Ok(())
        };
        decompressor.push(&small, &mut sink).unwrap();
        assert_eq!(length, 200 << 20);
    }

    #[test]
    fn other_bytes_are_an_error_or_other_bytes() {
        let mut prng = Prng::new(2);
        let small = compressed(&vec![7; 100_000], 1000);
        for _ in 0..2_000 {
            let mut forged = small.clone();
            let at = prng.below(forged.len() as u64) as usize;
            forged[at] ^= 1 << prng.below(8);
            let _ = decompressed(&forged, 50);
        }
        assert!(matches!(decompressed(b"no such thing at all", 9), Err(Error::Corrupt(_))));
    }
}
