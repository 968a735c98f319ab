//! Work of connects that is done after them: the resources of the next connections, and descriptors that
//! are no longer needed.
//!
//! Both processes of a new connection wait for a processor as long as the core thread has one. So what need
//! not be done at once is done when the core thread has had nothing else to do for a moment.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hvsock_fabric::Refusal;
use hvsock_sys::stream;

use super::preference::ChosenTransport;
use super::resources::ConnectionResources;

/// Connections whose resources exist ahead: a second one can follow before the core thread has had time.
const SPARES: usize = 2;
/// How long the work waits. The processes need less to take a connection.
const DELAY: Duration = Duration::from_micros(300);
/// Most descriptors that wait to be closed when more are added: those of one connection.
const MAX_CLOSING: usize = 6;

/// Preallocated resources, and what a connect has left behind.
pub(super) struct Spare {
    /// The transport of the preallocated resources.
    transport: ChosenTransport,
    ready: Vec<ConnectionResources>,
    /// Those of connections of processes with their own sockets, once one was made.
    attached: Vec<ConnectionResources>,
    has_attached: bool,
    unnamed: Unnamed,
    /// Copies of descriptors that processes have received.
    closing: Vec<OwnedFd>,
    /// When the work is due; `None` if there is none.
    due: Option<Instant>,
}

impl Spare {
    /// Preallocates for this transport.
    pub(super) fn new(transport: ChosenTransport) -> Self {
        Self {
            transport,
            ready: Vec::new(),
            attached: Vec::new(),
            has_attached: false,
            unnamed: Unnamed::default(),
            closing: Vec::new(),
            due: Some(Instant::now()),
        }
    }

    /// The resources of a new connection: preallocated ones, if there are any of this transport.
    pub(super) fn take(
        &mut self,
        transport: ChosenTransport,
    ) -> Result<ConnectionResources, Refusal> {
        let spare = match transport {
            ChosenTransport::Attached => {
                self.has_attached = true;
                self.attached.pop()
            }
            transport if transport == self.transport => self.ready.pop(),
            transport => return ConnectionResources::new(transport),
        };
        self.delay();
        match spare {
            Some(spare) => Ok(spare),
            None => ConnectionResources::new(transport),
        }
    }

    /// A listening socket without a name, and what a process connects to by it. The first call decides that there are
    /// more ahead, in this folder.
    pub(super) fn take_unnamed(&mut self, folder: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        self.delay();
        self.unnamed.take(folder)
    }

    /// Closes descriptors, of which processes have received copies, within a moment.
    pub(super) fn close_later(&mut self, descriptors: impl IntoIterator<Item = OwnedFd>) {
        if self.closing.len() >= MAX_CLOSING {
            self.closing.clear();
        }
        self.closing.extend(descriptors);
        if !self.closing.is_empty() {
            self.delay();
        }
    }

    /// Closes those descriptors now: an accepting process has taken its connection, and its close is not seen before the
    /// broker's copy is closed, too.
    pub(super) fn close_now(&mut self) {
        self.closing.clear();
    }

    /// Whether there are descriptors to close.
    pub(super) fn has_closing(&self) -> bool {
        !self.closing.is_empty()
    }

    /// When [`work`](Self::work) is due; `None` if there is none.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Does a part of what is due, and the rest when nothing else is to be done: [`due`](Self::due) is past until then.
    /// A connect that found no other preallocated resources is followed by their allocation at once. `is_idle`: nothing
    /// else was to be done just now, so descriptors are closed already, whose other copies processes may close.
    pub(super) fn work(&mut self, now: Instant, is_idle: bool) {
        if is_idle {
            self.closing.clear();
        }
        if self.ready.is_empty() {
            self.allocate_one();
        }
        self.unnamed.fill_to(1);
        if self.due.is_some_and(|due| due <= now) {
            self.closing.clear();
            if !self.allocate_next() {
                self.due = None;
            }
        }
    }

    /// Allocates one of what is missing. Returns whether something was.
    fn allocate_next(&mut self) -> bool {
        (self.ready.len() < SPARES && self.allocate_one())
            || (self.has_attached && self.attached.len() < SPARES && self.allocate_attached())
            || self.unnamed.fill_to(SPARES)
    }

    /// Returns whether there was a descriptor left for it.
    fn allocate_one(&mut self) -> bool {
        let spare = ConnectionResources::ahead(self.transport);
        let is_ok = spare.is_ok();
        self.ready.extend(spare);
        is_ok
    }

    fn allocate_attached(&mut self) -> bool {
        let spare = ConnectionResources::ahead(ChosenTransport::Attached);
        let is_ok = spare.is_ok();
        self.attached.extend(spare);
        is_ok
    }

    fn delay(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + DELAY);
    }
}

/// Listening sockets without a name, with what a process connects to.
#[derive(Default)]
struct Unnamed {
    /// Where they are made. `None`: no process has asked for one.
    folder: Option<PathBuf>,
    ready: Vec<(OwnedFd, OwnedFd)>,
    made: u64,
}

impl Unnamed {
    fn take(&mut self, folder: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        if self.folder.as_deref() != Some(folder) {
            self.folder = Some(folder.to_owned());
            self.ready.clear();
        }
        match self.ready.pop() {
            Some(ready) => Ok(ready),
            None => self.make(folder),
        }
    }

