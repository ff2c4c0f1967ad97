//! Serves a [`Filesystem`] to the kernel over `/dev/fuse`. Above: `cli`, which mounts. Below: the kernel; no decision
//! about files is made here.
//!
//! The kernel protocol is spoken directly. The `fuser` crate (0.18) has no tmpfile, statx or syncfs, hides
//! `FATTR_KILL_SUIDGID`, ends the session on `SETXATTR_EXT`, drops the mount's subtype, and ties up a thread for every
//! request that waits. The wire format is small, stable and versioned by the kernel, so a transport that carries
//! exactly what the filesystem promises costs less than working around one that does not, and the filesystem behind
//! it stays free of any transport's types: FUSE over io_uring can stand beside it.

pub mod abi;
pub mod adapter;
mod buffer;
mod crew;
pub mod errno;
pub mod handler;
pub mod mount;
pub mod negotiate;
pub mod reply;
pub mod report;
pub mod request;
mod serve;
pub mod session;
pub mod workers;

pub use buffer::Buffer;
pub use crew::Ended;
pub use handler::Filesystem;
pub use mount::MountOptions;
pub use report::Report;
pub use session::{Notifier, Session};
