//! The registers of x86-64, and the functions that enable their instruction sets.

use std::arch::x86_64::*;

use super::fused::{self, Vector};
use crate::erasure::field::{AFFINE, NIBBLES};

/// 64 bytes; a product is one bit-matrix multiplication.
#[derive(Clone, Copy)]
struct Affine512(__m512i);

/// 32 bytes; a product is one bit-matrix multiplication.
#[derive(Clone, Copy)]
struct Affine256(__m256i);

/// 32 bytes; a product is two table look-ups by shuffling.
#[derive(Clone, Copy)]
struct Shuffle256(__m256i);

/// 16 bytes; a product is two table look-ups by shuffling.
#[derive(Clone, Copy)]
struct Shuffle128(__m128i);

// SAFETY: unaligned loads and stores of 64 bytes.
unsafe impl Vector for Affine512 {
    const BYTES: usize = 64;
    const REGISTERS: usize = 32;
    type Operand = __m512i;
    type Factor = __m512i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has AVX-512.
        unsafe { Self(_mm512_setzero_si512()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the CPU has AVX-512; the caller vouches for 64 bytes.
        unsafe { Self(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has AVX-512; the caller vouches for 64 bytes.
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn operand(self) -> __m512i {
        self.0
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> __m512i {
        // SAFETY: the CPU has AVX-512.
        unsafe { _mm512_set1_epi64(AFFINE[usize::from(coefficient)].cast_signed()) }
    }

    #[inline(always)]
    unsafe fn plus(self, operand: __m512i, factor: __m512i) -> Self {
        // SAFETY: the CPU has AVX-512 and GFNI.
        unsafe { Self(_mm512_xor_si512(self.0, _mm512_gf2p8affine_epi64_epi8::<0>(operand, factor))) }
    }
}

// SAFETY: unaligned loads and stores of 32 bytes.
unsafe impl Vector for Affine256 {
    const BYTES: usize = 32;
    const REGISTERS: usize = 16;
    type Operand = __m256i;
    type Factor = __m256i;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has AVX2.
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the CPU has AVX2; the caller vouches for 32 bytes.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has AVX2; the caller vouches for 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn operand(self) -> __m256i {
        self.0
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> __m256i {
        // SAFETY: the CPU has AVX2.
        unsafe { _mm256_set1_epi64x(AFFINE[usize::from(coefficient)].cast_signed()) }
    }

    #[inline(always)]
    unsafe fn plus(self, operand: __m256i, factor: __m256i) -> Self {
        // SAFETY: the CPU has AVX2 and GFNI.
        unsafe { Self(_mm256_xor_si256(self.0, _mm256_gf2p8affine_epi64_epi8::<0>(operand, factor))) }
    }
}

// SAFETY: unaligned loads and stores of 32 bytes.
unsafe impl Vector for Shuffle256 {
    const BYTES: usize = 32;
    const REGISTERS: usize = 16;
    /// The low and the high nibble of each byte.
    type Operand = (__m256i, __m256i);
    /// Products of the coefficient with low and with high nibbles, the same in both halves.
    type Factor = (__m256i, __m256i);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has AVX2.
        unsafe { Self(_mm256_setzero_si256()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the CPU has AVX2; the caller vouches for 32 bytes.
        unsafe { Self(_mm256_loadu_si256(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has AVX2; the caller vouches for 32 bytes.
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn operand(self) -> Self::Operand {
        // SAFETY: the CPU has AVX2.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            (_mm256_and_si256(self.0, mask), _mm256_and_si256(_mm256_srli_epi64::<4>(self.0), mask))
        }
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> Self::Factor {
        let nibbles = &NIBBLES[usize::from(coefficient)];
        // SAFETY: the CPU has AVX2; both tables have 16 bytes.
        unsafe {
            (
                _mm256_broadcastsi128_si256(_mm_loadu_si128(nibbles.low.as_ptr().cast())),
                _mm256_broadcastsi128_si256(_mm_loadu_si128(nibbles.high.as_ptr().cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn plus(self, operand: Self::Operand, factor: Self::Factor) -> Self {
        // SAFETY: the CPU has AVX2.
        unsafe {
            let low = _mm256_shuffle_epi8(factor.0, operand.0);
            let high = _mm256_shuffle_epi8(factor.1, operand.1);
            Self(_mm256_xor_si256(self.0, _mm256_xor_si256(low, high)))
        }
    }
}

// SAFETY: unaligned loads and stores of 16 bytes.
unsafe impl Vector for Shuffle128 {
    const BYTES: usize = 16;
    const REGISTERS: usize = 16;
    /// The low and the high nibble of each byte.
    type Operand = (__m128i, __m128i);
    /// Products of the coefficient with low and with high nibbles.
    type Factor = (__m128i, __m128i);

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: the CPU has SSE2.
        unsafe { Self(_mm_setzero_si128()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the CPU has SSE2; the caller vouches for 16 bytes.
        unsafe { Self(_mm_loadu_si128(from.cast())) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: the CPU has SSE2; the caller vouches for 16 bytes.
        unsafe { _mm_storeu_si128(to.cast(), self.0) }
    }

    #[inline(always)]
    unsafe fn operand(self) -> Self::Operand {
        // SAFETY: the CPU has SSE2.
        unsafe {
            let mask = _mm_set1_epi8(15);
            (_mm_and_si128(self.0, mask), _mm_and_si128(_mm_srli_epi64::<4>(self.0), mask))
        }
    }

    #[inline(always)]
    unsafe fn factor(coefficient: u8) -> Self::Factor {
        let nibbles = &NIBBLES[usize::from(coefficient)];
        // SAFETY: the CPU has SSE2; both tables have 16 bytes.
        unsafe { (_mm_loadu_si128(nibbles.low.as_ptr().cast()), _mm_loadu_si128(nibbles.high.as_ptr().cast())) }
    }

    #[inline(always)]
    unsafe fn plus(self, operand: Self::Operand, factor: Self::Factor) -> Self {
        // SAFETY: the CPU has SSSE3.
        unsafe {
            let low = _mm_shuffle_epi8(factor.0, operand.0);
            let high = _mm_shuffle_epi8(factor.1, operand.1);
            Self(_mm_xor_si128(self.0, _mm_xor_si128(low, high)))
        }
    }
}

/// A kernel over one kind of register, and the question whether this CPU can run it.
macro_rules! kernel {
    ($name:ident, $has:ident, $vector:ty, $features:literal, $($feature:tt),+) => {
        pub(super) fn $has() -> bool {
            $(is_x86_feature_detected!($feature))&&+
        }

        /// See [`Kernel::apply`](super::Kernel::apply).
        ///
        /// # Safety
        #[doc = concat!("The CPU has ", $features, ", and the slices are as `fused::apply` demands.")]
        #[target_feature(enable = $features)]
        pub(super) unsafe fn $name(rows: &[u8], sources: &[&[u8]], destinations: &mut [&mut [u8]]) {
            // SAFETY: the caller's promises.
            unsafe { fused::apply::<$vector>(rows, sources, destinations) }
        }
    };
}

kernel!(gfni_avx512, has_gfni_avx512, Affine512, "avx512f,avx512bw,gfni", "avx512f", "avx512bw", "gfni");
kernel!(gfni_avx2, has_gfni_avx2, Affine256, "avx2,gfni", "avx2", "gfni");
kernel!(avx2, has_avx2, Shuffle256, "avx2", "avx2");
kernel!(ssse3, has_ssse3, Shuffle128, "ssse3", "ssse3");
