//! Any bytes as key and row of any table: refused, or exported as JSON that can be read.
#![no_main]

use argosfs::format::export;
use argosfs::format::table::TABLES;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [table, key, rest @ ..] = data else { return };
    let (key, row) = rest.split_at(rest.len().min(usize::from(*key)));
    let mut text = String::new();
    if export::row(table % TABLES.len() as u8, key, row, &mut text).is_ok() {
        let value: serde_json::Value = serde_json::from_str(&text).expect("an exported row is JSON");
        assert!(value.is_object());
    }
});
