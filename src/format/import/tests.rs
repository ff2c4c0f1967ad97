//! Exports made here, read back whole, in pieces, cut, changed and mixed up.

use super::super::export::{ExportHeader, Exporter};
use super::super::record::{Key, Row};
use super::super::rows::*;
use super::super::table::*;
use super::*;
use crate::base::{Ino, Prng, StripeId, Timestamp};

type Rows = Vec<(u8, Vec<u8>, Vec<u8>)>;

fn stored<T: Table>(key: T::Key, row: T::Row) -> (u8, Vec<u8>, Vec<u8>) {
    let (mut key_bytes, mut row_bytes) = (Vec::new(), Vec::new());
    Key::encode(&key, &mut key_bytes);
    Row::encode(&row, &mut row_bytes);
    (T::ID, key_bytes, row_bytes)
}

/// Rows of the first tables, of some between, and of the last.
fn sample() -> Rows {
    let dentry = |ino, name: &[u8]| DentryRow { ino: Ino(ino), kind: 8, birth: TxnId(1), name: name.to_vec() };
    let damage = DamageRow { found: Timestamp { seconds: -1, nanos: 2 }, bad: 3 };
    vec![
        stored::<Dentries>(DentryKey { parent: Ino(1), cookie: 5 }, dentry(2, b"plain \" \n \xc3\xbc")),
        stored::<Dentries>(DentryKey { parent: Ino(1), cookie: 6 }, dentry(3, b"\xff\xfe")),
        stored::<Counters>(0, 77),
        stored::<Counters>(200, u64::MAX),
        stored::<Journal>(
            9,
            JournalRow {
                seconds: -5,
                nanos: 1,
                uid: 2,
                txn: 3,
                operation: JournalOp::Repair { issue: b"x".to_vec(), what: b"\x80".to_vec() },
                chain: [9; 32],
            },
        ),
        stored::<Config>(ConfigKey { name: Vec::new() }, vec![1, 2, 3, 4]),
        stored::<Damage>(StripeId(4), damage),
    ]
}

fn exported(rows: &Rows) -> String {
    let header = ExportHeader { pool: Uuid([0xab; 16]), name: "t\"a\u{1}nk".to_owned() };
    let mut text = Vec::new();
    let mut sink = |piece: &[u8]| {
        text.extend_from_slice(piece);
        Ok(())
    };
    let mut exporter = Exporter::begin(&header, TxnId(77), &mut sink);
    rows.iter().for_each(|(table, key, row)| exporter.row(*table, key, row).unwrap());
    exporter.finish().unwrap();
    String::from_utf8(text).unwrap()
}

/// With the digest of what comes before it.
fn sealed(body: &str) -> String {
    let body = body.split_once("\"blake3\":").map_or(body, |(body, _)| body);
    format!("{body}\"blake3\":\"{}\"}}\n", blake3::hash(body.as_bytes()).to_hex())
}

fn imported(bytes: &[u8], piece: usize) -> Result<(Head, Rows, ExportSummary)> {
    let (mut head, mut rows) = (None, Rows::new());
    let mut decoder = Decoder::default();
    for piece in bytes.chunks(piece.max(1)) {
        decoder.push(piece, &mut |item| {
            match item {
                Item::Head(found) => head = Some(found.clone()),
                Item::Row { table, key, row } => rows.push((table, key.to_vec(), row.to_vec())),
            }
            Ok(())
        })?;
    }
    let summary = decoder.finish()?;
    Ok((head.expect("a whole export has a head"), rows, summary))
}

fn refused(text: &str) -> String {
    imported(text.as_bytes(), text.len()).expect_err("should be refused").to_string()
}

#[test]
fn rows_come_back_whatever_the_pieces() {
    for rows in [sample(), Rows::new(), sample().split_off(6), sample()[..1].to_vec()] {
        let text = exported(&rows);
        for piece in [1, 2, 7, 64, text.len()] {
            let (head, found, summary) = imported(text.as_bytes(), piece).unwrap();
            assert_eq!(head, Head { pool: Uuid([0xab; 16]), name: "t\"a\u{1}nk".to_owned(), txn: TxnId(77) });
            assert_eq!(found, rows);
            assert_eq!((summary.rows, summary.bytes, summary.txn), (rows.len() as u64, text.len() as u64, TxnId(77)));
            assert!(text.contains(blake3::Hash::from_bytes(summary.digest).to_hex().as_str()));
        }
    }
}

