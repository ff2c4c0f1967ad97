//! `argosfs recover` on image files whose metadata is overwritten, every copy of it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};

use argosfs::base::BLOCK_SIZE;
use argosfs::control::locate::{Spec, locate};
use argosfs::control::open::{OpenOptions, open_pool};
use argosfs::device::EngineChoice;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

use super::*;

/// What is known of a file from outside.
#[derive(Debug, PartialEq)]
pub(super) struct Seen {
    mode: u32,
    owner: (u32, u32),
    links: u64,
    size: u64,
    device: u64,
    modified: (i64, i64),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    content: Vec<u8>,
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let length = llistxattr(path, &mut names[..]).expect("lists");
    let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("reads");
        (name.to_vec(), value[..length].to_vec())
    };
    names.map(value).collect()
}

fn look(path: &Path, below: &Path, seen: &mut BTreeMap<PathBuf, Seen>) {
    let meta = fs::symlink_metadata(path).expect("looks");
    let kind = meta.file_type();
    let content = match () {
        () if kind.is_symlink() => fs::read_link(path).expect("reads").as_os_str().as_bytes().to_vec(),
        () if kind.is_file() => fs::read(path).expect("reads"),
        () => Vec::new(),
    };
    let one = Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        links: meta.nlink(),
        size: meta.size(),
        device: if kind.is_char_device() || kind.is_block_device() { meta.rdev() } else { 0 },
        modified: (meta.mtime(), meta.mtime_nsec()),
        xattrs: xattrs(path),
        content,
    };
    seen.insert(path.strip_prefix(below).expect("below").to_owned(), one);
    if kind.is_dir() {
        fs::read_dir(path).expect("lists").for_each(|entry| look(&entry.expect("an entry").path(), below, seen));
    }
}

fn everything(bench: &Bench) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    look(&bench.root.join("mnt"), &bench.root.join("mnt"), &mut seen);
    seen
}

pub(super) fn noise(length: usize, seed: u8) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8 ^ seed).collect()
}

/// A file of each kind, and each size that is stored in another way; names that came and went.
fn make_tree(root: &Path) {
    let write = |name: &str, bytes: &[u8]| fs::write(root.join(name), bytes).expect("writes");
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).expect("sets");
    };
    write("empty", b"");
    write("one byte", b"x");
    write("inline", &noise(1500, 1));
    write("packed", &noise(9000, 2));
    write("striped", &noise(3_000_001, 3));
    mode("one byte", 0o640);
    mode("packed", 0o6755);
    let sparse = fs::File::create(root.join("sparse")).expect("makes");
    sparse.write_all_at(b"end", 50 << 20).expect("writes");
    fs::create_dir_all(root.join("a/b/c/empty directory")).expect("makes");
    mode("a/b", 0o1711);
    for at in 0..300 {
        write(&format!("a/b/{at}"), &noise(at * 37, at as u8));
    }
    let bytes = OsStr::from_bytes(b"not \xff\xfe UTF-8 \n");
    fs::write(root.join(bytes), b"bytes").expect("writes");
    symlink("one byte", root.join("short link")).expect("links");
    symlink("x/".repeat(2000), root.join("long link")).expect("links");
    fs::hard_link(root.join("packed"), root.join("a/b/c/packed")).expect("links");
    let (uid, gid) = (rustix::fs::Uid::from_raw(1234), rustix::fs::Gid::from_raw(99));
    rustix::fs::chown(root.join("inline"), Some(uid), Some(gid)).expect("changes");
    lsetxattr(root.join("one byte"), "user.small", b"1", XattrFlags::empty()).expect("sets");
    lsetxattr(root.join("a"), "user.large", &noise(5000, 9), XattrFlags::empty()).expect("sets");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, root.join("fifo"), fifo, 0o600.into(), 0).expect("makes");
    write("old name", b"renamed");
    fs::rename(root.join("old name"), root.join("a/new name")).expect("renames");
    write("over", b"first");
    write("over.tmp", b"second");
    fs::rename(root.join("over.tmp"), root.join("over")).expect("renames");
    write("gone", &noise(500_000, 4));
    fs::remove_file(root.join("gone")).expect("removes");
    fs::create_dir(root.join("gone directory")).expect("makes");
    fs::remove_dir(root.join("gone directory")).expect("removes");
}

/// Overwrites every copy of the metadata of an unmounted pool: all logs and all chunks. The labels stay.
pub(super) fn destroy_metadata(bench: &Bench) {
    assert!(destroy_metadata_of(bench, &[0, 1, 2, 3, 4, 5]) > 2);
}

/// The same for the copies on these devices; how many there were.
fn destroy_metadata_of(bench: &Bench, devices: &[u16]) -> usize {
    let located = locate(&Spec::Path(bench.image(0).into()), &[]).expect("finds");
    let options = OpenOptions::new(true, EngineChoice::Auto);
    let state = open_pool(&located, &options).expect("opens").0.state();
    let root = &state.label.meta;
    let overwrite = |device: u16, block: u64, blocks: u64| {
        let member = state.members.iter().find(|member| member.id.0 == device).expect("a member");
        let file = fs::OpenOptions::new().write(true).open(member.name()).expect("opens");
        let noise = noise((blocks * BLOCK_SIZE) as usize, 77);
        file.write_all_at(&noise, block * BLOCK_SIZE).expect("writes");
    };
    let replicas = root.replicas.iter().filter(|replica| devices.contains(&replica.device));
    let chunks: Vec<_> = root.chunks.iter().filter(|chunk| devices.contains(&chunk.device)).collect();
    assert!(!chunks.is_empty());
    replicas.clone().for_each(|replica| overwrite(replica.device, replica.log_block, replica.log_blocks.into()));
    let blocks = u64::from(root.chunk_blocks);
    chunks.iter().for_each(|chunk| overwrite(chunk.device, chunk.block, u64::from(chunk.count) * blocks));
    replicas.count()
}

