//! Both sides of the protocol against each other, with a model of the socket between them, while either may die
//! at any step: exactly one broker runs afterwards.

use std::collections::VecDeque;

use proptest::collection::vec;
use proptest::prelude::*;

use super::predecessor::{self, GivenUp, Grace, Predecessor};
use super::protocol::{Known, Message, Versions};
use super::successor::{self, Successor};

/// One thing that a process does at once.
#[derive(Debug)]
enum OfPredecessor {
    Action(predecessor::Action),
    Freeze,
    Exported,
    Drain,
    Kill,
    Gone,
}

/// What can go wrong beside a death.
#[derive(Clone, Copy, Debug, Default)]
struct Faults {
    prepare: bool,
    export: bool,
    restore: bool,
    dry_run: bool,
    /// A killed successor does not end at once.
    slow_death: bool,
}

#[derive(Debug, Default)]
struct Process {
    is_dead: bool,
    inbox: VecDeque<Message>,
}

#[derive(Debug)]
struct World {
    faults: Faults,
    predecessor: Predecessor,
    successor: Successor,
    p: Process,
    s: Process,
    p_todo: VecDeque<OfPredecessor>,
    s_todo: VecDeque<successor::Action>,
    /// The predecessor receives no more.
    is_shut: bool,
    is_frozen: bool,
    has_left: bool,
    resumed: Option<GivenUp>,
    has_sent_abort: bool,
    has_committed: bool,
    s_runs: bool,
    s_fresh: bool,
    s_exit: Option<String>,
    /// It has been killed, but runs on for a while.
    s_dying: bool,
    /// After this nobody has to run: who ran was killed.
    is_crash: bool,
}

fn known(oldest: u32, newest: u32) -> Known {
    let versions = Versions { oldest, newest };
    Known {
        protocol: Versions {
            oldest: 1,
            newest: 1,
        },
        document: versions,
    }
}

impl World {
    fn new(faults: Faults, own: Known, other: Known) -> Self {
        let successor = Successor::new(other, faults.dry_run);
        Self {
            faults,
            predecessor: Predecessor::new(own, "1.0"),
            s_todo: successor.start("2.0").into(),
            successor,
            p: Process::default(),
            s: Process::default(),
            p_todo: VecDeque::new(),
            is_shut: false,
            is_frozen: false,
            has_left: false,
            resumed: None,
            has_sent_abort: false,
            has_committed: false,
            s_runs: false,
            s_fresh: false,
            s_exit: None,
            s_dying: false,
            is_crash: false,
        }
    }

    fn check(&self) {
        let p_serves = !self.p.is_dead && !self.is_frozen && !self.has_left;
        let s_serves = !self.s.is_dead && (self.s_runs || self.s_fresh);
        assert!(!(p_serves && s_serves), "both run: {self:?}");
    }

    fn p_handle(&mut self, event: predecessor::Event) {
        let actions = self.predecessor.handle(event);
        let actions = actions.into_iter().map(OfPredecessor::Action);
        self.p_todo.extend(actions);
    }

    fn s_handle(&mut self, event: successor::Event) {
        let actions = self.successor.handle(event);
        self.s_todo.extend(actions);
    }

    fn send_to_successor(&mut self, message: Message) -> bool {
        if !self.s.is_dead {
            self.s.inbox.push_back(message);
        }
        !self.s.is_dead
    }

    fn send_to_predecessor(&mut self, message: Message) -> bool {
        let arrives = !self.p.is_dead && !self.is_shut;
        if arrives {
            self.p.inbox.push_back(message);
        }
        arrives
    }

