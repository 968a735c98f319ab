//! The conformance suite against the kernel's own sockets: a suite that these fail would be wrong,
//! and what they lack shows that a lack is shown.

mod kernel;

use std::io;
use std::process::ExitCode;

use hvsock_testkit::conformance::{self, Role};
use socket2::Socket;

use kernel::{Kernel, Tcp, Unix};

fn main() -> ExitCode {
    if let Some(role) = Role::of_this_process() {
        // The stream is this process's stdin: see `with_process`.
        let stdin = rustix::io::dup(io::stdin()).expect("a stream on stdin");
        return role.play(&Kernel(Socket::from(stdin)));
    }
    let mut trials = conformance::trials(Unix);
    trials.extend(conformance::trials(Tcp));
    conformance::main(trials)
}
