//! Daemons that are told to end while their mounts are in use, or cannot be seen any more.

use std::process::{Child, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// A daemon in the foreground that nobody can hear: what it says cannot be written.
fn unheard(bench: &Bench) -> Child {
    let full = fs::File::options().write(true).open("/dev/full").expect("opens");
    let child = bench.command(&["mount", "--foreground", &bench.image(0), &bench.mnt()]).stderr(full).spawn();
    let child = child.expect("starts");
    wait_until("the mount", || bench.is_mounted());
    child
}

fn terminate(child: &mut Child) {
    kill_process(Pid::from_child(child), Signal::TERM).expect("signals");
    wait_until("the daemon to end", || child.try_wait().expect("waits").is_some());
}

#[test]
fn a_daemon_that_nobody_hears_ends_when_it_is_told_to() {
    if !can_mount("a_daemon_that_nobody_hears_ends_when_it_is_told_to") {
        return;
    }
    let bench = Bench::new("unheard");
    bench.mkfs("tank", 3);
    let mut daemon = unheard(&bench);
    fs::write(bench.root.join("mnt/kept"), b"kept").expect("writes");
    let open = fs::File::open(bench.root.join("mnt/kept")).expect("opens");
    terminate(&mut daemon);
    drop(open);
    assert!(!bench.is_mounted());
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    assert_eq!(fs::read(bench.root.join("mnt/kept")).expect("reads"), b"kept");
    bench.ok(&["umount", &bench.mnt()]);
}

/// It was taken off by others, and lives on for whoever has a file open.
#[test]
fn a_daemon_whose_mount_is_out_of_sight_ends_when_it_is_told_to() {
    if !can_mount("a_daemon_whose_mount_is_out_of_sight_ends_when_it_is_told_to") {
        return;
    }
    let bench = Bench::new("unseen");
    bench.mkfs("tank", 3);
    let mut daemon = unheard(&bench);
    let path = bench.root.join("mnt/kept");
    let mut open = fs::File::create(&path).expect("makes");
    let done = Command::new("umount").args(["-l", "-i", &bench.mnt()]).stdout(Stdio::null()).status().expect("runs");
    assert!(done.success() && !bench.is_mounted());
    std::io::Write::write_all(&mut open, b"kept").expect("writes");
    terminate(&mut daemon);
    drop(open);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    assert_eq!(fs::read(&path).expect("reads"), b"kept");
    bench.ok(&["umount", &bench.mnt()]);
}

/// No socket of a daemon is found there, but it answers all the same: it is not dead.
#[test]
fn a_mount_whose_daemon_cannot_be_asked_is_left_alone() {
    if !can_mount("a_mount_whose_daemon_cannot_be_asked_is_left_alone") {
        return;
    }
    let bench = Bench::new("unasked");
    bench.mkfs("tank", 3);
    bench.ok(&["mount", &bench.image(0), &bench.mnt()]);
    let elsewhere = bench.path("elsewhere");
    let asked = bench.command(&["umount", &bench.mnt()]).env("ARGOSFS_RUNTIME_DIR", &elsewhere).output().expect("runs");
    assert_eq!(asked.status.code(), Some(69), "{}", text(&asked.stderr));
    assert!(text(&asked.stderr).contains("cannot be asked from here") && bench.is_mounted());
    bench.ok(&["umount", &bench.mnt()]);
}