/// A mounted pool of six devices with a tree of everything, and what is to be seen there.
pub(super) fn filled(name: &str) -> (Bench, BTreeMap<PathBuf, Seen>) {
    let bench = Bench::new(name);
    bench.mkfs("tank", 6);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    make_tree(&bench.root.join("mnt"));
    let seen = everything(&bench);
    (bench, seen)
}

pub(super) fn assert_all_there(bench: &Bench, expected: &BTreeMap<PathBuf, Seen>) {
    let found = everything(bench);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    expected.iter().for_each(|(path, expected)| assert!(found[path] == *expected, "{} differs", path.display()));
}

/// Kills the daemon of a mounted pool.
pub(super) fn kill(bench: &Bench) {
    let daemon = bench.daemon();
    let process = rustix::process::Pid::from_raw(daemon).expect("a process");
    rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("kills");
    wait_until("the daemon is gone", || is_gone(daemon));
    bench.run(&["umount", "--lazy", &bench.mnt()]);
    wait_until("the mount is gone", || !bench.is_mounted());
}

#[test]
fn p8_a_pool_without_metadata_is_recovered() {
    if !can_mount("p8_a_pool_without_metadata_is_recovered") {
        return;
    }
    let (bench, expected) = filled("recover");
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    assert!(bench.fails(75, &["recover", &mnt]).contains("is mounted"));
    bench.ok(&["umount", &mnt]);
    assert!(bench.fails(64, &["recover", &bench.image(0)]).contains("can be opened"));

    destroy_metadata(&bench);
    assert!(bench.fails(69, &["mount", &bench.image(0), &mnt]).contains("argosfs recover"));
    let said = bench.ok(&["recover", &bench.image(0)]);
    assert!(said.contains("recovered from the archive") && !said.contains("LOST"), "{said}");
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert_all_there(&bench, &expected);

    // What is newer than the archive: a file without a name, and a version of one with a name.
    fs::write(root.join("newer"), noise(700_000, 5)).expect("writes");
    let file = fs::OpenOptions::new().write(true).open(root.join("striped")).expect("opens");
    file.write_all_at(&noise(400_000, 6), 1_000_000).expect("writes");
    drop(file);
    bench.ok(&["sync", &mnt]);
    kill(&bench);
    destroy_metadata(&bench);
    let output = bench.run(&["--json", "recover", &bench.image(0)]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let paths: Vec<&str> =
        answer["newer"].as_array().expect("a list").iter().filter_map(|one| one["path"].as_str()).collect();
    assert!(paths.len() == 2 && paths[0] == "/striped" && paths[1].starts_with("/lost+found/#"), "{answer}");
    assert_eq!(answer["lost"], serde_json::json!([]));
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert!(fs::read(root.join(&paths[1][1..])).expect("reads") == noise(700_000, 5));
    let mut striped = noise(3_000_001, 3);
    striped[1_000_000..1_400_000].copy_from_slice(&noise(400_000, 6));
    assert!(fs::read(root.join("striped")).expect("reads") == striped);
    let found = everything(&bench);
    for (path, expected) in
        expected.iter().filter(|(path, _)| !path.as_os_str().is_empty() && !path.ends_with("striped"))
    {
        assert!(found[path] == *expected, "{} differs", path.display());
    }
    bench.ok(&["umount", &mnt]);
}

/// Whoever was absent may hold the only copy that is left.
#[test]
fn an_older_copy_of_the_metadata_is_not_thrown_away_unasked() {
    if !can_mount("an_older_copy_of_the_metadata_is_not_thrown_away_unasked") {
        return;
    }
    let bench = Bench::new("recover-stale");
    bench.mkfs("tank", 2);
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    bench.ok(&["mount", &bench.image(0), &mnt]);
    fs::write(root.join("both"), noise(100_000, 1)).expect("writes");
    bench.ok(&["umount", &mnt]);
    fs::rename(bench.image(1), bench.path("away")).expect("moves");
    bench.ok(&["mount", "-o", "degraded", &bench.image(0), &mnt]);
    fs::write(root.join("alone"), noise(100_000, 2)).expect("writes");
    bench.ok(&["umount", &mnt]);
    fs::rename(bench.path("away"), bench.image(1)).expect("moves");
    destroy_metadata_of(&bench, &[0]);

    let images = || [0, 1].map(|at| blake3::hash(&fs::read(bench.image(at)).expect("reads")));
    let before = images();
    let said = bench.fails(69, &["recover", &bench.image(0)]);
    assert!(said.contains("d1 of pool tank") && said.contains("--force"), "{said}");
    assert!(images() == before, "something was changed");
    // What it says can be done can be done.
    fs::rename(bench.image(0), bench.path("away")).expect("moves");
    bench.ok(&["mount", "-o", "ro,degraded", &bench.image(1), &mnt]);
    assert!(fs::read(root.join("both")).expect("reads") == noise(100_000, 1));
    bench.ok(&["umount", &mnt]);
    fs::rename(bench.path("away"), bench.image(0)).expect("moves");
    bench.ok(&["recover", "--force", &bench.image(0)]);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert!(fs::read(root.join("alone")).expect("reads") == noise(100_000, 2));
    bench.ok(&["umount", &mnt]);
}
