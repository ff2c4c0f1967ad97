//! `argosfs import-meta` on image files whose metadata is overwritten, every copy of it.

use std::os::unix::fs::FileExt;

use super::recover::{assert_all_there, destroy_metadata, filled, kill, noise};
use super::*;

fn parsed(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).expect("reads")).expect("JSON")
}

/// The tables of an export without the counters that every transaction changes.
fn tables(export: &Value) -> serde_json::Map<String, Value> {
    let mut tables = export["tables"].as_object().expect("tables").clone();
    let counters = tables["counters"].as_array_mut().expect("rows");
    // The last transaction, and the next record of the journal.
    counters.retain(|row| row["counter"] != 0 && row["counter"] != 4);
    tables
}

#[test]
fn p9_an_export_restores_the_metadata() {
    if !can_mount("p9_an_export_restores_the_metadata") {
        return;
    }
    let (bench, expected) = filled("import");
    let (mnt, root, image) = (bench.mnt(), bench.root.join("mnt"), bench.image(0));
    bench.ok(&["umount", &mnt]);
    let (first, second) = (bench.path("first.json"), bench.path("second.json"));
    bench.ok(&["export-meta", &image, "-o", &first]);

    // What is newer than the export, an archive of the metadata included, is not what is restored.
    bench.ok(&["mount", &image, &mnt]);
    assert!(bench.fails(75, &["import-meta", &mnt, &first]).contains("is mounted"));
    fs::rename(root.join("over"), root.join("renamed since")).expect("renames");
    bench.ok(&["umount", &mnt]);
    assert!(bench.fails(64, &["import-meta", &image, &first]).contains("can be opened"));
    assert!(bench.ok(&["import-meta", &image, &first, "--dry-run"]).contains("would not be imported without --force"));

    destroy_metadata(&bench);
    assert!(bench.fails(69, &["mount", &image, &mnt]).contains("argosfs import-meta"));
    assert!(bench.ok(&["import-meta", &image, &first, "--dry-run"]).contains("would be imported"));
    let said = bench.ok(&["import-meta", &image, &first, "--no-scrub"]);
    assert!(said.contains("recovered from the export (transaction") && !said.contains("LOST"), "{said}");
    bench.ok(&["export-meta", &image, "-o", &second]);
    let (before, after) = (parsed(&first), parsed(&second));
    let (mut before, mut after) = (tables(&before), tables(&after));
    let record = after["journal"].as_array_mut().expect("records").pop().expect("a record");
    assert_eq!(record["operation"]["kind"], "recover");
    for (name, rows) in &mut before {
        assert_eq!(*rows, after[name], "table {name}");
    }
    assert!(bench.ok(&["fsck", "--data", &image]).contains("clean"));
    bench.ok(&["mount", &image, &mnt]);
    assert_all_there(&bench, &expected);

    // What was written after an export of the mounted pool: a file without a name, and a version of one with a name. What
    // was removed before it stays so.
    fs::write(root.join("gone"), noise(600_000, 8)).expect("writes");
    bench.ok(&["sync", &mnt]);
    fs::remove_file(root.join("gone")).expect("removes");
    bench.ok(&["sync", &mnt]);
    bench.ok(&["export-meta", &mnt, "-o", &second]);
    fs::write(root.join("newer"), noise(700_000, 5)).expect("writes");
    let file = fs::OpenOptions::new().write(true).open(root.join("striped")).expect("opens");
    file.write_all_at(&noise(400_000, 6), 1_000_000).expect("writes");
    drop(file);
    bench.ok(&["sync", &mnt]);
    kill(&bench);
    destroy_metadata(&bench);
    let output = bench.run(&["--json", "import-meta", &image, &second]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["source"], "export");
    let paths: Vec<&str> =
        answer["newer"].as_array().expect("a list").iter().filter_map(|one| one["path"].as_str()).collect();
    assert!(paths.len() == 2 && paths[0] == "/striped" && paths[1].starts_with("/lost+found/#"), "{answer}");
    assert_eq!(answer["lost"], serde_json::json!([]));
    assert!(bench.ok(&["fsck", "--data", &image]).contains("clean"));
    bench.ok(&["mount", &image, &mnt]);
    assert!(fs::read(root.join(&paths[1][1..])).expect("reads") == noise(700_000, 5));
    let mut striped = noise(3_000_001, 3);
    striped[1_000_000..1_400_000].copy_from_slice(&noise(400_000, 6));
    assert!(fs::read(root.join("striped")).expect("reads") == striped);
    bench.ok(&["umount", &mnt]);
}

#[test]
fn what_is_no_export_of_this_pool_is_refused_and_changes_nothing() {
    let bench = Bench::new("no-import");
    bench.mkfs("tank", 4);
    let image = bench.image(0);
    let export = bench.path("export.json");
    bench.ok(&["export-meta", &image, "-o", &export]);
    let other = [bench.path("o1"), bench.path("o2")];
    bench.ok(&["mkfs", "--name", "other", "--size", "64M", &other[0], &other[1]]);
    destroy_metadata(&bench);
    let images = || (0..4).map(|at| fs::read(bench.image(at)).expect("reads")).collect::<Vec<_>>();
    let before = images();

    assert!(bench.fails(64, &["import-meta", &other[0], &export, "--force"]).contains("an export of pool tank"));
    assert!(bench.fails(64, &["import-meta", &image, "-"]).contains("is not a file"));
    assert!(bench.fails(64, &["import-meta", &image, &bench.path("images")]).contains("is not a file"));
    bench.fails(74, &["import-meta", &image, &bench.path("none")]);
    let whole = fs::read(&export).expect("reads");
    let with = |bytes: &[u8]| {
        let path = bench.path("changed.json");
        fs::write(&path, bytes).expect("writes");
        let said = bench.fails(65, &["import-meta", &image, &path]);
        assert_eq!(bench.fails(65, &["import-meta", &image, &path, "--dry-run"]), said);
        said
    };
    assert!(with(&whole[..whole.len() / 2]).contains("use another copy"));
    let mut changed = text(&whole);
    let at = changed.find("\"mode\":").expect("an inode") + 8;
    changed.replace_range(at..=at, "5");
    assert!(with(changed.as_bytes()).contains("digest"));
    assert!(with(&fs::read(&image).expect("reads")).contains("not an export"));
    assert!(images() == before, "the pool was written to");

    let answer = bench.json(&["--json", "import-meta", &image, &export, "--dry-run"]);
    assert_eq!((&answer["refused"], &answer["pool"]["name"]), (&Value::Null, &"tank".into()), "{answer}");
    assert!(images() == before, "the pool was written to");
    bench.ok(&["import-meta", &image, &export]);
    assert!(bench.ok(&["fsck", "--data", &image]).contains("clean"));
}
