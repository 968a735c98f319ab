//! The successor's side with its I/O: from the connect to the end of the handover.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::bundle::{Imports, MAX_DESCRIPTORS};
use super::channel::{Arrived, Channel};
use super::document::Document;
use super::protocol::{Known, Message};
use super::serve::Times;
use super::steps::{Step, reach};
use super::successor::{Action, Event, Successor};

/// How long the predecessor may take for an answer. It takes longer to notice that this side is too slow.
const ANSWER: Duration = Duration::from_secs(15);
/// How long a process may take from the end of its sockets to its own.
const END: Duration = Duration::from_secs(5);

/// A broker that takes a state over.
pub(crate) trait Target {
    /// Does what takes long, without a visible act.
    fn prepare(&mut self) -> Result<(), String>;

    /// Restores the state, without a visible act.
    fn restore(&mut self, document: Document, imports: Imports) -> Result<(), String>;
}

/// How a handover ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// This broker goes on with the state.
    Run {
        /// The predecessor's release.
        from: String,
    },
    /// The predecessor has ended without handing over its state.
    StartFresh,
    /// The predecessor goes on, for this reason.
    Exit(String),
    /// It was a dry run, and everything went well.
    DryRun,
}

/// The successor.
#[derive(Debug)]
pub(crate) struct Joining {
    machine: Successor,
    channel: Channel,
    times: Times,
    deadline: Instant,
    todo: VecDeque<Action>,
    descriptors: Vec<OwnedFd>,
    document: Option<OwnedFd>,
}

impl Joining {
    pub(crate) fn new(channel: Channel, known: Known, release: &str, dry_run: bool) -> Self {
        let machine = Successor::new(known, dry_run);
        let todo = machine.start(release).into();
        Self {
            machine,
            channel,
            times: Times::default(),
            deadline: Instant::now() + ANSWER,
            todo,
            descriptors: Vec::new(),
            document: None,
        }
    }

