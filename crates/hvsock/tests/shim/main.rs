//! The library with Hyper-V sockets: those of this Windows, or of the AF_HYPERV shim under Wine.

#![cfg(windows)]

mod guests;
mod sockets;

use std::io;

use hvsock::{HvListener, Refusal, ServiceId, VmId, refusal_of};
use hvsock_testkit::require;

/// Returns true if this runs with the shim, which can simulate a host and its virtual machines.
fn is_over_shim() -> bool {
    std::env::var_os(require::SHIM).is_some()
}

/// Returns true if Hyper-V sockets exist here; prints why not otherwise.
fn has_hyper_v_sockets() -> bool {
    let tried = HvListener::bind((VmId::LOOPBACK, ServiceId::random()));
    if !matches!(&tried, Err(error) if refusal_of(error) == Some(&Refusal::NotSupported)) {
        return true;
    }
    assert!(!is_over_shim(), "the shim has no AF_HYPERV");
    require::found(Err::<(), _>(
        "it needs AF_HYPERV, which this Windows does not have",
    ))
    .is_some()
}

/// The refusal in the error of a call that must fail.
fn refusal<T>(result: io::Result<T>) -> Refusal {
    let error = result.err().expect("a refusal");
    refusal_of(&error)
        .unwrap_or_else(|| panic!("no refusal: {error}"))
        .clone()
}
