//! What the supervisor reports, as lines on standard error.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use anstyle::{AnsiColor, Style};
use hvsock::HvAddr;
use hvsock_interpose::model::{place, restriction};
use hvsock_interpose::supervisor::Event;

use crate::context::Context;
use crate::{explain, failure, fix};

/// The events that wait to be printed at most. A program can listen faster than a terminal shows lines.
const MAX_WAITING: usize = 64;

/// Prints events on a thread of its own: finding out what helps takes a question to the broker.
#[derive(Clone, Debug)]
pub struct Reporter {
    events: SyncSender<Event>,
    left_out: Arc<AtomicU64>,
}

impl Reporter {
    /// Starts the thread.
    pub fn start(context: &Context) -> std::io::Result<Self> {
        let (sender, events) = mpsc::sync_channel(MAX_WAITING);
        let context = context.clone();
        Self::to(sender, move |left_out| {
            for event in &events {
                print(&context, &event);
                report_left_out(left_out.swap(0, Ordering::Relaxed));
            }
        })
    }

    fn to(
        events: SyncSender<Event>,
        print_all: impl FnOnce(&AtomicU64) + Send + 'static,
    ) -> std::io::Result<Self> {
        let left_out = Arc::new(AtomicU64::new(0));
        let printed = Arc::clone(&left_out);
        let thread = thread::Builder::new().name("reports".into());
        thread.spawn(move || print_all(&printed))?;
        Ok(Self { events, left_out })
    }

    /// Reports an event. Does not block: if too many wait, it is counted only.
    pub fn report(&self, event: Event) {
        if self.events.try_send(event).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn report_left_out(count: u64) {
    if count > 0 {
        let yellow = AnsiColor::Yellow.on_default().bold();
        let text = format!("{count} more lines about the program's sockets were left out");
        failure::print(yellow, "warning", &text);
    }
}

fn print(context: &Context, event: &Event) {
    let yellow = AnsiColor::Yellow.on_default().bold();
    let note = Style::new().bold();
    match event {
        // Its sockets work, as far as the registry permits and once the broker is there.
        Event::Restricted { .. } | Event::Registered { .. } | Event::ListenerEnded { .. }
            if context.quiet => {}
        Event::Restricted {
            address,
            target,
            accepts_from,
            refusal,
        } => {
            let text = restriction(address, *accepts_from, refusal);
            failure::print(yellow, "warning", &text);
            let explained = explain::explain(context, &HvAddr::from(*target), true);
            let explained = explained.ok();
            if let Some(report) = explained.as_ref().and_then(|report| report.fix()) {
                let help = fix::help(&hvsock::Fix::from(report));
                let cyan = AnsiColor::Cyan.on_default().bold();
                failure::print(cyan, "help", &context.help(&help));
            }
        }
        Event::Registered { name, address } => {
            let place = place(address);
            failure::print(note, "note", &format!("registered {place} as \"{name}\""));
        }
        Event::NotRegistered { name, reason } => {
            let text = format!("cannot register \"{name}\": {reason}");
            failure::print(yellow, "warning", &text);
        }
        Event::ListenerEnded { address, refusal } => {
            let place = place(address);
            let why = match refusal {
                Some(refusal) => refusal.to_string(),
                None => "the broker has ended".to_owned(),
            };
            let text = format!("the listener for {place} has ended ({why}); trying again");
            failure::print(yellow, "warning", &text);
        }
        Event::NoAccess { process } => {
            let text = format!(
                "process {process} has sockets that cannot be served: it has other rights, or \
                 forbids others to look at it (PR_SET_DUMPABLE)"
            );
            failure::print(yellow, "warning", &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use hvsock_interpose::supervisor::Event;

    use super::*;

    #[test]
    fn events_that_nobody_prints_are_counted_and_not_kept() {
        let (sender, events) = mpsc::sync_channel(MAX_WAITING);
        let reporter = Reporter::to(sender, |_| ()).unwrap();
        for process in 0..1000 {
            reporter.report(Event::NoAccess { process });
        }
        assert_eq!(events.try_iter().count(), MAX_WAITING);
        let left_out = 1000 - MAX_WAITING as u64;
        assert_eq!(reporter.left_out.load(Ordering::Relaxed), left_out);
    }
}