    /// One step of the predecessor. Returns whether there was one.
    fn p_step(&mut self, expires: bool) -> bool {
        use predecessor::{Action, Event};
        if self.p.is_dead || self.has_left {
            return false;
        }
        let Some(next) = self.p_todo.pop_front() else {
            if self.resumed.is_some() {
                return false;
            }
            match self.p.inbox.pop_front() {
                Some(message) => self.p_handle(Event::Received(message)),
                None if self.s.is_dead => self.p_handle(Event::Closed),
                None if expires => self.p_handle(Event::Expired("too slow".into())),
                None => return false,
            }
            return true;
        };
        match next {
            OfPredecessor::Action(Action::Send(message)) => {
                if !self.send_to_successor(message) {
                    self.p_handle(Event::Closed);
                }
            }
            OfPredecessor::Action(Action::Export) => {
                let steps = [
                    OfPredecessor::Freeze,
                    OfPredecessor::Action(Action::Send(Message::Begin)),
                    OfPredecessor::Action(Action::Send(Message::Descriptors {
                        first: 0,
                        count: 1,
                    })),
                    OfPredecessor::Action(Action::Send(Message::Document)),
                    OfPredecessor::Exported,
                ];
                self.p_todo.extend(steps);
            }
            OfPredecessor::Freeze => self.is_frozen = true,
            OfPredecessor::Exported => match self.faults.export {
                true => self.p_handle(Event::ExportFailed("no memory".into())),
                false => self.p_handle(Event::Exported {
                    descriptors: 1,
                    bytes: 1,
                }),
            },
            OfPredecessor::Action(Action::StopReceiving) => {
                self.is_shut = true;
                // What it was about to send is not sent.
                self.p_todo.clear();
                self.p_todo.push_back(OfPredecessor::Drain);
            }
            OfPredecessor::Drain => match self.p.inbox.pop_front() {
                Some(message) => {
                    self.p_handle(Event::Received(message));
                    self.p_todo.push_back(OfPredecessor::Drain);
                }
                None => self.p_handle(Event::Drained),
            },
            OfPredecessor::Action(Action::Kill { abort, grace }) => {
                self.send_to_successor(abort);
                self.has_sent_abort = true;
                if grace != Grace::Endless {
                    self.p_todo.push_back(OfPredecessor::Kill);
                }
                self.p_todo.push_back(OfPredecessor::Gone);
            }
            OfPredecessor::Kill if self.faults.slow_death => self.s_dying = true,
            OfPredecessor::Kill => self.s.is_dead = true,
            OfPredecessor::Gone => self.p_handle(Event::SuccessorGone),
            OfPredecessor::Action(Action::Resume(reason)) => {
                self.is_frozen = false;
                self.resumed = Some(reason);
            }
            OfPredecessor::Action(Action::Leave) => {
                self.has_left = true;
                self.p.is_dead = true;
            }
        }
        true
    }

    fn s_step(&mut self, expires: bool) -> bool {
        use successor::{Action, Event};
        if self.s.is_dead || self.s_runs || self.s_fresh {
            return false;
        }
        let Some(next) = self.s_todo.pop_front() else {
            match self.s.inbox.pop_front() {
                Some(Message::Descriptors { .. } | Message::Document) => {}
                Some(message) => self.s_handle(Event::Received(message)),
                None if self.p.is_dead => self.s_handle(Event::Closed),
                None if expires => self.s_handle(Event::Expired("too slow".into())),
                None => return false,
            }
            return true;
        };
        match next {
            Action::Send(message) => {
                if !self.send_to_predecessor(message) {
                    self.s_handle(Event::Closed);
                }
            }
            Action::Prepare => match self.faults.prepare {
                true => self.s_handle(Event::PrepareFailed("a folder is missing".into())),
                false => self.s_handle(Event::Prepared),
            },
            Action::Restore => match self.faults.restore {
                true => self.s_handle(Event::RestoreFailed("damaged".into())),
                false => self.s_handle(Event::Restored),
            },
            Action::Commit => match self.send_to_predecessor(Message::Started) {
                true => {
                    self.has_committed = true;
                    self.s_handle(Event::Committed);
                }
                false => self.s_handle(Event::Closed),
            },
            Action::CheckPredecessor { .. } => {
                let has_ended = self.p.is_dead;
                // It ends after it has sent its last message.
                while let Some(message) = self.s.inbox.pop_front() {
                    self.s_handle(Event::Received(message));
                }
                self.s_handle(match has_ended {
                    true => Event::PredecessorEnded,
                    false => Event::PredecessorLives,
                });
            }
            Action::Run => self.s_runs = true,
            Action::StartFresh => self.s_fresh = true,
            Action::Exit(reason) => {
                self.s_exit = Some(reason);
                self.s.is_dead = true;
            }
            Action::EndDryRun => self.s.is_dead = true,
        }
        true
    }

