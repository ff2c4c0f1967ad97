//! The commands as a user gives them, on image files; with a real mount where that is possible.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

#[path = "cli/damage.rs"]
mod damage;
#[path = "cli/fsck.rs"]
mod fsck;
#[path = "cli/import.rs"]
mod import;
#[path = "cli/inject.rs"]
mod inject;
#[path = "cli/linear.rs"]
mod linear;
#[path = "cli/pressure.rs"]
mod pressure;
#[path = "cli/recover.rs"]
mod recover;
#[path = "cli/signals.rs"]
mod signals;

/// A directory with images, a runtime directory and a mount point; everything is unmounted and removed at the end.
struct Bench {
    root: PathBuf,
}

impl Bench {
    fn new(name: &str) -> Bench {
        let root = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("cli-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("mnt")).expect("creates");
        fs::create_dir_all(root.join("images")).expect("creates");
        Bench { root: fs::canonicalize(root).expect("exists") }
    }

    fn image(&self, at: usize) -> String {
        self.path(&format!("images/d{at}"))
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).to_str().expect("UTF-8").to_owned()
    }

    fn mnt(&self) -> String {
        self.path("mnt")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_argosfs"));
        command.args(words).env("ARGOSFS_RUNTIME_DIR", self.root.join("run")).current_dir(&self.root);
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("runs")
    }

    /// Runs a command that must succeed; its standard output.
    fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}\n{}", output.status, text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command that must fail with `code`; its standard error.
    fn fails(&self, code: i32, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stderr)
    }

    fn json(&self, words: &[&str]) -> Value {
        let output = self.run(words);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{words:?}: {error}: {}", text(&output.stderr)))
    }

    fn mkfs(&self, name: &str, devices: usize) {
        let images: Vec<String> = (0..devices).map(|at| self.image(at)).collect();
        let mut words = vec!["mkfs", "--name", name, "--size", "64M"];
        words.extend(images.iter().map(String::as_str));
        self.ok(&words);
    }

    fn is_mounted(&self) -> bool {
        fs::read_to_string("/proc/self/mountinfo").expect("reads").contains(&format!(" {} ", self.mnt()))
    }

    fn daemon(&self) -> i32 {
        let pid = self.json(&["--json", "status", &self.mnt()])["mounted"]["pid"].as_i64().expect("a process");
        i32::try_from(pid).expect("a process id")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if self.is_mounted() {
            // A rehearsal that failed half-way must not keep the daemon from ending.
            let _ = self.run(&["debug", "inject", &self.mnt(), "--clear"]);
            let _ = self.run(&["umount", "--lazy", &self.mnt()]);
        }
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Whether mounts are possible here; says so when they are not.
fn can_mount(test: &str) -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    if !can {
        eprintln!("!!! {test} SKIPPED: it needs root and /dev/fuse");
    }
    can
}

