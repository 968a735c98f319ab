//! The library over Hyper-V sockets: those of this Windows, or under Wine what stands in for them.

#![cfg(windows)]

mod guests;
mod sockets;

use std::io;

use hvsock::{HvListener, Refusal, ServiceId, VmId, refusal_of};

/// Set where the tests run over the stand-in, so that none may be left out.
const STAND_IN: &str = "HVSOCK_TEST_STAND_IN";

/// Whether this runs over the stand-in, which can play a host and its virtual machines.
fn is_over_stand_in() -> bool {
    std::env::var_os(STAND_IN).is_some()
}

/// Whether there are Hyper-V sockets here; says so where there are not.
fn has_hyper_v_sockets() -> bool {
    let tried = HvListener::bind((VmId::LOOPBACK, ServiceId::random()));
    if !matches!(&tried, Err(error) if refusal_of(error) == Some(&Refusal::NotSupported)) {
        return true;
    }
    assert!(!is_over_stand_in(), "the stand-in has no AF_HYPERV");
    eprintln!("skipped: it needs AF_HYPERV, which this Windows does not have");
    false
}

/// The refusal of what must not succeed.
fn refusal<T>(result: io::Result<T>) -> Refusal {
    let error = result.err().expect("a refusal");
    refusal_of(&error)
        .unwrap_or_else(|| panic!("no refusal: {error}"))
        .clone()
}
