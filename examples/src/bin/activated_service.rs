//! A service in a virtual machine that systemd starts when the first connection arrives (socket
//! activation). Started by hand it listens itself. It echoes.
//!
//! ```ini
//! # echo.socket
//! [Socket]
//! ListenStream=vsock::2761
//! FileDescriptorName=echo
//! ```

use std::io;

use hvsock::HvListener;

fn main() -> io::Result<()> {
    let service = std::env::args().nth(1).unwrap_or_else(|| "2761".to_owned());
    let listener = listener(&service)?;
    println!("listening at {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || io::copy(&mut &stream, &mut &stream));
    }
    Ok(())
}

/// The listener that systemd passed, or else a new one. On Windows nothing passes listeners.
#[cfg(target_os = "linux")]
fn listener(service: &str) -> io::Result<HvListener> {
    let mut passed = hvsock::listen_fds()?.into_iter();
    match passed.find(|passed| passed.name() == "echo") {
        Some(passed) => HvListener::try_from(passed),
        None => HvListener::bind(("any", service)),
    }
}

#[cfg(not(target_os = "linux"))]
fn listener(service: &str) -> io::Result<HvListener> {
    HvListener::bind(("any", service))
}
