//! The content of a model's file: pages that were written, zeros elsewhere.

use std::collections::BTreeMap;
use std::ops::Range;

const PAGE: u64 = 4096;

/// A file's bytes.
#[derive(Clone, Default, Hash)]
pub struct Sparse {
    size: u64,
    /// Pages by number; what is missing is zero, and so is what lies behind the size.
    pages: BTreeMap<u64, Box<[u8]>>,
}

/// The parts of a range in single pages: page number, first byte within it, length.
fn parts(range: Range<u64>) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (page, start) = (at / PAGE, at % PAGE);
        let length = (PAGE - start).min(range.end - at);
        at += length;
        Some((page, start as usize, length as usize))
    })
}

impl Sparse {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The bytes from `offset`, fewer at the end.
    pub fn read(&self, offset: u64, length: u64) -> Vec<u8> {
        let end = self.size.min(offset.saturating_add(length));
        let mut bytes = Vec::new();
        for (page, start, length) in parts(offset..end) {
            match self.pages.get(&page) {
                Some(page) => bytes.extend_from_slice(&page[start..start + length]),
                None => bytes.resize(bytes.len() + length, 0),
            }
        }
        bytes
    }

    /// Writes and extends.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for (page, start, length) in parts(offset..offset + bytes.len() as u64) {
            let (head, tail) = rest.split_at(length);
            let page = self.pages.entry(page).or_insert_with(|| vec![0; PAGE as usize].into());
            page[start..start + length].copy_from_slice(head);
            rest = tail;
        }
        self.size = self.size.max(offset + bytes.len() as u64);
    }

    /// Makes a range zero; never changes the size.
    pub fn zero(&mut self, range: Range<u64>) {
        let touched: Vec<u64> = match range.start / PAGE..range.end.div_ceil(PAGE) {
            pages if pages.is_empty() => return,
            pages => self.pages.range(pages).map(|(page, _)| *page).collect(),
        };
        for page in touched {
            let first = page * PAGE;
            let start = range.start.max(first) - first;
            let end = range.end.min(first + PAGE) - first;
            if end - start == PAGE {
                self.pages.remove(&page);
            } else if let Some(bytes) = self.pages.get_mut(&page) {
                bytes[start as usize..end as usize].fill(0);
            }
        }
    }

    /// Sets the size; what is cut off is gone for ever.
    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            self.zero(size..self.size);
        }
        self.size = size;
    }

    /// Whether no byte of a range differs from zero.
    pub fn is_zero(&self, range: Range<u64>) -> bool {
        self.first_data(range).is_none()
    }

    /// The first byte of a range that is not zero.
    pub fn first_data(&self, range: Range<u64>) -> Option<u64> {
        if range.is_empty() {
            return None;
        }
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        self.pages.range(pages).find_map(|(page, bytes)| {
            let first = page * PAGE;
            let start = range.start.max(first) - first;
            let end = range.end.min(first + PAGE) - first;
            let at = bytes[start as usize..end as usize].iter().position(|byte| *byte != 0)?;
            Some(first + start + at as u64)
        })
    }

    /// The pages that are not all zero, cut at the size: the content in one form for equal content.
    pub fn data(&self) -> BTreeMap<u64, Vec<u8>> {
        let mut data = BTreeMap::new();
        for (page, bytes) in &self.pages {
            let end = (self.size.saturating_sub(page * PAGE)).min(PAGE) as usize;
            if bytes[..end].iter().any(|byte| *byte != 0) {
                data.insert(page * PAGE, bytes[..end].to_vec());
            }
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_content_reads_as_written() {
        let mut file = Sparse::default();
        file.write(5000, &[1; 10_000]);
        file.write(1 << 40, &[2]);
        assert_eq!((file.size(), file.read((1 << 40) - 1, 10)), ((1 << 40) + 1, vec![0, 2]));
        file.zero(6000..9000);
        assert_eq!(file.first_data(5999..1 << 40), Some(5999));
        assert_eq!(file.first_data(6000..1 << 40), Some(9000));
        assert!(file.is_zero(15_000..1 << 40));
        file.resize(9500);
        file.resize(20_000);
        assert!(file.is_zero(9500..20_000) && !file.is_zero(9499..20_000));
        assert_eq!(file.data().keys().copied().collect::<Vec<_>>(), [4096, 8192]);
    }
}
