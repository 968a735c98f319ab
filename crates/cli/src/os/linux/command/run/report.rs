//! What the supervisor reports, as lines on standard error.

use std::sync::mpsc::{self, Sender};
use std::thread;

use anstyle::{AnsiColor, Style};
use hvsock::HvAddr;
use hvsock_interpose::model::Address;
use hvsock_interpose::supervisor::Event;

use crate::context::Context;
use crate::{explain, failure, fix};

/// Prints events on a thread of its own: finding out what helps takes a question to the broker.
#[derive(Clone, Debug)]
pub struct Reporter(Sender<Event>);

impl Reporter {
    /// Starts the thread.
    pub fn start(context: &Context) -> std::io::Result<Self> {
        let (sender, events) = mpsc::channel();
        let context = context.clone();
        let thread = thread::Builder::new().name("reports".into());
        thread.spawn(move || events.iter().for_each(|event| print(&context, &event)))?;
        Ok(Self(sender))
    }

    /// Reports an event. Does not block.
    pub fn report(&self, event: Event) {
        let _ = self.0.send(event);
    }
}

fn print(context: &Context, event: &Event) {
    let yellow = AnsiColor::Yellow.on_default().bold();
    let note = Style::new().bold();
    match event {
        Event::LoopbackOnly {
            address,
            target,
            refusal,
        } => {
            let place = place(address);
            let text = format!("nobody outside can connect to {place}: {refusal}");
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
            if !context.quiet {
                failure::print(note, "note", &format!("registered {place} as \"{name}\""));
            }
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

/// An address in words.
pub fn place(address: &Address) -> String {
    match address {
        Address::Vsock(address) => format!("vsock port {}", address.port),
        Address::HyperV(address) => format!("service {}", address.service),
    }
}
