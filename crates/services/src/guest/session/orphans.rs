//! What a first process owes all others: to take note of the end of those whose parents are gone.
//!
//! In a container the agent may be that one, and commands leave such processes. A process that has
//! ended and that nobody takes note of keeps its number, of which a container has only so many.

use std::collections::BTreeSet;
use std::fs;
use std::future::pending;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::time::sleep;

use super::process;
use super::sweep::Stat;

/// Who started a process takes note of its end sooner than this.
const PAUSE: Duration = Duration::from_secs(5);

/// Does so until dropped, if this is the first process.
pub(crate) async fn take_note() {
    if getpid() != Pid::INIT {
        return pending().await;
    }
    let mut before = BTreeSet::new();
    loop {
        sleep(PAUSE).await;
        let now = ended_children();
        for pid in now.intersection(&before) {
            // Numbers that are held on purpose stay so.
            if let Some(pid) = Pid::from_raw(*pid).filter(|_| !process::is_held(*pid)) {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        before = now;
    }
}

/// The children of this process that have ended and are still there.
fn ended_children() -> BTreeSet<i32> {
    let own = getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeSet::new();
    };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        Stat::parse(&stat).is_some_and(|stat| stat.dead && stat.parent == own)
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::thread;

    use super::*;

    #[test]
    fn a_child_that_has_ended_is_seen_until_somebody_takes_note() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !ended_children().contains(&pid) {
            thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(!ended_children().contains(&pid));
    }
}
