//! Runs the demo in a process of its own, and removes its files when that has ended.
//!
//! The demo's broker, its guest and its VMM create files at any time, and a signal can end the demo at any time.
//! Only when the last of its processes is gone does nobody create any more.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, set_parent_process_death_signal, wait,
};

use crate::failure::Ended;
use crate::os::linux::signals::Termination;

/// The longest wait for the demo's other processes, which end with it.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Interval of checks.
const INTERVAL: Duration = Duration::from_millis(5);

/// The exit status after a signal: 128 + SIGINT, as a shell reports it.
const INTERRUPTED: u8 = 130;

/// Runs this program with the arguments that it has, and the option `--OPTION FOLDER`. A signal ends it.
pub fn run(option: &str) -> Result<()> {
    let mut termination = Termination::catch().context("cannot catch signals")?;
    let folder = tempfile::Builder::new()
        .prefix("hvsock-demo-")
        .tempdir()
        .context("cannot create a temporary folder")?;
    // Processes that the demo leaves become children of this one.
    set_child_subreaper(Some(getpid())).context("cannot supervise the demo")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1));
    command.arg(option).arg(folder.path());
    let mut demo = command.spawn().context("cannot start the demo")?;

    let is_interrupted = Arc::new(AtomicBool::new(false));
    let interrupted = Arc::clone(&is_interrupted);
    let process = process(demo.id()).context("cannot supervise the demo")?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            termination.wait();
            interrupted.store(true, Ordering::SeqCst);
            // It fails if the demo has ended.
            let _ = pidfd_send_signal(process, Signal::KILL);
        })
        .context("cannot start a thread")?;
    let status = demo.wait().context("cannot wait for the demo")?;
    wait_for_others();
    remove(folder.path()).with_context(|| format!("cannot remove {}", folder.path().display()))?;
    match is_interrupted.load(Ordering::SeqCst) {
        true => Err(Ended(INTERRUPTED).into()),
        false => result(status),
    }
}

/// Ends this process when its parent ends, even by SIGKILL.
pub fn end_with_parent() -> Result<()> {
    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot follow the parent")?;
    // It may have ended before.
    match getppid() == parent {
        true => Ok(()),
        false => Err(Ended(INTERRUPTED).into()),
    }
}

fn process(id: u32) -> io::Result<OwnedFd> {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw);
    let id = id.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(pidfd_open(id, PidfdFlags::empty())?)
}

/// The demo's error is printed by the demo.
fn result(status: ExitStatus) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    let signal = || status.signal().map_or(1, |signal| 128 + signal);
    let code = status.code().unwrap_or_else(signal);
    Err(Ended(u8::try_from(code).unwrap_or(1)).into())
}

/// Waits until this process has no more children.
fn wait_for_others() {
    let deadline = Instant::now() + END_LIMIT;
    while Instant::now() < deadline {
        match wait(WaitOptions::NOHANG) {
            Ok(None) => thread::sleep(INTERVAL),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Removes a folder. Tries again if a file appears meanwhile: a process that did not end in time may create one.
fn remove(folder: &Path) -> io::Result<()> {
    let deadline = Instant::now() + END_LIMIT;
    loop {
        match std::fs::remove_dir_all(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    && Instant::now() < deadline =>
            {
                thread::sleep(INTERVAL);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_is_removed_although_another_process_still_creates_files_in_it() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("demo");
        let deepest = folder.join("a/b/c");
        let (inner, stop) = (deepest.clone(), Arc::new(AtomicBool::new(false)));
        fs::create_dir_all(&deepest).unwrap();
        let stopped = Arc::clone(&stop);
        let creator = thread::spawn(move || {
            for number in 0..2000 {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let _ = fs::write(inner.join(number.to_string()), "");
            }
        });
        remove(&folder).unwrap();
        stop.store(true, Ordering::SeqCst);
        creator.join().unwrap();
        assert!(!folder.exists());
        remove(&folder).unwrap();
    }
}
