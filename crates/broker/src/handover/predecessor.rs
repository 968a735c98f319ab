//! The predecessor's side of a handover, without I/O: events in, actions out.

use super::protocol::{Known, Message};

/// The predecessor's side.
#[derive(Debug)]
pub(crate) struct Predecessor {
    known: Known,
    release: String,
    state: State,
    dry_run: bool,
    /// The successor may have a part of the state.
    has_state: bool,
    /// The successor has said that it ends.
    is_ending: bool,
    /// The successor has been sent all it needs to go on.
    is_complete: bool,
    successor: Option<SuccessorRelease>,
}

/// What the successor has said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SuccessorRelease {
    pub(crate) release: String,
    /// The version of the document that it is sent.
    pub(crate) document: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    AwaitHello,
    AwaitPrepared,
    /// Frozen; the state is being written and sent.
    Exporting,
    /// Everything is sent.
    AwaitStarted,
    /// Receives what had been sent before it stopped receiving.
    Draining {
        reason: GivenUp,
    },
    /// Waits for the successor's end.
    Killing {
        reason: GivenUp,
    },
    Over,
}

/// Why the predecessor goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GivenUp {
    /// It was a dry run, and all went well.
    DryRun,
    /// Because of this.
    Failed(String),
}

/// How long a successor may take to end by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Grace {
    /// For ever: it has nothing of the broker.
    Endless,
    /// The broker waits for it, but it is about to end.
    Short,
    /// It has descriptors of connections, and might do anything.
    None,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message arrived.
    Received(Message),
    /// Something else arrived.
    Nonsense(String),
    /// The successor has closed its socket, or a message cannot be sent to it.
    Closed,
    /// The deadline of the state has passed.
    Expired(String),
    /// The broker is frozen, and its state sent.
    Exported { descriptors: u32, bytes: u64 },
    /// The broker cannot be frozen, or its state not be sent.
    ExportFailed(String),
    /// Nothing is left to receive, after [`Action::StopReceiving`].
    Drained,
    /// The successor has ended, or does not within the time for that, or need not.
    SuccessorGone,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a message. If that fails: [`Event::Closed`].
    Send(Message),
    /// Freeze the broker and send its state. Answered by [`Event::Exported`] or [`Event::ExportFailed`].
    Export,
    /// Shut the socket down for receiving, and receive what there is, then [`Event::Drained`].
    StopReceiving,
    /// Send a message if that is possible at once. End the successor after a while, then [`Event::SuccessorGone`].
    Kill { abort: Message, grace: Grace },
    /// Thaw what is frozen: this broker goes on. The last action.
    Resume(GivenUp),
    /// The successor goes on: leave without another act. The last action.
    Leave,
}

impl Predecessor {
    pub(crate) fn new(known: Known, release: &str) -> Self {
        Self {
            known,
            release: release.to_owned(),
            state: State::AwaitHello,
            dry_run: false,
            has_state: false,
            is_ending: false,
            is_complete: false,
            successor: None,
        }
    }

    /// What the successor has said of itself.
    pub(crate) fn successor(&self) -> Option<&SuccessorRelease> {
        self.successor.as_ref()
    }

    /// Handles an event. The actions are done in their order.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        match (self.state.clone(), event) {
            (State::Over, _) => Vec::new(),
            (State::Draining { .. }, Event::Received(Message::Started)) if self.is_complete => {
                self.leave()
            }
            // Its own reason says more than that its socket is closed.
            (State::Draining { .. }, Event::Received(Message::Failed { reason })) => {
                self.is_ending = true;
                let reason = GivenUp::Failed(reason);
                self.state = State::Draining { reason };
                Vec::new()
            }
            (State::Draining { reason }, Event::Drained) => {
                let said = match &reason {
                    GivenUp::DryRun => "the dry run is over",
                    GivenUp::Failed(reason) => reason,
                };
                let abort = Message::abort(said);
                let grace = match (self.has_state, self.is_ending) {
                    (false, _) => Grace::Endless,
                    (true, true) => Grace::Short,
                    (true, false) => Grace::None,
                };
                self.state = State::Killing { reason };
                vec![Action::Kill { abort, grace }]
            }
            (State::Draining { .. }, _) => Vec::new(),
            (State::Killing { reason }, Event::SuccessorGone) => {
                self.state = State::Over;
                vec![Action::Resume(reason)]
            }
            (State::Killing { .. }, _) => Vec::new(),
            (_, Event::Received(Message::Failed { reason })) => {
                self.is_ending = true;
                self.give_up(reason)
            }
            (_, Event::Closed) => self.give_up("the new broker has ended".into()),
            (_, Event::Expired(reason) | Event::Nonsense(reason) | Event::ExportFailed(reason)) => {
                self.give_up(reason)
            }
            (
                State::AwaitHello,
                Event::Received(Message::Hello {
                    protocol,
                    document,
                    release,
                    dry_run,
                }),
            ) => {
                let own = self.known;
                let common = |what: &str, own: super::protocol::Versions, other| {
                    own.common(other).ok_or_else(|| {
                        format!(
                            "the new broker, hvsock {release}, knows {other} of the {what}; \
                             this one, hvsock {}, {own}",
                            self.release
                        )
                    })
                };
                let agreed = common("protocol of upgrades", own.protocol, protocol)
                    .and_then(|one| Ok((one, common("state", own.document, document)?)));
                match agreed {
                    Ok((protocol, document)) => {
                        self.dry_run = dry_run;
                        self.successor = Some(SuccessorRelease { release, document });
                        self.state = State::AwaitPrepared;
                        vec![Action::Send(Message::Welcome {
                            protocol,
                            document,
                            release: self.release.clone(),
                        })]
                    }
                    Err(reason) => self.give_up(reason),
                }
            }
            (State::AwaitPrepared, Event::Received(Message::Prepared)) => {
                self.state = State::Exporting;
                self.has_state = true;
                vec![Action::Export]
            }
            (State::Exporting, Event::Exported { descriptors, bytes }) => {
                self.state = State::AwaitStarted;
                self.is_complete = true;
                vec![Action::Send(Message::End { descriptors, bytes })]
            }
            (State::AwaitStarted, Event::Received(Message::Started)) if !self.dry_run => {
                self.leave()
            }
            (State::AwaitStarted, Event::Received(Message::Restored)) if self.dry_run => {
                self.is_ending = true;
                self.stop(GivenUp::DryRun)
            }
            (_, Event::Received(message)) => {
                let name = message.name();
                self.give_up(format!("the new broker said \"{name}\" out of turn"))
            }
            (_, Event::Exported { .. } | Event::Drained | Event::SuccessorGone) => Vec::new(),
        }
    }

    fn leave(&mut self) -> Vec<Action> {
        self.state = State::Over;
        vec![Action::Leave]
    }

    fn give_up(&mut self, reason: String) -> Vec<Action> {
        self.stop(GivenUp::Failed(reason))
    }

    fn stop(&mut self, reason: GivenUp) -> Vec<Action> {
        self.state = State::Draining { reason };
        vec![Action::StopReceiving]
    }
}
