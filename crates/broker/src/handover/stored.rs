//! A state that outlives its process: the predecessor ends before the successor begins, and the service manager keeps
//! what is between them.
//!
//! A service manager keeps descriptors one by one: each costs it a comparison with all others, and the names of all of
//! them are one variable of the next process, which cannot be longer than 128 KiB. So a broker with many connections
//! gives it few: the document, and *carriers*, sockets in whose queues all other descriptors wait. The kernel
//! keeps the queue of a socket whose other end is closed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hvsock_address::VmId;
use hvsock_sys::sync::lock;
use hvsock_sys::{message, pidfd, seqpacket};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::bundle::{Carrier, Exports, Imports, MAX_DESCRIPTORS};
use super::document::{DOCUMENT_VERSION, Document, StoredLabel};
use super::error::HandoverError;
use super::protocol::MAX_MESSAGE;
use super::serve::{Destination, Figures, Outcome, Source};
use super::{GivenUp, steps};

/// The names of what is stored.
const STATE: &str = "hvsock-state";
const CARRIER: &str = "hvsock-descriptors";

/// How long the broker may take to stand still.
const FREEZE: Duration = Duration::from_secs(10);

/// A broker's state without a process.
#[derive(Debug)]
pub struct StoredState {
    document: OwnedFd,
    carriers: Vec<OwnedFd>,
}

/// The message with which a batch of descriptors waits.
#[derive(Debug, Serialize, Deserialize)]
struct Batch {
    state: String,
    first: u32,
    count: u32,
}

impl StoredState {
    /// The names by which it is stored.
    pub const NAMES: [&str; 2] = [STATE, CARRIER];

    /// What to store, by names.
    pub fn descriptors(&self) -> impl Iterator<Item = (&'static str, BorrowedFd<'_>)> {
        let carriers = self.carriers.iter().map(|one| (CARRIER, one.as_fd()));
        carriers.chain([(STATE, self.document.as_fd())])
    }

    /// The state among descriptors that were stored, if there is one. Those with other names are left.
    ///
    /// # Errors
    ///
    /// If there is a part of one, or parts of two. They are closed.
    pub fn take(descriptors: &mut Vec<(String, OwnedFd)>) -> Result<Option<Self>, HandoverError> {
        let is_part = |(name, _): &mut (String, OwnedFd)| Self::NAMES.contains(&name.as_str());
        let parts: Vec<_> = descriptors.extract_if(.., is_part).collect();
        let (mut documents, mut carriers) = (Vec::new(), Vec::new());
        for (name, descriptor) in parts {
            match name == STATE {
                true => documents.push(descriptor),
                false => carriers.push(descriptor),
            }
        }
        match (documents.pop(), documents.is_empty()) {
            (Some(document), true) => Ok(Some(Self { document, carriers })),
            (None, _) if carriers.is_empty() => Ok(None),
            (None, _) => Err(HandoverError::damaged("the document was not stored")),
            (Some(_), false) => Err(HandoverError::damaged("two documents were stored")),
        }
    }

    /// The document with its descriptors, and for how long it was stored.
    ///
    /// # Errors
    ///
    /// If anything is missing, or of another state, boot or version.
    pub(crate) fn open(self) -> Result<(Document, Imports, Duration), HandoverError> {
        let Self { document, carriers } = self;
        let mut batches = Vec::new();
        for carrier in carriers {
            receive(&carrier, &mut batches)?;
        }
        batches.sort_by_key(|(batch, _)| batch.first);
        let mut descriptors = Vec::new();
        let mut state = None;
        for (batch, mut of_batch) in batches {
            let is_next = usize::try_from(batch.first) == Ok(descriptors.len())
                && usize::try_from(batch.count) == Ok(of_batch.len())
                && descriptors.len() + of_batch.len() <= MAX_DESCRIPTORS as usize;
            if !is_next || *state.get_or_insert_with(|| batch.state.clone()) != batch.state {
                return Err(HandoverError::damaged(
                    "descriptors are missing, or of two states",
                ));
            }
            descriptors.append(&mut of_batch);
        }
        let count = descriptors.len();
        let (document, imports) = Document::read(document, descriptors)?;
        let label = document.stored.as_ref();
        let label = label.ok_or_else(|| HandoverError::damaged("it was not made to be stored"))?;
        if usize::try_from(label.descriptors) != Ok(count)
            || state.is_some_and(|state| state != label.state)
        {
            let what = format!(
                "it has {} descriptors, and {count} were stored",
                label.descriptors
            );
            return Err(HandoverError::damaged(what));
        }
        let boot = pidfd::boot_id().map_err(HandoverError::io("find out this boot's id"))?;
        if label.boot != boot {
            return Err(HandoverError::damaged("it is of another boot"));
        }
        let age = Duration::from_nanos(since_boot().saturating_sub(label.at));
        Ok((document, imports, age))
    }
}

