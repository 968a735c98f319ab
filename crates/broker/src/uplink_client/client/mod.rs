//! The guest's side of the uplink as a state machine, without I/O and clock.
//!
//! Its owner reports what happens (`dial_failed`, [`connected`](Client::connected), [`frame`](Client::frame),
//! [`lost`](Client::lost), [`timeout`](Client::timeout)) and what the core wants ([`connect`](Client::connect),
//! [`add_child`](Client::add_child), …), each with the time. Then it does what [`next`](Client::next) returns,
//! until that is `None`, and calls [`timeout`](Client::timeout) at [`deadline`](Client::deadline).
//!
//! The uplink goes through these phases, and back to the first one whenever it is lost:
//!
//! 1. *waiting* for the next attempt (0.1 s, twice as long after each failure up to 5 s, with jitter);
//! 2. *dialing*: a stream is being connected;
//! 3. *greeting*: HELLO is sent;
//! 4. *open*: the host has sent WELCOME.
//!
//! A connect to the host that finds no uplink waits for one while there was none yet, or while it was lost
//! a moment ago. Later it goes without the uplink if the machine itself connects, and is refused if a
//! container does: without the host's word nobody may speak for it.
//!
//! The host is believed, but everything that it can make this side keep is bounded.

mod children;
mod connects;
mod down;
mod incoming;
#[cfg(test)]
mod random_tests;
#[cfg(test)]
mod tests;
mod up;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use hvsock_address::{ServiceId, SockAddrHv, VmId};
use hvsock_endpoint::Refused;
use hvsock_endpoint::uplink::{
    Announced, ChildId, ChildState, ExplainUp, GuestFrame, Hello, HostFrame, MAX_PENDING,
    MAX_SERVICES, PING_MS, Request, SILENCE_MS, Service, Welcome, What,
};
use hvsock_fabric::{ConnectionId, Refusal};

use super::event::{UplinkEvent, UplinkState, WhyDown};
use crate::backoff::Backoff;
use children::Children;
use connects::Upwards;
use incoming::Downwards;

/// The first and the longest wait between two attempts.
const RETRY: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(5)];
/// The longest wait for a stream, and for the answer to HELLO.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests wait for an uplink that was not there yet, or was lost.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
/// How long the reason of the host for a stream that failed is waited for.
const REASON_WAIT: Duration = Duration::from_millis(250);
/// The longest time that the host gives for the answer to a request of its own, and that a listener waits
/// for its stream.
const INCOMING_TIMEOUT: Duration = Duration::from_secs(30);
/// Marks the numbers of EXPLAIN, beside those of CONNECT.
const EXPLAIN: u64 = 1 << 63;

/// What the owner has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// Connect a stream to the host's broker. Then report `connected` or `dial_failed`.
    Dial,
    /// Send a frame on it.
    Send(GuestFrame),
    /// Close it, or stop connecting it. Nothing is to be reported.
    HangUp,
    /// Connect a stream to a port of the host, for a connection. Then report `stream_done` or `stream_failed`.
    Connect {
        id: ConnectionId,
        port: u32,
        deadline: Instant,
    },
    /// Stop connecting that stream. Nothing is to be reported.
    Abort(ConnectionId),
    /// Tell the core that a connect has failed.
    Fail(ConnectionId, Refusal),
    /// Listen for the stream of a request, and report `listening`.
    Listen { request: Request },
    /// Stop listening for it.
    StopListening(Request),
    /// Tell the core.
    Tell(UplinkEvent),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Dialing { until: Instant },
    Greeting { until: Instant },
    Open,
}

/// The guest's side of the uplink.
#[derive(Debug)]
pub(super) struct Client {
    instance: [u8; 16],
    random: u64,
    phase: Phase,
    retry: Backoff,
    /// Until when requests wait for the uplink, while it is not open.
    settles: Option<Instant>,
    down: Option<WhyDown>,
    /// Since when it is open, or was open last.
    open_since: Option<Instant>,
    /// The host's id.
    host: VmId,
    /// When something has arrived last, and the next PING is due.
    last_received: Instant,
    next_ping: Instant,
    children: Children,
    upwards: Upwards,
    downwards: Downwards,
    /// The services that the host has told of, and whether these were all.
    services: BTreeMap<ServiceId, Service>,
    known: BTreeSet<ServiceId>,
    listed: bool,
    /// Services beyond the limit were ignored.
    ignored: bool,
    explaining: BTreeSet<u64>,
    outputs: VecDeque<Output>,
}

