//! The predecessor's side with its I/O: one successor from its connect to the end of the handover.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hvsock_sys::pidfd::ProcessId;

use super::bundle::Exports;
use super::channel::{Arrived, Channel};
use super::document::Document;
use super::error::HandoverError;
use super::predecessor::{Action, Event, GivenUp, Grace, Predecessor, SuccessorRelease};
use super::protocol::{Known, Message};
use super::steps::{Step, reach};

/// How long a successor may take to say what it is.
const HELLO: Duration = Duration::from_secs(10);
/// How long a successor with the state may take to end by itself, while everything stands still.
const END: Duration = Duration::from_millis(100);
/// How long to wait for the end of one that was killed.
const KILLED: Duration = Duration::from_secs(2);

/// The times that a handover may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Times {
    /// From the first message until the successor is prepared.
    pub(crate) prepare: Duration,
    /// From the freeze until the successor has started.
    pub(crate) standstill: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            prepare: Duration::from_secs(60),
            standstill: Duration::from_secs(5),
        }
    }
}

/// A broker whose state can be handed over.
pub(crate) trait Source {
    /// Stops everything, so that nothing changes the state any more.
    fn freeze(&mut self, deadline: Instant) -> Result<(), HandoverError>;

    /// The state of the frozen broker, in this version of the document.
    fn export(&mut self, exports: &mut Exports, version: u32) -> Result<Document, HandoverError>;
}

/// Where the state of a broker goes.
pub(crate) trait Destination: Send {
    /// Freezes the broker, and gives its state away. Returns whose it is then.
    fn hand_over(self: Box<Self>, source: &mut dyn Source) -> (Outcome, Figures);
}

/// A successor that is prepared.
#[derive(Debug)]
pub(crate) struct Serving {
    machine: Predecessor,
    channel: Channel,
    times: Times,
    deadline: Instant,
    todo: VecDeque<Action>,
}

/// How a handover ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The successor runs; this process only has to end.
    Left,
    /// This broker goes on: what is frozen has to be thawed.
    Resumed(GivenUp),
}

/// The figures of a handover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) release: String,
    /// The successor's process.
    pub(crate) pid: Option<u32>,
    /// From the freeze until the successor had started, or this broker went on.
    pub(crate) standstill: Duration,
    pub(crate) descriptors: u32,
    /// Of the document.
    pub(crate) bytes: u64,
}

impl Destination for Serving {
    fn hand_over(self: Box<Self>, source: &mut dyn Source) -> (Outcome, Figures) {
        self.hand_over_state(source)
    }
}

impl Serving {
    /// Serves a successor until it is prepared. The error is why it cannot go on.
    pub(crate) fn prepare(
        channel: Channel,
        known: Known,
        release: &str,
        times: Times,
    ) -> Result<Self, GivenUp> {
        let mut serving = Self {
            machine: Predecessor::new(known, release),
            channel,
            times,
            deadline: Instant::now() + HELLO,
            todo: VecDeque::new(),
        };
        if let Err(reason) = reach(Step::Connected) {
            serving.handle(Event::ExportFailed(reason));
        }
        match serving.run(None) {
            None => Ok(serving),
            Some(Outcome::Resumed(reason)) => Err(reason),
            Some(Outcome::Left) => Err(GivenUp::Failed("the successor left".into())),
        }
    }

    /// What the successor has said of itself.
    pub(crate) fn successor(&self) -> Option<&SuccessorRelease> {
        self.machine.successor()
    }

    /// The successor's process.
    pub(crate) fn process(&self) -> Option<ProcessId> {
        self.channel.peer().id().ok().flatten()
    }

    /// Hands the state over, and sees the handover to its end.
    fn hand_over_state(mut self, source: &mut dyn Source) -> (Outcome, Figures) {
        let start = Instant::now();
        self.deadline = start + self.times.standstill;
        let mut figures = Figures {
            release: self
                .successor()
                .map(|one| one.release.clone())
                .unwrap_or_default(),
            pid: self.process().map(|process| process.pid),
            ..Figures::default()
        };
        let outcome = self.run(Some((source, &mut figures)));
        figures.standstill = start.elapsed();
        // Without a source there is another outcome only before.
        let none = || Outcome::Resumed(GivenUp::Failed("nothing was handed over".into()));
        (outcome.unwrap_or_else(none), figures)
    }

