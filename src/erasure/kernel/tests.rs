use super::fused::{self, Vector};
use super::{Kernel, scalar};
use crate::base::{Entropy, Prng};
use crate::erasure::field::{AFFINE, emulate_affine, mul};

/// Bytes around each destination that no kernel may touch.
const MARGIN: usize = 64;
const UNTOUCHED: u8 = 0xa5;

type Apply<'a> = &'a dyn Fn(&[u8], &[&[u8]], &mut [&mut [u8]]);

/// One random call of the given shape, each slice at its own random alignment, compared with byte by byte arithmetic.
fn compare(rng: &mut Prng, name: &str, apply: Apply, sources: usize, destinations: usize, length: usize) {
    let mut rows = vec![0; sources * destinations];
    rng.fill(&mut rows);
    let source_buffers: Vec<(usize, Vec<u8>)> = (0..sources)
        .map(|_| {
            let mut buffer = vec![0; length + 64];
            rng.fill(&mut buffer);
            (rng.below(64) as usize, buffer)
        })
        .collect();
    let sources: Vec<&[u8]> = source_buffers.iter().map(|(start, buffer)| &buffer[*start..start + length]).collect();
    let starts: Vec<usize> = (0..destinations).map(|_| MARGIN + rng.below(64) as usize).collect();
    let mut buffers = vec![vec![UNTOUCHED; length + 3 * MARGIN]; destinations];
    let mut slices: Vec<&mut [u8]> =
        buffers.iter_mut().zip(&starts).map(|(buffer, start)| &mut buffer[*start..start + length]).collect();

    apply(&rows, &sources, &mut slices);

    for (i, (buffer, start)) in buffers.iter().zip(&starts).enumerate() {
        let shape = || format!("{name}: destination {i} of {destinations}, {} sources of {length}", sources.len());
        for (at, &byte) in buffer.iter().enumerate() {
            if (*start..start + length).contains(&at) {
                let row = &rows[i * sources.len()..];
                let sum = sources.iter().zip(row).fold(0, |sum, (source, &c)| sum ^ mul(c, source[at - start]));
                assert_eq!(byte, sum, "{}, byte {}", shape(), at - start);
            } else {
                assert_eq!(byte, UNTOUCHED, "{}, wrote outside at {at}, which starts at {start}", shape());
            }
        }
    }
}

/// Every length up to a few strips, every number of destinations up to three groups, and a length of several pieces.
fn compare_all_shapes(name: &str, apply: Apply) {
    let mut rng = Prng::new(0x5eed);
    for length in 0..300 {
        let sources = 1 + rng.below(12) as usize;
        let destinations = 1 + rng.below(9) as usize;
        compare(&mut rng, name, apply, sources, destinations, length);
    }
    for destinations in 1..=9 {
        for length in [63, 64, 65, 255, 256, 257, 1000] {
            compare(&mut rng, name, apply, 3, destinations, length);
        }
    }
    for (sources, destinations, length) in
        [(10, 4, 8192), (2, 5, 4096 + 1), (2, 5, 4096 + 63), (3, 8, 6000), (200, 55, 97)]
    {
        compare(&mut rng, name, apply, sources, destinations, length);
    }
}

#[test]
fn the_scalar_kernel_is_the_formula() {
    compare_all_shapes("scalar", &scalar::apply);
}

#[test]
fn every_kernel_of_this_cpu_is_the_formula() {
    for name in Kernel::names() {
        match Kernel::named(name) {
            Some(kernel) => {
                println!("kernel {name}: compared");
                compare_all_shapes(name, &|rows, sources, destinations| kernel.apply(rows, sources, destinations));
            }
            None => eprintln!(
                "SKIPPED: kernel {name} was NOT RUN, this CPU lacks its instructions; \
                 only its matrices and its loop are tested, on an emulated register"
            ),
        }
    }
}

/// The GFNI register without GFNI, so that the loop runs everywhere with the widths and matrices of those kernels.
#[derive(Clone, Copy)]
struct Emulated<const BYTES: usize, const REGISTERS: usize>([u8; BYTES]);

// SAFETY: unaligned reads and writes of BYTES bytes.
unsafe impl<const WIDTH: usize, const COUNT: usize> Vector for Emulated<WIDTH, COUNT> {
    const BYTES: usize = WIDTH;
    const REGISTERS: usize = COUNT;
    type Operand = Self;
    type Factor = u64;

    unsafe fn zero() -> Self {
        Self([0; WIDTH])
    }
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's promise.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the caller's promise.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }
    unsafe fn operand(self) -> Self {
        self
    }
    unsafe fn factor(coefficient: u8) -> u64 {
        AFFINE[usize::from(coefficient)]
    }
    unsafe fn plus(mut self, operand: Self, factor: u64) -> Self {
        for (sum, byte) in self.0.iter_mut().zip(operand.0) {
            *sum ^= emulate_affine(factor, byte);
        }
        self
    }
}

#[test]
fn the_loop_with_emulated_bit_matrices_is_the_formula() {
    // SAFETY: emulated registers need no instruction set; `compare` passes slices of one length and enough coefficients.
    compare_all_shapes("emulated 64x32", &|rows, sources, destinations| unsafe {
        fused::apply::<Emulated<64, 32>>(rows, sources, destinations);
    });
    // SAFETY: as above.
    compare_all_shapes("emulated 32x16", &|rows, sources, destinations| unsafe {
        fused::apply::<Emulated<32, 16>>(rows, sources, destinations);
    });
}

#[test]
fn kernels_are_found_by_name_only_where_they_run() {
    assert_eq!(Kernel::available().last().map(Kernel::name), Some("scalar"));
    assert!(Kernel::named("no such kernel").is_none());
    assert_eq!(Kernel::best().name(), Kernel::available().next().unwrap().name());
    for kernel in Kernel::available() {
        assert_eq!(Kernel::named(kernel.name()).map(Kernel::name), Some(kernel.name()));
    }
}

#[test]
fn degenerate_shapes() {
    for kernel in Kernel::available() {
        kernel.apply(&[], &[], &mut []);
        kernel.apply(&[], &[&[1, 2]], &mut []);
        let mut cleared = [7; 100];
        kernel.apply(&[], &[], &mut [&mut cleared]);
        assert_eq!(cleared, [0; 100]);
        let source: Vec<u8> = (0..100).collect();
        let (mut first, mut second) = ([7; 100], [7; 100]);
        kernel.apply(&[1, 1], &[&source], &mut [&mut first, &mut second]);
        assert_eq!((first.as_slice(), second.as_slice()), (source.as_slice(), source.as_slice()));
    }
}

#[test]
#[should_panic(expected = "one coefficient per source and destination")]
fn missing_coefficients_are_a_bug() {
    Kernel::best().apply(&[1], &[&[1], &[2]], &mut [&mut [0]]);
}

#[test]
#[should_panic(expected = "sources as long as destinations")]
fn short_sources_are_a_bug() {
    Kernel::best().apply(&[1, 2], &[&[1, 2], &[2]], &mut [&mut [0, 0]]);
}

#[test]
#[should_panic(expected = "destinations of one length")]
fn uneven_destinations_are_a_bug() {
    Kernel::best().apply(&[1, 2], &[&[1, 2]], &mut [&mut [0, 0], &mut [0]]);
}
