//! From inodes to paths, for people who are told what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::scan;
use crate::base::{Ino, Result, StripeId, TxnId};
use crate::format::rows::{BackrefKey, DentryKey};
use crate::format::table::{Backrefs, Dentries, Inodes};
use crate::meta::{Reader, Visit};

/// Directories above a file that are followed.
const DEPTH: usize = 4096;

/// Names that are kept besides the first one of each inode; others are counted.
pub const NAMES: usize = 100_000;

/// What an inode is called. JSON has the first of its paths by itself too, as `path`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Paths {
    /// All of its paths, in order; `#INO` alone where no name leads to it.
    pub paths: Vec<String>,
    /// Names that are left out, for there are too many.
    pub more_paths: u64,
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(first) = self.paths.first() {
            map.serialize_entry("path", first)?;
            map.serialize_entry("paths", &self.paths)?;
        }
        if self.more_paths > 0 {
            map.serialize_entry("more_paths", &self.more_paths)?;
        }
        map.end()
    }
}

impl Paths {
    /// Those that there is room for, but at least one.
    pub fn within(&self, room: &mut usize) -> Paths {
        let kept = self.paths.len().min(room.saturating_add(1));
        *room -= kept.saturating_sub(1);
        let left_out = (self.paths.len() - kept) as u64;
        Paths { paths: self.paths.iter().take(kept).cloned().collect(), more_paths: self.more_paths + left_out }
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, others)) = self.paths.split_first() else { return Ok(()) };
        f.write_str(first)?;
        if !others.is_empty() || self.more_paths > 0 {
            write!(f, " (also {}", others.join(", "))?;
            if self.more_paths > 0 {
                write!(f, "{}{} more names", if others.is_empty() { "" } else { " and " }, self.more_paths)?;
            }
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// All paths of each of `inos`.
pub fn paths(reader: &impl Reader, inos: &BTreeSet<Ino>) -> Result<BTreeMap<Ino, Paths>> {
    paths_within(reader, inos, NAMES)
}

/// The same, with room for so many names besides the first ones.
pub(super) fn paths_within(
    reader: &impl Reader,
    inos: &BTreeSet<Ino>,
    mut room: usize,
) -> Result<BTreeMap<Ino, Paths>> {
    let mut names: BTreeMap<Ino, (Vec<(Ino, Vec<u8>)>, u64)> = BTreeMap::new();
    if !inos.is_empty() {
        scan::rows::<Dentries>(reader, |key, row| {
            if inos.contains(&row.ino) {
                let (kept, more) = names.entry(row.ino).or_default();
                match kept.is_empty() || room > 0 {
                    true => {
                        room -= usize::from(!kept.is_empty());
                        kept.push((key.parent, row.name));
                    }
                    false => *more += 1,
                }
            }
            Ok(())
        })?;
    }
    let mut directories = BTreeMap::new();
    let mut found = BTreeMap::new();
    for ino in inos {
        let (kept, more_paths) = names.remove(ino).unwrap_or_default();
        let mut paths = Vec::with_capacity(kept.len().max(1));
        for (parent, name) in kept {
            let mut path = path_of_directory(reader, parent, &mut directories)?;
            push(&mut path, &name);
            paths.push(path);
        }
        if paths.is_empty() {
            paths.push(if *ino == Ino::ROOT { "/".to_owned() } else { format!("#{ino}") });
        }
        paths.sort();
        found.insert(*ino, Paths { paths, more_paths });
    }
    Ok(found)
}

/// Files that have content in some stripes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Owners {
    /// Their paths, those of one file one after the other.
    pub paths: Vec<String>,
    /// Stripes of which not all files are among them.
    pub more_stripes: u64,
    /// Names of these files that are left out.
    pub more_paths: u64,
}

