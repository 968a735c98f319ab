//! Keeping this machine's clock at the host's time.
//!
//! An exchange of a few probes ([`sample`]) says how far the clock is off, a pure function of that
//! and of what was before what to do about it ([`discipline`]), and the kernel does it. It is
//! measured at once when the agent has a connection to the host, so after the machine was paused;
//! when somebody sets the clock or the machine was asleep; and when the host asks for it.

mod discipline;
mod sample;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use hvsock::{Endpoint, VmId};
use hvsock_sys::clock;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::catalog::TIME;
use crate::link::{CallError, Pause, Target};
use crate::wire::heartbeat;
use crate::wire::time::time_client::TimeClient;
use crate::wire::time::{Probe, Stamp};
use discipline::{Correction, Discipline, Keeper};
use sample::{Offset, Sample, best};

/// Probes of one measurement.
const PROBES: usize = 8;

/// From one answer to the next probe.
const BETWEEN: Duration = Duration::from_millis(20);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a host may leave the connection without a sign of its own.
const DEAF: Duration = Duration::from_secs(10);

/// How often it is looked whether somebody has set the clock, and by how much it counts.
const LOOK: Duration = Duration::from_secs(1);
const JUMP: i64 = 100_000_000;

/// What is known of the clock, for those who tell of it, and the way to have it looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Known(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: Mutex<Option<Measured>>,
    wish: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    offset: Offset,
    at: Duration,
    keeper: Keeper,
}

impl Known {
    /// Has it measured now.
    pub(super) fn ask(&self) {
        self.0.wish.notify_one();
    }

    /// What was measured last, as a beat has it.
    pub(super) fn told(&self) -> Option<heartbeat::Clock> {
        let last = *self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last?;
        let age = boot_time().saturating_sub(last.at).as_millis();
        let mut clock = heartbeat::Clock {
            offset_ns: last.offset.ns,
            error_ns: last.offset.error_ns,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            ..heartbeat::Clock::default()
        };
        clock.set_keeper(match last.keeper {
            Keeper::Us => heartbeat::Keeper::Agent,
            Keeper::Other => heartbeat::Keeper::Other,
            Keeper::Host => heartbeat::Keeper::Host,
        });
        Some(clock)
    }

    fn set(&self, measured: Measured) {
        let last = self.0.last.lock();
        *last.unwrap_or_else(PoisonError::into_inner) = Some(measured);
    }
}

/// Keeps the clock until dropped.
pub(super) async fn run(endpoint: Endpoint, known: Known) {
    let rate = clock::kept().map_or(0, |kept| kept.rate_ppb);
    let mut keeping = Keeping {
        discipline: Discipline::new(rate),
        known,
        own: false,
        endpoint: endpoint.clone(),
        told: false,
    };
    let target = Target::new(endpoint, VmId::PARENT);
    let mut pause = Pause::default();
    loop {
        let mut measured = false;
        let Err(error) = keeping.connected(&target, &mut measured).await;
        tracing::debug!("the host does not tell the time: {error}");
        if measured {
            pause = Pause::default();
        }
        tokio::time::sleep(pause.next()).await;
    }
}

struct Keeping {
    discipline: Discipline,
    known: Known,
    /// The machine has a clock of its own; a container, which has a broker's endpoint, has its host's.
    own: bool,
    endpoint: Endpoint,
    /// That the clock may not be changed was said.
    told: bool,
}

impl Keeping {
    /// Keeps the clock over one connection until that ends.
    async fn connected(
        &mut self,
        target: &Target,
        measured: &mut bool,
    ) -> Result<Infallible, CallError> {
        let mut exchange = Exchange::open(target).await?;
        // Known for sure now: what leads to the host is there.
        self.own = self.endpoint.uses_vsock();
        // Why there was no connection before is not known; the machine may have been paused.
        self.discipline.disturbed();
        loop {
            let before = self.measure(&mut exchange).await?;
            if matches!(before, Correction::Step(_)) {
                // So that what is told is how the clock is now.
                self.measure(&mut exchange).await?;
            }
            *measured = true;
            tokio::select! {
                disturbed = self.wait() => if disturbed {
                    self.discipline.disturbed();
                },
                // The connection is what a pause of the machine breaks, and often all that shows it.
                end = exchange.end() => return Err(end),
            }
        }
    }

