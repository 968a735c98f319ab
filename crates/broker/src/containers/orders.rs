//! What the observer of containers is to do: its queue, whose sending side a [`Handle`](crate::Handle) has.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use hvsock_fabric::PartitionKey;
use hvsock_sys::pidfd::{Process, ProcessId};
use mio::Waker;

use crate::core::BindingNumber;

/// A container to observe.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) key: PartitionKey,
    pub(crate) number: BindingNumber,
    pub(crate) process: Arc<Process>,
    /// Which process it is, if its number is known.
    pub(crate) id: Option<ProcessId>,
    /// Whether the core knows that its cgroup is frozen.
    pub(crate) frozen: bool,
}

/// What the observer is to do.
#[derive(Debug)]
pub(super) enum Order {
    Observe(Observed),
    /// The binding is gone.
    Forget(BindingNumber),
    Stop,
}

/// The sending side of the thread's orders.
#[derive(Clone, Debug)]
pub(crate) struct Orders {
    queue: Sender<Order>,
    waker: Arc<Waker>,
}

impl Orders {
    /// The queue, of which `waker` wakes the reader.
    pub(super) fn new(waker: Waker) -> (Self, Receiver<Order>) {
        let (queue, orders) = channel();
        let waker = Arc::new(waker);
        (Self { queue, waker }, orders)
    }

    /// Has a container observed from now on.
    pub(crate) fn observe(&self, container: Observed) {
        self.send(Order::Observe(container));
    }

    /// Ends the observation of a container.
    pub(crate) fn forget(&self, number: BindingNumber) {
        self.send(Order::Forget(number));
    }

    /// Has the thread end.
    pub(super) fn stop(&self) {
        self.send(Order::Stop);
    }

    fn send(&self, order: Order) {
        // Both fail only once the thread has ended.
        let _ = self.queue.send(order);
        let _ = self.waker.wake();
    }
}
