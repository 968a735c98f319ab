//! A state through a real socket, and damaged ones.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use hvsock_sys::message::{self, MAX_BATCH};
use hvsock_sys::{seqpacket, shared_memory};
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags};

use super::bundle::{Carrier, Exports, FdIndex, FdRange, Imports, MAX_BYTES};
use super::document::{read, write};
use super::error::HandoverError;

/// Sends batches over a socket whose peer reads at the same time.
struct Socket(OwnedFd);

impl Carrier for Socket {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        loop {
            match message::send_batch(&self.0, &first.to_le_bytes(), batch) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
                    rustix::event::poll(&mut fds, None).unwrap();
                }
                result => return result.map_err(HandoverError::io("send a batch")),
            }
        }
    }
}

/// Keeps the sizes of batches.
#[derive(Clone, Default)]
struct Sizes(Arc<Mutex<Vec<usize>>>);

impl Carrier for Sizes {
    fn carry(&mut self, first: u32, batch: &[BorrowedFd<'_>]) -> Result<(), HandoverError> {
        let mut sizes = self.0.lock().unwrap();
        assert_eq!(first as usize, sizes.iter().sum::<usize>());
        sizes.push(batch.len());
        Ok(())
    }
}

fn memory(len: u64) -> OwnedFd {
    shared_memory::create(len).unwrap()
}

fn len(memory: impl AsFd) -> u64 {
    rustix::fs::fstat(memory).unwrap().st_size as u64
}

/// A set of descriptors without a carrier.
fn imports(count: u64) -> Imports {
    Imports::new((1..=count).map(memory).collect(), Vec::new())
}

fn index(number: u32) -> FdIndex {
    serde_json::from_value(number.into()).unwrap()
}

fn range(first: u32, count: u32) -> FdRange {
    serde_json::from_value(serde_json::json!({ "first": first, "count": count })).unwrap()
}

#[test]
fn more_descriptors_than_one_message_takes_arrive_in_their_order() {
    const COUNT: u64 = 700;
    let (own, other) = seqpacket::pair().unwrap();
    let receiver = std::thread::spawn(move || {
        let mut descriptors = Vec::new();
        while (descriptors.len() as u64) < COUNT {
            match message::recv_batch(&other, &mut [0; 16]) {
                Ok(batch) => {
                    assert!(batch.len == 4 && !batch.dropped_descriptors);
                    descriptors.extend(batch.descriptors);
                }
                Err(_) => {
                    let mut fds = [PollFd::new(&other, PollFlags::IN)];
                    rustix::event::poll(&mut fds, None).unwrap();
                }
            }
        }
        descriptors
    });
    let mut exports = Exports::new(Box::new(Socket(own)));
    let first = exports.fd(memory(1)).unwrap();
    let table = exports.fds((2..COUNT).map(memory)).unwrap();
    let last = exports.fd(memory(COUNT)).unwrap();
    let blobs = [exports.blob(b"one").unwrap(), exports.blob(b"").unwrap()];
    let (count, bytes) = exports.finish().unwrap();
    assert_eq!(u64::from(count), COUNT);
    let mut imports = Imports::new(receiver.join().unwrap(), bytes);
    assert_eq!(imports.untaken() as u64, COUNT);
    assert_eq!(len(imports.fd(last).unwrap()), COUNT);
    assert_eq!(len(imports.fd(first).unwrap()), 1);
    let mut table = imports.fds(table).unwrap();
    assert_eq!(table.len() as u64, COUNT - 2);
    for number in (0..table.len() as u32).rev() {
        assert_eq!(len(table.take(number).unwrap()), u64::from(number) + 2);
    }
    assert_eq!(imports.untaken(), 0);
    assert_eq!(imports.blob(blobs[1]).unwrap(), b"");
    assert_eq!(imports.blob(blobs[0]).unwrap(), b"one");
    assert!(imports.blob(blobs[0]).is_err());
}

#[test]
fn at_most_one_batch_of_duplicates_exists_at_a_time() {
    let sizes = Sizes::default();
    let mut exports = Exports::new(Box::new(sizes.clone()));
    let one = memory(1);
    for number in 0..MAX_BATCH as u32 * 3 + 5 {
        assert_eq!(exports.fd(&one).unwrap(), index(number));
        let sent: usize = sizes.0.lock().unwrap().iter().sum();
        assert!(number as usize + 1 - sent <= MAX_BATCH);
    }
    exports.finish().unwrap();
    assert_eq!(
        *sizes.0.lock().unwrap(),
        [MAX_BATCH, MAX_BATCH, MAX_BATCH, 5]
    );
}

#[test]
fn a_descriptor_that_nobody_takes_is_closed() {
    let (a, b) = hvsock_sys::stream::pair().unwrap();
    let imports = Imports::new(vec![a], Vec::new());
    assert_eq!(imports.untaken(), 1);
    drop(imports);
    assert_eq!(hvsock_sys::stream::recv(&b, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn each_descriptor_has_one_taker() {
    let mut imports = imports(4);
    assert_eq!(len(imports.fd(index(1)).unwrap()), 2);
    for missing in [index(1), index(4), index(u32::MAX)] {
        assert!(imports.fd(missing).is_err(), "{missing:?}");
    }
    for missing in [
        range(0, 2),
        range(1, 1),
        range(3, 2),
        range(5, 0),
        range(2, u32::MAX),
        range(u32::MAX, 1),
    ] {
        assert!(imports.fds(missing).is_err(), "{missing:?}");
    }
    // A range that fails takes nothing.
    assert_eq!(imports.untaken(), 3);
    assert_eq!(imports.fds(range(4, 0)).unwrap().len(), 0);
    assert_eq!(imports.fds(range(2, 2)).unwrap().len(), 2);
    assert_eq!(imports.untaken(), 1);
}

#[test]
fn a_state_of_more_than_256_mib_is_neither_written_nor_read() {
    let mut exports = Exports::new(Box::<Sizes>::default());
    let half = vec![0; MAX_BYTES as usize / 2];
    exports.blob(&half).unwrap();
    exports.blob(&half).unwrap();
    let error = exports.blob(b"x").unwrap_err();
    assert!(matches!(error, HandoverError::TooLarge { .. }), "{error}");
    let error = write(b"{}", &[half.clone(), half]).unwrap_err();
    assert!(matches!(error, HandoverError::TooLarge { .. }), "{error}");
    // Nothing is read of a longer one, however long it is. Its pages do not exist.
    let error = read(memory(MAX_BYTES + 1)).unwrap_err();
    assert!(error.to_string().contains("not sealed"), "{error}");
}

#[test]
fn memory_that_the_sender_could_still_change_is_refused() {
    let json = b"{}";
    let sealed = write(json, &[]).unwrap();
    let bytes = {
        let copy = sealed.try_clone().unwrap();
        let value = hvsock_sys::sealed::Sealed::open(copy, 100).unwrap();
        value.read(0, value.len()).unwrap()
    };
    assert_eq!(read(sealed).unwrap(), (json.to_vec(), vec![]));
    let open = memory(bytes.len() as u64);
    rustix::io::pwrite(&open, &bytes, 0).unwrap();
    let error = read(open).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the state: the memory is not sealed against a change"
    );
}

proptest! {
    #[test]
    fn a_document_comes_out_as_it_went_in(
        json in proptest::collection::vec(any::<u8>(), 0..300),
        blobs in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..5),
    ) {
        let read = read(write(&json, &blobs).unwrap()).unwrap();
        prop_assert_eq!(read, (json, blobs));
    }

    #[test]
    fn a_damaged_document_is_an_error_or_another_document(
        mut bytes in Just({
            let memory = write(b"{\"version\":1}", &[b"abc".to_vec(), vec![]]).unwrap();
            let value = hvsock_sys::sealed::Sealed::open(memory, 1000).unwrap();
            value.read(0, value.len()).unwrap()
        }),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        more in 0..20_usize,
    ) {
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(std::iter::repeat_n(0, more));
        let sealed = hvsock_sys::sealed::create(&[&bytes]).unwrap();
        if let Ok((json, blobs)) = read(sealed) {
            let total = json.len() + blobs.iter().map(Vec::len).sum::<usize>();
            prop_assert!(total < bytes.len());
        }
    }
}

#[test]
fn an_error_names_the_object_and_the_cause_once() {
    let error = HandoverError::inconsistent("a descriptor is missing");
    let error = error.of("the ring of connection 7").of("the VM \"web\"");
    assert_eq!(
        error.to_string(),
        "the VM \"web\": the ring of connection 7: the snapshot is inconsistent: a descriptor is missing"
    );
}
