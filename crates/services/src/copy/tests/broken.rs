//! Interrupted copies: nothing incomplete has its final name, and a second copy resumes.

use std::fs;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::whole::{Seen, look};
use super::*;

/// The source: small files before and after a large one, in folders.
fn tree() -> TempDir {
    let from = folder();
    let at = |name: &str| from.path().join("tree").join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/one"), "one").unwrap();
    fs::write(at("a/b/two"), vec![2; 70_000]).unwrap();
    fs::write(at("large"), content(2_500_000)).unwrap();
    std::os::unix::fs::symlink("large", at("link")).unwrap();
    from
}

fn content(length: u32) -> Vec<u8> {
    (0..length)
        .map(|at| (at.wrapping_mul(at) >> 9) as u8)
        .collect()
}

/// Copies the tree over a connection that breaks after each end has written so many bytes.
fn copy_tree(from: &TempDir, to: &TempDir, sender: i64, receiver: i64) -> (Ended, Ended) {
    let (one, other) = UnixStream::pair().unwrap();
    let pair = (
        BreakingStream::after(one, sender),
        BreakingStream::after(other, receiver),
    );
    copy_over(pair, &[&from.path().join("tree")], to.path(), true)
}

fn parts(all: &std::collections::BTreeMap<PathBuf, Seen>) -> Vec<&PathBuf> {
    let part = |path: &&PathBuf| path.to_string_lossy().ends_with(".hvsock.part");
    all.keys().filter(part).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(24)))]
    #[test]
    fn a_copy_that_breaks_at_any_byte_can_be_repeated(
        sender in prop_oneof![0i64..2_600_000, 0i64..100_000, 2_500_000i64..2_580_000],
        receiver in prop_oneof![2 => Just(i64::MAX), 1 => 0i64..120],
    ) {
        let (from, to) = (tree(), folder());
        let original = look(from.path());
        let ((sent, _), (received, _)) = copy_tree(&from, &to, sender, receiver);
        let done = sent.is_ok();
        prop_assert!(!done || received.is_ok(), "done for the sender, but not for the receiver");
        let left = look(to.path());
        for (path, seen) in &left {
            if let Seen::File { content, .. } = seen && !parts(&left).contains(&path) {
                let Some(Seen::File { content: whole, .. }) = original.get(path) else {
                    panic!("{path:?} was never in the source");
                };
                prop_assert!(content == whole, "{path:?} is not complete");
            }
        }
        prop_assert!(parts(&left).len() <= 1, "{:?}", parts(&left));
        let ((again, _), _) = copy_tree(&from, &to, i64::MAX, i64::MAX);
        prop_assert_eq!(again.unwrap().failed, 0);
        prop_assert!(look(to.path()) == original);
    }
}

#[test]
fn a_large_file_is_resumed_where_it_stopped() {
    let (from, to) = (folder(), folder());
    fs::create_dir(from.path().join("tree")).unwrap();
    let large = content(5_000_000);
    fs::write(from.path().join("tree/large"), &large).unwrap();
    let ((sent, _), (received, _)) = copy_tree(&from, &to, 3_000_000, i64::MAX);
    assert!(sent.unwrap_err().is_resumable());
    assert!(received.unwrap_err().is_resumable());

    let ((again, _), (received, _)) = copy_tree(&from, &to, i64::MAX, i64::MAX);
    let (again, received) = (again.unwrap(), received.unwrap());
    assert!(
        (2_000_000..=3_000_000).contains(&again.resumed),
        "{again:?}"
    );
    assert_eq!(again.resumed + again.bytes, 5_000_000);
    assert_eq!(received.resumed, again.resumed);
    assert!(fs::read(to.path().join("tree/large")).unwrap() == large);
}

#[test]
fn a_partial_file_with_other_content_is_not_resumed() {
    let (from, to) = (folder(), folder());
    fs::create_dir(from.path().join("tree")).unwrap();
    let large = content(5_000_000);
    fs::write(from.path().join("tree/large"), &large).unwrap();
    let _ = copy_tree(&from, &to, 3_000_000, i64::MAX);
    let part = to.path().join("tree/.large.hvsock.part");
    let file = fs::File::options().write(true).open(part).unwrap();
    file.write_all_at(b"?", 1_234_567).unwrap();

    let ((again, _), _) = copy_tree(&from, &to, i64::MAX, i64::MAX);
    let again = again.unwrap();
    assert_eq!(
        (again.resumed, again.bytes, again.failed),
        (0, 5_000_000, 0)
    );
    assert!(fs::read(to.path().join("tree/large")).unwrap() == large);
}

#[test]
fn two_copies_to_one_name_do_not_mix() {
    let (from, to) = (folder(), folder());
    fs::write(from.path().join("file"), content(2_000_000)).unwrap();
    // As another copy of this user has it, which nobody else can open.
    let mut options = fs::File::options();
    options.write(true).create_new(true).mode(0o600);
    let held = options.open(to.path().join(".file.hvsock.part")).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let ((sent, record), _) = copy(&[&from.path().join("file")], to.path(), false);
    assert_eq!(sent.unwrap().failed, 1);
    assert!(
        record.notes[0]
            .why
            .contains("another copy to this name is in progress here"),
        "{:?}",
        record.notes
    );
    assert_eq!(held.metadata().unwrap().len(), 0);
    assert!(!to.path().join("file").exists());
}

#[test]
fn thousands_of_failures_do_not_block_and_are_all_counted() {
    const MANY: u64 = 3000;
    let (from, to) = (folder(), folder());
    let name = |number: u64| format!("a rather long name, so that notes are long, {number}");
    for number in 0..MANY {
        fs::write(from.path().join(name(number)), "").unwrap();
        fs::create_dir(to.path().join(name(number))).unwrap();
    }
    let ((sent, record), _) = copy(&[&from.path().join(".")], to.path(), false);
    assert_eq!(sent.unwrap().failed, MANY);
    assert_eq!(record.notes.len(), 128);
}

/// Sends 4 MiB with a write timeout to a peer that reads nothing before it has sent so many keepalives.
fn send_to_stalled(keepalives: u32) -> Result<(), CopyError> {
    const TIMEOUT: Duration = Duration::from_millis(300);
    const SIZE: usize = 4 << 20;
    let (here, there) = BreakingStream::pair();
    here.stream.set_write_timeout(Some(TIMEOUT)).unwrap();
    thread::scope(|scope| {
        let mut sender = MessageStream::new(here);
        let peer = scope.spawn(move || {
            let mut peer = MessageStream::new(there);
            let working = crate::wire::copy::Working::default();
            for _ in 0..keepalives {
                peer.send(&working).and_then(|()| peer.flush()).unwrap();
                thread::sleep(TIMEOUT / 10);
            }
            match keepalives {
                0 => Ok(()),
                _ => peer.receive_bytes(&mut vec![0; SIZE]),
            }
            .map(|()| peer)
        });
        let sent = sender.send_bytes(&vec![7; SIZE]);
        for _ in 0..sent.as_ref().map_or(0, |()| keepalives) {
            sender.receive::<crate::wire::copy::Working>().unwrap();
        }
        drop(peer.join().unwrap());
        sent
    })
}

#[test]
fn a_sender_waits_for_a_receiver_that_waits_itself_and_for_no_other() {
    // Five times as long as the timeout.
    send_to_stalled(50).unwrap();
    assert!(matches!(send_to_stalled(0), Err(CopyError::Broken(_))));
}
