//! `argosfs scrub` that is paused and goes on, and `argosfs damage`, on image files.

use std::ops::Bound;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Stdio;

use argosfs::base::{BLOCK_SIZE, Ino};
use argosfs::control::locate::{Spec, locate};
use argosfs::control::open::{OpenOptions, open};
use argosfs::device::EngineChoice;
use argosfs::format::table::{Backrefs, Stripes};
use argosfs::meta::{Reader, Visit};

use super::*;

/// Overwrites the payload of the first `shards` shards of every stripe that a file has content in; the pool is not mounted.
fn spoil(bench: &Bench, ino: u64, shards: usize) {
    let located = locate(&Spec::Path(bench.image(0).into()), &[]).expect("finds");
    let options = OpenOptions::new(true, EngineChoice::Auto);
    let opened = open(&located, &options).expect("opens");
    let mut stripes = Vec::new();
    let all = (Bound::Unbounded, Bound::Unbounded);
    opened
        .store
        .view(|view| {
            view.scan::<Backrefs>(all, |key, _| {
                if key.ino == Ino(ino)
                    && let Some(row) = view.get::<Stripes>(&key.stripe)?
                {
                    stripes.push(row);
                }
                Ok(Visit::Continue(()))
            })
        })
        .expect("reads");
    assert!(!stripes.is_empty());
    let state = opened.pool.state();
    for row in &stripes {
        for place in row.placements.iter().take(shards) {
            let path = state.members.iter().find(|member| member.id == place.device).expect("a member").name();
            let file = fs::OpenOptions::new().write(true).open(path).expect("opens");
            let noise = vec![0xa5; (u64::from(row.shard_blocks) * BLOCK_SIZE) as usize];
            file.write_all_at(&noise, (place.block.0 + 1) * BLOCK_SIZE).expect("writes");
        }
    }
}

#[test]
fn what_is_damaged_beyond_repair_is_named_accepted_or_removed() {
    if !can_mount("what_is_damaged_beyond_repair_is_named_accepted_or_removed") {
        return;
    }
    let bench = Bench::new("damage");
    bench.mkfs("tank", 3);
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    fs::create_dir(root.join("dir")).expect("makes");
    let content: Vec<u8> = (0..1_000_000u32).map(|at| (at % 251) as u8 + 1).collect();
    let mut inos = Vec::new();
    for name in ["good", "one shard", "dir/accept", "delete"] {
        fs::write(root.join(name), &content).expect("writes");
        inos.push(fs::metadata(root.join(name)).expect("is there").ino());
        // Each in stripes of its own.
        bench.ok(&["sync", &mnt]);
    }
    fs::hard_link(root.join("delete"), root.join("dir/also")).expect("links");
    bench.ok(&["umount", &mnt]);
    spoil(&bench, inos[1], 1);
    spoil(&bench, inos[2], 2);
    spoil(&bench, inos[3], 3);

    // What nobody has read is found by reading alone; what is recorded is told by every check.
    let images = || (0..3).map(|at| blake3::hash(&fs::read(bench.image(at)).expect("reads"))).collect::<Vec<_>>();
    let lost = |words: &[&str]| {
        let output = bench.run(&[&["--json", "fsck", &bench.image(0)], words].concat());
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let tally = answer["issues"].as_array().expect("a list").iter().find(|tally| tally["id"] == "stripe-lost");
        (output.status.code(), tally.and_then(|tally| tally["count"].as_u64()), answer["lost"].clone())
    };
    assert_eq!(lost(&[]), (Some(0), None, serde_json::json!([])));
    let read = lost(&["--data"]);
    assert_eq!((read.0, &read.2), (Some(4), &serde_json::json!(["/dir/accept", "/delete", "/dir/also"])));
    let output = bench.run(&["scrub", &bench.image(0)]);
    assert_eq!(output.status.code(), Some(2), "{}", text(&output.stderr));
    let before = images();
    assert_eq!((lost(&[]), lost(&["--data"])), (read.clone(), read));
    assert!(images() == before, "a check changed something");
    assert!(text(&output.stdout).contains("argosfs damage"), "{}", text(&output.stdout));
    let status = bench.run(&["status", &bench.image(0)]);
    assert!(text(&status.stdout).contains("damaged beyond repair"), "{}", text(&status.stdout));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    let damage = bench.json(&["--json", "damage", &mnt]);
    let paths: Vec<&str> =
        damage["files"].as_array().expect("a list").iter().filter_map(|f| f["path"].as_str()).collect();
    assert_eq!(paths, ["/dir/accept", "/delete"], "{damage}");
    assert_eq!(damage["files"][1]["paths"], serde_json::json!(["/delete", "/dir/also"]), "{damage}");
    let said = bench.run(&["damage", &mnt]);
    assert!(text(&said.stdout).contains("/delete (also /dir/also): "), "{}", text(&said.stdout));
    for name in ["good", "one shard"] {
        assert!(fs::read(root.join(name)).expect("reads") == content, "{name}");
    }
    fs::read(root.join("dir/accept")).expect_err("it is damaged");

    assert!(bench.fails(64, &["damage", &mnt, "--accept", "/good"]).contains("nothing of /good is damaged"));
    bench.fails(64, &["damage", &mnt, "--accept", "/nowhere"]);
    // What is restored in place just before is not lost.
    let start = damage["files"][0]["ranges"][0][0].as_u64().expect("a number") as usize;
    let file = fs::OpenOptions::new().write(true).open(root.join("dir/accept")).expect("opens");
    file.write_all_at(&content[start..start + 4096], start as u64).expect("writes");
    drop(file);
    bench.ok(&["damage", &mnt, "--accept", root.join("dir/accept").to_str().expect("UTF-8")]);
    let kept = fs::read(root.join("dir/accept")).expect("reads");
    assert_eq!(kept.len(), content.len());
    assert!(kept[start..start + 4096] == content[start..start + 4096]);
    assert!(kept.iter().zip(&content).all(|(kept, byte)| kept == byte || *kept == 0));
    assert!(kept.contains(&0));
    // Of several names only the one that was given goes, and the others are told.
    let said = bench.ok(&["damage", &mnt, "--delete", "/delete"]);
    assert!(said.contains("damaged content is still there as /dir/also"), "{said}");
    assert!(!root.join("delete").exists());
    let damage = bench.json(&["--json", "damage", &mnt]);
    assert_eq!(damage["files"][0]["paths"], serde_json::json!(["/dir/also"]), "{damage}");
    let deleted = bench.json(&["--json", "damage", &mnt, "--delete", "/dir/also"]);
    assert_eq!(deleted["left"], serde_json::json!([]), "{deleted}");
    assert!(!root.join("dir/also").exists());
    assert!(bench.ok(&["damage", &mnt]).contains("nothing is known"));
    bench.ok(&["scrub", &mnt]);
    assert!(bench.ok(&["status", &mnt]).contains("HEALTHY"));
    bench.ok(&["umount", &mnt]);
    for words in [&["fsck", &bench.image(0)][..], &["fsck", "--data", &bench.image(0)]] {
        assert!(bench.ok(words).contains("clean"));
    }
}

