//! How a row becomes bytes. Fixed rows: a version byte, then little-endian fields, nothing else. Variable rows: the
//! fixed part and a tail, or a version byte and bincode's wire format. Decoding checks every length first.

use crate::base::{Error, Result};

/// A value stored in a table.
pub trait Row: Sized {
    /// Appends the stored form to `out`.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the stored form. Any bytes at all may come in.
    fn decode(bytes: &[u8]) -> Result<Self>;
}

/// A key of a table; the order of the bytes is the order of the keys.
pub trait Key: Sized {
    /// Appends the stored form to `out`.
    fn encode(&self, out: &mut Vec<u8>);
    /// Reads the stored form. Any bytes at all may come in.
    fn decode(bytes: &[u8]) -> Result<Self>;
}

/// Takes fields off the front of a byte string.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| Error::corrupt("a record is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// Fails unless everything was taken.
    pub fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::corrupt("a record is longer than its version says")) }
    }
}

/// A field of fixed width.
pub trait Field: Sized {
    fn put(&self, out: &mut Vec<u8>);
    fn take(from: &mut Fields<'_>) -> Result<Self>;
}

macro_rules! integer_fields {
    ($($int:ty),*) => {$(
        impl Field for $int {
            #[inline]
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            #[inline]
            fn take(from: &mut Fields<'_>) -> Result<Self> {
                from.take().map(<$int>::from_le_bytes)
            }
        }
    )*};
}
integer_fields!(u8, u16, u32, u64, i64);

macro_rules! newtype_fields {
    ($($name:ty),*) => {$(
        impl Field for $name {
            #[inline]
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            #[inline]
            fn take(from: &mut Fields<'_>) -> Result<Self> {
                Field::take(from).map(Self)
            }
        }
    )*};
}
newtype_fields!(
    crate::base::Ino,
    crate::base::StripeId,
    crate::base::DeviceId,
    crate::base::TxnId,
    crate::base::Incarnation,
    crate::base::BlockNo,
    crate::base::Uuid
);

impl<const N: usize> Field for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(from: &mut Fields<'_>) -> Result<Self> {
        from.take()
    }
}

impl Field for crate::base::Timestamp {
    fn put(&self, out: &mut Vec<u8>) {
        self.seconds.put(out);
        self.nanos.put(out);
    }
    fn take(from: &mut Fields<'_>) -> Result<Self> {
        let (seconds, nanos) = (Field::take(from)?, Field::take(from)?);
        if nanos >= 1_000_000_000 {
            return Err(Error::corrupt("a timestamp has more than a second of nanoseconds"));
        }
        Ok(Self { seconds, nanos })
    }
}

/// Declares a struct of fixed-width fields with its stored form: a version byte, then the fields in order.
/// With `tail NAME`, the rest of the bytes goes to that `Vec<u8>`.
#[macro_export]
macro_rules! fixed_row {
    ($(#[$doc:meta])* pub struct $name:ident, version $version:literal {
        $($(#[$field_doc:meta])* pub $field:ident : $kind:ty),* $(,)?
    } $(tail $tail:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
            $(/// The bytes that follow the fixed part.
            pub $tail: Vec<u8>,)?
        }

        impl $crate::format::record::Row for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.push($version);
                $($crate::format::record::Field::put(&self.$field, out);)*
                $(out.extend_from_slice(&self.$tail);)?
            }

            fn decode(bytes: &[u8]) -> $crate::base::Result<Self> {
                let mut from = $crate::format::record::Fields(bytes);
                let version: u8 = $crate::format::record::Field::take(&mut from)?;
                if version != $version {
                    return Err($crate::format::record::unknown_version(stringify!($name), version));
                }
                $(let $field = $crate::format::record::Field::take(&mut from)?;)*
                $(let $tail = std::mem::take(&mut from.0).to_vec();)?
                from.end()?;
                Ok(Self { $($field,)* $($tail,)? })
            }
        }
    };
}