    fn kill_predecessor(&mut self) {
        if !self.p.is_dead {
            self.p.is_dead = true;
            // It served, or the successor had decided to leave that to it.
            let s_is_over = self.s.is_dead
                || self.s_todo.iter().any(|todo| {
                    matches!(
                        todo,
                        successor::Action::Exit(_) | successor::Action::EndDryRun
                    )
                });
            self.is_crash |= self.has_sent_abort || s_is_over;
        }
    }

    fn kill_successor(&mut self) {
        if !self.s.is_dead {
            self.s.is_dead = true;
            // After the commit it is the one that runs.
            self.is_crash |= self.s_fresh || self.has_committed;
            self.is_crash |= self.p.is_dead;
        }
    }

    /// Goes on until nothing happens any more.
    fn settle(&mut self) {
        for _ in 0..200 {
            let p = self.p_step(false);
            self.check();
            let s = self.s_step(false);
            self.check();
            if p || s {
                continue;
            }
            let expired = self.p_step(true) || self.s_step(true);
            self.check();
            if !expired {
                return;
            }
        }
        panic!("it does not end: {self:?}");
    }

    /// Who runs at the end: the predecessor, the successor with the state, without it.
    fn runs(&self) -> [bool; 3] {
        let p = !self.p.is_dead && !self.has_left && !self.is_frozen;
        let s = !self.s.is_dead;
        [p, s && self.s_runs, s && self.s_fresh]
    }
}

fn faults() -> impl Strategy<Value = Faults> {
    let rare = || prop::bool::weighted(0.1);
    (rare(), rare(), rare(), rare(), any::<bool>()).prop_map(
        |(prepare, export, restore, dry_run, slow_death)| Faults {
            prepare,
            export,
            restore,
            dry_run,
            slow_death,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: hvsock_testkit::cases(1000), ..ProptestConfig::default() })]

    #[test]
    fn exactly_one_broker_runs_whichever_dies_at_whichever_step(
        faults in faults(),
        steps in vec((any::<bool>(), 0..100_u8), 0..60),
        kill in prop::option::of((0..60_usize, any::<bool>())),
    ) {
        let mut world = World::new(faults, known(1, 2), known(2, 3));
        for (nth, (first, chance)) in steps.into_iter().enumerate() {
            match kill {
                Some((at, true)) if at == nth => world.kill_predecessor(),
                Some((at, false)) if at == nth => world.kill_successor(),
                _ => {}
            }
            match first {
                true => world.p_step(chance < 2),
                false => world.s_step(chance < 2),
            };
            if world.s_dying && chance > 60 {
                world.s.is_dead = true;
            }
            world.check();
        }
        if world.s_dying {
            world.s.is_dead = true;
        }
        world.settle();
        let running = world.runs().iter().filter(|one| **one).count();
        match world.is_crash {
            true => prop_assert!(running <= 1, "{world:?}"),
            false => prop_assert_eq!(running, 1, "{:?}", world),
        }
        if kill.is_none() && world.s_runs {
            prop_assert!(world.has_left);
        }
    }
}

/// A world after a run in which nobody dies.
fn run(faults: Faults, own: Known, other: Known) -> World {
    let mut world = World::new(faults, own, other);
    world.settle();
    world
}

#[test]
fn the_successor_runs_when_nothing_fails() {
    let world = run(Faults::default(), known(1, 1), known(1, 1));
    assert_eq!(world.runs(), [false, true, false]);
    assert_eq!(world.predecessor.successor().unwrap().release, "2.0");
    assert_eq!(world.successor.predecessor(), Some("1.0"));
}

