//! Sends its standard input to a service and prints what comes back.
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

    match talk(&partition, &service) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            // Who turned it down, and what would help?
            if hvsock::refusal_of(&error).is_some()
                && let Ok(explanation) = hvsock::explain_connect((partition, service))
            {
                eprintln!("{explanation}");
            }
            ExitCode::FAILURE
        }
    }
}

fn talk(partition: &str, service: &str) -> io::Result<()> {
    let mut stream = HvStream::connect((partition, service))?;
    let mut sender = stream.try_clone()?;
    let sending = thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut sender)?;
        // The service sees the end of what we send; what it sends still comes.
        sender.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout())?;
    if sending.is_finished() {
        sending
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the sending thread panicked")))?;
    }
    Ok(())
}
