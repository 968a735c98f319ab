//! What a document refers to: descriptors, and values that are too long for JSON.
//!
//! [`Exports`] takes them on the side of the predecessor. Descriptors are duplicated and leave in batches, so
//! at most [`MAX_BATCH`] duplicates exist at once, however many objects a broker has. [`Imports`] has them on the
//! side of the successor, each for one taker. The indexes between are numbers in JSON.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hvsock_sys::message::MAX_BATCH;
use serde::{Deserialize, Serialize};

use super::error::HandoverError;
use super::snapshot::{Descriptors, SnapshotError};

/// The most descriptors of one broker: a process cannot have more by default (`fs.nr_open`).
pub(crate) const MAX_DESCRIPTORS: u32 = 1 << 20;

/// The most bytes of all blobs together, and of the whole document.
pub(crate) const MAX_BYTES: u64 = 256 << 20;

/// The most blobs.
pub(crate) const MAX_BLOBS: u32 = 1 << 20;

/// The number of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FdIndex(pub(crate) u32);

/// The numbers of descriptors that belong to one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdRange {
    first: u32,
    count: u32,
}

impl FdRange {
    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }
}

/// The number of a value that is kept beside the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Blob(u32);

/// Where batches of descriptors go.
pub(crate) trait Carrier: Send {
    /// Passes on a batch, at most [`MAX_BATCH`]. `first` is the number of the first one.
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError>;
}

/// Takes the descriptors and blobs of a state that is handed over.
pub struct Exports {
    carrier: Box<dyn Carrier>,
    /// The number of the first one in `batch`.
    first: u32,
    batch: Vec<OwnedFd>,
    blobs: Vec<Vec<u8>>,
    blob_bytes: u64,
    /// The objects of two tables that are exported already.
    shared: HashSet<(&'static str, u64)>,
}

impl std::fmt::Debug for Exports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exports")
            .field("descriptors", &self.count())
            .field("blobs", &self.blobs.len())
            .finish_non_exhaustive()
    }
}

impl Exports {
    pub(crate) fn new(carrier: Box<dyn Carrier>) -> Self {
        Self {
            carrier,
            first: 0,
            batch: Vec::new(),
            blobs: Vec::new(),
            blob_bytes: 0,
            shared: HashSet::new(),
        }
    }

    /// Whether an object that belongs to two tables is exported here: for the first of them only. It has a kind, and a
    /// number among those of its kind.
    pub fn is_first(&mut self, kind: &'static str, number: u64) -> bool {
        self.shared.insert((kind, number))
    }

    /// Takes a duplicate of a descriptor.
    ///
    /// # Errors
    ///
    /// If this process has no room for a duplicate, the successor does not receive, or there are too many.
    pub fn fd(&mut self, descriptor: impl AsFd) -> Result<FdIndex, HandoverError> {
        let index = self.count();
        if index >= MAX_DESCRIPTORS {
            return Err(HandoverError::TooLarge {
                which: "descriptors",
                found: u64::from(index) + 1,
                limit: MAX_DESCRIPTORS.into(),
            });
        }
        if self.batch.len() == MAX_BATCH {
            self.flush()?;
        }
        let descriptor = descriptor.as_fd();
        let duplicate = match descriptor.try_clone_to_owned() {
            // Those of the batch may be the ones that there is no room for.
            Err(error) if is_out_of_descriptors(&error) && !self.batch.is_empty() => {
                self.flush()?;
                descriptor.try_clone_to_owned()
            }
            result => result,
        };
        let duplicate = duplicate.map_err(HandoverError::io("duplicate a descriptor"))?;
        self.batch.push(duplicate);
        Ok(FdIndex(index))
    }

    /// Takes duplicates of the descriptors of a table.
    ///
    /// # Errors
    ///
    /// As [`fd`](Self::fd).
    pub fn fds<D: AsFd>(
        &mut self,
        descriptors: impl IntoIterator<Item = D>,
    ) -> Result<FdRange, HandoverError> {
        let first = self.count();
        for descriptor in descriptors {
            self.fd(descriptor)?;
        }
        let count = self.count() - first;
        Ok(FdRange { first, count })
    }

    /// Takes a copy of bytes that are too many for JSON, as those of a buffer.
    ///
    /// # Errors
    ///
    /// [`HandoverError::TooLarge`] if the blobs of a state are too many or too long.
    pub fn blob(&mut self, bytes: &[u8]) -> Result<Blob, HandoverError> {
        let (index, total) = (
            self.blobs.len() as u64,
            self.blob_bytes + bytes.len() as u64,
        );
        check("buffers", index + 1, MAX_BLOBS.into())?;
        check("bytes in buffers", total, MAX_BYTES)?;
        self.blobs.push(bytes.to_vec());
        self.blob_bytes = total;
        // At most the limit, as just checked.
        Ok(Blob(u32::try_from(index).unwrap_or(u32::MAX)))
    }

