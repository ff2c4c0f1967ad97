//! Turns each request into one call of the [`Filesystem`] and its result into the reply. No decision is made here.
//!
//! Invariants:
//! - Every request that expects a reply gets exactly one; FORGET, BATCH_FORGET and INTERRUPT get none.
//! - A reference handed out in a reply that nobody took is given back at once.

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{self, InHeader, op};
use super::buffer::{Buffer, DATA_MAX};
use super::errno::{errno, is_storage_failure, sync_errno};
use super::handler::Filesystem;
use super::reply::{Channel, Listing, Reply, Sent};
use super::report::Report;
use super::request::{Dialect, FlagsForm, Header, KillSgid, Operation, Request};
use crate::base::file::{
    Caller, Entry, FallocateMode, FileFlags, FileType, MODE_BITS, RenameMode, S_IFMT, Sink, XattrSet,
};
use crate::base::{Error, Ino, Result};

/// Serves requests of one session.
pub struct Adapter<'a, F: ?Sized> {
    pub fs: &'a F,
    pub dialect: Dialect,
    pub report: &'a Report,
}

impl<F: Filesystem + ?Sized> Adapter<'_, F> {
    /// Serves the request in the first `len` bytes of the buffer's message.
    pub fn serve(&self, channel: &dyn Channel, buffer: &mut Buffer, len: usize) -> Sent {
        match Request::parse(buffer.message(len), self.dialect) {
            Ok(request) => {
                let reply = Reply::new(channel, request.header.unique);
                match request.operation {
                    // These reuse the memory of the request for their reply.
                    Operation::Read { offset, size } => self.read(request.header, reply, buffer, offset, size),
                    Operation::ReadDir { cookie, size, plus } => {
                        self.readdir(request.header, reply, buffer, cookie, size, plus)
                    }
                    operation => self.dispatch(request.header, operation, reply),
                }
            }
            Err(malformed) => {
                self.report.say(format_args!(
                    "the kernel sent a malformed {}: {}",
                    op::name(malformed.opcode),
                    malformed.what
                ));
                match malformed.unique {
                    Some(unique) => Reply::new(channel, unique).errno(libc::EINVAL),
                    None => Sent::Nothing,
                }
            }
        }
    }

    fn dispatch(&self, header: Header, operation: Operation<'_>, reply: Reply<'_>) -> Sent {
        let (fs, ino) = (self.fs, header.ino);
        let caller = caller(&header, 0);
        match operation {
            Operation::Lookup { name } => match fs.lookup(&caller, ino, name) {
                Ok(entry) => self.hand_out(&entry, reply.entry(&entry)),
                // A dead "." is a stale handle, not a name that may be remembered as missing.
                Err(Error::NotFound) if name != b"." && name != b".." => reply.negative_entry(),
                Err(error) => self.fail(header, reply, &error),
            },
            Operation::Forget { references } => {
                fs.forget(ino, references);
                Sent::Nothing
            }
            Operation::BatchForget(forgets) => {
                forgets.iter().for_each(|(ino, references)| fs.forget(ino, references));
                Sent::Nothing
            }
            Operation::Interrupt => Sent::Nothing,
            Operation::GetAttr => self.answer(header, reply, fs.getattr(ino), |reply, attr| reply.attr(&attr)),
            Operation::Statx => self.answer(header, reply, fs.getattr(ino), |reply, attr| reply.statx(&attr)),
            Operation::SetAttr(changes) => {
                self.answer(header, reply, fs.setattr(&caller, ino, &changes), |reply, attr| reply.attr(&attr))
            }
            Operation::ReadLink => self.answer(header, reply, fs.readlink(ino), |reply, target| reply.data(&target)),
            Operation::Symlink { name, target } => self.enter(header, reply, fs.symlink(&caller, ino, name, target)),
            Operation::MkNod { name, mode, rdev, umask } => {
                let caller = Caller { umask, ..caller };
                let made = node_mode(mode).and_then(|mode| fs.mknod(&caller, ino, name, mode, rdev));
                self.enter(header, reply, made)
            }
            Operation::MkDir { name, mode, umask } => {
                let mode = FileType::Directory.mode_bits() | (mode & MODE_BITS);
                self.enter(header, reply, fs.mkdir(&Caller { umask, ..caller }, ino, name, mode))
            }
            Operation::TmpFile { mode, umask } => match fs.tmpfile(&Caller { umask, ..caller }, ino, regular(mode)) {
                Ok(entry) => self.hand_out(&entry, reply.created(&entry)),
                Err(error) => self.fail(header, reply, &error),
            },
            Operation::Link { existing, name } => self.enter(header, reply, fs.link(&caller, existing, ino, name)),
            Operation::Unlink { name } => self.finish(header, reply, fs.unlink(&caller, ino, name)),
            Operation::RmDir { name } => self.finish(header, reply, fs.rmdir(&caller, ino, name)),
            Operation::Rename { name, new_parent, new_name, flags } => {
                let renamed =
                    rename_mode(flags).and_then(|mode| fs.rename(&caller, ino, name, new_parent, new_name, mode));
                self.finish(header, reply, renamed)
            }
            Operation::Write { offset, data, kill_suidgid } => {
                let written = fs.write(&caller, ino, offset, data, kill_suidgid);
                self.answer(header, reply, written, |reply, count| reply.written(count.min(data.len()) as u32))
            }
            Operation::Fsync { datasync } => self.synced(header, reply, fs.fsync(ino, datasync)),
            Operation::SyncFs => self.synced(header, reply, fs.syncfs()),
            Operation::GetXattr { name, size } => self.xattr(header, reply, fs.get_xattr(&caller, ino, name), size),
            Operation::ListXattr { size } => self.xattr(header, reply, fs.list_xattr(&caller, ino), size),
            Operation::SetXattr { name, value, flags, kill_sgid } => {
                let kill = match kill_sgid {
                    KillSgid::Yes => true,
                    KillSgid::No => false,
                    KillSgid::Untold => name == b"system.posix_acl_access" && !caller.keeps_set_id(),
                };
                let set = xattr_set(flags).and_then(|set| fs.set_xattr(&caller, ino, name, value, set, kill));
                self.finish(header, reply, set)
            }
            Operation::RemoveXattr { name } => self.finish(header, reply, fs.remove_xattr(&caller, ino, name)),
            Operation::StatFs => self.answer(header, reply, fs.statfs(), |reply, stat| reply.statfs(&stat)),
            Operation::Seek { offset, whence } => {
                self.answer(header, reply, fs.seek(ino, offset, whence), |reply, offset| reply.position(offset))
            }
            Operation::Fallocate { offset, length, mode } => {
                let done = fallocate_mode(mode).and_then(|mode| fs.fallocate(&caller, ino, offset, length, mode));
                self.finish(header, reply, done)
            }
            Operation::CopyFileRange { from_offset, to, to_offset, length, wide } => {
                let length = if wide { length } else { length.min(u64::from(u32::MAX) & !4095) };
                let copied = fs.copy_file_range(&caller, ino, from_offset, to, to_offset, length);
                self.answer(
                    header,
                    reply,
                    copied,
                    |reply, count| {
                        if wide { reply.copied(count) } else { reply.written(count as u32) }
                    },
                )
            }
            Operation::Release | Operation::Destroy => reply.done(),
            Operation::GetFlags { form } => {
                self.answer(header, reply, fs.flags(ino), |reply, flags| match (form, to_word(form, flags)) {
                    (FlagsForm::Word, word) => reply.ioctl(&word.to_ne_bytes()),
                    (FlagsForm::Extended, xflags) => {
                        reply.ioctl(abi::FsXattr { xflags, ..Default::default() }.as_bytes())
                    }
                })
            }
            Operation::SetFlags { form, flags } => {
                let set = from_word(form, flags).and_then(|flags| fs.set_flags(&caller, ino, flags));
                self.answer(header, reply, set, |reply, ()| reply.flags_set(ino))
            }
            Operation::Ioctl => reply.errno(libc::ENOTTY),
            Operation::Init(_) | Operation::Read { .. } | Operation::ReadDir { .. } => reply.errno(libc::EIO),
            Operation::Declined => reply.errno(libc::ENOSYS),
        }
    }

    fn read(&self, header: Header, reply: Reply<'_>, buffer: &mut Buffer, offset: u64, size: u32) -> Sent {
        // A short answer would mean the end of the file, so a size beyond what was negotiated is refused instead.
        let Some(out) = buffer.data_mut(size as usize) else { return reply.errno(libc::EINVAL) };
        match self.fs.read(header.ino, offset, out) {
            Ok(count) => reply.data(&out[..count.min(size as usize)]),
            Err(error) => self.fail(header, reply, &error),
        }
    }

    fn readdir(
        &self,
        header: Header,
        reply: Reply<'_>,
        buffer: &mut Buffer,
        cookie: u64,
        size: u32,
        plus: bool,
    ) -> Sent {
        let Some(out) = buffer.data_mut(DATA_MAX.min(size as usize)) else { return reply.errno(libc::EINVAL) };
        let mut listing = Listing::new(out);
        let mut full = false;
        let sink_of = |taken: bool| if taken { Sink::Taken } else { Sink::Full };
        let result = if plus {
            self.fs.readdir_plus(header.ino, cookie, &mut |entry, inode| {
                full = full || !listing.push_plus(entry, inode);
                sink_of(!full)
            })
        } else {
            self.fs.readdir(header.ino, cookie, &mut |entry| {
                full = full || !listing.push(entry);
                sink_of(!full)
            })
        };
        let used = listing.finish();
        match result {
            // Entries that were taken are delivered, their references with them; the next request meets the error.
            Err(error) if used == 0 => self.fail(header, reply, &error),
            _ if used == 0 && full => reply.errno(libc::EINVAL),
            _ => reply.data(&out[..used]),
        }
    }

    fn xattr(&self, header: Header, reply: Reply<'_>, value: Result<Vec<u8>>, room: u32) -> Sent {
        self.answer(header, reply, value, |reply, value| match room as usize {
            0 => reply.xattr_size(value.len() as u32),
            room if room < value.len() => reply.errno(libc::ERANGE),
            _ => reply.data(&value),
        })
    }

    fn enter(&self, header: Header, reply: Reply<'_>, made: Result<Entry>) -> Sent {
        match made {
            Ok(entry) => self.hand_out(&entry, reply.entry(&entry)),
            Err(error) => self.fail(header, reply, &error),
        }
    }

    fn hand_out(&self, entry: &Entry, sent: Sent) -> Sent {
        if sent == Sent::Dropped {
            self.fs.forget(entry.attr.ino, 1);
        }
        sent
    }

    fn finish(&self, header: Header, reply: Reply<'_>, result: Result<()>) -> Sent {
        self.answer(header, reply, result, |reply, ()| reply.done())
    }

    fn answer<'r, T>(
        &self,
        header: Header,
        reply: Reply<'r>,
        result: Result<T>,
        send: impl FnOnce(Reply<'r>, T) -> Sent,
    ) -> Sent {
        match result {
            Ok(value) => send(reply, value),
            Err(error) => self.fail(header, reply, &error),
        }
    }

    fn synced(&self, header: Header, reply: Reply<'_>, result: Result<()>) -> Sent {
        match result {
            Ok(()) => reply.done(),
            Err(error) => {
                self.tell(header, &error);
                reply.errno(sync_errno(&error))
            }
        }
    }

    fn fail(&self, header: Header, reply: Reply<'_>, error: &Error) -> Sent {
        self.tell(header, error);
        reply.errno(errno(error))
    }

    fn tell(&self, header: Header, error: &Error) {
        if is_storage_failure(error) {
            self.report.say(format_args!("{} of inode {} failed: {error}", op::name(header.opcode), header.ino));
        }
    }
}

