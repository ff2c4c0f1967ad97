//! A metadata archive in pieces of any length: the same comes out however it is cut.
#![no_main]

use argosfs::base::Result;
use argosfs::format::archive::{Decoder, Item};

fn decode(bytes: &[u8], piece: usize) -> Result<(usize, u64)> {
    let mut decoder = Decoder::default();
    let mut held = 0;
    for piece in bytes.chunks(piece) {
        decoder.push(piece, &mut |item| {
            if let Item::Row { key, row, .. } = item {
                held += key.len() + row.len();
            }
            Ok(())
        })?;
    }
    Ok((held, decoder.finish()?))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [piece, data @ ..] = data else { return };
    let whole = decode(data, data.len().max(1));
    let cut = decode(data, 1 + usize::from(*piece));
    assert_eq!(whole.is_ok(), cut.is_ok());
    if let (Ok(whole), Ok(cut)) = (whole, cut) {
        assert_eq!(whole, cut);
        assert!(whole.0 <= data.len());
    }
});