#[test]
fn the_document_has_the_newest_version_that_both_know() {
    for (own, other, expected) in [
        ((1, 3), (1, 5), Some(3)),
        ((1, 5), (2, 3), Some(3)),
        ((2, 2), (1, 2), Some(2)),
        ((1, 1), (2, 3), None),
        ((4, 5), (2, 3), None),
    ] {
        let world = run(
            Faults::default(),
            known(own.0, own.1),
            known(other.0, other.1),
        );
        let successor = world.predecessor.successor();
        assert_eq!(
            successor.map(|one| one.document),
            expected,
            "{own:?} {other:?}"
        );
        assert_eq!(
            world.runs(),
            [expected.is_none(), expected.is_some(), false]
        );
    }
}

#[test]
fn an_unknown_version_is_refused_by_either_side_with_both_releases() {
    let world = run(Faults::default(), known(1, 1), known(2, 3));
    let expected = "the new broker, hvsock 2.0, knows versions 2 to 3 of the state; this one, hvsock 1.0, version 1";
    assert_eq!(world.resumed, Some(GivenUp::Failed(expected.into())));
    assert_eq!(world.s_exit.as_deref(), Some(expected));
    // A predecessor that chooses what the successor does not know.
    let mut successor = Successor::new(known(1, 1), false);
    let welcome = Message::Welcome {
        protocol: 1,
        document: 7,
        release: "9.0".into(),
    };
    let actions = successor.handle(successor::Event::Received(welcome));
    let [successor::Action::Send(Message::Failed { reason })] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(
        reason,
        "hvsock 9.0 speaks version 1 of the protocol of upgrades and writes version 7 of the state; \
         this release knows version 1 and version 1"
    );
}

#[test]
fn a_dry_run_does_everything_but_start() {
    let faults = Faults {
        dry_run: true,
        ..Faults::default()
    };
    let world = run(faults, known(1, 1), known(1, 1));
    assert_eq!(world.runs(), [true, false, false]);
    assert_eq!(world.resumed, Some(GivenUp::DryRun));
}

#[test]
fn each_failure_leaves_the_predecessor_running_and_has_its_reason() {
    let faults = |prepare, export, restore| Faults {
        prepare,
        export,
        restore,
        ..Faults::default()
    };
    for (faults, expected) in [
        (faults(true, false, false), "a folder is missing"),
        (faults(false, true, false), "no memory"),
        (faults(false, false, true), "damaged"),
    ] {
        let world = run(faults, known(1, 1), known(1, 1));
        assert_eq!(world.runs(), [true, false, false]);
        assert_eq!(world.resumed, Some(GivenUp::Failed(expected.into())));
    }
}

#[test]
fn a_start_before_all_is_sent_is_no_commit() {
    let mut predecessor = Predecessor::new(known(1, 1), "1.0");
    let hello = Successor::new(known(1, 1), false).start("2.0");
    let [successor::Action::Send(hello)] = &hello[..] else {
        panic!("{hello:?}");
    };
    let mut received =
        |message: &Message| predecessor.handle(predecessor::Event::Received(message.clone()));
    received(hello);
    received(&Message::Prepared);
    let actions = received(&Message::Started);
    assert_eq!(actions, [predecessor::Action::StopReceiving]);
    assert_eq!(received(&Message::Started), []);
    let actions = predecessor.handle(predecessor::Event::Drained);
    assert!(matches!(actions[..], [predecessor::Action::Kill { .. }]));
}

#[test]
fn messages_are_short_and_nonsense_is_an_error() {
    let long = Message::failed(&"\u{1f980}".repeat(100_000));
    assert!(long.encode().len() <= super::protocol::MAX_MESSAGE);
    for message in [
        Message::Prepared,
        long,
        Message::End {
            descriptors: 1,
            bytes: 2,
        },
    ] {
        assert_eq!(Message::decode(&message.encode()), Ok(message));
    }
    let later = br#"{"message":"welcome","protocol":1,"document":1,"release":"x","more":[1]}"#;
    assert!(Message::decode(later).is_ok());
    for nonsense in [&b""[..], b"{}", b"\xff", br#"{"message":"other"}"#] {
        assert!(Message::decode(nonsense).is_err());
    }
}
