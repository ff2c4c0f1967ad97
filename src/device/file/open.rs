//! Opening a member by path: what it is, that nobody else has it, how large it is, how it can be read and written.

use super::{FileDevice, domain};
use crate::base::clock::SystemClock;
use crate::base::{BLOCK_SIZE, Bytes, Clock, Error, Result};
use crate::device::{AlignedBuf, Device, EngineChoice, InFlight};
use rustix::fs::{AtFlags, OFlags, StatxFlags, fcntl_getfl, fcntl_setfl, statx};
use rustix::io::Errno;
use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// The file made inside a directory that is a pool member.
pub const DIRECTORY_FILE: &str = "argosfs.dev";

/// How to open a member.
#[derive(Clone)]
pub struct OpenOptions {
    /// Writes fail; files may be shared with other readers.
    pub read_only: bool,
    /// Decides between `O_DIRECT` and the page cache.
    pub engine: EngineChoice,
    /// Makes the image, or the file in the directory, with this size when it is missing or empty. Other files and block
    /// devices keep their size.
    pub create_size: Option<Bytes>,
    /// With `create_size`: a file that has content is emptied and gets that size too.
    pub recreate: bool,
    /// The size its label gives: anything smaller is refused.
    pub expected_size: Option<Bytes>,
    /// For the age of requests in flight.
    pub clock: Arc<dyn Clock>,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            read_only: false,
            engine: EngineChoice::Auto,
            create_size: None,
            recreate: false,
            expected_size: None,
            clock: Arc::new(SystemClock),
        }
    }
}

impl fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOptions")
            .field("read_only", &self.read_only)
            .field("engine", &self.engine)
            .field("create_size", &self.create_size)
            .field("recreate", &self.recreate)
            .field("expected_size", &self.expected_size)
            .finish_non_exhaustive()
    }
}

/// What a path is to a pool, found without opening it for writing or locking it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathKind {
    /// Nothing is there; `free` bytes can be had where it would be made.
    Missing { free: Bytes },
    /// A regular file of `size` bytes; `free` more can be had there.
    Image { size: Bytes, free: Bytes },
    /// A directory; `size` is that of the member file in it, if there is one.
    Directory { size: Option<Bytes>, free: Bytes },
    /// A block device.
    Block { size: Bytes },
}

/// Says what the path is; `Error::Usage` when a pool cannot use it.
pub fn probe(path: &Path) -> Result<PathKind> {
    let name = path.display().to_string();
    let failed = |error| Error::io(&*name, "look up", error);
    let free = |at: &Path| {
        let stat = rustix::fs::statvfs(at).map_err(|error| failed(error.into()))?;
        Ok(Bytes(stat.f_bavail.saturating_mul(stat.f_frsize)))
    };
    let meta = match fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(PathKind::Missing { free: free(parent(path))? });
        }
        Err(error) => return Err(failed(error)),
    };
    let kind = meta.file_type();
    if kind.is_dir() {
        let size = match fs::metadata(path.join(DIRECTORY_FILE)) {
            Ok(file) => Some(Bytes(file.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(PathKind::Directory { size, free: free(path)? })
    } else if kind.is_file() {
        Ok(PathKind::Image { size: Bytes(meta.len()), free: free(path)? })
    } else if kind.is_block_device() {
        let mut device = File::open(path).map_err(failed)?;
        Ok(PathKind::Block { size: Bytes(device.seek(SeekFrom::End(0)).map_err(failed)?) })
    } else {
        Err(unusable(&name))
    }
}

/// Opens a block device, an image file, or the member file in a directory.
///
/// Errors: `Busy` when somebody else has it, `Unavailable` when it is shorter than `expected_size`, `Usage` for paths no
/// pool can use, `Io` otherwise (`NotFound` inside when nothing is there).
pub fn open(path: &Path, options: &OpenOptions) -> Result<Arc<dyn Device>> {
    Ok(Arc::new(open_file(path, options)?))
}

pub(super) fn open_file(path: &Path, options: &OpenOptions) -> Result<FileDevice> {
    let name = path.display().to_string();
    let failed = |operation| {
        let name = &name;
        move |error: io::Error| Error::io(&**name, operation, error)
    };
    let mut target = path.to_path_buf();
    let mut found = look(&target).map_err(failed("open"))?;
    if found.as_ref().is_some_and(Metadata::is_dir) {
        target.push(DIRECTORY_FILE);
        found = look(&target).map_err(failed("open"))?;
        if found.is_none() && options.create_size.is_none() {
            let why = format!("there is no {DIRECTORY_FILE} in this directory, so it is not a pool member");
            return Err(failed("open")(io::Error::new(io::ErrorKind::NotFound, why)));
        }
    }
    let block = match &found {
        Some(meta) if meta.file_type().is_block_device() => true,
        Some(meta) if meta.is_file() => false,
        Some(_) => return Err(unusable(&name)),
        None if options.create_size.is_some() && !options.read_only => false,
        None => return Err(failed("open")(Errno::NOENT.into())),
    };

    let mut opening = fs::OpenOptions::new();
    opening.read(true).write(!options.read_only);
    opening.custom_flags(if block { libc::O_EXCL } else { 0 });
    if found.is_none() {
        opening.create_new(true).mode(0o600);
    }
    let mut file = match opening.open(&target) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Err(busy(&name)),
        Err(error) => return Err(failed("open")(error)),
    };
    let meta = file.metadata().map_err(failed("open"))?;
    if meta.file_type().is_block_device() != block || meta.is_file() == block {
        return Err(unusable(&name));
    }
    if !block {
        lock(&file, options.read_only).map_err(|error| match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => busy(&name),
            _ => Error::io(&*name, "lock", error),
        })?;
    }

    let mut notes = Vec::new();
    if let Some(size) = options.create_size.filter(|_| !block && !options.read_only) {
        let has = file.metadata().map_err(failed("open"))?.len();
        if has == 0 || options.recreate {
            let made = resize(&file, size).and_then(|()| sync_directory(&target));
            if let Err(error) = made {
                if found.is_none() {
                    // It was ours and holds nothing; that it could not be made is what counts.
                    let _ = fs::remove_file(&target);
                }
                return Err(failed("create")(error));
            }
        } else if has != size.0 {
            notes.push(format!("{name} exists already with {}, which it keeps", Bytes(has)));
        }
    }
    let found_size = file.seek(SeekFrom::End(0)).map_err(failed("size"))?;
    if let Some(expected) = options.expected_size.filter(|expected| found_size < expected.0) {
        return Err(Error::Unavailable(format!(
            "{name} has {found_size} bytes but its label says {}: it was cut short, or is an incomplete copy",
            expected.0
        )));
    }
    if block
        && let Ok(sector) = rustix::fs::ioctl_blksszget(&file)
        && u64::from(sector) > BLOCK_SIZE
    {
        return Err(Error::Usage(format!("{name} has sectors of {sector} bytes; at most {BLOCK_SIZE} will do")));
    }
    let alignment = if options.engine.direct() { go_direct(&file, &name, found_size, &mut notes) } else { None };
    Ok(FileDevice {
        size: found_size / BLOCK_SIZE * BLOCK_SIZE,
        block,
        may_wait: !block && asks_somebody_else(&file),
        read_only: options.read_only,
        domain: domain::disk_of(if block { meta.rdev() } else { meta.dev() }),
        alignment: alignment.unwrap_or(1),
        direct: AtomicBool::new(alignment.is_some()),
        flush_failed: AtomicBool::new(false),
        discards: AtomicBool::new(true),
        in_flight: InFlight::new(options.clock.clone()),
        notes: Mutex::new(notes),
        name,
        file,
    })
}

