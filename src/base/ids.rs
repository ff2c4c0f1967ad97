//! Identifiers. Each is a newtype so that one cannot be passed for another.

use std::fmt;

use wincode::{SchemaRead, SchemaWrite};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, SchemaWrite, SchemaRead)]
        pub struct $name(pub $repr);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// Inode number, 48 bits used; the root is [`Ino::ROOT`]. Never reused within a pool.
    Ino, u64
);
id!(
    /// Stripe number. Reserved ahead durably, never reused.
    StripeId, u64
);
id!(
    /// Index of a device within its pool; a replaced device's index is not reused while anything refers to it.
    DeviceId, u16
);
id!(
    /// Number of a metadata transaction; grows by one per commit.
    TxnId, u64
);

impl Ino {
    /// The root directory.
    pub const ROOT: Ino = Ino(1);
}

/// 128 random bits: pools, devices, epochs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, SchemaWrite, SchemaRead)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// The id that no object has.
    pub const NIL: Uuid = Uuid([0; 16]);

    /// A random (version 4) id from `entropy`.
    pub fn random(entropy: &mut dyn super::Entropy) -> Uuid {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        bytes[6] = (bytes[6] & 0x0f) | 0x40;
        bytes[8] = (bytes[8] & 0x3f) | 0x80;
        Uuid(bytes)
    }

    /// Reads the usual 8-4-4-4-12 form (dashes optional).
    pub fn parse(text: &str) -> Option<Uuid> {
        let mut bytes = [0u8; 16];
        let mut nibbles = text.bytes().filter(|b| *b != b'-');
        for byte in &mut bytes {
            let high = (nibbles.next()? as char).to_digit(16)?;
            let low = (nibbles.next()? as char).to_digit(16)?;
            *byte = (high * 16 + low) as u8;
        }
        nibbles.next().is_none().then_some(Uuid(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.0.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Random id of one read-write mount; carried by every shard header and stripe row
/// so that headers of a lost future are never mixed with those of the new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, SchemaWrite, SchemaRead)]
pub struct Incarnation(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuid_text_round_trips() {
        let id = Uuid::random(&mut crate::base::Prng::new(7));
        assert_eq!(Uuid::parse(&id.to_string()), Some(id));
        assert_eq!(Uuid::parse("12"), None);
        assert_eq!(Uuid::parse(&format!("{id}0")), None);
    }
}
