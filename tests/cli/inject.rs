//! `argosfs debug inject`: a rehearsal of failures on image files.

use argosfs::device::file;

use super::*;

#[test]
fn failures_can_be_rehearsed() {
    if !can_mount("failures_can_be_rehearsed") {
        return;
    }
    let bench = rehearsal("inject");
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    let images: Vec<String> = (0..6).map(|at| bench.image(at)).collect();
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
    // What was asked of it before may keep it in use for a while.
    let mut held = None;
    wait_until("the device to be released", || {
        held = file::open(Path::new(&images[3]), &file::OpenOptions::default()).ok();
        held.is_some()
    });
    let holder = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_secs(1));
        drop(held);
    });
    let rebuilt = bench.run(&["rebuild", &mnt]);
    holder.join().expect("lets go");
    assert!(rebuilt.status.success(), "{}", text(&rebuilt.stdout));
    bench.ok(&["scrub", &mnt]);
    assert!(bench.ok(&["status", &mnt]).contains("HEALTHY"));
    bench.ok(&["umount", &mnt]);
    assert!(bench.fails(64, &["debug", "inject", "--list", &images[0]]).contains("not mounted"));
    assert!(bench.ok(&["fsck", "--data", &images[0]]).contains("clean"));
}

/// A pool whose devices can be made to fail, mounted.
fn rehearsal(name: &str) -> Bench {
    let bench = Bench::new(name);
    let images: Vec<String> = (0..6).map(|at| bench.image(at)).collect();
    let mut words = vec!["mkfs", "--name", "tank", "--size", "64M", "--debug-faults"];
    words.extend(images.iter().map(String::as_str));
    bench.ok(&words);
    bench.ok(&["mount", &images[0], &bench.mnt()]);
    bench
}

/// Longer than anybody waits here.
const ENDLESS: &str = "delay=3600000";

/// What a thread is told within a minute; one that waits for a device that never answers takes much longer.
fn within_a_minute<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(body()));
    told.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|error| panic!("{what}: {error}"))
}

#[test]
fn two_silent_devices_keep_nobody_from_reading() {
    if !can_mount("two_silent_devices_keep_nobody_from_reading") {
        return;
    }
    let bench = rehearsal("silent");
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    let content: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
    for name in ["a", "b", "c"] {
        fs::write(root.join(name), &content).expect("writes");
    }
    bench.ok(&["sync", &mnt]);
    // The kernel, and we, forget everything.
    bench.ok(&["umount", &mnt]);
    bench.ok(&["mount", &bench.image(0), &mnt]);
    for device in ["1", "4"] {
        bench.ok(&["debug", "inject", &mnt, "--device", device, "--on", "read", "--fault", ENDLESS]);
    }
    for name in ["a", "b", "c"] {
        let path = root.join(name);
        let read = within_a_minute(name, move || fs::read(path));
        assert!(read.expect("reads") == content, "{name}");
    }
    let status = bench.json(&["--json", "status", &mnt]);
    assert!(status.to_string().contains("does not answer"), "{status}");
    bench.ok(&["debug", "inject", &mnt, "--clear"]);
    wait_until("the pool to be well again", || text(&bench.run(&["status", &mnt]).stdout).contains("HEALTHY"));
    bench.ok(&["umount", &mnt]);
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
}

#[test]
fn when_too_many_devices_stall_everything_waits_and_goes_on_when_they_answer() {
    if !can_mount("when_too_many_devices_stall_everything_waits_and_goes_on_when_they_answer") {
        return;
    }
    let bench = rehearsal("stalled");
    let (mnt, root) = (bench.mnt(), bench.root.join("mnt"));
    let content: Vec<u8> = (0..400_000u32).map(|at| (at % 249) as u8).collect();
    for round in 0..3 {
        for device in ["0", "2", "3", "5"] {
            bench.ok(&["debug", "inject", &mnt, "--device", device, "--fault", ENDLESS]);
        }
        // More of them than the daemon has threads.
        let writers: Vec<_> = (0..80)
            .map(|number| {
                let (path, content) = (root.join(format!("f{number}")), content.clone());
                std::thread::spawn(move || {
                    let mut file = fs::File::create(&path)?;
                    std::io::Write::write_all(&mut file, &content[..content.len() / 80 * (number + 1)])?;
                    file.sync_all()
                })
            })
            .collect();
        // Nobody needs a device for this.
        let path = root.clone();
        within_a_minute("a look at the root", move || fs::metadata(path)).expect("looks");
        bench.ok(&["debug", "inject", &mnt, "--list"]);
        assert!(writers.iter().any(|writer| !writer.is_finished()), "round {round}: nobody waits for four devices");
        bench.ok(&["debug", "inject", &mnt, "--clear"]);
        let ended = within_a_minute("writing", || writers.into_iter().map(|writer| writer.join()).collect::<Vec<_>>());
        assert!(ended.into_iter().all(|ended| matches!(ended, Ok(Ok(())))), "round {round}");
        for number in 0..80 {
            let read = fs::read(root.join(format!("f{number}"))).expect("reads");
            assert!(read == content[..content.len() / 80 * (number + 1)], "round {round}: {number}");
        }
    }
    bench.ok(&["umount", &mnt]);
    assert!(bench.ok(&["fsck", "--data", &bench.image(0)]).contains("clean"));
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