#[test]
fn a_cut_or_changed_export_is_an_error() {
    let text = exported(&sample());
    for length in 0..text.len() {
        assert!(imported(&text.as_bytes()[..length], 50).is_err(), "cut at {length}");
    }
    assert!(refused(&format!("{text}\n")).contains("behind the end"));
    assert!(imported(format!("{text} ").as_bytes(), 9).is_err());
    for at in 0..text.len() {
        for bit in 0..8 {
            let mut forged = text.clone().into_bytes();
            forged[at] ^= 1 << bit;
            assert!(imported(&forged, 300).is_err(), "bit {bit} of byte {at}");
        }
    }
}

/// With a digest that is right, only what an export would have written is taken, and it says what it is.
#[test]
fn what_an_export_would_not_write_is_refused_whatever_its_digest() {
    let text = exported(&sample());
    assert_eq!(sealed(&text), text);
    let mut prng = Prng::new(3);
    let mut taken = 0;
    for _ in 0..20_000 {
        let mut forged = text.clone().into_bytes();
        for _ in 0..=prng.below(2) {
            let at = prng.below(forged.len() as u64) as usize;
            match prng.below(4) {
                0 => forged[at] ^= 1 << prng.below(8),
                1 => drop(forged.remove(at)),
                2 => forged.insert(at, b"0123 {}[],:\"\n"[prng.below(13) as usize]),
                _ => forged[at] = b"0123456789abcdef"[prng.below(16) as usize],
            }
        }
        let Ok(forged) = String::from_utf8(forged) else { continue };
        let forged = sealed(&forged);
        if let Ok((head, rows, _)) = imported(forged.as_bytes(), 100) {
            taken += 1;
            let again = exported(&rows).replacen("\"transaction\":77,", &format!("\"transaction\":{},", head.txn), 1);
            let mut pool = String::new();
            Object::begin(&mut pool).text("name", &head.name).text("uuid", &head.pool.to_string()).end();
            let line = again.lines().nth(1).unwrap().to_owned();
            assert_eq!(sealed(&again.replacen(&line, &format!("\"pool\":{pool},"), 1)), forged);
        }
    }
    assert!(taken > 1000, "{taken} forged exports were sound: nothing behind the digest is reached");
}

#[test]
fn errors_say_where_and_what() {
    let text = exported(&sample());
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        refused(&sealed(&text.replacen(from, to, 1)))
    };
    assert!(with("\"kind\":8", "\"kind\":256").contains("table dentries in line 7 is refused: its \"kind\" is wrong"));
    assert!(with("\"kind\":8,", "").contains("it has no \"kind\""));
    assert!(with("\"kind\":8", "\"kind\": 8").contains("not written as an export has it"));
    assert!(with("\"kind\":8", "\"kind\":8,\"more\":1").contains("not written as an export has it"));
    assert!(with("\"kind\":8", "\"kind\":8,\"kind\":8").contains("not written as an export has it"));
    assert!(with("\"name_b64\":\"//4=\"", "\"name_b64\":\"YWI=\"").contains("not written as an export has it"));
    assert!(with("\"cookie\":6", "\"cookie\":5").contains("table dentries in line 8 is out of order"));
    assert!(with("\"cookie\":6", "\"cookie\":4").contains("out of order"));
    assert!(with("\"found\":[-1,2]", "\"found\":[-1,1000000000]").contains("table damage"));
    assert!(with("\"found\":[-1,2]", "\"found\":[-0,2]").contains("table damage"));
    assert!(with("\"rows\":7", "\"rows\":8").contains("8 rows and has 7"));
    assert!(with("\"orphans\":[],", "\"orfans\":[],").contains("the beginning of table orphans"));
    assert!(with("\"orphans\":[],\n", "").contains("the beginning of table orphans"));
    assert!(with("\"argosfs_export\":1", "\"argosfs_export\":2").contains("version 2, this argosfs reads version 1"));
    assert!(with("\"transaction\":77", "\"transaction\":077").contains("line 3 should be \"transaction\":NUMBER"));
    assert!(with("\"name\":\"t", "\"name\":\"\\u0074").contains("line 2 should be"));
    assert!(with("\"kind\":\"repair\"", "\"kind\":\"mystery\"").contains("\"mystery\" is unknown"));
    assert!(with("},\n", "},\r\n").contains("line 2"));
    let digest = text.replacen("\"cookie\":5", "\"cookie\":4", 1);
    assert!(refused(&digest).contains("its digest is not that of its content"));
    assert!(refused(&digest).contains("use another copy"));
}

