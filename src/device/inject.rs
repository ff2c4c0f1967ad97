//! Faults on demand, for rehearsals: a device in front of another one, which fails, spoils or delays requests as a board
//! says. Only pools that were made for it have such devices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Device, InFlight};
use crate::base::{Clock, Error, Prng, Result};

/// What happens to a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Harm {
    /// It fails, and nothing is done.
    Fail,
    /// What is read or written has flipped bits, and nobody is told.
    Corrupt,
    /// It is done after so many milliseconds.
    Delay(u64),
}

/// Kinds of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    Flush,
}

/// A rule of the board.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Name of the device.
    pub device: String,
    pub harm: Harm,
    /// `None`: any kind. Flushes are never corrupt.
    pub kind: Option<Kind>,
    /// Bytes of the device it applies to; flushes are everywhere.
    pub start: u64,
    pub length: u64,
    /// One in so many requests is harmed.
    pub one_in: u64,
    /// Requests it still harms; `None` for any number.
    pub left: Option<u64>,
}

impl Rule {
    fn applies(&self, device: &str, kind: Kind, offset: u64, length: u64) -> bool {
        let place = kind == Kind::Flush
            || (offset < self.start.saturating_add(self.length) && self.start < offset.saturating_add(length));
        let sense = kind != Kind::Flush || self.harm != Harm::Corrupt;
        self.device == device && self.kind.is_none_or(|own| own == kind) && place && sense && self.left != Some(0)
    }
}

struct Rules {
    rules: Vec<Rule>,
    times_cleared: u64,
    prng: Prng,
}

/// The rules for all devices of a pool.
pub struct Board {
    enabled: AtomicBool,
    rules: Mutex<Rules>,
    cleared: Condvar,
}

impl Board {
    /// Without rules; `seed` decides which of several requests are harmed.
    pub fn new(seed: u64) -> Board {
        let rules = Rules { rules: Vec::new(), times_cleared: 0, prng: Prng::new(seed) };
        Board { enabled: AtomicBool::new(false), rules: Mutex::new(rules), cleared: Condvar::new() }
    }

    /// Devices opened from now on are put behind it.
    pub fn enable(&self) {
        self.enabled.store(true, Ordering::Release);
    }

    /// Whether devices are to be put behind it.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a rule.
    pub fn add(&self, rule: Rule) {
        self.rules().rules.push(rule);
    }

    /// Removes all rules, and ends the delays that are under way.
    pub fn clear(&self) {
        let mut rules = self.rules();
        rules.rules.clear();
        rules.times_cleared += 1;
        self.cleared.notify_all();
    }

    fn wait(&self, milliseconds: u64) {
        let rules = self.rules();
        let now = rules.times_cleared;
        let same = |rules: &mut Rules| rules.times_cleared == now;
        drop(self.cleared.wait_timeout_while(rules, Duration::from_millis(milliseconds), same));
    }

    /// The rules there are, those that are used up included.
    pub fn list(&self) -> Vec<Rule> {
        self.rules().rules.clone()
    }

    /// What is to happen to a request.
    fn draw(&self, device: &str, kind: Kind, offset: u64, length: u64) -> Vec<Harm> {
        let mut guard = self.rules();
        let Rules { rules, prng, .. } = &mut *guard;
        let mut harms = Vec::new();
        for rule in rules.iter_mut().filter(|rule| rule.applies(device, kind, offset, length)) {
            if prng.chance(1, rule.one_in.max(1)) {
                rule.left = rule.left.map(|left| left - 1);
                harms.push(rule.harm);
            }
        }
        harms
    }

    fn flip(&self, bytes: &mut [u8]) {
        let Some(last) = (bytes.len() as u64).checked_sub(1) else { return };
        let mut rules = self.rules();
        let at = rules.prng.below(last + 1) as usize;
        bytes[at] ^= 1 << rules.prng.below(8);
    }
}

/// A device behind a board.
pub struct Injected {
    inner: Arc<dyn Device>,
    board: Arc<Board>,
    in_flight: InFlight,
}

impl Injected {
    /// Puts a device behind the board.
    pub fn new(inner: Arc<dyn Device>, board: Arc<Board>, clock: Arc<dyn Clock>) -> Injected {
        Injected { inner, board, in_flight: InFlight::new(clock) }
    }

