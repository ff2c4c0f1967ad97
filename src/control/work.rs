//! Long work going on in this process, for `status`, and so that none of it is done twice at once.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::protocol::Progress;
use super::server::Reply;
use crate::base::{Error, Result};

/// The list of what goes on.
#[derive(Clone, Default, Debug)]
pub struct Work(Arc<Mutex<Vec<Progress>>>);

impl Work {
    fn list(&self) -> MutexGuard<'_, Vec<Progress>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins work of a kind of which only one may go on.
    pub fn begin(&self, work: &'static str, unit: &'static str) -> Result<Ticket> {
        let mut list = self.list();
        if list.iter().any(|other| other.work == work) {
            return Err(Error::Busy(format!("a {work} goes on already; `argosfs status` tells how far it is")));
        }
        list.push(Progress { work: work.to_owned(), done: 0, total: 0, unit: unit.to_owned() });
        Ok(Ticket { work, list: self.clone() })
    }

    /// What goes on now.
    pub fn now(&self) -> Vec<Progress> {
        self.list().clone()
    }
}

/// Work that goes on until this is dropped.
#[derive(Debug)]
pub struct Ticket {
    work: &'static str,
    list: Work,
}

impl Ticket {
    /// Says how far it is, here and to whoever asked for it.
    pub fn advance(&self, done: u64, total: u64, reply: &mut dyn Reply) -> Result<()> {
        let progress = {
            let mut list = self.list.list();
            let Some(progress) = list.iter_mut().find(|progress| progress.work == self.work) else { return Ok(()) };
            progress.done = done;
            progress.total = total;
            progress.clone()
        };
        reply.progress(&progress)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.list.list().retain(|progress| progress.work != self.work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::client::Silent;

    #[test]
    fn the_same_work_is_not_done_twice_at_once() {
        let work = Work::default();
        let ticket = work.begin("scrub", "stripes").expect("begins");
        ticket.advance(3, 9, &mut Silent).expect("advances");
        assert!(matches!(work.begin("scrub", "stripes"), Err(Error::Busy(_))));
        let rebuild = work.begin("rebuild", "stripes").expect("other work may begin");
        assert_eq!(work.now().iter().map(|progress| progress.done).collect::<Vec<_>>(), [3, 0]);
        drop((ticket, rebuild));
        assert!(work.now().is_empty());
        work.begin("scrub", "stripes").expect("begins again");
    }
}