/// Implements [`Row`] for a type in bincode's wire format behind a version byte.
#[macro_export]
macro_rules! wire_row {
    ($name:ty, version $version:literal) => {
        impl $crate::format::record::Row for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                out.push($version);
                let bytes = wincode::serialize(self).expect("rows stay far below the encoder's limits");
                out.extend_from_slice(&bytes);
            }

            fn decode(bytes: &[u8]) -> $crate::base::Result<Self> {
                match bytes.split_first() {
                    Some((&$version, body)) => wincode::deserialize_exact(body)
                        .map_err(|e| $crate::base::Error::corrupt(format!("{}: {e}", stringify!($name)))),
                    Some((&version, _)) => Err($crate::format::record::unknown_version(stringify!($name), version)),
                    None => Err($crate::base::Error::corrupt(concat!(stringify!($name), " is empty"))),
                }
            }
        }
    };
}

/// The error for a row of a version this build does not read.
pub fn unknown_version(what: &str, version: u8) -> Error {
    Error::corrupt(format!("{what} has version {version}, which this build does not read; use a newer argosfs"))
}

impl Row for () {
    fn encode(&self, _: &mut Vec<u8>) {}
    fn decode(bytes: &[u8]) -> Result<Self> {
        Fields(bytes).end()
    }
}

impl Row for u64 {
    fn encode(&self, out: &mut Vec<u8>) {
        self.put(out);
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        let mut from = Fields(bytes);
        let value = Field::take(&mut from)?;
        from.end()?;
        Ok(value)
    }
}

impl Row for Vec<u8> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn decode(bytes: &[u8]) -> Result<Self> {
        Ok(bytes.to_vec())
    }
}

/// A field of a key: big-endian, so that byte order is key order.
pub trait KeyField: Sized {
    fn put_key(&self, out: &mut Vec<u8>);
    fn take_key(from: &mut Fields<'_>) -> Result<Self>;
}

macro_rules! key_integers {
    ($($int:ty),*) => {$(
        impl KeyField for $int {
            fn put_key(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
            fn take_key(from: &mut Fields<'_>) -> Result<Self> {
                from.take().map(<$int>::from_be_bytes)
            }
        }
    )*};
}
key_integers!(u8, u16, u32, u64);

macro_rules! key_newtypes {
    ($($name:ty),*) => {$(
        impl KeyField for $name {
            fn put_key(&self, out: &mut Vec<u8>) {
                self.0.put_key(out);
            }
            fn take_key(from: &mut Fields<'_>) -> Result<Self> {
                KeyField::take_key(from).map(Self)
            }
        }
    )*};
}
key_newtypes!(crate::base::Ino, crate::base::StripeId, crate::base::DeviceId, crate::base::TxnId);

/// Declares a key of fixed-width fields; its order is that of the fields. With `tail NAME`, a byte string ends it.
#[macro_export]
macro_rules! key {
    ($(#[$doc:meta])* pub struct $name:ident {
        $($(#[$field_doc:meta])* pub $field:ident : $kind:ty),* $(,)?
    } $(tail $tail:ident)?) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
            $(/// The bytes that end the key.
            pub $tail: Vec<u8>,)?
        }

        impl $crate::format::record::Key for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::format::record::KeyField::put_key(&self.$field, out);)*
                $(out.extend_from_slice(&self.$tail);)?
            }

            fn decode(bytes: &[u8]) -> $crate::base::Result<Self> {
                let mut from = $crate::format::record::Fields(bytes);
                $(let $field = $crate::format::record::KeyField::take_key(&mut from)?;)*
                $(let $tail = std::mem::take(&mut from.0).to_vec();)?
                from.end()?;
                Ok(Self { $($field,)* $($tail,)? })
            }
        }
    };
}

macro_rules! single_keys {
    ($($name:ty),*) => {$(
        impl Key for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                KeyField::put_key(self, out);
            }
            fn decode(bytes: &[u8]) -> Result<Self> {
                let mut from = Fields(bytes);
                let key = KeyField::take_key(&mut from)?;
                from.end()?;
                Ok(key)
            }
        }
    )*};
}
single_keys!(u8, u64, crate::base::Ino, crate::base::StripeId, crate::base::DeviceId);
