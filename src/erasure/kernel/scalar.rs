//! The reference: one table look-up per byte. Also finishes what is shorter than a vector register.

use crate::erasure::field::PRODUCTS;

/// See [`Kernel::apply`](super::Kernel::apply); there is at least one source.
pub fn apply(rows: &[u8], sources: &[&[u8]], destinations: &mut [&mut [u8]]) {
    for (row, destination) in rows.chunks_exact(sources.len()).zip(destinations) {
        for (at, (&coefficient, source)) in row.iter().zip(sources).enumerate() {
            let products = &PRODUCTS[usize::from(coefficient)];
            let pairs = destination.iter_mut().zip(*source);
            if at == 0 {
                pairs.for_each(|(to, &from)| *to = products[usize::from(from)]);
            } else {
                pairs.for_each(|(to, &from)| *to ^= products[usize::from(from)]);
            }
        }
    }
}
