//! Sizes and positions, each with its unit in the type.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

/// Unit of allocation on a device, in bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// A count of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Bytes(pub u64);

/// A count of 4 KiB blocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Blocks(pub u64);

/// The position of a block on a device, counted from the device's start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct BlockNo(pub u64);

impl Blocks {
    /// The bytes these blocks hold.
    pub fn bytes(self) -> Bytes {
        Bytes(self.0 * BLOCK_SIZE)
    }
}

impl Bytes {
    /// The blocks needed to hold these bytes.
    pub fn blocks_ceil(self) -> Blocks {
        Blocks(self.0.div_ceil(BLOCK_SIZE))
    }

    /// The whole blocks within these bytes.
    pub fn blocks_floor(self) -> Blocks {
        Blocks(self.0 / BLOCK_SIZE)
    }
}

impl BlockNo {
    /// Byte offset of the block on its device.
    pub fn byte_offset(self) -> u64 {
        self.0 * BLOCK_SIZE
    }
}

impl Add<Blocks> for BlockNo {
    type Output = BlockNo;
    fn add(self, count: Blocks) -> BlockNo {
        BlockNo(self.0 + count.0)
    }
}

macro_rules! arithmetic {
    ($($name:ident),*) => {$(
        impl Add for $name {
            type Output = $name;
            fn add(self, other: $name) -> $name {
                $name(self.0 + other.0)
            }
        }
        impl Sub for $name {
            type Output = $name;
            fn sub(self, other: $name) -> $name {
                $name(self.0 - other.0)
            }
        }
        impl AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                self.0 += other.0;
            }
        }
        impl SubAssign for $name {
            fn sub_assign(&mut self, other: $name) {
                self.0 -= other.0;
            }
        }
        impl Sum for $name {
            fn sum<I: Iterator<Item = $name>>(items: I) -> $name {
                $name(items.map(|item| item.0).sum())
            }
        }
    )*};
}
arithmetic!(Bytes, Blocks);

impl fmt::Display for Bytes {
    /// Binary units with one decimal, as `12.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 { write!(f, "{} B", self.0) } else { write!(f, "{value:.1} {}", UNITS[unit]) }
    }
}

impl Bytes {
    /// Parses `4096`, `64K`, `10M`, `2G`, `1T`, with an optional `iB` or `B` behind the letter; all binary.
    pub fn parse(text: &str) -> Option<Bytes> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, suffix) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let shift = match suffix.to_ascii_lowercase().trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            "p" => 50,
            _ => return None,
        };
        number.checked_mul(1 << shift).map(Bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        assert_eq!(Bytes::parse("64K"), Some(Bytes(65536)));
        assert_eq!(Bytes::parse("2GiB"), Some(Bytes(2 << 30)));
        assert_eq!(Bytes::parse("10x"), None);
        assert_eq!(Bytes::parse("99999999999P"), None);
        assert_eq!(Bytes(1536).to_string(), "1.5 KiB");
        assert_eq!(Bytes(17).to_string(), "17 B");
    }
}
