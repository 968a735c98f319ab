//! Registers services that a program with the library listens for.
//!
//! The library cannot keep a registration: a lease lives as long as a connection to the broker, and programs close
//! descriptors that they do not know. So it asks the process that has started the program.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use hvsock_address::ServiceId;
use hvsock_sys::poll::{self, PollFd, PollFlags};
use hvsock_sys::{message, seqpacket};

/// Names the socket at which the library asks. Without it no service is registered.
pub const REGISTER_VARIABLE: &str = "HVSOCK_PRELOAD_REGISTER";

/// How long an answer may take: that of the broker to the registrar.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a program may take for its question. Others wait meanwhile.
const QUESTION: Duration = Duration::from_secs(1);

/// The answers.
const NOT_REGISTERED: u8 = 0;
const REGISTERED: u8 = 1;

/// Answers the programs that a command starts.
#[derive(Debug)]
pub struct Registrar {
    listener: OwnedFd,
    file: OwnedFd,
}

impl Registrar {
    /// A registrar at a socket of its own. Only processes that may look at this one can connect to it.
    ///
    /// # Errors
    ///
    /// Those of `socket` and `bind`, if this process may write to no folder.
    pub fn new() -> io::Result<Self> {
        let (listener, file) = seqpacket::listen_unnamed()?;
        Ok(Self { listener, file })
    }

    /// Sets the variable by which the library finds the registrar.
    pub fn apply(&self, command: &mut Command) {
        let (process, fd) = (std::process::id(), self.file.as_raw_fd());
        command.env(REGISTER_VARIABLE, format!("/proc/{process}/fd/{fd}"));
    }

    /// Answers questions for as long as this process lives. `register` registers a service if it can, and says whether
    /// it is registered then.
    ///
    /// # Errors
    ///
    /// Those of `poll` and `accept`.
    pub fn serve(&self, mut register: impl FnMut(ServiceId) -> bool) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::new(&self.listener, PollFlags::IN)];
            poll::wait(&mut fds, None)?;
            if let Some(client) = seqpacket::accept(&self.listener)? {
                // A program that asks nothing, or does not wait, gets no answer.
                let _ = answer(&client, &mut register);
            }
        }
    }
}

fn answer(client: &OwnedFd, register: impl FnOnce(ServiceId) -> bool) -> io::Result<()> {
    let service = ServiceId::from_guid_bytes(receive(client, QUESTION)?);
    let answer = match register(service) {
        true => REGISTERED,
        false => NOT_REGISTERED,
    };
    message::send(client, &[answer], &[])
}

/// Asks the registrar at `path` to register a service that is not registered. Returns whether it is registered now.
///
/// # Errors
///
/// Those of the connection; `TimedOut`.
pub fn ask_to_register(path: &Path, service: ServiceId) -> io::Result<bool> {
    let registrar = seqpacket::connect(path, ANSWER)?;
    message::send(&registrar, &service.to_guid_bytes(), &[])?;
    let [answer] = receive(&registrar, ANSWER)?;
    Ok(answer == REGISTERED)
}

/// One message of exactly this length.
fn receive<const N: usize>(socket: impl AsFd, within: Duration) -> io::Result<[u8; N]> {
    let deadline = Instant::now() + within;
    let mut bytes = [0; N];
    loop {
        match message::recv(&socket, &mut bytes) {
            Ok(received) if received.len == N => return Ok(bytes),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        let mut fds = [PollFd::new(&socket, PollFlags::IN)];
        if !poll::wait(&mut fds, Some(deadline))? {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;

    use super::*;

    /// The path of a registrar, which registers one service, and what it is asked for.
    fn registrar() -> (PathBuf, mpsc::Receiver<ServiceId>) {
        let registrar = Registrar::new().unwrap();
        let mut command = Command::new("true");
        registrar.apply(&mut command);
        let mut variables = command.get_envs();
        let path = variables.find(|(name, _)| *name == REGISTER_VARIABLE);
        let path = PathBuf::from(path.unwrap().1.unwrap());
        let (sender, asked) = mpsc::channel();
        let register = move |service| {
            sender.send(service).unwrap();
            service == ServiceId::from_port(1)
        };
        std::thread::spawn(move || registrar.serve(register));
        (path, asked)
    }

    #[test]
    fn a_registrar_is_asked_for_a_service_and_says_whether_it_is_registered() {
        let (path, asked) = registrar();
        for (port, is_registered) in [(1, true), (2, false), (1, true)] {
            let service = ServiceId::from_port(port);
            assert_eq!(ask_to_register(&path, service).unwrap(), is_registered);
            assert_eq!(asked.recv().unwrap(), service);
        }
    }

    #[test]
    fn a_registrar_survives_clients_that_ask_nothing_or_nonsense() {
        let (path, asked) = registrar();
        drop(seqpacket::connect(&path, ANSWER).unwrap());
        for length in [1, 15, 17, 4096] {
            let client = seqpacket::connect(&path, ANSWER).unwrap();
            message::send(&client, &vec![7; length], &[]).unwrap();
            assert!(receive::<1>(&client, ANSWER).is_err());
        }
        let _silent = seqpacket::connect(&path, ANSWER).unwrap();
        assert!(ask_to_register(&path, ServiceId::from_port(1)).unwrap());
        assert_eq!(asked.try_iter().count(), 1);
    }
}
