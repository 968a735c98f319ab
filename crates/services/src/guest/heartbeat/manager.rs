//! What the guest's service manager says of its start.
//!
//! It is asked beside the beats, never in their way: the answer can take seconds where the machine
//! is busy, which is just when a beat matters.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;

use crate::wire::heartbeat::State;

/// How often it is asked while the guest starts or stops, and once it runs.
const WHILE_CHANGING: Duration = Duration::from_secs(1);
const WHILE_RUNNING: Duration = Duration::from_secs(15);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How the guest is, with the manager's own word for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) state: State,
    pub(super) word: String,
}

impl Start {
    /// A guest without a manager that could be asked: it has started, since the agent runs.
    fn unasked() -> Self {
        Self {
            state: State::Ok,
            word: String::new(),
        }
    }

    /// What `systemctl is-system-running` says, by one word (systemctl(1)).
    fn of_word(word: &str) -> Self {
        let state = match word {
            "initializing" | "starting" => State::Starting,
            // Degraded: a unit failed, which most machines live with.
            "running" | "degraded" => State::Ok,
            "maintenance" => State::Critical,
            "stopping" => State::Stopping,
            _ => State::Unspecified,
        };
        let known = state != State::Unspecified;
        Self {
            state,
            word: if known {
                word.to_owned()
            } else {
                String::new()
            },
        }
    }
}

/// Asks the manager for as long as somebody wants to know.
pub(super) fn watch() -> watch::Receiver<Start> {
    // The folder is how sd_booted(3) tells.
    if !Path::new("/run/systemd/system").is_dir() {
        return watch::channel(Start::unasked()).1;
    }
    let (told, start) = watch::channel(Start::of_word("starting"));
    tokio::spawn(async move {
        while !told.is_closed() {
            if let Some(start) = ask().await {
                told.send_if_modified(|old| std::mem::replace(old, start.clone()) != start);
            }
            let pause = match told.borrow().state {
                State::Ok | State::Critical => WHILE_RUNNING,
                _ => WHILE_CHANGING,
            };
            tokio::time::sleep(pause).await;
        }
    });
    start
}

async fn ask() -> Option<Start> {
    let asked = Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = tokio::time::timeout(PATIENCE, asked).await.ok()?.ok()?;
    let start = Start::of_word(String::from_utf8_lossy(&answer.stdout).trim());
    // `offline` and `unknown` say nothing of how the guest is.
    (start.state != State::Unspecified).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_started_when_its_manager_says_so() {
        for (word, state) in [
            ("initializing", State::Starting),
            ("starting", State::Starting),
            ("running", State::Ok),
            ("degraded", State::Ok),
            ("maintenance", State::Critical),
            ("stopping", State::Stopping),
        ] {
            let word = word.to_owned();
            assert_eq!(Start::of_word(&word), Start { state, word });
        }
        for word in ["offline", "unknown", "", "no such thing"] {
            assert_eq!(Start::of_word(word).state, State::Unspecified);
        }
    }
}
