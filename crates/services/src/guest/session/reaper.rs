//! Reaps orphaned children, which is the duty of a first process.
//!
//! In a container the agent may be the first process, and commands may leave children behind. A
//! zombie that is not reaped keeps its process id, and a container has only a limited number of them.

use std::collections::BTreeSet;
use std::fs;
use std::future::pending;
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, getpid, waitpid};
use tokio::time::sleep;

use super::process;
use super::sweep::Stat;

/// How long a zombie must exist before it is reaped: the thread that started a process reaps it sooner.
const INTERVAL: Duration = Duration::from_secs(5);

/// Reaps orphaned children until dropped, if this is the first process.
pub(crate) async fn reap_children() {
    if getpid() != Pid::INIT {
        return pending().await;
    }
    let mut before = BTreeSet::new();
    loop {
        sleep(INTERVAL).await;
        let now = zombie_children();
        for pid in now.intersection(&before) {
            // Process ids that are held on purpose are not reaped.
            if let Some(pid) = Pid::from_raw(*pid).filter(|_| !process::is_held(*pid)) {
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
            }
        }
        before = now;
    }
}

/// The zombie children of this process.
fn zombie_children() -> BTreeSet<i32> {
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
    fn a_zombie_child_is_found_until_it_is_reaped() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while !zombie_children().contains(&pid) {
            thread::sleep(Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert!(!zombie_children().contains(&pid));
    }
}
