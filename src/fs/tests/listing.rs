use std::collections::BTreeMap;

use super::*;

fn listing(rig: &Rig, dir: Ino, cookie: u64, most: usize) -> Vec<(u64, Vec<u8>, Ino, FileType)> {
    let mut taken = Vec::new();
    rig.readdir(dir, cookie, &mut |entry| {
        if taken.len() == most {
            return Sink::Full;
        }
        taken.push((entry.cookie, entry.name.to_vec(), entry.ino, entry.kind));
        Sink::Taken
    })
    .unwrap();
    taken
}

#[test]
fn a_listing_goes_on_behind_any_cookie() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    let mut expected = BTreeMap::new();
    for number in 0..200u32 {
        let name = number.to_string().into_bytes();
        let ino = if number % 5 == 0 { rig.dir(dir, &name) } else { rig.file(dir, &name) }.attr.ino;
        let kind = if number % 5 == 0 { FileType::Directory } else { FileType::Regular };
        expected.insert(name, (ino, kind));
    }
    let whole = listing(&rig, dir, 0, usize::MAX);
    assert_eq!(whole[0], (1, b".".to_vec(), dir, FileType::Directory));
    assert_eq!(whole[1], (2, b"..".to_vec(), ROOT, FileType::Directory));
    assert!(whole.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let named: BTreeMap<_, _> = whole[2..].iter().map(|(_, name, ino, kind)| (name.clone(), (*ino, *kind))).collect();
    assert_eq!(named, expected);
    for (at, step) in [(0, 7), (1, 1), (50, 3), (202, 9)] {
        let cookie = if at == 0 { 0 } else { whole[at - 1].0 };
        assert_eq!(listing(&rig, dir, cookie, step), whole[at..(at + step).min(202)], "behind entry {at}");
    }
    let file = rig.find(dir, b"1").unwrap().ino;
    refused!(rig.readdir(file, 0, &mut |_| Sink::Taken), NotDirectory);
}

#[test]
fn names_that_stay_are_listed_once_while_others_come_and_go() {
    let rig = Rig::new();
    for number in 0..100u32 {
        rig.file(ROOT, format!("stays{number}").as_bytes());
        rig.file(ROOT, format!("goes{number}").as_bytes());
    }
    let (mut cookie, mut seen, mut round) = (2, Vec::new(), 0u32);
    loop {
        let some = listing(&rig, ROOT, cookie, 11);
        let Some(last) = some.last() else { break };
        cookie = last.0;
        seen.extend(some.into_iter().map(|(_, name, ..)| name).filter(|name| name.starts_with(b"stays")));
        for at in 0..5 {
            let _ = rig.unlink(&USER, ROOT, format!("goes{}", round * 5 + at).as_bytes());
            rig.file(ROOT, format!("comes{round}.{at}").as_bytes());
        }
        round += 1;
    }
    seen.sort();
    assert_eq!(seen.len(), 100);
    seen.dedup();
    assert_eq!(seen.len(), 100, "a name was listed twice");
}

#[test]
fn readdir_plus_gives_attributes_and_references() {
    let rig = Rig::new();
    let dir = rig.dir(ROOT, b"d").attr.ino;
    for number in 0..100u32 {
        rig.file(dir, number.to_string().as_bytes());
    }
    // Half of the inodes are known, the others have to be read.
    let rig = rig.remount();
    for number in 0..50u32 {
        rig.find(dir, number.to_string().as_bytes()).unwrap();
    }
    let mut taken = Vec::new();
    rig.readdir_plus(dir, 0, &mut |name, entry| {
        if taken.len() == 60 {
            return Sink::Full;
        }
        taken.push((name.name.to_vec(), name.ino, name.cookie, entry.copied()));
        Sink::Taken
    })
    .unwrap();
    assert!(taken[..2].iter().all(|(.., entry)| entry.is_none()), "dots give no reference");
    for (name, ino, _, entry) in &taken[2..] {
        let entry = entry.expect("nothing is being removed");
        assert_eq!((entry.attr, entry.attr.ino), (rig.find(dir, name).unwrap(), *ino));
        assert!(rig.inodes.is_referenced(*ino));
    }
    assert_eq!(rig.inodes.counts().0, 58, "only what was taken is referenced");
    let mut rest = 0;
    rig.readdir_plus(dir, taken[59].2, &mut |_, entry| {
        assert!(entry.is_some());
        rest += 1;
        Sink::Taken
    })
    .unwrap();
    assert_eq!(rest, 42);
}

#[test]
fn a_large_directory_is_found_and_listed_by_position() {
    let rig = Rig::new();
    let many = 4_000u32;
    for number in 0..many {
        let entry = rig.file(ROOT, number.to_string().as_bytes());
        rig.forget(entry.attr.ino, 1);
    }
    let (mut cookie, mut count) = (2, 0);
    loop {
        let some = listing(&rig, ROOT, cookie, 500);
        let Some(last) = some.last() else { break };
        cookie = last.0;
        count += some.len();
    }
    assert_eq!((count, rig.attr(ROOT).size), (many as usize, u64::from(many) + 2));
    for number in (0..many).step_by(97) {
        rig.unlink(&USER, ROOT, number.to_string().as_bytes()).unwrap();
    }
    refused!(rig.find(ROOT, b"97"), NotFound);
    assert!(rig.find(ROOT, b"98").is_ok());
}
