//! The steps of a handover, at which tests end, stop or fail a side.

/// What a side has done, in the order of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Predecessor: the successor has connected.
    Connected,
    /// Predecessor: versions are agreed on.
    Welcomed,
    /// Predecessor: the successor is prepared.
    PreparedReceived,
    /// Predecessor: the broker is frozen.
    Frozen,
    /// Predecessor: the descriptors are sent.
    DescriptorsSent,
    /// Predecessor: the document is sent.
    DocumentSent,
    /// Predecessor: everything is sent.
    EndSent,
    /// Predecessor: it has received that the successor runs.
    StartedReceived,
    /// Successor: versions are agreed on.
    WelcomeReceived,
    /// Successor: it is prepared.
    Prepared,
    /// Successor: the state begins.
    Receiving,
    /// Successor: everything is received.
    Received,
    /// Successor: everything is restored.
    Restored,
    /// Successor: it has the word.
    Started,
}

/// Acts on [`VARIABLE`], in builds for tests only.
#[cfg(debug_assertions)]
pub(crate) fn reach(step: Step) -> Result<(), String> {
    hook::reach(step)
}

#[cfg(not(debug_assertions))]
#[inline]
pub(crate) fn reach(_: Step) -> Result<(), String> {
    Ok(())
}

/// `die:STEP` ends the process by SIGKILL, `stop:STEP` stops it by SIGSTOP, `wait:STEP` takes a while, `fail:STEP` is
/// an error. `@PATH` has them read from a file at each step.
#[cfg(debug_assertions)]
mod hook {
    use super::Step;

    const VARIABLE: &str = "HVSOCK_TEST_HANDOVER";
    const WHILE: std::time::Duration = std::time::Duration::from_millis(400);

    pub(super) fn reach(step: Step) -> Result<(), String> {
        let Ok(mut faults) = std::env::var(VARIABLE) else {
            return Ok(());
        };
        if let Some(path) = faults.strip_prefix('@') {
            faults = std::fs::read_to_string(path).unwrap_or_default();
        }
        let name = format!("{step:?}");
        for fault in faults.split(',') {
            let signal = match fault.split_once(':') {
                Some((what, at)) if at == name => what,
                _ => continue,
            };
            let own = rustix::process::getpid();
            let signal = match signal {
                "die" => rustix::process::Signal::KILL,
                "stop" => rustix::process::Signal::STOP,
                "wait" => {
                    std::thread::sleep(WHILE);
                    continue;
                }
                _ => return Err(format!("a test lets the step {name} fail")),
            };
            let _ = rustix::process::kill_process(own, signal);
        }
        Ok(())
    }
}
