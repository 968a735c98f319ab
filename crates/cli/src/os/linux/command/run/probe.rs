//! A program that does what any program does first with a socket of `AF_VSOCK`, to find out what stands in the
//! way before the real program starts.

use std::fmt;
use std::io;

use anyhow::Result;
use hvsock_address::SockAddrVm;
use hvsock_sys::vsock;

use crate::output;

/// The command of this program that runs it. Nobody types it.
pub const COMMAND: &str = "__run-probe";

/// The step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Creating the socket.
    Socket,
    /// Binding it, for which the supervisor reads memory.
    Bind,
    /// Asking for its address, for which the supervisor writes memory.
    Name,
}

/// What failed, with which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub step: Step,
    pub errno: i32,
}

const STEPS: [(Step, &str); 3] = [
    (Step::Socket, "socket"),
    (Step::Bind, "bind"),
    (Step::Name, "getsockname"),
];

/// Makes the calls, and prints the first that fails.
pub fn run() -> Result<()> {
    if let Err(fault) = calls() {
        output::text(&format!("{fault}\n"))?;
    }
    Ok(())
}

fn calls() -> Result<(), Fault> {
    let fault = |step| {
        move |error: io::Error| Fault {
            step,
            errno: error.raw_os_error().unwrap_or(0),
        }
    };
    let socket = vsock::socket().map_err(fault(Step::Socket))?;
    let any = SockAddrVm::new(SockAddrVm::CID_ANY, SockAddrVm::PORT_ANY);
    vsock::bind(&socket, &any.to_bytes()).map_err(fault(Step::Bind))?;
    vsock::local_address(&socket).map_err(fault(Step::Name))?;
    Ok(())
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = STEPS.iter().find(|(step, _)| *step == self.step);
        let name = name.map_or("", |(_, name)| name);
        write!(f, "{name} {}", self.errno)
    }
}

impl Fault {
    /// Reads what the probe has printed. `None` if nothing failed.
    ///
    /// # Errors
    ///
    /// Fails if it is something else.
    pub fn parse(text: &str) -> Result<Option<Self>, ()> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        let (name, errno) = text.split_once(' ').ok_or(())?;
        let step = STEPS.iter().find(|(_, other)| *other == name).ok_or(())?.0;
        let errno = errno.parse().map_err(|_| ())?;
        Ok(Some(Self { step, errno }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_probe_prints_is_read_again() {
        for (step, _) in STEPS {
            let fault = Fault { step, errno: 13 };
            assert_eq!(Fault::parse(&format!("{fault}\n")), Ok(Some(fault)));
        }
        assert_eq!(Fault::parse("\n"), Ok(None));
        for odd in ["socket", "socket x", "open 2"] {
            assert_eq!(Fault::parse(odd), Err(()), "{odd}");
        }
    }
}
