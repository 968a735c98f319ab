//! A hostile peer achieves nothing but the end of the copy.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use hvsock_testkit::require;
use proptest::prelude::*;
use prost::bytes::Bytes;
use tempfile::TempDir;

use super::whole::{Seen, look};
use super::*;
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len() as u32;
    [&length.to_le_bytes()[..], &message.encode_to_vec()].concat()
}

pub(super) fn from_sender(what: FromSender) -> Vec<u8> {
    framed(&wire::SenderMessage { what: Some(what) })
}

pub(super) fn from_receiver(what: FromReceiver) -> Vec<u8> {
    framed(&wire::ReceiverMessage { what: Some(what) })
}

pub(super) fn enter(name: &[u8]) -> Vec<u8> {
    let (name, meta) = (
        Bytes::copy_from_slice(name),
        Some(wire::Meta {
            mode: 0o755,
            ..wire::Meta::default()
        }),
    );
    from_sender(FromSender::Enter(wire::Enter {
        name,
        meta,
        identity: 0,
    }))
}

pub(super) fn leave() -> Vec<u8> {
    from_sender(FromSender::Leave(wire::Leave {}))
}

pub(super) fn file(name: &[u8], size: u64) -> Vec<u8> {
    let (name, meta) = (
        Bytes::copy_from_slice(name),
        Some(wire::Meta {
            mode: 0o6755,
            ..wire::Meta::default()
        }),
    );
    let ask = false;
    from_sender(FromSender::File(wire::File {
        name,
        meta,
        size,
        ask,
        identity: 0,
    }))
}

pub(super) fn chunk(offset: u64, length: u32, bytes: &[u8]) -> Vec<u8> {
    [
        from_sender(FromSender::Chunk(wire::Chunk { offset, length })),
        bytes.to_vec(),
    ]
    .concat()
}

pub(super) fn file_end(content: &[u8]) -> Vec<u8> {
    let mut sum = sum::Sum::new();
    sum.data(content);
    let checksum = sum.get().to_vec().into();
    let (size, broken) = (content.len() as u64, false);
    from_sender(FromSender::FileEnd(wire::FileEnd {
        size,
        checksum,
        broken,
    }))
}

pub(super) fn whole_file(name: &[u8], content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    [
        file(name, content.len() as u64),
        chunk(0, length, content),
        file_end(content),
    ]
    .concat()
}

pub(super) fn link(name: &[u8], target: &[u8]) -> Vec<u8> {
    let (name, target) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(target));
    let meta = None;
    from_sender(FromSender::Symlink(wire::Symlink { name, target, meta }))
}

pub(super) fn end() -> Vec<u8> {
    from_sender(FromSender::End(wire::End::default()))
}

/// The honest end after these messages.
pub(super) fn end_of(sent: &[u8]) -> Vec<u8> {
    let (mut tally, mut name, mut rest) = (tally::Tally::new(), Bytes::new(), sent);
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let (message, after) = after.split_at(u32::from_le_bytes(*length) as usize);
        rest = after;
        let message = <wire::SenderMessage as prost::Message>::decode(message).unwrap();
        match message.what.unwrap() {
            FromSender::Enter(enter) => tally.enter(&enter.name),
            FromSender::Leave(_) => tally.leave(),
            FromSender::File(file) => name = file.name,
            FromSender::Chunk(chunk) => rest = &rest[chunk.length as usize..],
            FromSender::FileEnd(end) if !end.broken => {
                tally.file(&name, end.checksum[..].try_into().unwrap());
            }
            FromSender::Symlink(link) => tally.symlink(&link.name, &link.target),
            _ => {}
        }
    }
    let (failed, sent) = (0, Some(tally.to_wire()));
    from_sender(FromSender::End(wire::End { failed, sent }))
}

/// These messages with an honest end.
pub(super) fn ended(sent: &[Vec<u8>]) -> Vec<u8> {
    let sent = sent.concat();
    let end = end_of(&sent);
    [sent, end].concat()
}

/// A destination, next to a folder that must stay untouched.
pub(super) struct Sandbox {
    pub(super) outer: TempDir,
}

impl Sandbox {
    pub(super) fn new() -> Self {
        let outer = folder();
        fs::create_dir(outer.path().join("to")).unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        fs::write(outer.path().join("outside/file"), "untouched").unwrap();
        Self { outer }
    }

    pub(super) fn to(&self) -> std::path::PathBuf {
        self.outer.path().join("to")
    }

    /// Receives these messages from a sender and nothing more, and checks that nothing outside changed.
    pub(super) fn receive(&self, sent: &[&[u8]], trust: Trust) -> Ended {
        self.receive_with(sent, |receiver| receiver.archive(Some(trust)))
    }

