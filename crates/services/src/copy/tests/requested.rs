//! Only what was asked for is accepted, and only what was seen to be done counts as done.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::hostile::*;
use super::whole::{Seen, look};
use super::*;
use crate::wire::copy as wire;
use wire::receiver_message::What as FromReceiver;
use wire::sender_message::What as FromSender;

/// Asks for sources, and receives these messages.
fn ask(sandbox: &Sandbox, sources: &[&str], recursive: bool, sent: &[u8]) -> Ended {
    let sources: Vec<_> = sources.iter().map(Source::new).collect();
    sandbox.receive_with(&[sent], |receiver| {
        receiver
            .requested(&sources, recursive)
            .archive(Some(Trust::NoSetId))
    })
}

fn note(path: &[u8], skipped: bool) -> Vec<u8> {
    let (path, why) = (path.to_vec().into(), "I do not want to".to_owned());
    from_sender(FromSender::Note(wire::Note { path, why, skipped }))
}

#[test]
fn an_entry_of_another_kind_or_name_than_was_asked_for_aborts_the_copy() {
    let tree = [enter(b"a"), whole_file(b"b", b"!"), leave()].concat();
    let cases: [(&[&str], bool, Vec<u8>); 12] = [
        (&["/etc/a"], false, link(b"a", b"/etc/shadow")),
        (&["/etc/a"], false, tree.clone()),
        (&["/etc/a"], false, [enter(b""), leave()].concat()),
        (&["/etc/a"], false, whole_file(b"b", b"!")),
        (
            &["/etc/a"],
            false,
            [whole_file(b"a", b"!"), whole_file(b"a", b"?")].concat(),
        ),
        (
            &["/etc/a"],
            false,
            [whole_file(b"a", b"!"), whole_file(b"b", b"!")].concat(),
        ),
        (&["/etc/a"], true, [tree.clone(), tree.clone()].concat()),
        (&["/etc/a"], true, [enter(b""), leave()].concat()),
        (&["/etc/."], true, whole_file(b"a", b"!")),
        (&["/etc/a/"], true, whole_file(b"a", b"!")),
        (&["/etc/a/"], true, link(b"a", b"/")),
        (
            &["/etc/a", "/etc/b"],
            false,
            [whole_file(b"a", b"!"), link(b"b", b"a")].concat(),
        ),
    ];
    for (sources, recursive, sent) in cases {
        let sandbox = Sandbox::new();
        let sent = ended(&[sent]);
        let ended = ask(&sandbox, sources, recursive, &sent);
        assert!(
            is_violation(&ended),
            "{sources:?} {recursive}: {:?}",
            ended.0
        );
    }
}

#[test]
fn a_source_that_does_not_arrive_has_failed_whatever_the_sender_says() {
    let one = || whole_file(b"a", b"!");
    let cases: [(&[&str], Vec<u8>, u64); 8] = [
        (&["/etc/a"], ended(&[]), 1),
        (&["/etc/a", "/etc/b"], ended(&[]), 2),
        (&["/etc/a", "/etc/b"], ended(&[one()]), 1),
        (&["/etc/a"], ended(&[note(b"a", false)]), 1),
        (&["/etc/a"], ended(&[note(b"a", true)]), 1),
        (
            &["/etc/a"],
            ended(&[note(b"x", false), note(b"y", false)]),
            2,
        ),
        (&["/etc/a"], ended(&[one(), note(b"x", false)]), 1),
        // A broken file without a reason.
        (
            &["/etc/a"],
            ended(&[
                file(b"a", 10),
                from_sender(FromSender::FileEnd(wire::FileEnd {
                    broken: true,
                    ..wire::FileEnd::default()
                })),
            ]),
            1,
        ),
    ];
    for (at, (sources, sent, failed)) in cases.into_iter().enumerate() {
        let sandbox = Sandbox::new();
        let (ended, record) = ask(&sandbox, sources, false, &sent);
        assert_eq!(ended.unwrap().failed, failed, "{at}");
        assert!(!record.notes.is_empty(), "{at}: it is reported");
    }
    // What the sender has explained is not reported twice. It sees relative paths from its root.
    for (source, path) in [("/srv/a", &b"a"[..]), ("srv/.", b"/srv/."), ("", b"/")] {
        let sandbox = Sandbox::new();
        let (ended, record) = ask(&sandbox, &[source], true, &ended(&[note(path, false)]));
        assert_eq!(ended.unwrap().failed, 1, "{source:?}");
        assert_eq!(record.notes.len(), 1, "{source:?}: {:?}", record.notes);
    }
    let sandbox = Sandbox::new();
    let (ended, record) = ask(&sandbox, &["/etc/a"], false, &ended(&[]));
    assert_eq!(ended.unwrap().files, 0);
    assert_eq!(record.notes[0].path, Path::new("/etc/a"));
    assert!(
        record.notes[0].why.contains("has not sent it"),
        "{:?}",
        record.notes
    );
}

