//! The peer of the conformance cases for clients, as a program: see `docs/vectors/README.md`.
//!
//! It needs a broker in which its user may register services, and finds it as every program does.

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    use hvsock_testkit::peer::{ConformancePeer, SERVICE};

    let peer = ConformancePeer::start(&hvsock::Endpoint::from_env())?;
    println!("listening at \"{SERVICE}\"");
    peer.wait();
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::io::Result<()> {
    Err(std::io::Error::other(
        "the peer needs a broker, and runs on Linux only",
    ))
}
