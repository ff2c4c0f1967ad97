//! An export read back has the rows that were exported, of every table.

use super::*;
use crate::base::{Error, Prng};
use crate::format::import::{Decoder, Item, Stored, row};
use crate::format::record::{Key, Row};
use crate::format::table::Damage;

type Rows = Vec<(u8, Vec<u8>, Vec<u8>)>;

/// A row of every table and every kind of intent, operation and extent.
fn everything() -> Meta {
    let meta = healthy();
    meta.transact(schema::fill_rare_tables).expect("commits");
    meta
}

fn rows_of(meta: &Meta) -> Rows {
    let mut rows = Rows::new();
    meta.view(|view| {
        super::super::export::each_row(view, &mut |table, key, row| {
            rows.push((table, key.to_vec(), row.to_vec()));
            Ok(())
        })
    })
    .expect("reads");
    rows
}

#[test]
fn p9_an_export_has_every_row_whole() {
    let meta = everything();
    let (text, summary) = export_of(&meta);
    let expected = rows_of(&meta);
    assert!(TABLES.iter().all(|(id, _)| expected.iter().any(|(table, ..)| table == id)), "a table was not exercised");
    for piece in [1, 1000, text.len()] {
        let mut found = Rows::new();
        let mut decoder = Decoder::default();
        for piece in text.as_bytes().chunks(piece) {
            let mut visit = |item: Item<'_>| {
                if let Item::Row { table, key, row } = item {
                    found.push((table, key.to_vec(), row.to_vec()));
                }
                Ok(())
            };
            decoder.push(piece, &mut visit).expect("an export is sound");
        }
        assert_eq!(decoder.finish().expect("an export is whole"), summary);
        assert!(found == expected);
    }
}

/// As it would be stored, if it can be read at all.
fn canonical(table: u8, key: &[u8], row: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
    fn of<T: Table>(key: &[u8], row: &[u8]) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut out = (Vec::new(), Vec::new());
        Key::encode(&T::Key::decode(key)?, &mut out.0);
        Row::encode(&T::Row::decode(row)?, &mut out.1);
        Ok(out)
    }
    macro_rules! by_table {
        ($($name:ident)*) => {
            match table {
                $($name::ID => of::<$name>(key, row),)*
                _ => Err(Error::corrupt("unknown")),
            }
        };
    }
    let mut out = by_table! {
        Inodes Dentries Xattrs Extents Stripes StripeLive Backrefs Groups Devices Counters Orphans Intents Journal Config
        History HistoryByDeath Snapshots Decisions Policies Damage
    }?;
    // What is yes or no is stored as 0 or 1.
    let flag = match table {
        StripeLive::ID => out.1.last_mut(),
        History::ID => out.1.get_mut(9),
        _ => None,
    };
    flag.into_iter().for_each(|flag| *flag = (*flag).min(1));
    Ok(out)
}

/// Whatever a row holds: numbers at their ends, names of any bytes, anything that can be read.
#[test]
fn p9_rows_come_back_whatever_is_in_them() {
    let mut prng = Prng::new(12);
    let (mut text, mut found) = (String::new(), Stored::default());
    for (table, key, value) in rows_of(&everything()) {
        let mut sound = 0;
        for round in 0..600 {
            let (mut key, mut value) = (key.clone(), value.clone());
            for _ in 0..round.min(4) {
                let at = prng.below((key.len() + value.len()).max(1) as u64) as usize;
                let byte = if prng.chance(1, 4) { 255 } else { prng.next() as u8 };
                if let Some(place) = key.iter_mut().chain(&mut value).nth(at) {
                    *place = byte;
                }
            }
            text.clear();
            if crate::format::export::row(table, &key, &value, &mut text).is_err() {
                continue;
            }
            sound += 1;
            row(table, &text, &mut found).unwrap_or_else(|error| panic!("{error}: {text}"));
            let expected = canonical(table, &key, &value).expect("it was exported");
            assert!((&found.key, &found.row) == (&expected.0, &expected.1), "{text}");
        }
        assert!(sound > 10, "table {table}: nothing was tried");
    }
}