/// Whether a file's filesystem is served by a process or another machine.
fn asks_somebody_else(file: &File) -> bool {
    const FUSE: i64 = 0x6573_5546;
    const NFS: i64 = 0x6969;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    const NINE_P: i64 = 0x0102_1997;
    const CEPH: i64 = 0x00c3_6400;
    let kind = rustix::fs::fstatfs(file).map(|filesystem| filesystem.f_type);
    matches!(kind, Ok(FUSE | NFS | CIFS | SMB2 | NINE_P | CEPH))
}

fn look(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn unusable(name: &str) -> Error {
    Error::Usage(format!("{name} is neither a block device nor a regular file nor a directory"))
}

fn busy(name: &str) -> Error {
    Error::Busy(format!(
        "{name} is in use: unmount the pool or filesystem on it, or stop the argosfs command, RAID or mapping that has it"
    ))
}

/// Takes the whole file for us, or for readers.
fn lock(file: &File, shared: bool) -> io::Result<()> {
    // SAFETY: all-zero is a valid `flock`.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = if shared { libc::F_RDLCK } else { libc::F_WRLCK } as _;
    request.l_whence = libc::SEEK_SET as _;
    // SAFETY: F_OFD_SETLK reads one `flock`, which lives until the call returns.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes the file a hole of this size, durably.
fn resize(file: &File, size: Bytes) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(size.0 / BLOCK_SIZE * BLOCK_SIZE)?;
    file.sync_all()
}

fn sync_directory(file: &Path) -> io::Result<()> {
    File::open(parent(file))?.sync_all()
}

/// Switches to `O_DIRECT` if everything about it works: what memory must be aligned to, or `None` and a note.
fn go_direct(file: &File, name: &str, size: u64, notes: &mut Vec<String>) -> Option<usize> {
    let plain = fcntl_getfl(file).ok()?;
    let why = match try_direct(file, plain, size) {
        Ok(alignment) => return Some(alignment),
        Err(why) => why,
    };
    // Without O_DIRECT the descriptor is as it was opened; a failure here leaves it so.
    let _ = fcntl_setfl(file, plain);
    notes.push(format!("{name}: no O_DIRECT here ({why}), using the page cache"));
    None
}

fn try_direct(file: &File, plain: OFlags, size: u64) -> Result<usize, String> {
    fcntl_setfl(file, plain | OFlags::DIRECT).map_err(|_| "the filesystem refuses it")?;
    let mut alignment = BLOCK_SIZE as usize;
    if let Ok(stat) = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN)
    {
        if stat.stx_dio_offset_align == 0 {
            return Err("the file cannot have it".into());
        }
        if u64::from(stat.stx_dio_offset_align) > BLOCK_SIZE || u64::from(stat.stx_dio_mem_align) > BLOCK_SIZE {
            return Err(format!("it needs units of {} bytes", stat.stx_dio_offset_align));
        }
        alignment = (stat.stx_dio_mem_align as usize).max(1);
    }
    if size >= BLOCK_SIZE {
        let mut block = AlignedBuf::scratch(BLOCK_SIZE as usize);
        // Other errors are for whoever reads in earnest.
        if let Err(Errno::INVAL) = rustix::io::pread(file, &mut *block, 0) {
            return Err("a first read of 4 KiB is refused".into());
        }
    }
    Ok(alignment)
}