    /// As [`Sandbox::receive`], with any options.
    pub(super) fn receive_with(
        &self,
        sent: &[&[u8]],
        options: impl FnOnce(Receiver<'_, BreakingStream>) -> Receiver<'_, BreakingStream>,
    ) -> Ended {
        let before = fs::metadata(self.outer.path()).unwrap().mtime_nsec();
        let sent = sent.concat();
        let (here, there) = BreakingStream::pair();
        let ended = thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = here.stream;
                // The receiver may close earlier.
                let _ = stream.write_all(&sent);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let (mut messages, mut record) = (MessageStream::new(there), Record::default());
            let sandbox = Destination::open(&self.to(), true).unwrap();
            let receiver = Receiver::new(&mut messages, &mut record, sandbox);
            let ended = options(receiver).run();
            drop(messages);
            (ended, record)
        });
        let outside = self.outer.path().join("outside");
        let names: Vec<_> = fs::read_dir(&outside).unwrap().collect();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(fs::read(outside.join("file")).unwrap(), b"untouched");
        assert_eq!(fs::read_dir(self.outer.path()).unwrap().count(), 2);
        assert_eq!(
            fs::metadata(self.outer.path()).unwrap().mtime_nsec(),
            before
        );
        ended
    }
}

pub(super) fn is_violation(ended: &Ended) -> bool {
    matches!(ended.0, Err(CopyError::Violation(_)))
}

#[test]
fn names_other_than_one_path_component_abort_the_copy() {
    for name in [
        &b".."[..],
        b".",
        b"../outside/file",
        b"/etc/passwd",
        b"a/b",
        b"a\0",
        b"../outside",
    ] {
        for sent in [enter(name), whole_file(name, b"!"), link(name, b"x")] {
            let sandbox = Sandbox::new();
            assert!(
                is_violation(&sandbox.receive(&[&sent, &end()], Trust::Full)),
                "{name:?}"
            );
            let sandbox = Sandbox::new();
            let ended = sandbox.receive(&[&enter(b"in"), &sent, &leave(), &end()], Trust::Full);
            assert!(is_violation(&ended), "{name:?} in a folder");
        }
    }
    let sandbox = Sandbox::new();
    let ended = sandbox.receive(
        &[&enter(b"in"), &enter(b""), &leave(), &leave(), &end()],
        Trust::Full,
    );
    assert!(
        is_violation(&ended),
        "an empty name is valid at the top level only"
    );
}

#[test]
fn symbolic_links_are_not_followed() {
    // A link sent before, and a link that existed before.
    for target in ["../outside", "../outside/file", "."] {
        let sandbox = Sandbox::new();
        symlink(target, sandbox.to().join("there")).unwrap();
        let sent = [
            link(b"sent", target.as_bytes()),
            enter(b"sent"),
            whole_file(b"file", b"!"),
            link(b"more", b"x"),
            enter(b"in"),
            leave(),
            leave(),
            enter(b"there"),
            whole_file(b"file", b"!"),
            leave(),
            whole_file(b"after", b"fine"),
            end(),
        ];
        let (ended, record) = sandbox.receive(&[&sent.concat()], Trust::Full);
        assert_eq!(
            ended.unwrap().failed,
            2,
            "{record:?}",
            record = record.notes
        );
        let all = look(&sandbox.to());
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(
            record.notes[0].why.contains("another entry of this copy")
                && record.notes[1].why.contains("link"),
            "{:?}",
            record.notes
        );
    }
}

#[test]
fn a_link_is_not_written_through_for_a_guest() {
    let sandbox = Sandbox::new();
    symlink("../outside/file", sandbox.to().join("a")).unwrap();
    let sent = ended(&[whole_file(b"a", b"new")]);
    let (ended, record) = sandbox.receive(&[&sent], Trust::NoSetId);
    assert_eq!(ended.unwrap().failed, 1);
    let why = &record.notes[0].why;
    assert!(why.contains("a symbolic link is in the way"), "{why}");
    let target = fs::read_link(sandbox.to().join("a")).unwrap();
    assert_eq!(target.as_os_str(), "../outside/file");
}

#[test]
fn a_link_at_the_temporary_name_is_not_written_through() {
    let large = vec![7; 1_500_000];
    for size in [3, large.len()] {
        for hard in [false, true] {
            let sandbox = Sandbox::new();
            let (outside, part) = (
                sandbox.outer.path().join("outside/file"),
                sandbox.to().join(".a.hvsock.part"),
            );
            match hard {
                true => fs::hard_link(&outside, &part).unwrap(),
                false => symlink(&outside, &part).unwrap(),
            }
            let from = folder();
            fs::write(from.path().join("a"), &large[..size]).unwrap();
            let ((sent, _), _) = copy(&[&from.path().join("a")], &sandbox.to(), false);
            assert_eq!(sent.unwrap().failed, 0);
            assert!(fs::read(sandbox.to().join("a")).unwrap() == large[..size]);
            assert_eq!(fs::read(outside).unwrap(), b"untouched");
            // Only content that can be resumed has this temporary name.
            assert_eq!(part.exists(), size == 3);
        }
    }
}

