//! Mounting through a helper program, which here is this test binary behind a script.

use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use argosfs::base::Error;
use argosfs::fuse::{MountOptions, Report, Session};

use crate::memfs::MemFs;
use crate::{can_mount, errno, in_directory, in_own_namespace, serve};

/// Not a test by itself: does what `fusermount3` does when the script below starts this binary.
#[test]
fn acts_as_the_helper() {
    let Ok(arguments) = std::env::var("ARGOSFS_TEST_HELPER") else { return };
    let arguments: Vec<&str> = arguments.split('\n').collect();
    match arguments.as_slice() {
        ["-o", options, "--", mountpoint, ""] => mount(options, Path::new(mountpoint)),
        ["-u", "--", mountpoint, ""] => {
            rustix::mount::unmount(*mountpoint, rustix::mount::UnmountFlags::empty()).expect("unmount")
        }
        ["-u", "-z", "--", mountpoint, ""] => {
            rustix::mount::unmount(*mountpoint, rustix::mount::UnmountFlags::DETACH).expect("unmount")
        }
        other => panic!("not what fusermount3 takes: {other:?}"),
    }
}

fn mount(options: &str, mountpoint: &Path) {
    assert!(options.contains("subtype=argosfs,default_permissions"), "{options}");
    assert!(options.contains("fsname=a pool\\, with a comma"), "{options}");
    let device = std::fs::File::options().read(true).write(true).open("/dev/fuse").expect("open");
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let data = std::ffi::CString::new(data).expect("no NUL");
    let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
    rustix::mount::mount("by helper", mountpoint, "fuse.argosfs", flags, &*data).expect("mount");

    let number = std::env::var("_FUSE_COMMFD").expect("the socket's number").parse().expect("a number");
    // SAFETY: the parent left this descriptor open for the helper, and nothing else in this process knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    let descriptors: [BorrowedFd<'_>; 1] = [device.as_fd()];
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    rustix::net::sendmsg(&socket, &[IoSlice::new(&[0])], &mut control, rustix::net::SendFlags::empty()).expect("send");
}

fn script(directory: &Path) -> PathBuf {
    let path = directory.join("fusermount3");
    let mut file =
        std::fs::File::options().create(true).write(true).truncate(true).mode(0o755).open(&path).expect("create");
    let binary = std::env::current_exe().expect("this binary");
    write!(
        file,
        "#!/bin/sh\nARGOSFS_TEST_HELPER=$(printf '%s\\n' \"$@\"; echo x)\nARGOSFS_TEST_HELPER=${{ARGOSFS_TEST_HELPER%x}}\n\
         export ARGOSFS_TEST_HELPER\nexec '{}' --exact helper::acts_as_the_helper --nocapture >/dev/null\n",
        binary.display()
    )
    .expect("write");
    path
}

#[test]
fn ordinary_users_mount_through_the_helper() {
    if !can_mount() {
        return;
    }
    in_own_namespace(|| {
        in_directory(|scripts| {
            in_directory(|root| {
                let mut options = MountOptions::new("a pool, with a comma");
                options.helper = Some(script(scripts));
                let dead = Session::mount(root, &options, Report::stderr()).expect("mount");
                drop(dead);
                assert_eq!(errno(std::fs::read_dir(root)), libc::ENOTCONN);
                let fs = MemFs::new(true, None);
                serve(root, &fs, &options, |m| {
                    std::fs::write(m.path("file"), "x").expect("write");
                    assert!(matches!(m.session.unmount(false), Ok(())) == !m.path("file").exists());
                });
                assert!(!root.join("file").exists(), "unmounted by the helper, too");
            });
            std::fs::remove_file(scripts.join("fusermount3")).expect("remove");
        });
    });
}

#[test]
fn a_missing_or_failing_helper_is_explained() {
    in_directory(|root| {
        let mut options = MountOptions::new("p");
        options.helper = Some("/nonexistent/fusermount3".into());
        let error = Session::mount(root, &options, Report::stderr()).err().expect("is refused");
        assert!(matches!(&error, Error::Unavailable(text) if text.contains("package fuse3")), "{error}");
        options.helper = Some("false".into());
        let error = Session::mount(root, &options, Report::stderr()).err().expect("is refused");
        assert!(matches!(error, Error::Unavailable(_)), "{error}");
    });
}
