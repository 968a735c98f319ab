//! What the service manager that started this process is told (sd_notify(3)).

use std::env;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use hvsock_broker::{HandoverStage, ServiceManager};

/// Sends a message, if a service manager started this process.
pub fn notify(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        // It must not hang because the manager does: the thread that tells that others hang calls this.
        socket.set_nonblocking(true)?;
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the service manager of `{state}`");
    }
}

/// Tells the service manager of an upgrade, for which this process may speak until it has ended.
pub fn notify_handover(stage: HandoverStage) {
    match stage {
        HandoverStage::Begun => {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
            let micros = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1000;
            notify(&format!("RELOADING=1\nMONOTONIC_USEC={micros}"));
        }
        HandoverStage::GivenUp => notify("READY=1"),
        HandoverStage::Done(pid) => notify(&format!("MAINPID={pid}\nREADY=1")),
    }
}

/// The service manager, if it expects regular keep-alives of this process (sd_watchdog_enabled(3)).
pub fn watchdog() -> Option<ServiceManager> {
    let variable = |name| env::var(name).ok();
    let own = std::process::id();
    let timeout = wanted(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), own)?;
    Some(ServiceManager {
        // As sd_watchdog_enabled(3) recommends.
        interval: timeout / 2,
        alive: Arc::new(|| notify("WATCHDOG=1")),
    })
}

/// How long the process `own` may be silent.
fn wanted(micros: Option<String>, pid: Option<String>, own: u32) -> Option<Duration> {
    // Without a number it is meant for this process, too: that of an upgrade.
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let micros = micros?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_wanted_for_this_process_or_for_any() {
        let second = Some(Duration::from_secs(1));
        for (micros, pid, expected) in [
            (Some("1000000"), None, second),
            (Some("1000000"), Some("7"), second),
            (Some("1000000"), Some("8"), None),
            (Some("1000000"), Some("x"), None),
            (Some("0"), None, None),
            (Some("-1"), None, None),
            (Some("soon"), Some("7"), None),
            (None, Some("7"), None),
            (None, None, None),
        ] {
            let found = wanted(micros.map(str::to_owned), pid.map(str::to_owned), 7);
            assert_eq!(found, expected, "{micros:?} {pid:?}");
        }
    }
}
