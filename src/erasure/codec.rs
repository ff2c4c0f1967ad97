//! Encoding and reconstruction of stripes. Both are bytewise: any range of bytes, taken alike from all shards, is a
//! codeword of its own, so pieces of shards can be encoded, read and rebuilt.

use super::geometry::Geometry;
use super::kernel::Kernel;
use super::matrix;
use crate::base::{Error, Result};

/// The code of one geometry. Cheap to make, free to share between threads.
#[derive(Clone, Debug)]
pub struct Codec {
    geometry: Geometry,
    kernel: &'static Kernel,
    /// `m` rows of `k` coefficients.
    parity: Vec<u8>,
}

impl Codec {
    /// The code of `geometry` on the fastest kernel of this CPU.
    pub fn new(geometry: Geometry) -> Codec {
        Codec::with_kernel(geometry, Kernel::best())
    }

    /// The code of `geometry` on a kernel of the caller's choice.
    pub fn with_kernel(geometry: Geometry, kernel: &'static Kernel) -> Codec {
        let data: Vec<u8> = (0..geometry.k()).collect();
        Codec { geometry, kernel, parity: matrix::rows(&data, geometry.k()..geometry.shards()) }
    }

    /// The geometry this code was made for.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Overwrites the `m` parity shards with what belongs to the `k` data shards. All have one length.
    pub fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        if data.len() != usize::from(self.geometry.k()) || parity.len() != usize::from(self.geometry.m()) {
            return Err(Error::Invalid("encoding takes every data and every parity shard of the stripe"));
        }
        one_length(data.iter().map(|shard| shard.len()).chain(parity.iter().map(|shard| shard.len())))?;
        self.kernel.apply(&self.parity, data, parity);
        Ok(())
    }

    /// Overwrites the `wanted` shards, data or parity, with what follows from those `present`. Each comes with its index
    /// in the stripe; all have one length. Of more than `k` present shards the first `k` are used. A wanted shard that is
    /// present as well comes out as it is.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with fewer than `k` shards present: what is wanted is lost. [`Error::Invalid`] for an index
    /// outside the stripe, the same shard present twice, or lengths that differ.
    pub fn reconstruct(&self, present: &[(u8, &[u8])], wanted: &mut [(u8, &mut [u8])]) -> Result<()> {
        let shards = self.geometry.shards();
        let Some(used) = present.get(..usize::from(self.geometry.k())) else {
            return Err(Error::corrupt(format!(
                "{} shards of a {} stripe are left, {} are needed",
                present.len(),
                self.geometry,
                self.geometry.k()
            )));
        };
        if used
            .iter()
            .map(|(index, _)| index)
            .chain(wanted.iter().map(|(index, _)| index))
            .any(|&index| index >= shards)
        {
            return Err(Error::Invalid("a shard index outside the stripe"));
        }
        one_length(used.iter().map(|(_, shard)| shard.len()).chain(wanted.iter().map(|(_, shard)| shard.len())))?;
        let points: Vec<u8> = used.iter().map(|(index, _)| *index).collect();
        let mut seen = [false; 256];
        if points.iter().any(|&point| std::mem::replace(&mut seen[usize::from(point)], true)) {
            return Err(Error::Invalid("the same shard is present twice"));
        }
        let rows = matrix::rows(&points, wanted.iter().map(|(index, _)| *index));
        let sources: Vec<&[u8]> = used.iter().map(|(_, shard)| *shard).collect();
        let mut destinations: Vec<&mut [u8]> = wanted.iter_mut().map(|(_, shard)| &mut **shard).collect();
        self.kernel.apply(&rows, &sources, &mut destinations);
        Ok(())
    }
}

fn one_length(mut lengths: impl Iterator<Item = usize>) -> Result<()> {
    let first = lengths.next();
    if lengths.all(|length| Some(length) == first) {
        Ok(())
    } else {
        Err(Error::Invalid("shards of different lengths"))
    }
}
