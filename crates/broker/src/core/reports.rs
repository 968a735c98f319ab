//! The queue of reports from the other threads to the core thread.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

use hvsock_fabric::PartitionKey;

use crate::data_path::ReportSender;
use crate::guest_link::{EventSender, LinkEvent};
use crate::loop_waker::LoopWaker;
use crate::pump::Report;
use crate::uplink_client::UplinkEvent;
use crate::watchdog::{Role, ThreadWatch, Watchdog};

/// A report of one of the other threads.
#[derive(Debug)]
pub(super) enum ThreadReport {
    /// Of a data thread.
    Data(Report),
    /// Of a VM's link.
    Link(PartitionKey, LinkEvent),
    /// Of the uplink to the host.
    Uplink(UplinkEvent),
}

/// The sending side of the queue of reports.
#[derive(Debug)]
pub(super) struct ReportQueue {
    queue: Sender<ThreadReport>,
    waker: Arc<LoopWaker>,
    watchdog: Watchdog,
}

impl ReportQueue {
    /// A new queue, and its receiving side. `waker` wakes the core thread. The threads that report are watched by
    /// `watchdog`.
    pub(super) fn new(waker: Arc<LoopWaker>, watchdog: Watchdog) -> (Self, Receiver<ThreadReport>) {
        let (queue, reports) = std::sync::mpsc::channel();
        let own = Self {
            queue,
            waker,
            watchdog,
        };
        (own, reports)
    }

    /// A sender for a data thread.
    pub(super) fn of_data_thread(&self) -> ReportSender<Report> {
        let watch = self.watch(Role::Broker);
        self.sender(ThreadReport::Data).watched(watch)
    }

    /// How a thread of this role is watched.
    pub(super) fn watch(&self, role: Role) -> ThreadWatch {
        self.watchdog.of(role)
    }

    /// A sender for the link of a VM with this name.
    pub(super) fn of_link(&self, vm: PartitionKey, name: &str) -> EventSender {
        let watch = self.watch(Role::Vm(vm, name.into()));
        let sender = self.sender(move |event| ThreadReport::Link(vm, event));
        sender.watched(watch)
    }

    /// A sender for the uplink to the host.
    pub(super) fn of_uplink(&self) -> ReportSender<UplinkEvent> {
        let watch = self.watch(Role::Broker);
        self.sender(ThreadReport::Uplink).watched(watch)
    }

    fn sender<T>(
        &self,
        wrap: impl Fn(T) -> ThreadReport + Send + Sync + 'static,
    ) -> ReportSender<T> {
        let (queue, waker) = (self.queue.clone(), Arc::clone(&self.waker));
        ReportSender::to_queue(move |report, wakes| {
            // Sending fails only after the core thread has ended.
            let is_sent = report.is_none_or(|report| queue.send(wrap(report)).is_ok());
            if is_sent && wakes {
                waker.wake();
            }
        })
    }
}