fn caller(header: &Header, umask: u32) -> Caller {
    Caller { uid: header.uid, gid: header.gid, pid: header.pid, umask }
}

fn regular(mode: u32) -> u32 {
    FileType::Regular.mode_bits() | (mode & MODE_BITS)
}

fn node_mode(mode: u32) -> Result<u32> {
    match FileType::from_mode(mode) {
        None if mode & S_IFMT == 0 => Ok(regular(mode)),
        None | Some(FileType::Directory | FileType::Symlink) => Err(Error::Invalid("not a kind mknod makes")),
        Some(kind) => Ok(kind.mode_bits() | (mode & MODE_BITS)),
    }
}

fn rename_mode(flags: u32) -> Result<RenameMode> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(Error::Invalid("unknown rename flags")),
    }
}

/// The bits of an immutable file and of one that only grows.
fn flag_bits(form: FlagsForm) -> (u32, u32) {
    match form {
        FlagsForm::Word => (abi::FS_IMMUTABLE_FL, abi::FS_APPEND_FL),
        FlagsForm::Extended => (abi::FS_XFLAG_IMMUTABLE, abi::FS_XFLAG_APPEND),
    }
}

fn to_word(form: FlagsForm, flags: FileFlags) -> u32 {
    let (immutable, append) = flag_bits(form);
    (if flags.immutable { immutable } else { 0 }) | (if flags.append { append } else { 0 })
}

