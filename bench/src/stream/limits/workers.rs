//! Threads that run one closure after the other, each on given processors.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Thread};

use anyhow::Context;
use hvsock_sys::processor;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    jobs: Sender<Job>,
    thread: Thread,
}

/// A result that a worker computes.
#[derive(Debug)]
pub(super) struct Pending<T>(Receiver<std::io::Result<T>>);

impl Worker {
    pub(super) fn start() -> Self {
        let (jobs, received) = channel::<Job>();
        let running = thread::spawn(move || received.into_iter().for_each(|job| job()));
        Self {
            jobs,
            thread: running.thread().clone(),
        }
    }

    pub(super) fn thread(&self) -> Thread {
        self.thread.clone()
    }

    /// Runs `job` on this thread, restricted to these processors.
    pub(super) fn call<T: Send + 'static>(
        &self,
        processors: Vec<usize>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Pending<T> {
        let (done, result) = channel();
        let job = move || {
            let result = processor::set_affinity(&processors).map(|()| job());
            let _ = done.send(result);
        };
        // If the thread has ended, the receiver reports it.
        let _ = self.jobs.send(Box::new(job));
        Pending(result)
    }
}

impl<T> Pending<T> {
    pub(super) fn wait(self) -> anyhow::Result<T> {
        Ok(self.0.recv().context("a measuring thread has ended")??)
    }
}
