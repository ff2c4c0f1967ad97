//! The content of a metadata archive: every row of every table as it is stored, so that nothing is needed to put them
//! back. A head, the rows in order of table and key, an end that counts them; `schema/ondisk.md` has the bytes.
//!
//! Invariant: decoding takes any bytes at all, in pieces of any length, and holds at most one row and one piece.

use super::record::{Field, Fields};
use crate::base::{Error, Result, StripeId, TxnId, Uuid};

const MAGIC: [u8; 8] = *b"ARGARCH\n";
const VERSION: u16 = 2;
const HEAD: usize = 42;
/// In the place of a table's number.
const END: u8 = 255;
/// Table, length of the key, length of the row.
const ROW_HEAD: usize = 7;
/// Longest row that is believed.
const ROW_MAX: usize = 1 << 20;

/// What an archive is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub pool: Uuid,
    /// The newest transaction in it.
    pub txn: TxnId,
    /// A stripe of this number or above that is not in the archive may be newer than it.
    pub first_stripe: StripeId,
}

/// Appends the head.
pub fn put_head(head: &Head, out: &mut Vec<u8>) {
    out.extend_from_slice(&MAGIC);
    VERSION.put(out);
    head.pool.put(out);
    head.txn.put(out);
    head.first_stripe.put(out);
}

/// Appends a row.
pub fn put_row(table: u8, key: &[u8], row: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let key_length = u16::try_from(key.len()).map_err(|_| Error::Invalid("a key of more than 64 KiB"))?;
    if row.len() > ROW_MAX || table == END {
        return Err(Error::Invalid("a row that no archive takes"));
    }
    table.put(out);
    key_length.put(out);
    (row.len() as u32).put(out);
    out.extend_from_slice(key);
    out.extend_from_slice(row);
    Ok(())
}

/// Appends the end of an archive with so many rows.
pub fn put_end(rows: u64, out: &mut Vec<u8>) {
    END.put(out);
    rows.put(out);
}

/// A part of an archive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    Head(Head),
    Row { table: u8, key: &'a [u8], row: &'a [u8] },
}

/// Takes an archive apart as its bytes come in.
#[derive(Default, Debug)]
pub struct Decoder {
    pending: Vec<u8>,
    head: Option<Head>,
    rows: u64,
    ended: bool,
}

