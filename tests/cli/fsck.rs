//! `argosfs fsck` on image files that were damaged: found under its id, planned without a change, repaired, clean, content
//! as it was. Damages of single rows are in `src/check/tests`.

use std::os::unix::fs::FileExt;

use argosfs::base::{BLOCK_SIZE, Ino, StripeId};
use argosfs::check::issue::ISSUES;
use argosfs::control::locate::{Spec, locate};
use argosfs::control::open::{OpenOptions, Opened, open};
use argosfs::device::EngineChoice;
use argosfs::format::rows::{Counter, DentryKey, StripeRow};
use argosfs::format::table::{Backrefs, Dentries, Stripes};
use argosfs::meta::{Reader, Visit};

use super::*;

const ALL: (std::ops::Bound<StripeId>, std::ops::Bound<StripeId>) =
    (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);

/// A pool with a few files, unmounted; what they hold.
fn prepared(name: &str, devices: usize) -> (Bench, Vec<u8>) {
    let bench = Bench::new(name);
    bench.mkfs("tank", devices);
    let mnt = bench.mnt();
    bench.ok(&["mount", &bench.image(0), &mnt]);
    let content: Vec<u8> = (0..3_000_001u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8).collect();
    fs::create_dir(format!("{mnt}/dir")).expect("creates");
    fs::write(format!("{mnt}/dir/file"), &content).expect("writes");
    for at in 0..50 {
        fs::write(format!("{mnt}/small{at}"), vec![at; 5000]).expect("writes");
    }
    bench.ok(&["umount", &mnt]);
    (bench, content)
}

fn opened(bench: &Bench, read_only: bool) -> Opened {
    let located = locate(&Spec::parse(Path::new(&bench.image(0))), &[]).expect("is there");
    let options = OpenOptions::new(read_only, EngineChoice::Auto);
    open(&located, &options).expect("opens")
}

/// A stripe of the large file.
fn stripe(bench: &Bench) -> (StripeId, StripeRow) {
    let mut found = None;
    opened(bench, true)
        .store
        .view(|view| {
            view.scan::<Stripes>(ALL, |id, row| {
                found = Some((id, row));
                Ok(Visit::Break(()))
            })
        })
        .expect("reads");
    found.expect("a stripe")
}

/// Overwrites blocks of an image with something.
fn overwrite(bench: &Bench, image: usize, block: u64, blocks: u64) {
    let file = fs::OpenOptions::new().write(true).open(bench.image(image)).expect("opens");
    let noise: Vec<u8> = (0..blocks * BLOCK_SIZE).map(|at| (at * 7 + 1) as u8).collect();
    file.write_all_at(&noise, block * BLOCK_SIZE).expect("writes");
}

fn images(bench: &Bench, devices: usize) -> Vec<blake3::Hash> {
    let exists = (0..devices).filter(|at| Path::new(&bench.image(*at)).exists());
    exists.map(|at| blake3::hash(&fs::read(bench.image(at)).expect("reads"))).collect()
}

/// The ids that a check finds, and its exit code.
fn found(bench: &Bench, words: &[&str]) -> (Vec<String>, Option<i32>, Value) {
    let image = bench.image(0);
    let mut all = vec!["--json", "fsck", "--data", &image];
    all.extend(words);
    let output = bench.run(&all);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    let ids = answer["issues"].as_array().expect("a list").iter();
    let ids = ids.map(|tally| tally["id"].as_str().expect("text").to_owned()).collect();
    (ids, output.status.code(), answer)
}

fn assert_content(bench: &Bench, content: &[u8], file: &str) {
    let mnt = bench.mnt();
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert!(fs::read(format!("{mnt}/{file}")).expect("reads") == content, "{file}");
    for at in 0..50 {
        assert!(fs::read(format!("{mnt}/small{at}")).expect("reads") == vec![at; 5000], "small{at}");
    }
    bench.ok(&["umount", &mnt]);
}

type Damage = fn(&Bench);

