//! Stops the whole broker between two turns of its event loop, so that its state can be handed over, and lets it
//! go on if it stays.
//!
//! While the core thread is here it reads no socket and accepts no client, and its epoll reports what came meanwhile
//! afterwards. What the other threads have reported is applied first.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hvsock_address::VmId;
use hvsock_fabric::PartitionKey;

use super::attaching;
use super::state::Core;
use crate::handover::document::{DOCUMENT_VERSION, Document};
use crate::handover::serve::{Destination, Figures, Outcome, Source};
use crate::handover::{Exports, HandoverError};

/// Rounds of applying reports, each of which may ask links for something, which may report again.
const MAX_ROUNDS: usize = 1000;

/// How long the last records of the audit may take to be written.
const AUDIT: Duration = Duration::from_millis(500);

/// Hands the broker over.
pub(crate) struct HandOver {
    /// Where its state goes.
    pub(crate) to: Box<dyn Destination>,
    /// The listener of the control API.
    pub(crate) control: Option<Arc<OwnedFd>>,
    /// The lock of the folders.
    pub(crate) lock: OwnedFd,
    /// Called with the end of it, on the core's thread.
    pub(crate) done: Box<dyn FnOnce(Outcome, Figures) + Send>,
}

/// The broker while it is handed over.
struct Frozen<'a> {
    core: &'a mut Core,
    apply_reports: &'a mut dyn FnMut(&mut Core) -> bool,
    control: Option<&'a OwnedFd>,
    lock: &'a OwnedFd,
    /// The VMs whose links have been asked to freeze.
    links: Vec<PartitionKey>,
    /// What the streams of events, which have ended, are resumed with.
    resume_events: Option<String>,
}

impl HandOver {
    /// Hands the broker over. `apply_reports` applies what the other threads have reported, and returns whether there
    /// was anything. Returns whether the successor runs.
    pub(super) fn run(
        self,
        core: &mut Core,
        apply_reports: &mut dyn FnMut(&mut Core) -> bool,
    ) -> bool {
        let Self {
            to,
            control,
            lock,
            done,
        } = self;
        let mut frozen = Frozen {
            core,
            apply_reports,
            control: control.as_deref(),
            lock: &lock,
            links: Vec::new(),
            resume_events: None,
        };
        let (outcome, figures) = to.hand_over(&mut frozen);
        let has_left = outcome == Outcome::Left;
        if !has_left {
            frozen.thaw();
        }
        done(outcome, figures);
        has_left
    }
}

impl Source for Frozen<'_> {
    fn freeze(&mut self, deadline: Instant) -> Result<(), HandoverError> {
        // A process that takes so long must not be able to prevent every upgrade.
        self.core
            .expire_attaching(Instant::now() + attaching::TIMEOUT);
        // Their processes get an answer without the guest's part.
        self.core.end_explanations();
        for vm in self.core.vms.keys().collect::<Vec<_>>() {
            let core = &self.core;
            if let Some(link) = core.vms.link(vm) {
                link.freeze().map_err(|error| error.of(core.vm_label(vm)))?;
                self.links.push(vm);
            }
        }
        // Their reports are there by then.
        self.core.gather_connections(deadline)?;
        self.settle(deadline)?;
        // Nothing happens any more that they could tell.
        let resume = VmId::random().to_string();
        self.resume_events = Some(self.core.telemetry.end_streams(resume));
        Ok(())
    }

    fn export(&mut self, exports: &mut Exports, version: u32) -> Result<Document, HandoverError> {
        if version != DOCUMENT_VERSION {
            return Err(HandoverError::UnsupportedVersion {
                found: version,
                supported: DOCUMENT_VERSION,
            });
        }
        let core = &self.core;
        let mut links = std::collections::BTreeMap::new();
        for vm in &self.links {
            if let Some(link) = core.vms.link(*vm) {
                let link = link.hand_over(exports);
                let link = link.map_err(|error| error.of(core.vm_label(*vm)))?;
                links.insert(vm.as_u64(), link);
            }
        }
        Ok(Document {
            version,
            release: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            core: core.hand_over_state(exports, Instant::now())?,
            links,
            events: self.resume_events.clone(),
            control: self
                .control
                .map(|control| exports.fd(control))
                .transpose()?,
            lock: Some(exports.fd(self.lock)?),
            stored: None,
        })
    }
}

impl Frozen<'_> {
    /// Applies what the other threads report until nothing is left.
    fn settle(&mut self, deadline: Instant) -> Result<(), HandoverError> {
        for _ in 0..MAX_ROUNDS {
            for vm in &self.links {
                let core = &self.core;
                if let Some(link) = core.vms.link(*vm) {
                    let frozen = link.frozen(deadline);
                    frozen.map_err(|error| error.of(core.vm_label(*vm)))?;
                }
            }
            if !(self.apply_reports)(self.core) {
                return Ok(());
            }
        }
        Err(HandoverError::TimedOut {
            what: "applying what the links report".into(),
            limit: deadline.saturating_duration_since(Instant::now()),
        })
    }

    fn thaw(self) {
        let core = self.core;
        core.keep_connections();
        if let Some(resume) = self.resume_events {
            core.telemetry.keep_for(resume);
        }
        for vm in self.links {
            if let Some(link) = core.vms.link(vm) {
                link.thaw();
            }
        }
    }
}

impl Core {
    /// Ends without an act that anybody could see: all that this core has is its successor's now.
    pub(super) fn leave(mut self) {
        self.audit.finish(Instant::now() + AUDIT);
        std::mem::forget(self);
    }

    /// Whether no request is under way that would have to be made again.
    pub(super) fn is_drained(&self) -> bool {
        let waits = self.connections.all_pending().next().is_some();
        let is_answered = self.parked.is_empty() && !self.uplinks.is_asked();
        !waits && is_answered && self.attaching.is_empty()
    }

    pub(super) fn vm_label(&self, vm: PartitionKey) -> String {
        let partition = self.fabric.partition(vm);
        partition.map_or_else(String::new, |vm| format!("the VM \"{}\"", vm.name()))
    }
}
