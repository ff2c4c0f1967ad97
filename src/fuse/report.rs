//! Where a session says what nobody else can: failures that callers only see as an errno.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};

/// Says something on standard error, behind the program's name. Where nobody listens any more, or the log has no space, it is
/// not heard: `eprintln!` would end the thread.
pub fn say(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "argosfs: {text}");
}

/// A voice that does not shout: after the first few messages it speaks only when their number doubles, so a device that
/// fails every request does not fill the system's log.
pub struct Report {
    said: AtomicU64,
    sink: Box<dyn Fn(&str) + Send + Sync>,
}

impl Report {
    /// Messages said before the voice is lowered.
    const LOUD: u64 = 16;

    /// Passes messages to `sink`.
    pub fn new(sink: impl Fn(&str) + Send + Sync + 'static) -> Report {
        Report { said: AtomicU64::new(0), sink: Box::new(sink) }
    }

    /// To standard error, behind the program's name.
    pub fn stderr() -> Report {
        Report::new(|text| say(format_args!("{text}")))
    }

    /// Says `text`, or only counts it.
    pub fn say(&self, text: fmt::Arguments<'_>) {
        let count = self.said.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= Self::LOUD {
            (self.sink)(&text.to_string());
        } else if count.is_power_of_two() {
            (self.sink)(&format!("{text} ({count} such messages so far)"));
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").field("said", &self.said).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_flood_of_failures_stays_readable() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&heard);
        let report = Report::new(move |text| sink.lock().expect("not poisoned").push(text.to_owned()));
        for number in 0..100_000 {
            report.say(format_args!("failure {number}"));
        }
        let heard = heard.lock().expect("not poisoned");
        assert_eq!(heard.len(), 16 + 12, "16 at once, then 32, 64 .. 65536");
        assert_eq!(heard.last().map(String::as_str), Some("failure 65535 (65536 such messages so far)"));
    }
}
