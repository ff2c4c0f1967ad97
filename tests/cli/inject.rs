//! `argosfs debug inject`: a rehearsal of failures on image files.

use super::*;

#[test]
fn failures_can_be_rehearsed() {
    if !can_mount("failures_can_be_rehearsed") {
        return;
    }
    let bench = Bench::new("inject");
    let images: Vec<String> = (0..6).map(|at| bench.image(at)).collect();
    let mut words = vec!["mkfs", "--name", "tank", "--size", "64M", "--debug-faults"];
    words.extend(images.iter().map(String::as_str));
    bench.ok(&words);
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    assert!(bench.fails(64, &["debug", "inject", "--list", &images[0]]).contains("not mounted"));
    bench.ok(&["mount", &images[0], &mnt]);
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 253) as u8).collect();
    let inject = |rest: &[&str]| bench.ok(&[&["debug", "inject", &mnt], rest].concat());
    let fill = |name: &str| {
        fs::write(root.join(name), &content).expect("writes");
        bench.ok(&["sync", &mnt]);
    };
    let read = |name: &str| {
        // Not from the kernel's memory.
        let file = fs::File::open(root.join(name)).expect("opens");
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advises");
        fs::read(root.join(name))
    };
    fill("a");
    bench.fails(64, &["debug", "inject", &mnt, "--device", "77"]);

    // Two devices lie: nothing wrong reaches a reader, and the status knows who it was.
    inject(&["--device", "1", "--on", "read", "--fault", "corrupt"]);
    inject(&["--device", &images[4], "--on", "read", "--fault", "error", "--one-in", "2"]);
    assert!(inject(&["--list"]).contains("one in 2"));
    fill("b");
    for name in ["a", "b"] {
        assert!(read(name).expect("reads") == content, "{name}");
    }
    bench.run(&["fsck", "--data", &mnt]);
    let status = bench.json(&["--json", "status", &mnt]);
    let errors = |at: usize, kind: &str| status["devices"][at][kind].as_u64().expect("a number");
    assert!(errors(1, "checksum_errors") > 0 && errors(4, "read_errors") > 0, "{status}");
    assert!([0, 2, 3, 5].iter().all(|at| errors(*at, "checksum_errors") + errors(*at, "read_errors") == 0), "{status}");
    inject(&["--clear"]);
    bench.ok(&["scrub", &mnt]);
    assert!(bench.ok(&["status", &mnt]).contains("HEALTHY"));

    // A slow one is slow, and no more.
    inject(&["--device", "2", "--fault", "delay=20", "--count", "5"]);
    fill("c");
    assert!(read("c").expect("reads") == content);
    inject(&["--clear"]);

    // One that refuses a write is left out, and comes back.
    inject(&["--device", "3", "--on", "write", "--count", "1"]);
    fill("d");
    let status = bench.run(&["status", &mnt]);
    assert!(status.status.code() == Some(1) && text(&status.stdout).contains("d3) failed"), "{}", text(&status.stdout));
    assert!(read("d").expect("reads") == content);
    let rebuilt = bench.run(&["rebuild", &mnt]);
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stdout));
    bench.ok(&["scrub", &mnt]);
    assert!(bench.ok(&["status", &mnt]).contains("HEALTHY"));
    bench.ok(&["umount", &mnt]);
    assert!(bench.ok(&["fsck", "--data", &images[0]]).contains("clean"));
}

#[test]
fn other_pools_cannot_be_made_to_fail() {
    if !can_mount("other_pools_cannot_be_made_to_fail") {
        return;
    }
    let bench = Bench::new("not-inject");
    bench.mkfs("tank", 3);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    let refused = bench.fails(64, &["debug", "inject", &bench.mnt(), "--device", "0"]);
    assert!(refused.contains("--debug-faults"), "{refused}");
    bench.ok(&["umount", &bench.mnt()]);
}
