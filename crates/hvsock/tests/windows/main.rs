//! The library on Windows: what it does where there are Hyper-V sockets (or what stands in for
//! them), and what it says where there are none.

#![cfg(windows)]

mod with;
mod without;

use std::io;

use hvsock::{HvListener, Refusal, ServiceId, VmId, refusal_of};

/// Set where the tests that need Hyper-V sockets must not be left out.
const REQUIRED: &str = "HVSOCK_TEST_AF_HYPERV";

/// Whether there are Hyper-V sockets here; says so where there are not.
fn has_hyper_v_sockets() -> bool {
    let tried = HvListener::bind((VmId::LOOPBACK, ServiceId::random()));
    if !matches!(&tried, Err(error) if refusal_of(error) == Some(&Refusal::NotSupported)) {
        return true;
    }
    assert!(
        std::env::var_os(REQUIRED).is_none(),
        "{REQUIRED} is set, and there is no AF_HYPERV"
    );
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