/// Each damage on the devices that a repair makes good by itself.
const DAMAGES: &[(&str, Damage)] = &[
    ("label-damaged", |bench| overwrite(bench, 1, 0, 2)),
    ("metadata-wrong", |bench| {
        let root = opened(bench, true).pool.state().label.meta.clone();
        let run = root.chunks[0].clone();
        overwrite(bench, run.device.into(), run.block, u64::from(root.chunk_blocks) / 2);
    }),
    ("metadata-log-lacking", |bench| {
        let root = opened(bench, true).pool.state().label.meta.clone();
        let replica = root.replicas[1].clone();
        overwrite(bench, replica.device.into(), replica.log_block, replica.log_blocks.into());
    }),
    ("shard-corrupt", |bench| {
        let (_, row) = stripe(bench);
        overwrite(bench, row.placements[1].device.0.into(), row.placements[1].block.0 + 1, 1);
    }),
    ("shard-header-wrong", |bench| {
        let (_, row) = stripe(bench);
        overwrite(bench, row.placements[1].device.0.into(), row.placements[1].block.0, 1);
    }),
    ("shard-header-wrong", |bench| {
        // Whole, but another shard's.
        let (_, row) = stripe(bench);
        let mut header = vec![0; BLOCK_SIZE as usize];
        let (from, to) = (row.placements[0], row.placements[4]);
        let file = fs::File::open(bench.image(from.device.0.into())).expect("opens");
        file.read_exact_at(&mut header, from.block.byte_offset()).expect("reads");
        let file = fs::OpenOptions::new().write(true).open(bench.image(to.device.0.into())).expect("opens");
        file.write_all_at(&header, to.block.byte_offset()).expect("writes");
    }),
    ("shard-header-wrong", |bench| {
        // No header of the stripe is left to learn from.
        let (_, row) = stripe(bench);
        for placement in &row.placements {
            overwrite(bench, placement.device.0.into(), placement.block.0, 1);
        }
    }),
];

/// What a repair cannot make good alone, and the tests below that show it.
const ELSEWHERE: &[&str] =
    &["member-missing", "member-stale", "metadata-replica-missing", "shard-missing", "stripe-lost"];

#[test]
fn every_kind_of_damage_on_the_devices_is_tried() {
    for issue in ISSUES.iter().filter(|issue| issue.needs_devices()) {
        let tried = DAMAGES.iter().any(|(id, _)| *id == issue.id()) || ELSEWHERE.contains(&issue.id());
        assert!(tried, "nothing proves that {} is found and repaired", issue.id());
    }
}

#[test]
fn damage_on_the_devices_is_found_planned_and_repaired() {
    if !can_mount("damage_on_the_devices_is_found_planned_and_repaired") {
        return;
    }
    let (bench, content) = prepared("fsck-devices", 6);
    for (id, damage) in DAMAGES {
        assert_eq!(found(&bench, &[]).0, [""; 0], "before {id}");
        damage(&bench);
        let before = images(&bench, 6);
        let (ids, code, _) = found(&bench, &[]);
        assert!(ids.iter().any(|other| other == id) && code == Some(4), "{id}: found {ids:?}, {code:?}");
        let (_, code, answer) = found(&bench, &["--dry-run"]);
        let planned = answer["plan"]["devices"].as_array().expect("a list");
        let planned = planned.iter().any(|line| line.as_str().expect("text").starts_with(id));
        assert!(planned && code == Some(4), "{id}: {answer}");
        assert!(images(&bench, 6) == before, "{id}: something was changed");
        let (ids, code, answer) = found(&bench, &["--repair"]);
        assert_eq!((ids, code), (Vec::new(), Some(1)), "{id}: {answer}");
        assert_eq!(found(&bench, &[]).1, Some(0), "{id}");
    }
    // A scrub leaves nothing for it to find.
    for (id, damage) in DAMAGES {
        damage(&bench);
        bench.ok(&["scrub", &bench.image(0)]);
        assert_eq!(found(&bench, &[]).0, [""; 0], "{id}, scrubbed");
    }
    assert_content(&bench, &content, "dir/file");
}

