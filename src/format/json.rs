//! Canonical JSON: objects whose keys ascend, integers, no spaces. Byte strings that are not UTF-8 stay reversible.
//!
//! Invariant: equal values give equal bytes; nothing depends on locale, time or order of insertion.

/// Writes one object.
pub struct Object<'o> {
    out: &'o mut String,
    last: &'static str,
}

impl<'o> Object<'o> {
    /// Opens an object at the end of `out`; [`Object::end`] closes it.
    pub fn begin(out: &'o mut String) -> Object<'o> {
        out.push('{');
        Object { out, last: "" }
    }

    fn key(&mut self, key: &'static str) {
        debug_assert!(self.last < key, "keys of canonical JSON ascend: {} before {key}", self.last);
        if !self.last.is_empty() {
            self.out.push(',');
        }
        self.last = key;
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
    }

    /// A number that is not negative.
    pub fn number(&mut self, key: &'static str, value: impl Into<u64>) -> &mut Self {
        self.key(key);
        decimal(self.out, value.into());
        self
    }

    /// True or false.
    pub fn boolean(&mut self, key: &'static str, value: bool) -> &mut Self {
        self.key(key);
        self.out.push_str(if value { "true" } else { "false" });
        self
    }

    /// Text.
    pub fn text(&mut self, key: &'static str, value: &str) -> &mut Self {
        self.key(key);
        quoted(self.out, value);
        self
    }

    /// A byte string that is usually text: under `key` when it is UTF-8, otherwise under `key_b64` in base64.
    /// `key_b64` must sort directly behind `key`.
    pub fn name(&mut self, key: &'static str, key_b64: &'static str, value: &[u8]) -> &mut Self {
        match std::str::from_utf8(value) {
            Ok(text) => self.text(key, text),
            Err(_) => self.base64(key_b64, value),
        }
    }

    /// Bytes in base64.
    pub fn base64(&mut self, key: &'static str, value: &[u8]) -> &mut Self {
        self.key(key);
        self.out.push('"');
        base64(self.out, value);
        self.out.push('"');
        self
    }

    /// Bytes in hexadecimal.
    pub fn hex(&mut self, key: &'static str, value: &[u8]) -> &mut Self {
        self.key(key);
        self.out.push('"');
        hex(self.out, value);
        self.out.push('"');
        self
    }

    /// A time as `[seconds, nanoseconds]`.
    pub fn time(&mut self, key: &'static str, seconds: i64, nanos: u32) -> &mut Self {
        self.key(key);
        self.out.push('[');
        if seconds < 0 {
            self.out.push('-');
        }
        decimal(self.out, seconds.unsigned_abs());
        self.out.push(',');
        decimal(self.out, nanos.into());
        self.out.push(']');
        self
    }

    /// An array, each element written by `write`.
    pub fn array<T>(
        &mut self,
        key: &'static str,
        items: impl IntoIterator<Item = T>,
        mut write: impl FnMut(&mut String, T),
    ) -> &mut Self {
        self.key(key);
        self.out.push('[');
        for (at, item) in items.into_iter().enumerate() {
            if at > 0 {
                self.out.push(',');
            }
            write(self.out, item);
        }
        self.out.push(']');
        self
    }

    /// An object within this one.
    pub fn object(&mut self, key: &'static str, write: impl FnOnce(&mut Object<'_>)) -> &mut Self {
        self.key(key);
        let mut inner = Object::begin(self.out);
        write(&mut inner);
        inner.end();
        self
    }

    /// Closes the object.
    pub fn end(&mut self) {
        self.out.push('}');
    }
}

/// Appends a number.
pub fn decimal(out: &mut String, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut unused = digits.len();
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
        unused -= 1;
        if value == 0 {
            break;
        }
    }
    out.extend(digits.iter().skip(unused).map(|digit| char::from(*digit)));
}

/// Appends text in quotes, escaping only what JSON demands.
pub fn quoted(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 => {
                out.push_str("\\u00");
                hex(out, &[c as u8]);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends bytes in lower-case hexadecimal.
pub fn hex(out: &mut String, bytes: &[u8]) {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    for byte in bytes {
        out.extend(DIGITS.get(usize::from(byte >> 4)));
        out.extend(DIGITS.get(usize::from(byte & 15)));
    }
}

/// Appends bytes in base64 (RFC 4648, with padding).
pub fn base64(out: &mut String, bytes: &[u8]) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for piece in bytes.chunks(3) {
        let mut group = [0; 4];
        group.iter_mut().skip(1).zip(piece).for_each(|(to, byte)| *to = *byte);
        let word = u32::from_be_bytes(group);
        for place in 0..4 {
            let digit = DIGITS.get((word >> (18 - 6 * place) & 63) as usize).filter(|_| place <= piece.len());
            out.push(digit.map_or('=', |digit| char::from(*digit)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_what_a_json_parser_reads() {
        let mut out = String::new();
        let mut object = Object::begin(&mut out);
        object.boolean("a", true).number("b", u64::MAX).text("c", "tab\t \"quote\" \\ \u{1} ü");
        object.time("d", -5, 7).array("e", [1u64, 2], decimal).object("f", |inner| {
            inner.hex("g", &[0xab, 1]);
        });
        object.end();
        let read: serde_json::Value = serde_json::from_str(&out).expect("valid JSON");
        assert_eq!(read["b"], serde_json::json!(u64::MAX));
        assert_eq!(read["c"], "tab\t \"quote\" \\ \u{1} ü");
        assert_eq!(read["d"], serde_json::json!([-5, 7]));
        assert_eq!(read["f"]["g"], "ab01");
        assert_eq!(serde_json::to_string(&read).expect("writes"), out, "the same canonical form as a sorted map");
    }

    #[test]
    fn base64_has_the_vectors_of_the_rfc() {
        for (plain, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg=="), ("foobar", "Zm9vYmFy")]
        {
            let mut out = String::new();
            base64(&mut out, plain.as_bytes());
            assert_eq!(out, coded);
        }
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "ascend")]
    fn keys_out_of_order_are_refused() {
        Object::begin(&mut String::new()).number("b", 1u64).number("a", 1u64);
    }
}
