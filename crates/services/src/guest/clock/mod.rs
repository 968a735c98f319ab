//! Synchronizes this machine's clock with the host's.
//!
//! An exchange of a few probes ([`sample`]) measures the offset. A pure function of the offset and
//! its history decides on the correction ([`discipline`]), and the kernel applies it. The clock is
//! measured when the agent connects to the host (and so after the machine was paused), after the
//! clock was set or the machine was suspended, and when the host requests it.

mod discipline;
mod sample;

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use hvsock::{Endpoint, VmId};
use hvsock_sys::clock;
use hvsock_sys::sync::lock;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::catalog::TIME;
use crate::link::backoff::Backoff;
use crate::link::{CallError, Target};
use crate::wire::heartbeat;
use crate::wire::time::time_client::TimeClient;
use crate::wire::time::{Probe, Stamp};
use discipline::{Correction, Discipline, Keeper};
use sample::{Offset, Sample, best};

/// The number of probes in a measurement.
const PROBES: usize = 8;

/// The delay between an answer and the next probe.
const BETWEEN: Duration = Duration::from_millis(20);

/// How long an answer may take.
const REPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// The keepalive timeout of the connection to the host.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often to check whether the clock was set, and the smallest jump that counts, in nanoseconds.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
const JUMP: i64 = 100_000_000;

/// A handle to the last measurement, which can also request a new one.
#[derive(Clone, Debug, Default)]
pub(super) struct ClockHandle(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    last: Mutex<Option<Measured>>,
    measure_now: Notify,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    offset: Offset,
    at: Duration,
    keeper: Keeper,
}

impl ClockHandle {
    /// Requests a measurement now.
    pub(super) fn measure_now(&self) {
        self.0.measure_now.notify_one();
    }

    /// The last measurement, as a beat reports it.
    pub(super) fn report(&self) -> Option<heartbeat::Clock> {
        let last = *lock(&self.0.last);
        let last = last?;
        let age = boot_time().saturating_sub(last.at).as_millis();
        let mut clock = heartbeat::Clock {
            offset_ns: last.offset.ns,
            error_ns: last.offset.error_ns,
            age_ms: u64::try_from(age).unwrap_or(u64::MAX),
            ..heartbeat::Clock::default()
        };
        clock.set_keeper(match last.keeper {
            Keeper::Agent => heartbeat::Keeper::Agent,
            Keeper::Other => heartbeat::Keeper::Other,
            Keeper::Host => heartbeat::Keeper::Host,
        });
        Some(clock)
    }

    fn set(&self, measured: Measured) {
        *lock(&self.0.last) = Some(measured);
    }
}

