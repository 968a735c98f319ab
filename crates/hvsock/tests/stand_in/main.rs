//! The library over Hyper-V sockets: those of this Windows, or under Wine what stands in for them.

#![cfg(windows)]

mod guests;
mod sockets;

use std::io;

use hvsock::{HvListener, Refusal, ServiceId, VmId, refusal_of};
use hvsock_testkit::require;

/// Whether this runs over the stand-in, which can play a host and its virtual machines.
fn is_over_stand_in() -> bool {
    std::env::var_os(require::STAND_IN).is_some()
}

/// Whether there are Hyper-V sockets here; says so where there are not.
fn has_hyper_v_sockets() -> bool {
    let tried = HvListener::bind((VmId::LOOPBACK, ServiceId::random()));
    if !matches!(&tried, Err(error) if refusal_of(error) == Some(&Refusal::NotSupported)) {
        return true;
    }
    assert!(!is_over_stand_in(), "the stand-in has no AF_HYPERV");
    require::found(Err::<(), _>(
        "it needs AF_HYPERV, which this Windows does not have",
    ))
    .is_some()
}

/// The refusal of what must not succeed.
fn refusal<T>(result: io::Result<T>) -> Refusal {
    let error = result.err().expect("a refusal");
    refusal_of(&error)
        .unwrap_or_else(|| panic!("no refusal: {error}"))
        .clone()
}
