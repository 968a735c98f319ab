//! An end that lies gets nothing but an end of the copy.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use proptest::prelude::*;
use prost::bytes::Bytes;
use tempfile::TempDir;

use super::whole::{Seen, look};
use super::*;
use crate::wire::copy as wire;
use wire::{sent, told};

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let length = message.encoded_len() as u32;
    [&length.to_le_bytes()[..], &message.encode_to_vec()].concat()
}

fn say(what: sent::What) -> Vec<u8> {
    framed(&wire::Sent { what: Some(what) })
}

fn tell(what: told::What) -> Vec<u8> {
    framed(&wire::Told { what: Some(what) })
}

fn enter(name: &[u8]) -> Vec<u8> {
    let (name, meta) = (
        Bytes::copy_from_slice(name),
        Some(wire::Meta {
            mode: 0o755,
            ..wire::Meta::default()
        }),
    );
    say(sent::What::Enter(wire::Enter { name, meta }))
}

fn leave() -> Vec<u8> {
    say(sent::What::Leave(wire::Leave {}))
}

fn file(name: &[u8], size: u64) -> Vec<u8> {
    let (name, meta) = (
        Bytes::copy_from_slice(name),
        Some(wire::Meta {
            mode: 0o6755,
            ..wire::Meta::default()
        }),
    );
    let ask = false;
    say(sent::What::File(wire::File {
        name,
        meta,
        size,
        ask,
    }))
}

fn piece(offset: u64, length: u32, bytes: &[u8]) -> Vec<u8> {
    [
        say(sent::What::Piece(wire::Piece { offset, length })),
        bytes.to_vec(),
    ]
    .concat()
}

fn file_end(content: &[u8]) -> Vec<u8> {
    let mut sum = sum::Sum::new();
    sum.data(content);
    let checksum = sum.get().to_vec().into();
    let (size, broken) = (content.len() as u64, false);
    say(sent::What::FileEnd(wire::FileEnd {
        size,
        checksum,
        broken,
    }))
}

fn whole_file(name: &[u8], content: &[u8]) -> Vec<u8> {
    let length = content.len() as u32;
    [
        file(name, content.len() as u64),
        piece(0, length, content),
        file_end(content),
    ]
    .concat()
}

fn link(name: &[u8], target: &[u8]) -> Vec<u8> {
    let (name, target) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(target));
    let meta = None;
    say(sent::What::Symlink(wire::Symlink { name, target, meta }))
}

fn end() -> Vec<u8> {
    say(sent::What::End(wire::End { failed: 0 }))
}

/// A destination, and beside it what nobody may touch.
struct Place {
    outer: TempDir,
}

impl Place {
    fn new() -> Self {
        let outer = folder();
        fs::create_dir(outer.path().join("to")).unwrap();
        fs::create_dir(outer.path().join("outside")).unwrap();
        fs::write(outer.path().join("outside/file"), "untouched").unwrap();
        Self { outer }
    }

    fn to(&self) -> std::path::PathBuf {
        self.outer.path().join("to")
    }

