//! A data thread's state in the document of its device.

use std::mem::ManuallyDrop;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use hvsock_virtio::Config;
use serde::{Deserialize, Serialize};

use super::{FIRST_PORT, KICKS, LAST_PORT, Worker};
use crate::guest_link::Resuming;
use crate::handover::{Exports, HandoverError, Imports};
use crate::vhost_user::command::{Command, DeviceState, Phase};
use crate::vhost_user::memory::Ram;
use crate::vhost_user::pause_check::PauseCheck;
use crate::vhost_user::pause_check::snapshot::PauseCheckState;
use crate::vhost_user::queues::Queues;
use crate::vhost_user::traffic::snapshot::TrafficState;

/// A data thread's state.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct WorkerState {
    /// The VM's phase, and the one that was reported last.
    phase: PhaseState,
    reported: PhaseState,
    pause_check: Option<PauseCheckState>,
    next_port: u32,
    /// The thread still has the memory that the VMM has shared.
    has_memory: bool,
    traffic: TrafficState,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseState {
    Defined,
    Connected,
    Running,
    Paused,
    Off,
}

impl From<Phase> for PhaseState {
    fn from(phase: Phase) -> Self {
        match phase {
            Phase::Defined => Self::Defined,
            Phase::Connected => Self::Connected,
            Phase::Running => Self::Running,
            Phase::Paused => Self::Paused,
            Phase::Off => Self::Off,
        }
    }
}

impl From<PhaseState> for Phase {
    fn from(state: PhaseState) -> Self {
        match state {
            PhaseState::Defined => Self::Defined,
            PhaseState::Connected => Self::Connected,
            PhaseState::Running => Self::Running,
            PhaseState::Paused => Self::Paused,
            PhaseState::Off => Self::Off,
        }
    }
}

impl Worker {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
        now: Instant,
    ) -> Result<WorkerState, HandoverError> {
        let Self {
            poll: _,
            waker: _,
            wake_queue: _,
            commands: _,
            traffic,
            state,
            phase,
            pause_check,
            next_port,
            spin_limit: _,
            stopping: _,
        } = self;
        Ok(WorkerState {
            phase: (*phase).into(),
            reported: state.phase().into(),
            pause_check: pause_check.as_ref().map(|check| check.state(now)),
            next_port: *next_port,
            has_memory: !traffic.queues.ram.is_empty(),
            traffic: traffic.hand_over(exports, now)?,
        })
    }

    /// A data thread's state with that of a document, in a guest's memory. It is not dropped by itself: the ends of
    /// its connections would tell the processes at the other ends that they are closed, while another process has them.
    pub(in super::super) fn resume(
        document: WorkerState,
        imports: &mut Imports,
        ram: Ram,
        config: Config,
        state: DeviceState,
        commands: Receiver<Command>,
        resuming: &Resuming<'_>,
    ) -> Result<ManuallyDrop<Box<Self>>, HandoverError> {
        let WorkerState {
            phase,
            reported,
            pause_check,
            next_port,
            has_memory,
            traffic,
        } = document;
        let now = Instant::now();
        state.set_phase(reported.into());
        let events = resuming.events.clone();
        let worker = Self::new(config.clone(), state, commands, events);
        let worker = worker.map_err(HandoverError::io("make a VM's thread"))?;
        let mut worker = ManuallyDrop::new(Box::new(worker));
        worker.phase = phase.into();
        let pause_check = pause_check.map(|check| PauseCheck::restore(check, now));
        worker.pause_check = pause_check.transpose()?;
        worker.next_port = next_port.clamp(FIRST_PORT, LAST_PORT);
        let ram = match has_memory {
            true => ram,
            false => Ram::default(),
        };
        let Self {
            poll, traffic: to, ..
        } = &mut **worker;
        let registry = poll.registry();
        let queues =
            |state, imports: &mut Imports| Queues::resume(state, imports, ram, registry, KICKS);
        to.resume(traffic, queues, imports, config, resuming, now)?;
        Ok(worker)
    }
}
