//! How many data and parity shards a stripe has.

use std::fmt;
use std::str::FromStr;

use crate::base::{Error, Result};

/// `k` data shards and `m` parity shards; any `m` of the `k + m` may be lost. Always `k >= 1` and `k + m <= 255`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    k: u8,
    m: u8,
}

impl Geometry {
    /// The most shards a stripe can have: 0xff stays free as an index that no shard has.
    pub const MAX_SHARDS: usize = 255;

    /// One data shard and nothing else: what a single device gets, and only when it is asked for.
    pub const NO_REDUNDANCY: Geometry = Geometry { k: 1, m: 0 };

    /// Checks the numbers, which may come from a user or from a device.
    pub const fn new(k: u8, m: u8) -> Result<Geometry> {
        if k == 0 {
            return Err(Error::Invalid("a stripe needs at least one data shard"));
        }
        if k as usize + m as usize > Self::MAX_SHARDS {
            return Err(Error::Invalid("a stripe has at most 255 shards"));
        }
        Ok(Geometry { k, m })
    }

    /// What a pool of `devices` gets when nothing is asked for. `None` below two devices: giving up redundancy
    /// ([`Geometry::NO_REDUNDANCY`]) is the user's decision.
    pub const fn default_for(devices: usize) -> Option<Geometry> {
        let (k, m) = match devices {
            0 | 1 => return None,
            2 => (1, 1),
            3 => (2, 1),
            4 => (2, 2),
            5 => (3, 2),
            6..=11 => (4, 2),
            _ => (8, 3),
        };
        Some(Geometry { k, m })
    }

    /// Data shards.
    pub const fn k(self) -> u8 {
        self.k
    }

    /// Parity shards, which is how many shards may be lost.
    pub const fn m(self) -> u8 {
        self.m
    }

    /// All shards of a stripe. Data shards are `0..k`, parity shards `k..k + m`.
    pub const fn shards(self) -> u8 {
        self.k + self.m
    }

    /// The fallbacks when devices are missing or full, widest first: fewer data shards, the same parity, hence the same
    /// promise on fewer devices.
    pub fn narrower(self) -> impl DoubleEndedIterator<Item = Geometry> + ExactSizeIterator {
        (1..self.k).rev().map(move |k| Geometry { k, m: self.m })
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

impl fmt::Debug for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Geometry {
    type Err = Error;

    /// Reads the form that is printed, `4+2`.
    fn from_str(text: &str) -> Result<Geometry> {
        let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
        let numbers = text.split_once('+').and_then(|(k, m)| Some((number(k)?, number(m)?)));
        let Some((k, m)) = numbers else {
            return Err(Error::Usage(format!("'{text}' is not a geometry: write data+parity, as in 4+2")));
        };
        Geometry::new(k, m)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(k: u8, m: u8) -> Geometry {
        Geometry::new(k, m).unwrap()
    }

    #[test]
    fn numbers_are_checked() {
        assert!(Geometry::new(0, 0).is_err());
        assert!(Geometry::new(0, 2).is_err());
        assert!(Geometry::new(254, 2).is_err());
        assert!(Geometry::new(255, 255).is_err());
        assert_eq!(geometry(254, 1).shards(), 255);
        assert_eq!(geometry(255, 0).shards(), 255);
        assert_eq!(geometry(1, 0), Geometry::NO_REDUNDANCY);
    }

    #[test]
    fn text_round_trips() {
        assert_eq!(geometry(4, 2).to_string(), "4+2");
        assert_eq!("10+4".parse::<Geometry>().unwrap(), geometry(10, 4));
        for wrong in ["", "4", "4+", "+2", "4+2+1", "4 + 2", "4-2", "++2", "0+1", "300+1", "200+100", "4++2", "+4+2"] {
            assert!(wrong.parse::<Geometry>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn defaults_follow_the_number_of_devices() {
        let names: Vec<_> =
            (0..14).map(|n| Geometry::default_for(n).map_or(String::new(), |g| g.to_string())).collect();
        let expected = ["", "", "1+1", "2+1", "2+2", "3+2", "4+2", "4+2", "4+2", "4+2", "4+2", "4+2", "8+3", "8+3"];
        assert_eq!(names, expected);
        for devices in 2..300 {
            assert!(usize::from(Geometry::default_for(devices).unwrap().shards()) <= devices);
        }
    }

    #[test]
    fn narrower_stripes_keep_their_parity() {
        let names: Vec<_> = geometry(4, 2).narrower().map(|g| g.to_string()).collect();
        assert_eq!(names, ["3+2", "2+2", "1+2"]);
        assert_eq!(geometry(1, 1).narrower().len(), 0);
    }
}
