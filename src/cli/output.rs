//! What commands print: the answer on standard output, progress and notes on standard error. With `--json` the answer is
//! one JSON value on a line and progress is one JSON object a line.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::base::{Error, Result};
use crate::control::protocol::{Outcome, Progress};
use crate::control::server::Reply;

/// How to print.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Output {
    pub json: bool,
}

impl Output {
    /// Prints an answer.
    pub fn answer(self, outcome: &Outcome) -> Result<()> {
        if self.json {
            let mut line = outcome.answer.to_string();
            line.push('\n');
            return print(line.as_bytes());
        }
        let mut text = outcome.text.clone();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        print(text.as_bytes())
    }

    /// Prints something the user should know besides the answer.
    pub fn note(self, text: &str) {
        let _ = match self.json {
            true => writeln!(io::stderr(), "{}", serde_json::json!({ "note": text })),
            false => writeln!(io::stderr(), "argosfs: {text}"),
        };
    }

    /// Prints why a command failed.
    pub fn error(self, error: &Error) {
        let _ = match self.json {
            true => writeln!(io::stderr(), "{}", serde_json::json!({ "error": error.to_string() })),
            false => writeln!(io::stderr(), "argosfs: {error}"),
        };
    }

    /// Follows an operation: progress to standard error, streams to `data`.
    pub fn follow(self, data: Option<&mut dyn Write>) -> Follow<'_> {
        let shown = self.json || io::stderr().is_terminal();
        Follow { json: self.json, shown, open_line: false, last: None, data }
    }
}

/// Writes to standard output. A reader that went away is no error.
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::io("standard output", "write", error)),
        _ => Ok(()),
    }
}

/// Shows progress, and writes streams to where they belong.
pub struct Follow<'w> {
    json: bool,
    shown: bool,
    /// A line of progress stands there without its end.
    open_line: bool,
    last: Option<(String, Instant)>,
    data: Option<&'w mut dyn Write>,
}

/// The least time between two lines of progress for the same work.
const PACE: Duration = Duration::from_millis(200);

impl Reply for Follow<'_> {
    fn progress(&mut self, progress: &Progress) -> Result<()> {
        let same = self.last.as_ref().is_some_and(|(work, at)| *work == progress.work && at.elapsed() < PACE);
        if !self.shown || same && progress.done != progress.total {
            return Ok(());
        }
        self.last = Some((progress.work.clone(), Instant::now()));
        let mut err = io::stderr();
        let _ = if self.json {
            writeln!(err, "{}", serde_json::json!({ "progress": progress }))
        } else {
            self.open_line = true;
            write!(err, "\r\x1b[K{}", describe(progress)).and_then(|()| err.flush())
        };
        Ok(())
    }

    fn data(&mut self, bytes: &[u8]) -> Result<()> {
        match &mut self.data {
            Some(data) => data.write_all(bytes).map_err(|error| Error::io("the output", "write", error)),
            None => Ok(()),
        }
    }
}

impl Drop for Follow<'_> {
    fn drop(&mut self) {
        if self.open_line {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn describe(progress: &Progress) -> String {
    let Progress { work, done, total, unit } = progress;
    match total {
        0 if *done == 0 => format!("{work} .."),
        0 => format!("{work}: {done} {unit}"),
        total => format!("{work}: {done} of {total} {unit} ({} %)", done * 100 / total),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_reads_well() {
        let progress = |done, total| Progress { work: "scrub".to_owned(), done, total, unit: "stripes".to_owned() };
        assert_eq!(describe(&progress(0, 0)), "scrub ..");
        assert_eq!(describe(&progress(7, 0)), "scrub: 7 stripes");
        assert_eq!(describe(&progress(1, 8)), "scrub: 1 of 8 stripes (12 %)");
    }
}