/// Who has content in these stripes: at most `limit` files, so that memory stays bounded.
pub fn owners_of_stripes(reader: &impl Reader, stripes: &[StripeId], limit: usize) -> Result<Owners> {
    let mut inos = BTreeSet::new();
    let mut owners = Owners::default();
    for stripe in stripes {
        let low = BackrefKey { stripe: *stripe, ino: Ino(0), offset: 0, birth: TxnId(0) };
        let high = BackrefKey { stripe: StripeId(stripe.0.saturating_add(1)), ..low.clone() };
        scan::range::<Backrefs>(reader, &low, &high, |key, _| {
            if inos.len() >= limit && !inos.contains(&key.ino) {
                owners.more_stripes += 1;
                return Ok(Visit::Break(()));
            }
            inos.insert(key.ino);
            Ok(Visit::Continue(()))
        })?;
    }
    for names in paths(reader, &inos)?.into_values() {
        owners.paths.extend(names.paths);
        owners.more_paths += names.more_paths;
    }
    Ok(owners)
}

/// A name or other bytes as people and shells can take them back.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    push(&mut text, bytes);
    text.split_off(1)
}

/// Appends a name as people and shells can take it back: bytes that are not printable text as `\xNN`.
fn push(path: &mut String, name: &[u8]) {
    path.push('/');
    for chunk in name.utf8_chunks() {
        for letter in chunk.valid().chars() {
            match letter {
                '\\' => path.push_str("\\\\"),
                letter if letter.is_control() => {
                    letter.to_string().bytes().for_each(|byte| {
                        let _ = write!(path, "\\x{byte:02x}");
                    });
                }
                letter => path.push(letter),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(path, "\\x{byte:02x}");
        }
    }
}

/// The path of a directory, without a slash at its end; empty for the root. What was found is kept in `known`.
fn path_of_directory(reader: &impl Reader, ino: Ino, known: &mut BTreeMap<Ino, String>) -> Result<String> {
    // From the directory up to the first one that is known.
    let mut chain: Vec<(Ino, Vec<u8>)> = Vec::new();
    let mut at = ino;
    let mut path = loop {
        if at == Ino::ROOT {
            break String::new();
        }
        if let Some(path) = known.get(&at) {
            break path.clone();
        }
        let parent = scan::find::<Inodes>(reader, &at)?.map(|row| row.parent);
        let name = match parent {
            Some(parent) if chain.len() < DEPTH => name_in(reader, parent, at)?.map(|name| (parent, name)),
            _ => None,
        };
        match name {
            Some((parent, name)) => {
                chain.push((at, name));
                at = parent;
            }
            None => break format!("#{at}"),
        }
    };
    for (ino, name) in chain.into_iter().rev() {
        push(&mut path, &name);
        known.insert(ino, path.clone());
    }
    Ok(path)
}

/// The name of a directory in its parent.
fn name_in(reader: &impl Reader, parent: Ino, ino: Ino) -> Result<Option<Vec<u8>>> {
    let (low, high) =
        (DentryKey { parent, cookie: 0 }, DentryKey { parent: Ino(parent.0.saturating_add(1)), cookie: 0 });
    let mut found = None;
    scan::range::<Dentries>(reader, &low, &high, |_, row| {
        if row.ino != ino {
            return Ok(Visit::Continue(()));
        }
        found = Some(row.name);
        Ok(Visit::Break(()))
    })?;
    Ok(found)
}

/// The names of a path that was printed by [`paths`], or written by somebody; `None` if it cannot be one.
pub fn names(path: &str) -> Option<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        let mut name = Vec::new();
        let mut letters = part.chars();
        while let Some(letter) = letters.next() {
            if letter != '\\' {
                name.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
                continue;
            }
            match letters.next()? {
                '\\' => name.push(b'\\'),
                'x' => {
                    let digits: String = letters.by_ref().take(2).collect();
                    name.push(u8::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 2)?);
                }
                _ => return None,
            }
        }
        names.push(name);
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printed_paths_are_taken_back() {
        let all: [&[u8]; 6] =
            [b"plain", "K\u{e4}se".as_bytes(), b"not \xff\xfe UTF-8 \n", b"back\\slash", b"\\x41", "\u{85}".as_bytes()];
        let mut path = String::new();
        all.iter().for_each(|name| push(&mut path, name));
        assert!(path.chars().all(|letter| !letter.is_control()), "{path:?}");
        assert_eq!(names(&path).unwrap(), all);
        assert_eq!(names("a//b/").unwrap(), [b"a", b"b"]);
        for wrong in ["/a\\", "/a\\x4", "/a\\xzz", "/a\\n"] {
            assert_eq!(names(wrong), None, "{wrong}");
        }
    }
}