/// Synchronizes the clock until dropped.
pub(super) async fn run(endpoint: Endpoint, handle: ClockHandle) {
    let rate = clock::status().map_or(0, |status| status.rate_ppb);
    let mut synchronizer = Synchronizer {
        discipline: Discipline::new(rate),
        handle,
        own: false,
        endpoint: endpoint.clone(),
        warned: false,
    };
    let target = Target::new(endpoint, VmId::PARENT);
    let mut backoff = Backoff::default();
    loop {
        let mut measured = false;
        let Err(error) = synchronizer.connected(&target, &mut measured).await;
        tracing::debug!("no time from the host: {error}");
        if measured {
            backoff = Backoff::default();
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

struct Synchronizer {
    discipline: Discipline,
    handle: ClockHandle,
    /// Whether the machine has a clock of its own. A container, which has a broker's endpoint, uses
    /// its host's.
    own: bool,
    endpoint: Endpoint,
    /// Whether the failure to set the clock was logged.
    warned: bool,
}

impl Synchronizer {
    /// Synchronizes the clock over one connection until the connection ends.
    async fn connected(
        &mut self,
        target: &Target,
        measured: &mut bool,
    ) -> Result<Infallible, CallError> {
        let mut exchange = Exchange::open(target).await?;
        // Certain only now: the vsock device exists once the connection does.
        self.own = self.endpoint.uses_vsock();
        // The machine may have been paused while there was no connection.
        self.discipline.disturbed();
        loop {
            let before = self.measure(&mut exchange).await?;
            if matches!(before, Correction::Step(_)) {
                // So that the reported offset is the one after the step.
                self.measure(&mut exchange).await?;
            }
            *measured = true;
            tokio::select! {
                disturbed = self.wait() => if disturbed {
                    self.discipline.disturbed();
                },
                // A pause of the machine breaks the connection, which is often its only sign.
                end = exchange.end() => return Err(end),
            }
        }
    }

    /// Measures once and applies the correction.
    async fn measure(&mut self, exchange: &mut Exchange) -> Result<Correction, CallError> {
        let mut samples = Vec::with_capacity(PROBES);
        for _ in 0..PROBES {
            // Longer than the host's rate limit, so the host never delays a probe.
            tokio::time::sleep(BETWEEN).await;
            samples.push(exchange.sample().await?);
        }
        let nonsense = || Status::internal("the host's timestamps are inconsistent");
        let offset = best(&samples).ok_or_else(nonsense)?;
        let keeper = match clock::status() {
            _ if !self.own => Keeper::Host,
            Ok(status) if status.synchronized => Keeper::Other,
            _ => Keeper::Agent,
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
            && !std::mem::replace(&mut self.warned, true)
        {
            tracing::warn!("cannot set the clock to the host's time: {error}");
        }
        self.handle.set(Measured { offset, at, keeper });
        Ok(correction)
    }

    /// Waits until the next measurement is due. Returns whether it is early: the clock was set, the
    /// machine was suspended, or the host has requested it.
    async fn wait(&self) -> bool {
        let until = boot_time() + self.discipline.interval();
        let mut before = Clocks::now();
        loop {
            let left = until.saturating_sub(boot_time());
            if left.is_zero() {
                return false;
            }
            tokio::select! {
                () = tokio::time::sleep(left.min(CHECK_INTERVAL)) => {}
                () = self.handle.0.measure_now.notified() => return true,
            }
            let now = Clocks::now();
            if self.own && now.jumped_since(before) {
                return true;
            }
            before = now;
        }
    }
}

/// A call to the host that answers each probe.
struct Exchange {
    probes: mpsc::Sender<()>,
    stamps: Streaming<Stamp>,
}

impl Exchange {
    async fn open(target: &Target) -> Result<Self, CallError> {
        let channel = target.channel_with_keepalive(&TIME, IDLE_TIMEOUT).await?;
        let (probes, wanted) = mpsc::channel(1);
        let probing = stream::unfold(wanted, async |mut wanted: mpsc::Receiver<()>| {
            wanted.recv().await?;
            // Read as late as possible.
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
            Ok(Some(_)) => Status::internal("the host sent an unexpected answer").into(),
            Ok(None) => over().into(),
            Err(status) => status.into(),
        }
    }

    async fn sample(&mut self) -> Result<Sample, CallError> {
        self.probes.send(()).await.map_err(|_| over())?;
        let stamp = timeout(REPLY_TIMEOUT, self.stamps.message()).await;
        let (ended, received) = (monotonic(), real_time());
        let stamp =
            stamp.map_err(|_| Status::deadline_exceeded("timed out: the host did not answer"))?;
        let stamp = stamp?.ok_or_else(over)?;
        // By the monotonic clock, which is never set, so that a step in between does not count.
        let began = i64::from_ne_bytes(stamp.origin.to_ne_bytes());
        let took = ended.saturating_sub(began);
        let there = |ns: u64| i64::try_from(ns).unwrap_or(i64::MAX);
        Ok(Sample {
            sent: received.saturating_sub(took),
            received_by_host: there(stamp.received_ns),
            sent_by_host: there(stamp.sent_ns),
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

    /// Whether the clock was set since, or the machine was suspended.
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
    fn a_set_clock_and_a_suspended_machine_are_detected() {
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