#[test]
fn invalid_sizes_abort_the_copy_and_leave_nothing() {
    let good = b"0123456789";
    let violations = [
        [
            file(b"a", 10),
            chunk(0, 5, &good[..5]),
            chunk(4, 5, &good[5..]),
            file_end(good),
        ]
        .concat(),
        [file(b"a", 10), chunk(0, 0, b""), file_end(good)].concat(),
        [
            file(b"a", 1 << 30),
            chunk(0, (1 << 20) + 1, &vec![0; (1 << 20) + 1]),
        ]
        .concat(),
        [file(b"a", u64::MAX), file_end(b"")].concat(),
        [file(b"a", i64::MAX as u64), chunk(u64::MAX - 3, 10, good)].concat(),
        [file(b"a", 10), chunk(0, 10, good), file_end(&good[..9])].concat(),
        [file(b"a", 10), chunk(i64::MAX as u64 - 3, 10, good)].concat(),
        [file(b"a", 10), file(b"b", 10)].concat(),
        [file(b"a", 10), leave()].concat(),
        chunk(0, 10, good),
        file_end(good),
        leave(),
        [enter(b"a"), end()].concat(),
        framed(&wire::SenderMessage { what: None }),
        vec![255, 255, 255, 255],
        [&5u32.to_le_bytes()[..], b"?????"].concat(),
    ];
    for (at, violation) in violations.iter().enumerate() {
        let sandbox = Sandbox::new();
        let ended = sandbox.receive(&[violation, &end()], Trust::Full);
        assert!(is_violation(&ended), "{at}: {:?}", ended.0);
        let files = look(&sandbox.to()).into_values();
        assert_eq!(
            files
                .filter(|seen| matches!(seen, Seen::File { .. }))
                .count(),
            0,
            "{at}"
        );
    }
}

