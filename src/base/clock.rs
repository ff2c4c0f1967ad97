//! Time, passed in so that a simulation can own it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Wall-clock time since the epoch, in seconds and nanoseconds (`nanos < 1_000_000_000`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

impl fmt::Display for Timestamp {
    /// UTC, to the second, as `2026-11-22 07:05:09 UTC`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to a date of the proleptic Gregorian calendar: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
        let (days, second) = (self.seconds.div_euclid(86_400) + 719_468, self.seconds.rem_euclid(86_400));
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year_of_era = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
        let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Counted from March.
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        let year = year_of_era + era * 400 + next;
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

/// A source of time.
pub trait Clock: Send + Sync {
    /// Wall-clock time.
    fn now(&self) -> Timestamp;
    /// Nanoseconds on a clock that never steps back; its zero means nothing.
    fn monotonic_ns(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
            Err(before) => Timestamp { seconds: -(before.duration().as_secs() as i64), nanos: 0 },
        }
    }

    fn monotonic_ns(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }
}

/// A clock for tests and the simulator: each reading advances it by a microsecond.
#[derive(Debug, Default)]
pub struct SteppingClock(AtomicU64);

impl SteppingClock {
    /// Moves time forward.
    pub fn advance_ns(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for SteppingClock {
    fn now(&self) -> Timestamp {
        let ns = self.monotonic_ns();
        Timestamp { seconds: 1_700_000_000 + (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.fetch_add(1_000, Ordering::Relaxed)
    }
}

/// A clock for tests that compare times: it stands still until it is moved.
#[derive(Debug, Default)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// Moves time forward.
    pub fn advance_ns(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let ns = self.monotonic_ns();
        Timestamp { seconds: 1_700_000_000 + (ns / 1_000_000_000) as i64, nanos: (ns % 1_000_000_000) as u32 }
    }

    fn monotonic_ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_dates() {
        let shown = |seconds| Timestamp { seconds, nanos: 0 }.to_string();
        assert_eq!(shown(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(shown(-1), "1969-12-31 23:59:59 UTC");
        assert_eq!(shown(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(shown(1_709_251_199), "2024-02-29 23:59:59 UTC");
        assert_eq!(shown(1_700_000_000), "2023-11-14 22:13:20 UTC");
    }
}
