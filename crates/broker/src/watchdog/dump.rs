//! What the operating system knows of a thread that is stuck: its state, the system call that it is in, and where in
//! the kernel it sleeps.
//!
//! The thread itself is left alone: a signal handler that walks its stack could hang or crash it for good. Its stack
//! in the program is in the core dump that the service manager has the kernel write (`WatchdogSignal=SIGABRT`).

use std::fs;

/// The state of a thread of this process, as one line.
pub(super) fn of(tid: u32) -> String {
    let read = |name: &str| {
        let text = fs::read_to_string(format!("/proc/self/task/{tid}/{name}"));
        text.unwrap_or_default()
    };
    describe(
        &read("status"),
        &read("syscall"),
        &read("wchan"),
        &read("stack"),
    )
}

/// Whether the thread is stopped, by a signal or a debugger.
pub(super) fn is_stopped(tid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/self/task/{tid}/status"));
    status.is_ok_and(|status| says_stopped(&status))
}

fn says_stopped(status: &str) -> bool {
    let state = status.lines().find_map(|line| line.strip_prefix("State:"));
    state.is_some_and(|state| state.trim_start().starts_with(['T', 't']))
}

fn describe(status: &str, syscall: &str, wchan: &str, stack: &str) -> String {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).filter(|value| !value.is_empty())
    };
    let mut parts = Vec::new();
    parts.push(match field("State:") {
        Some(state) => format!("state {state}"),
        None => "state unknown".to_owned(),
    });
    match syscall.split_whitespace().next() {
        Some("running") => parts.push("not in a system call".into()),
        // It is blocked outside of one, for example on a page of memory.
        Some("-1") => parts.push("blocked outside of a system call".into()),
        Some(number) => parts.push(format!("in the system call {number}")),
        None => {}
    }
    if !matches!(wchan.trim(), "" | "0") {
        parts.push(format!("waits in {}", wchan.trim()));
    }
    let frames: Vec<_> = stack
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter_map(|frame| frame.split('+').next())
        .collect();
    // Only root can read it.
    if !frames.is_empty() {
        parts.push(format!("kernel stack {}", frames.join(" < ")));
    }
    let switches = (
        field("voluntary_ctxt_switches:"),
        field("nonvoluntary_ctxt_switches:"),
    );
    if let (Some(waited), Some(preempted)) = switches {
        parts.push(format!(
            "waited {waited} times, preempted {preempted} times"
        ));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_a_thread_is_one_line() {
        let status = "Name:\thvsock-core\nState:\tD (disk sleep)\nvoluntary_ctxt_switches:\t12\n\
            nonvoluntary_ctxt_switches:\t3\n";
        let stack = "[<0>] rpc_wait_bit_killable+0x11/0x70\n[<0>] nfs_getattr+0x1/0x2\n";
        assert_eq!(
            describe(
                status,
                "257 0xffffff9c 0x7f 0x0\n",
                "rpc_wait_bit_killable",
                stack
            ),
            "state D (disk sleep), in the system call 257, waits in rpc_wait_bit_killable, kernel stack \
             rpc_wait_bit_killable < nfs_getattr, waited 12 times, preempted 3 times"
        );
        assert_eq!(describe("", "", "", ""), "state unknown");
        assert_eq!(
            describe("State:\tR (running)", "running\n", "0", ""),
            "state R (running), not in a system call"
        );
    }

    #[test]
    fn a_thread_that_a_debugger_stops_is_told_from_one_that_waits() {
        for (state, is_stopped) in [
            ("T (stopped)", true),
            ("t (tracing stop)", true),
            ("S (sleeping)", false),
            ("D (disk sleep)", false),
        ] {
            let status = format!("Name:\thvsock-core\nState:\t{state}\nTgid:\t7\n");
            assert_eq!(says_stopped(&status), is_stopped, "{state}");
        }
        assert!(!says_stopped(""));
    }

    #[test]
    fn the_state_of_a_thread_that_waits_is_found() {
        let tid = rustix::thread::gettid().as_raw_pid().unsigned_abs();
        let found = std::thread::spawn(move || of(tid));
        let found = found.join().unwrap();
        assert!(found.starts_with("state S (sleeping)"), "{found}");
    }
}
