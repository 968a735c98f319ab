//! Identities of processes: a process id is reused, but never with the same start time.

use std::io;
use std::os::windows::io::{AsRawHandle, FromRawHandle, OwnedHandle};

use windows_sys::Win32::Foundation::{ERROR_INVALID_PARAMETER, FILETIME, HANDLE, WAIT_OBJECT_0};
use windows_sys::Win32::System::Threading::{
    GetCurrentProcess, GetProcessTimes, OpenProcess, PROCESS_QUERY_LIMITED_INFORMATION,
    PROCESS_SYNCHRONIZE, WaitForSingleObject,
};

/// The state of a process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessState {
    /// No process has the id.
    Gone,
    /// A process has the id and started at this time, in units of 100 ns since 1601.
    Since(u64),
    /// A process has the id, but this process may not query it.
    Unknown,
}

/// Returns the state of a process id.
pub fn state(id: u32) -> ProcessState {
    // SAFETY: no pointers are passed.
    let process = unsafe {
        OpenProcess(
            PROCESS_QUERY_LIMITED_INFORMATION | PROCESS_SYNCHRONIZE,
            0,
            id,
        )
    };
    if process.is_null() {
        let error = io::Error::last_os_error();
        return match error.raw_os_error().map(|code| code as u32) {
            Some(ERROR_INVALID_PARAMETER) => ProcessState::Gone,
            _ => ProcessState::Unknown,
        };
    }
    // SAFETY: OpenProcess has just returned this handle, and nothing else owns it.
    let process = unsafe { OwnedHandle::from_raw_handle(process) };
    // An ended process keeps its id while a handle to it is open.
    // SAFETY: the handle is open; no pointers are passed.
    if unsafe { WaitForSingleObject(process.as_raw_handle(), 0) } == WAIT_OBJECT_0 {
        return ProcessState::Gone;
    }
    start_time(process.as_raw_handle()).map_or(ProcessState::Unknown, ProcessState::Since)
}

/// Returns the start time of this process, in units of 100 ns since 1601.
///
/// # Errors
///
/// Those of `GetProcessTimes`.
pub fn own_start_time() -> io::Result<u64> {
    // SAFETY: takes no arguments and returns a pseudo-handle, which is not closed.
    start_time(unsafe { GetCurrentProcess() })
}

fn start_time(process: HANDLE) -> io::Result<u64> {
    let mut times = [FILETIME::default(); 4];
    let [created, exited, kernel, user] = &mut times;
    // SAFETY: the handle is open, and each pointer is to a FILETIME of its own.
    let done = unsafe { GetProcessTimes(process, created, exited, kernel, user) };
    match done {
        0 => Err(io::Error::last_os_error()),
        _ => Ok(u64::from(created.dwHighDateTime) << 32 | u64::from(created.dwLowDateTime)),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_is_identified_by_its_start_time() {
        let mine = own_start_time().unwrap();
        assert_eq!(state(std::process::id()), ProcessState::Since(mine));
        // No process has the id 0, which the system uses for idle time.
        assert_eq!(state(0), ProcessState::Gone);
    }

    #[test]
    fn an_ended_process_is_gone_while_its_handle_is_open() {
        let mut child = Command::new("cmd.exe")
            .args(["/c", "pause"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let id = child.id();
        assert!(
            matches!(state(id), ProcessState::Since(_)),
            "{:?}",
            state(id)
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(state(id), ProcessState::Gone);
    }
}