#[test]
fn a_member_that_was_away_is_brought_up_to_date() {
    if !can_mount("a_member_that_was_away_is_brought_up_to_date") {
        return;
    }
    let (bench, content) = prepared("fsck-member", 6);
    let away = opened(&bench, true).pool.state().label.meta.replicas.iter().map(|one| one.device).find(|id| *id > 0);
    let away = bench.image(away.expect("a replica beside the first").into());
    fs::rename(&away, bench.path("away")).expect("moves");
    let (ids, code, _) = found(&bench, &[]);
    for id in ["member-missing", "metadata-replica-missing", "shard-missing"] {
        assert!(ids.iter().any(|other| other == id), "{id}: {ids:?}");
    }
    assert_eq!(code, Some(4));
    // Copies of the metadata can be made elsewhere, a device cannot.
    let (ids, code, _) = found(&bench, &["--repair"]);
    assert!(
        ids.contains(&"member-missing".to_owned()) && !ids.contains(&"metadata-replica-missing".to_owned()),
        "{ids:?}"
    );
    assert_eq!(code, Some(4));
    fs::rename(bench.path("away"), &away).expect("moves");
    let (ids, code, _) = found(&bench, &[]);
    assert!(ids.contains(&"member-stale".to_owned()), "{ids:?}, {code:?}");
    let (ids, code, answer) = found(&bench, &["--repair"]);
    assert_eq!((ids, code), (Vec::new(), Some(1)), "{answer}");
    assert_eq!(found(&bench, &[]).1, Some(0));
    assert_content(&bench, &content, "dir/file");
}

#[test]
fn lost_content_is_named_by_path() {
    if !can_mount("lost_content_is_named_by_path") {
        return;
    }
    let (bench, _) = prepared("fsck-lost", 6);
    let (id, row) = stripe(&bench);
    for placement in &row.placements[..3] {
        overwrite(&bench, placement.device.0.into(), placement.block.0 + 1, 1);
    }
    let mut owners = 0;
    let low = argosfs::format::rows::BackrefKey { stripe: id, ino: Ino(0), offset: 0, birth: argosfs::base::TxnId(0) };
    let high = argosfs::format::rows::BackrefKey { stripe: StripeId(id.0 + 1), ..low.clone() };
    let range = (std::ops::Bound::Included(low), std::ops::Bound::Excluded(high));
    let count = |_, _| {
        owners += 1;
        Ok(Visit::Continue(()))
    };
    opened(&bench, true).store.view(|view| view.scan::<Backrefs>(range, count)).expect("reads");
    for words in [&[][..], &["--dry-run"], &["--repair"]] {
        let (ids, code, answer) = found(&bench, words);
        assert!(ids.contains(&"stripe-lost".to_owned()) && code == Some(4), "{words:?}: {ids:?}, {code:?}");
        let lost = answer["lost"].as_array().expect("a list");
        assert!(!lost.is_empty() && lost.len() <= owners, "{answer}");
        assert!(lost.iter().all(|path| path.as_str().is_some_and(|path| path.starts_with('/'))), "{answer}");
    }
}