#[test]
fn a_scrub_is_paused_and_goes_on_after_a_remount() {
    if !can_mount("a_scrub_is_paused_and_goes_on_after_a_remount") {
        return;
    }
    let bench = Bench::new("scrub");
    bench.mkfs("tank", 3);
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert!(bench.ok(&["scrub", "--status", &mnt]).contains("no scrub yet"));
    bench.fails(64, &["scrub", "--pause", &mnt]);
    bench.fails(64, &["scrub", "--resume", &mnt]);
    for at in 0..20u8 {
        fs::write(root.join(format!("file {at}")), vec![at; 1 << 20]).expect("writes");
        bench.ok(&["sync", &mnt]);
    }
    let state = |words: &[&str]| {
        let answer = bench.json(&[&["--json", "scrub"], words].concat());
        (answer["state"].as_str().unwrap_or_default().to_owned(), answer["bytes"].as_u64().unwrap_or_default())
    };
    // So slow that it never ends by itself.
    assert_eq!(state(&["--background", "--limit", "1M", &mnt]).0, "running");
    wait_until("some of it is verified", || state(&["--status", &mnt]).1 > 0);
    let paused = state(&["--pause", &mnt]);
    assert_eq!(paused.0, "paused");
    bench.ok(&["umount", &mnt]);
    assert_eq!(state(&["--status", &bench.image(0)]), paused);
    bench.fails(64, &["scrub", "--resume", &bench.image(0)]);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert_eq!(state(&["--status", &mnt]), paused);
    let resumed = state(&["--resume", "--limit", "1M", &mnt]);
    assert!(resumed.0 == "running" && resumed.1 >= paused.1, "{resumed:?}");
    // One that is running goes on by itself.
    bench.ok(&["umount", &mnt]);
    assert_eq!(state(&["--status", &bench.image(0)]).0, "interrupted");
    bench.ok(&["mount", &bench.image(0), &mnt]);
    // As slow as it was told to be.
    assert_eq!(state(&["--status", &mnt]).0, "running");
    bench.ok(&["scrub", "--background", &mnt]);
    wait_until("it is finished", || state(&["--status", &mnt]).0 == "finished");
    let interrupted = state(&["--status", &mnt]);
    // The next one begins anew, and ends at once when nobody limits it.
    assert_eq!(state(&["--background", "--limit", "1M", &mnt]).0, "running");
    assert_eq!(state(&["--cancel", &mnt]).0, "cancelled");
    assert!(bench.ok(&["scrub", &mnt]).contains("verified"));
    // Nothing was passed over, and nothing verified twice.
    assert_eq!(state(&["--status", &mnt]), interrupted);
    bench.ok(&["umount", &mnt]);
}

/// Whoever waits for a scrub and goes by the exit code must not take for verified what was not looked at.
#[test]
fn a_scrub_that_is_ended_early_says_so() {
    if !can_mount("a_scrub_that_is_ended_early_says_so") {
        return;
    }
    let bench = Bench::new("scrub-early");
    bench.mkfs("tank", 3);
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    for at in 0..3u8 {
        fs::write(root.join(format!("file {at}")), vec![at; 1 << 20]).expect("writes");
        bench.ok(&["sync", &mnt]);
    }
    // So slow that it never ends by itself.
    let waits = || {
        let mut command = bench.command(&["--json", "scrub", "--limit", "16K", &mnt]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("runs");
        let verifies = |status: &Value| status["state"] == "running" && status["bytes"].as_u64() > Some(0);
        wait_until("some of it is verified", || verifies(&bench.json(&["--json", "scrub", "--status", &mnt])));
        child
    };
    let ends: [(&[&str], &str); 3] = [
        (&["scrub", "--pause", &mnt], "paused"),
        (&["scrub", "--cancel", &mnt], "cancelled"),
        (&["umount", &mnt], "interrupted"),
    ];
    for (end, state) in ends {
        let child = waits();
        bench.ok(end);
        let output = child.wait_with_output().expect("ends");
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!((answer["state"].as_str(), output.status.code()), (Some(state), Some(2)), "{answer}");
    }
    let answer = bench.json(&["--json", "scrub", &bench.image(0)]);
    assert_eq!(answer["state"], "finished", "{answer}");
    bench.ok(&["scrub", &bench.image(0)]);
}
