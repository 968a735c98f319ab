use std::fs::File;
use std::io::Read as _;

use serde_json::json;

use super::*;
use crate::handover::FdRange;

/// A state whose descriptors are files of these sizes, in at most `most` carriers.
fn stored(sizes: std::ops::Range<u64>, most: usize) -> Result<StoredState, HandoverError> {
    let carriers = Arc::default();
    let mut exports = Exports::new(Box::new(Packing {
        state: "one".into(),
        most,
        carriers: Arc::clone(&carriers),
        sender: None,
    }));
    for size in sizes {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        exports.fd(&file)?;
    }
    let (descriptors, blobs) = exports.finish()?;
    let document = document(&label("one", descriptors)).write(&blobs)?;
    let carriers = std::mem::take(&mut *lock(&carriers));
    Ok(StoredState { document, carriers })
}

fn label(state: &str, descriptors: u32) -> StoredLabel {
    StoredLabel {
        state: state.into(),
        boot: pidfd::boot_id().unwrap(),
        at: since_boot(),
        descriptors,
    }
}

/// The document of a broker that has nothing, with this label.
fn document(label: &StoredLabel) -> Document {
    let mut document: Document = serde_json::from_str(EMPTY).unwrap();
    document.stored = Some(label.clone());
    document
}

/// Of a broker of this release that has just begun.
const EMPTY: &str = include_str!("stored-empty.json");

fn text<T>(result: Result<T, HandoverError>) -> String {
    result.err().unwrap().to_string()
}

#[test]
fn descriptors_wait_in_their_order_in_sockets_whose_other_ends_are_closed() {
    const COUNT: u64 = 3000;
    let state = stored(0..COUNT, 8).unwrap();
    let names: Vec<_> = state.descriptors().map(|(name, _)| name).collect();
    assert!(names.len() < 10 && names.ends_with(&[STATE]), "{names:?}");
    assert!(names.iter().all(|name| StoredState::NAMES.contains(name)));
    // In any order, and among others.
    let mut passed: Vec<_> = state
        .descriptors()
        .map(|(name, fd)| (name.to_owned(), fd.try_clone_to_owned().unwrap()))
        .collect();
    passed.reverse();
    passed.insert(1, ("other".into(), tempfile::tempfile().unwrap().into()));
    drop(state);
    let state = StoredState::take(&mut passed).unwrap().unwrap();
    assert_eq!(passed.len(), 1);
    assert!(StoredState::take(&mut passed).unwrap().is_none());
    let (_, mut imports, age) = state.open().unwrap();
    assert!(age < Duration::from_secs(3600), "{age:?}");
    let all: FdRange = serde_json::from_value(json!({ "first": 0, "count": COUNT })).unwrap();
    let mut all = imports.fds(all).unwrap();
    for size in 0..COUNT {
        let mut file = File::from(all.take(u32::try_from(size).unwrap()).unwrap());
        assert_eq!(file.read_to_end(&mut Vec::new()).unwrap() as u64, size);
    }
}

#[test]
fn more_descriptors_than_there_is_room_for_are_an_error() {
    let error = text(stored(0..1, 0));
    assert!(error.contains("the limit is 0"), "{error}");
    assert_eq!(stored(0..0, 0).unwrap().carriers.len(), 0);
}

#[test]
fn a_state_of_which_a_part_is_missing_or_of_another_is_damaged() {
    let damaged = |change: fn(&mut StoredState), what: &str| {
        let mut state = stored(0..200, 2).unwrap();
        change(&mut state);
        let error = text(state.open());
        assert!(error.contains(what), "{error}");
    };
    damaged(
        |state| state.carriers.clear(),
        "it has 200 descriptors, and 0 were stored",
    );
    damaged(
        |state| {
            // A batch is lost.
            let batch = message::recv_batch(&state.carriers[0], &mut [0; 1000]);
            assert_eq!(batch.unwrap().descriptors.len(), message::MAX_BATCH);
        },
        "descriptors are missing",
    );
    damaged(
        |state| state.carriers.extend(stored(0..3, 1).unwrap().carriers),
        "descriptors are missing",
    );
    damaged(
        |state| {
            let (own, other) = seqpacket::pair().unwrap();
            message::send(&own, b"nonsense", &[]).unwrap();
            drop(own);
            state.carriers.push(other);
        },
        "the state is damaged",
    );
    damaged(
        |state| state.document = document(&label("two", 200)).write(&[]).unwrap(),
        "it has 200 descriptors",
    );
    damaged(
        |state| {
            let mut label = label("one", 200);
            label.boot = "another".into();
            state.document = document(&label).write(&[]).unwrap();
        },
        "it is of another boot",
    );
    damaged(
        |state| {
            let mut document = document(&label("one", 200));
            document.stored = None;
            state.document = document.write(&[]).unwrap();
        },
        "it was not made to be stored",
    );
    damaged(
        |state| {
            let mut document = document(&label("one", 200));
            document.version = DOCUMENT_VERSION + 1;
            state.document = document.write(&[]).unwrap();
        },
        "this release reads version",
    );
}

#[test]
fn a_part_of_a_state_or_two_are_an_error() {
    let fd = || OwnedFd::from(tempfile::tempfile().unwrap());
    for names in [&[CARRIER][..], &[STATE, STATE], &[CARRIER, STATE, STATE]] {
        let mut parts = names
            .iter()
            .map(|name| ((*name).to_owned(), fd()))
            .collect();
        assert!(StoredState::take(&mut parts).is_err(), "{names:?}");
        assert!(parts.is_empty());
    }
    assert!(StoredState::take(&mut Vec::new()).unwrap().is_none());
}