#[test]
fn an_end_that_states_something_else_than_arrived_aborts_the_copy() {
    let (one, other) = (whole_file(b"a", b"!"), whole_file(b"a", b"?"));
    for stated in [
        end(),
        end_of(&[]),
        end_of(&other),
        end_of(&[&one[..], &one[..]].concat()),
    ] {
        let sandbox = Sandbox::new();
        let ended = ask(
            &sandbox,
            &["/etc/a"],
            false,
            &[&one[..], &stated[..]].concat(),
        );
        assert!(is_violation(&ended), "{:?}", ended.0);
    }
    let sandbox = Sandbox::new();
    let (ended, _) = ask(&sandbox, &["/etc/a"], false, &ended(&[one]));
    let counters = ended.unwrap();
    assert_eq!((counters.files, counters.failed), (1, 0));
}

/// Sends the file `a` to a receiver that reads all and acknowledges it in this way.
fn acknowledged(by: impl FnOnce(wire::Tally) -> Vec<FromReceiver> + Send) -> Ended {
    let from = folder();
    fs::write(from.path().join("a"), "content").unwrap();
    let (here, there) = BreakingStream::pair();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut messages = MessageStream::new(there);
            let send = |messages: &mut MessageStream<_>, what| {
                let what = Some(what);
                let _ = messages.send(&wire::ReceiverMessage { what });
                let _ = messages.flush();
            };
            send(&mut messages, FromReceiver::Ready(wire::Ready {}));
            while let Ok(sent) = messages.receive::<wire::SenderMessage>() {
                match sent.what {
                    Some(FromSender::Chunk(chunk)) => {
                        let _ = messages.receive_bytes(&mut vec![0; chunk.length as usize]);
                    }
                    Some(FromSender::End(end)) => {
                        for what in by(end.sent.unwrap()) {
                            send(&mut messages, what);
                        }
                        break;
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

#[test]
fn an_acknowledgement_of_something_else_than_was_sent_aborts_the_copy() {
    let done = |failed, stored| FromReceiver::Done(wire::Done { failed, stored });
    let told = || {
        FromReceiver::Note(wire::Note {
            why: "no space".to_owned(),
            ..wire::Note::default()
        })
    };
    type Answer<'a> = Box<dyn FnOnce(wire::Tally) -> Vec<FromReceiver> + Send + 'a>;
    let false_answers: Vec<Answer<'_>> = vec![
        Box::new(|_| vec![done(0, None)]),
        Box::new(|_| vec![done(1, None)]),
        Box::new(|_| vec![done(0, Some(wire::Tally::default()))]),
        Box::new(|sent| vec![done(0, Some(wire::Tally { files: 2, ..sent }))]),
        Box::new(|sent| vec![done(1, Some(wire::Tally { files: 2, ..sent }))]),
        Box::new(|sent| {
            vec![done(
                0,
                Some(wire::Tally {
                    files: 0,
                    symlinks: 1,
                    ..sent
                }),
            )]
        }),
        Box::new(|sent| {
            vec![done(
                0,
                Some(wire::Tally {
                    checksum: vec![0; 16].into(),
                    ..sent
                }),
            )]
        }),
        Box::new(|sent| vec![told(), done(0, Some(sent))]),
    ];
    for (at, answer) in false_answers.into_iter().enumerate() {
        let ended = acknowledged(answer);
        assert!(is_violation(&ended), "{at}: {:?}", ended.0);
    }
    let (ended, _) = acknowledged(|sent| vec![done(0, Some(sent))]);
    assert_eq!(ended.unwrap().failed, 0);
    let (ended, _) = acknowledged(|_| vec![told(), done(1, Some(wire::Tally::default()))]);
    let counters = ended.unwrap();
    assert_eq!(
        (counters.files, counters.failed),
        (0, 1),
        "files that were stored"
    );
    let (ended, _) = acknowledged(|_| Vec::new());
    assert!(
        matches!(ended, Err(CopyError::Ended | CopyError::Broken(_))),
        "{ended:?}"
    );
}

#[test]
fn a_guest_changes_no_folder_that_was_there_before() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.to().join("old")).unwrap();
    for folder in [sandbox.to(), sandbox.to().join("old")] {
        fs::set_permissions(folder, Permissions::from_mode(0o710)).unwrap();
    }
    let wide = |name: &[u8]| {
        from_sender(FromSender::Enter(wire::Enter {
            name: name.to_vec().into(),
            meta: Some(wire::Meta {
                mode: 0o777,
                seconds: 1,
                uid: 1234,
                gid: 1234,
                ..wire::Meta::default()
            }),
            identity: 0,
        }))
    };
    let sent = ended(&[
        wide(b""),
        wide(b"old"),
        leave(),
        wide(b"new"),
        leave(),
        leave(),
    ]);
    let (ended, _) = ask(&sandbox, &["/srv/."], true, &sent);
    assert_eq!(ended.unwrap().failed, 0);
    let seen = |path: PathBuf| {
        let meta = fs::metadata(path).unwrap();
        (meta.mode() & 0o7777, meta.mtime() == 1, meta.uid() == 1234)
    };
    let own = rustix::process::geteuid().is_root();
    assert_eq!(seen(sandbox.to()), (0o710, false, false));
    assert_eq!(seen(sandbox.to().join("old")), (0o710, false, false));
    assert_eq!(seen(sandbox.to().join("new")), (0o777, true, own));
}

/// What a sender may do, as it says it and as an honest one would mean it.
#[derive(Clone, Debug)]
enum Step {
    Enter(&'static str),
    Leave,
    File(&'static str, Vec<u8>),
    Corrupt(&'static str),
    Broken(&'static str),
    Link(&'static str),
    Note(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let name = || prop::sample::select(vec!["a", "a", "a", "b", "", "..", "/etc/passwd"]);
    prop_oneof![
        3 => name().prop_map(Step::Enter),
        3 => Just(Step::Leave),
        4 => (name(), prop::collection::vec(any::<u8>(), 1..5)).prop_map(|(name, content)| Step::File(name, content)),
        1 => name().prop_map(Step::Corrupt),
        1 => name().prop_map(Step::Broken),
        2 => name().prop_map(Step::Link),
        1 => any::<bool>().prop_map(Step::Note),
    ]
}

fn message(step: &Step) -> Vec<u8> {
    let broken = wire::FileEnd {
        broken: true,
        ..wire::FileEnd::default()
    };
    match step {
        Step::Enter(name) => enter(name.as_bytes()),
        Step::Leave => leave(),
        Step::File(name, content) => whole_file(name.as_bytes(), content),
        Step::Corrupt(name) => {
            [file(name.as_bytes(), 1), chunk(0, 1, b"x"), file_end(b"y")].concat()
        }
        Step::Broken(name) => {
            let end = from_sender(FromSender::FileEnd(broken));
            [file(name.as_bytes(), 1), end].concat()
        }
        Step::Link(name) => link(name.as_bytes(), b"../outside/file"),
        Step::Note(skipped) => note(b"a", *skipped),
    }
}

/// What arrives if all steps are accepted. `None` if they are not what was asked for: the entry `a`,
/// and without `recursive` a file.
fn reference(steps: &[Step], recursive: bool) -> Option<BTreeMap<PathBuf, Option<Vec<u8>>>> {
    let mut all = BTreeMap::new();
    let mut folder = PathBuf::new();
    let mut depth = 0;
    for step in steps {
        let (name, content) = match step {
            Step::Leave => {
                depth -= 1;
                if depth < 0 {
                    return None;
                }
                folder.pop();
                continue;
            }
            Step::Note(true) => continue,
            Step::Note(false) | Step::Corrupt(_) | Step::Broken(_) => return None,
            Step::Enter(name) | Step::Link(name) if recursive => (name, None),
            Step::Enter(_) | Step::Link(_) => return None,
            Step::File(name, content) => (name, Some(content.clone())),
        };
        let top = depth == 0 && *name == "a";
        let below = depth > 0 && ["a", "b"].contains(name);
        let path = folder.join(name);
        if !(top || below) || all.insert(path.clone(), content).is_some() {
            return None;
        }
        if matches!(step, Step::Enter(_)) {
            folder = path;
            depth += 1;
        }
    }
    (depth == 0 && all.contains_key(Path::new("a"))).then_some(all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(hvsock_testkit::cases(300)))]
    #[test]
    fn success_means_that_exactly_what_was_asked_for_has_arrived(
        steps in prop::collection::vec(step(), 0..7),
        recursive in any::<bool>(),
        honest_end in prop::bool::weighted(0.9),
    ) {
        let sandbox = Sandbox::new();
        let sent: Vec<u8> = steps.iter().flat_map(message).collect();
        let stated = if honest_end { end_of(&sent) } else { end() };
        let (ended, _) = ask(&sandbox, &["/srv/a"], recursive, &[&sent[..], &stated[..]].concat());
        let success = ended.is_ok_and(|counters| counters.failed == 0);
        let expected = reference(&steps, recursive).filter(|_| honest_end);
        prop_assert_eq!(success, expected.is_some(), "{:?}", steps);
        if let Some(expected) = expected {
            let found: BTreeMap<_, _> = look(&sandbox.to()).into_iter().map(|(path, seen)| {
                let content = match seen {
                    Seen::File { content, .. } => Some(content),
                    Seen::Folder { .. } | Seen::Link { .. } => None,
                };
                (path, content)
            }).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