fn from_word(form: FlagsForm, word: u32) -> Result<FileFlags> {
    let (immutable, append) = flag_bits(form);
    if word & !(immutable | append) != 0 {
        return Err(Error::Unsupported);
    }
    Ok(FileFlags { immutable: word & immutable != 0, append: word & append != 0 })
}

fn xattr_set(flags: u32) -> Result<XattrSet> {
    match flags as i32 {
        0 => Ok(XattrSet::Any),
        libc::XATTR_CREATE => Ok(XattrSet::Create),
        libc::XATTR_REPLACE => Ok(XattrSet::Replace),
        _ => Err(Error::Invalid("unknown setxattr flags")),
    }
}

fn fallocate_mode(mode: u32) -> Result<FallocateMode> {
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
    match mode as i32 {
        0 => Ok(FallocateMode::Allocate { keep_size: false }),
        libc::FALLOC_FL_KEEP_SIZE => Ok(FallocateMode::Allocate { keep_size: true }),
        PUNCH => Ok(FallocateMode::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(FallocateMode::ZeroRange { keep_size: false }),
        ZERO_KEEP => Ok(FallocateMode::ZeroRange { keep_size: true }),
        _ => Err(Error::Unsupported),
    }
}

/// The operation a message asks for, whatever else it holds.
pub fn opcode(message: &[u8]) -> Option<u32> {
    InHeader::read_from_prefix(message).ok().map(|(header, _)| header.opcode)
}

/// Number, operation and inode of a request, for reports of requests that could not be served.
pub fn describe(message: &[u8]) -> Option<(u64, &'static str, Ino)> {
    let (header, _) = InHeader::read_from_prefix(message).ok()?;
    Some((header.unique, op::name(header.opcode), Ino(header.nodeid)))
}