/// Receives all batches of a carrier.
fn receive(
    carrier: &OwnedFd,
    batches: &mut Vec<(Batch, Vec<OwnedFd>)>,
) -> Result<(), HandoverError> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let mut found = 0;
    loop {
        let received = message::recv_batch(carrier, &mut buffer);
        let received = received.map_err(HandoverError::io("receive stored descriptors"))?;
        if received.len == 0 {
            return Ok(());
        }
        found += received.descriptors.len();
        if received.dropped_descriptors || found > MAX_DESCRIPTORS as usize {
            let what = "this process has no room for all descriptors";
            return Err(HandoverError::damaged(what));
        }
        let bytes = buffer.get(..received.len).unwrap_or_default();
        let batch: Batch = serde_json::from_slice(bytes)
            .map_err(|error| HandoverError::damaged(error.to_string()))?;
        batches.push((batch, received.descriptors));
    }
}

/// Where the state of a broker goes that ends before its successor begins.
pub(crate) struct Storing<F> {
    /// The most carriers.
    most: usize,
    /// Stores the state. If that fails, the broker goes on.
    put: F,
}

impl<F> Storing<F>
where
    F: FnOnce(StoredState) -> Result<(), String> + Send,
{
    /// `most` descriptors can be stored.
    pub(crate) fn new(most: usize, put: F) -> Self {
        let most = most.saturating_sub(1);
        Self { most, put }
    }

    fn store(self, source: &mut dyn Source, figures: &mut Figures) -> Result<(), String> {
        let text = |error: HandoverError| error.to_string();
        source.freeze(Instant::now() + FREEZE).map_err(text)?;
        steps::reach(steps::Step::Frozen)?;
        let state = VmId::random().to_string();
        let carriers = Arc::default();
        let mut exports = Exports::new(Box::new(Packing {
            state: state.clone(),
            most: self.most,
            carriers: Arc::clone(&carriers),
            sender: None,
        }));
        let mut document = source
            .export(&mut exports, DOCUMENT_VERSION)
            .map_err(text)?;
        let (descriptors, blobs) = exports.finish().map_err(text)?;
        document.stored = Some(StoredLabel {
            state,
            boot: pidfd::boot_id().map_err(|error| format!("cannot find the boot: {error}"))?,
            at: since_boot(),
            descriptors,
        });
        let document = document.write(&blobs).map_err(text)?;
        let bytes = rustix::fs::fstat(&document).map_or(0, |stat| stat.st_size);
        (figures.descriptors, figures.bytes) = (descriptors, u64::try_from(bytes).unwrap_or(0));
        let carriers = std::mem::take(&mut *lock(&carriers));
        (self.put)(StoredState { document, carriers })
    }
}

impl<F> Destination for Storing<F>
where
    F: FnOnce(StoredState) -> Result<(), String> + Send,
{
    fn hand_over(self: Box<Self>, source: &mut dyn Source) -> (Outcome, Figures) {
        let (start, mut figures) = (Instant::now(), Figures::default());
        let outcome = match self.store(source, &mut figures) {
            Ok(()) => Outcome::Left,
            Err(reason) => Outcome::Resumed(GivenUp::Failed(reason)),
        };
        figures.standstill = start.elapsed();
        (outcome, figures)
    }
}

/// Puts batches of descriptors into carriers.
struct Packing {
    state: String,
    most: usize,
    carriers: Arc<Mutex<Vec<OwnedFd>>>,
    /// The other end of the last carrier, while it has room.
    sender: Option<OwnedFd>,
}

impl Carrier for Packing {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let message = Batch {
            state: self.state.clone(),
            first,
            // At most `message::MAX_BATCH`.
            count: u32::try_from(batch.len()).unwrap_or(u32::MAX),
        };
        // Strings and numbers have a form in JSON.
        let bytes = serde_json::to_vec(&message).unwrap_or_default();
        if let Some(sender) = &self.sender {
            match message::send_batch(sender, &bytes, batch) {
                // It is full.
                Err(error) if Errno::from_io_error(&error) == Some(Errno::AGAIN) => {}
                result => return result.map_err(HandoverError::io("store descriptors")),
            }
        }
        let mut carriers = lock(&self.carriers);
        if carriers.len() >= self.most {
            return Err(HandoverError::TooLarge {
                which: "sockets full of descriptors to store",
                found: carriers.len() as u64 + 1,
                limit: self.most as u64,
            });
        }
        let pair = seqpacket::pair().map_err(HandoverError::io("create a socket"))?;
        let (sender, carrier) = pair;
        carriers.push(carrier);
        let sent = message::send_batch(&sender, &bytes, batch);
        self.sender = Some(sender);
        sent.map_err(HandoverError::io("store descriptors"))
    }
}

/// Nanoseconds since the boot, with those in which the system was suspended.
fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since = Duration::try_from(now).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
