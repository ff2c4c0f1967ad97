//! The loop that all vector kernels share, generic over what one register can do.
//!
//! A strip of a few registers' width is computed for up to four destinations at once: the sums stay in registers while all
//! sources are walked, so each source byte is read once per group of destinations and each destination byte is written
//! once. The last, partial register of a shard is computed over the shard's last full register's width, some bytes of it a
//! second time to the same values; only shards shorter than one register go through the scalar kernel.
//!
//! Everything here is inlined into a function that enables the instruction set (`x86`), and must be: that is what makes
//! the intrinsics behind [`Vector`] single instructions. Hence no closures around them.

use super::scalar;

/// One register of bytes, and how it is multiplied.
///
/// # Safety
/// `load` and `store` touch exactly `BYTES` bytes at the pointer, without asking for alignment.
pub(super) unsafe trait Vector: Copy {
    /// Bytes in a register.
    const BYTES: usize;
    /// Registers of the instruction set, which decides how wide a strip is.
    const REGISTERS: usize;
    /// Source bytes in the form that products want.
    type Operand: Copy;
    /// A coefficient in the form that products want.
    type Factor: Copy;

    /// # Safety
    /// The CPU has the instruction set (so for all methods).
    unsafe fn zero() -> Self;
    /// # Safety
    /// `BYTES` bytes can be read at `from`.
    unsafe fn load(from: *const u8) -> Self;
    /// # Safety
    /// `BYTES` bytes can be written at `to`.
    unsafe fn store(self, to: *mut u8);
    /// # Safety
    /// As for all methods.
    unsafe fn operand(self) -> Self::Operand;
    /// # Safety
    /// As for all methods.
    unsafe fn factor(coefficient: u8) -> Self::Factor;
    /// This sum plus `operand` times `factor`.
    ///
    /// # Safety
    /// As for all methods.
    unsafe fn plus(self, operand: Self::Operand, factor: Self::Factor) -> Self;
}

/// With more than one group of destinations the sources are read again for each group: in pieces that stay in the first
/// level cache.
const PIECE: usize = 2048;

/// See [`Kernel::apply`](super::Kernel::apply).
///
/// # Safety
/// The CPU has the instruction set of `V`. There is at least one source, all slices have one length, and `rows` one
/// coefficient per source and destination.
#[inline(always)]
pub(super) unsafe fn apply<V: Vector>(rows: &[u8], sources: &[&[u8]], destinations: &mut [&mut [u8]]) {
    let length = sources[0].len();
    if length < V::BYTES {
        return scalar::apply(rows, sources, destinations);
    }
    let step = if destinations.len() <= 4 { length } else { PIECE };
    let mut from = 0;
    while from < length {
        let to = length.min(from + step);
        for (rows, group) in rows.chunks(4 * sources.len()).zip(destinations.chunks_mut(4)) {
            // SAFETY: the caller's promises; `BYTES <= to <= length`, because every piece but the last, which ends at
            // `length`, is longer than a register.
            unsafe {
                match (group.len(), V::REGISTERS >= 32) {
                    (1, _) => columns::<V, 1, 4>(rows, sources, group, from, to),
                    (2, _) => columns::<V, 2, 4>(rows, sources, group, from, to),
                    (3, false) => columns::<V, 3, 2>(rows, sources, group, from, to),
                    (_, false) => columns::<V, 4, 2>(rows, sources, group, from, to),
                    (3, true) => columns::<V, 3, 4>(rows, sources, group, from, to),
                    (_, true) => columns::<V, 4, 4>(rows, sources, group, from, to),
                }
            }
        }
        from = to;
    }
}

/// The bytes `from..to` of `D` destinations, in strips of `N` registers.
///
/// # Safety
/// As for [`apply`]; there are `D` destinations, and `BYTES <= to <= length`.
#[inline(always)]
unsafe fn columns<V: Vector, const D: usize, const N: usize>(
    rows: &[u8],
    sources: &[&[u8]],
    destinations: &mut [&mut [u8]],
    from: usize,
    to: usize,
) {
    let mut at = from;
    // SAFETY: each strip lies within `..to`; the last one starts at `to - BYTES`, which is not negative.
    unsafe {
        while at + N * V::BYTES <= to {
            strip::<V, D, N>(rows, sources, destinations, at);
            at += N * V::BYTES;
        }
        while at + V::BYTES <= to {
            strip::<V, D, 1>(rows, sources, destinations, at);
            at += V::BYTES;
        }
        if at < to {
            strip::<V, D, 1>(rows, sources, destinations, to - V::BYTES);
        }
    }
}

/// `N` registers at `at` of `D` destinations.
///
/// # Safety
/// As for [`apply`]; there are `D` destinations, and `at + N * BYTES <= length`.
#[inline(always)]
unsafe fn strip<V: Vector, const D: usize, const N: usize>(
    rows: &[u8],
    sources: &[&[u8]],
    destinations: &mut [&mut [u8]],
    at: usize,
) {
    // SAFETY: the caller's promises: row `d` holds one coefficient per source at `d * sources.len()`, and all slices reach
    // as far as the strip.
    unsafe {
        let mut sums = [[V::zero(); N]; D];
        for (j, source) in sources.iter().enumerate() {
            let start = source.as_ptr().add(at);
            let mut operands = [V::zero().operand(); N];
            for (n, operand) in operands.iter_mut().enumerate() {
                *operand = V::load(start.add(n * V::BYTES)).operand();
            }
            for (d, sums) in sums.iter_mut().enumerate() {
                let factor = V::factor(*rows.get_unchecked(d * sources.len() + j));
                for (sum, operand) in sums.iter_mut().zip(operands) {
                    *sum = sum.plus(operand, factor);
                }
            }
        }
        for (d, sums) in sums.iter().enumerate() {
            let start = destinations.get_unchecked_mut(d).as_mut_ptr().add(at);
            for (n, sum) in sums.iter().enumerate() {
                sum.store(start.add(n * V::BYTES));
            }
        }
    }
}
