//! The state of the guest's service manager.
//!
//! It is queried by a task of its own and never delays a beat: the answer can take seconds on a
//! busy machine, which is when a beat matters most.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::watch;

use crate::wire::heartbeat::State;

/// The query interval while the guest starts or stops, and while it runs.
const WHILE_CHANGING: Duration = Duration::from_secs(1);
const WHILE_RUNNING: Duration = Duration::from_secs(15);

/// The timeout of one query.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The state of the guest, with the service manager's name for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManagerState {
    pub(super) state: State,
    pub(super) word: String,
}

impl ManagerState {
    /// A guest without a manager that can be queried: it has started, because the agent runs.
    fn without_manager() -> Self {
        Self {
            state: State::Ok,
            word: String::new(),
        }
    }

    /// Parses the word that `systemctl is-system-running` prints (systemctl(1)).
    fn of_word(word: &str) -> Self {
        let state = match word {
            "initializing" | "starting" => State::Starting,
            // Degraded means that a unit failed, which is common.
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

/// Queries the manager for as long as the receiver exists.
pub(super) fn watch() -> watch::Receiver<ManagerState> {
    // sd_booted(3) checks for this folder.
    if !Path::new("/run/systemd/system").is_dir() {
        return watch::channel(ManagerState::without_manager()).1;
    }
    let (sender, start) = watch::channel(ManagerState::of_word("starting"));
    tokio::spawn(async move {
        while !sender.is_closed() {
            if let Some(start) = query().await {
                sender.send_if_modified(|old| std::mem::replace(old, start.clone()) != start);
            }
            let interval = match sender.borrow().state {
                State::Ok | State::Critical => WHILE_RUNNING,
                _ => WHILE_CHANGING,
            };
            tokio::time::sleep(interval).await;
        }
    });
    start
}

async fn query() -> Option<ManagerState> {
    let query = Command::new("systemctl")
        .arg("is-system-running")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let answer = tokio::time::timeout(TIMEOUT, query).await.ok()?.ok()?;
    let start = ManagerState::of_word(String::from_utf8_lossy(&answer.stdout).trim());
    // `offline` and `unknown` do not contain the state.
    (start.state != State::Unspecified).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_of_the_manager_determines_the_state() {
        for (word, state) in [
            ("initializing", State::Starting),
            ("starting", State::Starting),
            ("running", State::Ok),
            ("degraded", State::Ok),
            ("maintenance", State::Critical),
            ("stopping", State::Stopping),
        ] {
            let word = word.to_owned();
            assert_eq!(ManagerState::of_word(&word), ManagerState { state, word });
        }
        for word in ["offline", "unknown", "", "no such thing"] {
            assert_eq!(ManagerState::of_word(word).state, State::Unspecified);
        }
    }
}