    /// Acts until the end; without a source until the state is to be exported.
    fn run(&mut self, mut source: Option<(&mut dyn Source, &mut Figures)>) -> Option<Outcome> {
        loop {
            let Some(action) = self.todo.pop_front() else {
                let event = self.next_event();
                self.handle(event);
                continue;
            };
            match action {
                Action::Send(message) => {
                    if self.send(&message).is_err() {
                        self.handle(Event::Closed);
                        continue;
                    }
                    let step = match message {
                        Message::Welcome { .. } => {
                            self.deadline = Instant::now() + self.times.prepare;
                            reach(Step::Welcomed)
                        }
                        Message::End { .. } => reach(Step::EndSent),
                        _ => Ok(()),
                    };
                    if let Err(reason) = step {
                        self.handle(Event::ExportFailed(reason));
                    }
                }
                Action::Export => match &mut source {
                    None => {
                        self.todo.push_front(Action::Export);
                        return None;
                    }
                    Some((source, figures)) => {
                        let event = match self.export(*source) {
                            Ok((descriptors, bytes)) => {
                                (figures.descriptors, figures.bytes) = (descriptors, bytes);
                                Event::Exported { descriptors, bytes }
                            }
                            Err(reason) => Event::ExportFailed(reason),
                        };
                        self.handle(event);
                    }
                },
                Action::StopReceiving => {
                    self.todo.clear();
                    self.channel.stop_receiving();
                    self.drain();
                    self.handle(Event::Drained);
                }
                Action::Kill { abort, grace } => {
                    // A successor that has not received what it was sent has no use for it.
                    let _ = self.channel.send(&abort, &[], Instant::now());
                    self.end_successor(grace);
                    self.handle(Event::SuccessorGone);
                }
                Action::Resume(reason) => return Some(Outcome::Resumed(reason)),
                Action::Leave => {
                    // Nothing can be done about an error any more.
                    let _ = reach(Step::StartedReceived);
                    return Some(Outcome::Left);
                }
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let actions = self.machine.handle(event);
        self.todo.extend(actions);
    }

    fn next_event(&mut self) -> Event {
        match self.channel.recv(self.deadline) {
            Arrived::Message(message, _) => {
                if message == Message::Prepared
                    && let Err(reason) = reach(Step::PreparedReceived)
                {
                    return Event::ExportFailed(reason);
                }
                Event::Received(message)
            }
            Arrived::Nonsense(what) => Event::Nonsense(what),
            Arrived::Closed => Event::Closed,
            Arrived::Expired => Event::Expired("the new broker takes too long".into()),
        }
    }

    fn drain(&mut self) {
        loop {
            match self.channel.recv(Instant::now()) {
                Arrived::Message(message, _) => self.handle(Event::Received(message)),
                Arrived::Nonsense(_) => {}
                Arrived::Closed | Arrived::Expired => return,
            }
        }
    }

    fn send(&self, message: &Message) -> std::io::Result<()> {
        self.channel.send(message, &[], self.deadline)
    }

    /// Freezes the broker and sends its state. Returns the number of descriptors and the length of the document.
    fn export(&self, source: &mut dyn Source) -> Result<(u32, u64), String> {
        let text = |error: HandoverError| error.to_string();
        let sent = |what: &str| {
            let what = what.to_owned();
            move |error: std::io::Error| format!("cannot send {what} to the new broker: {error}")
        };
        source.freeze(self.deadline).map_err(text)?;
        reach(Step::Frozen)?;
        self.send(&Message::Begin).map_err(sent("a message"))?;
        let mut exports = Exports::new(self.channel.carrier(self.deadline));
        let version = self.successor().map_or(0, |one| one.document);
        let document = source.export(&mut exports, version).map_err(text)?;
        let (descriptors, blobs) = exports.finish().map_err(text)?;
        reach(Step::DescriptorsSent)?;
        let document = document.write(&blobs).map_err(text)?;
        let bytes = rustix::fs::fstat(&document).map_or(0, |stat| stat.st_size);
        let sending = self
            .channel
            .send(&Message::Document, &[document.as_fd()], self.deadline);
        sending.map_err(sent("the state"))?;
        reach(Step::DocumentSent)?;
        Ok((descriptors, u64::try_from(bytes).unwrap_or(0)))
    }

    fn end_successor(&self, grace: Grace) {
        let grace = match grace {
            Grace::Endless => return,
            Grace::Short => END,
            Grace::None => Duration::ZERO,
        };
        if self.channel.wait_for_end(Instant::now() + grace) {
            return;
        }
        // It may have ended meanwhile.
        let _ = self.channel.peer().kill();
        if !self.channel.wait_for_end(Instant::now() + KILLED) {
            tracing::warn!(
                "the process of the new broker does not end; its state is of no use to it"
            );
        }
    }
}