impl Decoder {
    /// Takes the next bytes; `visit` is given what they complete.
    pub fn push(&mut self, bytes: &[u8], visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        pending.extend_from_slice(bytes);
        let mut rest = pending.as_slice();
        while let Some(behind) = self.step(rest, visit)? {
            rest = behind;
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        self.pending = pending;
        Ok(())
    }

    /// Takes one item off the front; `None` when it is not there as a whole.
    fn step<'a>(&mut self, bytes: &'a [u8], visit: &mut dyn FnMut(Item<'_>) -> Result<()>) -> Result<Option<&'a [u8]>> {
        if self.ended {
            return if bytes.is_empty() { Ok(None) } else { Err(Error::corrupt("an archive goes on behind its end")) };
        }
        if self.head.is_none() {
            let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
            let head = decode_head(head)?;
            self.head = Some(head);
            visit(Item::Head(head))?;
            return Ok(Some(rest));
        }
        if bytes.first() == Some(&END) {
            let Some((end, rest)) = bytes.split_at_checked(9) else { return Ok(None) };
            let mut fields = Fields(end);
            let (_, rows) = (u8::take(&mut fields)?, u64::take(&mut fields)?);
            if rows != self.rows {
                return Err(Error::corrupt(format!("an archive of {rows} rows holds {}", self.rows)));
            }
            self.ended = true;
            return Ok(Some(rest));
        }
        let Some((head, rest)) = bytes.split_at_checked(ROW_HEAD) else { return Ok(None) };
        let mut fields = Fields(head);
        let (table, key, row) = (u8::take(&mut fields)?, u16::take(&mut fields)?, u32::take(&mut fields)?);
        if row as usize > ROW_MAX {
            return Err(Error::corrupt(format!("an archive has a row of {row} bytes")));
        }
        let Some((key, rest)) = rest.split_at_checked(usize::from(key)) else { return Ok(None) };
        let Some((row, rest)) = rest.split_at_checked(row as usize) else { return Ok(None) };
        self.rows += 1;
        visit(Item::Row { table, key, row })?;
        Ok(Some(rest))
    }

    /// Fails unless the archive was whole; how many rows it had.
    pub fn finish(self) -> Result<u64> {
        if self.ended { Ok(self.rows) } else { Err(Error::corrupt("an archive is cut short")) }
    }
}

fn decode_head(bytes: &[u8]) -> Result<Head> {
    let mut fields = Fields(bytes);
    if fields.take::<8>()? != MAGIC {
        return Err(Error::corrupt("this is not the beginning of an archive"));
    }
    let version = u16::take(&mut fields)?;
    if version != VERSION {
        return Err(Error::Unavailable(format!(
            "the archive has version {version}, this argosfs reads version {VERSION}"
        )));
    }
    Ok(Head {
        pool: Field::take(&mut fields)?,
        txn: Field::take(&mut fields)?,
        first_stripe: Field::take(&mut fields)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Prng;

    type Rows = Vec<(u8, Vec<u8>, Vec<u8>)>;

    const HEAD_OF_TEST: Head = Head { pool: Uuid([3; 16]), txn: TxnId(77), first_stripe: StripeId(12) };

    fn encoded(rows: &Rows) -> Vec<u8> {
        let mut out = Vec::new();
        put_head(&HEAD_OF_TEST, &mut out);
        for (table, key, row) in rows {
            put_row(*table, key, row, &mut out).unwrap();
        }
        put_end(rows.len() as u64, &mut out);
        out
    }

    fn decode(bytes: &[u8], piece: usize) -> Result<(Head, Rows)> {
        let (mut head, mut rows) = (None, Rows::new());
        let mut decoder = Decoder::default();
        for piece in bytes.chunks(piece) {
            decoder.push(piece, &mut |item| {
                match item {
                    Item::Head(found) => head = Some(found),
                    Item::Row { table, key, row } => rows.push((table, key.to_vec(), row.to_vec())),
                }
                Ok(())
            })?;
        }
        assert_eq!(decoder.finish()?, rows.len() as u64);
        Ok((head.expect("a whole archive has a head"), rows))
    }

    fn rows(prng: &mut Prng) -> Rows {
        let bytes = |prng: &mut Prng, most: u64| (0..prng.below(most)).map(|_| prng.next() as u8).collect();
        (0..prng.below(20)).map(|_| (prng.below(19) as u8, bytes(prng, 40), bytes(prng, 300))).collect()
    }

    #[test]
    fn rows_come_back_whatever_the_pieces() {
        let mut prng = Prng::new(4);
        for _ in 0..50 {
            let rows = rows(&mut prng);
            let bytes = encoded(&rows);
            for piece in [1, 2, 7, 64, bytes.len()] {
                assert_eq!(decode(&bytes, piece).unwrap(), (HEAD_OF_TEST, rows.clone()));
            }
        }
    }

    #[test]
    fn a_cut_or_forged_archive_is_an_error() {
        let mut prng = Prng::new(5);
        let rows: Rows = vec![(3, vec![1; 16], vec![2; 40]), (4, vec![1; 8], vec![])];
        let bytes = encoded(&rows);
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], 5).is_err(), "cut at {length}");
        }
        let longer = [bytes.as_slice(), &[0]].concat();
        assert!(decode(&longer, 9).is_err());
        for _ in 0..20_000 {
            let mut forged = bytes.clone();
            let at = prng.below(forged.len() as u64) as usize;
            forged[at] ^= 1 << prng.below(8);
            // Only what it says may change, never how much of it there is to hold.
            let _ = decode(&forged, 1 + prng.below(30) as usize);
        }
        let mut huge = Vec::new();
        put_head(&HEAD_OF_TEST, &mut huge);
        huge.extend_from_slice(&[3, 8, 0, 255, 255, 255, 255]);
        assert!(decode(&huge, 4).is_err());
    }
}
