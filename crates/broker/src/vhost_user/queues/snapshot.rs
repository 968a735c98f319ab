//! A device's virtqueues in its document.

use mio::{Registry, Token};
use serde::{Deserialize, Serialize};

use super::{QUEUES, Queues};
use crate::handover::{Exports, HandoverError, Imports};
use crate::vhost_user::memory::Ram;
use crate::vhost_user::vring::Vring;
use crate::vhost_user::vring::snapshot::VringState;

/// The virtqueues, and what the VMM has done with them.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct QueuesState {
    /// Of packets to the guest, of packets from the guest, of events.
    vrings: [VringState; QUEUES],
    driver_restarted: bool,
    loaded: bool,
    invalid_chains: u64,
}

impl Queues {
    pub(in super::super) fn hand_over(
        &self,
        exports: &mut Exports,
    ) -> Result<QueuesState, HandoverError> {
        let Self {
            ram: _,
            vrings: [rx, tx, event],
            driver_restarted,
            loaded,
            invalid_chains,
        } = self;
        Ok(QueuesState {
            vrings: [
                rx.hand_over(exports)?,
                tx.hand_over(exports)?,
                event.hand_over(exports)?,
            ],
            driver_restarted: *driver_restarted,
            loaded: *loaded,
            invalid_chains: *invalid_chains,
        })
    }

    /// The queues in a guest's memory. `tokens` are those of the kick eventfds.
    pub(in super::super) fn resume(
        state: QueuesState,
        imports: &mut Imports,
        ram: Ram,
        registry: &Registry,
        tokens: [Token; QUEUES],
    ) -> Result<Self, HandoverError> {
        let QueuesState {
            vrings: [rx, tx, event],
            driver_restarted,
            loaded,
            invalid_chains,
        } = state;
        let [rx_token, tx_token, event_token] = tokens;
        Ok(Self {
            vrings: [
                Vring::resume(rx, imports, &ram, (registry, rx_token))?,
                Vring::resume(tx, imports, &ram, (registry, tx_token))?,
                Vring::resume(event, imports, &ram, (registry, event_token))?,
            ],
            ram,
            driver_restarted,
            loaded,
            invalid_chains,
        })
    }
}
