//! A process that can be killed between two requests to its devices, while the devices and their caches live on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use argosfs::base::{Error, Result};
use argosfs::device::Device;
use argosfs::device::sim::SimWorld;

/// What the devices of one opening share: once it is dead, none of their requests reaches a device.
#[derive(Debug)]
pub struct Process {
    /// Requests until it dies.
    left: AtomicU64,
}

impl Process {
    /// A process that lives until [`Process::die_after`].
    pub fn new() -> Arc<Process> {
        Arc::new(Process { left: AtomicU64::new(u64::MAX) })
    }

    /// It dies when so many more requests were answered.
    pub fn die_after(&self, requests: u64) {
        self.left.store(requests, Ordering::Relaxed);
    }

    /// Whether it was killed.
    pub fn is_dead(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
    }

    /// Device `index` of the world as this process sees it.
    pub fn device(self: &Arc<Process>, world: &SimWorld, index: usize) -> Arc<dyn Device> {
        Arc::new(Attached { device: world.device(index), process: self.clone() })
    }
}

struct Attached {
    device: Arc<dyn Device>,
    process: Arc<Process>,
}

impl Attached {
    fn request(&self, operation: &'static str) -> Result<()> {
        let left = &self.process.left;
        match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
            u64::MAX => Some(left),
            left => left.checked_sub(1),
        }) {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::io(self.device.name(), operation, std::io::Error::other("the process was killed"))),
        }
    }
}

impl Device for Attached {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn size(&self) -> u64 {
        self.device.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.request("read")?;
        self.device.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        self.request("write")?;
        self.device.write_at(offset, bufs)
    }

    fn flush(&self) -> Result<()> {
        self.request("flush")?;
        self.device.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        self.request("discard")?;
        self.device.discard(offset, len)
    }

    fn stalled_ns(&self) -> Option<u64> {
        self.device.stalled_ns()
    }

    fn domain_hint(&self) -> Option<u64> {
        self.device.domain_hint()
    }
}