    /// Receives what such a sender says and nothing more, and looks whether it got out.
    fn receive(&self, said: &[&[u8]], trust: Trust) -> Ended {
        let before = fs::metadata(self.outer.path()).unwrap().mtime_nsec();
        let said = said.concat();
        let (here, there) = Cut::pair();
        let ended = thread::scope(|scope| {
            scope.spawn(move || {
                let mut stream = here.stream;
                // The receiver may have enough of it.
                let _ = stream.write_all(&said);
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut Vec::new());
            });
            let (mut line, mut heard) = (Line::new(there), Heard::default());
            let place = Destination::open(&self.to(), true).unwrap();
            let receiver = Receiver::new(&mut line, &mut heard, place);
            let ended = receiver.archive(Some(trust)).run();
            drop(line);
            (ended, heard)
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

fn is_violation(ended: &Ended) -> bool {
    matches!(ended.0, Err(CopyError::Violation(_)))
}

#[test]
fn names_that_lead_elsewhere_end_the_copy() {
    for name in [
        &b".."[..],
        b".",
        b"../outside/file",
        b"/etc/passwd",
        b"a/b",
        b"a\0",
        b"../outside",
    ] {
        for said in [enter(name), whole_file(name, b"!"), link(name, b"x")] {
            let place = Place::new();
            assert!(
                is_violation(&place.receive(&[&said, &end()], Trust::Full)),
                "{name:?}"
            );
            let place = Place::new();
            let ended = place.receive(&[&enter(b"in"), &said, &leave(), &end()], Trust::Full);
            assert!(is_violation(&ended), "{name:?} in a folder");
        }
    }
    let place = Place::new();
    let ended = place.receive(
        &[&enter(b"in"), &enter(b""), &leave(), &leave(), &end()],
        Trust::Full,
    );
    assert!(is_violation(&ended), "no name is for the top");
}

#[test]
fn nothing_goes_through_a_link() {
    // Sent before, or there already.
    for target in ["../outside", "../outside/file", "."] {
        let place = Place::new();
        symlink(target, place.to().join("there")).unwrap();
        let said = [
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
        let (ended, heard) = place.receive(&[&said.concat()], Trust::Full);
        assert_eq!(ended.unwrap().failed, 2, "{heard:?}", heard = heard.notes);
        let all = look(&place.to());
        assert_eq!(all.len(), 3, "{all:?}");
        assert!(
            heard.notes.iter().all(|note| note.why.contains("link")),
            "{:?}",
            heard.notes
        );
    }
}

#[test]
fn a_file_takes_the_place_of_a_link_and_leaves_its_target_alone() {
    let place = Place::new();
    let said = [
        link(b"a", b"../outside/file"),
        whole_file(b"a", b"new"),
        end(),
    ]
    .concat();
    let (ended, _) = place.receive(&[&said], Trust::Full);
    assert_eq!(ended.unwrap().failed, 0);
    assert!(
        !fs::symlink_metadata(place.to().join("a"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(fs::read(place.to().join("a")).unwrap(), b"new");
}

#[test]
fn what_was_laid_in_the_way_of_a_part_is_not_written_through() {
    let large = vec![7; 1_500_000];
    for size in [3, large.len()] {
        for hard in [false, true] {
            let place = Place::new();
            let (outside, part) = (
                place.outer.path().join("outside/file"),
                place.to().join(".a.hvsock.part"),
            );
            match hard {
                true => fs::hard_link(&outside, &part).unwrap(),
                false => symlink(&outside, &part).unwrap(),
            }
            let from = folder();
            fs::write(from.path().join("a"), &large[..size]).unwrap();
            let ((sent, _), _) = copy(&[&from.path().join("a")], &place.to(), false);
            assert_eq!(sent.unwrap().failed, 0);
            assert!(fs::read(place.to().join("a")).unwrap() == large[..size]);
            assert_eq!(fs::read(outside).unwrap(), b"untouched");
            assert!(!part.exists());
        }
    }
}

#[test]
fn sizes_that_lie_end_the_copy_and_leave_nothing() {
    let good = b"0123456789";
    let lies = [
        [file(b"a", 5), piece(0, 10, good), file_end(good)].concat(),
        [file(b"a", 10), piece(5, 10, good), file_end(good)].concat(),
        [
            file(b"a", 10),
            piece(0, 5, &good[..5]),
            piece(4, 5, &good[5..]),
            file_end(good),
        ]
        .concat(),
        [file(b"a", 10), piece(0, 0, b""), file_end(good)].concat(),
        [
            file(b"a", 1 << 30),
            piece(0, (1 << 20) + 1, &vec![0; (1 << 20) + 1]),
        ]
        .concat(),
        [file(b"a", u64::MAX), file_end(b"")].concat(),
        [file(b"a", i64::MAX as u64), piece(u64::MAX - 3, 10, good)].concat(),
        [file(b"a", 10), piece(0, 10, good), file_end(&good[..9])].concat(),
        [file(b"a", 9), piece(0, 9, &good[..9]), file_end(good)].concat(),
        [file(b"a", 10), file(b"b", 10)].concat(),
        [file(b"a", 10), leave()].concat(),
        piece(0, 10, good),
        file_end(good),
        leave(),
        [enter(b"a"), end()].concat(),
        framed(&wire::Sent { what: None }),
        vec![255, 255, 255, 255],
        [&5u32.to_le_bytes()[..], b"?????"].concat(),
    ];
    for (at, lie) in lies.iter().enumerate() {
        let place = Place::new();
        let ended = place.receive(&[lie, &end()], Trust::Full);
        assert!(is_violation(&ended), "{at}: {:?}", ended.0);
        let files = look(&place.to()).into_values();
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
fn a_wrong_checksum_costs_the_file_and_no_other() {
    let place = Place::new();
    let said = [
        file(b"a", 3),
        piece(0, 3, b"abc"),
        file_end(b"abd"),
        whole_file(b"b", b"abc"),
        end(),
    ]
    .concat();
    let (ended, heard) = place.receive(&[&said], Trust::Full);
    assert_eq!(ended.unwrap().failed, 1);
    assert!(heard.notes[0].why.contains("checksum"), "{:?}", heard.notes);
    let all = look(&place.to());
    assert_eq!(
        all.keys()
            .map(|path| path.to_str().unwrap())
            .collect::<Vec<_>>(),
        ["b"]
    );
}

#[test]
fn only_what_was_asked_for_comes() {
    for said in [whole_file(b"other", b"!"), enter(b""), link(b"other", b"x")] {
        let place = Place::new();
        let (here, there) = Cut::pair();
        let mut stream = here.stream;
        stream.write_all(&said).unwrap();
        let (mut line, mut heard) = (Line::new(there), Heard::default());
        let to = Destination::open(&place.to(), true).unwrap();
        let receiver = Receiver::new(&mut line, &mut heard, to).asked([b"this".to_vec()]);
        assert!(matches!(receiver.run(), Err(CopyError::Violation(_))));
        assert_eq!(look(&place.to()).len(), 0);
    }
}

#[test]
fn folders_are_so_deep_and_no_deeper() {
    let place = Place::new();
    let said: Vec<_> = (0..=DEPTH).map(|_| enter(b"d")).collect();
    let ended = place.receive(&[&said.concat()], Trust::Full);
    assert!(is_violation(&ended));
}

#[test]
fn a_guest_places_no_program_that_runs_as_another() {
    for (trust, mode) in [(Trust::NoSetId, 0o755), (Trust::Full, 0o6755)] {
        if trust == Trust::Full && !rustix::process::geteuid().is_root() {
            continue;
        }
        let place = Place::new();
        let said = [whole_file(b"a", b"#!"), end()].concat();
        place.receive(&[&said], trust).0.unwrap();
        let meta = fs::metadata(place.to().join("a")).unwrap();
        assert_eq!(meta.permissions(), Permissions::from_mode(0o100_000 | mode));
    }
}

/// Anything that a sender might say, right or wrong, with checksums that are never right.
fn anything() -> impl Strategy<Value = Vec<u8>> {
    let name = || {
        prop_oneof![
            5 => "[a-c]".prop_map(String::into_bytes),
            1 => prop::sample::select(vec![&b".."[..], b"", b"a/b", b".a.hvsock.part"]).prop_map(<[u8]>::to_vec),
        ]
    };
    let target = || prop::sample::select(vec!["../outside", "..", "a", "/", "../outside/file"]);
    let wrong = say(sent::What::FileEnd(wire::FileEnd {
        size: 4,
        checksum: vec![1; 16].into(),
        broken: false,
    }));
    prop_oneof![
        3 => name().prop_map(|name| enter(&name)),
        3 => Just(leave()),
        3 => (name(), 0u64..10).prop_map(|(name, size)| file(&name, size)),
        3 => (name(), any::<[u8; 4]>(), Just(wrong)).prop_map(|(name, bytes, wrong)| [file(&name, 4), piece(0, 4, &bytes), wrong].concat()),
        2 => (name(), target()).prop_map(|(name, target)| link(&name, target.as_bytes())),
        1 => (0u64..12, 0u32..12, prop::collection::vec(any::<u8>(), 0..12)).prop_map(|(offset, length, bytes)| piece(offset, length, &bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => Just(say(sent::What::From(wire::From { offset: 9 }))),
        1 => Just(end()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn whatever_is_said_stays_inside_and_makes_no_file(said in prop::collection::vec(anything(), 0..25)) {
        let place = Place::new();
        let _ = place.receive(&[&said.concat()], Trust::Full);
        let all = look(&place.to());
        let files = all.values().filter(|seen| matches!(seen, Seen::File { .. }));
        prop_assert_eq!(files.count(), 0, "{:?}", all);
    }
}

/// Sends a file of 2 MiB to a receiver that says this, whatever it hears, and is done at the end.
fn send_to(told: &[u8]) -> Ended {
    let from = folder();
    fs::write(from.path().join("a"), vec![3; 2 << 20]).unwrap();
    let (here, there) = Cut::pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut line = Line::new(there);
            // The sender may have enough of it.
            let _ = line.send_bytes(told).and_then(|()| line.flush());
            while let Ok(sent) = line.receive::<wire::Sent>() {
                match sent.what {
                    Some(sent::What::Piece(piece)) => {
                        let _ = line.receive_bytes(&mut vec![0; piece.length as usize]);
                    }
                    Some(sent::What::End(_)) => {
                        let what = Some(told::What::Done(wire::Done { failed: 0 }));
                        let _ = line.send(&wire::Told { what });
                        let _ = line.flush();
                    }
                    _ => {}
                }
            }
        });
        let (mut line, mut heard) = (Line::new(here), Heard::default());
        let sender = Sender::new(&mut line, &mut heard, true);
        let ended = sender.run(&[Source::new(from.path().join("a"))], false);
        drop(line);
        (ended, heard)
    })
}

fn answer(skip: bool, length: u64) -> Vec<u8> {
    let checksum = vec![1; 16].into();
    tell(told::What::Answer(wire::Answer {
        skip,
        length,
        checksum,
    }))
}

#[test]
fn a_receiver_that_lies_ends_its_own_copy() {
    let done = || tell(told::What::Done(wire::Done { failed: 0 }));
    let note = || {
        tell(told::What::Note(wire::Note {
            path: vec![b'x'; 5000].into(),
            why: "y".repeat(5000),
            skipped: false,
        }))
    };
    for (at, lie) in [
        done(),
        [answer(false, 0), answer(false, 0)].concat(),
        [answer(false, 0), framed(&wire::Told { what: None })].concat(),
        (0..=NOTES).flat_map(|_| note()).collect(),
    ]
    .iter()
    .enumerate()
    {
        let ended = send_to(lie);
        assert!(is_violation(&ended), "{at}: {:?}", ended.0);
        let bounded = |note: &Note| note.path.as_os_str().len() <= 4096 && note.why.len() <= 256;
        assert!(ended.1.notes.iter().all(bounded));
    }
    // What it claims to have is not what is sent: it gets all.
    for length in [1, 1 << 20, u64::MAX] {
        let (ended, _) = send_to(&answer(false, length));
        let tally = ended.unwrap();
        assert_eq!((tally.resumed, tally.bytes), (0, 2 << 20));
    }
    let why = "z".repeat(9000);
    let failed = tell(told::What::Failed(wire::Failed { why }));
    match send_to(&failed).0 {
        Err(CopyError::Failed(why)) => assert_eq!(why.len(), 256),
        other => panic!("{other:?}"),
    }
}
