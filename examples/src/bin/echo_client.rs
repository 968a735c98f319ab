//! Sends stdin to a service and prints the reply.
//!
//! ```sh
//! echo hello | echo_client parent "HV Socket Demo"
//! ```

use std::io;
use std::net::Shutdown;
use std::process::ExitCode;
use std::thread;

use hvsock::HvStream;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let partition = arguments.next().unwrap_or_else(|| "parent".to_owned());
    let service = arguments
        .next()
        .unwrap_or_else(|| "HV Socket Demo".to_owned());

    match exchange(&partition, &service) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            // The error is a refusal. Print the rule that decided, and what to do.
            if let Some(explanation) = hvsock::explanation_of(&error) {
                eprintln!("{explanation}");
            }
            ExitCode::FAILURE
        }
    }
}

fn exchange(partition: &str, service: &str) -> io::Result<()> {
    let options = HvStream::options().explain_refusal(true);
    let mut stream = options.connect((partition, service))?;
    let mut sender = stream.try_clone()?;
    // Sending in a separate thread: a service may reply before it has read everything.
    let sending = thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut sender)?;
        // Half-close: the service reads end of file, and its reply still arrives.
        sender.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout())?;
    // If the service closed first, the sender may still wait for stdin, so it is not joined.
    if sending.is_finished() {
        sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")))?;
    }
    Ok(())
}