/// Whether a process has ended; its parent may not have asked after it yet.
fn is_gone(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"));
    stat.map_or(true, |stat| stat.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X'])))
}

fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited a minute for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Nothing is emptied, wiped or left behind by a command that is refused.
#[test]
fn mkfs_touches_nothing_it_refuses() {
    let bench = Bench::new("mkfs-refused");
    let images: Vec<String> = (0..3).map(|at| bench.image(at)).collect();
    let content = vec![7; 8 << 20];
    fs::write(&images[0], &content).expect("writes");
    let refused = |code, words: &[&str], why: &str| {
        let said = bench.fails(code, &[&["mkfs", "--name", "tank"], words].concat());
        assert!(said.contains(why), "{said}");
        assert!(fs::read(&images[0]).expect("reads") == content);
        assert!(!Path::new(&images[1]).exists() && !Path::new(&images[2]).exists());
    };
    let [a, b, c] = [images[0].as_str(), &images[1], &images[2]];
    // Not something that anybody would recognise, and somebody's all the same.
    refused(64, &["--size", "8M", a, b, c], "not recognised: use --force");
    refused(64, &["--force", "--size", "8M", "--k", "4", "--m", "2", a, b, c], "4+2 needs 6 devices");
    let held = argosfs::device::file::open(Path::new(a), &Default::default()).expect("opens");
    refused(75, &["--force", "--size", "8M", b, c, a], "in use");
    drop(held);
    bench.ok(&["mkfs", "--name", "tank", "--force", "--size", "8M", a, b, c]);
}

#[test]
fn a_new_pool_is_healthy_clean_and_says_what_it_is() {
    let bench = Bench::new("new");
    let images: Vec<String> = (0..6).map(|at| bench.image(at)).collect();
    let mut words = vec!["--json", "mkfs", "--name", "tank", "--size", "64M"];
    words.extend(images.iter().map(String::as_str));
    let made = bench.json(&words);
    assert_eq!((made["k"].as_u64(), made["m"].as_u64(), made["can_lose"].as_u64()), (Some(4), Some(2), Some(2)));
    assert!(made["usable"].as_u64() > Some(150 << 20), "{made}");
    let status = bench.ok(&["status", &images[3]]);
    assert!(status.starts_with("tank: HEALTHY, can lose 2 more devices\n"), "{status}");
    assert_eq!(bench.json(&["--json", "status", "tank", "--search", "images"])["uuid"], made["uuid"]);
    let uuid = format!("argosfs:{}", made["uuid"].as_str().expect("text"));
    assert_eq!(bench.json(&["--json", "status", &uuid, "--search", "images"])["name"], "tank");
    assert!(bench.ok(&["fsck", "--data", &images[0]]).contains("clean"));
    bench.ok(&["scrub", &images[0]]);
    bench.ok(&["rebuild", &images[0]]);
    assert!(bench.ok(&["fsck", &images[0]]).contains("clean"));
}

#[test]
fn the_number_of_devices_decides_and_one_is_refused() {
    let bench = Bench::new("geometry");
    let made = |bench: &Bench, words: &[&str]| {
        let mut all = vec!["--json", "mkfs", "--force", "--size", "16M"];
        all.extend(words);
        let made = bench.json(&all);
        (made["k"].as_u64().expect("k"), made["m"].as_u64().expect("m"))
    };
    assert_eq!(made(&bench, &["a", "b"]), (1, 1));
    assert_eq!(made(&bench, &["a", "b", "c"]), (2, 1));
    assert_eq!(made(&bench, &["--k", "1", "--m", "2", "a", "b", "c"]), (1, 2));
    assert_eq!(made(&bench, &["--no-redundancy", "a"]), (1, 0));
    fs::create_dir(bench.path("dir")).expect("creates");
    assert_eq!(made(&bench, &["a", "dir"]), (1, 1));
    assert!(Path::new(&bench.path("dir/argosfs.dev")).exists());
    assert!(bench.fails(64, &["mkfs", "--force", "a"]).contains("--no-redundancy"));
    assert!(bench.fails(64, &["mkfs", "--k", "4", "--m", "2", "--force", "a", "b"]).contains("needs 6 devices"));
    assert!(bench.fails(64, &["mkfs", "a", "b"]).contains("--force"), "they hold a pool");
    assert!(bench.fails(64, &["mkfs", "no1", "no2"]).contains("--size"), "they do not exist");
    assert!(!Path::new(&bench.path("no1")).exists(), "and were not made");
}

#[test]
fn missing_devices_are_named_and_too_many_are_faulted() {
    let bench = Bench::new("missing");
    bench.mkfs("tank", 6);
    for (gone, first_line, code) in [
        (1, "tank: DEGRADED, can lose 1 more devices", 1),
        (2, "tank: DEGRADED, can lose 0 more devices", 1),
        (3, "tank: FAULTED, can lose 0 more devices", 2),
    ] {
        fs::rename(bench.image(gone), bench.path(&format!("away{gone}"))).expect("moves");
        let output = bench.run(&["status", &bench.image(0)]);
        let shown = text(&output.stdout);
        assert_eq!((shown.lines().next(), output.status.code()), (Some(first_line), Some(code)), "{shown}");
        assert!(shown.contains(&bench.image(gone)), "names what is missing: {shown}");
    }
    assert_eq!(bench.json(&["--json", "status", &bench.image(0)])["health"], "FAULTED");
    let refused = bench.fails(69, &["scrub", &bench.image(0)]);
    assert!(refused.contains(&bench.image(3)), "{refused}");
    bench.fails(8, &["fsck", &bench.image(0)]);
    for gone in 1..4 {
        fs::rename(bench.path(&format!("away{gone}")), bench.image(gone)).expect("moves");
    }
    assert!(bench.ok(&["status", &bench.image(0)]).contains("HEALTHY"));
}

#[test]
fn what_is_no_pool_is_refused_with_advice() {
    let bench = Bench::new("refuse");
    fs::write(bench.path("text"), "not a pool ".repeat(100_000)).expect("writes");
    assert!(bench.fails(69, &["status", &bench.path("text")]).contains("no ArgosFS label"));
    assert!(bench.fails(64, &["status", &bench.path("nothing")]).contains("does not exist"));
    assert!(bench.fails(69, &["status", "nobody"]).contains("--search"));
    assert!(bench.fails(64, &["status"]).contains("no pool is mounted"));
    assert!(bench.fails(64, &["umount", &bench.mnt()]).contains("nothing is mounted"));
    bench.fails(64, &["frobnicate"]);
    bench.fails(16, &["fsck", "--frobnicate"]);
    assert!(bench.ok(&["--help"]).contains("Exit codes"));
    bench.mkfs("tank", 3);
    let image = fs::OpenOptions::new().write(true).open(bench.image(1)).expect("opens");
    image.set_len(32 << 20).expect("cuts");
    let output = bench.run(&["status", &bench.image(0)]);
    assert_eq!(output.status.code(), Some(1), "a cut image counts as missing: {}", text(&output.stdout));
    // A label of a format to come: its version is in bytes 8..12, under the checksum, so only the refusal differs.
    let mut bytes = fs::read(bench.image(2)).expect("reads");
    for at in [0, 65_536, (64 << 20) - 131_072, (64 << 20) - 65_536] {
        bytes[at + 8] = 99;
        let length = 256 + u32::from_le_bytes(bytes[at + 12..at + 16].try_into().expect("four")) as usize;
        let label = &mut bytes[at..at + length];
        label[16..20].fill(0);
        let sum = crc32c::crc32c(label);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
    }
    fs::write(bench.path("newer"), &bytes).expect("writes");
    assert!(bench.fails(69, &["status", &bench.path("newer")]).contains("newer"));
}

#[test]
fn the_export_is_the_same_for_the_same_state() {
    let bench = Bench::new("export");
    bench.mkfs("tank", 4);
    let first = bench.ok(&["export-meta", &bench.image(0)]);
    assert_eq!(first, bench.ok(&["export-meta", &bench.image(2)]), "whichever device is named");
    let document: Value = serde_json::from_str(&first).expect("JSON");
    let covered = &first[..first.rfind("\"blake3\"").expect("a digest")];
    assert_eq!(document["blake3"].as_str(), Some(blake3::hash(covered.as_bytes()).to_hex().as_str()));
    let answer = bench.json(&["--json", "export-meta", &bench.image(0), "-o", "out.json"]);
    assert_eq!(answer["blake3"], document["blake3"]);
    assert_eq!(fs::read_to_string(bench.path("out.json")).expect("reads"), first);
}

#[test]
fn a_pool_mounts_works_and_unmounts() {
    if !can_mount("a_pool_mounts_works_and_unmounts") {
        return;
    }
    let bench = Bench::new("mount");
    let mnt = bench.mnt();
    bench.mkfs("tank", 6);
    assert!(bench.ok(&["mount", &bench.image(2), &mnt]).contains("is mounted at"));
    assert!(bench.is_mounted());
    fs::create_dir(format!("{mnt}/dir")).expect("creates");
    fs::write(format!("{mnt}/dir/file"), vec![7; 3 << 20]).expect("writes");
    fs::write(format!("{mnt}/small"), "small").expect("writes");
    let second = bench.fails(75, &["mount", &bench.image(2), &bench.path("images")]);
    assert!(second.contains("mounted already"), "{second}");
    assert!(bench.fails(75, &["mkfs", "--force", &bench.image(0), &bench.image(1)]).contains("in use"));
    for pool in [mnt.as_str(), "tank", &bench.image(4)] {
        assert!(bench.ok(&["status", pool]).starts_with("tank: HEALTHY, can lose 2 more devices\n"));
    }
    bench.ok(&["sync"]);
    assert!(bench.ok(&["fsck", "--data"]).contains("clean"));
    bench.ok(&["scrub"]);
    let open = fs::File::open(format!("{mnt}/small")).expect("opens");
    assert!(bench.fails(75, &["umount", &mnt]).contains("in use") && bench.is_mounted());
    drop(open);
    let daemon = bench.daemon();
    let live = bench.ok(&["export-meta", &mnt]);
    bench.ok(&["umount", &mnt]);
    assert!(!bench.is_mounted());
    assert!(is_gone(daemon), "umount returns when the daemon is gone");
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
    let inodes = |export: &str| serde_json::from_str::<Value>(export).expect("JSON")["tables"]["dentries"].clone();
    let left = bench.ok(&["export-meta", &bench.image(0)]);
    assert_eq!(inodes(&live), inodes(&left));
    assert_eq!(left, bench.ok(&["export-meta", "--archived", &bench.image(1)]), "unmounting archived the metadata");
    assert!(bench.ok(&["status", &bench.image(0)]).contains("\n  archive   of transaction "));

    bench.ok(&["mount", "tank", &mnt, "--search", "images", "-o", "ro"]);
    assert_eq!(fs::read(format!("{mnt}/dir/file")).expect("reads"), vec![7; 3 << 20]);
    assert!(fs::write(format!("{mnt}/new"), "x").is_err(), "read-only");
    bench.ok(&["umount", "tank"]);
    assert!(bench.fails(64, &["mount", &bench.image(0), &mnt, "-o", "bogus"]).contains("bogus"));
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_synced() {
    if !can_mount("a_killed_daemon_loses_nothing_that_was_synced") {
        return;
    }
    let bench = Bench::new("kill");
    let mnt = bench.mnt();
    bench.mkfs("tank", 4);
    for round in 0..3 {
        bench.ok(&["mount", &bench.image(0), &mnt]);
        for earlier in 0..round {
            let read = fs::read(format!("{mnt}/round{earlier}")).expect("is there");
            assert_eq!(read, vec![earlier as u8; 500_000]);
        }
        fs::write(format!("{mnt}/round{round}"), vec![round as u8; 500_000]).expect("writes");
        bench.ok(&["sync", &mnt]);
        let _ = fs::write(format!("{mnt}/unsynced{round}"), vec![9; 100_000]);
        let pid = rustix::process::Pid::from_raw(bench.daemon()).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kills");
        wait_until("the mount to be dead", || fs::metadata(&mnt).is_err());
        // The next mount takes the dead one's place.
    }
    bench.ok(&["mount", &bench.image(0), &mnt]);
    assert_eq!(fs::read(format!("{mnt}/round2")).expect("is there"), vec![2; 500_000]);
    bench.ok(&["umount", &mnt]);
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
}

#[test]
fn a_daemon_told_to_end_unmounts_cleanly() {
    if !can_mount("a_daemon_told_to_end_unmounts_cleanly") {
        return;
    }
    let bench = Bench::new("term");
    let mnt = bench.mnt();
    bench.mkfs("tank", 4);
    for busy in [false, true] {
        bench.ok(&["mount", &bench.image(0), &mnt]);
        fs::write(format!("{mnt}/file{busy}"), vec![5; 200_000]).expect("writes");
        let held = busy.then(|| fs::File::open(format!("{mnt}/file{busy}")).expect("opens"));
        let daemon = bench.daemon();
        let pid = rustix::process::Pid::from_raw(daemon).expect("a process");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
        wait_until("the daemon to end", || is_gone(daemon));
        assert!(!bench.is_mounted());
        drop(held);
    }
    bench.ok(&["mount", &bench.image(0), &mnt]);
    for busy in [false, true] {
        assert_eq!(fs::read(format!("{mnt}/file{busy}")).expect("reads"), vec![5; 200_000]);
    }
    bench.ok(&["umount", &mnt]);
}

#[test]
fn files_can_be_made_immutable_and_append_only() {
    if !can_mount("files_can_be_made_immutable_and_append_only") {
        return;
    }
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new("flags");
    let mnt = bench.mnt();
    bench.mkfs("tank", 4);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    let path = format!("{mnt}/file");
    fs::write(&path, b"one").expect("writes");
    let file = fs::File::open(&path).expect("opens");
    assert_eq!(ioctl_getflags(&file).expect("gets"), IFlags::empty());
    let before = fs::metadata(&path).expect("stats");
    ioctl_setflags(&file, IFlags::APPEND).expect("sets");
    assert_eq!(ioctl_getflags(&file).expect("gets"), IFlags::APPEND);
    let after = fs::metadata(&path).expect("stats");
    assert!(
        (before.ctime(), before.ctime_nsec()) < (after.ctime(), after.ctime_nsec()),
        "the kernel knows of the change"
    );
    let mut end = fs::File::options().append(true).open(&path).expect("opens");
    end.write_all(b" two").expect("appends");
    assert!(fs::write(&path, b"three").is_err());
    ioctl_setflags(&file, IFlags::IMMUTABLE).expect("sets");
    assert!(
        end.write_all(b" four").is_err()
            && fs::remove_file(&path).is_err()
            && fs::rename(&path, format!("{mnt}/b")).is_err()
    );
    assert!(ioctl_setflags(&file, IFlags::COMPRESSED).is_err(), "a flag that does not exist here");
    drop((file, end));
    bench.ok(&["umount", &mnt]);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    let file = fs::File::open(&path).expect("opens");
    assert_eq!(ioctl_getflags(&file).expect("gets"), IFlags::IMMUTABLE);
    ioctl_setflags(&file, IFlags::empty()).expect("sets");
    drop(file);
    assert_eq!(fs::read(&path).expect("reads"), b"one two");
    fs::remove_file(&path).expect("removes");
    bench.ok(&["umount", &mnt]);
}

#[test]
fn what_files_leave_is_given_back_to_the_image_files() {
    if !can_mount("what_files_leave_is_given_back_to_the_image_files") {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new("trim");
    let mnt = bench.mnt();
    bench.mkfs("tank", 4);
    let taken = || (0..4).map(|at| fs::metadata(bench.image(at)).expect("there").blocks() * 512).sum::<u64>();
    let content = vec![0xa5; 24_000_000];
    bench.ok(&["mount", &bench.image(0), &mnt, "-o", "nodiscard"]);
    fs::write(format!("{mnt}/kept"), &content[..1_000_000]).expect("writes");
    fs::write(format!("{mnt}/gone"), &content).expect("writes");
    bench.ok(&["sync"]);
    let full = taken();
    fs::remove_file(format!("{mnt}/gone")).expect("removes");
    // Twice: the first makes the removal durable, the second what the background freed meanwhile.
    wait_until("the space to be free", || {
        bench.ok(&["sync"]);
        bench.ok(&["trim"]).contains("discarded") && taken() + 40_000_000 < full
    });
    assert_eq!(fs::read(format!("{mnt}/kept")).expect("reads"), content[..1_000_000]);
    bench.ok(&["umount", &mnt]);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    fs::write(format!("{mnt}/gone"), &content).expect("writes");
    bench.ok(&["sync"]);
    fs::remove_file(format!("{mnt}/gone")).expect("removes");
    wait_until("the images to shrink by themselves", || taken() + 40_000_000 < full);
    assert_eq!(fs::read(format!("{mnt}/kept")).expect("reads"), content[..1_000_000]);
    assert!(bench.ok(&["fsck", "--data"]).contains("clean"));
    bench.ok(&["umount", &mnt]);
}

#[test]
fn devices_are_lost_replaced_and_taken_back() {
    if !can_mount("devices_are_lost_replaced_and_taken_back") {
        return;
    }
    let bench = Bench::new("replace");
    let mnt = bench.mnt();
    bench.mkfs("tank", 6);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    let content: Vec<u8> = (0..8_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(format!("{mnt}/file"), &content).expect("writes");
    bench.ok(&["sync"]);
    bench.ok(&["umount", &mnt]);
    fs::remove_file(bench.image(1)).expect("removes");
    fs::rename(bench.image(4), bench.path("away")).expect("moves");
    bench.ok(&["mount", &bench.image(0), &mnt, "-o", "degraded"]);
    assert_eq!(bench.run(&["status"]).status.code(), Some(1));
    assert_eq!(fs::read(format!("{mnt}/file")).expect("reads"), content);
    fs::write(format!("{mnt}/while-degraded"), &content[..3_000_000]).expect("writes");
    bench.ok(&["device", "replace", &bench.image(1), &bench.path("images/fresh")]);
    // It comes back under the mount.
    fs::rename(bench.path("away"), bench.image(4)).expect("moves back");
    let said = bench.ok(&["rebuild"]);
    assert!(said.contains("is back as device 4"), "{said}");
    let status = bench.ok(&["status"]);
    assert!(status.starts_with("tank: HEALTHY, can lose 2 more devices\n"), "{status}");
    assert!(bench.ok(&["fsck", "--data"]).contains("clean"));
    assert_eq!(fs::read(format!("{mnt}/while-degraded")).expect("reads"), content[..3_000_000]);
    bench.ok(&["umount", &mnt]);
    fs::remove_file(bench.image(0)).expect("removes");
    fs::remove_file(bench.image(2)).expect("removes");
    bench.ok(&["mount", &bench.path("images/fresh"), &mnt, "-o", "degraded"]);
    assert_eq!(fs::read(format!("{mnt}/file")).expect("reads"), content, "two others lost after the repair");
    bench.ok(&["umount", &mnt]);
}

#[test]
fn a_device_overwritten_under_the_mount_is_named_and_mended() {
    if !can_mount("a_device_overwritten_under_the_mount_is_named_and_mended") {
        return;
    }
    let bench = Bench::new("overwritten");
    bench.mkfs("tank", 6);
    let pool = bench.image(0);
    bench.ok(&["mount", &pool, &bench.mnt()]);
    let content: Vec<u8> = (0..4_000_000u32).map(|at| (at * 7 / 3) as u8).collect();
    fs::write(bench.path("mnt/file"), &content).expect("writes");
    bench.ok(&["sync", &bench.mnt()]);
    assert!(bench.ok(&["status", &bench.mnt()]).starts_with("tank: HEALTHY, can lose 2 more devices\n"));

    let size = fs::metadata(bench.image(1)).expect("exists").len();
    fs::write(bench.path("noise"), vec![0xa5; size as usize]).expect("writes");
    let noise = fs::File::open(bench.path("noise")).expect("opens");
    let image = fs::File::options().write(true).open(bench.image(1)).expect("opens");
    std::io::copy(&mut &noise, &mut &image).expect("overwrites");
    image.sync_all().expect("syncs");

    // Nothing was read yet: the label alone shows it.
    let status = bench.run(&["status", &bench.mnt()]);
    let said = text(&status.stdout);
    assert_eq!(status.status.code(), Some(1), "{said}");
    assert!(said.starts_with("tank: DEGRADED, can lose 1 more devices\n"), "{said}");
    assert!(said.contains("d1) lost its label, failed to read 0 shards"), "{said}");

    let file = fs::File::options().read(true).open(bench.path("mnt/file")).expect("opens");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("drops what is cached");
    drop(file);
    assert!(fs::read(bench.path("mnt/file")).expect("reads") == content);
    let seen = bench.json(&["--json", "status", &bench.mnt()]);
    assert!(seen["devices"][1]["checksum_errors"].as_u64() > Some(0), "{seen}");

    bench.ok(&["scrub", &bench.mnt()]);
    assert!(bench.ok(&["status", &bench.mnt()]).starts_with("tank: HEALTHY, can lose 2 more devices\n"));
    bench.ok(&["fsck", "--data", &bench.mnt()]);
    bench.ok(&["umount", &bench.mnt()]);
    // Its label is there again as well.
    assert!(bench.ok(&["status", &bench.image(1)]).starts_with("tank: HEALTHY, can lose 2 more devices\n"));
}