    /// Makes one more if there are fewer than `count`. Returns whether it did, which takes descriptors that are left.
    fn fill_to(&mut self, count: usize) -> bool {
        let Some(folder) = self.folder.take() else {
            return false;
        };
        let made = (self.ready.len() < count)
            .then(|| self.make(&folder).ok())
            .flatten();
        let has_made = made.is_some();
        self.ready.extend(made);
        self.folder = Some(folder);
        has_made
    }

    fn make(&mut self, folder: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
        self.made += 1;
        stream::listen_unnamed(folder, &self.made.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RING: ChosenTransport = ChosenTransport::DEFAULT;

    /// Works until nothing is due at that time.
    fn finish(spare: &mut Spare, now: Instant) {
        spare.work(now, false);
        for _ in 0..100 {
            if spare.due().is_none_or(|due| due > now) {
                return;
            }
            spare.work(now, false);
        }
        panic!("the work has no end");
    }

    #[test]
    fn what_connects_take_is_made_again_once_there_is_nothing_else_to_do() {
        let mut spare = Spare::new(RING);
        let start = Instant::now();
        finish(&mut spare, start);
        assert_eq!((spare.ready.len(), spare.due()), (SPARES, None));

        // Another transport has its own resources, and leaves nothing to do.
        spare.take(ChosenTransport::Direct).ok().unwrap();
        assert_eq!((spare.ready.len(), spare.due()), (SPARES, None));

        spare.take(RING).ok().unwrap();
        let due = spare.due().unwrap();
        assert!(due >= start + DELAY);
        spare.work(due - Duration::from_nanos(1), false);
        assert_eq!(spare.ready.len(), SPARES - 1);
        // One that follows at once does not put the work off.
        for _ in 1..SPARES {
            spare.take(RING).ok().unwrap();
        }
        assert_eq!(spare.due(), Some(due));
        // The next connect would find none, so it does not wait.
        spare.work(due - Duration::from_nanos(1), false);
        assert_eq!(spare.ready.len(), 1);
        finish(&mut spare, due);
        assert_eq!((spare.ready.len(), spare.due()), (SPARES, None));
    }

    #[test]
    fn descriptors_that_were_sent_are_closed_when_accepted_or_idle_within_a_moment_or_when_there_are_many()
     {
        let mut spare = Spare::new(RING);
        finish(&mut spare, Instant::now());
        let pair = || stream::pair().unwrap();
        let is_closed =
            |end: &OwnedFd| stream::recv(end, &mut [0; 1]).is_ok_and(|count| count == 0);

        let (kept, sent) = pair();
        hvsock_sys::set_nonblocking(&kept, true).unwrap();
        spare.close_later([sent]);
        let due = spare.due().unwrap();
        spare.work(due - Duration::from_nanos(1), false);
        assert!(!is_closed(&kept));
        finish(&mut spare, due);
        assert!(is_closed(&kept));
        assert_eq!(spare.due(), None);

        let (kept, sent) = pair();
        hvsock_sys::set_nonblocking(&kept, true).unwrap();
        spare.close_later([sent]);
        spare.close_later((1..MAX_CLOSING).map(|_| pair().0));
        assert!(!is_closed(&kept));
        spare.close_later([pair().0]);
        assert!(is_closed(&kept));

        for close in [Spare::close_now, |spare: &mut Spare| {
            spare.work(Instant::now(), true);
        }] {
            let (kept, sent) = pair();
            hvsock_sys::set_nonblocking(&kept, true).unwrap();
            spare.close_later([sent]);
            assert!(spare.has_closing() && !is_closed(&kept));
            close(&mut spare);
            assert!(!spare.has_closing() && is_closed(&kept));
        }
    }

    #[test]
    fn sockets_for_processes_exist_ahead_once_one_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut spare = Spare::new(RING);
        finish(&mut spare, Instant::now());
        assert_eq!(spare.unnamed.ready.len(), 0);
        spare.take_unnamed(dir.path()).unwrap();
        let due = spare.due().unwrap();
        spare.work(due - Duration::from_nanos(1), false);
        assert_eq!(spare.unnamed.ready.len(), 1);
        finish(&mut spare, due);
        let ready = (spare.unnamed.ready.len(), spare.due());
        assert_eq!(ready, (SPARES, None));
        spare.take_unnamed(dir.path()).unwrap();
        assert_eq!(spare.unnamed.ready.len(), SPARES - 1);
        assert!(spare.due().is_some());
        // None is left behind as a file.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn connections_of_processes_with_their_own_sockets_exist_ahead_once_there_was_one() {
        let mut spare = Spare::new(RING);
        finish(&mut spare, Instant::now());
        assert_eq!(spare.attached.len(), 0);
        spare.take(ChosenTransport::Attached).ok().unwrap();
        let due = spare.due().unwrap();
        spare.work(due - Duration::from_nanos(1), false);
        assert_eq!(spare.attached.len(), 0);
        finish(&mut spare, due);
        assert_eq!((spare.attached.len(), spare.due()), (SPARES, None));
        for left in (0..SPARES).rev() {
            spare.take(ChosenTransport::Attached).ok().unwrap();
            assert_eq!(spare.attached.len(), left);
        }
        // None is left, and the next one is made when it is needed.
        spare.take(ChosenTransport::Attached).ok().unwrap();
    }
}
