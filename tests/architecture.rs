//! The layers of ARCHITECTURE.md hold: imports go strictly downward, special crates and disk I/O stay where they belong,
//! files stay short.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Longest source file.
const MAX_LINES: usize = 800;

/// Words that mean "this file talks to storage or the kernel's filesystem interface by itself".
const DISK_IO: &[&str] = &[
    "std::fs",
    "rustix::fs",
    "rustix::io::pread",
    "rustix::io::pwrite",
    "libc::open",
    "libc::pread",
    "libc::pwrite",
    "libc::fsync",
    "libc::fdatasync",
    "File::open",
    "File::create",
    "OpenOptions",
    "memmap2",
    "io_uring",
];

/// Where disk I/O is allowed besides `device`: a path prefix under `src`, and why.
const DISK_IO_ELSEWHERE: &[(&str, &str)] = &[
    ("fuse/", "opens /dev/fuse, mounts, and tunes the mount through /sys; never touches a pool's devices"),
    ("control/", "makes and finds the sockets of mounted pools in the runtime directory"),
    ("cli/", "reads /proc/self/mountinfo, makes image files before they are devices, and the demo copies real trees"),
];

/// A crate that only one layer may name.
const CONFINED: &[(&str, &str)] = &[("redb", "meta"), ("clap", "cli")];

/// Layer number of every folder, as ARCHITECTURE.md has it.
fn layers() -> BTreeMap<String, u32> {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
    let mut layers = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        if let [_, number, folder, ..] = cells[..]
            && let Ok(number) = number.parse()
        {
            layers.insert(folder.trim_matches('`').to_owned(), number);
        }
    }
    assert!(layers.len() > 10, "the layer table of ARCHITECTURE.md was not found");
    layers
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `src`: its path relative to `src`, and its text.
fn sources() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("src is readable") {
            let path = entry.expect("src is readable").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&src).expect("below src").to_str().expect("UTF-8").to_owned();
                files.push((name, std::fs::read_to_string(&path).expect("sources are UTF-8")));
            }
        }
    }
    files.sort();
    assert!(files.len() > 10, "no sources found");
    files
}

/// `text` with comments and the contents of string and character literals blanked; line breaks stay.
fn code_only(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
        let skip = if rest.starts_with(b"//") {
            rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            block_comment(rest)
        } else if !word_before && (rest.starts_with(b"r") || rest.starts_with(b"br")) {
            raw_string(rest).unwrap_or(0)
        } else if rest[0] == b'"' {
            quoted(rest, b'"')
        } else if rest[0] == b'\'' && (rest.get(1) == Some(&b'\\') || rest.get(2) == Some(&b'\'')) {
            quoted(rest, b'\'')
        } else {
            0
        };
        if skip == 0 {
            out.push(rest[0]);
            at += 1;
        } else {
            out.extend(rest[..skip].iter().map(|byte| if *byte == b'\n' { b'\n' } else { b' ' }));
            at += skip;
        }
    }
    String::from_utf8(out).expect("only whole literals and comments were blanked")
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// Length of the raw string literal `rest` starts with, if it does.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let start = if rest[0] == b'b' { 2 } else { 1 };
    let hashes = rest[start..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    let body = start + hashes + 1;
    let length = rest[body..].windows(end.len()).position(|window| window == end)?;
    Some(body + length + end.len())
}