impl Client {
    /// A client without an uplink. `instance` is a random number of this run, `random` the seed of the jitter.
    pub(super) fn new(instance: [u8; 16], random: u64, now: Instant) -> Self {
        Self {
            instance,
            random: random | 1,
            phase: Phase::Waiting,
            retry: Backoff::new(RETRY),
            settles: Some(now + SETTLE),
            down: None,
            open_since: None,
            host: VmId::PARENT,
            last_received: now,
            next_ping: now,
            children: Children::default(),
            upwards: Upwards::default(),
            downwards: Downwards::default(),
            services: BTreeMap::new(),
            known: BTreeSet::new(),
            listed: false,
            ignored: false,
            explaining: BTreeSet::new(),
            outputs: VecDeque::new(),
        }
    }

    /// What the owner has to do next.
    pub(super) fn next(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`timeout`](Self::timeout) has something to do.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let silence = self.last_received + millis(SILENCE_MS);
        let of_phase = match self.phase {
            Phase::Waiting => self.retry.at(),
            Phase::Dialing { until } | Phase::Greeting { until } => Some(until),
            Phase::Open => Some(silence.min(self.next_ping)),
        };
        let settles = self.settles.filter(|_| self.upwards.has_waiting());
        let all = [
            of_phase,
            settles,
            self.upwards.next_deadline(),
            self.downwards.next_deadline(),
        ];
        all.into_iter().flatten().min()
    }

    /// Does what is due.
    pub(super) fn timeout(&mut self, now: Instant) {
        match self.phase {
            Phase::Waiting if self.retry.is_due(now) => {
                self.phase = Phase::Dialing {
                    until: now + DIAL_TIMEOUT,
                };
                self.outputs.push_back(Output::Dial);
            }
            Phase::Dialing { until } | Phase::Greeting { until } if until <= now => {
                let what = "the host did not answer in time";
                self.hang_up(now, WhyDown::Failed(what.into()));
            }
            Phase::Open if self.last_received + millis(SILENCE_MS) <= now => {
                let what = "the host's broker has been silent for too long";
                self.hang_up(now, WhyDown::Failed(what.into()));
            }
            Phase::Open if self.next_ping <= now => {
                self.next_ping = now + millis(PING_MS);
                self.send(GuestFrame::Ping);
            }
            _ => {}
        }
        while let Some((id, upward)) = self.upwards.take_expired(now) {
            let refusal = Upwards::reason(&upward);
            self.gave_up(id, &upward);
            self.outputs.push_back(Output::Fail(id, refusal));
        }
        while let Some((request, downward)) = self.downwards.take_expired(now) {
            self.gone(request, downward, &Refusal::TimedOut);
        }
        if self.settles.is_some_and(|at| at <= now) {
            self.settles = None;
        }
        self.proceed(now);
    }

    /// No stream could be connected.
    pub(super) fn dial_failed(&mut self, now: Instant, why: WhyDown) {
        if matches!(self.phase, Phase::Dialing { .. }) {
            // Nothing was lost that would soon be back.
            if self.open_since.is_none() {
                self.settles = None;
            }
            self.wait(now, why);
        }
    }

    /// The stream is connected.
    pub(super) fn connected(&mut self, now: Instant) {
        if let Phase::Dialing { .. } = self.phase {
            self.phase = Phase::Greeting {
                until: now + DIAL_TIMEOUT,
            };
            self.last_received = now;
            let instance = self.instance;
            let hello = Hello {
                features: 0,
                instance,
            };
            self.send(GuestFrame::Hello(hello));
        }
    }

    /// The stream has ended.
    pub(super) fn lost(&mut self, now: Instant, why: WhyDown) {
        if matches!(self.phase, Phase::Greeting { .. } | Phase::Open) {
            self.wait(now, why);
        }
    }

    /// Gives the stream up, for a reason of the owner's.
    pub(super) fn give_up(&mut self, now: Instant, why: WhyDown) {
        self.hang_up(now, why);
    }

    /// A frame has arrived.
    pub(super) fn frame(&mut self, now: Instant, frame: HostFrame) {
        self.last_received = now;
        self.next_ping = now + millis(PING_MS);
        match (self.phase, frame) {
            (Phase::Greeting { .. }, HostFrame::Welcome(welcome)) => self.opened(now, welcome),
            // The answer to HELLO, or why the host ends the uplink.
            (Phase::Greeting { .. } | Phase::Open, HostFrame::Refused(reason)) => {
                let refusal = Refusal::from_wire(reason.code, &reason.detail);
                self.hang_up(now, WhyDown::Refused(refusal.to_string()));
            }
            (Phase::Greeting { .. } | Phase::Open, HostFrame::Ping) => self.send(GuestFrame::Pong),
            (Phase::Greeting { .. } | Phase::Open, HostFrame::Pong) => {}
            (Phase::Open, frame) => self.open_frame(now, frame),
            // Of a stream that has been given up.
            (Phase::Waiting | Phase::Dialing { .. }, _) => {}
            (Phase::Greeting { .. }, _) => self.violation(now, "a frame before WELCOME"),
        }
        self.proceed(now);
    }

    /// Whether the uplink is open.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether what is not known yet may be known soon: the uplink is open, or requests wait for it.
    pub(super) fn may_learn(&self) -> bool {
        self.is_open() || self.settles.is_some()
    }

    /// Announces a container.
    pub(super) fn add_child(&mut self, id: VmId, name: String, state: ChildState) {
        match self.children.add(id, name, state) {
            Ok(number) => self.announce(number),
            Err(children::Full) => {
                let why = "the host accepts no more containers of one virtual machine".to_owned();
                self.tell(UplinkEvent::Announced(id, Err(why)));
            }
        }
    }

    /// Tells the host a container's state.
    pub(super) fn set_child_state(&mut self, id: VmId, state: ChildState) {
        if let Some(child) = self.children.set_state(id, state)
            && self.is_open()
        {
            self.send(GuestFrame::ChildState { child, state });
        }
    }

    /// Withdraws a container.
    pub(super) fn remove_child(&mut self, id: VmId) {
        for request in self.downwards.of_child(id) {
            if let Some(downward) = self.downwards.remove(request) {
                self.gone(request, downward, &Refusal::NotReachable);
            }
        }
        if let Some((child, announced)) = self.children.remove(id)
            && announced
            && self.is_open()
        {
            self.send(GuestFrame::Withdraw { child });
        }
    }

    /// Asks the host to send all that it has changed. Returns `false` without an uplink.
    pub(super) fn sync(&mut self, number: u64) -> bool {
        if self.is_open() {
            self.send(GuestFrame::Sync { number });
        }
        self.is_open()
    }

    /// Asks what the host would say. Returns `false` without an uplink, and if too many ask.
    pub(super) fn explain(
        &mut self,
        number: u64,
        child: Option<VmId>,
        what: What,
        address: SockAddrHv,
    ) -> bool {
        let Some(child) = self.number(child) else {
            return false;
        };
        if !self.is_open() || self.explaining.len() >= MAX_PENDING {
            return false;
        }
        self.explaining.insert(number);
        self.send(GuestFrame::Explain(ExplainUp {
            request: Request(number | EXPLAIN),
            child,
            what,
            address,
        }));
        true
    }

    /// Nobody waits for an explanation any more.
    pub(super) fn explain_gone(&mut self, number: u64) {
        if self.explaining.remove(&number) && self.is_open() {
            let request = Request(number | EXPLAIN);
            self.send(GuestFrame::Cancel { request });
        }
    }

    /// Answers the host's EXPLAIN.
    pub(super) fn explained(&mut self, request: Request, explanation: Refused) {
        if self.is_open() {
            self.send(GuestFrame::Explained {
                request,
                explanation,
            });
        }
    }

    fn open_frame(&mut self, now: Instant, frame: HostFrame) {
        match frame {
            HostFrame::Service(service) => self.service(service),
            HostFrame::ServiceGone { service } => {
                self.services.remove(&service);
                if self.known.remove(&service) && self.listed {
                    self.tell(UplinkEvent::ServiceGone(service));
                }
            }
            HostFrame::ServicesEnd if !self.listed => {
                self.listed = true;
                let services = std::mem::take(&mut self.services);
                self.tell(UplinkEvent::Services(services.into_values().collect()));
            }
            HostFrame::Announced(announced) => self.announced(announced),
            HostFrame::ConnectPort { request, port } => self.connect_port(request, port),
            HostFrame::ConnectRefused { request, reason } => self.connect_refused(request, &reason),
            HostFrame::Incoming(incoming) => self.incoming(now, incoming),
            HostFrame::Cancel { request } => {
                if self
                    .downwards
                    .remove(request)
                    .is_some_and(|one| one.accepted)
                {
                    self.outputs.push_back(Output::StopListening(request));
                }
            }
            HostFrame::Synced { number } => self.tell(UplinkEvent::Synced(number)),
            HostFrame::Explain(incoming) => self.asks_to_explain(incoming),
            HostFrame::Explained {
                request: Request(number),
                explanation,
            } => {
                // One without the mark is no number of an EXPLAIN of ours.
                let number = number ^ EXPLAIN;
                if self.explaining.remove(&number) {
                    self.tell(UplinkEvent::Explained(number, explanation));
                }
            }
            // `frame` has handled a refusal.
            HostFrame::Found { .. } | HostFrame::Refused(_) => {
                self.violation(now, "an answer to a look-up");
            }
            HostFrame::Welcome(_) => self.violation(now, "a second WELCOME"),
            HostFrame::ServicesEnd => self.violation(now, "a second SERVICES_END"),
            HostFrame::Ping | HostFrame::Pong => {}
        }
    }

    fn opened(&mut self, now: Instant, welcome: Welcome) {
        self.phase = Phase::Open;
        (self.open_since, self.host) = (Some(now), welcome.host);
        self.services.clear();
        self.known.clear();
        (self.listed, self.ignored, self.down) = (false, false, None);
        self.tell(UplinkEvent::State(UplinkState::Open(welcome)));
        for number in self.children.numbers() {
            self.announce(number);
        }
    }

    fn service(&mut self, service: Service) {
        if !self.known.contains(&service.service) && self.known.len() >= MAX_SERVICES {
            if !std::mem::replace(&mut self.ignored, true) {
                tracing::warn!(
                    "the host has more than {MAX_SERVICES} services; the rest is ignored"
                );
            }
            return;
        }
        self.known.insert(service.service);
        match self.listed {
            true => self.tell(UplinkEvent::Service(service)),
            false => {
                self.services.insert(service.service, service);
            }
        }
    }

    fn announce(&mut self, number: ChildId) {
        if self.is_open()
            && let Some(announce) = self.children.announce(number)
        {
            self.send(GuestFrame::Announce(announce));
        }
    }

    fn announced(&mut self, announced: Announced) {
        let Announced { child, answer, .. } = announced;
        // One that was withdrawn meanwhile has no id.
        let Some(id) = self.children.id(child) else {
            return;
        };
        let result = match answer.code {
            0 => Ok(answer.detail),
            code => {
                self.children.refused(child);
                let refusal = Refusal::from_wire(code, &answer.detail);
                Err(match answer.detail.is_empty() {
                    true => refusal.to_string(),
                    false => answer.detail,
                })
            }
        };
        self.tell(UplinkEvent::Announced(id, result));
    }

    /// A container, or the machine itself, by its number. `None` if it is neither.
    fn child(&self, number: ChildId) -> Option<Option<VmId>> {
        match number {
            ChildId::MACHINE => Some(None),
            number => self.children.id(number).map(Some),
        }
    }

    /// The number of a container, or of the machine itself.
    fn number(&self, child: Option<VmId>) -> Option<ChildId> {
        match child {
            None => Some(ChildId::MACHINE),
            Some(id) => self.children.number(id),
        }
    }

    fn send(&mut self, frame: GuestFrame) {
        self.outputs.push_back(Output::Send(frame));
    }

    fn tell(&mut self, event: UplinkEvent) {
        self.outputs.push_back(Output::Tell(event));
    }

    /// Ends the uplink because the host has broken the protocol.
    fn violation(&mut self, now: Instant, what: &str) {
        let why = format!("the host's broker has broken the uplink protocol: {what}");
        self.hang_up(now, WhyDown::Failed(why));
    }

    fn hang_up(&mut self, now: Instant, why: WhyDown) {
        if self.phase != Phase::Waiting {
            self.outputs.push_back(Output::HangUp);
            self.wait(now, why);
        }
    }

    /// There is no uplink: waits for the next attempt.
    fn wait(&mut self, now: Instant, why: WhyDown) {
        let was_open = self.is_open();
        self.phase = Phase::Waiting;
        if was_open {
            self.settles = Some(now + SETTLE);
            self.children.forget_announced();
            for (request, downward) in self.downwards.take_all() {
                if downward.accepted {
                    self.outputs.push_back(Output::StopListening(request));
                }
            }
            // What has no answer is asked again, or goes without.
            for id in self.upwards.asked() {
                self.upwards.waits_again(id);
            }
            self.upwards.forget_counted();
            self.explaining.clear();
        }
        // One that is lost at once again and again is not made again at once.
        let held = self.open_since.filter(|_| was_open);
        if held.is_some_and(|since| now.saturating_duration_since(since) >= RETRY[1]) {
            self.retry.reset();
        }
        let jitter = self.jitter();
        self.retry.failed(now);
        if let Some(at) = self.retry.at() {
            let wait = at.saturating_duration_since(now);
            self.retry.no_earlier_than(at + wait.mul_f64(jitter));
        }
        if self.down.as_ref() != Some(&why) {
            self.tell(UplinkEvent::State(UplinkState::Down(why.clone())));
        }
        self.down = Some(why);
        self.proceed(now);
    }

    /// A number from 0 to 0.5, by xorshift.
    fn jitter(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % 1000) as f64 / 2000.0
    }
}

fn millis(ms: u32) -> Duration {
    Duration::from_millis(ms.into())
}