#[test]
fn rows_are_bounded_and_lines_too() {
    let text = exported(&sample());
    let long = "x".repeat(LINE_MAX - 500);
    let with = |from: &str, to: &str| refused(&sealed(&text.replacen(from, to, 1)));
    assert!(with("\"issue\":\"x\"", &format!("\"issue\":\"{long}\"")).contains("longer than any row"));
    assert!(with("\"name\":\"\"", &format!("\"name\":\"{}\"", "x".repeat(70_000))).contains("longer than any row"));
    assert!(with("\"value_b64\":\"", &format!("\"value_b64\":\"{long}")).contains("longer than any row"));
    let endless = vec![b'x'; LINE_MAX + 1];
    for piece in [1 << 10, endless.len()] {
        let error = imported(&endless, piece).unwrap_err().to_string();
        assert!(error.contains("line 1 has more than"), "{error}");
    }
    let mut decoder = Decoder::default();
    for piece in endless[1..].chunks(4096) {
        decoder.push(piece, &mut |_| Ok(())).unwrap();
    }
    assert!(decoder.pending.capacity() <= 2 * LINE_MAX);
}

/// Stripes are stored without the lengths of their lists.
#[test]
fn stripes_of_impossible_geometry_are_refused() {
    let text = |k: u64, shard_blocks: u64, granule_shift: u64, placements: &str, sums: &str| {
        let mut out = Stored::default();
        let line = format!(
            "{{\"birth\":1,\"granule_shift\":{granule_shift},\"incarnation\":9,\"k\":{k},\"m\":0,\"payload_bytes\":10,\
             \"placements\":{placements},\"shard_blocks\":{shard_blocks},\"state\":\"whole\",\"stripe\":1,\"sums\":{sums}}}"
        );
        row(Stripes::ID, &line, &mut out)
    };
    text(1, 1, 0, "[[0,5]]", "[7]").unwrap();
    text(1, 2, 0, "[null]", "[7,8]").unwrap();
    for wrong in [
        text(0, 1, 0, "[]", "[]"),
        text(1, 1, 0, "[[0,5]]", "[]"),
        text(1, 1, 0, "[[0,5],[1,5]]", "[7]"),
        text(1, 1, 0, "[[0,281474976710656]]", "[7]"),
        text(1, 1, 255, "[[0,5]]", "[7]"),
        text(1, 4294967295, 0, "[[0,5]]", "[7]"),
        text(1, 1, 0, "[[65535,0]]", "[7]"),
        text(1, 1, 0, "[[0]]", "[7]"),
        text(255, 1, 0, "[null]", "[7]"),
    ] {
        assert!(wrong.is_err());
    }
}

#[test]
fn any_bytes_are_taken_or_refused_without_a_panic() {
    let mut prng = Prng::new(8);
    for _ in 0..3_000 {
        let bytes: Vec<u8> = (0..prng.below(300)).map(|_| prng.next() as u8).collect();
        assert!(imported(&bytes, 1 + prng.below(40) as usize).is_err());
        let signs = b"{}[]\",:0123\n\\u-.eE abkindino";
        let one = |_| char::from(signs[prng.below(signs.len() as u64) as usize]);
        let text: String = (0..200).map(one).collect();
        for table in 0..=TABLES.len() as u8 {
            let _ = row(table, &text, &mut Stored::default());
        }
    }
}
