//! An object of canonical JSON, taken apart by the name of each field: the other direction of [`super::json`].
//!
//! Invariant: any text at all may come in, and no more is held than a few times its length. Whether the text was canonical
//! is for the caller to see: what is made of it, written again, is the same.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::base::{Error, Result};

/// The fields of an object, each still as its text.
pub struct Parsed<'a>(BTreeMap<&'a str, &'a RawValue>);

impl<'a> Parsed<'a> {
    /// Reads an object.
    pub fn of(text: &'a str) -> Result<Parsed<'a>> {
        match serde_json::from_str(text) {
            Ok(fields) => Ok(Parsed(fields)),
            Err(error) => Err(Error::corrupt(format!("it is not a JSON object ({error})"))),
        }
    }

    fn get<T: Deserialize<'a>>(&self, key: &str) -> Result<T> {
        let Some(value) = self.0.get(key) else {
            return Err(Error::corrupt(format!("it has no \"{key}\"")));
        };
        serde_json::from_str(value.get()).map_err(|error| Error::corrupt(format!("its \"{key}\" is wrong ({error})")))
    }

    /// A number that is not negative.
    pub fn number<T: DeserializeOwned + Into<u64>>(&self, key: &str) -> Result<T> {
        self.get(key)
    }

    /// True or false.
    pub fn boolean(&self, key: &str) -> Result<bool> {
        self.get(key)
    }

    /// Text.
    pub fn text(&self, key: &str) -> Result<String> {
        self.get(key)
    }

    /// A byte string that is usually text: under `key`, or in base64 under `key_b64`.
    pub fn name(&self, key: &str, key_b64: &str) -> Result<Vec<u8>> {
        if self.0.contains_key(key_b64) { self.base64(key_b64) } else { self.text(key).map(String::into_bytes) }
    }

    /// Bytes in base64.
    pub fn base64(&self, key: &str) -> Result<Vec<u8>> {
        base64(&self.text(key)?).ok_or_else(|| Error::corrupt(format!("its \"{key}\" is not base64")))
    }

    /// So many bytes in hexadecimal.
    pub fn hex<const N: usize>(&self, key: &str) -> Result<[u8; N]> {
        hex(&self.text(key)?).ok_or_else(|| Error::corrupt(format!("its \"{key}\" is not {N} bytes in hexadecimal")))
    }

    /// A time: seconds and nanoseconds.
    pub fn time(&self, key: &str) -> Result<(i64, u32)> {
        self.get(key)
    }

    /// An array.
    pub fn array<T: DeserializeOwned>(&self, key: &str) -> Result<Vec<T>> {
        self.get(key)
    }

    /// An object within this one.
    pub fn object(&self, key: &str) -> Result<Parsed<'a>> {
        self.get(key).map(Parsed)
    }
}

/// The bytes that are written like this in hexadecimal.
pub fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut digits = text.chars().map(|digit| digit.to_digit(16));
    let mut bytes = [0; N];
    for byte in &mut bytes {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = (high << 4 | low) as u8;
    }
    digits.next().is_none().then_some(bytes)
}

/// The bytes that are written like this in base64. Lenient about the end; the canonical form is for the caller to see.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 3);
    for group in digits.as_bytes().chunks(4) {
        let mut word = 0;
        for place in 0..4 {
            word = word << 6 | group.get(place).map_or(Some(0), |digit| sextet(*digit))?;
        }
        let [_, three @ ..] = word.to_be_bytes();
        bytes.extend(three.iter().take(group.len() * 6 / 8));
    }
    Some(bytes)
}

fn sextet(digit: u8) -> Option<u32> {
    let value = match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => return None,
    };
    Some(value.into())
}

#[cfg(test)]
mod tests {
    use super::super::json::{self, Object};
    use super::*;
    use crate::base::Prng;

    #[test]
    fn every_kind_of_field_comes_back() {
        let mut prng = Prng::new(1);
        for length in 0..200 {
            let bytes: Vec<u8> = (0..length).map(|_| prng.next() as u8).collect();
            let plain: Vec<u8> = bytes.iter().map(|byte| byte & 0x7f).collect();
            let (number, yes) = (prng.next(), prng.chance(1, 2));
            let time = (prng.next() as i64, prng.next() as u32);
            let digest = *blake3::hash(&bytes).as_bytes();
            let mut out = String::new();
            let mut object = Object::begin(&mut out);
            object.array("array", &bytes, |out, byte| json::decimal(out, (*byte).into())).base64("base64", &bytes);
            object
                .boolean("boolean", yes)
                .hex("hex", &digest)
                .name("name", "name_b64", &bytes)
                .number("number", number);
            object.object("object", |inner| {
                inner.name("plain", "plain_b64", &plain);
            });
            object.time("time", time.0, time.1);
            object.end();
            let parsed = Parsed::of(&out).unwrap();
            assert_eq!(parsed.array::<u8>("array").unwrap(), bytes);
            assert_eq!(parsed.base64("base64").unwrap(), bytes);
            assert_eq!(parsed.boolean("boolean").unwrap(), yes);
            assert_eq!(parsed.hex("hex").unwrap(), digest);
            assert_eq!(parsed.name("name", "name_b64").unwrap(), bytes);
            assert_eq!(parsed.number::<u64>("number").unwrap(), number);
            assert_eq!(parsed.object("object").unwrap().name("plain", "plain_b64").unwrap(), plain);
            assert_eq!(parsed.time("time").unwrap(), time);
        }
    }

    #[test]
    fn what_is_none_of_it_is_refused_by_name() {
        let parsed = Parsed::of(r#"{"a":-1,"b":"zz","c":"A*==","d":300}"#).unwrap();
        for wrong in [
            parsed.number::<u64>("a").err(),
            parsed.hex::<1>("b").err(),
            parsed.base64("c").err(),
            parsed.number::<u8>("d").err(),
            parsed.text("e").err(),
        ]
        .iter()
        .zip('a'..)
        {
            let (error, key) = wrong;
            let error = error.as_ref().expect("is refused").to_string();
            assert!(error.contains(&format!("\"{key}\"")), "{error}");
        }
        let deep = "[".repeat(1 << 20);
        for text in ["", "[]", "{", "{}{}", "{\"a\":}", &format!("{{\"a\":{deep}"), &deep] {
            assert!(Parsed::of(text).is_err());
        }
    }
}