#[test]
fn a_wrong_checksum_fails_that_file_and_no_other() {
    let sandbox = Sandbox::new();
    let sent = [
        file(b"a", 3),
        chunk(0, 3, b"abc"),
        file_end(b"abd"),
        whole_file(b"b", b"abc"),
        end(),
    ]
    .concat();
    let (ended, record) = sandbox.receive(&[&sent], Trust::Full);
    assert_eq!(ended.unwrap().failed, 1);
    assert!(
        record.notes[0].why.contains("checksum"),
        "{:?}",
        record.notes
    );
    let all = look(&sandbox.to());
    assert_eq!(
        all.keys()
            .map(|path| path.to_str().unwrap())
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[test]
fn an_entry_that_was_not_requested_aborts_the_copy() {
    for sent in [
        whole_file(b"other", b"!"),
        enter(b""),
        link(b"other", b"x"),
        // Of another kind than was asked for.
        enter(b"this"),
        link(b"this", b"/etc/shadow"),
    ] {
        let sandbox = Sandbox::new();
        let (here, there) = BreakingStream::pair();
        let mut stream = here.stream;
        stream.write_all(&sent).unwrap();
        let (mut messages, mut record) = (MessageStream::new(there), Record::default());
        let to = Destination::open(&sandbox.to(), true).unwrap();
        let receiver = Receiver::new(&mut messages, &mut record, to)
            .requested(&[Source::new("/etc/this")], false);
        assert!(matches!(receiver.run(), Err(CopyError::Violation(_))));
        assert_eq!(look(&sandbox.to()).len(), 0);
    }
}

#[test]
fn folders_nested_too_deeply_abort_the_copy() {
    let sandbox = Sandbox::new();
    let sent: Vec<_> = (0..=DEPTH).map(|_| enter(b"d")).collect();
    let ended = sandbox.receive(&[&sent.concat()], Trust::Full);
    assert!(is_violation(&ended));
}

#[test]
fn a_guest_cannot_create_setuid_programs_on_its_host() {
    let copied_mode = |trust| {
        let sandbox = Sandbox::new();
        let sent = ended(&[whole_file(b"a", b"#!")]);
        sandbox.receive(&[&sent], trust).0.unwrap();
        let meta = fs::metadata(sandbox.to().join("a")).unwrap();
        meta.permissions().mode()
    };
    assert_eq!(copied_mode(Trust::NoSetId), 0o100_755);
    // To a guest the bits are kept, if the owner is kept as well, which takes root.
    let Some(()) = require::root() else { return };
    assert_eq!(copied_mode(Trust::Full), 0o106_755);
}

/// Any sender message, valid or not. The checksums are always wrong.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let name = || {
        prop_oneof![
            5 => "[a-c]".prop_map(String::into_bytes),
            1 => prop::sample::select(vec![&b".."[..], b"", b"a/b", b".a.hvsock.part"]).prop_map(<[u8]>::to_vec),
        ]
    };
    let target = || prop::sample::select(vec!["../outside", "..", "a", "/", "../outside/file"]);
    let wrong = from_sender(FromSender::FileEnd(wire::FileEnd {
        size: 4,
        checksum: vec![1; 16].into(),
        broken: false,
    }));
    prop_oneof![
        3 => name().prop_map(|name| enter(&name)),
        3 => Just(leave()),
        3 => (name(), 0u64..10).prop_map(|(name, size)| file(&name, size)),
        3 => (name(), any::<[u8; 4]>(), Just(wrong)).prop_map(|(name, bytes, wrong)| [file(&name, 4), chunk(0, 4, &bytes), wrong].concat()),
        2 => (name(), target()).prop_map(|(name, target)| link(&name, target.as_bytes())),
        1 => (0u64..12, 0u32..12, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(offset, length, bytes)| chunk(offset, length, &bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(from_sender(FromSender::ResumeFrom(wire::ResumeFrom { offset: 9 }))),
        1 => Just(end()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(400)))]
    #[test]
    fn any_messages_stay_inside_and_create_no_file(sent in prop::collection::vec(anything(), 0..25)) {
        let sandbox = Sandbox::new();
        let _ = sandbox.receive(&[&sent.concat()], Trust::Full);
        let all = look(&sandbox.to());
        let files = all.values().filter(|seen| matches!(seen, Seen::File { .. }));
        prop_assert_eq!(files.count(), 0, "{:?}", all);
    }
}

/// Sends a file of 2 MiB to a receiver that sends these messages regardless of what it receives,
/// and `Done` at the end.
fn send_to(replies: &[u8]) -> Ended {
    let from = folder();
    fs::write(from.path().join("a"), vec![3; 2 << 20]).unwrap();
    let replies = [&from_receiver(FromReceiver::Ready(wire::Ready {})), replies].concat();
    let (here, there) = BreakingStream::pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut messages = MessageStream::new(there);
            // The sender may close earlier.
            let _ = messages
                .send_bytes(&replies)
                .and_then(|()| messages.flush());
            while let Ok(sent) = messages.receive::<wire::SenderMessage>() {
                match sent.what {
                    Some(FromSender::Chunk(chunk)) => {
                        let _ = messages.receive_bytes(&mut vec![0; chunk.length as usize]);
                    }
                    Some(FromSender::End(end)) => {
                        let (failed, stored) = (0, end.sent);
                        let what = Some(FromReceiver::Done(wire::Done { failed, stored }));
                        let _ = messages.send(&wire::ReceiverMessage { what });
                        let _ = messages.flush();
                    }
                    _ => {}
                }
            }
        });
        let (mut messages, mut record) = (MessageStream::new(here), Record::default());
        let sender = Sender::new(&mut messages, &mut record, true);
        let ended = sender.run(&[Source::new(from.path().join("a"))], false);
        drop(messages);
        (ended, record)
    })
}

fn answer(skip: bool, length: u64) -> Vec<u8> {
    let checksum = vec![1; 16].into();
    from_receiver(FromReceiver::Answer(wire::Answer {
        skip,
        length,
        checksum,
    }))
}

#[test]
fn a_hostile_receiver_aborts_its_own_copy() {
    let done = || from_receiver(FromReceiver::Done(wire::Done::default()));
    let note = || {
        from_receiver(FromReceiver::Note(wire::Note {
            path: vec![b'x'; 5000].into(),
            why: "y".repeat(5000),
            skipped: false,
        }))
    };
    for (at, violation) in [
        done(),
        [answer(false, 0), answer(false, 0)].concat(),
        [
            answer(false, 0),
            framed(&wire::ReceiverMessage { what: None }),
        ]
        .concat(),
        (0..=NOTES).flat_map(|_| note()).collect(),
    ]
    .iter()
    .enumerate()
    {
        let ended = send_to(violation);
        assert!(is_violation(&ended), "{at}: {:?}", ended.0);
        let bounded = |note: &Note| note.path.as_os_str().len() <= 4096 && note.why.len() <= 256;
        assert!(ended.1.notes.iter().all(bounded));
    }
    // A claim of existing content does not change what is sent: everything.
    for length in [1, 1 << 20, u64::MAX] {
        let (ended, _) = send_to(&answer(false, length));
        let counters = ended.unwrap();
        assert_eq!((counters.resumed, counters.bytes), (0, 2 << 20));
    }
    let why = "z".repeat(9000);
    let failed = from_receiver(FromReceiver::Failed(wire::Failed { why }));
    match send_to(&failed).0 {
        Err(CopyError::Failed(why)) => assert_eq!(why.len(), 256),
        other => panic!("{other:?}"),
    }
}