    /// Whether what is read or written is to be spoiled; waits, and fails, as the rules say.
    fn suffer(&self, kind: Kind, operation: &'static str, offset: u64, length: u64) -> Result<bool> {
        let mut corrupt = false;
        for harm in self.board.draw(self.inner.name(), kind, offset, length) {
            match harm {
                Harm::Fail => {
                    let error = std::io::Error::from_raw_os_error(libc::EIO);
                    return Err(Error::io(self.inner.name(), operation, error));
                }
                Harm::Corrupt => corrupt = true,
                Harm::Delay(milliseconds) => self.board.wait(milliseconds),
            }
        }
        Ok(corrupt)
    }
}

impl Device for Injected {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn size(&self) -> u64 {
        self.inner.size()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let _watch = self.in_flight.start();
        let corrupt = self.suffer(Kind::Read, "read", offset, buf.len() as u64)?;
        self.inner.read_at(offset, buf)?;
        if corrupt {
            self.board.flip(buf);
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, bufs: &[&[u8]]) -> Result<()> {
        let _watch = self.in_flight.start();
        let length = bufs.iter().map(|buf| buf.len() as u64).sum();
        if !self.suffer(Kind::Write, "write", offset, length)? {
            return self.inner.write_at(offset, bufs);
        }
        let mut spoiled = super::AlignedBuf::scratch(length as usize);
        spoiled.copy_from_slice(&bufs.concat());
        self.board.flip(&mut spoiled);
        self.inner.write_at(offset, &[&spoiled])
    }

    fn flush(&self) -> Result<()> {
        let _watch = self.in_flight.start();
        self.suffer(Kind::Flush, "flush", 0, 0)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<bool> {
        self.inner.discard(offset, len)
    }

    fn stalled_ns(&self) -> Option<u64> {
        self.in_flight.oldest_ns().max(self.inner.stalled_ns())
    }

    fn domain_hint(&self) -> Option<u64> {
        self.inner.domain_hint()
    }

    fn is_file(&self) -> bool {
        self.inner.is_file()
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::ManualClock;
    use crate::device::sim::SimWorld;

    fn rule(harm: Harm, kind: Option<Kind>) -> Rule {
        Rule { device: "sim0".into(), harm, kind, start: 8192, length: 4096, one_in: 1, left: None }
    }

    #[test]
    fn rules_harm_what_they_name_and_nothing_else() {
        let world = SimWorld::new(1, 2, 1 << 20);
        let board = Arc::new(Board::new(3));
        let open = |at| Injected::new(world.device(at), board.clone(), Arc::new(ManualClock::default()));
        let (device, other) = (open(0), open(1));
        let block = vec![7u8; 4096];
        let mut out = vec![0; 4096];
        device.write_at(8192, &[&block]).unwrap();
        board.add(rule(Harm::Fail, Some(Kind::Read)));
        assert!(device.read_at(8192, &mut out).is_err());
        device.read_at(4096, &mut out).unwrap();
        device.read_at(12288, &mut out).unwrap();
        device.write_at(8192, &[&block]).unwrap();
        other.read_at(8192, &mut out).unwrap();
        board.clear();
        device.read_at(8192, &mut out).unwrap();
        assert!(out == block);
        // A read that lies does so once, a write for good.
        board.add(Rule { left: Some(1), ..rule(Harm::Corrupt, Some(Kind::Read)) });
        device.read_at(8192, &mut out).unwrap();
        assert_eq!(out.iter().zip(&block).filter(|(a, b)| a != b).count(), 1);
        device.read_at(8192, &mut out).unwrap();
        assert!(out == block && board.list()[0].left == Some(0));
        board.add(Rule { left: Some(1), ..rule(Harm::Corrupt, None) });
        device.flush().unwrap();
        device.write_at(8192, &[&block[..1000], &block[1000..]]).unwrap();
        device.read_at(8192, &mut out).unwrap();
        assert_eq!(out.iter().zip(&block).filter(|(a, b)| a != b).count(), 1);
        board.add(rule(Harm::Fail, Some(Kind::Flush)));
        assert!(device.flush().is_err());
    }

    #[test]
    fn one_in_so_many_is_harmed() {
        let world = SimWorld::new(1, 1, 1 << 20);
        let board = Arc::new(Board::new(3));
        let device = Injected::new(world.device(0), board.clone(), Arc::new(ManualClock::default()));
        board.add(Rule { one_in: 10, ..rule(Harm::Fail, None) });
        let failed = (0..1000).filter(|_| device.read_at(8192, &mut [0; 4096]).is_err()).count();
        assert!((50..200).contains(&failed), "{failed} of 1000");
    }
}
