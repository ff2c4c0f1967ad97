//! The erasure code: k data shards become k + m shards, any k of which give back the rest. Pure computation, no I/O.
//! Above: `pool` (stripe I/O) and whatever sizes stripes. Below: `base` only.
//!
//! Invariants, frozen in the on-device format:
//! - The field is GF(2^8) modulo 0x11d; the code is `V * inv(V[0..k])` with `V[r][c] = r^c`, byte by byte along
//!   the shards.
//! - Shard i is therefore the value at point i of the polynomial of degree below k through the data shards at points
//!   0..k. Parity j is the value at point k + j: it depends on k and j, never on m, so that parity can be added to a
//!   stripe later without rewriting it.
//! - Every kernel computes the same bytes as the scalar one; which of them runs is never visible on a device.

mod codec;
mod field;
mod geometry;
pub mod kernel;
mod matrix;

pub use codec::Codec;
pub use geometry::Geometry;

#[cfg(test)]
mod tests;