    /// Measures once, and does what is to be done about it.
    async fn measure(&mut self, exchange: &mut Exchange) -> Result<Correction, CallError> {
        let mut samples = Vec::with_capacity(PROBES);
        for _ in 0..PROBES {
            // Longer than a host makes one wait who does not leave it time.
            tokio::time::sleep(BETWEEN).await;
            samples.push(exchange.sample().await?);
        }
        let nonsense = || Status::internal("the host's time makes no sense");
        let offset = best(&samples).ok_or_else(nonsense)?;
        let keeper = match clock::kept() {
            _ if !self.own => Keeper::Host,
            Ok(kept) if kept.synchronized => Keeper::Other,
            _ => Keeper::Us,
        };
        let at = boot_time();
        let correction = self.discipline.decide(at, offset, keeper);
        tracing::debug!(
            "the clock is {} ns ahead, within {} ns: {correction:?}",
            offset.ns,
            offset.error_ns
        );
        let done = match correction {
            Correction::Leave => Ok(()),
            Correction::Step(ns) => clock::step(ns).inspect(|()| {
                tracing::info!("the clock was set by {:.3} s", ns as f64 / 1e9);
            }),
            Correction::Slew { ns, rate } => clock::set_rate(rate).and_then(|()| clock::slew(ns)),
        };
        if let Err(error) = done
            && !std::mem::replace(&mut self.told, true)
        {
            tracing::warn!("the clock cannot be kept at the host's time: {error}");
        }
        self.known.set(Measured { offset, at, keeper });
        Ok(correction)
    }

    /// Waits until it is time to measure again; whether somebody has set the clock meanwhile, or the
    /// machine was asleep, or the host asks.
    async fn wait(&self) -> bool {
        let until = boot_time() + self.discipline.pause();
        let mut before = Clocks::now();
        loop {
            let left = until.saturating_sub(boot_time());
            if left.is_zero() {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK)) => {}
                () = self.known.0.wish.notified() => return true,
            }
            let now = Clocks::now();
            if self.own && now.jumped_since(before) {
                return true;
            }
            before = now;
        }
    }
}

/// A call to the host that answers probe by probe.
struct Exchange {
    probes: mpsc::Sender<()>,
    stamps: Streaming<Stamp>,
}

impl Exchange {
    async fn open(target: &Target) -> Result<Self, CallError> {
        let channel = target.channel_with_pulse(&TIME, DEAF).await?;
        let (probes, wanted) = mpsc::channel(1);
        let probing = stream::unfold(wanted, async |mut wanted: mpsc::Receiver<()>| {
            wanted.recv().await?;
            // As late as can be.
            let origin = monotonic().to_ne_bytes();
            let origin = u64::from_ne_bytes(origin);
            Some((Probe { origin }, wanted))
        });
        let stamps = TimeClient::new(channel).exchange(probing).await?;
        Ok(Self {
            probes,
            stamps: stamps.into_inner(),
        })
    }

    /// Waits for the end of the call, between two samples.
    async fn end(&mut self) -> CallError {
        match self.stamps.message().await {
            Ok(Some(_)) => Status::internal("the host answers unasked").into(),
            Ok(None) => over().into(),
            Err(status) => status.into(),
        }
    }

    async fn sample(&mut self) -> Result<Sample, CallError> {
        self.probes.send(()).await.map_err(|_| over())?;
        let stamp = timeout(PATIENCE, self.stamps.message()).await;
        let (ended, received) = (monotonic(), real_time());
        let stamp = stamp.map_err(|_| Status::deadline_exceeded("the host does not answer"))?;
        let stamp = stamp?.ok_or_else(over)?;
        // By the clock that nobody sets, so that a step meanwhile is no part of it.
        let began = i64::from_ne_bytes(stamp.origin.to_ne_bytes());
        let took = ended.saturating_sub(began);
        let there = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        Ok(Sample {
            sent: received.saturating_sub(took),
            received_there: there(stamp.received_ns),
            sent_there: there(stamp.sent_ns),
            received,
        })
    }
}

fn over() -> Status {
    Status::unavailable("the host has ended the call")
}

/// This machine's clocks at one moment, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    real: i64,
    boot: i64,
    monotonic: i64,
}

impl Clocks {
    fn now() -> Self {
        Self {
            real: real_time(),
            boot: nanoseconds(ClockId::Boottime),
            monotonic: monotonic(),
        }
    }

    /// Whether somebody has set the clock since, or the machine was asleep.
    fn jumped_since(self, before: Self) -> bool {
        let differs = |a: i64, b: i64| a.saturating_sub(b).saturating_abs() > JUMP;
        let set = differs(self.real - self.boot, before.real - before.boot);
        set || differs(self.boot - self.monotonic, before.boot - before.monotonic)
    }
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

fn real_time() -> i64 {
    nanoseconds(ClockId::Realtime)
}

fn monotonic() -> i64 {
    nanoseconds(ClockId::Monotonic)
}

fn boot_time() -> Duration {
    Duration::from_nanos(u64::try_from(nanoseconds(ClockId::Boottime)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_set_and_a_machine_that_slept_are_noticed_and_time_that_passes_is_not() {
        let at = |real, boot, monotonic| Clocks {
            real,
            boot,
            monotonic,
        };
        let before = at(5_000_000_000, 1_000_000_000, 1_000_000_000);
        let later = at(6_000_500_000, 2_000_000_000, 2_000_000_000);
        assert!(!later.jumped_since(before));
        let set = at(6_200_000_000, 2_000_000_000, 2_000_000_000);
        assert!(set.jumped_since(before));
        let slept = at(9_000_000_000, 5_000_000_000, 2_000_000_000);
        assert!(slept.jumped_since(before));
    }
}
