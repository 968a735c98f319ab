//! What the guest's log says of one command.

use std::ffi::OsString;

use super::plan::Plan;
use super::sweep::Swept;
use crate::guest::audit::{self, Record, Requester};
use crate::wire::session as wire;
use crate::wire::session::exited::How;

/// A command that was requested. Its end is recorded, too, also if it is killed because the parent is
/// gone.
#[derive(Debug)]
pub(super) struct CommandRecord {
    action: &'static str,
    line: String,
    user: String,
    by: Requester,
    pid: Option<u32>,
}

impl CommandRecord {
    /// The record of a command that is about to start.
    pub(super) fn new(plan: &Plan, by: Option<wire::Requester>) -> Self {
        Self {
            action: match plan.argv.is_empty() {
                true => "shell",
                false => "exec",
            },
            line: audit::words(plan.argv.iter().map(OsString::as_os_str)),
            user: match &plan.user {
                Some(user) => user.clone(),
                None => format!("uid {}", rustix::process::geteuid().as_raw()),
            },
            by: by.into(),
            pid: None,
        }
    }

    /// The command runs.
    pub(super) fn started(&mut self, pid: u32) {
        self.pid = Some(pid);
        self.write("started", None);
    }

    /// The command did not start.
    pub(super) fn failed(self, why: &str) {
        self.write("failed", Some(why));
    }

    /// The command has exited.
    pub(super) fn exited(&mut self, how: Option<&How>) {
        let how = match how {
            Some(How::Status(status)) => format!("exit status {status}"),
            Some(How::Signal(signal)) => format!("killed by signal {signal}"),
            None => "unknown end".to_owned(),
        };
        self.write("ended", Some(&how));
        self.pid = None;
    }

    /// The host had the command ended.
    pub(super) fn hung_up(&mut self, swept: &Swept) {
        let result = match (swept.left.len(), swept.unknown) {
            (0, false) => "all of its processes were ended at the host's request".to_owned(),
            (0, true) => "told to end; whether all of its processes ended is unknown".to_owned(),
            (left, _) => format!("told to end; {left} of its processes were not seen to end"),
        };
        self.write("ended", Some(&result));
        self.pid = None;
    }

    fn write(&self, outcome: &str, result: Option<&str>) {
        audit::write(&Record {
            action: self.action,
            outcome,
            detail: &self.line,
            result,
            user: Some(&self.user),
            pid: self.pid,
            by: Some(&self.by),
        });
    }
}

impl Drop for CommandRecord {
    fn drop(&mut self) {
        if self.pid.is_some() {
            self.write(
                "ended",
                Some("the host ended the session; the agent ends the command"),
            );
        }
    }
}
