//! The one operation of the code, in as many forms as there are instruction sets: each destination becomes the sum over
//! all sources of coefficient times source. Above: the codec. Below: the field's tables.
//!
//! Invariants: every kernel gives the bytes of the scalar one for any length and alignment, and a [`Kernel`] can only be
//! had when this CPU can run it.

mod fused;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::OnceLock;

/// A kernel's code. To be called only where the CPU supports it, with at least one source and slices that fit together.
type Run = unsafe fn(rows: &[u8], sources: &[&[u8]], destinations: &mut [&mut [u8]]);

/// One implementation of [`apply`](Kernel::apply).
pub struct Kernel {
    name: &'static str,
    supported: fn() -> bool,
    run: Run,
}

/// All kernels, fastest first.
static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "gfni-avx512", supported: x86::has_gfni_avx512, run: x86::gfni_avx512 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "gfni-avx2", supported: x86::has_gfni_avx2, run: x86::gfni_avx2 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "avx2", supported: x86::has_avx2, run: x86::avx2 },
    #[cfg(target_arch = "x86_64")]
    Kernel { name: "ssse3", supported: x86::has_ssse3, run: x86::ssse3 },
    Kernel { name: "scalar", supported: || true, run: scalar::apply },
];

impl Kernel {
    /// The fastest kernel of this CPU, found at the first call.
    pub fn best() -> &'static Kernel {
        static BEST: OnceLock<&Kernel> = OnceLock::new();
        BEST.get_or_init(|| Kernel::available().next().expect("the scalar kernel runs everywhere"))
    }

    /// The kernels that this CPU can run, fastest first.
    pub fn available() -> impl Iterator<Item = &'static Kernel> {
        KERNELS.iter().filter(|kernel| (kernel.supported)())
    }

    /// The kernel called `name`, if there is one and this CPU can run it.
    pub fn named(name: &str) -> Option<&'static Kernel> {
        Kernel::available().find(|kernel| kernel.name == name)
    }

    /// The names of all kernels compiled in, including those that this CPU cannot run.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KERNELS.iter().map(|kernel| kernel.name)
    }

    /// What this kernel is called in benchmarks and reports.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Sets destination i to the sum over j of `rows[i][j]` times source j, where `rows` holds one coefficient per source
    /// for each destination, destination after destination. Without sources the destinations become zero.
    ///
    /// # Panics
    /// When the slices are not all of one length or `rows` has another size: a mistake of the caller, never of its data.
    pub fn apply(&self, rows: &[u8], sources: &[&[u8]], destinations: &mut [&mut [u8]]) {
        let Some(length) = destinations.first().map(|first| first.len()) else { return };
        assert_eq!(rows.len(), sources.len() * destinations.len(), "one coefficient per source and destination");
        assert!(sources.iter().all(|source| source.len() == length), "sources as long as destinations");
        assert!(destinations.iter().all(|destination| destination.len() == length), "destinations of one length");
        match sources {
            [] => destinations.iter_mut().for_each(|destination| destination.fill(0)),
            // A mirror.
            [source] if rows.iter().all(|&coefficient| coefficient == 1) => {
                destinations.iter_mut().for_each(|destination| destination.copy_from_slice(source));
            }
            // SAFETY: a kernel is only handed out when this CPU supports it; shapes were checked above.
            _ => unsafe { (self.run)(rows, sources, destinations) },
        }
    }
}

impl fmt::Debug for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kernel({})", self.name)
    }
}
