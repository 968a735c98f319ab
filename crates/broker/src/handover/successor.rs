//! The successor's side of a handover, without I/O: events in, actions out.

use super::protocol::{Known, Message};

/// The successor's side.
#[derive(Debug)]
pub(crate) struct Successor {
    known: Known,
    dry_run: bool,
    is_dry_run_done: bool,
    state: State,
    predecessor: Option<String>,
    /// Everything is received and restored.
    is_complete: bool,
    /// The predecessor has said that it goes on.
    is_aborted: bool,
    reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitWelcome,
    Preparing,
    AwaitBegin,
    Receiving,
    Restoring,
    Committing,
    /// It has failed, or the dry run is done: the predecessor has the word.
    AwaitAbort,
    /// Looks whether the predecessor has ended.
    Checking,
    Over,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message arrived, other than [`Message::Descriptors`] and [`Message::Document`], which are kept.
    Received(Message),
    /// Something else arrived.
    Nonsense(String),
    /// The predecessor has closed its socket, or stopped receiving.
    Closed,
    /// The deadline of the state has passed.
    Expired(String),
    /// What takes long is done.
    Prepared,
    PrepareFailed(String),
    /// The state is restored.
    Restored,
    RestoreFailed(String),
    /// [`Message::Started`] is in the predecessor's queue.
    Committed,
    /// The predecessor has ended, and nothing that it sent is left to receive.
    PredecessorEnded,
    /// The predecessor has not ended.
    PredecessorLives,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send a message. If that fails: [`Event::Closed`].
    Send(Message),
    /// Prepare: [`Event::Prepared`] or [`Event::PrepareFailed`].
    Prepare,
    /// Restore what was received: [`Event::Restored`] or [`Event::RestoreFailed`].
    Restore,
    /// Send [`Message::Started`]: [`Event::Committed`] or [`Event::Closed`].
    Commit,
    /// Find out whether the predecessor has ended; with `wait`, since it has closed its socket, that takes a moment. Then
    /// receive what it has sent, and at last [`Event::PredecessorEnded`] or [`Event::PredecessorLives`].
    CheckPredecessor { wait: bool },
    /// This broker goes on. The last action.
    Run,
    /// The predecessor has ended without handing over: this broker starts as if there had been none. The last
    /// action.
    StartFresh,
    /// The predecessor goes on, for this reason. The last action.
    Exit(String),
    /// It was a dry run, and everything went well. The last action.
    EndDryRun,
}

impl Successor {
    pub(crate) fn new(known: Known, dry_run: bool) -> Self {
        Self {
            known,
            dry_run,
            is_dry_run_done: false,
            state: State::AwaitWelcome,
            predecessor: None,
            is_complete: false,
            is_aborted: false,
            reason: String::new(),
        }
    }

    /// The first action.
    pub(crate) fn start(&self, release: &str) -> Vec<Action> {
        vec![Action::Send(Message::Hello {
            protocol: self.known.protocol,
            document: self.known.document,
            release: release.to_owned(),
            dry_run: self.dry_run,
        })]
    }

    /// The release of the predecessor.
    pub(crate) fn predecessor(&self) -> Option<&str> {
        self.predecessor.as_deref()
    }

    /// Handles an event. The actions are done in their order.
    pub(crate) fn handle(&mut self, event: Event) -> Vec<Action> {
        match (self.state, event) {
            (State::Over, _) => Vec::new(),
            (State::Checking, Event::PredecessorEnded) => {
                self.state = State::Over;
                match self.is_complete && !self.is_aborted && !self.dry_run {
                    true => vec![Action::Run],
                    false => vec![Action::StartFresh],
                }
            }
            (State::Checking, Event::PredecessorLives) => self.exit(),
            (_, Event::Received(Message::Abort { reason })) => {
                self.is_aborted = true;
                if self.reason.is_empty() {
                    self.reason = reason;
                }
                match self.state {
                    State::Checking => Vec::new(),
                    _ => self.check(false),
                }
            }
            (State::Checking, _) => Vec::new(),
            (_, Event::Closed) => {
                if self.reason.is_empty() {
                    self.reason = "the running broker has given the upgrade up".into();
                }
                self.check(true)
            }
            (State::AwaitAbort, Event::Expired(_)) => self.check(false),
            (State::AwaitAbort, _) => Vec::new(),
            (
                State::AwaitWelcome,
                Event::Received(Message::Welcome {
                    protocol,
                    document,
                    release,
                }),
            ) => {
                let own = self.known;
                if !own.protocol.contains(protocol) || !own.document.contains(document) {
                    let reason = format!(
                        "hvsock {release} speaks version {protocol} of the protocol of upgrades and writes \
                         version {document} of the state; this release knows {} and {}",
                        own.protocol, own.document
                    );
                    return self.fail(reason);
                }
                self.predecessor = Some(release);
                self.state = State::Preparing;
                vec![Action::Prepare]
            }
            (State::Preparing, Event::Prepared) => {
                self.state = State::AwaitBegin;
                vec![Action::Send(Message::Prepared)]
            }
            (State::AwaitBegin, Event::Received(Message::Begin)) => {
                self.state = State::Receiving;
                Vec::new()
            }
            (State::Receiving, Event::Received(Message::End { .. })) => {
                self.state = State::Restoring;
                vec![Action::Restore]
            }
            (State::Restoring, Event::Restored) if self.dry_run => {
                self.state = State::AwaitAbort;
                self.is_dry_run_done = true;
                vec![Action::Send(Message::Restored)]
            }
            (State::Restoring, Event::Restored) => {
                self.is_complete = true;
                self.state = State::Committing;
                vec![Action::Commit]
            }
            (State::Committing, Event::Committed) => {
                self.state = State::Over;
                vec![Action::Run]
            }
            (
                _,
                Event::Expired(reason)
                | Event::Nonsense(reason)
                | Event::PrepareFailed(reason)
                | Event::RestoreFailed(reason),
            ) => self.fail(reason),
            (_, Event::Received(message)) => {
                let name = message.name();
                self.fail(format!("the running broker said \"{name}\" out of turn"))
            }
            (
                _,
                Event::Prepared
                | Event::Restored
                | Event::Committed
                | Event::PredecessorEnded
                | Event::PredecessorLives,
            ) => Vec::new(),
        }
    }

    /// Tells the predecessor, which has the word then.
    fn fail(&mut self, reason: String) -> Vec<Action> {
        self.state = State::AwaitAbort;
        let failed = Message::failed(&reason);
        self.reason = reason;
        vec![Action::Send(failed)]
    }

    fn check(&mut self, wait: bool) -> Vec<Action> {
        self.state = State::Checking;
        vec![Action::CheckPredecessor { wait }]
    }

    fn exit(&mut self) -> Vec<Action> {
        self.state = State::Over;
        match self.is_dry_run_done && self.is_aborted {
            true => vec![Action::EndDryRun],
            false => vec![Action::Exit(std::mem::take(&mut self.reason))],
        }
    }
}
