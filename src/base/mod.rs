//! Units, identifiers, errors, time and randomness shared by every layer.
//! Above: everything. Below: nothing; no I/O happens here.

pub mod clock;
pub mod error;
pub mod file;
pub mod ids;
pub mod rng;
pub mod sync;
pub mod units;

pub use clock::{Clock, SystemClock, Timestamp};
pub use error::{Error, Result};
pub use ids::{DeviceId, Incarnation, Ino, StripeId, TxnId, Uuid};
pub use rng::{Entropy, Prng, SystemEntropy};
pub use units::{BLOCK_SIZE, BlockNo, Blocks, Bytes};