    /// How many descriptors there are so far.
    pub(crate) fn count(&self) -> u32 {
        // At most `MAX_DESCRIPTORS`.
        self.first + u32::try_from(self.batch.len()).unwrap_or(u32::MAX)
    }

    /// Passes on the rest. Returns the blobs.
    pub(crate) fn finish(mut self) -> Result<(u32, Vec<Vec<u8>>), HandoverError> {
        self.flush()?;
        Ok((self.first, self.blobs))
    }

    fn flush(&mut self) -> Result<(), HandoverError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch: Vec<_> = self.batch.iter().map(AsFd::as_fd).collect();
        self.carrier.carry(self.first, &batch)?;
        self.first = self.count();
        self.batch.clear();
        Ok(())
    }
}

/// The descriptors and blobs of a state that is taken over.
pub struct Imports {
    descriptors: Vec<Option<OwnedFd>>,
    blobs: Vec<Option<Vec<u8>>>,
    /// Objects that belong to two tables, of which one is restored.
    shared: HashMap<(TypeId, u64), Box<dyn Any>>,
}

impl std::fmt::Debug for Imports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Imports")
            .field("descriptors", &self.untaken())
            .field("blobs", &self.blobs.len())
            .finish_non_exhaustive()
    }
}

impl Imports {
    pub(crate) fn new(descriptors: Vec<OwnedFd>, blobs: Vec<Vec<u8>>) -> Self {
        Self {
            descriptors: descriptors.into_iter().map(Some).collect(),
            blobs: blobs.into_iter().map(Some).collect(),
            shared: HashMap::new(),
        }
    }

    /// Keeps the part of the second table of an object that belongs to two.
    pub fn keep<T: Any>(&mut self, number: u64, part: T) {
        self.shared
            .insert((TypeId::of::<T>(), number), Box::new(part));
    }

    /// The part of an object that the first table has left for the second one.
    pub fn kept<T: Any>(&mut self, number: u64) -> Option<T> {
        let part = self.shared.remove(&(TypeId::of::<T>(), number))?;
        part.downcast().ok().map(|part| *part)
    }

    /// Takes a descriptor, close-on-exec.
    ///
    /// # Errors
    ///
    /// If it is missing, or another object has taken it.
    pub fn fd(&mut self, index: FdIndex) -> Result<OwnedFd, HandoverError> {
        let slot = at(&mut self.descriptors, index.0);
        slot.and_then(Option::take).ok_or_else(missing_descriptor)
    }

    /// Takes the descriptors of a table, by their numbers in it.
    ///
    /// # Errors
    ///
    /// If one is missing, or another object has taken it. Then none is taken.
    pub fn fds(&mut self, range: FdRange) -> Result<Descriptors<OwnedFd>, HandoverError> {
        let first = usize::try_from(range.first).ok();
        let count = usize::try_from(range.count).ok();
        let slots = first.zip(count).and_then(|(first, count)| {
            let end = first.checked_add(count)?;
            self.descriptors.get_mut(first..end)
        });
        let slots = slots.ok_or_else(missing_descriptor)?;
        if slots.iter().any(Option::is_none) {
            return Err(missing_descriptor());
        }
        Ok(Descriptors::new(slots.iter_mut().filter_map(Option::take)))
    }

    /// Takes the bytes of a blob.
    ///
    /// # Errors
    ///
    /// If it is missing, or another object has taken it.
    pub fn blob(&mut self, blob: Blob) -> Result<Vec<u8>, HandoverError> {
        let slot = at(&mut self.blobs, blob.0);
        slot.and_then(Option::take).ok_or_else(|| {
            HandoverError::inconsistent("a buffer is missing or belongs to two objects")
        })
    }

    /// How many descriptors nobody has taken: those of fields that this release does not know.
    pub(crate) fn untaken(&self) -> usize {
        self.descriptors.iter().flatten().count()
    }
}

fn at<T>(list: &mut [Option<T>], index: u32) -> Option<&mut Option<T>> {
    list.get_mut(usize::try_from(index).ok()?)
}

fn missing_descriptor() -> HandoverError {
    SnapshotError::Inconsistent {
        what: "a descriptor is missing or belongs to two objects",
    }
    .into()
}

fn check(which: &'static str, found: u64, limit: u64) -> Result<(), HandoverError> {
    match found <= limit {
        true => Ok(()),
        false => Err(HandoverError::TooLarge {
            which,
            found,
            limit,
        }),
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    matches!(
        errno,
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE)
    )
}