fn quoted(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn ident_at(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// The first segments of what follows `crate::`: one, or those of a braced group.
fn first_segments(after: &str) -> Vec<String> {
    let Some(group) = after.strip_prefix('{') else { return vec![ident_at(after).to_owned()] };
    let (mut depth, mut names, mut fresh) = (1, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => fresh = true,
            _ if depth == 1 && fresh && (c.is_alphabetic() || c == '_') => {
                names.push(ident_at(&group[at..]).to_owned());
                fresh = false;
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// What `code` (without comments) names through `crate::`, or by climbing `depth` modules up with `super`.
fn imports(code: &str, depth: usize) -> Vec<String> {
    let flat: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
    let flat = flat.replace(" ::", "::").replace(":: ", "::").replace("{ ", "{");
    let mut found = Vec::new();
    for (at, _) in flat.match_indices("crate::") {
        let before = flat[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_') {
            found.extend(first_segments(&flat[at + "crate::".len()..]));
        }
    }
    let climb = "super::".repeat(depth);
    for (at, _) in flat.match_indices(&climb) {
        found.extend(first_segments(flat[at..].trim_start_matches("super::")));
    }
    found
}

/// Modules between the crate's root and the items of the file.
fn module_depth(file: &str) -> usize {
    let parts = file.split('/').count();
    if file.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// Whether `code` names the crate `name` in a path.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(&format!("{name}::"))
        .any(|(at, _)| code[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':'))
}

#[test]
fn imports_go_strictly_downward() {
    let layers = layers();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let Some((own, _)) = file.split_once('/') else { continue };
        let own_number = layers.get(own).unwrap_or_else(|| panic!("src/{own} has no line in ARCHITECTURE.md"));
        for name in imports(&code_only(&text), module_depth(&file)) {
            let Some(number) = layers.get(&name) else { continue };
            if name != own && number >= own_number {
                wrong.push(format!("src/{file} ({own} is layer {own_number}) imports {name} (layer {number})"));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "imports must go to a smaller layer number:\n{}", wrong.join("\n"));
}

#[test]
fn special_crates_stay_in_their_layer() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let code = code_only(&text);
        for (name, home) in CONFINED {
            if names_crate(&code, name) && !file.starts_with(&format!("{home}/")) {
                wrong.push(format!("src/{file} names {name}, which belongs to {home}/ alone"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn disk_io_stays_in_device() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let mut allowed = DISK_IO_ELSEWHERE.iter().map(|(prefix, _)| *prefix).chain(["device/"]);
        if allowed.any(|prefix| file.starts_with(prefix)) || file.ends_with("tests.rs") {
            continue;
        }
        let code = code_only(&text);
        let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for word in DISK_IO.iter().filter(|word| code.contains(*word)) {
            wrong.push(format!("src/{file} uses {word}; storage is reached through device::Device"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = sources()
        .iter()
        .map(|(file, text)| (file, text.lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("src/{file} has {lines} lines, above {MAX_LINES}"))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

#[test]
fn lints_are_expected_with_a_reason_and_never_allowed() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let code = code_only(&text);
        if ["#[allow(", "#![allow("].iter().any(|attribute| code.contains(attribute)) {
            wrong.push(format!("src/{file} has an allow attribute; use #[expect(lint, reason = \"..\")]"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_layer_says_what_it_is() {
    for folder in layers().keys() {
        if let Ok(text) = std::fs::read_to_string(root().join("src").join(folder).join("mod.rs")) {
            assert!(text.starts_with("//!"), "src/{folder}/mod.rs does not open with what the layer is");
        }
    }
}

/// The scanner itself: a check that finds nothing must be able to find something.
mod scanner {
    use super::*;

    fn seen(code: &str) -> Vec<String> {
        imports(&code_only(code), 2)
    }

    #[test]
    fn sees_every_form_of_import() {
        assert_eq!(seen("use crate::pool::Member;"), ["pool"]);
        assert_eq!(seen("use crate::{base::{Ino, Result}, meta::Tx, fixed_row};"), ["base", "meta", "fixed_row"]);
        assert_eq!(seen("use crate::{\n    base::Ino,\n    meta::{\n Tx },\n};"), ["base", "meta"]);
        assert_eq!(seen("fn f() -> crate::store::Store { crate :: fs :: go() }"), ["store", "fs"]);
        assert_eq!(seen("use super::super::fuse::Session;"), ["fuse"]);
        assert_eq!(seen("$crate::format::record::Row"), ["format"]);
    }

    #[test]
    fn does_not_see_comments_and_strings() {
        assert!(seen("//! [`crate::cli`] sits above\n/* crate::fs /* nested */ crate::fs */").is_empty());
        assert!(seen("let a = \"crate::cli::x \\\" crate::fs\"; let b = r#\"crate::fs \" \"#;").is_empty());
        assert_eq!(seen("let quote = '\"'; crate::base::x(); let other = '\"';"), ["base"]);
        assert_eq!(seen("fn f<'a>(x: &'a str) { crate::base::x() }"), ["base"]);
        assert!(seen("use super::tx;").is_empty());
    }

    #[test]
    fn knows_how_deep_a_file_is_and_which_crates_it_names() {
        assert_eq!(module_depth("pool/mod.rs"), 1);
        assert_eq!(module_depth("pool/label.rs"), 2);
        assert_eq!(module_depth("device/sim/mod.rs"), 2);
        assert!(names_crate("use redb::Database;", "redb"));
        assert!(!names_crate("use my_redb::Database; a::redb::x();", "redb"));
    }
}