    /// Takes the state over. On [`Outcome::Run`] the target has it and may act.
    pub(crate) fn run(mut self, target: &mut dyn Target) -> Outcome {
        loop {
            let Some(action) = self.todo.pop_front() else {
                let event = self.next_event();
                self.handle(event);
                continue;
            };
            match action {
                Action::Send(message) => {
                    let Message::Failed { reason } = &message else {
                        self.send_next(&message);
                        continue;
                    };
                    // The predecessor may end this process as soon as it knows.
                    tracing::error!("cannot take over: {reason}");
                    self.deadline = Instant::now() + ANSWER;
                    self.send_next(&message);
                }
                Action::Prepare => {
                    let prepared = reach(Step::WelcomeReceived);
                    let prepared = prepared.and_then(|()| target.prepare());
                    // The predecessor has other things to do before it begins.
                    self.deadline = Instant::now() + self.times.prepare;
                    self.handle(match prepared.and_then(|()| reach(Step::Prepared)) {
                        Ok(()) => Event::Prepared,
                        Err(reason) => Event::PrepareFailed(reason),
                    });
                }
                Action::Restore => {
                    let restored = reach(Step::Received);
                    let restored = restored.and_then(|()| self.restore(target));
                    self.handle(match restored.and_then(|()| reach(Step::Restored)) {
                        Ok(()) => Event::Restored,
                        Err(reason) => Event::RestoreFailed(reason),
                    });
                }
                Action::Commit => {
                    let deadline = Instant::now() + ANSWER;
                    let sent = self.channel.send(&Message::Started, &[], deadline);
                    self.handle(match sent {
                        Ok(()) => Event::Committed,
                        Err(_) => Event::Closed,
                    });
                }
                Action::CheckPredecessor { wait } => self.check_predecessor(wait),
                Action::Run => {
                    // Nothing can be done about an error any more.
                    let _ = reach(Step::Started);
                    let from = self.machine.predecessor().unwrap_or_default();
                    return Outcome::Run { from: from.into() };
                }
                Action::StartFresh => return Outcome::StartFresh,
                Action::Exit(reason) => return Outcome::Exit(reason),
                Action::EndDryRun => return Outcome::DryRun,
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = self.machine.handle(event);
        self.todo.extend(actions);
    }

    fn send_next(&mut self, message: &Message) {
        if self.channel.send(message, &[], self.deadline).is_err() {
            self.handle(Event::Closed);
        }
    }

    fn next_event(&mut self) -> Event {
        loop {
            match self.channel.recv(self.deadline) {
                Arrived::Message(message, descriptors) => {
                    if let Some(event) = self.received(message, descriptors) {
                        return event;
                    }
                }
                Arrived::Nonsense(what) => return Event::Nonsense(what),
                Arrived::Closed => return Event::Closed,
                Arrived::Expired => {
                    return Event::Expired("the running broker takes too long".into());
                }
            }
        }
    }

    /// Keeps the state that arrives until it is complete. `None` if only that has happened.
    fn received(&mut self, message: Message, mut descriptors: Vec<OwnedFd>) -> Option<Event> {
        let nonsense = |what: &str| Some(Event::Nonsense(what.into()));
        match message {
            Message::Begin => {
                self.deadline = Instant::now() + ANSWER;
                Some(match reach(Step::Receiving) {
                    Ok(()) => Event::Received(Message::Begin),
                    Err(reason) => Event::RestoreFailed(reason),
                })
            }
            Message::Descriptors { first, count } => {
                let known = self.descriptors.len();
                let is_next = usize::try_from(first) == Ok(known)
                    && usize::try_from(count) == Ok(descriptors.len())
                    && known + descriptors.len() <= MAX_DESCRIPTORS as usize;
                if !is_next {
                    return nonsense("descriptors are missing");
                }
                self.descriptors.append(&mut descriptors);
                None
            }
            Message::Document => match (descriptors.pop(), descriptors.is_empty()) {
                (Some(document), true) if self.document.is_none() => {
                    self.document = Some(document);
                    None
                }
                _ => nonsense("the state is missing, or there are two"),
            },
            Message::End { descriptors, .. }
                if usize::try_from(descriptors) != Ok(self.descriptors.len()) =>
            {
                nonsense("descriptors are missing")
            }
            other => Some(Event::Received(other)),
        }
    }

    fn restore(&mut self, target: &mut dyn Target) -> Result<(), String> {
        let document = self.document.take().ok_or("the state is missing")?;
        let descriptors = std::mem::take(&mut self.descriptors);
        let read = Document::read(document, descriptors);
        let (document, imports) = read.map_err(|error| error.to_string())?;
        target.restore(document, imports)
    }

    /// Finds out whether the predecessor has ended, and receives what it has sent. With `wait` that takes until it has
    /// ended, or has said that it goes on.
    fn check_predecessor(&mut self, wait: bool) {
        let deadline = Instant::now() + if wait { END } else { Duration::ZERO };
        let mut goes_on = false;
        let has_ended = loop {
            // Whether it has ended before what it sent is received: after that nothing can arrive.
            let has_ended = self.channel.wait_for_end(Instant::now());
            let is_open = loop {
                match self.channel.recv(Instant::now()) {
                    Arrived::Message(message, _) => {
                        goes_on |= matches!(message, Message::Abort { .. });
                        self.handle(Event::Received(message));
                    }
                    Arrived::Nonsense(_) => {}
                    Arrived::Closed => break false,
                    Arrived::Expired => break true,
                }
            };
            if has_ended || goes_on || Instant::now() >= deadline {
                break has_ended;
            }
            match is_open {
                true => self.channel.wait_for_more(deadline),
                false => drop(self.channel.wait_for_end(deadline)),
            }
        };
        self.handle(match has_ended {
            true => Event::PredecessorEnded,
            false => Event::PredecessorLives,
        });
    }
}
