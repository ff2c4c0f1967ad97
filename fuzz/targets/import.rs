//! An export read back: only what an export would have written is taken, so that it exports to the same bytes again. The count
//! of rows and the digest are made right after each mutation.
#![no_main]

use argosfs::base::{Result, TxnId, Uuid};
use argosfs::format::export::{self, ExportHeader, Exporter};
use argosfs::format::import::{self, Decoder, Head, Item, Stored};
use argosfs::format::table::TABLES;

type Rows = Vec<(u8, Vec<u8>, Vec<u8>)>;

fn imported(bytes: &[u8], piece: usize) -> Result<(Option<Head>, Rows)> {
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
    assert_eq!(decoder.finish()?.rows, rows.len() as u64);
    Ok((head, rows))
}

fn exported(head: &Head, rows: &Rows) -> Vec<u8> {
    let header = ExportHeader { pool: head.pool, name: head.name.clone() };
    let mut text = Vec::new();
    let mut sink = |piece: &[u8]| {
        text.extend_from_slice(piece);
        Ok(())
    };
    let mut exporter = Exporter::begin(&header, head.txn, &mut sink);
    for (table, key, row) in rows {
        exporter.row(*table, key, row).expect("an imported row exports");
    }
    exporter.finish().expect("the sink takes all");
    text
}

/// The document with the count of its rows and its digest made right.
fn sealed(text: &[u8]) -> Vec<u8> {
    let end = text.windows(8).rposition(|window| window == b"\n\"rows\":").map_or(text.len(), |at| at + 1);
    let mut body = text[..end].to_vec();
    let rows = body.split(|byte| *byte == b'\n').skip(4).filter(|line| line.starts_with(b"{")).count();
    body.extend_from_slice(format!("\"rows\":{rows},\n").as_bytes());
    let digest = blake3::hash(&body);
    body.extend_from_slice(format!("\"blake3\":\"{}\"}}\n", digest.to_hex()).as_bytes());
    body
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [what, piece, data @ ..] = data else { return };
    let table = piece % TABLES.len() as u8;
    match what % 4 {
        // The bytes as they are.
        0 => drop(imported(data, usize::from(*piece))),
        // A document.
        1 => {
            let text = sealed(data);
            let whole = imported(&text, text.len());
            let cut = imported(&text, 1 + usize::from(*piece));
            assert_eq!(whole.is_ok(), cut.is_ok());
            if let (Ok((Some(head), rows)), Ok(cut)) = (whole, cut) {
                assert_eq!(exported(&head, &rows), text);
                assert_eq!((Some(head), rows), cut);
            }
        }
        // A line.
        2 => {
            let Ok(line) = std::str::from_utf8(data) else { return };
            let mut stored = Stored::default();
            if import::row(table, line, &mut stored).is_ok() {
                let mut text = String::new();
                export::row(table, &stored.key, &stored.row, &mut text).expect("an imported row exports");
                assert_eq!(text, line);
            }
        }
        // A row: whatever can be exported can be imported.
        _ => {
            let [key, data @ ..] = data else { return };
            let (key, row) = data.split_at(data.len().min(usize::from(*key)));
            let mut line = String::new();
            if export::row(table, key, row, &mut line).is_ok() {
                let mut stored = Stored::default();
                import::row(table, &line, &mut stored).expect("an exported row imports");
                assert_eq!(stored.key, key);
                let head = Head { pool: Uuid([1; 16]), name: line, txn: TxnId(1) };
                let rows = vec![(table, stored.key, stored.row)];
                assert_eq!(imported(&exported(&head, &rows), 64).expect("it is sound"), (Some(head), rows));
            }
        }
    }
});