#[test]
fn damaged_rows_are_repaired_while_nobody_uses_the_pool() {
    if !can_mount("damaged_rows_are_repaired_while_nobody_uses_the_pool") {
        return;
    }
    let (bench, content) = prepared("fsck-rows", 6);
    let ino = {
        let opened = opened(&bench, false);
        let mut key: Option<(DentryKey, Ino)> = None;
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let of_file = |at, row: argosfs::format::rows::DentryRow| {
            if row.name == b"file" {
                key = Some((at, row.ino));
            }
            Ok(Visit::Continue(()))
        };
        opened.store.view(|view| view.scan::<Dentries>(all, of_file)).expect("reads");
        let (key, ino) = key.expect("the file");
        let (id, row) = {
            let mut last = None;
            let stripes = |id, row| {
                last = Some((id, row));
                Ok(Visit::Continue(()))
            };
            opened.store.view(|view| view.scan::<Stripes>(ALL, stripes)).expect("reads");
            last.expect("a stripe")
        };
        let mut lacking = row.clone();
        // The block of the shard stays marked; its stripe says that it lies elsewhere.
        lacking.placements[2].block.0 += 1;
        let damage = |tx: &mut argosfs::meta::Tx<'_>| {
            tx.set_counter(Counter::Inodes, 7)?;
            tx.set_counter(Counter::NextIno, 3)?;
            tx.put::<Stripes>(&id, &lacking)?;
            tx.delete::<Dentries>(&key)
        };
        opened.store.meta().transact(damage).expect("commits");
        opened.store.meta().checkpoint().expect("checkpoints");
        ino
    };
    let before = images(&bench, 6);
    let (ids, code, _) = found(&bench, &[]);
    for id in ["counter-wrong", "id-beyond-counter", "inode-unreachable", "block-leaked", "shard-corrupt"] {
        assert!(ids.iter().any(|other| other == id), "{id}: {ids:?}");
    }
    assert_eq!(code, Some(4));
    let planned = found(&bench, &["--dry-run"]).2["plan"]["actions"].as_array().expect("a list").len();
    assert!(planned >= 5, "{planned} actions");
    assert!(images(&bench, 6) == before, "something was changed");
    let (ids, code, answer) = found(&bench, &["--repair"]);
    assert_eq!((ids, code), (Vec::new(), Some(1)), "{answer:#}");
    assert!(bench.ok(&["fsck", "--data", "--untrusted", &bench.image(0)]).contains("clean"));
    assert_content(&bench, &content, &format!("lost+found/#{ino}"));

    // In use, what is in the rows stays; what to do is said.
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    overwrite(&bench, 1, 0, 2);
    let (ids, code, _) = found(&bench, &["--repair"]);
    assert_eq!((ids, code), (Vec::new(), Some(1)));
    assert!(bench.fails(8, &["fsck", "--dry-run"]).contains("unmount"));
    bench.ok(&["umount", &bench.mnt()]);
    let damage = |tx: &mut argosfs::meta::Tx<'_>| tx.set_counter(Counter::Inodes, 7);
    let damaged = opened(&bench, false);
    damaged.store.meta().transact(damage).expect("commits");
    damaged.store.meta().checkpoint().expect("checkpoints");
    drop(damaged);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    let output = bench.run(&["fsck", "--repair"]);
    let said = text(&output.stdout);
    assert!(output.status.code() == Some(4) && said.contains("unmount tank and run it again"), "{said}");
    bench.ok(&["umount", &bench.mnt()]);
    assert_eq!(found(&bench, &["--repair"]).1, Some(1));
    assert_eq!(found(&bench, &[]).1, Some(0));
}

#[test]
fn a_stripe_without_a_row_is_found_by_the_headers_of_its_shards() {
    if !can_mount("a_stripe_without_a_row_is_found_by_the_headers_of_its_shards") {
        return;
    }
    let (bench, content) = prepared("fsck-stripe", 6);
    let (id, row) = stripe(&bench);
    let damaged = opened(&bench, false);
    let damage = |tx: &mut argosfs::meta::Tx<'_>| {
        tx.delete::<argosfs::format::table::StripeLive>(&id)?;
        tx.delete::<Stripes>(&id)
    };
    damaged.store.meta().transact(damage).expect("commits");
    damaged.store.meta().checkpoint().expect("checkpoints");
    drop(damaged);
    // Two of its shards are bad besides.
    overwrite(&bench, row.placements[0].device.0.into(), row.placements[0].block.0, 1);
    overwrite(&bench, row.placements[1].device.0.into(), row.placements[1].block.0 + 1, 1);
    let (ids, code, _) = found(&bench, &[]);
    assert!(ids.contains(&"extent-stripe-missing".to_owned()) && code == Some(4), "{ids:?}");
    let (ids, code, answer) = found(&bench, &["--repair"]);
    assert_eq!((ids, code), (Vec::new(), Some(1)), "{answer:#}");
    assert_eq!(found(&bench, &[]).1, Some(0));
    assert_content(&bench, &content, "dir/file");
}
